//! Who has raised an unmasked x87 exception: emitted code does not look at FSW, but leaves what there will be to note.

use crate::guest::X87Pointers;

/// The last x87 instruction of emitted code that may have raised an unmasked exception.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct X87Candidate {
    /// See [`X87Candidate::word`]; 0 if there is none.
    pub word: u32,
    /// The address of its operand, if it has one.
    pub operand: u64,
}

impl X87Candidate {
    /// Its opcode is known, and is in the lower bits.
    const HAS_OPCODE: u32 = 1 << 16;
    /// It has an operand in memory.
    const HAS_OPERAND: u32 = 1 << 17;
    /// There is one.
    const IS_THERE: u32 = 1 << 18;

    /// What emitted code leaves behind an instruction.
    pub fn word(opcode: Option<u16>, has_operand: bool) -> u32 {
        let opcode = opcode.map_or(0, |opcode| Self::HAS_OPCODE | u32::from(opcode));
        let operand = if has_operand { Self::HAS_OPERAND } else { 0 };
        Self::IS_THERE | operand | opcode
    }

    /// Takes it away, and notes it if it has raised an exception (SDM volume 1, 8.1.8 and 8.1.9). `pending`: whether
    /// one is.
    pub fn settle(&mut self, pending: bool, pointers: &mut X87Pointers) {
        let word = std::mem::take(&mut self.word);
        if !pending {
            return;
        }
        if word & Self::HAS_OPCODE != 0 {
            pointers.opcode = word as u16;
        }
        if word & Self::HAS_OPERAND != 0 {
            pointers.operand = self.operand;
        }
    }
}
