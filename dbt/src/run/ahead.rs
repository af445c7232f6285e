//! What a new translation leads to within its page: linked at once where it is translated, and translated
//! along with it where it has been executed as often. Emitted code would call up for each, and the
//! translator, cold again every time, takes twice as long for one block as for the second of two.

use iced_x86::Mnemonic;
use mmu::{GuestPhys, PAGE_SIZE};

use super::translating::Tier;
use super::vcpu::Vcpu;
use crate::cache::{Block, CodeOffset, Exit, Key};
use crate::decode;
use crate::guest::CodeSegment;
use crate::x86_64::ExitKind;

/// The most blocks that are translated along with one.
const MOST: usize = 8;
/// Bytes of the longest instruction.
const LONGEST: u64 = 15;

/// The entry of a block for a jump that is linked to it.
pub(super) fn entry(block: &Block, kind: ExitKind, cross: bool, backward: bool) -> CodeOffset {
    match kind {
        // Where the caller's page is mapped has not changed since the call; that of the page behind it
        // may have changed before.
        ExitKind::Return if cross => block.indirect_entry,
        ExitKind::Return => block.return_entry,
        _ if cross => block.guarded_entry,
        // Each call polls, so that calls and returns alone cannot go on for ever.
        ExitKind::Call => block.poll_entry,
        ExitKind::Jump if backward => block.poll_entry,
        ExitKind::Jump => block.entry,
    }
}

impl Vcpu {
    /// Links the ways out of a new block within its page, and translates what they lead to if that is no
    /// longer cold.
    pub(super) fn look_ahead(&mut self, first: u32) {
        if !self.options.ahead {
            return;
        }
        let rip = self.cpu().rip;
        let mut made = [first; MOST + 1];
        let (mut next, mut count) = (0, 1);
        while next < count {
            let from = made[next];
            next += 1;
            for exit in 0.. {
                let Some(block) = self.cache.block(from) else {
                    break;
                };
                let Some(out) = block.exits.get(exit) else {
                    break;
                };
                let Some((key, backward)) = self.leads_to(block, out) else {
                    continue;
                };
                let kind = out.kind;
                let mut to = self.cache.find(&key);
                if to.is_none() && count < made.len() {
                    to = self.translate_warm(key);
                    if let Some(id) = to {
                        made[count] = id;
                        count += 1;
                    }
                }
                if let Some(block) = to.and_then(|id| self.cache.block(id))
                    && block.second.is_none()
                    && let Some(to) = to
                {
                    let entry = entry(block, kind, false, backward);
                    self.cache.link(from, exit, to, entry);
                }
            }
        }
        self.cpu_mut().rip = rip;
    }

    /// The key of what an unlinked exit leads to within its page, and whether that is backward.
    fn leads_to(&self, block: &Block, out: &Exit) -> Option<(Key, bool)> {
        let key = block.key;
        let within = out.target % PAGE_SIZE;
        let page = key.physical.page();
        let near = out.target / PAGE_SIZE == key.rip / PAGE_SIZE && key.code == CodeSegment::FLAT;
        // What crosses into the next page is linked by who gets there.
        if !near || out.linked.is_some() || out.ungrouped.is_some() || within > PAGE_SIZE - LONGEST
        {
            return None;
        }
        let last = &block.insns[block.insns.len() - 1];
        // Behind these code has another mode.
        if matches!(last.mnemonic(), Mnemonic::Stac | Mnemonic::Clac) {
            return None;
        }
        let backward = out.target <= last.ip();
        // The rounds of loops are counted where they call up.
        if backward && self.options.traces.is_some() {
            return None;
        }
        let physical = GuestPhys(page.0 + within);
        let rip = out.target;
        Some((
            Key {
                physical,
                rip,
                ..key
            },
            backward,
        ))
    }

    /// Translates, or moves, code that has been executed as often as that takes.
    fn translate_warm(&mut self, key: Key) -> Option<u32> {
        if self.visits.first(key.physical, key.rip) {
            return None;
        }
        if let Some(moved) = self.move_here(key) {
            return Some(moved);
        }
        if !self.visits.warm(key.physical, key.rip) {
            return None;
        }
        self.cpu_mut().rip = key.rip;
        let mut insns = std::mem::take(&mut self.decoded);
        let decoded = decode::block(&mut self.context(), &mut insns);
        let id = match decoded {
            Ok(Some(decoded)) if decoded.physical == key.physical && decoded.second.is_none() => {
                self.place(key, &insns, (key.physical, decoded.len), None, Tier::First)
            }
            _ => None,
        };
        self.decoded = insns;
        id
    }
}
