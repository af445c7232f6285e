//! Code that runs a few times only is interpreted: a translation would not pay.

use iced_x86::Instruction;
use mmu::GuestPhys;

use super::vcpu::Vcpu;
use crate::{decode, interpret};

/// Counters; places of code that share one are only translated a little earlier.
const COUNTERS: usize = 1 << 20;

/// Counts of visits to places of code that have no translation.
pub(super) struct Visits {
    counts: Box<[u8]>,
    threshold: u8,
}

impl Visits {
    /// No visits; code is cold until it has been visited `threshold` times.
    pub(super) fn new(threshold: u8) -> Visits {
        Visits {
            counts: vec![0; COUNTERS].into_boxed_slice(),
            threshold,
        }
    }

    /// Notes a visit of code by its address in memory and by RIP, since a translation is good for
    /// both only; whether the place is still to be interpreted.
    pub(super) fn cold(&mut self, at: GuestPhys, rip: u64) -> bool {
        let at = at.0 ^ rip.rotate_left(32);
        // Fibonacci hashing: the best bits are the upper ones.
        let hash = at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - COUNTERS.ilog2());
        let count = &mut self.counts[hash as usize];
        let cold = *count < self.threshold;
        *count += u8::from(cold);
        cold
    }
}

impl Vcpu {
    /// Interprets code that is not worth a translation yet, up to its next jump.
    pub(super) fn run_cold(&mut self) {
        let mut insns = std::mem::take(&mut self.decoded);
        match decode::block(&mut self.context(), &mut insns) {
            Ok(Some(decoded)) => self.run_page(&insns, decoded.physical.page()),
            Ok(None) => self.step(),
            Err(exception) => self.raise(exception),
        }
        self.decoded = insns;
    }

    /// Interprets code of a page.
    fn run_page(&mut self, insns: &[Instruction], page: GuestPhys) {
        // Stores to this page have to be noticed, as if it had translations.
        self.mem.mark_code(page);
        self.settle();
        self.run_decoded(insns);
        if !self.cache.has_code(page) {
            self.mem.unmark_code(page);
        }
    }

    fn run_decoded(&mut self, insns: &[Instruction]) {
        let mode = self.cpu().mode;
        let forgotten = self.block.get().tlb.forgotten;
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
            let changed = cpu.mode != mode
                || cx.mem.has_news()
                || cx.tlb.forgotten != forgotten
                || !cx.tlb.fetch_news.is_empty();
            self.count(1);
            if changed || self.interrupted() || self.out_of_budget() {
                return;
            }
        }
    }
}
