//! The local APIC's timer: one-shot, periodic and TSC-deadline (SDM volume 3,
//! 11.5.4). Its bus clock is 1 GHz, so before the divider a tick is a nanosecond.

use crate::clock::{NANOSECONDS, NEVER, ticks_at};

/// How the timer counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Down to zero, once.
    #[default]
    OneShot,
    /// Down to zero and again from the initial count.
    Periodic,
    /// Until the time-stamp counter reaches a value.
    TscDeadline,
}

impl Mode {
    /// The mode that bits 18 and 17 of the timer's local vector select.
    pub fn from_lvt(lvt: u32) -> Mode {
        match lvt >> 17 & 3 {
            1 => Mode::Periodic,
            2 => Mode::TscDeadline,
            _ => Mode::OneShot, // 3 is reserved
        }
    }
}

/// Timer registers and the running count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerState {
    /// How it counts.
    pub mode: Mode,
    /// Initial count register.
    pub initial: u32,
    /// Divide configuration register.
    pub divide: u32,
    /// Virtual time at which the count was `count`.
    pub start: u64,
    /// Count at `start`.
    pub count: u32,
    /// Virtual time of the next expiry; `u64::MAX` when not running.
    pub fire_at: u64,
    /// IA32_TSC_DEADLINE; 0 when disarmed.
    pub tsc_deadline: u64,
    /// Guest TSC minus virtual time in TSC ticks, modulo 2^64.
    pub tsc_offset: u64,
}

impl Default for TimerState {
    fn default() -> TimerState {
        TimerState {
            mode: Mode::OneShot,
            initial: 0,
            divide: 0,
            start: 0,
            count: 0,
            fire_at: NEVER,
            tsc_deadline: 0,
            tsc_offset: 0,
        }
    }
}

/// The timer.
#[derive(Debug)]
pub struct Timer {
    state: TimerState,
    tsc_hz: u64,
}

impl Timer {
    /// A stopped timer on a processor whose TSC counts `tsc_hz`.
    pub fn new(tsc_hz: u64) -> Timer {
        Timer {
            state: TimerState::default(),
            tsc_hz,
        }
    }

    /// TSC frequency in hertz.
    pub fn tsc_hz(&self) -> u64 {
        self.tsc_hz
    }

    /// A copy of the registers.
    pub fn save(&self) -> TimerState {
        self.state
    }

    /// Puts the timer into a saved state.
    pub fn restore(&mut self, state: TimerState) {
        self.state = state;
    }

    /// Guest TSC minus virtual time in TSC ticks.
    pub fn tsc_offset(&self) -> u64 {
        self.state.tsc_offset
    }

    /// The guest's time-stamp counter at `now`.
    pub fn guest_tsc(&self, now: u64) -> u64 {
        ticks_at(now, self.tsc_hz).wrapping_add(self.state.tsc_offset)
    }

    /// When the timer expires next, in nanoseconds.
    pub fn next_fire(&self) -> u64 {
        self.state.fire_at
    }

    /// Initial count register.
    pub fn initial_count(&self) -> u32 {
        self.state.initial
    }

    /// Divide configuration register.
    pub fn divide(&self) -> u32 {
        self.state.divide
    }

    /// IA32_TSC_DEADLINE: 0 once it has expired.
    pub fn tsc_deadline(&self) -> u64 {
        self.state.tsc_deadline
    }

    /// log2 of the divisor.
    fn shift(&self) -> u32 {
        let code = self.state.divide & 3 | self.state.divide >> 1 & 4;
        (code + 1) & 7
    }

    fn span(&self, count: u32) -> u64 {
        u64::from(count) << self.shift()
    }

    /// True if the timer expired by `now`; a periodic one is then running again.
    pub fn expire(&mut self, now: u64) -> bool {
        let due = self.state.fire_at;
        if now < due {
            return false;
        }
        let period = self.span(self.state.initial);
        match self.state.mode {
            Mode::Periodic if period != 0 => {
                let missed = (now - due) / period;
                self.state.start = due + missed * period;
                self.state.count = self.state.initial;
                self.state.fire_at = self.state.start.saturating_add(period);
            }
            _ => {
                self.state.fire_at = NEVER;
                self.state.count = 0;
                self.state.tsc_deadline = 0;
            }
        }
        true
    }

    /// Current count register. The caller has let the timer expire up to `now`.
    pub fn current_count(&self, now: u64) -> u32 {
        if self.state.fire_at == NEVER || self.state.mode == Mode::TscDeadline {
            return 0;
        }
        let elapsed = now.saturating_sub(self.state.start) >> self.shift();
        u64::from(self.state.count).saturating_sub(elapsed) as u32
    }

    fn run_from(&mut self, now: u64, count: u32) {
        self.state.start = now;
        self.state.count = count;
        self.state.fire_at = if count == 0 {
            NEVER
        } else {
            now.saturating_add(self.span(count))
        };
    }

    /// Writes the initial count: starts the timer, or stops it with 0.
    pub fn set_initial_count(&mut self, now: u64, value: u32) {
        if self.state.mode != Mode::TscDeadline {
            self.state.initial = value;
            self.run_from(now, value);
        }
    }

    /// Writes the divide configuration; a running count goes on from where it is.
    pub fn set_divide(&mut self, now: u64, value: u32) {
        let left = self.current_count(now);
        self.state.divide = value & 0xB;
        if self.state.mode != Mode::TscDeadline && self.state.fire_at != NEVER {
            self.run_from(now, left.max(1));
        }
    }

    /// Selects the mode. To or from TSC-deadline disarms the timer.
    pub fn set_mode(&mut self, mode: Mode) {
        if (mode == Mode::TscDeadline) != (self.state.mode == Mode::TscDeadline) {
            self.state.fire_at = NEVER;
            self.state.tsc_deadline = 0;
            self.state.initial = 0;
            self.state.count = 0;
        }
        self.state.mode = mode;
    }

    /// Writes IA32_TSC_DEADLINE; ignored in the other modes.
    pub fn set_tsc_deadline(&mut self, now: u64, value: u64) {
        if self.state.mode == Mode::TscDeadline {
            self.state.tsc_deadline = value;
            self.arm_tsc(now);
        }
    }

    fn arm_tsc(&mut self, now: u64) {
        let deadline = self.state.tsc_deadline;
        if deadline == 0 {
            self.state.fire_at = NEVER;
            return;
        }
        if self.guest_tsc(now) >= deadline {
            self.state.fire_at = now;
            return;
        }
        // Absolute, so that no rounding accumulates: the virtual tick may pass 2^64.
        let left = deadline - self.guest_tsc(now);
        let tick = u128::from(ticks_at(now, self.tsc_hz)) + u128::from(left);
        let hz = u128::from(self.tsc_hz.max(1));
        self.state.fire_at = tick
            .checked_mul(u128::from(NANOSECONDS))
            .and_then(|scaled| u64::try_from(scaled.div_ceil(hz)).ok())
            .unwrap_or(NEVER);
    }

    /// Changes the guest TSC; an armed deadline moves with it.
    pub fn set_tsc_offset(&mut self, now: u64, offset: u64) {
        self.state.tsc_offset = offset;
        if self.state.mode == Mode::TscDeadline {
            self.arm_tsc(now);
        }
    }
}
