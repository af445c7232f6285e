//! The machines that are compared.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use emulator::debian::{FetchError, Progress, Tools};

use super::guests::Workload;

/// Names other binaries of the peer, separated by colons.
pub const VARIABLE: &str = "KMEMVISOR_BENCH_QEMU";

/// The peer's packages: of what a package needs, only libraries are fetched with it.
const PACKAGES: [&str; 5] = [
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
    "ipxe-qemu",
];

/// A machine that can start a kernel.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name in tables.
    pub label: String,
    /// Its version.
    pub version: String,
    /// The program, or what starts it.
    pub program: PathBuf,
    /// What comes before all options.
    pub arguments: Vec<String>,
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
            version: version_of(program, &[]).unwrap_or_default(),
            program: program.to_path_buf(),
            arguments: Vec::new(),
            options: all,
        }
    }

    /// What starts a workload in it.
    pub fn command(&self, workload: &Workload) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
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

fn version_of(program: &Path, arguments: &[String]) -> Option<String> {
    let mut command = Command::new(program);
    let output = command.args(arguments).arg("--version").output().ok()?;
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

/// Every binary of the peer that the environment names or the host has, else that of its packages;
/// and what is wrong with those that do not run.
pub fn find(cache: &Path, options: &[String]) -> (Vec<Machine>, Vec<String>) {
    let mut found: Vec<Machine> = Vec::new();
    let mut missing = Vec::new();
    let installed = PathBuf::from("qemu-system-x86_64");
    let named = env::var_os(VARIABLE);
    let programs: Vec<(PathBuf, Vec<String>)> = match &named {
        Some(paths) => env::split_paths(paths)
            .map(|path| (path, Vec::new()))
            .collect(),
        None if version_of(&installed, &[]).is_some() => vec![(installed, Vec::new())],
        None => match fetch(cache) {
            Ok(program) => vec![program],
            Err(error) => {
                missing.push(format!("qemu-system-x86 cannot be fetched: {error}"));
                Vec::new()
            }
        },
    };
    for (path, arguments) in programs {
        let Some(version) = version_of(&path, &arguments) else {
            missing.push(format!(
                "{} cannot be run; {VARIABLE} can name others",
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
            arguments,
            options: all,
        });
    }
    (found, missing)
}

/// The peer from the host's packages, which need not be installed.
fn fetch(cache: &Path) -> Result<(PathBuf, Vec<String>), FetchError> {
    let tools = Tools::prepare(cache, "qemu", &PACKAGES, &Progress::new())?;
    let modules = tools.path("usr/lib/x86_64-linux-gnu/qemu");
    let mut arguments = vec![format!("QEMU_MODULE_DIR={}", modules.display())];
    arguments.extend(tools.program("usr/bin/qemu-system-x86_64"));
    for folder in ["usr/share/qemu", "usr/share/seabios"] {
        arguments.extend(["-L".to_string(), tools.path(folder).display().to_string()]);
    }
    Ok(("env".into(), arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_named_shortly() {
        let version = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)";
        assert_eq!(label_of(version), "qemu 7.2");
        assert_eq!(label_of("nonsense"), "qemu ?");
        assert_eq!(version_of(Path::new("/nonexistent"), &[]), None);
    }
}
