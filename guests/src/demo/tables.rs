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

fn words(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn gdt() -> Vec<u64> {
    vec![
        0,
        0x00af_9a00_0000_ffff,
        0x00cf_9200_0000_ffff,
        0x00cf_f200_0000_ffff,
        0x00af_fa00_0000_ffff,
        // Busy 64-bit TSS: it is loaded from the start.
        (TSS_SIZE - 1) | (TSS & 0xff_ffff) << 16 | 0x8b << 40 | (TSS >> 24 & 0xff) << 56,
        TSS >> 32,
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

/// The rights of a page. Page 0 stays unmapped, so that null pointers fault.
fn rights(page: u64) -> u64 {
    match page {
        0 => 0,
        KERNEL_TEXT..KERNEL_DATA => PRESENT,
        USER_TEXT..USER_TEXT_END => PRESENT | USER,
        USER_TEXT_END..RAM_BYTES => PRESENT | WRITABLE | USER | NO_EXECUTE,
        _ => PRESENT | WRITABLE | NO_EXECUTE,
    }
}

fn page_tables() -> Vec<Segment> {
    let table = PRESENT | WRITABLE | USER;
    let tables = RAM_BYTES / PAGE / 512;
    let directory: Vec<u64> = (0..tables)
        .map(|index| (PAGE_TABLES + index * PAGE) | table)
        .collect();
    let entries: Vec<u64> = (0..RAM_BYTES)
        .step_by(PAGE as usize)
        .map(|page| match rights(page) {
            0 => 0,
            rights => page | rights,
        })
        .collect();
    [
        (PML4, vec![PDPT | table]),
        (PDPT, vec![PAGE_DIRECTORY | table]),
        (PAGE_DIRECTORY, directory),
        (PAGE_TABLES, entries),
    ]
    .into_iter()
    .map(|(at, values)| Segment {
        at,
        bytes: words(&values),
    })
    .collect()
}

/// Puts the image together.
pub fn link(kernel: Kernel, program: Vec<u8>) -> Image {
    let gdt = words(&gdt());
    let idt = words(&idt(&kernel));
    let limit = |bytes: &[u8]| bytes.len() as u16 - 1;
    let mut image = Image {
        ram_bytes: RAM_BYTES,
        entry: KERNEL_TEXT,
        stack: KERNEL_STACK_TOP,
        cr3: PML4,
        gdt: Table {
            base: GDT,
            limit: limit(&gdt),
        },
        idt: Table {
            base: IDT,
            limit: limit(&idt),
        },
        tss: Table {
            base: TSS,
            limit: TSS_SIZE as u16 - 1,
        },
        code_selector: KERNEL_CODE,
        data_selector: KERNEL_SEGMENT,
        tss_selector: TSS_SELECTOR,
        segments: page_tables(),
    };
    for (at, bytes) in [
        (GDT, gdt),
        (IDT, idt),
        (TSS, tss()),
        (KERNEL_TEXT, kernel.text),
        (USER_TEXT, program),
    ] {
        image.segments.push(Segment { at, bytes });
    }
    image
}
