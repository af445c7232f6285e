//! A translator's view of one instruction.

use iced_x86::{Instruction, OpAccess, Register};

use super::liveness;

/// How an instruction is translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The same instruction on host registers and a checked memory operand.
    Plain(Operand),
    /// LEA: an address, but no access.
    Lea,
    /// Nothing to do.
    Nop,
    /// PUSH of a register, an immediate or memory, in the mode's own width.
    Push,
    /// POP to a register.
    Pop,
    /// POP to memory.
    PopMemory,
    /// PUSHAD.
    PushAll,
    /// POPAD.
    PopAll,
    /// ENTER in flat code.
    Enter,
    /// LEAVE.
    Leave,
    /// Direct near JMP.
    Jump,
    /// Jcc.
    Branch,
    /// LOOP, LOOPE, LOOPNE, JCXZ, JECXZ or JRCXZ.
    CountBranch,
    /// Direct near CALL.
    Call,
    /// Near RET.
    Return,
    /// Direct near CALL, behind which a trace goes on in the function.
    CallInto,
    /// Near RET, behind which a trace goes on where the last call came from.
    ReturnInto,
    /// Near JMP through a register or memory.
    JumpIndirect,
    /// Near CALL through a register or memory.
    CallIndirect,
    /// Near JMP through a register or memory, behind which a trace goes on where it once led.
    JumpInto,
    /// Near CALL through a register or memory, likewise.
    CallIndirectInto,
    /// CLI at CPL 0.
    Cli,
    /// STI at CPL 0.
    Sti,
    /// CLD or STD: the direction flag becomes this.
    Direction(bool),
    /// SWAPGS at CPL 0.
    SwapGs,
    /// PUSHFQ, or PUSHFD in flat code.
    PushFlags,
    /// POPFQ, or POPFD in flat code, at CPL 0, or at CPL 3 with a lower IOPL.
    PopFlags,
    /// MOV or POP to DS, ES, FS or GS, or outside of flat code LDS, LES, LFS or LGS, at CPL 0 and 3.
    LoadSegment,
    /// AAA, AAD, AAM, AAS, DAA or DAS.
    Decimal,
    /// BOUND.
    Bound,
    /// PUSH of 16 bits in flat code, other than of memory.
    ShortPush,
    /// POP of 16 bits to a register in flat code.
    ShortPop,
    /// MOV of a segment's selector to a register.
    ReadSelector,
    /// LAR, LSL, VERR or VERW in protected mode, at CPL 0 and 3.
    AskSelector,
    /// RDTSC or RDTSCP.
    TimeStamp,
    /// SYSCALL of 64-bit code at CPL 3.
    SystemCall,
    /// INT n or INT3 at CPL 3 in long mode, in code that is not segmented.
    SoftwareInterrupt,
    /// SYSRETQ.
    SystemReturn,
    /// IRETQ at CPL 0.
    InterruptReturn,
    /// STAC or CLAC at CPL 0: AC becomes this.
    UserPages(bool),
    /// RDPKRU in 64-bit mode.
    ReadKeyRights,
    /// XGETBV.
    ReadExtendedControl,
    /// RDPID.
    ReadProcessor,
    /// MOV from CR0, CR2, CR3 or CR4 at CPL 0 of 64-bit code.
    ReadControl,
    /// RDFSBASE or RDGSBASE.
    ReadBase,
    /// WRFSBASE or WRGSBASE.
    WriteBase,
    /// REP STOS with addresses as wide as the code.
    Fill,
    /// REP MOVS with addresses as wide as the code, and without a segment base.
    Copy,
    /// LODS, STOS or SCAS without a prefix: what it does with the element.
    Element(Operand),
    /// MOVS or CMPS without a prefix: what it does with the element at RDI.
    ElementPair(Operand),
    /// REP SCAS or REP CMPS with addresses as wide as the code, and without a segment base.
    Scan,
    /// VMASKMOV or VPMASKMOV: what it does with memory.
    Masked(Operand),
    /// MASKMOVDQU, VMASKMOVDQU or MASKMOVQ.
    MaskedBytes,
    /// VGATHER or VPGATHER of AVX2.
    Gather,
    /// XLAT.
    Translate,
    /// BT, BTS, BTR or BTC of a bit string in memory: the register chooses the address, too.
    BitString,
    /// CMPXCHG8B or CMPXCHG16B.
    ComparePair,
    /// FLDCW while all exceptions are masked.
    LoadControl,
    /// FNSTENV, FLDENV, FNSAVE or FRSTOR with words of 32 bits, while all exceptions are masked.
    Environment,
    /// CLFLUSH, CLFLUSHOPT or CLWB.
    FlushLine,
    /// PREFETCHh or PREFETCHW in flat code.
    Prefetch,
    /// LDMXCSR or VLDMXCSR.
    LoadVectorControl,
    /// The interpreter executes it.
    Helper,
}

impl Kind {
    /// How the same instruction is translated in the middle of a trace.
    pub fn followed(self) -> Kind {
        match self {
            Kind::Call => Kind::CallInto,
            Kind::Return => Kind::ReturnInto,
            Kind::JumpIndirect => Kind::JumpInto,
            Kind::CallIndirect => Kind::CallIndirectInto,
            kind => kind,
        }
    }
}

/// What a plain instruction does with its memory operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operand {
    /// It has none.
    None,
    /// Loads.
    Read,
    /// Stores, and may be executed once for each copy.
    Write,
    /// Stores once: an x87 store pops, or notes an exception that its repetition would raise;
    /// with an unmasked exception it does not store at all.
    WriteOnce,
    /// Loads, computes, stores.
    Modify,
}

/// A translator's view of one instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Class {
    /// How it is translated.
    pub kind: Kind,
    /// What it does with each operand.
    pub access: [OpAccess; 5],
    /// Bit i: it may change general-purpose register i.
    pub writes: u16,
    /// Bit i: it uses general-purpose register i without naming it.
    pub implied: u16,
    /// What it does with the arithmetic flags.
    pub flags: liveness::Flags,
    /// The host may fault on it whatever it does with memory.
    pub faults: bool,
    /// It may touch vector registers or MXCSR.
    pub vectors: bool,
}

impl Class {
    /// What the instruction does with its memory operand, if the host can execute it alone.
    pub fn on_host(&self) -> Option<Operand> {
        match self.kind {
            Kind::Plain(operand) => Some(operand),
            Kind::LoadControl => Some(Operand::Read),
            _ => None,
        }
    }
}

/// Whether the offset of a memory operand in flat code of 32 bits has to be compared with its segment's limit all the
/// same: the segment is none of the flat ones, or it is CS, which cannot be written, and perhaps not read; or the
/// offset wraps at 16 bits.
pub fn is_limited(insn: &Instruction) -> bool {
    let other = matches!(
        insn.memory_segment(),
        Register::CS | Register::FS | Register::GS
    );
    let (base, index) = (insn.memory_base(), insn.memory_index());
    other || base.is_gpr16() || index.is_gpr16() || insn.memory_displ_size() == 2
}
