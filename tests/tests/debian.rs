//! Unmodified Debian: its kernels, with BusyBox on the serial console, and programs.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use emulator::debian::{
    Architecture, Flavour, Prepared, Progress, Recipe, Task, cache_directory, prepare,
    workload_output,
};
use rustix::process::Signal;
use tests::{Guest, boot_arguments, debian_shell, debian_shell_of, kmemvisor, repository, run};

/// Seconds that anything in a guest may take, on a slow and busy host.
const PATIENCE: u64 = 180;
const PROMPT: &str = "/root # ";

fn start(prepared: &Prepared, more: &[&str]) -> Guest {
    let mut args = boot_arguments(prepared);
    args.extend(more.iter().map(|arg| arg.to_string()));
    let mut guest = Guest::start(&args);
    guest.expect(PROMPT, PATIENCE);
    guest
}

#[test]
fn both_kernels_have_a_shell_and_power_off() {
    for flavour in [Flavour::Cloud, Flavour::Amd64] {
        let Some(prepared) = debian_shell(flavour) else {
            return;
        };
        let mut guest = start(&prepared, &[]);
        guest.send("echo $((6 * 7))-$(uname -m)\r");
        guest.expect("42-x86_64", PATIENCE);
        // Job control: Ctrl-C ends the program, not the shell.
        guest.send("sleep 1000\r");
        guest.expect("sleep 1000", PATIENCE);
        std::thread::sleep(Duration::from_millis(500));
        guest.send("\x03");
        guest.expect(PROMPT, PATIENCE);
        guest.send("echo status $?\r");
        guest.expect("status 130", PATIENCE);
        guest.send("poweroff -f\r");
        let (code, stderr) = guest.wait(PATIENCE);
        assert_eq!((code, stderr.as_str()), (0, ""));
    }
}

#[test]
fn kernels_of_32_bits_run_programs_of_32_bits() {
    // One run for each: what is compared are the console's lines, so the commands cannot be
    // mistaken for their own echo.
    let script = "uname -m; echo 'select 6*7' | sqlite3; seq 1 5000 | gzip | gunzip | md5sum; \
                  od -An -j4 -N1 -tu1 /usr/bin/busybox";
    for (kernel, machine) in [
        ("686", "i686"),
        ("686-pae", "i686"),
        ("cloud-amd64", "x86_64"),
    ] {
        let flavour = Flavour::parse(kernel).unwrap();
        if debian_shell_of(flavour, Some(Architecture::I386)).is_none() {
            return;
        }
        let (code, stdout, stderr) = run(&[
            "boot",
            "debian",
            "--kernel",
            kernel,
            "--programs",
            "i386",
            "--run",
            script,
            "-mirror",
            "copies=2",
            "-audit",
            "500",
        ]);
        assert_eq!(code, 0, "{kernel}: {stderr}\n{stdout}");
        assert!(stderr.contains("all copies of"), "{kernel}: {stderr}");
        let (lines, _) = workload_output(stdout.as_bytes()).expect("it ran to its end");
        let lines: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
        // The last is the class in the header of an ELF file: 32 bits.
        let digest = "a5a208cd26b07cadade3450fe14d1d93  -";
        assert_eq!(lines, [machine, "42", digest, "1"], "{kernel}");
    }
}

#[test]
fn programs_give_the_results_of_the_host() {
    if debian_shell(Flavour::Cloud).is_none() {
        return;
    }
    // The others are quick commands, but not quick enough for here.
    for workload in ["libc", "luajit"] {
        let (code, stdout, stderr) = run(&["boot", "debian", "--workload", workload]);
        assert_eq!(code, 0, "{workload}: {stderr}\n{stdout}");
        assert!(stderr.contains("workload result: right"), "{stderr}");
    }
}

/// Builds a program for the guest; `None` if there is no compiler for that.
fn build(source: &str, bits: &str, folder: &Path) -> Option<Vec<u8>> {
    let program = folder.join(format!("program{bits}"));
    let status = Command::new("cc")
        .args([bits, "-O2", "-static", "-msse2", "-mfpmath=sse"])
        .args(["-fstack-protector-all", "-o"])
        .arg(&program)
        .arg(repository().join(source))
        .arg("-lm")
        .stderr(Stdio::null())
        .status();
    let built = status.is_ok_and(|status| status.success());
    built.then(|| fs::read(program).unwrap())
}

#[test]
fn interrupted_programs_keep_their_state() {
    if debian_shell(Flavour::Cloud).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut programs = Vec::new();
    let mut script = String::new();
    for bits in ["-m64", "-m32"] {
        if let Some(bytes) = build("tests/programs/stress.c", bits, folder.path()) {
            programs.push((format!("work/stress{bits}"), bytes));
            script += &format!("/work/stress{bits} 2 10 700 & ");
        }
    }
    if programs.is_empty() {
        eprintln!("SKIPPED: no C compiler that links statically");
        return;
    }
    let count = programs.len();
    let recipe = Recipe {
        task: Task::Script(script + "wait\n"),
        programs,
        ..Recipe::default()
    };
    let cache = cache_directory().expect("HOME is set");
    let prepared = prepare(&cache, &recipe, &Progress::silent()).unwrap();
    let mut guest = Guest::start(&boot_arguments(&prepared));
    for _ in 0..count {
        guest.expect("-bit good", PATIENCE);
    }
    assert!(!guest.seen.contains("BAD"), "{}", guest.seen);
    guest.expect("status 0", PATIENCE);
    guest.wait(PATIENCE);
    fs::remove_file(prepared.initrd).unwrap();
}

#[test]
fn every_end_has_its_code() {
    let Some(prepared) = debian_shell(Flavour::Cloud) else {
        return;
    };
    for (command, code, line) in [
        ("reboot -f", 0, ""),
        (
            "echo c > /proc/sysrq-trigger",
            3,
            "guest panicked: sysrq triggered crash",
        ),
        ("halt -f", 5, "halted with interrupts off"),
    ] {
        let mut guest = start(&prepared, &[]);
        guest.send(&format!("{command}\r"));
        let (found, stderr) = guest.wait(PATIENCE);
        assert_eq!(found, code, "{command}: {stderr}");
        assert!(stderr.contains(line), "{command}: {stderr}");
    }
    // A panic that restarts is a panic still.
    let mut args = boot_arguments(&prepared);
    let append = args.iter().position(|arg| arg == "console=ttyS0").unwrap();
    args[append] += " panic=-1 rdinit=/nonesuch";
    let (code, stderr) = Guest::start(&args).wait(PATIENCE);
    assert_eq!(code, 3, "{stderr}");
    assert!(stderr.contains("guest panicked"), "{stderr}");
}

#[test]
fn time_is_real_and_idling_is_cheap() {
    let Some(prepared) = debian_shell(Flavour::Cloud) else {
        return;
    };
    let mut guest = start(&prepared, &[]);
    guest.send("echo a; sleep 5; echo b\r");
    // The first is the terminal's echo of the command.
    guest.expect("\na", PATIENCE);
    let from = guest.expect("\n", PATIENCE);
    let to = guest.expect("b\r\n", PATIENCE);
    let slept = (to - from).as_secs_f64();
    // A busy host may wake us late, never early.
    assert!((4.9..=8.0).contains(&slept), "sleep 5 took {slept} s");
    guest.send("date +at=%s.\r");
    guest.expect("at=1", PATIENCE);
    guest.expect(".", PATIENCE);
    let shown = guest.seen.rsplit("at=").next().unwrap();
    let shown: i64 = shown.split('.').next().unwrap().parse().unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    assert!((now.as_secs() as i64 - shown).abs() <= 5, "{shown}");
    let before = guest.processor_time();
    std::thread::sleep(Duration::from_secs(4));
    let used = (guest.processor_time() - before) / 4.0;
    assert!(used < 0.30, "an idle shell uses {used} of a core");
    // SIGUSR1 reports, and the guest goes on.
    guest.signal(Signal::USR1);
    guest.expect_error("injected 0", 20);
    guest.send("echo still $((1 + 1)) here\r");
    guest.expect("still 2 here", PATIENCE);
    guest.send("\x01x");
    let (code, stderr) = guest.wait(PATIENCE);
    assert_eq!(code, 0, "{stderr}");
    // On a line of its own, whether the prompt has come back already or not.
    let last = stderr.lines().last();
    assert_eq!(last, Some("kmemvisor: terminated"), "{stderr}");
}

#[test]
fn two_copies_are_not_much_more_than_twice_the_memory() {
    let Some(prepared) = debian_shell(Flavour::Cloud) else {
        return;
    };
    let resident = |mirror: &str| {
        let guest = start(&prepared, &["-mirror", mirror]);
        std::thread::sleep(Duration::from_secs(1));
        guest.resident_bytes()
    };
    let (one, two) = (resident("off"), resident("copies=2"));
    let limit = one * 22 / 10 + (150 << 20);
    assert!(two <= limit, "{one} bytes with one copy, {two} with two");
}

#[test]
fn a_workload_survives_a_thousand_faults() {
    if debian_shell(Flavour::Cloud).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let (code, stdout, stderr) = run(&[
        "boot",
        "debian",
        "--workload",
        "sqlite",
        "-inject",
        "seed=11,every=500k,target=any,where=used",
        "-report",
        &report.display().to_string(),
        "-audit",
        "500",
    ]);
    assert_eq!(code, 0, "{stderr}\n{stdout}");
    assert!(stderr.contains("workload result: right"), "{stderr}");
    assert!(stderr.contains("all copies of"), "{stderr}");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    let count = |key: &str| {
        report[key]
            .as_u64()
            .unwrap_or_else(|| panic!("{key}: {report}"))
    };
    assert!(count("injected") >= 1000, "{report}");
    assert_eq!(count("lost"), 0, "{report}");
    let fates = [
        "recovered",
        "rebuilt",
        "remapped",
        "overwritten",
        "unread",
        "lost",
    ];
    let sum: u64 = fates.iter().map(|fate| count(fate)).sum();
    assert_eq!(sum, count("injected"), "{report}");
    for class in ["page-table", "kernel-text", "kernel-data", "user-stack"] {
        assert!(stderr.contains(&format!("{class} ")), "{class}: {stderr}");
    }
}

#[test]
fn counted_runs_are_the_same_to_the_last_byte() {
    if debian_shell(Flavour::Cloud).is_none() {
        return;
    }
    let once = || {
        let args = [
            "boot",
            "debian",
            "--run",
            "date; head -c 64 /dev/urandom | md5sum",
        ];
        let (code, stdout, stderr) = run(&[&args[..], &["-icount", "shift=0"]].concat());
        assert_eq!(code, 0, "{stderr}");
        stdout
    };
    assert_eq!(once(), once());
}

#[test]
fn no_network_is_needed_for_the_second_time() {
    if debian_shell(Flavour::Cloud).is_none() {
        return;
    }
    // A package client that does not work.
    let output = Command::new(kmemvisor())
        .args(["boot", "debian", "--run", "sqlite3 :memory: 'select 6*7'"])
        .env("APT_CONFIG", "/nonexistent")
        .env("http_proxy", "http://127.0.0.1:9")
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.contains("\n42\r"),
        "{stdout}"
    );
}

#[test]
fn without_packages_the_alternatives_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(kmemvisor())
        .args(["boot", "debian"])
        .env("XDG_CACHE_HOME", folder.path())
        .env("PATH", folder.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let last = stderr.lines().last().unwrap_or_default();
    assert!(
        last.contains("kmemvisor demo") && last.contains("-kernel"),
        "{stderr}"
    );
}
