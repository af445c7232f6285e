//! The machines that are compared.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::guests::Workload;

/// Names other binaries of the peer, separated by colons.
pub const VARIABLE: &str = "KMEMVISOR_BENCH_QEMU";

/// A machine that can start a kernel.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name in tables.
    pub label: String,
    /// Its version.
    pub version: String,
    /// The program.
    pub program: PathBuf,
    /// Its own options.
    pub options: Vec<String>,
}

impl Machine {
    /// kMemvisor with so many copies of memory.
    pub fn ours(label: &str, program: &Path, copies: usize, options: &[String]) -> Machine {
        let mut all = vec!["-mirror".to_string(), format!("copies={copies}")];
        all.extend_from_slice(options);
        Machine {
            label: label.to_string(),
            version: version_of(program).unwrap_or_default(),
            program: program.to_path_buf(),
            options: all,
        }
    }

    /// What starts a workload in it.
    pub fn command(&self, workload: &Workload) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["-m", &workload.megabytes.to_string()])
            .args(["-nographic", "-no-reboot", "-nodefaults"])
            .args(["-serial", "stdio", "-monitor", "none", "-kernel"])
            .arg(&workload.prepared.kernel)
            .arg("-initrd")
            .arg(&workload.prepared.initrd)
            .args(["-append", "console=ttyS0 panic=-1 quiet loglevel=1"])
            .args(&self.options);
        command
    }
}

fn version_of(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next()?.trim().to_string();
    output.status.success().then_some(line)
}

/// A short name from a version line such as `QEMU emulator version 7.2.22 (Debian ...)`.
fn label_of(version: &str) -> String {
    let number = version.split_whitespace().nth(3).unwrap_or("?");
    let parts: Vec<&str> = number.split('.').take(2).collect();
    format!("qemu {}", parts.join("."))
}

/// Every binary of the peer that runs here, and what is wrong with the others.
pub fn find(options: &[String]) -> (Vec<Machine>, Vec<String>) {
    let paths: Vec<PathBuf> = match env::var_os(VARIABLE) {
        Some(paths) => env::split_paths(&paths).collect(),
        None => vec!["qemu-system-x86_64".into()],
    };
    let mut found: Vec<Machine> = Vec::new();
    let mut missing = Vec::new();
    for path in paths {
        let Some(version) = version_of(&path) else {
            missing.push(format!(
                "{} cannot be run; it is in Debian's package qemu-system-x86, and {VARIABLE} \
                 names others",
                path.display()
            ));
            continue;
        };
        let mut label = label_of(&version);
        while found.iter().any(|other| other.label == label) {
            label.push('\'');
        }
        let mut all: Vec<String> = ["-accel", "tcg", "-cpu", "max"]
            .map(str::to_string)
            .to_vec();
        all.extend_from_slice(options);
        found.push(Machine {
            label,
            version,
            program: path,
            options: all,
        });
    }
    (found, missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_named_shortly() {
        let version = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)";
        assert_eq!(label_of(version), "qemu 7.2");
        assert_eq!(label_of("nonsense"), "qemu ?");
        assert_eq!(version_of(Path::new("/nonexistent")), None);
    }
}
