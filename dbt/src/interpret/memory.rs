//! Memory as instructions see it: linear addresses, page faults, TLBs, MMIO.

use mmu::{GuestPhys, Linear};

use super::Context;
use crate::guest::Exception;

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

impl Context<'_> {
    /// Loads 1, 2, 4 or 8 bytes at the current privilege.
    pub fn load(&mut self, _address: Linear, _size: usize) -> Result<u64, Exception> {
        todo!()
    }

    /// Loads as [`Context::load`], but with the permissions and faults of a store: the first
    /// half of a read-modify-write.
    pub fn load_for_update(&mut self, _address: Linear, _size: usize) -> Result<u64, Exception> {
        todo!()
    }

    /// Stores the low `size` (1, 2, 4 or 8) bytes of `value` at the current privilege.
    pub fn store(&mut self, _address: Linear, _size: usize, _value: u64) -> Result<(), Exception> {
        todo!()
    }

    /// Loads any number of bytes; faults before anything else if any of them may not be read.
    pub fn load_bytes(&mut self, _address: Linear, _into: &mut [u8]) -> Result<(), Exception> {
        todo!()
    }

    /// Stores any number of bytes, all or none.
    pub fn store_bytes(&mut self, _address: Linear, _bytes: &[u8]) -> Result<(), Exception> {
        todo!()
    }

    /// Checks that `len` bytes could be stored, without storing (all checks before any effect).
    pub fn authorise_write(&mut self, _address: Linear, _len: usize) -> Result<(), Exception> {
        todo!()
    }

    /// Loads 1 to 8 bytes as the processor itself does (descriptor tables, TSS, IDT): supervisor
    /// privilege whatever the CPL.
    pub fn load_system(&mut self, _address: Linear, _size: usize) -> Result<u64, Exception> {
        todo!()
    }

    /// Stores as the processor itself does: descriptor bits, TSS, frames on an inner stack.
    pub fn store_system(
        &mut self,
        _address: Linear,
        _size: usize,
        _value: u64,
    ) -> Result<(), Exception> {
        todo!()
    }

    /// Translates one address at the current privilege, setting A (and D for a write).
    pub fn translate(&mut self, _address: Linear, _access: Access) -> Result<GuestPhys, Exception> {
        todo!()
    }

    /// Forgets every cached translation (`global` ones too if asked).
    pub fn flush_tlb(&mut self, _global: bool) {
        todo!()
    }

    /// Forgets the cached translations of one page (INVLPG).
    pub fn flush_page(&mut self, _address: Linear) {
        todo!()
    }
}
