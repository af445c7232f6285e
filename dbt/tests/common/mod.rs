//! What the tests of this crate share: random numbers, their settings, a machine without devices.

// Each test uses a part of this.
#![allow(dead_code)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dbt::{Platform, Stop, Vcpu};
use mmu::TlbSet;

/// Whether this host has a translator: others interpret.
pub const TRANSLATES: bool = cfg!(all(target_arch = "x86_64", target_os = "linux"));

/// A machine without devices.
pub struct NoDevices;

impl Platform for NoDevices {}

/// A number from the environment.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// TLBs without entries.
pub fn empty_tlb() -> Box<TlbSet> {
    // SAFETY: a TLB set is plain numbers, and `reset` accepts any of them.
    let mut tlb = unsafe { Box::<TlbSet>::new_zeroed().assume_init() };
    tlb.reset();
    tlb
}

/// Runs a processor that another thread asks to stop after a while.
pub fn run_for(vcpu: &mut Vcpu, milliseconds: u64) -> Stop {
    let request = vcpu.exit_request() as usize;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(milliseconds));
            // SAFETY: the processor lives until the scope ends.
            let request = unsafe { &*(request as *const AtomicU32) };
            request.store(1, Ordering::Release);
        });
        vcpu.run()
    })
}

/// xorshift64*: small, and the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next();
        random.next();
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }

    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count / 8)
            .flat_map(|_| self.next().to_le_bytes())
            .collect()
    }

    /// A value of the kind that finds mistakes.
    pub fn operand(&mut self) -> u64 {
        let value = match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => (1u64 << self.below(64)).wrapping_sub(1),
            4 => self.below(70),
            _ => self.next(),
        };
        if self.one_in(8) { !value } else { value }
    }
}
