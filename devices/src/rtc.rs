//! MC146818 real-time clock and CMOS memory (Motorola data sheet), ports 0x70
//! and 0x71.
//!
//! The clock is an offset to virtual time; a host clock is never asked.

use crate::calendar::DateTime;
use crate::clock::{NANOSECONDS, NEVER, ticks_at, time_of_tick};

const CRYSTAL_HZ: u64 = 32_768;
/// The update cycle is announced this long before it happens.
const UPDATE_AHEAD: u64 = 244_000;

const REG_A: usize = 0x0A;
const REG_B: usize = 0x0B;
const REG_C: usize = 0x0C;
const REG_D: usize = 0x0D;
/// Index of the century byte, as the FADT says.
pub const CENTURY: usize = 0x32;

const A_UPDATING: u8 = 0x80;
const B_SET: u8 = 0x80;
const B_PERIODIC: u8 = 0x40;
const B_ALARM: u8 = 0x20;
const B_UPDATE: u8 = 0x10;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const C_IRQ: u8 = 0x80;

/// Clock registers and CMOS memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// All 128 bytes; the ten of the clock are current only while it is being set.
    pub cmos: [u8; 128],
    /// Selected byte, 0 to 127.
    pub index: u8,
    /// Port 0x70 bit 7: non-maskable interrupts are blocked.
    pub nmi_masked: bool,
    /// Clock time at virtual time 0, in nanoseconds since 1970.
    pub offset: i128,
    /// Virtual time up to which flags were computed.
    pub seen: u64,
}

/// The real-time clock.
#[derive(Debug)]
pub struct Rtc {
    state: State,
    deadline: u64,
}

/// Memory that the CMOS bytes describe, as a PC's firmware fills them in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySizes {
    /// Bytes of RAM from address 0 to the hole below 4 GiB.
    pub below_4g: u64,
    /// Bytes of RAM from 4 GiB on.
    pub above_4g: u64,
    /// Processors in the machine.
    pub processors: u8,
}

impl Rtc {
    /// A running clock that shows `start` (UTC, seconds since 1970) at time 0.
    pub fn new(start: i64, memory: MemorySizes) -> Rtc {
        let mut cmos = [0; 128];
        cmos[REG_A] = 0x26;
        cmos[REG_B] = B_24_HOURS;
        cmos[REG_D] = 0x80;
        fill_memory_sizes(&mut cmos, memory);
        let offset = i128::from(start) * i128::from(NANOSECONDS);
        let state = State {
            cmos,
            index: 0,
            nmi_masked: false,
            offset,
            seen: 0,
        };
        let mut rtc = Rtc {
            state,
            deadline: NEVER,
        };
        rtc.update_deadline();
        rtc
    }

    /// System reset: interrupts are disabled and cleared; time and memory stay.
    pub fn reset(&mut self) {
        self.state.cmos[REG_B] &= !(B_PERIODIC | B_ALARM | B_UPDATE | 0x08);
        self.state.cmos[REG_C] = 0;
        self.state.index = 0;
        self.state.nmi_masked = false;
        self.update_deadline();
    }

    /// A copy of the chip's state.
    pub fn save(&self) -> State {
        self.state.clone()
    }

    /// Puts the chip into a saved state.
    pub fn restore(&mut self, state: &State) {
        self.state = state.clone();
        self.state.index &= 0x7F;
        self.update_deadline();
    }

    /// Level of the interrupt line.
    pub fn irq(&self) -> bool {
        self.state.cmos[REG_C] & C_IRQ != 0
    }

    /// Whether port 0x70 blocks non-maskable interrupts.
    pub fn nmi_masked(&self) -> bool {
        self.state.nmi_masked
    }

    /// A byte of CMOS memory, without the clock's side effects.
    pub fn cmos(&self, index: u8) -> u8 {
        self.state.cmos[usize::from(index & 0x7F)]
    }

    /// When an enabled interrupt comes next, in nanoseconds.
    pub fn next_deadline(&self) -> u64 {
        self.deadline
    }

    /// Reads port 0x70 + `offset`. The index port cannot be read back.
    pub fn read(&mut self, now: u64, offset: u16) -> u8 {
        if offset & 1 == 0 {
            return 0xFF;
        }
        self.run(now);
        let index = usize::from(self.state.index);
        match index {
            0..=9 | CENTURY => {
                self.refresh_time(now);
                self.state.cmos[index]
            }
            REG_A => {
                let updating = if self.updating(now) { A_UPDATING } else { 0 };
                self.state.cmos[REG_A] & !A_UPDATING | updating
            }
            REG_C => {
                let flags = self.state.cmos[REG_C];
                self.state.cmos[REG_C] = 0;
                self.update_deadline();
                flags
            }
            _ => self.state.cmos[index],
        }
    }

    /// Writes port 0x70 + `offset`.
    pub fn write(&mut self, now: u64, offset: u16, value: u8) {
        if offset & 1 == 0 {
            self.state.index = value & 0x7F;
            self.state.nmi_masked = value & 0x80 != 0;
            return;
        }
        self.run(now);
        let index = usize::from(self.state.index);
        match index {
            0 | 2 | 4 | 6..=9 | CENTURY => {
                self.refresh_time(now);
                self.state.cmos[index] = value;
                if !self.stopped() {
                    self.take_time(now, self.clock(now).rem_euclid(i128::from(NANOSECONDS)));
                }
            }
            REG_A => {
                let was_stopped = self.stopped();
                self.refresh_time(now);
                self.state.cmos[REG_A] = value & !A_UPDATING;
                self.change_running(now, was_stopped);
            }
            REG_B => {
                let was_stopped = self.stopped();
                self.refresh_time(now);
                // Setting the time ends an update and its interrupt enable.
                let value = if value & B_SET != 0 {
                    value & !B_UPDATE
                } else {
                    value
                };
                self.state.cmos[REG_B] = value;
                self.change_running(now, was_stopped);
                self.update_irq();
            }
            REG_C | REG_D => {} // read-only
            _ => self.state.cmos[index] = value,
        }
        self.update_deadline();
    }

    /// Sets the flags of everything that is due.
    pub fn advance(&mut self, now: u64) {
        if now >= self.deadline {
            self.run(now);
        }
    }

    fn run(&mut self, now: u64) {
        let before = self.state.seen;
        if now <= before {
            return;
        }
        if let Some(period) = self.period() {
            let ticks = |time| ticks_at(time, CRYSTAL_HZ) / period;
            if ticks(now) != ticks(before) {
                self.state.cmos[REG_C] |= B_PERIODIC;
            }
        }
        if !self.stopped() {
            let (from, to) = (self.second(before), self.second(now));
            if from != to {
                self.state.cmos[REG_C] |= B_UPDATE;
                if self.next_alarm(from).is_some_and(|alarm| alarm <= to) {
                    self.state.cmos[REG_C] |= B_ALARM;
                }
            }
        }
        self.state.seen = now;
        self.update_irq();
        self.update_deadline();
    }

    fn update_irq(&mut self) {
        let [b, c] = [self.state.cmos[REG_B], self.state.cmos[REG_C]];
        let active = b & c & (B_PERIODIC | B_ALARM | B_UPDATE) != 0;
        self.state.cmos[REG_C] = c & !C_IRQ | if active { C_IRQ } else { 0 };
    }

    /// The clock does not run: it is being set, or its divider is held in reset.
    fn stopped(&self) -> bool {
        self.state.cmos[REG_B] & B_SET != 0 || self.state.cmos[REG_A] & 0x60 == 0x60
    }

    /// Nanoseconds since 1970 on this clock.
    fn clock(&self, now: u64) -> i128 {
        self.state.offset.wrapping_add(i128::from(now))
    }

    fn second(&self, now: u64) -> i64 {
        self.clock(now).div_euclid(i128::from(NANOSECONDS)) as i64
    }

    fn updating(&self, now: u64) -> bool {
        let fraction = self.clock(now).rem_euclid(i128::from(NANOSECONDS)) as u64;
        !self.stopped() && fraction >= NANOSECONDS - UPDATE_AHEAD
    }

    /// Length of the periodic interrupt in crystal ticks.
    fn period(&self) -> Option<u64> {
        match self.state.cmos[REG_A] & 0x0F {
            0 => None,
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// Starting takes the registers as the time; stopping leaves the last time in them.
    fn change_running(&mut self, now: u64, was_stopped: bool) {
        if was_stopped && !self.stopped() {
            self.take_time(now, 0);
        }
    }

    fn encode(&self, value: u8) -> u8 {
        if self.state.cmos[REG_B] & B_BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.state.cmos[REG_B] & B_BINARY != 0 {
            value
        } else {
            (value >> 4).wrapping_mul(10).wrapping_add(value & 0xF)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.state.cmos[REG_B] & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let pm = if hour >= 12 { 0x80 } else { 0 };
        self.encode((hour + 11) % 12 + 1) | pm
    }

    fn decode_hour(&self, raw: u8) -> u8 {
        if self.state.cmos[REG_B] & B_24_HOURS != 0 {
            return self.decode(raw);
        }
        self.decode(raw & 0x7F) % 12 + if raw & 0x80 != 0 { 12 } else { 0 }
    }

    /// Brings the ten clock bytes up to date, unless the guest is setting them.
    fn refresh_time(&mut self, now: u64) {
        if self.stopped() {
            return;
        }
        let time = DateTime::from_unix(self.second(now));
        let bytes = [
            (0, self.encode(time.second)),
            (2, self.encode(time.minute)),
            (4, self.encode_hour(time.hour)),
            (6, self.encode(time.weekday)),
            (7, self.encode(time.day)),
            (8, self.encode(time.month)),
            (9, self.encode((time.year.rem_euclid(100)) as u8)),
            (
                CENTURY,
                self.encode((time.year.div_euclid(100).rem_euclid(100)) as u8),
            ),
        ];
        for (index, byte) in bytes {
            self.state.cmos[index] = byte;
        }
    }

    /// Makes the clock show what its bytes say, `fraction` nanoseconds into the second.
    fn take_time(&mut self, now: u64, fraction: i128) {
        let byte = |index: usize| self.decode(self.state.cmos[index]);
        let time = DateTime {
            second: byte(0),
            minute: byte(2),
            hour: self.decode_hour(self.state.cmos[4]),
            weekday: byte(6),
            day: byte(7),
            month: byte(8),
            year: i64::from(byte(CENTURY)) * 100 + i64::from(byte(9)),
        };
        let seconds = i128::from(time.to_unix());
        self.state.offset = seconds * i128::from(NANOSECONDS) + fraction - i128::from(now);
    }

    /// First second after `from` that the alarm matches, within a day.
    fn next_alarm(&self, from: i64) -> Option<i64> {
        let field = |raw: u8, decoded: u8| (raw & 0xC0 != 0xC0).then_some(i64::from(decoded));
        let cmos = &self.state.cmos;
        let second = field(cmos[1], self.decode(cmos[1]));
        let minute = field(cmos[3], self.decode(cmos[3]));
        let hour = field(cmos[5], self.decode_hour(cmos[5]));
        let matches = |wanted: Option<i64>, value: i64| wanted.is_none_or(|wanted| wanted == value);
        let mut at = from + 1;
        while at <= from + 86_400 {
            if !matches(hour, at.rem_euclid(86_400) / 3600) {
                at += 3600 - at.rem_euclid(3600);
            } else if !matches(minute, at.rem_euclid(3600) / 60) {
                at += 60 - at.rem_euclid(60);
            } else if !matches(second, at.rem_euclid(60)) {
                at += 1;
            } else {
                return Some(at);
            }
        }
        None
    }

    fn time_of_second(&self, second: i64) -> u64 {
        let time = (i128::from(second) * i128::from(NANOSECONDS)).wrapping_sub(self.state.offset);
        u64::try_from(time.max(0)).unwrap_or(NEVER)
    }

    fn update_deadline(&mut self) {
        let [b, c] = [self.state.cmos[REG_B], self.state.cmos[REG_C]];
        self.deadline = NEVER;
        // The line is already high: only a read of register C makes a next edge.
        if c & C_IRQ != 0 {
            return;
        }
        let seen = self.state.seen;
        if let Some(period) = self.period().filter(|_| b & B_PERIODIC != 0) {
            let tick = (ticks_at(seen, CRYSTAL_HZ) / period + 1) * period;
            self.deadline = time_of_tick(tick, CRYSTAL_HZ);
        }
        if self.stopped() {
            return;
        }
        let second = self.second(seen);
        if b & B_UPDATE != 0 {
            self.deadline = self.deadline.min(self.time_of_second(second + 1));
        } else if b & B_ALARM != 0
            && let Some(alarm) = self.next_alarm(second)
        {
            self.deadline = self.deadline.min(self.time_of_second(alarm));
        }
    }
}

/// What firmware would tell about memory and processors, in the bytes the
/// machine type defines.
fn fill_memory_sizes(cmos: &mut [u8; 128], memory: MemorySizes) {
    let mut word = |index: usize, value: u64| {
        let value = value.min(0xFFFF) as u16;
        cmos[index..index + 2].copy_from_slice(&value.to_le_bytes());
    };
    const MIB: u64 = 1 << 20;
    word(0x15, 640);
    // Kilobytes above 1 MiB, and 64 KiB units above 16 MiB.
    let extended = memory.below_4g.saturating_sub(MIB) >> 10;
    word(0x17, extended);
    word(0x30, extended);
    word(0x34, memory.below_4g.saturating_sub(16 * MIB) >> 16);
    let above = (memory.above_4g >> 16).min(0xFF_FFFF);
    cmos[0x5B..0x5E].copy_from_slice(&above.to_le_bytes()[..3]);
    cmos[0x5F] = memory.processors.saturating_sub(1);
    // Equipment: coprocessor, no floppy, no display adapter of its own.
    cmos[0x14] = 0x02;
}

#[cfg(test)]
#[path = "rtc_tests.rs"]
mod tests;
