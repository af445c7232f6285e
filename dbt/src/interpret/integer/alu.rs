//! Addition, subtraction, logic, comparison, and their exchanging forms.

use iced_x86::{Instruction, Mnemonic};

use super::flags;
use crate::guest::flags::*;
use crate::guest::{CpuState, Exception, Register as Gpr};
use crate::interpret::address::linear;
use crate::interpret::operand::{
    Place, modify_operand, next, operand_size, read_gpr, read_operand, read_register, row,
    write_gpr, write_register,
};
use crate::interpret::{Access, Context};
use crate::record::Row;

pub(crate) const ROWS: &[Row] = &[
    row(Mnemonic::Adc, adc),
    row(Mnemonic::Adcx, adcx),
    row(Mnemonic::Add, add),
    row(Mnemonic::Adox, adox),
    row(Mnemonic::And, and),
    row(Mnemonic::Cmp, cmp),
    row(Mnemonic::Cmpxchg, cmpxchg),
    row(Mnemonic::Cmpxchg16b, cmpxchg16b),
    row(Mnemonic::Cmpxchg8b, cmpxchg8b),
    row(Mnemonic::Dec, dec),
    row(Mnemonic::Inc, inc),
    row(Mnemonic::Neg, neg),
    row(Mnemonic::Not, not),
    row(Mnemonic::Or, or),
    row(Mnemonic::Sbb, sbb),
    row(Mnemonic::Sub, sub),
    row(Mnemonic::Test, test),
    row(Mnemonic::Xadd, xadd),
    row(Mnemonic::Xchg, xchg),
    row(Mnemonic::Xor, xor),
];

type Done = Result<(), Exception>;

#[inline]
fn carry(cpu: &CpuState) -> u64 {
    cpu.arithmetic_flags & CF
}

/// `destination = operation(destination, source)`, and the flags.
#[inline]
fn binary(
    cx: &mut Context<'_>,
    insn: &Instruction,
    operation: impl FnOnce(&CpuState, u64, u64, usize) -> (u64, u64),
) -> Done {
    let size = operand_size(insn, 0);
    let source = read_operand(cx, insn, 1, size)?;
    cx.cpu.arithmetic_flags =
        modify_operand(cx, insn, size, |cpu, old| operation(cpu, old, source, size))?;
    next(cx, insn)
}

/// `destination = operation(destination)`, and the flags.
#[inline]
fn unary(
    cx: &mut Context<'_>,
    insn: &Instruction,
    operation: impl FnOnce(&CpuState, u64, usize) -> (u64, u64),
) -> Done {
    let size = operand_size(insn, 0);
    cx.cpu.arithmetic_flags = modify_operand(cx, insn, size, |cpu, old| operation(cpu, old, size))?;
    next(cx, insn)
}

/// The flags of an operation whose result is dropped.
#[inline]
fn compare(
    cx: &mut Context<'_>,
    insn: &Instruction,
    operation: impl FnOnce(u64, u64, usize) -> (u64, u64),
) -> Done {
    let size = operand_size(insn, 0);
    let left = read_operand(cx, insn, 0, size)?;
    let right = read_operand(cx, insn, 1, size)?;
    cx.cpu.arithmetic_flags = operation(left, right, size).1;
    next(cx, insn)
}

fn add(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    binary(cx, insn, |_, a, b, size| flags::add(a, b, 0, size))
}

fn adc(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    binary(cx, insn, |cpu, a, b, size| {
        flags::add(a, b, carry(cpu), size)
    })
}

fn sub(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    binary(cx, insn, |_, a, b, size| flags::sub(a, b, 0, size))
}

fn sbb(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    binary(cx, insn, |cpu, a, b, size| {
        flags::sub(a, b, carry(cpu), size)
    })
}

fn and(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    binary(cx, insn, |_, a, b, size| flags::logic(a & b, size))
}

fn or(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    binary(cx, insn, |_, a, b, size| flags::logic(a | b, size))
}

fn xor(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    binary(cx, insn, |_, a, b, size| flags::logic(a ^ b, size))
}

fn cmp(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    compare(cx, insn, |a, b, size| flags::sub(a, b, 0, size))
}

fn test(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    compare(cx, insn, |a, b, size| flags::logic(a & b, size))
}

fn inc(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    unary(cx, insn, |cpu, a, size| {
        let (result, set) = flags::add(a, 1, 0, size);
        (result, (set & !CF) | carry(cpu))
    })
}

fn dec(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    unary(cx, insn, |cpu, a, size| {
        let (result, set) = flags::sub(a, 1, 0, size);
        (result, (set & !CF) | carry(cpu))
    })
}

fn neg(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    unary(cx, insn, |_, a, size| flags::sub(0, a, 0, size))
}

fn not(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    unary(cx, insn, |cpu, a, _| (!a, cpu.arithmetic_flags))
}

/// ADCX and ADOX: an addition whose carry lives in `flag` alone.
fn add_with_flag(cx: &mut Context<'_>, insn: &Instruction, flag: u64) -> Done {
    let size = operand_size(insn, 0);
    let source = read_operand(cx, insn, 1, size)?;
    let register = insn.op0_register();
    let old = read_register(cx.cpu, register);
    let carry_in = u64::from(cx.cpu.arithmetic_flags & flag != 0);
    let (result, set) = flags::add(old, source, carry_in, size);
    write_register(cx.cpu, register, result);
    cx.cpu.arithmetic_flags &= !flag;
    if set & CF != 0 {
        cx.cpu.arithmetic_flags |= flag;
    }
    next(cx, insn)
}

fn adcx(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    add_with_flag(cx, insn, CF)
}

fn adox(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    add_with_flag(cx, insn, OF)
}

fn xchg(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    // Either operand may be the memory one; the decoder puts it first.
    let size = operand_size(insn, 0);
    let register = insn.op1_register();
    let source = read_register(cx.cpu, register);
    let old = modify_operand(cx, insn, size, |_, old| (source, old))?;
    write_register(cx.cpu, register, old);
    next(cx, insn)
}

fn xadd(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = operand_size(insn, 0);
    let register = insn.op1_register();
    let source = read_register(cx.cpu, register);
    let place = Place::of(cx, insn, 0, size, Access::Write)?;
    let old = place.load_for_update(cx, size)?;
    let (result, set) = flags::add(old, source, 0, size);
    match place {
        // The sum is written last: it stays when both operands are one register.
        Place::Register(_) => {
            write_register(cx.cpu, register, old);
            place.store(cx, size, result)?;
        }
        Place::Memory(_) => {
            place.store(cx, size, result)?;
            write_register(cx.cpu, register, old);
        }
    }
    cx.cpu.arithmetic_flags = set;
    next(cx, insn)
}

fn cmpxchg(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = operand_size(insn, 0);
    let source = read_operand(cx, insn, 1, size)?;
    let accumulator = read_gpr(cx.cpu, Gpr::RAX, size);
    let place = Place::of(cx, insn, 0, size, Access::Write)?;
    let old = place.load_for_update(cx, size)?;
    let (_, set) = flags::sub(accumulator, old, 0, size);
    let equal = set & ZF != 0;
    match place {
        Place::Memory(_) => place.store(cx, size, if equal { source } else { old })?,
        // Memory is written either way, a register is not, not even its upper half.
        Place::Register(_) if equal => place.store(cx, size, source)?,
        Place::Register(_) => {}
    }
    if !equal {
        write_gpr(cx.cpu, Gpr::RAX, size, old);
    }
    cx.cpu.arithmetic_flags = set;
    next(cx, insn)
}

fn cmpxchg8b(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let address = linear(cx, insn, 0, 8, Access::Write)?;
    let old = cx.load_for_update(address, 8)?;
    let pair = |cpu: &CpuState, high, low| read_gpr(cpu, high, 4) << 32 | read_gpr(cpu, low, 4);
    let equal = old == pair(cx.cpu, Gpr::RDX, Gpr::RAX);
    let new = if equal {
        pair(cx.cpu, Gpr::RCX, Gpr::RBX)
    } else {
        old
    };
    cx.store(address, 8, new)?;
    if !equal {
        write_gpr(cx.cpu, Gpr::RAX, 4, old);
        write_gpr(cx.cpu, Gpr::RDX, 4, old >> 32);
    }
    set_zero_flag(cx.cpu, equal);
    next(cx, insn)
}

fn cmpxchg16b(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let address = linear(cx, insn, 0, 16, Access::Write)?;
    if address.0 & 15 != 0 {
        return Err(Exception::general_protection(0));
    }
    cx.authorise_write(address, 16)?;
    let mut bytes = [0; 16];
    cx.load_bytes(address, &mut bytes)?;
    let old = u128::from_le_bytes(bytes);
    let gpr = |number: usize| u128::from(cx.cpu.gpr[number]);
    let equal = old == (gpr(Gpr::RDX) << 64 | gpr(Gpr::RAX));
    let new = if equal {
        gpr(Gpr::RCX) << 64 | gpr(Gpr::RBX)
    } else {
        old
    };
    cx.store_bytes(address, &new.to_le_bytes())?;
    if !equal {
        cx.cpu.gpr[Gpr::RAX] = old as u64;
        cx.cpu.gpr[Gpr::RDX] = (old >> 64) as u64;
    }
    set_zero_flag(cx.cpu, equal);
    next(cx, insn)
}

fn set_zero_flag(cpu: &mut CpuState, on: bool) {
    cpu.arithmetic_flags &= !ZF;
    if on {
        cpu.arithmetic_flags |= ZF;
    }
}
