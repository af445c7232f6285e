//! Starting a kernel by the Multiboot specification, version 0.6.96.

use std::path::Path;

use dbt::Vcpu;

use crate::bios_remains;
use crate::image::{
    GDT_BYTES, Gdt, Image, LOW_MEMORY_END, Placement, enter_flat, gdt_bytes, is_elf, memory_map,
    read_elf, remedy,
};
use crate::linux::{LinuxError, read_file};

/// The header is within so many bytes of the file's start.
const SEARCHED: usize = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// In EAX at the entry.
const LOADER_MAGIC: u64 = 0x2bad_b002;
/// The header's address fields are valid.
const HAS_ADDRESSES: u32 = 1 << 16;
/// Where the information goes if nothing else is there.
const INFORMATION: [u64; 2] = [0x9000, 0x8_0000];
const LOADER_NAME: &str = "kmemvisor";
/// The first hard disk, no partition.
const BOOT_DEVICE: u32 = 0x8000_ffff;
/// Valid in the information: memory, boot device, command line, modules, memory map, name.
const INFORMATION_FLAGS: u32 = 1 | 2 | 4 | 8 | 1 << 6 | 1 << 9;
const INFORMATION_BYTES: u64 = 88;

/// A multiboot header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Offset in the file.
    at: usize,
    flags: u32,
}

/// Finds the header that makes a file a multiboot image.
pub fn find(bytes: &[u8]) -> Option<Header> {
    let searched = &bytes[..bytes.len().min(SEARCHED)];
    (0..searched.len()).step_by(4).find_map(|at| {
        let magic = word(searched, at)?;
        let flags = word(searched, at + 4)?;
        let checksum = word(searched, at + 8)?;
        let sum = magic.wrapping_add(flags).wrapping_add(checksum);
        (magic == HEADER_MAGIC && sum == 0).then_some(Header { at, flags })
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

/// Places a multiboot image, its modules (`FILE ARGUMENTS`, separated by commas; a comma in a
/// name is doubled) and its information in memory, and the processor at the entry.
pub fn load(
    vcpu: &mut Vcpu,
    path: &Path,
    bytes: &[u8],
    header: Header,
    modules: Option<&Path>,
    command_line: &str,
) -> Result<(), LinuxError> {
    let image = Image {
        path,
        kind: "multiboot image",
        bytes,
    };
    let ram = vcpu.mem.ram_bytes();
    bios_remains::leave(vcpu).map_err(|_| LinuxError::TooLarge {
        what: "the memory below 1 MiB".to_string(),
        need: 1 << 20,
        ram,
        remedy: remedy(1 << 20),
    })?;
    let mut place = Placement::new(&mut vcpu.mem);
    let entry = if header.flags & HAS_ADDRESSES != 0 {
        load_flat(&image, header, &mut place)?
    } else if is_elf(bytes) {
        let entry = read_elf(&image, Some(&mut place))?.entry;
        u32::try_from(entry).map_err(|_| {
            let why = format!("its entry {entry:#x} is not below 4 GiB");
            image.broken(24, why, "link it with a 32-bit entry")
        })?
    } else {
        let why = "it is no ELF file, and its header has no addresses";
        let remedy =
            "link it as ELF, or set bit 16 of the header's flags and fill in the addresses";
        return Err(image.broken(header.at as u64, why, remedy));
    };

    let mut listed = Vec::new();
    for module in modules.map(split_modules).unwrap_or_default() {
        let name = module.split(' ').next().unwrap_or_default();
        let contents = read_file(Path::new(name))?;
        let at = place.end().max(1 << 20);
        let what = format!("module {name}");
        place.put(&what, at, &contents, contents.len() as u64)?;
        // An empty module, too, has a place.
        listed.push((at, at + contents.len() as u64, module));
    }
    let map = memory_map(place.mem());
    let low = place.mem().low_ram_bytes();

    // Everything that the information points to follows it in one piece.
    let texts = listed.iter().map(|module| module.2.len()).sum::<usize>();
    let line = format!("{} {command_line}", path.display());
    let need = INFORMATION_BYTES
        + GDT_BYTES as u64
        + (map.len() * 24 + listed.len() * 17 + texts + line.len() + LOADER_NAME.len() + 2) as u64;
    let start = place.free(&INFORMATION, need);
    let mut information = vec![0; INFORMATION_BYTES as usize];
    let append = |information: &mut Vec<u8>, bytes: &[u8]| {
        let at = start as u32 + information.len() as u32;
        information.extend_from_slice(bytes);
        at
    };
    let gdt = append(&mut information, &gdt_bytes(8));
    let mut entries = Vec::new();
    for (start, len, kind) in &map {
        entries.extend_from_slice(&20u32.to_le_bytes());
        entries.extend_from_slice(&start.to_le_bytes());
        entries.extend_from_slice(&len.to_le_bytes());
        entries.extend_from_slice(&kind.to_le_bytes());
    }
    let map_at = append(&mut information, &entries);
    let mut text_at = start as u32 + information.len() as u32 + 16 * listed.len() as u32;
    let mut table = Vec::new();
    let mut strings = Vec::new();
    let mut string = |text: &str| {
        let at = text_at;
        strings.extend_from_slice(text.as_bytes());
        strings.push(0);
        text_at += text.len() as u32 + 1;
        at
    };
    for (start, end, text) in &listed {
        for field in [*start as u32, *end as u32, string(text), 0] {
            table.extend_from_slice(&field.to_le_bytes());
        }
    }
    let line_at = string(&line);
    let name_at = string(LOADER_NAME);
    let modules_at = append(&mut information, &table);
    append(&mut information, &strings);
    let fields: [(usize, u32); 10] = [
        (0, INFORMATION_FLAGS),
        (4, (LOW_MEMORY_END >> 10) as u32),
        (8, (low.saturating_sub(1 << 20) >> 10) as u32),
        (12, BOOT_DEVICE),
        (16, line_at),
        (20, listed.len() as u32),
        (24, modules_at),
        (44, entries.len() as u32),
        (48, map_at),
        (64, name_at),
    ];
    for (at, value) in fields {
        information[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    place.put(
        "the boot information",
        start,
        &information,
        information.len() as u64,
    )?;

    let gdt = Gdt {
        at: u64::from(gdt),
        code: 8,
        data: 16,
    };
    enter_flat(vcpu, entry, gdt);
    let cpu = vcpu.cpu_mut();
    cpu.gpr[0] = LOADER_MAGIC;
    cpu.gpr[3] = start;
    Ok(())
}

/// Places an image that says in its header where it goes; gives its entry.
fn load_flat(
    image: &Image<'_>,
    header: Header,
    place: &mut Placement<'_>,
) -> Result<u32, LinuxError> {
    const REMEDY: &str = "correct the addresses in the header, or build the file again";
    let at = header.at as u64;
    let broken = |offset: u64, why: String| image.broken(at + offset, why, REMEDY);
    let mut fields = [0u32; 5];
    for (index, field) in fields.iter_mut().enumerate() {
        *field = word(image.bytes, header.at + 12 + 4 * index)
            .ok_or_else(|| broken(12, "it is truncated in its header".to_string()))?;
    }
    let [header_addr, load_addr, load_end, bss_end, entry] = fields.map(u64::from);
    let before = header_addr
        .checked_sub(load_addr)
        .ok_or_else(|| broken(12, "header_addr is below load_addr".to_string()))?;
    let from = at.checked_sub(before).ok_or_else(|| {
        let why = format!("load_addr {load_addr:#x} would be in front of the file's start");
        broken(16, why)
    })?;
    let rest = image.bytes.get(from as usize..).unwrap_or_default();
    let bytes = if load_end == 0 {
        rest
    } else {
        let len = load_end
            .checked_sub(load_addr)
            .ok_or_else(|| broken(20, "load_end_addr is below load_addr".to_string()))?;
        rest.get(..len as usize).ok_or_else(|| {
            let have = rest.len();
            broken(
                20,
                format!(
                    "it is truncated: {len} bytes are to be loaded, and the file has {have} of them"
                ),
            )
        })?
    };
    let len = bytes.len() as u64;
    let size = match bss_end {
        0 => len,
        _ => bss_end
            .checked_sub(load_addr)
            .filter(|&size| size >= len)
            .ok_or_else(|| broken(24, "bss_end_addr is below the end of the data".to_string()))?,
    };
    let what = format!("{} {}", image.kind, image.path.display());
    place.put(&what, load_addr, bytes, size)?;
    Ok(entry as u32)
}

/// The modules that -initrd names.
fn split_modules(text: &Path) -> Vec<String> {
    let text = text.to_string_lossy();
    let mut modules = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != ',' || letters.next_if_eq(&',').is_some() {
            if let Some(last) = modules.last_mut() {
                last.push(letter);
            }
        } else {
            modules.push(String::new());
        }
    }
    modules.retain(|module| !module.is_empty());
    modules
}

#[cfg(test)]
#[path = "multiboot_tests.rs"]
mod tests;
