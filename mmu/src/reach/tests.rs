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
        Machine::with(4 << 20)
    }

    fn with(ram_bytes: u64) -> Machine {
        let config = MemoryConfig {
            ram_bytes,
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

    /// Brings the pages from an address on together.
    fn gather(&mut self, first: u64) -> usize {
        self.gather_some(first..first + PAGES * PAGE_SIZE)
    }

    fn gather_some(&mut self, around: Range<u64>) -> usize {
        let Machine {
            tlb, mem, paging, ..
        } = self;
        let first = around.start;
        tlb.gather(mem, paging, (Linear(first), false), around, false)
            .0
    }

    fn settle(&mut self) -> usize {
        let stale = self.mem.take_stale_pages();
        for &page in &stale {
            self.tlb.forget_physical(page);
        }
        stale.len()
    }

    fn reach(&mut self, number: usize, site: &Site, value: u64) -> Reached {
        let look = Look {
            most: 1 << 16,
            keeps: false,
        };
        self.reach_with(number, site, value, look)
    }

    fn reach_with(&mut self, number: usize, site: &Site, value: u64, look: Look) -> Reached {
        let longest = LONGEST_REACH;
        self.tlb.reach(
            &mut self.mem,
            &self.paging,
            (number, site),
            value,
            (false, longest, look),
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
                let around = first.saturating_sub(1 << 20)..first + (1 << 20);
                let at = (Linear(first), site.write);
                let (moved, _) = tlb.gather(mem, paging, at, around, false);
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
        // Some happen to be where they should be.
        assert!(moved >= PAGES as usize / 2, "{moved}");
        machine.settle();
        if round == 0 {
            assert_eq!(moved, PAGES as usize);
        }
        let reached = machine.reach(0, &site, first);
        assert!(reached.covered && !reached.extended);
        machine.reach(0, &site, first + machine.tlb.reaches.sites[0].len + 8);
        let len = machine.check(0, &site);
        assert_eq!(len, PAGES * PAGE_SIZE - 7);
        if round == 19 {
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

/// A page that recovery has moved out of the reserve has left a bad frame there: nobody else goes to it.
#[test]
fn a_bad_frame_of_the_reserve_is_not_used_again() {
    const FEW: u64 = 20;
    let mut machine = Machine::new();
    machine.set(TABLE + (16 + FEW) * 4, 0);
    let frame = |number: u64| GuestPhys((100 + number) * PAGE_SIZE);
    let mut bad = None;
    let mut moved = 0;
    for round in 0..24 {
        // Other pages in another order each time.
        for page in 0..FEW {
            let number = (page * [37, 5, 11, 29, 3][round % 5] + round as u64 * 7) % PAGES;
            machine.map(16 + page, 100 + number, true);
        }
        machine.tlb.flush(true);
        moved += machine.gather(16 * PAGE_SIZE);
        machine.settle();
        let page = frame(3 * 29 % PAGES + 21 % PAGES);
        if round == 3 {
            bad = Some(machine.mem.frame(page, 0));
            machine.mem.corrupt(page, 0, 1, &mut || 0);
            machine
                .mem
                .load(page, &mut [0])
                .expect("recovered from the mirror");
            machine.settle();
            assert_ne!(Some(machine.mem.frame(page, 0)), bad);
        }
        for number in 0..PAGES {
            assert!(
                bad != Some(machine.mem.frame(frame(number), 0)),
                "round {round}"
            );
            let mut bytes = [0; 16];
            machine.mem.load(frame(number), &mut bytes).expect("RAM");
            assert_eq!(bytes, [number as u8 + 1; 16], "page {number}");
        }
    }
    assert!(moved > 200, "{moved}");
    machine
        .mem
        .audit()
        .expect("copies are equal, in different frames");
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
/// An array that grows: what is new joins what is together already, as long as there is room, and one check comes to
/// reach all of it, a little each time or over what lies between.
#[test]
fn a_growing_array_stays_together() {
    let mut machine = Machine::with(16 << 20);
    let at = |page: u64| (16 + page) * PAGE_SIZE;
    // It has forty pages so far, all over memory.
    for page in 0..PAGES {
        machine.map(16 + page, 100 + page * 37 % PAGES, page < 40);
        if page >= 40 {
            machine.set(TABLE + (16 + page) * 4, 0);
        }
    }
    machine.tlb.flush(true);
    assert_eq!(machine.gather_some(at(0)..at(32)), 32);
    machine.settle();
    let frame = |machine: &Machine, page: u64| {
        let physical = GuestPhys((100 + page * 37 % PAGES) * PAGE_SIZE);
        machine.mem.frame(physical, 0).expect("RAM").0
    };
    let first = frame(&machine, 0);
    assert_eq!(machine.gather_some(at(20)..at(40)), 8);
    machine.settle();
    for page in 40..PAGES {
        machine.map(16 + page, 100 + page * 37 % PAGES, true);
    }
    machine.tlb.flush(true);
    // From within: what is together with them belongs to them.
    assert_eq!(machine.gather_some(at(39)..at(PAGES)), PAGES as usize - 40);
    machine.settle();
    for page in 0..PAGES {
        assert_eq!(frame(&machine, page), first + page as u32);
    }
    let site = Site {
        displacement: 0,
        size: 8,
        write: false,
    };
    let brief = |keeps| Look {
        most: 4 * PAGE_SIZE,
        keeps,
    };
    // Pages 0 to 4, then one at 8, and what is around it.
    assert!(machine.reach_with(0, &site, at(0), brief(true)).covered);
    assert_eq!(machine.check(0, &site), 5 * PAGE_SIZE - 7);
    // One that is too far away for a brief look: the longer run stays, unless it is wrong all the time.
    let briefer = Look {
        most: PAGE_SIZE,
        keeps: true,
    };
    let far = machine.reach_with(0, &site, at(40), briefer);
    assert!(!far.covered && !far.extended);
    assert_eq!(machine.tlb.reaches.sites[0].first, at(0));
    let far = machine.reach_with(0, &site, at(40), brief(false));
    assert!(far.covered && !far.extended);
    assert_eq!(machine.check(0, &site), 5 * PAGE_SIZE - 7);
    let over = machine.reach_with(0, &site, at(46), brief(true));
    assert!(over.covered && over.extended && !over.scattered);
    assert_eq!(machine.check(0, &site), PAGES * PAGE_SIZE - 7);
    machine.tlb.flush_page(Linear(at(3)));
    assert!(machine.reach_with(0, &site, at(60), brief(true)).covered);
    let all = Look {
        most: PAGES * PAGE_SIZE,
        keeps: true,
    };
    // Back over all that lies between.
    let reached = machine.reach_with(0, &site, at(1), all);
    assert!(reached.covered && reached.extended && reached.looked >= PAGES as u32 - 8);
    assert_eq!(machine.check(0, &site), PAGES * PAGE_SIZE - 7);
    machine
        .mem
        .audit()
        .expect("copies are equal, in different frames");
}
