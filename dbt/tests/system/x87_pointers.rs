//! What the x87 remembers of its last instruction, in each format that shows it (SDM volume 1,
//! 8.1.8 to 8.1.10 and 10.5.1), stored by the interpreter and behind emitted code.

use dbt::Stop;
use dbt::guest::X87Pointers;
use dbt::guest::flags::*;

use crate::machine::*;

const AREA: u64 = 0x11_0000;
/// FIP, FDP and FOP as software may have loaded them.
const LOADED: X87Pointers = X87Pointers {
    instruction: 0x9_8765,
    operand: 0x1_2340,
    opcode: 0x555,
};

#[derive(Clone, Copy, PartialEq, Debug)]
enum In {
    Real,
    Protected,
    Long,
}

fn machine(kind: In) -> Machine {
    let mut m = match kind {
        In::Real => Machine::real(),
        In::Protected => Machine::protected(0),
        In::Long => Machine::long(0),
    };
    m.cpu.control.cr4 |= CR4_OSFXSR | CR4_OSXSAVE;
    m.cpu.control.xcr0 = 3;
    m.cpu.gpr[7] = if kind == In::Real { 0x2000 } else { AREA };
    (m.cpu.gpr[0], m.cpu.gpr[2]) = (3, 0);
    m.cpu.vector.pointers = LOADED;
    // All exceptions are masked, so that emitted code is what notes.
    m.cpu.vector.fxsave.0[..2].copy_from_slice(&0x37fu16.to_le_bytes());
    m.cpu.refresh_mode();
    m
}

/// What, mode, the code that stores to [DI], [EDI] or [RDI], and the bytes from an offset on.
type Format = (&'static str, In, &'static [u8], u64, &'static [u64]);

/// Words of four bytes.
const FORMATS: &[Format] = &[
    (
        "FNSTENV, 16 bits, real mode",
        In::Real,
        &[0xd9, 0x35],
        6,
        // FIP 15:0; FIP 19:16 and FOP; FDP 15:0; FDP 19:16.
        &[0x9555_8765, 0x1000_2340],
    ),
    (
        "FNSTENV, 32 bits, real mode",
        In::Real,
        &[0x66, 0xd9, 0x35],
        12,
        &[0x8765, 0x9555, 0x2340, 0x1000],
    ),
    (
        "FNSTENV, 16 bits, protected mode",
        In::Protected,
        &[0x66, 0xd9, 0x37],
        6,
        &[0x8765, 0x2340],
    ),
    (
        "FNSTENV, 32 bits, protected mode",
        In::Protected,
        &[0xd9, 0x37],
        12,
        &[0x9_8765, 0x555_0000, 0x1_2340, 0xffff_0000],
    ),
    (
        "FNSAVE, 32 bits, long mode",
        In::Long,
        &[0xdd, 0x37],
        12,
        &[0x9_8765, 0x555_0000, 0x1_2340, 0xffff_0000],
    ),
    (
        "FXSAVE",
        In::Protected,
        &[0x0f, 0xae, 0x07],
        8,
        &[0x9_8765, 0, 0x1_2340, 0],
    ),
    (
        "FXSAVE64",
        In::Long,
        &[0x48, 0x0f, 0xae, 0x07],
        8,
        &[0x9_8765, 0, 0x1_2340, 0],
    ),
    (
        "XSAVE",
        In::Long,
        &[0x0f, 0xae, 0x27],
        8,
        &[0x9_8765, 0, 0x1_2340, 0],
    ),
    (
        "XSAVEC",
        In::Long,
        &[0x0f, 0xc7, 0x27],
        8,
        &[0x9_8765, 0, 0x1_2340, 0],
    ),
];

#[test]
fn formats_show_the_pointers() {
    for &(name, kind, code, offset, words) in FORMATS {
        let mut m = machine(kind);
        m.run(code);
        let at = m.cpu.gpr[7] + offset;
        for (index, &word) in words.iter().enumerate() {
            assert_eq!(
                m.read(at + 4 * index as u64, 4),
                word,
                "{name}, word {index}"
            );
        }
    }
}

/// What loads what was stored, with pointers as wide as the format has them.
#[test]
fn formats_load_the_pointers() {
    let narrow = X87Pointers {
        instruction: 0x8765,
        operand: 0x2340,
        opcode: 0,
    };
    let cases: &[(In, &[u8], &[u8], X87Pointers)] = &[
        (In::Real, &[0xd9, 0x35], &[0xd9, 0x25], LOADED),
        (In::Real, &[0x66, 0xdd, 0x35], &[0x66, 0xdd, 0x25], LOADED),
        (In::Protected, &[0xd9, 0x37], &[0xd9, 0x27], LOADED),
        (
            In::Protected,
            &[0x66, 0xd9, 0x37],
            &[0x66, 0xd9, 0x27],
            narrow,
        ),
        (In::Long, &[0xdd, 0x37], &[0xdd, 0x27], LOADED),
        (In::Long, &[0x0f, 0xae, 0x07], &[0x0f, 0xae, 0x0f], LOADED),
        (
            In::Long,
            &[0x48, 0x0f, 0xae, 0x27],
            &[0x48, 0x0f, 0xae, 0x2f],
            LOADED,
        ),
    ];
    for &(kind, store, load, expected) in cases {
        let mut m = machine(kind);
        m.run(store);
        m.cpu.vector.pointers = X87Pointers::default();
        m.run(load);
        assert_eq!(m.cpu.vector.pointers, expected, "{kind:?}, {store:x?}");
    }
    // 64 bits survive with REX.W only.
    let wide = X87Pointers {
        instruction: 0xffff_8000_0000_1234,
        operand: 0x7fff_1234_5678,
        opcode: 1,
    };
    let mut m = machine(In::Long);
    m.cpu.vector.pointers = wide;
    m.run(&[0x48, 0x0f, 0xae, 0x07]);
    m.run(&[0x48, 0x0f, 0xae, 0x0f]);
    assert_eq!(m.cpu.vector.pointers, wide);
    m.run(&[0x0f, 0xae, 0x0f]);
    assert_eq!(m.cpu.vector.pointers.instruction, 0x1234);
}

/// Code, and how far behind its start the instruction is that is remembered; `None`: cleared.
/// Each ends with HLT.
const LAST: &[(&str, &[u8], Option<u64>)] = &[
    ("fld1", &[0xd9, 0xe8], Some(0)),
    (
        "fld1; fld1; fnop",
        &[0xd9, 0xe8, 0xd9, 0xe8, 0xd9, 0xd0],
        Some(4),
    ),
    // Control instructions leave it alone.
    (
        "fld1; fnstsw ax; fnclex",
        &[0xd9, 0xe8, 0xdf, 0xe0, 0xdb, 0xe2],
        Some(0),
    ),
    (
        "nop; fld1; fnstcw [rdi]; wait",
        &[0x90, 0xd9, 0xe8, 0xd9, 0x3f, 0x9b],
        Some(1),
    ),
    (
        "fld1; fstp qword [rdi]; nop",
        &[0xd9, 0xe8, 0xdd, 0x1f, 0x90],
        Some(2),
    ),
    (
        "fld1; fisttp word [rdi]",
        &[0xd9, 0xe8, 0xdf, 0x0f],
        Some(2),
    ),
    ("fld1; fninit", &[0xd9, 0xe8, 0xdb, 0xe3], None),
    // MMX is another matter.
    ("fld1; emms", &[0xd9, 0xe8, 0x0f, 0x77], Some(0)),
];

#[test]
fn the_last_instruction_is_remembered() {
    for kind in [In::Protected, In::Long] {
        for &(name, code, behind) in LAST {
            for interpret_only in [true, false] {
                let mut m = machine(kind);
                let start = m.cpu.rip;
                for (index, &byte) in code.iter().chain(&[0xf4]).enumerate() {
                    m.write(start + index as u64, 1, u64::from(byte));
                }
                let mut vcpu = m.into_vcpu(counting(interpret_only));
                vcpu.set_goal(1000);
                assert_eq!(vcpu.run(), Stop::Halted, "{name}");
                let expected = match behind {
                    Some(behind) => X87Pointers {
                        instruction: start + behind,
                        ..LOADED
                    },
                    None => X87Pointers::default(),
                };
                let found = vcpu.cpu().vector.pointers;
                assert_eq!(found, expected, "{name}, {kind:?}, {interpret_only}");
            }
        }
    }
}

/// Without segments' bases there is a linear address.
#[test]
fn real_mode_remembers_linear_addresses() {
    let mut m = machine(In::Real);
    m.cpu.segment_mut(dbt::guest::SegmentIndex::Cs).base = 0x3_0000;
    let at = m.cpu.rip + 0x3_0000;
    m.run(&[0xd9, 0xe8]);
    assert_eq!(m.cpu.vector.pointers.instruction, at);
}
