//! MOV and POP to segment registers, MOV from them, and LDS, LES, LFS, LGS, LSS
//! (SDM volume 2).

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::debug::SHADOW_MOV_SS;
use super::far::read_far_pointer;
use super::segments::{Loading, check_load};
use super::stack::Stack;
use crate::guest::{Exception, SegmentIndex};
use crate::interpret::Context;
use crate::interpret::address::segment_index;
use crate::interpret::operand::{
    next, read_operand, register_size, row, write_operand, write_register,
};
use crate::record::Row;

pub(crate) const ROWS: &[Row] = &[
    row(Mnemonic::Lds, load_far_pointer),
    row(Mnemonic::Les, load_far_pointer),
    row(Mnemonic::Lfs, load_far_pointer),
    row(Mnemonic::Lgs, load_far_pointer),
    row(Mnemonic::Lss, load_far_pointer),
];

fn load(cx: &mut Context<'_>, index: SegmentIndex, loading: Loading) -> Result<(), Exception> {
    loading.mark_accessed(cx)?;
    *cx.cpu.segment_mut(index) = loading.segment;
    cx.cpu.refresh_mode();
    Ok(())
}

/// After MOV SS and POP SS interrupts and debug traps wait for one instruction (SDM volume 3,
/// 6.8.3), so that the stack pointer can follow.
fn shadow(cx: &mut Context<'_>, index: SegmentIndex) {
    if index == SegmentIndex::Ss {
        cx.cpu.interrupt_shadow = SHADOW_MOV_SS;
        cx.cpu.step_suppressed = 1;
    }
}

fn target(insn: &Instruction) -> Result<SegmentIndex, Exception> {
    match segment_index(insn.op0_register()) {
        Some(SegmentIndex::Cs) | None => Err(Exception::invalid_opcode()),
        Some(index) => Ok(index),
    }
}

/// MOV Sreg, r/m16.
pub fn move_to_segment(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let index = target(insn)?;
    let selector = read_operand(cx, insn, 1, 2)? as u16;
    let loading = check_load(cx, index, selector)?;
    load(cx, index, loading)?;
    shadow(cx, index);
    next(cx, insn)
}

/// MOV r/m, Sreg: 16 bits to memory, zero-extended to a register.
pub fn store_selector(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let selector = segment_index(insn.op1_register())
        .map(|index| cx.cpu.segment(index).selector)
        .ok_or(Exception::invalid_opcode())?;
    write_operand(cx, insn, 0, 2, u64::from(selector))?;
    next(cx, insn)
}

/// POP Sreg.
pub fn pop_segment(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let index = target(insn)?;
    let size = insn.stack_pointer_increment() as u64;
    let mut stack = Stack::current(cx.cpu);
    // Only the selector is read, whatever the operand size.
    let selector = stack.pop(cx, 2)? as u16;
    stack.skip(size.wrapping_sub(2));
    let loading = check_load(cx, index, selector)?;
    loading.mark_accessed(cx)?;
    stack.store_pointer(cx.cpu);
    *cx.cpu.segment_mut(index) = loading.segment;
    cx.cpu.refresh_mode();
    shadow(cx, index);
    next(cx, insn)
}

fn load_far_pointer(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let index = match insn.mnemonic() {
        Mnemonic::Lds => SegmentIndex::Ds,
        Mnemonic::Les => SegmentIndex::Es,
        Mnemonic::Lfs => SegmentIndex::Fs,
        Mnemonic::Lgs => SegmentIndex::Gs,
        _ => SegmentIndex::Ss,
    };
    if insn.op1_kind() != OpKind::Memory {
        return Err(Exception::invalid_opcode());
    }
    let size = register_size(insn.op0_register()) as u8;
    let (selector, offset) = read_far_pointer(cx, insn, 1, size)?;
    let loading = check_load(cx, index, selector)?;
    load(cx, index, loading)?;
    write_register(cx.cpu, insn.op0_register(), offset);
    next(cx, insn)
}
