//! Copies of blocks for the same code at other addresses.

use mmu::GuestPhys;

use super::blocks::{Block, BlockCache, Exit, Key};
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
        let marks = block.marks.as_ref()?;
        let way = Move {
            distance: key.rip.wrapping_sub(block.key.rip),
            rip: key.rip,
            id: self.next_id(),
            mapping,
            from: [block.base, block.cold_base],
            to,
        };
        let sizes = [block.size, block.cold_size];
        for (section, code) in code.iter_mut().enumerate() {
            let len = sizes[section] as usize;
            self.region().read(way.from[section], len, code);
        }
        way.adjust(code, marks);
        let place = |offset| way.place(offset, block.size);
        let exits: Vec<Exit> = block
            .exits
            .iter()
            .map(|exit| Exit {
                site: place(exit.site),
                stub: place(exit.stub),
                target: exit.target.wrapping_add(way.distance),
                linked: None,
                ..*exit
            })
            .collect();
        for exit in &exits {
            let cold = usize::from(exit.site.0.wrapping_sub(to[0].0) >= block.size);
            let at = (exit.site.0 - to[cold].0) as usize;
            let displacement = exit.stub.0.wrapping_sub(exit.site.0 + 4);
            code[cold][at..at + 4].copy_from_slice(&displacement.to_le_bytes());
        }
        let insns = block.insns.iter();
        Some(Block {
            key,
            lowest: block.lowest,
            len: block.len,
            further: Box::default(),
            insns: insns
                .map(|insn| moving::moved_instruction(insn, way.distance))
                .collect(),
            base: to[0],
            cold_base: to[1],
            size: block.size,
            cold_size: block.cold_size,
            entry: place(block.entry),
            poll_entry: place(block.poll_entry),
            guarded_entry: place(block.guarded_entry),
            indirect_entry: place(block.indirect_entry),
            return_entry: place(block.return_entry),
            insn_starts: block.insn_starts.clone(),
            saving_entry: place(block.saving_entry),
            saving_forward: place(block.saving_forward),
            lost: block.lost,
            recipes: block.recipes.clone(),
            stashes: block.stashes,
            vectors: block.vectors,
            flags_away: block.flags_away,
            flags_lost: block.flags_lost,
            precise_flags: block.precise_flags,
            places: block.places,
            exits,
            incoming: Vec::new(),
            heat: 0,
            // A trace is one there too. Copies share the predictions of its checks.
            settled: block.settled,
            ways: None,
            attempts: block.attempts,
            predicting: block.predicting,
            strays: block.strays,
            open: block.open,
            vain: (0, 0),
            mapping,
            jump_cache: block.jump_cache,
            far_mode: block.far_mode,
            marks: block.marks.clone(),
            area: 0,
            page_place: 0,
        })
    }
}
