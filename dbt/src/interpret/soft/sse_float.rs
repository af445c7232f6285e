//! Floating-point instructions of SSE to SSE4.1, packed and scalar.

use std::cmp::Ordering;

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::arithmetic as ar;
use super::float::{Class, DOUBLE, Environment, Format, Rounding, SINGLE, Value, flag};
use super::operand::{check_mmx, enter_mmx, lane, read, set_xmm, uses_mmx, with_lane, write, xmm};
use crate::guest::{Exception, flags};
use crate::interpret::operand::{next, operand_size, read_operand};
use crate::interpret::{Context, extension};

type Done = Result<(), Exception>;

/// An operation on one lane: destination and source.
type Operation = fn(&mut Environment, u64, u64, Format, u8) -> u64;

/// Bits of an element.
fn width(format: Format) -> u32 {
    if format == SINGLE { 32 } else { 64 }
}

/// Writes the exceptions to MXCSR; #XM (or #UD) if one is unmasked. Exceptions found before
/// computing any lane keep those of results from being noted (SDM volume 1, 11.5.2).
fn settle(cx: &mut Context<'_>, env: &Environment) -> Done {
    let early = env.unmasked(flag::BEFORE) != 0;
    let noted = if early {
        env.flags & flag::BEFORE
    } else {
        env.flags
    };
    cx.cpu.vector.mxcsr |= u32::from(noted);
    if env.unmasked(0x3f) != 0 {
        return Err(extension::simd_exception(cx.cpu));
    }
    Ok(())
}

fn arithmetic(
    env: &mut Environment,
    a: u64,
    b: u64,
    format: Format,
    operate: fn(&mut Environment, Value, Value, Format) -> Value,
) -> u64 {
    let (a, b) = (env.operand(format, a), env.operand(format, b));
    format.pack(operate(env, a, b, format))
}

fn add(env: &mut Environment, a: u64, b: u64, format: Format, _: u8) -> u64 {
    arithmetic(env, a, b, format, ar::add)
}

fn subtract(env: &mut Environment, a: u64, b: u64, format: Format, _: u8) -> u64 {
    arithmetic(env, a, b, format, ar::subtract)
}

fn multiply(env: &mut Environment, a: u64, b: u64, format: Format, _: u8) -> u64 {
    arithmetic(env, a, b, format, ar::multiply)
}

fn divide(env: &mut Environment, a: u64, b: u64, format: Format, _: u8) -> u64 {
    arithmetic(env, a, b, format, ar::divide)
}

fn square_root(env: &mut Environment, _: u64, b: u64, format: Format, _: u8) -> u64 {
    let b = env.operand(format, b);
    format.pack(ar::square_root(env, b, format))
}

/// MIN and MAX give the second operand if either is a NaN or both are zero.
fn extreme(env: &mut Environment, a: u64, b: u64, format: Format, wanted: Ordering) -> u64 {
    let (x, y) = (env.operand(format, a), env.operand(format, b));
    match ar::compare(env, x, y, true) {
        Some(order) if order == wanted => format.pack(x),
        // A NaN is not even made quiet.
        None if y.is_nan() => b,
        _ => format.pack(y),
    }
}

fn minimum(env: &mut Environment, a: u64, b: u64, format: Format, _: u8) -> u64 {
    extreme(env, a, b, format, Ordering::Less)
}

fn maximum(env: &mut Environment, a: u64, b: u64, format: Format, _: u8) -> u64 {
    extreme(env, a, b, format, Ordering::Greater)
}

/// CMPPS and its kin: predicates 0 to 7.
fn compare(env: &mut Environment, a: u64, b: u64, format: Format, predicate: u8) -> u64 {
    let (a, b) = (env.operand(format, a), env.operand(format, b));
    let signaling = matches!(predicate & 3, 1 | 2);
    let order = ar::compare(env, a, b, signaling);
    let holds = match predicate & 3 {
        0 => order == Some(Ordering::Equal),
        1 => order == Some(Ordering::Less),
        2 => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        _ => order.is_none(),
    };
    if holds != (predicate & 4 != 0) {
        u64::MAX
    } else {
        0
    }
}

/// ROUNDPS and its kin (SSE4.1): bits 0 and 1 the mode, bit 2 MXCSR's, bit 3 no #P.
fn round(env: &mut Environment, _: u64, b: u64, format: Format, control: u8) -> u64 {
    let b = env.operand(format, b);
    if let Some(nan) = env.nan(b) {
        return format.pack(nan);
    }
    let mode = if control & 4 != 0 {
        env.rounding
    } else {
        Rounding::from_bits(u32::from(control))
    };
    let before = env.flags;
    let result = ar::round_to_integer(env, mode, b);
    if control & 8 != 0 {
        env.flags = before;
    }
    format.pack(result)
}

/// The reciprocal, or that of the square root, to 13 bits: processors differ in theirs, within
/// a relative error of 1.5 * 2^-12 (SDM volume 2, RCPPS). Denormals count as zeros.
fn approximate(bits: u64, of_root: bool) -> u64 {
    let value = SINGLE.unpack(bits);
    let value = if value.denormal {
        Value::zero(value.sign)
    } else {
        value
    };
    let result = match value.class {
        Class::Quiet | Class::Signaling => value.quiet(),
        Class::Zero => Value::infinity(value.sign),
        _ if of_root && value.sign => super::float::INDEFINITE,
        Class::Infinite => Value::zero(value.sign),
        _ => {
            let precise = Format {
                precision: 13,
                ..SINGLE
            };
            let mut env = Environment::sse(0x9f80);
            let divisor = if of_root {
                ar::square_root(&mut env, value, DOUBLE)
            } else {
                value
            };
            let one = Value::finite(false, 0, 1 << 63);
            ar::divide(&mut env, one, divisor, precise)
        }
    };
    SINGLE.pack(result)
}

fn reciprocal(_: &mut Environment, _: u64, b: u64, _: Format, _: u8) -> u64 {
    approximate(b, false)
}

fn reciprocal_root(_: &mut Environment, _: u64, b: u64, _: Format, _: u8) -> u64 {
    approximate(b, true)
}

/// The operation of a mnemonic, its format, and whether it is packed.
fn operation(mnemonic: Mnemonic) -> Option<(Operation, Format, bool)> {
    use Mnemonic as M;
    macro_rules! table {
        ($($operation:ident: $ps:ident $pd:ident $ss:ident $sd:ident;)*) => {
            match mnemonic {
                $(M::$ps => ($operation as Operation, SINGLE, true),
                M::$pd => ($operation as Operation, DOUBLE, true),
                M::$ss => ($operation as Operation, SINGLE, false),
                M::$sd => ($operation as Operation, DOUBLE, false),)*
                M::Rcpps => (reciprocal as Operation, SINGLE, true),
                M::Rcpss => (reciprocal as Operation, SINGLE, false),
                M::Rsqrtps => (reciprocal_root as Operation, SINGLE, true),
                M::Rsqrtss => (reciprocal_root as Operation, SINGLE, false),
                _ => return None,
            }
        };
    }
    Some(table! {
        add: Addps Addpd Addss Addsd;
        subtract: Subps Subpd Subss Subsd;
        multiply: Mulps Mulpd Mulss Mulsd;
        divide: Divps Divpd Divss Divsd;
        square_root: Sqrtps Sqrtpd Sqrtss Sqrtsd;
        minimum: Minps Minpd Minss Minsd;
        maximum: Maxps Maxpd Maxss Maxsd;
        compare: Cmpps Cmppd Cmpss Cmpsd;
        round: Roundps Roundpd Roundss Roundsd;
    })
}

fn simple(
    cx: &mut Context<'_>,
    insn: &Instruction,
    operate: Operation,
    format: Format,
    packed: bool,
) -> Done {
    let bits = width(format);
    let size = if packed { 16 } else { bits as usize / 8 };
    let source = read(cx, insn, 1, size)?;
    let immediate = if insn.op_count() > 2 {
        insn.immediate(2) as u8
    } else {
        0
    };
    let target = insn.op0_register();
    let before = xmm(cx.cpu, target);
    let mut env = Environment::sse(cx.cpu.vector.mxcsr);
    let count = if packed { 128 / bits } else { 1 };
    let mut result = before;
    for index in 0..count {
        let (a, b) = (lane(before, bits, index), lane(source, bits, index));
        let value = operate(&mut env, a, b, format, immediate);
        result = with_lane(result, bits, index, value);
    }
    settle(cx, &env)?;
    set_xmm(cx.cpu, target, result);
    next(cx, insn)
}

/// COMISS and its kin.
fn compare_flags(
    cx: &mut Context<'_>,
    insn: &Instruction,
    format: Format,
    signaling: bool,
) -> Done {
    let bits = width(format);
    let source = read(cx, insn, 1, bits as usize / 8)?;
    let target = xmm(cx.cpu, insn.op0_register());
    let mut env = Environment::sse(cx.cpu.vector.mxcsr);
    let a = env.operand(format, lane(target, bits, 0));
    let b = env.operand(format, lane(source, bits, 0));
    let order = ar::compare(&mut env, a, b, signaling);
    settle(cx, &env)?;
    cx.cpu.arithmetic_flags = order_flags(order);
    next(cx, insn)
}

/// ZF, PF and CF of an order, as COMISS and FCOMI set them; the other flags are clear.
pub fn order_flags(order: Option<Ordering>) -> u64 {
    match order {
        Some(Ordering::Greater) => 0,
        Some(Ordering::Less) => flags::CF,
        Some(Ordering::Equal) => flags::ZF,
        None => flags::ZF | flags::PF | flags::CF,
    }
}

/// ADDSUBPS, HADDPS and their kin (SSE3).
fn horizontal(cx: &mut Context<'_>, insn: &Instruction, format: Format) -> Done {
    use Mnemonic as M;
    let source = read(cx, insn, 1, 16)?;
    let target = insn.op0_register();
    let before = xmm(cx.cpu, target);
    let bits = width(format);
    let count = 128 / bits;
    let mut env = Environment::sse(cx.cpu.vector.mxcsr);
    let mut result = 0;
    for index in 0..count {
        let (a, b, minus) = match insn.mnemonic() {
            M::Addsubps | M::Addsubpd => (
                lane(before, bits, index),
                lane(source, bits, index),
                index & 1 == 0,
            ),
            mnemonic => {
                let from = if index < count / 2 { before } else { source };
                let first = 2 * (index % (count / 2));
                let minus = matches!(mnemonic, M::Hsubps | M::Hsubpd);
                (lane(from, bits, first), lane(from, bits, first + 1), minus)
            }
        };
        let value = if minus {
            subtract(&mut env, a, b, format, 0)
        } else {
            add(&mut env, a, b, format, 0)
        };
        result = with_lane(result, bits, index, value);
    }
    settle(cx, &env)?;
    set_xmm(cx.cpu, target, result);
    next(cx, insn)
}

/// DPPS and DPPD (SSE4.1): products by the upper mask, summed pairwise, where the lower says.
fn dot_product(cx: &mut Context<'_>, insn: &Instruction, format: Format) -> Done {
    let source = read(cx, insn, 1, 16)?;
    let target = insn.op0_register();
    let before = xmm(cx.cpu, target);
    let mask = insn.immediate(2) as u8;
    let bits = width(format);
    let count = 128 / bits;
    let mut env = Environment::sse(cx.cpu.vector.mxcsr);
    let mut terms = [0; 4];
    for index in 0..count {
        if mask >> (4 + index) & 1 != 0 {
            let (a, b) = (lane(before, bits, index), lane(source, bits, index));
            terms[index as usize] = multiply(&mut env, a, b, format, 0);
        }
    }
    // Exceptions of the products come before the sums are computed.
    settle(cx, &env)?;
    let mut sum = add(&mut env, terms[0], terms[1], format, 0);
    if count == 4 {
        let other = add(&mut env, terms[2], terms[3], format, 0);
        settle(cx, &env)?;
        sum = add(&mut env, sum, other, format, 0);
    }
    settle(cx, &env)?;
    let mut result = 0;
    for index in 0..count {
        if mask >> index & 1 != 0 {
            result = with_lane(result, bits, index, sum);
        }
    }
    set_xmm(cx.cpu, target, result);
    next(cx, insn)
}

/// A conversion between packed elements: formats, where `None` is a 32-bit integer, the number
/// of elements, and whether it truncates.
struct Packed {
    from: Option<Format>,
    to: Option<Format>,
    count: u32,
    truncate: bool,
    /// Bytes of the source.
    size: usize,
}

fn packed_conversion(mnemonic: Mnemonic) -> Option<Packed> {
    use Mnemonic as M;
    let (from, to, count, truncate, size) = match mnemonic {
        M::Cvtdq2ps => (None, Some(SINGLE), 4, false, 16),
        M::Cvtps2dq => (Some(SINGLE), None, 4, false, 16),
        M::Cvttps2dq => (Some(SINGLE), None, 4, true, 16),
        M::Cvtdq2pd => (None, Some(DOUBLE), 2, false, 8),
        M::Cvtpd2dq | M::Cvtpd2pi => (Some(DOUBLE), None, 2, false, 16),
        M::Cvttpd2dq | M::Cvttpd2pi => (Some(DOUBLE), None, 2, true, 16),
        M::Cvtpd2ps => (Some(DOUBLE), Some(SINGLE), 2, false, 16),
        M::Cvtps2pd => (Some(SINGLE), Some(DOUBLE), 2, false, 8),
        M::Cvtss2sd => (Some(SINGLE), Some(DOUBLE), 1, false, 4),
        M::Cvtsd2ss => (Some(DOUBLE), Some(SINGLE), 1, false, 8),
        M::Cvtpi2ps => (None, Some(SINGLE), 2, false, 8),
        M::Cvtpi2pd => (None, Some(DOUBLE), 2, false, 8),
        M::Cvtps2pi => (Some(SINGLE), None, 2, false, 8),
        M::Cvttps2pi => (Some(SINGLE), None, 2, true, 8),
        _ => return None,
    };
    Some(Packed {
        from,
        to,
        count,
        truncate,
        size,
    })
}

fn convert_float(env: &mut Environment, bits: u64, from: Format, to: Format) -> u64 {
    let value = env.operand(from, bits);
    if let Some(nan) = env.nan(value) {
        return to.pack(nan);
    }
    env.note_denormal(value);
    to.pack(env.convert(value, to))
}

fn float_to_integer(
    env: &mut Environment,
    bits: u64,
    from: Format,
    to_bits: u32,
    truncate: bool,
) -> u64 {
    let value = env.operand(from, bits);
    let mode = if truncate {
        Rounding::Truncate
    } else {
        env.rounding
    };
    ar::to_integer(env, mode, value, to_bits)
}

fn convert_packed(cx: &mut Context<'_>, insn: &Instruction, packed: &Packed) -> Done {
    // The conversion of a memory operand leaves the x87 alone.
    let mmx = uses_mmx(insn);
    if mmx {
        check_mmx(cx.cpu)?;
    }
    let source = read(cx, insn, 1, packed.size)?;
    let mut env = Environment::sse(cx.cpu.vector.mxcsr);
    let from_bits = packed.from.map_or(32, width);
    let to_bits = packed.to.map_or(32, width);
    let merges = packed.count == 1 || insn.mnemonic() == Mnemonic::Cvtpi2ps;
    let mut result = if merges {
        xmm(cx.cpu, insn.op0_register())
    } else {
        0
    };
    for index in 0..packed.count {
        let bits = lane(source, from_bits, index);
        let value = match (packed.from, packed.to) {
            (Some(from), Some(to)) => convert_float(&mut env, bits, from, to),
            (Some(from), None) => float_to_integer(&mut env, bits, from, 32, packed.truncate),
            (None, Some(to)) => {
                let value = Value::from_i64(i64::from(bits as u32 as i32));
                to.pack(env.convert(value, to))
            }
            (None, None) => bits,
        };
        result = with_lane(result, to_bits, index, value);
    }
    // Even if the conversion then raises #XM.
    if mmx {
        enter_mmx(cx.cpu);
    }
    settle(cx, &env)?;
    write(cx, insn, 0, 16, result)?;
    next(cx, insn)
}

/// CVTSI2SS and CVTSI2SD.
fn from_integer(cx: &mut Context<'_>, insn: &Instruction, to: Format) -> Done {
    let size = operand_size(insn, 1);
    let raw = read_operand(cx, insn, 1, size)?;
    let integer = if size == 8 {
        raw as i64
    } else {
        i64::from(raw as u32 as i32)
    };
    let mut env = Environment::sse(cx.cpu.vector.mxcsr);
    let value = to.pack(env.convert(Value::from_i64(integer), to));
    settle(cx, &env)?;
    let target = insn.op0_register();
    let result = with_lane(xmm(cx.cpu, target), width(to), 0, value);
    set_xmm(cx.cpu, target, result);
    next(cx, insn)
}

/// CVTSS2SI and its kin.
fn to_integer(cx: &mut Context<'_>, insn: &Instruction, from: Format, truncate: bool) -> Done {
    let bits = width(from);
    let source = read(cx, insn, 1, bits as usize / 8)?;
    let to_bits = operand_size(insn, 0) as u32 * 8;
    let mut env = Environment::sse(cx.cpu.vector.mxcsr);
    let value = float_to_integer(&mut env, lane(source, bits, 0), from, to_bits, truncate);
    settle(cx, &env)?;
    write(cx, insn, 0, 8, u128::from(value))?;
    next(cx, insn)
}

/// Executes a floating-point instruction of SSE; `None` if it is none.
pub fn execute(cx: &mut Context<'_>, insn: &Instruction) -> Option<Done> {
    use Mnemonic as M;
    let mnemonic = insn.mnemonic();
    if insn.op0_kind() != OpKind::Register {
        return None;
    }
    if let Some((operate, format, packed)) = operation(mnemonic) {
        return Some(simple(cx, insn, operate, format, packed));
    }
    if let Some(packed) = packed_conversion(mnemonic) {
        return Some(convert_packed(cx, insn, &packed));
    }
    Some(match mnemonic {
        M::Comiss => compare_flags(cx, insn, SINGLE, true),
        M::Comisd => compare_flags(cx, insn, DOUBLE, true),
        M::Ucomiss => compare_flags(cx, insn, SINGLE, false),
        M::Ucomisd => compare_flags(cx, insn, DOUBLE, false),
        M::Addsubps | M::Haddps | M::Hsubps => horizontal(cx, insn, SINGLE),
        M::Addsubpd | M::Haddpd | M::Hsubpd => horizontal(cx, insn, DOUBLE),
        M::Dpps => dot_product(cx, insn, SINGLE),
        M::Dppd => dot_product(cx, insn, DOUBLE),
        M::Cvtsi2ss => from_integer(cx, insn, SINGLE),
        M::Cvtsi2sd => from_integer(cx, insn, DOUBLE),
        M::Cvtss2si => to_integer(cx, insn, SINGLE, false),
        M::Cvttss2si => to_integer(cx, insn, SINGLE, true),
        M::Cvtsd2si => to_integer(cx, insn, DOUBLE, false),
        M::Cvttsd2si => to_integer(cx, insn, DOUBLE, true),
        _ => return None,
    })
}
