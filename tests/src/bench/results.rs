//! What was measured: checked, compared, and printed as a table or as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use super::classes::{GROUPS, group_of};
use super::measure::{Sample, Samples};
use super::statistics::{geometric_mean, median, spread};

/// The series that others are compared with.
pub const NATIVE: &str = "native";
/// kMemvisor with two copies of memory: what is judged.
pub const OURS: &str = "copies=2";
/// The same without mirroring.
pub const SINGLE: &str = "copies=1";

/// All samples of one machine, class by class.
#[derive(Clone, Debug)]
pub struct Series {
    /// The machine's name.
    pub label: String,
    /// The samples, a round each.
    pub samples: BTreeMap<String, Vec<Sample>>,
}

impl Series {
    /// A series without samples.
    pub fn new(label: &str) -> Series {
        Series {
            label: label.to_string(),
            samples: BTreeMap::new(),
        }
    }

    /// Adds a round.
    pub fn add(&mut self, round: Samples) {
        for (name, sample) in round {
            self.samples.entry(name).or_default().push(sample);
        }
    }

    fn times(&self, name: &str) -> Vec<f64> {
        let samples = self.samples.get(name).into_iter().flatten();
        samples.map(|sample| sample.host).collect()
    }

    /// The median in milliseconds.
    pub fn median(&self, name: &str) -> Option<f64> {
        median(&self.times(name))
    }
}

/// How one class compares.
#[derive(Clone, Debug, PartialEq)]
pub struct Ratios {
    /// The class.
    pub name: String,
    /// How many times as fast as the fastest QEMU.
    pub qemu: Option<f64>,
    /// How many times as slow as natively.
    pub native: Option<f64>,
    /// What mirroring costs: time with two copies by time with one.
    pub mirror: Option<f64>,
}

/// Everything of one invocation.
pub struct Results {
    /// The kernel's package.
    pub kernel: String,
    /// Versions by series.
    pub versions: Vec<(String, String)>,
    /// The classes in order.
    pub names: Vec<String>,
    /// The machines.
    pub series: Vec<Series>,
    /// Further figures: name and value.
    pub notes: Vec<(String, f64)>,
}

impl Results {
    fn series(&self, label: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.label == label)
    }

    fn ratio(&self, name: &str, over: &str, under: &str) -> Option<f64> {
        Some(self.series(over)?.median(name)? / self.series(under)?.median(name)?)
    }

    /// The comparisons of every class.
    pub fn ratios(&self) -> Vec<Ratios> {
        let ours = |name: &str| self.series(OURS)?.median(name);
        let fastest = |name: &str| {
            let qemus = self.series.iter().filter(|s| s.label.starts_with("qemu"));
            qemus.filter_map(|s| s.median(name)).min_by(f64::total_cmp)
        };
        let of = |name: &String| Ratios {
            name: name.clone(),
            qemu: fastest(name).and_then(|theirs| Some(theirs / ours(name)?)),
            native: self.ratio(name, OURS, NATIVE),
            mirror: self.ratio(name, OURS, SINGLE),
        };
        self.names.iter().map(of).collect()
    }

    /// Classes whose checksum differs somewhere.
    pub fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for name in &self.names {
            let mut sums: BTreeMap<&str, &str> = BTreeMap::new();
            for series in &self.series {
                for sample in series.samples.get(name).into_iter().flatten() {
                    sums.entry(&sample.checksum).or_insert(&series.label);
                }
            }
            let failed = sums.keys().any(|sum| sum.starts_with("bad000000000"));
            if sums.len() > 1 || failed {
                wrong.push(format!("{name}: {sums:?}"));
            }
        }
        wrong
    }

    /// Classes whose time by the guest's clock is another than by the host's.
    pub fn skewed(&self) -> Vec<String> {
        let mut skewed = Vec::new();
        for series in self.series.iter().filter(|series| series.label != "icount") {
            for (name, samples) in &series.samples {
                for sample in samples {
                    let Some(guest) = sample.guest else { continue };
                    if (guest - sample.host).abs() > 20.0 + sample.host / 10.0 {
                        let host = sample.host;
                        skewed.push(format!(
                            "{name} on {}: {host:.0} ms by the host's clock, {guest:.0} by the guest's",
                            series.label
                        ));
                    }
                }
            }
        }
        skewed
    }

    /// The geometric means of ratios that a filter selects.
    fn mean(&self, chosen: impl Fn(&str) -> bool) -> Ratios {
        let ratios = self.ratios();
        let chosen: Vec<&Ratios> = ratios
            .iter()
            .filter(|ratios| chosen(&ratios.name))
            .collect();
        let of = |field: fn(&Ratios) -> Option<f64>| {
            geometric_mean(chosen.iter().filter_map(|ratios| field(ratios)))
        };
        Ratios {
            name: "geometric mean".to_string(),
            qemu: of(|ratios| ratios.qemu),
            native: of(|ratios| ratios.native),
            mirror: of(|ratios| ratios.mirror),
        }
    }

    /// The tables, for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let number = |value: Option<f64>| value.map_or("-".to_string(), |v| format!("{v:.2}"));
        let _ = write!(text, "{:<10}", "ms");
        for series in &self.series {
            let _ = write!(text, "{:>16}", series.label);
        }
        let _ = writeln!(text, "{:>10}{:>10}{:>10}", "x qemu", "/native", "mirror");
        for ratios in self.ratios() {
            let _ = write!(text, "{:<10}", ratios.name);
            for series in &self.series {
                let times = series.times(&ratios.name);
                let cell = match (median(&times), spread(&times)) {
                    (Some(middle), Some(spread)) => {
                        format!("{middle:.1} ±{:.0}%", spread * 50.0)
                    }
                    _ => "-".to_string(),
                };
                let _ = write!(text, "{cell:>16}");
            }
            let _ = writeln!(
                text,
                "{:>10}{:>10}{:>10}",
                number(ratios.qemu),
                number(ratios.native),
                number(ratios.mirror)
            );
        }
        let _ = writeln!(
            text,
            "\n{:<18}{:>10}{:>8}{:>10}{:>8}{:>10}",
            "geometric means", "x qemu", "mark", "/native", "mark", "mirror"
        );
        let mut row = |name: &str, mean: Ratios, marks: (Option<f64>, Option<f64>)| {
            if mean.qemu.or(mean.native).or(mean.mirror).is_none() {
                return;
            }
            let mark =
                |sign, mark: Option<f64>| mark.map_or(String::new(), |m| format!("{sign}{m}"));
            let _ = writeln!(
                text,
                "{name:<18}{:>10}{:>8}{:>10}{:>8}{:>10}",
                number(mean.qemu),
                mark('≥', marks.0),
                number(mean.native),
                mark('≤', marks.1),
                number(mean.mirror)
            );
        };
        for group in GROUPS {
            let mean = self.mean(|name| group_of(name).name == group.name);
            row(group.name, mean, (group.against_qemu, group.against_native));
        }
        row("all", self.mean(|_| true), (Some(3.5), Some(2.5)));
        for series in &self.series {
            // What is left over: three copies, counted instructions.
            if series.label.starts_with("qemu")
                || [NATIVE, OURS, SINGLE].contains(&series.label.as_str())
            {
                continue;
            }
            let ratios = self.names.iter();
            let ratios = ratios.filter_map(|name| self.ratio(name, &series.label, OURS));
            let mean = number(geometric_mean(ratios));
            let _ = writeln!(
                text,
                "{} takes {mean} times as long as {OURS}",
                series.label
            );
        }
        for (name, value) in &self.notes {
            let _ = writeln!(text, "{name}: {value:.3}");
        }
        text
    }

    /// Everything, for programs.
    pub fn json(&self) -> Value {
        let mean = self.mean(|_| true);
        let class = |ratios: &Ratios| {
            let of_series = |series: &Series| -> (String, Value) {
                let samples = series.samples.get(&ratios.name).into_iter().flatten();
                let (host, guest): (Vec<f64>, Vec<Option<f64>>) =
                    samples.map(|sample| (sample.host, sample.guest)).unzip();
                let value = json!({
                    "median_ms": median(&host),
                    "spread": spread(&host),
                    "host_ms": host,
                    "guest_ms": guest,
                });
                (series.label.clone(), value)
            };
            let machines: serde_json::Map<String, Value> =
                self.series.iter().map(of_series).collect();
            json!({
                "name": ratios.name,
                "group": group_of(&ratios.name).name,
                "times_as_fast_as_qemu": ratios.qemu,
                "times_as_slow_as_native": ratios.native,
                "cost_of_mirroring": ratios.mirror,
                "machines": machines,
            })
        };
        json!({
            "kernel": self.kernel,
            "versions": self.versions.iter().cloned().collect::<BTreeMap<_, _>>(),
            "classes": self.ratios().iter().map(class).collect::<Vec<_>>(),
            "geometric_means": {
                "times_as_fast_as_qemu": mean.qemu,
                "times_as_slow_as_native": mean.native,
                "cost_of_mirroring": mean.mirror,
            },
            "notes": self.notes.iter().cloned().collect::<BTreeMap<_, _>>(),
            "wrong": self.wrong(),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn results() -> Results {
        let series = |label: &str, times: &[(&str, &[f64])]| {
            let mut series = Series::new(label);
            for (name, times) in times {
                for time in *times {
                    let sample = Sample {
                        host: *time,
                        guest: Some(*time),
                        checksum: "ff".to_string(),
                    };
                    series.add([(name.to_string(), sample)].into());
                }
            }
            series
        };
        Results {
            kernel: "linux".to_string(),
            versions: vec![("qemu 7.2".to_string(), "7.2.22".to_string())],
            names: vec!["alu".to_string(), "cc1".to_string()],
            series: vec![
                series(NATIVE, &[("alu", &[10.0]), ("cc1", &[100.0])]),
                series(OURS, &[("alu", &[20.0, 18.0, 22.0]), ("cc1", &[200.0])]),
                series(SINGLE, &[("alu", &[19.0]), ("cc1", &[190.0])]),
                series("qemu 7.2", &[("alu", &[40.0]), ("cc1", &[900.0])]),
                series("qemu 10.0", &[("alu", &[50.0]), ("cc1", &[800.0])]),
            ],
            notes: vec![("translating".to_string(), 0.125)],
        }
    }

    #[test]
    fn the_fastest_qemu_is_what_counts() {
        let ratios = results().ratios();
        assert_eq!((ratios[0].qemu, ratios[0].native), (Some(2.0), Some(2.0)));
        assert_eq!(ratios[1].qemu, Some(4.0));
        let all = results().json();
        let mean = all["geometric_means"]["times_as_fast_as_qemu"].as_f64();
        assert!((mean.unwrap() - 8f64.sqrt()).abs() < 1e-9);
    }

    #[test]
    fn tables_have_every_class_and_series() {
        let table = results().table();
        for text in [
            "alu",
            "cc1",
            "qemu 10.0",
            "20.0 ±10%",
            "4.00",
            "whole programs",
            "≥3.5",
            "0.125",
        ] {
            assert!(table.contains(text), "{text} is not in\n{table}");
        }
    }

    #[test]
    fn wrong_results_and_odd_clocks_are_found() {
        let mut results = results();
        assert_eq!((results.wrong().len(), results.skewed().len()), (0, 0));
        let sample = &mut results.series[3].samples.get_mut("alu").unwrap()[0];
        sample.checksum = "fe".to_string();
        sample.guest = Some(90.0);
        assert_eq!((results.wrong().len(), results.skewed().len()), (1, 1));
        // A command that failed everywhere in the same way is wrong, too.
        for series in &mut results.series {
            for sample in series.samples.get_mut("cc1").unwrap() {
                sample.checksum = "bad0000000000001".to_string();
            }
        }
        assert_eq!(results.wrong().len(), 2);
    }
}
