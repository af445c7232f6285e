//! LODS, STOS, SCAS, MOVS and CMPS without a prefix: up and down, over the ends of pages and of memory, where the
//! operands overlap, with flags that live across them, and in loops with other accesses beside them.

use dbt::EngineOptions;
use iced_x86::code_asm::*;

use crate::common::{Random, setting};
use crate::machine::{DATA, DATA_END, HOLE, READ_ONLY};
use crate::program::Program;
use crate::side_by_side::{end_alike, looping_in, machines, stop_anywhere};
use crate::strings::{Bench, Code, address, rounds};

const ELEMENTS: &[(&str, u64, Code)] = &[
    ("lodsb", 1, |a| a.lodsb()),
    ("lodsw", 2, |a| a.lodsw()),
    ("lodsd", 4, |a| a.lodsd()),
    ("lodsq", 8, |a| a.lodsq()),
    ("stosb", 1, |a| a.stosb()),
    ("stosw", 2, |a| a.stosw()),
    ("stosd", 4, |a| a.stosd()),
    ("stosq", 8, |a| a.stosq()),
    ("movsb", 1, |a| a.movsb()),
    ("movsw", 2, |a| a.movsw()),
    ("movsd", 4, |a| a.movsd()),
    ("movsq", 8, |a| a.movsq()),
    ("scasb", 1, |a| a.scasb()),
    ("scasw", 2, |a| a.scasw()),
    ("scasd", 4, |a| a.scasd()),
    ("scasq", 8, |a| a.scasq()),
    ("cmpsb", 1, |a| a.cmpsb()),
    ("cmpsw", 2, |a| a.cmpsw()),
    ("cmpsd", 4, |a| a.cmpsd()),
    ("cmpsq", 8, |a| a.cmpsq()),
    ("lodsq [esi]", 8, |a| a.db(&[0x67, 0x48, 0xad])),
    ("movsw [edi], [esi]", 2, |a| a.db(&[0x67, 0x66, 0xa5])),
    ("cmpsd ss:", 4, |a| a.db(&[0x36, 0xa7])),
    ("movsq fs:", 8, |a| a.db(&[0x64, 0x48, 0xa5])),
    ("lodsb gs:", 1, |a| a.db(&[0x65, 0xac])),
    ("stosd gs:, which means nothing", 4, |a| a.db(&[0x65, 0xab])),
    ("movsq, four", 8, |a| (0..4).try_for_each(|_| a.movsq())),
    ("lodsw and stosw, twice", 2, |a| {
        (0..2).try_for_each(|_| a.lodsw().and_then(|()| a.stosw()))
    }),
    ("cmpsb and a branch, twice", 1, |a| {
        (0..2).try_for_each(|_| {
            let mut next = a.create_label();
            a.cmpsb()?;
            a.jb(next)?;
            a.inc(ebx)?;
            a.set_label(&mut next)?;
            a.nop()
        })
    }),
    ("scasd and a branch, twice", 4, |a| {
        (0..2).try_for_each(|_| {
            let mut next = a.create_label();
            a.scasd()?;
            a.jle(next)?;
            a.inc(ebx)?;
            a.set_label(&mut next)?;
            a.nop()
        })
    }),
];

/// How DF comes to be what it is: in sight, or not.
fn set_direction(a: &mut CodeAssembler, down: bool, hidden: bool) -> Result<(), IcedError> {
    if hidden {
        a.pushfq()?;
        a.and(dword_ptr(rsp), !0x400)?;
        a.or(dword_ptr(rsp), i32::from(down) << 10)?;
        return a.popfq();
    }
    if down { a.std() } else { a.cld() }
}

#[test]
fn single_elements_end_as_interpreted() {
    let mut bench = Bench::new();
    let mut random = Random::new(setting("DBT_BLOCKS_SEED", 1));
    for case in 0..setting("DBT_BLOCKS_CASES", 300) / 10 {
        for &(name, size, element) in ELEMENTS {
            let to = address(&mut random, size);
            let mut from = match random.below(3) {
                // Often overlapping.
                0 => to.wrapping_add(random.below(20)).wrapping_sub(10),
                _ => address(&mut random, size),
            };
            if name.contains("fs:") {
                from = from.wrapping_sub(DATA);
            } else if name.contains("gs:") {
                from = from.wrapping_sub(DATA + 0x1000);
            }
            let (down, hidden) = (random.one_in(3), random.one_in(2));
            let value = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(case);
            let shown = format!("{name}, from {from:#x} to {to:#x}, down {down}, hidden {hidden}");
            let code = rounds(
                |a| {
                    a.mov(rdi, to)?;
                    a.mov(rsi, from)?;
                    a.mov(rax, value)?;
                    set_direction(a, down, hidden)
                },
                element,
                |a| {
                    a.pushfq()?;
                    a.pop(r12)?;
                    a.lea(r13, ptr(r13 + r12))?;
                    a.lea(r14, ptr(r14 + rax * 2 + 1))?;
                    a.lea(rbx, ptr(rbx + rdi))?;
                    a.lea(rbp, ptr(rbp + rsi))
                },
            );
            bench.compare(&shown, &code);
        }
    }
}

/// The bytes of a string instruction of any kind, which may have a prefix that repeats it.
fn element(random: &mut Random, bits: u32) -> Vec<u8> {
    let opcode = random.pick(&[0xa4, 0xa6, 0xaa, 0xac, 0xae]);
    let mut code = Vec::new();
    if random.one_in(12) {
        code.extend([0xb9, random.below(5) as u8, 0, 0, 0]);
        code.push(random.pick(&[0xf2, 0xf3]));
    }
    if bits == 64 && random.one_in(12) {
        code.push(0x67);
    }
    match random.below(4) {
        0 => code.extend([0x66, opcode | 1]),
        1 => code.push(opcode | 1),
        2 if bits == 64 => code.extend([0x48, opcode | 1]),
        _ => code.push(opcode),
    }
    code
}

/// Bytes that are an instruction of either width, which leaves EBX and EBP alone.
fn step(random: &mut Random, bits: u32) -> Vec<u8> {
    let at = [random.below(48) as u8 * 2, 0, 0, 0];
    let with = |opcode: &[u8], rest: &[u8]| [opcode, rest].concat();
    match random.below(18) {
        // mov eax, [edi + at]; add [edi + at], ecx; mov [esi + at], edx; cmp byte [esi + at], 0x40
        0 => with(&[0x8b, 0x87], &at),
        1 => with(&[0x01, 0x8f], &at),
        2 => with(&[0x89, 0x96], &at),
        3 => with(&[0x80, 0xbe], &[at[0], 0, 0, 0, 0x40]),
        // cmp eax, edx; adc edx, ecx; setc al; sub eax, 0x1357
        4 => vec![0x39, 0xd0],
        5 => vec![0x11, 0xca],
        6 => vec![0x0f, 0x92, 0xc0],
        7 => vec![0x2d, 0x57, 0x13, 0, 0],
        // push ecx; pop edx
        8 => vec![0x51, 0x5a],
        // sub esi, few; sub edi, few
        9 | 10 => {
            let width = if bits == 64 { 0x48 } else { 0x90 };
            let register = random.pick(&[0xee, 0xef]);
            vec![width, 0x83, register, random.below(9) as u8]
        }
        // cld; std; cld, often
        11 => vec![random.pick(&[0xfc, 0xfc, 0xfc, 0xfd])],
        // pushf; xor dword [esp], DF; popf
        12 if random.one_in(3) => vec![0x9c, 0x81, 0x34, 0x24, 0, 4, 0, 0, 0x9d],
        // jcc over an element
        13 => {
            let over = element(random, bits);
            let branch = random.pick(&[0x72, 0x74, 0x75, 0x7c, 0x77]);
            with(&[branch, over.len() as u8], &over)
        }
        _ => element(random, bits),
    }
}

/// Rounds of steps from somewhere, each with rounds of its own that begin where the last one has ended. In some the
/// last one comes to where there is no memory, or none to be written.
fn code(random: &mut Random, bits: u32, faults: bool) -> Vec<u8> {
    let place = |random: &mut Random| {
        let page = DATA + 0x1000 * (1 + random.below(3));
        match random.below(3) {
            0 => page - random.below(40),
            1 => page - 0x800 + random.below(0x400),
            _ => DATA + 0x1800 + random.below(64),
        }
    };
    let load = |register: u8, value: u64| {
        let mut code = vec![0xb8 | register];
        code.extend((value as u32).to_le_bytes());
        code
    };
    let mut code = load(5, 40);
    let again = code.len();
    // mov esi, from; mov edi, to; mov bl, rounds
    code.extend(load(6, place(random)));
    code.extend(load(7, place(random)));
    if faults {
        // cmp ebp, 5; jne over
        let end = random.pick(&[HOLE, READ_ONLY, DATA_END]) - random.below(60);
        let last = load(random.pick(&[6, 7]), end);
        code.extend([0x83, 0xfd, 5, 0x75, last.len() as u8]);
        code.extend(last);
    }
    code.extend([0xb3, 1 + random.below(9) as u8]);
    let head = code.len();
    for _ in 0..1 + random.below(7) {
        code.extend(step(random, bits));
    }
    // dec bl, or sub bl, 1; jne head
    code.extend(random.pick(&[&[0xfe, 0xcb][..], &[0x80, 0xeb, 1][..]]));
    let back = |code: &[u8], to: usize| (to as i32 - code.len() as i32 - 6).to_le_bytes();
    let distance = back(&code, head);
    code.extend([0x0f, 0x85]);
    code.extend(distance);
    // adc edx, esi; sub ebp, 1; jne again; hlt
    code.extend([0x11, 0xf2, 0x83, 0xed, 1]);
    let distance = back(&code, again);
    code.extend([0x0f, 0x85]);
    code.extend(distance);
    code.push(0xf4);
    code
}

fn program(seed: u64) -> ((u32, bool), Program) {
    let mut random = Random::new(seed);
    let bits = if seed.is_multiple_of(2) { 64 } else { 32 };
    let faults = seed.is_multiple_of(3);
    let code = code(&mut random, bits, faults);
    ((bits, faults), looping_in(bits, &code))
}

fn engines(counted: bool) -> Vec<EngineOptions> {
    let engine = |bits: usize| EngineOptions {
        counted,
        grouping: bits != 2,
        precise_flags: bits != 3 || counted,
        lazy_flags: bits != 4,
        crossing: bits != 5,
        prediction: (bits != 1).then_some(3),
        eager_prediction: bits & 1 == 0,
        long_blocks: bits & 2 == 0,
        memory_inline: bits != 6,
        traces: (bits & 1 == 0).then_some(2),
        long_traces: (bits == 0).then_some(20),
        samples: false,
        registers: (bits & 1 == 0).then_some(1),
        cold: 0,
        ..EngineOptions::default()
    };
    (0..7).map(engine).collect()
}

#[test]
fn loops_over_elements_end_alike() {
    let cases = setting("ELEMENT_CASES", 600);
    end_alike(&mut machines(engines(false)), cases, program, |options| {
        options.precise_flags
    });
}

#[test]
fn loops_over_elements_stop_anywhere() {
    stop_anywhere(engines(true), setting("ELEMENT_CASES", 600) / 10, program);
}
