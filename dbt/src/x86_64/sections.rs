//! A block's code while it is emitted: what is executed, and, elsewhere, what hardly ever is.
//!
//! Nearly half of a block's bytes are slow paths and the records behind their calls. Among the code that
//! runs they would fill the host's caches and TLB for instructions; so they are placed apart, and
//! jumps between the two sections are resolved when both places are known.

use dynasmrt::components::LabelRegistry;
use dynasmrt::relocations::Relocation;
use dynasmrt::x64::X64Relocation;
use dynasmrt::{AssemblyOffset, DynamicLabel, DynasmApi, DynasmLabelApi};

use super::moving::{Follows, Mark};
use crate::cache::CodeOffset;

/// Set in a position that is in the cold section.
const COLD: u32 = 1 << 31;
/// A label that has no position yet.
const NOWHERE: u32 = u32::MAX;

/// The two sections; bytes go to the one that is chosen.
#[derive(Default)]
pub(super) struct Sections {
    bytes: [Vec<u8>; 2],
    cold: bool,
    /// The position of each label.
    labels: Vec<u32>,
    /// Displacements of 32 bits: where each ends, and its label.
    jumps: Vec<(u32, u32)>,
    /// Whether the block may be moved.
    movable: bool,
    /// What changes then.
    marks: Vec<Mark>,
    names: LabelRegistry,
}

impl Sections {
    /// Forgets what was emitted, and goes on in the hot section. `movable`: what would change
    /// elsewhere is noted.
    pub(super) fn clear(&mut self, movable: bool) {
        for bytes in &mut self.bytes {
            bytes.clear();
        }
        self.cold = false;
        self.movable = movable;
        self.marks.clear();
        self.labels.clear();
        self.jumps.clear();
        self.names.clear();
    }

    /// Chooses the section for what comes next.
    pub(super) fn choose(&mut self, cold: bool) {
        self.cold = cold;
    }

    /// Whether the cold section is chosen.
    pub(super) fn is_cold(&self) -> bool {
        self.cold
    }

    /// A label without a position.
    pub(super) fn new_dynamic_label(&mut self) -> DynamicLabel {
        self.labels.push(NOWHERE);
        self.names.new_dynamic_label()
    }

    /// Notes what has just been emitted, and ends here, as something that changes if the block is
    /// moved.
    pub(super) fn mark(&mut self, follows: Follows) {
        if self.movable {
            let end = self.bytes[usize::from(self.cold)].len() as u32;
            self.marks.push(Mark::new(follows, end, self.cold));
        }
    }

    /// What changes if the block is moved, when it has been placed; `None`: it cannot be.
    pub(super) fn marks(&self) -> Option<Box<[Mark]>> {
        self.movable.then(|| Box::from(&*self.marks))
    }

    /// Resolves all jumps for sections at these places, and moves the code out.
    ///
    /// # Panics
    ///
    /// If a label that is jumped to was never placed: every label of a block is, by its stub at
    /// the latest.
    pub(super) fn place(&mut self, bases: [CodeOffset; 2], into: &mut [Vec<u8>; 2]) {
        let address = |position: u32| {
            let base = bases[usize::from(position & COLD != 0)];
            base.0 + (position & !COLD)
        };
        for &(end, label) in &self.jumps {
            let target = self.labels[label as usize];
            assert_ne!(target, NOWHERE, "a jump leads nowhere");
            let displacement = address(target).wrapping_sub(address(end));
            if self.movable && (target ^ end) & COLD != 0 {
                let cold = end & COLD != 0;
                self.marks
                    .push(Mark::new(Follows::Section, end & !COLD, cold));
            }
            let bytes = &mut self.bytes[usize::from(end & COLD != 0)];
            let end = (end & !COLD) as usize;
            bytes[end - 4..end].copy_from_slice(&displacement.to_le_bytes());
        }
        std::mem::swap(&mut self.bytes, into);
    }

    fn current(&mut self) -> &mut Vec<u8> {
        &mut self.bytes[usize::from(self.cold)]
    }

    fn position(&self) -> u32 {
        let here = self.bytes[usize::from(self.cold)].len() as u32;
        here | if self.cold { COLD } else { 0 }
    }
}

impl Extend<u8> for Sections {
    fn extend<T: IntoIterator<Item = u8>>(&mut self, bytes: T) {
        self.current().extend(bytes);
    }
}

impl<'a> Extend<&'a u8> for Sections {
    fn extend<T: IntoIterator<Item = &'a u8>>(&mut self, bytes: T) {
        self.current().extend(bytes);
    }
}

impl DynasmApi for Sections {
    fn offset(&self) -> AssemblyOffset {
        AssemblyOffset((self.position() & !COLD) as usize)
    }

    fn push(&mut self, byte: u8) {
        self.current().push(byte);
    }

    fn align(&mut self, alignment: usize, with: u8) {
        let bytes = self.current();
        bytes.resize(bytes.len().next_multiple_of(alignment), with);
    }
}

/// Blocks have dynamic labels only, and displacements of 32 bits.
impl DynasmLabelApi for Sections {
    type Relocation = X64Relocation;

    fn local_label(&mut self, name: &'static str) {
        unreachable!("a local label in a block: {name}");
    }

    fn global_label(&mut self, name: &'static str) {
        unreachable!("a global label in a block: {name}");
    }

    fn dynamic_label(&mut self, label: DynamicLabel) {
        self.labels[label.get_id()] = self.position();
    }

    fn forward_relocation(&mut self, name: &'static str, _: isize, _: u8, _: u8, _: X64Relocation) {
        unreachable!("a local label in a block: {name}");
    }

    fn backward_relocation(
        &mut self,
        name: &'static str,
        _: isize,
        _: u8,
        _: u8,
        _: X64Relocation,
    ) {
        unreachable!("a local label in a block: {name}");
    }

    fn global_relocation(&mut self, name: &'static str, _: isize, _: u8, _: u8, _: X64Relocation) {
        unreachable!("a global label in a block: {name}");
    }

    fn dynamic_relocation(
        &mut self,
        label: DynamicLabel,
        target: isize,
        field: u8,
        reference: u8,
        kind: X64Relocation,
    ) {
        let jump = (target, field, reference, kind.size()) == (0, 4, 0, 4);
        assert!(jump, "a label in a block that no jump leads to");
        let end = self.position();
        self.jumps.push((end, label.get_id() as u32));
    }

    fn value_relocation(&mut self, value: usize, _: u8, _: u8, _: X64Relocation) {
        unreachable!("a jump in a block to an address: {value:#x}");
    }
}

#[cfg(test)]
mod tests {
    use dynasmrt::dynasm;

    use super::*;

    #[test]
    fn jumps_lead_from_one_section_to_the_other() {
        let mut ops = Sections::default();
        let (slow, back) = (ops.new_dynamic_label(), ops.new_dynamic_label());
        dynasm!(ops ; .arch x64 ; nop ; jne =>slow ; =>back);
        ops.choose(true);
        dynasm!(ops ; .arch x64 ; nop ; nop ; =>slow ; nop ; jmp =>back);
        let mut code = Default::default();
        ops.place([CodeOffset(0x100), CodeOffset(0x5000)], &mut code);
        // jne 0x5002 ends at 0x107, jmp 0x107 at 0x5008.
        assert_eq!(code[0], [0x90, 0x0f, 0x85, 0xfb, 0x4e, 0, 0]);
        assert_eq!(code[1], [0x90, 0x90, 0x90, 0xe9, 0xff, 0xb0, 0xff, 0xff]);
    }
}
