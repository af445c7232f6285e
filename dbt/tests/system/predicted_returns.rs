//! Returns that go elsewhere than behind the call that they seem to belong to, and calls whose
//! surroundings change before they return: what emitted code predicts must not be seen.

use dbt::{EngineOptions, Stop};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use mmu::GuestPhys;

use crate::common::{TRANSLATES, run_for};
use crate::machine::*;

const STACK: u64 = 0x1f_0000;
const OTHER_STACK: u64 = 0x1e_0000;
/// A page of code that is mapped at another address, too, and another one in its place later.
const LINEAR: u64 = 0x4000_0000;
const DIRECTORY: u64 = 0x10_0000;
const TABLE: u64 = 0x10_1000;
const FRAMES: [u64; 2] = [0x11_0000, 0x11_1000];
const ROUNDS: u32 = 40;

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Deeper than any stack of predictions.
fn deep(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut function, mut out, mut again) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(r8d, 3)?;
    a.set_label(&mut again)?;
    a.mov(ecx, 20_000)?;
    a.call(function)?;
    a.dec(r8d)?;
    a.jne(again)?;
    a.hlt()?;
    a.set_label(&mut function)?;
    a.dec(ecx)?;
    a.je(out)?;
    a.call(function)?;
    a.inc(rax)?;
    a.set_label(&mut out)?;
    a.ret()
}

/// The function returns three bytes behind its call, over an instruction.
fn rewritten(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut function, mut again) = (a.create_label(), a.create_label());
    a.mov(ecx, ROUNDS)?;
    a.set_label(&mut again)?;
    a.call(function)?;
    a.inc(rbx)?;
    a.inc(rdx)?;
    a.dec(ecx)?;
    a.jne(again)?;
    a.hlt()?;
    a.set_label(&mut function)?;
    a.add(qword_ptr(rsp), 3)?;
    a.ret()
}

/// Returns without calls, also to address 0, between calls that return as they should.
fn without_calls(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut function, mut again, mut behind, mut zero) = (
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
    );
    // What is at address 0: inc rdx; ret.
    a.mov(dword_ptr(0u64), 0xc3_c2_ff_48u32 as i32)?;
    a.mov(ecx, ROUNDS)?;
    a.set_label(&mut again)?;
    a.call(function)?;
    a.lea(rax, ptr(behind))?;
    a.push(rax)?;
    a.ret()?;
    a.inc(rbx)?;
    a.set_label(&mut behind)?;
    a.lea(rax, ptr(zero))?;
    a.push(rax)?;
    a.push(0)?;
    a.ret()?;
    a.set_label(&mut zero)?;
    a.call(function)?;
    a.dec(ecx)?;
    a.jne(again)?;
    a.hlt()?;
    a.set_label(&mut function)?;
    a.inc(r9)?;
    a.ret_1(0)
}

/// Leaves three functions at once, as longjmp does, below others that return.
fn unwound(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut outer, mut inner, mut innermost) =
        (a.create_label(), a.create_label(), a.create_label());
    let (mut again, mut landed) = (a.create_label(), a.create_label());
    a.mov(ecx, ROUNDS)?;
    a.set_label(&mut again)?;
    a.call(outer)?;
    a.inc(rdx)?;
    a.dec(ecx)?;
    a.jne(again)?;
    a.hlt()?;
    a.set_label(&mut outer)?;
    a.mov(r8, rsp)?;
    a.call(inner)?;
    a.inc(rbx)?;
    a.set_label(&mut landed)?;
    a.inc(rsi)?;
    a.ret()?;
    a.set_label(&mut inner)?;
    a.call(innermost)?;
    a.inc(rbx)?;
    a.ret()?;
    a.set_label(&mut innermost)?;
    a.mov(rsp, r8)?;
    a.jmp(landed)
}

/// Two threads of control that hand over to each other within a function.
fn coroutines(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut yielding, mut second, mut again) =
        (a.create_label(), a.create_label(), a.create_label());
    a.mov(ecx, ROUNDS)?;
    a.mov(r8, OTHER_STACK - 8)?;
    a.lea(rax, ptr(second))?;
    a.mov(qword_ptr(r8), rax)?;
    a.set_label(&mut again)?;
    a.call(yielding)?;
    a.lea(rbx, ptr(rbx * 2 + 1))?;
    a.dec(ecx)?;
    a.jne(again)?;
    a.hlt()?;
    a.set_label(&mut second)?;
    a.lea(rbx, ptr(rbx * 2 + 2))?;
    a.call(yielding)?;
    a.jmp(second)?;
    a.set_label(&mut yielding)?;
    a.xchg(rsp, r8)?;
    a.ret()
}

/// The function rewrites what its return leads to: inc rbx becomes inc rdx and back.
fn overwritten(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut function, mut again) = (a.create_label(), a.create_label());
    a.mov(ecx, ROUNDS)?;
    a.set_label(&mut again)?;
    a.call(function)?;
    a.inc(rbx)?;
    a.dec(ecx)?;
    a.jne(again)?;
    a.hlt()?;
    a.set_label(&mut function)?;
    a.mov(rax, qword_ptr(rsp))?;
    a.mov(r8d, ecx)?;
    a.and(r8d, 4)?;
    a.shr(r8d, 2)?;
    a.add(r8d, 0xc2)?;
    a.mov(byte_ptr(rax + 2), r8b)?;
    a.ret()
}

/// The function has the caller's page mapped elsewhere: there the return leads to other code.
fn remapped(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut function, mut again) = (a.create_label(), a.create_label());
    a.mov(r10, TABLE)?;
    a.mov(r11, LINEAR)?;
    a.lea(r12, ptr(function))?;
    a.mov(ecx, ROUNDS)?;
    a.set_label(&mut again)?;
    a.call(r11)?;
    a.dec(ecx)?;
    a.jne(again)?;
    a.hlt()?;
    // Called by the page at LINEAR.
    a.set_label(&mut function)?;
    a.mov(eax, ecx)?;
    a.shr(eax, 2)?;
    a.and(eax, 1)?;
    a.shl(eax, 12)?;
    a.add(rax, FRAMES[0] as i32 + 7)?;
    a.mov(qword_ptr(r10), rax)?;
    a.invlpg(ptr(r11))?;
    a.ret()
}

/// call r12; then inc rbx, or inc rdx; ret.
const CALLERS: [&[u8]; 2] = [
    &[0x41, 0xff, 0xd4, 0x48, 0xff, 0xc3, 0xc3],
    &[0x41, 0xff, 0xd4, 0x48, 0xff, 0xc2, 0xc3],
];

fn start(program: Program, options: EngineOptions) -> dbt::Vcpu {
    let mut m = Machine::long(0);
    m.write(PAGES + 0x1008, 8, DIRECTORY | 7);
    m.write(DIRECTORY, 8, TABLE | 7);
    m.write(TABLE, 8, FRAMES[0] | 7);
    let mut assembler = CodeAssembler::new(64).unwrap();
    program(&mut assembler).unwrap();
    let code = assembler.assemble(CODE).unwrap();
    for (at, bytes) in [
        (CODE, &code[..]),
        (FRAMES[0], CALLERS[0]),
        (FRAMES[1], CALLERS[1]),
    ] {
        for (offset, byte) in bytes.iter().enumerate() {
            m.write(at + offset as u64, 1, u64::from(*byte));
        }
    }
    m.cpu.gpr = [0; 16];
    m.cpu.gpr[4] = STACK;
    m.into_vcpu(options)
}

fn run(program: Program, options: EngineOptions) -> ([u64; 16], u64) {
    let mut vcpu = start(program, options);
    vcpu.set_goal(1_000_000);
    assert_eq!(vcpu.run(), Stop::Halted);
    let top = vcpu.mem.load_uint(GuestPhys(STACK - 8), 8).unwrap();
    (vcpu.cpu().gpr, top)
}

#[test]
fn returns_go_where_the_stack_says() {
    let programs: [(Program, &str); 7] = [
        (deep, "deep"),
        (rewritten, "rewritten"),
        (without_calls, "without calls"),
        (unwound, "unwound"),
        (coroutines, "coroutines"),
        (overwritten, "overwritten"),
        (remapped, "remapped"),
    ];
    for (program, name) in programs {
        let interpreted = run(
            program,
            EngineOptions {
                interpret_only: true,
                counted: true,
                code_bytes: 2 << 20,
                ..EngineOptions::default()
            },
        );
        for (returns, counted, cold, long_traces) in [
            (true, false, 0, None),
            (true, false, 0, Some(3)),
            (true, true, 0, None),
            (true, true, 0, Some(5)),
            (true, false, 2, Some(20)),
            (false, false, 0, None),
            (false, false, 0, Some(3)),
        ] {
            let options = EngineOptions {
                returns,
                counted,
                cold,
                long_traces,
                samples: false,
                traces: Some(4),
                code_bytes: 2 << 20,
                ..EngineOptions::default()
            };
            let translated = run(program, options);
            assert_eq!(
                translated, interpreted,
                "{name}, returns {returns}, counted {counted}, cold {cold}, {long_traces:?}"
            );
        }
    }
}

/// Sixty functions of one page that call the next one twice each: 2^60 calls forward and returns, none
/// of them a jump back.
fn doubling(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for _ in 0..60 {
        let mut next = a.create_label();
        a.call(next)?;
        a.call(next)?;
        a.ret()?;
        a.set_label(&mut next)?;
    }
    a.ret()
}

#[test]
fn calls_alone_do_not_go_on_for_ever() {
    for returns in [true, false] {
        let options = EngineOptions {
            returns,
            cold: 0,
            long_traces: Some(2),
            samples: false,
            code_bytes: 2 << 20,
            ..EngineOptions::default()
        };
        let mut vcpu = start(doubling, options);
        assert_eq!(run_for(&mut vcpu, 50), Stop::Requested);
    }
}

/// No code of it counts how often it is entered until a sample has found the processor there.
#[test]
fn where_samples_find_the_processor_traces_are_made() {
    if !TRANSLATES {
        return;
    }
    let options = EngineOptions {
        cold: 0,
        long_traces: Some(64),
        samples: true,
        code_bytes: 2 << 20,
        ..EngineOptions::default()
    };
    let mut vcpu = start(doubling, options);
    let made = (0..200).any(|_| {
        assert_eq!(run_for(&mut vcpu, 50), Stop::Requested);
        vcpu.statistics().traces > 0
    });
    assert!(made, "ten seconds without a sample");
}
