//! Traces of code that goes in many ways: random loops over branches both ways, inner loops, calls
//! and early ends of a round end as interpreted ones do, and stop at any instruction.

use dbt::{EngineOptions, Stop};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::common::{Random, setting};
use crate::machine::Machine;
use crate::places::{CHANGING, looping};
use crate::program::Program;
use crate::side_by_side::{end_alike, machines, stop_anywhere};

/// Rounds of a random loop.
const ROUNDS: u32 = 400;

/// A few instructions. RDI leads to the data, RDX holds what the ways depend on, RBP counts rounds,
/// ECX those of an inner loop; the rest is theirs.
fn work(a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    for _ in 0..=random.below(4) {
        let at = random.below(30) as i32 * 8 + 64;
        match random.below(10) {
            0 => a.add(r8, rdx)?,
            1 => a.lea(r9, ptr(r9 + r8 * 4 + 7))?,
            2 => a.xor(r10, r9)?,
            3 => a.mov(qword_ptr(rdi + at), r10)?,
            4 => a.add(r11, qword_ptr(rdi + at))?,
            5 => a.sub(qword_ptr(rdi + at), r8)?,
            6 => a.adc(rbx, r11)?,
            7 => {
                a.push(r9)?;
                a.pop(rsi)?;
            }
            8 => {
                // A group whose first address is a sum, some of whose registers change.
                a.movzx(esi, dl)?;
                a.add(r12d, dword_ptr(rdi + rsi * 4))?;
                a.mov(r9, qword_ptr(rdi + rsi * 4 + 8))?;
                a.add(rsi, 3)?;
                a.mov(dword_ptr(rdi + rsi * 4 + 16), r12d)?;
            }
            _ => a.inc(r14d)?,
        }
    }
    Ok(())
}

/// A piece of a round.
fn piece(
    a: &mut CodeAssembler,
    random: &mut Random,
    (leaf, next): (CodeLabel, CodeLabel),
) -> Result<(), IcedError> {
    let mut other = a.create_label();
    let mut join = a.create_label();
    let bit = random.below(20) as u32;
    match random.below(6) {
        0 | 1 => {
            a.test(edx, 1 << bit)?;
            a.je(other)?;
            work(a, random)?;
            a.jmp(join)?;
            a.set_label(&mut other)?;
            work(a, random)?;
            a.set_label(&mut join)?;
            work(a, random)
        }
        2 => {
            a.bt(edx, bit)?;
            a.jb(join)?;
            work(a, random)?;
            a.set_label(&mut join)?;
            a.nop()
        }
        3 => {
            a.mov(ecx, edx)?;
            a.and(ecx, 7)?;
            a.set_label(&mut join)?;
            work(a, random)?;
            a.dec(ecx)?;
            a.jns(join)
        }
        4 => a.call(leaf),
        _ => {
            a.test(edx, 3 << bit)?;
            a.je(next)
        }
    }
}

fn code(random: &mut Random) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut head, mut leaf, mut next) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(ebp, ROUNDS)?;
    a.set_label(&mut head)?;
    a.imul_3(rax, rax, 0x5851_f42d)?;
    a.add(rax, 0x1405_7b7f)?;
    a.mov(rdx, rax)?;
    a.shr(rdx, 23)?;
    for _ in 0..2 + random.below(6) {
        piece(&mut a, random, (leaf, next))?;
    }
    a.set_label(&mut next)?;
    work(&mut a, random)?;
    a.dec(ebp)?;
    a.jne(head)?;
    a.hlt()?;
    a.set_label(&mut leaf)?;
    work(&mut a, random)?;
    a.ret()?;
    a.assemble(CHANGING)
}

fn engines() -> impl Iterator<Item = EngineOptions> {
    (0..8).map(|bits| EngineOptions {
        traces: [Some(1), Some(2), Some(8), None][bits & 3],
        registers: (bits & 1 != 0).then_some(1),
        grouping: bits & 4 == 0,
        precise_flags: bits & 2 == 0,
        returns: bits & 6 != 4,
        long_blocks: bits & 3 != 2,
        prediction: Some(1),
        eager_prediction: true,
        long_traces: [Some(1), Some(7), None][bits % 3],
        samples: false,
        cold: 0,
        ..EngineOptions::default()
    })
}

/// Nothing happens in these.
fn program(seed: u64) -> ((), Program) {
    let code = code(&mut Random::new(seed)).expect("the loop can be assembled");
    ((), looping(&code))
}

#[test]
fn branching_loops_end_as_interpreted_ones() {
    let mut engines = machines(engines());
    let cases = setting("TRACE_CASES", 200);
    end_alike(&mut engines, cases, program, |_| true);
    for (options, machine) in &engines {
        let traces = machine.vcpu.statistics().traces;
        match options.traces {
            None => assert_eq!(traces, 0),
            Some(_) => assert!(traces >= cases, "{traces} traces: {options:?}"),
        }
    }
}

#[test]
fn branching_loops_stop_anywhere() {
    let counted = engines().map(|options| EngineOptions {
        counted: true,
        ..options
    });
    stop_anywhere(counted, setting("TRACE_CASES", 200) / 10, program);
}

/// A loop that changes its way gets a trace of the new one, and then nothing is made any more.
#[test]
fn a_loop_may_change_its_way() {
    let assemble = || -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let (mut head, mut other, mut join) =
            (a.create_label(), a.create_label(), a.create_label());
        a.mov(ebp, 100_000)?;
        a.set_label(&mut head)?;
        a.cmp(ebp, 99_900)?;
        a.jb(other)?;
        a.add(r8, rbp)?;
        a.jmp(join)?;
        a.set_label(&mut other)?;
        a.sub(r8, rbp)?;
        a.set_label(&mut join)?;
        a.dec(ebp)?;
        a.jne(head)?;
        a.hlt()?;
        a.assemble(CHANGING)
    };
    let program = looping(&assemble().expect("the loop can be assembled"));
    let options = EngineOptions {
        prediction: None,
        cold: 0,
        ..EngineOptions::default()
    };
    let mut machine = Machine::new(options, 2);
    machine.set_up(&program);
    let before = machine.vcpu.statistics().traces;
    let translated = [(); 3].map(|()| {
        let cpu = machine.vcpu.cpu_mut();
        cpu.rip = CHANGING;
        cpu.halted = 0;
        assert_eq!(machine.vcpu.run(), Stop::Halted);
        machine.vcpu.statistics().translated
    });
    assert_eq!(machine.vcpu.statistics().traces - before, 2);
    assert_eq!(translated[1], translated[2]);
}

/// What a jump ahead out of a loop's trace leads to counts its entries, and becomes a trace.
#[test]
fn exits_of_traces_lead_to_traces() {
    let assemble = || -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let (mut head, mut seldom, mut on) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(ebp, 100_000)?;
        a.set_label(&mut head)?;
        a.imul_3(eax, eax, 0x19_660d)?;
        a.add(eax, 0x3c6e_f35f)?;
        a.test(eax, 0x70_0000)?;
        a.je(seldom)?;
        a.rol(rcx, 1)?;
        a.jmp(on)?;
        a.set_label(&mut seldom)?;
        a.lea(rbx, ptr(rbx + rax))?;
        a.test(ebp, ebp)?;
        a.js(on)?;
        a.ror(rbx, 3)?;
        a.set_label(&mut on)?;
        a.dec(ebp)?;
        a.jne(head)?;
        a.hlt()?;
        a.assemble(CHANGING)
    };
    let program = looping(&assemble().expect("the loop can be assembled"));
    let [without, with] = [false, true].map(|exit_polls| {
        let options = EngineOptions {
            exit_polls,
            // A block that goes on behind jumps is as good as a trace here.
            long_blocks: false,
            samples: false,
            long_traces: Some(64),
            cold: 0,
            ..EngineOptions::default()
        };
        let mut machine = Machine::new(options, 2);
        machine.set_up(&program);
        assert_eq!(machine.vcpu.run(), Stop::Halted);
        machine.vcpu.statistics().traces
    });
    assert!(with > without, "{with} traces, and {without}");
}
