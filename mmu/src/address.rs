//! Address spaces as types: a number never says by itself which space it is in.

use std::fmt;

/// Bytes in the smallest page and in a frame.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// A guest-physical address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GuestPhys(pub u64);

/// A linear address: after segmentation, before paging (SDM volume 3, 3.3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Linear(pub u64);

/// Number of a host frame: an offset into the memory reserved for all copies,
/// in units of [`PAGE_SIZE`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame(pub u32);

impl GuestPhys {
    /// The address of the page that holds this byte.
    pub fn page(self) -> GuestPhys {
        GuestPhys(self.0 & !(PAGE_SIZE - 1))
    }

    /// Offset of this byte in its page.
    pub fn page_offset(self) -> usize {
        (self.0 & (PAGE_SIZE - 1)) as usize
    }

    /// This address, `bytes` further; wraps, as the operator would not.
    #[allow(clippy::should_implement_trait)]
    pub fn add(self, bytes: u64) -> GuestPhys {
        GuestPhys(self.0.wrapping_add(bytes))
    }
}

impl Linear {
    /// Offset of this byte in its 4 KiB page.
    pub fn page_offset(self) -> usize {
        (self.0 & (PAGE_SIZE - 1)) as usize
    }

    /// The 4 KiB page number.
    pub fn page_number(self) -> u64 {
        self.0 >> PAGE_SHIFT
    }
}

impl fmt::Debug for GuestPhys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gpa {:#x}", self.0)
    }
}

impl fmt::Display for GuestPhys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Linear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linear {:#x}", self.0)
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame {:#x}", self.0)
    }
}
