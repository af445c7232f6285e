//! Runs one instruction in the interpreter.

use dbt::guest::{CpuState, Exception, Segment, flags};
use dbt::interpret::{Context, execute};
use iced_x86::Instruction;
use mmu::{GuestPhys, MemoryConfig, PhysMem, TlbSet};

use crate::common::{NoDevices, empty_tlb};

use super::native::{INSTRUCTION, Registers, USER_CODE32, USER_CODE64, USER_DATA};

pub struct Guest {
    cpu: CpuState,
    tlb: Box<TlbSet>,
    mem: PhysMem,
}

impl Guest {
    /// A processor at CPL 3 without paging, in 64-bit or flat 32-bit code.
    pub fn new(bits: u32) -> Guest {
        let mem = PhysMem::new(&MemoryConfig {
            ram_bytes: 16 << 20,
            copies: 2,
            legacy_hole: true,
        })
        .expect("memory for a test");
        let tlb = empty_tlb();
        let mut cpu = CpuState::at_reset();
        cpu.control.cr0 = flags::CR0_PE | flags::CR0_ET;
        cpu.control.efer = flags::EFER_LME | flags::EFER_LMA;
        let user = Segment::PRESENT | Segment::NOT_SYSTEM | 3 << 5 | Segment::ACCESSED;
        let data = Segment {
            base: 0,
            limit: u32::MAX,
            selector: USER_DATA,
            attributes: user | Segment::WRITABLE | Segment::BIG | Segment::GRANULAR,
        };
        let (size, selector) = if bits == 64 {
            (Segment::LONG, USER_CODE64)
        } else {
            (Segment::BIG, USER_CODE32)
        };
        let code = Segment {
            selector,
            attributes: user | Segment::CODE | Segment::WRITABLE | Segment::GRANULAR | size,
            ..data
        };
        let null = Segment::default();
        cpu.segments = [data, code, data, data, null, null];
        cpu.refresh_mode();
        Guest { cpu, tlb, mem }
    }

    /// Executes an instruction to its end: the registers, RIP, and the outcome.
    pub fn run(
        &mut self,
        insn: &Instruction,
        input: Registers,
    ) -> (Registers, u64, Result<(), Exception>) {
        self.cpu.gpr = input.gpr;
        self.cpu.rip = INSTRUCTION;
        let all = flags::ARITHMETIC | flags::SYSTEM | flags::IF | flags::DF;
        self.cpu.set_rflags(input.flags, all);
        let outcome = loop {
            let mut cx = Context {
                cpu: &mut self.cpu,
                tlb: &mut self.tlb,
                mem: &mut self.mem,
                platform: &mut NoDevices,
            };
            let outcome = execute(&mut cx, insn);
            // A long string takes several calls.
            if outcome.is_err() || self.cpu.rip != INSTRUCTION {
                break outcome;
            }
        };
        let output = Registers {
            gpr: self.cpu.gpr,
            flags: self.cpu.rflags(),
        };
        (output, self.cpu.rip, outcome)
    }

    pub fn store(&mut self, address: u64, bytes: &[u8]) {
        self.mem
            .store(GuestPhys(address), bytes)
            .expect("a store to RAM");
    }

    pub fn load(&mut self, address: u64, into: &mut [u8]) {
        self.mem
            .load(GuestPhys(address), into)
            .expect("a load from RAM");
    }
}
