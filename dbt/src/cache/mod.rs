//! Translated blocks: where they are, how they are linked, when they go.

mod blocks;
mod region;
mod trace;

pub use blocks::{Block, BlockCache, CacheStatistics, Exit, Key};
pub use region::{CodeOffset, CodeRegion};
