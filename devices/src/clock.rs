//! Virtual time: conversions between nanoseconds and the ticks of a crystal.
//!
//! Every chip computes from the same absolute nanosecond, so a register read
//! is a pure function of state and time and a run can be replayed exactly.

/// Nanoseconds in a second.
pub const NANOSECONDS: u64 = 1_000_000_000;

/// A deadline that never comes.
pub const NEVER: u64 = u64::MAX;

/// Ticks of a `hz` clock that have passed at `now` nanoseconds, rounded down.
pub fn ticks_at(now: u64, hz: u64) -> u64 {
    ((u128::from(now) * u128::from(hz)) / u128::from(NANOSECONDS)) as u64
}

/// First nanosecond at which [`ticks_at`] reaches `tick`; [`NEVER`] if beyond reach.
pub fn time_of_tick(tick: u64, hz: u64) -> u64 {
    if hz == 0 {
        return NEVER;
    }
    let time = (u128::from(tick) * u128::from(NANOSECONDS)).div_ceil(u128::from(hz));
    u64::try_from(time).unwrap_or(NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_reached_exactly_at_its_time() {
        for hz in [1_193_182, 32_768, 3_579_545, 2_100_000_000] {
            for tick in [1, 2, 7, 1000, 65_536, 123_456_789_012] {
                let time = time_of_tick(tick, hz);
                assert!(ticks_at(time, hz) >= tick);
                assert!(ticks_at(time - 1, hz) < tick);
            }
        }
        assert_eq!(time_of_tick(u64::MAX, 1), NEVER);
    }
}
