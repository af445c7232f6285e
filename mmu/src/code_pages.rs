//! Pages that translated code was made from, and those whose TLB entries have to go.

use crate::address::{GuestPhys, PAGE_SIZE};
use crate::physical::{PhysMem, page};

/// A page whose translations have to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StalePage {
    /// Its guest-physical address.
    pub page: GuestPhys,
    /// The host address that they lead to.
    pub native: u64,
}

impl PhysMem {
    /// Remembers that translated code was made from this page: stores to it take the door, and
    /// are listed by [`PhysMem::take_code_writes`].
    pub fn mark_code(&mut self, gpa: GuestPhys) {
        if let Some(index) = self.page_index(gpa) {
            let flags = &mut self.flags[index as usize];
            if *flags & page::CODE == 0 {
                *flags |= page::CODE;
                if *flags & page::WRITE_CACHED != 0 {
                    self.forget_page(gpa, index, self.slot(index));
                }
            }
        }
    }

    /// Forgets that code was made from this page.
    pub fn unmark_code(&mut self, gpa: GuestPhys) {
        if let Some(index) = self.page_index(gpa) {
            let flags = &mut self.flags[index as usize];
            *flags &= !page::CODE;
            // Entries without a write tag are to be filled anew.
            if *flags & page::READ_CACHED != 0 {
                self.forget_page(gpa, index, self.slot(index));
            }
        }
    }

    /// Whether code was made from this page.
    pub fn is_code(&self, gpa: GuestPhys) -> bool {
        self.page_index(gpa)
            .is_some_and(|index| self.flags[index as usize] & page::CODE != 0)
    }

    /// Whether stores to code pages or stale translations wait to be looked at.
    #[inline]
    pub fn has_news(&self) -> bool {
        !self.code_writes.is_empty() || !self.stale_pages.is_empty()
    }

    /// The stores that hit code pages since the last call: address and bytes of each.
    pub fn take_code_writes(&mut self) -> Vec<(GuestPhys, u32)> {
        std::mem::take(&mut self.code_writes)
    }

    /// The pages whose TLB entries have to go: their frames or rights changed.
    pub fn take_stale_pages(&mut self) -> Vec<StalePage> {
        std::mem::take(&mut self.stale_pages)
    }

    /// The translations of a page have to go, which lead to a slot.
    pub(crate) fn forget_page(&mut self, gpa: GuestPhys, index: u32, slot: u32) {
        self.flags[index as usize] &= !(page::WRITE_CACHED | page::READ_CACHED);
        self.stale_pages.push(StalePage {
            page: gpa.page(),
            native: self.frame_pointer(self.frame_of_slot(slot, 0)) as u64,
        });
    }

    /// A page's contents, which are or were in a slot, changed beneath the processor: its TLB entries and its
    /// code go.
    pub(crate) fn page_changed(&mut self, index: u32, slot: u32) {
        let gpa = self.page_address(index);
        if self.flags[index as usize] & page::CODE != 0 {
            self.code_writes.push((gpa, PAGE_SIZE as u32));
        }
        self.forget_page(gpa, index, slot);
    }
}
