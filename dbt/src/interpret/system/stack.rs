//! A stack as a control transfer sees it: pushes are collected and authorised before the first
//! of them is stored, pops move a copy of the pointer.

use mmu::Linear;

use super::segments::{Loading, check_stack, null_segment, table_address};
use super::with_privilege;
use crate::guest::{CpuState, Exception, Mode, Register, Segment, SegmentIndex};
use crate::interpret::Context;
use crate::interpret::address::is_canonical;

/// The largest frame of an exception: GS, FS, DS, ES, SS, ESP, EFLAGS, CS, EIP and an error code. Those of call gates
/// may have more.
const USUAL: usize = 10;

/// A push: where, of how many bytes, and what.
type Write = (Linear, u8, u64);

/// A stack pointer with its segment, and the pushes that wait for [`Stack::commit`].
pub struct Stack {
    segment: Segment,
    pointer: u64,
    /// All ones over the width of the pointer.
    mask: u64,
    /// No base and no limit: 64-bit mode.
    long: bool,
    cpl: u8,
    /// The error code of #SS when a push does not fit.
    fault: u32,
    writes: [Write; USUAL],
    count: usize,
    /// Those for which `writes` has no room.
    further: Vec<Write>,
}

fn width_mask(segment: &Segment) -> u64 {
    if segment.attributes & Segment::BIG != 0 {
        0xffff_ffff
    } else {
        0xffff
    }
}

/// Whether `size` bytes at an offset are inside a data segment.
fn within(segment: &Segment, offset: u64, size: u64) -> bool {
    let last = offset + (size - 1);
    let expand_down =
        segment.attributes & (Segment::CODE | Segment::CONFORMING) == Segment::CONFORMING;
    if expand_down {
        offset > u64::from(segment.limit) && last <= width_mask(segment)
    } else {
        last <= u64::from(segment.limit)
    }
}

impl Stack {
    fn new(segment: Segment, pointer: u64, mask: u64, cpl: u8) -> Stack {
        Stack {
            segment,
            pointer,
            mask,
            long: mask == u64::MAX,
            cpl,
            fault: 0,
            writes: [(Linear(0), 0, 0); USUAL],
            count: 0,
            further: Vec::new(),
        }
    }

    /// The stack in use.
    pub fn current(cpu: &CpuState) -> Stack {
        let segment = *cpu.segment(SegmentIndex::Ss);
        let mask = if cpu.code64() {
            u64::MAX
        } else {
            width_mask(&segment)
        };
        Stack::new(segment, cpu.gpr[Register::RSP], mask, cpu.cpl())
    }

    /// A stack of 64-bit mode.
    pub fn long(pointer: u64, cpl: u8) -> Stack {
        Stack::new(null_segment(0, cpl), pointer, u64::MAX, cpl)
    }

    /// A stack in a segment that is about to be loaded into SS. A push that does not fit
    /// raises #SS with the segment's selector.
    pub fn legacy(segment: Segment, pointer: u64, cpl: u8) -> Stack {
        let mut stack = Stack::new(segment, pointer, width_mask(&segment), cpl);
        stack.fault = super::segments::code_of(segment.selector);
        stack
    }

    /// Reserves a push of 2, 4 or 8 bytes.
    pub fn push(&mut self, size: u8, value: u64) -> Result<(), Exception> {
        let bytes = u64::from(size);
        let offset = self.pointer.wrapping_sub(bytes) & self.mask;
        let address = self.linear(offset, bytes)?;
        self.pointer = self.pointer & !self.mask | offset;
        let write = (address, size, value);
        match self.writes.get_mut(self.count) {
            Some(free) => {
                *free = write;
                self.count += 1;
            }
            None => self.further.push(write),
        }
        Ok(())
    }

    fn writes(&self) -> impl Iterator<Item = &Write> {
        self.writes[..self.count].iter().chain(&self.further)
    }

    /// Reads the value on top and moves past it.
    pub fn pop(&mut self, cx: &mut Context<'_>, size: u8) -> Result<u64, Exception> {
        let value = self.peek(cx, 0, size)?;
        self.skip(u64::from(size));
        Ok(value)
    }

    /// Reads the value `distance` bytes above the top.
    pub fn peek(&self, cx: &mut Context<'_>, distance: u64, size: u8) -> Result<u64, Exception> {
        let offset = self.pointer.wrapping_add(distance) & self.mask;
        let address = self.linear(offset, u64::from(size))?;
        self.check_alignment(cx.cpu, address, size)?;
        cx.load(address, usize::from(size))
    }

    /// Moves past `bytes` bytes.
    pub fn skip(&mut self, bytes: u64) {
        let offset = self.pointer.wrapping_add(bytes) & self.mask;
        self.pointer = self.pointer & !self.mask | offset;
    }

    /// Checks that every push may be stored.
    pub fn authorise(&self, cx: &mut Context<'_>) -> Result<(), Exception> {
        with_privilege(cx, self.cpl, |cx| {
            self.writes().try_for_each(|&(at, size, _)| {
                self.check_alignment(cx.cpu, at, size)?;
                cx.authorise_write(at, usize::from(size))
            })
        })
    }

    /// #AC for a stack of ring 3, if that is armed; the processor's own frames on inner stacks
    /// may be anywhere.
    fn check_alignment(&self, cpu: &CpuState, at: Linear, size: u8) -> Result<(), Exception> {
        let misaligned = at.0 & u64::from(size - 1) != 0;
        if misaligned && self.cpl == 3 && cpu.mode.has(Mode::ALIGNED) {
            return Err(Exception::alignment_check());
        }
        Ok(())
    }

    /// Stores every push; they have been authorised.
    pub fn commit(&self, cx: &mut Context<'_>) -> Result<(), Exception> {
        with_privilege(cx, self.cpl, |cx| {
            self.writes()
                .try_for_each(|&(at, size, value)| cx.store(at, usize::from(size), value))
        })
    }

    /// Sets RSP: a 16-bit stack leaves the register's upper bits alone.
    pub fn store_pointer(&self, cpu: &mut CpuState) {
        let rsp = &mut cpu.gpr[Register::RSP];
        *rsp = if self.mask == 0xffff {
            *rsp & !0xffff | self.pointer & 0xffff
        } else {
            self.pointer & self.mask
        };
    }

    fn linear(&self, offset: u64, bytes: u64) -> Result<Linear, Exception> {
        let fault = Exception::stack_fault(self.fault);
        if self.long {
            if is_canonical(offset) && is_canonical(offset.wrapping_add(bytes - 1)) {
                return Ok(Linear(offset));
            }
            return Err(fault);
        }
        if !within(&self.segment, offset, bytes) {
            return Err(fault);
        }
        Ok(Linear(self.segment.base.wrapping_add(offset) & 0xffff_ffff))
    }
}

/// The stack that the TSS holds for an inner privilege level, with the check of its segment
/// (SDM volume 3, 5.8.5 and 6.12.1). Faults are #TS, naming the TSS or the stack segment.
pub fn inner(cx: &mut Context<'_>, level: u8) -> Result<(Stack, Loading), Exception> {
    let tr = cx.cpu.control.tr;
    let outside = Exception::invalid_tss(super::segments::code_of(tr.selector));
    let level64 = u64::from(level);
    let wide = tr.kind() & 8 != 0;
    let (offset, size) = if wide {
        (4 + 8 * level64, 4)
    } else {
        (2 + 4 * level64, 2)
    };
    if offset + size + 1 > u64::from(tr.limit) {
        return Err(outside);
    }
    let at = table_address(cx.cpu, tr.base, offset);
    let pointer = cx.load_system(at, size as usize)?;
    let at = table_address(cx.cpu, tr.base, offset + size);
    let selector = cx.load_system(at, 2)? as u16;
    let loading = check_stack(cx, selector, level, false, Exception::TS)?;
    Ok((Stack::legacy(loading.segment, pointer, level), loading))
}

/// The pointer that a 64-bit TSS holds at `offset` (RSP0 to RSP2, IST1 to IST7).
pub fn inner_long(cx: &mut Context<'_>, offset: u64) -> Result<u64, Exception> {
    let tr = cx.cpu.control.tr;
    if offset + 7 > u64::from(tr.limit) {
        return Err(Exception::invalid_tss(super::segments::code_of(
            tr.selector,
        )));
    }
    let at = table_address(cx.cpu, tr.base, offset);
    cx.load_system(at, 8)
}
