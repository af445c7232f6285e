//! Instruction budgets end, whatever the guest does.

use dbt::guest::DescriptorTable;
use dbt::{EngineOptions, Platform, Refused, Stop, Vcpu};
use mmu::{GuestPhys, MemoryConfig, PhysMem};

/// Nothing is there.
struct Nothing;

impl Platform for Nothing {
    fn port_read(&mut self, _: &mut PhysMem, _: u64, _: u16, _: u8) -> u32 {
        u32::MAX
    }
    fn port_write(&mut self, _: &mut PhysMem, _: u64, _: u16, _: u8, _: u32) {}
    fn mmio_read(&mut self, _: &mut PhysMem, _: u64, _: GuestPhys, _: u8) -> u64 {
        u64::MAX
    }
    fn mmio_write(&mut self, _: &mut PhysMem, _: u64, _: GuestPhys, _: u8, _: u64) {}
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
        0
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

#[test]
fn a_handler_that_faults_at_once_uses_the_budget_up() {
    let mem = PhysMem::new(&MemoryConfig {
        ram_bytes: 1 << 20,
        copies: 2,
        legacy_hole: false,
    })
    .expect("memory for a test");
    let options = EngineOptions {
        counted: true,
        ..EngineOptions::default()
    };
    let mut vcpu = Vcpu::new(mem, Box::new(Nothing), options).expect("a virtual processor");
    // UD2, and the handler of #UD is that UD2.
    vcpu.mem
        .store(GuestPhys(0x8000), &[0x0f, 0x0b])
        .expect("a store to RAM");
    vcpu.mem
        .store(GuestPhys(6 * 4), &[0, 0x80, 0, 0])
        .expect("a store to RAM");
    let cpu = vcpu.cpu_mut();
    cpu.segments[1].base = 0;
    cpu.segments[1].selector = 0;
    cpu.control.idtr = DescriptorTable {
        base: 0,
        limit: 0x3ff,
    };
    cpu.rip = 0x8000;
    vcpu.set_goal(1000);
    assert_eq!(vcpu.run(), Stop::Budget);
    assert!(vcpu.instructions() >= 1000);
}
