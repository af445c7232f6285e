//! Segment descriptors: reading, checking and loading them (SDM volume 3, 3.4.5 and 5.2 to 5.8).

use mmu::Linear;

use crate::guest::{CpuState, Exception, Segment, SegmentIndex};
use crate::interpret::Context;

/// A descriptor as read from the GDT or an LDT.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// The selector that named it, RPL included.
    pub selector: u16,
    /// Where it is.
    pub address: u64,
    /// Its first eight bytes.
    pub raw: u64,
}

/// The error code that names a selector: its index and table, without RPL.
pub fn code_of(selector: u16) -> u32 {
    u32::from(selector & 0xfffc)
}

/// Whether a selector is one of the four null ones.
pub fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

/// A linear address as the processor forms it for its own tables: 32 bits outside long mode.
pub fn table_address(cpu: &CpuState, base: u64, offset: u64) -> Linear {
    let address = base.wrapping_add(offset);
    Linear(if cpu.long_mode() {
        address
    } else {
        address & 0xffff_ffff
    })
}

impl Descriptor {
    /// Reads the descriptor of a selector that is not null. Outside the table's limit: the
    /// exception `vector`, naming the selector.
    pub fn fetch(cx: &mut Context<'_>, selector: u16, vector: u8) -> Result<Descriptor, Exception> {
        let outside = Exception::with_code(vector, code_of(selector));
        let offset = u64::from(selector & 0xfff8);
        let control = &cx.cpu.control;
        let base = if selector & 4 != 0 {
            if !control.ldtr.present() || offset + 7 > u64::from(control.ldtr.limit) {
                return Err(outside);
            }
            control.ldtr.base
        } else {
            if offset + 7 > u64::from(control.gdtr.limit) {
                return Err(outside);
            }
            control.gdtr.base
        };
        let address = table_address(cx.cpu, base, offset);
        Ok(Descriptor {
            selector,
            address: address.0,
            raw: cx.load_system(address, 8)?,
        })
    }

    /// The second half of a 16-byte system descriptor of long mode (SDM volume 3, 7.2.3): the
    /// upper half of the base or offset. A nonzero type there: #GP.
    pub fn fetch_high(&self, cx: &mut Context<'_>, vector: u8) -> Result<u64, Exception> {
        let fault = Exception::with_code(vector, code_of(self.selector));
        let table_limit = if self.selector & 4 != 0 {
            cx.cpu.control.ldtr.limit
        } else {
            u32::from(cx.cpu.control.gdtr.limit)
        };
        if u64::from(self.selector & 0xfff8) + 15 > u64::from(table_limit) {
            return Err(fault);
        }
        let high = cx.load_system(Linear(self.address.wrapping_add(8)), 8)?;
        if high >> 40 & 0x1f != 0 {
            return Err(fault);
        }
        Ok(high & 0xffff_ffff)
    }

    /// Access byte and flags, as [`Segment::attributes`] keeps them.
    pub fn attributes(&self) -> u16 {
        (self.raw >> 40) as u16 & 0xf0ff
    }

    /// The 32-bit base.
    pub fn base(&self) -> u64 {
        (self.raw >> 16 & 0xff_ffff) | (self.raw >> 56) << 24
    }

    /// The last valid offset, granularity applied.
    pub fn limit(&self) -> u32 {
        let limit = (self.raw & 0xffff) as u32 | (self.raw >> 32) as u32 & 0xf_0000;
        if self.attributes() & Segment::GRANULAR != 0 {
            limit << 12 | 0xfff
        } else {
            limit
        }
    }

    fn has(&self, attribute: u16) -> bool {
        self.attributes() & attribute != 0
    }

    /// A system segment or gate.
    pub fn is_system(&self) -> bool {
        !self.has(Segment::NOT_SYSTEM)
    }

    /// A code segment.
    pub fn is_code(&self) -> bool {
        !self.is_system() && self.has(Segment::CODE)
    }

    /// A conforming code segment.
    pub fn is_conforming(&self) -> bool {
        self.is_code() && self.has(Segment::CONFORMING)
    }

    /// A data segment that may be written.
    pub fn is_writable_data(&self) -> bool {
        !self.is_system() && !self.has(Segment::CODE) && self.has(Segment::WRITABLE)
    }

    /// A data segment, or a code segment that may be read.
    pub fn is_readable(&self) -> bool {
        !self.is_system() && (!self.has(Segment::CODE) || self.has(Segment::WRITABLE))
    }

    /// Present.
    pub fn present(&self) -> bool {
        self.has(Segment::PRESENT)
    }

    /// Descriptor privilege level.
    pub fn dpl(&self) -> u8 {
        (self.attributes() >> 5 & 3) as u8
    }

    /// Requested privilege level of the selector that named it.
    pub fn rpl(&self) -> u8 {
        (self.selector & 3) as u8
    }

    /// The four type bits.
    pub fn kind(&self) -> u8 {
        (self.attributes() & 15) as u8
    }

    /// 64-bit code (L).
    pub fn is_long(&self) -> bool {
        self.has(Segment::LONG)
    }

    /// The segment register that loading this descriptor gives.
    pub fn segment(&self) -> Segment {
        let accessed = if self.is_system() {
            0
        } else {
            Segment::ACCESSED
        };
        Segment {
            base: self.base(),
            limit: self.limit(),
            selector: self.selector,
            attributes: self.attributes() | accessed,
        }
    }

    /// The same with another RPL in the selector.
    pub fn segment_at(&self, rpl: u8) -> Segment {
        let mut segment = self.segment();
        segment.selector = segment.selector & !3 | u16::from(rpl);
        segment
    }

    /// #GP naming this descriptor.
    pub fn general_protection(&self) -> Exception {
        Exception::general_protection(code_of(self.selector))
    }

    /// #NP naming this descriptor.
    pub fn not_present(&self) -> Exception {
        Exception::not_present(code_of(self.selector))
    }

    /// Sets the accessed bit in the table if it is clear. The last step that can fault: do it
    /// before anything changes and after everything else has been authorised.
    pub fn mark_accessed(&self, cx: &mut Context<'_>) -> Result<(), Exception> {
        if self.has(Segment::ACCESSED) {
            return Ok(());
        }
        let access = self.raw >> 40 & 0xff | u64::from(Segment::ACCESSED);
        cx.store_system(Linear(self.address.wrapping_add(5)), 1, access)
    }

    /// Sets or clears the busy bit of a TSS descriptor.
    pub fn mark_busy(&self, cx: &mut Context<'_>, busy: bool) -> Result<(), Exception> {
        let at = Linear(self.address.wrapping_add(5));
        let access = cx.load_system(at, 1)? & !2;
        cx.store_system(at, 1, access | u64::from(busy) << 1)
    }

    /// Checks that the descriptor is usable as CS: its type is code, L and D are not both set
    /// in long mode (SDM volume 3, 5.2.1).
    pub fn require_code(&self, cpu: &CpuState) -> Result<(), Exception> {
        if !self.is_code() || cpu.long_mode() && self.is_long() && self.has(Segment::BIG) {
            return Err(self.general_protection());
        }
        Ok(())
    }

    /// #NP unless present.
    pub fn require_present(&self) -> Result<(), Exception> {
        if self.present() {
            Ok(())
        } else {
            Err(self.not_present())
        }
    }
}

/// The null selector in a segment register: not present, but keeping a privilege level, which
/// SS is the home of.
pub fn null_segment(selector: u16, cpl: u8) -> Segment {
    Segment {
        selector,
        attributes: u16::from(cpl) << 5,
        ..Segment::default()
    }
}

/// A flat segment as SYSCALL and SYSENTER load it without reading a descriptor.
pub fn flat_segment(selector: u16, rights: u16, dpl: u8) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        attributes: rights
            | u16::from(dpl) << 5
            | Segment::PRESENT
            | Segment::NOT_SYSTEM
            | Segment::WRITABLE
            | Segment::ACCESSED
            | Segment::GRANULAR,
    }
}

/// A segment register loaded in real mode. Limit and size stay as protected mode may have left
/// them ("unreal mode"), if the register was usable.
pub fn real_segment(old: &Segment, selector: u16) -> Segment {
    let mut new = Segment::real(selector);
    if old.present() {
        new.limit = old.limit;
        new.attributes |= old.attributes & (Segment::BIG | Segment::GRANULAR);
    }
    new
}

/// A segment register loaded in virtual-8086 mode (SDM volume 3, 21.2.1).
pub fn vm86_segment(selector: u16) -> Segment {
    let mut new = Segment::real(selector);
    new.attributes |= 3 << 5;
    new
}

/// What a data or stack segment register is to be loaded with, checked but not yet loaded.
#[derive(Clone, Copy, Debug)]
pub struct Loading {
    /// The register's new content.
    pub segment: Segment,
    /// The descriptor whose accessed bit is to be set.
    pub descriptor: Option<Descriptor>,
}

impl Loading {
    fn plain(segment: Segment) -> Loading {
        Loading {
            segment,
            descriptor: None,
        }
    }

    /// Sets the accessed bit of the descriptor.
    pub fn mark_accessed(&self, cx: &mut Context<'_>) -> Result<(), Exception> {
        self.descriptor.map_or(Ok(()), |it| it.mark_accessed(cx))
    }
}

/// Checks a load of DS, ES, FS, GS or SS by MOV, POP or LxS, in any mode.
pub fn check_load(
    cx: &mut Context<'_>,
    index: SegmentIndex,
    selector: u16,
) -> Result<Loading, Exception> {
    if !cx.cpu.protected() {
        return Ok(Loading::plain(if cx.cpu.cpl() == 3 {
            vm86_segment(selector)
        } else {
            real_segment(cx.cpu.segment(index), selector)
        }));
    }
    let cpl = cx.cpu.cpl();
    if index == SegmentIndex::Ss {
        let null_allowed = cx.cpu.code64() && cpl != 3;
        check_stack(cx, selector, cpl, null_allowed, Exception::GP)
    } else {
        check_data(cx, selector, cpl, Exception::GP)
    }
}

/// Checks a selector for DS, ES, FS or GS at a privilege level. `vector` is #GP, or #TS during
/// a task switch.
pub fn check_data(
    cx: &mut Context<'_>,
    selector: u16,
    cpl: u8,
    vector: u8,
) -> Result<Loading, Exception> {
    if is_null(selector) {
        return Ok(Loading::plain(null_segment(selector, 0)));
    }
    let descriptor = Descriptor::fetch(cx, selector, vector)?;
    let forbidden = !descriptor.is_conforming()
        && (descriptor.rpl() > descriptor.dpl() || cpl > descriptor.dpl());
    if !descriptor.is_readable() || forbidden {
        return Err(Exception::with_code(vector, code_of(selector)));
    }
    descriptor.require_present()?;
    Ok(Loading {
        segment: descriptor.segment(),
        descriptor: Some(descriptor),
    })
}

/// Checks a selector for SS at a privilege level. `vector` is #GP, or #TS where a TSS gave the
/// selector; a segment that is not present is always #SS.
pub fn check_stack(
    cx: &mut Context<'_>,
    selector: u16,
    cpl: u8,
    null_allowed: bool,
    vector: u8,
) -> Result<Loading, Exception> {
    let fault = Exception::with_code(vector, code_of(selector));
    if is_null(selector) {
        if null_allowed && selector & 3 == u16::from(cpl) {
            return Ok(Loading::plain(null_segment(selector, cpl)));
        }
        return Err(fault);
    }
    let descriptor = Descriptor::fetch(cx, selector, vector)?;
    if descriptor.rpl() != cpl || descriptor.dpl() != cpl || !descriptor.is_writable_data() {
        return Err(fault);
    }
    if !descriptor.present() {
        return Err(Exception::stack_fault(code_of(selector)));
    }
    Ok(Loading {
        segment: descriptor.segment(),
        descriptor: Some(descriptor),
    })
}

/// Checks a new instruction pointer against the segment it is in: #GP(0) outside the limit, or
/// not canonical in 64-bit code.
pub fn check_target(cpu: &CpuState, code: &Segment, offset: u64) -> Result<(), Exception> {
    let good = if cpu.long_mode() && code.attributes & Segment::LONG != 0 {
        crate::interpret::address::is_canonical(offset)
    } else {
        offset <= u64::from(code.limit)
    };
    if good {
        Ok(())
    } else {
        Err(Exception::general_protection(0))
    }
}

/// After a return to a less privileged level: data segments that it may not use become null
/// (SDM volume 3, 5.8.6), and a null selector loses its RPL (volume 2, RET and IRET).
pub fn drop_inaccessible(cpu: &mut CpuState, cpl: u8) {
    for index in [
        SegmentIndex::Es,
        SegmentIndex::Ds,
        SegmentIndex::Fs,
        SegmentIndex::Gs,
    ] {
        let segment = cpu.segment_mut(index);
        let conforming = segment.attributes & (Segment::CODE | Segment::CONFORMING)
            == Segment::CODE | Segment::CONFORMING;
        let beyond = segment.present() && !conforming && segment.dpl() < cpl;
        if is_null(segment.selector) || beyond {
            // Null, but 64-bit code goes on using the base of FS and GS.
            segment.selector = 0;
            segment.attributes = 0;
        }
    }
}
