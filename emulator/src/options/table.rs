//! The options, a row each: the parser and the help text are made from it.

use std::path::PathBuf;

use dbt::guest::CpuModel;
use fault_injector::Plan;

use super::characters;
use super::values::{self, Handler};
use super::{Handled, Options, help};
use crate::tracing_setup;

/// One option.
pub struct OptionRow {
    /// Its names, without the dash.
    pub names: &'static [&'static str],
    /// What its value looks like; empty if it takes none.
    pub value: &'static str,
    /// Only kMemvisor has it.
    pub own: bool,
    /// What it does, in lines.
    pub help: &'static str,
    /// Notes the value.
    pub handle: Handler,
}

const fn qemu(
    names: &'static [&'static str],
    value: &'static str,
    help: &'static str,
    handle: Handler,
) -> OptionRow {
    OptionRow {
        names,
        value,
        own: false,
        help,
        handle,
    }
}

const fn own(
    names: &'static [&'static str],
    value: &'static str,
    help: &'static str,
    handle: Handler,
) -> OptionRow {
    OptionRow {
        own: true,
        ..qemu(names, value, help, handle)
    }
}

fn path(value: &str) -> Option<PathBuf> {
    Some(PathBuf::from(value))
}

fn noted(_: &mut Options, _: &str) -> Result<Handled, String> {
    Ok(Handled::Noted)
}

/// Every option there is.
pub const OPTIONS: &[OptionRow] = &[
    qemu(&["h", "help"], "", "print this text", |_, _| {
        Ok(Handled::Print(help()))
    }),
    qemu(&["version"], "", "print the version", |_, _| {
        let version = env!("CARGO_PKG_VERSION");
        Ok(Handled::Print(format!("kmemvisor version {version}\n")))
    }),
    qemu(
        &["machine", "M"],
        "pc[,hpet=on|off]",
        "the machine: pc or q35, both the same board;\naccel=tcg, acpi=, hpet=, usb=off, vmport=off",
        values::machine,
    ),
    qemu(
        &["accel"],
        "tcg[,tb-size=MB][,SWITCH=V]",
        "tcg is the translator; `interpreter` runs without it, `portable` with software floating point;\n`-accel help` lists the switches of its optimisations",
        values::accel,
    ),
    qemu(
        &["cpu"],
        "MODEL[,+F][,-F]",
        "the processor and its features; `-cpu help` lists",
        |options, value| {
            if value == "help" || value == "?" {
                let names: Vec<&str> = CpuModel::names().collect();
                let features: Vec<&str> = options.cpu.feature_names().collect();
                return Ok(Handled::Print(format!(
                    "models: {}\nfeatures of max on this host: {}\n",
                    names.join(" "),
                    features.join(" ")
                )));
            }
            options.cpu = CpuModel::parse(value).map_err(|error| error.to_string())?;
            Ok(Handled::Noted)
        },
    ),
    qemu(&["smp"], "1", "the number of processors: one", values::smp),
    qemu(
        &["m"],
        "[size=]N[K|M|G]",
        "RAM, in MiB if no unit is given (128)",
        |options, value| {
            options.ram_bytes = values::memory(value)?;
            Ok(Handled::Noted)
        },
    ),
    qemu(
        &["kernel"],
        "FILE",
        "start this kernel: Linux (bzImage), multiboot, PVH",
        |options, value| {
            options.kernel = path(value);
            Ok(Handled::Noted)
        },
    ),
    qemu(
        &["initrd"],
        "FILE",
        "the kernel's initial RAM disk, or multiboot modules\n(FILE ARGUMENTS, separated by commas)",
        |options, value| {
            options.initrd = path(value);
            Ok(Handled::Noted)
        },
    ),
    qemu(
        &["append"],
        "TEXT",
        "the kernel's command line",
        |options, value| {
            options.append = Some(value.to_string());
            Ok(Handled::Noted)
        },
    ),
    qemu(
        &["bios"],
        "FILE",
        "start this firmware at the reset vector",
        |options, value| {
            options.bios = path(value);
            Ok(Handled::Noted)
        },
    ),
    qemu(
        &["nographic"],
        "",
        "no screen, the first serial port on the terminal;\nthe default, as there is no screen",
        |options, _| {
            options.nographic = true;
            Ok(Handled::Noted)
        },
    ),
    qemu(
        &["display"],
        "none",
        "no screen, and nothing on the terminal",
        |options, value| {
            options.display_none = true;
            values::only(value, "none")
        },
    ),
    qemu(&["vnc"], "none", "no remote screen", |_, value| {
        values::only(value, "none")
    }),
    qemu(&["vga"], "none", "no graphics card", |_, value| {
        values::only(value, "none")
    }),
    qemu(
        &["serial"],
        "stdio|mon:stdio|file:PATH|chardev:ID|null|none",
        "a serial port; up to four",
        |options, value| {
            options.serials.push(values::serial(value)?);
            Ok(Handled::Noted)
        },
    ),
    qemu(
        &["debugcon"],
        "stdio|file:PATH|chardev:ID|null|none",
        "the debug console at port 0xe9",
        |options, value| {
            options.debug_console = Some(values::serial(value)?);
            Ok(Handled::Noted)
        },
    ),
    qemu(
        &["chardev"],
        "stdio|null,id=ID",
        "an output by name, also file,id=ID,path=PATH",
        characters::chardev,
    ),
    qemu(
        &["monitor"],
        "none",
        "the monitor: there is none yet",
        |_, value| match value {
            "none" | "null" => Ok(Handled::Noted),
            _ => Err("there is no monitor yet; only `none` is possible".to_string()),
        },
    ),
    qemu(&["parallel"], "none", "no parallel port", |_, value| {
        values::only(value, "none")
    }),
    qemu(&["net", "nic"], "none", "no network card", |_, value| {
        values::only(value, "none")
    }),
    qemu(
        &["device"],
        "NAME[,key=value...]",
        "isa-debug-exit, isa-debugcon, isa-serial, pc-testdev;\n`-device help` lists their settings",
        values::device,
    ),
    qemu(
        &["no-reboot"],
        "",
        "end instead of starting the guest again",
        |options, _| {
            options.no_reboot = true;
            Ok(Handled::Noted)
        },
    ),
    qemu(&["no-hpet"], "", "leave out the HPET", |options, _| {
        options.hpet = false;
        Ok(Handled::Noted)
    }),
    qemu(
        &["no-acpi"],
        "",
        "leave out the ACPI tables",
        |options, _| {
            options.acpi = false;
            Ok(Handled::Noted)
        },
    ),
    qemu(
        &["nodefaults"],
        "",
        "no serial port unless asked for",
        |options, _| {
            options.nodefaults = true;
            Ok(Handled::Noted)
        },
    ),
    qemu(
        &["no-user-config"],
        "",
        "read no configuration file: there is none",
        noted,
    ),
    qemu(
        &["icount"],
        "shift=N|auto",
        "time counts instructions, 2^N ns each (auto: 1 ns):\nevery run is the same",
        values::icount,
    ),
    qemu(
        &["rtc"],
        "base=utc|DATE",
        "the date that the guest's clock shows first, such as\n2026-01-31T12:00:00",
        values::rtc,
    ),
    qemu(
        &["seed"],
        "N",
        "seed of the guest's random numbers (RDRAND)",
        |options, value| {
            options.seed = Some(values::number(value)?);
            Ok(Handled::Noted)
        },
    ),
    qemu(
        &["name"],
        "TEXT",
        "a name for the machine, in its logs",
        |options, value| {
            options.name = Some(value.to_string());
            Ok(Handled::Noted)
        },
    ),
    qemu(
        &["d"],
        "ITEM[,...]",
        "log these items; `-d help` lists them",
        |options, value| {
            if value == "help" || value == "?" {
                let mut text = String::from("Log items (comma separated):\n");
                for (name, _, what) in tracing_setup::ITEMS {
                    text += &format!("{name:<14} {what}\n");
                }
                return Ok(Handled::Print(text));
            }
            options.log = Some(tracing_setup::filter(value)?);
            Ok(Handled::Noted)
        },
    ),
    qemu(
        &["D"],
        "FILE",
        "log to a file instead of stderr",
        |options, value| {
            options.log_file = path(value);
            Ok(Handled::Noted)
        },
    ),
    own(
        &["mirror"],
        "copies=N|on|off",
        "copies of each page of guest memory (2)",
        |options, value| {
            options.copies = values::copies(value)?;
            Ok(Handled::Noted)
        },
    ),
    own(
        &["inject"],
        "seed=S,every=E,...",
        "damage guest memory while it runs: every=200k|50ms,\nat=N, count=N, target=native|mirror|any,\nwhere=used|any|page-tables|kernel|user,\nsize=line|frame|mixed, allow-loss=on|off",
        |options, value| {
            options.inject = Some(Plan::parse(value).map_err(|error| error.to_string())?);
            Ok(Handled::Noted)
        },
    ),
    own(
        &["report"],
        "FILE",
        "write what became of the faults as JSON",
        |options, value| {
            options.report = path(value);
            Ok(Handled::Noted)
        },
    ),
    own(
        &["audit"],
        "N",
        "compare all copies every N million instructions\nand at the end",
        |options, value| {
            let millions = values::number(value)?;
            if millions == 0 {
                return Err("N has to be at least 1".to_string());
            }
            options.audit_every = Some(millions.saturating_mul(1_000_000));
            Ok(Handled::Noted)
        },
    ),
];

/// Options of QEMU (7.2) that kMemvisor has not.
pub const ABSENT: &[&str] = &[
    "S",
    "acpitable",
    "action",
    "add-fd",
    "async-teardown",
    "audio",
    "audio-help",
    "audiodev",
    "blockdev",
    "boot",
    "cdrom",
    "chroot",
    "compat",
    "daemonize",
    "dfilter",
    "drive",
    "dtb",
    "dump-vmstate",
    "echr",
    "enable-kvm",
    "enable-sync-profile",
    "fda",
    "fdb",
    "fsdev",
    "full-screen",
    "fw_cfg",
    "g",
    "gdb",
    "global",
    "hda",
    "hdb",
    "hdc",
    "hdd",
    "incoming",
    "iscsi",
    "k",
    "loadvm",
    "mem-path",
    "mem-prealloc",
    "mon",
    "msg",
    "mtdblock",
    "netdev",
    "no-fd-bootchk",
    "no-shutdown",
    "numa",
    "object",
    "only-migratable",
    "option-rom",
    "overcommit",
    "pflash",
    "pidfile",
    "plugin",
    "portrait",
    "preconfig",
    "qmp",
    "qmp-pretty",
    "readconfig",
    "rotate",
    "run-with",
    "runas",
    "s",
    "sandbox",
    "sd",
    "set",
    "shim",
    "singlestep",
    "smbios",
    "snapshot",
    "spice",
    "tpmdev",
    "trace",
    "usb",
    "usbdevice",
    "uuid",
    "virtfs",
    "watchdog",
    "watchdog-action",
    "win2k-hack",
    "writeconfig",
    "xen-attach",
    "xen-domid",
    "xen-domid-restrict",
];
