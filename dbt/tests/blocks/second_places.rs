//! Pages that share a place in the TLB, in turns, with mappings and rights that change: translated code
//! finds in the second places what the interpreter finds in the page tables.

use dbt::{EngineOptions, Stop};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::machine::{DATA, Machine};
use crate::places::{CHANGING, assert_same_registers, looping, seen};
use crate::program::Program;
use crate::tables::{ALIAS, alternate, entry_address};

/// RDI leads to a page, its aliases follow; RSI leads to the page's entry.
fn program(rounds: u32, flushes: bool, stores: bool) -> Program {
    let alias = ALIAS as i32;
    let assemble = || -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let (mut head, mut same) = (a.create_label(), a.create_label());
        a.xor(ecx, ecx)?;
        a.set_label(&mut head)?;
        a.mov(edx, ecx)?;
        a.and(edx, 0x1ff)?;
        a.add(rbx, qword_ptr(rdi + rdx * 8))?;
        a.mov(r8, qword_ptr(rdi + alias))?;
        a.add(rbx, r8)?;
        a.xor(rbx, qword_ptr(rdi + rdx * 8 + 2 * alias))?;
        a.movzx(r9d, byte_ptr(rdi + rdx + 3 * alias))?;
        a.add(rbx, r9)?;
        if stores {
            a.mov(qword_ptr(rdi + rdx * 8 + alias), rbx)?;
            a.add(dword_ptr(rdi + 2 * alias + 8), ecx)?;
            a.mov(word_ptr(rdi + 16), bx)?;
        }
        if flushes {
            a.test(ecx, 15)?;
            a.jne(same)?;
            // Another page.
            a.mov(rax, qword_ptr(rsi))?;
            a.and(al, !0x60)?;
            a.xor(rax, alternate(0) as i32)?;
            a.mov(qword_ptr(rsi), rax)?;
            for number in 0..4 {
                a.invlpg(byte_ptr(rdi + number * alias))?;
            }
            a.set_label(&mut same)?;
        }
        a.inc(ecx)?;
        a.cmp(ecx, rounds)?;
        a.jb(head)?;
        a.hlt()?;
        a.assemble(CHANGING)
    };
    let mut program = looping(&assemble().expect("the loop can be assembled"));
    program.ring = 0;
    program.pcid = false;
    program.gpr[7] = DATA;
    program.gpr[6] = entry_address(64, DATA);
    program
}

#[test]
fn pages_that_share_a_place() {
    let options = |second_places, grouping, prediction| EngineOptions {
        second_places,
        grouping,
        prediction,
        eager_prediction: true,
        traces: Some(2),
        cold: 0,
        ..EngineOptions::default()
    };
    let mut reference = Machine::new(
        EngineOptions {
            interpret_only: true,
            ..options(false, true, None)
        },
        2,
    );
    let mut engines = [
        (options(true, false, None), 1),
        (options(true, true, None), 2),
        (options(true, false, Some(1)), 3),
        (options(false, false, None), 2),
    ]
    .map(|(options, copies)| Machine::new(options, copies));
    for (flushes, stores) in [(false, false), (true, false), (false, true), (true, true)] {
        let program = program(300, flushes, stores);
        reference.set_up(&program);
        assert_eq!(reference.vcpu.run(), Stop::Halted);
        let expected = seen(&mut reference);
        for (index, machine) in engines.iter_mut().enumerate() {
            let what = format!("flushes {flushes}, stores {stores}, {index}");
            machine.set_up(&program);
            assert_eq!(machine.vcpu.run(), Stop::Halted, "{what}");
            let found = seen(machine);
            assert_same_registers(&found, &expected, &what);
            assert!(found.3 == expected.3, "{what}: memory differs");
        }
    }
}

/// Of two pages that share a place, the one that is accessed more comes to have it.
#[test]
fn the_first_place_goes_to_who_is_there_most() {
    let alias = ALIAS as i32;
    let assemble = |rounds: u32| -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let mut head = a.create_label();
        a.add(rbx, qword_ptr(rdi + alias))?;
        a.add(rbx, qword_ptr(rdi))?;
        a.mov(ecx, rounds)?;
        a.set_label(&mut head)?;
        a.add(rbx, qword_ptr(rdi + alias))?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()?;
        a.assemble(CHANGING)
    };
    // Few rounds leave things as they are.
    for (rounds, first) in [(10, DATA), (100, DATA + ALIAS)] {
        let mut program = looping(&assemble(rounds).expect("the loop can be assembled"));
        program.ring = 0;
        program.gpr[7] = DATA;
        let options = EngineOptions {
            prediction: None,
            // Recording a trace looks pages up.
            traces: None,
            cold: 0,
            ..EngineOptions::default()
        };
        let mut machine = Machine::new(options, 2);
        machine.set_up(&program);
        assert_eq!(machine.vcpu.run(), Stop::Halted);
        let view = mmu::View::SupervisorOpen as usize;
        let context = machine.vcpu.context();
        let entry = context.tlb.data[view].entry(mmu::Linear(DATA));
        assert_eq!(entry.read_tag, first, "{rounds} rounds");
    }
}
