//! The processors that can be named: levels of the architecture, and the generations of Intel's processors
//! under QEMU's names, as far as their features exist here.

use super::cpuid::{Feature, Level};
use Feature::*;

/// A named processor.
pub(super) struct Named {
    pub name: &'static str,
    /// How far down the table's levels it goes.
    pub level: Level,
    /// What it has besides: a list for each generation.
    pub more: &'static [&'static [Feature]],
    /// What it lacks of its level.
    pub less: &'static [Feature],
    /// CPUID.1:EAX: family, model and stepping (SDM volume 2, CPUID).
    pub signature: u32,
    /// Leaves 0x8000_0002 to 0x8000_0004: at most 48 bytes.
    pub brand: &'static str,
}

/// Family 6, model 0x55, stepping 7: a server whose list of errata and weaknesses that kernels
/// work around is short.
const SERVER: u32 = 0x0005_0657;
const BRAND: &str = "kMemvisor virtual CPU";

const CONROE: &[Feature] = &[Sse3, Ssse3, LahfLm];
const PENRYN: &[Feature] = &[Sse41, Cx16];
const NEHALEM: &[Feature] = &[Sse42, Popcnt];
const WESTMERE: &[Feature] = &[Aes, Pclmulqdq, Arat];
const SANDY_BRIDGE: &[Feature] = &[X2apic, TscDeadline, Xsave, Xsaveopt, Avx, Rdtscp];
const IVY_BRIDGE: &[Feature] = &[Fsgsbase, Smep, Erms, F16c, Rdrand];
const HASWELL: &[Feature] = &[Fma, Movbe, Pcid, Invpcid, Bmi1, Bmi2, Avx2, Lzcnt];
const BROADWELL: &[Feature] = &[Rdseed, Adx, Smap, Prefetchw];
const SKYLAKE: &[Feature] = &[Xsavec, Xgetbv1];
const SKYLAKE_SERVER: &[Feature] = &[Clwb, Clflushopt, Pdpe1gb, Pku];
const CASCADE_LAKE: &[Feature] = &[SpecCtrl, Ssbd, ArchCapabilities];

/// Each generation has what those before it had.
const GENERATIONS: &[&[Feature]] = &[
    CONROE,
    PENRYN,
    NEHALEM,
    WESTMERE,
    SANDY_BRIDGE,
    IVY_BRIDGE,
    HASWELL,
    BROADWELL,
    SKYLAKE,
    SKYLAKE_SERVER,
    CASCADE_LAKE,
];

const fn level(name: &'static str, level: Level) -> Named {
    Named {
        name,
        level,
        more: &[],
        less: &[],
        signature: SERVER,
        brand: BRAND,
    }
}

/// The first generations, up to a number of them.
const fn generation(
    name: &'static str,
    generations: usize,
    signature: u32,
    brand: &'static str,
) -> Named {
    Named {
        name,
        level: Level::Base,
        more: GENERATIONS.split_at(generations).0,
        less: &[],
        signature,
        brand,
    }
}

/// All of them.
pub(super) const MODELS: &[Named] = &[
    level("max", Level::Max),
    level("host", Level::Max),
    level("qemu64", Level::Qemu64),
    level("x86-64-v1", Level::Base),
    level("x86-64-v2", Level::V2),
    level("x86-64-v3", Level::V3),
    // There is no AVX-512: version 4 is version 3.
    level("x86-64-v4", Level::V3),
    Named {
        name: "qemu32",
        level: Level::Base,
        more: &[&[Sse3]],
        less: &[Lm, Syscall, Nx],
        signature: 0x663,
        brand: BRAND,
    },
    Named {
        name: "kvm32",
        level: Level::Base,
        more: &[&[Sse3]],
        less: &[Lm, Syscall, Nx],
        signature: 0xf61,
        brand: "Common 32-bit KVM processor",
    },
    Named {
        name: "kvm64",
        level: Level::Base,
        more: &[&[Sse3, Cx16]],
        less: &[],
        signature: 0xf61,
        brand: "Common KVM processor",
    },
    generation(
        "Conroe",
        1,
        0x6f3,
        "Intel Celeron_4x0 (Conroe/Merom Class Core 2)",
    ),
    generation(
        "Penryn",
        2,
        0x1_0673,
        "Intel Core 2 Duo P9xxx (Penryn Class Core 2)",
    ),
    generation(
        "Nehalem",
        3,
        0x1_06a3,
        "Intel Core i7 9xx (Nehalem Class Core i7)",
    ),
    generation(
        "Westmere",
        4,
        0x2_06c1,
        "Westmere E56xx/L56xx/X56xx (Nehalem-C)",
    ),
    generation(
        "SandyBridge",
        5,
        0x2_06a1,
        "Intel Xeon E312xx (Sandy Bridge)",
    ),
    generation(
        "IvyBridge",
        6,
        0x3_06a9,
        "Intel Xeon E3-12xx v2 (Ivy Bridge)",
    ),
    generation("Haswell", 7, 0x3_06c4, "Intel Core Processor (Haswell)"),
    generation("Broadwell", 8, 0x3_06d2, "Intel Core Processor (Broadwell)"),
    generation(
        "Skylake-Client",
        9,
        0x5_06e3,
        "Intel Core Processor (Skylake)",
    ),
    generation(
        "Skylake-Server",
        10,
        0x5_0654,
        "Intel Xeon Processor (Skylake)",
    ),
    generation(
        "Cascadelake-Server",
        11,
        0x5_0656,
        "Intel Xeon Processor (Cascadelake)",
    ),
];

/// Endings of QEMU's names that say which mitigations or what else of that generation is there, none of which
/// changes what these models are.
const VARIANTS: &[&str] = &["-noTSX", "-IBRS", "-v1", "-v2", "-v3", "-v4", "-v5"];

/// The model of a name.
pub(super) fn named(name: &str) -> Option<&'static Named> {
    let exactly = |name: &str| MODELS.iter().find(|model| model.name == name);
    exactly(name).or_else(|| {
        let mut shorter = name;
        while let Some(rest) = VARIANTS.iter().find_map(|end| shorter.strip_suffix(end)) {
            shorter = rest;
        }
        exactly(shorter).filter(|model| model.level == Level::Base && model.more.len() > 1)
    })
}
