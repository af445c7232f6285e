//! What goes behind a block's end: slow paths, exits that are not linked, ways out of the middle.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};

use super::astray::Astray;
use super::crossing::Crossing;
use super::emitter::Emitter;
use super::encoded::Encoded;
use super::exits::ExitKind;
use super::flags::{ExitFlags, FlagsPlace};
use super::prediction::Wrong;
use super::registers::{T0, T1};
use crate::run::{Upcall, UpcallKind, at};

/// Code behind the block's end.
pub(super) enum Stub {
    /// An upcall: linear address to compute first, if any.
    Upcall {
        label: DynamicLabel,
        lea: Option<Encoded>,
        record: Upcall,
        crossing: Crossing,
    },
    /// A check predicted wrong.
    Wrong { label: DynamicLabel, wrong: Wrong },
    /// The unlinked end of an exit.
    Link { label: DynamicLabel, exit: usize },
    /// A return that was not predicted: looks for the target in the jump cache.
    Return {
        label: DynamicLabel,
        /// What the guest's stack pointer has yet to move by before the return.
        ahead: i32,
        /// What the return moves it by.
        pops: i32,
        /// For a target that is not there.
        record: Upcall,
    },
    /// A return from a function that a trace has followed goes elsewhere: the interpreter executes
    /// it.
    Elsewhere {
        label: DynamicLabel,
        /// What the guest's stack pointer has yet to move by before the return.
        ahead: i32,
        record: Upcall,
    },
    /// A jump or call through a register or memory that a trace has followed leads elsewhere.
    Astray {
        label: DynamicLabel,
        astray: Box<Astray>,
    },
    /// The target of a jump, in T0, is not in the jump cache: the jump leads to code that looks for it.
    Unknown {
        label: DynamicLabel,
        /// With that code's host address in T0; `None`: at once.
        back: Option<DynamicLabel>,
        /// Where it goes instead if the target may not be canonical, and is not.
        instead: Option<DynamicLabel>,
    },
    /// Brings the vector registers in, then goes back.
    LoadVectors {
        label: DynamicLabel,
        back: DynamicLabel,
    },
    /// Has shared code follow the recipe that is in the place of saved flags.
    Evaluate {
        label: DynamicLabel,
        back: DynamicLabel,
    },
    /// Goes on at an instruction in code without groups. The flags are brought into EFLAGS.
    Ungroup {
        label: DynamicLabel,
        insn: u16,
        flags: FlagsPlace,
        give_back: i32,
        rip: u64,
        /// The call that a trace has followed here.
        within: Option<usize>,
    },
    /// A jump out of the middle of the block, which gives back what was counted in advance.
    SideExit {
        label: DynamicLabel,
        target: u64,
        insn: u16,
        flags: FlagsPlace,
        give_back: i32,
        kind: ExitKind,
        /// The call that a trace has followed here.
        within: Option<usize>,
    },
    /// Gives back the instructions counted in advance, then leaves.
    GiveBack {
        label: DynamicLabel,
        count: i32,
        /// Whether the registers go back to their own places.
        inside: bool,
        record: Upcall,
    },
}

impl Emitter<'_> {
    /// Adds a stub that calls up, to be jumped to.
    pub(super) fn stub(&mut self, lea: Option<Encoded>, record: Upcall) -> DynamicLabel {
        let label = self.ops.new_dynamic_label();
        self.stubs.push(Stub::Upcall {
            label,
            lea,
            record,
            crossing: Crossing::Never,
        });
        label
    }

    /// Adds a stub that goes on at an instruction without groups, with the flags as they are.
    pub(super) fn ungroup(&mut self, insn: usize) -> DynamicLabel {
        let label = self.ops.new_dynamic_label();
        self.stubs.push(Stub::Ungroup {
            label,
            insn: insn as u16,
            flags: self.flags,
            give_back: self.behind(insn),
            rip: self.rips[insn],
            within: self.within,
        });
        label
    }

    /// Emits one of the pieces that go behind the block's end.
    pub(super) fn finish_stub(&mut self, stub: &Stub) {
        // Ways out of the middle of a loop, and predictions gone wrong, are common enough.
        let hot = matches!(
            stub,
            Stub::SideExit { .. } | Stub::Wrong { .. } | Stub::Astray { .. }
        );
        self.ops.choose(!hot);
        match *stub {
            Stub::Upcall {
                label,
                ref lea,
                record,
                ref crossing,
            } => {
                dynasm!(self.ops ; .arch x64 ; =>label);
                if let Some(lea) = lea {
                    self.put(lea);
                }
                self.call_slow_path(record, crossing);
            }
            Stub::Wrong { label, ref wrong } => {
                dynasm!(self.ops ; .arch x64 ; =>label);
                self.wrong(wrong);
            }
            Stub::Link { label, exit } => {
                dynasm!(self.ops ; .arch x64 ; =>label);
                self.exits[exit].stub = self.address();
                self.flags = match (self.exits[exit].kind, self.exits[exit].flags) {
                    (ExitKind::Return, _) => FlagsPlace::SAVED,
                    (_, ExitFlags::Arrived | ExitFlags::Sealed) => FlagsPlace::SAVED,
                    (ExitKind::Jump | ExitKind::Call, _) => FlagsPlace::HOST,
                };
                let mut record = self.record(UpcallKind::Link, 0);
                record.extra = exit as u32;
                self.upcall(record);
            }
            Stub::Return {
                label,
                ahead,
                pops,
                record,
            } => {
                dynasm!(self.ops ; .arch x64 ; =>label);
                self.move_stack(ahead);
                self.unpredicted_return(pops, record);
            }
            Stub::Elsewhere {
                label,
                ahead,
                record,
            } => {
                dynasm!(self.ops ; .arch x64 ; =>label);
                self.move_stack(ahead);
                self.upcall(record);
            }
            Stub::Astray { label, ref astray } => {
                let emitted = self.astray(label, astray);
                emitted.expect("the push was emitted in line, too");
            }
            Stub::Unknown {
                label,
                back,
                instead,
            } => {
                dynasm!(self.ops ; .arch x64 ; =>label);
                if let Some(instead) = instead {
                    self.require_canonical(T0, T1, instead);
                }
                dynasm!(self.ops ; .arch x64 ; gs mov [at::ARRIVING], rsi);
                match back {
                    Some(back) => dynasm!(self.ops
                        ; .arch x64
                        ; gs mov rsi, [at::ARRIVAL]
                        ; jmp =>back
                    ),
                    None => dynasm!(self.ops ; .arch x64 ; gs jmp QWORD [at::ARRIVAL]),
                }
            }
            Stub::LoadVectors { label, back } => {
                dynasm!(self.ops ; .arch x64 ; =>label);
                self.call_shared(self.target.trampolines.load_vectors);
                dynasm!(self.ops ; .arch x64 ; jmp =>back);
            }
            Stub::Evaluate { label, back } => {
                dynasm!(self.ops ; .arch x64 ; =>label);
                self.call_shared(self.target.trampolines.evaluate);
                dynasm!(self.ops ; .arch x64 ; jmp =>back);
            }
            Stub::Ungroup {
                label,
                insn,
                flags,
                give_back,
                rip,
                within,
            } => {
                dynasm!(self.ops ; .arch x64 ; =>label);
                self.add_to_budget(give_back);
                self.flags = flags;
                let flags = self.flags_for_exit();
                self.restore_places();
                self.predict_returns(within);
                self.ungrouped_exit(rip, insn, flags);
            }
            Stub::SideExit {
                label,
                target,
                insn,
                flags,
                give_back,
                kind,
                within,
            } => {
                dynasm!(self.ops ; .arch x64 ; =>label);
                self.add_to_budget(give_back);
                self.flags = flags;
                self.predict_returns(within);
                if !self.next_round(target, None) {
                    let flags = self.describe_flags();
                    self.restore_places();
                    self.current = usize::from(insn);
                    self.jump_out(target, kind, flags);
                }
            }
            Stub::GiveBack {
                label,
                count,
                inside,
                record,
            } => {
                dynasm!(self.ops ; .arch x64 ; =>label);
                self.add_to_budget(count);
                if inside {
                    self.restore_places();
                }
                self.upcall(record);
            }
        }
    }
}
