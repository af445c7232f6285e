//! What the engine owes whatever the guest does: budgets end, and instructions are those of the
//! processor model.

#[path = "../common/mod.rs"]
mod common;

use common::{NoDevices, TRANSLATES};
use dbt::guest::{CpuModel, DescriptorTable, Exception, Segment};
use dbt::{EngineOptions, Stop, Vcpu};
use iced_x86::{Code, Instruction};
use mmu::{GuestPhys, MemoryConfig, PhysMem};

fn machine() -> Vcpu {
    machine_with(EngineOptions {
        counted: true,
        ..EngineOptions::default()
    })
}

fn machine_with(options: EngineOptions) -> Vcpu {
    let mem = PhysMem::new(&MemoryConfig {
        ram_bytes: 1 << 20,
        copies: 2,
        legacy_hole: false,
    })
    .expect("memory for a test");
    let mut vcpu = Vcpu::new(mem, Box::new(NoDevices), options).expect("a virtual processor");
    let cpu = vcpu.cpu_mut();
    cpu.segments[1].base = 0;
    cpu.segments[1].selector = 0;
    cpu.control.idtr = DescriptorTable {
        base: 0,
        limit: 0x3ff,
    };
    cpu.rip = 0x8000;
    vcpu
}

fn write(vcpu: &mut Vcpu, at: u64, bytes: &[u8]) {
    vcpu.mem
        .store(GuestPhys(at), bytes)
        .expect("a store to RAM");
}

#[test]
fn a_handler_that_faults_at_once_uses_the_budget_up() {
    let mut vcpu = machine();
    // UD2, and the handler of #UD is that UD2.
    write(&mut vcpu, 0x8000, &[0x0f, 0x0b]);
    write(&mut vcpu, 6 * 4, &[0, 0x80, 0, 0]);
    vcpu.set_goal(1000);
    assert_eq!(vcpu.run(), Stop::Budget);
    assert!(vcpu.instructions() >= 1000);
}

/// The instruction that a processor model of 64-bit code sees.
fn decoded(model: &str, bytes: &[u8]) -> Result<Instruction, Exception> {
    let mut vcpu = machine();
    write(&mut vcpu, 0x8000, bytes);
    let cpu = vcpu.cpu_mut();
    cpu.model = CpuModel::parse(model).expect("a model");
    cpu.control.cr0 |= 1;
    cpu.control.efer = 0x500;
    cpu.segments[1].attributes |= Segment::CODE | Segment::LONG;
    cpu.refresh_mode();
    dbt::decode::one(&mut vcpu.context())
}

#[test]
fn instructions_that_the_model_lacks_are_undefined() {
    let newer: &[(&str, &[u8])] = &[
        ("popcnt", &[0xf3, 0x0f, 0xb8, 0xc0]),
        ("pshufb", &[0x66, 0x0f, 0x38, 0x00, 0xc1]),
        ("vaddps", &[0xc5, 0xf0, 0x58, 0xc2]),
        ("andn", &[0xc4, 0xe2, 0x70, 0xf2, 0xc2]),
        ("movbe", &[0x0f, 0x38, 0xf0, 0x00]),
        ("adcx", &[0x66, 0x0f, 0x38, 0xf6, 0xc1]),
    ];
    for (name, bytes) in newer {
        let fault = decoded("x86-64-v1", bytes).expect_err(name);
        assert_eq!(fault.vector, Exception::UD, "{name}");
    }
    // On 256 bits it has a CPUID bit of its own.
    let vaes = [0xc4, 0xe2, 0x75, 0xdc, 0xc2];
    assert!(decoded("max,-vaes", &vaes).is_err());
    assert!(decoded("x86-64-v3", &vaes).is_err());
    assert!(decoded("x86-64-v1", &[0xf3, 0x0f, 0x2c, 0xc1]).is_ok());
}

#[test]
fn older_processors_execute_what_a_prefix_was_added_to() {
    let code = |model, bytes: &[u8]| decoded(model, bytes).expect("an instruction").code();
    let tzcnt = [0xf3, 0x0f, 0xbc, 0xc1];
    assert_eq!(code("x86-64-v1", &tzcnt), Code::Bsf_r32_rm32);
    let lzcnt = [0xf3, 0x0f, 0xbd, 0xc1];
    assert_eq!(code("x86-64-v1", &lzcnt), Code::Bsr_r32_rm32);
    assert_eq!(code("max", &[0xf3, 0x90]), Code::Pause);
    assert_eq!(code("max", &[0xf3, 0x48, 0x90]), Code::Pause);
    assert_eq!(code("max", &[0xf3, 0x41, 0x90]), Code::Xchg_r32_EAX);
    assert_eq!(code("max", &[0xf3, 0x49, 0x90]), Code::Xchg_r64_RAX);
}

/// A PUSH whose operand crosses pages is interpreted as a whole. The POP behind it shares its
/// check of the stack, which then was never made.
#[test]
fn an_interpreted_push_leaves_no_check_undone() {
    let mut vcpu = machine_with(EngineOptions {
        cold: 0,
        ..EngineOptions::default()
    });
    // PUSH dword [0x2ffe]; POP EAX; HLT.
    write(
        &mut vcpu,
        0x8000,
        &[0xff, 0x35, 0xfe, 0x2f, 0, 0, 0x58, 0xf4],
    );
    write(&mut vcpu, 0x2ffe, &0x1234_5678u32.to_le_bytes());
    let cpu = vcpu.cpu_mut();
    cpu.control.cr0 |= 1;
    for (index, rights) in (0..6).map(|index| (index, if index == 1 { 0xc09b } else { 0xc093 })) {
        cpu.segments[index] = Segment {
            base: 0,
            limit: u32::MAX,
            selector: 8,
            attributes: rights,
        };
    }
    cpu.gpr[4] = 0x7000;
    cpu.refresh_mode();
    assert_eq!(vcpu.run(), Stop::Halted);
    assert_eq!(vcpu.cpu().gpr[0], 0x1234_5678);
    let translated = vcpu.statistics().translated > 0;
    assert_eq!(translated, TRANSLATES, "whether anything was translated");
}
