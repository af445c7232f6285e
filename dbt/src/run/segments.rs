//! What translations outside flat code need to know of the segments: a number for each code segment,
//! and how far the others reach.

use rustc_hash::FxHashMap;

use super::vcpu::Vcpu;
use crate::guest::{Bounds, CODE_SEGMENTS, CodeSegment, CpuState, Mode, Segment};

/// Code segments that are remembered.
const REMEMBERED: usize = 1 << 16;

/// The numbers of code segments. One is never given twice, so that no jump leads to a block of another
/// segment.
pub(super) struct CodeSegments {
    known: FxHashMap<(u32, u32), u32>,
    /// The last number that was given.
    number: u32,
    /// The segment that was asked for last.
    last: CodeSegment,
}

impl Default for CodeSegments {
    fn default() -> Self {
        CodeSegments {
            known: FxHashMap::default(),
            number: 0,
            last: CodeSegment::FLAT,
        }
    }
}

impl CodeSegments {
    /// That of the code at RIP; `None` if the numbers have run out.
    fn of(&mut self, cpu: &CpuState) -> Option<CodeSegment> {
        let (base, limit) = cpu.code_bounds();
        if (base, limit) == (self.last.base, self.last.limit) {
            return Some(self.last);
        }
        let flat = (base, limit) == (0, u32::MAX);
        let number = match self.known.get(&(base, limit)) {
            _ if flat => 0,
            Some(&number) => number,
            None => self.add(base, limit)?,
        };
        self.last = CodeSegment {
            base,
            limit,
            number,
        };
        Some(self.last)
    }

    fn add(&mut self, base: u32, limit: u32) -> Option<u32> {
        if self.number + 1 >= CODE_SEGMENTS {
            return None;
        }
        self.number += 1;
        if self.known.len() >= REMEMBERED {
            // Blocks keep their numbers; others of the same segment are merely made anew.
            self.known.clear();
        }
        self.known.insert((base, limit), self.number);
        Some(self.number)
    }
}

/// What [`Bounds`] were computed from.
#[derive(Default)]
pub(super) struct Followed {
    segments: [Segment; 6],
    typed: bool,
}

impl Vcpu {
    /// The segment of the code at RIP; `None` if the numbers have run out.
    pub(super) fn code_segment(&mut self) -> Option<CodeSegment> {
        self.code_segments.of(&self.block.get().cpu)
    }

    /// All numbers of code segments are free again: nothing may be left that has one.
    pub(super) fn renumber_segments(&mut self) {
        self.forget_everything();
        self.code_segments = CodeSegments::default();
    }

    /// Before emitted code is entered: tells it how far the segments reach.
    pub(super) fn follow_segments(&mut self) {
        let block = self.block.get_mut();
        if block.cpu.mode.has(Mode::CODE64) {
            return;
        }
        let typed = Bounds::typed(&block.cpu);
        let followed = &mut self.followed;
        if followed.segments == block.cpu.segments && followed.typed == typed {
            return;
        }
        followed.segments = block.cpu.segments;
        followed.typed = typed;
        for (bounds, segment) in block.exchange.bounds.iter_mut().zip(&block.cpu.segments) {
            *bounds = Bounds::of(segment, typed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(segments: &mut CodeSegments, base: u32, limit: u32) -> Option<u32> {
        let mut cpu = CpuState::at_reset();
        let cs = cpu.segment_mut(crate::guest::SegmentIndex::Cs);
        (cs.base, cs.limit) = (base.into(), limit);
        segments.of(&cpu).map(|segment| segment.number)
    }

    #[test]
    fn a_number_is_never_given_twice() {
        let mut segments = CodeSegments::default();
        assert_eq!(number(&mut segments, 0, u32::MAX), Some(0));
        assert_eq!(number(&mut segments, 0x10, 0xffff), Some(1));
        assert_eq!(number(&mut segments, 0x10, 0xfffe), Some(2));
        assert_eq!(number(&mut segments, 0x10, 0xffff), Some(1));
        assert_eq!(number(&mut segments, 0, u32::MAX), Some(0));
        for base in 1..=REMEMBERED as u32 {
            number(&mut segments, base << 4, 0xfff);
        }
        // Forgotten, and not to be taken for what it was.
        let again = number(&mut segments, 0x10, 0xffff).expect("there are more");
        assert!(again > REMEMBERED as u32);
        segments.number = CODE_SEGMENTS - 1;
        assert_eq!(number(&mut segments, 0x20, 0x1234), None);
        assert_eq!(number(&mut segments, 0x10, 0xffff), Some(again));
    }
}
