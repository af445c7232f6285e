//! Guest CPU state, interpreter and dynamic binary translator.

pub mod guest;
pub mod interpret;
mod platform;
pub mod record;

pub use platform::{Platform, Refused};
