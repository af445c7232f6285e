//! Measures kMemvisor beside qemu-system-x86_64 and the host itself: the same kernel, file systems
//! and programs, in turns, by the host's clock on what the console shows.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use emulator::debian::{self, Flavour};
use serde_json::Value;
use tests::bench::classes::{self, PROGRAMS};
use tests::bench::guests::{self, Workload};
use tests::bench::measure::{self, Reader};
use tests::bench::peers::{self, Machine, VARIABLE};
use tests::bench::plot;
use tests::bench::results::{NATIVE, OURS, Results, SINGLE, Series};
use tests::kmemvisor;

const USAGE: &str = "usage: bench [--rounds N] [--only CLASS,...] [--json FILE] [--plot FILE.svg]
             [--scale THOUSANDTHS] [--kernel cloud-amd64|amd64] [--copies-3] [--icount] [--fresh]
             [--mirror-compare] [--ours-only] [--options 'kmemvisor options']
             [--qemu-options 'options'] [--patience SECONDS]
--mirror-compare runs neither QEMU nor the host; --ours-only not even a machine without a mirror.
--fresh adds a machine that keeps no translations: the others find those of the rounds before.";

struct Settings {
    rounds: usize,
    scale: u32,
    flavour: Flavour,
    only: Vec<String>,
    options: Vec<String>,
    qemu_options: Vec<String>,
    json: Option<PathBuf>,
    plot: Option<PathBuf>,
    three: bool,
    counted: bool,
    fresh: bool,
    peers: bool,
    single: bool,
    patience: Duration,
}

fn settings() -> Result<Settings> {
    let mut settings = Settings {
        rounds: 3,
        scale: 1000,
        flavour: Flavour::Cloud,
        only: Vec::new(),
        options: Vec::new(),
        qemu_options: Vec::new(),
        json: None,
        plot: None,
        three: false,
        counted: false,
        fresh: false,
        peers: true,
        single: true,
        patience: Duration::from_secs(900),
    };
    let mut args = env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .with_context(|| format!("{arg}: a value is missing"))
        };
        let words = |text: String| text.split_whitespace().map(str::to_string).collect();
        match arg.as_str() {
            "--rounds" => settings.rounds = value()?.parse().context("--rounds")?,
            "--scale" => settings.scale = value()?.parse().context("--scale")?,
            "--only" => settings.only = value()?.split(',').map(str::to_string).collect(),
            "--kernel" => {
                settings.flavour =
                    Flavour::parse(&value()?).context("--kernel: no such flavour")?;
            }
            "--options" => settings.options = words(value()?),
            "--qemu-options" => settings.qemu_options = words(value()?),
            "--json" => settings.json = Some(PathBuf::from(value()?)),
            "--plot" => settings.plot = Some(PathBuf::from(value()?)),
            "--copies-3" => settings.three = true,
            "--icount" => settings.counted = true,
            "--fresh" => settings.fresh = true,
            "--mirror-compare" => settings.peers = false,
            "--ours-only" => (settings.peers, settings.single) = (false, false),
            "--patience" => {
                settings.patience = Duration::from_secs(value()?.parse().context("--patience")?);
            }
            _ => bail!("{arg}: there is no such option\n{USAGE}"),
        }
    }
    if settings.rounds == 0 || settings.scale == 0 {
        bail!("--rounds and --scale start at 1");
    }
    Ok(settings)
}

/// kMemvisor with so many copies, and where it keeps translations: `off`, or a directory.
fn ours(label: &str, copies: usize, code_cache: &str, more: &[String]) -> Machine {
    let mut options = vec!["-accel".to_string(), format!("tcg,code-cache={code_cache}")];
    options.extend_from_slice(more);
    Machine::ours(label, &kmemvisor(), copies, &options)
}

/// The machines to compare, ours first. `code`: where these keep translations from round to round.
fn machines(settings: &Settings, cache: &Path, code: &Path) -> Vec<Machine> {
    let code = code.display().to_string();
    let mut machines = vec![ours(OURS, 2, &code, &settings.options)];
    if settings.single {
        machines.push(ours(SINGLE, 1, &code, &settings.options));
    }
    if settings.three {
        machines.push(ours("copies=3", 3, &code, &settings.options));
    }
    if settings.fresh {
        machines.push(ours("fresh", 2, "off", &settings.options));
    }
    if settings.counted {
        let mut options = settings.options.clone();
        options.extend(["-icount", "shift=0"].map(str::to_string));
        machines.push(ours("icount", 2, "off", &options));
    }
    if settings.peers {
        let (peers, missing) = peers::find(cache, &settings.qemu_options);
        for why in missing {
            eprintln!("bench: {why}");
        }
        if peers.is_empty() {
            eprintln!("bench: without QEMU; {VARIABLE} can name one");
        }
        machines.extend(peers);
    }
    machines
}

/// What was translated during a boot that found no translations, as parts of it.
fn boot_shares(
    machine: &Machine,
    workload: &Workload,
    patience: Duration,
) -> Result<Vec<(String, f64)>> {
    let folder = tempfile::tempdir()?;
    let report = folder.path().join("report.json");
    let mut command = machine.command(workload);
    command.arg("-report").arg(&report);
    let start = std::time::Instant::now();
    measure::run(&mut command, patience)?;
    let whole = start.elapsed().as_secs_f64();
    let text = fs::read_to_string(&report).context("the machine's report")?;
    let report: Value = serde_json::from_str(&text)?;
    let translation = &report["translation"];
    let number = |name: &str| translation[name].as_f64().unwrap_or(0.0);
    Ok(vec![
        (
            "share of a boot spent translating".to_string(),
            number("nanoseconds") / 1e9 / whole,
        ),
        (
            "blocks translated in a boot".to_string(),
            number("translated"),
        ),
    ])
}

fn run() -> Result<()> {
    let settings = settings()?;
    let names = classes::select(&settings.only).map_err(anyhow::Error::msg)?;
    let cache = debian::cache_directory().context("neither XDG_CACHE_HOME nor HOME is set")?;
    let code = tempfile::tempdir()?;
    let machines = machines(&settings, &cache, code.path());
    let program = guests::build_guest_bench()?;
    let is_program = |name: &&str| PROGRAMS.iter().any(|program| program.name == *name);
    let (programs, small): (Vec<&'static str>, Vec<&'static str>) =
        names.iter().partition(|name| is_program(name));
    let folder = tempfile::tempdir()?;
    let mut workloads = Vec::new();
    if !small.is_empty() {
        workloads.push(guests::small(
            &cache,
            settings.flavour,
            &program,
            &small,
            settings.scale,
        )?);
    }
    if !programs.is_empty() {
        workloads.push(guests::whole(
            &cache,
            settings.flavour,
            &program,
            &programs,
            folder.path(),
        )?);
    }
    let measured = measure_all(&settings, &machines, &workloads);
    let title = workloads
        .first()
        .map(|workload| workload.prepared.title.clone());
    let notes = if names.contains(&classes::BOOT) {
        let boot = guests::small(&cache, settings.flavour, &program, &[], settings.scale)?;
        let fresh = ours(OURS, 2, "off", &settings.options);
        let shares = boot_shares(&fresh, &boot, settings.patience);
        workloads.push(boot);
        shares
    } else {
        Ok(Vec::new())
    };
    for workload in &workloads {
        let _ = fs::remove_file(&workload.prepared.initrd);
    }
    let (series, skipped) = measured?;
    let versions = machines
        .iter()
        .map(|machine| (machine.label.clone(), machine.version.clone()));
    let results = Results {
        kernel: title.unwrap_or_default(),
        versions: versions.collect(),
        names: names.iter().map(|name| name.to_string()).collect(),
        series,
        notes: notes?,
    };
    println!("\n{}", results.table());
    for line in skipped {
        println!("{line}");
    }
    for line in results.skewed() {
        println!("odd clock: {line}");
    }
    if let Some(path) = &settings.json {
        let text = serde_json::to_string_pretty(&results.json())? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &settings.plot {
        let text = plot::svg(&results);
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let wrong = results.wrong();
    if !wrong.is_empty() {
        bail!("wrong results:\n{}", wrong.join("\n"));
    }
    Ok(())
}

/// Every workload on every machine and natively, in turns.
fn measure_all(
    settings: &Settings,
    machines: &[Machine],
    workloads: &[Workload],
) -> Result<(Vec<Series>, BTreeSet<String>)> {
    let mut native = Series::new(NATIVE);
    let mut series: Vec<Series> = machines.iter().map(|m| Series::new(&m.label)).collect();
    let mut skipped = BTreeSet::new();
    let native_possible = workloads.iter().any(|workload| workload.native.is_some());
    for round in 1..=settings.rounds {
        for workload in workloads {
            let mut measure = |series: &mut Series, command: &mut Command| -> Result<()> {
                let Reader {
                    mut samples,
                    skipped: names,
                    ..
                } = measure::run(command, settings.patience)?;
                // With other programs in memory a boot is another one.
                if workload.megabytes != 512 {
                    samples.remove(classes::BOOT);
                }
                let lacks = |name: &&&str| {
                    !samples.contains_key(**name) && !names.iter().any(|n| n == **name)
                };
                if let Some(name) = workload.names.iter().find(lacks) {
                    bail!("{name} did not run on {}", series.label);
                }
                let total: f64 = samples.values().map(|sample| sample.host).sum();
                println!(
                    "round {round}: {:<12} {} classes, {:.1} s",
                    series.label,
                    samples.len(),
                    total / 1e3
                );
                let names = names.into_iter();
                skipped.extend(
                    names.map(|name| format!("{name} is not possible on {}", series.label)),
                );
                series.add(samples);
                // Let the host settle between two programs.
                std::thread::sleep(Duration::from_millis(200));
                Ok(())
            };
            if let Some(words) = workload.native.as_ref().filter(|_| settings.peers) {
                let mut command = Command::new(&words[0]);
                command
                    .args(&words[1..])
                    .env_clear()
                    .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
                measure(&mut native, &mut command)?;
            } else if settings.peers && !workload.names.is_empty() {
                eprintln!("bench: programs cannot be run natively: chroot is not allowed");
            }
            for (machine, series) in machines.iter().zip(&mut series) {
                measure(series, &mut machine.command(workload))?;
            }
        }
    }
    if native_possible && settings.peers {
        series.insert(0, native);
    }
    Ok((series, skipped))
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
