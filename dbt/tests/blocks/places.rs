//! Hot loops whose registers change places: whoever looks, wherever the loop is left, finds each
//! register in its own.

use dbt::{EngineOptions, Stop};
use iced_x86::code_asm::*;

use crate::common::run_for;
use crate::machine::{CODE, DEVICE, HOLE, Machine};
use crate::program::Program;
use crate::side_by_side::looping_in;

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// What the loops do in the middle. All of them use R8 to R11 often; RBP, R12, R14 and R15 hold
/// values that must stay.
const MIDDLES: &[(&str, Code)] = &[
    ("nothing", |_| Ok(())),
    ("an instruction for the interpreter", |a| {
        a.cpuid()?;
        a.add(r9, rbx)
    }),
    ("one that shows registers", |a| {
        a.xchg(byte_ptr(rdi + 9), r10b)?;
        a.cmpxchg16b(ptr(rdi + 32))
    }),
    ("strings", |a| {
        a.mov(r8, rdi)?;
        a.mov(r9, rcx)?;
        a.mov(ecx, 5)?;
        a.rep().stosd()?;
        a.lea(rsi, ptr(r8 + 3))?;
        a.mov(ecx, 3)?;
        a.rep().movsb()?;
        a.mov(rdi, r8)?;
        a.mov(rcx, r9)
    }),
    ("bit strings", |a| {
        a.mov(eax, r9d)?;
        a.and(eax, 0x7ff)?;
        a.bts(dword_ptr(rdi + r11 + 0x400), eax)?;
        a.adc(r9d, r10d)?;
        a.mov(ebx, r10d)?;
        a.and(ebx, 0x7ff)?;
        a.bt(dword_ptr(rdi + 0x400), ebx)
    }),
    ("a device", |a| a.add(dword_ptr(DEVICE + 0x10), r11d)),
    ("an access that crosses a page", |a| {
        a.add(r8, qword_ptr(rdi + 0xffb))?;
        a.mov(qword_ptr(rdi + 0x1ffd), r8)
    }),
    ("pages that are met for the first time", |a| {
        a.mov(rax, r10)?;
        a.and(eax, 0x3f80)?;
        a.add(r9, qword_ptr(rdi + rax))
    }),
    ("push and pop", |a| {
        a.push(r9)?;
        a.push(qword_ptr(rdi + r11 * 1 + 8))?;
        a.pop(rax)?;
        a.pop(r10)
    }),
    ("high bytes", |a| {
        a.mov(ah, bh)?;
        a.add(bh, ah)?;
        a.movzx(r9d, bl)
    }),
    ("shifts by CL", |a| {
        a.lea(rcx, ptr(r9 + 3))?;
        a.rol(r8, cl)?;
        a.shld(r9, r10, cl)
    }),
    ("wide multiplication", |a| {
        a.mov(rax, r9)?;
        a.mul(r10)?;
        a.add(r8, rdx)
    }),
    ("a string instruction", |a| {
        a.lea(rsi, ptr(rdi + 0x80))?;
        a.movsb()?;
        a.dec(rdi)
    }),
    ("flags that are kept over a check", |a| {
        a.sub(r9d, r10d)?;
        a.mov(eax, dword_ptr(rdi + 4))?;
        a.adc(r8d, r9d)
    }),
    ("flags that a frame shows", |a| {
        a.pushfq()?;
        a.pop(rax)?;
        a.add(r8, rax)
    }),
    ("vectors", |a| {
        a.movq(xmm1, r9)?;
        a.paddq(xmm1, xmmword_ptr(rdi))?;
        a.movq(r10, xmm1)
    }),
    ("a branch that is taken now and then", |a| {
        let mut past = a.create_label();
        a.test(r11b, 7)?;
        a.jne(past)?;
        a.xor(r8, r9)?;
        a.set_label(&mut past)?;
        a.add(r10, 1)
    }),
    ("its own code changes", |a| {
        // The constant of the instruction at `CHANGING`.
        a.mov(eax, r11d)?;
        a.and(eax, 3)?;
        a.mov(byte_ptr(CHANGING + 3), al)
    }),
    ("a division that fails at last", |a| {
        a.mov(eax, r9d)?;
        a.xor(edx, edx)?;
        a.lea(ebx, ptr(r11 - 90))?;
        a.div(ebx)
    }),
    ("a misaligned vector at last", |a| {
        a.mov(eax, r11d)?;
        a.shr(eax, 6)?;
        a.movaps(xmm0, xmmword_ptr(rdi + rax))
    }),
    ("a page that is missing at last", |a| {
        a.mov(rax, r11)?;
        a.shl(rax, 7)?;
        a.add(qword_ptr(rax + HOLE as i32 - 95 * 128), r9)
    }),
];

/// `add r8, constant` at the head of every loop.
pub const CHANGING: u64 = CODE + 0x40;

/// How a loop goes on and ends: R11 counts its rounds.
const ENDS: &[(&str, Code)] = &[
    ("a condition", |a| {
        a.inc(r11)?;
        a.cmp(r11, 120)?;
        a.jb(CHANGING)
    }),
    ("a jump", |a| {
        let mut out = a.create_label();
        a.add(r11, 1)?;
        a.cmp(r11d, 119)?;
        a.ja(out)?;
        a.jmp(CHANGING)?;
        a.set_label(&mut out)?;
        a.zero_bytes()
    }),
    ("a way back in the middle", |a| {
        a.inc(r11)?;
        a.test(r11b, 3)?;
        a.jne(CHANGING)?;
        a.lea(r9, ptr(r9 + r8))?;
        a.cmp(r11, 100)?;
        a.jb(CHANGING)
    }),
    ("flags of the round before", |a| {
        a.lea(r11, ptr(r11 + 1))?;
        a.sub(r10, r9)?;
        a.lea(rcx, ptr(r11 - 110))?;
        a.test(rcx, rcx)?;
        a.js(CHANGING)
    }),
];

fn program(middle: Code, end: Code) -> Program {
    let assemble = || -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        a.add(r8, 1)?;
        a.lea(r9, ptr(r9 + r8 * 4 + 7))?;
        a.xor(r10, r9)?;
        middle(&mut a)?;
        a.imul_2(r9, r8)?;
        a.add(qword_ptr(rdi + 16), r10)?;
        end(&mut a)?;
        // It may run again, with its trace there; then it halts.
        a.xor(r11d, r11d)?;
        a.dec(dword_ptr(rdi + 24))?;
        a.jns(CHANGING)?;
        a.hlt()?;
        a.assemble(CHANGING)
    };
    let mut program = looping(&assemble().expect("the loop can be assembled"));
    program.memory[1].1[24..28].copy_from_slice(&2u32.to_le_bytes());
    program
}

/// Likewise, but with so much straight code around the middle that no block leads to itself.
fn straight_program(middle: Code) -> Program {
    let assemble = || -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let run = |a: &mut CodeAssembler, rounds: usize| {
            (0..rounds).try_for_each(|_| {
                a.add(r8, 1)?;
                a.lea(r9, ptr(r9 + r8 * 4 + 7))?;
                a.xor(r10, r9)
            })
        };
        run(&mut a, 24)?;
        middle(&mut a)?;
        run(&mut a, 8)?;
        a.add(qword_ptr(rdi + 16), r10)?;
        a.inc(r11)?;
        a.cmp(r11, 120)?;
        let mut out = a.create_label();
        a.jae(out)?;
        a.jmp(CHANGING)?;
        a.set_label(&mut out)?;
        a.hlt()?;
        a.assemble(CHANGING)
    };
    looping(&assemble().expect("the code can be assembled"))
}

/// A function around the middle that calls itself, twice: it does not use the same registers from its first
/// branch on as before.
fn recursive_program(middle: Code) -> Program {
    let assemble = || -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let (mut function, mut last, mut out) =
            (a.create_label(), a.create_label(), a.create_label());
        a.mov(r13d, 9)?;
        a.set_label(&mut function)?;
        a.inc(r11)?;
        a.cmp(r11, 120)?;
        a.jae(out)?;
        for _ in 0..3 {
            a.add(r8, 1)?;
            a.lea(r9, ptr(r9 + r8 * 4 + 7))?;
            a.xor(r10, r9)?;
        }
        middle(&mut a)?;
        a.add(qword_ptr(rdi + 16), r10)?;
        a.test(r13, r13)?;
        a.je(last)?;
        a.dec(r13)?;
        a.call(function)?;
        a.call(function)?;
        a.inc(r13)?;
        a.set_label(&mut last)?;
        a.ret()?;
        a.set_label(&mut out)?;
        a.hlt()?;
        a.assemble(CHANGING)
    };
    looping(&assemble().expect("the function can be assembled"))
}

/// A program that is this code, at [`CHANGING`].
pub fn looping(code: &[u8]) -> Program {
    looping_in(64, code)
}

/// General registers, RIP, flags and memory.
pub type Seen = ([u64; 16], u64, u64, Vec<u8>);

/// Where the processor is, and what a guest can see of it.
pub fn seen(machine: &mut Machine) -> Seen {
    let memory = machine.memory();
    let cpu = machine.vcpu.cpu();
    (cpu.gpr, cpu.rip, cpu.rflags(), memory)
}

/// General registers, RIP and the defined flags are equal.
pub fn assert_same_registers(found: &Seen, expected: &Seen, what: &str) {
    assert_eq!(found.0, expected.0, "{what}");
    assert_eq!(found.1, expected.1, "{what}");
    assert_eq!(found.2 & DEFINED, expected.2 & DEFINED, "{what}");
}

fn engines() -> impl Iterator<Item = EngineOptions> {
    (0..16).map(|bits| EngineOptions {
        late_index: bits % 7 != 0,
        slot_registers: bits % 5 != 0,
        hoisting: bits % 3 != 0,
        grouping: bits & 1 != 0,
        precise_flags: bits & 2 != 0,
        prediction: (bits & 4 != 0).then_some(1),
        eager_prediction: true,
        registers: (bits & 8 != 0).then_some(1),
        traces: Some(2),
        cold: 0,
        ..EngineOptions::default()
    })
}

pub fn interpreter() -> Machine {
    let options = EngineOptions {
        counted: true,
        interpret_only: true,
        ..EngineOptions::default()
    };
    Machine::new(options, 2)
}

/// What a program leaves that the reference runs to its end within some instructions.
pub fn interpreted(reference: &mut Machine, program: &Program, most: u64, what: &str) -> Seen {
    reference.set_up(program);
    let goal = reference.vcpu.instructions() + most;
    reference.vcpu.set_goal(goal);
    assert_eq!(reference.vcpu.run(), Stop::Halted, "{what}");
    seen(reference)
}

/// Both execute some instructions more, and are at the same place then with the same registers. Returns
/// why the second one stopped.
pub fn both_go_on(reference: &mut Machine, machine: &mut Machine, more: u64, what: &str) -> Stop {
    let [_, last] = [&mut *reference, &mut *machine].map(|machine| {
        let goal = machine.vcpu.instructions() + more;
        machine.vcpu.set_goal(goal);
        machine.vcpu.run()
    });
    let (theirs, ours) = (reference.vcpu.cpu(), machine.vcpu.cpu());
    assert_eq!(ours.gpr, theirs.gpr, "{what}");
    assert_eq!(ours.rip, theirs.rip, "{what}");
    last
}

/// Undefined arithmetic flags may differ; what the loops leave in memory is defined.
const DEFINED: u64 = !dbt::guest::flags::ARITHMETIC;

/// Runs a program until it halts; where instructions are counted, with stops in the middle of blocks.
fn run_to_the_end(machine: &mut Machine, counted: bool, what: &str) {
    if !counted {
        assert_eq!(machine.vcpu.run(), Stop::Halted, "{what}");
        return;
    }
    for more in (50..80).cycle() {
        let goal = machine.vcpu.instructions() + more;
        machine.vcpu.set_goal(goal);
        if machine.vcpu.run() == Stop::Halted {
            break;
        }
    }
}

/// Runs a program to its end, which is as expected. Whether registers have changed places in what was translated.
fn ends_as(
    expected: &Seen,
    program: &Program,
    (options, machine): (&EngineOptions, &mut Machine),
    what: &str,
) -> bool {
    let allotted = machine.vcpu.statistics().allotted;
    machine.set_up(program);
    run_to_the_end(machine, options.counted, what);
    let found = seen(machine);
    assert_same_registers(&found, expected, what);
    // Imprecise flags may differ in the frame of an exception.
    if options.precise_flags || expected.3[0x5fe8..0x6000] == [0; 24] {
        assert!(found.3 == expected.3, "{what}: memory differs");
    }
    machine.vcpu.mem.audit().expect("the copies are equal");
    machine.vcpu.statistics().allotted > allotted
}

/// A loop whose base is the same at the end of each round, but another one on the way back from its middle.
fn leaving_its_base() -> Program {
    let assemble = || -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let mut again = a.create_label();
        a.lea(rsi, ptr(rdi + 0x100))?;
        a.set_label(&mut again)?;
        a.mov(rax, qword_ptr(rsi + 8))?;
        a.lea(rdx, ptr(rdx + rax + 3))?;
        a.add(qword_ptr(rsi + 8), rdx)?;
        a.mov(rbx, rsi)?;
        a.add(rsi, 64)?;
        a.inc(r11)?;
        a.test(r11b, 7)?;
        a.je(again)?;
        a.mov(rsi, rbx)?;
        a.cmp(r11, 200)?;
        a.jb(again)?;
        a.hlt()?;
        a.assemble(CHANGING)
    };
    looping(&assemble().expect("the loop can be assembled"))
}

#[test]
fn checks_are_not_hoisted_past_another_base() {
    let program = leaving_its_base();
    let expected = interpreted(&mut interpreter(), &program, 10_000, "interpreted");
    for options in engines() {
        let mut machine = Machine::new(options.clone(), 2);
        ends_as(
            &expected,
            &program,
            (&options, &mut machine),
            &format!("{options:?}"),
        );
    }
}

/// Wherever a loop with STI is stopped, also while its trace is recorded, the shadow is that of the interpreter.
#[test]
fn stops_behind_sti_see_its_shadow() {
    let assemble = || -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let (mut again, mut enables) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.cli()?;
        a.call(enables)?;
        a.inc(r11)?;
        a.cmp(r11, 60)?;
        a.jb(again)?;
        a.hlt()?;
        a.set_label(&mut enables)?;
        a.sti()?;
        a.ret()?;
        a.assemble(CHANGING)
    };
    let mut program = looping(&assemble().expect("the loop can be assembled"));
    program.ring = 0;
    let mut shadows = 0;
    for step in 1..60 {
        let options = EngineOptions {
            counted: true,
            traces: Some(2),
            long_traces: Some(3),
            samples: false,
            cold: 0,
            ..EngineOptions::default()
        };
        let (mut reference, mut machine) = (interpreter(), Machine::new(options, 2));
        reference.set_up(&program);
        machine.set_up(&program);
        let what = format!("every {step} instructions");
        while both_go_on(&mut reference, &mut machine, step, &what) != Stop::Halted {
            let [theirs, ours] = [&reference, &machine].map(|m| m.vcpu.cpu().interrupt_shadow);
            assert_eq!(ours, theirs, "{what}");
            shadows += u32::from(theirs != 0);
        }
    }
    assert!(shadows > 100, "{shadows} stops were behind STI");
}

#[test]
fn loops_end_as_interpreted_ones() {
    let mut reference = interpreter();
    let mut engines: Vec<_> = engines()
        .map(|options| (options.clone(), Machine::new(options, 2)))
        .collect();
    for (middle_name, middle) in MIDDLES {
        for (end_name, end) in ENDS {
            let program = program(*middle, *end);
            let expected = interpreted(&mut reference, &program, 100_000, middle_name);
            for (options, machine) in &mut engines {
                let what = format!("{middle_name}, {end_name}, {options:?}");
                let changed = ends_as(&expected, &program, (options, machine), &what);
                assert!(options.registers.is_some() || !changed, "{what}");
                // Instructions that name their registers, and loops that go in two ways, keep
                // all of them where they are.
                let excused = ["flags that a frame", "a branch", "its own code"];
                let plain = !excused.iter().any(|name| middle_name.starts_with(name));
                if options.registers.is_some() && plain && *end_name == "a condition" {
                    assert!(changed, "no registers change places: {what}");
                }
            }
        }
    }
}

/// Long straight code has its registers change places too: at each block's entry, and back.
#[test]
fn straight_code_ends_as_interpreted() {
    let mut reference = interpreter();
    let mut engines: Vec<_> = engines()
        .enumerate()
        .map(|(bits, options)| EngineOptions {
            counted: bits & 2 != 0,
            traces: (bits & 4 != 0).then_some(2),
            ..options
        })
        .map(|options| (options.clone(), Machine::new(options, 2)))
        .collect();
    for (middle_name, middle) in MIDDLES {
        let program = straight_program(*middle);
        let expected = interpreted(&mut reference, &program, 100_000, middle_name);
        for (options, machine) in &mut engines {
            let what = format!("{middle_name}, {options:?}");
            let changed = ends_as(&expected, &program, (options, machine), &what);
            assert_eq!(options.registers.is_some(), changed, "{what}");
        }
    }
}

/// Traces of code that does not lead back to itself, either, though what they need is behind a branch.
#[test]
fn calls_of_itself_end_as_interpreted() {
    let mut reference = interpreter();
    let mut engines: Vec<_> = engines()
        .enumerate()
        .map(|(bits, options)| EngineOptions {
            counted: bits & 2 != 0,
            long_traces: (bits & 4 != 0).then_some(4),
            samples: false,
            ..options
        })
        .map(|options| (options.clone(), Machine::new(options, 2)))
        .collect();
    for (middle_name, middle) in MIDDLES {
        let program = recursive_program(*middle);
        let expected = interpreted(&mut reference, &program, 100_000, middle_name);
        for (options, machine) in &mut engines {
            let what = format!("{middle_name}, {options:?}");
            let changed = ends_as(&expected, &program, (options, machine), &what);
            // Stops come in the way of traces.
            if *middle_name == "nothing" && !options.counted {
                let wanted = options.registers.is_some() && options.long_traces.is_some();
                assert_eq!(wanted, changed, "{what}");
            }
        }
    }
}

/// Counted, the loops stop at every instruction, and are interrupted now and then.
#[test]
fn loops_stop_anywhere() {
    let mut reference = interpreter();
    let mut engines: Vec<_> = engines()
        .step_by(3)
        .map(|options| EngineOptions {
            counted: true,
            ..options
        })
        .map(|options| (options.precise_flags, Machine::new(options, 2)))
        .collect();
    for (middle_name, middle) in MIDDLES {
        for (end_name, end) in ENDS {
            let program = program(*middle, *end);
            for (engine, (precise, machine)) in engines.iter_mut().enumerate() {
                reference.set_up(&program);
                machine.set_up(&program);
                for step in 1.. {
                    // Long enough to get into the loop, and to no multiple of its length.
                    let more = 97 + (step * 31 + engine as u64 * 7) % 61;
                    let what = format!("{middle_name}, {end_name}, stop {step}");
                    let stop = both_go_on(&mut reference, machine, more, &what);
                    if *precise {
                        let flags = |machine: &Machine| machine.vcpu.cpu().rflags() & 0x8c1;
                        let undefined = ["wide", "shifts", "a division", "its own"];
                        if !undefined.iter().any(|name| middle_name.starts_with(name)) {
                            // A multiplication leaves only CF and OF defined.
                            let known = flags(machine) ^ flags(&reference);
                            assert_eq!(known & 0x801, 0, "{what}");
                        }
                    }
                    if stop == Stop::Halted || machine.vcpu.cpu().halted != 0 {
                        break;
                    }
                }
            }
        }
    }
}

/// A loop that never ends stops when it is asked to, with every register where it belongs.
#[test]
fn an_endless_loop_can_be_stopped() {
    let mut a = CodeAssembler::new(64).expect("64 bits is a width");
    let assemble = |a: &mut CodeAssembler| -> Result<Vec<u8>, IcedError> {
        a.add(r8, 1)?;
        a.lea(r9, ptr(r9 + 2))?;
        a.lea(r10, ptr(r10 + 3))?;
        a.jmp(CHANGING)?;
        a.assemble(CHANGING)
    };
    let code = assemble(&mut a).expect("the loop can be assembled");
    let mut program = program(|_| Ok(()), ENDS[0].1);
    let at = (CHANGING - CODE) as usize;
    program.memory[0].1[at..at + code.len()].copy_from_slice(&code);
    let options = EngineOptions {
        registers: Some(1),
        traces: Some(2),
        cold: 0,
        ..EngineOptions::default()
    };
    let mut machine = Machine::new(options, 2);
    machine.set_up(&program);
    let start = program.gpr;
    let mut rounds = 0;
    // On a busy host the processor may have had no time before it is stopped.
    while rounds < 1000 {
        assert_eq!(run_for(&mut machine.vcpu, 5), Stop::Requested);
        rounds = machine.vcpu.cpu().gpr[8].wrapping_sub(start[8]);
    }
    assert!(machine.vcpu.statistics().allotted > 0);
    let gpr = machine.vcpu.cpu().gpr;
    assert_eq!(gpr[9].wrapping_sub(start[9]), 2 * rounds);
    assert_eq!(gpr[10].wrapping_sub(start[10]), 3 * rounds);
    for guest in (0..8).chain(11..16) {
        assert_eq!(gpr[guest], start[guest], "register {guest}");
    }
}
