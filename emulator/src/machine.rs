//! The machine: processor, memory, board and clock, and the loop that lets time pass.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use dbt::guest::{CpuModel, HostSupport};
use dbt::run::{Ring, ThreadTimer};
use dbt::{EngineOptions, Stop, Vcpu, VcpuError};
use devices::{Board, BoardConfig, BoardError, BoardEvent};
use mmu::{AuditError, GuestPhys, MemoryConfig, MemoryError, PhysMem};
use sha2::{Digest, Sha256};

use crate::clock::Clock;
use crate::console_watch::ConsoleWatch;
use crate::inject::Injector;
use crate::pc::{Pc, SharedPc};
use crate::report::Report;
use crate::shadow::Shadow;
use crate::wake::Kicker;

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
    /// Put ACPI tables into memory: not for a firmware that makes its own.
    pub acpi: bool,
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
    /// The guest's kernel said that it panicked, and spins.
    Panicked,
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
    /// A break on the first serial port's line.
    SerialBreak,
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
    /// Damages memory as it runs.
    pub injector: Option<Injector>,
    audit_every: Option<u64>,
    next_audit: u64,
    counted: bool,
    watch: Option<ConsoleWatch>,
    spin: Spin,
}

/// How long a guest that said it panicked has been in its kernel without a pause.
#[derive(Clone, Copy, Default)]
struct Spin {
    next: u64,
    samples: u32,
}

/// Nanoseconds of virtual time between two looks at a guest that panicked.
const SPIN_SAMPLE: u64 = 20_000_000;
/// A kernel that is in kernel mode at so many looks in a row spins.
const SPIN_SAMPLES: u32 = 25;
/// Virtual time that a processor with interrupts off gets for a non-maskable one to arrive.
const DEAD_AFTER: u64 = 1_000_000_000;

impl Drop for Machine {
    fn drop(&mut self) {
        // The timer sets a word of the processor: it goes first.
        self.pc.borrow_mut().waker = None;
    }
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
        let board = Board::new(config.board)?;
        let tables = config.acpi.then(|| board.acpi_tables().tables);
        for (at, bytes) in tables.into_iter().flatten() {
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
            serial_input: VecDeque::new(),
            flush_at: u64::MAX,
            event: None,
            kicker: Kicker::default(),
            a20: true,
            shadow: Shadow::default(),
        }));
        let platform = Box::new(SharedPc(pc.clone()));
        let portable = config.engine.portable;
        let mut vcpu = Vcpu::new(mem, platform, config.engine)?;
        vcpu.cpu_mut().model = if portable {
            config.model.on(&HostSupport::portable())
        } else {
            config.model
        };
        if config.icount_shift.is_none() {
            let timer = ThreadTimer::new(vcpu.exit_request(), Ring::Deadline);
            pc.borrow_mut().waker = Some(timer.map_err(MachineError::Timer)?);
        }
        Ok(Machine {
            vcpu,
            pc,
            audit_every: config.audit_every,
            next_audit: config.audit_every.unwrap_or(u64::MAX),
            counted,
            injector: None,
            watch: None,
            spin: Spin::default(),
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

    /// Lets the console's observer tell when the guest's kernel has panicked.
    pub fn watch_console(&mut self, watch: ConsoleWatch) {
        self.watch = Some(watch);
    }

    /// Makes the injections that are due; gives the instruction count of the next.
    pub fn inject(&mut self) -> u64 {
        let Some(mut injector) = self.injector.take() else {
            return u64::MAX;
        };
        let next = injector.poll(self);
        self.injector = Some(injector);
        next
    }

    /// What is known of the run until now.
    pub fn report(&mut self) -> Report {
        let mut injector = self.injector.take();
        if let Some(injector) = &mut injector {
            injector.settle(self);
        }
        let report = Report::of(self, injector.as_ref());
        self.injector = injector;
        report
    }

    /// Lets other threads ask for control through `kicker` while the machine runs.
    pub fn set_kicker(&mut self, kicker: Kicker) {
        self.pc.borrow_mut().kicker = kicker;
    }

    /// Whether the instruction count is exact, as `each` of [`Machine::run`] needs it.
    pub fn counted(&self) -> bool {
        self.counted
    }

    /// Lets the devices catch up with the clock.
    fn advance(&mut self) -> u64 {
        let now = self.now();
        self.pc.borrow_mut().advance(now);
        now
    }

    /// Tells the processor of a change of the A20 gate.
    fn follow_a20(&mut self) {
        let mut pc = self.pc.borrow_mut();
        let open = pc.board.a20_enabled();
        if open != pc.a20 {
            pc.a20 = open;
            drop(pc);
            self.vcpu.cpu_mut().a20_closed = u8::from(!open);
            self.vcpu.context().flush_tlb(true);
        }
    }

    /// A Linux kernel that panicked without `panic=` spins with interrupts on: it never halts
    /// and never returns to user mode.
    fn spins_after_panic(&mut self, now: u64) -> bool {
        if !self.watch.as_ref().is_some_and(ConsoleWatch::panicked) {
            return false;
        }
        if self.vcpu.cpu().cpl() != 0 {
            self.spin = Spin::default();
        } else if now >= self.spin.next {
            self.spin.samples += 1;
            self.spin.next = now.saturating_add(SPIN_SAMPLE);
        }
        if self.spin.samples <= SPIN_SAMPLES {
            // The look after this one needs somebody to ask for control.
            let mut pc = self.pc.borrow_mut();
            pc.flush_at = pc.flush_at.min(self.spin.next);
            pc.arm(now);
            return false;
        }
        true
    }

    fn take_event(&mut self) -> Option<End> {
        let mut pc = self.pc.borrow_mut();
        let event = pc.event.take().or_else(|| pc.board.take_event())?;
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
                self.pc.borrow_mut().serial_input.extend(bytes);
                false
            }
            HostEvent::SerialBreak => {
                let now = self.now();
                self.pc.borrow_mut().board.serial_break(now, 0);
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
        let kicker = self.pc.borrow().kicker.clone();
        let _aim = kicker.aim(&self.vcpu);
        loop {
            while let Ok(event) = events.try_recv() {
                if self.handle(event) {
                    return End::Quit;
                }
            }
            let now = self.advance();
            if let Some(end) = self.take_event() {
                return end;
            }
            if self.spins_after_panic(now) {
                return End::Panicked;
            }
            self.follow_a20();
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
                if let Some(deadline) = pc.next_deadline(now)
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
        self.pc.borrow_mut().flush();
        self.spin = Spin::default();
        let maskable = self.vcpu.cpu().interrupt_flag != 0;
        let dead_at = self.now().saturating_add(DEAD_AFTER);
        loop {
            let now = self.advance();
            if let Some(end) = self.take_event() {
                return Some(end);
            }
            let mut deadline = {
                let pc = self.pc.borrow();
                if pc.board.nmi_pending() || maskable && pc.board.interrupt_pending() {
                    return None;
                }
                // An injection is due: the caller sees to it, and the processor stays halted.
                if pc.alarm <= now {
                    return None;
                }
                let device = pc.next_deadline(now);
                match pc.alarm {
                    u64::MAX => device,
                    alarm => Some(device.map_or(alarm, |device| device.min(alarm))),
                }
            };
            if !maskable {
                // Only a non-maskable interrupt could wake it, and only a timer raises one.
                if deadline.is_none() || now >= dead_at {
                    return Some(End::Dead);
                }
                deadline = deadline.map(|deadline| deadline.min(dead_at));
            }
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
                    if deadline <= now {
                        continue;
                    }
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

    /// SHA-256 of the guest's RAM: the number and the bytes of each page that is not all zero, or
    /// the number alone where no copy of a page is good.
    pub fn memory_digest(&mut self) -> String {
        let mut digest = Sha256::new();
        let mut bytes = [0; mmu::PAGE_SIZE as usize];
        for index in 0..self.vcpu.mem.ram_pages() {
            let page = self.vcpu.mem.page_address(index);
            let good = self.read_memory(page, &mut bytes);
            if !good {
                digest.update(page.0.to_le_bytes());
            } else if bytes.iter().any(|&byte| byte != 0) {
                digest.update(page.0.to_le_bytes());
                digest.update(bytes);
            }
        }
        let words = digest.finalize();
        words.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
