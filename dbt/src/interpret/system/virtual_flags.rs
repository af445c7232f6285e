//! The virtual interrupt flag: VME and PVI (SDM volume 3, 20.3 and 20.4).

use super::segments::table_address;
use crate::guest::Exception;
use crate::guest::flags::*;
use crate::interpret::Context;

/// Whether INT n in virtual-8086 mode goes to the program's own vector table: CR4.VME is set
/// and the vector's bit in the redirection bitmap, the 32 bytes below the I/O map, is clear.
pub fn redirected(cx: &mut Context<'_>, vector: u8) -> Result<bool, Exception> {
    if cx.cpu.control.cr4 & CR4_VME == 0 {
        return Ok(false);
    }
    let tr = cx.cpu.control.tr;
    let too_small = Exception::general_protection(0);
    if tr.kind() & 8 == 0 || tr.limit < 103 {
        return Err(too_small);
    }
    let at = table_address(cx.cpu, tr.base, 102);
    let io_map = cx.load_system(at, 2)?;
    let byte = io_map
        .checked_sub(32)
        .map(|bitmap| bitmap + u64::from(vector / 8))
        .filter(|&byte| byte <= u64::from(tr.limit))
        .ok_or(too_small)?;
    let at = table_address(cx.cpu, tr.base, byte);
    Ok(cx.load_system(at, 1)? >> (vector % 8) & 1 == 0)
}

/// The flags that a push shows where VIF stands for IF: IOPL 3, IF from VIF.
pub fn pushed(flags: u64) -> u64 {
    let interrupt = if flags & VIF != 0 { IF } else { 0 };
    flags & !IF | IOPL | interrupt
}
