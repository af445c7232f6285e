//! One block from decoded instructions to host code.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{CpuidFeature, Instruction, Mnemonic};

use super::emitter::{Emitter, ExitSite, FlagsPlace, Stub, Target, Unencodable, Workshop};
use super::plain::Need;
use crate::guest::Mode;
use crate::record::classify::{Class, Classifier, Kind};
use crate::record::{grouping, liveness};
use crate::run::{Upcall, UpcallKind, at};

/// Host code of one block. Offsets are from its first byte.
pub struct Emitted {
    /// The bytes.
    pub code: Vec<u8>,
    /// Entry for jumps within the page and forward: nothing to confirm.
    pub entry: u32,
    /// Entry for backward jumps within the page: polls for exit requests.
    pub poll_entry: u32,
    /// Entry for jumps from other pages: confirms that the page is still mapped here.
    pub guarded_entry: u32,
    /// Entry for indirect jumps: flags are saved; confirms and polls.
    pub indirect_entry: u32,
    /// Jumps to known addresses.
    pub exits: Vec<ExitSite>,
    /// Where each instruction's code starts.
    pub insn_starts: Vec<u32>,
    /// How many checks predict.
    pub sites: u32,
    /// The block works on vector registers: they have to be live where it resumes.
    pub vectors: bool,
    /// Arithmetic flags, at their EFLAGS positions, that each instruction finds as they are;
    /// the others are overwritten before anything reads them, and may be lost.
    pub live_flags: Vec<u16>,
    /// Bit i: instruction i finds its flags in `saved_flags` only.
    pub flags_away: u64,
}

/// Whether blocks of this mode can be translated at all.
pub fn translatable(mode: Mode) -> bool {
    let wide = mode.has(Mode::CODE64)
        || mode.has(Mode::CODE32 | Mode::FLAT | Mode::PROTECTED | Mode::WIDE_STACK);
    wide && mode.0 & (Mode::STEPPED | Mode::ALIGNED | Mode::VM86) == 0
}

/// Translates the instructions of a block.
pub fn emit(
    workshop: &mut Workshop,
    classifier: &mut Classifier,
    insns: &[Instruction],
    rip: u64,
    target: Target<'_>,
) -> Emitted {
    let mode = target.mode;
    let user = mode.has(Mode::USER);
    let guard = at::guard(user, rip >> 12);
    let mapping = target.mapping as i32;
    let second = target
        .second_mapping
        .map(|mapping| (at::guard(user, (rip >> 12).wrapping_add(1)), mapping as i32));
    let counted = target.counted;
    let mut classes = std::mem::take(&mut workshop.classes);
    classes.clear();
    classes.extend(insns.iter().map(|insn| classifier.classify(insn, mode)));
    let whole: Vec<bool> = classes
        .iter()
        .map(|class| {
            matches!(
                class.kind,
                Kind::Helper | Kind::Branch | Kind::SystemCall | Kind::SystemReturn
            )
        })
        .collect();
    let needed = liveness::needed_before(insns, &whole, liveness::ALL);
    let live = needed[0] != 0;
    let grouping = target.grouping;
    let mut emitter = Emitter::new(target, workshop);
    if grouping {
        emitter.groups = grouping::find(insns, &classes, mode);
    }
    emitter.insn_starts.reserve_exact(insns.len() + 1);
    emitter.rips.extend(insns.iter().map(Instruction::ip));

    // Entry for jumps from other pages, then for backward jumps, then the block itself.
    let guarded_entry = emitter.here();
    emitter.entry_check(live, UpcallKind::Leave, |emitter, label| {
        dynasm!(emitter.ops ; .arch x64 ; gs cmp DWORD [guard], mapping ; jne =>label);
    });
    let poll_entry = emitter.here();
    emitter.entry_check(live, UpcallKind::Leave, |emitter, label| {
        dynasm!(emitter.ops ; .arch x64 ; gs cmp DWORD [at::EXIT_REQUEST], 0 ; jne =>label);
    });
    let entry = emitter.here();
    let entry_label = emitter.ops.new_dynamic_label();
    dynasm!(emitter.ops ; .arch x64 ; =>entry_label);
    // Even a jump within the page cannot vouch for the page behind it.
    if let Some((guard, mapping)) = second {
        emitter.entry_check(live, UpcallKind::Leave, |emitter, label| {
            dynasm!(emitter.ops ; .arch x64 ; gs cmp DWORD [guard], mapping ; jne =>label);
        });
    }
    if counted {
        emitter.count(insns.len() as i32, live);
    }
    // What a helper executes finds them in memory.
    let plain = |class: &Class| matches!(class.kind, Kind::Plain(_));
    let vectors =
        (insns.iter().zip(classes.iter())).any(|(insn, class)| plain(class) && uses_vectors(insn));
    if vectors {
        emitter.bring_vectors(live);
    }
    emitter.flags = FlagsPlace {
        host: true,
        saved: false,
    };
    for (index, insn) in insns.iter().enumerate() {
        emitter.insn_starts.push(emitter.here());
        let need = Need {
            before: needed[index],
            after: needed.get(index + 1).copied().unwrap_or(liveness::ALL),
        };
        let flags = emitter.flags;
        let stubs = emitter.stubs.len();
        let established = emitter.established;
        let start = emitter.here();
        if emitter
            .instruction(index, insn, &classes[index], need)
            .is_err()
        {
            // Forms are refused before anything is emitted for them.
            debug_assert_eq!(start, emitter.here(), "half emitted: {insn}");
            emitter.flags = flags;
            emitter.established = established;
            emitter.stubs.truncate(stubs);
            emitter.helper(index);
        }
    }
    // Behind a block that ends without a jump comes the next instruction.
    let last = insns[insns.len() - 1];
    let ends = classes[insns.len() - 1].kind;
    emitter.insn_starts.push(emitter.here());
    if !matches!(
        ends,
        Kind::Jump
            | Kind::Branch
            | Kind::Call
            | Kind::Return
            | Kind::JumpIndirect
            | Kind::CallIndirect
            | Kind::SystemCall
            | Kind::SystemReturn
    ) {
        emitter.restore_flags();
        emitter.direct_exit(last.next_ip(), None);
    }
    // Entry for indirect jumps, out of line.
    let indirect_entry = if live {
        emitter.indirect_entry(guard, mapping, entry_label)
    } else {
        // Flags that nothing reads need not be brought back.
        guarded_entry
    };
    let sites = emitter.sites;
    let (code, exits, insn_starts, flags_away) = emitter.finish();
    workshop.classes = classes;
    let live_flags = needed
        .iter()
        .map(|&flags| liveness::at_positions(flags))
        .collect();
    Emitted {
        code,
        entry,
        poll_entry,
        guarded_entry,
        indirect_entry,
        exits,
        insn_starts,
        sites,
        vectors,
        live_flags,
        flags_away,
    }
}

/// Whether an instruction may touch vector registers or MXCSR (which conversions to MMX
/// registers do too). The few of the SSE extensions that touch neither are common in kernels.
fn uses_vectors(insn: &Instruction) -> bool {
    use CpuidFeature as F;
    let extension = insn.cpuid_features().iter().any(|feature| {
        !matches!(
            feature,
            F::INTEL8086
                | F::INTEL186
                | F::INTEL286
                | F::INTEL386
                | F::INTEL486
                | F::X64
                | F::CMOV
                | F::FPU
                | F::FPU287
                | F::FPU387
                | F::MMX
                | F::POPCNT
                | F::LZCNT
                | F::BMI1
                | F::BMI2
                | F::ADX
                | F::MOVBE
                | F::MULTIBYTENOP
        )
    });
    extension
        && !matches!(
            insn.mnemonic(),
            Mnemonic::Lfence
                | Mnemonic::Mfence
                | Mnemonic::Sfence
                | Mnemonic::Movnti
                | Mnemonic::Pause
                | Mnemonic::Swapgs
                | Mnemonic::Endbr64
                | Mnemonic::Endbr32
        )
}

impl Emitter<'_> {
    /// Makes sure that the guest's vector registers are in the host's.
    fn bring_vectors(&mut self, live: bool) {
        self.flags = FlagsPlace {
            host: true,
            saved: false,
        };
        self.spoil_flags(live);
        let label = self.ops.new_dynamic_label();
        let back = self.ops.new_dynamic_label();
        self.stubs.push(Stub::LoadVectors { label, back });
        dynasm!(self.ops
            ; .arch x64
            ; gs cmp BYTE [at::VECTORS_LIVE], 0
            ; je =>label
            ; =>back
        );
        self.restore_flags();
    }

    /// The entry for indirect jumps to a block that needs the flags, which are in their saved
    /// place.
    fn indirect_entry(&mut self, guard: i32, mapping: i32, entry: dynasmrt::DynamicLabel) -> u32 {
        let start = self.here();
        let record = {
            let mut record = self.record(UpcallKind::Leave, 0);
            record.flags_saved = 1;
            record
        };
        let leave = self.leave_stub(record);
        dynasm!(self.ops
            ; .arch x64
            ; gs cmp DWORD [guard], mapping
            ; jne =>leave
            ; gs cmp DWORD [at::EXIT_REQUEST], 0
            ; jne =>leave
        );
        self.flags = FlagsPlace {
            host: false,
            saved: true,
        };
        self.restore_flags();
        dynasm!(self.ops ; .arch x64 ; jmp =>entry);
        start
    }

    /// A compare at an entry that may leave the block before it begins.
    fn entry_check(
        &mut self,
        live: bool,
        kind: UpcallKind,
        compare: impl FnOnce(&mut Self, dynasmrt::DynamicLabel),
    ) {
        self.flags = FlagsPlace {
            host: true,
            saved: false,
        };
        self.spoil_flags(live);
        let record = self.record(kind, 0);
        let label = self.leave_stub(record);
        compare(self, label);
        self.restore_flags();
    }

    /// The stub that leaves before the block begins, made once for each place of the flags.
    fn leave_stub(&mut self, record: Upcall) -> dynasmrt::DynamicLabel {
        let known = self.stubs.iter().find_map(|stub| match stub {
            Stub::Upcall {
                label,
                record: other,
                ..
            } if other.kind == record.kind && other.flags_saved == record.flags_saved => {
                Some(*label)
            }
            _ => None,
        });
        known.unwrap_or_else(|| self.stub(None, record))
    }

    /// Counts the block's instructions in advance; leaves if the budget does not cover them.
    fn count(&mut self, count: i32, live: bool) {
        self.flags = FlagsPlace {
            host: true,
            saved: false,
        };
        self.spoil_flags(live);
        let record = self.record(UpcallKind::Leave, 0);
        let label = self.ops.new_dynamic_label();
        self.stubs.push(Stub::GiveBack {
            label,
            count,
            record,
        });
        dynasm!(self.ops
            ; .arch x64
            ; gs sub QWORD [at::BUDGET], count
            ; js =>label
        );
        self.restore_flags();
    }

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
            Kind::Push => self.push(index, insn, needed),
            Kind::Pop => self.pop(index, insn, needed),
            Kind::Leave => self.leave(index, needed),
            // The jumps within a trace are followed.
            Kind::Jump if index + 1 < self.rips.len() => Ok(()),
            Kind::Branch if index + 1 < self.rips.len() => {
                self.followed_branch(index, insn);
                Ok(())
            }
            Kind::Jump => {
                self.restore_flags();
                self.direct_exit(insn.near_branch_target(), None);
                Ok(())
            }
            Kind::Branch => {
                self.branch(insn);
                Ok(())
            }
            Kind::Call => self.call(index, insn, needed),
            Kind::Return => self.ret(index, insn),
            Kind::JumpIndirect => self.jump_indirect(index, insn),
            Kind::CallIndirect => self.call_indirect(index, insn),
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
            Kind::PushFlags => self.push_flags(index),
            Kind::ReadSelector => {
                self.read_selector(insn);
                Ok(())
            }
            Kind::Helper => Err(Unencodable),
            _ if !self.target.system_inline => Err(Unencodable),
            Kind::TimeStamp => self.time_stamp(index, insn, needed),
            Kind::SystemCall => self.system_call(index, insn),
            Kind::SystemReturn => self.system_return(index),
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
        self.established = 0;
        self.flags = FlagsPlace {
            host: true,
            saved: true,
        };
    }

    /// Emits one plain instruction on its own, its memory operand replaced by the bounce
    /// buffer: what the interpreter runs for instructions it has no portable form of.
    /// Ends by leaving.
    pub fn alone(mut self, insn: &Instruction, class: &Class) -> Result<Vec<u8>, Unencodable> {
        let Kind::Plain(operand) = class.kind else {
            return Err(Unencodable);
        };
        self.alone_plain(insn, class, operand)?;
        self.save_flags();
        self.flags.host = false;
        let record = self.record(UpcallKind::Alone, 0);
        self.upcall(record);
        Ok(self.finish().0)
    }
}
