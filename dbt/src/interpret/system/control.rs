//! Control registers: MOV CR, LMSW, SMSW, CLTS, XSETBV, XGETBV, INVLPG, INVPCID
//! (SDM volume 3, 2.5, 2.6, 4.1 and 4.10).

use iced_x86::{Instruction, Mnemonic, OpKind};
use mmu::{GuestPhys, Linear, PHYSICAL_BITS};

use super::table_registers::check_umip;
use super::{require_feature, require_ring0, task};
use crate::guest::cpuid::Feature;
use crate::guest::flags::*;
use crate::guest::{CpuState, Exception, Register, Segment, SegmentIndex};
use crate::interpret::address::{effective_address, is_canonical, linear, memory_segment};
use crate::interpret::operand::{
    next, read_operand, read_register, row, write_operand, write_register,
};
use crate::interpret::{Access, Context, memory};
use crate::record::Row;

pub(crate) const ROWS: &[Row] = &[
    row(Mnemonic::Lmsw, load_machine_status),
    row(Mnemonic::Smsw, store_machine_status),
    row(Mnemonic::Clts, clear_task_switched),
    row(Mnemonic::Xsetbv, set_extended_control),
    row(Mnemonic::Xgetbv, get_extended_control),
    row(Mnemonic::Invlpg, invalidate_page),
    row(Mnemonic::Invpcid, invalidate_pcid),
];

/// The bits of CR0 that exist.
const CR0_BITS: u64 = CR0_PE
    | CR0_MP
    | CR0_EM
    | CR0_TS
    | CR0_ET
    | CR0_NE
    | CR0_WP
    | CR0_AM
    | CR0_NW
    | CR0_CD
    | CR0_PG;
/// With PCIDs, bit 63 of a value for CR3 asks to keep cached translations.
const CR3_KEEP: u64 = 1 << 63;

fn refused() -> Exception {
    Exception::general_protection(0)
}

/// The bits of CR4 that the processor model allows.
fn cr4_bits(cpu: &CpuState) -> u64 {
    let always = CR4_VME
        | CR4_PVI
        | CR4_TSD
        | CR4_DE
        | CR4_PSE
        | CR4_PAE
        | CR4_MCE
        | CR4_PGE
        | CR4_PCE
        | CR4_OSFXSR
        | CR4_OSXMMEXCPT;
    let by_feature = [
        (Feature::Umip, CR4_UMIP),
        (Feature::Fsgsbase, CR4_FSGSBASE),
        (Feature::Pcid, CR4_PCIDE),
        (Feature::Xsave, CR4_OSXSAVE),
        (Feature::Smep, CR4_SMEP),
        (Feature::Smap, CR4_SMAP),
        (Feature::Pku, CR4_PKE),
    ];
    by_feature
        .iter()
        .filter(|(feature, _)| cpu.model.has(*feature))
        .fold(always, |bits, (_, bit)| bits | bit)
}

/// The page-directory-pointer entries that PAE paging loads with CR3, `None` if these control
/// registers do not select PAE paging. #GP(0) if a present one has reserved bits set.
fn pdptes(
    cx: &mut Context<'_>,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
) -> Result<Option<[u64; 4]>, Exception> {
    if cr0 & CR0_PG == 0 || cr4 & CR4_PAE == 0 || efer & EFER_LMA != 0 {
        return Ok(None);
    }
    const RESERVED: u64 = 0x1e6 | !((1 << PHYSICAL_BITS) - 1);
    let mut bytes = [0; 32];
    let table = memory::paging(cx.cpu).gated(GuestPhys(cr3 & 0xffff_ffe0));
    cx.load_physical(table, &mut bytes)?;
    let mut entries = [0; 4];
    for (entry, chunk) in entries.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        *entry = u64::from_le_bytes(word);
        if *entry & 1 != 0 && *entry & RESERVED != 0 {
            return Err(refused());
        }
    }
    Ok(Some(entries))
}

/// As a task switch to another CR3 needs them.
pub fn read_pdptes(cx: &mut Context<'_>, cr3: u64) -> Result<Option<[u64; 4]>, Exception> {
    let control = &cx.cpu.control;
    let (cr0, cr4, efer) = (control.cr0, control.cr4, control.efer);
    pdptes(cx, cr0, cr3, cr4, efer)
}

/// MOV r, CRn.
pub fn move_from_control(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let number = insn.op1_register().number();
    if !matches!(number, 0 | 2 | 3 | 4 | 8) {
        return Err(Exception::invalid_opcode());
    }
    require_ring0(cx.cpu)?;
    let value = match number {
        0 => cx.cpu.control.cr0,
        2 => cx.cpu.control.cr2,
        3 => cx.cpu.control.cr3,
        4 => cx.cpu.control.cr4,
        _ => u64::from(cx.platform.task_priority()),
    };
    write_register(cx.cpu, insn.op0_register(), value);
    next(cx, insn)
}

/// MOV CRn, r.
pub fn move_to_control(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let number = insn.op0_register().number();
    if !matches!(number, 0 | 2 | 3 | 4 | 8) {
        return Err(Exception::invalid_opcode());
    }
    require_ring0(cx.cpu)?;
    let value = read_register(cx.cpu, insn.op1_register());
    // The length of the next instruction's offset follows the code segment being left.
    let following = crate::interpret::operand::next_rip(cx, insn);
    match number {
        0 => write_cr0(cx, value)?,
        2 => cx.cpu.control.cr2 = value,
        3 => write_cr3(cx, value)?,
        4 => write_cr4(cx, value)?,
        _ => {
            if value > 15 {
                return Err(refused());
            }
            let instructions = cx.cpu.instructions;
            cx.platform.set_task_priority(instructions, value as u8);
        }
    }
    cx.cpu.rip = following;
    Ok(())
}

/// Checks and loads CR0, entering or leaving long mode with paging (SDM volume 3, 9.8.5).
fn write_cr0(cx: &mut Context<'_>, value: u64) -> Result<(), Exception> {
    if value >> 32 != 0
        || value & CR0_PG != 0 && value & CR0_PE == 0
        || value & CR0_NW != 0 && value & CR0_CD == 0
    {
        return Err(refused());
    }
    let value = value & CR0_BITS | CR0_ET;
    let control = &cx.cpu.control;
    let (old, cr3, cr4) = (control.cr0, control.cr3, control.cr4);
    let mut efer = control.efer;
    let changed = old ^ value;
    if changed & CR0_PG != 0 {
        if value & CR0_PG != 0 {
            if efer & EFER_LME != 0 {
                let long_code = cx.cpu.segment(SegmentIndex::Cs).attributes & Segment::LONG != 0;
                if cr4 & CR4_PAE == 0 || long_code || task::is_16_bit(&control.tr) {
                    return Err(refused());
                }
                efer |= EFER_LMA;
            }
        } else {
            if cr4 & CR4_PCIDE != 0 || cx.cpu.code64() {
                return Err(refused());
            }
            efer &= !EFER_LMA;
        }
    }
    let loaded = if changed & (CR0_PG | CR0_CD | CR0_NW) != 0 {
        pdptes(cx, value, cr3, cr4, efer)?
    } else {
        None
    };
    let control = &mut cx.cpu.control;
    control.cr0 = value;
    control.efer = efer;
    if let Some(entries) = loaded {
        control.pdpte = entries;
    }
    if changed & (CR0_PG | CR0_WP | CR0_PE) != 0 {
        cx.flush_tlb(true);
    }
    cx.cpu.refresh_mode();
    Ok(())
}

/// The process-context identifier in CR3.
fn pcid_of(cr3: u64) -> u16 {
    (cr3 & 0xfff) as u16
}

fn write_cr3(cx: &mut Context<'_>, value: u64) -> Result<(), Exception> {
    let control = &cx.cpu.control;
    let (cr0, cr4, efer) = (control.cr0, control.cr4, control.efer);
    let mut value = value;
    let pcids = efer & EFER_LMA != 0 && cr4 & CR4_PCIDE != 0;
    let keep = pcids && value & CR3_KEEP != 0;
    if efer & EFER_LMA != 0 {
        if pcids {
            value &= !CR3_KEEP;
        }
        if value >> PHYSICAL_BITS != 0 {
            return Err(refused());
        }
    } else {
        value &= 0xffff_ffff;
    }
    let loaded = pdptes(cx, cr0, value, cr4, efer)?;
    if let Some(entries) = loaded {
        cx.cpu.control.pdpte = entries;
    }
    let from = std::mem::replace(&mut cx.cpu.control.cr3, value);
    if pcids {
        cx.tlb.switch(pcid_of(from), pcid_of(value), keep);
    } else {
        cx.flush_tlb(false);
    }
    Ok(())
}

fn write_cr4(cx: &mut Context<'_>, value: u64) -> Result<(), Exception> {
    let control = &cx.cpu.control;
    let (cr0, cr3, old, efer) = (control.cr0, control.cr3, control.cr4, control.efer);
    if value & !cr4_bits(cx.cpu) != 0 {
        return Err(refused());
    }
    let long = efer & EFER_LMA != 0;
    let changed = old ^ value;
    if long && value & CR4_PAE == 0 {
        return Err(refused());
    }
    if changed & value & CR4_PCIDE != 0 && (!long || cr3 & 0xfff != 0) {
        return Err(refused());
    }
    if value & CR4_PCIDE != 0 && !long {
        return Err(refused());
    }
    let loaded = if changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP) != 0 {
        pdptes(cx, cr0, cr3, value, efer)?
    } else {
        None
    };
    let control = &mut cx.cpu.control;
    control.cr4 = value;
    if let Some(entries) = loaded {
        control.pdpte = entries;
    }
    const FLUSHING: u64 = CR4_PGE | CR4_PSE | CR4_PAE | CR4_PCIDE | CR4_SMEP | CR4_SMAP | CR4_PKE;
    if changed & FLUSHING != 0 {
        cx.flush_tlb(true);
    }
    cx.cpu.refresh_mode();
    Ok(())
}

fn load_machine_status(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    require_ring0(cx.cpu)?;
    let value = read_operand(cx, insn, 0, 2)?;
    const LOADED: u64 = CR0_PE | CR0_MP | CR0_EM | CR0_TS;
    let old = cx.cpu.control.cr0;
    // PE can be set here but not cleared.
    let new = old & !(LOADED & !CR0_PE) | value & LOADED;
    write_cr0(cx, new)?;
    next(cx, insn)
}

fn store_machine_status(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    check_umip(cx.cpu)?;
    let size = if insn.op0_kind() == OpKind::Register {
        8
    } else {
        2
    };
    let value = cx.cpu.control.cr0;
    write_operand(cx, insn, 0, size, value)?;
    next(cx, insn)
}

fn clear_task_switched(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    require_ring0(cx.cpu)?;
    cx.cpu.control.cr0 &= !CR0_TS;
    cx.cpu.refresh_mode();
    next(cx, insn)
}

fn edx_eax(cpu: &CpuState) -> u64 {
    cpu.gpr[Register::RDX] << 32 | cpu.gpr[Register::RAX] & 0xffff_ffff
}

fn set_extended_control(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    if cx.cpu.control.cr4 & CR4_OSXSAVE == 0 {
        return Err(Exception::invalid_opcode());
    }
    require_ring0(cx.cpu)?;
    let value = edx_eax(cx.cpu);
    let index = cx.cpu.gpr[Register::RCX] as u32;
    let known = crate::guest::extended_state::xcr0_bits(&cx.cpu.model);
    if index != 0 || value & 1 == 0 || value & !known != 0 || value & 6 == 4 {
        return Err(refused());
    }
    cx.cpu.control.xcr0 = value;
    cx.cpu.refresh_mode();
    next(cx, insn)
}

fn get_extended_control(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    if cx.cpu.control.cr4 & CR4_OSXSAVE == 0 {
        return Err(Exception::invalid_opcode());
    }
    // Register 1 tells which components are in use; saying all of them is always allowed.
    let value = match cx.cpu.gpr[Register::RCX] as u32 {
        0 => cx.cpu.control.xcr0,
        1 if cx.cpu.model.has(Feature::Xgetbv1) => cx.cpu.control.xcr0,
        _ => return Err(refused()),
    };
    cx.cpu.gpr[Register::RAX] = value & 0xffff_ffff;
    cx.cpu.gpr[Register::RDX] = value >> 32;
    next(cx, insn)
}

fn invalidate_page(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    require_ring0(cx.cpu)?;
    let offset = effective_address(cx.cpu, insn);
    let segment = memory_segment(cx.cpu, insn);
    let address = if cx.cpu.code64() {
        let based = matches!(segment, SegmentIndex::Fs | SegmentIndex::Gs);
        let base = cx.cpu.segment(segment).base;
        offset.wrapping_add(if based { base } else { 0 })
    } else {
        offset.wrapping_add(cx.cpu.segment(segment).base) & 0xffff_ffff
    };
    if is_canonical(address) {
        cx.flush_page(Linear(address));
    }
    next(cx, insn)
}

fn invalidate_pcid(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    require_feature(cx.cpu, Feature::Invpcid)?;
    if cx.cpu.control.cr0 & CR0_PE == 0 {
        // Allowed in real mode, where there is nothing to check it against but its operands.
    } else {
        require_ring0(cx.cpu)?;
    }
    let kind = read_register(cx.cpu, insn.op0_register());
    let at = linear(cx, insn, 1, 16, Access::Read)?;
    let mut bytes = [0; 16];
    cx.load_bytes(at, &mut bytes)?;
    let descriptor = u128::from_le_bytes(bytes);
    let (pcid, address) = (descriptor as u64, (descriptor >> 64) as u64);
    let no_pcids = cx.cpu.control.cr4 & CR4_PCIDE == 0;
    if kind > 3
        || pcid >> 12 != 0
        || kind == 0 && !is_canonical(address)
        || kind < 2 && no_pcids && pcid != 0
    {
        return Err(refused());
    }
    let pcid = pcid_of(pcid);
    let current = no_pcids || pcid == pcid_of(cx.cpu.control.cr3);
    match kind {
        0 if current => cx.flush_page(Linear(address)),
        1 if current => cx.flush_tlb(false),
        // One page of another space takes all of that space with it.
        0 | 1 => cx.tlb.forget_space(pcid),
        2 => cx.flush_tlb(true),
        _ => cx.tlb.flush_spaces(),
    }
    next(cx, insn)
}
