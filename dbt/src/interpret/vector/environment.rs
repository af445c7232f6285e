//! The x87 environment in memory, WAIT, and everything else of the x87 that is not arithmetic
//! (SDM volume 1, 8.1.10).

use iced_x86::{Code, Instruction, Mnemonic};

use super::Done;
use super::x87::{OPCODE_BITS, X87};
use crate::guest::flags::{CR0_MP, CR0_TS};
use crate::guest::{CpuState, Exception, X87Pointers};
use crate::interpret::operand::{next, row};
use crate::interpret::{Access, Context, address, extension};
use crate::record::Row;

pub(super) const ROWS: &[Row] = &[
    row(Mnemonic::Fnstenv, store_environment),
    row(Mnemonic::Fldenv, load_environment),
    row(Mnemonic::Fnsave, save),
    row(Mnemonic::Frstor, restore),
    row(Mnemonic::Wait, wait),
];

/// Bytes of the eight registers behind an environment.
const REGISTERS: usize = 80;

/// Bytes of a word of the environment: 2 or 4, by operand size.
fn word(insn: &Instruction) -> usize {
    match insn.code() {
        Code::Fnstenv_m14byte
        | Code::Fldenv_m14byte
        | Code::Fnsave_m94byte
        | Code::Frstor_m94byte => 2,
        _ => 4,
    }
}

fn wait(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let both = CR0_MP | CR0_TS;
    if cx.cpu.control.cr0 & both == both {
        return Err(Exception::device_not_available());
    }
    check_pending(cx.cpu)?;
    next(cx, insn)
}

/// #MF if an unmasked exception waits.
pub(super) fn check_pending(cpu: &CpuState) -> Done {
    if X87::of(cpu).pending() {
        return Err(Exception::plain(Exception::MF));
    }
    Ok(())
}

/// Control, status and tag word, then the pointers: offsets in protected mode, linear addresses
/// split in two otherwise (SDM volume 1, figures 8-9 to 8-12). The unused halves of 32-bit words
/// are ones in the first three words and the last.
fn environment(x87: &X87, word: usize, protected: bool, into: &mut [u8]) {
    let X87Pointers {
        instruction,
        operand,
        opcode,
    } = x87.pointers;
    let opcode = u32::from(opcode);
    let high = |pointer: u64| (pointer >> 16 << 12) as u32 & 0x0fff_f000;
    let low = |pointer: u64| pointer as u32 & 0xffff;
    let pointers = match (word, protected) {
        (4, true) => [
            instruction as u32,
            opcode << 16,
            operand as u32,
            0xffff_0000,
        ],
        (_, true) => [instruction as u32, 0, operand as u32, 0],
        (_, false) => [
            low(instruction),
            high(instruction) | opcode,
            low(operand),
            high(operand),
        ],
    };
    let first = [x87.control, x87.status, x87.tag_word()];
    let first = first.map(|field| 0xffff_0000 | u32::from(field));
    let fields = first.into_iter().chain(pointers);
    for (slot, field) in into.chunks_exact_mut(word).zip(fields) {
        slot.copy_from_slice(&field.to_le_bytes()[..word]);
    }
}

fn set_environment(x87: &mut X87, word: usize, protected: bool, from: &[u8]) {
    let field = |index: usize| {
        let mut bytes = [0; 4];
        bytes[..word].copy_from_slice(&from[word * index..word * (index + 1)]);
        u32::from_le_bytes(bytes)
    };
    // Bit 6 always reads as one.
    x87.control = field(0) as u16 & 0x1f3f | 0x40;
    x87.status = field(1) as u16;
    x87.set_tag_word(field(2) as u16);
    let pointer = |index: usize| {
        if protected {
            u64::from(field(index))
        } else {
            let high = field(index + 1) >> 12 & 0xffff;
            u64::from(field(index) & 0xffff | high << 16)
        }
    };
    let opcode = match (word, protected) {
        (4, true) => (field(4) >> 16) as u16,
        (_, true) => 0,
        (_, false) => field(4) as u16,
    };
    x87.pointers = X87Pointers {
        instruction: pointer(3),
        operand: pointer(5),
        opcode: opcode & OPCODE_BITS,
    };
}

fn store_environment(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    extension::check_enabled(cx, insn)?;
    let word = word(insn);
    let mut x87 = X87::of(cx.cpu);
    let mut image = [0; 28];
    let image = &mut image[..7 * word];
    environment(&x87, word, cx.cpu.protected(), image);
    let at = address::linear(cx, insn, 0, image.len(), Access::Write)?;
    cx.store_bytes(at, image)?;
    x87.control |= 0x3f;
    x87.load(cx.cpu);
    next(cx, insn)
}

fn load_environment(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    extension::check_enabled(cx, insn)?;
    check_pending(cx.cpu)?;
    let word = word(insn);
    let mut image = [0; 28];
    let image = &mut image[..7 * word];
    let at = address::linear(cx, insn, 0, image.len(), Access::Read)?;
    cx.load_bytes(at, image)?;
    let mut x87 = X87::of(cx.cpu);
    // The registers stay where they are physically; the image has them in stack order.
    let before = x87.top();
    set_environment(&mut x87, word, cx.cpu.protected(), image);
    let turn = (x87.top() + 8 - before) % 8;
    x87.registers.rotate_left(16 * turn);
    x87.load(cx.cpu);
    next(cx, insn)
}

fn save(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    extension::check_enabled(cx, insn)?;
    let word = word(insn);
    let mut x87 = X87::of(cx.cpu);
    let mut image = [0; 28 + REGISTERS];
    let image = &mut image[..7 * word + REGISTERS];
    environment(&x87, word, cx.cpu.protected(), &mut image[..7 * word]);
    for (slot, register) in image[7 * word..]
        .chunks_exact_mut(10)
        .zip(x87.registers.chunks_exact(16))
    {
        slot.copy_from_slice(&register[..10]);
    }
    let at = address::linear(cx, insn, 0, image.len(), Access::Write)?;
    cx.store_bytes(at, image)?;
    // FNINIT marks the registers empty and leaves their contents, in their physical places.
    let turn = (8 - x87.top()) % 8;
    x87.registers.rotate_left(16 * turn);
    X87 {
        registers: x87.registers,
        ..X87::INITIAL
    }
    .load(cx.cpu);
    next(cx, insn)
}

fn restore(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    extension::check_enabled(cx, insn)?;
    check_pending(cx.cpu)?;
    let word = word(insn);
    let mut image = [0; 28 + REGISTERS];
    let image = &mut image[..7 * word + REGISTERS];
    let at = address::linear(cx, insn, 0, image.len(), Access::Read)?;
    cx.load_bytes(at, image)?;
    let mut x87 = X87::INITIAL;
    set_environment(&mut x87, word, cx.cpu.protected(), &image[..7 * word]);
    for (register, slot) in x87
        .registers
        .chunks_exact_mut(16)
        .zip(image[7 * word..].chunks_exact(10))
    {
        register[..10].copy_from_slice(slot);
    }
    x87.load(cx.cpu);
    next(cx, insn)
}
