//! The block cache. The code region is divided into areas; when none is free the least
//! recently used one is emptied. Blocks know who jumps to them, so that none is entered after
//! it is gone.

use std::collections::VecDeque;
use std::sync::Arc;

use iced_x86::Instruction;
use lru::LruCache;
use mmu::{GuestPhys, PAGE_SIZE};
use rustc_hash::FxHashMap;

use super::CacheStatistics;
use super::copies::CodePlace;
use super::pages::Pages;
use super::parts::{Further, physical};
use super::region::{CodeOffset, CodeRegion};
use super::ways::Ways;
use crate::guest::{CodeSegment, Mode};
use crate::record::recipe::Recipe;
use crate::x86_64::moving::Mark;
use crate::x86_64::{ExitFlags, ExitKind, Places};

/// Areas that the code region is divided into.
const AREAS: u32 = 16;
/// Code of a block at the most, and likewise of its slow paths; an area keeps this much free. A
/// block has 64 instructions, with less than 512 bytes of either.
const LARGEST_BLOCK: u32 = 32 << 10;
/// The part of an area that is for slow paths, in sixteenths.
const COLD_PART: u32 = 5;

/// Bits of a block's identifier that name its slot; those above count how often the slot was
/// used, so that whoever remembers a block that is gone does not find another one.
const SLOT_BITS: u32 = 22;
/// Mappings that are remembered.
const MAPPINGS: usize = 1 << 16;

/// Where code and slow paths begin in an area.
/// Where a block begins that may begin anywhere.
const ALIGNED: u32 = 16;

/// What a host of Intel's Skylake family keeps decoded as one: a jump across two of these is decoded anew
/// each time (Intel's "Mitigations for Jump Conditional Code Erratum", 2.1).
pub const FETCHED: u32 = 32;

fn area_starts(start: u32, size: u32) -> [u32; 2] {
    [start, start + size / 16 * (16 - COLD_PART)]
}

fn slot_of(id: u32) -> usize {
    (id & ((1 << SLOT_BITS) - 1)) as usize
}

#[derive(Default)]
struct Slot {
    /// Of the block here, or of the last one.
    id: u32,
    block: Option<Box<Block>>,
}

/// What a translation depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    /// Guest-physical address of the first byte.
    pub physical: GuestPhys,
    /// RIP of the first instruction.
    pub rip: u64,
    /// Mode bits.
    pub mode: Mode,
    /// Whether its accesses share TLB checks.
    pub grouped: bool,
    /// The code segment.
    pub code: CodeSegment,
}

impl Key {
    /// The word by which jump caches know it.
    pub fn jump_word(&self) -> u64 {
        self.code.jump_word(self.rip)
    }
}

/// A jump out of a block.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// Where its displacement is.
    pub site: CodeOffset,
    /// Where it goes while unlinked.
    pub stub: CodeOffset,
    /// Guest RIP of its target.
    pub target: u64,
    /// The instruction that leads out.
    pub insn: u16,
    /// The check of a group of accesses failed: it goes to the rest of its own block, from this
    /// instruction on, without groups.
    pub ungrouped: Option<u16>,
    /// What leads out.
    pub kind: ExitKind,
    /// How the flags leave.
    pub flags: ExitFlags,
    /// The block it is linked to.
    pub linked: Option<u32>,
}

/// A translated block.
pub struct Block {
    /// What it was made from.
    pub key: Key,
    /// Guest-physical address of the lowest byte of its code on its first instruction's page.
    pub lowest: GuestPhys,
    /// Bytes of guest code from there on.
    pub len: u32,
    /// Its code on other pages: that of a trace, or where its one instruction goes on.
    pub further: Box<[Further]>,
    /// Its instructions.
    pub insns: Box<[Instruction]>,
    /// First byte of its code.
    pub base: CodeOffset,
    /// First byte of its slow paths.
    pub cold_base: CodeOffset,
    /// Bytes of its code.
    pub size: u32,
    /// Bytes of its slow paths.
    pub cold_size: u32,
    /// Entry without checks.
    pub entry: CodeOffset,
    /// Entry for backward jumps.
    pub poll_entry: CodeOffset,
    /// Entry for jumps from other pages.
    pub guarded_entry: CodeOffset,
    /// Entry for indirect jumps.
    pub indirect_entry: CodeOffset,
    /// Entry for predicted returns from within the page.
    pub return_entry: CodeOffset,
    /// Offset of each instruction's code from `base`, and of the end.
    pub insn_starts: Arc<[u32]>,
    /// Entry for direct jumps that bring their flags in EFLAGS only.
    pub saving_entry: CodeOffset,
    /// Likewise, for jumps forward within the page: nothing to confirm.
    pub saving_forward: CodeOffset,
    /// It does not need the flags in EFLAGS: a recipe that needs none of these registers will do.
    pub lost: Option<u16>,
    /// Recipes for flags that are nowhere else, by instruction.
    pub recipes: Box<[(u16, Recipe)]>,
    /// Bit i: instruction i leaves something in the stash that the code behind it relies on: if
    /// it is interpreted, that code cannot go on.
    pub stashes: u64,
    /// It works on vector registers: they have to be live where it resumes.
    pub vectors: bool,
    /// Bit i: instruction i finds its flags in their saved place only.
    pub flags_away: u64,
    /// Bit i: instruction i finds them nowhere.
    pub flags_lost: u64,
    /// Whether flags are right wherever the guest may look at them.
    pub precise_flags: bool,
    /// Where the guest's registers are while it runs.
    pub places: Places,
    /// Jumps to known addresses.
    pub exits: Vec<Exit>,
    /// (block, exit) of every jump linked here.
    pub incoming: Vec<(u32, u16)>,
    /// How often a loop has come back to it by an unlinked jump.
    pub heat: u8,
    /// A trace of the loop does not come back: it is only made if that is entered often.
    pub open: bool,
    /// It is the best that can be made of a loop.
    pub settled: bool,
    /// In which epoch of fetch translations it could not be entered, and how often.
    pub vain: (u32, u8),
    /// Where its jumps through registers and memory led, while it is being recorded.
    pub ways: Option<Box<Ways>>,
    /// How often a trace of it was recorded in vain.
    pub attempts: u8,
    /// Its checks predict their TLB entries, or have been found to do better without.
    pub predicting: bool,
    /// How many of them were wrong too often.
    pub strays: u8,
    /// What the page guard has to hold.
    pub mapping: u32,
    /// The mode's jump cache.
    pub jump_cache: usize,
    /// Another mode whose jump cache its last instruction uses.
    pub far_mode: Option<Mode>,
    /// What changes if it is moved; `None`: it cannot be.
    pub marks: Option<Arc<[Mark]>>,
    pub(super) area: u32,
    /// Its place among the blocks of its first page.
    pub(super) page_place: u32,
}

impl Block {
    /// The pages that its code was made from.
    pub fn pages(&self) -> impl Iterator<Item = GuestPhys> {
        let further = self.further.iter().map(|further| further.part.lowest);
        let all = std::iter::once(self.key.physical).chain(further);
        all.map(GuestPhys::page)
    }

    /// Whether it is one instruction that crosses into another page.
    pub fn crosses(&self) -> bool {
        self.insns.len() == 1 && !self.further.is_empty()
    }

    /// Whether an address is on one of its pages: what was confirmed of that when it was entered
    /// holds where it is left.
    pub fn has_page_of(&self, rip: u64) -> bool {
        let page = self.key.code.page(rip);
        page == self.key.code.page(self.key.rip)
            || self.further.iter().any(|further| further.part.page == page)
    }

    /// Guest-physical address of one of its instructions, in flat code.
    pub fn physical(&self, rip: u64) -> GuestPhys {
        physical(self.key.physical.page(), &self.further, rip)
    }

    /// The recipe for the flags before an instruction, if they are nowhere else.
    pub fn recipe(&self, insn: usize) -> Option<Recipe> {
        let mut recipes = self.recipes.iter();
        let found = recipes.find(|&&(index, _)| usize::from(index) == insn);
        found.map(|&(_, recipe)| recipe)
    }

    /// Whether it may be entered without the flags in EFLAGS by an exit of another block.
    pub fn takes(&self, from: &Block, flags: ExitFlags) -> bool {
        match (self.lost, flags) {
            _ if !self.precise_flags => true,
            (None, ExitFlags::Arrived | ExitFlags::Sealed) => false,
            (None, _) | (_, ExitFlags::Saved | ExitFlags::Sealed) => true,
            (_, ExitFlags::Host) => false,
            (Some(changed), ExitFlags::Recipe(needed)) => changed & needed == 0,
            // The recipe, which is not known, was good for all that the other block changes.
            (Some(changed), ExitFlags::Arrived) => changed & !from.lost.unwrap_or(0) == 0,
        }
    }
}

/// All translated blocks.
pub struct BlockCache {
    region: CodeRegion,
    slots: Vec<Slot>,
    /// Slots without a block, the one that has been empty longest first.
    free_slots: VecDeque<u32>,
    by_key: FxHashMap<Key, u32>,
    /// Blocks that can be moved.
    pub(super) by_code_place: FxHashMap<CodePlace, u32>,
    by_page: Pages,
    /// For each area the blocks placed in it, by address; some may be gone.
    by_code: Vec<Vec<(CodeOffset, u32)>>,
    areas: LruCache<u32, ()>,
    free_areas: Vec<u32>,
    current_area: u32,
    last_touched: u32,
    /// Next free bytes of the current area: for code, and for slow paths.
    cursors: [u32; 2],
    first: u32,
    area_size: u32,
    mappings: FxHashMap<(u64, GuestPhys, Mode), u32>,
    last_mapping: u32,
    /// Counts since the start.
    pub statistics: CacheStatistics,
}

impl BlockCache {
    /// An empty cache in a region whose first `reserved` bytes hold shared code.
    pub fn new(region: CodeRegion, reserved: CodeOffset) -> BlockCache {
        let area_size = ((region.len() as u32 - reserved.0) / AREAS) & !63;
        BlockCache {
            region,
            slots: vec![Slot::default()],
            free_slots: VecDeque::new(),
            by_key: FxHashMap::default(),
            by_code_place: FxHashMap::default(),
            by_page: Pages::default(),
            by_code: vec![Vec::new(); AREAS as usize],
            areas: LruCache::unbounded(),
            free_areas: (1..AREAS).rev().collect(),
            current_area: 0,
            last_touched: 0,
            cursors: area_starts(reserved.0, area_size),
            first: reserved.0,
            area_size,
            mappings: FxHashMap::default(),
            last_mapping: 0,
            statistics: CacheStatistics::default(),
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
        let slot = self.slots.get(slot_of(id))?;
        (slot.id == id).then_some(slot.block.as_deref()?)
    }

    /// A block that still exists, to change what is noted of it.
    pub fn block_mut(&mut self, id: u32) -> Option<&mut Block> {
        let slot = self.slots.get_mut(slot_of(id))?;
        if slot.id != id {
            return None;
        }
        slot.block.as_deref_mut()
    }

    /// Finds a block.
    pub fn find(&self, key: &Key) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// The identifier that the next block will have.
    pub fn next_id(&self) -> u32 {
        match self.free_slots.front() {
            Some(&slot) => self.slots[slot as usize].id.wrapping_add(1 << SLOT_BITS),
            None => self.slots.len() as u32,
        }
    }

    /// All blocks that exist.
    pub fn ids(&self) -> Vec<u32> {
        let used = self.slots.iter().filter(|slot| slot.block.is_some());
        used.map(|slot| slot.id).collect()
    }

    /// The identifier of a mapping of a linear page to a physical one under a mode; never 0,
    /// and never given to another mapping.
    pub fn mapping(&mut self, linear_page: u64, physical: GuestPhys, mode: Mode) -> u32 {
        if self.mappings.len() >= MAPPINGS {
            // Blocks keep theirs; others of the same mapping are merely confirmed anew.
            self.mappings.clear();
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
        self.by_key.insert(block.key, id);
        if block.marks.is_some() {
            self.by_code_place.insert(block.key.code_place(), id);
        }
        block.page_place = self.by_page.add(id, block.lowest, block.len);
        for further in &mut block.further {
            further.place = self.by_page.add(id, further.part.lowest, further.part.len);
        }
        self.by_code[self.current_area as usize].push((block.base, id));
        if self.free_slots.pop_front().is_none() {
            self.slots.push(Slot::default());
        }
        self.slots[slot_of(id)] = Slot {
            id,
            block: Some(Box::new(block)),
        };
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

    /// Links an exit to an entry for direct jumps of a block, or to the one that saves the flags
    /// if what the exit says of them will not do, or to one that takes them from their saved
    /// place. An exit of which none can be said stays as it is.
    pub fn link(&mut self, from: u32, exit: usize, to: u32, mut entry: CodeOffset) {
        if let (Some(source), Some(target)) = (self.block(from), self.block(to))
            && let Some(out) = source.exits.get(exit)
            && out.kind != ExitKind::Return
            && !target.takes(source, out.flags)
        {
            entry = match out.flags {
                ExitFlags::Arrived if target.lost.is_some() || source.lost != Some(u16::MAX) => {
                    return;
                }
                ExitFlags::Arrived | ExitFlags::Sealed if entry == target.entry => {
                    target.return_entry
                }
                ExitFlags::Arrived | ExitFlags::Sealed => target.indirect_entry,
                _ if entry == target.entry => target.saving_forward,
                _ => target.saving_entry,
            };
        }
        let Some(source) = self.block_mut(from) else {
            return;
        };
        let Some(out) = source.exits.get_mut(exit) else {
            return;
        };
        if out.linked.is_some() {
            return;
        }
        out.linked = Some(to);
        let site = out.site;
        if let Some(target) = self.block_mut(to) {
            target.incoming.push((from, exit as u16));
            self.region.patch_relative(site, entry);
        }
    }

    /// Removes a block and every link to and from it.
    pub fn remove(&mut self, id: u32) -> Option<Block> {
        self.block(id)?;
        let block = *self.slots[slot_of(id)].block.take()?;
        self.free_slots.push_back(slot_of(id) as u32);
        for &(from, exit) in &block.incoming {
            if let Some(source) = self.block_mut(from) {
                let out = &mut source.exits[exit as usize];
                if out.linked == Some(id) {
                    out.linked = None;
                    let (site, stub) = (out.site, out.stub);
                    self.region.patch_relative(site, stub);
                }
            }
        }
        for exit in &block.exits {
            if let Some(to) = exit.linked
                && let Some(target) = self.block_mut(to)
            {
                target.incoming.retain(|&(from, _)| from != id);
            }
        }
        if self.by_key.get(&block.key) == Some(&id) {
            self.by_key.remove(&block.key);
        }
        if block.marks.is_some() {
            let place = block.key.code_place();
            if self.by_code_place.get(&place) == Some(&id) {
                self.by_code_place.remove(&place);
            }
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
        if within >= block.size {
            return None;
        }
        let insn = block
            .insn_starts
            .partition_point(|&start| start <= within)
            .checked_sub(1)?;
        Some((id, insn.min(block.insns.len() - 1)))
    }

    /// Bytes of host code in use.
    pub fn code_bytes(&self) -> u64 {
        let blocks = self.slots.iter().filter_map(|slot| slot.block.as_ref());
        blocks
            .map(|block| u64::from(block.size) + u64::from(block.cold_size))
            .sum()
    }

    /// Everything a new block needs but the area, which `insert` sets.
    #[allow(clippy::too_many_arguments)]
    pub fn make_block(
        key: Key,
        (lowest, len): (GuestPhys, u32),
        further: Box<[Further]>,
        insns: &[Instruction],
        [base, cold_base]: [CodeOffset; 2],
        mapping: u32,
        jump_cache: usize,
        emitted: &mut crate::x86_64::Emitted,
    ) -> Block {
        let at = |offset: u32| CodeOffset(base.0 + offset);
        Block {
            key,
            lowest,
            len,
            further,
            insns: Box::from(insns),
            base,
            cold_base,
            size: emitted.code[0].len() as u32,
            cold_size: emitted.code[1].len() as u32,
            entry: at(emitted.entry),
            poll_entry: at(emitted.poll_entry),
            guarded_entry: at(emitted.guarded_entry),
            indirect_entry: at(emitted.indirect_entry),
            return_entry: at(emitted.return_entry),
            insn_starts: Arc::from(emitted.insn_starts.as_slice()),
            saving_entry: at(emitted.saving_entry),
            saving_forward: at(emitted.saving_forward),
            lost: emitted.lost,
            recipes: std::mem::take(&mut emitted.recipes).into_boxed_slice(),
            stashes: emitted.stashes,
            vectors: emitted.vectors,
            flags_away: emitted.flags_away,
            flags_lost: emitted.flags_lost,
            precise_flags: emitted.precise_flags,
            places: emitted.places,
            exits: emitted
                .exits
                .iter()
                .map(|exit| Exit {
                    site: exit.site,
                    stub: exit.stub,
                    target: exit.target,
                    insn: exit.insn,
                    ungrouped: exit.ungrouped,
                    kind: exit.kind,
                    flags: exit.flags,
                    linked: None,
                })
                .collect(),
            incoming: Vec::new(),
            heat: 0,
            settled: false,
            open: false,
            vain: (0, 0),
            ways: None,
            attempts: 0,
            predicting: false,
            strays: 0,
            mapping,
            jump_cache,
            far_mode: None,
            marks: emitted.marks.take().map(Arc::from),
            area: 0,
            page_place: 0,
        }
    }
}
