//! How the block is found that the processor goes on with.

use super::block_state::JumpEntry;
use super::other_pages::Others;
use super::vcpu::Vcpu;
use crate::cache::Key;
use crate::decode;
use crate::guest::Exception;
use crate::interpret;

impl Vcpu {
    /// What a block at RIP is found by, with accesses that share checks or without; `None`: the code segment
    /// has no number.
    pub(super) fn key_at_rip(&mut self, grouped: bool) -> Result<Option<Key>, Exception> {
        let mut cx = self.context();
        let (rip, mode) = (cx.cpu.rip, cx.cpu.mode);
        let linear = decode::fetch_address(&cx)?;
        let physical = cx.translate_fetch(linear)?;
        // The walk may have written an accessed bit into code.
        self.settle();
        Ok(self.code_segment().map(|code| Key {
            physical,
            rip,
            mode,
            grouped,
            code,
        }))
    }

    /// Finds or makes the block at RIP, with accesses that share checks or without.
    pub(super) fn find_block(&mut self, grouped: bool) -> Result<Option<u32>, Exception> {
        let key = self.key_at_rip(grouped)?;
        Ok(key.and_then(|key| self.block_of(key)))
    }

    /// Finds or makes the block of a key, which is that of RIP.
    pub(super) fn block_of(&mut self, key: Key) -> Option<u32> {
        let Key {
            physical,
            rip,
            grouped,
            ..
        } = key;
        let found = match self.cache.find(&key) {
            // What runs once only is not worth a copy either. What another run has translated runs more often.
            None if self.visits.first(physical, rip) => match self.cache.original(&key) {
                Some(_) => None,
                None => self.recall(key),
            },
            None => self.move_here(key),
            found => found,
        };
        if found.is_none() && grouped == self.options.grouping && self.visits.cold(physical, rip) {
            return None;
        }
        // Another's first visit may have been taken for this one's.
        let found = found.or_else(|| self.recall(key));
        let id = match found.map(|id| (id, self.other_pages(id))) {
            Some((id, Others::Hold)) => Some(id),
            Some((_, Others::Unknown)) => return None,
            other => {
                if let Some(gone) = other.and_then(|(id, _)| self.cache.remove(id)) {
                    self.drop_blocks(&[gone]);
                }
                self.translate(key)
            }
        };
        // Looking for the second page is a walk as well: what it wrote may have been this block.
        id.filter(|&id| self.confirm(id))
    }

    /// Notes in the page guard that the block's page is mapped where the block expects it. `false`: the
    /// block is gone.
    fn confirm(&mut self, id: u32) -> bool {
        // A fetch that walked the tables may have flushed nothing, but a flush before it must
        // be noticed before the guard is set.
        self.settle();
        let Some(block) = self.cache.block(id) else {
            return false;
        };
        let view = interpret::view(block.key.mode);
        let (code, rip) = (block.key.code, block.key.rip);
        let page = code.page(rip);
        let tables = &mut self.block.get_mut().guards;
        self.guards.confirm(tables, view, page, block.mapping);
        for further in &block.further {
            let (page, mapping) = (further.part.page, further.mapping);
            self.guards.confirm(tables, view, page, mapping);
        }
        self.cache.touch(id);
        true
    }

    /// Where an indirect jump to RIP goes, if that is known. The entry there confirms that the
    /// page is still mapped.
    pub(super) fn remembered_jump(&mut self) -> Option<u64> {
        let code = self.code_segment()?;
        let cpu = self.cpu();
        let cache = self
            .jump_modes
            .iter()
            .position(|&known| known == cpu.mode)?;
        let word = code.jump_word(cpu.rip);
        let entry = self.block.get().jumps[cache][JumpEntry::slot(word)];
        (entry.word == word).then_some(entry.host)
    }

    /// Remembers where an indirect jump to a block goes.
    pub(super) fn remember_jump(&mut self, id: u32) {
        if let Some(block) = self.cache.block(id) {
            let host = self.cache.region().address(block.indirect_entry());
            let (word, cache) = (block.key.jump_word(), block.jump_cache);
            self.block.get_mut().jumps[cache][JumpEntry::slot(word)] = JumpEntry { word, host };
        }
    }
}
