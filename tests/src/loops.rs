//! The loops that the benchmark measures. Each prints `begin NAME`, computes, and prints
//! `end NAME` with a checksum that tells whether it computed the right thing.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::elf::{BUFFER, exit, link, print, print_rbx};

/// One loop.
pub struct Loop {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub what: &'static str,
    /// Its program, for so many thousandths of the usual work.
    pub program: fn(u32) -> Result<Vec<u8>, IcedError>,
}

/// Every loop.
pub const LOOPS: &[Loop] = &[
    Loop {
        name: "integer",
        what: "shifts, adds, a table look-up and a branch that depends on data",
        program: integer,
    },
    Loop {
        name: "sse2",
        what: "double-precision multiply, add and divide, scalar and packed",
        program: sse2,
    },
    Loop {
        name: "store",
        what: "sequential 8-byte stores over 16 MiB",
        program: store,
    },
];

fn begin(a: &mut CodeAssembler, name: &str) -> Result<(), IcedError> {
    print(a, &format!("begin {name}\n"))
}

fn end(mut a: CodeAssembler, name: &str, buffer: u64) -> Result<Vec<u8>, IcedError> {
    print(&mut a, &format!("end {name} "))?;
    print_rbx(&mut a)?;
    exit(&mut a)?;
    link(a, buffer)
}

fn scaled(count: u32, scale: u32) -> u64 {
    (u64::from(count) * u64::from(scale) / 1000).max(1)
}

fn integer(scale: u32) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    begin(&mut a, "integer")?;
    let mut fill = a.create_label();
    let mut again = a.create_label();
    let mut even = a.create_label();
    a.mov(rbp, BUFFER)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut fill)?;
    a.imul_3(eax, ecx, 0x9e3b)?;
    a.mov(dword_ptr(rbp + rcx * 4), eax)?;
    a.inc(ecx)?;
    a.cmp(ecx, 1024)?;
    a.jne(fill)?;
    a.mov(rax, 0x1234_5678_9abc_def1u64)?;
    a.xor(ebx, ebx)?;
    a.mov(rcx, scaled(150_000_000, scale))?;
    a.set_label(&mut again)?;
    // Xorshift: each round depends on the one before.
    for (left, bits) in [(true, 13), (false, 7), (true, 17)] {
        a.mov(rdx, rax)?;
        if left {
            a.shl(rdx, bits)?;
        } else {
            a.shr(rdx, bits)?;
        }
        a.xor(rax, rdx)?;
    }
    a.mov(edx, eax)?;
    a.and(edx, 1023)?;
    a.mov(edx, dword_ptr(rbp + rdx * 4))?;
    a.add(rbx, rdx)?;
    a.test(al, 4)?;
    a.je(even)?;
    a.rol(rbx, 3)?;
    a.set_label(&mut even)?;
    a.dec(rcx)?;
    a.jne(again)?;
    end(a, "integer", 0x1000)
}

fn sse2(scale: u32) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    begin(&mut a, "sse2")?;
    let mut again = a.create_label();
    let constant = |a: &mut CodeAssembler, to, value: f64| -> Result<(), IcedError> {
        a.mov(rax, value.to_bits())?;
        a.movq(to, rax)
    };
    constant(&mut a, xmm0, 1.000_000_1)?;
    constant(&mut a, xmm1, 0.999_999_9)?;
    constant(&mut a, xmm2, 1.5)?;
    constant(&mut a, xmm3, 0.25)?;
    a.unpcklpd(xmm0, xmm0)?;
    a.movapd(xmm4, xmm2)?;
    a.unpcklpd(xmm4, xmm3)?;
    a.xorpd(xmm5, xmm5)?;
    a.mov(rcx, scaled(30_000_000, scale))?;
    a.set_label(&mut again)?;
    a.mulsd(xmm2, xmm1)?;
    a.addsd(xmm2, xmm3)?;
    a.mulpd(xmm4, xmm0)?;
    a.addpd(xmm5, xmm4)?;
    a.movapd(xmm6, xmm5)?;
    a.divsd(xmm6, xmm2)?;
    a.subpd(xmm4, xmm0)?;
    a.addsd(xmm5, xmm6)?;
    a.dec(rcx)?;
    a.jne(again)?;
    a.addsd(xmm5, xmm2)?;
    a.movq(rbx, xmm5)?;
    end(a, "sse2", 0)
}

const STORE_BYTES: u32 = 16 << 20;

fn store(scale: u32) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut touch = a.create_label();
    let mut pass = a.create_label();
    let mut again = a.create_label();
    let mut sum = a.create_label();
    // The kernel's page faults are not what is measured.
    a.mov(rdi, BUFFER)?;
    a.mov(rdx, BUFFER + u64::from(STORE_BYTES))?;
    a.set_label(&mut touch)?;
    a.mov(byte_ptr(rdi), 1)?;
    a.add(rdi, 4096)?;
    a.cmp(rdi, rdx)?;
    a.jb(touch)?;
    begin(&mut a, "store")?;
    a.mov(rdx, BUFFER + u64::from(STORE_BYTES))?;
    a.mov(rcx, scaled(300, scale))?;
    a.mov(rax, 0x0123_4567_89ab_cdefu64)?;
    a.set_label(&mut pass)?;
    a.mov(rdi, BUFFER)?;
    a.set_label(&mut again)?;
    a.mov(qword_ptr(rdi), rax)?;
    a.add(rax, rcx)?;
    a.add(rdi, 8)?;
    a.cmp(rdi, rdx)?;
    a.jb(again)?;
    a.dec(rcx)?;
    a.jne(pass)?;
    print(&mut a, "stored\n")?;
    a.mov(rdi, BUFFER)?;
    a.mov(rdx, BUFFER + u64::from(STORE_BYTES))?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut sum)?;
    a.rol(rbx, 1)?;
    a.add(rbx, qword_ptr(rdi))?;
    a.add(rdi, 8)?;
    a.cmp(rdi, rdx)?;
    a.jb(sum)?;
    end(a, "store", u64::from(STORE_BYTES))
}
