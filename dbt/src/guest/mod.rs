//! The guest processor as plain data: registers, segments, modes, exceptions.

mod exception;
pub mod flags;
mod mode;
mod segment;
mod state;

pub use exception::Exception;
pub use mode::{CodeSize, Mode};
pub use segment::{DescriptorTable, Segment, SegmentIndex};
pub use state::{Control, CpuState, Msrs, Register, VectorState};
