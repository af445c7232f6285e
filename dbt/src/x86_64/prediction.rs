//! Checks that predict their TLB entry.
//!
//! The tag of an empty entry can match a predicting check, for an address that is not canonical. What
//! the host then accesses is not canonical either, and raises #GP: so only instructions predict
//! whose faults on the host are the guest's.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};

use super::emitter::Emitter;
use super::registers::{T1, T2};
use super::stubs::Stub;
use crate::cache::physical;
use crate::record::grouping::Place;
use crate::run::{Upcall, UpcallKind, at};

/// A predicting check that is being emitted.
#[derive(Clone, Copy)]
pub(super) struct Site {
    number: u16,
    place: Place,
    /// Where the check begins.
    retry: DynamicLabel,
    /// Likewise, in the region.
    offset: u32,
}

/// The way out of a check whose prediction was wrong.
#[derive(Clone, Copy)]
pub(super) struct Wrong {
    site: Site,
    /// Base register and displacement of the linear address.
    address: (u8, i32),
    tag: i32,
    limit: i32,
    /// Where to go if the TLB does not have it.
    miss: DynamicLabel,
    /// For a site that has been wrong too often.
    record: Upcall,
}

impl Emitter<'_> {
    /// Begins the check of an access, here; `None` if it is not to predict.
    pub(super) fn site(&mut self, insn: usize, place: Place) -> Option<Site> {
        let predicting = self.target.prediction.filter(|_| self.may_predict)?;
        let at = physical(predicting.page, self.target.further, self.rips[insn]);
        if !predicting.strayed.predicts(at, place) {
            return None;
        }
        let number = predicting.first.wrapping_add(self.sites as u16);
        self.sites += 1;
        let retry = self.ops.new_dynamic_label();
        dynasm!(self.ops ; .arch x64 ; =>retry);
        Some(Site {
            number,
            place,
            retry,
            offset: self.address().0,
        })
    }

    /// Puts the predicted offset of the TLB entry into T1.
    pub(super) fn predicted_index(&mut self, site: Site) {
        let place = at::PREDICTED + 4 * i32::from(site.number);
        let t1 = Self::scratch(T1);
        dynasm!(self.ops ; .arch x64 ; gs mov Rd(t1), [place]);
    }

    /// Where a predicting check fails: looks up `[base + displacement]`, and goes to `miss` if it
    /// is not there. Any other check fails there at once.
    pub(super) fn mispredicted(
        &mut self,
        insn: usize,
        site: Option<Site>,
        address: (u8, i32),
        (tag, limit): (i32, i32),
        miss: DynamicLabel,
    ) -> DynamicLabel {
        let Some(site) = site else {
            return miss;
        };
        let mut record = self.record(UpcallKind::Strayed, insn);
        record.size = site.number;
        record.write = site.place as u8;
        record.extra = site.offset;
        let label = self.ops.new_dynamic_label();
        let wrong = Wrong {
            site,
            address,
            tag,
            limit,
            miss,
            record,
        };
        self.stubs.push(Stub::Wrong { label, wrong });
        label
    }

    /// Behind the block: looks up the entry. If it is there, the check predicts it from now on,
    /// and is tried again.
    pub(super) fn wrong(&mut self, wrong: Wrong) {
        let (base, displacement) = wrong.address;
        let number = i32::from(wrong.site.number);
        let predicted = at::PREDICTED + 4 * number;
        let patience = at::PATIENCE + number;
        let tag = wrong.tag;
        self.address_to_compare(base, displacement);
        self.tlb_index(T2, None);
        dynasm!(self.ops ; .arch x64 ; gs mov [predicted], edi);
        self.compare_tag(tag, wrong.limit, wrong.miss);
        dynasm!(self.ops ; .arch x64 ; gs dec BYTE [patience]);
        self.keep_conditional();
        dynasm!(self.ops ; .arch x64 ; jnz =>wrong.site.retry);
        self.upcall(wrong.record);
    }
}
