//! Far JMP and CALL: code segments, call gates, task gates and TSSs (SDM volume 3, 5.8 and
//! 7.3; volume 2, CALL and JMP).

use iced_x86::{Code, Instruction, OpKind};

use super::segments::{
    Descriptor, Loading, check_target, code_of, is_null, null_segment, real_segment, vm86_segment,
};
use super::stack::{self, Stack};
use super::task;
use crate::guest::{Exception, Mode, Register, Segment, SegmentIndex};
use crate::interpret::operand::next_rip;
use crate::interpret::{Access, Context, address};

/// Where an instruction wants to go.
struct Request {
    selector: u16,
    offset: u64,
    /// Operand size in bytes.
    size: u8,
    is_call: bool,
}

/// Far JMP.
pub fn jump(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    transfer(cx, insn, false)
}

/// Far CALL.
pub fn call(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    transfer(cx, insn, true)
}

fn read_request(
    cx: &mut Context<'_>,
    insn: &Instruction,
    is_call: bool,
) -> Result<Request, Exception> {
    let size = match insn.code() {
        Code::Jmp_ptr1616 | Code::Jmp_m1616 | Code::Call_ptr1616 | Code::Call_m1616 => 2,
        Code::Jmp_m1664 | Code::Call_m1664 => 8,
        _ => 4,
    };
    let (selector, offset) = match insn.op0_kind() {
        OpKind::FarBranch16 => (insn.far_branch_selector(), u64::from(insn.far_branch16())),
        OpKind::FarBranch32 => (insn.far_branch_selector(), u64::from(insn.far_branch32())),
        _ => read_far_pointer(cx, insn, 0, size)?,
    };
    Ok(Request {
        selector,
        offset,
        size,
        is_call,
    })
}

/// Reads a far pointer in memory: an offset of `size` bytes, then a selector.
pub fn read_far_pointer(
    cx: &mut Context<'_>,
    insn: &Instruction,
    operand: u32,
    size: u8,
) -> Result<(u16, u64), Exception> {
    let size = usize::from(size);
    let at = address::linear(cx, insn, operand, size + 2, Access::Read)?;
    // Pointers of 32, 48 and 80 bits are aligned like their offsets, the first like a selector
    // (SDM volume 3, table 6-7).
    if cx.cpu.mode.has(Mode::ALIGNED) && at.0 & (size as u64 - 1) != 0 {
        return Err(Exception::alignment_check());
    }
    let mut bytes = [0; 10];
    cx.load_bytes(at, &mut bytes[..size + 2])?;
    let selector = u16::from_le_bytes([bytes[size], bytes[size + 1]]);
    bytes[size] = 0;
    bytes[size + 1] = 0;
    let mut offset = [0; 8];
    offset.copy_from_slice(&bytes[..8]);
    Ok((selector, u64::from_le_bytes(offset)))
}

fn transfer(cx: &mut Context<'_>, insn: &Instruction, is_call: bool) -> Result<(), Exception> {
    let request = read_request(cx, insn, is_call)?;
    let next_rip = next_rip(cx, insn);
    if !cx.cpu.protected() {
        return legacy(cx, &request, next_rip);
    }
    if is_null(request.selector) {
        return Err(Exception::general_protection(0));
    }
    let descriptor = Descriptor::fetch(cx, request.selector, Exception::GP)?;
    if !descriptor.is_system() {
        return to_code(cx, &request, &descriptor, next_rip);
    }
    match (descriptor.kind(), cx.cpu.long_mode()) {
        (12, _) | (4, false) => through_gate(cx, &request, &descriptor, next_rip),
        (5, false) => {
            check_gate_rights(cx, &descriptor)?;
            let tss = task::fetch_available(cx, (descriptor.raw >> 16) as u16)?;
            task::switch(cx, &tss, reason(is_call), next_rip)
        }
        (1 | 9, false) => {
            check_privilege(cx, &descriptor)?;
            let tss = task::fetch_available(cx, request.selector)?;
            task::switch(cx, &tss, reason(is_call), next_rip)
        }
        _ => Err(descriptor.general_protection()),
    }
}

fn reason(is_call: bool) -> task::Reason {
    if is_call {
        task::Reason::Call
    } else {
        task::Reason::Jump
    }
}

/// A gate or TSS may be used from its DPL or more privileged levels, RPL included.
fn check_privilege(cx: &Context<'_>, descriptor: &Descriptor) -> Result<(), Exception> {
    if descriptor.dpl() < cx.cpu.cpl() || descriptor.dpl() < descriptor.rpl() {
        return Err(descriptor.general_protection());
    }
    Ok(())
}

fn check_gate_rights(cx: &Context<'_>, gate: &Descriptor) -> Result<(), Exception> {
    check_privilege(cx, gate)?;
    gate.require_present()
}

/// Real and virtual-8086 mode.
fn legacy(cx: &mut Context<'_>, request: &Request, next_rip: u64) -> Result<(), Exception> {
    let old = *cx.cpu.segment(SegmentIndex::Cs);
    let cs = if cx.cpu.cpl() == 3 {
        vm86_segment(request.selector)
    } else {
        real_segment(&old, request.selector)
    };
    let mut stack = Stack::current(cx.cpu);
    if request.is_call {
        stack.push(request.size, u64::from(old.selector))?;
        stack.push(request.size, next_rip)?;
    }
    // That the stack has room is looked at first (SDM volume 2, CALL).
    check_target(cx.cpu, &cs, request.offset)?;
    if request.is_call {
        stack.authorise(cx)?;
        stack.commit(cx)?;
        stack.store_pointer(cx.cpu);
    }
    land(cx, cs, request.offset);
    Ok(())
}

fn land(cx: &mut Context<'_>, cs: Segment, offset: u64) {
    *cx.cpu.segment_mut(SegmentIndex::Cs) = cs;
    cx.cpu.rip = offset;
    cx.cpu.refresh_mode();
}

/// Directly to a code segment: the privilege level stays.
fn to_code(
    cx: &mut Context<'_>,
    request: &Request,
    code: &Descriptor,
    next_rip: u64,
) -> Result<(), Exception> {
    let cpl = cx.cpu.cpl();
    code.require_code(cx.cpu)?;
    let allowed = if code.is_conforming() {
        code.dpl() <= cpl
    } else {
        code.rpl() <= cpl && code.dpl() == cpl
    };
    if !allowed {
        return Err(code.general_protection());
    }
    code.require_present()?;
    let cs = code.segment_at(cpl);
    let mut stack = Stack::current(cx.cpu);
    if request.is_call {
        let old = u64::from(cx.cpu.segment(SegmentIndex::Cs).selector);
        stack.push(request.size, old)?;
        stack.push(request.size, next_rip)?;
    }
    check_target(cx.cpu, &cs, request.offset)?;
    stack.authorise(cx)?;
    code.mark_accessed(cx)?;
    stack.commit(cx)?;
    stack.store_pointer(cx.cpu);
    land(cx, cs, request.offset);
    Ok(())
}

/// Through a call gate of 16, 32 or 64 bits.
fn through_gate(
    cx: &mut Context<'_>,
    request: &Request,
    gate: &Descriptor,
    next_rip: u64,
) -> Result<(), Exception> {
    let cpl = cx.cpu.cpl();
    let long = cx.cpu.long_mode();
    check_privilege(cx, gate)?;
    let high = if long {
        gate.fetch_high(cx, Exception::GP)?
    } else {
        0
    };
    gate.require_present()?;
    let selector = (gate.raw >> 16) as u16;
    if is_null(selector) {
        return Err(Exception::general_protection(0));
    }
    let size: u8 = match (long, gate.kind()) {
        (true, _) => 8,
        (false, 12) => 4,
        (false, _) => 2,
    };
    let mut offset = gate.raw & 0xffff;
    if size > 2 {
        offset |= (gate.raw >> 48) << 16;
    }
    offset |= high << 32;
    let code = Descriptor::fetch(cx, selector, Exception::GP)?;
    let named = Exception::general_protection(code_of(selector));
    if !code.is_code() || code.dpl() > cpl {
        return Err(named);
    }
    if !request.is_call && !code.is_conforming() && code.dpl() != cpl {
        return Err(named);
    }
    if long && (!code.is_long() || code.attributes() & Segment::BIG != 0) {
        return Err(named);
    }
    code.require_present()?;
    let level = if code.is_conforming() {
        cpl
    } else {
        code.dpl()
    };
    let cs = code.segment_at(level);
    let mut new_ss: Option<Loading> = None;
    let mut stack = if level == cpl {
        if long {
            Stack::long(cx.cpu.gpr[Register::RSP], cpl)
        } else {
            Stack::current(cx.cpu)
        }
    } else {
        let (mut inner, loading) = if long {
            let pointer = stack::inner_long(cx, 4 + 8 * u64::from(level))?;
            let loading = Loading {
                segment: null_segment(u16::from(level), level),
                descriptor: None,
            };
            (Stack::long(pointer, level), loading)
        } else {
            stack::inner(cx, level)?
        };
        new_ss = Some(loading);
        let old = Stack::current(cx.cpu);
        let selector = u64::from(cx.cpu.segment(SegmentIndex::Ss).selector);
        inner.push(size, selector)?;
        inner.push(size, cx.cpu.gpr[Register::RSP])?;
        let parameters = if long { 0 } else { gate.raw >> 32 & 31 };
        for index in (0..parameters).rev() {
            let value = old.peek(cx, index * u64::from(size), size)?;
            inner.push(size, value)?;
        }
        inner
    };
    if request.is_call {
        let old = u64::from(cx.cpu.segment(SegmentIndex::Cs).selector);
        stack.push(size, old)?;
        stack.push(size, next_rip)?;
    }
    // The last check of all: a bad stack comes first (SDM volume 2, CALL).
    check_target(cx.cpu, &cs, offset)?;
    if request.is_call {
        stack.authorise(cx)?;
    }
    if let Some(loading) = &new_ss {
        loading.mark_accessed(cx)?;
    }
    code.mark_accessed(cx)?;
    if request.is_call {
        stack.commit(cx)?;
        if let Some(loading) = new_ss {
            *cx.cpu.segment_mut(SegmentIndex::Ss) = loading.segment;
        }
        stack.store_pointer(cx.cpu);
    }
    land(cx, cs, offset);
    Ok(())
}
