//! Classes that stay in the processor: integers, floating point, calls, an interpreter.

use std::hint::black_box;

use crate::work::{Class, scaled};

pub const CLASSES: &[Class] = &[
    ("alu", |scale| Some(alu(scale))),
    ("sort", |scale| Some(sort(scale))),
    ("crc", |scale| Some(crc(scale))),
    ("hash", |scale| Some(hash(scale))),
    ("imat", |scale| Some(integer_matrix(scale))),
    ("dbl", |scale| Some(scalar(scale))),
    ("packed", |scale| Some(packed(scale))),
    ("avx", avx),
    ("x87", |scale| Some(x87(scale))),
    ("call", |scale| Some(calls(scale))),
    ("fib", |scale| Some(recursion(scale))),
    ("icall", |scale| Some(indirect_calls(scale))),
    ("interp", |scale| Some(interpreter(scale))),
    ("atomic", |scale| Some(atomics(scale))),
];

/// Pseudo-random numbers (xorshift).
pub struct Random(pub u32);

impl Random {
    pub fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }
}

fn alu(scale: u64) -> u64 {
    let (mut x, mut y, mut z) = black_box((1u64, 2u64, 3u64));
    for _ in 0..scaled(30_000_000, scale) {
        x = x.wrapping_mul(3).wrapping_add(y);
        y ^= x >> 7;
        z = z.wrapping_add(y);
    }
    x.wrapping_add(y).wrapping_add(z)
}

/// Sorts: comparisons and swaps that depend on data.
fn sort(scale: u64) -> u64 {
    let mut random = Random(1);
    let mut sum = 0u64;
    for _ in 0..scaled(12, scale) {
        let mut values: Vec<u32> = (0..100_000).map(|_| random.next()).collect();
        values.sort_unstable_by(|a, b| black_box(*a).cmp(b));
        sum = values.iter().step_by(100).fold(sum, |sum, value| {
            sum.wrapping_mul(31).wrapping_add(u64::from(*value))
        });
    }
    sum
}

fn crc(scale: u64) -> u64 {
    let mut table = [0u32; 256];
    for (index, entry) in table.iter_mut().enumerate() {
        *entry = (0..8).fold(index as u32, |crc, _| {
            if crc & 1 != 0 {
                0xedb8_8320 ^ (crc >> 1)
            } else {
                crc >> 1
            }
        });
    }
    let bytes: Vec<u8> = (0..65536u32).map(|index| (index * 7) as u8).collect();
    let mut crc = !0u32;
    for _ in 0..scaled(150, scale) {
        for byte in &bytes {
            crc = table[((crc ^ u32::from(*byte)) & 255) as usize] ^ (crc >> 8);
        }
    }
    u64::from(crc)
}

/// A hash table with open addressing: inserts, look-ups.
fn hash(scale: u64) -> u64 {
    let mut table = vec![(0u64, 0u64); 1 << 15];
    let mut sum = 0u64;
    for round in 0..scaled(10_000_000, scale) {
        let key = (round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50) + 1;
        let mut slot = (key.wrapping_mul(0xff51_afd7_ed55_8ccd) >> 49) as usize;
        loop {
            let entry = &mut table[slot & 0x7fff];
            if entry.0 == key {
                entry.1 += 1;
                sum = sum.wrapping_add(entry.1);
                break;
            }
            if entry.0 == 0 {
                *entry = (key, 1);
                break;
            }
            slot += 1;
        }
    }
    sum
}

fn integer_matrix(scale: u64) -> u64 {
    const N: usize = 120;
    let a: Vec<u32> = (0..N * N).map(|at| (at / N + at % N) as u32).collect();
    let b: Vec<u32> = (0..N * N)
        .map(|at| (at / N).wrapping_sub(at % N) as u32)
        .collect();
    let mut c = vec![0u32; N * N];
    for _ in 0..scaled(60, scale) {
        for i in 0..N {
            for j in 0..N {
                let mut sum = 0u32;
                for k in 0..N {
                    sum = sum.wrapping_add(a[i * N + k].wrapping_mul(b[k * N + j]));
                }
                c[i * N + j] = c[i * N + j].wrapping_add(sum);
            }
        }
        black_box(&mut c);
    }
    c.iter().fold(0, |sum, value| {
        sum.wrapping_mul(31).wrapping_add(u64::from(*value))
    })
}

fn scalar(scale: u64) -> u64 {
    let (mut x, mut y) = black_box((1.1f64, 0.0f64));
    for _ in 0..scaled(8_000_000, scale) {
        y += x * x - 1.0 / (x + 1.0);
        x = x * 0.99 + 0.01 * y;
        if x > 2.0 {
            x -= 1.0;
        }
        if y > 100.0 {
            y -= 99.0;
        }
    }
    (x + y).to_bits()
}

fn axpy(a: &mut [f64], b: &[f64]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a = *a * 0.999 + *b;
    }
}

#[target_feature(enable = "avx")]
fn axpy_avx(a: &mut [f64], b: &[f64]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a = *a * 0.999 + *b;
    }
}

fn vectors() -> (Vec<f64>, Vec<f64>) {
    let count = 0..1024;
    (
        count.clone().map(f64::from).collect(),
        count.map(|i| f64::from(i) * 0.5).collect(),
    )
}

fn fold(a: &[f64]) -> u64 {
    a.iter()
        .fold(0, |sum, value| sum.rotate_left(1) ^ value.to_bits())
}

fn packed(scale: u64) -> u64 {
    let (mut a, b) = vectors();
    for _ in 0..scaled(60_000, scale) {
        axpy(black_box(&mut a), &b);
    }
    fold(&a)
}

fn avx(scale: u64) -> Option<u64> {
    if !std::arch::is_x86_feature_detected!("avx") {
        return None;
    }
    let (mut a, b) = vectors();
    for _ in 0..scaled(120_000, scale) {
        // SAFETY: the processor has AVX.
        unsafe { axpy_avx(black_box(&mut a), &b) };
    }
    Some(fold(&a))
}

/// y += x * x; x = x * 0.5 + 0.7, in the x87 unit.
fn x87(scale: u64) -> u64 {
    let (half, more, start) = (0.5f64, 0.7f64, 1.1f64);
    let mut result = 0f64;
    // SAFETY: the code loads three values, keeps four on the x87 stack, and pops all of them.
    unsafe {
        std::arch::asm!(
            "fld qword ptr [{half}]",
            "fld qword ptr [{more}]",
            "fldz",
            "fld qword ptr [{start}]",
            "2:",
            "fld st(0)",
            "fmul st(0), st(0)",
            "faddp st(2), st(0)",
            "fmul st(0), st(3)",
            "fadd st(0), st(2)",
            "dec {count}",
            "jne 2b",
            "faddp st(1), st(0)",
            "fstp qword ptr [{result}]",
            "fstp st(0)",
            "fstp st(0)",
            half = in(reg) &half,
            more = in(reg) &more,
            start = in(reg) &start,
            result = in(reg) &mut result,
            count = inout(reg) scaled(6_000_000, scale) => _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
    }
    result.to_bits()
}

#[inline(never)]
fn leaf(x: u64, y: u64) -> u64 {
    (x ^ y).wrapping_add(y >> 3)
}

#[inline(never)]
fn middle(x: u64, y: u64) -> u64 {
    leaf(black_box(x), y).wrapping_add(leaf(y, black_box(x)))
}

fn calls(scale: u64) -> u64 {
    (0..scaled(6_000_000, scale)).fold(1, middle)
}

#[inline(never)]
fn fibonacci(n: u64) -> u64 {
    if n < 2 {
        n
    } else {
        fibonacci(black_box(n) - 1).wrapping_add(fibonacci(n - 2))
    }
}

fn recursion(scale: u64) -> u64 {
    (0..scaled(12, scale))
        .map(|round| fibonacci(28 + (round & 1)))
        .sum()
}

fn indirect_calls(scale: u64) -> u64 {
    let functions: [fn(u64) -> u64; 4] = black_box([
        |x| x.wrapping_add(1),
        |x| x.wrapping_mul(3),
        |x| x ^ 5,
        |x| x >> 1,
    ]);
    (0..scaled(10_000_000, scale)).fold(1, |x, round| functions[((x ^ round) & 3) as usize](x))
}

fn interpreter(scale: u64) -> u64 {
    let mut code: Vec<u8> = (0..256u32).map(|at| ((at * 7 + 3) % 6) as u8).collect();
    code[255] = 6;
    let (mut a, mut b) = (1u64, 2u64);
    for _ in 0..scaled(40_000, scale) {
        let mut at = 0;
        loop {
            let operation = black_box(code[at]);
            at += 1;
            match operation {
                0 => a = a.wrapping_add(b),
                1 => b ^= a,
                2 => a = a.wrapping_mul(5).wrapping_add(1),
                3 => b = b.wrapping_sub(3),
                4 => a >>= 1,
                5 => b = b.wrapping_add(a & 7),
                _ => break,
            }
        }
    }
    a.wrapping_add(b)
}

fn atomics(scale: u64) -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    let cell = AtomicU64::new(0);
    for round in 0..scaled(5_000_000, scale) {
        cell.fetch_add(round, SeqCst);
        if round % 4 == 0 {
            let old = cell.load(SeqCst);
            let _ = cell.compare_exchange(old, old ^ 1, SeqCst, SeqCst);
        }
    }
    cell.load(SeqCst)
}
