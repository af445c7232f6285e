//! Guests of random code on the real board: one case is a seed and a mode.

mod code;
mod setting;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;
use dbt::EngineOptions;
use emulator::machine::{End, HostEvent, Machine, MachineConfig};
use emulator::wake::Kicker;
use iced_x86::{FlowControl, Instruction, Mnemonic, RflagsBits};
use mmu::{GuestPhys, PAGE_SIZE};

pub use code::Random;
pub use setting::RAM;

/// Modes of the processor that a guest starts in; it may leave them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Mode {
    Real,
    Vm86,
    Protected16,
    Protected32,
    Pae,
    Long,
    Compat,
}

/// The modes by name.
pub const MODES: &[(&str, Mode)] = &[
    ("real", Mode::Real),
    ("vm86", Mode::Vm86),
    ("protected16", Mode::Protected16),
    ("protected32", Mode::Protected32),
    ("pae", Mode::Pae),
    ("long", Mode::Long),
    ("compat", Mode::Compat),
];

/// What became of the cases of one mode.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Cases.
    pub cases: u64,
    /// Guest instructions executed.
    pub instructions: u64,
    /// Cases that used their budget up.
    pub ran_on: u64,
    /// Triple faults.
    pub triple_faults: u64,
    /// Halted for good.
    pub dead: u64,
    /// Resets, power-offs and exits.
    pub ended: u64,
    /// Cases with damaged memory.
    pub damaged: u64,
    /// Cases with a single copy of memory.
    pub single: u64,
    /// Cases in which something was translated.
    pub translated: u64,
    /// Cases in which a trace was made of a loop.
    pub traced: u64,
    /// Cases in which interpreter and translator were compared, and were the same.
    pub same: u64,
    /// Those whose first difference may come from flags that the manual leaves undefined.
    pub undefined: u64,
    /// Cases in which they differed; undefined flags alone can do that.
    pub different: u64,
}

/// What runs, for the watchdog: a number for each run of a guest, mode and seed.
static CURRENT: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// How the watchdog asks the machine that runs to stop.
static STOP: Mutex<Option<(Sender<HostEvent>, Kicker)>> = Mutex::new(None);

/// A run that takes longer is asked to stop: REP with a count of billions is no hang as long as
/// it listens.
const PATIENCE: Duration = Duration::from_secs(3);
/// Most host memory that cases may have left behind, in bytes.
const MEMORY_LIMIT: u64 = 3 << 30;
/// Guest instructions of a case.
const BUDGET: u64 = 20_000;
/// How often memory is damaged in a case that does that, in instructions.
const DAMAGE_EVERY: u64 = 500;

/// Ends the process if one run of a guest takes longer than this: that is a hang.
pub fn watchdog(limit: Duration) -> std::thread::JoinHandle<()> {
    let start = Instant::now();
    let mut seen = (u64::MAX, start);
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let [number, mode, seed] = CURRENT.each_ref().map(|n| n.load(Ordering::Relaxed));
            if number != seen.0 {
                seen = (number, Instant::now());
            } else if number != 0
                && seen.1.elapsed() > PATIENCE
                && let Ok(stop) = STOP.lock()
                && let Some((sender, kicker)) = &*stop
            {
                // A machine that has just ended needs no telling.
                let _ = sender.send(HostEvent::Quit);
                kicker.kick();
            }
            if number != 0 && seen.1.elapsed() > limit {
                let mode = MODES[mode as usize].0;
                eprintln!("campaign: hangs: --mode {mode} --seed {seed} --cases 1");
                std::process::exit(1);
            }
        }
    })
}

/// What a case draws besides its guest.
struct Setup {
    copies: usize,
    damage: bool,
    engine: EngineOptions,
}

impl Setup {
    /// Every number of copies, one as often as two; every tier of the engine.
    fn draw(random: &mut Random, interpret_only: bool) -> Setup {
        Setup {
            copies: random.pick(&[1, 1, 2, 2, 3, 4]),
            damage: random.one_in(4),
            engine: EngineOptions {
                counted: true,
                interpret_only,
                code_bytes: 2 << 20,
                cold: random.pick(&[0, 0, 0, 2]),
                traces: random.pick(&[Some(2), Some(2), Some(8), None]),
                long_traces: random.pick(&[Some(1), Some(4), Some(40), None]),
                indirect_traces: !random.one_in(4),
                grouping: !random.one_in(4),
                crossing: !random.one_in(4),
                late_stack: !random.one_in(4),
                late_slots: !random.one_in(4),
                late_stores: !random.one_in(4),
                late_index: !random.one_in(4),
                prefetch: !random.one_in(4),
                exit_polls: !random.one_in(4),
                slot_registers: !random.one_in(4),
                sure_accesses: !random.one_in(4),
                hoisting: !random.one_in(4),
                whole_jumps: random.one_in(2),
                long_blocks: !random.one_in(4),
                memory_operands: !random.one_in(4),
                moving: !random.one_in(4),
                registers: random.pick(&[Some(1), Some(3), None]),
                returns: !random.one_in(4),
                prediction: random.pick(&[Some(1), Some(2), Some(64), None]),
                eager_prediction: !random.one_in(8),
                wide_reach: !random.one_in(4),
                gather: !random.one_in(4),
                ..EngineOptions::default()
            },
        }
    }
}

fn machine(setup: &Setup, seed: u64) -> Result<Machine, String> {
    Machine::new(MachineConfig {
        ram_bytes: RAM,
        copies: setup.copies,
        board: devices::BoardConfig {
            serials: [Some(Box::new(std::io::sink())), None, None, None],
            debug_exit: Some(devices::DebugExit::default()),
            ..Default::default()
        },
        model: Default::default(),
        engine: setup.engine.clone(),
        icount_shift: Some(0),
        seed,
        audit_every: None,
        acpi: true,
    })
    .map_err(|error| error.to_string())
}

/// Runs the guest of a seed. How it ended, and the machine afterwards.
fn guest(
    mode: Mode,
    seed: u64,
    interpret_only: bool,
    budget: u64,
) -> Result<(End, Machine, bool), String> {
    // Looking for a difference takes many runs: each has the watchdog's patience.
    CURRENT[1].store(mode as u64, Ordering::Relaxed);
    CURRENT[2].store(seed, Ordering::Relaxed);
    CURRENT[0].fetch_add(1, Ordering::Relaxed);
    let mut random = Random::new(seed ^ (mode as u64) << 56);
    let setup = Setup::draw(&mut random, interpret_only);
    let mut machine = machine(&setup, seed)?;
    let damage = setup.damage;
    setting::prepare(&mut machine, mode, &mut random);
    let (sender, events) = crossbeam::channel::unbounded::<HostEvent>();
    let kicker = Kicker::default();
    machine.set_kicker(kicker.clone());
    if let Ok(mut stop) = STOP.lock() {
        *stop = Some((sender, kicker));
    }
    let end = machine.run(&events, &mut |machine| {
        if !damage {
            return budget;
        }
        let now = machine.vcpu.instructions();
        let page = GuestPhys(random.below(RAM / PAGE_SIZE) * PAGE_SIZE);
        let lines = 1 << random.below(64);
        // Any copy: where no other is good, the guest gets a machine check.
        let copy = random.below(setup.copies as u64) as usize;
        machine
            .vcpu
            .mem
            .corrupt(page, copy, lines, &mut || random.next());
        (now + DAMAGE_EVERY).min(budget)
    });
    Ok((end, machine, damage))
}

/// What must be the same of two runs of a case.
#[derive(PartialEq, Eq)]
struct Outcome {
    text: String,
    flags: u64,
    memory: Vec<u8>,
}

fn outcome(end: &End, machine: &mut Machine) -> Outcome {
    let cpu = machine.vcpu.cpu();
    let text = format!(
        "{end:?} {} {:x?} {:x} {:?}",
        machine.vcpu.instructions(),
        cpu.gpr,
        cpu.rip,
        cpu.control
    );
    let flags = cpu.rflags();
    let mut memory = vec![0; RAM as usize];
    for page in (0..RAM).step_by(PAGE_SIZE as usize) {
        let bytes = &mut memory[page as usize..][..PAGE_SIZE as usize];
        machine.read_memory(GuestPhys(page), bytes);
    }
    Outcome {
        text,
        flags,
        memory,
    }
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse::<u64>().ok());
    pages.unwrap_or(0) * PAGE_SIZE
}

/// One case; an error says what did not hold.
pub fn case(mode: Mode, seed: u64, compare: bool, tally: &mut Tally) -> Result<(), String> {
    let name = MODES[mode as usize].0;
    let failed = |what: String| format!("{what}: --mode {name} --seed {seed} --cases 1");
    let run = || {
        std::panic::catch_unwind(|| guest(mode, seed, false, BUDGET))
            .map_err(|_| "panicked".to_owned())
            .flatten()
    };
    let (end, machine, damaged) = run().map_err(failed)?;
    let statistics = machine.vcpu.statistics();
    tally.translated += u64::from(statistics.translated > 0);
    tally.traced += u64::from(statistics.traces > 0);
    tally.single += u64::from(machine.vcpu.mem.copies() == 1);
    machine.audit().map_err(|error| failed(error.to_string()))?;
    tally.cases += 1;
    tally.instructions += machine.vcpu.instructions();
    tally.damaged += u64::from(damaged);
    match end {
        End::Goal => tally.ran_on += 1,
        End::TripleFault => tally.triple_faults += 1,
        End::Dead => tally.dead += 1,
        _ => tally.ended += 1,
    }
    if resident_bytes() > MEMORY_LIMIT {
        return Err(failed("takes too much memory".into()));
    }
    if compare {
        match first_difference(mode, seed).map_err(failed)? {
            Difference::None => tally.same += 1,
            Difference::Undefined => tally.undefined += 1,
            Difference::Found(what) => {
                tally.different += 1;
                println!("{}", failed(what));
            }
        }
    }
    Ok(())
}

/// Exceptions in a row that are followed.
const EXCEPTIONS: usize = 4;
/// Instructions of a block at the most.
const LONGEST_BLOCK: u64 = 64;

/// How two runs of a case differ.
enum Difference {
    /// Not at all.
    None,
    /// Perhaps by something that the manual leaves undefined.
    Undefined,
    /// As this says.
    Found(String),
}

/// Whether what these instructions do may depend on flags that one of them leaves undefined: some are
/// still so behind the last, or were read, or an exception has put them into a frame.
fn may_depend_on_undefined(insns: &[Option<Instruction>]) -> bool {
    let mut undefined = 0;
    for (index, insn) in insns.iter().enumerate() {
        let Some(insn) = insn else {
            // An exception: its frame holds the flags as they are.
            if undefined != 0 {
                return true;
            }
            continue;
        };
        let follower = insns.get(index + 1).copied().flatten();
        let transfers = match insn.flow_control() {
            FlowControl::Next => follower.is_none_or(|next| next.ip() != insn.next_ip()),
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => false,
            _ => true,
        };
        if undefined & insn.rflags_read() != 0 || undefined != 0 && transfers {
            return true;
        }
        undefined &= !(insn.rflags_written() | insn.rflags_cleared() | insn.rflags_set());
        undefined |= insn.rflags_undefined();
        // iced-x86 has a count of 9 or 17, all the way round, leave OF alone.
        if matches!(insn.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr) {
            undefined |= RflagsBits::OF;
        }
    }
    undefined != 0
}

/// Whether a repeated store has been executed that overwrote itself: when the processor notices is not defined.
fn is_overwritten(machine: &mut Machine, insn: &Instruction) -> bool {
    if !insn.is_string_instruction() || !(insn.has_rep_prefix() || insn.has_repne_prefix()) {
        return false;
    }
    let rip = std::mem::replace(&mut machine.vcpu.cpu_mut().rip, insn.ip());
    let there = dbt::decode::one(&mut machine.vcpu.context());
    machine.vcpu.cpu_mut().rip = rip;
    there.is_ok_and(|there| there != *insn)
}

/// Where the interpreted guest first differs from the translated one.
fn first_difference(mode: Mode, seed: u64) -> Result<Difference, String> {
    let differs = |budget: u64| -> Result<Option<(Outcome, Outcome)>, String> {
        let (end, mut translated, _) = guest(mode, seed, false, budget)?;
        // A guest that was given up may have come to any point.
        let given_up = matches!(end, End::Quit);
        let mine = outcome(&end, &mut translated);
        let (end, mut interpreted, _) = guest(mode, seed, true, budget)?;
        if given_up || matches!(end, End::Quit) {
            return Ok(None);
        }
        let theirs = outcome(&end, &mut interpreted);
        Ok((mine != theirs).then_some((mine, theirs)))
    };
    if differs(BUDGET)?.is_none() {
        return Ok(Difference::None);
    }
    let (mut same, mut different) = (0, BUDGET);
    while same + 1 < different {
        let middle = same.midpoint(different);
        if differs(middle)?.is_some() {
            different = middle;
        } else {
            same = middle;
        }
    }
    let Some((mine, theirs)) = differs(different)? else {
        return Ok(Difference::None);
    };
    // A goal within a block has its beginning interpreted: what differs may be anything since then.
    let mut insns = Vec::new();
    let mut insn = Err(dbt::guest::Exception::invalid_opcode());
    let mut last: Option<Instruction> = None;
    for before in different.saturating_sub(LONGEST_BLOCK)..different {
        let (_, mut machine, _) = guest(mode, seed, true, before)?;
        if last.is_some_and(|last| is_overwritten(&mut machine, &last)) {
            return Ok(Difference::Undefined);
        }
        // Behind an exception another instruction counts in its place.
        for exceptions in 0..=EXCEPTIONS {
            insn = dbt::decode::one(&mut machine.vcpu.context());
            let decoded = insn.as_ref().ok().copied();
            insns.push(decoded);
            if exceptions == 0 {
                last = decoded;
            }
            machine.vcpu.step();
            if machine.vcpu.instructions() != before {
                break;
            }
        }
    }
    if may_depend_on_undefined(&insns) {
        return Ok(Difference::Undefined);
    }
    let insn = match insn {
        Ok(insn) => insn.to_string(),
        Err(exception) => format!("{exception:?}"),
    };
    let before: String = (insns.iter().flatten())
        .map(|insn| format!("  {:x} {insn}\n", insn.ip()))
        .collect();
    let (ours, others) = (&mine.memory, &theirs.memory);
    let at = ours.iter().zip(others).position(|(a, b)| a != b);
    let memory = at.map_or(String::new(), |at| {
        let end = (at + 8).min(ours.len());
        format!(
            "memory at {at:#x}: {:02x?} {:02x?}\n",
            &ours[at..end],
            &others[at..end]
        )
    });
    Ok(Difference::Found(format!(
        "differs after {different} instructions, at {insn}:\n{:x} {}\n{:x} {}\n{memory}{before}",
        mine.flags, mine.text, theirs.flags, theirs.text
    )))
}
