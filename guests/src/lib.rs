//! Guests of our own, assembled from Rust: no download, no external assembler.
//!
//! A guest is an [`Image`]: bytes for guest-physical memory, page and descriptor tables among
//! them, and the state in which a processor starts it. This crate knows nothing of the emulator.

#![forbid(unsafe_code)]

pub mod demo;

/// A guest that could not be assembled; only a mistake in this crate leads to it.
#[derive(Debug, thiserror::Error)]
#[error("the embedded guest cannot be assembled: {0}")]
pub struct AssembleError(#[from] iced_x86::IcedError);

/// Bytes for guest-physical memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address of the first byte.
    pub at: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A base and a limit, as LGDT and LIDT load them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Linear address of the first byte.
    pub base: u64,
    /// The last valid offset.
    pub limit: u16,
}

/// A guest in 64-bit mode: what to put into memory, and the processor's registers.
#[derive(Clone, Debug)]
pub struct Image {
    /// The contents of memory; everything else is zero.
    pub segments: Vec<Segment>,
    /// Bytes of RAM that it needs.
    pub ram_bytes: u64,
    /// RIP at the start.
    pub entry: u64,
    /// RSP at the start.
    pub stack: u64,
    /// CR3: a 4-level page table.
    pub cr3: u64,
    /// The global descriptor table.
    pub gdt: Table,
    /// The interrupt descriptor table.
    pub idt: Table,
    /// The task-state segment, which is in use (TR).
    pub tss: Table,
    /// Selector of the code segment at the start: 64-bit, privilege 0.
    pub code_selector: u16,
    /// Selector of the stack segment at the start.
    pub data_selector: u16,
    /// Selector of the task-state segment.
    pub tss_selector: u16,
}
