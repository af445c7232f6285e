//! Jumps that the host need not decode anew.
//!
//! Intel's Skylake and the processors derived from it do not keep the decoded form of 32 bytes in which a
//! jump crosses or ends at their boundary (Intel's "Mitigations for Jump Conditional Code Erratum",
//! 2.1). Code with a jump in each check has many such; in a loop each costs some 40 % of its 32 bytes. So hot
//! code begins a jump, with the comparison that the host fuses with it, behind the boundary that it
//! would touch.

use std::arch::x86_64::__cpuid;

use super::emitter::Emitter;
use crate::cache::FETCHED;
use crate::record::classify::Class;

/// Bytes of `jcc rel32`, of `jmp rel32` and `call rel32`, and of a push or pop.
pub(super) const CONDITIONAL: usize = 6;
pub(super) const DIRECT: usize = 5;
pub(super) const PUSH: usize = 1;

/// Prefixes, and the bytes of the longest instruction (SDM volume 2, 2.3.11).
const GS: u8 = 0x65;
const WORD: u8 = 0x66;
const LONGEST: usize = 15;

/// NOPs by length (SDM volume 2, NOP, table 4-12).
const NOPS: [&[u8]; 9] = [
    &[0x90],
    &[0x66, 0x90],
    &[0x0f, 0x1f, 0x00],
    &[0x0f, 0x1f, 0x40, 0],
    &[0x0f, 0x1f, 0x44, 0, 0],
    &[0x66, 0x0f, 0x1f, 0x44, 0, 0],
    &[0x0f, 0x1f, 0x80, 0, 0, 0, 0],
    &[0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
    &[0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
];

/// Whether the host is one of the processors concerned.
pub fn matter() -> bool {
    let (vendor, version) = (__cpuid(0), __cpuid(1).eax);
    let intel = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes)
        == [*b"Genu", *b"ineI", *b"ntel"];
    intel && is_concerned(version)
}

/// Whether a processor of Intel's is, by CPUID leaf 1, EAX.
fn is_concerned(version: u32) -> bool {
    let family = version >> 8 & 0xf;
    let model = version >> 12 & 0xf0 | version >> 4 & 0xf;
    let stepping = version & 0xf;
    family == 6
        && match model {
            0x4e | 0x5e | 0x8e | 0x9e | 0xa6 | 0xae => true,
            // Skylake and Cascade Lake servers; Cooper Lake, from 10 on, is mended.
            0x55 => stepping < 10,
            _ => false,
        }
}

impl Emitter<'_> {
    /// The next `len` bytes end in a jump, and perhaps begin with what the host fuses with it: where they
    /// would touch the boundary they begin behind it.
    pub(super) fn keep_whole(&mut self, len: usize) {
        let padding = self.padding(0, len);
        if padding != 0 {
            self.pad(padding);
        }
    }

    /// Likewise, behind an instruction of `before` bytes, the first of which is a segment prefix of GS: repeated,
    /// that costs less than a NOP.
    pub(super) fn keep_fused_behind(&mut self, before: usize, comparison: usize) {
        let padding = self.padding(before, comparison + CONDITIONAL);
        if padding == 0 {
            return;
        }
        let prefixes = padding.min(LONGEST - before);
        self.pad(padding - prefixes);
        self.bytes(&[GS; LONGEST][..prefixes]);
    }

    /// How far `len` bytes have to move that come `before` bytes from here.
    fn padding(&self, before: usize, len: usize) -> usize {
        if !self.target.whole_jumps || self.ops.is_cold() {
            return 0;
        }
        let room = FETCHED as usize - (self.address().0 as usize + before) % FETCHED as usize;
        if len >= room { room } else { 0 }
    }

    /// Before a comparison of so many bytes and a conditional jump.
    pub(super) fn keep_fused(&mut self, comparison: usize) {
        self.keep_whole(comparison + CONDITIONAL);
    }

    /// Before a conditional jump that is not fused with anything.
    pub(super) fn keep_conditional(&mut self) {
        self.keep_whole(CONDITIONAL);
    }

    /// Before the bytes of an instruction that the host may fuse with a conditional jump behind it.
    pub(super) fn keep_with_branch(&mut self, bytes: usize, class: &Class) {
        if self.branch_next && class.flags.changed() != 0 {
            self.keep_fused(bytes);
        }
    }

    /// One instruction without effect, or two, of so many bytes.
    fn pad(&mut self, len: usize) {
        for len in [len.min(LONGEST), len.saturating_sub(LONGEST)] {
            if let Some(nop) = NOPS.get(len.min(NOPS.len()).wrapping_sub(1)) {
                self.bytes(&[WORD; LONGEST][..len - nop.len()]);
                self.bytes(nop);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_told_apart() {
        // Cascade Lake, Skylake client, Coffee Lake.
        assert!([0x50657, 0x506e3, 0x906ea].into_iter().all(is_concerned));
        // Cooper Lake, Ice Lake server, Haswell, AMD's family 25.
        let others = [0x5065b, 0x606a6, 0x306c3, 0xa2_0f10];
        assert!(!others.into_iter().any(is_concerned));
    }
}
