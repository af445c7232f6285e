//! Gets a Debian guest ready: packages to a kernel and a file system, kept in the cache.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::archive::{Node, Tree, add_folders, add_package, cpio, unpack};
use super::initramfs::{self, Task};
use super::packages::{FetchError, Package, Store, cache_error, write_whole};
use super::progress::Progress;

/// Which of Debian's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// For virtual machines; fewer drivers.
    Cloud,
    /// For every machine.
    Amd64,
}

impl Flavour {
    /// A flavour by name.
    pub fn parse(name: &str) -> Option<Flavour> {
        match name {
            "cloud" | "cloud-amd64" => Some(Flavour::Cloud),
            "amd64" => Some(Flavour::Amd64),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Flavour::Cloud => "cloud-amd64",
            Flavour::Amd64 => "amd64",
        }
    }
}

/// File systems made by this process for scripts.
static SCRIPTS: AtomicU32 = AtomicU32::new(0);

/// What a guest is made of.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The kernel.
    pub flavour: Flavour,
    /// What it does after its start.
    pub task: Task,
    /// Packages beside BusyBox and SQLite. Of what they need only libraries are added.
    pub packages: Vec<String>,
    /// Programs and files that no package has: path without leading slash, content.
    pub programs: Vec<(String, Vec<u8>)>,
    /// Also write the file system into this folder.
    pub unpack: Option<PathBuf>,
    /// Ask the package sources again.
    pub refresh: bool,
}

/// A guest that can be started.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The kernel.
    pub kernel: PathBuf,
    /// The file system.
    pub initrd: PathBuf,
    /// The kernel's package and version, for people.
    pub title: String,
}

/// The user's cache folder for kMemvisor.
pub fn cache_directory() -> Option<PathBuf> {
    let absolute = |name| {
        let path = PathBuf::from(env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("kmemvisor"))
}

/// Fetches what is not in the cache yet, and builds the file system.
pub fn prepare(cache: &Path, recipe: &Recipe, progress: &Progress) -> Result<Prepared, FetchError> {
    fs::create_dir_all(cache).map_err(cache_error(cache))?;
    // Two of us must not fetch into one folder at the same time.
    let lock_path = cache.join("lock");
    let lock = File::create(&lock_path).map_err(cache_error(&lock_path))?;
    lock.lock().map_err(cache_error(&lock_path))?;

    let mut store = Store::open(&cache.join("packages"), recipe.refresh)?;
    let root = format!("linux-image-{}", recipe.flavour.name());
    let kernels = store.fetch(&root, &[&root], progress)?;
    let image = kernels
        .iter()
        .find(|package| package.name != root)
        .unwrap_or(&kernels[0]);
    let mut programs = store.fetch("programs", &["busybox-static", "sqlite3"], progress)?;
    for root in &recipe.packages {
        for package in store.fetch(&format!("program-{root}"), &[root], progress)? {
            if !programs.iter().any(|known| known.name == package.name) {
                programs.push(package);
            }
        }
    }

    let kernel = cache.join(format!(
        "vmlinuz-{}",
        &image.sha256[..16.min(image.sha256.len())]
    ));
    if !kernel.exists() {
        progress.step(&format!("unpacking {}", image.name));
        write_whole(&kernel, &kernel_image(image)?)?;
    }
    progress.step("building the file system");
    let mut tree = initramfs::build(&programs, &recipe.task)?;
    for (path, bytes) in &recipe.programs {
        tree.insert(path.clone(), Node::File(0o755, bytes.clone()));
    }
    add_folders(&mut tree);
    if let Some(folder) = &recipe.unpack {
        unpack(&tree, folder)?;
    }
    let initrd = cache.join(match recipe.task {
        Task::Shell => "shell.cpio".to_string(),
        // Several runs with different scripts may happen at once.
        Task::Script(_) => {
            let number = SCRIPTS.fetch_add(1, Ordering::Relaxed);
            format!("script-{}-{number}.cpio", std::process::id())
        }
    });
    write_whole(&initrd, &cpio(&tree))?;
    Ok(Prepared {
        kernel,
        initrd,
        title: format!("{} {}", image.name, image.version),
    })
}

fn kernel_image(package: &Package) -> Result<Vec<u8>, FetchError> {
    let mut tree = Tree::new();
    add_package(&mut tree, package, |path| path.starts_with("boot/vmlinuz"))?;
    let image = tree.into_values().find_map(|node| match node {
        Node::File(_, bytes) => Some(bytes),
        _ => None,
    });
    image.ok_or_else(|| FetchError::Lacks {
        package: package.name.clone(),
        what: "boot/vmlinuz".to_string(),
    })
}
