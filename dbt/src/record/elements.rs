//! String instructions. Without a prefix they are moves and comparisons of one element: the ordinary instructions that
//! they are like, and what they do to their index registers.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::class::{Kind, Operand};
use crate::guest::Mode;

/// The codes of an ordinary instruction, by the size of its operands.
type Codes = [Code; 4];

const LOAD: Codes = [
    Code::Mov_r8_rm8,
    Code::Mov_r16_rm16,
    Code::Mov_r32_rm32,
    Code::Mov_r64_rm64,
];
const STORE: Codes = [
    Code::Mov_rm8_r8,
    Code::Mov_rm16_r16,
    Code::Mov_rm32_r32,
    Code::Mov_rm64_r64,
];
const COMPARE: Codes = [
    Code::Cmp_r8_rm8,
    Code::Cmp_r16_rm16,
    Code::Cmp_r32_rm32,
    Code::Cmp_r64_rm64,
];
const ACCUMULATOR: [Register; 4] = [Register::AL, Register::AX, Register::EAX, Register::RAX];

/// How a string instruction is translated, if it has no prefix that repeats it and its addresses are of a usual form.
pub(super) fn kind(insn: &Instruction, mode: Mode) -> Option<Kind> {
    use Mnemonic::*;
    // Instructions on vectors have the same names.
    if !insn.is_string_instruction()
        || repeats(insn)
        || !indexes(insn).all(|index| index.is_usual(insn, mode))
    {
        return None;
    }
    Some(match insn.mnemonic() {
        Lodsb | Lodsw | Lodsd | Lodsq | Scasb | Scasw | Scasd | Scasq => {
            Kind::Element(Operand::Read)
        }
        Stosb | Stosw | Stosd | Stosq => Kind::Element(Operand::Write),
        Movsb | Movsw | Movsd | Movsq => Kind::ElementPair(Operand::Write),
        Cmpsb | Cmpsw | Cmpsd | Cmpsq => Kind::ElementPair(Operand::Read),
        _ => return None,
    })
}

/// Whether a string instruction has a prefix that repeats it as often as RCX says.
pub(super) fn repeats(insn: &Instruction) -> bool {
    insn.has_rep_prefix() || insn.has_repne_prefix()
}

/// Whether it is SCAS or CMPS with a prefix that repeats it.
pub(super) fn scans(insn: &Instruction) -> bool {
    use Mnemonic::*;
    let compares = matches!(
        insn.mnemonic(),
        Scasb | Scasw | Scasd | Scasq | Cmpsb | Cmpsw | Cmpsd | Cmpsq
    );
    compares && insn.is_string_instruction() && repeats(insn)
}

/// Whether a string instruction's addresses are as wide as the mode's, in segments that begin at 0.
pub(super) fn flat(insn: &Instruction, mode: Mode) -> bool {
    let width = if mode.has(Mode::CODE64) { 8 } else { 4 };
    let flat = match insn.segment_prefix() {
        Register::FS | Register::GS => false,
        Register::CS => width == 8,
        _ => !mode.segmented(),
    };
    flat && indexes(insn).all(|index| index.register.size() == width)
}

/// An index register, as wide as addresses are.
#[derive(Clone, Copy)]
pub(crate) struct Index {
    /// The register.
    pub register: Register,
    /// It leads to the source, whose segment a prefix may choose.
    source: bool,
}

impl Index {
    fn of(kind: OpKind) -> Option<Index> {
        let (register, source) = match kind {
            OpKind::MemorySegSI => (Register::SI, true),
            OpKind::MemorySegESI => (Register::ESI, true),
            OpKind::MemorySegRSI => (Register::RSI, true),
            OpKind::MemoryESDI => (Register::DI, false),
            OpKind::MemoryESEDI => (Register::EDI, false),
            OpKind::MemoryESRDI => (Register::RDI, false),
            _ => return None,
        };
        Some(Index { register, source })
    }

    /// Whether emitted code makes such addresses.
    fn is_usual(self, insn: &Instruction, mode: Mode) -> bool {
        let prefix = insn.segment_prefix();
        let based = self.source && matches!(prefix, Register::FS | Register::GS);
        match self.register.size() {
            _ if mode.segmented() => true,
            8 => true,
            // A flat code segment is perhaps not readable.
            4 => !based && (mode.has(Mode::CODE64) || !self.source || prefix != Register::CS),
            _ => false,
        }
    }

    /// A load of an element to the accumulator by this register.
    fn load(self, insn: &Instruction) -> Instruction {
        let mut load = *insn;
        let row = row(insn);
        load.set_code(LOAD[row]);
        load.set_op0_kind(OpKind::Register);
        load.set_op0_register(ACCUMULATOR[row]);
        load.set_op1_kind(OpKind::Memory);
        load.set_memory_base(self.register);
        load.set_memory_index(Register::None);
        load.set_memory_index_scale(1);
        load.set_memory_displacement64(0);
        load.set_memory_displ_size(0);
        if !self.source {
            load.set_segment_prefix(Register::ES);
        }
        load
    }
}

/// The logarithm of the bytes in an element: its row in [`Codes`].
pub(crate) fn row(insn: &Instruction) -> usize {
    size(insn).trailing_zeros() as usize
}

/// Bytes in an element.
pub(crate) fn size(insn: &Instruction) -> u32 {
    insn.memory_size().size() as u32
}

/// The index registers of a string instruction, that of the source first.
pub(crate) fn indexes(insn: &Instruction) -> impl Iterator<Item = Index> + use<> {
    let operands = [insn.op0_kind(), insn.op1_kind()].map(Index::of);
    let of = move |source| move |index: &Index| index.source == source;
    let find = move |source| operands.into_iter().flatten().find(of(source));
    find(true).into_iter().chain(find(false))
}

/// Loads of what an instruction has in memory, the source first.
pub(crate) fn loads(insn: &Instruction) -> impl Iterator<Item = Instruction> + use<> {
    let insn = *insn;
    indexes(&insn).map(move |index| index.load(&insn))
}

/// LODS, STOS and SCAS as MOV and CMP.
pub(crate) fn ordinary(insn: &Instruction) -> Option<Instruction> {
    use Mnemonic::*;
    let mut ordinary = loads(insn).next()?;
    match insn.mnemonic() {
        Stosb | Stosw | Stosd | Stosq => {
            ordinary.set_code(STORE[row(insn)]);
            ordinary.set_op0_kind(OpKind::Memory);
            ordinary.set_op1_kind(OpKind::Register);
            ordinary.set_op1_register(ACCUMULATOR[row(insn)]);
        }
        Scasb | Scasw | Scasd | Scasq => ordinary.set_code(COMPARE[row(insn)]),
        _ => {}
    }
    Some(ordinary)
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    /// As they are written, with what the index registers are.
    #[test]
    fn string_instructions_are_like_ordinary_ones() {
        let cases: [(u32, &[u8], &str, &[Register]); 7] = [
            (64, &[0xac], "mov al,[rsi]", &[Register::RSI]),
            (
                64,
                &[0x65, 0x48, 0xad],
                "mov rax,gs:[rsi]",
                &[Register::RSI],
            ),
            (64, &[0x67, 0xab], "mov [edi],eax", &[Register::EDI]),
            (32, &[0x66, 0xaf], "cmp ax,es:[edi]", &[Register::EDI]),
            (16, &[0x2e, 0xac], "mov al,cs:[si]", &[Register::SI]),
            (64, &[0xa6], "mov al,[rsi]", &[Register::RSI, Register::RDI]),
            (16, &[0xa5], "mov ax,[si]", &[Register::SI, Register::DI]),
        ];
        for (bits, bytes, expected, registers) in cases {
            let insn = Decoder::new(bits, bytes, DecoderOptions::NONE).decode();
            let found = ordinary(&insn).expect("a string instruction");
            assert_eq!(found.to_string(), expected, "{insn}");
            let found: Vec<Register> = indexes(&insn).map(|index| index.register).collect();
            assert_eq!(found, registers, "{insn}");
        }
    }
}
