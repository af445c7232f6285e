//! What the loaders of kernel images share: their errors, ELF segments, and the processor state
//! of a flat 32-bit entry.

use std::ops::Range;
use std::path::Path;

use dbt::Vcpu;
use dbt::guest::{Segment, flags};
use mmu::{GuestPhys, PhysMem};
use object::LittleEndian;
use object::elf::{
    EM_386, EM_X86_64, FileHeader32, FileHeader64, Machine, NoteType, PF_X, PT_LOAD, PT_NOTE,
    ProgramFlags,
};
use object::read::elf::{FileHeader, ProgramHeader};

use crate::linux::LinuxError;

const ONE_MIB: u64 = 1 << 20;
/// RAM below this is conventional memory; the extended BIOS data area would follow.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// Where ACPI tables and a firmware's identity are searched.
pub const FIRMWARE_START: GuestPhys = GuestPhys(0xe_0000);

/// A file that is being loaded, for messages.
pub struct Image<'a> {
    /// Its name.
    pub path: &'a Path,
    /// What it claims to be, as "multiboot image".
    pub kind: &'static str,
    /// Its contents.
    pub bytes: &'a [u8],
}

impl Image<'_> {
    /// The error of a file that cannot be used: what is wrong at which offset, and what to do.
    pub fn broken(&self, at: u64, why: impl Into<String>, remedy: &'static str) -> LinuxError {
        LinuxError::BrokenImage {
            path: self.path.display().to_string(),
            kind: self.kind,
            at,
            why: why.into(),
            remedy,
        }
    }
}

/// The rest of RAM that a loader has not used, and what it has.
pub struct Placement<'m> {
    mem: &'m mut PhysMem,
    used: Vec<Range<u64>>,
}

impl<'m> Placement<'m> {
    /// Nothing is placed yet.
    pub fn new(mem: &'m mut PhysMem) -> Placement<'m> {
        Placement {
            mem,
            used: Vec::new(),
        }
    }

    /// Places bytes, followed by zeros up to `len`.
    pub fn put(&mut self, what: &str, at: u64, bytes: &[u8], len: u64) -> Result<(), LinuxError> {
        let ram = self.mem.ram_bytes();
        let low = self.mem.low_ram_bytes();
        let end = at.checked_add(len);
        let fits = end.is_some_and(|end| end <= low);
        let legacy = at < ONE_MIB && end.is_some_and(|end| end > LOW_MEMORY_END);
        if !fits || legacy {
            let remedy = match end {
                Some(end) if end <= 3 << 30 && !legacy => remedy(end),
                _ => "it has to be linked to an address between 1 MiB and 3 GiB".to_string(),
            };
            return Err(LinuxError::TooLarge {
                what: format!("{what} at {at:#x}"),
                need: len,
                ram,
                remedy,
            });
        }
        let mut store = |at: u64, bytes: &[u8]| {
            self.mem
                .store(GuestPhys(at), bytes)
                .map_err(|_| LinuxError::TooLarge {
                    what: format!("{what} at {at:#x}"),
                    need: len,
                    ram,
                    remedy: remedy(at + len),
                })
        };
        store(at, bytes)?;
        let zeros = [0; 4096];
        let mut done = bytes.len() as u64;
        while done < len {
            let part = (len - done).min(4096);
            store(at + done, &zeros[..part as usize])?;
            done += part;
        }
        if len > 0 {
            self.used.push(at..at + len);
        }
        Ok(())
    }

    /// The end of all that is placed, at a page's start.
    pub fn end(&self) -> u64 {
        let end = self.used.iter().map(|range| range.end).max().unwrap_or(0);
        end.next_multiple_of(4096)
    }

    /// The first of the addresses where `len` bytes hide nothing, else behind everything.
    pub fn free(&self, candidates: &[u64], len: u64) -> u64 {
        let clear = |&at: &u64| {
            let range = at..at + len;
            self.used
                .iter()
                .all(|used| used.end <= range.start || range.end <= used.start)
        };
        let found = candidates.iter().copied().find(clear);
        found.unwrap_or_else(|| self.end().max(ONE_MIB))
    }

    /// The memory.
    pub fn mem(&mut self) -> &mut PhysMem {
        self.mem
    }
}

/// The -m that would do for something that ends at an address.
pub fn remedy(end: u64) -> String {
    format!("give the guest more: -m {} would do", end.div_ceil(ONE_MIB))
}

/// The map that the firmware would report (E820): address, bytes, type (1 RAM, 2 reserved).
pub fn memory_map(mem: &PhysMem) -> Vec<(u64, u64, u32)> {
    let low = mem.low_ram_bytes();
    let mut map = vec![
        (0, LOW_MEMORY_END, 1),
        (LOW_MEMORY_END, 0xa_0000 - LOW_MEMORY_END, 2),
        (FIRMWARE_START.0, ONE_MIB - FIRMWARE_START.0, 2),
        (ONE_MIB, low - ONE_MIB, 1),
    ];
    if mem.ram_bytes() > low {
        map.push((4 << 30, mem.ram_bytes() - low, 1));
    }
    map
}

/// The root pointer of the ACPI tables, if the machine has any.
pub fn acpi_root(mem: &mut PhysMem) -> Option<u64> {
    let mut signature = [0; 8];
    let found = mem.load(FIRMWARE_START, &mut signature).is_ok() && &signature == b"RSD PTR ";
    found.then_some(FIRMWARE_START.0)
}

/// An ELF kernel, as its program headers describe it.
pub struct Elf {
    /// The physical address of the entry.
    pub entry: u64,
    /// The 32-bit entry that a Xen note names, if one does (XEN_ELFNOTE_PHYS32_ENTRY).
    pub phys32_entry: Option<u32>,
}

/// Whether the bytes start as an ELF file does.
pub fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// Reads an ELF file of either class and places its segments, if `place` is given.
pub fn read_elf(image: &Image<'_>, place: Option<&mut Placement<'_>>) -> Result<Elf, LinuxError> {
    match image.bytes.get(4) {
        Some(1) => elf_of_class::<FileHeader32<LittleEndian>>(image, place),
        Some(2) => elf_of_class::<FileHeader64<LittleEndian>>(image, place),
        _ => Err(image.broken(4, "its ELF class is neither 32 nor 64 bits", REBUILD)),
    }
}

const REBUILD: &str = "copy or build the file again";

fn elf_of_class<Header>(
    image: &Image<'_>,
    mut place: Option<&mut Placement<'_>>,
) -> Result<Elf, LinuxError>
where
    Header: FileHeader<Endian = LittleEndian>,
{
    const XEN_PHYS32_ENTRY: NoteType = NoteType(18);
    const X86: [Machine; 2] = [EM_386, EM_X86_64];
    let bytes = image.bytes;
    let header = Header::parse(bytes).map_err(|error| {
        image.broken(0, format!("its ELF header is unusable ({error})"), REBUILD)
    })?;
    let endian = LittleEndian;
    if header.is_big_endian() || !X86.contains(&header.e_machine(endian)) {
        return Err(image.broken(18, "it is not for x86", "give a kernel for x86 or x86-64"));
    }
    let table = header.e_phoff(endian).into();
    let segments = header.program_headers(endian, bytes).map_err(|error| {
        image.broken(
            table,
            format!("its program headers are unusable ({error})"),
            REBUILD,
        )
    })?;
    if segments.is_empty() {
        return Err(image.broken(
            table,
            "it has no program headers",
            "link it as an executable",
        ));
    }
    let mut entry: u64 = header.e_entry(endian).into();
    let mut phys32_entry = None;
    let mut loaded = false;
    for segment in segments {
        let offset: u64 = segment.p_offset(endian).into();
        let file_size: u64 = segment.p_filesz(endian).into();
        let truncated = || {
            let have = bytes.len();
            let why = format!(
                "it is truncated: a segment needs {file_size} bytes from here, and the file has {have}"
            );
            image.broken(offset, why, REBUILD)
        };
        match segment.p_type(endian) {
            PT_LOAD => {
                let data = segment.data(endian, bytes).map_err(|()| truncated())?;
                let size: u64 = segment.p_memsz(endian).into();
                if size < file_size {
                    let why = "a segment is larger in the file than in memory";
                    return Err(image.broken(offset, why, REBUILD));
                }
                let physical: u64 = segment.p_paddr(endian).into();
                let linear: u64 = segment.p_vaddr(endian).into();
                if let Some(place) = &mut place {
                    let what = format!("{} {}: a segment", image.kind, image.path.display());
                    place.put(&what, physical, data, size)?;
                }
                loaded |= size > 0;
                let start: u64 = header.e_entry(endian).into();
                if segment.p_flags(endian) & PF_X != ProgramFlags(0)
                    && start.wrapping_sub(linear) < file_size
                {
                    entry = physical.wrapping_add(start.wrapping_sub(linear));
                }
            }
            PT_NOTE => {
                let notes = segment.notes(endian, bytes).map_err(|_| truncated())?;
                let Some(mut notes) = notes else { continue };
                while let Ok(Some(note)) = notes.next() {
                    let word = note.desc().first_chunk();
                    if note.name() == b"Xen"
                        && note.n_type(endian) == XEN_PHYS32_ENTRY
                        && let Some(word) = word
                    {
                        phys32_entry = Some(u32::from_le_bytes(*word));
                    }
                }
            }
            _ => {}
        }
    }
    if !loaded {
        return Err(image.broken(
            table,
            "no segment is to be loaded",
            "link it as an executable",
        ));
    }
    Ok(Elf {
        entry,
        phys32_entry,
    })
}

/// Puts the processor at a 32-bit entry: protected mode without paging, flat segments,
/// interrupts off, and the GDT that the selectors are from at `gdt`.
pub fn enter_flat(vcpu: &mut Vcpu, entry: u32, gdt: Gdt) {
    let cpu = vcpu.cpu_mut();
    let flat = |selector: u16, code: bool| Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        attributes: Segment::PRESENT
            | Segment::NOT_SYSTEM
            | Segment::WRITABLE
            | Segment::ACCESSED
            | Segment::BIG
            | Segment::GRANULAR
            | if code { Segment::CODE } else { 0 },
    };
    cpu.segments = [flat(gdt.data, false); 6];
    cpu.segments[1] = flat(gdt.code, true);
    cpu.control.gdtr.base = gdt.at;
    cpu.control.gdtr.limit = GDT_BYTES as u16 - 1;
    cpu.control.cr0 = flags::CR0_PE | flags::CR0_ET;
    cpu.gpr = [0; 16];
    cpu.rip = u64::from(entry);
    cpu.interrupt_flag = 0;
    cpu.refresh_mode();
}

/// A GDT with flat segments in guest memory.
#[derive(Clone, Copy)]
pub struct Gdt {
    /// Its address.
    pub at: u64,
    /// The selector for CS.
    pub code: u16,
    /// The selector for all others.
    pub data: u16,
}

/// Length of the GDT that [`gdt_bytes`] makes.
pub const GDT_BYTES: usize = 32;

/// The descriptors of a [`Gdt`]: code at `code`, data behind it.
pub fn gdt_bytes(code: u16) -> [u8; GDT_BYTES] {
    let mut table = [0; GDT_BYTES];
    let at = usize::from(code);
    table[at..at + 8].copy_from_slice(&0x00cf_9a00_0000_ffff_u64.to_le_bytes());
    table[at + 8..at + 16].copy_from_slice(&0x00cf_9200_0000_ffff_u64.to_le_bytes());
    table
}
