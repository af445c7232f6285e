//! The ways into the kernel and back that emitted code goes by itself: round after round, they do
//! what the interpreter does, and what is unusual about them is left to it.

mod frames;
mod interrupts;
mod programs;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use dbt::guest::CpuState;
use dbt::guest::flags::*;
use dbt::{EngineOptions, Platform, Stop};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use mmu::{GuestPhys, PhysMem};

use crate::common::TRANSLATES;
use crate::machine::*;

/// Where the first megabytes are mapped again, out of reach for user mode.
const KERNEL: u64 = 0x4000_0000;
/// Where system calls arrive.
const ENTRY: u64 = KERNEL + HANDLER + 0x800;
/// User data.
const DATA: u64 = 0x5_0000;
/// A port that raises an interrupt.
const RAISE: i32 = 0x80;
const VECTOR: u8 = 0x21;
/// The vector that programs may use, beside that of INT3.
const CALLED: u8 = 0x30;

#[derive(Clone, Default)]
struct Counts {
    /// How often the engine asked whether an interrupt waits: at least once in each call up.
    asked: Rc<Cell<u64>>,
    /// How often it asked for the time.
    times: Rc<Cell<u64>>,
}

struct Board {
    vector: Option<u8>,
    counts: Counts,
    start: Option<Instant>,
}

impl Platform for Board {
    fn port_write(&mut self, _: &mut PhysMem, _: u64, _: u16, _: u8, _: u32) {
        self.vector = Some(VECTOR);
    }
    fn interrupt_pending(&mut self) -> bool {
        self.counts.asked.set(self.counts.asked.get() + 1);
        self.vector.is_some()
    }
    fn acknowledge_interrupt(&mut self, _: u64) -> Option<u8> {
        self.vector.take()
    }
    fn time_stamp(&mut self, instructions: u64) -> u64 {
        self.counts.times.set(self.counts.times.get() + 1);
        match self.start {
            Some(start) => start.elapsed().as_nanos() as u64 * 2,
            None => instructions,
        }
    }
    fn real_time(&self) -> bool {
        self.start.is_some()
    }
}

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// One pair of user program and system call handler, gone through for a while.
struct Case {
    what: &'static str,
    user: Code,
    kernel: Code,
    prepare: fn(&mut CpuState),
    /// Emitted code is expected to go most of the ways.
    inline: bool,
}

fn assemble(code: Code, at: u64) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).expect("64 bits is a width");
    code(&mut assembler).expect("the case can be encoded");
    assembler.assemble(at).expect("the case can be assembled")
}

fn put(machine: &mut Machine, at: u64, bytes: &[u8]) {
    for (offset, &byte) in bytes.iter().enumerate() {
        machine.write(at + offset as u64, 1, u64::from(byte));
    }
}

/// In user mode, with the kernel's tables, stacks and code in pages of its own.
fn machine(user: Code, kernel: Code, handlers: [Code; 4]) -> Machine {
    let mut machine = Machine::long(3);
    machine.write(PAGES + 0x1008, 8, 0x83);
    for vector in 0..64 {
        let handler = match vector {
            6 => 1,
            10..=14 => 2,
            17 => 3,
            _ => 0,
        };
        let low = gate(LONG_CODE0, KERNEL + HANDLER + 0x100 * handler, 14, 0, 1);
        machine.write(IDT + 16 * vector, 8, low);
        machine.write(IDT + 16 * vector + 8, 8, 0);
    }
    for vector in [3, u64::from(CALLED)] {
        let low = gate(LONG_CODE0, KERNEL + HANDLER, 14, 3, 0);
        machine.write(IDT + 16 * vector, 8, low);
    }
    for (at, handler) in (HANDLER..).step_by(0x100).zip(handlers) {
        put(&mut machine, at, &assemble(handler, KERNEL + at));
    }
    machine.write(TSS_A + 4, 8, KERNEL + KERNEL_STACK);
    machine.write(TSS_A + 0x24, 8, KERNEL + KERNEL_STACK + 0x1000);
    put(&mut machine, CODE, &assemble(user, CODE));
    put(&mut machine, ENTRY - KERNEL, &assemble(kernel, ENTRY));
    let cpu = &mut machine.cpu;
    cpu.gpr[7] = 3;
    cpu.control.idtr.base = KERNEL + IDT;
    cpu.control.gdtr.base = KERNEL + GDT;
    cpu.control.tr.base = KERNEL + TSS_A;
    cpu.msrs.star = u64::from(SYSRET_BASE | 3) << 48 | u64::from(LONG_CODE0) << 32;
    cpu.msrs.lstar = ENTRY;
    cpu.msrs.fmask = TF | IF | DF | NT | AC | IOPL;
    machine
}

/// What was interrupted is added up, less arithmetic flags, which nobody may need there.
fn note(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.add(r13, qword_ptr(rsp))?;
    a.mov(r8, qword_ptr(rsp + 16))?;
    a.and(r8, !ARITHMETIC as i32)?;
    a.add(r14, r8)?;
    a.ror(r14, 7)
}

/// Interrupts and traps: no stepping on.
fn trapped(a: &mut CodeAssembler) -> Result<(), IcedError> {
    note(a)?;
    a.and(qword_ptr(rsp + 16), !TF as i32)?;
    a.iretq()
}

/// Faults without an error code: RDI bytes further.
fn faulted(a: &mut CodeAssembler) -> Result<(), IcedError> {
    note(a)?;
    a.inc(r12)?;
    a.add(qword_ptr(rsp), rdi)?;
    a.iretq()
}

/// Faults with an error code.
fn faulted_with_code(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.add(r12, qword_ptr(rsp))?;
    a.add(rsp, 8)?;
    faulted(a)
}

/// The same again, without alignment checks.
fn misaligned(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.add(rsp, 8)?;
    note(a)?;
    a.and(qword_ptr(rsp + 16), !AC as i32)?;
    a.iretq()
}

/// The processor as text, less the flags and R8, in which handlers have them: some may be dead.
fn text(cpu: &CpuState) -> String {
    format!(
        "{:x?} {:x?} {:x} {:x} {:x?} {:x?} {:x}",
        &cpu.gpr[..8],
        &cpu.gpr[9..],
        cpu.rip,
        cpu.rflags() & !ARITHMETIC,
        cpu.segments,
        cpu.control,
        cpu.mode.0,
    )
}

impl Case {
    fn run(&self, options: EngineOptions, goal: u64) -> (String, Vec<u8>, u64) {
        let handlers = [trapped, faulted, faulted_with_code, misaligned];
        let mut machine = machine(self.user, self.kernel, handlers);
        (self.prepare)(&mut machine.cpu);
        machine.cpu.refresh_mode();
        let counts = Counts::default();
        let board = Board {
            vector: None,
            counts: counts.clone(),
            start: None,
        };
        let options = EngineOptions {
            counted: true,
            cold: 0,
            code_bytes: 2 << 20,
            ..options
        };
        let mut vcpu = machine.into_vcpu_on(Box::new(board), options);
        vcpu.set_goal(goal);
        let stop = vcpu.run();
        let mut bytes = vec![0; 0x8_0000];
        vcpu.mem.load(GuestPhys(0), &mut bytes).expect("RAM");
        let state = format!("{stop:?} {}", text(vcpu.cpu()));
        (state, bytes, counts.asked.get())
    }

    fn check(&self) {
        let options = |system_inline, interpret_only| EngineOptions {
            system_inline,
            interpret_only,
            ..EngineOptions::default()
        };
        for goal in 2000..2012 {
            let (expected, memory, _) = self.run(options(false, true), goal);
            let (called, called_memory, _) = self.run(options(false, false), goal);
            let (inline, inline_memory, _) = self.run(options(true, false), goal);
            assert_eq!(expected, called, "{}: helpers, at {goal}", self.what);
            assert_eq!(expected, inline, "{}: in line, at {goal}", self.what);
            assert!(memory == called_memory, "{}: memory", self.what);
            assert!(memory == inline_memory, "{}: memory", self.what);
        }
        if self.inline {
            // What records a trace asks, too.
            let asked = |system_inline| {
                let options = EngineOptions {
                    traces: None,
                    ..options(system_inline, false)
                };
                self.run(options, 2012).2
            };
            let (ups, few) = (asked(false), asked(true));
            assert!(
                few * 4 < ups || !TRANSLATES,
                "{}: {few} of {ups} calls",
                self.what
            );
        }
    }
}

#[test]
fn emitted_code_goes_as_the_interpreter_does() {
    for case in (programs::cases().iter())
        .chain(&frames::cases())
        .chain(&interrupts::cases())
    {
        case.check();
    }
}

/// Runs without counting until HLT. Gives the processor, and what the platform was asked.
fn run_free(user: Code, kernel: Code, prepare: fn(&mut CpuState)) -> (CpuState, Counts) {
    let mut machine = machine(user, kernel, [halts; 4]);
    prepare(&mut machine.cpu);
    machine.cpu.refresh_mode();
    let counts = Counts::default();
    let board = Board {
        vector: None,
        counts: counts.clone(),
        start: Some(Instant::now()),
    };
    let mut vcpu = machine.into_vcpu_on(Box::new(board), EngineOptions::default());
    assert_eq!(vcpu.run(), Stop::Halted);
    let cpu = std::mem::replace(vcpu.cpu_mut(), CpuState::at_reset());
    (cpu, counts)
}

fn halts(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.hlt()
}

/// RBX rounds: R12 counts times that went back.
fn reads_time(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)?;
    a.cmp(rax, r13)?;
    a.adc(r12, 0)?;
    a.mov(r13, rax)?;
    a.rdtscp()?;
    a.add(r14, rcx)?;
    a.dec(ebx)?;
    a.jnz(again)?;
    a.mov(ebx, 3)?;
    a.syscall()?;
    a.jmp(again)
}

const ROUNDS: u64 = 1_000_000;

#[test]
fn time_is_read_from_the_host_and_never_goes_back() {
    let (cpu, counts) = run_free(reads_time, halts, |cpu| {
        cpu.gpr[3] = ROUNDS;
        cpu.msrs.tsc_offset = 1 << 40;
        cpu.msrs.tsc_aux = 3;
    });
    assert_eq!(cpu.gpr[12], 0, "time went back");
    assert_eq!(cpu.gpr[14], 3 * ROUNDS);
    let passed = cpu.gpr[13] - (1 << 40);
    assert!((1_000_000..600_000_000_000).contains(&passed), "{passed}");
    let asked = counts.times.get();
    assert!(asked < ROUNDS || !TRANSLATES, "asked {asked} times");
}

#[test]
fn time_is_kept_from_user_mode() {
    let keeps: Code = |a| {
        a.mov(rax, cr4)?;
        a.or(eax, CR4_TSD as i32)?;
        a.mov(cr4, rax)?;
        a.sysretq()
    };
    let (cpu, _) = run_free(reads_time, keeps, |cpu| cpu.gpr[3] = ROUNDS);
    // RDTSC faulted, at its first execution behind the system call.
    let gp_handler = KERNEL + HANDLER + 0x200;
    assert_eq!((cpu.rip, cpu.gpr[3]), (gp_handler + 1, 3));
}
