//! How often code has been visited: what runs a few times only is interpreted.

use mmu::GuestPhys;

/// Counters; places of code that share one are only translated a little earlier.
const COUNTERS: usize = 1 << 20;

/// Counts of visits to places of code that have no translation.
pub(super) struct Visits {
    counts: Box<[u8]>,
    threshold: u8,
}

impl Visits {
    /// No visits; code is cold until it has been visited `threshold` times.
    pub(super) fn new(threshold: u8) -> Visits {
        Visits {
            counts: vec![0; COUNTERS].into_boxed_slice(),
            threshold,
        }
    }

    /// Notes a visit; whether the place is still to be interpreted.
    pub(super) fn cold(&mut self, at: GuestPhys) -> bool {
        // Fibonacci hashing: the best bits are the upper ones.
        let hash = at.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - COUNTERS.ilog2());
        let count = &mut self.counts[hash as usize];
        let cold = *count < self.threshold;
        *count += u8::from(cold);
        cold
    }
}
