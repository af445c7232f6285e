//! Where the guest registers of a block are: each in its own place, or, in a hot loop, some that
//! the loop needs often in the places of others that it needs less.
//!
//! Four of the sixteen places are in memory. A loop-carried value there makes each round wait
//! until a load has got it from the store before. So the registers of a loop may change places
//! in pairs, one of them in memory: when it is entered, and back whenever it is left. Everything
//! outside, Rust included, finds each register in its own place.

use iced_x86::{FlowControl, Instruction, OpAccess, OpKind, Register};
use serde::{Deserialize, Serialize};

use super::registers::{is_high_byte, number, pinned, sized};
use crate::guest::{CpuState, Register as Guest};
use crate::record::classify::{Class, Kind};
use crate::record::grouping::{GROUPS, Groups};
use crate::run::at;

/// Guest registers whose own places are in memory.
const IN_MEMORY: std::ops::Range<usize> = 8..12;

/// Registers that instructions imply in forms that do not look different from others: AL to RAX,
/// CL and DX as explicit operands.
const OFTEN_IMPLIED: u16 = 1 << Guest::RAX | 1 << Guest::RCX | 1 << Guest::RDX;

/// What the moves of a pair count for where each is made as often as the code that it serves.
const MOVES: i32 = 6;

/// Code that does not close on itself is worth a look from so many instructions on.
const LONG: usize = 24;

/// If it is a trace, from so many on.
const LIKELY: usize = 8;

/// Which code may have registers change places, and for what.
#[derive(Clone, Copy, Debug)]
pub struct Allotting {
    /// What a pair has to save in a round, counted as [`uses`] does, to change places, which takes
    /// three moves for each at the entry and at the way out.
    pub least: u8,
    /// Whether the code is known to be hot: a loop, for which these moves do not count, or a trace, which is likely
    /// to be executed to its end.
    pub hot: bool,
}

/// Places from here on are the slots of groups of accesses.
const SLOTS: usize = 16;

/// The place of each guest register, named by the register whose own it is, or by the group whose slot it is: then
/// what leads to the accesses of the group is in the guest register's own place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Places([u8; 16]);

impl Default for Places {
    fn default() -> Self {
        Places(std::array::from_fn(|guest| guest as u8))
    }
}

impl Places {
    /// The place of a guest register.
    pub fn of(&self, guest: usize) -> usize {
        usize::from(self.0[guest])
    }

    /// The host register that holds a guest register; `None`: it is in memory.
    pub fn pinned(&self, guest: usize) -> Option<u8> {
        let place = self.of(guest);
        if place < SLOTS { pinned(place) } else { None }
    }

    /// Where a guest register is in memory, if it is: an offset from GS.
    pub fn slot(&self, guest: usize) -> i32 {
        let place = self.of(guest);
        match place.checked_sub(SLOTS) {
            Some(group) => at::group(group),
            None => at::gpr(place),
        }
    }

    /// The host registers that hold what leads to the accesses of each group; `None`: that is in its slot.
    pub fn of_groups(&self) -> [Option<u8>; GROUPS] {
        let mut registers = [None; GROUPS];
        for (group, guest) in self.with_groups() {
            registers[group] = pinned(guest);
        }
        registers
    }

    /// Groups that have a register, with the guest register whose own place that is.
    fn with_groups(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let places = self.0;
        (0..16)
            .filter_map(move |guest| Some((usize::from(places[guest]).checked_sub(SLOTS)?, guest)))
    }

    /// The registers that have given way to groups: where each is, as an offset from GS, and the host register that is
    /// its own place.
    pub fn given_way(&self) -> impl Iterator<Item = (i32, u8)> + use<> {
        self.with_groups()
            .filter_map(|(group, guest)| Some((at::group(group), pinned(guest)?)))
    }

    /// The host register for a guest register of any size, or `None` if it is in memory.
    pub fn host(&self, register: Register) -> Option<Register> {
        if is_high_byte(register) {
            return Some(register);
        }
        let host = self.pinned(number(register))?;
        Some(sized(host, register.size()))
    }

    /// The pairs that have changed places: first the one whose own place is in memory.
    pub fn swaps(&self) -> impl Iterator<Item = (usize, u8)> + use<> {
        let places = self.0;
        IN_MEMORY.filter_map(move |guest| Some((guest, pinned(usize::from(places[guest]))?)))
    }

    /// Whether each register is in its own place.
    pub fn are_usual(&self) -> bool {
        *self == Places::default()
    }

    /// Exchanges the pairs among registers that have been put away: from the block's places to
    /// their own, or back.
    pub fn exchange(&self, cpu: &mut CpuState, slots: &mut [u64; GROUPS]) {
        if self.are_usual() {
            return;
        }
        for guest in IN_MEMORY {
            cpu.gpr.swap(guest, self.of(guest));
        }
        for (group, guest) in self.with_groups() {
            std::mem::swap(&mut cpu.gpr[guest], &mut slots[group]);
        }
    }

    /// Chooses the places for a run of instructions: what it needs often is not to be in memory. `groups`: those of
    /// its accesses that may have a register.
    pub fn choose(
        insns: &[Instruction],
        classes: &[Class],
        groups: Option<&Groups>,
        allotting: Allotting,
    ) -> Places {
        let mut places = Places::default();
        let mut least = i32::from(allotting.least);
        let long = insns.len() >= if allotting.hot { LIKELY } else { LONG };
        if !allotting.hot && !long {
            return places;
        }
        let closes = closes(insns);
        if !(if closes { allotting.hot } else { long }) {
            return places;
        }
        if !closes {
            least += MOVES;
        }
        let mut needs = [0; 16];
        // What is behind a branch may not be executed.
        let mut certain = None;
        let mut stays: u16 = 1 << Guest::RSP;
        let mut high = 0;
        for (insn, class) in insns.iter().zip(classes) {
            match class.kind {
                // The interpreter finds every register in its own place.
                Kind::Helper | Kind::Nop | Kind::Jump => {}
                Kind::Branch => {
                    if !allotting.hot && certain.is_none() {
                        certain = Some(needs);
                    }
                }
                Kind::Plain(_)
                | Kind::Lea
                | Kind::Push
                | Kind::Pop
                | Kind::PopMemory
                | Kind::Enter
                | Kind::Leave
                | Kind::CallInto
                | Kind::ReturnInto
                | Kind::JumpInto
                | Kind::CallIndirectInto
                | Kind::Fill
                | Kind::Copy
                | Kind::Scan
                | Kind::Masked(_)
                | Kind::MaskedBytes
                | Kind::Gather
                | Kind::Translate
                | Kind::Element(_)
                | Kind::ElementPair(_)
                | Kind::BitString
                | Kind::LoadControl
                | Kind::LoadVectorControl
                | Kind::FlushLine
                | Kind::Prefetch
                | Kind::ComparePair => {
                    high |= high_bytes(insn);
                    stays |= class.implied | high;
                    uses(insn, class, &mut needs);
                }
                // Others name the registers they work on.
                _ => return places,
            }
        }
        let needed = |guest: &usize| needs[*guest] != 0;
        let named = (0..16).filter(needed);
        stays |= named.fold(0, |mask, guest| mask | 1 << guest) & OFTEN_IMPLIED;
        let needs = certain.unwrap_or(needs);
        let mut wanting: Vec<usize> = IN_MEMORY.filter(|&guest| stays >> guest & 1 == 0).collect();
        wanting.sort_by_key(|&guest| std::cmp::Reverse(needs[guest]));
        let mut giving: Vec<usize> = (0..16)
            .filter(|&guest| pinned(guest).is_some() && stays >> guest & 1 == 0)
            .collect();
        giving.sort_by_key(|&guest| needs[guest]);
        let mut given = 0;
        for (memory, &register) in wanting.into_iter().zip(&giving) {
            if needs[memory] - needs[register] < least {
                break;
            }
            places.0.swap(memory, register);
            given += 1;
        }
        // With AH and its like no operand may be addressed by a register that a REX prefix names.
        if let Some(groups) = groups.filter(|_| closes && high == 0) {
            let idle = giving[given..].iter().filter(|&&guest| needs[guest] == 0);
            for (group, &guest) in by_fetches(groups).zip(idle) {
                places.0[guest] = (SLOTS + group) as u8;
            }
        }
        places
    }
}

/// The groups whose slot is read at all, those first that read it most often.
fn by_fetches(groups: &Groups) -> impl Iterator<Item = usize> + use<> {
    let mut found: Vec<usize> = (0..groups.count())
        .filter(|&group| groups.fetches(group) > 0)
        .collect();
    found.sort_by_key(|&group| std::cmp::Reverse(groups.fetches(group)));
    found.into_iter()
}

/// Whether the last instruction of a run may lead back to its first one.
pub fn closes(insns: &[Instruction]) -> bool {
    let (Some(first), Some(last)) = (insns.first(), insns.last()) else {
        return false;
    };
    let head = first.ip();
    match last.flow_control() {
        FlowControl::UnconditionalBranch => last.near_branch_target() == head,
        // LOOP and its like have a way back of their own.
        FlowControl::ConditionalBranch => {
            last.is_jcc_short_or_near()
                && (last.near_branch_target() == head || last.next_ip() == head)
        }
        _ => last.next_ip() == head,
    }
}

/// The registers of which an instruction names the second byte, a bit each.
fn high_bytes(insn: &Instruction) -> u16 {
    (0..insn.op_count())
        .filter(|&op| insn.op_kind(op) == OpKind::Register && is_high_byte(insn.op_register(op)))
        .fold(0, |mask, op| mask | 1 << number(insn.op_register(op)))
}

/// Adds up how many loads and stores more an instruction would be if a register were in memory;
/// one more for addresses, which have to be computed then, and for values that it changes, which
/// the next one may wait for.
fn uses(insn: &Instruction, class: &Class, needs: &mut [i32; 16]) {
    for op in 0..insn.op_count() {
        match insn.op_kind(op) {
            OpKind::Register if insn.op_register(op).is_gpr() => {
                needs[number(insn.op_register(op))] += match class.access[op as usize] {
                    OpAccess::Read | OpAccess::CondRead => 1,
                    OpAccess::Write => 2,
                    _ => 3,
                };
            }
            OpKind::Memory => {
                for register in [insn.memory_base(), insn.memory_index()] {
                    if register.is_gpr() {
                        needs[number(register)] += 2;
                    }
                }
            }
            _ => {}
        }
    }
}
