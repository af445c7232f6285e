//! The code that every block shares: entering emitted code, leaving it, and calling up into
//! Rust with the guest's registers put away.

use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm};

use super::bulk::{self, Bulk};
use super::crossing::{self, Crossings};
use super::evaluate;
use super::flags::save_eflags;
use super::registers::all_pinned;
use crate::cache::CodeOffset;
use crate::guest::Register;
use crate::run::{FlagsAt, Upcall, UpcallKind, at};

/// Offsets of the shared pieces in the code region.
#[derive(Clone, Copy, Debug)]
pub struct Trampolines {
    /// `extern "sysv64" fn()`: enters at `exchange.jump_target`, returns when code leaves.
    pub enter: CodeOffset,
    /// Called by emitted code with a [`crate::run::Upcall`] behind the call.
    pub upcall: CodeOffset,
    /// Called by emitted code: brings the guest's vector registers and MXCSR into the host's,
    /// leaving general registers and flags alone.
    pub load_vectors: CodeOffset,
    /// Returned to when no return is predicted, with the target, 0, in T0 and the flags saved.
    pub unpredicted: CodeOffset,
    /// Jumped to in the place of a block that is not known, with the flags saved.
    pub arrival: CodeOffset,
    /// Jumped to by the signal handler, with the guest's registers in place.
    pub signal: CodeOffset,
    /// Called by emitted code: brings the flags of a recipe without registers into EFLAGS.
    pub evaluate: CodeOffset,
    /// Called by emitted code: saves the flags that are in EFLAGS.
    pub save_flags: CodeOffset,
    /// For accesses that cross a page.
    pub crossings: Crossings,
    /// For REP STOS and REP MOVS.
    pub bulk: Bulk,
    /// The first free byte.
    pub end: CodeOffset,
}

/// Emits the shared pieces for the start of the region. `upcall` and `signal` are the Rust
/// functions behind them: `extern "sysv64" fn(vcpu, record, linear) -> host address or 0`. Guest
/// memory is in so many copies, each `stride` bytes from the one before.
pub fn emit(upcall: u64, signal: u64, copies: usize, stride: i32) -> (Vec<u8>, Trampolines) {
    let mut ops: VecAssembler<X64Relocation> = VecAssembler::new(0);
    let avx = std::arch::is_x86_feature_detected!("avx");
    let enter = here(&ops);
    dynasm!(ops
        ; .arch x64
        ; ->region:
        ; push rbx
        ; push rbp
        ; push r12
        ; push r13
        ; push r14
        ; push r15
        ; sub rsp, 8
        ; gs mov [at::HOST_RSP], rsp
        ; gs stmxcsr [at::HOST_MXCSR]
    );
    restore_guest(&mut ops);
    dynasm!(ops ; .arch x64 ; gs jmp QWORD [at::JUMP_TARGET]);
    // Emitted code called up: with a return of ours to it the host's own prediction of returns
    // stays in step.
    dynasm!(ops ; .arch x64 ; ->resume:);
    restore_guest(&mut ops);
    dynasm!(ops
        ; .arch x64
        ; gs push QWORD [at::JUMP_TARGET]
        ; ret
    );
    let leave_emitted = |ops: &mut VecAssembler<X64Relocation>, target: u64| {
        for (guest, host) in all_pinned() {
            if guest != Register::RAX {
                dynasm!(ops ; .arch x64 ; gs mov [at::gpr(guest)], Rq(host));
            }
        }
        dynasm!(ops
            ; .arch x64
            ; gs cmp BYTE [at::VECTORS_LIVE], 0
            ; je >kept
        );
        for index in 0..16u8 {
            let slot = at::YMM + 32 * i32::from(index);
            if avx {
                dynasm!(ops ; .arch x64 ; gs vmovdqu [slot], Ry(index));
            } else {
                dynasm!(ops ; .arch x64 ; gs movdqu [slot], Rx(index));
            }
        }
        if avx {
            dynasm!(ops ; .arch x64 ; vzeroupper);
        }
        dynasm!(ops
            ; .arch x64
            ; gs stmxcsr [at::MXCSR]
            ; gs ldmxcsr [at::HOST_MXCSR]
            ; gs mov BYTE [at::VECTORS_LIVE], 0
            ; kept:
        );
        dynasm!(ops
            ; .arch x64
            ; gs mov [at::RETURN_STACK], rsp
            ; gs mov rsp, [at::HOST_RSP]
            ; mov rdx, rsi
            ; mov rsi, r8
            ; gs mov rdi, [at::VCPU]
            ; mov rax, QWORD target as i64
            ; call rax
            ; test rax, rax
            ; jz ->leave
            ; gs mov [at::JUMP_TARGET], rax
            ; jmp ->resume
        );
    };
    let upcall_offset = here(&ops);
    dynasm!(ops
        ; .arch x64
        ; ->upcall:
        ; pop r8
        ; gs mov [at::gpr(Register::RAX)], rax
        ; lahf
        ; seto al
        ; gs mov [at::HOST_FLAGS], eax
    );
    leave_emitted(&mut ops, upcall);
    let signal_offset = here(&ops);
    // The handler put RFLAGS away itself, and the stack is as at a call's return.
    dynasm!(ops ; .arch x64 ; gs mov [at::gpr(Register::RAX)], rax);
    leave_emitted(&mut ops, signal);
    let unpredicted = here(&ops);
    // The pair stays where it is.
    let record = Upcall {
        block: 0,
        insn: 0,
        kind: UpcallKind::Unknown,
        flags: FlagsAt::Saved,
        size: 0,
        write: 0,
        wants_addend: 0,
        extra: 0,
    };
    dynasm!(ops
        ; .arch x64
        ; lea rsp, [rsp - 8]
        ; gs mov [at::ARRIVING], rsi
    );
    let arrival = here(&ops);
    dynasm!(ops
        ; .arch x64
        ; gs mov rsi, [at::ARRIVING]
        ; gs mov [at::RIP], rsi
        ; call ->upcall
        ; .bytes record.to_bytes()
    );
    let load_vectors = here(&ops);
    dynasm!(ops ; .arch x64 ; ->load_vectors:);
    if avx {
        load_clean_halves(&mut ops);
    }
    for index in 0..16u8 {
        let slot = at::YMM + 32 * i32::from(index);
        if avx {
            dynasm!(ops ; .arch x64 ; gs vmovdqu Ry(index), [slot]);
        } else {
            dynasm!(ops ; .arch x64 ; gs movdqu Rx(index), [slot]);
        }
    }
    dynasm!(ops
        ; .arch x64
        ; ->vectors_loaded:
        ; gs ldmxcsr [at::MXCSR]
        ; gs mov BYTE [at::VECTORS_LIVE], 1
        ; ret
    );
    dynasm!(ops
        ; .arch x64
        ; ->leave:
        ; add rsp, 8
        ; pop r15
        ; pop r14
        ; pop r13
        ; pop r12
        ; pop rbp
        ; pop rbx
        ; ret
    );
    let evaluate = evaluate::emit(&mut ops);
    let save_flags = here(&ops);
    save_eflags(&mut ops);
    dynasm!(ops ; .arch x64 ; ret);
    let crossings = crossing::emit(&mut ops, copies, stride);
    let bulk = bulk::emit(&mut ops, copies, stride);
    let code = ops
        .finalize()
        .expect("the trampolines' labels are all defined above");
    let end = CodeOffset((code.len() as u32).next_multiple_of(64));
    let trampolines = Trampolines {
        enter,
        upcall: upcall_offset,
        load_vectors,
        unpredicted,
        arrival,
        signal: signal_offset,
        evaluate,
        save_flags,
        crossings,
        bulk,
        end,
    };
    (code, trampolines)
}

/// Puts the guest's registers and emitted code's stack in place.
fn restore_guest(ops: &mut VecAssembler<X64Relocation>) {
    dynasm!(ops
        ; .arch x64
        ; gs mov rsp, [at::RETURN_STACK]
        ; gs cmp BYTE [at::VECTORS_WANTED], 0
        ; je >skip
        ; call ->load_vectors
        ; skip:
        ; gs mov eax, [at::SAVED_FLAGS]
        ; add al, 0x7f
        ; sahf
    );
    for (guest, host) in all_pinned() {
        dynasm!(ops ; .arch x64 ; gs mov Rq(host), [at::gpr(guest)]);
    }
    dynasm!(ops ; .arch x64 ; gs mov rsi, [at::RESULT_HOST]);
}

/// Loads the lower halves only, if all upper halves are zero: a 256-bit load would make every
/// later SSE instruction wait for the register's previous value, to keep an upper half that is
/// not in use. Falls through with the flags as they were if some upper half is not zero.
fn load_clean_halves(ops: &mut VecAssembler<X64Relocation>) {
    let upper = |index: u8| at::YMM + 32 * i32::from(index) + 16;
    // The test spoils the flags, which may be the guest's: RAX keeps them, and R8 keeps RAX.
    dynasm!(ops
        ; .arch x64
        ; mov r8, rax
        ; lahf
        ; seto al
        ; gs vmovdqu xmm0, [upper(0)]
    );
    for index in 1..16u8 {
        dynasm!(ops ; .arch x64 ; gs vpor xmm0, xmm0, [upper(index)]);
    }
    dynasm!(ops
        ; .arch x64
        ; vptest xmm0, xmm0
        ; jnz >dirty
        ; vzeroupper
    );
    for index in 0..16u8 {
        dynasm!(ops ; .arch x64 ; gs vmovdqu Rx(index), [upper(index) - 16]);
    }
    dynasm!(ops
        ; .arch x64
        ; add al, 0x7f
        ; sahf
        ; mov rax, r8
        ; jmp ->vectors_loaded
        ; dirty:
        ; add al, 0x7f
        ; sahf
        ; mov rax, r8
    );
}

/// Where the next byte goes.
pub(super) fn here(ops: &VecAssembler<X64Relocation>) -> CodeOffset {
    CodeOffset(ops.offset().0 as u32)
}
