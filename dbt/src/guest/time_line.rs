//! The guest's time-stamp counter as a function of the host's, so that reading it needs neither
//! the machine nor its clock.

/// For how many ticks of the host's counter a line holds: about half a millisecond, in which the
/// clocks cannot part by more than their rates differ.
pub const SPAN: u64 = 1 << 20;
/// Ticks over which a rate is measured at the least.
const LEAST: u64 = 1 << 24;
/// Ticks after which the measurement begins anew.
const MOST: u64 = 1 << 36;
/// Rates beyond these are no rates: one of the counters was set.
const RATES: std::ops::Range<u64> = 1 << 16..1 << 40;

/// A stretch of time in which the machine's time-stamp counter is a line over the host's.
///
/// Emitted code reads the first four fields. Whoever wants the time takes it from the line while it
/// holds, and only then asks the machine and draws the next: so no two readers disagree, and no
/// value is less than one before.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
#[repr(C)]
pub struct TimeLine {
    /// The host's counter where the line begins.
    pub host: u64,
    /// The machine's counter there.
    pub machine: u64,
    /// Machine ticks in 2^32 host ticks.
    pub rate: u64,
    /// For how many host ticks it holds; 0: there is no line.
    pub span: u64,
    /// Where the measurement of the rate began: host and machine.
    first: (u64, u64),
}

impl TimeLine {
    /// The machine's counter, if the line holds at this time of the host.
    #[inline]
    pub fn at(&self, host: u64) -> Option<u64> {
        let passed = host.wrapping_sub(self.host);
        (passed < self.span).then(|| self.value(passed))
    }

    fn value(&self, passed: u64) -> u64 {
        let ticks = (u128::from(passed) * u128::from(self.rate)) >> 32;
        self.machine.wrapping_add(ticks as u64)
    }

    /// Draws the next line through what both counters are now. Returns the machine's counter: a
    /// little more than `exact` where the previous line ran ahead.
    pub fn renew(&mut self, host: u64, exact: u64) -> u64 {
        let given = if self.span == 0 {
            exact
        } else {
            self.value(host.wrapping_sub(self.host).min(self.span - 1))
        };
        // A counter that was set back, as by a restored snapshot, is not held up for long.
        let ahead = given.wrapping_sub(exact);
        let machine = if ahead < SPAN { given } else { exact };
        let (first_host, first_machine) = self.first;
        let passed = host.wrapping_sub(first_host);
        if passed >= LEAST {
            let ticks = exact.wrapping_sub(first_machine);
            let rate = (u128::from(ticks) << 32) / u128::from(passed);
            self.rate = u64::try_from(rate).unwrap_or(u64::MAX);
        }
        if first_host == 0 || passed > MOST {
            self.first = (host, exact);
        }
        let known = RATES.contains(&self.rate);
        if machine != exact && known {
            // Slower by a thousandth, until the clock has caught up.
            self.rate -= self.rate >> 10;
        }
        self.host = host;
        self.machine = machine;
        self.span = if known { SPAN } else { 0 };
        machine
    }

    /// Ends the line: the next reader asks the machine.
    pub fn end(&mut self) {
        *self = TimeLine::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads at each of these host times; the machine's counter is `exact(host)`.
    fn read(line: &mut TimeLine, host: u64, exact: impl Fn(u64) -> u64) -> u64 {
        line.at(host)
            .unwrap_or_else(|| line.renew(host, exact(host)))
    }

    #[test]
    fn never_goes_back_and_stays_near() {
        // A clock that runs faster and slower by 500 millionths in turns.
        let exact = |host: u64| {
            let wave = (host % (1 << 25)) as i64 - (1 << 24);
            (host as i64 / 3 + wave.abs() / 6000) as u64
        };
        let mut line = TimeLine::default();
        let (mut before, mut lines) = (0, 0);
        for step in 0..400_000u64 {
            let host = 1000 + step * 4099;
            let inside = line.at(host).is_some();
            let value = read(&mut line, host, exact);
            assert!(value >= before, "{step}: {value} after {before}");
            assert!(value.abs_diff(exact(host)) < 2000, "{step}");
            before = value;
            lines += u32::from(inside);
        }
        assert!(lines > 380_000, "{lines}");
    }

    #[test]
    fn follows_clocks_that_are_set() {
        let mut line = TimeLine::default();
        for step in 0..40_000u64 {
            read(&mut line, 1 + step * 1000, |host| host * 2);
        }
        assert!(line.at(line.host + 1).is_some());
        // The host slept: its counter went on, the machine's clock did not.
        let host = 1 << 45;
        assert_eq!(read(&mut line, host, |_| 90_000_000), 90_000_000);
        // The host's counter starts again.
        assert_eq!(read(&mut line, 5, |_| 95_000_000), 95_000_000);
        // The machine's was set back.
        line.end();
        assert_eq!(read(&mut line, 7, |_| 5), 5);
    }
}
