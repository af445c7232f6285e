//! Comparisons and examinations.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::fpu::{C0, C1, C2, C3, Fpu};
use super::{Done, Loaded, stack_index};
use crate::interpret::Context;
use crate::interpret::operand::next;
use crate::interpret::soft::arithmetic::compare;
use crate::interpret::soft::float::{Class, Value, flag};
use crate::interpret::soft::sse_float::order_flags;

/// What a comparison is about.
#[derive(Clone, Copy)]
struct How {
    /// A QNaN is invalid.
    signaling: bool,
    pops: u32,
    /// The result goes to EFLAGS.
    to_flags: bool,
}

fn how(mnemonic: Mnemonic) -> Option<How> {
    use Mnemonic as M;
    let (signaling, pops, to_flags) = match mnemonic {
        M::Fcom | M::Ficom | M::Ftst => (true, 0, false),
        M::Fcomp | M::Ficomp => (true, 1, false),
        M::Fcompp => (true, 2, false),
        M::Fucom => (false, 0, false),
        M::Fucomp => (false, 1, false),
        M::Fucompp => (false, 2, false),
        M::Fcomi => (true, 0, true),
        M::Fcomip => (true, 1, true),
        M::Fucomi => (false, 0, true),
        M::Fucomip => (false, 1, true),
        _ => return None,
    };
    Some(How {
        signaling,
        pops,
        to_flags,
    })
}

fn run(cx: &mut Context<'_>, insn: &Instruction, how: How) -> Done {
    let second = match insn.mnemonic() {
        Mnemonic::Ftst => Some(Value::zero(false)),
        Mnemonic::Fcompp | Mnemonic::Fucompp => Fpu::of(cx.cpu).value(1),
        _ if insn.op0_kind() == OpKind::Memory => Some(Loaded::of(cx, insn)?.value()),
        _ => Fpu::of(cx.cpu).value(stack_index(insn, insn.op_count() - 1)),
    };
    let mut fpu = Fpu::of(cx.cpu);
    let mut env = fpu.environment();
    let order = match (fpu.value(0), second) {
        (Some(first), Some(second)) => {
            let order = compare(&mut env, first, second, how.signaling);
            let c1 = fpu.status() & C1;
            fpu.conclude(&env);
            if how.to_flags {
                // FCOMI leaves C1 alone.
                fpu.set_codes(C1, c1);
            }
            order
        }
        _ => {
            fpu.stack_fault(false);
            env.raise(flag::INVALID);
            None
        }
    };
    let flags = order_flags(order);
    if env.unmasked(flag::BEFORE) == 0 {
        for _ in 0..how.pops {
            fpu.pop();
        }
    }
    if how.to_flags {
        cx.cpu.arithmetic_flags = flags;
    } else {
        // CF, PF and ZF stand below C0, C2 and C3.
        fpu.set_codes(C0 | C2 | C3, (flags << 8) as u16);
    }
    next(cx, insn)
}

fn examine(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let mut fpu = Fpu::of(cx.cpu);
    let negative = fpu.raw(0).1 & 0x8000 != 0;
    let class = match fpu.value(0) {
        None => C3 | C0,
        Some(value) => match value.class {
            Class::Unsupported => 0,
            Class::Quiet | Class::Signaling => C0,
            Class::Infinite => C2 | C0,
            Class::Zero => C3,
            Class::Finite if value.denormal => C3 | C2,
            Class::Finite => C2,
        },
    };
    let sign = if negative { C1 } else { 0 };
    fpu.set_codes(C0 | C1 | C2 | C3, class | sign);
    next(cx, insn)
}

/// Executes a comparison or examination; `None` if it is none.
pub fn execute(cx: &mut Context<'_>, insn: &Instruction) -> Option<Done> {
    match insn.mnemonic() {
        Mnemonic::Fxam => Some(examine(cx, insn)),
        mnemonic => how(mnemonic).map(|how| run(cx, insn, how)),
    }
}
