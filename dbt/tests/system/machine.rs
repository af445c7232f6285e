//! A processor with a little memory, descriptor tables and a machine that records.

use crate::common::empty_tlb;
use dbt::guest::flags::*;
use dbt::guest::{CpuState, DescriptorTable, Exception, Segment, SegmentIndex};
use dbt::interpret::system::deliver;
use dbt::interpret::{Context, execute};
use dbt::{EngineOptions, Platform, Refused, Vcpu};
use iced_x86::{Decoder, DecoderOptions};
use mmu::{GuestPhys, MemoryConfig, PhysMem, TlbSet};

pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS_A: u64 = 0x3000;
pub const TSS_B: u64 = 0x3800;
pub const PAGES: u64 = 0x4000;
pub const CODE: u64 = 0x1_0000;
pub const HANDLER: u64 = 0x1_8000;
pub const KERNEL_STACK: u64 = 0x2_0000;
pub const USER_STACK: u64 = 0x3_0000;

pub const CODE0: u16 = 0x08;
pub const DATA0: u16 = 0x10;
pub const CODE3: u16 = 0x1b;
pub const DATA3: u16 = 0x23;
pub const TSS_A_SELECTOR: u16 = 0x28;
pub const TSS_B_SELECTOR: u16 = 0x30;
pub const CALL_GATE: u16 = 0x3b;
pub const CONFORMING: u16 = 0x40;
pub const ABSENT: u16 = 0x48;
pub const LONG_CODE0: u16 = 0x50;
pub const LONG_DATA0: u16 = 0x58;
/// SYSRET's base: 32-bit code, data, 64-bit code.
pub const SYSRET_BASE: u16 = 0x60;
pub const LONG_DATA3: u16 = 0x6b;
pub const LONG_CODE3: u16 = 0x73;
pub const LONG_TSS: u16 = 0x78;
pub const TASK_GATE: u16 = 0x93;
pub const READ_ONLY: u16 = 0xa0;
pub const EXECUTE_ONLY: u16 = 0xa8;
pub const LDT: u16 = 0xb0;
pub const SMALL_CODE: u16 = 0xb8;
pub const CALL_GATE_16: u16 = 0xc3;
pub const LONG_CALL_GATE: u16 = 0xcb;
pub const GDT_LIMIT: u16 = 0xd7;

/// Base, limit in its own unit, attributes as [`Segment`] keeps them.
pub fn descriptor(base: u64, limit: u64, attributes: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (attributes & 0xff) << 40
        | (limit >> 16 & 15) << 48
        | (attributes >> 12) << 52
        | (base >> 24 & 0xff) << 56
}

/// A gate: type, DPL, parameter count or IST.
pub fn gate(selector: u16, offset: u64, kind: u64, dpl: u64, count: u64) -> u64 {
    offset & 0xffff
        | u64::from(selector) << 16
        | count << 32
        | (0x80 | dpl << 5 | kind) << 40
        | (offset >> 16 & 0xffff) << 48
}

#[derive(Default)]
pub struct Recorder {
    pub ports: Vec<(u16, u8, u32)>,
    pub vector: Option<u8>,
    pub nmi: bool,
    pub priority: u8,
    pub time: u64,
}

impl Platform for Recorder {
    fn port_read(&mut self, _: &mut PhysMem, _: u64, port: u16, size: u8) -> u32 {
        self.ports.push((port, size, u32::MAX));
        0x1234_5678
    }
    fn port_write(&mut self, _: &mut PhysMem, _: u64, port: u16, size: u8, value: u32) {
        self.ports.push((port, size, value));
    }
    fn msr_read(&mut self, _: u64, msr: u32) -> Option<u64> {
        (msr == 0x1b).then_some(0xfee0_0900)
    }
    fn msr_write(&mut self, _: u64, msr: u32, _: u64) -> Option<Result<(), Refused>> {
        (msr == 0x1b).then_some(Ok(()))
    }
    fn task_priority(&mut self) -> u8 {
        self.priority
    }
    fn set_task_priority(&mut self, _: u64, priority: u8) {
        self.priority = priority;
    }
    fn time_stamp(&mut self, _: u64) -> u64 {
        self.time
    }
    fn random(&mut self) -> u64 {
        4
    }
    fn interrupt_pending(&mut self) -> bool {
        self.vector.is_some()
    }
    fn acknowledge_interrupt(&mut self, _: u64) -> Option<u8> {
        self.vector.take()
    }
    fn take_nmi(&mut self) -> bool {
        std::mem::take(&mut self.nmi)
    }
}

fn on_platform(
    cpu: CpuState,
    mem: PhysMem,
    platform: Box<dyn Platform>,
    options: EngineOptions,
) -> Vcpu {
    let mut vcpu = Vcpu::new(mem, platform, options).expect("a processor");
    *vcpu.cpu_mut() = cpu;
    vcpu.forget_everything();
    vcpu
}

/// Options of an engine that counts, and translates at once if it translates.
pub fn counting(interpret_only: bool) -> EngineOptions {
    EngineOptions {
        counted: true,
        interpret_only,
        cold: 0,
        code_bytes: 2 << 20,
        ..EngineOptions::default()
    }
}

pub struct Machine {
    pub cpu: CpuState,
    pub tlb: Box<TlbSet>,
    pub mem: PhysMem,
    pub platform: Recorder,
}

impl Machine {
    /// In real mode, about to execute at 0:8000 with a stack below 0:7000.
    pub fn real() -> Machine {
        let mem = PhysMem::new(&MemoryConfig {
            ram_bytes: 4 << 20,
            copies: 2,
            legacy_hole: false,
        })
        .expect("4 MiB of guest memory");
        let mut cpu = CpuState::at_reset();
        *cpu.segment_mut(SegmentIndex::Cs) = Segment::real(0);
        cpu.rip = 0x8000;
        cpu.gpr[4] = 0x7000;
        cpu.refresh_mode();
        Machine {
            cpu,
            tlb: empty_tlb(),
            mem,
            platform: Recorder::default(),
        }
    }

    /// In protected mode, ring 0 or 3, without paging.
    pub fn protected(ring: u8) -> Machine {
        let mut machine = Machine::real();
        machine.write_tables();
        let cpu = &mut machine.cpu;
        cpu.control.cr0 |= CR0_PE;
        cpu.control.gdtr = DescriptorTable {
            base: GDT,
            limit: GDT_LIMIT,
        };
        cpu.control.idtr = DescriptorTable {
            base: IDT,
            limit: 0x7ff,
        };
        cpu.control.tr = Segment {
            base: TSS_A,
            limit: 0x87,
            selector: TSS_A_SELECTOR,
            attributes: 0x8b,
        };
        cpu.control.ldtr = Segment::default();
        let (code, data, stack) = if ring == 0 {
            (CODE0, DATA0, KERNEL_STACK)
        } else {
            (CODE3, DATA3, USER_STACK)
        };
        machine.load_flat(code, data, 0xc09b, 0xc093);
        machine.cpu.gpr[4] = stack;
        machine.cpu.rip = CODE;
        machine.cpu.refresh_mode();
        machine
    }

    /// In 64-bit mode, ring 0 or 3, the first gigabyte mapped as itself, user pages.
    pub fn long(ring: u8) -> Machine {
        let mut machine = Machine::protected(0);
        machine.write(PAGES, 8, (PAGES + 0x1000) | 7);
        machine.write(PAGES + 0x1000, 8, 0x87);
        // The IDT entries become 16 bytes long; the TSS holds 64-bit stacks.
        for vector in 0..64 {
            let low = gate(LONG_CODE0, HANDLER + 16 * vector, 14, 0, 0);
            machine.write(IDT + 16 * vector, 8, low);
            machine.write(IDT + 16 * vector + 8, 8, 0);
        }
        machine.write(TSS_A + 4, 8, KERNEL_STACK);
        machine.write(TSS_A + 0x24, 8, KERNEL_STACK + 0x1008);
        let cpu = &mut machine.cpu;
        cpu.control.idtr.limit = 0x3ff;
        cpu.control.cr3 = PAGES;
        cpu.control.cr4 |= CR4_PAE;
        cpu.control.cr0 |= CR0_PG;
        cpu.control.efer |= EFER_LME | EFER_LMA | EFER_SCE;
        cpu.control.tr.selector = LONG_TSS;
        if ring == 0 {
            machine.load_flat(LONG_CODE0, LONG_DATA0, 0xa09b, 0xc093);
        } else {
            machine.load_flat(LONG_CODE3, LONG_DATA3, 0xa09b, 0xc093);
            machine.cpu.gpr[4] = USER_STACK;
        }
        machine.cpu.refresh_mode();
        machine
    }

    /// Loads CS and the data segments with flat ones.
    pub fn load_flat(&mut self, code: u16, data: u16, code_rights: u16, data_rights: u16) {
        let segment = |selector: u16, rights: u16| Segment {
            base: 0,
            limit: u32::MAX,
            selector,
            attributes: rights | (selector & 3) << 5,
        };
        for index in 0..6 {
            self.cpu.segments[index] = segment(data, data_rights);
        }
        *self.cpu.segment_mut(SegmentIndex::Cs) = segment(code, code_rights);
        self.cpu.refresh_mode();
    }

    /// The processor in an engine of its own, with the platform that records.
    pub fn into_vcpu(self, options: EngineOptions) -> Vcpu {
        on_platform(self.cpu, self.mem, Box::new(self.platform), options)
    }

    /// Likewise, with another platform.
    pub fn into_vcpu_on(self, platform: Box<dyn Platform>, options: EngineOptions) -> Vcpu {
        on_platform(self.cpu, self.mem, platform, options)
    }

    fn write_tables(&mut self) {
        let flat = 0xf_ffff;
        let entries = [
            (CODE0, descriptor(0, flat, 0xc09a)),
            (DATA0, descriptor(0, flat, 0xc092)),
            (CODE3, descriptor(0, flat, 0xc0fa)),
            (DATA3, descriptor(0, flat, 0xc0f2)),
            (TSS_A_SELECTOR, descriptor(TSS_A, 0x87, 0x8b)),
            (TSS_B_SELECTOR, descriptor(TSS_B, 0x67, 0x89)),
            (CALL_GATE, gate(CODE0, HANDLER, 12, 3, 2)),
            (CONFORMING, descriptor(0, flat, 0xc09e)),
            (ABSENT, descriptor(0, flat, 0xc012)),
            (LONG_CODE0, descriptor(0, flat, 0xa09a)),
            (LONG_DATA0, descriptor(0, flat, 0xc092)),
            (SYSRET_BASE, descriptor(0, flat, 0xc0fa)),
            (LONG_DATA3, descriptor(0, flat, 0xc0f2)),
            (LONG_CODE3, descriptor(0, flat, 0xa0fa)),
            (LONG_TSS, descriptor(TSS_A, 0x87, 0x89)),
            (LONG_TSS + 8, 0),
            (TASK_GATE, gate(TSS_B_SELECTOR, 0, 5, 3, 0)),
            (READ_ONLY, descriptor(0, flat, 0xc090)),
            (EXECUTE_ONLY, descriptor(0, flat, 0xc098)),
            (LDT, descriptor(0x6000, 0xff, 0x82)),
            (SMALL_CODE, descriptor(0, 0xfff, 0x409a)),
            (CALL_GATE_16, gate(CODE0, HANDLER, 4, 3, 1)),
            (LONG_CALL_GATE, gate(LONG_CODE0, HANDLER, 12, 3, 0)),
            (LONG_CALL_GATE + 8, 0),
        ];
        for (selector, entry) in entries {
            self.write(GDT + u64::from(selector & 0xfff8), 8, entry);
        }
        for vector in 0..64u64 {
            let dpl = if vector == 0x31 { 3 } else { 0 };
            let entry = gate(CODE0, HANDLER + 16 * vector, 14, dpl, 0);
            self.write(IDT + 8 * vector, 8, entry);
        }
        // An absent gate, a trap gate, a 16-bit gate, a task gate.
        let absent = gate(CODE0, HANDLER, 14, 3, 0) & !(0x80 << 40);
        self.write(IDT + 8 * 0x32, 8, absent);
        self.write(IDT + 8 * 0x33, 8, gate(CODE0, HANDLER, 15, 3, 0));
        let narrow = gate(CODE0, HANDLER | 0x7777_0000, 6, 3, 0);
        self.write(IDT + 8 * 0x34, 8, narrow);
        self.write(IDT + 8 * 0x35, 8, gate(TSS_B_SELECTOR, 0, 5, 3, 0));
        self.write(TSS_A + 4, 4, KERNEL_STACK);
        self.write(TSS_A + 8, 2, u64::from(DATA0));
        self.write(TSS_A + 102, 2, 0x68);
        self.write(TSS_A + 0x87, 1, 0xff);
    }

    pub fn write(&mut self, at: u64, size: usize, value: u64) {
        self.mem
            .store_uint(GuestPhys(at), size, value)
            .expect("a store to RAM");
    }

    pub fn read(&mut self, at: u64, size: usize) -> u64 {
        self.mem
            .load_uint(GuestPhys(at), size)
            .expect("a load from RAM")
    }

    /// The values on top of the current stack, from the top.
    pub fn stack(&mut self, size: usize, count: usize) -> Vec<u64> {
        let base = if self.cpu.code64() {
            0
        } else {
            self.cpu.segment(SegmentIndex::Ss).base
        };
        let top = base + self.cpu.gpr[4];
        (0..count)
            .map(|index| self.read(top + (index * size) as u64, size))
            .collect()
    }

    pub fn selector(&self, index: SegmentIndex) -> u16 {
        self.cpu.segment(index).selector
    }

    pub fn context(&mut self) -> Context<'_> {
        Context {
            cpu: &mut self.cpu,
            tlb: &mut self.tlb,
            mem: &mut self.mem,
            platform: &mut self.platform,
        }
    }

    /// Puts code at RIP and executes its first instruction.
    pub fn step(&mut self, code: &[u8]) -> Result<(), Exception> {
        let mut decoder = Decoder::with_ip(
            self.cpu.mode.code_size().bits(),
            code,
            self.cpu.rip,
            DecoderOptions::NONE,
        );
        let insn = decoder.decode();
        if insn.is_invalid() {
            return Err(Exception::invalid_opcode());
        }
        execute(&mut self.context(), &insn)
    }

    /// Executes an instruction that has to succeed.
    pub fn run(&mut self, code: &[u8]) {
        let rip = self.cpu.rip;
        if let Err(fault) = self.step(code) {
            panic!("{code:x?} at {rip:#x} raised {fault:?}");
        }
    }

    /// Executes, and delivers what is raised.
    pub fn step_and_deliver(&mut self, code: &[u8]) -> Result<(), deliver::Shutdown> {
        match self.step(code) {
            Ok(()) => Ok(()),
            Err(fault) => deliver::exception(&mut self.context(), fault),
        }
    }
}
