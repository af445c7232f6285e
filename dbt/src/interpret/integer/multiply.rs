//! Multiplication and division.

use iced_x86::{Instruction, Mnemonic};

use super::flags::carry_overflow;
use crate::guest::flags::*;
use crate::guest::{CpuState, Exception, Register as Gpr};
use crate::interpret::Context;
use crate::interpret::operand::{
    next, operand_size, read_gpr, read_operand, row, sign_extend, size_mask, write_gpr,
    write_register,
};
use crate::record::Row;

pub(crate) const ROWS: &[Row] = &[
    row(Mnemonic::Div, div),
    row(Mnemonic::Idiv, idiv),
    row(Mnemonic::Imul, imul),
    row(Mnemonic::Mul, mul),
    row(Mnemonic::Mulx, mulx),
];

type Done = Result<(), Exception>;

/// A value of `size` bytes as a signed number.
fn signed(value: u64, size: usize) -> i128 {
    i128::from(sign_extend(value, size) as i64)
}

/// Writes a double-width result: AX for bytes, else rDX:rAX.
fn write_double(cpu: &mut CpuState, size: usize, low: u64, high: u64) {
    if size == 1 {
        write_gpr(cpu, Gpr::RAX, 2, (low & 0xff) | (high & 0xff) << 8);
    } else {
        write_gpr(cpu, Gpr::RAX, size, low);
        write_gpr(cpu, Gpr::RDX, size, high);
    }
}

/// The double-width number that [`write_double`] would have written.
fn read_double(cpu: &CpuState, size: usize) -> u128 {
    if size == 1 {
        u128::from(read_gpr(cpu, Gpr::RAX, 2))
    } else {
        u128::from(read_gpr(cpu, Gpr::RDX, size)) << (8 * size)
            | u128::from(read_gpr(cpu, Gpr::RAX, size))
    }
}

/// CF and OF say that the product did not fit; SF, ZF, AF and PF are undefined and stay.
fn set_product_flags(cpu: &mut CpuState, overflow: bool) {
    cpu.arithmetic_flags = (cpu.arithmetic_flags & !(CF | OF)) | carry_overflow(overflow, overflow);
}

fn mul(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = operand_size(insn, 0);
    let source = read_operand(cx, insn, 0, size)?;
    let product = u128::from(source) * u128::from(read_gpr(cx.cpu, Gpr::RAX, size));
    let high = (product >> (8 * size)) as u64;
    write_double(cx.cpu, size, product as u64, high);
    set_product_flags(cx.cpu, high != 0);
    next(cx, insn)
}

fn imul(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = operand_size(insn, 0);
    let operands = insn.op_count();
    let last = read_operand(cx, insn, operands - 1, size)?;
    let other = if operands == 1 {
        read_gpr(cx.cpu, Gpr::RAX, size)
    } else {
        read_operand(cx, insn, operands - 2, size)?
    };
    let product = signed(last, size) * signed(other, size);
    let overflow = product != signed(product as u64, size);
    if operands == 1 {
        let high = (product >> (8 * size)) as u64;
        write_double(cx.cpu, size, product as u64, high);
    } else {
        write_register(cx.cpu, insn.op0_register(), product as u64);
    }
    set_product_flags(cx.cpu, overflow);
    next(cx, insn)
}

fn mulx(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    super::bits::require_vex(cx)?;
    let size = operand_size(insn, 0);
    let source = read_operand(cx, insn, 2, size)?;
    let product = u128::from(source) * u128::from(read_gpr(cx.cpu, Gpr::RDX, size));
    // The high half is written last: it stays when both are one register.
    write_register(cx.cpu, insn.op1_register(), product as u64);
    let high = (product >> (8 * size)) as u64;
    write_register(cx.cpu, insn.op0_register(), high);
    next(cx, insn)
}

fn div(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = operand_size(insn, 0);
    let divisor = u128::from(read_operand(cx, insn, 0, size)?);
    let dividend = read_double(cx.cpu, size);
    let quotient = dividend
        .checked_div(divisor)
        .filter(|&quotient| quotient <= u128::from(size_mask(size)))
        .ok_or(Exception::divide_error())?;
    let remainder = dividend % divisor;
    write_double(cx.cpu, size, quotient as u64, remainder as u64);
    next(cx, insn)
}

fn idiv(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = operand_size(insn, 0);
    let divisor = signed(read_operand(cx, insn, 0, size)?, size);
    let shift = 128 - 16 * size;
    let dividend = ((read_double(cx.cpu, size) << shift) as i128) >> shift;
    let quotient = dividend
        .checked_div(divisor)
        .filter(|&quotient| quotient == signed(quotient as u64, size))
        .ok_or(Exception::divide_error())?;
    let remainder = dividend.wrapping_rem(divisor);
    write_double(cx.cpu, size, quotient as u64, remainder as u64);
    next(cx, insn)
}
