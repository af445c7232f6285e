//! Bit tests, bit scans, BMI1, BMI2 and CRC32.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::flags::szp;
use crate::guest::flags::*;
use crate::guest::{Exception, Mode};
use crate::interpret::address::linear_displaced;
use crate::interpret::operand::{
    Place, next, operand_size, read_operand, read_register, row, sign_extend, size_mask,
    write_register,
};
use crate::interpret::{Access, Context};
use crate::record::Row;

pub(crate) const ROWS: &[Row] = &[
    row(Mnemonic::Andn, andn),
    row(Mnemonic::Bextr, bextr),
    row(Mnemonic::Blsi, blsi),
    row(Mnemonic::Blsmsk, blsmsk),
    row(Mnemonic::Blsr, blsr),
    row(Mnemonic::Bsf, bsf),
    row(Mnemonic::Bsr, bsr),
    row(Mnemonic::Bt, bt),
    row(Mnemonic::Btc, btc),
    row(Mnemonic::Btr, btr),
    row(Mnemonic::Bts, bts),
    row(Mnemonic::Bzhi, bzhi),
    row(Mnemonic::Crc32, crc32),
    row(Mnemonic::Lzcnt, lzcnt),
    row(Mnemonic::Pdep, pdep),
    row(Mnemonic::Pext, pext),
    row(Mnemonic::Popcnt, popcnt),
    row(Mnemonic::Tzcnt, tzcnt),
];

type Done = Result<(), Exception>;

/// VEX encodings of general-purpose instructions exist in protected mode only (SDM volume 2,
/// 2.6, exception class 13).
pub(super) fn require_vex(cx: &Context<'_>) -> Done {
    let mode = cx.cpu.mode;
    if !mode.has(Mode::PROTECTED) || mode.has(Mode::VM86) {
        return Err(Exception::invalid_opcode());
    }
    Ok(())
}

/// Tests a bit, and writes `change(value, bit)` back if there is a change.
fn bit_test(cx: &mut Context<'_>, insn: &Instruction, change: Option<fn(u64, u64) -> u64>) -> Done {
    let size = operand_size(insn, 0);
    let bits = 8 * size as u64;
    let offset = read_operand(cx, insn, 1, size)?;
    let bit = 1u64 << (offset & (bits - 1));
    let access = if change.is_some() {
        Access::Write
    } else {
        Access::Read
    };
    let in_memory = insn.op0_kind() == OpKind::Memory;
    let place = if in_memory && insn.op1_kind() == OpKind::Register {
        // A register offset is signed and reaches beyond the operand, in units of its size.
        let units = (sign_extend(offset, size) as i64) >> bits.trailing_zeros();
        let displacement = (units as u64).wrapping_mul(size as u64);
        Place::Memory(linear_displaced(cx, insn, displacement, size, access)?)
    } else {
        Place::of(cx, insn, 0, size, access)?
    };
    let value = match (change, place) {
        (Some(change), _) => {
            let old = place.load_for_update(cx, size)?;
            place.store(cx, size, change(old, bit))?;
            old
        }
        (None, Place::Register(register)) => read_register(cx.cpu, register),
        (None, Place::Memory(address)) => cx.load(address, size)?,
    };
    cx.cpu.arithmetic_flags &= !CF;
    if value & bit != 0 {
        cx.cpu.arithmetic_flags |= CF;
    }
    next(cx, insn)
}

fn bt(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    bit_test(cx, insn, None)
}

fn bts(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    bit_test(cx, insn, Some(|value, bit| value | bit))
}

fn btr(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    bit_test(cx, insn, Some(|value, bit| value & !bit))
}

fn btc(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    bit_test(cx, insn, Some(|value, bit| value ^ bit))
}

/// BSF and BSR: a source of zero leaves the destination alone, as processors do.
fn scan(cx: &mut Context<'_>, insn: &Instruction, find: fn(u64) -> u32) -> Done {
    let size = operand_size(insn, 0);
    let source = read_operand(cx, insn, 1, size)?;
    if source == 0 {
        cx.cpu.arithmetic_flags |= ZF;
    } else {
        cx.cpu.arithmetic_flags &= !ZF;
        write_register(cx.cpu, insn.op0_register(), u64::from(find(source)));
    }
    next(cx, insn)
}

fn bsf(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    scan(cx, insn, u64::trailing_zeros)
}

fn bsr(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    scan(cx, insn, |source| 63 - source.leading_zeros())
}

/// TZCNT and LZCNT: CF says that there was no bit, ZF that the count is 0.
fn count_zeros(
    cx: &mut Context<'_>,
    insn: &Instruction,
    count: impl FnOnce(u64, u32) -> u32,
) -> Done {
    let size = operand_size(insn, 0);
    let source = read_operand(cx, insn, 1, size)?;
    let result = count(source, 8 * size as u32);
    write_register(cx.cpu, insn.op0_register(), u64::from(result));
    let mut flags = cx.cpu.arithmetic_flags & !(CF | ZF);
    if source == 0 {
        flags |= CF;
    }
    if result == 0 {
        flags |= ZF;
    }
    cx.cpu.arithmetic_flags = flags;
    next(cx, insn)
}

fn tzcnt(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    count_zeros(cx, insn, |source, bits| source.trailing_zeros().min(bits))
}

fn lzcnt(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    count_zeros(cx, insn, |source, bits| source.leading_zeros() + bits - 64)
}

fn popcnt(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = operand_size(insn, 0);
    let source = read_operand(cx, insn, 1, size)?;
    let result = u64::from(source.count_ones());
    write_register(cx.cpu, insn.op0_register(), result);
    cx.cpu.arithmetic_flags = if source == 0 { ZF } else { 0 };
    next(cx, insn)
}

/// The last step of BMI instructions: the result, its SF and ZF, and CF; OF is cleared, AF and
/// PF are undefined and cleared.
fn finish(cx: &mut Context<'_>, insn: &Instruction, size: usize, result: u64, carry: bool) -> Done {
    write_register(cx.cpu, insn.op0_register(), result);
    cx.cpu.arithmetic_flags = (szp(result, size) & (SF | ZF)) | u64::from(carry);
    next(cx, insn)
}

fn andn(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_vex(cx)?;
    let size = operand_size(insn, 0);
    let mask = read_operand(cx, insn, 1, size)?;
    let value = read_operand(cx, insn, 2, size)?;
    finish(cx, insn, size, !mask & value, false)
}

fn bextr(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_vex(cx)?;
    let size = operand_size(insn, 0);
    let value = read_operand(cx, insn, 1, size)?;
    let control = read_operand(cx, insn, 2, size)?;
    let start = (control & 0xff) as u32;
    let length = ((control >> 8) & 0xff) as u32;
    let shifted = value.checked_shr(start).unwrap_or(0);
    finish(cx, insn, size, shifted & low_bits(length), false)?;
    // SF is undefined here; processors clear it.
    cx.cpu.arithmetic_flags &= !SF;
    Ok(())
}

/// `count` ones, at most 64.
fn low_bits(count: u32) -> u64 {
    1u64.checked_shl(count).map_or(u64::MAX, |bit| bit - 1)
}

fn lowest_bit(
    cx: &mut Context<'_>,
    insn: &Instruction,
    operation: fn(u64) -> u64,
    carry: fn(u64) -> bool,
) -> Done {
    require_vex(cx)?;
    let size = operand_size(insn, 0);
    let source = read_operand(cx, insn, 1, size)?;
    let result = operation(source) & size_mask(size);
    finish(cx, insn, size, result, carry(source))
}

fn blsi(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    lowest_bit(cx, insn, |v| v & v.wrapping_neg(), |v| v != 0)
}

fn blsmsk(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    lowest_bit(cx, insn, |v| v ^ v.wrapping_sub(1), |v| v == 0)
}

fn blsr(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    lowest_bit(cx, insn, |v| v & v.wrapping_sub(1), |v| v == 0)
}

fn bzhi(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_vex(cx)?;
    let size = operand_size(insn, 0);
    let value = read_operand(cx, insn, 1, size)?;
    let count = (read_operand(cx, insn, 2, size)? & 0xff) as u32;
    let carry = count >= 8 * size as u32;
    finish(cx, insn, size, value & low_bits(count), carry)
}

fn pdep(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_vex(cx)?;
    let size = operand_size(insn, 0);
    let source = read_operand(cx, insn, 1, size)?;
    let mut mask = read_operand(cx, insn, 2, size)?;
    let mut result = 0;
    let mut position = 0;
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        if (source >> position) & 1 != 0 {
            result |= lowest;
        }
        mask ^= lowest;
        position += 1;
    }
    write_register(cx.cpu, insn.op0_register(), result);
    next(cx, insn)
}

fn pext(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_vex(cx)?;
    let size = operand_size(insn, 0);
    let source = read_operand(cx, insn, 1, size)?;
    let mut mask = read_operand(cx, insn, 2, size)?;
    let mut result = 0u64;
    let mut position = 0;
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        if source & lowest != 0 {
            result |= 1 << position;
        }
        mask ^= lowest;
        position += 1;
    }
    write_register(cx.cpu, insn.op0_register(), result);
    next(cx, insn)
}

/// CRC-32C, reflected polynomial 0x82F63B78, without inversions.
fn crc32(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = operand_size(insn, 1);
    let source = read_operand(cx, insn, 1, size)?;
    let register = insn.op0_register();
    let mut remainder = read_register(cx.cpu, register) as u32;
    for byte in &source.to_le_bytes()[..size] {
        remainder ^= u32::from(*byte);
        for _ in 0..8 {
            let polynomial = if remainder & 1 != 0 { 0x82f6_3b78 } else { 0 };
            remainder = (remainder >> 1) ^ polynomial;
        }
    }
    write_register(cx.cpu, register, u64::from(remainder));
    next(cx, insn)
}
