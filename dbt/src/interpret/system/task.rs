//! Hardware task switches (SDM volume 3, 7.3), with 16-bit and 32-bit TSSs.

use super::segments::{
    Descriptor, check_data, check_stack, check_target, code_of, is_null, null_segment,
    table_address, vm86_segment,
};
use super::stack::Stack;
use crate::guest::flags::*;
use crate::guest::{Exception, Segment, SegmentIndex};
use crate::interpret::Context;

/// What switches tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// JMP to a TSS or task gate.
    Jump,
    /// CALL: the new task is nested in the old one.
    Call,
    /// IRET with NT set: back to the outer task.
    Return,
    /// A task gate of the IDT.
    Interrupt {
        /// Pushed on the new task's stack.
        error_code: Option<u32>,
        /// A fault: RF is set in the flags saved for the old task.
        resume: bool,
    },
}

/// The order of segment registers in a TSS.
const ORDER: [SegmentIndex; 6] = [
    SegmentIndex::Es,
    SegmentIndex::Cs,
    SegmentIndex::Ss,
    SegmentIndex::Ds,
    SegmentIndex::Fs,
    SegmentIndex::Gs,
];

/// Offsets in a TSS (SDM volume 3, figures 7-2 and 7-11).
struct Layout {
    /// Bytes of a general register.
    size: u64,
    eip: u64,
    flags: u64,
    registers: u64,
    segments: u64,
    /// Bytes from one selector to the next.
    segment_step: u64,
    /// How many segment registers there are.
    segment_count: usize,
    ldt: u64,
    /// The smallest limit.
    minimum: u32,
}

const TSS_16: Layout = Layout {
    size: 2,
    eip: 14,
    flags: 16,
    registers: 18,
    segments: 34,
    segment_step: 2,
    segment_count: 4,
    ldt: 42,
    minimum: 43,
};

const TSS_32: Layout = Layout {
    size: 4,
    eip: 32,
    flags: 36,
    registers: 40,
    segments: 72,
    segment_step: 4,
    segment_count: 6,
    ldt: 96,
    minimum: 103,
};

impl Layout {
    fn of(kind: u8) -> &'static Layout {
        if kind & 8 != 0 { &TSS_32 } else { &TSS_16 }
    }
}

/// Reads the descriptor of an available TSS in the GDT, as JMP, CALL and task gates need it.
pub fn fetch_available(cx: &mut Context<'_>, selector: u16) -> Result<Descriptor, Exception> {
    let named = Exception::general_protection(code_of(selector));
    if is_null(selector) || selector & 4 != 0 {
        return Err(named);
    }
    let descriptor = Descriptor::fetch(cx, selector, Exception::GP)?;
    if !descriptor.is_system() || !matches!(descriptor.kind(), 1 | 9) {
        return Err(named);
    }
    descriptor.require_present()?;
    Ok(descriptor)
}

/// The state that a TSS holds.
struct Image {
    cr3: Option<u64>,
    eip: u64,
    flags: u64,
    registers: [u64; 8],
    selectors: [u16; 6],
    ldt: u16,
    trap: bool,
}

fn read_image(cx: &mut Context<'_>, layout: &Layout, tss: &Descriptor) -> Result<Image, Exception> {
    let base = tss.base();
    let mut read = |offset: u64, size: u64| {
        let at = table_address(cx.cpu, base, offset);
        cx.load_system(at, size as usize)
    };
    let wide = layout.size == 4;
    let mut image = Image {
        cr3: None,
        eip: read(layout.eip, layout.size)?,
        flags: read(layout.flags, layout.size)?,
        registers: [0; 8],
        selectors: [0; 6],
        ldt: read(layout.ldt, 2)? as u16,
        trap: wide && read(100, 2)? & 1 != 0,
    };
    for (index, register) in image.registers.iter_mut().enumerate() {
        *register = read(layout.registers + index as u64 * layout.size, layout.size)?;
        if !wide {
            *register |= 0xffff_0000;
        }
    }
    for index in 0..layout.segment_count {
        image.selectors[index] =
            read(layout.segments + index as u64 * layout.segment_step, 2)? as u16;
    }
    if wide {
        image.cr3 = Some(read(28, 4)?);
    }
    Ok(image)
}

fn save(cx: &mut Context<'_>, layout: &Layout, next_rip: u64, flags: u64) -> Result<(), Exception> {
    let base = cx.cpu.control.tr.base;
    let write = |cx: &mut Context<'_>, offset: u64, size: u64, value: u64| {
        let at = table_address(cx.cpu, base, offset);
        cx.store_system(at, size as usize, value)
    };
    write(cx, layout.eip, layout.size, next_rip)?;
    write(cx, layout.flags, layout.size, flags)?;
    for index in 0..8 {
        let value = cx.cpu.gpr[index];
        let offset = layout.registers + index as u64 * layout.size;
        write(cx, offset, layout.size, value)?;
    }
    for (index, &segment) in ORDER[..layout.segment_count].iter().enumerate() {
        let value = u64::from(cx.cpu.segment(segment).selector);
        let offset = layout.segments + index as u64 * layout.segment_step;
        write(cx, offset, 2, value)?;
    }
    Ok(())
}

/// Switches to the task of a TSS descriptor whose type and presence have been checked.
/// Everything up to the new task's registers is authorised first; the segments are loaded in
/// the new task, so an exception there leaves the new task's state, as the manual says.
pub fn switch(
    cx: &mut Context<'_>,
    new: &Descriptor,
    reason: Reason,
    next_rip: u64,
) -> Result<(), Exception> {
    let new_layout = Layout::of(new.kind());
    if new.limit() < new_layout.minimum {
        return Err(Exception::invalid_tss(code_of(new.selector)));
    }
    let old_tr = cx.cpu.control.tr;
    let old_layout = Layout::of(old_tr.kind());
    if old_tr.limit < old_layout.minimum {
        return Err(Exception::invalid_tss(code_of(old_tr.selector)));
    }
    let image = read_image(cx, new_layout, new)?;
    let pdpte = match image.cr3 {
        Some(cr3) => super::control::read_pdptes(cx, cr3)?,
        None => None,
    };
    let nested = matches!(reason, Reason::Call | Reason::Interrupt { .. });
    let old_address = table_address(cx.cpu, old_tr.base, 0);
    cx.authorise_system_write(old_address, old_layout.minimum as usize + 1)?;
    let old_descriptor = if nested || is_null(old_tr.selector) {
        None
    } else {
        Some(Descriptor::fetch(cx, old_tr.selector, Exception::TS)?)
    };
    let new_address = table_address(cx.cpu, new.base(), 0);
    if nested {
        cx.authorise_system_write(new_address, 2)?;
    }
    let access_byte = |descriptor: &Descriptor| mmu::Linear(descriptor.address.wrapping_add(5));
    for descriptor in [Some(new), old_descriptor.as_ref()].into_iter().flatten() {
        cx.authorise_system_write(access_byte(descriptor), 1)?;
    }

    let mut old_flags = cx.cpu.rflags();
    match reason {
        Reason::Return => old_flags &= !NT,
        Reason::Interrupt { resume: true, .. } => old_flags |= RF,
        _ => {}
    }
    save(cx, old_layout, next_rip, old_flags)?;
    if let Some(descriptor) = old_descriptor {
        descriptor.mark_busy(cx, false)?;
    }
    if nested {
        cx.store_system(new_address, 2, u64::from(old_tr.selector))?;
    }
    if reason != Reason::Return {
        new.mark_busy(cx, true)?;
    }

    let control = &mut cx.cpu.control;
    control.cr0 |= CR0_TS;
    // Local breakpoints belong to the old task.
    control.dr[7] &= !0x155;
    control.tr = new.segment();
    control.tr.attributes |= 2;
    if let Some(cr3) = image.cr3
        && control.cr0 & CR0_PG != 0
    {
        control.cr3 = cr3;
        if let Some(pdpte) = pdpte {
            control.pdpte = pdpte;
        }
        cx.flush_tlb(false);
    }
    let flags = image.flags | if nested { NT } else { 0 };
    let cpu = &mut *cx.cpu;
    cpu.rip = image.eip;
    cpu.gpr[..8].copy_from_slice(&image.registers);
    let loaded = if new_layout.size == 4 {
        ARITHMETIC | IF | DF | SYSTEM
    } else {
        ARITHMETIC | IF | DF | TF | IOPL | NT
    };
    cpu.set_rflags(0, SYSTEM & !loaded);
    cpu.set_rflags(flags, loaded);
    load_segments(cx, &image)?;
    if image.trap {
        cx.cpu.pending_debug |= super::debug::DR6_BT;
    }
    if let Reason::Interrupt {
        error_code: Some(code),
        ..
    } = reason
    {
        let mut stack = Stack::current(cx.cpu);
        stack.push(new_layout.size as u8, u64::from(code))?;
        stack.authorise(cx)?;
        stack.commit(cx)?;
        stack.store_pointer(cx.cpu);
    }
    check_target(cx.cpu, cx.cpu.segment(SegmentIndex::Cs), cx.cpu.rip)
}

/// Loads LDTR and the segment registers of the new task. Until each has been checked it holds
/// its selector without a valid descriptor.
fn load_segments(cx: &mut Context<'_>, image: &Image) -> Result<(), Exception> {
    let vm86 = cx.cpu.system_flags & VM != 0;
    let cs_selector = image.selectors[SegmentIndex::Cs as usize];
    let cpl = (cs_selector & 3) as u8;
    for index in ORDER {
        let selector = image.selectors[index as usize];
        *cx.cpu.segment_mut(index) = if vm86 {
            vm86_segment(selector)
        } else {
            null_segment(selector, if index == SegmentIndex::Ss { cpl } else { 0 })
        };
    }
    cx.cpu.control.ldtr = null_segment(image.ldt, 0);
    cx.cpu.refresh_mode();
    if !is_null(image.ldt) {
        let named = Exception::invalid_tss(code_of(image.ldt));
        if image.ldt & 4 != 0 {
            return Err(named);
        }
        let ldt = Descriptor::fetch(cx, image.ldt, Exception::TS)?;
        if !ldt.is_system() || ldt.kind() != 2 || !ldt.present() {
            return Err(named);
        }
        cx.cpu.control.ldtr = ldt.segment();
    }
    if vm86 {
        return Ok(());
    }
    let cs_fault = Exception::invalid_tss(code_of(cs_selector));
    if is_null(cs_selector) {
        return Err(cs_fault);
    }
    let code = Descriptor::fetch(cx, cs_selector, Exception::TS)?;
    let level_fits = if code.is_conforming() {
        code.dpl() <= cpl
    } else {
        code.dpl() == cpl
    };
    if !code.is_code() || !level_fits {
        return Err(cs_fault);
    }
    code.require_present()?;
    code.mark_accessed(cx)?;
    let stack_selector = image.selectors[SegmentIndex::Ss as usize];
    let stack = check_stack(cx, stack_selector, cpl, false, Exception::TS)?;
    stack.mark_accessed(cx)?;
    *cx.cpu.segment_mut(SegmentIndex::Cs) = code.segment();
    *cx.cpu.segment_mut(SegmentIndex::Ss) = stack.segment;
    cx.cpu.refresh_mode();
    for index in [
        SegmentIndex::Ds,
        SegmentIndex::Es,
        SegmentIndex::Fs,
        SegmentIndex::Gs,
    ] {
        let loading = check_data(cx, image.selectors[index as usize], cpl, Exception::TS)?;
        loading.mark_accessed(cx)?;
        *cx.cpu.segment_mut(index) = loading.segment;
    }
    cx.cpu.refresh_mode();
    Ok(())
}

/// A TSS is 16 bits wide, which long mode does not allow (SDM volume 3, 9.8.5).
pub fn is_16_bit(tr: &Segment) -> bool {
    tr.present() && matches!(tr.kind(), 1 | 3)
}
