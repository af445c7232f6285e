//! Asking a running processor for control, from other threads.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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
