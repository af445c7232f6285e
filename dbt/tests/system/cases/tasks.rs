//! Task switches through TSSs and task gates of 16 and 32 bits.

use dbt::guest::SegmentIndex;
use dbt::guest::flags::*;

use super::*;

const IRET: &[u8] = &[0xcf];

/// A task of ring 0 in TSS B.
fn task(m: &mut Machine) {
    for (offset, value) in [
        (32, 0x1_8100),
        (36, 2),
        (40, 0xaaaa),
        (56, 0x2_8000),
        (72, 0x10),
        (76, 8),
        (80, 0x10),
        (84, 0x10),
    ] {
        m.write(TSS_B + offset, 4, value);
    }
}

fn with(m: &mut Machine, offset: u64, value: u64) {
    task(m);
    m.write(TSS_B + offset, 2, value);
}

/// The same task in a TSS of 16 bits.
fn narrow_task(m: &mut Machine) {
    entry(m, OWN, descriptor(TSS_B, 43, 0x81));
    for (offset, value) in [
        (14, 0x8100),
        (16, 0x202),
        (18, 0xaaaa),
        (26, 0x7000),
        (34, 0x10),
        (36, 8),
        (38, 0x10),
        (40, 0x10),
    ] {
        m.write(TSS_B + offset, 2, value);
    }
}

fn gates() -> Section {
    let mut s = Section::new("volume 3, 7.2.2, 7.2.5 and 7.3; volume 2, JMP and CALL");
    s.faults("a busy TSS", ring0, call(TSS_A_SELECTOR, 0), GP(0x28), task);
    s.faults(
        "DPL below CPL",
        ring3,
        call(TSS_B_SELECTOR, 0),
        GP(0x30),
        task,
    );
    s.faults(
        "DPL below RPL",
        ring0,
        jump(TSS_B_SELECTOR | 3, 0),
        GP(0x30),
        task,
    );
    s.faults("an absent TSS", ring0, jump(OWN, 0), NP(0xe0), |m| {
        entry(m, OWN, absent(descriptor(TSS_B, 0x67, 0x89)));
    });
    s.faults("a short TSS", ring0, jump(OWN, 0), TS(0xe0), |m| {
        entry(m, OWN, descriptor(TSS_B, 0x66, 0x89));
    });
    s.faults(
        "a short TSS of 16 bits",
        ring0,
        jump(OWN, 0),
        TS(0xe0),
        |m| {
            entry(m, OWN, descriptor(TSS_B, 0x2a, 0x81));
        },
    );
    s.faults("an absent gate", ring3, jump(OWN, 0), NP(0xe0), |m| {
        entry(m, OWN, absent(gate(TSS_B_SELECTOR, 0, 5, 3, 0)));
    });
    s.faults("a gate's DPL", ring3, jump(OWN, 0), GP(0xe0), |m| {
        entry(m, OWN, gate(TSS_B_SELECTOR, 0, 5, 0, 0));
    });
    s.faults("a gate to an LDT", ring3, jump(OWN, 0), GP(0x34), |m| {
        entry(m, OWN, gate(TSS_B_SELECTOR | 4, 0, 5, 3, 0));
    });
    s.faults("a gate to a busy TSS", ring3, jump(OWN, 0), GP(0x28), |m| {
        entry(m, OWN, gate(TSS_A_SELECTOR, 0, 5, 3, 0));
    });
    s.faults("a gate to code", ring3, jump(OWN, 0), GP(8), |m| {
        entry(m, OWN, gate(CODE0, 0, 5, 3, 0));
    });
    s.goes(
        "CALL from ring 3 through a gate",
        ring3,
        call(TASK_GATE, 0),
        (CODE0, 0x1_8100, DATA0, 0x2_8000),
        task,
        |m| {
            assert_eq!(m.cpu.rflags(), 2 | NT);
            assert_eq!(m.read(TSS_B, 2), u64::from(TSS_A_SELECTOR));
            assert_eq!(m.read(TSS_A + 32, 4), CODE + 7);
            assert_eq!(m.read(TSS_A + 56, 4), USER_STACK);
            assert_eq!(m.read(TSS_A + 76, 2), u64::from(CODE3));
            // Both are busy: one is nested in the other.
            assert_eq!([m.read(GDT + 0x2d, 1), m.read(GDT + 0x35, 1)], [0x8b, 0x8b]);
            assert_ne!(m.cpu.control.cr0 & CR0_TS, 0);
        },
    );
    s.goes(
        "JMP",
        ring0,
        jump(TSS_B_SELECTOR, 0),
        (CODE0, 0x1_8100, DATA0, 0x2_8000),
        |m| {
            task(m);
            m.cpu.control.dr[7] = 0x7ff;
        },
        |m| {
            assert_eq!(m.cpu.rflags(), 2);
            assert_eq!([m.read(GDT + 0x2d, 1), m.read(GDT + 0x35, 1)], [0x89, 0x8b]);
            assert_eq!(m.cpu.control.dr[7] & 0x3ff, 0x2aa);
        },
    );
    s.goes(
        "CALL to a TSS of 16 bits: the upper halves are ones",
        ring0,
        call(OWN, 0),
        (CODE0, 0x8100, DATA0, 0xffff_7000),
        narrow_task,
        |m| {
            assert_eq!(m.cpu.gpr[0], 0xffff_aaaa);
            assert_eq!(m.cpu.rflags(), 0x202 | NT);
            assert_eq!(m.selector(SegmentIndex::Fs), 0);
        },
    );
    s.goes(
        "to a task of ring 3",
        ring0,
        jump(TSS_B_SELECTOR, 0),
        (CODE3, 0x1_8100, DATA3, 0x2_8000),
        |m| {
            task(m);
            for (offset, value) in [(72, 0x23), (76, 0x1b), (80, 0x23), (84, 0x23)] {
                m.write(TSS_B + offset, 2, value);
            }
        },
        |m| assert_eq!(m.cpu.cpl(), 3),
    );
    s.goes(
        "to a task of virtual-8086 mode",
        ring0,
        jump(TSS_B_SELECTOR, 0),
        (8, 0x8100, 0x10, 0x8000),
        |m| {
            task(m);
            m.write(TSS_B + 32, 4, 0x8100);
            m.write(TSS_B + 36, 4, 2 | VM | IOPL);
            m.write(TSS_B + 56, 4, 0x8000);
        },
        |m| {
            assert_eq!(m.cpu.rflags(), 2 | VM | IOPL);
            assert_eq!(m.cpu.segment(SegmentIndex::Ds).base, 0x100);
        },
    );
    s
}

fn new_task() -> Section {
    let mut s = Section::new("volume 3, table 7-1: what is checked in the new task");
    let go = || jump(TSS_B_SELECTOR, 0);
    s.faults("null CS", ring0, go(), TS(0), |m| with(m, 76, 0));
    s.faults("data as CS", ring0, go(), TS(0x10), |m| with(m, 76, 0x10));
    s.faults("CS outside the GDT", ring0, go(), TS(0x1000), |m| {
        with(m, 76, 0x1000)
    });
    s.faults("CS of another level", ring0, go(), TS(0x18), |m| {
        with(m, 76, 0x18)
    });
    s.faults("null SS", ring0, go(), TS(0), |m| with(m, 80, 0));
    s.faults("SS of another level", ring0, go(), TS(0x20), |m| {
        with(m, 80, 0x20)
    });
    s.faults("SS of another RPL", ring0, go(), TS(0x10), |m| {
        with(m, 80, 0x13)
    });
    s.faults("a read-only SS", ring0, go(), TS(0xa0), |m| {
        with(m, 80, 0xa0)
    });
    s.faults("an absent SS", ring0, go(), SS(0x48), |m| with(m, 80, 0x48));
    s.faults("execute-only DS", ring0, go(), TS(0xa8), |m| {
        with(m, 84, 0xa8)
    });
    s.faults("an absent ES", ring0, go(), NP(0x48), |m| with(m, 72, 0x48));
    s.faults("GS outside the GDT", ring0, go(), TS(0x1000), |m| {
        with(m, 92, 0x1000)
    });
    s.faults("an LDT that is none", ring0, go(), TS(0x10), |m| {
        with(m, 96, 0x10)
    });
    s.faults("an LDT in an LDT", ring0, go(), TS(0xb4), |m| {
        with(m, 96, 0xb4)
    });
    s.faults("beyond the limit of CS", ring0, go(), GP(0), |m| {
        with(m, 76, 0xb8)
    });
    s.faults("an absent CS", ring0, go(), NP(0xe0), |m| {
        with(m, 76, 0xe0);
        entry(m, OWN, absent(descriptor(0, 0xf_ffff, 0xc09a)));
    });
    s
}

fn nested(m: &mut Machine, link: u64) {
    task(m);
    m.write(TSS_A, 2, link);
    m.cpu.set_rflags(NT, NT);
}

fn returns() -> Section {
    let mut s = Section::new("volume 3, 7.4; volume 2, IRET, task return");
    let iret = || IRET.to_vec();
    s.faults("a TSS that is not busy", ring0, iret(), TS(0x30), |m| {
        nested(m, 0x30)
    });
    s.faults("a link into an LDT", ring0, iret(), TS(0x34), |m| {
        nested(m, 0x34)
    });
    s.faults("a link outside the GDT", ring0, iret(), TS(0x1000), |m| {
        nested(m, 0x1000)
    });
    s.faults("a link to code", ring0, iret(), TS(8), |m| nested(m, 8));
    s.faults("an absent TSS", ring0, iret(), NP(0xe0), |m| {
        nested(m, 0xe0);
        entry(m, OWN, absent(descriptor(TSS_B, 0x67, 0x8b)));
    });
    s.goes(
        "to a busy TSS, from ring 3",
        ring3,
        iret(),
        (CODE0, 0x1_8100, DATA0, 0x2_8000),
        |m| {
            nested(m, 0xe0);
            entry(m, OWN, descriptor(TSS_B, 0x67, 0x8b));
        },
        |m| {
            // The task that ends is available, and its NT is saved as clear.
            assert_eq!([m.read(GDT + 0x2d, 1), m.read(GDT + 0xe5, 1)], [0x89, 0x8b]);
            assert_eq!(m.read(TSS_A + 36, 4) & NT, 0);
            assert_eq!(m.cpu.rflags(), 2);
        },
    );
    s
}

pub fn sections() -> Vec<Section> {
    vec![gates(), new_task(), returns()]
}
