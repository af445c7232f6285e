//! Classes that are about memory.

use std::hint::black_box;

use crate::compute::Random;
use crate::work::{Class, prepared, scaled};

pub const CLASSES: &[Class] = &[
    ("l1r", |scale| Some(read(scale, 1 << 10, 40_000))),
    ("l1w", |scale| Some(write(scale, 1 << 10, 40_000))),
    ("seqr", |scale| Some(read(scale, LARGE, 6))),
    ("seqw", |scale| Some(write(scale, LARGE, 4))),
    ("rand", |scale| Some(random_read(scale))),
    ("randw", |scale| Some(random_write(scale))),
    ("memcpy", |scale| Some(copy(scale))),
    ("repmovs", |scale| Some(rep_movs(scale))),
    ("repstos", |scale| Some(rep_stos(scale))),
    ("malloc", |scale| Some(allocate(scale))),
];

/// Words of eight bytes in 64 MiB.
const LARGE: usize = 8 << 20;

fn words(count: usize) -> Vec<u64> {
    (0..count as u64)
        .map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .collect()
}

fn read(scale: u64, count: usize, rounds: u64) -> u64 {
    let words = words(count);
    prepared();
    let mut sum = 0u64;
    for _ in 0..scaled(rounds, scale) {
        // Not to be turned into vector instructions: other classes have these.
        for word in &words {
            sum = black_box(sum.wrapping_add(*word));
        }
    }
    sum
}

fn write(scale: u64, count: usize, rounds: u64) -> u64 {
    let mut words = words(count);
    prepared();
    for round in 0..scaled(rounds, scale) {
        for (at, word) in words.iter_mut().enumerate() {
            *word = black_box(at as u64 ^ round);
        }
    }
    words
        .iter()
        .step_by(1021)
        .fold(0, |sum, word| sum.rotate_left(1) ^ word)
}

fn random_read(scale: u64) -> u64 {
    let words = words(LARGE);
    prepared();
    let mut at = 1u64;
    for round in 0..scaled(400_000, scale) {
        at = words[((at >> 20).wrapping_add(round) as usize) & (LARGE - 1)];
    }
    at
}

fn random_write(scale: u64) -> u64 {
    let mut words = words(LARGE);
    prepared();
    let mut random = Random(1);
    for round in 0..scaled(3_000_000, scale) {
        words[random.next() as usize & (LARGE - 1)] = round;
    }
    words
        .iter()
        .step_by(1021)
        .fold(0, |sum, word| sum.rotate_left(1) ^ word)
}

fn copy(scale: u64) -> u64 {
    let mut to = vec![1u8; 1 << 20];
    let mut from = vec![2u8; 1 << 20];
    prepared();
    for round in 0..scaled(1500, scale) {
        to.copy_from_slice(black_box(&from));
        from[round as usize & 0xf_ffff] = round as u8;
        black_box(&mut to);
    }
    to.iter()
        .fold(0, |sum: u64, byte| sum.wrapping_mul(31) ^ u64::from(*byte))
}

fn rep_movs(scale: u64) -> u64 {
    let mut to = vec![1u8; 1 << 20];
    let mut from = vec![2u8; 1 << 20];
    prepared();
    for round in 0..scaled(1500, scale) {
        // SAFETY: both vectors have that many bytes.
        unsafe {
            std::arch::asm!("rep movsb",
                inout("rdi") to.as_mut_ptr() => _,
                inout("rsi") from.as_ptr() => _,
                inout("rcx") from.len() => _,
                options(nostack));
        }
        from[round as usize & 0xf_ffff] = round as u8;
    }
    to.iter()
        .fold(0, |sum: u64, byte| sum.wrapping_mul(31) ^ u64::from(*byte))
}

fn rep_stos(scale: u64) -> u64 {
    let mut to = vec![1u64; 1 << 17];
    let mut sum = 0u64;
    for round in 0..scaled(4000, scale) {
        // SAFETY: the vector has that many words.
        unsafe {
            std::arch::asm!("rep stosq",
                inout("rdi") to.as_mut_ptr() => _,
                in("rax") round,
                inout("rcx") to.len() => _,
                options(nostack));
        }
        sum = sum
            .wrapping_mul(31)
            .wrapping_add(to[(round as usize * 7) & 0x1_ffff]);
    }
    sum
}

fn allocate(scale: u64) -> u64 {
    let mut random = Random(1);
    let mut blocks: Vec<Vec<u8>> = vec![Vec::new(); 256];
    let mut sum = 0u64;
    for round in 0..scaled(2_000_000, scale) {
        let size = 16 + (random.next() & 511) as usize;
        let mut block = Vec::with_capacity(size);
        block.push(round as u8);
        let slot = (random.next() & 255) as usize;
        let old = std::mem::replace(&mut blocks[slot], black_box(block));
        sum = sum.wrapping_add(old.first().map_or(0, |byte| u64::from(*byte)));
    }
    sum
}
