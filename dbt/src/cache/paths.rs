//! The paths that code took which is entered often, each time that it was recorded. The last of them becomes its trace, and is to
//! be one that serves what comes after as far as any.

/// Recordings that are only looked at, at the least: how far one goes along with the others is known by these.
const LOOKED_AT: usize = 7;
/// Recordings at the most. As good a one as the best of the first seven is not far, unless all go other ways.
const RECORDINGS: usize = 24;
/// In how many recordings a jump through a register or memory has to be met before a trace goes on behind it.
const MET: usize = 3;

/// The paths behind one beginning: the RIP of each instruction, in order.
#[derive(Default)]
pub struct Paths(Vec<Box<[u64]>>);

impl Paths {
    /// Keeps a path, unless it is to become the trace: the first that would have served the others as far as the best of
    /// these does, by the instructions up to where each leaves it, and in any case the last. The paths are not to choose from: their
    /// code may have changed since, or its pages.
    pub fn add(&mut self, path: Vec<u64>) -> bool {
        let known = self.0.len();
        let best = (0..known).map(|at| self.served(&self.0[at], Some(at)));
        let best = best.max().unwrap_or(0);
        // One of them has one less beside it.
        let good = self.served(&path, None) * (known.max(1) - 1) >= best * known;
        let chosen = known >= LOOKED_AT && good || known + 1 >= RECORDINGS;
        if !chosen {
            self.0.push(path.into());
        }
        !chosen
    }

    /// How many instructions of the paths, but for one of them, a trace along `path` would have executed.
    fn served(&self, path: &[u64], but: Option<usize>) -> usize {
        let others = (0..self.0.len()).filter(|&at| Some(at) != but);
        others.map(|at| common(path, &self.0[at])).sum()
    }

    /// Whether an instruction was met often enough, and led to one place each time.
    pub fn lead(&self, from: u64, to: u64) -> bool {
        let steps = self.0.iter().flat_map(|path| path.windows(2));
        let mut targets = steps.filter(|step| step[0] == from).map(|step| step[1]);
        targets.clone().count() >= MET && targets.all(|target| target == to)
    }
}

/// How many instructions two paths have in common before they part.
fn common(one: &[u64], other: &[u64]) -> usize {
    let pairs = one.iter().zip(other);
    pairs.take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_one_way_is_recorded_again_until_it_is_known() {
        let mut paths = Paths::default();
        let kept = (0..RECORDINGS).take_while(|_| paths.add(vec![1, 2, 3]));
        assert_eq!(kept.count(), LOOKED_AT);
    }

    /// A function that calls itself, or returns at once.
    #[test]
    fn the_path_that_serves_farthest_is_chosen() {
        let (leaf, once, twice) = (vec![1, 2, 9], vec![1, 2, 3, 4, 9], vec![1, 2, 3, 4, 5, 6]);
        let mut paths = Paths::default();
        for path in [&leaf, &twice, &leaf, &once, &twice, &leaf, &leaf] {
            assert!(paths.add(path.clone()));
        }
        assert!(paths.add(leaf));
        assert!(!paths.add(twice));
    }

    #[test]
    fn what_always_goes_another_way_has_a_last_recording() {
        let mut paths = Paths::default();
        // Nothing is as good as the two that are alike.
        assert!(paths.add(vec![1, 2, 3]));
        let kept = (1..).take_while(|&way| paths.add(vec![1, way.min(2) + way / 3]));
        assert_eq!(kept.count() + 2, RECORDINGS);
    }

    #[test]
    fn jumps_lead_where_they_have_always_led() {
        let mut paths = Paths::default();
        for round in 0..MET as u64 {
            assert!(!paths.lead(1, 10));
            paths.add(vec![1, 10, 2, 20 + round / 2, 3]);
        }
        assert!(paths.lead(1, 10));
        assert!(!paths.lead(1, 11));
        assert!(!paths.lead(2, 20));
        assert!(!paths.lead(3, 30));
    }
}
