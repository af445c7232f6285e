//! Fault plans, the choice of frames, corruption, and the ledger of what became of it.
//!
//! This crate knows no machine: it reaches one through [`Target`], and learns the fates of
//! what it damaged from [`mmu::MemoryEvent`]s. It never reads or writes guest memory itself.

#![forbid(unsafe_code)]

mod class;
mod ledger;
mod plan;
mod random;
mod session;

pub use class::{Class, Pick, Target};
pub use ledger::{Counts, Entry, Fate, Ledger, Moment};
pub use plan::{Interval, Plan, PlanError, Size, TargetCopy, When, Where};
pub use random::Random;
pub use session::{Due, Session};
