//! REP STOS and REP MOVS in line: page by page, by vector registers or with the host's own
//! instructions, where the TLB has both pages and DF is clear.
//!
//! Between two pages the registers are as the guest's processor would have them, so whatever is
//! unusual there (a miss, an element across pages, a request to stop, overlapping operands) is left
//! to the interpreter, which goes on from those.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Code, Instruction, MemoryOperand, OpKind, Register};
use mmu::PAGE_SIZE;

use super::bulk;
use super::emitter::{Emitter, Unencodable};
use super::flags::{FlagsPlace, save_eflags};
use super::operands::HostMemory;
use super::plain::Need;
use super::registers::{T0, T1, T2, number, pinned, sized};
use crate::cache::CodeOffset;
use crate::guest::{Mode, Register as Guest};
use crate::interpret::view;
use crate::record::classify::Class;
use crate::record::elements;
use crate::run::at;

const PAGE: i32 = PAGE_SIZE as i32;

/// Bytes up to which vector registers are faster than the host's own string instructions.
const FEW: i32 = 2048;

/// Bytes of the code that goes on with the next page.
const NEXT_PAGE: u8 = 38;

/// Where a string instruction goes.
struct Ways {
    /// To the interpreter, for what is left.
    instead: DynamicLabel,
    /// To the next page.
    again: DynamicLabel,
    /// To the next instruction.
    done: DynamicLabel,
}

impl Emitter<'_> {
    /// The beginning of a string instruction that goes forward and has something to do; it uses these index registers.
    fn begin_string(&mut self, index: usize, registers: &[u8]) -> Ways {
        let instead = self.interpret_instead(index);
        let again = self.ops.new_dynamic_label();
        let done = self.ops.new_dynamic_label();
        if !self.forward {
            dynasm!(self.ops
                ; .arch x64
                ; gs cmp BYTE [at::DIRECTION_FLAG], 0
                ; jne =>instead
            );
        }
        if !self.target.mode.has(Mode::CODE64) {
            // What 64-bit code left above the registers' 32 bits is not theirs.
            dynasm!(self.ops ; .arch x64 ; mov r8, rcx);
            for &register in registers {
                dynasm!(self.ops ; .arch x64 ; or r8, Rq(register));
            }
            dynasm!(self.ops ; .arch x64 ; shr r8, 32 ; jnz =>instead);
        }
        dynasm!(self.ops
            ; .arch x64
            ; test rcx, rcx
            ; jz =>done
            ; =>again
        );
        Ways {
            instead,
            again,
            done,
        }
    }

    /// Makes a scratch register the host address that a guest index register leads to, by way of T1; its offset in the
    /// page goes to T2. An element that crosses pages counts as a miss.
    fn lead_to_element(
        &mut self,
        into: Register,
        index: u8,
        (shift, right): (i8, i32),
        miss: DynamicLabel,
    ) {
        let tlb = at::tlb(view(self.target.mode));
        let (addend, into) = (tlb + at::ADDEND, number(into) as u8);
        self.address_to_compare(index, 0);
        self.tlb_index(T2);
        self.compare_tag(tlb + right, PAGE - (1 << shift), miss);
        dynasm!(self.ops
            ; .arch x64
            ; gs mov Rq(into), [rdi + addend]
            ; add Rq(into), Rq(index)
        );
    }

    /// Turns the larger of the operands' offsets in their pages, in T2, into elements to work on:
    /// as many as fit, and no more than RCX says.
    fn elements(&mut self, shift: i8) {
        dynasm!(self.ops
            ; .arch x64
            ; neg r8
            ; add r8, PAGE
        );
        if shift != 0 {
            dynasm!(self.ops ; .arch x64 ; shr r8, shift);
        }
        dynasm!(self.ops
            ; .arch x64
            ; cmp r8, rcx
            ; cmova r8, rcx
        );
    }

    /// Moves a guest index register past the elements in T2.
    fn advance(&mut self, index: u8, shift: i8) {
        let scale = 1 << shift;
        let bytes = MemoryOperand::with_base_index_scale(sized(index, 8), T2, scale);
        let (code, size) = match self.target.mode.has(Mode::CODE64) {
            true => (Code::Lea_r64_m, 8),
            false => (Code::Lea_r32_m, 4),
        };
        let lea = Instruction::with2(code, sized(index, size), bytes)
            .expect("a base and a scaled index are an address");
        let lea = self.encode(&lea).expect("LEA takes every such address");
        self.put(&lea);
    }

    /// Behind a page: the next one, unless that was all or somebody asks to stop: the poll of a
    /// block's entry, which may also find the stack of returns full.
    fn next_page(&mut self, again: DynamicLabel, done: DynamicLabel, instead: DynamicLabel) {
        dynasm!(self.ops
            ; .arch x64
            ; test rcx, rcx
            ; jz =>done
            ; gs cmp rsp, [at::POLL]
            ; jae =>again
            ; jmp =>instead
        );
    }

    fn index_register(guest: usize) -> Result<u8, Unencodable> {
        pinned(guest).ok_or(Unencodable)
    }

    /// REP STOS.
    pub(super) fn fill(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        let to = Self::index_register(Guest::RDI)?;
        let shift = elements::row(insn) as i8;
        self.spoil_flags_and(1 << Guest::RCX | 1 << Guest::RDI, needed);
        let Ways {
            instead,
            again,
            done,
        } = self.begin_string(index, &[to]);
        self.lead_to_element(T0, to, (shift, at::WRITE_TAG), instead);
        self.elements(shift);
        dynasm!(self.ops
            ; .arch x64
            ; sub rcx, r8
            ; gs mov [at::SCRATCH], rcx
        );
        let broadcast = self.encode(&bulk::broadcast(1 << shift))?;
        let ready = self.in_bulk(shift, |emitter| {
            emitter.put(&broadcast);
            dynasm!(emitter.ops ; .arch x64 ; mov edi, (1 << shift) - 1);
            emitter.target.trampolines.bulk.fill
        });
        self.fill_each_copy(shift)?;
        dynasm!(self.ops ; .arch x64 ; =>ready);
        dynasm!(self.ops ; .arch x64 ; gs mov rcx, [at::SCRATCH]);
        self.advance(to, shift);
        self.next_page(again, done, instead);
        dynasm!(self.ops ; .arch x64 ; =>done);
        Ok(())
    }

    /// Calls shared code, which `prepare` chooses, for the elements in T2 if they are few. Returns
    /// where that goes on; many are left to the code in between.
    fn in_bulk(
        &mut self,
        shift: i8,
        prepare: impl FnOnce(&mut Self) -> CodeOffset,
    ) -> DynamicLabel {
        let ready = self.ops.new_dynamic_label();
        if self.target.vector_strings {
            let many = self.ops.new_dynamic_label();
            dynasm!(self.ops
                ; .arch x64
                ; cmp r8d, FEW >> shift
                ; ja =>many
                ; mov ecx, r8d
            );
            if shift != 0 {
                dynasm!(self.ops ; .arch x64 ; shl ecx, shift);
            }
            let shared = prepare(self);
            self.call_shared(shared);
            dynasm!(self.ops ; .arch x64 ; jmp =>ready ; =>many);
        }
        ready
    }

    /// Stores the elements in T2 from the host address in T0 on, copy by copy.
    fn fill_each_copy(&mut self, shift: i8) -> Result<(), Unencodable> {
        self.store_all(HostMemory::AT_T0, |emitter, memory| {
            let displacement = memory.displacement;
            dynasm!(emitter.ops
                ; .arch x64
                ; lea rdi, [rsi + displacement]
                ; mov rcx, r8
            );
            match shift {
                0 => dynasm!(emitter.ops ; .arch x64 ; rep stosb),
                1 => dynasm!(emitter.ops ; .arch x64 ; rep stosw),
                2 => dynasm!(emitter.ops ; .arch x64 ; rep stosd),
                _ => dynasm!(emitter.ops ; .arch x64 ; rep stosq),
            }
            Ok(())
        })
    }

    /// REP MOVS. A destination that begins within the source is the interpreter's: the mirrors
    /// could not be written from the native source before the native destination is.
    pub(super) fn copy(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        let to = Self::index_register(Guest::RDI)?;
        let from = Self::index_register(Guest::RSI)?;
        let shift = elements::row(insn) as i8;
        self.spoil_flags_and(1 << Guest::RCX | 1 << Guest::RDI | 1 << Guest::RSI, needed);
        let Ways {
            instead,
            again,
            done,
        } = self.begin_string(index, &[to, from]);
        let apart = self.ops.new_dynamic_label();
        self.lead_to_element(T0, from, (shift, at::READ_TAG), instead);
        self.lead_to_element(T1, to, (shift, at::WRITE_TAG), instead);
        self.larger_offset(from);
        self.elements(shift);
        dynasm!(self.ops
            ; .arch x64
            ; mov rcx, rdi
            ; sub rcx, rsi
        );
        if shift != 0 {
            dynasm!(self.ops ; .arch x64 ; shr rcx, shift);
        }
        dynasm!(self.ops
            ; .arch x64
            ; cmp rcx, r8
            ; jae =>apart
            ; gs mov rcx, [at::SCRATCH]
            ; jmp =>instead
            ; =>apart
            ; gs sub [at::SCRATCH], r8
        );
        let ready = self.in_bulk(shift, |emitter| emitter.target.trampolines.bulk.copy);
        self.copy_to_each(shift)?;
        dynasm!(self.ops ; .arch x64 ; =>ready);
        dynasm!(self.ops ; .arch x64 ; gs mov rcx, [at::SCRATCH]);
        self.advance(from, shift);
        self.advance(to, shift);
        self.next_page(again, done, instead);
        dynasm!(self.ops ; .arch x64 ; =>done);
        Ok(())
    }

    /// REP SCAS and REP CMPS: the host's own, page by page. Behind the last page the flags are those of the last
    /// comparison; if there is none they stay.
    pub(super) fn scan(
        &mut self,
        index: usize,
        insn: &Instruction,
        class: &Class,
        need: Need,
    ) -> Result<(), Unencodable> {
        let to = Self::index_register(Guest::RDI)?;
        let from = match elements::indexes(insn).count() {
            2 => Some(Self::index_register(Guest::RSI)?),
            _ => None,
        };
        let shift = elements::row(insn) as i8;
        let mut host = *insn;
        host.set_segment_prefix(Register::None);
        for operand in 0..2 {
            match host.op_kind(operand) {
                OpKind::MemorySegESI => host.set_op_kind(operand, OpKind::MemorySegRSI),
                OpKind::MemoryESEDI => host.set_op_kind(operand, OpKind::MemoryESRDI),
                _ => {}
            }
        }
        let native = self.encode(&host)?;
        let behind = self.ops.new_dynamic_label();
        // Between two pages they are those of the last comparison.
        if need.before != 0 {
            self.save_flags();
        }
        self.spoil_flags(need.before != 0);
        let registers: Vec<u8> = from.into_iter().chain([to]).collect();
        let Ways {
            instead,
            again,
            done,
        } = self.begin_string(index, &registers);
        if let Some(from) = from {
            self.lead_to_element(T0, from, (shift, at::READ_TAG), instead);
        }
        self.lead_to_element(T1, to, (shift, at::READ_TAG), instead);
        if let Some(from) = from {
            self.larger_offset(from);
        }
        self.elements(shift);
        dynasm!(self.ops
            ; .arch x64
            ; sub rcx, r8
            ; gs mov [at::SCRATCH], rcx
            ; mov ecx, r8d
        );
        self.put(&native);
        // What has been compared: EFLAGS have to stay.
        dynasm!(self.ops ; .arch x64 ; not rcx ; lea r8, [r8 + rcx + 1]);
        for &register in &registers {
            self.advance(register, shift);
        }
        dynasm!(self.ops
            ; .arch x64
            ; not rcx
            ; gs mov rdi, [at::SCRATCH]
            ; lea rcx, [rcx + rdi]
        );
        if insn.has_repne_prefix() {
            dynasm!(self.ops ; .arch x64 ; je =>behind);
        } else {
            dynasm!(self.ops ; .arch x64 ; jne =>behind);
        }
        // JRCXZ over that.
        self.bytes(&[0xe3, NEXT_PAGE]);
        let begin = self.here();
        save_eflags(self.ops);
        dynasm!(self.ops
            ; .arch x64
            ; gs cmp rsp, [at::POLL]
            ; jae =>again
            ; jmp =>instead
        );
        debug_assert_eq!(self.here() - begin, u32::from(NEXT_PAGE));
        if need.in_host(class.flags) {
            dynasm!(self.ops ; .arch x64 ; jmp =>behind ; =>done);
            self.restore_flags();
        } else {
            dynasm!(self.ops ; .arch x64 ; =>done);
        }
        dynasm!(self.ops ; .arch x64 ; =>behind);
        self.flags = FlagsPlace::HOST;
        Ok(())
    }

    /// Makes T2 the larger of the offset in a page that it is, and that of a guest index register.
    fn larger_offset(&mut self, index: u8) {
        dynasm!(self.ops
            ; .arch x64
            ; gs mov [at::SCRATCH], rcx
            ; mov ecx, Rd(index)
            ; and ecx, PAGE - 1
            ; cmp r8d, ecx
            ; cmovb r8d, ecx
            ; gs mov rcx, [at::SCRATCH]
        );
    }

    /// Copies the elements in T2 from the host address in T0 to that in T1, copy by copy.
    fn copy_to_each(&mut self, shift: i8) -> Result<(), Unencodable> {
        let memory = HostMemory {
            base: T1,
            ..HostMemory::AT_T0
        };
        self.store_all(memory, |emitter, memory| {
            let displacement = memory.displacement;
            if displacement != 0 {
                dynasm!(emitter.ops ; .arch x64 ; add rdi, displacement);
            }
            dynasm!(emitter.ops ; .arch x64 ; mov rcx, r8);
            match shift {
                0 => dynasm!(emitter.ops ; .arch x64 ; rep movsb),
                1 => dynasm!(emitter.ops ; .arch x64 ; rep movsw),
                2 => dynasm!(emitter.ops ; .arch x64 ; rep movsd),
                _ => dynasm!(emitter.ops ; .arch x64 ; rep movsq),
            }
            if displacement != 0 {
                dynasm!(emitter.ops ; .arch x64 ; mov rcx, r8);
                if shift != 0 {
                    dynasm!(emitter.ops ; .arch x64 ; shl rcx, shift);
                }
                dynasm!(emitter.ops
                    ; .arch x64
                    ; sub rsi, rcx
                    ; sub rdi, rcx
                    ; sub rdi, displacement
                );
            }
            Ok(())
        })
    }
}
