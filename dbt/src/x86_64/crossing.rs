//! Accesses that cross from one page into the next: shared code looks up both pages, and the
//! instruction works on a buffer in between. Code that copies or compares unaligned memory by
//! vectors meets the end of a page every 128 times, and the interpreter is a thousand times
//! slower than the access.
//!
//! A load finds 64 bytes of the buffer filled with what is on both sides of the boundary. A store
//! finds them so too, changes some, and all go back, in all copies: the rest are as they were.
//! So does what loads, computes and stores, if no flags of before matter behind it.
//! All are tried where the check has failed anyway; what does not cross, or whose pages are not
//! both in the TLB with the right tag, calls up. Where the pages are neighbours in the host's memory too,
//! as most of a large array's are, the access goes on where it is.
//!
//! Before that, all slow paths look whether the page's TLB entry has moved to its second place.

use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, VecAssembler, dynasm};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use mmu::{PAGE_SHIFT, PAGE_SIZE, SECOND_SHIFT, SECOND_TURN, TLB_ENTRIES, View};

use super::bulk::{self, Piece, Writer, memory};
use super::emitter::Emitter;
use super::encoded::Encoded;
use super::operands::HostMemory;
use super::registers::T1;
use super::trampoline::here;
use crate::cache::CodeOffset;
use crate::record::liveness;
use crate::run::{Upcall, UpcallKind, at};

/// One hit in a second place counts so much of 256.
const STEP: i8 = 8;
/// Bytes on each side of the boundary.
const SIDE: i32 = 32;
/// The boundary in the buffer.
const MIDDLE: i32 = at::BOUNCE + SIDE;

/// Shared code for accesses that cross.
#[derive(Clone, Copy, Debug)]
pub struct Crossings {
    /// By [`View`]: called as the upcall is, by a load's slow path. Goes on where the record says.
    load: [CodeOffset; 3],
    /// Likewise, by a store's slow path. Goes on behind the record with T0 pointing into the buffer.
    store: [CodeOffset; 3],
    /// Called after that by a store's slow path: writes the buffer back to all copies.
    finish: CodeOffset,
    /// By [`View`], for loads and stores: called as the upcall is, by the slow paths of accesses that
    /// are the interpreter's if they cross.
    second: [[CodeOffset; 2]; 3],
}

impl Crossings {
    /// Whether the 16 bytes behind a call of this code are a record.
    pub fn has_record(&self, target: CodeOffset) -> bool {
        self.load.contains(&target)
            || self.store.contains(&target)
            || self.second.as_flattened().contains(&target)
    }
}

/// Scratch registers, and the guest registers by number that go there.
pub(super) type Loads = [Option<(Register, u8)>; 2];

/// What the slow path of an access can do if it crosses.
#[derive(Clone, Copy)]
pub(super) enum Crossing {
    /// It cannot, or is left to the interpreter.
    Never,
    /// Work on the buffer.
    Load,
    /// Execute this store, of a move or of the x87 with all exceptions masked, on the buffer, once these guest registers are in scratch registers, and
    /// go on there.
    Store {
        loads: Loads,
        store: Encoded,
        behind: DynamicLabel,
    },
    /// Likewise, load so many bytes from the buffer to T1, compute and store. `stash`: code behind it looks for the
    /// result there.
    Update {
        loads: Loads,
        size: u8,
        compute: Encoded,
        stash: bool,
        behind: DynamicLabel,
    },
}

/// Whether a store can be repeated on the buffer: it has nothing to do with flags, and raises no
/// exception, which would be taken for that of another instruction.
pub(super) fn repeatable(insn: &Instruction) -> bool {
    let plain = matches!(
        insn.mnemonic(),
        Mnemonic::Mov
            | Mnemonic::Movups
            | Mnemonic::Movupd
            | Mnemonic::Movdqu
            | Mnemonic::Movq
            | Mnemonic::Movd
            | Mnemonic::Movss
            | Mnemonic::Movsd
            | Mnemonic::Vmovups
            | Mnemonic::Vmovupd
            | Mnemonic::Vmovdqu
            | Mnemonic::Vmovq
            | Mnemonic::Vmovd
            | Mnemonic::Vmovss
            | Mnemonic::Vmovsd
    );
    let size = insn.memory_size().size() as i32;
    plain
        && insn.op0_kind() == OpKind::Memory
        && (2..=SIDE).contains(&size)
        && liveness::read(insn) == 0
}

impl Emitter<'_> {
    /// What the slow path of a load of so many bytes can do.
    pub(super) fn crossing_load(&self, size: u32) -> Crossing {
        if self.target.crossing && (2..=SIDE as u32).contains(&size) {
            Crossing::Load
        } else {
            Crossing::Never
        }
    }

    /// The call of a memory slow path, with what it may do if the access crosses.
    pub(super) fn call_slow_path(&mut self, record: Upcall, crossing: &Crossing) {
        let shared = &self.target.trampolines.crossings;
        let view = crate::interpret::view(self.target.mode) as usize;
        match crossing {
            Crossing::Never if record.kind == UpcallKind::Memory => {
                self.call_with(shared.second[view][usize::from(record.write)], record);
            }
            Crossing::Never => self.upcall(record),
            Crossing::Load => {
                self.call_with(shared.load[view], record);
            }
            Crossing::Store {
                loads,
                store,
                behind,
            } => {
                self.call_with(shared.store[view], record);
                for (scratch, guest) in loads.iter().flatten() {
                    self.load_guest(*scratch, usize::from(*guest));
                }
                self.put(store);
                self.call_shared(shared.finish);
                dynasm!(self.ops ; .arch x64 ; jmp =>*behind);
            }
            Crossing::Update {
                loads,
                size,
                compute,
                stash,
                behind,
            } => {
                self.call_with(shared.store[view], record);
                for (scratch, guest) in loads.iter().flatten() {
                    self.load_guest(*scratch, usize::from(*guest));
                }
                let size = u32::from(*size);
                self.put(&HostMemory::AT_T0.load(T1, size));
                self.put(compute);
                self.put(&HostMemory::AT_T0.store(T1, size));
                if *stash {
                    self.put_into_stash(T1);
                }
                // None of what follows changes the flags.
                self.call_shared(shared.finish);
                dynasm!(self.ops ; .arch x64 ; jmp =>*behind);
            }
        }
    }
}

/// Emits the shared code. The label `upcall` is the trampoline's.
pub(super) fn emit(ops: &mut VecAssembler<X64Relocation>, copies: usize, stride: i32) -> Crossings {
    let views = [View::User, View::Supervisor, View::SupervisorOpen];
    Crossings {
        load: views.map(|view| emit_access(ops, (copies, stride), view, false)),
        store: views.map(|view| emit_access(ops, (copies, stride), view, true)),
        finish: emit_finish(ops, copies, stride),
        second: views.map(|view| {
            [false, true].map(|write| {
                let start = here(ops);
                look_in_second_place(ops, view, write);
                call_up(ops);
                start
            })
        }),
    }
}

/// T0 has the linear address, and a record is behind the call: goes on where that says if the page's
/// entry is in its second place. Else the record's address is in T2, and RAX, RCX and RDX have been put
/// away. An empty entry matches no address that chooses it.
fn look_in_second_place(ops: &mut VecAssembler<X64Relocation>, view: View, write: bool) {
    let tag = at::tlb(view) + if write { at::WRITE_TAG } else { at::READ_TAG };
    let addend = at::tlb(view) + at::ADDEND;
    let page = PAGE_SIZE as i32;
    dynasm!(ops
        ; .arch x64
        ; pop r8
        ; gs mov [at::CROSSING], rax
        ; gs mov [at::CROSSING + 8], rcx
        ; gs mov [at::CROSSING + 16], rdx
        ; mov rdi, rsi
        ; shr rdi, PAGE_SHIFT as i8
        ; mov rax, rdi
        ; shr rax, SECOND_SHIFT as i8
        ; xor edi, eax
        ; xor edi, SECOND_TURN as i32
        ; and edi, TLB_ENTRIES as i32 - 1
        ; shl edi, 5
        ; mov rax, rsi
        ; gs xor rax, [rdi + tag]
        ; cmp rax, page
        ; jae >elsewhere
        ; movzx ecx, WORD [r8 + Upcall::SIZE]
        ; add ecx, eax
        ; cmp ecx, page
        ; ja >elsewhere
        // Whoever is here most shall have the first place: now and then the page is looked up, which
        // exchanges the two.
        ; gs sub BYTE [at::SECOND_HITS], STEP
        ; jz >elsewhere
        // Some checks want the addend.
        ; xor ecx, ecx
        ; cmp BYTE [r8 + Upcall::WANTS_ADDEND], 0
        ; cmove rcx, rsi
        ; gs mov rsi, [rdi + addend]
        ; add rsi, rcx
    );
    resume_address(ops);
    go_back(ops);
    dynasm!(ops ; .arch x64 ; elsewhere:);
}

/// Where the record says that its block goes on, into RDI. Uses RAX.
fn resume_address(ops: &mut VecAssembler<X64Relocation>) {
    dynasm!(ops
        ; .arch x64
        ; mov edi, [r8 + Upcall::EXTRA]
        ; lea rax, [->region]
        ; add rdi, rax
    );
}

/// Goes on at RDI, with RAX and RCX as they were.
fn go_back(ops: &mut VecAssembler<X64Relocation>) {
    dynasm!(ops
        ; .arch x64
        ; gs mov rax, [at::CROSSING]
        ; gs mov rcx, [at::CROSSING + 8]
        // The host predicts returns: it has seen a call.
        ; push rdi
        ; ret
    );
}

/// What has been put away comes back, and the upcall has its record.
fn call_up(ops: &mut VecAssembler<X64Relocation>) {
    dynasm!(ops
        ; .arch x64
        ; gs mov rax, [at::CROSSING]
        ; gs mov rcx, [at::CROSSING + 8]
        ; gs mov rdx, [at::CROSSING + 16]
        ; push r8
        ; jmp ->upcall
    );
}

/// T0 has the linear address, and a record is behind the call. Only T1 and T2 are free: others are
/// put away in between.
fn emit_access(
    ops: &mut VecAssembler<X64Relocation>,
    (copies, stride): (usize, i32),
    view: View,
    write: bool,
) -> CodeOffset {
    let start = here(ops);
    let tag = at::tlb(view) + if write { at::WRITE_TAG } else { at::READ_TAG };
    let addend = at::tlb(view) + at::ADDEND;
    let mask = ((TLB_ENTRIES - 1) * 32) as i32;
    let page = PAGE_SIZE as i32;
    look_in_second_place(ops, view, write);
    dynasm!(ops
        ; .arch x64
        // RCX: bytes up to the boundary. Fewer than the access has?
        ; mov ecx, esi
        ; or ecx, page - 1
        ; sub ecx, esi
        ; inc ecx
        ; movzx eax, WORD [r8 + Upcall::SIZE]
        ; cmp ecx, eax
        ; jae >miss
        // RAX: the first page; RDX: where its end is in host memory.
        ; mov rax, rsi
        ; and rax, -page
        ; mov edi, eax
        ; shr edi, 7
        ; and edi, mask
        ; gs cmp rax, [rdi + tag]
        ; jne >miss
        ; add rax, page
        ; jc >miss
        ; gs mov rdx, [rdi + addend]
        // RDI: where the second page is.
        ; mov edi, eax
        ; shr edi, 7
        ; and edi, mask
        ; gs cmp rax, [rdi + tag]
        ; jne >miss
        ; gs mov rdi, [rdi + addend]
        ; cmp rdx, rdi
        ; je >adjacent
        ; add rdx, rax
        ; add rdi, rax
    );
    if write {
        dynasm!(ops
            ; .arch x64
            ; gs mov [at::CROSSING + 24], rdx
            ; gs mov [at::CROSSING + 32], rdi
        );
    }
    if bulk::is_possible() {
        let mut writer = Writer::new(ops, copies, stride);
        writer.load(Piece::Ymm, 16, memory(Register::RDX, Register::None, -SIDE));
        writer.load(Piece::Ymm, 17, memory(Register::RDI, Register::None, 0));
        writer.put(16, MIDDLE - SIDE);
        writer.put(17, MIDDLE);
    } else {
        for word in (0..SIDE).step_by(8) {
            dynasm!(ops
                ; .arch x64
                ; mov rax, [rdx + word - SIDE]
                ; gs mov [MIDDLE + word - SIDE], rax
                ; mov rax, [rdi + word]
                ; gs mov [MIDDLE + word], rax
            );
        }
    }
    // Where the access begins in the buffer.
    dynasm!(ops
        ; .arch x64
        ; gs mov rdx, [at::BOUNCE_ADDRESS]
        ; add rdx, SIDE
        ; sub rdx, rcx
    );
    if write {
        dynasm!(ops
            ; .arch x64
            ; mov rsi, rdx
            ; lea rdi, [r8 + size_of::<Upcall>() as i32]
        );
    } else {
        // Some checks want the addend.
        dynasm!(ops
            ; .arch x64
            ; xor eax, eax
            ; cmp BYTE [r8 + Upcall::WANTS_ADDEND], 0
            ; cmovne rax, rsi
            ; mov rsi, rdx
            ; sub rsi, rax
        );
        resume_address(ops);
    }
    dynasm!(ops ; .arch x64 ; gs mov rdx, [at::CROSSING + 16]);
    go_back(ops);
    // The pages are neighbours on the host too, in all copies.
    dynasm!(ops
        ; .arch x64
        ; adjacent:
        ; xor ecx, ecx
        ; cmp BYTE [r8 + Upcall::WANTS_ADDEND], 0
        ; cmove rcx, rsi
        ; lea rsi, [rdx + rcx]
        ; gs mov rdx, [at::CROSSING + 16]
    );
    resume_address(ops);
    go_back(ops);
    dynasm!(ops ; .arch x64 ; miss:);
    call_up(ops);
    start
}

/// Both sides go back, mirrors first: this is a store to guest memory, by the same rule as
/// `Emitter::store_all`.
fn emit_finish(ops: &mut VecAssembler<X64Relocation>, copies: usize, stride: i32) -> CodeOffset {
    let start = here(ops);
    if bulk::is_possible() {
        let mut writer = Writer::new(ops, copies, stride);
        writer.take(16, MIDDLE - SIDE);
        writer.take(17, MIDDLE);
        for (pointer, number, offset) in
            [(at::CROSSING + 24, 16, -SIDE), (at::CROSSING + 32, 17, 0)]
        {
            dynasm!(writer.ops ; .arch x64 ; gs mov rdi, [pointer]);
            writer.store(
                Piece::Ymm,
                &[number],
                (Register::RDI, Register::None, offset),
            );
        }
        dynasm!(ops ; .arch x64 ; ret);
        return start;
    }
    for (pointer, buffer, offset) in [
        (at::CROSSING + 24, MIDDLE - SIDE, -SIDE),
        (at::CROSSING + 32, MIDDLE, 0),
    ] {
        dynasm!(ops ; .arch x64 ; gs mov rdi, [pointer]);
        for word in (0..SIDE).step_by(8) {
            dynasm!(ops ; .arch x64 ; gs mov rsi, [buffer + word]);
            for copy in (0..copies as i32).rev() {
                dynasm!(ops ; .arch x64 ; mov [rdi + offset + word + copy * stride], rsi);
            }
        }
    }
    dynasm!(ops ; .arch x64 ; ret);
    start
}
