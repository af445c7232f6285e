//! Further rows of the table of encodings: what is less usual, and has no form with a guest register
//! in memory. See [`super::encoding`].

use iced_x86::Code;

use super::encoding::{Form, Opcode, Row};

/// Rows of operations that have a number, which makes their opcodes: 8-bit forms and those with the
/// accumulator.
macro_rules! numbered {
    ($code:expr, $($number:literal $rm8:ident $r8:ident $short8:ident $al:ident $eax:ident $rax:ident;)*) => {
        match $code {
            $(
                Code::$rm8 => Some((Opcode::Short($number << 3), Form::Store, false)),
                Code::$r8 => Some((Opcode::Short($number << 3 | 2), Form::Load, false)),
                Code::$short8 => Some((Opcode::Short(0x80), Form::Short($number), false)),
                Code::$al => Some((Opcode::Short($number << 3 | 4), Form::AccumulatorShort, false)),
                Code::$eax => Some((Opcode::Short($number << 3 | 5), Form::AccumulatorLong, false)),
                Code::$rax => Some((Opcode::Short($number << 3 | 5), Form::AccumulatorLong, true)),
            )*
            _ => None,
        }
    };
}

fn arithmetic(code: Code) -> Option<Row> {
    numbered!(code,
        0 Add_rm8_r8 Add_r8_rm8 Add_rm8_imm8 Add_AL_imm8 Add_EAX_imm32 Add_RAX_imm32;
        1 Or_rm8_r8 Or_r8_rm8 Or_rm8_imm8 Or_AL_imm8 Or_EAX_imm32 Or_RAX_imm32;
        2 Adc_rm8_r8 Adc_r8_rm8 Adc_rm8_imm8 Adc_AL_imm8 Adc_EAX_imm32 Adc_RAX_imm32;
        3 Sbb_rm8_r8 Sbb_r8_rm8 Sbb_rm8_imm8 Sbb_AL_imm8 Sbb_EAX_imm32 Sbb_RAX_imm32;
        4 And_rm8_r8 And_r8_rm8 And_rm8_imm8 And_AL_imm8 And_EAX_imm32 And_RAX_imm32;
        5 Sub_rm8_r8 Sub_r8_rm8 Sub_rm8_imm8 Sub_AL_imm8 Sub_EAX_imm32 Sub_RAX_imm32;
        6 Xor_rm8_r8 Xor_r8_rm8 Xor_rm8_imm8 Xor_AL_imm8 Xor_EAX_imm32 Xor_RAX_imm32;
        7 Cmp_rm8_r8 Cmp_r8_rm8 Cmp_rm8_imm8 Cmp_AL_imm8 Cmp_EAX_imm32 Cmp_RAX_imm32;
    )
}

/// Rows of operations that are chosen by the register field of their ModRM byte.
macro_rules! extended {
    ($code:expr, $($opcode8:literal $opcode:literal $number:literal $rm8:ident $rm32:ident $rm64:ident;)*) => {
        match $code {
            $(
                Code::$rm8 => Some((Opcode::Short($opcode8), Form::Alone($number), false)),
                Code::$rm32 => Some((Opcode::Short($opcode), Form::Alone($number), false)),
                Code::$rm64 => Some((Opcode::Short($opcode), Form::Alone($number), true)),
            )*
            _ => arithmetic($code),
        }
    };
}

fn extended(code: Code) -> Option<Row> {
    extended!(code,
        0xfe 0xff 0 Inc_rm8 Inc_rm32 Inc_rm64;
        0xfe 0xff 1 Dec_rm8 Dec_rm32 Dec_rm64;
        0xf6 0xf7 2 Not_rm8 Not_rm32 Not_rm64;
        0xf6 0xf7 3 Neg_rm8 Neg_rm32 Neg_rm64;
        0xf6 0xf7 4 Mul_rm8 Mul_rm32 Mul_rm64;
        0xf6 0xf7 5 Imul_rm8 Imul_rm32 Imul_rm64;
        0xf6 0xf7 6 Div_rm8 Div_rm32 Div_rm64;
        0xf6 0xf7 7 Idiv_rm8 Idiv_rm32 Idiv_rm64;
        0xd0 0xd1 0 Rol_rm8_1 Rol_rm32_1 Rol_rm64_1;
        0xd2 0xd3 0 Rol_rm8_CL Rol_rm32_CL Rol_rm64_CL;
        0xd0 0xd1 1 Ror_rm8_1 Ror_rm32_1 Ror_rm64_1;
        0xd2 0xd3 1 Ror_rm8_CL Ror_rm32_CL Ror_rm64_CL;
        0xd0 0xd1 4 Shl_rm8_1 Shl_rm32_1 Shl_rm64_1;
        0xd2 0xd3 4 Shl_rm8_CL Shl_rm32_CL Shl_rm64_CL;
        0xd0 0xd1 5 Shr_rm8_1 Shr_rm32_1 Shr_rm64_1;
        0xd2 0xd3 5 Shr_rm8_CL Shr_rm32_CL Shr_rm64_CL;
        0xd0 0xd1 7 Sar_rm8_1 Sar_rm32_1 Sar_rm64_1;
        0xd2 0xd3 7 Sar_rm8_CL Sar_rm32_CL Sar_rm64_CL;
    )
}

/// Rows of operations under a condition.
macro_rules! conditional {
    ($code:expr, $($number:literal $set:ident $move32:ident $move64:ident;)*) => {
        match $code {
            $(
                Code::$set => Some((Opcode::Long(0x90 | $number), Form::Alone(0), false)),
                Code::$move32 => Some((Opcode::Long(0x40 | $number), Form::Load, false)),
                Code::$move64 => Some((Opcode::Long(0x40 | $number), Form::Load, true)),
            )*
            _ => extended($code),
        }
    };
}

fn conditional(code: Code) -> Option<Row> {
    conditional!(code,
        0 Seto_rm8 Cmovo_r32_rm32 Cmovo_r64_rm64;
        1 Setno_rm8 Cmovno_r32_rm32 Cmovno_r64_rm64;
        2 Setb_rm8 Cmovb_r32_rm32 Cmovb_r64_rm64;
        3 Setae_rm8 Cmovae_r32_rm32 Cmovae_r64_rm64;
        4 Sete_rm8 Cmove_r32_rm32 Cmove_r64_rm64;
        5 Setne_rm8 Cmovne_r32_rm32 Cmovne_r64_rm64;
        6 Setbe_rm8 Cmovbe_r32_rm32 Cmovbe_r64_rm64;
        7 Seta_rm8 Cmova_r32_rm32 Cmova_r64_rm64;
        8 Sets_rm8 Cmovs_r32_rm32 Cmovs_r64_rm64;
        9 Setns_rm8 Cmovns_r32_rm32 Cmovns_r64_rm64;
        10 Setp_rm8 Cmovp_r32_rm32 Cmovp_r64_rm64;
        11 Setnp_rm8 Cmovnp_r32_rm32 Cmovnp_r64_rm64;
        12 Setl_rm8 Cmovl_r32_rm32 Cmovl_r64_rm64;
        13 Setge_rm8 Cmovge_r32_rm32 Cmovge_r64_rm64;
        14 Setle_rm8 Cmovle_r32_rm32 Cmovle_r64_rm64;
        15 Setg_rm8 Cmovg_r32_rm32 Cmovg_r64_rm64;
    )
}

/// The row of a code that is not among the most usual ones.
pub(super) fn more(code: Code) -> Option<Row> {
    Some(match code {
        Code::Mov_r8_rm8 => (Opcode::Short(0x8a), Form::Load, false),
        Code::Mov_rm8_r8 => (Opcode::Short(0x88), Form::Store, false),
        Code::Mov_rm8_imm8 => (Opcode::Short(0xc6), Form::Short(0), false),
        Code::Mov_r32_imm32 => (Opcode::Short(0xb8), Form::InOpcode, false),
        Code::Movzx_r32_rm8 => (Opcode::Long(0xb6), Form::Load, false),
        Code::Movzx_r64_rm8 => (Opcode::Long(0xb6), Form::Load, true),
        Code::Movzx_r64_rm16 => (Opcode::Long(0xb7), Form::Load, true),
        Code::Movsx_r32_rm8 => (Opcode::Long(0xbe), Form::Load, false),
        Code::Movsx_r64_rm8 => (Opcode::Long(0xbe), Form::Load, true),
        Code::Test_rm8_r8 => (Opcode::Short(0x84), Form::Store, false),
        Code::Test_rm8_imm8 => (Opcode::Short(0xf6), Form::Short(0), false),
        Code::Test_rm32_imm32 => (Opcode::Short(0xf7), Form::Long(0), false),
        Code::Test_rm64_imm32 => (Opcode::Short(0xf7), Form::Long(0), true),
        Code::Test_AL_imm8 => (Opcode::Short(0xa8), Form::AccumulatorShort, false),
        Code::Test_EAX_imm32 => (Opcode::Short(0xa9), Form::AccumulatorLong, false),
        Code::Test_RAX_imm32 => (Opcode::Short(0xa9), Form::AccumulatorLong, true),
        Code::Bt_rm32_imm8 => (Opcode::Long(0xba), Form::Short(4), false),
        Code::Bt_rm64_imm8 => (Opcode::Long(0xba), Form::Short(4), true),
        Code::Bt_rm32_r32 => (Opcode::Long(0xa3), Form::Store, false),
        Code::Bt_rm64_r64 => (Opcode::Long(0xa3), Form::Store, true),
        Code::Xchg_rm32_r32 => (Opcode::Short(0x87), Form::Store, false),
        Code::Xchg_rm64_r64 => (Opcode::Short(0x87), Form::Store, true),
        Code::Xadd_rm32_r32 => (Opcode::Long(0xc1), Form::Store, false),
        Code::Xadd_rm64_r64 => (Opcode::Long(0xc1), Form::Store, true),
        Code::Cmpxchg_rm32_r32 => (Opcode::Long(0xb1), Form::Store, false),
        Code::Cmpxchg_rm64_r64 => (Opcode::Long(0xb1), Form::Store, true),
        _ => return conditional(code),
    })
}
