//! How far the segments reach, as emitted code compares offsets with it.

use super::flags::CR0_PE;
use super::mode::Mode;
use super::segment::Segment;
use super::state::CpuState;

/// The last bytes of a segment that may be read and written. -1: none, or it is not for emitted code
/// to say (an expand-down segment, one that is not present, of another type): then the interpreter
/// looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Bounds {
    /// Reads.
    pub read: i64,
    /// Writes.
    pub write: i64,
}

impl Bounds {
    /// Those of a segment outside 64-bit mode. In real and virtual-8086 mode its type means
    /// nothing.
    pub fn of(segment: &Segment, typed: bool) -> Bounds {
        let attributes = segment.attributes;
        let code = attributes & Segment::CODE != 0;
        let up = code || attributes & Segment::CONFORMING == 0;
        let usable = up && (!typed || segment.present());
        // Writable data, or code that can be read.
        let more = attributes & Segment::WRITABLE != 0;
        let last = |allowed: bool| {
            if allowed {
                i64::from(segment.limit)
            } else {
                -1
            }
        };
        Bounds {
            read: last(usable && (!typed || !code || more)),
            write: last(usable && (!typed || (!code && more))),
        }
    }

    /// Whether the processor looks at the types of segments.
    pub fn typed(cpu: &CpuState) -> bool {
        cpu.control.cr0 & CR0_PE != 0 && !cpu.mode.has(Mode::VM86)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_count_in_protected_mode_only() {
        let of = |attributes: u16, typed| {
            let segment = Segment {
                base: 0x10,
                limit: 0x1234,
                selector: 8,
                attributes,
            };
            let bounds = Bounds::of(&segment, typed);
            (bounds.read >= 0, bounds.write >= 0)
        };
        for (attributes, protected, real) in [
            (0x93, (true, true), (true, true)),
            (0x91, (true, false), (true, true)),
            (0x9b, (true, false), (true, true)),
            (0x99, (false, false), (true, true)),
            (0x97, (false, false), (false, false)),
            (0x13, (false, false), (true, true)),
            (0x9f, (true, false), (true, true)),
        ] {
            assert_eq!(of(attributes, true), protected, "{attributes:#x}");
            assert_eq!(of(attributes, false), real, "{attributes:#x}");
        }
    }
}
