//! LGDT, LIDT, SGDT, SIDT, LLDT, SLDT, LTR, STR (SDM volume 2; volume 3, 2.4).

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::segments::{Descriptor, code_of, is_null, null_segment};
use super::{require_canonical, require_protected, require_ring0};
use crate::guest::flags::CR4_UMIP;
use crate::guest::{CodeSize, CpuState, DescriptorTable, Exception, Segment};
use crate::interpret::operand::{next, read_operand, row, write_operand};
use crate::interpret::{Access, Context, address};
use crate::record::Row;

pub(crate) const ROWS: &[Row] = &[
    row(Mnemonic::Lgdt, load_table),
    row(Mnemonic::Lidt, load_table),
    row(Mnemonic::Sgdt, store_table),
    row(Mnemonic::Sidt, store_table),
    row(Mnemonic::Lldt, load_ldtr),
    row(Mnemonic::Sldt, store_selector),
    row(Mnemonic::Ltr, load_tr),
    row(Mnemonic::Str, store_selector),
];

/// #GP(0) where user-mode instruction prevention hides system state (SDM volume 3, 2.5).
pub fn check_umip(cpu: &CpuState) -> Result<(), Exception> {
    if cpu.control.cr4 & CR4_UMIP != 0 && cpu.cpl() > 0 {
        Err(Exception::general_protection(0))
    } else {
        Ok(())
    }
}

fn load_table(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    use iced_x86::Code;
    require_ring0(cx.cpu)?;
    let size = if cx.cpu.code64() { 10 } else { 6 };
    let at = address::linear(cx, insn, 0, size, Access::Read)?;
    let mut bytes = [0; 10];
    cx.load_bytes(at, &mut bytes[..size])?;
    let limit = u16::from_le_bytes([bytes[0], bytes[1]]);
    let mut base_bytes = [0; 8];
    base_bytes.copy_from_slice(&bytes[2..]);
    let mut base = u64::from_le_bytes(base_bytes);
    if matches!(insn.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) {
        base &= 0xff_ffff;
    }
    if size == 10 {
        require_canonical(base)?;
    }
    let table = DescriptorTable { base, limit };
    if insn.mnemonic() == Mnemonic::Lgdt {
        cx.cpu.control.gdtr = table;
    } else {
        cx.cpu.control.idtr = table;
    }
    next(cx, insn)
}

fn store_table(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    check_umip(cx.cpu)?;
    let table = if insn.mnemonic() == Mnemonic::Sgdt {
        cx.cpu.control.gdtr
    } else {
        cx.cpu.control.idtr
    };
    let size = if cx.cpu.mode.code_size() == CodeSize::Bits64 {
        10
    } else {
        6
    };
    let at = address::linear(cx, insn, 0, size, Access::Write)?;
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    cx.store_bytes(at, &bytes[..size])?;
    next(cx, insn)
}

/// Reads and checks the descriptor of an LDT or an available TSS in the GDT.
fn fetch_system(
    cx: &mut Context<'_>,
    selector: u16,
    kinds: [u8; 2],
) -> Result<(Descriptor, Segment), Exception> {
    let named = Exception::general_protection(code_of(selector));
    if selector & 4 != 0 {
        return Err(named);
    }
    let descriptor = Descriptor::fetch(cx, selector, Exception::GP)?;
    if !descriptor.is_system() || !kinds.contains(&descriptor.kind()) {
        return Err(named);
    }
    let mut segment = descriptor.segment();
    if cx.cpu.long_mode() {
        segment.base |= descriptor.fetch_high(cx, Exception::GP)? << 32;
        require_canonical(segment.base).map_err(|_| named)?;
    }
    descriptor.require_present()?;
    Ok((descriptor, segment))
}

fn load_ldtr(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    require_protected(cx.cpu)?;
    require_ring0(cx.cpu)?;
    let selector = read_operand(cx, insn, 0, 2)? as u16;
    cx.cpu.control.ldtr = if is_null(selector) {
        null_segment(selector, 0)
    } else {
        fetch_system(cx, selector, [2, 2])?.1
    };
    next(cx, insn)
}

fn load_tr(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    require_protected(cx.cpu)?;
    require_ring0(cx.cpu)?;
    let selector = read_operand(cx, insn, 0, 2)? as u16;
    if is_null(selector) {
        return Err(Exception::general_protection(0));
    }
    // Long mode knows no 16-bit TSS.
    let kinds = if cx.cpu.long_mode() { [9, 9] } else { [1, 9] };
    let (descriptor, mut segment) = fetch_system(cx, selector, kinds)?;
    descriptor.mark_busy(cx, true)?;
    segment.attributes |= 2;
    cx.cpu.control.tr = segment;
    next(cx, insn)
}

fn store_selector(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    require_protected(cx.cpu)?;
    check_umip(cx.cpu)?;
    let selector = if insn.mnemonic() == Mnemonic::Sldt {
        cx.cpu.control.ldtr.selector
    } else {
        cx.cpu.control.tr.selector
    };
    let size = if insn.op0_kind() == OpKind::Register {
        8
    } else {
        2
    };
    write_operand(cx, insn, 0, size, u64::from(selector))?;
    next(cx, insn)
}
