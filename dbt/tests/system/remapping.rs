//! Code that is replaced by mapping another page in its place: what is remembered of the old
//! code must not be applied to the new, not even which flags it reads.

use dbt::guest::flags::CR0_NE;
use dbt::{EngineOptions, Stop};
use mmu::GuestPhys;

use crate::machine::*;

const LINEAR: u64 = 0x4000_0000;
const DIRECTORY: u64 = 0x10_0000;
const TABLE: u64 = 0x10_1000;
const FRAMES: [u64; 2] = [0x11_0000, 0x11_1000];

/// Overwrites all flags: add ecx, 1; ret.
const OLD: &[u8] = &[0x83, 0xc1, 0x01, 0xc3];
/// Reads one: jne over; inc edx; over: ret.
const NEW: &[u8] = &[0x75, 0x02, 0xff, 0xc2, 0xc3];
const CALLS: u64 = 40;

/// Calls a function with ZF set, `CALLS` times; before the last two another page is mapped in
/// place of the function. Gives how often each ran, the new one only with ZF set.
fn run(call: &[u8], options: EngineOptions) -> (u64, u64) {
    let mut m = Machine::long(0);
    m.write(PAGES + 0x1008, 8, DIRECTORY | 7);
    m.write(DIRECTORY, 8, TABLE | 7);
    m.write(TABLE, 8, FRAMES[0] | 7);
    let invlpg = [0x41, 0x0f, 0x01, 0x3b];
    let code = [
        &[0x41, 0x83, 0xf8, 0x02][..], // again: cmp r8d, 2
        &[0x75, 0x07],                 // jne on
        &[0x4d, 0x89, 0x0a],           // mov [r10], r9
        &invlpg,                       // invlpg [r11]
        &[0x31, 0xc0],                 // on: xor eax, eax
        call,
        &[0x41, 0xff, 0xc8], // dec r8d
        &[0x75],             // jne again
    ]
    .concat();
    let back = -(code.len() as i8 + 1);
    for (at, bytes) in [
        (CODE, [&code[..], &[back as u8, 0xf4]].concat()),
        (FRAMES[0], OLD.to_vec()),
        (FRAMES[1], NEW.to_vec()),
    ] {
        for (offset, byte) in bytes.iter().enumerate() {
            m.write(at + offset as u64, 1, u64::from(*byte));
        }
    }
    let gpr = &mut m.cpu.gpr;
    (gpr[1], gpr[2], gpr[3], gpr[8]) = (0, 0, LINEAR, CALLS);
    (gpr[9], gpr[10], gpr[11]) = (FRAMES[1] | 7, TABLE, LINEAR);
    m.cpu.control.cr0 |= CR0_NE;
    let mut vcpu = m.into_vcpu(options);
    vcpu.set_goal(100_000);
    assert_eq!(vcpu.run(), Stop::Halted);
    assert_eq!(
        vcpu.mem.load_uint(GuestPhys(TABLE), 8).unwrap() & !0xfff,
        FRAMES[1]
    );
    (vcpu.cpu().gpr[1], vcpu.cpu().gpr[2])
}

#[test]
fn flags_reach_the_code_that_has_replaced_another() {
    // From behind the call: it stands 15 bytes into the code and is 5 long.
    let distance = (LINEAR - (CODE + 20)) as u32;
    let direct = [&[0xe8][..], &distance.to_le_bytes()].concat();
    let indirect = vec![0xff, 0xd3];
    for (call, what) in [(direct, "direct"), (indirect, "indirect")] {
        for (interpret_only, cold) in [(true, 0), (false, 0), (false, 2)] {
            for (counted, precise_flags) in
                [(false, true), (true, true), (false, false), (true, false)]
            {
                let options = EngineOptions {
                    interpret_only,
                    cold,
                    counted: counted || interpret_only,
                    code_bytes: 2 << 20,
                    precise_flags,
                    traces: Some(2),
                    long_traces: (!counted).then_some(3),
                    samples: false,
                    ..EngineOptions::default()
                };
                let ran = run(&call, options);
                assert_eq!(
                    ran,
                    (CALLS - 2, 2),
                    "{what}, {interpret_only}, {cold}, {counted}, {precise_flags}"
                );
            }
        }
    }
}

/// A page table that maps itself, as code: a table entry and what is behind it are a function. The
/// walk that fetches it writes the accessed bit into its first instruction.
#[test]
fn a_walk_writes_into_the_code_it_is_for() {
    const TABLE: u64 = 0x30_C000;
    const LINEAR: u64 = 0x4000_0000;
    const SLOT: u64 = 7;
    let address = LINEAR + SLOT * 0x1000;
    let function = address + SLOT * 8;
    let run = |options: EngineOptions| {
        let mut m = Machine::long(0);
        // The walk's upper levels, and the table's entry for itself, not accessed yet: add eax, eax;
        // xor [rax], al; add [rax], al; add [rax], al. Behind it: ret.
        let mut table = PAGES;
        for (shift, next) in [(39, 0x12_1000), (30, 0x12_2000), (21, TABLE)] {
            let slot = table + (address >> shift & 511) * 8;
            let known = m.read(slot, 8);
            table = if known == 0 {
                m.write(slot, 8, next | 7);
                next
            } else {
                known & !0xfff
            };
        }
        let entry = TABLE + SLOT * 8;
        m.write(entry, 8, TABLE | 3);
        m.write(entry + 8, 1, 0xc3);
        let call: Vec<u8> = [&[0xb8, 0, 0x80, 8, 0][..], &[0xff, 0xd3]].concat();
        let driver = [
            &call[..],
            &call,
            &[0xc6, 0x06, 0x03], // mov byte [rsi], 3: the accessed bit is cleared
            &call,               // the TLB still knows the page
            &[0x0f, 0x01, 0x3b], // invlpg [rbx]
            &call,
            &[0xf4],
        ]
        .concat();
        for (offset, byte) in driver.iter().enumerate() {
            m.write(CODE + offset as u64, 1, u64::from(*byte));
        }
        (m.cpu.gpr[3], m.cpu.gpr[6]) = (function, entry);
        let mut vcpu = m.into_vcpu(options);
        vcpu.set_goal(1_000);
        assert_eq!(vcpu.run(), Stop::Halted);
        let entry = vcpu.mem.load_uint(GuestPhys(entry), 8).expect("RAM");
        (vcpu.cpu().gpr.to_vec(), entry)
    };
    let (expected, entry) = run(counting(true));
    assert_eq!(entry, TABLE | 0x23, "the last walk marked the entry");
    for cold in [0, 1, 2] {
        let options = EngineOptions {
            cold,
            ..counting(false)
        };
        assert_eq!(run(options), (expected.clone(), entry), "{cold}");
    }
}
