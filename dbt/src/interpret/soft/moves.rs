//! Moves between vector registers, general registers and memory, and the moves of masks.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::operand::{
    check_mmx, enter_mmx, lane, place, read, set_xmm, uses_mmx, with_lane, write, xmm,
};
use crate::guest::Exception;
use crate::interpret::operand::next;
use crate::interpret::{Access, Context};

type Done = Result<(), Exception>;

const LOW: u128 = u64::MAX as u128;

/// Whole registers, or all of `size` bytes in memory; what a register has beyond is cleared.
fn whole(cx: &mut Context<'_>, insn: &Instruction, size: usize) -> Done {
    let mmx = uses_mmx(insn);
    if mmx {
        check_mmx(cx.cpu)?;
    }
    let value = read(cx, insn, 1, size)? & (u128::MAX >> (128 - 8 * size));
    if insn.op0_kind() == OpKind::Memory {
        write(cx, insn, 0, size, value)?;
        if mmx {
            enter_mmx(cx.cpu);
        }
    } else {
        if mmx {
            enter_mmx(cx.cpu);
        }
        write(cx, insn, 0, size, value)?;
    }
    next(cx, insn)
}

/// MOVSS and MOVSD: between registers the rest stays, a load clears it.
fn scalar(cx: &mut Context<'_>, insn: &Instruction, bits: u32) -> Done {
    let size = bits as usize / 8;
    let value = read(cx, insn, 1, size)?;
    if insn.op0_kind() == OpKind::Register && insn.op1_kind() == OpKind::Register {
        let target = insn.op0_register();
        let result = with_lane(xmm(cx.cpu, target), bits, 0, lane(value, bits, 0));
        set_xmm(cx.cpu, target, result);
    } else {
        write(cx, insn, 0, size, value)?;
    }
    next(cx, insn)
}

/// MOVLPS, MOVHPS and their kin: one half, to or from memory or (MOVHLPS, MOVLHPS) the other
/// half of a register.
fn half(cx: &mut Context<'_>, insn: &Instruction, high: bool) -> Done {
    if insn.op0_kind() == OpKind::Memory {
        let value = read(cx, insn, 1, 16)?;
        write(cx, insn, 0, 8, if high { value >> 64 } else { value & LOW })?;
        return next(cx, insn);
    }
    let mut value = read(cx, insn, 1, 8)?;
    if insn.op1_kind() == OpKind::Register && !high {
        value >>= 64;
    }
    let target = insn.op0_register();
    let result = with_lane(xmm(cx.cpu, target), 64, u32::from(high), value as u64);
    set_xmm(cx.cpu, target, result);
    next(cx, insn)
}

/// MOVSLDUP, MOVSHDUP and MOVDDUP (SSE3).
fn duplicate(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let (bits, size, odd) = match insn.mnemonic() {
        Mnemonic::Movddup => (64, 8, 0),
        Mnemonic::Movshdup => (32, 16, 1),
        _ => (32, 16, 0),
    };
    let value = read(cx, insn, 1, size)?;
    let result = (0..128 / bits).fold(0, |result, index| {
        with_lane(result, bits, index, lane(value, bits, index & !1 | odd))
    });
    set_xmm(cx.cpu, insn.op0_register(), result);
    next(cx, insn)
}

/// MOVMSKPS, MOVMSKPD, PMOVMSKB: the signs of all lanes.
fn signs(cx: &mut Context<'_>, insn: &Instruction, bits: u32) -> Done {
    let mmx = uses_mmx(insn);
    if mmx {
        check_mmx(cx.cpu)?;
    }
    let value = read(cx, insn, 1, 16)?;
    let width = if mmx { 64 } else { 128 };
    let mask = (0..width / bits).fold(0u128, |mask, index| {
        mask | u128::from(lane(value, bits, index) >> (bits - 1)) << index
    });
    if mmx {
        enter_mmx(cx.cpu);
    }
    write(cx, insn, 0, 8, mask)?;
    next(cx, insn)
}

/// PEXTRB, PEXTRW, PEXTRD, PEXTRQ and EXTRACTPS.
fn extract(cx: &mut Context<'_>, insn: &Instruction, bits: u32) -> Done {
    let mmx = uses_mmx(insn);
    if mmx {
        check_mmx(cx.cpu)?;
    }
    let value = read(cx, insn, 1, 16)?;
    let count = if mmx { 64 } else { 128 } / bits;
    let index = insn.immediate(2) as u32 & (count - 1);
    if mmx {
        enter_mmx(cx.cpu);
    }
    let size = bits as usize / 8;
    write(cx, insn, 0, size, u128::from(lane(value, bits, index)))?;
    next(cx, insn)
}

/// PINSRB, PINSRW, PINSRD, PINSRQ.
fn insert(cx: &mut Context<'_>, insn: &Instruction, bits: u32) -> Done {
    let mmx = uses_mmx(insn);
    if mmx {
        check_mmx(cx.cpu)?;
    }
    let value = read(cx, insn, 1, bits as usize / 8)?;
    let before = read(cx, insn, 0, 16)?;
    let count = if mmx { 64 } else { 128 } / bits;
    let index = insn.immediate(2) as u32 & (count - 1);
    if mmx {
        enter_mmx(cx.cpu);
    }
    write(
        cx,
        insn,
        0,
        16,
        with_lane(before, bits, index, value as u64),
    )?;
    next(cx, insn)
}

/// INSERTPS (SSE4.1).
fn insert_single(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let control = insn.immediate(2) as u32;
    let source = read(cx, insn, 1, 4)?;
    let from = if insn.op1_kind() == OpKind::Register {
        control >> 6 & 3
    } else {
        0
    };
    let target = insn.op0_register();
    let value = lane(source, 32, from);
    let mut result = with_lane(xmm(cx.cpu, target), 32, control >> 4 & 3, value);
    for index in (0..4).filter(|index| control >> index & 1 != 0) {
        result = with_lane(result, 32, index, 0);
    }
    set_xmm(cx.cpu, target, result);
    next(cx, insn)
}

/// MOVQ2DQ and MOVDQ2Q.
fn between(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    check_mmx(cx.cpu)?;
    let value = read(cx, insn, 1, 8)? & LOW;
    enter_mmx(cx.cpu);
    write(cx, insn, 0, 8, value)?;
    next(cx, insn)
}

fn emms(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    check_mmx(cx.cpu)?;
    enter_mmx(cx.cpu);
    cx.cpu.vector.fxsave.0[4] = 0;
    next(cx, insn)
}

fn stmxcsr(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let at = place(cx, insn, 0, 4, Access::Write)?;
    cx.store(at, 4, u64::from(cx.cpu.vector.mxcsr))?;
    next(cx, insn)
}

/// Executes a move; `None` if it is none.
pub fn execute(cx: &mut Context<'_>, insn: &Instruction) -> Option<Done> {
    use Mnemonic as M;
    Some(match insn.mnemonic() {
        M::Movaps
        | M::Movapd
        | M::Movups
        | M::Movupd
        | M::Movdqa
        | M::Movdqu
        | M::Lddqu
        | M::Movntps
        | M::Movntpd
        | M::Movntdq
        | M::Movntdqa => whole(cx, insn, 16),
        M::Movq | M::Movntq => whole(cx, insn, 8),
        // With REX.W it moves eight bytes.
        M::Movd
            if matches!(
                insn.code(),
                Code::Movq_xmm_rm64 | Code::Movq_rm64_xmm | Code::Movq_mm_rm64 | Code::Movq_rm64_mm
            ) =>
        {
            whole(cx, insn, 8)
        }
        M::Movd => whole(cx, insn, 4),
        M::Movnti => {
            let size = if insn.code() == Code::Movnti_m64_r64 {
                8
            } else {
                4
            };
            whole(cx, insn, size)
        }
        M::Movss => scalar(cx, insn, 32),
        M::Movsd => scalar(cx, insn, 64),
        M::Movlps | M::Movlpd | M::Movhlps => half(cx, insn, false),
        M::Movhps | M::Movhpd | M::Movlhps => half(cx, insn, true),
        M::Movsldup | M::Movshdup | M::Movddup => duplicate(cx, insn),
        M::Movmskps => signs(cx, insn, 32),
        M::Movmskpd => signs(cx, insn, 64),
        M::Pmovmskb => signs(cx, insn, 8),
        M::Pextrb => extract(cx, insn, 8),
        M::Pextrw => extract(cx, insn, 16),
        M::Pextrd | M::Extractps => extract(cx, insn, 32),
        M::Pextrq => extract(cx, insn, 64),
        M::Pinsrb => insert(cx, insn, 8),
        M::Pinsrw => insert(cx, insn, 16),
        M::Pinsrd => insert(cx, insn, 32),
        M::Pinsrq => insert(cx, insn, 64),
        M::Insertps => insert_single(cx, insn),
        M::Movq2dq | M::Movdq2q => between(cx, insn),
        M::Emms => emms(cx, insn),
        M::Stmxcsr => stmxcsr(cx, insn),
        _ => return None,
    })
}
