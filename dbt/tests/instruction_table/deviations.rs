//! Where the table and the decoder's description differ, and why.

use iced_x86::{Code, Instruction, OpKind, Register};

/// Codes without a row that every processor here has to refuse.
pub fn without_row(code: Code) -> Option<&'static str> {
    match code {
        Code::Rsm => Some("#UD outside system-management mode, and there is none"),
        _ => None,
    }
}

/// Codes that the decoder gives only if it is asked to.
pub fn not_decoded(code: Code) -> Option<&'static str> {
    use Code as C;
    Some(match code {
        C::INVALID
        | C::DeclareByte
        | C::DeclareWord
        | C::DeclareDword
        | C::DeclareQword
        | C::Zero_bytes => "no instruction",
        C::Popw_CS => "the 8086's; its opcode has become the escape to more",
        C::Fstenv_m14byte
        | C::Fstenv_m28byte
        | C::Fstcw_m2byte
        | C::Feni
        | C::Fdisi
        | C::Fclex
        | C::Finit
        | C::Fsetpm
        | C::Fsave_m94byte
        | C::Fsave_m108byte
        | C::Fstsw_m2byte
        | C::Fstsw_AX => "an assembler's name for FWAIT and the instruction without waiting",
        C::Loopne_rel8_16_RCX | C::Loope_rel8_16_RCX | C::Loop_rel8_16_RCX | C::Jrcxz_rel8_16 => {
            "AMD's: Intel ignores the operand size of branches in 64-bit code"
        }
        C::Storeall | C::Loadall286 | C::Loadall386 => "of the 80286 and 80386 alone",
        C::Ud0 => "the form without operands of processors that ignore ModRM",
        _ => return None,
    })
}

/// Instructions that may leave flags alone that their description has as written.
pub fn keeps_flags(insn: &Instruction) -> Option<&'static str> {
    let last = insn.op_count().checked_sub(1)?;
    if insn.op_kind(last) == OpKind::Register && insn.op_register(last) == Register::CL {
        return Some("a count of zero in CL changes nothing");
    }
    insn.is_string_instruction()
        .then_some("with REP and a count of zero nothing is compared")
}
