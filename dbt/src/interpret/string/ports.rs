//! INS and OUTS.

use iced_x86::{Instruction, Mnemonic};

use super::{Form, Progress, repeat};
use crate::guest::{Exception, Register as Gpr};
use crate::interpret::operand::{read_gpr, row};
use crate::interpret::system::check_port;
use crate::interpret::{Access, Context};
use crate::record::Row;

pub(super) const ROWS: &[Row] = &[
    row(Mnemonic::Insb, ins::<1>),
    row(Mnemonic::Insw, ins::<2>),
    row(Mnemonic::Insd, ins::<4>),
    row(Mnemonic::Outsb, outs::<1>),
    row(Mnemonic::Outsw, outs::<2>),
    row(Mnemonic::Outsd, outs::<4>),
];

type Done = Result<(), Exception>;

fn ins<const SIZE: usize>(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let form = Form::of(cx.cpu, insn, SIZE);
    let port = read_gpr(cx.cpu, Gpr::RDX, 2) as u16;
    repeat(cx, insn, form, |cx, _| {
        check_port(cx, port, SIZE)?;
        // The device is read only once it is certain that the store will not fault.
        let destination = form.element(cx, Gpr::RDI, Access::Write)?;
        cx.authorise_write(destination, SIZE)?;
        let instructions = cx.cpu.instructions;
        let value = cx
            .platform
            .port_read(cx.mem, instructions, port, SIZE as u8);
        cx.store(destination, SIZE, u64::from(value))?;
        form.advance(cx.cpu, Gpr::RDI, 1);
        Ok(Progress::ONE)
    })
}

fn outs<const SIZE: usize>(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let form = Form::of(cx.cpu, insn, SIZE);
    let port = read_gpr(cx.cpu, Gpr::RDX, 2) as u16;
    repeat(cx, insn, form, |cx, _| {
        check_port(cx, port, SIZE)?;
        let source = form.element(cx, Gpr::RSI, Access::Read)?;
        let value = cx.load(source, SIZE)? as u32;
        let instructions = cx.cpu.instructions;
        cx.platform
            .port_write(cx.mem, instructions, port, SIZE as u8, value);
        form.advance(cx.cpu, Gpr::RSI, 1);
        Ok(Progress::ONE)
    })
}
