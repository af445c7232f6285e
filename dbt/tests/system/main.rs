//! System instructions and event delivery, case by case from the manual.

mod cases;
mod control;
mod delivery;
mod faults;
mod identity;
mod machine;
mod transfers;
