//! The random numbers of injections: SplitMix64 (Steele, Lea and Flood, 2014), so that a seed
//! means the same schedule in every build and on every host.

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of a seed; every seed will do.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The stream of injection number `id` of a seed. Each injection has its own, so that what
    /// one chooses does not depend on how often those before it had to choose again.
    pub fn of_injection(seed: u64, id: u64) -> Random {
        let mut outer = Random(seed);
        let start = outer.word();
        Random(start ^ Random(id).word())
    }

    /// The next 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    /// A number below `limit`; 0 if the limit is 0. The bias is below 2^-32 for the limits in
    /// use here.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(limit)) >> 64) as u64
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_the_published_one() {
        // Reference output of SplitMix64 for seed 1234567.
        let mut random = Random::new(1_234_567);
        assert_eq!(random.word(), 6_457_827_717_110_365_317);
        assert_eq!(random.word(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn numbers_stay_below_their_limit_and_reach_all_of_it() {
        let mut random = Random::new(7);
        let mut seen = [false; 10];
        for _ in 0..1000 {
            seen[random.below(10) as usize] = true;
        }
        assert_eq!(seen, [true; 10]);
        assert_eq!(random.below(0), 0);
    }

    #[test]
    fn injections_have_streams_of_their_own() {
        let first = Random::of_injection(1, 0).word();
        assert_ne!(first, Random::of_injection(1, 1).word());
        assert_ne!(first, Random::of_injection(2, 0).word());
        assert_eq!(first, Random::of_injection(1, 0).word());
    }
}
