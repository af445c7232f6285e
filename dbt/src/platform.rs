//! What a processor needs of the machine around it.

use mmu::{GuestPhys, PhysMem};

/// WRMSR refused: the processor raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// The machine as one processor sees it. `instructions` is the number of guest instructions
/// completed when the access happens: with a deterministic clock, time is a function of it.
///
/// What a machine does not say is as if there were no such device: reads give ones, nothing
/// interrupts, time is the instruction count.
pub trait Platform {
    /// IN of 1, 2 or 4 bytes.
    fn port_read(&mut self, mem: &mut PhysMem, instructions: u64, port: u16, size: u8) -> u32 {
        let _ = (mem, instructions, port, size);
        u32::MAX
    }
    /// OUT of 1, 2 or 4 bytes.
    fn port_write(
        &mut self,
        mem: &mut PhysMem,
        instructions: u64,
        port: u16,
        size: u8,
        value: u32,
    ) {
        let _ = (mem, instructions, port, size, value);
    }
    /// A load of 1, 2, 4 or 8 bytes from an address that is not RAM.
    fn mmio_read(
        &mut self,
        mem: &mut PhysMem,
        instructions: u64,
        address: GuestPhys,
        size: u8,
    ) -> u64 {
        let _ = (mem, instructions, address, size);
        u64::MAX
    }
    /// A store of 1, 2, 4 or 8 bytes to an address that is not RAM.
    fn mmio_write(
        &mut self,
        mem: &mut PhysMem,
        instructions: u64,
        address: GuestPhys,
        size: u8,
        value: u64,
    ) {
        let _ = (mem, instructions, address, size, value);
    }
    /// RDMSR of a register that belongs to the machine (the APIC's); `None`: not one of those.
    fn msr_read(&mut self, instructions: u64, msr: u32) -> Option<u64> {
        let _ = (instructions, msr);
        None
    }
    /// WRMSR likewise.
    fn msr_write(
        &mut self,
        instructions: u64,
        msr: u32,
        value: u64,
    ) -> Option<Result<(), Refused>> {
        let _ = (instructions, msr, value);
        None
    }
    /// CR8: the task priority, 0 to 15.
    fn task_priority(&mut self) -> u8 {
        0
    }
    /// Sets CR8.
    fn set_task_priority(&mut self, instructions: u64, priority: u8) {
        let _ = (instructions, priority);
    }
    /// The machine's time-stamp counter, before the guest's own offset.
    fn time_stamp(&mut self, instructions: u64) -> u64 {
        instructions
    }
    /// Whether [`Platform::time_stamp`] follows the host's time, whatever the guest executes.
    fn real_time(&self) -> bool {
        false
    }
    /// 64 random bits for RDRAND and RDSEED.
    fn random(&mut self) -> u64 {
        0
    }
    /// Whether an unmasked interrupt waits for EFLAGS.IF.
    fn interrupt_pending(&mut self) -> bool {
        false
    }
    /// Takes the waiting interrupt's vector.
    fn acknowledge_interrupt(&mut self, instructions: u64) -> Option<u8> {
        let _ = instructions;
        None
    }
    /// The FERR# pin: an unmasked x87 exception with CR0.NE clear (SDM volume 1, 8.7.2).
    fn floating_point_error(&mut self) {}
    /// Takes a waiting NMI.
    fn take_nmi(&mut self) -> bool {
        false
    }
}
