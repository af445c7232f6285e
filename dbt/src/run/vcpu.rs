//! One virtual processor: the dispatch loop over translated blocks and the interpreter.

use std::sync::atomic::Ordering;

use mmu::{GuestPhys, PhysMem};

use super::block_state::{CpuBlock, JumpEntry, OwnedBlock};
use super::cold::Visits;
use super::engine::{EngineOptions, Stop, VcpuError};
use super::guards::Guards;
use super::host::{GsBase, counter_is_invariant, load_x87, store_x87};
use super::keeping::Keeping;
use super::prediction::Strayed;
use super::raising::{self, LastException};
use super::recording::Heat;
use super::sampler::Sampler;
use super::segments::{CodeSegments, Followed};
use super::signal::{FaultSite, Registration, register_region};
use super::thread_timer::Ring;
use super::upcall::Upcall;
use crate::cache::code_file::CodeFile;
use crate::cache::{Block, BlockCache, CacheStatistics, CodeOffset, CodeRegion};
use crate::guest::{CodeSegment, CpuState, Exception, Mode};
use crate::interpret::extension::{Portable, set_x87_live};
use crate::interpret::native::pack_flags;
use crate::interpret::system::deliver;
use crate::interpret::{self, Context, follow_x87_control};
use crate::platform::Platform;
use crate::record::classify::Classifier;
use crate::x86_64::{self, Trampolines, Workshop, translatable};

/// A virtual processor, with the memory and the machine it works on.
pub struct Vcpu {
    /// Goes before the word that it sets.
    sampler: Option<Sampler>,
    pub(super) block: OwnedBlock,
    /// Guest-physical memory.
    pub mem: PhysMem,
    /// The machine around it.
    pub platform: Box<dyn Platform>,
    pub(super) cache: BlockCache,
    pub(super) trampolines: Trampolines,
    pub(super) classifier: Classifier,
    pub(super) workshop: Workshop,
    pub(super) strayed: Strayed,
    /// Room for the instructions of a block, used again and again.
    pub(super) decoded: Vec<iced_x86::Instruction>,
    pub(super) options: EngineOptions,
    /// Modes that have a jump cache, oldest first.
    pub(super) jump_modes: Vec<Mode>,
    pub(super) next_jump_cache: usize,
    /// The instruction count at which the budget is used up.
    goal: u64,
    pub(super) visits: Visits,
    /// Translations from earlier runs.
    pub(super) code_file: Option<CodeFile>,
    /// What is to be kept of blocks that are gone.
    pub(super) dropped: Keeping,
    pub(super) code_segments: CodeSegments,
    /// What emitted code was told of the segments.
    pub(super) followed: Followed,
    pub(super) guards: Guards,
    /// The instruction count at the latest exception.
    last_exception: LastException,
    /// How often fetch translations have been dropped.
    pub(super) fetch_epoch: u32,
    /// [`mmu::TlbSet::forgotten`] when emitted code called up.
    pub(super) forgotten: u64,
    /// The mode whose returns are predicted on emitted code's stack.
    pub(super) returns_mode: Mode,
    /// Likewise, the code segment.
    returns_code: CodeSegment,
    /// The head of hot code, of which a trace is to be made.
    pub(super) recording: Option<(u32, Heat)>,
    /// Set by an upcall when delivering failed.
    pub(super) shutdown: bool,
    counter_is_invariant: bool,
    _registration: Registration,
}

/// Everything that one instruction may touch, beside the rest of its processor.
pub(super) fn context_of<'a>(
    block: &'a mut OwnedBlock,
    mem: &'a mut PhysMem,
    platform: &'a mut dyn Platform,
) -> Context<'a> {
    let CpuBlock { cpu, tlb, .. } = block.get_mut();
    Context {
        cpu,
        tlb,
        mem,
        platform,
    }
}

impl Vcpu {
    /// A processor at reset.
    pub fn new(
        mut mem: PhysMem,
        platform: Box<dyn Platform>,
        options: EngineOptions,
    ) -> Result<Vcpu, VcpuError> {
        let bytes = options.code_bytes;
        let mut region = CodeRegion::new(bytes, options.large_code)
            .map_err(|source| VcpuError::CodeMemory { bytes, source })?;
        let upcall =
            super::upcalls::upcall as extern "sysv64" fn(*mut Vcpu, *const Upcall, u64) -> u64;
        let signal =
            super::upcalls::signal as extern "sysv64" fn(*mut Vcpu, *const Upcall, u64) -> u64;
        let (code, trampolines) = x86_64::emit_trampolines(
            upcall as usize as u64,
            signal as usize as u64,
            mem.copies(),
            mem.mirror_stride(),
        );
        region.write(CodeOffset(0), &code);
        let mut block = OwnedBlock::new();
        block.get_mut().tlb.spaces.kept = u8::from(options.pcid_tlb);
        block.get_mut().tlb.use_second_places(options.second_places);
        mem.populate_ahead(options.populate_ahead);
        block.set_unpredicted(region.address(trampolines.unpredicted));
        block.get_mut().exchange.arrival = region.address(trampolines.arrival);
        let start = region.address(CodeOffset(0));
        let registration = register_region(FaultSite {
            start,
            end: start + region.len() as u64,
            code_start: region.address(trampolines.end),
            resume: region.address(trampolines.signal),
            block: block.as_ptr() as u64,
        })
        .ok_or(VcpuError::TooMany)?;
        let cache = BlockCache::new(region, trampolines.end, mem.provider().cloned());
        Ok(Vcpu {
            sampler: None,
            block,
            mem,
            platform,
            cache,
            trampolines,
            classifier: Classifier::default(),
            workshop: Workshop::default(),
            strayed: Strayed::default(),
            decoded: Vec::new(),
            jump_modes: Vec::new(),
            next_jump_cache: 0,
            goal: 0,
            visits: Visits::new(options.cold),
            code_file: None,
            dropped: Keeping::default(),
            code_segments: CodeSegments::default(),
            followed: Followed::default(),
            guards: Guards::default(),
            options,
            last_exception: LastException::none(),
            fetch_epoch: 0,
            forgotten: 0,
            returns_mode: Mode(0),
            returns_code: CodeSegment::FLAT,
            recording: None,
            shutdown: false,
            counter_is_invariant: counter_is_invariant(),
            _registration: registration,
        })
    }

    /// The guest's registers.
    pub fn cpu(&self) -> &CpuState {
        &self.block.get().cpu
    }

    /// The guest's registers, to change while the processor does not run.
    pub fn cpu_mut(&mut self) -> &mut CpuState {
        &mut self.block.get_mut().cpu
    }

    /// The word that asks the processor to return from [`Vcpu::run`]; any thread may set it to
    /// a nonzero value while this processor exists.
    pub fn exit_request(&self) -> *const std::sync::atomic::AtomicU32 {
        &raw const self.block.get().cpu.exit_request
    }

    /// Counts of the block cache.
    pub fn statistics(&self) -> CacheStatistics {
        self.cache.statistics
    }

    /// Guest instructions executed so far; exact in counted mode only.
    pub fn instructions(&self) -> u64 {
        if self.options.counted {
            let left = self.block.get().exchange.budget;
            self.goal.wrapping_sub(left as u64)
        } else {
            self.cpu().instructions
        }
    }

    /// Lets `run` go on until this many instructions have been executed in all (counted mode).
    pub fn set_goal(&mut self, goal: u64) {
        let now = self.instructions();
        self.goal = goal;
        self.block.get_mut().exchange.budget = goal.wrapping_sub(now) as i64;
    }

    /// Everything that one instruction may touch.
    pub fn context(&mut self) -> Context<'_> {
        context_of(&mut self.block, &mut self.mem, &mut *self.platform)
    }

    /// Forgets every translation and TLB entry: after memory or mode were changed from outside.
    pub fn forget_everything(&mut self) {
        let block = self.block.get_mut();
        block.tlb.flush(true);
        self.guards.forget(&mut block.guards);
        for id in self.cache.ids() {
            if let Some(block) = self.cache.remove(id) {
                self.drop_blocks(&[block]);
            }
        }
        for cache in &mut self.block.get_mut().jumps[..self.jump_modes.len()] {
            JumpEntry::empty(cache);
        }
        self.settle();
    }

    /// Runs guest code until something needs the caller.
    pub fn run(&mut self) -> Stop {
        let _gs = GsBase::set(self.block.as_ptr() as u64);
        let _portable = Portable::set(self.options.portable);
        // The image may come from anywhere.
        follow_x87_control(self.cpu_mut());
        if self.options.portable {
            // Nothing runs on the host processor: its x87 registers are not needed.
            return self.dispatch();
        }
        self.share_time();
        self.cache.region().allow_reads();
        let vcpu = std::ptr::from_mut(self);
        self.block.get_mut().exchange.vcpu = vcpu as u64;
        self.take_samples();
        load_x87(&self.block.get().cpu.vector.fxsave);
        set_x87_live(true);
        let stop = self.dispatch();
        set_x87_live(false);
        store_x87(&mut self.block.get_mut().cpu.vector.fxsave);
        stop
    }

    /// Has the thread that runs the processor be sampled. Where the host has no such timer all code counts its entries.
    fn take_samples(&mut self) {
        let here = self.sampler.as_ref().is_some_and(Sampler::is_here);
        if !here && self.options.samples() {
            self.sampler = Sampler::new(self.exit_request()).ok();
            self.options.samples = self.sampler.is_some();
        }
    }

    /// Lets emitted code take the time from the host, where that is what the machine's clock
    /// follows.
    fn share_time(&mut self) {
        let shared = self.options.system_inline
            && !self.options.counted
            && self.platform.real_time()
            && self.counter_is_invariant;
        let cpu = self.cpu_mut();
        cpu.real_time = u8::from(shared);
        if !shared {
            cpu.time_line.end();
        }
    }

    fn dispatch(&mut self) -> Stop {
        loop {
            if self.shutdown {
                self.shutdown = false;
                return Stop::Shutdown;
            }
            if self.cpu().exit_request.swap(0, Ordering::Acquire) & !Ring::Sample.word() != 0 {
                return Stop::Requested;
            }
            self.settle();
            if self.options.counted && self.block.get().exchange.budget <= 0 {
                return Stop::Budget;
            }
            self.publish_count();
            match deliver::pending(&mut self.context()) {
                Ok(_) => {}
                Err(deliver::Shutdown) => return Stop::Shutdown,
            }
            if self.cpu().halted != 0 {
                return Stop::Halted;
            }
            let cpu = self.cpu();
            let step = self.options.interpret_only()
                || cpu.interrupt_shadow != 0
                || !self.translates(cpu.mode);
            if step {
                self.step();
                continue;
            }
            if let Some(hot) = self.recording.take() {
                self.record(hot);
                continue;
            }
            if self.code_segment().is_none() {
                self.renumber_segments();
            }
            let key = match self.key_at_rip(self.options.grouping) {
                Ok(key) => key,
                Err(exception) => {
                    self.raise(exception);
                    continue;
                }
            };
            match key.and_then(|key| self.block_of(key)) {
                Some(id) => {
                    self.remember_jump(id);
                    let block = self.cache.block(id).expect("just found");
                    let entry = block.entry();
                    if self.options.counted
                        && self.block.get().exchange.budget < block.made.count() as i64
                    {
                        self.step();
                        continue;
                    }
                    self.enter(entry);
                }
                None => self.run_cold(key),
            }
        }
    }

    fn enter(&mut self, entry: CodeOffset) {
        let target = self.cache.region().address(entry);
        let enter = self.cache.region().address(self.trampolines.enter);
        let waiting = self.platform.interrupt_pending();
        self.follow_mode();
        self.follow_segments();
        self.block.prepare_returns();
        let block = self.block.get_mut();
        block.exchange.interrupt_waiting = u8::from(waiting);
        block.exchange.jump_target = target;
        block.exchange.vectors_wanted = 0;
        block.exchange.saved_flags = pack_flags(block.cpu.arithmetic_flags);
        // SAFETY: `enter` is the trampoline of this processor's region, GS points to its block,
        // and `target` is the entry of a block that exists. Emitted code reaches memory only
        // through GS and TLB entries, and returns through the trampoline, which keeps the
        // C convention.
        unsafe {
            let enter: extern "sysv64" fn() = std::mem::transmute(enter);
            enter();
        }
    }

    /// Whether code of a mode is translated.
    pub(super) fn translates(&self, mode: Mode) -> bool {
        translatable(mode, self.options.segmented)
    }

    /// Forgets the predicted returns if they are another mode's, or another code segment's. Code that is entered elsewhere than
    /// where it called up comes by here.
    pub(super) fn follow_mode(&mut self) {
        let code = self.code_segment().unwrap_or(CodeSegment::FLAT);
        if self.cpu().mode != self.returns_mode || code != self.returns_code {
            self.returns_mode = self.cpu().mode;
            self.returns_code = code;
            self.block.forget_returns();
        }
    }

    /// Delivers an exception of the instruction at RIP.
    pub(super) fn raise(&mut self, exception: Exception) {
        let now = self.instructions();
        if self.last_exception.follows_another(now) && self.options.counted {
            self.count(1);
        }
        if raising::raise(&mut self.context(), exception).is_err() {
            self.shutdown = true;
        }
    }

    /// Interprets one instruction.
    pub fn step(&mut self) {
        match interpret::step(&mut self.context()) {
            Ok(finished) => self.count(i64::from(finished)),
            Err(exception) => self.raise(exception),
        }
    }

    /// Counts executed instructions that were not counted in advance.
    pub(super) fn count(&mut self, executed: i64) {
        let block = self.block.get_mut();
        if self.options.counted {
            block.exchange.budget -= executed;
        } else {
            block.cpu.instructions = block.cpu.instructions.wrapping_add(executed as u64);
        }
    }

    /// Makes the exact count visible to the platform.
    pub(super) fn publish_count(&mut self) {
        if self.options.counted {
            let now = self.instructions();
            self.block.get_mut().cpu.instructions = now;
        }
    }

    /// In a block of `total` instructions of which `executed` are done: makes the exact count
    /// visible, without giving back what was counted in advance.
    pub(super) fn publish_count_within(&mut self, total: usize, executed: usize) {
        if self.options.counted {
            let ahead = (total - executed) as u64;
            let now = self.instructions().wrapping_sub(ahead);
            self.block.get_mut().cpu.instructions = now;
        }
    }

    /// Gives back the instructions that were counted in advance and not executed.
    pub(super) fn give_back(&mut self, total: usize, executed: usize) {
        if self.options.counted {
            self.block.get_mut().exchange.budget += (total - executed) as i64;
        }
    }

    /// Whether something waits that the dispatch loop has to look at.
    pub(super) fn interrupted(&mut self) -> bool {
        let waiting = self.platform.interrupt_pending();
        let block = self.block.get_mut();
        // Emitted STI looks at it.
        block.exchange.interrupt_waiting = u8::from(waiting);
        let cpu = &block.cpu;
        if cpu.exit_request.load(Ordering::Relaxed) != 0
            || cpu.halted != 0
            || cpu.interrupt_shadow != 0
            || cpu.pending_debug != 0
            || self.shutdown
        {
            return true;
        }
        cpu.interrupt_flag != 0 && waiting
    }

    /// Whether no instruction more may begin: then its page must not be looked at either, which
    /// would mark it as accessed.
    pub(super) fn out_of_budget(&self) -> bool {
        self.options.counted && self.block.get().exchange.budget <= 0
    }

    /// Drops what has gone stale: TLB entries of changed pages, blocks of overwritten code,
    /// confirmed mappings after a flush.
    pub(super) fn settle(&mut self) {
        if self.mem.has_news() {
            for (at, len) in self.mem.take_code_writes() {
                let gone = self.cache.invalidate(at, len);
                self.keep_dropped(&gone);
                self.forget_blocks(&gone);
                for block in &gone {
                    self.visits.rewritten(block.key.physical, block.key.rip);
                }
                let mut page = at.page();
                while page.0 < at.0 + u64::from(len) {
                    if !self.cache.has_code(page) && self.visits.idle_store(page) {
                        self.mem.unmark_code(page);
                    }
                    page = page.add(mmu::PAGE_SIZE);
                }
            }
            let stale = self.mem.take_stale_pages();
            let tlb = &mut self.block.get_mut().tlb;
            for page in stale {
                tlb.forget_physical(page);
            }
        }
        let block = self.block.get_mut();
        if !block.tlb.fetch_news.is_empty() {
            let news = std::mem::take(&mut block.tlb.fetch_news);
            self.fetch_epoch = self.fetch_epoch.wrapping_add(1);
            self.guards.follow(&mut block.guards, &news);
            self.block.forget_returns();
        }
    }

    /// Removes blocks that are gone from the jump caches, and from what returns predict.
    fn forget_blocks(&mut self, gone: &[Block]) {
        if !gone.is_empty() {
            self.block.forget_returns();
        }
        for block in gone {
            let host = self.cache.region().address(block.indirect_entry());
            let slot = JumpEntry::slot(block.key.jump_word());
            let entry = &mut self.block.get_mut().jumps[block.jump_cache][slot];
            if entry.host == host {
                *entry = JumpEntry::empty_at(slot);
            }
        }
    }

    /// Forgets blocks that were removed: their jump cache entries, and their pages' marks. Their code is still there, and is
    /// kept for later runs.
    pub(super) fn drop_blocks(&mut self, gone: &[Block]) {
        self.keep_dropped(gone);
        self.let_go(gone);
    }

    /// Likewise, where their code may be gone, too.
    pub(super) fn let_go(&mut self, gone: &[Block]) {
        self.forget_blocks(gone);
        for block in gone {
            for page in block.pages() {
                if !self.cache.has_code(page) {
                    self.mem.unmark_code(page);
                }
            }
        }
    }

    /// Runs the guest's code at a physical address no longer: it was changed from outside.
    pub fn invalidate(&mut self, at: GuestPhys, len: u32) {
        let gone = self.cache.invalidate(at, len);
        self.drop_blocks(&gone);
    }
}
