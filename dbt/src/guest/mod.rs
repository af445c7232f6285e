//! The guest processor as plain data: registers, segments, modes, exceptions.

pub mod cpuid;
mod exception;
pub mod extended_state;
pub mod flags;
mod mode;
mod models;
mod segment;
mod state;
pub mod time_line;

pub use cpuid::{CpuModel, CpuModelError, Feature, HostSupport};
pub use exception::Exception;
pub use mode::{CodeSize, Mode};
pub use segment::{DescriptorTable, Segment, SegmentIndex};
pub use state::{Control, CpuState, FxsaveArea, Msrs, Register, VectorState, X87Pointers};
pub use time_line::TimeLine;
