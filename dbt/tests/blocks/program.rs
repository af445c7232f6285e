//! Random programs: a list of operations, each drawn from a seed of its own, so that a failing
//! program shrinks by leaving operations out.

use dbt::guest::flags::CR0_TS;
use dbt::guest::flags::{ARITHMETIC, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_OSXSAVE};

use crate::instruction;
use crate::machine::*;
use crate::random::Random;
use crate::tables::{OTHER_SPACE, SOFTWARE, entry_address};

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
    fn relative(&mut self, size: usize, to: To) {
        let at = self.bytes.len();
        self.bytes.extend(std::iter::repeat_n(0, size));
        self.fixups.push(Fixup {
            at,
            size,
            to,
            relative_to: Some(at + size),
        });
    }

    fn absolute(&mut self, size: usize, to: To) {
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

    fn load_address(&mut self, register: u8, to: To) {
        self.load(register, 0);
        self.bytes.truncate(self.bytes.len() - 4);
        self.absolute(4, to);
    }

    /// An opcode with a bare absolute operand, of which the 32-bit address is to follow.
    fn absolute_operand(&mut self, bits: u32, opcode: &[u8], extension: u8) {
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

const COUNTERS: u64 = DATA + 0x3e00;
const SLOTS: u64 = DATA + 0x3c00;
/// How often the whole program is yet to be repeated.
const ROUNDS: u64 = DATA + 0x3bf8;
/// Small functions, different in the other address space.
const FUNCTIONS: u64 = CODE + 0x1e00;

fn operation(reserved: &Reserved, seed: u64, index: usize) -> Piece {
    let mut random = Random::new(seed);
    let bits = reserved.bits;
    let mut piece = Piece::default();
    let ahead = To::Operation(index + 1 + random.below(4) as usize);
    let counter = COUNTERS + 4 * (index as u64 % 64);
    let slot = SLOTS + 8 * (index as u64 % 64);
    match random.below(100) {
        0..=7 => {
            let condition = random.below(16) as u8;
            piece.put(&[0x0f, 0x80 | condition]);
            piece.relative(4, ahead);
        }
        8..=9 => {
            piece.put(&[0xe9]);
            piece.relative(4, ahead);
        }
        10..=11 => {
            let register = reserved.free(&mut random);
            piece.load_address(register, ahead);
            if register >= 8 {
                piece.put(&[0x41]);
            }
            piece.put(&[0xff, 0xe0 | register & 7]);
        }
        12..=13 => {
            // mov dword [slot], target; jmp [slot]
            piece.absolute_operand(bits, &[0xc7], 0);
            piece.put(&(slot as u32).to_le_bytes());
            piece.absolute(4, ahead);
            piece.absolute_operand(bits, &[0xff], 4);
            piece.put(&(slot as u32).to_le_bytes());
        }
        14..=18 => call(reserved, &mut random, slot, &mut piece),
        19..=23 => {
            // Back by a few operations, as often as the counter says.
            piece.absolute_operand(bits, &[0x83], 5);
            piece.put(&(counter as u32).to_le_bytes());
            piece.put(&[1, 0x0f, 0x89]);
            let back = index.saturating_sub(random.below(4) as usize);
            piece.relative(4, To::Operation(back));
        }
        24..=26 => self_modifying(reserved, &mut random, &mut piece),
        27..=28 => {
            // A frame: push rbp; mov rbp, rsp; sub rsp, 16; leave
            if reserved.has(5) {
                piece.put(&[0x90]);
            } else {
                let wide: &[u8] = if bits == 64 { &[0x48] } else { &[] };
                piece.put(&[0x55]);
                piece.put(wide);
                piece.put(&[0x89, 0xe5]);
                piece.put(wide);
                piece.put(&[0x83, 0xec, 16]);
                if let Some(body) = instruction::random(reserved, &mut random)
                    && !body.writes(5)
                {
                    piece.append(&body.piece);
                }
                piece.put(&[0xc9]);
            }
        }
        29..=31 => {
            // A base moves.
            let base = reserved.bases[random.below(reserved.bases.len() as u64) as usize];
            if bits == 64 {
                piece.put(&[0x48 | base >> 3]);
            }
            piece.put(&[0x83, 0xc0 | base & 7, (random.below(17) * 8) as u8 & 0x78]);
        }
        32..=33 => {
            let wide: &[u8] = if bits == 64 { &[0x48] } else { &[] };
            match random.below(3) {
                // push rsp; pop rsp
                0 => piece.put(&[0x54, 0x5c]),
                1 => {
                    piece.put(wide);
                    piece.put(&[0x8d, 0x64, 0x24, (random.below(32) * 4) as u8]);
                }
                _ => {
                    piece.put(wide);
                    let by = (random.below(32) * 4) as u8;
                    piece.put(&[0x8d, 0x64, 0x24, by.wrapping_neg()]);
                }
            }
        }
        34..=39 => system(reserved, &mut random, &mut piece),
        40 => {
            // mov register, an immediate that depends on the address space
            let register = reserved.free(&mut random);
            piece.load(register, 0x5a5a_5a5a);
            piece
                .variable
                .push(piece.bytes.len() - 1 - random.below(4) as usize);
        }
        41..=45 => {
            // A function in the second page, which may be mapped elsewhere by then.
            let function = To::Address(FUNCTIONS + 16 * random.below(4));
            if random.one_in(2) {
                piece.put(&[0xe8]);
                piece.relative(4, function);
            } else {
                let register = reserved.free(&mut random);
                piece.load_address(register, function);
                if register >= 8 {
                    piece.put(&[0x41]);
                }
                piece.put(&[0xff, 0xd0 | register & 7]);
            }
        }
        _ => {
            let mut tries = 0;
            while tries < 64 {
                if let Some(found) = instruction::random(reserved, &mut random) {
                    piece.append(&found.piece);
                    break;
                }
                tries += 1;
            }
        }
    }
    // Flags that the manual leaves undefined are often made defined at once.
    if random.one_in(2) {
        // cmp al, imm8
        piece.put(&[0x3c, random.next() as u8]);
    }
    piece
}

/// What kernels do: mappings, address spaces, privilege, interrupts.
fn system(reserved: &Reserved, random: &mut Random, piece: &mut Piece) {
    let long = reserved.bits == 64;
    let kernel = long && reserved.ring == 0;
    match random.below(if kernel { 12 } else { 3 }) {
        0 => piece.put(&[0xcd, SOFTWARE]),
        1 => {
            if long && !reserved.has(1) && !reserved.has(11) {
                piece.put(&[0x0f, 0x05]);
            }
        }
        2 => {
            // pushf; xor [rsp], flags; popf
            let wide: &[u8] = if long { &[0x48] } else { &[] };
            piece.put(&[0x9c]);
            piece.put(wide);
            piece.put(&[0x81, 0x34, 0x24]);
            let flags = random.next() as u32 & 0x24_4ed5;
            piece.put(&flags.to_le_bytes());
            piece.put(&[0x9d]);
        }
        3..=5 => {
            // xor byte [entry + 2], 8: another page; then invlpg or a new CR3
            let linear = if random.one_in(2) { CODE } else { DATA };
            let linear = linear + PAGE * random.below(2);
            piece.absolute_operand(64, &[0x80], 6);
            piece.put(&(entry_address(64, linear) as u32 + 2).to_le_bytes());
            piece.put(&[8]);
            if random.one_in(2) {
                piece.absolute_operand(64, &[0x0f, 0x01], 7);
                piece.put(&(linear as u32 + random.below(PAGE) as u32).to_le_bytes());
            } else {
                space(reserved, random, piece, 0);
            }
        }
        6..=7 => space(reserved, random, piece, OTHER_SPACE),
        8 => piece.put(&[0xfb]),
        9 => piece.put(&[0xfa]),
        10 => piece.put(&[0x0f, 0x01, 0xf8]),
        _ => {
            if reserved.smap {
                piece.put(&[0x0f, 0x01, 0xca | random.below(2) as u8]);
            }
        }
    }
}

/// Loads CR3 with its value, some bits of it changed.
fn space(reserved: &Reserved, random: &mut Random, piece: &mut Piece, change: u32) {
    let register = reserved.free(random);
    let low = register & 7;
    let extended: &[u8] = if register >= 8 { &[0x41] } else { &[] };
    piece.put(extended);
    piece.put(&[0x0f, 0x20, 0xd8 | low]);
    if change != 0 {
        piece.put(extended);
        piece.put(&[0x81, 0xf0 | low]);
        piece.put(&change.to_le_bytes());
    }
    piece.put(extended);
    piece.put(&[0x0f, 0x22, 0xd8 | low]);
}

/// A call over a function, direct or not, and its return.
fn call(reserved: &Reserved, random: &mut Random, slot: u64, piece: &mut Piece) {
    let bits = reserved.bits;
    let mut body = Piece::default();
    for _ in 0..random.below(3) {
        if let Some(found) = instruction::random(reserved, random)
            && !found.moves_stack
        {
            body.append(&found.piece);
        }
    }
    let mut calling = Piece::default();
    let function = usize::MAX;
    match random.below(3) {
        0 => {
            calling.put(&[0xe8]);
            calling.relative(4, To::Within(function));
        }
        1 => {
            let register = reserved.free(random);
            calling.load_address(register, To::Within(function));
            if register >= 8 {
                calling.put(&[0x41]);
            }
            calling.put(&[0xff, 0xd0 | register & 7]);
        }
        _ => {
            calling.absolute_operand(bits, &[0xc7], 0);
            calling.put(&(slot as u32).to_le_bytes());
            calling.absolute(4, To::Within(function));
            calling.absolute_operand(bits, &[0xff], 2);
            calling.put(&(slot as u32).to_le_bytes());
        }
    }
    // jmp over the function
    let returned: &[u8] = if random.one_in(4) {
        &[0xc2, 8, 0]
    } else if random.one_in(4) {
        &[0xf3, 0xc3]
    } else {
        &[0xc3]
    };
    let over = (body.bytes.len() + returned.len()) as u32;
    calling.put(&[0xe9]);
    calling.put(&over.to_le_bytes());
    let start = calling.bytes.len();
    for fixup in &mut calling.fixups {
        if let To::Within(offset) = &mut fixup.to
            && *offset == function
        {
            *offset = start;
        }
    }
    piece.append(&calling);
    piece.append(&body);
    piece.put(returned);
}

/// A store into an immediate that is executed soon afterwards.
fn self_modifying(reserved: &Reserved, random: &mut Random, piece: &mut Piece) {
    let bits = reserved.bits;
    let mut between = Piece::default();
    for _ in 0..random.below(2) {
        if let Some(found) = instruction::random(reserved, random) {
            between.append(&found.piece);
        }
    }
    let register = reserved.free(random);
    let mut target = Piece::default();
    target.load(register, 0x1234_5678);
    // mov byte [immediate], imm8
    let store_length = if bits == 64 { 8 } else { 7 };
    let immediate = store_length + between.bytes.len() + target.bytes.len() - 4;
    let mut store = Piece::default();
    store.absolute_operand(bits, &[0xc6], 0);
    store.absolute(4, To::Within(immediate + random.below(4) as usize));
    store.put(&[random.next() as u8]);
    assert_eq!(store.bytes.len(), store_length);
    store.append(&between);
    store.append(&target);
    piece.append(&store);
}

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
        let mut reserved = Reserved {
            bits: self.bits,
            ring,
            smap,
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
