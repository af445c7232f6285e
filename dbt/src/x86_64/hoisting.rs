//! Checks of accesses that go to the same place in each round of a loop: they are made before the first one.

use dynasmrt::{DynasmApi, dynasm};
use mmu::PAGE_SIZE;

use super::emitter::{Emitter, Held};
use super::flags::FlagsPlace;
use super::memory::T0_NUMBER;
use super::operands::{Address, based_segment};
use super::places::Places;
use super::prediction::Start;

use crate::record::grouping::{Group, Place, Steady};

impl Emitter<'_> {
    /// Emits the checks of groups that are the same in each round, and keeps what leads to them; says whether there are
    /// any. Whoever goes on in the middle of the block, or comes back to its inner entry, has not forgotten a translation
    /// since. Where one fails, the first instruction is executed without groups.
    pub(super) fn hoist_checks(&mut self, arriving: FlagsPlace) -> bool {
        let steady = |group| self.groups.steady(group);
        if (0..self.groups.count()).all(|group| steady(group).is_none()) {
            return false;
        }
        self.flags = arriving;
        self.spoil_flags(!arriving.lost);
        for number in 0..self.groups.count() {
            let Some((group, steady)) = self.groups.steady(number) else {
                continue;
            };
            let address = address_of(group, steady, self.places);
            let label = self.ungroup(0);
            if let Some(constant) = address.constant() {
                self.translate_constant(&address, constant, group.write, label);
            } else if self.linear(&address).is_ok() {
                let covers = ((group.high - group.low) as u32, group.write);
                // Nothing has been done before the first instruction: that is where a wrong one leaves.
                self.may_predict = true;
                let site = (0, Place::Operand);
                if !self.predict(site, (Start::Register(T0_NUMBER), 0), covers, label) {
                    self.translate_linear(covers.0, covers.1, label);
                }
                self.may_predict = false;
            } else {
                continue;
            }
            match self.group_registers[number] {
                Some(register) => dynasm!(self.ops ; .arch x64 ; mov Rq(register), rsi),
                None => self.fill_slot(number),
            }
            self.hoisted[number] = Some(Held::Host(group.low));
        }
        self.restore_at_entry();
        self.established = self.hoisted;
        true
    }
}

/// The address of a group's first byte before the first round.
fn address_of(group: Group, steady: Steady, places: Places) -> Address {
    let address = Address {
        base: None,
        index: None,
        displacement: group.low as u64,
        segment: None,
        narrow: false,
        relative: false,
        whole: false,
        limited: false,
        short: false,
        apart: false,
    };
    match steady {
        Steady::Page { page, relative } => Address {
            displacement: page * PAGE_SIZE + group.low as u64,
            relative,
            ..address
        },
        Steady::Registers {
            base,
            index,
            segment,
            narrow,
        } => Address {
            base: base.map(|guest| places.of(guest)),
            index: index.map(|(guest, scale)| (places.of(guest), scale)),
            segment: based_segment(segment),
            narrow,
            ..address
        },
    }
}
