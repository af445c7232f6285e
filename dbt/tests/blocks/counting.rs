//! LOOP, LOOPE, LOOPNE, JRCXZ and JECXZ in flat code: at the ends of loops and on ways out of them, behind what sets flags, with
//! counts whose upper halves matter or do not.

use dbt::EngineOptions;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::common::{Random, setting};
use crate::machine::{DATA, HOLE};
use crate::places::CHANGING;
use crate::program::Program;
use crate::side_by_side::{end_alike, machines, random_loop, stop_anywhere};

/// What a round does: accesses, flags, registers, and sometimes the count itself.
fn step(a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    let at = random.below(32) as i32 * 8;
    match random.below(11) {
        0 => a.mov(rax, qword_ptr(rdi + at)),
        1 => a.add(qword_ptr(rdi + at), rcx),
        2 => a.cmp(rax, rdx),
        3 => a.test(ecx, 3),
        4 => a.adc(r10, rcx),
        5 => a.lea(rdx, ptr(rdx + rax * 2 + 7)),
        6 => a.cmp(byte_ptr(rdi + at), 0x40),
        7 => a.push(rcx),
        8 => a.sub(eax, 0x1357),
        9 => a.mov(qword_ptr(r14 + at), rdx),
        _ => a.inc(r12d),
    }
}

/// A branch that counts, by the full register or its lower half.
fn counting(
    a: &mut CodeAssembler,
    target: CodeLabel,
    random: &mut Random,
) -> Result<(), IcedError> {
    match random.below(6) {
        0 | 1 => a.loop_(target),
        2 => a.loope(target),
        3 => a.loopne(target),
        // With the prefix of 32-bit addresses: LOOP, LOOPNE.
        kind => {
            a.db(&[0x67])?;
            if kind == 4 {
                a.loop_(target)
            } else {
                a.loopne(target)
            }
        }
    }
}

fn code(random: &mut Random, faults: bool) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut again, mut over) = (a.create_label(), a.create_label());
    a.mov(ebp, 40)?;
    a.set_label(&mut again)?;
    let mut head = a.create_label();
    let mut out = a.create_label();
    let mut next = a.create_label();
    a.mov(rdi, DATA + 0x800)?;
    a.mov(r14, DATA + 0x2100)?;
    if faults {
        a.cmp(ebp, 5)?;
        a.jne(over)?;
        a.mov(r14, HOLE - 64)?;
        a.set_label(&mut over)?;
    }
    a.mov(r15, rsp)?;
    match random.below(4) {
        0 => a.mov(rcx, 0x7_0000_0003u64)?,
        1 => a.mov(ecx, 0)?,
        _ => a.mov(ecx, 1 + random.below(9) as u32)?,
    }
    a.mov(r13d, 12)?;
    a.set_label(&mut head)?;
    // Some would count for a very long time.
    a.dec(r13d)?;
    a.je(out)?;
    for _ in 0..random.below(7) {
        step(&mut a, random)?;
    }
    match random.below(5) {
        0 => a.jrcxz(next)?,
        1 => {
            a.db(&[0x67])?;
            a.jrcxz(next)?;
        }
        _ => {}
    }
    for _ in 0..random.below(4) {
        step(&mut a, random)?;
    }
    counting(&mut a, head, random)?;
    a.set_label(&mut next)?;
    a.adc(r11, rcx)?;
    a.set_label(&mut out)?;
    a.mov(rsp, r15)?;
    a.dec(ebp)?;
    a.jne(again)?;
    a.hlt()?;
    a.assemble(CHANGING)
}

fn program(seed: u64) -> (bool, Program) {
    random_loop(seed, seed.is_multiple_of(3), code)
}

fn engines(counted: bool) -> Vec<EngineOptions> {
    let engine = |bits: usize| EngineOptions {
        counted,
        grouping: bits != 2,
        precise_flags: bits != 3 || counted,
        lazy_flags: bits != 4,
        whole_jumps: bits & 1 == 0,
        long_blocks: bits & 2 == 0,
        traces: (bits & 1 == 1).then_some(2),
        long_traces: (bits == 5).then_some(20),
        samples: false,
        registers: (bits & 1 == 1).then_some(1),
        cold: 0,
        ..EngineOptions::default()
    };
    (0..6).map(engine).collect()
}

#[test]
fn loops_that_count_end_alike() {
    let cases = setting("COUNTING_CASES", 400);
    end_alike(&mut machines(engines(false)), cases, program, |options| {
        options.precise_flags
    });
}

#[test]
fn loops_that_count_stop_anywhere() {
    stop_anywhere(engines(true), setting("COUNTING_CASES", 400) / 8, program);
}
