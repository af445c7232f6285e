//! Memory as instructions see it: linear addresses, page faults, TLBs, MMIO.

use mmu::{AccessError, GuestPhys, Linear, PAGE_SIZE, PagingRegisters, Purpose, View, WalkError};

use super::Context;
use super::system::debug::{self, Watch};
use crate::guest::{CpuState, Exception, Mode, flags};

/// What an access wants to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Load.
    Read,
    /// Store, or a load that the instruction follows with a store.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// The paging registers of a processor, as walks take them.
pub(crate) fn paging(cpu: &CpuState) -> PagingRegisters {
    PagingRegisters {
        cr0: cpu.control.cr0,
        cr3: cpu.control.cr3,
        cr4: cpu.control.cr4,
        efer: cpu.control.efer,
        pdpte: cpu.control.pdpte,
        pkru: cpu.control.pkru,
        a20_closed: cpu.a20_closed != 0,
    }
}

/// The view that the current privilege gives explicit data accesses.
pub(crate) fn view(mode: Mode) -> View {
    if mode.has(Mode::USER) {
        View::User
    } else if mode.has(Mode::USER_PAGES_OPEN) {
        View::SupervisorOpen
    } else {
        View::Supervisor
    }
}

impl Context<'_> {
    fn current_view(&self) -> View {
        view(self.cpu.mode)
    }

    fn system_view(&self) -> View {
        if self.cpu.control.cr4 & flags::CR4_SMAP == 0 {
            View::SupervisorOpen
        } else {
            View::Supervisor
        }
    }

    /// Compares an access with the data breakpoints, while any is enabled. An instruction that
    /// then faults has its matches taken back.
    #[inline]
    fn watch(&mut self, address: Linear, size: usize, watch: Watch) {
        if self.cpu.mode.has(Mode::STEPPED) {
            debug::data_access(self, address, size as u64, watch);
        }
    }

    /// Loads 1, 2, 4 or 8 bytes at the current privilege.
    #[inline]
    pub fn load(&mut self, address: Linear, size: usize) -> Result<u64, Exception> {
        let view = self.current_view();
        self.watch(address, size, Watch::Read);
        self.load_in(view, address, size)
    }

    #[inline]
    fn load_in(&mut self, view: View, address: Linear, size: usize) -> Result<u64, Exception> {
        match self.tlb.data[view as usize].read(address, size) {
            Some(value) => Ok(value),
            None => self.load_slow(address, size, view, Access::Read),
        }
    }

    /// Loads as [`Context::load`], but with the permissions and faults of a store: the first
    /// half of a read-modify-write.
    #[inline]
    pub fn load_for_update(&mut self, address: Linear, size: usize) -> Result<u64, Exception> {
        let view = self.current_view();
        let tlb = &self.tlb.data[view as usize];
        if address.0 ^ tlb.entry(address).write_tag <= PAGE_SIZE - size as u64
            && let Some(value) = tlb.read(address, size)
        {
            return Ok(value);
        }
        self.load_slow(address, size, view, Access::Write)
    }

    /// Stores the low `size` (1, 2, 4 or 8) bytes of `value` at the current privilege.
    #[inline]
    pub fn store(&mut self, address: Linear, size: usize, value: u64) -> Result<(), Exception> {
        let view = self.current_view();
        self.watch(address, size, Watch::Write);
        self.store_in(view, address, size, value)
    }

    #[inline]
    fn store_in(
        &mut self,
        view: View,
        address: Linear,
        size: usize,
        value: u64,
    ) -> Result<(), Exception> {
        if self.tlb.data[view as usize].write(self.mem, address, size, value) {
            return Ok(());
        }
        self.store_slow(address, &value.to_le_bytes()[..size], view)
    }

    /// Loads any number of bytes; faults before anything else if any of them may not be read.
    pub fn load_bytes(&mut self, address: Linear, into: &mut [u8]) -> Result<(), Exception> {
        let view = self.current_view();
        self.watch(address, into.len(), Watch::Read);
        self.load_pieces(address, into, view, Access::Read)
    }

    /// Loads as [`Context::load_bytes`], of which the instruction uses only what it says with
    /// [`Context::watch_load`].
    pub fn load_area(&mut self, address: Linear, into: &mut [u8]) -> Result<(), Exception> {
        let view = self.current_view();
        self.load_pieces(address, into, view, Access::Read)
    }

    /// Data breakpoints see a load that has been made otherwise.
    pub fn watch_load(&mut self, address: Linear, size: usize) {
        self.watch(address, size, Watch::Read);
    }

    /// Stores any number of bytes, all or none.
    pub fn store_bytes(&mut self, address: Linear, bytes: &[u8]) -> Result<(), Exception> {
        let view = self.current_view();
        self.watch(address, bytes.len(), Watch::Write);
        self.store_slow(address, bytes, view)
    }

    /// Checks that `len` bytes could be stored, without storing (all checks before any effect).
    pub fn authorise_write(&mut self, address: Linear, len: usize) -> Result<(), Exception> {
        let view = self.current_view();
        self.authorise(address, len, Access::Write, view)
    }

    /// Loads 1, 2, 4 or 8 bytes as the processor itself does (descriptor tables, TSS, IDT): supervisor
    /// privilege whatever the CPL.
    pub fn load_system(&mut self, address: Linear, size: usize) -> Result<u64, Exception> {
        self.load_in(self.system_view(), address, size)
    }

    /// Stores 1, 2, 4 or 8 bytes as the processor itself does: descriptor bits, TSS, frames on an inner stack.
    pub fn store_system(
        &mut self,
        address: Linear,
        size: usize,
        value: u64,
    ) -> Result<(), Exception> {
        self.store_in(self.system_view(), address, size, value)
    }

    /// Checks that the processor itself could store `len` bytes, without storing.
    pub fn authorise_system_write(&mut self, address: Linear, len: usize) -> Result<(), Exception> {
        let view = self.system_view();
        self.authorise(address, len, Access::Write, view)
    }

    /// Translates one address at the current privilege, setting A (and D for a write).
    pub fn translate(&mut self, address: Linear, access: Access) -> Result<GuestPhys, Exception> {
        let view = self.current_view();
        self.resolve(address, access, view)
    }

    /// Translates the address of code at the current privilege.
    pub fn translate_fetch(&mut self, address: Linear) -> Result<GuestPhys, Exception> {
        let user = usize::from(self.cpu.mode.has(Mode::USER));
        if let Some(physical) = self.tlb.fetch[user].lookup(address) {
            return Ok(physical);
        }
        let view = self.current_view();
        self.resolve(address, Access::Fetch, view)
    }

    /// Where code is that may be executed soon, if the guest cannot tell that it was looked for.
    pub fn foresee_fetch(&mut self, address: Linear) -> Option<GuestPhys> {
        let user = usize::from(self.cpu.mode.has(Mode::USER));
        if let Some(physical) = self.tlb.fetch[user].lookup(address) {
            return Some(physical);
        }
        let purpose = Purpose {
            write: false,
            fetch: true,
            user: user != 0,
            user_pages_closed: false,
            ahead: true,
        };
        let walked = paging(self.cpu).walk(self.mem, address, purpose);
        self.settle();
        let mapping = walked.ok()?;
        self.tlb.fetch[user].fill(address, &mapping);
        Some(mapping.physical)
    }

    /// Forgets every cached translation (`global` ones too if asked).
    pub fn flush_tlb(&mut self, global: bool) {
        self.tlb.flush(global);
    }

    /// Forgets the cached translations of one page (INVLPG).
    pub fn flush_page(&mut self, address: Linear) {
        self.tlb.flush_page(address);
    }

    /// Sets PKRU, and forgets the cached translations of pages to which it gives other rights.
    pub fn set_protection_rights(&mut self, pkru: u32) {
        let changed = self.cpu.control.pkru ^ pkru;
        self.cpu.control.pkru = pkru;
        let keys = (0..16).filter(|key| changed >> (2 * key) & 3 != 0);
        self.tlb
            .forget_keys(keys.fold(0, |keys, key| keys | 1 << key));
    }

    /// Drops the translations of pages whose frames or rights have changed.
    pub fn settle(&mut self) {
        if self.mem.has_news() {
            for page in self.mem.take_stale_pages() {
                self.tlb.forget_physical(page);
            }
        }
    }

    /// Walks the tables, remembers the translation, and returns the physical address.
    fn resolve(
        &mut self,
        address: Linear,
        access: Access,
        view: View,
    ) -> Result<GuestPhys, Exception> {
        let entry = self.tlb.data[view as usize].entry(address);
        if access != Access::Fetch
            && let Some(physical) = entry.lookup(address, access == Access::Write)
        {
            return Ok(physical);
        }
        let purpose = Purpose {
            write: access == Access::Write,
            fetch: access == Access::Fetch,
            user: view == View::User,
            user_pages_closed: view == View::Supervisor,
            ahead: false,
        };
        let walked = paging(self.cpu).walk(self.mem, address, purpose);
        self.settle();
        let mapping = match walked {
            Ok(mapping) => mapping,
            Err(WalkError::Fault(fault)) => return Err(fault.into()),
            Err(WalkError::Lost(at)) => return Err(self.machine_check(at)),
        };
        if access == Access::Fetch {
            let user = usize::from(purpose.user);
            self.tlb.fetch[user].fill(address, &mapping);
        } else {
            self.tlb.data[view as usize].fill(self.mem, address, &mapping, purpose.write);
        }
        Ok(mapping.physical)
    }

    /// Checks the rights of every page of a range, without an access.
    fn authorise(
        &mut self,
        address: Linear,
        len: usize,
        access: Access,
        view: View,
    ) -> Result<(), Exception> {
        self.each_piece(address, len, |cx, at, _| {
            cx.resolve(at, access, view).map(|_| ())
        })
    }

    /// Calls `each` for every part of a range that stays within one page.
    fn each_piece(
        &mut self,
        address: Linear,
        len: usize,
        mut each: impl FnMut(&mut Self, Linear, std::ops::Range<usize>) -> Result<(), Exception>,
    ) -> Result<(), Exception> {
        let mut done = 0;
        while done < len {
            let mut at = address.0.wrapping_add(done as u64);
            if !self.cpu.long_mode() {
                at &= 0xffff_ffff;
            }
            let at = Linear(at);
            let piece = (len - done).min(PAGE_SIZE as usize - at.page_offset());
            each(self, at, done..done + piece)?;
            done += piece;
        }
        Ok(())
    }

    #[cold]
    fn load_slow(
        &mut self,
        address: Linear,
        size: usize,
        view: View,
        access: Access,
    ) -> Result<u64, Exception> {
        let mut bytes = [0; 8];
        self.load_pieces(address, &mut bytes[..size], view, access)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn load_pieces(
        &mut self,
        address: Linear,
        into: &mut [u8],
        view: View,
        access: Access,
    ) -> Result<(), Exception> {
        let len = into.len();
        if address.page_offset() + len > PAGE_SIZE as usize {
            // All rights before the first byte: devices see no half of a faulting access.
            self.authorise(address, len, access, view)?;
        }
        self.each_piece(address, len, |cx, at, range| {
            let physical = cx.resolve(at, access, view)?;
            cx.load_physical(physical, &mut into[range])
        })
    }

    #[cold]
    fn store_slow(&mut self, address: Linear, bytes: &[u8], view: View) -> Result<(), Exception> {
        if address.page_offset() + bytes.len() > PAGE_SIZE as usize {
            self.authorise(address, bytes.len(), Access::Write, view)?;
        }
        self.each_piece(address, bytes.len(), |cx, at, range| {
            let physical = cx.resolve(at, Access::Write, view)?;
            cx.store_physical(physical, &bytes[range])
        })
    }

    /// Loads from RAM or a device; the range must not cross a page.
    pub fn load_physical(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<(), Exception> {
        match self.mem.load(at, into) {
            Ok(()) => {
                self.settle();
                Ok(())
            }
            Err(AccessError::Lost(at)) => Err(self.machine_check(at)),
            Err(AccessError::NotRam(_)) => {
                let mut done = 0;
                while done < into.len() {
                    let address = at.add(done as u64);
                    let size = device_access_size(address, into.len() - done);
                    let value = self.platform.mmio_read(
                        self.mem,
                        self.cpu.instructions,
                        address,
                        size as u8,
                    );
                    into[done..done + size].copy_from_slice(&value.to_le_bytes()[..size]);
                    done += size;
                }
                Ok(())
            }
        }
    }

    /// Stores to RAM or a device; the range must not cross a page.
    pub fn store_physical(&mut self, at: GuestPhys, bytes: &[u8]) -> Result<(), Exception> {
        match self.mem.store(at, bytes) {
            Ok(()) => {
                self.settle();
                Ok(())
            }
            Err(AccessError::Lost(at)) => Err(self.machine_check(at)),
            Err(AccessError::NotRam(_)) => {
                let mut done = 0;
                while done < bytes.len() {
                    let address = at.add(done as u64);
                    let size = device_access_size(address, bytes.len() - done);
                    let mut value = [0; 8];
                    value[..size].copy_from_slice(&bytes[done..done + size]);
                    self.platform.mmio_write(
                        self.mem,
                        self.cpu.instructions,
                        address,
                        size as u8,
                        u64::from_le_bytes(value),
                    );
                    done += size;
                }
                Ok(())
            }
        }
    }

    /// An uncorrectable error that no copy can repair, reported as hardware reports a consumed
    /// data error (SDM volume 3, 16.9.3.2): bank 1, software-recoverable, action required.
    pub(crate) fn machine_check(&mut self, at: GuestPhys) -> Exception {
        const ACTION_REQUIRED_DATA_LOAD: u64 = 0xbd80_0000_0000_0134;
        const PHYSICAL_LINE: u64 = 0x86;
        let msrs = &mut self.cpu.msrs;
        let bank = &mut msrs.mc_banks[1];
        bank[1] = ACTION_REQUIRED_DATA_LOAD;
        bank[2] = at.0;
        bank[3] = PHYSICAL_LINE;
        // The delivery sets MCIP.
        msrs.mcg_status |= 0x3;
        Exception::plain(Exception::MC)
    }
}

/// Size of the next device access: naturally aligned, a power of two, at most 8.
fn device_access_size(at: GuestPhys, left: usize) -> usize {
    let aligned = 1usize << at.0.trailing_zeros().min(3);
    let mut size = aligned.min(8);
    while size > left {
        size /= 2;
    }
    size
}
