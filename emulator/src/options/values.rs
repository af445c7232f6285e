//! What the values of options mean.

use std::path::PathBuf;

use devices::DebugExit;
use devices::calendar::DateTime;
use mmu::MAX_COPIES;

use super::switches::SWITCHES;
use super::{Handled, Options, RtcBase, SerialTarget, characters};

/// Notes an option's value.
pub type Handler = fn(&mut Options, &str) -> Result<Handled, String>;

/// A decimal or 0x number.
pub fn number(value: &str) -> Result<u64, String> {
    let parsed = match value.strip_prefix("0x").or(value.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => value.parse(),
    };
    parsed.map_err(|_| format!("`{value}` is not a number"))
}

pub(super) fn switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" | "yes" | "true" => Ok(true),
        "off" | "no" | "false" => Ok(false),
        _ => Err(format!("{key} is on or off")),
    }
}

/// Accepts one value.
pub fn only(value: &str, possible: &str) -> Result<Handled, String> {
    if value == possible {
        Ok(Handled::Noted)
    } else {
        Err(format!("only `{possible}` is possible"))
    }
}

/// A number of bytes with a unit; without one it counts MiB.
pub fn size(value: &str) -> Result<u64, String> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &value[digits.len()..] {
        "B" | "b" => 0,
        "K" | "k" => 10,
        "" | "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        unit => return Err(format!("`{unit}` is not a unit; K, M, G and T are")),
    };
    let wrong = || format!("`{value}` is not a size; sizes look like 512, 512M or 2G");
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || fraction.len() > 6 {
        return Err(wrong());
    }
    let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
    let mut bytes = number(whole)?
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{value} is too large"))?;
    if !fraction.is_empty() {
        let part = u128::from(number(fraction)?) << shift;
        bytes += (part / 10u128.pow(fraction.len() as u32)) as u64;
    }
    Ok(bytes)
}

/// -m: a size, or `size=`.
pub fn memory(value: &str) -> Result<u64, String> {
    let mut bytes = None;
    for part in value.split(',') {
        match part.split_once('=') {
            Some(("size", text)) => bytes = Some(size(text)?),
            Some((key, _)) => {
                return Err(format!(
                    "{key}= is not supported: memory cannot be plugged in"
                ));
            }
            None if bytes.is_none() => bytes = Some(size(part)?),
            None => return Err(format!("`{part}` is not a setting of -m")),
        }
    }
    let bytes = bytes.ok_or("the size is missing")?;
    if !(1 << 20..=1 << 40).contains(&bytes) {
        return Err("from 1M to 1T is possible".to_string());
    }
    if bytes % 4096 != 0 {
        return Err("a size is a multiple of 4K".to_string());
    }
    Ok(bytes)
}

/// -serial.
pub fn serial(value: &str) -> Result<SerialTarget, String> {
    match value {
        "stdio" => Ok(SerialTarget::Stdio { escapes: false }),
        "mon:stdio" => Ok(SerialTarget::Stdio { escapes: true }),
        "null" => Ok(SerialTarget::Null),
        "none" => Ok(SerialTarget::None),
        _ => match value.split_once(':') {
            Some(("file", "")) => Err("the file's name is missing".to_string()),
            Some(("file", path)) => Ok(SerialTarget::File(PathBuf::from(path))),
            Some(("chardev", id)) => Ok(SerialTarget::Named(id.to_string())),
            _ => Err(
                "stdio, mon:stdio, file:PATH, chardev:ID, null or none are possible".to_string(),
            ),
        },
    }
}

/// -mirror.
pub fn copies(value: &str) -> Result<usize, String> {
    let text = match value {
        "on" => return Ok(2),
        "off" => return Ok(1),
        _ => value.strip_prefix("copies=").unwrap_or(value),
    };
    match text.parse() {
        Ok(copies) if (1..=MAX_COPIES).contains(&copies) => Ok(copies),
        _ => Err(format!(
            "on, off, or copies= from 1 to {MAX_COPIES} are possible"
        )),
    }
}

/// -machine.
pub fn machine(options: &mut Options, value: &str) -> Result<Handled, String> {
    if value == "help" || value == "?" {
        return Ok(Handled::Print(
            "pc    the board there is (8259A, 8254, I/O APIC, HPET, serial ports)\n\
             q35   the same board\n"
                .to_string(),
        ));
    }
    for (index, part) in value.split(',').enumerate() {
        let (key, value) = match part.split_once('=') {
            Some(pair) => pair,
            None if index == 0 => ("type", part),
            None => return Err(format!("`{part}` is not a setting")),
        };
        match key {
            "type" => {
                let known = ["pc", "q35"].contains(&value)
                    || value.starts_with("pc-i440fx-")
                    || value.starts_with("pc-q35-");
                if !known {
                    return Err(format!("there is no machine `{value}`: pc and q35 are"));
                }
            }
            "accel" => {
                accel(options, value)?;
            }
            "hpet" => options.hpet = switch(key, value)?,
            "acpi" => options.acpi = switch(key, value)?,
            "usb" | "vmport" | "pcspk-audiodev" | "smm" | "graphics" => {
                if switch(key, value)? {
                    return Err(format!("{key} is not supported: only off is possible"));
                }
            }
            "kernel-irqchip" | "dump-guest-core" | "mem-merge" => {
                // Nothing of this exists without KVM and core dumps, whatever it says.
                if !["on", "off", "split"].contains(&value) {
                    return Err(format!("{key} is on or off"));
                }
            }
            _ => return Err(format!("{key} is not a setting of this machine")),
        }
    }
    Ok(Handled::Noted)
}

/// A directory, which may have yet to be made.
fn directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.exists() && !path.is_dir() {
        true => Err(format!("{text} is not a directory")),
        false => Ok(path),
    }
}

/// Where translations are kept if nothing else is said.
pub fn usual_code_cache() -> Option<PathBuf> {
    Some(crate::debian::cache_directory()?.join("code"))
}

/// -accel.
pub fn accel(options: &mut Options, value: &str) -> Result<Handled, String> {
    if value == "help" || value == "?" {
        return Ok(Handled::Print(
            "tcg           translate guest code to host code\n\
             interpreter   interpret every guest instruction\n\
             portable      interpret, with floating point in software too\n\
             kmemvisor     another name of tcg\n\
             Settings of the translator, behind its name:\n\
             tb-size=96            MiB of host code at the most\n\
             code-cache=on|off|DIR  translations are kept from run to run, in the user's cache or there\n"
                .to_string()
                + &SWITCHES
                    .iter()
                    .map(|row| format!("{:<20}  {}\n", row.form, row.help))
                    .collect::<String>(),
        ));
    }
    let mut parts = value.split(',');
    let name = parts.next().unwrap_or_default();
    // QEMU takes the first of a list that works: the translator always does.
    let usable = name.split(':').find_map(|name| match name {
        "tcg" | "kmemvisor" => Some((false, false)),
        "interpreter" => Some((true, false)),
        "portable" => Some((true, true)),
        _ => None,
    });
    (options.interpret, options.portable) = usable.ok_or_else(|| {
        format!("{name} is not supported: tcg, interpreter and portable are possible")
    })?;
    for part in parts {
        match part.split_once('=') {
            Some(("thread", "single" | "multi")) => {} // One processor is one thread.
            Some(("tb-size", text)) => {
                let megabytes = number(text)?;
                if !(1..=1024).contains(&megabytes) {
                    return Err("tb-size is from 1 to 1024 (MiB)".to_string());
                }
                options.engine.code_bytes = (megabytes as usize) << 20;
            }
            Some(("code-cache", text)) => {
                options.code_cache = match text {
                    "off" => None,
                    "on" => usual_code_cache(),
                    _ => Some(directory(text)?),
                };
            }
            Some((key, text)) => {
                let row = SWITCHES.iter().find(|row| row.name() == key);
                let row = row.ok_or_else(|| format!("`{part}` is not a setting of {name}"))?;
                row.set(&mut options.engine, text)
                    .map_err(|why| format!("{key}: {why}"))?;
            }
            None => return Err(format!("`{part}` is not a setting of {name}")),
        }
    }
    Ok(Handled::Noted)
}

/// -smp.
pub fn smp(_: &mut Options, value: &str) -> Result<Handled, String> {
    for (index, part) in value.split(',').enumerate() {
        let (key, text) = match part.split_once('=') {
            Some(pair) => pair,
            None if index == 0 => ("cpus", part),
            None => return Err(format!("`{part}` is not a setting")),
        };
        let known = [
            "cpus", "maxcpus", "sockets", "dies", "clusters", "cores", "threads",
        ];
        if !known.contains(&key) {
            return Err(format!("{key} is not a setting of -smp"));
        }
        if number(text)? != 1 {
            return Err("only one processor is supported yet".to_string());
        }
    }
    Ok(Handled::Noted)
}

fn port(text: &str) -> Result<u16, String> {
    let port = number(text)?;
    u16::try_from(port).map_err(|_| format!("{text} is not a port"))
}

/// -device.
pub fn device(options: &mut Options, value: &str) -> Result<Handled, String> {
    let mut parts = value.split(',');
    let name = parts.next().unwrap_or_default();
    match name {
        "help" | "?" => Ok(Handled::Print(
            "isa-debug-exit[,iobase=PORT][,iosize=N]   a write ends the machine\n\
             isa-debugcon[,iobase=PORT][,chardev=ID]   a port that prints\n\
             isa-serial[,chardev=ID]                   the next serial port\n\
             pc-testdev                                registers for test programs\n"
                .to_string(),
        )),
        "isa-debug-exit" => {
            let mut exit = DebugExit::default();
            for part in parts {
                match part.split_once('=') {
                    Some(("iobase", text)) => exit.iobase = port(text)?,
                    Some(("iosize", text)) => exit.iosize = port(text)?,
                    Some(("id", _)) => {}
                    _ => return Err(format!("`{part}` is not a setting of {name}")),
                }
            }
            let end = u32::from(exit.iobase) + u32::from(exit.iosize);
            if exit.iosize == 0 || end > 0x1_0000 {
                return Err("its ports are not within the 65536 there are".to_string());
            }
            options.debug_exit = Some(exit);
            Ok(Handled::Noted)
        }
        "isa-debugcon" => characters::debug_console(options, parts, port),
        "isa-serial" => characters::serial_port(options, parts),
        "pc-testdev" => {
            if let Some(part) = parts.next().filter(|part| !part.starts_with("id=")) {
                return Err(format!("`{part}` is not a setting of {name}"));
            }
            options.test_device = true;
            Ok(Handled::Noted)
        }
        _ => Err(format!(
            "there is no device `{name}`; -device help lists those there are"
        )),
    }
}

/// -icount.
pub fn icount(options: &mut Options, value: &str) -> Result<Handled, String> {
    for (index, part) in value.split(',').enumerate() {
        let (key, text) = match part.split_once('=') {
            Some(pair) => pair,
            None if index == 0 => ("shift", part),
            None => return Err(format!("`{part}` is not a setting")),
        };
        match (key, text) {
            ("shift", "auto") => options.icount_shift = Some(0),
            ("shift", _) => {
                let shift = number(text)?;
                if shift > 10 {
                    return Err("shift is from 0 to 10, or auto".to_string());
                }
                options.icount_shift = Some(shift as u32);
            }
            ("sleep" | "align", "off") => {}
            ("sleep" | "align", _) => {
                return Err(format!("{key} is not supported: only off is possible"));
            }
            _ => return Err(format!("{key} is not a setting of -icount")),
        }
    }
    if options.icount_shift.is_none() {
        return Err("shift= is missing".to_string());
    }
    Ok(Handled::Noted)
}

/// -rtc.
pub fn rtc(options: &mut Options, value: &str) -> Result<Handled, String> {
    for part in value.split(',') {
        match part.split_once('=') {
            Some(("base", "utc")) => options.rtc = Some(RtcBase::Host),
            Some(("base", "localtime")) => {
                return Err("base is utc or a date".to_string());
            }
            Some(("base", text)) => options.rtc = Some(RtcBase::Date(date(text)?)),
            Some(("clock", "host" | "vm" | "rt")) | Some(("driftfix", "none")) => {}
            Some((key, text)) => return Err(format!("{key}={text} is not supported")),
            None => return Err(format!("`{part}` is not a setting of -rtc")),
        }
    }
    Ok(Handled::Noted)
}

/// `2026-01-31` or `2026-01-31T12:00:00`, in seconds since 1970.
fn date(text: &str) -> Result<i64, String> {
    let wrong = || format!("`{text}` is not a date; 2026-01-31T12:00:00 is one");
    let (day, time) = text.split_once('T').unwrap_or((text, "00:00:00"));
    let fields = |text: &str, separator: char| -> Option<[u16; 3]> {
        let parsed: Result<Vec<u16>, _> = text.split(separator).map(str::parse).collect();
        parsed.ok()?.try_into().ok()
    };
    let [year, month, day] = fields(day, '-').ok_or_else(wrong)?;
    let [hour, minute, second] = fields(time, ':').ok_or_else(wrong)?;
    let in_range = (1970..=2099).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !in_range {
        return Err(wrong());
    }
    let date = DateTime {
        second: second as u8,
        minute: minute as u8,
        hour: hour as u8,
        weekday: 1,
        day: day as u8,
        month: month as u8,
        year: i64::from(year),
    };
    let seconds = date.to_unix();
    // The 30th of February would come out as another day.
    let back = DateTime::from_unix(seconds);
    if (back.day, back.month) != (date.day, date.month) {
        return Err(wrong());
    }
    Ok(seconds)
}
