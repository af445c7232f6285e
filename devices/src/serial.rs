//! 16550A serial port (National Semiconductor PC16550D data sheet).
//!
//! Transmission takes no virtual time: a byte written is at once on its way,
//! as with a device whose host side never blocks. Only the receive FIFO's
//! time-out counts character times.

use std::collections::VecDeque;
use std::fmt;
use std::io::Write;

use crate::clock::{NANOSECONDS, NEVER};

const FIFO_SIZE: usize = 16;
/// Output is handed on at a newline, or when this much has gathered.
const OUTPUT_BATCH: usize = 4096;
/// Input clock of the baud generator, in hertz.
const CRYSTAL_HZ: u64 = 1_843_200;

const IER_RECEIVED: u8 = 1;
const IER_TRANSMITTER_EMPTY: u8 = 2;
const IER_LINE_STATUS: u8 = 4;
const IER_MODEM_STATUS: u8 = 8;

const IIR_NONE: u8 = 0x01;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_RECEIVED: u8 = 0x04;
const IIR_TIMEOUT: u8 = 0x0C;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_FIFOS: u8 = 0xC0;

const FCR_ENABLE: u8 = 1;
const FCR_CLEAR_RECEIVE: u8 = 2;

const LCR_DIVISOR: u8 = 0x80;

const MCR_OUT2: u8 = 8;
const MCR_LOOP: u8 = 0x10;

const LSR_DATA: u8 = 1;
const LSR_OVERRUN: u8 = 2;
const LSR_BREAK: u8 = 0x10;
const LSR_ERRORS: u8 = 0x1E;
const LSR_IDLE: u8 = 0x60;
const LSR_FIFO_ERROR: u8 = 0x80;

/// A terminal is connected: carrier, data set ready, clear to send.
const MODEM_CONNECTED: u8 = 0xB0;

/// Everything in the chip that the guest can observe or that changes with time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Received bytes, each with its line-status error bits in the high half.
    pub receive: VecDeque<u16>,
    /// Interrupt enable register.
    pub ier: u8,
    /// FIFO control register, as last written, without the clearing bits.
    pub fcr: u8,
    /// Line control register.
    pub lcr: u8,
    /// Modem control register.
    pub mcr: u8,
    /// Sticky overrun error.
    pub overrun: bool,
    /// Errors of the byte at the head of the FIFO were already read.
    pub head_errors_read: bool,
    /// Modem status register's change bits (0 to 3).
    pub modem_changes: u8,
    /// Scratch register.
    pub scratch: u8,
    /// Baud-rate divisor.
    pub divisor: u16,
    /// "Transmitter empty" was signalled and not yet seen.
    pub transmitter_interrupt: bool,
    /// When the FIFO's time-out fires; [`NEVER`] while none runs.
    pub timeout_at: u64,
    /// The time-out has fired.
    pub timed_out: bool,
}

impl Default for State {
    fn default() -> State {
        State {
            receive: VecDeque::with_capacity(FIFO_SIZE),
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            overrun: false,
            head_errors_read: false,
            modem_changes: 0,
            scratch: 0,
            divisor: 12,
            transmitter_interrupt: false,
            timeout_at: NEVER,
            timed_out: false,
        }
    }
}

/// One serial port and the sink of what it transmits.
pub struct Serial {
    state: State,
    output: Box<dyn Write + Send>,
    pending: Vec<u8>,
    lost: u64,
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial")
            .field("state", &self.state)
            .field("pending", &self.pending.len())
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

impl Serial {
    /// A port after power-on that transmits to `output`.
    pub fn new(output: Box<dyn Write + Send>) -> Serial {
        Serial {
            state: State::default(),
            output,
            pending: Vec::with_capacity(OUTPUT_BATCH),
            lost: 0,
        }
    }

    /// Master reset; what was already transmitted stays transmitted.
    pub fn reset(&mut self) {
        self.state = State::default();
    }

    /// A copy of the chip's state.
    pub fn save(&self) -> State {
        self.state.clone()
    }

    /// Puts the chip into a saved state.
    pub fn restore(&mut self, state: &State) {
        self.state = state.clone();
    }

    /// Level of the interrupt line; OUT2 gates it, as wired on every PC.
    pub fn irq(&self) -> bool {
        self.state.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2 && self.cause() != IIR_NONE
    }

    /// When [`Serial::advance`] has something to do, in nanoseconds.
    pub fn next_deadline(&self) -> u64 {
        self.state.timeout_at
    }

    /// Lets the receive time-out fire when it is due.
    pub fn advance(&mut self, now: u64) {
        if now >= self.state.timeout_at {
            self.state.timeout_at = NEVER;
            self.state.timed_out = !self.state.receive.is_empty();
        }
    }

    /// Takes as many bytes from the line as there is room for; returns how many.
    pub fn receive(&mut self, now: u64, bytes: &[u8]) -> usize {
        if self.state.mcr & MCR_LOOP != 0 {
            return 0;
        }
        let room = self.capacity().saturating_sub(self.state.receive.len());
        let accepted = bytes.len().min(room);
        for &byte in &bytes[..accepted] {
            self.state.receive.push_back(u16::from(byte));
        }
        if accepted > 0 {
            self.restart_timeout(now);
        }
        accepted
    }

    /// The line goes to break: a zero byte with the break bit. False without room.
    pub fn receive_break(&mut self, now: u64) -> bool {
        if self.state.mcr & MCR_LOOP != 0 || self.state.receive.len() >= self.capacity() {
            return false;
        }
        self.push_received(now, u16::from(LSR_BREAK) << 8);
        true
    }

    /// Hands everything transmitted so far to the sink.
    pub fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let written = self
            .output
            .write_all(&self.pending)
            .and_then(|()| self.output.flush());
        if let Err(error) = written {
            if self.lost == 0 {
                tracing::warn!(%error, "serial output cannot be written; it is dropped from here on");
            }
            self.lost += self.pending.len() as u64;
        }
        self.pending.clear();
    }

    /// Reads the register at `offset` (0 to 7).
    pub fn read(&mut self, now: u64, offset: u16) -> u8 {
        self.advance(now);
        let state = &mut self.state;
        match offset & 7 {
            0 if state.lcr & LCR_DIVISOR != 0 => state.divisor as u8,
            0 => self.pop_received(now),
            1 if state.lcr & LCR_DIVISOR != 0 => (state.divisor >> 8) as u8,
            1 => state.ier,
            2 => {
                let cause = self.cause();
                if cause == IIR_TRANSMITTER_EMPTY {
                    self.state.transmitter_interrupt = false;
                }
                if self.fifo_enabled() {
                    cause | IIR_FIFOS
                } else {
                    cause
                }
            }
            3 => state.lcr,
            4 => state.mcr,
            5 => {
                let status = self.line_status();
                self.state.overrun = false;
                self.state.head_errors_read = true;
                status
            }
            6 => {
                let status = self.modem_status();
                self.state.modem_changes = 0;
                status
            }
            _ => state.scratch,
        }
    }

    /// Writes the register at `offset` (0 to 7).
    pub fn write(&mut self, now: u64, offset: u16, value: u8) {
        self.advance(now);
        let state = &mut self.state;
        match offset & 7 {
            0 if state.lcr & LCR_DIVISOR != 0 => {
                state.divisor = state.divisor & 0xFF00 | u16::from(value);
            }
            0 => self.transmit(now, value),
            1 if state.lcr & LCR_DIVISOR != 0 => {
                state.divisor = state.divisor & 0x00FF | u16::from(value) << 8;
            }
            1 => {
                let enabled = value & !state.ier;
                state.ier = value & 0x0F;
                // The transmitter is always empty, so enabling its interrupt raises it.
                if enabled & IER_TRANSMITTER_EMPTY != 0 {
                    state.transmitter_interrupt = true;
                }
            }
            2 => self.write_fifo_control(value),
            3 => state.lcr = value,
            4 => {
                let before = self.modem_lines();
                self.state.mcr = value & 0x1F;
                self.note_modem_changes(before);
            }
            7 => state.scratch = value,
            _ => {} // Line and modem status are read-only outside factory tests.
        }
    }

    fn fifo_enabled(&self) -> bool {
        self.state.fcr & FCR_ENABLE != 0
    }

    fn capacity(&self) -> usize {
        if self.fifo_enabled() { FIFO_SIZE } else { 1 }
    }

    fn trigger_level(&self) -> usize {
        if !self.fifo_enabled() {
            return 1;
        }
        [1, 4, 8, 14][usize::from(self.state.fcr >> 6)]
    }

    fn head_errors(&self) -> u8 {
        match self.state.receive.front() {
            Some(&entry) if !self.state.head_errors_read => (entry >> 8) as u8 & LSR_ERRORS,
            _ => 0,
        }
    }

    fn line_status(&self) -> u8 {
        let mut status = LSR_IDLE | self.head_errors();
        if !self.state.receive.is_empty() {
            status |= LSR_DATA;
        }
        if self.state.overrun {
            status |= LSR_OVERRUN;
        }
        if self.fifo_enabled() && self.state.receive.iter().any(|entry| entry >> 8 != 0) {
            status |= LSR_FIFO_ERROR;
        }
        status
    }

    /// The interrupt of highest priority, as the identification register shows it.
    fn cause(&self) -> u8 {
        let state = &self.state;
        if state.ier & IER_LINE_STATUS != 0 && (state.overrun || self.head_errors() != 0) {
            IIR_LINE_STATUS
        } else if state.ier & IER_RECEIVED != 0 && state.receive.len() >= self.trigger_level() {
            IIR_RECEIVED
        } else if state.ier & IER_RECEIVED != 0 && state.timed_out {
            IIR_TIMEOUT
        } else if state.ier & IER_TRANSMITTER_EMPTY != 0 && state.transmitter_interrupt {
            IIR_TRANSMITTER_EMPTY
        } else if state.ier & IER_MODEM_STATUS != 0 && state.modem_changes != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    /// Four character times: a start bit, the data, parity and stop bits.
    fn timeout_length(&self) -> u64 {
        let lcr = self.state.lcr;
        let bits =
            1 + 5 + u64::from(lcr & 3) + u64::from(lcr >> 3 & 1) + 1 + u64::from(lcr >> 2 & 1);
        let divisor = u64::from(self.state.divisor.max(1));
        4 * bits * 16 * divisor * NANOSECONDS / CRYSTAL_HZ
    }

    fn restart_timeout(&mut self, now: u64) {
        self.state.timed_out = false;
        self.state.timeout_at = if self.fifo_enabled() && !self.state.receive.is_empty() {
            now.saturating_add(self.timeout_length())
        } else {
            NEVER
        };
    }

    fn push_received(&mut self, now: u64, entry: u16) {
        if self.state.receive.len() >= self.capacity() {
            self.state.overrun = true;
            // Without FIFOs the new byte replaces the old; a full FIFO keeps its bytes.
            if !self.fifo_enabled() {
                self.state.receive.clear();
                self.state.receive.push_back(entry);
                self.state.head_errors_read = false;
            }
        } else {
            self.state.receive.push_back(entry);
        }
        self.restart_timeout(now);
    }

    fn pop_received(&mut self, now: u64) -> u8 {
        let byte = self.state.receive.pop_front().unwrap_or(0) as u8;
        self.state.head_errors_read = false;
        self.restart_timeout(now);
        byte
    }

    fn transmit(&mut self, now: u64, byte: u8) {
        if self.state.mcr & MCR_LOOP != 0 {
            self.push_received(now, u16::from(byte));
        } else {
            self.pending.push(byte);
            if byte == b'\n' || self.pending.len() >= OUTPUT_BATCH {
                self.flush();
            }
        }
        self.state.transmitter_interrupt = true;
    }

    fn write_fifo_control(&mut self, value: u8) {
        let toggled = (value ^ self.state.fcr) & FCR_ENABLE != 0;
        if toggled || value & FCR_CLEAR_RECEIVE != 0 {
            self.state.receive.clear();
            self.state.head_errors_read = false;
            self.state.timed_out = false;
            self.state.timeout_at = NEVER;
        }
        // The other bits are only taken while FIFOs are being or stay enabled.
        self.state.fcr = if value & FCR_ENABLE != 0 {
            value & 0xC9
        } else {
            0
        };
    }

    fn modem_lines(&self) -> u8 {
        let mcr = self.state.mcr;
        if mcr & MCR_LOOP == 0 {
            return MODEM_CONNECTED;
        }
        // Looped back: RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
        (mcr & 2) << 3 | (mcr & 1) << 5 | (mcr & 4) << 4 | (mcr & 8) << 4
    }

    fn modem_status(&self) -> u8 {
        self.modem_lines() | self.state.modem_changes
    }

    fn note_modem_changes(&mut self, before: u8) {
        let after = self.modem_lines();
        let mut changes = (before ^ after) >> 4;
        // The ring indicator counts only its trailing edge.
        if after & 0x40 != 0 {
            changes &= !4;
        }
        self.state.modem_changes |= changes;
    }
}

#[cfg(test)]
#[path = "serial_tests.rs"]
mod tests;
