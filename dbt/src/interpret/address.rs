//! Effective addresses, segmentation and alignment: everything between an operand and its
//! linear address (SDM volume 1, 3.7; volume 3, 5.3 and 5.5).

use iced_x86::{Instruction, OpKind, Register};
use mmu::Linear;

use super::operand::{read_register, register_size};
use super::{Access, Context};
use crate::guest::flags::CR0_PE;
use crate::guest::{CpuState, Exception, Mode, Segment, SegmentIndex};

const INDEXES: [SegmentIndex; 6] = [
    SegmentIndex::Es,
    SegmentIndex::Cs,
    SegmentIndex::Ss,
    SegmentIndex::Ds,
    SegmentIndex::Fs,
    SegmentIndex::Gs,
];

/// The index of a segment register, if it is one.
pub fn segment_index(register: Register) -> Option<SegmentIndex> {
    let number = (register as usize).wrapping_sub(Register::ES as usize);
    INDEXES.get(number).copied()
}

/// Whether bits 47 to 63 are all equal (there is no five-level paging).
#[inline]
pub fn is_canonical(address: u64) -> bool {
    (address.wrapping_add(1 << 47)) >> 48 == 0
}

/// The segment of a memory operand. In 64-bit mode the ES, CS, SS and DS prefixes have no
/// effect, and what is left of the choice is which fault a non-canonical address raises.
#[inline]
pub fn memory_segment(cpu: &CpuState, insn: &Instruction) -> SegmentIndex {
    let segment = segment_index(insn.memory_segment()).unwrap_or(SegmentIndex::Ds);
    if !cpu.mode.has(Mode::CODE64) || segment as u8 >= SegmentIndex::Fs as u8 {
        return segment;
    }
    match insn.memory_base() {
        Register::RSP | Register::RBP | Register::ESP | Register::EBP => SegmentIndex::Ss,
        _ => SegmentIndex::Ds,
    }
}

/// All ones over the address size of a memory operand.
#[inline]
pub fn address_mask(insn: &Instruction) -> u64 {
    let base = insn.memory_base();
    let register = if base == Register::None {
        insn.memory_index()
    } else {
        base
    };
    if register == Register::RIP || register == Register::EIP {
        return if register == Register::RIP {
            u64::MAX
        } else {
            0xffff_ffff
        };
    }
    let bytes = if register.is_gpr() {
        register_size(register)
    } else {
        insn.memory_displ_size() as usize
    };
    match bytes {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// The offset of a memory operand in its segment, wrapped to the address size. A vector index
/// (gathers) is left out: its user adds it per element.
#[inline]
pub fn effective_address(cpu: &CpuState, insn: &Instruction) -> u64 {
    let mut offset = insn.memory_displacement64();
    let base = insn.memory_base();
    // RIP-relative displacements are decoded as absolute addresses.
    if base != Register::None && base != Register::RIP && base != Register::EIP {
        offset = offset.wrapping_add(read_register(cpu, base));
    }
    let index = insn.memory_index();
    if index != Register::None && index <= Register::R15 {
        let scaled = read_register(cpu, index).wrapping_mul(u64::from(insn.memory_index_scale()));
        offset = offset.wrapping_add(scaled);
    }
    offset & address_mask(insn)
}

/// The segment and offset of a memory operand, explicit or of a string instruction.
#[inline]
pub fn segment_offset(cpu: &CpuState, insn: &Instruction, operand: u32) -> (SegmentIndex, u64) {
    let register = match insn.op_kind(operand) {
        OpKind::Memory => {
            return (memory_segment(cpu, insn), effective_address(cpu, insn));
        }
        OpKind::MemorySegSI => Register::SI,
        OpKind::MemorySegESI => Register::ESI,
        OpKind::MemorySegRSI => Register::RSI,
        OpKind::MemorySegDI => Register::DI,
        OpKind::MemorySegEDI => Register::EDI,
        OpKind::MemorySegRDI => Register::RDI,
        OpKind::MemoryESDI => return (SegmentIndex::Es, read_register(cpu, Register::DI)),
        OpKind::MemoryESEDI => return (SegmentIndex::Es, read_register(cpu, Register::EDI)),
        OpKind::MemoryESRDI => return (SegmentIndex::Es, read_register(cpu, Register::RDI)),
        _ => Register::None,
    };
    (memory_segment(cpu, insn), read_register(cpu, register))
}

/// The linear address of a memory operand of `size` bytes, after the segment, canonical and
/// alignment checks that an access of this kind has to pass.
#[inline]
pub fn linear(
    cx: &Context<'_>,
    insn: &Instruction,
    operand: u32,
    size: usize,
    access: Access,
) -> Result<Linear, Exception> {
    let (segment, offset) = segment_offset(cx.cpu, insn, operand);
    segment_linear(cx, segment, offset, size, access)
}

/// As [`linear`], `displacement` bytes further within the address size (bit strings).
pub fn linear_displaced(
    cx: &Context<'_>,
    insn: &Instruction,
    displacement: u64,
    size: usize,
    access: Access,
) -> Result<Linear, Exception> {
    let segment = memory_segment(cx.cpu, insn);
    let offset = effective_address(cx.cpu, insn).wrapping_add(displacement) & address_mask(insn);
    segment_linear(cx, segment, offset, size, access)
}

/// The linear address of `size` bytes at an offset of a segment, checked as [`linear`] does.
#[inline]
pub fn segment_linear(
    cx: &Context<'_>,
    segment: SegmentIndex,
    offset: u64,
    size: usize,
    access: Access,
) -> Result<Linear, Exception> {
    let mode = cx.cpu.mode;
    let last = (size.max(1) - 1) as u64;
    let address = if mode.has(Mode::CODE64) {
        let address = if segment as u8 >= SegmentIndex::Fs as u8 {
            cx.cpu.segment(segment).base.wrapping_add(offset)
        } else {
            offset
        };
        if !is_canonical(address) || !is_canonical(address.wrapping_add(last)) {
            return Err(segment_fault(segment));
        }
        address
    } else if mode.has(Mode::FLAT)
        && matches!(
            segment,
            SegmentIndex::Ds | SegmentIndex::Es | SegmentIndex::Ss
        )
        && offset.wrapping_add(last) <= 0xffff_ffff
    {
        offset
    } else {
        legacy_linear(cx.cpu, segment, offset, last, access)?
    };
    if mode.has(Mode::ALIGNED)
        && matches!(size, 2 | 4 | 8)
        && access != Access::Fetch
        && address & last != 0
    {
        return Err(Exception::alignment_check());
    }
    Ok(Linear(address))
}

/// #SS(0) for the stack segment, #GP(0) for the others.
pub fn segment_fault(segment: SegmentIndex) -> Exception {
    if segment == SegmentIndex::Ss {
        Exception::stack_fault(0)
    } else {
        Exception::general_protection(0)
    }
}

/// Segmentation outside 64-bit mode: presence, type, limit, base.
fn legacy_linear(
    cpu: &CpuState,
    index: SegmentIndex,
    offset: u64,
    last: u64,
    access: Access,
) -> Result<u64, Exception> {
    let segment = cpu.segment(index);
    let attributes = segment.attributes;
    let code = attributes & Segment::CODE != 0;
    let real = cpu.control.cr0 & CR0_PE == 0 || cpu.mode.has(Mode::VM86);
    // Real mode keeps whatever types protected mode has left behind and ignores them; the
    // limits it obeys.
    if !real {
        let readable_or_writable = attributes & Segment::WRITABLE != 0;
        let allowed = segment.present()
            && match access {
                Access::Read => !code || readable_or_writable,
                Access::Write => !code && readable_or_writable,
                Access::Fetch => code,
            };
        if !allowed {
            return Err(segment_fault(index));
        }
    }
    let end = offset.saturating_add(last);
    let limit = u64::from(segment.limit);
    let inside = if !code && attributes & Segment::CONFORMING != 0 {
        let top = if attributes & Segment::BIG != 0 {
            0xffff_ffff
        } else {
            0xffff
        };
        offset > limit && end <= top
    } else {
        end <= limit
    };
    if !inside {
        return Err(segment_fault(index));
    }
    Ok(segment.base.wrapping_add(offset) & 0xffff_ffff)
}
