//! One block from decoded instructions to host code.

use dynasmrt::{DynasmLabelApi, dynasm};
use iced_x86::{Instruction, Mnemonic};
use serde::{Deserialize, Serialize};

use super::crossing::Crossing;
use super::emitter::{Emitter, Target, Unencodable, Workshop};
use super::exits::ExitSite;
use super::flags::{FlagsPlace, Flow};
use super::places::{self, Places};
use super::plain::Need;
use crate::cache::Words;
use crate::guest::Mode;
use crate::interpret;
use crate::record::classify::{Class, Classifier, Kind};
use crate::record::grouping::Place;
use crate::record::liveness;
use crate::record::recipe::Recipe;
use crate::run::{UpcallKind, at};

/// Where a block is entered, as offsets from its first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entries {
    /// For jumps within the page and forward: nothing to confirm.
    pub plain: u32,
    /// For backward jumps within the page: polls for exit requests.
    pub polling: u32,
    /// For jumps from other pages: confirms that the page is still mapped here.
    pub guarded: u32,
    /// For indirect jumps: flags are saved; confirms and polls.
    pub indirect: u32,
    /// For predicted returns from within the page: flags are saved; nothing to confirm.
    pub returning: u32,
    /// For direct jumps that bring their flags in EFLAGS only, where [`Emitted::lost`].
    pub saving: u32,
    /// Likewise, for jumps forward within the page.
    pub saving_forward: u32,
    /// The flags need not be right: however they are brought, any of these will do.
    pub any_flags: bool,
}

/// Host code of one block. Offsets are from its first byte.
pub struct Emitted {
    /// The bytes: the block itself, and its slow paths, which stand elsewhere.
    pub code: [Vec<u8>; 2],
    /// Where it is entered.
    pub entries: Entries,
    /// Jumps to known addresses.
    pub exits: Vec<ExitSite>,
    /// Where each instruction's code starts.
    pub insn_starts: Vec<u32>,
    /// The checks that predict.
    pub sites: Vec<mmu::Site>,
    /// The block works on vector registers: they have to be live where it resumes.
    pub vectors: bool,
    /// The block does not need the flags in EFLAGS: a recipe in the place of saved ones will do
    /// that needs none of these registers, a bit each.
    pub lost: Option<u16>,
    /// Its jumps back to its beginning take an entry of their own.
    pub has_inner: bool,
    /// Bit i: instruction i finds its flags in `saved_flags` only.
    pub flags_away: u64,
    /// Bit i: instruction i finds them nowhere (with imprecise flags).
    pub flags_lost: u64,
    /// Recipes for flags that are nowhere else, by the index of the instruction before which
    /// they hold.
    pub recipes: Vec<(u16, Recipe)>,
    /// Bit i: instruction i leaves something in the stash that the code behind it relies on.
    pub stashes: u64,
    /// Where the guest's registers are while it runs.
    pub places: Places,
    /// What changes if it is moved; `None`: it cannot be.
    pub marks: Option<Words>,
}

/// Whether blocks of this mode can be translated at all. `segmented`: whether 16-bit code, and code in
/// segments that are not flat, can.
pub fn translatable(mode: Mode, segmented: bool) -> bool {
    (segmented || !mode.segmented()) && mode.0 & (Mode::STEPPED | Mode::ALIGNED) == 0
}

/// Translates the instructions of a block.
pub fn emit(
    workshop: &mut Workshop,
    classifier: &mut Classifier,
    insns: &[Instruction],
    rip: u64,
    target: Target<'_>,
) -> Emitted {
    let mut classes = std::mem::take(&mut workshop.classes);
    classes.clear();
    classes.extend(
        insns
            .iter()
            .map(|insn| classifier.classify(insn, target.mode)),
    );
    if !target.memory_inline {
        leave_elements(&mut classes);
    }
    if let Some((_, followed)) = classes.split_last_mut() {
        for class in followed {
            class.kind = class.kind.followed();
        }
    }
    let precise = target.precise_flags;
    let target = &target;
    find_groups(workshop, insns, &classes, target);
    let groups = &workshop.groups;
    let leavable = liveness::mask(&classes, |_, class| liveness::exposes(class, precise));
    let mut exposes = leavable;
    if precise && target.sure_accesses && groups.count() > 0 {
        exposes &= !liveness::mask(&classes, |index, class| {
            groups.sure(index, &insns[index], class)
        });
    }
    let places = target.allotting.map_or(Places::default(), |allotting| {
        // Each way in and out of a loop costs a move; they have to be few.
        let busy = target.slot_registers && target.prediction.is_some();
        let groups = Some(&workshop.groups).filter(|_| busy);
        Places::choose(insns, &classes, groups, allotting)
    });
    loop {
        let exposing = (exposes, leavable & !exposes);
        match emit_once(workshop, insns, &classes, exposing, (rip, places), target) {
            Ok(emitted) => {
                workshop.classes = classes;
                return emitted;
            }
            Err(Helpers(more)) => exposes |= more,
        }
    }
}

/// Leaves string instructions without a prefix to the interpreter, from before groups are found: it may go down.
fn leave_elements(classes: &mut [Class]) {
    for class in classes {
        if matches!(class.kind, Kind::Element(_) | Kind::ElementPair(_)) {
            class.kind = Kind::Helper;
        }
    }
}

/// Finds the accesses that share checks, into the workshop.
fn find_groups(
    workshop: &mut Workshop,
    insns: &[Instruction],
    classes: &[Class],
    target: &Target<'_>,
) {
    let Workshop { finder, groups, .. } = workshop;
    // What wraps or is cut by a limit is near nothing.
    if !target.grouping || target.mode.segmented() {
        return groups.clear();
    }
    let rounds = target.hoisting && places::closes(insns);
    let wide = |index: usize, place| {
        let plain = matches!(classes[index].kind, Kind::Plain(_) | Kind::Element(_));
        let predicting = target
            .prediction
            .filter(|_| plain && place == Place::Operand);
        predicting
            .is_some_and(|predicting| predicting.predicts(insns[index].ip(), target.further, place))
    };
    finder.find((insns, classes), target.mode, rounds, wide, groups);
}

/// Instructions, a bit each, that had to be left to helpers, or to have a check, where none were expected: these see
/// the flags.
struct Helpers(u64);

fn emit_once(
    workshop: &mut Workshop,
    insns: &[Instruction],
    classes: &[Class],
    (exposes, sure): (u64, u64),
    (rip, places): (u64, Places),
    target: &Target<'_>,
) -> Result<Emitted, Helpers> {
    let mode = target.mode;
    let view = interpret::view(mode);
    let guard = at::guard(view, target.code.page(rip));
    let mapping = target.mapping as i32;
    let mut needed = std::mem::take(&mut workshop.needed);
    liveness::needed_before(classes, exposes, &mut needed);
    let mut flow = Flow {
        classes,
        needed: &needed,
        in_host: 0,
    };
    let in_host = liveness::mask(classes, |index, class| {
        flow.need(index).in_host(class.flags)
    });
    flow.in_host = in_host;
    // Where a group's check fails, code without groups goes on, and asks more of a recipe. What leads back to
    // a loop is emitted once and for all, so that has to do for it.
    let entered = if places::closes(insns) {
        exposes | sure
    } else {
        exposes
    };
    let lost = liveness::lost_at_entry(
        classes,
        (entered, in_host),
        (target.precise_flags, target.lazy_flags),
    );
    // What looks at another page's guard may find that other code wants the flags.
    let lost = lost.filter(|_| target.precise_flags || target.further.is_empty());
    let arriving = match lost {
        Some(_) if target.precise_flags => FlagsPlace::ARRIVED,
        Some(_) => FlagsPlace::LOST,
        None => FlagsPlace::HOST,
    };
    let mut emitter = Emitter::new(target, workshop);
    emitter.rips.extend(insns.iter().map(Instruction::ip));
    emitter.sure = sure;

    // Entry for jumps that bring their flags in EFLAGS only, then for those from other pages, then for backward
    // jumps, then the block itself.
    let saving_entry = emitter.here();
    if arriving.arrived {
        emitter.call_shared(target.trampolines.save_flags);
    }
    let guarded_entry = emitter.here();
    // Where the guard fails other code is mapped here, and that may read any flag.
    let guarding = if arriving.lost {
        FlagsPlace::HOST
    } else {
        arriving
    };
    emitter.entry_check(guarding, arriving.lost, |emitter, label| {
        emitter.compare_guard(guard, mapping, label);
    });
    let poll_entry = emitter.here();
    emitter.entry_check(arriving, false, |emitter, label| {
        emitter.poll(label);
        let record = emitter.record(UpcallKind::Leave, 0);
        emitter.count_entry(record);
    });
    let entry = emitter.here();
    let entry_label = emitter.ops.new_dynamic_label();
    dynasm!(emitter.ops ; .arch x64 ; =>entry_label);
    // Even a jump within the page cannot vouch for other pages.
    if !target.further.is_empty() {
        emitter.entry_check(arriving, false, |emitter, label| {
            for further in target.further {
                let guard = at::guard(view, further.part.page);
                emitter.compare_guard(guard, further.mapping as i32, label);
            }
        });
    }
    if target.counted {
        emitter.count(insns.len() as i32, arriving);
    }
    // What a helper executes finds them in memory.
    let plain = |class: &Class| matches!(class.kind, Kind::Plain(_));
    let works = |class: &Class| {
        plain(class)
            || matches!(
                class.kind,
                Kind::LoadVectorControl | Kind::Masked(_) | Kind::MaskedBytes | Kind::Gather
            )
    };
    let vectors = (classes.iter()).any(|class| works(class) && class.vectors);
    if vectors {
        emitter.bring_vectors(arriving);
    }
    if !places.are_usual() {
        emitter.places = places;
        emitter.group_registers = places.of_groups();
        emitter.leave_places();
    }
    let hoists = emitter.hoist_checks(arriving);
    if hoists || (!places.are_usual() && places::closes(insns)) {
        emitter.inner_entry(rip, arriving, lost.unwrap_or(0), insns.len() as i32);
    }
    emitter.flags = arriving;
    emitter.flow = flow;
    let mut helpers = 0;
    for (index, insn) in insns.iter().enumerate() {
        if !emitter.stores_are_settled() && !emitter.passes_stores(index, insn, &classes[index]) {
            emitter.settle_stores();
        }
        if emitter.stack_ahead != 0 && !emitter.passes_stack(index, insn, &classes[index]) {
            emitter.settle_stack();
        }
        emitter.insn_starts.push(emitter.here());
        emitter.current = index;
        let next = classes.get(index + 1);
        emitter.branch_next = next.is_some_and(|class| class.kind == Kind::Branch);
        if index + 1 == insns.len() && emitter.within.is_some() {
            emitter.end_calls();
        }
        if !emitter.checks(index) {
            emitter.keep_flags();
        }
        emitter.keeps_t0 = keeps_t0(classes[index].kind);
        // The stack access of a direct call or a return comes first.
        if !emitter.keeps_t0 && !matches!(classes[index].kind, Kind::Call | Kind::Return) {
            emitter.leave_t0();
        }
        let flags = emitter.flags;
        let (stubs, recipes) = (emitter.stubs.len(), emitter.recipes.len());
        let start = emitter.here();
        if emitter
            .instruction(index, insn, &classes[index], flow.need(index))
            .is_ok()
        {
            emitter.follow_flags(insn, &classes[index]);
            emitter.follow_direction(classes[index].kind);
            if plain(&classes[index]) && classes[index].faults {
                emitter.note_x87(insn);
                emitter.note_candidate(index, insn);
            }
        } else {
            // Forms are refused before anything is emitted for them.
            debug_assert_eq!(start, emitter.here(), "half emitted: {insn}");
            helpers |= 1 << index;
            emitter.flags = flags;
            emitter.stubs.truncate(stubs);
            emitter.recipes.truncate(recipes);
            emitter.stashed = None;
            emitter.crossing_store = Crossing::Never;
            emitter.settle_stores();
            emitter.settle_stack();
            emitter.helper(index);
        }
        emitter.follow_call(classes[index].kind, insn);
    }
    emitter.settle_stores();
    emitter.settle_stack();
    // Behind a block that ends without a jump comes the next instruction.
    let last = insns[insns.len() - 1];
    let ends = classes[insns.len() - 1].kind;
    emitter.insn_starts.push(emitter.here());
    if !matches!(
        ends,
        Kind::Jump
            | Kind::Branch
            | Kind::CountBranch
            | Kind::Call
            | Kind::Return
            | Kind::JumpIndirect
            | Kind::CallIndirect
            | Kind::SystemCall
            | Kind::SoftwareInterrupt
            | Kind::SystemReturn
            | Kind::InterruptReturn
    ) {
        emitter.exit_to(emitter.next_offset(&last));
    }
    // Further entries, out of line.
    let (mut indirect_entry, mut return_entry, mut saving_forward) = (guarded_entry, entry, entry);
    if arriving.arrived {
        saving_forward = emitter.here();
        emitter.call_shared(target.trampolines.save_flags);
        emitter.jump(entry_label);
    } else {
        (indirect_entry, return_entry) =
            emitter.indirect_entry(guard, mapping, entry_label, arriving);
    }
    let has_inner = emitter.inner.is_some();
    let sites = std::mem::take(&mut emitter.sites);
    helpers |= emitter.unsure;
    let code = emitter.finish();
    let emitted = Emitted {
        code,
        entries: Entries {
            plain: entry,
            polling: poll_entry,
            guarded: guarded_entry,
            indirect: indirect_entry,
            returning: return_entry,
            saving: saving_entry,
            saving_forward,
            any_flags: !target.precise_flags,
        },
        exits: std::mem::take(&mut emitter.exits),
        insn_starts: std::mem::take(&mut emitter.insn_starts),
        sites,
        vectors,
        lost,
        has_inner,
        flags_away: emitter.flags_away,
        flags_lost: emitter.flags_lost,
        recipes: std::mem::take(&mut emitter.recipes),
        stashes: emitter.stashes,
        places,
        marks: emitter.ops.marks(),
    };
    workshop.needed = needed;
    if helpers & !exposes != 0 {
        workshop.take_back(emitted);
        return Err(Helpers(helpers));
    }
    Ok(emitted)
}

/// Whether instructions of a kind use T0 for nothing but memory accesses, as far as their number
/// of operands lets them.
fn keeps_t0(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Plain(_)
            | Kind::Lea
            | Kind::Nop
            | Kind::Jump
            | Kind::Branch
            | Kind::Push
            | Kind::Pop
            | Kind::Leave
            | Kind::CallInto
            | Kind::ReturnInto
            | Kind::JumpInto
            | Kind::CallIndirectInto
            | Kind::Element(_)
            | Kind::ElementPair(_)
    )
}

impl Emitter<'_> {
    fn instruction(
        &mut self,
        index: usize,
        insn: &Instruction,
        class: &Class,
        need: Need,
    ) -> Result<(), Unencodable> {
        let needed = need.before != 0;
        match class.kind {
            Kind::Plain(operand) => self.plain(index, insn, class, operand, need),
            Kind::Lea => self.address_of(insn, class),
            Kind::Nop => Ok(()),
            Kind::Push | Kind::ShortPush => self.push(index, insn, needed),
            Kind::Pop | Kind::ShortPop => self.pop(index, insn, needed),
            Kind::PopMemory => self.pop_memory(index, insn, needed),
            Kind::PushAll => self.push_all(index, insn, needed),
            Kind::PopAll => self.pop_all(index, insn, needed),
            Kind::Leave => self.leave(index, insn, needed),
            // The jumps within a trace are followed.
            Kind::Jump if index + 1 < self.rips.len() => Ok(()),
            Kind::Branch if index + 1 < self.rips.len() => self.followed_branch(index, insn),
            Kind::Jump => {
                self.within_limit(insn)?;
                self.exit_to(insn.near_branch_target());
                Ok(())
            }
            Kind::Branch => self.branch(insn),
            Kind::CountBranch => self.count_branch(index, insn),
            Kind::Call => self.call(index, insn, needed),
            Kind::Return => self.ret(index, insn),
            Kind::CallInto => self.call_into(index, insn, needed),
            Kind::ReturnInto => self.return_into(index, insn),
            Kind::JumpIndirect => self.jump_indirect(index, insn),
            Kind::CallIndirect => self.call_indirect(index, insn),
            Kind::JumpInto => self.jump_into(index, insn),
            Kind::CallIndirectInto => self.call_indirect_into(index, insn),
            Kind::Cli => {
                self.clear_interrupt_flag();
                Ok(())
            }
            Kind::Sti => self.set_interrupt_flag(index, needed),
            Kind::Direction(down) => {
                self.set_direction(down);
                Ok(())
            }
            Kind::SwapGs => {
                self.swap_gs();
                Ok(())
            }
            Kind::PushFlags => self.push_flags(index, insn),
            Kind::ReadSelector => {
                self.read_selector(insn);
                Ok(())
            }
            Kind::Helper => Err(Unencodable),
            Kind::Element(operand) => self.element(index, insn, class, operand, need),
            Kind::ElementPair(operand) => self.element_pair(index, insn, operand, need),
            Kind::Fill
            | Kind::Copy
            | Kind::Scan
            | Kind::BitString
            | Kind::ComparePair
            | Kind::Enter
            | Kind::Masked(_)
            | Kind::MaskedBytes
            | Kind::Gather
            | Kind::Translate
                if !self.target.memory_inline =>
            {
                Err(Unencodable)
            }
            Kind::Scan => self.scan(index, insn, class, need),
            Kind::Masked(operand) => self.masked(index, insn, operand, needed),
            Kind::MaskedBytes => self.masked_bytes(index, insn, needed),
            Kind::Gather => self.gather(index, insn, needed),
            Kind::Translate => self.translate_byte(index, insn, needed),
            Kind::Enter => self.enter(index, insn, needed),
            Kind::Fill => self.fill(index, insn, needed),
            Kind::Copy => self.copy(index, insn, needed),
            Kind::BitString => self.bit_string(index, insn, need),
            Kind::ComparePair => self.compare_pair(index, insn, need),
            Kind::LoadControl => self.load_control(index, insn, needed),
            Kind::Environment => match insn.mnemonic() {
                Mnemonic::Fnstenv | Mnemonic::Fnsave => self.store_environment(index, insn, needed),
                _ => self.load_environment(index, insn, needed),
            },
            Kind::Prefetch if !self.target.prefetch => Ok(()),
            Kind::Prefetch => self.prefetch(insn, needed),
            _ if !self.target.system_inline => Err(Unencodable),
            Kind::LoadSegment => self.load_segment(index, insn, needed),
            Kind::AskSelector => self.ask_selector(index, insn, needed),
            Kind::PopFlags => self.pop_flags(index, insn, needed),
            Kind::Decimal => self.decimal(insn),
            Kind::Bound => self.bound(index, insn, needed),
            Kind::LoadVectorControl => self.load_vector_control(index, insn, needed),
            Kind::FlushLine => self.flush_line(index, insn, needed),
            Kind::TimeStamp => self.time_stamp(index, insn, needed),
            Kind::SystemCall => self.system_call(index, insn),
            Kind::SoftwareInterrupt => self.software_interrupt(index, insn),
            Kind::SystemReturn => self.system_return(index),
            Kind::InterruptReturn => self.interrupt_return(index),
            Kind::ReadKeyRights => {
                self.read_key_rights(index, needed);
                Ok(())
            }
            Kind::ReadExtendedControl => {
                self.read_extended_control(index, needed);
                Ok(())
            }
            Kind::ReadProcessor => {
                self.read_processor(insn);
                Ok(())
            }
            Kind::UserPages(open) => self.user_pages(index, open),
            Kind::ReadControl => {
                self.read_control(insn);
                Ok(())
            }
            Kind::ReadBase => self.read_base(index, insn, needed),
            Kind::WriteBase => self.write_base(index, insn, needed),
        }
    }

    /// Has the interpreter execute an instruction. Afterwards the flags are in both places.
    fn helper(&mut self, index: usize) {
        let record = self.record(UpcallKind::Interpret, index);
        self.upcall(record);
        // It may have changed what the groups' checks saw.
        self.established = self.hoisted;
        self.near = None;
        self.forward = false;
        self.flags = FlagsPlace::BOTH;
    }

    /// Emits one plain instruction on its own, its memory operand replaced by the bounce
    /// buffer: what the interpreter runs for instructions it has no portable form of.
    /// Ends by leaving.
    pub fn alone(mut self, insn: &Instruction, class: &Class) -> Result<[Vec<u8>; 2], Unencodable> {
        let Some(operand) = class.on_host() else {
            return Err(Unencodable);
        };
        self.alone_plain(insn, class, operand)?;
        self.save_flags();
        self.flags.host = false;
        let record = self.record(UpcallKind::Alone, 0);
        self.upcall(record);
        Ok(self.finish())
    }
}
