//! The switches of the translator's optimisations.

use std::fmt::Display;

use dbt::EngineOptions;

use super::values::{number, switch};

/// A switch of the translator: what it does without one can be compared with what it does with it.
pub struct Switch {
    /// How it is written, the default first.
    pub form: &'static str,
    /// What it is for.
    pub help: &'static str,
    set: Set,
}

enum Set {
    /// On or off.
    Flag(fn(&mut EngineOptions) -> &mut bool),
    /// More than that.
    Value(fn(&mut EngineOptions, &str) -> Result<(), String>),
}

impl Switch {
    /// The name of the setting.
    pub fn name(&self) -> &'static str {
        self.form.split('=').next().unwrap_or_default()
    }

    /// Sets it to a value as it is written.
    pub fn set(&self, engine: &mut EngineOptions, text: &str) -> Result<(), String> {
        match self.set {
            Set::Flag(field) => *field(engine) = switch(self.name(), text)?,
            Set::Value(set) => set(engine, text)?,
        }
        Ok(())
    }
}

const fn flag(
    form: &'static str,
    help: &'static str,
    field: fn(&mut EngineOptions) -> &mut bool,
) -> Switch {
    Switch {
        form,
        help,
        set: Set::Flag(field),
    }
}

/// Every switch of an optimisation.
pub const SWITCHES: &[Switch] = &[
    flag(
        "grouping=on|off",
        "one TLB check serves accesses that are near each other",
        |engine| &mut engine.grouping,
    ),
    flag(
        "system-inline=on|off",
        "system calls, the time and more without leaving translated code",
        |engine| &mut engine.system_inline,
    ),
    flag(
        "memory-inline=on|off",
        "string instructions, bit strings, CMPXCHG8B, CMPXCHG16B and ENTER without leaving translated code",
        |engine| &mut engine.memory_inline,
    ),
    flag(
        "vector-strings=on|off",
        "REP STOS and REP MOVS by vector registers, where the host has AVX-512",
        |engine| &mut engine.vector_strings,
    ),
    flag(
        "returns=on|off",
        "where returns go is predicted by a stack of the calls",
        |engine| &mut engine.returns,
    ),
    flag(
        "large-code=on|off",
        "translated code is on large host pages, where the host has protection keys",
        |engine| &mut engine.large_code,
    ),
    flag(
        "pcid-tlb=on|off",
        "TLB entries of several address spaces are kept where the guest has PCIDs",
        |engine| &mut engine.pcid_tlb,
    ),
    flag(
        "second-places=on|off",
        "a TLB entry whose place another page takes moves to a second one",
        |engine| &mut engine.second_places,
    ),
    flag(
        "precise-flags=on|off",
        "flags are right in frames of exceptions even where the code has no use for them",
        |engine| &mut engine.precise_flags,
    ),
    flag(
        "lazy-flags=on|off",
        "returns and indirect calls leave flags to whoever wants them, other code passes them on",
        |engine| &mut engine.lazy_flags,
    ),
    Switch {
        form: "prediction=128|N|off",
        help: "how often the check of a loop may try wrong pages, at the most, before it looks for others",
        set: Set::Value(|engine, text| {
            engine.prediction = count(text, EngineOptions::default().prediction, u8::MAX)?;
            Ok(())
        }),
    },
    flag(
        "eager-prediction=off|on",
        "every loop's checks predict, not only those of loops that take long: for tests",
        |engine| &mut engine.eager_prediction,
    ),
    flag(
        "wide-reach=on|off",
        "such a check tries a run of pages that are neighbours on the host, not only one page",
        |engine| &mut engine.wide_reach,
    ),
    flag(
        "gather=on|off",
        "pages for which such checks fail often are brought together on the host",
        |engine| &mut engine.gather,
    ),
    Switch {
        form: "registers=3|N|off",
        help: "what a hot loop has to save for the guest registers in host registers to be others",
        set: Set::Value(|engine, text| {
            engine.registers = count(text, EngineOptions::default().registers, u8::MAX)?;
            Ok(())
        }),
    },
    flag(
        "crossing=on|off",
        "accesses that cross from one page into the next are executed in translated code",
        |engine| &mut engine.crossing,
    ),
    flag(
        "populate-ahead=on|off",
        "a thread asks the host for memory before the guest, or the translator, writes it",
        |engine| &mut engine.populate_ahead,
    ),
    flag(
        "late-stack=on|off",
        "pushes and pops in a row move the guest's stack pointer once",
        |engine| &mut engine.late_stack,
    ),
    flag(
        "late-slots=on|off",
        "accesses that share a check find what leads there in a register as long as they can",
        |engine| &mut engine.late_slots,
    ),
    flag(
        "late-stores=on|off",
        "of several stores in a row that share a check, those to the mirrors come first",
        |engine| &mut engine.late_stores,
    ),
    flag(
        "late-index=on|off",
        "accesses with a base and an index whose checks predict wait for one of the two registers only",
        |engine| &mut engine.late_index,
    ),
    flag(
        "prefetch=on|off",
        "the host prefetches what the guest does",
        |engine| &mut engine.prefetch,
    ),
    flag(
        "exit-polls=on|off",
        "what a trace's exits lead to is sampled, and counts its entries, until it is part of a trace",
        |engine| &mut engine.exit_polls,
    ),
    flag(
        "slot-registers=on|off",
        "what leads to accesses that share a check may be in a register that a trace does not need",
        |engine| &mut engine.slot_registers,
    ),
    flag(
        "sure-accesses=on|off",
        "what an earlier check covers keeps no flags; known returns are not compared",
        |engine| &mut engine.sure_accesses,
    ),
    flag(
        "hoisting=on|off",
        "checks that are the same in each round of a loop are made before its first one",
        |engine| &mut engine.hoisting,
    ),
    flag(
        "whole-jumps=on|off",
        "jumps of hot code stay within 32 bytes: usual on Intel's Skylake and its kin",
        |engine| &mut engine.whole_jumps,
    ),
    flag(
        "memory-operands=on|off",
        "guest registers that are kept in memory are operands where they stand",
        |engine| &mut engine.memory_operands,
    ),
    flag(
        "long-blocks=on|off",
        "blocks go on behind jumps, where code has been executed",
        |engine| &mut engine.long_blocks,
    ),
    flag(
        "moving=on|off",
        "the translation of a program's code is copied for other addresses of it",
        |engine| &mut engine.moving,
    ),
    Switch {
        form: "traces=8|N|off",
        help: "rounds of a loop after which it becomes one straight run",
        set: Set::Value(|engine, text| {
            engine.traces = count(text, EngineOptions::default().traces, u8::MAX)?;
            Ok(())
        }),
    },
    Switch {
        form: "long-traces=32768|N|off",
        help: "runs follow calls, returns and jumps to other pages; code that is entered N times has one",
        set: Set::Value(|engine, text| {
            engine.long_traces = count(text, EngineOptions::default().long_traces, u16::MAX)?;
            Ok(())
        }),
    },
    flag(
        "samples=on|off",
        "only code that a timer finds running counts how often it is entered",
        |engine| &mut engine.samples,
    ),
    flag(
        "indirect-traces=on|off",
        "such runs follow jumps and calls through registers and memory, too",
        |engine| &mut engine.indirect_traces,
    ),
    flag(
        "segmented=on|off",
        "translate 16-bit code and code in segments that are not flat",
        |engine| &mut engine.segmented,
    ),
    Switch {
        form: "cold=2|N|off",
        help: "how often code is interpreted before it is translated",
        set: Set::Value(|engine, text| {
            engine.cold = match text {
                "off" => 0,
                "on" => EngineOptions::default().cold,
                _ => up_to(text, u8::MAX)?,
            };
            Ok(())
        }),
    },
];

/// A number, which takes the place of 0 by 1, or what is usual, or none.
fn count<N: TryFrom<u64> + From<u8> + Ord + Display>(
    text: &str,
    usual: Option<N>,
    most: N,
) -> Result<Option<N>, String> {
    match text {
        "off" => Ok(None),
        "on" => Ok(usual),
        _ => Ok(Some(up_to(text, most)?.max(N::from(1)))),
    }
}

/// A number that is no more than the most of its type.
fn up_to<N: TryFrom<u64> + Display>(text: &str, most: N) -> Result<N, String> {
    N::try_from(number(text)?).map_err(|_| format!("{most} is the most"))
}
