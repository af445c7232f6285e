//! Pages that follow each other in a program are brought together on the host: what real systems do by large
//! pages ("Reducing TLB and Memory Overhead Using Online Superpage Promotion", Romer et al., 1995).
//!
//! A page's contents move, in all copies, to a slot of a reserve, and the frame table gives the page that slot;
//! its own slot stays empty, and is where it goes back to when the reserve is handed out again, from its start.

use std::ops::Range;

use crate::address::{GuestPhys, PAGE_SIZE};
use crate::physical::{PhysMem, page};

/// The most slots for runs of up to [`FEW`] pages: 16 MiB in each copy. More would have the host clear more memory.
const MOST: u32 = 1 << 12;
/// The most slots for longer ones, which are large arrays: 64 MiB.
const MOST_LARGE: u32 = 1 << 14;
/// Two large pages and a page.
const FEW: u32 = 1025;
/// A slot that no page is in.
const NOBODY: u32 = u32::MAX;
/// A slot with a bad frame, which a page has left for that.
const RETIRED: u32 = NOBODY - 1;

/// Slots for pages that are brought together.
pub(crate) struct Reserve {
    first: u32,
    /// The page that is in each slot, unless it has moved on since.
    owners: Vec<u32>,
    /// For few pages, and for many.
    rings: [Ring; 2],
}

/// Slots of a reserve, counted from its first, that are handed out one after the other, again and again.
struct Ring {
    slots: Range<u32>,
    next: u32,
}

impl Ring {
    fn new(slots: Range<u32>) -> Ring {
        let next = slots.start;
        Ring { slots, next }
    }

    /// The next slots for so many pages, and as many as `spare` to be left empty behind them.
    fn take(&mut self, count: u32, spare: u32) -> Option<Range<u32>> {
        if count > self.slots.len() as u32 {
            return None;
        }
        let start = if self.next + count > self.slots.end {
            self.slots.start
        } else {
            self.next
        };
        self.next = (start + count + spare).min(self.slots.end);
        Some(start..start + count)
    }
}

impl Reserve {
    /// Slots for so many pages of RAM.
    pub(crate) fn slots_for(ram_pages: u32) -> u32 {
        (ram_pages / 16).min(MOST + MOST_LARGE)
    }

    /// An empty reserve of these slots.
    pub(crate) fn new(slots: Range<u32>) -> Reserve {
        let count = slots.len() as u32;
        let few = count.min(MOST);
        Reserve {
            first: slots.start,
            owners: vec![NOBODY; slots.len()],
            rings: [Ring::new(0..few), Ring::new(few..count)],
        }
    }

    fn has(&self, slot: u32) -> bool {
        slot >= self.first && slot - self.first < self.owners.len() as u32
    }

    /// Recovery has moved a page out of a slot, which may be one of these: no page goes there any more.
    pub(crate) fn retire(&mut self, slot: u32) {
        if self.has(slot) {
            self.owners[(slot - self.first) as usize] = RETIRED;
        }
    }

    fn is_retired(&self, at: u32) -> bool {
        self.owners[at as usize] == RETIRED
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

    /// Moves pages, each of which is there once and may be moved, to slots that follow each other. Where most of them
    /// are together, or there is room where these are, only others move. Returns how many have moved: none if there is no
    /// room for so many; then no other has either.
    pub(crate) fn gather(&mut self, pages: &[GuestPhys]) -> usize {
        let indices: Vec<u32> = pages.iter().filter_map(|&at| self.page_index(at)).collect();
        let count = indices.len() as u32;
        let Some(slots) = self.room_around(&indices).or_else(|| self.fresh(&indices)) else {
            return 0;
        };
        let owners = slots.clone().zip(&indices);
        let owners = owners.filter_map(|(at, &index)| Some((at, self.owner(at)?, index)));
        let owners: Vec<_> = owners.filter(|&(_, owner, index)| owner != index).collect();
        let stays = |&(_, owner, _): &(u32, u32, u32)| !self.may_gather(self.page_address(owner));
        let retired = slots.clone().any(|at| self.reserve.is_retired(at));
        // The next time it is the turn of others.
        if retired || count as usize != pages.len() || owners.iter().any(stays) {
            return 0;
        }
        for (at, owner, _) in owners {
            self.move_to_slot(owner, owner);
            self.reserve.owners[at as usize] = NOBODY;
        }
        let mut moved = 0;
        for (at, index) in slots.zip(indices) {
            let to = self.reserve.first + at;
            if self.slot(index) != to {
                self.move_to_slot(index, to);
                self.reserve.owners[at as usize] = index;
                moved += 1;
            }
        }
        moved
    }

    /// Slots that follow each other, in the same order as the pages, from which on: the longest such piece of
    /// them, its length, and the slot that the first page of all would have.
    fn longest_piece(&self, indices: &[u32]) -> (usize, Option<u32>) {
        let together = |&one: &u32, &next: &u32| self.slot(one) + 1 == self.slot(next);
        let mut before = 0;
        let mut longest = (0, None);
        for piece in indices.chunk_by(together) {
            if piece.len() > longest.0 {
                longest = (piece.len(), self.slot(piece[0]).checked_sub(before));
            }
            before += piece.len() as u32;
        }
        longest
    }

    /// The slots, if nobody is in those, that make all pages follow each other where the longest piece of them is.
    fn room_around(&self, indices: &[u32]) -> Option<Range<u32>> {
        let (_, first) = self.longest_piece(indices);
        let start = first?.checked_sub(self.reserve.first)?;
        let slots = start..start + indices.len() as u32;
        let within = |ring: &Ring| ring.slots.start <= slots.start && slots.end <= ring.slots.end;
        let free = |(at, &index)| {
            let others = self.owner(at).is_some_and(|owner| owner != index);
            !others && !self.reserve.is_retired(at)
        };
        let room = self.reserve.rings.iter().any(within) && slots.clone().zip(indices).all(free);
        room.then_some(slots)
    }

    /// Slots for all of these pages, unless most of them are together, in the reserve or as part of many: little is
    /// won by a few more.
    fn fresh(&mut self, indices: &[u32]) -> Option<Range<u32>> {
        let count = indices.len() as u32;
        let (together, first) = self.longest_piece(indices);
        let dear = count > FEW || first.is_some_and(|first| self.reserve.has(first));
        if dear && together > indices.len() / 4 * 3 {
            return None;
        }
        let [few, many] = &mut self.reserve.rings;
        if count <= FEW {
            few.take(count, 0)
        } else {
            // Large arrays grow while they are filled.
            many.take(count, count / 2)
        }
    }

    /// The page that is in a slot of the reserve.
    fn owner(&self, at: u32) -> Option<u32> {
        let owner = self.reserve.owners[at as usize];
        (owner < RETIRED && self.slot(owner) == self.reserve.first + at).then_some(owner)
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
