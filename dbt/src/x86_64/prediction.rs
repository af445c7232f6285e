//! Checks that predict where their access goes: into the run of pages that they remember ([`mmu::Reach`]).

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use mmu::Site;

use super::emitter::{Emitter, Predicting};
use super::registers::{T0, T2};
use super::stubs::Stub;
use crate::cache::{Further, physical};
use crate::record::grouping::Place;
use crate::run::{Upcall, UpcallKind, at};

/// Bytes of `sub r8, gs:[address]`, and of a comparison like it.
const WITH_WORD: usize = 9;

/// The way out of a check whose prediction was wrong.
#[derive(Clone, Copy)]
pub(super) struct Wrong {
    number: u16,
    site: Site,
    /// Host register that holds the address, less the site's displacement.
    base: u8,
    /// Behind the check, with the addend in T0, or the host address if T0 is the base.
    behind: DynamicLabel,
    /// Where to go if the access is not one to be made directly.
    miss: DynamicLabel,
    record: Upcall,
}

impl Predicting<'_> {
    /// Whether the check of an access of the instruction at an address is to predict.
    pub(super) fn predicts(&self, rip: u64, further: &[Further], place: Place) -> bool {
        let at = physical(self.page, further, rip);
        self.strayed.predicts(at, place)
    }
}

impl Emitter<'_> {
    /// Emits the check of an access of so many bytes from `[base + displacement]` on, if it is one that
    /// predicts: T0 is the addend then, or the host address if it was the base. `miss` is where it goes if the
    /// access is not to be made directly.
    pub(super) fn predict(
        &mut self,
        (insn, place): (usize, Place),
        (base, displacement): (u8, i32),
        (size, write): (u32, bool),
        miss: DynamicLabel,
    ) -> bool {
        let Some(predicting) = self.target.prediction.filter(|_| self.may_predict) else {
            return false;
        };
        if !predicting.predicts(self.rips[insn], self.target.further, place) {
            return false;
        }
        let number = predicting.first + self.sites.len() as u16;
        let site = Site {
            displacement: displacement.into(),
            size: size.into(),
            write,
        };
        self.sites.push(site);
        let mut record = self.record(UpcallKind::Strayed, insn);
        record.size = number;
        record.write = place as u8;
        record.extra = self.address().0;
        let label = self.ops.new_dynamic_label();
        let behind = self.ops.new_dynamic_label();
        let t2 = Self::scratch(T2);
        dynasm!(self.ops ; .arch x64 ; mov Rq(t2), Rq(base));
        self.keep_fused_behind(WITH_WORD, WITH_WORD);
        dynasm!(self.ops
            ; .arch x64
            ; gs sub Rq(t2), [at::reach_base(number)]
            ; gs cmp Rq(t2), [at::reach_len(number)]
            ; jae =>label
        );
        let addend = at::reach_addend(number);
        if base == Self::scratch(T0) {
            dynasm!(self.ops ; .arch x64 ; gs add rsi, [addend]);
        } else {
            dynasm!(self.ops ; .arch x64 ; gs mov rsi, [addend]);
        }
        dynasm!(self.ops ; .arch x64 ; =>behind);
        let wrong = Wrong {
            number,
            site,
            base,
            behind,
            miss,
            record,
        };
        self.stubs.push(Stub::Wrong { label, wrong });
        true
    }

    /// Behind the block: looks up the TLB entry; or, now and then, calls up to have a run of pages remembered,
    /// upon which the check is tried again, or goes where any other check does that fails.
    pub(super) fn wrong(&mut self, wrong: &Wrong) {
        let Wrong { site, base, .. } = *wrong;
        let look = self.ops.new_dynamic_label();
        let t0 = Self::scratch(T0);
        let patience = at::PATIENCE + i32::from(wrong.number);
        dynasm!(self.ops ; .arch x64 ; gs dec BYTE [patience] ; jnz =>look);
        if base != t0 {
            dynasm!(self.ops ; .arch x64 ; mov Rq(t0), Rq(base));
        }
        self.upcall(wrong.record);
        dynasm!(self.ops ; .arch x64 ; =>look);
        let start = (base, site.displacement as i32);
        self.look_up(start, (site.size as u32, site.write), wrong.miss);
        dynasm!(self.ops ; .arch x64 ; jmp =>wrong.behind);
    }
}
