//! The same counted run twice, in two processes, is the same to the last byte: of what it prints,
//! of what became of every fault, and of memory at its end.

use emulator::debian::Flavour;
use tests::{boot_arguments, debian_shell, run};

/// What a run leaves: its output, and its report, in which the digest of memory is.
fn outcome(args: &[String]) -> (String, serde_json::Value) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("report.json");
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    args.extend(["-report", path.to_str().expect("a path in UTF-8")]);
    let (_, stdout, stderr) = run(&args);
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{error}: {stderr}"));
    let report: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let digest = report["memory_sha256"].as_str().unwrap_or_default();
    assert_eq!(digest.len(), 64, "{report:#}");
    (stdout, report)
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_string).collect()
}

fn is_replayed(args: &[String]) -> serde_json::Value {
    let (first, second) = (outcome(args), outcome(args));
    assert_eq!(first.0, second.0);
    assert_eq!(first.1, second.1);
    assert!(
        first.1["injected"].as_u64().unwrap_or(0) > 10,
        "{:#}",
        first.1
    );
    first.1
}

#[test]
fn the_demonstration_is_replayed() {
    let seven = is_replayed(&words(
        "demo -rounds 2 -inject seed=7,every=200k,target=any",
    ));
    let eight = is_replayed(&words(
        "demo -rounds 2 -inject seed=8,every=200k,target=any",
    ));
    // It is the seed that decides.
    assert_ne!(seven["entries"], eight["entries"]);
    assert_ne!(seven, eight);
}

/// With so many faults that what a translator looks up ahead of the guest, and when, shows in when each is noticed.
#[test]
fn the_moments_of_many_faults_are_replayed() {
    is_replayed(&words("demo -rounds 4 -inject seed=4,every=20k,target=any"));
}

/// With a single copy the guest is damaged: the damage is replayed too.
#[test]
fn a_lost_guest_is_lost_twice() {
    let report = is_replayed(&words(
        "demo -mirror off -rounds 20 -inject seed=3,every=20k,where=used",
    ));
    assert!(report["lost"].as_u64() > Some(0), "{report:#}");
}

#[test]
fn a_kernel_that_boots_is_replayed() {
    let Some(prepared) = debian_shell(Flavour::Cloud) else {
        return;
    };
    let mut args = boot_arguments(&prepared);
    let memory = args.iter().position(|arg| arg == "512").expect("-m 512");
    args[memory] = "256".into();
    let command_line = args.iter_mut().find(|arg| *arg == "console=ttyS0");
    // No init: the kernel panics once it has booted, and -no-reboot ends the run.
    command_line
        .expect("-append")
        .push_str(" rdinit=/none panic=-1");
    args.extend(words("-icount shift=0 -inject seed=5,every=1M,target=any"));
    is_replayed(&args);
}
