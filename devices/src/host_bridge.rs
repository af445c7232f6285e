//! The host bridge of a PC: Intel's 82441FX, as far as firmware needs it. PCI configuration space
//! by mechanism 1 (PCI specification 2.1, 3.7.4.1), with this one device, and the registers that say
//! what is between 768 KiB and 1 MiB (82441FX data sheet, 3.2.18: PAM0 to PAM6).

/// The address register, 32 bits wide.
pub const ADDRESS_PORT: u16 = 0xCF8;
/// The data window, four bytes.
pub const DATA_PORT: u16 = 0xCFC;

const CONFIGURATION: usize = 256;
const PAM: usize = 0x59;
const READ_ENABLE: u8 = 1;
const WRITE_ENABLE: u8 = 2;

/// What reads and writes of a part of the memory below 1 MiB reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its first address.
    pub first: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Reads reach RAM; otherwise the ROM.
    pub reads_ram: bool,
    /// Writes reach RAM; otherwise they are ignored.
    pub writes_ram: bool,
}

/// Segments below 1 MiB that the bridge switches.
pub const SEGMENTS: usize = 13;

/// All that changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// CONFIG_ADDRESS.
    pub address: u32,
    /// Configuration space.
    pub configuration: [u8; CONFIGURATION],
}

/// The bridge.
#[derive(Clone, Debug)]
pub struct HostBridge {
    state: State,
    changed: bool,
}

impl Default for HostBridge {
    fn default() -> HostBridge {
        HostBridge::new()
    }
}

impl HostBridge {
    /// The bridge after a reset: ROM throughout.
    pub fn new() -> HostBridge {
        let mut configuration = [0; CONFIGURATION];
        for (at, bytes) in [
            // Intel's 82441FX, revision 2, a host bridge.
            (0x00, &[0x86, 0x80, 0x37, 0x12][..]),
            (0x08, &[2, 0, 0, 6]),
            // Memory accesses and bus mastering are always on.
            (0x04, &[0x06, 0, 0x80, 0x02]),
            // The subsystem of emulated machines, by which their firmware knows them.
            (0x2C, &[0xF4, 0x1A, 0x00, 0x11]),
        ] {
            configuration[at..at + bytes.len()].copy_from_slice(bytes);
        }
        HostBridge {
            state: State {
                address: 0,
                configuration,
            },
            changed: false,
        }
    }

    /// A copy of the state.
    pub fn save(&self) -> State {
        self.state.clone()
    }

    /// Puts the bridge into a saved state.
    pub fn restore(&mut self, state: &State) {
        self.state = state.clone();
        self.changed = true;
    }

    /// Reads CONFIG_ADDRESS.
    pub fn read_address(&self) -> u32 {
        self.state.address
    }

    /// Writes CONFIG_ADDRESS; its reserved bits read as zero.
    pub fn write_address(&mut self, value: u32) {
        self.state.address = value & 0x80FF_FFFC;
    }

    /// The register that the address names at an offset into the window, if it is the bridge's.
    fn register(&self, offset: u16) -> Option<usize> {
        let address = self.state.address;
        // Bus 0, device 0, function 0.
        (address >> 8 == 0x80_0000).then_some((address & 0xFC) as usize + usize::from(offset & 3))
    }

    /// Reads 1, 2 or 4 bytes of the data window. Where no device is, all ones.
    pub fn read_data(&self, offset: u16, size: u8) -> u32 {
        let Some(register) = self.register(offset) else {
            return u32::MAX;
        };
        (0..usize::from(size)).rev().fold(0, |value, byte| {
            let byte = self.state.configuration.get(register + byte);
            value << 8 | u32::from(byte.copied().unwrap_or(0xFF))
        })
    }

    /// Writes 1, 2 or 4 bytes of the data window.
    pub fn write_data(&mut self, offset: u16, size: u8, value: u32) {
        let Some(register) = self.register(offset) else {
            return;
        };
        let bytes = value.to_le_bytes();
        for (register, byte) in (register..CONFIGURATION).zip(&bytes[..usize::from(size.min(4))]) {
            let writable = match register {
                PAM => 0x30,
                _ if (PAM + 1..=PAM + 6).contains(&register) => 0x33,
                _ => 0,
            };
            let old = self.state.configuration[register];
            let new = old & !writable | byte & writable;
            self.changed |= new != old;
            self.state.configuration[register] = new;
        }
    }

    /// What is where below 1 MiB, if that has changed since the last call.
    pub fn take_change(&mut self) -> Option<[Segment; SEGMENTS]> {
        std::mem::take(&mut self.changed).then(|| self.segments())
    }

    fn segments(&self) -> [Segment; SEGMENTS] {
        std::array::from_fn(|index| {
            // PAM0's upper half is for the BIOS of 64 KiB, each half of the others for 16 KiB.
            let (first, length, register, upper) = match index {
                0 => (0xF_0000, 0x1_0000, PAM, true),
                _ => {
                    let at = index - 1;
                    let first = 0xC_0000 + 0x4000 * at as u64;
                    (first, 0x4000, PAM + 1 + at / 2, at % 2 == 1)
                }
            };
            let attributes = self.state.configuration[register] >> (4 * u8::from(upper));
            Segment {
                first,
                length,
                reads_ram: attributes & READ_ENABLE != 0,
                writes_ram: attributes & WRITE_ENABLE != 0,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridge_at(register: u32) -> HostBridge {
        let mut bridge = HostBridge::new();
        bridge.write_address(0x8000_0000 | register);
        bridge
    }

    #[test]
    fn is_found_where_it_is_and_nowhere_else() {
        let mut bridge = bridge_at(0);
        assert_eq!(bridge.read_data(0, 4), 0x1237_8086);
        assert_eq!(bridge.read_data(2, 2), 0x1237);
        assert_eq!(bridge.read_data(3, 1), 0x12);
        // Without the enable bit, another function, another device, another bus.
        for address in [0, 0x8000_0100, 0x8000_0800, 0x8001_0000] {
            bridge.write_address(address);
            assert_eq!(bridge.read_data(0, 4), u32::MAX, "{address:x}");
        }
        bridge.write_address(u32::MAX);
        assert_eq!(bridge.read_address(), 0x80FF_FFFC);
    }

    #[test]
    fn identity_is_read_only_and_nothing_leaves_the_space() {
        let mut bridge = bridge_at(0);
        bridge.write_data(0, 4, 0);
        assert_eq!(bridge.read_data(0, 4), 0x1237_8086);
        bridge.write_address(0x8000_00FC);
        bridge.write_data(3, 4, u32::MAX);
        assert_eq!(bridge.read_data(3, 4), 0xFFFF_FF00);
    }

    #[test]
    fn registers_switch_segments() {
        let mut bridge = bridge_at(0x58);
        let reset = bridge.segments();
        assert!(reset.iter().all(|it| !it.reads_ram && !it.writes_ram));
        assert_eq!(bridge.take_change(), None);
        // PAM0 and PAM1: reserved bits stay zero.
        bridge.write_data(1, 2, 0xFF_3F);
        assert_eq!(bridge.read_data(0, 4), 0x0033_3000 & 0x00FF_FF00);
        let now = bridge.take_change().expect("a change");
        let on = |it: &&Segment| it.reads_ram && it.writes_ram;
        let firsts: Vec<u64> = now.iter().filter(on).map(|it| it.first).collect();
        assert_eq!(firsts, [0xF_0000, 0xC_0000, 0xC_4000]);
        // PAM6's upper half is the last 16 KiB below the BIOS.
        bridge.write_address(0x8000_005C);
        bridge.write_data(3, 1, 0x10);
        let now = bridge.take_change().expect("a change");
        let last = now[SEGMENTS - 1];
        assert_eq!((last.first, last.length), (0xE_C000, 0x4000));
        assert!(last.reads_ram && !last.writes_ram);
        bridge.write_data(3, 1, 0x10);
        assert_eq!(bridge.take_change(), None, "nothing new");
    }

    #[test]
    fn segments_fill_the_area() {
        let mut segments = HostBridge::new().segments();
        segments.sort_by_key(|it| it.first);
        let mut end = 0xC_0000;
        for segment in segments {
            assert_eq!(segment.first, end);
            end += segment.length;
        }
        assert_eq!(end, 0x10_0000);
    }

    #[test]
    fn restores_what_was_saved() {
        let mut bridge = bridge_at(0x58);
        bridge.write_data(1, 1, 0x30);
        let saved = bridge.save();
        let mut other = HostBridge::new();
        other.restore(&saved);
        assert_eq!(other.save(), saved);
        assert!(other.take_change().is_some());
    }
}
