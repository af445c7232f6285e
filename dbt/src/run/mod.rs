//! Running guest code: the dispatch loop, entering and leaving emitted code, and its upcalls.

mod block_state;
mod host;
mod signal;
mod upcall;
mod upcalls;
mod vcpu;
mod visits;

pub(crate) use block_state::at;
pub use block_state::{
    CpuBlock, Exchange, JUMP_BITS, JUMP_CACHES, JUMP_ENTRIES, JumpEntry, OwnedBlock,
};
pub(crate) use host::{GsBase, load_x87, peek_x87, store_x87};
pub(crate) use signal::{FaultSite, Registration, register_region};
pub use upcall::{Upcall, UpcallKind};
pub use vcpu::{EngineOptions, Stop, Vcpu, VcpuError};
