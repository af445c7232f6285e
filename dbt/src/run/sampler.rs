//! Where the processor spends its time, by samples: a timer of the host, which runs while the thread does, has emitted code
//! leave at its next entry, and whatever block that is may be worth more than it is. Blocks need no counters for that.

use std::io;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::ThreadId;

/// Set in the exit request by a sample; it is nobody's request to stop.
pub(super) const SAMPLE: u32 = 2;

/// Time of the thread between two samples, in nanoseconds. Hosts look at such timers with each of their ticks, of which
/// there are 100 to 1,000 in a second.
const EVERY: libc::c_long = 1_000_000;

static INSTALL: Once = Once::new();

fn signal() -> i32 {
    libc::SIGRTMIN() + 4
}

extern "C" fn sample(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: only timers made below send this signal, and their value is the exit request of a processor that
    // outlives its timer.
    unsafe {
        let request = (*info).si_value().sival_ptr.cast::<AtomicU32>();
        if !request.is_null() {
            (*request).fetch_or(SAMPLE, Ordering::Release);
        }
    }
}

/// The timer of the thread that runs a processor.
pub(super) struct Sampler {
    timer: libc::timer_t,
    thread: ThreadId,
}

// SAFETY: a timer's number is the process's; any thread may delete it.
unsafe impl Send for Sampler {}

impl Sampler {
    /// Samples the calling thread. `request` has to live as long as the result.
    pub fn new(request: *const AtomicU32) -> io::Result<Sampler> {
        INSTALL.call_once(|| {
            // SAFETY: `sample` has the signature that SA_SIGINFO promises, and only changes an atomic.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = sample as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
                libc::sigemptyset(&mut action.sa_mask);
                libc::sigaction(signal(), &action, std::ptr::null_mut());
            }
        });
        // SAFETY: the structures are zeroed and then filled as timer_create(2) and timer_settime(2) ask.
        unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal();
            event.sigev_value.sival_ptr = request.cast_mut().cast();
            event.sigev_notify_thread_id = libc::syscall(libc::SYS_gettid) as i32;
            let mut timer = std::mem::zeroed();
            let clock = libc::CLOCK_THREAD_CPUTIME_ID;
            if libc::timer_create(clock, &mut event, &mut timer) != 0 {
                return Err(io::Error::last_os_error());
            }
            let mut spec: libc::itimerspec = std::mem::zeroed();
            spec.it_value.tv_nsec = EVERY;
            spec.it_interval.tv_nsec = EVERY;
            libc::timer_settime(timer, 0, &spec, std::ptr::null_mut());
            Ok(Sampler {
                timer,
                thread: std::thread::current().id(),
            })
        }
    }

    /// Whether it is the calling thread that it samples.
    pub fn is_here(&self) -> bool {
        self.thread == std::thread::current().id()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // SAFETY: made in `new`, deleted once.
        unsafe { libc::timer_delete(self.timer) };
    }
}
