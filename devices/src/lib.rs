//! Chips, buses and firmware tables of the emulated PC.
//!
//! [`board::Board`] is the door: ports, memory-mapped registers, model-specific
//! registers, interrupts and time. Every call takes the virtual time in
//! nanoseconds; nothing here reads a host clock, starts a thread, or writes
//! guest memory.

#![forbid(unsafe_code)]

pub mod acpi_pm;
pub mod acpi_tables;
pub mod aml;
pub mod board;
mod board_access;
pub mod board_config;
pub mod board_state;
pub mod bus;
pub mod calendar;
pub mod clock;
pub mod debug_ports;
pub mod fw_cfg;
pub mod host_bridge;
pub mod hpet;
pub mod i8042;
pub mod ioapic;
pub mod lapic;
mod lapic_registers;
pub mod lapic_timer;
pub mod pic;
pub mod pit;
pub mod ps2;
pub mod rtc;
pub mod serial;
pub mod testdev;
pub mod wiring;

pub use acpi_tables::AcpiTables;
pub use board::Board;
pub use board_config::{BoardConfig, BoardError, BoardEvent, ram_layout};
pub use debug_ports::{DEBUG_PORT, DebugExit};
pub use lapic::GeneralProtection;
