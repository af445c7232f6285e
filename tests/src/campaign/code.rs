//! Random instructions: valid ones mostly, mutated ones sometimes, noise now and then.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Mnemonic};

/// A seeded generator (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// 64 bits.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// Less than `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True once in `count`.
    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// Bytes that may be an instruction, prefixes and all.
fn candidate(random: &mut Random, bits: u32) -> [u8; 15] {
    let mut bytes = [0; 15];
    for byte in &mut bytes {
        *byte = random.next() as u8;
    }
    let mut at = 0;
    // Nothing is longer: what chance puts behind the end is left out.
    let mut put = |byte: u8| {
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
            at += 1;
        }
    };
    while random.one_in(5) {
        put(random.pick(&[
            0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65,
        ]));
    }
    if bits == 64 && random.one_in(2) {
        put(0x40 | random.next() as u8 & 15);
    }
    match random.below(8) {
        0..=3 => {}
        4 | 5 => put(0x0f),
        6 => {
            put(0x0f);
            put(random.pick(&[0x38, 0x3a]));
        }
        _ => put(random.pick(&[0xc4, 0xc5])),
    }
    bytes
}

/// System instructions and port accesses, which chance alone would meet too rarely.
const SPECIAL: &[&[u8]] = &[
    &[0x0f, 0x30],       // wrmsr
    &[0x0f, 0x32],       // rdmsr
    &[0x0f, 0x22, 0xc0], // mov cr0, eax
    &[0x0f, 0x22, 0xe0], // mov cr4, eax
    &[0x0f, 0x22, 0xd8], // mov cr3, eax
    &[0x0f, 0x22, 0xd9], // mov cr3, ecx
    &[0x0f, 0x20, 0xd8], // mov eax, cr3
    &[0x0f, 0x01, 0x38], // invlpg
    &[0x0f, 0x05],       // syscall
    &[0x0f, 0x34],       // sysenter
    &[0xcf],             // iret
    &[0xee],             // out dx, al
    &[0xef],             // out dx, eax
    &[0xec],             // in al, dx
    &[0xed],             // in eax, dx
    &[0x9d],             // popf
    &[0xfb],             // sti
    &[0xcd, 0x20],       // int 0x20
    &[0x8e, 0xd8],       // mov ds, ax
    &[0x8e, 0xd0],       // mov ss, ax
    &[0xf3, 0xa4],       // rep movsb
    &[0xf3, 0xab],       // rep stosd
];

/// A stream of about `len` bytes for code of a width.
pub fn stream(random: &mut Random, bits: u32, len: usize) -> Vec<u8> {
    let mut code = Vec::with_capacity(len + 32);
    while code.len() < len {
        match random.below(64) {
            0 => {
                // A port, a model-specific register or a control register's value first.
                let value = random.pick(&[
                    0x20,
                    0x21,
                    0x40,
                    0x43,
                    0x60,
                    0x64,
                    0x70,
                    0x71,
                    0x92,
                    0x3f8,
                    0x3f9,
                    0x3fb,
                    0xcf9,
                    0x10,
                    0x1b,
                    0x174,
                    0x175,
                    0x176,
                    0x277,
                    0x2ff,
                    0x3b,
                    0x6e0,
                    0x80b,
                    0x830,
                    0xc000_0080,
                    0xc000_0081,
                    0xc000_0082,
                    0xc000_0100,
                    0xc000_0101,
                ]);
                let register = random.pick(&[0xb8, 0xb9, 0xba]);
                if bits == 16 {
                    code.push(0x66);
                }
                code.push(register);
                code.extend_from_slice(&u32::to_le_bytes(value));
            }
            1 => code.extend_from_slice(random.pick(SPECIAL)),
            2 => code.extend((0..4).map(|_| random.next() as u8)),
            3 => {
                // A short jump forwards or backwards: loops, and jumps into instructions.
                code.push(random.pick(&[0xeb, 0x70, 0x74, 0x75, 0x7c, 0xe2]));
                code.push(random.pick(&[2, 5, 9, 17, 0xf0, 0xd0]));
            }
            4 => counted_loop(random, bits, &mut code),
            _ => instruction(random, bits, &mut code),
        }
    }
    code
}

/// A loop of some rounds with a forward branch in it, mostly of instructions that cannot fault:
/// what traces are made of.
fn counted_loop(random: &mut Random, bits: u32, code: &mut Vec<u8>) {
    // mov cx or ecx, rounds
    code.push(0xb9);
    let rounds = 3 + random.below(60) as u8;
    code.extend(&[rounds, 0, 0, 0][..if bits == 16 { 2 } else { 4 }]);
    let start = code.len();
    for _ in 0..1 + random.below(3) {
        // An operation of AX to DI, less CX and SP, register to register.
        for _ in 0..1 + random.below(4) {
            let from = random.below(8) as u8;
            let to = random.pick(&[0u8, 2, 3, 5, 6, 7]);
            let operation = 8 * random.below(8) as u8 + 1;
            code.extend([operation, 0xc0 | from << 3 | to]);
        }
        // A condition over one that increments (inc ax to di is ff /0 in every width).
        code.extend([0x70 | random.next() as u8 & 15, 2]);
        code.extend([0xff, 0xc0 | random.pick(&[0u8, 2, 3, 5])]);
        // Memory, through a register that may point there.
        if random.one_in(2) {
            let operation = (8 * random.below(8) as u8) | random.pick(&[1u8, 3]);
            code.extend([
                operation,
                0x40 | random.pick(&[3u8, 5, 6, 7]),
                random.next() as u8,
            ]);
        }
        if random.one_in(4) {
            instruction(random, bits, code);
        }
    }
    // dec cx or ecx; jnz start
    code.extend([0xff, 0xc9]);
    let back = start as isize - (code.len() as isize + 2);
    code.extend([0x75, i8::try_from(back).unwrap_or(-2) as u8]);
}

fn instruction(random: &mut Random, bits: u32, code: &mut Vec<u8>) {
    for _ in 0..16 {
        let mut bytes = candidate(random, bits);
        let insn = Decoder::with_ip(bits, &bytes, 0, DecoderOptions::NONE).decode();
        let leaves = !matches!(insn.flow_control(), FlowControl::Next);
        let rare = leaves
            || insn.is_privileged()
            || matches!(
                insn.mnemonic(),
                Mnemonic::Hlt | Mnemonic::In | Mnemonic::Out
            );
        if insn.is_invalid() || rare && !random.one_in(16) {
            continue;
        }
        let len = insn.len();
        if random.one_in(200) {
            bytes[random.below(len as u64) as usize] ^= 1 << random.below(8);
        }
        code.extend_from_slice(&bytes[..len]);
        return;
    }
}
