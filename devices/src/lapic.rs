//! Local APIC of the one processor: xAPIC and x2APIC register views, priority
//! logic and delivery (SDM volume 3, chapter 11).
//!
//! The timer is in `lapic_timer.rs`, the register views in `lapic_registers.rs`. The bus is the board: what leaves the chip
//! (an end of interrupt for the I/O APIC) is returned, not called.

use crate::clock::NEVER;
use crate::lapic_timer::{Timer, TimerState};

/// Where the registers appear after reset.
pub const DEFAULT_BASE: u64 = 0xFEE0_0000;

pub(crate) const VERSION: u32 = 0x0006_0014; // seven local vectors, integrated APIC
const BASE_BSP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;

pub(crate) const LVT_MASKED: u32 = 1 << 16;
pub(crate) const LVT_LEVEL: u32 = 1 << 15;
pub(crate) const LVT_REMOTE_IRR: u32 = 1 << 14;
pub(crate) const SVR_ENABLE: u32 = 1 << 8;

const ERROR_SEND_VECTOR: u32 = 1 << 5;
const ERROR_RECEIVE_VECTOR: u32 = 1 << 6;
pub(crate) const ERROR_REGISTER: u32 = 1 << 7;

/// Index into [`State::lvt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lvt {
    /// Corrected machine check.
    Cmci = 0,
    /// Timer.
    Timer = 1,
    /// Thermal sensor.
    Thermal = 2,
    /// Performance counters.
    Performance = 3,
    /// LINT0 pin: the 8259A pair.
    Lint0 = 4,
    /// LINT1 pin: non-maskable interrupt.
    Lint1 = 5,
    /// APIC errors.
    Error = 6,
}

/// A 256-bit vector set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vectors(pub [u64; 4]);

impl Vectors {
    fn set(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] |= 1 << (vector & 63);
    }
    fn clear(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] &= !(1 << (vector & 63));
    }
    fn has(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 6)] >> (vector & 63) & 1 != 0
    }
    fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|&word| word != 0)?;
        Some((word as u32 * 64 + 63 - self.0[word].leading_zeros()) as u8)
    }
    pub(crate) fn register(&self, index: u32) -> u32 {
        (self.0[(index >> 1 & 3) as usize] >> (32 * (index & 1))) as u32
    }
}

/// Everything the chip holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// IA32_APIC_BASE.
    pub base: u64,
    /// Task priority.
    pub tpr: u8,
    /// Logical destination (xAPIC; x2APIC derives its own).
    pub ldr: u32,
    /// Destination format.
    pub dfr: u32,
    /// Spurious vector and software enable.
    pub svr: u32,
    /// Errors shown by the last write of the error status register.
    pub esr: u32,
    /// Errors gathered since.
    pub errors: u32,
    /// Interrupt command, both halves.
    pub icr: u64,
    /// Local vector table, by [`Lvt`].
    pub lvt: [u32; 7],
    /// Requested.
    pub irr: Vectors,
    /// In service.
    pub isr: Vectors,
    /// Level-triggered.
    pub tmr: Vectors,
    /// Level of the LINT0 pin.
    pub lint0: bool,
    /// A non-maskable interrupt waits.
    pub nmi: bool,
    /// An ExtINT message waits: the vector is to be asked from the 8259A.
    pub external: bool,
    /// Timer registers.
    pub timer: TimerState,
}

/// What an access does outside the chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// A level-triggered interrupt with this vector was ended.
    EndOfLevel(u8),
}

/// The access is one that raises #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// A local APIC with ID 0 on the bootstrap processor.
#[derive(Debug)]
pub struct Lapic {
    pub(crate) state: State,
    pub(crate) timer: Timer,
    reserved_address: u64,
    /// Highest requested vector that beats the processor priority; 0 when none.
    deliverable: u8,
}

impl Lapic {
    /// The chip as firmware leaves it on a PC: software-enabled with spurious
    /// vector 0xFF, LINT0 as ExtINT (virtual wire), LINT1 as NMI.
    pub fn new(tsc_hz: u64, physical_address_bits: u8) -> Lapic {
        let mut lvt = [LVT_MASKED; 7];
        lvt[Lvt::Lint0 as usize] = 0x0700;
        lvt[Lvt::Lint1 as usize] = 0x0400;
        let state = State {
            base: DEFAULT_BASE | BASE_BSP | BASE_ENABLE,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: SVR_ENABLE | 0xFF,
            esr: 0,
            errors: 0,
            icr: 0,
            lvt,
            irr: Vectors::default(),
            isr: Vectors::default(),
            tmr: Vectors::default(),
            lint0: false,
            nmi: false,
            external: false,
            timer: TimerState::default(),
        };
        let address_bits = u32::from(physical_address_bits.clamp(36, 52));
        Lapic {
            state,
            timer: Timer::new(tsc_hz),
            reserved_address: !((1 << address_bits) - 1),
            deliverable: 0,
        }
    }

    /// Back to the state of [`Lapic::new`]; the LINT0 pin keeps its level.
    pub fn reset(&mut self) {
        let lint0 = self.state.lint0;
        let offset = self.timer.tsc_offset();
        let mut fresh = Lapic::new(self.timer.tsc_hz(), 52);
        fresh.reserved_address = self.reserved_address;
        fresh.state.lint0 = lint0;
        fresh.state.timer.tsc_offset = offset;
        fresh.timer.restore(fresh.state.timer);
        *self = fresh;
    }

    /// A copy of the chip's state.
    pub fn save(&self) -> State {
        State {
            timer: self.timer.save(),
            ..self.state
        }
    }

    /// Puts the chip into a saved state.
    pub fn restore(&mut self, state: &State) {
        self.state = *state;
        self.timer.restore(state.timer);
        self.update();
    }

    /// Page of the MMIO registers; none when disabled or in x2APIC mode.
    pub fn mmio_page(&self) -> Option<u64> {
        let mode = self.state.base & (BASE_ENABLE | BASE_X2APIC);
        (mode == BASE_ENABLE).then_some(self.state.base & !0xFFF)
    }

    /// Hardware enable, IA32_APIC_BASE bit 11.
    pub fn enabled(&self) -> bool {
        self.state.base & BASE_ENABLE != 0
    }

    pub(crate) fn x2apic(&self) -> bool {
        self.state.base & BASE_X2APIC != 0
    }

    pub(crate) fn software_enabled(&self) -> bool {
        self.enabled() && self.state.svr & SVR_ENABLE != 0
    }

    pub(crate) fn lvt(&self, lvt: Lvt) -> u32 {
        self.state.lvt[lvt as usize]
    }

    /// The 8259A's output reaches the processor through this chip as ExtINT.
    pub fn passes_external(&self) -> bool {
        !self.enabled() || self.lvt(Lvt::Lint0) & (LVT_MASKED | 0x700) == 0x700
    }

    /// An ExtINT message from the I/O APIC waits.
    pub fn external_pending(&self) -> bool {
        self.state.external
    }

    /// Takes the waiting ExtINT message.
    pub fn take_external(&mut self) -> bool {
        std::mem::take(&mut self.state.external)
    }

    /// Whether an own vector can interrupt the processor now.
    pub fn deliverable(&self) -> bool {
        self.deliverable != 0
    }

    /// Accepts the deliverable vector: it moves from requested to in service.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.deliverable;
        if vector == 0 {
            return None;
        }
        self.state.irr.clear(vector);
        self.state.isr.set(vector);
        self.update();
        Some(vector)
    }

    /// Takes a waiting non-maskable interrupt.
    pub fn take_nmi(&mut self) -> bool {
        std::mem::take(&mut self.state.nmi)
    }

    /// Whether a non-maskable interrupt waits.
    pub fn nmi_pending(&self) -> bool {
        self.state.nmi
    }

    /// CR8: task priority bits 7 to 4.
    pub fn cr8(&self) -> u8 {
        self.state.tpr >> 4
    }

    /// Writes CR8.
    pub fn set_cr8(&mut self, value: u8) {
        self.state.tpr = value << 4;
        self.update();
    }

    pub(crate) fn processor_priority(&self) -> u8 {
        let service = self.state.isr.highest().unwrap_or(0);
        if self.state.tpr >> 4 >= service >> 4 {
            self.state.tpr
        } else {
            service & 0xF0
        }
    }

    pub(crate) fn update(&mut self) {
        self.deliverable = match self.state.irr.highest() {
            Some(vector)
                if self.software_enabled() && vector >> 4 > self.processor_priority() >> 4 =>
            {
                vector
            }
            _ => 0,
        };
    }

    /// Whether a message to this destination is for this processor.
    pub fn is_destination(&self, destination: u32, logical: bool) -> bool {
        if self.x2apic() {
            return match (destination, logical) {
                (u32::MAX, _) => true,
                (id, false) => id == 0 || id == 0xFF, // 0xFF: an 8-bit broadcast from the I/O APIC
                // Logical x2APIC ID of processor 0: cluster 0, bit 0.
                (mask, true) => mask == 0xFF || (mask >> 16 == 0 && mask & 1 != 0),
            };
        }
        let destination = destination as u8;
        if !logical {
            return destination == 0 || destination == 0xFF;
        }
        let own = (self.state.ldr >> 24) as u8;
        if self.state.dfr >> 28 == 0xF {
            destination & own != 0
        } else {
            destination == 0xFF || (destination >> 4 == own >> 4 && destination & own & 0x0F != 0)
        }
    }

    /// Accepts a message with delivery mode `mode` (ICR coding). False when it
    /// was not for this processor or the chip is off.
    pub fn deliver(
        &mut self,
        destination: u32,
        logical: bool,
        mode: u8,
        vector: u8,
        level: bool,
    ) -> bool {
        if !self.enabled() || !self.is_destination(destination, logical) {
            return false;
        }
        match mode {
            0 | 1 => {
                if !self.software_enabled() {
                    return false;
                }
                self.request(vector, level);
            }
            4 => self.state.nmi = true,
            7 => self.state.external = true,
            // SMI has no handler here; INIT and start-up would restart the only processor.
            _ => {}
        }
        true
    }

    fn request(&mut self, vector: u8, level: bool) {
        if vector < 16 {
            self.error(ERROR_RECEIVE_VECTOR);
            return;
        }
        self.state.irr.set(vector);
        if level {
            self.state.tmr.set(vector);
        } else {
            self.state.tmr.clear(vector);
        }
        self.update();
    }

    pub(crate) fn error(&mut self, bit: u32) {
        // One interrupt for each new kind of error; an illegal error vector must not recurse.
        if self.state.errors & bit == 0 {
            self.state.errors |= bit;
            let lvt = self.lvt(Lvt::Error);
            if lvt & LVT_MASKED == 0 && lvt & 0xFF >= 16 && self.software_enabled() {
                self.request(lvt as u8, false);
            }
        }
    }

    /// A local source fires.
    pub fn raise_local(&mut self, source: Lvt) {
        let lvt = self.lvt(source);
        if lvt & LVT_MASKED != 0 || !self.enabled() {
            return;
        }
        match lvt >> 8 & 7 {
            0 => {
                let level = source == Lvt::Lint0 && lvt & LVT_LEVEL != 0;
                if level {
                    self.state.lvt[source as usize] |= LVT_REMOTE_IRR;
                }
                if self.software_enabled() {
                    self.request(lvt as u8, level);
                }
            }
            4 => self.state.nmi = true,
            7 if source != Lvt::Lint0 => self.state.external = true,
            _ => {}
        }
        // The performance interrupt masks itself when it is delivered.
        if source == Lvt::Performance {
            self.state.lvt[source as usize] |= LVT_MASKED;
        }
    }

    /// Sets the LINT0 pin, which the 8259A's output drives.
    pub fn set_lint0(&mut self, high: bool) {
        let rising = high && !self.state.lint0;
        self.state.lint0 = high;
        let lvt = self.lvt(Lvt::Lint0);
        let level = lvt & LVT_LEVEL != 0 && lvt >> 8 & 7 == 0;
        if (rising && !level) || (high && level && lvt & LVT_REMOTE_IRR == 0) {
            self.raise_local(Lvt::Lint0);
        }
    }

    pub(crate) fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.state.isr.highest() else {
            return Effect::None;
        };
        self.state.isr.clear(vector);
        self.update();
        if !self.state.tmr.has(vector) {
            return Effect::None;
        }
        let lint0 = &mut self.state.lvt[Lvt::Lint0 as usize];
        if *lint0 & LVT_REMOTE_IRR != 0 && *lint0 as u8 == vector {
            *lint0 &= !LVT_REMOTE_IRR;
            self.set_lint0(self.state.lint0);
        }
        Effect::EndOfLevel(vector)
    }

    /// When the timer interrupts next, in nanoseconds.
    pub fn next_deadline(&self) -> u64 {
        if self.lvt(Lvt::Timer) & LVT_MASKED != 0 || !self.software_enabled() {
            return NEVER;
        }
        self.timer.next_fire()
    }

    /// Fires the timer if it is due.
    pub fn advance(&mut self, now: u64) {
        if self.timer.expire(now) {
            self.raise_local(Lvt::Timer);
        }
    }

    /// Guest TSC minus the TSC that virtual time alone gives.
    pub fn set_tsc_offset(&mut self, now: u64, offset: u64) {
        self.timer.set_tsc_offset(now, offset);
        self.advance(now);
    }

    /// The guest's time-stamp counter at `now`.
    pub fn guest_tsc(&self, now: u64) -> u64 {
        self.timer.guest_tsc(now)
    }

    /// Sends an interprocessor interrupt; there is nobody but this processor.
    pub(crate) fn send(&mut self, icr: u64, destination: u32) {
        self.state.icr = icr & !(1 << 12); // delivery is immediate
        let (vector, mode) = (icr as u8, (icr >> 8 & 7) as u8);
        if mode <= 1 && vector < 16 {
            self.error(ERROR_SEND_VECTOR);
            return;
        }
        let logical = icr >> 11 & 1 != 0;
        let own = match icr >> 18 & 3 {
            0 => self.is_destination(destination, logical),
            1 | 2 => true,
            _ => false,
        };
        if own && matches!(mode, 0 | 1 | 4) {
            self.deliver(0, false, mode, vector, false);
        }
    }

    /// Reads IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.state.base
    }

    /// Writes IA32_APIC_BASE: which modes can follow which is SDM figure 11-27.
    pub fn set_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let reserved = 0x2FF | self.reserved_address;
        let mode = |base: u64| (base & BASE_ENABLE != 0, base & BASE_X2APIC != 0);
        let illegal = matches!(
            (mode(self.state.base), mode(value)),
            (_, (false, true)) | ((true, true), (true, false)) | ((false, _), (true, true))
        );
        if illegal || value & reserved != 0 {
            return Err(GeneralProtection);
        }
        let was = self.enabled();
        self.state.base = value & !BASE_BSP | self.state.base & BASE_BSP;
        if was && !self.enabled() {
            // Disabling loses everything, as a reset does (SDM volume 3, 11.4.3).
            let base = self.state.base;
            self.reset();
            self.state.base = base;
            self.state.svr = 0xFF;
            self.state.lvt = [LVT_MASKED; 7];
        }
        self.update();
        Ok(())
    }

    /// Reads IA32_TSC_DEADLINE.
    pub fn tsc_deadline(&mut self, now: u64) -> u64 {
        self.advance(now);
        self.timer.tsc_deadline()
    }

    /// Writes IA32_TSC_DEADLINE; ignored unless the timer is in that mode.
    pub fn set_tsc_deadline(&mut self, now: u64, value: u64) {
        self.advance(now);
        self.timer.set_tsc_deadline(now, value);
        self.advance(now);
    }
}

#[cfg(test)]
#[path = "lapic_tests.rs"]
mod tests;
