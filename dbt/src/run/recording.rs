//! Recording of traces: hot code is interpreted, and the way that this takes becomes
//! its trace. A loop is recorded once, and a round's way is likely to be the one that is taken most; other code several times
//! (`dbt/src/cache/paths.rs`). Where that was not the usual way, the code
//! that the trace is left for becomes hot in turn, and has a trace of its own.
//!
//! Code is hot when a loop has come back to it several times, or when it was entered some thousand times
//! by a call, a return, an indirect jump or a jump from elsewhere. Blocks count these entries themselves, each
//! in a word that it shares with other code only by chance: those that a sample has found the processor in, and in
//! counted runs all. A trace does not count any more.

use iced_x86::Instruction;

use super::block_state::{GUARD_ENTRIES, HEAT_COUNTERS};
use super::cold::Settled;
use super::translating::Tier;
use super::vcpu::Vcpu;
use crate::cache::{Key, Reach, Trace};
use crate::{decode, interpret};
use mmu::GuestPhys;

/// How often something may come in between before a loop stays as it is.
const ATTEMPTS: u8 = 2;
/// Bytes from the beginning of a loop to the jump back, from which on it is no longer recorded after some rounds:
/// hardly one in thirty comes back within a trace. Those that do are entered often, and recorded for that.
pub(super) const LOOP_BYTES: u64 = 256;
/// Entries after which code is recorded again, if it was not to be entered less often before: something came in between, or
/// its usual path is not known yet.
const AGAIN: u16 = 64;

/// How recording goes on behind a piece of code.
enum Next {
    /// Where RIP leads.
    Follow,
    /// Not at all: the trace is complete.
    Complete,
    /// Not at all: something has to be looked at first.
    Abandon,
}

/// What made code hot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Heat {
    /// A loop came back to it.
    Loop,
    /// It was entered often.
    Entries,
}

/// The counter of a block's entries: that of its code, wherever this is mapped.
pub fn heat_counter(at: GuestPhys) -> usize {
    (at.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % HEAT_COUNTERS
}

impl Vcpu {
    /// Executes hot code and makes a trace of what it was, in place of the block at its head.
    pub(super) fn record(&mut self, (head, heat): (u32, Heat)) {
        let Some(key) = self.cache.block(head).map(|block| block.key) else {
            return;
        };
        let (rip, mode, code) = (key.rip, key.mode, Some(key.code));
        if self.cpu().rip != rip || self.cpu().mode != mode || self.code_segment() != code {
            // An interrupt came first: it is for the next round.
            self.record_again(key);
            return;
        }
        let calls = self.options.long_traces().is_some() && !mode.segmented();
        let reach = Reach {
            calls,
            indirect: calls && self.options.indirect_traces,
            open: heat == Heat::Entries,
        };
        let mut trace = self.follow(key, reach);
        if let Some(trace) = &mut trace {
            // A loop is worth it whatever its jumps do: else it would end at the first of them.
            if heat == Heat::Entries && !self.choose(head, trace) {
                return;
            }
            trace.finish();
        }
        let Some(block) = self.cache.block_mut(head) else {
            return;
        };
        let waits = reach.calls && heat == Heat::Loop;
        let longer = |trace: &Trace| trace.insns().len() > block.made.count();
        match trace {
            Some(trace) if trace.is_closed() || (!waits && longer(&trace)) => {
                self.make_trace(head, key, &trace)
            }
            None if block.attempts < ATTEMPTS => {
                block.attempts += 1;
                self.record_again(key);
            }
            Some(_) if waits => block.open = true,
            _ => {
                block.settled = true;
                if heat == Heat::Loop {
                    self.improve(head);
                }
            }
        }
    }

    /// Whether a recording is to become the trace. If not, its path is kept, and there will be another.
    fn choose(&mut self, head: u32, trace: &mut Trace) -> bool {
        let Some(block) = self.cache.block_mut(head) else {
            return false;
        };
        let paths = block.paths.get_or_insert_default();
        if paths.add(trace.path()) {
            block.attempts = 0;
            let key = block.key;
            self.record_again(key);
            return false;
        }
        trace.cut(paths);
        block.paths = None;
        true
    }

    /// Has code be recorded again.
    fn record_again(&mut self, key: Key) {
        let before = self.options.long_traces().unwrap_or(AGAIN);
        self.count_entries(key, before.min(AGAIN));
    }

    /// How many entries of a block are counted until it is looked at.
    pub(super) fn count_entries(&mut self, key: Key, entries: u16) {
        self.block.get_mut().heat[heat_counter(key.physical)] = entries;
    }

    /// A block has been entered often. RIP is its first instruction.
    pub(super) fn entered_often(&mut self, id: u32) {
        let Some(block) = self.cache.block(id) else {
            return;
        };
        let (key, settled) = (block.key, block.settled);
        if settled {
            self.count_entries(key, u16::MAX);
        } else {
            self.recording = Some((id, Heat::Entries));
        }
    }

    /// Interprets along whatever way the code takes. `None`: something came in between, and is to
    /// be looked at before anything else is executed.
    fn follow(&mut self, head: Key, reach: Reach) -> Option<Trace> {
        let first = (head.code.page(head.rip), head.physical.page());
        let mut trace = Trace::new(head.code, first, reach);
        let mut settled = Settled::now(self);
        loop {
            let linear = head.code.page(self.cpu().rip);
            if !reach.calls && linear != first.0 {
                break;
            }
            let mut insns = std::mem::take(&mut self.decoded);
            let decoded = decode::block(&mut self.context(), &mut insns);
            let next = match decoded {
                Ok(Some(decoded)) if decoded.second.is_none() => {
                    let page = (linear, decoded.physical.page());
                    if self.mem.has_news() {
                        Next::Abandon
                    } else if trace.takes_page(page, GUARD_ENTRIES) {
                        if page != first {
                            // Stores to it have to be noticed from now on.
                            self.mem.mark_code(page.1);
                            self.settle();
                            settled = Settled::now(self);
                        }
                        self.follow_block(&insns, &mut trace, &settled)
                    } else if linear == first.0 {
                        Next::Abandon
                    } else {
                        Next::Complete
                    }
                }
                Ok(_) => Next::Complete,
                Err(_) => Next::Abandon,
            };
            self.decoded = insns;
            match next {
                Next::Follow => {}
                Next::Complete => break,
                Next::Abandon => return None,
            }
        }
        (!trace.insns().is_empty()).then_some(trace)
    }

    fn follow_block(
        &mut self,
        insns: &[Instruction],
        trace: &mut Trace,
        settled: &Settled,
    ) -> Next {
        for insn in insns {
            if !trace.takes(insn) {
                return Next::Complete;
            }
            if !trace.follows(insn, self.cpu().mode) {
                // What it does makes no difference to the trace.
                trace.push(*insn);
                return Next::Complete;
            }
            self.publish_count();
            let mut cx = self.context();
            if let Err(exception) = interpret::execute(&mut cx, insn) {
                self.raise(exception);
                return Next::Abandon;
            }
            let rip = cx.cpu.rip;
            let straight = rip == insn.next_ip();
            let unfinished = rip == insn.ip() && insn.is_string_instruction();
            let changed = settled.is_over(&cx);
            self.count(i64::from(!unfinished));
            // Whoever stops here sees the shadow.
            let stops = self.out_of_budget();
            self.forget_idle_shadow(!stops);
            if changed || unfinished || self.interrupted() || stops {
                return Next::Abandon;
            }
            trace.push(*insn);
            if !trace.follow(insn, rip) {
                return Next::Complete;
            }
            if !straight {
                return Next::Follow;
            }
        }
        Next::Follow
    }

    /// Makes a trace in place of the block at its head.
    fn make_trace(&mut self, head: u32, key: Key, trace: &Trace) {
        let parts = trace.parts();
        let Some((first, others)) = parts.split_first() else {
            return;
        };
        let range = (first.lowest, first.len);
        // What does not come back is entered with other objects each time.
        let loops = self.predicts(key.mode) && trace.is_closed();
        let tier = Tier::Hot {
            predicting: loops && self.options.eager_prediction,
        };
        let made = self.place(key, trace.insns(), range, others, tier);
        if let Some(block) = made.and_then(|id| self.cache.block_mut(id)) {
            block.settled = true;
            block.loops = loops;
            self.cache.statistics.traces += 1;
            self.cache.statistics.indirect += trace.indirect();
        }
        let Some(old) = self.cache.remove(head) else {
            return;
        };
        if let Some(made) = made {
            for &(from, exit) in &old.incoming {
                self.link_to(from, usize::from(exit), made);
            }
        }
        self.drop_blocks(&[old]);
    }
}
