//! Debug registers, breakpoints and single steps (SDM volume 3, chapter 17).

use iced_x86::{FlowControl, Instruction, Register};
use mmu::Linear;

use super::require_ring0;
use crate::guest::flags::*;
use crate::guest::{Exception, SegmentIndex};
use crate::interpret::Context;
use crate::interpret::operand::{next, read_register, write_register};

/// [`CpuState::interrupt_shadow`](crate::guest::CpuState::interrupt_shadow): none.
pub const SHADOW_NONE: u8 = 0;
/// After STI: maskable interrupts wait.
pub const SHADOW_STI: u8 = 1;
/// After MOV SS or POP SS: interrupts and debug traps wait.
pub const SHADOW_MOV_SS: u8 = 2;

/// The bits of DR6 that read as ones.
pub const DR6_FIXED: u64 = 0xffff_0ff0;
/// DR6.BD: a debug register was touched while DR7.GD was set.
pub const DR6_BD: u64 = 1 << 13;
/// DR6.BS: a single step.
pub const DR6_BS: u64 = 1 << 14;
/// DR6.BT: a switch to a task whose TSS has T set.
pub const DR6_BT: u64 = 1 << 15;
/// DR7.GD: general detect.
pub const DR7_GD: u64 = 1 << 13;
const DR7_FIXED: u64 = 0x400;
/// DR7 bits that are always zero.
const DR7_ZERO: u64 = 0xd800;

/// What a breakpoint watches (the R/W field of DR7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Watch {
    /// Loads.
    Read,
    /// Stores.
    Write,
    /// I/O ports.
    Port,
}

fn debug_fault(bits: u64) -> Exception {
    Exception {
        address: bits,
        ..Exception::plain(Exception::DB)
    }
}

/// The bits of DR6 for enabled breakpoints that `matches(kind, length, address)`.
fn matching(cx: &Context<'_>, matches: impl Fn(u64, u64, u64) -> bool) -> u64 {
    let dr = &cx.cpu.control.dr;
    let mut bits = 0;
    for index in 0..4 {
        let enabled = dr[7] >> (2 * index) & 3 != 0;
        let kind = dr[7] >> (16 + 4 * index) & 3;
        let length = [1, 2, 8, 4][(dr[7] >> (18 + 4 * index) & 3) as usize];
        if enabled && matches(kind, length, dr[index as usize]) {
            bits |= 1 << index;
        }
    }
    bits
}

/// Before an instruction, when [`Mode::STEPPED`](crate::guest::Mode::STEPPED): a code
/// breakpoint at RIP is a fault, unless RF is set, which is cleared here.
pub fn before_instruction(cx: &mut Context<'_>) -> Result<(), Exception> {
    // Left by an instruction that nobody stepped.
    cx.cpu.step_suppressed = 0;
    // MOV SS and POP SS hold back the breakpoint on the instruction behind them (SDM volume 3,
    // 6.8.3).
    if cx.cpu.interrupt_shadow == SHADOW_MOV_SS {
        return Ok(());
    }
    if cx.cpu.system_flags & RF != 0 {
        cx.cpu.system_flags &= !RF;
        return Ok(());
    }
    let mut at = cx.cpu.rip;
    if !cx.cpu.code64() {
        at = at.wrapping_add(cx.cpu.segment(SegmentIndex::Cs).base) & 0xffff_ffff;
    }
    match matching(cx, |kind, _, address| kind == 0 && address == at) {
        0 => Ok(()),
        bits => Err(debug_fault(bits)),
    }
}

/// IA32_DEBUGCTL.BTF: single steps trap behind taken branches only.
const DEBUGCTL_BTF: u64 = 1 << 1;

/// After an instruction that completed, when it started with TF as `tf_before`: a single step
/// traps at the boundary, unless the instruction suppresses it, or is no taken branch and only
/// those are asked for (SDM volume 3, 17.4.3).
pub fn after_instruction(cx: &mut Context<'_>, insn: &Instruction, tf_before: bool) {
    let suppressed = std::mem::take(&mut cx.cpu.step_suppressed) != 0;
    let branches_only = cx.cpu.msrs.debugctl & DEBUGCTL_BTF != 0;
    if tf_before && !suppressed && (!branches_only || is_taken_branch(cx, insn)) {
        cx.cpu.pending_debug |= DR6_BS;
    }
}

fn is_taken_branch(cx: &Context<'_>, insn: &Instruction) -> bool {
    match insn.flow_control() {
        FlowControl::Next | FlowControl::Exception | FlowControl::XbeginXabortXend => false,
        FlowControl::ConditionalBranch => cx.cpu.rip != insn.next_ip(),
        _ => true,
    }
}

/// A data access that has been made: breakpoints on it trap after the instruction.
pub fn data_access(cx: &mut Context<'_>, at: Linear, size: u64, watch: Watch) {
    watch_range(cx, at.0, size, watch);
}

/// An access to an I/O port: breakpoints on it (with CR4.DE) trap after the instruction.
pub fn port_access(cx: &mut Context<'_>, port: u16, size: u64) {
    if cx.cpu.control.cr4 & CR4_DE != 0 {
        watch_range(cx, u64::from(port), size, Watch::Port);
    }
}

fn watch_range(cx: &mut Context<'_>, start: u64, size: u64, watch: Watch) {
    if cx.cpu.control.dr[7] & 0xff == 0 {
        return;
    }
    let bits = matching(cx, |kind, length, address| {
        let wanted = match watch {
            Watch::Read => kind == 3,
            Watch::Write => kind == 1 || kind == 3,
            Watch::Port => kind == 2,
        };
        let first = address & !(length - 1);
        wanted && first < start.saturating_add(size) && start < first.saturating_add(length)
    });
    cx.cpu.pending_debug |= bits;
}

/// Checks an access to a debug register and resolves the aliases DR4 and DR5.
fn check_access(cx: &Context<'_>, register: Register) -> Result<usize, Exception> {
    let number = match register.number() {
        number @ (4 | 5) => {
            if cx.cpu.control.cr4 & CR4_DE != 0 {
                return Err(Exception::invalid_opcode());
            }
            number + 2
        }
        number @ 0..=7 => number,
        _ => return Err(Exception::invalid_opcode()),
    };
    require_ring0(cx.cpu)?;
    if cx.cpu.control.dr[7] & DR7_GD != 0 {
        return Err(debug_fault(DR6_BD));
    }
    Ok(number)
}

/// MOV r, DRn.
pub fn move_from_debug(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let number = check_access(cx, insn.op1_register())?;
    let value = cx.cpu.control.dr[number];
    write_register(cx.cpu, insn.op0_register(), value);
    next(cx, insn)
}

/// MOV DRn, r.
pub fn move_to_debug(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    let number = check_access(cx, insn.op0_register())?;
    let value = read_register(cx.cpu, insn.op1_register());
    if number >= 6 && value >> 32 != 0 {
        return Err(Exception::general_protection(0));
    }
    cx.cpu.control.dr[number] = match number {
        6 => value & 0xe00f | DR6_FIXED,
        7 => value & !DR7_ZERO | DR7_FIXED,
        _ => value,
    };
    cx.cpu.refresh_mode();
    next(cx, insn)
}
