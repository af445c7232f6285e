//! A virtual processor with page tables, handlers and a device that records, set up afresh for
//! every program.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use dbt::guest::flags::*;
use dbt::guest::{CpuState, DescriptorTable, Segment};
use dbt::{EngineOptions, Platform, Vcpu};
use mmu::{GuestPhys, MemoryConfig, PhysMem};

use crate::program::Program;
use crate::tables::{self, *};

pub const PAGE: u64 = 0x1000;
/// Linear pages that programs use. They are scattered in physical memory.
pub const CODE: u64 = 0x1_0000;
pub const DATA: u64 = 0x2_0000;
/// One past the data; the next page is not present until a handler maps it.
pub const DATA_END: u64 = 0x2_4000;
pub const HOLE: u64 = 0x2_4000;
pub const READ_ONLY: u64 = 0x2_5000;
pub const DEVICE: u64 = 0x2_6000;
pub const STACK: u64 = 0x3_0000;
pub const STACK_TOP: u64 = 0x3_1800;
pub const DEVICE_PHYSICAL: u64 = 0xfe00_0000;
const RAM: u64 = 0x10_0000;

/// The physical address of a linear one that is mapped to RAM.
pub fn physical(linear: u64) -> u64 {
    let page = linear / PAGE;
    if !(0x10..0x40).contains(&page) {
        return linear;
    }
    (0x40 + ((page - 0x10) * 7 + 3) % 0x30) * PAGE + linear % PAGE
}

/// What the device saw.
#[derive(Clone, PartialEq, Debug)]
pub struct Access {
    pub at: u64,
    pub size: u8,
    /// The value written, if it was a write.
    pub written: Option<u64>,
    /// Instructions completed by then.
    pub instructions: u64,
}

/// In order.
pub type DeviceLog = Rc<RefCell<Vec<Access>>>;

/// A machine with one device in memory, and one interrupt.
struct Recorder(DeviceLog, Rc<Cell<bool>>);

impl Platform for Recorder {
    fn mmio_read(&mut self, _: &mut PhysMem, instructions: u64, at: GuestPhys, size: u8) -> u64 {
        let mut log = self.0.borrow_mut();
        log.push(Access {
            at: at.0,
            size,
            written: None,
            instructions,
        });
        (at.0 ^ log.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
    fn mmio_write(
        &mut self,
        _: &mut PhysMem,
        instructions: u64,
        at: GuestPhys,
        size: u8,
        value: u64,
    ) {
        self.0.borrow_mut().push(Access {
            at: at.0,
            size,
            written: Some(value),
            instructions,
        });
    }
    fn random(&mut self) -> u64 {
        4
    }
    fn interrupt_pending(&mut self) -> bool {
        self.1.get()
    }
    fn acknowledge_interrupt(&mut self, _: u64) -> Option<u8> {
        self.1.take().then_some(HARDWARE)
    }
}

/// One engine under test.
pub struct Machine {
    pub vcpu: Vcpu,
    pub log: DeviceLog,
    /// Whether the interrupt waits.
    pub interrupt: Rc<Cell<bool>>,
    /// Instructions executed before the program.
    base: u64,
    counted: bool,
    /// Whether flags are right also where the code has no use for them.
    pub precise_flags: bool,
}

impl Machine {
    pub fn new(options: EngineOptions, copies: usize) -> Machine {
        let mem = PhysMem::new(&MemoryConfig {
            ram_bytes: RAM,
            copies,
            legacy_hole: false,
        })
        .expect("a megabyte of guest memory");
        let log = DeviceLog::default();
        let (counted, precise_flags) = (options.counted, options.precise_flags);
        let options = EngineOptions {
            // Few enough that areas are emptied now and then.
            code_bytes: 2 << 20,
            ..options
        };
        let interrupt = Rc::new(Cell::new(false));
        let recorder = Recorder(log.clone(), interrupt.clone());
        let vcpu = Vcpu::new(mem, Box::new(recorder), options).expect("a virtual processor");
        Machine {
            vcpu,
            log,
            interrupt,
            base: 0,
            counted,
            precise_flags,
        }
    }

    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        self.vcpu
            .mem
            .store(GuestPhys(at), bytes)
            .expect("a store to RAM");
    }

    pub fn write_uint(&mut self, at: u64, size: usize, value: u64) {
        self.write(at, &value.to_le_bytes()[..size]);
    }

    /// Everything as the program wants it.
    pub fn set_up(&mut self, program: &Program) {
        self.log.borrow_mut().clear();
        self.base = self.vcpu.instructions();
        self.interrupt.set(false);
        tables::write(self, program);
        for (linear, bytes) in &program.memory {
            for (index, page) in bytes.chunks(PAGE as usize).enumerate() {
                let linear = linear + index as u64 * PAGE;
                self.write(physical(linear), page);
                if has_alternate(linear) {
                    self.write(alternate(physical(linear)), page);
                }
            }
        }
        for &at in &program.alternate_bytes {
            // The same code with another immediate.
            self.write(alternate(physical(at)), &[0x77]);
        }
        if program.fresh {
            self.vcpu.forget_everything();
        } else {
            self.vcpu.context().flush_tlb(true);
        }
        let cpu = self.vcpu.cpu_mut();
        *cpu = CpuState::at_reset();
        set_up_processor(cpu, program);
    }

    /// What the device saw; when, only if asked and if this engine counts.
    pub fn accesses(&self, when: bool) -> Vec<Access> {
        let when = when && self.counted;
        let relative = |access: &Access| Access {
            instructions: if when {
                access.instructions.wrapping_sub(self.base)
            } else {
                0
            },
            ..access.clone()
        };
        self.log.borrow().iter().map(relative).collect()
    }

    /// Whether instructions are counted.
    pub fn counts(&self) -> bool {
        self.counted
    }

    /// All of RAM.
    pub fn memory(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; 0xf_0000];
        self.vcpu
            .mem
            .load(GuestPhys(0), &mut bytes)
            .expect("a load from RAM");
        bytes
    }
}

fn set_up_processor(cpu: &mut CpuState, program: &Program) {
    let long = program.bits == 64;
    let control = &mut cpu.control;
    control.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG | program.cr0;
    control.cr3 = SPACES[0];
    control.cr4 = (CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE) & !program.cr4_off;
    control.xcr0 = 7;
    if program.smap {
        control.cr4 |= CR4_SMAP;
    }
    if program.pcid {
        control.cr3 |= 1;
        control.cr4 |= CR4_PCIDE;
    }
    if long {
        control.cr4 |= CR4_PAE;
        control.efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
    }
    control.gdtr = DescriptorTable {
        base: GDT,
        limit: 0x37,
    };
    control.idtr = DescriptorTable {
        base: IDT,
        limit: if long { 0x2ff } else { 0x17f },
    };
    control.tr = Segment {
        base: TSS,
        limit: 0x67,
        selector: TSS_SELECTOR,
        attributes: 0x8b,
    };
    control.ldtr = Segment::default();
    let user = program.ring == 3;
    let (code, data) = if user {
        (USER_CODE, USER_DATA)
    } else {
        (KERNEL_CODE, KERNEL_DATA)
    };
    let rights = u16::from(program.ring) << 5;
    let flat = |selector: u16, attributes: u16| Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        attributes: attributes | rights,
    };
    for segment in &mut cpu.segments {
        *segment = flat(data, 0xc093);
    }
    cpu.segments[1] = flat(code, if long { 0xa09b } else { 0xc09b });
    cpu.segments[4].base = DATA;
    cpu.segments[5].base = DATA + 0x1000;
    if long {
        cpu.msrs.kernel_gs_base = DATA + 0x800;
        cpu.msrs.star = STAR;
        cpu.msrs.lstar = SYSCALL;
        cpu.msrs.fmask = IF | DF;
    }
    cpu.gpr = program.gpr;
    cpu.rip = program.start;
    cpu.arithmetic_flags = program.flags & ARITHMETIC;
    cpu.interrupt_flag = u8::from(!program.interrupts.is_empty());
    if program.smap {
        cpu.system_flags |= AC;
    }
    cpu.vector.ymm = program.ymm;
    cpu.vector.fxsave.0[..160].copy_from_slice(&program.x87);
    cpu.refresh_mode();
}
