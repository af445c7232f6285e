//! IN and OUT, and the right to use a port (SDM volume 1, 18.5).

use iced_x86::{Code, Instruction, Mnemonic};

use super::iopl;
use super::segments::table_address;
use crate::guest::flags::*;
use crate::guest::{Exception, Register};
use crate::interpret::Context;
use crate::interpret::operand::{next, row, write_gpr};
use crate::record::Row;

pub(crate) const ROWS: &[Row] = &[row(Mnemonic::In, input), row(Mnemonic::Out, output)];

/// #GP(0) unless the program may use `size` ports from `port` on: by IOPL, or by the I/O
/// permission bitmap of the TSS, which alone counts in virtual-8086 mode.
pub fn check_port(cx: &mut Context<'_>, port: u16, size: usize) -> Result<(), Exception> {
    let cpu = &*cx.cpu;
    let vm86 = cpu.system_flags & VM != 0;
    if cpu.control.cr0 & CR0_PE == 0 || !vm86 && cpu.cpl() <= iopl(cpu) {
        return Ok(());
    }
    let refused = Exception::general_protection(0);
    let tr = cpu.control.tr;
    let limit = u64::from(tr.limit);
    if !tr.present() || tr.kind() & 8 == 0 || limit < 103 {
        return Err(refused);
    }
    let at = table_address(cpu, tr.base, 102);
    let bitmap = cx.load_system(at, 2)?;
    // Two bytes are always read, so the bitmap must be followed by one more.
    let byte = bitmap + u64::from(port / 8);
    if byte + 1 > limit {
        return Err(refused);
    }
    let at = table_address(cx.cpu, tr.base, byte);
    let bits = cx.load_system(at, 2)? >> (port % 8);
    if bits & ((1 << size) - 1) != 0 {
        return Err(refused);
    }
    Ok(())
}

/// The port and the access size of an IN or OUT.
fn request(cx: &Context<'_>, insn: &Instruction) -> (u16, usize) {
    let dx = cx.cpu.gpr[Register::RDX] as u16;
    let immediate = u16::from(insn.immediate8());
    match insn.code() {
        Code::In_AL_imm8 | Code::Out_imm8_AL => (immediate, 1),
        Code::In_AX_imm8 | Code::Out_imm8_AX => (immediate, 2),
        Code::In_EAX_imm8 | Code::Out_imm8_EAX => (immediate, 4),
        Code::In_AL_DX | Code::Out_DX_AL => (dx, 1),
        Code::In_AX_DX | Code::Out_DX_AX => (dx, 2),
        _ => (dx, 4),
    }
}

fn input(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let (port, size) = request(cx, insn);
    check_port(cx, port, size)?;
    let instructions = cx.cpu.instructions;
    let value = cx
        .platform
        .port_read(cx.mem, instructions, port, size as u8);
    write_gpr(cx.cpu, Register::RAX, size, u64::from(value));
    super::debug::port_access(cx, port, size as u64);
    next(cx, insn)
}

fn output(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let (port, size) = request(cx, insn);
    check_port(cx, port, size)?;
    let instructions = cx.cpu.instructions;
    let value = cx.cpu.gpr[Register::RAX] as u32 & (u32::MAX >> (32 - 8 * size));
    cx.platform
        .port_write(cx.mem, instructions, port, size as u8, value);
    super::debug::port_access(cx, port, size as u64);
    next(cx, insn)
}
