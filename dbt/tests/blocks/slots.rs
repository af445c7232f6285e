//! Accesses that share a check, with something between them that takes the register that leads there.

use dbt::EngineOptions;
use iced_x86::code_asm::*;

use crate::machine::{CODE, DATA, DATA_END, DEVICE, READ_ONLY};
use crate::precise::{Bench, Code, walk};

/// Accesses by RDI, which is the same in each round, and by RSI, which comes to the ends of pages.
const ACCESSES: &[(&str, Code)] = &[
    ("at once", |a| {
        a.mov(rax, qword_ptr(rdi))?;
        a.mov(rbp, qword_ptr(rdi + 8))?;
        a.add(rbp, qword_ptr(rdi + 16))
    }),
    ("by a copy of the register, in memory", |a| {
        a.mov(rax, qword_ptr(rdi))?;
        a.mov(r9, rdi)?;
        a.mov(rbp, qword_ptr(r9 + 8))?;
        a.mov(r14, qword_ptr(rdi + 16))
    }),
    ("by turns", |a| {
        a.mov(rax, qword_ptr(rdi))?;
        a.mov(dword_ptr(rsi + 4), eax)?;
        a.mov(rbp, qword_ptr(rdi + 8))?;
        a.mov(dword_ptr(rsi + 12), ebp)?;
        a.mov(r14, qword_ptr(rdi + 16))
    }),
    ("registers in memory between", |a| {
        a.mov(rax, qword_ptr(rdi))?;
        a.imul_2(r9, r8)?;
        a.xadd(r10, r9)?;
        a.mov(rbp, qword_ptr(rdi + 8))?;
        a.adc(r9, r10)?;
        a.mov(r14, qword_ptr(rdi + 24))
    }),
    ("with an index", |a| {
        a.mov(rax, qword_ptr(rdi + rdx * 4))?;
        a.mov(rbp, qword_ptr(rdi + rdx * 4 + 8))?;
        a.mov(dword_ptr(rsi), eax)?;
        a.mov(r14, qword_ptr(rdi + rdx * 4 + 16))?;
        a.mov(r13, qword_ptr(rdi + rdx * 4 + 8))
    }),
    ("a string between", |a| {
        a.mov(rax, qword_ptr(rdi))?;
        a.mov(r14, rdi)?;
        a.mov(ecx, 3)?;
        a.rep().stosb()?;
        a.mov(rdi, r14)?;
        a.xor(ecx, ecx)?;
        a.mov(rbp, qword_ptr(r14 + 8))
    }),
    ("an instruction for the interpreter between", |a| {
        a.mov(rax, qword_ptr(rdi))?;
        a.mov(rbp, qword_ptr(rdi + 8))?;
        a.enter(16, 1)?;
        a.leave()?;
        a.mov(r14, qword_ptr(rdi + 16))?;
        a.mov(r13, qword_ptr(rdi + 24))
    }),
    ("pushes between", |a| {
        a.mov(rax, qword_ptr(rdi))?;
        a.push(rax)?;
        a.mov(rbp, qword_ptr(rdi + 8))?;
        a.push(qword_ptr(rdi + 16))?;
        a.pop(r14)?;
        a.mov(r13, qword_ptr(rdi + 24))?;
        a.pop(r15)
    }),
    ("a branch between", |a| {
        let mut next = a.create_label();
        a.mov(rax, qword_ptr(rdi))?;
        a.cmp(qword_ptr(rdi + 8), rax)?;
        a.jb(next)?;
        a.mov(dword_ptr(rsi), eax)?;
        a.mov(rbp, qword_ptr(rdi + 16))?;
        a.set_label(&mut next)?;
        a.mov(r14, qword_ptr(rdi + 24))
    }),
    ("the last one first", |a| {
        a.mov(eax, dword_ptr(rsi))?;
        a.add(dword_ptr(rsi + 4), 5)?;
        a.mov(rbp, qword_ptr(rdi + 8))?;
        a.mov(r14, qword_ptr(rdi))
    }),
    ("the same bytes on two pages", |a| {
        a.mov(rax, qword_ptr(rdi + 0xff8))?;
        a.xor(dword_ptr(rdi + 0xffe), eax)?;
        a.mov(rbp, qword_ptr(rdi + 0x1000))
    }),
    ("the same bytes of a device, and by their address", |a| {
        a.mov(eax, dword_ptr(DEVICE + 0x10))?;
        a.add(qword_ptr(DATA + 0x20), rax)?;
        a.mov(rbp, qword_ptr(DATA + 0x28))
    }),
    ("a page that may not be written, at last", |a| {
        let mut next = a.create_label();
        a.mov(rax, qword_ptr(READ_ONLY + 8))?;
        a.cmp(rsi, DATA_END as i32 - 0x900)?;
        a.jb(next)?;
        a.mov(qword_ptr(READ_ONLY), rax)?;
        a.set_label(&mut next)?;
        a.mov(rbp, qword_ptr(READ_ONLY + 16))
    }),
    ("the page of the code", |a| {
        a.mov(rax, qword_ptr(CODE + 0xf00))?;
        a.lea(rbp, ptr(rax + rsi))?;
        a.mov(qword_ptr(CODE + 0xf08), rbp)
    }),
    ("a frame far away", |a| {
        let mut next = a.create_label();
        a.call(next)?;
        a.set_label(&mut next)?;
        a.mov(rax, qword_ptr(rsp - 0x600))?;
        a.mov(qword_ptr(rsp - 0x5f8), rsi)?;
        a.mov(rbp, qword_ptr(rsi + 0x700))?;
        a.add(rsp, 8)
    }),
];

#[test]
fn accesses_find_their_groups() {
    let mut bench = Bench::of((0..8).map(|bits| EngineOptions {
        late_slots: bits & 1 == 0,
        late_stores: bits & 2 == 0,
        slot_registers: bits != 6,
        hoisting: bits % 4 != 3,
        eager_prediction: bits != 7,
        traces: (bits & 2 != 0).then_some(2),
        long_blocks: bits & 4 != 0,
        registers: (bits % 3 == 1).then_some(1),
        counted: bits == 4,
        late_stack: bits != 5,
        cold: 0,
        ..EngineOptions::default()
    }));
    for (first_name, first) in ACCESSES {
        for (second_name, second) in ACCESSES {
            let code = walk(*first, *second, |_| Ok(()));
            bench.compare(&format!("{first_name}, {second_name}"), &code, 0);
        }
    }
}
