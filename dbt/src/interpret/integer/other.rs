//! What is left: no-operations, cache hints, BOUND, random numbers, undefined instructions.

use iced_x86::{Instruction, Mnemonic};

use crate::guest::Exception;
use crate::guest::flags::CF;
use crate::interpret::address::{
    address_mask, effective_address, linear, memory_segment, segment_linear,
};
use crate::interpret::operand::{
    next, read_register, register_size, row, sign_extend, write_register,
};
use crate::interpret::{Access, Context};
use crate::record::Row;

pub(crate) const ROWS: &[Row] = &[
    row(Mnemonic::Bndcl, nop),
    row(Mnemonic::Bndcn, nop),
    row(Mnemonic::Bndcu, nop),
    row(Mnemonic::Bndldx, nop),
    row(Mnemonic::Bndmk, nop),
    row(Mnemonic::Bndmov, nop),
    row(Mnemonic::Bndstx, nop),
    row(Mnemonic::Bound, bound),
    row(Mnemonic::Cldemote, nop),
    row(Mnemonic::Clflush, flush_line),
    row(Mnemonic::Clflushopt, flush_line),
    row(Mnemonic::Clwb, flush_line),
    row(Mnemonic::Endbr32, nop),
    row(Mnemonic::Endbr64, nop),
    row(Mnemonic::Lfence, nop),
    row(Mnemonic::Mfence, nop),
    row(Mnemonic::Nop, nop),
    row(Mnemonic::Pause, nop),
    row(Mnemonic::Prefetch, nop),
    row(Mnemonic::Prefetchit0, nop),
    row(Mnemonic::Prefetchit1, nop),
    row(Mnemonic::Prefetchnta, nop),
    row(Mnemonic::Prefetcht0, nop),
    row(Mnemonic::Prefetcht1, nop),
    row(Mnemonic::Prefetcht2, nop),
    row(Mnemonic::Prefetchw, nop),
    row(Mnemonic::Prefetchwt1, nop),
    row(Mnemonic::Rdrand, random),
    row(Mnemonic::Rdseed, random),
    // No-operations while shadow stacks are not enabled: unwinders rely on it.
    row(Mnemonic::Rdsspd, nop),
    row(Mnemonic::Rdsspq, nop),
    row(Mnemonic::Reservednop, nop),
    row(Mnemonic::Sfence, nop),
    row(Mnemonic::Ud0, undefined),
    row(Mnemonic::Ud1, undefined),
    row(Mnemonic::Ud2, undefined),
];

type Done = Result<(), Exception>;

/// Nothing: memory operands of hints and multi-byte NOPs are not even looked at.
fn nop(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    next(cx, insn)
}

fn undefined(_: &mut Context<'_>, _: &Instruction) -> Done {
    Err(Exception::invalid_opcode())
}

/// Cache line flushes: there is no cache, but they fault, and match data breakpoints, as a load of a
/// byte does.
fn flush_line(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let address = linear(cx, insn, 0, 1, Access::Read)?;
    cx.translate(address, Access::Read)?;
    cx.watch_load(address, 1);
    next(cx, insn)
}

/// BOUND: a signed index outside the pair of bounds in memory raises #BR.
fn bound(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let register = insn.op0_register();
    let size = register_size(register);
    let index = sign_extend(read_register(cx.cpu, register), size) as i64;
    let segment = memory_segment(cx.cpu, insn);
    let offset = effective_address(cx.cpu, insn);
    let second = offset.wrapping_add(size as u64) & address_mask(insn);
    let mut limits = [0; 2];
    for (limit, offset) in limits.iter_mut().zip([offset, second]) {
        let address = segment_linear(cx, segment, offset, size, Access::Read)?;
        *limit = sign_extend(cx.load(address, size)?, size) as i64;
    }
    if index < limits[0] || index > limits[1] {
        return Err(Exception::plain(Exception::BR));
    }
    next(cx, insn)
}

/// RDRAND and RDSEED: always successful, which CF says; the other flags are cleared.
fn random(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let value = cx.platform.random();
    write_register(cx.cpu, insn.op0_register(), value);
    cx.cpu.arithmetic_flags = CF;
    next(cx, insn)
}
