//! String instructions (SDM volume 1, 7.3.9), with their repeat prefixes.
//!
//! A repeated instruction is as many instructions as it has iterations: each completes before
//! the next begins, registers included. So a fault or an interrupt in the middle leaves RIP at
//! the instruction and the registers at the first iteration not done.

mod bulk;
mod memory;
mod ports;

use iced_x86::{Instruction, Mnemonic, OpKind};
use mmu::Linear;

use super::address::{memory_segment, segment_linear};
use super::operand::{next, read_gpr, write_gpr};
use super::{Access, Context};
use crate::guest::{CpuState, Exception, Mode, Register as Gpr, SegmentIndex};
use crate::record::Row;

/// The rows of memory strings.
pub(super) const MEMORY: &[Row] = memory::ROWS;
/// The rows of port strings.
pub(super) const PORTS: &[Row] = ports::ROWS;

/// Bytes that one call moves before it lets interrupts be looked at.
const BUDGET: usize = 64 * 1024;

/// What the encoding of one string instruction says.
#[derive(Clone, Copy)]
struct Form {
    /// Bytes in an element.
    element: usize,
    /// Bytes in the index and count registers in use.
    address: usize,
    /// The segment of the source.
    source: SegmentIndex,
    /// Whether a repeat prefix is there.
    repeated: bool,
    /// For CMPS and SCAS: the value of ZF that lets the repetition go on.
    while_zero: bool,
    /// Index registers that 32-bit addresses zero-extend even if nothing is to be done.
    extended: &'static [usize],
}

impl Form {
    fn of(cpu: &CpuState, insn: &Instruction, element: usize) -> Form {
        let address = (0..insn.op_count())
            .find_map(|operand| match insn.op_kind(operand) {
                OpKind::MemorySegSI | OpKind::MemoryESDI => Some(2),
                OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(4),
                OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(8),
                _ => None,
            })
            .unwrap_or(8);
        let repeat = insn.has_repe_prefix() || insn.has_rep_prefix();
        Form {
            element,
            address,
            source: memory_segment(cpu, insn),
            repeated: repeat || insn.has_repne_prefix(),
            while_zero: repeat,
            extended: match insn.mnemonic() {
                Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
                    &[Gpr::RSI, Gpr::RDI]
                }
                Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
                    &[Gpr::RDI]
                }
                _ => &[],
            },
        }
    }

    /// A count of zero: in 64-bit code with 32-bit addresses Intel's processors zero-extend the
    /// count, and the indexes of MOVS and STOS; AMD's do not. For other sizes nothing changes.
    fn nothing_to_do(&self, cpu: &mut CpuState) {
        for &register in self.extended.iter().chain(&[Gpr::RCX]) {
            let value = read_gpr(cpu, register, self.address);
            write_gpr(cpu, register, self.address, value);
        }
    }

    fn count(&self, cpu: &CpuState) -> u64 {
        read_gpr(cpu, Gpr::RCX, self.address)
    }

    /// Moves an index register past `elements` elements, in the direction of DF.
    fn advance(&self, cpu: &mut CpuState, register: usize, elements: u64) {
        let bytes = elements.wrapping_mul(self.element as u64);
        let index = read_gpr(cpu, register, self.address);
        let index = if cpu.direction_flag != 0 {
            index.wrapping_sub(bytes)
        } else {
            index.wrapping_add(bytes)
        };
        write_gpr(cpu, register, self.address, index);
    }

    fn segment(&self, register: usize) -> SegmentIndex {
        if register == Gpr::RDI {
            SegmentIndex::Es
        } else {
            self.source
        }
    }

    /// The linear address of the element at RSI or RDI.
    fn element(
        &self,
        cx: &Context<'_>,
        register: usize,
        access: Access,
    ) -> Result<Linear, Exception> {
        let offset = read_gpr(cx.cpu, register, self.address);
        segment_linear(cx, self.segment(register), offset, self.element, access)
    }
}

/// What a step of iterations has done.
struct Progress {
    /// Iterations completed: at least one.
    elements: u64,
    /// Whether a CMPS or SCAS has met what ends it.
    ended: bool,
}

impl Progress {
    /// One iteration, with nothing that ends the repetition.
    const ONE: Progress = Progress {
        elements: 1,
        ended: false,
    };
}

/// Runs an instruction: `step` does between 1 and the given number of iterations, index
/// registers included, or faults before any; the count and RIP are kept here.
fn repeat(
    cx: &mut Context<'_>,
    insn: &Instruction,
    form: Form,
    mut step: impl FnMut(&mut Context<'_>, u64) -> Result<Progress, Exception>,
) -> Result<(), Exception> {
    cx.cpu.within_string = 0;
    if !form.repeated {
        step(cx, 1)?;
        return next(cx, insn);
    }
    // Single-stepping traps after each iteration.
    let mut budget = if cx.cpu.mode.has(Mode::STEPPED) {
        1
    } else {
        (BUDGET / form.element) as u64
    };
    loop {
        let count = form.count(cx.cpu);
        if count == 0 {
            form.nothing_to_do(cx.cpu);
            return next(cx, insn);
        }
        if budget == 0 {
            cx.cpu.within_string = 1;
            return Ok(());
        }
        let progress = step(cx, count.min(budget))?;
        budget -= progress.elements;
        let left = count - progress.elements;
        write_gpr(cx.cpu, Gpr::RCX, form.address, left);
        if progress.ended {
            return next(cx, insn);
        }
    }
}
