//! A decoded form of every instruction that the decoder knows in legacy and VEX encoding, found
//! by trying all opcodes.

use std::collections::BTreeMap;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind};

/// What there is of one code in one mode.
#[derive(Default)]
pub struct Forms {
    /// With registers alone.
    pub registers: Option<(Vec<u8>, Instruction)>,
    /// With a memory operand.
    pub memory: Option<(Vec<u8>, Instruction)>,
}

impl Forms {
    pub fn each(&self) -> impl Iterator<Item = &(Vec<u8>, Instruction)> {
        self.registers.iter().chain(&self.memory)
    }
}

/// Forms by mode (16, 32 or 64 bits) and by code number.
pub type All = BTreeMap<(u32, usize), Forms>;

/// What is tried behind an opcode: a memory operand, then two registers; and enough of them for
/// the instructions that a whole ModRM byte selects.
fn operands() -> impl Iterator<Item = [u8; 9]> {
    (0..=255u8).map(|modrm| [modrm, 1, 2, 3, 4, 5, 6, 7, 8])
}

fn legacy() -> impl Iterator<Item = Vec<u8>> {
    const SWITCHES: [&[u8]; 5] = [&[], &[0x66], &[0xf2], &[0xf3], &[0x66, 0xf2]];
    const REX_W: [&[u8]; 2] = [&[], &[0x48]];
    const MAPS: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    const ADDRESS: [&[u8]; 2] = [&[], &[0x67]];
    ADDRESS.into_iter().flat_map(|address| {
        SWITCHES.into_iter().flat_map(move |switch| {
            REX_W.into_iter().flat_map(move |rex| {
                MAPS.into_iter()
                    .map(move |map| [address, switch, rex, map].concat())
            })
        })
    })
}

fn vex() -> impl Iterator<Item = Vec<u8>> {
    (1..=3u8).flat_map(|map| {
        // W, then vvvv of register 0 or none, or of register 7, then L and pp.
        (0..32u8).map(move |rest| {
            let source = if rest & 16 == 0 { 0x78 } else { 0x40 };
            vec![0xc4, 0xe0 | map, (rest & 8) << 4 | source | rest & 7]
        })
    })
}

fn note(all: &mut All, bits: u32, bytes: &[u8]) {
    let mut decoder = Decoder::with_ip(bits, bytes, 0x1000, DecoderOptions::NONE);
    let insn = decoder.decode();
    if insn.is_invalid() {
        return;
    }
    let forms = all.entry((bits, insn.code() as usize)).or_default();
    let memory = (0..insn.op_count()).any(|op| insn.op_kind(op) == OpKind::Memory);
    let form = if memory {
        &mut forms.memory
    } else {
        &mut forms.registers
    };
    form.get_or_insert_with(|| (bytes[..insn.len()].to_vec(), insn));
}

/// All forms.
pub fn all() -> All {
    let mut all = All::new();
    for bits in [16, 32, 64] {
        for start in legacy().chain(vex()) {
            for opcode in 0..=255 {
                for rest in operands() {
                    let bytes = [&start[..], &[opcode], &rest[..]].concat();
                    note(&mut all, bits, &bytes);
                }
            }
        }
    }
    all
}

/// The code of a number in [`All`].
pub fn code(number: usize) -> Code {
    Code::values().nth(number).expect("a code's number")
}
