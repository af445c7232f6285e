//! The injector of a machine: a fault plan carried out while the processor is stopped.
//!
//! Pages are chosen by looking at the guest's own tables. Looking never goes through the load
//! door: it must neither recover a bad line nor set an accessed bit.

mod tables;

use std::collections::HashMap;

use dbt::guest::{CpuState, Register, SegmentIndex};
use fault_injector::{Class, Due, Ledger, Moment, Pick, Plan, PlanError, Random, Session, Target};
use mmu::{GuestPhys, LINE_SIZE, PAGE_SIZE, PhysMem};

use crate::machine::Machine;
use tables::{Leaf, Tables, read_number, read_page};

/// Where 64-bit Linux maps its own text and data; other kernels are found by rights alone.
const KERNEL_IMAGE: (u64, u64) = (0xffff_ffff_8000_0000, u64::MAX);
const LOWER_HALF: (u64, u64) = (0, 0x7fff_ffff_ffff);
const EVERYTHING: (u64, u64) = (0, u64::MAX);
/// Pages looked at before "no such page" is the answer.
const LOOKS: u32 = 24;
/// Pages of large mappings read before the search is given up.
const READS: u32 = 2048;
/// User stacks remembered, by address space.
const STACKS: usize = 256;

/// A fault plan being carried out on a machine.
pub struct Injector {
    session: Session,
    /// The stack pointer of the program last seen at CPL 3, by CR3.
    user_stacks: HashMap<u64, u64>,
}

impl Injector {
    /// Starts a plan on a machine whose pages have this many copies.
    pub fn new(plan: Plan, copies: usize) -> Result<Injector, PlanError> {
        Ok(Injector {
            session: Session::new(plan, copies)?,
            user_stacks: HashMap::new(),
        })
    }

    /// Makes the injections that are due. To be called while the processor is stopped; returns
    /// the instruction count at which it wants to be called next (`u64::MAX`: none).
    pub fn poll(&mut self, machine: &mut Machine) -> u64 {
        let now = self.settle(machine);
        let cpu = machine.vcpu.cpu();
        if cpu.cpl() == 3 {
            if self.user_stacks.len() >= STACKS {
                self.user_stacks.clear();
            }
            self.user_stacks.insert(space_of(cpu), stack_pointer(cpu));
        }
        let mut view = View {
            copies: machine.vcpu.mem.copies(),
            state: State::of(cpu, &self.user_stacks),
            mem: &mut machine.vcpu.mem,
        };
        self.session.inject_due(&mut view, now);
        let mut pc = machine.pc.borrow_mut();
        match self.session.next_due() {
            None => {
                pc.alarm = u64::MAX;
                u64::MAX
            }
            Some(Due::Instructions(at)) => at,
            Some(Due::Time(at)) => match pc.clock.instructions_at(at) {
                // To be called at once would mean the end of the run.
                Some(instructions) => instructions.max(now.instructions + 1),
                None => {
                    pc.alarm = at;
                    pc.arm(now.nanoseconds);
                    u64::MAX
                }
            },
        }
    }

    /// Notes what has become of the injections so far. To be called before a report is made.
    pub fn settle(&mut self, machine: &mut Machine) -> Moment {
        let now = Moment {
            instructions: if machine.counted() {
                machine.vcpu.instructions()
            } else {
                0
            },
            nanoseconds: machine.now(),
        };
        let events = machine.vcpu.mem.take_events();
        self.session.feed(&events, now);
        now
    }

    /// The injections and their fates.
    pub fn ledger(&self) -> &Ledger {
        self.session.ledger()
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.session.plan()
    }

    /// Turns that found no page of the wanted kind.
    pub fn skipped(&self) -> u64 {
        self.session.skipped()
    }
}

/// What the choice of pages needs to know of the processor.
struct State {
    tables: Option<Tables>,
    cpl: u8,
    /// Linear addresses.
    rip: u64,
    rsp: u64,
    user_stack: Option<u64>,
    tss: u64,
    tss_entry_size: usize,
    /// Where SYSCALL leads to.
    system_call: u64,
    descriptor_tables: [u64; 2],
}

impl State {
    fn of(cpu: &CpuState, user_stacks: &HashMap<u64, u64>) -> State {
        let code_base = if cpu.code64() {
            0
        } else {
            cpu.segment(SegmentIndex::Cs).base
        };
        State {
            tables: Tables::of(&cpu.control),
            cpl: cpu.cpl(),
            rip: code_base.wrapping_add(cpu.rip),
            rsp: stack_pointer(cpu),
            user_stack: user_stacks.get(&space_of(cpu)).copied(),
            tss: cpu.control.tr.base,
            tss_entry_size: if cpu.long_mode() { 8 } else { 4 },
            system_call: cpu.msrs.lstar,
            descriptor_tables: [cpu.control.gdtr.base, cpu.control.idtr.base],
        }
    }
}

/// What names an address space: CR3 without its PCID and cache bits.
fn space_of(cpu: &CpuState) -> u64 {
    cpu.control.cr3 & !0xfff
}

/// Linear address of the top of the stack.
fn stack_pointer(cpu: &CpuState) -> u64 {
    let base = if cpu.code64() {
        0
    } else {
        cpu.segment(SegmentIndex::Ss).base
    };
    base.wrapping_add(cpu.gpr[Register::RSP])
}

/// The machine as the plan sees it.
struct View<'a> {
    mem: &'a mut PhysMem,
    state: State,
    copies: usize,
}

impl View<'_> {
    fn tables(&self) -> Option<&Tables> {
        self.state.tables.as_ref()
    }

    /// The page behind a linear address, with the line in use.
    fn mapped(&self, linear: u64) -> Option<Pick> {
        let physical = match self.tables() {
            Some(tables) => tables.look(self.mem, linear)?.physical,
            None => GuestPhys(linear & 0xffff_ffff),
        };
        self.mem.is_ram(physical).then(|| Pick {
            page: physical.page(),
            line: Some((physical.page_offset() / LINE_SIZE) as u32),
        })
    }

    /// A page of a random mapping in a range of linear addresses.
    fn page_of(
        &self,
        random: &mut Random,
        range: (u64, u64),
        user: bool,
        wanted: impl Fn(&Leaf) -> bool,
    ) -> Option<Pick> {
        let tables = self.tables()?;
        let mut reads = READS;
        for _ in 0..LOOKS {
            let Some(leaf) = tables.random_leaf(self.mem, random, range, user) else {
                continue;
            };
            if leaf.user != user || !wanted(&leaf) {
                continue;
            }
            // A large page reaches over much that nobody uses: look for what is, from a random
            // place on.
            let pages = 1u64 << (leaf.page_shift - 12);
            let start = random.below(pages);
            for page in (0..pages).map(|page| (start + page) % pages) {
                let page = leaf.physical.page().add(page * PAGE_SIZE);
                if self.mem.is_ram(page) && (pages == 1 || self.in_use(page)) {
                    return Some(Pick { page, line: None });
                }
                reads -= 1;
                if reads == 0 {
                    return None;
                }
            }
        }
        None
    }

    /// Whether a page holds anything but zeros.
    fn in_use(&self, page: GuestPhys) -> bool {
        read_page(self.mem, page).is_some_and(|bytes| bytes.iter().any(|&byte| byte != 0))
    }

    fn page_table(&self, random: &mut Random) -> Option<Pick> {
        let tables = self.tables()?;
        let leaf = match random.below(4) {
            0 => tables.look(self.mem, self.state.rip),
            1 => tables.look(self.mem, self.state.rsp),
            2 => tables.random_leaf(self.mem, random, LOWER_HALF, false),
            _ => tables.random_leaf(self.mem, random, EVERYTHING, false),
        }?;
        let path = &leaf.path[..leaf.depth];
        let (page, line) = if random.one_in(2) {
            *path.last()?
        } else {
            path[random.below(path.len() as u64) as usize]
        };
        self.mem.is_ram(page).then_some(Pick {
            page,
            line: Some(line),
        })
    }

    fn kernel_text(&self, random: &mut Random) -> Option<Pick> {
        // Half of the time code that runs now or soon will; else any.
        let in_kernel = self.state.cpl == 0;
        let hot = match random.below(8) {
            0 if in_kernel => Some(self.state.rip),
            1 | 2 if in_kernel => self.return_address(random),
            0..=2 => Some(self.state.system_call),
            3 => self.interrupt_handler(random),
            _ => None,
        };
        hot.and_then(|linear| self.mapped(linear))
            .or_else(|| self.page_of(random, KERNEL_IMAGE, false, |leaf| leaf.executable))
            .or_else(|| self.page_of(random, EVERYTHING, false, |leaf| leaf.executable))
    }

    /// A word near the top of the stack that points to executable memory.
    fn return_address(&self, random: &mut Random) -> Option<u64> {
        let tables = self.tables()?;
        let stack = tables.look(self.mem, self.state.rsp)?.physical;
        let page = read_page(self.mem, stack.page())?;
        let words = page.get(stack.page_offset() & !7..)?.chunks_exact(8);
        let found: Vec<u64> = words
            .map(|word| {
                word.iter()
                    .rev()
                    .fold(0, |n, &byte| n << 8 | u64::from(byte))
            })
            .filter(|&word| word >= KERNEL_IMAGE.0)
            .filter(|&word| {
                tables
                    .look(self.mem, word)
                    .is_some_and(|leaf| leaf.executable)
            })
            .take(16)
            .collect();
        found
            .get(random.below(found.len() as u64) as usize)
            .copied()
    }

    /// Where an interrupt or exception would lead to: page faults and any other.
    fn interrupt_handler(&self, random: &mut Random) -> Option<u64> {
        const PAGE_FAULT: u64 = 14;
        let vector = if random.one_in(2) {
            PAGE_FAULT
        } else {
            random.below(256)
        };
        let gate = self.mapped_bytes(self.state.descriptor_tables[1].wrapping_add(vector * 16))?;
        let low = read_number(self.mem, gate, 8)?;
        let high = read_number(self.mem, gate.add(8), 8)?;
        let present = low >> 47 & 1 != 0;
        present.then_some(low & 0xffff | low >> 32 & 0xffff_0000 | high << 32)
    }

    fn kernel_data(&self, random: &mut Random) -> Option<Pick> {
        let data = |leaf: &Leaf| !leaf.executable;
        match random.below(8) {
            0 | 1 if self.state.cpl == 0 => self.mapped(self.state.rsp),
            0 | 1 => {
                // Where the processor would put the next exception's frame.
                let slot = self.mapped_bytes(self.state.tss.wrapping_add(4))?;
                let top = read_number(self.mem, slot, self.state.tss_entry_size)?;
                self.mapped(top.wrapping_sub(8))
            }
            2 => {
                let table = self.state.descriptor_tables[random.below(2) as usize];
                self.mapped(table)
            }
            3..=5 => self
                .page_of(random, KERNEL_IMAGE, false, data)
                .or_else(|| self.page_of(random, EVERYTHING, false, data)),
            _ => self.page_of(random, EVERYTHING, false, data),
        }
    }

    /// Physical address of a mapped linear address.
    fn mapped_bytes(&self, linear: u64) -> Option<GuestPhys> {
        match self.tables() {
            Some(tables) => Some(tables.look(self.mem, linear)?.physical),
            None => Some(GuestPhys(linear)),
        }
    }

    fn user_stack(&self, random: &mut Random) -> Option<Pick> {
        let pointer = match self.state.cpl {
            3 => Some(self.state.rsp),
            _ => self.state.user_stack,
        };
        let known = pointer.and_then(|pointer| {
            let above = if random.one_in(4) { PAGE_SIZE } else { 0 };
            self.mapped(pointer.wrapping_add(above))
                .or_else(|| self.mapped(pointer))
        });
        known.or_else(|| {
            // No program has been seen at CPL 3 in this address space: the stack is the highest
            // page that it may write.
            let leaf = self.tables()?.highest_user_writable(self.mem)?;
            self.mem.is_ram(leaf.physical).then_some(Pick {
                page: leaf.physical.page(),
                line: None,
            })
        })
    }

    fn other(&self, random: &mut Random) -> Option<Pick> {
        (0..2 * LOOKS).find_map(|_| {
            let number = random.below(u64::from(self.mem.ram_pages())) as u32;
            let page = self.mem.page_address(number);
            (self.mem.is_ram(page) && self.in_use(page)).then_some(Pick { page, line: None })
        })
    }
}

impl Target for View<'_> {
    fn copies(&self) -> usize {
        self.copies
    }

    fn ram_pages(&self) -> u32 {
        self.mem.ram_pages()
    }

    fn page(&self, number: u32) -> GuestPhys {
        self.mem.page_address(number)
    }

    fn sample(&mut self, class: Class, random: &mut Random) -> Option<Pick> {
        match class {
            Class::PageTable => self.page_table(random),
            Class::KernelText => self.kernel_text(random),
            Class::KernelData => self.kernel_data(random),
            Class::UserText => {
                if self.state.cpl == 3 && random.one_in(4) {
                    return self.mapped(self.state.rip);
                }
                self.page_of(random, LOWER_HALF, true, |leaf| leaf.executable)
            }
            Class::UserData => self.page_of(random, LOWER_HALF, true, |leaf| !leaf.executable),
            Class::UserStack => self.user_stack(random),
            Class::Other => self.other(random),
        }
    }

    fn bad_lines(&self, page: GuestPhys, copy: usize) -> u64 {
        self.mem.poisoned_lines(page, copy)
    }

    fn frame(&self, page: GuestPhys, copy: usize) -> Option<u32> {
        self.mem.frame(page, copy).map(|frame| frame.0)
    }

    fn corrupt(
        &mut self,
        page: GuestPhys,
        copy: usize,
        lines: u64,
        noise: &mut dyn FnMut() -> u64,
    ) -> u64 {
        self.mem.corrupt(page, copy, lines, noise)
    }
}

#[cfg(test)]
mod tests;
