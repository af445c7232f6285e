//! What a page is used for, and the machine as an injector sees it.

use mmu::GuestPhys;

use crate::random::Random;

/// What a guest page is used for at the moment of an injection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// A page table of the current address space.
    PageTable,
    /// Executable supervisor page.
    KernelText,
    /// Supervisor page that is not executable, or the kernel's stack.
    KernelData,
    /// Executable user page.
    UserText,
    /// User page that is not executable.
    UserData,
    /// The stack of a user program.
    UserStack,
    /// Any other page.
    Other,
}

impl Class {
    /// Every class, in the order of reports.
    pub const ALL: [Class; 7] = [
        Class::PageTable,
        Class::KernelText,
        Class::KernelData,
        Class::UserText,
        Class::UserData,
        Class::UserStack,
        Class::Other,
    ];

    /// The name used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Class::PageTable => "page-table",
            Class::KernelText => "kernel-text",
            Class::KernelData => "kernel-data",
            Class::UserText => "user-text",
            Class::UserData => "user-data",
            Class::UserStack => "user-stack",
            Class::Other => "other",
        }
    }
}

/// A page chosen for an injection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// The page.
    pub page: GuestPhys,
    /// The line of it (0 to 63) that is known to be in use, if one is: a table entry of a
    /// mapping, the top of a stack.
    pub line: Option<u32>,
}

/// A machine whose memory can be damaged. All of it is called while the processor is stopped,
/// and nothing but [`Target::corrupt`] may change what the guest sees or what is known to be
/// bad: no recovery, no accessed bits.
pub trait Target {
    /// Copies of each page, the native one included.
    fn copies(&self) -> usize;
    /// Pages of RAM.
    fn ram_pages(&self) -> u32;
    /// Address of a page of RAM by its number.
    fn page(&self, number: u32) -> GuestPhys;
    /// Chooses a page of a class; `None` if it finds none.
    fn sample(&mut self, class: Class, random: &mut Random) -> Option<Pick>;
    /// The lines of one copy of a page that are uncorrectable already, a bit each.
    fn bad_lines(&self, page: GuestPhys, copy: usize) -> u64;
    /// The number of the frame behind one copy of a page.
    fn frame(&self, page: GuestPhys, copy: usize) -> Option<u32>;
    /// Makes lines of one copy of a page uncorrectable and returns those that newly are.
    fn corrupt(
        &mut self,
        page: GuestPhys,
        copy: usize,
        lines: u64,
        noise: &mut dyn FnMut() -> u64,
    ) -> u64;
}
