//! What is between 768 KiB and 1 MiB: firmware's ROM or RAM, as the host bridge says.

use devices::host_bridge::{SEGMENTS, Segment};
use mmu::{AccessError, GuestPhys, PhysMem};

const FIRST: u64 = 0xC_0000;
const END: u64 = 0x10_0000;

/// The side of the area that reads do not reach: RAM at first, as the ROM is in its place.
///
/// Guest memory holds what reads reach, so that nothing of the fast paths changes; when a segment
/// changes sides, its contents are exchanged with what is kept here. Writes that are to reach RAM
/// while reads reach the ROM are lost.
#[derive(Debug)]
pub struct Shadow {
    other: Vec<u8>,
    reads_ram: [bool; SEGMENTS],
}

impl Default for Shadow {
    fn default() -> Shadow {
        Shadow {
            other: vec![0; (END - FIRST) as usize],
            reads_ram: [false; SEGMENTS],
        }
    }
}

impl Shadow {
    /// Makes memory what the host bridge says.
    pub fn apply(
        &mut self,
        mem: &mut PhysMem,
        segments: &[Segment; SEGMENTS],
    ) -> Result<(), AccessError> {
        for (segment, reads_ram) in segments.iter().zip(&mut self.reads_ram) {
            let at = GuestPhys(segment.first);
            if *reads_ram != segment.reads_ram {
                let start = (segment.first - FIRST) as usize;
                let kept = &mut self.other[start..start + segment.length as usize];
                let mut visible = vec![0; kept.len()];
                mem.load(at, &mut visible)?;
                mem.set_write_protected(at, segment.length, false);
                mem.store(at, kept)?;
                kept.copy_from_slice(&visible);
                *reads_ram = segment.reads_ram;
            }
            let protected = !(segment.reads_ram && segment.writes_ram);
            mem.set_write_protected(at, segment.length, protected);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::host_bridge::HostBridge;
    use mmu::MemoryConfig;

    fn set(bridge: &mut HostBridge, pam0: u32) -> [Segment; SEGMENTS] {
        bridge.write_address(0x8000_0058);
        bridge.write_data(1, 1, pam0);
        bridge.take_change().expect("a change")
    }

    #[test]
    fn rom_and_ram_are_apart() {
        let mut mem = PhysMem::new(&MemoryConfig {
            ram_bytes: 4 << 20,
            copies: 2,
            legacy_hole: true,
        })
        .unwrap();
        let at = GuestPhys(0xF_8000);
        mem.store(at, b"firmware").unwrap();
        let (mut bridge, mut shadow) = (HostBridge::new(), Shadow::default());
        let read = |mem: &mut PhysMem| {
            let mut bytes = [0; 8];
            mem.load(at, &mut bytes).unwrap();
            bytes
        };
        // (attributes, what is read before a store and after it)
        for (pam0, before, after) in [
            (0x10, &[0; 8], &[0; 8]),
            (0x30, &[0; 8], b"variable"),
            (0x10, b"variable", b"variable"),
            (0x00, b"firmware", b"firmware"),
            (0x20, b"firmware", b"firmware"),
            (0x30, b"variable", b"variable"),
        ] {
            let segments = set(&mut bridge, pam0);
            shadow.apply(&mut mem, &segments).unwrap();
            assert_eq!(&read(&mut mem), before, "{pam0:x}");
            mem.store(at, b"variable").unwrap();
            assert_eq!(&read(&mut mem), after, "{pam0:x}");
            let mut mirror = [0; 8];
            assert!(mem.copy_bytes(at, 1, &mut mirror));
            assert_eq!(&mirror, after, "the mirror, {pam0:x}");
        }
    }
}
