//! From records to x86-64 host code.

// dynasm! converts register numbers that are bytes already.
#![allow(clippy::useless_conversion)]

mod block;
mod control;
mod emitter;
mod fast_call;
mod flags;
mod memory;
mod plain;
mod prediction;
pub mod registers;
mod system;
mod trampoline;

pub use block::{Emitted, emit, translatable};
pub use emitter::{Emitter, ExitKind, ExitSite, Predicting, Target, Unencodable, Workshop};
pub use flags::ExitFlags;
pub use trampoline::{Trampolines, emit as emit_trampolines};
