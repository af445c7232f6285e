//! The property itself: copies hold the same bytes, in different frames.

use std::collections::HashSet;

use crate::address::{Frame, GuestPhys, PAGE_SIZE};
use crate::physical::{PhysMem, page};
use crate::poison::LINE_SIZE;

/// The first violation that an audit found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// Copies differ.
    #[error(
        "copy {copy} of {at} holds {mirror:#04x}, the native copy {native:#04x}; the last store \
         through the door was {last_len} bytes at {last_at}"
    )]
    Differs {
        /// The first byte that differs.
        at: GuestPhys,
        /// The copy that differs from the native one.
        copy: usize,
        /// The native byte.
        native: u8,
        /// The mirror's byte.
        mirror: u8,
        /// The last store through the door: where.
        last_at: GuestPhys,
        /// How many bytes it stored.
        last_len: u32,
    },
    /// Two copies, or two pages, share a frame.
    #[error("copy {copy} of the page at {at} shares {frame:?} with another page or copy")]
    SharedFrame {
        /// The page.
        at: GuestPhys,
        /// The copy.
        copy: usize,
        /// The frame that is used twice.
        frame: Frame,
    },
}

impl PhysMem {
    /// Compares all copies of all of RAM and checks that no frame is used twice. Lines that are
    /// marked as bad are left out: they are known to differ. Returns the number of pages.
    pub fn audit(&self) -> Result<u32, AuditError> {
        let mut moved = HashSet::new();
        let mut native = vec![0u8; PAGE_SIZE as usize];
        let mut mirror = vec![0u8; PAGE_SIZE as usize];
        for index in 0..self.ram_pages() {
            if self.flags[index as usize] & page::HOLE != 0 {
                continue;
            }
            let at = self.page_address(index);
            let slot = self.slot(index);
            for copy in 0..self.copies() {
                let frame = self.frame_of_slot(slot, copy);
                // A page in its own slot cannot share it; spare slots are given out once, which
                // is what this checks.
                let home = self.frame_of_slot(index, copy);
                if frame != home && !moved.insert(frame) {
                    return Err(AuditError::SharedFrame { at, copy, frame });
                }
            }
            self.copy_bytes(at, 0, &mut native);
            let native_bad = self.poisoned_lines(at, 0);
            for copy in 1..self.copies() {
                self.copy_bytes(at, copy, &mut mirror);
                if native == mirror {
                    continue;
                }
                let bad = native_bad | self.poisoned_lines(at, copy);
                let difference = (0..PAGE_SIZE as usize).find(|&byte| {
                    native[byte] != mirror[byte] && bad >> (byte / LINE_SIZE) & 1 == 0
                });
                if let Some(byte) = difference {
                    let (last_at, last_len) = self.last_store();
                    return Err(AuditError::Differs {
                        at: at.add(byte as u64),
                        copy,
                        native: native[byte],
                        mirror: mirror[byte],
                        last_at,
                        last_len,
                    });
                }
            }
        }
        Ok(self.ram_pages())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::physical::MemoryConfig;

    #[test]
    fn an_audit_finds_a_store_that_missed_the_mirror() {
        let mut mem = PhysMem::new(&MemoryConfig {
            ram_bytes: 2 << 20,
            copies: 3,
            legacy_hole: true,
        })
        .unwrap();
        mem.store(GuestPhys(0x1234), &[1, 2, 3]).unwrap();
        assert_eq!(mem.audit(), Ok(512));
        let frame = mem.frame(GuestPhys(0x3000), 2).unwrap();
        // SAFETY: the frame is within the mapping.
        unsafe { *mem.frame_pointer(frame).add(5) = 9 };
        match mem.audit() {
            Err(AuditError::Differs { at, copy, .. }) => {
                assert_eq!((at, copy), (GuestPhys(0x3005), 2));
            }
            other => panic!("{other:?}"),
        }
    }
}
