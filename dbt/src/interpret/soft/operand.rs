//! Operands of vector instructions: XMM and MMX registers, general registers, memory.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use mmu::Linear;

use crate::guest::{CpuState, Exception};
use crate::interpret::operand::{read_register, write_register};
use crate::interpret::{Access, Context, address};

/// Offset of the first x87 register in the FXSAVE image.
const REGISTERS: usize = 32;

pub fn xmm(cpu: &CpuState, register: Register) -> u128 {
    let lanes = &cpu.vector.ymm[(register as usize - Register::XMM0 as usize) & 15];
    u128::from(lanes[1]) << 64 | u128::from(lanes[0])
}

/// Sets an XMM register; the upper half of its YMM register stays.
pub fn set_xmm(cpu: &mut CpuState, register: Register, value: u128) {
    let lanes = &mut cpu.vector.ymm[(register as usize - Register::XMM0 as usize) & 15];
    lanes[0] = value as u64;
    lanes[1] = (value >> 64) as u64;
}

/// An MMX register's place in the image, which has the registers in stack order.
fn mmx_place(cpu: &CpuState, register: Register) -> usize {
    let top = usize::from(cpu.vector.fxsave.0[3] >> 3 & 7);
    let physical = register as usize - Register::MM0 as usize;
    REGISTERS + 16 * ((physical + 8 - top) & 7)
}

pub fn mmx(cpu: &CpuState, register: Register) -> u64 {
    let at = mmx_place(cpu, register);
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&cpu.vector.fxsave.0[at..at + 8]);
    u64::from_le_bytes(bytes)
}

pub fn set_mmx(cpu: &mut CpuState, register: Register, value: u64) {
    let at = mmx_place(cpu, register);
    let image = &mut cpu.vector.fxsave.0;
    image[at..at + 8].copy_from_slice(&value.to_le_bytes());
    image[at + 8..at + 10].fill(0xff);
}

/// #MF if an unmasked x87 exception waits: before any MMX instruction.
pub fn check_mmx(cpu: &CpuState) -> Result<(), Exception> {
    let image = &cpu.vector.fxsave.0;
    if image[2] & !image[0] & 0x3f != 0 {
        return Err(Exception::plain(Exception::MF));
    }
    Ok(())
}

/// After any MMX instruction TOP is 0 and no register is empty (SDM volume 1, 9.5.1).
pub fn enter_mmx(cpu: &mut CpuState) {
    let image = &mut cpu.vector.fxsave.0;
    let top = usize::from(image[3] >> 3 & 7);
    image[REGISTERS..REGISTERS + 128].rotate_right(16 * top);
    image[3] &= !0x38;
    image[4] = 0xff;
}

/// Whether an instruction names an MMX register.
pub fn uses_mmx(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|op| insn.op_register(op).is_mm())
}

/// Memory operands of 16 bytes have to be aligned, but for a few instructions.
fn may_be_unaligned(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Movups
            | M::Movupd
            | M::Movdqu
            | M::Lddqu
            | M::Pcmpestri
            | M::Pcmpestrm
            | M::Pcmpestri64
            | M::Pcmpestrm64
            | M::Pcmpistri
            | M::Pcmpistrm
    )
}

/// The linear address of a memory operand.
pub fn place(
    cx: &Context<'_>,
    insn: &Instruction,
    operand: u32,
    size: usize,
    access: Access,
) -> Result<Linear, Exception> {
    let at = address::linear(cx, insn, operand, size, access)?;
    if size == 16 && at.0 & 15 != 0 && !may_be_unaligned(insn.mnemonic()) {
        return Err(Exception::general_protection(0));
    }
    Ok(at)
}

/// The value of an operand; if it is memory, of `size` bytes.
pub fn read(
    cx: &mut Context<'_>,
    insn: &Instruction,
    operand: u32,
    size: usize,
) -> Result<u128, Exception> {
    match insn.op_kind(operand) {
        OpKind::Register => {
            let register = insn.op_register(operand);
            Ok(if register.is_xmm() {
                xmm(cx.cpu, register)
            } else if register.is_mm() {
                u128::from(mmx(cx.cpu, register))
            } else {
                u128::from(read_register(cx.cpu, register))
            })
        }
        OpKind::Memory => {
            let at = place(cx, insn, operand, size, Access::Read)?;
            let mut bytes = [0; 16];
            cx.load_bytes(at, &mut bytes[..size])?;
            Ok(u128::from_le_bytes(bytes))
        }
        _ => Ok(u128::from(insn.immediate(operand))),
    }
}

/// Writes a register, or `size` bytes of memory.
pub fn write(
    cx: &mut Context<'_>,
    insn: &Instruction,
    operand: u32,
    size: usize,
    value: u128,
) -> Result<(), Exception> {
    if insn.op_kind(operand) == OpKind::Register {
        let register = insn.op_register(operand);
        if register.is_xmm() {
            set_xmm(cx.cpu, register, value);
        } else if register.is_mm() {
            set_mmx(cx.cpu, register, value as u64);
        } else {
            write_register(cx.cpu, register, value as u64);
        }
        return Ok(());
    }
    let at = place(cx, insn, operand, size, Access::Write)?;
    cx.store_bytes(at, &value.to_le_bytes()[..size])
}

/// Applies a function to every lane of `bits` bits.
pub fn lanes(a: u128, b: u128, bits: u32, each: impl Fn(u64, u64) -> u64) -> u128 {
    let mask = u64::MAX >> (64 - bits);
    (0..128 / bits).fold(0, |result, lane| {
        let at = lane * bits;
        let value = each((a >> at) as u64 & mask, (b >> at) as u64 & mask) & mask;
        result | u128::from(value) << at
    })
}

/// One lane.
pub fn lane(value: u128, bits: u32, index: u32) -> u64 {
    (value >> ((index * bits) & 127)) as u64 & (u64::MAX >> (64 - bits))
}

/// Puts a value into one lane.
pub fn with_lane(value: u128, bits: u32, index: u32, new: u64) -> u128 {
    let at = (index * bits) & 127;
    let mask = u128::from(u64::MAX >> (64 - bits)) << at;
    value & !mask | u128::from(new) << at & mask
}
