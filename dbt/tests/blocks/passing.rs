//! Arithmetic flags that calls, returns and jumps pass on to code that looks at them late, and the
//! stack pointer where pushes and pops in a row are interrupted.

use dbt::EngineOptions;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::machine::{CODE, HOLE};
use crate::precise::{Bench, Code, PRODUCERS, walk};

/// Ways from the instruction that sets the flags to the one that looks at them.
const WAYS: &[(&str, Code)] = &[
    ("a return", |a| {
        let (mut function, mut next) = (a.create_label(), a.create_label());
        a.call(function)?;
        a.jmp(next)?;
        a.set_label(&mut function)?;
        a.ret()?;
        a.set_label(&mut next)?;
        a.zero_bytes()
    }),
    ("a function that uses registers", |a| {
        let (mut function, mut inner, mut next) =
            (a.create_label(), a.create_label(), a.create_label());
        a.call(function)?;
        a.lea(r9, ptr(r9 + rbx + 3))?;
        a.jmp(next)?;
        a.set_label(&mut function)?;
        a.push(rbx)?;
        a.push(r9)?;
        a.mov(r14, qword_ptr(rdi + 16))?;
        a.push(rbp)?;
        a.lea(ebx, ptr(rbx + rbx + 1))?;
        a.call(inner)?;
        a.pop(rbp)?;
        a.lea(r10, ptr(r10 + rbx))?;
        a.pop(r9)?;
        a.pop(rbx)?;
        a.ret()?;
        a.set_label(&mut inner)?;
        a.mov(rbx, qword_ptr(rdi + 24))?;
        a.mov(rax, qword_ptr(rdi + 8))?;
        a.ret_1(0)?;
        a.set_label(&mut next)?;
        a.zero_bytes()
    }),
    ("an indirect jump", |a| {
        let mut next = a.create_label();
        a.lea(r15, ptr(next))?;
        a.jmp(r15)?;
        a.set_label(&mut next)?;
        a.zero_bytes()
    }),
    ("an indirect call, registers change", |a| {
        let (mut function, mut next) = (a.create_label(), a.create_label());
        a.lea(r15, ptr(function))?;
        a.mov(rax, qword_ptr(rdi + 24))?;
        a.mov(qword_ptr(rdi + 40), r15)?;
        a.lea(ebx, ptr(rbx + 1))?;
        a.call(qword_ptr(rdi + 40))?;
        a.jmp(next)?;
        a.set_label(&mut function)?;
        a.lea(r9, ptr(r9 + 1))?;
        a.ret()?;
        a.set_label(&mut next)?;
        a.zero_bytes()
    }),
    ("jumps", |a| {
        let (mut first, mut second) = (a.create_label(), a.create_label());
        a.jmp(first)?;
        a.int3()?;
        a.set_label(&mut first)?;
        a.mov(r14, qword_ptr(rdi + 16))?;
        a.lea(ebx, ptr(rbx + 1))?;
        a.jmp(second)?;
        a.int3()?;
        a.set_label(&mut second)?;
        a.mov(rax, qword_ptr(rdi + 24))?;
        a.zero_bytes()
    }),
    ("a branch, then a return", |a| {
        let (mut function, mut out, mut next) =
            (a.create_label(), a.create_label(), a.create_label());
        a.call(function)?;
        a.jmp(next)?;
        a.set_label(&mut function)?;
        a.jb(out)?;
        a.mov(rax, qword_ptr(rdi + 8))?;
        a.set_label(&mut out)?;
        a.lea(ebx, ptr(rbx + 1))?;
        a.ret()?;
        a.set_label(&mut next)?;
        a.zero_bytes()
    }),
];

/// What looks at the flags: the frame of a store's fault if nothing does before.
const LOOKS: &[(&str, Code)] = &[
    ("nothing", |_| Ok(())),
    ("inc", |a| a.inc(r8)),
    ("adc", |a| a.adc(r13, r8)),
    ("a way and inc", |a| {
        let mut next = a.create_label();
        a.mov(r14, qword_ptr(rdi + 16))?;
        a.jmp(next)?;
        a.set_label(&mut next)?;
        a.dec(r8b)
    }),
];

/// The optimisations concerned, on and off, with others each way.
fn bench() -> Bench {
    Bench::of((0..12).map(|bits| EngineOptions {
        lazy_flags: bits & 1 != 0,
        late_stack: bits & 2 != 0,
        late_slots: bits % 3 != 1,
        late_stores: bits % 3 != 2,
        sure_accesses: bits % 4 != 2,
        whole_jumps: bits & 4 != 0,
        memory_operands: bits % 5 != 1,
        long_blocks: bits & 5 != 1,
        counted: bits % 3 == 0,
        grouping: bits % 5 != 4,
        returns: bits & 4 == 0,
        traces: (bits & 8 != 0).then_some(2),
        registers: (bits & 6 == 2).then_some(1),
        cold: 0,
        ..EngineOptions::default()
    }))
}

#[test]
fn flags_are_passed_on() {
    let mut bench = bench();
    for (number, (name, undefined, producer)) in PRODUCERS.iter().enumerate() {
        for (way_number, (way_name, way)) in WAYS.iter().enumerate() {
            // Each look behind each way, with some of the instructions.
            let (look_name, look) = LOOKS[(number + way_number) % LOOKS.len()];
            let code = walk(*producer, *way, look);
            let what = format!("{name}, {way_name}, {look_name}");
            bench.compare(&what, &code, *undefined);
        }
    }
}

/// All six flags arrive, also where the processor's are wanted at once.
#[test]
fn flags_arrive_for_pushf() {
    let mut bench = bench();
    let all = PRODUCERS.iter().filter(|(_, undefined, _)| *undefined == 0);
    for (name, _, producer) in all {
        for (way_name, way) in WAYS {
            let code = walk(*producer, *way, |a| {
                a.mov(r14, qword_ptr(rdi + 16))?;
                a.pushfq()?;
                a.pop(r13)
            });
            bench.compare(&format!("{name}, {way_name}"), &code, 0);
        }
    }
}

/// Pushes, pops and returns run out of memory: the stack pointer in the frame is that of the
/// instruction that does.
#[test]
fn stacks_that_end() {
    let programs: [(&str, Code); 5] = [
        ("pushes", |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.push(rbx)?;
            a.lea(rbx, ptr(rbx + 5))?;
            a.push(r9)?;
            a.mov(r14, rbx)?;
            a.push(0x1234)?;
            a.push(rbp)?;
            a.pop(r15)?;
            a.jmp(again)
        }),
        ("calls", |a| {
            let (mut again, mut next) = (a.create_label(), a.create_label());
            a.set_label(&mut again)?;
            a.push(rbx)?;
            a.push(rsp)?;
            a.push(r9)?;
            a.mov(rbp, rsp)?;
            a.call(next)?;
            a.set_label(&mut next)?;
            a.push(rax)?;
            a.add(rbx, rsp)?;
            a.push(rbx)?;
            a.jmp(again)
        }),
        ("pops", |a| {
            let mut again = a.create_label();
            a.mov(rsp, HOLE - 0x2348)?;
            a.set_label(&mut again)?;
            a.pop(rbx)?;
            a.pop(r9)?;
            a.pop(r14)?;
            a.push(r14)?;
            a.pop(rax)?;
            a.jmp(again)
        }),
        ("pops that divide", |a| {
            let mut again = a.create_label();
            a.mov(rsp, HOLE - 0x1348)?;
            a.mov(r13d, 20)?;
            a.set_label(&mut again)?;
            a.push(rbx)?;
            a.push(r9)?;
            a.pop(r14)?;
            a.xor(edx, edx)?;
            a.mov(eax, 100)?;
            a.div(r13d)?;
            a.pop(r15)?;
            a.dec(r13d)?;
            a.jmp(again)
        }),
        ("returns", |a| {
            let (mut again, mut function) = (a.create_label(), a.create_label());
            a.mov(rsp, HOLE - 0x348)?;
            a.set_label(&mut again)?;
            a.lea(r15, ptr(function))?;
            a.push(r15)?;
            a.push(rbx)?;
            a.pop(rbp)?;
            a.ret()?;
            a.set_label(&mut function)?;
            a.push(rbx)?;
            a.pop(r14)?;
            a.lea(rsp, ptr(rsp + 24))?;
            a.jmp(again)
        }),
    ];
    let mut bench = bench();
    for (name, program) in programs {
        let assemble = || -> Result<Vec<u8>, IcedError> {
            let mut a = CodeAssembler::new(64)?;
            program(&mut a)?;
            a.assemble(CODE)
        };
        let code = assemble().expect("it assembles");
        bench.compare(name, &code, 0);
    }
}
