//! Whole-system, differential and property tests.
