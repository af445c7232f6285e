//! Which flags matter where: what each instruction of a block reads and overwrites, where the
//! block can be left, and from that, what must survive a memory check.

use iced_x86::{Instruction, Mnemonic, OpKind, Register, RflagsBits};

use super::classify::{Class, Kind, Operand};
use super::elements::repeats;

/// CF, PF, AF, ZF, SF and OF, as iced-x86 names them.
pub const ALL: u32 = RflagsBits::CF
    | RflagsBits::PF
    | RflagsBits::AF
    | RflagsBits::ZF
    | RflagsBits::SF
    | RflagsBits::OF;

/// Flags that an instruction reads.
pub fn read(insn: &Instruction) -> u32 {
    insn.rflags_read() & ALL
}

/// Flags that an instruction may change.
pub fn changed(insn: &Instruction) -> u32 {
    insn.rflags_modified() & ALL
}

/// Flags that an instruction overwrites whatever its operands are and whatever they were. A flag
/// that it leaves undefined may stay as it was: AMD's multiplications do that.
pub fn overwritten(insn: &Instruction) -> u32 {
    let changed = changed(insn);
    let defined = changed & !insn.rflags_undefined();
    match insn.mnemonic() {
        // A count of zero leaves the flags alone.
        Mnemonic::Shl
        | Mnemonic::Sal
        | Mnemonic::Shr
        | Mnemonic::Sar
        | Mnemonic::Rol
        | Mnemonic::Ror
        | Mnemonic::Rcl
        | Mnemonic::Rcr
        | Mnemonic::Shld
        | Mnemonic::Shrd => {
            let last = insn.op_count() - 1;
            let count = insn.immediate8();
            let count_known = insn.op_kind(last) == OpKind::Immediate8
                && count & 31 != 0
                && insn.op_register(last) != Register::CL;
            // AF, and OF for counts other than 1, are undefined, but do not depend on the past
            // (a test of the host's instructions says so), except that Intel's processors leave
            // OF alone when they rotate by more.
            let rotates = matches!(
                insn.mnemonic(),
                Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr
            );
            match count_known {
                true if rotates && count != 1 => changed & !RflagsBits::OF,
                true => changed,
                false => 0,
            }
        }
        // So does a REP string instruction that iterates zero times.
        Mnemonic::Cmpsb
        | Mnemonic::Cmpsw
        | Mnemonic::Cmpsd
        | Mnemonic::Cmpsq
        | Mnemonic::Scasb
        | Mnemonic::Scasw
        | Mnemonic::Scasd
        | Mnemonic::Scasq
            if repeats(insn) =>
        {
            0
        }
        // AF is undefined, and cleared by processors.
        Mnemonic::And | Mnemonic::Or | Mnemonic::Xor | Mnemonic::Test => changed,
        _ => defined,
    }
}

/// What an instruction does with the arithmetic flags. These and [`ALL`] fit in a byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flags {
    read: u8,
    changed: u8,
    overwritten: u8,
}

const _: () = assert!(ALL <= u8::MAX as u32);

impl Flags {
    /// Of an instruction.
    pub fn of(insn: &Instruction) -> Flags {
        Flags {
            read: read(insn) as u8,
            changed: changed(insn) as u8,
            overwritten: overwritten(insn) as u8,
        }
    }

    /// As [`read`].
    pub fn read(self) -> u32 {
        self.read.into()
    }

    /// As [`changed`].
    pub fn changed(self) -> u32 {
        self.changed.into()
    }

    /// As [`overwritten`].
    pub fn overwritten(self) -> u32 {
        self.overwritten.into()
    }
}

/// For each instruction of a straight run, the flags that have to be right before it: they are
/// read by it or by a later one before being overwritten, or the block can be left there.
/// Bit i of `exposes` marks an instruction at which it can; all flags count at its end.
pub fn needed_before(classes: &[Class], exposes: u64, needed: &mut Vec<u32>) {
    let mut live = ALL;
    needed.clear();
    needed.resize(classes.len(), ALL);
    let places = classes.iter().zip(needed).enumerate();
    for (index, (class, needed)) in places.rev() {
        live = (live & !class.flags.overwritten()) | class.flags.read();
        if exposes >> index & 1 != 0 {
            live = ALL;
        }
        *needed = live;
    }
}

/// A bit for each instruction of a block.
pub fn mask(classes: &[Class], mut is: impl FnMut(usize, &Class) -> bool) -> u64 {
    let bits = classes.iter().enumerate();
    bits.fold(0, |mask, (index, class)| {
        mask | u64::from(is(index, class)) << index
    })
}

/// Whether a block can be left at an instruction, so that the flags before it are seen: by an
/// upcall or by a fault of the host processor. If they need not be precise there, whether the
/// instruction itself may need them.
pub fn exposes(class: &Class, precise: bool) -> bool {
    match class.kind {
        Kind::Helper
        | Kind::Branch
        | Kind::CountBranch
        | Kind::ReturnInto
        | Kind::JumpInto
        | Kind::CallIndirectInto
        | Kind::SystemCall
        | Kind::SoftwareInterrupt
        | Kind::SystemReturn
        | Kind::InterruptReturn => true,
        _ if !precise => false,
        Kind::Plain(Operand::None) => class.faults,
        Kind::Lea
        | Kind::Nop
        | Kind::Prefetch
        | Kind::Jump
        | Kind::Cli
        | Kind::Direction(_)
        | Kind::SwapGs
        | Kind::Decimal
        | Kind::ReadSelector
        | Kind::ReadProcessor
        | Kind::ReadControl => false,
        _ => true,
    }
}

/// The flags at a block's entry, if no instruction of it needs them in EFLAGS: then they may
/// arrive as a recipe. What is returned are the registers that the block changes before the last
/// point where somebody may ask for these flags; the recipe must not need any of them. Without
/// `precise`: if nobody needs them at all. With `lazy`, also if the block only passes them on: then the recipe
/// must need no register that the block changes, or none at all if it is not known what comes behind it, which may
/// change any. (Where it is known, the link asks for more if that changes others.)
/// Bit i of `in_host`: instruction i needs the flags in EFLAGS.
pub fn lost_at_entry(
    classes: &[Class],
    (exposes, in_host): (u64, u64),
    (precise, lazy): (bool, bool),
) -> Option<u16> {
    let (mut changed_so_far, mut before_exposure) = (0, 0);
    let mut checks = false;
    for (index, class) in classes.iter().enumerate() {
        if matches!(class.kind, Kind::JumpInto | Kind::CallIndirectInto) {
            // Where it leads elsewhere it passes them on.
            changed_so_far = u16::MAX;
        }
        if exposes >> index & 1 != 0 {
            before_exposure = changed_so_far;
        }
        let last = index + 1 == classes.len();
        match class.kind {
            // A helper gets them from wherever they are, if they are anywhere.
            Kind::Helper => return precise.then_some(before_exposure),
            _ if in_host >> index & 1 != 0 => return None,
            Kind::Plain(_) | Kind::Element(_) | Kind::ElementPair(_) | Kind::PopFlags
                if class.flags.changed() != 0 =>
            {
                return Some(before_exposure);
            }
            Kind::JumpInto | Kind::CallIndirectInto if !lazy => return None,
            kind if !last && leaves_alone(kind) => {}
            // Without a check they would stay in EFLAGS all the time.
            Kind::Jump if lazy && checks => return Some(changed_so_far),
            Kind::Call | Kind::CountBranch if lazy => return Some(changed_so_far | class.writes),
            Kind::Return | Kind::JumpIndirect | Kind::CallIndirect if lazy => {
                return Some(u16::MAX);
            }
            // The rest reads the flags, passes them on, or wants them saved.
            _ => return None,
        }
        changed_so_far |= class.writes;
        checks |= checks_access(class.kind);
    }
    None
}

/// Whether instructions of a kind check an access to memory, which spoils EFLAGS.
pub fn checks_access(kind: Kind) -> bool {
    match kind {
        Kind::Plain(operand) => operand != Operand::None,
        Kind::Push
        | Kind::Pop
        | Kind::ShortPush
        | Kind::ShortPop
        | Kind::PopMemory
        | Kind::PushAll
        | Kind::PopAll
        | Kind::Leave
        | Kind::Call
        | Kind::CallInto
        | Kind::Return
        | Kind::ReturnInto
        | Kind::JumpIndirect
        | Kind::CallIndirect
        | Kind::JumpInto
        | Kind::CallIndirectInto
        | Kind::PushFlags
        | Kind::PopFlags
        | Kind::LoadSegment
        | Kind::AskSelector
        | Kind::LoadVectorControl
        | Kind::FlushLine
        | Kind::Prefetch
        | Kind::Masked(_)
        | Kind::MaskedBytes
        | Kind::Gather
        | Kind::Translate
        | Kind::Bound
        | Kind::Element(_)
        | Kind::ElementPair(_) => true,
        _ => false,
    }
}

/// Whether instructions of a kind that neither need the flags in EFLAGS nor change them leave them
/// where they are.
pub fn leaves_alone(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Plain(_)
            | Kind::Lea
            | Kind::Nop
            | Kind::Push
            | Kind::Pop
            | Kind::ShortPush
            | Kind::ShortPop
            | Kind::PopMemory
            | Kind::PushAll
            | Kind::PopAll
            | Kind::Leave
            | Kind::Jump
            | Kind::CallInto
            | Kind::ReturnInto
            | Kind::JumpInto
            | Kind::CallIndirectInto
            | Kind::Cli
            | Kind::Sti
            | Kind::Direction(_)
            | Kind::SwapGs
            | Kind::ReadSelector
            | Kind::ReadProcessor
            | Kind::ReadControl
            | Kind::ReadBase
            | Kind::WriteBase
            | Kind::Enter
            | Kind::LoadVectorControl
            | Kind::FlushLine
            | Kind::Prefetch
            | Kind::Masked(_)
            | Kind::MaskedBytes
            | Kind::Gather
            | Kind::Translate
            | Kind::Fill
            | Kind::Copy
            | Kind::Element(_)
            | Kind::ElementPair(_)
    )
}
