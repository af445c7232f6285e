//! REP STOS, REP MOVS, bit strings and CMPXCHG16B, which emitted code executes where the TLB has
//! their pages: operands that overlap, cross pages, go down, fault in the middle, or are code.

use dbt::EngineOptions;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::common::{Random, setting};
use crate::machine::{CODE, DATA, DATA_END, Machine, READ_ONLY};
use crate::precise::end;

pub type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const STRINGS: &[(&str, u64, Code)] = &[
    ("rep stosb", 1, |a| a.rep().stosb()),
    ("rep stosw", 2, |a| a.rep().stosw()),
    ("rep stosd", 4, |a| a.rep().stosd()),
    ("rep stosq", 8, |a| a.rep().stosq()),
    ("rep movsb", 1, |a| a.rep().movsb()),
    ("rep movsw", 2, |a| a.rep().movsw()),
    ("rep movsd", 4, |a| a.rep().movsd()),
    ("rep movsq", 8, |a| a.rep().movsq()),
    ("repne movsb", 1, |a| a.repne().movsb()),
    ("rep movsb gs:", 1, |a| a.db(&[0x65, 0xf3, 0xa4])),
    ("rep stosd [edi]", 4, |a| a.db(&[0x67, 0xf3, 0xab])),
];

const SCANS: &[(&str, u64, Code)] = &[
    ("repe scasb", 1, |a| a.repe().scasb()),
    ("repne scasb", 1, |a| a.repne().scasb()),
    ("repe scasw", 2, |a| a.repe().scasw()),
    ("repne scasd", 4, |a| a.repne().scasd()),
    ("repe scasq", 8, |a| a.repe().scasq()),
    ("repe cmpsb", 1, |a| a.repe().cmpsb()),
    ("repne cmpsb", 1, |a| a.repne().cmpsb()),
    ("repe cmpsw", 2, |a| a.repe().cmpsw()),
    ("repne cmpsd", 4, |a| a.repne().cmpsd()),
    ("repe cmpsq", 8, |a| a.repe().cmpsq()),
    ("repe cmpsb gs:", 1, |a| a.db(&[0x65, 0xf3, 0xa6])),
    ("repne scasd [edi]", 4, |a| a.db(&[0x67, 0xf2, 0xaf])),
    ("repe cmpsb and a branch", 1, |a| {
        let mut next = a.create_label();
        a.repe().cmpsb()?;
        a.jb(next)?;
        a.inc(r9d)?;
        a.set_label(&mut next)?;
        a.nop()
    }),
    ("repe scasb, flags overwritten", 1, |a| {
        a.repe().scasb()?;
        a.add(r9d, 5)
    }),
];

const BITS: &[(&str, Code)] = &[
    ("bt 64", |a| a.bt(qword_ptr(rdi + 8), rsi)),
    ("bts 64", |a| a.lock().bts(qword_ptr(rdi), rsi)),
    ("btr 64", |a| a.btr(qword_ptr(rdi + rbx * 4), rsi)),
    ("btc 64", |a| a.btc(qword_ptr(rdi), r8)),
    ("bt 32", |a| a.bt(dword_ptr(rdi), esi)),
    ("bts 32", |a| a.bts(dword_ptr(rdi).gs(), r8d)),
    ("btr 32", |a| a.lock().btr(dword_ptr(edi + 4), esi)),
    ("btc 16", |a| a.btc(word_ptr(rdi), si)),
];

/// The interpreter, and translators with and without these instructions in line.
pub struct Bench {
    interpreter: Machine,
    translators: Vec<(EngineOptions, usize, Machine)>,
}

impl Bench {
    pub fn new() -> Bench {
        let interpreter = EngineOptions {
            interpret_only: true,
            ..EngineOptions::default()
        };
        let translators = (0..8usize).map(|bits| {
            let options = EngineOptions {
                counted: bits & 1 != 0,
                memory_inline: bits & 6 != 4,
                vector_strings: bits != 3,
                precise_flags: bits & 2 == 0,
                traces: (bits & 4 != 0).then_some(2),
                cold: 0,
                ..EngineOptions::default()
            };
            let copies = 1 + bits % 4;
            (options.clone(), copies, Machine::new(options, copies))
        });
        Bench {
            interpreter: Machine::new(interpreter, 2),
            translators: translators.collect(),
        }
    }

    /// Compares registers, the last frame and all memory; the copies have to be equal.
    pub fn compare(&mut self, what: &str, code: &[u8]) {
        let (registers, frame) = end(&mut self.interpreter, false, code, 0);
        let memory = self.interpreter.memory();
        for (options, copies, machine) in &mut self.translators {
            let shown = format!("{what}, {copies} copies, {options:x?}");
            let (found, found_frame) = end(machine, options.counted, code, 0);
            let mut found_memory = machine.memory();
            if !options.precise_flags {
                // Flags of the frame that the code has no use for.
                let at = crate::tables::HANDLER_STACK as usize - 24;
                found_memory[at..at + 8].copy_from_slice(&memory[at..at + 8]);
            }
            assert_eq!(found, registers, "{shown}");
            assert_eq!(found_frame[..2], frame[..2], "{shown}");
            if options.precise_flags {
                assert_eq!(found_frame, frame, "{shown}");
            }
            let vectors = |machine: &Machine| {
                let vector = &machine.vcpu.cpu().vector;
                let x87 = vector.fxsave.0[..160].to_vec();
                (vector.ymm, x87, vector.pointers)
            };
            assert_eq!(vectors(machine), vectors(&self.interpreter), "{shown}");
            let other = (0..memory.len()).find(|&at| memory[at] != found_memory[at]);
            assert_eq!(other, None, "memory, {shown}");
            machine.vcpu.mem.audit().expect("the copies are equal");
        }
    }
}

/// Four rounds of some code, the later ones with TLB entries that the first has left; then a
/// divide error. What it is about to find is set up by `before`.
pub fn rounds(
    before: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
    code: Code,
    after: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let assemble = || -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let mut again = a.create_label();
        a.mov(r15d, 4)?;
        a.set_label(&mut again)?;
        before(&mut a)?;
        a.add(r9d, 0x7123_4567)?;
        code(&mut a)?;
        after(&mut a)?;
        a.dec(r15d)?;
        a.jne(again)?;
        a.div(r15b)?;
        a.assemble(CODE)
    };
    assemble().expect("the program can be assembled")
}

/// An address that is worth trying, for operands of so many bytes.
pub fn address(random: &mut Random, bytes: u64) -> u64 {
    let near = random.below(24);
    match random.below(8) {
        // Ends at a page's end, or a little before or behind it.
        0 | 1 => (DATA + 0x1000 * (1 + random.below(3))).wrapping_sub(bytes + 12) + near,
        2 => DATA_END.wrapping_sub(bytes + 12) + near,
        3 => READ_ONLY - 8 + near,
        // The page that the program is in.
        4 => CODE + 0x400 + near,
        _ => DATA + random.below(0x3000),
    }
}

/// Rounds of the tests below; each is several programs.
fn cases() -> u64 {
    setting("DBT_BLOCKS_CASES", 300) / 10
}

#[test]
fn repeated_strings_end_as_interpreted() {
    let mut bench = Bench::new();
    let mut random = Random::new(setting("DBT_BLOCKS_SEED", 1));
    for case in 0..cases() {
        for &(name, size, string) in STRINGS {
            let count = match random.below(4) {
                0 => random.below(4),
                1 => random.below(80),
                2 => 0x1000 / size + random.below(8),
                _ => random.below(0x2800 / size),
            };
            let to = address(&mut random, count * size);
            // Often overlapping.
            let from = match random.below(3) {
                0 => to.wrapping_add(random.below(64)).wrapping_sub(32),
                _ => address(&mut random, count * size),
            };
            let down = random.one_in(5);
            let value = match random.below(2) {
                0 => 0,
                _ => 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(case + 1),
            };
            let shown = format!("{name}, {count} from {from:#x} to {to:#x}, down {down}");
            let code = rounds(
                |a| {
                    a.mov(rdi, to)?;
                    a.mov(rsi, from)?;
                    a.mov(ecx, count as u32)?;
                    a.mov(rax, value)?;
                    if down { a.std() } else { a.cld() }
                },
                string,
                |a| {
                    a.pushfq()?;
                    a.pop(r12)?;
                    a.lea(r13, ptr(r13 + r12))?;
                    a.mov(rbx, rdi)?;
                    a.lea(r14, ptr(rsi + rcx))
                },
            );
            bench.compare(&shown, &code);
        }
    }
}

#[test]
fn repeated_comparisons_end_as_interpreted() {
    let mut bench = Bench::new();
    let mut random = Random::new(setting("DBT_BLOCKS_SEED", 4));
    for _ in 0..cases() {
        for &(name, size, string) in SCANS {
            let count = match random.below(4) {
                0 => random.below(4),
                1 => random.below(80),
                2 => 0x1000 / size + random.below(8),
                _ => random.below(0x2800 / size),
            };
            let to = address(&mut random, count * size);
            let from = address(&mut random, count * size);
            let down = random.one_in(5);
            // Where memory is other than elsewhere.
            let odd = DATA + random.below(0x4000);
            let shown = format!("{name}, {count} from {from:#x} to {to:#x}, down {down}, {odd:#x}");
            let code = rounds(
                |a| {
                    a.cld()?;
                    a.mov(rdi, DATA)?;
                    a.mov(ecx, 0x800)?;
                    a.mov(rax, 0x5555_5555_5555_5555u64)?;
                    a.rep().stosq()?;
                    a.mov(byte_ptr(odd), r15b)?;
                    a.mov(rdi, to)?;
                    a.mov(rsi, from)?;
                    a.mov(ecx, count as u32)?;
                    if name.starts_with("repne") {
                        a.mov(al, r15b)?;
                    }
                    if down { a.std() } else { a.cld() }
                },
                string,
                |a| {
                    a.pushfq()?;
                    a.pop(r12)?;
                    a.lea(r13, ptr(r13 + r12))?;
                    a.lea(rbx, ptr(rdi + rsi * 2))?;
                    a.lea(r14, ptr(r14 + rcx))?;
                    a.lea(r14, ptr(r14 + rbx))
                },
            );
            bench.compare(&shown, &code);
        }
    }
}

#[test]
fn bit_strings_end_as_interpreted() {
    let mut bench = Bench::new();
    let mut random = Random::new(setting("DBT_BLOCKS_SEED", 2));
    for _ in 0..cases() {
        for &(name, bits) in BITS {
            let at = address(&mut random, 8);
            let bit = match random.below(4) {
                0 => random.below(64),
                1 => random.below(0x8000).wrapping_sub(0x4000),
                2 => (random.below(64) << 32) | random.below(512),
                _ => random.below(0x2_0000),
            };
            let code = rounds(
                |a| {
                    a.mov(rdi, at)?;
                    a.mov(rsi, bit)?;
                    a.lea(r8, ptr(rsi + 3))?;
                    a.mov(ebx, 5)
                },
                bits,
                // Other flags than CF and ZF are undefined.
                |a| {
                    a.setc(al)?;
                    a.sete(bl)?;
                    a.movzx(eax, al)?;
                    a.lea(r13, ptr(rax + r13 * 2))?;
                    a.lea(r13, ptr(rbx + r13 * 2))?;
                    a.mov(r14, qword_ptr(DATA))?;
                    a.xor(eax, eax)
                },
            );
            bench.compare(&format!("{name}, bit {bit:#x} at {at:#x}"), &code);
        }
    }
}

#[test]
fn compares_of_sixteen_bytes_end_as_interpreted() {
    let mut bench = Bench::new();
    let mut random = Random::new(setting("DBT_BLOCKS_SEED", 3));
    for _ in 0..cases() {
        let mut at = address(&mut random, 16);
        if !random.one_in(6) {
            at &= !15;
        }
        let differs = u64::from(random.one_in(2));
        let code = rounds(
            |a| {
                a.mov(rdi, at)?;
                a.mov(rax, qword_ptr(rdi))?;
                a.mov(rdx, qword_ptr(rdi + 8))?;
                a.lea(rdx, ptr(rdx + differs as i32))?;
                a.lea(rbx, ptr(rax + r9))?;
                a.lea(rcx, ptr(rdx + r9))
            },
            |a| a.lock().cmpxchg16b(xmmword_ptr(rdi)),
            |a| {
                a.pushfq()?;
                a.pop(r12)?;
                a.lea(r13, ptr(r13 + r12))?;
                a.add(r14, rax)?;
                a.add(r14, rdx)
            },
        );
        bench.compare(&format!("at {at:#x}, differs {differs}"), &code);
    }
}
