//! What the x87 remembers of the last instruction and of the last that raised an unmasked exception; FLDCW, FNSTENV
//! and their like.
//!
//! The host's FCW is the guest's: what an unmasked exception keeps from being executed or stored is kept so by the
//! host, which raises #MF where the guest's processor does. To ask it for FSW behind each instruction would take ten
//! times as long as the instruction. So each leaves its opcode and the address of its operand, and whoever is called up
//! looks at FSW: up to then no other has been executed that an exception would not have kept from it.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Instruction, Mnemonic, OpKind};

use super::emitter::{Emitter, Unencodable};
use super::moving::Follows;
use super::operands::{Address, HostMemory};
use super::registers::T1;
use crate::guest::Mode;
use crate::interpret::OPCODE_BITS;
use crate::interpret::extension::{self, Noted};
use crate::run::{X87Candidate, at};

/// The masks of FCW.
const MASKS: i8 = 0x3f;
/// Bytes of the environment, and of it and the registers; where FIP and FDP are. FOP is above the selector of FIP.
const ENVIRONMENT: u32 = 28;
const SAVED: u32 = 108;
const FIP: i32 = 12;
const FDP: i32 = 20;

impl Emitter<'_> {
    /// Whether there are selectors; else the x87 remembers linear addresses.
    fn has_selectors(&self) -> bool {
        let mode = self.target.mode;
        mode.has(Mode::PROTECTED) && !mode.has(Mode::VM86)
    }

    /// How the x87 remembers an instruction.
    fn x87_address(&self, insn: &Instruction) -> u64 {
        if self.has_selectors() {
            insn.ip()
        } else {
            self.target.code.linear(insn.ip())
        }
    }

    /// Behind an x87 instruction: it was the last one. A move touches no flags.
    pub(super) fn note_x87(&mut self, insn: &Instruction) {
        let ip = match extension::noted(insn) {
            None => return,
            Some(Noted::Address) => self.x87_address(insn),
            Some(Noted::Cleared) => return self.clear_pointers(),
        };
        if let Ok(short) = i32::try_from(ip) {
            dynasm!(self.ops ; .arch x64 ; gs mov QWORD [at::X87_INSTRUCTION], short);
            self.ops.mark(Follows::ShortAddress);
        } else {
            dynasm!(self.ops
                ; .arch x64
                ; gs mov DWORD [at::X87_INSTRUCTION], ip as i32
                ; gs mov DWORD [at::X87_INSTRUCTION + 4], (ip >> 32) as i32
            );
            self.ops.mark(Follows::Halves);
        }
    }

    /// FIP, FDP and FOP become zero.
    fn clear_pointers(&mut self) {
        dynasm!(self.ops
            ; .arch x64
            ; gs mov QWORD [at::X87_INSTRUCTION], 0
            ; gs mov QWORD [at::X87_OPERAND], 0
            ; gs mov WORD [at::X87_OPCODE], 0
        );
    }

    /// Behind an x87 instruction that may raise an unmasked exception: what is to be noted if it has. Leaves the flags
    /// alone.
    pub(super) fn note_candidate(&mut self, index: usize, insn: &Instruction) {
        let unmasked = self.target.mode.has(Mode::X87_UNMASKED);
        if !unmasked || extension::noted(insn) != Some(Noted::Address) {
            return;
        }
        let opcode = self.target.x87_opcodes.get(index).copied().flatten();
        let in_memory = insn.op_kinds().any(|kind| kind == OpKind::Memory);
        if in_memory {
            let address = self.operand(insn).expect("it has been accessed");
            self.note_operand(&address);
        }
        let word = X87Candidate::word(opcode, in_memory) as i32;
        dynasm!(self.ops ; .arch x64 ; gs mov DWORD [at::X87_CANDIDATE], word);
    }

    fn note_operand(&mut self, address: &Address) {
        self.leave_t0();
        let offset = Address {
            segment: None,
            ..*address
        };
        let emitted = match address.limited {
            true => self.offset(&offset),
            false => self.linear(&offset),
        };
        emitted.expect("the address has been made for the access");
        if let Some(segment) = address.segment.filter(|_| !self.has_selectors()) {
            dynasm!(self.ops
                ; .arch x64
                ; gs mov edi, [at::segment_base(segment)]
                ; lea esi, [rsi + rdi]
            );
        }
        dynasm!(self.ops ; .arch x64 ; gs mov [at::X87_CANDIDATE_OPERAND], rsi);
    }

    /// Whether FCW at T0 leaves an exception unmasked, as ZF clear.
    fn test_masks(&mut self) {
        dynasm!(self.ops
            ; .arch x64
            ; movzx edi, BYTE [rsi]
            ; not edi
            ; test dil, MASKS
        );
    }

    /// FLDCW, if it leaves all exceptions masked, or not all, as they are; else the interpreter executes it, and the
    /// mode becomes another.
    pub(super) fn load_control(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        let address = self.operand(insn)?;
        let instead = self.lead_to_whole(index, &address, (2, false), needed)?;
        self.test_masks();
        if self.target.mode.has(Mode::X87_UNMASKED) {
            dynasm!(self.ops ; .arch x64 ; jz =>instead);
        } else {
            dynasm!(self.ops ; .arch x64 ; jnz =>instead);
        }
        // An exception that is pending is raised by the host; one that becomes unmasked is nobody's.
        self.note_flags(index);
        dynasm!(self.ops ; .arch x64 ; fldcw WORD [rsi]);
        if self.target.mode.has(Mode::X87_UNMASKED) {
            dynasm!(self.ops ; .arch x64 ; gs mov DWORD [at::X87_CANDIDATE], 0);
        }
        Ok(())
    }

    /// FNSTENV and FNSAVE in protected mode: the host's, but for the pointers (SDM volume 1, figure 8-9).
    pub(super) fn store_environment(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        let address = self.operand(insn)?;
        let saves = insn.mnemonic() == Mnemonic::Fnsave;
        let size = if saves { SAVED } else { ENVIRONMENT };
        self.lead_to_whole(index, &address, (size, true), needed)?;
        dynasm!(self.ops ; .arch x64 ; gs mov r8, [at::BOUNCE_ADDRESS]);
        if saves {
            dynasm!(self.ops ; .arch x64 ; fnsave [r8]);
        } else {
            dynasm!(self.ops ; .arch x64 ; fnstenv [r8]);
        }
        let place = |at: i32| HostMemory::AT_T0.further(at);
        for word in (0..FIP).step_by(4) {
            dynasm!(self.ops
                ; .arch x64
                ; movzx edi, WORD [r8 + word]
                ; or edi, 0xffff_0000u32 as i32
            );
            self.store_register(place(word), T1, 4)?;
        }
        dynasm!(self.ops ; .arch x64 ; gs mov edi, [at::X87_INSTRUCTION]);
        self.store_register(place(FIP), T1, 4)?;
        dynasm!(self.ops ; .arch x64 ; gs movzx edi, WORD [at::X87_OPCODE] ; shl edi, 16);
        self.store_register(place(FIP + 4), T1, 4)?;
        dynasm!(self.ops ; .arch x64 ; gs mov edi, [at::X87_OPERAND]);
        self.store_register(place(FDP), T1, 4)?;
        dynasm!(self.ops ; .arch x64 ; mov edi, 0xffff_0000u32 as i32);
        self.store_register(place(FDP + 4), T1, 4)?;
        for word in (ENVIRONMENT as i32..size as i32).step_by(8) {
            dynasm!(self.ops ; .arch x64 ; mov rdi, [r8 + word]);
            self.store_register(place(word), T1, 8)?;
        }
        if saves {
            self.clear_pointers();
        }
        Ok(())
    }

    /// FLDENV and FRSTOR in protected mode, if they leave all exceptions masked.
    pub(super) fn load_environment(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        let address = self.operand(insn)?;
        let restores = insn.mnemonic() == Mnemonic::Frstor;
        let size = if restores { SAVED } else { ENVIRONMENT };
        let instead = self.lead_to_whole(index, &address, (size, false), needed)?;
        self.test_masks();
        dynasm!(self.ops ; .arch x64 ; jnz =>instead);
        if restores {
            dynasm!(self.ops ; .arch x64 ; frstor [rsi]);
        } else {
            dynasm!(self.ops ; .arch x64 ; fldenv [rsi]);
        }
        dynasm!(self.ops
            ; .arch x64
            ; mov edi, [rsi + FIP]
            ; gs mov [at::X87_INSTRUCTION], rdi
            ; mov edi, [rsi + FDP]
            ; gs mov [at::X87_OPERAND], rdi
            ; movzx edi, WORD [rsi + FIP + 6]
            ; and edi, i32::from(OPCODE_BITS)
            ; gs mov [at::X87_OPCODE], di
        );
        Ok(())
    }
}
