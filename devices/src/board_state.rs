//! The whole board's state as plain data.

use crate::board::Board;
use crate::board_config::BoardEvent;
use crate::{
    acpi_pm, debug_ports, fw_cfg, host_bridge, hpet, i8042, ioapic, lapic, pic, pit, rtc, serial,
    testdev,
};

/// State of every chip and wire. What is derived from it is not in it.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// COM1 to COM4.
    pub serials: [Option<serial::State>; 4],
    /// The 8259A pair.
    pub pic: pic::State,
    /// The 8254.
    pub pit: pit::State,
    /// Clock and CMOS.
    pub rtc: rtc::State,
    /// Local APIC.
    pub lapic: lapic::State,
    /// I/O APIC.
    pub ioapic: ioapic::State,
    /// Keyboard controller and devices.
    pub i8042: i8042::State,
    /// Power management.
    pub pm: acpi_pm::State,
    /// Event timer.
    pub hpet: Option<hpet::State>,
    /// Host bridge.
    pub host_bridge: Option<host_bridge::State>,
    /// Debug ports.
    pub debug: debug_ports::State,
    /// Firmware configuration.
    pub fw_cfg: fw_cfg::State,
    /// Unit-test device.
    pub test: testdev::State,
    /// Who drives each interrupt line.
    pub drivers: [u8; 24],
    /// Level of the 8259A pair's output.
    pub pic_output: bool,
    /// An event nobody took yet.
    pub event: Option<BoardEvent>,
}

impl Board {
    /// A copy of the whole state. Output that was buffered is handed on first,
    /// so that a restored machine does not print it again.
    pub fn save(&mut self) -> State {
        self.flush_output();
        State {
            serials: self
                .serials
                .each_ref()
                .map(|port| port.as_ref().map(|port| port.save())),
            pic: self.pic.save(),
            pit: self.pit.save(),
            rtc: self.rtc.save(),
            lapic: self.lapic.save(),
            ioapic: self.ioapic.save(),
            i8042: self.i8042.save(),
            pm: self.pm.save(),
            hpet: self.hpet.as_ref().map(|hpet| hpet.save()),
            host_bridge: self.host_bridge.as_ref().map(|bridge| bridge.save()),
            debug: self.debug.save(),
            fw_cfg: self.fw_cfg.save(),
            test: self.test.save(),
            drivers: self.drivers,
            pic_output: self.pic_output,
            event: self.event,
        }
    }

    /// Puts the board into a saved state. Chips that only one of the two boards
    /// has are left as they are.
    pub fn restore(&mut self, state: &State) {
        self.flush_output();
        for (port, state) in self.serials.iter_mut().zip(&state.serials) {
            if let (Some(port), Some(state)) = (port, state) {
                port.restore(state);
            }
        }
        self.pic.restore(&state.pic);
        self.pit.restore(&state.pit);
        self.rtc.restore(&state.rtc);
        self.lapic.restore(&state.lapic);
        self.ioapic.restore(&state.ioapic);
        self.i8042.restore(&state.i8042);
        self.pm.restore(&state.pm);
        if let (Some(hpet), Some(state)) = (&mut self.hpet, &state.hpet) {
            hpet.restore(state);
        }
        if let (Some(bridge), Some(state)) = (&mut self.host_bridge, &state.host_bridge) {
            bridge.restore(state);
        }
        self.debug.restore(&state.debug);
        self.fw_cfg.restore(&state.fw_cfg);
        if self.test.is_present() != state.test.memory.is_empty() {
            self.test.restore(&state.test);
        }
        self.drivers = state.drivers;
        self.pic_output = state.pic_output;
        self.event = state.event;
        self.refresh();
    }
}
