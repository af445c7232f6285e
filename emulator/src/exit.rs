//! How a run ends for the caller: the exit codes, in one table, and the last line on stderr.

use crate::machine::End;

/// The exit codes of the process. `isa-debug-exit` adds its own odd codes.
pub const CODES: &[(u8, &str)] = &[
    (
        0,
        "the guest switched itself off, or was ended from outside",
    ),
    (
        1,
        "kmemvisor itself failed, or a workload's result is wrong",
    ),
    (2, "the options, or the files they name, cannot be used"),
    (3, "the guest's kernel panicked"),
    (4, "the guest triple-faulted"),
    (
        5,
        "the guest halted with interrupts off: nothing can wake it",
    ),
    (6, "copies of guest memory differ (-audit)"),
];

/// What came of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset, and -no-reboot was given.
    Reset,
    /// isa-debug-exit.
    DebugExit(u32),
    /// Ended from the console (Ctrl-A x).
    Quit,
    /// Ended by a signal of that name.
    Signal(&'static str),
    /// The guest's kernel panicked, with its message.
    Panicked(String),
    /// A triple fault at RIP.
    TripleFault(u64),
    /// HLT with interrupts off at RIP.
    Dead(u64),
    /// Copies differ.
    Audit(String),
}

impl Outcome {
    /// The process's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Outcome::PowerOff | Outcome::Reset | Outcome::Quit | Outcome::Signal(_) => 0,
            // As with QEMU, a process can tell only the low eight bits.
            Outcome::DebugExit(code) => *code as u8,
            Outcome::Panicked(_) => 3,
            Outcome::TripleFault(_) => 4,
            Outcome::Dead(_) => 5,
            Outcome::Audit(_) => 6,
        }
    }

    /// The last line for stderr; a guest that ended by itself needs none.
    pub fn last_line(&self) -> Option<String> {
        Some(match self {
            Outcome::PowerOff | Outcome::Reset | Outcome::DebugExit(_) => return None,
            Outcome::Quit => "terminated".to_string(),
            Outcome::Signal(name) => format!("terminated by {name}"),
            Outcome::Panicked(message) => format!("guest panicked: {message}"),
            Outcome::TripleFault(rip) => format!("guest triple-faulted at {rip:#x}"),
            Outcome::Dead(rip) => {
                format!("guest is dead: it halted with interrupts off at {rip:#x}")
            }
            Outcome::Audit(error) => format!("audit failed: {error}"),
        })
    }

    /// What the end of a machine's run means, given what its console said before.
    pub fn of(end: End, rip: u64, panicked: Option<String>, restarting: bool) -> Outcome {
        match (end, panicked) {
            (End::PowerOff, _) => Outcome::PowerOff,
            (End::DebugExit(code), _) => Outcome::DebugExit(code),
            (End::Quit | End::Goal, _) => Outcome::Quit,
            (End::Audit(error), _) => Outcome::Audit(error.to_string()),
            // A kernel that announces its restart may do it by a triple fault.
            (End::Reset | End::TripleFault, _) if restarting => Outcome::Reset,
            (End::Reset | End::TripleFault | End::Dead, Some(message)) => {
                Outcome::Panicked(message)
            }
            (End::Panicked, message) => {
                Outcome::Panicked(message.unwrap_or_else(|| "no message".to_string()))
            }
            (End::Reset, None) => Outcome::Reset,
            (End::TripleFault, None) => Outcome::TripleFault(rip),
            (End::Dead, None) => Outcome::Dead(rip),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_tells_what_a_reset_was() {
        let panic = || Some("VFS: no root".to_string());
        let code = |end, panicked, restarting| Outcome::of(end, 0, panicked, restarting).code();
        assert_eq!(code(End::Reset, None, false), 0);
        assert_eq!(code(End::Reset, panic(), false), 3);
        assert_eq!(code(End::Reset, panic(), true), 0);
        assert_eq!(code(End::TripleFault, None, false), 4);
        assert_eq!(code(End::TripleFault, None, true), 0);
        assert_eq!(code(End::Dead, None, false), 5);
        assert_eq!(code(End::Dead, panic(), false), 3);
        assert_eq!(code(End::DebugExit(0x21), None, false), 0x21);
    }

    #[test]
    fn every_code_is_in_the_table_once() {
        for (index, (code, _)) in CODES.iter().enumerate() {
            assert_eq!(index, usize::from(*code));
        }
    }
}
