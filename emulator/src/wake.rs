//! A timer that asks a running processor for control when a deadline passes.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A one-shot timer of the thread that made it.
pub struct Waker {
    timer: libc::timer_t,
}

static INSTALL: Once = Once::new();

fn signal() -> i32 {
    libc::SIGRTMIN() + 3
}

extern "C" fn ring(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: only timers made below send this signal, and their value is the exit request of
    // a processor that outlives its timer.
    unsafe {
        let request = (*info).si_value().sival_ptr.cast::<AtomicU32>();
        if !request.is_null() {
            (*request).store(1, Ordering::Release);
        }
    }
}

impl Waker {
    /// A disarmed timer that will set `request` on the calling thread. `request` has to live
    /// as long as the timer.
    pub fn new(request: *const AtomicU32) -> std::io::Result<Waker> {
        INSTALL.call_once(|| {
            // SAFETY: `ring` has the signature that SA_SIGINFO promises, and only stores to an
            // atomic.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = ring as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
                libc::sigemptyset(&mut action.sa_mask);
                libc::sigaction(signal(), &action, std::ptr::null_mut());
            }
        });
        // SAFETY: the structures are zeroed and then filled as timer_create(2) asks.
        unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal();
            event.sigev_value.sival_ptr = request.cast_mut().cast();
            event.sigev_notify_thread_id = libc::syscall(libc::SYS_gettid) as i32;
            let mut timer = std::mem::zeroed();
            if libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(Waker { timer })
        }
    }

    /// Rings once after `delay`.
    pub fn arm(&self, delay: Duration) {
        let delay = delay.max(Duration::from_nanos(1));
        // SAFETY: the timer exists; the structure is filled in full.
        unsafe {
            let mut spec: libc::itimerspec = std::mem::zeroed();
            spec.it_value.tv_sec = delay.as_secs() as libc::time_t;
            spec.it_value.tv_nsec = i64::from(delay.subsec_nanos());
            libc::timer_settime(self.timer, 0, &spec, std::ptr::null_mut());
        }
    }
}

impl Drop for Waker {
    fn drop(&mut self) {
        // SAFETY: made in `new`, deleted once.
        unsafe { libc::timer_delete(self.timer) };
    }
}
