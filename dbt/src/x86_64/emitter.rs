//! The state of emitting one block: the assembler, what is known of the flags, and the slow
//! paths that go behind the block's end.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Encoder, Instruction, Register};

use mmu::GuestPhys;

use super::block::Emitted;
use super::crossing::Crossing;
use super::encoded::Encoded;
use super::encoding;
use super::exits::{ExitSite, FollowedCall, Inner};
use super::flags::{FlagsPlace, Flow};
use super::late_stores::LateStores;
use super::moving::Follows;
use super::operands::HostMemory;
use super::places::{Allotting, Places};
use super::registers::{T0, T1, T2, number};
use super::sections::Sections;
use super::stubs::Stub;
use super::trampoline::Trampolines;
use crate::cache::{CodeOffset, Further};
use crate::guest::{CodeSegment, Mode};
use crate::record::classify::Class;
use crate::record::grouping::{Finder, GROUPS, Groups};
use crate::record::recipe::Recipe;
use crate::run::{Strayed, Upcall, UpcallKind, at};

/// What a block is emitted for, and where.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The block's identifier, for upcalls.
    pub id: u32,
    /// Mode bits of the block's key.
    pub mode: Mode,
    /// Its code segment.
    pub code: CodeSegment,
    /// Where its first byte goes.
    pub base: CodeOffset,
    /// Where its slow paths go.
    pub cold_base: CodeOffset,
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
    /// Whether string instructions, bit strings, CMPXCHG8B, CMPXCHG16B and ENTER are.
    pub memory_inline: bool,
    /// Whether REP STOS and REP MOVS use the host's vector registers, which has to have them.
    pub vector_strings: bool,
    /// The identifier that the page guard must hold.
    pub mapping: u32,
    /// The other pages that the block's code is on.
    pub further: &'a [Further],
    /// Whether executed instructions are counted.
    pub counted: bool,
    /// Whether calls predict their returns.
    pub returns: bool,
    /// Whether one TLB check may serve several accesses.
    pub grouping: bool,
    /// Whether flags are right wherever the guest may look at them.
    pub precise_flags: bool,
    /// Whether they may leave as a recipe where the next block is not known.
    pub lazy_flags: bool,
    /// What it has to save for two registers to change places; `None`: none do.
    pub allotting: Option<Allotting>,
    /// Whether accesses that cross a page are executed here.
    pub crossing: bool,
    /// Pushes and pops in a row move the guest's stack pointer once.
    pub late_stack: bool,
    /// What leads to a group is put into its slot when T0 is wanted for something else.
    pub late_slots: bool,
    /// Of several stores in a row, those to the mirrors come first.
    pub late_stores: bool,
    /// Accesses with a base and an index whose checks predict wait for one of the two only.
    pub late_index: bool,
    /// The host prefetches what the guest does.
    pub prefetch: bool,
    /// What leads to a group may be in a register that the code does not need.
    pub slot_registers: bool,
    /// Whether accesses that have been checked before let nobody see the flags, and returns that find what their calls
    /// have pushed are not compared.
    pub sure_accesses: bool,
    /// The code is hot, and if it is a loop, checks that are the same in each round are made before the first one.
    pub hoisting: bool,
    /// Jumps neither cross nor end at a boundary of 32 bytes.
    pub whole_jumps: bool,
    /// Guest registers that are in memory are operands where they stand.
    pub memory_operands: bool,
    /// The counter of its entries; `None`: they are not counted.
    pub heat: Option<usize>,
    /// By instruction, FOP if it raises an unmasked exception; empty where all are masked.
    pub x87_opcodes: &'a [Option<u16>],
    /// Which checks may predict their TLB entry; `None`: none.
    pub prediction: Option<Predicting<'a>>,
    /// Whether what would change elsewhere is to be noted.
    pub movable: bool,
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

/// Bytes of `call rel32`.
const CALL: usize = 5;

/// What emitting needs over and over: kept, because translating large programs spent a tenth of
/// its time with the allocator.
pub struct Workshop {
    ops: Sections,
    encoder: Encoder,
    stubs: Vec<Stub>,
    finishing: Vec<Stub>,
    rips: Vec<u64>,
    late: LateStores,
    pub(super) classes: Vec<Class>,
    pub(super) needed: Vec<u32>,
    pub(super) finder: Finder,
    pub(super) groups: Groups,
    exits: Vec<ExitSite>,
    insn_starts: Vec<u32>,
    /// Room for a block's code, hot and cold, to be given back when the code has been placed.
    pub code: [Vec<u8>; 2],
}

impl Default for Workshop {
    fn default() -> Self {
        Workshop {
            ops: Sections::default(),
            encoder: Encoder::new(64),
            stubs: Vec::new(),
            finishing: Vec::new(),
            rips: Vec::new(),
            late: LateStores::default(),
            classes: Vec::new(),
            needed: Vec::new(),
            finder: Finder::default(),
            groups: Groups::default(),
            exits: Vec::new(),
            insn_starts: Vec::new(),
            code: Default::default(),
        }
    }
}

impl Workshop {
    /// Takes back what is used again, when a block has been made of it.
    pub fn take_back(&mut self, emitted: Emitted) {
        self.code = emitted.code;
        self.exits = emitted.exits;
        self.insn_starts = emitted.insn_starts;
    }
}

/// What leads to the accesses of a group that has been checked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// The addend from linear addresses to host addresses.
    Addend,
    /// The host address of this address in the group's coordinate.
    Host(i64),
}

/// What an access of a group has left in T0.
#[derive(Clone, Copy)]
pub(super) struct Near {
    pub group: usize,
    pub held: Held,
}

/// Emits one block.
pub struct Emitter<'a> {
    pub(super) ops: &'a mut Sections,
    encoder: &'a mut Encoder,
    code: &'a mut [Vec<u8>; 2],
    pub(super) target: &'a Target<'a>,
    /// Where the guest's registers are.
    pub(super) places: Places,
    /// The registers of groups that have one.
    pub(super) group_registers: [Option<u8>; GROUPS],
    /// Where a loop whose registers have changed places comes back to.
    pub(super) inner: Option<Inner>,
    pub(super) flags: FlagsPlace,
    pub(super) stubs: &'a mut Vec<Stub>,
    /// Room for those that are being emitted.
    finishing: &'a mut Vec<Stub>,
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
    pub(super) flow: Flow<'a>,
    /// The instruction that is being emitted.
    pub(super) current: usize,
    /// Behind it comes a conditional jump.
    pub(super) branch_next: bool,
    /// The recipe for the flags that it leaves, if that needs the stash.
    pub(super) stashed: Option<Recipe>,
    /// Bit i: instruction i puts something into the stash.
    pub(super) stashes: u64,
    /// Instructions, a bit each, whose accesses are sure to have been checked before: nobody sees the flags there.
    pub(super) sure: u64,
    /// Those of them that turned out to have a check.
    pub(super) unsure: u64,
    /// Accesses that share a check.
    pub(super) groups: &'a Groups,
    /// What leads to each group, once it has been checked.
    pub(super) established: [Option<Held>; GROUPS],
    /// Likewise of those that were checked before the loop's first round.
    pub(super) hoisted: [Option<Held>; GROUPS],
    /// Whether the slot of a group holds that; else T0 does, or no later access wants it.
    pub(super) in_slot: [bool; GROUPS],
    /// What T0 holds for further accesses of a group.
    pub(super) near: Option<Near>,
    /// What the guest's stack pointer has yet to move by: see [`Emitter::pass_stack`].
    pub(super) stack_ahead: i32,
    /// Stores to the native copy that are still to be made.
    pub(super) late: &'a mut LateStores,
    /// The instruction that is being emitted uses T0 for its accesses only.
    pub(super) keeps_t0: bool,
    /// The last instruction with an access whose slow path may execute it whole, and go on
    /// behind it.
    pub(super) may_skip: Option<usize>,
    /// The check is that of a plain instruction, which may fault on the host.
    pub(super) may_predict: bool,
    /// What the slow path of the next store may do if it crosses a page.
    pub(super) crossing_store: Crossing,
    /// DF is known to be clear.
    pub(super) forward: bool,
    /// RIP of each instruction.
    pub(super) rips: &'a mut Vec<u64>,
    /// The checks that predict.
    pub(super) sites: Vec<mmu::Site>,
    /// Calls that a trace follows.
    pub(super) calls: Vec<FollowedCall>,
    /// The one within which the code is.
    pub(super) within: Option<usize>,
    /// The returns of open calls have been predicted, since the block ends here.
    pub(super) predicted: bool,
}

/// The instruction cannot be encoded with host registers: a helper has to do it.
#[derive(Debug)]
pub struct Unencodable;

impl<'a> Emitter<'a> {
    /// An empty block.
    pub fn new(target: &'a Target<'a>, workshop: &'a mut Workshop) -> Emitter<'a> {
        workshop.ops.clear(target.movable);
        workshop.stubs.clear();
        workshop.rips.clear();
        workshop.late.clear();
        let mut exits = std::mem::take(&mut workshop.exits);
        let mut insn_starts = std::mem::take(&mut workshop.insn_starts);
        exits.clear();
        insn_starts.clear();
        Emitter {
            ops: &mut workshop.ops,
            encoder: &mut workshop.encoder,
            code: &mut workshop.code,
            target,
            places: Places::default(),
            group_registers: [None; GROUPS],
            inner: None,
            flags: FlagsPlace::HOST,
            stubs: &mut workshop.stubs,
            finishing: &mut workshop.finishing,
            exits,
            insn_starts,
            flags_away: 0,
            flags_lost: 0,
            recipes: Vec::new(),
            flow: Flow::default(),
            current: 0,
            branch_next: false,
            stashed: None,
            stashes: 0,
            sure: 0,
            unsure: 0,
            groups: &workshop.groups,
            established: [None; GROUPS],
            hoisted: [None; GROUPS],
            in_slot: [false; GROUPS],
            near: None,
            stack_ahead: 0,
            late: &mut workshop.late,
            keeps_t0: false,
            may_skip: None,
            may_predict: false,
            crossing_store: Crossing::Never,
            forward: false,
            rips: &mut workshop.rips,
            sites: Vec::new(),
            calls: Vec::new(),
            within: None,
            predicted: false,
        }
    }

    /// Where the next byte goes in the code region.
    pub(super) fn address(&self) -> CodeOffset {
        let base = if self.ops.is_cold() {
            self.target.cold_base
        } else {
            self.target.base
        };
        CodeOffset(base.0 + self.here())
    }

    /// Offset of the next byte from its section's start.
    pub(super) fn here(&self) -> u32 {
        self.ops.here()
    }

    /// Encodes an instruction that names host registers only.
    pub(super) fn encode(&mut self, insn: &Instruction) -> Result<Encoded, Unencodable> {
        match encoding::encode(insn, None) {
            Some(encoded) => Ok(encoded),
            None => self.encode_unusual(insn),
        }
    }

    /// Encodes an instruction that names host registers, with an operand in memory in the place of its own.
    pub(super) fn encode_on(
        &mut self,
        insn: &Instruction,
        memory: HostMemory,
    ) -> Result<Encoded, Unencodable> {
        match encoding::encode(insn, Some(&memory.encoded())) {
            Some(encoded) => Ok(encoded),
            None => {
                let mut insn = *insn;
                memory.apply(&mut insn);
                self.encode_unusual(&insn)
            }
        }
    }

    #[cold]
    fn encode_unusual(&mut self, insn: &Instruction) -> Result<Encoded, Unencodable> {
        let done = self.encoder.encode(insn, 0);
        let mut buffer = self.encoder.take_buffer();
        let encoded = match done {
            Ok(_) => Ok(Encoded::of(&buffer)),
            Err(_) => Err(Unencodable),
        };
        buffer.clear();
        self.encoder.set_buffer(buffer);
        encoded
    }

    /// Emits an instruction.
    pub(super) fn put(&mut self, encoded: &Encoded) {
        self.ops.put(encoded);
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
        match self.places.pinned(guest) {
            Some(host) => dynasm!(self.ops ; .arch x64 ; mov Rq(into), Rq(host)),
            None => {
                dynasm!(self.ops ; .arch x64 ; gs mov Rq(into), [self.places.slot(guest)])
            }
        }
    }

    /// Stores a host register (64 bits) into a guest register.
    pub(super) fn store_guest(&mut self, guest: usize, from: Register) {
        let from = Self::scratch(from);
        match self.places.pinned(guest) {
            Some(host) => dynasm!(self.ops ; .arch x64 ; mov Rq(host), Rq(from)),
            None => {
                dynasm!(self.ops ; .arch x64 ; gs mov [self.places.slot(guest)], Rq(from))
            }
        }
    }

    /// An upcall record for an instruction of the block, with the flags as they are here.
    pub(super) fn record(&mut self, kind: UpcallKind, insn: usize) -> Upcall {
        assert!(self.stores_are_settled(), "copies differ at an upcall");
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
        self.call_with(self.target.trampolines.upcall, record);
    }

    /// A call of shared code that takes a record.
    pub(super) fn call_with(&mut self, to: CodeOffset, record: Upcall) {
        let mut bytes = [0; CALL + size_of::<Upcall>()];
        bytes[..size_of::<u64>()].copy_from_slice(&self.call_of(to).to_le_bytes());
        bytes[CALL..].copy_from_slice(&record.to_bytes());
        self.ops.extend(&bytes);
        self.ops.mark(Follows::Upcall);
    }

    /// A call of shared code that takes none.
    pub(super) fn call_shared(&mut self, to: CodeOffset) {
        let call = self.call_of(to).to_le_bytes();
        self.ops.extend(&call[..CALL]);
        self.ops.mark(Follows::Call);
    }

    /// `call rel32` of shared code, here, in the lowest bytes.
    fn call_of(&self, to: CodeOffset) -> u64 {
        let end = self.address().0 + CALL as u32;
        0xe8 | u64::from(to.0.wrapping_sub(end)) << 8
    }

    /// How many instructions were counted in advance that a way out behind so many leaves out.
    pub(super) fn behind(&self, executed: usize) -> i32 {
        match self.target.counted {
            true => (self.rips.len() - executed) as i32,
            false => 0,
        }
    }

    /// Gives back instructions counted in advance; leaves the flags alone. Uses T1.
    pub(super) fn add_to_budget(&mut self, count: i32) {
        if count == 0 {
            return;
        }
        let t1 = Self::scratch(T1);
        dynasm!(self.ops
            ; .arch x64
            ; gs mov Rq(t1), [at::BUDGET]
            ; lea Rq(t1), [Rq(t1) + count]
            ; gs mov [at::BUDGET], Rq(t1)
        );
    }

    /// Emits everything that goes behind the block's end, and returns the code.
    pub(super) fn finish(&mut self) -> [Vec<u8>; 2] {
        self.finish_stubs();
        self.landings();
        self.finish_stubs();
        let bases = [self.target.base, self.target.cold_base];
        let mut code = std::mem::take(self.code);
        self.ops.place(bases, &mut code);
        for exit in &self.exits {
            exit.lead_to_stub(&mut code, bases);
        }
        code
    }

    fn finish_stubs(&mut self) {
        // Some have slow paths of their own.
        while !self.stubs.is_empty() {
            std::mem::swap(self.stubs, self.finishing);
            let stubs = std::mem::take(self.finishing);
            for stub in &stubs {
                self.finish_stub(stub);
            }
            *self.finishing = stubs;
            self.finishing.clear();
        }
    }

    /// The scratch registers, in the order in which operands are staged.
    pub(super) const STAGING: [Register; 3] = [T1, T2, T0];
}
