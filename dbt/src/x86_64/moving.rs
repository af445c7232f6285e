//! The same code at another address: a program that is mapped elsewhere, or a library in another
//! address space, is the same bytes on the same physical page. Its translation is then copied, and what
//! follows RIP or the block's place in the cache is adjusted, which takes a tenth of translating.
//!
//! Whatever is emitted from a guest address, or depends on where the block is, is marked where
//! it is emitted ([`Follows`]). Which form that takes must not depend on the address: so only
//! addresses of user programs far above 4 GiB are moved from and to, where each constant takes eight
//! bytes; and no access of a block may be to an absolute address, whose page another may happen to share.
//! Traces are moved as other blocks are, and share the predictions of their checks.

use iced_x86::{FlowControl, Instruction, OpKind, Register};
use mmu::{PAGE_SIZE, TLB_ENTRIES, View};

use crate::cache::{CodeOffset, Key};
use crate::guest::Mode;
use crate::run::{Upcall, UpcallKind, at};

/// Guest addresses between which blocks are moved.
const MOVABLE: std::ops::Range<u64> = 1 << 33..1 << 47;
/// The first of the last 2 GiB of addresses.
const HIGH: u64 = (1u64 << 31).wrapping_neg();
/// From here on what looks like an address is a small negative number.
const SMALL: u64 = (1u64 << 24).wrapping_neg();
/// Set in a mark in the cold section.
const COLD: u32 = 1 << 31;
/// Where in a mark its kind is.
const KIND: u32 = 24;

/// What in emitted code follows RIP, or the block's place. It ends where it is marked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Follows {
    /// The displacement of the page's guard, then the mapping that it is compared with.
    Guard,
    /// A guest address.
    Address,
    /// One that is four bytes, sign-extended.
    ShortAddress,
    /// The lower 32 bits of one, in eight bytes.
    LowAddress,
    /// The two halves of one, as two instructions store them.
    Halves,
    /// The displacement of something in the TLB entry of a guest address.
    Entry,
    /// Such a displacement, then the page's address, sign-extended.
    EntryPage,
    /// The displacement of a call of shared code.
    Call,
    /// Such a call, and the record behind it.
    Upcall,
    /// The displacement of a jump from one section into the other.
    Section,
    /// A displacement into the jump cache of the block's mode.
    Jumps,
    /// Likewise, into that of the mode in which it ends.
    FarJumps,
    /// The displacement of the counter of its entries.
    Heat,
}

impl Follows {
    /// What an address is that was loaded in as few bytes as it takes.
    pub(super) fn loaded(address: u64) -> Follows {
        match i32::try_from(address as i64) {
            Ok(_) => Follows::ShortAddress,
            Err(_) => Follows::Address,
        }
    }

    const ALL: [Follows; 13] = [
        Follows::Guard,
        Follows::Address,
        Follows::ShortAddress,
        Follows::LowAddress,
        Follows::Halves,
        Follows::Entry,
        Follows::EntryPage,
        Follows::Call,
        Follows::Upcall,
        Follows::Section,
        Follows::Jumps,
        Follows::FarJumps,
        Follows::Heat,
    ];
}

/// A word for a place in a block's code that changes when the block is moved: what ends at an offset of a section.
pub(super) fn mark(follows: Follows, end: u32, cold: bool) -> u32 {
    debug_assert!(end < 1 << KIND, "too long a block");
    end | (follows as u32) << KIND | if cold { COLD } else { 0 }
}

/// What a mark says: what follows, where it ends, and the section.
fn parts(mark: u32) -> (Follows, usize, usize) {
    let follows = Follows::ALL[(mark >> KIND & 0xf) as usize];
    let end = (mark & ((1 << KIND) - 1)) as usize;
    (follows, end, usize::from(mark & COLD != 0))
}

/// Where a block goes, and from where.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    /// RIP there, less that of the original: whole pages.
    pub distance: u64,
    /// RIP there.
    pub rip: u64,
    /// Where the block's accesses find their pages.
    pub view: View,
    /// The identifier of the copy.
    pub id: u32,
    /// What its page guard must hold.
    pub mapping: u32,
    /// Where the original's sections are.
    pub from: [CodeOffset; 2],
    /// Where the copy's are.
    pub to: [CodeOffset; 2],
    /// How far from those of the original its jump caches are, that of its mode and that of the one in which it ends, and
    /// the counter of its entries.
    pub tables: [u32; 3],
}

/// Whether the translation of a block can be moved elsewhere.
pub fn can_leave(key: &Key, insns: &[Instruction]) -> bool {
    can_arrive(key) && !insns.iter().any(|insn| is_tied(key, insn))
}

/// Whether an instruction has to stay where it is.
fn is_tied(key: &Key, insn: &Instruction) -> bool {
    // Another page has a guard of its own.
    if insn.ip() / PAGE_SIZE != key.rip / PAGE_SIZE {
        return true;
    }
    let memory = (0..insn.op_count()).any(|op| insn.op_kind(op) == OpKind::Memory);
    let (base, index) = (insn.memory_base(), insn.memory_index());
    memory
        && (base == Register::EIP || (base == Register::None && index == Register::None))
        && !matches!(insn.memory_segment(), Register::FS | Register::GS)
}

/// Whether a translation can be moved here.
pub fn can_arrive(key: &Key) -> bool {
    key.mode.has(Mode::USER | Mode::CODE64) && MOVABLE.contains(&key.rip)
}

/// Whether a translation of a kernel's code, which is somewhere else each time the kernel starts, can be at another
/// place among the last 2 GiB of addresses (that of System V's "kernel" code model): the first and the last address that
/// it names, which have to be there wherever it is, since that is what takes four bytes.
pub fn high_reach(key: &Key, insns: &[Instruction]) -> Option<(u64, u64)> {
    let kernel = key.mode.has(Mode::CODE64) && !key.mode.has(Mode::USER) && key.rip >= HIGH;
    if !kernel || insns.iter().any(|insn| is_tied(key, insn)) {
        return None;
    }
    let named = |insn: &Instruction| {
        let relative = insn.memory_base() == Register::RIP;
        let near = insn.op0_kind() == OpKind::NearBranch64;
        [
            Some(insn.ip()),
            Some(insn.next_ip()),
            relative.then(|| insn.memory_displacement64()),
            near.then(|| insn.near_branch64()),
        ]
    };
    let all = insns.iter().flat_map(named).flatten();
    let (first, last) = all.fold((u64::MAX, 0), |(first, last), address| {
        (first.min(address), last.max(address))
    });
    (first >= HIGH).then_some((first, last))
}

/// Whether a kernel's code names such an address in its bytes, other than relative to RIP: these differ when it starts
/// at another place.
pub fn is_relocated(key: &Key, insns: &[Instruction]) -> bool {
    let high = |constant: u64| (HIGH..SMALL).contains(&constant);
    let names = |insn: &Instruction| {
        (0..insn.op_count()).any(|op| match insn.op_kind(op) {
            OpKind::Memory if insn.memory_base() != Register::RIP => {
                high(insn.memory_displacement64())
            }
            OpKind::Immediate32 => high(insn.immediate32() as i32 as u64),
            OpKind::Immediate32to64 | OpKind::Immediate64 => high(insn.immediate(op)),
            _ => false,
        })
    };
    key.rip >= HIGH && insns.iter().any(names)
}

/// Whether such addresses are there also so far from where they were.
pub fn stays_high((first, last): (u64, u64), distance: u64) -> bool {
    [first, last]
        .iter()
        .all(|address| address.wrapping_add(distance) >= HIGH)
}

/// Whether a call or a return is in the middle of a run of instructions.
pub fn follows_calls(insns: &[Instruction]) -> bool {
    let calls = |insn: &Instruction| {
        matches!(
            insn.flow_control(),
            FlowControl::Call | FlowControl::IndirectCall | FlowControl::Return
        )
    };
    insns
        .split_last()
        .is_some_and(|(_, others)| others.iter().any(calls))
}

/// The instruction at its new address.
pub fn moved_instruction(insn: &Instruction, distance: u64) -> Instruction {
    let mut moved = *insn;
    moved.set_ip(insn.ip().wrapping_add(distance));
    if insn.op0_kind() == OpKind::NearBranch64 {
        moved.set_near_branch64(insn.near_branch64().wrapping_add(distance));
    }
    if insn.memory_base() == Register::RIP {
        let address = insn.memory_displacement64().wrapping_add(distance);
        moved.set_memory_displacement64(address);
    }
    moved
}

fn read(code: &[u8], end: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&code[end - 4..end]);
    u32::from_le_bytes(bytes)
}

fn write(code: &mut [u8], end: usize, value: u32) {
    code[end - 4..end].copy_from_slice(&value.to_le_bytes());
}

/// Adds to the address whose halves end there.
fn add(code: &mut [u8], [low, high]: [usize; 2], distance: u64) {
    let address = u64::from(read(code, high)) << 32 | u64::from(read(code, low));
    let moved = address.wrapping_add(distance);
    write(code, low, moved as u32);
    write(code, high, (moved >> 32) as u32);
}

impl Move {
    /// How far a section goes.
    fn shift(&self, section: usize) -> u32 {
        self.to[section].0.wrapping_sub(self.from[section].0)
    }

    fn add_short(&self, code: &mut [u8], end: usize) {
        let moved = read(code, end).wrapping_add(self.distance as u32);
        write(code, end, moved);
    }

    fn follow_entry(&self, code: &mut [u8], end: usize) {
        let table = at::tlb(self.view) as u32;
        let offset = read(code, end).wrapping_sub(table);
        let pages = (self.distance / PAGE_SIZE) as u32;
        let entry = (offset / ENTRY).wrapping_add(pages) % TLB_ENTRIES as u32;
        write(
            code,
            end,
            table.wrapping_add(entry * ENTRY + offset % ENTRY),
        );
    }

    /// Adjusts the code of the original to its new place.
    pub fn adjust(&self, code: &mut [Vec<u8>; 2], marks: &[u32]) {
        for &mark in marks {
            let (follows, end, section) = parts(mark);
            let shift = self.shift(section);
            let code = &mut code[section];
            // What follows RIP stays as it is where that does.
            let stays = self.distance == 0;
            match follows {
                Follows::Guard if stays => write(code, end, self.mapping),
                Follows::Address
                | Follows::ShortAddress
                | Follows::LowAddress
                | Follows::Halves
                | Follows::Entry
                | Follows::EntryPage
                    if stays => {}
                Follows::Guard => {
                    write(code, end - 4, at::guard(self.view, self.rip >> 12) as u32);
                    write(code, end, self.mapping);
                }
                Follows::Address => add(code, [end - 4, end], self.distance),
                Follows::LowAddress => {
                    self.add_short(code, end - 4);
                }
                Follows::Halves => add(code, [end - HALVES, end], self.distance),
                Follows::ShortAddress => self.add_short(code, end),
                Follows::Entry => self.follow_entry(code, end),
                Follows::EntryPage => {
                    self.follow_entry(code, end - 4);
                    self.add_short(code, end);
                }
                Follows::Jumps | Follows::FarJumps | Follows::Heat => {
                    let distance = self.tables[follows as usize - Follows::Jumps as usize];
                    let displacement = read(code, end).wrapping_add(distance);
                    write(code, end, displacement);
                }
                Follows::Call => {
                    let displacement = read(code, end).wrapping_sub(shift);
                    write(code, end, displacement);
                }
                Follows::Upcall => {
                    let record = end - size_of::<Upcall>();
                    let displacement = read(code, record).wrapping_sub(shift);
                    write(code, record, displacement);
                    write(code, record + 4, self.id);
                    let kind = code[record + Upcall::KIND];
                    if kind == UpcallKind::Memory as u8 || kind == UpcallKind::Strayed as u8 {
                        // Where it resumes is in the block itself.
                        let resume = read(code, end).wrapping_add(self.shift(0));
                        write(code, end, resume);
                    }
                }
                Follows::Section => {
                    let other = self.shift(1 - section);
                    let displacement = read(code, end).wrapping_add(other).wrapping_sub(shift);
                    write(code, end, displacement);
                }
            }
        }
    }
}

/// Bytes between the ends of two instructions that store the halves of an address.
pub(super) const HALVES: usize = 12;
/// Bytes of a TLB entry.
const ENTRY: u32 = 32;
