//! A translated block: what was made of its code, and where that is.

use std::sync::Arc;

use iced_x86::Instruction;
use mmu::GuestPhys;
use serde::{Deserialize, Serialize};

use super::insns::Insns;
use super::near::near_word;
use super::parts::{Further, physical};
use super::paths::Paths;
use super::region::CodeOffset;
use super::words::Words;
use crate::guest::{CodeSegment, Mode};
use crate::record::recipe::Recipe;
use crate::x86_64::moving;
use crate::x86_64::{Emitted, Entries, ExitFlags, ExitSite, Places};

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

    /// A word to find it by.
    pub(super) fn word(&self) -> u64 {
        let start = self.rip.wrapping_sub(self.physical.page_offset() as u64);
        let segment = u64::from(self.code.number) << 32;
        let nearby = start.rotate_left(16) ^ segment ^ self.code_place().kind();
        near_word(self.physical, nearby)
    }
}

/// What was made of a block's code, which its copies at other addresses have in common. Addresses of the
/// guest are those that it was made at, and places in the code likewise: [`Block`] knows its own.
#[derive(Serialize, Deserialize)]
pub struct Translation {
    rip: u64,
    base: CodeOffset,
    cold_base: CodeOffset,
    /// Left out where a translation is kept: the guest has them.
    #[serde(skip)]
    pub(super) insns: Insns,
    exits: Box<[ExitSite]>,
    recipes: Box<[(u16, Recipe)]>,
    /// Offset of each instruction's code from the first byte, and of the end.
    pub insn_starts: Words,
    /// What changes if its code has another place; `None`: it cannot have one.
    pub marks: Option<Words>,
    /// Whether it can be at another address of a user program too.
    pub movable: bool,
    /// The first and the last address that a kernel's code names, if it can be at another address.
    pub high: Option<(u64, u64)>,
    /// Bytes of its code.
    pub size: u32,
    /// Bytes of its slow paths.
    pub cold_size: u32,
    /// What [`Block::lost`] is at first.
    lost: Option<u16>,
    /// Its jumps back to its beginning take an entry of their own.
    pub has_inner: bool,
    /// Bit i: instruction i leaves something in the stash that the code behind it relies on: if
    /// it is interpreted, that code cannot go on.
    pub stashes: u64,
    /// It works on vector registers: they have to be live where it resumes.
    pub vectors: bool,
    /// Bit i: instruction i finds its flags in their saved place only.
    pub flags_away: u64,
    /// Bit i: instruction i finds them nowhere.
    pub flags_lost: u64,
    /// Where the guest's registers are while it runs.
    pub places: Places,
}

impl Translation {
    /// RIP of the first instruction where it was made.
    pub(super) fn rip(&self) -> u64 {
        self.rip
    }

    /// Instructions.
    pub fn count(&self) -> usize {
        self.insn_starts.len() - 1
    }

    /// The instructions as they are where the first one is at this RIP.
    pub fn insns_at(&self, rip: u64) -> impl Iterator<Item = Instruction> {
        let distance = rip.wrapping_sub(self.rip);
        let insns = self.insns.all().iter();
        insns.map(move |insn| moving::moved_instruction(insn, distance))
    }

    /// The recipe for the flags before an instruction, if they are nowhere else.
    pub fn recipe(&self, insn: usize) -> Option<Recipe> {
        let mut recipes = self.recipes.iter();
        let found = recipes.find(|&&(index, _)| usize::from(index) == insn);
        found.map(|&(_, recipe)| recipe)
    }
}

/// A linear page, where it is in the guest's memory, and the mode.
pub(super) type Mapping = (u64, GuestPhys, Mode);

/// What a block that may be kept for later runs was made from: at its end the memory may hold something else.
#[derive(Debug)]
pub struct Source {
    /// By what it is found in the code file.
    pub word: u32,
    /// The bytes of its instructions, each run of them ([`super::code_file::spans_of`]) behind the one before.
    pub bytes: Box<[u8]>,
}

/// A translated block.
pub struct Block {
    /// What it was made from.
    pub key: Key,
    /// What was made of that.
    pub made: Arc<Translation>,
    /// Guest-physical address of the lowest byte of its code on its first instruction's page.
    pub lowest: GuestPhys,
    /// Bytes of guest code from there on.
    pub len: u32,
    /// Its code on other pages: that of a trace, or where its one instruction goes on.
    pub further: Box<[Further]>,
    /// First byte of its code.
    pub base: CodeOffset,
    /// First byte of its slow paths.
    pub cold_base: CodeOffset,
    pub(super) entries: Entries,
    /// (exit, block) of every exit that is linked.
    pub(super) outgoing: Vec<(u16, u32)>,
    /// (block, exit) of every jump linked here.
    pub incoming: Vec<(u32, u16)>,
    /// It does not need the flags in EFLAGS: a recipe that needs none of these registers will do.
    pub lost: Option<u16>,
    /// How often exits could not be linked because a recipe might need more than that.
    pub(super) impatience: u8,
    /// How often a loop has come back to it by an unlinked jump.
    pub heat: u8,
    /// It counts how often it is entered.
    pub counts: bool,
    /// A trace of the loop does not come back: it is only made if that is entered often.
    pub open: bool,
    /// It is the best that can be made of a loop.
    pub settled: bool,
    /// In which epoch of fetch translations it could not be entered, and how often.
    pub vain: (u32, u8),
    /// The paths that it took, while it is being recorded.
    pub paths: Option<Box<Paths>>,
    /// How often a trace of it was recorded in vain.
    pub attempts: u8,
    /// It is a loop whose checks might predict, if it turns out to run for long.
    pub loops: bool,
    /// How often the processor was asked to do something else when it was about to run it.
    pub seen: u8,
    /// Its checks predict where they access memory, or have been found to do better without.
    pub predicting: bool,
    /// How many of them were wrong too often.
    pub strays: u8,
    /// What it was made from, if it may be kept in the code file, and is not from there.
    pub source: Option<Arc<Source>>,
    /// What the page guard has to hold.
    pub mapping: u32,
    /// The mode's jump cache.
    pub jump_cache: usize,
    /// Another mode whose jump cache its last instruction uses.
    pub far_mode: Option<Mode>,
    pub(super) area: u32,
    /// Its place among the blocks of its first page.
    pub(super) page_place: u32,
}

impl Block {
    /// A block of what was just emitted; everything but the area, which the cache sets.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        key: Key,
        (lowest, len): (GuestPhys, u32),
        further: Box<[Further]>,
        insns: &[Instruction],
        [base, cold_base]: [CodeOffset; 2],
        mapping: u32,
        jump_cache: usize,
        movable: bool,
        emitted: &mut Emitted,
    ) -> Block {
        let marks = emitted.marks.take();
        let marked = marks.is_some() && !moving::follows_calls(insns);
        let made = Translation {
            rip: key.rip,
            base,
            cold_base,
            insns: insns.into(),
            exits: Box::from(emitted.exits.as_slice()),
            recipes: std::mem::take(&mut emitted.recipes).into_boxed_slice(),
            insn_starts: emitted.insn_starts.as_slice().into(),
            marks,
            movable,
            high: moving::high_reach(&key, insns).filter(|_| marked),
            size: emitted.code[0].len() as u32,
            cold_size: emitted.code[1].len() as u32,
            lost: emitted.lost,
            has_inner: emitted.has_inner,
            stashes: emitted.stashes,
            vectors: emitted.vectors,
            flags_away: emitted.flags_away,
            flags_lost: emitted.flags_lost,
            places: emitted.places,
        };
        let place = ([base, cold_base], mapping);
        Block::of(
            key,
            (Arc::new(made), emitted.entries),
            (lowest, len),
            further,
            place,
            jump_cache,
        )
    }

    /// Nothing leads there or away yet. `place`: where the code and its slow paths are, and the mapping.
    pub(super) fn of(
        key: Key,
        (made, entries): (Arc<Translation>, Entries),
        (lowest, len): (GuestPhys, u32),
        further: Box<[Further]>,
        ([base, cold_base], mapping): ([CodeOffset; 2], u32),
        jump_cache: usize,
    ) -> Block {
        Block {
            key,
            lost: made.lost,
            impatience: 0,
            made,
            lowest,
            len,
            further,
            base,
            cold_base,
            entries,
            outgoing: Vec::new(),
            incoming: Vec::new(),
            heat: 0,
            counts: false,
            open: false,
            settled: false,
            vain: (0, 0),
            paths: None,
            attempts: 0,
            loops: false,
            seen: 0,
            predicting: false,
            strays: 0,
            source: None,
            mapping,
            jump_cache,
            far_mode: None,
            area: 0,
            page_place: 0,
        }
    }

    /// The same translation for another RIP and another place. What it leads to is not linked.
    pub(super) fn at(&self, key: Key, mapping: u32, bases: [CodeOffset; 2]) -> Block {
        let made = (self.made.clone(), self.entries);
        let range = (self.lowest, self.len);
        Block {
            lost: self.lost,
            counts: self.counts,
            // A trace is one there too. Copies share the predictions of its checks.
            open: self.open,
            settled: self.settled,
            attempts: self.attempts,
            loops: self.loops,
            predicting: self.predicting,
            strays: self.strays,
            source: self.source.clone(),
            far_mode: self.far_mode,
            ..Block::of(
                key,
                made,
                range,
                Box::default(),
                (bases, mapping),
                self.jump_cache,
            )
        }
    }

    /// From where the translation was made to where the block is.
    fn distance(&self) -> u64 {
        self.key.rip.wrapping_sub(self.made.rip)
    }

    /// One of its instructions.
    pub fn insn(&self, index: usize) -> Instruction {
        moving::moved_instruction(&self.made.insns.all()[index], self.distance())
    }

    /// RIP of one of its instructions.
    pub fn rip(&self, index: usize) -> u64 {
        self.made.insns.all()[index]
            .ip()
            .wrapping_add(self.distance())
    }

    /// Its instructions.
    pub fn insns(&self) -> impl Iterator<Item = Instruction> {
        self.made.insns_at(self.key.rip)
    }

    /// One of its exits.
    pub fn exit(&self, index: usize) -> Option<ExitSite> {
        let exit = self.made.exits.get(index)?;
        Some(ExitSite {
            site: self.place(exit.site),
            stub: self.place(exit.stub),
            target: exit.target.wrapping_add(self.distance()),
            ..*exit
        })
    }

    /// Its exits.
    pub fn exits(&self) -> impl Iterator<Item = ExitSite> {
        (0..self.made.exits.len()).filter_map(|index| self.exit(index))
    }

    /// Where something of the translation's code is in its own.
    fn place(&self, offset: CodeOffset) -> CodeOffset {
        let made = &*self.made;
        let within = offset.0.wrapping_sub(made.base.0);
        if within < made.size {
            CodeOffset(self.base.0 + within)
        } else {
            CodeOffset(self.cold_base.0 + offset.0.wrapping_sub(made.cold_base.0))
        }
    }

    fn behind_base(&self, offset: u32) -> CodeOffset {
        CodeOffset(self.base.0 + offset)
    }

    /// Entry without checks.
    pub fn entry(&self) -> CodeOffset {
        self.behind_base(self.entries.plain)
    }

    /// Entry for backward jumps.
    pub fn poll_entry(&self) -> CodeOffset {
        self.behind_base(self.entries.polling)
    }

    /// Entry for jumps from other pages.
    pub fn guarded_entry(&self) -> CodeOffset {
        self.behind_base(self.entries.guarded)
    }

    /// Entry for indirect jumps.
    pub fn indirect_entry(&self) -> CodeOffset {
        self.behind_base(self.entries.indirect)
    }

    /// Entry for predicted returns from within the page.
    pub fn return_entry(&self) -> CodeOffset {
        self.behind_base(self.entries.returning)
    }

    /// Entry for direct jumps that bring their flags in EFLAGS only.
    pub fn saving_entry(&self) -> CodeOffset {
        self.behind_base(self.entries.saving)
    }

    /// Likewise, for jumps forward within the page: nothing to confirm.
    pub fn saving_forward(&self) -> CodeOffset {
        self.behind_base(self.entries.saving_forward)
    }

    /// Where the code of one of its instructions is, or its end.
    pub fn insn_start(&self, index: usize) -> CodeOffset {
        self.behind_base(self.made.insn_starts[index])
    }

    /// The pages that its code was made from.
    pub fn pages(&self) -> impl Iterator<Item = GuestPhys> {
        let further = self.further.iter().map(|further| further.part.lowest);
        let all = std::iter::once(self.key.physical).chain(further);
        all.map(GuestPhys::page)
    }

    /// Whether it is one instruction that crosses into another page.
    pub fn crosses(&self) -> bool {
        self.made.count() == 1 && !self.further.is_empty()
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

    /// The mappings of its pages, with their identifiers.
    pub(super) fn mappings(&self) -> impl Iterator<Item = (Mapping, u32)> {
        let Key { physical, mode, .. } = self.key;
        let first = self.key.code.page(self.key.rip);
        let further = self.further.iter().map(move |further| {
            let page = (further.part.page, further.part.lowest.page(), mode);
            (page, further.mapping)
        });
        std::iter::once(((first, physical.page(), mode), self.mapping)).chain(further)
    }

    /// Whether it may be entered without the flags in EFLAGS by an exit of another block.
    pub fn takes(&self, from: &Block, flags: ExitFlags) -> bool {
        match (self.lost, flags) {
            _ if self.entries.any_flags => true,
            (None, ExitFlags::Arrived | ExitFlags::Sealed) => false,
            (None, _) | (_, ExitFlags::Saved | ExitFlags::Sealed) => true,
            (_, ExitFlags::Host) => false,
            (Some(changed), ExitFlags::Recipe(needed)) => changed & needed == 0,
            // The recipe, which is not known, was good for all that the other block changes.
            (Some(changed), ExitFlags::Arrived) => changed & !from.lost.unwrap_or(0) == 0,
        }
    }
}
