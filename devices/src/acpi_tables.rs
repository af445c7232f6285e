//! ACPI tables that describe the board (ACPI 6, chapter 5), to be placed in
//! guest memory before the kernel starts.

use mmu::GuestPhys;

use crate::board::Board;
use crate::wiring::{IRQ_KEYBOARD, IRQ_MOUSE, IRQ_RTC, SERIAL_PORTS};
use crate::{acpi_pm, aml, hpet, ioapic, lapic, rtc};

/// First address of the area the tables take.
pub const AREA: u64 = 0xE_0000;
/// Bytes of that area: firmware's part of the first megabyte.
pub const AREA_LENGTH: u64 = 0x2_0000;

/// What the tables depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// COM1 to COM4.
    pub serials: [bool; 4],
    /// Keyboard controller.
    pub i8042: bool,
    /// Event timer.
    pub hpet: bool,
    /// 32-bit PM timer.
    pub wide_pm_timer: bool,
}

/// Tables and where each one goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiTables {
    /// Address of the RSDP, for the boot parameters.
    pub rsdp: GuestPhys,
    /// Every table with its place, in order of address.
    pub tables: Vec<(GuestPhys, Vec<u8>)>,
}

impl Board {
    /// The tables that describe this board.
    pub fn acpi_tables(&self) -> AcpiTables {
        AcpiTables::new(AcpiConfig {
            serials: self.serials.each_ref().map(Option::is_some),
            i8042: self.ports.find(0x60).is_some(),
            hpet: self.hpet.is_some(),
            wide_pm_timer: self.pm.wide_timer(),
        })
    }
}

impl AcpiTables {
    /// Builds all tables.
    pub fn new(config: AcpiConfig) -> AcpiTables {
        // Root first, then what it points to; sizes decide the places.
        let dsdt = dsdt(&config);
        let madt = madt();
        let hpet = config.hpet.then(hpet_table);
        let roots = 2 + usize::from(config.hpet);
        let mut place = Placer { next: AREA };
        let rsdp_at = place.take(36);
        let rsdt_at = place.take(36 + 4 * roots);
        let xsdt_at = place.take(36 + 8 * roots);
        let facs_at = place.take(64);
        let dsdt_at = place.take(dsdt.len());
        let fadt_at = place.take(FADT_LENGTH);
        let madt_at = place.take(madt.len());
        let hpet_at = hpet.as_ref().map(|table| place.take(table.len()));

        let entries: Vec<u64> = [fadt_at, madt_at].into_iter().chain(hpet_at).collect();
        let narrow: Vec<u8> = entries
            .iter()
            .flat_map(|&at| (at as u32).to_le_bytes())
            .collect();
        let wide: Vec<u8> = entries.iter().flat_map(|&at| at.to_le_bytes()).collect();
        let mut tables = vec![
            (rsdp_at, rsdp(rsdt_at, xsdt_at)),
            (rsdt_at, table(b"RSDT", 1, &narrow)),
            (xsdt_at, table(b"XSDT", 1, &wide)),
            (facs_at, facs()),
            (dsdt_at, dsdt),
            (fadt_at, fadt(&config, facs_at, dsdt_at)),
            (madt_at, madt),
        ];
        tables.extend(hpet_at.zip(hpet));
        let tables = tables
            .into_iter()
            .map(|(at, bytes)| (GuestPhys(at), bytes))
            .collect();
        AcpiTables {
            rsdp: GuestPhys(rsdp_at),
            tables,
        }
    }
}

/// Hands out places: 64-byte aligned, as the FACS demands and the others like.
struct Placer {
    next: u64,
}

impl Placer {
    fn take(&mut self, length: usize) -> u64 {
        let at = self.next;
        self.next = (at + length as u64).next_multiple_of(64);
        debug_assert!(self.next <= AREA + AREA_LENGTH);
        at
    }
}

/// Makes the bytes sum to zero with the one at `at`.
fn fix_checksum(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    let sum = bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    bytes[at] = sum.wrapping_neg();
}

/// A system description table: header (ACPI 6, 5.2.6) and body.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(36 + body.len());
    bytes.extend(signature);
    bytes.extend((36 + body.len() as u32).to_le_bytes());
    bytes.extend([revision, 0]);
    bytes.extend(b"KMEMV ");
    bytes.extend(b"KMEMVISR");
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(b"KMEM");
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(body);
    fix_checksum(&mut bytes, 9);
    bytes
}

fn rsdp(rsdt: u64, xsdt: u64) -> Vec<u8> {
    let mut bytes = b"RSD PTR \0KMEMV \x02".to_vec();
    bytes.extend((rsdt as u32).to_le_bytes());
    bytes.extend(36u32.to_le_bytes());
    bytes.extend(xsdt.to_le_bytes());
    bytes.extend([0; 4]);
    fix_checksum(&mut bytes[..20], 8);
    fix_checksum(&mut bytes, 32);
    bytes
}

fn facs() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..4].copy_from_slice(b"FACS");
    bytes[4] = 64;
    bytes[32] = 1; // version
    bytes
}

/// A generic address in I/O space; `access` is log2 of the bytes, plus 1.
fn port_address(port: u16, bits: u8, access: u8) -> [u8; 12] {
    let [low, high] = port.to_le_bytes();
    [1, bits, 0, access, low, high, 0, 0, 0, 0, 0, 0]
}

const FADT_LENGTH: usize = 244;

fn fadt(config: &AcpiConfig, facs: u64, dsdt: u64) -> Vec<u8> {
    const WRITE_BACK_INVALIDATE: u32 = 1 << 0;
    const C1_WORKS: u32 = 1 << 2;
    const NO_SLEEP_BUTTON: u32 = 1 << 5;
    const TIMER_32_BITS: u32 = 1 << 8;
    const RESET_REGISTER: u32 = 1 << 10;

    let mut bytes = table(b"FACP", 3, &[0; FADT_LENGTH - 36]);
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let port = |port: u16| u32::from(port).to_le_bytes();
    let pm_base = acpi_pm::PM_BASE;
    put(36, &(facs as u32).to_le_bytes());
    put(40, &(dsdt as u32).to_le_bytes());
    put(45, &[1]); // a desktop
    put(46, &[acpi_pm::SCI_IRQ, 0]);
    put(48, &port(acpi_pm::SMI_COMMAND));
    put(52, &[acpi_pm::ACPI_ENABLE, acpi_pm::ACPI_DISABLE]);
    put(56, &port(pm_base));
    put(64, &port(pm_base + 4));
    put(76, &port(pm_base + 8));
    put(80, &port(acpi_pm::GPE_BASE));
    put(88, &[4, 2, 0, 4, acpi_pm::GPE_LENGTH as u8]);
    put(96, &[0xFF, 0x0F, 0xFF, 0x0F]); // C2 and C3 take too long: unsupported
    put(108, &[rtc::CENTURY as u8]);
    // Legacy devices and perhaps an 8042; no VGA, no MSI.
    put(109, &(0x0D | u16::from(config.i8042) << 1).to_le_bytes());
    let timer = if config.wide_pm_timer {
        TIMER_32_BITS
    } else {
        0
    };
    let flags = WRITE_BACK_INVALIDATE | C1_WORKS | NO_SLEEP_BUTTON | timer | RESET_REGISTER;
    put(112, &flags.to_le_bytes());
    put(116, &port_address(acpi_pm::RESET_PORT, 8, 1));
    put(128, &[0x06]);
    put(140, &dsdt.to_le_bytes());
    put(148, &port_address(pm_base, 32, 2));
    put(172, &port_address(pm_base + 4, 16, 2));
    put(208, &port_address(pm_base + 8, 32, 3));
    put(
        220,
        &port_address(acpi_pm::GPE_BASE, 8 * acpi_pm::GPE_LENGTH as u8, 1),
    );
    fix_checksum(&mut bytes, 9);
    bytes
}

fn madt() -> Vec<u8> {
    const LEVEL_HIGH: u8 = 0x0D;
    let mut body = Vec::new();
    body.extend((lapic::DEFAULT_BASE as u32).to_le_bytes());
    body.extend(1u32.to_le_bytes()); // there are 8259As too
    body.extend([0, 8, 0, 0, 1, 0, 0, 0]); // processor 0, APIC 0, enabled
    body.extend([1, 12, 0, 0]); // I/O APIC 0
    body.extend((ioapic::BASE as u32).to_le_bytes());
    body.extend(0u32.to_le_bytes());
    body.extend([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]); // ISA 0 is input 2
    let sci = acpi_pm::SCI_IRQ;
    body.extend([2, 10, 0, sci, sci, 0, 0, 0, LEVEL_HIGH, 0]);
    body.extend([4, 6, 0xFF, 0, 0, 1]); // LINT1 is NMI on all processors
    table(b"APIC", 1, &body)
}

fn hpet_table() -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(0x8086_A201u32.to_le_bytes());
    body.extend([0, 0, 0, 0]); // memory space
    body.extend(hpet::BASE.to_le_bytes());
    body.extend([0, 0, 0, 0]); // number 0, no least tick, no page protection
    table(b"HPET", 1, &body)
}

fn legacy_device(name: &str, id: &str, unit: u32, resources: &[Vec<u8>]) -> Vec<u8> {
    let terms = [
        aml::name("_HID", &aml::eisa_id(id)),
        aml::name("_UID", &aml::integer(unit)),
        aml::current_resources(resources),
    ];
    aml::device(name, &terms.concat())
}

fn dsdt(config: &AcpiConfig) -> Vec<u8> {
    let mut devices = Vec::new();
    let clock = [aml::io(0x70, 2), aml::irq(IRQ_RTC)];
    devices.extend(legacy_device("RTC", "PNP0B00", 0, &clock));
    if config.i8042 {
        let keyboard = [aml::io(0x60, 1), aml::io(0x64, 1), aml::irq(IRQ_KEYBOARD)];
        devices.extend(legacy_device("KBD", "PNP0303", 0, &keyboard));
        devices.extend(legacy_device("MOU", "PNP0F13", 0, &[aml::irq(IRQ_MOUSE)]));
    }
    for (number, &(port, line)) in SERIAL_PORTS.iter().enumerate() {
        if config.serials[number] {
            let unit = number as u32 + 1;
            let resources = [aml::io(port, 8), aml::irq(line)];
            devices.extend(legacy_device(
                &format!("COM{unit}"),
                "PNP0501",
                unit,
                &resources,
            ));
        }
    }
    if config.hpet {
        let window = [aml::memory(hpet::BASE as u32, 0x400)];
        devices.extend(legacy_device("HPET", "PNP0103", 0, &window));
    }
    // Ports that belong to the board itself, so that nothing else is put there.
    let own = [
        aml::io(acpi_pm::PM_BASE, acpi_pm::PM_LENGTH as u8),
        aml::io(acpi_pm::GPE_BASE, acpi_pm::GPE_LENGTH as u8),
        aml::io(0x4D0, 2),
        aml::io(0x92, 1),
        aml::io(acpi_pm::SMI_COMMAND, 2),
    ];
    devices.extend(legacy_device("MBRD", "PNP0C02", 0, &own));
    let off = aml::integer(u32::from(acpi_pm::SLEEP_TYPE_S5));
    let sleep = aml::package_of(&[off.clone(), off.clone(), off.clone(), off]);
    let body = [aml::name("\\_S5", &sleep), aml::scope("\\_SB", &devices)].concat();
    table(b"DSDT", 2, &body)
}

#[cfg(test)]
#[path = "acpi_tables_tests.rs"]
mod tests;
