//! Instructions as a real processor executed them: 52,000 cases captured from an 80286, which
//! nobody of this project wrote. The environment variable `SINGLESTEP_80286` names their folder;
//! without it there is nothing to compare with.
//!
//! Each case runs three times: in the interpreter, translated, and, where the instruction has a
//! form in flat 32-bit code, as that form in translated code.

mod capture;
#[path = "../common/mod.rs"]
mod common;

mod exclusions;
mod machine;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dbt::guest::flags::*;
use iced_x86::{
    Decoder, DecoderOptions, Encoder, FlowControl, Instruction, Mnemonic, OpKind, Register,
    RflagsBits,
};

use capture::{Case, NAMES, State};
use machine::{FLAGS, GENERAL, Machine};

/// Where the captured processor's flags word ends: bits 12 to 15 read otherwise today.
const FLAGS_OF_286: u16 = 0xfff;

fn decode(case: &Case) -> Instruction {
    let ip = u64::from(case.before.registers[machine::IP]);
    Decoder::with_ip(16, &case.bytes, ip, DecoderOptions::NONE).decode()
}

/// The flags that have to be as captured.
fn defined_flags(insn: &Instruction) -> u16 {
    let mut undefined = insn.rflags_undefined();
    if matches!(insn.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr)
        && (insn.op1_kind() != OpKind::Immediate8 || insn.immediate8() & 31 != 1)
    {
        // iced-x86 has a count of 9 or 17, all the way round, leave it alone.
        undefined |= RflagsBits::OF;
    }
    let flags = [
        (RflagsBits::CF, CF),
        (RflagsBits::PF, PF),
        (RflagsBits::AF, AF),
        (RflagsBits::ZF, ZF),
        (RflagsBits::SF, SF),
        (RflagsBits::OF, OF),
    ];
    flags
        .into_iter()
        .filter(|(bit, _)| undefined & bit != 0)
        .fold(FLAGS_OF_286, |mask, (_, flag)| mask & !(flag as u16))
}

/// The instruction of a case as 32-bit code with flat segments, HLT behind it.
fn in_flat_code(case: &Case, insn: &Instruction) -> Option<Vec<u8>> {
    if case.exception.is_some()
        || insn.flow_control() != FlowControl::Next
        || insn.is_stack_instruction()
        || insn.is_string_instruction()
        || insn.is_privileged()
        || matches!(insn.mnemonic(), Mnemonic::Les | Mnemonic::Lds)
        || case.bytes.last() != Some(&0xf4)
    {
        return None;
    }
    let mut flat = *insn;
    let registers = &case.before.registers;
    for index in 0..insn.op_count() {
        match insn.op_kind(index) {
            OpKind::Register if insn.op_register(index).is_segment_register() => return None,
            OpKind::Memory => {
                if insn.memory_size().size() == 0 {
                    // LEA and far pointers mean the segment's offset.
                    return None;
                }
                let address = insn.virtual_address(index, 0, |register, _, _| {
                    Some(u64::from(match register {
                        Register::ES => u32::from(registers[7]) << 4,
                        Register::CS => u32::from(registers[4]) << 4,
                        Register::SS => u32::from(registers[5]) << 4,
                        Register::DS => u32::from(registers[6]) << 4,
                        other => u32::from(registers[GENERAL[other.number()]]),
                    }))
                })?;
                flat.set_segment_prefix(Register::None);
                flat.set_memory_base(Register::None);
                flat.set_memory_index(Register::None);
                flat.set_memory_displ_size(4);
                flat.set_memory_displacement64(address);
            }
            _ => {}
        }
    }
    let mut encoder = Encoder::new(32);
    encoder.encode(&flat, 0).ok()?;
    let mut code = encoder.take_buffer();
    code.push(0xf4);
    Some(code)
}

/// What differs from the capture.
fn differences(case: &Case, got: &State, flags: u16, flat: bool) -> Vec<String> {
    let mut found = Vec::new();
    let after = &case.after;
    for (index, name) in NAMES.iter().enumerate() {
        if flat && index != FLAGS && !GENERAL.contains(&index) {
            continue;
        }
        let mask = if index == FLAGS { flags } else { u16::MAX };
        let (want, have) = (after.registers[index] & mask, got.registers[index] & mask);
        if want != have {
            found.push(format!("{name} {have:04x}, not {want:04x}"));
        }
    }
    let pushed = exclusions::pushed_flags(&case.before);
    for (at, want) in &after.memory {
        let mask = match at.wrapping_sub(pushed) {
            0 if case.exception.is_some() => flags as u8,
            1 if case.exception.is_some() => (flags >> 8) as u8,
            _ => u8::MAX,
        };
        let have = got.memory[at];
        if have & mask != want & mask {
            found.push(format!("[{at:06x}] {have:02x}, not {want:02x}"));
        }
    }
    found
}

#[derive(Default)]
struct Tally {
    compared: u32,
    flat: u32,
    excluded: BTreeMap<&'static str, u32>,
    failures: Vec<String>,
}

fn compare(file: &Path, machines: &mut [Machine; 2], tally: &mut Tally) {
    let opcode = file.file_name().expect("a file").to_string_lossy();
    let opcode = opcode.trim_end_matches(".MOO.gz").to_owned();
    for (number, case) in capture::read(file).iter().enumerate() {
        let insn = decode(case);
        if let Some(reason) = exclusions::reason(case, &insn) {
            *tally.excluded.entry(reason).or_default() += 1;
            continue;
        }
        tally.compared += 1;
        let flags = defined_flags(&insn);
        let mut run = |machine: usize, code: Option<&[u8]>, label: &str| {
            let got = machines[machine].execute(&case.before, &case.after, code);
            let found = match got {
                Some(got) => differences(case, &got, flags, code.is_some()),
                None => vec!["no HLT".to_owned()],
            };
            if !found.is_empty() {
                tally.failures.push(format!(
                    "{opcode} {number} {label} {} ({:02x?}), exception {:?}: {}",
                    case.name,
                    case.bytes,
                    case.exception,
                    found.join("; ")
                ));
            }
        };
        run(0, None, "interpreted");
        run(1, None, "translated");
        if let Some(code) = in_flat_code(case, &insn) {
            tally.flat += 1;
            run(1, Some(&code), "flat");
        }
    }
    for machine in machines {
        if let Some(at) = machine.stray_byte() {
            tally
                .failures
                .push(format!("{opcode}: some case wrote to {at:06x}"));
        }
    }
}

#[test]
fn every_captured_instruction() {
    let Some(folder) = std::env::var_os("SINGLESTEP_80286").map(PathBuf::from) else {
        println!("skipped: SINGLESTEP_80286 does not name the folder of captured cases");
        return;
    };
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the folder of captured cases")
        .map(|entry| entry.expect("a directory entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "gz"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no cases in {}", folder.display());
    let mut machines = [Machine::new(true), Machine::new(false)];
    let mut tally = Tally::default();
    for file in &files {
        compare(file, &mut machines, &mut tally);
    }
    println!(
        "{} files, {} cases compared, {} of them in flat code as well",
        files.len(),
        tally.compared,
        tally.flat
    );
    for (reason, count) in &tally.excluded {
        println!("{count:6} left out: {reason}");
    }
    let translated = machines[1].translated();
    assert!(
        translated > u64::from(tally.compared),
        "{translated} blocks"
    );
    let count = tally.failures.len();
    let shown = std::env::var("SINGLESTEP_SHOW").map_or(40, |n| n.parse().expect("a number"));
    for failure in tally.failures.iter().take(shown) {
        println!("{failure}");
    }
    assert_eq!(count, 0, "cases that differ");
}
