//! Making translations: from decoded instructions to a block in the cache.

use std::time::Instant;

use mmu::GuestPhys;

use super::block_state::{JUMP_CACHES, JumpEntry};
use super::recording::heat_counter;
use super::vcpu::{Vcpu, context_of};
use crate::cache::{Arrival, Block, BlockCache, FETCHED, Further, Key, Part, code_file};
use crate::decode::{self, DecodedBlock};
use crate::guest::Mode;
use crate::interpret::extension;
use crate::record::classify;
use crate::x86_64::{self, Allotting, Predicting, Target, bulk, moving};

/// How much is known of code that is translated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tier {
    /// Nothing yet.
    First,
    /// A sample has found the processor in it.
    Sampled,
    /// It is a hot loop.
    Hot {
        /// Its checks try the TLB entry that they found last.
        predicting: bool,
    },
}

impl Tier {
    /// Whether it is worth more than the least.
    fn is_hot(self) -> bool {
        matches!(self, Tier::Hot { .. })
    }
}

impl Vcpu {
    /// Translates the code of a key, which is that of RIP. `None`: it is to be interpreted.
    pub(super) fn translate(&mut self, key: Key) -> Option<u32> {
        let mut insns = std::mem::take(&mut self.decoded);
        let decoded = decode::block_at(&mut self.context(), key.physical, &mut insns);
        let placed = decoded.and_then(|mut decoded| {
            // What comes behind a failed check of a group is short-lived, and has no second chance.
            let usual = key.grouped == self.options.grouping;
            if self.options.long_blocks && usual && !key.mode.segmented() {
                self.extend(key, &mut insns, &mut decoded);
            }
            let range = (key.physical, decoded.len);
            let room = (mmu::PAGE_SIZE - key.physical.page_offset() as u64) as u32;
            let second = decoded.second.map(|lowest| Part {
                page: key.code.next_page(key.rip),
                lowest,
                len: decoded.len - room,
            });
            self.place(key, &insns, range, second.as_slice(), Tier::First)
        });
        self.decoded = insns;
        placed
    }

    /// Lets a block go on behind its jumps, where code has been executed and has no translation yet.
    fn extend(
        &mut self,
        key: Key,
        insns: &mut Vec<iced_x86::Instruction>,
        decoded: &mut DecodedBlock,
    ) {
        let mut cx = context_of(&mut self.block, &mut self.mem, &mut *self.platform);
        let (visits, cache) = (&mut self.visits, &self.cache);
        let goes_on = |physical, rip| {
            let key = Key {
                physical,
                rip,
                ..key
            };
            !visits.first(physical, rip) && cache.find(&key).is_none()
        };
        decode::extend(&mut cx, insns, decoded, goes_on);
        cx.settle();
    }

    /// Copies the translation of the same code at another address, if there is one.
    pub(super) fn move_here(&mut self, key: Key) -> Option<u32> {
        if !self.options.moving {
            return None;
        }
        let original = self.cache.original(&key)?;
        let phase = self.cache.block(original)?.base.0 % FETCHED;
        let start = Instant::now();
        // Making room may have dropped the original.
        let id = self.arrive(key, phase, |cache, arrival, code| {
            cache.copy(cache.original(&key)?, arrival, code)
        });
        let statistics = &mut self.cache.statistics;
        statistics.moved += u64::from(id.is_some());
        statistics.nanoseconds += start.elapsed().as_nanos() as u64;
        self.settle();
        id.filter(|&id| self.cache.block(id).is_some())
    }

    /// Gives a translation that was made elsewhere its place, which begins at `phase` in [`FETCHED`] bytes; `make`
    /// makes the block and its code for that.
    pub(super) fn arrive(
        &mut self,
        key: Key,
        phase: u32,
        make: impl FnOnce(&BlockCache, Arrival, &mut [Vec<u8>; 2]) -> Option<Block>,
    ) -> Option<u32> {
        let (to, gone) = self.cache.reserve(Some(phase));
        self.drop_blocks(&gone);
        let page = key.code.page(key.rip);
        let mapping = self.cache.mapping(page, key.physical, key.mode);
        let mut code = std::mem::take(&mut self.workshop.code);
        let block = make(&self.cache, Arrival { key, mapping, to }, &mut code);
        let id = block.map(|block| self.cache.insert(block, &code));
        self.workshop.code = code;
        id
    }

    /// Translates instructions and keeps the result. `range`: where their bytes are on the page of
    /// the first one. `parts`: on which other pages there are some.
    pub(super) fn place(
        &mut self,
        key: Key,
        insns: &[iced_x86::Instruction],
        range: (GuestPhys, u32),
        parts: &[Part],
        tier: Tier,
    ) -> Option<u32> {
        let predicting = tier == Tier::Hot { predicting: true };
        let usual = key.grouped == self.options.grouping;
        let counts = match tier {
            Tier::First => usual && !self.options.samples(),
            Tier::Sampled => usual,
            Tier::Hot { .. } => false,
        };
        let counted_entries = self.options.long_traces().filter(|_| counts);
        // Numbers of sites are those of one run.
        let keeps = self.code_file.is_some()
            && !predicting
            && parts.is_empty()
            && code_file::keeps(&key)
            && !moving::is_relocated(&key, insns);
        let movable = self.options.moving
            && parts.is_empty()
            && !moving::follows_calls(insns)
            && moving::can_leave(&key, insns);
        let start = Instant::now();
        if predicting {
            self.make_room_for_sites();
        }
        let x87_opcodes = self.x87_opcodes(key, insns, parts);
        let far_mode = self.far_mode(key.mode, insns);
        let (jump_cache, far_jump_cache) = self.jump_caches(key.mode, far_mode);
        let hot = tier.is_hot() || !usual;
        let whole_jumps = self.options.whole_jumps && hot;
        let ([base, cold_base], gone) = self.cache.reserve(whole_jumps.then_some(0));
        self.drop_blocks(&gone);
        let mapping = self
            .cache
            .mapping(key.code.page(key.rip), key.physical, key.mode);
        let further = parts.iter().map(|&part| {
            let mapping = self.cache.mapping(part.page, part.lowest, key.mode);
            Further::new(part, mapping)
        });
        let further: Box<[Further]> = further.collect();
        let target = Target {
            id: self.cache.next_id(),
            mode: key.mode,
            code: key.code,
            base,
            cold_base,
            trampolines: &self.trampolines,
            copies: self.mem.copies(),
            stride: self.mem.mirror_stride(),
            jump_cache,
            far_jump_cache,
            system_inline: self.options.system_inline,
            memory_inline: self.options.memory_inline,
            vector_strings: self.options.vector_strings && bulk::is_possible(),
            mapping,
            further: &further,
            counted: self.options.counted,
            returns: self.options.returns,
            grouping: key.grouped,
            precise_flags: self.options.precise_flags,
            lazy_flags: self.options.lazy_flags && self.options.precise_flags,
            allotting: self.options.registers.map(|least| Allotting {
                least,
                hot: tier.is_hot(),
            }),
            crossing: self.options.crossing,
            late_stack: self.options.late_stack,
            late_slots: self.options.late_slots,
            late_stores: self.options.late_stores,
            late_index: self.options.late_index,
            prefetch: self.options.prefetch,
            slot_registers: self.options.slot_registers,
            sure_accesses: self.options.sure_accesses,
            hoisting: self.options.hoisting && tier.is_hot(),
            whole_jumps,
            memory_operands: self.options.memory_operands,
            heat: counted_entries.map(|_| heat_counter(key.physical)),
            x87_opcodes: &x87_opcodes,
            prediction: predicting.then_some(Predicting {
                strayed: &self.strayed,
                page: key.physical.page(),
                first: self.strayed.next_site(),
            }),
            movable: movable || keeps,
            bmi2: std::arch::is_x86_feature_detected!("bmi2"),
        };
        let mut emitted = x86_64::emit(
            &mut self.workshop,
            &mut self.classifier,
            insns,
            key.rip,
            target,
        );
        // Marking a page makes news of its own.
        let as_decoded = !self.mem.has_news();
        self.mem.mark_code(key.physical);
        for part in parts {
            self.mem.mark_code(part.lowest);
        }
        let mut block = Block::new(
            key,
            range,
            further,
            insns,
            [base, cold_base],
            mapping,
            jump_cache,
            movable,
            &mut emitted,
        );
        block.predicting = predicting;
        block.counts = counts;
        block.far_mode = far_mode;
        if keeps && as_decoded {
            block.source = self.source(&block);
        }
        let id = self.cache.insert(block, &emitted.code);
        self.cache.statistics.translated += 1;
        self.cache.statistics.allotted += u64::from(!emitted.places.are_usual());
        self.new_sites(&emitted.sites);
        if let Some(entries) = counted_entries {
            self.count_entries(key, entries);
        }
        self.workshop.take_back(emitted);
        self.settle();
        self.cache.statistics.nanoseconds += start.elapsed().as_nanos() as u64;
        // Settling may drop the block again if its page has just been written.
        self.cache.block(id).is_some().then_some(id)
    }

    /// What the x87 knows each instruction by, where an exception may be unmasked: their bytes are looked at again.
    fn x87_opcodes(
        &mut self,
        key: Key,
        insns: &[iced_x86::Instruction],
        parts: &[Part],
    ) -> Vec<Option<u16>> {
        if !key.mode.has(Mode::X87_UNMASKED) {
            return Vec::new();
        }
        let home = Part {
            page: key.code.page(key.rip),
            lowest: key.physical,
            len: 0,
        };
        let opcodes = insns.iter().map(|insn| {
            extension::noted(insn)?;
            extension::x87_opcode(insn, |at| {
                let page = key.code.page(at);
                let mut pages = [&home].into_iter().chain(parts);
                let lowest = pages.find(|part| part.page == page)?.lowest;
                let offset = key.code.linear(at) % mmu::PAGE_SIZE;
                let mut byte = [0];
                let loaded = self.mem.load(lowest.page().add(offset), &mut byte);
                loaded.is_ok().then_some(byte[0])
            })
        });
        opcodes.collect()
    }

    /// The mode in which a block's last instruction arrives, where emitted code goes there by that
    /// mode's jump cache.
    fn far_mode(&self, mode: Mode, insns: &[iced_x86::Instruction]) -> Option<Mode> {
        if !self.options.system_inline {
            return None;
        }
        classify::far_mode(insns.last()?, mode)
    }

    /// The jump caches of two modes, neither of which takes the other's.
    pub(super) fn jump_caches(&mut self, mode: Mode, far: Option<Mode>) -> (usize, Option<usize>) {
        let Some(far) = far else {
            return (self.jump_cache(mode), None);
        };
        // The second may take that of the first, the third then takes one further on.
        self.jump_cache(far);
        let own = self.jump_cache(mode);
        (own, Some(self.jump_cache(far)))
    }

    /// The jump cache of a mode; the oldest mode loses its own when there are too many.
    fn jump_cache(&mut self, mode: Mode) -> usize {
        if let Some(index) = self.jump_modes.iter().position(|&known| known == mode) {
            return index;
        }
        if self.jump_modes.len() < JUMP_CACHES {
            // It has not been used, and is zero.
            let index = self.jump_modes.len();
            self.jump_modes.push(mode);
            self.block.get_mut().jumps[index][0] = JumpEntry::empty_at(0);
            return index;
        }
        let index = self.next_jump_cache;
        self.next_jump_cache = (index + 1) % JUMP_CACHES;
        // Blocks of the old mode still refer to this cache: they have to go with it.
        let old = std::mem::replace(&mut self.jump_modes[index], mode);
        for id in self.cache.ids() {
            let of_old = self
                .cache
                .block(id)
                .is_some_and(|block| block.key.mode == old || block.far_mode == Some(old));
            if of_old && let Some(block) = self.cache.remove(id) {
                self.drop_blocks(&[block]);
            }
        }
        JumpEntry::empty(&mut self.block.get_mut().jumps[index]);
        index
    }
}
