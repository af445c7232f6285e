//! The kernel: starts the program, serves its calls, reports exceptions.

use iced_x86::BlockEncoderOptions;
use iced_x86::code_asm::*;

use super::layout::*;
use crate::AssembleError;

/// Vectors with a handler of their own.
pub const EXCEPTIONS: u8 = 32;

/// The assembled kernel.
pub struct Kernel {
    pub text: Vec<u8>,
    /// Handlers of the exceptions, by vector.
    pub exceptions: Vec<u64>,
    pub system_call: u64,
}

const DATA_PORT: i32 = 0x3f8;
const STATUS_PORT: i32 = 0x3fd;
const TRANSMITTER_EMPTY: i32 = 0x20;

pub fn assemble() -> Result<Kernel, AssembleError> {
    let mut a = CodeAssembler::new(64)?;
    let mut print = a.create_label();
    let mut unexpected = a.create_label();
    let mut system_call = a.create_label();

    // Entry: to the program, by the way an operating system takes.
    a.mov(eax, i32::from(USER_SEGMENT))?;
    a.push(rax)?;
    a.mov(rax, USER_STACK_TOP)?;
    a.push(rax)?;
    a.push(2)?;
    a.push(i32::from(USER_CODE))?;
    a.mov(rax, USER_TEXT)?;
    a.push(rax)?;
    a.iretq()?;

    // Prints AL.
    let mut wait = a.create_label();
    a.set_label(&mut print)?;
    a.push(rdx)?;
    a.push(rax)?;
    a.mov(edx, STATUS_PORT)?;
    a.set_label(&mut wait)?;
    a.in_(al, dx)?;
    a.test(al, TRANSMITTER_EMPTY)?;
    a.jz(wait)?;
    a.pop(rax)?;
    a.mov(edx, DATA_PORT)?;
    a.out(dx, al)?;
    a.pop(rdx)?;
    a.ret()?;

    let (mut call_print, mut call_exit, mut call_stir) =
        (a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut system_call)?;
    a.cmp(eax, CALL_PRINT)?;
    a.je(call_print)?;
    a.cmp(eax, CALL_STIR)?;
    a.je(call_stir)?;
    a.cmp(eax, CALL_EXIT)?;
    a.je(call_exit)?;
    a.mov(rax, -1i64)?;
    a.iretq()?;

    a.set_label(&mut call_print)?;
    a.mov(eax, esi)?;
    a.call(print)?;
    a.iretq()?;

    let mut word = a.create_label();
    a.set_label(&mut call_stir)?;
    a.push(rcx)?;
    a.push(rdx)?;
    a.push(rbx)?;
    a.push(r8)?;
    a.mov(rbx, KERNEL_DATA)?;
    a.mov(r8, FACTOR)?;
    a.xor(ecx, ecx)?;
    a.xor(eax, eax)?;
    a.set_label(&mut word)?;
    a.mov(rdx, qword_ptr(rbx + rcx * 8))?;
    a.imul_2(rdx, r8)?;
    a.add(rdx, rdi)?;
    a.add(rdx, rcx)?;
    a.mov(qword_ptr(rbx + rcx * 8), rdx)?;
    a.rol(rax, 5)?;
    a.xor(rax, rdx)?;
    a.inc(ecx)?;
    a.cmp(ecx, KERNEL_WORDS as i32)?;
    a.jb(word)?;
    a.pop(r8)?;
    a.pop(rbx)?;
    a.pop(rdx)?;
    a.pop(rcx)?;
    a.iretq()?;

    let mut halt = a.create_label();
    a.set_label(&mut call_exit)?;
    a.mov(eax, edi)?;
    a.mov(edx, i32::from(EXIT_PORT))?;
    a.out(dx, eax)?;
    a.set_label(&mut halt)?;
    a.cli()?;
    a.hlt()?;
    a.jmp(halt)?;

    // An exception: its vector in EDI. Nothing is returned to.
    let (mut text, mut letter, mut done) = (a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut unexpected)?;
    a.lea(rsi, ptr(text))?;
    a.set_label(&mut letter)?;
    a.lodsb()?;
    a.test(al, al)?;
    a.jz(done)?;
    a.call(print)?;
    a.jmp(letter)?;
    a.set_label(&mut done)?;
    for shift in [4u32, 0] {
        let mut decimal = a.create_label();
        a.mov(eax, edi)?;
        if shift != 0 {
            a.shr(eax, shift)?;
        }
        a.and(eax, 15)?;
        a.add(eax, i32::from(b'0'))?;
        a.cmp(eax, i32::from(b'9'))?;
        a.jbe(decimal)?;
        a.add(eax, i32::from(b'a' - b'9') - 1)?;
        a.set_label(&mut decimal)?;
        a.call(print)?;
    }
    a.mov(eax, i32::from(b'\n'))?;
    a.call(print)?;
    a.add(edi, EXCEPTION_BASE as i32)?;
    a.jmp(call_exit)?;

    let mut handlers = Vec::new();
    for vector in 0..i32::from(EXCEPTIONS) {
        let mut handler = a.create_label();
        a.set_label(&mut handler)?;
        a.mov(edi, vector)?;
        a.jmp(unexpected)?;
        handlers.push(handler);
    }
    a.set_label(&mut text)?;
    a.db(b"guest kernel: unexpected exception 0x\0")?;

    let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let result = a.assemble_options(KERNEL_TEXT, options)?;
    let exceptions: Result<Vec<u64>, _> = handlers
        .iter()
        .map(|handler| result.label_ip(handler))
        .collect();
    Ok(Kernel {
        exceptions: exceptions?,
        system_call: result.label_ip(&system_call)?,
        text: result.inner.code_buffer,
    })
}
