//! Instructions of the x87, MMX and SSE extensions: whether they are switched on, and who
//! executes them. An x86-64 host does it itself ([`super::native`]); other hosts, and whoever
//! asks for it, use the portable implementation ([`super::soft`]).

use std::cell::Cell;

use iced_x86::{CpuidFeature, Instruction, Mnemonic};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::vector;
use super::{Context, soft};
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
    let pointers = pointers_after(cx.cpu, insn);
    run(cx, insn)?;
    if let Some(pointers) = pointers {
        cx.cpu.vector.pointers = pointers;
    }
    Ok(())
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

fn pointers_after(cpu: &CpuState, insn: &Instruction) -> Option<X87Pointers> {
    let instruction = match noted(insn)? {
        Noted::Cleared => return Some(X87Pointers::default()),
        Noted::Address if cpu.protected() => insn.ip(),
        Noted::Address => cpu.segment(SegmentIndex::Cs).base.wrapping_add(insn.ip()) & 0xffff_ffff,
    };
    Some(X87Pointers {
        instruction,
        ..cpu.vector.pointers
    })
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
