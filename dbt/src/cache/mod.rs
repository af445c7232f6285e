//! Translated blocks: where they are, how they are linked, when they go.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod block;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod blocks;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod code_file;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod copies;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod heap;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod insns;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod links;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod near;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod pages;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod parts;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod paths;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod region;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod slots;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod trace;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod words;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use block::{Block, Key, Source, Translation};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use blocks::{BlockCache, FETCHED};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use copies::Arrival;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use insns::{Insns, Run};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use parts::{Further, Part, physical};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use region::{CodeOffset, CodeRegion};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use trace::{Reach, Trace};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use words::Words;

/// Counts since the start. On hosts without a translator they stay zero.
#[derive(Clone, Copy, Default, Debug)]
pub struct CacheStatistics {
    /// Blocks translated.
    pub translated: u64,
    /// Translations copied for the same code at another address.
    pub moved: u64,
    /// Translations read from the file of an earlier run.
    pub recalled: u64,
    /// Pages brought together on the host.
    pub gathered: u64,
    /// Traces made of hot loops.
    pub traces: u64,
    /// Jumps and calls through registers and memory that these follow.
    pub indirect: u64,
    /// Hot loops in which guest registers have changed places.
    pub allotted: u64,
    /// Blocks that have come to ask more of the flags that they are entered with.
    pub demands: u64,
    /// Blocks dropped because their page was written.
    pub invalidated: u64,
    /// Areas emptied for room.
    pub evictions: u64,
    /// Host time spent translating, in nanoseconds.
    pub nanoseconds: u64,
}
