//! Faults that the host processor raises in emitted code: divide errors, misaligned vector
//! operands, floating-point exceptions. The handler notes them and lets the thread continue in
//! the shared code that calls up; everything else goes on to whoever handled it before.

use std::sync::Mutex;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::guest::Exception;
use crate::run::CpuBlock;

/// A region of emitted code whose faults are the guest's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FaultSite {
    /// First byte of code.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Shared code: from here to `code_start`, faults are our own.
    pub code_start: u64,
    /// Where a fault continues.
    pub resume: u64,
    /// The block behind GS.
    pub block: u64,
}

/// `si_code` of an integer division error (asm-generic/siginfo.h).
const FPE_INTDIV: i32 = 1;
const SITES: usize = 256;
static LOCK: Mutex<()> = Mutex::new(());
/// `start`, `end`, `code_start`, `resume`, `block` of each site; a free one has `end` 0. Atomics,
/// because a handler may not lock.
static TABLE: [[AtomicUsize; 5]; SITES] = [const { [const { AtomicUsize::new(0) }; 5] }; SITES];
static INSTALL: Once = Once::new();

/// Unregisters its region when dropped.
pub(crate) struct Registration(usize);

impl Drop for Registration {
    fn drop(&mut self) {
        let _guard = LOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        TABLE[self.0][1].store(0, Ordering::SeqCst);
    }
}

/// Makes the faults of a region the guest's. `None`: there are too many regions.
pub(crate) fn register_region(site: FaultSite) -> Option<Registration> {
    INSTALL.call_once(install);
    let _guard = LOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let free = TABLE
        .iter()
        .position(|entry| entry[1].load(Ordering::SeqCst) == 0)?;
    let entry = &TABLE[free];
    entry[0].store(site.start as usize, Ordering::SeqCst);
    entry[2].store(site.code_start as usize, Ordering::SeqCst);
    entry[3].store(site.resume as usize, Ordering::SeqCst);
    entry[4].store(site.block as usize, Ordering::SeqCst);
    entry[1].store(site.end as usize, Ordering::SeqCst);
    Some(Registration(free))
}

static mut PREVIOUS: [std::mem::MaybeUninit<libc::sigaction>; 4] =
    [const { std::mem::MaybeUninit::zeroed() }; 4];
const SIGNALS: [i32; 4] = [libc::SIGFPE, libc::SIGSEGV, libc::SIGILL, libc::SIGBUS];

fn install() {
    for (index, signal) in SIGNALS.into_iter().enumerate() {
        // SAFETY: `handle` has the three-argument signature that SA_SIGINFO promises; the
        // previous action is stored before any handler can read it, under `INSTALL`.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            // The stack for signals may have room for one frame only, where vector registers are large.
            libc::sigfillset(&mut action.sa_mask);
            let previous = (&raw mut PREVIOUS[index]).cast::<libc::sigaction>();
            libc::sigaction(signal, &action, previous);
        }
    }
}

extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid ucontext, which this thread alone uses now.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let registers = &mut context.uc_mcontext.gregs;
    let rip = registers[libc::REG_RIP as usize] as u64;
    for entry in &TABLE {
        let [start, end, code_start, resume, block] =
            std::array::from_fn(|field| entry[field].load(Ordering::SeqCst) as u64);
        if end == 0 || rip < start.max(code_start) || rip >= end {
            continue;
        }
        // SAFETY: the siginfo is the kernel's.
        let code = unsafe { (*info).si_code };
        let trap = registers[libc::REG_TRAPNO as usize] as u8;
        // #GP arrives as SIGSEGV with trap number 13; a true #PF (14) in emitted code would be
        // our own error.
        let vector = match signal {
            libc::SIGFPE if trap == Exception::DE || code == FPE_INTDIV => Exception::DE,
            libc::SIGFPE if trap == Exception::XM => Exception::XM,
            libc::SIGFPE => Exception::MF,
            libc::SIGILL => Exception::UD,
            libc::SIGSEGV if trap == Exception::GP => Exception::GP,
            libc::SIGBUS if trap == Exception::AC => Exception::AC,
            _ => break,
        };
        // SAFETY: a registered region's block outlives its registration.
        let block = unsafe { &mut *(block as *mut CpuBlock) };
        block.exchange.signal = u32::from(vector);
        block.exchange.signal_address = rip;
        block.exchange.host_flags = registers[libc::REG_EFL as usize] as u64;
        registers[libc::REG_RIP as usize] = resume as i64;
        return;
    }
    let index = SIGNALS
        .iter()
        .position(|&known| known == signal)
        .unwrap_or(0);
    // Not ours: put back who was there before, and let the fault happen again.
    // SAFETY: `install` filled the entry.
    unsafe {
        let previous = (&raw const PREVIOUS[index]).cast::<libc::sigaction>();
        libc::sigaction(signal, previous, std::ptr::null_mut());
    }
}
