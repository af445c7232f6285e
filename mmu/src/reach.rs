//! What the checks of hot loops remember: runs of pages that follow each other in linear addresses and on the
//! host alike, so that one addend serves all of them, and accesses may cross from one into the next.
//!
//! Emitted code reads [`Reach`] through its field offsets: an access may be made directly if its address less
//! [`Reach::base`] is less than [`Reach::len`]. A run holds translations that a TLB may hold: it goes when one
//! of them has to, whatever the TLB's own entries have become meanwhile.

use std::collections::HashSet;

use crate::address::{GuestPhys, Linear, PAGE_SIZE};
use crate::physical::PhysMem;
use crate::tlb::{TlbSet, View};
use crate::walk::{PagingRegisters, Purpose};

/// Checks that may remember a run.
pub const SITES: usize = 1 << 15;
/// Runs that are remembered at one time.
const LIVE: usize = 512;
/// Bytes of a run at the most.
pub const LONGEST_REACH: u64 = 2 << 20;
/// Bytes that are looked at beyond the page, for a new run, and beyond one that was remembered.
const FIRST: u64 = 64 << 10;
const FURTHER: u64 = 512 << 10;
/// Translations that one call may look up in the guest's tables.
const WALKS: u32 = 64;
/// Pages that are brought together at one time, on each side of the one that was accessed.
const GATHERED: u64 = 256;
/// Linear addresses of the lower half, less one non-canonical bit (SDM volume 1, 3.3.7.1).
const LOWER_HALF: u64 = 1 << 47;

/// A run of pages, as one check needs it.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C, align(32))]
pub struct Reach {
    /// The first byte's linear address, less what the check has not yet added to its register.
    pub base: u64,
    /// How many addresses from there the access may begin at; 0: nothing is remembered.
    pub len: u64,
    /// Added to a linear address, gives the host address of its native byte.
    pub addend: u64,
    /// The first byte's linear address.
    first: u64,
}

/// What a check covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// What comes to the check's register, to give the address of the first byte.
    pub displacement: i64,
    /// Bytes, a page's at the most.
    pub size: u64,
    /// Whether some of them are stored.
    pub write: bool,
}

/// What became of the wish to remember a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reached {
    /// The access may be made: the check succeeds now.
    pub covered: bool,
    /// The run is the one that was remembered, and more.
    pub extended: bool,
    /// The run ends at a page that could be accessed, but is elsewhere on the host.
    pub scattered: bool,
}

/// The runs that checks remember.
#[repr(C)]
pub struct Reaches {
    /// By the check's number.
    pub sites: [Reach; SITES],
    /// The numbers of those that remember any.
    live: [u16; LIVE],
    live_count: u16,
}

impl Reaches {
    /// Forgets all runs of memory that may hold anything.
    pub(crate) fn clear(&mut self) {
        self.sites.fill(Reach::default());
        self.live_count = 0;
    }

    /// Forgets all runs.
    #[inline]
    pub fn forget(&mut self) {
        for &site in &self.live[..usize::from(self.live_count)] {
            self.sites[usize::from(site)].len = 0;
        }
        self.live_count = 0;
    }

    /// Forgets the runs that the page at a linear address may be in.
    pub(crate) fn forget_page(&mut self, address: Linear) {
        self.forget_where(|reach| (address.0 & !(PAGE_SIZE - 1)).wrapping_sub(reach.first));
    }

    /// Forgets the runs that the page may be in whose native copy is at a host address.
    pub(crate) fn forget_host(&mut self, native: u64) {
        self.forget_where(|reach| native.wrapping_sub(reach.first.wrapping_add(reach.addend)));
    }

    /// Forgets the runs of which `offset` says that they have a page so far from their first byte.
    fn forget_where(&mut self, offset: impl Fn(&Reach) -> u64) {
        let mut kept = 0;
        for at in 0..usize::from(self.live_count) {
            let site = self.live[at];
            let reach = &mut self.sites[usize::from(site)];
            // Whole pages, of which the check leaves out less than one at the end.
            if offset(reach) < reach.len.next_multiple_of(PAGE_SIZE) {
                reach.len = 0;
            } else {
                self.live[kept] = site;
                kept += 1;
            }
        }
        self.live_count = kept as u16;
    }

    fn remember(&mut self, number: usize, reach: Reach) {
        if self.sites[number].len == 0 {
            if usize::from(self.live_count) == LIVE {
                self.forget();
            }
            self.live[usize::from(self.live_count)] = number as u16;
            self.live_count += 1;
        }
        self.sites[number] = reach;
    }
}

/// Looks translations of user pages up, in the TLB and ahead of the guest in its tables.
struct Finder<'a> {
    tlb: &'a mut TlbSet,
    mem: &'a mut PhysMem,
    paging: &'a PagingRegisters,
    write: bool,
    /// The addresses that there may be.
    top: u64,
    walks: u32,
}

impl Finder<'_> {
    /// The addend and the guest-physical address of a page that may be accessed directly, if the guest cannot
    /// tell that it was looked for.
    fn page(&mut self, page: u64) -> Option<(u64, GuestPhys)> {
        if page >= self.top {
            return None;
        }
        let data = &self.tlb.data[View::User as usize];
        if let Some(found) = data.direct(Linear(page), self.write) {
            return Some(found);
        }
        self.walks = self.walks.checked_sub(1)?;
        let purpose = Purpose {
            write: self.write,
            fetch: false,
            user: true,
            user_pages_closed: false,
            ahead: true,
        };
        let walked = self.paging.walk(self.mem, Linear(page), purpose);
        if self.mem.has_news() {
            // A table was recovered from its mirror: the caller has to settle that first.
            self.walks = 0;
            return None;
        }
        let data = &mut self.tlb.data[View::User as usize];
        let mapping = walked.ok()?;
        data.fill(self.mem, Linear(page), &mapping, self.write);
        data.direct(Linear(page), self.write)
    }

    fn addend(&mut self, page: u64) -> Option<u64> {
        self.page(page).map(|(addend, _)| addend)
    }

    /// Addends and guest-physical addresses of pages, up to the first that is not there or may not be moved.
    fn plain_run(&mut self, pages: impl Iterator<Item = u64>) -> Vec<(u64, GuestPhys)> {
        let mut run: Vec<(u64, GuestPhys)> = Vec::new();
        for page in pages {
            let found = self.page(page);
            let Some(found) = found.filter(|&(_, physical)| self.mem.may_gather(physical)) else {
                break;
            };
            // The page of zeros, say, is there many times.
            if run.last().is_some_and(|before| before.1 == found.1) {
                break;
            }
            run.push(found);
        }
        run
    }
}

impl TlbSet {
    /// Has a check of user code remember the run of pages in which the access is that it has not found: `value`
    /// is what its register holds. Addresses have 64 bits if `wide`.
    pub fn reach(
        &mut self,
        mem: &mut PhysMem,
        paging: &PagingRegisters,
        (number, site): (usize, &Site),
        value: u64,
        (wide, longest): (bool, u64),
    ) -> Reached {
        let nothing = Reached {
            covered: false,
            extended: false,
            scattered: false,
        };
        let first = value.wrapping_add(site.displacement as u64);
        let top = if wide { LOWER_HALF } else { 1 << 32 };
        if first >= top || first + site.size > top {
            return nothing;
        }
        let known = self.reaches.sites[number];
        let mut finder = Finder {
            tlb: self,
            mem,
            paging,
            write: site.write,
            top,
            walks: WALKS,
        };
        let page = first & !(PAGE_SIZE - 1);
        let Some(addend) = finder.addend(page) else {
            return nothing;
        };
        let (mut low, mut high) = (page, page + PAGE_SIZE);
        let end = known.first + known.len + site.size - 1;
        let next_to = page <= end && page + PAGE_SIZE >= known.first;
        let room = end.max(high) - known.first.min(low) <= longest;
        let extended = known.len != 0 && known.addend == addend && next_to && room;
        if extended {
            (low, high) = (known.first.min(low), end.max(high));
        }
        // Little at first: what goes all over memory has no use for more.
        let most = if extended { FURTHER } else { FIRST };
        let longest = longest.min(high - low + most);
        let mut scattered = false;
        let mut goes_on = |page| match finder.addend(page) {
            Some(further) if further == addend => true,
            found => {
                scattered |= found.is_some();
                false
            }
        };
        while high - low < longest && goes_on(high) {
            high += PAGE_SIZE;
        }
        while high - low < longest && low != 0 && goes_on(low - PAGE_SIZE) {
            low -= PAGE_SIZE;
        }
        let covered = first + site.size <= high && !mem.has_news();
        if covered {
            let reach = Reach {
                base: low.wrapping_sub(site.displacement as u64),
                len: high - low - site.size + 1,
                addend,
                first: low,
            };
            self.reaches.remember(number, reach);
        }
        Reached {
            covered,
            extended,
            scattered,
        }
    }

    /// Has pages that follow each other from the one at an address on, up and down, follow each other on the
    /// host too. Returns how many pages moved; their translations are stale then.
    /// None do if they follow each other already.
    pub fn gather(
        &mut self,
        mem: &mut PhysMem,
        paging: &PagingRegisters,
        (address, write): (Linear, bool),
        wide: bool,
    ) -> usize {
        let page = address.0 & !(PAGE_SIZE - 1);
        let mut finder = Finder {
            tlb: self,
            mem,
            paging,
            write,
            top: if wide { LOWER_HALF } else { 1 << 32 },
            walks: 2 * GATHERED as u32,
        };
        let up = finder.plain_run((0..=GATHERED).map(|at| page + at * PAGE_SIZE));
        let below = GATHERED.min(page / PAGE_SIZE);
        let down = finder.plain_run((0..=below).map(|at| page - at * PAGE_SIZE));
        let run: Vec<_> = down.into_iter().skip(1).rev().chain(up).collect();
        let together = run.iter().all(|&(addend, _)| addend == run[0].0);
        let pages: Vec<GuestPhys> = run.iter().map(|&(_, physical)| physical).collect();
        let distinct = HashSet::<&GuestPhys>::from_iter(&pages).len() == pages.len();
        if together || !distinct || mem.has_news() {
            return 0;
        }
        mem.gather(&pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryConfig, StalePage};

    const PAGES: u64 = 64;
    /// Where the guest's only page table is, for linear addresses from 0 on.
    const TABLE: u64 = 0x2000;
    const PRESENT: u64 = 0x67;
    const READ_ONLY: u64 = 0x65;

    struct Machine {
        tlb: Box<TlbSet>,
        mem: PhysMem,
        paging: PagingRegisters,
        seed: u64,
    }

    impl Machine {
        /// Linear pages 16 to 79 are mapped to physical ones in random order, some of them for reading.
        fn new() -> Machine {
            let config = MemoryConfig {
                ram_bytes: 4 << 20,
                copies: 2,
                legacy_hole: false,
            };
            let mut machine = Machine {
                // SAFETY: a TLB set is plain numbers, and `reset` accepts any of them.
                tlb: unsafe { Box::<TlbSet>::new_zeroed().assume_init() },
                mem: PhysMem::new(&config).expect("4 MiB of address space"),
                paging: PagingRegisters {
                    cr0: 0x8001_0001,
                    cr3: 0x1000,
                    ..PagingRegisters::default()
                },
                seed: 1,
            };
            machine.tlb.reset();
            machine.set(0x1000, TABLE | PRESENT);
            for page in 0..PAGES {
                let frame = GuestPhys((100 + page) * PAGE_SIZE);
                let bytes = [page as u8 + 1; PAGE_SIZE as usize];
                machine.mem.store(frame, &bytes).expect("RAM");
                machine.map(16 + page, 100 + page * 37 % PAGES, page % 8 != 7);
            }
            machine
        }

        fn set(&mut self, at: u64, value: u64) {
            self.mem.store_uint(GuestPhys(at), 4, value).expect("RAM");
        }

        fn map(&mut self, page: u64, frame: u64, writable: bool) {
            let flags = if writable { PRESENT } else { READ_ONLY };
            self.set(TABLE + page * 4, frame << 12 | flags);
        }

        fn random(&mut self, below: u64) -> u64 {
            self.seed = self.seed.wrapping_mul(0x5851_f42d_4c95_7f2d) + 1;
            (self.seed >> 33) % below
        }

        fn gather(&mut self, first: u64) -> usize {
            let Machine {
                tlb, mem, paging, ..
            } = self;
            tlb.gather(mem, paging, (Linear(first), false), false)
        }

        fn settle(&mut self) -> usize {
            let stale = self.mem.take_stale_pages();
            for &page in &stale {
                self.tlb.forget_physical(page);
            }
            stale.len()
        }

        fn reach(&mut self, number: usize, site: &Site, value: u64) -> Reached {
            let longest = LONGEST_REACH;
            self.tlb.reach(
                &mut self.mem,
                &self.paging,
                (number, site),
                value,
                (false, longest),
            )
        }

        /// Every address that a site's check lets through is what the guest's tables say now.
        fn check(&mut self, number: usize, site: &Site) -> u64 {
            let reach = self.tlb.reaches.sites[number];
            let ends = [0, reach.len.wrapping_sub(1)];
            for offset in ends.into_iter().filter(|_| reach.len != 0) {
                let value = reach.base.wrapping_add(offset);
                let first = value.wrapping_add(site.displacement as u64);
                for at in [first, first + site.size - 1] {
                    let purpose = Purpose {
                        write: site.write,
                        fetch: false,
                        user: true,
                        user_pages_closed: false,
                        ahead: true,
                    };
                    let walked = self.paging.walk(&mut self.mem, Linear(at), purpose);
                    let mapping = walked.expect("within the run");
                    let native = self.mem.direct(mapping.physical, false).expect("RAM");
                    let host = native.host as u64 + at % PAGE_SIZE;
                    assert_eq!(at.wrapping_add(reach.addend), host, "{at:#x}");
                }
            }
            reach.len
        }
    }

    /// Checks of many shapes, tables that change with and without their flush, pages that move: what is
    /// remembered is always true, and covers an access for which that was said.
    #[test]
    fn runs_are_what_the_tables_say() {
        let mut machine = Machine::new();
        let sites: Vec<Site> = (0..60u64)
            .map(|at| Site {
                displacement: [0, -24, 4096, -70_000][at as usize % 4],
                // The last twelve cover as much as a page has.
                size: [1, 8, 64, 500][at as usize / 4 % 4].max(if at < 48 { 1 } else { PAGE_SIZE }),
                write: at % 3 == 0,
            })
            .collect();
        let (mut covered, mut wide, mut crossing, mut gathered) = (0, 0, 0, 0);
        for round in 0..50_000 {
            let number = machine.random(sites.len() as u64) as usize;
            let site = sites[number];
            let first = (16 + machine.random(PAGES)) * PAGE_SIZE + machine.random(PAGE_SIZE);
            let value = first.wrapping_sub(site.displacement as u64);
            match machine.random(40) {
                0 => {
                    // Another page, or none; the processor is told.
                    let page = 16 + machine.random(PAGES);
                    // Half of them are where their neighbours are.
                    let frame = match machine.random(2) {
                        0 => 100 + page - 16,
                        _ => 100 + machine.random(PAGES),
                    };
                    if machine.random(4) == 0 {
                        machine.set(TABLE + page * 4, 0);
                    } else {
                        let writable = machine.random(3) != 0;
                        machine.map(page, frame, writable);
                    }
                    machine.tlb.flush_page(Linear(page * PAGE_SIZE));
                }
                1 => machine.tlb.flush(false),
                2 => {
                    let page = GuestPhys((100 + machine.random(PAGES)) * PAGE_SIZE);
                    machine.mem.mark_code(page);
                    machine.mem.unmark_code(page);
                    machine.settle();
                }
                3 if round % 8 == 0 => {
                    let Machine {
                        tlb, mem, paging, ..
                    } = &mut machine;
                    let moved = tlb.gather(mem, paging, (Linear(first), site.write), false);
                    gathered += moved;
                    assert!(machine.settle() >= moved);
                }
                _ => {
                    let reached = machine.reach(number, &site, value);
                    let reach = machine.tlb.reaches.sites[number];
                    if reached.covered {
                        covered += u64::from(site.size < PAGE_SIZE);
                        wide += u64::from(site.size == PAGE_SIZE);
                        crossing += u64::from(first % PAGE_SIZE + site.size > PAGE_SIZE);
                        assert!(value.wrapping_sub(reach.base) < reach.len);
                    }
                }
            }
            if round % 16 == 0 {
                for (number, site) in sites.iter().enumerate() {
                    machine.check(number, site);
                }
            }
        }
        assert!(covered > 20_000, "{covered} accesses covered");
        assert!(wide > 500, "{wide} of a page's length");
        assert!(crossing > 60, "{crossing} of them cross a page");
        assert!(gathered > 60, "{gathered} pages were brought together");
        machine
            .mem
            .audit()
            .expect("copies are equal, in different frames");
    }

    /// Pages that were brought together hold what they held, one check reaches all of them, and the reserve
    /// is handed out again and again.
    #[test]
    fn pages_come_together() {
        let mut machine = Machine::new();
        let site = Site {
            displacement: 0,
            size: 8,
            write: false,
        };
        for round in 0..20 {
            // Other neighbours each time.
            for page in 0..PAGES {
                let factor = [37, 5, 11, 29, 3][round % 5];
                machine.map(16 + page, 100 + page * factor % PAGES, true);
            }
            machine.tlb.flush(true);
            let first = 16 * PAGE_SIZE;
            let moved = machine.gather(first);
            // Those of the last round are in the reserve already.
            assert!(moved == 0 || moved == PAGES as usize, "{moved}");
            machine.settle();
            if round == 0 {
                assert_eq!(moved, PAGES as usize);
                let reached = machine.reach(0, &site, first);
                assert!(reached.covered && !reached.extended);
                machine.reach(0, &site, first + machine.tlb.reaches.sites[0].len + 8);
                let len = machine.check(0, &site);
                assert_eq!(len, PAGES * PAGE_SIZE - 7);
                // A page goes bad: no check leads there any more.
                let page = GuestPhys(110 * PAGE_SIZE);
                machine.mem.corrupt(page, 0, 1, &mut || 0);
                machine.settle();
                assert_eq!(machine.tlb.reaches.sites[0].len, 0);
            }
            for page in 0..PAGES {
                let mut bytes = [0; 16];
                let at = GuestPhys((100 + page) * PAGE_SIZE + 4000);
                machine.mem.load(at, &mut bytes).expect("RAM");
                assert_eq!(bytes, [page as u8 + 1; 16], "page {page}");
            }
            machine
                .mem
                .audit()
                .expect("copies are equal, in different frames");
        }
    }

    /// Where the reserve is handed out again and a page in it has to stay, nothing moves at all.
    #[test]
    fn a_page_that_stays_keeps_all_where_they_are() {
        let mut machine = Machine::new();
        let first = 16 * PAGE_SIZE;
        assert_eq!(machine.gather(first), PAGES as usize);
        machine.settle();
        // The reserve is full; one of its last pages has code, and all others would have to make room.
        let frame = |number: u64| GuestPhys((100 + number) * PAGE_SIZE);
        machine.mem.mark_code(frame(60));
        for page in 0..PAGES {
            machine.map(16 + page, 200 + page * 37 % PAGES, true);
        }
        machine.tlb.flush(true);
        machine.settle();
        let before: Vec<_> = (0..PAGES)
            .map(|page| machine.mem.frame(frame(page), 0))
            .collect();
        assert_eq!(machine.gather(first), 0);
        assert!(!machine.mem.has_news());
        let after: Vec<_> = (0..PAGES)
            .map(|page| machine.mem.frame(frame(page), 0))
            .collect();
        assert_eq!(before, after);
        machine.mem.unmark_code(frame(60));
        machine.settle();
        assert_eq!(machine.gather(first), PAGES as usize);
        machine
            .mem
            .audit()
            .expect("copies are equal, in different frames");
    }

    /// A run goes by the host address of one of its pages, and no other does.
    #[test]
    fn a_run_goes_with_its_page() {
        let mut machine = Machine::new();
        let site = Site {
            displacement: 0,
            size: 4,
            write: false,
        };
        let frame = |number: u64| GuestPhys((100 + number * 37 % PAGES) * PAGE_SIZE);
        let native = |machine: &mut Machine, page: GuestPhys| StalePage {
            page,
            native: machine.mem.direct(page, false).expect("RAM").host as u64,
        };
        for number in 0..8 {
            let reached = machine.reach(number, &site, (16 + number as u64) * PAGE_SIZE);
            assert!(reached.covered && reached.scattered);
        }
        let stale = native(&mut machine, frame(3));
        machine.tlb.forget_physical(stale);
        let left = |machine: &Machine| {
            (0..8)
                .filter(|&at| machine.tlb.reaches.sites[at].len != 0)
                .count()
        };
        assert_eq!(machine.tlb.reaches.sites[3].len, 0);
        assert_eq!(left(&machine), 7);
        machine.tlb.flush_page(Linear((16 + 5) * PAGE_SIZE + 17));
        assert_eq!(machine.tlb.reaches.sites[5].len, 0);
        assert_eq!(left(&machine), 6);
        machine.tlb.flush(false);
        assert_eq!(left(&machine), 0);
    }
}
