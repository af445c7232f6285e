//! FDP and FOP of what raises an unmasked exception (SDM volume 1, 8.1.8 and 8.1.9; CPUID's
//! `fdp-excptn-only`): in the interpreter, in the translator, in portable code, and on a host that
//! does likewise.

use dbt::guest::flags::*;
use dbt::guest::{SegmentIndex, X87Pointers};
use dbt::{EngineOptions, Stop, Vcpu};

use crate::machine::*;

/// Where the operands are; the host cannot have the guest's addresses, so only offsets in here are
/// compared with it.
const DATA: u64 = 0x12_0000;
/// Operands, at offsets from RBX.
const ONE: u8 = 0;
const ZERO: u8 = 8;
const DENORMAL: u8 = 16;
const TINY_SINGLE: u8 = 24;
const SIGNALING: u8 = 32;
const TARGET: u8 = 40;
const LARGE: u8 = 56;
const OLD: u8 = 72;

fn data() -> [u8; 96] {
    let mut data = [0; 96];
    let values = [
        (ONE, 1f64.to_bits()),
        (DENORMAL, 1),
        (TINY_SINGLE, 1),
        (SIGNALING, 0x7ff0_0000_0000_0001),
        (LARGE, 1e300f64.to_bits()),
    ];
    for (at, value) in values {
        data[usize::from(at)..][..8].copy_from_slice(&value.to_le_bytes());
    }
    // A denormal of 80 bits.
    data[usize::from(OLD)] = 1;
    data
}

/// Exceptions of FSW.
const IE: u16 = 1;
const DE: u16 = 2;
const ZE: u16 = 4;
const OE: u16 = 8;
const UE: u16 = 0x10;
const PE: u16 = 0x20;

/// What runs first, the instruction, the exception that it raises and is unmasked, and how far
/// behind RBX its operand is.
type Case = (&'static [u8], &'static [u8], u16, Option<u8>);

const LOAD_ONE: &[u8] = &[0xdd, 0x43, ONE];
const LOAD_ZERO: &[u8] = &[0xdd, 0x43, ZERO];
const LOAD_LARGE: &[u8] = &[0xdd, 0x43, LARGE];
const LOAD_PI: &[u8] = &[0xd9, 0xeb];
/// Loads an 80-bit denormal, which raises nothing.
const LOAD_DENORMAL: &[u8] = &[0xdb, 0x6b, OLD];
const LOAD_NOTHING: &[u8] = &[];

const CASES: &[Case] = &[
    // Loads.
    (LOAD_NOTHING, &[0xdd, 0x43, DENORMAL], DE, Some(DENORMAL)),
    (
        LOAD_NOTHING,
        &[0xd9, 0x43, TINY_SINGLE],
        DE,
        Some(TINY_SINGLE),
    ),
    (LOAD_NOTHING, &[0xdd, 0x43, SIGNALING], IE, Some(SIGNALING)),
    // With a SIB byte that means nothing, an index, a long displacement, 32-bit addresses.
    (
        LOAD_NOTHING,
        &[0xdd, 0x44, 0x23, DENORMAL],
        DE,
        Some(DENORMAL),
    ),
    (
        LOAD_NOTHING,
        &[0xdd, 0x44, 0x33, DENORMAL - 8],
        DE,
        Some(DENORMAL),
    ),
    (
        LOAD_NOTHING,
        &[0xdd, 0x83, DENORMAL, 0, 0, 0],
        DE,
        Some(DENORMAL),
    ),
    (
        LOAD_NOTHING,
        &[0x3e, 0x48, 0xdd, 0x43, DENORMAL],
        DE,
        Some(DENORMAL),
    ),
    // Arithmetic.
    (LOAD_ONE, &[0xdc, 0x73, ZERO], ZE, Some(ZERO)),
    (LOAD_ONE, &[0xde, 0x73, ZERO], ZE, Some(ZERO)),
    (LOAD_ONE, &[0xda, 0x73, ZERO], ZE, Some(ZERO)),
    (LOAD_ZERO, &[0xd8, 0x73, ZERO], IE, Some(ZERO)),
    (LOAD_ONE, &[0xdc, 0x43, DENORMAL], DE, Some(DENORMAL)),
    (LOAD_ONE, &[0xdc, 0x53, SIGNALING], IE, Some(SIGNALING)),
    (LOAD_PI, &[0xdc, 0x4b, LARGE], PE, Some(LARGE)),
    // Stores.
    (LOAD_PI, &[0xd9, 0x5b, TARGET], PE, Some(TARGET)),
    (LOAD_PI, &[0xdb, 0x53, TARGET], PE, Some(TARGET)),
    (LOAD_PI, &[0xdf, 0x7b, TARGET], PE, Some(TARGET)),
    (LOAD_PI, &[0xdd, 0x4b, TARGET], PE, Some(TARGET)),
    (LOAD_LARGE, &[0xd9, 0x53, TARGET], OE, Some(TARGET)),
    (LOAD_DENORMAL, &[0xdd, 0x5b, TARGET], UE, Some(TARGET)),
    (LOAD_LARGE, &[0xdb, 0x5b, TARGET], IE, Some(TARGET)),
    (LOAD_NOTHING, &[0xdd, 0x5b, TARGET], IE, Some(TARGET)),
    (LOAD_NOTHING, &[0xdf, 0x73, TARGET], IE, Some(TARGET)),
    // Without an operand in memory FDP stays.
    (LOAD_NOTHING, &[0xd9, 0xe0], IE, None),
    (LOAD_NOTHING, &[0xd8, 0xd3], IE, None),
    (LOAD_NOTHING, &[0xd9, 0xc9], IE, None),
    (LOAD_PI, &[0xd9, 0xfa], PE, None),
    (LOAD_PI, &[0xd9, 0xfc], PE, None),
];

/// The instruction between FLDCW of a word that unmasks its exception and FXSAVE64; FNCLEX in
/// between changes nothing. Ends behind the FXSAVE64.
fn program(case: &Case) -> (Vec<u8>, u64) {
    let mut code = vec![0xdb, 0xe3]; // fninit
    code.extend(case.0);
    // fldcw [rdi - 2]
    code.extend([0xd9, 0x6f, 0xfe]);
    let at = code.len() as u64;
    code.extend(case.1);
    // fnclex; fxsave64 [rdi]
    code.extend([0xdb, 0xe2, 0x48, 0x0f, 0xae, 0x07]);
    (code, at)
}

fn opcode(insn: &[u8]) -> u16 {
    let first = insn.iter().position(|byte| byte & 0xf8 == 0xd8).unwrap();
    u16::from(insn[first] & 7) << 8 | u16::from(insn[first + 1])
}

/// Every engine: interpreting, translating, interpreting in portable code.
fn engines() -> [EngineOptions; 3] {
    let portable = EngineOptions {
        portable: true,
        ..counting(true)
    };
    [counting(true), counting(false), portable]
}

/// In 64-bit mode, with RBX at the operands, RDI at the area and RSI at 8.
fn machine(control: u16) -> Machine {
    let mut m = Machine::long(0);
    m.cpu.control.cr4 |= CR4_OSFXSR;
    for (index, &byte) in data().iter().enumerate() {
        m.write(DATA + index as u64, 1, byte.into());
    }
    m.write(DATA + 0x100 - 2, 2, control.into());
    m.cpu.gpr[3] = DATA;
    m.cpu.gpr[6] = 8;
    m.cpu.gpr[7] = DATA + 0x100;
    m.cpu.refresh_mode();
    m
}

fn to_halt(mut m: Machine, code: &[u8], options: EngineOptions) -> Vcpu {
    let start = m.cpu.rip;
    for (index, &byte) in code.iter().chain(&[0xf4]).enumerate() {
        m.write(start + index as u64, 1, u64::from(byte));
    }
    let mut vcpu = m.into_vcpu(options);
    vcpu.set_goal(10_000);
    assert_eq!(vcpu.run(), Stop::Halted, "{code:x?}");
    vcpu
}

#[test]
fn what_raises_is_noted() {
    for case in CASES {
        let (code, at) = program(case);
        for options in engines() {
            for unmasked in [true, false] {
                let mask = if unmasked { case.2 } else { 0 };
                let m = machine(0x37f & !mask);
                let start = m.cpu.rip;
                let vcpu = to_halt(m, &code, options.clone());
                // FNINIT has cleared them.
                let mut expected = X87Pointers {
                    instruction: start + at,
                    ..X87Pointers::default()
                };
                if unmasked {
                    expected.opcode = opcode(case.1);
                    expected.operand = case.3.map_or(0, |offset| DATA + u64::from(offset));
                }
                assert_eq!(
                    vcpu.cpu().vector.pointers,
                    expected,
                    "{case:x?}, {unmasked}"
                );
            }
        }
    }
}

/// Real-mode addresses are linear, those of FS are offsets; what was pending or masked when it
/// was raised is not noted, nor is what an instruction behind FNCLEX did not raise.
#[test]
fn what_is_noted_when() {
    // fldcw [rdi - 2]
    const UNMASK: &[u8] = &[0xd9, 0x6f, 0xfe];
    const DIVIDE: &[u8] = &[0xdc, 0x73, ZERO];
    const FNCLEX: &[u8] = &[0xdb, 0xe2];
    let operand = DATA + u64::from(ZERO);
    let cases: &[(&str, &[&[u8]], u16, u64)] = &[
        ("unmasked later", &[LOAD_ONE, DIVIDE, UNMASK], 0, 0),
        (
            "another behind it",
            &[LOAD_ONE, UNMASK, DIVIDE, FNCLEX, LOAD_ONE],
            0x473,
            operand,
        ),
        (
            "by FS",
            &[LOAD_ONE, UNMASK, &[0x64, 0xdc, 0x33]],
            0x433,
            DATA,
        ),
        (
            "with 32-bit addresses",
            &[LOAD_ONE, UNMASK, &[0x67, 0xdc, 0x73, ZERO]],
            0x473,
            operand,
        ),
        (
            "masked again",
            &[
                LOAD_ONE,
                UNMASK,
                DIVIDE,
                // fnclex; fnsave [rdi + 32]; fld1; fdiv qword [rbx + 8]
                FNCLEX,
                &[0xdd, 0x77, 0x20, 0xd9, 0xe8],
                DIVIDE,
            ],
            0,
            0,
        ),
    ];
    for &(name, parts, opcode, operand) in cases {
        for options in engines() {
            let mut m = machine(0x37f & !ZE);
            m.cpu.segment_mut(SegmentIndex::Fs).base = 8;
            let code = [&[0xdb, 0xe3], parts.concat().as_slice()].concat();
            let vcpu = to_halt(m, &code, options);
            let found = vcpu.cpu().vector.pointers;
            assert_eq!((found.opcode, found.operand), (opcode, operand), "{name}");
        }
    }

    for options in engines() {
        let mut m = Machine::real();
        m.cpu.segment_mut(SegmentIndex::Ds).base = 0x1_0000;
        m.write(0x1_2000, 2, u64::from(0x37f & !ZE));
        // fninit; fld1; fldcw [2000h]; fdiv dword [2004h]
        let code = [
            0xdb, 0xe3, 0xd9, 0xe8, 0xd9, 0x2e, 0, 0x20, 0xd8, 0x36, 4, 0x20,
        ];
        let vcpu = to_halt(m, &code, options);
        let found = vcpu.cpu().vector.pointers;
        assert_eq!((found.opcode, found.operand), (0x036, 0x1_2004));
    }
}

/// The instruction behind is told by #MF, with the pointers to the one that raised; loops that
/// unmask and mask again translate both ways.
#[test]
fn modes_follow_the_control_word() {
    for options in engines() {
        let mut m = machine(0x37f & !ZE);
        m.write(DATA + 0xfc, 2, 0x37f);
        m.cpu.gpr[1] = 20;
        m.cpu.gpr[0] = 0;
        #[rustfmt::skip]
        let code = [
            0xdb, 0xe3, // fninit
            // again:
            0xd9, 0x6f, 0xfe, // fldcw [rdi - 2]
            0xd9, 0xe8, // fld1
            0xdc, 0x73, ZERO, // fdiv qword [rbx + 8]
            0xdb, 0xe2, // fnclex
            0xd9, 0x6f, 0xfc, // fldcw [rdi - 4]
            0xdc, 0x73, ZERO + 16, // fdiv qword [rbx + 24]: raises DE, masked
            0xdd, 0xd8, // fstp st0
            0x48, 0x0f, 0xae, 0x07, // fxsave64 [rdi]
            0x48, 0x03, 0x47, 0x10, // add rax, [rdi + 16]
            0xff, 0xc9, // dec ecx
            0x75, 0xe2, // jne again
        ];
        let vcpu = to_halt(m, &code, options);
        assert_eq!(vcpu.cpu().gpr[0], 20 * (DATA + u64::from(ZERO)));
        assert_eq!(vcpu.cpu().vector.pointers.opcode, 0x473);
    }
}

/// The host as the oracle.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod host {
    use std::arch::asm;
    use std::arch::x86_64::__cpuid_count;

    use super::*;

    fn area_pointers(area: &[u8]) -> X87Pointers {
        let word = |at: usize| u64::from_le_bytes(area[at..at + 8].try_into().unwrap());
        X87Pointers {
            instruction: word(8),
            operand: word(16),
            opcode: (word(0) >> 48) as u16,
        }
    }

    /// A page of host code.
    struct Page(u64);

    impl Page {
        fn with(code: &[u8]) -> Page {
            let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a new mapping, which is longer than any of the programs.
            unsafe {
                let at = libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0);
                assert_ne!(at, libc::MAP_FAILED);
                at.cast::<u8>()
                    .copy_from_nonoverlapping(code.as_ptr(), code.len());
                Page(at as u64)
            }
        }
    }

    impl Drop for Page {
        fn drop(&mut self) {
            // SAFETY: the mapping is this page's own.
            unsafe { libc::munmap(self.0 as *mut _, 4096) };
        }
    }

    /// The host agrees, if it says that it does as the guest's processor: pages with the same code
    /// and operands.
    #[test]
    fn the_host_notes_the_same() {
        let intel = __cpuid_count(0, 0).ebx == u32::from_le_bytes(*b"Genu");
        if !intel || __cpuid_count(7, 0).ebx >> 6 & 1 == 0 {
            return;
        }
        for case in CASES {
            let (mut code, at) = program(case);
            code.push(0xc3);
            let page = Page::with(&code);
            #[repr(align(16))]
            struct Memory([u8; 0x300]);
            let mut memory = Memory([0; 0x300]);
            memory.0[..96].copy_from_slice(&data());
            memory.0[0xfe..0x100].copy_from_slice(&(0x37f & !case.2).to_le_bytes());
            let base = memory.0.as_mut_ptr() as u64;
            // SAFETY: the code ends with RET, stores within `memory`, and leaves the x87 in use, which
            // FNINIT ends.
            unsafe {
                asm!(
                    "push rbx",
                    "mov rbx, {base}",
                    "call {code}",
                    "pop rbx",
                    "fninit",
                    base = in(reg) base,
                    code = in(reg) page.0,
                    in("rsi") 8,
                    in("rdi") base + 0x100,
                    clobber_abi("C"),
                );
            }
            let found = area_pointers(&memory.0[0x100..]);
            let expected = X87Pointers {
                instruction: page.0 + at,
                operand: case.3.map_or(0, |offset| base + u64::from(offset)),
                opcode: opcode(case.1),
            };
            assert_eq!(found, expected, "{case:x?}");
        }
    }
}
