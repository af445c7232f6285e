//! The `kmemvisor` command.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(emulator::command::main(std::env::args_os().skip(1)))
}
