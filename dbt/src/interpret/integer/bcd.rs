//! Decimal adjustment (SDM volume 1, 7.3.4). None of these exist in 64-bit mode.

use iced_x86::{Instruction, Mnemonic};

use super::flags::{add, sub, szp};
use crate::guest::flags::*;
use crate::guest::{Exception, Register as Gpr};
use crate::interpret::Context;
use crate::interpret::operand::{next, read_gpr, row, write_gpr};
use crate::record::Row;

pub(crate) const ROWS: &[Row] = &[
    row(Mnemonic::Aaa, aaa),
    row(Mnemonic::Aad, aad),
    row(Mnemonic::Aam, aam),
    row(Mnemonic::Aas, aas),
    row(Mnemonic::Daa, daa),
    row(Mnemonic::Das, das),
];

type Done = Result<(), Exception>;

/// AAA and AAS: SF, ZF, PF and OF are undefined; SF, ZF and PF follow AL here.
fn ascii_adjust(cx: &mut Context<'_>, insn: &Instruction, adjust: fn(u64) -> u64) -> Done {
    let old = read_gpr(cx.cpu, Gpr::RAX, 2);
    let needed = old & 0xf > 9 || cx.cpu.arithmetic_flags & AF != 0;
    let result = if needed { adjust(old) } else { old } & 0xff0f;
    write_gpr(cx.cpu, Gpr::RAX, 2, result);
    let carries = if needed { AF | CF } else { 0 };
    cx.cpu.arithmetic_flags = szp(result, 1) | carries;
    next(cx, insn)
}

fn aaa(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    ascii_adjust(cx, insn, |ax| ax.wrapping_add(0x106))
}

fn aas(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    ascii_adjust(cx, insn, |ax| ax.wrapping_sub(0x106))
}

fn aam(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let base = u64::from(insn.immediate8());
    if base == 0 {
        return Err(Exception::divide_error());
    }
    let al = read_gpr(cx.cpu, Gpr::RAX, 1);
    write_gpr(cx.cpu, Gpr::RAX, 2, (al / base) << 8 | (al % base));
    cx.cpu.arithmetic_flags = szp(al % base, 1);
    next(cx, insn)
}

fn aad(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let base = u64::from(insn.immediate8());
    let ax = read_gpr(cx.cpu, Gpr::RAX, 2);
    let result = (ax & 0xff).wrapping_add((ax >> 8) * base) & 0xff;
    write_gpr(cx.cpu, Gpr::RAX, 2, result);
    cx.cpu.arithmetic_flags = szp(result, 1);
    next(cx, insn)
}

/// DAA and DAS: a correction of 6 for each digit that needs it.
fn decimal_adjust(
    cx: &mut Context<'_>,
    insn: &Instruction,
    apply: fn(u64, u64, u64, usize) -> (u64, u64),
    borrows_carry: bool,
) -> Done {
    let old = read_gpr(cx.cpu, Gpr::RAX, 1);
    let flags = cx.cpu.arithmetic_flags;
    let low = old & 0xf > 9 || flags & AF != 0;
    let high = old > 0x99 || flags & CF != 0;
    let correction = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
    let (result, _) = apply(old, correction, 0, 1);
    let mut carries = if low { AF } else { 0 };
    // DAS also reports the borrow of the low digit's correction.
    if high || (borrows_carry && low && old < 6) {
        carries |= CF;
    }
    write_gpr(cx.cpu, Gpr::RAX, 1, result);
    cx.cpu.arithmetic_flags = szp(result, 1) | carries;
    next(cx, insn)
}

fn daa(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    decimal_adjust(cx, insn, add, false)
}

fn das(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    decimal_adjust(cx, insn, sub, true)
}
