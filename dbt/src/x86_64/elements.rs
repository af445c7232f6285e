//! LODS, STOS, SCAS, MOVS and CMPS without a prefix: ordinary accesses, behind which the index registers move on.
//!
//! Code with groups counts on where they go, which is forward while DF is clear. Where it is set, code without groups
//! goes on, in which each element looks which way to go.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Code, Instruction, MemoryOperand};

use super::crossing::Crossing;
use super::emitter::{Emitter, Unencodable};
use super::encoded::Encoded;
use super::flags::FlagsPlace;
use super::operands::HostMemory;
use super::plain::Need;
use super::registers::{T0, T1, T2, number, pinned, sized};
use crate::record::classify::{Class, Kind, Operand};
use crate::record::elements;
use crate::record::grouping::Place;
use crate::record::recipe::{Operation, Recipe, Value};
use crate::run::at;

impl Emitter<'_> {
    /// LODS, STOS and SCAS.
    pub(super) fn element(
        &mut self,
        index: usize,
        insn: &Instruction,
        class: &Class,
        operand: Operand,
        need: Need,
    ) -> Result<(), Unencodable> {
        let ordinary = elements::ordinary(insn).ok_or(Unencodable)?;
        self.operand(&ordinary)?;
        self.confirm_forward(index, need.before != 0);
        self.plain(index, &ordinary, class, operand, need)?;
        // The address of a store that waits is that of the element.
        self.settle_stores();
        self.advance_indexes(insn)
    }

    /// MOVS and CMPS: the source is loaded before the destination is checked.
    pub(super) fn element_pair(
        &mut self,
        index: usize,
        insn: &Instruction,
        operand: Operand,
        need: Need,
    ) -> Result<(), Unencodable> {
        let mut loads = elements::loads(insn);
        let mut address = || self.operand(&loads.next().ok_or(Unencodable)?);
        let (source, destination) = (address()?, address()?);
        let (size, write) = (elements::size(insn), operand == Operand::Write);
        let needed = need.before != 0;
        self.confirm_forward(index, needed);
        self.may_predict = true;
        let from = self.check(index, (Place::Operand, &source), size, false, needed)?;
        self.put(&from.load(T1, size));
        let stays = self.leaves_t1((index, Place::Stack), &destination);
        if !stays {
            dynasm!(self.ops ; .arch x64 ; gs mov [at::SCRATCH], rdi);
        }
        let behind = self.ops.new_dynamic_label();
        if write && self.target.crossing && size > 1 {
            self.crossing_store = Crossing::Store {
                loads: [None; 2],
                store: self.store_from_scratch(size)?,
                behind,
            };
        }
        let to = self.check(index, (Place::Stack, &destination), size, write, needed)?;
        self.crossing_store = Crossing::Never;
        self.may_predict = false;
        if !stays {
            dynasm!(self.ops ; .arch x64 ; gs mov rdi, [at::SCRATCH]);
        }
        if write {
            self.store_register(to, T1, size)?;
            dynasm!(self.ops ; .arch x64 ; =>behind);
            return self.advance_indexes(insn);
        }
        self.put(&to.load(T2, size));
        // The comparison comes last: the host fuses it with a branch.
        self.advance_indexes(insn)?;
        self.compare_loaded(size);
        Ok(())
    }

    /// Compares what is in T1 with what is in T2, for the guest.
    fn compare_loaded(&mut self, size: u32) {
        if self.worth_stashing() {
            dynasm!(self.ops ; .arch x64 ; gs mov [at::SECOND], r8);
            let recipe = Recipe {
                operation: Operation::Compare,
                size: size as u8,
                left: Value::Stash,
                right: Value::Second,
            };
            self.stash(T1, recipe);
        }
        if self.branch_next {
            self.keep_fused(if size == 2 { 4 } else { 3 });
        }
        match size {
            1 => dynasm!(self.ops ; .arch x64 ; cmp dil, r8b),
            2 => dynasm!(self.ops ; .arch x64 ; cmp di, r8w),
            4 => dynasm!(self.ops ; .arch x64 ; cmp edi, r8d),
            _ => dynasm!(self.ops ; .arch x64 ; cmp rdi, r8),
        }
        self.flags = FlagsPlace::HOST;
    }

    /// A store of the element that has been put away, to where T0 points: by way of T1.
    fn store_from_scratch(&mut self, size: u32) -> Result<Encoded, Unencodable> {
        let load = Encoded::of(&[0x65, 0x48, 0x8b]).absolute(Self::scratch(T1), at::SCRATCH);
        Ok(load.then(HostMemory::AT_T0.store(T1, size)))
    }

    /// In code with groups, which count on where the index registers go: emits the comparison of DF, unless that is
    /// known to be clear. EFLAGS may be spoilt.
    fn confirm_forward(&mut self, index: usize, needed: bool) {
        if self.forward || !self.target.grouping || self.target.mode.segmented() {
            return;
        }
        self.spoil_flags(needed);
        let down = self.ungroup(index);
        dynasm!(self.ops ; .arch x64 ; gs cmp BYTE [at::DIRECTION_FLAG], 0);
        self.keep_conditional();
        dynasm!(self.ops ; .arch x64 ; jne =>down);
        self.forward = true;
    }

    /// What is known of DF behind an instruction that emitted code has executed.
    pub(super) fn follow_direction(&mut self, kind: Kind) {
        match kind {
            Kind::Direction(down) => self.forward = !down,
            Kind::PopFlags => self.forward = false,
            _ => {}
        }
    }

    /// Moves the index registers past an element. Leaves the flags alone; uses T0, but not in code with groups.
    fn advance_indexes(&mut self, insn: &Instruction) -> Result<(), Unencodable> {
        let size = elements::size(insn) as i32;
        for index in elements::indexes(insn) {
            let (guest, width) = (number(index.register), index.register.size());
            // An instruction that implies them keeps them in their places.
            let host = pinned(guest).ok_or(Unencodable)?;
            let into = if width == 2 { Self::scratch(T0) } else { host };
            if self.forward {
                self.add_displacement(into, host, size, width == 8);
            } else {
                self.add_step(into, host, size, width == 8)?;
            }
            if width == 2 {
                self.store_part(guest, T0, 2);
            }
        }
        Ok(())
    }

    /// Adds the size of an element to an index register, or subtracts it, as DF says: adds it three times, and
    /// subtracts it twice for each of 1 and DF, as far as addresses have such scales.
    fn add_step(&mut self, into: u8, from: u8, size: i32, wide: bool) -> Result<(), Unencodable> {
        dynasm!(self.ops ; .arch x64 ; gs movzx esi, BYTE [at::DIRECTION_FLAG] ; not rsi);
        if size == 8 {
            dynasm!(self.ops ; .arch x64 ; lea rsi, [rsi + rsi]);
        }
        let (code, width) = if wide {
            (Code::Lea_r64_m, 8)
        } else {
            (Code::Lea_r32_m, 4)
        };
        let scale = 2 * size.min(4) as u32;
        let sum = MemoryOperand::with_base_index_scale_displ_size(
            sized(from, 8),
            T0,
            scale,
            i64::from(3 * size),
            1,
        );
        let lea = Instruction::with2(code, sized(into, width), sum).map_err(|_| Unencodable)?;
        let lea = self.encode(&lea)?;
        self.put(&lea);
        Ok(())
    }
}
