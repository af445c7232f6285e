//! What kind of work a translator has with an instruction, from iced-x86's description of it.

#[cfg(target_arch = "x86_64")]
use std::arch::asm;
#[cfg(target_arch = "x86_64")]
use std::sync::LazyLock;

use iced_x86::{
    Code, CpuidFeature, FlowControl, Instruction, InstructionInfoFactory, InstructionInfoOptions,
    Mnemonic, OpAccess, OpKind, Register,
};

pub use super::class::{Class, Kind, Operand, is_limited};
use super::elements::{flat, repeats};
use super::shape::{may_fault, uses_vectors};
use super::{elements, liveness, masked, shape, system};
use crate::guest::Mode;
use crate::interpret::operand::operand_size;

/// Classifies instructions; keeps the factory that iced-x86 wants reused, and what is known already.
pub struct Classifier {
    factory: InstructionInfoFactory,
    pub(super) known: shape::Known,
}

impl Default for Classifier {
    fn default() -> Self {
        Classifier {
            factory: InstructionInfoFactory::new(),
            known: shape::Known::default(),
        }
    }
}

impl Classifier {
    /// Classifies one instruction under the mode bits of its block.
    #[inline]
    pub fn classify(&mut self, insn: &Instruction, mode: Mode) -> Class {
        let (shape, named) = shape::of(insn, mode);
        match self.known.get(shape, named) {
            Some(class) => class,
            None => self.classify_first(insn, mode, shape),
        }
    }

    /// Likewise, where nothing is known of its shape yet.
    #[cold]
    fn classify_first(&mut self, insn: &Instruction, mode: Mode, shape: shape::Shape) -> Class {
        self.learn(insn, mode, shape);
        self.describe(insn, mode)
    }

    /// Remembers the class of a shape, where there is one.
    fn learn(&mut self, insn: &Instruction, mode: Mode, shape: shape::Shape) {
        if !shape::is_typical(insn) {
            return;
        }
        let free = shape::with_free_registers(insn);
        let (_, named) = shape::of(&free, mode);
        let class = self.describe(&free, mode);
        let typical = named.without(class);
        // Those of which it counts whether they are named.
        let special = class.kind == Kind::Helper && class.implied & !LOW != 0;
        if !special && named.complete(typical, shape::changes(&typical)) == class {
            self.known.put(shape, typical);
        }
    }

    /// Works out the class of one instruction.
    pub(super) fn describe(&mut self, insn: &Instruction, mode: Mode) -> Class {
        let info = self
            .factory
            .info_options(insn, InstructionInfoOptions::NO_MEMORY_USAGE);
        let mut access = [OpAccess::None; 5];
        for (index, access) in access.iter_mut().enumerate().take(insn.op_count() as usize) {
            *access = info.op_access(index as u32);
        }
        let (mut writes, mut implied) = (0, 0);
        for used in info.used_registers() {
            if !used.register().is_gpr() {
                continue;
            }
            let number = used.register().full_register() as usize - Register::RAX as usize;
            if !names(insn, used.register()) {
                implied |= 1 << number;
            }
            let changes = !matches!(
                used.access(),
                OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
            );
            if changes {
                writes |= 1 << number;
            }
        }
        let helper = Class {
            kind: Kind::Helper,
            access,
            writes,
            implied,
            flags: liveness::Flags::of(insn),
            faults: may_fault(insn),
            vectors: uses_vectors(insn),
        };
        let segmented = mode.segmented();
        let word = width(insn, mode);
        let kind = match insn.flow_control() {
            FlowControl::Next => match insn.mnemonic() {
                _ if let Some(kind) = system::kind(insn, mode) => kind,
                Mnemonic::Lea if insn.memory_base() != Register::EIP => Kind::Lea,
                // Hosts leave OF differently where the count is not 1. Testers of old processors look.
                Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr
                    if segmented && !shifts_by_one(insn) =>
                {
                    return helper;
                }
                Mnemonic::Shld | Mnemonic::Shrd
                    if operand_size(insn, 0) == 2 && !double_shifts_wrap() =>
                {
                    return helper;
                }
                Mnemonic::Nop
                | Mnemonic::Reservednop
                | Mnemonic::Endbr32
                | Mnemonic::Endbr64
                | Mnemonic::Pause => Kind::Nop,
                Mnemonic::Prefetchnta
                | Mnemonic::Prefetcht0
                | Mnemonic::Prefetcht1
                | Mnemonic::Prefetcht2
                | Mnemonic::Prefetchw
                | Mnemonic::Prefetch => match segmented {
                    true => Kind::Nop,
                    false => Kind::Prefetch,
                },
                Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq
                    if repeats(insn) && flat(insn, mode) =>
                {
                    Kind::Fill
                }
                Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq
                    if repeats(insn) && flat(insn, mode) =>
                {
                    Kind::Copy
                }
                _ if elements::scans(insn) && flat(insn, mode) => Kind::Scan,
                Mnemonic::Xlatb => Kind::Translate,
                Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
                    if insn.op0_kind() == OpKind::Memory
                        && insn.op1_kind() == OpKind::Register
                        && insn.op1_register().size() >= 4 =>
                {
                    Kind::BitString
                }
                Mnemonic::Cmpxchg16b | Mnemonic::Cmpxchg8b if !segmented => Kind::ComparePair,
                Mnemonic::Pushad => Kind::PushAll,
                Mnemonic::Popad => Kind::PopAll,
                Mnemonic::Pusha if segmented => Kind::PushAll,
                Mnemonic::Popa if segmented => Kind::PopAll,
                // They keep what is pending from being noted later; FNINIT changes the mode, too.
                Mnemonic::Fninit | Mnemonic::Fnclex if mode.has(Mode::X87_UNMASKED) => Kind::Helper,
                Mnemonic::Fldcw if mode.has(Mode::X87) => Kind::LoadControl,
                Mnemonic::Push if stack_width(insn) == word && is_simple_push(insn) => Kind::Push,
                Mnemonic::Pop if stack_width(insn) == word && insn.op0_register().is_gpr() => {
                    Kind::Pop
                }
                Mnemonic::Pop if stack_width(insn) == word && insn.op0_kind() == OpKind::Memory => {
                    Kind::PopMemory
                }
                Mnemonic::Push
                    if stack_width(insn) == 2
                        && insn.op0_kind() != OpKind::Memory
                        && is_simple_push(insn) =>
                {
                    Kind::ShortPush
                }
                Mnemonic::Pop if stack_width(insn) == 2 && insn.op0_register().is_gpr() => {
                    Kind::ShortPop
                }
                Mnemonic::Leave if stack_width(insn) == word => Kind::Leave,
                Mnemonic::Leave => Kind::Helper,
                _ if let Some(kind) = elements::kind(insn, mode) => kind,
                _ if let Some(kind) = masked::kind(insn, mode) => kind,
                _ => {
                    let registers_ok = info.used_registers().iter().all(|used| {
                        let register = used.register();
                        !register.is_gpr()
                            || names(insn, register)
                            || matches!(
                                register.full_register(),
                                Register::RAX | Register::RCX | Register::RDX | Register::RBX
                            )
                    });
                    if registers_ok {
                        plain(insn, mode, &access).map_or(Kind::Helper, Kind::Plain)
                    } else {
                        Kind::Helper
                    }
                }
            },
            FlowControl::UnconditionalBranch if insn.is_jmp_short_or_near() && near(insn, word) => {
                Kind::Jump
            }
            FlowControl::ConditionalBranch if insn.is_jcc_short_or_near() && near(insn, word) => {
                Kind::Branch
            }
            FlowControl::ConditionalBranch
                if near(insn, word)
                    && (insn.is_loop() || insn.is_loopcc() || insn.is_jcx_short()) =>
            {
                Kind::CountBranch
            }
            FlowControl::Call if insn.is_call_near() && near(insn, word) => Kind::Call,
            FlowControl::Return if is_near_return(insn, word) => Kind::Return,
            FlowControl::IndirectBranch if indirect_width(insn) == word => Kind::JumpIndirect,
            FlowControl::IndirectCall if indirect_width(insn) == word => Kind::CallIndirect,
            _ => match (insn.mnemonic(), far_mode(insn, mode)) {
                (Mnemonic::Syscall, Some(_)) => Kind::SystemCall,
                (Mnemonic::Iretq, Some(_)) => Kind::InterruptReturn,
                (Mnemonic::Int | Mnemonic::Int3, Some(_)) => Kind::SoftwareInterrupt,
                (_, Some(_)) => Kind::SystemReturn,
                _ => Kind::Helper,
            },
        };
        let kind = if insn.has_rep_prefix() || insn.has_repne_prefix() {
            match kind {
                // REP RET and BND prefixes mean nothing; on PAUSE and string instructions
                // they do.
                Kind::Return
                | Kind::Jump
                | Kind::Branch
                | Kind::Call
                | Kind::JumpIndirect
                | Kind::CallIndirect
                | Kind::Nop
                | Kind::Prefetch
                | Kind::Fill
                | Kind::Copy
                | Kind::Scan => kind,
                Kind::Plain(_) if elides(insn) => kind,
                _ => Kind::Helper,
            }
        } else {
            kind
        };
        Class { kind, ..helper }
    }
}

/// RAX, RCX, RDX and RBX.
const LOW: u16 = 0xf;

/// Whether a shift or rotation has the form whose count is 1.
fn shifts_by_one(insn: &Instruction) -> bool {
    insn.op1_kind() == OpKind::Immediate8 && insn.immediate8() == 1
}

/// Whether the host's double shifts of 16 bits by more than that go on with the destination's bits, as those of Intel's
/// processors and of the interpreter do; the manual leaves them undefined, and AMD's do something else.
#[cfg(target_arch = "x86_64")]
fn double_shifts_wrap() -> bool {
    static WRAP: LazyLock<bool> = LazyLock::new(|| {
        let (mut left, mut right, other) = (0x1234u16, 0x1234u16, 0x5678u16);
        // SAFETY: nothing but the named registers and flags changes.
        unsafe {
            asm!(
                "shld {left:x}, {other:x}, 20",
                "shrd {right:x}, {other:x}, 20",
                left = inout(reg) left,
                right = inout(reg) right,
                other = in(reg) other,
                options(pure, nomem, nostack),
            );
        }
        (left, right) == (0x6781, 0x4567)
    });
    *WRAP
}

#[cfg(not(target_arch = "x86_64"))]
fn double_shifts_wrap() -> bool {
    true
}

/// The mode in which emitted code arrives behind an instruction that changes the privilege, or
/// may change it.
pub fn far_mode(insn: &Instruction, mode: Mode) -> Option<Mode> {
    match insn.mnemonic() {
        Mnemonic::Syscall if mode.has(Mode::USER | Mode::CODE64) => Some(mode.after_syscall()),
        Mnemonic::Sysretq | Mnemonic::Iretq if mode.has(Mode::RING0 | Mode::CODE64) => {
            Some(mode.after_sysret())
        }
        Mnemonic::Int | Mnemonic::Int3
            if mode.has(Mode::USER | Mode::LONG) && !mode.segmented() =>
        {
            Some(mode.after_interrupt())
        }
        _ => None,
    }
}

/// Whether a prefix asks for the elision of a lock, which processors without TSX ignore.
pub(super) fn elides(insn: &Instruction) -> bool {
    insn.has_xacquire_prefix() || insn.has_xrelease_prefix()
}

/// Whether a register is an explicit operand, or part of the memory operand.
fn names(insn: &Instruction, register: Register) -> bool {
    let whole = register.full_register();
    (0..insn.op_count()).any(|index| match insn.op_kind(index) {
        OpKind::Register => insn.op_register(index).full_register() == whole,
        OpKind::Memory => {
            insn.memory_base().full_register() == whole
                || insn.memory_index().full_register() == whole
        }
        _ => false,
    })
}

/// Bytes that a near RET takes from the stack besides its address.
pub fn released(insn: &Instruction) -> i64 {
    if insn.op_count() == 1 {
        i64::from(insn.immediate16())
    } else {
        0
    }
}

/// How many frames around its own an ENTER copies (SDM volume 2, ENTER).
pub fn frames(insn: &Instruction) -> u8 {
    insn.immediate8_2nd() & 31
}

/// Bytes that translated code pushes, pops or jumps by: the mode's own, or, where there are segments
/// that are not flat, the instruction's.
pub fn width(insn: &Instruction, mode: Mode) -> u32 {
    if mode.has(Mode::CODE64) {
        return 8;
    }
    if !mode.segmented() {
        return 4;
    }
    let short = match insn.flow_control() {
        FlowControl::Return => matches!(insn.code(), Code::Retnw | Code::Retnw_imm16),
        FlowControl::IndirectBranch | FlowControl::IndirectCall => {
            matches!(insn.code(), Code::Jmp_rm16 | Code::Call_rm16)
        }
        FlowControl::Next => stack_width(insn) == 2,
        _ => insn.op0_kind() == OpKind::NearBranch16,
    };
    if short { 2 } else { 4 }
}

/// Bytes that an instruction pushes or pops.
pub fn stack_width(insn: &Instruction) -> u32 {
    match insn.code() {
        // What iced-x86 says of these is a matter of the frame.
        Code::Leavew => 2,
        Code::Leaved => 4,
        Code::Leaveq => 8,
        _ => insn.stack_pointer_increment().unsigned_abs(),
    }
}

fn is_simple_push(insn: &Instruction) -> bool {
    let pushed = insn.op0_register();
    insn.op0_kind() != OpKind::Register || pushed.is_gpr() || pushed.is_segment_register()
}

fn near(insn: &Instruction, word: u32) -> bool {
    match insn.op0_kind() {
        OpKind::NearBranch64 => word == 8,
        OpKind::NearBranch32 => word == 4,
        OpKind::NearBranch16 => word == 2,
        _ => false,
    }
}

fn is_near_return(insn: &Instruction, word: u32) -> bool {
    match insn.code() {
        Code::Retnq | Code::Retnq_imm16 => word == 8,
        Code::Retnd | Code::Retnd_imm16 => word == 4,
        Code::Retnw | Code::Retnw_imm16 => word == 2,
        _ => false,
    }
}

fn indirect_width(insn: &Instruction) -> u32 {
    match insn.code() {
        Code::Jmp_rm64 | Code::Call_rm64 => 8,
        Code::Jmp_rm32 | Code::Call_rm32 => 4,
        Code::Jmp_rm16 | Code::Call_rm16 => 2,
        _ => 0,
    }
}

/// Whether it is one of the extensions that work on XMM registers without VEX.
pub(crate) fn is_sse(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::AES
            | F::PCLMULQDQ
            | F::SHA
    )
}

/// Whether it is one of the extensions with VEX that work on YMM registers.
pub(crate) fn is_avx(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::AVX | F::AVX2 | F::FMA | F::F16C | F::VAES | F::VPCLMULQDQ
    )
}

/// Whether it is one of the extensions that work on general registers alone.
pub(super) fn is_general(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::INTEL8086
            | F::INTEL186
            | F::INTEL386
            | F::INTEL486
            | F::X64
            | F::CMOV
            | F::POPCNT
            | F::LZCNT
            | F::BMI1
            | F::BMI2
            | F::ADX
            | F::MOVBE
            | F::MULTIBYTENOP
    )
}

/// Whether it is one of the extensions that work on x87 and MMX registers.
pub(super) fn is_x87(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(feature, F::FPU | F::FPU287 | F::FPU387 | F::MMX)
}

/// Whether the mode lets the instruction's extension run without #NM or #UD.
pub(super) fn extension_enabled(feature: CpuidFeature, mode: Mode) -> Option<bool> {
    Some(match feature {
        general if is_general(general) => true,
        x87 if is_x87(x87) => mode.has(Mode::X87),
        sse if is_sse(sse) => mode.has(Mode::SSE),
        avx if is_avx(avx) => mode.has(Mode::AVX),
        _ => return None,
    })
}

fn plain(insn: &Instruction, mode: Mode, access: &[OpAccess; 5]) -> Option<Operand> {
    if insn.is_privileged()
        || insn.is_string_instruction()
        || insn.is_save_restore_instruction()
        || insn.is_vsib()
        || !matches!(
            insn.encoding(),
            iced_x86::EncodingKind::Legacy | iced_x86::EncodingKind::VEX
        )
    {
        return None;
    }
    for &feature in insn.cpuid_features() {
        if !extension_enabled(feature, mode)? {
            return None;
        }
    }
    // MMX registers alias the x87 stack: both have to be enabled.
    if (0..insn.op_count()).any(|op| insn.op_register(op).is_mm()) && !mode.has(Mode::X87) {
        return None;
    }
    match insn.mnemonic() {
        Mnemonic::Cli
        | Mnemonic::Sti
        | Mnemonic::Cld
        | Mnemonic::Std
        | Mnemonic::Pause
        | Mnemonic::Hlt
        | Mnemonic::In
        | Mnemonic::Out
        | Mnemonic::Cpuid
        | Mnemonic::Rdtsc
        | Mnemonic::Rsm
        | Mnemonic::Bound
        | Mnemonic::Enter
        | Mnemonic::Xlatb
        | Mnemonic::Pushf
        | Mnemonic::Pushfd
        | Mnemonic::Pushfq
        | Mnemonic::Popf
        | Mnemonic::Popfd
        | Mnemonic::Popfq
        | Mnemonic::Pusha
        | Mnemonic::Pushad
        | Mnemonic::Popa
        | Mnemonic::Popad
        | Mnemonic::Push
        | Mnemonic::Pop
        | Mnemonic::Cmpxchg8b
        | Mnemonic::Cmpxchg16b
        | Mnemonic::Maskmovq
        | Mnemonic::Maskmovdqu
        | Mnemonic::Vmaskmovdqu
        | Mnemonic::Vmaskmovps
        | Mnemonic::Vmaskmovpd
        | Mnemonic::Vpmaskmovd
        | Mnemonic::Vpmaskmovq
        | Mnemonic::Fnstenv
        | Mnemonic::Fstenv
        | Mnemonic::Fldenv
        | Mnemonic::Fnsave
        | Mnemonic::Fsave
        | Mnemonic::Frstor
        | Mnemonic::Sldt
        | Mnemonic::Str
        | Mnemonic::Smsw
        | Mnemonic::Sgdt
        | Mnemonic::Sidt
        | Mnemonic::Lar
        | Mnemonic::Lsl
        | Mnemonic::Verr
        | Mnemonic::Verw
        | Mnemonic::Arpl
        | Mnemonic::Lds
        | Mnemonic::Les
        | Mnemonic::Lfs
        | Mnemonic::Lgs
        | Mnemonic::Lss
        | Mnemonic::Aaa
        | Mnemonic::Aas
        | Mnemonic::Aam
        | Mnemonic::Aad
        | Mnemonic::Daa
        | Mnemonic::Das
        | Mnemonic::Salc
        | Mnemonic::Into
        | Mnemonic::Clflush
        | Mnemonic::Ldmxcsr
        | Mnemonic::Vldmxcsr
        | Mnemonic::Ud0
        | Mnemonic::Ud1
        | Mnemonic::Ud2 => return None,
        // With CR0.TS set it may raise #NM.
        Mnemonic::Wait if !mode.has(Mode::X87) => return None,
        _ => {}
    }
    let mut operand = Operand::None;
    for index in 0..insn.op_count() {
        match insn.op_kind(index) {
            OpKind::Register => {
                let register = insn.op_register(index);
                if register.is_segment_register()
                    || register.is_cr()
                    || register.is_dr()
                    || register.is_tr()
                {
                    return None;
                }
            }
            OpKind::Memory => {
                let bit_string = matches!(
                    insn.mnemonic(),
                    Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
                ) && insn.op1_kind() == OpKind::Register;
                let size = insn.memory_size().size();
                if bit_string || !(1..=64).contains(&size) {
                    return None;
                }
                operand = match access[index as usize] {
                    OpAccess::Read | OpAccess::CondRead => Operand::Read,
                    OpAccess::Write => match insn.mnemonic() {
                        Mnemonic::Fst
                        | Mnemonic::Fist
                        | Mnemonic::Fstp
                        | Mnemonic::Fistp
                        | Mnemonic::Fisttp
                        | Mnemonic::Fbstp => Operand::WriteOnce,
                        _ => Operand::Write,
                    },
                    OpAccess::ReadWrite | OpAccess::ReadCondWrite => Operand::Modify,
                    _ => return None,
                };
                if operand == Operand::Modify && size > 8 {
                    return None;
                }
            }
            kind if is_immediate(kind) => {}
            _ => return None,
        }
    }
    Some(operand)
}

/// Whether an operand is a constant.
pub(super) fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
            | OpKind::Immediate8_2nd
    )
}
