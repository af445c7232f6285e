//! Numbers with 128-bit significands, for results that are then rounded to 64 bits. Operations
//! truncate; each is off by a few units of 2^-126 at the most.

use crate::interpret::soft::float::{Class, EXTENDED, Environment, Value, shift_right_jam};

/// `significand` has bit 127 set and stands for a value from 1 to 2, or is 0.
#[derive(Clone, Copy, Debug)]
pub struct Wide {
    pub sign: bool,
    pub exponent: i32,
    pub significand: u128,
}

pub const ZERO: Wide = Wide {
    sign: false,
    exponent: 0,
    significand: 0,
};

pub const ONE: Wide = Wide {
    sign: false,
    exponent: 0,
    significand: 1 << 127,
};

/// The natural logarithm of 2.
pub const LN_2: Wide = Wide {
    sign: false,
    exponent: -1,
    significand: 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af,
};

pub const PI: Wide = Wide {
    sign: false,
    exponent: 1,
    significand: 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1,
};

impl Wide {
    /// A value that is zero or finite.
    pub fn of(value: Value) -> Wide {
        if value.class == Class::Zero {
            return Wide {
                sign: value.sign,
                ..ZERO
            };
        }
        Wide {
            sign: value.sign,
            exponent: value.exponent,
            significand: u128::from(value.significand) << 64,
        }
    }

    /// `significand` times 2 to the `exponent - 127`.
    pub fn normal(sign: bool, exponent: i32, significand: u128) -> Wide {
        if significand == 0 {
            return Wide { sign, ..ZERO };
        }
        let lead = significand.leading_zeros();
        Wide {
            sign,
            exponent: exponent - lead as i32,
            significand: significand << lead,
        }
    }

    pub fn from_i64(value: i64) -> Wide {
        Wide::of(Value::from_i64(value))
    }

    pub fn is_zero(self) -> bool {
        self.significand == 0
    }

    pub fn negated(self) -> Wide {
        Wide {
            sign: !self.sign,
            ..self
        }
    }

    pub fn absolute(self) -> Wide {
        Wide {
            sign: false,
            ..self
        }
    }

    /// Times a power of two.
    pub fn scaled(self, by: i32) -> Wide {
        Wide {
            exponent: self.exponent + by,
            ..self
        }
    }

    pub fn add(self, other: Wide) -> Wide {
        if self.is_zero() {
            return other;
        }
        if other.is_zero() {
            return self;
        }
        let smaller = (self.exponent, self.significand) < (other.exponent, other.significand);
        let (large, small) = if smaller {
            (other, self)
        } else {
            (self, other)
        };
        let apart = (large.exponent - small.exponent) as u32;
        let a = large.significand >> 1;
        let b = shift_right_jam(small.significand >> 1, apart);
        let sum = if large.sign == small.sign {
            a + b
        } else {
            a - b
        };
        Wide::normal(large.sign, large.exponent + 1, sum)
    }

    pub fn subtract(self, other: Wide) -> Wide {
        self.add(other.negated())
    }

    pub fn multiply(self, other: Wide) -> Wide {
        let (ah, al) = (
            self.significand >> 64,
            self.significand & u128::from(u64::MAX),
        );
        let (bh, bl) = (
            other.significand >> 64,
            other.significand & u128::from(u64::MAX),
        );
        let middle = ((ah * bl) >> 1) + ((al * bh) >> 1);
        let high = ah * bh + (middle >> 63);
        Wide::normal(
            self.sign != other.sign,
            self.exponent + other.exponent + 1,
            high,
        )
    }

    /// Divides by a number that is not zero.
    pub fn divide(self, other: Wide) -> Wide {
        if self.is_zero() {
            return self;
        }
        let divisor = other.significand;
        let mut rest = self.significand;
        let below = rest < divisor;
        let mut quotient = u128::from(!below);
        if !below {
            rest -= divisor;
        }
        // A rest below the divisor; its double may need 129 bits.
        for _ in 0..127 + u32::from(below) {
            let carry = rest >> 127 != 0;
            rest <<= 1;
            quotient <<= 1;
            if carry || rest >= divisor {
                rest = rest.wrapping_sub(divisor);
                quotient |= 1;
            }
        }
        let exponent = self.exponent - other.exponent - i32::from(below);
        Wide::normal(self.sign != other.sign, exponent, quotient)
    }

    /// Divides by a small number.
    pub fn divide_small(self, by: u32) -> Wide {
        let by = u128::from(by);
        let (quotient, rest) = (self.significand / by, self.significand % by);
        if quotient == 0 {
            return ZERO;
        }
        let lead = quotient.leading_zeros();
        Wide {
            sign: self.sign,
            exponent: self.exponent - lead as i32,
            significand: (quotient << lead) | ((rest << lead) / by),
        }
    }

    /// Rounds to the extended format; `exact` if nothing was truncated on the way.
    pub fn round(self, env: &mut Environment, exact: bool) -> Value {
        if self.is_zero() {
            return Value::zero(self.sign);
        }
        let significand = self.significand | u128::from(!exact);
        env.finish(self.sign, self.exponent, significand, EXTENDED)
    }
}
