//! Where code is in linear memory, as translations depend on it.

/// CS as code is fetched through it: its base and limit, under a number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CodeSegment {
    /// Linear address of its first byte.
    pub base: u32,
    /// The last offset that may be fetched.
    pub limit: u32,
    /// Names the pair of both, so that one word can say where a jump leads: 0 for flat and 64-bit
    /// code.
    pub number: u32,
}

/// Numbers that there are: a jump's word has 31 bits for them.
pub const CODE_SEGMENTS: u32 = 1 << 31;

impl CodeSegment {
    /// All of memory; 64-bit code has no other.
    pub const FLAT: CodeSegment = CodeSegment {
        base: 0,
        limit: u32::MAX,
        number: 0,
    };

    /// The linear address of an offset.
    pub fn linear(self, rip: u64) -> u64 {
        if self.number == 0 {
            rip
        } else {
            u64::from(self.base).wrapping_add(rip) & 0xffff_ffff
        }
    }

    /// The number of the linear page of an offset.
    pub fn page(self, rip: u64) -> u64 {
        self.linear(rip) >> 12
    }

    /// The number of the page behind it.
    pub fn next_page(self, rip: u64) -> u64 {
        let next = self.page(rip).wrapping_add(1);
        if self.number == 0 {
            next
        } else {
            next & 0xf_ffff
        }
    }

    /// What is added to an offset for the word by which jump caches know it. An offset and a base
    /// together have 33 bits.
    pub fn bias(self) -> u64 {
        (u64::from(self.number) << 33) + u64::from(self.base)
    }

    /// The word by which jump caches know an offset.
    pub fn jump_word(self, rip: u64) -> u64 {
        rip.wrapping_add(self.bias())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_jumps_name_segment_and_offset() {
        let segment = |base, number| CodeSegment {
            base,
            limit: u32::MAX,
            number,
        };
        let high = segment(0xffff_0000, 1);
        let low = segment(0, 2);
        // Both are at linear address 0.
        assert_eq!(high.linear(0x1_0000), low.linear(0));
        assert_ne!(high.jump_word(0x1_0000), low.jump_word(0));
        assert_ne!(low.jump_word(0), CodeSegment::FLAT.jump_word(0));
        assert_eq!(CodeSegment::FLAT.jump_word(1 << 40), 1 << 40);
        assert_eq!(high.page(0x1_0fff), 0);
        assert_eq!(high.next_page(0xffff), 0);
    }
}
