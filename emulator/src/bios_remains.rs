//! What a PC's firmware leaves behind for a kernel that it starts: real-mode vectors that do no
//! harm, what its data area says of memory, the interrupt controllers at their traditional vectors,
//! the timer ticking.

use dbt::Vcpu;
use mmu::{GuestPhys, MemoryError};

use crate::image::LOW_MEMORY_END;

const SEGMENT: u32 = 0xf000;
/// Where firmware traditionally has a handler that only returns.
const IGNORE: u32 = 0xff53;
const TIMER: u32 = 0xfea5;
const MASTER: u32 = 0xff00;
const SLAVE: u32 = 0xff10;

/// Handlers, by their offset in [`SEGMENT`].
const HANDLERS: [(u32, &[u8]); 4] = [
    // IRET
    (IGNORE, &[0xcf]),
    // PUSH DS; PUSH AX; XOR AX, AX; MOV DS, AX; INC DWORD [046Ch]; MOV AL, 20h; OUT 20h, AL;
    // POP AX; POP DS; IRET
    (
        TIMER,
        &[
            0x1e, 0x50, 0x31, 0xc0, 0x8e, 0xd8, 0x66, 0xff, 0x06, 0x6c, 0x04, 0xb0, 0x20, 0xe6,
            0x20, 0x58, 0x1f, 0xcf,
        ],
    ),
    // PUSH AX; MOV AL, 20h; OUT 20h, AL; POP AX; IRET
    (MASTER, &[0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf]),
    // PUSH AX; MOV AL, 20h; OUT 0A0h, AL; OUT 20h, AL; POP AX; IRET
    (
        SLAVE,
        &[0x50, 0xb0, 0x20, 0xe6, 0xa0, 0xe6, 0x20, 0x58, 0xcf],
    ),
];

/// In the BIOS data area: the segment of the extended one, and the KiB of memory in front of it.
/// Kernels place there what they need below 1 MiB.
const EXTENDED_DATA_SEGMENT: u64 = 0x40e;
const BASE_MEMORY: u64 = 0x413;

/// Ports and bytes: both 8259As at vectors 08h and 70h with timer and cascade open, counter 0 of
/// the 8254 at its slowest.
const SETUP: [(u16, u8); 13] = [
    (0x20, 0x11),
    (0xa0, 0x11),
    (0x21, 0x08),
    (0xa1, 0x70),
    (0x21, 0x04),
    (0xa1, 0x02),
    (0x21, 0x01),
    (0xa1, 0x01),
    (0x21, 0xfa),
    (0xa1, 0xff),
    (0x43, 0x34),
    (0x40, 0x00),
    (0x40, 0x00),
];

/// Leaves the machine as firmware would, before anything is loaded.
pub fn leave(vcpu: &mut Vcpu) -> Result<(), MemoryError> {
    let mut vectors = Vec::new();
    for vector in 0..256 {
        let handler = match vector {
            0x08 => TIMER,
            0x09..=0x0f => MASTER,
            0x70..=0x77 => SLAVE,
            _ => IGNORE,
        };
        vectors.extend_from_slice(&(SEGMENT << 16 | handler).to_le_bytes());
    }
    let base = u64::from(SEGMENT) << 4;
    let handlers = HANDLERS.map(|(offset, code)| (base + u64::from(offset), code));
    let segment = ((LOW_MEMORY_END >> 4) as u16).to_le_bytes();
    let base_memory = ((LOW_MEMORY_END >> 10) as u16).to_le_bytes();
    let low = [
        (0, &vectors[..]),
        (EXTENDED_DATA_SEGMENT, &segment),
        (BASE_MEMORY, &base_memory),
        // The extended data area begins with its size in KiB.
        (LOW_MEMORY_END, &[1]),
    ];
    for (at, bytes) in low.into_iter().chain(handlers) {
        let at = GuestPhys(at);
        vcpu.mem.store(at, bytes).map_err(|_| MemoryError::Rom {
            at,
            len: bytes.len() as u64,
        })?;
    }
    let cx = vcpu.context();
    for (port, value) in SETUP {
        cx.platform.port_write(cx.mem, 0, port, 1, u32::from(value));
    }
    Ok(())
}
