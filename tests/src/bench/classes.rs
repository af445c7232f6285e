//! What is measured, and which marks it has to reach.

/// A group of classes with a mark of its own.
pub struct Group {
    /// Its name.
    pub name: &'static str,
    /// At least so many times as fast as QEMU.
    pub against_qemu: Option<f64>,
    /// At most so many times as slow as natively.
    pub against_native: Option<f64>,
    /// The classes that `guest-bench run` knows.
    pub classes: &'static [&'static str],
}

const fn group(
    name: &'static str,
    against_qemu: f64,
    against_native: Option<f64>,
    classes: &'static [&'static str],
) -> Group {
    Group {
        name,
        against_qemu: Some(against_qemu),
        against_native,
        classes,
    }
}

/// The boot's name among the classes.
pub const BOOT: &str = "boot";

/// The name of the group of whole programs.
pub const PROGRAMS_GROUP: &str = "whole programs";

/// Every group; the classes of the last two are the boot and [`PROGRAMS`].
pub const GROUPS: &[Group] = &[
    group(
        "integer",
        2.2,
        Some(2.0),
        &["alu", "sort", "crc", "hash", "imat"],
    ),
    group("scalar SSE", 12.0, Some(2.5), &["dbl"]),
    group("packed SSE/AVX", 40.0, Some(2.0), &["packed", "avx"]),
    group("x87", 4.0, Some(1.5), &["x87"]),
    group(
        "memory",
        2.2,
        Some(2.8),
        &["l1r", "l1w", "seqr", "seqw", "rand", "randw", "memcpy"],
    ),
    group("rep movs/stos", 40.0, Some(2.5), &["repmovs", "repstos"]),
    group("calls", 3.0, Some(2.5), &["call", "fib", "icall", "interp"]),
    Group {
        name: "malloc, atomics",
        against_qemu: None,
        against_native: None,
        classes: &["malloc", "atomic"],
    },
    group(
        "system",
        2.5,
        None,
        &["syscall", "pipe", "fork", "exec", "fault"],
    ),
    group("changing code", 2.5, None, &["smc", "jit"]),
    group(PROGRAMS_GROUP, 2.5, None, &[]),
    group("boot to shell", 2.0, None, &[BOOT]),
];

/// A whole program from Debian's packages.
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// What has to be fetched: the first set whose packages exist.
    pub packages: &'static [&'static [&'static str]],
}

/// Every whole program; `guests::SCRIPT` says what each does.
pub const PROGRAMS: &[Program] = &[
    Program {
        name: "sqlite",
        packages: &[&[]],
    },
    Program {
        name: "cc1",
        packages: &[&["cpp-12"], &["cpp-14-x86-64-linux-gnu"], &["cpp-13"]],
    },
    Program {
        name: "python",
        packages: &[
            &[
                "python3.11-minimal",
                "libpython3.11-minimal",
                "libpython3.11-stdlib",
            ],
            &[
                "python3.13-minimal",
                "libpython3.13-minimal",
                "libpython3.13-stdlib",
            ],
        ],
    },
    Program {
        name: "gzip",
        packages: &[&["gzip"]],
    },
    Program {
        name: "web",
        packages: &[&[]],
    },
    Program {
        name: "luajit",
        packages: &[&["luajit", "libluajit-5.1-2"]],
    },
    Program {
        name: "openssl",
        packages: &[&["openssl"]],
    },
    Program {
        name: "shell",
        packages: &[&[]],
    },
];

/// The group of a class.
pub fn group_of(class: &str) -> &'static Group {
    let mut groups = GROUPS.iter();
    let found = groups.find(|group| group.classes.contains(&class));
    found.unwrap_or_else(|| {
        let mut groups = GROUPS.iter();
        let programs = groups.find(|group| group.name == PROGRAMS_GROUP);
        programs.expect("the table has the group")
    })
}

/// Every name in the order of the table.
pub fn names() -> Vec<&'static str> {
    let mut names = Vec::new();
    for group in GROUPS {
        names.extend(group.classes);
        if group.name == PROGRAMS_GROUP {
            names.extend(PROGRAMS.iter().map(|program| program.name));
        }
    }
    names
}

/// The names that words select: classes or groups; all without words.
pub fn select(words: &[String]) -> Result<Vec<&'static str>, String> {
    let known = |word: &String| {
        names()
            .iter()
            .any(|name| word == name || word == group_of(name).name)
    };
    if let Some(word) = words.iter().find(|word| !known(word)) {
        return Err(format!(
            "--only {word}: there is no such class; there are {}",
            names().join(" ")
        ));
    }
    let wanted = |name: &str| words.iter().any(|w| w == name || w == group_of(name).name);
    Ok(names()
        .into_iter()
        .filter(|name| words.is_empty() || wanted(name))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_selected_by_name_and_group() {
        let words = |text: &str| text.split(',').map(str::to_string).collect::<Vec<_>>();
        assert_eq!(
            select(&words("fib,integer")).unwrap(),
            ["alu", "sort", "crc", "hash", "imat", "fib"]
        );
        assert_eq!(select(&words("cc1,boot")).unwrap(), ["cc1", "boot"]);
        assert_eq!(select(&[]).unwrap(), names());
        assert!(select(&words("nonesuch")).is_err());
        let mut all = names();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), names().len());
    }
}
