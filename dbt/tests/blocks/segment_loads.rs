//! Loads of DS, ES, FS and GS: of all kinds of selectors, at both levels, with SMAP and without, and what is reached by
//! way of them; and questions about selectors.

use dbt::guest::Segment;
use dbt::{EngineOptions, Stop};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::machine::{DATA, Machine};
use crate::places::CHANGING;
use crate::program::Program;
use crate::side_by_side::{looping_in, machines};
use crate::tables::GDT;

/// Descriptors of the data that selector 0x28 is of: with a base, and what a load must not do without.
const DESCRIPTORS: [u64; 7] = [
    0x0040_f302_0800_3fff,
    0x00cf_f300_0000_ffff,
    // Read-only, not accessed, not present, of level 0, executable.
    0x0040_f102_0800_3fff,
    0x0040_f202_0800_3fff,
    0x0040_7302_0800_3fff,
    0x0040_9302_0800_3fff,
    0x0040_fb02_0800_3fff,
];

/// Null ones, flat ones, one of the LDT, a TSS, and one behind the table.
const SELECTORS: [u32; 11] = [0, 3, 0x10, 0x13, 0x23, 0x28, 0x2b, 0x1b, 0x2f, 0x30, 0x1000];

#[derive(Clone, Copy, Debug)]
enum From {
    Register,
    Memory,
    Stack,
}

/// Three loads of a segment register, with accesses by way of it and of FS around them.
fn program(bits: u32, register: u8, selector: u32, from: From) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(bits)?;
    let mut again = a.create_label();
    a.mov(ecx, 3)?;
    a.set_label(&mut again)?;
    a.mov(eax, selector)?;
    a.mov(edi, 0x40)?;
    a.db(&[0x64, 0x03, 0x1f])?;
    a.mov(edi, DATA as u32)?;
    a.add(ebx, ecx)?;
    match from {
        From::Register => a.db(&[0x8e, 0xc0 | register << 3])?,
        From::Memory => {
            a.db(&[0x89, 0x07])?;
            a.db(&[0x8e, 0x07 | register << 3])?;
        }
        From::Stack => {
            a.db(&[0x50])?;
            match register {
                0 => a.db(&[0x07])?,
                3 => a.db(&[0x1f])?,
                4 => a.db(&[0x0f, 0xa1])?,
                _ => a.db(&[0x0f, 0xa9])?,
            }
        }
    }
    // The flags of ADD are still to be seen.
    a.db(&[0x0f, 0x94, 0xc0])?;
    a.db(&[0x8c, 0xc2 | register << 3])?;
    a.lea(ebp, ptr(edx + ebp * 2))?;
    if register >= 4 {
        a.db(&[0x0f, 0x80 | register << 3, 0x5a])?;
        a.lea(ebp, ptr(edx + ebp * 2))?;
    }
    a.add(ebp, eax)?;
    let near = matches!(selector, 0x28 | 0x2b);
    a.mov(edi, if near { 0x40 } else { DATA as u32 + 0x40 })?;
    let prefix = [0x26, 0, 0, 0x3e, 0x64, 0x65][usize::from(register)];
    a.db(&[prefix, 0x03, 0x2f])?;
    a.db(&[prefix, 0x01, 0x57, 0x08])?;
    a.mov(edi, 0x40)?;
    a.db(&[prefix, 0x03, 0x2f])?;
    a.dec(ecx)?;
    a.jne(again)?;
    a.ud2()?;
    a.assemble(CHANGING)
}

type End = ([u64; 16], u64, [Segment; 6], Vec<u8>);

fn run(machine: &mut Machine, program: &Program, descriptor: u64) -> End {
    machine.set_up(program);
    machine.write_uint(GDT + 0x28, 8, descriptor);
    assert_eq!(machine.vcpu.run(), Stop::Halted);
    let memory = machine.memory();
    let cpu = machine.vcpu.cpu();
    (cpu.gpr, cpu.rip, cpu.segments, memory)
}

/// LAR, LSL, VERR and VERW: opcode, and what its byte with the operands has besides.
const QUESTIONS: [(u8, u8); 4] = [(0x02, 0x10), (0x03, 0x10), (0x00, 0x20), (0x00, 0x28)];

/// Three rounds of a question about a selector. Behind it all flags are seen, or ZF only.
fn asking(
    bits: u32,
    (opcode, operands): (u8, u8),
    selector: u32,
    (memory, short, all): (bool, bool, bool),
) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(bits)?;
    let mut again = a.create_label();
    a.mov(ecx, 3)?;
    a.set_label(&mut again)?;
    a.mov(eax, selector)?;
    a.mov(edi, DATA as u32)?;
    a.db(&[0x89, 0x07])?;
    a.mov(edx, 0x8765_4321u32)?;
    a.add(ebx, 0x3fff_fff5)?;
    if short {
        a.db(&[0x66])?;
    }
    a.db(&[0x0f, opcode, if memory { 0x07 } else { 0xc0 } | operands])?;
    if all {
        a.lahf()?;
        a.seto(al)?;
    } else {
        a.sete(al)?;
        a.test(ebx, ebx)?;
    }
    a.lea(ebp, ptr(edx + ebp * 2))?;
    a.add(ebp, eax)?;
    a.dec(ecx)?;
    a.jne(again)?;
    a.ud2()?;
    a.assemble(CHANGING)
}

/// A machine that interprets, and those that are compared with it.
fn reference_and_others() -> (Machine, Vec<(EngineOptions, Machine)>) {
    let interpreting = EngineOptions {
        interpret_only: true,
        ..EngineOptions::default()
    };
    let engines = [true, false].map(|grouping| EngineOptions {
        cold: 0,
        grouping,
        traces: grouping.then_some(2),
        ..EngineOptions::default()
    });
    (Machine::new(interpreting, 2), machines(engines))
}

#[test]
fn questions_about_selectors_are_answered_as_interpreted() {
    let (mut reference, mut machines) = reference_and_others();
    let mut answered = [0; 4];
    for setting in 0..16 {
        let (bits, ring, smap, all) = (
            [32, 64][setting & 1],
            [0, 3][setting >> 1 & 1],
            setting & 4 != 0,
            setting & 8 != 0,
        );
        for (question, form) in QUESTIONS.into_iter().enumerate() {
            for (number, selector) in SELECTORS.into_iter().enumerate() {
                let (memory, short) = (number & 1 != 0, (number + setting) & 2 != 0);
                let code = asking(bits, form, selector, (memory, short, all))
                    .expect("it can be assembled");
                let mut program = looping_in(bits, &code);
                program.ring = ring;
                program.smap = smap && ring == 0;
                for descriptor in DESCRIPTORS {
                    let expected = run(&mut reference, &program, descriptor);
                    // ZF is the lowest bit of AL, or bit 6 of AH.
                    let zero = if all { 14 } else { 0 };
                    answered[question] += expected.0[0] >> zero & 1;
                    for (options, machine) in &mut machines {
                        let found = run(machine, &program, descriptor);
                        let what = format!(
                            "{bits} bits, level {ring}, SMAP {smap}, question {question} of \
                             {selector:#x}, memory {memory}, {descriptor:#x}, {options:?}"
                        );
                        assert_eq!(found.0, expected.0, "{what}");
                        assert_eq!(found.1, expected.1, "{what}");
                        assert!(found.3 == expected.3, "memory, {what}");
                    }
                    if !matches!(selector, 0x28 | 0x2b) {
                        break;
                    }
                }
            }
        }
    }
    assert!(answered.iter().all(|&yes| yes > 60), "{answered:?}");
}

#[test]
fn segment_registers_are_loaded_as_interpreted() {
    let (mut reference, mut machines) = reference_and_others();
    let mut reached = 0;
    for setting in 0..8 {
        let (bits, ring, smap) = (
            [32, 64][setting & 1],
            [0, 3][setting >> 1 & 1],
            setting & 4 != 0,
        );
        for register in [0, 3, 4, 5] {
            for from in [From::Register, From::Memory, From::Stack] {
                if bits == 64 && register < 4 && matches!(from, From::Stack) {
                    continue;
                }
                for (number, selector) in SELECTORS.into_iter().enumerate() {
                    let descriptor = DESCRIPTORS[(number + setting + usize::from(register)) % 7];
                    let descriptors = if matches!(selector, 0x28 | 0x2b) {
                        DESCRIPTORS.to_vec()
                    } else {
                        vec![descriptor]
                    };
                    let code =
                        program(bits, register, selector, from).expect("it can be assembled");
                    let mut program = looping_in(bits, &code);
                    program.ring = ring;
                    program.smap = smap && ring == 0;
                    for descriptor in descriptors {
                        let expected = run(&mut reference, &program, descriptor);
                        reached += u32::from(expected.0[1] == 0);
                        for (options, machine) in &mut machines {
                            let found = run(machine, &program, descriptor);
                            let what = format!(
                                "{bits} bits, level {ring}, SMAP {smap}, register {register} of \
                                 {selector:#x} from {from:?}, {descriptor:#x}, {options:?}"
                            );
                            assert_eq!(found.0, expected.0, "{what}");
                            assert_eq!(found.1, expected.1, "{what}");
                            assert_eq!(found.2, expected.2, "{what}");
                            assert!(found.3 == expected.3, "memory, {what}");
                        }
                    }
                }
            }
        }
    }
    assert!(reached > 300, "{reached} programs came to their end");
}
