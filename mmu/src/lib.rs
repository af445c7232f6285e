//! Guest memory in several copies, page walks, TLBs and recovery.

mod address;

pub use address::{Frame, GuestPhys, Linear, PAGE_SHIFT, PAGE_SIZE};
