//! Chips together: routing, splitting of accesses, events, whole-board state.

use std::io;

use super::*;

fn board() -> Board {
    Board::new(BoardConfig {
        tsc_hz: 2_000_000_000,
        rtc_start: 1_700_000_000,
        serials: [
            Some(Box::new(io::sink())),
            None,
            Some(Box::new(io::sink())),
            None,
        ],
        debug_exit: Some(DebugExit {
            iobase: 0xF4,
            iosize: 4,
        }),
        debug_console: Some(Box::new(io::sink())),
        test_device: true,
        ..BoardConfig::default()
    })
    .unwrap()
}

/// Initialises the 8259A pair with vectors from 0x20, all inputs open.
fn open_pic(board: &mut Board) {
    for (port, base, cascade) in [(0x20, 0x20, 4), (0xA0, 0x28, 2)] {
        for (offset, value) in [(0, 0x11), (1, base), (1, cascade), (1, 1), (1, 0)] {
            board.port_write(0, port + offset, 1, value);
        }
    }
}

fn route(board: &mut Board, pin: u64, entry: u64) {
    for half in [1, 0] {
        board.mmio_write(0, 0xFEC0_0000, 4, 0x10 + 2 * pin + half);
        board.mmio_write(0, 0xFEC0_0010, 4, entry >> (32 * half));
    }
}

fn eoi(board: &mut Board) {
    board.mmio_write(0, 0xFEE0_00B0, 4, 0);
}

#[test]
fn unclaimed_ports_and_addresses_give_all_ones() {
    let mut board = board();
    assert_eq!(board.port_read(0, 0x300, 1), 0xFF);
    assert_eq!(board.port_read(0, 0x300, 2), 0xFFFF);
    assert_eq!(board.port_read(0, 0xCF8, 4), u32::MAX);
    board.port_write(0, 0xCF8, 4, 0x8000_0600);
    assert_eq!(board.take_event(), None, "an address write is not a reset");
    assert_eq!(board.port_read(0, 0xCFC, 4), u32::MAX);
    assert_eq!(board.port_read(0, 0x2F8, 1), 0xFF, "no COM2");
    assert_eq!(board.mmio_read(0, 0xF000_0000, 8), u64::MAX);
    assert_eq!(board.mmio_read(0, 0xF000_0000, 2), 0xFFFF);
    assert!(!board.is_mmio(0xF000_0000) && board.is_mmio(0xFEE0_0030));
    assert!(board.is_mmio(0xFED0_03FF) && !board.is_mmio(0xFED0_0400));
}

#[test]
fn overlap_is_refused() {
    let config = BoardConfig {
        debug_exit: Some(DebugExit {
            iobase: 0x71,
            iosize: 1,
        }),
        ..BoardConfig::default()
    };
    let message = Board::new(config).unwrap_err().to_string();
    assert_eq!(
        message,
        "port 0x71..=0x71 of debug exit overlaps 0x70..=0x71 of real-time clock"
    );
    let config = BoardConfig {
        debug_exit: Some(DebugExit {
            iobase: 0xFFFF,
            iosize: 2,
        }),
        ..BoardConfig::default()
    };
    assert!(matches!(
        Board::new(config),
        Err(BoardError::DebugExitRange { .. })
    ));
}

#[test]
fn a_board_with_everything_has_no_overlap() {
    let sink = || Some(Box::new(io::sink()) as Box<dyn io::Write + Send>);
    let config = BoardConfig {
        serials: [sink(), sink(), sink(), sink()],
        debug_exit: Some(DebugExit::default()),
        debug_console: sink(),
        test_device: true,
        ..BoardConfig::default()
    };
    let mut board = Board::new(config).unwrap();
    assert_eq!(board.port_read(0, 0x2EF, 1), 0, "COM4's scratch register");
    let none = BoardConfig {
        hpet: false,
        i8042: false,
        ..BoardConfig::default()
    };
    let mut bare = Board::new(none).unwrap();
    assert_eq!(bare.port_read(0, 0x64, 1), 0xFF);
    assert!(!bare.is_mmio(0xFED0_0000));
}

#[test]
fn wide_accesses_are_split() {
    let mut board = board();
    board.port_write(0, 0x3FB, 1, 0x80);
    board.port_write(0, 0x3F8, 2, 0x1234);
    assert_eq!(board.port_read(0, 0x3F8, 4), 0x80_01_12_34);
    board.port_write(0, 0x70, 2, 0x77 << 8 | 0x40); // index, then data
    board.port_write(0, 0x70, 1, 0x40);
    assert_eq!(board.port_read(0, 0x71, 1), 0x77);
    // The last claimed port and the one after it; the end of the port space.
    assert_eq!(board.port_read(0, 0x3FF, 2) >> 8, 0xFF);
    assert_eq!(board.port_read(0, 0xFFFF, 4), u32::MAX);
}

#[test]
fn virtual_wire_delivers_the_pic() {
    let mut board = board();
    open_pic(&mut board);
    board.port_write(0, 0x2004, 1, 1);
    assert!(board.interrupt_pending());
    assert_eq!(board.acknowledge(0), Some(0x24));
    assert!(!board.interrupt_pending());
    board.port_write(0, 0x2006, 1, 1);
    assert!(!board.interrupt_pending(), "lower than the one in service");
    board.port_write(0, 0x20, 1, 0x20);
    assert_eq!(board.acknowledge(0), Some(0x26));
    board.port_write(0, 0x200B, 1, 1);
    assert_eq!(board.acknowledge(0), Some(0x2B), "the cascade is input 2");
    // Masked LINT0 stops it; a disabled APIC lets it through again.
    board.port_write(0, 0xA0, 1, 0x20);
    board.port_write(0, 0x20, 1, 0x20);
    board.port_write(0, 0x20, 1, 0x20);
    board.mmio_write(0, 0xFEE0_0350, 4, 0x1_0700);
    board.port_write(0, 0x2007, 1, 1);
    assert!(!board.interrupt_pending());
    let base = board.msr_read(0, 0x1B).unwrap();
    board.msr_write(0, 0x1B, base & !0x800).unwrap().unwrap();
    assert_eq!(board.acknowledge(0), Some(0x27));
    assert_eq!(board.acknowledge(0), None);
}

#[test]
fn lint0_in_fixed_mode_sees_back_to_back_interrupts() {
    let mut board = board();
    open_pic(&mut board);
    board.mmio_write(0, 0xFEE0_0350, 4, 0x0031);
    board.port_write(0, 0x2001, 1, 1);
    assert_eq!(board.acknowledge(0), Some(0x31));
}

#[test]
fn ioapic_extint_pin() {
    let mut board = board();
    open_pic(&mut board);
    board.mmio_write(0, 0xFEE0_0350, 4, 0x1_0700);
    board.port_write(0, 0x2003, 1, 1);
    assert!(!board.interrupt_pending());
    route(&mut board, 0, 0x0700);
    assert_eq!(board.acknowledge(0), Some(0x23));
}

#[test]
fn timer_reaches_pin_2_and_the_pic() {
    let mut board = board();
    route(&mut board, 2, 0x30);
    board.port_write(0, 0x43, 1, 0x34);
    board.port_write(0, 0x40, 1, 0xA9);
    board.port_write(0, 0x40, 1, 0x04);
    let mut now = 0;
    for _ in 0..5 {
        assert!(!board.interrupt_pending());
        now = board.next_deadline(now).unwrap();
        board.advance(now);
        assert_eq!(board.acknowledge(now), Some(0x30));
        eoi(&mut board);
    }
    assert!(now.abs_diff(5_000_000) < 5_000, "{now}");
    // Legacy replacement takes the line away from the PIT.
    board.mmio_write(now, 0xFED0_0010, 4, 3);
    board.advance(now + 2_000_000);
    assert!(!board.interrupt_pending());
    board.mmio_write(now, 0xFED0_0100, 4, 4);
    board.mmio_write(now, 0xFED0_0108, 8, 1_000_000);
    let due = board.next_deadline(now).unwrap().max(10_000_000 + now);
    board.advance(due);
    assert_eq!(board.acknowledge(due), Some(0x30));
}

#[test]
fn shared_serial_line() {
    let mut board = board();
    route(&mut board, 4, 0x8044); // as a level
    for base in [0x3F8, 0x3E8] {
        board.port_write(0, base + 4, 1, 8);
        board.port_write(0, base + 1, 1, 1);
        let port = if base == 0x3F8 { 0 } else { 2 };
        assert_eq!(board.serial_receive(0, port, b"x"), 1);
    }
    assert_eq!(board.serial_receive(0, 1, b"x"), 0);
    assert_eq!(board.acknowledge(0), Some(0x44));
    board.port_read(0, 0x3F8, 1);
    eoi(&mut board);
    assert_eq!(
        board.acknowledge(0),
        Some(0x44),
        "the other port still drives it"
    );
    board.port_read(0, 0x3E8, 1);
    eoi(&mut board);
    assert!(!board.interrupt_pending());
}

#[test]
fn keyboard_bytes_each_make_an_edge() {
    let mut board = board();
    route(&mut board, 1, 0x41);
    assert!(board.keyboard_input(&[0x1C, 0x32]));
    for code in [0x1E, 0x30] {
        assert_eq!(board.acknowledge(0), Some(0x41));
        assert_eq!(board.port_read(0, 0x60, 1), code);
        eoi(&mut board);
    }
    assert!(!board.interrupt_pending());
}

#[test]
fn ends_of_the_machine() {
    let mut board = board();
    board.port_write(0, 0xF4, 4, 0x10);
    board.port_write(0, 0x64, 1, 0xFE);
    assert_eq!(
        board.take_event(),
        Some(BoardEvent::DebugExit(0x21)),
        "the first event counts"
    );
    assert_eq!(board.take_event(), None);
    for (port, size, value, event) in [
        (0x64, 1, 0xFE, BoardEvent::Reset),
        (0x92, 1, 0x01, BoardEvent::Reset),
        (0xCF9, 1, 0x06, BoardEvent::Reset),
        (0x604, 2, 0x2000, BoardEvent::PowerOff),
    ] {
        board.port_write(0, port, size, value);
        assert_eq!(board.take_event(), Some(event), "port {port:#x}");
    }
}

#[test]
fn power_button_is_a_level_sci() {
    let mut board = board();
    route(&mut board, 9, 0x8039);
    board.port_write(0, 0xB2, 1, 0xF1);
    board.port_write(0, 0x602, 2, 0x0100);
    board.press_power_button();
    assert_eq!(board.acknowledge(0), Some(0x39));
    board.port_write(0, 0x600, 2, 0x0100);
    eoi(&mut board);
    assert!(!board.interrupt_pending());
}

#[test]
fn msrs() {
    let mut board = board();
    assert_eq!(board.msr_read(0, 0x10), None);
    assert_eq!(board.msr_read(0, 0x802), None, "not in x2APIC mode");
    assert_eq!(
        board.msr_write(0, 0x80B, 0),
        Some(Err(crate::GeneralProtection))
    );
    board.msr_write(0, 0x1B, 0xFEE0_0D00).unwrap().unwrap();
    assert!(!board.is_mmio(0xFEE0_0000));
    assert_eq!(board.mmio_read(0, 0xFEE0_0030, 4), 0xFFFF_FFFF);
    board.msr_write(0, 0x832, 0x4_00EC).unwrap().unwrap();
    board.set_tsc_offset(0, 100);
    board.msr_write(0, 0x6E0, 2100).unwrap().unwrap();
    assert_eq!(board.next_deadline(0), Some(1000));
    board.advance(1000);
    assert_eq!(board.acknowledge(1000), Some(0xEC));
    board.set_tpr(0xF);
    assert_eq!(board.tpr(), 0xF);
    board.msr_write(1000, 0x83F, 0xEE).unwrap().unwrap();
    assert!(!board.interrupt_pending());
}

#[test]
fn nmi_and_its_mask() {
    let mut board = board();
    board.raise_nmi();
    assert!(board.take_nmi() && !board.take_nmi());
    board.port_write(0, 0x70, 1, 0x80);
    board.raise_nmi();
    assert!(!board.take_nmi());
}

#[test]
fn ram_around_the_hole() {
    assert_eq!(ram_layout(0x8000_0000), (0x8000_0000, 0));
    assert_eq!(ram_layout(0xDFFF_F000), (0xDFFF_F000, 0));
    assert_eq!(ram_layout(0x1_0000_0000), (0xC000_0000, 0x4000_0000));
}

/// Writes everywhere; nothing panics, and afterwards a saved board goes on as
/// the original does.
#[test]
fn random_guest_and_restore() {
    let mut seed = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut board = board();
    let ranges: Vec<(u16, u64)> = board
        .ports
        .iter()
        .map(|range| (range.first as u16, range.last - range.first + 1))
        .collect();
    let windows: Vec<(u64, u64)> = board
        .addresses
        .iter()
        .map(|range| (range.first, range.last - range.first + 1))
        .collect();
    let mut now = 0;
    for step in 0..300_000 {
        now += random() % 20_000;
        if random() % 1000 == 0 {
            now += random() % 100_000_000_000;
        }
        let size = [1, 2, 4, 8][(random() % 4) as usize];
        match random() % 8 {
            0..3 => {
                let (first, length) = ranges[random() as usize % ranges.len()];
                let port = first.wrapping_add((random() % length) as u16);
                board.port_write(now, port, size.min(4), random() as u32);
                board.port_read(now, port, size.min(4));
            }
            3 => {
                let (first, length) = windows[random() as usize % windows.len()];
                let at = first + random() % length.min(0x400);
                board.mmio_write(now, at, size, random());
                board.mmio_read(now, at, size);
            }
            4 => {
                let at = 0xFEE0_0000 + (random() % 0x40) * 16;
                board.mmio_write(now, at, 4, random());
                board.mmio_read(now, at, 4);
            }
            5 => {
                let msr = 0x800 + (random() % 0x40) as u32;
                let bits = random() % 64;
                let _ = board.msr_write(now, msr, random() >> bits);
                let _ = board.msr_write(
                    now,
                    0x6E0,
                    board.guest_tsc(now).wrapping_add(random() >> bits),
                );
                board.msr_read(now, msr);
            }
            6 => {
                board.serial_receive(now, 0, b"hello");
                board.keyboard_input(&[0x1C]);
                board.mouse_input(random() as i16, 1, 0, 7);
                board.set_tpr(random() as u8);
            }
            _ => {
                if let Some(due) = board.next_deadline(now) {
                    now = now.max(due.min(now + 1_000_000));
                }
                board.advance(now);
                assert!(
                    board.next_deadline(now).is_none_or(|due| due > now),
                    "no progress at {step}"
                );
                while board.interrupt_pending() {
                    assert!(board.acknowledge(now).is_some());
                }
                let _ = board.msr_write(now, 0x1B, 0xFEE0_0800 | random() & 0x400);
            }
        }
        board.take_event();
        board.take_nmi();
        if step % 10_000 == 0 {
            let saved = board.save();
            let mut other = super::tests::board();
            other.restore(&saved);
            assert_eq!(other.save(), saved);
            assert_eq!(other.interrupt_pending(), board.interrupt_pending());
            assert_eq!(other.next_deadline(now), board.next_deadline(now));
            assert_eq!(other.is_mmio(0xFEE0_0000), board.is_mmio(0xFEE0_0000));
            let later = now + 50_000_000;
            other.advance(later);
            let mut same = super::tests::board();
            same.restore(&saved);
            same.advance(later);
            assert_eq!(other.save(), same.save());
        }
    }
}

#[test]
fn reset_gives_a_fresh_board() {
    let mut board = board();
    open_pic(&mut board);
    route(&mut board, 4, 0x44);
    board.port_write(0, 0x3FC, 1, 8);
    board.port_write(0, 0x3F9, 1, 2);
    assert!(board.interrupt_pending());
    board.reset();
    assert!(!board.interrupt_pending());
    let fresh = super::tests::board().save();
    let mut after = board.save();
    after.rtc = fresh.rtc.clone();
    assert_eq!(after, fresh);
}
