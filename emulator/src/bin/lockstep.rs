//! Boots a kernel twice at once, interpreted and translated, and compares the processors every
//! STEP instructions and the memory now and then:
//! `lockstep [-accel tcg,SETTINGS | -each-switch] KERNEL INITRD APPEND [INSTRUCTIONS [STEP]]`.
//!
//! All code is translated at its first visit, with every optimisation that is not switched off.
//! `-each-switch` does that with all, and then without each of them in turn.
//!
//! A flag that is undefined may differ: in EFLAGS, in an image of EFLAGS in a
//! register or in memory. Such a difference is counted; in a register it is also removed, so
//! that one that matters in the end shows elsewhere and is reported there.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use dbt::EngineOptions;
use dbt::guest::CpuState;
use emulator::boot::Boot;
use emulator::machine::{End, HostEvent, Machine, MachineConfig};
use emulator::options::{Options, Parsed, SWITCHES};
use mmu::GuestPhys;

const USAGE: &str = "usage: lockstep [-accel tcg,SETTINGS | -each-switch] \
                     KERNEL INITRD APPEND [INSTRUCTIONS [STEP]]";
const RAM: u64 = 256 << 20;
/// Instructions between two comparisons of the memories.
const MEMORY_EVERY: u64 = 25_000_000;
/// CF, PF, AF, ZF, SF and OF. Some instructions leave some of them undefined, and nobody follows
/// which here. Whatever reads a flag makes a wrong one show elsewhere.
const UNDEFINED: u64 = 0x8d5;
/// The accessed bit of a page-table entry: when it is set again after a guest has cleared it
/// without telling the TLB depends on the TLB.
const ACCESSED: u64 = 0x20;

/// The translator, and where its translations are kept from run to run.
type Engine = (EngineOptions, Option<PathBuf>);

struct Pair {
    interpreted: Machine,
    translated: Machine,
    /// Comparisons after which undefined flags differed.
    undefined: u64,
    /// The instruction count of the next comparison of the memories.
    next_memory: u64,
}

/// Whether two words are images of EFLAGS (bit 1 set; bits 3, 5 and 15 and those above ID clear)
/// that differ in flags that may be undefined.
fn images_of_flags(a: u64, b: u64) -> bool {
    let image = |word: u64| word & !0x3f_7fd5 == 2;
    (a ^ b) & !UNDEFINED == 0 && image(a) && image(b)
}

fn machine(args: &[String], engine: EngineOptions) -> Result<Machine, String> {
    let mut machine = Machine::new(MachineConfig {
        ram_bytes: RAM,
        copies: 2,
        board: devices::BoardConfig {
            serials: [Some(Box::new(std::io::sink())), None, None, None],
            ..Default::default()
        },
        model: Default::default(),
        engine,
        icount_shift: Some(0),
        seed: 1,
        audit_every: None,
        acpi: true,
    })
    .map_err(|error| error.to_string())?;
    let initrd = Some(Path::new(&args[1])).filter(|path| !path.as_os_str().is_empty());
    let boot = Boot::Kernel {
        kernel: args[0].clone().into(),
        initrd: initrd.map(Path::to_path_buf),
        command_line: args[2].clone(),
    };
    boot.load(&mut machine.vcpu)
        .map_err(|error| error.to_string())?;
    Ok(machine)
}

/// What differs between two processors, and what is taken over because it was undefined.
fn difference(a: &CpuState, b: &mut CpuState, undefined: &mut u64) -> Option<String> {
    let mut found = Vec::new();
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    for (index, name) in NAMES.iter().enumerate() {
        let (left, right) = (a.gpr[index], b.gpr[index]);
        if left != right && images_of_flags(left, right) {
            *undefined += 1;
            b.gpr[index] = left;
        } else if left != right {
            found.push(format!("{name} {left:#x} {right:#x}"));
        }
    }
    if a.rip != b.rip {
        found.push(format!("rip {:#x} {:#x}", a.rip, b.rip));
    }
    *undefined += u64::from(a.arithmetic_flags != b.arithmetic_flags);
    let mut same = |what: &str, same: bool| {
        if !same {
            found.push(what.to_string());
        }
    };
    same("vector registers", a.vector.ymm == b.vector.ymm);
    same("MXCSR", a.vector.mxcsr == b.vector.mxcsr);
    // FXSAVE image: FCW, FSW, tags; registers. In between may be what the host left there.
    let (left, right) = (&a.vector.fxsave.0, &b.vector.fxsave.0);
    same("x87 control", left[..5] == right[..5]);
    same("x87 registers", left[32..160] == right[32..160]);
    same("x87 pointers", a.vector.pointers == b.vector.pointers);
    same("system flags", a.system_flags == b.system_flags);
    same("IF", a.interrupt_flag == b.interrupt_flag);
    same("DF", a.direction_flag == b.direction_flag);
    same("interrupt shadow", a.interrupt_shadow == b.interrupt_shadow);
    same("halted", a.halted == b.halted);
    same("segments", a.segments == b.segments);
    same("MSRs", a.msrs == b.msrs);
    if a.control != b.control {
        found.push(format!("control {:?} {:?}", a.control, b.control));
    }
    (!found.is_empty()).then(|| found.join(", "))
}

/// The first words of memory that differ beyond what is undefined.
fn memory_difference(a: &mut Machine, b: &mut Machine) -> Option<String> {
    let (mut left, mut right) = ([0; 4096], [0; 4096]);
    let mut found = Vec::new();
    for page in (0..RAM).step_by(left.len()).map(GuestPhys) {
        if !a.read_memory(page, &mut left) || !b.read_memory(page, &mut right) || left == right {
            continue;
        }
        let words = left.as_chunks::<8>().0.iter().zip(right.as_chunks::<8>().0);
        for (at, (l, r)) in words.enumerate() {
            let (l, r) = (u64::from_le_bytes(*l), u64::from_le_bytes(*r));
            let halves = [(l as u32, r as u32), ((l >> 32) as u32, (r >> 32) as u32)];
            let undefined = |(l, r): (u32, u32)| l == r || images_of_flags(l.into(), r.into());
            let entry = l ^ r == ACCESSED && l & 1 != 0;
            if !entry && !halves.into_iter().all(undefined) {
                found.push(format!("{:#x}: {l:#x} {r:#x}", page.0 + at as u64 * 8));
            }
        }
    }
    let count = found.len();
    found.truncate(8);
    (count > 0).then(|| format!("{count} words of memory, at {}", found.join(", ")))
}

fn advance(machine: &mut Machine, goal: u64) -> Result<(), String> {
    let (_keep, events) = crossbeam::channel::unbounded::<HostEvent>();
    match machine.run(&events, &mut |_| goal) {
        End::Goal => Ok(()),
        other => Err(format!("{other:?} at {}", machine.vcpu.instructions())),
    }
}

impl Pair {
    fn new(args: &[String], (engine, code_cache): &Engine) -> Result<Pair, String> {
        let interpreter = EngineOptions {
            interpret_only: true,
            ..EngineOptions::default()
        };
        let mut translated = machine(args, engine.clone())?;
        if let Some(directory) = code_cache {
            translated.vcpu.keep_code_in(directory);
        }
        Ok(Pair {
            interpreted: machine(args, interpreter)?,
            translated,
            undefined: 0,
            next_memory: MEMORY_EVERY,
        })
    }

    fn advance(&mut self, goal: u64) -> Result<Option<String>, String> {
        let a = advance(&mut self.interpreted, goal);
        let b = advance(&mut self.translated, goal);
        let mut found = difference(
            self.interpreted.vcpu.cpu(),
            self.translated.vcpu.cpu_mut(),
            &mut self.undefined,
        );
        if found.is_none() && goal >= self.next_memory {
            self.next_memory = goal + MEMORY_EVERY;
            found = memory_difference(&mut self.interpreted, &mut self.translated);
            eprintln!("{goal} instructions");
        }
        match (a, b, found) {
            (_, _, Some(found)) => Ok(Some(found)),
            (Err(a), Err(b), None) if a == b => Err(a),
            (Err(a), _, None) => Ok(Some(format!("interpreted: {a}"))),
            (_, Err(b), None) => Ok(Some(format!("translated: {b}"))),
            (Ok(()), Ok(()), None) => Ok(None),
        }
    }
}

fn number(args: &[String], index: usize, usual: u64) -> Result<u64, String> {
    args.get(index).map_or(Ok(usual), |text| {
        text.parse().map_err(|_| format!("{text} is no number"))
    })
}

fn run(args: &[String], engine: &Engine) -> Result<(), String> {
    let limit = number(args, 3, 200_000_000)?;
    let mut step = number(args, 4, 1000)?.max(1);
    let mut start = 0;
    loop {
        let mut pair = Pair::new(args, engine)?;
        if start > 0
            && let Some(found) = pair.advance(start)?
        {
            return Err(format!("differs already at {start}: {found}"));
        }
        let mut at = start;
        let found = loop {
            if at >= limit {
                println!(
                    "{at} instructions: equal; undefined flags differed {} times",
                    pair.undefined
                );
                println!("translated: {:?}", pair.translated.vcpu.statistics());
                let kept = pair.translated.vcpu.keep_code(1);
                kept.map_err(|error| format!("code-cache: {error}"))?;
                return Ok(());
            }
            if let Some(found) = pair.advance(at + step)? {
                break found;
            }
            at += step;
        };
        println!("between {at} and {}: {found}", at + step);
        start = at;
        if step <= 100 {
            break;
        }
        step = if step > 2000 { 2000 } else { 100 };
    }
    let mut pair = Pair::new(args, engine)?;
    pair.advance(start)?;
    let machine = &mut pair.interpreted;
    for count in 1..=100 {
        let rip = machine.vcpu.cpu().rip;
        let text = match dbt::decode::one(&mut machine.vcpu.context()) {
            Ok(insn) => insn.to_string(),
            Err(exception) => format!("{exception:?}"),
        };
        println!(
            "{rip:#x} {text}  rax={:x} rcx={:x} flags={:x}",
            machine.vcpu.cpu().gpr[0],
            machine.vcpu.cpu().gpr[1],
            machine.vcpu.cpu().arithmetic_flags
        );
        advance(machine, start + count)?;
    }
    Err("the processors differ".into())
}

/// The translator that a value of -accel asks for, and where its translations are kept.
fn engine(accel: &str) -> Result<Engine, String> {
    let (name, settings) = accel.split_once(',').unwrap_or((accel, ""));
    let mut words = format!("{name},code-cache=off,cold=off,eager-prediction=on");
    if !settings.is_empty() {
        words += &format!(",{settings}");
    }
    match Options::parse(["-accel".to_string(), words])? {
        Parsed::Run(options) if options.interpret => {
            Err(format!("{name} is what the translator is compared with"))
        }
        Parsed::Run(options) => Ok((options.engine, options.code_cache)),
        Parsed::Print(text) => Err(text),
    }
}

fn each_switch(args: &[String]) -> Result<(), String> {
    run(args, &engine("tcg")?)?;
    for switch in SWITCHES {
        let accel = format!("tcg,{}=off", switch.name());
        println!("{accel}");
        run(args, &engine(&accel)?).map_err(|error| format!("{accel}: {error}"))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let (each, accel, rest) = match words[..] {
        ["-each-switch", ..] => (true, "tcg", &args[1..]),
        ["-accel", accel, ..] => (false, accel, &args[2..]),
        _ => (false, "tcg", &args[..]),
    };
    if rest.len() < 3 {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    let compared = match each {
        true => each_switch(rest),
        false => engine(accel).and_then(|engine| run(rest, &engine)),
    };
    match compared {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lockstep: {error}");
            ExitCode::FAILURE
        }
    }
}
