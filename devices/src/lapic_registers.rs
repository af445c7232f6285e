//! The local APIC's registers as software sees them: memory-mapped in xAPIC
//! mode, as MSRs in x2APIC mode (SDM volume 3, 11.4 and 11.12).

use crate::lapic::{
    ERROR_REGISTER, Effect, GeneralProtection, LVT_LEVEL, LVT_MASKED, LVT_REMOTE_IRR, Lapic, Lvt,
    SVR_ENABLE, VERSION,
};
use crate::lapic_timer::Mode;

/// Register numbers: MMIO offset / 16, and MSR 0x800 + number.
mod register {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const APR: u32 = 0x09;
    pub const PPR: u32 = 0x0A;
    pub const EOI: u32 = 0x0B;
    pub const LDR: u32 = 0x0D;
    pub const DFR: u32 = 0x0E;
    pub const SVR: u32 = 0x0F;
    pub const ISR: u32 = 0x10;
    pub const TMR: u32 = 0x18;
    pub const IRR: u32 = 0x20;
    pub const ESR: u32 = 0x28;
    pub const LVT_CMCI: u32 = 0x2F;
    pub const ICR_LOW: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_ERROR: u32 = 0x37;
    pub const INITIAL_COUNT: u32 = 0x38;
    pub const CURRENT_COUNT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3E;
    pub const SELF_IPI: u32 = 0x3F;
}

/// Bits of each local vector register that software can write.
const LVT_WRITABLE: [u32; 7] = [
    0x0001_07FF,
    0x0007_00FF,
    0x0001_07FF,
    0x0001_07FF,
    0x0001_A7FF,
    0x0001_A7FF,
    0x0001_00FF,
];

impl Lapic {
    /// Reads the register at MMIO offset `offset` (0 to 0xFFF). Parts of a
    /// register can be read; reserved ones give 0 and note an error.
    pub fn mmio_read(&mut self, now: u64, offset: u64) -> u32 {
        self.advance(now);
        let value = match (offset >> 4) as u32 {
            register::ID => 0,
            register::LDR => self.state.ldr,
            register::DFR => self.state.dfr,
            register::APR | register::EOI => 0,
            register::ICR_HIGH => (self.state.icr >> 32) as u32,
            number => self.read_common(now, number).unwrap_or_else(|| {
                self.error(ERROR_REGISTER);
                0
            }),
        };
        value.checked_shr(8 * (offset & 0xF) as u32).unwrap_or(0)
    }

    /// Writes the register at the 16-byte aligned MMIO offset `offset`.
    pub fn mmio_write(&mut self, now: u64, offset: u64, value: u32) -> Effect {
        if offset & 0xF != 0 {
            return Effect::None;
        }
        self.advance(now);
        match (offset >> 4) as u32 {
            register::EOI => return self.end_of_interrupt(),
            register::ID => {}
            register::LDR => self.state.ldr = value & 0xFF00_0000,
            register::DFR => self.state.dfr = value | 0x0FFF_FFFF,
            register::ICR_HIGH => {
                self.state.icr = self.state.icr & 0xFFFF_FFFF | u64::from(value) << 32;
            }
            register::ICR_LOW => {
                let icr = self.state.icr & !0xFFFF_FFFF | u64::from(value);
                self.send(icr, (icr >> 56) as u32);
            }
            register::TPR => self.write_common(now, register::TPR, value & 0xFF),
            number if is_read_only(number) => {}
            number if is_common(number) => self.write_common(now, number, value),
            _ => self.error(ERROR_REGISTER),
        }
        Effect::None
    }

    fn read_common(&self, now: u64, number: u32) -> Option<u32> {
        Some(match number {
            register::VERSION => VERSION,
            register::TPR => u32::from(self.state.tpr),
            register::PPR => u32::from(self.processor_priority()),
            register::SVR => self.state.svr,
            register::ISR..register::TMR => self.state.isr.register(number - register::ISR),
            register::TMR..register::IRR => self.state.tmr.register(number - register::TMR),
            register::IRR..register::ESR => self.state.irr.register(number - register::IRR),
            register::ESR => self.state.esr,
            register::ICR_LOW => self.state.icr as u32,
            register::LVT_CMCI => self.lvt(Lvt::Cmci),
            register::LVT_TIMER..=register::LVT_ERROR => {
                self.state.lvt[(number - register::LVT_TIMER + 1) as usize]
            }
            register::INITIAL_COUNT => self.timer.initial_count(),
            register::CURRENT_COUNT => self.timer.current_count(now),
            register::DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    fn write_common(&mut self, now: u64, number: u32, value: u32) {
        match number {
            register::TPR => self.state.tpr = value as u8,
            register::SVR => {
                self.state.svr = value & 0x1FF;
                if value & SVR_ENABLE == 0 {
                    for lvt in &mut self.state.lvt {
                        *lvt |= LVT_MASKED;
                    }
                }
            }
            register::ESR => self.state.esr = std::mem::take(&mut self.state.errors),
            register::LVT_CMCI => self.write_lvt(now, 0, value),
            register::LVT_TIMER..=register::LVT_ERROR => {
                self.write_lvt(now, (number - register::LVT_TIMER + 1) as usize, value);
            }
            register::INITIAL_COUNT => self.timer.set_initial_count(now, value),
            register::DIVIDE => self.timer.set_divide(now, value),
            _ => {}
        }
        self.update();
    }

    fn write_lvt(&mut self, now: u64, index: usize, value: u32) {
        let mut value = value & LVT_WRITABLE[index] | self.state.lvt[index] & LVT_REMOTE_IRR;
        if !self.software_enabled() {
            value |= LVT_MASKED;
        }
        if value & LVT_LEVEL == 0 {
            value &= !LVT_REMOTE_IRR;
        }
        self.state.lvt[index] = value;
        if index == Lvt::Timer as usize {
            self.timer.set_mode(Mode::from_lvt(value));
            self.advance(now);
        } else if index == Lvt::Lint0 as usize {
            // A level that is already there is seen as soon as the entry is open.
            self.set_lint0(self.state.lint0);
        }
    }

    /// Reads x2APIC MSR 0x800 + `number`; none raises #GP.
    pub fn x2apic_read(&mut self, now: u64, number: u32) -> Option<u64> {
        if !self.x2apic() {
            return None;
        }
        self.advance(now);
        match number {
            register::ID => Some(0),
            register::LDR => Some(1),
            register::ICR_LOW => Some(self.state.icr),
            _ => self.read_common(now, number).map(u64::from),
        }
    }

    /// Writes x2APIC MSR 0x800 + `number`; reserved bits and registers raise #GP.
    pub fn x2apic_write(
        &mut self,
        now: u64,
        number: u32,
        value: u64,
    ) -> Result<Effect, GeneralProtection> {
        if !self.x2apic() {
            return Err(GeneralProtection);
        }
        self.advance(now);
        if number == register::ICR_LOW {
            if value & 0xFFF3_2000 & 0xFFFF_FFFF != 0 {
                return Err(GeneralProtection);
            }
            self.send(value, (value >> 32) as u32);
            return Ok(Effect::None);
        }
        let allowed: u64 = match number {
            register::EOI | register::ESR => 0,
            register::TPR | register::SELF_IPI => 0xFF,
            register::SVR => 0x1FF,
            register::LVT_CMCI => u64::from(LVT_WRITABLE[0] | 1 << 12),
            register::LVT_TIMER..=register::LVT_ERROR => {
                let index = (number - register::LVT_TIMER + 1) as usize;
                u64::from(LVT_WRITABLE[index] | 1 << 12 | LVT_REMOTE_IRR)
            }
            register::INITIAL_COUNT => 0xFFFF_FFFF,
            register::DIVIDE => 0xB,
            _ => return Err(GeneralProtection),
        };
        if value & !allowed != 0 {
            return Err(GeneralProtection);
        }
        match number {
            register::EOI => return Ok(self.end_of_interrupt()),
            register::SELF_IPI => self.send(1 << 18 | value, 0),
            _ => self.write_common(now, number, value as u32),
        }
        Ok(Effect::None)
    }
}

fn is_read_only(number: u32) -> bool {
    use register::{APR, CURRENT_COUNT, ESR, ISR, PPR, VERSION};
    matches!(number, VERSION | APR | PPR | CURRENT_COUNT) || (ISR..ESR).contains(&number)
}

fn is_common(number: u32) -> bool {
    use register::{DIVIDE, ESR, INITIAL_COUNT, LVT_CMCI, LVT_ERROR, LVT_TIMER, SVR};
    matches!(number, SVR | ESR | LVT_CMCI | INITIAL_COUNT | DIVIDE)
        || (LVT_TIMER..=LVT_ERROR).contains(&number)
}
