//! I/O APIC with 24 pins (Intel 82093AA data sheet; version 0x20 adds the EOI
//! register of later chip sets).

use crate::lapic::Lapic;

/// Where the registers appear.
pub const BASE: u64 = 0xFEC0_0000;
/// Number of input pins.
pub const PINS: usize = 24;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const LOGICAL: u64 = 1 << 11;
/// Delivery status and remote IRR cannot be written.
const READ_ONLY: u64 = 1 << 12 | REMOTE_IRR;

/// Registers and pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Index register.
    pub select: u8,
    /// Identification, bits 27 to 24.
    pub id: u32,
    /// Redirection table.
    pub table: [u64; PINS],
    /// Pin levels, a bit each.
    pub lines: u32,
}

/// The I/O APIC. What it sends goes to the [`Lapic`] handed to it.
#[derive(Debug)]
pub struct IoApic {
    state: State,
    version: u8,
}

impl IoApic {
    /// A reset chip that reports `version`: 0x11, or 0x20 for one with an EOI register.
    pub fn new(version: u8) -> IoApic {
        let state = State {
            select: 0,
            id: 0,
            table: [MASKED; PINS],
            lines: 0,
        };
        IoApic { state, version }
    }

    /// Masks all pins; they keep their levels.
    pub fn reset(&mut self) {
        let lines = self.state.lines;
        *self = IoApic::new(self.version);
        self.state.lines = lines;
    }

    /// A copy of the chip's state.
    pub fn save(&self) -> State {
        self.state
    }

    /// Puts the chip into a saved state.
    pub fn restore(&mut self, state: &State) {
        self.state = *state;
    }

    /// Sets the level of `pin`; polarity is the board's concern, high is active.
    pub fn set_pin(&mut self, pin: usize, high: bool, lapic: &mut Lapic) {
        if pin >= PINS {
            return;
        }
        let bit = 1 << pin;
        if high == (self.state.lines & bit != 0) {
            return;
        }
        self.state.lines ^= bit;
        if high {
            self.service(pin, lapic);
        }
    }

    /// Pin 0 passes the 8259A's interrupts on as ExtINT.
    pub fn passes_external(&self) -> bool {
        self.state.table[0] & (MASKED | 0x700) == 0x700
    }

    /// An active pin asks for its message. An edge on a masked pin is lost, as
    /// the data sheet says.
    fn service(&mut self, pin: usize, lapic: &mut Lapic) {
        let entry = self.state.table[pin];
        if entry & MASKED != 0 {
            return;
        }
        let mode = (entry >> 8 & 7) as u8;
        let level = entry & LEVEL != 0 && mode <= 1;
        if level && entry & REMOTE_IRR != 0 {
            return;
        }
        // Pin 0 as ExtINT is a wire: the board looks at the 8259A itself.
        if mode == 7 && pin == 0 {
            return;
        }
        let destination = (entry >> 56) as u32;
        let accepted = lapic.deliver(destination, entry & LOGICAL != 0, mode, entry as u8, level);
        if accepted && level {
            self.state.table[pin] |= REMOTE_IRR;
        }
    }

    /// The local APIC ended a level-triggered interrupt: pins that are still
    /// active interrupt again.
    pub fn end_of_interrupt(&mut self, vector: u8, lapic: &mut Lapic) {
        for pin in 0..PINS {
            let entry = self.state.table[pin];
            if entry & REMOTE_IRR == 0 || entry as u8 != vector {
                continue;
            }
            self.state.table[pin] &= !REMOTE_IRR;
            if self.state.lines >> pin & 1 != 0 {
                self.service(pin, lapic);
            }
        }
    }

    /// Reads the 32-bit register at `offset` from the base.
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            0x00 => u32::from(self.state.select),
            0x10 => match self.state.select {
                0 | 2 => self.state.id,
                1 => (PINS as u32 - 1) << 16 | u32::from(self.version),
                index @ 0x10..0x40 => {
                    let entry = self.state.table[usize::from(index - 0x10) / 2];
                    (entry >> (32 * u32::from(index & 1))) as u32
                }
                _ => 0,
            },
            _ => 0,
        }
    }

    /// Writes the 32-bit register at `offset` from the base.
    pub fn write(&mut self, offset: u64, value: u32, lapic: &mut Lapic) {
        match offset {
            0x00 => self.state.select = value as u8,
            0x10 => match self.state.select {
                0 => self.state.id = value & 0x0F00_0000,
                index @ 0x10..0x40 => {
                    self.write_entry(usize::from(index - 0x10) / 2, index & 1 != 0, value, lapic);
                }
                _ => {}
            },
            0x40 if self.version >= 0x20 => self.end_of_interrupt(value as u8, lapic),
            _ => {}
        }
    }

    fn write_entry(&mut self, pin: usize, high_half: bool, value: u32, lapic: &mut Lapic) {
        let old = self.state.table[pin];
        let mut entry = if high_half {
            old & 0xFFFF_FFFF | u64::from(value & 0xFF00_0000) << 32
        } else {
            old & !0xFFFF_FFFF | u64::from(value & 0x1_FFFF)
        };
        entry = entry & !READ_ONLY | old & READ_ONLY;
        // Software without an EOI register ends an interrupt by switching to edge and back.
        if entry & LEVEL == 0 {
            entry &= !REMOTE_IRR;
        }
        self.state.table[pin] = entry;
        if entry & LEVEL != 0 && self.state.lines >> pin & 1 != 0 {
            self.service(pin, lapic);
        }
    }
}

#[cfg(test)]
#[path = "ioapic_tests.rs"]
mod tests;
