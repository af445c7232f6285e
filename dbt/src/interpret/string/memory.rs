//! MOVS, STOS, LODS, CMPS and SCAS.

use iced_x86::{Code, Instruction, Mnemonic};

use super::{Form, Progress, bulk, repeat};
use crate::guest::flags::ZF;
use crate::guest::{Exception, Register as Gpr};
use crate::interpret::integer::flags::sub;
use crate::interpret::operand::{read_gpr, row, write_gpr};
use crate::interpret::{Access, Context, extension};
use crate::record::Row;

pub(super) const ROWS: &[Row] = &[
    row(Mnemonic::Cmpsb, cmps::<1>),
    row(Mnemonic::Cmpsw, cmps::<2>),
    row(Mnemonic::Cmpsd, cmpsd),
    row(Mnemonic::Cmpsq, cmps::<8>),
    row(Mnemonic::Lodsb, lods::<1>),
    row(Mnemonic::Lodsw, lods::<2>),
    row(Mnemonic::Lodsd, lods::<4>),
    row(Mnemonic::Lodsq, lods::<8>),
    row(Mnemonic::Movsb, movs::<1>),
    row(Mnemonic::Movsw, movs::<2>),
    row(Mnemonic::Movsd, movsd),
    row(Mnemonic::Movsq, movs::<8>),
    row(Mnemonic::Scasb, scas::<1>),
    row(Mnemonic::Scasw, scas::<2>),
    row(Mnemonic::Scasd, scas::<4>),
    row(Mnemonic::Scasq, scas::<8>),
    row(Mnemonic::Stosb, stos::<1>),
    row(Mnemonic::Stosw, stos::<2>),
    row(Mnemonic::Stosd, stos::<4>),
    row(Mnemonic::Stosq, stos::<8>),
];

type Done = Result<(), Exception>;

/// MOVSD is also the name of a scalar SSE2 move, which is not of this group.
fn movsd(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    match insn.code() {
        Code::Movsd_m32_m32 => movs::<4>(cx, insn),
        _ => extension::execute(cx, insn),
    }
}

/// CMPSD is also the name of a scalar SSE2 comparison, which is not of this group.
fn cmpsd(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    match insn.code() {
        Code::Cmpsd_m32_m32 => cmps::<4>(cx, insn),
        _ => extension::execute(cx, insn),
    }
}

fn movs<const SIZE: usize>(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let form = Form::of(cx.cpu, insn, SIZE);
    repeat(cx, insn, form, |cx, most| {
        let elements = match bulk::copy(cx, &form, most) {
            0 => {
                let source = form.element(cx, Gpr::RSI, Access::Read)?;
                let value = cx.load(source, SIZE)?;
                let destination = form.element(cx, Gpr::RDI, Access::Write)?;
                cx.store(destination, SIZE, value)?;
                1
            }
            elements => elements,
        };
        form.advance(cx.cpu, Gpr::RSI, elements);
        form.advance(cx.cpu, Gpr::RDI, elements);
        Ok(Progress {
            elements,
            ended: false,
        })
    })
}

fn stos<const SIZE: usize>(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let form = Form::of(cx.cpu, insn, SIZE);
    let value = read_gpr(cx.cpu, Gpr::RAX, SIZE);
    repeat(cx, insn, form, |cx, most| {
        let elements = match bulk::fill(cx, &form, value, most) {
            0 => {
                let destination = form.element(cx, Gpr::RDI, Access::Write)?;
                cx.store(destination, SIZE, value)?;
                1
            }
            elements => elements,
        };
        form.advance(cx.cpu, Gpr::RDI, elements);
        Ok(Progress {
            elements,
            ended: false,
        })
    })
}

fn lods<const SIZE: usize>(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let form = Form::of(cx.cpu, insn, SIZE);
    repeat(cx, insn, form, |cx, _| {
        let source = form.element(cx, Gpr::RSI, Access::Read)?;
        let value = cx.load(source, SIZE)?;
        write_gpr(cx.cpu, Gpr::RAX, SIZE, value);
        form.advance(cx.cpu, Gpr::RSI, 1);
        Ok(Progress::ONE)
    })
}

/// Sets the flags of the last comparison done, and says whether it ends the repetition.
fn compare(cx: &mut Context<'_>, form: &Form, left: u64, right: u64) -> bool {
    let (_, flags) = sub(left, right, 0, form.element);
    cx.cpu.arithmetic_flags = flags;
    (flags & ZF != 0) != form.while_zero
}

fn cmps<const SIZE: usize>(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let form = Form::of(cx.cpu, insn, SIZE);
    repeat(cx, insn, form, |cx, most| {
        if let Some((elements, left, right)) = bulk::compare::<SIZE>(cx, &form, most) {
            form.advance(cx.cpu, Gpr::RSI, elements);
            form.advance(cx.cpu, Gpr::RDI, elements);
            let ended = compare(cx, &form, left, right);
            return Ok(Progress { elements, ended });
        }
        let source = form.element(cx, Gpr::RSI, Access::Read)?;
        let left = cx.load(source, SIZE)?;
        let destination = form.element(cx, Gpr::RDI, Access::Read)?;
        let right = cx.load(destination, SIZE)?;
        form.advance(cx.cpu, Gpr::RSI, 1);
        form.advance(cx.cpu, Gpr::RDI, 1);
        let ended = compare(cx, &form, left, right);
        Ok(Progress { elements: 1, ended })
    })
}

fn scas<const SIZE: usize>(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let form = Form::of(cx.cpu, insn, SIZE);
    let left = read_gpr(cx.cpu, Gpr::RAX, SIZE);
    repeat(cx, insn, form, |cx, most| {
        if let Some((elements, right)) = bulk::scan::<SIZE>(cx, &form, left, most) {
            form.advance(cx.cpu, Gpr::RDI, elements);
            let ended = compare(cx, &form, left, right);
            return Ok(Progress { elements, ended });
        }
        let destination = form.element(cx, Gpr::RDI, Access::Read)?;
        let right = cx.load(destination, SIZE)?;
        form.advance(cx.cpu, Gpr::RDI, 1);
        let ended = compare(cx, &form, left, right);
        Ok(Progress { elements: 1, ended })
    })
}
