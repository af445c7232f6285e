//! A processor with memory and one recording device, driven an instruction at a time.

use crate::common::empty_tlb;
use dbt::Platform;
use dbt::guest::{CpuState, Exception, Segment, SegmentIndex, flags};
use dbt::interpret::{Context, execute};
use iced_x86::{Decoder, DecoderOptions};
use mmu::{GuestPhys, MemoryConfig, PhysMem, TlbSet};

/// Where tests put their code.
pub const CODE: u64 = 0x8000;
/// Where the page tables are, if there are any.
const TABLES: u64 = 0x10_0000;

/// Ports that count what they give and remember what they take.
#[derive(Default)]
pub struct Ports {
    pub reads: u32,
    pub written: Vec<(u16, u8, u32)>,
}

impl Platform for Ports {
    fn port_read(&mut self, _: &mut PhysMem, _: u64, _: u16, _: u8) -> u32 {
        self.reads += 1;
        self.reads * 0x0101_0101
    }
    fn port_write(&mut self, _: &mut PhysMem, _: u64, port: u16, size: u8, value: u32) {
        self.written.push((port, size, value));
    }
    fn random(&mut self) -> u64 {
        0x1122_3344_5566_7788
    }
}

pub struct Machine {
    pub cpu: CpuState,
    pub ports: Ports,
    tlb: Box<TlbSet>,
    pub mem: PhysMem,
}

/// A data segment's attributes at a privilege level.
pub const fn data_rights(dpl: u16) -> u16 {
    Segment::PRESENT
        | Segment::NOT_SYSTEM
        | dpl << 5
        | Segment::ACCESSED
        | Segment::WRITABLE
        | Segment::BIG
}

impl Machine {
    /// Real mode, all segments at 0.
    pub fn real() -> Machine {
        let mem = PhysMem::new(&MemoryConfig {
            ram_bytes: 4 << 20,
            copies: 2,
            legacy_hole: true,
        })
        .expect("memory for a test");
        let tlb = empty_tlb();
        let mut cpu = CpuState::at_reset();
        cpu.gpr = [0; 16];
        cpu.segment_mut(SegmentIndex::Cs).base = 0;
        cpu.segment_mut(SegmentIndex::Cs).selector = 0;
        cpu.refresh_mode();
        Machine {
            cpu,
            ports: Ports::default(),
            tlb,
            mem,
        }
    }

    /// Protected mode, flat, 32 bits, at a privilege level.
    pub fn protected(cpl: u16) -> Machine {
        let mut machine = Machine::real();
        machine.cpu.control.cr0 |= flags::CR0_PE;
        machine.flatten(cpl, Segment::BIG);
        machine
    }

    /// Long mode, 64 bits, with the first 2 MiB mapped one to one.
    pub fn long(cpl: u16) -> Machine {
        let mut machine = Machine::real();
        let cpu = &mut machine.cpu;
        cpu.control.cr0 |= flags::CR0_PE | flags::CR0_PG | flags::CR0_WP;
        cpu.control.cr4 |= flags::CR4_PAE;
        cpu.control.efer = flags::EFER_LME | flags::EFER_LMA;
        cpu.control.cr3 = TABLES;
        machine.flatten(cpl, Segment::LONG);
        for level in 0..3 {
            let table = TABLES + level * 0x1000;
            machine.store(table, 8, (table + 0x1000) | 7);
        }
        for page in 0..512 {
            machine.map(page << 12, 7);
        }
        machine
    }

    /// Virtual-8086 mode.
    pub fn vm86() -> Machine {
        let mut machine = Machine::real();
        machine.cpu.control.cr0 |= flags::CR0_PE;
        machine.cpu.system_flags |= flags::VM;
        machine.cpu.refresh_mode();
        machine
    }

    fn flatten(&mut self, cpl: u16, code_size: u16) {
        let data = Segment {
            base: 0,
            limit: u32::MAX,
            selector: 0x10 | cpl,
            attributes: data_rights(cpl),
        };
        let code = Segment {
            selector: 8 | cpl,
            attributes: (data.attributes & !Segment::BIG) | Segment::CODE | code_size,
            ..data
        };
        self.cpu.segments = [data, code, data, data, data, data];
        self.cpu.refresh_mode();
    }

    /// Sets the rights of a page below 2 MiB in long mode: 0 unmaps it.
    pub fn map(&mut self, address: u64, rights: u64) {
        let entry = TABLES + 0x3000 + (address >> 12) * 8;
        self.store(entry, 8, address | rights);
        self.tlb.flush(true);
    }

    pub fn store(&mut self, address: u64, size: usize, value: u64) {
        self.mem
            .store(GuestPhys(address), &value.to_le_bytes()[..size])
            .expect("a store to RAM");
    }

    pub fn load(&mut self, address: u64, size: usize) -> u64 {
        let mut bytes = [0; 8];
        self.mem
            .load(GuestPhys(address), &mut bytes[..size])
            .expect("a load from RAM");
        u64::from_le_bytes(bytes)
    }

    /// Executes one call's worth of an instruction at [`CODE`].
    pub fn run(&mut self, bytes: &[u8]) -> Result<(), Exception> {
        self.cpu.rip = CODE;
        let bits = self.cpu.mode.code_size().bits();
        let insn = Decoder::with_ip(bits, bytes, CODE, DecoderOptions::NONE).decode();
        let before = self.cpu.gpr;
        let mut cx = Context {
            cpu: &mut self.cpu,
            tlb: &mut self.tlb,
            mem: &mut self.mem,
            platform: &mut self.ports,
        };
        let outcome = execute(&mut cx, &insn);
        if outcome.is_err() {
            assert_eq!(self.cpu.rip, CODE, "RIP after a fault of {insn}");
            if !insn.is_string_instruction() {
                assert_eq!(self.cpu.gpr, before, "registers after a fault of {insn}");
            }
        }
        outcome
    }

    /// Executes an instruction that must not fault.
    pub fn ok(&mut self, bytes: &[u8]) -> &mut Machine {
        self.run(bytes).expect("no fault");
        self
    }
}
