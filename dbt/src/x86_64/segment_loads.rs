//! Loads of DS, ES, FS and GS in line: of segments of data, which the GDT has, or of null selectors, and in real and
//! virtual-8086 mode of all. Whatever is unusual is the interpreter's, before anything has changed
//! (SDM volume 2, MOV; volume 3, 3.4.5 and 21.1.1).

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use mmu::View;

use super::emitter::{Emitter, Unencodable};
use super::flags::FlagsPlace;
use super::operands::Address;
use super::registers::{T0, T1, T2, number};
use crate::guest::{Mode, Register as Guest, Segment, SegmentIndex};
use crate::record::grouping::Place;
use crate::run::at;

/// What emitted code loads: expands up, accessed, present.
const KIND: u16 = Segment::PRESENT
    | Segment::NOT_SYSTEM
    | Segment::CODE
    | Segment::CONFORMING
    | Segment::ACCESSED;
/// What it has of these.
const DATA: u16 = Segment::PRESENT | Segment::NOT_SYSTEM | Segment::ACCESSED;
/// The attributes that a segment register keeps.
const KEPT: i32 = 0xf0ff;
/// The bit of a descriptor at which its attributes begin.
const ATTRIBUTES: i8 = 40;
/// The bits of its DPL.
const DPL: i8 = ATTRIBUTES + 5;
/// What LAR tells of the upper half of a descriptor.
const RIGHTS: i32 = 0x00f0_ff00;
/// ZF as LAHF leaves it.
const SAVED_ZERO: i32 = 1 << 14;
/// A descriptor's limit, granularity, base and right to write, as far as flat data has them.
const FLAT: u64 = 0x0080_0200_0000_0000 | FLAT_LIMIT;
const FLAT_LIMIT: u64 = 0x000f_0000_0000_ffff;
const FLAT_MASK: u64 = 0xff8f_02ff_ffff_ffff;

/// The segment register that an instruction loads, and the other register.
fn loaded(insn: &Instruction) -> (Register, Option<Register>) {
    let segment = match insn.mnemonic() {
        Mnemonic::Lds => Register::DS,
        Mnemonic::Les => Register::ES,
        Mnemonic::Lfs => Register::FS,
        Mnemonic::Lgs => Register::GS,
        _ => return (insn.op0_register(), None),
    };
    (segment, Some(insn.op0_register()))
}

impl Emitter<'_> {
    /// MOV or POP to DS, ES, FS or GS; LDS, LES, LFS and LGS.
    pub(super) fn load_segment(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        let mode = self.target.mode;
        // Elsewhere the mode would say something else of the segments if all were flat.
        if mode.segmented() && self.target.code.number == 0 {
            return Err(Unencodable);
        }
        let pops = insn.mnemonic() == Mnemonic::Pop;
        let (register, offset) = loaded(insn);
        if offset.is_none() && !pops && insn.op1_kind() == OpKind::Register {
            self.load_guest(T1, number(insn.op1_register()));
            dynasm!(self.ops ; .arch x64 ; movzx edi, di);
        } else {
            let (place, address) = match pops {
                true => (Place::Stack, Address::based(Guest::RSP, 0, mode)),
                false => (Place::Operand, self.operand(insn)?),
            };
            let before = offset.map_or(0, |offset| offset.size() as u32);
            let memory = self.check(index, (place, &address), before + 2, false, needed)?;
            self.put(&memory.further(before as i32).load(T1, 2));
            if before != 0 {
                self.put(&memory.load(T2, before));
                dynasm!(self.ops ; .arch x64 ; gs mov [at::FRAME], r8);
            }
        }
        let changed = if pops { Some(Register::RSP) } else { offset };
        let changed = changed.map_or(0, |register| 1 << number(register));
        self.spoil_flags_and(changed, needed);
        let instead = self.interpret_instead(index);
        if mode.has(Mode::PROTECTED) && !mode.has(Mode::VM86) {
            self.load_selector(register, instead);
        } else {
            self.load_paragraph(register, instead);
        }
        if pops {
            self.move_stack(insn.stack_pointer_increment());
        }
        if let Some(offset) = offset {
            dynasm!(self.ops ; .arch x64 ; gs mov r8, [at::FRAME]);
            self.store_part(number(offset), T2, offset.size() as u32);
        }
        Ok(())
    }

    /// LAR, LSL, VERR and VERW, where the answer is yes (SDM volume 3, 5.10).
    pub(super) fn ask_selector(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        let answers = matches!(insn.mnemonic(), Mnemonic::Lar | Mnemonic::Lsl);
        let selector = u32::from(answers);
        let address = match insn.op_kind(selector) {
            OpKind::Register => None,
            _ => Some(self.operand(insn)?),
        };
        if needed {
            self.flags_to_saved();
        }
        if let Some(address) = address {
            let memory = self.check(index, (Place::Operand, &address), 2, false, needed)?;
            self.put(&memory.load(T1, 2));
        } else {
            self.load_guest(T1, number(insn.op_register(selector)));
            dynasm!(self.ops ; .arch x64 ; movzx edi, di);
        }
        self.spoil_flags(needed);
        let instead = self.interpret_instead(index);
        dynasm!(self.ops
            ; .arch x64
            ; test edi, 4
            ; jnz =>instead
            ; gs mov [at::SCRATCH], rdi
        );
        self.look_up_descriptor(instead);
        // Of data, which conforms to nothing, with a DPL that may be seen.
        let (kind, wanted) = match insn.mnemonic() {
            Mnemonic::Verw => (Segment::WRITABLE, Segment::WRITABLE),
            _ => (0, 0),
        };
        dynasm!(self.ops
            ; .arch x64
            ; mov rdi, [rsi]
            ; mov rsi, rdi
            ; shr rsi, ATTRIBUTES
            ; mov r8d, esi
            ; and r8d, i32::from(Segment::NOT_SYSTEM | Segment::CODE | kind)
            ; cmp r8d, i32::from(Segment::NOT_SYSTEM | wanted)
            ; jne =>instead
            ; shr esi, DPL - ATTRIBUTES
            ; and esi, 3
        );
        self.require_level(instead);
        if answers {
            if insn.mnemonic() == Mnemonic::Lsl {
                self.limit_of_descriptor();
            } else {
                dynasm!(self.ops ; .arch x64 ; shr rdi, 32 ; mov esi, edi ; and esi, RIGHTS);
            }
            let size = insn.op0_register().size() as u32;
            self.store_part(number(insn.op0_register()), T0, size);
        }
        if needed {
            dynasm!(self.ops ; .arch x64 ; gs or DWORD [at::SAVED_FLAGS], SAVED_ZERO);
            self.flags = FlagsPlace::SAVED;
        } else {
            dynasm!(self.ops ; .arch x64 ; cmp esi, esi);
            self.flags = FlagsPlace::HOST;
        }
        Ok(())
    }

    /// Requires that a DPL, in T0, is that of CPL 3, or not below the RPL of the selector that is in the scratch word.
    fn require_level(&mut self, instead: DynamicLabel) {
        if self.target.mode.has(Mode::USER) {
            dynasm!(self.ops ; .arch x64 ; cmp esi, 3 ; jne =>instead);
        } else {
            dynasm!(self.ops
                ; .arch x64
                ; gs mov r8d, [at::SCRATCH]
                ; and r8d, 3
                ; cmp r8d, esi
                ; ja =>instead
            );
        }
    }

    /// Puts the limit of the descriptor in T1 into T0.
    fn limit_of_descriptor(&mut self) {
        let byte_units = self.ops.new_dynamic_label();
        dynasm!(self.ops
            ; .arch x64
            ; mov rsi, rdi
            ; shr rsi, 32
            ; and esi, 0xf_0000
            ; movzx r8d, di
            ; or esi, r8d
            ; bt rdi, 55
            ; jnc =>byte_units
            ; shl esi, 12
            ; or esi, 0xfff
            ; =>byte_units
        );
    }

    /// Loads the selector in T1 in real or virtual-8086 mode. In real mode the limit stays as it is, if the segment
    /// was present.
    fn load_paragraph(&mut self, register: Register, instead: DynamicLabel) {
        let segment = register as usize - Register::ES as usize;
        let usual = Segment::real(0).attributes;
        if self.target.mode.has(Mode::VM86) {
            let attributes = i32::from(usual | 3 << 5) << 16;
            dynasm!(self.ops
                ; .arch x64
                ; lea r8d, [rdi + attributes]
                ; mov esi, 0xffff
                ; gs mov [at::segment_limit(segment)], esi
            );
        } else {
            let kept = i32::from(Segment::BIG | Segment::GRANULAR) << 16;
            let attributes = i32::from(usual) << 16;
            dynasm!(self.ops
                ; .arch x64
                ; gs mov r8d, [at::selector(segment)]
                ; test r8d, i32::from(Segment::PRESENT) << 16
                ; jz =>instead
                ; and r8d, kept
                ; lea r8d, [r8 + rdi + attributes]
                ; gs mov esi, [at::segment_limit(segment)]
            );
        }
        dynasm!(self.ops
            ; .arch x64
            ; gs mov [at::selector(segment)], r8d
            ; shl edi, 4
            ; gs mov [at::segment_base(segment)], rdi
            ; gs mov [at::read_bound(segment)], rsi
            ; gs mov [at::write_bound(segment)], rsi
        );
    }

    /// Loads the selector in T1.
    fn load_selector(&mut self, register: Register, instead: DynamicLabel) {
        let segment = register as usize - Register::ES as usize;
        let mode = self.target.mode;
        // In 64-bit code it does not matter what these are.
        let flat = !mode.has(Mode::CODE64)
            && !mode.segmented()
            && [SegmentIndex::Es, SegmentIndex::Ds]
                .iter()
                .any(|&index| index as usize == segment);
        let upper = at::segment_limit(segment);
        let (named, written, done) = (
            self.ops.new_dynamic_label(),
            self.ops.new_dynamic_label(),
            self.ops.new_dynamic_label(),
        );
        dynasm!(self.ops ; .arch x64 ; gs mov [at::SCRATCH], rdi);
        // Null, the others would not be flat any more.
        if !flat {
            dynasm!(self.ops
                ; .arch x64
                ; test edi, 0xfffc
                ; jnz =>named
                ; shl rdi, 32
                ; gs mov QWORD [at::segment_base(segment)], 0
                ; gs mov [upper], rdi
                ; gs mov QWORD [at::read_bound(segment)], -1
                ; gs mov QWORD [at::write_bound(segment)], -1
                ; jmp =>done
                ; =>named
            );
        }
        dynasm!(self.ops ; .arch x64 ; test edi, 4 ; jnz =>instead);
        self.look_up_descriptor(instead);
        dynasm!(self.ops
            ; .arch x64
            ; mov rdi, [rsi]
            ; mov rsi, rdi
            ; shr rsi, ATTRIBUTES
            ; and esi, i32::from(KIND)
            ; cmp esi, i32::from(DATA)
            ; jne =>instead
            ; mov rsi, rdi
            ; shr rsi, DPL
            ; and esi, 3
        );
        self.require_level(instead);
        if flat {
            dynasm!(self.ops
                ; .arch x64
                ; mov rsi, QWORD FLAT_MASK as i64
                ; and rsi, rdi
                ; mov r8, QWORD FLAT as i64
                ; cmp rsi, r8
                ; jne =>instead
            );
        }
        dynasm!(self.ops
            ; .arch x64
            ; mov rsi, rdi
            ; shr rsi, 16
            ; and esi, 0xff_ffff
            ; mov r8, rdi
            ; shr r8, 56
            ; shl r8d, 24
            ; or esi, r8d
            ; gs mov [at::segment_base(segment)], rsi
        );
        self.limit_of_descriptor();
        dynasm!(self.ops
            ; .arch x64
            ; gs mov [upper], esi
            ; gs mov [at::read_bound(segment)], rsi
            ; shr rdi, ATTRIBUTES
            ; and edi, KEPT
            ; test edi, i32::from(Segment::WRITABLE)
            ; jnz =>written
            ; mov rsi, -1
            ; =>written
            ; gs mov [at::write_bound(segment)], rsi
            ; shl edi, 16
            ; gs mov r8d, [at::SCRATCH]
            ; or edi, r8d
            ; gs mov [at::selector(segment)], edi
            ; =>done
        );
    }

    /// Puts the host address of the descriptor of the selector in T1, which is of the GDT, into T0, if that has it and
    /// the selector is not null. The processor reads it with a supervisor's rights, and under SMAP without those to user
    /// pages.
    pub(super) fn look_up_descriptor(&mut self, instead: DynamicLabel) {
        dynasm!(self.ops
            ; .arch x64
            ; mov esi, edi
            ; or esi, 7
            ; gs movzx r8d, WORD [at::GDTR_LIMIT]
            ; cmp esi, r8d
            ; ja =>instead
            ; sub esi, 7
            ; jz =>instead
        );
        let mode = self.target.mode;
        if mode.has(Mode::LONG) {
            dynasm!(self.ops ; .arch x64 ; gs add rsi, [at::GDTR_BASE]);
        } else {
            dynasm!(self.ops ; .arch x64 ; gs add esi, [at::GDTR_BASE]);
        }
        let view = match mode.has(Mode::SMAP) {
            true => View::Supervisor,
            false => View::SupervisorOpen,
        };
        self.translate_as(view, 8, false, instead);
    }
}
