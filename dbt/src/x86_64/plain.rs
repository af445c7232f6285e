//! Instructions that run on the host as they are, with registers substituted and the memory
//! operand replaced by a checked host address.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Code, Instruction, Mnemonic, OpAccess, OpKind, Register};

use super::crossing::{Crossing, Loads, repeatable};
use super::emitter::{Emitter, Unencodable};
use super::encoded::Encoded;
use super::encoding;
use super::flags::FlagsPlace;
use super::late_stores::{addresses, moves};
use super::moving::Follows;
use super::operands::{Address, HostMemory};
use super::places::Places;
use super::registers::{T0, T1, is_high_byte, number, sized};
use crate::guest::Mode;
use crate::record::classify::{Class, Operand};
use crate::record::grouping::Place;
use crate::record::liveness::Flags;
use crate::record::recipe::Recipe;

/// Guest registers that stay in memory, and the scratch registers they are staged in.
struct Staging([Option<Staged>; 3]);

/// A guest register in a scratch register.
#[derive(Clone, Copy)]
struct Staged {
    guest: u8,
    scratch: Register,
    /// It is loaded before the instruction.
    load: bool,
    /// It is stored afterwards.
    store: bool,
}

impl Staging {
    fn staged(&self) -> impl Iterator<Item = &Staged> {
        self.0.iter().flatten()
    }

    /// What is loaded before the instruction, on a slow path, too, where there are two at the most.
    fn first_loads(&self) -> Loads {
        let mut loads = self.loads();
        [loads.next(), loads.next()]
    }

    /// What is loaded before the instruction: scratch registers, and guest registers by number.
    fn loads(&self) -> impl Iterator<Item = (Register, u8)> {
        let loaded = self.staged().filter(|staged| staged.load);
        loaded.map(|staged| (staged.scratch, staged.guest))
    }

    /// Whether any of them is stored afterwards.
    fn changes(&self) -> bool {
        self.staged().any(|staged| staged.store)
    }

    /// A scratch register for a guest register, in the size of the latter: the first of these that is free.
    fn add(
        &mut self,
        register: Register,
        scratch: &[Register],
        load: bool,
        store: bool,
    ) -> Result<Register, Unencodable> {
        let guest = number(register) as u8;
        for (place, &scratch) in self.0.iter_mut().zip(scratch) {
            let staged = place.get_or_insert(Staged {
                guest,
                scratch,
                load: false,
                store: false,
            });
            if staged.guest == guest {
                staged.load |= load;
                staged.store |= store;
                return Ok(sized(number(scratch) as u8, register.size()));
            }
        }
        Err(Unencodable)
    }

    /// The host register in the place of one of an address.
    fn place(&self, register: Register, places: &Places) -> Option<Register> {
        let guest = number(register) as u8;
        self.staged()
            .find(|staged| staged.guest == guest)
            .map(|staged| sized(number(staged.scratch) as u8, register.size()))
            .or_else(|| places.host(register))
    }
}

/// Flags that must survive up to this instruction, and whether it needs them in EFLAGS.
#[derive(Clone, Copy)]
pub(super) struct Need {
    /// Needed before the instruction.
    pub before: u32,
    /// Needed after it.
    pub after: u32,
}

impl Need {
    /// Whether the instruction must find the guest's flags in EFLAGS: it reads some, or
    /// changes only part of those that are needed afterwards.
    pub fn in_host(self, flags: Flags) -> bool {
        let kept = self.after & !flags.overwritten();
        flags.read() != 0 || (flags.changed() != 0 && kept != 0)
    }
}

/// Forms that exist only outside 64-bit mode, and moffs forms, as their general equivalents.
pub(super) fn general_form(insn: &Instruction) -> Instruction {
    let mut general = *insn;
    let code = match insn.code() {
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
        // The accumulator forms name RAX only, which keeps its place; the exchange with an
        // accumulator does not fit every register.
        Code::Xchg_r16_AX => Code::Xchg_rm16_r16,
        Code::Xchg_r32_EAX => Code::Xchg_rm32_r32,
        Code::Xchg_r64_RAX => Code::Xchg_rm64_r64,
        other => other,
    };
    general.set_code(code);
    general
}

impl Emitter<'_> {
    /// Emits a plain instruction.
    pub(super) fn plain(
        &mut self,
        index: usize,
        insn: &Instruction,
        class: &Class,
        operand: Operand,
        need: Need,
    ) -> Result<(), Unencodable> {
        let mut insn = general_form(insn);
        insn.set_has_lock_prefix(false);
        insn.set_has_xacquire_prefix(false);
        insn.set_has_xrelease_prefix(false);
        if operand == Operand::None {
            insn.set_segment_prefix(Register::None);
            return self.on_registers(index, &insn, class, need);
        }
        self.on_memory(index, &insn, class, operand, need)
    }

    fn on_registers(
        &mut self,
        index: usize,
        insn: &Instruction,
        class: &Class,
        need: Need,
    ) -> Result<(), Unencodable> {
        let mut out = *insn;
        let mut staging = stage(&mut out, class, &self.places, &Self::STAGING)?;
        let old_value = Recipe::with_old_value(insn).filter(|_| self.worth_stashing());
        let in_memory = match old_value {
            None => self.operand_in_memory(&out, &mut staging),
            Some(_) => None,
        };
        let bytes = match in_memory {
            Some(bytes) => bytes,
            None => self.encode(&out)?,
        };
        if need.in_host(class.flags) {
            self.restore_flags();
        }
        self.note_flags(index);
        self.load_staged(&staging);
        if let Some(recipe) = old_value {
            self.stash(out.op0_register(), recipe);
        }
        if let Some(recipe) = Recipe::with_carry(insn)
            && self.flags.host
            && !self.flags.lost
            && self.worth_stashing()
        {
            self.stash_carry(recipe);
        }
        self.keep_with_branch(bytes.len(), class);
        self.put(&bytes);
        self.store_staged(&staging);
        self.changed_flags(class);
        Ok(())
    }

    /// The instruction with an operand where it is, if that is a guest register in memory for which `out` has
    /// a scratch register; it need not be staged then.
    fn operand_in_memory(&self, out: &Instruction, staging: &mut Staging) -> Option<Encoded> {
        if !self.target.memory_operands || staging.0[0].is_none() {
            return None;
        }
        (0..out.op_count().min(2)).find_map(|operand| {
            if out.op_kind(operand) != OpKind::Register {
                return None;
            }
            let scratch = out.op_register(operand).full_register();
            let named = (0..out.op_count()).filter(|&other| {
                out.op_kind(other) == OpKind::Register
                    && out.op_register(other).full_register() == scratch
            });
            let staged = staging.0.iter_mut().find(|staged| {
                let staged = staged.as_ref();
                staged.is_some_and(|staged| staged.scratch == scratch)
            })?;
            if named.count() != 1 {
                return None;
            }
            let slot = self.places.slot(staged.as_ref()?.guest.into());
            let bytes = encoding::encode_in_memory(out, operand, slot)?;
            *staged = None;
            Some(bytes)
        })
    }

    fn on_memory(
        &mut self,
        index: usize,
        insn: &Instruction,
        class: &Class,
        operand: Operand,
        need: Need,
    ) -> Result<(), Unencodable> {
        let mut address = self.operand(insn)?;
        self.set_apart(index, insn, &mut address);
        let at = (Place::Operand, &address);
        let checked = self.host_memory(index, at);
        let size = insn.memory_size().size() as u32;
        let stash = match operand {
            Operand::Read => Recipe::with_memory(insn),
            Operand::Modify => Recipe::with_result(insn),
            _ => None,
        };
        let stash = stash.filter(|_| self.worth_stashing());
        let loads = operand == Operand::Modify || (operand == Operand::Read && stash.is_some());
        // A value that is loaded takes T1; the linear address took T0.
        let scratch: &[Register] = if loads {
            &Self::STAGING[1..2]
        } else {
            &Self::STAGING[..2]
        };
        let mut out = *insn;
        let staging = stage(&mut out, class, &self.places, scratch)?;
        let high_byte = (0..insn.op_count())
            .any(|op| insn.op_kind(op) == OpKind::Register && is_high_byte(insn.op_register(op)));
        // Everything is encoded before anything is emitted: what cannot be is left to a helper.
        let encoded = |emitter: &mut Self, memory: HostMemory| emitter.encode_on(&out, memory);
        // AH to BH cannot be named beside registers that need a prefix; T0 needs none.
        let by_t0 = high_byte && encoded(self, checked).is_err();
        let memory = if by_t0 { HostMemory::AT_T0 } else { checked };
        let on_loaded = loads && !high_byte;
        // On T1 where the operand is loaded, else on the native copy.
        let native = if on_loaded {
            let memory_op = (0..insn.op_count())
                .find(|&op| insn.op_kind(op) == OpKind::Memory)
                .ok_or(Unencodable)?;
            let mut out = out;
            out.set_segment_prefix(Register::None);
            out.set_memory_base(Register::None);
            out.set_memory_index(Register::None);
            out.set_op_kind(memory_op, OpKind::Register);
            out.set_op_register(memory_op, sized(number(T1) as u8, size as usize));
            self.encode(&out)?
        } else {
            encoded(self, memory)?
        };
        let write = matches!(
            operand,
            Operand::Write | Operand::WriteOnce | Operand::Modify
        );
        let behind = self.ops.new_dynamic_label();
        // A pending exception would be raised by the repetition.
        let once = operand == Operand::WriteOnce && !self.target.mode.has(Mode::X87_UNMASKED);
        if self.target.crossing && (once || operand == Operand::Write && repeatable(insn)) {
            self.crossing_store = Crossing::Store {
                loads: staging.first_loads(),
                store: match memory == HostMemory::AT_T0 {
                    true => native,
                    false => encoded(self, HostMemory::AT_T0)?,
                },
                behind,
            };
        }
        let in_host = need.in_host(class.flags);
        if self.target.crossing
            && operand == Operand::Modify
            && on_loaded
            && size > 1
            && !in_host
            && !staging.changes()
        {
            self.crossing_store = Crossing::Update {
                loads: staging.first_loads(),
                size: size as u8,
                compute: native,
                stash: stash.is_some(),
                behind,
            };
        }
        self.may_predict = true;
        self.check_access(index, at, size, write, need.before != 0)?;
        self.may_predict = false;
        self.crossing_store = Crossing::Never;
        if by_t0 {
            self.lead_to(checked)?;
        }
        if in_host {
            self.restore_flags();
        }
        self.note_flags(index);
        self.load_staged(&staging);
        match operand {
            Operand::Read if let Some(recipe) = stash => {
                self.put(&memory.load(T1, size));
                self.stash(T1, recipe);
                self.keep_with_branch(native.len(), class);
                self.put(&native);
            }
            Operand::None | Operand::Read => {
                self.keep_with_branch(native.len(), class);
                self.put(&native);
            }
            Operand::Write => {
                let moved = moves(insn).filter(|_| staging.staged().next().is_none());
                let reads = moved.map(|stored| stored | addresses(insn, memory));
                self.store_late(
                    (index, Place::Operand),
                    memory,
                    reads,
                    |emitter, copy| match copy == memory {
                        true => Ok(native),
                        false => encoded(emitter, copy),
                    },
                )?;
            }
            Operand::WriteOnce => {
                self.put(&native);
                self.mirror_from_native(memory, size)?;
            }
            Operand::Modify if high_byte => {
                self.put(&native);
                self.mirror_from_native(memory, size)?;
            }
            Operand::Modify => {
                self.put(&memory.load(T1, size));
                self.put(&native);
                if let Some(recipe) = stash {
                    self.stash(T1, recipe);
                }
                self.store_register(memory, T1, size)?;
            }
        }
        self.store_staged(&staging);
        self.changed_flags(class);
        dynasm!(self.ops ; .arch x64 ; =>behind);
        Ok(())
    }

    /// Where the access of an instruction is checked alone, and predicts, it is to wait for one register only: the one that is
    /// not known until late, as far as that can be seen.
    fn set_apart(&mut self, index: usize, insn: &Instruction, address: &mut Address) {
        use Mnemonic::{Cmpxchg, Xadd, Xchg};
        if !self.target.late_index || address.sum().is_none() {
            return;
        }
        self.may_predict = true;
        let at = (index, Place::Operand);
        // Those change registers before the last store.
        let changes = matches!(insn.mnemonic(), Cmpxchg | Xadd | Xchg);
        if self.predicting(at).is_some() && self.groups.of(index, at.1).is_none() && !changes {
            let [base, scaled] =
                [insn.memory_base(), insn.memory_index()].map(|register| 1 << number(register));
            let written = (self.flow.classes[..index].iter().rev())
                .map(|class| class.writes & (base | scaled))
                .find(|&written| written != 0);
            address.set_apart(written == Some(base));
        }
        self.may_predict = false;
    }

    /// Makes T0 the address of an operand. Leaves the flags alone.
    fn lead_to(&mut self, memory: HostMemory) -> Result<(), Unencodable> {
        self.leave_t0();
        let lea = Instruction::with2(Code::Lea_r64_m, T0, memory.operand());
        let lea = self.encode(&lea.map_err(|_| Unencodable)?)?;
        self.put(&lea);
        Ok(())
    }

    /// After an instruction that changes flags, EFLAGS holds the guest's.
    fn changed_flags(&mut self, class: &Class) {
        if class.flags.changed() != 0 {
            self.flags = FlagsPlace::HOST;
        }
    }

    fn load_staged(&mut self, staging: &Staging) {
        if staging.staged().any(|staged| staged.scratch == T0) {
            self.leave_t0();
        }
        for (scratch, guest) in staging.loads() {
            self.load_guest(scratch, guest.into());
        }
    }

    fn store_staged(&mut self, staging: &Staging) {
        for staged in staging.staged().filter(|staged| staged.store) {
            self.store_guest(staged.guest.into(), staged.scratch);
        }
    }

    /// LEA: the address as a value.
    pub(super) fn address_of(
        &mut self,
        insn: &Instruction,
        class: &Class,
    ) -> Result<(), Unencodable> {
        if insn.memory_base() == Register::RIP {
            let value = insn.memory_displacement64();
            let guest = number(insn.op0_register());
            let value = match insn.op0_register().size() {
                8 => value,
                4 => value & 0xffff_ffff,
                _ => return Err(Unencodable),
            };
            let host = self.places.pinned(guest);
            let into = host.unwrap_or(Self::scratch(T1));
            dynasm!(self.ops ; .arch x64 ; mov Rq(into), QWORD value as i64);
            self.ops.mark(match insn.op0_register().size() {
                8 => Follows::Address,
                _ => Follows::LowAddress,
            });
            if host.is_none() {
                self.store_guest(guest, T1);
            }
            return Ok(());
        }
        let registers = [insn.memory_base(), insn.memory_index()];
        let wide = registers.iter().any(|register| register.size() >= 4);
        if self.target.mode.segmented() || !wide && !self.target.mode.has(Mode::CODE64) {
            return self.offset_of(insn);
        }
        let mut out = *insn;
        let staging = stage(&mut out, class, &self.places, &Self::STAGING)?;
        out.set_segment_prefix(Register::None);
        for (register, set) in [
            (
                insn.memory_base(),
                Instruction::set_memory_base as fn(&mut Instruction, Register),
            ),
            (insn.memory_index(), Instruction::set_memory_index),
        ] {
            if register != Register::None {
                let placed = staging.place(register, &self.places).ok_or(Unencodable)?;
                set(&mut out, placed);
            }
        }
        // The base and index change places in their encoding's rules: let the encoder choose
        // the displacement's size anew.
        if out.memory_base() != Register::None {
            out.set_memory_displ_size(1);
        }
        let bytes = self.encode(&out)?;
        self.load_staged(&staging);
        self.put(&bytes);
        self.store_staged(&staging);
        Ok(())
    }
}

/// Replaces the general-purpose registers among the operands by host registers: a scratch register for every guest
/// register that stays in memory.
fn stage(
    insn: &mut Instruction,
    class: &Class,
    places: &Places,
    scratch: &[Register],
) -> Result<Staging, Unencodable> {
    let mut staging = Staging([None; 3]);
    let operands = insn.op_count();
    // With AH and the like no operand may be a register that a REX prefix names.
    let first = [
        insn.op0_register(),
        insn.op1_register(),
        insn.op2_register(),
    ];
    let high_byte = first.into_iter().any(is_high_byte);
    let as_it_is = *insn;
    for op in 0..operands {
        let register = as_it_is.op_register(op);
        if as_it_is.op_kind(op) != OpKind::Register || !register.is_gpr() {
            continue;
        }
        let host = places
            .host(register)
            .filter(|&host| !high_byte || is_high_byte(host) || number(host) < 8);
        let placed = match host {
            Some(host) => host,
            None => {
                let (reads, writes) = uses(&as_it_is, class, op);
                staging.add(register, scratch, reads, writes)?
            }
        };
        insn.set_op_register(op, placed);
    }
    if insn.mnemonic() == Mnemonic::Lea {
        for register in [insn.memory_base(), insn.memory_index()] {
            if register != Register::None && places.host(register).is_none() {
                staging.add(register, scratch, true, false)?;
            }
        }
    }
    Ok(staging)
}

/// Whether what an instruction does with a register among its operands needs its value, and whether it changes that.
fn uses(insn: &Instruction, class: &Class, op: u32) -> (bool, bool) {
    let (register, access) = (insn.op_register(op), class.access[op as usize]);
    let writes = matches!(
        access,
        OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite
    );
    // A narrow or conditional write keeps what is there; what clears its register does not read it.
    let clears = matches!(insn.mnemonic(), Mnemonic::Xor | Mnemonic::Sub)
        && register.size() >= 4
        && insn.op_count() == 2
        && insn.op1_kind() == OpKind::Register
        && insn.op0_register() == insn.op1_register();
    let reads = !clears && (access != OpAccess::Write || register.size() < 4);
    (reads, writes)
}

impl Emitter<'_> {
    /// As [`Emitter::plain`], with the memory operand in the bounce buffer instead of guest
    /// memory.
    pub(super) fn alone_plain(
        &mut self,
        insn: &Instruction,
        class: &Class,
        operand: Operand,
    ) -> Result<(), Unencodable> {
        let mut insn = general_form(insn);
        insn.set_has_lock_prefix(false);
        insn.set_segment_prefix(Register::None);
        let free = if operand == Operand::None { 3 } else { 2 };
        let mut out = insn;
        let staging = stage(&mut out, class, &self.places, &Self::STAGING[..free])?;
        if operand != Operand::None {
            HostMemory::AT_T0.apply(&mut out);
        }
        let bytes = self.encode(&out)?;
        self.load_staged(&staging);
        // The run loop left the bounce buffer's address in T0.
        self.put(&bytes);
        self.store_staged(&staging);
        Ok(())
    }
}
