//! What the TLBs may keep and what they may not: PCIDs, INVPCID, INVLPG, global pages, PSE-36
//! (SDM volume 3, 4.3 and 4.10).

use dbt::guest::Exception;
use dbt::guest::flags::*;
use mmu::{FetchNews, GuestPhys, SPACES};

use crate::machine::*;

const LINEAR: u64 = 0x4000_0000;
const DIRECTORY: u64 = 0x10_0000;
const TABLE: u64 = 0x10_1000;
const FRAMES: [u64; 2] = [0x11_0000, 0x11_1000];
/// Where INVPCID finds its descriptor.
const DESCRIPTOR: u64 = 0x11_2000;
const INVPCID: &[u8] = &[0x66, 0x0f, 0x38, 0x82, 0x03];
const SET_CR3: &[u8] = &[0x0f, 0x22, 0xd8];
const SET_CR4: &[u8] = &[0x0f, 0x22, 0xe0];
const INVLPG: &[u8] = &[0x0f, 0x01, 0x3b];
const KEEP: u64 = 1 << 63;
const PGE: u64 = 1 << 7;

/// In 64-bit mode with PCIDs and global pages, in PCID 5. What is known of other address spaces is
/// kept.
fn machine() -> Machine {
    let mut m = Machine::long(0);
    m.write(PAGES + 0x1008, 8, DIRECTORY | 7);
    m.write(DIRECTORY, 8, TABLE | 7);
    m.write(FRAMES[0], 4, 0xaaaa);
    m.write(FRAMES[1], 4, 0xbbbb);
    m.tlb.spaces.kept = 1;
    m.cpu.control.cr4 |= CR4_PCIDE | PGE;
    m.cpu.control.cr3 |= 5;
    m
}

fn map(m: &mut Machine, frame: u64, global: bool) {
    m.write(TABLE, 8, frame | 7 | u64::from(global) << 8);
}

fn load(m: &mut Machine) -> u64 {
    m.cpu.gpr[3] = LINEAR;
    m.run(&[0x8b, 0x03]);
    m.cpu.gpr[0]
}

fn set(m: &mut Machine, code: &[u8], value: u64) {
    m.cpu.gpr[0] = value;
    m.run(code);
    // As the engine does between two instructions.
    m.tlb.fetch_news = FetchNews::default();
}

fn invpcid(m: &mut Machine, kind: u64, pcid: u64, address: u64) -> Result<(), Exception> {
    m.write(DESCRIPTOR, 8, pcid);
    m.write(DESCRIPTOR + 8, 8, address);
    m.cpu.gpr[0] = kind;
    m.cpu.gpr[3] = DESCRIPTOR;
    let outcome = m.step(INVPCID);
    m.tlb.fetch_news = FetchNews::default();
    outcome
}

#[test]
fn invalidations_reach_what_they_cover() {
    type Invalidate = fn(&mut Machine);
    /// What, whether the page is global, how.
    const CASES: &[(&str, bool, Invalidate)] = &[
        ("MOV CR3", false, |m| set(m, SET_CR3, PAGES | 5)),
        ("MOV CR3 away and back", false, |m| {
            set(m, SET_CR3, PAGES | 6);
            set(m, SET_CR3, PAGES | 5);
        }),
        ("INVLPG", false, |m| {
            m.cpu.gpr[3] = LINEAR;
            m.run(INVLPG);
        }),
        ("INVLPG, global", true, |m| {
            m.cpu.gpr[3] = LINEAR;
            m.run(INVLPG);
        }),
        ("INVPCID of the address", false, |m| {
            assert_eq!(invpcid(m, 0, 5, LINEAR), Ok(()));
        }),
        ("INVPCID of the PCID", false, |m| {
            assert_eq!(invpcid(m, 1, 5, 0), Ok(()));
        }),
        ("INVPCID of another PCID, before its return", false, |m| {
            set(m, SET_CR3, PAGES | 6);
            assert_eq!(invpcid(m, 1, 5, 0), Ok(()));
            set(m, SET_CR3, KEEP | PAGES | 5);
        }),
        ("INVPCID of an address in another PCID", false, |m| {
            set(m, SET_CR3, PAGES | 6);
            assert_eq!(invpcid(m, 0, 5, LINEAR), Ok(()));
            set(m, SET_CR3, KEEP | PAGES | 5);
        }),
        ("MOV CR3 on the way back", false, |m| {
            set(m, SET_CR3, KEEP | PAGES | 6);
            set(m, SET_CR3, PAGES | 5);
        }),
        ("INVLPG after the return", false, |m| {
            set(m, SET_CR3, KEEP | PAGES | 6);
            set(m, SET_CR3, KEEP | PAGES | 5);
            m.cpu.gpr[3] = LINEAR;
            m.run(INVLPG);
        }),
        ("INVLPG, global, in another PCID", true, |m| {
            set(m, SET_CR3, KEEP | PAGES | 6);
            m.cpu.gpr[3] = LINEAR;
            m.run(INVLPG);
            set(m, SET_CR3, KEEP | PAGES | 5);
        }),
        ("INVPCID of all but global, in another PCID", false, |m| {
            set(m, SET_CR3, KEEP | PAGES | 6);
            assert_eq!(invpcid(m, 3, 0, 0), Ok(()));
            set(m, SET_CR3, KEEP | PAGES | 5);
        }),
        ("CR4.PGE in another PCID", false, |m| {
            set(m, SET_CR3, KEEP | PAGES | 6);
            let cr4 = m.cpu.control.cr4;
            set(m, SET_CR4, cr4 & !PGE);
            set(m, SET_CR4, cr4);
            set(m, SET_CR3, KEEP | PAGES | 5);
        }),
        ("two switches at once", false, |m| {
            m.cpu.gpr[0] = KEEP | PAGES | 6;
            m.run(SET_CR3);
            m.cpu.gpr[0] = KEEP | PAGES | 5;
            m.run(SET_CR3);
        }),
        ("INVPCID of all but global", false, |m| {
            assert_eq!(invpcid(m, 3, 0, 0), Ok(()));
        }),
        ("INVPCID of all", true, |m| {
            assert_eq!(invpcid(m, 2, 0, 0), Ok(()));
        }),
        ("INVPCID of all, from another PCID", true, |m| {
            set(m, SET_CR3, PAGES | 6);
            assert_eq!(invpcid(m, 2, 0, 0), Ok(()));
            set(m, SET_CR3, KEEP | PAGES | 5);
        }),
        ("CR4.PGE", true, |m| {
            let cr4 = m.cpu.control.cr4;
            set(m, SET_CR4, cr4 & !PGE);
            set(m, SET_CR4, cr4);
        }),
        ("CR4.PCIDE", true, |m| {
            let cr4 = m.cpu.control.cr4;
            set(m, SET_CR4, cr4 & !CR4_PCIDE);
        }),
    ];
    for &(what, global, invalidate) in CASES {
        let mut m = machine();
        map(&mut m, FRAMES[0], global);
        assert_eq!(load(&mut m), 0xaaaa, "{what}");
        map(&mut m, FRAMES[1], global);
        invalidate(&mut m);
        assert_eq!(load(&mut m), 0xbbbb, "{what}");
    }
}

/// What nothing invalidated may be kept: here it is, for the last spaces that were left.
#[test]
fn what_is_kept() {
    for (others, kept) in [(1, true), (3, true), (SPACES as u64, true), (50, false)] {
        let mut m = machine();
        map(&mut m, FRAMES[0], false);
        load(&mut m);
        map(&mut m, FRAMES[1], false);
        for other in 0..others {
            set(&mut m, SET_CR3, KEEP | PAGES | (0x100 + other));
            // Filled in that space, and no business of the first.
            assert_eq!(load(&mut m), 0xbbbb);
            // Invalidations that do not cover it.
            assert_eq!(invpcid(&mut m, 1, 0x999, 0), Ok(()));
            assert_eq!(invpcid(&mut m, 0, 0x100 + other, LINEAR), Ok(()));
        }
        set(&mut m, SET_CR3, KEEP | PAGES | 5);
        let expected = if kept { 0xaaaa } else { 0xbbbb };
        assert_eq!(load(&mut m), expected, "{others}");
    }
    // Unless it is switched off.
    let mut m = machine();
    m.tlb.spaces.kept = 0;
    map(&mut m, FRAMES[0], false);
    load(&mut m);
    map(&mut m, FRAMES[1], false);
    set(&mut m, SET_CR3, KEEP | PAGES | 6);
    set(&mut m, SET_CR3, KEEP | PAGES | 5);
    assert_eq!(load(&mut m), 0xbbbb);
}

/// What becomes of a frame reaches the spaces that are not current.
#[test]
fn frames_change_under_kept_spaces() {
    let store = |m: &mut Machine, value: u64| {
        m.cpu.gpr[3] = LINEAR;
        m.cpu.gpr[0] = value;
        m.run(&[0x89, 0x03]);
    };
    let mut m = machine();
    map(&mut m, FRAMES[0], false);
    store(&mut m, 0xcccc);
    set(&mut m, SET_CR3, KEEP | PAGES | 6);
    // Damaged: the load is served from the other copy.
    m.mem
        .corrupt(GuestPhys(FRAMES[0]), 0, u64::MAX, &mut || 0x5555);
    m.context().settle();
    set(&mut m, SET_CR3, KEEP | PAGES | 5);
    assert_eq!(load(&mut m), 0xcccc);
    // Code by now: the store is noticed.
    store(&mut m, 0xdddd);
    set(&mut m, SET_CR3, KEEP | PAGES | 6);
    m.mem.mark_code(GuestPhys(FRAMES[0]));
    m.context().settle();
    set(&mut m, SET_CR3, KEEP | PAGES | 5);
    m.mem.take_code_writes();
    store(&mut m, 0xeeee);
    assert_eq!(m.mem.take_code_writes(), [(GuestPhys(FRAMES[0]), 4)]);
}

/// Rights of protection keys change under spaces that are not current.
#[test]
fn keys_close_kept_spaces() {
    const KEY: u64 = 5;
    let mut m = machine();
    m.cpu.control.cr4 |= CR4_PKE;
    m.write(TABLE, 8, FRAMES[0] | 7 | KEY << 59);
    let rights = |m: &mut Machine, pkru: u64| {
        (m.cpu.gpr[1], m.cpu.gpr[2]) = (0, 0);
        set(m, &[0x0f, 0x01, 0xef], pkru);
    };
    let closed = 1 << (2 * KEY);
    // Closed before the switch, after it, and between two.
    for steps in [[1, 0, 0], [0, 1, 0], [0, 0, 1]] {
        rights(&mut m, 0);
        assert_eq!(load(&mut m), 0xaaaa);
        for (step, to) in steps.into_iter().zip([6, 5, 5]) {
            if step != 0 {
                rights(&mut m, closed);
            }
            set(&mut m, SET_CR3, KEEP | PAGES | to);
        }
        m.cpu.gpr[3] = LINEAR;
        let fault = m.step(&[0x8b, 0x03]).expect_err("a page that is closed");
        assert_eq!(fault.error_code, Some(0x21), "{steps:?}");
    }
}

/// Invalidating one address of a large page forgets all of it, after a return as before, whatever
/// has been forgotten meanwhile.
#[test]
fn large_pages_come_back_as_such() {
    let mut m = machine();
    let at = DIRECTORY + 8;
    // 2 MiB pages, behind the one that is mapped by a table.
    let first = LINEAR + 0x20_0000;
    let read = |m: &mut Machine, address: u64| {
        m.cpu.gpr[3] = address;
        m.run(&[0x8b, 0x03]);
        m.cpu.gpr[0]
    };
    m.write(at, 8, 0x87);
    m.write(0x13_0000, 4, 1);
    m.write(0x20_0000 + 0x13_0000, 4, 2);
    assert_eq!(read(&mut m, first + 0x13_0000), 1);
    set(&mut m, SET_CR3, KEEP | PAGES | 6);
    // Forgets which regions have large pages, in this space.
    read(&mut m, first + 0x13_0000);
    m.cpu.gpr[3] = first;
    m.run(INVLPG);
    m.tlb.fetch_news = FetchNews::default();
    m.write(at, 8, 0x20_0087);
    set(&mut m, SET_CR3, KEEP | PAGES | 5);
    assert_eq!(read(&mut m, first + 0x13_0000), 1);
    m.cpu.gpr[3] = first;
    m.run(INVLPG);
    assert_eq!(read(&mut m, first + 0x13_0000), 2);
}

/// Another PCID's translations are not used, kept or not, unless they are global.
#[test]
fn address_spaces_are_told_apart() {
    for keep in [0, KEEP] {
        let mut m = machine();
        // A second address space, in which the page is elsewhere.
        let other = 0x12_0000;
        for (at, value) in [
            (other, (other + 0x1000) | 7),
            (other + 0x1000, 0x87),
            (other + 0x1008, (other + 0x2000) | 7),
            (other + 0x2000, (other + 0x3000) | 7),
            (other + 0x3000, FRAMES[1] | 7),
        ] {
            m.write(at, 8, value);
        }
        map(&mut m, FRAMES[0], false);
        for _ in 0..3 {
            assert_eq!(load(&mut m), 0xaaaa);
            set(&mut m, SET_CR3, keep | other | 6);
            // Bit 63 is not part of the register.
            assert_eq!(m.cpu.control.cr3, other | 6);
            assert_eq!(load(&mut m), 0xbbbb);
            set(&mut m, SET_CR3, keep | PAGES | 5);
        }
    }
}

#[test]
fn what_is_refused() {
    const BAD: u64 = 0x8000_0000_0000;
    let refused = Err(Exception::general_protection(0));
    for (kind, pcid, address) in [
        (4, 0, 0),
        (u64::MAX, 0, 0),
        (1, 0x1000, 0),
        (2, 1 << 63, 0),
        (0, 5, BAD),
    ] {
        assert_eq!(
            invpcid(&mut machine(), kind, pcid, address),
            refused,
            "{kind} {pcid:#x}"
        );
    }
    // The address means nothing to the others.
    assert_eq!(invpcid(&mut machine(), 1, 5, BAD), Ok(()));
    // Without PCIDs there is none but 0, and bit 63 of CR3 is reserved.
    let plain = || {
        let mut m = machine();
        m.cpu.control.cr4 &= !CR4_PCIDE;
        m.cpu.control.cr3 = PAGES;
        m
    };
    assert_eq!(invpcid(&mut plain(), 0, 5, LINEAR), refused);
    assert_eq!(invpcid(&mut plain(), 1, 5, 0), refused);
    assert_eq!(invpcid(&mut plain(), 1, 0, 0), Ok(()));
    let mut m = plain();
    m.cpu.gpr[0] = KEEP | PAGES;
    assert_eq!(m.step(SET_CR3), refused);
    // PCIDs start in PCID 0, and paging ends without them.
    let mut m = plain();
    m.cpu.control.cr3 |= 1;
    m.cpu.gpr[0] = m.cpu.control.cr4 | CR4_PCIDE;
    assert_eq!(m.step(SET_CR4), refused);
    let mut m = machine();
    m.load_flat(CODE0, DATA0, 0xc09b, 0xc093);
    m.cpu.gpr[0] = m.cpu.control.cr0 & !CR0_PG;
    assert_eq!(m.step(&[0x0f, 0x22, 0xc0]), refused);
    // INVPCID is for ring 0.
    let mut m = Machine::long(3);
    assert_eq!(invpcid(&mut m, 2, 0, 0), refused);
}

/// Volume 3, 4.3: bits 13 to 20 of a 4 MiB page's entry are bits 32 to 39 of the address, and
/// bit 21 is reserved. There is no RAM up there: reads give ones.
#[test]
fn pages_of_4_mib_reach_40_bits() {
    for (entry, expected) in [
        (0x87, Ok(0x1234)),
        (0x87 | 1 << 13, Ok(0xffff_ffff)),
        (0x87 | 0x80 << 13, Ok(0xffff_ffff)),
        (0x87 | 1 << 21, Err(8 | 1)),
    ] {
        let mut m = Machine::protected(0);
        m.write(PAGES, 4, 0x87);
        m.write(PAGES + 4, 4, entry);
        m.write(0x11_0000, 4, 0x1234);
        m.cpu.control.cr3 = PAGES;
        m.cpu.control.cr4 |= 1 << 4;
        m.cpu.control.cr0 |= CR0_PG;
        m.cpu.refresh_mode();
        m.cpu.gpr[3] = 0x40_0000 + 0x11_0000;
        let outcome = m.step(&[0x8b, 0x03]);
        match expected {
            Ok(value) => {
                assert_eq!(outcome, Ok(()));
                assert_eq!(m.cpu.gpr[0] & 0xffff_ffff, value, "{entry:#x}");
            }
            Err(code) => {
                let fault = outcome.expect_err("a reserved bit");
                assert_eq!(
                    (fault.vector, fault.error_code),
                    (Exception::PF, Some(code))
                );
            }
        }
    }
}

/// A closed A20 gate clears bit 20 of every address on the bus, those of tables among them
/// (SDM volume 3, 8.7.13.4; 20.1.1).
#[test]
fn tables_are_behind_the_a20_gate() {
    const HIGH: u64 = 0x30_0000;
    const LOW: u64 = 0x20_0000;
    for (closed, expected) in [(0, 0xaaaa), (1, 0xbbbb)] {
        let mut m = machine();
        m.write(PAGES + 0x1008, 8, HIGH | 7);
        for (directory, table, frame, value) in [
            (HIGH, LOW + 0x1000, LOW + 0x2000, 0xaaaa),
            (LOW, LOW + 0x3000, HIGH + 0x4000, 0xbbbb),
        ] {
            m.write(directory, 8, table | 7);
            m.write(table, 8, frame | 7);
            let shown = if closed == 1 {
                frame & !(1 << 20)
            } else {
                frame
            };
            m.write(shown, 4, value);
        }
        m.cpu.a20_closed = closed;
        assert_eq!(load(&mut m), expected, "gate closed: {closed}");
        // The accessed bit is set where the entry was read.
        let directory = if closed == 1 { LOW } else { HIGH };
        let other = HIGH + LOW - directory;
        assert_eq!(m.read(directory, 8) & 0x20, 0x20);
        assert_eq!(m.read(other, 8) & 0x20, 0);
    }
}

/// PAE's page-directory pointers too.
#[test]
fn pdptes_are_behind_the_a20_gate() {
    for (closed, expected) in [(0, 0x11_0001), (1, 0x22_0001)] {
        let mut m = Machine::protected(0);
        m.write(0x30_0000, 8, 0x11_0001);
        m.write(0x20_0000, 8, 0x22_0001);
        m.cpu.control.cr4 |= CR4_PAE;
        m.cpu.control.cr3 = 0x30_0000;
        m.cpu.a20_closed = closed;
        m.cpu.gpr[0] = m.cpu.control.cr0 | CR0_PG;
        m.run(&[0x0f, 0x22, 0xc0]);
        assert_eq!(m.cpu.control.pdpte[0], expected, "gate closed: {closed}");
    }
}
