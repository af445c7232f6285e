//! The ways out of a block to known guest addresses, and those of a loop back to its beginning.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::Instruction;
use serde::{Deserialize, Serialize};

use super::emitter::Emitter;
use super::flags::{ExitFlags, FlagsPlace};
use super::registers::T1;
use super::stubs::Stub;
use super::whole_jumps::{DIRECT, PUSH};
use crate::cache::CodeOffset;
use crate::record::classify::Kind;
use crate::run::{UpcallKind, at};

/// A jump out of the block to a known guest address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExitSite {
    /// Where the displacement of the jump is.
    pub site: CodeOffset,
    /// Whether that is among the slow paths.
    pub is_cold: bool,
    /// Where the jump goes while it is not linked.
    pub stub: CodeOffset,
    /// Guest RIP of the target.
    pub target: u64,
    /// The instruction that leads out.
    pub insn: u16,
    /// The check of a group failed: the target is this block's own rest, without groups.
    pub ungrouped: Option<u16>,
    /// What leads out.
    pub kind: ExitKind,
    /// How the flags leave.
    pub flags: ExitFlags,
}

impl ExitSite {
    /// Has the jump lead to its stub, in the block's code and slow paths, which are at these places.
    pub fn lead_to_stub(&self, code: &mut [Vec<u8>; 2], bases: [CodeOffset; 2]) {
        let section = usize::from(self.is_cold);
        let at = (self.site.0 - bases[section].0) as usize;
        let displacement = self.stub.0.wrapping_sub(self.site.0 + 4);
        code[section][at..at + 4].copy_from_slice(&displacement.to_le_bytes());
    }
}

/// What leads out of a block to a known address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ExitKind {
    /// A jump, or the block's end.
    Jump,
    /// A call that predicts its return.
    Call,
    /// What is behind such a call: the flags are in their saved place.
    Return,
}

/// A call that a trace follows.
#[derive(Clone, Copy)]
pub(super) struct FollowedCall {
    /// The call within which it is.
    pub outer: Option<usize>,
    /// Where it returns to.
    pub next: u64,
    /// Where that return arrives, if the trace was left before it.
    pub landing: Option<DynamicLabel>,
}

/// The entry of a loop for itself: its registers keep their places.
#[derive(Clone, Copy)]
pub(super) struct Inner {
    pub label: DynamicLabel,
    /// RIP of its first instruction.
    pub rip: u64,
    /// Where it wants the flags.
    pub flags: FlagsPlace,
    /// Registers that a recipe for these flags must not need.
    pub changed: u16,
}

impl Emitter<'_> {
    /// Registers leave their own places when the block is entered. Uses T1; the flags stay.
    pub(super) fn leave_places(&mut self) {
        self.exchange_pairs();
        for (slot, host) in self.places.given_way() {
            dynasm!(self.ops ; .arch x64 ; gs mov [slot], Rq(host));
        }
    }

    /// Registers that are not in their own places go there. Uses T1; the flags stay.
    pub(super) fn restore_places(&mut self) {
        if self.places.are_usual() {
            return;
        }
        self.exchange_pairs();
        for (slot, host) in self.places.given_way() {
            dynasm!(self.ops ; .arch x64 ; gs mov Rq(host), [slot]);
        }
    }

    fn exchange_pairs(&mut self) {
        let t1 = Self::scratch(T1);
        for (memory, host) in self.places.swaps() {
            let slot = at::gpr(memory);
            dynasm!(self.ops
                ; .arch x64
                ; gs mov Rq(t1), [slot]
                ; gs mov [slot], Rq(host)
                ; mov Rq(host), Rq(t1)
            );
        }
    }

    /// Puts the flags, which are in EFLAGS, where the loop wants them when it comes back to its
    /// inner entry, leaving EFLAGS as it is.
    fn flags_for_next_round(&mut self, inner: Inner) {
        if inner.flags.arrived {
            match self.describe_flags() {
                ExitFlags::Saved => {}
                ExitFlags::Recipe(needed) if needed & inner.changed == 0 => {}
                _ => self.save_flags(),
            }
        }
    }

    /// The loop's own way back to its first instruction, if that is where a jump leads. The flags
    /// must be in EFLAGS.
    pub(super) fn next_round(&mut self, target: u64, condition: Option<u8>) -> bool {
        let Some(inner) = self.inner.filter(|inner| inner.rip == target) else {
            return false;
        };
        self.flags_for_next_round(inner);
        match condition {
            Some(condition) => self.jump_if(condition, inner.label),
            None => self.jump(inner.label),
        }
        true
    }

    /// Emits the jumps at the block's end to known guest addresses, each with its condition if it
    /// has one. The flags must be in EFLAGS, or wherever a single jump takes them.
    pub(super) fn last_exits(&mut self, exits: &[(u64, Option<u8>)]) {
        if self.places.are_usual() && self.inner.is_none() {
            let flags = self.flags_for_exit();
            for &(target, condition) in exits {
                self.direct_exit(target, condition, flags);
            }
            return;
        }
        for &(target, condition) in exits {
            if self.next_round(target, condition) {
                continue;
            }
            if let Some(condition) = condition {
                self.side_exit(target, condition, self.rips.len());
                continue;
            }
            let flags = self.flags_for_exit();
            self.restore_places();
            self.direct_exit(target, None, flags);
        }
    }

    /// Emits a jump out of the block to a known guest address. The flags must be in EFLAGS.
    pub(super) fn direct_exit(&mut self, target: u64, condition: Option<u8>, flags: ExitFlags) {
        match condition {
            Some(code) => {
                // jcc rel32
                self.keep_conditional();
                self.ops.extend([0x0f, 0x80 | code].iter());
            }
            None => self.jump_opcode(),
        }
        let kind = self.exit_kind();
        self.linkable(target, kind, flags);
    }

    /// What leads out by a jump: if returns are predicted on the way it has to poll, as a call does.
    fn exit_kind(&self) -> ExitKind {
        if self.predicted || self.within.is_some() {
            ExitKind::Call
        } else {
            ExitKind::Jump
        }
    }

    /// Emits a call of a known guest address, whose return address is in T1, and what its return
    /// leads to.
    pub(super) fn call_exit(&mut self, target: u64, next: u64, flags: ExitFlags) {
        self.keep_whole(PUSH + DIRECT);
        dynasm!(self.ops ; .arch x64 ; push rdi);
        self.ops.push(0xe8);
        self.linkable(target, ExitKind::Call, flags);
        self.landing(next);
    }

    /// Goes on in a function whose call a trace follows, or behind its return.
    pub(super) fn follow_call(&mut self, kind: Kind, insn: &Instruction) {
        match kind {
            _ if !self.target.returns => {}
            Kind::CallInto | Kind::CallIndirectInto => {
                self.calls.push(FollowedCall {
                    outer: self.within,
                    next: self.next_offset(insn),
                    landing: None,
                });
                self.within = Some(self.calls.len() - 1);
            }
            Kind::ReturnInto => self.within = self.within.and_then(|own| self.calls[own].outer),
            _ => {}
        }
    }

    /// Predicts the returns of open calls that a trace has followed, as these would have. Uses T1; the
    /// flags stay.
    pub(super) fn predict_returns(&mut self, within: Option<usize>) {
        let Some(own) = within else {
            return;
        };
        self.predict_returns(self.calls[own].outer);
        let call = self.calls[own];
        let landing = call.landing.unwrap_or_else(|| self.ops.new_dynamic_label());
        self.calls[own].landing = Some(landing);
        let over = self.ops.new_dynamic_label();
        self.load_code_address(T1, call.next);
        self.keep_whole(PUSH + 2 * DIRECT);
        dynasm!(self.ops
            ; .arch x64
            ; push rdi
            ; call =>over
            ; jmp =>landing
            ; =>over
        );
    }

    /// The block ends here: its open calls become as any others.
    pub(super) fn end_calls(&mut self) {
        let within = self.within.take();
        self.predicted = within.is_some();
        self.predict_returns(within);
    }

    /// Where the returns arrive that were predicted on the way out of a trace.
    pub(super) fn landings(&mut self) {
        self.ops.choose(false);
        for call in std::mem::take(&mut self.calls) {
            if let Some(landing) = call.landing {
                dynasm!(self.ops ; .arch x64 ; =>landing);
                self.landing(call.next);
            }
        }
    }

    /// Where a predicted return arrives: it goes on at a guest address.
    pub(super) fn landing(&mut self, next: u64) {
        dynasm!(self.ops ; .arch x64 ; pop rdi);
        self.jump_out(next, ExitKind::Return, ExitFlags::Saved);
    }

    /// Emits a jump out of the block to a known guest address, by which the flags leave so.
    pub(super) fn jump_out(&mut self, target: u64, kind: ExitKind, flags: ExitFlags) {
        self.jump_opcode();
        self.linkable(target, kind, flags);
    }

    /// The displacement of a jump or call out of the block, and its stub.
    fn linkable(&mut self, target: u64, kind: ExitKind, flags: ExitFlags) {
        let exit = self.displacement(target, None, kind, flags);
        let label = self.ops.new_dynamic_label();
        self.stubs.push(Stub::Link { label, exit });
    }

    /// The displacement of a jump or call out of the block, whose stub is not known yet. Returns the exit's
    /// number.
    fn displacement(
        &mut self,
        target: u64,
        ungrouped: Option<u16>,
        kind: ExitKind,
        flags: ExitFlags,
    ) -> usize {
        self.exits.push(ExitSite {
            site: self.address(),
            is_cold: self.ops.is_cold(),
            stub: CodeOffset(0),
            target,
            insn: self.current as u16,
            ungrouped,
            kind,
            flags,
        });
        self.ops.push_u32(0);
        self.exits.len() - 1
    }

    /// The opcode of `jmp rel32`.
    fn jump_opcode(&mut self) {
        self.keep_whole(DIRECT);
        self.ops.push(0xe9);
    }

    /// Emits a jump within the block.
    pub(super) fn jump(&mut self, label: DynamicLabel) {
        self.keep_whole(DIRECT);
        dynasm!(self.ops ; .arch x64 ; jmp =>label);
    }

    /// Behind the block's end: goes on at an instruction in code without groups, by a jump whose link is
    /// behind it.
    pub(super) fn ungrouped_exit(&mut self, target: u64, insn: u16, flags: ExitFlags) {
        self.jump_opcode();
        let exit = self.displacement(target, Some(insn), ExitKind::Jump, flags);
        self.exits[exit].stub = self.address();
        self.flags = match flags {
            ExitFlags::Arrived | ExitFlags::Sealed => FlagsPlace::ARRIVED,
            _ if self.flags.lost => FlagsPlace::LOST,
            _ => FlagsPlace::HOST,
        };
        let mut record = self.record(UpcallKind::Link, 0);
        record.extra = exit as u32;
        self.upcall(record);
    }

    /// A conditional jump out of the middle of a block behind `executed` instructions. The flags
    /// must be in EFLAGS.
    pub(super) fn side_exit(&mut self, target: u64, condition: u8, executed: usize) {
        let described =
            !self.flags.saved && self.flags.recipe.is_some() && self.target.precise_flags;
        let away = self.inner.is_none_or(|inner| inner.rip != target);
        let usual = self.places.are_usual() && self.within.is_none() && away;
        if !self.target.counted && !described && usual {
            let flags = self.describe_flags();
            return self.direct_exit(target, Some(condition), flags);
        }
        let label = self.ops.new_dynamic_label();
        self.stubs.push(Stub::SideExit {
            label,
            target,
            insn: self.current as u16,
            flags: self.flags,
            give_back: self.behind(executed),
            kind: self.exit_kind(),
            within: self.within,
        });
        self.jump_if(condition, label);
    }

    /// Emits a conditional jump, with the condition as encodings number it.
    fn jump_if(&mut self, condition: u8, label: DynamicLabel) {
        self.keep_conditional();
        match condition {
            0x0 => dynasm!(self.ops ; .arch x64 ; jo =>label),
            0x1 => dynasm!(self.ops ; .arch x64 ; jno =>label),
            0x2 => dynasm!(self.ops ; .arch x64 ; jb =>label),
            0x3 => dynasm!(self.ops ; .arch x64 ; jae =>label),
            0x4 => dynasm!(self.ops ; .arch x64 ; je =>label),
            0x5 => dynasm!(self.ops ; .arch x64 ; jne =>label),
            0x6 => dynasm!(self.ops ; .arch x64 ; jbe =>label),
            0x7 => dynasm!(self.ops ; .arch x64 ; ja =>label),
            0x8 => dynasm!(self.ops ; .arch x64 ; js =>label),
            0x9 => dynasm!(self.ops ; .arch x64 ; jns =>label),
            0xa => dynasm!(self.ops ; .arch x64 ; jp =>label),
            0xb => dynasm!(self.ops ; .arch x64 ; jnp =>label),
            0xc => dynasm!(self.ops ; .arch x64 ; jl =>label),
            0xd => dynasm!(self.ops ; .arch x64 ; jge =>label),
            0xe => dynasm!(self.ops ; .arch x64 ; jle =>label),
            _ => dynasm!(self.ops ; .arch x64 ; jg =>label),
        }
    }
}
