//! Packages from the host's package client: resolved, fetched and checked without root, and
//! without installing anything.
//!
//! The client verifies the signatures of its lists; what it fetches is compared here once more
//! with the SHA-256 in those lists, whenever it is used.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::progress::Progress;

/// Packages cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// A program is missing.
    #[error("{program} cannot be run ({source}): `boot debian` needs a Debian host")]
    NoClient {
        /// Its name.
        program: &'static str,
        /// The host's reason.
        source: io::Error,
    },
    /// The lists do not have it.
    #[error("the host's package sources have no package {0}")]
    Unknown(String),
    /// The client failed.
    #[error("{program} failed: {why}")]
    Client {
        /// Its name.
        program: &'static str,
        /// Its last words.
        why: String,
    },
    /// A fetched file is not what the lists say.
    #[error("{file} has SHA-256 {found}, the package lists say {wanted}; it was removed")]
    Wrong {
        /// The file.
        file: String,
        /// Its checksum.
        found: String,
        /// What the lists say.
        wanted: String,
    },
    /// A package lacks what it is fetched for.
    #[error("package {package} has no {what}")]
    Lacks {
        /// The package.
        package: String,
        /// What was looked for.
        what: String,
    },
    /// The cache.
    #[error("cannot use the cache: {path}: {source}")]
    Cache {
        /// The path.
        path: String,
        /// The host's reason.
        source: io::Error,
    },
}

/// Names a path in an error.
pub(super) fn cache_error(path: &Path) -> impl FnOnce(io::Error) -> FetchError {
    let path = path.display().to_string();
    move |source| FetchError::Cache { path, source }
}

/// One fetched package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Its size in bytes.
    pub size: u64,
    /// The file.
    pub file: PathBuf,
}

/// The packages in a folder of the cache.
pub struct Store {
    folder: PathBuf,
    /// The packages' architecture, by Debian's name; the host's own if there is none.
    architecture: Option<&'static str>,
    refresh: bool,
    /// Package lists of our own, because the host has none or old ones.
    own_lists: bool,
}

impl Store {
    /// A store in a folder, which is made. `architecture`: one that is not the host's. `refresh`:
    /// ask the package sources again.
    pub fn open(
        folder: &Path,
        architecture: Option<&'static str>,
        refresh: bool,
    ) -> Result<Store, FetchError> {
        fs::create_dir_all(folder).map_err(cache_error(folder))?;
        Ok(Store {
            folder: folder.to_path_buf(),
            architecture,
            refresh,
            own_lists: false,
        })
    }

    /// The packages of a set and what they need: from the cache, else from the sources.
    pub fn fetch(
        &mut self,
        set: &str,
        roots: &[&str],
        progress: &Progress,
    ) -> Result<Vec<Package>, FetchError> {
        let manifest = self.folder.join(format!("{set}.list"));
        if !self.refresh
            && let Some(packages) = self.read_manifest(&manifest)
            && packages.iter().all(|package| verify(package).is_ok())
        {
            return Ok(packages);
        }
        progress.step("looking for packages");
        let mut packages = match self.resolve(roots) {
            Ok(packages) => packages,
            Err(error @ FetchError::NoClient { .. }) => return Err(error),
            Err(_) => {
                // A source that cannot be reached now matters only if something is missing then.
                let updated = self.update_lists(progress);
                let resolved = self.resolve(roots);
                resolved.map_err(|error| updated.err().unwrap_or(error))?
            }
        };
        if let Err(error) = self.download(&packages, progress) {
            // Lists that are too old name files that are gone.
            if self.own_lists {
                return Err(error);
            }
            self.update_lists(progress)?;
            packages = self.resolve(roots)?;
            self.download(&packages, progress)?;
        }
        let text: String = packages
            .iter()
            .map(|package| {
                format!(
                    "{} {} {} {} {}\n",
                    package.name,
                    package.version,
                    package.sha256,
                    package.size,
                    package.file.file_name().unwrap_or_default().display()
                )
            })
            .collect();
        write_whole(&manifest, text.as_bytes())?;
        Ok(packages)
    }

    fn read_manifest(&self, manifest: &Path) -> Option<Vec<Package>> {
        let text = fs::read_to_string(manifest).ok()?;
        let mut packages = Vec::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [name, version, sha256, size, file] = words[..] else {
                return None;
            };
            packages.push(Package {
                name: name.to_string(),
                version: version.to_string(),
                sha256: sha256.to_string(),
                size: size.parse().ok()?,
                file: self.folder.join(file),
            });
        }
        (!packages.is_empty()).then_some(packages)
    }

    fn client(&self, program: &'static str) -> Command {
        let mut command = Command::new(program);
        command
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .current_dir(&self.folder);
        // The host's caches belong to root; as root there is nobody else to fetch as.
        let own = |part: &str| self.folder.join("apt").join(part).display().to_string();
        command.args(["-o", &format!("Dir::Cache={}", own("cache"))]);
        command.args(["-o", "APT::Sandbox::User="]);
        if self.own_lists {
            command.args(["-o", &format!("Dir::State={}", own("state"))]);
            command.args(["-o", &format!("Dir::State::lists={}", own("state/lists"))]);
            command.args(["-o", "Dir::State::status=/var/lib/dpkg/status"]);
        }
        if let Some(architecture) = self.architecture {
            command.args(["-o", &format!("APT::Architecture={architecture}")]);
            command.args(["-o", &format!("APT::Architectures::={architecture}")]);
            // What the host has installed is of its own architecture.
            command.args(["-o", "Dir::State::status=/dev/null"]);
        }
        command
    }

    /// Runs a client to its end and gives its output.
    fn run(&self, program: &'static str, args: &[&str]) -> Result<String, FetchError> {
        let output = self
            .client(program)
            .args(args)
            .output()
            .map_err(|source| FetchError::NoClient { program, source })?;
        if !output.status.success() {
            return Err(client_error(program, &output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn update_lists(&mut self, progress: &Progress) -> Result<(), FetchError> {
        self.own_lists = true;
        for folder in ["state/lists/partial", "cache/archives/partial"] {
            let folder = self.folder.join("apt").join(folder);
            fs::create_dir_all(&folder).map_err(cache_error(&folder))?;
        }
        progress.step("fetching package lists");
        self.run("apt-get", &["update", "--error-on=any"])?;
        Ok(())
    }

    /// The packages to fetch: the roots, the kernels they stand for, and libraries.
    fn resolve(&self, roots: &[&str]) -> Result<Vec<Package>, FetchError> {
        let mut found = Vec::new();
        let mut seen: HashSet<String> = roots.iter().map(|root| root.to_string()).collect();
        let mut wave: Vec<String> = roots.iter().map(|root| root.to_string()).collect();
        let mut first = true;
        while !wave.is_empty() {
            let mut args = vec!["show", "--no-all-versions"];
            args.extend(wave.iter().map(String::as_str));
            let text = self.run("apt-cache", &args)?;
            let stanzas = stanzas(&text);
            let mut next = Vec::new();
            for name in &wave {
                let Some(stanza) = stanzas.get(name.as_str()) else {
                    if first {
                        return Err(FetchError::Unknown(name.clone()));
                    }
                    // A virtual package: somebody else on the list provides it.
                    continue;
                };
                let field = |key: &str| stanza.get(key).copied().unwrap_or_default();
                // Beyond what was asked for, programs run without anything but libraries, and
                // the versions of Python that its packages stand for.
                let kernel = name.starts_with("linux-image-");
                let section = field("Section");
                if !first && !kernel && !section.ends_with("libs") && section != "python" {
                    continue;
                }
                for dependency in dependencies(field("Depends"), field("Pre-Depends")) {
                    let wanted = !kernel || dependency.starts_with("linux-image-");
                    if wanted && seen.insert(dependency.to_string()) {
                        next.push(dependency.to_string());
                    }
                }
                let file = Path::new(field("Filename")).file_name();
                let file = file.unwrap_or_default().display();
                found.push(Package {
                    name: name.clone(),
                    version: field("Version").to_string(),
                    sha256: field("SHA256").to_string(),
                    size: field("Size").parse().unwrap_or(0),
                    file: self.folder.join(format!("{file}")),
                });
            }
            wave = next;
            first = false;
        }
        Ok(found)
    }

    fn download(&self, packages: &[Package], progress: &Progress) -> Result<(), FetchError> {
        let missing: Vec<&Package> = packages.iter().filter(|p| verify(p).is_err()).collect();
        let total: u64 = missing.iter().map(|package| package.size).sum();
        let mut done = 0;
        for (index, package) in missing.iter().enumerate() {
            let (name, count) = (&package.name, missing.len());
            progress.step(&format!("fetching {name} ({} of {count})", index + 1));
            progress.bytes(done, total);
            let before: HashSet<PathBuf> = files(&self.folder);
            let mut child = self
                .client("apt-get")
                .args(["-q", "download"])
                .arg(format!("{name}={}", package.version))
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .map_err(|source| FetchError::NoClient {
                    program: "apt-get",
                    source,
                })?;
            loop {
                match child.try_wait().map_err(cache_error(&self.folder))? {
                    Some(_) => break,
                    None => thread::sleep(Duration::from_millis(50)),
                }
                let new = files(&self.folder)
                    .into_iter()
                    .find(|f| !before.contains(f));
                let size = new.and_then(|file| Some(fs::metadata(file).ok()?.len()));
                progress.bytes(done + size.unwrap_or(0), total);
            }
            let output = child
                .wait_with_output()
                .map_err(cache_error(&self.folder))?;
            if !output.status.success() {
                return Err(client_error("apt-get", &output.stderr));
            }
            // The client writes an epoch's colon as %3a into the name; the lists leave it out.
            let written = files(&self.folder).into_iter().find(|file| {
                let text = file.file_name().unwrap_or_default().to_string_lossy();
                text.starts_with(&format!("{name}_")) && !before.contains(file)
            });
            if let Some(written) = written.filter(|written| *written != package.file) {
                fs::rename(&written, &package.file).map_err(cache_error(&written))?;
            }
            if let Err(error) = verify(package) {
                let _ = fs::remove_file(&package.file);
                return Err(error);
            }
            done += package.size;
        }
        Ok(())
    }
}

/// The packages in a folder, whole or in the making.
fn files(folder: &Path) -> HashSet<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().contains(".deb"))
        .collect()
}

fn client_error(program: &'static str, stderr: &[u8]) -> FetchError {
    let text = String::from_utf8_lossy(stderr);
    let errors = text.lines().filter_map(|line| line.strip_prefix("E: "));
    let why = errors
        .map(str::trim)
        .next()
        .or_else(|| text.lines().last())
        .unwrap_or("it said nothing")
        .to_string();
    FetchError::Client { program, why }
}

/// Compares a file with what the lists say.
fn verify(package: &Package) -> Result<(), FetchError> {
    let bytes = fs::read(&package.file).map_err(cache_error(&package.file))?;
    let found = hex(&Sha256::digest(&bytes));
    if found != package.sha256 {
        return Err(FetchError::Wrong {
            file: package.file.display().to_string(),
            found,
            wanted: package.sha256.clone(),
        });
    }
    Ok(())
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a file so that others see all of it or nothing.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), FetchError> {
    let part = path.with_extension(format!("part{}", std::process::id()));
    fs::write(&part, bytes).map_err(cache_error(&part))?;
    fs::rename(&part, path).map_err(cache_error(path))
}

/// The stanzas of a control file by package name.
fn stanzas(text: &str) -> HashMap<&str, HashMap<&str, &str>> {
    let mut all = HashMap::new();
    for stanza in text.split("\n\n") {
        let fields: HashMap<&str, &str> = stanza
            .lines()
            .filter(|line| !line.starts_with(' '))
            .filter_map(|line| line.split_once(": "))
            .collect();
        if let Some(name) = fields.get("Package") {
            all.entry(*name).or_insert(fields);
        }
    }
    all
}

/// The names in dependency fields, the first of each choice.
fn dependencies<'a>(depends: &'a str, pre: &'a str) -> impl Iterator<Item = &'a str> {
    depends.split(',').chain(pre.split(',')).filter_map(|part| {
        let first = part.split(['|', '(', ':', '[']).next()?.trim();
        (!first.is_empty()).then_some(first)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_files_are_read() {
        let text = "Package: a\nVersion: 1\nDepends: b (>= 2), c | d, e:any\nDescription: x\n \
                    more: text\n\nPackage: b\nVersion: 2\n";
        let all = stanzas(text);
        assert_eq!(all["b"]["Version"], "2");
        let names: Vec<&str> = dependencies(all["a"]["Depends"], "").collect();
        assert_eq!(names, ["b", "c", "e"]);
    }

    #[test]
    fn a_changed_file_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.deb");
        fs::write(&file, b"abc").unwrap();
        let mut package = Package {
            name: "x".into(),
            version: "1".into(),
            sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".into(),
            size: 3,
            file,
        };
        assert!(verify(&package).is_ok());
        package.sha256.replace_range(0..1, "c");
        assert!(matches!(verify(&package), Err(FetchError::Wrong { .. })));
    }
}
