//! Where jumps and calls through registers and memory led, behind the beginning of code that is entered
//! often, each time that it was recorded.

/// How often code is recorded, if it is no loop, before its trace is made.
const RECORDINGS: u8 = 4;

/// One jump or call.
#[derive(Clone, Copy)]
struct Way {
    /// Its RIP.
    from: u64,
    /// Where it led; `None`: to several places.
    to: Option<u64>,
    /// How often it was met.
    times: u8,
}

/// What is known of those behind one beginning.
#[derive(Clone, Default)]
pub struct Ways {
    ways: Vec<Way>,
    recordings: u8,
}

impl Ways {
    /// Whether the recording that comes next is the last one: it follows only what has led to one
    /// place.
    pub fn are_known(&self) -> bool {
        self.recordings + 1 >= RECORDINGS
    }

    /// A recording has ended.
    pub fn recorded(&mut self) {
        self.recordings += 1;
    }

    /// Notes where a jump or call leads. Whether a recording goes on there.
    pub fn follow(&mut self, from: u64, to: u64) -> bool {
        let known = self.are_known();
        let Some(way) = self.ways.iter_mut().find(|way| way.from == from) else {
            self.ways.push(Way {
                from,
                to: Some(to),
                times: 1,
            });
            return !known;
        };
        way.times = way.times.saturating_add(1);
        if way.to != Some(to) {
            way.to = None;
        }
        !known || (way.to.is_some() && way.times >= RECORDINGS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_to_one_place_is_followed() {
        let mut ways = Ways::default();
        for round in 0..u64::from(RECORDINGS) {
            let last = ways.are_known();
            assert_eq!(last, round + 1 == u64::from(RECORDINGS));
            assert!(ways.follow(1, 10));
            assert_eq!(ways.follow(2, 20 + round / 3), !last);
            // Only met in some of them.
            if round % 2 == 1 {
                assert_eq!(ways.follow(3, 30), !last);
            }
            ways.recorded();
        }
    }
}
