//! Addition, multiplication, division, square root, comparison and conversion to integers, on
//! unpacked numbers of any format.

use std::cmp::Ordering;

use super::float::{Class, Environment, Format, Rounding, Value, flag, shift_right_jam};

/// The sum.
pub fn add(env: &mut Environment, a: Value, b: Value, format: Format) -> Value {
    if let Some(nan) = env.nans(a, b) {
        return nan;
    }
    if a.class == Class::Infinite && b.class == Class::Infinite && a.sign != b.sign {
        return env.invalid();
    }
    env.note_denormal(a);
    env.note_denormal(b);
    match (a.class, b.class) {
        (Class::Infinite, _) => return a,
        (_, Class::Infinite) => return b,
        (Class::Zero, Class::Zero) => {
            let sign = if a.sign == b.sign {
                a.sign
            } else {
                env.rounding == Rounding::Down
            };
            return Value::zero(sign);
        }
        (Class::Zero, _) => return env.convert(b, format),
        (_, Class::Zero) => return env.convert(a, format),
        _ => {}
    }
    let smaller = (a.exponent, a.significand) < (b.exponent, b.significand);
    let (large, small) = if smaller { (b, a) } else { (a, b) };
    // One bit of room for the carry.
    let one = u128::from(large.significand) << 63;
    let other = u128::from(small.significand) << 63;
    let other = shift_right_jam(other, (large.exponent - small.exponent) as u32);
    let sum = if a.sign == b.sign {
        one + other
    } else {
        one - other
    };
    if sum == 0 {
        return Value::zero(env.rounding == Rounding::Down);
    }
    let lead = sum.leading_zeros();
    env.finish(
        large.sign,
        large.exponent + 1 - lead as i32,
        sum << lead,
        format,
    )
}

/// The difference.
pub fn subtract(env: &mut Environment, a: Value, b: Value, format: Format) -> Value {
    // A NaN keeps its sign.
    let b = if b.is_nan() { b } else { b.negated() };
    add(env, a, b, format)
}

/// The product.
pub fn multiply(env: &mut Environment, a: Value, b: Value, format: Format) -> Value {
    if let Some(nan) = env.nans(a, b) {
        return nan;
    }
    let sign = a.sign != b.sign;
    match (a.class, b.class) {
        (Class::Infinite, Class::Zero) | (Class::Zero, Class::Infinite) => return env.invalid(),
        _ => {}
    }
    env.note_denormal(a);
    env.note_denormal(b);
    match (a.class, b.class) {
        (Class::Infinite, _) | (_, Class::Infinite) => return Value::infinity(sign),
        (Class::Zero, _) | (_, Class::Zero) => return Value::zero(sign),
        _ => {}
    }
    let product = u128::from(a.significand) * u128::from(b.significand);
    let lead = product.leading_zeros();
    let exponent = a.exponent + b.exponent + 1 - lead as i32;
    env.finish(sign, exponent, product << lead, format)
}

/// The quotient.
pub fn divide(env: &mut Environment, a: Value, b: Value, format: Format) -> Value {
    if let Some(nan) = env.nans(a, b) {
        return nan;
    }
    let sign = a.sign != b.sign;
    match (a.class, b.class) {
        (Class::Infinite, Class::Infinite) | (Class::Zero, Class::Zero) => return env.invalid(),
        (Class::Finite, Class::Zero) => {
            env.raise(flag::ZERO_DIVIDE);
            return Value::infinity(sign);
        }
        _ => {}
    }
    env.note_denormal(a);
    env.note_denormal(b);
    match (a.class, b.class) {
        (Class::Infinite, _) => return Value::infinity(sign),
        (_, Class::Infinite) | (Class::Zero, _) => return Value::zero(sign),
        _ => {}
    }
    let quotient = quotient(a.significand, b.significand);
    let lead = quotient.leading_zeros();
    let exponent = a.exponent - b.exponent + 1 - lead as i32;
    env.finish(sign, exponent, quotient << lead, format)
}

/// 2 to the 126th times `a / b`, with the remainder in bit 0; both have bit 63 set.
fn quotient(a: u64, b: u64) -> u128 {
    let b = u128::from(b);
    let dividend = u128::from(a) << 63;
    let (high, rest) = (dividend / b, dividend % b);
    let dividend = rest << 63;
    let (low, rest) = (dividend / b, dividend % b);
    high << 63 | low | u128::from(rest != 0)
}

/// The square root.
pub fn square_root(env: &mut Environment, a: Value, format: Format) -> Value {
    if let Some(nan) = env.nan(a) {
        return nan;
    }
    match a.class {
        Class::Zero => return a,
        _ if a.sign => return env.invalid(),
        Class::Infinite => return a,
        _ => {}
    }
    env.note_denormal(a);
    // An even exponent, and a radicand whose root has 64 bits.
    let odd = a.exponent & 1;
    let radicand = u128::from(a.significand) << (63 + odd);
    let root = radicand.isqrt();
    let rest = radicand - root * root;
    // The root is never exactly half-way between two numbers of 64 bits.
    let half = u128::from(rest > root) << 63;
    let significand = root << 64 | half | u128::from(rest != 0);
    env.finish(false, (a.exponent - odd) / 2, significand, format)
}

/// The order of two numbers that are not NaN.
pub fn order(a: Value, b: Value) -> Ordering {
    let key = |value: Value| {
        let magnitude = match value.class {
            Class::Zero => (0, 0, 0),
            Class::Infinite => (2, 0, 0),
            _ => (1, value.exponent, value.significand),
        };
        (value.sign && value.class != Class::Zero, magnitude)
    };
    let ((a_negative, a), (b_negative, b)) = (key(a), key(b));
    match (a_negative, b_negative) {
        (false, false) => a.cmp(&b),
        (true, true) => b.cmp(&a),
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
    }
}

/// Compares; `None` is unordered. A QNaN is invalid if `signaling`.
pub fn compare(env: &mut Environment, a: Value, b: Value, signaling: bool) -> Option<Ordering> {
    let classes = [a.class, b.class];
    if classes.contains(&Class::Signaling) || classes.contains(&Class::Unsupported) {
        env.raise(flag::INVALID);
        return None;
    }
    if classes.contains(&Class::Quiet) {
        if signaling {
            env.raise(flag::INVALID);
        }
        return None;
    }
    env.note_denormal(a);
    env.note_denormal(b);
    Some(order(a, b))
}

/// The nearest integer by the rounding mode, as sign and magnitude, and whether it is exact and
/// was rounded away from zero. `None`: its magnitude needs more than 64 bits, or it is no number.
pub fn nearest_integer(rounding: Rounding, value: Value) -> Option<(u128, bool, bool)> {
    match value.class {
        Class::Zero => return Some((0, false, false)),
        Class::Finite if value.exponent < 64 => {}
        _ => return None,
    }
    let wide = u128::from(value.significand) << 64;
    let shift = (127 - value.exponent) as u32;
    let (whole, rest) = if shift < 128 {
        (wide >> shift, wide << (128 - shift))
    } else {
        (0, shift_right_jam(wide, shift - 128))
    };
    let up = rounding.away(value.sign, whole & 1 != 0, rest, 1 << 127);
    Some((whole + u128::from(up), rest != 0, up))
}

/// The nearest integer of `bits` bits in two's complement; the integer indefinite if there is
/// none.
pub fn to_integer(env: &mut Environment, rounding: Rounding, value: Value, bits: u32) -> u64 {
    let limit = 1u128 << (bits - 1);
    match nearest_integer(rounding, value) {
        Some((magnitude, inexact, up))
            if magnitude < limit || (value.sign && magnitude == limit) =>
        {
            if inexact {
                env.raise(flag::INEXACT);
            }
            env.up = up;
            let magnitude = magnitude as u64;
            let result = if value.sign {
                magnitude.wrapping_neg()
            } else {
                magnitude
            };
            result & (u64::MAX >> (64 - bits))
        }
        _ => {
            env.raise(flag::INVALID);
            limit as u64
        }
    }
}

/// The value rounded to an integer that is a number of the same format.
pub fn round_to_integer(env: &mut Environment, rounding: Rounding, value: Value) -> Value {
    if value.class != Class::Finite || value.exponent >= 63 {
        return value;
    }
    let (magnitude, inexact, up) = nearest_integer(rounding, value).unwrap_or((0, false, false));
    if inexact {
        env.raise(flag::INEXACT);
    }
    env.up = up;
    if magnitude == 0 {
        return Value::zero(value.sign);
    }
    let lead = magnitude.leading_zeros();
    let significand = (magnitude << lead >> 64) as u64;
    Value::finite(value.sign, 127 - lead as i32, significand)
}
