//! RDMSR and WRMSR (SDM volume 4).

use iced_x86::{Instruction, Mnemonic};

use super::machine_check_banks;
use super::{require_canonical, require_ring0};
use crate::guest::cpuid::Feature;
use crate::guest::flags::*;
use crate::guest::{CpuState, Exception, Msrs, Register, SegmentIndex};
use crate::interpret::Context;
use crate::interpret::operand::{next, row};
use crate::record::Row;
use mmu::PHYSICAL_BITS;

pub(crate) const ROWS: &[Row] = &[row(Mnemonic::Rdmsr, read), row(Mnemonic::Wrmsr, write)];

const IA32_TSC: u32 = 0x10;
const IA32_APIC_BASE: u32 = 0x1b;
/// IA32_APIC_BASE: x2APIC mode.
const APIC_X2APIC: u64 = 1 << 10;
const IA32_TSC_DEADLINE: u32 = 0x6e0;
const IA32_PLATFORM_ID: u32 = 0x17;
const SMI_COUNT: u32 = 0x34;
const IA32_FEATURE_CONTROL: u32 = 0x3a;
const IA32_TSC_ADJUST: u32 = 0x3b;
const IA32_SPEC_CTRL: u32 = 0x48;
const IA32_PRED_CMD: u32 = 0x49;
const IA32_BIOS_UPDT_TRIG: u32 = 0x79;
const IA32_BIOS_SIGN_ID: u32 = 0x8b;
const PLATFORM_INFO: u32 = 0xce;
const IA32_MTRRCAP: u32 = 0xfe;
const IA32_ARCH_CAPABILITIES: u32 = 0x10a;
const IA32_FLUSH_CMD: u32 = 0x10b;
const IA32_SYSENTER_CS: u32 = 0x174;
const IA32_SYSENTER_ESP: u32 = 0x175;
const IA32_SYSENTER_EIP: u32 = 0x176;
const IA32_PERF_STATUS: u32 = 0x198;
const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_DEBUGCTL: u32 = 0x1d9;
const MTRR_VARIABLE: u32 = 0x200;
const MTRR_VARIABLE_END: u32 = 0x20f;
const MTRR_FIX_64K: u32 = 0x250;
const MTRR_FIX_16K: u32 = 0x258;
const MTRR_FIX_16K_END: u32 = 0x259;
const MTRR_FIX_4K: u32 = 0x268;
const MTRR_FIX_4K_END: u32 = 0x26f;
const IA32_PAT: u32 = 0x277;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const IA32_EFER: u32 = 0xc000_0080;
const IA32_STAR: u32 = 0xc000_0081;
const IA32_LSTAR: u32 = 0xc000_0082;
const IA32_CSTAR: u32 = 0xc000_0083;
const IA32_FMASK: u32 = 0xc000_0084;
const IA32_FS_BASE: u32 = 0xc000_0100;
const IA32_GS_BASE: u32 = 0xc000_0101;
const IA32_KERNEL_GS_BASE: u32 = 0xc000_0102;
const IA32_TSC_AUX: u32 = 0xc000_0103;

/// Eight variable ranges, fixed ranges, write-combining.
const MTRR_CAPABILITIES: u64 = 0x508;
/// A microcode revision that no kernel's list of faulty ones holds, in bits 32 to 63.
const MICROCODE_REVISION: u64 = 0x0500_3800 << 32;
/// The processor has none of these weaknesses, and enhanced IBRS: kernels skip page-table
/// isolation, retpolines and buffer clearing. RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO,
/// MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO,
/// GDS_NO, RFDS_NO, ITS_NO.
const ARCH_CAPABILITIES: u64 = 1 << 0
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27
    | 1 << 62;

fn refused() -> Exception {
    Exception::general_protection(0)
}

fn read(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    require_ring0(cx.cpu)?;
    let number = cx.cpu.gpr[Register::RCX] as u32;
    let value = read_register(cx, number)?;
    cx.cpu.gpr[Register::RAX] = value & 0xffff_ffff;
    cx.cpu.gpr[Register::RDX] = value >> 32;
    next(cx, insn)
}

fn write(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    require_ring0(cx.cpu)?;
    let number = cx.cpu.gpr[Register::RCX] as u32;
    let value = cx.cpu.gpr[Register::RDX] << 32 | cx.cpu.gpr[Register::RAX] & 0xffff_ffff;
    write_register(cx, number, value)?;
    next(cx, insn)
}

/// The place of a register that any value may be written to, and how values are checked.
#[derive(Clone, Copy)]
enum Check {
    /// Any value.
    Any,
    /// A canonical address.
    Canonical,
    /// Only these bits.
    Bits(u64),
    /// Eight memory types, each valid in the PAT.
    PatTypes,
    /// Eight memory types, each valid in an MTRR.
    MtrrTypes,
}

fn plain(msrs: &mut Msrs, number: u32) -> Option<(&mut u64, Check)> {
    let low = 0xffff_ffff;
    let fixed = |index: u32| index as usize;
    Some(match number {
        IA32_SPEC_CTRL => (&mut msrs.spec_ctrl, Check::Bits(7)),
        IA32_SYSENTER_CS => (&mut msrs.sysenter_cs, Check::Any),
        IA32_SYSENTER_ESP => (&mut msrs.sysenter_esp, Check::Canonical),
        IA32_SYSENTER_EIP => (&mut msrs.sysenter_eip, Check::Canonical),
        IA32_MISC_ENABLE => (&mut msrs.misc_enable, Check::Any),
        IA32_DEBUGCTL => (&mut msrs.debugctl, Check::Bits(3)),
        MTRR_FIX_64K => (&mut msrs.mtrr_fixed[0], Check::MtrrTypes),
        MTRR_FIX_16K..=MTRR_FIX_16K_END => (
            &mut msrs.mtrr_fixed[1 + fixed(number - MTRR_FIX_16K)],
            Check::MtrrTypes,
        ),
        MTRR_FIX_4K..=MTRR_FIX_4K_END => (
            &mut msrs.mtrr_fixed[3 + fixed(number - MTRR_FIX_4K)],
            Check::MtrrTypes,
        ),
        IA32_PAT => (&mut msrs.pat, Check::PatTypes),
        IA32_STAR => (&mut msrs.star, Check::Any),
        IA32_LSTAR => (&mut msrs.lstar, Check::Canonical),
        IA32_CSTAR => (&mut msrs.cstar, Check::Canonical),
        IA32_FMASK => (&mut msrs.fmask, Check::Bits(low)),
        IA32_KERNEL_GS_BASE => (&mut msrs.kernel_gs_base, Check::Canonical),
        IA32_TSC_AUX => (&mut msrs.tsc_aux, Check::Bits(low)),
        _ => return None,
    })
}

/// UC, WC, WT, WP and WB, the types that an MTRR can hold.
fn is_mtrr_type(kind: u64) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
}

impl Check {
    fn accepts(self, value: u64) -> bool {
        let bytes = value.to_le_bytes();
        match self {
            Check::Any => true,
            Check::Canonical => require_canonical(value).is_ok(),
            Check::Bits(mask) => value & !mask == 0,
            Check::PatTypes => bytes
                .iter()
                .all(|&kind| is_mtrr_type(u64::from(kind)) || kind == 7),
            Check::MtrrTypes => bytes.iter().all(|&kind| is_mtrr_type(u64::from(kind))),
        }
    }
}

/// Reads a model-specific register; #GP(0) if there is no such register.
fn read_register(cx: &mut Context<'_>, number: u32) -> Result<u64, Exception> {
    if !exists(cx.cpu, number) {
        return Err(refused());
    }
    if let Some((place, _)) = plain(&mut cx.cpu.msrs, number) {
        return Ok(*place);
    }
    if let Some(value) = machine_check_banks::read(&cx.cpu.msrs, number) {
        return Ok(value);
    }
    let cpu = &*cx.cpu;
    // Bus clocks of 100 MHz in one second of the time-stamp counter's.
    let ratio = (cpu.model.tsc_hz / 100_000_000) & 0xff;
    Ok(match number {
        IA32_TSC => super::processor::time_stamp(cx),
        IA32_TSC_ADJUST => cpu.msrs.tsc_adjust,
        IA32_PLATFORM_ID | SMI_COUNT => 0,
        IA32_FEATURE_CONTROL => cpu.msrs.feature_control,
        IA32_BIOS_SIGN_ID => MICROCODE_REVISION,
        PLATFORM_INFO => ratio << 8 | ratio << 40,
        IA32_MTRRCAP => MTRR_CAPABILITIES,
        IA32_ARCH_CAPABILITIES => ARCH_CAPABILITIES,
        IA32_PERF_STATUS => ratio << 8,
        MTRR_VARIABLE..=MTRR_VARIABLE_END => {
            cpu.msrs.mtrr_variable[(number - MTRR_VARIABLE) as usize]
        }
        IA32_MTRR_DEF_TYPE => cpu.msrs.mtrr_def_type,
        IA32_EFER => cpu.control.efer,
        IA32_FS_BASE => cpu.segment(SegmentIndex::Fs).base,
        IA32_GS_BASE => cpu.segment(SegmentIndex::Gs).base,
        _ => {
            let instructions = cpu.instructions;
            return cx.platform.msr_read(instructions, number).ok_or(refused());
        }
    })
}

/// Registers that come with a feature.
fn exists(cpu: &CpuState, number: u32) -> bool {
    let feature = match number {
        IA32_TSC_ADJUST => Feature::TscAdjust,
        IA32_SPEC_CTRL | IA32_PRED_CMD => Feature::SpecCtrl,
        IA32_ARCH_CAPABILITIES => Feature::ArchCapabilities,
        IA32_TSC_DEADLINE => Feature::TscDeadline,
        IA32_FLUSH_CMD => Feature::FlushL1d,
        IA32_TSC_AUX => return cpu.model.has(Feature::Rdtscp) || cpu.model.has(Feature::Rdpid),
        _ => return true,
    };
    cpu.model.has(feature)
}

fn write_register(cx: &mut Context<'_>, number: u32, value: u64) -> Result<(), Exception> {
    if !exists(cx.cpu, number) {
        return Err(refused());
    }
    if let Some((place, check)) = plain(&mut cx.cpu.msrs, number) {
        if !check.accepts(value) {
            return Err(refused());
        }
        *place = value;
        return Ok(());
    }
    if let Some(result) = machine_check_banks::write(&mut cx.cpu.msrs, number, value) {
        return result;
    }
    match number {
        IA32_APIC_BASE if value & APIC_X2APIC != 0 && !cx.cpu.model.has(Feature::X2apic) => {
            return Err(refused());
        }
        IA32_TSC => {
            let now = super::processor::time_stamp(cx);
            shift_time(&mut cx.cpu.msrs, value.wrapping_sub(now));
        }
        IA32_TSC_ADJUST => {
            let delta = value.wrapping_sub(cx.cpu.msrs.tsc_adjust);
            shift_time(&mut cx.cpu.msrs, delta);
        }
        IA32_PRED_CMD | IA32_FLUSH_CMD if value & !1 != 0 => return Err(refused()),
        // Commands and BIOS interfaces whose effect is empty here.
        IA32_PRED_CMD | IA32_FLUSH_CMD | IA32_BIOS_UPDT_TRIG | IA32_BIOS_SIGN_ID => {}
        IA32_FEATURE_CONTROL => {
            const LOCKED: u64 = 1;
            if cx.cpu.msrs.feature_control & LOCKED != 0 {
                return Err(refused());
            }
            cx.cpu.msrs.feature_control = value;
        }
        MTRR_VARIABLE..=MTRR_VARIABLE_END => write_variable_range(cx, number, value)?,
        IA32_MTRR_DEF_TYPE => {
            if value & !0xcff != 0 || !is_mtrr_type(value & 0xff) {
                return Err(refused());
            }
            cx.cpu.msrs.mtrr_def_type = value;
        }
        IA32_EFER => write_efer(cx, value)?,
        IA32_FS_BASE | IA32_GS_BASE => {
            require_canonical(value)?;
            let index = if number == IA32_FS_BASE {
                SegmentIndex::Fs
            } else {
                SegmentIndex::Gs
            };
            cx.cpu.segment_mut(index).base = value;
        }
        _ => {
            let instructions = cx.cpu.instructions;
            return match cx.platform.msr_write(instructions, number, value) {
                Some(Ok(())) => Ok(()),
                Some(Err(crate::platform::Refused)) | None => Err(refused()),
            };
        }
    }
    Ok(())
}

/// Moves the time-stamp counter; IA32_TSC_ADJUST sums all moves (SDM volume 3, 17.17.3).
fn shift_time(msrs: &mut Msrs, delta: u64) {
    msrs.tsc_offset = msrs.tsc_offset.wrapping_add(delta);
    msrs.tsc_adjust = msrs.tsc_adjust.wrapping_add(delta);
}

/// PHYSBASE at even numbers, PHYSMASK at odd ones.
fn write_variable_range(cx: &mut Context<'_>, number: u32, value: u64) -> Result<(), Exception> {
    let low = if number & 1 == 0 { 0xff } else { 0x800 };
    let address = (1 << PHYSICAL_BITS) - 0x1000;
    if value & !(address | low) != 0 || number & 1 == 0 && !is_mtrr_type(value & 0xff) {
        return Err(refused());
    }
    cx.cpu.msrs.mtrr_variable[(number - MTRR_VARIABLE) as usize] = value;
    Ok(())
}

/// LMA follows CR0.PG and ignores what is written; LME may not change while paging is on.
fn write_efer(cx: &mut Context<'_>, value: u64) -> Result<(), Exception> {
    let cpu = &mut *cx.cpu;
    let mut known = EFER_LMA;
    if cpu.model.has(Feature::Syscall) {
        known |= EFER_SCE;
    }
    if cpu.model.has(Feature::Lm) {
        known |= EFER_LME;
    }
    if cpu.model.has(Feature::Nx) {
        known |= EFER_NXE;
    }
    let old = cpu.control.efer;
    let changed = old ^ value;
    if value & !known != 0 || cpu.control.cr0 & CR0_PG != 0 && changed & EFER_LME != 0 {
        return Err(refused());
    }
    cpu.control.efer = value & !EFER_LMA | old & EFER_LMA;
    cpu.refresh_mode();
    if changed & EFER_NXE != 0 {
        cx.flush_tlb(true);
    }
    Ok(())
}
