//! Starting an ELF kernel by the PVH protocol: a 32-bit entry in a Xen note, and an
//! `hvm_start_info` in memory (Xen's public header arch-x86/hvm/start_info.h).

use std::path::Path;

use dbt::Vcpu;
use dbt::guest::Segment;

use crate::image::{
    GDT_BYTES, Gdt, Image, Placement, acpi_root, enter_flat, gdt_bytes, memory_map, read_elf,
};
use crate::linux::{LinuxError, read_file};

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const INFORMATION: [u64; 2] = [0x9000, 0x8_0000];
const INFORMATION_BYTES: u64 = 56;
const MODULE_BYTES: u64 = 32;
const MAP_ENTRY_BYTES: usize = 24;

/// Places an ELF kernel, its initrd and its command line in memory, and the processor at the
/// entry that its note names.
pub fn load(
    vcpu: &mut Vcpu,
    path: &Path,
    bytes: &[u8],
    initrd: Option<&Path>,
    command_line: &str,
) -> Result<(), LinuxError> {
    let image = Image {
        path,
        kind: "ELF kernel",
        bytes,
    };
    let entry = read_elf(&image, None)?.phys32_entry.ok_or_else(|| {
        let why = "it is an ELF image with neither a multiboot header nor a PVH entry";
        let remedy = "give the compressed kernel (vmlinuz) instead, or build it with CONFIG_PVH";
        image.broken(0, why, remedy)
    })?;
    let mut place = Placement::new(&mut vcpu.mem);
    read_elf(&image, Some(&mut place))?;
    let mut module = None;
    if let Some(initrd) = initrd {
        let contents = read_file(initrd)?;
        let len = contents.len() as u64;
        // At the end of RAM, where the kernel does not grow; else right behind the kernel.
        let top = place.mem().low_ram_bytes().saturating_sub(len) & !0xfff;
        let at = top.max(place.end());
        place.put(&format!("initrd {}", initrd.display()), at, &contents, len)?;
        module = Some((at, len));
    }
    let map = memory_map(place.mem());
    let root = acpi_root(place.mem()).unwrap_or(0);

    let map_len = (map.len() * MAP_ENTRY_BYTES) as u64;
    let need = INFORMATION_BYTES
        + MODULE_BYTES
        + map_len
        + GDT_BYTES as u64
        + command_line.len() as u64
        + 1;
    let start = place.free(&INFORMATION, need);
    let modules_at = start + INFORMATION_BYTES;
    let map_at = modules_at + MODULE_BYTES;
    let gdt_at = map_at + map_len;
    let line_at = gdt_at + GDT_BYTES as u64;
    let (module_at, module_len) = module.unwrap_or((0, 0));
    let mut out = Vec::new();
    let longs = |out: &mut Vec<u8>, values: &[u64]| {
        values
            .iter()
            .for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
    };
    let words = |out: &mut Vec<u8>, values: &[u32]| {
        values
            .iter()
            .for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
    };
    words(&mut out, &[MAGIC, VERSION, 0, u32::from(module.is_some())]);
    longs(&mut out, &[modules_at, line_at, root, map_at]);
    words(&mut out, &[map.len() as u32, 0]);
    longs(&mut out, &[module_at, module_len, 0, 0]);
    for (start, len, kind) in &map {
        longs(&mut out, &[*start, *len]);
        words(&mut out, &[*kind, 0]);
    }
    out.extend_from_slice(&gdt_bytes(8));
    out.extend_from_slice(command_line.as_bytes());
    out.push(0);
    place.put("the boot information", start, &out, out.len() as u64)?;

    let gdt = Gdt {
        at: gdt_at,
        code: 8,
        data: 16,
    };
    enter_flat(vcpu, entry, gdt);
    let cpu = vcpu.cpu_mut();
    cpu.gpr[3] = start;
    cpu.control.tr = Segment {
        base: 0,
        limit: 0x67,
        selector: 0,
        // A busy 32-bit TSS.
        attributes: Segment::PRESENT | 0xb,
    };
    Ok(())
}
