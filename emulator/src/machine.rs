//! The machine: processor, memory, board and clock, and the loop that lets time pass.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam::channel::{Receiver, RecvTimeoutError};
use dbt::guest::CpuModel;
use dbt::{EngineOptions, Stop, Vcpu, VcpuError};
use devices::{Board, BoardConfig, BoardError, BoardEvent};
use mmu::{AuditError, GuestPhys, MemoryConfig, MemoryError, PhysMem};

use crate::clock::Clock;
use crate::pc::{Pc, SharedPc};
use crate::wake::Waker;

/// What a machine is made of.
pub struct MachineConfig {
    /// Bytes of RAM.
    pub ram_bytes: u64,
    /// Copies of each page: 1 is no mirror.
    pub copies: usize,
    /// The board; its RAM size and clock are filled in.
    pub board: BoardConfig,
    /// The processor's features.
    pub model: CpuModel,
    /// The engine's switches.
    pub engine: EngineOptions,
    /// Virtual time counts instructions, 2^shift nanoseconds each.
    pub icount_shift: Option<u32>,
    /// Seed of RDRAND.
    pub seed: u64,
    /// Check that all copies are equal every so many instructions (counted mode).
    pub audit_every: Option<u64>,
}

/// A machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Processor.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// Board.
    #[error("the board cannot be built: {0}")]
    Board(#[from] BoardError),
    /// Host timer.
    #[error("cannot make a host timer: {0}")]
    Timer(std::io::Error),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// isa-debug-exit, with the process exit code.
    DebugExit(u32),
    /// A triple fault.
    TripleFault,
    /// HLT with nothing that could ever wake it.
    Dead,
    /// Somebody at the host asked for it.
    Quit,
    /// Copies of guest memory differ.
    Audit(AuditError),
    /// The instruction count that the caller wanted has been reached (counted mode).
    Goal,
}

/// What the host side may tell a running machine.
pub enum HostEvent {
    /// Bytes for the first serial port.
    Serial(Vec<u8>),
    /// End the run.
    Quit,
    /// Call the hook (reports, monitors).
    Hook(Box<dyn FnOnce(&mut Machine) + Send>),
}

/// A machine that can run.
pub struct Machine {
    /// Processor and memory.
    pub vcpu: Vcpu,
    /// Board and clock.
    pub pc: Rc<RefCell<Pc>>,
    pending_serial: Vec<u8>,
    audit_every: Option<u64>,
    next_audit: u64,
    counted: bool,
}

impl Machine {
    /// Builds a machine at reset, with its firmware tables in memory.
    pub fn new(mut config: MachineConfig) -> Result<Machine, MachineError> {
        let mut mem = PhysMem::new(&MemoryConfig {
            ram_bytes: config.ram_bytes,
            copies: config.copies,
            legacy_hole: true,
        })?;
        config.board.ram_size = config.ram_bytes;
        config.board.tsc_hz = config.model.tsc_hz;
        if config.icount_shift.is_none() {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            config.board.rtc_start = since.map_or(0, |since| since.as_secs() as i64);
        }
        let board = Board::new(config.board)?;
        for (at, bytes) in board.acpi_tables().tables {
            mem.store(at, &bytes).map_err(|_| MemoryError::Rom {
                at,
                len: bytes.len() as u64,
            })?;
        }
        let counted = config.icount_shift.is_some() || config.engine.counted;
        config.engine.counted = counted;
        let clock = match config.icount_shift {
            Some(shift) => Clock::counted(shift),
            None => Clock::real(),
        };
        let pc = Rc::new(RefCell::new(Pc {
            board,
            clock,
            waker: None,
            armed: u64::MAX,
            alarm: u64::MAX,
            random: config.seed,
        }));
        let platform = Box::new(SharedPc(pc.clone()));
        let mut vcpu = Vcpu::new(mem, platform, config.engine)?;
        vcpu.cpu_mut().model = config.model;
        if config.icount_shift.is_none() {
            let waker = Waker::new(vcpu.exit_request()).map_err(MachineError::Timer)?;
            pc.borrow_mut().waker = Some(waker);
        }
        Ok(Machine {
            vcpu,
            pc,
            pending_serial: Vec::new(),
            audit_every: config.audit_every,
            next_audit: config.audit_every.unwrap_or(u64::MAX),
            counted,
        })
    }

    /// Virtual time in nanoseconds.
    pub fn now(&self) -> u64 {
        self.pc.borrow().clock.now(self.vcpu.instructions())
    }

    /// Checks that all copies are equal, now.
    pub fn audit(&self) -> Result<u32, AuditError> {
        self.vcpu.mem.audit()
    }

    fn feed_serial(&mut self, now: u64) {
        if !self.pending_serial.is_empty() {
            let mut pc = self.pc.borrow_mut();
            let taken = pc.board.serial_receive(now, 0, &self.pending_serial);
            self.pending_serial.drain(..taken);
        }
    }

    /// Lets the devices catch up with the clock.
    fn advance(&mut self) -> u64 {
        let now = self.now();
        let mut pc = self.pc.borrow_mut();
        pc.armed = u64::MAX;
        pc.board.advance(now);
        pc.arm(now);
        now
    }

    fn take_event(&mut self) -> Option<End> {
        let event = self.pc.borrow_mut().board.take_event()?;
        Some(match event {
            BoardEvent::PowerOff => End::PowerOff,
            BoardEvent::Reset => End::Reset,
            BoardEvent::DebugExit(code) => End::DebugExit(code),
        })
    }

    /// Handles what the host sent; whether the run is to end.
    fn handle(&mut self, event: HostEvent) -> bool {
        match event {
            HostEvent::Serial(bytes) => {
                self.pending_serial.extend(bytes);
                false
            }
            HostEvent::Hook(hook) => {
                hook(self);
                false
            }
            HostEvent::Quit => true,
        }
    }

    /// Runs the guest until it ends. `each` is called whenever the processor has stopped, with
    /// the instruction count at which it next wants to be called (counted mode).
    pub fn run(
        &mut self,
        events: &Receiver<HostEvent>,
        each: &mut dyn FnMut(&mut Machine) -> u64,
    ) -> End {
        loop {
            while let Ok(event) = events.try_recv() {
                if self.handle(event) {
                    return End::Quit;
                }
            }
            let now = self.advance();
            self.feed_serial(now);
            if let Some(end) = self.take_event() {
                return end;
            }
            let mut goal = each(self);
            if self.counted {
                if goal <= self.vcpu.instructions() {
                    return End::Goal;
                }
                if self.vcpu.instructions() >= self.next_audit {
                    if let Err(error) = self.audit() {
                        return End::Audit(error);
                    }
                    let every = self.audit_every.unwrap_or(u64::MAX);
                    self.next_audit = self.vcpu.instructions().saturating_add(every);
                }
                goal = goal.min(self.next_audit);
                let pc = self.pc.borrow();
                if let Some(deadline) = pc.board.next_deadline(now)
                    && let Some(at) = pc.clock.instructions_at(deadline)
                {
                    goal = goal.min(at.max(self.vcpu.instructions() + 1));
                }
                // Host events are looked at now and then.
                goal = goal.min(self.vcpu.instructions() + (1 << 24));
                drop(pc);
                self.vcpu.set_goal(goal);
            }
            match self.vcpu.run() {
                Stop::Requested | Stop::Budget => {}
                Stop::Shutdown => return End::TripleFault,
                Stop::Halted => {
                    if let Some(end) = self.halted(events) {
                        return end;
                    }
                }
            }
        }
    }

    /// The processor waits for an interrupt: so does the host thread.
    fn halted(&mut self, events: &Receiver<HostEvent>) -> Option<End> {
        self.pc.borrow_mut().board.flush_output();
        loop {
            let now = self.advance();
            self.feed_serial(now);
            if let Some(end) = self.take_event() {
                return Some(end);
            }
            if self.pc.borrow().board.interrupt_pending() || self.pc.borrow().board.nmi_pending() {
                if self.vcpu.cpu().interrupt_flag != 0 || self.pc.borrow().board.nmi_pending() {
                    return None;
                }
            }
            let deadline = self.pc.borrow().board.next_deadline(now);
            let event = match deadline {
                Some(deadline) => {
                    let wait = self.pc.borrow().clock.wait_until(deadline);
                    match wait {
                        Some(wait) => events.recv_timeout(wait),
                        None => {
                            let instructions = self.vcpu.instructions();
                            self.pc.borrow_mut().clock.skip_to(instructions, deadline);
                            match events.try_recv() {
                                Ok(event) => Ok(event),
                                Err(_) => Err(RecvTimeoutError::Timeout),
                            }
                        }
                    }
                }
                None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Ok(event) => {
                    if self.handle(event) {
                        return Some(End::Quit);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let Some(deadline) = deadline else {
                        return Some(End::Dead);
                    };
                    // Nobody will send anything: only time can pass.
                    if let Some(wait) = self.pc.borrow().clock.wait_until(deadline) {
                        std::thread::sleep(wait);
                    }
                }
            }
        }
    }

    /// Reads guest-physical memory through the door, as the guest would.
    pub fn read_memory(&mut self, at: GuestPhys, into: &mut [u8]) -> bool {
        self.vcpu.mem.load(at, into).is_ok()
    }
}
