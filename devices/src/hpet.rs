//! High-precision event timer (IA-PC HPET specification 1.0a): three timers,
//! 10 nanoseconds a tick, legacy replacement, no FSB messages.

use crate::clock::NEVER;

/// Where the registers appear.
pub const BASE: u64 = 0xFED0_0000;
/// Number of timers.
pub const TIMERS: usize = 3;
/// Nanoseconds in a tick of the main counter.
const TICK: u64 = 10;
/// I/O APIC inputs that a timer can be routed to: those no ISA device uses.
const ROUTES: u64 = 0x00FF_0000;

const ENABLE: u64 = 1;
const LEGACY: u64 = 2;

const TIMER_LEVEL: u64 = 1 << 1;
const TIMER_ENABLE: u64 = 1 << 2;
const TIMER_PERIODIC: u64 = 1 << 3;
const TIMER_SET_VALUE: u64 = 1 << 6;
const TIMER_32_BITS: u64 = 1 << 8;
const TIMER_WRITABLE: u64 =
    TIMER_LEVEL | TIMER_ENABLE | TIMER_PERIODIC | TIMER_SET_VALUE | TIMER_32_BITS | 0x3E00;
/// Every timer can be periodic and has 64 bits.
const TIMER_CAPABILITIES: u64 = 1 << 4 | 1 << 5 | ROUTES << 32;

/// One timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerState {
    /// Configuration, writable bits.
    pub config: u64,
    /// Comparator.
    pub comparator: u64,
    /// Added to the comparator after each match, when periodic.
    pub period: u64,
    /// Main counter ticks from now on, in absolute ticks of virtual time; `u64::MAX` for none.
    pub match_at: u64,
}

/// All registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// General configuration.
    pub config: u64,
    /// Interrupt status, for level-triggered timers.
    pub status: u64,
    /// Main counter: its value while halted, else its offset to virtual ticks.
    pub counter: u64,
    /// The timers.
    pub timers: [TimerState; TIMERS],
}

/// The event timer block.
#[derive(Debug)]
pub struct Hpet {
    state: State,
    deadline: u64,
}

impl Default for Hpet {
    fn default() -> Hpet {
        Hpet::new()
    }
}

impl Hpet {
    /// A halted block.
    pub fn new() -> Hpet {
        let timer = TimerState {
            comparator: u64::MAX,
            match_at: NEVER,
            ..TimerState::default()
        };
        let state = State {
            config: 0,
            status: 0,
            counter: 0,
            timers: [timer; TIMERS],
        };
        Hpet {
            state,
            deadline: NEVER,
        }
    }

    /// Back to the state of [`Hpet::new`].
    pub fn reset(&mut self) {
        *self = Hpet::new();
    }

    /// A copy of the registers.
    pub fn save(&self) -> State {
        self.state
    }

    /// Puts the block into a saved state.
    pub fn restore(&mut self, state: &State) {
        self.state = *state;
        self.update_deadline();
    }

    fn running(&self) -> bool {
        self.state.config & ENABLE != 0
    }

    /// Legacy replacement: timer 0 is IRQ 0 and timer 1 is IRQ 8, and the PIT
    /// and the clock are cut off from them.
    pub fn legacy(&self) -> bool {
        self.state.config & (LEGACY | ENABLE) == LEGACY | ENABLE
    }

    /// Interrupt line of a timer, if it is routed anywhere.
    pub fn line(&self, timer: usize) -> Option<u8> {
        match timer {
            0 if self.legacy() => Some(0),
            1 if self.legacy() => Some(8),
            _ => {
                let route = self.state.timers[timer % TIMERS].config >> 9 & 0x1F;
                (ROUTES >> route & 1 != 0).then_some(route as u8)
            }
        }
    }

    /// Whether a timer holds its line high, level-triggered.
    pub fn holds_line(&self, timer: usize) -> bool {
        self.state.status >> timer & 1 != 0
    }

    /// Main counter at `now`.
    pub fn counter(&self, now: u64) -> u64 {
        if self.running() {
            (now / TICK).wrapping_add(self.state.counter)
        } else {
            self.state.counter
        }
    }

    /// When an enabled timer matches next, in nanoseconds.
    pub fn next_deadline(&self) -> u64 {
        self.deadline
    }

    fn update_deadline(&mut self) {
        let next = self
            .state
            .timers
            .iter()
            .filter(|timer| timer.config & TIMER_ENABLE != 0);
        let tick = next.map(|timer| timer.match_at).min().unwrap_or(NEVER);
        self.deadline = if self.running() {
            tick.saturating_mul(TICK)
        } else {
            NEVER
        };
    }

    /// Runs to `now`; gives a bit for each enabled timer that matched.
    pub fn advance(&mut self, now: u64) -> u8 {
        if now < self.deadline {
            return 0;
        }
        self.run(now)
    }

    fn run(&mut self, now: u64) -> u8 {
        if !self.running() {
            return 0;
        }
        let tick = now / TICK;
        let mut matched = 0;
        for (number, timer) in self.state.timers.iter_mut().enumerate() {
            if timer.match_at == NEVER || tick < timer.match_at {
                continue;
            }
            let narrow = timer.config & TIMER_32_BITS != 0;
            if timer.config & TIMER_PERIODIC != 0 && timer.period != 0 {
                let periods = (tick - timer.match_at) / timer.period + 1;
                let step = periods.wrapping_mul(timer.period);
                timer.comparator = timer.comparator.wrapping_add(step);
                if narrow {
                    timer.comparator &= 0xFFFF_FFFF;
                }
                timer.match_at = timer.match_at.saturating_add(step);
            } else if narrow {
                // The low half of the counter comes by here again.
                let turns = ((tick - timer.match_at) >> 32) + 1;
                timer.match_at = timer.match_at.saturating_add(turns << 32);
            } else {
                timer.match_at = NEVER;
            }
            if timer.config & TIMER_ENABLE != 0 {
                matched |= 1 << number;
                if timer.config & TIMER_LEVEL != 0 {
                    self.state.status |= 1 << number;
                }
            }
        }
        self.update_deadline();
        matched
    }

    fn rearm(&mut self, now: u64, number: usize) {
        let counter = self.counter(now);
        let timer = &mut self.state.timers[number];
        let mut left = timer.comparator.wrapping_sub(counter);
        if timer.config & TIMER_32_BITS != 0 {
            left &= 0xFFFF_FFFF;
        }
        timer.match_at = (now / TICK).saturating_add(left);
    }

    /// Reads `size` (4 or 8) bytes at `offset` from the base.
    pub fn read(&mut self, now: u64, offset: u64, size: u8) -> u64 {
        let value = self.register(now, offset & !7);
        let value = value >> (8 * (offset & 7));
        if size >= 8 {
            value
        } else {
            value & 0xFFFF_FFFF
        }
    }

    fn register(&self, now: u64, offset: u64) -> u64 {
        match offset {
            // 10,000,000 femtoseconds; legacy routing, 64 bits, three timers.
            0x000 => (TICK * 1_000_000) << 32 | 0x8086_A201,
            0x010 => self.state.config,
            0x020 => self.state.status,
            0x0F0 => self.counter(now),
            0x100..0x160 => {
                let timer = &self.state.timers[(offset as usize - 0x100) / 0x20];
                match offset & 0x1F {
                    0x00 => timer.config | TIMER_CAPABILITIES,
                    0x08 if timer.config & TIMER_32_BITS != 0 => timer.comparator & 0xFFFF_FFFF,
                    0x08 => timer.comparator,
                    _ => 0,
                }
            }
            _ => 0,
        }
    }

    /// Writes `size` (4 or 8) bytes at `offset`. The caller has run
    /// [`Hpet::advance`] to `now`, and looks at the lines again afterwards.
    pub fn write(&mut self, now: u64, offset: u64, size: u8, value: u64) {
        self.run(now);
        let shift = 8 * (offset & 4);
        let part = if size >= 8 {
            u64::MAX
        } else {
            0xFFFF_FFFF << shift
        };
        let value = if size >= 8 {
            value
        } else {
            (value & 0xFFFF_FFFF) << shift
        };
        let merge = |old: u64| old & !part | value & part;
        match offset & !7 {
            0x010 => self.write_config(now, merge(self.state.config) & (ENABLE | LEGACY)),
            0x020 => self.state.status &= !(value & part),
            0x0F0 => {
                let counter = merge(self.counter(now));
                let base = if self.running() { now / TICK } else { 0 };
                self.state.counter = counter.wrapping_sub(base);
                (0..TIMERS).for_each(|number| self.rearm(now, number));
            }
            at @ 0x100..0x160 => {
                let number = (at as usize - 0x100) / 0x20;
                let timer = &mut self.state.timers[number];
                match at & 0x1F {
                    0x00 => {
                        timer.config = merge(timer.config) & TIMER_WRITABLE;
                        if timer.config & TIMER_LEVEL == 0 {
                            self.state.status &= !(1 << number);
                        }
                    }
                    0x08 => write_comparator(timer, part, value),
                    _ => {}
                }
                self.rearm(now, number);
            }
            _ => {}
        }
        self.update_deadline();
    }

    fn write_config(&mut self, now: u64, config: u64) {
        let counter = self.counter(now);
        self.state.config = config;
        self.state.counter = if config & ENABLE != 0 {
            counter.wrapping_sub(now / TICK)
        } else {
            counter
        };
        (0..TIMERS).for_each(|number| self.rearm(now, number));
    }
}

/// A periodic timer's comparator takes a value only after "set value" was
/// written; otherwise the write sets the period.
fn write_comparator(timer: &mut TimerState, part: u64, value: u64) {
    let narrow = timer.config & TIMER_32_BITS != 0;
    let mask = if narrow { 0xFFFF_FFFF } else { u64::MAX };
    let merge = |old: u64| (old & !part | value & part) & mask;
    let periodic = timer.config & TIMER_PERIODIC != 0;
    if !periodic || timer.config & TIMER_SET_VALUE != 0 {
        timer.comparator = merge(timer.comparator);
    }
    if periodic {
        timer.period = merge(timer.period);
    }
    // A 64-bit value may come in two halves, the low one first.
    if narrow || part >> 32 != 0 {
        timer.config &= !TIMER_SET_VALUE;
    }
}

#[cfg(test)]
#[path = "hpet_tests.rs"]
mod tests;
