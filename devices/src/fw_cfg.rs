//! QEMU's firmware configuration device: a selector port and a data port through which
//! firmware and test programs learn the size of the machine (QEMU's specification "fw_cfg").

/// Selector (16 bits wide); data, a byte at a time, at the next port.
pub const PORT: u16 = 0x510;

const SIGNATURE: u16 = 0x00;
const FEATURES: u16 = 0x01;
const RAM_SIZE: u16 = 0x03;
const PROCESSORS: u16 = 0x05;
const MOST_PROCESSORS: u16 = 0x0F;
const FILE_DIRECTORY: u16 = 0x19;

/// What the device remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The selected item.
    pub item: u16,
    /// Bytes of it that have been read.
    pub offset: u32,
}

/// The device.
#[derive(Debug)]
pub struct FwCfg {
    state: State,
    ram_size: u64,
    processors: u16,
}

impl FwCfg {
    /// A device that tells of so many bytes of RAM and so many processors.
    pub fn new(ram_size: u64, processors: u16) -> FwCfg {
        FwCfg {
            state: State::default(),
            ram_size,
            processors,
        }
    }

    /// A copy of the state.
    pub fn save(&self) -> State {
        self.state
    }

    /// Puts the device into a saved state.
    pub fn restore(&mut self, state: &State) {
        self.state = *state;
    }

    /// Selects the first item.
    pub fn reset(&mut self) {
        self.state = State::default();
    }

    /// Selects an item, from its first byte.
    pub fn select(&mut self, item: u16) {
        self.state = State { item, offset: 0 };
    }

    /// The next byte of the item; zeros behind its end and for items there are none of.
    pub fn read(&mut self) -> u8 {
        let processors = self.processors.to_le_bytes();
        let ram_size = self.ram_size.to_le_bytes();
        let item: &[u8] = match self.state.item {
            SIGNATURE => b"QEMU",
            // The two ports, without DMA.
            FEATURES => &[1, 0, 0, 0],
            RAM_SIZE => &ram_size,
            PROCESSORS | MOST_PROCESSORS => &processors,
            // No files.
            FILE_DIRECTORY => &[0; 4],
            _ => &[],
        };
        let byte = item.get(self.state.offset as usize).copied();
        self.state.offset = self.state.offset.saturating_add(1);
        byte.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(device: &mut FwCfg, item: u16, len: usize) -> Vec<u8> {
        device.select(item);
        (0..len).map(|_| device.read()).collect()
    }

    #[test]
    fn tells_the_size_of_the_machine() {
        let mut device = FwCfg::new(0x1_2345_6000, 3);
        assert_eq!(item(&mut device, SIGNATURE, 5), b"QEMU\0");
        assert_eq!(
            item(&mut device, RAM_SIZE, 8),
            0x1_2345_6000u64.to_le_bytes()
        );
        assert_eq!(item(&mut device, PROCESSORS, 2), [3, 0]);
        assert_eq!(item(&mut device, 0xFFFF, 2), [0, 0]);
    }

    #[test]
    fn restores_what_was_saved() {
        let mut device = FwCfg::new(1 << 20, 1);
        device.select(RAM_SIZE);
        device.read();
        let saved = device.save();
        let mut other = FwCfg::new(1 << 20, 1);
        assert_ne!(other.save(), saved);
        other.restore(&saved);
        assert_eq!(other.save(), saved);
    }
}
