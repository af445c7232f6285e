//! Tells what is being done: a bar on a terminal, a line a step elsewhere. All on stderr.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Where progress is shown.
pub struct Progress {
    bar: Option<ProgressBar>,
    silent: bool,
}

impl Progress {
    /// Progress on stderr.
    pub fn new() -> Progress {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}{prefix}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Progress { bar, silent: false }
    }

    /// Nothing is shown.
    pub fn silent() -> Progress {
        Progress {
            bar: None,
            silent: true,
        }
    }

    /// The next step begins.
    pub fn step(&self, text: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_prefix("");
                bar.set_message(text.to_string());
            }
            None if self.silent => {}
            None => eprintln!("kmemvisor: {text}"),
        }
    }

    /// So many bytes of the step are done; shown on terminals only.
    pub fn bytes(&self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            let tenths = |bytes: u64| bytes as f64 / 1e6;
            let (done, total) = (tenths(done), tenths(total));
            bar.set_prefix(format!(", {done:.1} of {total:.1} MB"));
        }
    }
}

impl Default for Progress {
    fn default() -> Progress {
        Progress::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
