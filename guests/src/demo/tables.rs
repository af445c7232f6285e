//! Descriptor tables, page tables, and the image as a whole (SDM volume 3, 3.4.5, 4.5, 6.14.1,
//! 7.7).

use super::kernel::Kernel;
use super::layout::*;
use crate::{Image, Segment, Table};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const NO_EXECUTE: u64 = 1 << 63;
const PAGE: u64 = 4096;
const TSS_SIZE: u64 = 104;

fn words_of(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn gdt() -> Vec<u64> {
    let tss = KERNEL_WINDOW + TSS;
    vec![
        0,
        0x00af_9a00_0000_ffff,
        0x00cf_9200_0000_ffff,
        0x00cf_f200_0000_ffff,
        0x00af_fa00_0000_ffff,
        // Busy 64-bit TSS: it is loaded from the start.
        (TSS_SIZE - 1) | (tss & 0xff_ffff) << 16 | 0x8b << 40 | (tss >> 24 & 0xff) << 56,
        tss >> 32,
    ]
}

fn gate(handler: u64, kind: u64) -> [u64; 2] {
    let low = handler & 0xffff
        | u64::from(KERNEL_CODE) << 16
        | kind << 40
        | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}

fn idt(kernel: &Kernel) -> Vec<u64> {
    const INTERRUPT_GATE: u64 = 0x8e;
    const USER_INTERRUPT_GATE: u64 = 0xee;
    let mut table = vec![0; 512];
    for (vector, &handler) in kernel.exceptions.iter().enumerate() {
        table[vector * 2..vector * 2 + 2].copy_from_slice(&gate(handler, INTERRUPT_GATE));
    }
    let vector = usize::from(SYSTEM_CALL);
    let system_call = gate(kernel.system_call, USER_INTERRUPT_GATE);
    table[vector * 2..vector * 2 + 2].copy_from_slice(&system_call);
    table
}

fn tss() -> Vec<u8> {
    let mut bytes = vec![0; TSS_SIZE as usize];
    bytes[4..12].copy_from_slice(&KERNEL_STACK_TOP.to_le_bytes());
    bytes[102..104].copy_from_slice(&(TSS_SIZE as u16).to_le_bytes());
    bytes
}

/// A page table for the 2 MiB of RAM from `physical` on: pages in `ranges` (guest-physical) are
/// mapped, with these rights.
fn table(physical: u64, ranges: &[(u64, u64)], rights: u64) -> Vec<u64> {
    (0..512)
        .map(|index| physical + index * PAGE)
        .map(|page| {
            let mapped = ranges
                .iter()
                .any(|&(first, end)| page + PAGE > first && page < end);
            if mapped { page | rights } else { 0 }
        })
        .collect()
}

/// Entries of a table that are not zero, as a table.
fn sparse(entries: &[(usize, u64)]) -> Vec<u64> {
    let mut table = vec![0; 512];
    for &(index, value) in entries {
        table[index] = value;
    }
    table
}

fn page_tables(kernel_text: u64, program: u64) -> Vec<Segment> {
    const BELOW: u64 = PRESENT | WRITABLE | USER;
    const KERNEL_RIGHTS: u64 = PRESENT | WRITABLE | NO_EXECUTE;
    const USER_RIGHTS: u64 = PRESENT | WRITABLE | USER | NO_EXECUTE;
    let matrix = u64::from(ORDER * ORDER * 8);
    let words = u64::from(WORD_COUNT * 8);
    let user_text = [(USER_TEXT, USER_TEXT + program)];
    let user_data = [
        (SIEVE, SIEVE + u64::from(SIEVE_LIMIT)),
        (WORDS, WORDS + words),
        (COPY, COPY + words),
        (LIST, LIST + u64::from(LIST_NODES * 16)),
        (LEFT, PRODUCT + matrix),
        (USER_STACK_TOP - USER_STACK_SIZE, USER_STACK_TOP),
    ];
    let kernel_data = [
        (GDT, TSS + TSS_SIZE),
        (
            KERNEL_DATA_PHYSICAL,
            KERNEL_DATA_PHYSICAL + u64::from(KERNEL_WORDS * 8),
        ),
        (KERNEL_STACK_TOP_PHYSICAL - PAGE, KERNEL_STACK_TOP_PHYSICAL),
    ];
    let text = (KERNEL_TEXT_PHYSICAL, KERNEL_TEXT_PHYSICAL + kernel_text);
    let mut tables = vec![
        (
            PML4,
            sparse(&[(0, USER_PDPT | BELOW), (511, KERNEL_PDPT | BELOW)]),
        ),
        (USER_PDPT, sparse(&[(0, USER_DIRECTORY | BELOW)])),
        (KERNEL_PDPT, sparse(&[(510, KERNEL_DIRECTORY | BELOW)])),
        (
            KERNEL_DIRECTORY,
            sparse(&[
                (0, KERNEL_TEXT_TABLE | BELOW),
                (1, KERNEL_DATA_TABLE | BELOW),
            ]),
        ),
        (
            KERNEL_TEXT_TABLE,
            table(KERNEL_TEXT_PHYSICAL, &[text], PRESENT),
        ),
        (KERNEL_DATA_TABLE, table(0, &kernel_data, KERNEL_RIGHTS)),
    ];
    let mut directory = vec![0; 512];
    for (index, base) in (0..RAM_BYTES).step_by(512 * PAGE as usize).enumerate() {
        let data = table(base, &user_data, USER_RIGHTS);
        let text = table(base, &user_text, PRESENT | USER);
        let both: Vec<u64> = data
            .iter()
            .zip(&text)
            .map(|(data, text)| data | text)
            .collect();
        if both.iter().any(|&entry| entry != 0) {
            let at = USER_TABLES + index as u64 * PAGE;
            directory[index] = at | BELOW;
            tables.push((at, both));
        }
    }
    tables.push((USER_DIRECTORY, directory));
    tables
        .into_iter()
        .map(|(at, values)| Segment {
            at,
            bytes: words_of(&values),
        })
        .collect()
}

/// Puts the image together.
pub fn link(kernel: Kernel, program: Vec<u8>) -> Image {
    let gdt = words_of(&gdt());
    let idt = words_of(&idt(&kernel));
    let limit = |bytes: &[u8]| bytes.len() as u16 - 1;
    let mut image = Image {
        ram_bytes: RAM_BYTES,
        entry: KERNEL_TEXT,
        stack: KERNEL_STACK_TOP,
        cr3: PML4,
        gdt: Table {
            base: KERNEL_WINDOW + GDT,
            limit: limit(&gdt),
        },
        idt: Table {
            base: KERNEL_WINDOW + IDT,
            limit: limit(&idt),
        },
        tss: Table {
            base: KERNEL_WINDOW + TSS,
            limit: TSS_SIZE as u16 - 1,
        },
        code_selector: KERNEL_CODE,
        data_selector: KERNEL_SEGMENT,
        tss_selector: TSS_SELECTOR,
        segments: page_tables(kernel.text.len() as u64, program.len() as u64),
    };
    for (at, bytes) in [
        (GDT, gdt),
        (IDT, idt),
        (TSS, tss()),
        (KERNEL_TEXT_PHYSICAL, kernel.text),
        (USER_TEXT, program),
    ] {
        image.segments.push(Segment { at, bytes });
    }
    image
}
