//! One host instruction, or two in a row that always come together, as a number: that is handed around in
//! registers. Bytes that are put together in memory and read as a whole have the processor wait for its own stores.

use std::num::NonZeroU128;

/// Where the number of bytes is.
const LEN: u32 = u128::BITS - u8::BITS;

/// At most fifteen bytes, the first one lowest; behind them zeros, and in the highest byte their number.
#[derive(Clone, Copy)]
pub(super) struct Encoded(NonZeroU128);

impl Encoded {
    /// The lowest bytes of a number, behind which come zeros.
    pub(super) fn new(bytes: u128, len: usize) -> Encoded {
        debug_assert!((1..16).contains(&len) && bytes >> (8 * len) == 0);
        let number = NonZeroU128::new(bytes | (len as u128) << LEN);
        Encoded(number.expect("an instruction has a byte"))
    }

    /// Those of a slice.
    pub(super) fn of(bytes: &[u8]) -> Encoded {
        let mut all = [0; size_of::<u128>()];
        all[..bytes.len()].copy_from_slice(bytes);
        Encoded::new(u128::from_le_bytes(all), bytes.len())
    }

    /// How many they are.
    pub(super) fn len(self) -> usize {
        (self.0.get() >> LEN) as usize
    }

    fn bytes(self) -> u128 {
        self.0.get() & ((1 << LEN) - 1)
    }

    /// With the lowest bytes of a number, behind which come zeros.
    pub(super) fn append(self, bytes: u64, count: usize) -> Encoded {
        let all = self.bytes() | u128::from(bytes) << (8 * self.len());
        Encoded::new(all, self.len() + count)
    }

    /// With ModRM for a register or an extension, SIB and an absolute address.
    pub(super) fn absolute(self, field: u8, address: i32) -> Encoded {
        let modrm = u64::from((field & 7) << 3 | 4);
        self.append(modrm | 0x25 << 8 | u64::from(address as u32) << 16, 6)
    }

    /// With a legacy prefix before it.
    pub(super) fn behind(self, prefix: u8) -> Encoded {
        Encoded::new(self.bytes() << 8 | u128::from(prefix), self.len() + 1)
    }

    /// With another one behind it.
    pub(super) fn then(self, next: Encoded) -> Encoded {
        let all = self.bytes() | next.bytes() << (8 * self.len());
        Encoded::new(all, self.len() + next.len())
    }

    /// Appends the bytes to others.
    pub(super) fn append_to(self, code: &mut Vec<u8>) {
        // A copy of a known length takes no loop.
        let end = code.len() + self.len();
        code.extend_from_slice(&self.0.get().to_le_bytes());
        code.truncate(end);
    }

    /// The bytes.
    #[cfg(test)]
    pub(super) fn to_vec(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.append_to(&mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_in_their_order() {
        let load = Encoded::of(&[0x8b]).absolute(0xf, 0x1234).behind(0x65);
        assert_eq!(load.to_vec(), [0x65, 0x8b, 0x3c, 0x25, 0x34, 0x12, 0, 0]);
        let both = load.then(Encoded::new(0x3e89, 2)).append(0, 1);
        assert_eq!(both.len(), 11);
        assert_eq!(both.to_vec()[8..], [0x89, 0x3e, 0]);
    }
}
