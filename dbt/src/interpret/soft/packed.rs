//! Packed integer instructions of MMX and of SSE2 to SSE4.2, and the logic of all vectors.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::operand::{check_mmx, enter_mmx, lane, lanes, read, uses_mmx, with_lane, write, xmm};
use crate::guest::{Exception, flags};
use crate::interpret::Context;
use crate::interpret::operand::next;

fn sign(value: u64, bits: u32) -> i64 {
    ((value << (64 - bits)) as i64) >> (64 - bits)
}

/// A lane as a signed number held to the limits of `bits`, signed or unsigned.
fn saturate(value: i64, bits: u32, signed: bool) -> u64 {
    let (low, high) = if signed {
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, (1 << bits) - 1)
    };
    value.clamp(low, high) as u64
}

/// Packs the lanes of both operands into lanes of half the width, with saturation.
fn pack(a: u128, b: u128, from: u32, signed: bool, width: u32) -> u128 {
    let half = width / from;
    let to = from / 2;
    (0..2 * half).fold(0, |result, index| {
        let source = if index < half { a } else { b };
        let value = sign(lane(source, from, index % half), from);
        with_lane(result, to, index, saturate(value, to, signed))
    })
}

/// Takes lanes from both operands in turn, from their lower or upper halves.
fn unpack(a: u128, b: u128, bits: u32, high: bool, width: u32) -> u128 {
    let count = width / bits;
    let first = if high { count / 2 } else { 0 };
    (0..count).fold(0, |result, index| {
        let source = if index & 1 == 0 { a } else { b };
        with_lane(result, bits, index, lane(source, bits, first + index / 2))
    })
}

/// Shifts every lane by a count that is the same for all.
fn shift(a: u128, count: u64, bits: u32, shifted: fn(u64, u32, u32) -> u64) -> u128 {
    let count = count.min(u64::from(bits)) as u32;
    lanes(a, 0, bits, |lane, _| shifted(lane, count, bits))
}

fn left(value: u64, count: u32, bits: u32) -> u64 {
    if count >= bits { 0 } else { value << count }
}

fn right(value: u64, count: u32, bits: u32) -> u64 {
    if count >= bits { 0 } else { value >> count }
}

fn arithmetic_right(value: u64, count: u32, bits: u32) -> u64 {
    (sign(value, bits) >> count.min(bits - 1)) as u64
}

fn all_if(condition: bool) -> u64 {
    if condition { u64::MAX } else { 0 }
}

/// Sums of absolute differences of eight bytes.
fn sum_of_differences(a: u64, b: u64) -> u64 {
    (0..8)
        .map(|index| {
            let byte = |value: u64| (value >> (8 * index) & 0xff) as u8;
            u64::from(byte(a).abs_diff(byte(b)))
        })
        .sum()
}

/// Sums of neighbouring products of signed words.
fn multiply_add(a: u64, b: u64) -> u64 {
    let word = |value: u64, index: u32| sign(value >> (16 * index) & 0xffff, 16);
    (word(a, 0) * word(b, 0) + word(a, 1) * word(b, 1)) as u64
}

/// Combines neighbouring lanes: those of the first operand, then those of the second.
fn horizontal(a: u128, b: u128, bits: u32, width: u32, each: impl Fn(i64, i64) -> u64) -> u128 {
    let count = width / bits;
    (0..count).fold(0, |result, index| {
        let source = if index < count / 2 { a } else { b };
        let first = 2 * (index % (count / 2));
        let value = each(
            sign(lane(source, bits, first), bits),
            sign(lane(source, bits, first + 1), bits),
        );
        with_lane(result, bits, index, value)
    })
}

/// Takes the sign of the second operand's lane: kept, negated, or zero.
fn take_sign(a: u64, b: u64, bits: u32) -> u64 {
    match sign(b, bits).signum() {
        0 => 0,
        1 => a,
        _ => a.wrapping_neg(),
    }
}

/// The result of an instruction with two vector operands; `None` if it is none of those here.
fn two_operands(mnemonic: Mnemonic, a: u128, b: u128, width: u32) -> Option<u128> {
    use Mnemonic as M;
    let add = |bits| lanes(a, b, bits, u64::wrapping_add);
    let subtract = |bits| lanes(a, b, bits, u64::wrapping_sub);
    let signed = |bits, f: fn(i64, i64) -> i64| {
        lanes(a, b, bits, |a, b| {
            saturate(f(sign(a, bits), sign(b, bits)), bits, true)
        })
    };
    let unsigned = |bits, f: fn(i64, i64) -> i64| {
        lanes(a, b, bits, |a, b| {
            saturate(f(a as i64, b as i64), bits, false)
        })
    };
    let equal = |bits| lanes(a, b, bits, |a, b| all_if(a == b));
    let greater = |bits| lanes(a, b, bits, |a, b| all_if(sign(a, bits) > sign(b, bits)));
    let words = |f: fn(i64, i64) -> i64| lanes(a, b, 16, |a, b| f(sign(a, 16), sign(b, 16)) as u64);
    let count = b as u64;
    let extend = |from: u32, to: u32, signed: bool| {
        (0..128 / to).fold(0, |result, index| {
            let value = lane(b, from, index);
            let value = if signed {
                sign(value, from) as u64
            } else {
                value
            };
            with_lane(result, to, index, value)
        })
    };
    Some(match mnemonic {
        M::Andps | M::Andpd | M::Pand => a & b,
        M::Andnps | M::Andnpd | M::Pandn => !a & b,
        M::Orps | M::Orpd | M::Por => a | b,
        M::Xorps | M::Xorpd | M::Pxor => a ^ b,
        M::Paddb => add(8),
        M::Paddw => add(16),
        M::Paddd => add(32),
        M::Paddq => add(64),
        M::Psubb => subtract(8),
        M::Psubw => subtract(16),
        M::Psubd => subtract(32),
        M::Psubq => subtract(64),
        M::Paddsb => signed(8, |a, b| a + b),
        M::Paddsw => signed(16, |a, b| a + b),
        M::Psubsb => signed(8, |a, b| a - b),
        M::Psubsw => signed(16, |a, b| a - b),
        M::Paddusb => unsigned(8, |a, b| a + b),
        M::Paddusw => unsigned(16, |a, b| a + b),
        M::Psubusb => unsigned(8, |a, b| a - b),
        M::Psubusw => unsigned(16, |a, b| a - b),
        M::Pavgb => unsigned(8, |a, b| (a + b + 1) >> 1),
        M::Pavgw => unsigned(16, |a, b| (a + b + 1) >> 1),
        M::Pminub => unsigned(8, i64::min),
        M::Pmaxub => unsigned(8, i64::max),
        M::Pminuw => unsigned(16, i64::min),
        M::Pmaxuw => unsigned(16, i64::max),
        M::Pminud => unsigned(32, i64::min),
        M::Pmaxud => unsigned(32, i64::max),
        M::Pminsb => signed(8, i64::min),
        M::Pmaxsb => signed(8, i64::max),
        M::Pminsw => signed(16, i64::min),
        M::Pmaxsw => signed(16, i64::max),
        M::Pminsd => signed(32, i64::min),
        M::Pmaxsd => signed(32, i64::max),
        M::Pcmpeqb => equal(8),
        M::Pcmpeqw => equal(16),
        M::Pcmpeqd => equal(32),
        M::Pcmpeqq => equal(64),
        M::Pcmpgtb => greater(8),
        M::Pcmpgtw => greater(16),
        M::Pcmpgtd => greater(32),
        M::Pcmpgtq => greater(64),
        M::Pmullw => words(|a, b| a * b),
        M::Pmulhw => words(|a, b| (a * b) >> 16),
        M::Pmulhrsw => words(|a, b| (((a * b) >> 14) + 1) >> 1),
        M::Pmulhuw => lanes(a, b, 16, |a, b| (a * b) >> 16),
        M::Pmulld => lanes(a, b, 32, u64::wrapping_mul),
        M::Pmuludq => lanes(a, b, 64, |a, b| (a & 0xffff_ffff) * (b & 0xffff_ffff)),
        M::Pmuldq => lanes(a, b, 64, |a, b| {
            sign(a, 32).wrapping_mul(sign(b, 32)) as u64
        }),
        M::Pmaddwd => lanes(a, b, 32, multiply_add),
        M::Pmaddubsw => lanes(a, b, 16, |a, b| {
            let product = |at: u32| (a >> at & 0xff) as i64 * sign(b >> at & 0xff, 8);
            saturate(product(0) + product(8), 16, true)
        }),
        M::Psadbw => lanes(a, b, 64, sum_of_differences),
        M::Packsswb => pack(a, b, 16, true, width),
        M::Packuswb => pack(a, b, 16, false, width),
        M::Packssdw => pack(a, b, 32, true, width),
        M::Packusdw => pack(a, b, 32, false, width),
        M::Punpcklbw => unpack(a, b, 8, false, width),
        M::Punpcklwd => unpack(a, b, 16, false, width),
        M::Punpckldq | M::Unpcklps => unpack(a, b, 32, false, width),
        M::Punpcklqdq | M::Unpcklpd => unpack(a, b, 64, false, width),
        M::Punpckhbw => unpack(a, b, 8, true, width),
        M::Punpckhwd => unpack(a, b, 16, true, width),
        M::Punpckhdq | M::Unpckhps => unpack(a, b, 32, true, width),
        M::Punpckhqdq | M::Unpckhpd => unpack(a, b, 64, true, width),
        M::Psllw => shift(a, count, 16, left),
        M::Pslld => shift(a, count, 32, left),
        M::Psllq => shift(a, count, 64, left),
        M::Psrlw => shift(a, count, 16, right),
        M::Psrld => shift(a, count, 32, right),
        M::Psrlq => shift(a, count, 64, right),
        M::Psraw => shift(a, count, 16, arithmetic_right),
        M::Psrad => shift(a, count, 32, arithmetic_right),
        M::Pslldq => a.checked_shl(8 * count as u32).unwrap_or(0),
        M::Psrldq => a.checked_shr(8 * count as u32).unwrap_or(0),
        M::Pabsb => lanes(b, 0, 8, |b, _| sign(b, 8).unsigned_abs()),
        M::Pabsw => lanes(b, 0, 16, |b, _| sign(b, 16).unsigned_abs()),
        M::Pabsd => lanes(b, 0, 32, |b, _| sign(b, 32).unsigned_abs()),
        M::Psignb => lanes(a, b, 8, |a, b| take_sign(a, b, 8)),
        M::Psignw => lanes(a, b, 16, |a, b| take_sign(a, b, 16)),
        M::Psignd => lanes(a, b, 32, |a, b| take_sign(a, b, 32)),
        M::Phaddw => horizontal(a, b, 16, width, |a, b| (a + b) as u64),
        M::Phaddd => horizontal(a, b, 32, width, |a, b| (a + b) as u64),
        M::Phaddsw => horizontal(a, b, 16, width, |a, b| saturate(a + b, 16, true)),
        M::Phsubw => horizontal(a, b, 16, width, |a, b| (a - b) as u64),
        M::Phsubd => horizontal(a, b, 32, width, |a, b| (a - b) as u64),
        M::Phsubsw => horizontal(a, b, 16, width, |a, b| saturate(a - b, 16, true)),
        M::Pshufb => (0..width / 8).fold(0, |result, index| {
            let control = lane(b, 8, index);
            let value = if control & 0x80 != 0 {
                0
            } else {
                lane(a, 8, control as u32 & (width / 8 - 1))
            };
            with_lane(result, 8, index, value)
        }),
        M::Phminposuw => {
            let (value, index) = (0..8)
                .map(|index| (lane(b, 16, index), index))
                .min()
                .unwrap_or_default();
            u128::from(value | u64::from(index) << 16)
        }
        M::Pmovsxbw => extend(8, 16, true),
        M::Pmovsxbd => extend(8, 32, true),
        M::Pmovsxbq => extend(8, 64, true),
        M::Pmovsxwd => extend(16, 32, true),
        M::Pmovsxwq => extend(16, 64, true),
        M::Pmovsxdq => extend(32, 64, true),
        M::Pmovzxbw => extend(8, 16, false),
        M::Pmovzxbd => extend(8, 32, false),
        M::Pmovzxbq => extend(8, 64, false),
        M::Pmovzxwd => extend(16, 32, false),
        M::Pmovzxwq => extend(16, 64, false),
        M::Pmovzxdq => extend(32, 64, false),
        _ => return None,
    })
}

fn shuffle(source: u128, bits: u32, count: u32, control: u64, index_bits: u32) -> u128 {
    let mask = (1 << index_bits) - 1;
    (0..count).fold(0, |result, index| {
        let from = (control >> (index_bits * index)) as u32 & mask;
        with_lane(result, bits, index, lane(source, bits, from))
    })
}

/// Lanes of the second operand where a mask bit is set, else of the first.
fn blend(a: u128, b: u128, bits: u32, chosen: impl Fn(u32) -> bool) -> u128 {
    (0..128 / bits)
        .filter(|&index| chosen(index))
        .fold(a, |result, index| {
            with_lane(result, bits, index, lane(b, bits, index))
        })
}

/// The result of an instruction with two vector operands and an immediate (or XMM0).
fn three_operands(
    mnemonic: Mnemonic,
    a: u128,
    b: u128,
    control: u64,
    third: u128,
    width: u32,
) -> Option<u128> {
    use Mnemonic as M;
    let low = u128::from(u64::MAX);
    let sign_of = |bits: u32| move |index| lane(third, bits, index) >> (bits - 1) != 0;
    Some(match mnemonic {
        M::Pshufd => shuffle(b, 32, 4, control, 2),
        M::Pshufw => shuffle(b, 16, 4, control, 2),
        M::Pshuflw => b & !low | shuffle(b & low, 16, 4, control, 2),
        M::Pshufhw => b & low | shuffle(b >> 64, 16, 4, control, 2) << 64,
        M::Shufps => {
            let (a, b) = (
                shuffle(a, 32, 2, control, 2),
                shuffle(b, 32, 2, control >> 4, 2),
            );
            a | b << 64
        }
        M::Shufpd => {
            let (a, b) = (
                shuffle(a, 64, 1, control, 1),
                shuffle(b, 64, 1, control >> 1, 1),
            );
            a | b << 64
        }
        M::Palignr => {
            let bytes = width / 8;
            let count = control as u32 & 0xff;
            (0..bytes).fold(0, |result, index| {
                let from = index + count;
                let value = match from / bytes {
                    0 => lane(b, 8, from),
                    1 => lane(a, 8, from - bytes),
                    _ => 0,
                };
                with_lane(result, 8, index, value)
            })
        }
        M::Blendps => blend(a, b, 32, |index| control >> index & 1 != 0),
        M::Blendpd => blend(a, b, 64, |index| control >> index & 1 != 0),
        M::Pblendw => blend(a, b, 16, |index| control >> index & 1 != 0),
        M::Blendvps => blend(a, b, 32, sign_of(32)),
        M::Blendvpd => blend(a, b, 64, sign_of(64)),
        M::Pblendvb => blend(a, b, 8, sign_of(8)),
        M::Mpsadbw => {
            let from = control as u32 & 3;
            let start = control as u32 >> 2 & 1;
            (0..8).fold(0, |result, index| {
                let sum = (0..4)
                    .map(|byte| {
                        let x = lane(a, 8, 4 * start + index + byte);
                        x.abs_diff(lane(b, 8, 4 * from + byte))
                    })
                    .sum();
                with_lane(result, 16, index, sum)
            })
        }
        _ => return None,
    })
}

/// Bytes of the second operand if it is memory.
fn memory_size(insn: &Instruction, width: u32) -> usize {
    match insn.memory_size().size() {
        0 => width as usize / 8,
        size => size.min(16),
    }
}

/// Executes a packed integer or logical instruction; `None` if it is none.
pub fn execute(cx: &mut Context<'_>, insn: &Instruction) -> Option<Result<(), Exception>> {
    let mnemonic = insn.mnemonic();
    if mnemonic == Mnemonic::Ptest {
        return Some(test(cx, insn));
    }
    if insn.op0_kind() != OpKind::Register {
        return None;
    }
    let target = insn.op0_register();
    if !target.is_xmm() && !target.is_mm() {
        return None;
    }
    let width = if target.is_mm() { 64 } else { 128 };
    // Whether it is one of these shows with any operands.
    let none =
        two_operands(mnemonic, 0, 0, width).or_else(|| three_operands(mnemonic, 0, 0, 0, 0, width));
    none?;
    Some(compute(cx, insn, width))
}

fn compute(cx: &mut Context<'_>, insn: &Instruction, width: u32) -> Result<(), Exception> {
    let mmx = uses_mmx(insn);
    if mmx {
        check_mmx(cx.cpu)?;
    }
    let a = read(cx, insn, 0, 16)?;
    let b = read(cx, insn, 1, memory_size(insn, width))?;
    let blends = matches!(
        insn.mnemonic(),
        Mnemonic::Blendvps | Mnemonic::Blendvpd | Mnemonic::Pblendvb
    );
    let third = if blends {
        xmm(cx.cpu, Register::XMM0)
    } else if insn.op_count() > 2 {
        read(cx, insn, 2, 16)?
    } else {
        0
    };
    let mnemonic = insn.mnemonic();
    let result = two_operands(mnemonic, a, b, width)
        .or_else(|| three_operands(mnemonic, a, b, third as u64, third, width))
        .ok_or(Exception::invalid_opcode())?;
    if mmx {
        enter_mmx(cx.cpu);
    }
    write(cx, insn, 0, 16, result)?;
    next(cx, insn)
}

/// PTEST (SSE4.1).
fn test(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let a = read(cx, insn, 0, 16)?;
    let b = read(cx, insn, 1, 16)?;
    let zero = if a & b == 0 { flags::ZF } else { 0 };
    let carry = if !a & b == 0 { flags::CF } else { 0 };
    cx.cpu.arithmetic_flags = zero | carry;
    next(cx, insn)
}
