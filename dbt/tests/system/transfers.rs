//! Far transfers, task switches and fast calls that succeed.

use dbt::guest::flags::*;
use dbt::guest::{Exception, SegmentIndex};

use crate::machine::*;

/// SDM volume 3, 5.8.4 and 5.8.5: parameters are copied to the inner stack.
#[test]
fn call_gate_with_parameters() {
    let mut machine = Machine::protected(3);
    machine.write(USER_STACK, 4, 0x1111);
    machine.write(USER_STACK + 4, 4, 0x2222);
    machine.run(&[0x9a, 0, 0, 0, 0, 0x3b, 0]);
    assert_eq!((machine.cpu.rip, machine.cpu.cpl()), (HANDLER, 0));
    assert_eq!(machine.cpu.gpr[4], KERNEL_STACK - 24);
    assert_eq!(
        machine.stack(4, 6),
        [CODE + 7, 0x1b, 0x1111, 0x2222, USER_STACK, 0x23]
    );
    // RETF 8 releases the parameters on both stacks.
    machine.run(&[0xca, 8, 0]);
    assert_eq!((machine.cpu.rip, machine.cpu.cpl()), (CODE + 7, 3));
    assert_eq!(machine.cpu.gpr[4], USER_STACK + 8);
}

#[test]
fn narrow_call_gate() {
    let mut machine = Machine::protected(3);
    machine.write(USER_STACK, 2, 0x7777);
    machine.run(&[0x9a, 0, 0, 0, 0, 0xc3, 0]);
    assert_eq!(machine.cpu.rip, HANDLER & 0xffff);
    assert_eq!(
        machine.stack(2, 5),
        [(CODE + 7) & 0xffff, 0x1b, 0x7777, USER_STACK & 0xffff, 0x23]
    );
}

/// Volume 3, 5.8.3.1: 64-bit call gates push four quadwords and leave SS null.
#[test]
fn long_call_gate() {
    let mut machine = Machine::long(3);
    machine.write(CODE + 0x100, 4, 0);
    machine.write(CODE + 0x104, 2, u64::from(LONG_CALL_GATE));
    machine.run(&[0xff, 0x1c, 0x25, 0, 1, 1, 0]);
    assert_eq!((machine.cpu.rip, machine.cpu.cpl()), (HANDLER, 0));
    assert_eq!(
        machine.stack(8, 4),
        [CODE + 7, 0x73, USER_STACK, u64::from(LONG_DATA3)]
    );
    assert_eq!(machine.selector(SegmentIndex::Ss), 0);
    machine.run(&[0x48, 0xcb]);
    assert_eq!((machine.cpu.rip, machine.cpu.cpl()), (CODE + 7, 3));
}

/// Conforming code runs at the caller's level.
#[test]
fn conforming_code_keeps_the_level() {
    let mut machine = Machine::protected(3);
    machine.run(&[0xea, 0, 0, 2, 0, 0x40, 0]);
    assert_eq!(machine.selector(SegmentIndex::Cs), CONFORMING | 3);
    assert_eq!((machine.cpu.rip, machine.cpu.cpl()), (0x2_0000, 3));
}

fn prepare_task(machine: &mut Machine) {
    for (offset, value) in [
        (28, 0),
        (32, 0x5_0000),
        (36, 2),
        (40, 0xaaaa),
        (56, 0x2_8000),
        (72, 0x10),
        (76, 8),
        (80, 0x10),
        (84, 0x10),
        (88, 0),
        (92, 0),
        (96, 0),
    ] {
        machine.write(TSS_B + offset, 4, value);
    }
}

/// Volume 3, 7.3 and 7.4: CALL nests, IRET returns, busy bits follow.
#[test]
fn task_switch_by_call_and_back() {
    let mut machine = Machine::protected(0);
    prepare_task(&mut machine);
    machine.cpu.gpr[3] = 0xbbbb;
    machine.run(&[0x9a, 0, 0, 0, 0, 0x30, 0]);
    assert_eq!((machine.cpu.rip, machine.cpu.gpr[0]), (0x5_0000, 0xaaaa));
    assert_eq!(machine.cpu.gpr[4], 0x2_8000);
    assert_eq!(machine.cpu.control.tr.selector, TSS_B_SELECTOR);
    assert_ne!(machine.cpu.rflags() & NT, 0);
    assert_ne!(machine.cpu.control.cr0 & CR0_TS, 0);
    assert_eq!(machine.read(TSS_B, 2), u64::from(TSS_A_SELECTOR));
    assert_eq!(machine.read(GDT + 0x2d, 1), 0x8b);
    assert_eq!(machine.read(GDT + 0x35, 1), 0x8b);
    assert_eq!(machine.read(TSS_A + 32, 4), CODE + 7);
    machine.run(&[0xcf]);
    assert_eq!(machine.cpu.rip, CODE + 7);
    assert_eq!(machine.cpu.gpr[3], 0xbbbb);
    assert_eq!(machine.cpu.control.tr.selector, TSS_A_SELECTOR);
    assert_eq!(machine.cpu.rflags() & NT, 0);
    assert_eq!(machine.read(GDT + 0x35, 1), 0x89);
    assert_eq!(machine.read(TSS_B + 36, 4) & NT, 0);
}

#[test]
fn task_switch_by_jump_and_debug_trap() {
    let mut machine = Machine::protected(0);
    prepare_task(&mut machine);
    machine.write(TSS_B + 100, 2, 1);
    machine.run(&[0xea, 0, 0, 0, 0, 0x93, 0]);
    assert_eq!(machine.read(GDT + 0x2d, 1), 0x89);
    assert_eq!(machine.read(GDT + 0x35, 1), 0x8b);
    assert_eq!(machine.cpu.rflags() & NT, 0);
    assert_eq!(machine.cpu.pending_debug, 1 << 15);
}

/// A task gate in the IDT: the error code is pushed on the new task's stack.
#[test]
fn exception_through_a_task_gate() {
    let mut machine = Machine::protected(3);
    prepare_task(&mut machine);
    machine.write(IDT + 8 * 13, 8, gate(TSS_B_SELECTOR, 0, 5, 0, 0));
    machine.step_and_deliver(&[0xea, 0, 0, 1, 0, 8, 0]).unwrap();
    assert_eq!((machine.cpu.rip, machine.cpu.cpl()), (0x5_0000, 0));
    assert_eq!(machine.cpu.gpr[4], 0x2_8000 - 4);
    assert_eq!(machine.stack(4, 1), [8]);
    // The saved task resumes at the fault, with RF.
    assert_eq!(machine.read(TSS_A + 32, 4), CODE);
    assert_eq!(machine.read(TSS_A + 36, 4) & RF, RF);
}

/// Volume 3, 7.3: a bad segment is found in the new task, whose state stays.
#[test]
fn bad_segment_faults_in_the_new_task() {
    let mut machine = Machine::protected(0);
    prepare_task(&mut machine);
    machine.write(TSS_B + 84, 2, u64::from(EXECUTE_ONLY));
    let fault = machine.step(&[0x9a, 0, 0, 0, 0, 0x30, 0]).unwrap_err();
    assert_eq!(fault, Exception::invalid_tss(0xa8));
    assert_eq!(machine.cpu.rip, 0x5_0000);
    assert_eq!(machine.cpu.control.tr.selector, TSS_B_SELECTOR);
}

/// Volume 2, SYSCALL and SYSRET.
#[test]
fn syscall_and_sysret() {
    let mut machine = Machine::long(3);
    let msrs = &mut machine.cpu.msrs;
    msrs.star = u64::from(SYSRET_BASE | 3) << 48 | u64::from(LONG_CODE0) << 32;
    msrs.lstar = HANDLER;
    msrs.fmask = IF | DF;
    machine.cpu.set_rflags(IF | DF | CF, IF | DF | CF);
    machine.run(&[0x0f, 0x05]);
    assert_eq!((machine.cpu.rip, machine.cpu.cpl()), (HANDLER, 0));
    assert_eq!(machine.cpu.gpr[1], CODE + 2);
    assert_eq!(machine.cpu.gpr[11], 2 | IF | DF | CF);
    assert_eq!(machine.cpu.rflags(), 2 | CF);
    assert_eq!(machine.selector(SegmentIndex::Cs), LONG_CODE0);
    assert_eq!(machine.selector(SegmentIndex::Ss), LONG_DATA0);
    assert_eq!(machine.cpu.gpr[4], USER_STACK, "RSP stays the user's");
    machine.run(&[0x48, 0x0f, 0x07]);
    assert_eq!((machine.cpu.rip, machine.cpu.cpl()), (CODE + 2, 3));
    assert_eq!(machine.selector(SegmentIndex::Cs), LONG_CODE3);
    assert_eq!(machine.selector(SegmentIndex::Ss), LONG_DATA3);
    assert_eq!(machine.cpu.rflags(), 2 | IF | DF | CF);
    assert!(machine.cpu.code64());
}

/// SYSRET with a 32-bit operand returns to compatibility mode.
#[test]
fn sysret_to_compatibility_mode() {
    let mut machine = Machine::long(0);
    machine.cpu.msrs.star = u64::from(SYSRET_BASE | 3) << 48;
    machine.cpu.gpr[1] = 0xffff_ffff_0000_1234;
    machine.run(&[0x0f, 0x07]);
    assert_eq!(machine.cpu.rip, 0x1234);
    assert_eq!(machine.selector(SegmentIndex::Cs), SYSRET_BASE | 3);
    assert!(!machine.cpu.code64());
    assert!(machine.cpu.long_mode());
}

#[test]
fn sysenter_and_sysexit() {
    let mut machine = Machine::protected(3);
    machine.cpu.msrs.sysenter_cs = u64::from(CODE0);
    machine.cpu.msrs.sysenter_eip = HANDLER;
    machine.cpu.msrs.sysenter_esp = KERNEL_STACK;
    machine.cpu.set_rflags(IF, IF);
    machine.run(&[0x0f, 0x34]);
    assert_eq!((machine.cpu.rip, machine.cpu.cpl()), (HANDLER, 0));
    assert_eq!(machine.cpu.gpr[4], KERNEL_STACK);
    assert_eq!(machine.cpu.rflags() & IF, 0);
    machine.cpu.gpr[2] = CODE;
    machine.cpu.gpr[1] = USER_STACK;
    machine.run(&[0x0f, 0x35]);
    assert_eq!((machine.cpu.rip, machine.cpu.cpl()), (CODE, 3));
    assert_eq!(machine.selector(SegmentIndex::Cs), CODE3);
    assert_eq!(machine.selector(SegmentIndex::Ss), DATA3);
}

#[test]
fn swapgs_and_bases() {
    let mut machine = Machine::long(0);
    machine.cpu.msrs.kernel_gs_base = 0xffff_8000_0000_0000;
    machine.run(&[0x0f, 0x01, 0xf8]);
    assert_eq!(
        machine.cpu.segment(SegmentIndex::Gs).base,
        0xffff_8000_0000_0000
    );
    machine.cpu.control.cr4 |= CR4_FSGSBASE;
    machine.cpu.gpr[0] = 0x1234_5678_9abc;
    machine.run(&[0xf3, 0x48, 0x0f, 0xae, 0xd0]);
    machine.run(&[0xf3, 0x48, 0x0f, 0xae, 0xc3]);
    assert_eq!(machine.cpu.gpr[3], 0x1234_5678_9abc);
    machine.cpu.gpr[0] = 1 << 47;
    let fault = machine.step(&[0xf3, 0x48, 0x0f, 0xae, 0xd0]).unwrap_err();
    assert_eq!(fault, Exception::general_protection(0));
}

/// Real mode keeps limits that protected mode left ("unreal mode"), and far transfers work.
#[test]
fn real_mode_far_transfers() {
    let mut machine = Machine::real();
    machine.cpu.segments[SegmentIndex::Ds as usize].limit = u32::MAX;
    machine.cpu.gpr[0] = 0x1000;
    machine.run(&[0x8e, 0xd8]);
    let ds = machine.cpu.segment(SegmentIndex::Ds);
    assert_eq!((ds.base, ds.limit), (0x1_0000, u32::MAX));
    machine.run(&[0x9a, 0x34, 0x12, 0x00, 0x20]);
    assert_eq!(machine.cpu.rip, 0x1234);
    assert_eq!(machine.cpu.segment(SegmentIndex::Cs).base, 0x2_0000);
    assert_eq!(machine.stack(2, 2), [0x8007, 0]);
    machine.run(&[0xca, 2, 0]);
    assert_eq!((machine.cpu.rip, machine.cpu.gpr[4]), (0x8007, 0x7002));
}

/// LES, LSS, MOV and POP of segment registers.
#[test]
fn segment_loads() {
    let mut machine = Machine::protected(0);
    machine.write(CODE + 0x100, 4, 0xdead_beef);
    machine.write(CODE + 0x104, 2, u64::from(READ_ONLY));
    machine.run(&[0xc4, 0x0d, 0, 1, 1, 0]);
    assert_eq!(machine.cpu.gpr[1], 0xdead_beef);
    assert_eq!(machine.selector(SegmentIndex::Es), READ_ONLY);
    machine.write(KERNEL_STACK, 4, u64::from(DATA3));
    machine.run(&[0x1f]);
    assert_eq!(machine.selector(SegmentIndex::Ds), DATA3);
    assert_eq!(machine.cpu.gpr[4], KERNEL_STACK + 4);
    machine.cpu.gpr[0] = u64::MAX;
    machine.run(&[0x8c, 0xd8]);
    assert_eq!(machine.cpu.gpr[0], u64::from(DATA3));
    // A null selector loads, and using it faults.
    machine.cpu.gpr[0] = 1;
    machine.run(&[0x8e, 0xd8]);
    assert!(!machine.cpu.segment(SegmentIndex::Ds).present());
    let fault = machine.step(&[0xa1, 0, 0, 0, 0]).unwrap_err();
    assert_eq!(fault, Exception::general_protection(0));
}

#[test]
fn segments_dropped_on_the_way_out_keep_their_base() {
    // IRETQ to ring 3 with a GS that only ring 0 may use (SDM volume 2, IRET): the selector
    // becomes null, and 64-bit code, which looks at nothing else, finds the base as it was.
    let mut machine = Machine::long(0);
    machine.cpu.segment_mut(SegmentIndex::Gs).base = 0x1234_5000;
    let frame = [
        CODE,
        u64::from(LONG_CODE3),
        2,
        USER_STACK,
        u64::from(LONG_DATA3),
    ];
    let top = machine.cpu.gpr[4] - 40;
    for (index, value) in frame.into_iter().enumerate() {
        machine.write(top + 8 * index as u64, 8, value);
    }
    machine.cpu.gpr[4] = top;
    assert_eq!(machine.step(&[0x48, 0xcf]), Ok(()));
    assert_eq!(machine.cpu.cpl(), 3);
    let gs = machine.cpu.segment(SegmentIndex::Gs);
    assert_eq!(
        (gs.selector, gs.present(), gs.base),
        (0, false, 0x1234_5000)
    );
}

#[test]
fn far_transfers_of_ring_3_check_alignment() {
    // A far return, and a call within ring 3, with a stack pointer that is off by one; and a
    // pointer in memory that is (SDM volume 3, 6.15, vector 17).
    let odd = |machine: &mut Machine| {
        machine.cpu.control.cr0 |= CR0_AM;
        machine.cpu.set_rflags(AC, AC);
        machine.cpu.gpr[4] -= 0x21;
    };
    let far_call = [&[0x9a, 0, 0, 1, 0][..], &CODE3.to_le_bytes()].concat();
    for code in [&[0xcb][..], &far_call, &[0xff, 0x2d, 1, 0, 3, 0], &[0xcf]] {
        let mut machine = Machine::protected(3);
        let result = machine.step(code);
        let aligned = result.map_err(|fault| fault.vector);
        assert_ne!(aligned, Err(Exception::AC), "{code:x?}");
        let mut machine = Machine::protected(3);
        odd(&mut machine);
        assert_eq!(
            machine.step(code),
            Err(Exception::alignment_check()),
            "{code:x?}"
        );
        // Not in ring 0.
        let mut machine = Machine::protected(0);
        odd(&mut machine);
        let result = machine.step(code).map_err(|fault| fault.vector);
        assert_ne!(result, Err(Exception::AC), "{code:x?}");
    }
}
