//! The x87 in software (SDM volume 1, chapter 8). Everything is exact, but for the
//! transcendental instructions: their results are within 2 units of the last place of the
//! processors that they were compared with, and #P and C1 go with those results.

mod compare;
mod elementary;
mod fpu;
mod moves;
mod remainder;
mod transcendental;
mod wide;

use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind, Register};

use super::arithmetic as ar;
use super::float::{DOUBLE, Environment, Format, INDEFINITE, SINGLE, Value};
use crate::guest::Exception;
use crate::interpret::operand::next;
use crate::interpret::{Access, Context, address};
use fpu::Fpu;

type Done = Result<(), Exception>;

/// The number of a stack register operand.
fn stack_index(insn: &Instruction, operand: u32) -> usize {
    (insn.op_register(operand) as usize).wrapping_sub(Register::ST0 as usize) & 7
}

/// A number in memory: bytes as loaded, and what they are.
#[derive(Clone, Copy)]
struct Loaded {
    bytes: [u8; 16],
    size: MemorySize,
}

impl Loaded {
    fn of(cx: &mut Context<'_>, insn: &Instruction) -> Result<Loaded, Exception> {
        let size = insn.memory_size();
        let len = size.size().min(16);
        let at = address::linear(cx, insn, 0, len, Access::Read)?;
        let mut bytes = [0; 16];
        cx.load_bytes(at, &mut bytes[..len])?;
        Ok(Loaded { bytes, size })
    }

    fn word(&self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|index| self.bytes[index]))
    }

    /// The value of a single, a double or an integer.
    fn value(&self) -> Value {
        match self.size {
            MemorySize::Float32 => SINGLE.unpack(self.word() & 0xffff_ffff),
            MemorySize::Float64 => DOUBLE.unpack(self.word()),
            MemorySize::Int16 => Value::from_i64(i64::from(self.word() as u16 as i16)),
            MemorySize::Int32 => Value::from_i64(i64::from(self.word() as u32 as i32)),
            _ => Value::from_i64(self.word() as i64),
        }
    }
}

type Binary = fn(&mut Environment, Value, Value, Format) -> Value;

/// The operation of a mnemonic, whether its operands change places, and whether it pops.
fn binary(mnemonic: Mnemonic) -> Option<(Binary, bool, bool)> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Fadd | M::Fiadd => (ar::add as Binary, false, false),
        M::Faddp => (ar::add, false, true),
        M::Fmul | M::Fimul => (ar::multiply, false, false),
        M::Fmulp => (ar::multiply, false, true),
        M::Fsub | M::Fisub => (ar::subtract, false, false),
        M::Fsubp => (ar::subtract, false, true),
        M::Fsubr | M::Fisubr => (ar::subtract, true, false),
        M::Fsubrp => (ar::subtract, true, true),
        M::Fdiv | M::Fidiv => (ar::divide, false, false),
        M::Fdivp => (ar::divide, false, true),
        M::Fdivr | M::Fidivr => (ar::divide, true, false),
        M::Fdivrp => (ar::divide, true, true),
        _ => return None,
    })
}

fn arithmetic(cx: &mut Context<'_>, insn: &Instruction, how: (Binary, bool, bool)) -> Done {
    let (operate, reversed, pops) = how;
    let memory = insn.op0_kind() == OpKind::Memory;
    let loaded = if memory {
        Some(Loaded::of(cx, insn)?.value())
    } else {
        None
    };
    let mut fpu = Fpu::of(cx.cpu);
    let target = if memory { 0 } else { stack_index(insn, 0) };
    let first = fpu.value(target);
    let second = loaded.or_else(|| fpu.value(stack_index(insn, 1)));
    match (first, second) {
        (Some(first), Some(second)) => {
            let mut env = fpu.environment();
            let (a, b) = if reversed {
                (second, first)
            } else {
                (first, second)
            };
            let result = operate(&mut env, a, b, fpu.precision());
            if fpu.conclude(&env) {
                fpu.set_value(target, result);
                if pops {
                    fpu.pop();
                }
            }
        }
        _ => {
            if fpu.stack_fault(false) {
                fpu.set_value(target, INDEFINITE);
                if pops {
                    fpu.pop();
                }
            }
        }
    }
    next(cx, insn)
}

/// Executes an x87 instruction; `None` if it is none.
pub fn execute(cx: &mut Context<'_>, insn: &Instruction) -> Option<Done> {
    use Mnemonic as M;
    let mnemonic = insn.mnemonic();
    match mnemonic {
        M::Fninit
        | M::Fnclex
        | M::Fnstcw
        | M::Fnstsw
        | M::Fneni
        | M::Fndisi
        | M::Fnsetpm
        | M::Fstcw
        | M::Fstsw => {}
        _ => {
            if !insn.cpuid_features().iter().any(|feature| {
                use iced_x86::CpuidFeature as F;
                matches!(feature, F::FPU | F::FPU287 | F::FPU387)
            }) {
                return None;
            }
            if let Err(pending) = Fpu::of(cx.cpu).check_pending() {
                return Some(Err(pending));
            }
        }
    }
    if let Some(how) = binary(mnemonic) {
        return Some(arithmetic(cx, insn, how));
    }
    moves::execute(cx, insn)
        .or_else(|| compare::execute(cx, insn))
        .or_else(|| elementary::execute(cx, insn))
        .or_else(|| transcendental::execute(cx, insn))
}
