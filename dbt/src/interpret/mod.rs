//! Instructions executed directly, one at a time: the fallback of the translator, the engine
//! of hosts that have no translator, and the oracle of tests.

pub mod address;
pub mod extension;
pub(crate) mod integer;
mod memory;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod native;
pub mod operand;
mod soft;
mod string;
pub mod system;
mod vector;

use iced_x86::Instruction;
use mmu::{PhysMem, TlbSet};

use crate::decode;
use crate::guest::{CpuState, Exception, Mode, flags};
use crate::platform::Platform;
use crate::record::{self, Row};

pub use memory::Access;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use memory::{paging, view};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use vector::{OPCODE_BITS, follow_x87_control, x87_pending};

/// The rows of the instruction table, by group.
pub(crate) const ROWS: &[&[Row]] = &[
    integer::alu::ROWS,
    integer::bcd::ROWS,
    integer::bits::ROWS,
    integer::branch::ROWS,
    integer::flag_moves::ROWS,
    integer::moves::ROWS,
    integer::multiply::ROWS,
    integer::other::ROWS,
    integer::shift::ROWS,
    integer::stack::ROWS,
    string::MEMORY,
    string::PORTS,
    system::control::ROWS,
    system::fast_call::ROWS,
    system::inspect::ROWS,
    system::iret::ROWS,
    system::msr::ROWS,
    system::port::ROWS,
    system::processor::ROWS,
    system::segment_loads::ROWS,
    system::software_interrupt::ROWS,
    system::table_registers::ROWS,
    vector::ENVIRONMENT,
    vector::GATHER,
    vector::MASKED,
    vector::SAVE,
];

/// Everything that one instruction may touch.
pub struct Context<'a> {
    /// The processor.
    pub cpu: &'a mut CpuState,
    /// Its TLBs.
    pub tlb: &'a mut TlbSet,
    /// Guest-physical memory.
    pub mem: &'a mut PhysMem,
    /// The machine around the processor.
    pub platform: &'a mut dyn Platform,
}

/// Executes one decoded instruction at RIP; see [`record::Execute`] for the contract.
pub fn execute(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    match record::row(insn.mnemonic()) {
        Some(row) => (row.execute)(cx, insn),
        None => extension::execute(cx, insn),
    }
}

/// Fetches and executes the instruction at RIP, with the traps around it. Whether it is
/// finished: a long string instruction may need more steps. An exception is not yet delivered.
pub fn step(cx: &mut Context<'_>) -> Result<bool, Exception> {
    let before = cx.cpu.rip;
    let shadow = cx.cpu.interrupt_shadow;
    let traps = cx.cpu.pending_debug;
    let stepped = cx.cpu.mode.has(Mode::STEPPED);
    let tf = cx.cpu.system_flags & flags::TF != 0;
    let result = if stepped {
        system::debug::before_instruction(cx)
    } else {
        Ok(())
    };
    let result = result
        .and_then(|()| decode::one(cx))
        .and_then(|insn| execute(cx, &insn).map(|()| insn));
    if shadow != 0 {
        cx.cpu.interrupt_shadow = 0;
    }
    if stepped && result.is_err() {
        // What an instruction watched that did not complete is no trap.
        cx.cpu.pending_debug = traps;
    }
    let insn = result?;
    if stepped || tf {
        system::debug::after_instruction(cx, &insn, tf);
    }
    Ok(cx.cpu.rip != before || !insn.is_string_instruction())
}
