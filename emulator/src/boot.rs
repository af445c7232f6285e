//! What the machine starts: a kernel by its own boot protocol, or firmware at the reset vector.

use std::path::{Path, PathBuf};

use dbt::Vcpu;
use mmu::GuestPhys;

use crate::linux::{self, LinuxError};
use crate::{image, multiboot, pvh};

/// What to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// A kernel, placed in memory without firmware: a Linux bzImage, a multiboot image, or an
    /// ELF file with a PVH entry.
    Kernel {
        /// The file.
        kernel: PathBuf,
        /// The initial RAM disk, or multiboot modules.
        initrd: Option<PathBuf>,
        /// The kernel's command line.
        command_line: String,
    },
    /// A firmware image, mapped below 4 GiB.
    Firmware(PathBuf),
}

/// Nothing can be started.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel or its initrd.
    #[error(transparent)]
    Linux(#[from] LinuxError),
    /// The firmware.
    #[error("{path} is not a firmware image: {why}")]
    Firmware {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
}

const FOUR_GIB: u64 = 4 << 30;
const ONE_MIB: u64 = 1 << 20;
/// Where adapters and firmware have their ROMs, up to 1 MiB.
const ROM_AREA: u64 = 0xC_0000;
/// The part of the ROM that is also below 1 MiB.
const LOW_ROM_LIMIT: usize = 128 << 10;
const ROM_LIMIT: usize = 16 << 20;

impl Boot {
    /// Whether the machine's own ACPI tables are to be in memory.
    pub fn wants_acpi_tables(&self) -> bool {
        matches!(self, Boot::Kernel { .. })
    }

    /// Whether there is to be a host bridge: a kernel that is started without firmware finds a
    /// machine without PCI.
    pub fn wants_host_bridge(&self) -> bool {
        matches!(self, Boot::Firmware(_))
    }

    /// Places everything in memory, and the processor at the entry.
    pub fn load(&self, vcpu: &mut Vcpu) -> Result<(), BootError> {
        match self {
            Boot::Kernel {
                kernel,
                initrd,
                command_line,
            } => {
                let initrd = initrd.as_deref();
                Ok(load_kernel(vcpu, kernel, initrd, command_line)?)
            }
            Boot::Firmware(path) => load_firmware(vcpu, path),
        }
    }
}

/// Starts a kernel by the protocol of its format; the formats are told apart in QEMU's order.
fn load_kernel(
    vcpu: &mut Vcpu,
    path: &Path,
    initrd: Option<&Path>,
    command_line: &str,
) -> Result<(), LinuxError> {
    let bytes = linux::read_file(path)?;
    if !linux::has_header(&bytes) {
        if let Some(header) = multiboot::find(&bytes) {
            return multiboot::load(vcpu, path, &bytes, header, initrd, command_line);
        }
        if image::is_elf(&bytes) {
            return pvh::load(vcpu, path, &bytes, initrd, command_line);
        }
    }
    linux::load(vcpu, path, &bytes, initrd, command_line)
}

/// A raw ROM ends at 4 GiB, where the processor starts after reset (SDM volume 3, 10.1.4); its
/// end is also below 1 MiB, for real mode.
fn load_firmware(vcpu: &mut Vcpu, path: &Path) -> Result<(), BootError> {
    let image = linux::read_file(path)?;
    let error = |why: String| BootError::Firmware {
        path: path.display().to_string(),
        why,
    };
    let size = image.len();
    if size == 0 || size % 4096 != 0 || size > ROM_LIMIT {
        return Err(error(format!(
            "it has {size} bytes; a multiple of 4096 up to {ROM_LIMIT} is possible"
        )));
    }
    let rom = |reason: mmu::MemoryError| error(reason.to_string());
    let low = &image[size - size.min(LOW_ROM_LIMIT)..];
    let at = GuestPhys(ONE_MIB - low.len() as u64);
    vcpu.mem
        .store(at, low)
        .map_err(|reason| error(reason.to_string()))?;
    // Until the host bridge says otherwise, nothing from here to 1 MiB can be written.
    let area = GuestPhys(ROM_AREA);
    vcpu.mem.set_write_protected(area, ONE_MIB - ROM_AREA, true);
    vcpu.mem
        .add_rom(GuestPhys(FOUR_GIB - size as u64), &image)
        .map_err(rom)
}
