//! Page walks (SDM volume 3, chapter 4): 32-bit, PAE, 4-level. Tables are read through the
//! load door, so a corrupted table is recovered, and accessed and dirty bits are written
//! through the store door, so they reach every copy.

use crate::address::{GuestPhys, Linear};
use crate::physical::{AccessError, PhysMem};

/// The registers that govern paging.
#[derive(Clone, Copy, Debug, Default)]
pub struct PagingRegisters {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// The page-directory-pointer-table entries that PAE paging keeps in the processor.
    pub pdpte: [u64; 4],
    /// PKRU, the rights of user pages by protection key.
    pub pkru: u32,
    /// The gate of address line 20 is closed: odd megabytes show the even ones.
    pub a20_closed: bool,
}

const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_PGE: u64 = 1 << 7;
const CR4_SMEP: u64 = 1 << 20;
const CR4_PKE: u64 = 1 << 22;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
/// Physical addresses are 40 bits wide, as CPUID leaf 0x80000008 says.
pub const PHYSICAL_BITS: u32 = 40;
const ADDRESS: u64 = ((1 << PHYSICAL_BITS) - 1) & !0xfff;

/// What a walk is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Purpose {
    /// A store, or a load that a store follows.
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// At CPL 3 (implicit accesses of the processor are never user accesses).
    pub user: bool,
    /// A supervisor data access that SMAP keeps from user pages: CR4.SMAP, and EFLAGS.AC clear
    /// or the access is implicit.
    pub user_pages_closed: bool,
    /// Before the guest's code has asked: the tables stay as they are, and where an accessed bit would have
    /// to be set there is no translation.
    pub ahead: bool,
}

/// A page fault (SDM volume 3, 4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// P, W/R, U/S, RSVD, I/D, PK at their positions.
    pub error_code: u32,
    /// The linear address that faulted.
    pub address: Linear,
}

/// Why a walk gave no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// The guest's tables do not allow the access.
    Fault(PageFault),
    /// A table entry is in a line of which every copy is lost.
    Lost(GuestPhys),
}

/// A successful walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The byte that the linear address names.
    pub physical: GuestPhys,
    /// Log2 of the page size: 12, 21, 22 or 30.
    pub page_shift: u32,
    /// Stores at this privilege are allowed, and D is set already.
    pub write_ready: bool,
    /// A user page.
    pub user: bool,
    /// Fetches are allowed at this privilege.
    pub executable: bool,
    /// Survives CR3 writes.
    pub global: bool,
    /// The protection key by which PKRU governs the page; none for supervisor pages, and
    /// where protection keys are off.
    pub key: Option<u8>,
}

/// One level of a walk: the entry's address and value.
#[derive(Clone, Copy)]
struct Entry {
    at: GuestPhys,
    value: u64,
}

impl PagingRegisters {
    /// Whether CR0.PG is set.
    pub fn enabled(&self) -> bool {
        self.cr0 & CR0_PG != 0
    }

    /// Translates a linear address, setting accessed and (for a write) dirty bits. A closed A20
    /// gate masks the addresses of tables too.
    pub fn walk(
        &self,
        mem: &mut PhysMem,
        address: Linear,
        purpose: Purpose,
    ) -> Result<Mapping, WalkError> {
        let mut mapping = self.walk_open(mem, address, purpose)?;
        mapping.physical = self.gated(mapping.physical);
        Ok(mapping)
    }

    /// What the A20 gate makes of an address on the bus, be it that of a table.
    pub fn gated(&self, address: GuestPhys) -> GuestPhys {
        if self.a20_closed {
            GuestPhys(address.0 & !(1 << 20))
        } else {
            address
        }
    }

    fn walk_open(
        &self,
        mem: &mut PhysMem,
        address: Linear,
        purpose: Purpose,
    ) -> Result<Mapping, WalkError> {
        if !self.enabled() {
            return Ok(Mapping {
                physical: GuestPhys(address.0 & 0xffff_ffff),
                page_shift: 12,
                write_ready: true,
                user: true,
                executable: true,
                global: false,
                key: None,
            });
        }
        if self.cr4 & CR4_PAE == 0 {
            self.walk_32(mem, address, purpose)
        } else {
            self.walk_64(mem, address, purpose)
        }
    }

    fn fault(&self, address: Linear, purpose: Purpose, present: bool, extra: u32) -> WalkError {
        let nx_reported =
            self.efer & EFER_NXE != 0 && self.cr4 & CR4_PAE != 0 || self.cr4 & CR4_SMEP != 0;
        let mut code = u32::from(present) | extra;
        code |= u32::from(purpose.write) << 1;
        code |= u32::from(purpose.user) << 2;
        code |= u32::from(purpose.fetch && nx_reported) << 4;
        WalkError::Fault(PageFault {
            error_code: code,
            address,
        })
    }

    fn read(mem: &mut PhysMem, at: GuestPhys, size: usize) -> Result<u64, WalkError> {
        match mem.load_uint(at, size) {
            Ok(value) => Ok(value),
            Err(AccessError::Lost(at)) => Err(WalkError::Lost(at)),
            // Tables outside memory read as the bus does: all ones, which trips reserved bits.
            Err(AccessError::NotRam(_)) => Ok(u64::MAX >> (64 - 8 * size)),
        }
    }

    fn walk_64(
        &self,
        mem: &mut PhysMem,
        address: Linear,
        purpose: Purpose,
    ) -> Result<Mapping, WalkError> {
        const RESERVED: u32 = 1 << 3;
        let long = self.efer & EFER_LMA != 0;
        let nx_enabled = self.efer & EFER_NXE != 0;
        let mut reserved = ((1u64 << 52) - 1) & !((1 << PHYSICAL_BITS) - 1);
        if !long {
            reserved |= ((1u64 << 63) - 1) & !((1 << 52) - 1);
        }
        if !nx_enabled {
            reserved |= NO_EXECUTE;
        }
        let mut entries = [Entry {
            at: GuestPhys(0),
            value: 0,
        }; 4];
        let mut depth = 0;
        let (mut table, mut shift) = if long {
            (self.cr3 & ADDRESS, 39)
        } else {
            let pdpte = self.pdpte[(address.0 >> 30 & 3) as usize];
            if pdpte & PRESENT == 0 {
                return Err(self.fault(address, purpose, false, 0));
            }
            (pdpte & ADDRESS, 21)
        };
        let (mut writable, mut user, mut executable) = (true, true, true);
        loop {
            let at = self.gated(GuestPhys(table + (address.0 >> shift & 511) * 8));
            let value = Self::read(mem, at, 8)?;
            if value & PRESENT == 0 {
                return Err(self.fault(address, purpose, false, 0));
            }
            let leaf = shift == 12 || (value & LARGE != 0 && shift <= 30);
            let mut bad = value & reserved;
            if shift == 39 {
                bad |= value & LARGE;
            } else if leaf && shift > 12 {
                bad |= value & ADDRESS & ((1 << shift) - 1) & !(1 << 12);
            }
            if bad != 0 {
                return Err(self.fault(address, purpose, true, RESERVED));
            }
            writable &= value & WRITABLE != 0;
            user &= value & USER != 0;
            executable &= value & NO_EXECUTE == 0;
            entries[depth] = Entry { at, value };
            depth += 1;
            if leaf {
                let base = value & ADDRESS & !((1 << shift) - 1);
                let physical = GuestPhys(base | (address.0 & ((1 << shift) - 1)));
                let leaf = Leaf {
                    physical,
                    page_shift: shift,
                    writable,
                    user,
                    executable,
                    key: (value >> 59 & 15) as u32,
                };
                return self.finish(mem, address, purpose, leaf, &entries[..depth], 8);
            }
            table = value & ADDRESS;
            shift -= 9;
        }
    }

    fn walk_32(
        &self,
        mem: &mut PhysMem,
        address: Linear,
        purpose: Purpose,
    ) -> Result<Mapping, WalkError> {
        const RESERVED: u32 = 1 << 3;
        let directory = GuestPhys((self.cr3 & 0xffff_f000) + (address.0 >> 22 & 1023) * 4);
        let directory = self.gated(directory);
        let pde = Entry {
            at: directory,
            value: Self::read(mem, directory, 4)?,
        };
        if pde.value & PRESENT == 0 {
            return Err(self.fault(address, purpose, false, 0));
        }
        if pde.value & LARGE != 0 && self.cr4 & CR4_PSE != 0 {
            // PSE-36: bits 13 to 20 are bits 32 to 39 of the address; bit 21 is reserved.
            if pde.value & (1 << 21) != 0 {
                return Err(self.fault(address, purpose, true, RESERVED));
            }
            let base = (pde.value & 0xffc0_0000) | (pde.value >> 13 & 0xff) << 32;
            let leaf = Leaf {
                physical: GuestPhys(base | (address.0 & 0x3f_ffff)),
                page_shift: 22,
                writable: pde.value & WRITABLE != 0,
                user: pde.value & USER != 0,
                executable: true,
                key: 0,
            };
            return self.finish(mem, address, purpose, leaf, &[pde], 4);
        }
        let table = GuestPhys((pde.value & 0xffff_f000) + (address.0 >> 12 & 1023) * 4);
        let table = self.gated(table);
        let pte = Entry {
            at: table,
            value: Self::read(mem, table, 4)?,
        };
        if pte.value & PRESENT == 0 {
            return Err(self.fault(address, purpose, false, 0));
        }
        let both = pde.value & pte.value;
        let leaf = Leaf {
            physical: GuestPhys((pte.value & 0xffff_f000) | (address.0 & 0xfff)),
            page_shift: 12,
            writable: both & WRITABLE != 0,
            user: both & USER != 0,
            executable: true,
            key: 0,
        };
        self.finish(mem, address, purpose, leaf, &[pde, pte], 4)
    }

    /// Checks the rights of a leaf and sets accessed and dirty bits, in that order.
    fn finish(
        &self,
        mem: &mut PhysMem,
        address: Linear,
        purpose: Purpose,
        leaf: Leaf,
        entries: &[Entry],
        entry_size: usize,
    ) -> Result<Mapping, WalkError> {
        const PROTECTION_KEY: u32 = 1 << 5;
        let write_protect = self.cr0 & CR0_WP != 0;
        let may_write = leaf.writable || (!purpose.user && !write_protect);
        let may_execute = leaf.executable
            && if purpose.user {
                leaf.user
            } else {
                !(leaf.user && self.cr4 & CR4_SMEP != 0)
            };
        let mut allowed = if purpose.user {
            leaf.user
        } else {
            !(leaf.user && purpose.user_pages_closed && !purpose.fetch)
        };
        allowed &= !purpose.write || may_write;
        allowed &= !purpose.fetch || may_execute;
        let keyed = self.cr4 & CR4_PKE != 0 && self.efer & EFER_LMA != 0 && leaf.user;
        let mut key_allows_writes = true;
        let mut refused_by_key = 0;
        if keyed && !purpose.fetch {
            // Supervisor accesses to user pages too, writes among them only with CR0.WP.
            let rights = self.pkru >> (2 * leaf.key) & 3;
            let applies_to_writes = purpose.user || write_protect;
            key_allows_writes = rights & 2 == 0 || !applies_to_writes;
            if rights & 1 != 0 || (purpose.write && !key_allows_writes) {
                // Reported whether or not another right is missing besides.
                refused_by_key = PROTECTION_KEY;
            }
        }
        if !allowed || refused_by_key != 0 {
            return Err(self.fault(address, purpose, true, refused_by_key));
        }
        for (index, entry) in entries.iter().enumerate() {
            let is_leaf = index + 1 == entries.len();
            let mut wanted = entry.value | ACCESSED;
            if is_leaf && purpose.write {
                wanted |= DIRTY;
            }
            if wanted != entry.value {
                if purpose.ahead {
                    return Err(self.fault(address, purpose, true, 0));
                }
                match mem.store_uint(entry.at, entry_size, wanted) {
                    Ok(()) | Err(AccessError::NotRam(_)) => {}
                    Err(AccessError::Lost(at)) => return Err(WalkError::Lost(at)),
                }
            }
        }
        let last = entries[entries.len() - 1].value;
        Ok(Mapping {
            physical: leaf.physical,
            page_shift: leaf.page_shift,
            write_ready: may_write && key_allows_writes && (purpose.write || last & DIRTY != 0),
            user: leaf.user,
            executable: may_execute,
            global: last & GLOBAL != 0 && self.cr4 & CR4_PGE != 0,
            key: keyed.then_some(leaf.key as u8),
        })
    }
}

/// The end of a walk, before the rights are checked.
struct Leaf {
    physical: GuestPhys,
    page_shift: u32,
    writable: bool,
    user: bool,
    executable: bool,
    key: u32,
}
