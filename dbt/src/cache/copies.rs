//! Copies of blocks for the same code at other addresses.

use mmu::{GuestPhys, View};

use super::block::{Block, Key};
use super::blocks::BlockCache;
use super::near::near_word;
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

impl CodePlace {
    /// Everything but the address.
    pub(super) fn kind(&self) -> u64 {
        u64::from(self.mode.0) << 1 | u64::from(self.grouped)
    }

    /// A word to find it by.
    pub(super) fn word(&self) -> u64 {
        near_word(self.physical, self.kind())
    }
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

/// Where a translation that was made elsewhere, or in another run, goes.
#[derive(Clone, Copy)]
pub struct Arrival {
    /// What it is for there.
    pub key: Key,
    /// What the page guard has to hold.
    pub mapping: u32,
    /// Where its code and its slow paths go.
    pub to: [CodeOffset; 2],
}

impl BlockCache {
    /// A block of the same code at another address, if a copy of it would do.
    pub fn original(&self, key: &Key) -> Option<u32> {
        if !moving::can_arrive(key) {
            return None;
        }
        let place = key.code_place();
        let known = self
            .by_code_place
            .find(place.word(), |known| known.0 == place);
        known.map(|&(_, id)| id)
    }

    /// A block from which copies can be made, from now on the one for its place.
    pub(super) fn note_original(&mut self, place: CodePlace, id: u32) {
        let same = |known: &(CodePlace, u32)| known.0 == place;
        let entry = self
            .by_code_place
            .entry(place.word(), same, |known| known.0.word());
        entry.insert((place, id));
    }

    /// No copies can be made from a block any more.
    pub(super) fn forget_original(&mut self, place: CodePlace, id: u32) {
        let same = |known: &(CodePlace, u32)| *known == (place, id);
        if let Ok(entry) = self.by_code_place.find_entry(place.word(), same) {
            entry.remove();
        }
    }

    /// Reads a block's code and its slow paths back.
    pub fn read_code(&self, block: &Block, code: &mut [Vec<u8>; 2]) {
        let sections = [
            (block.base, block.made.size),
            (block.cold_base, block.made.cold_size),
        ];
        for ((from, len), code) in sections.into_iter().zip(code) {
            self.region().read(from, len as usize, code);
        }
    }

    /// Copies a block for another RIP and another place; `code` becomes its code. What the copy
    /// leads to is not linked.
    pub fn copy(&self, original: u32, arrival: Arrival, code: &mut [Vec<u8>; 2]) -> Option<Block> {
        let Arrival { key, mapping, to } = arrival;
        let block = self.block(original)?;
        let marks = block.made.marks.as_ref()?;
        let way = Move {
            distance: key.rip.wrapping_sub(block.key.rip),
            rip: key.rip,
            view: View::User,
            id: self.next_id(),
            mapping,
            from: [block.base, block.cold_base],
            to,
            tables: [0; 3],
        };
        self.read_code(block, code);
        way.adjust(code, marks);
        let copy = block.at(key, mapping, to);
        for exit in copy.exits() {
            exit.lead_to_stub(code, to);
        }
        Some(copy)
    }
}
