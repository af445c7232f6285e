//! Unit-test device, as QEMU's `pc-testdev` presents itself: an echo port, ports
//! that drive interrupt lines, and a window of plain memory-mapped bytes.

/// First port of the echo registers; flush at +4, the echo's first byte at +8.
pub const PORT: u16 = 0xE0;
/// First of the 24 ports that drive an interrupt line each.
pub const LINES: u16 = 0x2000;
/// The byte window.
pub const MEMORY: u64 = 0xFF00_0000;
/// Bytes in the window.
pub const MEMORY_LENGTH: u64 = 0x1_0000;

/// What the device remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The echo register.
    pub echo: u32,
    /// The window; empty when the device is absent.
    pub memory: Vec<u8>,
}

/// The test device.
#[derive(Debug)]
pub struct TestDevice {
    state: State,
}

impl TestDevice {
    /// The device; one that is absent takes no memory.
    pub fn new(present: bool) -> TestDevice {
        let length = if present { MEMORY_LENGTH as usize } else { 0 };
        TestDevice {
            state: State {
                echo: 0,
                memory: vec![0; length],
            },
        }
    }

    /// Whether the device is there.
    pub fn is_present(&self) -> bool {
        !self.state.memory.is_empty()
    }

    /// A copy of the state.
    pub fn save(&self) -> State {
        self.state.clone()
    }

    /// Puts the device into a saved state.
    pub fn restore(&mut self, state: &State) {
        self.state = state.clone();
    }

    /// Clears everything.
    pub fn reset(&mut self) {
        self.state.echo = 0;
        self.state.memory.fill(0);
    }

    /// Reads `size` bytes at [`PORT`] + `offset`.
    pub fn read_port(&self, offset: u16) -> u32 {
        match offset {
            0..4 | 8 => self.state.echo >> (8 * (offset & 3)),
            _ => u32::MAX, // the flush port is for writing
        }
    }

    /// Writes `size` bytes at [`PORT`] + `offset`. The flush port takes a page
    /// address and needs nothing here: device memory is not cached.
    pub fn write_port(&mut self, offset: u16, size: u8, value: u32) {
        if matches!(offset, 0..4 | 8) {
            let mask = (1u64 << (8 * u32::from(size.min(4)))) - 1;
            let shift = 8 * u32::from(offset & 3);
            let mask = (mask << shift) as u32;
            self.state.echo = self.state.echo & !mask | (value << shift) & mask;
        }
    }

    /// Reads `size` bytes of the window.
    pub fn read_memory(&self, offset: u64, size: u8) -> u64 {
        let mut bytes = [0; 8];
        let from = self.state.memory.get(offset as usize..).unwrap_or(&[]);
        let length = usize::from(size).min(8).min(from.len());
        bytes[..length].copy_from_slice(&from[..length]);
        u64::from_le_bytes(bytes)
    }

    /// Writes `size` bytes of the window.
    pub fn write_memory(&mut self, offset: u64, size: u8, value: u64) {
        let to = self
            .state
            .memory
            .get_mut(offset as usize..)
            .unwrap_or(&mut []);
        let length = usize::from(size).min(8).min(to.len());
        to[..length].copy_from_slice(&value.to_le_bytes()[..length]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echoes_by_bytes_and_words() {
        let mut device = TestDevice::new(true);
        device.write_port(0, 4, 0x1234_5678);
        device.write_port(1, 1, 0xAB);
        assert_eq!(device.read_port(8), 0x1234_AB78);
        assert_eq!(device.read_port(2) & 0xFFFF, 0x1234);
    }

    #[test]
    fn window_ends_where_it_ends() {
        let mut device = TestDevice::new(true);
        device.write_memory(MEMORY_LENGTH - 2, 4, 0x1122_3344);
        assert_eq!(device.read_memory(MEMORY_LENGTH - 2, 4), 0x3344);
        assert_eq!(device.read_memory(MEMORY_LENGTH, 8), 0);
    }

    #[test]
    fn restores_what_was_saved() {
        let mut device = TestDevice::new(true);
        device.write_port(0, 4, 7);
        device.write_memory(5, 1, 9);
        let saved = device.save();
        let mut other = TestDevice::new(true);
        assert_ne!(other.save(), saved);
        other.restore(&saved);
        assert_eq!(other.save(), saved);
    }
}
