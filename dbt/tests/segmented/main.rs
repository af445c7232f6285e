//! 16-bit code, code in segments that are not flat, and flat code that uses others: random programs end the same in interpreter and
//! translator, at whatever fault, and what random programs would meet too rarely is written down.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

#[path = "../common/mod.rs"]
mod common;
mod machine;
mod program;

use dbt::guest::{Register as R, Segment, SegmentIndex};
use dbt::{EngineOptions, Stop};

use common::{Random, setting};
use machine::{Kind, Machine, differences};
use program::program;

const KINDS: [Kind; 6] = [
    Kind::Real,
    Kind::Vm86,
    Kind::Protected16,
    Kind::Narrow32,
    Kind::Based32,
    Kind::Flat32,
];

fn engine(interpret_only: bool) -> EngineOptions {
    EngineOptions {
        counted: true,
        interpret_only,
        code_bytes: 2 << 20,
        cold: 0,
        traces: Some(2),
        ..EngineOptions::default()
    }
}

fn compare(translated: EngineOptions) {
    let mut machines = [Machine::new(engine(true)), Machine::new(translated)];
    let first = setting("SEGMENTED_SEED", 1);
    let (mut halted, mut shut_down) = (0, 0);
    for seed in first..first + setting("SEGMENTED_CASES", 400) {
        for kind in KINDS {
            let code = program(&mut Random::new(seed), kind);
            for machine in &mut machines {
                machine.set_up(kind, &mut Random::new(seed ^ 0x5555));
                machine.write_code(&code);
            }
            // Memory that a program jumps to may hold anything: both stop where they may differ.
            let (steps, stop) = machines[0].step_while(program::defined);
            let stops = [stop, machines[1].run(steps)];
            let what = format!("{kind:?}, SEGMENTED_SEED={seed}");
            assert_eq!(stops[0], stops[1], "{what}");
            let [left, right] = &mut machines;
            if let Some(found) = differences(left, right) {
                panic!("{what}: {found}\n{}", program::listing(&code, kind));
            }
            halted += u32::from(stops[0] == Stop::Halted);
            shut_down += u32::from(stops[0] == Stop::Shutdown);
        }
    }
    assert!(halted > 0 && shut_down > 0, "{halted} {shut_down}");
}

#[test]
fn random_programs_end_alike() {
    compare(engine(false));
}

#[test]
fn so_they_do_without_optimisations() {
    compare(EngineOptions {
        returns: false,
        crossing: false,
        traces: None,
        system_inline: false,
        memory_inline: false,
        ..engine(false)
    });
}

#[test]
fn so_they_do_if_such_code_is_interpreted() {
    let mut machine = Machine::new(EngineOptions {
        segmented: false,
        ..engine(false)
    });
    machine.set_up(Kind::Real, &mut Random::new(1));
    machine.write_code(&[0x40, 0xf4]);
    assert_eq!(machine.run(machine::BUDGET), Stop::Halted);
    assert_eq!(machine.vcpu.statistics().translated, 0);
}

/// Runs code in real mode in both, and returns the translator's machine.
fn real(code: &[u8], prepare: impl Fn(&mut Machine)) -> (Machine, Stop) {
    let mut machines = [Machine::new(engine(true)), Machine::new(engine(false))];
    let stops = machines.each_mut().map(|machine| {
        machine.set_up(Kind::Real, &mut Random::new(7));
        machine.vcpu.cpu_mut().gpr = [0; 16];
        machine.write_code(code);
        prepare(machine);
        machine.vcpu.cpu_mut().refresh_mode();
        machine.run(machine::BUDGET)
    });
    let [mut interpreted, mut translated] = machines;
    assert_eq!(differences(&mut interpreted, &mut translated), None);
    assert_eq!(stops[0], stops[1]);
    assert!(translated.vcpu.statistics().translated > 0);
    (translated, stops[1])
}

#[test]
fn the_same_offset_in_two_segments_is_not_the_same_code() {
    // Calls through a register to one offset, before and after a far jump to another segment.
    let mut code = vec![
        0xb8, 0x40, 0x00, // mov ax, 0x40
        0xff, 0xd0, // call ax
        0xff, 0xd0, // call ax
        0xea, 0x00, 0x00, 0x00, 0x70, // jmp 0x7000:0
    ];
    code.resize(0x40, 0x90);
    code.extend([0x43, 0xc3]); // inc bx; ret
    let other = [
        0xb8, 0x40, 0x00, // mov ax, 0x40
        0xff, 0xd0, // call ax
        0xff, 0xd0, // call ax
        0xf4, // hlt
    ];
    let (machine, stop) = real(&code, |machine| {
        machine.write(0x7_0000, &other);
        machine.write(0x7_0040, &[0x41, 0xc3]); // inc cx; ret
        machine.vcpu.cpu_mut().gpr[R::RSP] = 0x800;
    });
    assert_eq!(stop, Stop::Halted);
    let gpr = machine.vcpu.cpu().gpr;
    assert_eq!((gpr[R::RBX], gpr[R::RCX]), (2, 2));
}

#[test]
fn code_that_changes_itself_is_what_it_became() {
    // The operand of an instruction right behind, counted up in a loop.
    let code = [
        0xb9, 0x14, 0x00, // mov cx, 20
        0x2e, 0xfe, 0x06, 0x09, 0x00, // again: inc byte cs:[9]
        0xb0, 0x00, // mov al, 0
        0x00, 0xc3, // add bl, al
        0xe2, 0xf5, // loop again
        0xf4, // hlt
    ];
    let (machine, _) = real(&code, |_| {});
    assert_eq!(machine.vcpu.cpu().gpr[R::RBX], 210);
}

#[test]
fn a_loop_leaves_the_flags_of_what_counted_before() {
    // dec cx, whose flags follow from CX, then a LOOP that is left for a push of flags.
    let code = [
        0xb9, 0x04, 0x00, // mov cx, 4
        0x49, // again: dec cx
        0xe2, 0xfd, // loop again
        0x9c, // pushf
        0x58, // pop ax
        0xf4, // hlt
    ];
    let (machine, _) = real(&code, |machine| {
        machine.vcpu.cpu_mut().gpr[R::RSP] = 0x800;
    });
    // DEC gave 1; LOOP made it 0, which has both flags.
    let gpr = machine.vcpu.cpu().gpr;
    assert_eq!((gpr[R::RCX], gpr[R::RAX] & 0x44), (0, 0));
}

#[test]
fn a_segment_of_four_gigabytes_in_real_mode() {
    // mov eax, [ebx]: beyond 64 KiB, in a segment that protected mode left behind.
    let code = [0x67, 0x66, 0x8b, 0x03, 0xf4];
    for (limit, stop) in [(u32::MAX, Stop::Halted), (0xffff, Stop::Shutdown)] {
        let (machine, stopped) = real(&code, |machine| {
            machine.write(0x5_4321, &[1, 2, 3, 4]);
            let cpu = machine.vcpu.cpu_mut();
            *cpu.segment_mut(SegmentIndex::Ds) = Segment {
                limit,
                ..Segment::real(0)
            };
            cpu.gpr[R::RBX] = 0x5_4321;
        });
        assert_eq!(stopped, stop);
        let loaded = machine.vcpu.cpu().gpr[R::RAX] == 0x0403_0201;
        assert_eq!(loaded, stop == Stop::Halted);
    }
}

#[test]
fn limits_of_data_and_code_are_exact() {
    // mov [bx], ax; hlt
    for (offset, stop) in [(0x1fe, Stop::Halted), (0x1ff, Stop::Shutdown)] {
        let (machine, stopped) = real(&[0x89, 0x07, 0xf4], |machine| {
            let cpu = machine.vcpu.cpu_mut();
            cpu.segment_mut(SegmentIndex::Ds).limit = 0x1ff;
            cpu.gpr[R::RBX] = offset;
        });
        assert_eq!(stopped, stop);
        assert_eq!(machine.vcpu.cpu().rip, u64::from(stop == Stop::Halted) * 3);
    }
    // jmp to the last byte of the segment, or beyond; HLT there, or a fall beyond the end.
    for (target, last, stop, rip) in [
        (0x20, 0xf4, Stop::Halted, 0x21),
        (0x20, 0x40, Stop::Shutdown, 0x21),
        (0x21, 0xf4, Stop::Shutdown, 0),
    ] {
        for indirect in [false, true] {
            let mut code = if indirect {
                vec![0xff, 0xe3] // jmp bx
            } else {
                vec![0xeb, target as u8 - 2]
            };
            code.resize(0x20, 0x90);
            code.extend([last, 0xf4]);
            let (machine, stopped) = real(&code, |machine| {
                let cpu = machine.vcpu.cpu_mut();
                cpu.segment_mut(SegmentIndex::Cs).limit = 0x20;
                cpu.gpr[R::RBX] = target;
            });
            assert_eq!(stopped, stop, "{target:#x}, indirect: {indirect}");
            assert_eq!(machine.vcpu.cpu().rip, rip, "{target:#x}");
        }
    }
}

#[test]
fn a_stack_pointer_of_16_bits_wraps() {
    // push ax; pop bx; push imm; hlt
    let code = [0x50, 0x5b, 0x68, 0x34, 0x12, 0xf4];
    let (machine, stop) = real(&code, |machine| {
        let gpr = &mut machine.vcpu.cpu_mut().gpr;
        gpr[R::RSP] = 0x1234_0000;
        gpr[R::RAX] = 0xbeef;
    });
    assert_eq!(stop, Stop::Halted);
    let gpr = machine.vcpu.cpu().gpr;
    assert_eq!((gpr[R::RSP], gpr[R::RBX]), (0x1234_fffe, 0xbeef));
    let (_, stop) = real(&code, |machine| {
        machine.vcpu.cpu_mut().gpr[R::RSP] = 1;
    });
    assert_eq!(stop, Stop::Shutdown);
}

#[test]
fn a_call_moves_the_stack_pointer_that_the_flags_are_of() {
    // again: inc sp; call behind; behind: popa; jmp again
    let code = [0x44, 0xe8, 0, 0, 0x61, 0xeb, 0xf9];
    for steps in 1..12 {
        let mut machines = [Machine::new(engine(true)), Machine::new(engine(false))];
        for machine in &mut machines {
            machine.set_up(Kind::Real, &mut Random::new(7));
            machine.write_code(&code);
            machine.vcpu.cpu_mut().gpr[R::RSP] = 0x7f0;
            assert_eq!(machine.run(steps), Stop::Budget);
        }
        let [left, right] = &mut machines;
        assert_eq!(differences(left, right), None, "{steps}");
    }
}
