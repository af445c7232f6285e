//! Which crate may name which, and where unsafe code may be.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tests::repository;

/// The arrows that exist; another one needs an entry in DECISIONS.md.
const ARROWS: &[(&str, &[&str])] = &[
    ("mmu", &[]),
    ("dbt", &["mmu"]),
    ("devices", &["mmu"]),
    ("fault-injector", &["mmu"]),
    ("guests", &[]),
    (
        "emulator",
        &["mmu", "dbt", "devices", "fault-injector", "guests"],
    ),
    (
        "tests",
        &[
            "emulator",
            "mmu",
            "dbt",
            "devices",
            "fault-injector",
            "guests",
        ],
    ),
];

#[test]
fn dependencies_point_one_way() {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(repository())
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert_eq!(packages.len(), ARROWS.len());
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let (_, allowed) = ARROWS.iter().find(|(known, _)| *known == name).unwrap();
        assert_eq!(package["license"], "MIT", "{name}");
        for dependency in package["dependencies"].as_array().unwrap() {
            let other = dependency["name"].as_str().unwrap();
            let ours = ARROWS.iter().any(|(known, _)| *known == other);
            assert!(
                !ours || allowed.contains(&other),
                "{name} must not depend on {other}"
            );
        }
    }
}

/// Every Rust file of the repository.
fn sources(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") && !path.ends_with(".git") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn devices_injector_and_guests_have_no_unsafe_code() {
    for name in ["devices", "fault-injector", "guests", "tests"] {
        let text = fs::read_to_string(repository().join(name).join("src/lib.rs")).unwrap();
        assert!(text.contains("#![forbid(unsafe_code)]"), "{name}");
    }
}

#[test]
fn no_test_is_ignored_and_nothing_is_left_to_do() {
    let mut files = Vec::new();
    sources(repository(), &mut files);
    assert!(files.len() > 50);
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        for word in [
            concat!("#[igno", "re"),
            concat!("todo", "!("),
            concat!("unimplemented", "!("),
        ] {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
    }
}
