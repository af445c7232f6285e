//! F2XM1, FYL2X, FYL2XP1, FSIN, FCOS, FSINCOS, FPTAN and FPATAN, by series with 128 bits.
//! Angles are reduced by the 66-bit value of pi that processors use (SDM volume 1, 8.3.8), so
//! results agree with theirs for large angles too.

use std::sync::LazyLock;

use iced_x86::{Instruction, Mnemonic};

use super::Done;
use super::elementary::replace;
use super::fpu::{C2, Fpu};
use super::wide::{LN_2, ONE, PI, Wide, ZERO};
use crate::interpret::Context;
use crate::interpret::operand::next;
use crate::interpret::soft::float::{Class, Environment, INDEFINITE, Value, flag, pack_extended};

/// Terms this much smaller than the sum no longer count.
const ENOUGH: i32 = 126;

fn one(sign: bool) -> Value {
    Value::finite(sign, 0, 1 << 63)
}

/// Sums a series: each term is made from the previous one and its number.
fn series(first: Wide, mut next: impl FnMut(Wide, u32) -> Wide) -> Wide {
    let (mut sum, mut term) = (first, first);
    for number in 1..200 {
        term = next(term, number);
        if term.is_zero() || term.exponent < sum.exponent - ENOUGH {
            break;
        }
        sum = sum.add(term);
    }
    sum
}

/// 2^x - 1.
fn exp2_minus_1(env: &mut Environment, value: Value) -> Value {
    if let Some(nan) = env.nan(value) {
        return nan;
    }
    env.note_denormal(value);
    match value.class {
        Class::Zero => return value,
        Class::Infinite if value.sign => return one(true),
        Class::Infinite => return value,
        // Beyond 1 the result is undefined.
        _ if value.exponent > 0 => return value,
        _ => {}
    }
    if value.exponent == 0 && value.significand == 1 << 63 {
        let half = Value::finite(true, -1, 1 << 63);
        return if value.sign { half } else { one(false) };
    }
    let t = Wide::of(value).multiply(LN_2);
    let sum = series(t, |term, number| term.multiply(t).divide_small(number + 1));
    sum.round(env, false)
}

/// Twice the inverse hyperbolic tangent over ln 2: the logarithm to base 2 of (1+z)/(1-z).
fn log2_of_ratio(z: Wide) -> Wide {
    let square = z.multiply(z);
    let mut power = z;
    let mut sum = z;
    for number in 1..200u32 {
        power = power.multiply(square);
        let term = power.divide_small(2 * number + 1);
        if term.is_zero() || term.exponent < sum.exponent - ENOUGH {
            break;
        }
        sum = sum.add(term);
    }
    sum.scaled(1).divide(LN_2)
}

/// The logarithm to base 2 of a positive number, and whether it is exact.
fn log2(value: Value) -> (Wide, bool) {
    const ROOT_2: u64 = 0xb504_f333_f9de_6484;
    let above = value.significand > ROOT_2;
    let exponent = value.exponent + i32::from(above);
    let whole = Wide::from_i64(i64::from(exponent));
    if value.significand == 1 << 63 {
        return (whole, true);
    }
    let rest = Wide {
        exponent: -i32::from(above),
        ..Wide::of(value)
    };
    let z = rest.subtract(ONE).divide(rest.add(ONE));
    (whole.add(log2_of_ratio(z)), false)
}

/// ST1 * log2(ST0).
fn y_log2_x(env: &mut Environment, y: Value, x: Value) -> Value {
    if let Some(nan) = env.nans(x, y) {
        return nan;
    }
    let negative = x.sign && x.class != Class::Zero;
    if negative {
        return env.invalid();
    }
    let unit = x.class == Class::Finite && x.exponent == 0 && x.significand == 1 << 63;
    let below_one = x.class == Class::Zero || x.class == Class::Finite && x.exponent < 0;
    match (x.class, y.class) {
        (Class::Zero, Class::Zero) | (Class::Infinite, Class::Zero) => return env.invalid(),
        (Class::Finite, Class::Infinite) if unit => return env.invalid(),
        (Class::Zero, Class::Finite) => {
            env.raise(flag::ZERO_DIVIDE);
            return Value::infinity(!y.sign);
        }
        _ => {}
    }
    env.note_denormal(x);
    env.note_denormal(y);
    match (x.class, y.class) {
        (_, Class::Infinite) | (Class::Infinite, _) => {
            return Value::infinity(y.sign != below_one);
        }
        (_, Class::Zero) => return Value::zero(y.sign != below_one),
        _ if unit => return Value::zero(y.sign),
        _ => {}
    }
    let (log, exact) = log2(x);
    let exact = exact && log.significand << 64 == 0;
    Wide::of(y).multiply(log).round(env, exact)
}

/// ST1 * log2(ST0 + 1).
fn y_log2_x_plus_1(env: &mut Environment, y: Value, x: Value) -> Value {
    if let Some(nan) = env.nans(x, y) {
        return nan;
    }
    let below = x.sign && x.class == Class::Finite && x.exponent >= 0;
    let undefined = x.class == Class::Infinite && (x.sign || y.class == Class::Zero)
        || x.class == Class::Zero && y.class == Class::Infinite;
    if undefined || below && !(x.exponent == 0 && x.significand == 1 << 63) {
        return env.invalid();
    }
    env.note_denormal(x);
    env.note_denormal(y);
    match (x.class, y.class) {
        (Class::Zero, _) | (_, Class::Zero) => return Value::zero(x.sign != y.sign),
        (Class::Infinite, _) | (_, Class::Infinite) => return Value::infinity(x.sign != y.sign),
        _ if below => return Value::infinity(!y.sign),
        _ => {}
    }
    let x = Wide::of(x);
    let z = x.divide(x.add(Wide::from_i64(2)));
    Wide::of(y).multiply(log2_of_ratio(z)).round(env, false)
}

/// An angle from 0 to pi/4, and what it is of the original one.
struct Reduced {
    angle: Wide,
    /// Sine and cosine change places.
    swapped: bool,
    sine_negative: bool,
    cosine_negative: bool,
}

/// Pi, in units of 2^-64, and pi/2 in units of 2^-65.
const PI_66: u128 = 0xc90f_daa2_2168_c234 << 2 | 3;

/// Reduces an angle of less than 2^63.
fn reduce(value: Value) -> Reduced {
    let shift = value.exponent + 2;
    let (quotient, angle, above) = if shift < 0 {
        (0, Wide::of(value).absolute(), false)
    } else {
        let mut rest = u128::from(value.significand);
        let mut quotient = 0u32;
        for _ in 0..shift {
            rest <<= 1;
            quotient <<= 1;
            if rest >= PI_66 {
                rest -= PI_66;
                quotient |= 1;
            }
        }
        let above = rest > PI_66 / 2;
        let rest = if above { PI_66 - rest } else { rest };
        // Units of 2^-65 against 2^-127.
        (quotient & 3, Wide::normal(false, 62, rest), above)
    };
    // From the start of the quadrant, or back from its end.
    let odd = quotient & 1 != 0;
    let (sine, cosine) = match quotient {
        0 => (false, false),
        1 => (false, true),
        2 => (true, true),
        _ => (true, false),
    };
    Reduced {
        angle,
        swapped: odd != above,
        sine_negative: sine != value.sign,
        cosine_negative: cosine,
    }
}

/// A result that is below its first term, by too little to show: so that directed rounding
/// sees on which side it is.
fn below(sum: Wide, first: Wide) -> Wide {
    if sum.significand != first.significand || sum.exponent != first.exponent {
        return sum;
    }
    Wide::normal(sum.sign, sum.exponent, sum.significand - 1)
}

fn sine_series(x: Wide) -> Wide {
    if x.is_zero() {
        return x;
    }
    let square = x.multiply(x);
    let sum = series(x, |term, number| {
        let term = term.multiply(square).negated();
        term.divide_small(2 * number).divide_small(2 * number + 1)
    });
    below(sum, x)
}

fn cosine_series(x: Wide) -> Wide {
    let square = x.multiply(x);
    let sum = series(ONE, |term, number| {
        let term = term.multiply(square).negated();
        term.divide_small(2 * number - 1).divide_small(2 * number)
    });
    below(sum, ONE)
}

/// Sine and cosine of an angle that is not zero.
fn sine_and_cosine(value: Value) -> (Wide, Wide) {
    let reduced = reduce(value);
    let (sine, cosine) = (sine_series(reduced.angle), cosine_series(reduced.angle));
    let (sine, cosine) = if reduced.swapped {
        (cosine, sine)
    } else {
        (sine, cosine)
    };
    (
        Wide {
            sign: reduced.sine_negative,
            ..sine
        },
        Wide {
            sign: reduced.cosine_negative,
            ..cosine
        },
    )
}

/// The trigonometric instructions: ST0 becomes the first result, the second is pushed. An angle
/// of 2^63 or more is left alone, with C2 set.
fn trigonometric(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let mnemonic = insn.mnemonic();
    let pushes = matches!(mnemonic, Mnemonic::Fsincos | Mnemonic::Fptan);
    let mut fpu = Fpu::of(cx.cpu);
    let value = fpu.value(0);
    if value.is_none() || pushes && !fpu.has_room() {
        if fpu.stack_fault_complete(value.is_some()) {
            fpu.set_value(0, INDEFINITE);
            if pushes {
                fpu.turn(7);
                fpu.set_value(0, INDEFINITE);
            }
        }
        return next(cx, insn);
    }
    let value = value.unwrap_or(INDEFINITE);
    if value.class == Class::Finite && value.exponent >= 63 {
        fpu.set_codes(C2, C2);
        return next(cx, insn);
    }
    let mut env = fpu.environment();
    let (first, second) = angle_functions(&mut env, value, mnemonic);
    fpu.set_codes(C2, 0);
    if fpu.conclude(&env) {
        fpu.set_value(0, first);
        if pushes {
            fpu.turn(7);
            fpu.set_raw(0, pack_extended(second));
        }
    }
    next(cx, insn)
}

fn angle_functions(env: &mut Environment, value: Value, mnemonic: Mnemonic) -> (Value, Value) {
    if let Some(nan) = env.nan(value) {
        return (nan, nan);
    }
    if value.class == Class::Infinite {
        let nan = env.invalid();
        return (nan, nan);
    }
    env.note_denormal(value);
    if value.class == Class::Zero {
        return match mnemonic {
            Mnemonic::Fcos => (one(false), value),
            _ => (value, one(false)),
        };
    }
    let (sine, cosine) = sine_and_cosine(value);
    match mnemonic {
        Mnemonic::Fsin => (sine.round(env, false), value),
        Mnemonic::Fcos => (cosine.round(env, false), value),
        Mnemonic::Fsincos => (sine.round(env, false), cosine.round(env, false)),
        _ => (sine.divide(cosine).round(env, false), one(false)),
    }
}

/// The arc tangents of 0/16 to 16/16.
static ARC_TANGENTS: LazyLock<[Wide; 17]> =
    LazyLock::new(|| std::array::from_fn(|index| arc_tangent_of_sixteenths(index as u32)));

/// By Euler's series: the terms fall by half at least.
fn arc_tangent_of_sixteenths(index: u32) -> Wide {
    if index == 0 {
        return ZERO;
    }
    // c / (1 + c^2) = 16 i / (256 + i^2), and the ratio i^2 / (256 + i^2) of the terms.
    let square = i64::from(index * index);
    let denominator = Wide::from_i64(256 + square);
    let first = Wide::from_i64(16 * i64::from(index)).divide(denominator);
    let ratio = Wide::from_i64(square).divide(denominator);
    series(first, |term, number| {
        let even = Wide::from_i64(2 * i64::from(number));
        term.multiply(ratio)
            .multiply(even)
            .divide_small(2 * number + 1)
    })
}

/// The arc tangent of a number from 0 to 1.
fn arc_tangent(x: Wide) -> Wide {
    let index = if x.exponent < -5 {
        0
    } else {
        (x.significand >> (122 - x.exponent)) as u32
    };
    // To the nearest sixteenth.
    let index = index.div_ceil(2);
    let base = Wide::from_i64(i64::from(index)).scaled(-4);
    let rest = if index == 0 {
        x
    } else {
        x.subtract(base).divide(ONE.add(x.multiply(base)))
    };
    let square = rest.multiply(rest);
    let (mut power, mut sum) = (rest, rest);
    for number in 1..200u32 {
        power = power.multiply(square).negated();
        let term = power.divide_small(2 * number + 1);
        if term.is_zero() || term.exponent < sum.exponent - ENOUGH {
            break;
        }
        sum = sum.add(term);
    }
    ARC_TANGENTS[(index as usize).min(16)].add(sum)
}

/// The angle of the point (ST0, ST1), as FPATAN gives it.
fn angle(env: &mut Environment, y: Value, x: Value) -> Value {
    if let Some(nan) = env.nans(x, y) {
        return nan;
    }
    env.note_denormal(x);
    env.note_denormal(y);
    let negative = x.sign;
    let result = match (y.class, x.class) {
        (Class::Zero, _) | (Class::Finite, Class::Infinite) => {
            if !negative {
                return Value::zero(y.sign);
            }
            PI
        }
        (Class::Infinite, Class::Infinite) if negative => PI.scaled(-2).add(PI.scaled(-1)),
        (Class::Infinite, Class::Infinite) => PI.scaled(-2),
        (_, Class::Zero) | (Class::Infinite, _) => PI.scaled(-1),
        _ => {
            let (a, b) = (Wide::of(y).absolute(), Wide::of(x).absolute());
            let steep = (a.exponent, a.significand) > (b.exponent, b.significand);
            let ratio = if steep { b.divide(a) } else { a.divide(b) };
            if !steep && !negative && ratio.exponent < -16000 {
                // So small that it is its own arc tangent.
                let ratio = Wide {
                    sign: y.sign,
                    ..ratio
                };
                return ratio.round(env, false);
            }
            let angle = arc_tangent(ratio);
            let angle = if steep {
                PI.scaled(-1).subtract(angle)
            } else {
                angle
            };
            if negative { PI.subtract(angle) } else { angle }
        }
    };
    Wide {
        sign: y.sign,
        ..result
    }
    .round(env, false)
}

/// Replaces ST1 by a function of it and ST0, and pops.
fn replace_both(
    cx: &mut Context<'_>,
    insn: &Instruction,
    operate: fn(&mut Environment, Value, Value) -> Value,
) -> Done {
    let mut fpu = Fpu::of(cx.cpu);
    let result = match (fpu.value(1), fpu.value(0)) {
        (Some(y), Some(x)) => {
            let mut env = fpu.environment();
            let result = operate(&mut env, y, x);
            fpu.conclude(&env).then_some(result)
        }
        _ => fpu.stack_fault(false).then_some(INDEFINITE),
    };
    if let Some(result) = result {
        fpu.set_value(1, result);
        fpu.pop();
    }
    next(cx, insn)
}

/// Executes a transcendental instruction; `None` if it is none.
pub fn execute(cx: &mut Context<'_>, insn: &Instruction) -> Option<Done> {
    use Mnemonic as M;
    Some(match insn.mnemonic() {
        M::F2xm1 => replace(cx, insn, exp2_minus_1),
        M::Fyl2x => replace_both(cx, insn, y_log2_x),
        M::Fyl2xp1 => replace_both(cx, insn, y_log2_x_plus_1),
        M::Fpatan => replace_both(cx, insn, angle),
        M::Fsin | M::Fcos | M::Fsincos | M::Fptan => trigonometric(cx, insn),
        _ => return None,
    })
}
