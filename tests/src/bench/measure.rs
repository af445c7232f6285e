//! Runs a machine or a program, and reads times and checksums from what it prints.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::classes::BOOT;

/// What the guest's first process prints once it runs.
pub const SHELL: &str = "BENCH shell";
/// What is printed when all is done.
pub const DONE: &str = "BENCH done";

/// One measurement of one class.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Milliseconds by the host's clock.
    pub host: f64,
    /// Milliseconds by the guest's clock; `None` for the boot.
    pub guest: Option<f64>,
    /// What was computed.
    pub checksum: String,
}

/// Samples by class.
pub type Samples = BTreeMap<String, Sample>;

/// Reads the lines of one run, each with its moment in milliseconds since the start.
#[derive(Default)]
pub struct Reader {
    begun: Option<(String, f64)>,
    /// What is known so far.
    pub samples: Samples,
    /// Classes that the machine cannot do.
    pub skipped: Vec<String>,
}

impl Reader {
    /// Reads a line; whether it was the last one.
    pub fn line(&mut self, line: &str, moment: f64) -> Result<bool> {
        // The kernel may have written something in front.
        let Some(at) = line.find("BENCH ") else {
            return Ok(false);
        };
        let words: Vec<&str> = line[at..].split_whitespace().skip(1).collect();
        match words[..] {
            ["done"] => return Ok(true),
            ["shell"] => {
                let sample = Sample {
                    host: moment,
                    guest: None,
                    checksum: String::new(),
                };
                self.samples.insert(BOOT.to_string(), sample);
            }
            ["begin", name] => self.begun = Some((name.to_string(), moment)),
            ["end", name, milliseconds, checksum] => {
                let begun = self.begun.take().filter(|(begun, _)| begun == name);
                let (name, begin) = begun.with_context(|| format!("{name} ends unbegun"))?;
                let sample = Sample {
                    host: moment - begin,
                    guest: Some(milliseconds.parse().context("a time of the guest")?),
                    checksum: checksum.to_string(),
                };
                self.samples.insert(name, sample);
            }
            ["skip", name] => self.skipped.push(name.to_string()),
            _ => bail!("the guest says `{line}`"),
        }
        Ok(false)
    }
}

/// Kills the process when it is no longer wanted.
struct Kill(Child);

impl Drop for Kill {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command until it says that it is done, and waits for its end.
pub fn run(command: &mut Command, patience: Duration) -> Result<Reader> {
    let start = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{command:?} cannot be started"))?;
    let mut child = Kill(child);
    let out = child.0.stdout.take().context("stdout is piped")?;
    let mut errors = child.0.stderr.take().context("stderr is piped")?;
    let errors = thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = errors.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let (send, lines) = channel();
    thread::spawn(move || {
        let mut out = BufReader::new(out);
        let mut line = Vec::new();
        while matches!(out.read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line).trim().to_string();
            if send.send((text, start.elapsed())).is_err() {
                break;
            }
            line.clear();
        }
    });
    let mut reader = Reader::default();
    let mut seen = Vec::new();
    loop {
        let left = patience.saturating_sub(start.elapsed());
        match lines.recv_timeout(left) {
            Ok((line, moment)) => {
                let done = reader.line(&line, moment.as_secs_f64() * 1e3)?;
                seen.push(line);
                if done {
                    break;
                }
            }
            Err(why) => {
                let why = match why {
                    RecvTimeoutError::Timeout => "is not done in time",
                    RecvTimeoutError::Disconnected => "ended before it was done",
                };
                drop(child);
                let last = seen.len().saturating_sub(20);
                bail!(
                    "{command:?} {why}; it said last:\n{}\n{}",
                    seen[last..].join("\n"),
                    errors.join().unwrap_or_default()
                );
            }
        }
    }
    // It writes its report, if it was asked for one.
    while child.0.try_wait()?.is_none() && start.elapsed() < patience {
        thread::sleep(Duration::from_millis(10));
    }
    Ok(reader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_guests_print_is_read() {
        let mut reader = Reader::default();
        for (line, moment) in [
            ("noise", 1.0),
            ("[ 0.1] noise BENCH shell", 100.0),
            ("BENCH begin alu", 110.0),
            ("BENCH begin alu", 120.0),
            ("BENCH end alu 9.5 00ff", 130.0),
            ("BENCH begin avx", 140.0),
            ("BENCH skip avx", 141.0),
        ] {
            assert!(!reader.line(line, moment).unwrap());
        }
        assert!(reader.line(DONE, 150.0).unwrap());
        let alu = Sample {
            host: 10.0,
            guest: Some(9.5),
            checksum: "00ff".to_string(),
        };
        assert_eq!(reader.samples["alu"], alu);
        assert_eq!(reader.samples[BOOT].host, 100.0);
        assert_eq!(reader.skipped, ["avx"]);
        assert!(reader.line("BENCH end crc 1 2", 160.0).is_err());
        assert!(reader.line("BENCH unknown x", 160.0).is_err());
    }

    #[test]
    fn commands_that_never_finish_are_reported() {
        let error = run(
            Command::new("sh").args(["-c", "echo BENCH shell; echo why >&2"]),
            Duration::from_secs(10),
        );
        let text = format!("{:#}", error.err().unwrap());
        assert!(
            text.contains("before it was done") && text.contains("why"),
            "{text}"
        );
        let script = "echo BENCH begin a; echo BENCH end a 1 ff; echo BENCH done";
        let reader = run(
            Command::new("sh").args(["-c", script]),
            Duration::from_secs(10),
        )
        .unwrap();
        assert_eq!(reader.samples["a"].checksum, "ff");
    }
}
