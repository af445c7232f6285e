//! What the checks of hot loops remember: runs of pages that follow each other in linear addresses and on the
//! host alike, so that one addend serves all of them, and accesses may cross from one into the next.
//!
//! Emitted code reads [`Reach`] through its field offsets: an access may be made directly if its address less
//! [`Reach::base`] is less than [`Reach::len`]. A run holds translations that a TLB may hold: it goes when one
//! of them has to, whatever the TLB's own entries have become meanwhile.

use std::collections::HashSet;
use std::ops::Range;

use crate::address::{GuestPhys, Linear, PAGE_SIZE};
use crate::physical::PhysMem;
use crate::tlb::{TlbSet, View};
use crate::walk::{PagingRegisters, Purpose};

/// Checks that may remember a run.
pub const SITES: usize = 1 << 15;
/// Runs that are remembered at one time.
const LIVE: usize = 512;
/// Bytes of a run at the most.
pub const LONGEST_REACH: u64 = 32 << 20;
/// Bytes that are looked at beyond one that was remembered, at least.
const FURTHER: u64 = 512 << 10;
/// Translations that one call may look up in the guest's tables, at least.
const WALKS: u32 = 64;
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

/// How far a check that was wrong is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Bytes beyond the page, or beyond the run that was remembered if that is the same.
    pub most: u64,
    /// Whether a run stays that was remembered and is far longer.
    pub keeps: bool,
}

/// What became of the wish to remember a run.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Reached {
    /// The access may be made: the check succeeds now.
    pub covered: bool,
    /// The run is the one that was remembered, and more.
    pub extended: bool,
    /// The run ends at a page that could be accessed, but is elsewhere on the host.
    pub scattered: bool,
    /// Pages that were looked at.
    pub looked: u32,
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

    /// Addends and guest-physical addresses of pages, up to the first that is not there or may not be moved, or is not
    /// wanted and not together with the one before it: so nothing is torn apart that is together.
    fn plain_run(
        &mut self,
        pages: impl Iterator<Item = u64>,
        wanted: impl Fn(u64) -> bool,
    ) -> Vec<(u64, GuestPhys)> {
        let mut run: Vec<(u64, GuestPhys)> = Vec::new();
        for page in pages.take((LONGEST_REACH / PAGE_SIZE / 2) as usize) {
            let found = self.page(page);
            let Some(found) = found.filter(|&(_, physical)| self.mem.may_gather(physical)) else {
                break;
            };
            // The page of zeros, say, is there many times.
            let before = run.last();
            if before.is_some_and(|before| before.1 == found.1)
                || !wanted(page) && before.is_none_or(|before| before.0 != found.0)
            {
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
        (wide, longest, look): (bool, u64, Look),
    ) -> Reached {
        let mut reached = Reached::default();
        let most = look.most;
        let first = value.wrapping_add(site.displacement as u64);
        let top = if wide { LOWER_HALF } else { 1 << 32 };
        if first >= top || first + site.size > top {
            return reached;
        }
        let known = self.reaches.sites[number];
        let mut finder = Finder {
            tlb: self,
            mem,
            paging,
            write: site.write,
            top,
            walks: WALKS.max((most / PAGE_SIZE) as u32),
        };
        let page = first & !(PAGE_SIZE - 1);
        let Some(addend) = finder.addend(page) else {
            return reached;
        };
        let mut goes_on = |page| {
            reached.looked += 1;
            match finder.addend(page) {
                Some(further) if further == addend => true,
                found => {
                    reached.scattered |= found.is_some();
                    false
                }
            }
        };
        let (mut low, mut high) = (page, page + PAGE_SIZE);
        let end = known.first + known.len + site.size - 1;
        let room = end.max(high) - known.first.min(low) <= longest;
        let near = low <= end.saturating_add(most) && high.saturating_add(most) >= known.first;
        if known.len != 0 && known.addend == addend && near && room {
            while high < known.first && goes_on(high) {
                high += PAGE_SIZE;
            }
            while low > end && goes_on(low - PAGE_SIZE) {
                low -= PAGE_SIZE;
            }
            reached.extended = high >= known.first && low <= end;
        }
        let keeps = look.keeps && most < known.len / 4 && !reached.extended;
        let mut most = most;
        if reached.extended {
            (low, high) = (known.first.min(low), end.max(high));
            most = most.max(FURTHER);
        }
        let longest = longest.min(high - low + most);
        let half = longest.min(high - low + most / 2);
        while high - low < half && goes_on(high) {
            high += PAGE_SIZE;
        }
        while high - low < longest && low != 0 && goes_on(low - PAGE_SIZE) {
            low -= PAGE_SIZE;
        }
        while high - low < longest && goes_on(high) {
            high += PAGE_SIZE;
        }
        reached.covered = first + site.size <= high && !mem.has_news() && !keeps;
        if reached.covered {
            let reach = Reach {
                base: low.wrapping_sub(site.displacement as u64),
                len: high - low - site.size + 1,
                addend,
                first: low,
            };
            self.reaches.remember(number, reach);
        }
        reached
    }

    /// Has pages that follow each other from the one at an address on, up and down within a range, follow each other on the
    /// host too. Returns how many pages moved, whose translations are stale then, and how many were looked at.
    /// None move if they follow each other already.
    pub fn gather(
        &mut self,
        mem: &mut PhysMem,
        paging: &PagingRegisters,
        (address, write): (Linear, bool),
        around: Range<u64>,
        wide: bool,
    ) -> (usize, usize) {
        let page = address.0 & !(PAGE_SIZE - 1);
        let top = if wide { LOWER_HALF } else { 1 << 32 };
        let mut finder = Finder {
            tlb: self,
            mem,
            paging,
            write,
            top,
            walks: ((around.end - around.start) / PAGE_SIZE) as u32 + 2,
        };
        let upwards = (page..top).step_by(PAGE_SIZE as usize);
        let downwards = (0..=page / PAGE_SIZE).map(|at| page - at * PAGE_SIZE);
        let up = finder.plain_run(upwards, |at| at < around.end);
        let down = finder.plain_run(downwards, |at| at >= around.start);
        let run: Vec<_> = down.into_iter().skip(1).rev().chain(up).collect();
        let together = run.iter().all(|&(addend, _)| addend == run[0].0);
        let pages: Vec<GuestPhys> = run.iter().map(|&(_, physical)| physical).collect();
        let distinct = HashSet::<&GuestPhys>::from_iter(&pages).len() == pages.len();
        if together || !distinct || mem.has_news() {
            return (0, pages.len());
        }
        (mem.gather(&pages), pages.len())
    }
}

#[cfg(test)]
mod tests;
