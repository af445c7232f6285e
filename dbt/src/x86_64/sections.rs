//! A block's code while it is emitted: what is executed, and, elsewhere, what hardly ever is.
//!
//! Nearly half of a block's bytes are slow paths and the records behind their calls. Among the code that
//! runs they would fill the host's caches and TLB for instructions; so they are placed apart, and
//! jumps between the two sections are resolved when both places are known.

use dynasmrt::components::LabelRegistry;
use dynasmrt::x64::X64Relocation;
use dynasmrt::{AssemblyOffset, DynamicLabel, DynasmApi, DynasmLabelApi};

use super::encoded::Encoded;
use super::moving::{Follows, mark};
use crate::cache::{CodeOffset, Words};

/// Set in a position that is in the cold section.
const COLD: u32 = 1 << 31;
/// A label that has no position yet.
const NOWHERE: u32 = u32::MAX;
/// How dynasm-rs describes a displacement of 32 bits from the end of its field, and of the instruction.
const DISPLACEMENT: (isize, u8, u8, u8) = (0, 4, 0, 2);

/// The two sections; bytes go to the one that is chosen.
#[derive(Default)]
pub(super) struct Sections {
    chosen: Vec<u8>,
    other: Vec<u8>,
    /// Whether the cold one is chosen.
    cold: bool,
    /// The position of each label.
    labels: Vec<u32>,
    /// Displacements of 32 bits: where each ends, and its label.
    jumps: Vec<(u32, u32)>,
    /// Whether the block may be moved.
    movable: bool,
    /// What changes then.
    marks: Vec<u32>,
    registry: LabelRegistry,
    /// The names of the first labels, which are the same in each block.
    names: Vec<DynamicLabel>,
}

impl Sections {
    /// Forgets what was emitted, and goes on in the hot section. `movable`: what would change
    /// elsewhere is noted.
    pub(super) fn clear(&mut self, movable: bool) {
        self.chosen.clear();
        self.other.clear();
        self.cold = false;
        self.movable = movable;
        self.marks.clear();
        self.labels.clear();
        self.jumps.clear();
    }

    /// Chooses the section for what comes next.
    pub(super) fn choose(&mut self, cold: bool) {
        if self.cold != cold {
            std::mem::swap(&mut self.chosen, &mut self.other);
            self.cold = cold;
        }
    }

    /// Whether the cold section is chosen.
    pub(super) fn is_cold(&self) -> bool {
        self.cold
    }

    /// A label without a position.
    pub(super) fn new_dynamic_label(&mut self) -> DynamicLabel {
        let number = self.labels.len();
        self.labels.push(NOWHERE);
        if number == self.names.len() {
            self.names.push(self.registry.new_dynamic_label());
        }
        self.names[number]
    }

    /// Emits an instruction.
    pub(super) fn put(&mut self, encoded: &Encoded) {
        encoded.append_to(&mut self.chosen);
    }

    /// Notes what has just been emitted, and ends here, as something that changes if the block is
    /// moved.
    pub(super) fn mark(&mut self, follows: Follows) {
        if self.movable {
            let end = self.chosen.len() as u32;
            self.marks.push(mark(follows, end, self.cold));
        }
    }

    /// What changes if the block is moved, when it has been placed; `None`: it cannot be.
    pub(super) fn marks(&self) -> Option<Words> {
        self.movable.then(|| self.marks.as_slice().into())
    }

    /// Resolves all jumps for sections at these places, and moves the code out.
    ///
    /// # Panics
    ///
    /// If a label that is jumped to was never placed: every label of a block is, by its stub at
    /// the latest.
    pub(super) fn place(&mut self, bases: [CodeOffset; 2], into: &mut [Vec<u8>; 2]) {
        self.choose(false);
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
                self.marks.push(mark(Follows::Section, end & !COLD, cold));
            }
            let bytes = match end & COLD {
                0 => &mut self.chosen,
                _ => &mut self.other,
            };
            let end = (end & !COLD) as usize;
            bytes[end - 4..end].copy_from_slice(&displacement.to_le_bytes());
        }
        std::mem::swap(&mut self.chosen, &mut into[0]);
        std::mem::swap(&mut self.other, &mut into[1]);
    }

    /// Offset of the next byte from its section's start.
    pub(super) fn here(&self) -> u32 {
        self.chosen.len() as u32
    }

    fn position(&self) -> u32 {
        self.here() | if self.cold { COLD } else { 0 }
    }
}

impl Extend<u8> for Sections {
    fn extend<T: IntoIterator<Item = u8>>(&mut self, bytes: T) {
        self.chosen.extend(bytes);
    }
}

impl<'a> Extend<&'a u8> for Sections {
    fn extend<T: IntoIterator<Item = &'a u8>>(&mut self, bytes: T) {
        self.chosen.extend(bytes);
    }
}

impl DynasmApi for Sections {
    fn offset(&self) -> AssemblyOffset {
        AssemblyOffset(self.chosen.len())
    }

    fn push(&mut self, byte: u8) {
        self.chosen.push(byte);
    }

    fn align(&mut self, alignment: usize, with: u8) {
        let end = self.chosen.len().next_multiple_of(alignment);
        self.chosen.resize(end, with);
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

    fn dynamic_reloc(
        &mut self,
        label: DynamicLabel,
        target: isize,
        field: u8,
        reference: u8,
        kind: u8,
    ) {
        let jump = (target, field, reference, kind) == DISPLACEMENT;
        assert!(jump, "a label in a block that no jump leads to");
        let end = self.position();
        self.jumps.push((end, label.get_id() as u32));
    }

    fn dynamic_relocation(
        &mut self,
        label: DynamicLabel,
        _: isize,
        _: u8,
        _: u8,
        kind: X64Relocation,
    ) {
        unreachable!("a relocation in a block that is decoded: {label:?} {kind:?}");
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
