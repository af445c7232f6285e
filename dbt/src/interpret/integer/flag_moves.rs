//! Instructions that move and set flags (SDM volume 1, 7.3.13; volume 3, 21.2 and 21.3).

use iced_x86::{Code, Instruction, Mnemonic};

use super::stack::{pop_at, push, write_stack_pointer};
use crate::guest::flags::*;
use crate::guest::{Exception, Mode, Register as Gpr};
use crate::interpret::Context;
use crate::interpret::operand::{next, row, write_gpr};
use crate::record::Row;

pub(crate) const ROWS: &[Row] = &[
    row(Mnemonic::Clc, clc),
    row(Mnemonic::Cld, cld),
    row(Mnemonic::Cmc, cmc),
    row(Mnemonic::Lahf, lahf),
    row(Mnemonic::Popf, popf),
    row(Mnemonic::Popfd, popf),
    row(Mnemonic::Popfq, popf),
    row(Mnemonic::Pushf, pushf),
    row(Mnemonic::Pushfd, pushf),
    row(Mnemonic::Pushfq, pushf),
    row(Mnemonic::Sahf, sahf),
    row(Mnemonic::Salc, salc),
    row(Mnemonic::Stc, stc),
    row(Mnemonic::Std, std),
];

type Done = Result<(), Exception>;

fn clc(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    cx.cpu.arithmetic_flags &= !CF;
    next(cx, insn)
}

fn stc(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    cx.cpu.arithmetic_flags |= CF;
    next(cx, insn)
}

fn cmc(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    cx.cpu.arithmetic_flags ^= CF;
    next(cx, insn)
}

fn cld(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    cx.cpu.direction_flag = 0;
    next(cx, insn)
}

fn std(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    cx.cpu.direction_flag = 1;
    next(cx, insn)
}

const LOW_BYTE: u64 = SF | ZF | AF | PF | CF;

fn lahf(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let flags = (cx.cpu.arithmetic_flags & LOW_BYTE) | RESERVED_1;
    let rax = &mut cx.cpu.gpr[Gpr::RAX];
    *rax = (*rax & !0xff00) | flags << 8;
    next(cx, insn)
}

fn sahf(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let flags = (cx.cpu.gpr[Gpr::RAX] >> 8) & LOW_BYTE;
    cx.cpu.arithmetic_flags = (cx.cpu.arithmetic_flags & !LOW_BYTE) | flags;
    next(cx, insn)
}

/// SALC: AL becomes all ones if CF, else 0.
fn salc(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let value = if cx.cpu.arithmetic_flags & CF != 0 {
        0xff
    } else {
        0
    };
    write_gpr(cx.cpu, Gpr::RAX, 1, value);
    next(cx, insn)
}

fn flags_size(insn: &Instruction) -> usize {
    match insn.code() {
        Code::Pushfw | Code::Popfw => 2,
        Code::Pushfd | Code::Popfd => 4,
        _ => 8,
    }
}

/// How virtual-8086 mode lets PUSHF and POPF through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Virtual8086 {
    /// Not in that mode, or IOPL is 3.
    No,
    /// IOPL is below 3, and CR4.VME replaces IF with VIF.
    Extended,
}

/// #GP(0) where virtual-8086 mode leaves the instruction to its monitor.
fn virtual8086(cx: &Context<'_>, size: usize) -> Result<Virtual8086, Exception> {
    if !cx.cpu.mode.has(Mode::VM86) || cx.cpu.system_flags & IOPL == IOPL {
        Ok(Virtual8086::No)
    } else if cx.cpu.control.cr4 & CR4_VME != 0 && size == 2 {
        Ok(Virtual8086::Extended)
    } else {
        Err(Exception::general_protection(0))
    }
}

fn pushf(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = flags_size(insn);
    let mut image = cx.cpu.rflags() & !(VM | RF);
    if virtual8086(cx, size)? == Virtual8086::Extended {
        image = (image & !IF) | IOPL;
        if image & VIF != 0 {
            image |= IF;
        }
    }
    push(cx, size, image)?;
    next(cx, insn)
}

fn popf(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = flags_size(insn);
    let extended = virtual8086(cx, size)? == Virtual8086::Extended;
    let (image, pointer) = pop_at(cx, cx.cpu.gpr[Gpr::RSP], size)?;
    let mut image = image & !RF;
    let mut mask = ARITHMETIC | TF | DF | NT | RF;
    if size > 2 {
        mask |= AC | ID;
    }
    if extended {
        let pending = cx.cpu.system_flags & VIP != 0;
        if (pending && image & IF != 0) || image & TF != 0 {
            return Err(Exception::general_protection(0));
        }
        mask |= VIF;
        image &= !VIF;
        if image & IF != 0 {
            image |= VIF;
        }
    } else {
        let cpl = u64::from(cx.cpu.cpl());
        let iopl = (cx.cpu.system_flags & IOPL) >> 12;
        if cpl <= iopl {
            mask |= IF;
        }
        if cpl == 0 {
            mask |= IOPL;
        }
    }
    write_stack_pointer(cx.cpu, pointer);
    cx.cpu.set_rflags(image, mask);
    next(cx, insn)
}
