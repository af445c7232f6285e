//! The benchmark's parts; `src/bin/bench.rs` puts them together.

pub mod classes;
pub mod guests;
pub mod measure;
pub mod peers;
pub mod plot;
pub mod results;
pub mod statistics;
