//! The manual's rules for the local APIC, one at a time.

use super::*;

const GHZ_2: u64 = 2_000_000_000;
const EOI: u64 = 0xB0;
const LVT_TIMER: u64 = 0x320;

fn apic() -> Lapic {
    Lapic::new(GHZ_2, 40)
}

fn x2apic() -> Lapic {
    let mut lapic = apic();
    lapic.set_base(lapic.base() | BASE_X2APIC).unwrap();
    lapic
}

#[test]
fn identity() {
    let mut lapic = apic();
    assert_eq!(lapic.base(), 0xFEE0_0900);
    assert_eq!(lapic.mmio_read(0, 0x20), 0);
    assert_eq!(lapic.mmio_read(0, 0x30) & 0xFF, 0x14);
    assert_eq!(
        lapic.mmio_read(0, 0x30) >> 16 & 0xFF,
        6,
        "seven local vectors"
    );
    assert_eq!(lapic.mmio_read(0, 0xF0), 0x1FF);
    assert!(lapic.passes_external());
}

#[test]
fn priority_decides_what_is_delivered() {
    let mut lapic = apic();
    assert!(lapic.deliver(0, false, 0, 0x51, false));
    assert!(lapic.deliver(0, false, 1, 0x81, false));
    assert_eq!(lapic.acknowledge(), Some(0x81));
    assert_eq!(
        lapic.mmio_read(0, 0xA0),
        0x80,
        "processor priority is the class in service"
    );
    assert!(!lapic.deliverable());
    assert!(lapic.deliver(0, false, 0, 0x8F, false));
    assert!(!lapic.deliverable(), "the same class waits");
    assert_eq!(lapic.mmio_write(0, EOI, 0), Effect::None);
    assert_eq!(lapic.acknowledge(), Some(0x8F));
    lapic.mmio_write(0, EOI, 0);
    lapic.set_cr8(5);
    assert_eq!(lapic.mmio_read(0, 0x80), 0x50);
    assert!(!lapic.deliverable());
    lapic.mmio_write(0, 0x80, 0x4F);
    assert_eq!(lapic.cr8(), 4);
    assert_eq!(lapic.acknowledge(), Some(0x51));
}

#[test]
fn registers_show_vectors() {
    let mut lapic = apic();
    lapic.deliver(0, false, 0, 0x41, true);
    lapic.deliver(0, false, 0, 0xE5, false);
    assert_eq!(lapic.mmio_read(0, 0x220), 2);
    assert_eq!(lapic.mmio_read(0, 0x1A0), 2, "trigger mode");
    assert_eq!(lapic.acknowledge(), Some(0xE5));
    assert_eq!(lapic.mmio_read(0, 0x170), 1 << 5);
    lapic.mmio_write(0, EOI, 0);
    assert_eq!(lapic.acknowledge(), Some(0x41));
    assert_eq!(lapic.mmio_write(0, EOI, 0), Effect::EndOfLevel(0x41));
    assert_eq!(lapic.mmio_write(0, EOI, 0), Effect::None);
}

#[test]
fn one_shot_timer() {
    let mut lapic = apic();
    lapic.mmio_write(0, 0x3E0, 0x3); // by 16
    lapic.mmio_write(0, LVT_TIMER, 0xEC);
    lapic.mmio_write(1000, 0x380, 100);
    assert_eq!(lapic.next_deadline(), 2600);
    assert_eq!(lapic.mmio_read(1000 + 160, 0x390), 90);
    lapic.advance(2599);
    assert!(!lapic.deliverable());
    lapic.advance(2600);
    assert_eq!(lapic.acknowledge(), Some(0xEC));
    assert_eq!(lapic.mmio_read(9000, 0x390), 0);
    assert_eq!(lapic.next_deadline(), NEVER);
}

#[test]
fn divisors() {
    for (code, divisor) in [
        (0, 2),
        (1, 4),
        (2, 8),
        (3, 16),
        (8, 32),
        (9, 64),
        (10, 128),
        (11, 1),
    ] {
        let mut lapic = apic();
        lapic.mmio_write(0, LVT_TIMER, 0xEC);
        lapic.mmio_write(0, 0x3E0, code);
        lapic.mmio_write(0, 0x380, 10);
        assert_eq!(lapic.next_deadline(), 10 * divisor, "code {code}");
    }
}

#[test]
fn periodic_timer_keeps_its_phase() {
    let mut lapic = apic();
    lapic.mmio_write(0, 0x3E0, 0xB);
    lapic.mmio_write(0, LVT_TIMER, 0x2_0040);
    lapic.mmio_write(0, 0x380, 1000);
    lapic.advance(3500);
    assert_eq!(lapic.acknowledge(), Some(0x40), "missed periods merge");
    assert_eq!(lapic.next_deadline(), 4000);
    assert_eq!(lapic.mmio_read(3600, 0x390), 400);
    lapic.mmio_write(3600, LVT_TIMER, 0x3_0040);
    assert_eq!(lapic.next_deadline(), NEVER, "masked");
    lapic.mmio_write(4100, LVT_TIMER, 0x2_0040);
    assert_eq!(lapic.next_deadline(), 5000);
}

#[test]
fn tsc_deadline_timer() {
    let mut lapic = apic();
    lapic.set_tsc_deadline(0, 5000);
    assert_eq!(lapic.tsc_deadline(0), 0, "ignored in other modes");
    lapic.mmio_write(0, LVT_TIMER, 0x4_0041);
    lapic.set_tsc_offset(0, 1000);
    assert_eq!(lapic.guest_tsc(500), 2000);
    lapic.set_tsc_deadline(500, 5001);
    assert_eq!(
        lapic.next_deadline(),
        2001,
        "rounded up: 4001 ticks of half a nanosecond"
    );
    assert!(lapic.guest_tsc(lapic.next_deadline()) >= 5001);
    lapic.advance(2001);
    assert_eq!(lapic.acknowledge(), Some(0x41));
    assert_eq!(lapic.tsc_deadline(2001), 0);
    lapic.mmio_write(2001, EOI, 0);
    lapic.set_tsc_deadline(2001, 1);
    assert_eq!(lapic.acknowledge(), Some(0x41), "in the past: at once");
    lapic.mmio_write(2001, EOI, 0);
    lapic.set_tsc_deadline(2001, 1 << 40);
    lapic.set_tsc_deadline(2001, 0);
    assert_eq!(lapic.next_deadline(), NEVER);
    lapic.set_tsc_deadline(2001, 1 << 40);
    lapic.mmio_write(2001, LVT_TIMER, 0x41);
    assert_eq!(lapic.next_deadline(), NEVER, "leaving the mode disarms");
}

#[test]
fn software_disable_masks_local_vectors() {
    let mut lapic = apic();
    lapic.mmio_write(0, LVT_TIMER, 0x40);
    lapic.mmio_write(0, 0xF0, 0xFF);
    assert_eq!(lapic.mmio_read(0, LVT_TIMER), 0x1_0040);
    lapic.mmio_write(0, LVT_TIMER, 0x40);
    assert_eq!(
        lapic.mmio_read(0, LVT_TIMER),
        0x1_0040,
        "the mask cannot be cleared"
    );
    assert!(!lapic.deliver(0, false, 0, 0x40, false));
    assert!(lapic.deliver(0, false, 4, 0, false), "NMI still comes");
    assert!(lapic.take_nmi());
}

#[test]
fn interprocessor_interrupts_to_oneself() {
    let mut lapic = apic();
    lapic.mmio_write(0, 0x300, 0x4_0061);
    assert_eq!(lapic.acknowledge(), Some(0x61));
    lapic.mmio_write(0, EOI, 0);
    lapic.mmio_write(0, 0x300, 0xC_0062);
    assert!(!lapic.deliverable(), "all but self");
    lapic.mmio_write(0, 0x310, 0);
    lapic.mmio_write(0, 0x300, 0x63);
    assert_eq!(lapic.acknowledge(), Some(0x63));
    lapic.mmio_write(0, 0x310, 1 << 24);
    lapic.mmio_write(0, 0x300, 0x83);
    assert!(!lapic.deliverable(), "another processor");
    lapic.mmio_write(0, 0x300, 0x4_0400);
    assert!(lapic.take_nmi());
    lapic.mmio_write(0, 0x300, 0x4500); // INIT
    assert!(!lapic.deliverable());
}

#[test]
fn logical_destinations() {
    let mut lapic = apic();
    lapic.mmio_write(0, 0xD0, 0x0200_0000);
    assert!(lapic.is_destination(0x03, true));
    assert!(!lapic.is_destination(0x05, true));
    lapic.mmio_write(0, 0xE0, 0x0FFF_FFFF);
    lapic.mmio_write(0, 0xD0, 0x3200_0000);
    assert!(lapic.is_destination(0x36, true));
    assert!(!lapic.is_destination(0x46, true));
    assert!(lapic.is_destination(0xFF, true));
}

#[test]
fn errors_are_latched_by_a_write() {
    let mut lapic = apic();
    lapic.mmio_write(0, 0x370, 0xFE);
    lapic.mmio_write(0, 0x300, 0x4_0005);
    assert_eq!(lapic.mmio_read(0, 0x280), 0);
    assert_eq!(lapic.acknowledge(), Some(0xFE));
    lapic.mmio_write(0, 0x280, 0);
    assert_eq!(lapic.mmio_read(0, 0x280), 0x20);
    lapic.mmio_write(0, 0x280, 0);
    assert_eq!(lapic.mmio_read(0, 0x280), 0);
    lapic.mmio_read(0, 0x3F0);
    lapic.mmio_write(0, 0x280, 0);
    assert_eq!(lapic.mmio_read(0, 0x280), 0x80);
}

#[test]
fn lint0_fixed_edge_and_level() {
    let mut lapic = apic();
    lapic.mmio_write(0, 0x350, 0x31);
    lapic.set_lint0(true);
    lapic.set_lint0(true);
    assert_eq!(lapic.acknowledge(), Some(0x31));
    lapic.mmio_write(0, EOI, 0);
    assert!(!lapic.deliverable());
    lapic.mmio_write(0, 0x350, 0x8031);
    assert_eq!(lapic.acknowledge(), Some(0x31));
    assert_eq!(lapic.mmio_read(0, 0x350), 0xC031, "remote IRR");
    lapic.mmio_write(0, EOI, 0);
    assert!(lapic.deliverable(), "still high");
    lapic.set_lint0(false);
    lapic.acknowledge();
    lapic.mmio_write(0, EOI, 0);
    assert!(!lapic.deliverable());
}

#[test]
fn base_register_transitions() {
    let mut lapic = apic();
    let enabled = lapic.base();
    assert_eq!(lapic.set_base(enabled | 1), Err(GeneralProtection));
    assert_eq!(lapic.set_base(enabled | 1 << 45), Err(GeneralProtection));
    assert_eq!(
        lapic.set_base(enabled & !BASE_ENABLE | BASE_X2APIC),
        Err(GeneralProtection)
    );
    lapic.set_base(0xFED9_0000 | BASE_ENABLE).unwrap();
    assert_eq!(lapic.base(), 0xFED9_0900, "the bootstrap bit stays");
    assert_eq!(lapic.mmio_page(), Some(0xFED9_0000));
    lapic.set_base(enabled | BASE_X2APIC).unwrap();
    assert_eq!(lapic.mmio_page(), None);
    assert_eq!(lapic.set_base(enabled), Err(GeneralProtection));
    lapic.set_base(0xFEE0_0000).unwrap();
    assert!(!lapic.enabled() && lapic.passes_external());
    assert_eq!(
        lapic.set_base(enabled | BASE_X2APIC),
        Err(GeneralProtection)
    );
    lapic.set_base(enabled).unwrap();
    assert_eq!(
        lapic.mmio_read(0, 0xF0),
        0xFF,
        "software-disabled after that"
    );
}

#[test]
fn x2apic_registers() {
    let mut lapic = apic();
    assert_eq!(lapic.x2apic_read(0, 0x02), None);
    let mut lapic2 = x2apic();
    std::mem::swap(&mut lapic, &mut lapic2);
    assert_eq!(lapic.x2apic_read(0, 0x02), Some(0));
    assert_eq!(lapic.x2apic_read(0, 0x0D), Some(1));
    assert_eq!(lapic.x2apic_read(0, 0x0E), None, "no destination format");
    assert_eq!(lapic.x2apic_read(0, 0x0B), None, "write-only");
    assert_eq!(lapic.x2apic_write(0, 0x31, 0), Err(GeneralProtection));
    assert_eq!(lapic.x2apic_write(0, 0x08, 0x100), Err(GeneralProtection));
    lapic.x2apic_write(0, 0x3F, 0x77).unwrap();
    assert_eq!(lapic.acknowledge(), Some(0x77));
    assert_eq!(lapic.x2apic_write(0, 0x0B, 1), Err(GeneralProtection));
    assert_eq!(lapic.x2apic_write(0, 0x0B, 0), Ok(Effect::None));
    lapic.x2apic_write(0, 0x30, 0x0000_0001_0000_0878).unwrap(); // logical, mask 1
    assert_eq!(lapic.acknowledge(), Some(0x78));
    assert_eq!(lapic.x2apic_read(0, 0x30), Some(0x0000_0001_0000_0878));
}

#[test]
fn restores_what_was_saved() {
    let mut lapic = apic();
    lapic.mmio_write(0, LVT_TIMER, 0x2_0040);
    lapic.mmio_write(10, 0x380, 12_345);
    lapic.deliver(0, false, 0, 0x51, true);
    lapic.acknowledge();
    lapic.deliver(0, false, 0, 0x91, false);
    lapic.set_cr8(3);
    let saved = lapic.save();
    let mut other = apic();
    assert_ne!(other.save(), saved);
    other.restore(&saved);
    assert_eq!(other.save(), saved);
    assert_eq!(other.next_deadline(), lapic.next_deadline());
    assert_eq!(other.acknowledge(), Some(0x91));
}
