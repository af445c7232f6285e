//! Boots a kernel twice at once, interpreted and translated, and compares the processors at
//! block ends: `lockstep KERNEL INITRD APPEND [INSTRUCTIONS]`.

use std::path::Path;
use std::process::ExitCode;

use dbt::EngineOptions;
use dbt::guest::CpuState;
use emulator::boot::Boot;
use emulator::machine::{End, HostEvent, Machine, MachineConfig};

struct Pair {
    interpreted: Machine,
    translated: Machine,
}

fn machine(args: &[String], interpret_only: bool) -> Result<Machine, String> {
    let mut machine = Machine::new(MachineConfig {
        ram_bytes: 256 << 20,
        copies: 2,
        board: devices::BoardConfig {
            serials: [Some(Box::new(std::io::sink())), None, None, None],
            ..Default::default()
        },
        model: Default::default(),
        engine: EngineOptions {
            interpret_only,
            ..Default::default()
        },
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

/// What differs between two processors.
fn difference(a: &CpuState, b: &CpuState) -> Option<String> {
    let mut found = Vec::new();
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    for (index, name) in NAMES.iter().enumerate() {
        if a.gpr[index] != b.gpr[index] {
            found.push(format!("{name} {:#x} {:#x}", a.gpr[index], b.gpr[index]));
        }
    }
    if a.rip != b.rip {
        found.push(format!("rip {:#x} {:#x}", a.rip, b.rip));
    }
    if a.vector.ymm != b.vector.ymm {
        found.push("vector registers".into());
    }
    if a.control != b.control {
        found.push(format!("control {:?} {:?}", a.control, b.control));
    }
    if a.segments != b.segments {
        found.push("segments".into());
    }
    (!found.is_empty()).then(|| found.join(", "))
}

fn advance(machine: &mut Machine, goal: u64) -> Result<(), String> {
    let (_keep, events) = crossbeam::channel::unbounded::<HostEvent>();
    match machine.run(&events, &mut |_| goal) {
        End::Goal => Ok(()),
        other => Err(format!("{other:?} at {}", machine.vcpu.instructions())),
    }
}

impl Pair {
    fn new(args: &[String]) -> Result<Pair, String> {
        Ok(Pair {
            interpreted: machine(args, true)?,
            translated: machine(args, false)?,
        })
    }

    fn advance(&mut self, goal: u64) -> Result<Option<String>, String> {
        let a = advance(&mut self.interpreted, goal);
        let b = advance(&mut self.translated, goal);
        let found = difference(self.interpreted.vcpu.cpu(), self.translated.vcpu.cpu());
        match (a, b, found) {
            (_, _, Some(found)) => Ok(Some(found)),
            (Err(a), Err(b), None) if a == b => Err(a),
            (Err(a), _, None) => Ok(Some(format!("interpreted: {a}"))),
            (_, Err(b), None) => Ok(Some(format!("translated: {b}"))),
            (Ok(()), Ok(()), None) => Ok(None),
        }
    }
}

fn run(args: &[String]) -> Result<(), String> {
    let limit: u64 = args.get(3).map_or(Ok(200_000_000), |text| {
        text.parse().map_err(|_| format!("{text} is no number"))
    })?;
    let mut start = 0;
    let mut step = 100_000;
    loop {
        let mut pair = Pair::new(args)?;
        if start > 0
            && let Some(found) = pair.advance(start)?
        {
            return Err(format!("differs already at {start}: {found}"));
        }
        let mut at = start;
        let found = loop {
            if at >= limit {
                println!("{at} instructions: equal");
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
    let mut pair = Pair::new(args)?;
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

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.len() < 3 {
        eprintln!("usage: lockstep KERNEL INITRD APPEND [INSTRUCTIONS]");
        return ExitCode::from(2);
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lockstep: {error}");
            ExitCode::FAILURE
        }
    }
}
