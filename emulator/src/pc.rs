//! The board as the processor sees it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use dbt::run::ThreadTimer;
use dbt::{Platform, Refused};
use devices::{Board, BoardEvent};
use mmu::{GuestPhys, PhysMem};

use crate::clock::Clock;
use crate::shadow::Shadow;
use crate::wake::Kicker;

/// The machine around the processor: board, clock, timer.
pub struct Pc {
    /// All chips.
    pub board: Board,
    /// Virtual time.
    pub clock: Clock,
    /// Rings when a device's deadline passes (real time only).
    pub waker: Option<ThreadTimer>,
    /// The deadline that the waker is armed for.
    pub armed: u64,
    /// When somebody other than a device wants control, in virtual time; `u64::MAX`: nobody.
    pub alarm: u64,
    /// State of the random numbers for RDRAND.
    pub random: u64,
    /// Bytes on their way to the first serial port.
    pub serial_input: VecDeque<u8>,
    /// Virtual time by which output has to reach its sinks; all ones if none waits.
    pub flush_at: u64,
    /// What ends or restarts the machine, if it happened.
    pub event: Option<BoardEvent>,
    /// Asks the processor for control.
    pub kicker: Kicker,
    /// The gate of address line 20 as the processor last heard of it.
    pub a20: bool,
    /// What the host bridge has hidden below 1 MiB.
    pub shadow: Shadow,
}

/// Ports of the serial controllers, COM4 to COM1.
const SERIAL_PORTS: [u16; 4] = [0x2e8, 0x2f8, 0x3e8, 0x3f8];
/// Output waits this long for more, in nanoseconds of virtual time.
const FLUSH_DELAY: u64 = 10_000_000;

impl Pc {
    /// Virtual time of the next thing to do: a device's deadline, or waiting output.
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        let device = self.board.next_deadline(now);
        match (device, self.flush_at) {
            (device, u64::MAX) => device,
            (device, flush) => Some(device.map_or(flush, |device| device.min(flush))),
        }
    }

    /// Arms the waker for the board's next deadline or the alarm, if that is earlier than the
    /// armed one.
    pub fn arm(&mut self, now: u64) {
        let Some(waker) = &self.waker else {
            return;
        };
        // An alarm that has passed is answered at this very stop.
        let alarm = Some(self.alarm).filter(|&alarm| alarm > now && alarm != u64::MAX);
        let Some(deadline) = self.next_deadline(now).into_iter().chain(alarm).min() else {
            return;
        };
        if deadline < self.armed {
            self.armed = deadline;
            if let Some(delay) = self.clock.wait_until(deadline) {
                waker.arm(delay, Duration::ZERO);
            }
        }
    }

    /// Lets the devices catch up with the clock.
    pub fn advance(&mut self, now: u64) {
        self.armed = u64::MAX;
        self.board.advance(now);
        if self.flush_at <= now {
            self.flush();
        }
        self.feed_serial(now);
        self.arm(now);
    }

    /// Hands waiting output to its sinks.
    pub fn flush(&mut self) {
        self.flush_at = u64::MAX;
        self.board.flush_output();
    }

    /// After a write to a device: new deadlines count, and an end comes at once.
    fn written(&mut self, now: u64) {
        self.arm(now);
        if self.board.nmi_pending() || self.board.a20_enabled() != self.a20 {
            self.kicker.kick();
        }
        if let Some(event) = self.board.take_event() {
            self.event.get_or_insert(event);
            self.kicker.kick();
        }
    }

    /// Offers waiting input to the serial port, as far as it has room.
    pub fn feed_serial(&mut self, now: u64) {
        if !self.serial_input.is_empty() {
            let bytes = self.serial_input.make_contiguous();
            let taken = self.board.serial_receive(now, 0, bytes);
            self.serial_input.drain(..taken);
        }
    }
}

/// A shared [`Pc`], as the processor's platform.
pub struct SharedPc(pub Rc<RefCell<Pc>>);

impl Platform for SharedPc {
    fn port_read(&mut self, _: &mut PhysMem, instructions: u64, port: u16, size: u8) -> u32 {
        let mut pc = self.0.borrow_mut();
        let now = pc.clock.now(instructions);
        let value = pc.board.port_read(now, port, size);
        if port & !7 == SERIAL_PORTS[3] {
            // Reading may have made room.
            pc.feed_serial(now);
            pc.arm(now);
        }
        value
    }

    fn port_write(
        &mut self,
        mem: &mut PhysMem,
        instructions: u64,
        port: u16,
        size: u8,
        value: u32,
    ) {
        let mut pc = self.0.borrow_mut();
        let now = pc.clock.now(instructions);
        pc.board.port_write(now, port, size, value);
        if let Some(segments) = pc.board.take_shadow_change() {
            // Only a page of which no copy is left refuses; its loss has been noted.
            if let Err(error) = pc.shadow.apply(mem, &segments) {
                tracing::warn!(%error, "memory below 1 MiB does not change sides");
            }
        }
        if pc.flush_at == u64::MAX
            && (SERIAL_PORTS.contains(&port) || pc.board.is_debug_console(port))
        {
            pc.flush_at = now.saturating_add(FLUSH_DELAY);
        }
        pc.written(now);
    }

    fn mmio_read(
        &mut self,
        _: &mut PhysMem,
        instructions: u64,
        address: GuestPhys,
        size: u8,
    ) -> u64 {
        let mut pc = self.0.borrow_mut();
        let now = pc.clock.now(instructions);
        pc.board.mmio_read(now, address.0, size)
    }

    fn mmio_write(
        &mut self,
        _: &mut PhysMem,
        instructions: u64,
        address: GuestPhys,
        size: u8,
        value: u64,
    ) {
        let mut pc = self.0.borrow_mut();
        let now = pc.clock.now(instructions);
        pc.board.mmio_write(now, address.0, size, value);
        pc.written(now);
    }

    fn msr_read(&mut self, instructions: u64, msr: u32) -> Option<u64> {
        let mut pc = self.0.borrow_mut();
        let now = pc.clock.now(instructions);
        pc.board.msr_read(now, msr)
    }

    fn msr_write(
        &mut self,
        instructions: u64,
        msr: u32,
        value: u64,
    ) -> Option<Result<(), Refused>> {
        let mut pc = self.0.borrow_mut();
        let now = pc.clock.now(instructions);
        let result = pc.board.msr_write(now, msr, value)?;
        pc.written(now);
        Some(result.map_err(|_| Refused))
    }

    fn task_priority(&mut self) -> u8 {
        self.0.borrow().board.tpr()
    }

    fn set_task_priority(&mut self, _: u64, priority: u8) {
        self.0.borrow_mut().board.set_tpr(priority);
    }

    fn time_stamp(&mut self, instructions: u64) -> u64 {
        let pc = self.0.borrow();
        let now = pc.clock.now(instructions);
        pc.board.guest_tsc(now)
    }

    fn real_time(&self) -> bool {
        matches!(self.0.borrow().clock, Clock::Real { .. })
    }

    fn random(&mut self) -> u64 {
        let mut pc = self.0.borrow_mut();
        // SplitMix64: full period, and every seed will do.
        pc.random = pc.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = pc.random;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    fn interrupt_pending(&mut self) -> bool {
        self.0.borrow().board.interrupt_pending()
    }

    fn acknowledge_interrupt(&mut self, instructions: u64) -> Option<u8> {
        let mut pc = self.0.borrow_mut();
        let now = pc.clock.now(instructions);
        pc.board.acknowledge(now)
    }

    fn floating_point_error(&mut self) {
        self.0.borrow_mut().board.raise_floating_point_error();
    }

    fn take_nmi(&mut self) -> bool {
        self.0.borrow_mut().board.take_nmi()
    }
}
