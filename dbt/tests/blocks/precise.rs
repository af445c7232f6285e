//! Arithmetic flags where the code has no use for them, but the guest may look: in frames of
//! exceptions, and where a store puts an instruction that reads them in place of one that does
//! not.

use dbt::guest::flags;
use dbt::{EngineOptions, Stop};
use iced_x86::code_asm::*;

use crate::machine::{CODE, DATA, HOLE, Machine};
use crate::program::Recipe;
use crate::tables::HANDLER_STACK;

pub type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Instructions that leave flags, and those of them that are undefined.
pub const PRODUCERS: &[(&str, u64, Code)] = &[
    ("sub itself", 0, |a| a.sub(eax, eax)),
    ("sub register", 0, |a| a.sub(ax, bx)),
    ("sub constant", 0, |a| a.sub(r9, 0x1234_5678)),
    ("sub memory", 0, |a| a.sub(r9b, byte_ptr(rdi + 3))),
    ("add register", 0, |a| a.add(r10d, r9d)),
    ("add constant", 0, |a| a.add(bl, 0x7f)),
    ("add itself", 0, |a| a.add(ebx, ebx)),
    ("add memory", 0, |a| a.add(rbx, qword_ptr(rdi))),
    ("add to memory", 0, |a| a.add(dword_ptr(rdi), 0x4000_0001)),
    ("sub from memory", 0, |a| a.sub(qword_ptr(rdi + 8), r9)),
    ("xor to memory", flags::AF, |a| a.xor(word_ptr(rdi), bx)),
    ("cmp registers", 0, |a| a.cmp(rbx, rax)),
    ("cmp memory", 0, |a| a.cmp(dword_ptr(rdi + 4), 0x1000_0000)),
    ("cmp with memory", 0, |a| a.cmp(r9w, word_ptr(rdi))),
    ("test", flags::AF, |a| a.test(bl, bl)),
    ("test memory", flags::AF, |a| a.test(byte_ptr(rdi), 0x81)),
    ("and", flags::AF, |a| a.and(ebx, 0x7fff_ffff)),
    ("or memory", flags::AF, |a| a.or(r9, qword_ptr(rdi))),
    ("xor", flags::AF, |a| a.xor(ebx, r9d)),
    ("shl", flags::AF, |a| a.shl(rbx, 1)),
    ("shr", flags::AF | flags::OF, |a| a.shr(r9d, 3)),
    ("sar", flags::AF | flags::OF, |a| a.sar(r10b, 2)),
    ("shl by cl", flags::AF | flags::OF, |a| a.shl(ebx, cl)),
    ("rol", 0, |a| a.rol(ebx, 1)),
    ("inc", 0, |a| a.inc(ebx)),
    ("dec", 0, |a| a.dec(r9)),
    ("neg", 0, |a| a.neg(ebx)),
    ("adc", 0, |a| a.adc(ebx, 5)),
    ("sbb memory", 0, |a| a.sbb(dword_ptr(rdi), ebx)),
    ("imul", flags::SF | flags::ZF | flags::AF | flags::PF, |a| {
        a.imul_2(ebx, eax)
    }),
    ("bt", flags::OF | flags::SF | flags::AF | flags::PF, |a| {
        a.bt(ebx, 3)
    }),
    ("stc", 0, |a| a.stc()),
    ("cmpxchg", 0, |a| a.cmpxchg(dword_ptr(rdi), ebx)),
    ("xadd", 0, |a| a.xadd(dword_ptr(rdi), ebx)),
    ("ah", 0, |a| a.add(ah, bh)),
];

/// What stands between the flags and the store that faults. Each may keep a recipe from working,
/// or make another block of what follows.
const BETWEEN: &[(&str, Code)] = &[
    ("nothing", |_| Ok(())),
    ("a branch", |a| {
        let mut next = a.create_label();
        a.je(next)?;
        a.set_label(&mut next)?;
        a.zero_bytes()
    }),
    ("registers change", |a| {
        a.mov(r14, qword_ptr(rdi + 16))?;
        a.lea(ebx, ptr(rbx + rbx + 1))?;
        a.mov(rax, qword_ptr(rdi + 24))?;
        a.lea(r9, ptr(r9 + rax))
    }),
    ("a branch, then registers", |a| {
        let mut next = a.create_label();
        a.ja(next)?;
        a.set_label(&mut next)?;
        a.mov(ebx, dword_ptr(rdi + 16))?;
        a.lea(r9, ptr(r9 + rbx + 7))
    }),
    ("a call", |a| {
        let mut next = a.create_label();
        a.call(next)?;
        a.set_label(&mut next)?;
        a.pop(r15)
    }),
];

/// A loop that stores at RSI until that is no memory; `extra` is in front of the store.
pub fn walk(producer: Code, between: Code, extra: Code) -> Vec<u8> {
    let assemble = || -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        producer(&mut a)?;
        between(&mut a)?;
        extra(&mut a)?;
        a.mov(dword_ptr(rsi), ebx)?;
        a.mov(dword_ptr(rsi + 8), eax)?;
        a.add(rsi, 0x31c)?;
        a.jmp(again)?;
        a.assemble(CODE)
    };
    assemble().expect("the loop can be assembled")
}

/// How a program ends: registers, and the frame of the last exception.
pub fn end(machine: &mut Machine, counted: bool, code: &[u8], flags: u64) -> ([u64; 17], Vec<u64>) {
    let recipe = Recipe {
        bits: 64,
        setting: 4,
        operations: Vec::new(),
    };
    let mut program = recipe.build();
    program.memory[0].1[..code.len()].copy_from_slice(code);
    program.start = CODE;
    program.interrupts.clear();
    program.code_on_demand = false;
    program.maps_holes = false;
    program.smap = false;
    program.flags = flags;
    program.gpr = [
        0x1234_5680_8765_43ff,
        3,
        0,
        0x7fff_ffff_8000_0071,
        program.gpr[4],
        0,
        HOLE - 0x2345,
        DATA,
        5,
        0x89ab_cdef_0123_45a5,
        0x5a,
        6,
        7,
        8,
        9,
        10,
    ];
    machine.set_up(&program);
    if counted {
        // Stops at odd places on the way.
        loop {
            let goal = machine.vcpu.instructions() + 7;
            machine.vcpu.set_goal(goal);
            match machine.vcpu.run() {
                Stop::Budget if machine.vcpu.cpu().halted == 0 => {}
                _ => break,
            }
        }
    } else {
        assert_eq!(machine.vcpu.run(), Stop::Halted);
    }
    let cpu = machine.vcpu.cpu();
    let mut registers = [0; 17];
    registers[..16].copy_from_slice(&cpu.gpr);
    registers[16] = cpu.rip;
    let memory = machine.memory();
    let word = |at: usize| u64::from_le_bytes(memory[at..at + 8].try_into().expect("8 bytes"));
    let top = HANDLER_STACK as usize;
    let frame = (1..=5).map(|index| word(top - 8 * index)).collect();
    (registers, frame)
}

/// The interpreter, and the engines that have to agree with it.
pub struct Bench {
    interpreter: Machine,
    translators: Vec<(EngineOptions, Machine)>,
}

impl Bench {
    fn new() -> Bench {
        Bench::of((0..8).map(|bits| {
            EngineOptions {
                counted: bits & 1 != 0,
                grouping: bits & 2 != 0,
                traces: (bits & 4 != 0).then_some(2),
                cold: 0,
                // With traces each way.
                registers: (bits & 2 == 0).then_some(1),
                ..EngineOptions::default()
            }
        }))
    }

    /// With translators of these options.
    pub fn of(translators: impl Iterator<Item = EngineOptions>) -> Bench {
        let interpreter = EngineOptions {
            interpret_only: true,
            ..EngineOptions::default()
        };
        let translators = translators.map(|options| (options.clone(), Machine::new(options, 2)));
        Bench {
            interpreter: Machine::new(interpreter, 2),
            translators: translators.collect(),
        }
    }

    /// Compares the ends of a program; `undefined` flags may differ.
    pub fn compare(&mut self, what: &str, code: &[u8], undefined: u64) {
        for start in [0, flags::ARITHMETIC] {
            let (registers, mut frame) = end(&mut self.interpreter, false, code, start);
            frame[2] &= !undefined;
            for (options, machine) in &mut self.translators {
                let shown = format!("{what}, flags {start:#x}, {options:?}");
                let (found, mut found_frame) = end(machine, options.counted, code, start);
                found_frame[2] &= !undefined;
                assert_eq!(found, registers, "{shown}");
                assert_eq!(found_frame, frame, "{shown}");
            }
        }
    }
}

#[test]
fn frames_of_page_faults_have_all_flags() {
    let mut bench = Bench::new();
    for (name, undefined, producer) in PRODUCERS {
        for (between_name, between) in BETWEEN {
            let code = walk(*producer, *between, |_| Ok(()));
            bench.compare(&format!("{name}, {between_name}"), &code, *undefined);
        }
    }
}

#[test]
fn frames_of_divide_errors_have_all_flags() {
    let mut bench = Bench::new();
    for (name, undefined, producer) in PRODUCERS {
        let code = walk(
            *producer,
            |_| Ok(()),
            |a| {
                a.mov(r11d, 0)?;
                a.mov(edx, dword_ptr(rdi + 16))?;
                a.div(r11d)
            },
        );
        bench.compare(name, &code, *undefined);
    }
}

/// MASKMOVQ checks its operand, and then raises what an instruction of the x87 has left pending.
#[test]
fn frames_of_pending_exceptions_have_all_flags() {
    let mut bench = Bench::new();
    for (name, undefined, producer) in PRODUCERS {
        let assemble = || -> Result<Vec<u8>, IcedError> {
            let mut a = CodeAssembler::new(64)?;
            // Divisions by 0 are not masked.
            a.mov(dword_ptr(rdi + 0x40), 0x37b)?;
            a.fldcw(word_ptr(rdi + 0x40))?;
            a.fld1()?;
            a.fldz()?;
            a.fdivp(st1, st0)?;
            producer(&mut a)?;
            a.maskmovq(mm1, mm2)?;
            a.hlt()?;
            a.assemble(CODE)
        };
        let code = assemble().expect("it assembles");
        bench.compare(name, &code, *undefined);
    }
}

/// A NOP becomes LAHF after the code that overwrites all flags behind it was translated.
#[test]
fn flags_are_there_for_code_that_comes_late() {
    let assemble = || -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        a.sub(eax, 0x1234_5678)?;
        a.lea(rbx, ptr(CODE + 0x40))?;
        a.mov(ecx, dword_ptr(rdi + 8))?;
        a.mov(byte_ptr(rbx), 0x9f)?;
        let so_far = a.assemble(CODE)?.len();
        for _ in so_far..0x41 {
            a.nop()?;
        }
        a.add(ecx, 1)?;
        a.div(r12b)?;
        a.xor(r12d, r12d)?;
        a.div(r12b)?;
        a.assemble(CODE)
    };
    let code = assemble().expect("it assembles");
    Bench::new().compare("self-modifying", &code, 0);
}

/// PUSH of memory has two checks. Where the first has a helper execute it, the second does not
/// happen; what belongs to its group must not rely on it.
#[test]
fn a_group_does_not_begin_in_the_middle_of_an_instruction() {
    let assemble = || -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        // This crosses a page.
        a.push(qword_ptr(rdi + 0xffc))?;
        a.mov(rax, qword_ptr(rsp))?;
        a.pop(rbx)?;
        a.xor(r12d, r12d)?;
        a.div(r12b)?;
        a.assemble(CODE)
    };
    let code = assemble().expect("it assembles");
    Bench::new().compare("push of memory", &code, flags::AF);
}
