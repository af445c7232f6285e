//! The machine, its options, boot, console and reports.

pub mod clock;
pub mod inject;
pub mod linux;
pub mod machine;
pub mod pc;
pub mod report;
pub mod wake;
