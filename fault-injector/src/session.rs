//! A plan being carried out on a machine.

use mmu::MemoryEvent;

use crate::class::{Class, Pick, Target};
use crate::ledger::{Ledger, Moment};
use crate::plan::{Interval, Plan, PlanError, Size, TargetCopy, When, Where};
use crate::random::Random;

/// When the next injection is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// When this many guest instructions have been executed.
    Instructions(u64),
    /// At this virtual time, in nanoseconds.
    Time(u64),
}

impl Due {
    fn passed(self, now: Moment) -> bool {
        match self {
            Due::Instructions(at) => now.instructions >= at,
            Due::Time(at) => now.nanoseconds >= at,
        }
    }
}

/// The classes that `where=used` goes through, in turn, so that each is hit by construction. One
/// that the machine does not have at that moment gives its turn to a random other one.
const USED: [Class; 20] = [
    Class::PageTable,
    Class::KernelData,
    Class::UserStack,
    Class::KernelText,
    Class::UserData,
    Class::PageTable,
    Class::KernelData,
    Class::Other,
    Class::UserText,
    Class::KernelText,
    Class::PageTable,
    Class::UserStack,
    Class::KernelData,
    Class::UserData,
    Class::KernelText,
    Class::PageTable,
    Class::UserText,
    Class::KernelData,
    Class::UserStack,
    Class::Other,
];

/// Choices for one injection before its turn is given up.
const TRIES: u32 = 24;

/// A plan being carried out.
#[derive(Clone, Debug)]
pub struct Session {
    plan: Plan,
    next: Option<Due>,
    ledger: Ledger,
    made: u64,
    skipped: u64,
}

impl Session {
    /// Starts a plan on a machine whose pages have this many copies.
    pub fn new(plan: Plan, copies: usize) -> Result<Session, PlanError> {
        plan.check(copies)?;
        let next = match plan.when {
            When::At(at) => Due::Instructions(at),
            When::Every(Interval::Instructions(every)) => Due::Instructions(every),
            When::Every(Interval::Time(every)) => Due::Time(every),
        };
        Ok(Session {
            plan,
            next: Some(next),
            ledger: Ledger::new(),
            made: 0,
            skipped: 0,
        })
    }

    /// When the next injection is due; `None` when the plan is done.
    pub fn next_due(&self) -> Option<Due> {
        self.next
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Turns that found no page of the wanted kind (there is no user program yet, for example);
    /// they do not count as injections.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Notes what became of lines damaged earlier.
    pub fn feed(&mut self, events: &[MemoryEvent], now: Moment) {
        for event in events {
            self.ledger.feed(event, now);
        }
    }

    /// Makes the injections that are due. Events that happened before have to be fed first.
    pub fn inject_due(&mut self, target: &mut dyn Target, now: Moment) {
        while let Some(due) = self.next
            && due.passed(now)
        {
            if self.inject(target, now) {
                self.made += 1;
            } else {
                self.skipped += 1;
            }
            self.next = match (self.plan.when, due) {
                _ if self.made >= self.plan.count => None,
                (When::Every(Interval::Instructions(every)), Due::Instructions(at)) => {
                    Some(Due::Instructions(at.saturating_add(every)))
                }
                (When::Every(Interval::Time(every)), Due::Time(at)) => {
                    Some(Due::Time(at.saturating_add(every)))
                }
                _ => None,
            };
        }
    }

    fn inject(&mut self, target: &mut dyn Target, now: Moment) -> bool {
        let turn = self.made + self.skipped;
        let mut random = Random::of_injection(self.plan.seed, turn);
        for attempt in 0..TRIES {
            let class = self.class(turn, attempt, &mut random);
            let pick = match self.plan.place {
                Where::Any => {
                    let number = random.below(u64::from(target.ram_pages())) as u32;
                    Some(Pick {
                        page: target.page(number),
                        line: None,
                    })
                }
                _ => target.sample(class, &mut random),
            };
            let Some(pick) = pick else { continue };
            let copies = target.copies();
            let copy = self.copy(copies, &mut random);
            let lines = self.lines(pick.line, &mut random) & self.allowed(target, pick, copy);
            if lines == 0 {
                continue;
            }
            let frame = target.frame(pick.page, copy);
            let taken = target.corrupt(pick.page, copy, lines, &mut || random.word());
            if taken != 0 {
                self.ledger.open(now, pick.page, copy, frame, taken, class);
                return true;
            }
        }
        false
    }

    fn class(&self, turn: u64, attempt: u32, random: &mut Random) -> Class {
        let choose = |random: &mut Random, from: &[Class]| -> Class {
            from[random.below(from.len() as u64) as usize]
        };
        match self.plan.place {
            Where::Used if attempt < 2 => USED[(turn % USED.len() as u64) as usize],
            Where::Used => choose(random, &USED),
            Where::Any => Class::Other,
            Where::PageTables => Class::PageTable,
            Where::Kernel => choose(random, &[Class::KernelText, Class::KernelData]),
            Where::User => choose(
                random,
                &[Class::UserText, Class::UserData, Class::UserStack],
            ),
        }
    }

    fn copy(&self, copies: usize, random: &mut Random) -> usize {
        match self.plan.target {
            TargetCopy::Native => 0,
            TargetCopy::Mirror => 1 + random.below(copies as u64 - 1) as usize,
            TargetCopy::Any => random.below(copies as u64) as usize,
        }
    }

    fn lines(&self, hint: Option<u32>, random: &mut Random) -> u64 {
        // The line known to be in use, three times of four: the rest of the page counts too.
        let line = match hint {
            Some(line) if !random.one_in(4) => line & 63,
            _ => random.below(64) as u32,
        };
        let several = match self.plan.size {
            Size::Line => 0,
            Size::Frame => u64::MAX,
            Size::Mixed => match random.below(4) {
                0 => u64::MAX,
                1 => random.word() & random.word() & random.word(),
                _ => 0,
            },
        };
        several | 1 << line
    }

    /// The lines of a copy that may be taken: those that are good, and, unless losses are asked
    /// for, have another good copy. Without a mirror there is none to spare, so every line may.
    fn allowed(&self, target: &dyn Target, pick: Pick, copy: usize) -> u64 {
        let copies = target.copies();
        let good = !target.bad_lines(pick.page, copy);
        if self.plan.allow_loss || copies == 1 {
            return good;
        }
        let elsewhere = (0..copies)
            .filter(|&other| other != copy)
            .fold(0, |lines, other| {
                lines | !target.bad_lines(pick.page, other)
            });
        good & elsewhere
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_its_turn() {
        for class in Class::ALL {
            assert!(USED.contains(&class), "{}", class.name());
        }
    }
}
