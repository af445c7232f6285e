//! Hashes that keep neighbours together. Code that is executed for the first time is looked for several times,
//! and most of that is waiting for the host's memory: what lies near in the guest's memory shares
//! cache lines of a table.

use mmu::GuestPhys;

/// Bytes of code whose entries begin at the same place of a table.
const APART: u64 = 64;
/// Places that the entries of a page begin at.
const PLACES: u64 = mmu::PAGE_SIZE / APART;
/// Where a table's own tag is: hashbrown takes it from the upper seven bits, and a place from the lower ones.
const TAG: u32 = 57;

/// Mixes bits; the best are the upper ones.
fn mix(word: u64) -> u64 {
    word.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A word to find something by that belongs to an address of code; `more`: what else it depends on, which is the
/// same for code nearby.
pub(super) fn near_word(at: GuestPhys, more: u64) -> u64 {
    let page = mix(at.page().0 ^ mix(more).rotate_left(32)) >> 32;
    let place = page & !(PLACES - 1) | (at.page_offset() as u64 / APART);
    let tag = mix(at.0 ^ more) >> TAG;
    place | tag << TAG
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_near_and_others_are_not() {
        let word = |at, more| near_word(GuestPhys(at), more) & ((1 << TAG) - 1);
        let start = word(0x12_3000, 7);
        assert_eq!(word(0x12_3fff, 7) - start, PLACES - 1);
        assert_eq!(word(0x12_303f, 7), start);
        // 1,000 pages and 1,000 addresses of one page hardly share places in a table of 2^20.
        let places = |of: &dyn Fn(u64) -> u64| {
            let places = (0..1000).map(|index| of(index) >> 6 & 0x3fff);
            places.collect::<std::collections::HashSet<u64>>().len()
        };
        assert!(places(&|index| word(0x12_3000 + index * 0x1000, 7)) > 940);
        assert!(places(&|index| word(0x12_3000, index << 12)) > 940);
    }

    #[test]
    fn neighbours_have_tags_of_their_own() {
        let tags = (0..64).map(|offset| near_word(GuestPhys(0x12_3000 + offset), 7) >> TAG);
        let tags: std::collections::HashSet<u64> = tags.collect();
        assert!(tags.len() > 32, "{} tags", tags.len());
    }
}
