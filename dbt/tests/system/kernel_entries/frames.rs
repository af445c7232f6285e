//! Returns by IRETQ, of which emitted code goes the usual ones, and what is unusual about each.

use dbt::guest::flags::*;
use dbt::guest::{CpuState, Segment};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::programs::{calls, calls_from_many_places, each_eighth, look, move_on};
use super::{Case, Code, KERNEL, RAISE};
use crate::machine::*;

/// Pushes what IRETQ needs to go where SYSRET would.
fn push_frame(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(r9, rsp)?;
    // All flags are defined, for who faults.
    a.cmp(r9, 1)?;
    a.push(i32::from(LONG_DATA3))?;
    a.push(r9)?;
    a.push(r11)?;
    a.push(i32::from(LONG_CODE3))?;
    a.push(rcx)
}

fn returns(a: &mut CodeAssembler) -> Result<(), IcedError> {
    look(a)?;
    push_frame(a)?;
    a.iretq()
}

fn returns_elsewhere(a: &mut CodeAssembler) -> Result<(), IcedError> {
    look(a)?;
    move_on(a)?;
    push_frame(a)?;
    a.iretq()
}

/// The same as [`returns`], with `unusual` done in each eighth round, so that the usual way is known by then.
fn returns_after(
    a: &mut CodeAssembler,
    unusual: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    look(a)?;
    push_frame(a)?;
    each_eighth(a, unusual)?;
    a.iretq()
}

/// The same, where that makes IRETQ fault; what `unusual` did is then done again.
fn returns_unless(a: &mut CodeAssembler, unusual: Code) -> Result<(), IcedError> {
    returns_after(a, unusual)?;
    unusual(a)?;
    a.iretq()
}

/// Inverts bits of one byte of a selector's descriptor.
pub fn change_descriptor(
    a: &mut CodeAssembler,
    selector: u16,
    byte: u64,
    bits: i32,
) -> Result<(), IcedError> {
    a.mov(r8, KERNEL + GDT + u64::from(selector & !7) + byte)?;
    a.xor(byte_ptr(r8), bits)
}

/// Returns with these flags in each eighth round.
fn returns_with(a: &mut CodeAssembler, flags: u64) -> Result<(), IcedError> {
    returns_after(a, |a| a.or(qword_ptr(rsp + 16), flags as i32))
}

/// An IRETQ to the next instruction, as kernels do it to have changed code noticed.
fn to_itself(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut next = a.create_label();
    a.mov(r8d, ss)?;
    a.mov(r9, rsp)?;
    a.push(r8)?;
    a.push(r9)?;
    // All flags are defined.
    a.cmp(r9, 1)?;
    a.pushfq()?;
    a.mov(r8d, cs)?;
    a.push(r8)?;
    a.lea(r8, qword_ptr(next))?;
    a.push(r8)?;
    a.iretq()?;
    a.set_label(&mut next)?;
    a.mov(r8d, ss)?;
    a.add(r13, r8)?;
    a.add(r13, rsp)
}

/// Null data segments, as 64-bit kernels leave them.
pub fn null_data(cpu: &mut CpuState) {
    for index in [0, 3, 4, 5] {
        cpu.segments[index] = Segment::default();
    }
    // Behind a fault of IRETQ its handler goes on.
    cpu.gpr[7] = 2;
}

fn case(what: &'static str, kernel: Code, inline: bool) -> Case {
    Case {
        what,
        user: calls,
        kernel,
        prepare: null_data,
        inline,
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("IRETQ", returns, true),
        Case {
            user: calls_from_many_places,
            ..case("IRETQ to many places", returns_elsewhere, false)
        },
        case("IRETQ, TF", |a| returns_with(a, TF), false),
        case("IRETQ, AC", |a| returns_with(a, AC), false),
        case("IRETQ, NT", |a| returns_with(a, NT), false),
        case("IRETQ, IOPL", |a| returns_with(a, IOPL), false),
        case("IRETQ, RF", |a| returns_with(a, RF | ID), true),
        case("IRETQ, others", |a| returns_with(a, VM | VIF | VIP), false),
        case(
            "IRETQ with NT set",
            |a| {
                returns_unless(a, |a| {
                    a.pushfq()?;
                    a.xor(qword_ptr(rsp), NT as i32)?;
                    a.popfq()
                })
            },
            false,
        ),
        case(
            "IRETQ to an address that is not canonical",
            |a| returns_unless(a, |a| a.btc(qword_ptr(rsp), 47)),
            false,
        ),
        case(
            "IRETQ to null selectors",
            |a| {
                returns_unless(a, |a| {
                    a.xor(qword_ptr(rsp + 8), i32::from(LONG_CODE3) & !3)?;
                    a.xor(qword_ptr(rsp + 32), i32::from(LONG_DATA3) & !3)
                })
            },
            false,
        ),
        case(
            "IRETQ to a null stack only",
            |a| returns_unless(a, |a| a.xor(qword_ptr(rsp + 32), i32::from(LONG_DATA3))),
            false,
        ),
        case(
            "IRETQ to an LDT",
            |a| returns_unless(a, |a| a.xor(qword_ptr(rsp + 8), 4)),
            false,
        ),
        case(
            "IRETQ to other levels for code and stack",
            |a| returns_unless(a, |a| a.xor(qword_ptr(rsp + 32), 3)),
            false,
        ),
        case(
            "IRETQ, with a descriptor of another level",
            |a| returns_unless(a, |a| change_descriptor(a, LONG_CODE3, 5, 0x60)),
            false,
        ),
        case(
            "IRETQ, with a stack that may not be written",
            |a| returns_unless(a, |a| change_descriptor(a, LONG_DATA3, 5, 2)),
            false,
        ),
        case(
            "IRETQ, with a limit that 64-bit code does not care for",
            |a| returns_after(a, |a| change_descriptor(a, LONG_CODE3, 0, 0x55)),
            false,
        ),
        case(
            "an interrupt waits for IRETQ",
            |a| returns_after(a, |a| a.out(RAISE, al)),
            false,
        ),
        case(
            "IRETQ to the same level",
            |a| {
                look(a)?;
                to_itself(a)?;
                a.sysretq()
            },
            true,
        ),
        case(
            "IRETQ to the same level, with a null stack",
            |a| {
                let mut again = a.create_label();
                look(a)?;
                to_itself(a)?;
                a.xor(r8d, r8d)?;
                a.mov(ss, r8d)?;
                a.set_label(&mut again)?;
                to_itself(a)?;
                a.jmp(again)
            },
            true,
        ),
    ];
    let interrupts: fn(&mut CpuState) = |cpu| {
        null_data(cpu);
        cpu.interrupt_flag = 1;
    };
    for case in cases.iter_mut().filter(|case| case.what.contains("waits")) {
        case.prepare = interrupts;
    }
    let mut prepared = |what, kernel, inline, prepare| {
        cases.push(Case {
            prepare,
            ..case(what, kernel, inline)
        });
    };
    prepared("IRETQ, interrupts on", returns, true, interrupts);
    prepared("IRETQ, data segments to look at", returns, false, |_| {});
    prepared("IRETQ, frame across pages", returns, false, |cpu| {
        null_data(cpu);
        cpu.gpr[4] = (cpu.gpr[4] & !0xfff) - 0x1000 + 16;
    });
    prepared(
        "IRETQ, outside the GDT",
        |a| {
            returns(a)?;
            a.add(rsp, 40)?;
            a.sysretq()
        },
        false,
        |cpu| {
            null_data(cpu);
            cpu.control.gdtr.limit = (LONG_CODE3 & !7) + 6;
        },
    );
    prepared(
        "IRETQ with user pages open, and with SMAP",
        |a| {
            let mut next = a.create_label();
            a.mov(r10, rsp)?;
            a.mov(rsp, KERNEL + KERNEL_STACK)?;
            a.stac()?;
            to_itself(a)?;
            a.clac()?;
            to_itself(a)?;
            a.mov(rsp, r10)?;
            a.jmp(next)?;
            a.set_label(&mut next)?;
            a.sysretq()
        },
        false,
        |cpu| {
            null_data(cpu);
            cpu.control.cr4 |= CR4_SMAP;
        },
    );
    cases
}
