//! System and control-transfer instructions, and the delivery of interrupts and exceptions,
//! in every mode of the processor (SDM volume 3, chapters 2 to 8, 17 and 20).

pub(crate) mod control;
pub mod debug;
pub mod deliver;
mod far;
pub(crate) mod fast_call;
pub(crate) mod inspect;
pub(crate) mod iret;
mod machine_check_banks;
pub(crate) mod msr;
pub(crate) mod port;
pub(crate) mod processor;
pub(crate) mod segment_loads;
mod segments;
pub(crate) mod software_interrupt;
mod stack;
pub(crate) mod table_registers;
mod task;
mod virtual_flags;

use iced_x86::{Code, Instruction};

use super::Context;
use crate::guest::cpuid::Feature;
use crate::guest::{CpuState, Exception};
use crate::record::Execute;

pub use port::check_port;

/// How to execute the forms of MOV, POP, CALL and JMP that are system instructions: they share
/// their mnemonics, hence their rows, with integer instructions. `None` for the others.
pub(crate) fn shared_mnemonic(code: Code) -> Option<Execute> {
    Some(match code {
        Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => {
            segment_loads::store_selector
        }
        Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => {
            segment_loads::move_to_segment
        }
        Code::Mov_r32_cr | Code::Mov_r64_cr => control::move_from_control,
        Code::Mov_cr_r32 | Code::Mov_cr_r64 => control::move_to_control,
        Code::Mov_r32_dr | Code::Mov_r64_dr => debug::move_from_debug,
        Code::Mov_dr_r32 | Code::Mov_dr_r64 => debug::move_to_debug,
        Code::Popw_DS
        | Code::Popw_ES
        | Code::Popw_SS
        | Code::Popw_FS
        | Code::Popw_GS
        | Code::Popd_DS
        | Code::Popd_ES
        | Code::Popd_SS
        | Code::Popd_FS
        | Code::Popd_GS
        | Code::Popq_FS
        | Code::Popq_GS => segment_loads::pop_segment,
        Code::Call_ptr1616
        | Code::Call_ptr1632
        | Code::Call_m1616
        | Code::Call_m1632
        | Code::Call_m1664 => far::call,
        Code::Jmp_ptr1616
        | Code::Jmp_ptr1632
        | Code::Jmp_m1616
        | Code::Jmp_m1632
        | Code::Jmp_m1664 => far::jump,
        _ => return None,
    })
}

/// #GP(0) outside ring 0.
fn require_ring0(cpu: &CpuState) -> Result<(), Exception> {
    if cpu.cpl() == 0 {
        Ok(())
    } else {
        Err(Exception::general_protection(0))
    }
}

/// #UD in real and virtual-8086 mode.
fn require_protected(cpu: &CpuState) -> Result<(), Exception> {
    if cpu.protected() {
        Ok(())
    } else {
        Err(Exception::invalid_opcode())
    }
}

/// #UD if the processor model lacks the instruction.
fn require_feature(cpu: &CpuState, feature: Feature) -> Result<(), Exception> {
    if cpu.model.has(feature) {
        Ok(())
    } else {
        Err(Exception::invalid_opcode())
    }
}

/// #GP(0) unless the address is canonical.
fn require_canonical(address: u64) -> Result<(), Exception> {
    if super::address::is_canonical(address) {
        Ok(())
    } else {
        Err(Exception::general_protection(0))
    }
}

/// I/O privilege level, 0 to 3.
fn iopl(cpu: &CpuState) -> u8 {
    ((cpu.system_flags & crate::guest::flags::IOPL) >> 12) as u8
}

/// Runs `act` with the memory rights of another privilege level.
fn with_privilege<R>(cx: &mut Context<'_>, cpl: u8, act: impl FnOnce(&mut Context<'_>) -> R) -> R {
    use crate::guest::Mode;
    let saved = cx.cpu.mode;
    if cpl == 3 {
        cx.cpu.mode.0 |= Mode::USER;
    } else {
        cx.cpu.mode.0 &= !Mode::USER;
    }
    let result = act(cx);
    cx.cpu.mode = saved;
    result
}

/// Executes the instructions whose only effect here is to be allowed in ring 0.
fn ring0_no_effect(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    require_ring0(cx.cpu)?;
    super::operand::next(cx, insn)
}
