//! The MC146818 data sheet's rules, one at a time.

use super::*;

/// 2026-11-22 13:45:58 UTC, a Sunday.
const START: i64 = 1_795_355_158;
const SECOND: u64 = NANOSECONDS;

fn clock() -> Rtc {
    let memory = MemorySizes {
        below_4g: 0xC000_0000,
        above_4g: 0x4000_0000,
        processors: 1,
    };
    Rtc::new(START, memory)
}

fn get(rtc: &mut Rtc, now: u64, index: u8) -> u8 {
    rtc.write(now, 0, index);
    rtc.read(now, 1)
}

fn set(rtc: &mut Rtc, now: u64, index: u8, value: u8) {
    rtc.write(now, 0, index);
    rtc.write(now, 1, value);
}

fn time(rtc: &mut Rtc, now: u64) -> Vec<u8> {
    [0x32, 9, 8, 7, 4, 2, 0]
        .map(|index| get(rtc, now, index))
        .to_vec()
}

#[test]
fn shows_the_time_in_bcd_and_binary() {
    let mut rtc = clock();
    assert_eq!(
        time(&mut rtc, 0),
        [0x20, 0x26, 0x11, 0x22, 0x13, 0x45, 0x58]
    );
    assert_eq!(get(&mut rtc, 0, 6), 1);
    assert_eq!(
        time(&mut rtc, 2 * SECOND),
        [0x20, 0x26, 0x11, 0x22, 0x13, 0x46, 0x00]
    );
    set(&mut rtc, 0, 0x0B, 0x06);
    assert_eq!(time(&mut rtc, 0), [20, 26, 11, 22, 13, 45, 58]);
    set(&mut rtc, 0, 0x0B, 0x04);
    assert_eq!(get(&mut rtc, 0, 4), 0x81, "1 pm");
}

#[test]
fn setting_stops_the_clock() {
    let mut rtc = clock();
    set(&mut rtc, 0, 0x0B, 0x82);
    for (index, value) in [
        (0x32, 0x20),
        (9, 0x00),
        (8, 0x02),
        (7, 0x28),
        (4, 0x23),
        (2, 0x59),
        (0, 0x59),
    ] {
        set(&mut rtc, 5 * SECOND, index, value);
    }
    assert_eq!(get(&mut rtc, 9 * SECOND, 0), 0x59);
    set(&mut rtc, 10 * SECOND, 0x0B, 0x02);
    assert_eq!(
        time(&mut rtc, 11 * SECOND),
        [0x20, 0x00, 0x02, 0x29, 0x00, 0x00, 0x00]
    );
}

#[test]
fn update_in_progress_precedes_the_update() {
    let mut rtc = clock();
    assert_eq!(get(&mut rtc, SECOND / 2, 0x0A), 0x26);
    assert_eq!(get(&mut rtc, SECOND - 1000, 0x0A), 0xA6);
    assert_eq!(get(&mut rtc, SECOND, 0x0A), 0x26);
}

#[test]
fn update_interrupt_every_second() {
    let mut rtc = clock();
    set(&mut rtc, SECOND / 4, 0x0B, 0x12);
    assert_eq!(rtc.next_deadline(), SECOND);
    rtc.advance(SECOND);
    assert!(rtc.irq());
    assert_eq!(rtc.next_deadline(), NEVER);
    assert_eq!(
        get(&mut rtc, SECOND, 0x0C),
        0xD0,
        "the periodic flag is set at its rate too"
    );
    assert!(!rtc.irq());
    assert_eq!(get(&mut rtc, SECOND, 0x0C), 0);
    assert_eq!(rtc.next_deadline(), 2 * SECOND);
}

#[test]
fn update_flag_without_its_interrupt() {
    let mut rtc = clock();
    assert_eq!(get(&mut rtc, 3 * SECOND, 0x0C) & 0x10, 0x10);
    assert_eq!(rtc.next_deadline(), NEVER);
}

#[test]
fn periodic_interrupt_rates() {
    let mut rtc = clock();
    set(&mut rtc, 0, 0x0A, 0x26); // 1024 Hz
    set(&mut rtc, 0, 0x0B, 0x42);
    let mut now = 0;
    for _ in 0..1024 {
        now = rtc.next_deadline();
        rtc.advance(now);
        assert!(rtc.irq());
        assert_eq!(get(&mut rtc, now, 0x0C) & 0xC0, 0xC0);
    }
    assert_eq!(now, SECOND);
    set(&mut rtc, now, 0x0A, 0x21); // rate 1 is 256 Hz
    assert_eq!(rtc.next_deadline(), SECOND + SECOND / 256);
}

#[test]
fn alarm_matches_and_ignores_wildcards() {
    let mut rtc = clock();
    for (index, value) in [(1, 0x05), (3, 0x00), (5, 0x00)] {
        set(&mut rtc, 0, index, value);
    }
    set(&mut rtc, 0, 0x0B, 0x22);
    let midnight = (10 * 3600 + 14 * 60 + 2 + 5) * SECOND;
    assert_eq!(rtc.next_deadline(), midnight);
    set(&mut rtc, 0, 5, 0xC0);
    set(&mut rtc, 0, 3, 0xFF);
    assert_eq!(rtc.next_deadline(), 7 * SECOND);
    rtc.advance(7 * SECOND);
    assert_eq!(get(&mut rtc, 7 * SECOND, 0x0C) & 0xB0, 0xB0);
    // An alarm that cannot match never comes.
    set(&mut rtc, 8 * SECOND, 1, 0x99);
    assert_eq!(rtc.next_deadline(), NEVER);
}

#[test]
fn memory_sizes_and_nmi_mask() {
    let mut rtc = clock();
    let word = |rtc: &mut Rtc, index| {
        u16::from(get(rtc, 0, index)) | u16::from(get(rtc, 0, index + 1)) << 8
    };
    assert_eq!(word(&mut rtc, 0x15), 640);
    assert_eq!(word(&mut rtc, 0x17), 0xFFFF);
    assert_eq!(word(&mut rtc, 0x34), 0xBF00);
    assert_eq!(word(&mut rtc, 0x5B), 0x4000);
    assert_eq!(get(&mut rtc, 0, 0x5F), 0);
    rtc.write(0, 0, 0x8F);
    assert!(rtc.nmi_masked());
    rtc.write(0, 1, 0x0A);
    assert_eq!(get(&mut rtc, 0, 0x0F), 0x0A);
    assert!(!rtc.nmi_masked());
}

#[test]
fn restores_what_was_saved() {
    let mut rtc = clock();
    set(&mut rtc, 7, 0x0A, 0x2A);
    set(&mut rtc, 8, 0x0B, 0x72);
    set(&mut rtc, 9, 0x40, 0x99);
    set(&mut rtc, SECOND, 2, 0x30);
    let saved = rtc.save();
    let mut other = clock();
    assert_ne!(other.save(), saved);
    other.restore(&saved);
    assert_eq!(other.save(), saved);
    assert_eq!(other.next_deadline(), rtc.next_deadline());
    assert_eq!(time(&mut other, 5 * SECOND), time(&mut rtc, 5 * SECOND));
}
