//! Accesses to some of a vector's elements in line: moves under a mask, and gathers. What misses the TLB, or faults, is
//! the interpreter's, before anything has changed: which elements count is for it to say
//! (SDM volume 2, VMASKMOV, VGATHERDPS and following).

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Code, Instruction, OpKind, Register};

use super::emitter::{Emitter, Unencodable};
use super::operands::{Address, HostMemory};
use crate::record::classify::Operand;
use crate::run::at;

impl Emitter<'_> {
    /// VMASKMOVPS and the like: the host's own, where the whole operand may be accessed.
    pub(super) fn masked(
        &mut self,
        index: usize,
        insn: &Instruction,
        operand: Operand,
        needed: bool,
    ) -> Result<(), Unencodable> {
        let size = insn.memory_size().size() as u32;
        let write = operand == Operand::Write;
        let address = self.operand(insn)?;
        let mut host = *insn;
        HostMemory::AT_T0.apply(&mut host);
        let native = self.encode(&host)?;
        self.lead_to_whole(index, &address, (size, write), needed)?;
        if !write {
            self.put(&native);
            return Ok(());
        }
        self.store_all(HostMemory::AT_T0, |emitter, memory| {
            memory.apply(&mut host);
            let store = emitter.encode(&host)?;
            emitter.put(&store);
            Ok(())
        })
    }

    /// MASKMOVDQU and MASKMOVQ, whose address is in RDI.
    pub(super) fn masked_bytes(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        let register = match insn.op0_kind() {
            OpKind::MemorySegDI => Register::DI,
            OpKind::MemorySegEDI => Register::EDI,
            _ => Register::RDI,
        };
        let size = insn.memory_size().size() as u32;
        let address = self.operand(&load_by(insn, register, Register::None))?;
        let mut host = *insn;
        host.set_segment_prefix(Register::None);
        host.set_op0_kind(OpKind::MemorySegRDI);
        let native = self.encode(&host)?;
        self.lead_to_whole(index, &address, (size, true), needed)?;
        // MASKMOVQ raises an exception of the x87 that is pending.
        self.note_flags(index);
        self.store_all(HostMemory::AT_T0, |emitter, memory| {
            dynasm!(emitter.ops ; .arch x64 ; lea rdi, [rsi + memory.displacement]);
            emitter.put(&native);
            Ok(())
        })
    }

    /// XLAT.
    pub(super) fn translate_byte(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        let address = self.operand(&load_by(insn, insn.memory_base(), Register::None))?;
        self.spoil_flags(needed);
        let instead = self.interpret_instead(index);
        if let Some(segment) = address.segment.filter(|_| address.limited) {
            self.offset(&address)?;
            dynasm!(self.ops ; .arch x64 ; movzx edi, al ; lea esi, [rsi + rdi]);
            if address.short {
                dynasm!(self.ops ; .arch x64 ; movzx esi, si);
            }
            dynasm!(self.ops
                ; .arch x64
                ; gs cmp rsi, [at::read_bound(segment)]
                ; jg =>instead
                ; gs add esi, [at::segment_base(segment)]
            );
        } else {
            self.linear(&address)?;
            dynasm!(self.ops ; .arch x64 ; movzx edi, al ; lea rsi, [rsi + rdi]);
            self.wrap(&address);
        }
        self.translate_linear(1, false, instead);
        self.keep_flags();
        dynasm!(self.ops ; .arch x64 ; mov al, [rsi]);
        Ok(())
    }

    /// VGATHERDPS and the like. The registers that the guest's vectors have in memory are free while the host has them:
    /// there the elements are looked at, and put together.
    pub(super) fn gather(
        &mut self,
        index: usize,
        insn: &Instruction,
        needed: bool,
    ) -> Result<(), Unencodable> {
        let (into, indexes, selector) = (
            insn.op_register(0),
            insn.memory_index(),
            insn.op_register(2),
        );
        let size = insn.memory_size().size();
        let address = self.unlimited(&load_by(insn, insn.memory_base(), Register::None))?;
        let index_size = match insn.code() {
            Code::VEX_Vpgatherqd_xmm_vm64x_xmm
            | Code::VEX_Vpgatherqd_xmm_vm64y_xmm
            | Code::VEX_Vpgatherqq_xmm_vm64x_xmm
            | Code::VEX_Vpgatherqq_ymm_vm64y_ymm
            | Code::VEX_Vgatherqps_xmm_vm64x_xmm
            | Code::VEX_Vgatherqps_xmm_vm64y_xmm
            | Code::VEX_Vgatherqpd_xmm_vm64x_xmm
            | Code::VEX_Vgatherqpd_ymm_vm64y_ymm => 8,
            _ => 4,
        };
        let count = (indexes.size() / index_size).min(into.size() / size);
        self.spoil_flags(needed);
        let instead = self.interpret_instead(index);
        self.linear(&address)?;
        dynasm!(self.ops ; .arch x64 ; gs mov [at::SCRATCH], rsi);
        for register in [indexes, selector, into] {
            let (number, slot) = place(register);
            if register.is_ymm() {
                dynasm!(self.ops ; .arch x64 ; gs vmovdqu [slot], Ry(number));
            } else {
                dynasm!(self.ops ; .arch x64 ; gs vmovdqu [slot], Rx(number));
            }
        }
        for element in 0..count as i32 {
            let size = size as i32;
            let skip = self.ops.new_dynamic_label();
            let selects = place(selector).1 + size * (element + 1) - 1;
            let offset = place(indexes).1 + index_size as i32 * element;
            dynasm!(self.ops ; .arch x64 ; gs test BYTE [selects], -0x80 ; jz =>skip);
            if index_size == 4 {
                dynasm!(self.ops ; .arch x64 ; gs movsxd rdi, DWORD [offset]);
            } else {
                dynasm!(self.ops ; .arch x64 ; gs mov rdi, [offset]);
            }
            dynasm!(self.ops ; .arch x64 ; gs mov rsi, [at::SCRATCH]);
            match insn.memory_index_scale() {
                1 => dynasm!(self.ops ; .arch x64 ; add rsi, rdi),
                2 => dynasm!(self.ops ; .arch x64 ; lea rsi, [rsi + rdi * 2]),
                4 => dynasm!(self.ops ; .arch x64 ; lea rsi, [rsi + rdi * 4]),
                _ => dynasm!(self.ops ; .arch x64 ; lea rsi, [rsi + rdi * 8]),
            }
            self.wrap(&address);
            self.translate_linear(size as u32, false, instead);
            let slot = place(into).1 + size * element;
            if size == 4 {
                dynasm!(self.ops ; .arch x64 ; mov esi, [rsi] ; gs mov [slot], esi);
            } else {
                dynasm!(self.ops ; .arch x64 ; mov rsi, [rsi] ; gs mov [slot], rsi);
            }
            dynasm!(self.ops ; .arch x64 ; =>skip);
        }
        let (number, slot) = place(into);
        match count * size {
            32 => dynasm!(self.ops ; .arch x64 ; gs vmovdqu Ry(number), [slot]),
            16 => dynasm!(self.ops ; .arch x64 ; gs vmovdqu Rx(number), [slot]),
            _ => dynasm!(self.ops ; .arch x64 ; gs vmovq Rx(number), QWORD [slot]),
        }
        let selector = place(selector).0;
        dynasm!(self.ops ; .arch x64 ; vpxor Rx(selector), Rx(selector), Rx(selector));
        Ok(())
    }

    /// Makes T0 the host address of an operand, all of which the TLB lets be accessed. Returns the way to the interpreter,
    /// which is taken if it does not.
    pub(super) fn lead_to_whole(
        &mut self,
        index: usize,
        address: &Address,
        (size, write): (u32, bool),
        needed: bool,
    ) -> Result<DynamicLabel, Unencodable> {
        self.spoil_flags(needed);
        let instead = self.interpret_instead(index);
        self.linear_within(index, address, size, write)?;
        self.translate_linear(size, write, instead);
        Ok(instead)
    }

    /// The address of an operand to which something else is added: no limit may apply to it.
    fn unlimited(&self, insn: &Instruction) -> Result<Address, Unencodable> {
        let address = self.operand(insn)?;
        Some(address)
            .filter(|address| !address.limited)
            .ok_or(Unencodable)
    }

    /// Cuts the linear address in T0 to the width that it has.
    fn wrap(&mut self, address: &Address) {
        if address.narrow {
            dynasm!(self.ops ; .arch x64 ; mov esi, esi);
        }
    }
}

/// The number of a vector register, and where it is in memory while the host does not have it.
fn place(register: Register) -> (u8, i32) {
    let number = register.number() as u8;
    (number, at::YMM + 32 * i32::from(number))
}

/// A load by a base register with an instruction's displacement and segment.
fn load_by(insn: &Instruction, base: Register, index: Register) -> Instruction {
    let mut load = *insn;
    load.set_code(Code::Mov_r8_rm8);
    load.set_op0_kind(OpKind::Register);
    load.set_op0_register(Register::AL);
    load.set_op1_kind(OpKind::Memory);
    load.set_memory_base(base);
    load.set_memory_index(index);
    load.set_memory_index_scale(1);
    load
}
