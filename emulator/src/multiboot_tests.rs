//! Kernels of all formats but Linux's own, made by hand and loaded into a machine that does
//! not run.

use std::io::Write;
use std::path::PathBuf;

use mmu::GuestPhys;
use tempfile::NamedTempFile;

use super::*;
use crate::boot::Boot;
use crate::machine::{Machine, MachineConfig};

const MIB: u64 = 1 << 20;

fn machine() -> Machine {
    Machine::new(MachineConfig {
        ram_bytes: 16 * MIB,
        copies: 2,
        board: devices::BoardConfig::default(),
        model: Default::default(),
        engine: Default::default(),
        icount_shift: Some(0),
        seed: 1,
        audit_every: None,
        acpi: true,
    })
    .unwrap()
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn load(bytes: &[u8], modules: Option<&str>, line: &str) -> Result<Machine, String> {
    let file = file(bytes);
    let mut machine = machine();
    let boot = Boot::Kernel {
        kernel: file.path().to_path_buf(),
        initrd: modules.map(PathBuf::from),
        command_line: line.to_string(),
    };
    boot.load(&mut machine.vcpu)
        .map_err(|error| error.to_string())?;
    Ok(machine)
}

impl Machine {
    fn word(&mut self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        assert!(self.read_memory(GuestPhys(at), &mut bytes));
        u32::from_le_bytes(bytes)
    }

    fn text(&mut self, at: u64) -> String {
        let mut bytes = [0; 200];
        assert!(self.read_memory(GuestPhys(at), &mut bytes));
        let end = bytes.iter().position(|&byte| byte == 0).unwrap();
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }
}

fn words(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// A header for flags 0 or with addresses, checksum included.
fn header(flags: u32, addresses: &[u32]) -> Vec<u8> {
    let mut fields = vec![HEADER_MAGIC, flags];
    fields.push(0u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags));
    fields.extend_from_slice(addresses);
    words(&fields)
}

/// A 32-bit ELF file of one segment at `physical`, whose entry is its first byte.
fn elf32(data: &[u8], linear: u32, physical: u32, memory: u32) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend([2, 0, 3, 0]);
    bytes.extend(words(&[1, linear, 52, 0, 0]));
    bytes.extend([52, 0, 32, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let len = data.len() as u32;
    bytes.extend(words(&[1, 84, linear, physical, len, memory, 5, 4]));
    bytes.extend(data);
    bytes
}

/// A 64-bit ELF file of a segment at 2 MiB that is code and note at once.
fn elf64(note: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    let longs = |bytes: &mut Vec<u8>, values: &[u64]| {
        values
            .iter()
            .for_each(|value| bytes.extend(value.to_le_bytes()));
    };
    longs(&mut bytes, &[0xffff_ffff_8020_0000, 64, 0]);
    bytes.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let len = note.len() as u64;
    for kind in [1u32, 4] {
        bytes.extend(words(&[kind, 5]));
        longs(
            &mut bytes,
            &[176, 0xffff_ffff_8020_0000, 0x20_0000, len, len, 4],
        );
    }
    bytes.extend(note);
    bytes
}

fn xen_note(entry: u32) -> Vec<u8> {
    let mut note = words(&[4, 4, 18]);
    note.extend(b"Xen\0");
    note.extend(words(&[entry]));
    note
}

#[test]
fn an_elf_image_gets_what_the_specification_promises() {
    let mut data = header(0, &[]);
    data.extend(b"code");
    let first = file(b"first module");
    let second = file(b"2");
    let [first, second] = [&first, &second].map(|file| file.path().display().to_string());
    let modules = format!("{first} one,,more,{second}");
    let image = elf32(&data, 0xc010_0000, 0x10_0000, 0x3000);
    let mut machine = load(&image, Some(&modules), "a=b c").unwrap();
    let cpu = machine.vcpu.cpu();
    // The entry is physical, as paging is off.
    assert_eq!((cpu.rip, cpu.gpr[0]), (0x10_0000, LOADER_MAGIC));
    assert_eq!(cpu.control.cr0 & 1, 1);
    assert_eq!(cpu.control.cr0 >> 31, 0);
    assert_eq!(cpu.interrupt_flag, 0);
    assert!(cpu.segments.iter().all(|segment| segment.is_flat()));
    let info = cpu.gpr[3];
    assert_eq!(machine.word(0x10_0000), HEADER_MAGIC);
    assert_eq!(machine.word(info), INFORMATION_FLAGS);
    assert_eq!(machine.word(info + 4), 639);
    assert_eq!(machine.word(info + 8), 15 << 10);
    let line = machine.word(info + 16);
    assert!(machine.text(line.into()).ends_with(" a=b c"));
    assert_eq!(machine.word(info + 20), 2);
    let list = u64::from(machine.word(info + 24));
    let (start, end) = (machine.word(list), machine.word(list + 4));
    // Behind the kernel's zeroed memory, not in it.
    assert_eq!((start, end - start), (0x10_3000, 12));
    assert_eq!(machine.text(start.into()), "first module");
    let text = machine.word(list + 8);
    assert_eq!(machine.text(text.into()), format!("{first} one,more"));
    let start = machine.word(list + 16);
    assert_eq!(machine.text(start.into()), "2");
    let name = machine.word(info + 64);
    assert_eq!(machine.text(name.into()), LOADER_NAME);
    // The map's last entry is all RAM above 1 MiB.
    let (len, map) = (machine.word(info + 44), u64::from(machine.word(info + 48)));
    let last = map + u64::from(len) - 24;
    let entry = [0, 4, 12, 20].map(|offset| machine.word(last + offset));
    assert_eq!(entry, [20, 1 << 20, 15 << 20, 1]);
}

#[test]
fn a_header_with_addresses_needs_no_elf() {
    // The header is 8 bytes into the file; 12 bytes behind its end are not to be loaded.
    let mut image = vec![0x90; 8];
    image.extend(header(
        HAS_ADDRESSES,
        &[0x20_0008, 0x20_0000, 0x20_0030, 0x20_0100, 0x20_0004],
    ));
    image.resize(0x30, 0xcc);
    image.extend([0xee; 12]);
    let mut machine = load(&image, None, "").unwrap();
    assert_eq!(machine.vcpu.cpu().rip, 0x20_0004);
    assert_eq!(machine.word(0x20_002c), 0xcccc_cccc);
    assert_eq!(machine.word(0x20_0030), 0);
}

#[test]
fn information_does_not_hide_the_kernel() {
    let image = elf32(&header(0, &[]), 0x9000, 0x9000, 0x1000);
    let mut machine = load(&image, None, "").unwrap();
    assert_eq!(machine.word(0x9000), HEADER_MAGIC);
    assert_eq!(machine.vcpu.cpu().gpr[3], INFORMATION[1]);
}

/// Xen places its 16-bit code at the lesser of what the data area and the information say.
#[test]
fn the_bios_data_area_and_the_information_agree_on_low_memory() {
    let image = elf32(&header(0, &[]), 0x10_0000, 0x10_0000, 0x1000);
    let mut machine = load(&image, None, "").unwrap();
    let information = machine.vcpu.cpu().gpr[3];
    let low = machine.word(information + 4);
    assert_eq!(low, 639);
    assert_eq!(machine.word(0x413) & 0xffff, low);
    let extended = machine.word(0x40e) & 0xffff;
    assert_eq!(extended << 4, low << 10);
    assert_eq!(machine.word(u64::from(extended) << 4) & 0xff, 1, "its KiB");
}

#[test]
fn a_pvh_kernel_gets_its_start_information() {
    let initrd = file(b"initrd");
    let path = initrd.path().display().to_string();
    let mut machine = load(&elf64(&xen_note(0x20_0040)), Some(&path), "root=x").unwrap();
    let cpu = machine.vcpu.cpu();
    assert_eq!(cpu.rip, 0x20_0040);
    assert!(!cpu.long_mode());
    let info = cpu.gpr[3];
    let head = [0, 4, 8, 12].map(|offset| machine.word(info + offset));
    assert_eq!(head, [0x336e_c578, 1, 0, 1]);
    let list = u64::from(machine.word(info + 16));
    assert_eq!(machine.word(list + 8), 6);
    let at = machine.word(list);
    assert_eq!(machine.text(at.into()), "initrd");
    let line = machine.word(info + 24);
    assert_eq!(machine.text(line.into()), "root=x");
    assert_eq!(machine.word(info + 32), 0xe_0000);
    let map = u64::from(machine.word(info + 40));
    assert_eq!(machine.word(info + 48), 4);
    let entry = [0, 8, 16].map(|offset| machine.word(map + offset));
    assert_eq!(entry, [0, 0x9_fc00, 1]);
}

#[test]
fn broken_images_are_named() {
    let good = elf32(&header(0, &[]), 0x10_0000, 0x10_0000, 0x1000);
    let with = |at: usize, value: u32| {
        let mut image = good.clone();
        image[at..at + 4].copy_from_slice(&value.to_le_bytes());
        image
    };
    let flat = |addresses: [u32; 5]| header(HAS_ADDRESSES, &addresses);
    for (image, word) in [
        (
            good[..good.len() - 1].to_vec(),
            "it is truncated: a segment needs 12 bytes",
        ),
        (with(44, 9), "program headers"),
        (with(28, 0x7fff_ffff), "program headers"),
        (with(64, 0xf000_0000), "between 1 MiB and 3 GiB"),
        (with(72, 0x7000_0000), "-m"),
        (with(72, 1), "larger in the file"),
        (with(52, 0), "no segment"),
        (with(16, 0x0008_0002), "not for x86"),
        (header(0, &[]), "no ELF file"),
        (header(HAS_ADDRESSES, &[1 << 20]), "truncated in its header"),
        (flat([0, 0x10_0000, 0, 0, 0]), "below load_addr"),
        (flat([0x10_0008, 0x10_0000, 0, 0, 0]), "in front of"),
        (flat([1 << 20, 1 << 20, 2 << 20, 0, 0]), "truncated"),
        (flat([1 << 20, 1 << 20, 1, 0, 0]), "load_end_addr"),
        (flat([1 << 20, 1 << 20, 0, 1, 0]), "bss_end_addr"),
        (elf64(&words(&[4, 4, 18])), "CONFIG_PVH"),
    ] {
        // Whatever is damaged, a message says so; nothing panics.
        let Err(error) = load(&image, None, "") else {
            panic!("an image with {word} was loaded");
        };
        assert!(error.contains(word), "{word}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    for len in 0..good.len() {
        // Cut anywhere.
        let _ = load(&good[..len], None, "");
    }
}
