//! From records to x86-64 host code.

// dynasm! converts register numbers that are bytes already.
#![allow(clippy::useless_conversion)]

mod astray;
mod block;
pub mod bulk;
mod control;
mod crossing;
mod decimal;
mod elements;
mod emitter;
mod encoded;
mod encoding;
mod encoding_rows;
mod entries;
mod evaluate;
mod exits;
mod fast_call;
mod flags;
mod hoisting;
mod interrupt_return;
mod late_stores;
mod masked;
mod memory;
pub mod moving;
mod operands;
mod places;
mod plain;
mod prediction;
mod recompute;
pub mod registers;
mod sections;
mod segment_loads;
mod segmented;
mod software_interrupt;
mod stack;
mod strings;
mod stubs;
mod system;
mod trampoline;
mod unusual;
pub mod whole_jumps;
mod x87;

pub use block::{Emitted, Entries, emit, translatable};
pub use emitter::{Emitter, Predicting, Target, Unencodable, Workshop};
pub use exits::{ExitKind, ExitSite};
pub use flags::ExitFlags;
pub use places::{Allotting, Places};
pub use trampoline::{Trampolines, emit as emit_trampolines};
