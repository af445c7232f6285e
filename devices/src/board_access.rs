//! The board as the processor's instructions reach it: ports, memory-mapped
//! registers, model-specific registers.

use crate::acpi_pm::Request;
use crate::board::{Board, SOURCE_MAIN, SOURCE_TEST};
use crate::board_config::BoardEvent;
use crate::debug_ports::DebugExit;
use crate::host_bridge::HostBridge;
use crate::lapic::{Effect, GeneralProtection};
use crate::wiring::{Chip, IRQ_FERR};

const MSR_APIC_BASE: u32 = 0x1B;
const MSR_TSC_DEADLINE: u32 = 0x6E0;
const MSR_X2APIC_FIRST: u32 = 0x800;
const MSR_X2APIC_LAST: u32 = 0x8FF;

/// All ones in `size` bytes.
fn all_ones(size: u8) -> u64 {
    if size >= 8 {
        u64::MAX
    } else {
        (1 << (8 * size)) - 1
    }
}

impl Board {
    /// IN: reads `size` (1, 2 or 4) bytes. Ports that nobody claims give all ones.
    pub fn port_read(&mut self, now: u64, port: u16, size: u8) -> u32 {
        if let Some(range) = self.ports.find(port) {
            let last = u64::from(port) + u64::from(size) - 1;
            if size == 1 || (range.wide && last <= range.last) {
                let (chip, offset) = (range.target, port.wrapping_sub(range.first as u16));
                return self.read_chip(now, chip, offset, size) & all_ones(size) as u32;
            }
        } else if size == 1 {
            tracing::trace!(port, "read of an unclaimed port");
            return 0xFF;
        }
        (0..size.min(4)).fold(0, |value, byte| {
            let part = self.port_read(now, port.wrapping_add(u16::from(byte)), 1);
            value | part << (8 * byte)
        })
    }

    /// OUT: writes `size` (1, 2 or 4) bytes. Ports that nobody claims ignore it.
    pub fn port_write(&mut self, now: u64, port: u16, size: u8, value: u32) {
        if let Some(range) = self.ports.find(port) {
            let last = u64::from(port) + u64::from(size) - 1;
            if size == 1 || (range.wide && last <= range.last) {
                let (chip, offset) = (range.target, port.wrapping_sub(range.first as u16));
                let value = value & all_ones(size) as u32;
                return self.write_chip(now, chip, offset, size, value);
            }
        } else if size == 1 {
            tracing::trace!(port, value, "write to an unclaimed port");
            return;
        }
        for byte in 0..size.min(4) {
            let part = value >> (8 * byte) & 0xFF;
            self.port_write(now, port.wrapping_add(u16::from(byte)), 1, part);
        }
    }

    fn read_chip(&mut self, now: u64, chip: Chip, offset: u16, size: u8) -> u32 {
        u32::from(match chip {
            Chip::Pic(chip) => {
                let value = self.pic.read(usize::from(chip), offset & 1 != 0);
                self.refresh_pic(); // a poll acknowledges
                value
            }
            Chip::Elcr => self.pic.read_elcr(usize::from(offset)),
            Chip::Pit => self.pit.read(now, offset),
            Chip::SystemControl => self.pit.read_control_port(now),
            Chip::I8042Data => self.read_keyboard_data(),
            Chip::I8042Command => self.i8042.read_status(),
            Chip::FastA20 => self.i8042.read_fast_a20(),
            Chip::Rtc => {
                let value = self.rtc.read(now, offset);
                self.sync_rtc();
                value
            }
            Chip::PostCode => self.debug.read_post(offset),
            Chip::Serial(number) => {
                let Some(serial) = &mut self.serials[usize::from(number & 3)] else {
                    return 0xFF;
                };
                let value = serial.read(now, offset);
                self.sync_serial(usize::from(number));
                value
            }
            Chip::SmiCommand => self.pm.read_smi(offset),
            Chip::PciAddress if size == 1 && offset == 1 => self.pm.read_reset(),
            Chip::PciAddress => {
                let whole = size == 4 && offset == 0;
                let bridge = self.host_bridge.as_ref().filter(|_| whole);
                return bridge.map_or(u32::MAX, HostBridge::read_address);
            }
            Chip::PciData => {
                let bridge = self.host_bridge.as_ref();
                return bridge.map_or(u32::MAX, |bridge| bridge.read_data(offset, size));
            }
            Chip::PmBlock => {
                let value = self.pm.read(now, offset, size);
                self.sync_pm();
                return value;
            }
            Chip::Gpe => self.pm.read_gpe(offset),
            Chip::DebugConsole => 0xE9, // how software finds the console
            Chip::TestPorts => return self.test.read_port(offset),
            Chip::DebugExit => 0,
            Chip::FwCfg if offset == 1 && size == 1 => self.fw_cfg.read(),
            Chip::FwCfg | Chip::CoprocessorError => 0,
            Chip::TestLines | Chip::TestMemory | Chip::IoApic | Chip::Hpet => return u32::MAX,
        })
    }

    fn write_chip(&mut self, now: u64, chip: Chip, offset: u16, size: u8, value: u32) {
        let byte = value as u8;
        match chip {
            Chip::Pic(chip) => {
                self.pic.write(usize::from(chip), offset & 1 != 0, byte);
                self.refresh_pic();
            }
            Chip::Elcr => {
                self.pic.write_elcr(usize::from(offset), byte);
                self.refresh_pic();
            }
            Chip::Pit => {
                self.run_pit(now);
                self.pit.write(now, offset, byte);
                self.sync_pit(now);
            }
            Chip::SystemControl => self.pit.write_control_port(now, byte),
            Chip::I8042Data => {
                self.i8042.write_data(byte);
                self.sync_i8042();
            }
            Chip::I8042Command => {
                self.i8042.write_command(byte);
                self.sync_i8042();
            }
            Chip::FastA20 => {
                self.i8042.write_fast_a20(byte);
                self.sync_i8042();
            }
            Chip::Rtc => {
                self.rtc.write(now, offset, byte);
                self.sync_rtc();
            }
            Chip::PostCode => self.debug.write_post(offset, byte),
            Chip::Serial(number) => {
                if let Some(serial) = &mut self.serials[usize::from(number & 3)] {
                    serial.write(now, offset, byte);
                    self.sync_serial(usize::from(number));
                }
            }
            Chip::SmiCommand => {
                self.pm.write_smi(offset, byte);
                self.sync_pm();
            }
            Chip::PciAddress => {
                if size == 1 && offset == 1 {
                    let request = self.pm.write_reset(byte);
                    self.obey(request);
                } else if size == 4
                    && let Some(bridge) = &mut self.host_bridge
                {
                    bridge.write_address(value);
                }
            }
            Chip::PciData => {
                if let Some(bridge) = &mut self.host_bridge {
                    bridge.write_data(offset, size, value);
                }
            }
            Chip::PmBlock => {
                let request = self.pm.write(now, offset, size, value);
                self.obey(request);
                self.sync_pm();
            }
            Chip::Gpe => {
                self.pm.write_gpe(offset, byte);
                self.sync_pm();
            }
            Chip::DebugConsole => self.debug.write_console(byte),
            Chip::DebugExit => self.raise_event(BoardEvent::DebugExit(DebugExit::code(value))),
            Chip::TestPorts => self.test.write_port(offset, size, value),
            Chip::TestLines => self.drive(SOURCE_TEST, offset as u8, byte != 0),
            Chip::CoprocessorError => self.drive(SOURCE_MAIN, IRQ_FERR, false),
            Chip::FwCfg if offset == 0 => self.fw_cfg.select(value as u16),
            Chip::FwCfg | Chip::TestMemory | Chip::IoApic | Chip::Hpet => {}
        }
    }

    fn obey(&mut self, request: Request) {
        match request {
            Request::None => {}
            Request::PowerOff => self.raise_event(BoardEvent::PowerOff),
            Request::Reset => self.raise_event(BoardEvent::Reset),
        }
    }

    fn read_keyboard_data(&mut self) -> u8 {
        let value = self.i8042.read_data();
        // The line falls with the read, so that the next byte makes an edge.
        self.release_i8042();
        self.sync_i8042();
        value
    }

    /// Whether memory-mapped registers are at this guest-physical address.
    #[inline]
    pub fn is_mmio(&self, gpa: u64) -> bool {
        gpa & !0xFFF == self.lapic_page || self.addresses.find(gpa).is_some()
    }

    /// Reads `size` (1, 2, 4 or 8) bytes of memory-mapped registers. Addresses
    /// that nobody claims give all ones.
    pub fn mmio_read(&mut self, now: u64, gpa: u64, size: u8) -> u64 {
        if gpa & !0xFFF == self.lapic_page {
            let value = self.lapic.mmio_read(now, gpa & 0xFFF);
            self.refresh();
            return u64::from(value) & all_ones(size);
        }
        let Some(range) = self.addresses.find(gpa) else {
            return all_ones(size);
        };
        let offset = gpa - range.first;
        let value = match range.target {
            Chip::IoApic => {
                let value = self.ioapic.read(offset & !3);
                u64::from(value) >> (8 * (offset & 3))
            }
            Chip::Hpet => match &mut self.hpet {
                Some(hpet) => hpet.read(now, offset, size),
                None => u64::MAX,
            },
            Chip::TestMemory => self.test.read_memory(offset, size),
            _ => u64::MAX,
        };
        value & all_ones(size)
    }

    /// Writes `size` (1, 2, 4 or 8) bytes of memory-mapped registers. The APICs
    /// take aligned 32-bit writes only, as the manuals demand.
    pub fn mmio_write(&mut self, now: u64, gpa: u64, size: u8, value: u64) {
        if gpa & !0xFFF == self.lapic_page {
            if size >= 4 {
                let effect = self.lapic.mmio_write(now, gpa & 0xFFF, value as u32);
                self.finish_lapic(effect);
            }
            return;
        }
        let Some(range) = self.addresses.find(gpa) else {
            return;
        };
        let offset = gpa - range.first;
        match range.target {
            // The index register is a byte wide and may be written as one.
            Chip::IoApic if size >= 4 || offset == 0 => {
                self.ioapic.write(offset, value as u32, &mut self.lapic);
                self.refresh();
            }
            Chip::Hpet if size >= 4 => {
                self.run_hpet(now);
                self.release_hpet();
                if let Some(hpet) = &mut self.hpet {
                    hpet.write(now, offset, size, value);
                }
                self.sync_hpet(now);
            }
            Chip::TestMemory => self.test.write_memory(offset, size, value),
            _ => {}
        }
    }

    #[inline]
    fn finish_lapic(&mut self, effect: Effect) {
        if let Effect::EndOfLevel(vector) = effect {
            self.ioapic.end_of_interrupt(vector, &mut self.lapic);
        }
        self.refresh();
    }

    /// RDMSR of one of the APIC's registers. None: not one of them, or one that
    /// raises #GP in the present mode; both are #GP unless another unit has it.
    pub fn msr_read(&mut self, now: u64, msr: u32) -> Option<u64> {
        let value = match msr {
            MSR_APIC_BASE => Some(self.lapic.base()),
            MSR_TSC_DEADLINE => Some(self.lapic.tsc_deadline(now)),
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST => {
                self.lapic.x2apic_read(now, msr - MSR_X2APIC_FIRST)
            }
            _ => return None,
        };
        self.refresh();
        value
    }

    /// WRMSR of one of the APIC's registers. None: not one of them.
    pub fn msr_write(
        &mut self,
        now: u64,
        msr: u32,
        value: u64,
    ) -> Option<Result<(), GeneralProtection>> {
        let result = match msr {
            MSR_APIC_BASE => self.lapic.set_base(value),
            MSR_TSC_DEADLINE => {
                self.lapic.set_tsc_deadline(now, value);
                Ok(())
            }
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST => {
                match self.lapic.x2apic_write(now, msr - MSR_X2APIC_FIRST, value) {
                    Ok(effect) => {
                        self.finish_lapic(effect);
                        Ok(())
                    }
                    Err(fault) => Err(fault),
                }
            }
            _ => return None,
        };
        self.refresh();
        Some(result)
    }
}
