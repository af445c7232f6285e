//! Which flags matter where: what each instruction of a block reads and overwrites, and from
//! that, what must survive a memory check.
//!
//! One thing this cannot see: a store of the block that replaces a later instruction of the same
//! block by one that reads flags which the replaced code had no use for. Those flags are lost
//! (read as zero).

use iced_x86::{Instruction, Mnemonic, OpKind, Register, RflagsBits};

/// CF, PF, AF, ZF, SF and OF, as iced-x86 names them.
pub const ALL: u32 = RflagsBits::CF
    | RflagsBits::PF
    | RflagsBits::AF
    | RflagsBits::ZF
    | RflagsBits::SF
    | RflagsBits::OF;

/// The same flags at their EFLAGS positions.
pub fn at_positions(bits: u32) -> u16 {
    use crate::guest::flags;
    [
        (RflagsBits::CF, flags::CF),
        (RflagsBits::PF, flags::PF),
        (RflagsBits::AF, flags::AF),
        (RflagsBits::ZF, flags::ZF),
        (RflagsBits::SF, flags::SF),
        (RflagsBits::OF, flags::OF),
    ]
    .into_iter()
    .filter(|(bit, _)| bits & bit != 0)
    .fold(0, |all, (_, flag)| all | flag as u16)
}

/// Flags that an instruction reads.
pub fn read(insn: &Instruction) -> u32 {
    insn.rflags_read() & ALL
}

/// Flags that an instruction may change.
pub fn changed(insn: &Instruction) -> u32 {
    insn.rflags_modified() & ALL
}

/// Flags that an instruction overwrites whatever its operands are (to a value, or undefined).
pub fn overwritten(insn: &Instruction) -> u32 {
    let changed = changed(insn);
    match insn.mnemonic() {
        // A count of zero leaves the flags alone.
        Mnemonic::Shl
        | Mnemonic::Sal
        | Mnemonic::Shr
        | Mnemonic::Sar
        | Mnemonic::Rol
        | Mnemonic::Ror
        | Mnemonic::Rcl
        | Mnemonic::Rcr
        | Mnemonic::Shld
        | Mnemonic::Shrd => {
            let last = insn.op_count() - 1;
            let count_known = insn.op_kind(last) == OpKind::Immediate8
                && insn.immediate8() & 31 != 0
                && insn.op_register(last) != Register::CL;
            if count_known { changed } else { 0 }
        }
        // So does a REP string instruction that iterates zero times.
        Mnemonic::Cmpsb
        | Mnemonic::Cmpsw
        | Mnemonic::Cmpsd
        | Mnemonic::Cmpsq
        | Mnemonic::Scasb
        | Mnemonic::Scasw
        | Mnemonic::Scasd
        | Mnemonic::Scasq => 0,
        _ => changed,
    }
}

/// For each instruction of a straight run, the flags that are needed before it: read by it or
/// by a later one before being overwritten. `whole[i]` marks instructions that need all flags
/// in their place because a helper executes them; `after` is what is needed at the end.
pub fn needed_before(insns: &[Instruction], whole: &[bool], after: u32) -> Vec<u32> {
    let mut live = after;
    let mut needed = vec![0; insns.len()];
    for (index, insn) in insns.iter().enumerate().rev() {
        live = (live & !overwritten(insn)) | read(insn);
        if whole[index] {
            live = ALL;
        }
        needed[index] = live;
    }
    needed
}
