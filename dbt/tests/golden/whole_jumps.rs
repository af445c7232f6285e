//! Jumps of hot code do not touch boundaries of 32 bytes, except within system and string instructions.

use dbt::cache::{CodeOffset, FETCHED};
use dbt::x86_64::emit_trampolines;
use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind};

use super::{BASE, GROUPS, Spot, decode, guest_code, host_code_at};

#[test]
fn jumps_stay_within_what_is_fetched() {
    let (_, trampolines) = emit_trampolines(0, 0, 2, 0x2000_0000);
    let (mut jumps, mut crossing) = (0, 0);
    let groups = GROUPS.iter();
    let groups = groups.filter(|(name, _)| !matches!(*name, "system" | "unusual" | "narrow"));
    for case in groups.flat_map(|(_, cases)| *cases) {
        for (whole_jumps, phase) in [(true, 0), (true, 16), (false, 0)] {
            let insns = guest_code(case);
            let spot = Spot {
                bases: [CodeOffset(BASE.0 + phase), Spot::USUAL.bases[1]],
                whole_jumps,
                ..Spot::USUAL
            };
            let emitted = host_code_at(case, &insns, &trampolines, spot);
            let end = emitted.insn_starts[insns.len()];
            let host = decode(&emitted, &trampolines, emitted.entries.guarded, end);
            let (mut at, mut before) = (phase + emitted.entries.guarded, None);
            for insn in &host {
                let len = insn.len() as u32;
                if jumps_away(insn.flow_control()) {
                    let fused = before.filter(|_| insn.is_jcc_short_or_near()).unwrap_or(0);
                    let whole = (at - fused) / FETCHED == (at + len) / FETCHED;
                    assert!(whole || !whole_jumps, "{}: {insn} at {at:#x}", case.name);
                    jumps += u32::from(whole_jumps);
                    crossing += u32::from(!whole);
                }
                before = compares(insn).then_some(len);
                at += len;
            }
        }
    }
    assert!(jumps > 200 && crossing > 50, "{crossing} of {jumps}");
}

fn jumps_away(flow: FlowControl) -> bool {
    !matches!(flow, FlowControl::Next | FlowControl::Exception)
}

/// What the host fuses with a conditional jump here: no comparison of memory with a constant (Intel's optimization
/// reference manual, "Optimizing for Macro-fusion").
fn compares(insn: &Instruction) -> bool {
    let constant = insn.op0_kind() == OpKind::Memory && insn.try_immediate(1).is_ok();
    matches!(insn.mnemonic(), Mnemonic::Cmp | Mnemonic::Test) && !constant
}
