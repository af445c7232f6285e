use super::*;
use crate::MemoryConfig;

/// The upper 17 bits of a canonical address are alike.
fn is_canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

#[test]
fn empty_tags_match_nothing_that_may_be_accessed() {
    // Native host address of a page, less its linear address: user, kernel, host's own.
    let addends = [
        0,
        0x7fff_ffff_f000u64.wrapping_sub(0),
        0x1000u64.wrapping_sub(0x7fff_ffff_f000),
        0x7f12_3456_7000u64.wrapping_sub(0xffff_8000_0000_0000),
        0x1000u64.wrapping_sub(0xffff_ffff_ffff_f000),
    ];
    for index in 0..TLB_ENTRIES {
        let tag = empty_tag(index);
        assert_ne!(first_place(tag >> PAGE_SHIFT), index);
        assert_ne!(second_place(tag >> PAGE_SHIFT), index);
        assert!(!is_canonical(tag), "{tag:#x}");
        for addend in addends {
            let host = tag.wrapping_add(addend);
            assert!(!is_canonical(host), "{tag:#x} with {addend:#x}");
        }
    }
}

/// Pages that share places, in random order, flushed one by one and together, against a list of
/// what was filled: nothing is found that was flushed, and nothing with more rights than it has. Some are a device's,
/// which are found only by who asks where they are.
#[test]
fn moved_entries_go_with_their_pages() {
    let config = MemoryConfig {
        ram_bytes: 1 << 20,
        copies: 1,
        legacy_hole: false,
    };
    let mut mem = PhysMem::new(&config).expect("a megabyte of address space");
    // SAFETY: a TLB set is plain numbers, and `reset` accepts any of them.
    let mut set = unsafe { Box::<TlbSet>::new_zeroed().assume_init() };
    set.reset();
    set.use_second_places(true);
    let mut seed = 1u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (seed >> 33) % below
    };
    // Places 5 and 9, and what those of their pages may move to.
    let pages: Vec<u64> = (0..8)
        .flat_map(|turn| {
            [5, 9, 5 ^ SECOND_TURN, 9 ^ SECOND_TURN].map(|at| at | turn << SECOND_SHIFT)
        })
        .collect();
    let frame = |page: u64| match page % 3 {
        0 => GuestPhys(0xfee0_0000 + page % 200 * PAGE_SIZE),
        _ => GuestPhys(page % 200 * PAGE_SIZE),
    };
    let mut known = std::collections::HashMap::new();
    let (mut moved, mut devices) = (0, 0);
    for _ in 0..20_000 {
        let page = pages[random(pages.len() as u64) as usize];
        let address = Linear(page << PAGE_SHIFT);
        match random(100) {
            0 => {
                set.flush(false);
                known.retain(|_, &mut (_, global): &mut (bool, bool)| global);
            }
            1..10 => {
                set.flush_page(address);
                known.remove(&page);
            }
            _ => {
                let &mut (write_ready, global) = known
                    .entry(page)
                    .or_insert_with(|| (random(2) == 0, random(3) == 0));
                let mapping = Mapping {
                    physical: frame(page),
                    page_shift: PAGE_SHIFT,
                    write_ready,
                    user: true,
                    executable: false,
                    global,
                    key: None,
                };
                let direct = set.data[0].fill(&mut mem, address, &mapping, false);
                let entry = set.data[0].entry(address);
                assert_eq!(direct, mem.is_ram(frame(page)));
                assert_eq!(entry.read_tag == address.0, direct);
                assert_eq!(entry.lookup(address, false), Some(frame(page)));
            }
        }
        for &page in &pages {
            let address = page << PAGE_SHIFT;
            for index in [first_place(page), second_place(page)] {
                let entry = &set.data[0].entries[index];
                let found = [false, true].map(|write| entry.lookup(Linear(address), write));
                for (write, found) in found.iter().enumerate() {
                    let expected = known.get(&page).filter(|known| write == 0 || known.0);
                    let expected = expected.map(|_| frame(page));
                    assert!(found.is_none() || *found == expected);
                }
                if !mem.is_ram(frame(page)) {
                    assert_ne!(entry.read_tag, address);
                    assert_ne!(entry.write_tag, address);
                    devices += u64::from(found[0].is_some());
                } else if entry.read_tag == address {
                    let &(write_ready, _) = known.get(&page).expect("a page that was flushed");
                    assert_eq!(entry.write_tag == address, write_ready);
                    moved += u64::from(index != first_place(page));
                } else {
                    assert_ne!(entry.write_tag, address);
                }
            }
        }
    }
    assert!(moved > 20_000, "{moved} entries in second places");
    assert!(devices > 20_000, "{devices} entries of devices");
}
