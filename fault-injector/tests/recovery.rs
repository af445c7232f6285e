//! Random schedules against random loads and stores: nothing is lost while a copy is good.

use fault_injector::{
    Class, Fate, Ledger, Moment, Pick, Plan, Random, Session, Target, TargetCopy,
};
use mmu::{GuestPhys, MemoryConfig, PAGE_SIZE, PhysMem};
use proptest::prelude::*;

const PAGES: u32 = 256;
/// Accesses and injections go to few pages, so that they meet.
const BUSY: u64 = 4;

struct Bench(PhysMem);

impl Target for Bench {
    fn copies(&self) -> usize {
        self.0.copies()
    }
    fn ram_pages(&self) -> u32 {
        PAGES
    }
    fn page(&self, number: u32) -> GuestPhys {
        self.0.page_address(number)
    }
    fn sample(&mut self, _: Class, random: &mut Random) -> Option<Pick> {
        Some(Pick {
            page: GuestPhys(random.below(BUSY) * PAGE_SIZE),
            line: Some(random.below(64) as u32),
        })
    }
    fn bad_lines(&self, page: GuestPhys, copy: usize) -> u64 {
        self.0.poisoned_lines(page, copy)
    }
    fn frame(&self, page: GuestPhys, copy: usize) -> Option<u32> {
        self.0.frame(page, copy).map(|frame| frame.0)
    }
    fn corrupt(
        &mut self,
        page: GuestPhys,
        copy: usize,
        lines: u64,
        noise: &mut dyn FnMut() -> u64,
    ) -> u64 {
        self.0.corrupt(page, copy, lines, noise)
    }
}

#[derive(Clone, Debug)]
struct Access {
    at: u16,
    len: u16,
    store: Option<u8>,
}

fn access() -> impl Strategy<Value = Access> {
    let len = prop_oneof![1..16u16, Just(64), 1..5000u16];
    (0..(BUSY * PAGE_SIZE) as u16, len, any::<Option<u8>>()).prop_map(|(at, len, store)| {
        let align = if len == 64 { !63 } else { !0 };
        Access {
            at: at & align,
            len,
            store,
        }
    })
}

/// Runs accesses with injections between them; whether every load saw what was stored.
fn run(plan: &Plan, copies: usize, accesses: &[Access]) -> Result<Ledger, TestCaseError> {
    let mem = PhysMem::new(&MemoryConfig {
        ram_bytes: u64::from(PAGES) * PAGE_SIZE,
        copies,
        legacy_hole: false,
    })
    .unwrap();
    let mut bench = Bench(mem);
    let mut model = vec![0u8; PAGES as usize * PAGE_SIZE as usize];
    let mut session = Session::new(plan.clone(), copies).unwrap();
    for (step, access) in accesses.iter().enumerate() {
        let now = Moment {
            instructions: step as u64,
            nanoseconds: step as u64 * 1000,
        };
        let events = bench.0.take_events();
        session.feed(&events, now);
        session.inject_due(&mut bench, now);
        let (at, len) = (usize::from(access.at), usize::from(access.len));
        let gpa = GuestPhys(at as u64);
        if let Some(byte) = access.store {
            bench.0.store(gpa, &vec![byte; len]).unwrap();
            model[at..at + len].fill(byte);
        } else {
            let mut seen = vec![0; len];
            bench.0.load(gpa, &mut seen).unwrap();
            prop_assert_eq!(&seen[..], &model[at..at + len]);
        }
        prop_assert!(bench.0.audit().is_ok());
    }
    let events = bench.0.take_events();
    session.feed(&events, Moment::default());
    let mut all = vec![0; BUSY as usize * PAGE_SIZE as usize];
    let ledger = session.ledger().clone();
    bench.0.load(GuestPhys(0), &mut all).unwrap();
    prop_assert_eq!(&all[..], &model[..all.len()]);
    Ok(ledger)
}

fn plan() -> impl Strategy<Value = Plan> {
    let target = prop_oneof![Just("native"), Just("mirror"), Just("any")];
    let size = prop_oneof![Just("line"), Just("frame"), Just("mixed")];
    let every = prop_oneof![Just("1"), Just("3"), Just("2us")];
    (any::<u64>(), target, size, every).prop_map(|(seed, target, size, every)| {
        Plan::parse(&format!(
            "seed={seed},every={every},target={target},size={size}"
        ))
        .unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_schedule_that_leaves_a_good_copy_loses_data(
        plan in plan(),
        copies in 2..=4usize,
        accesses in prop::collection::vec(access(), 1..120),
    ) {
        let ledger = run(&plan, copies, &accesses)?;
        let counts = ledger.counts();
        prop_assert_eq!(counts.injected, counts.sum());
        prop_assert_eq!(counts.injected, ledger.entries().len() as u64);
        prop_assert_eq!(counts.lost, 0);
        let classes: u64 = ledger.by_class().values().map(|c| c.injected).sum();
        prop_assert_eq!(classes, counts.injected);
        // Entries are of the copy that the plan names.
        for entry in ledger.entries() {
            let wanted = match plan.target {
                TargetCopy::Native => entry.copy == 0,
                TargetCopy::Mirror => entry.copy > 0,
                TargetCopy::Any => true,
            };
            prop_assert!(wanted);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_ledger(
        plan in plan(),
        accesses in prop::collection::vec(access(), 1..60),
    ) {
        let first = run(&plan, 2, &accesses)?;
        let second = run(&plan, 2, &accesses)?;
        prop_assert_eq!(first.entries(), second.entries());
    }
}

fn bench(copies: usize) -> Bench {
    Bench(
        PhysMem::new(&MemoryConfig {
            ram_bytes: 1 << 20,
            copies,
            legacy_hole: false,
        })
        .unwrap(),
    )
}

fn at(instructions: u64) -> Moment {
    Moment {
        instructions,
        nanoseconds: 0,
    }
}

#[test]
fn one_exact_instruction() {
    let mut bench = bench(2);
    let mut session = Session::new(Plan::parse("at=500").unwrap(), 2).unwrap();
    session.inject_due(&mut bench, at(499));
    assert_eq!(session.ledger().entries().len(), 0);
    session.inject_due(&mut bench, at(500));
    assert_eq!(session.ledger().entries().len(), 1);
    assert_eq!(session.ledger().entries()[0].at, at(500));
    assert_eq!(session.next_due(), None);
}

#[test]
fn the_count_ends_the_plan_and_a_late_call_catches_up() {
    let mut bench = bench(2);
    let plan = Plan::parse("every=10,count=3,where=any").unwrap();
    let mut session = Session::new(plan, 2).unwrap();
    session.inject_due(&mut bench, at(20));
    assert_eq!(session.ledger().entries().len(), 2);
    session.inject_due(&mut bench, at(1000));
    assert_eq!(session.ledger().entries().len(), 3);
    assert_eq!(session.next_due(), None);
}

#[test]
fn the_last_good_copy_goes_only_where_that_is_asked_for() {
    for (option, lost) in [("", false), (",allow-loss=on", true)] {
        let mut bench = bench(2);
        let plan = format!("every=1,count=2000,size=frame{option}");
        let mut session = Session::new(Plan::parse(&plan).unwrap(), 2).unwrap();
        session.inject_due(&mut bench, at(10_000));
        let mut bytes = vec![0; (BUSY * PAGE_SIZE) as usize];
        assert_eq!(bench.0.load(GuestPhys(0), &mut bytes).is_err(), lost);
        let events = bench.0.take_events();
        session.feed(&events, at(10_000));
        let counts = session.ledger().counts();
        assert_eq!(counts.lost > 0, lost);
        assert_eq!(counts.injected, counts.sum());
        // Nothing is left to take once each line has one good copy: such turns are skipped.
        assert!(session.skipped() > 0);
    }
}

#[test]
fn without_a_mirror_what_is_read_is_lost() {
    let mut bench = bench(1);
    let plan = Plan::parse("every=1,count=1,size=frame").unwrap();
    let mut session = Session::new(plan, 1).unwrap();
    session.inject_due(&mut bench, at(1));
    let page = session.ledger().entries()[0].page;
    assert!(bench.0.load(page, &mut [0; 8]).is_err());
    let events = bench.0.take_events();
    session.feed(&events, at(2));
    assert_eq!(session.ledger().entries()[0].fate(), Fate::Lost);
}
