//! The encodings of the usual integer instructions on host registers, which are most of what is
//! emitted: a table and a ModRM byte, where iced-x86's encoder looks at everything an instruction could
//! be. The bytes are the same; a test compares them.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::encoded::Encoded;
use super::encoding_rows;
use super::registers::{is_high_byte, number};

/// How an instruction names its operands.
#[derive(Clone, Copy)]
pub(super) enum Form {
    /// Register, then register or memory.
    Load,
    /// Register or memory, then register.
    Store,
    /// Register or memory, then a constant of 8 bits; the register field is an extension.
    Short(u8),
    /// Likewise, of 32 bits.
    Long(u8),
    /// Register or memory, alone or with what its opcode implies.
    Alone(u8),
    /// RAX or a part of it, then a constant of 8 bits, and no ModRM byte.
    AccumulatorShort,
    /// Likewise, of 32 bits.
    AccumulatorLong,
    /// A register in the opcode, then a constant of 32 bits.
    InOpcode,
}

/// The bytes that say what an instruction does.
#[derive(Clone, Copy)]
pub(super) enum Opcode {
    /// One.
    Short(u8),
    /// One behind the escape.
    Long(u8),
}

impl Opcode {
    /// With other bits in the last byte.
    fn map(self, change: impl FnOnce(u8) -> u8) -> Opcode {
        match self {
            Opcode::Short(byte) => Opcode::Short(change(byte)),
            Opcode::Long(byte) => Opcode::Long(change(byte)),
        }
    }
}

/// Opcode, form, and whether operands have 64 bits.
pub(super) type Row = (Opcode, Form, bool);

/// The eight operations whose opcodes are alike.
macro_rules! arithmetic {
    ($code:expr, $($number:literal $rm32:ident $r32:ident $short32:ident $long32:ident
        $rm64:ident $r64:ident $short64:ident $long64:ident;)*) => {
        match $code {
            $(
                Code::$rm32 => Some((Opcode::Short($number << 3 | 1), Form::Store, false)),
                Code::$r32 => Some((Opcode::Short($number << 3 | 3), Form::Load, false)),
                Code::$short32 => Some((Opcode::Short(0x83), Form::Short($number), false)),
                Code::$long32 => Some((Opcode::Short(0x81), Form::Long($number), false)),
                Code::$rm64 => Some((Opcode::Short($number << 3 | 1), Form::Store, true)),
                Code::$r64 => Some((Opcode::Short($number << 3 | 3), Form::Load, true)),
                Code::$short64 => Some((Opcode::Short(0x83), Form::Short($number), true)),
                Code::$long64 => Some((Opcode::Short(0x81), Form::Long($number), true)),
            )*
            _ => None,
        }
    };
}

fn arithmetic(code: Code) -> Option<Row> {
    arithmetic!(code,
        0 Add_rm32_r32 Add_r32_rm32 Add_rm32_imm8 Add_rm32_imm32
            Add_rm64_r64 Add_r64_rm64 Add_rm64_imm8 Add_rm64_imm32;
        1 Or_rm32_r32 Or_r32_rm32 Or_rm32_imm8 Or_rm32_imm32
            Or_rm64_r64 Or_r64_rm64 Or_rm64_imm8 Or_rm64_imm32;
        2 Adc_rm32_r32 Adc_r32_rm32 Adc_rm32_imm8 Adc_rm32_imm32
            Adc_rm64_r64 Adc_r64_rm64 Adc_rm64_imm8 Adc_rm64_imm32;
        3 Sbb_rm32_r32 Sbb_r32_rm32 Sbb_rm32_imm8 Sbb_rm32_imm32
            Sbb_rm64_r64 Sbb_r64_rm64 Sbb_rm64_imm8 Sbb_rm64_imm32;
        4 And_rm32_r32 And_r32_rm32 And_rm32_imm8 And_rm32_imm32
            And_rm64_r64 And_r64_rm64 And_rm64_imm8 And_rm64_imm32;
        5 Sub_rm32_r32 Sub_r32_rm32 Sub_rm32_imm8 Sub_rm32_imm32
            Sub_rm64_r64 Sub_r64_rm64 Sub_rm64_imm8 Sub_rm64_imm32;
        6 Xor_rm32_r32 Xor_r32_rm32 Xor_rm32_imm8 Xor_rm32_imm32
            Xor_rm64_r64 Xor_r64_rm64 Xor_rm64_imm8 Xor_rm64_imm32;
        7 Cmp_rm32_r32 Cmp_r32_rm32 Cmp_rm32_imm8 Cmp_rm32_imm32
            Cmp_rm64_r64 Cmp_r64_rm64 Cmp_rm64_imm8 Cmp_rm64_imm32;
    )
}

fn row(code: Code) -> Option<Row> {
    Some(match code {
        Code::Mov_r32_rm32 => (Opcode::Short(0x8b), Form::Load, false),
        Code::Mov_r64_rm64 => (Opcode::Short(0x8b), Form::Load, true),
        Code::Mov_rm32_r32 => (Opcode::Short(0x89), Form::Store, false),
        Code::Mov_rm64_r64 => (Opcode::Short(0x89), Form::Store, true),
        Code::Lea_r32_m => (Opcode::Short(0x8d), Form::Load, false),
        Code::Lea_r64_m => (Opcode::Short(0x8d), Form::Load, true),
        Code::Test_rm32_r32 => (Opcode::Short(0x85), Form::Store, false),
        Code::Test_rm64_r64 => (Opcode::Short(0x85), Form::Store, true),
        Code::Movsxd_r64_rm32 => (Opcode::Short(0x63), Form::Load, true),
        Code::Movzx_r32_rm16 => (Opcode::Long(0xb7), Form::Load, false),
        Code::Movsx_r32_rm16 => (Opcode::Long(0xbf), Form::Load, false),
        Code::Movsx_r64_rm16 => (Opcode::Long(0xbf), Form::Load, true),
        Code::Imul_r32_rm32 => (Opcode::Long(0xaf), Form::Load, false),
        Code::Imul_r64_rm64 => (Opcode::Long(0xaf), Form::Load, true),
        Code::Mov_rm32_imm32 => (Opcode::Short(0xc7), Form::Long(0), false),
        Code::Mov_rm64_imm32 => (Opcode::Short(0xc7), Form::Long(0), true),
        Code::Rol_rm32_imm8 => (Opcode::Short(0xc1), Form::Short(0), false),
        Code::Rol_rm64_imm8 => (Opcode::Short(0xc1), Form::Short(0), true),
        Code::Ror_rm32_imm8 => (Opcode::Short(0xc1), Form::Short(1), false),
        Code::Ror_rm64_imm8 => (Opcode::Short(0xc1), Form::Short(1), true),
        Code::Shl_rm32_imm8 => (Opcode::Short(0xc1), Form::Short(4), false),
        Code::Shl_rm64_imm8 => (Opcode::Short(0xc1), Form::Short(4), true),
        Code::Shr_rm32_imm8 => (Opcode::Short(0xc1), Form::Short(5), false),
        Code::Shr_rm64_imm8 => (Opcode::Short(0xc1), Form::Short(5), true),
        Code::Sar_rm32_imm8 => (Opcode::Short(0xc1), Form::Short(7), false),
        Code::Sar_rm64_imm8 => (Opcode::Short(0xc1), Form::Short(7), true),
        _ => return arithmetic(code),
    })
}

/// Encodes an instruction of 64-bit code; `None`: it is not among the usual ones. `replaced`: its operand in memory,
/// if that is not the one that it names.
pub(super) fn encode(insn: &Instruction, replaced: Option<&Memory>) -> Option<Encoded> {
    let (opcode, form, wide) = row(insn.code()).or_else(|| encoding_rows::more(insn.code()))?;
    let prefixed = insn.has_rep_prefix()
        || insn.has_repne_prefix()
        || insn.has_lock_prefix()
        || (replaced.is_none() && insn.segment_prefix() != Register::None);
    if prefixed {
        return None;
    }
    let mut rex = if wide { WIDE } else { 0 };
    let mut named = |register: Register| {
        rex |= prefix_of(register)?;
        Some(number(register) as u8)
    };
    let (field, operand) = match form {
        Form::Load => (named(insn.op0_register())?, 1),
        Form::Store => (named(insn.op1_register())?, 0),
        Form::Short(extension) | Form::Long(extension) | Form::Alone(extension) => (extension, 0),
        Form::AccumulatorShort | Form::AccumulatorLong => {
            return Some(constant(insn, form, with_prefix((rex, opcode), 0, 0)));
        }
        Form::InOpcode => {
            let register = number(insn.op0_register()) as u8;
            let opcode = opcode.map(|byte| byte | register & 7);
            let head = with_prefix((extending(0, 0, register), opcode), 0, 0);
            return Some(constant(insn, form, head));
        }
    };
    let head = match insn.op_kind(operand) {
        OpKind::Register => {
            let register = named(insn.op_register(operand))?;
            with_register((rex, opcode), field, register)
        }
        OpKind::Memory if let Some(memory) = replaced => with_memory((rex, opcode), field, memory),
        OpKind::Memory => {
            let (base, index) = (insn.memory_base(), insn.memory_index());
            let named = |register: Register| register.is_gpr64().then(|| number(register) as u8);
            if insn.memory_displ_size() > 1 || index == Register::RSP {
                return None;
            }
            let memory = Memory {
                base: named(base)?,
                index: match index {
                    Register::None => NO_INDEX,
                    index => named(index)?,
                },
                scale: insn.memory_index_scale(),
                displacement: i32::try_from(insn.memory_displacement64() as i64).ok()?,
                displaced: insn.memory_displ_size() != 0,
            };
            with_memory((rex, opcode), field, &memory)
        }
        _ => return None,
    };
    Some(constant(insn, form, head))
}

/// REX without further bits, and with W.
pub(super) const REX: u8 = 0x40;
pub(super) const WIDE: u8 = 0x48;
/// The number of RSP, which no index has: there is none.
pub(super) const NO_INDEX: u8 = 4;

/// The prefix without which an operand is another register; `None`: with any prefix it is.
fn prefix_of(register: Register) -> Option<u8> {
    match register {
        _ if is_high_byte(register) => None,
        // AH, CH, DH and BH.
        Register::SPL | Register::BPL | Register::SIL | Register::DIL => Some(REX),
        _ => Some(0),
    }
}

/// An operand in memory with a base register.
#[derive(Clone, Copy)]
pub(super) struct Memory {
    pub base: u8,
    pub index: u8,
    pub scale: u32,
    pub displacement: i32,
    /// It has a displacement even if that is 0.
    pub displaced: bool,
}

/// The bits of a REX prefix for registers from R8 on.
fn extending(field: u8, index: u8, base: u8) -> u8 {
    let bits = field >> 3 << 2 | index >> 3 << 1 | base >> 3;
    if bits == 0 { 0 } else { REX | bits }
}

/// Prefix, opcode, and what is behind it in so many bytes.
fn with_prefix((rex, opcode): (u8, Opcode), operands: u64, count: usize) -> Encoded {
    let (mut bytes, mut len) = match opcode {
        Opcode::Short(byte) => (operands << 8 | u64::from(byte), count + 1),
        Opcode::Long(byte) => (operands << 16 | u64::from(byte) << 8 | 0x0f, count + 2),
    };
    if rex != 0 {
        (bytes, len) = (bytes << 8 | u64::from(rex), len + 1);
    }
    Encoded::new(bytes.into(), len)
}

/// An instruction on a register or an extension, and a register.
pub(super) fn with_register((rex, opcode): (u8, Opcode), field: u8, register: u8) -> Encoded {
    let rex = rex | extending(field, 0, register);
    let modrm = 0xc0 | (field & 7) << 3 | register & 7;
    with_prefix((rex, opcode), modrm.into(), 1)
}

/// An instruction on a register or an extension, and memory.
pub(super) fn with_memory((rex, opcode): (u8, Opcode), field: u8, memory: &Memory) -> Encoded {
    let &Memory { base, index, .. } = memory;
    let (mode, displacement, count) = match (memory.displacement, i8::try_from(memory.displacement))
    {
        // RBP and R13 have no form without one.
        (0, _) if !memory.displaced && base & 7 != 5 => (0, 0, 0),
        (_, Ok(near)) => (0x40, u64::from(near as u8), 1),
        (far, Err(_)) => (0x80, u64::from(far as u32), 4),
    };
    let rex = rex | extending(field, index, base);
    let modrm = mode | (field & 7) << 3;
    let head = if index == NO_INDEX && base & 7 != 4 {
        with_prefix((rex, opcode), (modrm | base & 7).into(), 1)
    } else {
        let scale = memory.scale.trailing_zeros() as u8;
        let sib = scale << 6 | (index & 7) << 3 | base & 7;
        with_prefix((rex, opcode), u64::from(modrm | 4) | u64::from(sib) << 8, 2)
    };
    head.append(displacement, count)
}

/// Appends the constant that a form ends with.
fn constant(insn: &Instruction, form: Form, head: Encoded) -> Encoded {
    match form {
        Form::Short(_) | Form::AccumulatorShort => head.append((insn.immediate(1) as u8).into(), 1),
        Form::Long(_) | Form::AccumulatorLong | Form::InOpcode => {
            head.append((insn.immediate(1) as u32).into(), 4)
        }
        Form::Load | Form::Store | Form::Alone(_) => head,
    }
}

/// Encodes an instruction on registers with `gs:[slot]` in place of one of them, which stands there with all
/// its 64 bits. `None`: it is not among the usual ones, has no such form, or writes 32 bits, of which a register
/// clears the upper half.
pub(super) fn encode_in_memory(insn: &Instruction, operand: u32, slot: i32) -> Option<Encoded> {
    let code = insn.code();
    if code == Code::Mov_r32_imm32 {
        // Constants that do not change by being extended.
        let constant = i32::try_from(insn.immediate32()).ok()?;
        let head = Encoded::of(&[0x65, 0x48, 0xc7]).absolute(0, slot);
        return Some(head.append((constant as u32).into(), 4));
    }
    let (opcode, form, wide) = row(code)?;
    let compares = matches!(insn.mnemonic(), Mnemonic::Cmp | Mnemonic::Test);
    if insn.mnemonic() == Mnemonic::Lea || (operand == 0 && !wide && !compares) {
        return None;
    }
    let (field, usual) = match form {
        Form::Load => (number(insn.op_register(1 - operand)) as u8, 1),
        Form::Store => (number(insn.op_register(1 - operand)) as u8, 0),
        Form::Short(extension) | Form::Long(extension) => (extension, 0),
        Form::Alone(_) | Form::AccumulatorShort | Form::AccumulatorLong | Form::InOpcode => {
            return None;
        }
    };
    // Where the operation has both forms, a bit of its opcode says which.
    let turned = match insn.mnemonic() {
        _ if operand == usual => 0,
        Mnemonic::Test => 0,
        Mnemonic::Mov => 2,
        _ => arithmetic(code).map(|_| 2)?,
    };
    let rex = if wide { WIDE } else { 0 } | extending(field, 0, 0);
    let opcode = opcode.map(|byte| byte ^ turned);
    let head = with_prefix((rex, opcode), 0, 0).behind(0x65);
    let head = head.absolute(field, slot);
    Some(constant(insn, form, head))
}

#[cfg(test)]
mod tests {
    use iced_x86::{Encoder, MemoryOperand};

    use super::*;
    use crate::random::RandomBytes;

    const REGISTERS: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

    fn compare(insn: &Instruction, compared: &mut usize) {
        let Some(ours) = encode(insn, None) else {
            return;
        };
        let mut encoder = Encoder::new(64);
        encoder.encode(insn, 0).expect("iced-x86 encodes it");
        assert_eq!(ours.to_vec(), encoder.take_buffer(), "{insn:?}");
        *compared += 1;
    }

    #[test]
    fn the_bytes_are_those_of_iced() {
        use super::super::registers::sized;
        let mut compared = 0;
        for code in Code::values().filter(|&code| row(code).is_some()) {
            let (_, form, wide) = row(code).expect("filtered");
            let size = if wide { 8 } else { 4 };
            let source = match code {
                Code::Movsxd_r64_rm32 => 4,
                Code::Movzx_r32_rm16 | Code::Movsx_r32_rm16 | Code::Movsx_r64_rm16 => 2,
                _ => size,
            };
            let memories = REGISTERS.iter().flat_map(|&base| {
                let indexes = [None, Some(1u8), Some(5), Some(12), Some(13)];
                indexes.into_iter().flat_map(move |index| {
                    [0i64, 1, -128, 127, 128, -129, 0x2000_5000].map(|displacement| {
                        MemoryOperand::new(
                            sized(base, 8),
                            index.map_or(Register::None, |index| sized(index, 8)),
                            if index == Some(5) { 8 } else { 1 },
                            displacement,
                            u32::from(displacement != 0),
                            false,
                            Register::None,
                        )
                    })
                })
            });
            for memory in memories {
                for register in [0, 5, 9, 15] {
                    let insn = match form {
                        Form::Load => Instruction::with2(code, sized(register, size), memory),
                        Form::Store => Instruction::with2(code, memory, sized(register, size)),
                        Form::Short(_) => Instruction::with2(code, memory, 0x1f),
                        Form::Long(_) => Instruction::with2(code, memory, -0x1234_5678),
                        _ => unreachable!("among the further rows only"),
                    };
                    compare(&insn.expect("the form exists"), &mut compared);
                }
            }
            for (first, second) in REGISTERS
                .iter()
                .flat_map(|&a| [0, 4, 9, 13].map(|b| (a, b)))
            {
                let insn = match form {
                    Form::Load if code == Code::Lea_r32_m || code == Code::Lea_r64_m => continue,
                    Form::Load => {
                        Instruction::with2(code, sized(first, size), sized(second, source))
                    }
                    Form::Store => {
                        Instruction::with2(code, sized(first, size), sized(second, size))
                    }
                    Form::Short(_) => Instruction::with2(code, sized(first, size), 0x1f),
                    Form::Long(_) => Instruction::with2(code, sized(first, size), 0x1234_5678),
                    _ => unreachable!("among the further rows only"),
                };
                compare(&insn.expect("the form exists"), &mut compared);
            }
        }
        assert!(compared > 100_000, "{compared}");
    }

    /// Byte strings of all kinds, as they are decoded.
    #[test]
    fn the_bytes_of_further_rows_are_those_of_iced() {
        let mut random = RandomBytes::new();
        let mut compared = 0;
        let mut seen = std::collections::HashSet::new();
        for _ in 0..3_000_000 {
            let mut bytes = random.bytes();
            let chosen = random.next();
            let mut at = 0;
            if chosen & 1 != 0 {
                bytes[at] = 0x40 | bytes[at] & 0xf;
                at += 1;
            }
            if chosen & 2 != 0 {
                bytes[at] = 0x0f;
            }
            let mut insn = iced_x86::Decoder::new(64, &bytes, 0).decode();
            // Iced-x86 keeps the scale of no register.
            if insn.memory_index() == Register::None {
                insn.set_memory_index_scale(1);
            }
            let before = compared;
            if !insn.is_invalid() {
                compare(&insn, &mut compared);
            }
            if compared != before {
                seen.insert(insn.code());
            }
        }
        let mut rows = 0;
        for code in Code::values().filter(|&code| encoding_rows::more(code).is_some()) {
            assert!(seen.contains(&code), "{code:?}");
            rows += 1;
        }
        assert!(rows > 100 && compared > 400_000, "{rows} {compared}");
    }

    /// A slot in place of each operand in turn: what is decoded does what the instruction says.
    #[test]
    fn operands_in_memory_are_decoded_as_such() {
        use super::super::registers::sized;
        const SLOT: i32 = 0x21_2780;
        let mut decoded = 0;
        for code in Code::values().filter(|&code| row(code).is_some()) {
            let (_, form, wide) = row(code).expect("filtered");
            let size = if wide { 8 } else { 4 };
            let source = code.op_code().op1_kind();
            use iced_x86::OpCodeOperandKind as Kind;
            let source = match source {
                Kind::r16_or_mem => 2,
                Kind::r32_or_mem => 4,
                _ => size,
            };
            for operand in 0..2 {
                for other in [0, 3, 9, 15] {
                    let registers = [sized(other, size), sized(other, source)];
                    let insn = match form {
                        Form::Load | Form::Store => {
                            Instruction::with2(code, registers[0], registers[1])
                        }
                        Form::Short(_) => Instruction::with2(code, registers[0], 0x1f),
                        Form::Long(_) => Instruction::with2(code, registers[0], 0x1234_5678),
                        _ => unreachable!("among the further rows only"),
                    };
                    let Ok(insn) = insn else { continue };
                    if operand == 1 && matches!(form, Form::Short(_) | Form::Long(_)) {
                        continue;
                    }
                    let Some(bytes) = encode_in_memory(&insn, operand, SLOT) else {
                        continue;
                    };
                    let found = iced_x86::Decoder::new(64, &bytes.to_vec(), 0).decode();
                    let what = format!("{insn} with operand {operand} in memory: {found}");
                    assert_eq!(found.len(), bytes.len(), "{what}");
                    assert_eq!(found.mnemonic(), insn.mnemonic(), "{what}");
                    assert_eq!(found.segment_prefix(), Register::GS, "{what}");
                    assert_eq!(found.memory_displacement64(), SLOT as u64, "{what}");
                    assert_eq!(found.memory_base(), Register::None, "{what}");
                    assert_eq!(found.memory_index(), Register::None, "{what}");
                    let replaced = insn.op_register(operand).size();
                    assert_eq!(found.memory_size().size(), replaced, "{what}");
                    // TEST has its operands in either order.
                    let turns = insn.mnemonic() == Mnemonic::Test && operand == 1;
                    let at = if turns { 0 } else { operand };
                    assert_eq!(found.op_kind(at), OpKind::Memory, "{what}");
                    match form {
                        Form::Load | Form::Store => assert_eq!(
                            found.op_register(1 - at),
                            insn.op_register(1 - operand),
                            "{what}"
                        ),
                        _ => assert_eq!(found.immediate(1), insn.immediate(1), "{what}"),
                    }
                    decoded += 1;
                }
            }
        }
        assert!(decoded > 300, "{decoded}");
    }
}
