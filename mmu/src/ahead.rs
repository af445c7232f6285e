//! Host memory that is there before the guest asks for it.
//!
//! The host clears a page when it is first written, while the guest waits: for native copies 2 MiB at a time,
//! for mirrors 4 KiB. Guests take fresh memory in blocks (Linux: of 4 MiB), and these in order, up or down. So where a
//! region of 2 MiB is touched, the other half of its block is provided, and the mirrors of this one; and where the neighbour of
//! the block has been touched, the next block on the other side. It changes no contents (`MADV_POPULATE_WRITE`, madvise(2)).
//! Where the guest does not wait for it, a mirror may be on large pages of the host, too.

use std::sync::Arc;

use memmap2::MmapRaw;

#[cfg(target_os = "linux")]
use crate::address::PAGE_SIZE;
use crate::provider::Provider;

/// Slots in a region: 2 MiB, what a large page of the host measures.
pub(crate) const REGION_SLOTS: u32 = 512;
/// Regions in a block.
const BLOCK: usize = 2;

#[cfg(target_os = "linux")]
const LARGE_PAGE: usize = REGION_SLOTS as usize * PAGE_SIZE as usize;

/// A piece of the mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// Where it begins, in bytes.
    pub offset: usize,
    /// How many bytes it has.
    pub len: usize,
    /// It is a mirror of what the guest has not touched: the large page of the host in which it begins may
    /// become one.
    pub large: bool,
}

/// What is known of a region.
#[derive(Clone, Copy, Default)]
struct Region {
    /// The guest may have written there.
    touched: bool,
    /// The host was asked to provide it.
    asked: bool,
}

/// Asks the host for memory ahead of the guest.
pub(crate) struct Ahead {
    map: Arc<MmapRaw>,
    regions: Vec<Region>,
    provider: Provider,
}

impl Ahead {
    /// For so many slots.
    pub(crate) fn new(map: &Arc<MmapRaw>, slots: u32, provider: Provider) -> Ahead {
        Ahead {
            map: Arc::clone(map),
            regions: vec![Region::default(); slots.div_ceil(REGION_SLOTS) as usize],
            provider,
        }
    }

    /// What asks the host.
    pub(crate) fn provider(&self) -> &Provider {
        &self.provider
    }

    /// A slot is about to be written. Whether it is the first in its region.
    #[inline]
    pub(crate) fn touch(&mut self, slot: u32) -> bool {
        let region = &mut self.regions[(slot / REGION_SLOTS) as usize];
        !std::mem::replace(&mut region.touched, true)
    }

    /// What to ask for behind the first touch of a slot's region: the slots to begin with, and the
    /// lowest copy.
    pub(crate) fn wanted(&mut self, slot: u32) -> Vec<(u32, usize)> {
        let here = (slot / REGION_SLOTS) as usize;
        let block = here / BLOCK * BLOCK;
        let touched = |region: Option<usize>| {
            let region = region.and_then(|region| self.regions.get(region));
            region.is_some_and(|region| region.touched)
        };
        let below = block.checked_sub(BLOCK);
        let next = match (touched(block.checked_sub(1)), touched(Some(block + BLOCK))) {
            (true, false) => Some(block + BLOCK),
            (false, true) => below,
            _ => None,
        };
        // The other half first, then this one's mirrors, of which the guest writes a page now.
        let halves = (block..block + BLOCK).filter(|&half| half != here);
        let further = next.into_iter().flat_map(|next| next..next + BLOCK);
        let wanted = halves.map(|region| (region, 0));
        let wanted = wanted.chain([(here, 1)]);
        let wanted = wanted.chain(further.map(|region| (region, 0)));
        wanted
            .filter_map(|(region, lowest)| {
                let asked = &mut self.regions.get_mut(region)?.asked;
                let first = region as u32 * REGION_SLOTS;
                (!std::mem::replace(asked, true)).then_some((first, lowest))
            })
            .collect()
    }

    /// Has the host provide a piece of the mapping.
    pub(crate) fn ask(&self, piece: Piece) {
        let map = Arc::clone(&self.map);
        self.provider.ask(move || provide(&map, piece));
    }
}

/// Refusing costs speed only.
#[cfg(target_os = "linux")]
fn provide(map: &MmapRaw, piece: Piece) {
    let start = map.as_ptr() as usize;
    if piece.large {
        let first = ((start + piece.offset) & !(LARGE_PAGE - 1)).max(start) - start;
        let len = LARGE_PAGE.min(map.len() - first);
        let _ = map.advise_range(memmap2::Advice::HugePage, first, len);
    }
    let _ = map.advise_range(memmap2::Advice::PopulateWrite, piece.offset, piece.len);
}

#[cfg(not(target_os = "linux"))]
fn provide(_: &MmapRaw, _: Piece) {}

#[cfg(test)]
mod tests {
    use super::*;

    fn ahead() -> Ahead {
        let map = MmapRaw::from(memmap2::MmapOptions::new().len(4096).map_anon().unwrap());
        Ahead::new(&Arc::new(map), 9 * REGION_SLOTS, Provider::default())
    }

    fn touch(ahead: &mut Ahead, region: u32) -> Vec<(u32, usize)> {
        let slot = region * REGION_SLOTS + 7;
        assert!(ahead.touch(slot) && !ahead.touch(slot));
        let wanted = ahead.wanted(slot).into_iter();
        wanted
            .map(|(slot, copy)| (slot / REGION_SLOTS, copy))
            .collect()
    }

    #[test]
    fn follows_the_guest_up_and_down() {
        let (mut up, mut down) = (ahead(), ahead());
        assert_eq!(touch(&mut up, 3), [(2, 0), (3, 1)]);
        assert_eq!(touch(&mut up, 2), []);
        assert_eq!(touch(&mut up, 4), [(5, 0), (4, 1), (6, 0), (7, 0)]);
        assert_eq!(touch(&mut up, 5), []);
        // The last block has one region.
        assert_eq!(touch(&mut up, 6), [(8, 0)]);
        assert_eq!(touch(&mut down, 4), [(5, 0), (4, 1)]);
        assert_eq!(touch(&mut down, 3), [(2, 0), (3, 1), (0, 0), (1, 0)]);
        assert_eq!(touch(&mut down, 0), []);
        // Nothing is known of a way between two.
        assert_eq!(touch(&mut down, 8), [(8, 1)]);
        assert_eq!(touch(&mut down, 7), [(6, 0), (7, 1)]);
    }
}
