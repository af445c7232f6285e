//! What CPUID says: one table of features, the processor models made from it, and the leaves
//! (SDM volume 2, CPUID).

use std::mem::offset_of;

use super::flags::CR4_OSXSAVE;
use super::flags::CR4_PKE;
use super::models::{self, MODELS, Named};
use super::state::CpuState;

/// An option of a processor model that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuModelError {
    /// The first word is not a model.
    #[error("no CPU model is called '{name}'; there are: {known}")]
    UnknownModel {
        /// As given.
        name: String,
        /// The models' names.
        known: String,
    },
    /// A later word is not a feature with + or - before it, or =on or =off after it.
    #[error("'{option}' is not a CPU feature of this emulator (write +name, -name or name=on|off)")]
    UnknownFeature {
        /// As given.
        option: String,
    },
}

/// The register of a leaf that holds a feature's bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Output {
    Eax = 0,
    Ebx = 1,
    Ecx = 2,
    Edx = 3,
}

/// The smallest level of the architecture that has a feature.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Level {
    /// The x86-64 baseline with what every PC of its time has.
    Base,
    /// `qemu64` adds these to the baseline.
    Qemu64,
    V2,
    V3,
    /// `max` only.
    Max,
    /// Only when asked for.
    Never,
}

/// One feature: its bit, and what it takes.
struct Description {
    name: &'static str,
    leaf: u32,
    subleaf: u32,
    output: Output,
    bit: u32,
    level: Level,
    /// Whether the host executes it: what needs nothing of the host, every host does.
    host: fn() -> bool,
    /// There is a portable implementation, or nothing to implement.
    portable: bool,
    /// The feature without which it means nothing.
    needs: Option<Feature>,
}

fn anywhere() -> bool {
    true
}

/// Whether the host has a feature, under the standard library's name for it.
macro_rules! host {
    () => {
        anywhere
    };
    ($name:tt) => {{
        fn detected() -> bool {
            #[cfg(target_arch = "x86_64")]
            {
                std::arch::is_x86_feature_detected!($name)
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                false
            }
        }
        detected
    }};
}

/// Whether a feature that needs the host (if any is named) has a portable implementation.
macro_rules! portable {
    () => {
        true
    };
    ($name:tt) => {
        false
    };
    ($name:tt portable) => {
        true
    };
}

macro_rules! needs {
    () => {
        None
    };
    ($feature:ident) => {
        Some(Feature::$feature)
    };
}

macro_rules! features {
    ($($id:ident $name:literal: $leaf:literal, $sub:literal $output:ident $bit:literal $level:ident
        [$($host:tt $($portable:tt)?)?] [$($needs:ident)?];)*) => {
        /// A feature that CPUID enumerates and that can be switched by name.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum Feature { $($id),* }

        const TABLE: &[Description] = &[$(Description {
            name: $name,
            leaf: $leaf,
            subleaf: $sub,
            output: Output::$output,
            bit: $bit,
            level: Level::$level,
            host: host!($($host)?),
            portable: portable!($($host $($portable)?)?),
            needs: needs!($($needs)?),
        }),*];

        const ALL: &[Feature] = &[$(Feature::$id),*];
    };
}

// name, leaf, subleaf, register, bit, the first model that has it, the host's name for it if
// translated code needs it there (and whether the interpreter has it portably), the feature it
// needs.
features! {
    Fpu "fpu": 1, 0 Edx 0 Base [] [];
    Vme "vme": 1, 0 Edx 1 Base [] [];
    De "de": 1, 0 Edx 2 Base [] [];
    Pse "pse": 1, 0 Edx 3 Base [] [];
    Tsc "tsc": 1, 0 Edx 4 Base [] [];
    Msr "msr": 1, 0 Edx 5 Base [] [];
    Pae "pae": 1, 0 Edx 6 Base [] [];
    Mce "mce": 1, 0 Edx 7 Base [] [];
    Cx8 "cx8": 1, 0 Edx 8 Base [] [];
    Apic "apic": 1, 0 Edx 9 Base [] [];
    Sep "sep": 1, 0 Edx 11 Base [] [];
    Mtrr "mtrr": 1, 0 Edx 12 Base [] [];
    Pge "pge": 1, 0 Edx 13 Base [] [];
    Mca "mca": 1, 0 Edx 14 Base [] [];
    Cmov "cmov": 1, 0 Edx 15 Base [] [];
    Pat "pat": 1, 0 Edx 16 Base [] [];
    Pse36 "pse36": 1, 0 Edx 17 Base [] [];
    Clflush "clflush": 1, 0 Edx 19 Base [] [];
    Mmx "mmx": 1, 0 Edx 23 Base [] [];
    Fxsr "fxsr": 1, 0 Edx 24 Base [] [];
    Sse "sse": 1, 0 Edx 25 Base [] [];
    Sse2 "sse2": 1, 0 Edx 26 Base [] [Sse];
    Ss "ss": 1, 0 Edx 27 Max [] [];
    Sse3 "sse3": 1, 0 Ecx 0 Qemu64 ["sse3" portable] [Sse2];
    Pclmulqdq "pclmulqdq": 1, 0 Ecx 1 Max ["pclmulqdq"] [Sse2];
    Ssse3 "ssse3": 1, 0 Ecx 9 V2 ["ssse3" portable] [Sse3];
    Fma "fma": 1, 0 Ecx 12 V3 ["fma"] [Avx];
    Cx16 "cx16": 1, 0 Ecx 13 Qemu64 [] [];
    Pcid "pcid": 1, 0 Ecx 17 Max [] [];
    Sse41 "sse4.1": 1, 0 Ecx 19 V2 ["sse4.1" portable] [Ssse3];
    Sse42 "sse4.2": 1, 0 Ecx 20 V2 ["sse4.2" portable] [Sse41];
    X2apic "x2apic": 1, 0 Ecx 21 Max [] [Apic];
    Movbe "movbe": 1, 0 Ecx 22 V3 ["movbe" portable] [];
    Popcnt "popcnt": 1, 0 Ecx 23 V2 ["popcnt" portable] [];
    TscDeadline "tsc-deadline": 1, 0 Ecx 24 Max [] [Apic];
    Aes "aes": 1, 0 Ecx 25 Max ["aes"] [Sse2];
    Xsave "xsave": 1, 0 Ecx 26 V3 [] [];
    Avx "avx": 1, 0 Ecx 28 V3 ["avx"] [Xsave];
    F16c "f16c": 1, 0 Ecx 29 V3 ["f16c"] [Avx];
    Rdrand "rdrand": 1, 0 Ecx 30 Max [] [];
    Hypervisor "hypervisor": 1, 0 Ecx 31 Never [] [];
    Arat "arat": 6, 0 Eax 2 Max [] [];
    Fsgsbase "fsgsbase": 7, 0 Ebx 0 Max [] [];
    TscAdjust "tsc-adjust": 7, 0 Ebx 1 Max [] [];
    Bmi1 "bmi1": 7, 0 Ebx 3 V3 ["bmi1" portable] [];
    Avx2 "avx2": 7, 0 Ebx 5 V3 ["avx2"] [Avx];
    FdpExcptnOnly "fdp-excptn-only": 7, 0 Ebx 6 Max [] [];
    Smep "smep": 7, 0 Ebx 7 Max [] [];
    Bmi2 "bmi2": 7, 0 Ebx 8 V3 ["bmi2" portable] [];
    Erms "erms": 7, 0 Ebx 9 Max [] [];
    Invpcid "invpcid": 7, 0 Ebx 10 Max [] [];
    ZeroFcsFds "zero-fcs-fds": 7, 0 Ebx 13 Max [] [];
    Rdseed "rdseed": 7, 0 Ebx 18 Max [] [];
    Adx "adx": 7, 0 Ebx 19 Max ["adx" portable] [];
    Smap "smap": 7, 0 Ebx 20 Max [] [];
    Clflushopt "clflushopt": 7, 0 Ebx 23 Max [] [];
    Clwb "clwb": 7, 0 Ebx 24 Max [] [];
    ShaNi "sha-ni": 7, 0 Ebx 29 Max ["sha"] [Sse2];
    Umip "umip": 7, 0 Ecx 2 Max [] [];
    Pku "pku": 7, 0 Ecx 3 Max [] [Xsave];
    Vaes "vaes": 7, 0 Ecx 9 Max ["vaes"] [Avx];
    Vpclmulqdq "vpclmulqdq": 7, 0 Ecx 10 Max ["vpclmulqdq"] [Avx];
    Rdpid "rdpid": 7, 0 Ecx 22 Max [] [];
    Fsrm "fsrm": 7, 0 Edx 4 Max [] [Erms];
    MdClear "md-clear": 7, 0 Edx 10 Max [] [];
    SpecCtrl "spec-ctrl": 7, 0 Edx 26 Max [] [];
    Stibp "stibp": 7, 0 Edx 27 Max [] [SpecCtrl];
    FlushL1d "flush-l1d": 7, 0 Edx 28 Max [] [];
    ArchCapabilities "arch-capabilities": 7, 0 Edx 29 Max [] [];
    Ssbd "ssbd": 7, 0 Edx 31 Max [] [SpecCtrl];
    Xsaveopt "xsaveopt": 13, 1 Eax 0 Max [] [Xsave];
    Xsavec "xsavec": 13, 1 Eax 1 Max [] [Xsave];
    Xgetbv1 "xgetbv1": 13, 1 Eax 2 Max [] [Xsave];
    LahfLm "lahf-lm": 0x8000_0001, 0 Ecx 0 Qemu64 [] [];
    Lzcnt "lzcnt": 0x8000_0001, 0 Ecx 5 V3 ["lzcnt" portable] [];
    Prefetchw "3dnowprefetch": 0x8000_0001, 0 Ecx 8 Max [] [];
    Syscall "syscall": 0x8000_0001, 0 Edx 11 Base [] [];
    Nx "nx": 0x8000_0001, 0 Edx 20 Base [] [];
    Pdpe1gb "pdpe1gb": 0x8000_0001, 0 Edx 26 Max [] [];
    Rdtscp "rdtscp": 0x8000_0001, 0 Edx 27 Max [] [];
    Lm "lm": 0x8000_0001, 0 Edx 29 Base [] [];
    Invtsc "invtsc": 0x8000_0007, 0 Edx 8 Max [] [];
}

// Bit 127 stands for what no model has.
const _: () = assert!(TABLE.len() < 128);

/// Other spellings that people and tools use.
const ALIASES: &[(&str, &str)] = &[
    ("pni", "sse3"),
    ("abm", "lzcnt"),
    ("sse4_1", "sse4.1"),
    ("sse4_2", "sse4.2"),
    ("sse4-1", "sse4.1"),
    ("sse4-2", "sse4.2"),
    ("tsc_adjust", "tsc-adjust"),
    ("lahf_lm", "lahf-lm"),
    ("tsc_deadline", "tsc-deadline"),
];

/// Settings of QEMU's processors that say nothing of this one: width of addresses, accelerator,
/// and what to do about features that are missing.
const IGNORED: &[&str] = &[
    "check",
    "enforce",
    "host-phys-bits",
    "kvm",
    "l3-cache",
    "migratable",
    "pmu",
];

/// The crystal clock of leaf 0x15, in hertz. Kernels take it for the APIC timer's input clock
/// as well, so it has to be that timer's 1 GHz.
pub const CRYSTAL_HZ: u64 = 1_000_000_000;
/// What there is to execute a guest's extensions: a model advertises nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostSupport {
    features: u128,
}

impl HostSupport {
    fn of(supported: impl Fn(&Description) -> bool) -> HostSupport {
        let features = TABLE
            .iter()
            .enumerate()
            .filter(|(_, description)| supported(description))
            .fold(0, |features, (index, _)| features | 1 << index);
        HostSupport { features }
    }

    /// The host processor, where it executes guest instructions; elsewhere the portable
    /// implementation.
    pub fn detect() -> HostSupport {
        if cfg!(all(target_arch = "x86_64", target_os = "linux")) {
            HostSupport::of(|description| (description.host)())
        } else {
            HostSupport::portable()
        }
    }

    /// The portable implementation alone.
    pub fn portable() -> HostSupport {
        HostSupport::of(|description| description.portable)
    }

    /// The same without one feature.
    pub fn without(self, feature: Feature) -> HostSupport {
        HostSupport {
            features: self.features & !(1 << feature as u8),
        }
    }

    fn has(&self, feature: Feature) -> bool {
        self.features >> feature as u8 & 1 != 0
    }
}

/// A processor model: its features, and the facts of the machine that CPUID tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    features: u128,
    /// Family, model and stepping.
    signature: u32,
    brand: &'static str,
    /// Frequency of the time-stamp counter, in hertz; a multiple of 100 MHz reads best.
    pub tsc_hz: u64,
    /// Number of this processor's APIC.
    pub apic_id: u32,
    /// Processors in the machine, one core each.
    pub processors: u32,
}

impl Default for CpuModel {
    fn default() -> Self {
        CpuModel::of(&MODELS[0]).on(&HostSupport::detect())
    }
}

impl CpuModel {
    fn of(named: &Named) -> CpuModel {
        let mut model = CpuModel {
            features: 0,
            signature: named.signature,
            brand: named.brand,
            tsc_hz: 1_000_000_000,
            apic_id: 0,
            processors: 1,
        };
        for (feature, description) in ALL.iter().zip(TABLE) {
            if description.level <= named.level {
                model.set(*feature, true);
            }
        }
        for feature in named.more.iter().copied().flatten() {
            model.set(*feature, true);
        }
        for feature in named.less {
            model.set(*feature, false);
        }
        model
    }

    /// A model by name, with features added and removed: `max,-avx2,+hypervisor`. Features
    /// that the host cannot execute, or that need a removed one, are dropped.
    pub fn parse(text: &str) -> Result<CpuModel, CpuModelError> {
        CpuModel::parse_for(text, &HostSupport::detect())
    }

    /// As [`CpuModel::parse`], for what a given host can execute.
    pub fn parse_for(text: &str, host: &HostSupport) -> Result<CpuModel, CpuModelError> {
        let mut words = text.split(',').map(str::trim);
        let name = words.next().unwrap_or_default();
        let Some(named) = models::named(name) else {
            let known: Vec<&str> = CpuModel::names().collect();
            return Err(CpuModelError::UnknownModel {
                name: name.to_owned(),
                known: known.join(", "),
            });
        };
        let mut model = CpuModel::of(named);
        for option in words {
            let key = option.split_once('=').map_or(option, |(key, _)| key);
            if IGNORED.contains(&key) || option == "vendor=GenuineIntel" {
                continue;
            }
            let unknown = || CpuModelError::UnknownFeature {
                option: option.to_owned(),
            };
            let (name, on) = if let Some(name) = option.strip_prefix('+') {
                (name, true)
            } else if let Some(name) = option.strip_prefix('-') {
                (name, false)
            } else if let Some(name) = option.strip_suffix("=on") {
                (name, true)
            } else {
                (option.strip_suffix("=off").ok_or_else(unknown)?, false)
            };
            let feature = CpuModel::feature(name).ok_or_else(unknown)?;
            model.set(feature, on);
        }
        Ok(model.on(host))
    }

    /// The names of all models.
    pub fn names() -> impl Iterator<Item = &'static str> {
        MODELS.iter().map(|model| model.name)
    }

    /// The names of the features that this model has.
    pub fn feature_names(&self) -> impl Iterator<Item = &'static str> {
        let features = self.features;
        TABLE
            .iter()
            .enumerate()
            .filter(move |(index, _)| features >> index & 1 != 0)
            .map(|(_, description)| description.name)
    }

    fn feature(name: &str) -> Option<Feature> {
        let name = ALIASES
            .iter()
            .find(|(alias, _)| *alias == name)
            .map_or(name, |(_, name)| name);
        let index = TABLE
            .iter()
            .position(|description| description.name == name)?;
        Some(ALL[index])
    }

    /// Whether the model has a feature.
    #[inline]
    pub fn has(&self, feature: Feature) -> bool {
        self.features >> feature as u8 & 1 != 0
    }

    /// Where in a model the byte is that has a feature's bit, and that bit.
    pub(crate) const fn place_of(feature: Feature) -> (usize, u8) {
        let number = feature as usize;
        (
            offset_of!(CpuModel, features) + number / 8,
            1 << (number % 8),
        )
    }

    /// All features of the model, each at the bit of its number.
    #[inline]
    pub fn feature_bits(&self) -> u128 {
        self.features
    }

    fn set(&mut self, feature: Feature, on: bool) {
        let bit = 1 << feature as u8;
        if on {
            self.features |= bit;
        } else {
            self.features &= !bit;
        }
    }

    /// The model without what a host cannot execute, and without what needs any of that.
    pub fn on(mut self, host: &HostSupport) -> CpuModel {
        loop {
            let before = self.features;
            for (feature, description) in ALL.iter().zip(TABLE) {
                let needed = description.needs.is_none_or(|other| self.has(other));
                if !needed || !host.has(*feature) {
                    self.set(*feature, false);
                }
            }
            if self.features == before {
                return self;
            }
        }
    }

    /// Family, model and stepping, as EDX holds them after reset.
    pub fn signature(&self) -> u32 {
        self.signature
    }

    /// The features of one leaf, in EAX, EBX, ECX, EDX.
    pub(super) fn bits(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let mut out = [0; 4];
        for (feature, description) in ALL.iter().zip(TABLE) {
            if description.leaf == leaf && description.subleaf == subleaf && self.has(*feature) {
                out[description.output as usize] |= 1 << description.bit;
            }
        }
        out
    }
}

const LAST_BASIC: u32 = 0x16;
const HYPERVISOR: u32 = 0x4000_0000;
const LAST_EXTENDED: u32 = 0x8000_0008;

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a.max(1)
}

/// EAX, EBX, ECX and EDX of a leaf. `apic_enabled` is IA32_APIC_BASE's enable bit, which the
/// APIC feature in leaf 1 follows.
pub fn query(cpu: &CpuState, apic_enabled: bool, leaf: u32, subleaf: u32) -> [u32; 4] {
    let model = &cpu.model;
    let leaf = match leaf {
        0..=LAST_BASIC | 0x8000_0000..=LAST_EXTENDED => leaf,
        HYPERVISOR if model.has(Feature::Hypervisor) => leaf,
        // Beyond the end, the last basic leaf answers.
        _ => LAST_BASIC,
    };
    let bits = || model.bits(leaf, 0);
    match leaf {
        // "GenuineIntel".
        0 => [LAST_BASIC, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
        1 => {
            let [_, _, mut ecx, mut edx] = bits();
            if cpu.control.cr4 & CR4_OSXSAVE != 0 {
                ecx |= 1 << 27;
            }
            if !apic_enabled {
                edx &= !(1 << 9);
            }
            let processors = model.processors.clamp(1, 255);
            if processors > 1 {
                edx |= 1 << 28;
            }
            let flush_line = 8 << 8;
            let ebx = model.apic_id << 24 | processors << 16 | flush_line;
            [model.signature(), ebx, ecx, edx]
        }
        // Leaf 4 describes the caches; 64-byte prefetching.
        2 => [0x00fe_ff01, 0x0000_00f0, 0, 0],
        4 => cache(model, subleaf),
        6 => bits(),
        7 if subleaf == 0 => {
            let [eax, ebx, mut ecx, edx] = bits();
            if cpu.control.cr4 & CR4_PKE != 0 {
                ecx |= 1 << 4;
            }
            [eax, ebx, ecx, edx]
        }
        0xb => topology(model, subleaf),
        0xd if model.has(Feature::Xsave) => super::extended_state::leaf(cpu, subleaf),
        0x15 => {
            let divisor = greatest_common_divisor(model.tsc_hz, CRYSTAL_HZ);
            [
                (CRYSTAL_HZ / divisor) as u32,
                (model.tsc_hz / divisor) as u32,
                CRYSTAL_HZ as u32,
                0,
            ]
        }
        0x16 => {
            let megahertz = (model.tsc_hz / 1_000_000) as u32;
            [megahertz, megahertz, 100, 0]
        }
        HYPERVISOR => [HYPERVISOR, 0x6d65_4d6b, 0x6f73_6976, 0x0000_0072],
        0x8000_0000 => [LAST_EXTENDED, 0, 0, 0],
        0x8000_0002..=0x8000_0004 => {
            let start = (leaf - 0x8000_0002) as usize * 16;
            let byte = |at: usize| u32::from(*model.brand.as_bytes().get(start + at).unwrap_or(&0));
            [0, 4, 8, 12].map(|at| (0..4).fold(0, |word, i| word | byte(at + i) << (8 * i)))
        }
        // L2: 1 MiB, 16 ways, 64-byte lines.
        0x8000_0006 => [0, 0, 1024 << 16 | 8 << 12 | 64, 0],
        0x8000_0008 => [48 << 8 | mmu::PHYSICAL_BITS, 0, 0, 0],
        0x8000_0001 | 0x8000_0007 => bits(),
        _ => [0; 4],
    }
}

/// Leaf 4: 32 KiB L1 data and code, 1 MiB L2, 16 MiB L3 shared by all.
fn cache(model: &CpuModel, subleaf: u32) -> [u32; 4] {
    let shared_by_all = model.processors.max(1).next_power_of_two().min(4096) - 1;
    let cores = shared_by_all.min(63);
    // Type, level, ways, sets, how many share it less one.
    let (kind, level, ways, sets, sharing) = match subleaf {
        0 => (1, 1, 8, 64, 0),
        1 => (2, 1, 8, 64, 0),
        2 => (3, 2, 16, 1024, 0),
        3 => (3, 3, 16, 16384, shared_by_all),
        _ => return [0; 4],
    };
    const SELF_INITIALISING: u32 = 1 << 8;
    [
        kind | level << 5 | SELF_INITIALISING | sharing << 14 | cores << 26,
        (ways - 1) << 22 | 63,
        sets - 1,
        0,
    ]
}

/// Leaf 0xB: one thread a core, all cores in one package.
fn topology(model: &CpuModel, subleaf: u32) -> [u32; 4] {
    let processors = model.processors.max(1);
    let level = subleaf & 0xff;
    match subleaf {
        0 => [0, 1, 1 << 8 | level, model.apic_id],
        1 => {
            let shift = processors.next_power_of_two().trailing_zeros();
            [shift, processors, 2 << 8 | level, model.apic_id]
        }
        _ => [0, 0, level, model.apic_id],
    }
}
