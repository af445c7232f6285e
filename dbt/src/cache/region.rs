//! Executable memory: the one place that has any. The code region is one memory file mapped
//! twice, writable and executable, so that no page is ever both (W^X) and a write costs no
//! change of protection.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use memmap2::{Mmap, MmapOptions, MmapRaw};

/// A fixed region of host code.
pub struct CodeRegion {
    writable: MmapRaw,
    executable: Mmap,
}

/// An offset into the code region, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CodeOffset(pub u32);

impl CodeRegion {
    /// Reserves `len` bytes; pages are committed as they are used.
    pub fn new(len: usize) -> io::Result<CodeRegion> {
        // SAFETY: a plain system call with a constant string; the result is checked.
        let fd = unsafe { libc::memfd_create(c"kmemvisor-code".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and is owned by nobody else.
        let file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        file.set_len(len as u64)?;
        let writable = MmapOptions::new().len(len).map_raw(&file)?;
        // SAFETY: the file is private to this value; what the writable view changes is code
        // that does not run at that moment, or a jump displacement of the same thread.
        let executable = unsafe { MmapOptions::new().len(len).map_exec(&file)? };
        Ok(CodeRegion {
            writable,
            executable,
        })
    }

    /// Bytes reserved.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.executable.len()
    }

    /// Host address at which the byte at `offset` executes.
    pub fn address(&self, offset: CodeOffset) -> u64 {
        self.executable.as_ptr() as u64 + u64::from(offset.0)
    }

    /// The offset of an executable host address, if it is in the region.
    pub fn offset_of(&self, address: u64) -> Option<CodeOffset> {
        let offset = address.wrapping_sub(self.executable.as_ptr() as u64);
        (offset < self.len() as u64).then_some(CodeOffset(offset as u32))
    }

    /// Writes code.
    ///
    /// # Panics
    ///
    /// If the range is outside the region: the allocator above never hands out such a one.
    pub fn write(&mut self, offset: CodeOffset, bytes: &[u8]) {
        let start = offset.0 as usize;
        assert!(start + bytes.len() <= self.len(), "code outside its region");
        // SAFETY: the range was checked, and `bytes` is not in the region.
        unsafe {
            let to = self.writable.as_mut_ptr().add(start);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// Points a 32-bit relative jump or call at `target`. `site` is where its displacement is.
    pub fn patch_relative(&mut self, site: CodeOffset, target: CodeOffset) {
        let displacement = target.0.wrapping_sub(site.0 + 4);
        self.write(site, &displacement.to_le_bytes());
    }

    /// Reads back bytes of code.
    pub fn bytes(&self, offset: CodeOffset, len: usize) -> &[u8] {
        &self.executable[offset.0 as usize..offset.0 as usize + len]
    }
}
