//! The one table of the board: which chip answers where, and on which line it
//! interrupts.

use crate::{acpi_pm, fw_cfg, host_bridge, hpet, ioapic, testdev};

/// Whom an access is for. Ranges of one chip that differ in meaning are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chip {
    Pic(u8),
    Elcr,
    Pit,
    SystemControl,
    I8042Data,
    I8042Command,
    FastA20,
    Rtc,
    PostCode,
    Serial(u8),
    SmiCommand,
    PciAddress,
    PciData,
    PmBlock,
    Gpe,
    DebugConsole,
    DebugExit,
    FwCfg,
    CoprocessorError,
    TestPorts,
    TestLines,
    TestMemory,
    IoApic,
    Hpet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Port,
    Memory,
}

/// One range of one chip.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub name: &'static str,
    pub chip: Chip,
    pub space: Space,
    pub first: u64,
    pub length: u64,
    /// Takes 16 and 32 bits at once; the bus splits accesses for all others.
    pub wide: bool,
}

/// Line of the interval timer; the I/O APIC has it at pin 2.
pub(crate) const IRQ_TIMER: u8 = 0;
pub(crate) const IRQ_KEYBOARD: u8 = 1;
pub(crate) const IRQ_RTC: u8 = 8;
pub(crate) const IRQ_MOUSE: u8 = 12;
/// Line of x87 errors.
pub(crate) const IRQ_FERR: u8 = 13;

/// COM1 to COM4: first port and line.
pub const SERIAL_PORTS: [(u16, u8); 4] = [(0x3F8, 4), (0x2F8, 3), (0x3E8, 4), (0x2E8, 3)];

const fn bytes(name: &'static str, chip: Chip, first: u16, length: u16) -> Row {
    Row {
        name,
        chip,
        space: Space::Port,
        first: first as u64,
        length: length as u64,
        wide: false,
    }
}

const fn wide(name: &'static str, chip: Chip, first: u16, length: u16) -> Row {
    Row {
        wide: true,
        ..bytes(name, chip, first, length)
    }
}

const fn memory(name: &'static str, chip: Chip, first: u64, length: u64) -> Row {
    Row {
        name,
        chip,
        space: Space::Memory,
        first,
        length,
        wide: true,
    }
}

const fn serial(name: &'static str, number: u8) -> Row {
    bytes(
        name,
        Chip::Serial(number),
        SERIAL_PORTS[number as usize].0,
        8,
    )
}

/// Everything but debug exit and console, whose places are configured, and the
/// local APIC, whose place the guest can change.
pub(crate) const ROWS: &[Row] = &[
    bytes("master 8259A", Chip::Pic(0), 0x20, 2),
    bytes("8254 timer", Chip::Pit, 0x40, 4),
    bytes("keyboard controller data", Chip::I8042Data, 0x60, 1),
    bytes("system control port B", Chip::SystemControl, 0x61, 1),
    bytes("keyboard controller command", Chip::I8042Command, 0x64, 1),
    bytes("real-time clock", Chip::Rtc, 0x70, 2),
    bytes("POST code and DMA pages", Chip::PostCode, 0x80, 16),
    bytes("fast A20", Chip::FastA20, 0x92, 1),
    bytes("slave 8259A", Chip::Pic(1), 0xA0, 2),
    bytes("SMI command", Chip::SmiCommand, acpi_pm::SMI_COMMAND, 2),
    // Only the first of four echo bytes: 0xE9 may be the console.
    wide("unit-test ports", Chip::TestPorts, testdev::PORT, 9),
    serial("COM4", 3),
    serial("COM2", 1),
    serial("COM3", 2),
    serial("COM1", 0),
    bytes("edge/level control", Chip::Elcr, 0x4D0, 2),
    bytes("coprocessor error", Chip::CoprocessorError, 0xF0, 1),
    wide("firmware configuration", Chip::FwCfg, fw_cfg::PORT, 2),
    wide(
        "power management",
        Chip::PmBlock,
        acpi_pm::PM_BASE,
        acpi_pm::PM_LENGTH,
    ),
    // The reset register is inside the PCI address register.
    wide(
        "PCI address and reset control",
        Chip::PciAddress,
        host_bridge::ADDRESS_PORT,
        4,
    ),
    wide("PCI data", Chip::PciData, host_bridge::DATA_PORT, 4),
    bytes(
        "unit-test interrupt lines",
        Chip::TestLines,
        testdev::LINES,
        24,
    ),
    bytes(
        "general-purpose events",
        Chip::Gpe,
        acpi_pm::GPE_BASE,
        acpi_pm::GPE_LENGTH,
    ),
    memory("I/O APIC", Chip::IoApic, ioapic::BASE, 0x1000),
    memory("HPET", Chip::Hpet, hpet::BASE, 0x400),
    memory(
        "unit-test memory",
        Chip::TestMemory,
        testdev::MEMORY,
        testdev::MEMORY_LENGTH,
    ),
];
