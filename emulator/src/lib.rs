//! The machine, its options, boot, console and reports.

pub mod bios_remains;
pub mod boot;
pub mod clock;
pub mod command;
pub mod console;
pub mod console_watch;
pub mod debian;
pub mod demo;
pub mod exit;
pub mod image;
pub mod inject;
pub mod linux;
pub mod machine;
pub mod multiboot;
pub mod options;
pub mod pc;
pub mod pvh;
pub mod report;
pub mod session;
pub mod shadow;
pub mod tracing_setup;
pub mod wake;
