//! The pair of 8259A interrupt controllers with their ELCR (Intel 8259A data
//! sheet; the edge/level registers are those of Intel's PIIX).
//!
//! An edge stays requested until it is acknowledged, even if the line falls
//! before: chip sets since the PIIX latch it, the first 8259A did not.

/// Registers of one 8259A.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChipState {
    /// Requests latched by rising edges.
    pub edges: u8,
    /// Lines as they are now.
    pub lines: u8,
    /// Interrupt mask register.
    pub mask: u8,
    /// In-service register.
    pub in_service: u8,
    /// Edge/level control: a set bit makes the input level-triggered.
    pub level: u8,
    /// Added to a request's number to find its priority; the line at this number is highest.
    pub highest: u8,
    /// Vector of input 0 (ICW2).
    pub base: u8,
    /// Which initialisation word comes next on the odd port; 0 when none.
    pub next_word: u8,
    /// ICW1 announced an ICW4.
    pub fourth_word: bool,
    /// ICW1 said that there is no slave, so no ICW3.
    pub single: bool,
    /// Reads of the even port give the in-service register.
    pub read_in_service: bool,
    /// The next read acknowledges by polling.
    pub poll: bool,
    /// Special mask mode.
    pub special_mask: bool,
    /// Automatic end of interrupt.
    pub auto_end: bool,
    /// Rotate on automatic end of interrupt.
    pub rotate_on_auto_end: bool,
    /// Special fully nested mode.
    pub special_nested: bool,
}

/// Both chips: the master first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Master and slave.
    pub chips: [ChipState; 2],
}

/// The two cascaded controllers, inputs 0 to 15.
#[derive(Debug)]
pub struct Pic {
    state: State,
}

const MASTER: usize = 0;
const SLAVE: usize = 1;
/// Master input that the slave's output drives.
const CASCADE: u8 = 2;
/// ELCR bits that exist: timer, keyboard, cascade, clock and coprocessor are always edges.
const LEVEL_ALLOWED: [u8; 2] = [0xF8, 0xDE];

impl ChipState {
    fn requests(&self) -> u8 {
        self.edges | self.lines & self.level
    }

    /// Priority of the best bit in `bits`: 0 is highest, 8 means none.
    fn priority(&self, bits: u8) -> u8 {
        if bits == 0 {
            return 8;
        }
        bits.rotate_right(u32::from(self.highest)).trailing_zeros() as u8
    }

    /// The request that the chip asks the processor to take.
    fn best(&self, is_master: bool) -> Option<u8> {
        let requested = self.priority(self.requests() & !self.mask);
        if requested == 8 {
            return None;
        }
        let mut blocking = self.in_service;
        if self.special_mask {
            blocking &= !self.mask;
        }
        // The slave may interrupt its own service when the master is so told.
        if self.special_nested && is_master {
            blocking &= !(1 << CASCADE);
        }
        (requested < self.priority(blocking)).then_some((requested + self.highest) & 7)
    }

    fn set_line(&mut self, line: u8, high: bool) {
        let bit = 1 << line;
        if high {
            if self.lines & bit == 0 && self.level & bit == 0 {
                self.edges |= bit;
            }
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    fn acknowledge(&mut self, line: u8) {
        let bit = 1 << line;
        if self.auto_end {
            if self.rotate_on_auto_end {
                self.highest = (line + 1) & 7;
            }
        } else {
            self.in_service |= bit;
        }
        self.edges &= !bit;
    }

    fn end_of_interrupt(&mut self, line: Option<u8>, rotate: bool) {
        let line = line.or_else(|| {
            let priority = self.priority(self.in_service);
            (priority < 8).then_some((priority + self.highest) & 7)
        });
        if let Some(line) = line {
            self.in_service &= !(1 << line);
            if rotate {
                self.highest = (line + 1) & 7;
            }
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            // ICW1 resets all but the lines, the vector base and the ELCR.
            *self = ChipState {
                lines: self.lines,
                level: self.level,
                base: self.base,
                next_word: 2,
                fourth_word: value & 1 != 0,
                single: value & 2 != 0,
                ..ChipState::default()
            };
        } else if value & 0x08 != 0 {
            if value & 0x04 != 0 {
                self.poll = true;
            }
            if value & 0x02 != 0 {
                self.read_in_service = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            let line = value & 7;
            match value >> 5 {
                0 | 4 => self.rotate_on_auto_end = value & 0x80 != 0,
                1 => self.end_of_interrupt(None, false),
                5 => self.end_of_interrupt(None, true),
                3 => self.end_of_interrupt(Some(line), false),
                7 => self.end_of_interrupt(Some(line), true),
                6 => self.highest = (line + 1) & 7,
                _ => {} // 2: no operation
            }
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.next_word {
            2 => {
                self.base = value & 0xF8;
                self.next_word = match (self.single, self.fourth_word) {
                    (false, _) => 3,
                    (true, true) => 4,
                    (true, false) => 0,
                };
            }
            3 => self.next_word = if self.fourth_word { 4 } else { 0 },
            4 => {
                self.special_nested = value & 0x10 != 0;
                self.auto_end = value & 0x02 != 0;
                self.next_word = 0;
            }
            _ => self.mask = value,
        }
    }
}

impl Default for Pic {
    fn default() -> Pic {
        Pic::new()
    }
}

impl Pic {
    /// Controllers as firmware leaves them: vectors 8 and 0x70, all inputs masked.
    pub fn new() -> Pic {
        let chip = |base| ChipState {
            base,
            mask: 0xFF,
            ..ChipState::default()
        };
        Pic {
            state: State {
                chips: [chip(0x08), chip(0x70)],
            },
        }
    }

    /// Back to the state of [`Pic::new`]; input lines keep their levels.
    pub fn reset(&mut self) {
        let lines = self.state.chips.map(|chip| chip.lines);
        *self = Pic::new();
        for (chip, lines) in self.state.chips.iter_mut().zip(lines) {
            chip.lines = lines;
        }
    }

    /// A copy of the chips' state.
    pub fn save(&self) -> State {
        self.state
    }

    /// Puts the chips into a saved state.
    pub fn restore(&mut self, state: &State) {
        self.state = *state;
        for chip in &mut self.state.chips {
            chip.highest &= 7;
        }
    }

    /// Sets input `irq` (0 to 15; 2 is the cascade and cannot be driven).
    pub fn set_irq(&mut self, irq: u8, high: bool) {
        match irq {
            CASCADE => {}
            0..8 => self.state.chips[MASTER].set_line(irq, high),
            8..16 => {
                self.state.chips[SLAVE].set_line(irq - 8, high);
                self.cascade();
            }
            _ => {}
        }
    }

    /// Drops all latched edges, as initialisation does.
    pub fn clear_edges(&mut self) {
        for chip in &mut self.state.chips {
            chip.edges = 0;
        }
    }

    /// Level of the master's INT output.
    pub fn output(&self) -> bool {
        self.state.chips[MASTER].best(true).is_some()
    }

    /// The processor's interrupt acknowledge cycle: gives the vector. With no
    /// request left it is the spurious one, input 7's, and nothing is in service.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(line) = self.state.chips[MASTER].best(true) else {
            return self.state.chips[MASTER].base | 7;
        };
        self.acknowledge_line(line)
    }

    fn acknowledge_line(&mut self, line: u8) -> u8 {
        let [master, slave] = &mut self.state.chips;
        master.acknowledge(line);
        if line != CASCADE {
            return master.base | line;
        }
        let slave_line = slave.best(false);
        if let Some(slave_line) = slave_line {
            slave.acknowledge(slave_line);
        }
        let vector = slave.base | slave_line.unwrap_or(7);
        self.pulse_cascade();
        vector
    }

    /// Reads port 0x20/0x21 (`chip` 0) or 0xA0/0xA1 (`chip` 1).
    pub fn read(&mut self, chip: usize, odd: bool) -> u8 {
        let chip = chip & 1;
        let state = &mut self.state.chips[chip];
        if state.poll {
            state.poll = false;
            return self.poll(chip);
        }
        if odd {
            state.mask
        } else if state.read_in_service {
            state.in_service
        } else {
            state.requests()
        }
    }

    fn poll(&mut self, chip: usize) -> u8 {
        let Some(line) = self.state.chips[chip].best(chip == MASTER) else {
            return 7;
        };
        self.state.chips[chip].acknowledge(line);
        if chip == SLAVE {
            self.pulse_cascade();
        }
        0x80 | line
    }

    /// Writes port 0x20/0x21 (`chip` 0) or 0xA0/0xA1 (`chip` 1).
    pub fn write(&mut self, chip: usize, odd: bool, value: u8) {
        let chip = chip & 1;
        if odd {
            self.state.chips[chip].write_data(value);
        } else {
            self.state.chips[chip].write_command(value);
        }
        if chip == SLAVE {
            // Ending one interrupt may leave another: the output drops between them.
            self.pulse_cascade();
        }
    }

    /// Reads the edge/level register 0x4D0 (`chip` 0) or 0x4D1 (`chip` 1).
    pub fn read_elcr(&self, chip: usize) -> u8 {
        self.state.chips[chip & 1].level
    }

    /// Writes the edge/level register 0x4D0 (`chip` 0) or 0x4D1 (`chip` 1).
    pub fn write_elcr(&mut self, chip: usize, value: u8) {
        let chip = chip & 1;
        self.state.chips[chip].level = value & LEVEL_ALLOWED[chip];
        self.cascade();
    }

    fn cascade(&mut self) {
        let high = self.state.chips[SLAVE].best(false).is_some();
        let master = &mut self.state.chips[MASTER];
        master.set_line(CASCADE, high);
        // A slave request that went away takes its request to the master with it.
        if !high {
            master.edges &= !(1 << CASCADE);
        }
    }

    fn pulse_cascade(&mut self) {
        self.state.chips[MASTER].set_line(CASCADE, false);
        self.cascade();
    }
}

#[cfg(test)]
#[path = "pic_tests.rs"]
mod tests;
