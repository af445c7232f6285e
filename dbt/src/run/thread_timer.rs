//! Timers of the thread that runs a processor, which leave word in its exit request.

use std::io;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// What a timer is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ring {
    /// A deadline passes, on the monotonic clock: the processor is asked to return.
    Deadline,
    /// A sample of what the processor executes is due, by the time that the thread has run: nobody's request to stop.
    Sample,
}

impl Ring {
    const ALL: [Ring; 2] = [Ring::Deadline, Ring::Sample];

    /// What it sets in the exit request.
    pub const fn word(self) -> u32 {
        match self {
            Ring::Deadline => 1,
            Ring::Sample => 2,
        }
    }

    fn clock(self) -> libc::clockid_t {
        match self {
            Ring::Deadline => libc::CLOCK_MONOTONIC,
            Ring::Sample => libc::CLOCK_THREAD_CPUTIME_ID,
        }
    }

    fn signal(self) -> i32 {
        libc::SIGRTMIN() + 3 + self as i32
    }
}

/// A timer of the thread that made it.
pub struct ThreadTimer {
    timer: libc::timer_t,
}

// SAFETY: a timer's number is the process's; any thread may set or delete it.
unsafe impl Send for ThreadTimer {}

static INSTALL: Once = Once::new();

extern "C" fn ring(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let word = match signal == Ring::Sample.signal() {
        true => Ring::Sample.word(),
        false => Ring::Deadline.word(),
    };
    // SAFETY: only timers made below send these signals, and their value is the exit request of
    // a processor that outlives its timers.
    unsafe {
        let request = (*info).si_value().sival_ptr.cast::<AtomicU32>();
        if !request.is_null() {
            (*request).fetch_or(word, Ordering::Release);
        }
    }
}

impl ThreadTimer {
    /// A disarmed timer that will set `request` on the calling thread. `request` has to live
    /// as long as the timer.
    ///
    /// # Errors
    ///
    /// If the host has no such timer.
    pub fn new(request: *const AtomicU32, purpose: Ring) -> io::Result<ThreadTimer> {
        INSTALL.call_once(|| {
            for purpose in Ring::ALL {
                // SAFETY: `ring` has the signature that SA_SIGINFO promises, and only changes an
                // atomic.
                unsafe {
                    let mut action: libc::sigaction = std::mem::zeroed();
                    action.sa_sigaction = ring as *const () as usize;
                    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
                    // The stack for signals may have room for one frame only, where vector registers are large.
                    libc::sigfillset(&mut action.sa_mask);
                    libc::sigaction(purpose.signal(), &action, std::ptr::null_mut());
                }
            }
        });
        // SAFETY: the structures are zeroed and then filled as timer_create(2) asks.
        unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = purpose.signal();
            event.sigev_value.sival_ptr = request.cast_mut().cast();
            event.sigev_notify_thread_id = libc::syscall(libc::SYS_gettid) as i32;
            let mut timer = std::mem::zeroed();
            if libc::timer_create(purpose.clock(), &mut event, &mut timer) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(ThreadTimer { timer })
        }
    }

    /// Rings after `delay`, and then again after each `interval`; once if that is zero.
    pub fn arm(&self, delay: Duration, interval: Duration) {
        let delay = delay.max(Duration::from_nanos(1));
        let time = |duration: Duration| libc::timespec {
            tv_sec: duration.as_secs() as libc::time_t,
            tv_nsec: duration.subsec_nanos().into(),
        };
        let spec = libc::itimerspec {
            it_value: time(delay),
            it_interval: time(interval),
        };
        // SAFETY: the timer exists; the structure is filled in full.
        unsafe { libc::timer_settime(self.timer, 0, &spec, std::ptr::null_mut()) };
    }
}

impl Drop for ThreadTimer {
    fn drop(&mut self) {
        // SAFETY: made in `new`, deleted once.
        unsafe { libc::timer_delete(self.timer) };
    }
}
