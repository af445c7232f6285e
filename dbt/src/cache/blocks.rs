//! The block cache. The code region is divided into areas; when none is free the least
//! recently used one is emptied. Blocks know who jumps to them, so that none is entered after
//! it is gone.

use std::sync::Arc;

use hashbrown::HashTable;
use lru::LruCache;
use mmu::{GuestPhys, PAGE_SIZE, Provider};
use rustc_hash::FxHashMap;

use super::CacheStatistics;
use super::block::{Block, Key, Mapping};
use super::copies::CodePlace;
use super::heap::HeapAhead;
use super::pages::Pages;
use super::region::{CodeOffset, CodeRegion};
use super::slots::Slots;
use crate::guest::Mode;

/// Areas that the code region is divided into.
const AREAS: u32 = 16;
/// Code of a block at the most, and likewise of its slow paths; an area keeps this much free. A
/// block has 64 instructions, with less than 512 bytes of either.
const LARGEST_BLOCK: u32 = 32 << 10;
/// What the host is asked for at once.
const PIECE: u32 = 256 << 10;
/// The part of an area that is for slow paths, in sixteenths.
const COLD_PART: u32 = 5;

/// Mappings that are remembered of what has no blocks any more, at the most.
const MAPPINGS: usize = 1 << 16;

/// Where a block begins that may begin anywhere.
const ALIGNED: u32 = 16;

/// What a host of Intel's Skylake family keeps decoded as one: a jump across two of these is decoded anew
/// each time (Intel's "Mitigations for Jump Conditional Code Erratum", 2.1).
pub const FETCHED: u32 = 32;

/// Where code and slow paths begin in an area.
fn area_starts(start: u32, size: u32) -> [u32; 2] {
    [start, start + size / 16 * (16 - COLD_PART)]
}

/// All translated blocks.
pub struct BlockCache {
    pub(super) region: CodeRegion,
    blocks: Slots,
    /// Identifiers by [`Key::word`]: nothing more, so that it stays in the host's caches.
    by_key: HashTable<u32>,
    /// Blocks that can be moved.
    pub(super) by_code_place: HashTable<(CodePlace, u32)>,
    by_page: Pages,
    /// For each area the blocks placed in it, by address; some may be gone.
    by_code: Vec<Vec<(CodeOffset, u32)>>,
    areas: LruCache<u32, ()>,
    free_areas: Vec<u32>,
    current_area: u32,
    last_touched: u32,
    /// Next free bytes of the current area: for code, and for slow paths.
    cursors: [u32; 2],
    provider: Option<Provider>,
    heap: HeapAhead,
    /// Pieces of the region that the host was asked for.
    provided: Vec<bool>,
    first: u32,
    area_size: u32,
    mappings: FxHashMap<Mapping, u32>,
    /// How many there may be.
    mappings_wanted: usize,
    last_mapping: u32,
    /// Counts since the start.
    pub statistics: CacheStatistics,
}

impl BlockCache {
    /// An empty cache in a region whose first `reserved` bytes hold shared code.
    /// `provider`: has the host provide its pages, and those of the heap, ahead.
    pub fn new(region: CodeRegion, reserved: CodeOffset, provider: Option<Provider>) -> BlockCache {
        // Blocks have some 450 bytes: tables that do not grow are not written anew.
        let blocks = region.len() / 512;
        let area_size = ((region.len() as u32 - reserved.0) / AREAS) & !63;
        BlockCache {
            blocks: Slots::default(),
            by_key: HashTable::with_capacity(blocks),
            by_code_place: HashTable::new(),
            by_page: Pages::default(),
            by_code: vec![Vec::new(); AREAS as usize],
            areas: LruCache::unbounded(),
            free_areas: (1..AREAS).rev().collect(),
            current_area: 0,
            last_touched: 0,
            cursors: area_starts(reserved.0, area_size),
            provider,
            heap: HeapAhead::default(),
            provided: vec![false; region.len().div_ceil(PIECE as usize)],
            first: reserved.0,
            area_size,
            mappings: FxHashMap::default(),
            mappings_wanted: MAPPINGS,
            last_mapping: 0,
            statistics: CacheStatistics::default(),
            region,
        }
    }

    /// The code region.
    pub fn region(&self) -> &CodeRegion {
        &self.region
    }

    /// The code region, to write.
    pub fn region_mut(&mut self) -> &mut CodeRegion {
        &mut self.region
    }

    /// A block that still exists.
    pub fn block(&self, id: u32) -> Option<&Block> {
        self.blocks.get(id)
    }

    /// A block that still exists, to change what is noted of it.
    pub fn block_mut(&mut self, id: u32) -> Option<&mut Block> {
        self.blocks.get_mut(id)
    }

    /// Finds a block.
    pub fn find(&self, key: &Key) -> Option<u32> {
        let is_it = |&id: &u32| self.block(id).is_some_and(|block| block.key == *key);
        self.by_key.find(key.word(), is_it).copied()
    }

    /// The identifier that the next block will have.
    pub fn next_id(&self) -> u32 {
        self.blocks.next_id()
    }

    /// All blocks that exist.
    pub fn ids(&self) -> Vec<u32> {
        self.blocks.iter().map(|(id, _)| id).collect()
    }

    /// The identifier of a mapping of a linear page to a physical one under a mode; never 0,
    /// and never given to another mapping.
    pub fn mapping(&mut self, linear_page: u64, physical: GuestPhys, mode: Mode) -> u32 {
        if self.mappings.len() >= self.mappings_wanted {
            self.forget_mappings();
        }
        let last = &mut self.last_mapping;
        *self
            .mappings
            .entry((linear_page, physical.page(), mode))
            .or_insert_with(|| {
                *last += 1;
                *last
            })
    }

    /// Forgets the mappings of which there are no blocks. Those of one page have to agree on it: else they would
    /// take its guard from each other.
    fn forget_mappings(&mut self) {
        let blocks = self.blocks.iter().map(|(_, block)| block);
        self.mappings = blocks.flat_map(Block::mappings).collect();
        self.mappings_wanted = self.mappings.len() + MAPPINGS;
    }

    /// Where the next block's code and its slow paths go. May empty an area: returns the blocks
    /// that went. `phase`: where in a piece of [`FETCHED`] bytes it is to begin, if that matters.
    pub fn reserve(&mut self, phase: Option<u32>) -> ([CodeOffset; 2], Vec<Block>) {
        let start = self.first + self.current_area * self.area_size;
        let ends = [
            area_starts(start, self.area_size)[1],
            start + self.area_size,
        ];
        let mut gone = Vec::new();
        let full = |(cursor, end): (&u32, u32)| cursor + FETCHED + LARGEST_BLOCK > end;
        if self.cursors.iter().zip(ends).any(full) {
            self.areas.put(self.current_area, ());
            let area = match self.free_areas.pop() {
                Some(area) => area,
                None => {
                    let (area, ()) = self
                        .areas
                        .pop_lru()
                        .expect("the area in use was put there just now");
                    self.statistics.evictions += 1;
                    gone = self.empty(area);
                    area
                }
            };
            self.current_area = area;
            self.cursors = area_starts(self.first + area * self.area_size, self.area_size);
        }
        let hot = &mut self.cursors[0];
        match phase {
            Some(phase) => *hot += phase.wrapping_sub(*hot) % FETCHED,
            None => *hot = hot.next_multiple_of(ALIGNED),
        }
        (self.cursors.map(CodeOffset), gone)
    }

    /// Has the host provide what the next blocks, and their code, will fill, unless it was asked for that before.
    fn provide_ahead(&mut self, newest: &Block) {
        let Some(provider) = &self.provider else {
            return;
        };
        self.heap
            .follow(Arc::as_ptr(&newest.made) as usize, provider);
        for cursor in self.cursors {
            let here = cursor / PIECE;
            for piece in [here, here + 1] {
                if self.provided.get(piece as usize) == Some(&false) {
                    self.provided[piece as usize] = true;
                    let len = PIECE.min(self.region.len() as u32 - piece * PIECE);
                    self.region
                        .provide(CodeOffset(piece * PIECE), len as usize, provider);
                }
            }
        }
    }

    fn empty(&mut self, area: u32) -> Vec<Block> {
        let placed = std::mem::take(&mut self.by_code[area as usize]);
        let ids = placed.into_iter().map(|(_, id)| id);
        ids.filter_map(|id| self.remove(id)).collect()
    }

    /// Adds a block whose code and slow paths were made for where `reserve` said.
    ///
    /// # Panics
    ///
    /// If they are longer than any block can be.
    pub fn insert(&mut self, mut block: Block, code: &[Vec<u8>; 2]) -> u32 {
        let id = self.next_id();
        block.area = self.current_area;
        for (cursor, bytes) in self.cursors.iter_mut().zip(code) {
            assert!(bytes.len() <= LARGEST_BLOCK as usize, "too long a block");
            self.region.write(CodeOffset(*cursor), bytes);
            *cursor += bytes.len() as u32;
        }
        let blocks = &self.blocks;
        self.by_key.insert_unique(block.key.word(), id, |&id| {
            blocks.get(id).map_or(0, |block| block.key.word())
        });
        if block.made.movable {
            self.note_original(block.key.code_place(), id);
        }
        block.page_place = self.by_page.add(id, block.lowest, block.len);
        for further in &mut block.further {
            further.place = self.by_page.add(id, further.part.lowest, further.part.len);
        }
        self.by_code[self.current_area as usize].push((block.base, id));
        self.provide_ahead(&block);
        self.blocks.insert(block);
        id
    }

    /// A block's area was used.
    pub fn touch(&mut self, id: u32) {
        let area = self.block(id).map(|block| block.area);
        // Looking up a list of areas is slow next to running a block: only a change counts.
        if let Some(area) = area
            && area != self.current_area
            && area != self.last_touched
        {
            self.last_touched = area;
            self.areas.get(&area);
        }
    }

    /// Removes a block and every link to and from it.
    pub fn remove(&mut self, id: u32) -> Option<Block> {
        let block = self.blocks.take(id)?;
        for &(from, exit) in &block.incoming {
            self.unlink(from, exit, id);
        }
        for &(_, to) in &block.outgoing {
            if let Some(target) = self.block_mut(to) {
                target.incoming.retain(|&(from, _)| from != id);
            }
        }
        let known = self
            .by_key
            .find_entry(block.key.word(), |&known| known == id);
        if let Ok(entry) = known {
            entry.remove();
        }
        if block.made.movable {
            self.forget_original(block.key.code_place(), id);
        }
        self.leave_pages(&block);
        Some(block)
    }

    /// A block that was removed is one of its pages' no longer.
    fn leave_pages(&mut self, block: &Block) {
        let further = block.further.iter().map(|further| further.place);
        let places = std::iter::once(block.page_place).chain(further);
        let mut left: Vec<(u32, GuestPhys)> = places.zip(block.pages()).collect();
        // Some may be the same page: the last one first, so that it does not move.
        left.sort_by_key(|&(place, _)| std::cmp::Reverse(place));
        for (place, page) in left {
            let Some((id, old)) = self.by_page.remove(page, place) else {
                continue;
            };
            let Some(follower) = self.block_mut(id) else {
                continue;
            };
            if follower.key.physical.page() == page && follower.page_place == old {
                follower.page_place = place;
            }
            for further in &mut follower.further {
                if further.part.lowest.page() == page && further.place == old {
                    further.place = place;
                }
            }
        }
    }

    /// Removes the blocks made from any byte of a range; returns them.
    pub fn invalidate(&mut self, at: GuestPhys, len: u32) -> Vec<Block> {
        let mut gone = Vec::new();
        let end = at.0 + u64::from(len);
        let mut page = at.page();
        while page.0 < end {
            let first = at.0.saturating_sub(page.0);
            let hit = self.by_page.overlapping(page, first, end - 1 - page.0);
            self.statistics.invalidated += hit.len() as u64;
            gone.extend(hit.into_iter().filter_map(|id| self.remove(id)));
            page = page.add(PAGE_SIZE);
        }
        gone
    }

    /// Whether any block was made from this page.
    pub fn has_code(&self, page: GuestPhys) -> bool {
        self.by_page.contains(page.page())
    }

    /// The block that a host address belongs to, and the instruction.
    pub fn at_code(&self, offset: CodeOffset) -> Option<(u32, usize)> {
        let area = offset.0.checked_sub(self.first)? / self.area_size;
        let placed = self.by_code.get(area as usize)?;
        let behind = placed.partition_point(|&(base, _)| base <= offset);
        let (_, id) = placed[behind.checked_sub(1)?];
        let block = self.block(id)?;
        let within = offset.0 - block.base.0;
        if within >= block.made.size {
            return None;
        }
        let insn = block
            .made
            .insn_starts
            .partition_point(|&start| start <= within)
            .checked_sub(1)?;
        Some((id, insn.min(block.made.count() - 1)))
    }

    /// Bytes of host code in use.
    pub fn code_bytes(&self) -> u64 {
        let blocks = self.blocks.iter();
        blocks
            .map(|(_, block)| u64::from(block.made.size) + u64::from(block.made.cold_size))
            .sum()
    }
}
