//! The state of emitting one block: the assembler, what is known of the flags, and the slow
//! paths that go behind the block's end.

use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, VecAssembler, dynasm};
use iced_x86::{Encoder, Instruction, Register};

use mmu::GuestPhys;

use super::flags::{Effect, ExitFlags, FlagsPlace};
use super::prediction::Wrong;
use super::registers::{T0, T1, T2, number, pinned};
use super::trampoline::Trampolines;
use crate::cache::CodeOffset;
use crate::guest::Mode;
use crate::record::classify::Class;
use crate::record::grouping::Groups;
use crate::record::recipe::Recipe;
use crate::run::{Strayed, Upcall, UpcallKind, at};

/// What a block is emitted for, and where.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The block's identifier, for upcalls.
    pub id: u32,
    /// Mode bits of the block's key.
    pub mode: Mode,
    /// Where its first byte goes.
    pub base: CodeOffset,
    /// The shared code.
    pub trampolines: &'a Trampolines,
    /// Copies of guest memory.
    pub copies: usize,
    /// Bytes from one copy to the next.
    pub stride: i32,
    /// Index of the mode's jump cache.
    pub jump_cache: usize,
    /// Index of the jump cache of the mode in which the last instruction arrives, if it changes
    /// the privilege.
    pub far_jump_cache: Option<usize>,
    /// Whether common system instructions are emitted in line.
    pub system_inline: bool,
    /// The identifier that the page guard must hold.
    pub mapping: u32,
    /// Likewise for the next page, if the block's one instruction crosses into it.
    pub second_mapping: Option<u32>,
    /// Whether executed instructions are counted.
    pub counted: bool,
    /// Whether calls predict their returns.
    pub returns: bool,
    /// Whether one TLB check may serve several accesses.
    pub grouping: bool,
    /// Whether flags are right wherever the guest may look at them.
    pub precise_flags: bool,
    /// Which checks may predict their TLB entry; `None`: none.
    pub prediction: Option<Predicting<'a>>,
    /// Whether the host has BMI2: instructions that shift without flags.
    pub bmi2: bool,
}

/// What the checks of a block need to predict their TLB entries.
#[derive(Clone, Copy)]
pub struct Predicting<'a> {
    /// Those that do not.
    pub strayed: &'a Strayed,
    /// The physical page of the block's code.
    pub page: GuestPhys,
    /// The number of the block's first site.
    pub first: u16,
}

/// A jump out of the block to a known guest address.
#[derive(Clone, Copy, Debug)]
pub struct ExitSite {
    /// Where the displacement of the jump is.
    pub site: CodeOffset,
    /// Where the jump goes while it is not linked.
    pub stub: CodeOffset,
    /// Guest RIP of the target.
    pub target: u64,
    /// The check of a group failed: the target is this block's own rest, without groups.
    pub ungrouped: Option<u16>,
    /// What leads out.
    pub kind: ExitKind,
    /// How the flags leave.
    pub flags: ExitFlags,
}

/// What leads out of a block to a known address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitKind {
    /// A jump, or the block's end.
    Jump,
    /// A call that predicts its return.
    Call,
    /// What is behind such a call: the flags are in their saved place.
    Return,
}

/// The bytes of one host instruction.
#[derive(Clone, Copy, Default)]
pub(super) struct Encoded {
    bytes: [u8; 15],
    len: u8,
}

impl std::ops::Deref for Encoded {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Code behind the block's end.
pub(super) enum Stub {
    /// An upcall: linear address to compute first, if any.
    Upcall {
        label: DynamicLabel,
        lea: Option<Encoded>,
        record: Upcall,
    },
    /// A check predicted the wrong entry.
    Wrong { label: DynamicLabel, wrong: Wrong },
    /// The unlinked end of an exit.
    Link { label: DynamicLabel, exit: usize },
    /// A return that was not predicted: looks for the target in the jump cache.
    Return {
        label: DynamicLabel,
        /// What the guest's stack pointer moves by.
        pops: i32,
        /// For a target that is not there.
        record: Upcall,
    },
    /// Brings the vector registers in, then goes back.
    LoadVectors {
        label: DynamicLabel,
        back: DynamicLabel,
    },
    /// Goes on at an instruction in code without groups. The flags are brought into EFLAGS.
    Ungroup {
        label: DynamicLabel,
        insn: u16,
        flags: FlagsPlace,
        give_back: i32,
        rip: u64,
    },
    /// A jump out of the middle of the block, which gives back what was counted in advance.
    SideExit {
        label: DynamicLabel,
        target: u64,
        flags: FlagsPlace,
        give_back: i32,
    },
    /// Gives back the instructions counted in advance, then leaves.
    GiveBack {
        label: DynamicLabel,
        count: i32,
        record: Upcall,
    },
}

/// What emitting needs over and over: kept, because translating large programs spent a tenth of
/// its time with the allocator.
pub struct Workshop {
    ops: VecAssembler<X64Relocation>,
    encoder: Encoder,
    stubs: Vec<Stub>,
    rips: Vec<u64>,
    effects: Vec<Effect>,
    pub(super) classes: Vec<Class>,
    /// Room for a block's code, to be given back when the code has been placed.
    pub code: Vec<u8>,
}

impl Default for Workshop {
    fn default() -> Self {
        Workshop {
            ops: VecAssembler::new(0),
            encoder: Encoder::new(64),
            stubs: Vec::new(),
            rips: Vec::new(),
            effects: Vec::new(),
            classes: Vec::new(),
            code: Vec::new(),
        }
    }
}

/// Emits one block.
pub struct Emitter<'a> {
    pub(super) ops: &'a mut VecAssembler<X64Relocation>,
    encoder: &'a mut Encoder,
    code: &'a mut Vec<u8>,
    pub(super) target: Target<'a>,
    pub(super) flags: FlagsPlace,
    pub(super) stubs: &'a mut Vec<Stub>,
    pub(super) exits: Vec<ExitSite>,
    /// Resume points of memory slow paths: (index of the stub, offset in the block).
    pub(super) insn_starts: Vec<u32>,
    /// Instructions that find the guest's flags in their saved place only, by index.
    pub(super) flags_away: u64,
    /// Instructions that find them nowhere.
    pub(super) flags_lost: u64,
    /// Recipes for flags that are nowhere else, by the index of the instruction before which
    /// they hold.
    pub(super) recipes: Vec<(u16, Recipe)>,
    /// What the block's instructions do with the flags they find.
    pub(super) effects: &'a mut Vec<Effect>,
    /// The instruction that is being emitted.
    pub(super) current: usize,
    /// The recipe for the flags that it leaves, if that needs the stash.
    pub(super) stashed: Option<Recipe>,
    /// Bit i: instruction i puts something into the stash.
    pub(super) stashes: u64,
    /// Accesses that share a check.
    pub(super) groups: Groups,
    /// Bit i: the slot of group i holds its addend.
    pub(super) established: u8,
    /// The last instruction with an access whose slow path may execute it whole, and go on
    /// behind it.
    pub(super) may_skip: Option<usize>,
    /// The check is that of a plain instruction, which may fault on the host.
    pub(super) may_predict: bool,
    /// RIP of each instruction.
    pub(super) rips: &'a mut Vec<u64>,
    /// Sites that predict.
    pub(super) sites: u32,
}

/// What an emitter leaves.
pub(super) struct Finished {
    pub code: Vec<u8>,
    pub exits: Vec<ExitSite>,
    pub insn_starts: Vec<u32>,
    pub flags_away: u64,
    pub flags_lost: u64,
    pub recipes: Vec<(u16, Recipe)>,
    pub stashes: u64,
}

/// The instruction cannot be encoded with host registers: a helper has to do it.
#[derive(Debug)]
pub struct Unencodable;

impl<'a> Emitter<'a> {
    /// An empty block.
    pub fn new(target: Target<'a>, workshop: &'a mut Workshop) -> Emitter<'a> {
        workshop.stubs.clear();
        workshop.rips.clear();
        workshop.effects.clear();
        Emitter {
            ops: &mut workshop.ops,
            encoder: &mut workshop.encoder,
            code: &mut workshop.code,
            target,
            flags: FlagsPlace::HOST,
            stubs: &mut workshop.stubs,
            exits: Vec::new(),
            insn_starts: Vec::new(),
            flags_away: 0,
            flags_lost: 0,
            recipes: Vec::new(),
            effects: &mut workshop.effects,
            current: 0,
            stashed: None,
            stashes: 0,
            groups: Groups::default(),
            established: 0,
            may_skip: None,
            may_predict: false,
            rips: &mut workshop.rips,
            sites: 0,
        }
    }

    /// Offset of the next byte from the block's start.
    pub(super) fn here(&self) -> u32 {
        self.ops.offset().0 as u32
    }

    /// Encodes an instruction that names host registers only.
    pub(super) fn encode(&mut self, insn: &Instruction) -> Result<Encoded, Unencodable> {
        let done = self.encoder.encode(insn, 0);
        let mut buffer = self.encoder.take_buffer();
        let mut encoded = Encoded::default();
        if done.is_ok() {
            encoded.bytes[..buffer.len()].copy_from_slice(&buffer);
            encoded.len = buffer.len() as u8;
        }
        buffer.clear();
        self.encoder.set_buffer(buffer);
        done.map(|_| encoded).map_err(|_| Unencodable)
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.ops.extend(bytes.iter());
    }

    /// Number of a scratch register.
    pub(super) fn scratch(register: Register) -> u8 {
        number(register) as u8
    }

    /// Loads a guest register (64 bits) into a host register.
    pub(super) fn load_guest(&mut self, into: Register, guest: usize) {
        let into = Self::scratch(into);
        match pinned(guest) {
            Some(host) => dynasm!(self.ops ; .arch x64 ; mov Rq(into), Rq(host)),
            None => dynasm!(self.ops ; .arch x64 ; gs mov Rq(into), [at::gpr(guest)]),
        }
    }

    /// Stores a host register (64 bits) into a guest register.
    pub(super) fn store_guest(&mut self, guest: usize, from: Register) {
        let from = Self::scratch(from);
        match pinned(guest) {
            Some(host) => dynasm!(self.ops ; .arch x64 ; mov Rq(host), Rq(from)),
            None => dynasm!(self.ops ; .arch x64 ; gs mov [at::gpr(guest)], Rq(from)),
        }
    }

    /// An upcall record for an instruction of the block, with the flags as they are here.
    pub(super) fn record(&mut self, kind: UpcallKind, insn: usize) -> Upcall {
        Upcall {
            block: self.target.id,
            insn: insn as u16,
            kind,
            flags: self.flags_at(insn),
            size: 0,
            write: 0,
            wants_addend: 0,
            extra: 0,
        }
    }

    /// Emits an upcall in line.
    pub(super) fn upcall(&mut self, record: Upcall) {
        self.call_shared(self.target.trampolines.upcall);
        self.bytes(&record.to_bytes());
    }

    /// `call rel32` of shared code.
    fn call_shared(&mut self, to: CodeOffset) {
        let end = self.target.base.0 + self.here() + 5;
        self.ops.push(0xe8);
        self.ops.push_u32(to.0.wrapping_sub(end));
    }

    /// Adds a stub that calls up, to be jumped to.
    pub(super) fn stub(&mut self, lea: Option<Encoded>, record: Upcall) -> DynamicLabel {
        let label = self.ops.new_dynamic_label();
        self.stubs.push(Stub::Upcall { label, lea, record });
        label
    }

    /// Adds a stub that goes on at an instruction without groups, with the flags as they are.
    pub(super) fn ungroup(&mut self, insn: usize) -> DynamicLabel {
        let label = self.ops.new_dynamic_label();
        let left = (self.rips.len() - insn) as i32;
        self.stubs.push(Stub::Ungroup {
            label,
            insn: insn as u16,
            flags: self.flags,
            give_back: if self.target.counted { left } else { 0 },
            rip: self.rips[insn],
        });
        label
    }

    /// Emits a jump out of the block to a known guest address. The flags must be in EFLAGS.
    pub(super) fn direct_exit(&mut self, target: u64, condition: Option<u8>, flags: ExitFlags) {
        // jcc rel32, jmp rel32
        match condition {
            Some(code) => self.ops.extend([0x0f, 0x80 | code].iter()),
            None => self.ops.push(0xe9),
        }
        self.linkable(target, ExitKind::Jump, flags);
    }

    /// Emits a call of a known guest address, whose return address is in T1, and what its return
    /// leads to.
    pub(super) fn call_exit(&mut self, target: u64, next: u64, flags: ExitFlags) {
        dynasm!(self.ops ; .arch x64 ; push rdi);
        self.ops.push(0xe8);
        self.linkable(target, ExitKind::Call, flags);
        self.landing(next);
    }

    /// Where a predicted return arrives: it goes on at a guest address.
    pub(super) fn landing(&mut self, next: u64) {
        dynasm!(self.ops ; .arch x64 ; pop rdi);
        self.ops.push(0xe9);
        self.linkable(next, ExitKind::Return, ExitFlags::Saved);
    }

    /// The displacement of a jump or call out of the block, and its stub.
    fn linkable(&mut self, target: u64, kind: ExitKind, flags: ExitFlags) {
        let label = self.ops.new_dynamic_label();
        let site = CodeOffset(self.target.base.0 + self.here());
        self.ops.push_u32(0);
        let exit = self.exits.len();
        self.exits.push(ExitSite {
            site,
            stub: CodeOffset(0),
            target,
            ungrouped: None,
            kind,
            flags,
        });
        self.stubs.push(Stub::Link { label, exit });
    }

    /// Gives back instructions counted in advance; leaves the flags alone. Uses T1.
    fn add_to_budget(&mut self, count: i32) {
        let t1 = Self::scratch(T1);
        dynasm!(self.ops
            ; .arch x64
            ; gs mov Rq(t1), [at::BUDGET]
            ; lea Rq(t1), [Rq(t1) + count]
            ; gs mov [at::BUDGET], Rq(t1)
        );
    }

    /// Emits a jump out of the block and, behind it, what links it.
    fn exit_here(&mut self, target: u64, ungrouped: Option<u16>, flags: ExitFlags) {
        self.ops.push(0xe9);
        let site = CodeOffset(self.target.base.0 + self.here());
        self.ops.push_u32(0);
        let stub = CodeOffset(self.target.base.0 + self.here());
        self.flags = match flags {
            ExitFlags::Arrived => FlagsPlace::ARRIVED,
            _ if self.flags.lost => FlagsPlace::LOST,
            _ => FlagsPlace::HOST,
        };
        let mut record = self.record(UpcallKind::Link, 0);
        record.extra = self.exits.len() as u32;
        self.exits.push(ExitSite {
            site,
            stub,
            target,
            ungrouped,
            kind: ExitKind::Jump,
            flags,
        });
        self.upcall(record);
    }

    /// A conditional jump out of the middle of a block behind `executed` instructions. The flags
    /// must be in EFLAGS.
    pub(super) fn side_exit(&mut self, target: u64, condition: u8, executed: usize) {
        let described =
            !self.flags.saved && self.flags.recipe.is_some() && self.target.precise_flags;
        if !self.target.counted && !described {
            let flags = self.describe_flags();
            return self.direct_exit(target, Some(condition), flags);
        }
        let label = self.ops.new_dynamic_label();
        let left = (self.rips.len() - executed) as i32;
        self.stubs.push(Stub::SideExit {
            label,
            target,
            flags: self.flags,
            give_back: if self.target.counted { left } else { 0 },
        });
        match condition {
            0x0 => dynasm!(self.ops ; .arch x64 ; jo =>label),
            0x1 => dynasm!(self.ops ; .arch x64 ; jno =>label),
            0x2 => dynasm!(self.ops ; .arch x64 ; jb =>label),
            0x3 => dynasm!(self.ops ; .arch x64 ; jae =>label),
            0x4 => dynasm!(self.ops ; .arch x64 ; je =>label),
            0x5 => dynasm!(self.ops ; .arch x64 ; jne =>label),
            0x6 => dynasm!(self.ops ; .arch x64 ; jbe =>label),
            0x7 => dynasm!(self.ops ; .arch x64 ; ja =>label),
            0x8 => dynasm!(self.ops ; .arch x64 ; js =>label),
            0x9 => dynasm!(self.ops ; .arch x64 ; jns =>label),
            0xa => dynasm!(self.ops ; .arch x64 ; jp =>label),
            0xb => dynasm!(self.ops ; .arch x64 ; jnp =>label),
            0xc => dynasm!(self.ops ; .arch x64 ; jl =>label),
            0xd => dynasm!(self.ops ; .arch x64 ; jge =>label),
            0xe => dynasm!(self.ops ; .arch x64 ; jle =>label),
            _ => dynasm!(self.ops ; .arch x64 ; jg =>label),
        }
    }

    /// Emits everything that goes behind the block's end, and returns the code.
    pub(super) fn finish(mut self) -> Finished {
        let mut stubs = std::mem::take(self.stubs);
        for stub in stubs.drain(..) {
            match stub {
                Stub::Upcall { label, lea, record } => {
                    dynasm!(self.ops ; .arch x64 ; =>label);
                    if let Some(lea) = lea {
                        self.bytes(&lea);
                    }
                    self.upcall(record);
                }
                Stub::Wrong { label, wrong } => {
                    dynasm!(self.ops ; .arch x64 ; =>label);
                    self.wrong(wrong);
                }
                Stub::Link { label, exit } => {
                    dynasm!(self.ops ; .arch x64 ; =>label);
                    self.exits[exit].stub = CodeOffset(self.target.base.0 + self.here());
                    self.flags = match self.exits[exit].kind {
                        ExitKind::Return => FlagsPlace::SAVED,
                        ExitKind::Jump | ExitKind::Call => FlagsPlace::HOST,
                    };
                    let mut record = self.record(UpcallKind::Link, 0);
                    record.extra = exit as u32;
                    self.upcall(record);
                }
                Stub::Return {
                    label,
                    pops,
                    record,
                } => {
                    dynasm!(self.ops ; .arch x64 ; =>label);
                    self.unpredicted_return(pops, record);
                }
                Stub::LoadVectors { label, back } => {
                    dynasm!(self.ops ; .arch x64 ; =>label);
                    self.call_shared(self.target.trampolines.load_vectors);
                    dynasm!(self.ops ; .arch x64 ; jmp =>back);
                }
                Stub::Ungroup {
                    label,
                    insn,
                    flags,
                    give_back,
                    rip,
                } => {
                    dynasm!(self.ops ; .arch x64 ; =>label);
                    if give_back != 0 {
                        self.add_to_budget(give_back);
                    }
                    self.flags = flags;
                    let flags = if flags.arrived {
                        ExitFlags::Arrived
                    } else {
                        self.restore_flags();
                        self.describe_flags()
                    };
                    self.exit_here(rip, Some(insn), flags);
                }
                Stub::SideExit {
                    label,
                    target,
                    flags,
                    give_back,
                } => {
                    dynasm!(self.ops ; .arch x64 ; =>label);
                    if give_back != 0 {
                        self.add_to_budget(give_back);
                    }
                    self.flags = flags;
                    let flags = self.describe_flags();
                    self.exit_here(target, None, flags);
                }
                Stub::GiveBack {
                    label,
                    count,
                    record,
                } => {
                    dynasm!(self.ops ; .arch x64 ; =>label);
                    self.add_to_budget(count);
                    self.upcall(record);
                }
            }
        }
        *self.stubs = stubs;
        let base = self.target.base.0;
        let mut code = std::mem::take(self.code);
        code.clear();
        code.extend(
            self.ops
                .drain()
                .expect("every label of a block is defined by its stub"),
        );
        for exit in &self.exits {
            let at = (exit.site.0 - base) as usize;
            let displacement = exit.stub.0.wrapping_sub(exit.site.0 + 4);
            code[at..at + 4].copy_from_slice(&displacement.to_le_bytes());
        }
        Finished {
            code,
            exits: self.exits,
            insn_starts: self.insn_starts,
            flags_away: self.flags_away,
            flags_lost: self.flags_lost,
            recipes: self.recipes,
            stashes: self.stashes,
        }
    }

    /// The scratch registers, in the order in which operands are staged.
    pub(super) const STAGING: [Register; 3] = [T1, T2, T0];
}
