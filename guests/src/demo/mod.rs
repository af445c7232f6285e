//! The demonstration guest: a small kernel and a program in user mode that computes something
//! checkable, for as many rounds as asked for, and prints a digest after each.
//!
//! Its memory has every kind of page that faults are injected into: page tables, kernel text and
//! data, user text, data and stack. It uses the first serial port for its output and the port of
//! `isa-debug-exit` to end: 0 for a good end, [`EXCEPTION_BASE`] plus the vector after an
//! exception that it did not expect.

mod expected;
mod kernel;
mod layout;
mod program;
mod tables;

pub use expected::expected;
pub use layout::{EXCEPTION_BASE, EXIT_PORT, RAM_BYTES};

use crate::{AssembleError, Image};

/// The word in front of the final digest in the guest's output.
pub const RESULT: &str = "result ";

/// Assembles the guest for that many rounds, 1 to 1000.
pub fn image(rounds: u32) -> Result<Image, AssembleError> {
    let kernel = kernel::assemble()?;
    let program = program::assemble(rounds.clamp(1, 1000))?;
    Ok(tables::link(kernel, program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_do_not_overlap_and_fit() {
        let image = image(3).unwrap();
        let mut ranges: Vec<(u64, u64)> = image
            .segments
            .iter()
            .map(|segment| (segment.at, segment.at + segment.bytes.len() as u64))
            .collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        assert!(ranges.last().unwrap().1 <= image.ram_bytes);
    }

    #[test]
    fn rounds_change_the_result() {
        assert_ne!(expected(1), expected(2));
    }
}
