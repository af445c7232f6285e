//! `kmemvisor boot debian`: Debian's own kernel and programs, fetched as packages, started in a
//! machine of their own.

mod archive;
mod command;
mod initramfs;
mod packages;
mod prepare;
mod progress;
mod reference;
mod tools;
mod workload;

pub use archive::{Node, Tree};
pub use command::main;
pub use initramfs::{Task, workload_output};
pub use packages::FetchError;
pub use prepare::{Architecture, Flavour, Prepared, Recipe, cache_directory, prepare};
pub use progress::Progress;
pub use tools::Tools;
pub use workload::{Expected, WORKLOADS, Workload};
