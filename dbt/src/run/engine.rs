//! What every engine has in common: its switches, and what its runs end with.

use crate::interpret::extension::HAS_NATIVE;

/// Switches of the engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Count guest instructions exactly, so that time and faults can be a function of them.
    pub counted: bool,
    /// Interpret everything.
    pub interpret_only: bool,
    /// Interpret everything, and let the host processor execute no guest instruction: the only
    /// way on hosts other than x86-64 Linux, and a choice on those.
    pub portable: bool,
    /// Bytes of host code kept at the most.
    pub code_bytes: usize,
    /// Keep host code on large host pages, where the host has protection keys.
    pub large_code: bool,
    /// Let one TLB check serve several accesses that are near each other.
    pub grouping: bool,
    /// Predict where returns go by a stack of the calls.
    pub returns: bool,
    /// Execute the common system instructions (SYSCALL, SYSRET, RDTSC, STAC, CLAC and more) in
    /// emitted code.
    pub system_inline: bool,
    /// Execute string instructions, bit strings in memory, CMPXCHG8B, CMPXCHG16B and ENTER in emitted code.
    pub memory_inline: bool,
    /// REP STOS and REP MOVS work by the host's vector registers, if it has AVX-512.
    pub vector_strings: bool,
    /// Keep the TLB entries of address spaces with other process-context identifiers.
    pub pcid_tlb: bool,
    /// Let a TLB entry whose place another page takes move to a second one.
    pub second_places: bool,
    /// Have a thread ask the host for memory before the guest writes it, where it does so in order.
    pub populate_ahead: bool,
    /// Keep the arithmetic flags right wherever the guest may look at them, also where its code
    /// overwrites them before it reads them: in exceptions' and interrupts' frames.
    pub precise_flags: bool,
    /// Leave flags to recipes where code ends in a return or an indirect jump, and let them stay where
    /// they are while code runs that only passes them on.
    pub lazy_flags: bool,
    /// Let the checks of loops that take long try the pages that they remember; how often one may be
    /// wrong, at the most, before it looks for others. `None`: none does.
    pub prediction: Option<u8>,
    /// Have every loop predict, not only those that are seen running, and do at once what waits until it
    /// seems to be worth it: for tests, which are over before.
    pub eager_prediction: bool,
    /// Let such a check remember a run of pages that follow each other on the host, instead of one.
    pub wide_reach: bool,
    /// Bring pages together on the host for which such checks are wrong too often.
    pub gather: bool,
    /// Let the guest registers that a hot loop needs often change places with others, so that they
    /// are in host registers; how many loads and stores a round has to save. `None`: none do.
    pub registers: Option<u8>,
    /// Have emitted code execute accesses that cross from one page into the next.
    pub crossing: bool,
    /// Have pushes and pops in a row move the guest's stack pointer once.
    pub late_stack: bool,
    /// Keep what leads to accesses that share a check in memory only where a register cannot.
    pub late_slots: bool,
    /// Of several stores in a row that share a check, make those to the mirrors first.
    pub late_stores: bool,
    /// Accesses with a base and an index whose checks predict wait for one of the two registers only.
    pub late_index: bool,
    /// Have the host prefetch what the guest does.
    pub prefetch: bool,
    /// What a trace's exits lead to is entered by polls, where samples find the processor and entries are counted, until it
    /// is part of a trace.
    pub exit_polls: bool,
    /// What leads to a group of accesses may be in a register that a trace does not need.
    pub slot_registers: bool,
    /// Accesses that a check before them covers let nobody see the flags, and returns that find what their calls have
    /// pushed are not compared.
    pub sure_accesses: bool,
    /// Checks that are the same in each round of a hot loop are made before its first one.
    pub hoisting: bool,
    /// Jumps of hot code neither cross nor end at a boundary of 32 bytes. Usual where the host then need
    /// not decode them anew.
    pub whole_jumps: bool,
    /// Guest registers that are kept in memory are operands of host instructions where they stand.
    pub memory_operands: bool,
    /// Copy translations for the same code at another address.
    pub moving: bool,
    /// Blocks go on behind jumps, along the way that was taken before.
    pub long_blocks: bool,
    /// Rounds of a loop after which a trace is made of it; `None`: never.
    pub traces: Option<u8>,
    /// Let traces, if there are any, follow calls and returns, over several pages; how often code is
    /// entered before one is made of it, although it is no loop. `None`: they do not.
    pub long_traces: Option<u16>,
    /// Have blocks count their entries only where a sample has found the processor, and not from the beginning; counted
    /// runs, which have to repeat, take no samples.
    pub samples: bool,
    /// Let these traces follow jumps and calls through registers and memory to where these led once.
    pub indirect_traces: bool,
    /// Translate 16-bit code, and code in segments that are not flat.
    pub segmented: bool,
    /// How often code is interpreted before it is translated.
    pub cold: u8,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            counted: false,
            interpret_only: false,
            portable: !HAS_NATIVE,
            code_bytes: 96 << 20,
            large_code: true,
            grouping: true,
            returns: true,
            system_inline: true,
            memory_inline: true,
            vector_strings: true,
            pcid_tlb: true,
            second_places: true,
            populate_ahead: true,
            precise_flags: true,
            lazy_flags: true,
            prediction: Some(128),
            eager_prediction: false,
            wide_reach: true,
            gather: true,
            registers: Some(3),
            crossing: true,
            late_stack: true,
            late_slots: true,
            late_stores: true,
            late_index: true,
            prefetch: true,
            exit_polls: true,
            slot_registers: true,
            sure_accesses: true,
            hoisting: true,
            whole_jumps: host_wants_whole_jumps(),
            memory_operands: true,
            moving: true,
            long_blocks: true,
            traces: Some(8),
            long_traces: Some(32_768),
            samples: true,
            indirect_traces: true,
            segmented: true,
            cold: 2,
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use crate::x86_64::whole_jumps::matter as host_wants_whole_jumps;

/// Nothing is translated.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn host_wants_whole_jumps() -> bool {
    false
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
impl EngineOptions {
    /// Whether nothing is translated.
    pub(super) fn interpret_only(&self) -> bool {
        self.interpret_only || self.portable
    }

    /// How often code is entered before a long trace is made of it; `None`: traces are short, or
    /// there are none.
    pub(super) fn long_traces(&self) -> Option<u16> {
        self.traces.and(self.long_traces)
    }

    /// Whether samples say which blocks count their entries.
    pub(super) fn samples(&self) -> bool {
        self.samples && !self.counted && !self.interpret_only() && self.long_traces().is_some()
    }
}

/// The engine could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// No executable memory.
    #[error("cannot map {bytes} bytes for translated code: {source}")]
    CodeMemory {
        /// The size asked for.
        bytes: usize,
        /// The host's reason.
        source: std::io::Error,
    },
    /// Too many processors in this process.
    #[error("too many virtual processors in one process")]
    TooMany,
}

/// Why [`Vcpu::run`] returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Somebody asked for control.
    Requested,
    /// HLT: nothing to do until an interrupt.
    Halted,
    /// The instruction budget is used up (counted mode).
    Budget,
    /// A triple fault: the processor stopped.
    Shutdown,
}
