//! Protection keys for user pages: who is refused what, with which error code, when cached
//! rights end, and PKRU as a component of XSAVE (SDM volume 3, 4.6.2 and 4.7; volume 1, 13.5.7).

use dbt::guest::cpuid::query;
use dbt::guest::flags::*;
use dbt::guest::{CpuModel, Exception};
use mmu::{GuestPhys, Linear, PagingRegisters, Purpose};

use crate::machine::*;

const LINEAR: u64 = 0x4000_0000;
const DIRECTORY: u64 = 0x10_0000;
const TABLE: u64 = 0x10_1000;
const FRAME: u64 = 0x11_0000;
const AREA: u64 = 0x11_2000;
const KEY: u64 = 5;
/// Access disabled and write disabled, for the page's key.
const AD: u32 = 1 << (2 * KEY);
const WD: u32 = 2 << (2 * KEY);
/// Everything disabled for all other keys.
const OTHERS: u32 = !(AD | WD);

const LOAD: &[u8] = &[0x8b, 0x03];
const STORE: &[u8] = &[0x89, 0x03];
const UPDATE: &[u8] = &[0x01, 0x03];
const RDPKRU: &[u8] = &[0x0f, 0x01, 0xee];
const WRPKRU: &[u8] = &[0x0f, 0x01, 0xef];
const XSAVE: &[u8] = &[0x0f, 0xae, 0x27];
const XRSTOR: &[u8] = &[0x0f, 0xae, 0x2f];
const XSAVEC: &[u8] = &[0x0f, 0xc7, 0x27];

const PKRU_BIT: u64 = 1 << 9;

/// In long mode with keys, a page of key 5 at `LINEAR` with these rights.
fn machine(ring: u8, rights: u64) -> Machine {
    let mut m = Machine::long(ring);
    m.write(PAGES + 0x1008, 8, DIRECTORY | 7);
    m.write(DIRECTORY, 8, TABLE | 7);
    m.write(TABLE, 8, FRAME | rights | KEY << 59);
    m.cpu.control.cr4 |= CR4_PKE;
    m.cpu.gpr[3] = LINEAR;
    m.cpu.refresh_mode();
    m
}

fn set_rights(m: &mut Machine, pkru: u32) {
    let (rax, rcx, rdx) = (m.cpu.gpr[0], m.cpu.gpr[1], m.cpu.gpr[2]);
    (m.cpu.gpr[0], m.cpu.gpr[1], m.cpu.gpr[2]) = (u64::from(pkru), 0, 0);
    m.run(WRPKRU);
    (m.cpu.gpr[0], m.cpu.gpr[1], m.cpu.gpr[2]) = (rax, rcx, rdx);
}

fn fault(outcome: Result<(), Exception>) -> Option<u32> {
    match outcome {
        Ok(()) => None,
        Err(fault) => {
            assert_eq!(fault.vector, Exception::PF);
            fault.error_code
        }
    }
}

/// What, ring, rights of the page (P, R/W, U/S), CR0.WP, PKRU, error codes of a load and a store.
type Case = (&'static str, u8, u64, bool, u32, Option<u32>, Option<u32>);

const CASES: &[Case] = &[
    ("user, allowed", 3, 7, true, OTHERS, None, None),
    ("user, AD", 3, 7, true, AD, Some(0x25), Some(0x27)),
    ("user, WD", 3, 7, true, WD, None, Some(0x27)),
    ("user, WD without WP", 3, 7, false, WD, None, Some(0x27)),
    ("supervisor, allowed", 0, 7, true, OTHERS, None, None),
    ("supervisor, AD", 0, 7, true, AD, Some(0x21), Some(0x23)),
    ("supervisor, WD", 0, 7, true, WD, None, Some(0x23)),
    ("supervisor, WD without WP", 0, 7, false, WD, None, None),
    (
        "supervisor, AD without WP",
        0,
        7,
        false,
        AD,
        Some(0x21),
        Some(0x23),
    ),
    ("supervisor page", 0, 3, true, AD | WD, None, None),
    (
        "supervisor page, from ring 3",
        3,
        3,
        true,
        AD | WD,
        Some(5),
        Some(7),
    ),
    ("read-only besides", 3, 5, true, WD, None, Some(0x27)),
    ("read-only alone", 3, 5, true, 0, None, Some(7)),
    ("absent", 3, 6, true, AD | WD, Some(4), Some(6)),
];

#[test]
fn rights_by_key() {
    for &(what, ring, rights, write_protect, pkru, load, store) in CASES {
        for (code, expected) in [(LOAD, load), (STORE, store), (UPDATE, store)] {
            let mut m = machine(ring, rights);
            if write_protect {
                m.cpu.control.cr0 |= CR0_WP;
            }
            // What an update lacks to read it reports as a write.
            set_rights(&mut m, pkru);
            assert_eq!(fault(m.step(code)), expected, "{what}: {code:x?}");
            // The accessed bit is not set by what is refused.
            if expected.is_some() {
                assert_eq!(m.read(TABLE, 8) & 0x60, 0, "{what}: {code:x?}");
            }
        }
    }
}

#[test]
fn keys_are_off_without_cr4_pke_and_outside_long_mode() {
    let mut m = machine(3, 7);
    m.cpu.control.cr4 &= !CR4_PKE;
    m.cpu.control.pkru = u32::MAX;
    assert_eq!(m.step(STORE), Ok(()));
    // Compatibility mode is long mode.
    let mut m = machine(3, 7);
    m.load_flat(CODE3, DATA3, 0xc09b, 0xc093);
    m.cpu.control.pkru = AD;
    assert_eq!(fault(m.step(LOAD)), Some(0x25));
    // PAE paging alone is not.
    let mut m = machine(3, 7);
    m.load_flat(CODE3, DATA3, 0xc09b, 0xc093);
    m.cpu.control.efer &= !(EFER_LMA | EFER_LME);
    m.cpu.control.pdpte = [0, DIRECTORY | 1, 0, 0];
    m.write(TABLE, 8, FRAME | 7);
    m.cpu.control.pkru = u32::MAX;
    m.cpu.refresh_mode();
    assert_eq!(m.step(STORE), Ok(()));
}

#[test]
fn fetches_have_no_keys() {
    let mut m = machine(3, 7);
    let registers = PagingRegisters {
        cr0: m.cpu.control.cr0 | CR0_WP,
        cr3: m.cpu.control.cr3,
        cr4: m.cpu.control.cr4,
        efer: m.cpu.control.efer,
        pkru: u32::MAX,
        ..PagingRegisters::default()
    };
    let purpose = Purpose {
        write: false,
        fetch: true,
        user: true,
        ahead: false,
        user_pages_closed: false,
    };
    let mapping = registers.walk(&mut m.mem, Linear(LINEAR), purpose);
    assert_eq!(mapping.expect("a page").physical, GuestPhys(FRAME));
}

/// Cached rights of a page end with WRPKRU, and only what changed is forgotten.
#[test]
fn cached_rights_follow_pkru() {
    for ring in [0, 3] {
        let mut m = machine(ring, 7);
        m.cpu.control.cr0 |= CR0_WP;
        let user = if ring == 3 { 4 } else { 0 };
        for (pkru, load, store) in [
            (0, None, None),
            (WD, None, Some(0x23 | user)),
            (0, None, None),
            (AD, Some(0x21 | user), Some(0x23 | user)),
            (OTHERS, None, None),
            (OTHERS | AD | WD, Some(0x21 | user), Some(0x23 | user)),
            (WD, None, Some(0x23 | user)),
            (OTHERS, None, None),
        ] {
            set_rights(&mut m, pkru);
            for _ in 0..2 {
                assert_eq!(fault(m.step(LOAD)), load, "ring {ring}, {pkru:#x}");
                assert_eq!(fault(m.step(STORE)), store, "ring {ring}, {pkru:#x}");
            }
        }
    }
    // Pages of key 0, as every page that software gave none.
    let mut m = machine(3, 7);
    m.write(TABLE, 8, FRAME | 7);
    assert_eq!(fault(m.step(STORE)), None);
    set_rights(&mut m, 1);
    assert_eq!(fault(m.step(STORE)), Some(0x27));
}

#[test]
fn instructions_are_checked() {
    let ready = || machine(3, 7);
    let refused = Err(Exception::general_protection(0));
    for code in [RDPKRU, WRPKRU] {
        let mut m = ready();
        m.cpu.control.cr4 &= !CR4_PKE;
        assert_eq!(m.step(code), Err(Exception::invalid_opcode()));
        let mut m = ready();
        m.cpu.gpr[1] = 1;
        assert_eq!(m.step(code), refused);
        let mut m = ready();
        (m.cpu.gpr[1], m.cpu.gpr[2]) = (7 << 32, 3 << 32);
        assert_eq!(m.step(code), Ok(()));
    }
    let mut m = ready();
    (m.cpu.gpr[1], m.cpu.gpr[2]) = (0, 1);
    assert_eq!(m.step(WRPKRU), refused);
    set_rights(&mut m, 0x8765_4321);
    (m.cpu.gpr[0], m.cpu.gpr[2]) = (u64::MAX, u64::MAX);
    m.run(RDPKRU);
    assert_eq!((m.cpu.gpr[0], m.cpu.gpr[2]), (0x8765_4321, 0));
}

fn xsave_machine() -> Machine {
    let mut m = machine(3, 7);
    m.cpu.control.cr4 |= CR4_OSXSAVE | CR4_OSFXSR;
    m.cpu.control.xcr0 = 3 | PKRU_BIT;
    m.cpu.gpr[7] = AREA;
    m.cpu.gpr[2] = 0;
    m.cpu.gpr[0] = PKRU_BIT;
    for at in (0..1024).step_by(8) {
        m.write(AREA + at, 8, 0x5555_5555_5555_5555);
    }
    for at in (512..576).step_by(8) {
        m.write(AREA + at, 8, 0);
    }
    m
}

#[test]
fn xsave_has_pkru() {
    let m = xsave_machine();
    let avx = m.cpu.model.has(dbt::guest::Feature::Avx);
    let [size, offset, flags, _] = query(&m.cpu, true, 0xd, 9);
    assert_eq!((size, flags), (8, 0));
    let [components, now, most, _] = query(&m.cpu, true, 0xd, 0);
    assert_eq!(u64::from(components), if avx { 7 } else { 3 } | PKRU_BIT);
    assert_eq!((now, most), (offset + 8, offset + 8));
    // Packed, no AVX component before it: the header ends at 576.
    assert_eq!(query(&m.cpu, true, 0xd, 1)[1], 576 + 8);
    let offset = u64::from(offset);

    // The standard format, in use and not.
    let mut m = xsave_machine();
    set_rights(&mut m, 0x1234_5678);
    m.run(XSAVE);
    assert_eq!(m.read(AREA + 512, 8), PKRU_BIT);
    assert_eq!(m.read(AREA + offset, 8), 0x1234_5678);
    assert_eq!(m.read(AREA + offset - 8, 8), 0x5555_5555_5555_5555);
    assert_eq!(m.read(AREA + offset + 8, 8), 0x5555_5555_5555_5555);
    set_rights(&mut m, 0);
    m.run(XSAVE);
    assert_eq!((m.read(AREA + 512, 8), m.read(AREA + offset, 8)), (0, 0));

    // Compacted.
    let mut m = xsave_machine();
    set_rights(&mut m, 0x1234_5678);
    m.run(XSAVEC);
    assert_eq!(m.read(AREA + 512, 8), PKRU_BIT);
    assert_eq!(m.read(AREA + 520, 8), 1 << 63 | PKRU_BIT);
    assert_eq!(m.read(AREA + 576, 8), 0x1234_5678);
    // Restored, with the rights at work at once; the upper half is ignored.
    m.write(AREA + 580, 4, 0x9999_9999);
    m.write(AREA + 576, 4, u64::from(AD));
    set_rights(&mut m, 0);
    assert_eq!(m.step(LOAD), Ok(()));
    // The load has spoiled EAX.
    m.cpu.gpr[0] = PKRU_BIT;
    m.run(XRSTOR);
    assert_eq!(m.cpu.control.pkru, AD);
    assert_eq!(fault(m.step(LOAD)), Some(0x25));
    // Marked as initial, or not there: 0.
    m.write(AREA + 512, 8, 0);
    m.run(XRSTOR);
    assert_eq!(m.cpu.control.pkru, 0);
    assert_eq!(fault(m.step(LOAD)), None);
    // Not asked for: as it was.
    set_rights(&mut m, AD);
    m.cpu.gpr[0] = 3;
    m.run(XRSTOR);
    assert_eq!(m.cpu.control.pkru, AD);
}

#[test]
fn models_without_keys() {
    let mut m = Machine::long(0);
    m.cpu.model = CpuModel::parse("max,-pku").expect("a model");
    m.cpu.gpr[0] = m.cpu.control.cr4 | CR4_PKE;
    let refused = Err(Exception::general_protection(0));
    assert_eq!(m.step(&[0x0f, 0x22, 0xe0]), refused);
    assert_eq!(query(&m.cpu, true, 0xd, 9), [0; 4]);
    assert_eq!(query(&m.cpu, true, 7, 0)[2] & 0x18, 0);
    m.cpu.model = CpuModel::parse("max").expect("a model");
    m.run(&[0x0f, 0x22, 0xe0]);
    assert_eq!(query(&m.cpu, true, 7, 0)[2] & 0x18, 0x18);
}

/// In one translated block: a store, WRPKRU, the same store.
#[test]
fn translated_code_sees_the_new_rights() {
    let run = |interpret_only: bool| {
        let mut m = machine(0, 7);
        m.cpu.control.cr0 |= CR0_WP;
        let code = [
            &[0x31, 0xc9, 0x31, 0xd2, 0x31, 0xc0][..], // xor ecx, ecx; xor edx, edx; xor eax, eax
            WRPKRU,
            &[0xc7, 0x03, 1, 0, 0, 0], // mov dword [rbx], 1
            &[0xb8],                   // mov eax, WD
            &WD.to_le_bytes(),
            WRPKRU,
            &[0x8b, 0x33],                      // mov esi, [rbx]
            &[0xc7, 0x43, 4, 2, 0, 0, 0],       // mov dword [rbx + 4], 2
            &[0xc7, 0x43, 8, 3, 0, 0, 0, 0xf4], // never
        ]
        .concat();
        for (at, byte) in code.iter().enumerate() {
            m.write(CODE + at as u64, 1, u64::from(*byte));
        }
        m.write(HANDLER + 16 * 14, 1, 0x90);
        let mut vcpu = m.into_vcpu(counting(interpret_only));
        vcpu.set_goal(9);
        vcpu.run();
        let mut words = [0; 3];
        for (index, word) in words.iter_mut().enumerate() {
            let at = GuestPhys(FRAME + 4 * index as u64);
            *word = vcpu.mem.load_uint(at, 4).expect("RAM");
        }
        let error = GuestPhys(vcpu.cpu().gpr[4]);
        let error = vcpu.mem.load_uint(error, 8).expect("RAM");
        (vcpu.cpu().control.cr2, vcpu.cpu().gpr[6], words, error)
    };
    let expected = (LINEAR + 4, 1, [1, 0, 0], 0x23);
    assert_eq!(run(true), expected);
    assert_eq!(run(false), expected);
}
