//! Random bytes for this crate's own tests.

/// xorshift64, always from the same seed.
pub(crate) struct RandomBytes(u64);

impl RandomBytes {
    pub fn new() -> RandomBytes {
        RandomBytes(0x1234_5678_9abc_def1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// As many as any instruction has.
    pub fn bytes(&mut self) -> [u8; 16] {
        let mut bytes = [0u8; 16];
        bytes[..8].copy_from_slice(&self.next().to_le_bytes());
        bytes[8..].copy_from_slice(&self.next().to_le_bytes());
        bytes
    }
}
