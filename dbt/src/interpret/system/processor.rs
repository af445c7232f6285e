//! What the processor says of itself, its clock, and the flags that guard it: CPUID, RDTSC,
//! RDPID, HLT, CLI, STI, STAC, CLAC, RDPKRU, WRPKRU and cache invalidation (SDM volume 2).

use iced_x86::{Instruction, Mnemonic};

use super::debug::{SHADOW_NONE, SHADOW_STI};
use super::{iopl, require_feature, require_ring0, ring0_no_effect};
use crate::guest::cpuid::{self, Feature};
use crate::guest::flags::*;
use crate::guest::{CpuState, Exception, Register};
use crate::interpret::Context;
use crate::interpret::operand::{next, row, write_register};
use crate::record::Row;
use crate::run::host_counter;

pub(crate) const ROWS: &[Row] = &[
    row(Mnemonic::Cpuid, identify),
    row(Mnemonic::Rdtsc, read_time_stamp),
    row(Mnemonic::Rdtscp, read_time_stamp_and_processor),
    row(Mnemonic::Rdpid, read_processor),
    row(Mnemonic::Rdpmc, read_counter),
    row(Mnemonic::Hlt, halt),
    row(Mnemonic::Cli, clear_interrupts),
    row(Mnemonic::Sti, set_interrupts),
    row(Mnemonic::Stac, open_user_pages),
    row(Mnemonic::Clac, close_user_pages),
    row(Mnemonic::Rdpkru, read_protection_keys),
    row(Mnemonic::Wrpkru, write_protection_keys),
    row(Mnemonic::Invd, ring0_no_effect),
    row(Mnemonic::Wbinvd, ring0_no_effect),
    row(Mnemonic::Wbnoinvd, ring0_no_effect),
];

const IA32_APIC_BASE: u32 = 0x1b;
const APIC_ENABLED: u64 = 1 << 11;

/// Sets EDX:EAX.
fn set_pair(cpu: &mut CpuState, value: u64) {
    cpu.gpr[Register::RAX] = value & 0xffff_ffff;
    cpu.gpr[Register::RDX] = value >> 32;
}

fn identify(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let leaf = cx.cpu.gpr[Register::RAX] as u32;
    let subleaf = cx.cpu.gpr[Register::RCX] as u32;
    // Nothing but leaf 1 tells of the APIC: the machine need not be asked for others.
    let apic = leaf != 1
        || cx
            .platform
            .msr_read(cx.cpu.instructions, IA32_APIC_BASE)
            .is_none_or(|base| base & APIC_ENABLED != 0);
    let [eax, ebx, ecx, edx] = cpuid::query(cx.cpu, apic, leaf, subleaf);
    let gpr = &mut cx.cpu.gpr;
    gpr[Register::RAX] = u64::from(eax);
    gpr[Register::RBX] = u64::from(ebx);
    gpr[Register::RCX] = u64::from(ecx);
    gpr[Register::RDX] = u64::from(edx);
    next(cx, insn)
}

/// CR4.TSD keeps the time-stamp counter from rings 1 to 3.
fn check_time_stamp(cpu: &CpuState) -> Result<(), Exception> {
    if cpu.control.cr4 & CR4_TSD != 0 && cpu.cpl() != 0 {
        return Err(Exception::general_protection(0));
    }
    Ok(())
}

/// The guest's time-stamp counter.
pub fn time_stamp(cx: &mut Context<'_>) -> u64 {
    let instructions = cx.cpu.instructions;
    let host = (cx.cpu.real_time != 0).then(host_counter).flatten();
    let machine = match host {
        None => cx.platform.time_stamp(instructions),
        Some(now) => cx.cpu.time_line.at(now).unwrap_or_else(|| {
            let exact = cx.platform.time_stamp(instructions);
            cx.cpu.time_line.renew(now, exact)
        }),
    };
    machine.wrapping_add(cx.cpu.msrs.tsc_offset)
}

fn read_time_stamp(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    check_time_stamp(cx.cpu)?;
    let value = time_stamp(cx);
    set_pair(cx.cpu, value);
    next(cx, insn)
}

fn read_time_stamp_and_processor(
    cx: &mut Context<'_>,
    insn: &Instruction,
) -> Result<(), Exception> {
    require_feature(cx.cpu, Feature::Rdtscp)?;
    check_time_stamp(cx.cpu)?;
    let value = time_stamp(cx);
    set_pair(cx.cpu, value);
    cx.cpu.gpr[Register::RCX] = cx.cpu.msrs.tsc_aux & 0xffff_ffff;
    next(cx, insn)
}

fn read_processor(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    require_feature(cx.cpu, Feature::Rdpid)?;
    let value = cx.cpu.msrs.tsc_aux & 0xffff_ffff;
    write_register(cx.cpu, insn.op0_register(), value);
    next(cx, insn)
}

/// There are no performance counters: every index is out of range.
fn read_counter(_cx: &mut Context<'_>, _insn: &Instruction) -> Result<(), Exception> {
    Err(Exception::general_protection(0))
}

fn halt(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    require_ring0(cx.cpu)?;
    cx.cpu.halted = 1;
    next(cx, insn)
}

/// Which flag CLI and STI change, IF or VIF (SDM volume 3, 6.8.1 and 20.3 to 20.4).
fn interrupt_flag_kind(cpu: &CpuState) -> Result<u64, Exception> {
    if cpu.control.cr0 & CR0_PE == 0 || cpu.cpl() <= iopl(cpu) {
        return Ok(IF);
    }
    let extension = if cpu.system_flags & VM != 0 {
        CR4_VME
    } else {
        CR4_PVI
    };
    if cpu.cpl() == 3 && cpu.control.cr4 & extension != 0 {
        Ok(VIF)
    } else {
        Err(Exception::general_protection(0))
    }
}

fn clear_interrupts(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let flag = interrupt_flag_kind(cx.cpu)?;
    cx.cpu.set_rflags(0, flag);
    next(cx, insn)
}

fn set_interrupts(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let flag = interrupt_flag_kind(cx.cpu)?;
    if flag == VIF && cx.cpu.system_flags & VIP != 0 {
        return Err(Exception::general_protection(0));
    }
    if flag == IF && cx.cpu.interrupt_flag == 0 && cx.cpu.interrupt_shadow == SHADOW_NONE {
        cx.cpu.interrupt_shadow = SHADOW_STI;
    }
    cx.cpu.set_rflags(flag, flag);
    next(cx, insn)
}

fn set_alignment_flag(
    cx: &mut Context<'_>,
    insn: &Instruction,
    value: u64,
) -> Result<(), Exception> {
    require_feature(cx.cpu, Feature::Smap)?;
    if cx.cpu.cpl() != 0 {
        return Err(Exception::invalid_opcode());
    }
    cx.cpu.set_rflags(value, AC);
    next(cx, insn)
}

fn open_user_pages(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    set_alignment_flag(cx, insn, AC)
}

fn close_user_pages(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    set_alignment_flag(cx, insn, 0)
}

fn check_protection_keys(cpu: &CpuState) -> Result<(), Exception> {
    if cpu.control.cr4 & CR4_PKE == 0 {
        return Err(Exception::invalid_opcode());
    }
    if cpu.gpr[Register::RCX] as u32 != 0 {
        return Err(Exception::general_protection(0));
    }
    Ok(())
}

fn read_protection_keys(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    check_protection_keys(cx.cpu)?;
    let value = u64::from(cx.cpu.control.pkru);
    set_pair(cx.cpu, value);
    next(cx, insn)
}

fn write_protection_keys(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    check_protection_keys(cx.cpu)?;
    if cx.cpu.gpr[Register::RDX] as u32 != 0 {
        return Err(Exception::general_protection(0));
    }
    let rights = cx.cpu.gpr[Register::RAX] as u32;
    cx.set_protection_rights(rights);
    next(cx, insn)
}
