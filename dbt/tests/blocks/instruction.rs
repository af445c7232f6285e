//! Random instructions of every kind but control flow, by encoding, with memory operands that
//! mostly land in the program's data.

use iced_x86::{
    CpuidFeature, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory,
    Mnemonic, OpAccess, OpKind, Register,
};

use crate::common::Random;
use crate::machine::DATA;
use crate::program::{Fixup, Piece, Reserved, To};

/// An instruction, with what has to precede it.
pub struct Found {
    pub piece: Piece,
    /// Changes RSP.
    pub moves_stack: bool,
    written: Vec<usize>,
}

impl Found {
    pub fn writes(&self, register: usize) -> bool {
        self.written.contains(&register)
    }
}

fn number(register: Register) -> usize {
    register.full_register() as usize - Register::RAX as usize
}

/// The host's processor runs both engines' vector instructions: it has to know them.
fn known(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    match feature {
        F::INTEL8086 | F::INTEL186 | F::INTEL386 | F::INTEL486 | F::X64 | F::CMOV => true,
        F::MULTIBYTENOP | F::PAUSE | F::CLFSH | F::CX8 | F::FXSR => true,
        F::FPU | F::FPU287 | F::FPU387 | F::MMX | F::SSE | F::SSE2 => true,
        F::CMPXCHG16B => is_x86_feature_detected!("cmpxchg16b"),
        F::SSE3 => is_x86_feature_detected!("sse3"),
        F::SSSE3 => is_x86_feature_detected!("ssse3"),
        F::SSE4_1 => is_x86_feature_detected!("sse4.1"),
        F::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        F::POPCNT => is_x86_feature_detected!("popcnt"),
        F::LZCNT => is_x86_feature_detected!("lzcnt"),
        F::BMI1 => is_x86_feature_detected!("bmi1"),
        F::BMI2 => is_x86_feature_detected!("bmi2"),
        F::ADX => is_x86_feature_detected!("adx"),
        F::MOVBE => is_x86_feature_detected!("movbe"),
        F::AES => is_x86_feature_detected!("aes"),
        F::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        F::SHA => is_x86_feature_detected!("sha"),
        F::AVX => is_x86_feature_detected!("avx"),
        F::AVX2 => is_x86_feature_detected!("avx2"),
        F::VAES => is_x86_feature_detected!("vaes"),
        F::VPCLMULQDQ => is_x86_feature_detected!("vpclmulqdq"),
        F::FMA => is_x86_feature_detected!("fma"),
        F::F16C => is_x86_feature_detected!("f16c"),
        F::XSAVE => is_x86_feature_detected!("xsave"),
        _ => false,
    }
}

fn unwanted(insn: &Instruction) -> bool {
    use Mnemonic::*;
    match insn.mnemonic() {
        // Not deterministic, or not of this test.
        In | Out | Insb | Insw | Insd | Outsb | Outsw | Outsd | Enter | Cpuid | Popfd | Popfq
        | Popf | Xsetbv | Xgetbv | Bound | Popa | Popad | Sti | Leave => true,
        // Undefined results.
        Bswap => insn.op0_register().size() == 2,
        Shld | Shrd => insn.op_register(1).size() == 2,
        _ => false,
    }
}

/// Draws one instruction; often none fits.
pub fn random(reserved: &Reserved, random: &mut Random) -> Option<Found> {
    for _ in 0..20 {
        if let Some(found) = attempt(reserved, random) {
            return Some(found);
        }
    }
    None
}

struct Operand {
    /// ModRM, SIB and displacement, the register field zero.
    bytes: Vec<u8>,
    /// REX.X and REX.B as bits 1 and 0.
    extension: u8,
    fixed_base: bool,
}

fn displacement(random: &mut Random) -> i32 {
    let value = (random.below(32) as i32 - 16) * 16;
    if random.one_in(4) {
        value + random.below(16) as i32
    } else {
        value
    }
}

fn operand(reserved: &Reserved, random: &mut Random, segment: bool) -> Operand {
    let long = reserved.bits == 64;
    if random.one_in(3) {
        let other = random.next() as u8;
        return Operand {
            bytes: vec![0xc0 | other & 7],
            extension: other >> 3 & 1,
            fixed_base: false,
        };
    }
    if segment && long || random.one_in(8) {
        // A bare address, or RIP-relative.
        let relative = long && !segment && random.one_in(2);
        let mut bytes = if long && !relative {
            vec![0x04, 0x25]
        } else {
            vec![0x05]
        };
        bytes.extend([0; 4]);
        return Operand {
            bytes,
            extension: 0,
            fixed_base: true,
        };
    }
    let stack = random.one_in(10);
    let base = if stack {
        4
    } else {
        reserved.bases[random.below(reserved.bases.len() as u64) as usize]
    };
    let index = (!stack && random.one_in(3))
        .then(|| reserved.indexes[random.below(reserved.indexes.len() as u64) as usize]);
    let value = if stack {
        (random.below(15) * 8) as i32
    } else {
        displacement(random)
    };
    let small = i8::try_from(value).is_ok();
    let size = if value == 0 && base & 7 != 5 && random.one_in(2) {
        0
    } else if small && random.one_in(2) {
        1
    } else {
        2
    };
    let mut bytes = Vec::new();
    let mode = size << 6;
    let mut extension = base >> 3;
    match index {
        Some(index) => {
            extension |= index >> 3 << 1;
            let scale = random.below(4) as u8;
            bytes.extend([mode | 4, scale << 6 | (index & 7) << 3 | base & 7]);
        }
        None if base & 7 == 4 || random.one_in(6) => {
            bytes.extend([mode | 4, 0x20 | base & 7]);
        }
        None => bytes.push(mode | base & 7),
    }
    match size {
        1 => bytes.push(value as u8),
        2 => bytes.extend(value.to_le_bytes()),
        _ => {}
    }
    Operand {
        bytes,
        extension,
        fixed_base: false,
    }
}

fn attempt(reserved: &Reserved, random: &mut Random) -> Option<Found> {
    let long = reserved.bits == 64;
    let mut bytes = Vec::with_capacity(24);
    let kind = random.below(100);
    let vex = kind >= 78;
    let segment = random.one_in(16);
    if segment {
        bytes.push([0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x64, 0x65][random.below(8) as usize]);
    }
    let thread = segment && matches!(bytes[0], 0x64 | 0x65);
    if long && random.one_in(16) {
        bytes.push(0x67);
    }
    if !vex {
        if random.one_in(24) {
            bytes.push(0xf0);
        }
        if random.one_in(4) {
            bytes.push(0x66);
        }
        if random.one_in(if kind < 50 { 16 } else { 4 }) {
            bytes.push(0xf2 | random.below(2) as u8);
        }
    }
    let operand = operand(reserved, random, thread);
    let field = random.below(if long { 16 } else { 8 }) as u8;
    let wide = u8::from(long && random.one_in(3));
    if vex {
        let inverted = !(field >> 3 << 2 | operand.extension) & 7;
        let second = random.below(if long { 16 } else { 8 }) as u8;
        let second = if random.one_in(3) { 0 } else { second };
        let map = [1, 1, 2, 2, 3][random.below(5) as usize];
        bytes.extend([
            0xc4,
            inverted << 5 | map,
            wide << 7 | (!second & 15) << 3 | (random.next() as u8 & 7),
            random.next() as u8,
        ]);
    } else {
        if long && (field >= 8 || operand.extension != 0 || wide != 0 || random.one_in(8)) {
            bytes.push(0x40 | wide << 3 | field >> 3 << 2 | operand.extension);
        }
        match kind {
            0..=39 => bytes.push(random.next() as u8),
            40..=46 => bytes.push(0xd8 | random.below(8) as u8),
            47..=66 => bytes.extend([0x0f, random.next() as u8]),
            67..=72 => bytes.extend([0x0f, 0x38, random.next() as u8]),
            _ => bytes.extend([0x0f, 0x3a, random.next() as u8]),
        }
    }
    let place = bytes.len();
    bytes.extend(&operand.bytes);
    bytes[place] |= (field & 7) << 3;
    let small = random.one_in(3);
    for _ in 0..8 {
        bytes.push(if small {
            random.below(40) as u8
        } else {
            random.next() as u8
        });
    }
    bytes.truncate(15);
    let mut decoder = Decoder::with_ip(reserved.bits, &bytes, 0, DecoderOptions::NONE);
    let insn = decoder.decode();
    let offsets = decoder.get_constant_offsets(&insn);
    if insn.is_invalid()
        || insn.flow_control() != FlowControl::Next
        || insn.is_privileged()
        || unwanted(&insn)
        || !insn.cpuid_features().iter().all(|&feature| known(feature))
    {
        return None;
    }
    bytes.truncate(insn.len());
    let mut piece = Piece::default();
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&insn);
    let mut written = Vec::new();
    for used in info.used_registers() {
        let writes = !matches!(
            used.access(),
            OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess
        );
        if used.register().is_segment_register() && writes {
            return None;
        }
        if used.register().is_gpr() && writes {
            written.push(number(used.register()));
        }
    }
    let string = insn.op_kinds().any(|kind| {
        matches!(
            kind,
            OpKind::MemorySegRSI
                | OpKind::MemorySegESI
                | OpKind::MemoryESRDI
                | OpKind::MemoryESEDI
                | OpKind::MemorySegRDI
                | OpKind::MemorySegEDI
        )
    });
    let moves_stack = insn.is_stack_instruction();
    if string {
        if thread || [1, 6, 7].iter().any(|&register| reserved.has(register)) {
            return None;
        }
        let around = DATA + 0x400;
        piece.load(6, (around + random.below(0x2800)) as u32);
        piece.load(7, (around + random.below(0x2800)) as u32);
        piece.load(1, random.below(40) as u32);
        written.extend([1, 6, 7]);
    } else if insn.op_kinds().any(|kind| {
        matches!(
            kind,
            OpKind::MemorySegSI | OpKind::MemoryESDI | OpKind::MemorySegDI
        )
    }) {
        return None;
    }
    // An address register may change where it is put right again behind the instruction.
    let mut spoilt = Vec::new();
    for &register in &written {
        if register == 4 {
            if !moves_stack {
                return None;
            }
        } else if reserved.has(register as u8) {
            if !random.one_in(3) {
                return None;
            }
            spoilt.push(register as u8);
        }
    }
    // POP to RSP leaves the stack.
    if moves_stack && insn.op0_kind() == OpKind::Register && insn.op0_register().is_gpr() {
        let pops = insn.stack_pointer_increment() > 0;
        if pops && number(insn.op0_register()) == 4 {
            return None;
        }
    }
    if insn.op_kinds().any(|kind| kind == OpKind::Memory) {
        place_memory(reserved, random, &insn, &operand, &mut piece, &mut written)?;
        if insn.memory_base().is_ip() || insn.memory_base() == Register::None {
            // The address itself is yet to be filled in.
            let size = offsets.displacement_size();
            if size < 4 || insn.memory_index() != Register::None {
                return None;
            }
            let target = if thread && long {
                random.below(0x1800)
            } else {
                DATA + 0x400 + random.below(0x2800)
            };
            let aligned = if random.one_in(4) {
                target
            } else {
                target & !63
            };
            let base = piece.bytes.len();
            piece.fixups.push(Fixup {
                at: base + offsets.displacement_offset(),
                size,
                to: To::Address(aligned),
                relative_to: insn.memory_base().is_ip().then_some(base + bytes.len()),
            });
        }
    }
    if matches!(insn.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) {
        if random.one_in(2) {
            return None;
        }
        if !reserved.has(2) && !random.one_in(4) {
            let high = if random.one_in(2) { 0 } else { random.below(3) };
            piece_prefix(&mut piece, 2, high as u32);
            written.push(2);
        }
    }
    piece.put(&bytes);
    for register in spoilt {
        let value = reserved.values[usize::from(register)];
        piece.load_wide(reserved.bits, register, value);
    }
    Some(Found {
        piece,
        moves_stack,
        written,
    })
}

/// Puts `mov register, value` in front.
fn piece_prefix(piece: &mut Piece, register: u8, value: u32) {
    let mut whole = Piece::default();
    whole.load(register, value);
    whole.append(piece);
    *piece = whole;
}

/// Whether the memory operand goes where the program's data is.
fn place_memory(
    reserved: &Reserved,
    random: &mut Random,
    insn: &Instruction,
    operand: &Operand,
    piece: &mut Piece,
    written: &mut Vec<usize>,
) -> Option<()> {
    let base = insn.memory_base();
    let index = insn.memory_index();
    let expected = |register: Register, set: &[u8]| {
        register == Register::None
            || register.is_ip()
            || register.is_gpr() && set.contains(&(number(register) as u8))
    };
    let mut bases = reserved.bases.clone();
    bases.push(4);
    if insn.mnemonic() != Mnemonic::Lea
        && (!expected(base, &bases) || !expected(index, &reserved.indexes))
    {
        return None;
    }
    if operand.fixed_base != (base == Register::None || base.is_ip())
        && !matches!(insn.memory_displ_size(), 4 | 8)
    {
        return None;
    }
    let bit_string = matches!(
        insn.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    ) && insn.op1_kind() == OpKind::Register;
    if bit_string {
        let register = number(insn.op1_register());
        if reserved.has(register as u8) {
            return None;
        }
        piece_prefix(piece, register as u8, random.below(0x1000) as u32);
        written.push(register);
    }
    Some(())
}
