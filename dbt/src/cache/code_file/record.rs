//! A block as a file keeps it: the guest's bytes that it was made from, and what was made of them.

use std::sync::Arc;

use mmu::PAGE_SIZE;
use serde::{Deserialize, Serialize, Serializer};

use crate::cache::block::{Block, Key, Translation};
use crate::cache::copies::Arrival;
use crate::cache::insns::Insns;
use crate::cache::region::CodeOffset;
use crate::decode::Manner;
use crate::guest::Mode;
use crate::interpret;
use crate::run::{at, heat_counter};
use crate::x86_64::Entries;
use crate::x86_64::moving::{self, Move};

/// Bytes that are read where they are.
#[derive(Clone, Copy, Deserialize)]
#[serde(transparent)]
pub struct Bytes<'a>(#[serde(borrow)] pub &'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// Instructions in a row.
#[derive(Serialize, Deserialize)]
pub struct Span<'a> {
    /// Where they begin in their page.
    pub offset: u16,
    /// Their bytes.
    #[serde(borrow)]
    pub bytes: Bytes<'a>,
}

/// A block. `T`: its translation, or a reference to that.
#[derive(Serialize, Deserialize)]
pub struct Record<'a, T> {
    /// What it was made for, besides its place: the mode, and whether its accesses share checks.
    kind: (u32, bool),
    /// Its instructions.
    #[serde(borrow)]
    pub spans: Vec<Span<'a>>,
    /// The numbers of the jump caches that it uses: its mode's, and that of `far_mode`.
    jump_caches: JumpCaches,
    /// [`Block::far_mode`].
    far_mode: Option<u32>,
    /// Where in its page the lowest byte of its code is, and how many there are from there on.
    range: (u16, u32),
    /// RIP, and where its code was.
    rip: u64,
    bases: [CodeOffset; 2],
    #[serde(borrow)]
    code: [Bytes<'a>; 2],
    entries: Entries,
    made: T,
    /// What was found out about it: [`Block::open`], [`Block::settled`], [`Block::loops`], [`Block::attempts`].
    found: (bool, bool, bool, u8),
    /// The counter of its entries, if it counts them.
    heat: Option<usize>,
}

/// The numbers of the jump caches of a block's mode, and of the one in which it ends, if that is another.
pub type JumpCaches = (usize, Option<usize>);

/// Runs of instructions of a block, as offset in the page and bytes.
pub fn spans_of(block: &Block) -> Vec<(u16, u16)> {
    let mut spans: Vec<(u16, u16)> = Vec::new();
    for insn in block.insns() {
        let at = (insn.ip() % PAGE_SIZE) as u16;
        let len = insn.len() as u16;
        match spans.last_mut() {
            Some(span) if span.0 + span.1 == at => span.1 += len,
            _ => spans.push((at, len)),
        }
    }
    spans
}

impl<'a> Record<'a, &'a Translation> {
    /// What is kept of a block whose code this is.
    pub fn of(
        block: &'a Block,
        spans: Vec<Span<'a>>,
        far_jump_cache: Option<usize>,
        code: &'a [Vec<u8>; 2],
    ) -> Self {
        Record {
            kind: (block.key.mode.0, block.key.grouped),
            spans,
            jump_caches: (block.jump_cache, far_jump_cache),
            far_mode: block.far_mode.map(|mode| mode.0),
            range: (block.lowest.page_offset() as u16, block.len),
            rip: block.key.rip,
            bases: [block.base, block.cold_base],
            code: [Bytes(&code[0]), Bytes(&code[1])],
            entries: block.entries,
            made: &block.made,
            found: (block.open, block.settled, block.loops, block.attempts),
            heat: block.counts.then(|| heat_counter(block.key.physical)),
        }
    }
}

impl Record<'_, Translation> {
    /// The mode that its last instruction arrives in.
    pub fn far_mode(&self) -> Option<Mode> {
        self.far_mode.map(Mode)
    }

    /// Where in [`super::super::blocks::FETCHED`] bytes its code began.
    pub fn base(&self) -> CodeOffset {
        self.bases[0]
    }

    /// How far what it uses here is from what it used there: see [`Move::tables`].
    fn distances(&self, key: &Key, (own, far): JumpCaches) -> [u32; 3] {
        let (own_there, far_there) = self.jump_caches;
        let jumps = |here, there| at::jumps(here).wrapping_sub(at::jumps(there)) as u32;
        let far = far.zip(far_there);
        let heat = self.heat.map(|there| {
            let here = heat_counter(key.physical);
            (here as u32).wrapping_sub(there as u32).wrapping_mul(2)
        });
        [
            jumps(own, own_there),
            far.map_or(0, |(here, there)| jumps(here, there)),
            heat.unwrap_or(0),
        ]
    }

    /// Whether it can be at a key, if its bytes are there.
    pub fn can_be_at(&self, key: &Key) -> bool {
        let distance = key.rip.wrapping_sub(self.made.rip());
        let anywhere = self.made.movable && moving::can_arrive(key);
        let high = self
            .made
            .high
            .is_some_and(|reach| moving::stays_high(reach, distance));
        self.kind == (key.mode.0, key.grouped)
            && distance.is_multiple_of(PAGE_SIZE)
            && (distance == 0 || anywhere || high)
    }

    /// The block for a key at which it can be; `code` becomes its code, and `id` its identifier. `None`: the record
    /// contradicts itself.
    pub fn block(
        mut self,
        id: u32,
        arrival: Arrival,
        jump_caches: JumpCaches,
        manner: Manner,
        code: &mut [Vec<u8>; 2],
    ) -> Option<Block> {
        let Arrival { key, mapping, to } = arrival;
        for (code, kept) in code.iter_mut().zip(self.code) {
            code.clear();
            code.extend_from_slice(kept.0);
        }
        let sizes = [self.made.size, self.made.cold_size].map(|size| size as usize);
        if sizes != [code[0].len(), code[1].len()] || self.made.insn_starts.is_empty() {
            return None;
        }
        let way = Move {
            distance: key.rip.wrapping_sub(self.rip),
            rip: key.rip,
            view: interpret::view(key.mode),
            id,
            mapping,
            from: self.bases,
            to,
            tables: self.distances(&key, jump_caches),
        };
        way.adjust(code, self.made.marks.as_ref()?);
        let page = self.made.rip() / PAGE_SIZE * PAGE_SIZE;
        let runs = self.spans.iter();
        let runs = runs.map(|span| (page + u64::from(span.offset), span.bytes.0.into()));
        self.made.insns = Insns::encoded(manner, runs.collect());
        let (offset, len) = self.range;
        let lowest = key.physical.page().add(u64::from(offset));
        let mut block = Block::of(
            key,
            (Arc::new(self.made), self.entries),
            (lowest, len),
            Box::default(),
            (to, mapping),
            jump_caches.0,
        );
        block.far_mode = self.far_mode.map(Mode);
        (block.open, block.settled, block.loops, block.attempts) = self.found;
        block.counts = self.heat.is_some();
        for exit in block.exits() {
            exit.lead_to_stub(code, to);
        }
        Some(block)
    }
}
