//! Virtual time: what the guest's devices and time-stamp counter run on.

use std::time::{Duration, Instant};

/// Where virtual time comes from.
#[derive(Debug)]
pub enum Clock {
    /// The host's monotonic clock.
    Real {
        /// When virtual time was 0.
        start: Instant,
    },
    /// A function of executed instructions.
    Counted {
        /// Nanoseconds an instruction takes, as a power of two.
        shift: u32,
        /// Nanoseconds skipped while the processor was halted.
        skipped: u64,
    },
}

impl Clock {
    /// A clock that follows the host's.
    pub fn real() -> Clock {
        Clock::Real {
            start: Instant::now(),
        }
    }

    /// A clock of 2^shift nanoseconds an instruction.
    pub fn counted(shift: u32) -> Clock {
        Clock::Counted { shift, skipped: 0 }
    }

    /// Virtual time in nanoseconds after that many instructions.
    pub fn now(&self, instructions: u64) -> u64 {
        match self {
            Clock::Real { start } => start.elapsed().as_nanos() as u64,
            Clock::Counted { shift, skipped } => (instructions << shift) + skipped,
        }
    }

    /// Host time left until a virtual time; `None` if virtual time does not pass by itself.
    pub fn wait_until(&self, deadline: u64) -> Option<Duration> {
        match self {
            Clock::Real { start } => {
                Some(Duration::from_nanos(deadline).saturating_sub(start.elapsed()))
            }
            Clock::Counted { .. } => None,
        }
    }

    /// Moves a counted clock on to a deadline: nothing happens before it.
    pub fn skip_to(&mut self, instructions: u64, deadline: u64) {
        let now = self.now(instructions);
        if let Clock::Counted { skipped, .. } = self {
            *skipped += deadline.saturating_sub(now);
        }
    }

    /// The instruction count at which a counted clock reaches a deadline.
    pub fn instructions_at(&self, deadline: u64) -> Option<u64> {
        match self {
            Clock::Real { .. } => None,
            Clock::Counted { shift, skipped } => {
                let left = deadline.saturating_sub(*skipped);
                Some(left.div_ceil(1 << shift))
            }
        }
    }
}
