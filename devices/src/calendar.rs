//! The Gregorian calendar as a clock chip counts it.

/// A date and a time of day. Fields a guest wrote may be out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateTime {
    /// 0 to 59.
    pub second: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 1 (Sunday) to 7.
    pub weekday: u8,
    /// 1 to 31.
    pub day: u8,
    /// 1 to 12.
    pub month: u8,
    /// Full year.
    pub year: i64,
}

impl DateTime {
    /// The date and time at `seconds` since 1970-01-01 00:00 UTC.
    pub fn from_unix(seconds: i64) -> DateTime {
        let days = seconds.div_euclid(86_400);
        let in_day = seconds.rem_euclid(86_400);
        // Years that begin in March put the leap day at their end; 400 of them
        // have 146,097 days, and 0000-03-01 is day -719,468.
        let shifted = days.wrapping_add(719_468);
        let era = shifted.div_euclid(146_097);
        let of_era = shifted.rem_euclid(146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * of_year + 2) / 153;
        let month = if march_month < 10 {
            march_month + 3
        } else {
            march_month - 9
        };
        DateTime {
            second: (in_day % 60) as u8,
            minute: (in_day / 60 % 60) as u8,
            hour: (in_day / 3600) as u8,
            weekday: (days.wrapping_add(4).rem_euclid(7) + 1) as u8,
            day: (of_year - (153 * march_month + 2) / 5 + 1) as u8,
            month: month as u8,
            year: year_of_era + era * 400 + i64::from(month <= 2),
        }
    }

    /// Seconds since 1970; fields out of range carry into the next larger one.
    pub fn to_unix(self) -> i64 {
        let months = i64::from(self.month) - 3;
        let year = self.year + months.div_euclid(12);
        let month = months.rem_euclid(12);
        let of_year = (153 * month + 2) / 5 + i64::from(self.day) - 1;
        let days =
            365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + of_year
                - 719_468;
        days * 86_400
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days() {
        let leap = DateTime::from_unix(951_782_400);
        assert_eq!(
            (leap.year, leap.month, leap.day, leap.weekday),
            (2000, 2, 29, 3)
        );
        let epoch = DateTime::from_unix(0);
        assert_eq!(
            (epoch.year, epoch.month, epoch.day, epoch.weekday),
            (1970, 1, 1, 5)
        );
        let late = DateTime::from_unix(4_102_444_799);
        assert_eq!(
            (late.year, late.month, late.day, late.hour, late.second),
            (2099, 12, 31, 23, 59)
        );
    }

    #[test]
    fn there_and_back() {
        for seconds in (-4_000_000_000i64..8_000_000_000).step_by(86_399 * 7) {
            assert_eq!(DateTime::from_unix(seconds).to_unix(), seconds);
        }
    }
}
