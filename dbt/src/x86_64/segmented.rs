//! Code whose segments are not flat, and 16-bit code: offsets that wrap and have limits, and stack
//! pointers of 16 bits. And, in code of all kinds, the branches that count.
//!
//! Offsets are compared with words that say how far each segment may be read and written
//! (`dbt/src/guest/bounds.rs`). Where one is beyond, or the segment is unusual, nothing has changed yet, and
//! the interpreter executes the instruction, faults included. What loads segment registers is the
//! interpreter's too; CS stays as long as emitted code is not left, so its base and limit are
//! constants of the block.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Instruction, Mnemonic, Register};

use super::emitter::{Emitter, Unencodable};
use super::operands::Address;
use super::registers::{T0, number};
use super::whole_jumps::{CONDITIONAL, DIRECT};
use crate::guest::{CodeSize, Register as Guest};
use crate::interpret::integer::branch::count_size;
use crate::run::at;

impl Emitter<'_> {
    /// Puts an address's offset in its segment into T0; uses T1. Leaves the flags alone.
    pub(super) fn offset(&mut self, address: &Address) -> Result<(), Unencodable> {
        if address.base.is_none() && address.index.is_none() {
            let mask = if address.short { 0xffff } else { u32::MAX };
            let offset = address.displacement as u32 & mask;
            dynasm!(self.ops ; .arch x64 ; mov esi, DWORD offset as i32);
            return Ok(());
        }
        self.address_value(address)?;
        if address.short {
            dynasm!(self.ops ; .arch x64 ; movzx esi, si);
        }
        Ok(())
    }

    /// Puts the linear address of an access into T0, once its offset was compared with the segment's limit if it has
    /// to be; uses T1, and spoils EFLAGS.
    pub(super) fn linear_within(
        &mut self,
        insn: usize,
        address: &Address,
        size: u32,
        write: bool,
    ) -> Result<(), Unencodable> {
        if !address.limited {
            return self.linear(address);
        }
        let segment = address.segment.ok_or(Unencodable)?;
        self.offset(address)?;
        let beyond = self.interpret_instead(insn);
        let bound = if write {
            at::write_bound(segment)
        } else {
            at::read_bound(segment)
        };
        if size == 1 {
            dynasm!(self.ops ; .arch x64 ; gs cmp rsi, [bound]);
        } else {
            let last = size as i8 - 1;
            dynasm!(self.ops ; .arch x64 ; lea rdi, [BYTE rsi + last] ; gs cmp rdi, [bound]);
        }
        dynasm!(self.ops
            ; .arch x64
            ; jg =>beyond
            ; gs add esi, [at::segment_base(segment)]
        );
        Ok(())
    }

    /// LEA: the offset as a value.
    pub(super) fn offset_of(&mut self, insn: &Instruction) -> Result<(), Unencodable> {
        let address = self.operand(insn)?;
        self.leave_t0();
        self.offset(&address)?;
        let into = insn.op0_register();
        self.store_part(number(into), T0, into.size() as u32);
        Ok(())
    }

    /// Stores the low 2, 4 or 8 bytes of a scratch register into a guest register; two leave the rest as it
    /// is.
    pub(super) fn store_part(&mut self, guest: usize, from: Register, size: u32) {
        if size != 2 {
            return self.store_guest(guest, from);
        }
        let from = Self::scratch(from);
        match self.places.pinned(guest) {
            Some(host) => dynasm!(self.ops ; .arch x64 ; mov Rw(host), Rw(from)),
            None => dynasm!(self.ops ; .arch x64 ; gs mov [self.places.slot(guest)], Rw(from)),
        }
    }

    /// The offset behind an instruction, which wraps in 16-bit code.
    pub(super) fn next_offset(&self, insn: &Instruction) -> u64 {
        if !self.target.mode.segmented() {
            return insn.next_ip();
        }
        match self.target.mode.code_size() {
            CodeSize::Bits16 => insn.next_ip() & 0xffff,
            _ => insn.next_ip() & 0xffff_ffff,
        }
    }

    /// A branch that leads beyond CS's limit is the interpreter's.
    pub(super) fn within_limit(&self, insn: &Instruction) -> Result<(), Unencodable> {
        let far = insn.near_branch_target() > u64::from(self.target.code.limit);
        if far && self.target.mode.segmented() {
            return Err(Unencodable);
        }
        Ok(())
    }

    /// With the target of an indirect branch, of so many bytes, in T0: has the interpreter execute
    /// the instruction if that is beyond CS's limit. Spoils EFLAGS.
    pub(super) fn limit_target(&mut self, index: usize, width: u32) {
        let limit = self.target.code.limit;
        let most = if width == 2 { 0xffff } else { u32::MAX };
        if self.target.mode.segmented() && limit < most {
            let beyond = self.interpret_instead(index);
            dynasm!(self.ops ; .arch x64 ; cmp esi, limit as i32 ; ja =>beyond);
        }
    }

    /// Makes the offset in T0 the word by which jump caches know it. Uses T1, and spoils EFLAGS.
    pub(super) fn jump_word(&mut self) {
        let bias = self.target.code.bias();
        if bias != 0 {
            dynasm!(self.ops ; .arch x64 ; mov rdi, QWORD bias as i64 ; add rsi, rdi);
        }
    }

    /// LOOP, LOOPE, LOOPNE, JCXZ, JECXZ and JRCXZ, at the end of a block. The only tests that leave the flags
    /// alone are the host's JECXZ and JRCXZ, which jump over what is known to be so long.
    pub(super) fn count_branch(
        &mut self,
        index: usize,
        insn: &Instruction,
    ) -> Result<(), Unencodable> {
        self.within_limit(insn)?;
        if self.inner.is_some() || index + 1 < self.rips.len() {
            return Err(Unencodable);
        }
        let size = count_size(insn);
        let (short, long) = (size == 2, size == 8);
        let (taken, next) = (insn.near_branch_target(), self.next_offset(insn));
        let counts = insn.is_loop() || insn.is_loopcc();
        // What has to hold besides the count, and what else goes to the next instruction.
        let otherwise = match insn.mnemonic() {
            Mnemonic::Loope => Some(NOT_EQUAL),
            Mnemonic::Loopne => Some(EQUAL),
            _ => None,
        };
        // The flags of what counted the register before do not follow from it afterwards.
        let changed = if counts { 1 << Guest::RCX } else { 0 };
        let recipe = self.flags.recipe;
        if otherwise.is_some() || recipe.is_some_and(|recipe| recipe.registers() & changed != 0) {
            self.restore_flags();
        }
        self.registers_changed(changed);
        let flags = self.flags_for_exit();
        self.restore_places();
        match size {
            _ if !counts => {}
            2 => dynasm!(self.ops ; .arch x64 ; lea edi, [rcx - 1] ; mov cx, di),
            8 => dynasm!(self.ops ; .arch x64 ; lea rcx, [rcx - 1]),
            _ => dynasm!(self.ops ; .arch x64 ; lea ecx, [rcx - 1]),
        }
        let mut over = DIRECT + if otherwise.is_some() { CONDITIONAL } else { 0 };
        if short {
            dynasm!(self.ops ; .arch x64 ; mov r8, rcx ; movzx ecx, cx);
            over += BACK;
        }
        let (nonzero, zero) = if counts { (taken, next) } else { (next, taken) };
        // Nothing comes between the jumps then.
        let jump = [0x67, 0xe3, over as u8];
        let jump = &jump[usize::from(long)..];
        self.keep_whole(jump.len() + over);
        self.bytes(jump);
        let begin = self.here();
        if short {
            dynasm!(self.ops ; .arch x64 ; mov rcx, r8);
        }
        if let Some(condition) = otherwise {
            self.direct_exit(next, Some(condition), flags);
        }
        self.direct_exit(nonzero, None, flags);
        debug_assert_eq!(self.here() - begin, over as u32);
        if short {
            dynasm!(self.ops ; .arch x64 ; mov rcx, r8);
        }
        self.direct_exit(zero, None, flags);
        Ok(())
    }
}

/// Conditions as encodings number them.
const EQUAL: u8 = 4;
const NOT_EQUAL: u8 = 5;
/// Bytes of `mov rcx, r8`.
const BACK: usize = 3;
