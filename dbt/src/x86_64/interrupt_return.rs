//! IRETQ in line: from CPL 0 to 64-bit code of the same level or of user mode, with flat segments
//! whose descriptors the GDT has. Whatever is unusual is the interpreter's, before anything has
//! changed.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};

use super::emitter::{Emitter, Unencodable};
use super::fast_call::flat_upper;
use super::registers::{T0, T1};
use crate::guest::flags::{AC, ARITHMETIC, DF, ID, IF, IOPL, NT, TF, VIF, VIP, VM};
use crate::guest::{Mode, Segment, SegmentIndex};
use crate::run::at;

/// Flags that call for the interpreter: they ask for another mode, or nobody sets them. RF, which
/// faults leave on the stack, would last until the next instruction, and only breakpoints look at it.
const UNUSUAL: i32 = (TF | IOPL | NT | VM | AC | VIF | VIP) as i32;
/// The flags that are loaded besides.
const LOADED: i32 = (ARITHMETIC | IF | DF | ID) as i32;
/// NT in byte 1 of the flags.
const NT_IN_BYTE_1: i8 = (NT >> 8) as i8;

/// What IRETQ pops, by the places of `exchange.frame`.
const RIP: i32 = at::FRAME;
const CS: i32 = at::FRAME + 8;
const FLAGS: i32 = at::FRAME + 16;
const RSP: i32 = at::FRAME + 24;
const SS: i32 = at::FRAME + 32;

/// The descriptor, accessed, of the flat segment that has this upper half.
pub(super) fn flat_descriptor(upper: u64) -> i64 {
    let attributes = upper >> 48;
    (attributes << 40 | 0xf << 48 | 0xffff) as i64
}

impl Emitter<'_> {
    /// Requires that the selector in T1 names this descriptor in the GDT.
    pub(super) fn require_descriptor(&mut self, descriptor: i64, instead: DynamicLabel) {
        self.look_up_descriptor(instead);
        dynasm!(self.ops
            ; .arch x64
            ; mov rdi, QWORD descriptor
            ; cmp rdi, [rsi]
            ; jne =>instead
        );
    }

    /// IRETQ.
    pub(super) fn interrupt_return(&mut self, index: usize) -> Result<(), Unencodable> {
        let mode = self.target.mode;
        let outer = self.target.far_jump_cache.ok_or(Unencodable)?;
        if mode != mode.with_user_pages(false) {
            // AC is set, which a return clears.
            return Err(Unencodable);
        }
        self.flags_to_saved();
        let instead = self.interpret_instead(index);
        dynasm!(self.ops
            ; .arch x64
            ; gs cmp BYTE [at::INTERRUPT_WAITING], 0
            ; jne =>instead
            ; gs cmp BYTE [at::NMI_MASKED], 0
            ; jne =>instead
            ; gs test BYTE [at::SYSTEM_FLAGS + 1], NT_IN_BYTE_1
            ; jnz =>instead
            ; mov rsi, r11
        );
        self.translate_linear(40, false, instead);
        // What is checked is what is loaded: nobody may change it between.
        for word in 0..5 {
            dynasm!(self.ops
                ; .arch x64
                ; mov rdi, [rsi + 8 * word]
                ; gs mov [at::FRAME + 8 * word], rdi
            );
        }
        let user = self.ops.new_dynamic_label();
        dynasm!(self.ops
            ; .arch x64
            ; gs test DWORD [FLAGS], UNUSUAL
            ; jnz =>instead
            ; gs mov rsi, [RIP]
        );
        self.require_canonical(T0, T1, instead);
        dynasm!(self.ops
            ; .arch x64
            ; gs movzx edi, WORD [CS]
            ; mov r8d, edi
            ; and r8d, 7
            ; cmp r8d, 3
            ; je =>user
            ; test r8d, r8d
            ; jnz =>instead
        );
        self.land(0, self.target.jump_cache, mode, instead);
        dynasm!(self.ops ; .arch x64 ; =>user);
        // The interpreter looks at data segments that user mode might not be allowed.
        for segment in [
            SegmentIndex::Es,
            SegmentIndex::Ds,
            SegmentIndex::Fs,
            SegmentIndex::Gs,
        ] {
            dynasm!(self.ops
                ; .arch x64
                ; gs cmp DWORD [at::selector(segment as usize)], 0
                ; jne =>instead
            );
        }
        self.land(3, outer, mode.after_sysret(), instead);
        Ok(())
    }

    /// The rest of IRETQ to a privilege level. The selector of CS, in T1, has that level and is
    /// of the GDT.
    fn land(&mut self, level: u16, cache: usize, mode: Mode, instead: DynamicLabel) {
        let code = flat_upper(Segment::CODE | Segment::LONG, level);
        let stack = flat_upper(Segment::BIG, level);
        let loaded = self.ops.new_dynamic_label();
        let checked = self.ops.new_dynamic_label();
        self.require_descriptor(flat_descriptor(code), instead);
        dynasm!(self.ops ; .arch x64 ; gs movzx edi, WORD [SS]);
        if level == 0 {
            dynasm!(self.ops ; .arch x64 ; test edi, edi ; jz =>checked);
        }
        dynasm!(self.ops
            ; .arch x64
            ; mov r8d, edi
            ; and r8d, 7
            ; cmp r8d, i32::from(level)
            ; jne =>instead
        );
        self.require_descriptor(flat_descriptor(stack), instead);
        dynasm!(self.ops ; .arch x64 ; =>checked ; gs mov rsi, [RIP]);
        self.look_up_far_jump(cache);
        dynasm!(self.ops
            ; .arch x64
            ; gs mov edi, [FLAGS]
            ; and edi, LOADED
        );
        self.load_flags();
        dynasm!(self.ops
            ; .arch x64
            ; gs mov r11, [RSP]
            ; gs movzx edi, WORD [CS]
            ; gs movzx esi, WORD [SS]
        );
        self.load_flat(level);
        if level == 0 {
            // A null SS, which interrupts of user mode leave to those that interrupt them.
            let ss = SegmentIndex::Ss as usize;
            dynasm!(self.ops
                ; .arch x64
                ; gs cmp WORD [SS], 0
                ; jne =>loaded
                ; gs mov QWORD [at::segment_limit(ss)], 0
                ; =>loaded
            );
        }
        self.arrive(mode);
    }
}
