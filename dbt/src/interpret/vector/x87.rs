//! The x87 registers, wherever they live: in the host's while the run loop runs, otherwise in
//! the processor's image.

use crate::guest::{CpuState, X87Pointers};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use crate::{guest::FxsaveArea, interpret::extension, run};

/// Offset of the first register in an FXSAVE image; registers are 16 bytes apart.
pub(super) const REGISTERS: usize = 32;
/// The bits of FOP.
pub(crate) const OPCODE_BITS: u16 = 0x7ff;
/// One past the last register.
pub(super) const REGISTERS_END: usize = 160;

/// The x87 part of an FXSAVE image (SDM volume 1, table 10-2).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct X87 {
    /// FCW.
    pub control: u16,
    /// FSW.
    pub status: u16,
    /// One bit a physical register: 1 if it is not empty.
    pub tags: u8,
    /// FIP, FDP and FOP.
    pub pointers: X87Pointers,
    /// ST0 to ST7 as the image keeps them, 16 bytes each.
    pub registers: [u8; REGISTERS_END - REGISTERS],
}

impl X87 {
    /// The state after FNINIT, with empty registers that are all zero: what XRSTOR calls the
    /// initial configuration (SDM volume 1, 13.6).
    pub const INITIAL: X87 = X87 {
        control: 0x37f,
        status: 0,
        tags: 0,
        pointers: X87Pointers {
            instruction: 0,
            operand: 0,
            opcode: 0,
        },
        registers: [0; REGISTERS_END - REGISTERS],
    };

    /// The guest's registers now.
    pub fn of(cpu: &CpuState) -> X87 {
        X87 {
            // Those of the host are about host code.
            pointers: cpu.vector.pointers,
            ..X87::registers_of(cpu)
        }
    }

    fn registers_of(cpu: &CpuState) -> X87 {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if extension::x87_live() {
            let mut area = FxsaveArea([0; 512]);
            run::peek_x87(&mut area);
            return X87::from_image(&area.0);
        }
        X87::from_image(&cpu.vector.fxsave.0)
    }

    /// Reads the x87 part of an image of at least 160 bytes, in the format with pointers of 64
    /// bits.
    pub fn from_image(image: &[u8]) -> X87 {
        let mut registers = [0; REGISTERS_END - REGISTERS];
        registers.copy_from_slice(&image[REGISTERS..REGISTERS_END]);
        X87 {
            control: u16::from_le_bytes([image[0], image[1]]),
            status: u16::from_le_bytes([image[2], image[3]]),
            tags: image[4],
            pointers: X87Pointers {
                instruction: u64::from_le_bytes(image[8..16].try_into().unwrap_or_default()),
                operand: u64::from_le_bytes(image[16..24].try_into().unwrap_or_default()),
                opcode: u16::from_le_bytes([image[6], image[7]]) & OPCODE_BITS,
            },
            registers,
        }
    }

    /// The same with pointers of 32 bits and selectors behind them, which read as zero and are
    /// ignored: what FXSAVE, XSAVE and their reverses have without REX.W.
    pub fn narrow(mut self) -> X87 {
        self.pointers.instruction &= 0xffff_ffff;
        self.pointers.operand &= 0xffff_ffff;
        self
    }

    /// Writes the first 24 bytes and the registers of an image, in the format with pointers of
    /// 64 bits.
    pub fn to_image(&self, image: &mut [u8]) {
        image[..24].fill(0);
        image[0..2].copy_from_slice(&self.control.to_le_bytes());
        image[2..4].copy_from_slice(&self.status.to_le_bytes());
        image[4] = self.tags;
        let pointers = &self.pointers;
        image[6..8].copy_from_slice(&pointers.opcode.to_le_bytes());
        image[8..16].copy_from_slice(&pointers.instruction.to_le_bytes());
        image[16..24].copy_from_slice(&pointers.operand.to_le_bytes());
        for (slot, register) in image[REGISTERS..REGISTERS_END]
            .chunks_exact_mut(16)
            .zip(self.registers.chunks_exact(16))
        {
            slot[..10].copy_from_slice(&register[..10]);
            slot[10..].fill(0);
        }
    }

    /// Makes this the guest's x87 state.
    pub fn load(mut self, cpu: &mut CpuState) {
        self.refresh_summary();
        cpu.vector.pointers = std::mem::take(&mut self.pointers);
        self.to_image(&mut cpu.vector.fxsave.0);
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if extension::x87_live() {
            run::load_x87(&cpu.vector.fxsave);
        }
        follow_control(cpu);
    }

    /// ES and B are never loaded but follow from the exceptions and their masks
    /// (SDM volume 1, 8.1.3.3).
    fn refresh_summary(&mut self) {
        self.status &= !0x8080;
        if self.pending() {
            self.status |= 0x8080;
        }
    }

    /// Whether an unmasked exception waits for the next waiting instruction.
    pub fn pending(&self) -> bool {
        self.status & !self.control & 0x3f != 0
    }

    /// TOP: the physical number of ST0.
    pub fn top(&self) -> usize {
        usize::from(self.status >> 11 & 7)
    }

    /// The full tag word, two bits a physical register (SDM volume 1, 8.1.7).
    pub fn tag_word(&self) -> u16 {
        let mut word = 0;
        for physical in 0..8 {
            let stack = (physical + 8 - self.top()) % 8;
            let register = &self.registers[16 * stack..16 * stack + 10];
            let tag = if self.tags >> physical & 1 == 0 {
                3
            } else {
                classify(register)
            };
            word |= tag << (2 * physical);
        }
        word
    }

    /// Sets the tags from a full tag word: only emptiness is kept.
    pub fn set_tag_word(&mut self, word: u16) {
        self.tags = (0..8)
            .filter(|physical| word >> (2 * physical) & 3 != 3)
            .fold(0, |tags, physical| tags | 1 << physical);
    }
}

/// FCW and FSW now.
fn words(cpu: &CpuState) -> (u16, u16) {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if extension::x87_live() {
        return run::x87_words();
    }
    let image = &cpu.vector.fxsave.0;
    let word = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
    (word(0), word(2))
}

/// Whether an unmasked exception waits for the next waiting instruction.
pub fn pending(cpu: &CpuState) -> bool {
    let (control, status) = words(cpu);
    status & !control & 0x3f != 0
}

/// Whether the x87 store that has just been executed left memory alone: any unmasked exception but
/// #P prevents it (SDM volume 1, 8.5).
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub fn store_refused(cpu: &CpuState) -> bool {
    let (control, status) = words(cpu);
    status & !control & 0x1f != 0
}

/// FCW may have changed: the mode says whether exceptions are to be noted.
pub fn follow_control(cpu: &mut CpuState) {
    let unmasked = u8::from(!words(cpu).0 & 0x3f != 0);
    if cpu.vector.x87_unmasked != unmasked {
        cpu.vector.x87_unmasked = unmasked;
        cpu.refresh_mode();
    }
}

/// 0 valid, 1 zero, 2 special.
fn classify(register: &[u8]) -> u16 {
    let exponent = u16::from_le_bytes([register[8], register[9]]) & 0x7fff;
    let integer_bit = register[7] & 0x80 != 0;
    let zero = register[..8].iter().all(|&byte| byte == 0);
    match exponent {
        0 if zero => 1,
        0 | 0x7fff => 2,
        _ if integer_bit => 0,
        _ => 2,
    }
}
