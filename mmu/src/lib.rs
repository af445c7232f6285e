//! Guest memory in several copies, page walks, TLBs and recovery.
//!
//! Nothing outside this crate holds a pointer into guest memory, except emitted code through
//! TLB entries that this crate filled. Every other load and store passes the two doors,
//! [`PhysMem::load`] and [`PhysMem::store`].

mod address;
mod ahead;
mod audit;
mod code_pages;
mod fetch;
mod gather;
mod homes;
mod large;
mod physical;
mod poison;
mod provider;
mod reach;
mod spaces;
mod tlb;
mod used;
mod walk;

pub use address::{Frame, GuestPhys, Linear, PAGE_SHIFT, PAGE_SIZE};
pub use audit::AuditError;
pub use code_pages::StalePage;
pub use fetch::{FETCH_ENTRIES, FetchNews, FetchTlb};
pub use physical::{AccessError, MAX_COPIES, MemoryConfig, MemoryError, PhysMem};
pub use poison::{Fate, LINE_SIZE, MemoryEvent, Verdict, decide};
pub use provider::Provider;
pub use reach::{LONGEST_REACH, Look, Reach, Reached, Reaches, SITES, Site};
pub use spaces::{SPACES, Spaces};
pub use tlb::{SECOND_SHIFT, SECOND_TURN, TLB_ENTRIES, Tlb, TlbEntry, TlbSet, View};
pub use walk::{Mapping, PHYSICAL_BITS, PageFault, PagingRegisters, Purpose, WalkError};
