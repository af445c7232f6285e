//! Loops of user code over pages that are all over memory: their checks remember runs of pages, which are
//! brought together, and accesses go from one into the next.

use dbt::{EngineOptions, Stop};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::machine::{DATA, DATA_END, Machine, PAGE};
use crate::places::{CHANGING, assert_same_registers, looping, seen};
use crate::program::Program;

/// RDI leads to the pages. Offsets go through all of them in steps, from the start again where they would
/// leave them.
fn program(rounds: u32, step: i32) -> Program {
    let end = (DATA_END - DATA) as i32 - 96;
    let assemble = || -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let (mut head, mut on) = (a.create_label(), a.create_label());
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)?;
        a.set_label(&mut head)?;
        // A group with an index, and one with a base alone.
        a.mov(rax, qword_ptr(rdi + rdx))?;
        a.add(rax, qword_ptr(rdi + rdx + 64))?;
        a.mov(qword_ptr(rdi + rdx + 24), rax)?;
        a.lea(rsi, qword_ptr(rdi + rdx + 8))?;
        a.movdqu(xmm0, xmmword_ptr(rsi + 16))?;
        a.paddb(xmm0, xmm0)?;
        a.movdqu(xmmword_ptr(rsi + 32), xmm0)?;
        // Accesses of their own.
        a.imul_3(r9d, ecx, 0x9e37)?;
        a.and(r9d, (4 * PAGE - 4) as i32 - 4096)?;
        a.add(ebx, dword_ptr(rdi + r9))?;
        a.xor(dword_ptr(rdi + r9), ecx)?;
        a.add(edx, step)?;
        a.cmp(edx, end)?;
        a.jb(on)?;
        a.xor(edx, edx)?;
        a.set_label(&mut on)?;
        a.inc(ecx)?;
        a.cmp(ecx, rounds)?;
        a.jb(head)?;
        a.hlt()?;
        a.assemble(CHANGING)
    };
    let mut program = looping(&assemble().expect("the loop can be assembled"));
    program.ring = 3;
    program.gpr[7] = DATA;
    program
}

#[test]
fn loops_reach_pages_that_come_together() {
    let options = |grouping, prediction, wide_reach, gather| EngineOptions {
        grouping,
        prediction,
        eager_prediction: true,
        wide_reach,
        gather,
        traces: Some(2),
        cold: 0,
        ..EngineOptions::default()
    };
    let mut reference = Machine::new(
        EngineOptions {
            interpret_only: true,
            ..options(true, None, true, true)
        },
        2,
    );
    for (step, rounds) in [(4, 3000), (40, 3000), (1021, 1500)] {
        let program = program(rounds, step);
        reference.set_up(&program);
        assert_eq!(reference.vcpu.run(), Stop::Halted);
        let expected = seen(&mut reference);
        for (options, copies) in [
            (options(true, Some(1), true, true), 2),
            (options(false, Some(2), true, true), 1),
            (options(true, Some(4), true, true), 3),
            (options(true, Some(1), true, false), 2),
            (options(false, Some(1), false, false), 4),
        ] {
            let what = format!("step {step}, {copies} copies, {:?}", options.prediction);
            let gather = options.gather;
            // Pages that came together stay so: a machine for each.
            let mut machine = Machine::new(options, copies);
            machine.set_up(&program);
            assert_eq!(machine.vcpu.run(), Stop::Halted, "{what}");
            let found = seen(&mut machine);
            assert_same_registers(&found, &expected, &what);
            assert!(found.3 == expected.3, "{what}: memory differs");
            let gathered = machine.vcpu.statistics().gathered;
            assert_eq!(gathered != 0, gather, "{what}: {gathered} pages");
            machine
                .vcpu
                .mem
                .audit()
                .expect("copies are equal, in different frames");
        }
    }
}
