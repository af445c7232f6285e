//! Breakpoints, single steps and non-maskable interrupts, in whole programs that run in the
//! interpreter and in the translator (SDM volume 3, chapter 17 and 6.7).

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::cell::Cell;
use std::rc::Rc;

use dbt::guest::{CpuState, Segment, SegmentIndex};
use dbt::{EngineOptions, Platform, Stop, Vcpu};
use mmu::{GuestPhys, MemoryConfig, PhysMem};

/// A write to this port asks for a non-maskable interrupt.
const NMI_PORT: u16 = 0x80;

struct Ports {
    nmi: bool,
    request: Rc<Cell<*const std::sync::atomic::AtomicU32>>,
}

impl Platform for Ports {
    fn port_write(&mut self, _: &mut PhysMem, _: u64, port: u16, _: u8, _: u32) {
        if port == NMI_PORT {
            self.nmi = true;
            // SAFETY: the processor that runs this owns the word.
            unsafe { (*self.request.get()).store(1, std::sync::atomic::Ordering::Relaxed) };
        }
    }
    fn random(&mut self) -> u64 {
        4
    }
    fn take_nmi(&mut self) -> bool {
        std::mem::take(&mut self.nmi)
    }
}

const CODE: u64 = 0x1000;
/// For #DB: appends the pushed IP and DR6's low half to the list at DI, clears DR6, and sets
/// DEBUGCTL from EBP.
const DEBUG_HANDLER: &[u8] = &[
    0x60, // pusha
    0x67, 0x8b, 0x44, 0x24, 0x10, // mov ax, [esp + 16]
    0xab, // stosw
    0x0f, 0x21, 0xf0, // mov eax, dr6
    0xab, // stosw
    0x66, 0x31, 0xc0, // xor eax, eax
    0x0f, 0x23, 0xf0, // mov dr6, eax
    0x66, 0x31, 0xd2, // xor edx, edx
    0x66, 0x89, 0xe8, // mov eax, ebp
    0x66, 0xb9, 0xd9, 0x01, 0x00, 0x00, // mov ecx, 1d9h
    0x0f, 0x30, // wrmsr
    0x61, // popa
    0x83, 0xc7, 0x04, // add di, 4
    0xcf, // iret
];
/// For NMI: notes the nesting in CX, asks for another one the first time.
const NMI_HANDLER: &[u8] = &[
    0x41, // inc cx
    0x81, 0xf9, 0x01, 0x00, // cmp cx, 1
    0x75, 0x02, // jne +2
    0xe6, 0x80, // out 80h, al
    0x43, // inc bx
    0x89, 0xd8, // mov ax, bx
    0x29, 0xc8, // sub ax, cx: not zero if it was entered twice before it returned
    0x09, 0xc2, // or dx, ax
    0xcf, // iret
];
const DEBUG_AT: u64 = 0x3000;
const NMI_AT: u64 = 0x3100;
const HALT_AT: u64 = 0x3200;
const LIST: u64 = 0x5000;

/// Runs real-mode code to its HLT.
fn run(code: &[u8], interpret_only: bool, prepare: impl Fn(&mut CpuState)) -> Vcpu {
    let mem = PhysMem::new(&MemoryConfig {
        ram_bytes: 1 << 20,
        copies: 2,
        legacy_hole: false,
    })
    .expect("a megabyte of guest memory");
    let request = Rc::new(Cell::new(std::ptr::null()));
    let ports = Ports {
        nmi: false,
        request: request.clone(),
    };
    let options = EngineOptions {
        interpret_only,
        ..EngineOptions::default()
    };
    let mut vcpu = Vcpu::new(mem, Box::new(ports), options).expect("a virtual processor");
    request.set(vcpu.exit_request());
    let vectors = [(0, HALT_AT), (1, DEBUG_AT), (2, NMI_AT)];
    for (vector, at) in vectors {
        vcpu.mem.store_uint(GuestPhys(vector * 4), 4, at).unwrap();
    }
    let code = [
        (CODE, code),
        (DEBUG_AT, DEBUG_HANDLER),
        (NMI_AT, NMI_HANDLER),
        (HALT_AT, &[0xf4]),
    ];
    for (at, bytes) in code {
        vcpu.mem.store(GuestPhys(at), bytes).unwrap();
    }
    let cpu = vcpu.cpu_mut();
    *cpu = CpuState::at_reset();
    *cpu.segment_mut(SegmentIndex::Cs) = Segment::real(0);
    cpu.rip = CODE;
    cpu.gpr[4] = 0x7000;
    cpu.gpr[7] = LIST;
    prepare(cpu);
    cpu.refresh_mode();
    while vcpu.run() == Stop::Requested {}
    vcpu
}

/// What #DB's handler noted: IP relative to the code, and DR6's low half.
fn traps(vcpu: &mut Vcpu) -> Vec<(u64, u64)> {
    let end = vcpu.cpu().gpr[7] & 0xffff;
    (LIST..end)
        .step_by(4)
        .map(|at| {
            let entry = vcpu.mem.load_uint(GuestPhys(at), 4).unwrap();
            ((entry & 0xffff).wrapping_sub(CODE), entry >> 16 & !0x0ff0)
        })
        .collect()
}

#[test]
fn data_breakpoints_trap_behind_the_access() {
    // Each at an offset of its own: writes of 2 bytes at 0x2000, a read, a read-modify-write,
    // a push, MOVSB, and an access beside.
    let code: &[u8] = &[
        0xc6, 0x06, 0x01, 0x20, 0x07, //  0 mov byte [2001h], 7
        0xa0, 0x00, 0x20, //  5 mov al, [2000h]
        0xfe, 0x06, 0x00, 0x20, //  8 inc byte [2000h]
        0xc6, 0x06, 0x02, 0x20, 0x07, // 12 mov byte [2002h], 7
        0xf4, // 17 hlt
    ];
    for interpret_only in [true, false] {
        // Two bytes, writes; the same, reads and writes.
        for (control, expected) in [
            (0x0005_0001, vec![(5, 1), (12, 1)]),
            (0x0007_0001, vec![(5, 1), (8, 1), (12, 1)]),
            // Local or global, the last of four; disabled ones are silent.
            (0x5000_0080, vec![(5, 8), (12, 8)]),
            (0x0005_0000, vec![]),
        ] {
            let mut vcpu = run(code, interpret_only, |cpu| {
                cpu.control.dr[0] = 0x2000;
                cpu.control.dr[3] = 0x2000;
                cpu.control.dr[7] = 0x400 | control;
            });
            assert_eq!(traps(&mut vcpu), expected, "{control:#x}");
        }
    }
}

#[test]
fn repeated_moves_trap_in_the_iteration_that_matches() {
    let code: &[u8] = &[
        0xbe, 0xfe, 0x1f, // 0 mov si, 1ffeh
        0xb9, 0x05, 0x00, // 3 mov cx, 5
        0xf3, 0xac, // 6 rep lodsb
        0xf4, // 8 hlt
    ];
    for interpret_only in [true, false] {
        let mut vcpu = run(code, interpret_only, |cpu| {
            cpu.control.dr[0] = 0x2000;
            cpu.control.dr[7] = 0x0003_0401;
        });
        // The address pushed is that of the instruction that goes on.
        assert_eq!(traps(&mut vcpu), [(6, 1)]);
        assert_eq!(vcpu.cpu().gpr[6] & 0xffff, 0x2003);
    }
}

/// The trap of an exception's frame comes before the handler's first instruction.
#[test]
fn frames_trap_at_the_handler() {
    // xor cl, cl; div cl
    let code: &[u8] = &[0x30, 0xc9, 0xf6, 0xf1];
    for interpret_only in [true, false] {
        let mut vcpu = run(code, interpret_only, |cpu| {
            cpu.control.dr[0] = 0x6ffe;
            cpu.control.dr[7] = 0x0005_0401;
        });
        assert_eq!(traps(&mut vcpu), [(HALT_AT - CODE, 1)]);
    }
}

#[test]
fn what_faults_was_not_accessed() {
    // div byte [2000h], which is zero.
    let code: &[u8] = &[0xf6, 0x36, 0x00, 0x20, 0xf4];
    for interpret_only in [true, false] {
        let mut vcpu = run(code, interpret_only, |cpu| {
            cpu.control.dr[0] = 0x2000;
            cpu.control.dr[7] = 0x0003_0401;
        });
        assert_eq!(traps(&mut vcpu), []);
    }
}

#[test]
fn mov_ss_holds_back_breakpoints_and_merges_with_int1() {
    let code: &[u8] = &[
        0x8e, 0x16, 0x00, 0x20, // 0 mov ss, [2000h]: matches
        0x90, // 4 nop: has a code breakpoint
        0x8e, 0x16, 0x00, 0x20, // 5 mov ss, [2000h]
        0xf1, // 9 int1
        0xf4, // 10 hlt
    ];
    for interpret_only in [true, false] {
        let mut vcpu = run(code, interpret_only, |cpu| {
            cpu.control.dr[0] = 0x2000;
            cpu.control.dr[1] = CODE + 4;
            cpu.control.dr[7] = 0x0003_0405;
        });
        // Once behind the NOP, which was not stopped at; once for the INT1.
        assert_eq!(traps(&mut vcpu), [(5, 1), (10, 1)]);
    }
}

#[test]
fn branch_steps_trap_behind_taken_branches() {
    const TF: u64 = 1 << 8;
    let code: &[u8] = &[
        0x90, // 0 nop
        0x31, 0xc0, // 1 xor ax, ax
        0x75, 0x02, // 3 jne: not taken
        0x74, 0x01, // 5 je 8: taken
        0x90, // 7
        0x90, // 8 nop
        0xeb, 0x00, // 9 jmp 11
        0x6a, 0x02, // 11 push 2
        0x9d, // 13 popf: the last to be stepped
        0xf4, // 14 hlt
    ];
    for interpret_only in [true, false] {
        for (branches, expected) in [
            (2, vec![(8, 0x4000), (11, 0x4000)]),
            (
                0,
                [1, 3, 5, 8, 9, 11, 13, 14].map(|at| (at, 0x4000)).to_vec(),
            ),
        ] {
            let mut vcpu = run(code, interpret_only, |cpu| {
                cpu.msrs.debugctl = branches;
                cpu.gpr[5] = branches;
                cpu.system_flags |= TF;
            });
            let found = traps(&mut vcpu);
            assert_eq!(found, expected, "DEBUGCTL {branches}");
        }
    }
}

#[test]
fn a_masked_nmi_comes_with_the_iret() {
    let code: &[u8] = &[
        0x31, 0xc9, // xor cx, cx
        0x31, 0xdb, // xor bx, bx
        0x31, 0xd2, // xor dx, dx
        0xe6, 0x80, // out 80h, al
        0x89, 0xce, // mov si, cx: has been entered twice by now
        0xf4, // hlt
    ];
    for interpret_only in [true, false] {
        let vcpu = run(code, interpret_only, |_| {});
        let cpu = vcpu.cpu();
        assert_eq!(cpu.gpr[1] & 0xffff, 2, "entries");
        assert_eq!(
            cpu.gpr[6] & 0xffff,
            2,
            "entries before the next instruction"
        );
        assert_eq!(cpu.gpr[2] & 0xffff, 0, "nested entries");
    }
}
