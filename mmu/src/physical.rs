//! Guest-physical memory in several copies, behind doors that keep the copies equal.
//!
//! All copies live in one mapping. It is laid out in chunks, the copies of a chunk side by
//! side (N0 | M0 | N1 | M1 …), so that a mirror's host address is its native's plus a constant
//! that fits a 32-bit displacement ([`stride_pages`]). A *slot* is one native frame with its mirrors at that
//! distance; the frame table gives each guest page its slot, and spare slots stand behind RAM
//! for pages whose frames went bad.

use std::collections::HashMap;
use std::sync::Arc;

use crate::address::{Frame, GuestPhys, PAGE_SHIFT, PAGE_SIZE};
use crate::ahead::{Ahead, Piece, REGION_SLOTS};
use crate::code_pages::StalePage;
use crate::gather::Reserve;
use crate::poison::PagePoison;
use crate::provider::Provider;

/// Frames in a chunk: 512 MiB, so that the distance to the third mirror still fits 31 bits.
const CHUNK_PAGES: u32 = 1 << 17;
/// Pages of 256 MiB, see [`stride_pages`].
const UTAG_PAGES: u32 = 1 << 16;
/// Pages between the copies of a chunk that hold nothing, see [`stride_pages`].
const SKEW_PAGES: u32 = 5;
/// RAM above this many bytes continues at 4 GiB; below 4 GiB stand devices and firmware.
const LOW_RAM_LIMIT: u64 = 3 << 30;
const FOUR_GIB: u64 = 4 << 30;
/// The most copies that a page can have.
pub const MAX_COPIES: usize = 4;

/// What to reserve.
#[derive(Clone, Debug)]
pub struct MemoryConfig {
    /// Bytes of RAM; a multiple of 4 KiB.
    pub ram_bytes: u64,
    /// Copies of each page, the native one included: 1 (no mirror) to [`MAX_COPIES`].
    pub copies: usize,
    /// Leave 0xA0000 to 0xBFFFF to devices, as on a PC.
    pub legacy_hole: bool,
}

/// Memory could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The number of copies is out of range.
    #[error("{0} copies of memory asked for: from 1 to {MAX_COPIES} are possible")]
    Copies(usize),
    /// The RAM size is unusable.
    #[error("{0} bytes of RAM asked for: a multiple of 4096 from 1 MiB to 1 TiB is possible")]
    Size(u64),
    /// The host gave no address space.
    #[error("cannot reserve {bytes} bytes of host address space for guest memory: {source}")]
    Reserve {
        /// The size of the reservation.
        bytes: u64,
        /// The host's reason.
        source: std::io::Error,
    },
    /// A ROM does not fit where it should go.
    #[error("a ROM of {len} bytes at {at} is not page-aligned or overlaps other memory")]
    Rom {
        /// Where it should start.
        at: GuestPhys,
        /// Its size in bytes.
        len: u64,
    },
}

/// A load or store that memory could not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// No RAM or ROM is at this address.
    #[error("no memory at {0}")]
    NotRam(GuestPhys),
    /// Every copy of the line is uncorrectable: a machine check.
    #[error("every copy of the line at {0} is lost")]
    Lost(GuestPhys),
}

/// Something that a page needs the slow path for.
pub(crate) mod page {
    /// Translated code was made from this page: stores must be seen.
    pub const CODE: u8 = 1 << 0;
    /// A line of the native copy is poisoned.
    pub const NATIVE_POISON: u8 = 1 << 1;
    /// A line of a mirror copy is poisoned.
    pub const MIRROR_POISON: u8 = 1 << 2;
    /// Stores are ignored.
    pub const ROM: u8 = 1 << 3;
    /// Belongs to devices.
    pub const HOLE: u8 = 1 << 4;
    /// A write-TLB entry may exist for this page.
    pub const WRITE_CACHED: u8 = 1 << 5;
    /// A TLB entry of any kind may exist for this page.
    pub const READ_CACHED: u8 = 1 << 6;

    pub const POISON: u8 = NATIVE_POISON | MIRROR_POISON;
}

/// Pages from one copy of a chunk to the next, for chunks of so many pages: a multiple of 256 MiB
/// and a little more.
///
/// AMD's processors tell the lines of a set of the L1 data cache apart by a hash of linear address
/// bits 12 to 27 (the microtag: Software Optimization Guide for AMD Family 17h; Lipp et al., "Take A
/// Way", 2020). A mirror at a multiple of 256 MiB from its native line has the same hash, the two
/// throw each other out, and a store and its mirror take 35 cycles instead of 2. A few pages more
/// keep them apart, for all copies, and cost address space only.
fn stride_pages(chunk_pages: u32) -> u32 {
    chunk_pages.next_multiple_of(UTAG_PAGES) + SKEW_PAGES
}

/// Guest-physical memory.
pub struct PhysMem {
    map: Arc<memmap2::MmapRaw>,
    /// Asks the host for memory before the guest does.
    ahead: Option<Ahead>,
    copies: usize,
    /// Bytes from one copy of a slot to the next.
    stride: usize,
    chunk_pages: u32,
    ram_pages: u32,
    low_pages: u32,
    /// (first guest page number, pages, first page index) of each ROM.
    roms: Vec<(u64, u32, u32)>,
    /// The slot of each page, XORed with its number so that fresh memory is the identity.
    slots: Vec<u32>,
    pub(crate) flags: Vec<u8>,
    pub(crate) next_spare: u32,
    spare_end: u32,
    /// Where pages are brought together.
    pub(crate) reserve: Reserve,
    slot_count: u32,
    pub(crate) poison: HashMap<u32, PagePoison>,
    pub(crate) events: Vec<crate::poison::MemoryEvent>,
    pub(crate) code_writes: Vec<(GuestPhys, u32)>,
    pub(crate) stale_pages: Vec<StalePage>,
    last_store: (GuestPhys, u32),
}

// SAFETY: the mapping is owned by this value alone and reached only through `&self`/`&mut self`
// or through TLB entries of the one vCPU thread that owns it.
unsafe impl Send for PhysMem {}

impl PhysMem {
    /// Reserves memory: every byte zero, and no host page committed before its first store.
    pub fn new(config: &MemoryConfig) -> Result<PhysMem, MemoryError> {
        if !(1..=MAX_COPIES).contains(&config.copies) {
            return Err(MemoryError::Copies(config.copies));
        }
        let size = config.ram_bytes;
        if !(1 << 20..=1 << 40).contains(&size) || !size.is_multiple_of(PAGE_SIZE) {
            return Err(MemoryError::Size(size));
        }
        let ram_pages = (size >> PAGE_SHIFT) as u32;
        let low_pages = (size.min(LOW_RAM_LIMIT) >> PAGE_SHIFT) as u32;
        let rom_pages = 4096;
        let spares = 1024 + ram_pages / 16;
        let spare_end = ram_pages + rom_pages + spares;
        let wanted = spare_end + Reserve::slots_for(ram_pages);
        let chunk_pages = wanted.min(CHUNK_PAGES);
        let chunks = wanted.div_ceil(chunk_pages);
        let slot_count = chunks * chunk_pages;
        let stride = stride_pages(chunk_pages) as usize * PAGE_SIZE as usize;
        let bytes = u64::from(chunks) * config.copies as u64 * stride as u64;
        let map = memmap2::MmapOptions::new()
            .len(bytes as usize)
            .no_reserve_swap()
            .map_anon()
            .inspect(|map| {
                // Large pages spare the host's own TLB; refusing them costs speed only. Nothing
                // waits for a store to a mirror, so those are spared the clearing of large pages, but where
                // they are provided ahead.
                #[cfg(target_os = "linux")]
                for chunk in 0..chunks {
                    let len = chunk_pages as usize * PAGE_SIZE as usize;
                    // What pages are brought together in is filled at once, in all copies.
                    let reserve = spare_end.saturating_sub(chunk * chunk_pages);
                    let reserve = reserve.min(chunk_pages) as usize * PAGE_SIZE as usize;
                    for copy in 0..config.copies {
                        let start = (chunk as usize * config.copies + copy) * stride;
                        let skipped = if copy == 0 { 0 } else { reserve };
                        let (start, len) = (start + skipped, len - skipped);
                        let _ = map.advise_range(memmap2::Advice::HugePage, start, len);
                    }
                }
            })
            .map(memmap2::MmapRaw::from)
            .map_err(|source| MemoryError::Reserve { bytes, source })?;
        let mut flags = vec![0u8; (ram_pages + rom_pages) as usize];
        if config.legacy_hole {
            let hole = 0xa0..0xc0.min(flags.len());
            flags[hole].fill(page::HOLE);
        }
        Ok(PhysMem {
            map: Arc::new(map),
            ahead: None,
            copies: config.copies,
            stride,
            chunk_pages,
            ram_pages,
            low_pages,
            roms: Vec::new(),
            slots: vec![0; (ram_pages + rom_pages) as usize],
            flags,
            next_spare: ram_pages + rom_pages,
            spare_end,
            reserve: Reserve::new(spare_end..wanted),
            slot_count,
            poison: HashMap::new(),
            events: Vec::new(),
            code_writes: Vec::new(),
            stale_pages: Vec::new(),
            last_store: (GuestPhys(0), 0),
        })
    }

    /// Has a thread ask the host for memory ahead of the guest, or not.
    pub fn populate_ahead(&mut self, populate: bool) {
        let provider = populate.then(Provider::new).flatten();
        self.ahead = provider.map(|provider| Ahead::new(&self.map, self.slot_count, provider));
    }

    /// Has the host provide memory ahead of whoever else is about to write some; `None`: nothing does.
    pub fn provider(&self) -> Option<&Provider> {
        self.ahead.as_ref().map(Ahead::provider)
    }

    /// A page is about to be written.
    #[inline]
    pub(crate) fn touch(&mut self, index: u32) {
        let slot = self.slot(index);
        if self.ahead.as_mut().is_some_and(|ahead| ahead.touch(slot)) {
            self.ask_ahead(slot);
        }
    }

    #[cold]
    fn ask_ahead(&mut self, slot: u32) {
        let Some(mut ahead) = self.ahead.take() else {
            return;
        };
        for (first, lowest) in ahead.wanted(slot) {
            let len = REGION_SLOTS.min(self.slot_count - first);
            for copy in lowest..self.copies {
                let frame = self.frame_of_slot(first, copy);
                let bytes = |pages: u32| pages as usize * PAGE_SIZE as usize;
                ahead.ask(Piece {
                    offset: bytes(frame.0),
                    len: bytes(len),
                    large: lowest == 0 && copy > 0,
                });
            }
        }
        self.ahead = Some(ahead);
    }

    /// Copies of each page, the native one included.
    pub fn copies(&self) -> usize {
        self.copies
    }

    /// Bytes from a native byte to its first mirror in host memory; each further mirror is
    /// as far from the one before.
    pub fn mirror_stride(&self) -> i32 {
        self.stride as i32
    }

    /// Bytes of RAM.
    pub fn ram_bytes(&self) -> u64 {
        u64::from(self.ram_pages) << PAGE_SHIFT
    }

    /// Bytes of RAM below 4 GiB; the rest starts at 4 GiB.
    pub fn low_ram_bytes(&self) -> u64 {
        u64::from(self.low_pages) << PAGE_SHIFT
    }

    /// Adds a ROM filled with `bytes`, padded with zeros to whole pages.
    pub fn add_rom(&mut self, at: GuestPhys, bytes: &[u8]) -> Result<(), MemoryError> {
        let error = || MemoryError::Rom {
            at,
            len: bytes.len() as u64,
        };
        let pages = (bytes.len() as u64).div_ceil(PAGE_SIZE) as u32;
        let used: u32 = self.roms.iter().map(|rom| rom.1).sum();
        let first = self.ram_pages + used;
        let overlaps = (0..u64::from(pages))
            .any(|index| self.page_index(at.add(index << PAGE_SHIFT)).is_some());
        if at.page() != at || overlaps || first + pages > self.flags.len() as u32 {
            return Err(error());
        }
        self.roms.push((at.0 >> PAGE_SHIFT, pages, first));
        self.store(at, bytes).map_err(|_| error())?;
        self.flags[first as usize..(first + pages) as usize].fill(page::ROM);
        Ok(())
    }

    /// Makes a range of RAM read-only for the guest (a firmware shadow), or writable again.
    pub fn set_write_protected(&mut self, at: GuestPhys, len: u64, protected: bool) {
        for offset in (0..len).step_by(PAGE_SIZE as usize) {
            let Some(index) = self.page_index(at.add(offset)) else {
                continue;
            };
            let flags = &mut self.flags[index as usize];
            if (*flags & page::ROM != 0) != protected {
                *flags ^= page::ROM;
                self.forget_page(at.add(offset), index, self.slot(index));
            }
        }
    }

    /// Index of the page in the frame table; `None` where no memory is.
    #[inline]
    pub(crate) fn page_index(&self, gpa: GuestPhys) -> Option<u32> {
        let number = gpa.0 >> PAGE_SHIFT;
        if number < u64::from(self.low_pages) {
            return Some(number as u32);
        }
        if gpa.0 >= FOUR_GIB {
            let index = (gpa.0 - FOUR_GIB) >> PAGE_SHIFT;
            let high = u64::from(self.ram_pages - self.low_pages);
            return (index < high).then(|| self.low_pages + index as u32);
        }
        self.roms
            .iter()
            .find(|rom| number >= rom.0 && number < rom.0 + u64::from(rom.1))
            .map(|rom| rom.2 + (number - rom.0) as u32)
    }

    /// Guest-physical address of a page of RAM, from its index in the frame table.
    pub fn page_address(&self, index: u32) -> GuestPhys {
        if index < self.low_pages {
            GuestPhys(u64::from(index) << PAGE_SHIFT)
        } else {
            GuestPhys(FOUR_GIB + (u64::from(index - self.low_pages) << PAGE_SHIFT))
        }
    }

    /// Pages of RAM.
    pub fn ram_pages(&self) -> u32 {
        self.ram_pages
    }

    pub(crate) fn slot(&self, index: u32) -> u32 {
        self.slots[index as usize] ^ index
    }

    pub(crate) fn set_slot(&mut self, index: u32, slot: u32) {
        self.slots[index as usize] = slot ^ index;
    }

    /// Takes a spare slot, if any is left.
    pub(crate) fn take_spare(&mut self) -> Option<u32> {
        (self.next_spare < self.spare_end).then(|| {
            self.next_spare += 1;
            self.next_spare - 1
        })
    }

    /// Spare slots that pages have moved to, and spare slots in all.
    pub fn spares(&self) -> (u32, u32) {
        let first = self.flags.len() as u32;
        (self.next_spare - first, self.spare_end - first)
    }

    /// The frame of one copy of a slot.
    pub(crate) fn frame_of_slot(&self, slot: u32, copy: usize) -> Frame {
        let chunk = slot / self.chunk_pages;
        let within = slot % self.chunk_pages;
        let stride_pages = (self.stride as u64 / PAGE_SIZE) as u32;
        Frame((chunk * self.copies as u32 + copy as u32) * stride_pages + within)
    }

    /// The frame that stands behind one copy of a guest page; `None` where no memory is.
    pub fn frame(&self, gpa: GuestPhys, copy: usize) -> Option<Frame> {
        let index = self.page_index(gpa)?;
        (copy < self.copies).then(|| self.frame_of_slot(self.slot(index), copy))
    }

    /// Host address of a frame's first byte.
    pub(crate) fn frame_pointer(&self, frame: Frame) -> *mut u8 {
        let offset = frame.0 as usize * PAGE_SIZE as usize;
        debug_assert!(offset < self.map.len());
        // SAFETY: frames come from `frame_of_slot` with a slot below `slot_count`, which the
        // mapping holds for every copy.
        unsafe { self.map.as_mut_ptr().add(offset) }
    }

    /// Host address of a page's native copy.
    #[inline]
    pub(crate) fn native_pointer(&self, index: u32) -> *mut u8 {
        self.frame_pointer(self.frame_of_slot(self.slot(index), 0))
    }

    /// Whether RAM or ROM is at this address.
    pub fn is_ram(&self, gpa: GuestPhys) -> bool {
        self.page_index(gpa)
            .is_some_and(|index| self.flags[index as usize] & page::HOLE == 0)
    }

    /// The door for loads: bytes as the guest would see them, served from a mirror and repaired
    /// where the native line is uncorrectable.
    pub fn load(&mut self, gpa: GuestPhys, into: &mut [u8]) -> Result<(), AccessError> {
        let mut done = 0;
        while done < into.len() {
            let at = gpa.add(done as u64);
            let offset = at.page_offset();
            let len = (into.len() - done).min(PAGE_SIZE as usize - offset);
            let index = self.page_index(at).ok_or(AccessError::NotRam(at))?;
            let flags = self.flags[index as usize];
            if flags & (page::HOLE | page::NATIVE_POISON) != 0 {
                if flags & page::HOLE != 0 {
                    return Err(AccessError::NotRam(at));
                }
                self.consume_read(index, offset, len)?;
            }
            let from = self.native_pointer(index);
            // SAFETY: offset + len is within the page, and `into` is not guest memory.
            unsafe {
                std::ptr::copy_nonoverlapping(from.add(offset), into[done..].as_mut_ptr(), len);
            }
            done += len;
        }
        Ok(())
    }

    /// Loads a little-endian number of 1 to 8 bytes.
    pub fn load_uint(&mut self, gpa: GuestPhys, size: usize) -> Result<u64, AccessError> {
        let mut bytes = [0; 8];
        self.load(gpa, &mut bytes[..size])?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The door for stores: writes every copy or none. ROM ignores stores.
    pub fn store(&mut self, gpa: GuestPhys, bytes: &[u8]) -> Result<(), AccessError> {
        // Authorise every page before the first byte changes.
        let mut at = gpa.page();
        let end = gpa.0.wrapping_add(bytes.len() as u64);
        while at.0 < end {
            if !self.is_ram(at) {
                return Err(AccessError::NotRam(at));
            }
            at = at.add(PAGE_SIZE);
        }
        let mut done = 0;
        while done < bytes.len() {
            let at = gpa.add(done as u64);
            let len = (bytes.len() - done).min(PAGE_SIZE as usize - at.page_offset());
            let piece = &bytes[done..done + len];
            self.store_in_page(at, len, |to| {
                // SAFETY: the range is within the page, and `piece` is not guest memory.
                unsafe { std::ptr::copy_nonoverlapping(piece.as_ptr(), to, len) };
            })?;
            done += len;
        }
        Ok(())
    }

    /// Everything a store within one page needs before it writes: the host address of its first
    /// byte in the native copy, or `None` where stores are ignored (ROM).
    fn authorise_store(
        &mut self,
        at: GuestPhys,
        len: usize,
    ) -> Result<Option<*mut u8>, AccessError> {
        let index = self.page_index(at).ok_or(AccessError::NotRam(at))?;
        let offset = at.page_offset();
        let flags = self.flags[index as usize];
        if flags & (page::HOLE | page::ROM | page::CODE | page::POISON) != 0 {
            if flags & page::HOLE != 0 {
                return Err(AccessError::NotRam(at));
            }
            if flags & page::ROM != 0 {
                return Ok(None);
            }
            if flags & page::POISON != 0 {
                self.consume_write(index, offset, len)?;
            }
            if flags & page::CODE != 0 {
                self.code_writes.push((at, len as u32));
            }
        }
        self.last_store = (at, len as u32);
        self.touch(index);
        let native = self.native_pointer(index);
        // SAFETY: the offset is within the page.
        Ok(Some(unsafe { native.add(offset) }))
    }

    /// Writes `len` bytes to every copy, mirrors first, with `write(to)`.
    fn store_in_page(
        &mut self,
        at: GuestPhys,
        len: usize,
        write: impl Fn(*mut u8),
    ) -> Result<(), AccessError> {
        debug_assert!(at.page_offset() + len <= PAGE_SIZE as usize);
        if let Some(native) = self.authorise_store(at, len)? {
            for copy in (0..self.copies).rev() {
                // SAFETY: copy < copies keeps the mirror within the mapping.
                write(unsafe { native.add(copy * self.stride) });
            }
        }
        Ok(())
    }

    /// Copies bytes from one page to one page as a load and a store through the doors would,
    /// the lowest address first: the ranges may overlap if the destination is the lower one.
    pub fn copy_within(
        &mut self,
        from: GuestPhys,
        to: GuestPhys,
        len: usize,
    ) -> Result<(), AccessError> {
        let fits = |at: GuestPhys| at.page_offset() + len <= PAGE_SIZE as usize;
        assert!(fits(from) && fits(to), "copies stay within a page");
        let source = self.page_index(from).ok_or(AccessError::NotRam(from))?;
        let flags = self.flags[source as usize];
        if flags & page::HOLE != 0 {
            return Err(AccessError::NotRam(from));
        }
        if flags & page::NATIVE_POISON != 0 {
            self.consume_read(source, from.page_offset(), len)?;
        }
        // A store may have the source's page recovered to another frame: it is asked for after.
        let Some(native) = self.authorise_store(to, len)? else {
            return Ok(());
        };
        // SAFETY: the offset is within the page.
        let source = unsafe { self.native_pointer(source).add(from.page_offset()) };
        for copy in (0..self.copies).rev() {
            // SAFETY: both ranges are within a page of the mapping; `copy` allows for overlap,
            // and only the native copy, written last, can overlap the source.
            unsafe { std::ptr::copy(source, native.add(copy * self.stride), len) };
        }
        Ok(())
    }

    /// Stores `len` times the same byte within one page.
    pub fn fill(&mut self, at: GuestPhys, byte: u8, len: usize) -> Result<(), AccessError> {
        assert!(
            at.page_offset() + len <= PAGE_SIZE as usize,
            "fills stay within a page"
        );
        self.store_in_page(at, len, |to| {
            // SAFETY: the range is within the page.
            unsafe { std::ptr::write_bytes(to, byte, len) };
        })
    }

    /// Stores the low 1 to 8 bytes of a number, little-endian.
    pub fn store_uint(
        &mut self,
        gpa: GuestPhys,
        size: usize,
        value: u64,
    ) -> Result<(), AccessError> {
        self.store(gpa, &value.to_le_bytes()[..size])
    }

    /// The last store that went through the door: where, and how many bytes.
    pub fn last_store(&self) -> (GuestPhys, u32) {
        self.last_store
    }

    /// One copy's bytes as they are in host memory, poisoned or not: for audits and tests.
    pub fn copy_bytes(&self, gpa: GuestPhys, copy: usize, into: &mut [u8]) -> bool {
        let offset = gpa.page_offset();
        let Some(frame) = self.frame(gpa, copy) else {
            return false;
        };
        if offset + into.len() > PAGE_SIZE as usize {
            return false;
        }
        // SAFETY: the range is within the frame, and `into` is not guest memory.
        unsafe {
            let from = self.frame_pointer(frame).add(offset);
            std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len());
        }
        true
    }

    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Host address and rights for a TLB entry: the native pointer, and whether loads and
    /// stores may go to it directly. Marks the page as cached.
    pub(crate) fn direct(&mut self, gpa: GuestPhys, write: bool) -> Option<Direct> {
        let index = self.page_index(gpa)?;
        let flags = self.flags[index as usize];
        if flags & (page::HOLE | page::NATIVE_POISON) != 0 {
            return None;
        }
        let writable = flags & (page::CODE | page::ROM | page::POISON) == 0;
        self.flags[index as usize] |= page::READ_CACHED;
        if write && writable {
            self.flags[index as usize] |= page::WRITE_CACHED;
            self.touch(index);
        }
        Some(Direct {
            host: self.native_pointer(index),
            writable,
        })
    }
}

/// A page that may be reached without the doors.
pub(crate) struct Direct {
    pub host: *mut u8,
    pub writable: bool,
}
