//! Operands in memory: how their linear address is made, and where they are on the host once that is
//! checked.

use iced_x86::{Instruction, MemoryOperand, Mnemonic, Register};

use super::encoded::Encoded;
use super::encoding::{Memory, NO_INDEX, Opcode, REX, WIDE, with_memory};
use super::places::Places;
use super::registers::{T0, number, pinned, sized};
use crate::guest::{Mode, SegmentIndex};
use crate::record::classify::is_limited;

/// A checked operand in host memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostMemory {
    pub base: Register,
    pub index: Register,
    pub scale: u32,
    pub displacement: i32,
}

/// How the linear address of an operand is made.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    /// The place of the base register.
    pub base: Option<usize>,
    /// The place of the index register, and the scale.
    pub index: Option<(usize, u32)>,
    /// Displacement, or the whole address when there is neither base nor index.
    pub displacement: u64,
    /// Segment register whose base is added (FS or GS).
    pub segment: Option<usize>,
    /// The address wraps at 32 bits.
    pub narrow: bool,
    /// The address is relative to RIP.
    pub relative: bool,
    /// The base register changes before the last store: the host operand must not name it.
    pub whole: bool,
    /// The offset is compared with its segment's limit before the base is added.
    pub limited: bool,
    /// The offset wraps at 16 bits.
    pub short: bool,
    /// The host operand names the index: see [`Address::apart`].
    pub apart: bool,
}

impl Address {
    /// The address of an instruction's memory operand; `None` for forms left to helpers.
    pub(super) fn of(insn: &Instruction, mode: Mode, places: Places) -> Option<Address> {
        let code64 = mode.has(Mode::CODE64);
        if mode.segmented() || !code64 && is_limited(insn) {
            return Address::limited(insn, places);
        }
        let segment = based_segment(insn.memory_segment());
        let mut address = Address {
            base: None,
            index: None,
            displacement: insn.memory_displacement64(),
            segment,
            narrow: !code64,
            relative: insn.memory_base().is_ip(),
            whole: changes_base(insn),
            limited: false,
            short: false,
            apart: false,
        };
        let base = insn.memory_base();
        if base.is_ip() {
            if base == Register::EIP {
                return None;
            }
            return Some(address);
        }
        for register in [base, insn.memory_index()] {
            if register != Register::None {
                if !register.is_gpr32() && !register.is_gpr64() {
                    return None;
                }
                address.narrow |= register.is_gpr32();
            }
        }
        if code64 && address.narrow && segment.is_some() {
            return None;
        }
        if base == Register::None && insn.memory_index() == Register::None {
            if code64 && insn.memory_displ_size() == 4 {
                // A bare 32-bit address under an address-size prefix is not sign-extended;
                // iced-x86 has already extended it as the encoding says.
                address.narrow = false;
            }
            return Some(address);
        }
        if base != Register::None {
            address.base = Some(places.of(number(base)));
        }
        if insn.memory_index() != Register::None {
            let index = places.of(number(insn.memory_index()));
            address.index = Some((index, insn.memory_index_scale()));
        }
        i32::try_from(address.displacement as i64)
            .or_else(|_| u32::try_from(address.displacement).map(|_| 0))
            .ok()?;
        Some(address)
    }

    /// The address of an operand in a segment that is not flat.
    fn limited(insn: &Instruction, places: Places) -> Option<Address> {
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let size = match (base, index) {
            (Register::None, Register::None) => insn.memory_displ_size() as usize,
            (Register::None, index) => index.size(),
            (base, _) => base.size(),
        };
        let named = |register: Register| register == Register::None || register.is_gpr();
        if !named(base) || !named(index) || !matches!(size, 2 | 4) {
            return None;
        }
        let place =
            |register: Register| (register != Register::None).then(|| places.of(number(register)));
        Some(Address {
            base: place(base),
            index: place(index).map(|place| (place, insn.memory_index_scale())),
            displacement: i64::from(insn.memory_displacement64() as i32) as u64,
            segment: Some(insn.memory_segment() as usize - Register::ES as usize),
            narrow: true,
            relative: false,
            whole: false,
            limited: true,
            short: size == 2,
            apart: false,
        })
    }

    /// A place in the stack: a base register that is in its own place, with a displacement.
    pub fn based(base: usize, displacement: i32, mode: Mode) -> Address {
        let limited = mode.segmented();
        Address {
            base: Some(base),
            index: None,
            displacement: displacement as i64 as u64,
            segment: limited.then_some(SegmentIndex::Ss as usize),
            narrow: !mode.has(Mode::CODE64),
            relative: false,
            whole: false,
            limited,
            short: limited && !mode.has(Mode::WIDE_STACK),
            apart: false,
        }
    }

    /// The address, if it is known.
    pub(super) fn constant(&self) -> Option<u64> {
        (self.segment.is_none() && self.is_bare()).then_some(if self.narrow {
            self.displacement & 0xffff_ffff
        } else {
            self.displacement
        })
    }

    /// Whether it has neither base nor index.
    pub(super) fn is_bare(&self) -> bool {
        self.base.is_none() && self.index.is_none()
    }

    /// The base register, where the host operand can be addend + base + displacement.
    pub(super) fn simple_base(&self) -> Option<u8> {
        if self.whole || self.index.is_some() {
            return None;
        }
        self.near_base()
    }

    /// The base register, where nothing but displacement and index is added to it, and the host operand can have the
    /// displacement.
    fn near_base(&self) -> Option<u8> {
        let near = (self.displacement as i64).unsigned_abs() < 1 << 28;
        if self.narrow || self.segment.is_some() || !near {
            return None;
        }
        pinned(self.base?)
    }

    /// Base, index and scale, where the host operand can be addend + base, which are added up, index * scale and
    /// displacement.
    pub(super) fn sum(&self) -> Option<(u8, u8, u32)> {
        let (index, scale) = self.index?;
        Some((self.near_base()?, pinned(index)?, scale))
    }

    /// Likewise, if it is to be so.
    pub(super) fn sum_apart(&self) -> Option<(u8, u8, u32)> {
        self.sum().filter(|_| self.apart)
    }

    /// Has the access wait for the index alone, where base and index are added up and the check does not find out the
    /// host address. `later`: the base was written last.
    pub(super) fn set_apart(&mut self, later: bool) {
        self.apart = true;
        if let (Some(base), Some((index, 1)), true) = (self.base, self.index, later) {
            (self.base, self.index) = (Some(index), Some((base, 1)));
        }
    }

    /// The host operand that [`Emitter::check`] will leave for this address.
    pub fn host_memory(&self) -> HostMemory {
        let displacement = self.displacement as i32;
        if let Some((_, index, scale)) = self.sum_apart() {
            return HostMemory {
                base: T0,
                index: sized(index, 8),
                scale,
                displacement,
            };
        }
        match self.simple_base() {
            Some(base) => HostMemory {
                index: sized(base, 8),
                displacement,
                ..HostMemory::AT_T0
            },
            None => HostMemory::AT_T0,
        }
    }
}

/// The number of a segment register whose base is added in flat code.
pub(super) fn based_segment(register: Register) -> Option<usize> {
    match register {
        Register::FS => Some(SegmentIndex::Fs as usize),
        Register::GS => Some(SegmentIndex::Gs as usize),
        _ => None,
    }
}

/// Whether a read-modify-write also changes the base register of its operand.
fn changes_base(insn: &Instruction) -> bool {
    let base = insn.memory_base();
    if !base.is_gpr() {
        return false;
    }
    let is_base = |register: Register| register.full_register() == base.full_register();
    match insn.mnemonic() {
        Mnemonic::Cmpxchg => is_base(Register::RAX),
        Mnemonic::Xadd | Mnemonic::Xchg => {
            (0..insn.op_count()).any(|op| is_base(insn.op_register(op)))
        }
        _ => false,
    }
}

impl HostMemory {
    /// Where T0 points.
    pub const AT_T0: HostMemory = HostMemory {
        base: T0,
        index: Register::None,
        scale: 1,
        displacement: 0,
    };

    /// The same operand in another copy.
    pub fn further(self, bytes: i32) -> HostMemory {
        HostMemory {
            displacement: self.displacement + bytes,
            ..self
        }
    }

    /// As iced-x86 takes it.
    pub fn operand(self) -> MemoryOperand {
        MemoryOperand::new(
            self.base,
            self.index,
            self.scale,
            i64::from(self.displacement),
            u32::from(self.displacement != 0),
            false,
            Register::None,
        )
    }

    /// `mov register, [memory]` of 1, 2, 4 or 8 bytes; the bits above them become 0.
    pub(super) fn load(self, register: Register, size: u32) -> Encoded {
        let opcode = match size {
            1 => (0, Opcode::Long(0xb6)),
            2 => (0, Opcode::Long(0xb7)),
            4 => (0, Opcode::Short(0x8b)),
            _ => (WIDE, Opcode::Short(0x8b)),
        };
        with_memory(opcode, number(register) as u8, &self.encoded())
    }

    /// `mov [memory], register` of 1, 2, 4 or 8 bytes.
    pub(super) fn store(self, register: Register, size: u32) -> Encoded {
        let register = number(register) as u8;
        let opcode = match size {
            // Without a prefix these are AH, CH, DH and BH.
            1 if (4..8).contains(&register) => (REX, Opcode::Short(0x88)),
            1 => (0, Opcode::Short(0x88)),
            2 | 4 => (0, Opcode::Short(0x89)),
            _ => (WIDE, Opcode::Short(0x89)),
        };
        let store = with_memory(opcode, register, &self.encoded());
        if size == 2 { store.behind(0x66) } else { store }
    }

    /// As it is encoded.
    pub(super) fn encoded(self) -> Memory {
        Memory {
            base: number(self.base) as u8,
            index: match self.index {
                Register::None => NO_INDEX,
                index => number(index) as u8,
            },
            scale: self.scale,
            displacement: self.displacement,
            displaced: false,
        }
    }

    /// Replaces an instruction's memory operand.
    pub fn apply(self, insn: &mut Instruction) {
        insn.set_segment_prefix(Register::None);
        insn.set_memory_base(self.base);
        insn.set_memory_index(self.index);
        insn.set_memory_index_scale(self.scale);
        insn.set_memory_displacement64(i64::from(self.displacement) as u64);
        insn.set_memory_displ_size(u32::from(self.displacement != 0));
    }
}
