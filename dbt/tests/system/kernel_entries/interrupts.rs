//! INT n and INT3 through a gate to the kernel, of which emitted code goes the usual ones, and what is unusual about
//! each.

use dbt::guest::flags::*;
use dbt::guest::{CpuState, Segment};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::frames::{change_descriptor, null_data};
use super::programs::{each_eighth, look};
use super::{CALLED, Case, Code, KERNEL};
use crate::machine::*;

/// The gate that the programs use.
const CALLED_GATE: u64 = KERNEL + IDT + 16 * CALLED as u64;
/// RSP0.
const STACK_POINTER: u64 = KERNEL + TSS_A + 4;

/// An interrupt with other flags in each round, then a system call.
fn interrupts_with(
    a: &mut CodeAssembler,
    interrupt: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.add(eax, 0x1357)?;
    a.sahf()?;
    a.seto(cl)?;
    a.std()?;
    interrupt(a)?;
    a.pushfq()?;
    a.pop(rdx)?;
    a.add(r15, rdx)?;
    a.add(r15, rsp)?;
    a.ror(r15, 3)?;
    a.cld()?;
    a.cmp(eax, 5)?;
    a.syscall()?;
    a.jmp(again)
}

fn interrupts(a: &mut CodeAssembler) -> Result<(), IcedError> {
    interrupts_with(a, |a| a.int(CALLED as i32))
}

/// Without accesses or flags but those of the interrupt; the same in 32-bit code.
fn only_interrupts(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.add(eax, 0x1357)?;
    a.int(CALLED as i32)?;
    a.nop()?;
    a.jmp(again)
}

fn returns(a: &mut CodeAssembler) -> Result<(), IcedError> {
    look(a)?;
    a.sysretq()
}

/// Inverts bits of a byte in each eighth system call, so that the usual way is known by then.
fn changes(a: &mut CodeAssembler, at: u64, bits: i32) -> Result<(), IcedError> {
    look(a)?;
    each_eighth(a, |a| {
        a.mov(r8, at)?;
        a.xor(byte_ptr(r8), bits)
    })?;
    a.sysretq()
}

fn case(what: &'static str, kernel: Code, inline: bool) -> Case {
    Case {
        what,
        user: interrupts,
        kernel,
        prepare: null_data,
        inline,
    }
}

/// Compatibility mode.
fn narrow(cpu: &mut CpuState) {
    cpu.segments[1] = Segment {
        selector: SYSRET_BASE | 3,
        attributes: 0xc0fb,
        ..cpu.segments[1]
    };
}

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("INT", returns, true),
        case("INT, a trap gate", |a| changes(a, CALLED_GATE + 5, 1), true),
        case(
            "INT, a gate that is the kernel's",
            |a| changes(a, CALLED_GATE + 5, 0x60),
            false,
        ),
        case("INT, no gate", |a| changes(a, CALLED_GATE + 5, 0x80), false),
        case(
            "INT, a call gate",
            |a| changes(a, CALLED_GATE + 5, 2),
            false,
        ),
        case(
            "INT, a stack of the table",
            |a| changes(a, CALLED_GATE + 4, 1),
            false,
        ),
        case(
            "INT, reserved bits in the gate",
            |a| changes(a, CALLED_GATE + 4, 0xf8),
            true,
        ),
        case(
            "INT to an address that is not canonical",
            |a| changes(a, CALLED_GATE + 10, 1),
            false,
        ),
        case(
            "INT to a null selector",
            |a| changes(a, CALLED_GATE + 2, i32::from(LONG_CODE0)),
            false,
        ),
        case("INT to an LDT", |a| changes(a, CALLED_GATE + 2, 4), false),
        case(
            "INT to data",
            |a| changes(a, CALLED_GATE + 2, i32::from(LONG_CODE0 ^ LONG_DATA0)),
            false,
        ),
        case(
            "INT, a selector of another level",
            |a| changes(a, CALLED_GATE + 2, 3),
            true,
        ),
        case(
            "INT to code that has not been accessed",
            |a| {
                change_descriptor(a, LONG_CODE0, 5, 1)?;
                returns(a)
            },
            false,
        ),
        case(
            "INT, a stack that is not aligned",
            |a| changes(a, STACK_POINTER, 0x0c),
            true,
        ),
        case(
            "INT, a frame across pages",
            |a| changes(a, STACK_POINTER, 0x10),
            false,
        ),
        case(
            "INT, a stack that is not canonical",
            |a| changes(a, STACK_POINTER + 7, 0x40),
            false,
        ),
        case(
            "INT, no stack",
            |a| changes(a, STACK_POINTER + 3, 0x80),
            false,
        ),
        Case {
            user: |a| interrupts_with(a, |a| a.int3()),
            ..case("INT3", returns, true)
        },
    ];
    let mut prepared = |what, inline, prepare| {
        cases.push(Case {
            prepare,
            ..case(what, returns, inline)
        });
    };
    prepared("INT, interrupts on", true, |cpu| {
        null_data(cpu);
        cpu.interrupt_flag = 1;
    });
    prepared("INT, NT and ID", false, |cpu| {
        null_data(cpu);
        cpu.system_flags |= NT | ID;
    });
    prepared("INT, outside the IDT", false, |cpu| {
        null_data(cpu);
        cpu.control.idtr.limit = 16 * CALLED as u16 + 14;
    });
    prepared("INT, a TSS without a stack", false, |cpu| {
        null_data(cpu);
        cpu.control.tr.limit = 10;
    });
    cases.push(Case {
        user: only_interrupts,
        prepare: |cpu| {
            null_data(cpu);
            cpu.control.cr4 |= CR4_SMAP;
            cpu.system_flags |= AC;
        },
        ..case("INT, with SMAP and AC", returns, false)
    });
    cases.push(Case {
        user: only_interrupts,
        prepare: |cpu| {
            null_data(cpu);
            cpu.control.cr4 |= CR4_SMAP;
        },
        ..case("INT, with SMAP", returns, true)
    });
    cases.push(Case {
        user: only_interrupts,
        prepare: narrow,
        ..case("INT in compatibility mode", returns, false)
    });
    cases
}
