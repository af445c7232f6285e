//! Decoded code of which a translation does not pay yet: it is visited again, and then translated.
//! What is kept is good for as long as the bytes in memory are the same, which is looked at.

use iced_x86::Instruction;
use mmu::GuestPhys;

use super::{BLOCK_LIMIT, DecodedBlock, LONGEST, block, code_address};
use crate::guest::{Exception, Mode};
use crate::interpret::Context;

/// Blocks that are kept; each is in one place only.
const SLOTS: usize = 1 << 11;

#[derive(Default)]
struct Slot {
    /// What was decoded: address in memory, RIP, mode.
    of: Option<(GuestPhys, u64, Mode)>,
    bytes: Vec<u8>,
    insns: Vec<Instruction>,
}

/// Blocks that were decoded not long ago.
pub struct Kept {
    slots: Box<[Slot]>,
    enabled: bool,
}

/// A block on loan, to be given back.
pub struct Loan {
    /// Where it is.
    pub block: DecodedBlock,
    /// Its instructions; at least one.
    pub insns: Vec<Instruction>,
    slot: usize,
}

impl Kept {
    /// None yet.
    pub fn new(enabled: bool) -> Kept {
        let size = if enabled { SLOTS } else { 1 };
        Kept {
            slots: (0..size).map(|_| Slot::default()).collect(),
            enabled,
        }
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        for slot in &mut self.slots {
            slot.of = None;
        }
    }

    /// Decodes the block at RIP, as [`block`] does, if it is not there.
    pub fn lend(&mut self, cx: &mut Context<'_>) -> Result<Option<Loan>, Exception> {
        let (rip, mode) = (cx.cpu.rip, cx.cpu.mode);
        let physical = cx.translate_fetch(code_address(cx, rip))?;
        let hash = (physical.0 ^ rip >> 12).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let index = hash as usize % self.slots.len();
        let slot = &mut self.slots[index];
        let mut insns = std::mem::take(&mut slot.insns);
        if slot.of == Some((physical, rip, mode)) && slot.is_current(cx, physical) {
            let block = DecodedBlock {
                physical,
                len: slot.bytes.len() as u32,
                second: None,
            };
            return Ok(Some(Loan {
                block,
                insns,
                slot: index,
            }));
        }
        slot.of = None;
        let decoded = block(cx, &mut insns);
        if let Ok(Some(block)) = &decoded
            && self.enabled
            && block.second.is_none()
        {
            slot.bytes.resize(block.len as usize, 0);
            if cx.mem.load(physical, &mut slot.bytes).is_ok() {
                slot.of = Some((physical, rip, mode));
            }
        }
        match decoded {
            Ok(Some(block)) => Ok(Some(Loan {
                block,
                insns,
                slot: index,
            })),
            nothing => {
                slot.insns = insns;
                nothing.map(|_| None)
            }
        }
    }

    /// Takes back what was lent.
    pub fn give_back(&mut self, loan: Loan) {
        self.slots[loan.slot].insns = loan.insns;
    }
}

impl Slot {
    /// Whether memory still has the bytes that were decoded.
    fn is_current(&self, cx: &mut Context<'_>, physical: GuestPhys) -> bool {
        let mut now = [0; BLOCK_LIMIT * LONGEST];
        let now = &mut now[..self.bytes.len()];
        let loaded = cx.mem.load(physical, now).is_ok();
        cx.settle();
        loaded && *now == self.bytes[..]
    }
}
