//! The 8259A data sheet's rules, one at a time.

use super::*;

/// Both chips initialised as Linux does, everything unmasked.
fn initialised(fourth: u8) -> Pic {
    let mut pic = Pic::new();
    for (chip, base, cascade) in [(0, 0x30, 4), (1, 0x38, 2)] {
        pic.write(chip, false, 0x11);
        pic.write(chip, true, base);
        pic.write(chip, true, cascade);
        pic.write(chip, true, fourth);
        pic.write(chip, true, 0x00);
    }
    pic
}

fn raise(pic: &mut Pic, irq: u8) {
    pic.set_irq(irq, false);
    pic.set_irq(irq, true);
}

#[test]
fn initialisation_clears_mask_and_reads_back() {
    let mut pic = initialised(1);
    assert_eq!(pic.read(0, true), 0);
    pic.write(0, true, 0xFB);
    assert_eq!(pic.read(0, true), 0xFB);
    pic.write(0, false, 0x11);
    pic.write(0, true, 0x57);
    pic.write(0, true, 0x04);
    pic.write(0, true, 0x01);
    assert_eq!(pic.read(0, true), 0);
    raise(&mut pic, 3);
    assert_eq!(
        pic.acknowledge(),
        0x53,
        "low three bits of ICW2 are ignored"
    );
}

#[test]
fn fixed_priority_nests() {
    let mut pic = initialised(1);
    raise(&mut pic, 4);
    assert_eq!(pic.acknowledge(), 0x34);
    raise(&mut pic, 6);
    assert!(!pic.output(), "a lower one waits");
    raise(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x31);
    pic.write(0, false, 0x20); // ends 1, the highest in service
    assert!(!pic.output());
    pic.write(0, false, 0x0B);
    assert_eq!(pic.read(0, false), 0x10);
    pic.write(0, false, 0x64); // specific end of 4
    assert_eq!(pic.acknowledge(), 0x36);
}

#[test]
fn slave_goes_through_the_cascade() {
    let mut pic = initialised(1);
    raise(&mut pic, 8);
    raise(&mut pic, 12);
    assert_eq!(pic.acknowledge(), 0x38);
    assert!(!pic.output());
    pic.write(1, false, 0x20);
    pic.write(0, false, 0x20);
    assert!(pic.output());
    assert_eq!(pic.acknowledge(), 0x3C);
}

#[test]
fn special_fully_nested_lets_the_slave_interrupt_itself() {
    let mut pic = initialised(0x11);
    raise(&mut pic, 12);
    assert_eq!(pic.acknowledge(), 0x3C);
    raise(&mut pic, 9);
    assert!(pic.output());
    assert_eq!(pic.acknowledge(), 0x39);
}

#[test]
fn spurious_vectors() {
    let mut pic = initialised(1);
    assert_eq!(pic.acknowledge(), 0x37);
    pic.write(0, false, 0x0B);
    assert_eq!(
        pic.read(0, false),
        0,
        "a spurious interrupt is not in service"
    );
    // A level that falls after the master latched: the slave has nothing.
    pic.write_elcr(1, 0x02);
    pic.set_irq(9, true);
    assert!(pic.output());
    pic.state.chips[1].lines = 0;
    assert_eq!(pic.acknowledge(), 0x3F);
    pic.write(0, false, 0x0B);
    assert_eq!(pic.read(0, false), 0x04, "the cascade is in service");
}

#[test]
fn levels_follow_the_line_and_edges_latch() {
    let mut pic = initialised(1);
    pic.write_elcr(0, 0xFF);
    assert_eq!(pic.read_elcr(0), 0xF8);
    pic.set_irq(5, true);
    assert!(pic.output());
    pic.set_irq(5, false);
    assert!(!pic.output());
    pic.set_irq(5, true);
    assert_eq!(pic.acknowledge(), 0x35);
    pic.write(0, false, 0x20);
    assert!(pic.output(), "still high");
    pic.set_irq(5, false);
    raise(&mut pic, 1);
    pic.set_irq(1, false);
    assert_eq!(pic.acknowledge(), 0x31);
    pic.write(0, false, 0x20);
    assert!(!pic.output());
}

#[test]
fn rotation() {
    let mut pic = initialised(1);
    raise(&mut pic, 2 + 1);
    assert_eq!(pic.acknowledge(), 0x33);
    pic.write(0, false, 0xA0); // rotate on non-specific end: 3 becomes lowest
    raise(&mut pic, 3);
    raise(&mut pic, 5);
    assert_eq!(pic.acknowledge(), 0x35);
    pic.write(0, false, 0x20);
    pic.write(0, false, 0xC6); // 6 lowest, so 7 highest
    raise(&mut pic, 7);
    assert_eq!(pic.acknowledge(), 0x37);
}

#[test]
fn automatic_end_rotates_when_told() {
    let mut pic = initialised(3);
    pic.write(0, false, 0x80);
    raise(&mut pic, 0);
    raise(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x30);
    raise(&mut pic, 0);
    assert_eq!(pic.acknowledge(), 0x31);
    assert_eq!(pic.acknowledge(), 0x30);
}

#[test]
fn special_mask_lets_lower_ones_through() {
    let mut pic = initialised(1);
    raise(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x31);
    raise(&mut pic, 6);
    assert!(!pic.output());
    pic.write(0, true, 0x02);
    pic.write(0, false, 0x68);
    assert_eq!(pic.acknowledge(), 0x36);
}

#[test]
fn polling_acknowledges() {
    let mut pic = initialised(1);
    pic.write(0, false, 0x0C);
    assert_eq!(pic.read(0, false), 7);
    raise(&mut pic, 4);
    pic.write(0, false, 0x0C);
    assert_eq!(pic.read(0, false), 0x84);
    assert!(!pic.output());
}

#[test]
fn restores_what_was_saved() {
    let mut pic = initialised(1);
    pic.write_elcr(1, 0x0A);
    pic.write(0, true, 0x41);
    raise(&mut pic, 3);
    pic.acknowledge();
    raise(&mut pic, 11);
    let saved = pic.save();
    let mut other = Pic::new();
    assert_ne!(other.save(), saved);
    other.restore(&saved);
    assert_eq!(other.save(), saved);
}
