//! Prediction of TLB entries: a check of a hot loop tries the entry that it found last, so that the
//! access does not wait for the address to be hashed. Where a check is wrong too often its block
//! is translated again, with a check there that looks up the entry at once.
//!
//! Code of the kernel does not predict: it works on another stack and other objects after each
//! switch of processes (pipe ping-pong took 4.6 of the time).

use std::time::{Duration, Instant};

use iced_x86::Instruction;
use mmu::GuestPhys;
use rustc_hash::FxHashSet;

use super::translating::Tier;
use super::upcall::Upcall;
use super::vcpu::Vcpu;
use crate::cache::Part;
use crate::guest::Mode;
use crate::record::grouping::Place;

/// All sites together may use up the patience of one in this time. With a patience of 64, wrong
/// predictions then cost a hundredth of it.
const RARE: Duration = Duration::from_micros(64);
/// Sites of a block that may go wrong before all of them stop predicting.
const STRAYS: u8 = 3;
/// Sites remembered at the most.
const REMEMBERED: usize = 1 << 16;

/// Which checks do not predict, because they were wrong too often.
#[derive(Default)]
pub struct Strayed {
    places: FxHashSet<(GuestPhys, u8)>,
    /// When a site used up its patience last.
    last: Option<Instant>,
    /// The number of the next site.
    next: u16,
}

impl Strayed {
    /// Whether an access of the instruction at a physical address is to predict.
    pub fn predicts(&self, at: GuestPhys, place: Place) -> bool {
        !self.places.contains(&(at, place as u8))
    }

    /// The number of the first site of the next block.
    pub(super) fn next_site(&self) -> u16 {
        self.next
    }

    /// Whether sites are wrong too often.
    fn too_often(&mut self) -> bool {
        let now = Instant::now();
        self.last.replace(now).is_some_and(|last| now - last < RARE)
    }

    fn give_up(&mut self, at: GuestPhys, place: u8) {
        if self.places.len() >= REMEMBERED {
            self.places.clear();
        }
        self.places.insert((at, place));
    }
}

impl Vcpu {
    /// Notes the sites that a block has, all of which are new. Numbers are used again when they
    /// have run out: sites that share one disturb each other's predictions and nothing else.
    pub(super) fn new_sites(&mut self, count: u32) {
        let patience = self.patience();
        for _ in 0..count {
            let site = self.strayed.next as usize;
            self.block.get_mut().patience[site] = patience;
            self.strayed.next = self.strayed.next.wrapping_add(1);
        }
    }

    /// How often a site may be wrong.
    fn patience(&self) -> u8 {
        self.options.prediction.unwrap_or(1).max(1)
    }

    /// Whether hot code of a mode is to predict. Elsewhere than in flat code RIP does not say where in its
    /// page an instruction is.
    pub(super) fn predicts(&self, mode: Mode) -> bool {
        self.options.prediction.is_some() && mode.has(Mode::USER) && !mode.segmented()
    }

    /// Translates a hot loop again that is no more than one block: with checks that predict, and
    /// registers in better places.
    pub(super) fn improve(&mut self, id: u32) {
        let Some(block) = self.cache.block(id) else {
            return;
        };
        let predicting = self.predicts(block.key.mode);
        if (predicting && !block.predicting) || self.options.registers.is_some() {
            self.replace(id, predicting);
        }
    }

    /// Translates a hot block again, with checks that predict or without.
    fn replace(&mut self, id: u32, predicting: bool) {
        let Some(old) = self.cache.remove(id) else {
            return;
        };
        let range = (old.lowest, old.len);
        let parts: Vec<Part> = old.further.iter().map(|further| further.part).collect();
        let tier = Tier::Hot { predicting };
        let insns: Vec<Instruction> = old.insns().collect();
        let new = self.place(old.key, &insns, range, &parts, tier);
        if let Some(block) = new.and_then(|new| self.cache.block_mut(new)) {
            // What was found out about it stays true.
            block.predicting = true;
            block.settled = old.settled;
            block.strays = old.strays;
            block.attempts = old.attempts;
        }
        self.drop_blocks(&[old]);
    }

    /// A site has used up its patience. Continues with its check, or leaves before its
    /// instruction if that is to be translated again.
    pub(super) fn strayed(&mut self, record: &Upcall, linear: u64) -> u64 {
        let Some(block) = self.cache.block(record.block) else {
            unreachable!("an upcall from a block that is gone");
        };
        let index = record.insn as usize;
        let (total, rip) = (block.made.count(), block.rip(index));
        let at = block.physical(rip);
        let patience = self.patience();
        let shared = self.block.get_mut();
        shared.patience[usize::from(record.size)] = patience;
        // Some checks find the address in the register that an upcall's result comes in.
        shared.exchange.result_host = linear;
        if !self.strayed.too_often() {
            return self.resume_check(record);
        }
        self.strayed.give_up(at, record.write);
        // The block is left before this instruction, which has done nothing yet.
        self.cpu_mut().rip = rip;
        self.give_back(total, index);
        if let Some(block) = self.cache.block_mut(record.block) {
            block.strays += 1;
            let predicting = block.strays < STRAYS;
            self.replace(record.block, predicting);
        }
        0
    }
}
