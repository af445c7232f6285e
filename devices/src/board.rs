//! The board: which chip answers where, how interrupt lines run, and the one
//! interface through which a processor sees all of it.

use crate::acpi_pm::{self, AcpiPm};
use crate::board_config::{BoardConfig, BoardError, BoardEvent, ram_layout};
use crate::bus::{AddressMap, PortMap, Range};
use crate::clock::NEVER;
use crate::debug_ports::{DebugExit, DebugPorts};
use crate::fw_cfg::FwCfg;
use crate::host_bridge::{HostBridge, SEGMENTS, Segment};
use crate::hpet::{self, Hpet};
use crate::i8042::I8042;
use crate::ioapic::IoApic;
use crate::lapic::{Lapic, Lvt};
use crate::pic::Pic;
use crate::pit::Pit;
use crate::rtc::{MemorySizes, Rtc};
use crate::serial::Serial;
use crate::testdev::TestDevice;
use crate::wiring::{self, Chip, IRQ_KEYBOARD, IRQ_MOUSE, IRQ_RTC, IRQ_TIMER, SERIAL_PORTS};

/// All chips and their wires.
#[derive(Debug)]
pub struct Board {
    pub(crate) ports: PortMap<Chip>,
    pub(crate) addresses: AddressMap<Chip>,
    pub(crate) serials: [Option<Serial>; 4],
    pub(crate) pic: Pic,
    pub(crate) pit: Pit,
    pub(crate) rtc: Rtc,
    pub(crate) lapic: Lapic,
    pub(crate) ioapic: IoApic,
    pub(crate) i8042: I8042,
    pub(crate) pm: AcpiPm,
    pub(crate) hpet: Option<Hpet>,
    pub(crate) host_bridge: Option<HostBridge>,
    pub(crate) debug: DebugPorts,
    pub(crate) fw_cfg: FwCfg,
    pub(crate) test: TestDevice,
    /// Who drives each interrupt line, a bit per source.
    pub(crate) drivers: [u8; 24],
    /// Page of the local APIC's registers; all ones when it has none.
    pub(crate) lapic_page: u64,
    /// Cached: the processor's INTR pin.
    interrupt: bool,
    /// Cached: level of the 8259A's output.
    pub(crate) pic_output: bool,
    pub(crate) event: Option<BoardEvent>,
}

/// Sources that can drive one line, a bit each.
pub(crate) const SOURCE_MAIN: u8 = 0x01;
pub(crate) const SOURCE_SECOND_SERIAL: u8 = 0x02;
pub(crate) const SOURCE_TEST: u8 = 0x04;
const SOURCE_HPET: u8 = 0x10;

impl Board {
    /// Builds the board and connects everything.
    pub fn new(config: BoardConfig) -> Result<Board, BoardError> {
        if config.tsc_hz == 0 {
            return Err(BoardError::NoTscFrequency);
        }
        let (below_4g, above_4g) = ram_layout(config.ram_size);
        let memory = MemorySizes {
            below_4g,
            above_4g,
            processors: 1,
        };
        let mut ports = PortMap::new();
        let mut addresses = AddressMap::new("address");
        for row in wiring::ROWS {
            let present = match row.chip {
                Chip::Serial(number) => config.serials[usize::from(number & 3)].is_some(),
                Chip::I8042Data | Chip::I8042Command => config.i8042,
                Chip::Hpet => config.hpet,
                Chip::PciData => config.host_bridge,
                Chip::TestPorts | Chip::TestLines | Chip::TestMemory => config.test_device,
                _ => true,
            };
            if !present {
                continue;
            }
            let range = Range {
                first: row.first,
                last: row.first + row.length - 1,
                owner: row.name,
                wide: row.wide,
                target: row.chip,
            };
            match row.space {
                wiring::Space::Port => ports.insert(range)?,
                wiring::Space::Memory => addresses.insert(range)?,
            }
        }
        if config.debug_console.is_some() {
            ports.insert(Range {
                first: u64::from(config.debug_port),
                last: u64::from(config.debug_port),
                owner: "debug console",
                wide: false,
                target: Chip::DebugConsole,
            })?;
        }
        if let Some(exit @ DebugExit { iobase, iosize }) = config.debug_exit {
            let last = u64::from(iobase) + u64::from(iosize);
            if iosize == 0 || last > 0x1_0000 {
                return Err(BoardError::DebugExitRange {
                    iobase: exit.iobase,
                    iosize: exit.iosize,
                });
            }
            ports.insert(Range {
                first: u64::from(iobase),
                last: last - 1,
                owner: "debug exit",
                wide: true,
                target: Chip::DebugExit,
            })?;
        }
        let has_serial = config.serials[0].is_some();
        let mut board = Board {
            ports,
            addresses,
            serials: config.serials.map(|output| output.map(Serial::new)),
            pic: Pic::new(),
            pit: Pit::new(),
            rtc: Rtc::new(config.rtc_start, memory),
            lapic: Lapic::new(config.tsc_hz, config.physical_address_bits),
            ioapic: IoApic::new(config.ioapic_version),
            i8042: I8042::new(),
            pm: AcpiPm::new(config.wide_pm_timer),
            hpet: config.hpet.then(Hpet::new),
            host_bridge: config.host_bridge.then(HostBridge::new),
            debug: DebugPorts::new(config.debug_console),
            fw_cfg: FwCfg::new(config.ram_size, 1, has_serial),
            test: TestDevice::new(config.test_device),
            drivers: [0; 24],
            lapic_page: u64::MAX,
            interrupt: false,
            pic_output: false,
            event: None,
        };
        board.settle_lines();
        Ok(board)
    }

    /// Whether the processor's INTR pin is high.
    #[inline]
    pub fn interrupt_pending(&self) -> bool {
        self.interrupt
    }

    /// The processor takes an interrupt: gives its vector, or none when the
    /// request is gone.
    pub fn acknowledge(&mut self, _now: u64) -> Option<u8> {
        let external = self.external_interrupt();
        let vector = if external || self.lapic.external_pending() {
            self.lapic.take_external();
            let vector = self.pic.acknowledge();
            // INT falls during the acknowledge cycle, even if another follows.
            self.set_pic_output(false);
            self.set_pic_output(self.pic.output());
            Some(vector)
        } else {
            self.lapic.acknowledge()
        };
        self.refresh();
        vector
    }

    /// Takes a pending non-maskable interrupt.
    pub fn take_nmi(&mut self) -> bool {
        self.lapic.take_nmi()
    }

    /// Whether a non-maskable interrupt waits.
    pub fn nmi_pending(&self) -> bool {
        self.lapic.nmi_pending()
    }

    /// The system raises a non-maskable interrupt through LINT1, unless port
    /// 0x70 masks it.
    pub fn raise_nmi(&mut self) {
        if !self.rtc.nmi_masked() {
            self.lapic.raise_local(Lvt::Lint1);
            self.refresh();
        }
    }

    /// The processor's FERR# falls: line 13 rises until port 0xF0 is written.
    pub fn raise_floating_point_error(&mut self) {
        self.drive(SOURCE_MAIN, wiring::IRQ_FERR, true);
        self.refresh();
    }

    /// A corrected machine check interrupts, if its local vector is open.
    pub fn raise_corrected_machine_check(&mut self) {
        self.lapic.raise_local(Lvt::Cmci);
        self.refresh();
    }

    /// What is between 768 KiB and 1 MiB, if the host bridge has changed it since the last call.
    pub fn take_shadow_change(&mut self) -> Option<[Segment; SEGMENTS]> {
        self.host_bridge.as_mut()?.take_change()
    }

    /// CR8 (bits 7 to 4 of the task priority).
    pub fn tpr(&self) -> u8 {
        self.lapic.cr8()
    }

    /// Writes CR8.
    pub fn set_tpr(&mut self, value: u8) {
        self.lapic.set_cr8(value & 0xF);
        self.refresh();
    }

    /// Sets guest TSC minus virtual time in TSC ticks (modulo 2^64).
    pub fn set_tsc_offset(&mut self, now: u64, offset: u64) {
        self.lapic.set_tsc_offset(now, offset);
        self.refresh();
    }

    /// The guest's time-stamp counter at `now`: what RDTSC must show, so that
    /// TSC deadlines come when the guest sees them pass.
    pub fn guest_tsc(&self, now: u64) -> u64 {
        self.lapic.guest_tsc(now)
    }

    /// Virtual time of the next timer event that can interrupt.
    pub fn next_deadline(&self, _now: u64) -> Option<u64> {
        let mut next = self.lapic.next_deadline();
        next = next
            .min(self.pit.next_deadline())
            .min(self.rtc.next_deadline());
        next = next.min(self.pm.next_deadline());
        if let Some(hpet) = &self.hpet {
            next = next.min(hpet.next_deadline());
        }
        for serial in self.serials.iter().flatten() {
            next = next.min(serial.next_deadline());
        }
        (next != NEVER).then_some(next)
    }

    /// Runs everything that is due at `now`.
    pub fn advance(&mut self, now: u64) {
        if self.lapic.next_deadline() <= now {
            self.lapic.advance(now);
            self.refresh();
        }
        if self.pit.next_deadline() <= now {
            self.run_pit(now);
        }
        if self.rtc.next_deadline() <= now {
            self.rtc.advance(now);
            self.sync_rtc();
        }
        if self.pm.next_deadline() <= now {
            self.pm.advance(now);
            self.sync_pm();
        }
        if self
            .hpet
            .as_ref()
            .is_some_and(|hpet| hpet.next_deadline() <= now)
        {
            self.run_hpet(now);
        }
        for number in 0..self.serials.len() {
            if let Some(serial) = &mut self.serials[number]
                && serial.next_deadline() <= now
            {
                serial.advance(now);
                self.sync_serial(number);
            }
        }
    }

    /// Bytes arrive at COM`port_index + 1`; gives how many were accepted (0 for
    /// a port that is not there). The rest is to be offered again later.
    pub fn serial_receive(&mut self, now: u64, port_index: usize, bytes: &[u8]) -> usize {
        let Some(Some(serial)) = self.serials.get_mut(port_index) else {
            return 0;
        };
        let accepted = serial.receive(now, bytes);
        self.sync_serial(port_index);
        accepted
    }

    /// The line of COM`port_index + 1` goes to break; false if there was no room.
    pub fn serial_break(&mut self, now: u64, port_index: usize) -> bool {
        let Some(Some(serial)) = self.serials.get_mut(port_index) else {
            return false;
        };
        let accepted = serial.receive_break(now);
        self.sync_serial(port_index);
        accepted
    }

    /// Hands all buffered output to its sinks.
    pub fn flush_output(&mut self) {
        self.serials.iter_mut().flatten().for_each(Serial::flush);
        self.debug.flush();
    }

    /// Whether what is written to this port is printed on the debug console.
    pub fn is_debug_console(&self, port: u16) -> bool {
        let range = self.ports.find(port);
        range.is_some_and(|range| range.target == Chip::DebugConsole)
    }

    /// A key's scan codes of set 2 arrive; false if there is no room.
    pub fn keyboard_input(&mut self, codes: &[u8]) -> bool {
        let accepted = self.i8042.keyboard_input(codes);
        self.sync_i8042();
        accepted
    }

    /// The mouse moved, or its wheel or buttons; false if it does not report.
    pub fn mouse_input(&mut self, dx: i16, dy: i16, wheel: i8, buttons: u8) -> bool {
        let accepted = self.i8042.mouse_input(dx, dy, wheel, buttons);
        self.sync_i8042();
        accepted
    }

    /// The power button is pressed.
    pub fn press_power_button(&mut self) {
        self.pm.press_power_button();
        self.sync_pm();
    }

    /// Last value written to the POST code port.
    pub fn post_code(&self) -> u8 {
        self.debug.read_post(0)
    }

    /// Whether address line 20 reaches memory.
    pub fn a20_enabled(&self) -> bool {
        self.i8042.a20()
    }

    /// Takes the event that ends or restarts the machine, if one happened.
    #[inline]
    pub fn take_event(&mut self) -> Option<BoardEvent> {
        self.event.take()
    }

    /// The first event counts; nothing runs after it.
    pub(crate) fn raise_event(&mut self, event: BoardEvent) {
        self.event.get_or_insert(event);
    }

    /// Resets all chips. Time of day and CMOS memory stay.
    pub fn reset(&mut self) {
        self.flush_output();
        self.event = None;
        self.drivers = [0; 24];
        self.pic = Pic::new();
        self.ioapic.reset();
        for pin in 0..crate::ioapic::PINS {
            self.ioapic.set_pin(pin, false, &mut self.lapic);
        }
        self.lapic.set_lint0(false);
        self.lapic.reset();
        self.pit.reset();
        self.rtc.reset();
        self.i8042.reset();
        self.pm.reset();
        self.hpet.iter_mut().for_each(Hpet::reset);
        self.serials.iter_mut().flatten().for_each(Serial::reset);
        self.debug.reset();
        self.fw_cfg.reset();
        self.test.reset();
        self.pic_output = false;
        self.settle_lines();
    }

    /// Lines that rest high (the timer's) are no interrupts when power comes.
    fn settle_lines(&mut self) {
        self.sync_pit(0);
        self.pic.clear_edges();
        self.refresh_pic();
    }

    /// The 8259A's request reaches the processor, one way or the other.
    fn external_interrupt(&self) -> bool {
        self.pic_output
            && (self.lapic.passes_external()
                || (self.lapic.enabled() && self.ioapic.passes_external()))
    }

    /// Recomputes what is cached from the local APIC's state.
    #[inline]
    pub(crate) fn refresh(&mut self) {
        self.interrupt =
            self.lapic.deliverable() || self.lapic.external_pending() || self.external_interrupt();
        self.lapic_page = self.lapic.mmio_page().unwrap_or(u64::MAX);
    }

    /// The 8259A pair may have changed its output.
    pub(crate) fn refresh_pic(&mut self) {
        self.set_pic_output(self.pic.output());
        self.refresh();
    }

    fn set_pic_output(&mut self, high: bool) {
        if high != self.pic_output {
            self.pic_output = high;
            self.lapic.set_lint0(high);
            self.ioapic.set_pin(0, high, &mut self.lapic);
        }
    }

    /// One source drives line `line` (an ISA interrupt below 16, else an I/O
    /// APIC pin); the line is high while any source drives it.
    pub(crate) fn drive(&mut self, source: u8, line: u8, high: bool) {
        let Some(drivers) = self.drivers.get_mut(usize::from(line)) else {
            return;
        };
        let before = *drivers;
        *drivers = if high {
            before | source
        } else {
            before & !source
        };
        if (*drivers != 0) == (before != 0) {
            return;
        }
        if line < 16 {
            self.pic.set_irq(line, high);
            self.set_pic_output(self.pic.output());
        }
        // The timer is at pin 2, as the MADT's override says; pin 0 is the 8259A's.
        let pin = match line {
            IRQ_TIMER => 2,
            2 => return,
            _ => usize::from(line),
        };
        self.ioapic.set_pin(pin, high, &mut self.lapic);
        self.refresh();
    }

    fn legacy_replaced(&self) -> bool {
        self.hpet.as_ref().is_some_and(Hpet::legacy)
    }

    pub(crate) fn run_pit(&mut self, now: u64) {
        if self.pit.advance(now) && !self.legacy_replaced() {
            self.drive(SOURCE_MAIN, IRQ_TIMER, false);
            self.drive(SOURCE_MAIN, IRQ_TIMER, true);
            self.sync_pit(now);
        }
    }

    pub(crate) fn sync_pit(&mut self, now: u64) {
        let high = self.pit.output(now, 0) && !self.legacy_replaced();
        self.drive(SOURCE_MAIN, IRQ_TIMER, high);
    }

    pub(crate) fn sync_rtc(&mut self) {
        let high = self.rtc.irq() && !self.legacy_replaced();
        self.drive(SOURCE_MAIN, IRQ_RTC, high);
    }

    pub(crate) fn sync_pm(&mut self) {
        self.drive(SOURCE_MAIN, acpi_pm::SCI_IRQ, self.pm.irq());
    }

    pub(crate) fn sync_serial(&mut self, number: usize) {
        let Some(serial) = &self.serials[number & 3] else {
            return;
        };
        let high = serial.irq();
        let source = if number < 2 {
            SOURCE_MAIN
        } else {
            SOURCE_SECOND_SERIAL
        };
        self.drive(source, SERIAL_PORTS[number & 3].1, high);
    }

    pub(crate) fn sync_i8042(&mut self) {
        if self.i8042.take_reset() {
            self.raise_event(BoardEvent::Reset);
        }
        self.drive(SOURCE_MAIN, IRQ_KEYBOARD, self.i8042.keyboard_irq());
        self.drive(SOURCE_MAIN, IRQ_MOUSE, self.i8042.mouse_irq());
    }

    pub(crate) fn release_i8042(&mut self) {
        self.drive(SOURCE_MAIN, IRQ_KEYBOARD, false);
        self.drive(SOURCE_MAIN, IRQ_MOUSE, false);
    }

    pub(crate) fn run_hpet(&mut self, now: u64) {
        let Some(hpet) = &mut self.hpet else { return };
        let matched = hpet.advance(now);
        for timer in 0..hpet::TIMERS {
            if matched >> timer & 1 != 0 {
                self.pulse_hpet(timer);
            }
        }
    }

    fn pulse_hpet(&mut self, timer: usize) {
        let Some(hpet) = &self.hpet else { return };
        let Some(line) = hpet.line(timer) else { return };
        let held = hpet.holds_line(timer);
        self.drive(SOURCE_HPET << timer, line, true);
        if !held {
            self.drive(SOURCE_HPET << timer, line, false);
        }
    }

    /// Before a register write, which may reroute a line: lets go of held lines.
    pub(crate) fn release_hpet(&mut self) {
        for timer in 0..hpet::TIMERS {
            if let Some(hpet) = &self.hpet
                && hpet.holds_line(timer)
                && let Some(line) = hpet.line(timer)
            {
                self.drive(SOURCE_HPET << timer, line, false);
            }
        }
    }

    /// After a register write: drives the lines that are held.
    pub(crate) fn sync_hpet(&mut self, now: u64) {
        for timer in 0..hpet::TIMERS {
            if let Some(hpet) = &self.hpet
                && hpet.holds_line(timer)
                && let Some(line) = hpet.line(timer)
            {
                self.drive(SOURCE_HPET << timer, line, true);
            }
        }
        // Legacy replacement may have come or gone.
        self.sync_pit(now);
        self.sync_rtc();
    }
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
