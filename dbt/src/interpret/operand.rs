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

/// Where a general-purpose register's bits are.
#[derive(Clone, Copy)]
struct Part {
    number: u8,
    shift: u8,
    /// Bytes; 0 for what is not a general-purpose register.
    size: u8,
}

const REGISTERS: usize = 256;

/// By the decoder's register numbers: looked up several times an instruction.
static PARTS: [Part; REGISTERS] = {
    let none = Part {
        number: 0,
        shift: 0,
        size: 0,
    };
    let mut parts = [none; REGISTERS];
    let mut number = 0;
    while number < 16 {
        let whole = [(Register::RAX, 8), (Register::EAX, 4), (Register::AX, 2)];
        let mut kind = 0;
        while kind < whole.len() {
            parts[whole[kind].0 as usize + number] = Part {
                number: number as u8,
                shift: 0,
                size: whole[kind].1,
            };
            kind += 1;
        }
        // AL to BL, then AH to BH, then SPL to R15L.
        let low = if number < 4 { number } else { number + 4 };
        parts[Register::AL as usize + low] = Part {
            number: number as u8,
            shift: 0,
            size: 1,
        };
        if number < 4 {
            parts[Register::AH as usize + number] = Part {
                number: number as u8,
                shift: 8,
                size: 1,
            };
        }
        number += 1;
    }
    parts
};

#[inline]
fn part(register: Register) -> Part {
    PARTS[register as usize % REGISTERS]
}

/// Bytes in a general-purpose register; 2 in any other, which is a segment register.
#[inline]
pub fn register_size(register: Register) -> usize {
    match part(register).size {
        0 => 2,
        size => usize::from(size),
    }
}

/// The value of a general-purpose or segment register, zero-extended.
#[inline]
pub fn read_register(cpu: &CpuState, register: Register) -> u64 {
    let part = part(register);
    if part.size == 0 {
        return segment_index(register)
            .map_or(0, |segment| u64::from(cpu.segment(segment).selector));
    }
    (cpu.gpr[usize::from(part.number & 15)] >> part.shift) & size_mask(usize::from(part.size))
}

/// Sets a general-purpose register: a 32-bit write clears the upper half, narrower ones keep
/// the rest (SDM volume 1, 3.4.1.1).
#[inline]
pub fn write_register(cpu: &mut CpuState, register: Register, value: u64) {
    let part = part(register);
    let slot = &mut cpu.gpr[usize::from(part.number & 15)];
    *slot = match part.size {
        8 => value,
        4 => value & 0xffff_ffff,
        2 => (*slot & !0xffff) | (value & 0xffff),
        1 => (*slot & !(0xff << part.shift)) | ((value & 0xff) << part.shift),
        _ => *slot,
    };
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
