//! Transitions and loads that the processor refuses: vector and error code, and that nothing
//! has changed.

use dbt::guest::Exception;

use crate::machine::*;

struct Case {
    what: &'static str,
    machine: fn() -> Machine,
    /// Set up besides.
    prepare: fn(&mut Machine),
    code: &'static [u8],
    vector: u8,
    error_code: Option<u32>,
}

fn ring0() -> Machine {
    Machine::protected(0)
}
fn ring3() -> Machine {
    Machine::protected(3)
}
fn long0() -> Machine {
    Machine::long(0)
}
fn long3() -> Machine {
    Machine::long(3)
}
fn nothing(_: &mut Machine) {}

const MOV_DS_AX: &[u8] = &[0x8e, 0xd8];
const MOV_SS_AX: &[u8] = &[0x8e, 0xd0];

macro_rules! cases {
    ($($what:literal: $machine:ident, $prepare:expr, $code:expr => $vector:ident $error:expr;)*) => {
        &[$(Case {
            what: $what,
            machine: $machine,
            prepare: $prepare,
            code: $code,
            vector: Exception::$vector,
            error_code: $error,
        }),*]
    };
}

const CASES: &[Case] = cases! {
    // SDM volume 3, 6.12.1.1: INT n below the gate's DPL.
    "int to a ring 0 gate": ring3, nothing, &[0xcd, 0x20] => GP Some(0x102);
    "int beyond the IDT": ring3, |m| m.cpu.control.idtr.limit = 0x17f, &[0xcd, 0x30] => GP Some(0x182);
    "int to an absent gate": ring3, nothing, &[0xcd, 0x32] => NP Some(0x192);
    "int3 to a ring 0 gate": ring3, nothing, &[0xcc] => GP Some(0x1a);
    "int to ring 0 without a TSS stack": ring3, |m| m.cpu.control.tr.limit = 8, &[0xcd, 0x31] => TS Some(0x28);
    "int to ring 0, null SS0": ring3, |m| m.write(TSS_A + 8, 2, 0), &[0xcd, 0x31] => TS Some(0);
    "int to ring 0, SS0 of ring 3": ring3, |m| m.write(TSS_A + 8, 2, 0x23), &[0xcd, 0x31] => TS Some(0x20);
    "int to ring 0, SS0 absent": ring3, |m| m.write(TSS_A + 8, 2, 0x48), &[0xcd, 0x31] => SS Some(0x48);
    // The error code of a forbidden INT in long mode is as in protected mode.
    "long int to a ring 0 gate": long3, nothing, &[0xcd, 0x20] => GP Some(0x102);
    "long int to 32-bit code": long0, |m| m.write(IDT + 0x200, 8, gate(CODE0, HANDLER, 14, 0, 0)), &[0xcd, 0x20] => GP Some(0x8);
    // Volume 3, 5.8.1: direct far transfers.
    "jmp to ring 0 code": ring3, nothing, &[0xea, 0, 0, 1, 0, 0x08, 0] => GP Some(0x08);
    "jmp to a null selector": ring3, nothing, &[0xea, 0, 0, 1, 0, 3, 0] => GP Some(0);
    "jmp beyond the GDT": ring0, nothing, &[0xea, 0, 0, 1, 0, 0xd8, 0] => GP Some(0xd8);
    "jmp into an LDT that is not there": ring0, nothing, &[0xea, 0, 0, 1, 0, 0x0c, 0] => GP Some(0x0c);
    "jmp to data": ring0, nothing, &[0xea, 0, 0, 1, 0, 0x10, 0] => GP Some(0x10);
    "jmp to ring 3 code from ring 0": ring0, nothing, &[0xea, 0, 0, 1, 0, 0x1b, 0] => GP Some(0x18);
    "jmp beyond the limit": ring0, nothing, &[0xea, 0, 0x20, 0, 0, 0xb8, 0] => GP Some(0);
    "jmp through a call gate to ring 0": ring3, nothing, &[0xea, 0, 0, 1, 0, 0x3b, 0] => GP Some(0x08);
    "jmp to a TSS of ring 0": ring3, nothing, &[0xea, 0, 0, 1, 0, 0x30, 0] => GP Some(0x30);
    "jmp to a busy TSS": ring0, nothing, &[0xea, 0, 0, 1, 0, 0x28, 0] => GP Some(0x28);
    "call to a busy TSS through a task gate": ring3, |m| m.write(GDT + 0x35, 1, 0x8b), &[0x9a, 0, 0, 0, 0, 0x93, 0] => GP Some(0x30);
    "retf inwards": ring3, |m| { m.write(USER_STACK, 4, CODE); m.write(USER_STACK + 4, 4, 8) }, &[0xcb] => GP Some(0x08);
    "iret to a null selector": ring3, nothing, &[0xcf] => GP Some(0);
    "iret to data": ring0, |m| m.write(KERNEL_STACK + 4, 4, 0x10), &[0xcf] => GP Some(0x10);
    "iretq to a code segment with L and D": long0, |m| { m.write(GDT + 8, 8, descriptor(0, 0xfffff, 0xe09a)); m.write(KERNEL_STACK + 8, 8, 8) }, &[0x48, 0xcf] => GP Some(8);
    "iretq to a non-canonical address": long0, |m| { m.write(KERNEL_STACK, 8, 1 << 47); m.write(KERNEL_STACK + 8, 8, 0x50); m.write(KERNEL_STACK + 32, 8, 0x58) }, &[0x48, 0xcf] => GP Some(0);
    "iretq with NT": long0, |m| m.cpu.set_rflags(1 << 14, 1 << 14), &[0x48, 0xcf] => GP Some(0);
    "far jump to a 32-bit task gate in long mode": long0, |m| { m.write(CODE, 8, 0); m.write(CODE + 4, 2, 0x93) }, &[0xff, 0x2c, 0x25, 0, 0, 1, 0] => GP Some(0x90);
    // Volume 3, 5.6 and 5.7: data and stack segments.
    "mov ds, ring 0 data in ring 3": ring3, |m| m.cpu.gpr[0] = 0x10, MOV_DS_AX => GP Some(0x10);
    "mov ds, execute-only code": ring0, |m| m.cpu.gpr[0] = 0xa8, MOV_DS_AX => GP Some(0xa8);
    "mov ds, an LDT": ring0, |m| m.cpu.gpr[0] = 0xb0, MOV_DS_AX => GP Some(0xb0);
    "mov ds, absent data": ring0, |m| m.cpu.gpr[0] = 0x48, MOV_DS_AX => NP Some(0x48);
    "mov ss, absent data": ring0, |m| m.cpu.gpr[0] = 0x48, MOV_SS_AX => SS Some(0x48);
    "mov ss, null": ring0, |m| m.cpu.gpr[0] = 0, MOV_SS_AX => GP Some(0);
    "mov ss, null in ring 3 of long mode": long3, |m| m.cpu.gpr[0] = 3, MOV_SS_AX => GP Some(0);
    "mov ss, ring 3 data": ring0, |m| m.cpu.gpr[0] = 0x23, MOV_SS_AX => GP Some(0x20);
    "mov ss, read-only data": ring0, |m| m.cpu.gpr[0] = 0xa0, MOV_SS_AX => GP Some(0xa0);
    "mov cs": ring0, nothing, &[0x8e, 0xc8] => UD None;
    // Ring 0 instructions elsewhere.
    "hlt": ring3, nothing, &[0xf4] => GP Some(0);
    "cli": ring3, nothing, &[0xfa] => GP Some(0);
    "in al, dx outside the bitmap": ring3, |m| m.cpu.gpr[2] = 0x1000, &[0xec] => GP Some(0);
    "out to a port the bitmap denies": ring3, |m| m.write(TSS_A + 0x68 + 8, 1, 2), &[0xe7, 0x40] => GP Some(0);
    "mov eax, cr0": ring3, nothing, &[0x0f, 0x20, 0xc0] => GP Some(0);
    "rdmsr": ring3, nothing, &[0x0f, 0x32] => GP Some(0);
    "wbinvd": ring3, nothing, &[0x0f, 0x09] => GP Some(0);
    "clts": ring3, nothing, &[0x0f, 0x06] => GP Some(0);
    "lgdt": ring3, nothing, &[0x0f, 0x01, 0x15, 0, 0, 1, 0] => GP Some(0);
    "ltr of a busy TSS": ring0, |m| m.cpu.gpr[0] = 0x28, &[0x0f, 0x00, 0xd8] => GP Some(0x28);
    "lldt of data": ring0, |m| m.cpu.gpr[0] = 0x10, &[0x0f, 0x00, 0xd0] => GP Some(0x10);
    "sgdt under UMIP": ring3, |m| m.cpu.control.cr4 |= 1 << 11, &[0x0f, 0x01, 0x05, 0, 0, 1, 0] => GP Some(0);
    "smsw under UMIP": ring3, |m| m.cpu.control.cr4 |= 1 << 11, &[0x0f, 0x01, 0xe0] => GP Some(0);
    "swapgs": long3, nothing, &[0x0f, 0x01, 0xf8] => GP Some(0);
    "rdtsc under TSD": ring3, |m| m.cpu.control.cr4 |= 4, &[0x0f, 0x31] => GP Some(0);
    "rdpmc": ring0, nothing, &[0x0f, 0x33] => GP Some(0);
    // Control and debug registers.
    "paging without protection": ring0, |m| m.cpu.gpr[0] = 1 << 31, &[0x0f, 0x22, 0xc0] => GP Some(0);
    "write-through without cache disable": ring0, |m| m.cpu.gpr[0] = 1 << 29 | 1, &[0x0f, 0x22, 0xc0] => GP Some(0);
    "leaving long mode from 64-bit code": long0, |m| m.cpu.gpr[0] = 1, &[0x0f, 0x22, 0xc0] => GP Some(0);
    "clearing PAE in long mode": long0, |m| m.cpu.gpr[0] = 0, &[0x0f, 0x22, 0xe0] => GP Some(0);
    "a reserved bit of CR4": ring0, |m| m.cpu.gpr[0] = 1 << 15, &[0x0f, 0x22, 0xe0] => GP Some(0);
    "PCIDs outside long mode": ring0, |m| m.cpu.gpr[0] = 1 << 17, &[0x0f, 0x22, 0xe0] => GP Some(0);
    "CR3 beyond the physical address width": long0, |m| m.cpu.gpr[0] = 1 << 45, &[0x0f, 0x22, 0xd8] => GP Some(0);
    "CR8 above 15": long0, |m| m.cpu.gpr[0] = 16, &[0x44, 0x0f, 0x22, 0xc0] => GP Some(0);
    "DR7 beyond 32 bits": long0, |m| m.cpu.gpr[0] = 1 << 32, &[0x0f, 0x23, 0xf8] => GP Some(0);
    "DR4 with debugging extensions": ring0, |m| m.cpu.control.cr4 |= 8, &[0x0f, 0x21, 0xe0] => UD None;
    "DR0 under general detect": ring0, |m| m.cpu.control.dr[7] |= 1 << 13, &[0x0f, 0x21, 0xc0] => DB None;
    "xgetbv without OSXSAVE": ring0, nothing, &[0x0f, 0x01, 0xd0] => UD None;
    "AVX state without SSE state": ring0, |m| { m.cpu.control.cr4 |= 1 << 18; m.cpu.gpr[0] = 5; m.cpu.gpr[1] = 0; m.cpu.gpr[2] = 0 }, &[0x0f, 0x01, 0xd1] => GP Some(0);
    // Fast calls.
    "syscall without SCE": long3, |m| m.cpu.control.efer &= !1, &[0x0f, 0x05] => UD None;
    "syscall in 32-bit code": ring3, |m| m.cpu.control.efer |= 1, &[0x0f, 0x05] => UD None;
    "sysret in ring 3": long3, nothing, &[0x48, 0x0f, 0x07] => GP Some(0);
    "sysret to a non-canonical address": long0, |m| m.cpu.gpr[1] = 1 << 63, &[0x48, 0x0f, 0x07] => GP Some(0);
    "sysenter without a selector": ring3, nothing, &[0x0f, 0x34] => GP Some(0);
    "rdfsbase not enabled": long3, nothing, &[0xf3, 0x48, 0x0f, 0xae, 0xc0] => UD None;
    // Instructions that real mode does not have.
    "lldt in real mode": real, nothing, &[0x0f, 0x00, 0xd0] => UD None;
    "arpl in real mode": real, nothing, &[0x63, 0xc0] => UD None;
    "lar in real mode": real, nothing, &[0x0f, 0x02, 0xc0] => UD None;
    "sysenter in real mode": real, nothing, &[0x0f, 0x34] => GP Some(0);
};

fn real() -> Machine {
    Machine::real()
}

#[test]
fn refused_and_unchanged() {
    for case in CASES {
        let mut machine = (case.machine)();
        (case.prepare)(&mut machine);
        let before = format!("{:?}", machine.cpu);
        let fault = machine.step(case.code).expect_err(case.what);
        assert_eq!(
            (fault.vector, fault.error_code),
            (case.vector, case.error_code),
            "{}",
            case.what
        );
        assert_eq!(before, format!("{:?}", machine.cpu), "{}", case.what);
    }
}

/// Processors read ARPL's operand with the rights of a read, and ask for more only to write.
#[test]
fn arpl_that_changes_nothing_needs_no_right_to_write() {
    let mut m = Machine::protected(0);
    m.cpu.segments[3].attributes &= !dbt::guest::Segment::WRITABLE;
    m.cpu.refresh_mode();
    m.cpu.gpr[3] = 2;
    // arpl [0x7000], bx
    let code = [0x63, 0x1d, 0x00, 0x70, 0x00, 0x00];
    m.write(0x7000, 2, 0xfff3);
    assert_eq!(m.step(&code), Ok(()));
    assert_eq!(m.cpu.arithmetic_flags & dbt::guest::flags::ZF, 0);
    m.write(0x7000, 2, 0xfff0);
    let fault = m.step(&code).expect_err("a write to a read-only segment");
    assert_eq!((fault.vector, fault.error_code), (Exception::GP, Some(0)));
}
