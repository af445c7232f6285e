//! The terminal as the guest's console: raw while the guest runs, restored on every way out.

use std::io::{self, IsTerminal, Read};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

use rustix::termios::{self, InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios};

const CTRL_A: u8 = 1;
const HELP: &str = "\
\r\nCtrl-A h    print this help\
\r\nCtrl-A x    end the machine\
\r\nCtrl-A b    send a break\
\r\nCtrl-A c    reserved for the monitor\
\r\nCtrl-A Ctrl-A    send Ctrl-A\r\n";

/// The terminal's modes: as they were, and as the guest has them.
static MODES: Mutex<Option<(Termios, Termios)>> = Mutex::new(None);
static PANIC_HOOK: Once = Once::new();

/// What input asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Bytes for the guest.
    Data(Vec<u8>),
    /// A break on the line.
    Break,
    /// End the machine.
    Quit,
    /// A text for the user.
    Tell(&'static str),
}

/// Finds commands in input.
#[derive(Debug, Default)]
pub struct Escapes {
    pending: bool,
}

impl Escapes {
    /// Splits input into data and commands.
    pub fn split(&mut self, bytes: &[u8]) -> Vec<Input> {
        let mut inputs = Vec::new();
        let mut data = Vec::new();
        for &byte in bytes {
            if !std::mem::take(&mut self.pending) {
                if byte == CTRL_A {
                    self.pending = true;
                } else {
                    data.push(byte);
                }
                continue;
            }
            let command = match byte {
                CTRL_A => {
                    data.push(CTRL_A);
                    continue;
                }
                b'x' => Input::Quit,
                b'b' => Input::Break,
                b'c' => Input::Tell("\r\nkmemvisor: there is no monitor yet\r\n"),
                b'h' | b'?' => Input::Tell(HELP),
                _ => continue,
            };
            if !data.is_empty() {
                inputs.push(Input::Data(std::mem::take(&mut data)));
            }
            inputs.push(command);
        }
        if !data.is_empty() {
            inputs.push(Input::Data(data));
        }
        inputs
    }
}

/// The terminal in raw mode until dropped. Standard input that is no terminal stays as it is.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Takes the terminal; `all_keys`: Ctrl-C and the like go to the guest, too.
    pub fn take(all_keys: bool) -> RawTerminal {
        let stdin = io::stdin();
        if stdin.is_terminal()
            && let Ok(before) = termios::tcgetattr(&stdin)
        {
            let mut raw = before.clone();
            raw.input_modes -= InputModes::IGNBRK
                | InputModes::BRKINT
                | InputModes::PARMRK
                | InputModes::ISTRIP
                | InputModes::INLCR
                | InputModes::IGNCR
                | InputModes::ICRNL
                | InputModes::IXON;
            // Output processing stays, so that messages on stderr look as ever.
            raw.local_modes -=
                LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::IEXTEN;
            if all_keys {
                raw.local_modes -= LocalModes::ISIG;
            }
            raw.special_codes[SpecialCodeIndex::VMIN] = 1;
            raw.special_codes[SpecialCodeIndex::VTIME] = 0;
            *MODES.lock().unwrap_or_else(PoisonError::into_inner) = Some((before, raw));
            PANIC_HOOK.call_once(|| {
                let next = std::panic::take_hook();
                std::panic::set_hook(Box::new(move |info| {
                    restore();
                    next(info);
                }));
            });
            reapply();
        }
        RawTerminal(())
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as it was; more than once does no harm.
pub fn restore() {
    let modes = MODES.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((before, _)) = modes {
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

/// Makes the terminal raw again, after the shell had it (SIGCONT).
pub fn reapply() {
    if let Some((_, raw)) = &*MODES.lock().unwrap_or_else(PoisonError::into_inner) {
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, raw);
    }
}

/// Reads standard input on a thread of its own until its end, which is no end for the guest.
pub fn read_input(escapes: bool, mut sink: impl FnMut(Input) -> bool + Send + 'static) {
    thread::spawn(move || {
        let mut splitter = Escapes::default();
        let mut bytes = [0; 1024];
        let mut stdin = io::stdin().lock();
        loop {
            let len = match stdin.read(&mut bytes) {
                Ok(0) => return,
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::warn!(%error, "standard input cannot be read any more");
                    return;
                }
            };
            let inputs = if escapes {
                splitter.split(&bytes[..len])
            } else {
                vec![Input::Data(bytes[..len].to_vec())]
            };
            for input in inputs {
                if let Input::Tell(text) = input {
                    eprint!("{text}");
                } else if !sink(input) {
                    return;
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_across_reads() {
        let mut escapes = Escapes::default();
        assert_eq!(escapes.split(b"ls\r"), [Input::Data(b"ls\r".to_vec())]);
        assert_eq!(escapes.split(b"a\x01"), [Input::Data(b"a".to_vec())]);
        assert_eq!(
            escapes.split(b"bq\x01xz"),
            [
                Input::Break,
                Input::Data(b"q".to_vec()),
                Input::Quit,
                Input::Data(b"z".to_vec())
            ]
        );
        assert_eq!(
            escapes.split(b"1\x01\x012\x01k3"),
            [Input::Data(b"1\x0123".to_vec())]
        );
        assert_eq!(escapes.split(b"\x01h"), [Input::Tell(HELP)]);
    }
}
