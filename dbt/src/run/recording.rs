//! Recording of traces: a hot loop is interpreted for one round, and the way that this takes becomes
//! its trace. A round's way is likely to be the one that is taken most; where it was not, the code
//! that the trace is left for becomes hot in turn, and has a trace of its own.

use iced_x86::Instruction;

use super::cold::Settled;
use super::translating::Tier;
use super::vcpu::Vcpu;
use crate::cache::{Key, Trace, goes_on};
use crate::{decode, interpret};

/// How often something may come in between before a loop stays as it is.
const ATTEMPTS: u8 = 2;

/// How recording goes on behind a piece of code.
enum Next {
    /// Where RIP leads.
    Follow,
    /// Not at all: the trace is complete.
    Complete,
    /// Not at all: something has to be looked at first.
    Abandon,
}

impl Vcpu {
    /// Executes a round of a hot loop and makes a trace of what it was, in place of the block at
    /// the loop's head.
    pub(super) fn record(&mut self, head: u32) {
        let Some(key) = self.cache.block(head).map(|block| block.key) else {
            return;
        };
        let (rip, mode, code) = (key.rip, key.mode, Some(key.code));
        if self.cpu().rip != rip || self.cpu().mode != mode || self.code_segment() != code {
            // An interrupt came first: it is for the next round.
            return;
        }
        let mut trace = self.follow(key);
        if let Some(trace) = &mut trace {
            trace.finish();
        }
        let Some(block) = self.cache.block_mut(head) else {
            return;
        };
        let longer = |trace: &Trace| trace.insns().len() > block.insns.len();
        match trace {
            Some(trace) if trace.is_closed() || longer(&trace) => {
                self.make_trace(head, key, &trace)
            }
            None if block.attempts < ATTEMPTS => block.attempts += 1,
            _ => {
                block.settled = true;
                self.improve(head);
            }
        }
    }

    /// Interprets along whatever way the code takes. `None`: something came in between, and is to
    /// be looked at before anything else is executed.
    fn follow(&mut self, head: Key) -> Option<Trace> {
        let mut trace = Trace::default();
        let settled = Settled::now(self);
        let page = head.code.page(head.rip);
        while head.code.page(self.cpu().rip) == page {
            let mut insns = std::mem::take(&mut self.decoded);
            let decoded = decode::block(&mut self.context(), &mut insns);
            let next = match decoded {
                Ok(Some(decoded)) if decoded.physical.page() != head.physical.page() => {
                    Next::Abandon
                }
                Ok(Some(decoded)) if decoded.second.is_none() => {
                    self.follow_block(&insns, &mut trace, &settled)
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
            if !goes_on(insn) {
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
            let cpu = &cx.cpu;
            let straight = cpu.rip == insn.next_ip();
            let unfinished = cpu.rip == insn.ip() && insn.is_string_instruction();
            let changed = settled.is_over(&cx);
            self.count(i64::from(!unfinished));
            self.forget_idle_shadow(true);
            if changed || unfinished || self.interrupted() || self.out_of_budget() {
                return Next::Abandon;
            }
            trace.push(*insn);
            if !straight {
                return Next::Follow;
            }
        }
        Next::Follow
    }

    /// Makes a trace in place of the block at its head.
    fn make_trace(&mut self, head: u32, key: Key, trace: &Trace) {
        let (lowest, len) = trace.range();
        let within = key.code.linear(lowest) % mmu::PAGE_SIZE;
        let range = (key.physical.page().add(within), len);
        let tier = Tier::Hot {
            predicting: self.predicts(key.mode),
        };
        let made = self.place(key, trace.insns(), range, None, tier);
        if let Some(block) = made.and_then(|id| self.cache.block_mut(id)) {
            block.settled = true;
            self.cache.statistics.traces += 1;
        }
        if let Some(old) = self.cache.remove(head) {
            self.drop_blocks(&[old]);
        }
    }
}
