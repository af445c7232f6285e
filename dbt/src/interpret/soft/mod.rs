//! x87, MMX and SSE instructions in portable Rust: what hosts without these instructions run,
//! and what tests compare with those that have them.
//!
//! Results and exceptions are those of the processor to the last bit, but for two groups whose
//! results the architecture leaves open: the approximations of RCPPS and RSQRTPS, and the
//! transcendental x87 instructions (see [`x87`]).

mod arithmetic;
mod float;
mod moves;
mod operand;
mod packed;
mod sse_float;
mod strings;
mod x87;

use iced_x86::Instruction;

use super::Context;
use crate::guest::Exception;

/// Executes one instruction. #UD if there is no portable form of it.
pub(super) fn execute(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    if insn.has_lock_prefix() {
        return Err(Exception::invalid_opcode());
    }
    moves::execute(cx, insn)
        .or_else(|| packed::execute(cx, insn))
        .or_else(|| sse_float::execute(cx, insn))
        .or_else(|| x87::execute(cx, insn))
        .or_else(|| strings::execute(cx, insn))
        .unwrap_or(Err(Exception::invalid_opcode()))
}
