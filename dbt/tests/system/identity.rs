//! Processor models and what CPUID says of them.

use dbt::guest::cpuid::query;
use dbt::guest::flags::CR4_OSXSAVE;
use dbt::guest::{CpuModel, CpuModelError, CpuState, Feature};

fn cpu(model: &str) -> CpuState {
    let mut cpu = CpuState::at_reset();
    cpu.model = CpuModel::parse(model).expect(model);
    cpu
}

#[test]
fn options_add_and_remove_features() {
    let plain = CpuModel::parse("max").unwrap();
    assert!(plain.has(Feature::Pcid) && !plain.has(Feature::Hypervisor));
    let changed = CpuModel::parse("max,-pcid,+hypervisor,smap=off").unwrap();
    assert!(!changed.has(Feature::Pcid) && changed.has(Feature::Hypervisor));
    assert!(!changed.has(Feature::Smap));
    // What needs a removed feature goes with it.
    let without = CpuModel::parse("max,-xsave").unwrap();
    for feature in [Feature::Avx, Feature::Avx2, Feature::Fma, Feature::Xsaveopt] {
        assert!(!without.has(feature), "{feature:?}");
    }
}

#[test]
fn errors_name_the_option() {
    assert_eq!(
        CpuModel::parse("max,+warp"),
        Err(CpuModelError::UnknownFeature {
            option: "+warp".to_owned()
        })
    );
    let error = CpuModel::parse("i8086").unwrap_err().to_string();
    assert!(
        error.contains("'i8086'") && error.contains("qemu64"),
        "{error}"
    );
}

#[test]
fn levels_nest() {
    let names =
        |model: &str| -> Vec<&str> { CpuModel::parse(model).unwrap().feature_names().collect() };
    for (small, large) in [
        ("x86-64-v1", "x86-64-v2"),
        ("x86-64-v2", "x86-64-v3"),
        ("x86-64-v3", "max"),
    ] {
        let large_names = names(large);
        assert!(
            names(small).iter().all(|name| large_names.contains(name)),
            "{small} in {large}"
        );
    }
    assert!(!names("x86-64-v1").contains(&"popcnt"));
}

#[test]
fn leaves() {
    let mut machine = cpu("max");
    machine.model.tsc_hz = 2_100_000_000;
    machine.model.processors = 3;
    machine.model.apic_id = 2;
    let [max, ebx, ecx, edx] = query(&machine, true, 0, 0);
    assert_eq!(max, 0x16);
    let vendor: Vec<u8> = [ebx, edx, ecx]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    assert_eq!(vendor, b"GenuineIntel");
    let [signature, ebx, ecx, edx] = query(&machine, true, 1, 0);
    assert_eq!(
        (
            signature >> 8 & 15,
            signature >> 4 & 15 | signature >> 12 & 0xf0
        ),
        (6, 0x55)
    );
    assert_eq!(ebx >> 24, 2);
    assert_eq!(ecx & (1 << 27 | 1 << 31 | 1 << 3), 0);
    assert_eq!(edx & (1 << 7 | 1 << 14 | 1 << 9), 1 << 7 | 1 << 14 | 1 << 9);
    assert_eq!(query(&machine, false, 1, 0)[3] & 1 << 9, 0);
    machine.control.cr4 |= CR4_OSXSAVE;
    assert_ne!(query(&machine, true, 1, 0)[2] & 1 << 27, 0);
    let [denominator, numerator, crystal, _] = query(&machine, true, 0x15, 0);
    let hertz = u64::from(crystal) * u64::from(numerator) / u64::from(denominator);
    assert_eq!(hertz, 2_100_000_000);
    assert_eq!(query(&machine, true, 0x16, 0)[0], 2100);
    assert_eq!(query(&machine, true, 0xb, 1), [2, 3, 0x201, 2]);
    let brand: Vec<u8> = (0x8000_0002..=0x8000_0004)
        .flat_map(|leaf| query(&machine, true, leaf, 0))
        .flat_map(u32::to_le_bytes)
        .collect();
    assert!(brand.starts_with(b"kMemvisor virtual CPU\0"));
    assert_eq!(
        query(&machine, true, 0x8000_0008, 0)[0] & 0xff,
        mmu::PHYSICAL_BITS
    );
    // Beyond the end, the last basic leaf.
    assert_eq!(
        query(&machine, true, 0x4000_0000, 0),
        query(&machine, true, 0x16, 0)
    );
}

#[test]
fn xsave_area_follows_xcr0() {
    let mut machine = cpu("max");
    assert_eq!(query(&machine, true, 0xd, 0)[1], 576);
    if machine.model.has(Feature::Avx) {
        machine.control.xcr0 = 7;
        assert_eq!(query(&machine, true, 0xd, 0), [0x207, 832, 840, 0]);
        assert_eq!(query(&machine, true, 0xd, 2), [256, 576, 0, 0]);
    }
    let small = cpu("max,-avx,-pku");
    assert_eq!(query(&small, true, 0xd, 0), [3, 576, 576, 0]);
    assert_eq!(query(&cpu("qemu64"), true, 0xd, 0), [0; 4]);
}

/// A feature is advertised if there is something to execute it, and never without what it needs.
#[test]
fn models_have_what_the_host_has() {
    use dbt::guest::HostSupport;
    let full = HostSupport::portable();
    let names = |host: &HostSupport| -> Vec<&'static str> {
        let model = CpuModel::parse_for("max,+avx", host).expect("a model of that name");
        model.feature_names().collect()
    };
    let portable = names(&full);
    for name in [
        "fpu", "mmx", "sse", "sse2", "sse4.2", "popcnt", "bmi2", "lm", "xsave",
    ] {
        assert!(portable.contains(&name), "{name}");
    }
    for name in ["avx", "avx2", "fma", "f16c", "aes", "pclmulqdq", "sha-ni"] {
        assert!(!portable.contains(&name), "{name}");
    }
    let old = names(&full.without(Feature::Ssse3).without(Feature::Popcnt));
    let gone: Vec<&str> = portable
        .iter()
        .copied()
        .filter(|name| !old.contains(name))
        .collect();
    assert_eq!(gone, ["ssse3", "sse4.1", "sse4.2", "popcnt"]);
    let none = CpuModel::parse_for("x86-64-v3", &full.without(Feature::Sse2)).expect("a model");
    assert!(!none.has(Feature::Sse3) && none.has(Feature::Sse));
}

/// AMD's XOP encodings decode as instructions that no model has.
#[test]
fn bextr_with_an_immediate_is_undefined() {
    let mut machine = crate::machine::Machine::long(0);
    let code = [0x8f, 0x0a, 0xf8, 0x10, 0xea, 0xfe, 0xe9, 0xe0, 0xf4];
    for (at, byte) in code.into_iter().enumerate() {
        machine.write(crate::machine::CODE + at as u64, 1, byte);
    }
    let decoded = dbt::decode::one(&mut machine.context());
    assert_eq!(decoded, Err(dbt::guest::Exception::invalid_opcode()));
}

#[test]
fn generations_have_names() {
    let names = |model: &str| -> Vec<&str> {
        let full = dbt::guest::HostSupport::portable();
        let model = CpuModel::parse_for(model, &full).expect("a model of that name");
        model.feature_names().collect()
    };
    let generations = [
        "kvm64",
        "Penryn",
        "Nehalem",
        "Westmere",
        "SandyBridge",
        "IvyBridge",
        "Haswell",
        "Broadwell",
        "Skylake-Client",
        "Skylake-Server",
        "Cascadelake-Server",
    ];
    for pair in generations.windows(2) {
        let (old, new) = (names(pair[0]), names(pair[1]));
        assert!(old.iter().all(|name| new.contains(name)), "{pair:?}");
        assert!(new.len() > old.len(), "{pair:?}");
    }
    assert!(names("Haswell").contains(&"bmi2") && !names("Haswell").contains(&"adx"));
    // No 64-bit mode, and nothing of EFER.
    for name in ["lm", "syscall", "nx"] {
        assert!(!names("qemu32").contains(&name), "{name}");
    }
    assert_eq!(names("Haswell-noTSX-IBRS"), names("Haswell"));
    assert_eq!(names("Nehalem-v2,-popcnt"), names("Penryn,+sse4.2"));
    assert!(CpuModel::parse("max-v1").is_err() && CpuModel::parse("Haswell-v9").is_err());

    let mut machine = cpu("IvyBridge");
    assert_eq!(query(&machine, true, 1, 0)[0], 0x306a9);
    let brand: Vec<u8> = (0x8000_0002..=0x8000_0004)
        .flat_map(|leaf| query(&machine, true, leaf, 0))
        .flat_map(u32::to_le_bytes)
        .collect();
    assert!(brand.starts_with(b"Intel Xeon E3-12xx v2 (Ivy Bridge)\0"));
    machine.model = CpuModel::parse("qemu32").expect("a model");
    assert_eq!(query(&machine, true, 0x8000_0001, 0)[3], 0);
}
