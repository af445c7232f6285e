//! Blocks that go on behind jumps: fewer of them do the same, wherever they are left and whatever becomes
//! of the code behind a jump.

use dbt::{EngineOptions, Stop};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::machine::Machine;
use crate::places::{
    CHANGING, Seen, assert_same_registers, both_go_on, interpreted, interpreter, looping, seen,
};

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Rounds over branches that go each way by a bit of RDX, and look at the flags behind some.
fn ways(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut head = a.create_label();
    a.mov(ebp, 300)?;
    a.set_label(&mut head)?;
    a.imul_3(rax, rax, 0x5851_f42d)?;
    a.add(rax, 0x1405_7b7f)?;
    a.mov(rdx, rax)?;
    a.shr(rdx, 20)?;
    for bit in 0..6 {
        let mut join = a.create_label();
        let mut other = a.create_label();
        a.add(r8, qword_ptr(rdi + 8 * bit))?;
        a.bt(edx, bit as u32)?;
        a.jb(other)?;
        a.adc(r9, rdx)?;
        a.mov(qword_ptr(rdi + 8 * bit), r9)?;
        a.jmp(join)?;
        a.set_label(&mut other)?;
        a.sbb(r10, r8)?;
        a.pushfq()?;
        a.pop(rsi)?;
        a.xor(r12, rsi)?;
        a.set_label(&mut join)?;
        a.rcl(r12, 3)?;
    }
    a.dec(ebp)?;
    a.jne(head)?;
    a.hlt()
}

/// A store changes the constant of an instruction further on, behind a jump that is not taken and one that
/// is.
fn changing_itself(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut head, mut constant, mut out) = (a.create_label(), a.create_label(), a.create_label());
    let mut on = a.create_label();
    a.mov(ebp, 40)?;
    a.set_label(&mut head)?;
    a.lea(rsi, ptr(constant))?;
    a.mov(byte_ptr(rsi + 1), bpl)?;
    a.test(ebp, ebp)?;
    a.je(out)?;
    a.jmp(on)?;
    a.nop()?;
    a.set_label(&mut on)?;
    a.add(r8, r9)?;
    a.set_label(&mut constant)?;
    // B0 ib
    a.mov(al, 0x55)?;
    a.movzx(eax, al)?;
    a.add(r9, rax)?;
    a.dec(ebp)?;
    a.jmp(head)?;
    a.set_label(&mut out)?;
    a.hlt()
}

/// Behind the jumps a division faults in the last round.
fn faulting_behind(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut head, mut out) = (a.create_label(), a.create_label());
    a.mov(ebp, 60)?;
    a.set_label(&mut head)?;
    a.mov(ecx, ebp)?;
    a.sub(ecx, 20)?;
    a.cmp(ebp, 10)?;
    a.je(out)?;
    a.add(r8, 3)?;
    a.test(ebp, 0x100)?;
    a.jne(out)?;
    a.mov(eax, 1000)?;
    a.xor(edx, edx)?;
    a.stc()?;
    a.div(ecx)?;
    a.add(r9, rax)?;
    a.dec(ebp)?;
    a.jmp(head)?;
    a.set_label(&mut out)?;
    a.hlt()
}

const PROGRAMS: [(&str, Code); 3] = [
    ("ways", ways),
    ("changing itself", changing_itself),
    ("faulting behind", faulting_behind),
];

fn assembled(code: Code) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64 bits");
    code(&mut a).expect("the program can be written");
    a.assemble(CHANGING).expect("the program can be assembled")
}

fn ran(options: EngineOptions, code: Code) -> (Seen, u64) {
    let mut machine = Machine::new(options, 2);
    machine.set_up(&looping(&assembled(code)));
    assert_eq!(machine.vcpu.run(), Stop::Halted);
    machine.vcpu.mem.audit().expect("the copies are equal");
    let translated = machine.vcpu.statistics().translated;
    (seen(&mut machine), translated)
}

#[test]
fn they_do_the_same() {
    for (name, code) in PROGRAMS {
        let mut reference = interpreter();
        let program = looping(&assembled(code));
        let expected = interpreted(&mut reference, &program, 1_000_000, name);
        for bits in 0..16 {
            let options = EngineOptions {
                long_blocks: bits & 1 != 0,
                grouping: bits & 2 != 0,
                lazy_flags: bits & 4 != 0,
                traces: (bits & 8 != 0).then_some(4),
                cold: [0, 2][bits >> 1 & 1],
                ..EngineOptions::default()
            };
            let what = format!("{name}, {options:?}");
            let (found, _) = ran(options, code);
            assert_same_registers(&found, &expected, &what);
            assert!(found.3 == expected.3, "{what}: memory differs");
        }
    }
}

#[test]
fn they_are_fewer() {
    for cold in [0, 2] {
        let translated = [false, true].map(|long_blocks| {
            let options = EngineOptions {
                long_blocks,
                traces: None,
                cold,
                ..EngineOptions::default()
            };
            ran(options, ways).1
        });
        let [short, long] = translated;
        assert!(
            long * 3 <= short * 2,
            "{long} blocks instead of {short}, cold {cold}"
        );
    }
}

/// Wherever instructions run out, the processor is where the interpreter is.
#[test]
fn they_stop_anywhere() {
    for (name, code) in PROGRAMS {
        let program = looping(&assembled(code));
        let options = EngineOptions {
            counted: true,
            traces: None,
            cold: 0,
            ..EngineOptions::default()
        };
        let mut machine = Machine::new(options, 2);
        let mut reference = interpreter();
        machine.set_up(&program);
        reference.set_up(&program);
        for stop in 0.. {
            let more = 1 + stop * 7 % 31;
            let what = format!("{name}, stop {stop}");
            let last = both_go_on(&mut reference, &mut machine, more, &what);
            let (theirs, ours) = (reference.vcpu.cpu(), machine.vcpu.cpu());
            assert_eq!(ours.rflags(), theirs.rflags(), "{what}");
            if last == Stop::Halted {
                break;
            }
        }
    }
}
