//! The instruction table is complete: every instruction that the decoder knows has a row, or the
//! translator's own form, or a reason to be refused; and what translation assumes of flags,
//! memory and privilege agrees with the instruction's description.

mod deviations;
mod forms;

use std::collections::BTreeSet;

use dbt::guest::{CpuState, Mode, Segment};
use dbt::record::classify::{Classifier, Kind, Operand};
use dbt::record::features::{Requirement, present, requirement};
use dbt::record::{liveness, row};
use iced_x86::{Code, EncodingKind, InstructionInfoFactory, Mnemonic, OpAccess, OpKind};

/// A mode in which every extension is switched on.
fn mode(bits: u32) -> Mode {
    let mut cpu = CpuState::at_reset();
    cpu.control.cr0 = 0x11;
    cpu.control.cr4 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 18;
    cpu.control.xcr0 = 7;
    for segment in &mut cpu.segments {
        segment.limit = u32::MAX;
        segment.base = 0;
        segment.attributes = 0x8093 | if bits == 16 { 0 } else { Segment::BIG };
    }
    cpu.segments[1].attributes = 0x809b
        | match bits {
            16 => 0,
            32 => Segment::BIG,
            _ => Segment::LONG,
        };
    if bits == 64 {
        cpu.control.cr0 |= 1 << 31;
        cpu.control.efer = 0x500;
    }
    cpu.refresh_mode();
    cpu.mode.without_noting()
}

/// Why no processor model executes a code, from its encoding and its CPUID features.
fn refused(code: Code) -> Option<String> {
    let features = code.cpuid_features();
    let absent: Vec<String> = features
        .iter()
        .filter(|&&feature| requirement(feature) == Requirement::Absent)
        .map(|feature| format!("{feature:?}"))
        .collect();
    let no_bit_has_it = {
        let mut everything = dbt::guest::cpuid::CpuModel::parse("max").expect("a model");
        everything.tsc_hz = 1;
        !absent.is_empty() && !present(code, &everything)
    };
    no_bit_has_it.then(|| absent.join(", "))
}

#[test]
fn every_instruction_has_a_row_or_a_reason() {
    let all = forms::all();
    let mut classifier = Classifier::default();
    let mut missing = BTreeSet::new();
    let mut met = BTreeSet::new();
    for (&(bits, number), forms) in &all {
        let code = forms::code(number);
        met.insert(number);
        if refused(code).is_some() || deviations::without_row(code).is_some() {
            continue;
        }
        for (bytes, insn) in forms.each() {
            let on_host = classifier.classify(insn, mode(bits)).on_host().is_some();
            if row(insn.mnemonic()).is_none() && !on_host {
                missing.insert(format!("{code:?} in {bits}-bit code: {bytes:02x?}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    let unmet: Vec<String> = Code::values()
        .filter(|&code| !met.contains(&(code as usize)))
        .filter(|&code| refused(code).is_none() && deviations::not_decoded(code).is_none())
        .map(|code| format!("{code:?} {:?}", code.cpuid_features()))
        .collect();
    assert!(unmet.is_empty(), "never decoded: {unmet:#?}");
}

/// A refused code has no row that would execute it, unless a newer meaning shares the mnemonic.
#[test]
fn extensions_that_no_model_has_are_refused() {
    let max = dbt::guest::cpuid::CpuModel::parse("max").expect("a model");
    let old = dbt::guest::cpuid::CpuModel::parse("qemu64").expect("a model");
    let evex = Code::values().filter(|code| {
        let encoding = code.op_code().encoding();
        !matches!(encoding, EncodingKind::Legacy | EncodingKind::VEX)
    });
    for code in evex {
        assert!(!present(code, &max), "{code:?}");
    }
    for code in Code::values() {
        let vex = code.op_code().encoding() == EncodingKind::VEX;
        assert!(!vex || !present(code, &old), "{code:?}");
    }
}

#[test]
fn flags_agree_with_the_description() {
    let mut wrong = BTreeSet::new();
    for (&(_, number), forms) in &forms::all() {
        let code = forms::code(number);
        for (_, insn) in forms.each() {
            let read = insn.rflags_read() & liveness::ALL;
            let written = (insn.rflags_written()
                | insn.rflags_cleared()
                | insn.rflags_set()
                | insn.rflags_undefined())
                & liveness::ALL;
            let overwritten = liveness::overwritten(insn);
            // An undefined flag may stay as it was.
            let defined = written & !insn.rflags_undefined();
            let agrees = liveness::read(insn) == read
                && liveness::changed(insn) == written
                && (overwritten & defined == defined || deviations::keeps_flags(insn).is_some());
            // What is said to be overwritten has to be.
            if !agrees || overwritten & !written != 0 {
                wrong.insert(format!("{code:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn memory_and_privilege_agree_with_the_description() {
    let mut classifier = Classifier::default();
    let mut factory = InstructionInfoFactory::new();
    let mut wrong = BTreeSet::new();
    for (&(bits, number), forms) in &forms::all() {
        let code = forms::code(number);
        for (_, insn) in forms.each() {
            let Kind::Plain(operand) = classifier.classify(insn, mode(bits)).kind else {
                continue;
            };
            let info = factory.info(insn);
            let accesses: Vec<OpAccess> = info
                .used_memory()
                .iter()
                .map(|memory| memory.access())
                .collect();
            let expected = match accesses[..] {
                [] | [OpAccess::NoMemAccess] => vec![Operand::None],
                [OpAccess::Read | OpAccess::CondRead] => vec![Operand::Read],
                [OpAccess::Write] => vec![Operand::Write, Operand::WriteOnce],
                [OpAccess::ReadWrite | OpAccess::ReadCondWrite] => vec![Operand::Modify],
                _ => vec![],
            };
            let privileged = insn.is_privileged();
            let has_memory = (0..insn.op_count()).any(|op| insn.op_kind(op) == OpKind::Memory);
            if !expected.contains(&operand) || privileged || has_memory == accesses.is_empty() {
                wrong.insert(format!("{code:?} {operand:?} {accesses:?} {privileged}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What only ring 0 may execute is either left to the interpreter or has its ring in the mode.
#[test]
fn privileged_instructions_are_not_emitted_for_user_code() {
    let mut classifier = Classifier::default();
    for (&(bits, number), forms) in &forms::all() {
        let code = forms::code(number);
        let user = Mode(mode(bits).0 & !Mode::RING0 | Mode::USER);
        for (_, insn) in forms.each() {
            if insn.is_privileged() {
                let kind = classifier.classify(insn, user).kind;
                assert!(
                    kind == Kind::Helper || insn.mnemonic() == Mnemonic::Nop,
                    "{code:?} {kind:?}"
                );
            }
        }
    }
}
