//! Stores to the native copy that come late: of several stores in a row to one group, those to the mirrors come first.
//!
//! A processor writes neighbouring stores to its cache in one cycle if they go to one line (AMD since Zen 3, Intel
//! since Ice Lake), but not if stores to another line come between them. The native ones come last because loads
//! look for stores by the lower bits of the address, in which copies are equal. Invariant: while stores
//! wait, nothing can leave the block, nothing is loaded from guest memory, and what they find
//! their address and value in does not change.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::emitter::{Emitter, Unencodable};
use super::encoded::Encoded;
use super::operands::HostMemory;
use super::registers::{T0, number};
use crate::guest::Register as Guest;
use crate::record::classify::{Class, Kind, Operand};
use crate::record::grouping::Place;
use crate::record::liveness;

/// Bytes of stores that wait, from which on no more do: they go to another line then.
const MOST: usize = 96;

/// Stores to the native copy that are still to be made.
#[derive(Default)]
pub(super) struct LateStores {
    code: Vec<u8>,
    /// The guest registers that they read, a bit each.
    reads: u16,
    /// Their address is in T0.
    by_t0: bool,
}

impl LateStores {
    pub fn clear(&mut self) {
        self.code.clear();
        (self.reads, self.by_t0) = (0, false);
    }
}

/// The registers, a bit each, that a move to memory stores, which cannot fault where its access is sure; `None`: it is
/// another instruction. What changes vector registers lets no store wait.
pub(super) fn moves(insn: &Instruction) -> Option<u16> {
    use Mnemonic::*;
    match insn.mnemonic() {
        Mov if insn.op1_kind() != OpKind::Register => Some(0),
        Mov if insn.op1_register().is_gpr() => Some(bit(insn.op1_register())),
        // None of these asks for an aligned address.
        Movups | Movupd | Movdqu | Movss | Movsd | Movlps | Movlpd | Movhps | Movhpd | Movd
        | Movq | Vmovups | Vmovupd | Vmovdqu | Vmovss | Vmovsd | Vmovlps | Vmovlpd | Vmovhps
        | Vmovhpd | Vmovd | Vmovq
            if insn.op_count() == 2 && insn.op1_register().is_vector_register() =>
        {
            Some(0)
        }
        _ => None,
    }
}

/// The register that an address on the host names beside T0, as the guest's.
pub(super) fn addresses(insn: &Instruction, memory: HostMemory) -> u16 {
    match memory.index != Register::None && insn.memory_base().is_gpr() {
        true => bit(insn.memory_base()),
        false => 0,
    }
}

fn bit(register: Register) -> u16 {
    1 << number(register)
}

impl Emitter<'_> {
    /// Whether the native store of an access may come late. It has been checked.
    fn may_be_late(&self, index: usize, place: Place, memory: HostMemory) -> bool {
        let Some((member, _)) = self.groups.of(index, place) else {
            return false;
        };
        let stays = |group| self.near.is_some_and(|near| near.group == group);
        self.target.late_stores
            && self.target.copies > 1
            && (memory.base != T0 || stays(member.group))
    }

    /// Stores to all copies, to the native one later where it may wait. `reads`: the guest registers that `encode`
    /// names, a bit each; `None`: it may not. As [`Emitter::store_all`], otherwise.
    pub(super) fn store_late(
        &mut self,
        (index, place): (usize, Place),
        memory: HostMemory,
        reads: Option<u16>,
        encode: impl Fn(&mut Self, HostMemory) -> Result<Encoded, Unencodable>,
    ) -> Result<(), Unencodable> {
        let Some(reads) = reads.filter(|_| self.may_be_late(index, place, memory)) else {
            return self.store_all(memory, |emitter, memory| {
                let bytes = encode(emitter, memory)?;
                emitter.put(&bytes);
                Ok(())
            });
        };
        for copy in (1..self.target.copies as i32).rev() {
            let mirror = encode(self, memory.further(copy * self.target.stride))?;
            self.put(&mirror);
        }
        let native = encode(self, memory)?;
        native.append_to(&mut self.late.code);
        let late = &mut self.late;
        late.reads |= reads;
        late.by_t0 |= memory.base == T0;
        if late.code.len() > MOST {
            self.settle_stores();
        }
        Ok(())
    }

    /// Makes the stores that wait. The flags stay.
    pub(super) fn settle_stores(&mut self) {
        if !self.late.code.is_empty() {
            let code = std::mem::take(&mut self.late.code);
            self.bytes(&code);
            self.late.code = code;
            self.late.clear();
        }
    }

    /// T0 is about to change.
    pub(super) fn settle_stores_by_t0(&mut self) {
        if self.late.by_t0 {
            self.settle_stores();
        }
    }

    /// The host register of the guest's stack pointer is.
    pub(super) fn settle_stores_by_stack(&mut self) {
        if self.late.reads & 1 << Guest::RSP != 0 {
            self.settle_stores();
        }
    }

    /// Whether all stores have been made to all copies.
    pub(super) fn stores_are_settled(&self) -> bool {
        self.late.code.is_empty()
    }

    /// Whether stores may wait until behind an instruction: it neither leaves the block nor loads anything, and what
    /// they read stays as it is. What becomes of T0 and the stack pointer is seen when they change.
    pub(super) fn passes_stores(&self, index: usize, insn: &Instruction, class: &Class) -> bool {
        let (passes, moves_stack) = match class.kind {
            Kind::Nop | Kind::Lea => (true, false),
            Kind::Plain(Operand::None) => {
                (!class.vectors && !liveness::exposes(class, true), false)
            }
            Kind::Plain(Operand::Write) => (
                moves(insn).is_some() && self.is_established(index, Place::Operand),
                false,
            ),
            Kind::Push => {
                let loads = insn.op0_kind() == OpKind::Memory;
                (!loads && self.stack_established(index), true)
            }
            _ => (false, false),
        };
        let stack = u16::from(moves_stack) << Guest::RSP;
        passes && class.writes & !stack & self.late.reads == 0
    }
}
