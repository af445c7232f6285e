//! Loads, stores, exchanges, constants and control of the x87.

use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind};

use super::fpu::{C1, Fpu};
use super::{Done, Loaded, stack_index};
use crate::guest::flags;
use crate::interpret::operand::{next, write_operand};
use crate::interpret::soft::arithmetic::{nearest_integer, to_integer};
use crate::interpret::soft::float::{
    Class, DOUBLE, EXTENDED, Environment, INDEFINITE, Rounding, SINGLE, Value, flag, pack_extended,
};
use crate::interpret::{Access, Context, address};

/// FLD of any operand.
fn load(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    if insn.op0_kind() != OpKind::Memory {
        let mut fpu = Fpu::of(cx.cpu);
        let index = stack_index(insn, insn.op_count() - 1);
        let env = fpu.environment();
        if fpu.is_empty(index) {
            if fpu.stack_fault(false) {
                fpu.turn(7);
                fpu.set_value(0, INDEFINITE);
            }
        } else {
            let bits = fpu.raw(index);
            fpu.push(&env, bits);
        }
        return next(cx, insn);
    }
    let loaded = Loaded::of(cx, insn)?;
    let mut fpu = Fpu::of(cx.cpu);
    let mut env = fpu.environment();
    let bits = if loaded.size == MemorySize::Float80 {
        let top = u16::from_le_bytes([loaded.bytes[8], loaded.bytes[9]]);
        (loaded.word(), top)
    } else {
        let value = loaded.value();
        let bits = pack_extended(env.nan(value).unwrap_or(value));
        if value.denormal {
            // Even unmasked it does not prevent the load.
            env.masks |= flag::DENORMAL;
            env.note_denormal(value);
        }
        bits
    };
    fpu.push(&env, bits);
    next(cx, insn)
}

/// FBLD: eighteen decimal digits and a sign.
fn load_decimal(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let loaded = Loaded::of(cx, insn)?;
    let magnitude = loaded.bytes[..9].iter().rev().fold(0u64, |value, byte| {
        let digits = u64::from(byte >> 4) * 10 + u64::from(byte & 15);
        value.wrapping_mul(100).wrapping_add(digits)
    });
    let mut value = Value::from_i64(magnitude as i64);
    value.sign = loaded.bytes[9] & 0x80 != 0;
    let mut fpu = Fpu::of(cx.cpu);
    let env = fpu.environment();
    fpu.push(&env, pack_extended(value));
    next(cx, insn)
}

/// FST and FSTP of any operand.
fn store(cx: &mut Context<'_>, insn: &Instruction, pops: bool) -> Done {
    if insn.op0_kind() != OpKind::Memory {
        let mut fpu = Fpu::of(cx.cpu);
        let target = stack_index(insn, 0);
        if fpu.is_empty(0) {
            if !fpu.stack_fault(false) {
                return next(cx, insn);
            }
            fpu.set_value(target, INDEFINITE);
        } else {
            let bits = fpu.raw(0);
            let env = fpu.environment();
            fpu.conclude(&env);
            fpu.set_raw(target, bits);
        }
        if pops {
            fpu.pop();
        }
        return next(cx, insn);
    }
    let convert = |env: &mut Environment, value: Value, raw: (u64, u16)| {
        let mut bytes = [0; 10];
        let format = match insn.memory_size() {
            MemorySize::Float32 => SINGLE,
            MemorySize::Float64 => DOUBLE,
            _ => {
                bytes[..8].copy_from_slice(&raw.0.to_le_bytes());
                bytes[8..].copy_from_slice(&raw.1.to_le_bytes());
                return bytes;
            }
        };
        let result = match env.nan(value) {
            Some(nan) => nan,
            None => {
                let result = env.convert(value, format);
                if env.unmasked(flag::UNDERFLOW | flag::OVERFLOW) != 0 {
                    // It will not be stored.
                    return bytes;
                }
                result
            }
        };
        bytes[..8].copy_from_slice(&format.pack(result).to_le_bytes());
        bytes
    };
    store_memory(cx, insn, pops, convert, |bytes_of| {
        bytes_of(INDEFINITE, pack_extended(INDEFINITE))
    })
}

/// Stores what `convert` makes of ST0, or of an empty register what `indefinite` says.
fn store_memory(
    cx: &mut Context<'_>,
    insn: &Instruction,
    pops: bool,
    convert: impl Fn(&mut Environment, Value, (u64, u16)) -> [u8; 10],
    indefinite: impl Fn(&dyn Fn(Value, (u64, u16)) -> [u8; 10]) -> [u8; 10],
) -> Done {
    let size = insn.memory_size().size().min(10);
    let at = address::linear(cx, insn, 0, size, Access::Write)?;
    cx.authorise_write(at, size)?;
    let mut fpu = Fpu::of(cx.cpu);
    let mut env = fpu.environment();
    let (bytes, stored) = match fpu.value(0) {
        Some(value) => {
            let bytes = convert(&mut env, value, fpu.raw(0));
            (bytes, fpu.conclude_store(&env))
        }
        None => {
            let bytes = indefinite(&|value, raw| {
                let mut env = Environment::x87(0x37f);
                convert(&mut env, value, raw)
            });
            (bytes, fpu.stack_fault(false))
        }
    };
    if !stored {
        return next(cx, insn);
    }
    cx.store_bytes(at, &bytes[..size])?;
    if pops {
        Fpu::of(cx.cpu).pop();
    }
    next(cx, insn)
}

fn store_integer(cx: &mut Context<'_>, insn: &Instruction, pops: bool, truncate: bool) -> Done {
    let bits = insn.memory_size().size().min(8) as u32 * 8;
    let convert = |env: &mut Environment, value: Value, _: (u64, u16)| {
        let mode = if truncate {
            Rounding::Truncate
        } else {
            env.rounding
        };
        let mut bytes = [0; 10];
        let integer = to_integer(env, mode, value, bits);
        bytes[..8].copy_from_slice(&integer.to_le_bytes());
        bytes
    };
    store_memory(cx, insn, pops, convert, |bytes_of| {
        bytes_of(INDEFINITE, (0, 0))
    })
}

/// FBSTP.
fn store_decimal(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    const LIMIT: u128 = 1_000_000_000_000_000_000;
    let convert = |env: &mut Environment, value: Value, _: (u64, u16)| {
        let mut bytes = [0; 10];
        match nearest_integer(env.rounding, value) {
            Some((magnitude, inexact, up)) if magnitude < LIMIT => {
                if inexact {
                    env.raise(flag::INEXACT);
                }
                env.up = up;
                let mut rest = magnitude as u64;
                for byte in &mut bytes[..9] {
                    let digits = (rest % 100) as u8;
                    *byte = ((digits / 10) << 4) | (digits % 10);
                    rest /= 100;
                }
                bytes[9] = u8::from(value.sign) << 7;
            }
            _ => {
                env.raise(flag::INVALID);
                bytes[7..].copy_from_slice(&[0xc0, 0xff, 0xff]);
            }
        }
        bytes
    };
    store_memory(cx, insn, true, convert, |bytes_of| {
        bytes_of(INDEFINITE, (0, 0))
    })
}

fn exchange(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let mut fpu = Fpu::of(cx.cpu);
    let index = stack_index(insn, insn.op_count() - 1);
    if (fpu.is_empty(0) || fpu.is_empty(index)) && !fpu.stack_fault(false) {
        return next(cx, insn);
    }
    let indefinite = pack_extended(INDEFINITE);
    let of = |fpu: &Fpu<'_>, index| {
        if fpu.is_empty(index) {
            indefinite
        } else {
            fpu.raw(index)
        }
    };
    let (first, second) = (of(&fpu, 0), of(&fpu, index));
    if !fpu.is_empty(0) && !fpu.is_empty(index) {
        let env = fpu.environment();
        fpu.conclude(&env);
    }
    fpu.set_raw(0, second);
    fpu.set_raw(index, first);
    next(cx, insn)
}

fn conditional_move(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    use Mnemonic as M;
    let set = |flags: u64| cx.cpu.arithmetic_flags & flags != 0;
    let holds = match insn.mnemonic() {
        M::Fcmovb => set(flags::CF),
        M::Fcmove => set(flags::ZF),
        M::Fcmovbe => set(flags::CF | flags::ZF),
        M::Fcmovu => set(flags::PF),
        M::Fcmovnb => !set(flags::CF),
        M::Fcmovne => !set(flags::ZF),
        M::Fcmovnbe => !set(flags::CF | flags::ZF),
        _ => !set(flags::PF),
    };
    let mut fpu = Fpu::of(cx.cpu);
    let index = stack_index(insn, 1);
    if fpu.is_empty(0) || fpu.is_empty(index) {
        if fpu.stack_fault(false) {
            fpu.set_value(0, INDEFINITE);
        }
    } else if holds {
        let bits = fpu.raw(index);
        fpu.set_raw(0, bits);
    }
    next(cx, insn)
}

/// A constant, with more bits than the format has: rounded as RC says.
fn constant(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    use Mnemonic as M;
    let (exponent, significand): (i32, u128) = match insn.mnemonic() {
        M::Fldl2t => (1, 0xd49a_784b_cd1b_8afe_492b_f6ff_4daf_db4d),
        M::Fldl2e => (0, 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e89),
        M::Fldpi => (1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1),
        M::Fldlg2 => (-2, 0x9a20_9a84_fbcf_f798_8f89_59ac_0b7c_9178),
        _ => (-1, 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af),
    };
    let mut fpu = Fpu::of(cx.cpu);
    let mut exact = fpu.environment();
    let value = exact.finish(false, exponent, significand, EXTENDED);
    // Loading raises no #P and clears C1.
    let env = fpu.environment();
    fpu.push(&env, pack_extended(value));
    next(cx, insn)
}

fn push_value(cx: &mut Context<'_>, insn: &Instruction, value: Value) -> Done {
    let mut fpu = Fpu::of(cx.cpu);
    let env = fpu.environment();
    fpu.push(&env, pack_extended(value));
    next(cx, insn)
}

fn free(cx: &mut Context<'_>, insn: &Instruction, pops: bool) -> Done {
    let mut fpu = Fpu::of(cx.cpu);
    fpu.set_empty(stack_index(insn, 0));
    fpu.set_codes(C1, 0);
    if pops {
        fpu.pop();
    }
    next(cx, insn)
}

fn turn(cx: &mut Context<'_>, insn: &Instruction, by: usize) -> Done {
    let mut fpu = Fpu::of(cx.cpu);
    fpu.turn(by);
    fpu.set_codes(C1, 0);
    next(cx, insn)
}

fn load_control(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let at = address::linear(cx, insn, 0, 2, Access::Read)?;
    let value = cx.load(at, 2)? as u16;
    Fpu::of(cx.cpu).set_control(value);
    next(cx, insn)
}

fn store_word(cx: &mut Context<'_>, insn: &Instruction, value: u16) -> Done {
    write_operand(cx, insn, 0, 2, u64::from(value))?;
    next(cx, insn)
}

/// Executes a move or a control instruction; `None` if it is none.
pub fn execute(cx: &mut Context<'_>, insn: &Instruction) -> Option<Done> {
    use Mnemonic as M;
    Some(match insn.mnemonic() {
        M::Fld | M::Fild => load(cx, insn),
        M::Fbld => load_decimal(cx, insn),
        M::Fst => store(cx, insn, false),
        M::Fstp => store(cx, insn, true),
        // As FSTP of a register, but an empty ST0 raises nothing.
        M::Fstpnce => {
            let mut fpu = Fpu::of(cx.cpu);
            if fpu.is_empty(0) {
                fpu.turn(1);
                fpu.set_codes(C1, 0);
                next(cx, insn)
            } else {
                store(cx, insn, true)
            }
        }
        M::Fist => store_integer(cx, insn, false, false),
        M::Fistp => store_integer(cx, insn, true, false),
        M::Fisttp => store_integer(cx, insn, true, true),
        M::Fbstp => store_decimal(cx, insn),
        M::Fxch => exchange(cx, insn),
        M::Fcmovb
        | M::Fcmove
        | M::Fcmovbe
        | M::Fcmovu
        | M::Fcmovnb
        | M::Fcmovne
        | M::Fcmovnbe
        | M::Fcmovnu => conditional_move(cx, insn),
        M::Fldl2t | M::Fldl2e | M::Fldpi | M::Fldlg2 | M::Fldln2 => constant(cx, insn),
        M::Fld1 => push_value(cx, insn, Value::from_i64(1)),
        M::Fldz => push_value(cx, insn, Value::zero(false)),
        M::Ffree => free(cx, insn, false),
        M::Ffreep => free(cx, insn, true),
        M::Fincstp => turn(cx, insn, 1),
        M::Fdecstp => turn(cx, insn, 7),
        M::Fldcw => load_control(cx, insn),
        M::Fnstcw | M::Fstcw => {
            let value = Fpu::of(cx.cpu).control();
            store_word(cx, insn, value)
        }
        M::Fnstsw | M::Fstsw => {
            let value = Fpu::of(cx.cpu).status();
            store_word(cx, insn, value)
        }
        M::Fninit => {
            Fpu::of(cx.cpu).reset();
            next(cx, insn)
        }
        M::Fnclex => {
            let mut fpu = Fpu::of(cx.cpu);
            let status = fpu.status();
            fpu.set_status(status & 0x7f00);
            next(cx, insn)
        }
        M::Fnop | M::Fneni | M::Fndisi | M::Fnsetpm => next(cx, insn),
        _ => return None,
    })
}

/// Whether a value is a number other than a NaN.
pub fn is_number(value: Value) -> bool {
    matches!(value.class, Class::Zero | Class::Finite | Class::Infinite)
}
