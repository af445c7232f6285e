//! What instructions look like apart from their general-purpose registers, addresses and constants.
//! Those of one shape have the same class but for the registers that they name, so that a class is
//! worked out once for each shape: iced-x86's description of one instruction takes as long as
//! emitting it.

use iced_x86::{CpuidFeature, EncodingKind, Instruction, Mnemonic, OpAccess, OpKind, Register};

use super::classify::{Class, elides, is_avx, is_general, is_immediate, is_sse, is_x87};
use crate::guest::Mode;

/// Shapes that are remembered; one takes the place of another.
const SHAPES: usize = 2048;
/// Operands that may be general-purpose registers: a fifth is a constant.
const OPERANDS: usize = 4;

/// A shape under a mode.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape(u64);

/// The registers that an instruction names.
#[derive(Clone, Copy)]
pub(super) struct Named {
    /// The general-purpose register that each operand is, as a bit; none if it is none.
    operands: [u16; OPERANDS],
    /// All that it names, a bit each.
    all: u16,
}

/// The general-purpose register that each register is part of, as a bit; none if it is no part of one.
const PARTS: [u16; 256] = {
    let mut parts = [0; 256];
    let mut number = 0;
    while number < 16 {
        let low = if number < 4 {
            Register::AL as usize
        } else {
            // Behind AH to BH.
            Register::AL as usize + 4
        };
        let firsts = [
            low,
            Register::AX as usize,
            Register::EAX as usize,
            Register::RAX as usize,
        ];
        let mut size = 0;
        while size < firsts.len() {
            parts[firsts[size] + number] = 1 << number;
            size += 1;
        }
        if number < 4 {
            parts[Register::AH as usize + number] = 1 << number;
        }
        number += 1;
    }
    parts
};

/// What of an immediate makes a difference: how shifts and rotations understand it.
fn count(immediate: u8) -> u64 {
    let kind = |count: u8| u64::from(count.min(2));
    kind(immediate & 31) | kind(immediate & 63) << 2 | u64::from(immediate == 1) << 4
}

/// The shape of an instruction, and what it names.
pub(super) fn of(insn: &Instruction, mode: Mode) -> (Shape, Named) {
    let part = |register: Register| PARTS[register as usize];
    let registers = [
        insn.op0_register(),
        insn.op1_register(),
        insn.op2_register(),
        insn.op3_register(),
    ];
    let kinds = [
        insn.op0_kind(),
        insn.op1_kind(),
        insn.op2_kind(),
        insn.op3_kind(),
    ];
    let operands = registers.map(part);
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let all = operands.into_iter().fold(0, |all, part| all | part);
    let named = Named {
        operands,
        all: all | part(base) | part(index),
    };
    let any = |kind| {
        kinds
            .into_iter()
            .fold(false, |any, other| any | (other == kind))
    };
    let mut shape = u64::from(any(OpKind::Memory));
    shape |= match base {
        Register::EIP => 2,
        Register::RIP => 4,
        _ => 0,
    };
    if any(OpKind::Immediate8) {
        shape |= count(insn.immediate8()) << 3;
    }
    // Instructions that clear a register do not read it.
    let [first, second, third, _] = registers;
    shape |= u64::from(first == second) << 8
        | u64::from(second == third) << 9
        | u64::from(first == third) << 10;
    shape |= u64::from(insn.has_rep_prefix()) << 11 | u64::from(insn.has_repne_prefix()) << 12;
    shape |= (insn.code_size() as u64) << 13 | u64::from(elides(insn)) << 15;
    (
        Shape(u64::from(mode.0) << 32 | shape << 16 | insn.code() as u64),
        named,
    )
}

/// Whether instructions of this one's shape have its class but for what they name: that of an
/// instruction which names nothing that it implies, too.
pub(super) fn is_typical(insn: &Instruction) -> bool {
    let plain_encoding = matches!(insn.encoding(), EncodingKind::Legacy | EncodingKind::VEX);
    // The count of these is taken modulo their width.
    let through_carry = matches!(insn.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr);
    plain_encoding
        && !through_carry
        && !insn.is_string_instruction()
        // Which vectors address a gather makes a difference.
        && !insn.is_vsib()
        && (0..insn.op_count()).all(|index| is_typical_operand(insn, index))
}

/// Whether it does not matter which one an operand is.
fn is_typical_operand(insn: &Instruction, index: u32) -> bool {
    let register = insn.op_register(index);
    match insn.op_kind(index) {
        OpKind::Register => {
            !(register.is_segment_register()
                || register.is_cr()
                || register.is_dr()
                || register.is_tr())
        }
        OpKind::Memory
        | OpKind::Immediate8
        | OpKind::NearBranch16
        | OpKind::NearBranch32
        | OpKind::NearBranch64 => true,
        kind => is_immediate(kind),
    }
}

/// The same with other general-purpose registers, which no instruction implies.
pub(super) fn with_free_registers(insn: &Instruction) -> Instruction {
    const FREE: u32 = 12;
    let resized = |register: Register, number: u32| {
        let first = match register.size() {
            1 => Register::AL as u32 + 4,
            2 => Register::AX as u32,
            4 => Register::EAX as u32,
            _ => Register::RAX as u32,
        };
        Register::try_from((first + number) as usize).expect("a general-purpose register")
    };
    let mut free = *insn;
    let mut names: Vec<Register> = Vec::new();
    for index in 0..insn.op_count() {
        let register = insn.op_register(index);
        if insn.op_kind(index) == OpKind::Register && register.is_gpr() {
            // Equal ones stay equal.
            let known = names.iter().position(|&name| name == register);
            let place = known.unwrap_or(names.len());
            if known.is_none() {
                names.push(register);
            }
            free.set_op_register(index, resized(register, FREE + place as u32));
        }
    }
    // No address is computed here.
    if insn.memory_base().is_gpr() {
        free.set_memory_base(Register::None);
    }
    if insn.memory_index().is_gpr() {
        free.set_memory_index(Register::None);
    }
    free
}

impl Named {
    /// A class of the shape with the registers that are named. `changes`: what [`changes`] says of it.
    pub(super) fn complete(self, mut class: Class, changes: [u16; OPERANDS]) -> Class {
        for (operand, changes) in self.operands.into_iter().zip(changes) {
            class.writes |= operand & changes;
        }
        class.implied &= !self.all;
        class
    }

    /// The class of the shape, from that of an instruction which names these.
    pub(super) fn without(self, mut class: Class) -> Class {
        class.writes &= !self.all;
        class
    }
}

/// All bits for each operand that the instructions of a class change.
pub(super) fn changes(class: &Class) -> [u16; OPERANDS] {
    std::array::from_fn(|index| {
        let changes = !matches!(
            class.access[index],
            OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
        );
        if changes { u16::MAX } else { 0 }
    })
}

/// What is known of a shape.
#[derive(Clone, Copy)]
struct Entry {
    shape: Shape,
    class: Class,
    changes: [u16; OPERANDS],
}

/// Classes by shape.
pub(super) struct Known(Box<[Option<Entry>]>);

impl Default for Known {
    fn default() -> Self {
        Known(vec![None; SHAPES].into_boxed_slice())
    }
}

impl Known {
    fn place(shape: Shape) -> usize {
        let hash = shape.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> (u64::BITS - SHAPES.ilog2())) as usize
    }

    /// The class of an instruction of a shape that names these registers.
    pub(super) fn get(&self, shape: Shape, named: Named) -> Option<Class> {
        let known = self.0[Self::place(shape)].as_ref()?;
        (known.shape == shape).then(|| named.complete(known.class, known.changes))
    }

    pub(super) fn put(&mut self, shape: Shape, class: Class) {
        self.0[Self::place(shape)] = Some(Entry {
            shape,
            class,
            changes: changes(&class),
        });
    }
}

/// Whether the host may fault on an instruction without a memory operand.
pub(super) fn may_fault(insn: &Instruction) -> bool {
    let extension = |&feature: &CpuidFeature| is_x87(feature) || is_sse(feature) || is_avx(feature);
    matches!(insn.mnemonic(), Mnemonic::Div | Mnemonic::Idiv)
        || insn.cpuid_features().iter().any(extension)
}

/// Whether an instruction may touch vector registers or MXCSR (which conversions to MMX
/// registers do too). The few of the SSE extensions that touch neither are common in kernels.
pub(super) fn uses_vectors(insn: &Instruction) -> bool {
    let extension = insn.cpuid_features().iter().any(|&feature| {
        !(feature == CpuidFeature::INTEL286 || is_general(feature) || is_x87(feature))
    });
    extension
        && !matches!(
            insn.mnemonic(),
            Mnemonic::Lfence
                | Mnemonic::Mfence
                | Mnemonic::Sfence
                | Mnemonic::Movnti
                | Mnemonic::Pause
                | Mnemonic::Swapgs
                | Mnemonic::Endbr64
                | Mnemonic::Endbr32
        )
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;
    use crate::random::RandomBytes;
    use crate::record::classify::Classifier;

    /// Byte strings of all kinds, with short opcodes and many ways to name registers.
    #[test]
    fn what_is_known_of_a_shape_is_what_its_instructions_are() {
        let modes = [
            (
                64,
                Mode::CODE64 | Mode::PROTECTED | Mode::X87 | Mode::SSE | Mode::AVX,
            ),
            (
                64,
                Mode::CODE64 | Mode::PROTECTED | Mode::RING0 | Mode::X87_UNMASKED | Mode::X87,
            ),
            (64, Mode::CODE64 | Mode::PROTECTED | Mode::USER | Mode::SSE),
            (
                32,
                Mode::CODE32 | Mode::FLAT | Mode::PROTECTED | Mode::USER | Mode::SSE,
            ),
            (
                32,
                Mode::CODE32 | Mode::PROTECTED | Mode::RING0 | Mode::X87 | Mode::SSE,
            ),
            (16, Mode::RING0 | Mode::X87),
        ];
        let mut classifier = Classifier::default();
        let mut random = RandomBytes::new();
        let mut known = 0;
        for round in 0..1_500_000u32 {
            let (bits, mode) = modes[round as usize % modes.len()];
            let mode = Mode(mode);
            let mut bytes = random.bytes();
            let prefix = [0x48, 0x0f, 0x66, 0xf2, 0xf3, 0x45, 0xc5, 0xc1];
            let chosen = random.next();
            if chosen & 1 != 0 {
                bytes[0] = prefix[(chosen >> 8) as usize % prefix.len()];
            }
            if chosen & 6 == 6 {
                bytes[1] = 0x0f;
            }
            let insn = Decoder::new(bits, &bytes, DecoderOptions::NONE).decode();
            if insn.is_invalid() {
                continue;
            }
            let (shape, named) = of(&insn, mode);
            known += u32::from(classifier.known.get(shape, named).is_some());
            let described = classifier.describe(&insn, mode);
            assert_eq!(
                classifier.classify(&insn, mode),
                described,
                "{insn} {mode:?}"
            );
        }
        assert!(known > 500_000, "{known}");
    }
}
