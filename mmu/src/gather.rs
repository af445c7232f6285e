//! Pages that follow each other in a program are brought together on the host: what real systems do by large
//! pages ("Reducing TLB and Memory Overhead Using Online Superpage Promotion", Romer et al., 1995).
//!
//! A page's contents move, in all copies, to a slot of a reserve, and the frame table gives the page that slot;
//! its own slot stays empty, and is where it goes back to when the reserve is handed out again, from its start.

use std::ops::Range;

use crate::address::{GuestPhys, PAGE_SIZE};
use crate::physical::{PhysMem, page};

/// The most slots in a reserve: 16 MiB in each copy. More would have the host clear more memory.
const MOST: u32 = 1 << 12;
/// A slot that no page is in.
const NOBODY: u32 = u32::MAX;

/// Slots for pages that are brought together.
pub(crate) struct Reserve {
    first: u32,
    /// The page that is in each slot, unless it has moved on since.
    owners: Vec<u32>,
    /// The slot to hand out next, from `first`.
    next: u32,
}

impl Reserve {
    /// Slots for so many pages of RAM.
    pub(crate) fn slots_for(ram_pages: u32) -> u32 {
        (ram_pages / 16).min(MOST)
    }

    /// An empty reserve of these slots.
    pub(crate) fn new(slots: Range<u32>) -> Reserve {
        Reserve {
            first: slots.start,
            owners: vec![NOBODY; slots.len()],
            next: 0,
        }
    }

    fn has(&self, slot: u32) -> bool {
        slot >= self.first && slot - self.first < self.owners.len() as u32
    }
}

impl PhysMem {
    /// Whether a page may be brought together with others: plain memory, and nothing is wrong with it.
    pub(crate) fn may_gather(&self, gpa: GuestPhys) -> bool {
        const PLAIN: u8 = page::WRITE_CACHED | page::READ_CACHED;
        self.page_index(gpa).is_some_and(|index| {
            let slot = self.slot(index);
            // A page that has left its slot for another reason has a bad frame there.
            self.flags[index as usize] & !PLAIN == 0 && (slot == index || self.reserve.has(slot))
        })
    }

    /// Moves pages, each of which is there once and may be moved, to slots that follow each other. Returns how
    /// many have moved: all, or none if there is no room for so many; then no other has either.
    pub(crate) fn gather(&mut self, pages: &[GuestPhys]) -> usize {
        let count = pages.len() as u32;
        let slots = self.reserve.owners.len() as u32;
        let moved = |page: &&GuestPhys| {
            let index = self.page_index(**page);
            index.is_some_and(|index| self.reserve.has(self.slot(index)))
        };
        // Little is won by bringing a few more to the others.
        let settled = pages.iter().filter(moved).count() > pages.len() / 4 * 3;
        if count > slots || settled {
            return 0;
        }
        let start = if self.reserve.next + count > slots {
            0
        } else {
            self.reserve.next
        };
        self.reserve.next = start + count;
        let owners = start..start + count;
        let owners = owners.filter_map(|at| Some((at, self.owner(at)?)));
        let owners: Vec<(u32, u32)> = owners.collect();
        let stays = |&(_, owner): &(u32, u32)| !self.may_gather(self.page_address(owner));
        if owners.iter().any(stays) {
            return 0;
        }
        for (at, owner) in owners {
            self.move_to_slot(owner, owner);
            self.reserve.owners[at as usize] = NOBODY;
        }
        for (at, &page) in (start..).zip(pages) {
            if let Some(index) = self.page_index(page) {
                self.move_to_slot(index, self.reserve.first + at);
                self.reserve.owners[at as usize] = index;
            }
        }
        pages.len()
    }

    /// The page that is in a slot of the reserve.
    fn owner(&self, at: u32) -> Option<u32> {
        let owner = self.reserve.owners[at as usize];
        (owner != NOBODY && self.slot(owner) == self.reserve.first + at).then_some(owner)
    }

    /// Moves a page, in all copies. Its translations are stale then.
    fn move_to_slot(&mut self, index: u32, to: u32) {
        let from = self.slot(index);
        for copy in 0..self.copies() {
            let [from, to] =
                [from, to].map(|slot| self.frame_pointer(self.frame_of_slot(slot, copy)));
            // SAFETY: two different slots, so two different frames, both within the mapping.
            unsafe { std::ptr::copy_nonoverlapping(from, to, PAGE_SIZE as usize) };
        }
        self.set_slot(index, to);
        self.touch(index);
        self.forget_page(self.page_address(index), index, from);
    }
}
