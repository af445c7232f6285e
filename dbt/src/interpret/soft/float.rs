//! Floating-point numbers of all three formats in one unpacked form, and their rounding with
//! the exceptions, masked and unmasked responses of the x87 and of SSE (SDM volume 1, 4.8, 4.9,
//! 8.5 and 11.5). Tininess is detected after rounding.

/// Exception flags, at their places in MXCSR, FSW and FCW.
pub mod flag {
    pub const INVALID: u8 = 1;
    pub const DENORMAL: u8 = 2;
    pub const ZERO_DIVIDE: u8 = 4;
    pub const OVERFLOW: u8 = 8;
    pub const UNDERFLOW: u8 = 16;
    pub const INEXACT: u8 = 32;
    /// Those that are found before a result is computed.
    pub const BEFORE: u8 = INVALID | DENORMAL | ZERO_DIVIDE;
}

/// What an unpacked number is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    Zero,
    Finite,
    Infinite,
    Quiet,
    Signaling,
    /// An encoding of the extended format that processors since the 387 refuse.
    Unsupported,
}

/// A number: `significand` has its leading one (an explicit integer bit) in bit 63 and stands
/// for a value from 1 to 2, unless the class is `Zero`. A NaN's payload is aligned likewise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Value {
    pub class: Class,
    pub sign: bool,
    pub exponent: i32,
    pub significand: u64,
    /// It was encoded as a denormal (or pseudo-denormal) number.
    pub denormal: bool,
}

/// The real indefinite QNaN.
pub const INDEFINITE: Value = Value {
    class: Class::Quiet,
    sign: true,
    exponent: 0,
    significand: 0xc000_0000_0000_0000,
    denormal: false,
};

impl Value {
    pub fn zero(sign: bool) -> Value {
        Value {
            class: Class::Zero,
            sign,
            exponent: 0,
            significand: 0,
            denormal: false,
        }
    }

    pub fn infinity(sign: bool) -> Value {
        Value {
            class: Class::Infinite,
            significand: 1 << 63,
            ..Value::zero(sign)
        }
    }

    pub fn finite(sign: bool, exponent: i32, significand: u64) -> Value {
        Value {
            class: Class::Finite,
            exponent,
            significand,
            ..Value::zero(sign)
        }
    }

    pub fn is_nan(&self) -> bool {
        matches!(self.class, Class::Quiet | Class::Signaling)
    }

    /// The NaN with its quiet bit set.
    pub fn quiet(self) -> Value {
        Value {
            class: Class::Quiet,
            significand: self.significand | 0xc000_0000_0000_0000,
            ..self
        }
    }

    pub fn negated(self) -> Value {
        Value {
            sign: !self.sign,
            ..self
        }
    }

    /// An integer, exactly.
    pub fn from_i64(value: i64) -> Value {
        let magnitude = value.unsigned_abs();
        if magnitude == 0 {
            return Value::zero(false);
        }
        let lead = magnitude.leading_zeros();
        Value::finite(value < 0, 63 - lead as i32, magnitude << lead)
    }
}

/// Limits of a format. `min` and `max` are the exponents of the normal numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Format {
    pub precision: u32,
    pub min: i32,
    pub max: i32,
}

pub const SINGLE: Format = Format {
    precision: 24,
    min: -126,
    max: 127,
};
pub const DOUBLE: Format = Format {
    precision: 53,
    min: -1022,
    max: 1023,
};
pub const EXTENDED: Format = Format {
    precision: 64,
    min: -16382,
    max: 16383,
};

impl Format {
    /// Unpacks an encoding of 32 or 64 bits.
    pub fn unpack(self, bits: u64) -> Value {
        let fraction_bits = self.precision - 1;
        let total = if self.precision == 24 { 32 } else { 64 };
        let sign = bits >> (total - 1) & 1 != 0;
        let exponent_mask = (2 * self.max + 1) as u64;
        let biased = bits >> fraction_bits & exponent_mask;
        // Aligned so that the integer bit would be bit 63.
        let fraction = bits << (64 - fraction_bits) >> 1;
        if biased == exponent_mask {
            return unpack_special(sign, fraction);
        }
        if biased != 0 {
            return Value::finite(sign, biased as i32 - self.max, 1 << 63 | fraction);
        }
        unpack_denormal(sign, self.min, fraction)
    }

    /// The encoding of a value that was rounded to this format, in 32 or 64 bits.
    pub fn pack(self, value: Value) -> u64 {
        let fraction_bits = self.precision - 1;
        let total = if self.precision == 24 { 32 } else { 64 };
        let exponent_mask = (2 * self.max + 1) as u64;
        let align = 63 - fraction_bits;
        let fraction = |significand: u64| (significand << 1 >> 1) >> align;
        let rest = match value.class {
            Class::Zero => 0,
            Class::Finite if value.exponent < self.min => {
                let shift = align + (self.min - value.exponent) as u32;
                value.significand.checked_shr(shift).unwrap_or(0)
            }
            Class::Finite => {
                let biased = (value.exponent + self.max) as u64;
                biased << fraction_bits | fraction(value.significand)
            }
            _ => exponent_mask << fraction_bits | fraction(value.significand),
        };
        u64::from(value.sign) << (total - 1) | rest
    }
}

fn unpack_special(sign: bool, fraction: u64) -> Value {
    let class = match fraction {
        0 => Class::Infinite,
        _ if fraction >> 62 & 1 != 0 => Class::Quiet,
        _ => Class::Signaling,
    };
    Value {
        class,
        significand: 1 << 63 | fraction,
        ..Value::zero(sign)
    }
}

fn unpack_denormal(sign: bool, min: i32, significand: u64) -> Value {
    if significand == 0 {
        return Value::zero(sign);
    }
    let lead = significand.leading_zeros();
    Value {
        denormal: true,
        ..Value::finite(sign, min - lead as i32, significand << lead)
    }
}

/// Unpacks the 80-bit format: the significand, then sign and exponent.
pub fn unpack_extended(significand: u64, top: u16) -> Value {
    let sign = top & 0x8000 != 0;
    let biased = i32::from(top & 0x7fff);
    let integer_bit = significand >> 63 != 0;
    match biased {
        0 => unpack_denormal(sign, EXTENDED.min, significand),
        _ if !integer_bit => Value {
            class: Class::Unsupported,
            significand,
            ..Value::zero(sign)
        },
        0x7fff => unpack_special(sign, significand << 1 >> 1),
        _ => Value::finite(sign, biased - EXTENDED.max, significand),
    }
}

/// The 80-bit encoding of a value.
pub fn pack_extended(value: Value) -> (u64, u16) {
    let sign = u16::from(value.sign) << 15;
    match value.class {
        Class::Zero => (0, sign),
        Class::Finite if value.exponent < EXTENDED.min => {
            let shift = (EXTENDED.min - value.exponent) as u32;
            (value.significand.checked_shr(shift).unwrap_or(0), sign)
        }
        Class::Finite => {
            let biased = (value.exponent + EXTENDED.max) as u16 & 0x7fff;
            (value.significand, sign | biased)
        }
        _ => (value.significand, sign | 0x7fff),
    }
}

/// RC, as encoded in MXCSR and FCW.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rounding {
    Nearest,
    Down,
    Up,
    Truncate,
}

impl Rounding {
    pub fn from_bits(bits: u32) -> Rounding {
        match bits & 3 {
            0 => Rounding::Nearest,
            1 => Rounding::Down,
            2 => Rounding::Up,
            _ => Rounding::Truncate,
        }
    }

    /// Whether to go away from zero, from what is cut off, compared with half a unit.
    pub fn away(self, sign: bool, odd: bool, cut: u128, half: u128) -> bool {
        match self {
            Rounding::Nearest => cut > half || (cut == half && odd),
            Rounding::Down => sign && cut != 0,
            Rounding::Up => !sign && cut != 0,
            Rounding::Truncate => false,
        }
    }
}

/// What an unmasked overflow or underflow leaves in an x87 register: its exponent, this much
/// nearer to zero.
const WRAP: i32 = 24576;

/// The control bits of an operation, and the exceptions that it has raised.
#[derive(Clone, Copy, Debug)]
pub struct Environment {
    pub rounding: Rounding,
    /// Masked exceptions.
    pub masks: u8,
    /// Denormals are zeros (SSE).
    pub daz: bool,
    /// Flush to zero (SSE).
    pub ftz: bool,
    /// The x87's rules of NaNs and its unmasked responses.
    pub x87: bool,
    /// Raised so far.
    pub flags: u8,
    /// The last rounding went away from zero.
    pub up: bool,
}

impl Environment {
    /// As MXCSR says.
    pub fn sse(mxcsr: u32) -> Environment {
        Environment {
            rounding: Rounding::from_bits(mxcsr >> 13),
            masks: (mxcsr >> 7) as u8 & 0x3f,
            daz: mxcsr & 0x40 != 0,
            ftz: mxcsr & 0x8000 != 0,
            x87: false,
            flags: 0,
            up: false,
        }
    }

    /// As FCW says.
    pub fn x87(control: u16) -> Environment {
        Environment {
            rounding: Rounding::from_bits(u32::from(control) >> 10),
            masks: control as u8 & 0x3f,
            daz: false,
            ftz: false,
            x87: true,
            flags: 0,
            up: false,
        }
    }

    /// Unmasked exceptions among `of`.
    pub fn unmasked(&self, of: u8) -> u8 {
        self.flags & of & !self.masks
    }

    pub fn raise(&mut self, flags: u8) {
        self.flags |= flags;
    }

    /// An invalid operation: the real indefinite.
    pub fn invalid(&mut self) -> Value {
        self.raise(flag::INVALID);
        INDEFINITE
    }

    /// Notes a denormal operand.
    pub fn note_denormal(&mut self, value: Value) {
        if value.denormal {
            self.raise(flag::DENORMAL);
        }
    }

    /// An operand, after DAZ.
    pub fn operand(&self, format: Format, bits: u64) -> Value {
        let value = format.unpack(bits);
        if self.daz && value.denormal {
            return Value::zero(value.sign);
        }
        value
    }

    /// The result if the operand is a NaN or unsupported.
    pub fn nan(&mut self, value: Value) -> Option<Value> {
        match value.class {
            Class::Unsupported => Some(self.invalid()),
            Class::Signaling => {
                self.raise(flag::INVALID);
                Some(value.quiet())
            }
            Class::Quiet => Some(value),
            _ => None,
        }
    }

    /// The result if one of two operands is a NaN or unsupported (SDM volume 1, table 4-7).
    pub fn nans(&mut self, first: Value, second: Value) -> Option<Value> {
        let classes = [first.class, second.class];
        if classes.contains(&Class::Unsupported) {
            return Some(self.invalid());
        }
        if !first.is_nan() && !second.is_nan() {
            return None;
        }
        if classes.contains(&Class::Signaling) {
            self.raise(flag::INVALID);
        }
        if !second.is_nan() {
            return Some(first.quiet());
        }
        if !first.is_nan() {
            return Some(second.quiet());
        }
        if !self.x87 {
            return Some(first.quiet());
        }
        match (first.class, second.class) {
            (Class::Signaling, Class::Quiet) => return Some(second),
            (Class::Quiet, Class::Signaling) => return Some(first),
            _ => {}
        }
        let larger = match first.significand.cmp(&second.significand) {
            std::cmp::Ordering::Greater => first,
            std::cmp::Ordering::Less => second,
            // Equal but for the sign: the positive one.
            std::cmp::Ordering::Equal if first.sign => second,
            std::cmp::Ordering::Equal => first,
        };
        Some(larger.quiet())
    }

    /// Rounds an exact result, whose leading one is bit 127 of `significand` (bits that are
    /// lost below bit 0 are marked in it), to a format, and raises what that raises.
    pub fn finish(
        &mut self,
        sign: bool,
        exponent: i32,
        significand: u128,
        format: Format,
    ) -> Value {
        let cut = 128 - format.precision;
        let rounded = self.round(sign, significand, cut);
        let (bits, carried) = match rounded.bits {
            Some(bits) => (bits, 0),
            None => (1 << 127, 1),
        };
        let after = exponent + carried;
        let value = Value::finite(sign, after, (bits >> 64) as u64);
        if after < format.min {
            return self.tiny(sign, exponent, significand, format, value, rounded);
        }
        if after > format.max {
            return self.overflow(format, value, rounded);
        }
        self.up = rounded.up;
        if rounded.inexact {
            self.raise(flag::INEXACT);
        }
        value
    }

    fn tiny(
        &mut self,
        sign: bool,
        exponent: i32,
        significand: u128,
        format: Format,
        unbounded: Value,
        rounded: Rounded,
    ) -> Value {
        if self.masks & flag::UNDERFLOW == 0 {
            self.raise(flag::UNDERFLOW);
            let wrapped = unbounded.exponent + WRAP;
            if wrapped < format.min {
                self.raise(flag::INEXACT);
                return Value::zero(sign);
            }
            self.up = rounded.up;
            if rounded.inexact {
                self.raise(flag::INEXACT);
            }
            return Value {
                exponent: wrapped,
                ..unbounded
            };
        }
        if self.ftz {
            self.raise(flag::UNDERFLOW | flag::INEXACT);
            return Value::zero(sign);
        }
        let shifted = shift_right_jam(significand, (format.min - exponent) as u32);
        let rounded = self.round(sign, shifted, 128 - format.precision);
        self.up = rounded.up;
        if rounded.inexact {
            self.raise(flag::UNDERFLOW | flag::INEXACT);
        }
        // A shifted significand cannot carry out.
        let bits = rounded.bits.unwrap_or(1 << 127);
        if bits == 0 {
            return Value::zero(sign);
        }
        let lead = bits.leading_zeros();
        let significand = (bits << lead >> 64) as u64;
        Value::finite(sign, format.min - lead as i32, significand)
    }

    fn overflow(&mut self, format: Format, unbounded: Value, rounded: Rounded) -> Value {
        let sign = unbounded.sign;
        self.raise(flag::OVERFLOW);
        let wrapped = unbounded.exponent - WRAP;
        if self.masks & flag::OVERFLOW == 0 {
            if wrapped > format.max {
                self.raise(flag::INEXACT);
                self.up = true;
                return Value::infinity(sign);
            }
            self.up = rounded.up;
            if rounded.inexact {
                self.raise(flag::INEXACT);
            }
            return Value {
                exponent: wrapped,
                ..unbounded
            };
        }
        self.raise(flag::INEXACT);
        self.up = match self.rounding {
            Rounding::Nearest => true,
            Rounding::Down => sign,
            Rounding::Up => !sign,
            Rounding::Truncate => false,
        };
        if self.up {
            Value::infinity(sign)
        } else {
            let largest = u64::MAX << (64 - format.precision);
            Value::finite(sign, format.max, largest)
        }
    }

    /// Rounds off the low `cut` bits.
    pub fn round(&self, sign: bool, significand: u128, cut: u32) -> Rounded {
        let unit = 1u128 << cut;
        let rest = significand & (unit - 1);
        let odd = significand & unit != 0;
        let up = self.rounding.away(sign, odd, rest, unit >> 1);
        let kept = significand & !(unit - 1);
        Rounded {
            bits: if up {
                kept.checked_add(unit)
            } else {
                Some(kept)
            },
            inexact: rest != 0,
            up,
        }
    }

    /// Rounds a value to another format; exceptions of its class have been dealt with.
    pub fn convert(&mut self, value: Value, format: Format) -> Value {
        match value.class {
            Class::Finite => self.finish(
                value.sign,
                value.exponent,
                u128::from(value.significand) << 64,
                format,
            ),
            _ => value,
        }
    }
}

/// What rounding made of a significand; `bits` is `None` if it carried out of bit 127.
#[derive(Clone, Copy)]
pub struct Rounded {
    pub bits: Option<u128>,
    pub inexact: bool,
    pub up: bool,
}

/// Shifts right; bit 0 remembers whether a one was lost.
pub fn shift_right_jam(value: u128, by: u32) -> u128 {
    match by {
        0 => value,
        1..=127 => value >> by | u128::from(value << (128 - by) != 0),
        _ => u128::from(value != 0),
    }
}
