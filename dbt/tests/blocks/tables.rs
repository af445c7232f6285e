//! What a program finds in low memory: descriptors, handlers, page tables.

use crate::machine::*;
use crate::program::Program;

pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
/// Where exceptions and interrupts go, 16 bytes a vector.
pub const HANDLERS: u64 = 0x4000;
pub const HANDLERS_END: u64 = 0x5000;
const PAGE_FAULT: u64 = HANDLERS + 0x800;
/// Where SYSCALL goes.
pub const SYSCALL: u64 = HANDLERS + 0xa00;
/// What handlers count in.
const COUNT: u64 = 0x6000;
/// The stack of exceptions grows down from here.
pub const HANDLER_STACK: u64 = 0x6000;
/// Two address spaces: the second swaps what [`alternate`] says.
pub const SPACES: [u64; 2] = [0x8000, 0xc000];
/// Turns one root into the other.
pub const OTHER_SPACE: u32 = 0x4000;

pub const KERNEL_CODE: u16 = 0x08;
pub const KERNEL_DATA: u16 = 0x10;
pub const USER_CODE: u16 = 0x1b;
pub const USER_DATA: u16 = 0x23;
pub const TSS_SELECTOR: u16 = 0x30;
/// STAR: SYSCALL's selectors, and those that SYSRET counts from.
pub const STAR: u64 = (0x08 << 32) | (0x1b << 48);
/// Software interrupt that programs use, and the vector of hardware interrupts.
pub const SOFTWARE: u8 = 0x21;
pub const HARDWARE: u8 = 0x20;

/// In long mode all that is mapped is there again at multiples of this distance, which is what TLBs
/// index by, below `ALIASES` times it.
pub const ALIAS: u64 = 64 << 20;
pub const ALIASES: u64 = 8;

/// Software's bit in page-table entries: a fault on the page makes it present.
const ON_DEMAND: u64 = 1 << 10;

/// The page-table entry of a linear page in the first space.
pub fn entry_address(bits: u32, linear: u64) -> u64 {
    let size = if bits == 64 { 8 } else { 4 };
    let leaf = SPACES[0] + if bits == 64 { 0x3000 } else { 0x1000 };
    leaf + linear / PAGE * size
}

/// Pages that exist twice, so that a mapping can change.
pub fn has_alternate(linear: u64) -> bool {
    (CODE..CODE + 2 * PAGE).contains(&linear) || (DATA..DATA_END).contains(&linear)
}

/// The other physical page of a page that exists twice.
pub fn alternate(physical: u64) -> u64 {
    physical ^ 0x8_0000
}

fn leaf_entry(program: &Program, linear: u64) -> u64 {
    let user = if program.smap { 0 } else { 4 };
    if linear < CODE {
        return linear | 3;
    }
    match linear {
        READ_ONLY => physical(linear) | 5,
        HOLE => physical(linear) | 6 | if program.maps_holes { ON_DEMAND } else { 0 },
        DEVICE => DEVICE_PHYSICAL | 3 | user,
        _ if linear == CODE + PAGE && program.code_on_demand => {
            physical(linear) | 2 | user | ON_DEMAND
        }
        _ if (CODE..CODE + 2 * PAGE).contains(&linear) => physical(linear) | 3 | user,
        _ if (DATA..DATA_END).contains(&linear) => physical(linear) | 7,
        _ if (STACK..STACK + 2 * PAGE).contains(&linear) => physical(linear) | 3 | user,
        _ => 0,
    }
}

/// Writes everything below the first linear page of programs.
pub fn write(machine: &mut Machine, program: &Program) {
    let long = program.bits == 64;
    machine.write(0, &vec![0; CODE as usize]);
    let (kernel, user) = if long {
        (0x00af_9b00_0000_ffff, 0x00af_fb00_0000_ffff)
    } else {
        (0x00cf_9b00_0000_ffff, 0x00cf_fb00_0000_ffff)
    };
    let data = 0x00cf_f300_0000_ffff;
    let entries: [u64; 7] = [
        0,
        kernel,
        0x00cf_9300_0000_ffff,
        user,
        data,
        user,
        0x8b00_0000_0067 | TSS << 16,
    ];
    for (index, entry) in entries.into_iter().enumerate() {
        machine.write_uint(GDT + 8 * index as u64, 8, entry);
    }
    for vector in 0..0x30u64 {
        let handler = HANDLERS + 16 * vector;
        let open = if vector == u64::from(SOFTWARE) { 3 } else { 0 };
        let low = handler & 0xffff | u64::from(KERNEL_CODE) << 16 | (0x8e | open << 5) << 40;
        if long {
            // Everything uses stack 1.
            machine.write_uint(IDT + 16 * vector, 8, low | 1 << 32);
        } else {
            machine.write_uint(IDT + 8 * vector, 8, low);
        }
        machine.write(handler, &[0xf4]);
    }
    write_handlers(machine, long);
    if long {
        machine.write_uint(TSS + 0x24, 8, HANDLER_STACK);
        machine.write_uint(TSS + 4, 8, HANDLER_STACK);
        for root in SPACES {
            for level in 0..3 {
                let table = root + level * PAGE;
                machine.write_uint(table, 8, (table + PAGE) | 7);
            }
            let directory = root + 2 * PAGE;
            for alias in 1..ALIASES {
                let entry = directory + alias * (ALIAS >> 21) * 8;
                machine.write_uint(entry, 8, (directory + PAGE) | 7);
            }
        }
    } else {
        machine.write_uint(TSS + 4, 4, HANDLER_STACK);
        machine.write_uint(TSS + 8, 2, u64::from(KERNEL_DATA));
        machine.write_uint(SPACES[0], 4, (SPACES[0] + PAGE) | 7);
    }
    let size = if long { 8 } else { 4 };
    for page in 0..0x40u64 {
        let linear = page * PAGE;
        let entry = leaf_entry(program, linear);
        let at = entry_address(program.bits, linear);
        machine.write_uint(at, size, entry);
        if long {
            let other = if has_alternate(linear) {
                alternate(entry)
            } else {
                entry
            };
            machine.write_uint(at + SPACES[1] - SPACES[0], size, other);
        }
    }
}

fn write_handlers(machine: &mut Machine, long: bool) {
    let count = |long: bool| {
        // add dword [COUNT], 1
        let mut code = vec![0x83];
        code.extend(if long { &[0x04, 0x25][..] } else { &[0x05] });
        code.extend((COUNT as u32).to_le_bytes());
        code.push(1);
        code
    };
    let return_: &[u8] = if long { &[0x48, 0xcf] } else { &[0xcf] };
    for vector in [HARDWARE, SOFTWARE] {
        let mut code = count(long);
        code.extend(return_);
        machine.write(HANDLERS + 16 * u64::from(vector), &code);
    }
    let mut code = count(long);
    code.extend([0x48, 0x0f, 0x07]);
    machine.write(SYSCALL, &code);
    // Page faults: pages to be had on demand become present, others halt.
    let gate = HANDLERS + 16 * 14;
    let mut jump = vec![0xe9];
    jump.extend((PAGE_FAULT.wrapping_sub(gate + 5) as u32).to_le_bytes());
    machine.write(gate, &jump);
    let leaf = entry_address(if long { 64 } else { 32 }, 0) as u32;
    let scaled = if long { 0xc5 } else { 0x85 };
    // push rax; mov rax, cr2; shr eax, 12; cmp eax, 0x40; jae halt
    let mut code = vec![
        0x50, 0x0f, 0x20, 0xd0, 0xc1, 0xe8, 12, 0x83, 0xf8, 0x40, 0x73, 0,
    ];
    let first = code.len();
    // test byte [leaf + rax * size + 1], 4; jz halt
    code.extend([0xf6, 0x04, scaled]);
    code.extend((leaf + 1).to_le_bytes());
    code.extend([4, 0x74, 0]);
    let second = code.len();
    // or byte [leaf + rax * size], 1: in both spaces
    let spaces = if long { 2 } else { 1 };
    for space in 0..spaces {
        code.extend([0x80, 0x0c, scaled]);
        code.extend((leaf + space * OTHER_SPACE).to_le_bytes());
        code.push(1);
    }
    // A page that is present faults for another reason.
    code.push(0x58);
    code.extend(if long {
        &[0x48, 0x83, 0xc4, 8, 0x48, 0xcf][..]
    } else {
        &[0x83, 0xc4, 4, 0xcf]
    });
    let halt = code.len();
    code.push(0xf4);
    code[first - 1] = (halt - first) as u8;
    code[second - 1] = (halt - second) as u8;
    machine.write(PAGE_FAULT, &code);
}
