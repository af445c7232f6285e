//! Accesses to some of a vector's elements: moves under a mask, and gathers.

use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind, Register};

use super::class::{Kind, Operand};
use super::classify::extension_enabled;
use crate::guest::Mode;
use crate::interpret::address::address_mask;

/// How such an instruction is translated; `None`: it is another, or the interpreter's.
pub(super) fn kind(insn: &Instruction, mode: Mode) -> Option<Kind> {
    use Mnemonic::*;
    let kind = match insn.mnemonic() {
        Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq => match insn.op0_kind() {
            OpKind::Memory => Kind::Masked(Operand::Write),
            _ => Kind::Masked(Operand::Read),
        },
        // MMX registers alias the x87 stack.
        Maskmovq if mode.has(Mode::X87) => Kind::MaskedBytes,
        Maskmovdqu | Vmaskmovdqu => Kind::MaskedBytes,
        Vgatherdps | Vgatherdpd | Vgatherqps | Vgatherqpd | Vpgatherdd | Vpgatherdq
        | Vpgatherqd | Vpgatherqq
            if gathers(insn, mode) =>
        {
            Kind::Gather
        }
        _ => return None,
    };
    let encoded = matches!(insn.encoding(), EncodingKind::Legacy | EncodingKind::VEX);
    let features = insn.cpuid_features();
    let enabled = (features.iter()).all(|&feature| extension_enabled(feature, mode) == Some(true));
    (encoded && enabled).then_some(kind)
}

/// Whether a gather names three registers (else it raises #UD), and has addresses as wide as flat code.
fn gathers(insn: &Instruction, mode: Mode) -> bool {
    let number = |register: Register| register.number();
    let [into, index, selector] = [
        insn.op_register(0),
        insn.memory_index(),
        insn.op_register(2),
    ]
    .map(number);
    let whole = match mode.has(Mode::CODE64) {
        true => u64::MAX,
        false => 0xffff_ffff,
    };
    let apart = into != index && into != selector && index != selector;
    insn.encoding() == EncodingKind::VEX
        && apart
        && !mode.segmented()
        && address_mask(insn) == whole
}
