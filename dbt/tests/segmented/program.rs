//! Random programs of 16-bit or 32-bit code, which end at HLT or at a fault.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, RflagsBits};

use crate::common::Random;
use crate::machine::{Kind, SELECTORS};

/// Whether interpreter and translator have to agree on all that an instruction leaves, AF aside.
pub fn defined(insn: &Instruction) -> bool {
    let shows_flags = matches!(
        insn.mnemonic(),
        Mnemonic::Rcl | Mnemonic::Rcr | Mnemonic::Pushf | Mnemonic::Pushfd
    );
    insn.rflags_undefined() & !RflagsBits::AF == 0
        && insn.rflags_read() & RflagsBits::AF == 0
        && !shows_flags
}

/// Whether a program may have it anywhere.
fn usable(insn: &Instruction) -> bool {
    !insn.is_invalid()
        && insn.flow_control() == FlowControl::Next
        && !insn.is_privileged()
        && defined(insn)
}

fn instruction(random: &mut Random, bits: u32) -> Vec<u8> {
    loop {
        let mut bytes = Vec::new();
        while random.one_in(4) {
            bytes.push(random.pick(&[0x66, 0x67, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65]));
        }
        // The stack's instructions, strings, and those that name memory, more often than chance has it.
        match random.below(9) {
            0 => bytes.push(
                random.pick(&[0x50, 0x58, 0x06, 0x16, 0x1e, 0x60, 0x6a, 0xc8])
                    | random.below(8) as u8,
            ),
            1 => bytes.push(0x0f),
            // XLAT, ENTER of one level, LEAVE.
            2 if random.one_in(3) => bytes.push(0xd7),
            2 if random.one_in(3) => bytes.extend([0xc8, random.below(64) as u8, 0, 0]),
            2 if random.one_in(3) => bytes.push(0xc9),
            2 => bytes.extend([0xff, 0x30 | random.next() as u8 & 0xc7]),
            3 => bytes.push(random.pick(&[0xa4, 0xa6, 0xaa, 0xac, 0xae]) | random.next() as u8 & 1),
            4 => bytes.extend(random.pick(&[[0x8f, 0], [0x0f, 0xc7]])),
            5 if random.one_in(4) => {
                // LDMXCSR, STMXCSR, CLFLUSH.
                let field = random.pick(&[0x10, 0x18, 0x38]);
                bytes.extend([0x0f, 0xae, field | random.next() as u8 & 0x87]);
            }
            _ => {}
        }
        bytes.extend(random.next().to_le_bytes());
        bytes.extend(random.next().to_le_bytes());
        let insn = Decoder::with_ip(bits, &bytes, 0, DecoderOptions::NONE).decode();
        if usable(&insn) {
            bytes.truncate(insn.len());
            return bytes;
        }
    }
}

/// Some instructions in a row.
fn straight(random: &mut Random, bits: u32, most: u64) -> Vec<u8> {
    let count = 1 + random.below(most);
    (0..count).flat_map(|_| instruction(random, bits)).collect()
}

/// A load of ES, DS, FS or GS: from a register, from the stack, or with an offset from there.
fn load_segment(random: &mut Random, kind: Kind) -> Vec<u8> {
    let selector = match kind {
        Kind::Real | Kind::Vm86 => 0x1000 + random.below(0x8000) as u16,
        _ => random.pick(&SELECTORS),
    };
    let [low, high] = selector.to_le_bytes();
    let operand = &[low, high, 0, 0][..kind.bits() as usize / 8];
    let from_register = random.one_in(2);
    let mut code = vec![if from_register { 0xb8 } else { 0x68 }];
    code.extend(operand);
    if !from_register && kind.bits() == 16 && random.one_in(2) {
        // push bx; mov bp, sp; lds, les, lfs or lgs cx, [bp]; pop bx, twice.
        code.extend([0x53, 0x89, 0xe5]);
        let opcode = random.pick(&[&[0xc5][..], &[0xc4], &[0x0f, 0xb4], &[0x0f, 0xb5]]);
        code.extend(opcode);
        code.extend([0x4e, 0, 0x5b, 0x5b]);
        return code;
    }
    if from_register {
        code.push(0x8e);
    }
    let popped: &[u8] = match random.below(4) {
        0 => &[0x07],
        1 => &[0x1f],
        2 => &[0x0f, 0xa1],
        _ => &[0x0f, 0xa9],
    };
    match code.last() {
        Some(0x8e) if from_register => code.push(0xc0 | random.pick(&[0, 3, 4, 5]) << 3),
        _ => code.extend(popped),
    }
    code
}

/// A program for a mode.
pub fn program(random: &mut Random, kind: Kind) -> Vec<u8> {
    let bits = kind.bits();
    let mut code = Vec::new();
    for _ in 0..2 + random.below(6) {
        match random.below(8) {
            0 => {
                // Rounds of something: mov cl, few; ...; LOOP, LOOPE, LOOPNE, or DEC and JNZ.
                code.extend([0xb1, 2 + random.below(5) as u8]);
                let body = straight(random, bits, 3);
                let length = body.len() as u8;
                code.extend(body);
                match random.below(3) {
                    0 => code.extend([0xfe, 0xc9, 0x75, 0u8.wrapping_sub(length + 4)]),
                    _ => {
                        let opcode = random.pick(&[0xe0, 0xe1, 0xe2, 0xe2]);
                        code.extend([opcode, 0u8.wrapping_sub(length + 2)]);
                    }
                }
            }
            1 => {
                // A branch over something: Jcc, JCXZ, JMP.
                let body = straight(random, bits, 2);
                code.push(random.pick(&[0x70, 0x72, 0x74, 0x78, 0x7c, 0xe3, 0xeb]));
                code.push(body.len() as u8);
                code.extend(body);
            }
            2 => {
                // A call of what is behind a jump: both operand sizes.
                let other = random.one_in(4);
                let body = straight(random, bits, 2);
                let wide = (bits == 32) != other;
                let prefix: &[u8] = if other { &[0x66] } else { &[] };
                code.extend(prefix);
                code.extend([0xe8, 2, 0]);
                code.extend(&[0, 0][..if wide { 2 } else { 0 }]);
                code.extend([0xeb, (body.len() + prefix.len() + 1) as u8]);
                code.extend(body);
                code.extend(prefix);
                code.push(0xc3);
            }
            3 => {
                // Back to small numbers: mov bx, si, di or bp.
                let register = random.pick(&[3u8, 5, 6, 7]);
                code.push(0xb8 | register);
                let value = random.below(0x700) as u32;
                code.extend(&value.to_le_bytes()[..bits as usize / 8]);
            }
            4 => code.extend(load_segment(random, kind)),
            5 if kind == Kind::Flat32 => {
                // A few elements of a string: mov ecx, few; REP MOVS or STOS.
                code.extend([0xb9, random.below(6) as u8, 0, 0, 0, 0xf3]);
                code.push(random.pick(&[0xa4, 0xa5, 0xaa, 0xab]));
            }
            _ => code.extend(straight(random, bits, 4)),
        }
    }
    code.push(0xf4);
    code
}

/// For a failure.
pub fn listing(code: &[u8], kind: Kind) -> String {
    Decoder::with_ip(kind.bits(), code, 0, DecoderOptions::NONE)
        .iter()
        .map(|insn| format!("{:04x} {insn}\n", insn.ip()))
        .collect()
}
