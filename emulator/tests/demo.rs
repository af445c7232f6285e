//! The embedded guest under corruption: it survives with a mirror, and not without.

use devices::DebugExit;
use emulator::demo::{DemoError, DemoOptions, Outcome, execute};
use emulator::machine::End;
use fault_injector::Class;

fn demo(args: &[&str]) -> Outcome {
    let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
    execute(&DemoOptions::parse(&args).unwrap(), std::io::sink()).unwrap()
}

/// The default plan, denser and shorter.
const PLAN: &str = "seed=1,every=200k,where=used";

#[test]
fn the_undisturbed_guest_computes_what_the_host_does() {
    let outcome = demo(&["-rounds", "2", "-inject", "at=1G"]);
    assert_eq!(outcome.end, End::DebugExit(DebugExit::code(0)));
    assert_eq!(outcome.result, Some(outcome.expected));
    assert_eq!(outcome.report.ledger.counts().injected, 0);
}

#[test]
fn the_interpreter_agrees() {
    let outcome = demo(&["-rounds", "1", "-inject", PLAN, "-interpret"]);
    assert!(outcome.right(), "{:?}", outcome.end);
}

/// The same without a floating-point or vector instruction on the host: as on other hosts.
#[test]
fn the_portable_interpreter_agrees() {
    let outcome = demo(&["-rounds", "1", "-inject", PLAN, "-portable"]);
    assert!(outcome.right(), "{:?}", outcome.end);
}

#[test]
fn with_a_mirror_every_class_of_page_survives() {
    for copies in ["copies=2", "copies=3"] {
        let outcome = demo(&["-mirror", copies, "-rounds", "2", "-inject", PLAN]);
        assert!(outcome.right(), "{:?} {:?}", outcome.end, outcome.result);
        let counts = outcome.report.ledger.counts();
        assert!(counts.injected > 100, "{counts:?}");
        assert_eq!((counts.sum(), counts.lost), (counts.injected, 0));
        assert!(counts.recovered > 20 && counts.rebuilt > 10, "{counts:?}");
        let classes = outcome.report.ledger.by_class();
        for class in Class::ALL {
            assert!(classes.contains_key(&class), "{} not hit", class.name());
        }
    }
}

#[test]
fn without_a_mirror_the_same_seed_fails() {
    let outcome = demo(&["-mirror", "off", "-rounds", "2", "-inject", PLAN]);
    assert!(!outcome.right());
    let counts = outcome.report.ledger.counts();
    assert_eq!(counts.sum(), counts.injected);
    assert!(counts.lost > 0, "{counts:?}");
    assert_eq!(counts.recovered + counts.rebuilt + counts.remapped, 0);
}

#[test]
fn the_same_plan_gives_the_same_ledger() {
    let run = || demo(&["-rounds", "1", "-inject", "seed=9,every=300k"]).report;
    let (first, second) = (run(), run());
    assert_eq!(first.ledger.entries(), second.ledger.entries());
    assert_eq!(first.instructions, second.instructions);
}

#[test]
fn every_kind_of_plan_is_survived() {
    for plan in [
        "seed=2,every=100us,target=native,where=page-tables",
        "seed=3,every=100k,target=mirror,where=kernel,size=frame",
        "seed=4,every=100k,where=user,size=line",
        "seed=5,every=50k,where=any",
        "seed=6,at=123456,where=user",
    ] {
        let outcome = demo(&["-rounds", "1", "-inject", plan]);
        assert!(outcome.right(), "{plan}: {:?}", outcome.end);
        assert!(outcome.report.ledger.counts().injected > 0, "{plan}");
    }
}

#[test]
fn one_exact_instruction_is_met_exactly() {
    let outcome = demo(&["-rounds", "1", "-inject", "at=1234567"]);
    let entries = outcome.report.ledger.entries();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].at.instructions, 1_234_567);
}

#[test]
fn wrong_options_are_named() {
    for (args, part) in [
        (vec!["-mirror", "sideways"], "copies=4"),
        (vec!["-mirror"], "needs a value"),
        (vec!["-rounds", "0"], "1 to 1000"),
        (vec!["-inject", "count=0"], "count=0"),
        (
            vec!["-mirror", "off", "-inject", "target=mirror"],
            "no mirror",
        ),
        (vec!["-frobnicate"], "frobnicate"),
        (vec!["stray"], "unknown option"),
    ] {
        let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
        let error = DemoOptions::parse(&args).unwrap_err();
        assert_eq!(error.code(), 2);
        assert!(matches!(error, DemoError::Usage(_) | DemoError::Plan(_)));
        assert!(error.to_string().contains(part), "{error}");
    }
}
