//! Host memory that is there before the guest asks for it.
//!
//! The host clears a page when it is first written, while the guest waits: for native copies 2 MiB at a time,
//! for mirrors 4 KiB. Guests take fresh memory in order, up or down. So where the second of two neighbouring
//! regions is touched, a thread of its own has the host provide the next one, in all copies, and what is missing
//! of the mirrors of this one. It changes no contents (`MADV_POPULATE_WRITE`, madvise(2)). Where the guest does not
//! wait for it, a mirror may be on large pages of the host, too.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use memmap2::MmapRaw;

#[cfg(target_os = "linux")]
use crate::address::PAGE_SIZE;

/// Slots in a region: 2 MiB, what a large page of the host measures.
pub(crate) const REGION_SLOTS: u32 = 512;

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
    /// To the thread, once there was something to do.
    requests: Option<Sender<Piece>>,
}

impl Ahead {
    /// For so many slots; `None` where no other processor could do it.
    pub(crate) fn new(map: &Arc<MmapRaw>, slots: u32) -> Option<Ahead> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let possible = cfg!(target_os = "linux") && processors > 1;
        possible.then(|| Ahead {
            map: Arc::clone(map),
            regions: vec![Region::default(); slots.div_ceil(REGION_SLOTS) as usize],
            requests: None,
        })
    }

    /// A slot is about to be written. Whether it is the first in its region.
    #[inline]
    pub(crate) fn touch(&mut self, slot: u32) -> bool {
        let region = &mut self.regions[(slot / REGION_SLOTS) as usize];
        !std::mem::replace(&mut region.touched, true)
    }

    /// What to ask for behind the first touch of a slot's region: the slots to begin with, and the
    /// lowest copy.
    pub(crate) fn wanted(&mut self, slot: u32) -> impl Iterator<Item = (u32, usize)> + use<> {
        let here = (slot / REGION_SLOTS) as usize;
        let touched = |region: Option<usize>| {
            region.filter(|&region| {
                self.regions
                    .get(region)
                    .is_some_and(|region| region.touched)
            })
        };
        let next = match (touched(here.checked_sub(1)), touched(Some(here + 1))) {
            (Some(_), None) => Some(here + 1),
            (None, Some(_)) => here.checked_sub(1),
            (Some(_), Some(_)) | (None, None) => None,
        };
        // The next one first: this one's mirrors end in the same large pages of the host.
        let both = [(next, 0), (Some(here).filter(|_| next.is_some()), 1)];
        both.map(|(region, copy)| {
            let region = region?;
            let asked = &mut self.regions.get_mut(region)?.asked;
            let first = region as u32 * REGION_SLOTS;
            (!std::mem::replace(asked, true)).then_some((first, copy))
        })
        .into_iter()
        .flatten()
    }

    /// Has the thread ask for a piece of the mapping.
    pub(crate) fn ask(&mut self, piece: Piece) {
        if self.requests.is_none() {
            let (sender, receiver) = channel();
            let map = Arc::clone(&self.map);
            // Without a thread, or when it has ended, the guest waits as it did.
            let thread = std::thread::Builder::new().name("memory".into());
            let _ = thread.spawn(move || provide(&map, &receiver));
            self.requests = Some(sender);
        }
        if let Some(requests) = &self.requests {
            let _ = requests.send(piece);
        }
    }
}

/// Asks the host for one piece after the other, until it refuses.
#[cfg(target_os = "linux")]
fn provide(map: &MmapRaw, pieces: &Receiver<Piece>) {
    let start = map.as_ptr() as usize;
    for piece in pieces {
        if piece.large {
            let first = ((start + piece.offset) & !(LARGE_PAGE - 1)).max(start) - start;
            // Refusing costs speed only.
            let len = LARGE_PAGE.min(map.len() - first);
            let _ = map.advise_range(memmap2::Advice::HugePage, first, len);
        }
        let advice = memmap2::Advice::PopulateWrite;
        if map.advise_range(advice, piece.offset, piece.len).is_err() {
            break;
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn provide(_: &MmapRaw, _: &Receiver<Piece>) {}

#[cfg(test)]
mod tests {
    use super::*;

    fn ahead() -> Ahead {
        let map = MmapRaw::from(memmap2::MmapOptions::new().len(4096).map_anon().unwrap());
        Ahead {
            map: Arc::new(map),
            regions: vec![Region::default(); 8],
            requests: None,
        }
    }

    fn touch(ahead: &mut Ahead, region: u32) -> Vec<(u32, usize)> {
        let slot = region * REGION_SLOTS + 7;
        assert!(ahead.touch(slot) && !ahead.touch(slot));
        let wanted = ahead.wanted(slot);
        wanted
            .map(|(slot, copy)| (slot / REGION_SLOTS, copy))
            .collect()
    }

    #[test]
    fn follows_the_guest_up_and_down() {
        let mut up = ahead();
        assert_eq!(touch(&mut up, 5), []);
        assert_eq!(touch(&mut up, 6), [(7, 0), (6, 1)]);
        // It was asked for, and nothing is behind it.
        assert_eq!(touch(&mut up, 7), []);
        let mut down = ahead();
        assert_eq!(touch(&mut down, 2), []);
        assert_eq!(touch(&mut down, 1), [(0, 0), (1, 1)]);
        assert_eq!(touch(&mut down, 0), []);
        // Nothing is known of a way between two.
        assert_eq!(touch(&mut down, 4), []);
        assert_eq!(touch(&mut down, 3), []);
    }
}
