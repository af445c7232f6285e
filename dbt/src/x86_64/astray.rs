//! Jumps and calls through registers and memory that a trace follows to where they led when it was recorded,
//! and what they do where they lead elsewhere: that is what any others do, from the middle of a trace.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Code, Instruction, OpKind};

use super::emitter::{Emitter, Unencodable};
use super::encoded::Encoded;
use super::flags::FlagsPlace;
use super::registers::{T0, T1, number, sized};
use super::stubs::Stub;
use crate::guest::Register as Guest;
use crate::record::grouping::Place;
use crate::run::at;

/// A followed jump or call that leads elsewhere.
#[derive(Clone, Copy)]
pub(super) struct Astray {
    index: usize,
    insn: Instruction,
    /// Loads its target into T0, if that is in memory.
    load: Option<Encoded>,
    /// Where the flags are.
    flags: FlagsPlace,
    /// What the guest's stack pointer has yet to move by before it.
    ahead: i32,
    /// The call that the trace has followed here.
    within: Option<usize>,
}

impl Emitter<'_> {
    /// Near JMP through a register or memory that a trace follows: compares its target with the address
    /// at which the trace goes on.
    pub(super) fn jump_into(
        &mut self,
        index: usize,
        insn: &Instruction,
    ) -> Result<(), Unencodable> {
        let word = self.width(insn);
        let expected = sized(number(T1) as u8, word as usize);
        self.spoil_flags_and(1 << Guest::RSP, true);
        let code = compare_of(word);
        let (load, compare) = if insn.op0_kind() == OpKind::Register {
            let guest = number(insn.op0_register());
            let target = self.places.pinned(guest).unwrap_or_else(|| {
                self.leave_t0();
                self.load_guest(T0, guest);
                Self::scratch(T0)
            });
            let target = sized(target, word as usize);
            (None, Instruction::with2(code, target, expected))
        } else {
            let address = self.operand(insn)?;
            let memory = self.check(index, (Place::Operand, &address), word, false, true)?;
            let load = memory.load(T0, word);
            let compare = Instruction::with2(code, expected, memory.operand());
            (Some(load), compare)
        };
        let compare = self.encode(&compare.map_err(|_| Unencodable)?)?;
        let label = self.ops.new_dynamic_label();
        let astray = Box::new(Astray {
            index,
            insn: *insn,
            load,
            flags: self.flags,
            ahead: self.stack_ahead,
            within: self.within,
        });
        self.stubs.push(Stub::Astray { label, astray });
        self.go_on_if_equal(index, &compare, label);
        Ok(())
    }

    /// Near CALL through a register or memory that a trace follows. The return address is pushed when the
    /// target is known: a bad one faults without a trace.
    pub(super) fn call_indirect_into(
        &mut self,
        index: usize,
        insn: &Instruction,
    ) -> Result<(), Unencodable> {
        self.jump_into(index, insn)?;
        let by = -(self.width(insn) as i32);
        self.push_next(index, insn, true)?;
        if insn.op0_kind() == OpKind::Register {
            self.pass_stack(index, by);
        } else {
            // What executes the load may have executed the whole instruction.
            self.move_stack(by);
        }
        Ok(())
    }

    /// Behind the block's end: a followed jump or call leads elsewhere, and nothing of it has been
    /// executed.
    pub(super) fn astray(
        &mut self,
        label: DynamicLabel,
        astray: &Astray,
    ) -> Result<(), Unencodable> {
        let insn = &astray.insn;
        let calls = insn.is_call_near_indirect();
        self.current = astray.index;
        self.flags = astray.flags;
        self.within = astray.within;
        self.established = self.hoisted;
        self.near = None;
        self.stack_ahead = 0;
        dynasm!(self.ops ; .arch x64 ; =>label);
        match &astray.load {
            Some(load) => self.put(load),
            None => {
                self.load_guest(T0, number(insn.op0_register()));
                if self.width(insn) == 4 {
                    dynasm!(self.ops ; .arch x64 ; mov esi, esi);
                }
            }
        }
        self.move_stack(astray.ahead);
        // Functions overwrite the flags more often than they want them.
        if calls {
            self.put_flags_out();
        } else {
            self.save_flags();
        }
        self.flags.host = false;
        self.find_jump(astray.index);
        if calls {
            dynasm!(self.ops ; .arch x64 ; gs mov [at::SCRATCH], rsi);
            self.push_next(astray.index, insn, true)?;
            self.move_stack(-(self.width(insn) as i32));
        }
        self.add_to_budget(self.behind(astray.index + 1));
        self.restore_places();
        self.predict_returns(astray.within);
        if !calls {
            self.keep_whole(2);
            dynasm!(self.ops ; .arch x64 ; jmp rsi);
        } else {
            let next = self.next_offset(insn);
            self.load_code_address(T1, next);
            self.call_found(next);
        }
        Ok(())
    }

    /// Goes on where a trace goes on behind an instruction if `compare` finds that address, which it has in
    /// T1, and elsewhere to `label`.
    pub(super) fn go_on_if_equal(&mut self, index: usize, compare: &Encoded, label: DynamicLabel) {
        self.load_code_address(T1, self.rips[index + 1]);
        self.keep_fused(compare.len());
        self.put(compare);
        dynasm!(self.ops ; .arch x64 ; jne =>label);
    }
}

/// The comparison of a register with a register or memory, of so many bytes.
pub(super) fn compare_of(word: u32) -> Code {
    match word {
        8 => Code::Cmp_r64_rm64,
        _ => Code::Cmp_r32_rm32,
    }
}
