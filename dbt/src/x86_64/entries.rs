//! The entries of a block: what each confirms, and where it leaves if that does not hold.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};

use super::emitter::Emitter;
use super::exits::Inner;
use super::flags::FlagsPlace;
use super::moving::Follows;
use super::stubs::Stub;
use crate::record::recipe;
use crate::run::{FlagsAt, Upcall, UpcallKind, at};

impl Emitter<'_> {
    /// Makes sure that the guest's vector registers are in the host's.
    pub(super) fn bring_vectors(&mut self, arriving: FlagsPlace) {
        self.flags = arriving;
        self.spoil_flags(!arriving.lost);
        let label = self.ops.new_dynamic_label();
        let back = self.ops.new_dynamic_label();
        self.stubs.push(Stub::LoadVectors { label, back });
        dynasm!(self.ops ; .arch x64 ; gs cmp BYTE [at::VECTORS_LIVE], 0);
        self.keep_conditional();
        dynasm!(self.ops
            ; .arch x64
            ; je =>label
            ; =>back
        );
        self.restore_at_entry();
    }

    /// The entry for indirect jumps: the flags are in their saved place, and stay there if they
    /// are as good as lost. Behind its checks is the entry for predicted returns.
    pub(super) fn indirect_entry(
        &mut self,
        guard: i32,
        mapping: i32,
        entry: dynasmrt::DynamicLabel,
        arriving: FlagsPlace,
    ) -> (u32, u32) {
        let start = self.here();
        let record = {
            let mut record = self.record(UpcallKind::Leave, 0);
            record.flags = FlagsAt::Saved;
            record
        };
        let leave = self.leave_stub(record);
        self.compare_guard(guard, mapping, leave);
        self.poll(leave);
        self.count_entry(record);
        let after = self.here();
        if !arriving.lost {
            self.flags = FlagsPlace::SAVED;
            let back = self.ops.new_dynamic_label();
            if self.target.lazy_flags {
                self.evaluate_recipe(back);
            }
            self.restore_flags();
            dynasm!(self.ops ; .arch x64 ; =>back);
        }
        self.jump(entry);
        (start, after)
    }

    /// Goes to `leave` if somebody asks to stop, or the stack of predicted returns is full.
    pub(super) fn poll(&mut self, leave: dynasmrt::DynamicLabel) {
        self.keep_fused(9);
        dynasm!(self.ops ; .arch x64 ; gs cmp rsp, [at::POLL] ; jb =>leave);
    }

    /// Counts an entry to a block that may become hot; after some thousand calls up. Spoils EFLAGS.
    /// `record`: what leaves here.
    pub(super) fn count_entry(&mut self, record: Upcall) {
        if let Some(counter) = self.target.heat {
            let counter = at::HEAT + 2 * counter as i32;
            let label = self.leave_stub(Upcall {
                kind: UpcallKind::Hot,
                ..record
            });
            dynasm!(self.ops ; .arch x64 ; gs dec WORD [counter]);
            self.ops.mark(Follows::Heat);
            self.keep_conditional();
            dynasm!(self.ops ; .arch x64 ; jz =>label);
        }
    }

    /// If a recipe is where saved flags would be, its flags go to EFLAGS, and the code goes on at a
    /// label.
    pub(super) fn evaluate_recipe(&mut self, back: dynasmrt::DynamicLabel) {
        let label = self.ops.new_dynamic_label();
        let mark = recipe::MARK as i8;
        dynasm!(self.ops ; .arch x64 ; gs test BYTE [at::SAVED_FLAGS], mark);
        self.keep_conditional();
        dynasm!(self.ops ; .arch x64 ; jne =>label);
        self.stubs.push(Stub::Evaluate { label, back });
    }

    /// Goes to `label` unless a page guard holds a mapping.
    pub(super) fn compare_guard(
        &mut self,
        guard: i32,
        mapping: i32,
        label: dynasmrt::DynamicLabel,
    ) {
        dynasm!(self.ops ; .arch x64 ; gs cmp DWORD [guard], mapping);
        self.ops.mark(Follows::Guard);
        self.keep_conditional();
        dynasm!(self.ops ; .arch x64 ; jne =>label);
    }

    /// A compare at an entry that may leave the block before it begins. `forget`: nobody needs the
    /// flags if it does not.
    pub(super) fn entry_check(
        &mut self,
        arriving: FlagsPlace,
        forget: bool,
        compare: impl FnOnce(&mut Self, dynasmrt::DynamicLabel),
    ) {
        self.flags = arriving;
        self.spoil_flags(!arriving.lost);
        let record = self.record(UpcallKind::Leave, 0);
        let label = self.leave_stub(record);
        compare(self, label);
        if !forget {
            self.restore_at_entry();
        }
    }

    /// Behind a compare at an entry the flags go back to EFLAGS, if the block needs them there.
    pub(super) fn restore_at_entry(&mut self) {
        if !self.flags.arrived {
            self.restore_flags();
        }
    }

    /// The stub that leaves before the block begins, made once for each place of the flags.
    pub(super) fn leave_stub(&mut self, record: Upcall) -> dynasmrt::DynamicLabel {
        let known = self.stubs.iter().find_map(|stub| match stub {
            Stub::Upcall {
                label,
                record: other,
                ..
            } if other.kind == record.kind && other.flags == record.flags => Some(*label),
            _ => None,
        });
        known.unwrap_or_else(|| self.stub(None, record))
    }

    /// Where the registers of a loop have changed places comes the entry for its own jumps back,
    /// which polls, and counts, as the others do. Vector registers stay live within a block.
    pub(super) fn inner_entry(&mut self, rip: u64, arriving: FlagsPlace, changed: u16, len: i32) {
        let begin = self.ops.new_dynamic_label();
        let label = self.ops.new_dynamic_label();
        self.inner = Some(Inner {
            label,
            rip,
            flags: arriving,
            changed,
        });
        self.jump(begin);
        dynasm!(self.ops ; .arch x64 ; =>label);
        self.flags = arriving;
        self.spoil_flags(!arriving.lost);
        let leave = self.give_back_stub(0);
        self.poll(leave);
        if self.target.counted {
            let leave = self.give_back_stub(len);
            dynasm!(self.ops ; .arch x64 ; gs sub QWORD [at::BUDGET], len);
            self.keep_conditional();
            dynasm!(self.ops ; .arch x64 ; js =>leave);
        }
        self.restore_at_entry();
        dynasm!(self.ops ; .arch x64 ; =>begin);
    }

    /// A stub that leaves before the block begins, once it has given back what was counted.
    pub(super) fn give_back_stub(&mut self, count: i32) -> dynasmrt::DynamicLabel {
        let record = self.record(UpcallKind::Leave, 0);
        let label = self.ops.new_dynamic_label();
        self.stubs.push(Stub::GiveBack {
            label,
            count,
            inside: self.inner.is_some(),
            record,
        });
        label
    }

    /// Counts the block's instructions in advance; leaves if the budget does not cover them.
    pub(super) fn count(&mut self, count: i32, arriving: FlagsPlace) {
        self.flags = arriving;
        self.spoil_flags(!arriving.lost);
        let label = self.give_back_stub(count);
        dynasm!(self.ops ; .arch x64 ; gs sub QWORD [at::BUDGET], count);
        self.keep_conditional();
        dynasm!(self.ops ; .arch x64 ; js =>label);
        self.restore_at_entry();
    }
}
