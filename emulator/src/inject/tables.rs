//! The guest's page tables, read as an observer reads them: from any good copy, without
//! recovery and without accessed bits.

use dbt::guest::Control;
use dbt::guest::flags::{CR0_PG, CR4_PAE, CR4_PSE, EFER_LMA};
use fault_injector::Random;
use mmu::{GuestPhys, LINE_SIZE, PAGE_SIZE, PHYSICAL_BITS, PhysMem};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = ((1 << PHYSICAL_BITS) - 1) & !(PAGE_SIZE - 1);
/// Tables that a search for a mapping reads at the most.
const BUDGET: u32 = 64;

/// The bytes of a page, each line from a copy that is not known to be bad.
pub fn read_page(mem: &PhysMem, page: GuestPhys) -> Option<[u8; PAGE_SIZE as usize]> {
    let mut bytes = [0; PAGE_SIZE as usize];
    if !mem.is_ram(page) || !mem.copy_bytes(page, 0, &mut bytes) {
        return None;
    }
    let mut bad = mem.poisoned_lines(page, 0);
    let mut other = [0; PAGE_SIZE as usize];
    for copy in 1..mem.copies() {
        if bad == 0 {
            break;
        }
        let good_here = bad & !mem.poisoned_lines(page, copy);
        mem.copy_bytes(page, copy, &mut other);
        for line in (0..64).filter(|line| good_here & (1 << line) != 0) {
            let range = line * LINE_SIZE..(line + 1) * LINE_SIZE;
            bytes[range.clone()].copy_from_slice(&other[range]);
        }
        bad &= !good_here;
    }
    Some(bytes)
}

/// A little-endian number of 4 or 8 bytes that does not cross a page.
pub fn read_number(mem: &PhysMem, at: GuestPhys, size: usize) -> Option<u64> {
    let page = read_page(mem, at.page())?;
    let bytes = page.get(at.page_offset()..at.page_offset() + size)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |number, &byte| number << 8 | u64::from(byte)),
    )
}

/// A mapping, and the way to it.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    /// What the linear address is mapped to.
    pub physical: GuestPhys,
    /// Log2 of the page size.
    pub page_shift: u32,
    /// Open to user accesses.
    pub user: bool,
    /// Open to stores.
    pub writable: bool,
    /// Open to fetches.
    pub executable: bool,
    /// The tables gone through, from the top, each with the line of the entry used.
    pub path: [(GuestPhys, u32); 4],
    /// How many of them.
    pub depth: usize,
}

/// A place in the tables while going down.
#[derive(Clone, Copy)]
struct Node {
    table: GuestPhys,
    level: usize,
    /// Linear address of the table's first byte mapped.
    base: u64,
    rights: u64,
    leaf: Leaf,
}

/// The tables of the current address space.
pub struct Tables {
    roots: Vec<(GuestPhys, u64)>,
    /// Log2 of the bytes an entry of each level maps, from the top.
    shifts: &'static [u32],
    entry_size: usize,
    large_pages: bool,
    sign_extend: bool,
}

impl Tables {
    /// The tables that the control registers name; `None` while paging is off.
    pub fn of(control: &Control) -> Option<Tables> {
        if control.cr0 & CR0_PG == 0 {
            return None;
        }
        let long = control.efer & EFER_LMA != 0;
        Some(if long {
            Tables {
                roots: vec![(GuestPhys(control.cr3 & ADDRESS), 0)],
                shifts: &[39, 30, 21, 12],
                entry_size: 8,
                large_pages: true,
                sign_extend: true,
            }
        } else if control.cr4 & CR4_PAE != 0 {
            let roots = control
                .pdpte
                .iter()
                .zip(0u64..)
                .filter_map(|(&entry, index)| {
                    (entry & PRESENT != 0).then_some((GuestPhys(entry & ADDRESS), index << 30))
                });
            Tables {
                roots: roots.collect(),
                shifts: &[21, 12],
                entry_size: 8,
                large_pages: true,
                sign_extend: false,
            }
        } else {
            Tables {
                roots: vec![(GuestPhys(control.cr3 & 0xffff_f000), 0)],
                shifts: &[22, 12],
                entry_size: 4,
                large_pages: control.cr4 & CR4_PSE != 0,
                sign_extend: false,
            }
        })
    }

    fn start(&self, root: (GuestPhys, u64)) -> Node {
        Node {
            table: root.0,
            level: 0,
            base: root.1,
            rights: WRITABLE | USER,
            leaf: Leaf {
                physical: GuestPhys(0),
                page_shift: 0,
                user: false,
                writable: false,
                executable: false,
                path: [(GuestPhys(0), 0); 4],
                depth: 0,
            },
        }
    }

    fn entry(&self, table: &[u8; PAGE_SIZE as usize], index: usize) -> u64 {
        let at = index * self.entry_size;
        let bytes = &table[at..at + self.entry_size];
        bytes
            .iter()
            .rev()
            .fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    fn linear(&self, node: &Node, index: usize) -> u64 {
        let address = node.base | (index as u64) << self.shifts[node.level];
        if self.sign_extend && address >> 47 & 1 != 0 {
            address | 0xffff << 48
        } else {
            address
        }
    }

    /// One step down: the next table, or a mapping.
    fn step(&self, node: &Node, index: usize, value: u64) -> Result<Node, Leaf> {
        let shift = self.shifts[node.level];
        let mut leaf = node.leaf;
        let line = (index * self.entry_size / LINE_SIZE) as u32;
        leaf.path[leaf.depth] = (node.table, line);
        leaf.depth += 1;
        // W and U must be set at every level, XD at none.
        let rights = node.rights & value & (WRITABLE | USER) | (node.rights | value) & NO_EXECUTE;
        let last = node.level + 1 == self.shifts.len();
        if last || (value & LARGE != 0 && shift <= 30 && self.large_pages) {
            let mut address = value & ADDRESS;
            if self.entry_size == 4 {
                address = value & 0xffff_f000;
                if !last {
                    address |= (value >> 13 & 0xff) << 32;
                }
            }
            leaf.physical = GuestPhys(address & !((1 << shift) - 1));
            leaf.page_shift = shift;
            leaf.user = rights & USER != 0;
            leaf.writable = rights & WRITABLE != 0;
            leaf.executable = rights & NO_EXECUTE == 0;
            return Err(leaf);
        }
        Ok(Node {
            table: GuestPhys(value & ADDRESS),
            level: node.level + 1,
            base: self.linear(node, index),
            rights,
            leaf,
        })
    }

    /// The mapping of a linear address.
    pub fn look(&self, mem: &PhysMem, linear: u64) -> Option<Leaf> {
        let indexes = PAGE_SIZE / self.entry_size as u64;
        let top = self.shifts[0];
        let reach = indexes << top;
        let root = self
            .roots
            .iter()
            .find(|root| self.sign_extend || (linear >= root.1 && linear - root.1 < reach))?;
        let mut node = self.start(*root);
        loop {
            let shift = self.shifts[node.level];
            let index = (linear >> shift & (indexes - 1)) as usize;
            let value = self.entry(&read_page(mem, node.table)?, index);
            if value & PRESENT == 0 {
                return None;
            }
            match self.step(&node, index, value) {
                Ok(next) => node = next,
                Err(mut leaf) => {
                    let within = linear & ((1 << leaf.page_shift) - 1);
                    leaf.physical = leaf.physical.add(within);
                    return Some(leaf);
                }
            }
        }
    }

    /// The entries of a table that lead into a range of linear addresses.
    fn choices(
        &self,
        mem: &PhysMem,
        node: &Node,
        (low, high): (u64, u64),
        user: bool,
    ) -> Vec<(usize, u64)> {
        let Some(table) = read_page(mem, node.table) else {
            return Vec::new();
        };
        let span = (1u64 << self.shifts[node.level]) - 1;
        (0..PAGE_SIZE as usize / self.entry_size)
            .map(|index| (index, self.entry(&table, index)))
            .filter(|&(index, value)| {
                let first = self.linear(node, index);
                let reachable = value & PRESENT != 0 && (!user || value & USER != 0);
                reachable && first <= high && first.saturating_add(span) >= low
            })
            .collect()
    }

    /// A mapping in a range of linear addresses, by choosing a present entry at each level; all
    /// of them open to the user, if asked for. `None` where a choice leads nowhere.
    pub fn random_leaf(
        &self,
        mem: &PhysMem,
        random: &mut Random,
        range: (u64, u64),
        user: bool,
    ) -> Option<Leaf> {
        if self.roots.is_empty() {
            return None;
        }
        let root = self.roots[random.below(self.roots.len() as u64) as usize];
        let mut node = self.start(root);
        loop {
            let choices = self.choices(mem, &node, range, user);
            if choices.is_empty() {
                return None;
            }
            let (index, value) = choices[random.below(choices.len() as u64) as usize];
            match self.step(&node, index, value) {
                Ok(next) => node = next,
                Err(leaf) => return Some(leaf),
            }
        }
    }

    /// The highest page that a user program may write.
    pub fn highest_user_writable(&self, mem: &PhysMem) -> Option<Leaf> {
        let mut budget = BUDGET;
        self.roots
            .iter()
            .rev()
            .find_map(|&root| self.highest(mem, &self.start(root), &mut budget))
    }

    fn highest(&self, mem: &PhysMem, node: &Node, budget: &mut u32) -> Option<Leaf> {
        *budget = budget.checked_sub(1)?;
        let range = (
            0,
            if self.sign_extend {
                (1 << 47) - 1
            } else {
                u64::MAX
            },
        );
        let choices = self.choices(mem, node, range, true);
        choices
            .into_iter()
            .rev()
            .find_map(|(index, value)| match self.step(node, index, value) {
                Ok(next) => self.highest(mem, &next, budget),
                Err(leaf) => (leaf.user && leaf.writable).then_some(leaf),
            })
    }
}
