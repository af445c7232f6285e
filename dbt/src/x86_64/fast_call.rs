//! The instructions of a kernel's entries and exits in line: SYSCALL, SYSRETQ, STAC, CLAC, RDTSC,
//! control registers and segment bases. Whatever is unusual about their operands or the
//! processor's state is the interpreter's, before anything has changed.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Instruction, Mnemonic, Register};

use super::emitter::{Emitter, Unencodable};
use super::registers::{T0, T1, T2, number};
use crate::guest::flags::{AC, CR4_OSXSAVE, CR4_PKE, EFER_SCE, IOPL, RF, SYSTEM, TF};
use crate::guest::{CpuModel, Feature, Mode, Register as Guest, Segment, SegmentIndex};
use crate::run::{UpcallKind, at};

/// Bit 2 of byte 0 of CR4.
const TSD_IN_BYTE_0: i8 = 1 << 2;
/// CR4.FSGSBASE and RFLAGS.AC in byte 2 of their registers.
const FSGSBASE_IN_BYTE_2: i8 = 1;
const AC_IN_BYTE_2: i8 = 1 << 2;
/// CR4.OSXSAVE and CR4.PKE there.
const OSXSAVE_IN_BYTE_2: i8 = 1 << 2;
const PKE_IN_BYTE_2: i8 = 1 << 6;
/// The flags that SYSRET loads from R11 (SDM volume 2, SYSRET).
const RETURNED: i32 = 0x3c_7fd7;

/// The upper half of a segment register as SYSCALL and SYSRET load it, less the selector.
pub(super) fn flat_upper(kind: u16, level: u16) -> u64 {
    let attributes = kind
        | level << 5
        | Segment::PRESENT
        | Segment::NOT_SYSTEM
        | Segment::WRITABLE
        | Segment::ACCESSED
        | Segment::GRANULAR;
    u64::from(attributes) << 48 | u64::from(u32::MAX)
}

impl Emitter<'_> {
    /// A way out to the interpreter, which executes the instruction from its beginning.
    pub(super) fn interpret_instead(&mut self, index: usize) -> dynasmrt::DynamicLabel {
        let record = self.record(UpcallKind::Interpret, index);
        self.stub(None, record)
    }

    /// RDTSC and RDTSCP: from the host's counter while the line between it and the machine's
    /// holds.
    pub(super) fn time_stamp(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        if self.target.counted {
            // There time is a function of executed instructions.
            return Err(Unencodable);
        }
        self.spoil_flags_and(1 << Guest::RAX | 1 << Guest::RDX, needed);
        let instead = self.interpret_instead(index);
        if !self.target.mode.has(Mode::RING0) {
            dynasm!(self.ops
                ; .arch x64
                ; gs test BYTE [at::CR4], TSD_IN_BYTE_0
                ; jnz =>instead
            );
        }
        // What the interpreter would do instead overwrites RAX and RDX, too.
        dynasm!(self.ops
            ; .arch x64
            ; rdtsc
            ; shl rdx, 32
            ; or rax, rdx
            ; gs sub rax, [at::TIME_HOST]
            ; gs cmp rax, [at::TIME_SPAN]
            ; jae =>instead
            ; gs imul rax, [at::TIME_RATE]
            ; shr rax, 32
            ; gs add rax, [at::TIME_MACHINE]
            ; gs add rax, [at::TSC_OFFSET]
            ; mov rdx, rax
            ; shr rdx, 32
            ; mov eax, eax
        );
        if insn.mnemonic() == Mnemonic::Rdtscp {
            dynasm!(self.ops ; .arch x64 ; gs mov ecx, [at::TSC_AUX]);
        }
        Ok(())
    }

    /// STAC and CLAC: the next instruction is in a block of the other mode. The flags stay.
    pub(super) fn user_pages(&mut self, index: usize, open: bool) -> Result<(), Unencodable> {
        let mode = self.target.mode.with_user_pages(open);
        let last = index + 1 == self.rips.len();
        if !self.target.bmi2 || (!last && mode != self.target.mode) {
            return Err(Unencodable);
        }
        // AC goes to bit 31 and is shifted out; the new one comes in at bit 0, and all go back.
        const { assert!(AC == 1 << 18) };
        dynasm!(self.ops
            ; .arch x64
            ; gs mov edi, [at::SYSTEM_FLAGS]
            ; rorx edi, edi, 19
        );
        if open {
            dynasm!(self.ops ; .arch x64 ; lea edi, [rdi + rdi + 1]);
        } else {
            dynasm!(self.ops ; .arch x64 ; lea edi, [rdi + rdi]);
        }
        dynasm!(self.ops
            ; .arch x64
            ; rorx edi, edi, 14
            ; gs mov [at::SYSTEM_FLAGS], edi
        );
        if mode != self.target.mode {
            // What returns predict is of the mode that ends here.
            dynasm!(self.ops
                ; .arch x64
                ; gs mov DWORD [at::MODE], mode.0 as i32
                ; gs mov rsp, [at::RETURN_TOP]
            );
        }
        Ok(())
    }

    /// With RIP in T0: finds it in the jump cache of the mode in which the instruction arrives, and
    /// keeps where that is in host code: where it is not known, the code that asks for it.
    pub(super) fn look_up_far_jump(&mut self, cache: usize) {
        let back = self.ops.new_dynamic_label();
        let miss = self.unknown(Some(back), None);
        self.look_up_jump_in(cache, miss);
        let host = at::jumps(cache) + 8;
        dynasm!(self.ops ; .arch x64 ; gs mov rsi, [rdi + host]);
        self.mark_jumps(cache);
        dynasm!(self.ops ; .arch x64 ; =>back ; gs mov [at::SCRATCH], rsi);
    }

    /// Loads the arithmetic flags with T1. Uses T0 and T2.
    pub(super) fn load_arithmetic_flags(&mut self) {
        dynasm!(self.ops
            ; .arch x64
            ; mov r8d, edi
            ; shl r8d, 8
            ; mov esi, edi
            ; shr esi, 11
            ; and esi, 1
            ; and r8d, 0xd500
            ; or esi, r8d
            ; gs mov [at::SAVED_FLAGS], esi
        );
    }

    /// Loads all flags with T1.
    pub(super) fn load_flags(&mut self) {
        const KEPT: i32 = SYSTEM as i32;
        self.load_arithmetic_flags();
        dynasm!(self.ops
            ; .arch x64
            ; mov r8d, edi
            ; shr r8d, 9
            ; mov esi, r8d
            ; and r8d, 1
            ; gs mov [at::INTERRUPT_FLAG], r8b
            ; shr esi, 1
            ; and esi, 1
            ; gs mov [at::DIRECTION_FLAG], sil
            ; and edi, KEPT
            ; gs mov [at::SYSTEM_FLAGS], edi
        );
    }

    /// Loads CS and SS with flat segments; the selectors are in T1 and T0.
    pub(super) fn load_flat(&mut self, level: u16) {
        for (segment, from, upper) in [
            (
                SegmentIndex::Cs,
                7u8,
                flat_upper(Segment::CODE | Segment::LONG, level),
            ),
            (SegmentIndex::Ss, 6u8, flat_upper(Segment::BIG, level)),
        ] {
            let (base, limit) = (
                at::segment_base(segment as usize),
                at::segment_limit(segment as usize),
            );
            dynasm!(self.ops
                ; .arch x64
                ; mov r8, QWORD upper as i64
                ; shl Rq(from), 32
                ; or Rq(from), r8
                ; gs mov QWORD [base], 0
                ; gs mov [limit], Rq(from)
            );
        }
    }

    pub(super) fn arrive(&mut self, mode: Mode) {
        dynasm!(self.ops
            ; .arch x64
            ; gs mov DWORD [at::MODE], mode.0 as i32
            ; gs mov rsp, [at::RETURN_TOP]
            ; gs jmp QWORD [at::SCRATCH]
        );
    }

    /// SYSCALL of 64-bit code at CPL 3, where AC ends up clear if it matters.
    pub(super) fn system_call(
        &mut self,
        index: usize,
        insn: &Instruction,
    ) -> Result<(), Unencodable> {
        let cache = self.target.far_jump_cache.ok_or(Unencodable)?;
        const { assert!(EFER_SCE == 1) };
        self.flags_to_saved();
        let instead = self.interpret_instead(index);
        dynasm!(self.ops
            ; .arch x64
            ; gs test BYTE [at::EFER], EFER_SCE as i8
            ; jz =>instead
        );
        if self.target.mode.has(Mode::SMAP) {
            dynasm!(self.ops
                ; .arch x64
                ; gs test BYTE [at::FMASK + 2], AC_IN_BYTE_2
                ; jz =>instead
            );
        }
        dynasm!(self.ops ; .arch x64 ; gs mov rsi, [at::LSTAR]);
        self.look_up_far_jump(cache);
        self.load_code_address(Register::RCX, insn.next_ip());
        self.flags_image(!RF);
        dynasm!(self.ops
            ; .arch x64
            ; gs mov [at::gpr(11)], rdi
            ; gs mov r8d, [at::FMASK]
            ; not r8d
            ; and edi, r8d
        );
        self.load_flags();
        dynasm!(self.ops
            ; .arch x64
            ; gs movzx edi, WORD [at::STAR + 4]
            ; and edi, 0xfffc
            ; lea esi, [rdi + 8]
            ; movzx esi, si
        );
        self.load_flat(0);
        self.arrive(self.target.mode.after_syscall());
        Ok(())
    }

    /// SYSRETQ to a canonical address, with nothing in R11 that would call for another mode, and
    /// no interrupt that waits for IF.
    pub(super) fn system_return(&mut self, index: usize) -> Result<(), Unencodable> {
        let cache = self.target.far_jump_cache.ok_or(Unencodable)?;
        self.flags_to_saved();
        let instead = self.interpret_instead(index);
        let unusual = (TF | AC | IOPL) as i32;
        dynasm!(self.ops
            ; .arch x64
            ; gs test BYTE [at::EFER], EFER_SCE as i8
            ; jz =>instead
            ; gs cmp BYTE [at::INTERRUPT_WAITING], 0
            ; jne =>instead
            ; gs test DWORD [at::gpr(11)], unusual
            ; jnz =>instead
            ; mov rsi, rcx
        );
        self.require_canonical(T0, T1, instead);
        const { assert!(Guest::RCX == 1) };
        self.look_up_far_jump(cache);
        dynasm!(self.ops
            ; .arch x64
            ; gs mov edi, [at::gpr(11)]
            ; and edi, RETURNED
        );
        self.load_flags();
        dynasm!(self.ops
            ; .arch x64
            ; gs movzx esi, WORD [at::STAR + 6]
            ; lea edi, [rsi + 16]
            ; or edi, 3
            ; movzx edi, di
            ; add esi, 8
            ; or esi, 3
            ; movzx esi, si
        );
        self.load_flat(3);
        self.arrive(self.target.mode.after_sysret());
        Ok(())
    }

    /// MOV from a control register.
    pub(super) fn read_control(&mut self, insn: &Instruction) {
        let register = match insn.op1_register().number() {
            0 => at::CR0,
            2 => at::CR2,
            3 => at::CR3,
            _ => at::CR4,
        };
        dynasm!(self.ops ; .arch x64 ; gs mov rdi, [register]);
        self.store_guest(number(insn.op0_register()), T1);
    }

    /// RDPKRU, where the kernel has switched protection keys on.
    pub(super) fn read_key_rights(&mut self, index: usize, needed: bool) {
        const { assert!(CR4_PKE == 1 << 22) };
        self.spoil_flags_and(1 << Guest::RAX | 1 << Guest::RDX, needed);
        let instead = self.interpret_instead(index);
        dynasm!(self.ops
            ; .arch x64
            ; gs test BYTE [at::CR4 + 2], PKE_IN_BYTE_2
            ; jz =>instead
            ; test ecx, ecx
            ; jnz =>instead
            ; gs mov eax, [at::PKRU]
            ; xor edx, edx
        );
    }

    /// XGETBV of XCR0, or of what of it is in use, which is all of it; where the kernel has switched XSAVE on.
    pub(super) fn read_extended_control(&mut self, index: usize, needed: bool) {
        const { assert!(CR4_OSXSAVE == 1 << 18) };
        let (byte, bit) = CpuModel::place_of(Feature::Xgetbv1);
        let whole = self.ops.new_dynamic_label();
        self.spoil_flags_and(1 << Guest::RAX | 1 << Guest::RDX, needed);
        let instead = self.interpret_instead(index);
        dynasm!(self.ops
            ; .arch x64
            ; gs test BYTE [at::CR4 + 2], OSXSAVE_IN_BYTE_2
            ; jz =>instead
            ; cmp ecx, 1
            ; jb =>whole
            ; ja =>instead
            ; gs test BYTE [at::MODEL + byte as i32], bit as i8
            ; jz =>instead
            ; =>whole
            ; gs mov eax, [at::XCR0]
            ; gs mov edx, [at::XCR0 + 4]
        );
    }

    /// RDPID.
    pub(super) fn read_processor(&mut self, insn: &Instruction) {
        dynasm!(self.ops ; .arch x64 ; gs mov edi, [at::TSC_AUX]);
        self.store_guest(number(insn.op0_register()), T1);
    }

    /// The base that RDFSBASE and its kin name, behind a check that the kernel allows them.
    fn base_register(&mut self, index: usize, insn: &Instruction, needed: bool) -> i32 {
        self.spoil_flags(needed);
        let instead = self.interpret_instead(index);
        dynasm!(self.ops
            ; .arch x64
            ; gs test BYTE [at::CR4 + 2], FSGSBASE_IN_BYTE_2
            ; jz =>instead
        );
        let segment = match insn.mnemonic() {
            Mnemonic::Rdfsbase | Mnemonic::Wrfsbase => SegmentIndex::Fs,
            _ => SegmentIndex::Gs,
        };
        at::segment_base(segment as usize)
    }

    /// RDFSBASE and RDGSBASE.
    pub(super) fn read_base(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        let base = self.base_register(index, insn, needed);
        if insn.op0_register().is_gpr32() {
            dynasm!(self.ops ; .arch x64 ; gs mov edi, [base]);
        } else {
            dynasm!(self.ops ; .arch x64 ; gs mov rdi, [base]);
        }
        self.store_guest(number(insn.op0_register()), T1);
        Ok(())
    }

    /// WRFSBASE and WRGSBASE.
    pub(super) fn write_base(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        let base = self.base_register(index, insn, needed);
        self.load_guest(T1, number(insn.op0_register()));
        if insn.op0_register().is_gpr32() {
            dynasm!(self.ops ; .arch x64 ; mov edi, edi);
        } else {
            let instead = self.interpret_instead(index);
            self.require_canonical(T1, T2, instead);
        }
        dynasm!(self.ops ; .arch x64 ; gs mov [base], rdi);
        Ok(())
    }
}
