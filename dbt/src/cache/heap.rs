//! The heap, provided ahead of the translator: a block takes a kilobyte of it, and the host clears a large page of
//! it while whoever writes there first waits.

use mmu::Provider;
use rustc_hash::FxHashSet;

/// Bytes that the host is asked for at once: one of its large pages.
const PIECE: usize = 2 << 20;

/// Asks for the piece of memory behind each one that is in use. Allocators hand out memory upwards, by and large.
#[derive(Default)]
pub(super) struct HeapAhead {
    last: usize,
    asked: FxHashSet<usize>,
}

impl HeapAhead {
    /// Something new is at this address.
    pub(super) fn follow(&mut self, address: usize, provider: &Provider) {
        let next = address / PIECE + 1;
        if next == self.last {
            return;
        }
        self.last = next;
        if self.asked.insert(next) {
            provider.ask(move || {
                let start = (next * PIECE) as *mut libc::c_void;
                // SAFETY: this changes no byte of what is mapped there, whoever's it is; where nothing is
                // mapped, or nothing that may be written, it fails, which costs speed only.
                unsafe { libc::madvise(start, PIECE, libc::MADV_POPULATE_WRITE) };
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use memmap2::{Advice, MmapOptions};

    use super::*;

    #[test]
    fn what_is_behind_a_used_piece_is_provided_and_no_more() {
        let map = MmapOptions::new().len(4 * PIECE).map_anon().unwrap();
        let first = (map.as_ptr() as usize).next_multiple_of(PIECE);
        let resident = |piece: usize| {
            let page = (first + piece * PIECE + PIECE / 2) as *mut libc::c_void;
            let mut known = 0u8;
            // SAFETY: the page is mapped, and one byte for it is there to be written.
            assert_eq!(unsafe { libc::mincore(page, 4096, &mut known) }, 0);
            known & 1 != 0
        };
        let provider = Provider::default();
        let mut heap = HeapAhead::default();
        heap.follow(first + 0x1234, &provider);
        heap.follow(first + PIECE - 1, &provider);
        // Nothing is mapped there.
        heap.follow(0, &provider);
        let (sender, done) = std::sync::mpsc::channel();
        provider.ask(move || sender.send(()).unwrap());
        done.recv().unwrap();
        // MADV_POPULATE_WRITE came with Linux 5.14.
        let probe = MmapOptions::new().len(4096).map_anon().unwrap();
        let possible = probe.advise_range(Advice::PopulateWrite, 0, 4096).is_ok();
        assert_eq!([0, 1, 2].map(resident), [false, possible, false]);
        assert!(map.iter().all(|&byte| byte == 0));
    }
}
