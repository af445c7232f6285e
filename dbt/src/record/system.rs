//! Instructions that work on a few words of the processor's state rather than on operands: flags, segment
//! bases, control registers, MXCSR, the time.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::class::Kind;
use super::classify::extension_enabled;
use crate::guest::Mode;

/// How such an instruction is translated; `None`: it is another, or the interpreter's.
pub(super) fn kind(insn: &Instruction, mode: Mode) -> Option<Kind> {
    let code64 = mode.has(Mode::CODE64);
    let ring0 = mode.has(Mode::RING0);
    let flat = !mode.segmented();
    let enabled = || {
        let features = insn.cpuid_features();
        (features.iter()).all(|&feature| extension_enabled(feature, mode) == Some(true))
    };
    Some(match insn.mnemonic() {
        Mnemonic::Cli if ring0 => Kind::Cli,
        Mnemonic::Sti if ring0 => Kind::Sti,
        Mnemonic::Cld => Kind::Direction(false),
        Mnemonic::Std => Kind::Direction(true),
        Mnemonic::Swapgs if ring0 && code64 => Kind::SwapGs,
        Mnemonic::Pushfq | Mnemonic::Pushfd if flat => Kind::PushFlags,
        // Others may change IF, but not IOPL.
        Mnemonic::Popfq | Mnemonic::Popfd
            if flat && (ring0 || mode.has(Mode::USER | Mode::IO_DENIED)) =>
        {
            Kind::PopFlags
        }
        Mnemonic::Rdtsc | Mnemonic::Rdtscp => Kind::TimeStamp,
        Mnemonic::Stac if ring0 && code64 => Kind::UserPages(true),
        Mnemonic::Clac if ring0 && code64 => Kind::UserPages(false),
        Mnemonic::Rdpkru if code64 => Kind::ReadKeyRights,
        Mnemonic::Xgetbv => Kind::ReadExtendedControl,
        Mnemonic::Rdpid => Kind::ReadProcessor,
        Mnemonic::Mov if insn.code() == Code::Mov_r64_cr => {
            let known = matches!(insn.op1_register().number(), 0 | 2 | 3 | 4);
            return (known && ring0 && code64).then_some(Kind::ReadControl);
        }
        Mnemonic::Mov
            if insn.op1_register().is_segment_register() && insn.op0_register().is_gpr() =>
        {
            Kind::ReadSelector
        }
        Mnemonic::Lar | Mnemonic::Lsl | Mnemonic::Verr | Mnemonic::Verw => {
            let protected = mode.has(Mode::PROTECTED) && !mode.has(Mode::VM86);
            return (protected && (ring0 || mode.has(Mode::USER))).then_some(Kind::AskSelector);
        }
        Mnemonic::Mov | Mnemonic::Pop if loads_data_segment(insn) => {
            return (ring0 || mode.has(Mode::USER)).then_some(Kind::LoadSegment);
        }
        Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs
            if !flat && insn.op1_kind() == OpKind::Memory =>
        {
            return (ring0 || mode.has(Mode::USER)).then_some(Kind::LoadSegment);
        }
        Mnemonic::Rdfsbase | Mnemonic::Rdgsbase if code64 => Kind::ReadBase,
        Mnemonic::Wrfsbase | Mnemonic::Wrgsbase if code64 => Kind::WriteBase,
        Mnemonic::Enter => {
            let whole = if code64 {
                Code::Enterq_imm16_imm8
            } else if mode.has(Mode::WIDE_STACK) {
                Code::Enterd_imm16_imm8
            } else {
                Code::Enterw_imm16_imm8
            };
            return (insn.code() == whole).then_some(Kind::Enter);
        }
        Mnemonic::Aaa
        | Mnemonic::Aad
        | Mnemonic::Aam
        | Mnemonic::Aas
        | Mnemonic::Daa
        | Mnemonic::Das => Kind::Decimal,
        Mnemonic::Bound => Kind::Bound,
        Mnemonic::Fnstenv | Mnemonic::Fldenv | Mnemonic::Fnsave | Mnemonic::Frstor => {
            let wide = matches!(
                insn.code(),
                Code::Fnstenv_m28byte
                    | Code::Fldenv_m28byte
                    | Code::Fnsave_m108byte
                    | Code::Frstor_m108byte
            );
            let masked = mode.has(Mode::X87) && !mode.has(Mode::X87_UNMASKED);
            return (wide && flat && masked).then_some(Kind::Environment);
        }
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => Kind::FlushLine,
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr if enabled() => Kind::LoadVectorControl,
        _ => return None,
    })
}

/// Not SS, behind whose loads interrupts wait.
fn loads_data_segment(insn: &Instruction) -> bool {
    matches!(
        insn.op0_register(),
        Register::DS | Register::ES | Register::FS | Register::GS
    )
}
