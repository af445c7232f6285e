//! Jumps and calls through registers and memory that a trace follows to where they led once, and what they do
//! where they lead elsewhere: there they are as any others, but in the middle of a trace.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Code, Instruction, OpKind};

use super::emitter::{Emitter, Stub, Unencodable};
use super::flags::FlagsPlace;
use super::operands::HostMemory;
use super::registers::{T0, T1, number, sized};
use crate::guest::Register as Guest;
use crate::record::grouping::Place;
use crate::run::at;

/// A followed jump or call that leads elsewhere.
#[derive(Clone, Copy)]
pub(super) struct Astray {
    index: usize,
    insn: Instruction,
    /// Where its target is, if that is in memory.
    memory: Option<HostMemory>,
    /// Where the flags are.
    flags: FlagsPlace,
    /// What the guest's stack pointer has yet to move by before it.
    ahead: i32,
    /// The call that the trace has followed here.
    within: Option<usize>,
}

impl Emitter<'_> {
    /// Compares the target of a jump or call with the address at which the trace goes on; the flags are
    /// spoilt.
    fn expect_target(&mut self, index: usize, insn: &Instruction) -> Result<(), Unencodable> {
        let word = self.width(insn);
        let wide = word == 8;
        self.spoil_flags_and(1 << Guest::RSP, true);
        let expected = sized(number(T1) as u8, word as usize);
        let (memory, compare) = if insn.op0_kind() == OpKind::Register {
            let guest = number(insn.op0_register());
            let target = self.places.pinned(guest).unwrap_or_else(|| {
                self.load_guest(T0, guest);
                self.near = None;
                Self::scratch(T0)
            });
            let code = if wide {
                Code::Cmp_r64_rm64
            } else {
                Code::Cmp_r32_rm32
            };
            let target = sized(target, word as usize);
            (None, Instruction::with2(code, target, expected))
        } else {
            let address = self.operand(insn)?;
            let memory = self.check(index, (Place::Operand, &address), word, false, true)?;
            let code = if wide {
                Code::Cmp_r64_rm64
            } else {
                Code::Cmp_r32_rm32
            };
            let compare = Instruction::with2(code, expected, memory.operand());
            (Some(memory), compare)
        };
        let compare = self.encode(&compare.map_err(|_| Unencodable)?)?;
        let label = self.ops.new_dynamic_label();
        let astray = Astray {
            index,
            insn: *insn,
            memory,
            flags: self.flags,
            ahead: self.stack_ahead,
            within: self.within,
        };
        self.stubs.push(Stub::Astray { label, astray });
        self.load_code_address(T1, self.rips[index + 1]);
        self.keep_fused(compare.len());
        self.bytes(&compare);
        dynasm!(self.ops ; .arch x64 ; jne =>label);
        Ok(())
    }

    /// Near JMP through a register or memory that a trace follows.
    pub(super) fn jump_into(
        &mut self,
        index: usize,
        insn: &Instruction,
    ) -> Result<(), Unencodable> {
        self.expect_target(index, insn)
    }

    /// Near CALL through a register or memory that a trace follows.
    pub(super) fn call_indirect_into(
        &mut self,
        index: usize,
        insn: &Instruction,
    ) -> Result<(), Unencodable> {
        let by = -(self.width(insn) as i32);
        self.expect_target(index, insn)?;
        self.push_followed(index, insn, true)?;
        if insn.op0_kind() == OpKind::Register {
            self.pass_stack(index, by);
        } else {
            // What executes the load may have executed the whole instruction.
            self.move_stack(by);
        }
        Ok(())
    }

    /// Behind the block's end: a followed jump or call leads elsewhere. Nothing of it has been
    /// executed.
    pub(super) fn astray(&mut self, astray: Astray) -> Result<(), Unencodable> {
        let Astray { index, insn, .. } = astray;
        let calls = insn.is_call_near_indirect();
        self.current = index;
        self.flags = astray.flags;
        self.within = astray.within;
        self.established = Default::default();
        self.near = None;
        match astray.memory {
            Some(memory) => {
                let word = self.width(&insn);
                let load = self.move_load(T0, memory, word)?;
                self.bytes(&load);
            }
            None => self.register_target(&insn),
        }
        self.move_stack(astray.ahead);
        // What is called overwrites the flags more often than it wants them.
        if calls {
            self.seal_or_save();
        } else {
            self.save_flags();
        }
        self.flags.host = false;
        self.look_up_jump(index);
        let host = at::jumps(self.target.jump_cache) + 8;
        dynasm!(self.ops ; .arch x64 ; gs mov rsi, [rdi + host]);
        if calls {
            dynasm!(self.ops ; .arch x64 ; gs mov [at::SCRATCH], rsi);
            let by = -(self.width(&insn) as i32);
            self.push_followed(index, &insn, true)?;
            self.move_stack(by);
        }
        if self.target.counted {
            let left = self.rips.len() - (index + 1);
            self.add_to_budget(left as i32);
        }
        self.exchange_places();
        self.predict_returns(astray.within);
        self.leave_astray(&insn, calls);
        Ok(())
    }

    fn leave_astray(&mut self, insn: &Instruction, calls: bool) {
        if !calls {
            self.keep_whole(2);
            dynasm!(self.ops ; .arch x64 ; jmp rsi);
        } else if self.target.returns {
            let next = self.next_offset(insn);
            self.load_code_address(T1, next);
            self.keep_whole(10);
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

    /// Puts the target of a jump or call through a register into T0.
    fn register_target(&mut self, insn: &Instruction) {
        self.load_guest(T0, number(insn.op0_register()));
        if insn.op0_register().size() == 4 {
            dynasm!(self.ops ; .arch x64 ; mov esi, esi);
        }
    }

    /// The label and the way of a followed jump that leads elsewhere.
    pub(super) fn place_astray(&mut self, label: DynamicLabel, astray: Astray) {
        dynasm!(self.ops ; .arch x64 ; =>label);
        let placed = self.astray(astray);
        debug_assert!(placed.is_ok(), "a jump that goes nowhere: {}", astray.insn);
    }
}
