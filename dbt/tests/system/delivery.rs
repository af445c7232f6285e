//! Interrupts and exceptions, and the returns from them.

use std::time::Duration;

use dbt::guest::flags::*;
use dbt::guest::{Exception, Segment, SegmentIndex};
use dbt::interpret::system::deliver::{self, Shutdown};
use dbt::run::{EngineOptions, Ring, Stop, ThreadTimer};

use crate::machine::*;

/// SDM volume 3, 6.12.1: to an inner level and back by IRET.
#[test]
fn interrupt_gate_changes_privilege_and_iret_returns() {
    let mut machine = Machine::protected(3);
    machine.cpu.set_rflags(IF | CF | TF, IF | CF | TF);
    machine.run(&[0xcd, 0x31]);
    assert_eq!(machine.cpu.rip, HANDLER + 0x310);
    assert_eq!(machine.cpu.cpl(), 0);
    assert_eq!(machine.selector(SegmentIndex::Cs), CODE0);
    assert_eq!(machine.selector(SegmentIndex::Ss), DATA0);
    assert_eq!(machine.cpu.gpr[4], KERNEL_STACK - 20);
    assert_eq!(
        machine.stack(4, 5),
        [CODE + 2, 0x1b, 0x303, USER_STACK, 0x23]
    );
    assert_eq!(machine.cpu.rflags() & (IF | TF | CF), CF);
    // The accessed bits of the segments used were set in the GDT.
    assert_eq!(machine.read(GDT + 0x0d, 1) & 1, 1);
    assert_eq!(machine.read(GDT + 0x15, 1) & 1, 1);
    machine.run(&[0xcf]);
    assert_eq!(machine.cpu.rip, CODE + 2);
    assert_eq!(machine.cpu.cpl(), 3);
    assert_eq!(machine.cpu.gpr[4], USER_STACK);
    assert_eq!(machine.cpu.rflags() & (IF | TF | CF), IF | TF | CF);
}

/// Volume 3, 5.8.6: data segments of an inner level are dropped on the way out.
#[test]
fn iret_outwards_drops_inner_data_segments() {
    let mut machine = Machine::protected(0);
    machine.cpu.segments[SegmentIndex::Fs as usize].attributes |= 3 << 5;
    for (index, value) in [CODE, 0x1b, 2, USER_STACK, 0x23].into_iter().enumerate() {
        machine.write(KERNEL_STACK + 4 * index as u64, 4, value);
    }
    machine.run(&[0xcf]);
    assert_eq!(machine.selector(SegmentIndex::Ds), 0);
    assert!(!machine.cpu.segment(SegmentIndex::Ds).present());
    assert!(machine.cpu.segment(SegmentIndex::Fs).present());
}

/// A trap gate leaves IF; a 16-bit gate pushes words and uses 16 bits of offset.
#[test]
fn trap_gate_and_narrow_gate() {
    let mut machine = Machine::protected(0);
    machine.cpu.set_rflags(IF, IF);
    machine.run(&[0xcd, 0x33]);
    assert_eq!(machine.cpu.rflags() & IF, IF);
    machine.cpu.rip = CODE;
    machine.cpu.gpr[4] = KERNEL_STACK;
    machine.run(&[0xcd, 0x34]);
    assert_eq!(machine.cpu.rip, HANDLER & 0xffff);
    assert_eq!(machine.cpu.gpr[4], KERNEL_STACK - 6);
    assert_eq!(machine.cpu.rflags() & IF, 0);
}

/// Faults push RF and the error code, traps do not push RF (volume 3, 17.3.1.1).
#[test]
fn fault_pushes_error_code_and_resume_flag() {
    let mut machine = Machine::protected(0);
    machine.cpu.gpr[0] = u64::from(ABSENT);
    machine.step_and_deliver(&[0x8e, 0xd8]).unwrap();
    assert_eq!(machine.cpu.rip, HANDLER + 16 * 11);
    assert_eq!(machine.stack(4, 4), [0x48, CODE, 8, RF | 2]);
}

/// Volume 3, 6.14: the stack is aligned, SS:RSP always pushed, SS null after a level change.
#[test]
fn long_mode_delivery_aligns_the_stack() {
    let mut machine = Machine::long(0);
    machine.cpu.gpr[4] = KERNEL_STACK - 3;
    machine.step_and_deliver(&[0x0f, 0x0b]).unwrap();
    assert_eq!(machine.cpu.rip, HANDLER + 16 * 6);
    assert_eq!(machine.cpu.gpr[4], KERNEL_STACK - 16 - 40);
    let frame = machine.stack(8, 5);
    assert_eq!(frame, [CODE, 0x50, RF | 2, KERNEL_STACK - 3, 0x58]);
    assert_eq!(machine.selector(SegmentIndex::Ss), LONG_DATA0);

    let mut machine = Machine::long(3);
    machine.step_and_deliver(&[0xf4]).unwrap();
    assert_eq!(machine.selector(SegmentIndex::Ss), 0);
    assert_eq!(machine.cpu.cpl(), 0);
    let frame = machine.stack(8, 6);
    assert_eq!(frame, [0, CODE, 0x73, RF | 2, USER_STACK, 0x6b]);
    machine.cpu.gpr[4] += 8;
    machine.run(&[0x48, 0xcf]);
    assert_eq!((machine.cpu.rip, machine.cpu.cpl()), (CODE, 3));
    assert_eq!(machine.selector(SegmentIndex::Ss), LONG_DATA3);
}

/// Volume 3, 6.14.5: the interrupt stack table, also without a level change.
#[test]
fn interrupt_stack_table() {
    let mut machine = Machine::long(0);
    machine.write(IDT + 16 * 6, 8, gate(LONG_CODE0, HANDLER, 14, 0, 1));
    machine.step_and_deliver(&[0x0f, 0x0b]).unwrap();
    assert_eq!(machine.cpu.gpr[4], KERNEL_STACK + 0x1000 - 40);
    assert_eq!(machine.stack(8, 5)[3], KERNEL_STACK);
    // An IRETQ to the same level in 64-bit mode loads SS, which may be null in ring 0.
    let top = machine.cpu.gpr[4];
    machine.write(top + 32, 8, 0);
    machine.run(&[0x48, 0xcf]);
    assert_eq!((machine.cpu.rip, machine.cpu.gpr[4]), (CODE, KERNEL_STACK));
    assert_eq!(machine.selector(SegmentIndex::Ss), 0);
}

/// Volume 3, table 6-5: a second contributory exception becomes #DF, a third stops.
#[test]
fn double_fault_then_shutdown() {
    let mut machine = Machine::protected(0);
    // #GP's gate is absent: #NP while #GP is delivered.
    let absent = gate(CODE0, HANDLER, 14, 0, 0) & !(0x80 << 40);
    machine.write(IDT + 8 * 13, 8, absent);
    machine.cpu.gpr[0] = 0xa8;
    machine.step_and_deliver(&[0x8e, 0xd8]).unwrap();
    assert_eq!(machine.cpu.rip, HANDLER + 16 * 8);
    assert_eq!(machine.stack(4, 2), [0, CODE]);

    let mut machine = Machine::protected(0);
    machine.cpu.control.idtr.limit = 0;
    assert_eq!(machine.step_and_deliver(&[0x0f, 0x0b]), Err(Shutdown));
}

/// A benign exception whose delivery faults gives way to the fault: #UD, then #NP.
#[test]
fn benign_exception_is_replaced() {
    let mut machine = Machine::protected(0);
    let absent = gate(CODE0, HANDLER, 14, 0, 0) & !(0x80 << 40);
    machine.write(IDT + 8 * 6, 8, absent);
    machine.step_and_deliver(&[0x0f, 0x0b]).unwrap();
    assert_eq!(machine.cpu.rip, HANDLER + 16 * 11);
    // The selector is the gate's: IDT, and EXT as an exception was being delivered.
    assert_eq!(machine.stack(4, 1), [6 * 8 + 3]);
}

/// A page fault on the way to an unmapped stack is a double fault, on its own stack.
#[test]
fn page_fault_pushing_a_page_fault() {
    let mut machine = Machine::long(0);
    machine.write(IDT + 16 * 8, 8, gate(LONG_CODE0, HANDLER, 14, 0, 1));
    machine.cpu.gpr[4] = 0x5000_0000;
    let fault = Exception {
        vector: Exception::PF,
        error_code: Some(0),
        address: 0x7777_0000,
    };
    deliver::exception(&mut machine.context(), fault).unwrap();
    assert_eq!(machine.cpu.control.cr2, 0x5000_0000 - 8);
    assert_eq!(machine.cpu.rip, HANDLER);
    assert_eq!(machine.stack(8, 2), [0, CODE]);
}

/// Volume 3, 20.1.4.
#[test]
fn real_mode_interrupt_and_iret() {
    let mut machine = Machine::real();
    machine.write(4 * 0x21, 4, 0x1234_5678);
    machine.cpu.set_rflags(IF | ZF, IF | ZF);
    machine.run(&[0xcd, 0x21]);
    assert_eq!(machine.cpu.rip, 0x5678);
    let cs = machine.cpu.segment(SegmentIndex::Cs);
    assert_eq!((cs.selector, cs.base), (0x1234, 0x1_2340));
    assert_eq!(machine.stack(2, 3), [0x8002, 0, 0x242]);
    assert_eq!(machine.cpu.rflags() & (IF | ZF), ZF);
    machine.run(&[0xcf]);
    assert_eq!((machine.cpu.rip, machine.cpu.gpr[4]), (0x8002, 0x7000));
    assert_eq!(machine.cpu.rflags() & (IF | ZF), IF | ZF);
}

fn enter_vm86(machine: &mut Machine, flags: u64) {
    let frame = [
        0x8000,
        0x100,
        flags | VM,
        0x6000,
        0x200,
        0x300,
        0x400,
        0x500,
        0x600,
    ];
    for (index, value) in frame.into_iter().enumerate() {
        machine.write(KERNEL_STACK + 4 * index as u64, 4, value);
    }
    machine.run(&[0xcf]);
    assert_eq!(machine.cpu.cpl(), 3);
    assert_eq!(machine.cpu.rip, 0x8000);
}

/// Volume 3, 20.2.5 and 20.3.1: into virtual-8086 mode, out by an interrupt, in again.
#[test]
fn vm86_round_trip() {
    let mut machine = Machine::protected(0);
    enter_vm86(&mut machine, IOPL | IF);
    assert_eq!(machine.cpu.segment(SegmentIndex::Es).base, 0x3000);
    assert_eq!(machine.cpu.segment(SegmentIndex::Gs).base, 0x6000);
    machine.run(&[0xcd, 0x31]);
    assert_eq!(machine.cpu.cpl(), 0);
    assert_eq!(machine.cpu.rflags() & VM, 0);
    let frame = machine.stack(4, 9);
    assert_eq!(frame[0..2], [0x8002, 0x100]);
    assert_eq!(frame[2] & (VM | IOPL | IF), VM | IOPL | IF);
    assert_eq!(frame[3..], [0x6000, 0x200, 0x300, 0x400, 0x500, 0x600]);
    assert_eq!(machine.selector(SegmentIndex::Ds), 0);
    machine.run(&[0xcf]);
    assert_eq!(machine.cpu.rflags() & VM, VM);
    assert_eq!(machine.cpu.rip, 0x8002);
    assert_eq!(machine.selector(SegmentIndex::Fs), 0x500);
}

/// Volume 3, 20.3.3: without IOPL, INT n faults; with VME and the bit clear it goes to the
/// program's own table and VIF stands for IF.
#[test]
fn vm86_software_interrupts() {
    let mut machine = Machine::protected(0);
    enter_vm86(&mut machine, VIF);
    let fault = machine.step(&[0xcd, 0x31]).unwrap_err();
    assert_eq!(fault, Exception::general_protection(0));
    // CLI too.
    assert_eq!(
        machine.step(&[0xfa]).unwrap_err(),
        Exception::general_protection(0)
    );
    machine.cpu.control.cr4 |= CR4_VME;
    machine.cpu.control.tr.limit = 0xff;
    machine.write(TSS_A + 102, 2, 0x88);
    machine.write(4 * 0x31, 4, 0x0111_2222);
    machine.run(&[0xcd, 0x31]);
    assert_eq!(machine.cpu.rip, 0x2222);
    assert_eq!(machine.selector(SegmentIndex::Cs), 0x111);
    assert_eq!(machine.cpu.rflags() & (VM | VIF), VM);
    assert_eq!(machine.stack(2, 3), [0x8002, 0x100, 0x3202]);
    machine.run(&[0xcf]);
    assert_eq!(machine.cpu.rflags() & (VM | VIF | IOPL), VM | VIF);
    assert_eq!(machine.cpu.rip, 0x8002);
}

/// Volume 3, 6.8: what waits is taken in order, and only when it may be.
#[test]
fn pending_events_in_order() {
    let mut machine = Machine::protected(0);
    machine.platform.vector = Some(0x30);
    machine.platform.nmi = true;
    machine.cpu.pending_debug = 1 << 14;
    machine.cpu.halted = 1;
    machine.cpu.set_rflags(IF, IF);
    assert_eq!(deliver::pending(&mut machine.context()), Ok(true));
    assert_eq!(machine.cpu.rip, HANDLER + 16);
    assert_eq!(machine.cpu.control.dr[6] & 0x400f, 0x4000);
    assert_eq!(machine.cpu.halted, 0);
    assert_eq!(deliver::pending(&mut machine.context()), Ok(true));
    assert_eq!(machine.cpu.rip, HANDLER + 32);
    assert_eq!(machine.cpu.nmi_masked, 1);
    // IF was cleared by the gates.
    assert_eq!(deliver::pending(&mut machine.context()), Ok(false));
    machine.cpu.set_rflags(IF, IF);
    machine.cpu.interrupt_shadow = 1;
    assert_eq!(deliver::pending(&mut machine.context()), Ok(false));
    machine.cpu.interrupt_shadow = 0;
    machine.platform.nmi = true;
    assert_eq!(deliver::pending(&mut machine.context()), Ok(true));
    assert_eq!(machine.cpu.rip, HANDLER + 0x300);
    assert!(machine.platform.nmi, "a second NMI waits for IRET");
    machine.run(&[0xcf]);
    assert_eq!(machine.cpu.nmi_masked, 0);
}

/// STI and MOV SS hold interrupts back for one instruction.
#[test]
fn shadows() {
    let mut machine = Machine::protected(0);
    machine.run(&[0xfb]);
    assert_eq!(machine.cpu.interrupt_shadow, 1);
    machine.cpu.interrupt_shadow = 0;
    machine.run(&[0xfb]);
    assert_eq!(machine.cpu.interrupt_shadow, 0, "IF was set already");
    machine.cpu.gpr[0] = u64::from(DATA0);
    machine.run(&[0x8e, 0xd0]);
    assert_ne!(machine.cpu.interrupt_shadow, 0);
}

/// A machine check with CR4.MCE clear stops the processor.
#[test]
fn machine_check_needs_permission() {
    let mut machine = Machine::protected(0);
    let check = Exception::plain(Exception::MC);
    assert_eq!(
        deliver::exception(&mut machine.context(), check),
        Err(Shutdown)
    );
    machine.cpu.control.cr4 |= CR4_MCE;
    assert_eq!(deliver::exception(&mut machine.context(), check), Ok(()));
    assert_eq!(machine.cpu.rip, HANDLER + 16 * 18);
}

/// A frame that does not fit its stack faults before anything is written.
#[test]
fn frame_that_does_not_fit() {
    let mut machine = Machine::protected(0);
    let ss = machine.cpu.segment_mut(SegmentIndex::Ss);
    ss.attributes |= Segment::CONFORMING;
    ss.limit = (KERNEL_STACK - 5) as u32;
    machine.write(KERNEL_STACK - 4, 4, 0x5555);
    let fault = machine.step(&[0xcd, 0x31]).unwrap_err();
    assert_eq!(fault, Exception::stack_fault(0));
    assert_eq!(machine.read(KERNEL_STACK - 4, 4), 0x5555);
}

/// What interrupts a repeated string instruction between two iterations pushes flags with RF set, the
/// last iteration excepted (SDM volume 3, 17.3.1.1).
#[test]
fn string_instructions_are_interrupted_with_rf() {
    const REP_STOSB: &[u8] = &[0xf3, 0xaa];
    for (count, iterations, expected) in [(3, 1, RF), (3, 2, RF), (3, 3, 0), (1, 1, 0)] {
        for event in ["interrupt", "NMI", "trap"] {
            let mut m = Machine::long(0);
            m.cpu.interrupt_flag = 1;
            m.cpu.set_rflags(TF, TF);
            m.cpu.gpr[1] = count;
            m.cpu.gpr[7] = 0x11_0000;
            for _ in 0..iterations {
                m.run(REP_STOSB);
            }
            match event {
                "interrupt" => m.platform.vector = Some(0x31),
                "NMI" => m.platform.nmi = true,
                _ => m.cpu.pending_debug = 0x4000,
            }
            assert_eq!(deliver::pending(&mut m.context()), Ok(true));
            let flags = m.stack(8, 3)[2];
            assert_eq!(
                flags & RF,
                expected,
                "{event} behind {iterations} of {count}"
            );
            // What comes next is not in the middle of anything.
            m.platform.nmi = false;
            assert_eq!(
                deliver::exception(&mut m.context(), Exception::plain(Exception::BP)),
                Ok(())
            );
            assert_eq!(m.stack(8, 3)[2] & RF, 0);
        }
    }
}

/// The host raises the guest's divide errors while timers ring: the frames of all of them do not fit the stack for signals.
#[test]
fn timers_ring_while_the_host_faults() {
    const ERRORS: u64 = 10_000;
    let mut machine = Machine::long(0);
    let divide: [u8; 4] = [0xf7, 0xf1, 0xeb, 0xfc]; // div ecx; jmp back
    let handler: [u8; 10] = [0x48, 0x83, 0x04, 0x24, 2, 0x49, 0xff, 0xc7, 0x48, 0xcf]; // add [rsp], 2; inc r15; iretq
    for (at, code) in [(CODE, &divide[..]), (HANDLER, &handler[..])] {
        for (at, &byte) in (at..).zip(code) {
            machine.write(at, 1, byte.into());
        }
    }
    machine.cpu.gpr[1] = 0;
    machine.cpu.gpr[15] = 0;
    let options = EngineOptions {
        cold: 0,
        code_bytes: 2 << 20,
        ..EngineOptions::default()
    };
    let mut vcpu = machine.into_vcpu(options);
    let timers = [Ring::Deadline, Ring::Sample].map(|ring| {
        let timer = ThreadTimer::new(vcpu.exit_request(), ring).expect("the host has timers");
        timer.arm(Duration::from_micros(50), Duration::from_micros(50));
        timer
    });
    while vcpu.cpu().gpr[15] < ERRORS {
        assert_eq!(vcpu.run(), Stop::Requested);
    }
    drop(timers);
}
