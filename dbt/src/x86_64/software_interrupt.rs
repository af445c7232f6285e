//! INT n and INT3 in line: from CPL 3 through a 64-bit interrupt or trap gate to flat 64-bit code at CPL 0, on the
//! stack that the TSS names (SDM volume 3, 6.14). Whatever is unusual is the interpreter's, before anything has
//! changed.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Instruction, Register};
use mmu::View;

use super::emitter::{Emitter, Unencodable};
use super::fast_call::flat_upper;
use super::interrupt_return::flat_descriptor;
use super::operands::HostMemory;
use super::registers::{T0, T1, T2};
use crate::guest::flags::{AC, NT, RF, TF, VM};
use crate::guest::{Exception, Mode, Segment, SegmentIndex};
use crate::run::at;

/// Flags that a delivery clears, besides IF for an interrupt gate.
const CLEARED: i32 = (TF | NT | RF | VM) as i32;
/// The attributes of a present gate that CPL 3 may use, 64-bit, less the bit that tells a trap gate from an
/// interrupt gate.
const GATE: i32 = 0xee;
/// The gate's interrupt-stack-table index.
const STACK_TABLE: i32 = 7;
/// RSP0 in a 64-bit TSS.
const RSP0: i32 = 4;
/// What is pushed: RIP, CS, RFLAGS, RSP and SS.
const PUSHED: i32 = 40;

/// What is kept of the gate and the TSS, by the places of `exchange.frame`.
const TARGET: i32 = at::FRAME;
const SELECTOR: i32 = at::FRAME + 8;
const TRAP: i32 = at::FRAME + 16;
const STACK: i32 = at::FRAME + 24;

impl Emitter<'_> {
    /// INT n or INT3 in 64-bit code, or in flat code of compatibility mode.
    pub(super) fn software_interrupt(
        &mut self,
        index: usize,
        insn: &Instruction,
    ) -> Result<(), Unencodable> {
        let mode = self.target.mode;
        let cache = self.target.far_jump_cache.ok_or(Unencodable)?;
        let vector = match insn.op_count() {
            0 => Exception::BP,
            _ => insn.immediate8(),
        };
        // The processor reads its tables, and pushes, with a supervisor's rights.
        let view = match mode.has(Mode::SMAP) {
            true => View::Supervisor,
            false => View::SupervisorOpen,
        };
        self.flags_to_saved();
        let instead = self.interpret_instead(index);
        let entry = 16 * i32::from(vector);
        dynasm!(self.ops
            ; .arch x64
            // AC stays set, which would be another mode under SMAP.
            ; gs test DWORD [at::SYSTEM_FLAGS], AC as i32
            ; jnz =>instead
            ; gs movzx edi, WORD [at::IDTR_LIMIT]
            ; cmp edi, entry + 15
            ; jb =>instead
            ; gs mov rsi, [at::IDTR_BASE]
            ; add rsi, entry
        );
        self.translate_as(view, 16, false, instead);
        dynasm!(self.ops
            ; .arch x64
            ; mov rdi, [rsi]
            ; mov esi, [rsi + 8]
            ; mov r8, rdi
            ; shr r8, 32
            ; test r8d, STACK_TABLE
            ; jnz =>instead
            ; shr r8d, 8
            ; gs mov [TRAP], r8
            ; and r8d, 0xfe
            ; cmp r8d, GATE
            ; jne =>instead
            // The halves of the target.
            ; shl rsi, 32
            ; mov r8, rdi
            ; shr r8, 32
            ; and r8d, -0x1_0000
            ; or rsi, r8
            ; movzx r8d, di
            ; or rsi, r8
            ; gs mov [TARGET], rsi
        );
        self.require_canonical(T0, T2, instead);
        dynasm!(self.ops
            ; .arch x64
            ; shr edi, 16
            ; gs mov [SELECTOR], rdi
            ; test edi, 4
            ; jnz =>instead
        );
        let code = flat_upper(Segment::CODE | Segment::LONG, 0);
        self.require_descriptor(flat_descriptor(code), instead);
        dynasm!(self.ops ; .arch x64 ; gs mov rsi, [TARGET]);
        self.look_up_far_jump(cache);
        dynasm!(self.ops
            ; .arch x64
            ; gs cmp DWORD [at::TR_LIMIT], RSP0 + 7
            ; jb =>instead
            ; gs mov rsi, [at::TR_BASE]
            ; add rsi, RSP0
        );
        self.translate_as(view, 8, false, instead);
        dynasm!(self.ops
            ; .arch x64
            ; mov rsi, [rsi]
            ; and rsi, -16
            ; sub rsi, PUSHED
            ; gs mov [STACK], rsi
        );
        self.translate_as(view, PUSHED as u32, true, instead);
        self.push_interrupted(insn)?;
        dynasm!(self.ops
            ; .arch x64
            ; gs mov r11, [STACK]
            ; gs mov r8d, [TRAP]
            ; gs and [at::INTERRUPT_FLAG], r8b
            ; gs and DWORD [at::SYSTEM_FLAGS], !CLEARED
            ; gs mov edi, [SELECTOR]
            ; and edi, 0xfffc
            ; xor esi, esi
        );
        self.load_flat(0);
        // SS is null.
        dynasm!(self.ops
            ; .arch x64
            ; gs mov QWORD [at::segment_limit(SegmentIndex::Ss as usize)], 0
        );
        self.arrive(mode.after_interrupt());
        Ok(())
    }

    /// Stores what was interrupted where T0 points to.
    fn push_interrupted(&mut self, insn: &Instruction) -> Result<(), Unencodable> {
        self.load_code_address(Register::RDI, insn.next_ip());
        self.store_register(HostMemory::AT_T0, T1, 8)?;
        for (place, segment) in [(8, SegmentIndex::Cs), (32, SegmentIndex::Ss)] {
            dynasm!(self.ops ; .arch x64 ; gs movzx edi, WORD [at::selector(segment as usize)]);
            self.store_register(HostMemory::AT_T0.further(place), T1, 8)?;
        }
        self.flags_image(!RF);
        self.store_register(HostMemory::AT_T0.further(16), T1, 8)?;
        self.store_register(HostMemory::AT_T0.further(24), Register::R11, 8)
    }
}
