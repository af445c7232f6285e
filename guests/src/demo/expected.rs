//! What the program computes, in Rust and without its memory layout.

use super::layout::*;

/// The digest after that many rounds.
pub fn expected(rounds: u32) -> u64 {
    let mut digest = SEED;
    let mut kernel = vec![0u64; KERNEL_WORDS as usize];
    for _ in 0..rounds.clamp(1, 1000) {
        let words = words(digest);
        let parts: [fn(&[u64]) -> u64; 5] = [checksum, primes, list, fibonacci, product];
        for part in parts {
            digest = mix(digest, part(&words));
        }
        digest = mix(digest, stir(&mut kernel, digest));
    }
    digest
}

fn mix(digest: u64, value: u64) -> u64 {
    (digest.rotate_left(13) ^ value).wrapping_mul(FACTOR)
}

fn words(digest: u64) -> Vec<u64> {
    let mut state = digest | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    std::iter::repeat_with(next)
        .take(WORD_COUNT as usize)
        .collect()
}

fn checksum(words: &[u64]) -> u64 {
    words.iter().fold(FNV_OFFSET, |hash, word| {
        (hash ^ word).wrapping_mul(FNV_PRIME)
    })
}

fn primes(_: &[u64]) -> u64 {
    let limit = SIEVE_LIMIT as usize;
    let mut prime = vec![true; limit];
    for number in 2..limit {
        if prime[number] {
            for multiple in (number * number..limit).step_by(number) {
                prime[multiple] = false;
            }
        }
    }
    prime[2..].iter().filter(|&&prime| prime).count() as u64
}

fn list(words: &[u64]) -> u64 {
    let mut node = 0u32;
    let mut sum = 0u64;
    for _ in 0..LIST_NODES {
        sum = sum.rotate_left(1).wrapping_add(words[node as usize]);
        node = node.wrapping_mul(LIST_FACTOR).wrapping_add(LIST_STEP) % LIST_NODES;
    }
    sum
}

fn fibonacci(_: &[u64]) -> u64 {
    (0..FIBONACCI).fold((0, 1), |(a, b), _| (b, a + b)).0
}

fn product(words: &[u64]) -> u64 {
    let order = ORDER as usize;
    let mut sum = 0u64;
    for row in 0..order {
        for column in 0..order {
            let value: u64 = (0..order)
                .map(|k| {
                    let left = words[row * order + k] & 1023;
                    let right = words[k * order + column] >> 32 & 1023;
                    left * right
                })
                .sum();
            sum = sum.rotate_left(3).wrapping_add(value);
        }
    }
    sum
}

fn stir(table: &mut [u64], value: u64) -> u64 {
    let mut hash = 0u64;
    for (index, word) in (0u64..).zip(table) {
        *word = word
            .wrapping_mul(FACTOR)
            .wrapping_add(value)
            .wrapping_add(index);
        hash = hash.rotate_left(5) ^ *word;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(primes(&[]), 78_498);
        assert_eq!(fibonacci(&[]), 6765);
    }
}
