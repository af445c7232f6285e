//! Structure of the tables; a disassembler, where there is one, reads them too.

use std::process::Command;

use super::*;

fn full() -> AcpiTables {
    AcpiTables::new(AcpiConfig {
        serials: [true; 4],
        i8042: true,
        hpet: true,
        wide_pm_timer: false,
    })
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

fn find(tables: &AcpiTables, at: u64) -> &[u8] {
    &tables
        .tables
        .iter()
        .find(|(place, _)| place.0 == at)
        .unwrap()
        .1
}

#[test]
fn checksums_and_places() {
    let tables = full();
    let mut end = AREA;
    for (at, bytes) in &tables.tables {
        assert!(at.0 >= end, "{at} overlaps what is before it");
        end = at.0 + bytes.len() as u64;
        if !bytes.starts_with(b"FACS") {
            assert_eq!(sum(bytes), 0, "{at}");
        }
        if !bytes.starts_with(b"RSD PTR ") {
            let length = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
            assert_eq!(length as usize, bytes.len());
        }
    }
    assert!(end <= AREA + AREA_LENGTH);
    assert_eq!(sum(&find(&tables, tables.rsdp.0)[..20]), 0);
}

#[test]
fn everything_is_reached_from_the_root() {
    let tables = full();
    let rsdp = find(&tables, tables.rsdp.0);
    let rsdt = find(
        &tables,
        u64::from(u32::from_le_bytes(rsdp[16..20].try_into().unwrap())),
    );
    let xsdt = find(
        &tables,
        u64::from_le_bytes(rsdp[24..32].try_into().unwrap()),
    );
    let narrow: Vec<u64> = rsdt[36..]
        .chunks(4)
        .map(|at| u64::from(u32::from_le_bytes(at.try_into().unwrap())))
        .collect();
    let wide: Vec<u64> = xsdt[36..]
        .chunks(8)
        .map(|at| u64::from_le_bytes(at.try_into().unwrap()))
        .collect();
    assert_eq!(narrow, wide);
    let signatures: Vec<&[u8]> = wide.iter().map(|&at| &find(&tables, at)[..4]).collect();
    assert_eq!(signatures, [b"FACP", b"APIC", b"HPET"]);
    let fadt = find(&tables, wide[0]);
    let pointer = |at: usize| u64::from(u32::from_le_bytes(fadt[at..at + 4].try_into().unwrap()));
    assert!(find(&tables, pointer(36)).starts_with(b"FACS"));
    assert_eq!(pointer(36) % 64, 0);
    assert!(find(&tables, pointer(40)).starts_with(b"DSDT"));
}

#[test]
fn absent_devices_are_not_described() {
    let bare = AcpiTables::new(AcpiConfig {
        serials: [false; 4],
        i8042: false,
        hpet: false,
        wide_pm_timer: true,
    });
    let dsdt = &bare
        .tables
        .iter()
        .find(|(_, bytes)| bytes.starts_with(b"DSDT"))
        .unwrap()
        .1;
    for name in [b"COM1", b"KBD_", b"HPET"] {
        assert!(!dsdt.windows(4).any(|window| window == name));
    }
    assert!(
        !bare
            .tables
            .iter()
            .any(|(_, bytes)| bytes.starts_with(b"HPET"))
    );
}

/// iasl is a package of its own; where it is missing the structural tests remain.
#[test]
fn the_disassembler_accepts_every_table() {
    let version = Command::new("iasl").arg("-v").output();
    if !version.is_ok_and(|output| output.status.success()) {
        return;
    }
    let folder = std::env::temp_dir().join(format!("kmemvisor-acpi-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for (_, bytes) in full().tables {
        let signature = String::from_utf8_lossy(&bytes[..4]).trim().to_lowercase();
        if signature == "rsd" {
            continue; // not a table of its own for the disassembler
        }
        let file = folder.join(format!("{signature}.aml"));
        std::fs::write(&file, &bytes).unwrap();
        let output = Command::new("iasl").arg("-d").arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).to_string()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert!(
            !said.contains("Error") && !said.contains("Invalid") && !said.contains("ncorrect"),
            "{said}"
        );
    }
    let source = std::fs::read_to_string(folder.join("dsdt.dsl")).unwrap();
    for expected in [
        "Name (\\_S5",
        "PNP0501",
        "PNP0303",
        "PNP0F13",
        "PNP0B00",
        "IRQNoFlags",
    ] {
        assert!(source.contains(expected), "{expected} in {source}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
