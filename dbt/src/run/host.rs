//! What the host processor holds for the guest besides general registers: the GS base, the x87
//! registers and the time-stamp counter.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, _rdtsc};
use std::cell::Cell;

use crate::guest::FxsaveArea;

const ARCH_SET_GS: i32 = 0x1001;
/// HWCAP2 bit: the kernel lets user code use RDGSBASE and WRGSBASE.
const HWCAP2_FSGSBASE: u64 = 1 << 1;

thread_local! {
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// Points the host's GS at a block until dropped, then back at what it pointed to before.
pub(crate) struct GsBase {
    before: u64,
}

impl GsBase {
    /// Sets this thread's GS base.
    pub(crate) fn set(address: u64) -> GsBase {
        let before = CURRENT.get();
        write(address);
        GsBase { before }
    }
}

impl Drop for GsBase {
    fn drop(&mut self) {
        write(self.before);
    }
}

fn write(address: u64) {
    CURRENT.set(address);
    // SAFETY: no Rust code of this process uses GS; only emitted code does, and it runs only
    // under a `GsBase` that names its block.
    unsafe {
        if libc::getauxval(libc::AT_HWCAP2) & HWCAP2_FSGSBASE != 0 {
            asm!("wrgsbase {}", in(reg) address, options(nostack, preserves_flags));
        } else {
            libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, address);
        }
    }
}

/// The host's time-stamp counter.
pub(crate) fn host_counter() -> Option<u64> {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets user code execute it.
    Some(unsafe { _rdtsc() })
}

/// Whether the host's time-stamp counter runs at one rate, whatever its processors do (SDM
/// volume 3, 17.17.1).
pub(crate) fn counter_is_invariant() -> bool {
    const POWER: u32 = 0x8000_0007;
    __cpuid(0x8000_0000).eax >= POWER && __cpuid(POWER).edx >> 8 & 1 != 0
}

/// Loads the guest's x87 registers into the host's.
pub(crate) fn load_x87(area: &FxsaveArea) {
    let mut image = area.clone();
    // The image's MXCSR is the host's own, so that Rust code keeps its rounding.
    let mut mxcsr = 0u32;
    // SAFETY: STMXCSR stores four bytes into `mxcsr`.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack)) };
    image.0[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    // SAFETY: the area is 512 bytes and aligned; the vector registers it also loads are
    // declared as clobbered. A reserved MXCSR bit cannot be set: it was just read.
    unsafe {
        asm!("fxrstor64 [{}]", in(reg) image.0.as_ptr(), clobber_abi("C"), options(nostack));
    }
}

/// Copies the host's x87 registers, which hold the guest's, and leaves them as they are.
pub(crate) fn peek_x87(area: &mut FxsaveArea) {
    // SAFETY: the area is 512 bytes and aligned, and FXSAVE changes no register.
    unsafe {
        asm!("fxsave64 [{}]", in(reg) area.0.as_mut_ptr(), options(nostack, preserves_flags));
    }
}

/// The host's FCW and FSW.
pub(crate) fn x87_words() -> (u16, u16) {
    let (mut control, status): (u16, u16);
    control = 0;
    // SAFETY: FNSTCW stores two bytes into `control`; neither raises anything.
    unsafe {
        asm!(
            "fnstcw word ptr [{}]",
            "fnstsw ax",
            in(reg) &raw mut control,
            out("ax") status,
            options(nostack, preserves_flags)
        );
    }
    (control, status)
}

/// Stores the host's x87 registers as the guest's, and clears the host's.
pub(crate) fn store_x87(area: &mut FxsaveArea) {
    let mut image = FxsaveArea([0; 512]);
    // SAFETY: the area is 512 bytes and aligned.
    unsafe {
        asm!(
            "fxsave64 [{}]",
            "fninit",
            in(reg) image.0.as_mut_ptr(),
            clobber_abi("C"),
            options(nostack)
        );
    }
    let mxcsr: [u8; 4] = area.0[24..28].try_into().expect("four bytes");
    area.0[..24].copy_from_slice(&image.0[..24]);
    area.0[24..28].copy_from_slice(&mxcsr);
    area.0[32..160].copy_from_slice(&image.0[32..160]);
    // The opcode, instruction and data pointers are the host's own addresses: no business of the
    // guest's (processors with deprecated FCS and FDS zero them likewise).
    area.0[6..24].fill(0);
}
