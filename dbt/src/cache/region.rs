//! Executable memory: the one place that has any.
//!
//! Where the host has protection keys (SDM volume 3, 4.6.2), the region is one anonymous mapping
//! that a thread may write only while it has opened the region's key, which takes two WRPKRU.
//! Keys do not concern instruction fetches. Such memory can be on large host pages, of which
//! a host's TLB for instructions needs few. Elsewhere the region is a memory file mapped twice,
//! writable and executable. Either way nothing can be written where it executes.

use std::arch::asm;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use memmap2::{Advice, Mmap, MmapOptions, MmapRaw};
use mmu::Provider;
use serde::{Deserialize, Serialize};

/// Bytes of a large page of the host.
pub(super) const LARGE_PAGE: usize = 2 << 20;

/// A fixed region of host code.
pub struct CodeRegion {
    memory: Memory,
    /// Where the code executes.
    start: u64,
    len: usize,
}

enum Memory {
    /// One mapping under a protection key; the region begins at its first large page.
    Keyed { _map: MmapRaw, key: Key },
    /// One memory file mapped twice.
    Twice {
        writable: Arc<MmapRaw>,
        executable: Arc<Mmap>,
    },
}

/// An offset into the code region, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct CodeOffset(pub u32);

impl CodeRegion {
    /// Reserves `len` bytes; pages are committed as they are used. `large`: on large pages, if the host can.
    pub fn new(len: usize, large: bool) -> io::Result<CodeRegion> {
        let keyed = large.then(|| CodeRegion::keyed(len)).flatten();
        keyed.map_or_else(|| CodeRegion::twice(len), Ok)
    }

    /// A region under the process's protection key, if the host has keys and lets memory be
    /// writable and executable.
    fn keyed(len: usize) -> Option<CodeRegion> {
        let key = Key::of_process()?;
        let map = MmapOptions::new().len(len + LARGE_PAGE).map_anon().ok()?;
        let map = MmapRaw::from(map);
        let start = (map.as_ptr() as usize).next_multiple_of(LARGE_PAGE);
        let offset = start - map.as_ptr() as usize;
        // Without large pages the region works as well; it is merely slower.
        let _ = map.advise_range(Advice::HugePage, offset, len);
        key.protect(start, len).ok()?;
        Some(CodeRegion {
            memory: Memory::Keyed { _map: map, key },
            start: start as u64,
            len,
        })
    }

    fn twice(len: usize) -> io::Result<CodeRegion> {
        // SAFETY: a plain system call with a constant string; the result is checked.
        let fd = unsafe { libc::memfd_create(NAME.as_ptr(), libc::MFD_CLOEXEC) };
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
        let start = executable.as_ptr() as u64;
        let memory = Memory::Twice {
            writable: Arc::new(writable),
            executable: Arc::new(executable),
        };
        Ok(CodeRegion { memory, start, len })
    }

    /// Bytes reserved.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Host address at which the byte at `offset` executes.
    pub fn address(&self, offset: CodeOffset) -> u64 {
        self.start + u64::from(offset.0)
    }

    /// The offset of an executable host address, if it is in the region.
    pub fn offset_of(&self, address: u64) -> Option<CodeOffset> {
        let offset = address.wrapping_sub(self.start);
        (offset < self.len as u64).then_some(CodeOffset(offset as u32))
    }

    /// Writes code.
    ///
    /// # Panics
    ///
    /// If the range is outside the region: the allocator above never hands out such a one.
    pub fn write(&mut self, offset: CodeOffset, bytes: &[u8]) {
        let start = offset.0 as usize;
        assert!(start + bytes.len() <= self.len, "code outside its region");
        let (region, key) = match &self.memory {
            Memory::Keyed { key, .. } => (self.start as *mut u8, Some(key)),
            Memory::Twice { writable, .. } => (writable.as_mut_ptr(), None),
        };
        let copy = || {
            // SAFETY: the range was checked, the region is mapped writable there (while its key is
            // open, if it has one), and `bytes` is not in it.
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), region.add(start), bytes.len());
            }
        };
        match key {
            Some(key) => key.opened(copy),
            None => copy(),
        }
    }

    /// Has the host provide a piece of the region before it is written, which changes nothing in it. A page of a memory
    /// file costs two faults, one for each mapping; what is on large pages has few.
    pub fn provide(&self, offset: CodeOffset, len: usize, provider: &Provider) {
        let Memory::Twice {
            writable,
            executable,
        } = &self.memory
        else {
            return;
        };
        let (writable, executable) = (Arc::clone(writable), Arc::clone(executable));
        let start = offset.0 as usize;
        provider.ask(move || {
            // Refusing costs speed only.
            let _ = writable.advise_range(Advice::PopulateWrite, start, len);
            let _ = executable.advise_range(Advice::PopulateRead, start, len);
        });
    }

    /// Lets this thread read the region, as whoever runs its code has to: records lie between the code.
    pub fn allow_reads(&self) {
        if let Memory::Keyed { key, .. } = &self.memory {
            key.allow_reads();
        }
    }

    /// Reads code back, in place of what `into` holds.
    ///
    /// # Panics
    ///
    /// If the range is outside the region.
    pub fn read(&self, offset: CodeOffset, len: usize, into: &mut Vec<u8>) {
        let start = offset.0 as usize;
        assert!(start + len <= self.len, "code outside its region");
        self.allow_reads();
        into.clear();
        // SAFETY: the range was checked, and is mapped for as long as `self` is; this thread may
        // read it, and code is written by whoever has `self` alone.
        into.extend_from_slice(unsafe {
            std::slice::from_raw_parts((self.start as usize + start) as *const u8, len)
        });
    }

    /// Points a 32-bit relative jump or call at `target`. `site` is where its displacement is.
    pub fn patch_relative(&mut self, site: CodeOffset, target: CodeOffset) {
        let displacement = target.0.wrapping_sub(site.0 + 4);
        self.write(site, &displacement.to_le_bytes());
    }
}

/// A key's two bits in PKRU, and PKEY_DISABLE_ACCESS and _WRITE of <linux/mman.h>.
const ACCESS_DISABLE: u32 = 1;
const WRITE_DISABLE: u32 = 2;

/// The region's name in lists of mappings.
const NAME: &std::ffi::CStr = c"kmemvisor-code";

/// A memory protection key.
#[derive(Clone, Copy)]
struct Key(u32);

impl Key {
    /// The one key of all regions of this process (there are 15, and regions may be more).
    fn of_process() -> Option<Key> {
        static KEY: OnceLock<Option<Key>> = OnceLock::new();
        *KEY.get_or_init(|| {
            // SAFETY: a system call that changes nothing but this thread's rights by a new key.
            let key = unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, WRITE_DISABLE) };
            u32::try_from(key).ok().map(Key)
        })
    }

    /// Puts memory under this key: readable, executable, and writable for who opens it.
    fn protect(self, start: usize, len: usize) -> io::Result<()> {
        let rights = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        // SAFETY: the caller has just mapped the range, and nobody refers to it yet. Naming it may fail.
        unsafe {
            if libc::syscall(libc::SYS_pkey_mprotect, start, len, rights, self.0) != 0 {
                return Err(io::Error::last_os_error());
            }
            let anonymous = libc::PR_SET_VMA_ANON_NAME;
            libc::prctl(libc::PR_SET_VMA, anonymous, start, len, NAME.as_ptr());
        }
        Ok(())
    }

    /// Does something with this thread's right to write by the key.
    fn opened(self, write: impl FnOnce()) {
        let before = rights();
        set_rights(before & !((ACCESS_DISABLE | WRITE_DISABLE) << (2 * self.0)));
        write();
        set_rights(before);
    }

    /// Gives this thread the right to read by the key: threads begin without.
    fn allow_reads(self) {
        let before = rights();
        let disabled = ACCESS_DISABLE << (2 * self.0);
        if before & disabled != 0 {
            set_rights(before & !disabled);
        }
    }
}

/// PKRU of this thread. To be called where the kernel has handed out a key.
fn rights() -> u32 {
    let rights;
    // SAFETY: a process that was given a key may execute RDPKRU.
    unsafe {
        asm!("rdpkru", in("ecx") 0, out("eax") rights, out("edx") _, options(nomem, nostack));
    }
    rights
}

/// Sets PKRU: what `rights` said but for our own key. Nothing may be moved across it, so it counts as an
/// access to memory.
fn set_rights(rights: u32) {
    // SAFETY: see `rights`; only rights by our own key differ.
    unsafe { asm!("wrpkru", in("eax") rights, in("ecx") 0, in("edx") 0, options(nostack)) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::heap::tests::{is_done, resident};
    use std::fs::File;
    use std::os::fd::AsRawFd;

    #[test]
    fn code_is_written_by_its_door_alone() {
        for large in [false, true] {
            let mut region = CodeRegion::new(1 << 20, large).unwrap();
            let start = region.address(CodeOffset(0));
            // mov eax, 7; ret. Another thread than the one that made the region writes it.
            let code = [0xb8, 7, 0, 0, 0, 0xc3];
            let mut region = std::thread::spawn(move || {
                region.write(CodeOffset(0), &code);
                region
            })
            .join()
            .unwrap();
            // SAFETY: what is there is a function of this type.
            let function: extern "C" fn() -> u32 = unsafe { std::mem::transmute(start) };
            assert_eq!(function(), 7);
            region.write(CodeOffset(1), &[9]);
            assert_eq!(function(), 9);
            let zero = File::open("/dev/zero").unwrap();
            // SAFETY: the system call looks at this thread's rights, and fails.
            let read = unsafe { libc::read(zero.as_raw_fd(), start as *mut libc::c_void, 6) };
            let error = io::Error::last_os_error();
            assert_eq!((read, error.raw_os_error()), (-1, Some(libc::EFAULT)));
            assert_eq!(function(), 9);
            assert_eq!(region.offset_of(start + 5), Some(CodeOffset(5)));
            assert_eq!(region.offset_of(start + region.len() as u64), None);
        }
    }

    #[test]
    fn what_is_provided_keeps_its_bytes() {
        let len = 1 << 20;
        let mut region = CodeRegion::new(len, false).unwrap();
        let resident = |region: &CodeRegion, at| resident(region.address(CodeOffset(at)));
        region.write(CodeOffset(0x1_2345), &[1, 2, 3]);
        assert!(resident(&region, 0x1_2000) && !resident(&region, 0x8_0000));
        let provider = Provider::default();
        region.provide(CodeOffset(0), len, &provider);
        let possible = is_done(&provider);
        assert_eq!(resident(&region, 0x8_0000), possible);
        let mut bytes = Vec::new();
        region.read(CodeOffset(0x1_2344), 5, &mut bytes);
        assert_eq!(bytes, [0, 1, 2, 3, 0]);
    }
}
