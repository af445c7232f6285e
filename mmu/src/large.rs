//! Where pages larger than 4 KiB are: they are cached as 4 KiB entries.

use crate::address::{Linear, PAGE_SHIFT};
use crate::walk::Mapping;

/// Which 1 GiB regions hold pages larger than 4 KiB. They are cached as 4 KiB entries, and
/// invalidating one address of such a page has to forget all of them.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct LargeRegions {
    /// Numbers of regions, as far as there are some.
    numbers: [u64; LARGE_REGIONS],
    count: usize,
}

/// Regions that are told apart; if there are more, every region counts as one.
const LARGE_REGIONS: usize = 15;

impl LargeRegions {
    /// None.
    pub(crate) const NONE: LargeRegions = LargeRegions {
        numbers: [0; LARGE_REGIONS],
        count: 0,
    };

    fn number(address: Linear) -> u64 {
        address.0 >> 30
    }

    /// Notes the region of an address if its page is large.
    pub(crate) fn add(&mut self, address: Linear, mapping: &Mapping) {
        if mapping.page_shift > PAGE_SHIFT && !self.may_hold(address) {
            self.add_number(Self::number(address));
        }
    }

    fn add_number(&mut self, number: u64) {
        if let Some(slot) = self.numbers.get_mut(self.count) {
            *slot = number;
        }
        self.count = (self.count + 1).min(LARGE_REGIONS + 1);
    }

    /// Whether there may be one where this address is.
    pub(crate) fn may_hold(&self, address: Linear) -> bool {
        match self.numbers.get(..self.count) {
            Some(numbers) => numbers.contains(&Self::number(address)),
            None => true,
        }
    }

    /// Adds the regions of another list.
    pub(crate) fn add_all(&mut self, other: &LargeRegions) {
        match other.numbers.get(..other.count) {
            Some(numbers) => {
                for &number in numbers {
                    if !self.may_hold(Linear(number << 30)) {
                        self.add_number(number);
                    }
                }
            }
            None => *self = *other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_regions_are_told_apart_until_there_are_too_many() {
        let gib = |number: u64| Linear(number << 30);
        let mut regions = LargeRegions::NONE;
        for number in 0..LARGE_REGIONS as u64 {
            regions.add_number(64 * number);
        }
        assert!(regions.may_hold(gib(64)) && regions.may_hold(Linear((65 << 30) - 1)));
        assert!(!regions.may_hold(gib(1)) && !regions.may_hold(gib(64 * 100)));
        let mut more = LargeRegions::NONE;
        more.add_number(7);
        more.add_all(&regions);
        assert!(more.may_hold(gib(7)) && more.may_hold(gib(64)));
        // One more than there is room for: all may be.
        assert!(more.may_hold(gib(1)));
        regions.add_all(&more);
        assert!(regions.may_hold(gib(1)));
    }
}
