//! The program: which command the arguments name, and the exit code of each.

use std::ffi::OsString;
use std::io::{self, Write};

use crate::console_watch::ConsoleWatch;
use crate::options::{Options, Parsed};
use crate::session::{self, SessionError};
use crate::{debian, demo, options, tracing_setup};

/// Runs the program with its arguments; gives the exit code.
pub fn main(args: impl Iterator<Item = OsString>) -> u8 {
    let mut words = Vec::new();
    for arg in args {
        match arg.into_string() {
            Ok(word) => words.push(word),
            Err(arg) => return usage(&format!("{}: not valid UTF-8", arg.display())),
        }
    }
    match words.first().map(String::as_str) {
        None => usage("nothing to start: give -kernel or -bios, or try `kmemvisor demo`"),
        Some("help") => print(&options::help()),
        Some("demo") => demo::run(&words[1..]),
        Some("boot") => debian::main(words.split_off(1)),
        _ => machine(words),
    }
}

/// One clear line, and the exit code for what cannot be used.
pub fn usage(why: &str) -> u8 {
    eprintln!("kmemvisor: {why}");
    2
}

/// A text for stdout; a closed pipe is not our failure.
pub fn print(text: &str) -> u8 {
    let _ = io::stdout().write_all(text.as_bytes());
    0
}

fn machine(words: Vec<String>) -> u8 {
    let options = match Options::parse(words) {
        Ok(Parsed::Run(options)) => *options,
        Ok(Parsed::Print(text)) => return print(&text),
        Err(why) => return usage(&why),
    };
    let boot = match options.boot() {
        Ok(boot) => boot,
        Err(why) => return usage(&why),
    };
    if let Err(why) = start_logging(&options) {
        return usage(&why);
    }
    finish(session::run(&options, &boot, &ConsoleWatch::default()))
}

/// Starts logging as -d and -D say.
pub fn start_logging(options: &Options) -> Result<(), String> {
    tracing_setup::start(options.log.as_deref(), options.log_file.as_deref())
}

/// Says the last line, and gives the exit code.
pub fn finish(result: Result<crate::exit::Outcome, SessionError>) -> u8 {
    match result {
        Ok(outcome) => {
            if let Some(line) = outcome.last_line() {
                eprintln!("kmemvisor: {line}");
            }
            outcome.code()
        }
        Err(error) => {
            eprintln!("kmemvisor: {error}");
            error.code()
        }
    }
}
