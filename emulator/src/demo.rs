//! `kmemvisor demo`: an embedded guest computes something checkable while memory is corrupted
//! under it.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use dbt::EngineOptions;
use dbt::guest::{Exception, Segment, SegmentIndex, flags};
use devices::{BoardConfig, DebugExit};
use fault_injector::{Entry, Fate, Plan, PlanError};
use guests::demo::{EXCEPTION_BASE, EXIT_PORT, RESULT};
use guests::{AssembleError, Image};
use mmu::{AccessError, GuestPhys, MAX_COPIES};

use crate::inject::Injector;
use crate::machine::{End, Machine, MachineConfig, MachineError};
use crate::report::{self, Report, ReportError};

/// What `kmemvisor demo` takes.
pub const USAGE: &str = "usage: kmemvisor demo [-mirror off|copies=N] [-inject PLAN] [-rounds N] \
                         [-report FILE] [-interpret] [-portable]";
/// About 800 injections into the default number of rounds.
const PLAN: &str = "seed=1,every=500k,target=any,where=used";
const ROUNDS: u32 = 20;
/// Several times what a round takes: a guest that needs more hangs.
const ROUND_LIMIT: u64 = 200_000_000;
/// Injections listed when there are more than [`LISTED`]: so many of the first, and of the last.
const LISTED: usize = 40;

/// What to demonstrate.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// Copies of each page; 1 is no mirror.
    pub copies: usize,
    /// What to inject.
    pub plan: Plan,
    /// Rounds of the guest's computation, 1 to 1000.
    pub rounds: u32,
    /// Where the report goes as JSON.
    pub report: Option<PathBuf>,
    /// Interpret instead of translating.
    pub interpret: bool,
    /// Interpret everything, with floating point in software.
    pub portable: bool,
}

/// A demonstration that could not take place.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The options.
    #[error("{0}\n{USAGE}")]
    Usage(String),
    /// The plan.
    #[error("-inject: {0}")]
    Plan(#[from] PlanError),
    /// The guest.
    #[error(transparent)]
    Guest(#[from] AssembleError),
    /// The guest does not fit.
    #[error("the embedded guest does not fit into its memory: {0}")]
    Load(AccessError),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// stdout.
    #[error("cannot write to the standard output: {0}")]
    Output(#[from] io::Error),
}

impl DemoError {
    /// The process's exit code.
    pub fn code(&self) -> u8 {
        match self {
            DemoError::Usage(_) | DemoError::Plan(_) => 2,
            _ => 1,
        }
    }
}

/// What came of a demonstration.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How the guest ended.
    pub end: End,
    /// The digest that the guest printed, if it got there.
    pub result: Option<u64>,
    /// The digest computed on the host.
    pub expected: u64,
    /// Whether all copies were equal at the end, where no line was known to be bad.
    pub copies_equal: bool,
    /// The injections and the rest.
    pub report: Report,
}

impl Outcome {
    /// Whether the guest ended well, with the right result.
    pub fn right(&self) -> bool {
        self.end == End::DebugExit(DebugExit::code(0))
            && self.result == Some(self.expected)
            && self.copies_equal
    }

    /// What happened to the guest, in words.
    fn verdict(&self) -> String {
        let expected = self.expected;
        match (&self.end, self.result) {
            (End::DebugExit(code), Some(result)) if *code == DebugExit::code(0) => {
                if result != expected {
                    format!("the guest's result {result:016x} is wrong: {expected:016x} is right")
                } else if self.copies_equal {
                    format!("the guest's result {result:016x} is right")
                } else {
                    "the guest's result is right, but copies of its memory differ".to_string()
                }
            }
            (End::DebugExit(code), _) => match (code >> 1).checked_sub(EXCEPTION_BASE) {
                Some(vector) if vector == u32::from(Exception::MC) => {
                    "the guest failed: a machine check, for a line without a good copy".to_string()
                }
                Some(vector) => format!("the guest failed: unexpected exception {vector:#x}"),
                None => format!("the guest ended with code {code} and no result"),
            },
            (End::TripleFault, _) => {
                "the guest failed: a triple fault, for a line without a good copy that even its \
                 exception handler needs"
                    .to_string()
            }
            (End::Goal, _) => "the guest failed: it hangs".to_string(),
            (end, _) => format!("the guest ended without a result: {end:?}"),
        }
    }
}

impl DemoOptions {
    /// The defaults.
    pub fn new() -> Result<DemoOptions, DemoError> {
        Ok(DemoOptions {
            copies: 2,
            plan: Plan::parse(PLAN)?,
            rounds: ROUNDS,
            report: None,
            interpret: false,
            portable: false,
        })
    }

    /// Parses what follows `kmemvisor demo`.
    pub fn parse(args: &[String]) -> Result<DemoOptions, DemoError> {
        let mut options = DemoOptions::new()?;
        let mut args = args.iter();
        while let Some(name) = args.next() {
            // As elsewhere, two dashes do as well as one.
            let name = name.strip_prefix('-').map_or("", |name| {
                let second = name.strip_prefix('-');
                second.unwrap_or(name)
            });
            if name == "interpret" {
                options.interpret = true;
                continue;
            }
            if name == "portable" {
                options.portable = true;
                continue;
            }
            if !["mirror", "inject", "rounds", "report"].contains(&name) {
                return Err(DemoError::Usage(format!("unknown option -{name}")));
            }
            let value = args
                .next()
                .ok_or_else(|| DemoError::Usage(format!("-{name} needs a value")))?;
            let bad = |possible: &str| {
                DemoError::Usage(format!("-{name} {value}: {possible} is possible"))
            };
            match name {
                "mirror" => {
                    options.copies =
                        copies(value).ok_or_else(|| bad("on, off, copies=1 to copies=4"))?
                }
                "inject" => options.plan = Plan::parse(value)?,
                "rounds" => {
                    options.rounds = value
                        .parse()
                        .ok()
                        .filter(|rounds| (1..=1000).contains(rounds))
                        .ok_or_else(|| bad("1 to 1000"))?;
                }
                _ => options.report = Some(PathBuf::from(value)),
            }
        }
        options.plan.check(options.copies)?;
        Ok(options)
    }
}

fn copies(value: &str) -> Option<usize> {
    match value {
        "on" => Some(2),
        "off" => Some(1),
        _ => {
            let copies = value.strip_prefix("copies=")?.parse().ok()?;
            (1..=MAX_COPIES).contains(&copies).then_some(copies)
        }
    }
}

/// The command: gives the process's exit code. 0: the guest's result is right; 1: it is not;
/// 2: the options are wrong.
pub fn run(args: &[String]) -> u8 {
    let shown = DemoOptions::parse(args).and_then(|options| show(&options));
    match shown {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) => {
            eprintln!("kmemvisor: demo: {error}");
            error.code()
        }
    }
}

/// Runs the guest and tells on stdout what happened; whether its result is right.
fn show(options: &DemoOptions) -> Result<bool, DemoError> {
    if let Some(path) = &options.report {
        report::check_path(path).map_err(|error| DemoError::Usage(error.to_string()))?;
    }
    let mut out = io::stdout();
    let mirror = match options.copies {
        1 => "without a mirror".to_string(),
        copies => format!("with {copies} copies of each page"),
    };
    writeln!(
        out,
        "an embedded guest runs {} rounds {mirror}, while its memory is corrupted:",
        options.rounds
    )?;
    let outcome = execute(options, io::stdout())?;
    list(&mut out, outcome.report.ledger.entries())?;
    writeln!(out)?;
    write!(out, "{}", outcome.report)?;
    writeln!(out, "{}", outcome.verdict())?;
    if !outcome.right() && options.copies == 1 {
        writeln!(
            out,
            "This is what the mirror prevents: run the same without -mirror off to see it survive."
        )?;
    }
    if let Some(path) = &options.report {
        outcome.report.write_json(path)?;
    }
    Ok(outcome.right())
}

/// What was corrupted, a line each.
fn list(out: &mut dyn Write, entries: &[Entry]) -> io::Result<()> {
    writeln!(out)?;
    writeln!(
        out,
        "     instruction       page  copy      lines  used as      what became of it"
    )?;
    let hidden = entries.len().saturating_sub(LISTED);
    for (index, entry) in entries.iter().enumerate() {
        if hidden > 0 && index == LISTED / 2 {
            writeln!(out, "  ... {hidden} more (-report FILE has them all) ...")?;
        }
        if hidden > 0 && (LISTED / 2..LISTED / 2 + hidden).contains(&index) {
            continue;
        }
        let copy = match entry.copy {
            0 => "native".to_string(),
            1 => "mirror".to_string(),
            copy => format!("mirror {copy}"),
        };
        writeln!(
            out,
            "{:>16} {:>#10x}  {:<8} {:>6}  {:<12} {}",
            entry.at.instructions,
            entry.page.0,
            copy,
            entry.lines.count_ones(),
            entry.class.name(),
            fate(entry.fate())
        )?;
    }
    Ok(())
}

fn fate(fate: Fate) -> &'static str {
    match fate {
        Fate::Recovered => "recovered: a read was served from the mirror",
        Fate::Rebuilt => "rebuilt from a good copy",
        Fate::Remapped => "remapped with its page, unread",
        Fate::Overwritten => "overwritten before any read",
        Fate::Unread => "unread",
        Fate::Lost => "lost: read, and no copy was good",
    }
}

/// Runs the guest; what it prints goes to `console` as it comes.
pub fn execute(
    options: &DemoOptions,
    console: impl Write + Send + 'static,
) -> Result<Outcome, DemoError> {
    let image = guests::demo::image(options.rounds)?;
    let console = Console {
        said: Arc::default(),
        out: Arc::new(Mutex::new(console)),
    };
    let said = console.said.clone();
    let mut machine = Machine::new(MachineConfig {
        ram_bytes: image.ram_bytes,
        copies: options.copies,
        board: BoardConfig {
            serials: [Some(Box::new(console)), None, None, None],
            debug_exit: Some(DebugExit {
                iobase: EXIT_PORT,
                iosize: 4,
            }),
            ..BoardConfig::default()
        },
        model: Default::default(),
        engine: EngineOptions {
            interpret_only: options.interpret,
            portable: EngineOptions::default().portable || options.portable,
            ..EngineOptions::default()
        },
        // Time is a function of executed instructions: the same plan gives the same run.
        icount_shift: Some(0),
        seed: 1,
        audit_every: None,
        acpi: false,
    })?;
    load(&mut machine, &image)?;
    let mut injector = Injector::new(options.plan.clone(), options.copies)?;
    let limit = ROUND_LIMIT * u64::from(options.rounds);
    let (_keep, events) = crossbeam::channel::unbounded();
    let end = machine.run(&events, &mut |machine| injector.poll(machine).min(limit));
    machine.pc.borrow_mut().flush();
    injector.settle(&mut machine);
    let said = said.lock().unwrap_or_else(PoisonError::into_inner);
    let copies_equal = machine.audit().is_ok();
    let mut report = Report::of(&machine, Some(&injector));
    report.memory_sha256 = Some(machine.memory_digest());
    Ok(Outcome {
        end,
        result: result_in(&said),
        expected: guests::demo::expected(options.rounds),
        copies_equal,
        report,
    })
}

/// The digest in the last line of the guest's output.
fn result_in(said: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(said);
    let line = text.lines().find_map(|line| line.strip_prefix(RESULT))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// The guest's serial port: passed on, and kept.
struct Console<W> {
    said: Arc<Mutex<Vec<u8>>>,
    out: Arc<Mutex<W>>,
}

impl<W: Write> Write for Console<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.extend_from_slice(bytes);
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.flush()
    }
}

/// Puts an image into memory and the processor at its entry, in 64-bit mode.
pub fn load(machine: &mut Machine, image: &Image) -> Result<(), DemoError> {
    for segment in &image.segments {
        let at = GuestPhys(segment.at);
        machine
            .vcpu
            .mem
            .store(at, &segment.bytes)
            .map_err(DemoError::Load)?;
    }
    let cpu = machine.vcpu.cpu_mut();
    let common = Segment::PRESENT | Segment::NOT_SYSTEM | Segment::WRITABLE | Segment::GRANULAR;
    let data = Segment {
        base: 0,
        limit: u32::MAX,
        selector: image.data_selector,
        attributes: common | Segment::ACCESSED | Segment::BIG,
    };
    cpu.segments = [data; 6];
    *cpu.segment_mut(SegmentIndex::Cs) = Segment {
        selector: image.code_selector,
        attributes: common | Segment::ACCESSED | Segment::CODE | Segment::LONG,
        ..data
    };
    let control = &mut cpu.control;
    control.gdtr.base = image.gdt.base;
    control.gdtr.limit = image.gdt.limit;
    control.idtr.base = image.idt.base;
    control.idtr.limit = image.idt.limit;
    control.tr = Segment {
        base: image.tss.base,
        limit: u32::from(image.tss.limit),
        selector: image.tss_selector,
        attributes: Segment::PRESENT | 11,
    };
    control.cr0 = flags::CR0_PE
        | flags::CR0_MP
        | flags::CR0_ET
        | flags::CR0_NE
        | flags::CR0_WP
        | flags::CR0_PG;
    control.cr3 = image.cr3;
    control.cr4 = flags::CR4_PAE | flags::CR4_MCE | flags::CR4_OSFXSR | flags::CR4_OSXMMEXCPT;
    control.efer = flags::EFER_LME | flags::EFER_LMA | flags::EFER_NXE | flags::EFER_SCE;
    cpu.gpr = [0; 16];
    cpu.gpr[dbt::guest::Register::RSP] = image.stack;
    cpu.rip = image.entry;
    cpu.interrupt_flag = 0;
    cpu.refresh_mode();
    Ok(())
}
