//! Which accesses data breakpoints see (SDM volume 3, 17.2.4 and 17.3.1.2): those of instructions,
//! explicit or not, and frames; not those to descriptor tables and TSS. What instructions of user
//! programs do was compared with a processor (Cascade Lake).

use dbt::guest::Exception;
use dbt::guest::flags::*;
use dbt::interpret::extension::Portable;
use dbt::interpret::system::deliver;

use crate::machine::*;

const AREA: u64 = 0x13_0000;

/// DR7 for eight bytes at DR0: stores, or loads and stores.
const STORES: u64 = 0x401 | 9 << 16;
const ACCESSES: u64 = 0x401 | 0xb << 16;

/// Watches eight bytes.
fn watch(m: &mut Machine, at: u64, control: u64) {
    m.cpu.control.dr[0] = at;
    m.cpu.control.dr[7] = control;
    m.cpu.refresh_mode();
}

/// What a breakpoint sees.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Seen {
    Nothing,
    Load,
    Store,
}
use Seen::*;

/// 64-bit code with RBX, RSI, RDI and RSP at the area, RAX of its own, RCX and RDX 0, and where
/// the eight bytes are.
type Case = (&'static str, &'static [u8], u64, u64, Seen);

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("mov [rbx], rax", &[0x48, 0x89, 0x03], 0, 0, Store),
    ("mov rax, [rbx]", &[0x48, 0x8b, 0x03], 0, 0, Load),
    ("mov [rbx], al, beside", &[0x88, 0x03], 0, 8, Nothing),
    ("add [rbx], rax", &[0x48, 0x01, 0x03], 0, 0, Store),
    ("cmp [rbx], rax", &[0x48, 0x39, 0x03], 0, 0, Load),
    ("cmpxchg [rbx], rcx, unequal", &[0x48, 0x0f, 0xb1, 0x0b], 7, 0, Store),
    ("cmpxchg16b [rbx], unequal", &[0x48, 0x0f, 0xc7, 0x0b], 7, 8, Store),
    ("bt [rbx], rcx", &[0x48, 0x0f, 0xa3, 0x0b], 0, 0, Load),
    ("bts [rbx], rax, the second word", &[0x48, 0x0f, 0xab, 0x03], 64, 8, Store),
    ("cmovnz rax, [rbx], not taken", &[0x48, 0x0f, 0x45, 0x03], 0, 0, Load),
    ("nop [rbx]", &[0x0f, 0x1f, 0x03], 0, 0, Nothing),
    ("prefetcht0 [rbx]", &[0x0f, 0x18, 0x0b], 0, 0, Nothing),
    ("clflush [rbx]", &[0x0f, 0xae, 0x3b], 0, 0, Load),
    ("clflush [rbx], another byte of the line", &[0x0f, 0xae, 0x3b], 0, 8, Nothing),
    ("clflushopt [rbx]", &[0x66, 0x0f, 0xae, 0x3b], 0, 0, Load),
    ("xlatb", &[0xd7], 0, 0, Load),
    // The stack; RSP is 256 bytes into the area.
    ("push rax", &[0x50], 0, 248, Store),
    ("push [rbx], the operand", &[0xff, 0x33], 0, 0, Load),
    ("push [rbx], the slot", &[0xff, 0x33], 0, 248, Store),
    ("pop rax", &[0x58], 0, 256, Load),
    ("pop [rbx]", &[0x8f, 0x03], 0, 0, Store),
    ("pushfq", &[0x9c], 0, 248, Store),
    ("call", &[0xe8, 0, 0, 0, 0], 0, 248, Store),
    ("call [rbx], the operand", &[0xff, 0x13], 0, 0, Load),
    ("ret", &[0xc3], 0, 256, Load),
    ("leave", &[0xc9], 0, 128, Load),
    ("enter 64, 0, RBP", &[0xc8, 64, 0, 0], 0, 248, Store),
    ("enter 64, 0, the new top", &[0xc8, 64, 0, 0], 0, 184, Nothing),
    ("enter 0, 2, the old frame", &[0xc8, 0, 0, 2], 0, 120, Load),
    ("enter 0, 2, its copy", &[0xc8, 0, 0, 2], 0, 240, Store),
    ("iretq", &[0x48, 0xcf], 0, 280, Load),
    // Strings.
    ("lodsq", &[0x48, 0xad], 0, 0, Load),
    ("stosq", &[0x48, 0xab], 0, 0, Store),
    ("scasq", &[0x48, 0xaf], 0, 0, Load),
    ("rep stosq of none", &[0xf3, 0x48, 0xab], 0, 0, Nothing),
    // States. FCW masks all.
    ("fxsave", &[0x0f, 0xae, 0x03], 0, 8, Store),
    ("fxsave, the reserved end", &[0x0f, 0xae, 0x03], 0, 416, Nothing),
    ("fxrstor", &[0x0f, 0xae, 0x0b], 0, 8, Load),
    ("fxrstor, the reserved end", &[0x0f, 0xae, 0x0b], 0, 416, Nothing),
    ("xsave of x87 and SSE, the header", &[0x0f, 0xae, 0x23], 3, 512, Store),
    ("xsave of x87 and SSE, behind the bitmap", &[0x0f, 0xae, 0x23], 3, 520, Nothing),
    ("xsave of AVX, FIP", &[0x0f, 0xae, 0x23], 4, 8, Nothing),
    ("xsave of AVX, MXCSR", &[0x0f, 0xae, 0x23], 4, 24, Store),
    ("xsave of x87, MXCSR", &[0x0f, 0xae, 0x23], 1, 24, Nothing),
    ("xsave of x87, XMM0", &[0x0f, 0xae, 0x23], 1, 160, Nothing),
    ("xrstor of AVX, FIP", &[0x0f, 0xae, 0x2b], 4, 8, Nothing),
    ("xrstor of AVX, MXCSR", &[0x0f, 0xae, 0x2b], 4, 24, Load),
    ("xrstor of x87, FIP", &[0x0f, 0xae, 0x2b], 1, 8, Load),
    ("xrstor of x87, MXCSR", &[0x0f, 0xae, 0x2b], 1, 24, Nothing),
    ("xrstor of x87, XMM0", &[0x0f, 0xae, 0x2b], 1, 160, Nothing),
    ("xrstor of x87 and SSE, XMM0, which is initial", &[0x0f, 0xae, 0x2b], 3, 160, Nothing),
    ("xrstor, the header's third word", &[0x0f, 0xae, 0x2b], 3, 528, Load),
    ("xrstor, the header's fourth word", &[0x0f, 0xae, 0x2b], 3, 536, Nothing),
    ("stmxcsr [rbx]", &[0x0f, 0xae, 0x1b], 0, 0, Store),
    ("fnstenv [rbx]", &[0xd9, 0x33], 0, 24, Store),
    ("fldcw [rbx + 640]", &[0xd9, 0xab, 0x80, 2, 0, 0], 0, 640, Load),
    // Vectors; YMM0 is zero, and selects nothing.
    ("maskmovdqu xmm0, xmm0", &[0x66, 0x0f, 0xf7, 0xc0], 0, 0, Nothing),
    ("vmaskmovps [rbx], ymm0, ymm0", &[0xc4, 0xe2, 0x7d, 0x2e, 0x03], 0, 0, Nothing),
    ("vmaskmovps ymm1, ymm0, [rbx]", &[0xc4, 0xe2, 0x7d, 0x2c, 0x0b], 0, 0, Nothing),
    ("movups [rbx], xmm0", &[0x0f, 0x11, 0x03], 0, 8, Store),
    ("sgdt [rbx]", &[0x0f, 0x01, 0x03], 0, 0, Store),
];

fn machine() -> Machine {
    let mut m = Machine::long(0);
    let cpu = &mut m.cpu;
    cpu.control.cr4 |= CR4_OSFXSR | CR4_OSXSAVE;
    cpu.control.xcr0 = 7;
    cpu.vector.fxsave.0[..2].copy_from_slice(&0x37fu16.to_le_bytes());
    (cpu.gpr[1], cpu.gpr[2]) = (0, 0);
    for number in [3, 6, 7] {
        cpu.gpr[number] = AREA;
    }
    (cpu.gpr[4], cpu.gpr[5]) = (AREA + 256, AREA + 128);
    // A frame of IRETQ, MXCSR and an XSAVE header with the x87 in use, and a control word.
    m.write(AREA + 256, 8, CODE);
    m.write(AREA + 264, 8, LONG_CODE0.into());
    m.write(AREA + 272, 8, 2);
    m.write(AREA + 280, 8, AREA);
    m.write(AREA + 288, 8, LONG_DATA0.into());
    m.write(AREA + 24, 4, 0x1f80);
    m.write(AREA + 512, 8, 1);
    m.write(AREA + 640, 2, 0x37f);
    m
}

#[test]
fn instructions_are_seen() {
    for portable in [false, true] {
        let _portable = Portable::set(portable);
        for &(name, code, rax, offset, seen) in CASES {
            for (control, expected) in [(STORES, seen == Store), (ACCESSES, seen != Nothing)] {
                let mut m = machine();
                m.cpu.gpr[0] = rax;
                watch(&mut m, AREA + offset, control);
                m.run(code);
                let matched = m.cpu.pending_debug & 1 != 0;
                assert_eq!(matched, expected, "{name}, {control:#x}, {portable}");
            }
        }
    }
}

/// An x87 store that an unmasked exception prevents is none; #P does not prevent it.
#[test]
fn prevented_stores_are_not_seen() {
    for portable in [false, true] {
        let _portable = Portable::set(portable);
        // fstp qword [rbx] of an empty register; fldpi; fst dword [rbx]
        for (control, load, store, expected) in [
            (0x37eu16, &[0xd9, 0xd0], &[0xdd, 0x1b], 0),
            (0x37f, &[0xd9, 0xd0], &[0xdd, 0x1b], 1),
            (0x35f, &[0xd9, 0xeb], &[0xd9, 0x13], 1),
        ] {
            let mut m = machine();
            m.cpu.vector.fxsave.0[..2].copy_from_slice(&control.to_le_bytes());
            watch(&mut m, AREA, ACCESSES);
            m.run(load);
            m.run(store);
            assert_eq!(m.cpu.pending_debug, expected, "{control:#x}, {portable}");
        }
    }
}

/// Frames are seen wherever they go; what leads to them is not.
#[test]
fn frames_are_seen_and_tables_are_not() {
    const DIVIDE: &[u8] = &[0xf7, 0xf1]; // div ecx
    const INT: &[u8] = &[0xcd, 0x31];
    let far = |selector: u16| {
        let [low, high] = selector.to_le_bytes();
        [0x9a, 0, 0, 0, 0, low | 3, high]
    };
    let gate = far(CALL_GATE);
    let entry = |selector: u16| GDT + u64::from(selector & 0xfff8);
    // Ring, code, address, whether an access is seen.
    let cases: &[(&str, u8, &[u8], u64, bool)] = &[
        ("#DE, the flags", 0, DIVIDE, KERNEL_STACK - 8, true),
        ("#DE from ring 3, SS", 3, DIVIDE, KERNEL_STACK - 8, true),
        (
            "#DE from ring 3, the old stack",
            3,
            DIVIDE,
            USER_STACK - 8,
            false,
        ),
        ("INT, CS", 3, INT, KERNEL_STACK - 16, true),
        ("INT, the gate", 3, INT, IDT + 8 * 0x31, false),
        ("INT, the code segment", 3, INT, entry(CODE0), false),
        ("INT, the stack segment", 3, INT, entry(DATA0), false),
        ("INT, ESP0", 3, INT, TSS_A, false),
        ("call gate, a parameter", 3, &gate, USER_STACK, true),
        ("call gate, its copy", 3, &gate, KERNEL_STACK - 16, true),
        ("call gate, itself", 3, &gate, entry(CALL_GATE), false),
        ("mov ds, eax", 0, &[0x8e, 0xd8], entry(DATA0), false),
    ];
    for &(name, ring, code, at, expected) in cases {
        let mut m = Machine::protected(ring);
        m.cpu.gpr[0] = DATA0.into();
        m.cpu.gpr[1] = 0;
        watch(&mut m, at, ACCESSES);
        m.step_and_deliver(code).unwrap();
        assert_eq!(m.cpu.pending_debug & 1 != 0, expected, "{name}");
    }
}

/// A gather that faults behind an element that was watched traps first, to go on with the fault
/// (SDM volume 2, VGATHERDPS).
#[test]
fn gathers_trap_instead_of_the_fault() {
    // vpgatherdd xmm2, [rbx + xmm1 * 4], xmm0
    const GATHER: &[u8] = &[0xc4, 0xe2, 0x79, 0x90, 0x14, 0x8b];
    for (element, first) in [(0, true), (0x1000_0000u64, false)] {
        let mut m = machine();
        m.cpu.vector.ymm[0] = [u64::MAX; 4];
        // The first element is the area's start; the second one, beyond a gigabyte, is not mapped.
        m.cpu.vector.ymm[1] = [0x1000_0000 << 32, 0, 0, 0];
        watch(&mut m, AREA + 4 * element, ACCESSES);
        let start = m.cpu.rip;
        let result = m.step(GATHER);
        assert_eq!(m.cpu.rip, start);
        if !first {
            assert_eq!(result.unwrap_err().vector, Exception::PF);
            assert_eq!(m.cpu.pending_debug, 0);
            continue;
        }
        assert_eq!((result, m.cpu.pending_debug), (Ok(()), 1));
        assert_eq!(deliver::pending(&mut m.context()), Ok(true));
        let frame = m.stack(8, 3);
        assert_eq!((frame[0], frame[2] & RF), (start, RF));
        m.cpu.rip = start;
        assert_eq!(m.step(GATHER).unwrap_err().vector, Exception::PF);
    }
}
