//! What REP STOS and REP MOVS do within a page, by the host's vector registers: shared code that
//! fills or copies up to a page in all copies of memory in one pass. The host's own string
//! instructions take some 30 cycles to begin, for each copy again.
//!
//! YMM16 to YMM19 are nobody's: the guest is not told of AVX-512, and what writes them leaves the
//! upper halves of the others clean.

use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm};
use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};

use super::operands::HostMemory;
use super::trampoline::here;
use crate::cache::CodeOffset;

/// Shared code for REP STOS and REP MOVS.
#[derive(Clone, Copy, Debug)]
pub struct Bulk {
    /// Called with the native address in RSI, a number of bytes in RCX, the pattern in YMM16, and
    /// in EDI the bits of an address that are 0 where an element begins. Spoils these and EFLAGS.
    pub(super) fill: CodeOffset,
    /// Called with the native source in RSI, the native destination in RDI and a number of bytes in
    /// RCX. The destination does not begin within the source. Spoils these and EFLAGS.
    pub(super) copy: CodeOffset,
}

/// Whether this host has the instructions.
pub fn is_possible() -> bool {
    std::arch::is_x86_feature_detected!("avx512vl")
        && std::arch::is_x86_feature_detected!("avx512bw")
}

/// How much one instruction moves.
#[derive(Clone, Copy)]
pub(super) enum Piece {
    Ymm,
    Xmm,
    Quad,
    Double,
}

/// A vector register by number, from 16 on.
fn register(piece: Piece, number: u32) -> Register {
    match piece {
        Piece::Ymm => Register::YMM0 + number,
        _ => Register::XMM0 + number,
    }
}

/// Memory at the sum of two registers, or one, and a displacement.
pub(super) fn memory(base: Register, index: Register, displacement: i32) -> HostMemory {
    HostMemory {
        base,
        index,
        scale: 1,
        displacement,
    }
}

/// An offset from GS.
fn of_block(offset: i32) -> MemoryOperand {
    MemoryOperand::new(
        Register::None,
        Register::None,
        1,
        offset.into(),
        8,
        false,
        Register::GS,
    )
}

/// `vpbroadcast ymm16, rax` of elements of so many bytes.
pub(super) fn broadcast(size: u32) -> Instruction {
    let (code, from) = match size {
        1 => (Code::EVEX_Vpbroadcastb_ymm_k1z_r32, Register::EAX),
        2 => (Code::EVEX_Vpbroadcastw_ymm_k1z_r32, Register::EAX),
        4 => (Code::EVEX_Vpbroadcastd_ymm_k1z_r32, Register::EAX),
        _ => (Code::EVEX_Vpbroadcastq_ymm_k1z_r64, Register::RAX),
    };
    Instruction::with2(code, Register::YMM16, from).expect("these are its operands")
}

/// Emits moves of vector registers that are nobody's.
pub(super) struct Writer<'a> {
    pub(super) ops: &'a mut VecAssembler<X64Relocation>,
    encoder: Encoder,
    copies: i32,
    stride: i32,
}

impl Writer<'_> {
    /// For memory in so many copies, each `stride` bytes from the one before.
    pub(super) fn new(
        ops: &mut VecAssembler<X64Relocation>,
        copies: usize,
        stride: i32,
    ) -> Writer<'_> {
        Writer {
            ops,
            encoder: Encoder::new(64),
            copies: copies as i32,
            stride,
        }
    }

    fn instruction(&mut self, insn: Result<Instruction, iced_x86::IcedError>) {
        let insn = insn.expect("the operands are those of its form");
        let done = self.encoder.encode(&insn, 0);
        done.expect("every such address can be encoded");
        let bytes = self.encoder.take_buffer();
        self.ops.extend(bytes.iter());
    }

    /// Loads a register.
    pub(super) fn load(&mut self, piece: Piece, number: u32, from: HostMemory) {
        self.load_from(piece, number, from.operand());
    }

    fn load_from(&mut self, piece: Piece, number: u32, from: MemoryOperand) {
        let code = match piece {
            Piece::Ymm => Code::EVEX_Vmovdqu64_ymm_k1z_ymmm256,
            Piece::Xmm => Code::EVEX_Vmovdqu64_xmm_k1z_xmmm128,
            Piece::Quad => Code::EVEX_Vmovq_xmm_xmmm64,
            Piece::Double => Code::EVEX_Vmovd_xmm_rm32,
        };
        self.instruction(Instruction::with2(code, register(piece, number), from));
    }

    /// Loads 32 bytes from an offset from GS.
    pub(super) fn take(&mut self, number: u32, offset: i32) {
        self.load_from(Piece::Ymm, number, of_block(offset));
    }

    /// Stores 32 bytes to an offset from GS, which is not the guest's memory.
    pub(super) fn put(&mut self, number: u32, offset: i32) {
        let code = Code::EVEX_Vmovdqu64_ymmm256_k1z_ymm;
        let from = register(Piece::Ymm, number);
        self.instruction(Instruction::with2(code, of_block(offset), from));
    }

    /// Stores registers, 32 bytes apart, to all copies: mirrors first, by the same rule as
    /// `Emitter::store_all`.
    pub(super) fn store(
        &mut self,
        piece: Piece,
        numbers: &[u32],
        (base, index, displacement): (Register, Register, i32),
    ) {
        let code = match piece {
            Piece::Ymm => Code::EVEX_Vmovdqu64_ymmm256_k1z_ymm,
            Piece::Xmm => Code::EVEX_Vmovdqu64_xmmm128_k1z_xmm,
            Piece::Quad => Code::EVEX_Vmovq_xmmm64_xmm,
            Piece::Double => Code::EVEX_Vmovd_rm32_xmm,
        };
        for copy in (0..self.copies).rev() {
            let mut displacement = displacement + copy * self.stride;
            for &number in numbers {
                let to = memory(base, index, displacement).operand();
                self.instruction(Instruction::with2(code, to, register(piece, number)));
                displacement += 32;
            }
        }
    }

    /// Fewer than 32 bytes: two pieces that overlap, for each size of pieces the code that `emit`
    /// makes; goes on behind that for fewer than four.
    fn small(&mut self, mut emit: impl FnMut(&mut Self, Piece, i32)) {
        for (piece, size) in [(Piece::Xmm, 16), (Piece::Quad, 8), (Piece::Double, 4)] {
            dynasm!(self.ops ; .arch x64 ; cmp ecx, size ; jb >smaller);
            emit(self, piece, size);
            dynasm!(self.ops ; .arch x64 ; ret ; smaller:);
        }
    }

    /// What is between the first and the last 32 bytes, from RDI up to 32 bytes before RCX, by what `emit` makes
    /// for so many pieces of 32 bytes: two at a time, then one if some are left. Leaves RCX there.
    fn rounds(&mut self, mut emit: impl FnMut(&mut Self, usize)) {
        dynasm!(self.ops
            ; .arch x64
            ; sub rcx, 64
            ; cmp rdi, rcx
            ; ja >last
            ; again:
        );
        emit(self, 2);
        dynasm!(self.ops
            ; .arch x64
            ; add rdi, 64
            ; cmp rdi, rcx
            ; jbe <again
            ; last:
            ; add rcx, 32
            ; cmp rdi, rcx
            ; jae >done
        );
        emit(self, 1);
        dynasm!(self.ops ; .arch x64 ; done:);
    }

    fn fill(&mut self) -> CodeOffset {
        use Register::{None, RCX, RDI, RSI};
        let start = here(self.ops);
        dynasm!(self.ops ; .arch x64 ; cmp ecx, 32 ; jb >small ; add rcx, rsi);
        self.store(Piece::Ymm, &[16], (RSI, None, 0));
        self.store(Piece::Ymm, &[16], (RCX, None, -32));
        dynasm!(self.ops
            ; .arch x64
            // In between the pattern can be aligned if it begins with an element there.
            ; test esi, edi
            ; lea rdi, [rsi + 32]
            ; jnz >unaligned
            ; and rdi, -32
            ; unaligned:
        );
        self.rounds(|writer, pieces| {
            writer.store(Piece::Ymm, &[16, 16][..pieces], (RDI, None, 0));
        });
        dynasm!(self.ops ; .arch x64 ; ret ; small:);
        self.small(|writer, piece, size| {
            writer.store(piece, &[16], (RSI, None, 0));
            writer.store(piece, &[16], (RSI, RCX, -size));
        });
        let code = Code::EVEX_Vmovd_rm32_xmm;
        self.instruction(Instruction::with2(code, Register::EDI, Register::XMM16));
        dynasm!(self.ops ; .arch x64 ; cmp ecx, 2 ; jb >single);
        for copy in (0..self.copies).rev() {
            let at = copy * self.stride;
            dynasm!(self.ops ; .arch x64 ; mov [rsi + at], di ; mov [rsi + rcx + (at - 2)], di);
        }
        dynasm!(self.ops ; .arch x64 ; ret ; single:);
        for copy in (0..self.copies).rev() {
            dynasm!(self.ops ; .arch x64 ; mov [rsi + copy * self.stride], dil);
        }
        dynasm!(self.ops ; .arch x64 ; ret);
        start
    }

    /// The first and the last bytes are loaded before anything is stored, all others before what is
    /// stored could reach them: a destination may end within the source.
    fn copy(&mut self) -> CodeOffset {
        use Register::{None, RCX, RDI, RSI};
        let start = here(self.ops);
        dynasm!(self.ops ; .arch x64 ; cmp ecx, 32 ; jb >small ; push rdi);
        self.load(Piece::Ymm, 16, memory(RSI, None, 0));
        self.load(Piece::Ymm, 17, memory(RSI, RCX, -32));
        dynasm!(self.ops
            ; .arch x64
            ; add rcx, rdi
            ; sub rsi, rdi
            ; add rdi, 32
            ; and rdi, -32
        );
        self.rounds(|writer, pieces| {
            for (piece, number) in (18..20).take(pieces).enumerate() {
                let from = memory(RDI, RSI, 32 * piece as i32);
                writer.load(Piece::Ymm, number, from);
            }
            writer.store(Piece::Ymm, &[18, 19][..pieces], (RDI, None, 0));
        });
        self.store(Piece::Ymm, &[17], (RCX, None, 0));
        dynasm!(self.ops ; .arch x64 ; pop rdi);
        self.store(Piece::Ymm, &[16], (RDI, None, 0));
        dynasm!(self.ops ; .arch x64 ; ret ; small:);
        self.small(|writer, piece, size| {
            writer.load(piece, 16, memory(RSI, None, 0));
            writer.load(piece, 17, memory(RSI, RCX, -size));
            writer.store(piece, &[16], (RDI, None, 0));
            writer.store(piece, &[17], (RDI, RCX, -size));
        });
        dynasm!(self.ops ; .arch x64 ; push r8 ; again: ; movzx r8d, BYTE [rsi]);
        for copy in (0..self.copies).rev() {
            dynasm!(self.ops ; .arch x64 ; mov [rdi + copy * self.stride], r8b);
        }
        dynasm!(self.ops
            ; .arch x64
            ; inc rsi
            ; inc rdi
            ; dec ecx
            ; jnz <again
            ; pop r8
            ; ret
        );
        start
    }
}

/// Emits the shared code.
pub(super) fn emit(ops: &mut VecAssembler<X64Relocation>, copies: usize, stride: i32) -> Bulk {
    let mut writer = Writer::new(ops, copies, stride);
    Bulk {
        fill: writer.fill(),
        copy: writer.copy(),
    }
}
