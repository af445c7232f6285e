//! LAR, LSL, VERR, VERW, ARPL: questions about selectors that never fault on the answer
//! (SDM volume 3, 5.10).

use iced_x86::{Instruction, Mnemonic};

use super::require_protected;
use super::segments::{Descriptor, is_null};
use crate::guest::Exception;
use crate::guest::flags::ZF;
use crate::interpret::operand::{Place, next, read_operand, read_register, row, write_register};
use crate::interpret::{Access, Context};
use crate::record::Row;

pub(crate) const ROWS: &[Row] = &[
    row(Mnemonic::Lar, access_rights),
    row(Mnemonic::Lsl, segment_limit),
    row(Mnemonic::Verr, verify),
    row(Mnemonic::Verw, verify),
    row(Mnemonic::Arpl, adjust_rpl),
];

fn set_zero(cx: &mut Context<'_>, on: bool) {
    let flags = &mut cx.cpu.arithmetic_flags;
    *flags = *flags & !ZF | if on { ZF } else { 0 };
}

/// The descriptor if the selector names one; page faults are still faults.
fn look_up(cx: &mut Context<'_>, selector: u16) -> Result<Option<Descriptor>, Exception> {
    if is_null(selector) {
        return Ok(None);
    }
    match Descriptor::fetch(cx, selector, Exception::GP) {
        Ok(descriptor) => Ok(Some(descriptor)),
        Err(fault) if fault.vector == Exception::GP => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Whether the privilege levels let a descriptor be seen.
fn visible(cx: &Context<'_>, descriptor: &Descriptor) -> bool {
    descriptor.is_conforming()
        || descriptor.dpl() >= cx.cpu.cpl() && descriptor.dpl() >= descriptor.rpl()
}

/// Answers LAR and LSL for the system descriptor types in the bit set `kinds`.
fn query(
    cx: &mut Context<'_>,
    insn: &Instruction,
    kinds: u16,
    answer: impl Fn(&Descriptor) -> u64,
) -> Result<(), Exception> {
    require_protected(cx.cpu)?;
    let selector = read_operand(cx, insn, 1, 2)? as u16;
    let mut found = look_up(cx, selector)?
        .filter(|it| visible(cx, it) && (!it.is_system() || kinds >> it.kind() & 1 != 0));
    // LDT and TSS descriptors, and call gates, are 16 bytes long in long mode.
    if let Some(descriptor) = found
        && descriptor.is_system()
        && cx.cpu.long_mode()
    {
        match descriptor.fetch_high(cx, Exception::GP) {
            Ok(_) => {}
            Err(fault) if fault.vector == Exception::GP => found = None,
            Err(fault) => return Err(fault),
        }
    }
    if let Some(descriptor) = found {
        write_register(cx.cpu, insn.op0_register(), answer(&descriptor));
    }
    set_zero(cx, found.is_some());
    next(cx, insn)
}

fn access_rights(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    // 286 TSSs, LDT, call and task gates, 386 TSSs and call gate; long mode: LDT, TSSs, gate.
    let kinds = if cx.cpu.long_mode() {
        1 << 2 | 1 << 9 | 1 << 11 | 1 << 12
    } else {
        1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 9 | 1 << 11 | 1 << 12
    };
    query(cx, insn, kinds, |it| it.raw >> 32 & 0x00f0_ff00)
}

fn segment_limit(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let kinds = if cx.cpu.long_mode() {
        1 << 2 | 1 << 9 | 1 << 11
    } else {
        1 << 1 | 1 << 2 | 1 << 3 | 1 << 9 | 1 << 11
    };
    query(cx, insn, kinds, |it| u64::from(it.limit()))
}

fn verify(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    require_protected(cx.cpu)?;
    let selector = read_operand(cx, insn, 0, 2)? as u16;
    let found = look_up(cx, selector)?;
    let good = found.is_some_and(|it| {
        let usable = if insn.mnemonic() == Mnemonic::Verr {
            it.is_readable()
        } else {
            it.is_writable_data()
        };
        usable && visible(cx, &it)
    });
    set_zero(cx, good);
    next(cx, insn)
}

fn adjust_rpl(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    require_protected(cx.cpu)?;
    // Processors ask for the right to write only if they are going to.
    let selector = read_operand(cx, insn, 0, 2)?;
    let wanted = read_register(cx.cpu, insn.op1_register()) & 3;
    let raise = selector & 3 < wanted;
    if raise {
        let place = Place::of(cx, insn, 0, 2, Access::Write)?;
        let whole = place.load_for_update(cx, 2)?;
        match place {
            Place::Register(register) => write_register(cx.cpu, register, whole & !3 | wanted),
            Place::Memory(_) => place.store(cx, 2, selector & !3 | wanted)?,
        }
    }
    set_zero(cx, raise);
    next(cx, insn)
}
