//! A processor in real mode with memory and no devices.

use dbt::guest::flags::*;
use dbt::guest::{CpuState, DescriptorTable, Segment, SegmentIndex};
use dbt::{EngineOptions, Stop, Vcpu};
use mmu::{GuestPhys, MemoryConfig, PhysMem};

use crate::capture::State;
use crate::common::NoDevices;

/// More than the 24-bit addresses that real mode can form.
const RAM: u64 = 0x20_0000;
/// Where code goes that replaces the captured one: beyond what that can reach.
const FLAT_CODE: u32 = 0x18_0000;
/// Where the general registers are in a captured state, by encoding number.
pub const GENERAL: [usize; 8] = [0, 2, 3, 1, 8, 9, 10, 11];
/// ES, CS, SS and DS in a captured state.
const SEGMENTS: [usize; 4] = [7, 4, 5, 6];
pub const IP: usize = 12;
pub const FLAGS: usize = 13;
/// No instruction of the set takes more than this, iterations of string instructions included.
const BUDGET: u64 = 200_000;

pub struct Machine {
    vcpu: Vcpu,
}

impl Machine {
    pub fn new(interpret_only: bool) -> Machine {
        let mem = PhysMem::new(&MemoryConfig {
            ram_bytes: RAM,
            copies: 2,
            legacy_hole: false,
        })
        .expect("two megabytes of guest memory");
        let options = EngineOptions {
            counted: true,
            interpret_only,
            code_bytes: 2 << 20,
            cold: 0,
            ..EngineOptions::default()
        };
        let vcpu = Vcpu::new(mem, Box::new(NoDevices), options).expect("a virtual processor");
        Machine { vcpu }
    }

    pub fn write(&mut self, at: u32, bytes: &[u8]) {
        self.vcpu
            .mem
            .store(GuestPhys(u64::from(at)), bytes)
            .expect("a store to RAM");
    }

    pub fn read(&mut self, at: u32, bytes: &mut [u8]) {
        self.vcpu
            .mem
            .load(GuestPhys(u64::from(at)), bytes)
            .expect("a load from RAM");
    }

    /// Real mode, with the registers of a captured state; flat 32-bit protected mode if there is
    /// other code, where only the general registers and flags mean anything.
    fn set_up(&mut self, state: &State, code: Option<&[u8]>) {
        let cpu = self.vcpu.cpu_mut();
        *cpu = CpuState::at_reset();
        for (register, &index) in cpu.gpr.iter_mut().zip(&GENERAL) {
            *register = u64::from(state.registers[index]);
        }
        cpu.rip = u64::from(state.registers[IP]);
        cpu.segments = [Segment::real(0); 6];
        cpu.control.idtr = DescriptorTable {
            base: 0,
            limit: 0x3ff,
        };
        if code.is_some() {
            cpu.rip = u64::from(FLAT_CODE);
            cpu.control.cr0 |= CR0_PE;
            let data = Segment {
                base: 0,
                limit: u32::MAX,
                selector: 0x10,
                attributes: 0xc093,
            };
            cpu.segments = [data; 6];
            cpu.segment_mut(SegmentIndex::Cs).attributes = 0xc09b;
        } else {
            for (segment, &index) in cpu.segments.iter_mut().zip(&SEGMENTS) {
                *segment = Segment::real(state.registers[index]);
            }
            cpu.segment_mut(SegmentIndex::Cs).attributes |= Segment::CODE;
        }
        cpu.control.cr0 &= !(CR0_CD | CR0_NW);
        cpu.set_rflags(u64::from(state.registers[FLAGS]) & 0xfff, u64::MAX);
        for (&at, &byte) in &state.memory {
            self.write(at, &[byte]);
        }
        if let Some(code) = code {
            self.write(FLAT_CODE, code);
        }
    }

    /// Runs until the HLT; `None` if it does not get there.
    fn run(&mut self) -> Option<()> {
        let goal = self.vcpu.instructions() + BUDGET;
        self.vcpu.set_goal(goal);
        (self.vcpu.run() == Stop::Halted).then_some(())
    }

    /// The registers, and the bytes at the addresses of `like`.
    fn state(&mut self, like: &State) -> State {
        let mut state = like.clone();
        let cpu = self.vcpu.cpu();
        for (register, &index) in cpu.gpr.iter().zip(&GENERAL) {
            state.registers[index] = *register as u16;
        }
        for (segment, &index) in cpu.segments.iter().zip(&SEGMENTS) {
            state.registers[index] = segment.selector;
        }
        state.registers[IP] = cpu.rip as u16;
        state.registers[FLAGS] = cpu.rflags() as u16;
        for (&at, byte) in &mut state.memory {
            let mut one = [0];
            self.read(at, &mut one);
            *byte = one[0];
        }
        state
    }

    /// Executes from a captured state to the HLT, and reads back the addresses of `after`; then
    /// clears them, so that what the whole memory holds afterwards was written elsewhere.
    pub fn execute(&mut self, before: &State, after: &State, code: Option<&[u8]>) -> Option<State> {
        self.set_up(before, code);
        let outcome = self.run();
        let state = self.state(after);
        if let Some(code) = code {
            self.write(FLAT_CODE, &vec![0; code.len()]);
        }
        for &at in after.memory.keys() {
            self.write(at, &[0]);
        }
        outcome.map(|()| state)
    }

    /// Blocks that were translated.
    pub fn translated(&self) -> u64 {
        self.vcpu.statistics().translated
    }

    /// The first byte of memory that is not zero; all is cleared.
    pub fn stray_byte(&mut self) -> Option<u32> {
        let mut bytes = vec![0; RAM as usize];
        self.read(0, &mut bytes);
        let stray = bytes.iter().position(|&byte| byte != 0)? as u32;
        self.write(0, &vec![0; RAM as usize]);
        Some(stray)
    }
}
