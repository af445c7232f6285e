//! Measures kMemvisor beside qemu-system-x86_64: the same kernel and file system, in turns, by
//! the host's clock on what the console shows. Prints medians and ratios.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use emulator::debian::{self, Flavour, Prepared, Progress, Recipe, Task};
use serde_json::json;
use tests::loops::LOOPS;
use tests::{Guest, kmemvisor};

const USAGE: &str = "usage: bench [--rounds N] [--scale THOUSANDTHS] [--kernel cloud-amd64|amd64] \
                     [--options 'kmemvisor options'] [--qemu-options 'options'] [--json FILE]
QEMU in the environment names another qemu-system-x86_64.";
const SHELL: &str = "bench: the shell is there";
/// No guest needs so long.
const PATIENCE: u64 = 600;

struct Settings {
    rounds: usize,
    scale: u32,
    flavour: Flavour,
    options: Vec<String>,
    qemu_options: Vec<String>,
    json: Option<PathBuf>,
}

fn settings() -> Result<Settings> {
    let mut settings = Settings {
        rounds: 3,
        scale: 1000,
        flavour: Flavour::Cloud,
        options: Vec::new(),
        qemu_options: Vec::new(),
        json: None,
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
            "--kernel" => {
                settings.flavour =
                    Flavour::parse(&value()?).context("--kernel: no such flavour")?;
            }
            "--options" => settings.options = words(value()?),
            "--qemu-options" => settings.qemu_options = words(value()?),
            "--json" => settings.json = Some(PathBuf::from(value()?)),
            _ => bail!("{arg}: there is no such option\n{USAGE}"),
        }
    }
    if settings.rounds == 0 || settings.scale == 0 {
        bail!("--rounds and --scale start at 1");
    }
    Ok(settings)
}

/// Seconds from the start to the shell, then of each loop.
#[derive(Clone, Debug)]
struct Times(Vec<f64>);

fn measure(command: &mut Command, checksums: &[String]) -> Result<Times> {
    let start = Instant::now();
    let mut guest = Guest::spawn(command);
    let shell = guest.expect(SHELL, PATIENCE);
    let mut times = vec![(shell - start).as_secs_f64()];
    for (program, checksum) in LOOPS.iter().zip(checksums) {
        let begin = guest.expect(&format!("begin {}", program.name), PATIENCE);
        let over = match program.name {
            "store" => "stored".to_string(),
            name => format!("end {name}"),
        };
        let end = guest.expect(&over, PATIENCE);
        guest.expect(checksum, PATIENCE);
        times.push((end - begin).as_secs_f64());
    }
    guest.wait(PATIENCE);
    Ok(Times(times))
}

/// Runs a program here: its checksum, and how long it takes natively.
fn natively(folder: &Path, name: &str, program: &[u8]) -> Result<(String, f64)> {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join(name);
    fs::write(&path, program)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    let start = Instant::now();
    let output = Command::new(&path).output()?;
    let elapsed = start.elapsed().as_secs_f64();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let checksum = text.split_whitespace().last().unwrap_or_default();
    if !output.status.success() || checksum.len() != 16 {
        bail!("{name} fails on this host: {text}");
    }
    Ok((checksum.to_string(), elapsed))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        (values[middle - 1] + values[middle]) / 2.0
    }
}

fn command(program: &Path, prepared: &Prepared, options: &[String]) -> Command {
    let mut command = Command::new(program);
    command
        .args(["-m", "512", "-nographic", "-no-reboot", "-nodefaults"])
        .args(["-serial", "mon:stdio", "-kernel"])
        .arg(&prepared.kernel)
        .arg("-initrd")
        .arg(&prepared.initrd)
        .args(["-append", "console=ttyS0 panic=-1 quiet"])
        .args(options);
    command
}

fn run() -> Result<()> {
    let settings = settings()?;
    let qemu = env::var_os("QEMU").map_or_else(|| "qemu-system-x86_64".into(), PathBuf::from);
    let version = Command::new(&qemu).arg("--version").output();
    let version =
        version.with_context(|| format!("{} cannot be run; QEMU names another", qemu.display()))?;
    let version = String::from_utf8_lossy(&version.stdout);
    let version = version
        .lines()
        .next()
        .unwrap_or("an unknown QEMU")
        .to_string();

    let folder = tempfile::tempdir()?;
    let mut programs = Vec::new();
    let mut checksums = Vec::new();
    let mut native = vec![None];
    let mut script = format!("echo '{SHELL}'\n");
    for row in LOOPS {
        let program = (row.program)(settings.scale)?;
        let (checksum, seconds) = natively(folder.path(), row.name, &program)?;
        checksums.push(checksum);
        native.push(Some(seconds));
        programs.push((format!("usr/bin/loop-{}", row.name), program));
        script += &format!("loop-{}\n", row.name);
    }
    let cache = debian::cache_directory().context("neither XDG_CACHE_HOME nor HOME is set")?;
    let recipe = Recipe {
        flavour: settings.flavour,
        task: Task::Script(script),
        programs,
        ..Recipe::default()
    };
    let prepared = debian::prepare(&cache, &recipe, &Progress::new())?;
    println!("{}; {version}", prepared.title);

    let ours_program = kmemvisor();
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for round in 1..=settings.rounds {
        let mut our = command(&ours_program, &prepared, &settings.options);
        let mut qemus = command(&qemu, &prepared, &settings.qemu_options);
        qemus.args(["-accel", "tcg"]);
        for (name, command, times) in [
            ("kmemvisor", &mut our, &mut ours),
            ("qemu", &mut qemus, &mut theirs),
        ] {
            let measured = measure(command, &checksums)?;
            println!("round {round} {name:<10} {:.3?}", measured.0);
            times.push(measured);
            // Let the host settle between two programs.
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    fs::remove_file(&prepared.initrd)?;

    let names = ["boot to shell"]
        .into_iter()
        .chain(LOOPS.iter().map(|row| row.name));
    let mut results = Vec::new();
    println!();
    println!(
        "{:<14} {:>10} {:>10} {:>10} {:>12}",
        "", "kmemvisor", "qemu", "native", "qemu/ours"
    );
    for (index, name) in names.enumerate() {
        let of = |times: &[Times]| median(times.iter().map(|times| times.0[index]).collect());
        let (our, qemus) = (of(&ours), of(&theirs));
        let ratio = qemus / our;
        let native_text = native[index].map_or("-".to_string(), |time| format!("{time:.3}s"));
        println!("{name:<14} {our:>9.3}s {qemus:>9.3}s {native_text:>10} {ratio:>11.2}x");
        let all = |times: &[Times]| -> Vec<f64> { times.iter().map(|t| t.0[index]).collect() };
        results.push(json!({
            "name": name,
            "kmemvisor_seconds": our,
            "qemu_seconds": qemus,
            "native_seconds": native[index],
            "ratio": ratio,
            "kmemvisor_all": all(&ours),
            "qemu_all": all(&theirs),
        }));
    }
    if let Some(path) = &settings.json {
        let document = json!({
            "kernel": prepared.title,
            "qemu": version,
            "rounds": settings.rounds,
            "results": results,
        });
        let text = serde_json::to_string_pretty(&document)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
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
