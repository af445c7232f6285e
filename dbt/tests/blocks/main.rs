//! The translator against the interpreter: random programs have to end in the same state, with
//! all copies of memory equal, and where instructions are counted, after every number of them.
//!
//! `DBT_BLOCKS_CASES` sets how many programs a mode gets, `DBT_BLOCKS_SEED` where they start;
//! `DBT_BLOCKS_REPLAY` runs one only: width, setting and operations as a failure shows them.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod arriving;
mod calls;
#[path = "../common/mod.rs"]
mod common;
mod counting;
mod crossing;
mod elements;
mod indirect;
mod instruction;
mod keeping;
mod late_index;
mod late_stores;
mod long_blocks;
mod machine;
mod masked;
mod narrow;
mod operation;
mod passing;
mod places;
mod precise;
mod program;
mod reach;
mod reference;
mod second_places;
mod segment_loads;
mod side_by_side;
mod slots;
mod state;
mod strings;
mod tables;
mod traces;
mod undefined;
mod x87;

use std::cell::RefCell;
use std::fmt::Write;

use common::{Random, run_for, setting};
use dbt::guest::flags;
use dbt::{EngineOptions, Stop};
use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use machine::Machine;
use program::{Program, Recipe};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use reference::Moment;
use tables::HANDLER_STACK;

/// The engines that one program is run on.
struct Bench {
    interpreter: Machine,
    translator: Machine,
    counted: Machine,
    used: u32,
    tally: Tally,
}

/// The optimisations have to be right together and one without the other: how they are switched
/// where programs run with so many copies of memory. Loops are short here, so what depends on
/// being visited often has to begin early.
fn switches(copies: usize) -> EngineOptions {
    let (grouping, traces, cold, prediction, precise_flags) = match copies {
        1 => (false, Some(2), 0, Some(1), true),
        2 => (true, None, 0, None, true),
        3 => (true, Some(2), 1, Some(2), false),
        _ => (false, None, 1, Some(1), true),
    };
    EngineOptions {
        grouping,
        // Each way with half of the other switches.
        system_inline: !copies.is_multiple_of(3),
        memory_inline: copies != 4,
        vector_strings: copies != 2,
        large_code: copies != 3,
        pcid_tlb: copies < 3,
        second_places: copies != 4,
        returns: copies.is_multiple_of(2),
        traces,
        cold,
        precise_flags,
        lazy_flags: copies != 1,
        long_traces: [Some(2), Some(1), None, Some(5)][copies - 1],
        samples: false,
        indirect_traces: copies != 4,
        prediction,
        eager_prediction: true,
        wide_reach: copies != 1,
        gather: copies != 2,
        // Traces are made with one and with three copies.
        crossing: copies != 2,
        late_stack: copies != 4,
        late_slots: copies != 3,
        late_stores: copies != 4,
        late_index: copies != 2,
        prefetch: copies != 3,
        exit_polls: copies != 1,
        slot_registers: copies != 4,
        hoisting: copies != 3,
        whole_jumps: copies != 1,
        memory_operands: copies != 2,
        long_blocks: copies.is_multiple_of(2),
        moving: copies != 3,
        registers: (copies != 1).then_some(1),
        ..EngineOptions::default()
    }
}

/// What became of the programs: if most said nothing the test would be worth little.
#[derive(Default, Debug)]
struct Tally {
    programs: u64,
    told: u64,
    faulted: u64,
    instructions: u64,
    /// Loops whose registers changed places.
    allotted: u64,
}

impl Bench {
    /// With one to four copies of memory where instructions are counted.
    fn new(copies: usize) -> Bench {
        let options = |counted, interpret_only| EngineOptions {
            counted,
            interpret_only,
            // The interpreter forgets what it may, so that others that keep too much differ.
            pcid_tlb: !interpret_only,
            traces: Some(2),
            long_traces: Some(3),
            samples: false,
            registers: Some(1),
            cold: 0,
            ..EngineOptions::default()
        };
        let counted = EngineOptions {
            counted: true,
            ..switches(copies)
        };
        Bench {
            interpreter: Machine::new(options(true, true), 2),
            translator: Machine::new(options(false, false), 2),
            counted: Machine::new(counted, copies),
            used: 0,
            tally: Tally::default(),
        }
    }
}

fn listing(recipe: &Recipe, program: &Program) -> String {
    let mut text = format!(
        "{recipe:x?}\nring {} cr0+{:#x} cr4-{:#x} maps_holes {} flags {:#x} on demand {} smap {} pcid {} interrupts {:?}\n",
        program.ring,
        program.cr0,
        program.cr4_off,
        program.maps_holes,
        program.flags,
        program.code_on_demand,
        program.smap,
        program.pcid,
        program.interrupts
    );
    for (index, value) in program.gpr.iter().enumerate() {
        let _ = write!(text, "r{index}={value:#x} ");
    }
    text.push('\n');
    let mut decoder = Decoder::with_ip(
        program.bits,
        &program.code,
        program.start,
        DecoderOptions::NONE,
    );
    while decoder.can_decode() {
        let insn = decoder.decode();
        let from = (insn.ip() - program.start) as usize;
        let bytes: String = program.code[from..from + insn.len()]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let _ = writeln!(text, "{:#x} {bytes:<24} {insn}", insn.ip());
    }
    text
}

fn compare_registers(what: &str, expected: &Moment, actual: &Machine, text: &mut String) {
    let cpu = actual.vcpu.cpu();
    for (number, (theirs, ours)) in expected.gpr.iter().zip(cpu.gpr).enumerate() {
        if *theirs != ours {
            let _ = writeln!(text, "{what}: r{number} {ours:#x}, interpreter {theirs:#x}");
        }
    }
    if cpu.rip != expected.rip {
        let _ = writeln!(
            text,
            "{what}: rip {:#x}, interpreter {:#x}",
            cpu.rip, expected.rip
        );
    }
    let mask = !expected.undefined;
    if (cpu.rflags() ^ expected.rflags) & mask != 0 {
        let _ = writeln!(
            text,
            "{what}: rflags {:#x}, interpreter {:#x} (undefined {:#x})",
            cpu.rflags(),
            expected.rflags,
            expected.undefined
        );
    }
}

/// Everything else: vector state, CR2, memory, what the device saw, the copies. `frame`: flags
/// that mean nothing in the last exception frame.
fn compare_rest(what: &str, frame: u64, bench: (&mut Machine, &mut Machine), text: &mut String) {
    let (expected, actual) = bench;
    let (theirs, ours) = (expected.vcpu.cpu(), actual.vcpu.cpu());
    for number in 0..16 {
        let (theirs, ours) = (theirs.vector.ymm[number], ours.vector.ymm[number]);
        if theirs != ours {
            let _ = writeln!(
                text,
                "{what}: ymm{number} {ours:x?}, interpreter {theirs:x?}"
            );
        }
    }
    let (a, b) = (&theirs.vector, &ours.vector);
    if a.mxcsr != b.mxcsr {
        let _ = writeln!(
            text,
            "{what}: mxcsr {:#x}, interpreter {:#x}",
            b.mxcsr, a.mxcsr
        );
    }
    if a.fxsave.0[..160] != b.fxsave.0[..160] {
        let (a, b) = (&a.fxsave.0[..160], &b.fxsave.0[..160]);
        let _ = writeln!(text, "{what}: x87 {b:x?}, interpreter {a:x?}");
    }
    if a.pointers != b.pointers {
        let (a, b) = (&a.pointers, &b.pointers);
        let _ = writeln!(text, "{what}: x87 pointers {b:x?}, interpreter {a:x?}");
    }
    if theirs.control != ours.control {
        let (a, b) = (&theirs.control, &ours.control);
        let _ = writeln!(text, "{what}: control {b:x?}, interpreter {a:x?}");
    }
    if theirs.segments != ours.segments {
        let _ = writeln!(text, "{what}: segments differ");
    }
    let when = actual.counts();
    let (a, b) = (expected.accesses(when), actual.accesses(when));
    if a != b {
        let _ = writeln!(text, "{what}: device {b:x?}, interpreter {a:x?}");
    }
    let (mut theirs, mut ours) = (expected.memory(), actual.memory());
    // The flags in the exception frame: whatever size it has, they are at one of these.
    for at in [HANDLER_STACK as usize - 24, HANDLER_STACK as usize - 12] {
        for memory in [&mut theirs, &mut ours] {
            memory[at] &= !(frame as u8);
            memory[at + 1] &= !((frame >> 8) as u8);
        }
    }
    let differences: Vec<usize> = (0..ours.len())
        .filter(|&at| ours[at] != theirs[at])
        .collect();
    for &at in differences.iter().take(8) {
        let _ = writeln!(
            text,
            "{what}: memory at physical {at:#x} is {:#x}, interpreter {:#x}",
            ours[at], theirs[at]
        );
    }
    if let Err(error) = actual.vcpu.mem.audit() {
        let _ = writeln!(text, "{what}: the copies differ: {error}");
    }
}

/// Runs one program everywhere; what differs, or `None` if it says nothing.
fn check(bench: &mut Bench, recipe: &Recipe) -> Option<String> {
    let program = recipe.build();
    let mut text = String::new();
    bench.interpreter.set_up(&program);
    let before = bench.interpreter.vcpu.instructions();
    bench.tally.programs += 1;
    let run = reference::run(&mut bench.interpreter, &program)?;
    let executed = bench.interpreter.vcpu.instructions() - before;
    bench.tally.told += 1;
    let allotted = |bench: &Bench| bench.translator.vcpu.statistics().allotted;
    let allotted_before = allotted(bench);
    bench.tally.faulted += u64::from(run.faulted);
    bench.tally.instructions += executed;
    let last = run.moments.last()?;

    // Interrupts come at exact points only where instructions are counted.
    if program.interrupts.is_empty() {
        bench.translator.set_up(&program);
        let stop = bench.translator.vcpu.run();
        if stop != Stop::Halted {
            let _ = writeln!(text, "translator: stopped for {stop:?}");
        }
        compare_registers("translator", last, &bench.translator, &mut text);
        bench.tally.allotted += allotted(bench) - allotted_before;
        let pair = (&mut bench.interpreter, &mut bench.translator);
        compare_rest("translator", run.frame_undefined, pair, &mut text);
    }

    // Imprecise flags may be lost wherever the code has no use for them; a store to the code ahead
    // may find a use.
    let precise = bench.counted.precise_flags;
    let forgiven = if precise { 0 } else { flags::ARITHMETIC };
    if !precise && program.writes_itself {
        return (!text.is_empty()).then(|| listing(recipe, &program) + &text);
    }
    bench.counted.set_up(&program);
    let mut random = Random::new(recipe.setting ^ 0x5555);
    let start = bench.counted.vcpu.instructions();
    let chunk = 1 + random.below(20);
    let mut goal = start;
    loop {
        goal += 1 + random.below(chunk);
        let done = (bench.counted.vcpu.instructions() - start) as usize;
        if program.interrupts.contains(&done) {
            bench.counted.interrupt.set(true);
        }
        if let Some(next) = program.interrupts.iter().find(|&&at| at > done) {
            goal = goal.min(start + *next as u64);
        }
        bench.counted.vcpu.set_goal(goal);
        let stop = bench.counted.vcpu.run();
        let done = bench.counted.vcpu.instructions() - start;
        match stop {
            Stop::Budget if bench.counted.vcpu.cpu().halted == 0 => {
                if done != goal - start {
                    let _ = writeln!(text, "counted: {done} done, {} allowed", goal - start);
                    break;
                }
                let Some(mut expected) = run.moments.get(done as usize).cloned() else {
                    let _ = writeln!(text, "counted: {done} of {executed} and not halted");
                    break;
                };
                expected.undefined |= forgiven;
                let what = format!("counted, after {done}");
                compare_registers(&what, &expected, &bench.counted, &mut text);
                if !text.is_empty() {
                    break;
                }
            }
            Stop::Budget | Stop::Halted => {
                if done != executed {
                    let _ = writeln!(text, "counted: {done} instructions of {executed}");
                }
                let mut last = last.clone();
                let mut frame = run.frame_undefined;
                if run.faulted || !program.interrupts.is_empty() {
                    last.undefined |= forgiven;
                    frame |= forgiven;
                }
                compare_registers("counted", &last, &bench.counted, &mut text);
                let pair = (&mut bench.interpreter, &mut bench.counted);
                compare_rest("counted", frame, pair, &mut text);
                break;
            }
            other => {
                let _ = writeln!(text, "counted: stopped for {other:?}");
                break;
            }
        }
    }
    (!text.is_empty()).then(|| listing(recipe, &program) + &text)
}

/// One program from its description: numbers in base 16, as a failure shows them.
fn replay(text: &str) -> Option<Recipe> {
    let numbers: Vec<u64> = text
        .split(|c: char| !c.is_ascii_hexdigit())
        .filter_map(|word| u64::from_str_radix(word, 16).ok())
        .collect();
    let (&bits, rest) = numbers.split_first()?;
    let (&setting, operations) = rest.split_first()?;
    Some(Recipe {
        bits: bits as u32,
        setting,
        operations: operations.to_vec(),
    })
}

fn explore(bits: u32, salt: u64) {
    if let Ok(text) = std::env::var("DBT_BLOCKS_REPLAY") {
        let recipe = replay(&text).expect("bits, setting, operations");
        eprintln!("{}", listing(&recipe, &recipe.build()));
        if let Some(text) = check(&mut Bench::new(2), &recipe) {
            panic!("{text}");
        }
        return;
    }
    let cases = setting("DBT_BLOCKS_CASES", 400) as u32;
    let seed = setting("DBT_BLOCKS_SEED", 1).wrapping_add(salt);
    let verbose = std::env::var_os("DBT_BLOCKS_VERBOSE").is_some();
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 3000,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let strategy = (
        any::<u64>().no_shrink(),
        proptest::collection::vec(any::<u64>().no_shrink(), 1..40),
    );
    let bench = RefCell::new(Bench::new(1));
    let outcome = runner.run(&strategy, |(setting, operations)| {
        let recipe = Recipe {
            bits,
            setting,
            operations,
        };
        let mut bench = bench.borrow_mut();
        bench.used += 1;
        if bench.used % 256 == 128 {
            let (tally, used) = (std::mem::take(&mut bench.tally), bench.used);
            *bench = Bench::new(1 + bench.used as usize / 256 % 4);
            (bench.tally, bench.used) = (tally, used);
        }
        if verbose {
            eprintln!("{}", listing(&recipe, &recipe.build()));
        }
        match check(&mut bench, &recipe) {
            None => Ok(()),
            Some(text) => {
                let copies = bench.counted.vcpu.mem.copies();
                *bench = Bench::new(copies);
                Err(TestCaseError::fail(text))
            }
        }
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let tally = &bench.borrow().tally;
    eprintln!("{bits} bits: {tally:?}");
    assert!(tally.told * 2 > tally.programs, "most programs say nothing");
    if bits == 64 && cases >= 100 {
        assert!(tally.allotted > 0, "no loop has registers in other places");
    }
}

#[test]
fn programs_of_64_bits() {
    explore(64, 0);
}

#[test]
fn programs_of_32_bits() {
    explore(32, 1 << 32);
}

/// What the programs are made of: nothing of importance may never be drawn.
#[test]
fn programs_have_everything() {
    let mut seen = std::collections::HashSet::new();
    let mut random = Random::new(7);
    for _ in 0..3000 {
        let recipe = Recipe {
            bits: 64,
            setting: random.next(),
            operations: (0..30).map(|_| random.next()).collect(),
        };
        let program = recipe.build();
        assert_eq!(program.flags & !flags::ARITHMETIC, 0);
        let mut decoder = Decoder::with_ip(64, &program.code, program.start, DecoderOptions::NONE);
        while decoder.can_decode() {
            seen.insert(decoder.decode().mnemonic());
        }
    }
    use Mnemonic::*;
    #[rustfmt::skip]
    let wanted = [
        Adc, Add, And, Bsf, Bsr, Bswap, Bt, Btc, Btr, Bts, Call, Cdq, Cmova, Cmp, Cmpxchg, Cqo,
        Cwde, Dec, Div, Fadd, Fld, Fstp, Idiv, Imul, Inc, Ja, Je, Jmp, Lahf, Lea, Leave, Mov,
        Movaps, Movbe, Movdqu, Movsb, Movss, Movsx, Movsxd, Movzx, Mul, Neg, Not, Or, Paddb,
        Pextrd, Pop, Push, Pushfq, Rcl, Rcr, Ret, Rol, Sahf, Sar, Sbb, Scasb, Seta, Shl, Shld, Shr,
        Stosb, Sub, Test, Vaddps, Vmovdqu, Vpshufb, Xadd, Xchg, Xor,
    ];
    let missing: Vec<_> = wanted.iter().filter(|m| !seen.contains(m)).collect();
    assert!(missing.is_empty(), "never drawn: {missing:?}");
}

/// Loops that never end, each by another kind of jump, stop when they are asked to.
#[test]
fn endless_loops_can_be_stopped() {
    let loops: [(&str, &[u8]); 6] = [
        ("jmp to itself", &[0xeb, 0xfe]),
        ("jcc back", &[0x31, 0xc0, 0x74, 0xfc]),
        // lea rax, [rip - 7]; jmp rax
        (
            "indirect",
            &[0x48, 0x8d, 0x05, 0xf9, 0xff, 0xff, 0xff, 0xff, 0xe0],
        ),
        // call next; pop rax; jmp start
        ("call", &[0xe8, 0, 0, 0, 0, 0x58, 0xeb, 0xf8]),
        // lea rax, [rip - 7]; push rax; ret
        (
            "return",
            &[0x48, 0x8d, 0x05, 0xf9, 0xff, 0xff, 0xff, 0x50, 0xc3],
        ),
        ("helper", &[0x0f, 0xa2, 0xeb, 0xfc]),
    ];
    for counted in [false, true] {
        for (name, code) in loops {
            let recipe = Recipe {
                bits: 64,
                setting: 4,
                operations: Vec::new(),
            };
            let mut program = recipe.build();
            program.memory[0].1[..code.len()].copy_from_slice(code);
            program.start = machine::CODE;
            program.interrupts.clear();
            program.code_on_demand = false;
            let options = EngineOptions {
                counted,
                traces: Some(2),
                cold: 0,
                ..EngineOptions::default()
            };
            let mut machine = Machine::new(options, 2);
            machine.set_up(&program);
            let goal = machine.vcpu.instructions() + 1_000_000;
            if counted {
                machine.vcpu.set_goal(goal);
                assert_eq!(machine.vcpu.run(), Stop::Budget, "{name}");
                assert_eq!(machine.vcpu.instructions(), goal, "{name}");
                continue;
            }
            assert_eq!(run_for(&mut machine.vcpu, 5), Stop::Requested, "{name}");
        }
    }
}

/// Jumps to addresses where nothing can be: the empty entries of look-up tables hold some.
#[test]
fn jumps_to_nowhere() {
    for target in [0, 1, 1 << 63, 1 << 47, u64::MAX, 0x8000_0000_0000_1000] {
        let recipe = Recipe {
            bits: 64,
            setting: 4,
            operations: Vec::new(),
        };
        // mov rax, target; then jmp rax, call rax, or push rax; ret
        for last in [&[0xff, 0xe0][..], &[0xff, 0xd0], &[0x50, 0xc3]] {
            let mut program = recipe.build();
            let mut code = vec![0x48, 0xb8];
            code.extend(u64::to_le_bytes(target));
            code.extend(last);
            // Not at the start of the page, whose slot an empty address would share.
            program.memory[0].1[16..16 + code.len()].copy_from_slice(&code);
            program.start = machine::CODE + 16;
            program.interrupts.clear();
            program.code_on_demand = false;
            let mut ends = Vec::new();
            for interpret_only in [true, false] {
                let options = EngineOptions {
                    interpret_only,
                    cold: 0,
                    ..EngineOptions::default()
                };
                let mut machine = Machine::new(options, 2);
                machine.set_up(&program);
                assert_eq!(machine.vcpu.run(), Stop::Halted);
                ends.push((machine.vcpu.cpu().gpr, machine.vcpu.cpu().rip));
            }
            assert_eq!(ends[0], ends[1], "{target:#x} by {last:x?}");
        }
    }
}
