//! A virtual processor with page tables, handlers and a device that records, set up afresh for
//! every program.

use std::cell::RefCell;
use std::rc::Rc;

use dbt::guest::flags::*;
use dbt::guest::{CpuState, DescriptorTable, Segment};
use dbt::{EngineOptions, Platform, Refused, Vcpu};
use mmu::{GuestPhys, MemoryConfig, PhysMem};

use crate::program::Program;

const PAGE: u64 = 0x1000;
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
/// Where exceptions go, 16 bytes a vector.
pub const HANDLERS: u64 = 0x4000;
pub const HANDLERS_END: u64 = 0x5000;
/// The stack of exceptions grows down from here.
pub const HANDLER_STACK: u64 = 0x6000;
const TABLES: u64 = 0x8000;
const LEAF_TABLE: u64 = 0xb000;

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
const DEVICE_PHYSICAL: u64 = 0xfe00_0000;
const RAM: u64 = 0x10_0000;

const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const USER_CODE: u16 = 0x1b;
const USER_DATA: u16 = 0x23;
const TSS_SELECTOR: u16 = 0x28;

/// The physical address of a linear one that is mapped to RAM.
pub fn physical(linear: u64) -> u64 {
    let page = linear / PAGE;
    if !(0x10..0x40).contains(&page) {
        return linear;
    }
    (0x40 + ((page - 0x10) * 7 + 3) % 0x30) * PAGE + linear % PAGE
}

/// What the device saw: address, size, and the value written, if it was a write.
pub type DeviceLog = Rc<RefCell<Vec<(u64, u8, Option<u64>)>>>;

/// A machine with one device in memory.
struct Recorder(DeviceLog);

impl Platform for Recorder {
    fn port_read(&mut self, _: &mut PhysMem, _: u64, _: u16, _: u8) -> u32 {
        u32::MAX
    }
    fn port_write(&mut self, _: &mut PhysMem, _: u64, _: u16, _: u8, _: u32) {}
    fn mmio_read(&mut self, _: &mut PhysMem, _: u64, at: GuestPhys, size: u8) -> u64 {
        let mut log = self.0.borrow_mut();
        log.push((at.0, size, None));
        (at.0 ^ log.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
    fn mmio_write(&mut self, _: &mut PhysMem, _: u64, at: GuestPhys, size: u8, value: u64) {
        self.0.borrow_mut().push((at.0, size, Some(value)));
    }
    fn msr_read(&mut self, _: u64, _: u32) -> Option<u64> {
        None
    }
    fn msr_write(&mut self, _: u64, _: u32, _: u64) -> Option<Result<(), Refused>> {
        None
    }
    fn task_priority(&mut self) -> u8 {
        0
    }
    fn set_task_priority(&mut self, _: u64, _: u8) {}
    fn time_stamp(&mut self, _: u64) -> u64 {
        0
    }
    fn random(&mut self) -> u64 {
        4
    }
    fn interrupt_pending(&mut self) -> bool {
        false
    }
    fn acknowledge_interrupt(&mut self, _: u64) -> Option<u8> {
        None
    }
    fn take_nmi(&mut self) -> bool {
        false
    }
}

/// One engine under test.
pub struct Machine {
    pub vcpu: Vcpu,
    pub log: DeviceLog,
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
        let options = EngineOptions {
            code_bytes: 8 << 20,
            ..options
        };
        let vcpu =
            Vcpu::new(mem, Box::new(Recorder(log.clone())), options).expect("a virtual processor");
        Machine { vcpu, log }
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        self.vcpu
            .mem
            .store(GuestPhys(at), bytes)
            .expect("a store to RAM");
    }

    fn write_uint(&mut self, at: u64, size: usize, value: u64) {
        self.write(at, &value.to_le_bytes()[..size]);
    }

    /// Everything as the program wants it.
    pub fn set_up(&mut self, program: &Program) {
        self.log.borrow_mut().clear();
        self.write(0, &[0; 0xc000]);
        self.write_tables(program);
        for (linear, bytes) in &program.memory {
            for (index, page) in bytes.chunks(PAGE as usize).enumerate() {
                self.write(physical(linear + index as u64 * PAGE), page);
            }
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

    fn write_tables(&mut self, program: &Program) {
        let long = program.bits == 64;
        let entries: [u64; 6] = [
            0,
            if long {
                0x00af_9b00_0000_ffff
            } else {
                0x00cf_9b00_0000_ffff
            },
            0x00cf_9300_0000_ffff,
            if long {
                0x00af_fb00_0000_ffff
            } else {
                0x00cf_fb00_0000_ffff
            },
            0x00cf_f300_0000_ffff,
            0x0000_8b00_0000_0067 | TSS << 16,
        ];
        for (index, entry) in entries.into_iter().enumerate() {
            self.write_uint(GDT + 8 * index as u64, 8, entry);
        }
        for vector in 0..32u64 {
            let handler = HANDLERS + 16 * vector;
            let low = handler & 0xffff | u64::from(KERNEL_CODE) << 16 | 0x8e << 40;
            if long {
                // Every exception uses stack 1.
                self.write_uint(IDT + 16 * vector, 8, low | 1 << 32);
            } else {
                self.write_uint(IDT + 8 * vector, 8, low);
            }
            self.write(handler, &[0xf4]);
        }
        if program.maps_hole {
            let map = if long {
                // push rax; mov rax, cr2; or byte [entry], 1; invlpg [rax]; pop rax;
                // add rsp, 8; iretq
                let mut code = vec![0x50, 0x0f, 0x20, 0xd0, 0x80, 0x0c, 0x25];
                code.extend((LEAF_TABLE as u32 + 0x24 * 8).to_le_bytes());
                code.extend([1, 0x0f, 0x01, 0x38, 0x58, 0x48, 0x83, 0xc4, 8, 0x48, 0xcf]);
                code
            } else {
                let mut code = vec![0x50, 0x0f, 0x20, 0xd0, 0x80, 0x0d];
                code.extend((LEAF_TABLE as u32 + 0x24 * 4).to_le_bytes());
                code.extend([1, 0x0f, 0x01, 0x38, 0x58, 0x83, 0xc4, 4, 0xcf]);
                code
            };
            // Only the hole is mapped: any other page fault halts.
            let at = HANDLERS + 0x800;
            self.write(at, &map);
            let mut choose = Vec::new();
            if long {
                // push rax; mov rax, cr2; shr eax, 12; cmp eax, 0x24; pop rax; jz; hlt
                choose.extend([
                    0x50, 0x0f, 0x20, 0xd0, 0xc1, 0xe8, 12, 0x83, 0xf8, 0x24, 0x58,
                ]);
            } else {
                choose.extend([
                    0x50, 0x0f, 0x20, 0xd0, 0xc1, 0xe8, 12, 0x83, 0xf8, 0x24, 0x58,
                ]);
            }
            choose.extend([0x0f, 0x84]);
            let from = HANDLERS + 0x900;
            let next = from + choose.len() as u64 + 4;
            choose.extend((at.wrapping_sub(next) as u32).to_le_bytes());
            choose.push(0xf4);
            self.write(from, &choose);
            let gate = HANDLERS + 16 * 14;
            let mut jump = vec![0xe9];
            jump.extend((from.wrapping_sub(gate + 5) as u32).to_le_bytes());
            self.write(gate, &jump);
        }
        if long {
            self.write_uint(TSS + 4, 8, HANDLER_STACK);
            self.write_uint(TSS + 0x24, 8, HANDLER_STACK);
            self.write_uint(TABLES, 8, (TABLES + 0x1000) | 7);
            self.write_uint(TABLES + 0x1000, 8, (TABLES + 0x2000) | 7);
            self.write_uint(TABLES + 0x2000, 8, LEAF_TABLE | 7);
        } else {
            self.write_uint(TSS + 4, 4, HANDLER_STACK);
            self.write_uint(TSS + 8, 2, u64::from(KERNEL_DATA));
            self.write_uint(TABLES, 4, LEAF_TABLE | 7);
        }
        let size = if long { 8 } else { 4 };
        for page in 0..0x40u64 {
            let linear = page * PAGE;
            let entry = match linear {
                ..CODE => linear | 7,
                READ_ONLY => physical(linear) | 5,
                HOLE => physical(linear) | 6,
                DEVICE => DEVICE_PHYSICAL | 7,
                _ if (CODE..CODE + 2 * PAGE).contains(&linear)
                    || (DATA..DATA_END).contains(&linear)
                    || (STACK..STACK + 2 * PAGE).contains(&linear) =>
                {
                    physical(linear) | 7
                }
                _ => 0,
            };
            self.write_uint(LEAF_TABLE + page * size, size as usize, entry);
        }
    }

    /// All of RAM.
    pub fn memory(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; 0x7_0000];
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
    control.cr3 = TABLES;
    control.cr4 = (CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE) & !program.cr4_off;
    control.xcr0 = 7;
    if long {
        control.cr4 |= CR4_PAE;
        control.efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
    }
    control.gdtr = DescriptorTable {
        base: GDT,
        limit: 0x2f,
    };
    control.idtr = DescriptorTable {
        base: IDT,
        limit: if long { 0x1ff } else { 0xff },
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
    if long {
        cpu.segments[4].base = DATA;
        cpu.segments[5].base = DATA + 0x1000;
    }
    cpu.gpr = program.gpr;
    cpu.rip = program.start;
    cpu.arithmetic_flags = program.flags & ARITHMETIC;
    cpu.direction_flag = u8::from(program.flags & DF != 0);
    cpu.vector.ymm = program.ymm;
    cpu.vector.fxsave.0[..160].copy_from_slice(&program.x87);
    cpu.refresh_mode();
}
