//! What a workload prints on the host processor itself: the very programs and libraries of the
//! guest, run from a folder, without root and without installing anything.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::archive::{Node, Tree};

/// Where a script finds its programs on the host, seen from the guest's folder /tmp: they are
/// started through the guest's own dynamic linker, and so use the guest's libraries.
const RUN: &str = "../usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 \
                   --library-path ../usr/lib/x86_64-linux-gnu ../usr/bin/";

/// A folder that goes when it is dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a script as the guest does, on the host; `folder` is made for that, and removed.
pub(super) fn run(folder: &Path, tree: &Tree, script: &str) -> io::Result<Vec<String>> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Err(io::Error::other("the host is no x86-64 Linux"));
    }
    let folder = Folder(folder.to_path_buf());
    let root = &folder.0;
    fs::create_dir_all(root)?;
    for (path, node) in tree {
        write(root, path, node)?;
    }
    let busybox = root.join("usr/bin/busybox");
    let output = Command::new(busybox)
        .args(["sh", "-c", script])
        .current_dir(root.join("tmp"))
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("RUN", RUN)
        .env("ROOT", "..")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("{}", output.status)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(str::to_string).collect())
}

fn write(root: &Path, path: &str, node: &Node) -> io::Result<()> {
    let to = root.join(path);
    match node {
        Node::Folder => fs::create_dir_all(to),
        Node::File(mode, bytes) => {
            fs::write(&to, bytes)?;
            fs::set_permissions(to, fs::Permissions::from_mode(*mode))
        }
        // Links between the merged folders are absolute ones.
        Node::Link(target) => match target.strip_prefix('/') {
            Some(inside) => symlink(root.join(inside), to),
            None => symlink(target, to),
        },
        Node::Device(..) => Ok(()),
    }
}
