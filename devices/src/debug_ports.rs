//! Ports that exist for people who debug: the exit port of QEMU's
//! `isa-debug-exit`, the debug console, and the POST code at 0x80.

use std::fmt;
use std::io::Write;

/// Where the exit port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugExit {
    /// First port.
    pub iobase: u16,
    /// Number of ports.
    pub iosize: u16,
}

impl Default for DebugExit {
    fn default() -> DebugExit {
        DebugExit {
            iobase: 0x501,
            iosize: 2,
        }
    }
}

impl DebugExit {
    /// The exit code for a written value: never 0, which means a clean power-off.
    pub fn code(value: u32) -> u32 {
        value << 1 | 1
    }
}

/// Where the debug console is, unless somebody says otherwise.
pub const DEBUG_PORT: u16 = 0xE9;

/// What the debug ports remember.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Last POST codes, ports 0x80 to 0x8F; 0x81 and on are DMA page scratch registers.
    pub post: [u8; 16],
}

/// POST code and debug console.
pub struct DebugPorts {
    state: State,
    console: Option<Box<dyn Write + Send>>,
    pending: Vec<u8>,
}

impl fmt::Debug for DebugPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DebugPorts")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl DebugPorts {
    /// Debug ports; the console, if any, gets what is written to its port.
    pub fn new(console: Option<Box<dyn Write + Send>>) -> DebugPorts {
        DebugPorts {
            state: State::default(),
            console,
            pending: Vec::new(),
        }
    }

    /// A copy of the state.
    pub fn save(&self) -> State {
        self.state
    }

    /// Puts the ports into a saved state.
    pub fn restore(&mut self, state: &State) {
        self.state = *state;
    }

    /// Clears the POST code.
    pub fn reset(&mut self) {
        self.state = State::default();
    }

    /// Reads port 0x80 + `offset`.
    pub fn read_post(&self, offset: u16) -> u8 {
        self.state.post[usize::from(offset & 15)]
    }

    /// Writes port 0x80 + `offset`.
    pub fn write_post(&mut self, offset: u16, value: u8) {
        self.state.post[usize::from(offset & 15)] = value;
    }

    /// Writes the console port.
    pub fn write_console(&mut self, value: u8) {
        self.pending.push(value);
        if value == b'\n' || self.pending.len() >= 4096 {
            self.flush();
        }
    }

    /// Hands what was written to the console's sink.
    pub fn flush(&mut self) {
        if let Some(console) = &mut self.console
            && !self.pending.is_empty()
            && let Err(error) = console
                .write_all(&self.pending)
                .and_then(|()| console.flush())
        {
            tracing::warn!(%error, "debug console cannot be written; it is closed");
            self.console = None;
        }
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_odd() {
        assert_eq!(DebugExit::code(0), 1);
        assert_eq!(DebugExit::code(0x10), 0x21);
        assert_eq!(DebugExit::code(u32::MAX), u32::MAX);
    }

    #[test]
    fn restores_what_was_saved() {
        let mut ports = DebugPorts::new(None);
        ports.write_post(0, 0x42);
        ports.write_post(7, 0x24);
        let saved = ports.save();
        let mut other = DebugPorts::new(None);
        assert_ne!(other.save(), saved);
        other.restore(&saved);
        assert_eq!(other.save(), saved);
        assert_eq!(other.read_post(7), 0x24);
    }
}
