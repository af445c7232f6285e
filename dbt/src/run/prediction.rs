//! Checks of hot loops that predict where their access goes: into the run of pages that they remember
//! ([`mmu::Reach`]), so that the access does not wait for a TLB look-up, and may cross a page. A check that is wrong
//! looks up the TLB entry, and calls up for another run of pages: every time at first, less and less often
//! if it goes on being wrong. If its pages are all over the host they are brought together then; where that
//! does not help the block is translated again, without a prediction there.
//!
//! Code of the kernel does not predict: it works on another stack and other objects after each
//! switch of processes (pipe ping-pong took 4.6 of the time).

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use iced_x86::Instruction;
use mmu::{GuestPhys, LONGEST_REACH, Linear, Look, PAGE_SIZE, SITES, Site};
use rustc_hash::FxHashSet;

use super::block_state::CpuBlock;
use super::translating::Tier;
use super::upcall::Upcall;
use super::vcpu::Vcpu;
use crate::cache::Part;
use crate::guest::Mode;
use crate::interpret::paging;
use crate::record::grouping::Place;

/// The time in which a site may be wrong once, on the average, and in which all together may call up once. What
/// does more calls up less often: a call up then costs about a hundredth of the time.
const RARE: Duration = Duration::from_micros(64);
/// Calls up that all sites may make at once after a time without any.
const BURST: u32 = 64;
/// A site that is wrong more than once in this time, while it calls up as seldom as can be, ...
const OFTEN: Duration = Duration::from_nanos(400);
/// ... is looked at after such intervals: the guest may only now be taking its memory.
const INTERVAL: Duration = Duration::from_millis(1);
/// How often it is looked at before it stops predicting.
const STRIKES: u8 = 6;
/// Sites of a block that may go wrong before all of them stop predicting.
const STRAYS: u8 = 3;
/// Sites remembered at the most.
const REMEMBERED: usize = 1 << 16;
/// Sites that a block may have: two for each of its instructions.
const SITES_OF_BLOCK: usize = 256;
/// Bytes that a check is looked at around its page at first. If it goes on being wrong it is as often as much as it is wrong
/// between two calls up.
const NEAR: u64 = 64 << 10;
/// Pages whose look-up takes as long as a call up.
const LOOKS: u32 = 64;
/// Bytes on each side of an access that are brought together at least.
const GATHERED: u64 = 1 << 20;
/// The time in which one page may be moved, on the average: it takes some hundredths of that. ...
const FOR_PAGE: Duration = Duration::from_micros(20);
/// ... Twice as much behind so many pages, ...
const DEARER: u32 = 4096;
/// ... and half as much behind such a time.
const CHEAPER: Duration = Duration::from_secs(8);
/// Time that may be owed for pages that have moved.
const CREDIT: Duration = Duration::from_millis(160);

/// How often a loop is seen running before its checks predict.
const SEEN: u8 = 2;
/// How many samples have to find the processor in other code before that counts its entries. Of what one finds in a large
/// program most is not worth a trace.
const SAMPLES: u8 = 4;

/// A check that predicts.
struct Predictor {
    site: Site,
    /// How many times it is wrong between two calls up.
    patience: u8,
    /// When it called up last, by [`Vcpu::moment`], as all moments here.
    last: Duration,
    /// The lowest and the highest address of its accesses that have called up soon after each other.
    seen: (u64, u64),
    /// How often it was looked at because it is wrong often, and when last.
    strikes: u8,
    struck: Option<Duration>,
}

/// How checks are judged.
#[derive(Clone, Copy)]
struct Rules {
    /// How often one may be wrong between two calls up, at the most.
    most: u8,
    /// At once, whatever the time.
    eager: bool,
}

impl Predictor {
    /// Notes a call up, which has led to a longer run or not. `spared`: there are too many calls up altogether. Returns
    /// whether it is wrong often, for all that.
    fn called_up(
        &mut self,
        (address, extended): (u64, bool),
        now: Duration,
        spared: bool,
        rules: Rules,
    ) -> bool {
        let Rules { most, eager } = rules;
        let since = now.saturating_sub(self.last) / self.patience.into();
        self.last = now;
        let often = since < OFTEN || eager;
        let pause = !eager
            && self
                .struck
                .is_some_and(|at| now.saturating_sub(at) < INTERVAL);
        let strike = often && !spared && !pause && self.patience == most && !extended;
        if strike {
            self.strikes = self.strikes.saturating_add(1);
            self.struck = Some(now);
        } else if !often {
            self.strikes = self.strikes.saturating_sub(1);
        }
        let soon = since < RARE || eager;
        let (low, high) = if soon { self.seen } else { (address, address) };
        self.seen = (low.min(address), high.max(address));
        self.patience = if spared || soon && !extended {
            self.patience.saturating_mul(2).min(most)
        } else {
            1
        };
        strike
    }

    /// What is to be brought together where an access is wrong often: all that it goes to, if checks can remember so much.
    fn around(&self, address: u64) -> Range<u64> {
        let (low, high) = self.seen;
        let (low, high) = if high - low < LONGEST_REACH {
            (low, high)
        } else {
            (address, address)
        };
        low.saturating_sub(GATHERED)..high + GATHERED
    }
}

/// What is known of the checks that predict, and of those that do not because they were wrong too often.
#[derive(Default)]
pub struct Strayed {
    places: FxHashSet<(GuestPhys, u8)>,
    /// The sites by their numbers.
    predictors: Vec<Predictor>,
    /// When pages may be brought together again.
    next_gather: Duration,
    /// When those will be paid for that have moved, and the time for each.
    paid: Option<(Duration, Duration)>,
    /// When it would be time for the next call up, if they came evenly.
    due: Duration,
    /// When the time began.
    begun: Option<Instant>,
}

impl Strayed {
    /// Whether an access of the instruction at a physical address is to predict.
    pub fn predicts(&self, at: GuestPhys, place: Place) -> bool {
        !self.places.contains(&(at, place as u8))
    }

    /// The number of the first site of the next block.
    pub(super) fn next_site(&self) -> u16 {
        self.predictors.len() as u16
    }

    /// Whether there are too many calls up. What is not allowed does not count: it comes less and less often.
    fn too_many(&self, now: Duration) -> bool {
        self.due.max(now.saturating_sub(RARE * BURST)) + RARE > now
    }

    /// Notes a call up that was not too much, which has looked at so many pages.
    fn looked(&mut self, pages: u32, now: Duration) {
        let due = self.due.max(now.saturating_sub(RARE * BURST));
        self.due = due + RARE + RARE * pages / LOOKS;
    }

    fn may_gather(&self, now: Duration) -> bool {
        now >= self.next_gather && self.paid.is_none_or(|(at, _)| now + CREDIT >= at)
    }

    /// Notes that so many pages have moved of those that were looked at. What does it for long has no use for it.
    fn gathered(&mut self, (moved, looked): (u32, u32), now: Duration) {
        let (paid, price) = self.paid.map_or((now, FOR_PAGE), |(at, price)| {
            let halves = now.saturating_sub(at).as_secs_f64() / CHEAPER.as_secs_f64();
            (at.max(now), FOR_PAGE.max(price.div_f64(halves.exp2())))
        });
        let dearer = price.mul_f64(1.0 + f64::from(moved) / f64::from(DEARER));
        self.paid = Some((paid + price * moved, dearer));
        self.next_gather = now + INTERVAL + RARE * looked / LOOKS;
    }

    fn give_up(&mut self, at: GuestPhys, place: u8) {
        if self.places.len() >= REMEMBERED {
            self.places.clear();
        }
        self.places.insert((at, place));
    }
}

impl Vcpu {
    /// Before a block is emitted that may predict: numbers are given once. When they have run out the
    /// blocks that predict are translated anew as they are needed.
    pub(super) fn make_room_for_sites(&mut self) {
        if self.strayed.predictors.len() + SITES_OF_BLOCK <= SITES {
            return;
        }
        for id in self.cache.ids() {
            let predicts = self.cache.block(id).is_some_and(|block| block.predicting);
            if predicts && let Some(block) = self.cache.remove(id) {
                self.drop_blocks(&[block]);
            }
        }
        self.block.get_mut().tlb.reaches.forget();
        self.strayed.predictors.clear();
    }

    /// The time by which checks are judged. That of counted runs is a count of instructions: what they look up in the
    /// guest's tables, and when, decides when a damaged line is noticed there, and such runs repeat.
    fn moment(&mut self) -> Duration {
        if self.options.counted {
            return Duration::from_nanos(self.instructions());
        }
        self.strayed
            .begun
            .get_or_insert_with(Instant::now)
            .elapsed()
    }

    /// Notes the sites that a block has.
    pub(super) fn new_sites(&mut self, sites: &[Site]) {
        if sites.is_empty() {
            return;
        }
        let now = self.moment();
        for &site in sites {
            self.block.get_mut().patience[self.strayed.predictors.len()] = 1;
            self.strayed.predictors.push(Predictor {
                site,
                patience: 1,
                last: now,
                seen: (0, u64::MAX),
                strikes: 0,
                struck: None,
            });
        }
    }

    /// Whether hot code of a mode is to predict. Elsewhere than in flat code RIP does not say where in its
    /// page an instruction is.
    pub(super) fn predicts(&self, mode: Mode) -> bool {
        self.options.prediction.is_some() && mode.has(Mode::USER) && !mode.segmented()
    }

    /// Translates a hot loop again that is no more than one block, with registers in better places.
    pub(super) fn improve(&mut self, id: u32) {
        let Some(block) = self.cache.block(id) else {
            return;
        };
        let mode = block.key.mode;
        let loops = self.predicts(mode);
        let predicting = loops && self.options.eager_prediction;
        let improved = if predicting || self.options.registers.is_some() {
            self.replace(id, Tier::Hot { predicting })
        } else {
            Some(id)
        };
        if let Some(block) = improved.and_then(|id| self.cache.block_mut(id)) {
            block.loops = loops;
        }
    }

    /// The processor left emitted code when it was about to run a block: it was asked to, or (counted mode) the
    /// budget is used up. The usual reason is a timer, so a loop to which it happens takes much of the time, and
    /// its checks may predict; other code to which it happens several times counts its entries from now on.
    pub(super) fn interrupted_in(&mut self, id: u32) {
        let asked = self.options.counted || self.cpu().exit_request.load(Ordering::Relaxed) != 0;
        let usual = self.options.grouping;
        let Some(block) = self.cache.block_mut(id).filter(|_| asked) else {
            return;
        };
        if block.loops && !block.predicting {
            block.seen += 1;
            if block.seen == SEEN {
                self.replace(id, Tier::Hot { predicting: true });
            }
        } else if !block.settled
            && !block.counts
            && block.key.grouped == usual
            && self.options.samples()
        {
            block.seen += 1;
            if block.seen == SAMPLES {
                self.replace(id, Tier::Sampled);
            }
        }
    }

    /// Translates a block again, for what is known of it now.
    pub(super) fn replace(&mut self, id: u32, tier: Tier) -> Option<u32> {
        let old = self.cache.remove(id)?;
        // What is made now may come to where its code is.
        self.keep_dropped(std::slice::from_ref(&old));
        let range = (old.lowest, old.len);
        let parts: Vec<Part> = old.further.iter().map(|further| further.part).collect();
        let insns: Vec<Instruction> = old.insns().collect();
        let new = self.place(old.key, &insns, range, &parts, tier);
        if let Some(block) = new.and_then(|new| self.cache.block_mut(new)) {
            // What was found out about it stays true.
            block.predicting |= old.predicting;
            block.settled = old.settled;
            block.open = old.open;
            block.strays = old.strays;
            block.attempts = old.attempts;
        }
        if let Some(new) = new {
            for &(from, exit) in &old.incoming {
                self.link_to(from, usize::from(exit), new);
            }
        }
        self.let_go(&[old]);
        new
    }

    /// A site was wrong; `behind` is where its code goes on if it still is. Continues there or with the check,
    /// or leaves before its instruction if that is to be translated again.
    pub(super) fn strayed(&mut self, record: &Upcall, behind: u64, value: u64) -> u64 {
        let number = usize::from(record.size);
        let rules = Rules {
            most: self.options.prediction.unwrap_or(1).max(1),
            eager: self.options.eager_prediction,
        };
        let wide = self.cpu().mode.has(Mode::CODE64);
        let longest = if self.options.wide_reach {
            LONGEST_REACH
        } else {
            PAGE_SIZE
        };
        let now = self.moment();
        let spared = self.strayed.too_many(now) && !rules.eager;
        let predictor = &mut self.strayed.predictors[number];
        let site = predictor.site;
        let often = predictor.patience == rules.most;
        let look = Look {
            most: NEAR * u64::from(if spared { 1 } else { predictor.patience }),
            keeps: spared || !often,
        };
        let CpuBlock { cpu, tlb, .. } = self.block.get_mut();
        let registers = paging(cpu);
        let limits = (wide, longest, look);
        let reached = tlb.reach(&mut self.mem, &registers, (number, &site), value, limits);
        let address = value.wrapping_add(site.displacement as u64);
        let strike = predictor.called_up((address, reached.extended), now, spared, rules);
        // Copies of the block have the same sites, and may have been translated again already.
        let strayed = strike && predictor.strikes >= STRIKES;
        let around = predictor.around(address);
        let patience = predictor.patience;
        if !spared {
            self.strayed.looked(reached.looked, now);
        }
        let block = self.block.get_mut();
        block.patience[number] = patience;
        // Some checks find the address in the register that an upcall's result comes in.
        block.exchange.result_host = value;
        if strike && !strayed && reached.scattered {
            self.bring_together((Linear(address), site.write), around, now);
        }
        // What the block has found of pages that have moved holds no longer.
        let stale = self.mem.has_news();
        if !(stale || strayed) {
            return if reached.covered {
                self.resume_check(record)
            } else {
                self.resume_check_at(record, behind)
            };
        }
        self.leave_astray(record, strayed);
        0
    }

    /// Leaves a block before an instruction, which has done nothing yet. `strayed`: it predicts no more.
    fn leave_astray(&mut self, record: &Upcall, strayed: bool) {
        let Some(block) = self.cache.block(record.block) else {
            unreachable!("an upcall from a block that is gone");
        };
        let index = record.insn as usize;
        let (total, rip) = (block.made.count(), block.rip(index));
        let at = block.physical(rip);
        self.cpu_mut().rip = rip;
        self.give_back(total, index);
        if strayed {
            self.strayed.give_up(at, record.write);
            if let Some(block) = self.cache.block_mut(record.block) {
                block.strays += 1;
                let predicting = block.strays < STRAYS;
                self.replace(record.block, Tier::Hot { predicting });
            }
        }
    }

    /// Has the pages around an access follow each other on the host, if it is time for that.
    fn bring_together(&mut self, at: (Linear, bool), around: Range<u64>, now: Duration) {
        // Reports of counted runs name frames, and would differ by what was gathered.
        let timely = !self.options.counted && self.strayed.may_gather(now);
        let may_gather = self.options.eager_prediction || timely;
        if !self.options.gather || !may_gather {
            return;
        }
        let wide = self.cpu().mode.has(Mode::CODE64);
        let CpuBlock { cpu, tlb, .. } = self.block.get_mut();
        let registers = paging(cpu);
        let (moved, looked) = tlb.gather(&mut self.mem, &registers, at, around, wide);
        self.strayed.gathered((moved as u32, looked as u32), now);
        self.cache.statistics.gathered += moved as u64;
    }
}
