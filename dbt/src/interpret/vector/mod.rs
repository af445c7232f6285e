//! Vector and floating-point instructions that cannot run on the host as they are: those that
//! save and restore state, and those that touch memory element by element. All others go to
//! [`super::extension`].

mod environment;
mod gather;
mod masked;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod moves;
mod save;
mod x87;

use crate::guest::Exception;
use crate::record::Row;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) use moves::execute as execute_move;
pub(crate) use x87::OPCODE_BITS;
pub(crate) use x87::follow_control as follow_x87_control;
pub(crate) use x87::pending as x87_pending;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) use x87::store_refused as x87_store_refused;

type Done = Result<(), Exception>;

/// The rows of state saving, with and without XSAVE.
pub(super) const SAVE: &[Row] = save::ROWS;
/// The rows of the x87 environment.
pub(super) const ENVIRONMENT: &[Row] = environment::ROWS;
/// The rows of masked moves.
pub(super) const MASKED: &[Row] = masked::ROWS;
/// The rows of gathers.
pub(super) const GATHER: &[Row] = gather::ROWS;
