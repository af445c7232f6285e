//! -chardev: outputs with names, and the options that refer to them.

use std::path::PathBuf;

use super::{Handled, Options, SerialTarget};

/// -chardev: where an output goes, under a name.
pub fn chardev(options: &mut Options, value: &str) -> Result<Handled, String> {
    let mut parts = value.split(',');
    let backend = parts.next().unwrap_or_default();
    let (mut id, mut path, mut mux) = (None, None, false);
    for part in parts {
        match part.split_once('=') {
            Some(("id", text)) => id = Some(text.to_string()),
            Some(("path", text)) if backend == "file" => path = Some(PathBuf::from(text)),
            Some(("append", "off")) if backend == "file" => {}
            Some(("signal", "on" | "off")) if backend == "stdio" => {}
            Some(("mux", "on" | "off")) => mux = part.ends_with("on"),
            _ => return Err(format!("`{part}` is not a setting of {backend}")),
        }
    }
    let target = match backend {
        "stdio" => SerialTarget::Stdio { escapes: mux },
        "null" => SerialTarget::Null,
        "file" => SerialTarget::File(path.ok_or("path= is missing")?),
        _ => {
            return Err(format!(
                "{backend} is not supported: stdio, file and null are"
            ));
        }
    };
    let id = id.ok_or("id= is missing")?;
    if options.characters.iter().any(|(other, _)| *other == id) {
        return Err(format!("there is a `{id}` already"));
    }
    options.characters.push((id, target));
    Ok(Handled::Noted)
}

/// What a device asks for with chardev=; without it, an output that nobody sees.
fn asked(id: Option<&str>) -> SerialTarget {
    id.map_or(SerialTarget::Null, |id| SerialTarget::Named(id.to_string()))
}

/// -device isa-debugcon: the debug console, its port and its output.
pub fn debug_console<'a>(
    options: &mut Options,
    settings: impl Iterator<Item = &'a str>,
    port: impl Fn(&str) -> Result<u16, String>,
) -> Result<Handled, String> {
    let mut id = None;
    for part in settings {
        match part.split_once('=') {
            Some(("chardev", text)) => id = Some(text),
            Some(("iobase", text)) => options.debug_port = port(text)?,
            Some(("id", _)) => {}
            _ => return Err(format!("`{part}` is not a setting of isa-debugcon")),
        }
    }
    options.debug_console = Some(asked(id));
    Ok(Handled::Noted)
}

/// -device isa-serial: the next serial port.
pub fn serial_port<'a>(
    options: &mut Options,
    settings: impl Iterator<Item = &'a str>,
) -> Result<Handled, String> {
    let mut id = None;
    let next = options.serials.len();
    for part in settings {
        match part.split_once('=') {
            Some(("chardev", text)) => id = Some(text),
            Some(("index", text)) if text.parse() == Ok(next) => {}
            Some(("index", _)) => return Err(format!("the next free serial port is {next}")),
            Some(("id", _)) => {}
            _ => return Err(format!("`{part}` is not a setting of isa-serial")),
        }
    }
    options.serials.push(asked(id));
    Ok(Handled::Noted)
}

/// Puts what the names mean in the place of the names: -chardev may follow what refers to it.
pub fn resolve(options: &mut Options) -> Result<(), String> {
    let Options {
        characters,
        serials,
        debug_console,
        ..
    } = options;
    for target in serials.iter_mut().chain(debug_console) {
        let SerialTarget::Named(id) = target else {
            continue;
        };
        let found = characters.iter().find(|(other, _)| other == id);
        let (_, meant) = found.ok_or_else(|| format!("there is no -chardev with id={id}"))?;
        *target = meant.clone();
    }
    Ok(())
}
