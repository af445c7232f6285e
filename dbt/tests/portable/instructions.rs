//! Every x87, MMX and SSE instruction that the decoder knows, in its register and memory forms.

use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, Encoder, EncodingKind, Instruction,
    OpCodeOperandKind as Kind, OpKind, Register,
};

fn wanted(code: Code) -> bool {
    use CpuidFeature as F;
    let of_extension = code.cpuid_features().iter().any(|feature| {
        matches!(
            feature,
            F::FPU
                | F::FPU287
                | F::FPU387
                | F::MMX
                | F::SSE
                | F::SSE2
                | F::SSE3
                | F::SSSE3
                | F::SSE4_1
                | F::SSE4_2
        )
    });
    let description = code.op_code();
    let host = |name: &str| match name {
        "sse3" => is_x86_feature_detected!("sse3"),
        "ssse3" => is_x86_feature_detected!("ssse3"),
        "sse4.1" => is_x86_feature_detected!("sse4.1"),
        _ => is_x86_feature_detected!("sse4.2"),
    };
    let there = code.cpuid_features().iter().all(|feature| match feature {
        F::SSE3 => host("sse3"),
        F::SSSE3 => host("ssse3"),
        F::SSE4_1 => host("sse4.1"),
        F::SSE4_2 => host("sse4.2"),
        _ => true,
    });
    of_extension
        && there
        && description.is_instruction()
        && description.mode64()
        && description.encoding() == EncodingKind::Legacy
        && code.mnemonic() != iced_x86::Mnemonic::Monitor
        && code.mnemonic() != iced_x86::Mnemonic::Mwait
}

/// Operand kinds that are memory or, if `register`, a register.
fn operand(insn: &mut Instruction, index: u32, kind: Kind, register: bool, choice: u64) -> bool {
    let mut set = |register| {
        insn.set_op_kind(index, OpKind::Register);
        insn.set_op_register(index, register);
    };
    match kind {
        Kind::xmm_reg => set([Register::XMM0, Register::XMM1][choice as usize & 1]),
        Kind::xmm_rm => set(Register::XMM1),
        Kind::mm_reg => set(Register::MM1),
        Kind::mm_rm => set(Register::MM2),
        Kind::r32_reg => set(Register::ECX),
        Kind::r64_reg => set(Register::R9),
        Kind::r32_rm => set(Register::EDX),
        Kind::r64_rm => set(Register::R10),
        Kind::st0 => set(Register::ST0),
        Kind::sti_opcode => set(Register::ST2),
        Kind::ax => set(Register::AX),
        Kind::xmm_or_mem if register => set(Register::XMM1),
        Kind::mm_or_mem if register => set(Register::MM2),
        Kind::r32_or_mem | Kind::r32_or_mem_mpx if register => set(Register::EDX),
        Kind::r64_or_mem | Kind::r64_or_mem_mpx if register => set(Register::R10),
        Kind::imm8 => {
            insn.set_op_kind(index, OpKind::Immediate8);
            insn.set_immediate8([0x1b, 0xe4, 0x05, 0x3f, 0, 0xf1, 0x4e, 0x3a][choice as usize & 7]);
        }
        Kind::xmm_or_mem
        | Kind::mm_or_mem
        | Kind::r32_or_mem
        | Kind::r64_or_mem
        | Kind::mem
        | Kind::r16_or_mem => {
            if register {
                return false;
            }
            insn.set_op_kind(index, OpKind::Memory);
            insn.set_memory_base(Register::RDI);
        }
        _ => return false,
    }
    true
}

/// All of them, encoded and decoded again.
pub fn all() -> Vec<Instruction> {
    let mut found = Vec::new();
    for code in Code::values().filter(|&code| wanted(code)) {
        let kinds = code.op_code().op_kinds();
        for (register, choice) in
            (0..2).flat_map(|form| (0..8).map(move |choice| (form == 0, choice)))
        {
            let has_choice = kinds.contains(&Kind::imm8);
            if choice > 0 && !(has_choice || choice == 1 && kinds.contains(&Kind::xmm_reg)) {
                continue;
            }
            let memory = kinds.iter().any(|kind| format!("{kind:?}").contains("mem"));
            if !memory && !register {
                continue;
            }
            let mut insn = Instruction::default();
            insn.set_code(code);
            let built = kinds
                .iter()
                .enumerate()
                .all(|(index, &kind)| operand(&mut insn, index as u32, kind, register, choice));
            if !built {
                continue;
            }
            let mut encoder = Encoder::new(64);
            if encoder.encode(&insn, 0x1000).is_err() {
                continue;
            }
            let bytes = encoder.take_buffer();
            let decoded = Decoder::with_ip(64, &bytes, 0x1000, DecoderOptions::NONE).decode();
            if decoded.is_invalid() {
                continue;
            }
            found.push(decoded);
        }
    }
    found
}
