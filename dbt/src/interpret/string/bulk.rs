//! Many iterations at once, where nobody can tell: within one page, in RAM.
//!
//! Every function returns what it has done, possibly nothing: then its caller does one
//! iteration in the ordinary way, which also raises whatever fault there is.

use mmu::{GuestPhys, PAGE_SIZE};

use super::Form;
use crate::guest::{Mode, Register as Gpr};
use crate::interpret::address::segment_linear;
use crate::interpret::operand::{read_gpr, size_mask};
use crate::interpret::{Access, Context};

/// Fewer iterations than this are not worth the look-ups.
const WORTHWHILE: u64 = 4;

const PAGE: usize = PAGE_SIZE as usize;

/// Iterations that fit, from the element at an index register on, between here and the end of
/// the page or of the address space, whichever is nearer in the direction of DF.
fn fitting(cx: &Context<'_>, form: &Form, register: usize, most: u64) -> Option<u64> {
    let size = form.element as u64;
    let offset = read_gpr(cx.cpu, register, form.address);
    let linear = form.element(cx, register, Access::Read).ok()?;
    let in_page = linear.page_offset() as u64;
    if in_page + size > PAGE_SIZE {
        return None;
    }
    let (page, space) = if cx.cpu.direction_flag != 0 {
        (in_page / size + 1, offset / size + 1)
    } else {
        let last = size_mask(form.address);
        // All of the last element lies below the top of the address space.
        let space = (last - offset) / size;
        ((PAGE_SIZE - in_page) / size, space)
    };
    Some(most.min(page).min(space))
}

/// The physical address of the lowest byte of `elements` elements, if all of the range passes
/// the segment's checks and is RAM.
fn range(
    cx: &mut Context<'_>,
    form: &Form,
    register: usize,
    elements: u64,
    access: Access,
) -> Option<GuestPhys> {
    let size = form.element as u64;
    let mut offset = read_gpr(cx.cpu, register, form.address);
    if cx.cpu.direction_flag != 0 {
        offset = offset.wrapping_sub((elements - 1) * size);
    }
    let bytes = (elements * size) as usize;
    let linear = segment_linear(cx, form.segment(register), offset, bytes, access).ok()?;
    if linear.page_offset() + bytes > PAGE {
        return None;
    }
    let physical = cx.translate(linear, access).ok()?;
    cx.mem.is_ram(physical).then_some(physical)
}

/// Whether to try at all: alignment is checked element by element.
fn worthwhile(cx: &Context<'_>, elements: u64) -> bool {
    elements >= WORTHWHILE && !cx.cpu.mode.has(Mode::ALIGNED)
}

/// Fills a buffer with its first `filled` bytes, over and over.
fn repeat_first(buffer: &mut [u8], mut filled: usize) {
    while filled < buffer.len() {
        let more = filled.min(buffer.len() - filled);
        buffer.copy_within(..more, filled);
        filled += more;
    }
}

/// Copies up to `most` elements.
pub(super) fn copy(cx: &mut Context<'_>, form: &Form, most: u64) -> u64 {
    copy_elements(cx, form, most).unwrap_or(0)
}

fn copy_elements(cx: &mut Context<'_>, form: &Form, most: u64) -> Option<u64> {
    if !worthwhile(cx, most) {
        return None;
    }
    let size = form.element as u64;
    let elements = fitting(cx, form, Gpr::RSI, most)?;
    let elements = fitting(cx, form, Gpr::RDI, elements)?;
    if !worthwhile(cx, elements) {
        return None;
    }
    let source = range(cx, form, Gpr::RSI, elements, Access::Read)?;
    let destination = range(cx, form, Gpr::RDI, elements, Access::Write)?;
    // A destination ahead of the source in the direction of travel feeds what is read later:
    // only what lies between the two is independent. In the other direction a buffer is right.
    let down = cx.cpu.direction_flag != 0;
    let ahead = if down {
        source.0.wrapping_sub(destination.0)
    } else {
        destination.0.wrapping_sub(source.0)
    };
    let bytes = elements * size;
    let done = if ahead == 0 || ahead >= bytes {
        cx.mem.copy_within(source, destination, bytes as usize)
    } else if down || ahead % size != 0 {
        return copy_elements(cx, form, ahead / size);
    } else {
        // What lies between the two, over and over.
        let mut buffer = [0; PAGE];
        let buffer = &mut buffer[..bytes as usize];
        let period = ahead as usize;
        let read = cx.mem.load(source, &mut buffer[..period]);
        repeat_first(buffer, period);
        read.and_then(|()| cx.mem.store(destination, buffer))
    };
    cx.settle();
    done.ok()?;
    Some(elements)
}

/// Stores up to `most` elements of one value.
pub(super) fn fill(cx: &mut Context<'_>, form: &Form, value: u64, most: u64) -> u64 {
    fill_elements(cx, form, value, most).unwrap_or(0)
}

fn fill_elements(cx: &mut Context<'_>, form: &Form, value: u64, most: u64) -> Option<u64> {
    if !worthwhile(cx, most) {
        return None;
    }
    let elements = fitting(cx, form, Gpr::RDI, most)?;
    if !worthwhile(cx, elements) {
        return None;
    }
    let destination = range(cx, form, Gpr::RDI, elements, Access::Write)?;
    let length = elements as usize * form.element;
    let bytes = value.to_le_bytes();
    let done = if bytes[..form.element].iter().all(|&byte| byte == bytes[0]) {
        cx.mem.fill(destination, bytes[0], length)
    } else {
        let mut buffer = [0; PAGE];
        let buffer = &mut buffer[..length];
        buffer[..form.element].copy_from_slice(&bytes[..form.element]);
        repeat_first(buffer, form.element);
        cx.mem.store(destination, buffer)
    };
    cx.settle();
    done.ok()?;
    Some(elements)
}

/// Element number `index`, counted in the direction of DF, of `bytes`.
fn element_at<const SIZE: usize>(bytes: &[u8], index: usize, down: bool) -> u64 {
    let number = if down {
        bytes.len() / SIZE - 1 - index
    } else {
        index
    };
    let mut value = [0; 8];
    value[..SIZE].copy_from_slice(&bytes[number * SIZE..][..SIZE]);
    u64::from_le_bytes(value)
}

/// Compares up to `most` pairs: how many, and the last pair compared.
pub(super) fn compare<const SIZE: usize>(
    cx: &mut Context<'_>,
    form: &Form,
    most: u64,
) -> Option<(u64, u64, u64)> {
    if !worthwhile(cx, most) {
        return None;
    }
    let elements = fitting(cx, form, Gpr::RSI, most)?;
    let elements = fitting(cx, form, Gpr::RDI, elements)?;
    if !worthwhile(cx, elements) {
        return None;
    }
    let source = range(cx, form, Gpr::RSI, elements, Access::Read)?;
    let destination = range(cx, form, Gpr::RDI, elements, Access::Read)?;
    let bytes = elements as usize * SIZE;
    let (mut left, mut right) = ([0; PAGE], [0; PAGE]);
    let (left, right) = (&mut left[..bytes], &mut right[..bytes]);
    cx.load_physical(source, left).ok()?;
    cx.load_physical(destination, right).ok()?;
    let down = cx.cpu.direction_flag != 0;
    let pair = |index: usize| {
        (
            element_at::<SIZE>(left, index, down),
            element_at::<SIZE>(right, index, down),
        )
    };
    let last = elements as usize - 1;
    let index = if form.while_zero && left == right {
        last
    } else {
        last_compared(last, |index| {
            let (left, right) = pair(index);
            (left == right) == form.while_zero
        })
    };
    let (left, right) = pair(index);
    Some((index as u64 + 1, left, right))
}

/// Compares up to `most` elements with a value: how many, and the last element compared.
pub(super) fn scan<const SIZE: usize>(
    cx: &mut Context<'_>,
    form: &Form,
    value: u64,
    most: u64,
) -> Option<(u64, u64)> {
    if !worthwhile(cx, most) {
        return None;
    }
    let elements = fitting(cx, form, Gpr::RDI, most)?;
    if !worthwhile(cx, elements) {
        return None;
    }
    let destination = range(cx, form, Gpr::RDI, elements, Access::Read)?;
    let mut buffer = [0; PAGE];
    let buffer = &mut buffer[..elements as usize * SIZE];
    cx.load_physical(destination, buffer).ok()?;
    let down = cx.cpu.direction_flag != 0;
    let element = |index: usize| element_at::<SIZE>(buffer, index, down);
    let index = last_compared(elements as usize - 1, |index| {
        (element(index) == value) == form.while_zero
    });
    Some((index as u64 + 1, element(index)))
}

/// The first index that does not go on, or the last one.
fn last_compared(last: usize, goes_on: impl Fn(usize) -> bool) -> usize {
    (0..last).find(|&index| !goes_on(index)).unwrap_or(last)
}
