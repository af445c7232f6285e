//! Where random code runs: tables, segments, pages and registers of a mode, valid mostly.

use dbt::guest::flags::*;
use dbt::guest::{CpuState, DescriptorTable, Segment};
use emulator::machine::Machine;
use mmu::GuestPhys;

use super::Mode;
use super::code::{Random, stream};

/// Bytes of guest RAM.
pub const RAM: u64 = 4 << 20;
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const CODE: u64 = 0x1_0000;
const CODE_BYTES: u64 = 0x3000;
const DATA: u64 = 0x2_0000;
/// Code that handlers start with, 32 bytes each.
const STUBS: u64 = 0x8000;
const STACK: u32 = 0x2_3000;
const TABLES: u64 = 0x10_0000;

fn write(machine: &mut Machine, at: u64, bytes: &[u8]) {
    // All of this is RAM; a refusal would show as a guest that does nothing.
    let _ = machine.vcpu.mem.store(GuestPhys(at), bytes);
}

fn write64(machine: &mut Machine, at: u64, value: u64) {
    write(machine, at, &value.to_le_bytes());
}

/// Selectors of the GDT, by index: code and data of rings 0 and 3, in every width, a TSS.
fn descriptors(random: &mut Random) -> Vec<u64> {
    let flat = |access: u64, size: u64| 0xffff | access << 40 | 0xf << 48 | size << 52;
    let mut table = vec![0];
    for dpl in [0, 3] {
        for size in [0x8, 0xc, 0xa] {
            table.push(flat(0x9b | dpl << 5, size));
            table.push(flat(0x93 | dpl << 5, size & 0xc));
        }
    }
    table.push(0x67 | TSS << 16 | 0x89 << 40);
    table.push(0);
    while table.len() < 32 {
        table.push(random.next());
    }
    table
}

/// A handler: a fresh stack, and on to random code in ring 0 or, by IRET, in ring 3.
fn stub(machine: &mut Machine, vector: u64, long: bool, random: &mut Random) -> u64 {
    let at = STUBS + 32 * vector;
    let target = (CODE + random.below(CODE_BYTES)) as u32;
    let mut code = vec![0xbc];
    code.extend(STACK.to_le_bytes());
    if random.one_in(2) {
        let next = at as u32 + code.len() as u32 + 5;
        code.push(0xe9);
        code.extend(target.wrapping_sub(next).to_le_bytes());
    } else {
        let ring3 = if long { 0x5b } else { 0x4b };
        code.extend([0x6a, 0x53, 0x68]);
        code.extend(STACK.to_le_bytes());
        code.extend([0x68, 0x02, 0x02, 0, 0, 0x6a, ring3, 0x68]);
        code.extend(target.to_le_bytes());
        code.extend(if long { &[0x48, 0xcf][..] } else { &[0xcf] });
    }
    write(machine, at, &code);
    at
}

fn tables(machine: &mut Machine, mode: Mode, random: &mut Random) {
    for (index, entry) in descriptors(random).into_iter().enumerate() {
        write64(machine, GDT + 8 * index as u64, entry);
    }
    for vector in 0..64u64 {
        let handler = CODE + random.below(CODE_BYTES);
        let dpl = random.pick(&[0u64, 3]);
        match mode {
            Mode::Real => {
                let entry = (handler & 15) as u32 | ((handler >> 4) as u32) << 16;
                write(machine, 4 * vector, &entry.to_le_bytes());
            }
            _ => {
                let long = matches!(mode, Mode::Long | Mode::Compat);
                let selector: u64 = if long { 5 * 8 } else { 3 * 8 };
                let kind = random.pick(&[14u64, 14, 15, 6, 5]);
                let kind = if long { kind | 14 } else { kind };
                let handler = stub(machine, vector, long, random);
                let entry = handler & 0xffff
                    | selector << 16
                    | (0x80 | dpl << 5 | kind) << 40
                    | (handler >> 16) << 48;
                let size = if long { 16 } else { 8 };
                write64(machine, IDT + size * vector, entry);
            }
        }
    }
    write64(machine, TSS + 4, u64::from(STACK));
    if matches!(mode, Mode::Long | Mode::Compat) {
        for index in 0..8 {
            write64(machine, TSS + 0x24 + 8 * index, u64::from(STACK));
        }
    } else {
        // SS0.
        write(machine, TSS + 8, &[0x20, 0, 0, 0]);
    }
    write(machine, TSS + 102, &[0x68, 0]);
}

/// Page tables of random rights that map the low megabytes, mostly to themselves.
fn paging(machine: &mut Machine, mode: Mode, random: &mut Random) {
    let wide = !matches!(mode, Mode::Vm86 | Mode::Protected16 | Mode::Protected32);
    let entry_size = if wide { 8 } else { 4 };
    let put = |machine: &mut Machine, at: u64, value: u64| {
        write(machine, at, &value.to_le_bytes()[..entry_size as usize]);
    };
    let mut leaf = TABLES;
    match mode {
        Mode::Long | Mode::Compat => {
            put(machine, TABLES, (TABLES + 0x1000) | 7);
            put(machine, TABLES + 0x1000, (TABLES + 0x2000) | 7);
            leaf = TABLES + 0x2000;
        }
        Mode::Pae => {
            put(machine, TABLES, (TABLES + 0x1000) | 1);
            leaf = TABLES + 0x1000;
        }
        _ => {}
    }
    put(machine, leaf, (TABLES + 0x4000) | 7);
    put(machine, leaf + entry_size, (TABLES + 0x5000) | 7);
    put(machine, leaf + 2 * entry_size, 0x87);
    for page in 0..512u64 {
        // Pages of tables, handlers and code are mostly what they should be.
        let odds = if page < 0x24 { 256 } else { 8 };
        let frame = if random.one_in(odds) {
            random.pick(&[
                random.clone().below(1024) << 12,
                0xfee0_0000,
                0xfec0_0000,
                0xa_0000,
            ])
        } else {
            page << 12
        };
        let rights = if random.one_in(odds) {
            random.next() & 0x1ff
        } else {
            7
        };
        put(machine, TABLES + 0x4000 + page * entry_size, frame | rights);
    }
}

fn segments(cpu: &mut CpuState, mode: Mode, ring: u16, random: &mut Random) {
    if matches!(mode, Mode::Real | Mode::Vm86) {
        for (index, segment) in cpu.segments.iter_mut().enumerate() {
            let code = index == 1;
            *segment = Segment::real(if code {
                0x1000
            } else {
                random.below(0x4000) as u16
            });
            if mode == Mode::Vm86 {
                segment.attributes |= 3 << 5;
            }
        }
        return;
    }
    let (size, index) = match mode {
        Mode::Protected16 => (0x8000, 1),
        Mode::Long => (0xa000, 5),
        _ => (0xc000, 3),
    };
    let index = index + if ring == 3 { 6 } else { 0 };
    let data_size = if size == 0xa000 { 0xc000 } else { size };
    let odd = random.one_in(4);
    for segment in &mut cpu.segments {
        *segment = Segment {
            base: if odd { random.below(0x1000) & !15 } else { 0 },
            limit: if random.one_in(16) { 0xffff } else { u32::MAX },
            selector: ((index + 1) << 3) | ring,
            attributes: data_size | 0x93 | ring << 5,
        };
    }
    cpu.segments[1] = Segment {
        base: 0,
        limit: u32::MAX,
        selector: (index << 3) | ring,
        attributes: size | 0x9b | ring << 5,
    };
}

fn processor(cpu: &mut CpuState, mode: Mode, random: &mut Random) {
    let protected = mode != Mode::Real;
    let ring = if mode == Mode::Vm86 || random.one_in(2) {
        3
    } else {
        0
    };
    let control = &mut cpu.control;
    control.cr0 = CR0_ET | CR0_NE;
    control.cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    control.xcr0 = 7;
    control.gdtr = DescriptorTable {
        base: GDT,
        limit: 0xff,
    };
    control.idtr = DescriptorTable {
        base: if protected { IDT } else { 0 },
        limit: 0x3ff,
    };
    control.tr = Segment {
        base: TSS,
        limit: 0x67,
        selector: 13 * 8,
        attributes: 0x8b,
    };
    if protected {
        control.cr0 |= CR0_PE;
    }
    let paged = matches!(mode, Mode::Pae | Mode::Long | Mode::Compat) || random.one_in(2);
    if protected && paged {
        control.cr0 |= CR0_PG | random.pick(&[0, CR0_WP]);
        control.cr3 = TABLES;
        control.cr4 |= CR4_PSE | random.pick(&[0, CR4_SMAP, CR4_SMEP]);
    }
    match mode {
        Mode::Pae => {
            control.cr4 |= CR4_PAE;
            control.pdpte = [(TABLES + 0x1000) | 1, 0, 0, 0];
        }
        Mode::Long | Mode::Compat => {
            control.cr4 |= CR4_PAE | random.pick(&[0, CR4_PCIDE]);
            control.efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
            cpu.msrs.lstar = CODE + 0x100;
            cpu.msrs.star = 0x0013_0008 << 32;
        }
        _ => {}
    }
    for register in &mut cpu.gpr {
        *register = match random.below(4) {
            0 => random.below(16),
            1 => random.next(),
            _ => DATA + random.below(0x4000),
        };
        if mode != Mode::Long {
            *register &= 0xffff_ffff;
        }
    }
    cpu.gpr[4] = DATA + 0x3000;
    segments(cpu, mode, ring, random);
    if matches!(mode, Mode::Real | Mode::Vm86 | Mode::Protected16) {
        for register in &mut cpu.gpr {
            *register &= 0xffff;
        }
    }
    cpu.rip = match mode {
        Mode::Real | Mode::Vm86 => 0,
        _ => CODE,
    };
    let mut flags = random.next() & (ARITHMETIC | DF | IF | IOPL);
    if random.one_in(32) {
        flags |= random.pick(&[TF, AC, NT]);
    }
    if mode == Mode::Vm86 {
        flags |= VM;
    }
    cpu.set_rflags(flags, u64::MAX);
    for register in &mut cpu.vector.ymm {
        *register = [(); 4].map(|()| random.next());
    }
    cpu.refresh_mode();
}

/// Fills memory and registers for a guest of this mode.
pub fn prepare(machine: &mut Machine, mode: Mode, random: &mut Random) {
    let noise: Vec<u8> = (0..0x4000).map(|_| random.next() as u8).collect();
    write(machine, DATA, &noise);
    tables(machine, mode, random);
    paging(machine, mode, random);
    let bits = match mode {
        Mode::Real | Mode::Vm86 | Mode::Protected16 => 16,
        Mode::Long => 64,
        _ => 32,
    };
    let code = stream(random, bits, CODE_BYTES as usize);
    write(machine, CODE, &code);
    processor(machine.vcpu.cpu_mut(), mode, random);
    machine.vcpu.forget_everything();
}
