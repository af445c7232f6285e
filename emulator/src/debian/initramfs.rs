//! The guest's whole file system: BusyBox, some programs with their libraries, and an init.

use super::archive::{Node, Tree, add_package};
use super::packages::{FetchError, Package};

/// Folders that Debian has merged into /usr: the packages name both.
const MERGED: [&str; 5] = ["bin", "sbin", "lib", "lib32", "lib64"];

/// What of a package nobody needs in a machine that runs for minutes.
fn unwanted(path: &str) -> bool {
    const FOLDERS: [&str; 5] = [
        "usr/lib/locale",
        "usr/bin/sqldiff",
        "etc/ld.so.conf.d",
        "usr/lib/systemd",
        "usr/share",
    ];
    // Node.js keeps a part of itself there.
    const EXCEPTION: &str = "usr/share/nodejs";
    let within = |folder: &str| {
        let rest = path.strip_prefix(folder);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    // The C library's converters and auditors are in a folder named after the architecture.
    let mut parts = path.trim_start_matches("usr/").split('/');
    let of_library = parts.next() == Some("lib")
        && parts
            .next()
            .is_some_and(|triplet| triplet.contains("-linux-"))
        && parts
            .next()
            .is_some_and(|name| ["gconv", "audit"].contains(&name));
    of_library || (FOLDERS.into_iter().any(within) && !within(EXCEPTION))
}

/// Before a workload's output.
pub const BEGIN: &str = "=== kmemvisor workload begin ===";
/// After it; the exit status follows.
pub const END: &str = "=== kmemvisor workload end, status";

const INIT: &str = r#"#!/bin/busybox sh
export PATH=/usr/bin:/usr/sbin HOME=/root
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /root /etc
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mkdir -p /dev/pts /dev/shm
/bin/busybox mount -t devpts devpts /dev/pts
/bin/busybox mount -t tmpfs tmpfs /tmp
/bin/busybox --install -s
hostname kmemvisor
ulimit -c 0
exec /etc/start
"#;

const INTERACTIVE: &str = r#"#!/bin/busybox sh
echo
echo "Debian's kernel $(uname -r), with BusyBox and sqlite3. \`exit\` or \`poweroff -f\` ends it."
cd /root
setsid cttyhack sh
poweroff -f
"#;

/// What the guest does after its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// An interactive shell.
    Shell,
    /// A shell script, then power-off.
    Script(String),
}

/// The file system of a guest.
pub fn build(packages: &[Package], task: &Task) -> Result<Tree, FetchError> {
    let mut files = Tree::new();
    for package in packages {
        add_package(&mut files, package, |path| !unwanted(path))?;
    }
    let mut tree = Tree::new();
    for (path, node) in files {
        let top = path.split('/').next().unwrap_or_default();
        if !MERGED.contains(&top) {
            tree.insert(path, node);
        } else if path != top {
            tree.insert(format!("usr/{path}"), node);
        }
    }
    if !tree.contains_key("usr/bin/busybox") {
        return Err(FetchError::Lacks {
            package: "busybox-static".to_string(),
            what: "bin/busybox".to_string(),
        });
    }
    for name in MERGED {
        tree.insert(name.to_string(), Node::Link(format!("usr/{name}")));
        tree.entry(format!("usr/{name}")).or_insert(Node::Folder);
    }
    for name in ["dev", "proc", "sys", "tmp", "root", "run", "usr/sbin"] {
        tree.insert(name.to_string(), Node::Folder);
    }
    // The kernel opens the console before anything is mounted.
    tree.insert("dev/console".to_string(), Node::Device(5, 1));
    tree.insert("dev/null".to_string(), Node::Device(1, 3));
    let script = |text: &str| Node::File(0o755, text.as_bytes().to_vec());
    tree.insert("init".to_string(), script(INIT));
    let start = match task {
        Task::Shell => INTERACTIVE.to_string(),
        Task::Script(text) => {
            tree.insert("etc/workload".to_string(), script(text));
            format!(
                "#!/bin/busybox sh\ncd /tmp\necho \"{BEGIN}\"\n\
                 sh /etc/workload </dev/null 2>&1\necho \"{END} $? ===\"\npoweroff -f\n"
            )
        }
    };
    tree.insert("etc/start".to_string(), script(&start));
    let line = |text: &str| Node::File(0o644, text.as_bytes().to_vec());
    tree.insert("etc/passwd".to_string(), line("root::0:0::/root:/bin/sh\n"));
    tree.insert("etc/group".to_string(), line("root:x:0:\n"));
    Ok(tree)
}

/// What a workload printed, from everything on the console, and its exit status.
pub fn workload_output(console: &[u8]) -> Option<(Vec<String>, i32)> {
    let text = String::from_utf8_lossy(console);
    let mut lines = text
        .lines()
        .map(|line| line.trim_end_matches('\r'))
        .skip_while(|line| *line != BEGIN);
    lines.next()?;
    let mut output = Vec::new();
    for line in lines {
        if let Some(rest) = line.strip_prefix(END) {
            let status = rest.trim_end_matches("===").trim().parse().ok()?;
            return Some((output, status));
        }
        output.push(line.to_string());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converters_go_and_libraries_stay() {
        for (path, goes) in [
            ("lib/i386-linux-gnu/gconv/UTF-7.so", true),
            ("usr/lib/x86_64-linux-gnu/audit", true),
            ("usr/share/doc/x", true),
            ("usr/share/nodejs/acorn/index.js", false),
            ("usr/lib/localed", false),
            ("lib/i386-linux-gnu/libc.so.6", false),
        ] {
            assert_eq!(unwanted(path), goes, "{path}");
        }
    }

    #[test]
    fn a_workload_that_never_ended_has_no_output() {
        let console = format!("boot\r\n{BEGIN}\r\none\r\ntwo\r\n");
        assert_eq!(workload_output(console.as_bytes()), None);
        let console = format!("{console}{END} 3 ===\r\nmore\r\n");
        let lines = vec!["one".to_string(), "two".to_string()];
        assert_eq!(workload_output(console.as_bytes()), Some((lines, 3)));
    }
}
