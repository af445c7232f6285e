//! Accesses with an address, a width or a consequence of their own: bit strings, CMPXCHG8B and 16B,
//! PUSHA, POPA, POP to memory. What misses the TLB is the interpreter's.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Instruction, Mnemonic, Register};
use mmu::{PAGE_SIZE, View};

use super::emitter::{Emitter, Unencodable};
use super::flags::FlagsPlace;
use super::operands::{Address, HostMemory};
use super::plain::Need;
use super::registers::{T0, T1, T2, number, sized};
use crate::guest::Register as Guest;
use crate::interpret::view;
use crate::record::grouping::Place;
use crate::record::liveness::Flags;
use crate::run::at;

impl Emitter<'_> {
    /// Turns the linear address in T0 into a host address, if the TLB has its page.
    pub(super) fn translate_linear(&mut self, size: u32, write: bool, miss: DynamicLabel) {
        self.translate_as(view(self.target.mode), size, write, miss);
    }

    /// Likewise, with the rights of a view.
    pub(super) fn translate_as(&mut self, view: View, size: u32, write: bool, miss: DynamicLabel) {
        let tlb = at::tlb(view);
        let tag = tlb + if write { at::WRITE_TAG } else { at::READ_TAG };
        let addend = tlb + at::ADDEND;
        let limit = PAGE_SIZE as i32 - size as i32;
        self.tlb_index(T0);
        dynasm!(self.ops ; .arch x64 ; mov r8, rsi);
        self.compare_tag(tag, limit, miss);
        self.add_addend(addend);
    }

    /// BT, BTS, BTR and BTC of memory by a register: the bit's number, signed, chooses the word
    /// (SDM volume 2, BT).
    pub(super) fn bit_string(
        &mut self,
        index: usize,
        insn: &Instruction,
        need: Need,
    ) -> Result<(), Unencodable> {
        // The bit's word, and not the operand's, would be within the limit or not.
        let address = self
            .operand(insn)
            .ok()
            .filter(|address| !address.limited)
            .ok_or(Unencodable)?;
        let bit = number(insn.op1_register());
        let size = insn.op1_register().size();
        self.spoil_flags(need.before != 0);
        let instead = self.interpret_instead(index);
        self.linear(&address)?;
        self.load_guest(T1, bit);
        if size == 8 {
            dynasm!(self.ops ; .arch x64 ; sar rdi, 6 ; lea rsi, [rsi + rdi * 8]);
        } else {
            dynasm!(self.ops ; .arch x64 ; movsxd rdi, edi ; sar rdi, 5 ; lea rsi, [rsi + rdi * 4]);
        }
        if address.narrow {
            dynasm!(self.ops ; .arch x64 ; mov esi, esi);
        }
        let write = insn.mnemonic() != Mnemonic::Bt;
        self.translate_linear(size as u32, write, instead);
        if need.in_host(Flags::of(insn)) {
            self.restore_flags();
        }
        self.load_guest(T2, bit);
        self.put(&HostMemory::AT_T0.load(T1, size as u32));
        match (insn.mnemonic(), size) {
            (Mnemonic::Bt, 8) => dynasm!(self.ops ; .arch x64 ; bt rdi, r8),
            (Mnemonic::Bt, _) => dynasm!(self.ops ; .arch x64 ; bt edi, r8d),
            (Mnemonic::Bts, 8) => dynasm!(self.ops ; .arch x64 ; bts rdi, r8),
            (Mnemonic::Bts, _) => dynasm!(self.ops ; .arch x64 ; bts edi, r8d),
            (Mnemonic::Btr, 8) => dynasm!(self.ops ; .arch x64 ; btr rdi, r8),
            (Mnemonic::Btr, _) => dynasm!(self.ops ; .arch x64 ; btr edi, r8d),
            (_, 8) => dynasm!(self.ops ; .arch x64 ; btc rdi, r8),
            (_, _) => dynasm!(self.ops ; .arch x64 ; btc edi, r8d),
        }
        if write {
            self.store_register(HostMemory::AT_T0, T1, size as u32)?;
        }
        self.flags = FlagsPlace::HOST;
        Ok(())
    }

    /// CMPXCHG8B, and CMPXCHG16B of an aligned operand; they store in either case (SDM volume 2, CMPXCHG8B), so
    /// the mirrors follow the native copy.
    pub(super) fn compare_pair(
        &mut self,
        index: usize,
        insn: &Instruction,
        need: Need,
    ) -> Result<(), Unencodable> {
        let sixteen = insn.mnemonic() == Mnemonic::Cmpxchg16b;
        if sixteen && !std::arch::is_x86_feature_detected!("cmpxchg16b") {
            return Err(Unencodable);
        }
        let size = insn.memory_size().size() as u32;
        let address = self.operand(insn)?;
        self.spoil_flags(need.before != 0);
        let instead = self.interpret_instead(index);
        self.linear_within(index, &address, size, true)?;
        if sixteen {
            dynasm!(self.ops ; .arch x64 ; test esi, 15 ; jnz =>instead);
        }
        self.translate_linear(size, true, instead);
        if need.in_host(Flags::of(insn)) {
            self.restore_flags();
        }
        if sixteen {
            dynasm!(self.ops ; .arch x64 ; cmpxchg16b [rsi]);
        } else {
            dynasm!(self.ops ; .arch x64 ; cmpxchg8b [rsi]);
        }
        self.mirror_from_native(HostMemory::AT_T0, size)?;
        self.flags = FlagsPlace::HOST;
        Ok(())
    }

    /// POP to memory. An address that depends on the stack pointer is made when that has been moved.
    pub(super) fn pop_memory(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        if insn.memory_base().full_register() == Register::RSP {
            return Err(Unencodable);
        }
        let word = self.width(insn);
        let slot = Address::based(Guest::RSP, 0, self.target.mode);
        let to = self.operand(insn)?;
        let from = self.check(index, (Place::Stack, &slot), word, false, needed)?;
        self.put(&from.load(T1, word));
        dynasm!(self.ops ; .arch x64 ; gs mov [at::SCRATCH], rdi);
        let memory = self.check(index, (Place::Operand, &to), word, true, needed)?;
        dynasm!(self.ops ; .arch x64 ; gs mov rdi, [at::SCRATCH]);
        self.store_register(memory, T1, word)?;
        self.move_stack(word as i32);
        Ok(())
    }

    /// PUSHA and PUSHAD: the stack pointer that they store is that before them.
    pub(super) fn push_all(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        let registers = self.eight_registers()?;
        let all = -insn.stack_pointer_increment();
        let size = all / 8;
        let slot = Address::based(Guest::RSP, -all, self.target.mode);
        let memory = self.check(index, (Place::Stack, &slot), all as u32, true, needed)?;
        self.store_all(memory, |emitter, memory| {
            for (place, &register) in (0..).zip(registers.iter().rev()) {
                let memory = memory.further(place * size);
                emitter.put(&memory.store(register, size as u32));
            }
            Ok(())
        })?;
        self.move_stack(-all);
        Ok(())
    }

    /// POPA and POPAD: what they find for the stack pointer is skipped.
    pub(super) fn pop_all(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        let registers = self.eight_registers()?;
        let all = insn.stack_pointer_increment();
        let size = all / 8;
        let slot = Address::based(Guest::RSP, 0, self.target.mode);
        let memory = self.check(index, (Place::Stack, &slot), all as u32, false, needed)?;
        for (place, &register) in (0..).zip(registers.iter().rev()) {
            if register == registers[Guest::RSP] {
                continue;
            }
            let memory = memory.further(place * size);
            if size == 2 {
                self.put(&memory.load(T1, 2));
                let host = number(register) as u8;
                dynasm!(self.ops ; .arch x64 ; mov Rw(host), di);
            } else {
                self.put(&memory.load(register, 4));
            }
        }
        self.move_stack(all);
        Ok(())
    }

    /// The host registers of EAX to EDI.
    fn eight_registers(&self) -> Result<[Register; 8], Unencodable> {
        let mut registers = [Register::None; 8];
        for (guest, register) in registers.iter_mut().enumerate() {
            *register = sized(self.places.pinned(guest).ok_or(Unencodable)?, 8);
        }
        Ok(registers)
    }
}
