//! Traces: the instructions of a hot loop as one straight run, along the ways that it has taken
//! so far.

use iced_x86::{FlowControl, Instruction};
use mmu::GuestPhys;

use super::blocks::{Block, BlockCache};
use crate::decode::BLOCK_LIMIT;

/// Loops shorter than this are repeated within their trace.
const SHORT: usize = 24;
/// How often at the most.
const REPEATS: usize = 4;

/// A trace that is worth translating.
pub struct Trace {
    /// The instructions in the order in which they are executed.
    pub insns: Vec<Instruction>,
    /// The lowest byte of their code.
    pub lowest: GuestPhys,
    /// Bytes from there to the highest.
    pub len: u32,
}

impl BlockCache {
    /// The trace from a block on, all within its page: it follows jumps and those ways of
    /// branches that are the only ones taken so far, until it comes back or does not know
    /// which way to go. `None` if that is no more than the block itself.
    pub fn trace(&self, head: u32) -> Option<Trace> {
        let first = self.block(head)?;
        let mut insns: Vec<Instruction> = Vec::new();
        let mut visited = Vec::new();
        let (mut lowest, mut highest) = (first.lowest, first.lowest);
        let mut at = head;
        let mut closed = false;
        while let Some(block) = self.block(at) {
            let same_page = block.key.physical.page() == first.key.physical.page()
                && block.key.rip >> 12 == first.key.rip >> 12
                && block.second.is_none();
            let whole = !block.settled
                && block.key.grouped == first.key.grouped
                && block.key.mode == first.key.mode;
            if !same_page || !whole || insns.len() + block.insns.len() > BLOCK_LIMIT {
                break;
            }
            visited.push(at);
            insns.extend(&block.insns);
            lowest = lowest.min(block.lowest);
            highest = highest.max(block.lowest.add(u64::from(block.len)));
            let Some(next) = way(block, head) else {
                break;
            };
            closed = next == head;
            if visited.contains(&next) {
                break;
            }
            at = next;
        }
        if closed && insns.len() <= SHORT {
            let once = insns.len();
            let times = (BLOCK_LIMIT / once).min(REPEATS);
            for _ in 1..times {
                insns.extend_from_within(..once);
            }
        }
        (insns.len() > first.insns.len()).then_some(Trace {
            insns,
            lowest,
            len: (highest.0 - lowest.0) as u32,
        })
    }
}

/// Where a trace goes on behind a block: back to its head if the block has led there, or to the
/// one block that this one has led to so far.
fn way(block: &Block, head: u32) -> Option<u32> {
    let last = block.insns.last()?;
    let followable = match last.flow_control() {
        FlowControl::Next => true,
        FlowControl::UnconditionalBranch => last.is_jmp_short_or_near(),
        FlowControl::ConditionalBranch => last.is_jcc_short_or_near(),
        _ => false,
    };
    if !followable {
        return None;
    }
    let mut taken = block
        .exits
        .iter()
        .filter(|exit| exit.ungrouped.is_none())
        .filter_map(|exit| exit.linked);
    if taken.clone().any(|to| to == head) {
        return Some(head);
    }
    match (taken.next(), taken.next()) {
        (Some(only), None) => Some(only),
        _ => None,
    }
}
