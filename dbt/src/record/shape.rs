//! What instructions look like apart from their general-purpose registers, addresses and constants.
//! Those of one shape have the same class but for the registers that they name, so that a class is
//! worked out once for each shape: iced-x86's description of one instruction takes as long as
//! emitting it.

use iced_x86::{EncodingKind, Instruction, Mnemonic, OpAccess, OpKind, Register};

use super::classify::Class;
use crate::guest::Mode;

/// Shapes that are remembered; one takes the place of another.
const SHAPES: usize = 2048;
/// In the place of a register's number.
const NONE: u8 = 0xff;

/// A shape under a mode.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape(u64);

/// The registers that an instruction names.
#[derive(Clone, Copy)]
pub(super) struct Named {
    /// The general-purpose register that each operand is.
    operands: [u8; 5],
    /// All that it names, a bit each.
    all: u16,
}

fn number(register: Register) -> u8 {
    (register.full_register() as u32 - Register::RAX as u32) as u8
}

/// What of an immediate makes a difference: how shifts and rotations understand it.
fn count(immediate: u8) -> u64 {
    let kind = |count: u8| u64::from(count.min(2));
    kind(immediate & 31) | kind(immediate & 63) << 2 | u64::from(immediate == 1) << 4
}

/// The shape of an instruction, and what it names; `None` for those whose class depends on more.
pub(super) fn of(insn: &Instruction, mode: Mode) -> Option<(Shape, Named)> {
    let mut named = Named {
        operands: [NONE; 5],
        all: 0,
    };
    let operands = insn.op_count();
    let mut shape = 0;
    for index in 0..operands {
        match insn.op_kind(index) {
            OpKind::Register => {
                let register = insn.op_register(index);
                if register.is_gpr() {
                    let number = number(register);
                    named.operands[index as usize] = number;
                    named.all |= 1 << number;
                } else if register.is_segment_register()
                    || register.is_cr()
                    || register.is_dr()
                    || register.is_tr()
                {
                    return None;
                }
            }
            OpKind::Memory => {
                shape |= 1;
                let (base, index) = (insn.memory_base(), insn.memory_index());
                for register in [base, index] {
                    if register.is_gpr() {
                        named.all |= 1 << number(register);
                    }
                }
                shape |= match base {
                    Register::EIP => 2,
                    Register::RIP => 4,
                    _ => 0,
                };
            }
            OpKind::Immediate8 => shape |= count(insn.immediate8()) << 3,
            OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
            | OpKind::Immediate8_2nd
            | OpKind::NearBranch16
            | OpKind::NearBranch32
            | OpKind::NearBranch64 => {}
            _ => return None,
        }
    }
    // Instructions that clear a register do not read it.
    if operands >= 2 {
        let (first, second) = (insn.op0_register(), insn.op1_register());
        shape |= u64::from(first == second) << 8;
        if operands >= 3 {
            let third = insn.op2_register();
            shape |= u64::from(second == third) << 9 | u64::from(first == third) << 10;
        }
    }
    shape |= u64::from(insn.has_rep_prefix()) << 11 | u64::from(insn.has_repne_prefix()) << 12;
    shape |= (insn.code_size() as u64) << 13;
    Some((
        Shape(u64::from(mode.0) << 32 | shape << 16 | insn.code() as u64),
        named,
    ))
}

/// Whether instructions of this one's shape have its class but for what they name: that of an
/// instruction which names nothing that it implies, too.
pub(super) fn is_typical(insn: &Instruction) -> bool {
    let plain_encoding = matches!(insn.encoding(), EncodingKind::Legacy | EncodingKind::VEX);
    // The count of these is taken modulo their width.
    let through_carry = matches!(insn.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr);
    plain_encoding && !through_carry && !insn.is_string_instruction()
}

/// The same with other general-purpose registers, which no instruction implies.
pub(super) fn with_free_registers(insn: &Instruction) -> Instruction {
    const FREE: u32 = 12;
    let resized = |register: Register, number: u32| {
        let first = match register.size() {
            1 => Register::AL as u32 + 4,
            2 => Register::AX as u32,
            4 => Register::EAX as u32,
            _ => Register::RAX as u32,
        };
        Register::try_from((first + number) as usize).expect("a general-purpose register")
    };
    let mut free = *insn;
    let mut names: Vec<Register> = Vec::new();
    for index in 0..insn.op_count() {
        let register = insn.op_register(index);
        if insn.op_kind(index) == OpKind::Register && register.is_gpr() {
            // Equal ones stay equal.
            let known = names.iter().position(|&name| name == register);
            let place = known.unwrap_or(names.len());
            if known.is_none() {
                names.push(register);
            }
            free.set_op_register(index, resized(register, FREE + place as u32));
        }
    }
    // No address is computed here.
    if insn.memory_base().is_gpr() {
        free.set_memory_base(Register::None);
    }
    if insn.memory_index().is_gpr() {
        free.set_memory_index(Register::None);
    }
    free
}

impl Named {
    /// A class of the shape with the registers that are named.
    pub(super) fn complete(self, mut class: Class) -> Class {
        for (&number, access) in self.operands.iter().zip(class.access) {
            let changes = !matches!(
                access,
                OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
            );
            if number != NONE && changes {
                class.writes |= 1 << number;
            }
        }
        class.implied &= !self.all;
        class
    }

    /// The class of the shape, from that of an instruction which names these.
    pub(super) fn without(self, mut class: Class) -> Class {
        class.writes &= !self.all;
        class
    }
}

/// Classes by shape.
pub(super) struct Known(Box<[Option<(Shape, Class)>]>);

impl Default for Known {
    fn default() -> Self {
        Known(vec![None; SHAPES].into_boxed_slice())
    }
}

impl Known {
    fn place(shape: Shape) -> usize {
        let hash = shape.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> (u64::BITS - SHAPES.ilog2())) as usize
    }

    pub(super) fn get(&self, shape: Shape) -> Option<Class> {
        let (known, class) = self.0[Self::place(shape)]?;
        (known == shape).then_some(class)
    }

    pub(super) fn put(&mut self, shape: Shape, class: Class) {
        self.0[Self::place(shape)] = Some((shape, class));
    }
}
