//! Operands of integer instructions: registers, immediates, memory.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use mmu::Linear;

use super::address::{linear, segment_index};
use super::{Access, Context};
use crate::guest::{CodeSize, CpuState, Exception, Mode};
use crate::record::{Execute, Row};

/// A row of the instruction table.
pub(super) const fn row(mnemonic: Mnemonic, execute: Execute) -> Row {
    Row { mnemonic, execute }
}

/// All ones over `size` (1 to 8) bytes.
#[inline]
pub const fn size_mask(size: usize) -> u64 {
    u64::MAX >> (64 - 8 * size)
}

/// Sign-extends the low `size` bytes.
#[inline]
pub const fn sign_extend(value: u64, size: usize) -> u64 {
    let shift = 64 - 8 * size;
    (((value << shift) as i64) >> shift) as u64
}

/// All ones over an instruction pointer of the current code segment.
#[inline]
pub fn code_mask(mode: Mode) -> u64 {
    match mode.code_size() {
        CodeSize::Bits64 => u64::MAX,
        CodeSize::Bits32 => 0xffff_ffff,
        CodeSize::Bits16 => 0xffff,
    }
}

/// The offset of the instruction that follows.
#[inline]
pub fn next_rip(cx: &Context<'_>, insn: &Instruction) -> u64 {
    insn.next_ip() & code_mask(cx.cpu.mode)
}

/// Completes an instruction: RIP moves to the following one.
#[inline]
pub fn next(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    cx.cpu.rip = next_rip(cx, insn);
    Ok(())
}

/// #UD where LOCK is not allowed: on anything but a read-modify-write of memory by one of a
/// few instructions (SDM volume 2, LOCK). The decoder refuses these too unless told not to.
pub fn check_lock(insn: &Instruction) -> Result<(), Exception> {
    use Mnemonic as M;
    let lockable = matches!(
        insn.mnemonic(),
        M::Adc
            | M::Add
            | M::And
            | M::Btc
            | M::Btr
            | M::Bts
            | M::Cmpxchg
            | M::Cmpxchg8b
            | M::Cmpxchg16b
            | M::Dec
            | M::Inc
            | M::Neg
            | M::Not
            | M::Or
            | M::Sbb
            | M::Sub
            | M::Xadd
            | M::Xchg
            | M::Xor
    );
    if insn.has_lock_prefix() && !(lockable && insn.op0_kind() == OpKind::Memory) {
        return Err(Exception::invalid_opcode());
    }
    Ok(())
}

#[inline]
fn number(register: Register, first: Register) -> usize {
    (register as usize).wrapping_sub(first as usize) & 15
}

#[inline]
fn within(register: Register, first: Register, last: Register) -> bool {
    (first..=last).contains(&register)
}

/// Bytes in a general-purpose (or segment) register.
#[inline]
pub fn register_size(register: Register) -> usize {
    if within(register, Register::RAX, Register::R15) {
        8
    } else if within(register, Register::EAX, Register::R15D) {
        4
    } else if within(register, Register::AX, Register::R15W) {
        2
    } else if within(register, Register::AL, Register::R15L) {
        1
    } else {
        2
    }
}

/// The value of a general-purpose or segment register, zero-extended.
#[inline]
pub fn read_register(cpu: &CpuState, register: Register) -> u64 {
    if within(register, Register::RAX, Register::R15) {
        cpu.gpr[number(register, Register::RAX)]
    } else if within(register, Register::EAX, Register::R15D) {
        cpu.gpr[number(register, Register::EAX)] & 0xffff_ffff
    } else if within(register, Register::AX, Register::R15W) {
        cpu.gpr[number(register, Register::AX)] & 0xffff
    } else if within(register, Register::AH, Register::BH) {
        (cpu.gpr[number(register, Register::AH)] >> 8) & 0xff
    } else if within(register, Register::AL, Register::BL) {
        cpu.gpr[number(register, Register::AL)] & 0xff
    } else if within(register, Register::SPL, Register::R15L) {
        cpu.gpr[number(register, Register::SPL) + 4] & 0xff
    } else if let Some(segment) = segment_index(register) {
        u64::from(cpu.segment(segment).selector)
    } else {
        0
    }
}

/// Sets a general-purpose register: a 32-bit write clears the upper half, narrower ones keep
/// the rest (SDM volume 1, 3.4.1.1).
#[inline]
pub fn write_register(cpu: &mut CpuState, register: Register, value: u64) {
    let mut insert = |number: usize, mask: u64, shift: u32| {
        let slot = &mut cpu.gpr[number];
        *slot = (*slot & !(mask << shift)) | ((value & mask) << shift);
    };
    if within(register, Register::RAX, Register::R15) {
        cpu.gpr[number(register, Register::RAX)] = value;
    } else if within(register, Register::EAX, Register::R15D) {
        cpu.gpr[number(register, Register::EAX)] = value & 0xffff_ffff;
    } else if within(register, Register::AX, Register::R15W) {
        insert(number(register, Register::AX), 0xffff, 0);
    } else if within(register, Register::AH, Register::BH) {
        insert(number(register, Register::AH), 0xff, 8);
    } else if within(register, Register::AL, Register::BL) {
        insert(number(register, Register::AL), 0xff, 0);
    } else if within(register, Register::SPL, Register::R15L) {
        insert(number(register, Register::SPL) + 4, 0xff, 0);
    }
}

/// The low `size` bytes of a register by its number.
#[inline]
pub fn read_gpr(cpu: &CpuState, number: usize, size: usize) -> u64 {
    cpu.gpr[number & 15] & size_mask(size)
}

/// Sets the low `size` bytes of a register by its number, as [`write_register`] does.
#[inline]
pub fn write_gpr(cpu: &mut CpuState, number: usize, size: usize, value: u64) {
    let slot = &mut cpu.gpr[number & 15];
    *slot = match size {
        8 => value,
        4 => value & 0xffff_ffff,
        _ => (*slot & !size_mask(size)) | (value & size_mask(size)),
    };
}

/// Bytes in an operand that is a register or memory.
#[inline]
pub fn operand_size(insn: &Instruction, operand: u32) -> usize {
    if insn.op_kind(operand) == OpKind::Register {
        register_size(insn.op_register(operand))
    } else {
        insn.memory_size().size().clamp(1, 8)
    }
}

/// Where an operand is: found and checked once, then read and written.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// A register.
    Register(Register),
    /// Memory at a linear address.
    Memory(Linear),
}

impl Place {
    /// Finds an operand that is a register or memory.
    #[inline]
    pub fn of(
        cx: &Context<'_>,
        insn: &Instruction,
        operand: u32,
        size: usize,
        access: Access,
    ) -> Result<Place, Exception> {
        if insn.op_kind(operand) == OpKind::Register {
            Ok(Place::Register(insn.op_register(operand)))
        } else {
            linear(cx, insn, operand, size, access).map(Place::Memory)
        }
    }

    /// The first half of a read-modify-write: faults as the store would.
    #[inline]
    pub fn load_for_update(self, cx: &mut Context<'_>, size: usize) -> Result<u64, Exception> {
        match self {
            Place::Register(register) => Ok(read_register(cx.cpu, register)),
            Place::Memory(address) => cx.load_for_update(address, size),
        }
    }

    /// Writes the operand.
    #[inline]
    pub fn store(self, cx: &mut Context<'_>, size: usize, value: u64) -> Result<(), Exception> {
        match self {
            Place::Register(register) => {
                write_register(cx.cpu, register, value);
                Ok(())
            }
            Place::Memory(address) => cx.store(address, size, value),
        }
    }
}

/// The value of a register, memory or immediate operand, zero-extended from `size` bytes
/// (an immediate is first sign-extended to them as its encoding says).
#[inline]
pub fn read_operand(
    cx: &mut Context<'_>,
    insn: &Instruction,
    operand: u32,
    size: usize,
) -> Result<u64, Exception> {
    match insn.op_kind(operand) {
        OpKind::Register => Ok(read_register(cx.cpu, insn.op_register(operand))),
        OpKind::Immediate8
        | OpKind::Immediate8_2nd
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => Ok(insn.immediate(operand) & size_mask(size)),
        _ => {
            let address = linear(cx, insn, operand, size, Access::Read)?;
            cx.load(address, size)
        }
    }
}

/// Writes a register or memory operand of `size` bytes.
#[inline]
pub fn write_operand(
    cx: &mut Context<'_>,
    insn: &Instruction,
    operand: u32,
    size: usize,
    value: u64,
) -> Result<(), Exception> {
    Place::of(cx, insn, operand, size, Access::Write)?.store(cx, size, value)
}

/// Reads, changes and writes operand 0; what the change computes besides comes back once the
/// store has succeeded.
#[inline]
pub fn modify_operand<T>(
    cx: &mut Context<'_>,
    insn: &Instruction,
    size: usize,
    change: impl FnOnce(&CpuState, u64) -> (u64, T),
) -> Result<T, Exception> {
    let place = Place::of(cx, insn, 0, size, Access::Write)?;
    let old = place.load_for_update(cx, size)?;
    let (new, rest) = change(cx.cpu, old);
    place.store(cx, size, new)?;
    Ok(rest)
}
