//! Code that runs a few times only is interpreted: a translation would not pay.

use iced_x86::Instruction;
use mmu::GuestPhys;

use super::vcpu::Vcpu;
use crate::cache::Key;
use crate::guest::Mode;
use crate::interpret::Context;
use crate::{decode, interpret};

/// Counters; places of code that share one are only translated a little earlier.
const COUNTERS: usize = 1 << 20;
/// Counters that share a cache line: those of neighbours, which are executed one behind the other.
const LINE: usize = 64;
/// Bytes of code that they are for.
const LINE_OF_CODE: u64 = 128;
/// Counters of stores; pages that share one lose their mark a little earlier or later.
const PAGES: usize = 1 << 12;
/// Stores to a page that is marked as code and has none, before the mark goes: marking it again
/// costs more than some of them, if it is about to be code again.
const IDLE_STORES: u8 = 8;

/// Counts of visits to places of code that have no translation, and of stores to pages that have
/// none.
pub(super) struct Visits {
    counts: Box<[u8]>,
    idle: Box<[u8]>,
    threshold: u8,
}

/// Fibonacci hashing: the best bits are the upper ones.
fn hash(of: u64, size: usize) -> usize {
    (of.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - size.ilog2())) as usize
}

impl Visits {
    /// No visits; code is cold until it has been visited `threshold` times.
    pub(super) fn new(threshold: u8) -> Visits {
        Visits {
            counts: vec![0; COUNTERS].into_boxed_slice(),
            idle: vec![0; PAGES].into_boxed_slice(),
            threshold,
        }
    }

    /// The counter of code by its address in memory and by RIP, since a translation is good for
    /// both only.
    fn counter(&mut self, at: GuestPhys, rip: u64) -> &mut u8 {
        let (near, within) = (at.0 / LINE_OF_CODE, at.0 % LINE_OF_CODE);
        let start = rip.wrapping_sub(within).rotate_left(32);
        let line = hash(near ^ start, COUNTERS / LINE);
        &mut self.counts[line * LINE + within as usize * LINE / LINE_OF_CODE as usize]
    }

    /// Whether a place has not been visited yet.
    pub(super) fn first(&mut self, at: GuestPhys, rip: u64) -> bool {
        *self.counter(at, rip) == 0 && self.threshold > 0
    }

    /// Whether a place is still to be interpreted.
    pub(super) fn cold(&mut self, at: GuestPhys, rip: u64) -> bool {
        *self.counter(at, rip) < self.threshold
    }

    /// Notes that a place was interpreted.
    fn note(&mut self, at: GuestPhys, rip: u64) {
        let count = self.counter(at, rip);
        *count = count.saturating_add(1);
    }

    /// Code at a place was overwritten: it may be again before a translation would pay.
    pub(super) fn rewritten(&mut self, at: GuestPhys, rip: u64) {
        *self.counter(at, rip) = 0;
    }

    /// Notes a store to a page that is marked as code and has none; whether it is to lose the
    /// mark.
    pub(super) fn idle_store(&mut self, page: GuestPhys) -> bool {
        let count = &mut self.idle[hash(page.0, PAGES)];
        *count += 1;
        if *count < IDLE_STORES {
            return false;
        }
        *count = 0;
        true
    }

    /// Code of a page is executed.
    fn busy(&mut self, page: GuestPhys) {
        self.idle[hash(page.0, PAGES)] = 0;
    }
}

impl Vcpu {
    /// Interprets code that is not worth a translation yet, up to its next jump. `key`: that of RIP, if the
    /// code segment has a number.
    pub(super) fn run_cold(&mut self, key: Option<Key>) {
        let Some(key) = key else {
            return self.step();
        };
        let mut insns = std::mem::take(&mut self.decoded);
        if self.decoded_elsewhere(key, &mut insns)
            || decode::block_at(&mut self.context(), key.physical, &mut insns).is_some()
        {
            self.visits.note(key.physical, key.rip);
            self.run_page(&insns, key.physical.page());
        } else {
            self.step();
        }
        self.decoded = insns;
    }

    /// Takes the instructions at RIP from a translation of the same code at another address, if there is
    /// one: decoding takes as long as interpreting.
    fn decoded_elsewhere(&self, key: Key, insns: &mut Vec<Instruction>) -> bool {
        if !self.options.moving {
            return false;
        }
        let original = self.cache.original(&key);
        let Some(block) = original.and_then(|id| self.cache.block(id)) else {
            return false;
        };
        insns.clear();
        let mut next = key.rip;
        for insn in block.made.insns_at(key.rip) {
            // A trace goes on elsewhere.
            if insn.ip() != next {
                break;
            }
            next = insn.next_ip();
            insns.push(insn);
        }
        true
    }

    /// Interprets code of a page.
    fn run_page(&mut self, insns: &[Instruction], page: GuestPhys) {
        // Stores to this page have to be noticed, as if it had translations. The mark stays until
        // there are some.
        self.visits.busy(page);
        self.mem.mark_code(page);
        self.settle();
        self.run_decoded(insns);
    }

    fn run_decoded(&mut self, insns: &[Instruction]) {
        let settled = Settled::now(self);
        for insn in insns {
            self.publish_count();
            let mut cx = self.context();
            if let Err(exception) = interpret::execute(&mut cx, insn) {
                return self.raise(exception);
            }
            let cpu = &cx.cpu;
            if cpu.rip != insn.next_ip() {
                let unfinished = cpu.rip == insn.ip() && insn.is_string_instruction();
                return self.count(i64::from(!unfinished));
            }
            // Whatever the dispatch loop has to look at ends the run.
            let changed = settled.is_over(&cx);
            self.count(1);
            if changed || self.interrupted() || self.out_of_budget() {
                return;
            }
        }
    }
}

/// What interpreted instructions leave as it is, unless the dispatch loop has to look at it before any
/// other code runs.
pub(super) struct Settled {
    mode: Mode,
    code: (u32, u32),
    forgotten: u64,
}

impl Settled {
    pub fn now(vcpu: &Vcpu) -> Settled {
        let cpu = vcpu.cpu();
        Settled {
            mode: cpu.mode,
            code: cpu.code_bounds(),
            forgotten: vcpu.block.get().tlb.forgotten,
        }
    }

    /// Whether the mode or the code segment is another, or translations or code were lost.
    pub fn is_over(&self, cx: &Context<'_>) -> bool {
        cx.cpu.mode != self.mode
            || cx.cpu.code_bounds() != self.code
            || cx.mem.has_news()
            || cx.tlb.forgotten != self.forgotten
            || !cx.tlb.fetch_news.is_empty()
    }
}
