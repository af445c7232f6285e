//! Shifts and rotates. Counts are masked to 5 bits, or 6 for 64-bit operands.

use iced_x86::{Instruction, Mnemonic};

use super::flags::{carry_overflow, szp};
use crate::guest::Exception;
use crate::guest::flags::*;
use crate::interpret::Context;
use crate::interpret::operand::{
    modify_operand, next, operand_size, read_operand, row, sign_extend, size_mask, write_register,
};
use crate::record::Row;

pub(crate) const ROWS: &[Row] = &[
    row(Mnemonic::Rcl, rcl),
    row(Mnemonic::Rcr, rcr),
    row(Mnemonic::Rol, rol),
    row(Mnemonic::Ror, ror),
    row(Mnemonic::Rorx, rorx),
    row(Mnemonic::Sal, shl),
    row(Mnemonic::Sar, sar),
    row(Mnemonic::Sarx, sarx),
    row(Mnemonic::Shl, shl),
    row(Mnemonic::Shld, shld),
    row(Mnemonic::Shlx, shlx),
    row(Mnemonic::Shr, shr),
    row(Mnemonic::Shrd, shrd),
    row(Mnemonic::Shrx, shrx),
];

type Done = Result<(), Exception>;

#[inline]
fn top_bits(value: u64, size: usize) -> (bool, bool) {
    let shift = 8 * size - 2;
    ((value >> shift) & 2 != 0, (value >> shift) & 1 != 0)
}

fn count_mask(size: usize) -> u64 {
    if size == 8 { 63 } else { 31 }
}

/// Shifts operand 0 by operand 1. The operation gets the value, the masked count (not 0), the
/// size and the old flags. A count of 0 rewrites the operand and leaves the flags.
#[inline]
fn shift(
    cx: &mut Context<'_>,
    insn: &Instruction,
    operation: impl FnOnce(u64, u32, usize, u64) -> (u64, u64),
) -> Done {
    let size = operand_size(insn, 0);
    let count = (read_operand(cx, insn, 1, 1)? & count_mask(size)) as u32;
    cx.cpu.arithmetic_flags = modify_operand(cx, insn, size, |cpu, old| {
        if count == 0 {
            (old, cpu.arithmetic_flags)
        } else {
            operation(old, count, size, cpu.arithmetic_flags)
        }
    })?;
    next(cx, insn)
}

/// SHL of a value of `size` bytes by a count that is not 0: the result, and the flags.
#[inline]
pub fn left(value: u64, count: u32, size: usize) -> (u64, u64) {
    let wide = u128::from(value) << count;
    let result = wide as u64 & size_mask(size);
    let carry = (wide >> (8 * size)) & 1 != 0;
    let overflow = top_bits(result, size).0 != carry;
    (result, szp(result, size) | carry_overflow(carry, overflow))
}

/// SHR, likewise.
#[inline]
pub fn right(value: u64, count: u32, size: usize) -> (u64, u64) {
    let result = value >> count;
    let carry = (value >> (count - 1)) & 1 != 0;
    let (top, second) = top_bits(result, size);
    let flags = szp(result, size) | carry_overflow(carry, top != second);
    (result, flags)
}

/// SAR, likewise.
#[inline]
pub fn arithmetic(value: u64, count: u32, size: usize) -> (u64, u64) {
    let value = sign_extend(value, size) as i64;
    let result = (value >> count) as u64 & size_mask(size);
    let carry = (value >> (count - 1)) & 1 != 0;
    (result, szp(result, size) | carry_overflow(carry, false))
}

fn shl(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    shift(cx, insn, |value, count, size, _| left(value, count, size))
}

fn shr(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    shift(cx, insn, |value, count, size, _| right(value, count, size))
}

fn sar(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    shift(cx, insn, |value, count, size, _| {
        arithmetic(value, count, size)
    })
}

/// Rotates change CF and OF only.
fn rotate_flags(old: u64, carry: bool, overflow: bool) -> u64 {
    (old & !(CF | OF)) | carry_overflow(carry, overflow)
}

fn rotate_left(value: u64, count: u32, size: usize) -> u64 {
    let bits = 8 * size as u32;
    let count = count % bits;
    let value = value & size_mask(size);
    if count == 0 {
        value
    } else {
        ((value << count) | (value >> (bits - count))) & size_mask(size)
    }
}

fn rol(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    shift(cx, insn, |value, count, size, old| {
        let result = rotate_left(value, count, size);
        let carry = result & 1 != 0;
        let overflow = top_bits(result, size).0 != carry;
        (result, rotate_flags(old, carry, overflow))
    })
}

fn ror(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    shift(cx, insn, |value, count, size, old| {
        let bits = 8 * size as u32;
        let result = rotate_left(value, bits - count % bits, size);
        let (top, second) = top_bits(result, size);
        (result, rotate_flags(old, top, top != second))
    })
}

/// Rotates CF and the value together, left by `count`: a ring of one bit more than the value.
fn rotate_through_carry(value: u64, count: u32, size: usize, old: u64) -> (u64, bool) {
    let ring = 8 * size as u32 + 1;
    let wide = u128::from(old & CF) << (ring - 1) | u128::from(value);
    let rotated = if count == 0 {
        wide
    } else {
        wide << count | wide >> (ring - count)
    };
    let carry = (rotated >> (ring - 1)) & 1 != 0;
    (rotated as u64 & size_mask(size), carry)
}

fn rcl(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    shift(cx, insn, |value, count, size, old| {
        let ring = 8 * size as u32 + 1;
        let (result, carry) = rotate_through_carry(value, count % ring, size, old);
        let overflow = top_bits(result, size).0 != carry;
        (result, rotate_flags(old, carry, overflow))
    })
}

fn rcr(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    shift(cx, insn, |value, count, size, old| {
        let ring = 8 * size as u32 + 1;
        let left = (ring - count % ring) % ring;
        let (result, carry) = rotate_through_carry(value, left, size, old);
        let (top, second) = top_bits(result, size);
        (result, rotate_flags(old, carry, top != second))
    })
}

/// SHLD and SHRD. 16-bit operands with counts above 16 are undefined; the bits that follow the
/// source are then the destination's again.
fn double_shift(cx: &mut Context<'_>, insn: &Instruction, left: bool) -> Done {
    let size = operand_size(insn, 0);
    let bits = 8 * size as u32;
    let source = read_operand(cx, insn, 1, size)?;
    let count = (read_operand(cx, insn, 2, 1)? & count_mask(size)) as u32;
    cx.cpu.arithmetic_flags = modify_operand(cx, insn, size, |cpu, old| {
        if count == 0 {
            return (old, cpu.arithmetic_flags);
        }
        let (value, other) = (u128::from(old), u128::from(source));
        let (result, carry) = match (left, size) {
            (_, 2) => {
                let ring = value << 32 | other << 16 | value;
                if left {
                    let shifted = ring << count;
                    ((shifted >> 32) as u64, (shifted >> 48) & 1 != 0)
                } else {
                    ((ring >> count) as u64, (ring >> (count - 1)) & 1 != 0)
                }
            }
            (true, _) => {
                let result = ((value << bits | other) << count) >> bits;
                (result as u64, (old >> (bits - count)) & 1 != 0)
            }
            (false, _) => {
                let result = (other << bits | value) >> count;
                (result as u64, (old >> (count - 1)) & 1 != 0)
            }
        };
        let result = result & size_mask(size);
        let overflow = top_bits(result, size).0 != top_bits(old, size).0;
        (result, szp(result, size) | carry_overflow(carry, overflow))
    })?;
    next(cx, insn)
}

fn shld(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    double_shift(cx, insn, true)
}

fn shrd(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    double_shift(cx, insn, false)
}

/// The BMI2 forms: three operands, no flags (SDM volume 2, SARX/SHLX/SHRX).
fn flagless(
    cx: &mut Context<'_>,
    insn: &Instruction,
    operation: impl FnOnce(u64, u32, usize) -> u64,
) -> Done {
    super::bits::require_vex(cx)?;
    let size = operand_size(insn, 0);
    let value = read_operand(cx, insn, 1, size)?;
    let count = (read_operand(cx, insn, 2, 1)? & count_mask(size)) as u32;
    write_register(cx.cpu, insn.op0_register(), operation(value, count, size));
    next(cx, insn)
}

fn sarx(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    flagless(cx, insn, |value, count, size| {
        ((sign_extend(value, size) as i64) >> count) as u64
    })
}

fn shlx(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    flagless(cx, insn, |value, count, _| value << count)
}

fn shrx(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    flagless(cx, insn, |value, count, _| value >> count)
}

fn rorx(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    flagless(cx, insn, |value, count, size| {
        let bits = 8 * size as u32;
        rotate_left(value, bits - count % bits, size)
    })
}
