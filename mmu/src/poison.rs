//! Uncorrectable lines: marking them, deciding what is still good, recovering.
//!
//! This is the `poison` detection model: simulated ECC reports a line of 64 bytes as
//! uncorrectable, as hardware does; what is not marked is good.

use crate::address::GuestPhys;
use crate::physical::{AccessError, MAX_COPIES, PhysMem, page};

/// Bytes in a line, the unit of poison.
pub const LINE_SIZE: usize = 64;

/// Slow accesses to a page with poison elsewhere on it before it is repaired unasked: a page
/// in heavy use should not stay slow because of a line that nobody reads.
const PATIENCE: u32 = 256;

/// Poisoned lines of a page: a bit a line, for each copy.
#[derive(Clone, Copy, Default)]
pub(crate) struct PagePoison {
    lines: [u64; MAX_COPIES],
    touches: u32,
}

/// How a corrupted line ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// A read found it, and was served from a mirror.
    Recovered,
    /// A bad mirror line was restored from a good copy.
    Rebuilt,
    /// Not read, but moved to a good frame with its page.
    Remapped,
    /// Wholly overwritten before any read.
    Overwritten,
    /// A read found no good copy.
    Lost,
}

/// The end of some corrupted lines of one copy of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEvent {
    /// The page.
    pub page: GuestPhys,
    /// Which copy: 0 is the native one.
    pub copy: usize,
    /// The lines, a bit each.
    pub lines: u64,
    /// What became of them.
    pub fate: Fate,
}

/// What to do about one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every copy is good.
    Good,
    /// The native copy is bad: use this one.
    UseMirror(usize),
    /// The native copy is good; mirrors are to be rebuilt from it.
    RebuildMirrors,
    /// No copy is good.
    Lost,
}

/// Decides from what is known of each copy of a line: `bad[k]` is whether copy `k` is.
pub fn decide(bad: &[bool]) -> Verdict {
    match bad.iter().position(|&bad| !bad) {
        None => Verdict::Lost,
        Some(0) if bad.contains(&true) => Verdict::RebuildMirrors,
        Some(0) => Verdict::Good,
        Some(mirror) => Verdict::UseMirror(mirror),
    }
}

/// Bits of the lines that a range of bytes in a page touches.
fn touched(offset: usize, len: usize) -> u64 {
    let first = offset / LINE_SIZE;
    let last = (offset + len.max(1) - 1) / LINE_SIZE;
    (u64::MAX << first) & (u64::MAX >> (63 - last))
}

/// Bits of the lines that a range covers whole.
fn covered(offset: usize, len: usize) -> u64 {
    let first = offset.div_ceil(LINE_SIZE);
    let end = (offset + len) / LINE_SIZE;
    (first..end).fold(0, |bits, line| bits | 1 << line)
}

impl PhysMem {
    /// Makes lines of one copy of a page uncorrectable: their bytes are overwritten with `noise`
    /// in host memory, and they are marked. Returns the lines newly marked: none where no RAM
    /// is, or where they were already bad.
    pub fn corrupt(
        &mut self,
        page_address: GuestPhys,
        copy: usize,
        lines: u64,
        noise: &mut dyn FnMut() -> u64,
    ) -> u64 {
        let Some(index) = self.page_index(page_address) else {
            return 0;
        };
        if self.flags[index as usize] & page::HOLE != 0 || copy >= self.copies() {
            return 0;
        }
        let poison = self.poison.entry(index).or_default();
        let fresh = lines & !poison.lines[copy];
        poison.lines[copy] |= fresh;
        let frame = self.frame_of_slot(self.slot(index), copy);
        let base = self.frame_pointer(frame);
        for line in (0..64).filter(|line| fresh & (1 << line) != 0) {
            for word in 0..LINE_SIZE / 8 {
                let bytes = noise().to_le_bytes();
                // SAFETY: line < 64 and word < 8 keep the store within the frame.
                unsafe {
                    let to = base.add(line * LINE_SIZE + word * 8);
                    std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, 8);
                }
            }
        }
        self.flags[index as usize] |= if copy == 0 {
            page::NATIVE_POISON
        } else {
            page::MIRROR_POISON
        };
        self.page_changed(index, self.slot(index));
        fresh
    }

    /// Poisoned lines of one copy of a page, a bit each.
    pub fn poisoned_lines(&self, page_address: GuestPhys, copy: usize) -> u64 {
        self.page_index(page_address)
            .and_then(|index| self.poison.get(&index))
            .map_or(0, |poison| poison.lines[copy])
    }

    /// What became of corrupted lines since the last call.
    pub fn take_events(&mut self) -> Vec<MemoryEvent> {
        std::mem::take(&mut self.events)
    }

    /// A load touches a page with native poison: repairs it if the load would see a bad line.
    pub(crate) fn consume_read(
        &mut self,
        index: u32,
        offset: usize,
        len: usize,
    ) -> Result<(), AccessError> {
        self.consume(index, touched(offset, len), true, offset)
    }

    /// A store touches a page with poison. A line that the store covers whole needs no repair;
    /// any other is read first, as a processor's cache does (read for ownership).
    pub(crate) fn consume_write(
        &mut self,
        index: u32,
        offset: usize,
        len: usize,
    ) -> Result<(), AccessError> {
        let whole = covered(offset, len);
        self.consume(index, touched(offset, len) & !whole, false, offset)?;
        let page_address = self.page_address(index);
        let copies = self.copies();
        let mut over = Vec::new();
        if let Some(poison) = self.poison.get_mut(&index) {
            for copy in 0..copies {
                let lines = poison.lines[copy] & whole;
                poison.lines[copy] &= !whole;
                if lines != 0 {
                    over.push(MemoryEvent {
                        page: page_address,
                        copy,
                        lines,
                        fate: Fate::Overwritten,
                    });
                }
            }
        }
        self.events.append(&mut over);
        self.refresh_flags(index);
        Ok(())
    }

    fn consume(
        &mut self,
        index: u32,
        lines: u64,
        native_only: bool,
        offset: usize,
    ) -> Result<(), AccessError> {
        let copies = self.copies();
        let Some(poison) = self.poison.get_mut(&index) else {
            return Ok(());
        };
        poison.touches += 1;
        let watched = if native_only { 1 } else { copies };
        let hit = poison.lines[..watched].iter().any(|bad| bad & lines != 0);
        if !hit && poison.touches < PATIENCE {
            return Ok(());
        }
        let poison = *poison;
        let lost = (0..64).fold(0u64, |bits, line| {
            let mut bad = [false; MAX_COPIES];
            for (copy, bad) in bad[..copies].iter_mut().enumerate() {
                *bad = poison.lines[copy] & (1 << line) != 0;
            }
            match decide(&bad[..copies]) {
                Verdict::Lost => bits | 1 << line,
                _ => bits,
            }
        });
        let page_address = self.page_address(index);
        if lost & lines != 0 {
            for copy in 0..copies {
                self.events.push(MemoryEvent {
                    page: page_address,
                    copy,
                    lines: lost & lines,
                    fate: Fate::Lost,
                });
            }
            let first = (lost & lines).trailing_zeros() as usize * LINE_SIZE;
            return Err(AccessError::Lost(
                page_address.add(first.max(offset) as u64),
            ));
        }
        let curable = poison.lines.iter().any(|&bad| bad & !lost != 0);
        if curable {
            self.move_to_spare(index, poison, lost, lines);
        } else if let Some(poison) = self.poison.get_mut(&index) {
            // Nothing to repair from: a spare would be wasted.
            poison.touches = 0;
        }
        Ok(())
    }

    /// Gives the page a fresh slot filled from the good copy of each line. Without a spare the
    /// slot stays and its bad lines are rewritten in place, which is what clears a transient
    /// error in DRAM. Lines without a good copy stay poisoned.
    fn move_to_spare(&mut self, index: u32, poison: PagePoison, lost: u64, read: u64) {
        let copies = self.copies();
        let old = self.slot(index);
        let new = self.take_spare().unwrap_or(old);
        for line in 0..64usize {
            let good = (0..copies)
                .find(|&copy| poison.lines[copy] & (1 << line) == 0)
                .unwrap_or(0);
            let from = self.frame_pointer(self.frame_of_slot(old, good));
            for copy in 0..copies {
                let to = self.frame_pointer(self.frame_of_slot(new, copy));
                // SAFETY: both frames are within the mapping and line < 64; `copy` allows the
                // two to be the same line when the page is repaired in place.
                unsafe {
                    let (from, to) = (from.add(line * LINE_SIZE), to.add(line * LINE_SIZE));
                    std::ptr::copy(from, to, LINE_SIZE);
                }
            }
        }
        self.set_slot(index, new);
        if new != old {
            self.reserve.retire(old);
        }
        let page_address = self.page_address(index);
        for copy in 0..copies {
            let cured = poison.lines[copy] & !lost;
            let (seen, unseen) = (cured & read, cured & !read);
            let fates = if copy == 0 {
                [(seen, Fate::Recovered), (unseen, Fate::Remapped)]
            } else {
                [(cured, Fate::Rebuilt), (0, Fate::Rebuilt)]
            };
            for (lines, fate) in fates {
                if lines != 0 {
                    self.events.push(MemoryEvent {
                        page: page_address,
                        copy,
                        lines,
                        fate,
                    });
                }
            }
        }
        if let Some(poison) = self.poison.get_mut(&index) {
            for lines in &mut poison.lines {
                *lines &= lost;
            }
            poison.touches = 0;
        }
        self.refresh_flags(index);
        self.page_changed(index, old);
    }

    fn refresh_flags(&mut self, index: u32) {
        let poison = self.poison.get(&index).copied().unwrap_or_default();
        let flags = &mut self.flags[index as usize];
        *flags &= !page::POISON;
        if poison.lines[0] != 0 {
            *flags |= page::NATIVE_POISON;
        }
        if poison.lines[1..].iter().any(|&lines| lines != 0) {
            *flags |= page::MIRROR_POISON;
        }
        if *flags & page::POISON == 0 {
            self.poison.remove(&index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::physical::MemoryConfig;

    fn memory(copies: usize) -> PhysMem {
        PhysMem::new(&MemoryConfig {
            ram_bytes: 4 << 20,
            copies,
            legacy_hole: false,
        })
        .unwrap()
    }

    fn noise() -> impl FnMut() -> u64 {
        let mut state = 1u64;
        move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            state | 1
        }
    }

    #[test]
    fn verdicts() {
        assert_eq!(decide(&[false, false]), Verdict::Good);
        assert_eq!(decide(&[true, false]), Verdict::UseMirror(1));
        assert_eq!(decide(&[true, true, false]), Verdict::UseMirror(2));
        assert_eq!(decide(&[false, true]), Verdict::RebuildMirrors);
        assert_eq!(decide(&[true, true]), Verdict::Lost);
        assert_eq!(decide(&[true]), Verdict::Lost);
    }

    #[test]
    fn a_read_of_a_bad_line_is_served_from_the_mirror_in_another_frame() {
        let mut mem = memory(2);
        let at = GuestPhys(0x5000);
        mem.store(at, &[7; 4096]).unwrap();
        let before = mem.frame(at, 0);
        assert_eq!(mem.corrupt(at, 0, 0b10, &mut noise()), 0b10);
        let mut raw = [0; 8];
        assert!(mem.copy_bytes(GuestPhys(0x5040), 0, &mut raw));
        assert_ne!(raw, [7; 8], "the bytes really are noise");
        let mut seen = [0; 4096];
        mem.load(at, &mut seen).unwrap();
        assert_eq!(seen, [7; 4096]);
        assert_ne!(mem.frame(at, 0), before);
        let events = mem.take_events();
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].fate, events[0].lines), (Fate::Recovered, 0b10));
        assert!(mem.take_stale_pages().iter().any(|stale| stale.page == at));
    }

    #[test]
    fn whole_line_stores_overwrite_and_partial_ones_recover() {
        let mut mem = memory(2);
        let at = GuestPhys(0x8000);
        mem.store(at, &[3; 4096]).unwrap();
        mem.corrupt(at, 0, 0b11, &mut noise());
        mem.store(at, &[9; 64]).unwrap();
        assert_eq!(mem.take_events()[0].fate, Fate::Overwritten);
        mem.store(GuestPhys(0x8041), &[9]).unwrap();
        assert_eq!(mem.take_events()[0].fate, Fate::Recovered);
        let mut line = [0; 64];
        mem.load(GuestPhys(0x8040), &mut line).unwrap();
        assert_eq!((line[0], line[1], line[2]), (3, 9, 3));
    }

    #[test]
    fn a_bad_mirror_is_rebuilt_on_a_store_and_both_bad_is_lost() {
        let mut mem = memory(2);
        let at = GuestPhys(0x9000);
        mem.store(at, &[3; 4096]).unwrap();
        mem.corrupt(at, 1, 1, &mut noise());
        mem.store(at, &[4]).unwrap();
        assert_eq!(mem.take_events()[0].fate, Fate::Rebuilt);
        mem.corrupt(at, 0, 1, &mut noise());
        mem.corrupt(at, 1, 1, &mut noise());
        assert_eq!(
            mem.load_uint(at, 8),
            Err(AccessError::Lost(GuestPhys(0x9000)))
        );
        assert!(mem.take_events().iter().all(|e| e.fate == Fate::Lost));
        mem.store(at, &[0; 64]).unwrap();
        assert_eq!(mem.load_uint(at, 8), Ok(0));
    }

    #[test]
    fn without_a_mirror_a_bad_line_is_lost() {
        let mut mem = memory(1);
        mem.corrupt(GuestPhys(0x1000), 0, 1, &mut noise());
        assert!(mem.load_uint(GuestPhys(0x1000), 4).is_err());
    }

    #[test]
    fn line_masks() {
        assert_eq!(touched(0, 1), 1);
        assert_eq!(touched(63, 2), 3);
        assert_eq!(touched(4032, 64), 1 << 63);
        assert_eq!(touched(0, 4096), u64::MAX);
        assert_eq!(covered(0, 64), 1);
        assert_eq!(covered(1, 127), 2);
        assert_eq!(covered(1, 126), 0);
        assert_eq!(covered(0, 4096), u64::MAX);
    }
}
