//! The PC16550D data sheet's rules, one at a time.

use std::io::Write;
use std::sync::{Arc, Mutex};

use super::*;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn port() -> (Serial, Sink) {
    let sink = Sink::default();
    (Serial::new(Box::new(sink.clone())), sink)
}

#[test]
fn output_is_batched_to_the_line() {
    let (mut serial, sink) = port();
    serial.write(0, 0, b'o');
    serial.write(0, 0, b'k');
    assert!(sink.0.lock().unwrap().is_empty());
    serial.write(0, 0, b'\n');
    assert_eq!(*sink.0.lock().unwrap(), b"ok\n");
    serial.write(0, 0, b'#');
    serial.flush();
    assert_eq!(*sink.0.lock().unwrap(), b"ok\n#");
}

#[test]
fn divisor_latch_hides_data_and_enable_registers() {
    let (mut serial, _) = port();
    serial.write(0, 3, 0x83);
    serial.write(0, 0, 0x34);
    serial.write(0, 1, 0x12);
    assert_eq!((serial.read(0, 0), serial.read(0, 1)), (0x34, 0x12));
    serial.write(0, 3, 0x03);
    assert_eq!(serial.read(0, 1), 0);
    assert_eq!(serial.save().divisor, 0x1234);
}

#[test]
fn interrupts_come_in_priority_order() {
    let (mut serial, _) = port();
    serial.write(0, 2, 0x01);
    serial.write(0, 4, 0x08);
    serial.write(0, 1, 0x0F);
    assert!(serial.receive_break(0));
    assert!(serial.irq());
    assert_eq!(serial.read(0, 2), 0xC6, "line status first");
    assert_eq!(serial.read(0, 5) & 0x91, 0x91, "break, data, error in FIFO");
    assert_eq!(serial.read(0, 2), 0xC4, "then received data");
    assert_eq!(serial.read(0, 0), 0);
    assert_eq!(serial.read(0, 2), 0xC2, "then the transmitter");
    assert_eq!(serial.read(0, 2), 0xC1, "reading the cause cleared it");
    assert!(!serial.irq());
    serial.write(0, 0, b'x');
    assert_eq!(serial.read(0, 2), 0xC2);
}

#[test]
fn out2_gates_the_line() {
    let (mut serial, _) = port();
    serial.write(0, 1, 0x02);
    assert!(!serial.irq());
    serial.write(0, 4, 0x08);
    assert!(serial.irq());
}

#[test]
fn receive_fifo_trigger_and_timeout() {
    let (mut serial, _) = port();
    serial.write(0, 3, 0x03);
    serial.write(0, 2, 0x81); // trigger at 8
    serial.write(0, 4, 0x08);
    serial.write(0, 1, 0x01);
    assert_eq!(serial.receive(1000, b"abc"), 3);
    assert!(!serial.irq());
    // 8N1 at divisor 12 (9600 baud): four characters of ten bits.
    let due = 1000 + 40 * NANOSECONDS / 9600;
    assert!(serial.next_deadline().abs_diff(due) <= 1);
    serial.advance(serial.next_deadline());
    assert_eq!(serial.read(due, 2), 0xCC);
    assert_eq!(serial.read(due, 0), b'a');
    assert_eq!(serial.read(due, 2), 0xC1, "a read restarts the time-out");
    assert_eq!(serial.receive(due, b"0123456789abcdefg"), 14);
    assert_eq!(serial.read(due, 2), 0xC4);
}

#[test]
fn without_fifos_one_byte_fits() {
    let (mut serial, _) = port();
    assert_eq!(serial.receive(0, b"ab"), 1);
    assert_eq!(serial.read(0, 5) & 1, 1);
    assert_eq!(serial.read(0, 0), b'a');
    assert_eq!(serial.read(0, 5) & 1, 0);
}

#[test]
fn loopback_connects_data_and_modem_lines() {
    let (mut serial, sink) = port();
    serial.write(0, 4, 0x1A);
    assert_eq!(serial.read(0, 6) & 0xF0, 0x90);
    serial.write(0, 0, 0x5A);
    serial.write(0, 0, 0xA5);
    assert_eq!(serial.read(0, 5) & 0x03, 0x03, "overrun without FIFOs");
    assert_eq!(serial.read(0, 0), 0xA5);
    assert_eq!(serial.receive(0, b"x"), 0);
    serial.flush();
    assert!(sink.0.lock().unwrap().is_empty());
}

#[test]
fn fifo_control_clears() {
    let (mut serial, _) = port();
    serial.write(0, 2, 0x01);
    assert_eq!(serial.receive(0, b"abc"), 3);
    serial.write(0, 2, 0x03);
    assert_eq!(serial.read(0, 5), 0x60);
    assert_eq!(serial.next_deadline(), NEVER);
}

#[test]
fn restores_what_was_saved() {
    let (mut serial, _) = port();
    for (offset, value) in [
        (3, 0x83),
        (0, 3),
        (3, 0x1B),
        (2, 0x41),
        (4, 0x0B),
        (1, 0x05),
        (7, 0x77),
    ] {
        serial.write(5, offset, value);
    }
    serial.receive(10, b"hello");
    let saved = serial.save();
    let (mut other, _) = port();
    assert_ne!(other.save(), saved);
    other.restore(&saved);
    assert_eq!(other.save(), saved);
    assert_eq!(other.irq(), serial.irq());
    assert_eq!(other.read(20, 0), b'h');
}
