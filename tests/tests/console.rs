//! The console on a terminal: raw while the machine runs, as before afterwards.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use tests::kmemvisor;

/// Firmware that halts with interrupts on, forever.
fn idle_firmware(folder: &std::path::Path) -> String {
    let mut rom = vec![0xf4; 64 << 10];
    // mov dx, 0x3f8; mov al, '!'; out dx, al; sti; hlt; jmp back to hlt
    let code = [0xba, 0xf8, 0x03, 0xb0, b'!', 0xee, 0xfb, 0xf4, 0xeb, 0xfd];
    rom[..code.len()].copy_from_slice(&code);
    rom[0xfff0..0xfff5].copy_from_slice(&[0xea, 0, 0, 0, 0xf0]);
    let path = folder.join("rom");
    std::fs::write(&path, rom).unwrap();
    path.display().to_string()
}

struct Terminal {
    controller: File,
    terminal: OwnedFd,
}

impl Terminal {
    fn new() -> Terminal {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let terminal = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap();
        Terminal {
            controller: File::from(controller),
            terminal: OwnedFd::from(terminal),
        }
    }

    fn start(&self, args: &[&str]) -> Child {
        let stdio = || Stdio::from(self.terminal.try_clone().unwrap());
        Command::new(kmemvisor())
            .args(args)
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .unwrap()
    }

    fn modes(&self) -> LocalModes {
        tcgetattr(&self.terminal).unwrap().local_modes
    }

    fn expect(&mut self, text: &str) {
        let mut seen = Vec::new();
        let mut byte = [0];
        while !String::from_utf8_lossy(&seen).contains(text) {
            self.controller.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
    }

    fn wait(&self, child: &mut Child) -> i32 {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn escapes_work_and_the_terminal_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let rom = idle_firmware(folder.path());
    let mut terminal = Terminal::new();
    let before = terminal.modes();
    assert!(before.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG));
    let mut child = terminal.start(&["-bios", &rom, "-nographic"]);
    terminal.expect("!");
    let raw = terminal.modes();
    assert!(!raw.intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG));
    terminal.controller.write_all(b"\x01h").unwrap();
    terminal.expect("end the machine");
    terminal.controller.write_all(b"\x01c").unwrap();
    terminal.expect("no monitor yet");
    terminal.controller.write_all(b"\x01x").unwrap();
    terminal.expect("kmemvisor: terminated");
    assert_eq!(terminal.wait(&mut child), 0);
    assert_eq!(terminal.modes(), before);
}

#[test]
fn a_signal_gives_the_terminal_back_too() {
    let folder = tempfile::tempdir().unwrap();
    let rom = idle_firmware(folder.path());
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::HUP] {
        let mut terminal = Terminal::new();
        let before = terminal.modes();
        // Without escapes, Ctrl-C is the host's.
        let mut child = terminal.start(&["-bios", &rom, "-display", "none", "-serial", "stdio"]);
        terminal.expect("!");
        let raw = terminal.modes();
        assert!(raw.contains(LocalModes::ISIG) && !raw.contains(LocalModes::ECHO));
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        terminal.expect("terminated by");
        assert_eq!(terminal.wait(&mut child), 0);
        assert_eq!(terminal.modes(), before);
    }
}
