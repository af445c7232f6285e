//! Fetch translations, and what is told of those that were dropped.

use crate::address::{GuestPhys, Linear};
use crate::large::LargeRegions;
use crate::used::Used;
use crate::walk::Mapping;

/// Entries in one [`FetchTlb`].
pub const FETCH_ENTRIES: usize = 1024;

/// One fetch translation: where code at a linear page is.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FetchEntry {
    /// Linear page number, or all ones.
    pub page: u64,
    /// Guest-physical page address; bit 0 is set for a global page.
    pub physical: u64,
}

/// Fetch translations of one privilege.
#[repr(C)]
pub struct FetchTlb {
    pub(crate) entries: [FetchEntry; FETCH_ENTRIES],
    /// Entries that are not of global pages, or were not since the last flush: what was derived from one lives on when
    /// another page has taken its place.
    local: Used<{ FETCH_ENTRIES / 64 }>,
    pub(crate) large: LargeRegions,
}

impl FetchTlb {
    /// The guest-physical address of code, if it is known.
    #[inline]
    pub fn lookup(&self, address: Linear) -> Option<GuestPhys> {
        let entry = &self.entries[address.page_number() as usize % FETCH_ENTRIES];
        (entry.page == address.page_number())
            .then(|| GuestPhys((entry.physical & !1) | address.page_offset() as u64))
    }

    /// Remembers where a page of code is.
    pub fn fill(&mut self, address: Linear, mapping: &Mapping) {
        self.large.add(address, mapping);
        let index = address.page_number() as usize % FETCH_ENTRIES;
        if !mapping.global {
            self.local.add(index);
        }
        self.entries[index] = FetchEntry {
            page: address.page_number(),
            physical: mapping.physical.page().0 | u64::from(mapping.global),
        };
    }

    pub(crate) fn flush(&mut self, global: bool) {
        if global {
            for entry in &mut self.entries {
                entry.page = u64::MAX;
            }
            self.local = Used::NONE;
            self.large = LargeRegions::NONE;
        } else {
            self.leave(|_, _| {});
        }
    }

    /// Drops what is not global, after a last look at it.
    pub(crate) fn leave(&mut self, mut last: impl FnMut(usize, FetchEntry)) {
        let entries = &mut self.entries;
        self.local.take(|index| {
            if entries[index].page != u64::MAX && entries[index].physical & 1 == 0 {
                last(index, entries[index]);
                entries[index].page = u64::MAX;
            }
        });
    }

    /// Takes back what was dropped, unless a global page has taken its place.
    pub(crate) fn take_back(&mut self, index: usize, entry: FetchEntry) {
        if self.entries[index].page == u64::MAX {
            self.entries[index] = entry;
            self.local.add(index);
        }
    }

    /// Whether every translation that was here since the last flush survives one that spares global pages.
    pub(crate) fn all_global(&self) -> bool {
        self.local.is_empty()
    }
}

/// Fetch translations that were dropped since somebody last looked: what is derived from them
/// has to go too.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct FetchNews {
    /// All of the supervisor's.
    pub supervisor: bool,
    /// All of the user's.
    pub user: bool,
    /// These linear page numbers, if `count` is at most their number.
    pub pages: [u64; 8],
    /// Pages dropped one by one.
    pub count: u32,
    /// The user's were not dropped, but kept as this list plus 1; 0: they were dropped.
    pub left: u8,
    /// The user's that were kept as this list plus 1 are back; 0: none are.
    pub entered: u8,
}

impl FetchNews {
    /// Whether nothing was dropped.
    pub fn is_empty(&self) -> bool {
        !self.supervisor && !self.user && self.count == 0
    }

    pub(crate) fn add(&mut self, page: u64) {
        match self.pages.get_mut(self.count as usize) {
            Some(slot) => {
                *slot = page;
                self.count += 1;
            }
            None => {
                self.supervisor = true;
                self.user = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tlb::TlbSet;

    #[test]
    fn a_global_page_in_its_place_does_not_hide_one_that_goes() {
        let mapping = |global| Mapping {
            physical: GuestPhys(0x5000),
            page_shift: 12,
            write_ready: false,
            user: false,
            executable: true,
            global,
            key: None,
        };
        let [page, same_place] = [1, 1 + FETCH_ENTRIES as u64].map(|page| Linear(page << 12));
        // SAFETY: zero is valid for a set of TLBs, which `reset` empties.
        let mut tlb: Box<TlbSet> = unsafe { Box::new_zeroed().assume_init() };
        tlb.reset();
        let told = |tlb: &mut TlbSet| {
            tlb.fetch_news = FetchNews::default();
            tlb.flush(false);
            tlb.fetch_news.supervisor
        };
        tlb.fetch[0].fill(same_place, &mapping(true));
        assert!(!told(&mut tlb));
        tlb.fetch[0].fill(page, &mapping(false));
        tlb.fetch[0].fill(same_place, &mapping(true));
        assert!(told(&mut tlb));
        assert!(tlb.fetch[0].lookup(same_place).is_some());
        assert!(!told(&mut tlb));
    }
}
