//! Operations on ST0 (and ST1) whose results are exact or correctly rounded.

use iced_x86::{Instruction, Mnemonic};

use super::fpu::{C1, C2, Fpu};
use super::remainder;
use super::{Done, moves::is_number};
use crate::interpret::Context;
use crate::interpret::operand::next;
use crate::interpret::soft::arithmetic::{nearest_integer, round_to_integer, square_root};
use crate::interpret::soft::float::{
    Class, EXTENDED, Environment, INDEFINITE, Rounding, Value, flag, pack_extended,
};

/// FCHS and FABS change the sign bit, whatever the rest is.
fn sign(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let mut fpu = Fpu::of(cx.cpu);
    if fpu.is_empty(0) {
        if fpu.stack_fault(false) {
            fpu.set_value(0, INDEFINITE);
        }
        return next(cx, insn);
    }
    let (significand, top) = fpu.raw(0);
    let top = if insn.mnemonic() == Mnemonic::Fchs {
        top ^ 0x8000
    } else {
        top & 0x7fff
    };
    fpu.set_raw(0, (significand, top));
    fpu.set_codes(C1, 0);
    next(cx, insn)
}

/// Replaces ST0 by a function of it.
pub fn replace(
    cx: &mut Context<'_>,
    insn: &Instruction,
    operate: impl Fn(&mut Environment, Value) -> Value,
) -> Done {
    let mut fpu = Fpu::of(cx.cpu);
    match fpu.value(0) {
        None => {
            if fpu.stack_fault(false) {
                fpu.set_value(0, INDEFINITE);
            }
        }
        Some(value) => {
            let mut env = fpu.environment();
            let result = operate(&mut env, value);
            if fpu.conclude(&env) {
                fpu.set_value(0, result);
            }
        }
    }
    next(cx, insn)
}

fn round(env: &mut Environment, value: Value) -> Value {
    if let Some(nan) = env.nan(value) {
        return nan;
    }
    env.note_denormal(value);
    round_to_integer(env, env.rounding, value)
}

/// ST0 times two to the power of ST1, truncated.
fn scale(env: &mut Environment, value: Value, by: Value) -> Value {
    if let Some(nan) = env.nans(value, by) {
        return nan;
    }
    let sign = value.sign;
    if by.class == Class::Infinite {
        let invalid = if by.sign {
            value.class == Class::Infinite
        } else {
            value.class == Class::Zero
        };
        if invalid {
            return env.invalid();
        }
    }
    env.note_denormal(value);
    env.note_denormal(by);
    match (value.class, by.class) {
        (Class::Zero | Class::Infinite, _) => return value,
        (_, Class::Infinite) if by.sign => return Value::zero(sign),
        (_, Class::Infinite) => return Value::infinity(sign),
        _ => {}
    }
    // More than any exponent needs; what is beyond overflows or vanishes all the same.
    const FAR: u128 = 0x1_0000;
    let magnitude = match nearest_integer(Rounding::Truncate, by) {
        Some((magnitude, ..)) => magnitude.min(FAR) as i32,
        None => FAR as i32,
    };
    let power = if by.sign { -magnitude } else { magnitude };
    let significand = u128::from(value.significand) << 64;
    env.finish(sign, value.exponent + power, significand, EXTENDED)
}

fn run_scale(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let mut fpu = Fpu::of(cx.cpu);
    match (fpu.value(0), fpu.value(1)) {
        (Some(value), Some(by)) => {
            let mut env = fpu.environment();
            let result = scale(&mut env, value, by);
            if fpu.conclude(&env) {
                fpu.set_value(0, result);
            }
        }
        _ => {
            if fpu.stack_fault(false) {
                fpu.set_value(0, INDEFINITE);
            }
        }
    }
    next(cx, insn)
}

/// FXTRACT: ST0 becomes its exponent, and its significand is pushed.
fn extract(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let mut fpu = Fpu::of(cx.cpu);
    let Some(value) = fpu.value(0) else {
        if fpu.stack_fault(false) {
            fpu.set_value(0, INDEFINITE);
            fpu.turn(7);
            fpu.set_value(0, INDEFINITE);
        }
        return next(cx, insn);
    };
    if !fpu.has_room() {
        if fpu.stack_fault(true) {
            fpu.set_value(0, INDEFINITE);
            fpu.turn(7);
            fpu.set_value(0, INDEFINITE);
        }
        return next(cx, insn);
    }
    let mut env = fpu.environment();
    let (exponent, significand) = match env.nan(value) {
        Some(nan) => (nan, nan),
        None => {
            if value.class == Class::Zero {
                env.raise(flag::ZERO_DIVIDE);
            }
            env.note_denormal(value);
            match value.class {
                Class::Zero => (Value::infinity(true), value),
                Class::Infinite => (Value::infinity(false), value),
                _ => (
                    Value::from_i64(i64::from(value.exponent)),
                    Value::finite(value.sign, 0, value.significand),
                ),
            }
        }
    };
    if fpu.conclude(&env) {
        fpu.set_value(0, exponent);
        fpu.turn(7);
        fpu.set_raw(0, pack_extended(significand));
    }
    next(cx, insn)
}

/// FPREM and FPREM1.
fn run_remainder(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let to_nearest = insn.mnemonic() == Mnemonic::Fprem1;
    let mut fpu = Fpu::of(cx.cpu);
    let (Some(a), Some(b)) = (fpu.value(0), fpu.value(1)) else {
        if fpu.stack_fault_complete(false) {
            fpu.set_value(0, INDEFINITE);
        }
        return next(cx, insn);
    };
    let mut env = fpu.environment();
    fpu.set_codes(C2, 0);
    let (result, codes) = remainder::remainder(&mut env, a, b, to_nearest);
    if fpu.conclude(&env) {
        fpu.set_value(0, result);
        if is_number(result) {
            fpu.set_codes(remainder::CODES, codes);
        }
    }
    next(cx, insn)
}

/// Executes one of these; `None` if it is none.
pub fn execute(cx: &mut Context<'_>, insn: &Instruction) -> Option<Done> {
    use Mnemonic as M;
    Some(match insn.mnemonic() {
        M::Fchs | M::Fabs => sign(cx, insn),
        M::Fsqrt => {
            let format = Fpu::of(cx.cpu).precision();
            replace(cx, insn, |env, value| square_root(env, value, format))
        }
        M::Frndint => replace(cx, insn, round),
        M::Fscale => run_scale(cx, insn),
        M::Fxtract => extract(cx, insn),
        M::Fprem | M::Fprem1 => run_remainder(cx, insn),
        _ => return None,
    })
}
