//! A timer that asks a running processor for control when a deadline passes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
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

/// Asks a processor for control from any thread, for as long as there is one.
#[derive(Clone, Default)]
pub struct Kicker {
    target: Arc<Mutex<Target>>,
}

/// The exit request to set; null when no processor runs.
struct Target(*const AtomicU32);

// SAFETY: the pointer is used under the mutex only, to store to an atomic, and is taken away
// under the same mutex before the processor goes.
unsafe impl Send for Target {}

impl Default for Target {
    fn default() -> Target {
        Target(std::ptr::null())
    }
}

impl Kicker {
    /// Asks the current processor, if any, to return from its run.
    pub fn kick(&self) {
        let target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        if !target.0.is_null() {
            // SAFETY: `aim` promised that the word lives until `Aim` is dropped, which waits
            // for the mutex.
            unsafe { (*target.0).store(1, Ordering::Release) };
        }
    }

    /// Points at a processor until the result is dropped; the processor has to live longer.
    pub(crate) fn aim(&self, vcpu: &dbt::Vcpu) -> Aim {
        let mut target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        target.0 = vcpu.exit_request();
        Aim(self.clone())
    }
}

/// While it lives, a [`Kicker`] has a processor.
pub(crate) struct Aim(Kicker);

impl Drop for Aim {
    fn drop(&mut self) {
        let mut target = self.0.target.lock().unwrap_or_else(PoisonError::into_inner);
        target.0 = std::ptr::null();
    }
}
