//! A run of the program: builds the machine, connects console and signals, starts it again
//! when the guest asks for it, and tells how it ended.

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam::channel::{Receiver, Sender, unbounded};
use dbt::EngineOptions;
use devices::BoardConfig;
use signal_hook::consts::signal::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::boot::{Boot, BootError};
use crate::console::{self, Input, RawTerminal};
use crate::console_watch::{ConsoleWatch, Watched};
use crate::exit::Outcome;
use crate::inject::Injector;
use crate::machine::{HostEvent, Machine, MachineConfig, MachineError};
use crate::options::{Options, RtcBase, SerialTarget};
use crate::report::{self, Report, ReportError};
use crate::wake::Kicker;

/// 2026-01-01: the date of a machine whose every run is to be the same.
const COUNTED_DATE: i64 = 1_767_225_600;
/// Translations for which a file is written at the end of a run, if it does not have them.
const WORTH_KEEPING: usize = 256;

/// A run that could not start.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The options, or files they name.
    #[error("{0}")]
    Configuration(String),
    /// What is to be started.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The emulator could not get what it needs from the host.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The report could not be written.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// Signals could not be caught.
    #[error("cannot catch signals: {0}")]
    Signals(io::Error),
}

impl SessionError {
    /// The process's exit code.
    pub fn code(&self) -> u8 {
        match self {
            SessionError::Configuration(_) | SessionError::Boot(_) => 2,
            SessionError::Machine(_) | SessionError::Signals(_) | SessionError::Report(_) => 1,
        }
    }
}

/// Output that survives the machine it is connected to.
#[derive(Clone)]
struct SharedOutput(Arc<Mutex<Box<dyn Write + Send>>>);

impl SharedOutput {
    fn new(inner: impl Write + Send + 'static) -> SharedOutput {
        SharedOutput(Arc::new(Mutex::new(Box::new(inner))))
    }
}

impl Write for SharedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.flush()
    }
}

/// Where a machine's ports go, for each start anew.
struct Outputs {
    serials: [Option<SharedOutput>; 4],
    debug_console: Option<SharedOutput>,
}

impl Outputs {
    fn open(options: &Options, watch: &ConsoleWatch) -> Result<Outputs, SessionError> {
        let targets = options
            .serial_targets()
            .map_err(SessionError::Configuration)?;
        let mut serials = [None, None, None, None];
        for (index, target) in targets.iter().enumerate() {
            let output = open(target)?;
            serials[index] = match output {
                // Kernels talk on the first port.
                Some(output) if index == 0 => {
                    Some(SharedOutput::new(Watched::new(output, watch.clone())))
                }
                other => other,
            };
        }
        let debug_console = match &options.debug_console {
            Some(target) => open(target)?,
            None => None,
        };
        Ok(Outputs {
            serials,
            debug_console,
        })
    }
}

fn open(target: &SerialTarget) -> Result<Option<SharedOutput>, SessionError> {
    Ok(match target {
        SerialTarget::Stdio { .. } => Some(SharedOutput::new(io::stdout())),
        SerialTarget::Null => Some(SharedOutput::new(io::sink())),
        SerialTarget::None => None,
        SerialTarget::Named(id) => {
            return Err(SessionError::Configuration(format!(
                "there is no -chardev with id={id}"
            )));
        }
        SerialTarget::File(path) => {
            let file = File::create(path).map_err(|error| {
                let path = path.display();
                SessionError::Configuration(format!("-serial: cannot create {path}: {error}"))
            })?;
            Some(SharedOutput::new(file))
        }
    })
}

/// Who asked from outside for the end.
type Ending = Arc<Mutex<Option<Outcome>>>;

fn end_with(ending: &Ending, outcome: Outcome) {
    let mut ending = ending.lock().unwrap_or_else(PoisonError::into_inner);
    ending.get_or_insert(outcome);
}

/// Where events for the machine go in.
#[derive(Clone)]
struct Port {
    events: Sender<HostEvent>,
    kicker: Kicker,
}

impl Port {
    fn send(&self, event: HostEvent) -> bool {
        let sent = self.events.send(event).is_ok();
        self.kicker.kick();
        sent
    }
}

/// Runs a machine to its end.
pub fn run(options: &Options, boot: &Boot, watch: &ConsoleWatch) -> Result<Outcome, SessionError> {
    let outputs = Outputs::open(options, watch)?;
    check_report_path(options)?;
    let (events, receiver) = unbounded();
    let port = Port {
        events,
        kicker: Kicker::default(),
    };
    let ending = Ending::default();
    let mut machine = build(options, boot, &outputs, watch, &port)?;

    let stdio = options
        .serial_targets()
        .map_err(SessionError::Configuration)?
        .into_iter()
        .find_map(|target| match target {
            SerialTarget::Stdio { escapes } => Some(escapes),
            _ => None,
        });
    let _signals = SignalThread::start(port.clone(), ending.clone())?;
    let terminal = stdio.map(|escapes| {
        let terminal = RawTerminal::take(escapes);
        let (port, ending) = (port.clone(), ending.clone());
        console::read_input(escapes, move |input| {
            port.send(match input {
                Input::Data(bytes) => HostEvent::Serial(bytes),
                Input::Break => HostEvent::SerialBreak,
                Input::Quit | Input::Tell(_) => {
                    end_with(&ending, Outcome::Quit);
                    HostEvent::Quit
                }
            })
        });
        terminal
    });

    let outcome = loop {
        let outcome = run_once(options, &mut machine, watch, &receiver)?;
        let again = match outcome {
            Outcome::Reset => true,
            Outcome::TripleFault(_) if !options.no_reboot => {
                eprintln!("kmemvisor: {}; it starts again", describe(&outcome));
                true
            }
            _ => false,
        };
        if !again || options.no_reboot {
            break outcome;
        }
        tracing::debug!("the guest starts again");
        watch.restart();
        drop(machine);
        machine = build(options, boot, &outputs, watch, &port)?;
    };
    drop(terminal);
    let asked = ending.lock().unwrap_or_else(PoisonError::into_inner).take();
    Ok(match (outcome, asked) {
        (Outcome::Quit, Some(asked)) => asked,
        (outcome, _) => outcome,
    })
}

/// A run of hours should not find out at its end that its report has no place.
fn check_report_path(options: &Options) -> Result<(), SessionError> {
    let Some(path) = &options.report else {
        return Ok(());
    };
    report::check_path(path).map_err(|error| SessionError::Configuration(error.to_string()))
}

fn describe(outcome: &Outcome) -> String {
    outcome.last_line().unwrap_or_default()
}

fn build(
    options: &Options,
    boot: &Boot,
    outputs: &Outputs,
    watch: &ConsoleWatch,
    port: &Port,
) -> Result<Machine, SessionError> {
    let boxed = |output: &Option<SharedOutput>| -> Option<Box<dyn Write + Send>> {
        let output = output.clone()?;
        Some(Box::new(output))
    };
    let rtc = match (options.rtc, options.icount_shift) {
        (Some(RtcBase::Date(date)), _) => date,
        (None, Some(_)) => COUNTED_DATE,
        (Some(RtcBase::Host) | None, _) => {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            since.map_or(0, |since| since.as_secs() as i64)
        }
    };
    let acpi = options.acpi && boot.wants_acpi_tables();
    if !options.interpret && !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        tracing::warn!("there is no translator for this host: everything is interpreted");
    }
    let mut machine = Machine::new(MachineConfig {
        ram_bytes: options.ram_bytes,
        copies: options.copies,
        board: BoardConfig {
            rtc_start: rtc,
            serials: outputs.serials.each_ref().map(boxed),
            debug_console: boxed(&outputs.debug_console),
            debug_port: options.debug_port,
            debug_exit: options.debug_exit,
            test_device: options.test_device,
            hpet: options.hpet,
            host_bridge: boot.wants_host_bridge(),
            ..BoardConfig::default()
        },
        model: options.cpu.clone(),
        engine: EngineOptions {
            interpret_only: options.interpret,
            portable: EngineOptions::default().portable || options.portable,
            // Audits and injections are due at instruction counts.
            counted: options.needs_counting(),
            ..options.engine.clone()
        },
        icount_shift: options.icount_shift,
        seed: seed(options),
        audit_every: options.audit_every,
        acpi,
    })?;
    if let Some(plan) = &options.inject {
        let injector = Injector::new(plan.clone(), options.copies)
            .map_err(|error| SessionError::Configuration(format!("-inject: {error}")))?;
        machine.injector = Some(injector);
    }
    // Counted runs repeat, and so depend on nothing that another has left.
    if let Some(directory) = options.code_cache.as_ref().filter(|_| !machine.counted()) {
        machine.vcpu.keep_code_in(directory);
    }
    machine.watch_console(watch.clone());
    machine.set_kicker(port.kicker.clone());
    boot.load(&mut machine.vcpu)?;
    Ok(machine)
}

/// The guest's random numbers differ from run to run, unless every run is to be the same.
fn seed(options: &Options) -> u64 {
    match (options.seed, options.icount_shift) {
        (Some(seed), _) => seed,
        (None, Some(_)) => 0,
        (None, None) => {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            let since = since.map_or(0, |since| since.as_nanos() as u64);
            since ^ u64::from(std::process::id()) << 32
        }
    }
}

fn run_once(
    options: &Options,
    machine: &mut Machine,
    watch: &ConsoleWatch,
    receiver: &Receiver<HostEvent>,
) -> Result<Outcome, SessionError> {
    let end = machine.run(receiver, &mut Machine::inject);
    machine.pc.borrow_mut().flush();
    let said = watch.said();
    let rip = machine.vcpu.cpu().rip;
    let mut outcome = Outcome::of(end, rip, said.panic, said.restarting);
    if options.audit_every.is_some() && !matches!(outcome, Outcome::Audit(_)) {
        match machine.audit() {
            Ok(pages) => eprintln!("kmemvisor: audit: all copies of {pages} pages are equal"),
            Err(error) => outcome = Outcome::Audit(error.to_string()),
        }
    }
    if let Err(error) = machine.vcpu.keep_code(WORTH_KEEPING) {
        tracing::debug!(%error, "translations could not be kept for later runs");
    }
    let mut report = machine.report();
    if options.inject.is_some() {
        tell(&report);
    }
    if let Some(path) = &options.report {
        report.memory_sha256 = machine.counted().then(|| machine.memory_digest());
        report.write_json(path)?;
    }
    Ok(outcome)
}

/// A report on stderr.
fn tell(report: &Report) {
    for line in report.to_string().lines() {
        eprintln!("kmemvisor: {line}");
    }
}

/// Catches signals until dropped.
struct SignalThread {
    handle: signal_hook::iterator::Handle,
}

impl SignalThread {
    fn start(port: Port, ending: Ending) -> Result<SignalThread, SessionError> {
        let wanted = [SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGCONT];
        let mut signals = Signals::new(wanted).map_err(SessionError::Signals)?;
        let handle = signals.handle();
        let ended = AtomicBool::new(false);
        thread::spawn(move || {
            for signal in signals.forever() {
                let name = match signal {
                    SIGUSR1 => {
                        port.send(HostEvent::Hook(Box::new(print_status)));
                        continue;
                    }
                    SIGCONT => {
                        console::reapply();
                        continue;
                    }
                    SIGINT => "SIGINT",
                    SIGTERM => "SIGTERM",
                    _ => "SIGHUP",
                };
                if ended.swap(true, Ordering::Relaxed) {
                    // Asked twice: the machine does not listen.
                    console::restore();
                    std::process::exit(1);
                }
                end_with(&ending, Outcome::Signal(name));
                port.send(HostEvent::Quit);
            }
        });
        Ok(SignalThread { handle })
    }
}

impl Drop for SignalThread {
    fn drop(&mut self) {
        self.handle.close();
    }
}

/// The report of a machine that goes on running.
fn print_status(machine: &mut Machine) {
    tell(&machine.report());
}
