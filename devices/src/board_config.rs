//! What a board is built from, and what can end it.

use std::fmt;
use std::io::Write;

use thiserror::Error;

use crate::bus::Overlap;
use crate::debug_ports::{DEBUG_PORT, DebugExit};

/// What the machine is to have.
pub struct BoardConfig {
    /// Bytes of guest RAM, for the CMOS memory sizes.
    pub ram_size: u64,
    /// Frequency of the guest's time-stamp counter, in hertz.
    pub tsc_hz: u64,
    /// What the real-time clock shows at virtual time 0: UTC, seconds since 1970.
    pub rtc_start: i64,
    /// COM1 to COM4: where each sends its output; none leaves the port out.
    pub serials: [Option<Box<dyn Write + Send>>; 4],
    /// The `isa-debug-exit` port.
    pub debug_exit: Option<DebugExit>,
    /// The debug console.
    pub debug_console: Option<Box<dyn Write + Send>>,
    /// The debug console's port.
    pub debug_port: u16,
    /// The `pc-testdev` unit-test device.
    pub test_device: bool,
    /// The high-precision event timer.
    pub hpet: bool,
    /// Keyboard controller with keyboard and mouse.
    pub i8042: bool,
    /// The host bridge, which firmware needs: PCI configuration space, and RAM in place of ROM.
    pub host_bridge: bool,
    /// The PM timer counts 32 bits instead of 24.
    pub wide_pm_timer: bool,
    /// 0x20, or 0x11 for an I/O APIC without EOI register.
    pub ioapic_version: u8,
    /// MAXPHYADDR, for what IA32_APIC_BASE accepts.
    pub physical_address_bits: u8,
}

impl Default for BoardConfig {
    fn default() -> BoardConfig {
        BoardConfig {
            ram_size: 128 << 20,
            tsc_hz: 1_000_000_000,
            rtc_start: 0,
            serials: [None, None, None, None],
            debug_exit: None,
            debug_console: None,
            debug_port: DEBUG_PORT,
            test_device: false,
            hpet: true,
            i8042: true,
            host_bridge: false,
            wide_pm_timer: false,
            ioapic_version: 0x20,
            physical_address_bits: 40,
        }
    }
}

impl fmt::Debug for BoardConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoardConfig")
            .field("ram_size", &self.ram_size)
            .field("tsc_hz", &self.tsc_hz)
            .field("rtc_start", &self.rtc_start)
            .field("serials", &self.serials.each_ref().map(Option::is_some))
            .field("debug_exit", &self.debug_exit)
            .field("debug_console", &self.debug_console.is_some())
            .field("test_device", &self.test_device)
            .field("hpet", &self.hpet)
            .field("i8042", &self.i8042)
            .field("host_bridge", &self.host_bridge)
            .finish_non_exhaustive()
    }
}

/// The configured board cannot be built.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BoardError {
    /// Two devices claim one range.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// The exit port's range is empty or leaves the port space.
    #[error("debug exit: ports {iobase:#x} + {iosize:#x} are not within the 64 Ki ports")]
    DebugExitRange {
        /// First port asked for.
        iobase: u16,
        /// Number of ports asked for.
        iosize: u16,
    },
    /// A time-stamp counter that does not count.
    #[error("the time-stamp counter's frequency is 0 Hz; give a positive one")]
    NoTscFrequency,
}

/// Something that ends or restarts the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoardEvent {
    /// The guest powered the machine off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest wrote the exit port: the emulator's exit code.
    DebugExit(u32),
}

/// Where RAM lies around the hole below 4 GiB, as on a machine of type "pc".
/// Gives (bytes from 0, bytes from 4 GiB).
pub fn ram_layout(ram_size: u64) -> (u64, u64) {
    // RAM that reaches into the hole is cut at 3 GiB, so that both parts are aligned.
    if ram_size >= 0xE000_0000 {
        (0xC000_0000, ram_size - 0xC000_0000)
    } else {
        (ram_size, 0)
    }
}
