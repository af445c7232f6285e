//! Fault plans, targets, corruption, ledger and reports.
