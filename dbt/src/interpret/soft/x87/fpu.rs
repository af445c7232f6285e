//! The x87 registers in their image, the register stack, and how an operation ends
//! (SDM volume 1, 8.1 and 8.5).

use crate::guest::{CpuState, Exception};
use crate::interpret::soft::float::{
    EXTENDED, Environment, Format, INDEFINITE, Value, flag, pack_extended, unpack_extended,
};

/// Offset of ST0 in the FXSAVE image; registers are 16 bytes apart.
const REGISTERS: usize = 32;
/// Condition codes and flags of FSW.
pub const C0: u16 = 1 << 8;
pub const C1: u16 = 1 << 9;
pub const C2: u16 = 1 << 10;
pub const C3: u16 = 1 << 14;
const STACK_FAULT: u16 = 1 << 6;
/// ES and B.
const SUMMARY: u16 = 0x8080;

/// The x87 part of a processor, as its FXSAVE image holds it: registers in stack order.
pub struct Fpu<'a> {
    image: &'a mut [u8; 512],
}

impl<'a> Fpu<'a> {
    pub fn of(cpu: &'a mut CpuState) -> Fpu<'a> {
        Fpu {
            image: &mut cpu.vector.fxsave.0,
        }
    }

    pub fn control(&self) -> u16 {
        u16::from_le_bytes([self.image[0], self.image[1]])
    }

    pub fn set_control(&mut self, value: u16) {
        let value = value & 0x1f3f | 0x40;
        self.image[..2].copy_from_slice(&value.to_le_bytes());
        self.set_status(self.status());
    }

    pub fn status(&self) -> u16 {
        u16::from_le_bytes([self.image[2], self.image[3]])
    }

    /// ES and B follow from the rest.
    pub fn set_status(&mut self, value: u16) {
        let mut value = value & !SUMMARY;
        if value & !self.control() & 0x3f != 0 {
            value |= SUMMARY;
        }
        self.image[2..4].copy_from_slice(&value.to_le_bytes());
    }

    /// FNINIT: the registers stay in their physical places.
    pub fn reset(&mut self) {
        let top = self.top();
        self.image[REGISTERS..REGISTERS + 128].rotate_right(16 * top);
        self.image[4] = 0;
        self.set_control(0x37f);
        self.set_status(0);
    }

    /// #MF if an unmasked exception waits.
    pub fn check_pending(&self) -> Result<(), Exception> {
        if self.status() & !self.control() & 0x3f != 0 {
            return Err(Exception::plain(Exception::MF));
        }
        Ok(())
    }

    /// The environment of an operation.
    pub fn environment(&self) -> Environment {
        Environment::x87(self.control())
    }

    /// The format that PC asks for; the exponents are always those of the extended format.
    pub fn precision(&self) -> Format {
        let precision = match self.control() >> 8 & 3 {
            0 => 24,
            2 => 53,
            _ => 64,
        };
        Format {
            precision,
            ..EXTENDED
        }
    }

    fn top(&self) -> usize {
        usize::from(self.status() >> 11 & 7)
    }

    /// Moves TOP; the registers in stack order turn with it.
    pub fn turn(&mut self, by: usize) {
        let top = (self.top() + by) & 7;
        let registers = &mut self.image[REGISTERS..REGISTERS + 128];
        registers.rotate_left(16 * (by & 7));
        let status = self.status() & !0x3800 | (top as u16) << 11;
        self.image[2..4].copy_from_slice(&status.to_le_bytes());
    }

    fn tag_bit(&self, index: usize) -> u8 {
        1 << ((self.top() + index) & 7)
    }

    pub fn is_empty(&self, index: usize) -> bool {
        self.image[4] & self.tag_bit(index) == 0
    }

    pub fn set_empty(&mut self, index: usize) {
        self.image[4] &= !self.tag_bit(index);
    }

    /// The 80 bits of a register.
    pub fn raw(&self, index: usize) -> (u64, u16) {
        let at = REGISTERS + 16 * (index & 7);
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.image[at..at + 8]);
        let top = u16::from_le_bytes([self.image[at + 8], self.image[at + 9]]);
        (u64::from_le_bytes(bytes), top)
    }

    /// Fills a register.
    pub fn set_raw(&mut self, index: usize, (significand, top): (u64, u16)) {
        let at = REGISTERS + 16 * (index & 7);
        self.image[at..at + 8].copy_from_slice(&significand.to_le_bytes());
        self.image[at + 8..at + 10].copy_from_slice(&top.to_le_bytes());
        self.image[at + 10..at + 16].fill(0);
        self.image[4] |= self.tag_bit(index);
    }

    /// The value of a register; `None` if it is empty.
    pub fn value(&self, index: usize) -> Option<Value> {
        if self.is_empty(index) {
            return None;
        }
        let (significand, top) = self.raw(index);
        Some(unpack_extended(significand, top))
    }

    pub fn set_value(&mut self, index: usize, value: Value) {
        self.set_raw(index, pack_extended(value));
    }

    pub fn pop(&mut self) {
        self.set_empty(0);
        self.turn(1);
    }

    /// Replaces the condition codes in `mask`.
    pub fn set_codes(&mut self, mask: u16, codes: u16) {
        self.set_status(self.status() & !mask | codes & mask);
    }

    /// Notes exceptions and C1.
    fn note(&mut self, flags: u8, c1: bool) {
        let c1 = if c1 { C1 } else { 0 };
        self.set_status(self.status() & !C1 | c1 | u16::from(flags));
    }

    /// Notes the exceptions of an operation. Whether its result is to be used: not if an
    /// unmasked exception was found before computing it.
    pub fn conclude(&mut self, env: &Environment) -> bool {
        if env.unmasked(flag::BEFORE) != 0 {
            self.note(env.flags & flag::BEFORE, false);
            return false;
        }
        self.note(env.flags, env.up);
        true
    }

    /// As [`Fpu::conclude`] for a store to memory, which unmasked overflow and underflow
    /// prevent as well.
    pub fn conclude_store(&mut self, env: &Environment) -> bool {
        let early = env.unmasked(flag::BEFORE) != 0;
        if !early && env.unmasked(flag::OVERFLOW | flag::UNDERFLOW) != 0 {
            self.note(env.flags & !flag::INEXACT, false);
            return false;
        }
        self.conclude(env)
    }

    /// A stack fault: an empty register was to be read, or (`overflow`) a full one pushed upon.
    /// Whether it is masked, so that the indefinite stands for the result.
    pub fn stack_fault(&mut self, overflow: bool) -> bool {
        self.note(flag::INVALID, overflow);
        self.set_status(self.status() | STACK_FAULT);
        self.control() & u16::from(flag::INVALID) != 0
    }

    /// A stack fault of an instruction whose C2 says that it is incomplete: it is not.
    pub fn stack_fault_complete(&mut self, overflow: bool) -> bool {
        self.set_codes(C2, 0);
        self.stack_fault(overflow)
    }

    /// Whether a push finds room.
    pub fn has_room(&self) -> bool {
        self.is_empty(7)
    }

    /// Pushes what an operation found, if its exceptions let it.
    pub fn push(&mut self, env: &Environment, bits: (u64, u16)) {
        if !self.has_room() {
            if self.stack_fault(true) {
                self.turn(7);
                self.set_value(0, INDEFINITE);
            }
            return;
        }
        if self.conclude(env) {
            self.turn(7);
            self.set_raw(0, bits);
        }
    }
}
