//! System instructions and event delivery, case by case from the manual.

mod cases;
#[path = "../common/mod.rs"]
mod common;

mod control;
mod data_breakpoints;
mod delivery;
mod faults;
mod identity;
mod kernel_entries;
mod machine;
mod moving;
mod predicted_returns;
mod protection_keys;
mod remapping;
mod transfers;
mod translation;
mod x87_exceptions;
mod x87_pointers;
