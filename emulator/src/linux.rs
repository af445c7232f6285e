//! Starting a Linux kernel by its boot protocol (Documentation/arch/x86/boot.rst): the 32-bit
//! entry of a bzImage.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use dbt::Vcpu;
use mmu::GuestPhys;

use crate::image::{Gdt, acpi_root, enter_flat, gdt_bytes, memory_map, remedy};

const ZERO_PAGE: GuestPhys = GuestPhys(0x1_0000);
const GDT: GuestPhys = GuestPhys(0x1_2000);
const COMMAND_LINE: GuestPhys = GuestPhys(0x2_0000);
const KERNEL: GuestPhys = GuestPhys(0x10_0000);
const ONE_MIB: u64 = 0x10_0000;

/// A kernel or initrd that cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LinuxError {
    /// The file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The host's reason.
        source: std::io::Error,
    },
    /// Not a bzImage.
    #[error("{path} is not a Linux kernel (bzImage): {why}")]
    NotAKernel {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A kernel of another format is damaged, or cannot be started here.
    #[error("{path} is no usable {kind}: {why} (at offset {at:#x}); {remedy}")]
    BrokenImage {
        /// The file.
        path: String,
        /// What it claims to be.
        kind: &'static str,
        /// Where in the file.
        at: u64,
        /// What is wrong.
        why: String,
        /// What would help.
        remedy: &'static str,
    },
    /// Memory is too small.
    #[error("{what} of {need} bytes does not fit into {ram} bytes of RAM; {remedy}")]
    TooLarge {
        /// What does not fit.
        what: String,
        /// Its size.
        need: u64,
        /// The RAM there is.
        ram: u64,
        /// What would help.
        remedy: String,
    },
    /// The command line is too long.
    #[error("the kernel command line has {len} bytes; this kernel takes at most {limit}")]
    CommandLine {
        /// Its length.
        len: usize,
        /// What the kernel takes.
        limit: usize,
    },
}

/// Reads a file, naming it in the error.
pub fn read_file(path: &Path) -> Result<Vec<u8>, LinuxError> {
    std::fs::read(path).map_err(|source| unreadable(path, source))
}

fn unreadable(path: &Path, source: std::io::Error) -> LinuxError {
    LinuxError::Read {
        path: path.display().to_string(),
        source,
    }
}

/// Bytes of a file that are read at once on their way to the guest's memory.
const PIECE: u64 = 1 << 20;

/// A file that goes to the guest's memory piece by piece, as it may be larger than what the host has to spare.
struct Source<'a> {
    path: &'a Path,
    reader: Box<dyn Read>,
    len: u64,
}

impl Source<'_> {
    fn open(path: &Path) -> Result<Source<'_>, LinuxError> {
        let failed = |source| unreadable(path, source);
        let mut file = File::open(path).map_err(failed)?;
        let known = file.metadata().map_err(failed)?;
        if known.is_file() && known.len() > 0 {
            return Ok(Source {
                path,
                reader: Box::new(file),
                len: known.len(),
            });
        }
        // How much comes out of a pipe, or of a file that the host's kernel makes up, only its end says.
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        Ok(Source {
            path,
            len: bytes.len() as u64,
            reader: Box::new(std::io::Cursor::new(bytes)),
        })
    }

    /// `put`: takes each piece, and where in the file it is.
    fn read(
        mut self,
        mut put: impl FnMut(u64, &[u8]) -> Result<(), LinuxError>,
    ) -> Result<(), LinuxError> {
        let mut buffer = vec![0; PIECE.min(self.len) as usize];
        let mut at = 0;
        while at < self.len {
            let piece = &mut buffer[..PIECE.min(self.len - at) as usize];
            let read = self.reader.read_exact(piece);
            read.map_err(|source| unreadable(self.path, source))?;
            put(at, piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}

/// Whether a file has the boot protocol's setup header.
pub fn has_header(image: &[u8]) -> bool {
    image.get(0x202..0x206) == Some(b"HdrS")
}

/// Places a kernel, its initrd and its command line in memory, and the processor at its entry.
pub fn load(
    vcpu: &mut Vcpu,
    path: &Path,
    image: &[u8],
    initrd: Option<&Path>,
    command_line: &str,
) -> Result<(), LinuxError> {
    let initrd = initrd.map(Source::open).transpose()?;
    let not_a_kernel = |why: &str| LinuxError::NotAKernel {
        path: path.display().to_string(),
        why: why.to_string(),
    };
    let word = |at: usize| {
        image
            .get(at..at + 2)
            .map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
    };
    let long = |at: usize| {
        image
            .get(at..at + 4)
            .map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    if image.is_empty() {
        return Err(not_a_kernel("the file is empty"));
    }
    if word(0x1fe) != Some(0xaa55) || !has_header(image) {
        return Err(not_a_kernel("the boot signature is missing"));
    }
    let version = word(0x206).unwrap_or(0);
    if version < 0x20a {
        return Err(not_a_kernel("its boot protocol is older than 2.10"));
    }
    if image[0x211] & 1 == 0 {
        return Err(not_a_kernel("it is a zImage, which loads below 1 MiB"));
    }
    let setup_sectors = match image[0x1f1] {
        0 => 4,
        count => usize::from(count),
    };
    let setup_size = (setup_sectors + 1) * 512;
    let system_size = long(0x1f4).unwrap_or(0) as usize * 16;
    let kernel = image
        .get(setup_size..)
        .filter(|kernel| !kernel.is_empty())
        .ok_or_else(|| not_a_kernel("the file is truncated"))?;
    // The size is in paragraphs and may be rounded up.
    if kernel.len() + 15 < system_size {
        return Err(not_a_kernel(&format!(
            "the file is truncated: {} bytes of {}",
            image.len(),
            setup_size + system_size
        )));
    }
    let ram = vcpu.mem.ram_bytes();
    let low = vcpu.mem.low_ram_bytes();
    let too_large = |what: String, need: u64, end: u64| LinuxError::TooLarge {
        what,
        need,
        ram,
        remedy: remedy(end),
    };
    let init_size = u64::from(long(0x260).unwrap_or(0)).max(kernel.len() as u64);
    if KERNEL.0 + init_size > low {
        let what = format!("kernel {}", path.display());
        return Err(too_large(what, init_size, KERNEL.0 + init_size));
    }
    let limit = long(0x238).unwrap_or(255) as usize;
    if command_line.len() > limit {
        return Err(LinuxError::CommandLine {
            len: command_line.len(),
            limit,
        });
    }
    let mem = &mut vcpu.mem;
    let mut put = |at: GuestPhys, bytes: &[u8], what: &str| {
        mem.store(at, bytes).map_err(|_| LinuxError::TooLarge {
            what: what.to_string(),
            need: bytes.len() as u64,
            ram,
            remedy: remedy(at.0 + bytes.len() as u64),
        })
    };
    put(KERNEL, kernel, "the kernel")?;
    let mut text = command_line.as_bytes().to_vec();
    text.push(0);
    put(COMMAND_LINE, &text, "the command line")?;

    let mut zero_page = vec![0u8; 4096];
    let header_end = (0x202 + usize::from(image[0x201])).clamp(0x238, 0x290);
    let header = image
        .get(0x1f1..header_end)
        .ok_or_else(|| not_a_kernel("the file is truncated"))?;
    zero_page[0x1f1..header_end].copy_from_slice(header);
    zero_page[0x210] = 0xff; // no registered boot loader
    zero_page[0x211] |= 0x80; // the heap end is valid
    zero_page[0x224..0x226].copy_from_slice(&0xde00u16.to_le_bytes());
    zero_page[0x228..0x22c].copy_from_slice(&(COMMAND_LINE.0 as u32).to_le_bytes());
    if let Some(initrd) = initrd {
        let need = initrd.len;
        // Where the kernel can reach it (initrd_addr_max).
        let highest = u64::from(long(0x22c).unwrap_or(0x37ff_ffff)) + 1;
        let top = low.min(highest);
        let start = top.checked_sub(need).map(|start| start & !0xfff);
        let bottom = KERNEL.0 + init_size;
        let start = match start {
            Some(start) if start >= bottom => start,
            _ => {
                let what = format!("initrd {}", initrd.path.display());
                let end = bottom + need.next_multiple_of(4096);
                if end > highest {
                    return Err(LinuxError::TooLarge {
                        what,
                        need,
                        ram,
                        remedy: format!(
                            "this kernel reaches an initrd only up to {} MiB",
                            highest >> 20
                        ),
                    });
                }
                return Err(too_large(what, need, end));
            }
        };
        initrd.read(|at, piece| put(GuestPhys(start + at), piece, "the initrd"))?;
        zero_page[0x218..0x21c].copy_from_slice(&(start as u32).to_le_bytes());
        zero_page[0x21c..0x220].copy_from_slice(&(need as u32).to_le_bytes());
    }
    let map = memory_map(mem);
    zero_page[0x1e8] = map.len() as u8;
    if let Some(root) = acpi_root(mem) {
        zero_page[0x70..0x78].copy_from_slice(&root.to_le_bytes());
    }
    for (index, (start, len, kind)) in map.iter().enumerate() {
        let at = 0x2d0 + index * 20;
        zero_page[at..at + 8].copy_from_slice(&start.to_le_bytes());
        zero_page[at + 8..at + 16].copy_from_slice(&len.to_le_bytes());
        zero_page[at + 16..at + 20].copy_from_slice(&kind.to_le_bytes());
    }
    let gdt = Gdt {
        at: GDT.0,
        code: 0x10,
        data: 0x18,
    };
    let stored = mem
        .store(ZERO_PAGE, &zero_page)
        .and_then(|()| mem.store(GDT, &gdt_bytes(gdt.code)));
    stored.map_err(|_| too_large("the boot parameters".to_string(), 4096, ONE_MIB))?;
    enter_flat(vcpu, KERNEL.0 as u32, gdt);
    vcpu.cpu_mut().gpr[6] = ZERO_PAGE.0;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_that_does_not_know_its_size_is_read_to_its_end() {
        let path = Path::new("/proc/version");
        let mut read = Vec::new();
        let source = Source::open(path).unwrap();
        source
            .read(|_, piece| {
                read.extend_from_slice(piece);
                Ok(())
            })
            .unwrap();
        assert_eq!(read, std::fs::read(path).unwrap());
        assert!(!read.is_empty());
    }

    #[test]
    fn a_file_comes_in_pieces_and_may_have_become_shorter() {
        let name = format!("kmemvisor-source-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let bytes: Vec<u8> = (0..2 * PIECE + 5).map(|at| (at % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let source = Source::open(&path).unwrap();
        let shorter = Source::open(&path).unwrap();
        let mut read = Vec::new();
        source
            .read(|at, piece| {
                assert_eq!(at, read.len() as u64);
                read.extend_from_slice(piece);
                Ok(())
            })
            .unwrap();
        assert!(read == bytes);
        std::fs::write(&path, &bytes[..7]).unwrap();
        let error = shorter.read(|_, _| Ok(())).unwrap_err();
        std::fs::remove_file(&path).unwrap();
        assert!(error.to_string().contains(&path.display().to_string()));
    }
}
