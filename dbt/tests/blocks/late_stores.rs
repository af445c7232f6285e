//! Stores in a row, and what may come between them: changes of what they store and of where to, loads of the same
//! bytes, other groups, faults, ends of pages. Copies are equal, and programs end as interpreted ones do.

use dbt::EngineOptions;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::common::{Random, setting};
use crate::machine::{DATA, HOLE, STACK_TOP};
use crate::program::Program;
use crate::side_by_side::{Pieces, end_alike, machines, random_loop, stop_anywhere};

/// Rounds of a loop.
const ROUNDS: u32 = 40;
const VALUES: [AsmRegister64; 8] = [rax, rcx, rdx, rbx, rsi, r8, r12, r13];

/// A store to one of two groups: RDI moves from round to round, also across ends of pages.
fn store(a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    let at = random.below(9) as i32 * 8 - 32;
    let value = VALUES[random.below(8) as usize];
    let place = match random.below(4) {
        0 => rsp + (at + 64),
        _ => rdi + at,
    };
    match random.below(9) {
        0 => a.mov(qword_ptr(place), at * 77),
        1 => a.mov(word_ptr(place + 3), cx),
        2 => a.mov(byte_ptr(place + 1), ah),
        3 => a.movdqu(xmmword_ptr(place), xmm1),
        4 => a.vmovupd(ymmword_ptr(place), ymm2),
        5 => a.push(value),
        6 => a.mov(qword_ptr(r14 + at), value),
        _ => a.mov(qword_ptr(place), value),
    }
}

fn between(a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    let at = random.below(9) as i32 * 8 - 32;
    let value = VALUES[random.below(8) as usize];
    match random.below(18) {
        0 => a.lea(value, ptr(value + rdx * 2 + 5)),
        1 => a.add(rax, rcx),
        2 => a.mov(value, qword_ptr(rdi + at)),
        3 => a.pop(value),
        4 => a.add(qword_ptr(rdi + at), value),
        5 => a.xadd(qword_ptr(rdi + at), value),
        6 => a.movq(xmm1, value),
        7 => a.vpaddq(ymm2, ymm2, ymm2),
        8 => a.lea(rdi, ptr(rdi + 8)),
        9 => a.lea(rsp, ptr(rsp - 8)),
        10 => a.mul(rcx),
        11 => a.xchg(rax, value),
        12 => a.setc(byte_ptr(rdi + at)),
        13 => a.movaps(xmmword_ptr(r14 + 64), xmm1),
        14 => a.mov(r14, rdi),
        15 => a.movdqu(xmm1, xmmword_ptr(rdi + at)),
        16 => a.cpuid(),
        _ => a.nop(),
    }
}

const LOOP: Pieces = Pieces {
    rounds: ROUNDS,
    set_up: |a| {
        a.imul_3(r15, rbp, 0x61)?;
        a.and(r15d, 0xff8)?;
        a.lea(rdi, ptr(r15 + (DATA + 0x800)))?;
        a.mov(r14, DATA + 0x2100)?;
        a.mov(rsp, STACK_TOP - 0x400)?;
        a.sub(rsp, r15)
    },
    lead_astray: |a| a.mov(r14, HOLE - 16),
    count: (6, 14),
    piece: |a, random| match random.below(3) {
        0 => between(a, random),
        _ => store(a, random),
    },
};

fn program(seed: u64) -> (bool, Program) {
    random_loop(seed, seed.is_multiple_of(3), |random, faults| {
        LOOP.code(random, faults)
    })
}

fn engines(counted: bool) -> Vec<EngineOptions> {
    let engine = |bits: usize| EngineOptions {
        counted,
        late_stores: bits != 0,
        late_stack: bits != 2,
        late_slots: bits != 3,
        slot_registers: bits != 4,
        traces: (bits % 2 == 1).then_some(2),
        registers: (bits != 1).then_some(1),
        prediction: Some(1),
        eager_prediction: bits > 2,
        cold: 0,
        ..EngineOptions::default()
    };
    (0..6).map(engine).collect()
}

#[test]
fn stores_in_a_row_reach_all_copies() {
    let cases = setting("LATE_STORE_CASES", 600);
    end_alike(&mut machines(engines(false)), cases, program, |options| {
        options.precise_flags
    });
}

#[test]
fn stores_in_a_row_stop_anywhere() {
    let cases = setting("LATE_STORE_CASES", 600) / 10;
    stop_anywhere(engines(true), cases, program);
}
