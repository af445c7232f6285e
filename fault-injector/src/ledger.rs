//! The ledger: one entry an injection, and what became of it.
//!
//! An injection of several lines has one fate, found in this order:
//!
//! 1. `lost` if a read found any of its lines without a good copy: a loss is never hidden;
//! 2. else the fate of its first activation: `recovered` (a read was served from a mirror),
//!    `rebuilt` (a mirror was restored), or `remapped` (its page moved to another frame before
//!    any of its lines was read);
//! 3. else `overwritten` if every line was overwritten whole;
//! 4. else `unread`.

use std::collections::{BTreeMap, HashMap};

use mmu::{GuestPhys, MemoryEvent};
use serde::{Serialize, Serializer};

use crate::class::Class;

/// A point of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
pub struct Moment {
    /// Guest instructions executed; 0 in a run that does not count them.
    pub instructions: u64,
    /// Nanoseconds of virtual time.
    pub nanoseconds: u64,
}

/// What became of an injection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// A read found it, and was served from a mirror.
    Recovered,
    /// A mirror copy was restored from a good one.
    Rebuilt,
    /// Its page moved to another frame before it was read.
    Remapped,
    /// Overwritten before any read.
    Overwritten,
    /// Neither read nor overwritten so far.
    Unread,
    /// A read found no good copy.
    Lost,
}

/// One injection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number, from 0.
    pub id: u64,
    /// When it was made.
    pub at: Moment,
    /// The page.
    pub page: GuestPhys,
    /// The copy: 0 is the native one.
    pub copy: usize,
    /// The host frame behind that copy at that time.
    pub frame: Option<u32>,
    /// The lines damaged, a bit each.
    pub lines: u64,
    /// What the page was used for.
    pub class: Class,
    /// Lines of which nothing has been heard.
    pending: u64,
    activation: Option<(Fate, Moment)>,
    overwritten_at: Option<Moment>,
}

impl Entry {
    /// What became of it so far.
    pub fn fate(&self) -> Fate {
        match self.activation {
            Some((fate, _)) => fate,
            None if self.pending == 0 => Fate::Overwritten,
            None => Fate::Unread,
        }
    }

    /// When its fate was noticed, which is at the first stop of the processor after it.
    pub fn decided(&self) -> Option<Moment> {
        match self.activation {
            Some((_, moment)) => Some(moment),
            None if self.pending == 0 => self.overwritten_at,
            None => None,
        }
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        /// The entry as it is written: addresses and masks in hexadecimal, because JSON readers
        /// round numbers of 64 bits.
        #[derive(Serialize)]
        struct Row<'a> {
            id: u64,
            at: Moment,
            page: String,
            copy: usize,
            frame: Option<u32>,
            lines: String,
            line_count: u32,
            category: Class,
            fate: Fate,
            decided: &'a Option<Moment>,
        }
        Row {
            id: self.id,
            at: self.at,
            page: format!("{:#x}", self.page.0),
            copy: self.copy,
            frame: self.frame,
            lines: format!("{:#018x}", self.lines),
            line_count: self.lines.count_ones(),
            category: self.class,
            fate: self.fate(),
            decided: &self.decided(),
        }
        .serialize(serializer)
    }
}

/// Injections by fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// All of them: the sum of the rest.
    pub injected: u64,
    /// Reads served from a mirror.
    pub recovered: u64,
    /// Mirror copies restored.
    pub rebuilt: u64,
    /// Moved to another frame unread.
    pub remapped: u64,
    /// Overwritten before any read.
    pub overwritten: u64,
    /// Not read so far.
    pub unread: u64,
    /// Read, and no copy was good.
    pub lost: u64,
}

impl Counts {
    fn add(&mut self, fate: Fate) {
        self.injected += 1;
        *match fate {
            Fate::Recovered => &mut self.recovered,
            Fate::Rebuilt => &mut self.rebuilt,
            Fate::Remapped => &mut self.remapped,
            Fate::Overwritten => &mut self.overwritten,
            Fate::Unread => &mut self.unread,
            Fate::Lost => &mut self.lost,
        } += 1;
    }

    /// The sum over the fates; equal to `injected`.
    pub fn sum(&self) -> u64 {
        self.recovered + self.rebuilt + self.remapped + self.overwritten + self.unread + self.lost
    }
}

/// All injections of a run.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    entries: Vec<Entry>,
    /// Entries with pending lines, by page and copy.
    open: HashMap<(GuestPhys, usize), Vec<usize>>,
}

impl Ledger {
    /// An empty ledger.
    pub fn new() -> Ledger {
        Ledger::default()
    }

    /// The injections, oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Notes an injection.
    pub fn open(
        &mut self,
        at: Moment,
        page: GuestPhys,
        copy: usize,
        frame: Option<u32>,
        lines: u64,
        class: Class,
    ) {
        let index = self.entries.len();
        self.entries.push(Entry {
            id: index as u64,
            at,
            page,
            copy,
            frame,
            lines,
            class,
            pending: lines,
            activation: None,
            overwritten_at: None,
        });
        self.open.entry((page, copy)).or_default().push(index);
    }

    /// Notes what became of some lines.
    pub fn feed(&mut self, event: &MemoryEvent, now: Moment) {
        let Some(open) = self.open.get_mut(&(event.page, event.copy)) else {
            return;
        };
        open.retain(|&index| {
            let entry = &mut self.entries[index];
            let hit = entry.pending & event.lines;
            if hit != 0 {
                entry.pending &= !hit;
                let fate = match event.fate {
                    mmu::Fate::Recovered => Some(Fate::Recovered),
                    mmu::Fate::Rebuilt => Some(Fate::Rebuilt),
                    mmu::Fate::Remapped => Some(Fate::Remapped),
                    mmu::Fate::Lost => Some(Fate::Lost),
                    mmu::Fate::Overwritten => None,
                };
                match fate {
                    None => entry.overwritten_at = Some(now),
                    Some(Fate::Lost) if entry.fate() != Fate::Lost => {
                        entry.activation = Some((Fate::Lost, now));
                    }
                    Some(fate) => {
                        entry.activation.get_or_insert((fate, now));
                    }
                }
            }
            entry.pending != 0
        });
        if open.is_empty() {
            self.open.remove(&(event.page, event.copy));
        }
    }

    /// Injections by fate.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for entry in &self.entries {
            counts.add(entry.fate());
        }
        counts
    }

    /// Injections by fate, for each class that was hit.
    pub fn by_class(&self) -> BTreeMap<Class, Counts> {
        let mut all = BTreeMap::<Class, Counts>::new();
        for entry in &self.entries {
            all.entry(entry.class).or_default().add(entry.fate());
        }
        all
    }
}

impl Serialize for Ledger {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Document<'a> {
            #[serde(flatten)]
            counts: Counts,
            by_category: BTreeMap<Class, Counts>,
            entries: &'a [Entry],
        }
        Document {
            counts: self.counts(),
            by_category: self.by_class(),
            entries: &self.entries,
        }
        .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: GuestPhys = GuestPhys(0x5000);

    fn ledger(lines: u64) -> Ledger {
        let mut ledger = Ledger::new();
        ledger.open(Moment::default(), PAGE, 0, Some(5), lines, Class::UserStack);
        ledger
    }

    fn event(lines: u64, fate: mmu::Fate) -> MemoryEvent {
        MemoryEvent {
            page: PAGE,
            copy: 0,
            lines,
            fate,
        }
    }

    fn fate_after(lines: u64, events: &[(u64, mmu::Fate)]) -> Fate {
        let mut ledger = ledger(lines);
        for (step, &(lines, fate)) in events.iter().enumerate() {
            let now = Moment {
                instructions: step as u64,
                nanoseconds: 0,
            };
            ledger.feed(&event(lines, fate), now);
        }
        let counts = ledger.counts();
        assert_eq!((counts.injected, counts.sum()), (1, 1));
        ledger.entries()[0].fate()
    }

    #[test]
    fn fates_and_their_precedence() {
        use mmu::Fate as F;
        assert_eq!(fate_after(1, &[]), Fate::Unread);
        assert_eq!(fate_after(1, &[(1, F::Recovered)]), Fate::Recovered);
        assert_eq!(fate_after(1, &[(2, F::Recovered)]), Fate::Unread);
        assert_eq!(
            fate_after(7, &[(1, F::Recovered), (6, F::Remapped)]),
            Fate::Recovered
        );
        assert_eq!(fate_after(7, &[(7, F::Remapped)]), Fate::Remapped);
        assert_eq!(fate_after(3, &[(1, F::Overwritten)]), Fate::Unread);
        assert_eq!(
            fate_after(3, &[(1, F::Overwritten), (2, F::Overwritten)]),
            Fate::Overwritten
        );
        assert_eq!(
            fate_after(3, &[(1, F::Overwritten), (2, F::Recovered)]),
            Fate::Recovered
        );
        assert_eq!(
            fate_after(3, &[(1, F::Recovered), (2, F::Lost)]),
            Fate::Lost
        );
        assert_eq!(
            fate_after(1, &[(1, F::Lost), (1, F::Overwritten)]),
            Fate::Lost
        );
    }

    #[test]
    fn a_second_injection_into_the_same_line_has_its_own_fate() {
        let mut ledger = ledger(1);
        let now = Moment::default();
        ledger.feed(&event(1, mmu::Fate::Overwritten), now);
        ledger.open(now, PAGE, 0, Some(5), 1, Class::UserStack);
        ledger.feed(&event(1, mmu::Fate::Recovered), now);
        let fates: Vec<Fate> = ledger.entries().iter().map(Entry::fate).collect();
        assert_eq!(fates, [Fate::Overwritten, Fate::Recovered]);
    }

    #[test]
    fn the_document() {
        let mut ledger = ledger(6);
        ledger.feed(
            &event(2, mmu::Fate::Recovered),
            Moment {
                instructions: 9,
                nanoseconds: 8,
            },
        );
        let json = serde_json::to_value(&ledger).unwrap();
        assert_eq!(json["injected"], 1);
        assert_eq!(json["recovered"], 1);
        assert_eq!(json["by_category"]["user-stack"]["recovered"], 1);
        let entry = &json["entries"][0];
        assert_eq!(entry["page"], "0x5000");
        assert_eq!(entry["line_count"], 2);
        assert_eq!(entry["fate"], "recovered");
        assert_eq!(entry["decided"]["instructions"], 9);
    }
}
