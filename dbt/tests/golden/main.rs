//! The host code of a table of guest instructions and short blocks, pinned as text beside this
//! file: a change of what is emitted shows in review, with the number of host instructions of
//! each guest instruction. `UPDATE_GOLDEN=1` writes the files anew.
//!
//! The host is always the same here: with BMI2 unless a case says otherwise. What lies behind
//! the straight way (slow paths, links) is not listed.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod cases;
mod moving;
mod names;
mod unusual;
mod whole_jumps;

use std::fmt::Write;
use std::fs;
use std::path::Path;

use dbt::cache::CodeOffset;
use dbt::guest::{CodeSegment, Mode};
use dbt::record::classify::Classifier;
use dbt::run::Strayed;
use dbt::run::Upcall;
use dbt::x86_64::{
    Allotting, Emitted, Predicting, Target, Trampolines, Workshop, emit, emit_trampolines,
};
use iced_x86::code_asm::CodeAssembler;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Formatter, Instruction, IntelFormatter};

use cases::{Case, GROUPS};
use names::Names;

/// Where the guest's code is.
const RIP: u64 = 0x40_1000;
/// Where the host's code goes.
const BASE: CodeOffset = CodeOffset(0x1000);
/// Where slow paths are.
const COLD: CodeOffset = CodeOffset(0x10_0000);

/// Where a block is, and what it is called.
#[derive(Clone, Copy)]
struct Spot {
    id: u32,
    rip: u64,
    mapping: u32,
    bases: [CodeOffset; 2],
    jump_caches: (usize, Option<usize>),
    heat: Option<usize>,
    movable: bool,
    whole_jumps: bool,
}

impl Spot {
    /// That of the listings.
    const USUAL: Spot = Spot {
        id: 1,
        rip: RIP,
        mapping: 5,
        bases: [BASE, COLD],
        jump_caches: (0, Some(1)),
        heat: None,
        movable: false,
        whole_jumps: false,
    };
}

fn guest_code(case: &Case) -> Vec<Instruction> {
    guest_code_at(case, RIP)
}

fn bits(case: &Case) -> u32 {
    if case.narrow { 32 } else { 64 }
}

fn guest_bytes(case: &Case) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(bits(case)).expect("both are widths");
    (case.code)(&mut assembler).expect("the case can be encoded");
    let bytes = assembler.assemble(RIP);
    bytes.expect("the case can be assembled")
}

/// The same bytes at another address.
fn guest_code_at(case: &Case, rip: u64) -> Vec<Instruction> {
    let (bits, bytes) = (bits(case), guest_bytes(case));
    let once: Vec<Instruction> = Decoder::with_ip(bits, &bytes, rip, DecoderOptions::NONE)
        .iter()
        .collect();
    once.repeat(case.rounds)
}

fn host_code(case: &Case, insns: &[Instruction], trampolines: &Trampolines) -> Emitted {
    host_code_at(case, insns, trampolines, Spot::USUAL)
}

fn mode(case: &Case) -> Mode {
    Mode(
        Mode::WIDE_STACK
            | Mode::PROTECTED
            | Mode::FLAT
            | if case.narrow {
                Mode::CODE32 | Mode::RING0 | Mode::USER_PAGES_OPEN
            } else if case.kernel {
                Mode::CODE64 | Mode::LONG | Mode::RING0 | Mode::SMAP
            } else {
                Mode::CODE64 | Mode::LONG | Mode::USER | Mode::IO_DENIED
            }
            | if case.unmasked { Mode::X87_UNMASKED } else { 0 }
            | Mode::X87
            | Mode::SSE
            | Mode::AVX,
    )
}

fn host_code_at(
    case: &Case,
    insns: &[Instruction],
    trampolines: &Trampolines,
    spot: Spot,
) -> Emitted {
    let strayed = Strayed::default();
    let target = Target {
        id: spot.id,
        mode: mode(case),
        code: CodeSegment::FLAT,
        base: spot.bases[0],
        cold_base: spot.bases[1],
        trampolines,
        copies: case.copies,
        stride: 0x2000_5000,
        jump_cache: spot.jump_caches.0,
        far_jump_cache: spot.jump_caches.1,
        system_inline: true,
        memory_inline: true,
        vector_strings: true,
        mapping: spot.mapping,
        further: &[],
        counted: case.counted,
        returns: case.returns,
        grouping: case.grouping,
        precise_flags: true,
        lazy_flags: true,
        allotting: case.allotting.then_some(Allotting {
            least: 3,
            hot: true,
        }),
        crossing: true,
        late_stack: true,
        late_slots: true,
        late_stores: true,
        late_index: true,
        prefetch: true,
        slot_registers: true,
        sure_accesses: true,
        hoisting: case.allotting,
        whole_jumps: spot.whole_jumps,
        memory_operands: true,
        heat: spot.heat,
        x87_opcodes: &[Some(0x123); 64],
        prediction: case.predicting.then_some(Predicting {
            strayed: &strayed,
            page: mmu::GuestPhys(0x1000),
            first: 7,
        }),
        movable: spot.movable,
        bmi2: case.bmi2,
    };
    emit(
        &mut Workshop::default(),
        &mut Classifier::default(),
        insns,
        spot.rip,
        target,
    )
}

/// The host instructions between two offsets. What follows an upcall is its record.
fn decode(emitted: &Emitted, trampolines: &Trampolines, from: u32, to: u32) -> Vec<Instruction> {
    let code = &emitted.code[0][..to as usize];
    let ip = u64::from(BASE.0);
    let mut decoder = Decoder::with_ip(64, code, ip, DecoderOptions::NONE);
    let mut insns = Vec::new();
    let mut at = from as usize;
    while at < to as usize {
        decoder.set_position(at).expect("within the code");
        decoder.set_ip(ip + at as u64);
        let insn = decoder.decode();
        assert!(!insn.is_invalid(), "no instruction at {at:#x}");
        at += insn.len();
        let target = CodeOffset(insn.near_branch_target() as u32);
        if target == trampolines.upcall || trampolines.crossings.has_record(target) {
            at += size_of::<Upcall>();
        }
        insns.push(insn);
    }
    insns
}

/// One case as text.
fn listing(case: &Case, trampolines: &Trampolines) -> String {
    let insns = guest_code(case);
    let emitted = host_code(case, &insns, trampolines);
    let end = emitted.insn_starts[insns.len()];
    let mut text = format!("== {}", case.name);
    for (on, what) in [
        (case.copies != 2, format!("copies={}", case.copies)),
        (case.counted, "counted".to_string()),
        (!case.returns, "returns off".to_string()),
        (!case.grouping, "grouping off".to_string()),
        (!case.bmi2, "no BMI2".to_string()),
        (case.predicting, "predicting".to_string()),
        (case.unmasked, "x87 exceptions unmasked".to_string()),
        (case.allotting, "hot".to_string()),
    ] {
        if on {
            let _ = write!(text, ", {what}");
        }
    }
    text.push('\n');
    let mut guest = IntelFormatter::new();
    let mut host = IntelFormatter::with_options(
        Some(Box::new(Names {
            upcall: u64::from(trampolines.upcall.0),
            straight: u64::from(BASE.0)..u64::from(BASE.0 + end),
        })),
        None,
    );
    for formatter in [&mut guest, &mut host] {
        let options = formatter.options_mut();
        options.set_space_after_operand_separator(true);
        options.set_rip_relative_addresses(false);
        options.set_show_branch_size(false);
    }
    let mut lines = |title: &str, insns: &[Instruction]| {
        let _ = writeln!(text, "{title}: {}", insns.len());
        for insn in insns {
            let mut line = String::new();
            host.format(insn, &mut line);
            let _ = writeln!(text, "    {line}");
        }
    };
    let part = |from, to| decode(&emitted, trampolines, from, to);
    if case.entries {
        lines(
            "[from another page]",
            &part(emitted.entries.guarded, emitted.entries.polling),
        );
        lines(
            "[backward]",
            &part(emitted.entries.polling, emitted.entries.plain),
        );
        if emitted.entries.indirect > end {
            let all = part(emitted.entries.indirect, emitted.code[0].len() as u32);
            let last = all
                .iter()
                .position(|insn| insn.flow_control() == FlowControl::UnconditionalBranch);
            let len = last.map_or(all.len(), |last| last + 1);
            lines("[indirect]", &all[..len]);
        }
    }
    if emitted.entries.plain < emitted.insn_starts[0] {
        lines(
            "[entry]",
            &part(emitted.entries.plain, emitted.insn_starts[0]),
        );
    }
    for (index, insn) in insns.iter().enumerate() {
        let mut title = String::new();
        guest.format(insn, &mut title);
        lines(
            &title,
            &part(emitted.insn_starts[index], emitted.insn_starts[index + 1]),
        );
    }
    let total = part(emitted.entries.plain, end).len();
    let _ = writeln!(text, "total: {total} host instructions for {}", insns.len());
    text
}

#[test]
fn emitted_code_is_what_it_was() {
    let (_, trampolines) = emit_trampolines(0, 0, 2, 0x2000_0000);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut changes = String::new();
    for (name, cases) in GROUPS {
        let listings: Vec<String> = cases
            .iter()
            .map(|case| listing(case, &trampolines))
            .collect();
        let text = listings.join("\n");
        let path = folder.join(format!("{name}.txt"));
        if update {
            fs::write(&path, &text).expect("the golden file can be written");
            continue;
        }
        let golden = fs::read_to_string(&path).unwrap_or_default();
        if golden == text {
            continue;
        }
        let (mut old, mut new) = (golden.lines(), text.lines());
        loop {
            match (old.next(), new.next()) {
                (None, None) => break,
                (old, new) if old == new => {}
                (old, new) => {
                    let _ = writeln!(
                        changes,
                        "{name}.txt: first difference\n  was: {}\n  is:  {}",
                        old.unwrap_or("(the end)"),
                        new.unwrap_or("(the end)")
                    );
                    break;
                }
            }
        }
    }
    assert!(
        changes.is_empty(),
        "{changes}UPDATE_GOLDEN=1 writes the files anew; then look at the difference"
    );
}

/// Listings must not depend on the machine that makes them.
#[test]
fn one_more_copy_is_one_more_store() {
    let (_, trampolines) = emit_trampolines(0, 0, 2, 0x2000_0000);
    let mut totals = Vec::new();
    for copies in 1..=4 {
        let case = Case::new("store", |a| {
            a.mov(
                iced_x86::code_asm::dword_ptr(iced_x86::code_asm::rbx),
                iced_x86::code_asm::eax,
            )
        })
        .copies(copies);
        let insns = guest_code(&case);
        let emitted = host_code(&case, &insns, &trampolines);
        totals.push(
            decode(
                &emitted,
                &trampolines,
                emitted.insn_starts[0],
                emitted.insn_starts[1],
            )
            .len(),
        );
    }
    assert_eq!(totals[1..], [totals[0] + 1, totals[0] + 2, totals[0] + 3]);
}
