//! Guest CPU state, interpreter and dynamic binary translator.

pub mod cache;
pub mod decode;
pub mod guest;
pub mod interpret;
mod platform;
#[cfg(test)]
mod random;
pub mod record;
pub mod run;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod x86_64;

pub use platform::{Platform, Refused};
pub use run::{EngineOptions, Stop, Vcpu, VcpuError};
