//! Exit codes and last lines: bad command lines and files, and firmware that ends in every way.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tests::{Guest, repository, run};

/// A file of this content in a folder of its own.
fn file(content: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, content).unwrap();
    (folder, path)
}

/// The start of something that looks like a kernel of 4 KiB of code.
fn kernel_header() -> Vec<u8> {
    let mut image = vec![0u8; 1024 + 512];
    image[0x1f1] = 1; // setup sectors
    image[0x1f4..0x1f8].copy_from_slice(&(4096u32 / 16).to_le_bytes());
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x211] = 1;
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    image[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    image
}

#[test]
fn what_cannot_be_used_ends_with_code_2_and_one_line() {
    let (_a, text) = file(b"#!/bin/sh\necho this is no kernel\n");
    let (_b, empty) = file(b"");
    let (_c, truncated) = file(&kernel_header());
    let mut whole = kernel_header();
    whole.resize(1024 + 4096, 0x90);
    let (_d, kernel) = file(&whole);
    let (_e, large) = file(&vec![0; 40 << 20]);
    let (_f, odd) = file(&[0; 1000]);
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let show = |path: &Path| path.display().to_string();
    let (text, empty, truncated) = (show(&text), show(&empty), show(&truncated));
    let (kernel, large, odd, missing) = (show(&kernel), show(&large), show(&odd), show(&missing));
    let into_nothing = format!("{missing}/report.json");
    let serial_into_nothing = format!("file:{missing}/log");
    let long = "x".repeat(3000);
    // Arguments, and what the one line has to name.
    let cases: &[(&[&str], &str)] = &[
        (&[], "-kernel"),
        (&["-frobnicate"], "-frobnicate"),
        (&["-drive", "file=x"], "-drive"),
        (&["-smp", "2", "-kernel", &kernel], "-smp"),
        (&["-m", "lots"], "lots"),
        (&["-cpu", "nonesuch"], "nonesuch"),
        (&["-kernel", &text], "not a Linux kernel"),
        (&["-kernel", &empty], "empty"),
        (&["-kernel", &truncated], "truncated"),
        (&["-kernel", &missing], "missing"),
        (&["-kernel", &kernel, "-initrd", &missing], "missing"),
        (
            &["-kernel", &kernel, "-initrd", &large, "-m", "32"],
            "-m 42",
        ),
        (&["-kernel", &kernel, "-append", &long], "command line"),
        (&["-bios", &odd], "4096"),
        (&["-bios", &missing], "missing"),
        (
            &["-kernel", &kernel, "-report", &into_nothing],
            "the report",
        ),
        (
            &["-kernel", &kernel, "-serial", &serial_into_nothing],
            "-serial",
        ),
        (&["-kernel", &kernel, "-inject", "where=nowhere"], "-inject"),
        (
            &[
                "-kernel",
                &kernel,
                "-mirror",
                "off",
                "-inject",
                "target=mirror",
            ],
            "-inject",
        ),
        (&["boot", "hurd"], "debian"),
        (&["boot", "debian", "--workload", "nonesuch"], "sqlite"),
    ];
    for (args, word) in cases {
        let (code, stdout, stderr) = run(args);
        assert_eq!(code, 2, "{args:?}: {stderr}");
        assert_eq!(stdout, "", "{args:?}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{args:?}: {stderr}");
        assert!(stderr.contains(word), "{args:?}: {stderr}");
    }
}

#[test]
fn help_and_version_go_to_stdout() {
    for args in [
        &["-help"][..],
        &["--help"],
        &["-h"],
        &["help"],
        &["boot", "debian", "-h"],
    ] {
        let (code, stdout, stderr) = run(args);
        assert_eq!((code, stderr.as_str()), (0, ""));
        assert!(stdout.contains("usage: kmemvisor"), "{stdout}");
    }
    assert!(run(&["-version"]).1.starts_with("kmemvisor version "));
    for args in [
        ["-cpu", "help"],
        ["-d", "help"],
        ["-device", "help"],
        ["-M", "help"],
    ] {
        let (code, stdout, _) = run(&args);
        assert!(
            code == 0 && stdout.lines().count() >= 2,
            "{args:?}: {stdout}"
        );
    }
}

/// Firmware of 64 KiB whose reset vector jumps to this code, which runs in real mode at
/// F000:0000.
fn firmware(code: &[u8]) -> (TempDir, PathBuf) {
    let mut rom = vec![0xf4; 64 << 10];
    rom[..code.len()].copy_from_slice(code);
    // jmp F000:0000
    rom[0xfff0..0xfff5].copy_from_slice(&[0xea, 0, 0, 0, 0xf0]);
    file(&rom)
}

/// Real-mode code that writes a text to the first serial port.
fn print(text: &str) -> Vec<u8> {
    let mut code = vec![0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]); // mov al, byte; out dx, al
    }
    code
}

#[test]
fn firmware_ends_in_every_way() {
    let halt = [0xfa, 0xf4]; // cli; hlt
    let triple_fault = [0x0f, 0x01, 0x1e, 0x00, 0x05, 0xcc]; // lidt [0x500]; int3
    let debug_exit = [0xb0, 0x10, 0xe6, 0xf4]; // mov al, 0x10; out 0xf4, al
    let reset = [0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe]; // mov al, 0xfe; out 0x64, al; jmp $
    // S5 by the PM1 control register.
    let power_off = [
        0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, // mov dx, 0x604; mov ax, 0x2000; out dx, ax
        0xeb, 0xfe,
    ];
    let cases: &[(&[u8], i32, &str)] = &[
        (&halt, 5, "halted with interrupts off"),
        (&triple_fault, 4, "triple-faulted"),
        (&debug_exit, 0x21, ""),
        (&reset, 0, ""),
        (&power_off, 0, ""),
    ];
    for (end, code, line) in cases {
        let mut program = print("hello\n");
        program.extend_from_slice(end);
        let (_folder, rom) = firmware(&program);
        let rom = rom.display().to_string();
        let (found, stdout, stderr) = run(&[
            "-bios",
            &rom,
            "-nographic",
            "-no-reboot",
            "-device",
            "isa-debug-exit,iobase=0xf4,iosize=0x04",
            "-audit",
            "1",
        ]);
        assert_eq!((found, stdout.as_str()), (*code, "hello\n"), "{stderr}");
        assert!(stderr.contains(line), "{stderr}");
    }
}

#[test]
fn without_no_reboot_the_machine_starts_again() {
    // mov al, 0xfe; out 0x64, al: the keyboard controller resets the machine.
    let mut program = print("again\n");
    program.extend([0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe]);
    let (_folder, rom) = firmware(&program);
    let mut guest = Guest::start(&["-bios", &rom.display().to_string(), "-nographic"]);
    for _ in 0..3 {
        guest.expect("again\n", 20);
    }
    guest.signal(rustix::process::Signal::TERM);
    let (code, stderr) = guest.wait(20);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("terminated by SIGTERM"), "{stderr}");
}

#[test]
fn the_end_of_input_is_no_end_and_no_work() {
    // sti; again: hlt; jmp again
    let mut program = print("idle\n");
    program.extend([0xfb, 0xf4, 0xeb, 0xfd]);
    let (_folder, rom) = firmware(&program);
    let mut guest = Guest::start(&["-bios", &rom.display().to_string(), "-nographic"]);
    guest.expect("idle\n", 20);
    guest.close_input();
    let before = guest.processor_time();
    std::thread::sleep(std::time::Duration::from_millis(1000));
    let used = guest.processor_time() - before;
    assert!(used < 0.1, "{used} s of a second");
    guest.signal(rustix::process::Signal::INT);
    let (code, stderr) = guest.wait(20);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("terminated by SIGINT"), "{stderr}");
}

#[test]
fn serial_ports_go_to_files() {
    let mut program = print("to a file\n");
    program.extend([0xfa, 0xf4]);
    let (folder, rom) = firmware(&program);
    let log = folder.path().join("log");
    let target = format!("file:{}", log.display());
    let rom = rom.display().to_string();
    let (code, stdout, _) = run(&["-bios", &rom, "-display", "none", "-serial", &target]);
    assert_eq!((code, stdout.as_str()), (5, ""));
    assert_eq!(fs::read_to_string(log).unwrap(), "to a file\n");
}

#[test]
fn the_readme_tells_every_exit_code() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    for (code, meaning) in emulator::exit::CODES {
        let row = format!("| {code} | {meaning} |");
        assert!(readme.contains(&row), "README.md lacks `{row}`");
    }
}
