//! IRET and RETF: returns, to the same level, to an outer one, to virtual-8086 mode or to
//! another task (SDM volume 2, IRET and RET).

use std::sync::atomic::Ordering;

use iced_x86::{Code, Instruction, Mnemonic};

use super::segments::{
    Descriptor, Loading, check_stack, check_target, code_of, drop_inaccessible, is_null,
    real_segment, table_address, vm86_segment,
};
use super::stack::Stack;
use super::{iopl, task};
use crate::guest::flags::*;
use crate::guest::{Exception, Mode, Register, Segment, SegmentIndex};
use crate::interpret::Context;
use crate::interpret::operand::{next_rip, row};
use crate::record::Row;

pub(crate) const ROWS: &[Row] = &[
    row(Mnemonic::Iret, iret),
    row(Mnemonic::Iretd, iret),
    row(Mnemonic::Iretq, iret),
    row(Mnemonic::Retf, far_return),
];

/// The flags that IRET loads whatever the privilege.
const ORDINARY: u64 = ARITHMETIC | TF | DF | NT;

fn size_mask(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(size))
}

fn iret(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let size = match insn.code() {
        Code::Iretw => 2,
        Code::Iretd => 4,
        _ => 8,
    };
    if !cx.cpu.protected() {
        legacy_iret(cx, size)?;
    } else if cx.cpu.system_flags & NT != 0 {
        return_to_task(cx, insn)?;
    } else {
        protected_iret(cx, size)?;
    }
    if std::mem::take(&mut cx.cpu.nmi_masked) != 0 {
        // Another may be waiting: somebody has to look.
        cx.cpu.exit_request.store(1, Ordering::Relaxed);
    }
    // RF lasts until the next instruction completes, and only breakpoints look at it.
    if !cx.cpu.mode.has(Mode::STEPPED) {
        cx.cpu.system_flags &= !RF;
    }
    Ok(())
}

/// IRET in real and virtual-8086 mode.
fn legacy_iret(cx: &mut Context<'_>, size: u8) -> Result<(), Exception> {
    let vm86 = cx.cpu.system_flags & VM != 0;
    let privileged = !vm86 || iopl(cx.cpu) == 3;
    let virtual_if = !privileged && cx.cpu.control.cr4 & CR4_VME != 0 && size == 2;
    if !privileged && !virtual_if {
        return Err(Exception::general_protection(0));
    }
    let mut stack = Stack::current(cx.cpu);
    let rip = stack.pop(cx, size)?;
    let selector = stack.pop(cx, size)? as u16;
    let mut flags = stack.pop(cx, size)?;
    let old = cx.cpu.segment(SegmentIndex::Cs);
    let cs = if vm86 {
        vm86_segment(selector)
    } else {
        real_segment(old, selector)
    };
    check_target(cx.cpu, &cs, rip)?;
    let mut mask = ORDINARY;
    if virtual_if {
        if flags & TF != 0 || flags & IF != 0 && cx.cpu.system_flags & VIP != 0 {
            return Err(Exception::general_protection(0));
        }
        flags = flags & !VIF | if flags & IF != 0 { VIF } else { 0 };
        mask |= VIF;
    } else {
        mask |= IF;
        if !vm86 {
            mask |= IOPL;
        }
        if size == 4 {
            mask |= RF | AC | ID;
        }
    }
    stack.store_pointer(cx.cpu);
    *cx.cpu.segment_mut(SegmentIndex::Cs) = cs;
    cx.cpu.rip = rip;
    cx.cpu.set_rflags(flags, mask);
    Ok(())
}

/// IRET with NT set: back to the task that the TSS links to.
fn return_to_task(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    if cx.cpu.long_mode() {
        return Err(Exception::general_protection(0));
    }
    let at = table_address(cx.cpu, cx.cpu.control.tr.base, 0);
    let selector = cx.load_system(at, 2)? as u16;
    let named = Exception::invalid_tss(code_of(selector));
    if selector & 4 != 0 || is_null(selector) {
        return Err(named);
    }
    let descriptor = Descriptor::fetch(cx, selector, Exception::TS)?;
    if !descriptor.is_system() || !matches!(descriptor.kind(), 3 | 11) {
        return Err(named);
    }
    descriptor.require_present()?;
    let next_rip = next_rip(cx, insn);
    task::switch(cx, &descriptor, task::Reason::Return, next_rip)
}

fn protected_iret(cx: &mut Context<'_>, size: u8) -> Result<(), Exception> {
    let cpl = cx.cpu.cpl();
    let mut stack = Stack::current(cx.cpu);
    let rip = stack.pop(cx, size)?;
    let selector = stack.pop(cx, size)? as u16;
    let flags = stack.pop(cx, size)?;
    if flags & VM != 0 && size == 4 && cpl == 0 && !cx.cpu.long_mode() {
        return return_to_vm86(cx, stack, rip, selector, flags);
    }
    let mut mask = ORDINARY;
    if size > 2 {
        mask |= RF | AC | ID;
    }
    if cpl <= iopl(cx.cpu) {
        mask |= IF;
    }
    if cpl == 0 {
        mask |= IOPL;
        if size > 2 {
            mask |= VIF | VIP;
        }
    }
    let pops_stack = cx.cpu.code64();
    let landing = Landing::check(cx, selector, rip, stack, size, 0, pops_stack)?;
    landing.commit(cx)?;
    cx.cpu.set_rflags(flags, mask);
    Ok(())
}

fn return_to_vm86(
    cx: &mut Context<'_>,
    mut stack: Stack,
    rip: u64,
    cs: u16,
    flags: u64,
) -> Result<(), Exception> {
    let rsp = stack.pop(cx, 4)?;
    let ss = stack.pop(cx, 4)? as u16;
    let mut data = [0u16; 4];
    for selector in &mut data {
        *selector = stack.pop(cx, 4)? as u16;
    }
    let code = vm86_segment(cs);
    check_target(cx.cpu, &code, rip & 0xffff)?;
    let cpu = &mut *cx.cpu;
    cpu.segments = [
        vm86_segment(data[0]),
        code,
        vm86_segment(ss),
        vm86_segment(data[1]),
        vm86_segment(data[2]),
        vm86_segment(data[3]),
    ];
    cpu.rip = rip & 0xffff;
    cpu.gpr[Register::RSP] = rsp;
    cpu.set_rflags(flags, ARITHMETIC | DF | IF | SYSTEM);
    Ok(())
}

/// RETF, with or without an immediate.
fn far_return(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let (size, released) = match insn.code() {
        Code::Retfw => (2, 0),
        Code::Retfw_imm16 => (2, insn.immediate16()),
        Code::Retfd => (4, 0),
        Code::Retfd_imm16 => (4, insn.immediate16()),
        Code::Retfq => (8, 0),
        _ => (8, insn.immediate16()),
    };
    let mut stack = Stack::current(cx.cpu);
    let rip = stack.pop(cx, size)?;
    let selector = stack.pop(cx, size)? as u16;
    if cx.cpu.protected() {
        let landing = Landing::check(cx, selector, rip, stack, size, released, false)?;
        return landing.commit(cx);
    }
    let cs = if cx.cpu.cpl() == 3 {
        vm86_segment(selector)
    } else {
        real_segment(cx.cpu.segment(SegmentIndex::Cs), selector)
    };
    check_target(cx.cpu, &cs, rip)?;
    stack.skip(u64::from(released));
    stack.store_pointer(cx.cpu);
    *cx.cpu.segment_mut(SegmentIndex::Cs) = cs;
    cx.cpu.rip = rip;
    cx.cpu.refresh_mode();
    Ok(())
}

/// Where a far return or IRET goes, checked but not yet taken.
struct Landing {
    code: Descriptor,
    rip: u64,
    /// The stack pointer to load when the stack does not change.
    stack: Stack,
    /// The other stack and its pointer.
    outer: Option<(Loading, u64)>,
    /// Released from the outer stack besides.
    released: u64,
    old_cpl: u8,
}

impl Landing {
    /// Checks a return in protected mode. `stack` is past CS (and the flags); `pops_stack`
    /// says that SS and the pointer are on it even if the level stays (IRET of 64-bit mode).
    fn check(
        cx: &mut Context<'_>,
        selector: u16,
        rip: u64,
        mut stack: Stack,
        size: u8,
        released: u16,
        pops_stack: bool,
    ) -> Result<Landing, Exception> {
        let cpl = cx.cpu.cpl();
        if is_null(selector) {
            return Err(Exception::general_protection(0));
        }
        let code = Descriptor::fetch(cx, selector, Exception::GP)?;
        let level = code.rpl();
        code.require_code(cx.cpu)?;
        let level_fits = if code.is_conforming() {
            code.dpl() <= level
        } else {
            code.dpl() == level
        };
        if level < cpl || !level_fits {
            return Err(code.general_protection());
        }
        code.require_present()?;
        stack.skip(u64::from(released));
        let outer = if level > cpl || pops_stack {
            let pointer = stack.pop(cx, size)?;
            let ss = stack.pop(cx, size)? as u16;
            let null_allowed = cx.cpu.long_mode() && code.is_long() && level != 3;
            let loading = check_stack(cx, ss, level, null_allowed, Exception::GP)?;
            Some((loading, pointer & size_mask(size)))
        } else {
            None
        };
        check_target(cx.cpu, &code.segment(), rip)?;
        Ok(Landing {
            code,
            rip,
            stack,
            outer,
            released: u64::from(released),
            old_cpl: cpl,
        })
    }

    fn commit(self, cx: &mut Context<'_>) -> Result<(), Exception> {
        if let Some((loading, _)) = &self.outer {
            loading.mark_accessed(cx)?;
        }
        self.code.mark_accessed(cx)?;
        let cpu = &mut *cx.cpu;
        let level = self.code.rpl();
        let cs = self.code.segment();
        if let Some((loading, pointer)) = self.outer {
            *cpu.segment_mut(SegmentIndex::Ss) = loading.segment;
            let wide = cpu.long_mode() && cs.attributes & Segment::LONG != 0;
            let mask = if wide {
                u64::MAX
            } else if loading.segment.attributes & Segment::BIG != 0 {
                0xffff_ffff
            } else {
                0xffff
            };
            let target = if level > self.old_cpl {
                pointer.wrapping_add(self.released)
            } else {
                pointer
            };
            let rsp = &mut cpu.gpr[Register::RSP];
            // A 16-bit stack leaves the upper bits of ESP alone, bits 32 and up are cleared.
            *rsp = if mask == 0xffff {
                *rsp & 0xffff_0000 | target & 0xffff
            } else {
                target & mask
            };
        } else {
            self.stack.store_pointer(cpu);
        }
        *cpu.segment_mut(SegmentIndex::Cs) = cs;
        cpu.rip = self.rip;
        if level > self.old_cpl {
            drop_inaccessible(cpu, level);
        }
        cpu.refresh_mode();
        Ok(())
    }
}
