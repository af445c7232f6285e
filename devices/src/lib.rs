//! Chips, buses and firmware tables of the emulated PC.
