//! What a program is made of: instructions, jumps, calls, stores into the code ahead, and what
//! kernels do.

use crate::common::Random;
use crate::instruction;
use crate::machine::*;
use crate::program::{COUNTERS, FUNCTIONS, Piece, Reserved, SLOTS, To};
use crate::tables::{OTHER_SPACE, SOFTWARE, entry_address};

/// The operation of a seed, at an index of the program.
pub fn operation(reserved: &Reserved, seed: u64, index: usize) -> Piece {
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
            match random.below(4) {
                // push or pop of 16 bits
                3 => {
                    let register = reserved.free(&mut random);
                    piece.put(&[0x66]);
                    if register >= 8 {
                        piece.put(&[0x41]);
                    }
                    let opcode = if random.one_in(2) { 0x50 } else { 0x58 };
                    piece.put(&[opcode | register & 7]);
                }
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
            if reserved.pcid {
                // mov register, 2; invpcid register, [16 bytes of zero]: the other space may be
                // kept, and its tables may be those that changed.
                let register = reserved.free(random);
                let (low, high) = (register & 7, register >> 3);
                piece.put(&[0x48 | high, 0xc7, 0xc0 | low, 2, 0, 0, 0]);
                piece.put(&[0x66, 0x40 | high << 2, 0x0f, 0x38, 0x82]);
                piece.put(&[0x04 | low << 3, 0x25, 0, 0, 0, 0]);
            } else if random.one_in(2) {
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
        let identifier = if reserved.pcid { 3 } else { 0 };
        piece.put(&(change | identifier).to_le_bytes());
        if reserved.pcid && !random.one_in(4) {
            // bts register, 63: what is known of the space is kept.
            piece.put(&[0x48 | register >> 3, 0x0f, 0xba, 0xe8 | low, 63]);
        }
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
