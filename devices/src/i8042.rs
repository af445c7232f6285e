//! 8042 keyboard controller, ports 0x60 and 0x64, and fast A20, port 0x92
//! (IBM PC AT technical reference; PS/2 for the mouse port).

use std::collections::VecDeque;

use crate::ps2::{Keyboard, Mouse, TRANSLATE_SET_2};

const STATUS_FULL: u8 = 0x01;
const STATUS_SYSTEM: u8 = 0x04;
const STATUS_COMMAND: u8 = 0x08;
const STATUS_UNLOCKED: u8 = 0x10;
const STATUS_MOUSE: u8 = 0x20;

const MODE_KEYBOARD_IRQ: u8 = 0x01;
const MODE_MOUSE_IRQ: u8 = 0x02;
const MODE_SYSTEM: u8 = 0x04;
const MODE_KEYBOARD_OFF: u8 = 0x10;
const MODE_MOUSE_OFF: u8 = 0x20;
const MODE_TRANSLATE: u8 = 0x40;

const OUTPUT_NO_RESET: u8 = 0x01;
const OUTPUT_A20: u8 = 0x02;

/// Bytes that wait for the guest, at most.
const QUEUE: usize = 64;

/// Where a byte in the output buffer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The controller itself, answering on the keyboard's side.
    Controller,
    /// The controller itself, looping a byte back on the mouse's side.
    MouseLoop,
    /// The keyboard.
    Keyboard,
    /// The mouse.
    Mouse,
}

impl Source {
    fn mouse_side(self) -> bool {
        matches!(self, Source::Mouse | Source::MouseLoop)
    }
}

/// The controller and the two devices behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Bytes on the way to the guest, in order.
    pub queue: VecDeque<(u8, Source)>,
    /// Output buffer: the byte that port 0x60 shows.
    pub output: Option<(u8, Source)>,
    /// Last byte that was in the output buffer.
    pub last: u8,
    /// Command that waits for its data byte.
    pub command: Option<u8>,
    /// The last write was to the command port.
    pub command_last: bool,
    /// Controller memory; byte 0 is the mode.
    pub memory: [u8; 32],
    /// Output port: reset line and A20.
    pub output_port: u8,
    /// The keyboard.
    pub keyboard: Keyboard,
    /// The mouse.
    pub mouse: Mouse,
    /// Reset was pulsed.
    pub reset: bool,
}

/// The keyboard controller.
#[derive(Debug)]
pub struct I8042 {
    state: State,
}

impl Default for I8042 {
    fn default() -> I8042 {
        I8042::new()
    }
}

impl I8042 {
    /// A controller as firmware leaves it: self-tested, keyboard on with
    /// translation, A20 open.
    pub fn new() -> I8042 {
        let mut memory = [0; 32];
        memory[0] = MODE_KEYBOARD_IRQ | MODE_SYSTEM | MODE_MOUSE_OFF | MODE_TRANSLATE;
        let state = State {
            queue: VecDeque::with_capacity(QUEUE),
            output: None,
            last: 0,
            command: None,
            command_last: false,
            memory,
            output_port: OUTPUT_NO_RESET | OUTPUT_A20,
            keyboard: Keyboard::default(),
            mouse: Mouse::default(),
            reset: false,
        };
        I8042 { state }
    }

    /// Back to the state of [`I8042::new`].
    pub fn reset(&mut self) {
        *self = I8042::new();
    }

    /// A copy of the controller's state.
    pub fn save(&self) -> State {
        self.state.clone()
    }

    /// Puts the controller into a saved state.
    pub fn restore(&mut self, state: &State) {
        self.state = state.clone();
    }

    fn mode(&self) -> u8 {
        self.state.memory[0]
    }

    /// Level of the keyboard's interrupt line, IRQ 1.
    pub fn keyboard_irq(&self) -> bool {
        let waiting = self
            .state
            .output
            .is_some_and(|(_, source)| !source.mouse_side());
        waiting && self.mode() & MODE_KEYBOARD_IRQ != 0
    }

    /// Level of the mouse's interrupt line, IRQ 12.
    pub fn mouse_irq(&self) -> bool {
        let waiting = self
            .state
            .output
            .is_some_and(|(_, source)| source.mouse_side());
        waiting && self.mode() & MODE_MOUSE_IRQ != 0
    }

    /// Whether address line 20 reaches memory.
    pub fn a20(&self) -> bool {
        self.state.output_port & OUTPUT_A20 != 0
    }

    /// Takes a pending request to reset the processor.
    pub fn take_reset(&mut self) -> bool {
        std::mem::take(&mut self.state.reset)
    }

    /// A key's scan codes (set 2) arrive; false if there is no room for all.
    pub fn keyboard_input(&mut self, codes: &[u8]) -> bool {
        if !self.state.keyboard.scanning || self.state.queue.len() + codes.len() > QUEUE {
            return false;
        }
        for &code in codes {
            self.push(code, Source::Keyboard);
        }
        self.fill();
        true
    }

    /// The mouse moved (right and up are positive) or its buttons changed
    /// (bit 0 left, 1 right, 2 middle); false if it does not report or has no room.
    pub fn mouse_input(&mut self, dx: i16, dy: i16, wheel: i8, buttons: u8) -> bool {
        let (packet, length) = self.state.mouse.packet(dx, dy, wheel, buttons);
        if !self.state.mouse.reporting || self.state.queue.len() + length > QUEUE {
            return false;
        }
        for &byte in &packet[..length] {
            self.push(byte, Source::Mouse);
        }
        self.fill();
        true
    }

    fn push(&mut self, byte: u8, source: Source) {
        if self.state.queue.len() < QUEUE {
            self.state.queue.push_back((byte, source));
        }
    }

    /// Moves the next byte into the output buffer if it is empty. Bytes of a
    /// disabled device wait, and do not block those behind them.
    fn fill(&mut self) {
        if self.state.output.is_some() {
            return;
        }
        let mode = self.mode();
        let open = |&(_, source): &(u8, Source)| match source {
            Source::Controller | Source::MouseLoop => true,
            Source::Keyboard => mode & MODE_KEYBOARD_OFF == 0,
            Source::Mouse => mode & MODE_MOUSE_OFF == 0,
        };
        let Some(at) = self.state.queue.iter().position(open) else {
            return;
        };
        let Some((byte, source)) = self.state.queue.remove(at) else {
            return;
        };
        let byte = match source {
            Source::Keyboard if mode & MODE_TRANSLATE != 0 => self.translate(byte),
            _ => Some(byte),
        };
        match byte {
            Some(byte) => {
                self.state.output = Some((byte, source));
                self.state.last = byte;
            }
            None => self.fill(),
        }
    }

    /// Set 2 to set 1: the break prefix becomes the top bit of the next code.
    fn translate(&mut self, byte: u8) -> Option<u8> {
        if byte == 0xF0 {
            self.state.keyboard.break_prefix = true;
            return None;
        }
        let top = if std::mem::take(&mut self.state.keyboard.break_prefix) {
            0x80
        } else {
            0
        };
        Some(match byte {
            0x00..0x80 => TRANSLATE_SET_2[usize::from(byte)] | top,
            0x83 => 0x41 | top,
            0x84 => 0x54 | top,
            _ => byte,
        })
    }

    /// Reads port 0x60.
    pub fn read_data(&mut self) -> u8 {
        if let Some((byte, _)) = self.state.output.take() {
            self.fill();
            return byte;
        }
        self.state.last
    }

    /// Reads port 0x64.
    pub fn read_status(&self) -> u8 {
        let mut status = STATUS_UNLOCKED;
        if let Some((_, source)) = self.state.output {
            status |= STATUS_FULL;
            if source.mouse_side() {
                status |= STATUS_MOUSE;
            }
        }
        if self.mode() & MODE_SYSTEM != 0 {
            status |= STATUS_SYSTEM;
        }
        if self.state.command_last {
            status |= STATUS_COMMAND;
        }
        status
    }

    /// Writes port 0x60.
    pub fn write_data(&mut self, value: u8) {
        self.state.command_last = false;
        match self.state.command.take() {
            Some(command @ 0x60..0x80) => {
                self.state.memory[usize::from(command & 0x1F)] = value;
            }
            Some(0xD1) => self.write_output_port(value),
            Some(0xD2) => self.push(value, Source::Controller),
            Some(0xD3) => self.push(value, Source::MouseLoop),
            Some(0xD4) => {
                // A command to the mouse opens its clock line.
                self.state.memory[0] &= !MODE_MOUSE_OFF;
                let answer = self.state.mouse.command(value);
                self.drop_stale(Source::Mouse);
                answer
                    .iter()
                    .for_each(|&byte| self.push(byte, Source::Mouse));
            }
            _ => {
                self.state.memory[0] &= !MODE_KEYBOARD_OFF;
                let answer = self.state.keyboard.command(value);
                self.drop_stale(Source::Keyboard);
                answer
                    .iter()
                    .for_each(|&byte| self.push(byte, Source::Keyboard));
            }
        }
        self.fill();
    }

    /// What a device was still to send is dropped when it gets a command.
    fn drop_stale(&mut self, device: Source) {
        self.state.queue.retain(|&(_, source)| source != device);
    }

    /// Writes port 0x64.
    pub fn write_command(&mut self, value: u8) {
        self.state.command_last = true;
        self.state.command = None;
        let mut answer = |byte| self.state.queue.push_front((byte, Source::Controller));
        match value {
            0x20..0x40 => answer(self.state.memory[usize::from(value & 0x1F)]),
            0x60..0x80 | 0xD1..=0xD4 => self.state.command = Some(value),
            0xA7 => self.state.memory[0] |= MODE_MOUSE_OFF,
            0xA8 => self.state.memory[0] &= !MODE_MOUSE_OFF,
            0xA9 | 0xAB => answer(0x00),
            0xAA => {
                self.state.memory[0] |= MODE_SYSTEM;
                answer(0x55);
            }
            0xAD => self.state.memory[0] |= MODE_KEYBOARD_OFF,
            0xAE => self.state.memory[0] &= !MODE_KEYBOARD_OFF,
            0xC0 => answer(0x80), // input port: not locked
            0xD0 => {
                let full = u8::from(self.keyboard_irq()) << 4 | u8::from(self.mouse_irq()) << 5;
                self.state
                    .queue
                    .push_front((self.state.output_port | full, Source::Controller));
            }
            0xDD => self.state.output_port &= !OUTPUT_A20,
            0xDF => self.state.output_port |= OUTPUT_A20,
            // Pulses of output lines that are low in the command; bit 0 is reset.
            0xF0..=0xFF if value & OUTPUT_NO_RESET == 0 => self.state.reset = true,
            _ => {}
        }
        self.state.queue.truncate(QUEUE);
        self.fill();
    }

    fn write_output_port(&mut self, value: u8) {
        self.state.output_port = value & (OUTPUT_NO_RESET | OUTPUT_A20);
        if value & OUTPUT_NO_RESET == 0 {
            self.state.reset = true;
        }
    }

    /// Reads port 0x92.
    pub fn read_fast_a20(&self) -> u8 {
        self.state.output_port & OUTPUT_A20
    }

    /// Writes port 0x92: bit 1 is A20, bit 0 resets.
    pub fn write_fast_a20(&mut self, value: u8) {
        self.state.output_port = self.state.output_port & !OUTPUT_A20 | value & OUTPUT_A20;
        if value & 1 != 0 {
            self.state.reset = true;
        }
    }
}

#[cfg(test)]
#[path = "i8042_tests.rs"]
mod tests;
