//! Guest faults are values: an instruction returns one, the run loop delivers it.

use mmu::PageFault;

/// An exception that an instruction raises (SDM volume 3, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector number, 0 to 31.
    pub vector: u8,
    /// The error code, for the vectors that push one.
    pub error_code: Option<u32>,
    /// For #PF the linear address, which goes to CR2; for #DB the bits that DR6 gets.
    pub address: u64,
}

#[allow(missing_docs)]
impl Exception {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;

    /// An exception without an error code.
    pub const fn plain(vector: u8) -> Exception {
        Exception {
            vector,
            error_code: None,
            address: 0,
        }
    }

    /// An exception with an error code.
    pub const fn with_code(vector: u8, code: u32) -> Exception {
        Exception {
            vector,
            error_code: Some(code),
            address: 0,
        }
    }

    pub const fn divide_error() -> Exception {
        Exception::plain(Self::DE)
    }

    pub const fn invalid_opcode() -> Exception {
        Exception::plain(Self::UD)
    }

    pub const fn device_not_available() -> Exception {
        Exception::plain(Self::NM)
    }

    /// #GP with an error code: 0, or a selector.
    pub const fn general_protection(code: u32) -> Exception {
        Exception::with_code(Self::GP, code)
    }

    /// #SS with an error code: 0, or a selector.
    pub const fn stack_fault(code: u32) -> Exception {
        Exception::with_code(Self::SS, code)
    }

    pub const fn not_present(selector: u32) -> Exception {
        Exception::with_code(Self::NP, selector)
    }

    pub const fn invalid_tss(selector: u32) -> Exception {
        Exception::with_code(Self::TS, selector)
    }

    pub const fn alignment_check() -> Exception {
        Exception::with_code(Self::AC, 0)
    }
}

impl From<PageFault> for Exception {
    fn from(fault: PageFault) -> Exception {
        Exception {
            vector: Exception::PF,
            error_code: Some(fault.error_code),
            address: fault.address.0,
        }
    }
}
