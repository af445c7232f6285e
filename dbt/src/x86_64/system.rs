//! System instructions that kernels execute often and that need nothing but a few words of the
//! processor's state. The block's mode vouches for the privilege.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Code, Instruction, Mnemonic, Register};

use super::emitter::{Emitter, Unencodable};
use super::flags::FlagsPlace;
use super::operands::{Address, HostMemory};
use super::registers::{T1, number, pinned, sized};
use crate::guest::{Mode, Register as Guest, SegmentIndex, flags};
use crate::record::grouping::Place;
use crate::run::{UpcallKind, at};

impl Emitter<'_> {
    /// CLI.
    pub(super) fn clear_interrupt_flag(&mut self) {
        dynasm!(self.ops ; .arch x64 ; gs mov BYTE [at::INTERRUPT_FLAG], 0);
    }

    /// STI. With no interrupt waiting its shadow holds nothing back within the block; at the end
    /// of one it would have to reach into the next, which polls.
    pub(super) fn set_interrupt_flag(
        &mut self,
        index: usize,
        needed: bool,
    ) -> Result<(), Unencodable> {
        if index + 1 == self.rips.len() {
            return Err(Unencodable);
        }
        self.spoil_flags(needed);
        let record = self.record(UpcallKind::Interpret, index);
        let waiting = self.stub(None, record);
        dynasm!(self.ops
            ; .arch x64
            ; gs cmp BYTE [at::INTERRUPT_WAITING], 0
            ; jne =>waiting
            ; gs mov BYTE [at::INTERRUPT_FLAG], 1
        );
        Ok(())
    }

    /// CLD, STD.
    pub(super) fn set_direction(&mut self, down: bool) {
        let value = i8::from(down);
        dynasm!(self.ops ; .arch x64 ; gs mov BYTE [at::DIRECTION_FLAG], value);
    }

    /// SWAPGS.
    pub(super) fn swap_gs(&mut self) {
        let base = at::segment_base(SegmentIndex::Gs as usize);
        dynasm!(self.ops
            ; .arch x64
            ; gs mov rsi, [base]
            ; gs mov rdi, [at::KERNEL_GS_BASE]
            ; gs mov [base], rdi
            ; gs mov [at::KERNEL_GS_BASE], rsi
        );
    }

    /// Puts RFLAGS together in T1, less the system flags that are not in `kept`. The arithmetic
    /// flags are in their saved place. Uses T2.
    pub(super) fn flags_image(&mut self, kept: u64) {
        let kept = kept as i32;
        // SAVED_FLAGS is AH (SF ZF AF PF CF at their places) over AL (OF).
        dynasm!(self.ops
            ; .arch x64
            ; gs movzx edi, BYTE [at::SAVED_FLAGS + 1]
            ; gs movzx r8d, BYTE [at::SAVED_FLAGS]
            ; shl r8d, 11
            ; or edi, r8d
            ; gs movzx r8d, BYTE [at::INTERRUPT_FLAG]
            ; shl r8d, 9
            ; or edi, r8d
            ; gs movzx r8d, BYTE [at::DIRECTION_FLAG]
            ; shl r8d, 10
            ; or edi, r8d
            ; gs mov r8d, [at::SYSTEM_FLAGS]
            ; and r8d, kept
            ; or edi, r8d
            ; or edi, 2
        );
    }

    /// PUSHFQ and PUSHFD: the image has RF and VM clear (SDM volume 2, PUSHF).
    pub(super) fn push_flags(
        &mut self,
        index: usize,
        insn: &Instruction,
    ) -> Result<(), Unencodable> {
        let word = self.width(insn);
        let slot = Address::based(Guest::RSP, -(word as i32), self.target.mode);
        // All flags are needed: this instruction reads them.
        let memory = self.check(index, (Place::Stack, &slot), word, true, true)?;
        self.flags_to_saved();
        self.flags_image(!(flags::RF | flags::VM));
        self.store_register(memory, T1, word)?;
        self.move_stack(-(word as i32));
        Ok(())
    }

    /// POPFQ and POPFD that leave the system flags as they are, except for IF at CPL 0. At CPL 3 IOPL stays
    /// whatever is popped, and with a lower IOPL so does IF (SDM volume 2, POPF).
    pub(super) fn pop_flags(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        const IF: i32 = flags::IF as i32;
        let word = self.width(insn);
        let kernel = self.target.mode.has(Mode::RING0);
        let ignored = if kernel { 0 } else { flags::IOPL };
        let stays = (flags::SYSTEM & !ignored) as i32;
        let slot = Address::based(Guest::RSP, 0, self.target.mode);
        let memory = self.check(index, (Place::Stack, &slot), word, false, needed)?;
        self.spoil_flags(needed);
        self.put(&memory.load(T1, word));
        let instead = self.interpret_instead(index);
        dynasm!(self.ops
            ; .arch x64
            ; gs mov r8d, [at::SYSTEM_FLAGS]
            ; xor r8d, edi
            ; test r8d, stays
            ; jnz =>instead
        );
        if kernel {
            let held = self.ops.new_dynamic_label();
            dynasm!(self.ops
                ; .arch x64
                ; test edi, IF
                ; jz =>held
                ; gs cmp BYTE [at::INTERRUPT_WAITING], 0
                ; jne =>instead
                ; =>held
            );
            self.load_flags();
        } else {
            self.load_arithmetic_flags();
            dynasm!(self.ops
                ; .arch x64
                ; shr edi, 10
                ; and edi, 1
                ; gs mov [at::DIRECTION_FLAG], dil
            );
        }
        self.flags = FlagsPlace::SAVED;
        self.move_stack(word as i32);
        Ok(())
    }

    /// LDMXCSR: the register is in the host's, where exceptions that it leaves unmasked are raised as well. The
    /// interpreter refuses what has reserved bits.
    pub(super) fn load_vector_control(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        const RESERVED: i32 = !0xffff;
        let address = self.operand(insn)?;
        let place = (Place::Operand, &address);
        let memory = self.host_memory(index, place);
        let load = Instruction::with1(Code::Ldmxcsr_m32, memory.operand());
        let load = self.encode(&load.map_err(|_| Unencodable)?)?;
        self.check(index, place, 4, false, needed)?;
        self.spoil_flags(needed);
        let value = memory.load(T1, 4);
        self.put(&value);
        let instead = self.interpret_instead(index);
        dynasm!(self.ops ; .arch x64 ; test edi, RESERVED ; jnz =>instead);
        self.put(&load);
        Ok(())
    }

    /// CLFLUSH, CLFLUSHOPT and CLWB: there are no caches, but they fault as the load of a byte does.
    pub(super) fn flush_line(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        let address = self.operand(insn)?;
        self.check(index, (Place::Operand, &address), 1, false, needed)?;
        Ok(())
    }

    /// PREFETCHh and PREFETCHW (SDM volume 2B): the host has the same hints, where the TLB knows the page. A guest
    /// can neither fault by them nor see what became of them.
    pub(super) fn prefetch(&mut self, insn: &Instruction, needed: bool) -> Result<(), Unencodable> {
        let Ok(address) = self.operand(insn) else {
            return Ok(());
        };
        self.leave_t0();
        self.spoil_flags(needed);
        self.linear(&address)?;
        let unknown = self.ops.new_dynamic_label();
        self.translate_linear(1, false, unknown);
        let to_store = insn.mnemonic() == Mnemonic::Prefetchw;
        let copies = if to_store { self.target.copies } else { 1 };
        for copy in 0..copies as i32 {
            let memory = HostMemory::AT_T0.further(copy * self.target.stride);
            let hint = Instruction::with1(insn.code(), memory.operand());
            let hint = self.encode(&hint.map_err(|_| Unencodable)?)?;
            self.put(&hint);
        }
        dynasm!(self.ops ; .arch x64 ; =>unknown);
        self.keep_flags();
        Ok(())
    }

    /// MOV of a selector to a register: zero-extended to 32 or 64 bits.
    pub(super) fn read_selector(&mut self, insn: &Instruction) {
        let segment = insn.op1_register() as usize - Register::ES as usize;
        let into = insn.op0_register();
        let guest = number(into);
        dynasm!(self.ops ; .arch x64 ; gs movzx edi, WORD [at::selector(segment)]);
        if into.size() > 2 {
            self.store_guest(guest, T1);
        } else {
            match pinned(guest) {
                Some(host) => {
                    debug_assert_eq!(sized(host, 2).size(), 2);
                    dynasm!(self.ops ; .arch x64 ; mov Rw(host), di);
                }
                None => dynasm!(self.ops ; .arch x64 ; gs mov [at::gpr(guest)], di),
            }
        }
    }
}
