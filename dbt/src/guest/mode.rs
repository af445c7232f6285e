//! The mode bits that a translation depends on: part of every block's key.

use super::flags::*;
use super::segment::{Segment, SegmentIndex};
use super::state::CpuState;

/// Default operand and address size of code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum CodeSize {
    Bits16,
    Bits32,
    Bits64,
}

impl CodeSize {
    /// The width in bits, as a decoder takes it.
    pub fn bits(self) -> u32 {
        match self {
            CodeSize::Bits16 => 16,
            CodeSize::Bits32 => 32,
            CodeSize::Bits64 => 64,
        }
    }
}

/// What decoding and translation assume of the processor's state.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Mode(pub u32);

#[allow(missing_docs)]
impl Mode {
    pub const CODE32: u32 = 1 << 0;
    pub const CODE64: u32 = 1 << 1;
    /// SS.B, or 64-bit mode: the stack pointer is not 16 bits wide.
    pub const WIDE_STACK: u32 = 1 << 2;
    /// CPL is 3.
    pub const USER: u32 = 1 << 3;
    /// Supervisor accesses may touch user pages (SMAP off, or AC set).
    pub const USER_PAGES_OPEN: u32 = 1 << 4;
    /// CS, DS, ES and SS are flat (always set in 64-bit mode).
    pub const FLAT: u32 = 1 << 5;
    pub const PROTECTED: u32 = 1 << 6;
    pub const VM86: u32 = 1 << 7;
    /// x87 and MMX instructions do not raise #NM or #UD.
    pub const X87: u32 = 1 << 8;
    /// SSE instructions do not raise #NM or #UD.
    pub const SSE: u32 = 1 << 9;
    /// AVX instructions are enabled (CR4.OSXSAVE and XCR0).
    pub const AVX: u32 = 1 << 10;
    /// EFER.LMA.
    pub const LONG: u32 = 1 << 11;
    /// Every instruction has to be looked at: TF, or enabled breakpoints.
    pub const STEPPED: u32 = 1 << 12;
    /// #AC is armed: CPL 3, CR0.AM and EFLAGS.AC.
    pub const ALIGNED: u32 = 1 << 13;
    /// CPL 0 (as opposed to 1 and 2).
    pub const RING0: u32 = 1 << 14;
    /// CPL 3 in a 64-bit or flat mode may not execute I/O or IF changes: IOPL < CPL.
    pub const IO_DENIED: u32 = 1 << 15;
    /// CR4.SMAP: whether supervisor accesses may touch user pages is a matter of AC.
    pub const SMAP: u32 = 1 << 16;
    /// An x87 exception may be unmasked: whoever raises it is noted.
    pub const X87_UNMASKED: u32 = 1 << 17;

    pub fn has(self, bits: u32) -> bool {
        self.0 & bits == bits
    }

    /// The mode with AC set or clear at CPL 0.
    pub fn with_user_pages(self, open: bool) -> Mode {
        if open || !self.has(Self::SMAP) {
            Mode(self.0 | Self::USER_PAGES_OPEN)
        } else {
            Mode(self.0 & !Self::USER_PAGES_OPEN)
        }
    }

    /// Whether offsets have to be compared with limits, or wrap, or have a base added: everything
    /// but 64-bit code and flat 32-bit code.
    pub fn segmented(self) -> bool {
        let flat = Self::CODE32 | Self::FLAT | Self::PROTECTED | Self::WIDE_STACK;
        let flat = self.has(flat) && !self.has(Self::VM86);
        !self.has(Self::CODE64) && !flat
    }

    /// The mode as far as it decides what an instruction is on the host.
    pub fn without_noting(self) -> Mode {
        Mode(self.0 & !Self::X87_UNMASKED)
    }

    /// The mode in which 64-bit code at CPL 3 arrives by SYSCALL, if that clears AC.
    pub fn after_syscall(self) -> Mode {
        let left = Self::USER | Self::IO_DENIED | Self::ALIGNED;
        Mode(self.0 & !left | Self::RING0).with_user_pages(false)
    }

    /// The mode in which code at CPL 3 arrives through a gate to 64-bit code at CPL 0, if AC is clear.
    pub fn after_interrupt(self) -> Mode {
        let entered = Self::CODE64 | Self::WIDE_STACK | Self::FLAT;
        Mode(self.after_syscall().0 & !Self::CODE32 | entered)
    }

    /// The mode in which SYSRETQ arrives from CPL 0, if it loads AC, TF and IOPL with zeros.
    pub fn after_sysret(self) -> Mode {
        let entered = Self::USER | Self::IO_DENIED;
        Mode(self.0 & !Self::RING0 | entered).with_user_pages(false)
    }

    pub fn code_size(self) -> CodeSize {
        if self.has(Self::CODE64) {
            CodeSize::Bits64
        } else if self.has(Self::CODE32) {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        }
    }

    /// The mode that the registers describe.
    pub fn of(cpu: &CpuState) -> Mode {
        let mut bits = 0;
        let mut set = |condition: bool, bit: u32| {
            if condition {
                bits |= bit;
            }
        };
        let control = &cpu.control;
        let protected = control.cr0 & CR0_PE != 0;
        let vm86 = protected && cpu.system_flags & VM != 0;
        let long = control.efer & EFER_LMA != 0;
        let cs = cpu.segment(SegmentIndex::Cs);
        let code64 = long && cs.attributes & Segment::LONG != 0;
        let cpl = cpu.cpl();
        set(protected, Self::PROTECTED);
        set(vm86, Self::VM86);
        set(long, Self::LONG);
        set(code64, Self::CODE64);
        set(!code64 && cs.attributes & Segment::BIG != 0, Self::CODE32);
        let ss = cpu.segment(SegmentIndex::Ss);
        set(
            code64 || ss.attributes & Segment::BIG != 0,
            Self::WIDE_STACK,
        );
        set(cpl == 3, Self::USER);
        set(cpl == 0, Self::RING0);
        let iopl = ((cpu.system_flags & IOPL) >> 12) as u8;
        set(protected && cpl > iopl, Self::IO_DENIED);
        set(
            control.cr4 & CR4_SMAP == 0 || cpu.system_flags & AC != 0,
            Self::USER_PAGES_OPEN,
        );
        set(control.cr4 & CR4_SMAP != 0, Self::SMAP);
        let flat = [
            SegmentIndex::Cs,
            SegmentIndex::Ds,
            SegmentIndex::Es,
            SegmentIndex::Ss,
        ]
        .iter()
        .all(|&index| cpu.segment(index).is_flat());
        set(code64 || flat, Self::FLAT);
        let blocked = control.cr0 & (CR0_TS | CR0_EM) != 0;
        set(!blocked, Self::X87);
        set(cpu.vector.x87_unmasked != 0, Self::X87_UNMASKED);
        let sse = !blocked && control.cr4 & CR4_OSFXSR != 0;
        set(sse, Self::SSE);
        set(
            control.cr0 & CR0_TS == 0
                && control.cr4 & CR4_OSXSAVE != 0
                && control.xcr0 & 6 == 6
                && protected
                && !vm86,
            Self::AVX,
        );
        set(
            cpu.system_flags & TF != 0 || control.dr[7] & 0xff != 0,
            Self::STEPPED,
        );
        set(
            cpl == 3 && control.cr0 & CR0_AM != 0 && cpu.system_flags & AC != 0,
            Self::ALIGNED,
        );
        Mode(bits)
    }
}

impl std::fmt::Debug for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mode({:#x}, {:?})", self.0, self.code_size())
    }
}
