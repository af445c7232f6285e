//! The 8254 data sheet's rules, one at a time.

use super::*;

fn at(tick: u64) -> u64 {
    time_of_tick(tick, PIT_HZ)
}

fn program(pit: &mut Pit, tick: u64, counter: u16, mode: u8, count: u16) {
    pit.write(at(tick), 3, (counter as u8) << 6 | 0x30 | mode << 1);
    pit.write(at(tick), counter, count as u8);
    pit.write(at(tick), counter, (count >> 8) as u8);
}

fn latch(pit: &mut Pit, tick: u64, counter: u16) -> u16 {
    pit.write(at(tick), 3, (counter as u8) << 6);
    u16::from(pit.read(at(tick), counter)) | u16::from(pit.read(at(tick), counter)) << 8
}

#[test]
fn mode_0_rises_once_after_n_plus_1_clocks() {
    let mut pit = Pit::new();
    program(&mut pit, 100, 0, 0, 5);
    assert!(!pit.output(at(100), 0));
    assert!(!pit.output(at(105), 0));
    assert_eq!(pit.next_deadline(), at(106));
    assert!(pit.output(at(106), 0));
    assert!(!pit.advance(at(105)));
    assert!(pit.advance(at(106)));
    assert_eq!(pit.next_deadline(), NEVER);
    assert_eq!(latch(&mut pit, 107, 0), 0xFFFF, "it counts on below zero");
}

#[test]
fn mode_2_is_low_for_one_clock_in_n() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 0, 2, 10);
    let low: Vec<u64> = (1..=31).filter(|&tick| !pit.output(at(tick), 0)).collect();
    assert_eq!(low, [10, 20, 30]);
    assert_eq!(pit.next_deadline(), at(11));
    assert!(pit.advance(at(25)));
    assert_eq!(pit.next_deadline(), at(31));
    assert_eq!(latch(&mut pit, 31, 0), 10);
    assert_eq!(latch(&mut pit, 40, 0), 1);
}

#[test]
fn mode_3_splits_odd_counts() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 0, 3, 5);
    let wave: Vec<bool> = (1..=10).map(|tick| pit.output(at(tick), 0)).collect();
    assert_eq!(
        wave,
        [
            true, true, true, false, false, true, true, true, false, false
        ]
    );
    let counts: Vec<u16> = (1..=5).map(|tick| latch(&mut pit, tick, 0)).collect();
    assert_eq!(counts, [4, 2, 0, 4, 2]);
    assert_eq!(pit.next_deadline(), at(6));
}

#[test]
fn a_new_period_waits_for_the_old_one() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 0, 2, 100);
    assert!(!pit.advance(at(50)));
    pit.write(at(50), 0, 10);
    pit.write(at(50), 0, 0);
    assert_eq!(pit.next_deadline(), at(101));
    assert!(pit.advance(at(101)));
    assert_eq!(pit.next_deadline(), at(111));
}

#[test]
fn gate_of_counter_2() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 0, 100);
    assert_eq!(
        pit.read_control_port(at(500)) & 0x21,
        0,
        "no gate, no count"
    );
    pit.write_control_port(at(500), 1);
    assert_eq!(pit.read_control_port(at(600)) & 0x21, 0x01);
    assert_eq!(pit.read_control_port(at(601)) & 0x21, 0x21);
    // Mode 1 is triggered, and triggered again, by the gate's rising edge.
    pit.write_control_port(at(700), 0);
    program(&mut pit, 700, 2, 1, 10);
    assert_eq!(pit.read_control_port(at(750)) & 0x20, 0x20);
    pit.write_control_port(at(800), 1);
    assert_eq!(pit.read_control_port(at(810)) & 0x20, 0);
    pit.write_control_port(at(808), 0);
    pit.write_control_port(at(809), 1);
    assert_eq!(pit.read_control_port(at(819)) & 0x20, 0);
    assert_eq!(pit.read_control_port(at(820)) & 0x20, 0x20);
}

#[test]
fn modes_4_and_5_strobe_for_one_clock() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 0, 4, 3);
    let low: Vec<u64> = (0..=20).filter(|&tick| !pit.output(at(tick), 0)).collect();
    assert_eq!(low, [4]);
    assert_eq!(pit.next_deadline(), at(5));
    program(&mut pit, 0, 2, 5, 3);
    pit.write_control_port(at(10), 1);
    let low: Vec<u64> = (0..=20).filter(|&tick| !pit.output(at(tick), 2)).collect();
    assert_eq!(low, [14]);
}

#[test]
fn refresh_bit_toggles() {
    let pit = Pit::new();
    let toggles = (0..1000).filter(|i| {
        (pit.read_control_port(i * 1000) ^ pit.read_control_port((i + 1) * 1000)) & 0x10 != 0
    });
    assert_eq!(toggles.count(), 66, "a millisecond of 15 microsecond steps");
}

#[test]
fn bcd_counts() {
    let mut pit = Pit::new();
    pit.write(0, 3, 0x30 | 2 << 1 | 1);
    pit.write(0, 0, 0x00);
    pit.write(0, 0, 0x10);
    assert_eq!(latch(&mut pit, 2, 0), 0x0999);
    assert_eq!(pit.next_deadline(), at(1001));
}

#[test]
fn read_back_gives_status_then_count() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 0, 2, 0x1234);
    pit.write(at(0), 3, 0xC2 | 0x20); // status of counter 0 only
    assert_eq!(
        pit.read(at(0), 0),
        0x80 | 0x40 | 0x34,
        "output high, null count, mode 2"
    );
    pit.write(at(5), 3, 0xC2);
    assert_eq!(pit.read(at(50), 0), 0x80 | 0x34);
    assert_eq!(pit.read(at(50), 0), 0x30);
    assert_eq!(pit.read(at(50), 0), 0x12);
}

#[test]
fn restores_what_was_saved() {
    let mut pit = Pit::new();
    program(&mut pit, 7, 0, 2, 1000);
    program(&mut pit, 9, 2, 3, 77);
    pit.write_control_port(at(20), 3);
    pit.write(at(30), 0, 0x55);
    let saved = pit.save();
    let mut other = Pit::new();
    assert_ne!(other.save(), saved);
    other.restore(&saved);
    assert_eq!(other.save(), saved);
    assert_eq!(other.next_deadline(), pit.next_deadline());
    assert_eq!(
        other.read_control_port(at(99)),
        pit.read_control_port(at(99))
    );
}
