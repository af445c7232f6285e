//! PCMPESTRI, PCMPESTRM, PCMPISTRI and PCMPISTRM (SSE4.2; SDM volume 1, 12.8.4 and volume 2,
//! 4.1).

use iced_x86::{Instruction, Mnemonic, Register};

use super::operand::{lane, read, set_xmm, with_lane, xmm};
use crate::guest::{Exception, Register as Gpr, flags};
use crate::interpret::Context;
use crate::interpret::operand::next;

/// One operand: its elements and how many of them are valid.
struct Text {
    elements: u128,
    bits: u32,
    valid: u32,
    signed: bool,
}

impl Text {
    fn element(&self, index: u32) -> i64 {
        let value = lane(self.elements, self.bits, index);
        if self.signed {
            ((value << (64 - self.bits)) as i64) >> (64 - self.bits)
        } else {
            value as i64
        }
    }

    fn has(&self, index: u32) -> bool {
        index < self.valid
    }
}

/// The intermediate result, a bit for each element of the second operand.
fn aggregate(a: &Text, b: &Text, count: u32, kind: u8) -> u32 {
    let all = |holds: &dyn Fn(u32) -> bool| {
        (0..count).fold(0, |bits, index| bits | u32::from(holds(index)) << index)
    };
    match kind {
        // Equal any.
        0 => all(&|j| b.has(j) && (0..a.valid).any(|i| a.element(i) == b.element(j))),
        // Ranges.
        1 => all(&|j| {
            b.has(j)
                && (0..a.valid / 2).any(|pair| {
                    (a.element(2 * pair)..=a.element(2 * pair + 1)).contains(&b.element(j))
                })
        }),
        // Equal each: what is beyond both ends is equal.
        2 => all(&|i| match (a.has(i), b.has(i)) {
            (true, true) => a.element(i) == b.element(i),
            (first, second) => first == second,
        }),
        // Equal ordered: the first operand is found there.
        _ => all(&|j| {
            (0..count - j).all(|i| !a.has(i) || b.has(i + j) && a.element(i) == b.element(i + j))
        }),
    }
}

/// Elements before the first that is zero.
fn implicit_length(value: u128, bits: u32, count: u32) -> u32 {
    (0..count)
        .find(|&index| lane(value, bits, index) == 0)
        .unwrap_or(count)
}

/// The magnitude of a length in a register, held to the number of elements.
fn explicit_length(register: u64, wide: bool, count: u32) -> u32 {
    let length = if wide {
        register as i64
    } else {
        i64::from(register as u32 as i32)
    };
    length.unsigned_abs().min(u64::from(count)) as u32
}

fn run(
    cx: &mut Context<'_>,
    insn: &Instruction,
    explicit: bool,
    wide: bool,
    index: bool,
) -> Result<(), Exception> {
    let control = insn.immediate(2) as u8;
    let first = xmm(cx.cpu, insn.op0_register());
    let second = read(cx, insn, 1, 16)?;
    let bits = if control & 1 != 0 { 16 } else { 8 };
    let count = 128 / bits;
    let text = |elements, register: usize| Text {
        elements,
        bits,
        valid: if explicit {
            explicit_length(cx.cpu.gpr[register], wide, count)
        } else {
            implicit_length(elements, bits, count)
        },
        signed: control & 2 != 0,
    };
    let (a, b) = (text(first, Gpr::RAX), text(second, Gpr::RDX));
    let mut result = aggregate(&a, &b, count, control >> 2 & 3);
    let every = u32::MAX >> (32 - count);
    match control >> 4 & 3 {
        1 => result ^= every,
        3 => result ^= every & ((1 << b.valid) - 1),
        _ => {}
    }
    let high = control & 0x40 != 0;
    if index {
        let found = match (result, high) {
            (0, _) => count,
            (_, true) => 31 - result.leading_zeros(),
            (_, false) => result.trailing_zeros(),
        };
        cx.cpu.gpr[Gpr::RCX] = u64::from(found);
    } else {
        let mask = if high {
            (0..count)
                .filter(|index| result >> index & 1 != 0)
                .fold(0, |mask, index| with_lane(mask, bits, index, u64::MAX))
        } else {
            u128::from(result)
        };
        set_xmm(cx.cpu, Register::XMM0, mask);
    }
    let flag = |holds, flag| if holds { flag } else { 0 };
    cx.cpu.arithmetic_flags = flag(result != 0, flags::CF)
        | flag(b.valid < count, flags::ZF)
        | flag(a.valid < count, flags::SF)
        | flag(result & 1 != 0, flags::OF);
    next(cx, insn)
}

/// Executes a string comparison; `None` if it is none.
pub fn execute(cx: &mut Context<'_>, insn: &Instruction) -> Option<Result<(), Exception>> {
    use Mnemonic as M;
    let (explicit, wide, index) = match insn.mnemonic() {
        M::Pcmpestri => (true, false, true),
        M::Pcmpestri64 => (true, true, true),
        M::Pcmpestrm => (true, false, false),
        M::Pcmpestrm64 => (true, true, false),
        M::Pcmpistri => (false, false, true),
        M::Pcmpistrm => (false, false, false),
        _ => return None,
    };
    Some(run(cx, insn, explicit, wide, index))
}
