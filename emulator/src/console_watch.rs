//! Reads along on the guest's console: a Linux kernel tells there that it panicked or restarts.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

const PANIC: &str = "Kernel panic - not syncing";
const RESTARTING: &str = "reboot: Restarting system";
/// Longer lines are no kernel messages.
const LINE_LIMIT: usize = 1024;

/// What the console has said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The message of the kernel's panic, if the last kernel to say anything panicked.
    pub panic: Option<String>,
    /// The kernel announced its restart.
    pub restarting: bool,
}

#[derive(Default)]
struct State {
    line: Vec<u8>,
    said: Said,
    /// Everything written, if asked for.
    record: Option<Vec<u8>>,
}

/// A shared observer of console output.
#[derive(Clone, Default)]
pub struct ConsoleWatch {
    state: Arc<Mutex<State>>,
}

impl ConsoleWatch {
    /// An observer that also keeps all output.
    pub fn recording() -> ConsoleWatch {
        let watch = ConsoleWatch::default();
        watch.lock().record = Some(Vec::new());
        watch
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at more output.
    pub fn see(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if let Some(record) = &mut state.record {
            record.extend_from_slice(bytes);
        }
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut state.line);
                state.said.line(&line);
            } else if state.line.len() < LINE_LIMIT {
                state.line.push(byte);
            }
        }
    }

    /// What has been said since the last start.
    pub fn said(&self) -> Said {
        self.lock().said.clone()
    }

    /// Whether a kernel panic has been seen.
    pub fn panicked(&self) -> bool {
        self.lock().said.panic.is_some()
    }

    /// The machine starts again.
    pub fn restart(&self) {
        let mut state = self.lock();
        state.said = Said::default();
        state.line.clear();
    }

    /// All output so far, of a recording observer.
    pub fn recorded(&self) -> Vec<u8> {
        self.lock().record.clone().unwrap_or_default()
    }
}

impl Said {
    fn line(&mut self, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim();
        if let Some(message) = kernel_message(line, PANIC) {
            let message = message.trim_start_matches(':').trim();
            self.panic.get_or_insert_with(|| message.to_string());
        } else if kernel_message(line, RESTARTING).is_some() {
            self.restarting = true;
        }
    }
}

/// What follows `text` in a message of the kernel: it starts its line, or stands behind a time
/// stamp.
fn kernel_message<'a>(line: &'a str, text: &str) -> Option<&'a str> {
    let (before, after) = line.split_once(text)?;
    let stamped = || {
        let stamp = before.strip_suffix("] ")?.rsplit_once('[')?.1;
        stamp.trim().parse::<f64>().ok()
    };
    (before.is_empty() || stamped().is_some()).then_some(after)
}

/// A writer that shows everything to an observer first.
pub struct Watched<W> {
    inner: W,
    watch: ConsoleWatch,
}

impl<W: Write> Watched<W> {
    /// Writes to `inner` what `watch` has seen.
    pub fn new(inner: W, watch: ConsoleWatch) -> Watched<W> {
        Watched { inner, watch }
    }
}

impl<W: Write> Write for Watched<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.watch.see(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Said {
        let watch = ConsoleWatch::default();
        // In two pieces, as a serial port may deliver it.
        let (first, second) = text.as_bytes().split_at(text.len() / 2);
        watch.see(first);
        watch.see(second);
        watch.said()
    }

    #[test]
    fn a_panic_is_a_kernel_message_at_the_start_of_a_line() {
        let stamped = "[    1.23] Kernel panic - not syncing: VFS: Unable to mount\r\n";
        assert_eq!(said(stamped).panic.as_deref(), Some("VFS: Unable to mount"));
        assert!(said("Kernel panic - not syncing: x\n").panic.is_some());
        assert_eq!(said("grep: Kernel panic - not syncing: x\n").panic, None);
        assert_eq!(said("[note] Kernel panic - not syncing: x\n").panic, None);
        assert!(said("[   12.5] reboot: Restarting system\r\n").restarting);
        assert!(said("# reboot[   12.5] reboot: Restarting system\n").restarting);
    }

    #[test]
    fn a_restart_forgets() {
        let watch = ConsoleWatch::recording();
        watch.see(b"Kernel panic - not syncing: x\n");
        assert!(watch.panicked());
        watch.restart();
        assert_eq!(watch.said(), Said::default());
        assert!(watch.recorded().starts_with(b"Kernel"));
    }
}
