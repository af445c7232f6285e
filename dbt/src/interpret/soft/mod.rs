//! x87, MMX and SSE instructions in portable Rust.

use iced_x86::Instruction;

use super::Context;
use crate::guest::Exception;

/// Executes one instruction. #UD if there is no portable form of it.
pub(super) fn execute(_cx: &mut Context<'_>, _insn: &Instruction) -> Result<(), Exception> {
    Err(Exception::invalid_opcode())
}
