//! What to inject, when and where: the value of `-inject`.

use std::collections::HashSet;

/// How far apart injections are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interval {
    /// Guest instructions.
    Instructions(u64),
    /// Nanoseconds of virtual time.
    Time(u64),
}

/// When to inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Once every interval, the first time after one interval.
    Every(Interval),
    /// Once, when exactly this many guest instructions have been executed.
    At(u64),
}

/// Which copy is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetCopy {
    /// The native copy.
    Native,
    /// One of the mirrors.
    Mirror,
    /// Any copy.
    Any,
}

/// Which pages are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// Pages in use, every class of them.
    Used,
    /// Any page of RAM.
    Any,
    /// Page tables of the current address space.
    PageTables,
    /// Kernel text and data.
    Kernel,
    /// User text, data and stack.
    User,
}

/// How much of a page is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// One line of 64 bytes.
    Line,
    /// All 64 lines.
    Frame,
    /// Half of the time one line, a quarter several, a quarter the frame.
    Mixed,
}

/// A plan of injections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Seed of every choice.
    pub seed: u64,
    /// The schedule.
    pub when: When,
    /// Injections at the most.
    pub count: u64,
    /// Which copy.
    pub target: TargetCopy,
    /// Which pages.
    pub place: Where,
    /// How much.
    pub size: Size,
    /// Whether the last good copy of a line may be taken.
    pub allow_loss: bool,
}

/// A plan that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No such key.
    #[error("unknown key '{0}': possible are {KEYS}")]
    UnknownKey(String),
    /// A key without a value.
    #[error("'{0}' needs a value: {0}=...")]
    NoValue(String),
    /// A key given twice.
    #[error("'{0}' is given twice")]
    Twice(String),
    /// A value that is not possible.
    #[error("{key}={value}: possible is {possible}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
        /// What can be given.
        possible: &'static str,
    },
    /// Keys that exclude each other, or the machine.
    #[error("{0}")]
    Impossible(String),
}

const KEYS: &str = "seed, every, at, count, target, where, size, allow-loss";
const EVERY: &str = "a number of instructions (200k, 5M, 1G) or a time (500us, 50ms, 2s), above 0";

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            seed: 1,
            when: When::Every(Interval::Instructions(1_000_000)),
            count: u64::MAX,
            target: TargetCopy::Any,
            place: Where::Used,
            size: Size::Mixed,
            allow_loss: false,
        }
    }
}

impl Plan {
    /// Parses `seed=S,every=200k|50ms,count=N,target=native|mirror|any,
    /// where=used|any|page-tables|kernel|user,at=N,size=line|frame|mixed,allow-loss=on|off`;
    /// what is left out has its default ([`Plan::default`]; with `at`, a count of 1).
    pub fn parse(text: &str) -> Result<Plan, PlanError> {
        let mut plan = Plan::default();
        let mut seen = HashSet::new();
        for item in text.split(',').filter(|item| !item.is_empty()) {
            let (key, value) = item.split_once('=').unwrap_or((item, ""));
            if !KEYS.split(", ").any(|known| known == key) {
                return Err(PlanError::UnknownKey(key.to_string()));
            }
            if value.is_empty() {
                return Err(PlanError::NoValue(key.to_string()));
            }
            if !seen.insert(key) {
                return Err(PlanError::Twice(key.to_string()));
            }
            plan.set(key, value)?;
        }
        if seen.contains("at") {
            if seen.contains("every") {
                return Err(PlanError::Impossible(
                    "at= names one instruction and every= a period: give one of the two".into(),
                ));
            }
            if seen.contains("count") && plan.count != 1 {
                return Err(PlanError::Impossible(format!(
                    "at= is one injection: count={} is not possible with it",
                    plan.count
                )));
            }
            plan.count = 1;
        }
        Ok(plan)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), PlanError> {
        let bad = |key, possible| PlanError::BadValue {
            key,
            value: value.to_string(),
            possible,
        };
        match key {
            "seed" => {
                let hex = value
                    .strip_prefix("0x")
                    .map(|digits| u64::from_str_radix(digits, 16));
                self.seed = hex
                    .unwrap_or_else(|| value.parse())
                    .map_err(|_| bad("seed", "a number of 64 bits, decimal or 0x..."))?;
            }
            "every" => {
                let interval = interval(value).ok_or_else(|| bad("every", EVERY))?;
                self.when = When::Every(interval);
            }
            "at" => {
                let at = count(value)
                    .ok_or_else(|| bad("at", "a number of instructions (123456, 200k, 5M)"))?;
                self.when = When::At(at);
            }
            "count" => {
                self.count = count(value)
                    .filter(|&count| count > 0)
                    .ok_or_else(|| bad("count", "a number above 0 (1000, 10k)"))?;
            }
            "target" => {
                self.target = match value {
                    "native" => TargetCopy::Native,
                    "mirror" => TargetCopy::Mirror,
                    "any" => TargetCopy::Any,
                    _ => return Err(bad("target", "native, mirror or any")),
                }
            }
            "where" => {
                self.place = match value {
                    "used" => Where::Used,
                    "any" => Where::Any,
                    "page-tables" => Where::PageTables,
                    "kernel" => Where::Kernel,
                    "user" => Where::User,
                    _ => return Err(bad("where", "used, any, page-tables, kernel or user")),
                }
            }
            "size" => {
                self.size = match value {
                    "line" => Size::Line,
                    "frame" => Size::Frame,
                    "mixed" => Size::Mixed,
                    _ => return Err(bad("size", "line, frame or mixed")),
                }
            }
            _ => {
                self.allow_loss = match value {
                    "on" => true,
                    "off" => false,
                    _ => return Err(bad("allow-loss", "on or off")),
                }
            }
        }
        Ok(())
    }

    /// Checks the plan against a machine with this many copies of each page.
    pub fn check(&self, copies: usize) -> Result<(), PlanError> {
        if copies < 2 && self.target == TargetCopy::Mirror {
            return Err(PlanError::Impossible(
                "target=mirror: memory has no mirror; use -mirror copies=2, or target=native"
                    .into(),
            ));
        }
        Ok(())
    }

    /// Whether the schedule needs an engine that counts guest instructions exactly.
    pub fn needs_counting(&self) -> bool {
        match self.when {
            When::At(_) | When::Every(Interval::Instructions(_)) => true,
            When::Every(Interval::Time(_)) => false,
        }
    }
}

/// A number with an optional decimal multiplier.
fn count(text: &str) -> Option<u64> {
    let (digits, factor) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 1_000),
        b'M' => (&text[..text.len() - 1], 1_000_000),
        b'G' => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1),
    };
    number(digits)?.checked_mul(factor)
}

fn number(digits: &str) -> Option<u64> {
    // `parse` alone would take a sign.
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

fn interval(text: &str) -> Option<Interval> {
    for (unit, nanoseconds) in [
        ("ns", 1),
        ("us", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
    ] {
        if let Some(digits) = text.strip_suffix(unit) {
            let time = number(digits)?.checked_mul(nanoseconds)?;
            return (time > 0).then_some(Interval::Time(time));
        }
    }
    count(text)
        .filter(|&count| count > 0)
        .map(Interval::Instructions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_plan() {
        let plan = Plan::parse(
            "seed=0x10,every=200k,count=3k,target=mirror,where=page-tables,size=frame,allow-loss=on",
        );
        assert_eq!(
            plan,
            Ok(Plan {
                seed: 16,
                when: When::Every(Interval::Instructions(200_000)),
                count: 3000,
                target: TargetCopy::Mirror,
                place: Where::PageTables,
                size: Size::Frame,
                allow_loss: true,
            })
        );
        assert_eq!(Plan::parse(""), Ok(Plan::default()));
    }

    #[test]
    fn intervals_are_instructions_or_time() {
        for (text, expected) in [
            ("every=50ms", Interval::Time(50_000_000)),
            ("every=3s", Interval::Time(3_000_000_000)),
            ("every=7us", Interval::Time(7_000)),
            ("every=123", Interval::Instructions(123)),
            ("every=2G", Interval::Instructions(2_000_000_000)),
        ] {
            let plan = Plan::parse(text).unwrap();
            assert_eq!(plan.when, When::Every(expected), "{text}");
            assert_eq!(
                plan.needs_counting(),
                matches!(expected, Interval::Instructions(_))
            );
        }
        assert_eq!(Plan::parse("at=5M").unwrap().when, When::At(5_000_000));
        assert_eq!(Plan::parse("at=5M").unwrap().count, 1);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("sed=1", "'sed'"),
            ("seed", "'seed' needs a value"),
            ("seed=1,seed=2", "twice"),
            ("seed=-1", "seed=-1"),
            ("every=0", "every=0"),
            ("every=+5", "every=+5"),
            ("every=5m", "every=5m"),
            ("every=99999999999G", "every="),
            ("count=0", "above 0"),
            ("target=both", "native, mirror or any"),
            ("where=heap", "page-tables"),
            ("size=page", "line, frame or mixed"),
            ("allow-loss=yes", "on or off"),
            ("at=5,every=9", "one of the two"),
            ("at=5,count=2", "count=2"),
            ("every=ms", "every=ms"),
        ] {
            let error = Plan::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let plan = Plan::parse("target=mirror").unwrap();
        assert!(plan.check(1).unwrap_err().to_string().contains("no mirror"));
        assert_eq!(plan.check(2), Ok(()));
    }
}
