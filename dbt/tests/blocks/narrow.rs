//! What 32-bit code has besides 64-bit code, between stores in a row and other accesses of groups: other segments,
//! addresses of 16 bits, known addresses, all registers at once.

use dbt::EngineOptions;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::common::{Random, setting};
use crate::machine::{DATA, HOLE, STACK_TOP};
use crate::places::CHANGING;
use crate::program::Program;
use crate::side_by_side::{end_alike, looping_in, machines, stop_anywhere};

/// Rounds of a loop.
const ROUNDS: u32 = 40;
const VALUES: [AsmRegister32; 5] = [eax, ecx, edx, ebx, esi];

/// Where the bounds are that BOUND compares with.
const BOUNDS: u64 = DATA + 0x3900;

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const DIGITS: [Code; 6] = [
    |a| a.daa(),
    |a| a.das(),
    |a| a.aaa(),
    |a| a.aas(),
    |a| a.aam(10),
    |a| a.aad(7),
];

/// A store to one of three groups: EDI and ESP move from round to round, also across ends of pages.
fn store(a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    let at = random.below(9) as i32 * 4 - 16;
    let value = VALUES[random.below(5) as usize];
    match random.below(7) {
        0 => a.mov(dword_ptr(edi + at), at * 77),
        1 => a.mov(word_ptr(edi + at + 1), cx),
        2 => a.mov(dword_ptr(esp + at + 64), value),
        3 => a.mov(dword_ptr(DATA + 0x3000 + (at + 16) as u64), value),
        4 | 5 => a.push(value),
        _ => a.mov(dword_ptr(edi + at), value),
    }
}

fn between(a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    let at = random.below(9) as i32 * 4;
    let value = VALUES[random.below(5) as usize];
    match random.below(35) {
        0 => a.lea(value, ptr(DATA + at as u64)),
        1 => a.lea(value, ptr(bx + si + at)),
        2 => a.lea(value, ptr(value + edx * 2 + 5)),
        3 => a.mov(value, dword_ptr(at).fs()),
        4 => a.mov(dword_ptr(0x40 + at).gs(), value),
        5 => a.add(dword_ptr(at).fs(), value),
        6 => a.pushad(),
        7 => a.popad(),
        8 => a.pop(dword_ptr(edi + at)),
        9 => a.push(dword_ptr(edi + at)),
        10 => a.push(fs),
        11 => a.push(ds),
        12 => a.cmpxchg8b(qword_ptr(edi + at)),
        13 => {
            a.mov(ecx, at / 8)?;
            a.lea(esi, ptr(edi + 64))?;
            a.rep().movsd()?;
            a.sub(edi, at / 8 * 4)
        }
        14 => a.mov(value, dword_ptr(edi + at)),
        15 => a.mov(value, dword_ptr(edi + at).cs()),
        16 => a.pop(value),
        17 => a.stosd(),
        18 => a.lock().cmpxchg8b(qword_ptr(at).fs()),
        19 => a.setc(byte_ptr(edi + at)),
        20 => a.inc(value),
        32 => a.push(cx),
        33 => a.pop(dx),
        21 => a.xlatb(),
        22 => a.bound(value, dword_ptr(BOUNDS)),
        23 => {
            a.push(ds)?;
            a.pop(es)
        }
        24 => a.mov(fs, word_ptr(edi + 2)),
        25 => {
            a.lea(esi, ptr(edi + at))?;
            a.repe().cmpsb()
        }
        26 => {
            a.mov(ecx, at)?;
            a.repne().scasb()
        }
        27..=31 => DIGITS[random.below(6) as usize](a),
        _ => a.cpuid(),
    }
}

fn code(random: &mut Random, faults: bool) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    let (mut head, mut over) = (a.create_label(), a.create_label());
    let rounds = dword_ptr(DATA + 0x3800);
    a.mov(rounds, ROUNDS as i32)?;
    a.mov(dword_ptr(BOUNDS), i32::MIN)?;
    a.mov(dword_ptr(BOUNDS + 4), 0x7000_0000)?;
    a.mov(ebx, DATA as u32)?;
    a.set_label(&mut head)?;
    a.imul_3(ebp, rounds, 0x61)?;
    a.and(ebp, 0xff8)?;
    a.lea(edi, ptr(ebp + (DATA + 0x800) as i32))?;
    a.mov(esp, (STACK_TOP - 0x400) as u32)?;
    a.sub(esp, ebp)?;
    if faults {
        a.cmp(rounds, 9)?;
        a.jne(over)?;
        a.mov(edi, (HOLE - 16) as u32)?;
        a.set_label(&mut over)?;
    }
    for _ in 0..6 + random.below(14) {
        match random.below(2) {
            0 => between(&mut a, random)?,
            _ => store(&mut a, random)?,
        }
    }
    a.dec(rounds)?;
    a.jne(head)?;
    a.hlt()?;
    a.assemble(CHANGING)
}

fn program(seed: u64) -> (bool, Program) {
    let faults = seed.is_multiple_of(3);
    let code = code(&mut Random::new(seed), faults).expect("the loop can be assembled");
    (faults, looping_in(32, &code))
}

fn engines(counted: bool) -> Vec<EngineOptions> {
    let engine = |bits: usize| EngineOptions {
        counted,
        late_stores: bits != 0,
        late_stack: bits != 2,
        late_slots: bits != 3,
        slot_registers: bits != 4,
        memory_inline: bits != 5,
        grouping: bits != 1,
        traces: (bits % 2 == 1).then_some(2),
        prediction: Some(1),
        eager_prediction: bits > 2,
        cold: 0,
        ..EngineOptions::default()
    };
    (0..7).map(engine).collect()
}

#[test]
fn narrow_code_ends_alike() {
    let cases = setting("NARROW_CASES", 400);
    end_alike(&mut machines(engines(false)), cases, program, |options| {
        options.precise_flags
    });
}

#[test]
fn narrow_code_stops_anywhere() {
    let cases = setting("NARROW_CASES", 400) / 10;
    stop_anywhere(engines(true), cases, program);
}

/// All that decimal adjustment depends on, in one checksum.
#[test]
fn decimal_adjustment_ends_as_interpreted() {
    let program = |number: u64| {
        let assemble = || -> Result<Vec<u8>, IcedError> {
            let mut a = CodeAssembler::new(32)?;
            let mut again = a.create_label();
            a.mov(ecx, 0x4000)?;
            a.set_label(&mut again)?;
            a.imul_3(ebp, ecx, 0x9e37_79b1u32 as i32)?;
            a.mov(eax, ebp)?;
            a.and(ah, 0x11)?;
            a.shr(ebp, 16)?;
            a.sahf()?;
            a.mov(ax, bp)?;
            DIGITS[number as usize](&mut a)?;
            a.pushfd()?;
            a.pop(edx)?;
            a.imul_3(edi, edi, 0x0100_0193)?;
            a.xor(edi, edx)?;
            a.add(edi, eax)?;
            a.dec(ecx)?;
            a.jne(again)?;
            a.hlt()?;
            a.assemble(CHANGING)
        };
        let code = assemble().expect("the loop can be assembled");
        (number, looping_in(32, &code))
    };
    end_alike(&mut machines(engines(false)), 6, program, |options| {
        options.precise_flags
    });
}
