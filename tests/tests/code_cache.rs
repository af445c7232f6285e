//! Translations that are kept from run to run: the second run needs few of its own, and what is damaged hurts nobody.

use std::fs;
use std::path::Path;

use emulator::debian::Flavour;
use serde_json::Value;
use tests::{Guest, boot_arguments, debian_shell, run};

const PATIENCE: u64 = 180;
/// Bytes of a file in front of its first record, at the most.
const INDEX: usize = 1 << 20;

/// Boots, has the shell compute something, and powers off; what is said of the translations.
fn boot(cache: &Path, more: &[&str]) -> Option<Value> {
    let prepared = debian_shell(Flavour::Cloud)?;
    let report = tempfile::NamedTempFile::new().unwrap();
    let mut args = boot_arguments(&prepared);
    let accel = format!("tcg,code-cache={}", cache.display());
    let path = report.path().display().to_string();
    args.extend(["-accel", &accel, "-report", &path].map(str::to_string));
    args.extend(more.iter().map(|arg| arg.to_string()));
    let mut guest = Guest::start(&args);
    guest.expect("/root # ", PATIENCE);
    guest.send("seq 1 3000 | gzip | gunzip | md5sum; poweroff -f\r");
    guest.expect("ee9762749fc5338b6c9b0948d14219c7", PATIENCE);
    let (code, stderr) = guest.wait(PATIENCE);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let report = fs::read(report.path()).unwrap();
    let report: Value = serde_json::from_slice(&report).unwrap();
    Some(report["translation"].clone())
}

fn count(translation: &Value, what: &str) -> u64 {
    translation[what].as_u64().unwrap()
}

fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_second_boot_uses_what_the_first_has_translated() {
    let cache = tempfile::tempdir().unwrap();
    let Some(first) = boot(cache.path(), &[]) else {
        return;
    };
    assert_eq!(count(&first, "recalled"), 0);
    let [path] = &files(cache.path())[..] else {
        panic!("one machine has one file");
    };
    let kept = fs::read(path).unwrap();
    let second = boot(cache.path(), &[]).unwrap();
    let (translated, recalled) = (count(&second, "translated"), count(&second, "recalled"));
    assert!(
        recalled > count(&first, "translated") / 2,
        "{first} {second}"
    );
    assert!(
        translated < count(&first, "translated") / 2,
        "{first} {second}"
    );

    // What was there stays where it was. The first MiB has the index, and in which run each record was of use.
    let mut bytes = fs::read(path).unwrap();
    let records = INDEX..kept.len();
    assert!(bytes[records.clone()] == kept[records.clone()]);
    assert!(bytes.len() - kept.len() < kept.len() / 4);

    // Most records are damaged, and the index is not.
    for at in records.step_by(500) {
        bytes[at] ^= 0xff;
    }
    fs::write(path, &bytes).unwrap();
    let third = boot(cache.path(), &[]).unwrap();
    let left = count(&third, "recalled");
    assert!(left > 0 && left < recalled * 3 / 4, "{second} {third}");
}

#[test]
fn counted_runs_neither_use_nor_leave_any() {
    let cache = tempfile::tempdir().unwrap();
    let counted = ["-icount", "shift=2,sleep=off"];
    if let Some(translation) = boot(cache.path(), &counted) {
        assert!(translation.is_null(), "{translation}");
        assert!(files(cache.path()).is_empty());
    }
}

#[test]
fn a_place_that_is_no_directory_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let accel = format!("tcg,code-cache={}", file.path().display());
    let (code, _, stderr) = run(&["-accel", &accel, "-kernel", "missing"]);
    assert_ne!(code, 0);
    assert!(stderr.contains("is not a directory"), "{stderr}");
}
