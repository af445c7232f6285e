//! FXSAVE, XSAVE and their reverses (SDM volume 1, 10.5 and chapter 13).

use iced_x86::{Instruction, Mnemonic};
use mmu::Linear;

use super::Done;
use super::x87::X87;
use crate::guest::cpuid::Feature;
use crate::guest::extended_state::{
    AVX_STATE, PKRU_STATE, STATE_COMPONENTS, StateComponent, XSAVE_MINIMUM, compacted_size,
    xsave_size,
};
use crate::guest::flags::{CR0_EM, CR0_TS, CR4_OSXSAVE};
use crate::guest::{CpuState, Exception, Register};
use crate::interpret::operand::{next, row};
use crate::interpret::{Access, Context, address, extension};
use crate::record::Row;

pub(super) const ROWS: &[Row] = &[
    row(Mnemonic::Fxsave, fxsave),
    row(Mnemonic::Fxsave64, fxsave),
    row(Mnemonic::Fxrstor, fxrstor),
    row(Mnemonic::Fxrstor64, fxrstor),
    row(Mnemonic::Ldmxcsr, ldmxcsr),
    row(Mnemonic::Vldmxcsr, ldmxcsr),
    row(Mnemonic::Xsave, xsave),
    row(Mnemonic::Xsave64, xsave),
    row(Mnemonic::Xsaveopt, xsaveopt),
    row(Mnemonic::Xsaveopt64, xsaveopt),
    row(Mnemonic::Xsavec, xsavec),
    row(Mnemonic::Xsavec64, xsavec),
    row(Mnemonic::Xrstor, xrstor),
    row(Mnemonic::Xrstor64, xrstor),
];

const X87_COMPONENT: u64 = 1 << 0;
const SSE_COMPONENT: u64 = 1 << 1;
const MXCSR_COMPONENTS: u64 = SSE_COMPONENT | AVX_STATE.bit;

const MXCSR: usize = 24;
const MXCSR_INITIAL: u32 = 0x1f80;
/// The bits of MXCSR that exist.
const MXCSR_MASK: u32 = 0xffff;
const XMM: usize = 160;
const LEGACY: usize = 512;
const HEADER: usize = 512;
const COMPACTED: u64 = 1 << 63;
/// Bytes of the largest area.
const AREA: usize = PKRU_STATE.offset + PKRU_STATE.size;

/// Whether the area has pointers of 64 bits, which REX.W asks for.
fn is_wide(insn: &Instruction) -> bool {
    matches!(
        insn.mnemonic(),
        Mnemonic::Fxsave64
            | Mnemonic::Fxrstor64
            | Mnemonic::Xsave64
            | Mnemonic::Xsaveopt64
            | Mnemonic::Xsavec64
            | Mnemonic::Xrstor64
    )
}

/// The x87 registers as this instruction stores them.
fn x87_for(cpu: &CpuState, insn: &Instruction) -> X87 {
    let x87 = X87::of(cpu);
    if is_wide(insn) { x87 } else { x87.narrow() }
}

/// The x87 registers as this instruction loads them.
fn x87_from(insn: &Instruction, image: &[u8]) -> X87 {
    let x87 = X87::from_image(image);
    if is_wide(insn) { x87 } else { x87.narrow() }
}

/// XMM and YMM registers that the mode can reach.
fn reachable(cpu: &CpuState) -> usize {
    if cpu.code64() { 16 } else { 8 }
}

fn store_mxcsr(cpu: &CpuState, area: &mut [u8]) {
    area[MXCSR..MXCSR + 4].copy_from_slice(&cpu.vector.mxcsr.to_le_bytes());
    area[MXCSR + 4..MXCSR + 8].copy_from_slice(&MXCSR_MASK.to_le_bytes());
}

fn load_mxcsr(area: &[u8]) -> Result<u32, Exception> {
    let value = u32::from_le_bytes(area[MXCSR..MXCSR + 4].try_into().unwrap_or_default());
    if value & !MXCSR_MASK != 0 {
        return Err(Exception::general_protection(0));
    }
    Ok(value)
}

/// Copies half a YMM register (lanes 0 and 1, or 2 and 3) of each into 16-byte slots.
fn store_halves(cpu: &CpuState, first: usize, into: &mut [u8]) {
    let registers = reachable(cpu);
    for (slot, ymm) in into
        .chunks_exact_mut(16)
        .zip(&cpu.vector.ymm)
        .take(registers)
    {
        slot[..8].copy_from_slice(&ymm[first].to_le_bytes());
        slot[8..].copy_from_slice(&ymm[first + 1].to_le_bytes());
    }
}

/// The reverse of [`store_halves`]; `None` clears the halves.
fn load_halves(cpu: &mut CpuState, first: usize, from: Option<&[u8]>) {
    for index in 0..reachable(cpu) {
        for lane in 0..2 {
            let at = 16 * index + 8 * lane;
            cpu.vector.ymm[index][first + lane] = from.map_or(0, |from| {
                u64::from_le_bytes(from[at..at + 8].try_into().unwrap_or_default())
            });
        }
    }
}

/// The area's address, which has to be a multiple of `alignment`.
fn area(
    cx: &Context<'_>,
    insn: &Instruction,
    size: usize,
    alignment: u64,
    access: Access,
) -> Result<Linear, Exception> {
    let at = address::linear(cx, insn, 0, size, access)?;
    if at.0 & (alignment - 1) != 0 {
        return Err(Exception::general_protection(0));
    }
    Ok(at)
}

fn check_fxsave(cx: &Context<'_>, insn: &Instruction) -> Done {
    if !cx.cpu.model.has(Feature::Fxsr) || insn.has_lock_prefix() {
        return Err(Exception::invalid_opcode());
    }
    if cx.cpu.control.cr0 & (CR0_EM | CR0_TS) != 0 {
        return Err(Exception::device_not_available());
    }
    Ok(())
}

fn fxsave(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    check_fxsave(cx, insn)?;
    let at = area(cx, insn, LEGACY, 16, Access::Write)?;
    cx.authorise_write(at, LEGACY)?;
    let mut image = [0; LEGACY];
    x87_for(cx.cpu, insn).to_image(&mut image);
    store_mxcsr(cx.cpu, &mut image);
    store_halves(cx.cpu, 0, &mut image[XMM..]);
    // What follows the registers is left to software.
    let len = XMM + 16 * reachable(cx.cpu);
    cx.store_bytes(at, &image[..len])?;
    next(cx, insn)
}

fn fxrstor(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    check_fxsave(cx, insn)?;
    let at = area(cx, insn, LEGACY, 16, Access::Read)?;
    let mut image = [0; LEGACY];
    cx.load_area(at, &mut image)?;
    cx.watch_load(at, XMM + 16 * reachable(cx.cpu));
    let mxcsr = load_mxcsr(&image)?;
    x87_from(insn, &image).load(cx.cpu);
    cx.cpu.vector.mxcsr = mxcsr;
    load_halves(cx.cpu, 0, Some(&image[XMM..]));
    next(cx, insn)
}

/// LDMXCSR is not run natively: what the host lets through is not what the guest's may have.
fn ldmxcsr(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    extension::check_enabled(cx, insn)?;
    let at = address::linear(cx, insn, 0, 4, Access::Read)?;
    let value = cx.load(at, 4)? as u32;
    if value & !MXCSR_MASK != 0 {
        return Err(Exception::general_protection(0));
    }
    cx.cpu.vector.mxcsr = value;
    next(cx, insn)
}

/// The conditions that the XSAVE instructions share, then the components asked for.
fn requested(cx: &Context<'_>, insn: &Instruction, needs: Feature) -> Result<u64, Exception> {
    let control = &cx.cpu.control;
    if control.cr4 & CR4_OSXSAVE == 0 || !cx.cpu.model.has(needs) || insn.has_lock_prefix() {
        return Err(Exception::invalid_opcode());
    }
    if control.cr0 & CR0_TS != 0 {
        return Err(Exception::device_not_available());
    }
    let low = cx.cpu.gpr[Register::RAX] & 0xffff_ffff;
    Ok(control.xcr0 & (cx.cpu.gpr[Register::RDX] << 32 | low))
}

/// The components that are not in their initial configuration (SDM volume 1, 13.6).
fn in_use(cpu: &CpuState, x87: &X87) -> u64 {
    let any = |lanes: std::ops::Range<usize>| {
        cpu.vector
            .ymm
            .iter()
            .any(|ymm| ymm[lanes.clone()].iter().any(|&lane| lane != 0))
    };
    let mut components = 0;
    if *x87 != X87::INITIAL {
        components |= X87_COMPONENT;
    }
    if any(0..2) {
        components |= SSE_COMPONENT;
    }
    if any(2..4) {
        components |= AVX_STATE.bit;
    }
    if cpu.control.pkru != 0 {
        components |= PKRU_STATE.bit;
    }
    components
}

/// Where the components behind the header are.
#[derive(Clone, Copy)]
enum Format {
    Standard,
    /// With these components, packed.
    Compacted(u64),
}

impl Format {
    fn offset(self, component: &StateComponent) -> usize {
        match self {
            Format::Standard => component.offset,
            Format::Compacted(layout) => component.compacted_offset(layout),
        }
    }
}

/// How many bytes of a component the mode can reach.
fn reachable_size(cpu: &CpuState, component: &StateComponent) -> usize {
    if component.bit == AVX_STATE.bit {
        16 * reachable(cpu)
    } else {
        component.size
    }
}

/// A store of part of the area.
struct Piece {
    offset: usize,
    len: usize,
}

/// Stores the components of `saved`, the MXCSR if asked, and the header words given.
fn store_area(
    cx: &mut Context<'_>,
    at: Linear,
    format: Format,
    (x87, saved): (&X87, u64),
    mxcsr: bool,
    header: &[u64],
) -> Done {
    let mut image = [0; AREA];
    x87.to_image(&mut image);
    store_mxcsr(cx.cpu, &mut image);
    store_halves(cx.cpu, 0, &mut image[XMM..LEGACY]);
    for (slot, word) in image[HEADER..].chunks_exact_mut(8).zip(header) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    let mut pieces: Vec<Piece> = [
        (saved & X87_COMPONENT != 0, 0, MXCSR),
        (mxcsr, MXCSR, 8),
        (saved & X87_COMPONENT != 0, 32, XMM - 32),
        (saved & SSE_COMPONENT != 0, XMM, 16 * reachable(cx.cpu)),
        (true, HEADER, 8 * header.len()),
    ]
    .into_iter()
    .filter(|candidate| candidate.0)
    .map(|(_, offset, len)| Piece { offset, len })
    .collect();
    for component in &STATE_COMPONENTS {
        if saved & component.bit == 0 {
            continue;
        }
        let offset = format.offset(component);
        let len = reachable_size(cx.cpu, component);
        if component.bit == PKRU_STATE.bit {
            let rights = u64::from(cx.cpu.control.pkru);
            image[offset..offset + len].copy_from_slice(&rights.to_le_bytes());
        } else {
            store_halves(cx.cpu, 2, &mut image[offset..offset + len]);
        }
        pieces.push(Piece { offset, len });
    }
    for piece in &pieces {
        cx.authorise_write(Linear(at.0.wrapping_add(piece.offset as u64)), piece.len)?;
    }
    for Piece { offset, len } in pieces {
        let to = Linear(at.0.wrapping_add(offset as u64));
        cx.store_bytes(to, &image[offset..offset + len])?;
    }
    Ok(())
}

/// XSAVE and XSAVEOPT, which differ in what they leave out.
fn save_standard(cx: &mut Context<'_>, insn: &Instruction, needs: Feature) -> Done {
    let wanted = requested(cx, insn, needs)?;
    let at = area(cx, insn, xsave_size(wanted), 64, Access::Write)?;
    let x87 = x87_for(cx.cpu, insn);
    let used = in_use(cx.cpu, &x87);
    let mut before = [0; 8];
    cx.load_bytes(Linear(at.0.wrapping_add(HEADER as u64)), &mut before)?;
    let bitmap = u64::from_le_bytes(before) & !wanted | wanted & used;
    let saved = if needs == Feature::Xsaveopt {
        wanted & used
    } else {
        wanted
    };
    let mxcsr = wanted & MXCSR_COMPONENTS != 0;
    store_area(cx, at, Format::Standard, (&x87, saved), mxcsr, &[bitmap])?;
    next(cx, insn)
}

fn xsave(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    save_standard(cx, insn, Feature::Xsave)
}

fn xsaveopt(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    save_standard(cx, insn, Feature::Xsaveopt)
}

fn xsavec(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let wanted = requested(cx, insn, Feature::Xsavec)?;
    let at = area(cx, insn, compacted_size(wanted), 64, Access::Write)?;
    let x87 = x87_for(cx.cpu, insn);
    let mut used = in_use(cx.cpu, &x87);
    // Here MXCSR is part of the SSE component (SDM volume 1, 13.10).
    if cx.cpu.vector.mxcsr != MXCSR_INITIAL {
        used |= SSE_COMPONENT;
    }
    let saved = wanted & used;
    let mxcsr = saved & SSE_COMPONENT != 0;
    let header = [saved, wanted | COMPACTED];
    let format = Format::Compacted(wanted);
    store_area(cx, at, format, (&x87, saved), mxcsr, &header)?;
    next(cx, insn)
}

fn xrstor(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let wanted = requested(cx, insn, Feature::Xsave)?;
    let refused = Exception::general_protection(0);
    let at = area(cx, insn, XSAVE_MINIMUM, 64, Access::Read)?;
    let mut image = [0; AREA];
    cx.load_area(at, &mut image[..XSAVE_MINIMUM])?;
    let word = |index: usize| {
        let at = HEADER + 8 * index;
        u64::from_le_bytes(image[at..at + 8].try_into().unwrap_or_default())
    };
    let (bitmap, layout) = (word(0), word(1));
    let xcr0 = cx.cpu.control.xcr0;
    let compacted = layout & COMPACTED != 0 && cx.cpu.model.has(Feature::Xsavec);
    let well_formed = if compacted {
        let present = layout & !COMPACTED;
        present & !xcr0 == 0 && bitmap & !present == 0 && (2..8).all(|index| word(index) == 0)
    } else {
        bitmap & !xcr0 == 0 && layout == 0 && word(2) == 0
    };
    if !well_formed {
        return Err(refused);
    }
    let loaded = wanted & bitmap;
    let cleared = wanted & !bitmap;
    let format = if compacted {
        Format::Compacted(layout & !COMPACTED)
    } else {
        Format::Standard
    };
    let has_mxcsr = if compacted {
        loaded & SSE_COMPONENT
    } else {
        wanted & MXCSR_COMPONENTS
    };
    for (used, offset, len) in [
        (true, HEADER, if compacted { 64 } else { 24 }),
        (has_mxcsr != 0, MXCSR, 8),
        (loaded & X87_COMPONENT != 0, 0, MXCSR),
        (loaded & X87_COMPONENT != 0, 32, XMM - 32),
        (loaded & SSE_COMPONENT != 0, XMM, 16 * reachable(cx.cpu)),
    ] {
        if used {
            cx.watch_load(Linear(at.0.wrapping_add(offset as u64)), len);
        }
    }
    for component in &STATE_COMPONENTS {
        if loaded & component.bit != 0 {
            let offset = format.offset(component);
            let from = area(cx, insn, offset + component.size, 64, Access::Read)?;
            let from = Linear(from.0.wrapping_add(offset as u64));
            let len = reachable_size(cx.cpu, component);
            cx.load_bytes(from, &mut image[offset..offset + len])?;
        }
    }
    // The standard format has an MXCSR whatever its bitmap says.
    let mxcsr = if compacted {
        if loaded & SSE_COMPONENT != 0 {
            Some(load_mxcsr(&image)?)
        } else {
            (cleared & SSE_COMPONENT != 0).then_some(MXCSR_INITIAL)
        }
    } else if wanted & MXCSR_COMPONENTS != 0 {
        Some(load_mxcsr(&image)?)
    } else {
        None
    };
    if loaded & X87_COMPONENT != 0 {
        x87_from(insn, &image).load(cx.cpu);
    } else if cleared & X87_COMPONENT != 0 {
        X87::INITIAL.load(cx.cpu);
    }
    if let Some(mxcsr) = mxcsr {
        cx.cpu.vector.mxcsr = mxcsr;
    }
    let avx = format.offset(&AVX_STATE);
    for (component, first, offset) in [(SSE_COMPONENT, 0, XMM), (AVX_STATE.bit, 2, avx)] {
        if loaded & component != 0 {
            load_halves(cx.cpu, first, Some(&image[offset..]));
        } else if cleared & component != 0 {
            load_halves(cx.cpu, first, None);
        }
    }
    if wanted & PKRU_STATE.bit != 0 {
        let at = format.offset(&PKRU_STATE);
        let saved = image[at..at + 4].try_into().unwrap_or_default();
        let rights = if loaded & PKRU_STATE.bit != 0 {
            u32::from_le_bytes(saved)
        } else {
            0
        };
        cx.set_protection_rights(rights);
    }
    next(cx, insn)
}
