//! Which blocks were made from which page of the guest's memory. A page of a library can have thousands,
//! one for each address that it was ever executed at: so one that goes is not searched for.

use mmu::{GuestPhys, PAGE_SIZE};
use rustc_hash::FxHashMap;

/// The bytes of a page that a block was made from.
#[derive(Clone, Copy)]
struct Piece {
    id: u32,
    first: u16,
    last: u16,
}

/// The blocks of each page.
#[derive(Default)]
pub(super) struct Pages {
    pieces: FxHashMap<GuestPhys, Vec<Piece>>,
}

impl Pages {
    /// Adds a block that was made from `len` bytes of one page; returns its place among those of
    /// the page.
    pub(super) fn add(&mut self, id: u32, start: GuestPhys, len: u32) -> u32 {
        let first = start.page_offset() as u16;
        let room = PAGE_SIZE as u32 - u32::from(first);
        let pieces = self.pieces.entry(start.page()).or_default();
        pieces.push(Piece {
            id,
            first,
            last: first + len.clamp(1, room) as u16 - 1,
        });
        pieces.len() as u32 - 1
    }

    /// Removes the block at a place; returns the one that is there now, and where that was.
    pub(super) fn remove(&mut self, page: GuestPhys, place: u32) -> Option<(u32, u32)> {
        let pieces = self.pieces.get_mut(&page)?;
        pieces.swap_remove(place as usize);
        if pieces.is_empty() {
            self.pieces.remove(&page);
            return None;
        }
        let follower = pieces.get(place as usize)?;
        Some((follower.id, pieces.len() as u32))
    }

    /// The blocks that were made from any byte of a page from `first` to `last`.
    pub(super) fn overlapping(&self, page: GuestPhys, first: u64, last: u64) -> Vec<u32> {
        let pieces = self.pieces.get(&page).into_iter().flatten();
        pieces
            .filter(|piece| u64::from(piece.first) <= last && first <= u64::from(piece.last))
            .map(|piece| piece.id)
            .collect()
    }

    /// Whether any block was made from a page.
    pub(super) fn contains(&self, page: GuestPhys) -> bool {
        self.pieces.contains_key(&page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_takes_the_place_of_one_that_goes() {
        let page = GuestPhys(0x3000);
        let mut pages = Pages::default();
        let places = [7, 8, 9].map(|id| pages.add(id, page.add(u64::from(id) * 16), 16));
        assert_eq!(places, [0, 1, 2]);
        assert_eq!(pages.overlapping(page, 0x7f, 0x80), [7, 8]);
        assert_eq!(pages.remove(page, 0), Some((9, 2)));
        assert_eq!(pages.overlapping(page, 0, 0xfff), [9, 8]);
        assert_eq!(pages.remove(page, 1), None);
        assert!(pages.contains(page));
        assert_eq!(pages.remove(page, 0), None);
        assert!(!pages.contains(page));
    }
}
