//! The cases in which a processor of today rightly differs from an 80286.

use dbt::guest::Exception;
use iced_x86::{Instruction, OpKind, Register};

use crate::capture::{Case, State};

/// What an 80286 takes with prefixes; later processors take 15 bytes.
const LONGEST_OF_286: usize = 10;

struct Exclusion {
    reason: &'static str,
    applies: fn(&Case, &Instruction) -> bool,
}

const TABLE: &[Exclusion] = &[
    Exclusion {
        reason: "LOCK where it is #UD today: no memory operand is read and written",
        applies: |case, insn| {
            insn.is_invalid() && case.bytes[..prefixes(&case.bytes)].contains(&0xf0)
        },
    },
    Exclusion {
        reason: "more than 10 bytes: #GP then, valid today",
        applies: |case, insn| insn.len() > LONGEST_OF_286 && number(case) == Some(Exception::GP),
    },
    Exclusion {
        reason: "FS and GS: #UD then, segment registers since the 80386",
        applies: |case, insn| {
            let new = |op| matches!(insn.op_register(op), Register::FS | Register::GS);
            (new(0) || new(1)) && number(case) == Some(Exception::UD)
        },
    },
    Exclusion {
        reason: "beyond the stack segment's limit: 13 then, 12 today (SDM volume 3, 20.1.4)",
        applies: |case, insn| {
            number(case) == Some(Exception::GP)
                && (insn.is_stack_instruction()
                    || (0..insn.op_count()).any(|op| insn.op_kind(op) == OpKind::Memory)
                        && insn.memory_segment() == Register::SS)
        },
    },
    Exclusion {
        reason: "a string instruction beyond the limit: the 80286 has moved SI, DI or CX by then",
        applies: |case, insn| insn.is_string_instruction() && number(case) == Some(Exception::GP),
    },
];

fn number(case: &Case) -> Option<u8> {
    case.exception.map(|(number, _)| number)
}

fn prefixes(bytes: &[u8]) -> usize {
    let is_prefix = |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0xf0 | 0xf2 | 0xf3);
    bytes.iter().take_while(|byte| is_prefix(byte)).count()
}

/// Why a case is left out, if it is.
pub fn reason(case: &Case, insn: &Instruction) -> Option<&'static str> {
    TABLE
        .iter()
        .find(|exclusion| (exclusion.applies)(case, insn))
        .map(|exclusion| exclusion.reason)
}

/// Where an exception in real mode pushes the flags.
pub fn pushed_flags(before: &State) -> u32 {
    let [ss, sp] = [5, 8].map(|index| before.registers[index]);
    (u32::from(ss) << 4) + u32::from(sp.wrapping_sub(2))
}
