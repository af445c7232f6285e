//! Delivery of exceptions and interrupts (SDM volume 3, chapter 6; 20.1.4 for real mode, 20.3
//! for virtual-8086 mode, 6.14 for 64-bit mode).

use super::segments::{
    Descriptor, Loading, check_target, code_of, is_null, null_segment, real_segment, table_address,
    vm86_segment,
};
use super::stack::{self, Stack};
use super::{iopl, task, virtual_flags};
use crate::guest::flags::*;
use crate::guest::{Exception, Segment, SegmentIndex};
use crate::interpret::Context;

/// An exception could not be delivered, nor the double fault that followed: the processor
/// stops, and a PC resets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shutdown;

/// What interrupts the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An interrupt from the APIC or the PIC.
    External,
    /// A non-maskable interrupt.
    Nmi,
    /// INT n.
    Software {
        /// Offset of the following instruction.
        next_rip: u64,
    },
    /// INT3.
    Int3 {
        /// Offset of the following instruction.
        next_rip: u64,
    },
    /// INTO.
    Into {
        /// Offset of the following instruction.
        next_rip: u64,
    },
    /// INT1 (ICEBP).
    Int1 {
        /// Offset of the following instruction.
        next_rip: u64,
    },
}

/// One delivery.
struct Event {
    vector: u8,
    error_code: Option<u32>,
    /// INT n, INT3 or INTO: the gate's DPL is checked.
    software: bool,
    /// The EXT bit of error codes that the delivery itself raises.
    external: u32,
    /// The instruction pointer to push.
    rip: u64,
    /// A fault, or between two iterations of a string instruction: RF is set in the pushed flags
    /// (SDM volume 3, 17.3.1.1).
    resume: bool,
}

/// How two exceptions combine (SDM volume 3, table 6-5).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(vector: u8) -> Class {
    match vector {
        Exception::DE | Exception::TS | Exception::NP | Exception::SS | Exception::GP => {
            Class::Contributory
        }
        Exception::PF => Class::PageFault,
        Exception::DF => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// Delivers an exception raised by the instruction at RIP. A second exception during delivery
/// replaces it or becomes a double fault; a third stops the processor.
pub fn exception(cx: &mut Context<'_>, first: Exception) -> Result<(), Shutdown> {
    let mut current = first;
    // A trap between two iterations of a string instruction shows RF too (SDM volume 3,
    // 17.3.1.1).
    let within_string = std::mem::take(&mut cx.cpu.within_string) != 0;
    loop {
        match current.vector {
            Exception::PF => cx.cpu.control.cr2 = current.address,
            Exception::DB => record_debug(cx, current.address),
            Exception::MC => {
                // A second machine check while the first is in progress shuts the processor
                // down (SDM volume 3, 16.3.1.2): its handler may be what is bad.
                const IN_PROGRESS: u64 = 1 << 2;
                let status = &mut cx.cpu.msrs.mcg_status;
                if cx.cpu.control.cr4 & CR4_MCE == 0 || *status & IN_PROGRESS != 0 {
                    return Err(Shutdown);
                }
                *status |= IN_PROGRESS;
            }
            _ => {}
        }
        let event = Event {
            vector: current.vector,
            error_code: current.error_code,
            software: false,
            external: 1,
            rip: cx.cpu.rip,
            resume: within_string
                || !matches!(
                    current.vector,
                    Exception::DB | Exception::DF | Exception::MC | Exception::BP | Exception::OF
                ),
        };
        let Err(second) = deliver(cx, &event) else {
            cx.cpu.interrupt_shadow = 0;
            return Ok(());
        };
        current = match (class(current.vector), class(second.vector)) {
            (Class::DoubleFault, Class::Contributory | Class::PageFault) => return Err(Shutdown),
            (Class::Contributory, Class::Contributory)
            | (Class::PageFault, Class::Contributory | Class::PageFault) => {
                if second.vector == Exception::PF {
                    cx.cpu.control.cr2 = second.address;
                }
                Exception::with_code(Exception::DF, 0)
            }
            _ => second,
        };
    }
}

/// Delivers an interrupt, external or by an instruction. On an exception nothing has changed.
pub fn interrupt(cx: &mut Context<'_>, vector: u8, kind: Kind) -> Result<(), Exception> {
    let (software, external, rip) = match kind {
        Kind::External | Kind::Nmi => (false, 1, cx.cpu.rip),
        Kind::Software { next_rip } | Kind::Int3 { next_rip } | Kind::Into { next_rip } => {
            (true, 0, next_rip)
        }
        Kind::Int1 { next_rip } => (false, 1, next_rip),
    };
    let event = Event {
        vector,
        error_code: None,
        software,
        external,
        rip,
        resume: !software && cx.cpu.within_string != 0,
    };
    if let Kind::Software { .. } = kind
        && cx.cpu.system_flags & VM != 0
    {
        if virtual_flags::redirected(cx, vector)? {
            real_mode(cx, &event)?;
            cx.cpu.step_suppressed = 1;
            return Ok(());
        }
        if iopl(cx.cpu) < 3 {
            return Err(Exception::general_protection(0));
        }
    }
    deliver(cx, &event)?;
    cx.cpu.within_string = 0;
    match kind {
        Kind::Nmi => cx.cpu.nmi_masked = 1,
        Kind::External => {}
        Kind::Int1 { .. } => {
            cx.cpu.step_suppressed = 1;
            // Traps that MOV SS held back are part of this one.
            let held_back = std::mem::take(&mut cx.cpu.pending_debug);
            if held_back != 0 {
                record_debug(cx, held_back);
            }
        }
        // The trap of a single step is not taken: TF is clear before it is looked at.
        _ => cx.cpu.step_suppressed = 1,
    }
    Ok(())
}

/// At an instruction boundary, takes what is waiting in the order of SDM volume 3, table 6-2:
/// debug traps, NMI, external interrupts. Returns whether something was delivered.
pub fn pending(cx: &mut Context<'_>) -> Result<bool, Shutdown> {
    use super::debug::{SHADOW_MOV_SS, SHADOW_NONE};
    if cx.cpu.pending_debug != 0 && cx.cpu.interrupt_shadow != SHADOW_MOV_SS {
        cx.cpu.halted = 0;
        let bits = std::mem::take(&mut cx.cpu.pending_debug);
        let trap = Exception {
            address: bits,
            ..Exception::plain(Exception::DB)
        };
        exception(cx, trap)?;
        return Ok(true);
    }
    if cx.cpu.interrupt_shadow != SHADOW_NONE {
        return Ok(false);
    }
    if cx.cpu.nmi_masked == 0 && cx.platform.take_nmi() {
        cx.cpu.halted = 0;
        // Masked whatever becomes of the delivery.
        cx.cpu.nmi_masked = 1;
        return match interrupt(cx, Exception::NMI, Kind::Nmi) {
            Ok(()) => Ok(true),
            Err(fault) => exception(cx, fault).map(|()| true),
        };
    }
    if cx.cpu.interrupt_flag != 0 && cx.platform.interrupt_pending() {
        let instructions = cx.cpu.instructions;
        if let Some(vector) = cx.platform.acknowledge_interrupt(instructions) {
            cx.cpu.halted = 0;
            return match interrupt(cx, vector, Kind::External) {
                Ok(()) => Ok(true),
                Err(fault) => exception(cx, fault).map(|()| true),
            };
        }
    }
    Ok(false)
}

/// DR6 and DR7 as #DB leaves them (SDM volume 3, 17.2.3 and 17.2.4); also ends branch stepping.
fn record_debug(cx: &mut Context<'_>, bits: u64) {
    let control = &mut cx.cpu.control;
    control.dr[6] = control.dr[6] & !0xf | bits | super::debug::DR6_FIXED;
    control.dr[7] &= !super::debug::DR7_GD;
    cx.cpu.msrs.debugctl &= !3;
    cx.cpu.refresh_mode();
}

fn deliver(cx: &mut Context<'_>, event: &Event) -> Result<(), Exception> {
    let result = if cx.cpu.control.cr0 & CR0_PE == 0 {
        real_mode(cx, event)
    } else {
        through_gate(cx, event)
    };
    result.map_err(|mut fault| {
        let names_selector = matches!(
            fault.vector,
            Exception::TS | Exception::NP | Exception::SS | Exception::GP
        );
        if names_selector && let Some(code) = &mut fault.error_code {
            *code |= event.external;
        }
        fault
    })
}

/// Through the interrupt vector table: real mode, and INT n of virtual-8086 mode where the
/// redirection bitmap says so.
fn real_mode(cx: &mut Context<'_>, event: &Event) -> Result<(), Exception> {
    let vm86 = cx.cpu.system_flags & VM != 0;
    let offset = u64::from(event.vector) * 4;
    let table = if vm86 {
        0
    } else {
        if offset + 3 > u64::from(cx.cpu.control.idtr.limit) {
            return Err(Exception::general_protection(
                u32::from(event.vector) * 8 + 2,
            ));
        }
        cx.cpu.control.idtr.base
    };
    let at = table_address(cx.cpu, table, offset);
    let entry = if vm86 {
        cx.load(at, 4)?
    } else {
        cx.load_system(at, 4)?
    };
    let selector = (entry >> 16) as u16;
    let mut stack = Stack::current(cx.cpu);
    let flags = cx.cpu.rflags();
    // With IOPL below 3 the program sees VIF in the place of IF (SDM volume 3, 20.3.3.1).
    let virtual_if = vm86 && iopl(cx.cpu) < 3;
    let image = if virtual_if {
        virtual_flags::pushed(flags)
    } else {
        flags
    };
    stack.push(2, image & 0xffff)?;
    stack.push(2, u64::from(cx.cpu.segment(SegmentIndex::Cs).selector))?;
    stack.push(2, event.rip & 0xffff)?;
    stack.authorise(cx)?;
    stack.commit(cx)?;
    stack.store_pointer(cx.cpu);
    let cs = cx.cpu.segment_mut(SegmentIndex::Cs);
    *cs = if vm86 {
        vm86_segment(selector)
    } else {
        real_segment(cs, selector)
    };
    cx.cpu.rip = entry & 0xffff;
    let mut cleared = TF | RF | if vm86 { NT } else { AC };
    cleared |= if virtual_if { VIF } else { IF };
    cx.cpu.set_rflags(0, cleared);
    Ok(())
}

/// What a gate leads to.
struct Gate {
    /// Bytes of each pushed value.
    size: u8,
    /// An interrupt gate clears IF, a trap gate does not.
    clears_if: bool,
    /// Where to continue.
    offset: u64,
    /// Interrupt stack table entry, 0 for none.
    ist: u8,
    code: Descriptor,
}

fn through_gate(cx: &mut Context<'_>, event: &Event) -> Result<(), Exception> {
    let gate = match read_gate(cx, event)? {
        Target::Gate(gate) => gate,
        Target::Task(descriptor) => {
            return task::switch(
                cx,
                &descriptor,
                task::Reason::Interrupt {
                    error_code: event.error_code,
                    resume: event.resume,
                },
                event.rip,
            );
        }
    };
    let cpl = cx.cpu.cpl();
    let long = cx.cpu.long_mode();
    let vm86 = cx.cpu.system_flags & VM != 0;
    let target = if gate.code.is_conforming() {
        cpl
    } else {
        gate.code.dpl()
    };
    if vm86 && target != 0 {
        return Err(gate.code.general_protection());
    }
    let inward = target < cpl;
    let mut new_ss: Option<Loading> = None;
    let mut stack = if long {
        let pointer = if gate.ist != 0 {
            stack::inner_long(cx, 0x24 + 8 * (u64::from(gate.ist) - 1))?
        } else if inward {
            stack::inner_long(cx, 4 + 8 * u64::from(target))?
        } else {
            cx.cpu.gpr[crate::guest::Register::RSP]
        };
        if inward {
            new_ss = Some(Loading {
                segment: null_segment(u16::from(target), target),
                descriptor: None,
            });
        }
        Stack::long(pointer & !15, target)
    } else if inward {
        let (stack, loading) = stack::inner(cx, target)?;
        new_ss = Some(loading);
        stack
    } else {
        Stack::current(cx.cpu)
    };
    let size = gate.size;
    let cpu = &*cx.cpu;
    let selector = |index: SegmentIndex| u64::from(cpu.segment(index).selector);
    if vm86 {
        for index in [
            SegmentIndex::Gs,
            SegmentIndex::Fs,
            SegmentIndex::Ds,
            SegmentIndex::Es,
        ] {
            stack.push(size, selector(index))?;
        }
    }
    if long || inward {
        stack.push(size, selector(SegmentIndex::Ss))?;
        stack.push(size, cpu.gpr[crate::guest::Register::RSP])?;
    }
    let flags = cpu.rflags() | if event.resume { RF } else { 0 };
    stack.push(size, flags)?;
    stack.push(size, selector(SegmentIndex::Cs))?;
    stack.push(size, event.rip)?;
    if let Some(code) = event.error_code {
        stack.push(size, u64::from(code))?;
    }
    let cs = gate.code.segment_at(target);
    check_target(cx.cpu, &cs, gate.offset)?;
    stack.authorise(cx)?;
    if let Some(loading) = &new_ss {
        loading.mark_accessed(cx)?;
    }
    gate.code.mark_accessed(cx)?;
    stack.commit(cx)?;
    let cpu = &mut *cx.cpu;
    if let Some(loading) = new_ss {
        *cpu.segment_mut(SegmentIndex::Ss) = loading.segment;
    }
    if vm86 {
        for index in [
            SegmentIndex::Gs,
            SegmentIndex::Fs,
            SegmentIndex::Ds,
            SegmentIndex::Es,
        ] {
            *cpu.segment_mut(index) = null_segment(0, 0);
        }
    }
    *cpu.segment_mut(SegmentIndex::Cs) = cs;
    cpu.rip = gate.offset;
    stack.store_pointer(cpu);
    let mut cleared = TF | NT | RF | VM;
    if gate.clears_if {
        cleared |= IF;
    }
    cpu.set_rflags(0, cleared);
    Ok(())
}

enum Target {
    Gate(Gate),
    Task(Descriptor),
}

/// Reads and checks the gate of a vector and what it points to (SDM volume 3, 6.12.1 and
/// 6.14.1).
fn read_gate(cx: &mut Context<'_>, event: &Event) -> Result<Target, Exception> {
    let long = cx.cpu.long_mode();
    let entry_size = if long { 16 } else { 8 };
    let named = u32::from(event.vector) * 8 + 2;
    let offset = u64::from(event.vector) * entry_size;
    let idtr = cx.cpu.control.idtr;
    if offset + entry_size - 1 > u64::from(idtr.limit) {
        return Err(Exception::general_protection(named));
    }
    let at = table_address(cx.cpu, idtr.base, offset);
    let low = cx.load_system(at, 8)?;
    let kind = (low >> 40 & 0x1f) as u8;
    let known = match kind {
        14 | 15 => true,
        5..=7 => !long,
        _ => false,
    };
    let dpl = (low >> 45 & 3) as u8;
    if !known || event.software && dpl < cx.cpu.cpl() {
        return Err(Exception::general_protection(named));
    }
    if low >> 47 & 1 == 0 {
        return Err(Exception::not_present(named));
    }
    let selector = (low >> 16) as u16;
    if kind == 5 {
        return task::fetch_available(cx, selector).map(Target::Task);
    }
    let mut target = low & 0xffff;
    if kind & 8 != 0 {
        target |= (low >> 48) << 16;
    }
    let mut ist = 0;
    if long {
        let at = table_address(cx.cpu, idtr.base, offset + 8);
        target |= cx.load_system(at, 8)? << 32;
        ist = (low >> 32 & 7) as u8;
    }
    if is_null(selector) {
        return Err(Exception::general_protection(0));
    }
    let code = Descriptor::fetch(cx, selector, Exception::GP)?;
    let named = Exception::general_protection(code_of(selector));
    if !code.is_code() || code.dpl() > cx.cpu.cpl() {
        return Err(named);
    }
    if long && (!code.is_long() || code.attributes() & Segment::BIG != 0) {
        return Err(named);
    }
    code.require_present()?;
    Ok(Target::Gate(Gate {
        size: match (long, kind & 8 != 0) {
            (true, _) => 8,
            (false, true) => 4,
            (false, false) => 2,
        },
        clears_if: kind & 1 == 0,
        offset: target,
        ist,
        code,
    }))
}
