//! ACPI power management: PM1 event and control blocks, PM timer, SMI command,
//! general-purpose events and the reset register (ACPI 6, 4.8; addresses and
//! values are those of the PIIX4 as PCs of type "pc" have it).

use crate::clock::{NEVER, ticks_at, time_of_tick};

/// PM1 event block; control is at +4, the timer at +8.
pub const PM_BASE: u16 = 0x600;
/// Ports of the block.
pub const PM_LENGTH: u16 = 0x40;
/// General-purpose event block 0.
pub const GPE_BASE: u16 = 0xAFE0;
/// Bytes of it: two status, two enable.
pub const GPE_LENGTH: u16 = 4;
/// SMI command port, with a scratch byte after it.
pub const SMI_COMMAND: u16 = 0xB2;
/// Reset control register.
pub const RESET_PORT: u16 = 0xCF9;
/// Written to [`SMI_COMMAND`]: events become SCIs.
pub const ACPI_ENABLE: u8 = 0xF1;
/// Written to [`SMI_COMMAND`]: events become SMIs (which nobody handles).
pub const ACPI_DISABLE: u8 = 0xF0;
/// SLP_TYP that powers off, as \_S5 in the DSDT says.
pub const SLEEP_TYPE_S5: u16 = 0;
/// Input of the system control interrupt.
pub const SCI_IRQ: u8 = 9;
/// Frequency of the PM timer, in hertz.
pub const PM_TIMER_HZ: u64 = 3_579_545;

const STATUS_TIMER: u16 = 1 << 0;
const STATUS_GLOBAL: u16 = 1 << 5;
const STATUS_POWER_BUTTON: u16 = 1 << 8;
const STATUS_SLEEP_BUTTON: u16 = 1 << 9;
const STATUS_CLOCK: u16 = 1 << 10;
const STATUS_WAKE: u16 = 1 << 15;
const STATUS_ALL: u16 = STATUS_TIMER
    | 1 << 4
    | STATUS_GLOBAL
    | STATUS_POWER_BUTTON
    | STATUS_SLEEP_BUTTON
    | STATUS_CLOCK
    | STATUS_WAKE;
const ENABLE_ALL: u16 =
    STATUS_TIMER | STATUS_GLOBAL | STATUS_POWER_BUTTON | STATUS_SLEEP_BUTTON | STATUS_CLOCK;
const CONTROL_SCI: u16 = 1;
const CONTROL_SLEEP: u16 = 1 << 13;

/// What a write asked the machine to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Nothing.
    None,
    /// Soft off.
    PowerOff,
    /// Hard reset.
    Reset,
}

/// Registers of the block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// PM1 status, without what the timer added since `seen`.
    pub status: u16,
    /// PM1 enable.
    pub enable: u16,
    /// PM1 control.
    pub control: u16,
    /// General-purpose event status.
    pub gpe_status: u16,
    /// General-purpose event enable.
    pub gpe_enable: u16,
    /// SMI command and its scratch byte.
    pub smi: [u8; 2],
    /// Reset control register.
    pub reset_control: u8,
    /// Virtual time up to which the timer's overflow was noted.
    pub seen: u64,
}

/// The power-management block.
#[derive(Debug)]
pub struct AcpiPm {
    state: State,
    timer_bits: u32,
    deadline: u64,
}

impl AcpiPm {
    /// A block in legacy mode; its timer has 32 bits if `wide_timer`, else 24.
    pub fn new(wide_timer: bool) -> AcpiPm {
        let timer_bits = if wide_timer { 32 } else { 24 };
        AcpiPm {
            state: State::default(),
            timer_bits,
            deadline: NEVER,
        }
    }

    /// Back to legacy mode with nothing pending.
    pub fn reset(&mut self) {
        self.state = State {
            seen: self.state.seen,
            ..State::default()
        };
        self.update_deadline();
    }

    /// A copy of the registers.
    pub fn save(&self) -> State {
        self.state
    }

    /// Puts the block into a saved state.
    pub fn restore(&mut self, state: &State) {
        self.state = *state;
        self.update_deadline();
    }

    /// The timer has 32 bits rather than 24.
    pub fn wide_timer(&self) -> bool {
        self.timer_bits == 32
    }

    /// Level of the system control interrupt.
    pub fn irq(&self) -> bool {
        let state = &self.state;
        state.control & CONTROL_SCI != 0
            && (state.status & state.enable & ENABLE_ALL != 0
                || state.gpe_status & state.gpe_enable != 0)
    }

    /// The power button is pressed.
    pub fn press_power_button(&mut self) {
        self.state.status |= STATUS_POWER_BUTTON;
    }

    /// When the timer's overflow can interrupt, in nanoseconds.
    pub fn next_deadline(&self) -> u64 {
        self.deadline
    }

    /// Notes the timer's overflow when it is due.
    pub fn advance(&mut self, now: u64) {
        if now >= self.deadline {
            self.run(now);
        }
    }

    /// Count of the timer's top bit changes, each of which sets the status.
    fn half_turns(&self, now: u64) -> u64 {
        ticks_at(now, PM_TIMER_HZ) >> (self.timer_bits - 1)
    }

    fn run(&mut self, now: u64) {
        if self.half_turns(now) != self.half_turns(self.state.seen) {
            self.state.status |= STATUS_TIMER;
        }
        self.state.seen = self.state.seen.max(now);
        self.update_deadline();
    }

    fn update_deadline(&mut self) {
        let armed = self.state.enable & STATUS_TIMER != 0 && self.state.status & STATUS_TIMER == 0;
        self.deadline = if armed {
            let next = (self.half_turns(self.state.seen) + 1) << (self.timer_bits - 1);
            time_of_tick(next, PM_TIMER_HZ)
        } else {
            NEVER
        };
    }

    /// The PM timer's count.
    pub fn timer(&self, now: u64) -> u32 {
        (ticks_at(now, PM_TIMER_HZ) & ((1 << self.timer_bits) - 1)) as u32
    }

    /// Reads `size` bytes at [`PM_BASE`] + `offset`.
    pub fn read(&mut self, now: u64, offset: u16, size: u8) -> u32 {
        if (8..12).contains(&offset) {
            return self.timer(now) >> (8 * (offset - 8));
        }
        self.run(now);
        let word = |offset: u16| match offset {
            0 => self.state.status,
            2 => self.state.enable,
            4 => self.state.control,
            _ => 0,
        };
        let both =
            u32::from(word(offset & !1)) | u32::from(word((offset & !1).wrapping_add(2))) << 16;
        let value = both >> (8 * (offset & 1));
        if size == 4 { value } else { value & 0xFFFF }
    }

    /// Writes `size` bytes at [`PM_BASE`] + `offset`.
    pub fn write(&mut self, now: u64, offset: u16, size: u8, value: u32) -> Request {
        self.run(now);
        let mut request = Request::None;
        let mut done = 0;
        while done < u16::from(size) {
            let at = offset + done;
            let rest = value >> (8 * done);
            // Two bytes at a time where both are there, so that a word is one write.
            let (word, mask, step) = match (at & 1, u16::from(size) - done) {
                (0, 1) => (rest as u16 & 0xFF, 0x00FF, 1),
                (0, _) => (rest as u16, 0xFFFF, 2),
                _ => ((rest as u16) << 8, 0xFF00, 1),
            };
            match at & !1 {
                0 => self.state.status &= !(word & STATUS_ALL),
                2 => self.state.enable = (self.state.enable & !mask | word) & ENABLE_ALL,
                4 => request = self.write_control(word, mask),
                _ => {}
            }
            done += step;
        }
        self.update_deadline();
        request
    }

    fn write_control(&mut self, word: u16, mask: u16) -> Request {
        // SCI_EN belongs to the SMI handler, but stays writable for reclaiming software.
        let value = self.state.control & !mask | word;
        self.state.control = value & !CONTROL_SLEEP & 0x1FFF | value & 0xC000;
        let go = word & CONTROL_SLEEP != 0;
        if go && value >> 10 & 7 == SLEEP_TYPE_S5 {
            Request::PowerOff
        } else {
            Request::None
        }
    }

    /// Reads the general-purpose event block.
    pub fn read_gpe(&self, offset: u16) -> u8 {
        let [status, enable] = [self.state.gpe_status, self.state.gpe_enable];
        match offset {
            0 => status as u8,
            1 => (status >> 8) as u8,
            2 => enable as u8,
            _ => (enable >> 8) as u8,
        }
    }

    /// Writes the general-purpose event block; a status bit is cleared by a one.
    pub fn write_gpe(&mut self, offset: u16, value: u8) {
        let value = u16::from(value);
        match offset {
            0 => self.state.gpe_status &= !value,
            1 => self.state.gpe_status &= !(value << 8),
            2 => self.state.gpe_enable = self.state.gpe_enable & 0xFF00 | value,
            _ => self.state.gpe_enable = self.state.gpe_enable & 0x00FF | value << 8,
        }
    }

    /// Reads [`SMI_COMMAND`] + `offset`.
    pub fn read_smi(&self, offset: u16) -> u8 {
        self.state.smi[usize::from(offset & 1)]
    }

    /// Writes [`SMI_COMMAND`] + `offset`. There is no SMM: the effect firmware's
    /// handler would have happens at once.
    pub fn write_smi(&mut self, offset: u16, value: u8) {
        self.state.smi[usize::from(offset & 1)] = value;
        match (offset & 1, value) {
            (0, ACPI_ENABLE) => self.state.control |= CONTROL_SCI,
            (0, ACPI_DISABLE) => self.state.control &= !CONTROL_SCI,
            _ => {}
        }
    }

    /// Reads [`RESET_PORT`].
    pub fn read_reset(&self) -> u8 {
        self.state.reset_control
    }

    /// Writes [`RESET_PORT`]: bit 2 rising resets.
    pub fn write_reset(&mut self, value: u8) -> Request {
        self.state.reset_control = value & 0x02;
        if value & 0x04 != 0 {
            Request::Reset
        } else {
            Request::None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timer_counts_and_wraps() {
        let mut pm = AcpiPm::new(false);
        assert_eq!(pm.read(1_000_000_000, 8, 4), 3_579_545);
        let turn = time_of_tick(1 << 24, PM_TIMER_HZ);
        assert_eq!(pm.read(turn, 8, 4), 0);
        let mut wide = AcpiPm::new(true);
        assert_eq!(wide.read(turn, 8, 4), 1 << 24);
    }

    #[test]
    fn timer_overflow_interrupts_when_enabled() {
        let mut pm = AcpiPm::new(false);
        pm.write(0, 2, 2, u32::from(STATUS_TIMER));
        pm.write_smi(0, ACPI_ENABLE);
        assert_eq!(pm.read(0, 4, 2), 1);
        let half = time_of_tick(1 << 23, PM_TIMER_HZ);
        assert_eq!(pm.next_deadline(), half);
        pm.advance(half);
        assert!(pm.irq());
        pm.write(half, 0, 2, u32::from(STATUS_TIMER));
        assert!(!pm.irq());
        assert_eq!(pm.next_deadline(), time_of_tick(1 << 24, PM_TIMER_HZ));
    }

    #[test]
    fn power_button_waits_for_acpi_mode() {
        let mut pm = AcpiPm::new(false);
        pm.write(0, 0, 4, u32::from(STATUS_POWER_BUTTON) << 16);
        pm.press_power_button();
        assert!(!pm.irq());
        pm.write_smi(0, ACPI_ENABLE);
        assert!(pm.irq());
        assert_eq!(pm.read(0, 0, 2), 0x100);
        assert_eq!(pm.read(0, 1, 1), 0x01);
        pm.write(0, 1, 1, 0x01);
        assert!(!pm.irq());
    }

    #[test]
    fn sleep_type_5_powers_off() {
        let mut pm = AcpiPm::new(false);
        assert_eq!(pm.write(0, 4, 2, 0x0001 | 1 << 10 | 1 << 13), Request::None);
        assert_eq!(pm.write(0, 4, 2, 0x0001), Request::None);
        assert_eq!(pm.write(0, 4, 2, 0x2001), Request::PowerOff);
        assert_eq!(pm.read(0, 4, 2), 1, "SLP_EN reads as zero");
    }

    #[test]
    fn reset_register() {
        let mut pm = AcpiPm::new(false);
        assert_eq!(pm.write_reset(0x02), Request::None);
        assert_eq!(pm.read_reset(), 0x02);
        assert_eq!(pm.write_reset(0x06), Request::Reset);
    }

    #[test]
    fn restores_what_was_saved() {
        let mut pm = AcpiPm::new(false);
        pm.write(5, 2, 2, 0x0121);
        pm.write_smi(0, ACPI_ENABLE);
        pm.write_smi(1, 0x55);
        pm.write_gpe(3, 0x12);
        pm.press_power_button();
        let saved = pm.save();
        let mut other = AcpiPm::new(false);
        assert_ne!(other.save(), saved);
        other.restore(&saved);
        assert_eq!(other.save(), saved);
        assert_eq!(other.next_deadline(), pm.next_deadline());
        assert_eq!(other.irq(), pm.irq());
    }
}
