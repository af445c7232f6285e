//! The records behind calls from emitted code into Rust.

use std::mem::offset_of;

/// Why emitted code calls up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum UpcallKind {
    /// A memory access missed the TLB, or its page needs the doors.
    Memory = 0,
    /// The interpreter is to execute an instruction.
    Interpret = 1,
    /// A jump to a known address is to be linked.
    Link = 2,
    /// The block leaves before it begins.
    Leave = 3,
    /// One instruction run on its own is done.
    Alone = 4,
    /// A check has predicted wrong TLB entries many times.
    Strayed = 5,
    /// RIP is where a jump goes to code that is not known.
    Unknown = 6,
    /// A block has been entered often.
    Hot = 7,
}

impl UpcallKind {
    /// Whether the code that calls is in the middle of a block, where registers may have changed
    /// places.
    pub fn is_inside(self) -> bool {
        match self {
            UpcallKind::Memory | UpcallKind::Interpret | UpcallKind::Strayed => true,
            UpcallKind::Link
            | UpcallKind::Leave
            | UpcallKind::Alone
            | UpcallKind::Unknown
            | UpcallKind::Hot => false,
        }
    }
}

/// Where the guest's flags are before an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FlagsAt {
    /// In EFLAGS.
    Host = 0,
    /// In `saved_flags`.
    Saved = 1,
    /// The block has a recipe for them.
    Recipe = 2,
    /// Nowhere: they are overwritten before the guest's code needs them.
    Lost = 3,
}

/// What emitted code says with a call: 16 bytes behind the call instruction.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
pub struct Upcall {
    /// The block's identifier.
    pub block: u32,
    /// Index of the instruction in it.
    pub insn: u16,
    /// Why.
    pub kind: UpcallKind,
    /// Where the guest's flags are.
    pub flags: FlagsAt,
    /// Bytes of the access, or the number of the site that strayed.
    pub size: u16,
    /// The access stores; of a site that strayed, which access of its instruction it is.
    pub write: u8,
    /// The resumed code wants the TLB entry's addend, not the host address.
    pub wants_addend: u8,
    /// Offset to resume at, or the index of the exit.
    pub extra: u32,
}

impl Upcall {
    /// Offset of `kind`.
    pub(crate) const KIND: usize = offset_of!(Upcall, kind);
    /// Offset of `size`.
    pub(crate) const SIZE: i32 = offset_of!(Upcall, size) as i32;
    /// Offset of `wants_addend`.
    pub(crate) const WANTS_ADDEND: i32 = offset_of!(Upcall, wants_addend) as i32;
    /// Offset of `extra`.
    pub(crate) const EXTRA: i32 = offset_of!(Upcall, extra) as i32;

    /// As it stands in code.
    pub fn to_bytes(self) -> [u8; 16] {
        let first = u64::from(self.block)
            | u64::from(self.insn) << 32
            | (self.kind as u64) << 48
            | (self.flags as u64) << 56;
        let second = u64::from(self.size)
            | u64::from(self.write) << 16
            | u64::from(self.wants_addend) << 24
            | u64::from(self.extra) << 32;
        (u128::from(first) | u128::from(second) << 64).to_le_bytes()
    }
}

const _: () = assert!(size_of::<Upcall>() == 16);
