//! The guest's stack pointer, which moves late: pushes and pops that need no check of their own leave it
//! where it is, and address the stack by what it would be.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Instruction, OpKind, Register};

use super::emitter::Emitter;
use super::encoding::{Memory, NO_INDEX, Opcode, REX, WIDE, with_memory};
use super::registers::T2;
use crate::guest::{Mode, Register as Guest};
use crate::record::classify::{Class, Kind, Operand};
use crate::record::grouping::Place;
use crate::record::liveness;

/// The host register that holds the guest's stack pointer.
pub(super) const STACK: u8 = 11;

impl Emitter<'_> {
    /// Moves the guest's stack pointer; the flags stay.
    pub(super) fn move_stack(&mut self, by: i32) {
        if by != 0 {
            self.set_stack(STACK, by);
        }
    }

    /// Makes the guest's stack pointer, as wide as it is, a host register plus a displacement; the
    /// flags stay. A narrow one uses T2.
    pub(super) fn set_stack(&mut self, from: u8, by: i32) {
        self.settle_stores_by_stack();
        let mode = self.target.mode;
        if mode.has(Mode::WIDE_STACK) {
            self.add_displacement(STACK, from, by, mode.has(Mode::CODE64));
        } else {
            self.add_displacement(Self::scratch(T2), from, by, false);
            dynasm!(self.ops ; .arch x64 ; mov Rw(STACK), r8w);
        }
    }

    /// Moves the guest's stack pointer behind an instruction whose only access is that of the stack:
    /// later, if nothing can leave the block in the middle of that instruction any more.
    pub(super) fn pass_stack(&mut self, index: usize, by: i32) {
        if self.target.late_stack && self.stack_established(index) {
            self.stack_ahead += by;
        } else {
            self.move_stack(by);
        }
    }

    /// The guest's stack pointer is where it has to be, for whoever may look.
    pub(super) fn settle_stack(&mut self) {
        let by = std::mem::take(&mut self.stack_ahead);
        self.move_stack(by);
    }

    /// Whether the stack access of an instruction belongs to a group that has been checked.
    pub(super) fn stack_established(&self, index: usize) -> bool {
        self.is_established(index, Place::Stack)
    }

    /// Whether an instruction neither looks at the guest's stack pointer, other than by way of
    /// `stack_ahead`, nor can leave the block before it has moved it.
    pub(super) fn passes_stack(&self, index: usize, insn: &Instruction, class: &Class) -> bool {
        match class.kind {
            Kind::Push => {
                let from_register = insn.op0_kind() == OpKind::Register;
                insn.op0_kind() != OpKind::Memory
                    && !(from_register && is_stack(insn.op0_register()))
                    && self.stack_established(index)
            }
            Kind::Pop => !is_stack(insn.op0_register()) && self.stack_established(index),
            Kind::Call | Kind::CallInto | Kind::ReturnInto => self.stack_established(index),
            Kind::Return => self.target.returns && self.stack_established(index),
            // One in memory may be found by the interpreter, which executes all of it.
            Kind::JumpInto => of_register(insn),
            Kind::CallIndirectInto => of_register(insn) && self.stack_established(index),
            Kind::Nop => true,
            Kind::Lea | Kind::Plain(Operand::None) => {
                let operands = (0..insn.op_count()).map(|operand| insn.op_register(operand));
                let mut named = operands.chain([insn.memory_base(), insn.memory_index()]);
                !liveness::exposes(class, true) && !named.any(is_stack)
            }
            _ => false,
        }
    }

    /// `lea into, [base + displacement]`, in the shortest form.
    pub(super) fn add_displacement(&mut self, into: u8, base: u8, displacement: i32, wide: bool) {
        let rex = if wide { WIDE } else { REX };
        let memory = Memory {
            base,
            index: NO_INDEX,
            scale: 1,
            displacement,
            displaced: true,
        };
        self.put(&with_memory((rex, Opcode::Short(0x8d)), into, &memory));
    }
}

/// Whether a jump is through a register that is not the stack pointer.
fn of_register(insn: &Instruction) -> bool {
    insn.op0_kind() == OpKind::Register && !is_stack(insn.op0_register())
}

fn is_stack(register: Register) -> bool {
    register.is_gpr() && register.full_register() == Register::RAX + Guest::RSP as u32
}
