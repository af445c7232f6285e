//! Moves under a mask, gathers and XLAT: elements in reach and out of it, some not present, some read-only, some in the
//! pages of the program, and none.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::common::{Random, setting};
use crate::machine::{DATA, DATA_END, READ_ONLY};
use crate::strings::{Bench, Code, address, rounds};

/// Where the vectors are that a program begins with.
const VECTORS: u64 = DATA + 0x3e00;

const MOVES: &[(&str, Code)] = &[
    ("load 4 x 8", |a| a.vmaskmovps(ymm3, ymm2, ymmword_ptr(rdi))),
    ("load 4 x 4", |a| {
        a.vpmaskmovd(xmm3, xmm2, xmmword_ptr(rdi + 12))
    }),
    ("load 8 x 4", |a| {
        a.vmaskmovpd(ymm13, ymm2, ymmword_ptr(rdi + rbx * 4))
    }),
    ("load 8 x 2, [edi]", |a| {
        a.vpmaskmovq(xmm3, xmm2, xmmword_ptr(edi))
    }),
    ("store 4 x 8", |a| {
        a.vpmaskmovd(ymmword_ptr(rdi), ymm2, ymm1)
    }),
    ("store 4 x 4, gs:", |a| {
        a.sub(rdi, 0x2_0000)?;
        a.vmaskmovps(xmmword_ptr(rdi - 0x1000).gs(), xmm2, xmm1)
    }),
    ("store 8 x 4", |a| {
        a.vmaskmovpd(ymmword_ptr(rdi - 8), ymm2, ymm12)
    }),
    ("store 8 x 2", |a| a.vpmaskmovq(xmmword_ptr(r8), xmm2, xmm1)),
    ("bytes", |a| a.maskmovdqu(xmm1, xmm2)),
    ("bytes, VEX, [edi]", |a| {
        a.db(&[0x67, 0xc5, 0xf9, 0xf7, 0xca])
    }),
    ("bytes, fs:", |a| {
        a.sub(rdi, 0x2_0000)?;
        a.db(&[0x64, 0x66, 0x0f, 0xf7, 0xca])
    }),
    ("bytes of MMX", |a| {
        a.movq(mm1, qword_ptr(VECTORS + 32))?;
        a.movq(mm2, qword_ptr(VECTORS + 64))?;
        a.maskmovq(mm1, mm2)?;
        a.emms()
    }),
    ("XLAT", |a| {
        a.lea(rbx, ptr(rdi - 7))?;
        a.xlatb()
    }),
    ("XLAT behind a sum", |a| {
        a.lea(rbx, ptr(rdi - 7))?;
        a.add(eax, r9d)?;
        a.xlatb()?;
        a.setc(cl)?;
        a.lea(r14, ptr(rcx + r14 * 2))
    }),
    ("XLAT, [ebx], fs:", |a| {
        a.lea(rbx, ptr(rdi - 0x2_0000))?;
        a.db(&[0x64, 0xd7])?;
        a.add(rbx, 0x2_0000)?;
        a.db(&[0x67, 0xd7])
    }),
];

/// By opcode: whether there are indexes of 64 bits, and elements.
const GATHERS: [(&str, u8, bool, bool); 8] = [
    ("vpgatherdd", 0x90, false, false),
    ("vpgatherdq", 0x90, false, true),
    ("vpgatherqd", 0x91, true, false),
    ("vpgatherqq", 0x91, true, true),
    ("vgatherdps", 0x92, false, false),
    ("vgatherdpd", 0x92, false, true),
    ("vgatherqps", 0x93, true, false),
    ("vgatherqpd", 0x93, true, true),
];

fn set_vectors(
    a: &mut CodeAssembler,
    vectors: &[[u64; 4]],
    registers: &[AsmRegisterYmm],
) -> Result<(), IcedError> {
    for (number, (vector, &register)) in vectors.iter().zip(registers).enumerate() {
        for (lane, &word) in vector.iter().enumerate() {
            a.mov(rax, word)?;
            a.mov(
                qword_ptr(VECTORS + 32 * (number + 1) as u64 + 8 * lane as u64),
                rax,
            )?;
        }
        a.vmovdqu(register, ymmword_ptr(VECTORS + 32 * (number + 1) as u64))?;
    }
    Ok(())
}

/// Flags as the instruction has left them, which is as they were.
fn keep_flags(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.pushfq()?;
    a.pop(r12)?;
    a.lea(r13, ptr(r13 + r12))?;
    a.add(r14, rax)
}

/// A mask: mostly random, sometimes all or nothing.
fn mask(random: &mut Random) -> [u64; 4] {
    match random.below(4) {
        0 => [u64::MAX; 4],
        1 if random.one_in(2) => [0; 4],
        _ => std::array::from_fn(|_| random.next()),
    }
}

fn cases() -> u64 {
    setting("DBT_BLOCKS_CASES", 300) / 30
}

#[test]
fn moves_under_masks_end_as_interpreted() {
    if !is_x86_feature_detected!("avx2") {
        return;
    }
    let mut bench = Bench::new();
    let mut random = Random::new(setting("DBT_BLOCKS_SEED", 5));
    for _ in 0..cases() {
        for &(name, code) in MOVES {
            let at = address(&mut random, 32);
            let masks = mask(&mut random);
            let value = std::array::from_fn(|_| random.next());
            let program = rounds(
                |a| {
                    set_vectors(a, &[value, masks, value], &[ymm1, ymm2, ymm12])?;
                    a.mov(rdi, at)?;
                    a.mov(r8, at)?;
                    a.mov(ebx, 1)
                },
                code,
                keep_flags,
            );
            bench.compare(&format!("{name} at {at:#x}, {masks:x?}"), &program);
        }
    }
}

#[test]
fn gathers_end_as_interpreted() {
    if !is_x86_feature_detected!("avx2") {
        return;
    }
    let mut bench = Bench::new();
    let mut random = Random::new(setting("DBT_BLOCKS_SEED", 6));
    for _ in 0..cases() {
        for (name, opcode, far, wide) in GATHERS {
            let (long, short_address) = (random.one_in(2), random.one_in(6));
            let (index, selector) =
                [(1, 2), (1, 2), (1, 2), (1, 1), (3, 2), (1, 3)][random.below(6) as usize];
            let scale = random.below(4);
            // `[rdi + index * scale + 16]` to register 3.
            let mut bytes = vec![
                0xc4,
                0xe2,
                u8::from(wide) << 7 | (!selector & 15) << 3 | u8::from(long) << 2 | 1,
                opcode,
                0x5c,
                (scale as u8) << 6 | index << 3 | 7,
                16,
            ];
            if short_address {
                bytes.insert(0, 0x67);
            }
            let base = DATA + 0x1000;
            let element = 4 << u32::from(wide);
            let lone = random.below(12);
            let mut offset = |number: u64| {
                let at = match random.below(3) {
                    _ if number != lone => DATA + random.below(0x3d00),
                    0 => DATA_END - random.below(2 * element),
                    1 => READ_ONLY + random.below(64),
                    _ => address(&mut random, element),
                };
                at.wrapping_sub(base + 16) as i64 >> scale
            };
            let indexes: [u64; 4] = std::array::from_fn(|lane| match far {
                true => offset(lane as u64) as u64,
                false => {
                    let [low, high] = [0, 1].map(|half| offset(2 * lane as u64 + half) as u32);
                    u64::from(low) | u64::from(high) << 32
                }
            });
            let masks = mask(&mut random);
            let value = std::array::from_fn(|_| random.next());
            let program = rounds(
                |a| {
                    set_vectors(a, &[indexes, masks, value], &[ymm1, ymm2, ymm3])?;
                    a.mov(rdi, base)
                },
                |_| Ok(()),
                |a| {
                    a.db(&bytes)?;
                    a.vmovdqu(ymmword_ptr(VECTORS), ymm3)?;
                    keep_flags(a)
                },
            );
            let shown = format!("{name} {bytes:x?}, {indexes:x?} from {base:#x}, {masks:x?}");
            bench.compare(&shown, &program);
        }
    }
}
