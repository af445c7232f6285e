//! The general-purpose instructions (SDM volume 1, chapter 7).

pub(super) mod alu;
pub(super) mod bcd;
pub(super) mod bits;
pub(crate) mod branch;
pub(super) mod flag_moves;
pub(crate) mod flags;
pub(super) mod moves;
pub(super) mod multiply;
pub(super) mod other;
pub(crate) mod shift;
pub(super) mod stack;
