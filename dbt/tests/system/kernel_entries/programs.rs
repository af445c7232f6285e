//! The programs and what is unusual about each.

use dbt::guest::flags::*;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::{Case, DATA, ENTRY, KERNEL, RAISE};

/// A system call, with other flags in each round.
pub fn calls(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.add(eax, 0x1357)?;
    a.sahf()?;
    a.seto(cl)?;
    a.std()?;
    a.syscall()?;
    a.nop()?;
    a.nop()?;
    a.pushfq()?;
    a.pop(rdx)?;
    a.add(r15, rdx)?;
    a.ror(r15, 3)?;
    a.cld()?;
    a.jmp(again)
}

/// A system call behind which each of 64 places is returned to.
pub fn calls_from_many_places(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.add(eax, 0x1357)?;
    a.sahf()?;
    a.syscall()?;
    for _ in 0..64 {
        a.nop()?;
    }
    a.jmp(again)
}

/// Has the return lead further behind the call each time.
pub fn move_on(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.inc(rbp)?;
    a.mov(edx, ebp)?;
    a.and(edx, 63)?;
    a.add(rcx, rdx)
}

fn returns_elsewhere(a: &mut CodeAssembler) -> Result<(), IcedError> {
    look(a)?;
    move_on(a)?;
    a.sysretq()
}

/// Does something in each eighth round, so that the usual way is known by then.
pub fn each_eighth(
    a: &mut CodeAssembler,
    unusual: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let mut usual = a.create_label();
    a.inc(rbp)?;
    a.test(ebp, 7)?;
    a.jnz(usual)?;
    unusual(a)?;
    a.set_label(&mut usual)
}

/// What a handler sees goes into R13 and R14.
pub fn look(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.pushfq()?;
    a.pop(rdx)?;
    a.add(r13, rdx)?;
    a.add(r13, rcx)?;
    a.add(r14, r11)?;
    a.ror(r14, 5)
}

fn returns(a: &mut CodeAssembler) -> Result<(), IcedError> {
    look(a)?;
    a.sysretq()
}

/// Without a stack, which SMAP would deny.
fn returns_at_once(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.add(r13, rcx)?;
    a.add(r14, r11)?;
    a.ror(r14, 5)?;
    a.sysretq()
}

/// Returns with this in R11 in each eighth round, so that the usual way is known by then.
fn returns_with(a: &mut CodeAssembler, flags: u64) -> Result<(), IcedError> {
    look(a)?;
    each_eighth(a, |a| a.or(r11, flags as i32))?;
    a.sysretq()
}

/// Changes a model-specific register by XOR, in each eighth round; if that makes the return fault,
/// changes it back.
fn changes(a: &mut CodeAssembler, msr: u32, low: u32, high: u32) -> Result<(), IcedError> {
    look(a)?;
    each_eighth(a, |a| change(a, msr, low, high))?;
    a.sysretq()?;
    change(a, msr, low, high)?;
    a.sysretq()
}

fn change(a: &mut CodeAssembler, msr: u32, low: u32, high: u32) -> Result<(), IcedError> {
    a.mov(r10, rcx)?;
    a.mov(r9, rax)?;
    a.mov(ecx, msr)?;
    a.rdmsr()?;
    a.xor(eax, low as i32)?;
    a.xor(edx, high as i32)?;
    a.wrmsr()?;
    a.mov(rax, r9)?;
    a.mov(rcx, r10)
}

/// A system call, and no use of the stack.
fn only_calls(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.add(eax, 0x1357)?;
    a.syscall()?;
    a.jmp(again)
}

/// Accesses that would be one group, but for what happens to the rights between them; the last one
/// faults with SMAP.
fn with_user_data(a: &mut CodeAssembler) -> Result<(), IcedError> {
    // Accesses of one group but for STAC and CLAC, which come between.
    a.mov(ebx, DATA as i32)?;
    a.stac()?;
    a.mov(rdx, qword_ptr(rbx))?;
    a.add(rdx, rcx)?;
    a.mov(qword_ptr(rbx + 8), rdx)?;
    a.clac()?;
    a.add(r13, qword_ptr(rsi + 8))?;
    a.mov(rdx, qword_ptr(rbx))?;
    a.add(r13, rdx)?;
    a.sysretq()
}

pub fn cases() -> Vec<Case> {
    vec![
        Case {
            what: "usual",
            user: calls,
            kernel: returns,
            prepare: |_| {},
            inline: true,
        },
        Case {
            what: "to many places",
            user: calls_from_many_places,
            kernel: returns_elsewhere,
            prepare: |_| {},
            inline: false,
        },
        Case {
            what: "to many places, where an interrupt is let in",
            user: calls_from_many_places,
            kernel: |a| {
                a.out(RAISE, al)?;
                returns_elsewhere(a)
            },
            prepare: |cpu| cpu.interrupt_flag = 1,
            inline: false,
        },
        Case {
            what: "to a page that is not there",
            user: calls,
            kernel: |a| {
                look(a)?;
                each_eighth(a, |a| a.bts(rcx, 46))?;
                a.sysretq()
            },
            prepare: |_| {},
            inline: false,
        },
        Case {
            what: "interrupts on",
            user: calls,
            kernel: returns,
            prepare: |cpu| cpu.interrupt_flag = 1,
            inline: true,
        },
        Case {
            what: "nothing masked",
            user: calls,
            kernel: returns,
            prepare: |cpu| cpu.msrs.fmask = 0,
            inline: true,
        },
        Case {
            what: "everything masked",
            user: calls,
            kernel: returns,
            prepare: |cpu| cpu.msrs.fmask = u64::from(u32::MAX),
            inline: true,
        },
        Case {
            what: "AC not masked, with SMAP",
            user: calls,
            kernel: returns_at_once,
            prepare: |cpu| {
                cpu.control.cr4 |= CR4_SMAP;
                cpu.msrs.fmask = IF;
                cpu.system_flags |= AC;
            },
            inline: false,
        },
        Case {
            what: "AC masked, with SMAP",
            user: calls,
            kernel: returns_at_once,
            prepare: |cpu| {
                cpu.control.cr4 |= CR4_SMAP;
                cpu.system_flags |= ID;
            },
            inline: true,
        },
        Case {
            what: "IOPL 3",
            user: calls,
            kernel: returns,
            prepare: |cpu| cpu.system_flags |= IOPL,
            inline: false,
        },
        Case {
            what: "TF returned",
            user: calls,
            kernel: |a| returns_with(a, TF),
            prepare: |_| {},
            inline: true,
        },
        Case {
            what: "AC returned, alignment checked",
            user: calls,
            kernel: |a| returns_with(a, AC),
            prepare: |cpu| {
                cpu.control.cr0 |= CR0_AM;
                cpu.gpr[4] -= 3;
            },
            inline: false,
        },
        Case {
            what: "RF, VM, NT, ID, VIF and VIP returned",
            user: calls,
            kernel: |a| returns_with(a, RF | VM | NT | ID | VIF | VIP),
            prepare: |_| {},
            inline: true,
        },
        Case {
            what: "an address that is not canonical",
            user: calls,
            kernel: |a| {
                look(a)?;
                each_eighth(a, |a| a.bts(rcx, 47))?;
                a.sysretq()?;
                a.btr(rcx, 47)?;
                a.sysretq()
            },
            prepare: |_| {},
            inline: false,
        },
        Case {
            what: "an interrupt waits for the return",
            user: calls,
            kernel: |a| {
                look(a)?;
                each_eighth(a, |a| a.out(RAISE, al))?;
                a.sysretq()
            },
            prepare: |cpu| cpu.interrupt_flag = 1,
            inline: false,
        },
        Case {
            what: "STAR changes",
            user: calls,
            kernel: |a| changes(a, 0xc000_0081, 0, 0x0008_0000),
            prepare: |_| {},
            inline: false,
        },
        Case {
            what: "LSTAR changes",
            user: calls,
            kernel: |a| {
                a.nop()?;
                changes(a, 0xc000_0082, ENTRY as u32 ^ (ENTRY as u32 + 1), 0)
            },
            prepare: |_| {},
            inline: false,
        },
        Case {
            what: "system calls are switched off",
            user: calls,
            kernel: |a| changes(a, 0xc000_0080, 1, 0),
            prepare: |_| {},
            inline: false,
        },
        Case {
            what: "user pages opened and closed, with SMAP",
            user: only_calls,
            kernel: with_user_data,
            prepare: |cpu| {
                cpu.control.cr4 |= CR4_SMAP;
                cpu.gpr[6] = KERNEL + DATA;
            },
            inline: false,
        },
        Case {
            what: "user pages opened and closed, without SMAP",
            user: calls,
            kernel: with_user_data,
            prepare: |cpu| cpu.gpr[6] = KERNEL + DATA,
            inline: true,
        },
        Case {
            what: "bases and control registers",
            user: |a| {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.add(eax, 0x1357)?;
                a.wrfsbase(rax)?;
                a.rdfsbase(rdx)?;
                a.rdgsbase(ebx)?;
                a.syscall()?;
                a.jmp(again)
            },
            kernel: |a| {
                let mut usual = a.create_label();
                a.mov(rdx, cr0)?;
                a.add(r13, rdx)?;
                a.mov(rdx, cr4)?;
                a.xor(r13, rdx)?;
                a.mov(r10, cr3)?;
                a.add(r13, r10)?;
                a.mov(r9, cr2)?;
                a.add(r13, r9)?;
                a.wrgsbase(eax)?;
                a.inc(rbp)?;
                a.test(ebp, 7)?;
                a.jnz(usual)?;
                a.mov(rdx, 1u64 << 47)?;
                a.wrgsbase(rdx)?;
                a.set_label(&mut usual)?;
                a.sysretq()
            },
            prepare: |cpu| {
                cpu.control.cr4 |= CR4_FSGSBASE;
                cpu.gpr[7] = 5;
            },
            inline: false,
        },
        Case {
            what: "rights by protection key",
            user: |a| {
                // In each sixteenth round ECX is not zero, and RDPKRU faults.
                let mut again = a.create_label();
                let mut usual = a.create_label();
                a.set_label(&mut again)?;
                a.xor(ecx, ecx)?;
                a.inc(rbx)?;
                a.test(ebx, 15)?;
                a.jnz(usual)?;
                a.inc(ecx)?;
                a.set_label(&mut usual)?;
                a.rdpkru()?;
                a.add(r15, rax)?;
                a.lea(rax, qword_ptr(rbx + rdx))?;
                a.mov(rdx, rax)?;
                a.rol(r15, 5)?;
                a.jmp(again)
            },
            kernel: returns,
            prepare: |cpu| {
                cpu.control.cr4 |= CR4_PKE;
                cpu.control.pkru = 0x5555_5554;
                // The length of RDPKRU.
                cpu.gpr[7] = 3;
            },
            inline: true,
        },
        Case {
            what: "protection keys are off",
            user: |a| {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.xor(ecx, ecx)?;
                a.rdpkru()?;
                a.add(r15, rax)?;
                a.inc(rax)?;
                a.jmp(again)
            },
            kernel: returns,
            prepare: |cpu| cpu.gpr[7] = 3,
            inline: false,
        },
        Case {
            what: "bases are switched off",
            user: |a| {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.wrfsbase(rax)?;
                a.inc(rax)?;
                a.rdgsbase(rdx)?;
                a.jmp(again)
            },
            kernel: returns,
            prepare: |cpu| cpu.gpr[7] = 5,
            inline: false,
        },
    ]
}
