//! The `kmemvisor` command.

#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Translations come and go in many small pieces.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ExitCode::from(emulator::command::main(std::env::args_os().skip(1)))
}
