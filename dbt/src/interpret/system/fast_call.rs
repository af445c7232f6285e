//! SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS and the FS and GS base instructions
//! (SDM volume 3, 5.8.7 and 5.8.8; volume 2).

use iced_x86::{Instruction, Mnemonic, Register as Name};

use super::segments::flat_segment;
use super::{require_canonical, require_feature, require_ring0};
use crate::guest::cpuid::Feature;
use crate::guest::flags::*;
use crate::guest::{Exception, Register, Segment, SegmentIndex};
use crate::interpret::Context;
use crate::interpret::operand::{next, read_register, register_size, row, write_register};
use crate::record::Row;

pub(crate) const ROWS: &[Row] = &[
    row(Mnemonic::Syscall, syscall),
    row(Mnemonic::Sysret, sysret),
    row(Mnemonic::Sysretq, sysret),
    row(Mnemonic::Sysenter, sysenter),
    row(Mnemonic::Sysexit, sysexit),
    row(Mnemonic::Sysexitq, sysexit),
    row(Mnemonic::Swapgs, swapgs),
    row(Mnemonic::Rdfsbase, read_base),
    row(Mnemonic::Rdgsbase, read_base),
    row(Mnemonic::Wrfsbase, write_base),
    row(Mnemonic::Wrgsbase, write_base),
];

fn load_flat(cx: &mut Context<'_>, cs: u16, ss: u16, size: u16, level: u8) {
    *cx.cpu.segment_mut(SegmentIndex::Cs) = flat_segment(cs, Segment::CODE | size, level);
    *cx.cpu.segment_mut(SegmentIndex::Ss) = flat_segment(ss, Segment::BIG, level);
    cx.cpu.refresh_mode();
}

fn syscall(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    if cx.cpu.control.efer & EFER_SCE == 0 || !cx.cpu.code64() {
        return Err(Exception::invalid_opcode());
    }
    let cpu = &mut *cx.cpu;
    cpu.gpr[Register::RCX] = insn.next_ip();
    cpu.gpr[11] = cpu.rflags() & !RF;
    cpu.rip = cpu.msrs.lstar;
    let selector = (cpu.msrs.star >> 32) as u16 & 0xfffc;
    let cleared = cpu.msrs.fmask | RF;
    cpu.set_rflags(0, cleared);
    load_flat(cx, selector, selector.wrapping_add(8), Segment::LONG, 0);
    // A TF that the mask clears takes no trap; one that it keeps traps after the first
    // instruction of the handler.
    cx.cpu.step_suppressed = 1;
    Ok(())
}

fn sysret(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    if cx.cpu.control.efer & EFER_SCE == 0 || !cx.cpu.code64() {
        return Err(Exception::invalid_opcode());
    }
    require_ring0(cx.cpu)?;
    let wide = insn.mnemonic() == Mnemonic::Sysretq;
    let target = cx.cpu.gpr[Register::RCX];
    if wide {
        require_canonical(target)?;
    }
    // The flags that R11 gives (SDM volume 2, SYSRET): RF and VM are cleared.
    const LOADED: u64 = 0x3c_7fd7;
    let cpu = &mut *cx.cpu;
    let flags = cpu.gpr[11] & LOADED;
    let base = (cpu.msrs.star >> 48) as u16;
    let (offset, size) = if wide {
        (16, Segment::LONG)
    } else {
        (0, Segment::BIG)
    };
    cpu.rip = if wide { target } else { target & 0xffff_ffff };
    cpu.set_rflags(flags, ARITHMETIC | IF | DF | SYSTEM);
    let cs = base.wrapping_add(offset) | 3;
    load_flat(cx, cs, base.wrapping_add(8) | 3, size, 3);
    Ok(())
}

fn sysenter(cx: &mut Context<'_>, _insn: &Instruction) -> Result<(), Exception> {
    let selector = cx.cpu.msrs.sysenter_cs as u16 & 0xfffc;
    if cx.cpu.control.cr0 & CR0_PE == 0 || selector == 0 {
        return Err(Exception::general_protection(0));
    }
    let long = cx.cpu.long_mode();
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    let cpu = &mut *cx.cpu;
    cpu.rip = cpu.msrs.sysenter_eip & mask;
    cpu.gpr[Register::RSP] = cpu.msrs.sysenter_esp & mask;
    cpu.set_rflags(0, VM | IF | RF);
    let size = if long { Segment::LONG } else { Segment::BIG };
    load_flat(cx, selector, selector.wrapping_add(8), size, 0);
    cx.cpu.step_suppressed = 1;
    Ok(())
}

fn sysexit(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let selector = cx.cpu.msrs.sysenter_cs as u16 & 0xfffc;
    if !cx.cpu.protected() || selector == 0 {
        return Err(Exception::general_protection(0));
    }
    require_ring0(cx.cpu)?;
    let (rip, rsp) = (cx.cpu.gpr[Register::RDX], cx.cpu.gpr[Register::RCX]);
    let (offset, size, mask) = if insn.mnemonic() == Mnemonic::Sysexitq {
        require_canonical(rip)?;
        require_canonical(rsp)?;
        (32, Segment::LONG, u64::MAX)
    } else {
        (16, Segment::BIG, 0xffff_ffff)
    };
    cx.cpu.rip = rip & mask;
    cx.cpu.gpr[Register::RSP] = rsp & mask;
    let cs = selector.wrapping_add(offset) | 3;
    load_flat(cx, cs, cs.wrapping_add(8), size, 3);
    Ok(())
}

fn swapgs(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    if !cx.cpu.code64() {
        return Err(Exception::invalid_opcode());
    }
    require_ring0(cx.cpu)?;
    let cpu = &mut *cx.cpu;
    let base = &mut cpu.segments[SegmentIndex::Gs as usize].base;
    std::mem::swap(base, &mut cpu.msrs.kernel_gs_base);
    next(cx, insn)
}

fn base_segment(cx: &Context<'_>, insn: &Instruction) -> Result<SegmentIndex, Exception> {
    if cx.cpu.control.cr4 & CR4_FSGSBASE == 0 || !cx.cpu.code64() {
        return Err(Exception::invalid_opcode());
    }
    require_feature(cx.cpu, Feature::Fsgsbase)?;
    Ok(match insn.mnemonic() {
        Mnemonic::Rdfsbase | Mnemonic::Wrfsbase => SegmentIndex::Fs,
        _ => SegmentIndex::Gs,
    })
}

fn read_base(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let index = base_segment(cx, insn)?;
    let base = cx.cpu.segment(index).base;
    write_register(cx.cpu, insn.op0_register(), base);
    next(cx, insn)
}

fn write_base(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let index = base_segment(cx, insn)?;
    let register: Name = insn.op0_register();
    let value = read_register(cx.cpu, register);
    if register_size(register) == 8 {
        require_canonical(value)?;
    }
    cx.cpu.segment_mut(index).base = value;
    next(cx, insn)
}
