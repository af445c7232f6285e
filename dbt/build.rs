//! Says of which sources this program was made: translations that a run keeps are good for one build.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let mut hasher = DefaultHasher::new();
    for place in ["src", "../mmu/src", "../Cargo.lock"] {
        println!("cargo::rerun-if-changed={place}");
        add(Path::new(place), &mut hasher);
    }
    let compiler = env::var_os("RUSTC").expect("Cargo names the compiler");
    let version = Command::new(compiler).arg("-vV").output();
    version
        .expect("the compiler says what it is")
        .stdout
        .hash(&mut hasher);
    env::var_os("PROFILE").hash(&mut hasher);
    println!(
        "cargo::rustc-env=KMEMVISOR_SOURCES={:016x}",
        hasher.finish()
    );
}

/// Adds the files of a directory, in order, or one file.
fn add(place: &Path, hasher: &mut DefaultHasher) {
    if place.is_dir() {
        let entries = fs::read_dir(place).expect("a directory of this package can be read");
        let mut entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        entries.sort();
        entries.iter().for_each(|entry| add(entry, hasher));
    } else {
        place.hash(hasher);
        fs::read(place).unwrap_or_default().hash(hasher);
    }
}
