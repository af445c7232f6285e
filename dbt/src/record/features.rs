//! Which CPUID feature an instruction needs. A processor without it raises #UD.

use std::sync::LazyLock;

use iced_x86::{Code, CpuidFeature, DecoderOptions};

use crate::guest::cpuid::{CpuModel, Feature};

/// What a CPUID feature of iced-x86 asks of the guest's processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Requirement {
    /// Every x86-64 processor has it, or executes its encodings as something else that iced-x86
    /// decodes, or as nothing.
    Baseline,
    /// This bit.
    Bit(Feature),
    /// No processor model here has it.
    Absent,
}

/// What a feature asks.
pub fn requirement(feature: CpuidFeature) -> Requirement {
    use CpuidFeature as F;
    use Requirement::{Absent, Baseline, Bit};
    match feature {
        F::INTEL8086
        | F::INTEL8086_ONLY
        | F::INTEL186
        | F::INTEL286
        | F::INTEL286_ONLY
        | F::INTEL386
        | F::INTEL386_ONLY
        | F::INTEL486
        | F::X64
        | F::CLFSH
        | F::CMOV
        | F::CPUID
        | F::CX8
        | F::FPU
        | F::FPU287
        | F::FPU387
        | F::FXSR
        | F::MMX
        | F::MSR
        | F::MULTIBYTENOP
        | F::PAUSE
        | F::RDPMC
        | F::SEP
        | F::SMM
        | F::SSE
        | F::SSE2
        | F::SYSCALL
        | F::TSC => Baseline,
        // Hints: elsewhere their encodings do nothing.
        F::CET_IBT | F::CLDEMOTE | F::PREFETCHITI | F::PREFETCHW | F::PREFETCHWT1 => Baseline,
        // The decoder is told to take TZCNT and LZCNT for BSF and BSR.
        F::LZCNT => Baseline,
        F::SSE3 => Bit(Feature::Sse3),
        F::SSSE3 => Bit(Feature::Ssse3),
        F::SSE4_1 => Bit(Feature::Sse41),
        F::SSE4_2 => Bit(Feature::Sse42),
        F::AES => Bit(Feature::Aes),
        F::PCLMULQDQ => Bit(Feature::Pclmulqdq),
        F::SHA => Bit(Feature::ShaNi),
        F::AVX => Bit(Feature::Avx),
        F::AVX2 => Bit(Feature::Avx2),
        F::VAES => Bit(Feature::Vaes),
        F::VPCLMULQDQ => Bit(Feature::Vpclmulqdq),
        F::FMA => Bit(Feature::Fma),
        F::F16C => Bit(Feature::F16c),
        F::BMI1 => Bit(Feature::Bmi1),
        F::BMI2 => Bit(Feature::Bmi2),
        F::ADX => Bit(Feature::Adx),
        F::MOVBE => Bit(Feature::Movbe),
        F::POPCNT => Bit(Feature::Popcnt),
        F::CMPXCHG16B => Bit(Feature::Cx16),
        F::CLFLUSHOPT => Bit(Feature::Clflushopt),
        F::CLWB => Bit(Feature::Clwb),
        F::FSGSBASE => Bit(Feature::Fsgsbase),
        F::INVPCID => Bit(Feature::Invpcid),
        F::PKU => Bit(Feature::Pku),
        F::RDPID => Bit(Feature::Rdpid),
        F::RDRAND => Bit(Feature::Rdrand),
        F::RDSEED => Bit(Feature::Rdseed),
        F::RDTSCP => Bit(Feature::Rdtscp),
        F::SMAP => Bit(Feature::Smap),
        F::XSAVE => Bit(Feature::Xsave),
        F::XSAVEC => Bit(Feature::Xsavec),
        F::XSAVEOPT => Bit(Feature::Xsaveopt),
        _ => Absent,
    }
}

/// A bit that no model sets: models have fewer features than bits.
const NEVER: u128 = 1 << 127;

/// The features that each code needs.
static NEEDED: LazyLock<Vec<u128>> = LazyLock::new(|| {
    let needed = |code: Code| match code {
        // Reserved no-operations where there are no shadow stacks.
        Code::Rdsspd_r32 | Code::Rdsspq_r64 => 0,
        // Its encoding is BSF's, and the decoder is told which it is.
        Code::Tzcnt_r16_rm16 | Code::Tzcnt_r32_rm32 | Code::Tzcnt_r64_rm64 => 0,
        _ => code
            .cpuid_features()
            .iter()
            .fold(0, |all, &feature| match requirement(feature) {
                Requirement::Baseline => all,
                Requirement::Bit(feature) => all | 1 << feature as u8,
                Requirement::Absent => all | NEVER,
            }),
    };
    Code::values().map(needed).collect()
});

/// A bit for each code that needs something: the few that do not fit a processor are looked for in
/// a hundredth of the room that [`NEEDED`] takes in the host's caches.
static DEMANDING: LazyLock<Vec<u64>> = LazyLock::new(|| {
    let bits = |codes: &[u128]| {
        let demanding = codes.iter().enumerate();
        demanding.fold(0, |all, (bit, &needed)| all | u64::from(needed != 0) << bit)
    };
    NEEDED.chunks(64).map(bits).collect()
});

/// Whether the processor has everything that a code needs.
#[inline]
pub fn present(code: Code, model: &CpuModel) -> bool {
    let code = code as usize;
    DEMANDING[code / 64] >> (code % 64) & 1 == 0 || NEEDED[code] & !model.feature_bits() == 0
}

/// What the decoder has to take for something older on this processor.
pub fn decoder_options(model: &CpuModel) -> u32 {
    let mut options = DecoderOptions::NO_WBNOINVD;
    for (feature, without) in [
        (Feature::Bmi1, DecoderOptions::NO_MPFX_0FBC),
        (Feature::Lzcnt, DecoderOptions::NO_MPFX_0FBD),
        (Feature::LahfLm, DecoderOptions::NO_LAHF_SAHF_64),
    ] {
        if !model.has(feature) {
            options |= without;
        }
    }
    options
}
