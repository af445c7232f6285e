//! What is kept of address spaces that are not the current one, by process-context identifier
//! (SDM volume 3, 4.10.1).
//!
//! The TLBs hold the current space and global pages only. A change of the identifier moves the
//! others out into a list and those of the new space back in: programs use few entries between two
//! switches, so that is less than filling them anew.

use crate::address::GuestPhys;
use crate::fetch::FetchEntry;
use crate::homes::Hash;
use crate::large::LargeRegions;
use crate::tlb::TlbEntry;

/// Spaces that are kept besides the current one.
pub const SPACES: usize = 8;
/// Data translations kept of a space; what is more is dropped, as any TLB may.
const DATA: usize = 512;
/// Fetch translations likewise.
const FETCHES: usize = 64;
/// The logarithm of the bits in [`Space::pages`].
const PAGE_BITS: u32 = 12;
/// The identifier of a list that is not in use.
const NOBODY: u16 = u16::MAX;

/// The translations of one space, less global ones.
#[repr(C)]
pub(crate) struct Space {
    pcid: u16,
    /// Which view and which index, for each translation.
    places: [u16; DATA],
    entries: [TlbEntry; DATA],
    count: usize,
    /// A bit for each hash of a guest-physical page of which there may be an entry.
    pages: [u64; 1 << PAGE_BITS >> 6],
    fetches: [(u16, FetchEntry); FETCHES],
    fetch_count: usize,
    /// Where entries of larger pages are: the data views, then fetches.
    pub(crate) large: [LargeRegions; 4],
    /// When it was left.
    stamp: u64,
}

/// All spaces that are kept.
#[repr(C)]
pub struct Spaces {
    list: [Space; SPACES],
    switches: u64,
    /// 1 if spaces are kept at all; 0: leaving one drops its translations.
    pub kept: u8,
}

impl Space {
    /// Keeps a data translation if there is room.
    pub(crate) fn keep(&mut self, view: usize, index: usize, entry: TlbEntry) {
        if self.count < DATA {
            self.places[self.count] = (view << 14 | index) as u16;
            self.entries[self.count] = entry;
            self.count += 1;
            let bit = Hash::of(entry.physical).bits(PAGE_BITS);
            self.pages[bit / 64] |= 1 << (bit % 64);
        }
    }

    /// Keeps a fetch translation if there is room.
    pub(crate) fn keep_fetch(&mut self, index: usize, entry: FetchEntry) {
        if self.fetch_count < FETCHES {
            self.fetches[self.fetch_count] = (index as u16, entry);
            self.fetch_count += 1;
        }
    }

    fn drop_entries(&mut self, condition: impl Fn(&TlbEntry) -> bool) {
        let mut at = 0;
        while self.pcid != NOBODY && at < self.count {
            if condition(&self.entries[at]) {
                self.count -= 1;
                self.entries[at] = self.entries[self.count];
                self.places[at] = self.places[self.count];
            } else {
                at += 1;
            }
        }
    }

    /// View, index and data translation.
    pub(crate) fn data(&self) -> impl Iterator<Item = (usize, usize, TlbEntry)> {
        let places = self.places[..self.count].iter();
        places
            .zip(&self.entries)
            .map(|(&place, &entry)| (usize::from(place >> 14), usize::from(place & 0x3fff), entry))
    }

    /// Index and fetch translation.
    pub(crate) fn fetches(&self) -> impl Iterator<Item = (usize, FetchEntry)> {
        let kept = self.fetches[..self.fetch_count].iter();
        kept.map(|&(index, entry)| (usize::from(index), entry))
    }
}

impl Spaces {
    /// Forgets all spaces.
    pub(crate) fn forget_all(&mut self) {
        for space in &mut self.list {
            space.pcid = NOBODY;
        }
    }

    /// Forgets one space.
    pub(crate) fn forget(&mut self, pcid: u16) {
        if let Some(index) = self.find(pcid) {
            self.list[index].pcid = NOBODY;
        }
    }

    /// Drops the data translations that `condition` picks.
    pub(crate) fn drop_entries(&mut self, condition: impl Fn(&TlbEntry) -> bool) {
        for space in &mut self.list {
            space.drop_entries(&condition);
        }
    }

    /// Drops the data translations of a guest-physical page.
    pub(crate) fn forget_physical(&mut self, page: GuestPhys) {
        let bit = Hash::of(page.0).bits(PAGE_BITS);
        for space in &mut self.list {
            if space.pages[bit / 64] >> (bit % 64) & 1 != 0 {
                space.drop_entries(|entry| entry.is_of(page));
            }
        }
    }

    /// Where a space is kept.
    pub(crate) fn find(&self, pcid: u16) -> Option<usize> {
        self.list.iter().position(|space| space.pcid == pcid)
    }

    /// Takes a space's list out of use; what is in it stays until the next one is made.
    pub(crate) fn take(&mut self, index: usize) -> &Space {
        let space = &mut self.list[index];
        space.pcid = NOBODY;
        space
    }

    /// An empty list for a space: one that is not in use, or that was left longest ago.
    /// `except` is not taken.
    pub(crate) fn make(&mut self, pcid: u16, except: Option<usize>) -> (usize, &mut Space) {
        self.forget(pcid);
        self.switches += 1;
        let stamp = self.switches;
        let free = |space: &Space| if space.pcid == NOBODY { 0 } else { space.stamp };
        let index = (0..SPACES)
            .filter(|&index| Some(index) != except)
            .min_by_key(|&index| free(&self.list[index]))
            .unwrap_or_default();
        let space = &mut self.list[index];
        space.pcid = pcid;
        space.stamp = stamp;
        space.count = 0;
        space.pages.fill(0);
        space.fetch_count = 0;
        (index, space)
    }
}
