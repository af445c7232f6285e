//! File trees: read from packages, written as the archive that Linux unpacks at start (cpio,
//! "newc": Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use super::packages::{FetchError, Package, cache_error};

/// What a path is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A folder.
    Folder,
    /// A file with its mode and content.
    File(u32, Vec<u8>),
    /// A symbolic link.
    Link(String),
    /// A character device: major and minor number.
    Device(u32, u32),
}

/// A file tree by path, without leading slash; folders before what is in them.
pub type Tree = BTreeMap<String, Node>;

/// Adds a package's files that `wanted` accepts, by their path without leading slash.
pub fn add_package(
    tree: &mut Tree,
    package: &Package,
    wanted: impl Fn(&str) -> bool,
) -> Result<(), FetchError> {
    let program = "dpkg-deb";
    let mut child = Command::new(program)
        .arg("--fsys-tarfile")
        .arg(&package.file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|source| FetchError::NoClient { program, source })?;
    let output = child.stdout.take().expect("it is piped");
    let read = read_tar(tree, output, wanted);
    let status = child.wait().map_err(cache_error(&package.file))?;
    read.map_err(cache_error(&package.file))?;
    if !status.success() {
        return Err(FetchError::Client {
            program,
            why: format!("{} cannot be unpacked", package.file.display()),
        });
    }
    Ok(())
}

fn read_tar(tree: &mut Tree, mut from: impl Read, wanted: impl Fn(&str) -> bool) -> io::Result<()> {
    let mut archive = tar::Archive::new(&mut from);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let path = path.trim_start_matches("./").trim_end_matches('/');
        if path.is_empty() || !wanted(path) {
            continue;
        }
        let header = entry.header();
        let mode = header.mode()? & 0o7777;
        let kind = header.entry_type();
        let target = || -> io::Result<String> {
            let name = entry.link_name()?;
            let name = name.ok_or(io::ErrorKind::InvalidData)?;
            Ok(name.to_string_lossy().into_owned())
        };
        let node = if kind.is_dir() {
            Node::Folder
        } else if kind.is_symlink() {
            Node::Link(target()?)
        } else if kind.is_hard_link() {
            Node::Link(format!("/{}", target()?.trim_start_matches("./")))
        } else if kind.is_file() {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            Node::File(mode, bytes)
        } else {
            continue;
        };
        tree.insert(path.to_string(), node);
    }
    // The writer must not see a closed pipe.
    io::copy(&mut from, &mut io::sink())?;
    Ok(())
}

/// Adds the folders above every path.
pub fn add_folders(tree: &mut Tree) {
    let paths: Vec<String> = tree.keys().cloned().collect();
    for path in paths {
        let above = path.match_indices('/').map(|(at, _)| &path[..at]);
        for folder in above {
            tree.entry(folder.to_string()).or_insert(Node::Folder);
        }
    }
}

/// Writes the tree into a folder. Devices become empty files: only root may make them.
pub fn unpack(tree: &Tree, folder: &Path) -> Result<(), FetchError> {
    for (path, node) in tree {
        let at = folder.join(path);
        let written = match node {
            Node::Folder => fs::create_dir_all(&at),
            Node::File(mode, bytes) => fs::write(&at, bytes)
                .and_then(|()| fs::set_permissions(&at, Permissions::from_mode(*mode))),
            Node::Link(target) => symlink(target, &at),
            Node::Device(..) => fs::write(&at, []),
        };
        written.map_err(cache_error(&at))?;
    }
    Ok(())
}

/// The tree as a cpio archive.
pub fn cpio(tree: &Tree) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, (path, node)) in tree.iter().enumerate() {
        let (mode, content, device): (u32, &[u8], (u32, u32)) = match node {
            Node::Folder => (0o040_755, &[], (0, 0)),
            Node::File(mode, bytes) => (0o100_000 | mode, bytes, (0, 0)),
            Node::Link(target) => (0o120_777, target.as_bytes(), (0, 0)),
            Node::Device(major, minor) => (0o020_600, &[], (*major, *minor)),
        };
        entry(&mut out, index as u32 + 1, path, mode, content, device);
    }
    entry(&mut out, 0, "TRAILER!!!", 0, &[], (0, 0));
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn entry(out: &mut Vec<u8>, inode: u32, path: &str, mode: u32, content: &[u8], device: (u32, u32)) {
    let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
    let fields = [
        inode,
        mode,
        0, // owner
        0, // group
        links,
        0, // time
        content.len() as u32,
        0,
        0,
        device.0,
        device.1,
        path.len() as u32 + 1,
        0, // no checksum
    ];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back: (path, mode, content).
    fn read(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |index: usize| {
                let from = at + 6 + index * 8;
                let text = std::str::from_utf8(&bytes[from..from + 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name) = (field(1), field(6) as usize, field(11) as usize);
            let path = &bytes[at + 110..at + 110 + name - 1];
            let path = String::from_utf8(path.to_vec()).unwrap();
            if path == "TRAILER!!!" {
                return entries;
            }
            let start = (at + 110 + name).next_multiple_of(4);
            entries.push((path, mode, bytes[start..start + size].to_vec()));
            at = (start + size).next_multiple_of(4);
        }
    }

    #[test]
    fn what_is_unpacked_is_the_tree() {
        let folder = tempfile::tempdir().unwrap();
        let mut tree = Tree::new();
        tree.insert("a/b".into(), Node::File(0o755, b"hello".to_vec()));
        tree.insert("l".into(), Node::Link("a/b".into()));
        add_folders(&mut tree);
        unpack(&tree, folder.path()).unwrap();
        let through = folder.path().join("l");
        assert_eq!(fs::read(&through).unwrap(), b"hello");
        let mode = fs::metadata(&through).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    }

    #[test]
    fn what_is_written_reads_back() {
        let mut tree = Tree::new();
        tree.insert("a/b/c".into(), Node::File(0o755, b"hello".to_vec()));
        tree.insert("l".into(), Node::Link("a/b".into()));
        add_folders(&mut tree);
        let expected = [
            ("a", 0o040_755, ""),
            ("a/b", 0o040_755, ""),
            ("a/b/c", 0o100_755, "hello"),
            ("l", 0o120_777, "a/b"),
        ];
        let expected =
            expected.map(|(path, mode, text)| (path.to_string(), mode, text.as_bytes().to_vec()));
        assert_eq!(read(&cpio(&tree)), expected);
    }
}
