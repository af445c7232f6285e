//! PUSH, POP and their relatives (SDM volume 1, 6.2).

use iced_x86::{Code, Instruction, Mnemonic};

use crate::guest::{CpuState, Exception, Mode, Register as Gpr, SegmentIndex};
use crate::interpret::address::segment_linear;
use crate::interpret::operand::{next, read_gpr, read_operand, row, write_gpr, write_operand};
use crate::interpret::system::shared_mnemonic;
use crate::interpret::{Access, Context};
use crate::record::Row;
use crate::record::classify::frames;

pub(crate) const ROWS: &[Row] = &[
    row(Mnemonic::Enter, enter),
    row(Mnemonic::Leave, leave),
    row(Mnemonic::Pop, pop_operand),
    row(Mnemonic::Popa, popa),
    row(Mnemonic::Popad, popa),
    row(Mnemonic::Push, push_operand),
    row(Mnemonic::Pusha, pusha),
    row(Mnemonic::Pushad, pusha),
];

type Done = Result<(), Exception>;

/// All ones over the stack pointer's width.
#[inline]
pub(crate) fn stack_mask(mode: Mode) -> u64 {
    if mode.has(Mode::CODE64) {
        u64::MAX
    } else if mode.has(Mode::WIDE_STACK) {
        0xffff_ffff
    } else {
        0xffff
    }
}

/// Bytes in the stack pointer.
pub(crate) fn stack_width(mode: Mode) -> usize {
    if mode.has(Mode::CODE64) {
        8
    } else if mode.has(Mode::WIDE_STACK) {
        4
    } else {
        2
    }
}

/// Sets SP, ESP or RSP.
#[inline]
pub(crate) fn write_stack_pointer(cpu: &mut CpuState, pointer: u64) {
    let width = stack_width(cpu.mode);
    write_gpr(cpu, Gpr::RSP, width, pointer);
}

/// Pushes `size` (2, 4 or 8) bytes.
#[inline]
pub(crate) fn push(cx: &mut Context<'_>, size: usize, value: u64) -> Done {
    let pointer = cx.cpu.gpr[Gpr::RSP].wrapping_sub(size as u64) & stack_mask(cx.cpu.mode);
    let address = segment_linear(cx, SegmentIndex::Ss, pointer, size, Access::Write)?;
    cx.store(address, size, value)?;
    write_stack_pointer(cx.cpu, pointer);
    Ok(())
}

/// Pushes a selector: with 32-bit operands a word, as Intel's processors do (SDM volume 2, PUSH),
/// so that the bytes above it stay as they were.
fn push_selector(cx: &mut Context<'_>, size: usize, selector: u64) -> Done {
    let written = if size == 4 { 2 } else { size };
    let pointer = cx.cpu.gpr[Gpr::RSP].wrapping_sub(size as u64) & stack_mask(cx.cpu.mode);
    let address = segment_linear(cx, SegmentIndex::Ss, pointer, written, Access::Write)?;
    cx.store(address, written, selector)?;
    write_stack_pointer(cx.cpu, pointer);
    Ok(())
}

/// Loads `size` bytes from a place in the stack: the value, and the stack pointer above it.
#[inline]
pub(crate) fn pop_at(
    cx: &mut Context<'_>,
    pointer: u64,
    size: usize,
) -> Result<(u64, u64), Exception> {
    let mask = stack_mask(cx.cpu.mode);
    let pointer = pointer & mask;
    let address = segment_linear(cx, SegmentIndex::Ss, pointer, size, Access::Read)?;
    let value = cx.load(address, size)?;
    Ok((value, pointer.wrapping_add(size as u64) & mask))
}

/// Pops `size` (2, 4 or 8) bytes.
#[inline]
pub(crate) fn pop(cx: &mut Context<'_>, size: usize) -> Result<u64, Exception> {
    let (value, pointer) = pop_at(cx, cx.cpu.gpr[Gpr::RSP], size)?;
    write_stack_pointer(cx.cpu, pointer);
    Ok(value)
}

/// Bytes that one PUSH or POP moves the stack pointer by.
#[inline]
fn stack_step(insn: &Instruction) -> usize {
    match insn.stack_pointer_increment().unsigned_abs() {
        2 => 2,
        4 => 4,
        _ => 8,
    }
}

fn push_operand(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = stack_step(insn);
    // A segment register is read as its selector and zero-extended.
    let value = read_operand(cx, insn, 0, size)?;
    if insn.op0_register().is_segment_register() {
        push_selector(cx, size, value)?;
    } else {
        push(cx, size, value)?;
    }
    next(cx, insn)
}

fn pop_operand(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    if let Some(execute) = shared_mnemonic(insn.code()) {
        return execute(cx, insn);
    }
    let size = stack_step(insn);
    let before = cx.cpu.gpr[Gpr::RSP];
    let value = pop(cx, size)?;
    // The destination's address is computed with the incremented stack pointer.
    if let Err(fault) = write_operand(cx, insn, 0, size, value) {
        cx.cpu.gpr[Gpr::RSP] = before;
        return Err(fault);
    }
    next(cx, insn)
}

fn all_registers_size(insn: &Instruction) -> usize {
    if matches!(insn.code(), Code::Pushaw | Code::Popaw) {
        2
    } else {
        4
    }
}

fn pusha(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = all_registers_size(insn);
    let mask = stack_mask(cx.cpu.mode);
    let mut pointer = cx.cpu.gpr[Gpr::RSP] & mask;
    // The stack may wrap between two pushes, so each has an address of its own.
    let mut slots = [mmu::Linear(0); 8];
    for slot in &mut slots {
        pointer = pointer.wrapping_sub(size as u64) & mask;
        *slot = segment_linear(cx, SegmentIndex::Ss, pointer, size, Access::Write)?;
        cx.authorise_write(*slot, size)?;
    }
    for (number, slot) in slots.into_iter().enumerate() {
        let value = read_gpr(cx.cpu, number, size);
        cx.store(slot, size, value)?;
    }
    write_stack_pointer(cx.cpu, pointer);
    next(cx, insn)
}

fn popa(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = all_registers_size(insn);
    let mut pointer = cx.cpu.gpr[Gpr::RSP];
    let mut values = [0; 8];
    for value in values.iter_mut().rev() {
        (*value, pointer) = pop_at(cx, pointer, size)?;
    }
    for (number, value) in values.into_iter().enumerate() {
        if number != Gpr::RSP {
            write_gpr(cx.cpu, number, size, value);
        }
    }
    write_stack_pointer(cx.cpu, pointer);
    next(cx, insn)
}

fn enter(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = match insn.code() {
        Code::Enterw_imm16_imm8 => 2,
        Code::Enterd_imm16_imm8 => 4,
        _ => 8,
    };
    let mask = stack_mask(cx.cpu.mode);
    let level = u64::from(frames(insn));
    let old = (cx.cpu.gpr[Gpr::RSP], cx.cpu.gpr[Gpr::RBP]);
    let below = |pointer: u64, slots: u64| pointer.wrapping_sub(slots * size as u64) & mask;
    let slot = |cx: &Context<'_>, pointer: u64, access: Access| {
        segment_linear(cx, SegmentIndex::Ss, pointer, size, access)
    };
    let pushes = if level > 0 { level + 1 } else { 1 };
    let pointer = below(old.0, pushes).wrapping_sub(u64::from(insn.immediate16())) & mask;
    // All rights come first. The new top of the stack has to be writable too, although nothing
    // is written there.
    for number in 1..=pushes {
        let address = slot(cx, below(old.0, number), Access::Write)?;
        cx.authorise_write(address, size)?;
    }
    for number in 1..level {
        let address = slot(cx, below(old.1, number), Access::Read)?;
        cx.load(address, size)?;
    }
    let top = slot(cx, pointer, Access::Write)?;
    cx.authorise_write(top, size)?;
    // The old frames may overlap the new one: each is loaded when its turn has come.
    let frame = (old.0 & !mask) | below(old.0, 1);
    for number in 1..=pushes {
        let value = if number == 1 {
            old.1
        } else if number == pushes {
            frame
        } else {
            let address = slot(cx, below(old.1, number - 1), Access::Read)?;
            cx.load(address, size)?
        };
        let address = slot(cx, below(old.0, number), Access::Write)?;
        cx.store(address, size, value)?;
    }
    write_stack_pointer(cx.cpu, pointer);
    write_gpr(cx.cpu, Gpr::RBP, size, frame);
    next(cx, insn)
}

fn leave(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = match insn.code() {
        Code::Leavew => 2,
        Code::Leaved => 4,
        _ => 8,
    };
    let (value, pointer) = pop_at(cx, cx.cpu.gpr[Gpr::RBP], size)?;
    write_stack_pointer(cx.cpu, pointer);
    write_gpr(cx.cpu, Gpr::RBP, size, value);
    next(cx, insn)
}
