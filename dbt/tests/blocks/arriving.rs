//! Flags that arrive at a function as a recipe, whose pushes often cross into another page: code without groups
//! goes on then, and asks more of the recipe than the function's own code did.

use dbt::EngineOptions;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::common::{Random, setting};
use crate::machine::{PAGE, STACK};
use crate::places::CHANGING;
use crate::program::Program;
use crate::side_by_side::{end_alike, machines, random_loop, stop_anywhere};

/// Rounds of a loop.
const ROUNDS: u32 = 150;
/// Functions.
const FUNCTIONS: usize = 3;

/// Sets all flags, by registers that functions change.
fn produce(a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    match random.below(6) {
        0 => a.cmp(eax, ecx),
        1 => a.add(rcx, rax),
        2 => a.sub(rax, r13),
        3 => a.cmp(rbx, 0x1234),
        4 => a.dec(ecx),
        _ => a.neg(rdx),
    }
}

/// Changes a register and no flags.
fn change(a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    match random.below(5) {
        0 => a.lea(eax, ptr(rax + rcx + 5)),
        1 => a.mov(rcx, rdx),
        2 => a.mov(rbx, qword_ptr(rdi + 0x40)),
        3 => a.lea(rdx, ptr(rdx * 2 + 1)),
        _ => a.mov(r13, rbp),
    }
}

/// A function of pushes and pops, which may call or jump to the one behind it before the flags are others.
fn function(
    a: &mut CodeAssembler,
    random: &mut Random,
    labels: &mut [CodeLabel],
) -> Result<(), IcedError> {
    let (own, behind) = labels.split_first_mut().expect("a function has a label");
    a.set_label(own)?;
    let saved = [rbx, r12, r14, rbp, r13];
    let saved = &saved[..2 + random.below(4) as usize];
    for register in saved {
        a.push(*register)?;
        if random.below(3) > 0 {
            change(a, random)?;
        }
    }
    match behind.first() {
        Some(&next) if random.below(3) == 0 => a.call(next)?,
        Some(&next) if random.below(3) == 0 => {
            for register in saved.iter().rev() {
                a.pop(*register)?;
            }
            return a.jmp(next);
        }
        _ => {}
    }
    if random.below(3) == 0 {
        a.adc(r11, 3)?;
    } else {
        a.sub(r11, 3)?;
    }
    for register in saved.iter().rev() {
        a.pop(*register)?;
    }
    a.ret()
}

fn code(random: &mut Random, ends: bool) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut head = a.create_label();
    let mut labels: Vec<CodeLabel> = (0..FUNCTIONS).map(|_| a.create_label()).collect();
    a.mov(ebp, ROUNDS)?;
    a.set_label(&mut head)?;
    // Most frames lie across the boundary of two pages, each a little further up; that of one round where the
    // stack ends.
    a.mov(eax, ebp)?;
    a.and(eax, 7)?;
    a.lea(rsp, ptr(rax * 8 + (STACK + PAGE)))?;
    a.lea(r8, ptr(rax * 8 + STACK))?;
    a.cmp(ebp, if ends { 17 } else { 0 })?;
    a.cmove(rsp, r8)?;
    a.imul_3(rdx, rdx, 0x5851_f42d)?;
    a.lea(ecx, ptr(rdx + rbp))?;
    for _ in 0..2 + random.below(2) {
        let called = labels[random.below(FUNCTIONS as u64) as usize];
        if random.below(2) == 0 {
            produce(&mut a, random)?;
            a.call(called)?;
        } else {
            // A call leaves the flags in a form that needs no register, a jump does not.
            let mut next = a.create_label();
            a.lea(r15, ptr(next))?;
            a.push(r15)?;
            produce(&mut a, random)?;
            a.jmp(called)?;
            a.set_label(&mut next)?;
        }
        a.adc(r10, 1)?;
    }
    a.dec(ebp)?;
    a.jne(head)?;
    a.hlt()?;
    for number in 0..FUNCTIONS {
        function(&mut a, random, &mut labels[number..])?;
    }
    a.assemble(CHANGING)
}

fn program(seed: u64) -> (bool, Program) {
    random_loop(seed, seed % 2 == 1, code)
}

fn engines(counted: bool) -> Vec<EngineOptions> {
    let engine = |bits: usize| EngineOptions {
        counted,
        grouping: bits != 3,
        sure_accesses: bits != 2,
        lazy_flags: bits != 4,
        late_stores: bits != 1,
        long_blocks: bits & 1 == 0,
        traces: (bits & 4 != 0).then_some(20),
        long_traces: (bits == 5).then_some(40),
        samples: false,
        registers: (bits & 1 != 0).then_some(1),
        cold: 0,
        ..EngineOptions::default()
    };
    (0..6).map(engine).collect()
}

#[test]
fn functions_whose_frames_cross_pages_end_alike() {
    let mut engines = machines(engines(false));
    let cases = setting("CALL_CASES", 300);
    end_alike(&mut engines, cases, program, |_| true);
    for (options, machine) in &engines {
        let asked = machine.vcpu.statistics().demands;
        let may = options.grouping && options.sure_accesses;
        assert!(!may || asked > cases / 10, "{asked} blocks: {options:?}");
    }
}

#[test]
fn functions_whose_frames_cross_pages_stop_anywhere() {
    stop_anywhere(engines(true), setting("CALL_CASES", 300) / 6, program);
}
