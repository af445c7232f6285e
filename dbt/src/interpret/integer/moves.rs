//! Moves, extensions, byte swaps, conditional moves and address computation.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::flags::condition;
use crate::guest::{Exception, Register as Gpr};
use crate::interpret::address::{effective_address, linear};
use crate::interpret::operand::{
    next, operand_size, read_gpr, read_operand, read_register, register_size, row, sign_extend,
    write_gpr, write_operand, write_register,
};
use crate::interpret::system::shared_mnemonic;
use crate::interpret::{Access, Context};
use crate::record::Row;

pub(crate) const ROWS: &[Row] = &[
    row(Mnemonic::Bswap, bswap),
    row(Mnemonic::Cbw, widen_accumulator),
    row(Mnemonic::Cdq, sign_to_rdx),
    row(Mnemonic::Cdqe, widen_accumulator),
    row(Mnemonic::Cmova, cmov),
    row(Mnemonic::Cmovae, cmov),
    row(Mnemonic::Cmovb, cmov),
    row(Mnemonic::Cmovbe, cmov),
    row(Mnemonic::Cmove, cmov),
    row(Mnemonic::Cmovg, cmov),
    row(Mnemonic::Cmovge, cmov),
    row(Mnemonic::Cmovl, cmov),
    row(Mnemonic::Cmovle, cmov),
    row(Mnemonic::Cmovne, cmov),
    row(Mnemonic::Cmovno, cmov),
    row(Mnemonic::Cmovnp, cmov),
    row(Mnemonic::Cmovns, cmov),
    row(Mnemonic::Cmovo, cmov),
    row(Mnemonic::Cmovp, cmov),
    row(Mnemonic::Cmovs, cmov),
    row(Mnemonic::Cqo, sign_to_rdx),
    row(Mnemonic::Cwd, sign_to_rdx),
    row(Mnemonic::Cwde, widen_accumulator),
    row(Mnemonic::Lea, lea),
    row(Mnemonic::Mov, mov),
    row(Mnemonic::Movbe, movbe),
    row(Mnemonic::Movnti, mov_integer),
    row(Mnemonic::Movsx, movsx),
    row(Mnemonic::Movsxd, movsx),
    row(Mnemonic::Movzx, movzx),
    row(Mnemonic::Seta, setcc),
    row(Mnemonic::Setae, setcc),
    row(Mnemonic::Setb, setcc),
    row(Mnemonic::Setbe, setcc),
    row(Mnemonic::Sete, setcc),
    row(Mnemonic::Setg, setcc),
    row(Mnemonic::Setge, setcc),
    row(Mnemonic::Setl, setcc),
    row(Mnemonic::Setle, setcc),
    row(Mnemonic::Setne, setcc),
    row(Mnemonic::Setno, setcc),
    row(Mnemonic::Setnp, setcc),
    row(Mnemonic::Setns, setcc),
    row(Mnemonic::Seto, setcc),
    row(Mnemonic::Setp, setcc),
    row(Mnemonic::Sets, setcc),
    row(Mnemonic::Xlatb, xlat),
];

type Done = Result<(), Exception>;

/// MOV: integer registers and memory here; segment, control and debug registers elsewhere.
fn mov(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    match shared_mnemonic(insn.code()) {
        Some(execute) => execute(cx, insn),
        None => mov_integer(cx, insn),
    }
}

fn mov_integer(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = operand_size(insn, 0);
    let value = read_operand(cx, insn, 1, size)?;
    write_operand(cx, insn, 0, size, value)?;
    next(cx, insn)
}

fn movzx(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = operand_size(insn, 1);
    let value = read_operand(cx, insn, 1, size)?;
    write_register(cx.cpu, insn.op0_register(), value);
    next(cx, insn)
}

fn movsx(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = operand_size(insn, 1);
    let value = read_operand(cx, insn, 1, size)?;
    write_register(cx.cpu, insn.op0_register(), sign_extend(value, size));
    next(cx, insn)
}

fn movbe(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = operand_size(insn, 0);
    let value = read_operand(cx, insn, 1, size)?;
    let swapped = value.swap_bytes() >> (64 - 8 * size);
    write_operand(cx, insn, 0, size, swapped)?;
    next(cx, insn)
}

fn bswap(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let register = insn.op0_register();
    let value = read_register(cx.cpu, register);
    let swapped = match register_size(register) {
        8 => value.swap_bytes(),
        4 => u64::from((value as u32).swap_bytes()),
        // Undefined for 16 bits; processors swap the zero-extended register's halves away.
        _ => 0,
    };
    write_register(cx.cpu, register, swapped);
    next(cx, insn)
}

fn lea(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let offset = effective_address(cx.cpu, insn);
    write_register(cx.cpu, insn.op0_register(), offset);
    next(cx, insn)
}

fn cmov(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let register = insn.op0_register();
    let size = register_size(register);
    // The source is read, and may fault, whatever the condition.
    let source = read_operand(cx, insn, 1, size)?;
    let value = if condition(insn.condition_code(), cx.cpu.arithmetic_flags) {
        source
    } else {
        read_register(cx.cpu, register)
    };
    write_register(cx.cpu, register, value);
    next(cx, insn)
}

fn setcc(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let holds = condition(insn.condition_code(), cx.cpu.arithmetic_flags);
    write_operand(cx, insn, 0, 1, u64::from(holds))?;
    next(cx, insn)
}

/// CBW, CWDE, CDQE: the accumulator, sign-extended to twice its size.
fn widen_accumulator(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let to = match insn.code() {
        Code::Cbw => 2,
        Code::Cwde => 4,
        _ => 8,
    };
    let value = sign_extend(cx.cpu.gpr[Gpr::RAX], to / 2);
    write_gpr(cx.cpu, Gpr::RAX, to, value);
    next(cx, insn)
}

/// CWD, CDQ, CQO: the accumulator's sign, in all of DX, EDX or RDX.
fn sign_to_rdx(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = match insn.code() {
        Code::Cwd => 2,
        Code::Cdq => 4,
        _ => 8,
    };
    let value = sign_extend(read_gpr(cx.cpu, Gpr::RAX, size), size);
    let sign = ((value as i64) >> 63) as u64;
    write_gpr(cx.cpu, Gpr::RDX, size, sign);
    next(cx, insn)
}

fn xlat(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let operand = (0..insn.op_count())
        .find(|&operand| insn.op_kind(operand) == OpKind::Memory)
        .unwrap_or(0);
    let address = linear(cx, insn, operand, 1, Access::Read)?;
    let value = cx.load(address, 1)?;
    write_gpr(cx.cpu, Gpr::RAX, 1, value);
    next(cx, insn)
}
