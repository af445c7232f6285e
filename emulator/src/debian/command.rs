//! The command `boot debian`: its own options, the run, and the check of a workload's result.

use std::fs;

use super::initramfs::{Task, workload_output};
use super::prepare::{Architecture, Flavour, Prepared, Recipe, cache_directory, prepare};
use super::progress::Progress;
use super::workload::{WORKLOADS, Workload};
use crate::boot::Boot;
use crate::command::{finish, print, start_logging, usage};
use crate::console_watch::ConsoleWatch;
use crate::exit::Outcome;
use crate::options::{Options, Parsed};
use crate::session;

const ALTERNATIVES: &str = "without packages there are `kmemvisor demo` and `-kernel FILE`";

/// The command line of `boot debian`.
struct Request {
    recipe: Recipe,
    workload: Option<&'static Workload>,
    /// The machine's options.
    machine: Vec<String>,
}

fn help() -> String {
    let mut text = String::from(
        "usage: kmemvisor boot debian [machine options] [options]\n\
         \n\
         Fetches a kernel and programs as Debian packages, without root and without installing\n\
         anything, and starts them. Without --workload or --run, there is a shell on the\n\
         terminal. Machine options are those of `kmemvisor -help`; -m is 512 by default.\n\
         \n\
         \x20 --workload NAME    compute something and check the result\n\
         \x20 --run COMMAND      run a shell command in the guest\n\
         \x20 --kernel FLAVOUR   Debian's kernel: cloud-amd64 (default), amd64, 686 or 686-pae\n\
         \x20 --programs ARCH    amd64 or i386; the kernel's by default\n\
         \x20 --refresh          ask the package sources again\n\
         \n\
         Workloads:\n",
    );
    for workload in WORKLOADS {
        text += &format!("  {:<18} {}\n", workload.name, workload.what);
    }
    text
}

fn parse(words: impl Iterator<Item = String>) -> Result<Request, String> {
    let mut request = Request {
        recipe: Recipe::default(),
        workload: None,
        machine: vec!["-m".into(), "512".into()],
    };
    let mut words = words;
    while let Some(word) = words.next() {
        let mut value = || {
            let value = words.next();
            value.ok_or_else(|| format!("{word}: a value is missing"))
        };
        match word.as_str() {
            "--workload" | "--run" if request.recipe.task != Task::Shell => {
                return Err(format!("{word}: the guest can do one thing only"));
            }
            "--workload" => {
                let name = value()?;
                let workload = Workload::find(&name).ok_or_else(|| {
                    let known: Vec<&str> = WORKLOADS.iter().map(|w| w.name).collect();
                    let known = known.join(", ");
                    format!("--workload {name}: there is no such workload; there are {known}")
                })?;
                request.workload = Some(workload);
                let Recipe {
                    flavour,
                    architecture,
                    refresh,
                    ..
                } = request.recipe;
                request.recipe = Recipe {
                    flavour,
                    architecture,
                    refresh,
                    ..workload.recipe()
                };
            }
            "--run" => request.recipe.task = Task::Script(value()? + "\n"),
            "--kernel" => {
                let name = value()?;
                request.recipe.flavour = Flavour::parse(&name).ok_or_else(|| {
                    let known = Flavour::ALL.map(Flavour::name).join(", ");
                    format!("--kernel {name}: there is no such kernel; there are {known}")
                })?;
            }
            "--programs" => {
                let name = value()?;
                let architecture = Architecture::parse(&name);
                request.recipe.architecture =
                    Some(architecture.ok_or_else(|| {
                        format!("--programs {name}: amd64 and i386 are possible")
                    })?);
            }
            "--refresh" => request.recipe.refresh = true,
            "-kernel" | "-initrd" | "-bios" => {
                return Err(format!(
                    "{word}: `boot debian` brings its own; leave out `boot debian`"
                ));
            }
            _ => {
                // A value that looks like one of ours has to stay with its option.
                let name = word.trim_start_matches('-');
                let row = crate::options::OPTIONS
                    .iter()
                    .find(|row| row.names.contains(&name));
                let wants_value = row.is_some_and(|row| !row.value.is_empty());
                if wants_value {
                    let value = value()?;
                    request.machine.extend([word, value]);
                } else {
                    request.machine.push(word);
                }
            }
        }
    }
    Ok(request)
}

/// Runs `boot` with the words behind it; gives the exit code.
pub fn main(words: Vec<String>) -> u8 {
    let mut words = words.into_iter();
    match words.next().as_deref() {
        Some("debian") => {}
        Some("-h" | "-help" | "--help") => return print(&help()),
        Some(other) => return usage(&format!("boot {other}: only `boot debian` is possible")),
        None => return usage("boot: what? `kmemvisor boot debian` is possible"),
    }
    let words: Vec<String> = words.collect();
    if words
        .iter()
        .any(|word| ["-h", "-help", "--help"].contains(&word.as_str()))
    {
        return print(&help());
    }
    let request = match parse(words.into_iter()) {
        Ok(request) => request,
        Err(why) => return usage(&why),
    };
    let options = match Options::parse(request.machine.iter().cloned()) {
        Ok(Parsed::Run(options)) => *options,
        Ok(Parsed::Print(text)) => return print(&text),
        Err(why) => return usage(&why),
    };
    if let Err(why) = options
        .serial_targets()
        .and_then(|_| start_logging(&options))
    {
        return usage(&why);
    }
    run(request, options)
}

fn run(request: Request, mut options: Options) -> u8 {
    let Some(cache) = cache_directory() else {
        return usage("boot debian: neither XDG_CACHE_HOME nor HOME is set: there is no cache");
    };
    let progress = Progress::new();
    let prepared = prepare(&cache, &request.recipe, &progress);
    drop(progress);
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            eprintln!("kmemvisor: {error}; {ALTERNATIVES}");
            return 1;
        }
    };
    eprintln!(
        "kmemvisor: {} in {} MiB with {}, translated in software; Ctrl-A x ends it",
        prepared.title,
        options.ram_bytes >> 20,
        match options.copies {
            1 => "one copy of each page".to_string(),
            copies => format!("{copies} copies of each page"),
        }
    );
    let interactive = request.recipe.task == Task::Shell;
    // A panicked kernel restarts at once instead of spinning: that is how its end is seen.
    let mut command_line = String::from("console=ttyS0 panic=-1");
    if !interactive {
        command_line += " quiet loglevel=1";
        options.no_reboot = true;
    }
    if let Some(append) = &options.append {
        command_line = format!("{command_line} {append}");
    }
    let scratch = cache.join(format!("reference-{}", std::process::id()));
    let expected = request.workload.map(|workload| {
        let expected = workload.expected(&prepared.files, &scratch);
        expected.map(|lines| (workload, lines))
    });
    let expected = match expected.transpose() {
        Ok(expected) => expected,
        Err(error) => {
            eprintln!("kmemvisor: the host cannot run the workload to compare with: {error}");
            return 1;
        }
    };
    let Prepared { kernel, initrd, .. } = prepared;
    let boot = Boot::Kernel {
        kernel,
        initrd: Some(initrd.clone()),
        command_line,
    };
    let watch = if interactive {
        ConsoleWatch::default()
    } else {
        ConsoleWatch::recording()
    };
    let result = session::run(&options, &boot, &watch);
    if !interactive {
        let _ = fs::remove_file(initrd);
    }
    let ended_well = matches!(result, Ok(Outcome::PowerOff | Outcome::Reset));
    let code = finish(result);
    if interactive || !ended_well {
        return code;
    }
    verdict(expected, &watch.recorded())
}

/// Says whether the guest did its task; gives the exit code.
fn verdict(workload: Option<(&Workload, Vec<String>)>, console: &[u8]) -> u8 {
    let result = match (workload_output(console), workload) {
        (None, _) => Err("the guest ended before it was done".to_string()),
        (Some((_, status)), None) if status != 0 => {
            eprintln!("kmemvisor: the command failed with status {status}");
            return 1;
        }
        (Some((_, status)), Some(_)) if status != 0 => {
            Err(format!("it failed with status {status}"))
        }
        (Some((output, _)), Some((workload, expected))) => workload.check(&output, &expected),
        (Some(_), None) => return 0,
    };
    match result {
        Ok(()) => {
            eprintln!("kmemvisor: workload result: right");
            0
        }
        Err(why) => {
            eprintln!("kmemvisor: workload result: WRONG: {why}");
            1
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::archive::Tree;
    use super::*;

    #[test]
    fn machine_options_keep_their_values() {
        let words = ["-append", "--run", "--workload", "sqlite", "-m", "64"];
        let request =
            parse(words.iter().map(|word| word.to_string())).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(
            request.workload.map(|workload| workload.name),
            Some("sqlite")
        );
        assert_eq!(
            request.machine,
            ["-m", "512", "-append", "--run", "-m", "64"]
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (words, word) in [
            (&["--workload", "nonesuch"][..], "sqlite"),
            (&["--workload"], "missing"),
            (&["--run", "a", "--workload", "sqlite"], "one thing"),
            (&["--kernel", "arm64"], "cloud"),
            (&["--programs", "arm64"], "i386"),
            (&["-kernel", "x"], "its own"),
        ] {
            let error = parse(words.iter().map(|word| word.to_string()));
            let error = error.err().unwrap_or_default();
            assert!(error.contains(word), "{words:?}: {error}");
        }
    }

    #[test]
    fn only_the_right_output_is_right() {
        let workload = Workload::find("text").unwrap();
        let expected = workload.expected(&Tree::new(), Path::new("")).unwrap();
        let lines = expected.join("\r\n");
        let text = || Some((workload, expected.clone()));
        let console = |lines: &str, status: u32| {
            use super::super::initramfs::{BEGIN, END};
            format!("x\r\n{BEGIN}\r\n{lines}\r\n{END} {status} ===\r\n").into_bytes()
        };
        assert_eq!(verdict(text(), &console(&lines, 0)), 0);
        assert_eq!(verdict(text(), &console(&lines, 1)), 1);
        assert_eq!(verdict(text(), &console("sum 1", 0)), 1);
        assert_eq!(verdict(text(), b"nothing"), 1);
        assert_eq!(verdict(None, &console("anything", 0)), 0);
        assert_eq!(verdict(None, &console("anything", 2)), 1);
    }
}
