//! One virtual processor on a host without a translator: a loop over the interpreter, with the
//! interface of the translating one.

use std::sync::atomic::Ordering;

use mmu::{GuestPhys, PhysMem, TlbSet};

use super::engine::{EngineOptions, Stop, VcpuError};
use super::raising::{self, LastException};
use crate::cache::CacheStatistics;
use crate::guest::CpuState;
use crate::interpret::system::deliver;
use crate::interpret::{self, Context};
use crate::platform::Platform;

/// The host's time-stamp counter, of which nothing is known here.
pub(crate) fn host_counter() -> Option<u64> {
    None
}

/// A virtual processor, with the memory and the machine it works on.
pub struct Vcpu {
    cpu: Box<CpuState>,
    tlb: Box<TlbSet>,
    /// Guest-physical memory.
    pub mem: PhysMem,
    /// The machine around it.
    pub platform: Box<dyn Platform>,
    options: EngineOptions,
    /// The instruction count at which `run` returns (counted mode).
    goal: u64,
    /// An exception could not be delivered.
    shutdown: bool,
    last_exception: LastException,
}

impl Vcpu {
    /// A processor at reset.
    pub fn new(
        mem: PhysMem,
        platform: Box<dyn Platform>,
        options: EngineOptions,
    ) -> Result<Vcpu, VcpuError> {
        // SAFETY: a TLB set is plain numbers, and `reset` accepts any of them.
        let mut tlb = unsafe { Box::<TlbSet>::new_zeroed().assume_init() };
        tlb.reset();
        Ok(Vcpu {
            cpu: Box::new(CpuState::at_reset()),
            tlb,
            mem,
            platform,
            options,
            goal: 0,
            shutdown: false,
            last_exception: LastException::none(),
        })
    }

    /// Nothing is translated, so there is nothing to keep.
    pub fn keep_code_in(&mut self, _: &std::path::Path) {}

    /// Likewise.
    pub fn keep_code(&mut self, _: usize) -> std::io::Result<usize> {
        Ok(0)
    }

    /// The guest's registers.
    pub fn cpu(&self) -> &CpuState {
        &self.cpu
    }

    /// The guest's registers, to change while the processor does not run.
    pub fn cpu_mut(&mut self) -> &mut CpuState {
        &mut self.cpu
    }

    /// The word that asks the processor to return from [`Vcpu::run`]; any thread may set it to
    /// a nonzero value while this processor exists.
    pub fn exit_request(&self) -> *const std::sync::atomic::AtomicU32 {
        &raw const self.cpu.exit_request
    }

    /// Counts of the block cache, which this host has not.
    pub fn statistics(&self) -> CacheStatistics {
        CacheStatistics::default()
    }

    /// Guest instructions executed so far; always exact here.
    pub fn instructions(&self) -> u64 {
        self.cpu.instructions
    }

    /// Lets `run` go on until this many instructions have been executed in all (counted mode).
    pub fn set_goal(&mut self, goal: u64) {
        self.goal = goal;
    }

    /// Everything that one instruction may touch.
    pub fn context(&mut self) -> Context<'_> {
        Context {
            cpu: &mut self.cpu,
            tlb: &mut self.tlb,
            mem: &mut self.mem,
            platform: &mut *self.platform,
        }
    }

    /// Forgets every TLB entry: after memory or mode were changed from outside.
    pub fn forget_everything(&mut self) {
        self.tlb.flush(true);
        self.settle();
    }

    /// Nothing is translated, hence nothing to forget of code that was changed from outside.
    pub fn invalidate(&mut self, _: GuestPhys, _: u32) {}

    /// Runs guest code until something needs the caller.
    pub fn run(&mut self) -> Stop {
        loop {
            if std::mem::take(&mut self.shutdown) {
                return Stop::Shutdown;
            }
            if self.cpu.exit_request.swap(0, Ordering::Acquire) != 0 {
                return Stop::Requested;
            }
            self.settle();
            if self.options.counted && self.goal.wrapping_sub(self.cpu.instructions) as i64 <= 0 {
                return Stop::Budget;
            }
            match deliver::pending(&mut self.context()) {
                Ok(_) => {}
                Err(deliver::Shutdown) => return Stop::Shutdown,
            }
            if self.cpu.halted != 0 {
                return Stop::Halted;
            }
            self.step();
        }
    }

    /// Interprets one instruction.
    pub fn step(&mut self) {
        match interpret::step(&mut self.context()) {
            Ok(finished) => self.count(u64::from(finished)),
            Err(exception) => {
                if self.last_exception.follows_another(self.cpu.instructions)
                    && self.options.counted
                {
                    self.count(1);
                }
                self.shutdown = raising::raise(&mut self.context(), exception).is_err();
            }
        }
    }

    fn count(&mut self, executed: u64) {
        self.cpu.instructions = self.cpu.instructions.wrapping_add(executed);
    }

    /// Drops the TLB entries of changed pages. No page is marked as code, so no code write
    /// is ever noted.
    fn settle(&mut self) {
        self.context().settle();
    }
}
