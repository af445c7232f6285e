//! The host processor is the oracle: random integer instructions, executed by it and by the
//! interpreter from the same registers and memory, have to end in the same state.
//!
//! `DBT_ORACLE_CASES` sets how many a mode gets, `DBT_ORACLE_SEED` where they start;
//! `DBT_ORACLE_EACH` goes on until each group has had so many in each mode.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

#[path = "../common/mod.rs"]
mod common;
mod generate;
mod guest;
mod native;

use std::collections::{BTreeMap, HashMap};

use common::{Random, setting};
use dbt::guest::{Exception, flags};
use dbt::record::liveness;
use generate::{Case, GROUPS, group};
use guest::Guest;
use iced_x86::{Mnemonic, RflagsBits};
use native::{DATA, DATA_BYTES, Host, INSTRUCTION, Ran, Registers, TAKEN};

const REPORTED: usize = 40;

/// The flags that the manual leaves undefined after an instruction.
fn undefined_flags(case: &Case) -> u64 {
    use Mnemonic::*;
    let insn = &case.insn;
    let count = match insn.mnemonic() {
        Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr => Some(1),
        Shld | Shrd => Some(2),
        _ => None,
    };
    let size = if insn.op_count() > 0 && insn.op0_kind() == iced_x86::OpKind::Register {
        insn.op0_register().size()
    } else {
        insn.memory_size().size()
    };
    let mut undefined = 0;
    if let Some(operand) = count {
        let raw = match insn.op_kind(operand) {
            iced_x86::OpKind::Register => case.input.gpr[1],
            _ => insn.immediate(operand),
        };
        let masked = raw & if size == 8 { 63 } else { 31 };
        let logical = !matches!(insn.mnemonic(), Rol | Ror | Rcl | Rcr);
        if masked > 0 && logical {
            undefined |= flags::AF;
        }
        if masked > 1 {
            undefined |= flags::OF;
        }
        if masked as usize >= 8 * size && logical && insn.mnemonic() != Sar {
            undefined |= flags::CF;
        }
        if masked as usize > 8 * size && operand == 2 {
            undefined |= flags::ARITHMETIC;
        }
        return undefined;
    }
    at_positions(insn.rflags_undefined())
}

/// Flags as iced-x86 names them, at their EFLAGS positions.
fn at_positions(bits: u32) -> u64 {
    [
        (RflagsBits::OF, flags::OF),
        (RflagsBits::SF, flags::SF),
        (RflagsBits::ZF, flags::ZF),
        (RflagsBits::AF, flags::AF),
        (RflagsBits::CF, flags::CF),
        (RflagsBits::PF, flags::PF),
    ]
    .into_iter()
    .filter(|(bit, _)| bits & bit != 0)
    .fold(0, |all, (_, flag)| all | flag)
}

/// Whether the destination itself is undefined (SHLD and SHRD of 16 bits by more, BSWAP of 16).
fn undefined_result(case: &Case) -> bool {
    use Mnemonic::*;
    let insn = &case.insn;
    match insn.mnemonic() {
        Bswap => insn.op0_register().size() == 2,
        Shld | Shrd => undefined_flags(case) & flags::ZF != 0,
        _ => false,
    }
}

/// Whether the host is Intel's, as the guest's processor says it is.
fn host_is_intel() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    (leaf.ebx, leaf.edx, leaf.ecx) == (0x756e_6547, 0x4965_6e69, 0x6c65_746e)
}

/// PUSH of a segment register with 32-bit operands: Intel's processors write a word of it.
fn pushes_half(case: &Case) -> bool {
    case.insn.mnemonic() == Mnemonic::Push
        && case.insn.op0_register().is_segment_register()
        && case.insn.stack_pointer_increment() == -4
}

/// A repetition of 32-bit addresses that does nothing: Intel's processors zero-extend registers.
fn extends_only(case: &Case) -> bool {
    let insn = &case.insn;
    (insn.has_rep_prefix() || insn.has_repe_prefix() || insn.has_repne_prefix())
        && insn.is_string_instruction()
        && case.input.gpr[1] as u32 == 0
        && case.input.gpr[1] != 0
}

/// The signal that Linux makes of an exception.
fn signal_of(exception: Exception) -> i32 {
    match exception.vector {
        Exception::DE => libc::SIGFPE,
        Exception::UD => libc::SIGILL,
        Exception::SS | Exception::AC => libc::SIGBUS,
        _ => libc::SIGSEGV,
    }
}

struct Comparison {
    host: Host,
    /// Whether what Intel's processors do in their own way is compared, too.
    intel: bool,
    failures: Vec<String>,
    seen: HashMap<Mnemonic, u64>,
}

impl Comparison {
    fn run(&mut self, guest: &mut Guest, case: &Case, bits: u32) {
        for (address, bytes) in &case.stores {
            guest.store(*address, bytes);
            let start = (address - DATA) as usize;
            self.host.data()[start..start + bytes.len()].copy_from_slice(bytes);
        }
        let (ours, rip, outcome) = guest.run(&case.insn, case.input);
        let Ran {
            output: theirs,
            signal,
            taken,
        } = self.host.run(&case.bytes, bits, case.input);
        *self.seen.entry(case.insn.mnemonic()).or_default() += 1;
        let mut difference = String::new();
        let expected = outcome.err().map(signal_of);
        if expected != signal {
            difference += &format!(" outcome {outcome:?}, host signal {signal:?};");
        } else {
            if self.intel || !extends_only(case) {
                difference += &registers_differ(case, ours, theirs, bits, signal.is_some());
            }
            let goes = match (signal, taken) {
                (Some(_), _) => INSTRUCTION,
                (None, true) => TAKEN,
                (None, false) => case.insn.next_ip(),
            };
            if rip != goes {
                difference += &format!(" rip {rip:#x}, host {goes:#x};");
            }
        }
        for &(start, len) in &case.windows {
            let memory = self.memory_differs(guest, start, len);
            if !undefined_result(case) && (self.intel || !pushes_half(case)) {
                difference += &memory;
            }
        }
        if !difference.is_empty() {
            if self.failures.len() < REPORTED {
                self.failures.push(describe(case, &difference));
            } else {
                self.failures.push(String::new());
            }
        }
    }

    /// What the translator takes for overwritten is the same whatever the flags were, also where
    /// the manual leaves it undefined: else what memory checks leave in EFLAGS could be seen.
    fn overwrites(&mut self, case: &Case, bits: u32) {
        let mask = at_positions(liveness::overwritten(&case.insn));
        if mask == 0 || liveness::read(&case.insn) != 0 {
            return;
        }
        let before = self.host.data().to_vec();
        let mut ends = Vec::new();
        for flipped in [0, flags::ARITHMETIC] {
            self.host.data().copy_from_slice(&before);
            for (address, bytes) in &case.stores {
                let start = (address - DATA) as usize;
                self.host.data()[start..start + bytes.len()].copy_from_slice(bytes);
            }
            let mut input = case.input;
            input.flags ^= flipped;
            let ran = self.host.run(&case.bytes, bits, input);
            if ran.signal.is_some() {
                return;
            }
            ends.push(ran.output.flags & mask);
        }
        if ends[0] != ends[1] {
            let difference = format!(" flags {:#x} or {:#x}, as they were", ends[0], ends[1]);
            self.failures.push(describe(case, &difference));
        }
    }

    /// Compares memory, and makes it equal again.
    fn memory_differs(&mut self, guest: &mut Guest, start: u64, len: usize) -> String {
        let mut ours = vec![0; len];
        guest.load(start, &mut ours);
        let from = (start - DATA) as usize;
        let theirs = self.host.data()[from..from + len].to_vec();
        let Some(at) = (0..len).find(|&at| ours[at] != theirs[at]) else {
            return String::new();
        };
        guest.store(start, &theirs);
        let show = |bytes: &[u8]| format!("{:02x?}", &bytes[at..len.min(at + 8)]);
        let (ours, theirs) = (show(&ours), show(&theirs));
        format!(" [{:#x}] {ours}, host {theirs};", start + at as u64)
    }
}

fn registers_differ(
    case: &Case,
    ours: Registers,
    theirs: Registers,
    bits: u32,
    faulted: bool,
) -> String {
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    let mut text = String::new();
    let width = if bits == 64 { u64::MAX } else { 0xffff_ffff };
    if !undefined_result(case) {
        let count = if bits == 64 { 16 } else { 8 };
        let pairs = ours.gpr.iter().zip(theirs.gpr).zip(NAMES).take(count);
        for ((ours, theirs), name) in pairs {
            let (ours, theirs) = (ours & width, theirs & width);
            if ours != theirs {
                text += &format!(" {name} {ours:#x}, host {theirs:#x};");
            }
        }
    }
    let compared = flags::ARITHMETIC | flags::DF | flags::NT | flags::ID | flags::IF;
    // A fault in the middle of a string leaves flags that no one may rely on.
    let mask = if faulted {
        0
    } else {
        compared & !undefined_flags(case)
    };
    let (ours, theirs) = (ours.flags & mask, theirs.flags & mask);
    if ours != theirs {
        text += &format!(" flags {ours:#x}, host {theirs:#x};");
    }
    text
}

fn describe(case: &Case, difference: &str) -> String {
    let bytes: String = case.bytes.iter().map(|b| format!("{b:02x}")).collect();
    let input = case.input;
    format!(
        "{bytes} {}:{difference}\n    from flags {:#x} gpr {:x?} stores {:x?}",
        case.insn,
        input.flags,
        input.gpr,
        case.stores
            .iter()
            .map(|(at, bytes)| (at, &bytes[..bytes.len().min(16)]))
            .collect::<Vec<_>>(),
    )
}

/// Instructions that the host may lack; without them they are left out.
fn missing(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    match mnemonic {
        Adcx | Adox => !is_x86_feature_detected!("adx"),
        Andn | Bextr | Blsi | Blsmsk | Blsr | Tzcnt => !is_x86_feature_detected!("bmi1"),
        Bzhi | Mulx | Pdep | Pext | Rorx | Sarx | Shlx | Shrx => !is_x86_feature_detected!("bmi2"),
        Crc32 => !is_x86_feature_detected!("sse4.2"),
        Lzcnt => !is_x86_feature_detected!("lzcnt"),
        Movbe => !is_x86_feature_detected!("movbe"),
        Popcnt => !is_x86_feature_detected!("popcnt"),
        _ => false,
    }
}

#[test]
fn interpreter_agrees_with_the_host() {
    let cases = setting("DBT_ORACLE_CASES", 150_000);
    let mut random = Random::new(setting("DBT_ORACLE_SEED", 1));
    let mut comparison = Comparison {
        host: Host::new(),
        intel: host_is_intel(),
        failures: Vec::new(),
        seen: HashMap::new(),
    };
    let each = setting("DBT_ORACLE_EACH", 0);
    for bits in [64, 32] {
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        let groups = if bits == 64 { GROUPS - 1 } else { GROUPS };
        let mut full = 0;
        let mut guest = Guest::new(bits);
        guest.store(DATA, comparison.host.data());
        comparison.seen.clear();
        for number in 0.. {
            if number >= cases && (each == 0 || full == groups) {
                break;
            }
            let case = generate::case(&mut random, bits);
            if missing(case.insn.mnemonic()) {
                continue;
            }
            let count = counts.entry(group(case.insn.mnemonic())).or_default();
            if each != 0 && *count >= each && number >= cases {
                continue;
            }
            *count += 1;
            full += usize::from(*count == each);
            comparison.run(&mut guest, &case, bits);
            if number % 4096 == 0 {
                let stray = comparison.memory_differs(&mut guest, DATA, DATA_BYTES);
                assert_eq!(stray, "", "a store outside of every window before {number}");
            }
        }
        for (group, count) in counts {
            println!("{bits} bits, {group}: {count} cases");
        }
        let elsewhere = if bits == 64 {
            generate::COVERED32
        } else {
            generate::ONLY64
        };
        let untested: Vec<_> = generate::COVERED
            .iter()
            .chain(generate::COVERED32)
            .filter(|m| !elsewhere.contains(m) && !missing(**m))
            .filter(|m| !comparison.seen.contains_key(m))
            .collect();
        if cases >= 100_000 {
            assert!(
                untested.is_empty(),
                "{bits} bits: never drawn: {untested:?}"
            );
        }
    }
    for bits in [64, 32] {
        for _ in 0..cases / 8 {
            let case = generate::case(&mut random, bits);
            if !missing(case.insn.mnemonic()) {
                comparison.overwrites(&case, bits);
            }
        }
    }
    let failures = &comparison.failures;
    for failure in failures.iter().take(REPORTED) {
        eprintln!("{failure}");
    }
    assert!(failures.is_empty(), "{} differences", failures.len());
}
