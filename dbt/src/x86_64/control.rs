//! Stack instructions and jumps.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Code, Instruction, OpKind, Register};

use super::astray::compare_of;
use super::emitter::{Emitter, Unencodable};
use super::moving::Follows;
use super::operands::{Address, HostMemory};
use super::registers::{T0, T1, number, sized};
use super::stack::STACK;
use super::stubs::Stub;
use super::whole_jumps::PUSH;
use crate::guest::{Mode, Register as Guest};
use crate::record::classify;
use crate::record::grouping::Place;
use crate::run::{JUMP_ENTRIES, JUMP_SHIFT, Upcall, UpcallKind, at};

/// The host register that holds the guest's frame pointer.
const FRAME: u8 = 5;

impl Emitter<'_> {
    /// Bytes that an instruction pushes, pops or jumps by.
    pub(super) fn width(&self, insn: &Instruction) -> u32 {
        classify::width(insn, self.target.mode)
    }

    /// PUSH.
    pub(super) fn push(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        let word = classify::stack_width(insn);
        let by = -(word as i32);
        let slot = Address::based(Guest::RSP, self.stack_ahead + by, self.target.mode);
        match insn.op0_kind() {
            OpKind::Register if insn.op0_register().is_segment_register() => {
                let segment = insn.op0_register() as usize - Register::ES as usize;
                let memory = self.check(index, (Place::Stack, &slot), word, true, needed)?;
                dynasm!(self.ops ; .arch x64 ; gs movzx edi, WORD [at::selector(segment)]);
                // The rest of a slot of 32 bits stays as it is.
                let size = if word == 4 { 2 } else { word };
                self.store_register(memory, T1, size)?;
            }
            OpKind::Register => {
                let guest = number(insn.op0_register());
                let memory = self.check(index, (Place::Stack, &slot), word, true, needed)?;
                let reads = 1 << guest | 1 << Guest::RSP;
                let (from, reads) = match self.places.pinned(guest) {
                    Some(host) => (Register::RAX + u32::from(host), Some(reads)),
                    None => {
                        self.load_guest(T1, guest);
                        (T1, None)
                    }
                };
                self.store_late((index, Place::Stack), memory, reads, |_, memory| {
                    Ok(memory.store(from, word))
                })?;
            }
            OpKind::Memory => {
                let from = self.operand(insn)?;
                let source = self.check(index, (Place::Operand, &from), word, false, needed)?;
                self.put(&source.load(T1, word));
                dynasm!(self.ops ; .arch x64 ; gs mov [at::SCRATCH], rdi);
                let memory = self.check(index, (Place::Stack, &slot), word, true, needed)?;
                dynasm!(self.ops ; .arch x64 ; gs mov rdi, [at::SCRATCH]);
                self.store_register(memory, T1, word)?;
                // What executes the load may have executed the whole instruction.
                self.move_stack(by);
                return Ok(());
            }
            _ => {
                let value = insn.immediate(0);
                let memory = self.check(index, (Place::Stack, &slot), word, true, needed)?;
                self.load_constant(T1, value);
                self.store_register(memory, T1, word)?;
            }
        }
        self.pass_stack(index, by);
        Ok(())
    }

    /// Loads a constant, in as few bytes as it takes.
    pub(super) fn load_constant(&mut self, into: Register, value: u64) {
        let into = Self::scratch(into);
        if value <= u64::from(u32::MAX) {
            dynasm!(self.ops ; .arch x64 ; mov Rd(into), DWORD value as i32);
        } else if let Ok(short) = i32::try_from(value as i64) {
            dynasm!(self.ops ; .arch x64 ; mov Rq(into), short);
        } else {
            dynasm!(self.ops ; .arch x64 ; mov Rq(into), QWORD value as i64);
        }
    }

    /// Loads the address of guest code.
    pub(super) fn load_code_address(&mut self, into: Register, address: u64) {
        self.load_constant(into, address);
        self.ops.mark(Follows::loaded(address));
    }

    /// POP to a register.
    pub(super) fn pop(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        let word = classify::stack_width(insn);
        let slot = Address::based(Guest::RSP, self.stack_ahead, self.target.mode);
        let memory = self.check(index, (Place::Stack, &slot), word, false, needed)?;
        let guest = number(insn.op0_register());
        // Two bytes leave the rest of the register as it is.
        let place = self.places.pinned(guest).filter(|_| word != 2);
        let into = place.map_or(T1, |host| Register::RAX + u32::from(host));
        self.put(&memory.load(into, word));
        // A POP to a part of the stack pointer changes the rest.
        if guest != Guest::RSP || word == 2 {
            self.pass_stack(index, word as i32);
        }
        if place.is_none() {
            self.store_part(guest, T1, word);
        }
        Ok(())
    }

    /// ENTER without frames around its own. Its last word has to be writable, although nothing is written there.
    pub(super) fn enter(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        if classify::frames(insn) != 0 {
            return Err(Unencodable);
        }
        let mode = self.target.mode;
        let wide = mode.has(Mode::CODE64);
        let word = match insn.code() {
            Code::Enterw_imm16_imm8 => 2,
            Code::Enterd_imm16_imm8 => 4,
            _ => 8,
        };
        let room = i32::from(insn.immediate16());
        let frame = -(word as i32);
        self.spoil_flags(needed);
        let instead = self.interpret_instead(index);
        let last = Some(frame - room).filter(|_| room != 0);
        for checked in last.into_iter().chain([frame]) {
            if mode.segmented() {
                let slot = Address::based(Guest::RSP, checked, mode);
                self.linear_within(index, &slot, word, true)?;
                self.translate_linear(word, true, instead);
            } else {
                self.add_displacement(Self::scratch(T0), STACK, checked, wide);
                self.look_up((Self::scratch(T0), 0), (word, true), instead);
            }
        }
        self.store_register(HostMemory::AT_T0, Register::RBP, word)?;
        if word == 2 {
            self.add_displacement(Self::scratch(T1), STACK, frame, false);
            self.store_part(Guest::RBP, T1, word);
        } else {
            self.add_displacement(FRAME, STACK, frame, wide);
        }
        self.move_stack(frame - room);
        Ok(())
    }

    /// LEAVE.
    pub(super) fn leave(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        let word = self.width(insn);
        let slot = Address::based(Guest::RBP, 0, self.target.mode);
        let memory = self.check(index, (Place::Stack, &slot), word, false, needed)?;
        self.put(&memory.load(T1, word));
        self.set_stack(FRAME, word as i32);
        self.store_part(Guest::RBP, T1, word);
        Ok(())
    }

    /// Pushes the return address of a call, and says what that is.
    fn push_return(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<u64, Unencodable> {
        let next = self.push_next(index, insn, needed)?;
        let by = std::mem::take(&mut self.stack_ahead) - self.width(insn) as i32;
        self.move_stack(by);
        self.registers_changed(1 << Guest::RSP);
        Ok(next)
    }

    /// Likewise; the guest's stack pointer has yet to move.
    pub(super) fn push_next(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<u64, Unencodable> {
        let word = self.width(insn);
        let next = self.next_offset(insn) & if word == 2 { 0xffff } else { u64::MAX };
        let below = self.stack_ahead - word as i32;
        let slot = Address::based(Guest::RSP, below, self.target.mode);
        let memory = self.check(index, (Place::Stack, &slot), word, true, needed)?;
        self.load_code_address(T1, next);
        self.store_register(memory, T1, word)?;
        Ok(next)
    }

    /// Direct near CALL.
    pub(super) fn call(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        self.within_limit(insn)?;
        let next = self.push_return(index, insn, needed)?;
        if self.target.returns {
            let flags = self.flags_for_exit();
            self.call_exit(insn.near_branch_target(), next, flags);
        } else {
            self.exit_to(insn.near_branch_target());
        }
        Ok(())
    }

    /// Direct near CALL that a trace follows.
    pub(super) fn call_into(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        self.push_next(index, insn, needed)?;
        self.pass_stack(index, -(self.width(insn) as i32));
        Ok(())
    }

    /// Near RET that a trace follows to where its call came from; one to elsewhere is the
    /// interpreter's. What is known to come back is not compared.
    pub(super) fn return_into(
        &mut self,
        index: usize,
        insn: &Instruction,
    ) -> Result<(), Unencodable> {
        let word = self.width(insn);
        let by = word as i32 + classify::released(insn) as i32;
        let known = self.target.sure_accesses && self.groups.knows_return(index);
        if known && self.stack_established(index) {
            self.pass_stack(index, by);
            return Ok(());
        }
        let ahead = self.stack_ahead;
        let slot = Address::based(Guest::RSP, ahead, self.target.mode);
        self.spoil_flags_and(1 << Guest::RSP, true);
        let memory = self.check(index, (Place::Stack, &slot), word, false, true)?;
        let into = sized(number(T1) as u8, word as usize);
        let compare = Instruction::with2(compare_of(word), into, memory.operand());
        let compare = self.encode(&compare.map_err(|_| Unencodable)?)?;
        let record = self.record(UpcallKind::Interpret, index);
        let label = self.ops.new_dynamic_label();
        self.stubs.push(Stub::Elsewhere {
            label,
            ahead,
            record,
        });
        self.go_on_if_equal(index, &compare, label);
        self.pass_stack(index, by);
        Ok(())
    }

    /// The block ends with a jump to a known address.
    pub(super) fn exit_to(&mut self, target: u64) {
        if !self.flags.arrived {
            self.restore_flags();
        }
        self.last_exits(&[(target, None)]);
    }

    /// Jcc: both ways are exits.
    pub(super) fn branch(&mut self, insn: &Instruction) -> Result<(), Unencodable> {
        self.within_limit(insn)?;
        self.restore_flags();
        let condition = insn.condition_code() as u8;
        // iced-x86 numbers conditions from 1 in the encoding's order.
        let taken = (insn.near_branch_target(), Some(condition - 1));
        self.last_exits(&[taken, (self.next_offset(insn), None)]);
        Ok(())
    }

    /// Jcc in the middle of a trace: the way that the trace does not follow is an exit.
    pub(super) fn followed_branch(
        &mut self,
        index: usize,
        insn: &Instruction,
    ) -> Result<(), Unencodable> {
        self.within_limit(insn)?;
        self.restore_flags();
        let condition = insn.condition_code() as u8 - 1;
        let next = self.next_offset(insn);
        if self.rips[index + 1] == next {
            self.side_exit(insn.near_branch_target(), condition, index + 1);
        } else {
            self.side_exit(next, condition ^ 1, index + 1);
        }
        Ok(())
    }

    /// With the target's RIP in T0 and the flags saved: finds the host address in the jump
    /// cache, leaving the entry's offset in T1. What is not there is looked for: `back` says where with the
    /// host address of the code that does so in T0, `None` that nothing else is left to do. Outside of 64-bit
    /// code the interpreter executes the instruction then.
    fn look_up_jump(&mut self, index: usize, back: Option<DynamicLabel>) {
        let record = self.record(UpcallKind::Interpret, index);
        let instead = self.stub(None, record);
        let miss = match self.target.mode.has(Mode::CODE64) {
            true => self.unknown(back, Some(instead)),
            false => instead,
        };
        self.look_up_jump_in(self.target.jump_cache, miss);
    }

    /// Likewise, leaving the target's host address, or that of the code that looks for it, in T0.
    pub(super) fn find_jump(&mut self, index: usize) {
        let back = self.ops.new_dynamic_label();
        let host = at::jumps(self.target.jump_cache) + 8;
        self.look_up_jump(index, Some(back));
        dynasm!(self.ops ; .arch x64 ; gs mov rsi, [rdi + host]);
        self.mark_jumps(self.target.jump_cache);
        dynasm!(self.ops ; .arch x64 ; =>back);
    }

    /// Requires that the address in a scratch register is canonical. Uses another.
    pub(super) fn require_canonical(
        &mut self,
        address: Register,
        other: Register,
        instead: DynamicLabel,
    ) {
        let (address, other) = (Self::scratch(address), Self::scratch(other));
        dynasm!(self.ops
            ; .arch x64
            ; mov Rq(other), Rq(address)
            ; shl Rq(other), 16
            ; sar Rq(other), 16
            ; cmp Rq(other), Rq(address)
            ; jne =>instead
        );
    }

    /// A target that is not in a jump cache, which may not be canonical if it says what is done with such.
    pub(super) fn unknown(
        &mut self,
        back: Option<DynamicLabel>,
        instead: Option<DynamicLabel>,
    ) -> DynamicLabel {
        let label = self.ops.new_dynamic_label();
        self.stubs.push(Stub::Unknown {
            label,
            back,
            instead,
        });
        label
    }

    /// With a RIP in T0: finds it in a jump cache, leaving the entry's offset in T1, or goes to
    /// `miss`.
    pub(super) fn look_up_jump_in(&mut self, cache: usize, miss: DynamicLabel) {
        self.jump_word();
        let table = at::jumps(cache);
        let mask = JUMP_ENTRIES as i32 - 1;
        let bits = JUMP_SHIFT as i8;
        if self.target.bmi2 {
            dynasm!(self.ops ; .arch x64 ; rorx edi, esi, bits);
        } else {
            dynasm!(self.ops ; .arch x64 ; mov edi, esi ; shr edi, bits);
        }
        dynasm!(self.ops
            ; .arch x64
            ; xor edi, esi
            ; and edi, mask
            ; shl edi, 4
        );
        self.keep_fused(8);
        dynasm!(self.ops ; .arch x64 ; gs cmp rsi, [rdi + table]);
        self.mark_jumps(cache);
        dynasm!(self.ops ; .arch x64 ; jne =>miss);
    }

    /// Notes that what has just been emitted ends in a displacement into a jump cache.
    pub(super) fn mark_jumps(&mut self, cache: usize) {
        self.ops.mark(if cache == self.target.jump_cache {
            Follows::Jumps
        } else {
            Follows::FarJumps
        });
    }

    fn jump_found(&mut self) {
        let host = at::jumps(self.target.jump_cache) + 8;
        self.keep_whole(7);
        dynasm!(self.ops ; .arch x64 ; gs jmp QWORD [rdi + host]);
        self.mark_jumps(self.target.jump_cache);
    }

    /// The flags go to a block that is not known, in their saved place.
    fn flags_to_next(&mut self) {
        self.put_flags_away();
        self.flags.host = false;
    }

    /// The flags go to the next block as LAHF and SETO leave them.
    pub(super) fn flags_to_saved(&mut self) {
        self.save_flags();
        self.flags.host = false;
    }

    /// Near RET.
    pub(super) fn ret(&mut self, index: usize, insn: &Instruction) -> Result<(), Unencodable> {
        let word = self.width(insn);
        let ahead = std::mem::take(&mut self.stack_ahead);
        let slot = Address::based(Guest::RSP, ahead, self.target.mode);
        let memory = self.check(index, (Place::Stack, &slot), word, false, true)?;
        self.flags_to_next();
        self.put(&memory.load(T0, word));
        self.limit_target(index, word);
        let pops = word as i32 + classify::released(insn) as i32;
        if self.target.returns {
            let label = self.ops.new_dynamic_label();
            let record = self.record(UpcallKind::Interpret, index);
            self.stubs.push(Stub::Return {
                label,
                ahead,
                pops,
                record,
            });
            self.keep_fused(5);
            dynasm!(self.ops
                ; .arch x64
                ; cmp rsi, [rsp + 8]
                ; jne =>label
            );
            self.move_stack(ahead + pops);
            self.keep_whole(1);
            dynasm!(self.ops ; .arch x64 ; ret);
        } else {
            let record = self.record(UpcallKind::Interpret, index);
            let instead = self.stub(None, record);
            self.look_up_jump_in(self.target.jump_cache, instead);
            self.move_stack(pops);
            self.jump_found();
        }
        Ok(())
    }

    /// A return to somewhere else than predicted: what is predicted for the returns behind it is of no
    /// use then, as with longjmp or another thread's stack.
    pub(super) fn unpredicted_return(&mut self, pops: i32, record: Upcall) {
        let miss = self.ops.new_dynamic_label();
        let instead = self.ops.new_dynamic_label();
        dynasm!(self.ops ; .arch x64 ; gs mov rsp, [at::RETURN_TOP]);
        self.look_up_jump_in(self.target.jump_cache, miss);
        self.move_stack(pops);
        self.jump_found();
        dynasm!(self.ops ; .arch x64 ; =>miss);
        if self.target.mode.has(Mode::CODE64) {
            self.require_canonical(T0, T1, instead);
            self.move_stack(pops);
            dynasm!(self.ops
                ; .arch x64
                ; gs mov [at::ARRIVING], rsi
                ; gs jmp QWORD [at::ARRIVAL]
                ; =>instead
            );
        }
        self.upcall(record);
    }

    /// Puts the target of an indirect jump or call into T0.
    fn indirect_target(&mut self, index: usize, insn: &Instruction) -> Result<(), Unencodable> {
        let word = self.width(insn);
        if insn.op0_kind() == OpKind::Register {
            self.flags_to_next();
            let guest = number(insn.op0_register());
            self.load_guest(T0, guest);
            match word {
                2 => dynasm!(self.ops ; .arch x64 ; movzx esi, si),
                4 => dynasm!(self.ops ; .arch x64 ; mov esi, esi),
                _ => {}
            }
        } else {
            let address = self.operand(insn)?;
            let memory = self.check(index, (Place::Operand, &address), word, false, true)?;
            self.flags_to_next();
            self.put(&memory.load(T0, word));
        }
        self.limit_target(index, word);
        Ok(())
    }

    /// Near JMP through a register or memory.
    pub(super) fn jump_indirect(
        &mut self,
        index: usize,
        insn: &Instruction,
    ) -> Result<(), Unencodable> {
        self.indirect_target(index, insn)?;
        self.look_up_jump(index, None);
        self.jump_found();
        Ok(())
    }

    /// Near CALL through a register or memory. The target is found before the return address
    /// is pushed: a bad target faults without a trace.
    pub(super) fn call_indirect(
        &mut self,
        index: usize,
        insn: &Instruction,
    ) -> Result<(), Unencodable> {
        self.indirect_target(index, insn)?;
        self.find_jump(index);
        dynasm!(self.ops ; .arch x64 ; gs mov [at::SCRATCH], rsi);
        let next = self.push_return(index, insn, true)?;
        self.call_found(next);
        Ok(())
    }

    /// Ends an indirect call: its target on the host is in the scratch word, the return address in T1.
    pub(super) fn call_found(&mut self, next: u64) {
        if self.target.returns {
            // push, and a call with a prefix, through an absolute address.
            self.keep_whole(PUSH + 8);
            dynasm!(self.ops
                ; .arch x64
                ; push rdi
                ; gs call QWORD [at::SCRATCH]
            );
            self.landing(next);
        } else {
            dynasm!(self.ops ; .arch x64 ; gs jmp QWORD [at::SCRATCH]);
        }
    }
}
