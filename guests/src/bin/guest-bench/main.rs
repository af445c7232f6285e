//! The program that the benchmark runs inside its guests and, the same file, natively: small
//! classes of work, and a stopwatch for whole programs.
//!
//! `guest-bench run SCALE NAME...` runs classes; `guest-bench time NAME COMMAND...` a command.
//! Each prints `BENCH begin NAME` and `BENCH end NAME MILLISECONDS CHECKSUM`, for the host's clock
//! and the guest's.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod compute;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod memory;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod programs;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod system;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod work {
    use std::io::Write;
    use std::process::ExitCode;
    use std::sync::Mutex;
    use std::time::Instant;

    use super::{compute, memory, programs, system};

    /// A class: its name, and what computes a checksum from a number of thousandths of the usual
    /// work. `None`: this processor cannot do it.
    pub type Class = (&'static str, fn(u64) -> Option<u64>);

    /// So many thousandths of a count, at least one.
    pub fn scaled(count: u64, scale: u64) -> u64 {
        (count * scale / 1000).max(1)
    }

    fn say(line: &str) {
        let mut out = std::io::stdout().lock();
        // Nobody is left to tell if the console is gone.
        let _ = writeln!(out, "BENCH {line}").and_then(|()| out.flush());
    }

    /// What is being measured, and since when.
    static CURRENT: Mutex<Option<(String, Instant)>> = Mutex::new(None);

    fn begin(name: &str) {
        say(&format!("begin {name}"));
        let mut current = CURRENT.lock().unwrap_or_else(|held| held.into_inner());
        *current = Some((name.to_string(), Instant::now()));
    }

    /// The preparations are over: the clock starts again.
    pub fn prepared() {
        let current = CURRENT
            .lock()
            .unwrap_or_else(|held| held.into_inner())
            .take();
        if let Some((name, _)) = current {
            begin(&name);
        }
    }

    /// Measures one piece of work.
    fn timed(name: &str, work: impl FnOnce() -> Option<u64>) {
        begin(name);
        let result = work();
        let end = Instant::now();
        let current = CURRENT
            .lock()
            .unwrap_or_else(|held| held.into_inner())
            .take();
        let start = current.map_or(end, |(_, start)| start);
        let milliseconds = (end - start).as_secs_f64() * 1e3;
        match result {
            Some(sum) => say(&format!("end {name} {milliseconds:.3} {sum:016x}")),
            None => say(&format!("skip {name}")),
        }
    }

    pub fn main() -> ExitCode {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        match words[..] {
            ["run", scale, ref names @ ..] => {
                system::stay_on_this_processor();
                let Ok(scale) = scale.parse() else {
                    return ExitCode::FAILURE;
                };
                for name in names {
                    let classes = compute::CLASSES.iter().chain(memory::CLASSES);
                    let mut classes = classes.chain(system::CLASSES);
                    match classes.find(|(known, _)| known == name) {
                        Some((_, class)) => timed(name, || class(scale)),
                        None => say(&format!("unknown {name}")),
                    }
                }
                ExitCode::SUCCESS
            }
            ["time", name, ref command @ ..] if !command.is_empty() => {
                system::stay_on_this_processor();
                timed(name, || programs::checksum(command));
                ExitCode::SUCCESS
            }
            ["nothing"] => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn main() -> std::process::ExitCode {
    work::main()
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn main() {
    eprintln!("guest-bench: the guests are x86-64 Linux");
    std::process::exit(1);
}
