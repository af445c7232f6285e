//! INT n, INT3, INT1 and INTO (SDM volume 2, INT).

use iced_x86::{Instruction, Mnemonic};

use super::deliver::{Kind, interrupt};
use crate::guest::Exception;
use crate::guest::flags::OF;
use crate::interpret::Context;
use crate::interpret::operand::{next, next_rip, row};
use crate::record::Row;

pub(crate) const ROWS: &[Row] = &[
    row(Mnemonic::Int, int),
    row(Mnemonic::Int1, int1),
    row(Mnemonic::Int3, int3),
    row(Mnemonic::Into, into),
];

fn int(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let next_rip = next_rip(cx, insn);
    interrupt(cx, insn.immediate8(), Kind::Software { next_rip })
}

fn int1(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let next_rip = next_rip(cx, insn);
    interrupt(cx, Exception::DB, Kind::Int1 { next_rip })
}

fn int3(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let next_rip = next_rip(cx, insn);
    interrupt(cx, Exception::BP, Kind::Int3 { next_rip })
}

fn into(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    if cx.cpu.arithmetic_flags & OF == 0 {
        return next(cx, insn);
    }
    let next_rip = next_rip(cx, insn);
    interrupt(cx, Exception::OF, Kind::Into { next_rip })
}
