//! A program that is mapped at several addresses: its translations are copied from one to the
//! other. Code that changes is translated anew.

use dbt::cache::CacheStatistics;
use dbt::{EngineOptions, Stop};
use mmu::GuestPhys;

use crate::common::TRANSLATES;
use crate::machine::*;

const FRAME: u64 = 0x11_0000;
const DATA: u64 = 0x11_1000;
const TABLES: u64 = 0x12_0000;
/// Where the program is mapped; whoever changes one address, changes it by whole pages.
const ADDRESSES: [u64; 4] = [
    0x5555_5555_4000,
    0x7fff_f7dd_b000,
    0x7fff_0000_0000,
    0x2_0000_0000,
];

/// inc dword [rip + data]; lea rdx, [rip]; add rbx, rdx; call next; next: pop rdx; xor rbx, rdx;
/// movups xmm1, [rip + data]; movups [rip + data + 32], xmm1; fld1; fstp qword [rip + data + 64];
/// dec ecx; jns to the xor; ret.
fn program() -> Vec<u8> {
    let data =
        |at: usize, len: usize, offset: u32| (0x1000 + offset - (at + len) as u32).to_le_bytes();
    let mut code = Vec::new();
    let relative = |code: &mut Vec<u8>, opcode: &[u8], offset: u32| {
        let at = code.len();
        code.extend(opcode);
        code.extend(data(at, opcode.len() + 4, offset));
    };
    relative(&mut code, &[0xff, 0x05], 0);
    code.extend([0x48, 0x8d, 0x15, 0, 0, 0, 0]);
    code.extend([0x48, 0x01, 0xd3]);
    code.extend([0xe8, 0, 0, 0, 0, 0x5a]);
    let again = code.len();
    code.extend([0x48, 0x31, 0xd3]);
    relative(&mut code, &[0x0f, 0x10, 0x0d], 0);
    relative(&mut code, &[0x0f, 0x11, 0x0d], 32);
    code.extend([0xd9, 0xe8]);
    relative(&mut code, &[0xdd, 0x1d], 64);
    code.extend([0xff, 0xc9]);
    let back = again as i8 - (code.len() as i8 + 2);
    code.extend([0x79, back as u8, 0xc3]);
    code
}

fn store(m: &mut Machine, at: u64, bytes: &[u8]) {
    for (offset, byte) in bytes.iter().enumerate() {
        m.write(at + offset as u64, 1, u64::from(*byte));
    }
}

/// Maps the program and its data at an address, with tables of their own.
fn map(m: &mut Machine, address: u64, tables: &mut u64) {
    let mut table = PAGES;
    for shift in [39, 30, 21] {
        let slot = table + (address >> shift & 511) * 8;
        let entry = m.read(slot, 8);
        table = if entry == 0 {
            *tables += 0x1000;
            m.write(slot, 8, *tables | 7);
            *tables
        } else {
            entry & !0xfff
        };
    }
    for (page, frame) in [FRAME, DATA].into_iter().enumerate() {
        let slot = table + (((address >> 12) + page as u64) & 511) * 8;
        m.write(slot, 8, frame | 7);
    }
}

/// Calls the program some times at each address, in user mode; what it leaves.
fn run_everywhere(options: EngineOptions) -> (Vec<u64>, CacheStatistics) {
    let mut m = Machine::long(3);
    m.cpu.control.cr4 |= 0x200;
    let mut tables = TABLES;
    for address in ADDRESSES {
        map(&mut m, address, &mut tables);
    }
    store(&mut m, FRAME, &program());
    let mut driver = vec![];
    for address in ADDRESSES {
        // mov rax, address; mov r8d, 5; again: mov ecx, 2; call rax; dec r8d; jne again
        driver.extend([0x48, 0xb8]);
        driver.extend(address.to_le_bytes());
        driver.extend([0x41, 0xb8, 5, 0, 0, 0, 0xb9, 2, 0, 0, 0, 0xff, 0xd0]);
        driver.extend([0x41, 0xff, 0xc8, 0x75, 0xf4]);
    }
    driver.extend([0xeb, 0xfe]);
    store(&mut m, CODE, &driver);
    m.cpu.refresh_mode();
    let mut vcpu = m.into_vcpu(options);
    vcpu.set_goal(5_000);
    assert_eq!(vcpu.run(), Stop::Budget);
    let mut left: Vec<u64> = vcpu.cpu().gpr.to_vec();
    left.push(vcpu.cpu().rip);
    left.push(vcpu.cpu().arithmetic_flags);
    left.push(vcpu.cpu().vector.pointers.instruction);
    left.push(vcpu.cpu().vector.ymm[1][0]);
    left.extend((0..12).map(|word| {
        vcpu.mem
            .load_uint(GuestPhys(DATA + word * 8), 8)
            .expect("a load from RAM")
    }));
    (left, vcpu.statistics())
}

#[test]
fn a_program_at_many_addresses_is_translated_once() {
    let (expected, _) = run_everywhere(counting(true));
    assert_eq!(expected[20] as u32, 5 * ADDRESSES.len() as u32);
    for (cold, traces, grouping) in [
        (0, None, true),
        (2, None, false),
        (2, Some(8), true),
        (0, Some(2), true),
    ] {
        let with = |moving| EngineOptions {
            moving,
            cold,
            traces,
            grouping,
            // A long block has the whole loop, and needs no trace.
            long_blocks: traces != Some(2),
            // What does not come back would have to be entered often first.
            long_traces: None,
            ..counting(false)
        };
        let (moved, statistics) = run_everywhere(with(true));
        assert_eq!(moved, expected, "{cold}, {traces:?}");
        if !TRANSLATES {
            continue;
        }
        assert!(statistics.moved >= 6, "{statistics:?}");
        let (anew, without) = run_everywhere(with(false));
        assert_eq!(anew, expected, "{cold}, {traces:?}");
        assert_eq!(without.moved, 0);
        assert!(without.translated > statistics.translated, "{statistics:?}");
        // Traces move as well.
        let fewer = without.traces > statistics.traces;
        assert!(traces != Some(2) || fewer, "{statistics:?}, {without:?}");
    }
}

/// A function whose constant changes each second round, called twice a round.
fn run_rewriting(options: EngineOptions) -> u64 {
    const FUNCTION: u64 = 0x20_0000;
    let mut m = Machine::long(0);
    // mov eax, constant; ret
    store(&mut m, FUNCTION, &[0xb8, 0, 0, 0, 0, 0xc3]);
    let driver = [
        &[0x89, 0xc8][..],   // again: mov eax, ecx
        &[0xd1, 0xe8],       // shr eax, 1
        &[0x89, 0x43, 0x01], // mov [rbx + 1], eax
        &[0xff, 0xd3],       // call rbx
        &[0x01, 0xc2],       // add edx, eax
        &[0xff, 0xd3],       // call rbx
        &[0x01, 0xc2],       // add edx, eax
        &[0xff, 0xc9],       // dec ecx
        &[0x75, 0xed],       // jne again
        &[0xf4],
    ]
    .concat();
    store(&mut m, CODE, &driver);
    (m.cpu.gpr[1], m.cpu.gpr[2], m.cpu.gpr[3]) = (50, 0, FUNCTION);
    let mut vcpu = m.into_vcpu(options);
    vcpu.set_goal(10_000);
    assert_eq!(vcpu.run(), Stop::Halted);
    vcpu.cpu().gpr[2]
}

#[test]
fn code_that_is_rewritten_is_decoded_anew() {
    let expected: u64 = (1..=50).map(|round| round / 2 * 2).sum();
    assert_eq!(run_rewriting(counting(true)), expected);
    for cold in [0, 1, 2, 100] {
        let options = EngineOptions {
            cold,
            ..counting(false)
        };
        assert_eq!(run_rewriting(options), expected, "{cold}");
    }
}
