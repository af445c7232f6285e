//! Running guest code: the dispatch loop, entering and leaving emitted code, and its upcalls.
//! On hosts other than x86-64 Linux there is a loop over the interpreter instead, under the
//! same name.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod block_state;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod cold;
mod engine;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod finding;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod guards;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod host;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod interpreting;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod keeping;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod other_pages;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod prediction;
mod raising;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod recording;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod return_stack;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod sampler;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod segments;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod signal;
#[cfg(target_os = "linux")]
mod thread_timer;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod translating;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod upcall;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod upcalls;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod vcpu;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x87_candidate;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use block_state::at;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use block_state::{
    CpuBlock, Exchange, JUMP_CACHES, JUMP_ENTRIES, JUMP_SHIFT, JumpEntry, OwnedBlock,
};
pub use engine::{EngineOptions, Stop, VcpuError};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use host::{GsBase, host_counter, load_x87, peek_x87, store_x87, x87_words};
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub use interpreting::Vcpu;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(crate) use interpreting::host_counter;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use prediction::Strayed;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use recording::heat_counter;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use signal::{FaultSite, Registration, register_region};
#[cfg(target_os = "linux")]
pub use thread_timer::{Ring, ThreadTimer};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use upcall::{FlagsAt, Upcall, UpcallKind};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use vcpu::Vcpu;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use x87_candidate::X87Candidate;
