//! Checks that predict where their access goes: into the run of pages that they remember ([`mmu::Reach`]).

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::Register;
use mmu::Site;

use super::emitter::{Emitter, Predicting};
use super::encoding::{Memory, Opcode, WIDE, with_memory};
use super::memory::T0_NUMBER;
use super::registers::{T0, T2};
use super::stubs::Stub;
use crate::cache::{Further, physical};
use crate::record::grouping::Place;
use crate::run::{Upcall, UpcallKind, at};

/// Bytes of `sub r8, gs:[address]`, and of a comparison like it.
const WITH_WORD: usize = 9;

/// Where the address of a predicting check comes from, less the site's displacement.
#[derive(Clone, Copy)]
pub(super) enum Start {
    /// A host register. Behind the check T0 is the addend, or the host address if T0 was that register.
    Register(u8),
    /// The sum of host registers, scaled. T0 is the addend.
    Sum(Memory),
}

/// The way out of a check whose prediction was wrong.
#[derive(Clone, Copy)]
pub(super) struct Wrong {
    number: u16,
    site: Site,
    start: Start,
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
    /// What the check of an access needs, if it is to predict.
    pub(super) fn predicting(&self, (insn, place): (usize, Place)) -> Option<Predicting<'_>> {
        let predicting = self.target.prediction.filter(|_| self.may_predict);
        predicting.filter(|it| it.predicts(self.rips[insn], self.target.further, place))
    }

    /// Emits the check of an access of so many bytes from `start + displacement` on, if it is one that
    /// predicts. `miss` is where it goes if the access is not to be made directly.
    pub(super) fn predict(
        &mut self,
        (insn, place): (usize, Place),
        (start, displacement): (Start, i32),
        (size, write): (u32, bool),
        miss: DynamicLabel,
    ) -> bool {
        let Some(Predicting { first, .. }) = self.predicting((insn, place)) else {
            return false;
        };
        let number = first + self.sites.len() as u16;
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
        self.load_start(T2, start);
        self.keep_fused_behind(WITH_WORD, WITH_WORD);
        let t2 = Self::scratch(T2);
        dynasm!(self.ops
            ; .arch x64
            ; gs sub Rq(t2), [at::reach_base(number)]
            ; gs cmp Rq(t2), [at::reach_len(number)]
            ; jae =>label
        );
        let addend = at::reach_addend(number);
        match start {
            Start::Register(T0_NUMBER) => dynasm!(self.ops ; .arch x64 ; gs add rsi, [addend]),
            _ => dynasm!(self.ops ; .arch x64 ; gs mov rsi, [addend]),
        }
        dynasm!(self.ops ; .arch x64 ; =>behind);
        let wrong = Wrong {
            number,
            site,
            start,
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
        let &Wrong { site, start, .. } = wrong;
        let look = self.ops.new_dynamic_label();
        let patience = at::PATIENCE + i32::from(wrong.number);
        if matches!(start, Start::Sum(_)) {
            self.load_start(T0, start);
        }
        dynasm!(self.ops ; .arch x64 ; gs dec BYTE [patience] ; jnz =>look);
        if let Start::Register(base) = start
            && base != T0_NUMBER
        {
            self.load_start(T0, start);
        }
        self.upcall(wrong.record);
        dynasm!(self.ops ; .arch x64 ; =>look);
        let access = (site.size as u32, site.write);
        let displacement = site.displacement as i32;
        match start {
            Start::Register(base) => self.look_up((base, displacement), access, wrong.miss),
            Start::Sum(_) => {
                let addend = self.find_entry((T0_NUMBER, displacement), access, wrong.miss);
                self.load_addend(addend);
            }
        }
        dynasm!(self.ops ; .arch x64 ; jmp =>wrong.behind);
    }

    /// Puts where a check starts into a scratch register. Leaves the flags alone.
    fn load_start(&mut self, into: Register, start: Start) {
        let into = Self::scratch(into);
        match start {
            Start::Register(base) => dynasm!(self.ops ; .arch x64 ; mov Rq(into), Rq(base)),
            Start::Sum(sum) => self.put(&with_memory((WIDE, Opcode::Short(0x8d)), into, &sum)),
        }
    }
}
