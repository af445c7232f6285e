//! Recipes followed in emitted code: one or two host instructions leave the same flags.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Code, Instruction, MemoryOperand, Register};

use super::emitter::Emitter;
use super::encoded::Encoded;
use super::registers::{T2, sized};
use crate::record::recipe::{Operation, Recipe, Value};
use crate::run::at;

impl Emitter<'_> {
    /// The flags of a recipe into EFLAGS. Uses T2 only.
    pub(super) fn recompute(&mut self, recipe: Recipe) {
        let size = usize::from(recipe.size);
        let (left, right) = (recipe.left, recipe.right);
        let t2 = Self::scratch(T2);
        let codes = match recipe.operation {
            Operation::Compare | Operation::Test => {
                let left = self.pinned_value(left).unwrap_or_else(|| {
                    self.load_value(left);
                    t2
                });
                let codes = if recipe.operation == Operation::Compare {
                    &COMPARE
                } else {
                    &TEST
                };
                return self.operate(codes, left, right, size);
            }
            Operation::Added => {
                // What it was before goes to T2.
                match (self.pinned_value(left), right) {
                    (Some(left), Value::Constant(value)) if value != i32::MIN => {
                        dynasm!(self.ops ; .arch x64 ; lea r8, [Rq(left) - value]);
                    }
                    _ => {
                        self.load_value(left);
                        self.operate(&SUBTRACT, t2, right, 8);
                    }
                }
                &ADD
            }
            Operation::Subtracted => {
                match (self.pinned_value(left), right, self.pinned_value(right)) {
                    (Some(left), Value::Constant(value), _) => {
                        dynasm!(self.ops ; .arch x64 ; lea r8, [Rq(left) + value]);
                    }
                    (Some(left), _, Some(right)) => {
                        dynasm!(self.ops ; .arch x64 ; lea r8, [Rq(left) + Rq(right)]);
                    }
                    _ => {
                        self.load_value(left);
                        self.operate(&ADD, t2, right, 8);
                    }
                }
                &COMPARE
            }
            Operation::Incremented | Operation::Decremented => {
                self.load_value(left);
                dynasm!(self.ops ; .arch x64 ; gs bt DWORD [at::STASH], 0);
                let up = recipe.operation == Operation::Incremented;
                let back = if up { -1 } else { 1 };
                dynasm!(self.ops ; .arch x64 ; lea r8, [r8 + back]);
                match (up, size) {
                    (true, 1) => dynasm!(self.ops ; .arch x64 ; inc r8b),
                    (true, 2) => dynasm!(self.ops ; .arch x64 ; inc r8w),
                    (true, 4) => dynasm!(self.ops ; .arch x64 ; inc r8d),
                    (true, _) => dynasm!(self.ops ; .arch x64 ; inc r8),
                    (false, 1) => dynasm!(self.ops ; .arch x64 ; dec r8b),
                    (false, 2) => dynasm!(self.ops ; .arch x64 ; dec r8w),
                    (false, 4) => dynasm!(self.ops ; .arch x64 ; dec r8d),
                    (false, _) => dynasm!(self.ops ; .arch x64 ; dec r8),
                }
                return;
            }
            Operation::Negated => {
                self.load_value(left);
                dynasm!(self.ops ; .arch x64 ; neg r8);
                match size {
                    1 => dynasm!(self.ops ; .arch x64 ; neg r8b),
                    2 => dynasm!(self.ops ; .arch x64 ; neg r8w),
                    4 => dynasm!(self.ops ; .arch x64 ; neg r8d),
                    _ => dynasm!(self.ops ; .arch x64 ; neg r8),
                }
                return;
            }
            Operation::ShiftLeft => {
                self.load_value(left);
                &SHIFT_LEFT
            }
            Operation::ShiftRight => {
                self.load_value(left);
                &SHIFT_RIGHT
            }
            Operation::ShiftArithmetic => {
                self.load_value(left);
                &SHIFT_ARITHMETIC
            }
        };
        self.operate(codes, t2, right, size);
    }

    /// The host register of a recipe's operand.
    fn pinned_value(&self, value: Value) -> Option<u8> {
        match value {
            Value::Register(guest) => self.places.pinned(guest.into()),
            Value::Constant(_) | Value::Stash | Value::Second => None,
        }
    }

    /// Loads an operand of a recipe, 64 bits of it, into T2.
    fn load_value(&mut self, value: Value) {
        match value {
            Value::Register(guest) => self.load_guest(T2, guest.into()),
            Value::Stash => dynasm!(self.ops ; .arch x64 ; gs mov r8, [at::STASH]),
            Value::Second => dynasm!(self.ops ; .arch x64 ; gs mov r8, [at::SECOND]),
            Value::Constant(value) => dynasm!(self.ops ; .arch x64 ; mov r8, DWORD value),
        }
    }

    /// One of [`COMPARE`] and its like on a host register and a recipe's second operand.
    fn operate(&mut self, codes: &Codes, left: u8, right: Value, size: usize) {
        let row = size.trailing_zeros() as usize;
        let left = sized(left, size);
        let place = |at: i32| {
            let (none, at) = (Register::None, i64::from(at));
            MemoryOperand::new(none, none, 1, at, 8, false, Register::GS)
        };
        let with_memory = |place: MemoryOperand| {
            if codes.memory_first {
                Instruction::with2(codes.register[row], place, left)
            } else {
                Instruction::with2(codes.register[row], left, place)
            }
        };
        let insn = match right {
            Value::Constant(value) => {
                let near = codes.near.filter(|_| i8::try_from(value).is_ok());
                Instruction::with2(near.unwrap_or(codes.constant)[row], left, value)
            }
            Value::Stash => with_memory(place(at::STASH)),
            Value::Second => with_memory(place(at::SECOND)),
            Value::Register(right) => match self.places.pinned(right.into()) {
                Some(right) => Instruction::with2(codes.register[row], left, sized(right, size)),
                None => with_memory(place(self.places.slot(right.into()))),
            },
        };
        let encoded: Encoded = insn
            .ok()
            .and_then(|insn| self.encode(&insn).ok())
            .expect("host registers and constants of the operand's size can be encoded");
        self.put(&encoded);
    }
}

/// The encodings of an operation, by the size of its operands.
struct Codes {
    /// With a register or memory.
    register: [Code; 4],
    /// With a constant.
    constant: [Code; 4],
    /// With a constant of a byte.
    near: Option<[Code; 4]>,
    /// A memory operand is the first one.
    memory_first: bool,
}

impl Codes {
    /// Of a shift: by a constant only.
    const fn shift(constant: [Code; 4]) -> Codes {
        Codes {
            register: constant,
            constant,
            near: None,
            memory_first: false,
        }
    }
}

const COMPARE: Codes = Codes {
    register: [
        Code::Cmp_r8_rm8,
        Code::Cmp_r16_rm16,
        Code::Cmp_r32_rm32,
        Code::Cmp_r64_rm64,
    ],
    constant: [
        Code::Cmp_rm8_imm8,
        Code::Cmp_rm16_imm16,
        Code::Cmp_rm32_imm32,
        Code::Cmp_rm64_imm32,
    ],
    near: Some([
        Code::Cmp_rm8_imm8,
        Code::Cmp_rm16_imm8,
        Code::Cmp_rm32_imm8,
        Code::Cmp_rm64_imm8,
    ]),
    memory_first: false,
};

const TEST: Codes = Codes {
    register: [
        Code::Test_rm8_r8,
        Code::Test_rm16_r16,
        Code::Test_rm32_r32,
        Code::Test_rm64_r64,
    ],
    constant: [
        Code::Test_rm8_imm8,
        Code::Test_rm16_imm16,
        Code::Test_rm32_imm32,
        Code::Test_rm64_imm32,
    ],
    near: None,
    memory_first: true,
};

const ADD: Codes = Codes {
    register: [
        Code::Add_r8_rm8,
        Code::Add_r16_rm16,
        Code::Add_r32_rm32,
        Code::Add_r64_rm64,
    ],
    constant: [
        Code::Add_rm8_imm8,
        Code::Add_rm16_imm16,
        Code::Add_rm32_imm32,
        Code::Add_rm64_imm32,
    ],
    near: Some([
        Code::Add_rm8_imm8,
        Code::Add_rm16_imm8,
        Code::Add_rm32_imm8,
        Code::Add_rm64_imm8,
    ]),
    memory_first: false,
};

const SUBTRACT: Codes = Codes {
    register: [
        Code::Sub_r8_rm8,
        Code::Sub_r16_rm16,
        Code::Sub_r32_rm32,
        Code::Sub_r64_rm64,
    ],
    constant: [
        Code::Sub_rm8_imm8,
        Code::Sub_rm16_imm16,
        Code::Sub_rm32_imm32,
        Code::Sub_rm64_imm32,
    ],
    near: Some([
        Code::Sub_rm8_imm8,
        Code::Sub_rm16_imm8,
        Code::Sub_rm32_imm8,
        Code::Sub_rm64_imm8,
    ]),
    memory_first: false,
};

const SHIFT_LEFT: Codes = Codes::shift([
    Code::Shl_rm8_imm8,
    Code::Shl_rm16_imm8,
    Code::Shl_rm32_imm8,
    Code::Shl_rm64_imm8,
]);

const SHIFT_RIGHT: Codes = Codes::shift([
    Code::Shr_rm8_imm8,
    Code::Shr_rm16_imm8,
    Code::Shr_rm32_imm8,
    Code::Shr_rm64_imm8,
]);

const SHIFT_ARITHMETIC: Codes = Codes::shift([
    Code::Sar_rm8_imm8,
    Code::Sar_rm16_imm8,
    Code::Sar_rm32_imm8,
    Code::Sar_rm64_imm8,
]);
