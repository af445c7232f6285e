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

/// The register of a number, with a size in bytes.
pub fn sized(number: u8, size: usize) -> Register {
    let number = u32::from(number);
    match size {
        1 if number < 4 => Register::AL + number,
        1 => Register::SPL + (number - 4),
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => Register::RAX + number,
    }
}
