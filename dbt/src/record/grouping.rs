//! Which memory accesses of a block are sure to be near each other: they name the same base and
//! index registers, and what has been added to these in between is known. One TLB check then
//! serves them all (check elimination by grouping).

use iced_x86::{Instruction, OpKind, Register};
use mmu::PAGE_SIZE;

use super::classify::{self, Class, Kind, Operand};
use super::values::Values;
use super::{elements, liveness};
use crate::guest::{Mode, Register as Guest};

/// Groups that one block may have: each has a slot for its translation.
pub const GROUPS: usize = 8;

/// Bytes that a group may span. Wide groups fail more often at the ends of pages.
const SPAN: i64 = 512;

/// Bytes that a group may span whose check remembers a run of pages: they are as many as a TLB entry covers, since one
/// that is wrong looks there.
const WIDE_SPAN: i64 = PAGE_SIZE as i64;

/// Which of an instruction's accesses is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Its memory operand.
    Operand = 0,
    /// The stack slot that it pushes or pops, or LEAVE's; of MOVS and CMPS the element at RDI.
    Stack = 1,
}

/// Accesses that one check serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Group {
    /// First byte that any of them touches, in the group's own coordinate.
    pub low: i64,
    /// One past the last byte.
    pub high: i64,
    /// Whether any of them stores.
    pub write: bool,
    /// The last instruction with one of them.
    pub last: usize,
}

/// How the address of a group is made that is the same in each round of a loop, from registers as they are before
/// the round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Steady {
    /// The coordinate counts from the beginning of this page.
    Page {
        /// Its number.
        page: u64,
        /// The address follows RIP.
        relative: bool,
    },
    /// The coordinate counts from their sum.
    Registers {
        /// Number of the base register.
        base: Option<usize>,
        /// Number of the index register, and its scale.
        index: Option<(usize, u32)>,
        /// FS, GS or none.
        segment: Register,
        /// The sum wraps at 32 bits.
        narrow: bool,
    },
}

/// An access that belongs to a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its group.
    pub group: usize,
    /// Its address in the group's coordinate.
    pub displacement: i64,
}

/// The groups of a block.
#[derive(Default)]
pub struct Groups {
    groups: Vec<Group>,
    steady: Vec<Option<Steady>>,
    /// How often other accesses come between those of each group, and one.
    runs: Vec<u32>,
    /// The first instruction with an access of each.
    first: Vec<usize>,
    /// Returns, a bit each, that find what their calls have pushed.
    known_returns: u64,
    /// By instruction and place.
    members: Vec<[Option<Member>; 2]>,
}

impl Groups {
    /// No groups.
    pub fn clear(&mut self) {
        self.groups.clear();
        self.steady.clear();
        self.runs.clear();
        self.first.clear();
        self.known_returns = 0;
        self.members.clear();
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.groups.len()
    }

    /// The bytes of a group that is the same in each round, with how its address is made.
    pub fn steady(&self, group: usize) -> Option<(Group, Steady)> {
        Some((self.groups[group], self.steady[group]?))
    }

    /// How often what leads to a group is to be fetched from where it is kept.
    pub fn fetches(&self, group: usize) -> u32 {
        self.runs[group] - u32::from(self.steady[group].is_none())
    }

    /// Whether all accesses of an instruction belong to groups that have been checked before it, and nothing else of
    /// it can leave the block: then nobody sees what the flags are there.
    pub fn sure(&self, index: usize, insn: &Instruction, class: &Class) -> bool {
        let stack = match class.kind {
            Kind::Plain(operand) if class.faults || class.vectors || operand == Operand::None => {
                return false;
            }
            Kind::Plain(_) => false,
            Kind::Push | Kind::Pop | Kind::Leave | Kind::CallInto => true,
            Kind::ReturnInto if self.knows_return(index) => true,
            _ => return false,
        };
        let operand = (0..insn.op_count()).any(|op| insn.op_kind(op) == OpKind::Memory);
        [(operand, Place::Operand), (stack, Place::Stack)]
            .into_iter()
            .all(|(has, place)| {
                let group = || Some(self.of(index, place)?.0.group);
                let before =
                    |group: usize| self.steady[group].is_some() || self.first[group] < index;
                !has || group().is_some_and(before)
            })
    }

    /// Whether a return that a trace follows finds what its call has pushed: nothing has been stored since but at known
    /// distances from there.
    pub fn knows_return(&self, insn: usize) -> bool {
        self.known_returns >> insn & 1 != 0
    }

    /// The last instruction with an access of a group.
    pub fn last(&self, group: usize) -> usize {
        self.groups[group].last
    }

    /// The group of an access, if it has one.
    pub fn of(&self, insn: usize, place: Place) -> Option<(Member, Group)> {
        let member = (*self.members.get(insn)?)[place as usize]?;
        Some((member, self.groups[member.group]))
    }
}

/// Accesses with equal keys differ by known displacements only.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    /// In this page; whether the address follows RIP.
    Page(u64, bool),
    /// Base and index (versions; the index's scale), segment, address size.
    Registers {
        base: Option<u32>,
        index: Option<(u32, u32)>,
        segment: Register,
        narrow: bool,
    },
}

/// A group that later accesses may join.
struct Open {
    key: Key,
    group: Group,
    /// How many accesses are in it.
    members: usize,
    /// How many of them do not come behind another one of it.
    runs: u32,
    /// The bytes that it may span.
    span: i64,
}

/// An access that is in a group.
struct Joined {
    /// Index of the group in [`Finder::found`].
    open: usize,
    /// Instruction and place.
    access: (usize, usize),
    displacement: i64,
}

/// Where a call that a trace follows has pushed its return address.
struct Pushed {
    /// Index of the group in [`Finder::found`].
    open: usize,
    displacement: i64,
    /// The address.
    next: u64,
}

/// Finds the groups of a block, and keeps its room for the next one.
#[derive(Default)]
pub struct Finder {
    values: Values,
    /// All groups; the latest of a key is the one to join.
    found: Vec<Open>,
    joined: Vec<Joined>,
    /// The groups that there is room for, by their place in `found`.
    chosen: Vec<usize>,
    /// Return addresses that nothing has overwritten.
    pushed: Vec<Pushed>,
    /// The one of the access before.
    latest: Option<usize>,
    /// Those before this one are not joined any more.
    first_open: usize,
    /// The registers, a bit each, that hold what they held before the round wherever the next one may begin.
    same: u16,
}

/// The most accesses that an instruction may have in groups.
fn accesses(class: &Class) -> usize {
    match class.kind {
        Kind::Push | Kind::CallIndirect | Kind::CallIndirectInto | Kind::ElementPair(_) => 2,
        kind => usize::from(liveness::checks_access(kind)),
    }
}

impl Finder {
    /// Finds the groups of a block. `rounds`: it is a loop, of which some may be the same in each round. `wide`: says of
    /// the first access of a group whether its check remembers a run of pages.
    pub fn find(
        &mut self,
        (insns, classes): (&[Instruction], &[Class]),
        mode: Mode,
        rounds: bool,
        wide: impl Fn(usize, Place) -> bool,
        groups: &mut Groups,
    ) {
        groups.clear();
        if classes.iter().map(accesses).sum::<usize>() < 2 - usize::from(rounds) {
            return;
        }
        self.values.begin(mode.has(Mode::CODE64));
        self.first_open = 0;
        self.found.clear();
        self.joined.clear();
        self.latest = None;
        self.pushed.clear();
        self.same = u16::MAX;
        let head = insns.first().map_or(0, Instruction::ip);
        for (index, (insn, class)) in insns.iter().zip(classes).enumerate() {
            let before = self.joined.len();
            self.accesses(index, insn, class, &wide);
            if class.kind == Kind::ReturnInto {
                let next = insns.get(index + 1).map(Instruction::ip);
                groups.known_returns |= u64::from(self.finds_pushed(before, next)) << index;
            } else {
                self.follow_pushed(insn, class, before);
            }
            if self.values.follow(insn, class) {
                self.first_open = self.found.len();
            }
            // The round may end here, if it does not at its end.
            if rounds && (insn.near_branch_target() == head || insn.next_ip() == head) {
                self.same &= self.values.unchanged();
            }
        }
        if rounds {
            self.same &= self.values.unchanged();
        }
        // The largest first, where there are more than fit; the rest by position: a block must
        // always be translated to the same code.
        let mut chosen = std::mem::take(&mut self.chosen);
        let found = &self.found;
        let steady = |open: &Open| if rounds { self.steady(open) } else { None };
        let saved = |open: &Open| open.members - usize::from(steady(open).is_none());
        chosen.clear();
        chosen.extend((0..found.len()).filter(|&open| saved(&found[open]) > 0));
        chosen.sort_unstable_by_key(|&open| (std::cmp::Reverse(saved(&found[open])), open));
        chosen.truncate(GROUPS);
        let of_chosen = chosen.iter().map(|&open| &found[open]);
        for open in of_chosen {
            groups.groups.push(open.group);
            groups.steady.push(steady(open));
            groups.runs.push(open.runs);
            groups.first.push(insns.len());
        }
        self.chosen = chosen;
        if self.chosen.is_empty() {
            return;
        }
        groups.members.resize(insns.len(), [None; 2]);
        for joined in &self.joined {
            let number = self.chosen.iter().position(|&open| open == joined.open);
            let (insn, place) = joined.access;
            groups.members[insn][place] = number.map(|group| {
                groups.first[group] = groups.first[group].min(insn);
                Member {
                    group,
                    displacement: joined.displacement,
                }
            });
        }
    }

    /// Follows what becomes of pushed return addresses. `before`: accesses from here on are the instruction's.
    fn follow_pushed(&mut self, insn: &Instruction, class: &Class, before: usize) {
        let word = self.values.word();
        let (place, size) = match class.kind {
            Kind::Plain(Operand::None | Operand::Read)
            | Kind::Lea
            | Kind::Nop
            | Kind::Prefetch
            | Kind::Jump
            | Kind::Branch
            | Kind::Pop
            | Kind::Leave
            | Kind::JumpInto => return,
            Kind::Plain(_) => (Place::Operand, insn.memory_size().size() as i64),
            Kind::Push | Kind::CallInto | Kind::CallIndirectInto => (Place::Stack, word),
            _ => return self.pushed.clear(),
        };
        let mut stores = self.joined[before..].iter();
        let Some(store) = stores.find(|joined| joined.access.1 == place as usize) else {
            return self.pushed.clear();
        };
        let (open, displacement) = (store.open, store.displacement);
        self.pushed.retain(|pushed| {
            let apart = displacement.saturating_sub(pushed.displacement);
            pushed.open == open && (apart >= word || apart <= -size)
        });
        if matches!(class.kind, Kind::CallInto | Kind::CallIndirectInto) {
            let next = insn.next_ip();
            self.pushed.push(Pushed {
                open,
                displacement,
                next,
            });
        }
    }

    /// Whether a return finds an address that has been pushed, and goes on there.
    fn finds_pushed(&self, before: usize, next: Option<u64>) -> bool {
        self.joined[before..].iter().any(|joined| {
            self.pushed.iter().any(|pushed| {
                pushed.open == joined.open
                    && pushed.displacement == joined.displacement
                    && next == Some(pushed.next)
            })
        })
    }

    /// How the address of a group is made before each round, if it is then the same one: the registers that it
    /// names hold what they held before this one.
    fn steady(&self, open: &Open) -> Option<Steady> {
        let same = |version: u32| {
            let register = version as usize - 1;
            (register < 16 && self.same >> register & 1 != 0).then_some(register)
        };
        i32::try_from(open.group.low).ok()?;
        if open.group.high - open.group.low > SPAN && !matches!(open.key, Key::Page(..)) {
            return None;
        }
        Some(match open.key {
            Key::Page(page, relative) => Steady::Page { page, relative },
            Key::Registers {
                base,
                index,
                segment,
                narrow,
            } if segment == Register::None || !self.values.forgot() => Steady::Registers {
                base: match base {
                    Some(base) => Some(same(base)?),
                    None => None,
                },
                index: match index {
                    Some((index, scale)) => Some((same(index)?, scale)),
                    None => None,
                },
                segment,
                narrow,
            },
            Key::Registers { .. } => return None,
        })
    }

    /// Notes an instruction's accesses, with the registers as they are before it.
    fn accesses(
        &mut self,
        index: usize,
        insn: &Instruction,
        class: &Class,
        wide: impl Fn(usize, Place) -> bool,
    ) {
        let span = |place| if wide(index, place) { WIDE_SPAN } else { SPAN };
        let word = self.values.word();
        let stack = |below: i64| (Guest::RSP, below);
        let (operand_written, slot) = match class.kind {
            Kind::Plain(Operand::None) => return,
            Kind::Plain(operand) => (operand != Operand::Read, None),
            Kind::Element(operand) | Kind::ElementPair(operand) => {
                let size = i64::from(elements::size(insn));
                let written = operand == Operand::Write;
                for (load, place) in elements::loads(insn).zip([Place::Operand, Place::Stack]) {
                    let last = place == Place::Stack || class.kind == Kind::Element(operand);
                    if let Some((key, displacement)) = self.operand_key(&load, size) {
                        let (access, span) = ((index, place as usize), span(place));
                        self.join(key, access, displacement, (size, span), written && last);
                    }
                }
                return;
            }
            Kind::LoadVectorControl | Kind::FlushLine => (false, None),
            Kind::Push
            | Kind::PushFlags
            | Kind::Call
            | Kind::CallInto
            | Kind::CallIndirect
            | Kind::CallIndirectInto => (false, Some(stack(-word))),
            Kind::Pop | Kind::PopFlags | Kind::Return | Kind::ReturnInto => (false, Some(stack(0))),
            Kind::Leave => (false, Some((Guest::RBP, 0))),
            Kind::JumpIndirect | Kind::JumpInto => (false, None),
            _ => return,
        };
        let has_operand = (0..insn.op_count()).any(|op| insn.op_kind(op) == OpKind::Memory);
        if has_operand {
            let size = match class.kind {
                Kind::Plain(_) | Kind::LoadVectorControl | Kind::FlushLine => {
                    insn.memory_size().size() as i64
                }
                _ => word,
            };
            if let Some((key, displacement)) = self.operand_key(insn, size) {
                let access = (index, Place::Operand as usize);
                let span = span(Place::Operand);
                self.join(key, access, displacement, (size, span), operand_written);
            }
        }
        if let Some((register, below)) = slot {
            let value = self.values.of(register);
            let key = Key::Registers {
                base: Some(value.version),
                index: None,
                segment: Register::None,
                narrow: !self.values.code64(),
            };
            let access = (index, Place::Stack as usize);
            let span = span(Place::Stack);
            self.join(key, access, value.offset + below, (word, span), below < 0);
        }
    }

    /// The key of a memory operand and its displacement; `None` for odd address forms.
    fn operand_key(&self, insn: &Instruction, size: i64) -> Option<(Key, i64)> {
        if !self.values.code64() && classify::is_limited(insn) {
            return None;
        }
        let mut displacement = insn.memory_displacement64() as i64;
        let segment = match insn.memory_segment() {
            segment @ (Register::FS | Register::GS) => segment,
            _ => Register::None,
        };
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let alone = base == Register::None && index == Register::None;
        if alone && segment != Register::None && i32::try_from(displacement).is_ok() {
            let key = Key::Registers {
                base: None,
                index: None,
                segment,
                narrow: !self.values.code64(),
            };
            return Some((key, displacement));
        }
        if base.is_ip() || alone {
            let address = displacement as u64;
            let within = (address % PAGE_SIZE) as i64;
            let fits = within + size <= PAGE_SIZE as i64 && segment == Register::None;
            let plain =
                base != Register::EIP && (self.values.code64() || address <= u32::MAX.into());
            let key = Key::Page(address / PAGE_SIZE, base.is_ip());
            return (fits && plain).then_some((key, within));
        }
        let mut narrow = !self.values.code64();
        if base.is_gpr32() || insn.memory_index().is_gpr32() {
            // Counted modulo 2^32.
            displacement = i64::from(displacement as i32);
        }
        let mut offset = displacement;
        let mut version = |register: Register, scale: i64| {
            if !register.is_gpr32() && !register.is_gpr64() {
                return None;
            }
            narrow |= register.is_gpr32();
            let value = self.values.of(register.number());
            offset = offset.wrapping_add(value.offset.wrapping_mul(scale));
            Some(value.version)
        };
        let base = match base {
            Register::None => None,
            register => Some(version(register, 1)?),
        };
        let index = match index {
            Register::None => None,
            register => {
                let scale = insn.memory_index_scale();
                Some((version(register, i64::from(scale))?, scale))
            }
        };
        let key = Key::Registers {
            base,
            index,
            segment,
            narrow,
        };
        Some((key, offset))
    }

    fn join(
        &mut self,
        key: Key,
        access: (usize, usize),
        displacement: i64,
        (size, span): (i64, i64),
        write: bool,
    ) {
        let Some(high) = displacement.checked_add(size) else {
            return;
        };
        let known = (self.first_open..self.found.len())
            .rev()
            .find(|&open| self.found[open].key == key);
        if let Some(number) = known {
            let open = &mut self.found[number];
            let low = open.group.low.min(displacement);
            let top = open.group.high.max(high);
            let near = matches!(key, Key::Page(..))
                || top.checked_sub(low).is_some_and(|all| all <= open.span);
            if near {
                open.group = Group {
                    low,
                    high: top,
                    write: open.group.write || write,
                    last: access.0,
                };
                open.members += 1;
                open.runs += u32::from(self.latest != Some(number));
                self.latest = Some(number);
                self.joined.push(Joined {
                    open: number,
                    access,
                    displacement,
                });
                return;
            }
        }
        self.latest = Some(self.found.len());
        self.joined.push(Joined {
            open: self.found.len(),
            access,
            displacement,
        });
        self.found.push(Open {
            key,
            group: Group {
                low: displacement,
                high,
                write,
                last: access.0,
            },
            members: 1,
            runs: 1,
            span,
        });
    }
}
