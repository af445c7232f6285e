//! State saving, masked moves and gathers: against the host processor where it can be asked,
//! by the manual where they fault.
//!
//! `DBT_VECTOR_CASES` sets how many states each instruction gets, `DBT_VECTOR_SEED` where they
//! start.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

#[path = "../common/mod.rs"]
mod common;
mod guest;
mod host;

use std::collections::BTreeMap;

use common::{Random, setting};
use dbt::guest::Exception;
use dbt::guest::flags::*;
use guest::{AREA, Guest};
use host::{Area, Experiment, Outcome};

const GP: Exception = Exception::general_protection(0);

/// A random state: components zero now and then, indexes of gathers small.
fn state(random: &mut Random) -> Area {
    let mut area = Area([0; 832]);
    let control = 0x37f | (random.below(4) << 10);
    let top = random.below(8) << 11;
    area.set_word(0, control | top << 16 | random.below(256) << 32);
    if random.below(4) == 0 {
        area.set_word(0, 0x37f);
    } else {
        for register in 0..8 {
            let exponent = [0, 0x3fff, 0x7fff, random.next() & 0xffff][random.below(4) as usize];
            let mantissa = [0, 1 << 63, random.next()][random.below(3) as usize];
            area.set_word(32 + 16 * register, mantissa);
            area.set_word(40 + 16 * register, exponent);
        }
    }
    area.set_word(24, 0x1f80 | (random.below(4) * random.below(2)) << 13);
    for (start, end) in [(160, 416), (576, 832)] {
        if random.below(4) != 0 {
            for at in (start..end).step_by(8) {
                area.set_word(at, random.next());
            }
        }
    }
    for at in [160 + 64, 160 + 72, 576 + 64, 576 + 72] {
        area.set_word(at, random.below(16) << 32 | random.below(16));
    }
    for at in [160 + 224, 160 + 232, 576 + 224, 576 + 232] {
        area.set_word(at, random.below(32).wrapping_sub(16));
    }
    area.set_word(512, 7);
    area
}

/// What the instruction finds in memory.
fn memory(random: &mut Random, name: &str) -> Area {
    let mut memory = if name.starts_with("xrstor") || name.starts_with("fxrstor") {
        let mut memory = state(random);
        memory.set_word(512, random.below(8));
        if random.below(2) == 0 {
            let layout = memory.word(512) | random.below(8);
            memory.set_word(520, layout | 1 << 63);
        }
        memory
    } else {
        let mut memory = Area([0; 832]);
        for at in (0..832).step_by(8) {
            memory.set_word(at, random.next());
        }
        memory
    };
    // Environments without unmasked exceptions, which the host would raise.
    match name {
        "fldenv" | "frstor" => memory.0[0] |= 0x3f,
        "fldenv16" | "frstor16" => memory.0[0] |= 0x3f,
        "xsave64" | "xsaveopt64" | "xsavec64" => memory.0[512..576].fill(0),
        _ => {}
    }
    if name.starts_with("frstor") || name.starts_with("fldenv") {
        // Busy and error summary follow from the rest.
        let status = if name.ends_with("16") { 2 } else { 4 };
        memory.0[status] &= 0x7f;
        memory.0[status + 1] &= 0x7f;
    }
    memory
}

/// What an instruction's cases are counted with.
fn group(name: &str) -> &'static str {
    match name {
        _ if name.starts_with("fx") => "FXSAVE",
        _ if name.starts_with('f') => "x87 environments",
        _ if name.starts_with('x') => "XSAVE",
        _ if name.contains("gather") => "gathers",
        _ => "masked moves and the rest",
    }
}

fn supported(bytes: &[u8], name: &str) -> bool {
    let wide = bytes[0] == 0xc4 || bytes[0] == 0xc5;
    is_x86_feature_detected!("xsave")
        && (!wide || is_x86_feature_detected!("avx2"))
        && (name != "xsaveopt64" || is_x86_feature_detected!("xsaveopt"))
        && (name != "xsavec64" || is_x86_feature_detected!("xsavec"))
}

/// A component in an XSAVE area: its bit, its bytes, and their first word in the initial state.
type Component = (u64, &'static [(usize, usize)], u64);

const COMPONENTS: [Component; 3] = [
    (1, &[(0, 24), (32, 160)], 0x37f),
    (2, &[(160, 416)], 0),
    (4, &[(576, 832)], 0),
];

/// Components that the host's processor has in use, though each is in its initial state: it may
/// (SDM volume 1, 13.6), and Intel's have the x87 so. Their bytes are as they should be.
fn needlessly_in_use(ours: &Area, theirs: &Area) -> u64 {
    let more = theirs.word(512) & !ours.word(512);
    COMPONENTS
        .iter()
        .filter(|(bit, ranges, initial)| {
            let word = |at| if at == 0 { *initial } else { 0 };
            let steps = |&(start, end): &(usize, usize)| (start..end).step_by(8);
            // The pointers between 8 and 24 are of the last instruction.
            let mut at = ranges.iter().flat_map(steps);
            more & bit != 0 && at.all(|at| (8..24).contains(&at) || theirs.word(at) == word(at))
        })
        .fold(0, |all, (bit, ..)| all | bit)
}

/// The first difference, where one may be.
fn differ(ours: &Area, theirs: &Area, skip: impl Fn(usize) -> bool) -> Option<String> {
    (0..832)
        .find(|&at| ours.0[at] != theirs.0[at] && !skip(at))
        .map(|at| {
            let at = at & !7;
            format!("at {at}: {:x}, host {:x}", ours.word(at), theirs.word(at))
        })
}

#[test]
fn the_host_agrees() {
    let cases = setting("DBT_VECTOR_CASES", 400);
    let mut random = Random::new(setting("DBT_VECTOR_SEED", 0x1234_5678_9abc_def1));
    let mut guest = Guest::new(64);
    let mut failures = Vec::new();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for &(name, bytes, run) in host::ALL {
        if !supported(bytes(), name) {
            continue;
        }
        for number in 0..cases {
            *counts.entry(group(name)).or_default() += 1;
            let before = state(&mut random);
            let memory = memory(&mut random, name);
            let components = if number % 3 == 0 { random.below(8) } else { 7 };
            guest.set_state(&before);
            guest.set_memory(&memory);
            guest.cpu.gpr[0] = components;
            guest.cpu.gpr[2] = 0;
            guest.cpu.gpr[7] = AREA;
            let outcome = guest.execute(bytes());
            let Outcome {
                after,
                memory: theirs,
            } = run(Experiment {
                before: before.clone(),
                memory,
                components,
            });
            // XSAVE itself shows what was saved; pointers are not kept.
            // The mask of MXCSR is the processor's.
            let elsewhere = |at: usize| (6..24).contains(&at) || (28..32).contains(&at);
            let in_state = |at: usize| elsewhere(at) || (512..576).contains(&at);
            // Only XSAVE shows what is in use, and only what it then stores may differ.
            let needless = if name.starts_with("xsave") {
                needlessly_in_use(&guest.memory(), &theirs)
            } else {
                0
            };
            let of_needless = |at: usize| {
                COMPONENTS.iter().any(|(bit, ranges, _)| {
                    let inside = ranges
                        .iter()
                        .any(|&(start, end)| (start..end).contains(&at));
                    needless & bit != 0 && (inside || at == 512)
                })
            };
            let in_memory = |at: usize| match name {
                _ if of_needless(at) => true,
                "fnstenv" | "fnsave" => (12..26).contains(&at),
                "fnstenv16" | "fnsave16" => (6..14).contains(&at),
                _ => name.contains("save") && elsewhere(at),
            };
            let difference = match outcome {
                Err(fault) => Some(format!("raised {fault:?}")),
                Ok(()) => differ(&guest.state(), &after, in_state)
                    .map(|text| format!("state {text}"))
                    .or_else(|| {
                        differ(&guest.memory(), &theirs, in_memory)
                            .map(|text| format!("memory {text}"))
                    }),
            };
            if let Some(difference) = difference {
                failures.push(format!(
                    "{name} #{number} components {components}: {difference}"
                ));
                break;
            }
        }
    }
    for (group, count) in counts {
        println!("{group}: {count} cases");
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// A guest whose area holds a well-formed image.
fn ready(bits: u32) -> Guest {
    let mut guest = Guest::new(bits);
    let mut image = state(&mut Random::new(99));
    image.set_word(512, 7);
    guest.set_memory(&image);
    guest.cpu.gpr[0] = 7;
    guest.cpu.gpr[2] = 0;
    guest.cpu.gpr[7] = AREA;
    guest
}

const XSAVE: &[u8] = &[0x0f, 0xae, 0x27];
const XRSTOR: &[u8] = &[0x0f, 0xae, 0x2f];
const FXSAVE: &[u8] = &[0x0f, 0xae, 0x07];
const FXRSTOR: &[u8] = &[0x0f, 0xae, 0x0f];
const WAIT: &[u8] = &[0x9b];

#[test]
fn bad_areas_are_refused_without_a_trace() {
    type Spoil = fn(&mut Guest);
    fn poke(guest: &mut Guest, at: u64, value: u64) {
        guest
            .mem
            .store_uint(mmu::GuestPhys(AREA + at), 8, value)
            .expect("a store to RAM");
    }
    let cases: &[(&[u8], Spoil, &str)] = &[
        (
            FXSAVE,
            |g| g.cpu.gpr[7] += 8,
            "FXSAVE wants 16 bytes' alignment",
        ),
        (FXRSTOR, |g| g.cpu.gpr[7] += 8, "so does FXRSTOR"),
        (XSAVE, |g| g.cpu.gpr[7] += 16, "XSAVE wants 64"),
        (XRSTOR, |g| g.cpu.gpr[7] += 16, "so does XRSTOR"),
        (
            FXRSTOR,
            |g| poke(g, 24, 0x1_1f80),
            "a reserved bit of MXCSR",
        ),
        (
            XRSTOR,
            |g| poke(g, 24, 0x1_1f80),
            "the same in an XSAVE area",
        ),
        (
            XRSTOR,
            |g| poke(g, 512, 0xf),
            "a component that XCR0 has not",
        ),
        (
            XRSTOR,
            |g| poke(g, 520, 1),
            "a layout without the compaction bit",
        ),
        (XRSTOR, |g| poke(g, 528, 1), "a reserved header word"),
        (
            XRSTOR,
            |g| {
                poke(g, 520, 1 << 63 | 3);
                poke(g, 512, 7);
            },
            "a component outside of the compacted layout",
        ),
        (
            XRSTOR,
            |g| {
                poke(g, 520, 1 << 63 | 7);
                poke(g, 568, 1);
            },
            "a reserved word behind a compacted header",
        ),
    ];
    for (bytes, spoil, what) in cases {
        let mut guest = ready(64);
        spoil(&mut guest);
        let (before, memory) = (guest.state(), guest.memory());
        assert_eq!(guest.execute(bytes), Err(GP), "{what}");
        assert!(
            guest.state() == before && guest.memory() == memory,
            "{what}"
        );
    }
}

#[test]
fn switched_off() {
    let nm = Exception::device_not_available();
    let ud = Exception::invalid_opcode();
    /// Code, bits of CR0 set, bits of CR4 cleared, outcome.
    type Case = (&'static [u8], u64, u64, Result<(), Exception>);
    let cases: &[Case] = &[
        (XSAVE, CR0_TS, 0, Err(nm)),
        (XSAVE, 0, CR4_OSXSAVE, Err(ud)),
        (XSAVE, CR0_TS, CR4_OSXSAVE, Err(ud)),
        (XRSTOR, CR0_TS, 0, Err(nm)),
        (FXSAVE, CR0_TS, 0, Err(nm)),
        (FXRSTOR, CR0_EM, 0, Err(nm)),
        (WAIT, CR0_TS, 0, Err(nm)),
        (WAIT, CR0_EM, 0, Ok(())),
        (&[0xd9, 0x37], CR0_TS, 0, Err(nm)),
        (&[0xdd, 0x27], CR0_EM, 0, Err(nm)),
        (&[0x66, 0x0f, 0xf7, 0xca], CR0_EM, 0, Err(ud)),
        (&[0x66, 0x0f, 0xf7, 0xca], 0, CR4_OSFXSR, Err(ud)),
        (&[0xc4, 0xe2, 0x6d, 0x2c, 0x0f], 0, CR4_OSXSAVE, Err(ud)),
        (&[0xf2, 0x0f, 0x10, 0xca], CR0_TS, 0, Err(nm)),
    ];
    for &(bytes, on, off, expected) in cases {
        let mut guest = ready(64);
        guest.cpu.control.cr0 |= on;
        guest.cpu.control.cr4 &= !off;
        assert_eq!(guest.execute(bytes), expected, "{bytes:x?} cr0+{on:#x}");
    }
}

#[test]
fn narrow_modes_leave_the_upper_registers_alone() {
    let mut guest = ready(32);
    let before = guest.state();
    let image = guest.memory();
    assert_eq!(guest.execute(XRSTOR), Ok(()));
    let after = guest.state();
    assert_eq!(after.0[160..288], image.0[160..288]);
    assert_eq!(after.0[288..416], before.0[288..416]);
    assert_eq!(after.0[576..704], image.0[576..704]);
    assert_eq!(after.0[704..832], before.0[704..832]);
    guest.set_memory(&Area([0xee; 832]));
    assert_eq!(guest.execute(FXSAVE), Ok(()));
    let saved = guest.memory();
    assert_eq!(saved.0[160..288], after.0[160..288]);
    assert_eq!(saved.0[288..], [0xee; 832 - 288]);
}

/// A stack of pending exceptions: FSW.IE with FCW.IM clear.
fn with_pending() -> Guest {
    let mut guest = ready(64);
    guest.cpu.vector.fxsave.0[..4].copy_from_slice(&[0x7e, 3, 0x81, 0x80]);
    guest
}

#[test]
fn pending_exceptions_wait_for_waiting_instructions() {
    let mf = Exception::plain(Exception::MF);
    let waiting: &[&[u8]] = &[WAIT, &[0xd9, 0x27], &[0xdd, 0x27], &[0x0f, 0xf7, 0xca]];
    for bytes in waiting {
        assert_eq!(with_pending().execute(bytes), Err(mf), "{bytes:x?}");
    }
    let others: &[&[u8]] = &[&[0xd9, 0x37], &[0xdd, 0x37], FXSAVE, XSAVE, FXRSTOR, XRSTOR];
    for bytes in others {
        assert_eq!(with_pending().execute(bytes), Ok(()), "{bytes:x?}");
    }
}

/// Elements that the mask leaves out may be outside of the segment; the others fault.
#[test]
fn faults_of_masked_elements() {
    let mut guest = Guest::new(32);
    for segment in [0, 2, 3] {
        guest.cpu.segments[segment].limit = (AREA + 15) as u32;
        guest.cpu.segments[segment].attributes &= !0x8000;
    }
    guest.cpu.gpr[7] = AREA;
    guest.cpu.vector.ymm[3] = [1, 2, 3, 4];
    let cases: &[(&[u8], [u64; 4], bool)] = &[
        // vpmaskmovd [edi], ymm2, ymm3
        (
            &[0xc4, 0xe2, 0x6d, 0x8e, 0x1f],
            [1 << 63 | 1 << 31, 1 << 63, 0, 0],
            true,
        ),
        (
            &[0xc4, 0xe2, 0x6d, 0x8e, 0x1f],
            [1 << 63, 0, 1 << 31, 0],
            false,
        ),
        // vpmaskmovq ymm3, ymm2, [edi]
        (
            &[0xc4, 0xe2, 0xed, 0x8c, 0x1f],
            [1 << 63, 1 << 63, 0, 0],
            true,
        ),
        (
            &[0xc4, 0xe2, 0xed, 0x8c, 0x1f],
            [1 << 63, 0, 0, 1 << 63],
            false,
        ),
    ];
    for &(bytes, mask, passes) in cases {
        guest.set_memory(&Area([0x55; 832]));
        guest.cpu.vector.ymm[2] = mask;
        let before = guest.state();
        let outcome = guest.execute(bytes);
        if passes {
            assert_eq!(outcome, Ok(()), "{mask:x?}");
        } else {
            assert_eq!(outcome, Err(GP), "{mask:x?}");
            assert!(guest.memory().0 == [0x55; 832], "a store before the fault");
            assert!(guest.state() == before, "a load before the fault");
        }
    }
}

/// A gather that faults keeps what it has, and its mask says where to go on.
#[test]
fn gathers_go_on_after_a_fault() {
    let mut guest = Guest::new(32);
    guest.cpu.segments[3].limit = (AREA + 15) as u32;
    guest.cpu.segments[3].attributes &= !0x8000;
    guest.set_memory(&Area([0x55; 832]));
    guest.cpu.gpr[7] = AREA;
    // vpgatherdd xmm1, [edi + xmm4*4], xmm2: element 2 is outside.
    let bytes = [0xc4, 0xe2, 0x69, 0x90, 0x0c, 0xa7];
    let all = 1 << 63 | 1 << 31;
    guest.cpu.vector.ymm[1] = [1, 2, 3, 4];
    guest.cpu.vector.ymm[2] = [all, all, 9, 9];
    guest.cpu.vector.ymm[4] = [3 << 32, 7, 0, 0];
    assert_eq!(guest.execute(&bytes), Err(GP));
    assert_eq!(guest.cpu.vector.ymm[1], [0x5555_5555_5555_5555, 2, 3, 4]);
    assert_eq!(guest.cpu.vector.ymm[2], [0, all, 9, 9]);
    guest.cpu.segments[3].limit = u32::MAX;
    assert_eq!(guest.execute(&bytes), Ok(()));
    let value = 0x5555_5555_5555_5555;
    assert_eq!(guest.cpu.vector.ymm[1], [value, value, 0, 0]);
    assert_eq!(guest.cpu.vector.ymm[2], [0; 4]);
    // Destination, mask and index have to be three registers.
    let ud = Err(Exception::invalid_opcode());
    assert_eq!(guest.execute(&[0xc4, 0xe2, 0x69, 0x90, 0x0c, 0x8f]), ud);
}

#[test]
fn vector_exceptions() {
    let zero_divide = [0xf2, 0x0f, 0x5e, 0xca];
    for (off, vector) in [(0, Exception::XM), (CR4_OSXMMEXCPT, Exception::UD)] {
        let mut guest = Guest::new(64);
        guest.cpu.control.cr4 &= !off;
        guest.cpu.vector.ymm[1][0] = 1.0f64.to_bits();
        guest.cpu.vector.mxcsr = 0x1d80;
        assert_eq!(guest.execute(&zero_divide), Err(Exception::plain(vector)));
        assert_eq!(
            guest.cpu.vector.mxcsr, 0x1d84,
            "the handler looks at the flags"
        );
        assert_eq!(guest.cpu.vector.ymm[1][0], 1.0f64.to_bits());
    }
}

#[test]
fn mxcsr_has_sixteen_bits() {
    let load = [0x0f, 0xae, 0x17];
    let mut guest = Guest::new(64);
    guest.cpu.gpr[7] = AREA;
    for (value, expected) in [(0xffff, Ok(())), (0x2_1f80, Err(GP)), (0x1_0000, Err(GP))] {
        let before = guest.cpu.vector.mxcsr;
        guest
            .mem
            .store_uint(mmu::GuestPhys(AREA), 4, u64::from(value))
            .expect("a store to RAM");
        assert_eq!(guest.execute(&load), expected);
        let after = if expected.is_ok() { value } else { before };
        assert_eq!(guest.cpu.vector.mxcsr, after);
    }
}

/// VAES and VPCLMULQDQ work on each half of a YMM register as their narrow forms do on an XMM
/// register.
#[test]
fn wide_aes_and_products_are_two_narrow_ones() {
    if !is_x86_feature_detected!("vaes") || !is_x86_feature_detected!("vpclmulqdq") {
        eprintln!("SKIPPED: the host has neither VAES nor VPCLMULQDQ");
        return;
    }
    let mut random = Random::new(77);
    // VEX.256 in the third byte; the narrow form has its bit 2 clear.
    for (what, wide) in [
        (
            "vaesenc ymm0, ymm1, ymm2",
            &[0xc4, 0xe2, 0x75, 0xdc, 0xc2][..],
        ),
        (
            "vaesenclast ymm0, ymm1, ymm2",
            &[0xc4, 0xe2, 0x75, 0xdd, 0xc2],
        ),
        ("vaesdec ymm0, ymm1, ymm2", &[0xc4, 0xe2, 0x75, 0xde, 0xc2]),
        (
            "vaesdeclast ymm0, ymm1, ymm2",
            &[0xc4, 0xe2, 0x75, 0xdf, 0xc2],
        ),
        (
            "vpclmulqdq ymm0, ymm1, ymm2, 11h",
            &[0xc4, 0xe3, 0x75, 0x44, 0xc2, 0x11],
        ),
    ] {
        let mut narrow = wide.to_vec();
        narrow[2] &= !4;
        let mut guest = Guest::new(64);
        guest.set_state(&state(&mut random));
        let before = guest.cpu.vector.ymm;
        guest.execute(wide).expect(what);
        let whole = guest.cpu.vector.ymm[0];
        for first in [0, 2] {
            for (now, then) in guest.cpu.vector.ymm.iter_mut().zip(&before) {
                *now = [then[first], then[first + 1], 1, 1];
            }
            guest.execute(&narrow).expect(what);
            let half = guest.cpu.vector.ymm[0];
            assert_eq!(half[..2], whole[first..first + 2], "{what}");
            assert_eq!(half[2..], [0, 0], "{what}");
        }
    }
}
