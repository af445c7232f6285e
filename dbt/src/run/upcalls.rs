//! What emitted code calls up for.

use mmu::Linear;

use super::block_state::CpuBlock;
use super::recording::{Heat, LOOP_BYTES};
use super::upcall::{FlagsAt, Upcall, UpcallKind};
use super::vcpu::Vcpu;
use crate::cache::{Block, CodeOffset, Key};
use crate::guest::{Exception, Mode, flags};
use crate::interpret::address::is_canonical;
use crate::interpret::native::{host_exception, pack_flags, unpack_flags};
use crate::interpret::{self};
use crate::record::recipe::{Kept, Recipe};
use crate::x86_64::ExitKind;

/// Leaves emitted code for the dispatch loop.
const LEAVE: u64 = 0;

/// Called by the upcall trampoline with the guest's registers put away. Returns the host
/// address at which to continue, or [`LEAVE`].
pub(super) extern "sysv64" fn upcall(vcpu: *mut Vcpu, record: *const Upcall, linear: u64) -> u64 {
    let behind = record.wrapping_add(1) as u64;
    // SAFETY: `Vcpu::run` put its own address into the exchange, it is waiting for the emitted
    // code that calls here, and touches nothing meanwhile. The record is in code that
    // emitted it behind the call.
    let (vcpu, record) = unsafe { (&mut *vcpu, record.read_unaligned()) };
    vcpu.returns_mode = vcpu.cpu().mode;
    if record.kind.is_inside() {
        vcpu.exchange_places(record.block);
    }
    vcpu.settle_x87();
    vcpu.take_flags(&record);
    vcpu.forgotten = vcpu.block.get().tlb.forgotten;
    let address = match record.kind {
        UpcallKind::Memory => vcpu.memory(&record, Linear(linear)),
        UpcallKind::Interpret => vcpu.interpret_in_block(record.block, record.insn as usize),
        UpcallKind::Strayed => vcpu.strayed(&record, behind, linear),
        UpcallKind::Link => vcpu.link(record.block, record.extra as usize),
        UpcallKind::Leave | UpcallKind::Alone | UpcallKind::Hot => {
            if let Some(block) = vcpu.cache.block(record.block) {
                let rip = block.key.rip;
                vcpu.cpu_mut().rip = rip;
            }
            match record.kind {
                UpcallKind::Hot => vcpu.entered_often(record.block),
                UpcallKind::Leave => vcpu.interrupted_in(record.block),
                _ => {}
            }
            LEAVE
        }
        UpcallKind::Unknown => vcpu.go_on(),
    };
    if address != LEAVE {
        vcpu.follow_segments();
    }
    address
}

/// Called when the host processor raised a fault in emitted code.
pub(super) extern "sysv64" fn signal(vcpu: *mut Vcpu, _: *const Upcall, _: u64) -> u64 {
    // SAFETY: as in `upcall`.
    let vcpu = unsafe { &mut *vcpu };
    vcpu.returns_mode = vcpu.cpu().mode;
    vcpu.settle_x87();
    vcpu.host_fault();
    LEAVE
}

impl Vcpu {
    /// Notes who has raised the unmasked x87 exception that may be pending.
    fn settle_x87(&mut self) {
        let CpuBlock { exchange, cpu, .. } = self.block.get_mut();
        if exchange.x87_candidate.word != 0 {
            let pending = interpret::x87_pending(cpu);
            exchange
                .x87_candidate
                .settle(pending, &mut cpu.vector.pointers);
        }
    }

    fn take_flags(&mut self, record: &Upcall) {
        self.cpu_mut().arithmetic_flags = match record.flags {
            FlagsAt::Host => unpack_flags(self.block.get().exchange.host_flags),
            FlagsAt::Saved => self.saved_flags(),
            // What memory checks left in EFLAGS depends on host addresses, and must not be seen.
            FlagsAt::Lost => 0,
            FlagsAt::Recipe => {
                let block = self.cache.block(record.block);
                let recipe = block.and_then(|block| block.made.recipe(record.insn.into()));
                let recipe = recipe.expect("a block keeps the recipes that its code refers to");
                recipe.flags(self.cpu(), self.kept())
            }
        };
    }

    /// What is in the place of saved flags: they, or a recipe for them.
    fn saved_flags(&self) -> u64 {
        let exchange = &self.block.get().exchange;
        match Recipe::from_word(exchange.saved_flags as u32, exchange.constant) {
            Some(recipe) => recipe.flags(self.cpu(), self.kept()),
            None => unpack_flags(exchange.saved_flags),
        }
    }

    /// What recipes find beside the registers.
    fn kept(&self) -> Kept {
        let exchange = &self.block.get().exchange;
        Kept {
            stash: exchange.stash,
            second: exchange.second,
        }
    }

    /// Continues in emitted code at an address, with the flags as the registers say.
    fn resume(&mut self, address: u64) -> u64 {
        let block = self.block.get_mut();
        block.exchange.saved_flags = pack_flags(block.cpu.arithmetic_flags);
        block.exchange.vectors_wanted = 0;
        address
    }

    fn memory(&mut self, record: &Upcall, linear: Linear) -> u64 {
        let (id, index) = (record.block, record.insn as usize);
        let Some(block) = self.cache.block(id) else {
            // Its own block was dropped under it: only a bug could get here.
            unreachable!("an upcall from a block that is gone");
        };
        let (total, rip) = (block.made.count(), block.rip(index));
        self.publish_count_within(total, index);
        self.cpu_mut().rip = rip;
        let size = record.size as usize;
        let write = record.write != 0;
        let mut cx = self.context();
        let view = interpret::view(cx.cpu.mode);
        // What crosses a page, or is not canonical, is the interpreter's.
        let canonical = !cx.cpu.code64() || is_canonical(linear.0);
        if canonical && linear.page_offset() + size <= mmu::PAGE_SIZE as usize {
            let access = if write {
                interpret::Access::Write
            } else {
                interpret::Access::Read
            };
            if let Err(exception) = cx.translate(linear, access) {
                return self.raise_in_block(total, index, exception);
            }
            let entry = cx.tlb.data[view as usize].entry(linear);
            let tag = entry.tag(write);
            let addend = entry.addend;
            let settled = !cx.mem.has_news() && cx.tlb.forgotten == self.forgotten;
            if linear.0 ^ tag <= mmu::PAGE_SIZE - size as u64 && settled {
                self.block.get_mut().exchange.result_host = if record.wants_addend != 0 {
                    addend
                } else {
                    addend.wrapping_add(linear.0)
                };
                return self.resume_check(record);
            }
        }
        self.interpret_in_block(id, index)
    }

    /// Goes on within a check. The flags go back to where they were: the garbage of a dead
    /// EFLAGS too.
    pub(super) fn resume_check(&mut self, record: &Upcall) -> u64 {
        let address = self.cache.region().address(CodeOffset(record.extra));
        self.resume_check_at(record, address)
    }

    /// Likewise, at an address.
    pub(super) fn resume_check_at(&mut self, record: &Upcall, address: u64) -> u64 {
        let exchange = &mut self.block.get_mut().exchange;
        if record.flags == FlagsAt::Host {
            exchange.saved_flags = exchange.host_flags;
        }
        self.resume_within(record.block);
        address
    }

    /// Emitted code goes on in the middle of a block: the guest's registers are where that has
    /// them.
    fn resume_within(&mut self, id: u32) {
        let vectors = self.cache.block(id).is_some_and(|block| block.made.vectors);
        self.block.get_mut().exchange.vectors_wanted = u8::from(vectors);
        self.exchange_places(id);
    }

    /// The guest's registers, which have been put away, change between the places that a block
    /// has for them and their own.
    fn exchange_places(&mut self, id: u32) {
        if let Some(block) = self.cache.block(id) {
            let state = self.block.get_mut();
            (block.made.places).exchange(&mut state.cpu, &mut state.exchange.groups);
        }
    }

    /// Interprets one instruction of a block and goes on behind it, or wherever it jumped.
    fn interpret_in_block(&mut self, id: u32, index: usize) -> u64 {
        let Some(block) = self.cache.block(id) else {
            unreachable!("an upcall from a block that is gone");
        };
        let total = block.made.count();
        let insn = block.insn(index);
        let follower = (index + 1 < total).then(|| block.rip(index + 1));
        let (mode, code) = (block.key.mode, block.key.code);
        let stashes = block.made.stashes >> index & 1 != 0;
        let next = self.cache.region().address(block.insn_start(index + 1));
        self.publish_count_within(total, index);
        let mut cx = self.context();
        cx.cpu.rip = insn.ip();
        if let Err(exception) = interpret::execute(&mut cx, &insn) {
            return self.raise_in_block(total, index, exception);
        }
        let cpu = self.cpu();
        let rip = cpu.rip;
        let same = cpu.mode == mode && cpu.code_bounds() == (code.base, code.limit);
        if rip == insn.ip() && insn.is_string_instruction() {
            self.give_back(total, index);
            return LEAVE;
        }
        let flushed = !self.block.get().tlb.fetch_news.is_empty();
        self.settle();
        // The block may rely on translations that its earlier accesses found.
        let mapped = !flushed && self.block.get().tlb.forgotten == self.forgotten;
        self.forget_idle_shadow(index + 1 < total);
        let interrupted = self.interrupted();
        // Behind a jump at the block's end that happens to lead to the next instruction there is no code.
        let straight =
            follower == Some(rip) && same && mapped && !stashes && self.cache.block(id).is_some();
        if straight && !interrupted {
            let address = self.resume(next);
            self.resume_within(id);
            return address;
        }
        self.give_back(total, index + 1);
        if interrupted || !self.translates(self.cpu().mode) {
            return LEAVE;
        }
        self.jump_to_rip()
    }

    /// Delivers an exception of an instruction of a block, and goes on in its handler.
    fn raise_in_block(&mut self, total: usize, index: usize, exception: Exception) -> u64 {
        self.give_back(total, index);
        self.raise(exception);
        self.settle();
        if self.interrupted() || !self.translates(self.cpu().mode) {
            return LEAVE;
        }
        self.jump_to_rip()
    }

    /// With nothing waiting, the shadow of an STI holds nothing back; it need not be followed
    /// into the next instruction, unless that is in another block, which polls before it.
    pub(super) fn forget_idle_shadow(&mut self, within: bool) {
        use crate::interpret::system::debug::SHADOW_STI;
        if within && self.cpu().interrupt_shadow == SHADOW_STI && !self.platform.interrupt_pending()
        {
            self.cpu_mut().interrupt_shadow = 0;
        }
    }

    /// Continues at RIP in emitted code if it can.
    fn jump_to_rip(&mut self) -> u64 {
        self.follow_mode();
        match self.remembered_jump() {
            Some(host) => self.resume(host),
            None => self.find_rip(),
        }
    }

    /// A jump has been executed, to code at RIP that is not known.
    fn go_on(&mut self) -> u64 {
        match self.stays() {
            true => self.find_rip(),
            false => LEAVE,
        }
    }

    /// Whether the dispatch loop has nothing to look at, before translated code goes on.
    fn stays(&mut self) -> bool {
        !self.interrupted() && self.translates(self.cpu().mode)
    }

    /// Likewise, where no indirect jump is known to go there. Code that is not worth a translation yet is interpreted
    /// on the way: leaving for the dispatch loop would look it up again.
    fn find_rip(&mut self) -> u64 {
        loop {
            self.follow_mode();
            if self.out_of_budget() {
                return LEAVE;
            }
            let Ok(Some(key)) = self.key_at_rip(self.options.grouping) else {
                return LEAVE;
            };
            let Some(id) = self.block_of(key) else {
                if !self.passes_cold(key) {
                    return LEAVE;
                }
                continue;
            };
            self.remember_jump(id);
            return self.enter_at(self.cache.block(id).map(Block::indirect_entry));
        }
    }

    /// Interprets the code at RIP up to its next jump. `false`: the dispatch loop has to look at something.
    fn passes_cold(&mut self, key: Key) -> bool {
        self.run_cold(Some(key));
        self.settle();
        self.stays()
    }

    fn link(&mut self, from: u32, exit: usize) -> u64 {
        let Some(source) = self.cache.block(from) else {
            unreachable!("an upcall from a block that is gone");
        };
        let Some(out) = source.exit(exit) else {
            unreachable!("an exit that its block does not have");
        };
        let target = out.target;
        if out.ungrouped.is_some() {
            return self.link_ungrouped(from, exit, target);
        }
        let last = source.rip(source.made.count() - 1);
        let code = source.key.code;
        let near = code.page(source.key.rip) == code.page(target);
        // A trace is left from anywhere in its loop.
        let jump = source.rip(usize::from(out.insn));
        let backward = target <= if source.settled { last } else { jump };
        self.cpu_mut().rip = target;
        if !self.target_allowed(target) {
            // The jump itself faults: let the interpreter say how.
            self.cpu_mut().rip = jump;
            self.give_back(1, 0);
            self.step();
            return LEAVE;
        }
        if self.interrupted() || self.out_of_budget() {
            return LEAVE;
        }
        let Ok(Some(key)) = self.key_at_rip(self.options.grouping) else {
            return LEAVE;
        };
        let Some(to) = self.block_of(key) else {
            return match self.passes_cold(key) {
                true => self.find_rip(),
                false => LEAVE,
            };
        };
        if let Some(hot) = self.options.traces
            && backward
            && near
            && target.abs_diff(jump) < LOOP_BYTES
        {
            match self.loop_rounds(to) {
                None => {}
                Some(rounds) if rounds < hot => return self.continue_at(to),
                Some(_) => {
                    self.recording = Some((to, Heat::Loop));
                    return LEAVE;
                }
            }
        }
        let entry = self.link_to(from, exit, to);
        self.enter_at(entry)
    }

    /// Links an exit to the block that it leads to; returns the entry.
    pub(super) fn link_to(&mut self, from: u32, exit: usize, to: u32) -> Option<CodeOffset> {
        let source = self.cache.block(from)?;
        let block = self.cache.block(to)?;
        let target = block.key.rip;
        let kind = source.exit(exit)?.kind;
        // Blocks that each begin further above lead nowhere again: any other way polls.
        let ahead = target > source.key.rip;
        // Neither samples nor counters would find code to which only jumps ahead lead.
        let unknown = self.options.exit_polls && source.settled && !block.settled;
        let cross = !source.has_page_of(target);
        let entry = if kind == ExitKind::Return {
            // Where the caller's page is mapped has not changed since the call; that of the page
            // behind it may have changed before.
            if cross {
                block.indirect_entry()
            } else {
                block.return_entry()
            }
        } else if cross {
            block.guarded_entry()
        } else if !ahead || unknown || kind == ExitKind::Call {
            // Each call polls, so that calls and returns alone cannot go on for ever.
            block.poll_entry()
        } else {
            block.entry()
        };
        self.cache.link(from, exit, to, entry);
        Some(entry)
    }

    /// How often a loop has come back to a block by unlinked jumps; `None` once a trace was made of
    /// it.
    fn loop_rounds(&mut self, id: u32) -> Option<u8> {
        let block = self.cache.block_mut(id)?;
        if block.settled || block.open {
            return None;
        }
        block.heat = block.heat.saturating_add(1);
        Some(block.heat)
    }

    /// Enters a block by its polling entry.
    fn continue_at(&mut self, id: u32) -> u64 {
        self.enter_at(self.cache.block(id).map(Block::poll_entry))
    }

    /// Goes on in emitted code, at the entry of a block that may be gone.
    fn enter_at(&mut self, entry: Option<CodeOffset>) -> u64 {
        match entry {
            Some(entry) => {
                let address = self.cache.region().address(entry);
                self.resume(address)
            }
            None => LEAVE,
        }
    }

    /// Goes on with the rest of a block in code without groups of accesses.
    fn link_ungrouped(&mut self, from: u32, exit: usize, target: u64) -> u64 {
        self.cpu_mut().rip = target;
        let Ok(Some(to)) = self.find_block(false) else {
            return LEAVE;
        };
        let Some(entry) = self.cache.block(to).map(|block| block.poll_entry()) else {
            return LEAVE;
        };
        self.cache.link(from, exit, to, entry);
        self.continue_at(to)
    }

    /// Whether a direct jump may go there: canonical in 64-bit mode.
    fn target_allowed(&self, target: u64) -> bool {
        !self.cpu().mode.has(Mode::CODE64) || (target as i64) << 16 >> 16 == target as i64
    }

    /// The host processor raised a fault in a block: the guest's own instruction did.
    fn host_fault(&mut self) {
        let exchange = &self.block.get().exchange;
        let vector = exchange.signal as u8;
        let rflags = exchange.host_flags;
        let address = exchange.signal_address;
        let site = self
            .cache
            .region()
            .offset_of(address)
            .and_then(|offset| self.cache.at_code(offset));
        let Some((id, index)) = site else {
            panic!("fault {vector} in emitted code outside any block, at {address:#x}");
        };
        let block = self.cache.block(id).expect("found by its code");
        let (total, rip) = (block.made.count(), block.rip(index));
        let state = self.block.get_mut();
        (block.made.places).exchange(&mut state.cpu, &mut state.exchange.groups);
        let arithmetic = match block.made.recipe(index) {
            Some(recipe) => recipe.flags(self.cpu(), self.kept()),
            None if block.made.flags_away >> index & 1 != 0 => self.saved_flags(),
            None if block.made.flags_lost >> index & 1 != 0 => 0,
            None => rflags & flags::ARITHMETIC,
        };
        let cpu = self.cpu_mut();
        cpu.arithmetic_flags = arithmetic;
        cpu.rip = rip;
        self.give_back(total, index);
        if vector == Exception::GP {
            // A misaligned vector, or an address that is not canonical: which exception that is
            // depends on the operand.
            return self.step();
        }
        let exception = host_exception(self.cpu(), vector);
        self.raise(exception);
    }
}
