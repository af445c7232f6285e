//! Accesses with a base and an index in hot loops, whose checks predict, so that they wait for one of the two registers
//! only; and prefetches, with flags that live across them. Programs end as interpreted ones do.

use dbt::EngineOptions;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::common::{Random, setting};
use crate::machine::{DATA, HOLE};
use crate::program::Program;
use crate::side_by_side::{Pieces, end_alike, machines, random_loop, stop_anywhere};

const ROUNDS: u32 = 60;
const VALUES: [AsmRegister64; 5] = [rax, rcx, rdx, rbx, r12];

/// A place in memory: its base is in RDI or R8, the index in R9 or R10, which may be the one that changed last.
fn place(random: &mut Random) -> AsmMemoryOperand {
    let at = random.below(9) as i32 * 8 - 32;
    match random.below(7) {
        0 => rdi + r9 * 2 + at,
        1 => rdi + r9 * 8 + at,
        2 => r9 + rdi + at,
        3 => r8 + r10 + at,
        4 => r8 + r10 * 4 + at,
        5 => r9 + r9 * 8 + (at + (DATA + 0x900) as i32),
        _ => rdi + r9 + at,
    }
}

fn access(a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    let place = place(random);
    let value = VALUES[random.below(5) as usize];
    match random.below(21) {
        0 => a.mov(value, qword_ptr(place)),
        1 => a.mov(qword_ptr(place), value),
        2 => a.add(value, qword_ptr(place)),
        3 => a.add(qword_ptr(place), value),
        4 => a.not(dword_ptr(place)),
        5 => a.xadd(qword_ptr(place), value),
        6 => a.xchg(qword_ptr(place), value),
        7 => a.cmpxchg(qword_ptr(place), value),
        8 => a.mov(byte_ptr(rdi + rsi * 4), ah),
        9 => a.add(ch, byte_ptr(rdi + rsi)),
        10 => a.add(byte_ptr(rdi + rsi + 9), dh),
        11 => a.movdqu(xmm1, xmmword_ptr(place)),
        12 => a.movdqu(xmmword_ptr(place), xmm1),
        13 => a.cmp(byte_ptr(place), cl),
        14 => a.setc(byte_ptr(place)),
        // The index, or the base, is what is loaded.
        15 => {
            a.movzx(r9d, byte_ptr(place))?;
            a.and(r9d, 0x78)
        }
        16 => {
            a.movzx(r10d, byte_ptr(place))?;
            a.lea(r8, ptr(rdi + r10))
        }
        17 => a.prefetcht0(byte_ptr(place)),
        18 => a.prefetchw(byte_ptr(place)),
        19 => a.prefetchnta(byte_ptr(rdi + rax * 8)),
        _ => a.xadd(qword_ptr(rdi + r9), r9),
    }?;
    // What XADD leaves there leads anywhere.
    a.movzx(r9d, r9b)
}

fn between(a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    let value = VALUES[random.below(5) as usize];
    match random.below(8) {
        0 => a.adc(value, value),
        1 => a.cmp(value, rax),
        2 => a.lea(r10, ptr(r9 + 16)),
        3 => a.lea(rdi, ptr(rdi + 24)),
        4 => a.setb(al),
        5 => a.inc(rcx),
        6 => a.cmovb(rdx, value),
        _ => a.lea(r8, ptr(rdi + 8)),
    }
}

const LOOP: Pieces = Pieces {
    rounds: ROUNDS,
    set_up: |a| {
        a.imul_3(r15, rbp, 0x61)?;
        a.and(r15d, 0xfff)?;
        a.lea(rdi, ptr(r15 + (DATA + 0x800)))?;
        a.lea(r8, ptr(rdi + 0x40))?;
        a.mov(r9d, r15d)?;
        a.and(r9d, 0x7c)?;
        a.lea(r10, ptr(r9 + 8))?;
        a.mov(esi, r9d)
    },
    lead_astray: |a| a.mov(rdi, HOLE - 0x48),
    count: (4, 10),
    piece: |a, random| match random.below(3) {
        0 => between(a, random),
        _ => access(a, random),
    },
};

fn program(seed: u64) -> (bool, Program) {
    let (faults, mut program) = random_loop(seed, seed.is_multiple_of(3), |random, faults| {
        LOOP.code(random, faults)
    });
    // Code of the kernel does not predict.
    program.ring = 3;
    (faults, program)
}

fn engines(counted: bool) -> Vec<EngineOptions> {
    let engine = |bits: usize| EngineOptions {
        counted,
        late_index: bits != 0,
        prefetch: bits != 1,
        grouping: bits != 2,
        wide_reach: bits != 3,
        traces: Some(2),
        registers: (bits != 4).then_some(1),
        prediction: Some(1 + bits as u8),
        eager_prediction: true,
        samples: false,
        cold: 0,
        ..EngineOptions::default()
    };
    (0..6).map(engine).collect()
}

#[test]
fn accesses_wait_for_one_register() {
    let cases = setting("LATE_INDEX_CASES", 600);
    end_alike(&mut machines(engines(false)), cases, program, |options| {
        options.precise_flags
    });
}

#[test]
fn accesses_that_wait_stop_anywhere() {
    let cases = setting("LATE_INDEX_CASES", 600) / 10;
    stop_anywhere(engines(true), cases, program);
}
