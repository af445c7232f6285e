//! Traces that follow calls: random loops that call functions on another page and on their own, and what may
//! come in between, end as interpreted ones do, and stop at any instruction.

use dbt::EngineOptions;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::common::{Random, setting};
use crate::machine::{CODE, HOLE, PAGE};
use crate::places::{CHANGING, looping};
use crate::program::Program;
use crate::side_by_side::{end_alike, machines, stop_anywhere};

/// Rounds of a loop.
const ROUNDS: u32 = 60;
/// The round in which what happens once happens.
const LATE: i32 = 17;
/// Functions; half of them are on the second page.
const FUNCTIONS: usize = 6;
/// Bytes between the functions of the first page and those of the second.
const APART: usize = 0xf00;

/// What may come in between, in a function: RBP counts the rounds down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Event {
    Nothing,
    /// The function returns over an instruction of its caller.
    Elsewhere,
    /// So it does, by a store that is made in each round.
    Moves,
    /// Likewise, by another register than the stack pointer.
    MovesAlias,
    /// It leaves its caller out.
    LongJump,
    /// It changes the code of a function that is called later.
    Overwrites,
    /// An access faults.
    Faults,
    /// A division does, on the host.
    Divides,
    /// The next instruction is the last one before a debug exception.
    Steps,
    /// The second page's mapping is flushed.
    Flushes,
    /// All of them are.
    FlushesAll,
    /// An instruction for the interpreter.
    Interprets,
}

const EVENTS: [Event; 12] = [
    Event::Nothing,
    Event::Elsewhere,
    Event::Moves,
    Event::MovesAlias,
    Event::LongJump,
    Event::Overwrites,
    Event::Faults,
    Event::Divides,
    Event::Steps,
    Event::Flushes,
    Event::FlushesAll,
    Event::Interprets,
];

fn event(a: &mut CodeAssembler, event: Event, constant: CodeLabel) -> Result<(), IcedError> {
    let mut over = a.create_label();
    if event == Event::Interprets {
        return a.cpuid();
    }
    if matches!(event, Event::Moves | Event::MovesAlias) {
        a.xor(eax, eax)?;
        a.cmp(ebp, LATE)?;
        a.sete(al)?;
        a.lea(rax, ptr(rax + rax * 2))?;
        if event == Event::Moves {
            return a.add(word_ptr(rsp), ax);
        }
        a.mov(rsi, rsp)?;
        a.neg(rsi)?;
        a.neg(rsi)?;
        return a.add(qword_ptr(rsi), rax);
    }
    a.cmp(ebp, LATE)?;
    a.jne(over)?;
    match event {
        Event::Nothing | Event::Interprets | Event::Moves | Event::MovesAlias => {}
        Event::Elsewhere => a.add(qword_ptr(rsp), 3)?,
        Event::LongJump => {
            a.mov(rsp, r15)?;
            a.jmp(r14)?;
        }
        Event::Overwrites => {
            a.lea(rax, ptr(constant))?;
            a.mov(dword_ptr(rax + 2), 77)?;
        }
        Event::Faults => a.mov(r8, qword_ptr(HOLE))?,
        Event::Divides => {
            a.xor(r9d, r9d)?;
            a.div(r9)?;
        }
        Event::Steps => {
            a.pushfq()?;
            a.or(dword_ptr(rsp), 0x100)?;
            a.popfq()?;
        }
        Event::Flushes => a.invlpg(byte_ptr(CODE + PAGE))?,
        Event::FlushesAll => {
            a.mov(rax, cr3)?;
            a.mov(cr3, rax)?;
        }
    }
    a.set_label(&mut over)?;
    a.zero_bytes()
}

fn work(a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    for _ in 0..=random.below(3) {
        let at = random.below(30) as i32 * 8 + 64;
        match random.below(8) {
            0 => a.add(r8, rdx)?,
            1 => a.lea(r9, ptr(r9 + r8 * 4 + 7))?,
            2 => a.mov(qword_ptr(rdi + at), r10)?,
            3 => a.add(r11, qword_ptr(rdi + at))?,
            4 => a.sub(qword_ptr(rdi + at), r8)?,
            5 => a.adc(rbx, r11)?,
            6 => a.mov(r10, qword_ptr(rsp + 8))?,
            _ => {
                a.push(r9)?;
                a.xor(r10, rbx)?;
                a.pop(rsi)?;
            }
        }
    }
    Ok(())
}

/// A function, which may call those behind it.
fn function(
    a: &mut CodeAssembler,
    random: &mut Random,
    labels: &mut [CodeLabel],
    happens: Option<Event>,
    constant: CodeLabel,
) -> Result<(), IcedError> {
    let (own, behind) = labels.split_first_mut().expect("a function has a label");
    a.set_label(own)?;
    let saves = random.below(2) == 0;
    if saves {
        a.push(rbx)?;
        a.push(r13)?;
    }
    work(a, random)?;
    let mut way = a.create_label();
    a.bt(edx, random.below(8) as u32)?;
    a.jb(way)?;
    work(a, random)?;
    for _ in 0..random.below(3) {
        if let Some(&called) = behind.get(random.below(3) as usize) {
            a.call(called)?;
            // A return over this is still one to an instruction.
            a.add(r8, 1)?;
            work(a, random)?;
        }
    }
    a.set_label(&mut way)?;
    work(a, random)?;
    if saves {
        a.pop(r13)?;
        a.pop(rbx)?;
    }
    if let Some(happens) = happens {
        event(a, happens, constant)?;
    }
    match random.below(4) {
        0 => {
            // Takes an argument that it has made itself.
            a.pop(rax)?;
            a.push(rax)?;
            a.push(rax)?;
            a.ret_1(8)
        }
        1 => {
            a.inc(r9)?;
            a.ret()
        }
        _ => a.ret(),
    }
}

/// The loop and its functions, on two pages.
fn code(random: &mut Random, happens: Event) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut head, mut next, mut join) = (a.create_label(), a.create_label(), a.create_label());
    let mut constant = a.create_label();
    let mut labels: Vec<CodeLabel> = (0..FUNCTIONS).map(|_| a.create_label()).collect();
    a.mov(ebp, ROUNDS)?;
    a.mov(r15, rsp)?;
    a.lea(r14, ptr(next))?;
    a.set_label(&mut head)?;
    a.imul_3(rdx, rdx, 0x5851_f42d)?;
    a.add(rdx, 0x1405_7b7f)?;
    for _ in 0..1 + random.below(3) {
        a.call(labels[random.below(FUNCTIONS as u64) as usize])?;
        a.add(rbx, 1)?;
    }
    a.call(constant)?;
    a.add(r12, r13)?;
    a.set_label(&mut next)?;
    a.test(edx, 0x30)?;
    a.je(join)?;
    work(&mut a, random)?;
    a.set_label(&mut join)?;
    a.dec(ebp)?;
    a.jne(head)?;
    a.hlt()?;
    let happening = random.below(FUNCTIONS as u64) as usize;
    for number in 0..FUNCTIONS {
        if number == FUNCTIONS / 2 {
            a.db(&[0xcc; APART])?;
            a.set_label(&mut constant)?;
            a.mov(r13d, 5)?;
            a.ret()?;
        }
        let here = (number == happening).then_some(happens);
        function(&mut a, random, &mut labels[number..], here, constant)?;
    }
    a.assemble(CHANGING)
}

fn program(seed: u64) -> (Event, Program) {
    let mut random = Random::new(seed);
    let happens = EVENTS[seed as usize % EVENTS.len()];
    let code = code(&mut random, happens).expect("the loop can be assembled");
    assert!((PAGE as usize..2 * PAGE as usize - 0x40).contains(&code.len()));
    let mut program = looping(&code);
    if matches!(happens, Event::Flushes | Event::FlushesAll) {
        program.ring = 0;
    }
    (happens, program)
}

fn engines(counted: bool) -> Vec<EngineOptions> {
    let engine = |bits: usize| EngineOptions {
        counted,
        traces: Some(1 + bits as u8),
        long_traces: [Some(1), Some(2), Some(9), None][bits & 3],
        samples: false,
        registers: (bits & 1 != 0).then_some(1),
        grouping: bits & 4 == 0,
        late_stack: bits & 2 == 0,
        late_slots: bits & 1 == 0,
        late_stores: bits != 4,
        sure_accesses: bits % 3 != 2,
        whole_jumps: bits & 1 == 0,
        precise_flags: bits != 3,
        returns: bits != 5,
        prediction: Some(1),
        eager_prediction: true,
        cold: 0,
        ..EngineOptions::default()
    };
    (0..7).map(engine).collect()
}

#[test]
fn calling_loops_end_as_interpreted_ones() {
    let mut engines = machines(engines(false));
    let cases = setting("CALL_CASES", 300);
    end_alike(&mut engines, cases, program, |options| {
        options.precise_flags
    });
    for (options, machine) in &engines {
        let traces = machine.vcpu.statistics().traces;
        let some = options.long_traces.is_some();
        assert!(!some || traces >= cases, "{traces} traces: {options:?}");
    }
}

#[test]
fn calling_loops_stop_anywhere() {
    stop_anywhere(engines(true), setting("CALL_CASES", 300) / 6, program);
}
