//! The sequences that an operating system's driver probes with.

use super::*;

fn command(chip: &mut I8042, value: u8) {
    chip.write_command(value);
}

fn drain(chip: &mut I8042) -> Vec<u8> {
    let mut bytes = Vec::new();
    while chip.read_status() & STATUS_FULL != 0 {
        bytes.push(chip.read_data());
    }
    bytes
}

#[test]
fn self_tests() {
    let mut chip = I8042::new();
    for (test, answer) in [(0xAA, 0x55), (0xAB, 0x00), (0xA9, 0x00)] {
        command(&mut chip, test);
        assert_eq!(chip.read_status() & 1, 1);
        assert_eq!(drain(&mut chip), [answer]);
    }
}

#[test]
fn mode_register() {
    let mut chip = I8042::new();
    command(&mut chip, 0x60);
    chip.write_data(0x74);
    command(&mut chip, 0x20);
    assert_eq!(drain(&mut chip), [0x74]);
    command(&mut chip, 0xA8);
    command(&mut chip, 0x20);
    assert_eq!(drain(&mut chip), [0x54]);
    command(&mut chip, 0xA7);
    command(&mut chip, 0x20);
    assert_eq!(drain(&mut chip), [0x74]);
}

#[test]
fn keyboard_answers() {
    let mut chip = I8042::new();
    command(&mut chip, 0x60);
    chip.write_data(0x05); // no translation
    for (bytes, answer) in [
        (vec![0xFF], vec![0xFA, 0xAA]),
        (vec![0xF2], vec![0xFA, 0xAB, 0x83]),
        (vec![0xED, 0x02], vec![0xFA, 0xFA]),
        (vec![0xF3, 0x00], vec![0xFA, 0xFA]),
        (vec![0xF0, 0x00], vec![0xFA, 0xFA, 0x02]),
        (vec![0xEE], vec![0xEE]),
        (vec![0xF4], vec![0xFA]),
        (vec![0x12], vec![0xFE]),
    ] {
        let mut said = Vec::new();
        for &byte in &bytes {
            chip.write_data(byte);
            assert!(chip.keyboard_irq() && !chip.mouse_irq());
            said.extend(drain(&mut chip));
        }
        assert_eq!(said, answer, "{bytes:02X?}");
    }
}

#[test]
fn mouse_answers_and_becomes_a_wheel_mouse() {
    let mut chip = I8042::new();
    command(&mut chip, 0x60);
    chip.write_data(0x47);
    let mut say = |bytes: &[u8]| {
        let mut said = Vec::new();
        for &byte in bytes {
            chip.write_command(0xD4);
            chip.write_data(byte);
            assert!(chip.mouse_irq() && !chip.keyboard_irq());
            assert_eq!(chip.read_status() & 0x21, 0x21);
            said.extend(drain(&mut chip));
        }
        said
    };
    assert_eq!(say(&[0xFF]), [0xFA, 0xAA, 0x00]);
    assert_eq!(say(&[0xF2]), [0xFA, 0x00]);
    say(&[0xF3, 200, 0xF3, 100, 0xF3, 80]);
    assert_eq!(say(&[0xF2]), [0xFA, 0x03]);
    assert_eq!(say(&[0xF4]), [0xFA]);
    assert_eq!(say(&[0xE9]), [0xFA, 0x20, 0x02, 80]);
    assert!(chip.mouse_input(3, -2, 1, 1));
    assert_eq!(drain(&mut chip), [0x29, 3, 0xFE, 1]);
}

#[test]
fn loop_command_reaches_a_disabled_mouse_port() {
    let mut chip = I8042::new();
    command(&mut chip, 0xA7);
    command(&mut chip, 0xD3);
    chip.write_data(0x5A);
    assert_eq!(chip.read_status() & 0x21, 0x21);
    assert_eq!(drain(&mut chip), [0x5A]);
}

#[test]
fn keys_are_translated_and_wait_while_disabled() {
    let mut chip = I8042::new();
    assert!(chip.keyboard_input(&[0x1C, 0xF0, 0x1C]));
    assert_eq!(drain(&mut chip), [0x1E, 0x9E]);
    command(&mut chip, 0xAD);
    assert!(chip.keyboard_input(&[0x5A]));
    assert_eq!(drain(&mut chip), []);
    command(&mut chip, 0xAE);
    assert_eq!(drain(&mut chip), [0x1C]);
}

#[test]
fn reset_and_a20() {
    let mut chip = I8042::new();
    assert!(chip.a20());
    command(&mut chip, 0xD1);
    chip.write_data(0x01);
    assert!(!chip.a20() && !chip.take_reset());
    chip.write_fast_a20(0x02);
    assert!(chip.a20());
    command(&mut chip, 0xD0);
    assert_eq!(drain(&mut chip), [0x03]);
    command(&mut chip, 0xFF);
    assert!(!chip.take_reset());
    command(&mut chip, 0xFE);
    assert!(chip.take_reset() && !chip.take_reset());
    chip.write_fast_a20(0x01);
    assert!(chip.take_reset());
}

#[test]
fn the_queue_is_bounded() {
    let mut chip = I8042::new();
    for _ in 0..1000 {
        chip.write_data(0xF2);
        command(&mut chip, 0xD0);
        command(&mut chip, 0xD2);
        chip.write_data(1);
    }
    assert!(chip.save().queue.len() <= QUEUE);
}

#[test]
fn restores_what_was_saved() {
    let mut chip = I8042::new();
    command(&mut chip, 0x60);
    chip.write_data(0x03);
    chip.write_data(0xED);
    chip.write_data(0x07);
    command(&mut chip, 0xD4);
    chip.write_data(0xF4);
    command(&mut chip, 0xD1);
    let saved = chip.save();
    let mut other = I8042::new();
    assert_ne!(other.save(), saved);
    other.restore(&saved);
    assert_eq!(other.save(), saved);
    assert_eq!(drain(&mut other), drain(&mut chip));
}
