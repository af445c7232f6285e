//! The program: rounds of a sieve, copies, checksums, a linked list, recursion and a matrix
//! product, each folded into a digest. `expected.rs` says the same in Rust.
//!
//! Registers kept throughout: R12 the digest, R13 the round, R15 the digest's factor.

use iced_x86::code_asm::*;

use super::RESULT;
use super::layout::*;
use crate::AssembleError;

/// The routines, by label.
struct Routines {
    mix: CodeLabel,
    fill: CodeLabel,
    checksum: CodeLabel,
    sieve: CodeLabel,
    list: CodeLabel,
    fibonacci: CodeLabel,
    matrix: CodeLabel,
    print_text: CodeLabel,
    print_hex: CodeLabel,
    print_decimal: CodeLabel,
}

pub fn assemble(rounds: u32) -> Result<Vec<u8>, AssembleError> {
    let mut a = CodeAssembler::new(64)?;
    let mut routines = Routines {
        mix: a.create_label(),
        fill: a.create_label(),
        checksum: a.create_label(),
        sieve: a.create_label(),
        list: a.create_label(),
        fibonacci: a.create_label(),
        matrix: a.create_label(),
        print_text: a.create_label(),
        print_hex: a.create_label(),
        print_decimal: a.create_label(),
    };
    rounds_loop(&mut a, &routines, rounds)?;

    // R12 = (R12 rotated by 13, xor RAX) * R15.
    a.set_label(&mut routines.mix)?;
    a.rol(r12, 13)?;
    a.xor(r12, rax)?;
    a.imul_2(r12, r15)?;
    a.ret()?;

    fill(&mut a, &mut routines.fill)?;
    checksum(&mut a, &mut routines.checksum)?;
    sieve(&mut a, &mut routines.sieve)?;
    list(&mut a, &mut routines.list)?;
    fibonacci(&mut a, &mut routines.fibonacci)?;
    matrix(&mut a, &mut routines.matrix)?;
    printing(&mut a, &mut routines)?;
    Ok(a.assemble(USER_TEXT)?)
}

fn rounds_loop(
    a: &mut CodeAssembler,
    routines: &Routines,
    rounds: u32,
) -> Result<(), AssembleError> {
    let mut round = a.create_label();
    let (mut title, mut of, mut digest, mut result, mut end) = (
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
    );
    a.mov(r12, SEED)?;
    a.mov(r15, FACTOR)?;
    a.mov(r13d, 1)?;
    a.set_label(&mut round)?;
    a.call(routines.fill)?;
    a.call(routines.checksum)?;
    a.call(routines.mix)?;
    a.call(routines.sieve)?;
    a.call(routines.mix)?;
    a.call(routines.list)?;
    a.call(routines.mix)?;
    a.mov(edi, FIBONACCI as i32)?;
    a.call(routines.fibonacci)?;
    a.call(routines.mix)?;
    a.call(routines.matrix)?;
    a.call(routines.mix)?;
    a.mov(eax, CALL_STIR)?;
    a.mov(rdi, r12)?;
    a.int(i32::from(SYSTEM_CALL))?;
    a.call(routines.mix)?;

    a.lea(rdi, ptr(title))?;
    a.call(routines.print_text)?;
    a.mov(eax, r13d)?;
    a.call(routines.print_decimal)?;
    a.lea(rdi, ptr(of))?;
    a.call(routines.print_text)?;
    a.mov(eax, rounds as i32)?;
    a.call(routines.print_decimal)?;
    a.lea(rdi, ptr(digest))?;
    a.call(routines.print_text)?;
    a.call(routines.print_hex)?;
    a.inc(r13d)?;
    a.cmp(r13d, rounds as i32)?;
    a.jbe(round)?;

    a.lea(rdi, ptr(result))?;
    a.call(routines.print_text)?;
    a.call(routines.print_hex)?;
    a.mov(eax, CALL_EXIT)?;
    a.xor(edi, edi)?;
    a.int(i32::from(SYSTEM_CALL))?;
    a.set_label(&mut end)?;
    a.jmp(end)?;

    let mut text = |label: &mut CodeLabel, text: &str| -> Result<(), AssembleError> {
        a.set_label(label)?;
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        a.db(&bytes)?;
        Ok(())
    };
    text(&mut title, "round ")?;
    text(&mut of, " of ")?;
    text(&mut digest, ": digest ")?;
    text(&mut result, RESULT)
}

/// Pseudo-random words (xorshift64), from the digest.
fn fill(a: &mut CodeAssembler, entry: &mut CodeLabel) -> Result<(), AssembleError> {
    let mut next = a.create_label();
    a.set_label(entry)?;
    a.mov(rdi, WORDS)?;
    a.mov(ecx, WORD_COUNT as i32)?;
    a.mov(rax, r12)?;
    a.or(rax, 1)?;
    a.set_label(&mut next)?;
    a.mov(rdx, rax)?;
    a.shl(rdx, 13)?;
    a.xor(rax, rdx)?;
    a.mov(rdx, rax)?;
    a.shr(rdx, 7)?;
    a.xor(rax, rdx)?;
    a.mov(rdx, rax)?;
    a.shl(rdx, 17)?;
    a.xor(rax, rdx)?;
    a.mov(qword_ptr(rdi), rax)?;
    a.add(rdi, 8)?;
    a.dec(ecx)?;
    a.jnz(next)?;
    a.ret()?;
    Ok(())
}

/// Copies the words with REP MOVSQ, and RAX = a hash of the copy.
fn checksum(a: &mut CodeAssembler, entry: &mut CodeLabel) -> Result<(), AssembleError> {
    let mut next = a.create_label();
    a.set_label(entry)?;
    a.mov(rsi, WORDS)?;
    a.mov(rdi, COPY)?;
    a.mov(ecx, WORD_COUNT as i32)?;
    a.rep().movsq()?;
    a.mov(rsi, COPY)?;
    a.mov(ecx, WORD_COUNT as i32)?;
    a.mov(rax, FNV_OFFSET)?;
    a.mov(rdx, FNV_PRIME)?;
    a.set_label(&mut next)?;
    a.xor(rax, qword_ptr(rsi))?;
    a.imul_2(rax, rdx)?;
    a.add(rsi, 8)?;
    a.dec(ecx)?;
    a.jnz(next)?;
    a.ret()?;
    Ok(())
}

/// RAX = how many primes there are below the limit.
fn sieve(a: &mut CodeAssembler, entry: &mut CodeLabel) -> Result<(), AssembleError> {
    let (mut number, mut mark, mut next, mut marked, mut count) = (
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
    );
    a.set_label(entry)?;
    a.mov(rdi, SIEVE)?;
    a.mov(rbx, rdi)?;
    a.mov(ecx, SIEVE_LIMIT as i32)?;
    a.mov(al, 1)?;
    a.rep().stosb()?;
    a.mov(r8d, 2)?;
    a.set_label(&mut number)?;
    a.mov(rax, r8)?;
    a.imul_2(rax, r8)?;
    a.cmp(rax, SIEVE_LIMIT as i32)?;
    a.jae(marked)?;
    a.cmp(byte_ptr(rbx + r8), 0)?;
    a.je(next)?;
    a.set_label(&mut mark)?;
    a.mov(byte_ptr(rbx + rax), 0)?;
    a.add(rax, r8)?;
    a.cmp(rax, SIEVE_LIMIT as i32)?;
    a.jb(mark)?;
    a.set_label(&mut next)?;
    a.inc(r8)?;
    a.jmp(number)?;
    a.set_label(&mut marked)?;
    a.xor(eax, eax)?;
    a.mov(ecx, 2)?;
    a.set_label(&mut count)?;
    a.movzx(edx, byte_ptr(rbx + rcx))?;
    a.add(rax, rdx)?;
    a.inc(ecx)?;
    a.cmp(ecx, SIEVE_LIMIT as i32)?;
    a.jb(count)?;
    a.ret()?;
    Ok(())
}

/// Links the nodes in a pseudo-random order, and RAX = a sum along the list.
fn list(a: &mut CodeAssembler, entry: &mut CodeLabel) -> Result<(), AssembleError> {
    let (mut link, mut walk) = (a.create_label(), a.create_label());
    a.set_label(entry)?;
    a.mov(rbx, LIST)?;
    a.mov(rsi, WORDS)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut link)?;
    a.imul_3(eax, ecx, LIST_FACTOR as i32)?;
    a.add(eax, LIST_STEP as i32)?;
    a.and(eax, LIST_NODES as i32 - 1)?;
    a.shl(rax, 4)?;
    a.add(rax, rbx)?;
    a.mov(rdx, rcx)?;
    a.shl(rdx, 4)?;
    a.mov(qword_ptr(rbx + rdx), rax)?;
    a.mov(rax, qword_ptr(rsi + rcx * 8))?;
    a.mov(qword_ptr(rbx + rdx + 8), rax)?;
    a.inc(ecx)?;
    a.cmp(ecx, LIST_NODES as i32)?;
    a.jb(link)?;
    a.xor(eax, eax)?;
    a.set_label(&mut walk)?;
    a.rol(rax, 1)?;
    a.add(rax, qword_ptr(rbx + 8))?;
    a.mov(rbx, qword_ptr(rbx))?;
    a.dec(ecx)?;
    a.jnz(walk)?;
    a.ret()?;
    Ok(())
}

/// RAX = the Fibonacci number of EDI, by recursion.
fn fibonacci(a: &mut CodeAssembler, entry: &mut CodeLabel) -> Result<(), AssembleError> {
    let mut recurse = a.create_label();
    a.set_label(entry)?;
    a.cmp(edi, 2)?;
    a.jae(recurse)?;
    a.mov(eax, edi)?;
    a.ret()?;
    a.set_label(&mut recurse)?;
    a.push(rbx)?;
    a.push(rdi)?;
    a.dec(edi)?;
    a.call(*entry)?;
    a.mov(rbx, rax)?;
    a.pop(rdi)?;
    a.sub(edi, 2)?;
    a.call(*entry)?;
    a.add(rax, rbx)?;
    a.pop(rbx)?;
    a.ret()?;
    Ok(())
}

/// Multiplies two matrices of small whole numbers, two columns at a time (SSE2), and RAX = a sum
/// over the product, which is exact.
fn matrix(a: &mut CodeAssembler, entry: &mut CodeLabel) -> Result<(), AssembleError> {
    let order = ORDER as i32;
    let (mut number, mut row, mut column, mut term, mut total) = (
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
    );
    a.set_label(entry)?;
    a.mov(rsi, WORDS)?;
    a.mov(r8, LEFT)?;
    a.mov(r9, RIGHT)?;
    a.mov(r10, PRODUCT)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut number)?;
    a.mov(eax, dword_ptr(rsi + rcx * 8))?;
    a.and(eax, 1023)?;
    a.cvtsi2sd(xmm0, eax)?;
    a.movsd_2(qword_ptr(r8 + rcx * 8), xmm0)?;
    a.mov(eax, dword_ptr(rsi + rcx * 8 + 4))?;
    a.and(eax, 1023)?;
    a.cvtsi2sd(xmm0, eax)?;
    a.movsd_2(qword_ptr(r9 + rcx * 8), xmm0)?;
    a.inc(ecx)?;
    a.cmp(ecx, order * order)?;
    a.jb(number)?;

    a.xor(ecx, ecx)?; // row
    a.set_label(&mut row)?;
    a.xor(edx, edx)?; // column
    a.set_label(&mut column)?;
    a.xorpd(xmm0, xmm0)?;
    a.mov(rdi, r8)?;
    a.lea(rsi, qword_ptr(r9 + rdx * 8))?;
    a.mov(eax, order)?;
    a.set_label(&mut term)?;
    a.movsd_2(xmm1, qword_ptr(rdi))?;
    a.unpcklpd(xmm1, xmm1)?;
    a.movupd(xmm2, xmmword_ptr(rsi))?;
    a.mulpd(xmm1, xmm2)?;
    a.addpd(xmm0, xmm1)?;
    a.add(rdi, 8)?;
    a.add(rsi, order * 8)?;
    a.dec(eax)?;
    a.jnz(term)?;
    a.movupd(xmmword_ptr(r10 + rdx * 8), xmm0)?;
    a.add(edx, 2)?;
    a.cmp(edx, order)?;
    a.jb(column)?;
    a.add(r8, order * 8)?;
    a.add(r10, order * 8)?;
    a.inc(ecx)?;
    a.cmp(ecx, order)?;
    a.jb(row)?;

    a.mov(rsi, PRODUCT)?;
    a.mov(ecx, order * order)?;
    a.xor(eax, eax)?;
    a.set_label(&mut total)?;
    a.cvttsd2si(rdx, qword_ptr(rsi))?;
    a.rol(rax, 3)?;
    a.add(rax, rdx)?;
    a.add(rsi, 8)?;
    a.dec(ecx)?;
    a.jnz(total)?;
    a.ret()?;
    Ok(())
}

fn printing(a: &mut CodeAssembler, routines: &mut Routines) -> Result<(), AssembleError> {
    // The text at RDI, up to a zero.
    let mut done = a.create_label();
    a.set_label(&mut routines.print_text)?;
    a.movzx(esi, byte_ptr(rdi))?;
    a.test(esi, esi)?;
    a.jz(done)?;
    a.mov(eax, CALL_PRINT)?;
    a.int(i32::from(SYSTEM_CALL))?;
    a.inc(rdi)?;
    a.jmp(routines.print_text)?;
    a.set_label(&mut done)?;
    a.ret()?;

    // The digest in 16 hexadecimal digits, and a line feed.
    let (mut digit, mut decimal) = (a.create_label(), a.create_label());
    a.set_label(&mut routines.print_hex)?;
    a.mov(r14d, 16)?;
    a.mov(rdx, r12)?;
    a.set_label(&mut digit)?;
    a.rol(rdx, 4)?;
    a.mov(esi, edx)?;
    a.and(esi, 15)?;
    a.add(esi, i32::from(b'0'))?;
    a.cmp(esi, i32::from(b'9'))?;
    a.jbe(decimal)?;
    a.add(esi, i32::from(b'a' - b'9') - 1)?;
    a.set_label(&mut decimal)?;
    a.mov(eax, CALL_PRINT)?;
    a.int(i32::from(SYSTEM_CALL))?;
    a.dec(r14d)?;
    a.jnz(digit)?;
    a.mov(esi, i32::from(b'\n'))?;
    a.mov(eax, CALL_PRINT)?;
    a.int(i32::from(SYSTEM_CALL))?;
    a.ret()?;

    // EAX in decimal, its digits kept on the stack.
    let (mut divide, mut output) = (a.create_label(), a.create_label());
    a.set_label(&mut routines.print_decimal)?;
    a.xor(ecx, ecx)?;
    a.mov(ebx, 10)?;
    a.set_label(&mut divide)?;
    a.xor(edx, edx)?;
    a.div(ebx)?;
    a.push(rdx)?;
    a.inc(ecx)?;
    a.test(eax, eax)?;
    a.jnz(divide)?;
    a.set_label(&mut output)?;
    a.pop(rsi)?;
    a.add(esi, i32::from(b'0'))?;
    a.mov(eax, CALL_PRINT)?;
    a.int(i32::from(SYSTEM_CALL))?;
    a.dec(ecx)?;
    a.jnz(output)?;
    a.ret()?;
    Ok(())
}
