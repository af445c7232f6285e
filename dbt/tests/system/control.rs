//! Control registers, model-specific registers, table registers, ports, debug registers.

use dbt::guest::flags::*;
use dbt::guest::{CpuModel, CpuState, Exception, Segment, SegmentIndex};
use dbt::interpret::system::{check_port, debug, deliver};
use iced_x86::Instruction;
use mmu::Linear;

use crate::machine::*;

const WRMSR: &[u8] = &[0x0f, 0x30];
const RDMSR: &[u8] = &[0x0f, 0x32];

fn write_msr(machine: &mut Machine, number: u32, value: u64) -> Result<(), Exception> {
    machine.cpu.gpr[1] = u64::from(number);
    machine.cpu.gpr[0] = value & 0xffff_ffff;
    machine.cpu.gpr[2] = value >> 32;
    machine.step(WRMSR)
}

fn read_msr(machine: &mut Machine, number: u32) -> Result<u64, Exception> {
    machine.cpu.gpr[1] = u64::from(number);
    machine.step(RDMSR)?;
    Ok(machine.cpu.gpr[2] << 32 | machine.cpu.gpr[0])
}

/// SDM volume 3, 9.8.5: from real mode to 64-bit code as a boot loader does it, and back.
#[test]
fn into_long_mode_and_out() {
    let mut machine = Machine::long(0);
    let gdtr = machine.cpu.control.gdtr;
    machine.cpu = CpuState::at_reset();
    machine.cpu.control.gdtr = gdtr;
    machine.cpu.segments[SegmentIndex::Cs as usize] = Segment::real(0x1000);
    machine.cpu.rip = 0;
    machine.cpu.gpr[0] = CR0_PE | CR0_ET;
    machine.run(&[0x0f, 0x22, 0xc0]);
    machine.run(&[0x66, 0xea, 0, 0, 1, 0, 8, 0]);
    assert_eq!(machine.cpu.mode.code_size().bits(), 32);
    machine.cpu.gpr[0] = CR4_PAE;
    machine.run(&[0x0f, 0x22, 0xe0]);
    machine.cpu.gpr[0] = PAGES;
    machine.run(&[0x0f, 0x22, 0xd8]);
    write_msr(&mut machine, 0xc000_0080, EFER_LME).unwrap();
    assert_eq!(machine.cpu.control.efer, EFER_LME);
    machine.cpu.gpr[0] = CR0_PE | CR0_PG;
    machine.run(&[0x0f, 0x22, 0xc0]);
    assert!(machine.cpu.long_mode() && !machine.cpu.code64());
    // LME may not change while paging is on.
    assert!(write_msr(&mut machine, 0xc000_0080, 0).is_err());
    machine.run(&[0xea, 0, 0, 1, 0, LONG_CODE0 as u8, 0]);
    assert!(machine.cpu.code64());
    // Back: to compatibility mode, then paging off.
    machine.write(CODE + 0x100, 8, 0x8_0001_0000);
    machine.run(&[0xff, 0x2c, 0x25, 0, 1, 1, 0]);
    assert!(!machine.cpu.code64());
    machine.cpu.gpr[0] = CR0_PE;
    machine.run(&[0x0f, 0x22, 0xc0]);
    assert!(!machine.cpu.long_mode());
    machine.cpu.gpr[0] = 0;
    machine.run(&[0x0f, 0x22, 0xc0]);
    assert_eq!(machine.cpu.control.cr0 & (CR0_PE | CR0_ET), CR0_ET);
}

/// Volume 3, 4.4.1: PAE paging loads four entries, which are checked.
#[test]
fn pae_loads_its_directory_pointers() {
    let mut machine = Machine::protected(0);
    machine.cpu.control.cr4 |= CR4_PAE;
    machine.cpu.control.cr3 = PAGES;
    machine.write(PAGES, 8, (PAGES + 0x1000) | 1);
    machine.write(PAGES + 8, 8, (PAGES + 0x1000) | 3);
    machine.write(PAGES + 0x1000, 8, 0x87);
    machine.cpu.gpr[0] = CR0_PE | CR0_PG;
    let fault = machine.step(&[0x0f, 0x22, 0xc0]).unwrap_err();
    assert_eq!(fault, Exception::general_protection(0));
    machine.write(PAGES + 8, 8, 0xffff_fffe);
    machine.run(&[0x0f, 0x22, 0xc0]);
    assert_eq!(machine.cpu.control.pdpte[0], (PAGES + 0x1000) | 1);
}

/// Which values model-specific registers take.
#[test]
fn model_specific_registers() {
    // Number, value, accepted.
    const CASES: &[(u32, u64, bool)] = &[
        (0x10, 0x1234, true),
        (0x48, 1, true),
        (0x48, 1 << 20, false),
        (0x49, 1, true),
        (0x174, 8, true),
        (0x175, 1 << 47, false),
        (0x179, 0, false),
        (0x17a, 5, true),
        (0x17a, 0x10, false),
        (0x200, 0x6, true),
        (0x200, 0x2, false),
        (0x201, 1 << 11 | 0xff_fff0_0000, true),
        (0x201, 1 << 45, false),
        (0x250, 0x0606_0606_0606_0606, true),
        (0x268, 0x0707_0707_0707_0707, false),
        (0x277, 0x0007_0106_0007_0106, true),
        (0x277, 0x02, false),
        (0x2ff, 0xc06, true),
        (0x2ff, 0x1006, false),
        (0x400, u64::MAX, true),
        (0x401, 0, true),
        (0x401, 1, false),
        (0x427, 0, true),
        (0x428, 0, false),
        (0x3a, 1, false),
        (0xc000_0080, EFER_SCE | EFER_NXE | EFER_LME | EFER_LMA, true),
        (0xc000_0080, 1 << 14, false),
        (0xc000_0082, 0xffff_ffff_8100_0000, true),
        (0xc000_0082, 0x8000_0000_0000, false),
        (0xc000_0100, 0x7fff_ffff_ffff, true),
        (0xc000_0101, 1 << 63, false),
        (0xc000_0103, 1 << 32, false),
        (0x1b, 0xfee0_0900, true),
        (0xdead, 0, false),
    ];
    for &(number, value, accepted) in CASES {
        let mut machine = Machine::long(0);
        let result = write_msr(&mut machine, number, value);
        assert_eq!(result.is_ok(), accepted, "{number:#x} = {value:#x}");
        if accepted && number != 0x49 && number != 0x1b {
            assert_eq!(read_msr(&mut machine, number), Ok(value), "{number:#x}");
        }
    }
    let mut machine = Machine::long(0);
    assert_eq!(read_msr(&mut machine, 0x179), Ok(0x0900_010a));
    assert_eq!(
        read_msr(&mut machine, 0x1234_5678),
        Err(Exception::general_protection(0))
    );
}

/// Volume 3, 17.17.3: both time-stamp registers move the same clock.
#[test]
fn time_stamp_registers() {
    let mut machine = Machine::long(0);
    machine.platform.time = 1000;
    write_msr(&mut machine, 0x10, 5000).unwrap();
    assert_eq!(read_msr(&mut machine, 0x3b), Ok(4000));
    machine.platform.time = 1100;
    machine.run(&[0x0f, 0x31]);
    assert_eq!(machine.cpu.gpr[0], 5100);
    write_msr(&mut machine, 0x3b, 0).unwrap();
    assert_eq!(read_msr(&mut machine, 0x10), Ok(1100));
}

#[test]
fn table_registers() {
    let mut machine = Machine::long(0);
    machine.write(CODE + 0x100, 2, 0x7ff);
    machine.write(CODE + 0x102, 8, 0xffff_8000_0000_1000);
    machine.run(&[0x0f, 0x01, 0x1c, 0x25, 0, 1, 1, 0]);
    assert_eq!(machine.cpu.control.idtr.base, 0xffff_8000_0000_1000);
    machine.run(&[0x0f, 0x01, 0x0c, 0x25, 0, 2, 1, 0]);
    assert_eq!(machine.read(CODE + 0x202, 8), 0xffff_8000_0000_1000);
    machine.write(GDT + 0x80, 8, 0xffff_ff00);
    machine.cpu.gpr[0] = u64::from(LONG_TSS);
    machine.run(&[0x0f, 0x00, 0xd8]);
    assert_eq!(machine.cpu.control.tr.base, 0xffff_ff00_0000_0000 | TSS_A);
    assert_eq!(machine.read(GDT + 0x7d, 1), 0x8b);
    machine.run(&[0x0f, 0x00, 0xc8]);
    assert_eq!(machine.cpu.gpr[0] & 0xffff_ffff, u64::from(LONG_TSS));
}

/// LAR, LSL, VERR, VERW, ARPL: ZF and results (volume 3, 5.10).
#[test]
fn questions_about_selectors() {
    // Ring, instruction with ax as the selector and ecx as the result, selector, ZF, result.
    const LAR: &[u8] = &[0x0f, 0x02, 0xc8];
    const LSL: &[u8] = &[0x0f, 0x03, 0xc8];
    const VERR: &[u8] = &[0x0f, 0x00, 0xe0];
    const VERW: &[u8] = &[0x0f, 0x00, 0xe8];
    const CASES: &[(u8, &[u8], u16, Option<u64>)] = &[
        (0, LAR, CODE0, Some(0x00c0_9a00)),
        (3, LAR, CODE0, None),
        (3, LAR, CONFORMING, Some(0x00c0_9e00)),
        (0, LAR, 0, None),
        (0, LAR, 0xfff8, None),
        (0, LAR, CALL_GATE, Some(0x0000_ec00)),
        (0, LSL, CALL_GATE, None),
        (0, LSL, DATA0, Some(0xffff_ffff)),
        (0, LSL, TSS_B_SELECTOR, Some(0x67)),
        (3, VERR, DATA3, Some(0)),
        (3, VERR, DATA0, None),
        (0, VERR, EXECUTE_ONLY, None),
        (0, VERW, READ_ONLY, None),
        (0, VERW, DATA0, Some(0)),
        (0, VERR, TSS_B_SELECTOR, None),
    ];
    for &(ring, code, selector, expected) in CASES {
        let mut machine = Machine::protected(ring);
        machine.cpu.gpr[0] = u64::from(selector);
        machine.run(code);
        let zero = machine.cpu.rflags() & ZF != 0;
        assert_eq!(zero, expected.is_some(), "{code:x?} {selector:#x}");
        assert_eq!(machine.cpu.gpr[1], expected.unwrap_or(0), "{selector:#x}");
    }
    let mut machine = Machine::protected(0);
    machine.cpu.gpr[0] = 0x10;
    machine.cpu.gpr[1] = 3;
    machine.run(&[0x63, 0xc8]);
    assert_eq!(machine.cpu.gpr[0], 0x13);
    assert_ne!(machine.cpu.rflags() & ZF, 0);
}

/// Volume 1, 18.5.2: ports by IOPL, by bitmap, and in virtual-8086 mode by bitmap alone.
#[test]
fn ports() {
    let mut machine = Machine::protected(3);
    machine.run(&[0xe6, 0x80]);
    assert_eq!(machine.platform.ports, [(0x80, 1, 0)]);
    machine.write(TSS_A + 0x68 + 0x10, 1, 1);
    assert!(check_port(&mut machine.context(), 0x80, 1).is_err());
    assert!(check_port(&mut machine.context(), 0x7f, 2).is_err());
    assert!(check_port(&mut machine.context(), 0x81, 2).is_ok());
    machine.cpu.set_rflags(IOPL, IOPL);
    assert!(check_port(&mut machine.context(), 0x80, 1).is_ok());
    machine.cpu.set_rflags(VM, VM);
    assert!(check_port(&mut machine.context(), 0x80, 1).is_err());

    let mut machine = Machine::long(0);
    machine.cpu.gpr[0] = u64::MAX;
    machine.cpu.gpr[2] = 0x1f0;
    machine.run(&[0x66, 0xed]);
    assert_eq!(machine.cpu.gpr[0], 0xffff_ffff_ffff_5678);
    machine.run(&[0xed]);
    assert_eq!(machine.cpu.gpr[0], 0x1234_5678);
}

#[test]
fn task_priority_register() {
    let mut machine = Machine::long(0);
    machine.cpu.gpr[0] = 9;
    machine.run(&[0x44, 0x0f, 0x22, 0xc0]);
    assert_eq!(machine.platform.priority, 9);
    machine.run(&[0x44, 0x0f, 0x20, 0xc3]);
    assert_eq!(machine.cpu.gpr[3], 9);
}

/// Volume 3, 17.3.1: code breakpoints are faults that RF passes once, data ones are traps.
#[test]
fn breakpoints() {
    let mut machine = Machine::protected(0);
    machine.cpu.gpr[0] = CODE;
    machine.run(&[0x0f, 0x23, 0xc0]);
    machine.cpu.gpr[0] = 1;
    machine.cpu.rip = CODE + 8;
    machine.run(&[0x0f, 0x23, 0xf8]);
    assert_eq!(debug::before_instruction(&mut machine.context()), Ok(()));
    machine.cpu.rip = CODE;
    let fault = debug::before_instruction(&mut machine.context()).unwrap_err();
    assert_eq!((fault.vector, fault.address), (Exception::DB, 1));
    deliver::exception(&mut machine.context(), fault).unwrap();
    assert_eq!(machine.cpu.control.dr[6] & 0xf, 1);
    assert_eq!(machine.stack(4, 3)[2] & RF, 0);
    machine.cpu.rip = CODE;
    machine.cpu.set_rflags(RF, RF);
    assert_eq!(debug::before_instruction(&mut machine.context()), Ok(()));
    assert!(debug::before_instruction(&mut machine.context()).is_err());

    // Four bytes at 0x5000, stores.
    machine.cpu.control.dr[1] = 0x5000;
    machine.cpu.control.dr[7] = 0x400 | 4 | 0xd << 20;
    debug::data_access(
        &mut machine.context(),
        Linear(0x4fff),
        1,
        debug::Watch::Write,
    );
    debug::data_access(
        &mut machine.context(),
        Linear(0x5003),
        1,
        debug::Watch::Read,
    );
    assert_eq!(machine.cpu.pending_debug, 0);
    debug::data_access(
        &mut machine.context(),
        Linear(0x4ffe),
        8,
        debug::Watch::Write,
    );
    assert_eq!(machine.cpu.pending_debug, 2);
}

/// Volume 3, 17.3.1.4: a single step traps after the instruction; not after MOV SS or INT n.
#[test]
fn single_steps() {
    let mut machine = Machine::protected(0);
    machine.run(&[0x0f, 0x06]);
    debug::after_instruction(&mut machine.context(), &Instruction::default(), true);
    assert_eq!(machine.cpu.pending_debug, 1 << 14);
    machine.cpu.pending_debug = 0;
    machine.cpu.gpr[0] = u64::from(DATA0);
    // What an instruction that was not stepped suppressed does not outlast it.
    machine.run(&[0x8e, 0xd0]);
    debug::before_instruction(&mut machine.context()).unwrap();
    machine.run(&[0x0f, 0x06]);
    debug::after_instruction(&mut machine.context(), &Instruction::default(), true);
    assert_eq!(machine.cpu.pending_debug, 1 << 14);
    machine.cpu.pending_debug = 0;
    for code in [&[0x8e, 0xd0], &[0xcd, 0x31]] {
        machine.run(code);
        debug::after_instruction(&mut machine.context(), &Instruction::default(), true);
        assert_eq!(machine.cpu.pending_debug, 0, "{code:x?}");
    }
}

/// Volume 3, 2.5: XCR0 holds what the model has; CPUID follows CR4.OSXSAVE.
#[test]
fn extended_control_register() {
    let mut machine = Machine::long(0);
    machine.cpu.gpr[0] = CR4_PAE | CR4_OSXSAVE;
    machine.run(&[0x0f, 0x22, 0xe0]);
    machine.cpu.gpr[0] = 3;
    machine.cpu.gpr[1] = 0;
    machine.cpu.gpr[2] = 0;
    machine.run(&[0x0f, 0x01, 0xd1]);
    machine.cpu.gpr[0] = 0;
    machine.run(&[0x0f, 0x01, 0xd0]);
    assert_eq!(machine.cpu.gpr[0], 3);
    machine.cpu.gpr[0] = 8 | 3;
    assert!(machine.step(&[0x0f, 0x01, 0xd1]).is_err());
}

#[test]
fn registers_of_absent_features_are_absent() {
    let cases: [(u32, u64, &str, Option<&str>); 9] = [
        // Number, value, model, the model that refuses it.
        (0x10b, 1, "max", Some("max,-flush-l1d")),
        (0x49, 1, "max", Some("max,-spec-ctrl")),
        (0x1b, 0xfee0_0c00, "max", Some("max,-x2apic")),
        (0x400, u64::MAX, "max", None),
        (0x402, 0xaaaa_aaaa_aaaa_aaaa, "max", None),
        (0x403, u64::MAX, "max", None),
        (0x401, 0, "max", None),
        (0x1d9, 3, "max", None),
        (0x404, 0, "max", None),
    ];
    for (number, value, model, refusing) in cases {
        let mut machine = Machine::long(0);
        machine.cpu.model = CpuModel::parse(model).unwrap();
        assert_eq!(
            write_msr(&mut machine, number, value),
            Ok(()),
            "{number:#x}"
        );
        if let Some(model) = refusing {
            machine.cpu.model = CpuModel::parse(model).unwrap();
            let refused = Err(Exception::general_protection(0));
            assert_eq!(
                write_msr(&mut machine, number, value),
                refused,
                "{number:#x}"
            );
        }
    }
    // Neither all nor nothing; not a clear; bits there are none of.
    for (number, value) in [(0x400, 1), (0x401, 1), (0x10b, 2), (0x49, 2)] {
        let mut machine = Machine::long(0);
        let refused = Err(Exception::general_protection(0));
        assert_eq!(
            write_msr(&mut machine, number, value),
            refused,
            "{number:#x}"
        );
    }
}
