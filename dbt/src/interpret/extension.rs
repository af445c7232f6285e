//! Instructions of the x87, MMX and SSE extensions: whether they are switched on, and who
//! executes them. An x86-64 host does it itself ([`super::native`]); other hosts, and whoever
//! asks for it, use the portable implementation ([`super::soft`]).

use std::cell::Cell;

use iced_x86::{CpuidFeature, Instruction, Mnemonic, OpKind};

use super::{Context, address, soft, vector};
use crate::decode;
use crate::guest::{CpuState, Exception, SegmentIndex, X87Pointers, flags};
use crate::record::classify::{is_avx, is_sse};

/// Whether this build can execute guest instructions on the host processor.
pub const HAS_NATIVE: bool = cfg!(all(target_arch = "x86_64", target_os = "linux"));

thread_local! {
    static PORTABLE: Cell<bool> = const { Cell::new(!HAS_NATIVE) };
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
thread_local! {
    /// Whether the host's x87 registers hold the guest's: true inside the translator's run loop.
    static X87_LIVE: Cell<bool> = const { Cell::new(false) };
}

/// Puts the portable implementation in charge of this thread until dropped.
pub struct Portable {
    before: bool,
}

impl Portable {
    /// With `wanted` false nothing changes.
    pub fn set(wanted: bool) -> Portable {
        let before = PORTABLE.get();
        PORTABLE.set(before || wanted);
        Portable { before }
    }
}

impl Drop for Portable {
    fn drop(&mut self) {
        PORTABLE.set(self.before);
    }
}

/// Says whether the host's x87 registers hold the guest's on this thread.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) fn set_x87_live(live: bool) {
    X87_LIVE.set(live);
}

/// Whether the host's x87 registers hold the guest's on this thread.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) fn x87_live() -> bool {
    X87_LIVE.get()
}

/// Executes an instruction that has no row of its own. #UD if it is none of these extensions.
pub fn execute(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    check_enabled(cx, insn)?;
    let noted = noted(insn);
    let ip = insn.ip();
    run(cx, insn)?;
    match noted {
        Some(Noted::Cleared) => cx.cpu.vector.pointers = X87Pointers::default(),
        Some(Noted::Address) => {
            cx.cpu.vector.pointers.instruction = x87_pointer(cx.cpu, SegmentIndex::Cs, ip);
            // One that was pending before it would have been raised instead.
            if vector::x87_pending(cx.cpu) {
                note_exception(cx, insn);
            }
        }
        None => {}
    }
    if changes_control(insn) {
        vector::follow_x87_control(cx.cpu);
    }
    Ok(())
}

/// An offset as the x87's pointers hold it: where there are no selectors, with the segment's base.
fn x87_pointer(cpu: &CpuState, segment: SegmentIndex, offset: u64) -> u64 {
    if cpu.protected() {
        offset
    } else {
        cpu.segment(segment).base.wrapping_add(offset) & 0xffff_ffff
    }
}

/// FDP and FOP of an instruction that has raised an unmasked exception. It has changed no register
/// of its address.
fn note_exception(cx: &mut Context<'_>, insn: &Instruction) {
    if let Some(opcode) = fetched_opcode(cx, insn) {
        cx.cpu.vector.pointers.opcode = opcode;
    }
    if insn.op_kinds().any(|kind| kind == OpKind::Memory) {
        let segment = address::memory_segment(cx.cpu, insn);
        let offset = address::effective_address(cx.cpu, insn);
        cx.cpu.vector.pointers.operand = x87_pointer(cx.cpu, segment, offset);
    }
}

/// The lower three bits of the first opcode byte, and the second byte. The decoded instruction
/// does not say which of equivalent forms it had, so its bytes are fetched again.
fn fetched_opcode(cx: &mut Context<'_>, insn: &Instruction) -> Option<u16> {
    x87_opcode(insn, |at| {
        let linear = decode::code_address(cx, at);
        let physical = cx.translate_fetch(linear).ok()?;
        let mut byte = [0];
        cx.load_physical(physical, &mut byte).ok()?;
        Some(byte[0])
    })
}

/// Likewise, of the bytes at an instruction's offsets.
pub(crate) fn x87_opcode(
    insn: &Instruction,
    mut byte: impl FnMut(u64) -> Option<u8>,
) -> Option<u16> {
    for at in insn.ip()..insn.next_ip() {
        let first = byte(at)?;
        // Everything else in front is a prefix.
        if first & 0xf8 == 0xd8 {
            return Some(u16::from(first & 7) << 8 | u16::from(byte(at + 1)?));
        }
    }
    None
}

/// Whether an instruction of the x87 changes FCW, other than those that load all of a state.
fn changes_control(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Fninit | Mnemonic::Fldcw)
}

fn run(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if !PORTABLE.get() {
        if let Some(done) = vector::execute_move(cx, insn) {
            return done;
        }
        return super::native::execute(cx, insn);
    }
    soft::execute(cx, insn)
}

/// What an x87 instruction does to the pointers to the last one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Noted {
    /// It becomes the last one.
    Address,
    /// It clears them.
    Cleared,
}

/// `None`: it is none of the x87, or a control instruction (SDM volume 1, 8.1.8).
pub(crate) fn noted(insn: &Instruction) -> Option<Noted> {
    use CpuidFeature as F;
    use Mnemonic as M;
    match insn.mnemonic() {
        M::Fninit => Some(Noted::Cleared),
        M::Fisttp => Some(Noted::Address),
        M::Wait
        | M::Fnclex
        | M::Fldcw
        | M::Fnstcw
        | M::Fnstsw
        | M::Fnstenv
        | M::Fldenv
        | M::Fnsave
        | M::Frstor
        | M::Fneni
        | M::Fndisi
        | M::Fnsetpm
        | M::Frstpm
        | M::Fstdw
        | M::Fstsg => None,
        _ => insn
            .cpuid_features()
            .iter()
            .any(|it| matches!(it, F::FPU | F::FPU287 | F::FPU387))
            .then_some(Noted::Address),
    }
}

/// What an instruction of an extension raises when the extension is switched off.
fn disabled(cx: &Context<'_>, insn: &Instruction) -> Option<Exception> {
    use CpuidFeature as F;
    let control = &cx.cpu.control;
    let em = control.cr0 & flags::CR0_EM != 0;
    let ts = control.cr0 & flags::CR0_TS != 0;
    for &feature in insn.cpuid_features() {
        match feature {
            F::FPU | F::FPU287 | F::FPU387 if em || ts => {
                return Some(Exception::device_not_available());
            }
            F::MMX if em => return Some(Exception::invalid_opcode()),
            F::MMX if ts => return Some(Exception::device_not_available()),
            sse if is_sse(sse) => {
                if em || control.cr4 & flags::CR4_OSFXSR == 0 {
                    return Some(Exception::invalid_opcode());
                }
                if ts {
                    return Some(Exception::device_not_available());
                }
            }
            avx if is_avx(avx) => {
                let on = control.cr4 & flags::CR4_OSXSAVE != 0 && control.xcr0 & 6 == 6;
                if !on || !cx.cpu.protected() {
                    return Some(Exception::invalid_opcode());
                }
                if ts {
                    return Some(Exception::device_not_available());
                }
            }
            _ => {}
        }
    }
    None
}

/// Raises what the instruction's extension demands while it is switched off.
pub(crate) fn check_enabled(cx: &Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    disabled(cx, insn).map_or(Ok(()), Err)
}

/// An unmasked SSE floating-point exception; without CR4.OSXMMEXCPT there is no #XM
/// (SDM volume 3, 2.5).
pub(crate) fn simd_exception(cpu: &CpuState) -> Exception {
    if cpu.control.cr4 & flags::CR4_OSXMMEXCPT == 0 {
        Exception::invalid_opcode()
    } else {
        Exception::plain(Exception::XM)
    }
}
