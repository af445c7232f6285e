//! String instructions: progress at faults, limits of a call, ports.

use dbt::guest::{Exception, Register as R, SegmentIndex, flags};

use super::GP;
use super::machine::{CODE, Machine};

const REP_MOVSB: [u8; 2] = [0xf3, 0xa4];
const REP_STOSB: [u8; 2] = [0xf3, 0xaa];

#[test]
fn a_page_fault_leaves_the_iterations_before_it() {
    for (down, first) in [(false, 0x5f00u64), (true, 0x60ff)] {
        let mut m = Machine::long(3);
        let missing = if down { 0x5000 } else { 0x6000 };
        m.map(missing, 5); // readable only
        m.cpu.direction_flag = u8::from(down);
        m.cpu.gpr[R::RSI] = 0x9800;
        m.cpu.gpr[R::RDI] = first;
        m.cpu.gpr[R::RCX] = 0x400;
        for at in 0..0x400 {
            m.store(0x9800 + at, 1, at & 0xff);
            m.store(0x9800 - at, 1, at & 0xff);
        }
        let fault = m.run(&REP_MOVSB).expect_err("a page fault");
        let stopped = if down { 0x5fff } else { 0x6000 };
        assert_eq!((fault.vector, fault.address), (Exception::PF, stopped));
        assert_eq!(fault.error_code, Some(7));
        assert_eq!(m.cpu.gpr[R::RDI], stopped);
        assert_eq!(m.cpu.gpr[R::RCX], 0x300);
        let source = if down { 0x9700 } else { 0x9900 };
        assert_eq!(m.cpu.gpr[R::RSI], source);
        // It goes on from there.
        m.map(missing, 7);
        m.ok(&REP_MOVSB);
        assert_eq!(m.cpu.gpr[R::RCX], 0);
        assert_eq!(m.cpu.rip, CODE + 2);
        let last = if down { first - 0x3ff } else { first + 0x3ff };
        assert_eq!(m.load(last, 1), 0xff);
        assert_eq!(m.load(first, 1), 0);
    }
}

/// Each element is read when those before it have been written, also where it is one of them.
#[test]
fn overlapping_elements_are_moved_one_by_one() {
    const FROM: usize = 0x1000;
    let codes: [(usize, &[u8]); 4] = [
        (1, &[0xf3, 0xa4]),
        (2, &[0xf3, 0x66, 0xa5]),
        (4, &[0xf3, 0xa5]),
        (8, &[0xf3, 0x48, 0xa5]),
    ];
    for (size, code) in codes {
        for (down, distance) in [false, true]
            .into_iter()
            .flat_map(|down| (-40isize..=40).map(move |distance| (down, distance)))
        {
            let mut m = Machine::long(3);
            let mut model: Vec<u8> = (0..0x2000).map(|at| (at * 7 + at / 256) as u8).collect();
            for (at, &byte) in model.iter().enumerate() {
                m.store(0x9000 + at as u64, 1, byte.into());
            }
            let count = 50 + distance.unsigned_abs() * 9;
            let to = FROM.wrapping_add_signed(distance);
            for element in 0..count {
                let at = element * size;
                let at = |from: usize| if down { from - at } else { from + at };
                model.copy_within(at(FROM)..at(FROM) + size, at(to));
            }
            m.cpu.direction_flag = u8::from(down);
            m.cpu.gpr[R::RSI] = 0x9000 + FROM as u64;
            m.cpu.gpr[R::RDI] = 0x9000 + to as u64;
            m.cpu.gpr[R::RCX] = count as u64;
            m.ok(code);
            assert_eq!(m.cpu.gpr[R::RCX], 0);
            for (at, &byte) in model.iter().enumerate() {
                let found = m.load(0x9000 + at as u64, 1);
                assert_eq!(found, byte.into(), "{size} {down} {distance} at {at:#x}");
            }
        }
    }
}

#[test]
fn a_segment_limit_stops_at_its_element() {
    let mut m = Machine::protected(0);
    m.cpu.segment_mut(SegmentIndex::Es).limit = 0x6101;
    m.cpu.refresh_mode();
    m.cpu.gpr[R::RDI] = 0x6000;
    m.cpu.gpr[R::RAX] = 0x1234_5678;
    m.cpu.gpr[R::RCX] = 0x100;
    assert_eq!(m.run(&[0xf3, 0xab]), Err(GP)); // rep stosd
    assert_eq!(m.cpu.gpr[R::RDI], 0x6100);
    assert_eq!(m.cpu.gpr[R::RCX], 0x100 - 0x40);
    assert_eq!(m.load(0x60fc, 8), 0x1234_5678);
}

#[test]
fn a_call_does_a_bounded_amount_of_work() {
    let mut m = Machine::long(3);
    m.cpu.gpr[R::RDI] = 0x2_0010;
    m.cpu.gpr[R::RCX] = 150_000;
    m.cpu.gpr[R::RAX] = 0x5a;
    for left in [150_000 - 65_536, 150_000 - 131_072] {
        m.ok(&REP_STOSB);
        assert_eq!((m.cpu.rip, m.cpu.gpr[R::RCX]), (CODE, left));
    }
    m.ok(&REP_STOSB);
    assert_eq!((m.cpu.rip, m.cpu.gpr[R::RCX]), (CODE + 2, 0));
    assert_eq!(m.load(0x2_0010 + 149_999, 2), 0x5a);
    assert_eq!(m.load(0x2_000f, 2), 0x5a00);
}

#[test]
fn single_steps_are_iterations() {
    let mut m = Machine::long(3);
    m.cpu.set_rflags(flags::TF, flags::TF);
    m.cpu.gpr[R::RDI] = 0x6000;
    m.cpu.gpr[R::RCX] = 2;
    m.ok(&REP_STOSB);
    assert_eq!((m.cpu.rip, m.cpu.gpr[R::RCX]), (CODE, 1));
    m.ok(&REP_STOSB);
    assert_eq!(m.cpu.gpr[R::RCX], 0);
}

#[test]
fn sixteen_bit_strings_wrap_and_take_overrides() {
    let mut m = Machine::real();
    m.cpu.segment_mut(SegmentIndex::Fs).base = 0x3_0000;
    for at in 0..16 {
        m.store(0x3_0000 + ((0xfff8 + at) & 0xffff), 1, 0x40 + at);
    }
    m.cpu.gpr = [0; 16];
    m.cpu.gpr[R::RSI] = 0xaaaa_fff8;
    m.cpu.gpr[R::RDI] = 0x6000;
    m.cpu.gpr[R::RCX] = 0xbbbb_0010;
    m.ok(&[0x64, 0xf3, 0xa4]); // rep movsb, from FS
    assert_eq!(m.cpu.gpr[R::RSI], 0xaaaa_0008);
    assert_eq!(m.cpu.gpr[R::RCX], 0xbbbb_0000);
    for at in 0..16 {
        assert_eq!(m.load(0x6000 + at, 1), 0x40 + at);
    }
}

#[test]
fn port_strings_move_elements() {
    let mut m = Machine::long(0);
    m.cpu.gpr[R::RDI] = 0x6000;
    m.cpu.gpr[R::RDX] = 0x1f0;
    m.cpu.gpr[R::RCX] = 3;
    m.ok(&[0xf3, 0x66, 0x6d]); // rep insw
    assert_eq!(m.load(0x6000, 8), 0x0303_0202_0101);
    assert_eq!(m.ports.reads, 3);
    m.cpu.gpr[R::RSI] = 0x6000;
    m.cpu.gpr[R::RCX] = 2;
    m.ok(&[0xf3, 0x6f]); // rep outsd
    assert_eq!(
        m.ports.written,
        [(0x1f0, 4, 0x0202_0101), (0x1f0, 4, 0x0303)]
    );
    assert_eq!(m.cpu.gpr[R::RSI], 0x6008);
}

#[test]
fn a_port_is_not_read_for_a_store_that_faults() {
    let mut m = Machine::long(0);
    m.map(0x6000, 5);
    m.cpu.gpr[R::RDI] = 0x6000;
    assert!(m.run(&[0x6c]).is_err()); // insb
    assert_eq!(m.ports.reads, 0);
}

#[test]
fn ports_need_the_privilege() {
    let mut m = Machine::long(3);
    // No permission map: it would begin beyond the task state segment.
    m.cpu.control.tr.limit = 0x67;
    m.store(0x66, 2, 0x68);
    m.cpu.gpr[R::RDI] = 0x6000;
    assert_eq!(m.run(&[0x6c]), Err(GP));
    assert_eq!(m.run(&[0x6e]), Err(GP));
    assert!(m.ports.written.is_empty());
}

#[test]
fn nothing_to_do_zero_extends_what_has_32_bits() {
    const HIGH: u64 = 0xabcd_0000_0000;
    // (instruction, whether RSI, whether RDI); the address size is 32 bits.
    let cases: [(&[u8], bool, bool); 6] = [
        (&[0x67, 0xf3, 0xa4], true, true),         // rep movsb
        (&[0x67, 0xf2, 0x48, 0xa5], true, true),   // repne movsq
        (&[0x67, 0xf3, 0xab], false, true),        // rep stosd
        (&[0x67, 0xf3, 0xac], false, false),       // rep lodsb
        (&[0x67, 0xf3, 0xa6], false, false),       // repe cmpsb
        (&[0x67, 0xf2, 0x48, 0xaf], false, false), // repne scasq
    ];
    for (code, source, destination) in cases {
        let mut m = Machine::long(3);
        m.cpu.gpr[R::RCX] = HIGH;
        m.cpu.gpr[R::RSI] = HIGH | 1;
        m.cpu.gpr[R::RDI] = HIGH | 2;
        m.ok(code);
        assert_eq!(m.cpu.rip, CODE + code.len() as u64);
        assert_eq!(m.cpu.gpr[R::RCX], 0, "{code:x?}");
        let expected = |extended: bool| if extended { 0 } else { HIGH };
        assert_eq!(m.cpu.gpr[R::RSI], expected(source) | 1, "{code:x?}");
        assert_eq!(m.cpu.gpr[R::RDI], expected(destination) | 2, "{code:x?}");
        // With addresses of 16 bits the rest of a register stays.
        let mut m = Machine::protected(3);
        m.cpu.gpr[R::RCX] = 0x1_0000;
        m.cpu.gpr[R::RDI] = 0x1_0002;
        m.ok(&[0x67, 0xf3, 0xaa]);
        assert_eq!((m.cpu.gpr[R::RCX], m.cpu.gpr[R::RDI]), (0x1_0000, 0x1_0002));
    }
}
