//! The Markdown files are true: every path and every command in them exists.

use std::fs;
use std::path::{Path, PathBuf};

use emulator::options::{Options, Parsed};
use tests::repository;

fn documents() -> Vec<PathBuf> {
    let entries = fs::read_dir(repository()).unwrap().flatten();
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    found.sort();
    assert!(found.iter().any(|path| path.ends_with("README.md")));
    found
}

/// The text between single back quotes, outside of code blocks.
fn code_spans(text: &str) -> Vec<String> {
    let mut spans = Vec::new();
    for (index, part) in text.split("```").enumerate() {
        if index % 2 == 0 {
            let spans_here = part.split('`').enumerate().filter(|(at, _)| at % 2 == 1);
            spans.extend(spans_here.map(|(_, span)| span.to_string()));
        }
    }
    spans
}

/// The lines of code blocks, continued ones joined.
fn code_lines(text: &str) -> Vec<String> {
    let blocks = text.split("```").enumerate().filter(|(at, _)| at % 2 == 1);
    let blocks: Vec<String> = blocks
        .map(|(_, block)| block.replace("\\\n", " "))
        .collect();
    let lines = blocks.iter().flat_map(|block| block.lines().skip(1));
    lines
        .map(|line| line.trim().trim_start_matches("$ ").to_string())
        .collect()
}

/// Whether a word means a file of this repository.
fn is_path(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    let extensions = [".rs", ".md", ".toml", ".sh", ".yml", ".json", ".lock"];
    word.chars().all(plain)
        && !word.starts_with('/')
        && !word.starts_with("-")
        && (extensions.iter().any(|extension| word.ends_with(extension))
            || word.starts_with(".ci/")
            || word.ends_with('/')
            || word
                .split_once('/')
                .is_some_and(|(first, _)| repository().join(first).is_dir()))
}

#[test]
fn every_path_exists() {
    // What the commands in the documents make.
    let made = ["report.json", "bench.json"];
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        let links = links.filter(|link| !link.contains("://") && !link.starts_with('#'));
        let links: Vec<String> = links
            .map(|link| link.split('#').next().unwrap_or_default().to_string())
            .collect();
        let spans = code_spans(&text).into_iter().filter(|span| is_path(span));
        for path in spans.chain(links) {
            let known = repository().join(&path).exists()
                || repository().join("emulator/src").join(&path).exists()
                || made.contains(&path.as_str());
            assert!(known, "{}: {path} does not exist", document.display());
        }
    }
}

/// Splits a command line as a shell would, as far as the documents need it.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = None::<String>;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(open), _) if open == c => quote = None,
            (None, ' ') => words.extend(word.take()),
            (None, '#') if word.is_none() => break,
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

fn check_kmemvisor(words: &[String]) -> Result<(), String> {
    let machine: Vec<String> = match words.first().map(String::as_str) {
        Some("demo") => return Ok(()),
        Some("boot") => {
            let mut rest = words[1..].iter();
            if rest.next().map(String::as_str) != Some("debian") {
                return Err("boot what?".to_string());
            }
            let mut machine = Vec::new();
            while let Some(word) = rest.next() {
                match word.as_str() {
                    "--workload" => {
                        let name = rest.next().ok_or("no workload")?;
                        let known = emulator::debian::Workload::find(name);
                        known.ok_or(format!("no workload {name}"))?;
                    }
                    "--run" | "--kernel" => {
                        rest.next().ok_or("a value is missing")?;
                    }
                    "--refresh" => {}
                    _ => machine.push(word.clone()),
                }
            }
            machine
        }
        _ => words.to_vec(),
    };
    match Options::parse(machine)? {
        Parsed::Run(_) | Parsed::Print(_) => Ok(()),
    }
}

fn check_cargo(words: &[String]) -> Result<(), String> {
    let value = |names: &[&str]| {
        let at = words
            .iter()
            .position(|word| names.contains(&word.as_str()))?;
        words.get(at + 1)
    };
    if let Some(package) = value(&["-p", "--package"]) {
        let manifest = repository().join(package).join("Cargo.toml");
        if !manifest.exists() {
            return Err(format!("no package {package}"));
        }
    }
    if let Some(binary) = value(&["--bin"]) {
        let known = ["mmu", "dbt", "emulator", "tests", "guests"]
            .iter()
            .any(|package| {
                let folder = repository().join(package);
                let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
                manifest.contains(&format!("name = \"{binary}\""))
                    || folder.join(format!("src/bin/{binary}.rs")).exists()
            });
        if !known {
            return Err(format!("no program {binary}"));
        }
        if binary == "kmemvisor"
            && let Some(at) = words.iter().position(|word| word == "--")
        {
            return check_kmemvisor(&words[at + 1..]);
        }
    }
    if let Some(test) = value(&["--test"]) {
        let known = [
            "mmu",
            "dbt",
            "devices",
            "fault-injector",
            "emulator",
            "tests",
            "guests",
        ]
        .iter()
        .any(|package| {
            let file = format!("{package}/tests/{test}.rs");
            repository().join(file).exists()
        });
        if !known {
            return Err(format!("no test {test}"));
        }
    }
    Ok(())
}

fn check(line: &str) -> Result<bool, String> {
    let words = words(line);
    // Variables in front of a command.
    let start = words.iter().position(|word| !word.contains('='));
    let words = &words[start.unwrap_or(words.len())..];
    let Some(program) = words.first() else {
        return Ok(false);
    };
    match Path::new(program)
        .file_name()
        .and_then(|name| name.to_str())
    {
        Some("cargo") => check_cargo(&words[1..]).map(|()| true),
        Some("kmemvisor") => check_kmemvisor(&words[1..]).map(|()| true),
        _ if is_path(program) => repository()
            .join(program)
            .exists()
            .then_some(true)
            .ok_or_else(|| format!("{program} does not exist")),
        _ => Ok(false),
    }
}

#[test]
fn every_command_exists() {
    let mut checked = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let spans = code_spans(&text).into_iter();
        let spans =
            spans.filter(|span| span.starts_with("cargo ") || span.starts_with("kmemvisor "));
        // A span may leave out a value that it is about.
        let spans = spans.filter(|span| !span.contains('…') && !span.contains("..."));
        for line in code_lines(&text).into_iter().chain(spans) {
            match check(&line) {
                Ok(known) => checked += u32::from(known),
                Err(why) => panic!("{}: `{line}`: {why}", document.display()),
            }
        }
    }
    assert!(checked >= 3, "only {checked} commands were found");
}

#[test]
fn a_wrong_command_is_found() {
    for line in [
        "kmemvisor -frobnicate",
        "kmemvisor boot debian --workload nonesuch",
        "cargo run -p nonesuch",
        "cargo run --release --bin nonesuch",
        "cargo run --bin kmemvisor -- -m lots",
        "X=1 cargo test --test nonesuch",
        ".ci/nonesuch",
    ] {
        assert!(check(line).is_err(), "{line}");
    }
}
