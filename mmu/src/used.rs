//! Which entries of a table are in use: found again without looking at the others, so that a flush
//! costs what was filled.

/// A set of indexes below `64 * WORDS`, at most 16,384.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Used<const WORDS: usize> {
    words: [u64; WORDS],
    /// Bit i: word i is not zero.
    summary: [u64; 4],
}

/// The positions of the bits of a word.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let next = (word != 0).then(|| word.trailing_zeros() as usize);
        word &= word.wrapping_sub(1);
        next
    })
}

impl<const WORDS: usize> Used<WORDS> {
    /// None.
    pub const NONE: Self = {
        assert!(WORDS <= 256);
        Used {
            words: [0; WORDS],
            summary: [0; 4],
        }
    };

    /// Adds an index.
    #[inline]
    pub fn add(&mut self, index: usize) {
        let word = index / 64;
        self.words[word] |= 1 << (index % 64);
        self.summary[word / 64] |= 1 << (word % 64);
    }

    /// Takes an index out.
    #[inline]
    pub fn remove(&mut self, index: usize) {
        let word = index / 64;
        self.words[word] &= !(1 << (index % 64));
        if self.words[word] == 0 {
            self.summary[word / 64] &= !(1 << (word % 64));
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.summary == [0; 4]
    }

    /// Calls `each` for every index, in order.
    pub fn each(&self, mut each: impl FnMut(usize)) {
        for (high, &summary) in self.summary.iter().enumerate() {
            for low in bits(summary) {
                let word = high * 64 + low;
                for bit in bits(self.words[word]) {
                    each(word * 64 + bit);
                }
            }
        }
    }

    /// Calls `each` for every index, in order, and takes all of them out.
    pub fn take(&mut self, mut each: impl FnMut(usize)) {
        for high in 0..self.summary.len() {
            for low in bits(std::mem::take(&mut self.summary[high])) {
                let word = high * 64 + low;
                for bit in bits(std::mem::take(&mut self.words[word])) {
                    each(word * 64 + bit);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Used;

    #[test]
    fn finds_what_was_added_and_not_removed() {
        let mut used = Used::<256>::NONE;
        assert!(used.is_empty());
        let all = [0, 1, 63, 64, 4095, 4096, 9000, 16383];
        for index in all {
            used.add(index);
            used.add(index);
        }
        used.remove(64);
        used.remove(9000);
        used.remove(77);
        let expected = [0, 1, 63, 4095, 4096, 16383];
        let mut found = Vec::new();
        used.each(|index| found.push(index));
        assert_eq!(found, expected);
        found.clear();
        used.take(|index| found.push(index));
        assert_eq!(found, expected);
        assert!(used.is_empty());
        used.each(|index| panic!("{index} is still there"));
        used.add(5);
        used.remove(5);
        assert!(used.is_empty());
    }
}
