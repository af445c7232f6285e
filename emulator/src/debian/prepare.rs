//! Gets a Debian guest ready: packages to a kernel and a file system, kept in the cache.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::archive::{Node, Tree, add_folders, add_package, cpio, unpack};
use super::initramfs::{self, Task};
use super::packages::{FetchError, Package, Store, cache_error, write_whole};
use super::progress::Progress;

/// What kind of processor a package is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// 64 bits.
    Amd64,
    /// 32 bits.
    I386,
}

impl Architecture {
    /// An architecture by Debian's name.
    pub fn parse(name: &str) -> Option<Architecture> {
        match name {
            "amd64" => Some(Architecture::Amd64),
            "i386" => Some(Architecture::I386),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Architecture::Amd64 => "amd64",
            Architecture::I386 => "i386",
        }
    }

    /// The store of its packages, in a folder of its own unless it is the usual one.
    pub(super) fn store(self, cache: &Path, refresh: bool) -> Result<Store, FetchError> {
        let mut folder = cache.join("packages");
        if self == Architecture::I386 {
            folder.push(self.name());
        }
        let of_host = self == Architecture::Amd64 && env::consts::ARCH == "x86_64";
        Store::open(&folder, (!of_host).then_some(self.name()), refresh)
    }
}

/// Which of Debian's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// For virtual machines; fewer drivers.
    Cloud,
    /// For every machine of 64 bits.
    Amd64,
    /// For machines of 32 bits.
    I686,
    /// For machines of 32 bits, with page tables of three levels.
    I686Pae,
}

impl Flavour {
    /// Every flavour.
    pub const ALL: [Flavour; 4] = [
        Flavour::Cloud,
        Flavour::Amd64,
        Flavour::I686,
        Flavour::I686Pae,
    ];

    /// A flavour by name.
    pub fn parse(name: &str) -> Option<Flavour> {
        let name = if name == "cloud" { "cloud-amd64" } else { name };
        Flavour::ALL
            .into_iter()
            .find(|flavour| flavour.name() == name)
    }

    /// Its name, as in the name of the kernel's package.
    pub fn name(self) -> &'static str {
        match self {
            Flavour::Cloud => "cloud-amd64",
            Flavour::Amd64 => "amd64",
            Flavour::I686 => "686",
            Flavour::I686Pae => "686-pae",
        }
    }

    fn architecture(self) -> Architecture {
        match self {
            Flavour::Cloud | Flavour::Amd64 => Architecture::Amd64,
            Flavour::I686 | Flavour::I686Pae => Architecture::I386,
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
    /// What the guest's programs are for, if not for the kernel's own architecture.
    pub architecture: Option<Architecture>,
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

impl Default for Recipe {
    fn default() -> Recipe {
        Recipe {
            flavour: Flavour::Cloud,
            architecture: None,
            task: Task::Shell,
            packages: Vec::new(),
            unpack: None,
            programs: Vec::new(),
            refresh: false,
        }
    }
}

/// A guest that can be started.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The kernel.
    pub kernel: PathBuf,
    /// The file system.
    pub initrd: PathBuf,
    /// What is in it.
    pub files: Tree,
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

/// Makes the cache and locks it until the file is dropped: two of us must not fetch into one folder at
/// the same time.
pub(super) fn lock(cache: &Path) -> Result<File, FetchError> {
    fs::create_dir_all(cache).map_err(cache_error(cache))?;
    let path = cache.join("lock");
    let lock = File::create(&path).map_err(cache_error(&path))?;
    lock.lock().map_err(cache_error(&path))?;
    Ok(lock)
}

/// Fetches what is not in the cache yet, and builds the file system.
pub fn prepare(cache: &Path, recipe: &Recipe, progress: &Progress) -> Result<Prepared, FetchError> {
    let _lock = lock(cache)?;
    let of_kernel = recipe.flavour.architecture();
    let mut store = of_kernel.store(cache, recipe.refresh)?;
    let root = format!("linux-image-{}", recipe.flavour.name());
    let kernels = store.fetch(&root, &[&root], progress)?;
    let image = kernels
        .iter()
        .find(|package| package.name != root)
        .unwrap_or(&kernels[0]);
    let of_programs = recipe.architecture.unwrap_or(of_kernel);
    if of_programs != of_kernel {
        store = of_programs.store(cache, recipe.refresh)?;
    }
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
        Task::Shell if of_programs == Architecture::Amd64 => "shell.cpio".to_string(),
        Task::Shell => format!("shell-{}.cpio", of_programs.name()),
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
        files: tree,
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
