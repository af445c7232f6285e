//! Where the entries of a guest-physical page are in a TLB, which is looked up by linear addresses:
//! forgetting a page must not cost a look at every entry in use.

use crate::address::{GuestPhys, PAGE_SHIFT};

/// Pages are told apart by so many bits of a hash.
const BITS: u32 = 14;
/// Entries that are remembered of pages with one hash.
const WAYS: usize = 4;
/// In a first place: there are more than that.
const MANY: u16 = u16::MAX;

/// For each hash of a page, the indexes, plus 1, of the entries that such pages have; or that
/// there are too many. An index may be here whose entry is another's by now.
#[repr(C)]
pub(crate) struct Homes {
    places: [[u16; WAYS]; 1 << BITS],
}

/// A hash of a page's address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hash(usize);

impl Hash {
    /// Of the page that an address is in.
    pub(crate) fn of(address: u64) -> Hash {
        let page = GuestPhys(address).page().0 >> PAGE_SHIFT;
        Hash((page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - BITS)) as usize)
    }

    /// A smaller hash, of so many bits.
    pub(crate) fn bits(self, bits: u32) -> usize {
        self.0 >> (BITS - bits)
    }
}

impl Homes {
    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.places.fill([0; WAYS]);
    }

    /// Notes that the entry at an index is of a page with this hash. `current` says whether the
    /// entry at another index still is.
    pub(crate) fn note(&mut self, hash: Hash, index: usize, current: impl Fn(usize) -> bool) {
        let places = &mut self.places[hash.0];
        let mark = index as u16 + 1;
        if places[0] == MANY || places.contains(&mark) {
            return;
        }
        let free = places
            .iter()
            .position(|&place| place == 0 || !current(usize::from(place) - 1));
        match free {
            Some(free) => places[free] = mark,
            None => places[0] = MANY,
        }
    }

    /// The indexes at which entries of such pages may be; `None` if they can be anywhere.
    pub(crate) fn of(&self, hash: Hash) -> Option<impl Iterator<Item = usize> + use<>> {
        let places = self.places[hash.0];
        let known = places.into_iter().filter(|&place| place != 0);
        (places[0] != MANY).then(|| known.map(|place| usize::from(place) - 1))
    }

    /// Learns where all entries of such pages are, as far as there is room for them.
    pub(crate) fn learn(&mut self, hash: Hash, indexes: &[usize]) {
        let places = &mut self.places[hash.0];
        if indexes.len() <= WAYS {
            *places = [0; WAYS];
            for (place, &index) in places.iter_mut().zip(indexes) {
                *place = index as u16 + 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tlb::{TLB_ENTRIES, TlbEntry, TlbSet, View};
    use crate::walk::Mapping;
    use crate::{Linear, MemoryConfig, PAGE_SIZE, PhysMem, StalePage};

    fn stale(page: GuestPhys) -> StalePage {
        StalePage { page, native: 0 }
    }

    /// Fills entries at random, many of few pages and few of many, leaves and enters spaces, and
    /// forgets pages: then no entry of them is left, and those of other pages are.
    #[test]
    fn a_page_that_is_forgotten_has_no_entry() {
        let config = MemoryConfig {
            ram_bytes: 64 << 20,
            copies: 1,
            legacy_hole: false,
        };
        let mut mem = PhysMem::new(&config).expect("64 MiB of address space");
        // SAFETY: a TLB set is plain numbers, and `reset` accepts any of them.
        let mut tlb = unsafe { Box::<TlbSet>::new_zeroed().assume_init() };
        tlb.reset();
        tlb.spaces.kept = 1;
        tlb.use_second_places(true);
        let mut seed = 1u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (seed >> 33) % below
        };
        let mut space = 0;
        for _ in 0..60_000 {
            let few = random(4) == 0;
            let physical = GuestPhys(random(if few { 3 } else { 0x4000 }) * PAGE_SIZE);
            let view = random(3) as usize;
            match random(300) {
                0 => tlb.flush(random(8) == 0),
                1 => {
                    let next = random(4) as u16;
                    tlb.switch(space, next, true);
                    tlb.fetch_news = Default::default();
                    space = next;
                }
                2..20 => {
                    let used = |tlb: &TlbSet| {
                        let all = tlb.data.iter().flat_map(|tlb| &tlb.entries);
                        let (of_page, others) = all
                            .filter(|entry| entry.physical != u64::MAX)
                            .partition::<Vec<&TlbEntry>, _>(|entry| entry.is_of(physical));
                        (of_page.len(), others.len())
                    };
                    let before = used(&tlb);
                    tlb.forget_physical(stale(physical));
                    assert_eq!(used(&tlb), (0, before.1), "of {} entries", before.0);
                }
                _ => {
                    let address = Linear(random(2 * TLB_ENTRIES as u64) * PAGE_SIZE);
                    let mapping = Mapping {
                        physical,
                        page_shift: PAGE_SHIFT,
                        write_ready: true,
                        user: false,
                        executable: false,
                        global: random(3) == 0,
                        key: None,
                    };
                    tlb.data[view].fill(&mut mem, address, &mapping, false);
                }
            }
        }
        // What is kept of other spaces has been forgotten, too.
        let page = GuestPhys(PAGE_SIZE);
        tlb.forget_physical(stale(page));
        for next in 0..4 {
            tlb.switch(space, next, true);
            tlb.fetch_news = Default::default();
            space = next;
            let left = tlb.data[View::User as usize].entries.iter();
            assert_eq!(left.filter(|entry| entry.is_of(page)).count(), 0);
        }
    }
}
