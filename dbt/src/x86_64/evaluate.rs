//! The shared code that follows a sealed recipe: one that needs no register, only what is in the
//! exchange, and of which a block that wants its flags in EFLAGS knows nothing.

use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm};

use crate::cache::CodeOffset;
use crate::record::recipe::{IN_SECOND, LEFT_AT, OPERATION_AT, Operation, RIGHT_FAR, RIGHT_KEPT};
use crate::run::at;

/// Bytes of the code for one operation of one size.
const ROOM: usize = 16;
/// Operations that a word can name.
const OPERATIONS: usize = 16;
const SIZES: usize = 4;

/// Emits code to be called: it leaves the flags of the recipe in `saved_flags`, which names no
/// register, in EFLAGS. Uses the three scratch registers.
pub fn emit(ops: &mut VecAssembler<X64Relocation>) -> CodeOffset {
    let start = CodeOffset(ops.offset().0 as u32);
    // The lowest bit of the number tells its second place from the stash.
    const { assert!(IN_SECOND & 1 == 1 && RIGHT_FAR & !RIGHT_KEPT == 1) };
    let left_second = 1 << LEFT_AT;
    let (constant, kept) = (1 << 8, (RIGHT_KEPT << 8) as i32);
    let index = (OPERATIONS * SIZES - 1) as i8;
    dynasm!(ops
        ; .arch x64
        ; gs mov r8d, [at::SAVED_FLAGS]
        ; gs mov rsi, [at::STASH]
        ; test r8d, left_second
        ; jz >left
        ; gs mov rsi, [at::SECOND]
        ; left:
        ; movsxd rdi, r8d
        ; sar rdi, 16
        ; test r8d, constant
        ; jz >no_constant
        ; test r8d, kept
        ; jz >right
        ; gs movsxd rdi, DWORD [at::CONSTANT]
        ; jmp >right
        ; no_constant:
        ; gs mov rdi, [at::SECOND]
        ; test r8d, kept
        ; jz >right
        ; gs mov rdi, [at::STASH]
        ; right:
        ; shr r8d, OPERATION_AT as i8
        ; and r8d, BYTE index
        ; shl r8d, ROOM.trailing_zeros() as i8
        ; push rax
        ; lea rax, [->operations]
        ; add r8, rax
        ; pop rax
        ; jmp r8
        ; ->operations:
    );
    for size in 0..SIZES {
        for operation in 0..OPERATIONS {
            let begin = ops.offset().0;
            if let Some(&operation) = Operation::ALL.get(operation) {
                one(ops, operation, size);
            }
            dynasm!(ops ; .arch x64 ; ret);
            let used = ops.offset().0 - begin;
            assert!(used <= ROOM, "{operation} takes {used} bytes");
            for _ in used..ROOM {
                ops.push(0xcc);
            }
        }
    }
    start
}

/// An instruction on SIL, SI, ESI or RSI, and perhaps DIL to RDI.
macro_rules! sized {
    ($ops:expr, $size:expr, $name:ident) => {
        match $size {
            0 => dynasm!($ops ; .arch x64 ; $name sil, dil),
            1 => dynasm!($ops ; .arch x64 ; $name si, di),
            2 => dynasm!($ops ; .arch x64 ; $name esi, edi),
            _ => dynasm!($ops ; .arch x64 ; $name rsi, rdi),
        }
    };
    ($ops:expr, $size:expr, $name:ident by cl) => {
        match $size {
            0 => dynasm!($ops ; .arch x64 ; $name sil, cl),
            1 => dynasm!($ops ; .arch x64 ; $name si, cl),
            2 => dynasm!($ops ; .arch x64 ; $name esi, cl),
            _ => dynasm!($ops ; .arch x64 ; $name rsi, cl),
        }
    };
    ($ops:expr, $size:expr, one $name:ident) => {
        match $size {
            0 => dynasm!($ops ; .arch x64 ; $name sil),
            1 => dynasm!($ops ; .arch x64 ; $name si),
            2 => dynasm!($ops ; .arch x64 ; $name esi),
            _ => dynasm!($ops ; .arch x64 ; $name rsi),
        }
    };
}

/// The flags of an operation, left in RSI and right in RDI.
fn one(ops: &mut VecAssembler<X64Relocation>, operation: Operation, size: usize) {
    match operation {
        Operation::Compare => sized!(ops, size, cmp),
        Operation::Test => sized!(ops, size, test),
        Operation::Added => {
            dynasm!(ops ; .arch x64 ; sub rsi, rdi);
            sized!(ops, size, add);
        }
        Operation::Subtracted => {
            dynasm!(ops ; .arch x64 ; add rsi, rdi);
            sized!(ops, size, cmp);
        }
        Operation::ShiftLeft | Operation::ShiftRight | Operation::ShiftArithmetic => {
            dynasm!(ops ; .arch x64 ; mov r8, rcx ; mov ecx, edi);
            match operation {
                Operation::ShiftLeft => sized!(ops, size, shl by cl),
                Operation::ShiftRight => sized!(ops, size, shr by cl),
                _ => sized!(ops, size, sar by cl),
            }
            dynasm!(ops ; .arch x64 ; mov rcx, r8);
        }
        Operation::Incremented => {
            dynasm!(ops ; .arch x64 ; bt edi, 0 ; lea rsi, [rsi - 1]);
            sized!(ops, size, one inc);
        }
        Operation::Decremented => {
            dynasm!(ops ; .arch x64 ; bt edi, 0 ; lea rsi, [rsi + 1]);
            sized!(ops, size, one dec);
        }
        Operation::Negated => {
            dynasm!(ops ; .arch x64 ; neg rsi);
            sized!(ops, size, one neg);
        }
    }
}
