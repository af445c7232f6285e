//! The host processor is the oracle of the portable x87, MMX and SSE: every instruction of these
//! extensions that the decoder knows is executed both ways from the same random states.
//!
//! `DBT_PORTABLE_CASES` sets how many states each instruction gets, `DBT_PORTABLE_SEED` where
//! they start, `DBT_PORTABLE_ONLY` which mnemonics.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

#[path = "../common/mod.rs"]
mod common;
#[path = "../vector/guest.rs"]
#[allow(dead_code)]
mod guest;
#[path = "../vector/host.rs"]
#[allow(dead_code)]
mod host;
mod instructions;
mod random;

use common::{Random, setting};
use dbt::guest::Exception;
use dbt::interpret::extension::Portable;
use guest::{AREA, Guest};
use host::Area;
use iced_x86::{Instruction, Mnemonic};

/// A random state. Half of them have all exceptions masked.
fn state(random: &mut Random, mmx: bool) -> Area {
    let mut area = Area([0; 832]);
    let masks = if random.below(2) == 0 {
        0x3f
    } else {
        random.next() & 0x3f
    };
    let control = 0x40 | masks | random.pick(&[0, 2, 3, 3]) << 8 | random.below(4) << 10;
    let mut status = random.next() & 0x7f7f;
    if random.below(8) != 0 {
        // No exception is pending.
        status &= !0x3f | masks;
    }
    if status & !masks & 0x3f != 0 {
        status |= 0x8080;
    }
    if mmx && random.below(2) == 0 {
        status &= !0x3800;
    }
    let tags = match random.below(4) {
        0 => random.next() & 0xff,
        1 => 0,
        _ => 0xff,
    };
    area.set_word(0, control | status << 16 | tags << 32);
    for register in 0..8 {
        let (significand, top) = random.extended();
        area.set_word(32 + 16 * register, significand);
        area.set_word(40 + 16 * register, u64::from(top));
    }
    let masks = if random.below(2) == 0 {
        0x3f
    } else {
        random.next() & 0x3f
    };
    let modes = random.next() & 0xe040 & random.pick(&[0xffff, 0x6000]);
    area.set_word(24, masks << 7 | modes | random.next() & 0x3f & masks);
    for at in (160..416).step_by(8) {
        let element = if at > 160 && random.below(4) == 0 {
            area.word(at - 16)
        } else {
            random.element()
        };
        area.set_word(at, element);
    }
    area
}

fn memory(random: &mut Random) -> Area {
    let mut memory = Area([0; 832]);
    for at in (0..832).step_by(8) {
        let word = match random.below(4) {
            // A packed decimal.
            0 => (0..16).fold(0, |word, _| word << 4 | random.below(10)),
            _ => random.element(),
        };
        memory.set_word(at, word);
    }
    if random.below(2) == 0 {
        let (significand, top) = random.extended();
        memory.set_word(0, significand);
        memory.set_word(8, u64::from(top));
    }
    memory
}

/// What may differ.
#[derive(Clone, Copy, PartialEq)]
enum Tolerance {
    Exact,
    /// RCPPS and RSQRTPS: the architecture's relative error, on both sides.
    Approximate,
    /// DPPS and DPPD: which of several NaNs a sum has depends on the order of the additions, and
    /// that on the processor.
    NanPayload,
    /// Transcendental x87: some units of the last place; #P and C1 with them.
    Transcendental,
}

fn tolerance(insn: &Instruction) -> Tolerance {
    use Mnemonic as M;
    match insn.mnemonic() {
        M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss => Tolerance::Approximate,
        M::Dpps | M::Dppd => Tolerance::NanPayload,
        M::F2xm1
        | M::Fyl2x
        | M::Fyl2xp1
        | M::Fsin
        | M::Fcos
        | M::Fsincos
        | M::Fptan
        | M::Fpatan => Tolerance::Transcendental,
        _ => Tolerance::Exact,
    }
}

struct Ran {
    outcome: Result<(), Exception>,
    state: Area,
    memory: Area,
    gpr: [u64; 16],
    flags: u64,
}

fn run(guest: &mut Guest, insn: &Instruction, before: &Area, memory: &Area, at: u64) -> Ran {
    guest.set_state(before);
    guest.set_memory(memory);
    for (number, register) in guest.cpu.gpr.iter_mut().enumerate() {
        *register = 0x0123_4567_89ab_cdef_u64.rotate_left(before.0[164] as u32 + number as u32);
    }
    guest.cpu.gpr[7] = at;
    if before.0[165] & 1 != 0 {
        // Lengths of strings.
        guest.cpu.gpr[0] = u64::from(before.0[166]).wrapping_sub(128) / 8;
        guest.cpu.gpr[2] = u64::from(before.0[167] & 15);
    }
    guest.cpu.arithmetic_flags = 0x8d5;
    let outcome = guest.execute_decoded(insn);
    let mut state = guest.state();
    // The last instruction and operand are not kept; MXCSR's mask is constant.
    state.0[6..24].fill(0);
    Ran {
        outcome,
        state,
        memory: guest.memory(),
        gpr: guest.cpu.gpr,
        flags: guest.cpu.arithmetic_flags,
    }
}

/// Singles that are as near as two approximations may be to one another.
fn approximately(ours: u32, theirs: u32) -> bool {
    let (x, y) = (f32::from_bits(ours), f32::from_bits(theirs));
    if ours == theirs {
        return true;
    }
    // Where one flushes a denormal result, so may the other.
    if x.abs() < 2.0 * f32::MIN_POSITIVE && y.abs() < 2.0 * f32::MIN_POSITIVE {
        return x.is_sign_negative() == y.is_sign_negative();
    }
    ((f64::from(x) - f64::from(y)) / f64::from(y)).abs() <= 3.0 / 4096.0
}

/// Units of the last place between two extended numbers that are near one another.
fn distance(a: (u64, u64), b: (u64, u64)) -> u64 {
    let number = |(significand, top): (u64, u64)| {
        let magnitude = i128::from(top & 0x7fff) << 63 | i128::from(significand << 1 >> 1);
        if top & 0x8000 != 0 {
            -magnitude
        } else {
            magnitude
        }
    };
    number(a).abs_diff(number(b)).min(u128::from(u64::MAX)) as u64
}

const ULPS: u64 = 2;

fn compare(ours: &mut Ran, theirs: &mut Ran, insn: &Instruction) -> Option<String> {
    let tolerance = tolerance(insn);
    let element = if insn.mnemonic() == Mnemonic::Dppd {
        8
    } else {
        4
    };
    if ours.outcome != theirs.outcome {
        return Some(format!("{:?}, host {:?}", ours.outcome, theirs.outcome));
    }
    if ours.gpr != theirs.gpr {
        return Some(format!("{:x?}, host {:x?}", ours.gpr, theirs.gpr));
    }
    if ours.flags != theirs.flags {
        return Some(format!("flags {:x}, host {:x}", ours.flags, theirs.flags));
    }
    if tolerance == Tolerance::Approximate {
        for at in (160..192).step_by(4) {
            let word =
                |area: &Area| u32::from_le_bytes(area.0[at..at + 4].try_into().expect("four"));
            if approximately(word(&ours.state), word(&theirs.state)) {
                let bytes: [u8; 4] = ours.state.0[at..at + 4].try_into().expect("four");
                theirs.state.0[at..at + 4].copy_from_slice(&bytes);
            }
        }
    }
    if tolerance == Tolerance::NanPayload {
        for at in (160..192).step_by(element) {
            let is_nan = |area: &Area| match element {
                4 => f32::from_bits((area.word(at & !7) >> (8 * (at & 4))) as u32).is_nan(),
                _ => f64::from_bits(area.word(at)).is_nan(),
            };
            if is_nan(&ours.state) && is_nan(&theirs.state) {
                let bytes = ours.state.0[at..at + element].to_vec();
                theirs.state.0[at..at + element].copy_from_slice(&bytes);
            }
        }
    }
    if tolerance == Tolerance::Transcendental {
        // Next to the smallest normal number one may underflow and the other not; with #U unmasked
        // that shows in the exponent, too.
        let underflowed = [&*ours, &*theirs].map(|ran| {
            let (control, status) = (ran.state.0[0], ran.state.0[2]);
            status & !control & 0x10 != 0
        });
        for ran in [&mut *ours, &mut *theirs] {
            // C1, PE, and UE, which depends on PE.
            ran.state.0[2] &= !0x30;
            ran.state.0[3] &= !0x02;
            let (control, status) = (ran.state.0[0], ran.state.0[2]);
            if status & !control & 0x3f == 0 {
                ran.state.0[2] &= !0x80;
                ran.state.0[3] &= !0x80;
            }
        }
        for at in (32..160).step_by(16) {
            let number = |area: &Area| (area.word(at), area.word(at + 8));
            let apart = distance(number(&ours.state), number(&theirs.state));
            let unscaled = |area: &Area, underflowed: bool| {
                let (significand, top) = number(area);
                (
                    significand,
                    top.wrapping_sub(u64::from(underflowed) * 0x6000),
                )
            };
            let near = distance(
                unscaled(&ours.state, underflowed[0]),
                unscaled(&theirs.state, underflowed[1]),
            );
            let one_did = underflowed[0] != underflowed[1];
            if (1..=ULPS).contains(&apart) || one_did && near <= ULPS {
                let bytes: [u8; 16] = ours.state.0[at..at + 16].try_into().expect("sixteen");
                theirs.state.0[at..at + 16].copy_from_slice(&bytes);
            }
        }
    }
    for (name, ours, theirs) in [
        ("state", &ours.state, &theirs.state),
        ("memory", &ours.memory, &theirs.memory),
    ] {
        if let Some(at) = (0..832).find(|&at| ours.0[at] != theirs.0[at]) {
            let at = at & !7;
            return Some(format!(
                "{name} at {at}: {:016x} {:016x}, host {:016x} {:016x}",
                ours.word((at + 8) & 824),
                ours.word(at),
                theirs.word((at + 8) & 824),
                theirs.word(at)
            ));
        }
    }
    None
}

/// Whether the architecture defines a transcendental result: for the two instructions that want
/// a small ST0.
fn defined(insn: &Instruction, before: &Area) -> bool {
    let exponent = before.word(40) & 0x7fff;
    let limit = match insn.mnemonic() {
        Mnemonic::F2xm1 => 0x3fff,
        Mnemonic::Fyl2xp1 => 0x3ffd,
        _ => return true,
    };
    !(limit..0x7fff).contains(&exponent)
}

fn describe(before: &Area, memory: &Area) -> String {
    let mut text = format!(
        "fcw {:04x} fsw {:04x} tags {:02x} mxcsr {:04x} memory {:016x} {:016x}",
        before.word(0) as u16,
        (before.word(0) >> 16) as u16,
        before.0[4],
        before.word(24) as u16,
        memory.word(8),
        memory.word(0),
    );
    for register in 0..4 {
        let at = 32 + 16 * register;
        text += &format!(
            " st{register} {:04x}:{:016x}",
            before.word(at + 8),
            before.word(at)
        );
    }
    for register in 0..3 {
        let at = 160 + 16 * register;
        text += &format!(
            " xmm{register} {:016x} {:016x}",
            before.word(at + 8),
            before.word(at)
        );
    }
    text
}

#[test]
fn the_host_agrees() {
    let cases = setting("DBT_PORTABLE_CASES", 400);
    let seed = setting("DBT_PORTABLE_SEED", 0x1234_5678_9abc_def1);
    let only = std::env::var("DBT_PORTABLE_ONLY").unwrap_or_default();
    let mut failures = Vec::new();
    let mut guest = Guest::new(64);
    let instructions = instructions::all();
    assert!(instructions.len() > 500, "{}", instructions.len());
    for insn in &instructions {
        let name = format!("{:?}", insn.mnemonic()).to_lowercase();
        if !only.is_empty() && !only.split(',').any(|wanted| wanted == name) {
            continue;
        }
        let mut random = Random::new(seed);
        let mmx = (0..insn.op_count()).any(|op| insn.op_register(op).is_mm());
        let mut wrong = 0;
        let mut first = None;
        for number in 0..cases {
            let before = state(&mut random, mmx);
            let memory = memory(&mut random);
            if !defined(insn, &before) {
                continue;
            }
            let at = AREA + random.pick(&[0, 0, 0, 16, 1]);
            let mut theirs = run(&mut guest, insn, &before, &memory, at);
            let mut ours = {
                let _portable = Portable::set(true);
                run(&mut guest, insn, &before, &memory, at)
            };
            if let Some(difference) = compare(&mut ours, &mut theirs, insn) {
                wrong += 1;
                first.get_or_insert_with(|| {
                    format!(
                        "#{number} {difference}\n     {}",
                        describe(&before, &memory)
                    )
                });
            }
        }
        if let Some(first) = first {
            failures.push(format!(
                "{insn} ({:?}): {wrong} of {cases}: {first}",
                insn.code()
            ));
        }
    }
    assert!(
        failures.is_empty(),
        "{}:\n{}",
        failures.len(),
        failures.join("\n")
    );
}
