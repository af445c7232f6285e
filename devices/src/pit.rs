//! 8254 programmable interval timer and the parts of port 0x61 that belong to
//! it (Intel 8254 data sheet).
//!
//! A counter is a start tick and a length; its output and its count are
//! computed from the time when somebody looks.

use crate::clock::{NEVER, ticks_at, time_of_tick};

/// Input clock of all three counters, in hertz.
pub const PIT_HZ: u64 = 1_193_182;

/// One of the three counters. Ticks are those of [`PIT_HZ`] since time 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Operating mode, 0 to 5.
    pub mode: u8,
    /// Counts in binary-coded decimal.
    pub bcd: bool,
    /// 1: low byte only, 2: high byte only, 3: low then high.
    pub access: u8,
    /// Count in force: 1 to 65,536 (10,000 in BCD); 0 before one was written.
    pub count: u32,
    /// A count that takes force at the end of the current cycle (modes 2, 3) or trigger (1, 5).
    pub pending: Option<u32>,
    /// Low byte of a pair, waiting for its high byte.
    pub write_low: Option<u8>,
    /// The next read gives the high byte of a pair.
    pub read_high: bool,
    /// Latched count, and how many of its bytes are still to be read.
    pub latched_count: Option<(u16, u8)>,
    /// Latched status byte.
    pub latched_status: Option<u8>,
    /// Gate input.
    pub gate: bool,
    /// Tick at which counting (re)started; none while stopped.
    pub since: Option<u64>,
    /// Ticks counted before `since`.
    pub counted: u64,
}

/// The three counters and what port 0x61 holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Counters 0 to 2.
    pub counters: [Counter; 3],
    /// Speaker data enable, port 0x61 bit 1.
    pub speaker: bool,
    /// Tick up to which rising edges of counter 0 were reported.
    pub reported: u64,
}

/// The interval timer.
#[derive(Debug)]
pub struct Pit {
    state: State,
    deadline: u64,
}

impl Counter {
    fn new(gate: bool) -> Counter {
        Counter {
            mode: 3,
            bcd: false,
            access: 3,
            count: 0,
            pending: None,
            write_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
            gate,
            since: None,
            counted: 0,
        }
    }

    /// Clock pulses counted up to `tick`.
    fn elapsed(&self, tick: u64) -> u64 {
        let running = self.since.map_or(0, |since| tick.saturating_sub(since));
        self.counted.saturating_add(running)
    }

    fn length(&self) -> u64 {
        u64::from(self.count.max(1))
    }

    /// Periodic modes: moves the start to the current cycle's, and brings a
    /// new count into force once the cycle it was written in is over.
    fn settle(&mut self, tick: u64) {
        if !matches!(self.mode, 2 | 3) || self.count == 0 {
            return;
        }
        let Some(since) = self.since else { return };
        let cycles = self.elapsed(tick) / self.length();
        if cycles == 0 {
            return;
        }
        if let Some(pending) = self.pending.take() {
            self.since = Some(since.saturating_add(self.length()));
            self.count = pending;
            self.settle(tick);
        } else {
            self.since = Some(since.saturating_add(cycles * self.length()));
        }
    }

    fn output(&self, tick: u64) -> bool {
        if self.count == 0 {
            return self.mode != 0;
        }
        let elapsed = self.elapsed(tick);
        let length = self.length();
        match self.mode {
            0 => elapsed >= length && self.write_low.is_none(),
            1 => self.since.is_none() || elapsed >= length,
            2 => {
                !self.gate || self.since.is_none() || length == 1 || elapsed % length != length - 1
            }
            3 => !self.gate || self.since.is_none() || elapsed % length < length.div_ceil(2),
            _ => self.since.is_none() || elapsed != length,
        }
    }

    fn current_count(&self, tick: u64) -> u16 {
        if self.count == 0 {
            return 0;
        }
        let elapsed = self.elapsed(tick);
        let length = self.length();
        let modulus = if self.bcd { 10_000 } else { 0x1_0000 };
        let value = match self.mode {
            2 => length - elapsed % length,
            3 => {
                let high = length.div_ceil(2);
                let position = elapsed % length;
                let position = if position < high {
                    position
                } else {
                    position - high
                };
                (length & !1) - 2 * position
            }
            _ => (length + modulus - elapsed % modulus) % modulus,
        } % modulus;
        if self.bcd {
            to_bcd(value)
        } else {
            value as u16
        }
    }

    /// First tick after `tick` at which the output rises, if it ever does.
    fn next_rise(&self, tick: u64) -> Option<u64> {
        let since = self.since?;
        if self.count == 0 {
            return None;
        }
        let elapsed = self.elapsed(tick);
        let length = self.length();
        let at = match self.mode {
            0 | 1 => length,
            2 | 3 if length == 1 || !self.gate => return None,
            2 | 3 => (elapsed / length + 1).saturating_mul(length),
            _ => length + 1,
        };
        (at > elapsed).then(|| since.saturating_add(at.saturating_sub(self.counted)))
    }
}

fn to_bcd(value: u64) -> u16 {
    let digit = |place: u64| ((value / place % 10) as u16) & 0xF;
    digit(1) | digit(10) << 4 | digit(100) << 8 | digit(1000) << 12
}

fn from_bcd(value: u16) -> u32 {
    let digit = |shift: u32| u32::from(value >> shift & 0xF);
    digit(0) + 10 * digit(4) + 100 * digit(8) + 1000 * digit(12)
}

impl Counter {
    fn write_control(&mut self, value: u8) {
        let mode = value >> 1 & 7;
        *self = Counter {
            // Modes 6 and 7 are 2 and 3: the top bit is "don't care" there.
            mode: if mode > 5 { mode & 3 } else { mode },
            bcd: value & 1 != 0,
            access: value >> 4 & 3,
            ..Counter::new(self.gate)
        };
    }

    fn write_count(&mut self, tick: u64, value: u8) {
        let raw = match self.access {
            1 => u16::from(value),
            2 => u16::from(value) << 8,
            _ => match self.write_low.take() {
                None => {
                    self.write_low = Some(value);
                    // In mode 0 the first byte stops the count and lowers the output.
                    if self.mode == 0 {
                        self.counted = 0;
                        self.since = None;
                    }
                    return;
                }
                Some(low) => u16::from(low) | u16::from(value) << 8,
            },
        };
        let count = match (raw, self.bcd) {
            (0, false) => 0x1_0000,
            (0, true) => 10_000,
            (raw, false) => u32::from(raw),
            (raw, true) => from_bcd(raw).max(1),
        };
        self.load(tick, count);
    }

    /// A complete count was written at `tick`; the next clock pulse loads it.
    fn load(&mut self, tick: u64, count: u32) {
        match self.mode {
            0 | 4 => {
                self.count = count;
                self.counted = 0;
                self.since = self.gate.then_some(tick + 1);
            }
            1 | 5 => self.pending = Some(count),
            _ if self.since.is_some() && self.count != 0 => {
                self.settle(tick);
                self.pending = Some(count);
            }
            _ => {
                self.count = count;
                self.counted = 0;
                self.since = self.gate.then_some(tick + 1);
            }
        }
    }

    fn set_gate(&mut self, tick: u64, gate: bool) {
        if gate == self.gate {
            return;
        }
        self.settle(tick);
        self.gate = gate;
        match (self.mode, gate) {
            (0 | 4, false) => {
                self.counted = self.elapsed(tick);
                self.since = None;
            }
            (0 | 4, true) if self.count != 0 && self.write_low.is_none() => {
                self.since = Some(tick + 1);
            }
            (1 | 5, true) => {
                if let Some(count) = self.pending.or((self.count != 0).then_some(self.count)) {
                    self.count = count;
                    self.counted = 0;
                    self.since = Some(tick + 1);
                }
            }
            (2 | 3, false) => {
                self.since = None;
                self.counted = 0;
            }
            (2 | 3, true) => {
                self.count = self.pending.take().unwrap_or(self.count);
                self.since = (self.count != 0).then_some(tick + 1);
            }
            _ => {}
        }
    }

    fn latch_count(&mut self, tick: u64) {
        if self.latched_count.is_none() {
            let bytes = if self.access == 3 { 2 } else { 1 };
            self.latched_count = Some((self.current_count(tick), bytes));
        }
    }

    fn latch_status(&mut self, tick: u64) {
        if self.latched_status.is_none() {
            // Null count: a count was written and is not yet in the counter.
            let null = self.count == 0
                || self.pending.is_some_and(|pending| pending != self.count)
                || self
                    .since
                    .is_some_and(|since| tick < since && self.counted == 0);
            self.latched_status = Some(
                u8::from(self.output(tick)) << 7
                    | u8::from(null) << 6
                    | self.access << 4
                    | self.mode << 1
                    | u8::from(self.bcd),
            );
        }
    }

    fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        if let Some((count, bytes)) = self.latched_count {
            let high = self.access == 2 || (self.access == 3 && bytes == 1);
            self.latched_count = (bytes > 1).then_some((count, bytes - 1));
            return if high {
                (count >> 8) as u8
            } else {
                count as u8
            };
        }
        let count = self.current_count(tick);
        let high = match self.access {
            1 => false,
            2 => true,
            _ => {
                self.read_high = !self.read_high;
                !self.read_high
            }
        };
        if high {
            (count >> 8) as u8
        } else {
            count as u8
        }
    }
}

impl Default for Pit {
    fn default() -> Pit {
        Pit::new()
    }
}

impl Pit {
    /// A timer none of whose counters was programmed.
    pub fn new() -> Pit {
        let state = State {
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            speaker: false,
            reported: 0,
        };
        Pit {
            state,
            deadline: NEVER,
        }
    }

    /// Back to the state of [`Pit::new`].
    pub fn reset(&mut self) {
        *self = Pit::new();
    }

    /// A copy of the chip's state.
    pub fn save(&self) -> State {
        self.state
    }

    /// Puts the chip into a saved state.
    pub fn restore(&mut self, state: &State) {
        self.state = *state;
        self.update_deadline();
    }

    /// When counter 0's output rises next, in nanoseconds.
    pub fn next_deadline(&self) -> u64 {
        self.deadline
    }

    /// Runs to `now`; true when counter 0's output rose since the last call.
    pub fn advance(&mut self, now: u64) -> bool {
        if now < self.deadline {
            return false;
        }
        let tick = ticks_at(now, PIT_HZ);
        self.state.counters[0].settle(tick);
        self.state.reported = tick;
        self.update_deadline();
        true
    }

    /// Output of a counter at `now`.
    pub fn output(&self, now: u64, counter: usize) -> bool {
        self.settled(now, counter).output(ticks_at(now, PIT_HZ))
    }

    fn settled(&self, now: u64, counter: usize) -> Counter {
        let mut counter = self.state.counters[counter % 3];
        counter.settle(ticks_at(now, PIT_HZ));
        counter
    }

    fn update_deadline(&mut self) {
        let rise = self.state.counters[0].next_rise(self.state.reported);
        self.deadline = rise.map_or(NEVER, |tick| time_of_tick(tick, PIT_HZ));
    }

    /// Reads port 0x40 + `offset` (the control word, offset 3, cannot be read).
    pub fn read(&mut self, now: u64, offset: u16) -> u8 {
        let tick = ticks_at(now, PIT_HZ);
        match self.state.counters.get_mut(usize::from(offset)) {
            Some(counter) => {
                counter.settle(tick);
                counter.read(tick)
            }
            None => 0xFF,
        }
    }

    /// Writes port 0x40 + `offset`. The caller has run [`Pit::advance`] to `now`.
    pub fn write(&mut self, now: u64, offset: u16, value: u8) {
        let tick = ticks_at(now, PIT_HZ);
        match self.state.counters.get_mut(usize::from(offset)) {
            Some(counter) => {
                counter.settle(tick);
                counter.write_count(tick, value);
            }
            None => self.write_control(tick, value),
        }
        self.state.reported = tick;
        self.update_deadline();
    }

    fn write_control(&mut self, tick: u64, value: u8) {
        for counter in &mut self.state.counters {
            counter.settle(tick);
        }
        if value >> 6 == 3 {
            for (number, counter) in self.state.counters.iter_mut().enumerate() {
                if value >> (number + 1) & 1 == 0 {
                    continue;
                }
                // Read-back: both bits are active low.
                if value & 0x20 == 0 {
                    counter.latch_count(tick);
                }
                if value & 0x10 == 0 {
                    counter.latch_status(tick);
                }
            }
            return;
        }
        let counter = &mut self.state.counters[usize::from(value >> 6)];
        if value & 0x30 == 0 {
            counter.latch_count(tick);
        } else {
            counter.write_control(value);
        }
    }

    /// Reads port 0x61: gate and speaker bits, the refresh toggle (bit 4, every
    /// 15 microseconds) and counter 2's output (bit 5).
    pub fn read_control_port(&self, now: u64) -> u8 {
        let refresh = (now / 15_085) & 1 != 0;
        u8::from(self.state.counters[2].gate)
            | u8::from(self.state.speaker) << 1
            | u8::from(refresh) << 4
            | u8::from(self.output(now, 2)) << 5
    }

    /// Writes port 0x61.
    pub fn write_control_port(&mut self, now: u64, value: u8) {
        self.state.counters[2].set_gate(ticks_at(now, PIT_HZ), value & 1 != 0);
        self.state.speaker = value & 2 != 0;
    }
}

#[cfg(test)]
#[path = "pit_tests.rs"]
mod tests;
