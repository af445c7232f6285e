//! Random loops in the interpreter and in several translators.

use std::fmt::Debug;

use dbt::{EngineOptions, Stop};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::common::Random;
use crate::machine::{CODE, DATA, Machine};
use crate::places::{
    CHANGING, assert_same_registers, both_go_on, interpreted, interpreter, looping, seen,
};
use crate::program::{Program, Recipe};

/// A machine for each.
pub fn machines(engines: impl IntoIterator<Item = EngineOptions>) -> Vec<(EngineOptions, Machine)> {
    let machine = |options: EngineOptions| (options.clone(), Machine::new(options, 2));
    engines.into_iter().map(machine).collect()
}

/// A program of 32-bit or 64-bit code that begins at [`CHANGING`], with nothing to disturb it.
pub fn looping_in(bits: u32, code: &[u8]) -> Program {
    let mut program = Recipe {
        bits,
        setting: 4,
        operations: Vec::new(),
    }
    .build();
    let at = (CHANGING - CODE) as usize;
    program.memory[0].1[at..at + code.len()].copy_from_slice(code);
    program.start = CHANGING;
    program.interrupts.clear();
    program.code_on_demand = false;
    program.maps_holes = false;
    program.smap = false;
    let stack = program.gpr[4];
    let width = u64::MAX >> (64 - bits);
    program.gpr = std::array::from_fn(|guest| (0x1111_1111_1111_1111 * guest as u64) & width);
    program.gpr[4] = stack;
    program.gpr[7] = DATA;
    program.gpr[11] = 0;
    program
}

/// A loop of random pieces that counts EBP down.
pub struct Pieces {
    pub rounds: u32,
    /// What each round begins with.
    pub set_up: fn(&mut CodeAssembler) -> Result<(), IcedError>,
    /// Has accesses of a round fault.
    pub lead_astray: fn(&mut CodeAssembler) -> Result<(), IcedError>,
    /// How many pieces there are at least, and how many numbers of them.
    pub count: (u64, u64),
    pub piece: fn(&mut CodeAssembler, &mut Random) -> Result<(), IcedError>,
}

impl Pieces {
    /// Its code, in which one of the last rounds faults or not.
    pub fn code(&self, random: &mut Random, faults: bool) -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let (mut head, mut over) = (a.create_label(), a.create_label());
        a.mov(ebp, self.rounds)?;
        a.set_label(&mut head)?;
        (self.set_up)(&mut a)?;
        if faults {
            a.cmp(ebp, 9)?;
            a.jne(over)?;
            (self.lead_astray)(&mut a)?;
            a.set_label(&mut over)?;
        }
        let (least, numbers) = self.count;
        for _ in 0..least + random.below(numbers) {
            (self.piece)(&mut a, random)?;
        }
        a.dec(ebp)?;
        a.jne(head)?;
        a.hlt()?;
        a.assemble(CHANGING)
    }
}

/// A loop made at random, in which something happens or not.
pub fn random_loop(
    seed: u64,
    happens: bool,
    code: impl FnOnce(&mut Random, bool) -> Result<Vec<u8>, IcedError>,
) -> (bool, Program) {
    let code = code(&mut Random::new(seed), happens).expect("the loop can be assembled");
    (happens, looping(&code))
}

/// The programs of all seeds end with the same registers and, where `exact`, the same memory. A program comes with
/// what happens in it.
pub fn end_alike<E: Debug>(
    engines: &mut [(EngineOptions, Machine)],
    seeds: u64,
    program: impl Fn(u64) -> (E, Program),
    exact: impl Fn(&EngineOptions) -> bool,
) {
    let mut reference = interpreter();
    for seed in 0..seeds {
        let (happens, program) = program(seed);
        let what = format!("seed {seed}");
        let expected = interpreted(&mut reference, &program, 1_000_000, &what);
        for (options, machine) in &mut *engines {
            machine.set_up(&program);
            assert_eq!(machine.vcpu.run(), Stop::Halted, "seed {seed}");
            let found = seen(machine);
            let what = format!("seed {seed}, {happens:?}, {options:?}");
            assert_same_registers(&found, &expected, &what);
            if exact(options) {
                assert!(found.3 == expected.3, "{what}: memory differs");
            }
            machine.vcpu.mem.audit().expect("the copies are equal");
        }
    }
}

/// Wherever instructions run out, they are where the interpreter is.
pub fn stop_anywhere<E: Debug>(
    engines: impl IntoIterator<Item = EngineOptions>,
    seeds: u64,
    program: impl Fn(u64) -> (E, Program),
) {
    let mut reference = interpreter();
    let mut machines = machines(engines);
    for seed in 0..seeds {
        let (happens, program) = program(seed ^ 0x5eed);
        let mut random = Random::new(seed);
        for (engine, (_, machine)) in machines.iter_mut().enumerate() {
            reference.set_up(&program);
            machine.set_up(&program);
            for step in 1.. {
                let more = 1 + random.below(97);
                let what = format!("seed {seed}, {happens:?}, engine {engine}, stop {step}");
                if both_go_on(&mut reference, machine, more, &what) == Stop::Halted {
                    break;
                }
            }
        }
    }
}
