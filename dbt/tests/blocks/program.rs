//! Random programs: a list of operations, each drawn from a seed of its own, so that a failing
//! program shrinks by leaving operations out.

use dbt::guest::flags::CR0_TS;
use dbt::guest::flags::{ARITHMETIC, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_OSXSAVE};

use crate::common::Random;
use crate::machine::*;
use crate::operation::operation;

/// What a program is made from.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub bits: u32,
    /// Seed of registers, memory and mode.
    pub setting: u64,
    /// Seeds of the operations.
    pub operations: Vec<u64>,
}

/// A program with the state it starts from.
pub struct Program {
    pub bits: u32,
    pub ring: u8,
    pub start: u64,
    /// Code and where each operation starts, for printing.
    pub code: Vec<u8>,
    pub gpr: [u64; 16],
    pub flags: u64,
    pub ymm: [[u64; 4]; 16],
    pub x87: [u8; 160],
    /// Linear addresses and what is there.
    pub memory: Vec<(u64, Vec<u8>)>,
    /// CR0 bits set besides the usual ones.
    pub cr0: u64,
    /// CR4 bits cleared.
    pub cr4_off: u64,
    /// Page faults in the hole map it and go on.
    pub maps_holes: bool,
    /// The second page of code is not present before it is executed.
    pub code_on_demand: bool,
    /// SMAP is on, and everything but the data is the supervisor's.
    pub smap: bool,
    /// Address spaces have identifiers, and what is known of them is kept.
    pub pcid: bool,
    /// Stores may hit the program itself.
    pub writes_itself: bool,
    /// How many instructions are executed before each hardware interrupt.
    pub interrupts: Vec<usize>,
    /// Linear addresses of bytes that differ in the other address space.
    pub alternate_bytes: Vec<u64>,
    /// Forget all translations first.
    pub fresh: bool,
}

/// Which registers hold addresses throughout a program.
pub struct Reserved {
    pub bits: u32,
    pub ring: u8,
    pub smap: bool,
    /// Address spaces have identifiers, and what is known of them is kept.
    pub pcid: bool,
    /// Pointers into memory.
    pub bases: Vec<u8>,
    /// Small values.
    pub indexes: Vec<u8>,
    /// What all registers hold at first.
    pub values: [u64; 16],
}

impl Reserved {
    pub fn has(&self, register: u8) -> bool {
        register == 4 || self.bases.contains(&register) || self.indexes.contains(&register)
    }

    /// A register that operations may change.
    pub fn free(&self, random: &mut Random) -> u8 {
        loop {
            let register = random.below(if self.bits == 64 { 16 } else { 8 }) as u8;
            if !self.has(register) {
                return register;
            }
        }
    }
}

/// Where a fixed-up field points.
#[derive(Clone, Copy, Debug)]
pub enum To {
    /// An operation, by index; past the last is the end.
    Operation(usize),
    /// An offset in this operation's own code.
    Within(usize),
    /// An address.
    Address(u64),
}

/// A field to be filled in once addresses are known.
#[derive(Clone, Copy, Debug)]
pub struct Fixup {
    pub at: usize,
    pub size: usize,
    pub to: To,
    /// Relative to this offset in the operation; absolute if none.
    pub relative_to: Option<usize>,
}

/// The code of one operation.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    pub bytes: Vec<u8>,
    pub fixups: Vec<Fixup>,
    /// Bytes that may differ between address spaces.
    pub variable: Vec<usize>,
}

impl Piece {
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// A relative field at the end of an instruction.
    pub fn relative(&mut self, size: usize, to: To) {
        let at = self.bytes.len();
        self.bytes.extend(std::iter::repeat_n(0, size));
        self.fixups.push(Fixup {
            at,
            size,
            to,
            relative_to: Some(at + size),
        });
    }

    pub fn absolute(&mut self, size: usize, to: To) {
        let at = self.bytes.len();
        self.bytes.extend(std::iter::repeat_n(0, size));
        self.fixups.push(Fixup {
            at,
            size,
            to,
            relative_to: None,
        });
    }

    /// mov register, imm32 (zero-extended)
    pub fn load(&mut self, register: u8, value: u32) {
        if register >= 8 {
            self.put(&[0x41]);
        }
        self.put(&[0xb8 | register & 7]);
        self.put(&value.to_le_bytes());
    }

    /// mov register, all of it
    pub fn load_wide(&mut self, bits: u32, register: u8, value: u64) {
        if bits == 32 {
            self.load(register, value as u32);
            return;
        }
        self.put(&[0x48 | register >> 3, 0xb8 | register & 7]);
        self.put(&value.to_le_bytes());
    }

    pub fn load_address(&mut self, register: u8, to: To) {
        self.load(register, 0);
        self.bytes.truncate(self.bytes.len() - 4);
        self.absolute(4, to);
    }

    /// An opcode with a bare absolute operand, of which the 32-bit address is to follow.
    pub fn absolute_operand(&mut self, bits: u32, opcode: &[u8], extension: u8) {
        self.put(opcode);
        if bits == 64 {
            self.put(&[0x04 | extension << 3, 0x25]);
        } else {
            self.put(&[0x05 | extension << 3]);
        }
    }

    pub fn append(&mut self, other: &Piece) {
        let base = self.bytes.len();
        self.bytes.extend(&other.bytes);
        self.variable
            .extend(other.variable.iter().map(|at| at + base));
        for fixup in &other.fixups {
            let to = match fixup.to {
                To::Within(offset) => To::Within(offset + base),
                to => to,
            };
            self.fixups.push(Fixup {
                at: fixup.at + base,
                to,
                relative_to: fixup.relative_to.map(|offset| offset + base),
                ..*fixup
            });
        }
    }
}

pub const COUNTERS: u64 = DATA + 0x3e00;
pub const SLOTS: u64 = DATA + 0x3c00;
/// How often the whole program is yet to be repeated.
const ROUNDS: u64 = DATA + 0x3bf8;
/// Small functions, different in the other address space.
pub const FUNCTIONS: u64 = CODE + 0x1e00;

impl Recipe {
    /// The program, laid out.
    pub fn build(&self) -> Program {
        let mut random = Random::new(self.setting);
        let long = self.bits == 64;
        let mut pool: Vec<u8> = if long {
            (0..16).filter(|&register| register != 4).collect()
        } else {
            vec![1, 2, 3, 5, 6, 7]
        };
        let mut draw = |random: &mut Random| {
            let index = random.below(pool.len() as u64) as usize;
            pool.swap_remove(index)
        };
        let ring = if !long || random.one_in(2) { 3 } else { 0 };
        let smap = ring == 0 && random.one_in(4);
        let pcid = ring == 0 && random.one_in(2);
        let mut reserved = Reserved {
            bits: self.bits,
            ring,
            smap,
            pcid,
            bases: (0..if long { 3 } else { 2 })
                .map(|_| draw(&mut random))
                .collect(),
            indexes: (0..if long { 2 } else { 1 })
                .map(|_| draw(&mut random))
                .collect(),
            values: [0; 16],
        };
        let mut gpr: [u64; 16] = std::array::from_fn(|_| random.operand());
        for &base in &reserved.bases {
            gpr[usize::from(base)] = base_address(&mut random);
        }
        let writes_itself = random.one_in(12);
        for &index in &reserved.indexes {
            let value = random.below(16) * if random.one_in(4) { 1 } else { 16 };
            let value = if random.one_in(4) {
                value.wrapping_neg()
            } else {
                value
            };
            gpr[usize::from(index)] = value;
        }
        gpr[4] = STACK_TOP - random.below(64) * 8;
        if !long {
            for (number, value) in gpr.iter_mut().enumerate() {
                *value = if number < 8 { *value & 0xffff_ffff } else { 0 };
            }
        }
        let cr0 = if random.one_in(16) { CR0_TS } else { 0 };
        let cr4_off = match random.below(32) {
            0 => CR4_OSFXSR,
            1 => CR4_OSXSAVE,
            2 => CR4_OSXMMEXCPT,
            _ => 0,
        };
        let start = if random.one_in(2) {
            CODE + 0x1000 - random.below(200)
        } else {
            CODE + random.below(0x800)
        };
        if writes_itself {
            // Stores hit the program, and whatever comes of that is executed.
            let base = usize::from(reserved.bases[0]);
            gpr[base] = start + random.below(0x180);
        }
        reserved.values = gpr;
        let (code, mut alternate_bytes) = self.lay_out(&reserved, start);
        let mut memory = Vec::new();
        let mut whole = random.bytes(0x2000);
        whole[(start - CODE) as usize..][..code.len()].copy_from_slice(&code);
        for function in 0..4 {
            let mut piece = Piece::default();
            piece.load(reserved.free(&mut random), 0x1111_0000 + function as u32);
            let at = (FUNCTIONS - CODE) as usize + 16 * function;
            alternate_bytes.push(CODE + (at + piece.bytes.len() - 1) as u64);
            piece.put(&[0xc3]);
            whole[at..at + piece.bytes.len()].copy_from_slice(&piece.bytes);
        }
        memory.push((CODE, whole));
        let mut data = random.bytes(0x6000);
        for counter in 0..64 {
            let at = (COUNTERS - DATA) as usize + 4 * counter;
            data[at..at + 4].copy_from_slice(&(random.below(4) as u32).to_le_bytes());
        }
        let at = (ROUNDS - DATA) as usize;
        data[at..at + 4].copy_from_slice(&(random.below(5) as u32).to_le_bytes());
        memory.push((DATA, data));
        memory.push((STACK, random.bytes(0x2000)));
        let mut x87 = [0; 160];
        x87[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        x87[4] = random.next() as u8 & random.next() as u8;
        for register in x87[32..].chunks_exact_mut(16) {
            let value = (random.operand() as i64) as f64;
            register[..10].copy_from_slice(&extended(value));
        }
        let mut interrupts = Vec::new();
        if random.one_in(3) {
            let mut at = 0;
            for _ in 0..1 + random.below(5) {
                at += 1 + random.below(12) as usize;
                interrupts.push(at);
            }
        }
        Program {
            bits: self.bits,
            ring,
            start,
            code,
            gpr,
            flags: random.next() & ARITHMETIC,
            ymm: std::array::from_fn(|_| std::array::from_fn(|_| random.operand())),
            x87,
            memory,
            cr0,
            cr4_off,
            maps_holes: random.one_in(2),
            code_on_demand: random.one_in(4),
            smap,
            pcid,
            writes_itself,
            interrupts,
            alternate_bytes,
            fresh: random.one_in(8),
        }
    }

    fn lay_out(&self, reserved: &Reserved, start: u64) -> (Vec<u8>, Vec<u64>) {
        let pieces: Vec<Piece> = self
            .operations
            .iter()
            .enumerate()
            .map(|(index, &seed)| operation(reserved, seed, index))
            .collect();
        let mut starts = Vec::new();
        let mut at = 0;
        for piece in &pieces {
            starts.push(at);
            at += piece.bytes.len();
        }
        starts.push(at);
        let mut code = Vec::with_capacity(at + 1);
        let mut variable = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let base = starts[index];
            code.extend(&piece.bytes);
            variable.extend(piece.variable.iter().map(|at| start + (base + at) as u64));
            for fixup in &piece.fixups {
                let target = match fixup.to {
                    To::Operation(index) => start + starts[index.min(pieces.len())] as u64,
                    To::Within(offset) => start + (base + offset) as u64,
                    To::Address(address) => address,
                };
                let value = match fixup.relative_to {
                    Some(offset) => target.wrapping_sub(start + (base + offset) as u64),
                    None => target,
                };
                let at = base + fixup.at;
                code[at..at + fixup.size].copy_from_slice(&value.to_le_bytes()[..fixup.size]);
            }
        }
        // sub dword [rounds], 1; jns start; hlt
        let mut end = Piece::default();
        end.absolute_operand(self.bits, &[0x83], 5);
        end.put(&(ROUNDS as u32).to_le_bytes());
        end.put(&[1, 0x0f, 0x89]);
        code.extend(end.bytes);
        let next = start + code.len() as u64 + 4;
        code.extend((start.wrapping_sub(next) as u32).to_le_bytes());
        code.push(0xf4);
        (code, variable)
    }
}

/// An address that operations are based on.
fn base_address(random: &mut Random) -> u64 {
    match random.below(16) {
        0 => DATA_END - 64 + random.below(16) * 8,
        1 => READ_ONLY + 0x800,
        2 => DEVICE + 0x800,
        3 => CODE + 0x1c00,
        4..=6 => DATA + 0xff0 + 0x1000 * random.below(2) + random.below(32),
        7 => DATA + 0x200 + random.below(0x2000),
        _ => DATA + 0x200 + random.below(0x80) * 64,
    }
}

/// A double as the x87 keeps it.
fn extended(value: f64) -> [u8; 10] {
    let bits = value.to_bits();
    let sign = (bits >> 63) as u16;
    let exponent = (bits >> 52 & 0x7ff) as u16;
    let mut bytes = [0; 10];
    if exponent != 0 {
        let mantissa = 1 << 63 | bits << 11;
        bytes[..8].copy_from_slice(&mantissa.to_le_bytes());
        let exponent = exponent + 16383 - 1023;
        bytes[8..].copy_from_slice(&(sign << 15 | exponent).to_le_bytes());
    }
    bytes
}
