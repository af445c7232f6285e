//! Moves under a mask: an element whose mask bit is clear is not accessed, and faults not.

use iced_x86::{Instruction, Mnemonic, Register};
use mmu::Linear;

use super::Done;
use super::environment::check_pending;
use super::x87::X87;
use crate::guest::{CpuState, Exception};
use crate::interpret::address::{linear_displaced, segment_linear, segment_offset};
use crate::interpret::operand::{next, row};
use crate::interpret::{Access, Context, extension};
use crate::record::Row;

pub(super) const ROWS: &[Row] = &[
    row(Mnemonic::Maskmovq, maskmovq),
    row(Mnemonic::Maskmovdqu, maskmovdqu),
    row(Mnemonic::Vmaskmovdqu, maskmovdqu),
    row(Mnemonic::Vmaskmovps, vector::<4>),
    row(Mnemonic::Vmaskmovpd, vector::<8>),
    row(Mnemonic::Vpmaskmovd, vector::<4>),
    row(Mnemonic::Vpmaskmovq, vector::<8>),
];

/// Number of an XMM or YMM register.
pub(super) fn vector_number(register: Register) -> usize {
    let register = register as usize;
    let first = if register >= Register::YMM0 as usize {
        Register::YMM0
    } else {
        Register::XMM0
    };
    (register - first as usize) % 16
}

/// The bytes of a vector register.
pub(super) fn vector_bytes(cpu: &CpuState, register: Register) -> [u8; 32] {
    let mut bytes = [0; 32];
    let lanes = cpu.vector.ymm[vector_number(register)];
    for (slot, lane) in bytes.chunks_exact_mut(8).zip(lanes) {
        slot.copy_from_slice(&lane.to_le_bytes());
    }
    bytes
}

/// Sets all 32 bytes of a vector register.
pub(super) fn set_vector_bytes(cpu: &mut CpuState, register: Register, bytes: &[u8; 32]) {
    let lanes = &mut cpu.vector.ymm[vector_number(register)];
    for (lane, slot) in lanes.iter_mut().zip(bytes.chunks_exact(8)) {
        *lane = u64::from_le_bytes(slot.try_into().unwrap_or_default());
    }
}

/// Stores the elements that the mask selects, all or none.
fn store_selected(
    cx: &mut Context<'_>,
    selected: &[(Linear, std::ops::Range<usize>)],
    bytes: &[u8],
) -> Done {
    for (at, range) in selected {
        cx.authorise_write(*at, range.len())?;
    }
    for (at, range) in selected {
        cx.store_bytes(*at, &bytes[range.clone()])?;
    }
    Ok(())
}

/// The bytes at DS:RDI whose mask byte has its top bit set.
fn store_bytes_under_mask(
    cx: &mut Context<'_>,
    insn: &Instruction,
    bytes: &[u8],
    mask: &[u8],
) -> Done {
    let (segment, start) = segment_offset(cx.cpu, insn, 0);
    let limit = match insn.op0_kind() {
        iced_x86::OpKind::MemorySegDI => 0xffff,
        iced_x86::OpKind::MemorySegEDI => 0xffff_ffff,
        _ => u64::MAX,
    };
    let mut selected = Vec::new();
    for (index, byte) in mask.iter().enumerate() {
        if byte & 0x80 != 0 {
            let offset = start.wrapping_add(index as u64) & limit;
            let at = segment_linear(cx, segment, offset, 1, Access::Write)?;
            selected.push((at, index..index + 1));
        }
    }
    store_selected(cx, &selected, bytes)
}

fn maskmovdqu(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    extension::check_enabled(cx, insn)?;
    let bytes = vector_bytes(cx.cpu, insn.op_register(1));
    let mask = vector_bytes(cx.cpu, insn.op_register(2));
    store_bytes_under_mask(cx, insn, &bytes[..16], &mask[..16])?;
    next(cx, insn)
}

fn maskmovq(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    extension::check_enabled(cx, insn)?;
    if cx.cpu.control.cr0 & crate::guest::flags::CR0_EM != 0 {
        return Err(Exception::invalid_opcode());
    }
    check_pending(cx.cpu)?;
    let mut x87 = X87::of(cx.cpu);
    // MMX registers are the physical ones; an image has them in stack order.
    let turn = (8 - x87.top()) % 8;
    x87.registers.rotate_left(16 * turn);
    let bytes = |register: Register| {
        let at = 16 * (register as usize - Register::MM0 as usize);
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&x87.registers[at..at + 8]);
        bytes
    };
    let (value, mask) = (bytes(insn.op_register(1)), bytes(insn.op_register(2)));
    store_bytes_under_mask(cx, insn, &value, &mask)?;
    // As every MMX instruction: TOP is 0, nothing is empty.
    x87.status &= !0x3800;
    x87.tags = 0xff;
    x87.load(cx.cpu);
    next(cx, insn)
}

/// Elements of `SIZE` bytes, loaded or stored by the direction that the operands show.
fn vector<const SIZE: usize>(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    extension::check_enabled(cx, insn)?;
    let load = insn.op0_kind() == iced_x86::OpKind::Register;
    let other = insn.op_register(if load { 0 } else { 2 });
    let mask = vector_bytes(cx.cpu, insn.op_register(1));
    let access = if load { Access::Read } else { Access::Write };
    let mut selected = Vec::new();
    for start in (0..other.size()).step_by(SIZE) {
        if mask[start + SIZE - 1] & 0x80 != 0 {
            let at = linear_displaced(cx, insn, start as u64, SIZE, access)?;
            selected.push((at, start..start + SIZE));
        }
    }
    if load {
        let mut bytes = [0; 32];
        for (at, range) in selected {
            cx.load_bytes(at, &mut bytes[range])?;
        }
        set_vector_bytes(cx.cpu, other, &bytes);
    } else {
        let bytes = vector_bytes(cx.cpu, other);
        store_selected(cx, &selected, &bytes)?;
    }
    next(cx, insn)
}
