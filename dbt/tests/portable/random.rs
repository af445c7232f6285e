//! Numbers that matter.

use crate::common::Random;

impl Random {
    /// A significand of `bits` bits: few ones, many ones, or anything.
    fn fraction(&mut self, bits: u32) -> u64 {
        let mask = u64::MAX >> (64 - bits);
        let value = match self.below(7) {
            0 => 0,
            1 => mask,
            2 => 1 << self.below(u64::from(bits)),
            3 => mask << self.below(u64::from(bits)),
            4 => mask >> self.below(u64::from(bits)),
            5 => 1 << (bits - 1) | self.below(4),
            _ => self.next(),
        };
        value & mask
    }

    fn exponent(&mut self, max: u64) -> u64 {
        let bias = max / 2;
        let value = match self.below(12) {
            0 => 0,
            1 => 1,
            2 => max,
            3 => max - 1,
            4 => self.below(70),
            5 => max - self.below(70),
            6 => self.next(),
            7 | 8 => bias + self.below(70),
            9 => bias.wrapping_sub(self.below(70)),
            _ => bias + self.below(4),
        };
        value & max
    }

    /// A double, a pair of singles, or integers, as 64 bits.
    pub fn element(&mut self) -> u64 {
        match self.below(8) {
            0..3 => self.next() << 63 | self.exponent(0x7ff) << 52 | self.fraction(52),
            3..6 => self.single() << 32 | self.single(),
            6 => self.fraction(64),
            _ => u64::from_le_bytes(std::array::from_fn(|_| {
                self.pick(&[0, 1, 0x7f, 0x80, 0xff, 0x55])
            })),
        }
    }

    fn single(&mut self) -> u64 {
        (self.next() & 1) << 31 | self.exponent(0xff) << 23 | self.fraction(23)
    }

    /// A number of 80 bits: significand, sign and exponent.
    pub fn extended(&mut self) -> (u64, u16) {
        let exponent = self.exponent(0x7fff) as u16;
        let sign = (self.next() & 1) as u16;
        let mut significand = self.fraction(63);
        // Now and then an encoding that is not supported.
        if exponent != 0 && self.below(16) != 0 || self.below(16) == 0 {
            significand |= 1 << 63;
        }
        // Numbers that came from narrower formats have zeros at their ends.
        match self.below(6) {
            0 => significand &= !0x7ff,
            1 => significand &= !0xff_ffff_ffff,
            _ => {}
        }
        (significand, sign << 15 | exponent)
    }
}
