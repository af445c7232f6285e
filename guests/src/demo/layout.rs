//! Where everything is.

/// Bytes of RAM that the guest needs.
pub const RAM_BYTES: u64 = 16 << 20;
/// Port of `isa-debug-exit`.
pub const EXIT_PORT: u16 = 0xf4;
/// What the guest writes to the exit port after exception `n`: this plus `n`.
pub const EXCEPTION_BASE: u32 = 0x20;

/// Guest-physical addresses of the tables.
pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
pub const PML4: u64 = 0x1_0000;
pub const USER_PDPT: u64 = 0x1_1000;
pub const USER_DIRECTORY: u64 = 0x1_2000;
pub const KERNEL_PDPT: u64 = 0x1_3000;
pub const KERNEL_DIRECTORY: u64 = 0x1_4000;
pub const KERNEL_TEXT_TABLE: u64 = 0x1_5000;
pub const KERNEL_DATA_TABLE: u64 = 0x1_6000;
/// One table for each 2 MiB of RAM, for the program.
pub const USER_TABLES: u64 = 0x1_7000;

/// The kernel is mapped where 64-bit kernels usually are: its text here, its data 2 MiB higher.
pub const KERNEL_TEXT: u64 = 0xffff_ffff_8000_0000;
pub const KERNEL_TEXT_PHYSICAL: u64 = 0x10_0000;
/// Guest-physical address 0 in the kernel's data.
pub const KERNEL_WINDOW: u64 = 0xffff_ffff_8020_0000;
pub const KERNEL_DATA: u64 = KERNEL_WINDOW + KERNEL_DATA_PHYSICAL;
pub const KERNEL_DATA_PHYSICAL: u64 = 0x11_0000;
pub const KERNEL_WORDS: u32 = 2048;
pub const KERNEL_STACK_TOP: u64 = KERNEL_WINDOW + KERNEL_STACK_TOP_PHYSICAL;
pub const KERNEL_STACK_TOP_PHYSICAL: u64 = 0x12_0000;

/// The program is mapped one to one. Text, data and stack are 2 MiB apart or more, so that each
/// has page tables of its own.
pub const USER_TEXT: u64 = 0x13_0000;
pub const USER_STACK_TOP: u64 = 0xe0_0000;
pub const USER_STACK_SIZE: u64 = 0x4000;

/// User data: the number sieve, a byte a number.
pub const SIEVE: u64 = 0x20_0000;
pub const SIEVE_LIMIT: u32 = 1_000_000;
/// Pseudo-random words, and a copy of them.
pub const WORDS: u64 = 0x30_0000;
pub const COPY: u64 = 0x50_0000;
pub const WORD_COUNT: u32 = 1 << 18;
/// Nodes of a linked list: address of the next, value.
pub const LIST: u64 = 0x70_0000;
pub const LIST_NODES: u32 = 1 << 16;
pub const LIST_FACTOR: u32 = 25_173;
pub const LIST_STEP: u32 = 13_849;
/// Three square matrices of doubles.
pub const LEFT: u64 = 0x80_0000;
pub const RIGHT: u64 = 0x80_8000;
pub const PRODUCT: u64 = 0x81_0000;
pub const ORDER: u32 = 64;
pub const FIBONACCI: u32 = 20;

pub const SEED: u64 = 0x243f_6a88_85a3_08d3;
/// Odd, so that multiplying loses nothing.
pub const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
pub const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
pub const FNV_PRIME: u64 = 0x100_0000_01b3;

/// Selectors.
pub const KERNEL_CODE: u16 = 0x08;
pub const KERNEL_SEGMENT: u16 = 0x10;
pub const USER_SEGMENT: u16 = 0x1b;
pub const USER_CODE: u16 = 0x23;
pub const TSS_SELECTOR: u16 = 0x28;

/// Functions of interrupt 0x80, by EAX.
pub const SYSTEM_CALL: u8 = 0x80;
/// Prints the byte in SIL.
pub const CALL_PRINT: i32 = 1;
/// Ends the machine with the code in EDI.
pub const CALL_EXIT: i32 = 2;
/// Stirs RDI into the kernel's table and returns a digest of it.
pub const CALL_STIR: i32 = 3;
