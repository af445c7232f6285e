//! Moves between whole vector registers and memory: the vector instructions that are interpreted
//! most, where memory is copied to pages of code, of devices, or by code that is still cold. The host
//! processor would do nothing to them that this does not.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::Done;
use super::masked::{set_vector_bytes, vector_bytes};
use crate::guest::Exception;
use crate::interpret::operand::next;
use crate::interpret::{Access, Context, address};

/// Whether a mnemonic is such a move, and then whether its operand has to be aligned.
fn aligned(mnemonic: Mnemonic) -> Option<bool> {
    use Mnemonic as M;
    match mnemonic {
        M::Movups | M::Movupd | M::Movdqu | M::Vmovups | M::Vmovupd | M::Vmovdqu => Some(false),
        M::Movaps | M::Movapd | M::Movdqa | M::Vmovaps | M::Vmovapd | M::Vmovdqa => Some(true),
        _ => None,
    }
}

/// Executes such a move; `None`: it is another instruction.
pub(in crate::interpret) fn execute(cx: &mut Context<'_>, insn: &Instruction) -> Option<Done> {
    let aligned = aligned(insn.mnemonic())?;
    let (op0, op1) = (insn.op0_kind(), insn.op1_kind());
    let store = match (op0, op1) {
        (OpKind::Memory, OpKind::Register) => true,
        (OpKind::Register, OpKind::Memory) => false,
        _ => return None,
    };
    let register = insn.op_register(u32::from(store));
    let vector = register.is_xmm() || register.is_ymm();
    (vector && !insn.has_lock_prefix()).then(|| {
        let size = register.size();
        let (operand, access) = if store {
            (0, Access::Write)
        } else {
            (1, Access::Read)
        };
        let at = address::linear(cx, insn, operand, size, access)?;
        let misaligned = aligned && at.0 & (size as u64 - 1) != 0;
        // The page is looked at first, as emitted code does it.
        if store {
            if misaligned {
                cx.authorise_write(at, size)?;
                return Err(Exception::general_protection(0));
            }
            let bytes = vector_bytes(cx.cpu, register);
            cx.store_bytes(at, &bytes[..size])?;
        } else {
            // With VEX what the register has beyond is cleared.
            let mut bytes = if insn.encoding() == iced_x86::EncodingKind::VEX {
                [0; 32]
            } else {
                vector_bytes(cx.cpu, register)
            };
            cx.load_bytes(at, &mut bytes[..size])?;
            if misaligned {
                return Err(Exception::general_protection(0));
            }
            set_vector_bytes(cx.cpu, register, &bytes);
        }
        next(cx, insn)
    })
}
