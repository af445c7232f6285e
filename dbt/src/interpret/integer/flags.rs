//! The arithmetic flags, computed exactly (SDM volume 1, 3.4.3.1).

use iced_x86::ConditionCode;

use crate::guest::flags::*;
use crate::interpret::operand::size_mask;

/// SF, ZF and PF of a result; its bits above `size` bytes do not count.
#[inline]
pub fn szp(result: u64, size: usize) -> u64 {
    let result = result & size_mask(size);
    let mut flags = if (result as u8).count_ones() & 1 == 0 {
        PF
    } else {
        0
    };
    if result == 0 {
        flags |= ZF;
    }
    // SF is bit 7 of EFLAGS: the top byte's top bit lands there.
    flags | ((result >> (8 * (size - 1))) & SF)
}

/// CF and OF by their conditions.
#[inline]
pub fn carry_overflow(carry: bool, overflow: bool) -> u64 {
    u64::from(carry) | (u64::from(overflow) << 11)
}

#[inline]
fn top_bit(value: u64, size: usize) -> bool {
    (value >> (8 * size - 1)) & 1 != 0
}

/// `left + right + carry` and the six flags.
#[inline]
pub fn add(left: u64, right: u64, carry: u64, size: usize) -> (u64, u64) {
    let result = left.wrapping_add(right).wrapping_add(carry);
    let carries = (left & right) | ((left | right) & !result);
    let overflow = (left ^ result) & (right ^ result);
    let flags = szp(result, size)
        | ((left ^ right ^ result) & AF)
        | carry_overflow(top_bit(carries, size), top_bit(overflow, size));
    (result & size_mask(size), flags)
}

/// `left - right - borrow` and the six flags.
#[inline]
pub fn sub(left: u64, right: u64, borrow: u64, size: usize) -> (u64, u64) {
    let result = left.wrapping_sub(right).wrapping_sub(borrow);
    let borrows = (!left & right) | ((!left | right) & result);
    let overflow = (left ^ right) & (left ^ result);
    let flags = szp(result, size)
        | ((left ^ right ^ result) & AF)
        | carry_overflow(top_bit(borrows, size), top_bit(overflow, size));
    (result & size_mask(size), flags)
}

/// The flags of AND, OR, XOR and TEST. AF is undefined; processors clear it.
#[inline]
pub fn logic(result: u64, size: usize) -> (u64, u64) {
    (result & size_mask(size), szp(result, size))
}

/// Whether a condition holds for these flags (SDM volume 1, appendix B).
#[inline]
pub fn condition(code: ConditionCode, flags: u64) -> bool {
    let is = |mask: u64| flags & mask != 0;
    let less = is(SF) != is(OF);
    match code {
        ConditionCode::None => true,
        ConditionCode::o => is(OF),
        ConditionCode::no => !is(OF),
        ConditionCode::b => is(CF),
        ConditionCode::ae => !is(CF),
        ConditionCode::e => is(ZF),
        ConditionCode::ne => !is(ZF),
        ConditionCode::be => is(CF | ZF),
        ConditionCode::a => !is(CF | ZF),
        ConditionCode::s => is(SF),
        ConditionCode::ns => !is(SF),
        ConditionCode::p => is(PF),
        ConditionCode::np => !is(PF),
        ConditionCode::l => less,
        ConditionCode::ge => !less,
        ConditionCode::le => is(ZF) || less,
        ConditionCode::g => !is(ZF) && !less,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_and_overflows_at_the_edges() {
        assert_eq!(add(0xff, 1, 0, 1), (0, CF | ZF | AF | PF));
        assert_eq!(add(0x7f, 0, 1, 1), (0x80, OF | SF | AF));
        assert_eq!(add(u64::MAX, u64::MAX, 1, 8), (u64::MAX, CF | SF | AF | PF));
        assert_eq!(sub(0, 1, 0, 4), (0xffff_ffff, CF | SF | AF | PF));
        assert_eq!(sub(0x8000, 1, 0, 2), (0x7fff, OF | AF | PF));
        assert_eq!(sub(0, u64::MAX, 1, 8), (0, CF | ZF | AF | PF));
    }
}
