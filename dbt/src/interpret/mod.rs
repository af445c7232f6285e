//! Instructions executed directly, one at a time: the fallback of the translator, the engine
//! of hosts that have no translator, and the oracle of tests.

pub mod address;
pub(crate) mod integer;
mod memory;
pub mod native;
pub mod operand;
mod string;
pub mod system;
mod vector;

use iced_x86::Instruction;
use mmu::{PhysMem, TlbSet};

use crate::guest::{CpuState, Exception};
use crate::platform::Platform;
use crate::record::{self, Row};

pub use memory::Access;
pub(crate) use memory::view;

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
        None => native::execute(cx, insn),
    }
}
