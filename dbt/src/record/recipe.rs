//! Flags that can be computed anew, because what they were computed from is still there. Code
//! that lets a TLB compare spoil such flags need not save them first.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::guest::CpuState;
use crate::interpret::integer::flags;

/// What set the flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// left - right was computed and dropped.
    Compare,
    /// left & right was computed, and dropped if they differ.
    Test,
    /// left is a sum, of which right is one part.
    Added,
    /// left is a difference, to which right has to be added to have what it was.
    Subtracted,
}

/// The second operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Right {
    /// The low bytes of a general-purpose register.
    Register(u8),
    /// A number, sign-extended.
    Constant(i32),
}

/// How all six arithmetic flags follow from registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recipe {
    /// The operation.
    pub operation: Operation,
    /// Bytes of the operands.
    pub size: u8,
    /// Number of the first operand's register, of which the low bytes count.
    pub left: u8,
    /// The second operand.
    pub right: Right,
}

/// In the place where saved flags are, this bit says that a recipe is there instead of flags,
/// whose lowest byte is 0 or 1.
const MARK: u32 = 2;

impl Recipe {
    /// The flags that an instruction leaves, if they follow from what it leaves in registers.
    pub fn of(insn: &Instruction) -> Option<Recipe> {
        if insn.op_count() != 2 {
            return None;
        }
        let (left, size) = low_bytes(insn, 0)?;
        let right = match insn.op1_kind() {
            OpKind::Register => low_bytes(insn, 1).map(|(right, _)| Right::Register(right)),
            OpKind::Memory => None,
            _ => {
                let value = insn.immediate(1);
                Some(Right::Constant(match size {
                    1 => i32::from(value as i8),
                    2 => i32::from(value as i16),
                    _ => value as i32,
                }))
            }
        };
        let itself = Right::Register(left);
        let (operation, right) = match insn.mnemonic() {
            Mnemonic::Cmp => (Operation::Compare, right?),
            Mnemonic::Test => (Operation::Test, right?),
            Mnemonic::And | Mnemonic::Or | Mnemonic::Xor => (Operation::Test, itself),
            // The difference of a register and itself has the flags of zero.
            Mnemonic::Sub if right == Some(itself) => (Operation::Test, itself),
            Mnemonic::Sub => (Operation::Subtracted, right?),
            Mnemonic::Add if right != Some(itself) => (Operation::Added, right?),
            _ => return None,
        };
        Some(Recipe {
            operation,
            size,
            left,
            right,
        })
    }

    /// The registers that it needs, a bit each.
    pub fn registers(self) -> u16 {
        let right = match self.right {
            Right::Register(right) => 1 << right,
            Right::Constant(_) => 0,
        };
        1 << self.left | right
    }

    /// The flags.
    pub fn flags(self, cpu: &CpuState) -> u64 {
        let size = usize::from(self.size);
        let left = cpu.gpr[usize::from(self.left)];
        let right = match self.right {
            Right::Register(right) => cpu.gpr[usize::from(right)],
            Right::Constant(value) => i64::from(value) as u64,
        };
        match self.operation {
            Operation::Compare => flags::sub(left, right, 0, size).1,
            Operation::Test => flags::logic(left & right, size).1,
            Operation::Added => flags::add(left.wrapping_sub(right), right, 0, size).1,
            Operation::Subtracted => flags::sub(left.wrapping_add(right), right, 0, size).1,
        }
    }

    /// As a word that stands where saved flags would; `None` if its constant is too large.
    pub fn word(self) -> Option<u32> {
        let (constant, right) = match self.right {
            Right::Register(right) => (0, u32::from(right)),
            Right::Constant(value) => (1, u32::from(i16::try_from(value).ok()? as u16)),
        };
        let operation = self.operation as u32;
        let size = u32::from(self.size).trailing_zeros();
        let left = u32::from(self.left);
        Some(MARK | operation << 2 | size << 4 | constant << 6 | left << 8 | right << 16)
    }

    /// The recipe that stands where saved flags would, if it is one.
    pub fn from_word(word: u32) -> Option<Recipe> {
        if word & MARK == 0 {
            return None;
        }
        let right = (word >> 16) as u16;
        Some(Recipe {
            operation: match word >> 2 & 3 {
                0 => Operation::Compare,
                1 => Operation::Test,
                2 => Operation::Added,
                _ => Operation::Subtracted,
            },
            size: 1 << (word >> 4 & 3),
            left: (word >> 8 & 15) as u8,
            right: if word & 1 << 6 == 0 {
                Right::Register((right & 15) as u8)
            } else {
                Right::Constant(i32::from(right as i16))
            },
        })
    }
}

/// Number and size of a register operand, if it is the low part of a general-purpose register.
fn low_bytes(insn: &Instruction, operand: u32) -> Option<(u8, u8)> {
    let register = insn.op_register(operand);
    let high = matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    );
    let fits = insn.op_kind(operand) == OpKind::Register && register.is_gpr() && !high;
    fits.then(|| {
        let number = register.full_register() as usize - Register::RAX as usize;
        (number as u8, register.size() as u8)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_all_of_a_recipe() {
        for operation in [
            Operation::Compare,
            Operation::Test,
            Operation::Added,
            Operation::Subtracted,
        ] {
            for size in [1, 2, 4, 8] {
                for right in [
                    Right::Register(15),
                    Right::Register(0),
                    Right::Constant(-1),
                    Right::Constant(0x7fff),
                ] {
                    let recipe = Recipe {
                        operation,
                        size,
                        left: 13,
                        right,
                    };
                    let word = recipe.word().expect("its constant is small");
                    assert_eq!(Recipe::from_word(word), Some(recipe));
                }
            }
        }
        let large = Recipe {
            operation: Operation::Compare,
            size: 8,
            left: 0,
            right: Right::Constant(0x8000),
        };
        assert_eq!(large.word(), None);
        for saved in [0x0000_0200, 0xffff_d701] {
            assert_eq!(Recipe::from_word(saved), None);
        }
    }
}
