//! The other pages of a block's code, before it is entered.
//!
//! An instruction that crosses into the next page needs that page: it is walked to, as a processor
//! does. A trace may be left before it comes to its other pages; a walk might then set an accessed bit that
//! nothing but the trace was the reason for, or fault. So they are looked for in a way that the guest cannot
//! notice, and where that finds nothing the interpreter goes on up to the next jump: if the code comes
//! to that page it is found the next time.

use mmu::{GuestPhys, Linear, PAGE_SIZE};

use super::vcpu::Vcpu;

/// How often a trace may be entered in vain, while no fetch translation was dropped, before it is
/// given up: it hardly ever comes to its other pages.
const VAIN: u8 = 4;

/// What is known of a block's other pages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Others {
    /// They are mapped where the block's code is.
    Hold,
    /// One of them is mapped elsewhere, or has been unknown too often.
    Gone,
    /// One of them may be mapped there.
    Unknown,
}

impl Vcpu {
    /// Whether a block that is about to be entered would still find its other pages.
    pub(super) fn other_pages(&mut self, id: u32) -> Others {
        let Some(block) = self.cache.block(id) else {
            return Others::Gone;
        };
        if block.further.is_empty() {
            return Others::Hold;
        }
        let pages = block.further.iter().map(|further| further.part);
        let pages: Vec<(Linear, GuestPhys)> = pages
            .map(|part| (Linear(part.page * PAGE_SIZE), part.lowest.page()))
            .collect();
        if block.crosses() {
            let found =
                |&(linear, physical)| self.context().translate_fetch(linear) == Ok(physical);
            return if pages.iter().all(found) {
                Others::Hold
            } else {
                Others::Gone
            };
        }
        let mut others = Others::Hold;
        for (linear, physical) in pages {
            match self.context().foresee_fetch(linear) {
                Some(found) if found == physical => {}
                Some(_) => return Others::Gone,
                None => others = Others::Unknown,
            }
        }
        if others == Others::Unknown && self.in_vain(id) {
            return Others::Gone;
        }
        others
    }

    /// Notes that a trace cannot be entered yet; whether that happens too often.
    fn in_vain(&mut self, id: u32) -> bool {
        let epoch = self.fetch_epoch;
        let Some(block) = self.cache.block_mut(id) else {
            return true;
        };
        let (when, times) = block.vain;
        let times = if when == epoch { times + 1 } else { 1 };
        block.vain = (epoch, times);
        times > VAIN
    }
}
