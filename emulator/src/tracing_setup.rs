//! Logs: which of them `-d` selects, and where `-D` sends them. Without `-d` only warnings are
//! logged, to stderr; the guest alone writes to stdout.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;

/// What `-d` accepts: item, the filter it adds, what it shows.
pub const ITEMS: &[(&str, &str, &str)] = &[
    ("all", "trace", "everything there is"),
    (
        "unimp",
        "devices=trace",
        "accesses to ports and registers that no device has",
    ),
    (
        "guest_errors",
        "devices=debug",
        "what the guest does wrong with devices",
    ),
    ("dbt", "dbt=debug", "the translator"),
    ("mmu", "mmu=debug", "guest memory and its copies"),
    (
        "faults",
        "fault_injector=debug",
        "injected faults and what became of them",
    ),
    (
        "machine",
        "emulator=debug",
        "start, reset and end of the machine",
    ),
];

/// The filter for a comma-separated list of items.
pub fn filter(items: &str) -> Result<String, String> {
    let mut filters = vec!["warn"];
    for item in items.split(',').map(str::trim) {
        let known = ITEMS.iter().find(|(name, _, _)| *name == item);
        let (_, filter, _) = known
            .ok_or_else(|| format!("-d {item}: there is no such log item; `-d help` lists them"))?;
        filters.push(filter);
    }
    Ok(filters.join(","))
}

/// Starts logging. The filter comes from [`filter`]; `file` is created.
pub fn start(filter: Option<&str>, file: Option<&Path>) -> Result<(), String> {
    let filter = EnvFilter::new(filter.unwrap_or("warn"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .without_time()
        .with_ansi(false);
    // A second start in one process (tests) keeps the first one's logs.
    let _ = match file {
        Some(path) => {
            let file = File::create(path)
                .map_err(|error| format!("-D: cannot create {}: {error}", path.display()))?;
            builder.with_writer(Mutex::new(file)).try_init()
        }
        None => builder.with_writer(io::stderr).try_init(),
    };
    Ok(())
}
