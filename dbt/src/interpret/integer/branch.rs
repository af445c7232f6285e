//! Near jumps, calls, returns and loops. Far ones belong to the system instructions.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::flags::condition;
use super::stack::{pop_at, push, stack_mask, write_stack_pointer};
use crate::guest::flags::ZF;
use crate::guest::{Exception, Mode, Register as Gpr, SegmentIndex};
use crate::interpret::Context;
use crate::interpret::address::is_canonical;
use crate::interpret::operand::{
    next, next_rip, operand_size, read_gpr, read_operand, row, size_mask, write_gpr,
};
use crate::interpret::system::shared_mnemonic;
use crate::record::Row;

pub(crate) const ROWS: &[Row] = &[
    row(Mnemonic::Call, call),
    row(Mnemonic::Ja, jcc),
    row(Mnemonic::Jae, jcc),
    row(Mnemonic::Jb, jcc),
    row(Mnemonic::Jbe, jcc),
    row(Mnemonic::Jcxz, jump_if_count_zero),
    row(Mnemonic::Je, jcc),
    row(Mnemonic::Jecxz, jump_if_count_zero),
    row(Mnemonic::Jg, jcc),
    row(Mnemonic::Jge, jcc),
    row(Mnemonic::Jl, jcc),
    row(Mnemonic::Jle, jcc),
    row(Mnemonic::Jmp, jmp),
    row(Mnemonic::Jne, jcc),
    row(Mnemonic::Jno, jcc),
    row(Mnemonic::Jnp, jcc),
    row(Mnemonic::Jns, jcc),
    row(Mnemonic::Jo, jcc),
    row(Mnemonic::Jp, jcc),
    row(Mnemonic::Jrcxz, jump_if_count_zero),
    row(Mnemonic::Js, jcc),
    row(Mnemonic::Loop, loop_count),
    row(Mnemonic::Loope, loop_count),
    row(Mnemonic::Loopne, loop_count),
    row(Mnemonic::Ret, ret),
];

type Done = Result<(), Exception>;

/// #GP(0) unless a near branch may go there: canonical, or within CS's limit.
pub(crate) fn check_target(cx: &Context<'_>, target: u64) -> Done {
    let allowed = if cx.cpu.mode.has(Mode::CODE64) {
        is_canonical(target)
    } else {
        target <= u64::from(cx.cpu.segment(SegmentIndex::Cs).limit)
    };
    if allowed {
        Ok(())
    } else {
        Err(Exception::general_protection(0))
    }
}

/// Goes to a near target, already cut to the operand size.
pub(crate) fn branch_to(cx: &mut Context<'_>, target: u64) -> Done {
    check_target(cx, target)?;
    cx.cpu.rip = target;
    Ok(())
}

/// The target of a near jump or call: encoded, in a register or in memory.
fn near_target(cx: &mut Context<'_>, insn: &Instruction) -> Result<u64, Exception> {
    match insn.op0_kind() {
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
            Ok(insn.near_branch_target())
        }
        _ => {
            let size = operand_size(insn, 0);
            read_operand(cx, insn, 0, size)
        }
    }
}

fn jmp(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    if let Some(far) = shared_mnemonic(insn.code()) {
        return far(cx, insn);
    }
    let target = near_target(cx, insn)?;
    branch_to(cx, target)
}

fn call(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    if let Some(far) = shared_mnemonic(insn.code()) {
        return far(cx, insn);
    }
    let size = match insn.code() {
        Code::Call_rel16 | Code::Call_rm16 => 2,
        Code::Call_rel32_32 | Code::Call_rm32 => 4,
        _ => 8,
    };
    let target = near_target(cx, insn)?;
    check_target(cx, target)?;
    let link = next_rip(cx, insn);
    push(cx, size, link)?;
    cx.cpu.rip = target;
    Ok(())
}

fn ret(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let (size, release) = match insn.code() {
        Code::Retnw => (2, 0),
        Code::Retnd => (4, 0),
        Code::Retnq => (8, 0),
        Code::Retnw_imm16 => (2, insn.immediate16()),
        Code::Retnd_imm16 => (4, insn.immediate16()),
        _ => (8, insn.immediate16()),
    };
    let (target, pointer) = pop_at(cx, cx.cpu.gpr[Gpr::RSP], size)?;
    check_target(cx, target)?;
    let pointer = pointer.wrapping_add(u64::from(release)) & stack_mask(cx.cpu.mode);
    write_stack_pointer(cx.cpu, pointer);
    cx.cpu.rip = target;
    Ok(())
}

fn branch_if(cx: &mut Context<'_>, insn: &Instruction, taken: bool) -> Done {
    if taken {
        branch_to(cx, insn.near_branch_target())
    } else {
        next(cx, insn)
    }
}

fn jcc(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let taken = condition(insn.condition_code(), cx.cpu.arithmetic_flags);
    branch_if(cx, insn, taken)
}

/// Bytes of RCX that LOOP, JRCXZ and their like count or look at.
pub fn count_size(insn: &Instruction) -> usize {
    match insn.code() {
        Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX
        | Code::Jcxz_rel8_16
        | Code::Jcxz_rel8_32 => 2,
        Code::Loop_rel8_16_RCX
        | Code::Loop_rel8_64_RCX
        | Code::Loope_rel8_16_RCX
        | Code::Loope_rel8_64_RCX
        | Code::Loopne_rel8_16_RCX
        | Code::Loopne_rel8_64_RCX
        | Code::Jrcxz_rel8_16
        | Code::Jrcxz_rel8_64 => 8,
        _ => 4,
    }
}

fn jump_if_count_zero(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let taken = read_gpr(cx.cpu, Gpr::RCX, count_size(insn)) == 0;
    branch_if(cx, insn, taken)
}

fn loop_count(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = count_size(insn);
    let count = read_gpr(cx.cpu, Gpr::RCX, size).wrapping_sub(1) & size_mask(size);
    let zero = cx.cpu.arithmetic_flags & ZF != 0;
    let wanted = match insn.mnemonic() {
        Mnemonic::Loope => zero,
        Mnemonic::Loopne => !zero,
        _ => true,
    };
    branch_if(cx, insn, count != 0 && wanted)?;
    write_gpr(cx.cpu, Gpr::RCX, size, count);
    Ok(())
}
