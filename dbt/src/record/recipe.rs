//! Flags that can be computed anew, because what they were computed from is still there. Code
//! that lets a TLB compare spoil such flags need not save them first.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use serde::{Deserialize, Serialize};

use crate::guest::CpuState;
use crate::guest::flags::CF;
use crate::interpret::integer::{flags, shift};
use crate::interpret::operand::size_mask;

/// What set the flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Operation {
    /// left - right was computed and dropped.
    Compare,
    /// left & right was computed, and dropped if they differ.
    Test,
    /// left is a sum, of which right is one part.
    Added,
    /// left is a difference, to which right has to be added to have what it was.
    Subtracted,
    /// left was shifted left by a constant.
    ShiftLeft,
    /// left was shifted right by a constant, zeros coming in.
    ShiftRight,
    /// left was shifted right by a constant, its sign coming in.
    ShiftArithmetic,
    /// left was increased by 1; CF is the lowest bit of right.
    Incremented,
    /// left was decreased by 1; CF is the lowest bit of right.
    Decremented,
    /// left was negated.
    Negated,
}

impl Operation {
    /// All, in the order of their numbers in words.
    pub const ALL: [Operation; 10] = [
        Operation::Compare,
        Operation::Test,
        Operation::Added,
        Operation::Subtracted,
        Operation::ShiftLeft,
        Operation::ShiftRight,
        Operation::ShiftArithmetic,
        Operation::Incremented,
        Operation::Decremented,
        Operation::Negated,
    ];
}

/// An operand of a recipe.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Value {
    /// The low bytes of a general-purpose register.
    Register(u8),
    /// A number, sign-extended.
    Constant(i32),
    /// What the instruction has put into `exchange.stash`, because it would be lost otherwise.
    Stash,
    /// What sealing the recipe has put into `exchange.second`.
    Second,
}

/// How all six arithmetic flags follow from registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Recipe {
    /// The operation.
    pub operation: Operation,
    /// Bytes of the operands.
    pub size: u8,
    /// The first operand: no constant.
    pub left: Value,
    /// The second operand; the count of shifts.
    pub right: Value,
}

/// In the place where saved flags are, this bit says that a recipe is there instead of flags,
/// whose lowest byte is 0 or 1.
pub const MARK: u32 = 2;
/// Kinds of second operands in the word of a recipe.
const REGISTER: u32 = 0;
const CONSTANT: u32 = 1;
const STASH: u32 = 2;
/// A constant that stands in `exchange.constant`.
const FAR: u32 = 3;
/// Of the kinds: what is not in the word itself.
pub const RIGHT_KEPT: u32 = STASH;
/// The constant that is not.
pub const RIGHT_FAR: u32 = FAR;
/// The lowest bit of the operation's number in a word.
pub const OPERATION_AT: u32 = 2;
/// The lowest bit of the first operand's.
pub const LEFT_AT: u32 = 10;
/// In the place of a register's number in a recipe's word: none of the sixteen.
const IN_STASH: u32 = 16;
/// Another.
pub const IN_SECOND: u32 = 17;

/// What a recipe finds beside the registers.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// `exchange.stash`.
    pub stash: u64,
    /// `exchange.second`.
    pub second: u64,
}

impl Recipe {
    /// The flags that an instruction leaves, if they follow from what it leaves in registers.
    pub fn of(insn: &Instruction) -> Option<Recipe> {
        let (left, size) = low_bytes(insn, 0)?;
        if insn.mnemonic() == Mnemonic::Neg {
            return Some(Recipe {
                operation: Operation::Negated,
                size,
                left,
                right: left,
            });
        }
        if insn.op_count() != 2 {
            return None;
        }
        let right = second(insn, size);
        let itself = left;
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

    /// The flags that an instruction on registers leaves, if what its first operand was is
    /// stashed.
    pub fn with_old_value(insn: &Instruction) -> Option<Recipe> {
        let (_, size) = low_bytes(insn, 0)?;
        let operation = match insn.mnemonic() {
            Mnemonic::Shl | Mnemonic::Sal => Operation::ShiftLeft,
            Mnemonic::Shr => Operation::ShiftRight,
            Mnemonic::Sar => Operation::ShiftArithmetic,
            _ => return None,
        };
        let count = insn.op1_kind() == OpKind::Immediate8;
        let count = count.then(|| insn.immediate8() & if size == 8 { 63 } else { 31 })?;
        (count != 0).then_some(Recipe {
            operation,
            size,
            left: Value::Stash,
            right: Value::Constant(count.into()),
        })
    }

    /// The flags that an instruction on a register leaves, if CF, which it keeps, is stashed.
    pub fn with_carry(insn: &Instruction) -> Option<Recipe> {
        let (left, size) = low_bytes(insn, 0)?;
        let operation = match insn.mnemonic() {
            Mnemonic::Inc => Operation::Incremented,
            Mnemonic::Dec => Operation::Decremented,
            _ => return None,
        };
        Some(Recipe {
            operation,
            size,
            left,
            right: Value::Stash,
        })
    }

    /// The flags that an instruction leaves, if what it has read from memory is stashed.
    pub fn with_memory(insn: &Instruction) -> Option<Recipe> {
        let size = match insn.memory_size().size() {
            size @ (1 | 2 | 4 | 8) if insn.op_count() == 2 => size as u8,
            _ => return None,
        };
        let operand = |index| match insn.op_kind(index) {
            OpKind::Memory => Some(Value::Stash),
            OpKind::Register => low_bytes(insn, index).map(|(register, _)| register),
            _ => second(insn, size),
        };
        let left = operand(0)?;
        let operation = match insn.mnemonic() {
            Mnemonic::Cmp => Operation::Compare,
            Mnemonic::Test => Operation::Test,
            Mnemonic::Add if left != Value::Stash => Operation::Added,
            Mnemonic::Sub if left != Value::Stash => Operation::Subtracted,
            _ => return None,
        };
        Some(Recipe {
            operation,
            size,
            left,
            right: operand(1)?,
        })
    }

    /// The flags that a read-modify-write leaves, if its result is stashed.
    pub fn with_result(insn: &Instruction) -> Option<Recipe> {
        let size = match insn.memory_size().size() {
            size @ (1 | 2 | 4 | 8) if insn.op_count() == 2 => size as u8,
            _ => return None,
        };
        if insn.op0_kind() != OpKind::Memory {
            return None;
        }
        let left = Value::Stash;
        let (operation, right) = match insn.mnemonic() {
            Mnemonic::And | Mnemonic::Or | Mnemonic::Xor => (Operation::Test, left),
            Mnemonic::Add => (Operation::Added, second(insn, size)?),
            Mnemonic::Sub => (Operation::Subtracted, second(insn, size)?),
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
        let bit = |value| match value {
            Value::Register(register) => 1 << register,
            Value::Constant(_) | Value::Stash | Value::Second => 0,
        };
        bit(self.left) | bit(self.right)
    }

    /// The recipe for the same flags that needs no register, and the registers that have to be put
    /// into the stash and into `exchange.second` for it.
    pub fn sealed(self) -> (Recipe, [Option<u8>; 2]) {
        let mut sealed = self;
        let mut put = [None, None];
        let mut next = usize::from(self.left == Value::Stash || self.right == Value::Stash);
        for value in [&mut sealed.left, &mut sealed.right] {
            let Value::Register(register) = *value else {
                continue;
            };
            let known = put.iter().position(|&there| there == Some(register));
            let place = known.unwrap_or(next);
            next = place.max(next) + usize::from(known.is_none());
            put[place] = Some(register);
            *value = [Value::Stash, Value::Second][place];
        }
        (sealed, put)
    }

    /// The flags.
    pub fn flags(self, cpu: &CpuState, kept: Kept) -> u64 {
        let size = usize::from(self.size);
        let value = |value| match value {
            Value::Register(register) => cpu.gpr[usize::from(register)],
            Value::Constant(value) => i64::from(value) as u64,
            Value::Stash => kept.stash,
            Value::Second => kept.second,
        };
        let (left, right) = (value(self.left), value(self.right));
        // Of shifts only: in a word that is a recipe the count is never 0 nor above 63.
        let count = (right as u32 & 63).max(1);
        match self.operation {
            Operation::Compare => flags::sub(left, right, 0, size).1,
            Operation::Test => flags::logic(left & right, size).1,
            Operation::Added => flags::add(left.wrapping_sub(right), right, 0, size).1,
            Operation::Subtracted => flags::sub(left.wrapping_add(right), right, 0, size).1,
            Operation::ShiftLeft => shift::left(left & size_mask(size), count, size).1,
            Operation::ShiftRight => shift::right(left & size_mask(size), count, size).1,
            Operation::ShiftArithmetic => shift::arithmetic(left, count, size).1,
            Operation::Incremented => {
                flags::add(left.wrapping_sub(1), 1, 0, size).1 & !CF | right & CF
            }
            Operation::Decremented => {
                flags::sub(left.wrapping_add(1), 1, 0, size).1 & !CF | right & CF
            }
            Operation::Negated => flags::sub(0, left.wrapping_neg(), 0, size).1,
        }
    }

    /// As a word that stands where saved flags would, and the constant that it wants in
    /// `exchange.constant`.
    pub fn word(self) -> (u32, Option<i32>) {
        let (kind, right, far) = match self.right {
            Value::Register(right) => (REGISTER, u32::from(right), None),
            Value::Second => (REGISTER, IN_SECOND, None),
            Value::Constant(value) => match i16::try_from(value) {
                Ok(near) => (CONSTANT, u32::from(near as u16), None),
                Err(_) => (FAR, 0, Some(value)),
            },
            Value::Stash => (STASH, 0, None),
        };
        let left = match self.left {
            Value::Register(left) => u32::from(left),
            Value::Second => IN_SECOND,
            Value::Constant(_) | Value::Stash => IN_STASH,
        };
        let operation = self.operation as u32;
        let size = u32::from(self.size).trailing_zeros();
        let word = MARK
            | operation << OPERATION_AT
            | size << 6
            | kind << 8
            | left << LEFT_AT
            | right << 16;
        (word, far)
    }

    /// The recipe that stands where saved flags would, if it is one.
    pub fn from_word(word: u32, constant: i32) -> Option<Recipe> {
        if word & MARK == 0 {
            return None;
        }
        let right = (word >> 16) as u16;
        Some(Recipe {
            operation: *Operation::ALL.get((word >> OPERATION_AT & 15) as usize)?,
            size: 1 << (word >> 6 & 3),
            left: register_or_kept(word >> LEFT_AT),
            right: match word >> 8 & 3 {
                REGISTER => register_or_kept(right.into()),
                CONSTANT => Value::Constant(i32::from(right as i16)),
                STASH => Value::Stash,
                _ => Value::Constant(constant),
            },
        })
    }
}

/// An operand's number in a word: its five lowest bits count.
fn register_or_kept(number: u32) -> Value {
    match number & 31 {
        register @ ..=15 => Value::Register(register as u8),
        IN_SECOND => Value::Second,
        _ => Value::Stash,
    }
}

/// The second operand, if it is a register or an immediate.
fn second(insn: &Instruction, size: u8) -> Option<Value> {
    match insn.op1_kind() {
        OpKind::Register => low_bytes(insn, 1).map(|(right, _)| right),
        _ => {
            let value = insn.try_immediate(1).ok()?;
            Some(Value::Constant(match size {
                1 => i32::from(value as i8),
                2 => i32::from(value as i16),
                _ => value as i32,
            }))
        }
    }
}

/// A register operand and its size, if it is the low part of a general-purpose register.
fn low_bytes(insn: &Instruction, operand: u32) -> Option<(Value, u8)> {
    let register = insn.op_register(operand);
    let high = matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    );
    let fits = insn.op_kind(operand) == OpKind::Register && register.is_gpr() && !high;
    fits.then(|| {
        let number = register.full_register() as usize - Register::RAX as usize;
        (Value::Register(number as u8), register.size() as u8)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_all_of_a_recipe() {
        for operation in Operation::ALL {
            for size in [1, 2, 4, 8] {
                for right in [
                    Value::Register(15),
                    Value::Register(0),
                    Value::Constant(-1),
                    Value::Constant(0x7fff),
                    Value::Constant(0x8000),
                    Value::Constant(i32::MIN),
                    Value::Stash,
                    Value::Second,
                ] {
                    for left in [
                        Value::Register(0),
                        Value::Register(15),
                        Value::Stash,
                        Value::Second,
                    ] {
                        let recipe = Recipe {
                            operation,
                            size,
                            left,
                            right,
                        };
                        let (word, constant) = recipe.word();
                        let constant = constant.unwrap_or(0x1234_5678);
                        assert_eq!(Recipe::from_word(word, constant), Some(recipe));
                    }
                }
            }
        }
        for saved in [0x0000_0200, 0xffff_d701] {
            assert_eq!(Recipe::from_word(saved, 0), None);
        }
    }

    #[test]
    fn a_sealed_recipe_gives_the_same_flags_without_registers() {
        let mut cpu = CpuState::default();
        for (number, value) in cpu.gpr.iter_mut().enumerate() {
            *value = 0x8123_4567_89ab_cdefu64.rotate_left(number as u32 * 7);
        }
        let stash = 0x7fed_cba9_8765_4321;
        let values = [
            Value::Register(3),
            Value::Register(11),
            Value::Constant(5),
            Value::Stash,
        ];
        for operation in Operation::ALL {
            for left in values
                .into_iter()
                .filter(|&left| left != Value::Constant(5))
            {
                for right in values {
                    let recipe = Recipe {
                        operation,
                        size: 4,
                        left,
                        right,
                    };
                    let expected = recipe.flags(&cpu, Kept { stash, second: 0 });
                    let (sealed, put) = recipe.sealed();
                    assert_eq!(sealed.registers(), 0);
                    let value = |place: usize, other| {
                        put[place].map_or(other, |register| cpu.gpr[usize::from(register)])
                    };
                    let kept = Kept {
                        stash: value(0, stash),
                        second: value(1, 0),
                    };
                    let none = CpuState::default();
                    assert_eq!(sealed.flags(&none, kept), expected, "{recipe:?}");
                }
            }
        }
    }
}
