//! The HPET specification's rules, one at a time.

use super::*;

fn running() -> Hpet {
    let mut hpet = Hpet::new();
    hpet.write(0, 0x010, 8, ENABLE);
    hpet
}

#[test]
fn capabilities() {
    let mut hpet = Hpet::new();
    assert_eq!(hpet.read(0, 0, 8), 0x0098_9680_8086_A201);
    assert_eq!(hpet.read(0, 4, 4), 10_000_000, "femtoseconds in a tick");
    assert_eq!(hpet.read(0, 0x100, 4) & 0x30, 0x30);
}

#[test]
fn counter_runs_only_when_enabled() {
    let mut hpet = Hpet::new();
    hpet.write(0, 0x0F0, 8, 1000);
    assert_eq!(hpet.read(500, 0x0F0, 8), 1000);
    hpet.write(500, 0x010, 4, ENABLE);
    assert_eq!(hpet.read(750, 0x0F0, 4), 1025);
    hpet.write(1000, 0x010, 4, 0);
    assert_eq!(hpet.read(9000, 0x0F0, 8), 1050);
}

#[test]
fn one_shot() {
    let mut hpet = running();
    hpet.write(0, 0x140, 4, TIMER_ENABLE | 20 << 9);
    hpet.write(0, 0x148, 8, 100);
    assert_eq!(hpet.next_deadline(), 1000);
    assert_eq!(hpet.advance(999), 0);
    assert_eq!(hpet.advance(1000), 0b100);
    assert_eq!(hpet.line(2), Some(20));
    assert_eq!(hpet.next_deadline(), NEVER);
    // A 32-bit timer comes again when the counter's low half does.
    hpet.write(1000, 0x140, 4, TIMER_ENABLE | TIMER_32_BITS);
    hpet.write(1000, 0x148, 4, 200);
    assert_eq!(hpet.advance(2000), 0b100);
    assert_eq!(hpet.next_deadline(), ((1 << 32) + 200) * TICK);
}

#[test]
fn periodic_as_linux_sets_it_up() {
    let mut hpet = Hpet::new();
    hpet.write(
        0,
        0x100,
        4,
        TIMER_ENABLE | TIMER_PERIODIC | TIMER_SET_VALUE | TIMER_32_BITS,
    );
    hpet.write(0, 0x108, 4, 500);
    hpet.write(0, 0x108, 4, 100);
    assert_eq!(
        hpet.read(0, 0x108, 4),
        500,
        "the second write is the period"
    );
    hpet.write(0, 0x010, 4, ENABLE | LEGACY);
    assert!(hpet.legacy());
    assert_eq!((hpet.line(0), hpet.line(1)), (Some(0), Some(8)));
    assert_eq!(hpet.next_deadline(), 5000);
    assert_eq!(hpet.advance(5000), 1);
    assert_eq!(hpet.read(5000, 0x108, 4), 600);
    assert_eq!(hpet.advance(7999), 1, "missed periods merge");
    assert_eq!(hpet.next_deadline(), 8000);
}

#[test]
fn level_interrupts_hold_their_line() {
    let mut hpet = running();
    hpet.write(0, 0x120, 4, TIMER_ENABLE | TIMER_LEVEL | 16 << 9);
    hpet.write(0, 0x128, 8, 10);
    assert_eq!(hpet.advance(100), 0b010);
    assert!(hpet.holds_line(1));
    assert_eq!(hpet.read(100, 0x020, 4), 0b010);
    hpet.write(100, 0x020, 4, 0b010);
    assert!(!hpet.holds_line(1));
}

#[test]
fn a_disabled_timer_sets_no_deadline() {
    let mut hpet = running();
    hpet.write(0, 0x108, 8, 50);
    assert_eq!(hpet.next_deadline(), NEVER);
    assert_eq!(hpet.advance(10_000), 0);
}

#[test]
fn restores_what_was_saved() {
    let mut hpet = running();
    hpet.write(
        70,
        0x100,
        4,
        TIMER_ENABLE | TIMER_PERIODIC | TIMER_SET_VALUE,
    );
    hpet.write(80, 0x108, 8, 5000);
    let saved = hpet.save();
    let mut other = Hpet::new();
    assert_ne!(other.save(), saved);
    other.restore(&saved);
    assert_eq!(other.save(), saved);
    assert_eq!(other.next_deadline(), hpet.next_deadline());
}
