//! Programs for Linux without a compiler or a library: assembled code in an ELF file.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Where a program's file is mapped.
const BASE: u64 = 0x40_0000;
const HEADERS: usize = 64 + 56;
/// Address of zeroed memory that a program may use.
pub const BUFFER: u64 = 0x1000_0000;

/// Linux system calls.
const WRITE: u32 = 1;
const EXIT: u32 = 60;

/// Calls write(1, text).
pub fn print(a: &mut CodeAssembler, text: &str) -> Result<(), IcedError> {
    let mut data = a.create_label();
    let mut after = a.create_label();
    a.jmp(after)?;
    a.set_label(&mut data)?;
    a.db(text.as_bytes())?;
    a.set_label(&mut after)?;
    a.lea(rsi, ptr(data))?;
    a.mov(edx, text.len() as u32)?;
    a.mov(edi, 1)?;
    a.mov(eax, WRITE)?;
    a.syscall()
}

/// Prints RBX as 16 hexadecimal digits and a line end.
pub fn print_rbx(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut digit = a.create_label();
    let mut decimal = a.create_label();
    a.sub(rsp, 32)?;
    a.mov(byte_ptr(rsp + 16), i32::from(b'\n'))?;
    a.mov(ecx, 15)?;
    a.set_label(&mut digit)?;
    a.mov(eax, ebx)?;
    a.and(eax, 15)?;
    a.add(eax, i32::from(b'0'))?;
    a.cmp(eax, i32::from(b'9'))?;
    a.jbe(decimal)?;
    a.add(eax, i32::from(b'a' - b'9' - 1))?;
    a.set_label(&mut decimal)?;
    a.mov(byte_ptr(rsp + rcx), al)?;
    a.shr(rbx, 4)?;
    a.dec(ecx)?;
    a.jns(digit)?;
    a.mov(rsi, rsp)?;
    a.mov(edx, 17)?;
    a.mov(edi, 1)?;
    a.mov(eax, WRITE)?;
    a.syscall()?;
    a.add(rsp, 32)
}

/// Ends the program.
pub fn exit(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.xor(edi, edi)?;
    a.mov(eax, EXIT)?;
    a.syscall()
}

/// The program as a static ELF file with `buffer` zeroed bytes at [`BUFFER`].
pub fn link(mut code: CodeAssembler, buffer: u64) -> Result<Vec<u8>, IcedError> {
    let headers = HEADERS + 56;
    let entry = BASE + headers as u64;
    let code = code.assemble(entry)?;
    let size = (headers + code.len()) as u64;
    let mut file = Vec::new();
    let mut put = |value: u64, bytes: usize| file.extend_from_slice(&value.to_le_bytes()[..bytes]);
    put(0x0001_0102_464c_457f, 8); // ELF, 64-bit, little-endian, version 1
    put(0, 8);
    put(2, 2); // an executable
    put(62, 2); // x86-64
    put(1, 4);
    put(entry, 8);
    put(64, 8); // program headers behind this one
    put(0, 8);
    put(0, 4);
    put(64, 2);
    put(56, 2);
    put(2, 2);
    put(64, 2);
    put(0, 2);
    put(0, 2);
    let mut segment = |flags: u64, address: u64, in_file: u64, in_memory: u64| {
        put(1, 4); // to be loaded
        put(flags, 4);
        put(0, 8);
        put(address, 8);
        put(address, 8);
        put(in_file, 8);
        put(in_memory, 8);
        put(0x1000, 8);
    };
    segment(5, BASE, size, size);
    segment(6, BUFFER, 0, buffer.max(0x1000));
    file.extend_from_slice(&code);
    Ok(file)
}
