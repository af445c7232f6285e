//! Copies of blocks for the same code at other addresses.

use mmu::GuestPhys;

use super::block::{Block, Key};
use super::blocks::BlockCache;
use super::region::CodeOffset;
use crate::guest::Mode;
use crate::x86_64::moving::{self, Move};

/// What a translation depends on besides RIP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CodePlace {
    physical: GuestPhys,
    mode: Mode,
    grouped: bool,
}

impl Key {
    /// Everything but RIP.
    pub(super) fn code_place(&self) -> CodePlace {
        CodePlace {
            physical: self.physical,
            mode: self.mode,
            grouped: self.grouped,
        }
    }
}

impl BlockCache {
    /// A block of the same code at another address, if a copy of it would do.
    pub fn original(&self, key: &Key) -> Option<u32> {
        if !moving::can_arrive(key) {
            return None;
        }
        self.by_code_place.get(&key.code_place()).copied()
    }

    /// Copies a block for another RIP and another place; `code` becomes its code. What the copy
    /// leads to is not linked.
    pub fn copy(
        &self,
        original: u32,
        key: Key,
        mapping: u32,
        to: [CodeOffset; 2],
        code: &mut [Vec<u8>; 2],
    ) -> Option<Block> {
        let block = self.block(original)?;
        let marks = block.made.marks.as_ref()?;
        let way = Move {
            distance: key.rip.wrapping_sub(block.key.rip),
            rip: key.rip,
            id: self.next_id(),
            mapping,
            from: [block.base, block.cold_base],
            to,
        };
        let sizes = [block.made.size, block.made.cold_size];
        for (section, code) in code.iter_mut().enumerate() {
            let len = sizes[section] as usize;
            self.region().read(way.from[section], len, code);
        }
        way.adjust(code, marks);
        let copy = block.at(key, mapping, to);
        for exit in copy.exits() {
            exit.lead_to_stub(code, to);
        }
        Some(copy)
    }
}
