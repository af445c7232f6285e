//! Translation look-aside buffers. Native and mirror translations are filled together: an
//! entry gives the native host address, and the mirrors are a constant further.
//!
//! Emitted code reads [`TlbEntry`] through its field offsets. A tag matches when
//! `address ^ tag <= 4096 - size`, one compare for the page and for staying inside it. The tag
//! of an empty entry names a page that would stand at another index, so it never matches where
//! the address chose the entry, at its first place or its second; no canonical address is in that page.
//!
//! A page's place follows from its address. An entry that another page's would overwrite moves to a
//! second place, where it may overwrite only one that has moved itself. Slow paths look there before
//! they walk, so two pages that share a place do not cost a walk in each turn.
//!
//! The entry of a device's page has empty tags, and where the page is in place of the addend: nobody
//! reaches it directly, but who goes through the doors need not walk.

use crate::address::{GuestPhys, Linear, PAGE_SHIFT, PAGE_SIZE};
use crate::code_pages::StalePage;
use crate::fetch::{FETCH_ENTRIES, FetchNews, FetchTlb};
use crate::homes::{Hash, Homes};
use crate::large::LargeRegions;
use crate::physical::PhysMem;
use crate::reach::Reaches;
use crate::spaces::Spaces;
use crate::used::Used;
use crate::walk::Mapping;

/// Entries in one [`Tlb`].
pub const TLB_ENTRIES: usize = 16384;
/// The second place of a page's entry: its number, exclusive or its number shifted by so many bits...
pub const SECOND_SHIFT: u32 = TLB_ENTRIES.trailing_zeros();
/// ... exclusive or this, modulo [`TLB_ENTRIES`]. It is another place than the first for pages below
/// `1 << SECOND_SHIFT` also.
pub const SECOND_TURN: u64 = 0x1555;

/// One translation, 32 bytes.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub struct TlbEntry {
    /// Linear page address that may be read directly.
    pub read_tag: u64,
    /// Linear page address that may be written directly, in every copy.
    pub write_tag: u64,
    /// Added to a linear address, gives the host address of its native byte. Of a device's page, its linear address.
    pub addend: u64,
    /// Guest-physical page address. Bit 0 is set for a global page, bit 1 for one with a
    /// protection key, which is then in bits 4 to 7, bit 2 if the page tables allow stores and have noted one, and bit 3
    /// if the page is no device's.
    /// All ones in an empty entry.
    pub physical: u64,
}

const GLOBAL: u64 = 1 << 0;
const KEYED: u64 = 1 << 1;
const READY: u64 = 1 << 2;
const MEMORY: u64 = 1 << 3;
const KEY_SHIFT: u32 = 4;
const PAGE: u64 = !(PAGE_SIZE - 1);

impl TlbEntry {
    /// An entry that matches nothing.
    fn empty_at(index: usize) -> TlbEntry {
        TlbEntry {
            read_tag: empty_tag(index),
            write_tag: empty_tag(index),
            addend: 0,
            physical: u64::MAX,
        }
    }

    fn facts(mapping: &Mapping) -> u64 {
        let key = mapping
            .key
            .map_or(0, |key| KEYED | u64::from(key & 15) << KEY_SHIFT);
        let global = if mapping.global { GLOBAL } else { 0 };
        let ready = if mapping.write_ready { READY } else { 0 };
        mapping.physical.page().0 | global | ready | key
    }

    /// What an access has to match.
    pub fn tag(&self, write: bool) -> u64 {
        if write { self.write_tag } else { self.read_tag }
    }

    /// The linear address of its page; of an empty entry, one that does not stand here.
    fn page(&self) -> u64 {
        match self.physical & MEMORY {
            0 => self.addend,
            _ => self.read_tag,
        }
    }

    /// Where an address is, if the entry is of its page, and of a store if the page tables need not be asked. Whether
    /// it may be accessed directly is another matter.
    pub fn lookup(&self, address: Linear, write: bool) -> Option<GuestPhys> {
        let known = address.0 ^ self.page() < PAGE_SIZE && (!write || self.physical & READY != 0);
        known.then(|| GuestPhys(self.physical & PAGE | address.page_offset() as u64))
    }

    /// The hash of its page; `None` if it is empty.
    fn hash(&self) -> Option<Hash> {
        (self.physical != u64::MAX).then(|| Hash::of(self.physical))
    }

    /// Whether it is of a guest-physical page.
    pub(crate) fn is_of(&self, page: GuestPhys) -> bool {
        self.physical & PAGE == page.0
    }

    /// The bit of the page's protection key, none if it has none or the entry is empty.
    pub(crate) fn key(&self) -> u16 {
        if self.physical == u64::MAX || self.physical & KEYED == 0 {
            0
        } else {
            1 << (self.physical >> KEY_SHIFT & 15)
        }
    }
}

/// The data translations of one privilege.
#[repr(C)]
pub struct Tlb {
    /// The entries, by linear page number modulo [`TLB_ENTRIES`].
    pub entries: [TlbEntry; TLB_ENTRIES],
    /// Entries of the current address space, and those of global pages. An entry that is not
    /// empty is in one of them.
    used: [Used<{ TLB_ENTRIES / 64 }>; 2],
    /// The 1 GiB regions in which entries of larger pages are.
    large: LargeRegions,
    /// The protection keys that entries may have, a bit each.
    keys: u16,
    /// Whether entries move to their second places.
    second_places: bool,
    /// Where entries are by their guest-physical page: every one that is not empty.
    homes: Homes,
}

/// Which set of data translations an access uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum View {
    /// At CPL 3.
    User = 0,
    /// Supervisor, user pages out of reach (SMAP).
    Supervisor = 1,
    /// Supervisor, user pages reachable.
    SupervisorOpen = 2,
}

/// All TLBs of one processor.
#[repr(C)]
pub struct TlbSet {
    /// Data, by [`View`].
    pub data: [Tlb; 3],
    /// Fetch: supervisor, user.
    pub fetch: [FetchTlb; 2],
    /// What was dropped from `fetch`.
    pub fetch_news: FetchNews,
    /// Address spaces that are not the current one.
    pub spaces: Spaces,
    /// How often translations to a page were dropped because its frame or rights changed.
    pub forgotten: u64,
    /// What the checks of hot loops remember of `data[View::User]`.
    pub reaches: Reaches,
}

/// Where the entry of a page stands.
const fn first_place(page_number: u64) -> usize {
    page_number as usize % TLB_ENTRIES
}

/// Where it may stand when another page's is in its first place.
const fn second_place(page_number: u64) -> usize {
    first_place(page_number ^ page_number >> SECOND_SHIFT ^ SECOND_TURN)
}

const fn empty_tag(index: usize) -> u64 {
    1 << 63 | ((index ^ 1) as u64) << PAGE_SHIFT
}

/// Index into [`Tlb::used`].
const LOCALS: usize = 0;
const GLOBALS: usize = 1;

impl Tlb {
    fn clear(&mut self, index: usize) {
        self.entries[index] = TlbEntry::empty_at(index);
        for used in &mut self.used {
            used.remove(index);
        }
    }

    fn clear_all(&mut self) {
        for (index, entry) in self.entries.iter_mut().enumerate() {
            *entry = TlbEntry::empty_at(index);
        }
        self.used = [Used::NONE; 2];
        self.homes.clear();
        self.large = LargeRegions::NONE;
        self.keys = 0;
    }

    fn flush(&mut self, global: bool) {
        self.leave(|_, _| {});
        if global {
            self.large = LargeRegions::NONE;
            self.keys = 0;
            let entries = &mut self.entries;
            self.used[GLOBALS].take(|index| entries[index] = TlbEntry::empty_at(index));
        }
    }

    /// Drops what is not global, after a last look at it.
    fn leave(&mut self, mut last: impl FnMut(usize, TlbEntry)) {
        let entries = &mut self.entries;
        self.used[LOCALS].take(|index| {
            last(index, entries[index]);
            entries[index] = TlbEntry::empty_at(index);
        });
    }

    /// Takes back what was dropped, unless a global page has taken its place.
    fn take_back(&mut self, index: usize, entry: TlbEntry) {
        if self.entries[index].physical == u64::MAX {
            self.put(index, entry);
            self.used[LOCALS].add(index);
        }
    }

    /// Drops the entries in use that `condition` picks.
    fn drop_entries(&mut self, condition: impl Fn(&TlbEntry) -> bool) {
        let entries = &self.entries;
        let mut found = Vec::new();
        for used in &self.used {
            used.each(|index| {
                if condition(&entries[index]) {
                    found.push(index);
                }
            });
        }
        for index in found {
            self.clear(index);
        }
    }

    /// The entry at an index is about to be overwritten by one of another page.
    fn move_away(&mut self, index: usize) {
        let entry = self.entries[index];
        let page = entry.read_tag >> PAGE_SHIFT;
        if entry.physical == u64::MAX || first_place(page) != index {
            return;
        }
        let second = second_place(page);
        let other = &self.entries[second];
        let free =
            other.physical == u64::MAX || first_place(other.read_tag >> PAGE_SHIFT) != second;
        if second == index || !free {
            return;
        }
        self.mark_used(second, entry.physical & GLOBAL != 0);
        let writable = entry.write_tag == entry.read_tag;
        let write_tag = if writable {
            entry.write_tag
        } else {
            empty_tag(second)
        };
        self.put(second, TlbEntry { write_tag, ..entry });
    }

    fn mark_used(&mut self, index: usize, global: bool) {
        let kind = if global { GLOBALS } else { LOCALS };
        self.used[kind].add(index);
        self.used[kind ^ 1].remove(index);
    }

    /// Drops the entry of a page that is not part of a larger one.
    fn forget_page(&mut self, address: Linear) {
        let page = address.page_number();
        for index in [first_place(page), second_place(page)] {
            if self.entries[index].page() == address.0 & PAGE {
                self.clear(index);
            }
        }
    }

    /// Puts an entry where none is in the way.
    fn put(&mut self, index: usize, entry: TlbEntry) {
        self.entries[index] = entry;
        self.keys |= entry.key();
        let entries = &self.entries;
        let hash = Hash::of(entry.physical);
        self.homes
            .note(hash, index, |other| entries[other].hash() == Some(hash));
    }

    fn forget_physical(&mut self, page: GuestPhys) {
        let hash = Hash::of(page.0);
        if let Some(indexes) = self.homes.of(hash) {
            for index in indexes {
                if self.entries[index].is_of(page) {
                    self.clear(index);
                }
            }
            return;
        }
        self.drop_entries(|entry| entry.is_of(page));
        let mut left = Vec::new();
        for used in &self.used {
            used.each(|index| {
                if self.entries[index].hash() == Some(hash) {
                    left.push(index);
                }
            });
        }
        self.homes.learn(hash, &left);
    }

    /// Drops the entries whose pages have one of these protection keys.
    fn forget_keys(&mut self, keys: u16) {
        if self.keys & keys != 0 {
            self.drop_entries(|entry| entry.key() & keys != 0);
            self.keys &= !keys;
        }
    }

    /// The entry for an address, whatever it holds.
    #[inline]
    pub fn entry(&self, address: Linear) -> &TlbEntry {
        &self.entries[first_place(address.page_number())]
    }

    /// Reads 1, 2, 4 or 8 bytes if the entry allows.
    #[inline]
    pub fn read(&self, address: Linear, size: usize) -> Option<u64> {
        let entry = self.entry(address);
        if address.0 ^ entry.read_tag > PAGE_SIZE - size as u64 {
            return None;
        }
        let host = address.0.wrapping_add(entry.addend) as *const u8;
        // SAFETY: `fill` made the tag match only for a page of guest memory that the addend
        // points to, stale pages are forgotten before the next access, and the compare keeps
        // all `size` bytes within the page.
        unsafe {
            Some(match size {
                1 => u64::from(host.read()),
                2 => u64::from(host.cast::<u16>().read_unaligned()),
                4 => u64::from(host.cast::<u32>().read_unaligned()),
                _ => host.cast::<u64>().read_unaligned(),
            })
        }
    }

    /// Writes 1, 2, 4 or 8 bytes to every copy if the entry allows.
    #[inline]
    pub fn write(&self, mem: &PhysMem, address: Linear, size: usize, value: u64) -> bool {
        let entry = self.entry(address);
        if address.0 ^ entry.write_tag > PAGE_SIZE - size as u64 {
            return false;
        }
        let native = address.0.wrapping_add(entry.addend) as *mut u8;
        for copy in (0..mem.copies()).rev() {
            // SAFETY: as in `read`; the mirrors of a slot are at multiples of the stride.
            unsafe {
                let host = native.add(copy * mem.stride());
                match size {
                    1 => host.write(value as u8),
                    2 => host.cast::<u16>().write_unaligned(value as u16),
                    4 => host.cast::<u32>().write_unaligned(value as u32),
                    _ => host.cast::<u64>().write_unaligned(value),
                }
            }
        }
        true
    }

    /// The addend and the guest-physical address of a page that may be read, or written, directly.
    pub(crate) fn direct(&self, page: Linear, write: bool) -> Option<(u64, GuestPhys)> {
        let number = page.page_number();
        [first_place(number), second_place(number)]
            .iter()
            .map(|&index| &self.entries[index])
            .find(|entry| page.0 == entry.tag(write))
            .map(|entry| (entry.addend, GuestPhys(entry.physical & PAGE)))
    }

    /// Remembers a translation if the page may be reached directly, or is a device's; returns whether it may be
    /// reached directly (for a write if `write`).
    pub fn fill(
        &mut self,
        mem: &mut PhysMem,
        address: Linear,
        mapping: &Mapping,
        write: bool,
    ) -> bool {
        let page = address.0 & !(PAGE_SIZE - 1);
        let index = first_place(address.page_number());
        let facts = TlbEntry::facts(mapping);
        let entry = match mem.direct(mapping.physical, mapping.write_ready) {
            Some(direct) => TlbEntry {
                read_tag: page,
                write_tag: match direct.writable && mapping.write_ready {
                    true => page,
                    false => empty_tag(index),
                },
                addend: (direct.host as u64).wrapping_sub(page),
                physical: facts | MEMORY,
            },
            None if !mem.is_ram(mapping.physical) => TlbEntry {
                addend: page,
                physical: facts,
                ..TlbEntry::empty_at(index)
            },
            None => return false,
        };
        if self.second_places && self.entries[index].read_tag != page {
            self.move_away(index);
        }
        self.mark_used(index, mapping.global);
        self.large.add(address, mapping);
        self.put(index, entry);
        entry.tag(write) == page
    }
}

impl TlbSet {
    /// Empties a set whose memory is zeroed or unknown.
    pub fn reset(&mut self) {
        self.fetch_news = FetchNews {
            supervisor: true,
            user: true,
            ..FetchNews::default()
        };
        self.spaces.forget_all();
        self.reaches.clear();
        for tlb in &mut self.data {
            tlb.clear_all();
        }
        for fetch in &mut self.fetch {
            fetch.flush(true);
        }
    }

    /// Lets entries move to their second places, or not.
    pub fn use_second_places(&mut self, second_places: bool) {
        for tlb in &mut self.data {
            tlb.second_places = second_places;
        }
    }

    /// Forgets every translation of the current address space; with `global`, those of global
    /// pages and of all other spaces, too.
    pub fn flush(&mut self, global: bool) {
        if global {
            self.spaces.forget_all();
        }
        self.fetch_news.entered = 0;
        self.fetch_news.user = true;
        self.fetch_news.supervisor |= global || !self.fetch[0].all_global();
        self.reaches.forget();
        for tlb in &mut self.data {
            tlb.flush(global);
        }
        for fetch in &mut self.fetch {
            fetch.flush(global);
        }
    }

    /// Forgets every translation of every address space, less those of global pages.
    pub fn flush_spaces(&mut self) {
        self.spaces.forget_all();
        self.flush(false);
    }

    /// Forgets the translations of an address space that is not the current one.
    pub fn forget_space(&mut self, pcid: u16) {
        self.spaces.forget(pcid);
    }

    /// Goes from one address space to another; what is known of the new one comes back if `keep`
    /// says that it still holds.
    pub fn switch(&mut self, from: u16, to: u16, keep: bool) {
        let news = &self.fetch_news;
        // Nobody has looked at what the last switch did: that is rare enough to forget it.
        let confused = news.left != 0 || news.entered != 0;
        if self.spaces.kept == 0 || from == to || confused {
            if from != to {
                self.spaces.forget_all();
            }
            // Keeping is allowed, not demanded.
            if self.spaces.kept == 0 || !keep || confused {
                self.flush(false);
            }
            return;
        }
        if !keep {
            self.spaces.forget(to);
        }
        self.reaches.forget();
        let known = self.spaces.find(to);
        let (left, space) = self.spaces.make(from, known);
        let [supervisor, user] = &mut self.fetch;
        space.large[3] = user.large;
        for (view, tlb) in self.data.iter_mut().enumerate() {
            space.large[view] = tlb.large;
            tlb.leave(|index, entry| space.keep(view, index, entry));
        }
        user.leave(|index, entry| space.keep_fetch(index, entry));
        self.fetch_news.supervisor |= !supervisor.all_global();
        supervisor.flush(false);
        self.fetch_news.user = true;
        self.fetch_news.left = left as u8 + 1;
        if let Some(known) = known {
            self.fetch_news.entered = known as u8 + 1;
            let space = self.spaces.take(known);
            let larges = self.data.iter_mut().map(|tlb| &mut tlb.large);
            for (large, kept) in larges.chain([&mut self.fetch[1].large]).zip(&space.large) {
                large.add_all(kept);
            }
            for (view, index, entry) in space.data() {
                self.data[view].take_back(index, entry);
            }
            for (index, entry) in space.fetches() {
                self.fetch[1].take_back(index, entry);
            }
        }
    }

    /// Forgets the translations of one linear page, global ones too (INVLPG).
    pub fn flush_page(&mut self, address: Linear) {
        if self.data[View::User as usize].large.may_hold(address) {
            self.reaches.forget();
        } else {
            self.reaches.forget_page(address);
        }
        for tlb in &mut self.data {
            if tlb.large.may_hold(address) {
                tlb.flush(true);
            } else {
                tlb.forget_page(address);
            }
        }
        let [supervisor, user] = &mut self.fetch;
        for (fetch, all) in [
            (supervisor, &mut self.fetch_news.supervisor),
            (user, &mut self.fetch_news.user),
        ] {
            if fetch.large.may_hold(address) {
                fetch.flush(true);
                *all = true;
            } else {
                let slot = &mut fetch.entries[address.page_number() as usize % FETCH_ENTRIES];
                if slot.page == address.page_number() {
                    slot.page = u64::MAX;
                }
            }
        }
        self.fetch_news.add(address.page_number());
    }

    /// Forgets the data translations of pages with any of these protection keys, a bit each:
    /// PKRU gives them other rights.
    pub fn forget_keys(&mut self, keys: u16) {
        self.spaces.drop_entries(|entry| entry.key() & keys != 0);
        self.reaches.forget();
        for tlb in &mut self.data {
            tlb.forget_keys(keys);
        }
    }

    /// Forgets every translation to a guest-physical page.
    pub fn forget_physical(&mut self, stale: StalePage) {
        let StalePage { page, native } = stale;
        self.forgotten = self.forgotten.wrapping_add(1);
        self.spaces.forget_physical(page);
        self.reaches.forget_host(native);
        for tlb in &mut self.data {
            tlb.forget_physical(page);
        }
    }
}

#[cfg(test)]
mod tests;
