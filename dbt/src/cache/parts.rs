//! The pages that a block's code is on. A trace has code on several; an instruction that crosses from
//! one page into the next is a block of two.

use mmu::GuestPhys;

/// The bytes of one page that a block was made from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// The number of the linear page.
    pub page: u64,
    /// Guest-physical address of the lowest byte.
    pub lowest: GuestPhys,
    /// Bytes from there on. What is between two pieces of code counts.
    pub len: u32,
}

/// A part on another page than that of the block's first instruction.
#[derive(Clone, Copy, Debug)]
pub struct Further {
    /// Where it is.
    pub part: Part,
    /// What the page's guard has to hold.
    pub mapping: u32,
    /// Its place among the blocks of its page.
    pub(super) place: u32,
}

impl Further {
    /// A part of a block that is about to be made.
    pub fn new(part: Part, mapping: u32) -> Further {
        Further {
            part,
            mapping,
            place: 0,
        }
    }
}

/// Guest-physical address of an instruction of flat code on one of these pages, the first of which
/// stands for all that are not named.
pub fn physical(first: GuestPhys, further: &[Further], rip: u64) -> GuestPhys {
    let page = rip / mmu::PAGE_SIZE;
    let known = further.iter().find(|further| further.part.page == page);
    let page = known.map_or(first, |further| further.part.lowest.page());
    page.add(rip % mmu::PAGE_SIZE)
}
