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
/// The first file.
const FIRST_FILE: u16 = 0x20;

/// Tells firmware to use the first serial port as its console: there is no screen.
const CONSOLE: &[u8] = b"etc/sercon-port";
const CONSOLE_PORT: [u8; 8] = 0x3F8u64.to_le_bytes();
const DIRECTORY_ENTRY: usize = 64;
const NAME: usize = 8;

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
    /// Number of files, entries of 64 bytes: size, item, zero, name; big-endian.
    directory: Vec<u8>,
}

impl FwCfg {
    /// A device that tells of so many bytes of RAM, so many processors, and maybe a console.
    pub fn new(ram_size: u64, processors: u16, serial_console: bool) -> FwCfg {
        let mut directory = vec![0; 4];
        if serial_console {
            directory[3] = 1;
            let mut entry = [0; DIRECTORY_ENTRY];
            entry[..4].copy_from_slice(&(CONSOLE_PORT.len() as u32).to_be_bytes());
            entry[4..6].copy_from_slice(&FIRST_FILE.to_be_bytes());
            entry[NAME..NAME + CONSOLE.len()].copy_from_slice(CONSOLE);
            directory.extend(entry);
        }
        FwCfg {
            state: State::default(),
            ram_size,
            processors,
            directory,
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
            FILE_DIRECTORY => &self.directory,
            FIRST_FILE if self.directory.len() > 4 => &CONSOLE_PORT,
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
        let mut device = FwCfg::new(0x1_2345_6000, 3, false);
        assert_eq!(item(&mut device, SIGNATURE, 5), b"QEMU\0");
        assert_eq!(
            item(&mut device, RAM_SIZE, 8),
            0x1_2345_6000u64.to_le_bytes()
        );
        assert_eq!(item(&mut device, PROCESSORS, 2), [3, 0]);
        assert_eq!(item(&mut device, 0xFFFF, 2), [0, 0]);
        assert_eq!(item(&mut device, FILE_DIRECTORY, 4), [0; 4]);
        assert_eq!(item(&mut device, FIRST_FILE, 8), [0; 8]);
    }

    #[test]
    fn names_the_console() {
        let mut device = FwCfg::new(1 << 20, 1, true);
        let directory = item(&mut device, FILE_DIRECTORY, 4 + DIRECTORY_ENTRY + 1);
        assert_eq!(directory[..12], [0, 0, 0, 1, 0, 0, 0, 8, 0, 0x20, 0, 0]);
        assert_eq!(directory[12..28], *b"etc/sercon-port\0");
        assert_eq!(
            item(&mut device, FIRST_FILE, 9),
            [0xF8, 3, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn restores_what_was_saved() {
        let mut device = FwCfg::new(1 << 20, 1, true);
        device.select(RAM_SIZE);
        device.read();
        let saved = device.save();
        let mut other = FwCfg::new(1 << 20, 1, true);
        assert_ne!(other.save(), saved);
        other.restore(&saved);
        assert_eq!(other.save(), saved);
    }
}
