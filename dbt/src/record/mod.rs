//! The instruction table: one row a mnemonic, from which the interpreter, the translator and
//! the tests are driven.

mod class;
pub mod classify;
pub(crate) mod elements;
pub mod features;
pub mod grouping;
pub mod liveness;
mod masked;
pub mod recipe;
mod shape;
mod system;
mod values;

use std::sync::LazyLock;

use iced_x86::{Instruction, Mnemonic};

use crate::guest::Exception;
use crate::interpret::{Context, ROWS};

/// Executes one decoded instruction. On entry RIP is the instruction's own; on success it is
/// the next one to execute, on an exception it is unchanged and nothing else has changed.
pub type Execute = fn(&mut Context<'_>, &Instruction) -> Result<(), Exception>;

/// What is known of one mnemonic.
#[derive(Clone, Copy)]
pub struct Row {
    /// The mnemonic.
    pub mnemonic: Mnemonic,
    /// How the interpreter executes it.
    pub execute: Execute,
}

static BY_MNEMONIC: LazyLock<Vec<Option<Row>>> = LazyLock::new(|| {
    let mut table = vec![None; Mnemonic::values().len()];
    for rows in ROWS {
        for row in *rows {
            let slot = &mut table[row.mnemonic as usize];
            assert!(slot.is_none(), "two rows for {:?}", row.mnemonic);
            *slot = Some(*row);
        }
    }
    table
});

/// The row of a mnemonic, if the instruction is supported.
pub fn row(mnemonic: Mnemonic) -> Option<&'static Row> {
    BY_MNEMONIC[mnemonic as usize].as_ref()
}
