//! SYSCALL, SYSRET, SYSENTER and SYSEXIT.

use dbt::guest::flags::*;

use super::*;

const SYSCALL: &[u8] = &[0x0f, 0x05];
const SYSRET: &[u8] = &[0x0f, 0x07];
const SYSRETQ: &[u8] = &[0x48, 0x0f, 0x07];
const SYSENTER: &[u8] = &[0x0f, 0x34];
const SYSEXIT: &[u8] = &[0x0f, 0x35];
const SYSEXITQ: &[u8] = &[0x48, 0x0f, 0x35];

fn star(m: &mut Machine) {
    m.cpu.msrs.star = u64::from(SYSRET_BASE | 3) << 48 | u64::from(LONG_CODE0) << 32;
    m.cpu.msrs.lstar = HANDLER;
    m.cpu.msrs.fmask = IF | DF | NT;
}

fn enter(m: &mut Machine, code: u16) {
    m.cpu.msrs.sysenter_cs = u64::from(code);
    m.cpu.msrs.sysenter_eip = HANDLER;
    m.cpu.msrs.sysenter_esp = KERNEL_STACK;
    m.cpu.gpr[2] = CODE + 0x40;
    m.cpu.gpr[1] = USER_STACK;
}

fn syscalls() -> Section {
    let mut s = Section::new("volume 2, SYSCALL and SYSRET; volume 3, 5.8.8");
    let ud = Exception::invalid_opcode();
    s.faults("SYSCALL switched off", long3, SYSCALL.to_vec(), ud, |m| {
        m.cpu.control.efer &= !EFER_SCE;
        m.cpu.refresh_mode();
    });
    s.faults(
        "SYSCALL in protected mode",
        ring3,
        SYSCALL.to_vec(),
        ud,
        star,
    );
    s.faults("SYSRET in ring 3", long3, SYSRETQ.to_vec(), GP(0), star);
    s.faults(
        "SYSRET to no canonical address",
        long0,
        SYSRETQ.to_vec(),
        GP(0),
        |m| {
            star(m);
            m.cpu.gpr[1] = 0x8000_0000_0000;
        },
    );
    s.goes(
        "SYSCALL",
        long3,
        SYSCALL.to_vec(),
        (LONG_CODE0, HANDLER, LONG_DATA0, USER_STACK),
        |m| {
            star(m);
            m.cpu.set_rflags(IF | NT | AC | CF, IF | NT | AC | CF);
        },
        |m| {
            assert_eq!(m.cpu.gpr[1], CODE + 2);
            assert_eq!(m.cpu.gpr[11], 2 | IF | NT | AC | CF);
            assert_eq!(m.cpu.rflags(), 2 | AC | CF);
        },
    );
    s.goes(
        "SYSRET drops RF and VM",
        long0,
        SYSRETQ.to_vec(),
        (LONG_CODE3, CODE, LONG_DATA3, KERNEL_STACK),
        |m| {
            star(m);
            m.cpu.gpr[1] = CODE;
            m.cpu.gpr[11] = !TF;
        },
        |m| assert_eq!(m.cpu.rflags(), 0x3c_7fd7 & !TF),
    );
    s.goes(
        "SYSRET to 32 bits",
        long0,
        SYSRET.to_vec(),
        (SYSRET_BASE | 3, CODE, LONG_DATA3, KERNEL_STACK),
        |m| {
            star(m);
            m.cpu.gpr[1] = 0xffff_ffff_0000_0000 | CODE;
        },
        |m| assert!(!m.cpu.code64()),
    );
    s
}

fn sysenter() -> Section {
    let mut s = Section::new("volume 2, SYSENTER and SYSEXIT; volume 3, 5.8.7");
    s.faults("a null CS", ring3, SYSENTER.to_vec(), GP(0), |m| {
        enter(m, 3)
    });
    s.faults(
        "in real mode",
        Machine::real,
        SYSENTER.to_vec(),
        GP(0),
        |m| enter(m, CODE0),
    );
    s.faults("SYSEXIT in ring 3", ring3, SYSEXIT.to_vec(), GP(0), |m| {
        enter(m, CODE0)
    });
    s.faults(
        "SYSEXIT with a null CS",
        ring0,
        SYSEXIT.to_vec(),
        GP(0),
        |m| enter(m, 0),
    );
    s.faults(
        "SYSEXIT to no canonical RIP",
        long0,
        SYSEXITQ.to_vec(),
        GP(0),
        |m| {
            enter(m, CODE0);
            m.cpu.gpr[2] = 0x8000_0000_0000;
        },
    );
    s.faults(
        "SYSEXIT to no canonical RSP",
        long0,
        SYSEXITQ.to_vec(),
        GP(0),
        |m| {
            enter(m, CODE0);
            m.cpu.gpr[1] = 0x8000_0000_0000;
        },
    );
    s.goes(
        "SYSENTER",
        ring3,
        SYSENTER.to_vec(),
        (CODE0, HANDLER, DATA0, KERNEL_STACK),
        |m| {
            enter(m, CODE0 | 3);
            m.cpu.set_rflags(IF | DF, IF | DF);
        },
        |m| assert_eq!((m.cpu.rflags(), m.cpu.cpl()), (2 | DF, 0)),
    );
    s.goes(
        "SYSENTER of long mode",
        long3,
        SYSENTER.to_vec(),
        (LONG_CODE0, HANDLER, LONG_DATA0, KERNEL_STACK),
        |m| {
            enter(m, LONG_CODE0);
        },
        |m| assert!(m.cpu.code64()),
    );
    s.goes(
        "SYSEXIT",
        ring0,
        SYSEXIT.to_vec(),
        (CODE3, CODE + 0x40, DATA3, USER_STACK),
        |m| enter(m, CODE0),
        |m| {
            assert_eq!(m.cpu.cpl(), 3);
        },
    );
    s.goes(
        "SYSEXIT to 64 bits",
        long0,
        SYSEXITQ.to_vec(),
        (0x73, CODE + 0x40, 0x7b, USER_STACK),
        |m| {
            enter(m, 0x50);
        },
        |m| assert!(m.cpu.code64() && m.cpu.cpl() == 3),
    );
    s
}

pub fn sections() -> Vec<Section> {
    vec![syscalls(), sysenter()]
}
