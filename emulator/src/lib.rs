//! The machine, its options, boot, console and reports.
