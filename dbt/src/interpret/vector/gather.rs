//! AVX2 gathers (SDM volume 2, VGATHERDPS and following).

use iced_x86::{Instruction, Mnemonic};

use super::Done;
use super::masked::{set_vector_bytes, vector_bytes};
use crate::guest::Exception;
use crate::interpret::address::{address_mask, effective_address, memory_segment, segment_linear};
use crate::interpret::operand::{next, row};
use crate::interpret::{Access, Context, extension};
use crate::record::Row;

pub(super) const ROWS: &[Row] = &[
    row(Mnemonic::Vgatherdps, gather::<4, 4>),
    row(Mnemonic::Vgatherdpd, gather::<4, 8>),
    row(Mnemonic::Vgatherqps, gather::<8, 4>),
    row(Mnemonic::Vgatherqpd, gather::<8, 8>),
    row(Mnemonic::Vpgatherdd, gather::<4, 4>),
    row(Mnemonic::Vpgatherdq, gather::<4, 8>),
    row(Mnemonic::Vpgatherqd, gather::<8, 4>),
    row(Mnemonic::Vpgatherqq, gather::<8, 8>),
];

/// Indexes of `INDEX` bytes, elements of `SIZE` bytes.
fn gather<const INDEX: usize, const SIZE: usize>(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    extension::check_enabled(cx, insn)?;
    let (into, index, selector) = (
        insn.op_register(0),
        insn.memory_index(),
        insn.op_register(2),
    );
    let number = super::masked::vector_number;
    if insn.encoding() != iced_x86::EncodingKind::VEX
        || number(into) == number(index)
        || number(into) == number(selector)
        || number(index) == number(selector)
    {
        return Err(Exception::invalid_opcode());
    }
    let count = (index.size() / INDEX).min(into.size() / SIZE);
    let indexes = vector_bytes(cx.cpu, index);
    let mut mask = vector_bytes(cx.cpu, selector);
    let mut value = vector_bytes(cx.cpu, into);
    let (segment, base) = (
        memory_segment(cx.cpu, insn),
        effective_address(cx.cpu, insn),
    );
    let mut fault = None;
    let traps_before = cx.cpu.pending_debug;
    for element in 0..count {
        let range = SIZE * element..SIZE * (element + 1);
        if mask[range.end - 1] & 0x80 != 0 {
            let at = &indexes[INDEX * element..INDEX * (element + 1)];
            let offset = match INDEX {
                4 => i64::from(i32::from_le_bytes(at.try_into().unwrap_or_default())),
                _ => i64::from_le_bytes(at.try_into().unwrap_or_default()),
            };
            let offset = (offset as u64).wrapping_mul(u64::from(insn.memory_index_scale()));
            let traps = cx.cpu.pending_debug;
            let offset = base.wrapping_add(offset) & address_mask(insn);
            let loaded = segment_linear(cx, segment, offset, SIZE, Access::Read)
                .and_then(|at| cx.load(at, SIZE));
            match loaded {
                Ok(loaded) => {
                    value[range.clone()].copy_from_slice(&loaded.to_le_bytes()[..SIZE]);
                }
                Err(exception) => {
                    cx.cpu.pending_debug = traps;
                    fault = Some(exception);
                    break;
                }
            }
        }
        mask[range].fill(0);
    }
    // Elements that were loaded before a fault stay loaded, and their mask is clear: the
    // instruction goes on behind them when it is restarted.
    if fault.is_none() {
        value[SIZE * count..].fill(0);
        mask.fill(0);
    }
    set_vector_bytes(cx.cpu, into, &value);
    set_vector_bytes(cx.cpu, selector, &mask);
    match fault {
        // Breakpoints on elements that were loaded trap instead of the fault, which comes when the
        // instruction goes on; RF is set in the frame, as between two iterations of a string
        // instruction (SDM volume 2, VGATHERDPS).
        Some(_) if cx.cpu.pending_debug != traps_before => {
            cx.cpu.within_string = 1;
            cx.cpu.step_suppressed = 1;
            Ok(())
        }
        Some(exception) => Err(exception),
        None => next(cx, insn),
    }
}
