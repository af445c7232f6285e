//! Translations that were kept do what they did in the run that made them.

use dbt::{EngineOptions, Stop};

use crate::common::Random;
use crate::machine::Machine;
use crate::program::Recipe;
use crate::{compare_registers, compare_rest, listing, reference};

fn translator() -> Machine {
    let options = EngineOptions {
        traces: Some(2),
        registers: Some(1),
        cold: 0,
        ..EngineOptions::default()
    };
    Machine::new(options, 2)
}

/// Runs random programs by a machine that keeps its translations, and by another that reads them back.
fn run_twice(bits: u32, seed: u64) {
    let directory = tempfile::tempdir().expect("a directory for a test");
    let mut interpreter = Machine::new(
        EngineOptions {
            counted: true,
            interpret_only: true,
            ..EngineOptions::default()
        },
        2,
    );
    let (mut first, mut second) = (translator(), translator());
    let mut random = Random::new(seed);
    let (mut programs, mut kept) = (0, 0);
    while programs < 150 {
        let recipe = Recipe {
            bits,
            setting: random.next(),
            operations: (0..1 + random.below(40)).map(|_| random.next()).collect(),
        };
        let program = recipe.build();
        interpreter.set_up(&program);
        let run = reference::run(&mut interpreter, &program);
        let Some(run) = run.filter(|_| program.interrupts.is_empty()) else {
            continue;
        };
        let last = run.moments.last().expect("it has an end");
        for (name, machine) in [("first", &mut first), ("second", &mut second)] {
            machine.vcpu.keep_code_in(directory.path());
            machine.set_up(&program);
            let mut text = String::new();
            assert_eq!(machine.vcpu.run(), Stop::Halted, "{name}");
            compare_registers(name, last, machine, &mut text);
            compare_rest(
                name,
                run.frame_undefined,
                (&mut interpreter, machine),
                &mut text,
            );
            assert!(text.is_empty(), "{}{text}", listing(&recipe, &program));
            kept += machine
                .vcpu
                .keep_code(1)
                .expect("the directory can be written");
        }
        programs += 1;
    }
    let [before, after] = [&first, &second].map(|machine| machine.vcpu.statistics());
    assert!(kept > 300, "{kept}");
    assert!(
        after.recalled * 3 > before.translated,
        "{before:?} {after:?}"
    );
    // What has been overwritten by the end of a program is kept, too.
    assert!(
        after.translated * 9 < before.translated,
        "{before:?} {after:?}"
    );
}

#[test]
fn programs_of_64_bits_from_a_file() {
    run_twice(64, 5);
}

#[test]
fn programs_of_32_bits_from_a_file() {
    run_twice(32, 6);
}
