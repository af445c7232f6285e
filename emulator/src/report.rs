//! The report of a run: what was injected and what became of it, as text and as JSON.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use dbt::cache::CacheStatistics;
use fault_injector::{Counts, Ledger};
use serde::Serialize;

use crate::inject::Injector;
use crate::machine::Machine;

/// A report could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the report to {}: {source}", path.display())]
pub struct ReportError {
    /// Where it should have gone.
    pub path: PathBuf,
    /// The host's reason.
    pub source: std::io::Error,
}

/// Counts of a run, at one moment of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The injections; all counts are 0 without a plan.
    #[serde(flatten)]
    pub ledger: Ledger,
    /// Turns of the plan that found no page of the wanted kind.
    pub skipped: u64,
    /// The seed of the plan.
    pub seed: Option<u64>,
    /// Copies of each page.
    pub copies: usize,
    /// Guest instructions executed, if they are counted.
    pub instructions: Option<u64>,
    /// SHA-256 of the guest's memory at the end, if instructions are counted: runs of the same
    /// seed have the same. See [`Machine::memory_digest`].
    pub memory_sha256: Option<String>,
    /// Nanoseconds of virtual time.
    pub virtual_nanoseconds: u64,
    /// Spare frames of each copy that pages were moved to.
    pub spare_frames_used: u32,
    /// Spare frames of each copy at the start.
    pub spare_frames: u32,
    /// What the translator did. Not told of counted runs: when it does something depends on the
    /// host's time too, and their reports repeat to the last byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub translation: Option<Translation>,
}

/// Counts of the block cache.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Translation {
    /// Blocks translated.
    pub translated: u64,
    /// Translations copied for the same code at another address.
    pub moved: u64,
    /// Blocks read from the file of an earlier run.
    pub recalled: u64,
    /// Blocks dropped because their page was written, or a frame of it went bad.
    pub invalidated: u64,
    /// Areas of the code cache emptied for room.
    pub evictions: u64,
    /// Host time spent translating, in nanoseconds.
    pub nanoseconds: u64,
}

impl Report {
    /// What is known of a machine now. [`Injector::settle`] is to be called before.
    pub fn of(machine: &Machine, injector: Option<&Injector>) -> Report {
        let CacheStatistics {
            translated,
            moved,
            recalled,
            invalidated,
            evictions,
            nanoseconds,
            ..
        } = machine.vcpu.statistics();
        let (spare_frames_used, spare_frames) = machine.vcpu.mem.spares();
        Report {
            ledger: injector.map_or_else(Ledger::new, |injector| injector.ledger().clone()),
            skipped: injector.map_or(0, Injector::skipped),
            seed: injector.map(|injector| injector.plan().seed),
            copies: machine.vcpu.mem.copies(),
            instructions: machine.counted().then(|| machine.vcpu.instructions()),
            memory_sha256: None,
            virtual_nanoseconds: machine.now(),
            spare_frames_used,
            spare_frames,
            translation: (!machine.counted()).then_some(Translation {
                translated,
                moved,
                recalled,
                invalidated,
                evictions,
                nanoseconds,
            }),
        }
    }

    /// Writes the report as JSON: the file is replaced as a whole or not at all.
    pub fn write_json(&self, path: &Path) -> Result<(), ReportError> {
        let error = |source| ReportError {
            path: path.to_path_buf(),
            source,
        };
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| error(e.into()))?;
        text.push(b'\n');
        let temporary = temporary(path).map_err(error)?;
        let written = File::create(&temporary).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)
        });
        written.map_err(|source| {
            // It may not exist; the error that matters is the first one.
            let _ = std::fs::remove_file(&temporary);
            error(source)
        })
    }
}

/// Checks that a report can be written there, so that a long run does not end without one.
pub fn check_path(path: &Path) -> Result<(), ReportError> {
    let error = |source| ReportError {
        path: path.to_path_buf(),
        source,
    };
    if path.is_dir() {
        return Err(error(std::io::ErrorKind::IsADirectory.into()));
    }
    let temporary = temporary(path).map_err(error)?;
    File::create(&temporary)
        .and_then(|_| std::fs::remove_file(&temporary))
        .map_err(error)
}

/// A name next to `path`, of this process alone.
fn temporary(path: &Path) -> std::io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        std::io::Error::new(std::io::ErrorKind::InvalidInput, "this names no file")
    })?;
    let mut name = name.to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    Ok(path.with_file_name(name))
}

/// Counts by fate in words.
struct Fates(Counts);

impl fmt::Display for Fates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts {
            injected,
            recovered,
            rebuilt,
            remapped,
            overwritten,
            unread,
            lost,
        } = self.0;
        write!(
            f,
            "injected {injected}: recovered {recovered}, rebuilt {rebuilt}, remapped {remapped}, \
             overwritten {overwritten}, unread {unread}, lost {lost}"
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", Fates(self.ledger.counts()))?;
        for (class, counts) in self.ledger.by_class() {
            writeln!(f, "  {:<12} {}", class.name(), Fates(counts))?;
        }
        if self.skipped != 0 {
            writeln!(
                f,
                "  {} injections skipped: no such page at that moment",
                self.skipped
            )?;
        }
        match self.instructions {
            Some(count) => write!(f, "{count} instructions")?,
            None => write!(f, "instructions not counted")?,
        }
        writeln!(
            f,
            " in {:.3} s; {} {} of each page, {} of {} spare frames used",
            self.virtual_nanoseconds as f64 / 1e9,
            self.copies,
            if self.copies == 1 { "copy" } else { "copies" },
            self.spare_frames_used,
            self.spare_frames
        )?;
        if let Some(translation) = &self.translation {
            writeln!(
                f,
                "{} blocks translated, {} copied, {} dropped because their page changed, {} cache areas emptied",
                translation.translated,
                translation.moved,
                translation.invalidated,
                translation.evictions
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            ledger: Ledger::new(),
            skipped: 2,
            seed: Some(7),
            copies: 2,
            instructions: Some(12),
            memory_sha256: None,
            virtual_nanoseconds: 1_500_000_000,
            spare_frames_used: 1,
            spare_frames: 1024,
            translation: Some(Translation {
                translated: 3,
                moved: 2,
                recalled: 0,
                invalidated: 1,
                evictions: 0,
                nanoseconds: 4,
            }),
        }
    }

    #[test]
    fn the_text() {
        let text = report().to_string();
        assert!(
            text.starts_with("injected 0: recovered 0, rebuilt 0,"),
            "{text}"
        );
        assert!(text.contains("12 instructions in 1.500 s; 2 copies of each page"));
    }

    #[test]
    fn the_file_is_replaced_and_an_error_names_it() {
        let folder = std::env::temp_dir().join(format!("report-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("report.json");
        std::fs::write(&path, "old").unwrap();
        check_path(&path).unwrap();
        report().write_json(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["injected"], 0);
        assert_eq!(value["seed"], 7);
        assert_eq!(value["translation"]["translated"], 3);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(check_path(&path).is_err());
        assert!(check_path(&std::env::temp_dir()).is_err());
        let error = report().write_json(&path).unwrap_err().to_string();
        assert!(error.contains("report.json"), "{error}");
    }
}
