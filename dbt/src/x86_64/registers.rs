//! Which host register stands for which guest register while emitted code runs.
//!
//! Twelve guest registers are pinned; R8 to R11, the least used in measured code, stay in
//! memory. RAX, RCX, RDX, RBX and RBP keep their names, so that instructions with implied
//! operands and high-byte registers need no rewriting. RSP is the host's own stack; RSI, RDI
//! and R8 are scratch: the first two so that a memory operand based on them needs no REX
//! prefix and can be combined with AH to BH.

use iced_x86::Register;

/// Scratch: linear and host addresses of memory accesses.
pub const T0: Register = Register::RSI;
/// Scratch: TLB index, loaded values, staged operands.
pub const T1: Register = Register::RDI;
/// Scratch: tag compare, staged operands.
pub const T2: Register = Register::R8;

/// The host register's number for each guest register; `None` stays in memory.
const PINNED: [Option<u8>; 16] = [
    Some(0),  // RAX
    Some(1),  // RCX
    Some(2),  // RDX
    Some(3),  // RBX
    Some(11), // RSP in R11
    Some(5),  // RBP
    Some(9),  // RSI in R9
    Some(10), // RDI in R10
    None,
    None,
    None,
    None,
    Some(12),
    Some(13),
    Some(14),
    Some(15),
];

/// The host register that holds a guest register, by number.
pub fn pinned(guest: usize) -> Option<u8> {
    PINNED[guest]
}

/// All pinned registers: (guest number, host number).
pub fn all_pinned() -> impl Iterator<Item = (usize, u8)> {
    PINNED
        .iter()
        .enumerate()
        .filter_map(|(guest, host)| host.map(|host| (guest, host)))
}

/// Number of a general-purpose register of any size, 0 to 15; AH to BH count as their wholes.
pub fn number(register: Register) -> usize {
    register.full_register() as usize - Register::RAX as usize
}

/// AH, CH, DH or BH.
pub fn is_high_byte(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    )
}

/// The general-purpose registers of 8, 16, 32 and 64 bits by number.
const GENERAL: [[Register; 16]; 4] = {
    use Register::*;
    [
        [
            AL, CL, DL, BL, SPL, BPL, SIL, DIL, R8L, R9L, R10L, R11L, R12L, R13L, R14L, R15L,
        ],
        [
            AX, CX, DX, BX, SP, BP, SI, DI, R8W, R9W, R10W, R11W, R12W, R13W, R14W, R15W,
        ],
        [
            EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI, R8D, R9D, R10D, R11D, R12D, R13D, R14D, R15D,
        ],
        [
            RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15,
        ],
    ]
};

/// The register of a number, with a size in bytes.
pub fn sized(number: u8, size: usize) -> Register {
    let names = match size {
        1 => &GENERAL[0],
        2 => &GENERAL[1],
        4 => &GENERAL[2],
        _ => &GENERAL[3],
    };
    names[usize::from(number)]
}
