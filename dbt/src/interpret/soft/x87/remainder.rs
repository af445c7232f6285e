//! FPREM and FPREM1: exact remainders, 63 bits of the quotient at a time at the most
//! (SDM volume 2, FPREM).

use super::fpu::{C0, C1, C2, C3};
use crate::interpret::soft::float::{Class, EXTENDED, Environment, Value};

/// The condition codes that a remainder sets.
pub const CODES: u16 = C0 | C1 | C2 | C3;

/// The lowest bits of the quotient in C0, C3, C1.
fn quotient_codes(quotient: u64) -> u16 {
    let bit = |index: u64, code| if quotient >> index & 1 != 0 { code } else { 0 };
    bit(2, C0) | bit(1, C3) | bit(0, C1)
}

/// The remainder (or a step towards it, with C2 set), and the condition codes.
pub fn remainder(env: &mut Environment, a: Value, b: Value, to_nearest: bool) -> (Value, u16) {
    if let Some(nan) = env.nans(a, b) {
        return (nan, 0);
    }
    if a.class == Class::Infinite || b.class == Class::Zero {
        return (env.invalid(), 0);
    }
    env.note_denormal(a);
    env.note_denormal(b);
    if a.class == Class::Zero || b.class == Class::Infinite {
        let exact = exact(env, a);
        return (exact, 0);
    }
    let apart = a.exponent - b.exponent;
    if apart >= 64 {
        let step = (apart & 31 | 32) as u32;
        let (rest, _) = reduce(a.significand, b.significand, step);
        let rest = normal(env, a.sign, a.exponent - step as i32, rest);
        return (rest, C2);
    }
    if apart < -1 || apart < 0 && !to_nearest {
        return (exact(env, a), 0);
    }
    // With `apart` of -1 everything is in units of a's last place.
    let (rest, mut quotient, divisor, exponent) = if apart < 0 {
        let divisor = u128::from(b.significand) << 1;
        (u128::from(a.significand), 0, divisor, a.exponent)
    } else {
        let (rest, quotient) = reduce(a.significand, b.significand, apart as u32);
        (rest, quotient, u128::from(b.significand), b.exponent)
    };
    let (mut rest, mut sign) = (rest, a.sign);
    if to_nearest {
        let double = rest << 1;
        if double > divisor || double == divisor && quotient & 1 != 0 {
            rest = divisor - rest;
            sign = !sign;
            quotient = quotient.wrapping_add(1);
        }
    }
    (normal(env, sign, exponent, rest), quotient_codes(quotient))
}

/// The remainder of `a * 2^shift` by `b`, and the low bits of the quotient.
fn reduce(a: u64, b: u64, shift: u32) -> (u128, u64) {
    let b = u128::from(b);
    let mut rest = u128::from(a);
    let mut quotient = 0u64;
    for step in 0..=shift {
        if step > 0 {
            rest <<= 1;
            quotient <<= 1;
        }
        if rest >= b {
            rest -= b;
            quotient |= 1;
        }
    }
    (rest, quotient)
}

/// A value as the result of a remainder, denormal or not.
fn exact(env: &mut Environment, value: Value) -> Value {
    match value.class {
        Class::Finite => {
            let significand = u128::from(value.significand) << 64;
            env.finish(value.sign, value.exponent, significand, EXTENDED)
        }
        _ => value,
    }
}

/// A rest of up to 65 bits, in units of 2^-63 of 2^exponent.
fn normal(env: &mut Environment, sign: bool, exponent: i32, rest: u128) -> Value {
    if rest == 0 {
        return Value::zero(sign);
    }
    let lead = rest.leading_zeros();
    env.finish(sign, exponent + 64 - lead as i32, rest << lead, EXTENDED)
}
