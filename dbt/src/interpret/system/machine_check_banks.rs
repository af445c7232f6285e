//! The machine-check registers (SDM volume 3, 16.3).

use crate::guest::{Exception, Msrs};

const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const MCG_CTL: u32 = 0x17b;
const MCG_EXT_CTL: u32 = 0x4d0;
const BANKS: u32 = 0x400;
const BANK_COUNT: u32 = 10;
const BANKS_END: u32 = BANKS + 4 * BANK_COUNT - 1;

/// Ten banks, MCG_CTL, software error recovery, and local machine checks. Corrected errors
/// raise no interrupt: kernels poll for them.
pub const CAPABILITIES: u64 = 0x0900_010a;

/// RDMSR; `None`: not a machine-check register.
pub fn read(msrs: &Msrs, number: u32) -> Option<u64> {
    Some(match number {
        MCG_CAP => CAPABILITIES,
        MCG_STATUS => msrs.mcg_status,
        MCG_CTL => msrs.mcg_ctl,
        MCG_EXT_CTL => msrs.mcg_ext_ctl,
        BANKS..=BANKS_END => {
            let index = number - BANKS;
            msrs.mc_banks[(index / 4) as usize][(index % 4) as usize]
        }
        _ => return None,
    })
}

/// WRMSR; `None`: not a machine-check register.
pub fn write(msrs: &mut Msrs, number: u32, value: u64) -> Option<Result<(), Exception>> {
    let refused = Err(Exception::general_protection(0));
    Some(match number {
        MCG_CAP => refused,
        MCG_STATUS if value & !0xf == 0 => {
            msrs.mcg_status = value;
            Ok(())
        }
        MCG_CTL if value == 0 || value == u64::MAX => {
            msrs.mcg_ctl = value;
            Ok(())
        }
        MCG_EXT_CTL if value & !1 == 0 => {
            msrs.mcg_ext_ctl = value;
            Ok(())
        }
        BANKS..=BANKS_END => {
            let index = number - BANKS;
            // CTL is all or nothing, STATUS can only be cleared. ADDR and MISC take what they
            // are given: software that plays errors back relies on it.
            let allowed = match index % 4 {
                0 => value == 0 || value == u64::MAX,
                1 => value == 0,
                _ => true,
            };
            if !allowed {
                return Some(refused);
            }
            msrs.mc_banks[(index / 4) as usize][(index % 4) as usize] = value;
            Ok(())
        }
        MCG_STATUS | MCG_CTL | MCG_EXT_CTL => refused,
        _ => return None,
    })
}
