//! Interpreter and translator side by side, with each optimisation and without it.

use std::process::Command;

use emulator::debian::Flavour;
use emulator::options::SWITCHES;
use tests::{debian_shell, program};

/// Each time: the beginning of what unpacks a kernel, which is loops, calls and byte accesses.
const INSTRUCTIONS: &str = "4000000";

#[test]
fn a_kernel_unpacks_itself_alike_with_each_switch() {
    let Some(prepared) = debian_shell(Flavour::Cloud) else {
        return;
    };
    let output = Command::new(program("lockstep"))
        .arg("-each-switch")
        .args([&prepared.kernel, &prepared.initrd])
        .args(["console=ttyS0", INSTRUCTIONS])
        .output()
        .expect("lockstep starts");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}{stderr}");
    let equal = stdout.lines().filter(|line| line.contains(": equal"));
    assert_eq!(equal.count(), 1 + SWITCHES.len(), "{stdout}");
}
