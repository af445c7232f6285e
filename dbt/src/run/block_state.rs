//! The memory that emitted code reaches through the host's GS: the guest's registers, its
//! TLBs, and what the run loop and emitted code tell each other.

use std::alloc::{Layout, handle_alloc_error};
use std::mem::offset_of;
use std::ptr::NonNull;

use mmu::{Reach, Reaches, SITES, TlbEntry, TlbSet, View};

use super::return_stack::ReturnStack;
use super::x87_candidate::X87Candidate;
use crate::guest::{Bounds, CpuState};
use crate::record::grouping::GROUPS;

/// Entries of a jump cache.
pub const JUMP_ENTRIES: usize = 1 << JUMP_BITS;
/// Bits of an index into a jump cache.
const JUMP_BITS: u32 = 17;
/// How far a target's RIP is shifted to take its upper bits into the index.
pub const JUMP_SHIFT: u32 = 15;
// Emitted code shifts 32 bits round, which is the same as long as no lower bit comes back.
const _: () = assert!(JUMP_BITS + JUMP_SHIFT <= u32::BITS);
/// Modes that have a jump cache of their own at one time.
pub const JUMP_CACHES: usize = 8;
/// Entries of a page guard table.
pub const GUARD_ENTRIES: usize = 65_536;

/// Counters of entries to blocks.
pub const HEAT_COUNTERS: usize = 1 << 16;

/// Where an indirect jump continues in host code.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct JumpEntry {
    /// Guest RIP, with what names its code segment.
    pub word: u64,
    /// Host address of the block's indirect entry.
    pub host: u64,
}

impl JumpEntry {
    /// Where a target stands in a jump cache. Functions tend to begin at like places of their
    /// pages: the page's number takes part.
    pub fn slot(word: u64) -> usize {
        (word ^ word >> JUMP_SHIFT) as usize % JUMP_ENTRIES
    }

    /// An empty entry: its address would stand in another slot, so it never matches. (A guest
    /// may jump to any address at all, one that is not canonical included.) All but that of slot 0 are zero, as fresh
    /// memory is.
    pub fn empty_at(slot: usize) -> JumpEntry {
        JumpEntry {
            word: u64::from(slot == 0),
            host: 0,
        }
    }

    /// Empties a whole cache.
    pub fn empty(cache: &mut [JumpEntry]) {
        for (slot, entry) in cache.iter_mut().enumerate() {
            *entry = JumpEntry::empty_at(slot);
        }
    }
}

/// What emitted code and the run loop tell each other.
#[repr(C)]
pub struct Exchange {
    /// The host stack pointer of the run loop.
    pub host_rsp: u64,
    /// The stack pointer of emitted code, while it does not run.
    pub return_stack: u64,
    /// The same when nothing is on its stack.
    pub return_top: u64,
    /// Where restored code continues.
    pub jump_target: u64,
    /// Guest flags as `lahf; seto al` leaves them in AX, while they are not in EFLAGS; or the
    /// word of a recipe for them.
    pub saved_flags: u64,
    /// An operand of a recipe that would be lost otherwise.
    pub stash: u64,
    /// Another, of a recipe that needs no register.
    pub second: u64,
    /// The constant of a recipe whose word has no room for it.
    pub constant: i32,
    /// Host EFLAGS on leaving emitted code.
    pub host_flags: u64,
    /// Result of a memory slow path: the host address of the access.
    pub result_host: u64,
    /// Result of a memory slow path: the addend of the TLB entry.
    pub result_addend: u64,
    /// Guest instructions left until the run loop wants control (counted mode).
    pub budget: i64,
    /// A scratch word for emitted code.
    pub scratch: u64,
    /// Where a jump to code that is not known goes.
    pub arriving: u64,
    /// Host address of the code that looks for it.
    pub arrival: u64,
    /// Addends of the running block's groups of accesses.
    pub groups: [u64; GROUPS],
    /// MXCSR of the host.
    pub host_mxcsr: u32,
    /// 1 while the guest's vector registers and MXCSR are in the host's; 0 while they are in
    /// `cpu.vector` only.
    pub vectors_live: u8,
    /// 1 while the machine has an interrupt for the processor, which IF may hold back.
    pub interrupt_waiting: u8,
    /// 1 asks the trampoline to load them on the way into emitted code.
    pub vectors_wanted: u8,
    /// Counts down the accesses whose TLB entry is in its second place.
    pub second_hits: u8,
    /// The vector of a host signal that emitted code raised.
    pub signal: u32,
    /// Host address of the instruction that raised it.
    pub signal_address: u64,
    /// The processor that owns this block, for upcalls.
    pub vcpu: u64,
    /// Where `bounce` is.
    pub bounce_address: u64,
    /// What the shared code for accesses that cross a page puts away.
    pub crossing: [u64; 5],
    /// 512 bytes for instructions executed on a copy of their memory operand.
    pub bounce: Bounce,
    /// The five words that IRETQ pops.
    pub frame: [u64; 5],
    /// How far each segment reaches, in modes that have to compare with it.
    pub bounds: [Bounds; 6],
    /// Who has raised an unmasked x87 exception, if one is pending.
    pub x87_candidate: X87Candidate,
}

/// A buffer for the memory operand of one instruction, with FXSAVE's alignment.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Bounce(pub [u8; 512]);

/// Everything behind GS.
#[repr(C, align(4096))]
pub struct CpuBlock {
    /// The TLBs: those of user mode first, where displacements from GS are short.
    pub tlb: TlbSet,
    /// The guest's registers.
    pub cpu: CpuState,
    /// The exchange.
    pub exchange: Exchange,
    /// By [`View`]: the mapping identifier last confirmed for each page slot.
    pub guards: [[u32; GUARD_ENTRIES]; 3],
    /// Indirect jump targets, by mode.
    pub jumps: [[JumpEntry; JUMP_ENTRIES]; JUMP_CACHES],
    /// How often blocks may be entered before they are looked at.
    pub heat: [u16; HEAT_COUNTERS],
    /// How many times more each predicting check may be wrong before it calls up.
    pub patience: [u8; SITES],
}

/// Offsets from GS.
pub(crate) mod at {
    use super::*;

    pub const GPR: i32 = offset_of!(CpuBlock, cpu.gpr) as i32;
    pub const INTERRUPT_FLAG: i32 = offset_of!(CpuBlock, cpu.interrupt_flag) as i32;
    pub const DIRECTION_FLAG: i32 = offset_of!(CpuBlock, cpu.direction_flag) as i32;
    /// 64 bits: the limit of emitted code's stack below, an exit request above. The stack pointer
    /// is less if either wants emitted code to leave.
    pub const POLL: i32 = offset_of!(CpuBlock, cpu.return_limit) as i32;
    const _: () = assert!(offset_of!(CpuBlock, cpu.exit_request) as i32 == POLL + 4);
    pub const RIP: i32 = offset_of!(CpuBlock, cpu.rip) as i32;
    pub const RETURN_STACK: i32 = offset_of!(CpuBlock, exchange.return_stack) as i32;
    pub const RETURN_TOP: i32 = offset_of!(CpuBlock, exchange.return_top) as i32;
    pub const SEGMENTS: i32 = offset_of!(CpuBlock, cpu.segments) as i32;
    pub const YMM: i32 = offset_of!(CpuBlock, cpu.vector.ymm) as i32;
    pub const X87_INSTRUCTION: i32 = offset_of!(CpuBlock, cpu.vector.pointers.instruction) as i32;
    pub const X87_OPERAND: i32 = offset_of!(CpuBlock, cpu.vector.pointers.operand) as i32;
    pub const X87_OPCODE: i32 = offset_of!(CpuBlock, cpu.vector.pointers.opcode) as i32;
    pub const MXCSR: i32 = offset_of!(CpuBlock, cpu.vector.mxcsr) as i32;
    pub const HOST_RSP: i32 = offset_of!(CpuBlock, exchange.host_rsp) as i32;
    pub const JUMP_TARGET: i32 = offset_of!(CpuBlock, exchange.jump_target) as i32;
    pub const SAVED_FLAGS: i32 = offset_of!(CpuBlock, exchange.saved_flags) as i32;
    pub const STASH: i32 = offset_of!(CpuBlock, exchange.stash) as i32;
    pub const SECOND: i32 = offset_of!(CpuBlock, exchange.second) as i32;
    pub const CONSTANT: i32 = offset_of!(CpuBlock, exchange.constant) as i32;
    pub const HOST_FLAGS: i32 = offset_of!(CpuBlock, exchange.host_flags) as i32;
    pub const RESULT_HOST: i32 = offset_of!(CpuBlock, exchange.result_host) as i32;
    pub const BUDGET: i32 = offset_of!(CpuBlock, exchange.budget) as i32;
    pub const SCRATCH: i32 = offset_of!(CpuBlock, exchange.scratch) as i32;
    pub const ARRIVING: i32 = offset_of!(CpuBlock, exchange.arriving) as i32;
    pub const ARRIVAL: i32 = offset_of!(CpuBlock, exchange.arrival) as i32;
    pub const HOST_MXCSR: i32 = offset_of!(CpuBlock, exchange.host_mxcsr) as i32;
    pub const VECTORS_LIVE: i32 = offset_of!(CpuBlock, exchange.vectors_live) as i32;
    pub const INTERRUPT_WAITING: i32 = offset_of!(CpuBlock, exchange.interrupt_waiting) as i32;
    pub const VECTORS_WANTED: i32 = offset_of!(CpuBlock, exchange.vectors_wanted) as i32;
    pub const SYSTEM_FLAGS: i32 = offset_of!(CpuBlock, cpu.system_flags) as i32;
    pub const KERNEL_GS_BASE: i32 = offset_of!(CpuBlock, cpu.msrs.kernel_gs_base) as i32;
    pub const MODE: i32 = offset_of!(CpuBlock, cpu.mode) as i32;
    pub const EFER: i32 = offset_of!(CpuBlock, cpu.control.efer) as i32;
    pub const CR0: i32 = offset_of!(CpuBlock, cpu.control.cr0) as i32;
    pub const CR2: i32 = offset_of!(CpuBlock, cpu.control.cr2) as i32;
    pub const CR3: i32 = offset_of!(CpuBlock, cpu.control.cr3) as i32;
    pub const CR4: i32 = offset_of!(CpuBlock, cpu.control.cr4) as i32;
    pub const GDTR_BASE: i32 = offset_of!(CpuBlock, cpu.control.gdtr.base) as i32;
    pub const GDTR_LIMIT: i32 = offset_of!(CpuBlock, cpu.control.gdtr.limit) as i32;
    pub const IDTR_BASE: i32 = offset_of!(CpuBlock, cpu.control.idtr.base) as i32;
    pub const IDTR_LIMIT: i32 = offset_of!(CpuBlock, cpu.control.idtr.limit) as i32;
    pub const TR_BASE: i32 = offset_of!(CpuBlock, cpu.control.tr.base) as i32;
    pub const TR_LIMIT: i32 = offset_of!(CpuBlock, cpu.control.tr.limit) as i32;
    pub const MODEL: i32 = offset_of!(CpuBlock, cpu.model) as i32;
    pub const XCR0: i32 = offset_of!(CpuBlock, cpu.control.xcr0) as i32;
    pub const PKRU: i32 = offset_of!(CpuBlock, cpu.control.pkru) as i32;
    pub const NMI_MASKED: i32 = offset_of!(CpuBlock, cpu.nmi_masked) as i32;
    pub const STAR: i32 = offset_of!(CpuBlock, cpu.msrs.star) as i32;
    pub const LSTAR: i32 = offset_of!(CpuBlock, cpu.msrs.lstar) as i32;
    pub const FMASK: i32 = offset_of!(CpuBlock, cpu.msrs.fmask) as i32;
    pub const TSC_AUX: i32 = offset_of!(CpuBlock, cpu.msrs.tsc_aux) as i32;
    pub const TSC_OFFSET: i32 = offset_of!(CpuBlock, cpu.msrs.tsc_offset) as i32;
    pub const TIME_HOST: i32 = offset_of!(CpuBlock, cpu.time_line.host) as i32;
    pub const TIME_MACHINE: i32 = offset_of!(CpuBlock, cpu.time_line.machine) as i32;
    pub const TIME_RATE: i32 = offset_of!(CpuBlock, cpu.time_line.rate) as i32;
    pub const TIME_SPAN: i32 = offset_of!(CpuBlock, cpu.time_line.span) as i32;
    pub const BOUNCE: i32 = offset_of!(CpuBlock, exchange.bounce) as i32;
    pub const BOUNCE_ADDRESS: i32 = offset_of!(CpuBlock, exchange.bounce_address) as i32;
    pub const X87_CANDIDATE: i32 = offset_of!(CpuBlock, exchange.x87_candidate.word) as i32;
    pub const X87_CANDIDATE_OPERAND: i32 =
        offset_of!(CpuBlock, exchange.x87_candidate.operand) as i32;
    pub const FRAME: i32 = offset_of!(CpuBlock, exchange.frame) as i32;
    pub const SECOND_HITS: i32 = offset_of!(CpuBlock, exchange.second_hits) as i32;
    pub const CROSSING: i32 = offset_of!(CpuBlock, exchange.crossing) as i32;
    pub const VCPU: i32 = offset_of!(CpuBlock, exchange.vcpu) as i32;

    /// The slot of a group of accesses.
    pub fn group(index: usize) -> i32 {
        offset_of!(CpuBlock, exchange.groups) as i32 + 8 * index as i32
    }

    /// A general-purpose register's slot.
    pub fn gpr(index: usize) -> i32 {
        GPR + 8 * index as i32
    }

    /// A segment's base.
    pub fn segment_base(index: usize) -> i32 {
        let size = size_of::<crate::guest::Segment>();
        SEGMENTS + (index * size + offset_of!(crate::guest::Segment, base)) as i32
    }

    /// The last offset of a segment that may be read.
    pub fn read_bound(index: usize) -> i32 {
        let bounds = offset_of!(CpuBlock, exchange.bounds);
        (bounds + index * size_of::<Bounds>() + offset_of!(Bounds, read)) as i32
    }

    /// Likewise, written.
    pub fn write_bound(index: usize) -> i32 {
        read_bound(index) + (offset_of!(Bounds, write) - offset_of!(Bounds, read)) as i32
    }

    /// A segment's selector.
    pub fn selector(index: usize) -> i32 {
        let size = size_of::<crate::guest::Segment>();
        SEGMENTS + (index * size + offset_of!(crate::guest::Segment, selector)) as i32
    }

    /// The upper half of a segment: limit, selector and attributes.
    pub fn segment_limit(index: usize) -> i32 {
        segment_base(index) + offset_of!(crate::guest::Segment, limit) as i32
            - offset_of!(crate::guest::Segment, base) as i32
    }

    /// The first TLB entry of a view.
    pub fn tlb(view: View) -> i32 {
        let tlb = offset_of!(TlbSet, data) + view as usize * size_of::<mmu::Tlb>();
        (offset_of!(CpuBlock, tlb) + tlb + offset_of!(mmu::Tlb, entries)) as i32
    }

    pub const HEAT: i32 = offset_of!(CpuBlock, heat) as i32;
    pub const PATIENCE: i32 = offset_of!(CpuBlock, patience) as i32;
    pub const READ_TAG: i32 = offset_of!(TlbEntry, read_tag) as i32;
    pub const WRITE_TAG: i32 = offset_of!(TlbEntry, write_tag) as i32;
    pub const ADDEND: i32 = offset_of!(TlbEntry, addend) as i32;

    /// What a predicting check remembers.
    fn reach(number: u16) -> i32 {
        let sites = offset_of!(CpuBlock, tlb.reaches) + offset_of!(Reaches, sites);
        (sites + usize::from(number) * size_of::<Reach>()) as i32
    }

    /// Where it begins.
    pub fn reach_base(number: u16) -> i32 {
        reach(number) + offset_of!(Reach, base) as i32
    }

    /// How far it goes.
    pub fn reach_len(number: u16) -> i32 {
        reach(number) + offset_of!(Reach, len) as i32
    }

    /// What leads to it on the host.
    pub fn reach_addend(number: u16) -> i32 {
        reach(number) + offset_of!(Reach, addend) as i32
    }

    /// The guard word of a linear page.
    pub fn guard(view: View, page: u64) -> i32 {
        let table = view as usize * GUARD_ENTRIES + (page as usize % GUARD_ENTRIES);
        (offset_of!(CpuBlock, guards) + table * 4) as i32
    }

    /// The first entry of a jump cache.
    pub fn jumps(cache: usize) -> i32 {
        (offset_of!(CpuBlock, jumps) + cache * JUMP_ENTRIES * size_of::<JumpEntry>()) as i32
    }
}

/// Owns a [`CpuBlock`], which is too large for a stack.
pub struct OwnedBlock {
    block: NonNull<CpuBlock>,
    returns: ReturnStack,
    /// The memory it is in.
    _map: memmap2::MmapRaw,
}

/// What a large page of the host measures: TLBs and jump caches are looked up all over, and
/// would fill the host's own TLB.
const LARGE_PAGE: usize = 2 << 20;

impl Default for OwnedBlock {
    fn default() -> Self {
        OwnedBlock::new()
    }
}

impl OwnedBlock {
    /// A processor at reset with empty TLBs. Its jump caches are zero: who uses one empties its slot 0.
    ///
    /// # Panics
    ///
    /// If the host has no memory left, as any allocation does.
    pub fn new() -> OwnedBlock {
        let mut block = OwnedBlock::mapped(true);
        block.get_mut().tlb.reset();
        block
    }

    /// A processor at reset for code that looks nothing up: of TLBs and jump caches there is only the address
    /// space.
    ///
    /// # Panics
    ///
    /// If the host has no memory left, as any allocation does.
    pub fn without_tables() -> OwnedBlock {
        OwnedBlock::mapped(false)
    }

    /// `large`: on large pages of the host, which have to be asked for before the first byte is written.
    fn mapped(large: bool) -> OwnedBlock {
        let len = size_of::<CpuBlock>().next_multiple_of(LARGE_PAGE) + LARGE_PAGE;
        let map = memmap2::MmapOptions::new()
            .len(len)
            .map_anon()
            .unwrap_or_else(|_| handle_alloc_error(Layout::new::<CpuBlock>()));
        #[cfg(target_os = "linux")]
        if large {
            // Refusing them costs speed only.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        let map = memmap2::MmapRaw::from(map);
        let offset = map.as_mut_ptr().align_offset(LARGE_PAGE);
        // SAFETY: the mapping is a large page longer than the block rounded up, so the aligned
        // block is within it.
        let pointer = unsafe { map.as_mut_ptr().add(offset) }.cast::<CpuBlock>();
        let block = NonNull::new(pointer).expect("a mapping is not at address 0");
        // SAFETY: the mapping is zero, which is valid for every field but `cpu`, which is
        // written here before anything refers to it.
        unsafe { std::ptr::addr_of_mut!((*pointer).cpu).write(CpuState::at_reset()) };
        let mut block = OwnedBlock {
            block,
            returns: ReturnStack::new(),
            _map: map,
        };
        block.forget_returns();
        let content = block.get_mut();
        content.exchange.bounce_address = content.exchange.bounce.0.as_ptr() as u64;
        block
    }

    /// The block.
    pub fn get(&self) -> &CpuBlock {
        // SAFETY: made in `new`, and mapped as long as `self` is.
        unsafe { self.block.as_ref() }
    }

    /// The block, to change.
    pub fn get_mut(&mut self) -> &mut CpuBlock {
        // SAFETY: as in `get`, and the borrow is exclusive.
        unsafe { self.block.as_mut() }
    }

    /// Where emitted code goes by a return for which it has predicted nothing, if the return is to
    /// address 0.
    pub(crate) fn set_unpredicted(&mut self, host: u64) {
        self.returns.set_bottom(host);
    }

    /// Forgets what returns are predicted.
    pub(crate) fn forget_returns(&mut self) {
        let top = self.returns.top();
        let exchange = &mut self.get_mut().exchange;
        (exchange.return_stack, exchange.return_top) = (top, top);
    }

    /// Before emitted code is entered: lets it poll for the end of its stack, which is emptied if it
    /// is full.
    pub(crate) fn prepare_returns(&mut self) {
        let limit = self.returns.limit();
        self.get_mut().cpu.return_limit = limit;
        if self.get().exchange.return_stack < u64::from(limit) {
            self.forget_returns();
        }
    }

    /// Its address: what GS holds while emitted code runs.
    pub fn as_ptr(&self) -> *mut CpuBlock {
        self.block.as_ptr()
    }
}

impl Drop for OwnedBlock {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`; nothing else in the block needs dropping.
        unsafe { std::ptr::drop_in_place(&mut self.block.as_mut().cpu) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_entry_matches_no_address_of_its_slot() {
        for slot in 0..JUMP_ENTRIES {
            let word = JumpEntry::empty_at(slot).word;
            assert_ne!(JumpEntry::slot(word), slot, "{slot:#x}");
        }
    }
}
