//! Results that the manual leaves undefined are the same everywhere, on every host: those of Intel's processors.

use dbt::EngineOptions;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::places::{CHANGING, looping};
use crate::side_by_side::{end_alike, machines};

/// Double shifts of 16 bits by more than that.
fn double_shifts() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.mov(rax, 0x1234_5678_9abc_def0u64)?;
    a.mov(rdx, 0x0fed_cba9_8765_4321u64)?;
    a.mov(rbx, rdx)?;
    a.mov(qword_ptr(rdi), rax)?;
    for count in 15..32 {
        a.shld(ax, dx, count)?;
        a.shrd(bx, ax, count)?;
        a.mov(ecx, count)?;
        a.shrd(word_ptr(rdi + 2), dx, cl)?;
        a.shld(word_ptr(rdi + 4), bx, cl)?;
        a.imul_3(rdx, rdx, 0x61)?;
    }
    a.mov(r12, qword_ptr(rdi))?;
    a.add(r12, rax)?;
    a.hlt()?;
    a.assemble(CHANGING)
}

#[test]
fn double_shifts_of_words_go_round() {
    let code = double_shifts().expect("it assembles");
    let engine = |grouping| EngineOptions {
        grouping,
        cold: 0,
        ..EngineOptions::default()
    };
    let mut engines = machines([engine(false), engine(true)]);
    end_alike(&mut engines, 1, |_| ((), looping(&code)), |_| true);
}
