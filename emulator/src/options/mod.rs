//! The command line: qemu-system-x86_64's options, with its meanings, from one table.

mod characters;
mod switches;
mod table;
mod values;

use std::path::PathBuf;

use dbt::EngineOptions;
use dbt::guest::CpuModel;
use devices::DebugExit;
use fault_injector::{Interval, Plan, When};

use crate::boot::Boot;
use crate::exit::CODES;
pub use switches::{SWITCHES, Switch};
pub use table::{ABSENT, OPTIONS, OptionRow};

/// Where a serial port's output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialTarget {
    /// Terminal or pipe of this process; with `escapes`, Ctrl-A starts a command.
    Stdio {
        /// Ctrl-A starts a command, and Ctrl-C belongs to the guest.
        escapes: bool,
    },
    /// A file, written from its start.
    File(PathBuf),
    /// There is a port, and nobody listens.
    Null,
    /// There is no port.
    None,
    /// What the -chardev of this name says; none is left once a command line has been read.
    Named(String),
}

/// What the real-time clock shows first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RtcBase {
    /// The host's date, UTC.
    Host,
    /// Seconds since 1970, UTC.
    Date(i64),
}

/// A machine as the command line describes it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of RAM.
    pub ram_bytes: u64,
    /// -kernel.
    pub kernel: Option<PathBuf>,
    /// -initrd.
    pub initrd: Option<PathBuf>,
    /// -append.
    pub append: Option<String>,
    /// -bios.
    pub bios: Option<PathBuf>,
    /// -no-reboot.
    pub no_reboot: bool,
    /// -serial, in the order given.
    pub serials: Vec<SerialTarget>,
    /// Where the debug console goes.
    pub debug_console: Option<SerialTarget>,
    /// The port of the debug console.
    pub debug_port: u16,
    /// -chardev: names, and what they mean.
    pub characters: Vec<(String, SerialTarget)>,
    /// The processor.
    pub cpu: CpuModel,
    /// -icount: nanoseconds an instruction, as a power of two.
    pub icount_shift: Option<u32>,
    /// -rtc base=; by default the host's date, or a fixed one with -icount.
    pub rtc: Option<RtcBase>,
    /// isa-debug-exit.
    pub debug_exit: Option<DebugExit>,
    /// pc-testdev.
    pub test_device: bool,
    /// The high-precision event timer is there.
    pub hpet: bool,
    /// ACPI tables are there.
    pub acpi: bool,
    /// Everything is interpreted.
    pub interpret: bool,
    /// Everything is interpreted, and nothing executed by the host processor.
    pub portable: bool,
    /// Size of the code cache and switches of the translator.
    pub engine: EngineOptions,
    /// Where translations are kept from run to run; `None`: they are not.
    pub code_cache: Option<PathBuf>,
    /// Copies of each page.
    pub copies: usize,
    /// -inject.
    pub inject: Option<Plan>,
    /// -report.
    pub report: Option<PathBuf>,
    /// -audit, in instructions.
    pub audit_every: Option<u64>,
    /// -seed, of the guest's random numbers.
    pub seed: Option<u64>,
    /// -name.
    pub name: Option<String>,
    /// The log filter that -d gives.
    pub log: Option<String>,
    /// -D.
    pub log_file: Option<PathBuf>,
    nographic: bool,
    display_none: bool,
    nodefaults: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            ram_bytes: 128 << 20,
            kernel: None,
            initrd: None,
            append: None,
            bios: None,
            no_reboot: false,
            serials: Vec::new(),
            debug_console: None,
            debug_port: devices::DEBUG_PORT,
            characters: Vec::new(),
            cpu: CpuModel::default(),
            icount_shift: None,
            rtc: None,
            debug_exit: None,
            test_device: false,
            hpet: true,
            acpi: true,
            interpret: false,
            portable: false,
            engine: EngineOptions::default(),
            code_cache: values::usual_code_cache(),
            copies: 2,
            inject: None,
            report: None,
            audit_every: None,
            seed: None,
            name: None,
            log: None,
            log_file: None,
            nographic: false,
            display_none: false,
            nodefaults: false,
        }
    }
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// Run a machine.
    Run(Box<Options>),
    /// Print a text and end.
    Print(String),
}

/// What a handler in the table gives back.
pub enum Handled {
    /// The option is noted.
    Noted,
    /// A text to print instead of running (`-cpu help`).
    Print(String),
}

impl Options {
    /// Reads a command line, without the program's name.
    pub fn parse<I>(args: I) -> Result<Parsed, String>
    where
        I: IntoIterator<Item = String>,
    {
        let mut options = Options::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let Some(name) = arg.strip_prefix('-').filter(|name| !name.is_empty()) else {
                return Err(format!(
                    "{arg}: an option was expected; disk images are not supported"
                ));
            };
            // Like QEMU, take two dashes for one.
            let name = name.strip_prefix('-').unwrap_or(name);
            let Some(row) = OPTIONS.iter().find(|row| row.names.contains(&name)) else {
                return Err(unknown(name));
            };
            let value = if row.value.is_empty() {
                String::new()
            } else {
                args.next()
                    .ok_or_else(|| format!("-{name}: a value is missing: -{name} {}", row.value))?
            };
            match (row.handle)(&mut options, &value) {
                Ok(Handled::Noted) => {}
                Ok(Handled::Print(text)) => return Ok(Parsed::Print(text)),
                Err(why) if value.is_empty() => return Err(format!("-{name}: {why}")),
                Err(why) => return Err(format!("-{name} {value}: {why}")),
            }
        }
        if let Some(plan) = &options.inject {
            let checked = plan.check(options.copies);
            checked.map_err(|error| format!("-inject: {error}"))?;
        }
        characters::resolve(&mut options)?;
        Ok(Parsed::Run(Box::new(options)))
    }

    /// Whether something is due at exact instruction counts.
    pub fn needs_counting(&self) -> bool {
        let by_count = |plan: &Plan| !matches!(plan.when, When::Every(Interval::Time(_)));
        self.audit_every.is_some() || self.inject.as_ref().is_some_and(by_count)
    }

    /// The serial ports of the machine, defaults filled in.
    pub fn serial_targets(&self) -> Result<[SerialTarget; 4], String> {
        let mut targets = [const { SerialTarget::None }; 4];
        if self.serials.len() > targets.len() {
            return Err("-serial: there are four serial ports at the most".to_string());
        }
        targets[..self.serials.len()].clone_from_slice(&self.serials);
        if self.serials.is_empty() && !self.nodefaults {
            // There is no window that could show a console: the terminal is where it is,
            // unless -display none says that nobody wants to see one.
            targets[0] = if self.nographic || !self.display_none {
                SerialTarget::Stdio { escapes: true }
            } else {
                SerialTarget::Null
            };
        }
        let consoles = targets.iter().chain(&self.debug_console);
        let on_stdio = |target: &&SerialTarget| matches!(target, SerialTarget::Stdio { .. });
        if consoles.filter(on_stdio).count() > 1 {
            return Err("-serial: only one port can be on stdio".to_string());
        }
        Ok(targets)
    }

    /// What the options say to start.
    pub fn boot(&self) -> Result<Boot, String> {
        match (&self.kernel, &self.bios) {
            (Some(_), Some(_)) => {
                Err("-kernel and -bios: a kernel is started without firmware".to_string())
            }
            (Some(kernel), None) => Ok(Boot::Kernel {
                kernel: kernel.clone(),
                initrd: self.initrd.clone(),
                command_line: self.append.clone().unwrap_or_default(),
            }),
            (None, _) if self.initrd.is_some() => {
                Err("-initrd: an initrd needs a kernel: give -kernel".to_string())
            }
            (None, _) if self.append.is_some() => {
                Err("-append: a command line needs a kernel: give -kernel".to_string())
            }
            (None, Some(bios)) => Ok(Boot::Firmware(bios.clone())),
            (None, None) => {
                Err("nothing to start: give -kernel or -bios, or try `kmemvisor demo`".to_string())
            }
        }
    }
}

fn unknown(name: &str) -> String {
    if ABSENT.contains(&name) {
        format!("-{name}: QEMU has this option, kmemvisor does not; see -help")
    } else {
        format!("-{name}: there is no such option; see -help")
    }
}

/// The help text: usage, every option of the table, the exit codes.
pub fn help() -> String {
    let mut text = String::from(
        "kMemvisor runs x86-64 guests whose memory is kept in several copies.\n\
         \n\
         usage: kmemvisor [options]\n\
         \x20      kmemvisor boot debian [options] [--workload NAME | --run COMMAND]\n\
         \x20      kmemvisor demo [options]\n\
         \n\
         Options, with the meaning that qemu-system-x86_64 gives them:\n",
    );
    let mut own = false;
    for row in OPTIONS {
        if row.own && !own {
            own = true;
            text += "\nOptions of kMemvisor alone:\n";
        }
        let names: Vec<String> = row.names.iter().map(|name| format!("-{name}")).collect();
        let left = format!("{} {}", names.join(", "), row.value);
        let lines: Vec<&str> = row.help.lines().collect();
        text += &format!("  {:<26} {}\n", left.trim_end(), lines[0]);
        for line in &lines[1..] {
            text += &format!("  {:<26} {line}\n", "");
        }
    }
    text += "\nOn the console: Ctrl-A x ends the machine, Ctrl-A h tells the other commands.\n";
    text += "SIGUSR1 prints a report while the machine runs.\n\nExit codes:\n";
    for (code, meaning) in CODES {
        text += &format!("  {code}  {meaning}\n");
    }
    text += "  any odd code v*2+1 when the guest writes v to isa-debug-exit\n";
    text
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
