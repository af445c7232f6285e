//! Another project's tests of processors and boards, unmodified: kvm-unit-tests.
//!
//! `KVM_UNIT_TESTS` names one or more built trees of it (separated by colons, as one for x86-64
//! and one for i386); without it, this says that it was skipped. `KVM_UNIT_TESTS_ONLY` names
//! the tests to run, separated by spaces. In a tree of kvm-unit-tests, `./configure && make`
//! builds it, and `./configure --arch=i386 && make` in another.

use std::env;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tests::kmemvisor;

/// Why a test is not run.
const EXCLUDED: &[(&str, &str)] = &[
    ("asyncpf", "KVM's paravirtual page faults"),
    ("hypercall", "KVM's hypercalls"),
    ("intel_iommu", "there is no IOMMU"),
    ("kvmclock_test", "KVM's paravirtual clock"),
    ("s3", "the machine does not suspend to RAM"),
    ("smptest3", "there is one processor"),
    (
        "syscall",
        "needs an AMD processor: SYSCALL in compatibility mode",
    ),
    ("vmexit_ipi", "there is one processor"),
    ("vmexit_ipi_halt", "there is one processor"),
    ("vmexit_ple_round_robin", "KVM's device for tests"),
    ("vmexit_vmcall", "KVM's hypercalls"),
];

/// Groups of tests that are not run.
const EXCLUDED_GROUPS: &[(&str, &str)] = &[
    ("hyperv", "Hyper-V's interfaces"),
    ("nodefault", "asks to be left out"),
    ("pmu", "there are no performance counters"),
    ("svm", "there is no nested virtualisation"),
    ("vmx", "there is no nested virtualisation"),
];

/// Tests that end early for a reason of their own: nothing may fail before, and as many checks
/// as this pass.
const PARTIAL: &[(&str, usize, &str)] = &[
    ("x2apic", 31, "a KVM hypercall in the middle"),
    ("xapic", 17, "a KVM hypercall in the middle"),
];

/// One section of `unittests.cfg`.
#[derive(Default, Debug)]
struct Case {
    name: String,
    file: String,
    arguments: String,
    parameters: Vec<String>,
    groups: Vec<String>,
    accelerator: String,
    timeout: Option<u64>,
}

fn unquoted(text: &str) -> &str {
    text.trim_matches(|c| c == '"' || c == '\'')
}

fn read_cases(text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            cases.push(Case {
                name: name.trim_end_matches(']').to_string(),
                ..Case::default()
            });
            continue;
        }
        let (Some(case), Some((key, value))) = (cases.last_mut(), line.split_once('=')) else {
            continue;
        };
        let value = unquoted(value.trim());
        let words = || value.split_whitespace().map(str::to_string).collect();
        match key.trim() {
            "file" => case.file = value.to_string(),
            "test_args" => case.arguments = value.to_string(),
            "qemu_params" | "extra_params" => case.parameters = words(),
            "groups" => case.groups = words(),
            "accel" => case.accelerator = value.to_string(),
            "timeout" => case.timeout = value.parse().ok(),
            _ => {}
        }
    }
    cases
}

/// What became of one test.
enum Outcome {
    Passed(String),
    Skipped(String),
    Failed(String),
}

fn exclusion(case: &Case, kernel: &Path) -> Option<String> {
    let found = EXCLUDED.iter().find(|(name, _)| *name == case.name);
    let of_group = |(group, _): &&(&str, &str)| case.groups.iter().any(|own| own == group);
    if let Some((_, why)) = found.or_else(|| EXCLUDED_GROUPS.iter().find(of_group)) {
        return Some(why.to_string());
    }
    let words = || case.parameters.iter().map(String::as_str);
    if case.accelerator == "kvm" || words().any(|word| word == "-enable-kvm") {
        return Some("wants KVM".to_string());
    }
    if words().any(|word| word.contains("+svm") || word.contains("+vmx")) {
        return Some("there is no nested virtualisation".to_string());
    }
    if words().any(|word| word.starts_with("IvyBridge")) {
        return Some("wants a KVM with a narrower physical address".to_string());
    }
    (!kernel.exists()).then(|| "not built for this architecture".to_string())
}

fn run(case: &Case, kernel: &Path) -> Outcome {
    let mut command = Command::new(kmemvisor());
    command
        .args(["-nodefaults", "-device", "pc-testdev"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x4"])
        .args(["-vnc", "none", "-serial", "stdio", "-display", "none"])
        .args(["-machine", "accel=tcg", "-smp", "1", "-kernel"])
        .arg(kernel)
        .args(["-append", &case.arguments])
        .args(&case.parameters)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let read = |from: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = from.map(|mut from| from.read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let output = read(child.stdout.take().map(|it| Box::new(it) as _));
    let errors = read(child.stderr.take().map(|it| Box::new(it) as _));
    // Emulation is slower than what the time-outs were made for.
    let end = Instant::now() + Duration::from_secs(case.timeout.unwrap_or(90) * 4);
    let status = loop {
        match child.try_wait().expect("a child can be waited for") {
            Some(status) => break status.code(),
            None if Instant::now() >= end => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    let text = output.join().unwrap_or_default() + &errors.join().unwrap_or_default();
    let failures: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("FAIL"))
        .collect();
    let passes = text.lines().filter(|line| line.starts_with("PASS")).count();
    let last = text.lines().last().unwrap_or_default();
    let partial = PARTIAL.iter().find(|(name, ..)| *name == case.name);
    match (status, partial) {
        (Some(_), Some((_, enough, why))) if failures.is_empty() && passes >= *enough => {
            Outcome::Passed(format!("{passes} checks; it ends early: {why}"))
        }
        (Some(1), None) if failures.is_empty() => Outcome::Passed(format!("{passes} checks")),
        (Some(77), None) => Outcome::Skipped(format!("by itself: {last}")),
        (None, _) => Outcome::Failed(format!("it does not end; {passes} checks passed; {last}")),
        (Some(code), _) => {
            Outcome::Failed(format!("exit code {code}; {}; {last}", failures.join("; ")))
        }
    }
}

#[test]
fn kvm_unit_tests_pass() {
    let Some(trees) = env::var_os("KVM_UNIT_TESTS") else {
        eprintln!("SKIPPED: KVM_UNIT_TESTS names no built tree of kvm-unit-tests");
        return;
    };
    let only = env::var("KVM_UNIT_TESTS_ONLY").unwrap_or_default();
    let only: Vec<&str> = only.split_whitespace().collect();
    let mut failed = Vec::new();
    let mut passed = 0;
    for tree in env::split_paths(&trees) {
        let folder = tree.join("x86");
        let list = folder.join("unittests.cfg");
        let text = fs::read_to_string(&list)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", list.display()));
        for case in read_cases(&text) {
            if !only.is_empty() && !only.contains(&case.name.as_str()) {
                continue;
            }
            let kernel = folder.join(&case.file);
            let start = Instant::now();
            let outcome = match exclusion(&case, &kernel) {
                Some(why) => Outcome::Skipped(why),
                None => run(&case, &kernel),
            };
            let took = start.elapsed().as_secs_f32();
            let (word, what) = match outcome {
                Outcome::Passed(what) => {
                    passed += 1;
                    ("passed", what)
                }
                Outcome::Skipped(what) => ("skipped", what),
                Outcome::Failed(what) => {
                    failed.push(format!("{}: {what}", case.name));
                    ("FAILED", what)
                }
            };
            eprintln!("{word:8} {:28} {took:6.1} s  {what}", case.name);
        }
    }
    eprintln!("{passed} passed, {} failed", failed.len());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(passed > 0, "nothing was run");
}

#[test]
fn the_list_of_tests_is_understood() {
    let text = "# comment\n[one]\nfile = a.flat\ntest_args = 'x y'\n\n[two]\nfile = b.flat\n\
                qemu_params = -cpu max,+umip -m 4g\ngroups = vmx tasks\ntimeout = 30\n";
    let cases = read_cases(text);
    assert_eq!(cases.len(), 2);
    assert_eq!(
        (cases[0].name.as_str(), cases[0].arguments.as_str()),
        ("one", "x y")
    );
    assert_eq!(cases[1].parameters, ["-cpu", "max,+umip", "-m", "4g"]);
    assert_eq!((cases[1].groups.len(), cases[1].timeout), (2, Some(30)));
    assert!(exclusion(&cases[1], Path::new("/")).is_some());
    assert!(exclusion(&cases[0], Path::new("/")).is_none());
}
