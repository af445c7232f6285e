//! Links between blocks: which entry an exit leads to, and what the flags have to be good for that it brings.

use super::blocks::BlockCache;
use super::region::CodeOffset;
use crate::x86_64::{ExitFlags, ExitKind};

/// How often exits of a block may call up because of the flags that it was entered with, before it asks
/// for better ones. Each costs as much as some hundred entries with these.
const PATIENCE: u8 = 16;

impl BlockCache {
    /// Links an exit to an entry for direct jumps of a block, or to the one that saves the flags
    /// if what the exit says of them will not do, or to one that takes them from their saved
    /// place. An exit that passes on what its block was entered with, where that would not do, stays as it is
    /// until this has happened often.
    pub fn link(&mut self, from: u32, exit: usize, to: u32, mut entry: CodeOffset) {
        let (Some(source), Some(target)) = (self.block(from), self.block(to)) else {
            return;
        };
        let Some(out) = source.exit(exit) else {
            return;
        };
        let number = exit as u16;
        if source.outgoing.iter().any(|&(known, _)| known == number) {
            return;
        }
        if out.kind != ExitKind::Return && !target.takes(source, out.flags) {
            entry = match out.flags {
                ExitFlags::Arrived if target.lost.is_some() => entry,
                ExitFlags::Arrived | ExitFlags::Sealed if entry == target.entry() => {
                    target.return_entry()
                }
                ExitFlags::Arrived | ExitFlags::Sealed => target.indirect_entry(),
                _ if entry == target.entry() => target.saving_forward(),
                _ => target.saving_entry(),
            };
            // Where they are evaluated no register may be needed.
            let changed = target.lost.unwrap_or(u16::MAX);
            if out.flags == ExitFlags::Arrived && !self.demand(from, changed) {
                return;
            }
        }
        if let Some(source) = self.block_mut(from) {
            source.outgoing.push((number, to));
        }
        if let Some(target) = self.block_mut(to) {
            target.incoming.push((from, number));
            self.region.patch_relative(out.site, entry);
        }
    }

    /// Has a block be entered with flags whose recipe needs none of these registers, if its exits have called
    /// up often because of that. Whether it is from now on. What leads to it is linked anew.
    fn demand(&mut self, id: u32, registers: u16) -> bool {
        let Some(block) = self.block_mut(id) else {
            return false;
        };
        let Some(lost) = &mut block.lost else {
            return false;
        };
        if registers & !*lost == 0 {
            return true;
        }
        // The way back of such a loop was emitted for what it asked then.
        block.impatience = block.impatience.saturating_add(1);
        if block.made.has_inner || block.impatience < PATIENCE {
            return false;
        }
        *lost |= registers;
        let incoming = std::mem::take(&mut block.incoming);
        for (from, exit) in incoming {
            self.unlink(from, exit, id);
        }
        self.statistics.demands += 1;
        true
    }

    /// Has an exit that is linked to a block call up again. The block's own list is the caller's.
    pub(super) fn unlink(&mut self, from: u32, exit: u16, to: u32) {
        let Some(source) = self.block_mut(from) else {
            return;
        };
        let links = &mut source.outgoing;
        let Some(at) = links.iter().position(|&link| link == (exit, to)) else {
            return;
        };
        links.swap_remove(at);
        if let Some(out) = source.exit(usize::from(exit)) {
            self.region.patch_relative(out.site, out.stub);
        }
    }
}
