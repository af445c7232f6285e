//! Segment registers with their hidden parts (SDM volume 3, 3.4.3).

/// Index of a segment register, in the processor's encoding order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum SegmentIndex {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
}

/// A segment register, LDTR or TR: the selector and the cached descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Segment {
    /// Linear address of the segment's first byte.
    pub base: u64,
    /// The last valid offset, in bytes (granularity already applied).
    pub limit: u32,
    /// The visible selector.
    pub selector: u16,
    /// Access byte in bits 0 to 7 (type, S, DPL, P) and AVL, L, D/B, G in bits 12 to 15:
    /// the descriptor's second dword shifted right by 8, limit bits cleared.
    pub attributes: u16,
}

impl Segment {
    /// Present (P).
    pub const PRESENT: u16 = 1 << 7;
    /// Code or data, not system (S).
    pub const NOT_SYSTEM: u16 = 1 << 4;
    /// Code (in a code or data segment's type).
    pub const CODE: u16 = 1 << 3;
    /// Expand-down (data) or conforming (code).
    pub const CONFORMING: u16 = 1 << 2;
    /// Writable (data) or readable (code).
    pub const WRITABLE: u16 = 1 << 1;
    /// Accessed.
    pub const ACCESSED: u16 = 1;
    /// 64-bit code (L).
    pub const LONG: u16 = 1 << 13;
    /// Default size 32 bits (D), or big stack (B).
    pub const BIG: u16 = 1 << 14;
    /// Limit counted in 4 KiB units (G).
    pub const GRANULAR: u16 = 1 << 15;

    /// A real-mode segment: base = selector * 16, limit 64 KiB, read/write.
    pub fn real(selector: u16) -> Segment {
        Segment {
            base: u64::from(selector) << 4,
            limit: 0xffff,
            selector,
            attributes: Segment::PRESENT
                | Segment::NOT_SYSTEM
                | Segment::WRITABLE
                | Segment::ACCESSED,
        }
    }

    /// Whether the cached descriptor is present (a null selector's is not).
    pub fn present(&self) -> bool {
        self.attributes & Segment::PRESENT != 0
    }

    /// Descriptor privilege level, 0 to 3.
    pub fn dpl(&self) -> u8 {
        ((self.attributes >> 5) & 3) as u8
    }

    /// Requested privilege level of the selector, 0 to 3.
    pub fn rpl(&self) -> u8 {
        (self.selector & 3) as u8
    }

    /// The four type bits.
    pub fn kind(&self) -> u8 {
        (self.attributes & 15) as u8
    }

    /// Base 0, limit 4 GiB - 1, present, not expand-down, and writable if data:
    /// no check beyond paging is needed.
    pub fn is_flat(&self) -> bool {
        let data_ok = self.attributes & Segment::CODE != 0
            || self.attributes & (Segment::CONFORMING | Segment::WRITABLE) == Segment::WRITABLE;
        self.base == 0 && self.limit == u32::MAX && self.present() && data_ok
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct DescriptorTable {
    /// Linear address of the table.
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u16,
}
