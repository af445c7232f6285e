//! Random instructions, with operands that land where the test keeps its data.

use dbt::record::features::{Requirement, requirement};
use iced_x86::{
    CpuidFeature, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};

use super::common::Random;
use super::native::{DATA, DATA_BYTES, INSTRUCTION, Registers, TAKEN};

/// One experiment.
pub struct Case {
    pub bytes: Vec<u8>,
    pub insn: Instruction,
    pub input: Registers,
    /// What to store before it: addresses and bytes.
    pub stores: Vec<(u64, Vec<u8>)>,
    /// Where the instruction may write: start and length.
    pub windows: Vec<(u64, usize)>,
}

/// The instructions that this test covers.
pub fn covered(mnemonic: Mnemonic) -> bool {
    COVERED.contains(&mnemonic) || COVERED32.contains(&mnemonic)
}

use Mnemonic::*;

#[rustfmt::skip]
pub const COVERED: &[Mnemonic] = &[
    Adc, Adcx, Add, Adox, And, Andn, Bextr, Blsi, Blsmsk, Blsr, Bsf, Bsr, Bswap, Bt, Btc, Btr,
    Bts, Bzhi, Call, Cbw, Cdq, Cdqe, Clc, Cld, Clflush, Cmc, Cmova, Cmovae, Cmovb, Cmovbe, Cmove, Cmovg,
    Cmovge, Cmovl, Cmovle, Cmovne, Cmovno, Cmovnp, Cmovns, Cmovo, Cmovp, Cmovs, Cmp, Cmpsb, Cmpsd,
    Cmpsq, Cmpsw, Cmpxchg, Cmpxchg16b, Cmpxchg8b, Cqo, Crc32, Cwd, Cwde, Dec, Div, Enter, Idiv,
    Imul, Inc, Ja, Jae, Jb, Jbe, Je, Jecxz, Jg, Jge, Jl, Jle, Jmp, Jne, Jno, Jnp, Jns, Jo, Jp, Jrcxz, Js, Lahf, Lea, Leave, Lfence, Lodsb, Lodsd, Lodsq, Lodsw, Loop, Loope, Loopne, Lzcnt, Mfence, Mov, Movbe,
    Movnti, Movsb, Movsd, Movsq, Movsw, Movsx, Movsxd, Movzx, Mul, Mulx, Neg, Nop, Not, Or, Pause,
    Pdep, Pext, Pop, Popcnt, Popf, Popfq, Prefetchnta, Prefetcht0, Prefetcht1, Prefetcht2,
    Prefetchw, Push, Pushf, Pushfq, Rcl, Rcr, Ret, Rol, Ror, Rorx, Sahf, Sal, Sar, Sarx, Sbb, Scasb,
    Scasd, Scasq, Scasw, Seta, Setae, Setb, Setbe, Sete, Setg, Setge, Setl, Setle, Setne, Setno,
    Setnp, Setns, Seto, Setp, Sets, Sfence, Shl, Shld, Shlx, Shr, Shrd, Shrx, Stc, Std, Stosb,
    Stosd, Stosq, Stosw, Sub, Test, Tzcnt, Xadd, Xchg, Xlatb, Xor,
];

/// Those that 64-bit mode does not have.
#[rustfmt::skip]
pub const COVERED32: &[Mnemonic] = &[
    Aaa, Aad, Aam, Aas, Bound, Daa, Das, Jcxz, Popa, Popad, Popfd, Pusha, Pushad, Pushfd, Salc,
];

/// Those that 32-bit code does not have.
#[rustfmt::skip]
pub const ONLY64: &[Mnemonic] = &[
    Cdqe, Cmpsq, Cmpxchg16b, Cqo, Jrcxz, Lodsq, Movsq, Movsxd, Popfq, Pushfq, Scasq, Stosq,
];

/// How many groups there are; decimal arithmetic is for 32 bits only.
pub const GROUPS: usize = 9;

/// What an instruction's cases are counted with.
pub fn group(mnemonic: Mnemonic) -> &'static str {
    match mnemonic {
        Aaa | Aad | Aam | Aas | Daa | Das => "decimal",
        Bt | Btc | Btr | Bts | Bsf | Bsr | Lzcnt | Tzcnt | Popcnt => "bits",
        Adcx | Adox | Andn | Bextr | Blsi | Blsmsk | Blsr | Bzhi | Mulx | Pdep | Pext | Rorx
        | Sarx | Shlx | Shrx | Crc32 | Movbe => "BMI, ADX, CRC32, MOVBE",
        Rcl | Rcr | Rol | Ror | Sal | Sar | Shl | Shld | Shr | Shrd => "shifts",
        Div | Idiv | Imul | Mul => "multiplication and division",
        Cmpsb | Cmpsd | Cmpsq | Cmpsw | Lodsb | Lodsd | Lodsq | Lodsw | Movsb | Movsd | Movsq
        | Movsw | Scasb | Scasd | Scasq | Scasw | Stosb | Stosd | Stosq | Stosw => "strings",
        Adc | Add | And | Cmp | Cmpxchg | Cmpxchg16b | Cmpxchg8b | Dec | Inc | Neg | Not | Or
        | Sbb | Sub | Test | Xadd | Xor => "arithmetic",
        Bound | Call | Enter | Ja | Jae | Jb | Jbe | Jcxz | Je | Jecxz | Jg | Jge | Jl | Jle
        | Jmp | Jne | Jno | Jnp | Jns | Jo | Jp | Jrcxz | Js | Leave | Loop | Loope | Loopne
        | Pop | Popa | Popad | Popf | Popfd | Popfq | Push | Pusha | Pushad | Pushf | Pushfd
        | Pushfq | Ret => "branches and stack",
        _ => "moves and the rest",
    }
}

fn random_bytes(random: &mut Random, bits: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32);
    if random.one_in(24) {
        bytes.push(0xf0);
    }
    if random.one_in(16) {
        bytes.push([0x26, 0x2e, 0x36, 0x3e][random.below(4) as usize]);
    }
    if random.one_in(4) {
        bytes.push(0x66);
    }
    if random.one_in(12) {
        bytes.push(0x67);
    }
    if random.one_in(8) {
        bytes.push(0xf2 | random.below(2) as u8);
    }
    let map = random.below(20);
    let vex = map < 2;
    if vex {
        bytes.clear();
    } else if bits == 64 && random.one_in(2) {
        bytes.push(0x40 | random.below(16) as u8);
    }
    match map {
        0..=1 => {
            let third = random.one_in(4);
            let inverted = if bits == 64 {
                random.below(8) << 5
            } else {
                0xe0
            };
            bytes.push(0xc4);
            bytes.push(inverted as u8 | if third { 3 } else { 2 });
            bytes.push((random.next() as u8 & 0xfb) | if bits == 64 { 0 } else { 0x40 });
            bytes.push(if third {
                0xf0
            } else {
                0xf0 + random.below(8) as u8
            });
        }
        2..=3 => bytes.extend([0x0f, 0x38, 0xf0 + random.below(8) as u8]),
        4..=10 => bytes.extend([0x0f, random.next() as u8]),
        _ => bytes.push(random.next() as u8),
    }
    let mut operand = random.next() as u8;
    if random.one_in(3) {
        operand |= 0xc0;
    }
    bytes.push(operand);
    for _ in 0..12 {
        bytes.push(random.next() as u8);
    }
    // Small displacements and immediates matter as much as large ones.
    if random.one_in(3) {
        let last = bytes.len() - 8;
        bytes[last] = random.below(72) as u8;
    }
    bytes.truncate(15);
    bytes
}

/// Number of a register in the encoding's order.
fn gpr(register: Register) -> usize {
    register.full_register() as usize - Register::RAX as usize
}

fn accesses_memory(mnemonic: Mnemonic) -> bool {
    !matches!(
        mnemonic,
        Lea | Nop | Prefetchnta | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchw
    )
}

fn is_string(insn: &Instruction) -> bool {
    insn.is_string_instruction()
}

/// Draws until an instruction is one of those covered and its operands can be placed.
pub fn case(random: &mut Random, bits: u32) -> Case {
    loop {
        if let Some(case) = attempt(random, bits) {
            return case;
        }
    }
}

fn attempt(random: &mut Random, bits: u32) -> Option<Case> {
    let mut bytes = random_bytes(random, bits);
    let mut decoder = Decoder::with_ip(bits, &bytes, INSTRUCTION, DecoderOptions::NONE);
    let insn = decoder.decode();
    if insn.is_invalid() || !covered(insn.mnemonic()) {
        return None;
    }
    // AMD's BEXTR with an immediate, for one: the decoder of the engine refuses it.
    let absent = |feature: &CpuidFeature| requirement(*feature) == Requirement::Absent;
    if insn.cpuid_features().iter().any(absent) {
        return None;
    }
    // With REX.B this encoding is an exchange with R8, which the decoder does not know.
    let extended = |byte: &u8| (0x41..0x50).contains(byte);
    if insn.mnemonic() == Pause && bytes[..insn.len()].iter().any(extended) {
        return None;
    }
    // Some processors let a repeat prefix replace the condition; no manual says so.
    let repeated = bytes[..insn.len()].iter().any(|b| matches!(b, 0xf2 | 0xf3));
    if matches!(insn.mnemonic(), Loope | Loopne) && repeated {
        return None;
    }
    let offsets = decoder.get_constant_offsets(&insn);
    bytes.truncate(insn.len());
    let foreign = |register: Register| {
        !(register.is_gpr() || matches!(insn.mnemonic(), Push if register.is_segment_register()))
    };
    let foreign = (0..insn.op_count())
        .any(|i| insn.op_kind(i) == OpKind::Register && foreign(insn.op_register(i)));
    // The host's FS and GS bases are not the guest's.
    let thread_local = matches!(insn.segment_prefix(), Register::FS | Register::GS);
    if foreign || (thread_local && insn.mnemonic() != Lea) {
        return None;
    }
    let mut case = Case {
        bytes,
        insn,
        input: Registers {
            gpr: std::array::from_fn(|_| random.operand()),
            flags: 0x202 | (random.next() & 0x8d5) | if random.one_in(2) { 0x400 } else { 0 },
        },
        stores: Vec::new(),
        windows: Vec::new(),
    };
    if bits == 32 {
        for (number, value) in case.input.gpr.iter_mut().enumerate() {
            *value = if number < 8 { *value & 0xffff_ffff } else { 0 };
        }
    }
    case.input.gpr[4] = DATA + 0x8000 + random.below(0x1000);
    if !random.one_in(8) {
        case.input.gpr[4] &= !7;
    }
    if is_string(&insn) {
        place_strings(random, &mut case)?;
    } else if insn.op_kinds().any(|kind| kind == OpKind::Memory) && accesses_memory(insn.mnemonic())
    {
        let offset = offsets.displacement_offset();
        place_memory(random, &mut case, offset, offsets.displacement_size())?;
    }
    if insn.flow_control() != FlowControl::Next {
        place_target(
            &mut case,
            offsets.immediate_offset(),
            offsets.immediate_size(),
        )?;
    }
    special(random, &mut case)?;
    // The bytes may have been patched.
    case.insn = Decoder::with_ip(bits, &case.bytes, INSTRUCTION, DecoderOptions::NONE).decode();
    Some(case)
}

/// Makes the memory operand's address one within the data.
fn place_memory(random: &mut Random, case: &mut Case, offset: usize, size: usize) -> Option<()> {
    let insn = case.insn;
    let mut target = DATA + 0x4000 + random.below(0x1800);
    if insn.mnemonic() == Cmpxchg16b && !random.one_in(8) {
        target &= !15;
    }
    let base = insn.memory_base();
    let index = insn.memory_index();
    let scale = u64::from(insn.memory_index_scale());
    let displacement = insn.memory_displacement64();
    let code64 = insn.code_size() == iced_x86::CodeSize::Code64;
    let noise = random.next();
    if base.is_ip() || (base == Register::None && index == Register::None) {
        let next = INSTRUCTION + case.bytes.len() as u64;
        let value = if base.is_ip() {
            target.wrapping_sub(next)
        } else {
            target
        };
        if size < 4 {
            return None;
        }
        let size = size.min(8);
        case.bytes[offset..offset + size].copy_from_slice(&value.to_le_bytes()[..size]);
    } else if base == Register::None {
        target = target.wrapping_sub(target.wrapping_sub(displacement) % scale);
        let value = target.wrapping_sub(displacement) / scale;
        let value = if is_wide(index)? {
            value
        } else {
            value & (0xffff_ffff / scale)
        };
        set_address(case, index, value, noise)?;
    } else if index != Register::None && gpr(index) == gpr(base) && index != Register::AL {
        return None;
    } else {
        let mut value = target.wrapping_sub(displacement);
        if index != Register::None {
            let add = case.input.gpr[gpr(index)];
            let add = if index == Register::AL {
                add & 0xff
            } else {
                add
            };
            value = value.wrapping_sub(add.wrapping_mul(scale));
        }
        if gpr(base) == 4 {
            // The stack has to stay within the data too.
            if displacement.wrapping_add(0x100) > 0x200 || index != Register::None {
                return None;
            }
            value = case.input.gpr[4];
            target = value.wrapping_add(displacement);
        }
        if !code64 {
            value &= 0xffff_ffff;
        }
        let noise = if gpr(base) == 4 { 0 } else { noise };
        set_address(case, base, value, noise)?;
    }
    let content = random.operand().to_le_bytes();
    let mut bytes = content.to_vec();
    bytes.extend(random.operand().to_le_bytes());
    case.stores.push((target, bytes));
    let mut window = (target - 16, 48);
    if matches!(insn.mnemonic(), Bt | Btc | Btr | Bts) && insn.op1_kind() == OpKind::Register {
        let register = insn.op1_register();
        let number = gpr(register);
        let uses = |r: Register| r != Register::None && r.is_gpr() && gpr(r) == number;
        if uses(base) || uses(index) || number == 4 {
            return None;
        }
        let offset = random.below(0x4000).wrapping_sub(0x2000);
        let mask = match register.size() {
            2 => 0xffff,
            4 => 0xffff_ffff,
            _ => u64::MAX,
        };
        let slot = &mut case.input.gpr[number];
        *slot = (*slot & !mask) | (offset & mask);
        window = (target - 0x500, 0xa00);
    }
    case.windows.push(window);
    Some(())
}

/// Sets an address register; what a 32-bit address ignores becomes noise.
fn set_address(case: &mut Case, register: Register, value: u64, noise: u64) -> Option<()> {
    let code64 = case.insn.code_size() == iced_x86::CodeSize::Code64;
    let slot = &mut case.input.gpr[gpr(register)];
    *slot = if is_wide(register)? || !code64 {
        value
    } else {
        (value & 0xffff_ffff) | noise << 32
    };
    Some(())
}

/// Whether an address register has 64 bits; 16-bit addresses cannot reach the data.
fn is_wide(register: Register) -> Option<bool> {
    match register.size() {
        8 => Some(true),
        4 => Some(false),
        _ => None,
    }
}

/// Makes a near branch go where the host expects it.
fn place_target(case: &mut Case, offset: usize, size: usize) -> Option<()> {
    let insn = case.insn;
    let width = if insn.code_size() == iced_x86::CodeSize::Code64 {
        8
    } else {
        4
    };
    // Targets of 16 bits are out of reach, and processors differ on their prefix in 64-bit mode.
    if case.bytes.contains(&0x66) {
        return None;
    }
    match insn.op_kinds().next() {
        Some(OpKind::NearBranch32 | OpKind::NearBranch64) => {
            let next = INSTRUCTION + case.bytes.len() as u64;
            let relative = TAKEN.wrapping_sub(next).to_le_bytes();
            case.bytes[offset..offset + size].copy_from_slice(&relative[..size]);
        }
        Some(OpKind::Register) if insn.op0_register().size() == width => {
            if insn.op0_register().full_register() == Register::RSP {
                return None;
            }
            case.input.gpr[gpr(insn.op0_register())] = TAKEN;
        }
        Some(OpKind::Memory) if insn.memory_size().size() == width => {
            case.stores[0].1[..8].copy_from_slice(&TAKEN.to_le_bytes());
        }
        None | Some(OpKind::Immediate16) if insn.mnemonic() == Ret => {
            let stack = case.input.gpr[4];
            case.stores.push((stack, TAKEN.to_le_bytes().to_vec()));
        }
        _ if !matches!(insn.mnemonic(), Call | Jmp | Ret) => {}
        _ => return None,
    }
    Some(())
}

fn place_strings(random: &mut Random, case: &mut Case) -> Option<()> {
    let narrow = case
        .insn
        .op_kinds()
        .any(|kind| matches!(kind, OpKind::MemorySegSI | OpKind::MemoryESDI));
    let repeated = case.insn.has_rep_prefix() || case.insn.has_repne_prefix();
    if narrow && !repeated {
        return None;
    }
    let long = random.one_in(8);
    let count = random.below(if long { 0x3fe } else { 12 });
    let source = DATA + 0x6000 + random.below(0x1000);
    let distance = match random.below(4) {
        0 => random.below(64).wrapping_sub(32),
        1 => random.below(0x1000).wrapping_sub(0x800),
        _ => 0x3000 + random.below(0x1000),
    };
    let mut destination = source.wrapping_add(distance);
    if random.one_in(2) {
        destination &= !7;
    }
    let wide = case
        .insn
        .op_kinds()
        .any(|kind| matches!(kind, OpKind::MemorySegRSI | OpKind::MemoryESRDI));
    let code64 = case.insn.code_size() == iced_x86::CodeSize::Code64;
    let noise = if wide || !code64 {
        0
    } else {
        random.next() << 32
    };
    // 16-bit addresses cannot reach the data: only a count of 0 is safe with them.
    case.input.gpr[1] = if narrow { 0 } else { count } | noise;
    case.input.gpr[6] = source | noise;
    case.input.gpr[7] = destination | noise;
    if random.one_in(2) {
        // Equal runs, so that comparisons go on for a while.
        let value = random.operand().to_le_bytes()[0];
        case.input.gpr[0] = u64::from_le_bytes([value; 8]);
        case.stores.push((DATA + 0x4000, vec![value; 0x8000]));
        let odd = DATA + 0x6000 + random.below(0x5000);
        case.stores.push((odd, vec![!value]));
    }
    case.windows.push((DATA, DATA_BYTES));
    Some(())
}

/// What single instructions need beyond random operands.
fn special(random: &mut Random, case: &mut Case) -> Option<()> {
    let insn = case.insn;
    if insn.is_stack_instruction() {
        let stack = case.input.gpr[4] & 0xffff_ffff;
        case.windows.push((stack - 0x180, 0x200));
    }
    match insn.mnemonic() {
        Div | Idiv if random.one_in(2) && unused_address(&insn, 0) && unused_address(&insn, 2) => {
            let sign = random.below(2).wrapping_neg();
            case.input.gpr[2] = sign;
            if random.one_in(2) {
                case.input.gpr[0] = sign;
            }
        }
        Cmpxchg if random.one_in(2) => {
            if insn.op0_kind() == OpKind::Register {
                case.input.gpr[0] = case.input.gpr[gpr(insn.op0_register())];
            } else if unused_address(&insn, 0) {
                let content = &case.stores[0].1;
                case.input.gpr[0] = u64::from_le_bytes(content[..8].try_into().ok()?);
            }
        }
        Cmpxchg8b | Cmpxchg16b
            if random.one_in(2) && unused_address(&insn, 0) && unused_address(&insn, 2) =>
        {
            let content = &case.stores[0].1;
            let half = if insn.mnemonic() == Cmpxchg8b { 4 } else { 8 };
            let mut low = [0; 8];
            low[..half].copy_from_slice(&content[..half]);
            let mut high = [0; 8];
            high[..half].copy_from_slice(&content[half..2 * half]);
            case.input.gpr[0] = u64::from_le_bytes(low);
            case.input.gpr[2] = u64::from_le_bytes(high);
        }
        Enter => {
            let at = case.bytes.len() - 3;
            case.bytes[at + 1] &= 3;
            case.input.gpr[5] = case.input.gpr[4] + random.below(0x400);
        }
        Leave => case.input.gpr[5] = case.input.gpr[4] + random.below(0x400),
        Popf | Popfd | Popfq => {
            // Not TF, which would trap, nor AC, which would fault in the way out.
            let image = random.next() & !0x4_0100;
            case.stores
                .push((case.input.gpr[4], image.to_le_bytes().to_vec()));
        }
        _ => {}
    }
    Some(())
}

fn unused_address(insn: &Instruction, number: usize) -> bool {
    let is = |register: Register| register.is_gpr() && gpr(register) == number;
    !is(insn.memory_base()) && !is(insn.memory_index())
}
