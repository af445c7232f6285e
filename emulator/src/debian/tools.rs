//! Programs for the host from its own packages, without installing them: what benchmarks and
//! tests compare with.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::archive::{Tree, add_folders, add_package, unpack};
use super::packages::{FetchError, cache_error, hex};
use super::prepare::{Architecture, lock};
use super::progress::Progress;

/// The loader of programs, and where it finds their libraries.
const LOADER: &str = "lib64/ld-linux-x86-64.so.2";
const LIBRARIES: [&str; 3] = [
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/pulseaudio",
];

/// A folder with the files of packages and of the libraries that they need.
#[derive(Clone, Debug)]
pub struct Tools {
    folder: PathBuf,
}

impl Tools {
    /// Fetches and unpacks packages of the host, unless the cache has them. `name` is for the cache.
    pub fn prepare(
        cache: &Path,
        name: &str,
        packages: &[&str],
        progress: &Progress,
    ) -> Result<Tools, FetchError> {
        let _lock = lock(cache)?;
        let mut store = Architecture::Amd64.store(cache, false)?;
        let packages = store.fetch(&format!("tools-{name}"), packages, progress)?;
        let mut digest = Sha256::new();
        for package in &packages {
            digest.update(package.sha256.as_bytes());
        }
        let key = hex(&digest.finalize());
        let folder = cache.join(format!("tools-{name}-{}", &key[..16]));
        if !folder.exists() {
            progress.step(&format!("unpacking {name}"));
            let mut tree = Tree::new();
            for package in &packages {
                add_package(&mut tree, package, |path| {
                    !path.starts_with("usr/share/doc/")
                })?;
            }
            add_folders(&mut tree);
            // Others see all of it or nothing; what is there of an interrupted try goes.
            let part = folder.with_extension("part");
            if part.exists() {
                fs::remove_dir_all(&part).map_err(cache_error(&part))?;
            }
            fs::create_dir(&part).map_err(cache_error(&part))?;
            unpack(&tree, &part)?;
            fs::rename(&part, &folder).map_err(cache_error(&folder))?;
        }
        Ok(Tools { folder })
    }

    /// A file or folder, by its path without leading slash.
    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    /// What starts a program of these: the loader and its arguments, so that the libraries are
    /// theirs as well, whatever the host has.
    pub fn program(&self, path: &str) -> [String; 4] {
        let libraries = LIBRARIES.map(|folder| self.path(folder).display().to_string());
        [
            self.path(LOADER).display().to_string(),
            "--library-path".to_string(),
            libraries.join(":"),
            self.path(path).display().to_string(),
        ]
    }
}
