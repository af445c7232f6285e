//! The heap, provided ahead of the translator: a block takes a kilobyte of it, and the host clears a large page of
//! it while whoever writes there first waits.

use mmu::Provider;
use rustc_hash::FxHashSet;

use super::region::LARGE_PAGE;

/// Asks for the large page behind each one that is in use. Allocators hand out memory upwards, by and large.
#[derive(Default)]
pub(super) struct HeapAhead {
    last: usize,
    asked: FxHashSet<usize>,
}

impl HeapAhead {
    /// Something new is at this address.
    pub(super) fn follow(&mut self, address: usize, provider: &Provider) {
        let next = address / LARGE_PAGE + 1;
        if next == self.last {
            return;
        }
        self.last = next;
        if self.asked.insert(next) {
            provider.ask(move || {
                let start = (next * LARGE_PAGE) as *mut libc::c_void;
                // SAFETY: this changes no byte of what is mapped there, whoever's it is; where nothing is
                // mapped, or nothing that may be written, it fails, which costs speed only.
                unsafe { libc::madvise(start, LARGE_PAGE, libc::MADV_POPULATE_WRITE) };
            });
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use memmap2::{Advice, MmapOptions};

    use super::*;

    /// Whether the host has memory for a page that is mapped.
    pub fn resident(page: u64) -> bool {
        let mut known = 0u8;
        // SAFETY: one byte for one page is there to be written, and nothing else is.
        assert_eq!(
            unsafe { libc::mincore(page as *mut _, 4096, &mut known) },
            0
        );
        known & 1 != 0
    }

    /// Waits until a provider has done what it was asked for. Whether it could.
    pub fn is_done(provider: &Provider) -> bool {
        let (sender, done) = std::sync::mpsc::channel();
        provider.ask(move || sender.send(()).unwrap());
        done.recv().unwrap();
        // MADV_POPULATE_WRITE came with Linux 5.14.
        let probe = MmapOptions::new().len(4096).map_anon().unwrap();
        probe.advise_range(Advice::PopulateWrite, 0, 4096).is_ok()
    }

    #[test]
    fn what_is_behind_a_used_page_is_provided_and_no_more() {
        let map = MmapOptions::new().len(4 * LARGE_PAGE).map_anon().unwrap();
        let first = (map.as_ptr() as usize).next_multiple_of(LARGE_PAGE);
        let provider = Provider::default();
        let mut heap = HeapAhead::default();
        heap.follow(first + 0x1234, &provider);
        heap.follow(first + LARGE_PAGE - 1, &provider);
        // Nothing is mapped there.
        heap.follow(0, &provider);
        let possible = is_done(&provider);
        let middle = |page: usize| (first + page * LARGE_PAGE + LARGE_PAGE / 2) as u64;
        let found = [0, 1, 2].map(|page| resident(middle(page)));
        assert_eq!(found, [false, possible, false]);
        assert!(map.iter().all(|&byte| byte == 0));
    }
}
