//! Runs guests of random code against the whole machine, in every mode of the processor, and
//! checks what has to hold whatever a guest does: no panic, no hang, bounded memory, and copies
//! that are equal afterwards.
//!
//! `campaign [--mode MODE|all] [--minutes N | --cases N] [--seed S] [--compare]`

use std::process::ExitCode;
use std::time::{Duration, Instant};

use tests::campaign::{self, MODES, Mode, Tally};

struct Options {
    modes: Vec<Mode>,
    time: Duration,
    cases: u64,
    seed: u64,
    compare: bool,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        modes: MODES.iter().map(|(_, mode)| *mode).collect(),
        time: Duration::MAX,
        cases: u64::MAX,
        seed: 1,
        compare: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if word == "--compare" {
            options.compare = true;
            continue;
        }
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| format!("{value}: no number"))
        };
        match word.as_str() {
            "--mode" if value == "all" => {}
            "--mode" => {
                let known = MODES.iter().find(|(name, _)| *name == value);
                let (_, mode) = known.ok_or(format!("{value}: there is no such mode"))?;
                options.modes = vec![*mode];
            }
            "--minutes" => options.time = Duration::from_secs(number()? * 60),
            "--cases" => options.cases = number()?,
            "--seed" => options.seed = number()?,
            _ => return Err(format!("{word}: there is no such option")),
        }
    }
    if options.time == Duration::MAX && options.cases == u64::MAX {
        options.time = Duration::from_secs(60);
    }
    Ok(options)
}

fn run(options: &Options) -> Result<Vec<(Mode, Tally)>, String> {
    let start = Instant::now();
    let _watchdog = campaign::watchdog(Duration::from_secs(60));
    let mut tallies: Vec<(Mode, Tally)> = options
        .modes
        .iter()
        .map(|&mode| (mode, Tally::default()))
        .collect();
    let mut seed = options.seed;
    let mut done = 0;
    while done < options.cases && start.elapsed() < options.time {
        for (mode, tally) in &mut tallies {
            campaign::case(*mode, seed, options.compare, tally)?;
            done += 1;
        }
        seed = seed.wrapping_add(1);
    }
    Ok(tallies)
}

fn main() -> ExitCode {
    let outcome = options().and_then(|options| run(&options));
    match outcome {
        Ok(tallies) => {
            for (mode, tally) in tallies {
                println!("{mode:?}: {tally:?}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("campaign: {error}");
            ExitCode::FAILURE
        }
    }
}
