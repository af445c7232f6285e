//! What the whole-system tests share: the program itself, a guest to talk to, Debian's packages.

#![forbid(unsafe_code)]

pub mod bench;
pub mod campaign;

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

use emulator::debian::{self, Architecture, Flavour, Prepared, Progress, Recipe};

static BUILD: Once = Once::new();

/// The root of the repository.
pub fn repository() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent()
        .expect("this crate is in a folder of the workspace")
}

/// The program, built with the profile of the running test.
pub fn kmemvisor() -> PathBuf {
    program("kmemvisor")
}

/// One of the emulator's programs, built likewise.
pub fn program(name: &str) -> PathBuf {
    let own = env::current_exe().expect("a process has a path");
    // target/PROFILE/deps/test or target/PROFILE/program
    let mut folder = own.parent().expect("a program is in a folder");
    if folder.ends_with("deps") {
        folder = folder.parent().expect("deps is in a folder");
    }
    BUILD.call_once(|| {
        let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.current_dir(repository());
        build.args(["build", "-q", "-p", "emulator", "--bins"]);
        if folder.ends_with("release") {
            build.arg("--release");
        }
        let built = build.status().expect("cargo runs");
        assert!(built.success(), "the programs do not build");
    });
    folder.join(name)
}

/// Runs the program to its end: exit code, stdout, stderr.
pub fn run(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(kmemvisor())
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the program runs");
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// Debian's kernel with a shell. `None`: packages cannot be had here, which is said; that is no
/// excuse in CI.
pub fn debian_shell(flavour: Flavour) -> Option<Prepared> {
    debian_shell_of(flavour, None)
}

/// Debian's kernel with a shell that may be of another architecture.
pub fn debian_shell_of(flavour: Flavour, architecture: Option<Architecture>) -> Option<Prepared> {
    // One for each, whichever test asks first.
    static PREPARED: Mutex<Vec<(Flavour, Option<Architecture>, Prepared)>> = Mutex::new(Vec::new());
    let mut known = PREPARED.lock().expect("no preparation has failed");
    let kept = known
        .iter()
        .find(|kept| (kept.0, kept.1) == (flavour, architecture));
    if let Some((_, _, prepared)) = kept {
        return Some(prepared.clone());
    }
    let recipe = Recipe {
        flavour,
        architecture,
        ..Recipe::default()
    };
    let cache = debian::cache_directory().expect("HOME is set");
    match debian::prepare(&cache, &recipe, &Progress::silent()) {
        Ok(prepared) => {
            known.push((flavour, architecture, prepared.clone()));
            Some(prepared)
        }
        Err(error) if env::var_os("CI").is_none() => {
            eprintln!("SKIPPED: Debian's packages cannot be had: {error}");
            None
        }
        Err(error) => panic!("Debian's packages cannot be had: {error}"),
    }
}

/// Arguments that start a prepared guest with its console on stdio.
pub fn boot_arguments(prepared: &Prepared) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    [
        "-m",
        "512",
        "-kernel",
        &path(&prepared.kernel),
        "-initrd",
        &path(&prepared.initrd),
        "-append",
        "console=ttyS0",
        "-nographic",
        "-no-reboot",
    ]
    .map(str::to_string)
    .to_vec()
}

/// A running program whose console is a pipe.
pub struct Guest {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    errors: Receiver<Vec<u8>>,
    /// Everything on stdout so far.
    pub seen: String,
    searched: usize,
}

fn collect(mut from: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (send, receive) = channel();
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(len) = from.read(&mut bytes) {
            if len == 0 || send.send(bytes[..len].to_vec()).is_err() {
                break;
            }
        }
    });
    receive
}

impl Guest {
    /// Starts the program.
    pub fn start<S: AsRef<str>>(args: &[S]) -> Guest {
        Guest::spawn(Command::new(kmemvisor()).args(args.iter().map(AsRef::as_ref)))
    }

    /// Starts any program.
    pub fn spawn(command: &mut Command) -> Guest {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
        Guest {
            input: child.stdin.take(),
            output: collect(child.stdout.take().expect("it is piped")),
            errors: collect(child.stderr.take().expect("it is piped")),
            child,
            seen: String::new(),
            searched: 0,
        }
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the console shows a text behind what was found before; gives the moment.
    pub fn expect(&mut self, text: &str, seconds: u64) -> Instant {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            if let Some(at) = self.seen[self.searched..].find(text) {
                self.searched += at + text.len();
                return Instant::now();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.seen += &String::from_utf8_lossy(&bytes),
                Err(error) => panic!(
                    "`{text}` did not come ({error}); the console:\n{}\nstderr:\n{}",
                    self.seen,
                    self.errors_so_far()
                ),
            }
        }
    }

    /// Types.
    pub fn send(&mut self, text: &str) {
        let input = self.input.as_mut().expect("the input is open");
        input
            .write_all(text.as_bytes())
            .and_then(|()| input.flush())
            .expect("the guest's console takes input");
    }

    /// Ends the input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Seconds of processor time that the process has used.
    pub fn processor_time(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id())).expect("it runs");
        let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        // User and system time, in ticks of 10 ms (proc(5)).
        let ticks = fields.skip(11).take(2).map(|ticks| ticks.parse::<f64>());
        ticks.map(|ticks| ticks.unwrap_or(0.0) / 100.0).sum()
    }

    /// Bytes of host memory that the process has.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next());
        kilobytes
            .and_then(|number| number.parse::<u64>().ok())
            .unwrap_or(0)
            << 10
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).expect("the process is there");
    }

    fn errors_so_far(&self) -> String {
        let bytes: Vec<u8> = self.errors.try_iter().flatten().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for something on stderr.
    pub fn expect_error(&mut self, text: &str, seconds: u64) -> String {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let mut all = String::new();
        while !all.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.errors.recv_timeout(left) {
                Ok(bytes) => all += &String::from_utf8_lossy(&bytes),
                Err(error) => panic!("`{text}` did not come on stderr ({error}): {all}"),
            }
        }
        all
    }

    /// Waits for the end: exit code, and what stderr still has.
    pub fn wait(mut self, seconds: u64) -> (i32, String) {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                break status;
            }
            self.seen.extend(self.output.try_iter().map(|bytes| {
                let text = String::from_utf8_lossy(&bytes);
                text.into_owned()
            }));
            assert!(
                Instant::now() < deadline,
                "it does not end; the console:\n{}",
                self.seen
            );
            thread::sleep(Duration::from_millis(10));
        };
        let errors: Vec<u8> = self.errors.iter().flatten().collect();
        (
            status.code().unwrap_or(-1),
            String::from_utf8_lossy(&errors).into_owned(),
        )
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
