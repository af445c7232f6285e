//! Decimal adjustment and BOUND, which 64-bit code does not have (SDM volume 2). What the manual leaves undefined of the
//! flags is as in the interpreter.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Instruction, Mnemonic};

use super::emitter::{Emitter, Unencodable};
use super::flags::FlagsPlace;
use super::registers::{T1, number};

/// AF and CF, as LAHF has them.
const CARRIES: i32 = 0x11;

impl Emitter<'_> {
    /// AAA, AAD, AAM, AAS, DAA and DAS.
    pub(super) fn decimal(&mut self, insn: &Instruction) -> Result<(), Unencodable> {
        let base = i32::from(insn.immediate8());
        match insn.mnemonic() {
            Mnemonic::Aam if base == 0 => return Err(Unencodable),
            Mnemonic::Aam => dynasm!(self.ops
                ; .arch x64
                ; mov rdi, rax
                ; movzx eax, al
                ; mov r8d, base
                ; div r8b
                ; ror ax, 8
                ; mov di, ax
                ; mov rax, rdi
                ; test al, al
            ),
            Mnemonic::Aad => dynasm!(self.ops
                ; .arch x64
                ; movzx esi, ah
                ; imul esi, esi, base
                ; add esi, eax
                ; movzx esi, sil
                ; mov ax, si
                ; test al, al
            ),
            Mnemonic::Aaa => self.adjust_ascii(0x106),
            Mnemonic::Aas => self.adjust_ascii(-0x106),
            other => self.adjust_digits(other == Mnemonic::Das),
        }
        self.flags = FlagsPlace::HOST;
        Ok(())
    }

    /// With AL in T2 and the guest's flags, as LAHF has them, in T1: T0 becomes AF, if the lower digit is none or AF is
    /// set.
    fn lower_digit(&mut self) {
        self.restore_flags();
        dynasm!(self.ops
            ; .arch x64
            ; mov rsi, rax
            ; lahf
            ; movzx edi, ah
            ; mov rax, rsi
            ; movzx r8d, al
            ; lea esi, [r8 + 6]
            ; xor esi, r8d
            ; or esi, edi
            ; and esi, 0x10
        );
    }

    /// Flags that follow from AL, and AF and CF as in T1. Uses T2.
    fn flags_with_carries(&mut self) {
        dynasm!(self.ops
            ; .arch x64
            ; mov r8, rax
            ; test al, al
            ; lahf
            ; movzx esi, ah
            ; and esi, !CARRIES
            ; or esi, edi
            ; shl esi, 8
            ; mov eax, esi
            ; test eax, eax
            ; sahf
            ; mov rax, r8
        );
    }

    /// AAA and AAS: what they add to AX if the lower digit is none.
    fn adjust_ascii(&mut self, by: i32) {
        self.lower_digit();
        dynasm!(self.ops
            ; .arch x64
            ; mov edi, esi
            ; shr edi, 4
            ; or edi, esi
            ; neg esi
            ; sar esi, 31
            ; and esi, by
            ; add esi, eax
            ; and esi, 0xff0f
            ; mov ax, si
        );
        self.flags_with_carries();
    }

    /// DAA and DAS: 6 for each digit that is none. DAS carries where that borrows, too.
    fn adjust_digits(&mut self, subtracts: bool) {
        self.lower_digit();
        // T1 becomes the carries: CF if AL is above 99 or CF is set. T2 becomes the correction, T0 that of the lower digit.
        dynasm!(self.ops
            ; .arch x64
            ; add r8d, 0x66
            ; shr r8d, 8
            ; or edi, r8d
            ; and edi, 1
            ; imul r8d, edi, 0x60
            ; or edi, esi
            ; shr esi, 3
            ; lea esi, [rsi + rsi * 2]
            ; add r8d, esi
        );
        if subtracts {
            dynasm!(self.ops
                ; .arch x64
                ; cmp al, sil
                ; setb sil
                ; or dil, sil
                ; sub al, r8b
            );
        } else {
            dynasm!(self.ops ; .arch x64 ; add al, r8b);
        }
        self.flags_with_carries();
    }

    /// BOUND: within them nothing happens.
    pub(super) fn bound(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        let size = insn.memory_size().size() as u32;
        let address = self.operand(insn)?;
        self.spoil_flags(needed);
        let instead = self.interpret_instead(index);
        self.linear_within(index, &address, size, false)?;
        self.translate_linear(size, false, instead);
        self.load_guest(T1, number(insn.op0_register()));
        if size == 8 {
            dynasm!(self.ops
                ; .arch x64
                ; cmp edi, [rsi]
                ; jl =>instead
                ; cmp edi, [rsi + 4]
                ; jg =>instead
            );
        } else {
            dynasm!(self.ops
                ; .arch x64
                ; cmp di, [rsi]
                ; jl =>instead
                ; cmp di, [rsi + 2]
                ; jg =>instead
            );
        }
        Ok(())
    }
}
