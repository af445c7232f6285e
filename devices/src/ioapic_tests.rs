//! The 82093AA data sheet's rules, one at a time.

use super::*;
use crate::lapic::Effect;

fn chips() -> (IoApic, Lapic) {
    (IoApic::new(0x20), Lapic::new(1_000_000_000, 40))
}

fn entry(ioapic: &mut IoApic, lapic: &mut Lapic, pin: u8, value: u64) {
    ioapic.write(0, u32::from(0x11 + 2 * pin), lapic);
    ioapic.write(0x10, (value >> 32) as u32, lapic);
    ioapic.write(0, u32::from(0x10 + 2 * pin), lapic);
    ioapic.write(0x10, value as u32, lapic);
}

fn read_low(ioapic: &mut IoApic, lapic: &mut Lapic, pin: u8) -> u32 {
    ioapic.write(0, u32::from(0x10 + 2 * pin), lapic);
    ioapic.read(0x10)
}

fn end(ioapic: &mut IoApic, lapic: &mut Lapic) {
    if let Effect::EndOfLevel(vector) = lapic.mmio_write(0, 0xB0, 0) {
        ioapic.end_of_interrupt(vector, lapic);
    }
}

#[test]
fn identification() {
    let (mut ioapic, mut lapic) = chips();
    ioapic.write(0, 1, &mut lapic);
    assert_eq!(ioapic.read(0x10), 0x0017_0020);
    ioapic.write(0, 0, &mut lapic);
    ioapic.write(0x10, 0xFFFF_FFFF, &mut lapic);
    assert_eq!(ioapic.read(0x10), 0x0F00_0000);
    assert_eq!(
        read_low(&mut ioapic, &mut lapic, 23),
        0x1_0000,
        "masked after reset"
    );
}

#[test]
fn edges() {
    let (mut ioapic, mut lapic) = chips();
    entry(&mut ioapic, &mut lapic, 4, 0x34);
    ioapic.set_pin(4, true, &mut lapic);
    assert_eq!(lapic.acknowledge(), Some(0x34));
    end(&mut ioapic, &mut lapic);
    assert!(!lapic.deliverable(), "high is not an edge");
    ioapic.set_pin(4, false, &mut lapic);
    ioapic.set_pin(4, true, &mut lapic);
    assert!(lapic.deliverable());
    // An edge while masked is lost.
    let (mut ioapic, mut lapic) = chips();
    ioapic.set_pin(4, true, &mut lapic);
    entry(&mut ioapic, &mut lapic, 4, 0x34);
    assert!(!lapic.deliverable());
}

#[test]
fn levels_wait_for_the_end_of_interrupt() {
    let (mut ioapic, mut lapic) = chips();
    ioapic.set_pin(9, true, &mut lapic);
    entry(&mut ioapic, &mut lapic, 9, 0x8039);
    assert_eq!(lapic.acknowledge(), Some(0x39));
    assert_eq!(read_low(&mut ioapic, &mut lapic, 9), 0xC039);
    end(&mut ioapic, &mut lapic);
    assert_eq!(lapic.acknowledge(), Some(0x39), "still high");
    ioapic.set_pin(9, false, &mut lapic);
    end(&mut ioapic, &mut lapic);
    assert!(!lapic.deliverable());
    assert_eq!(read_low(&mut ioapic, &mut lapic, 9), 0x8039);
}

#[test]
fn ending_without_the_local_apic() {
    // By the EOI register, and by switching to edge and back.
    for by_register in [true, false] {
        let (mut ioapic, mut lapic) = chips();
        entry(&mut ioapic, &mut lapic, 9, 0x8039);
        ioapic.set_pin(9, true, &mut lapic);
        ioapic.set_pin(9, false, &mut lapic);
        if by_register {
            ioapic.write(0x40, 0x39, &mut lapic);
        } else {
            ioapic.write(0x10, 0x1_0039, &mut lapic);
            ioapic.write(0x10, 0x8039, &mut lapic);
        }
        assert_eq!(read_low(&mut ioapic, &mut lapic, 9), 0x8039);
    }
    let (_, mut lapic) = chips();
    let mut old = IoApic::new(0x11);
    entry(&mut old, &mut lapic, 9, 0x8039);
    old.set_pin(9, true, &mut lapic);
    old.write(0x40, 0x39, &mut lapic);
    assert_eq!(
        read_low(&mut old, &mut lapic, 9),
        0xC039,
        "version 0x11 has no such register"
    );
}

#[test]
fn other_delivery_modes_and_destinations() {
    let (mut ioapic, mut lapic) = chips();
    entry(&mut ioapic, &mut lapic, 5, 0x0400);
    ioapic.set_pin(5, true, &mut lapic);
    assert!(lapic.take_nmi());
    entry(&mut ioapic, &mut lapic, 6, 0x0700);
    ioapic.set_pin(6, true, &mut lapic);
    assert!(lapic.take_external());
    entry(&mut ioapic, &mut lapic, 7, 0x0151);
    ioapic.set_pin(7, true, &mut lapic);
    assert_eq!(lapic.acknowledge(), Some(0x51));
    entry(&mut ioapic, &mut lapic, 10, 1 << 56 | 0x8061);
    ioapic.set_pin(10, true, &mut lapic);
    assert!(!lapic.deliverable());
    assert_eq!(
        read_low(&mut ioapic, &mut lapic, 10),
        0x8061,
        "nobody accepted it"
    );
    entry(&mut ioapic, &mut lapic, 0, 0x0700);
    assert!(ioapic.passes_external());
}

#[test]
fn restores_what_was_saved() {
    let (mut ioapic, mut lapic) = chips();
    entry(&mut ioapic, &mut lapic, 3, 0x8033);
    ioapic.set_pin(3, true, &mut lapic);
    let saved = ioapic.save();
    let mut other = IoApic::new(0x20);
    assert_ne!(other.save(), saved);
    other.restore(&saved);
    assert_eq!(other.save(), saved);
}
