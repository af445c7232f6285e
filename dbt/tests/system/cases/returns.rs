//! RETF and IRET: to the same level, outwards, to virtual-8086 mode, to another task.

use dbt::guest::flags::*;
use dbt::guest::{Segment, SegmentIndex};

use super::*;

const RETF: &[u8] = &[0xcb];
const IRET: &[u8] = &[0xcf];
const IRETQ: &[u8] = &[0x48, 0xcf];

/// In an order that gives DS and ES selectors with an RPL.
const DATA_SEGMENTS: [SegmentIndex; 4] = [
    SegmentIndex::Gs,
    SegmentIndex::Fs,
    SegmentIndex::Es,
    SegmentIndex::Ds,
];

fn own(m: &mut Machine, raw: u64) {
    entry(m, OWN, raw);
}

/// The same frames for RETF and, with flags between CS and ESP, for IRET.
macro_rules! returns {
    ($section:expr, $code:expr, $($flags:expr)?) => {{
        let mut s = Section::new($section);
        let code = || $code.to_vec();
        const OUT: [u64; 2] = [USER_STACK, 0x23];
        fn to(m: &mut Machine, cs: u64, rip: u64, outer: &[u64]) {
            let mut values = vec![rip, cs, $($flags)?];
            values.extend(outer);
            frame(m, 4, &values);
        }
        s.faults("null CS", ring0, code(), GP(0), |m| to(m, 1, 0, &OUT));
        s.faults("CS outside the GDT", ring0, code(), GP(0x1000), |m| to(m, 0x1003, 0, &OUT));
        s.faults("data as CS", ring0, code(), GP(0x10), |m| to(m, 0x10, 0, &OUT));
        s.faults("inwards", ring3, code(), GP(8), |m| to(m, 8, 0, &OUT));
        s.faults("DPL is not RPL", ring0, code(), GP(8), |m| to(m, 0xb, 0, &OUT));
        s.faults("conforming, DPL above RPL", ring0, code(), GP(0xe0), |m| {
            own(m, descriptor(0, 0xf_ffff, 0xc0fe));
            to(m, 0xe0, 0, &OUT);
        });
        s.faults("absent CS", ring0, code(), NP(0xe0), |m| {
            own(m, absent(descriptor(0, 0xf_ffff, 0xc0fa)));
            to(m, 0xe3, 0, &[USER_STACK, 0]);
        });
        s.faults("privilege before presence", ring0, code(), GP(0xe0), |m| {
            own(m, absent(descriptor(0, 0xf_ffff, 0xc09a)));
            to(m, 0xe3, 0, &OUT);
        });
        s.faults("beyond the limit", ring0, code(), GP(0), |m| to(m, 0xb8, 0x1000, &OUT));
        s.faults("null SS", ring0, code(), GP(0), |m| to(m, 0x1b, 0, &[0, 3]));
        s.faults("SS outside the GDT", ring0, code(), GP(0x1000), |m| {
            to(m, 0x1b, 0, &[0, 0x1003]);
        });
        s.faults("SS of another RPL", ring0, code(), GP(0x20), |m| to(m, 0x1b, 0, &[0, 0x20]));
        s.faults("SS of another DPL", ring0, code(), GP(0x10), |m| to(m, 0x1b, 0, &[0, 0x13]));
        s.faults("read-only SS", ring0, code(), GP(0xe0), |m| {
            own(m, descriptor(0, 0xf_ffff, 0xc0f0));
            to(m, 0x1b, 0, &[0, 0xe3]);
        });
        s.faults("absent SS", ring0, code(), SS(0xe0), |m| {
            own(m, absent(descriptor(0, 0xf_ffff, 0xc0f2)));
            to(m, 0x1b, 0, &[0, 0xe3]);
        });
        s.faults("SS before the limit", ring0, code(), GP(0x20), |m| {
            own(m, descriptor(0, 0xf, 0x40fa));
            to(m, 0xe3, 0x1000, &[0, 0x20]);
        });
        s.faults("the limit of an outer segment", ring0, code(), GP(0), |m| {
            own(m, descriptor(0, 0xf, 0x40fa));
            to(m, 0xe3, 0x10, &OUT);
        });
        s.faults("no room for CS", ring0, code(), SS(0), |m| {
            to(m, 0, 0, &[]);
            let top = m.cpu.gpr[4] as u32;
            m.cpu.segment_mut(SegmentIndex::Ss).limit = top + 3;
        });
        s.faults("no room for SS", ring0, code(), SS(0), |m| {
            to(m, 0x1b, 0, &[]);
            m.cpu.segment_mut(SegmentIndex::Ss).limit = KERNEL_STACK as u32 - 1;
        });
        s.faults("CS before room for SS", ring0, code(), NP(0xe0), |m| {
            own(m, absent(descriptor(0, 0xf_ffff, 0xc0fa)));
            to(m, 0xe3, 0, &[]);
            m.cpu.segment_mut(SegmentIndex::Ss).limit = KERNEL_STACK as u32 - 1;
        });
        let same = (CODE0, 0x1234, DATA0, KERNEL_STACK);
        s.goes("same level", ring0, code(), same, |m| to(m, 8, 0x1234, &[]), plain);
        let user = (CODE3, 0x1234, DATA3, USER_STACK);
        s.goes("outwards", ring0, code(), user, |m| to(m, 0x1b, 0x1234, &OUT), |m| {
            // SDM volume 3, 5.8.6: data segments of the inner level are gone.
            assert!(!m.cpu.segment(SegmentIndex::Ds).present());
        });
        s.goes("outwards: null selectors lose their RPL", ring0, code(), user, |m| {
            to(m, 0x1b, 0x1234, &OUT);
            for (rpl, index) in (0..).zip(DATA_SEGMENTS) {
                let segment = m.cpu.segment_mut(index);
                *segment = Segment { selector: rpl, base: 0x1000, ..Segment::default() };
            }
        }, |m| {
            for index in DATA_SEGMENTS {
                let segment = m.cpu.segment(index);
                assert_eq!((segment.selector, segment.base), (0, 0x1000), "{index:?}");
            }
        });
        s.goes(
            "outwards to a 16-bit stack: the upper half of ESP stays",
            ring0,
            code(),
            (CODE3, 0x1234, 0xe3, 0x1_5678),
            |m| {
                own(m, descriptor(0, 0xffff, 0xf2));
                m.cpu.gpr[4] -= 0x100;
                to(m, 0x1b, 0x1234, &[0x1234_5678, 0xe3]);
            },
            plain,
        );
        s.goes(
            "to conforming code of an inner level",
            ring3,
            code(),
            (CONFORMING | 3, 0x1234, DATA3, USER_STACK),
            |m| to(m, u64::from(CONFORMING | 3), 0x1234, &[]),
            plain,
        );
        s
    }};
}

fn flags_of_iret() -> Section {
    let mut s = Section::new("volume 2, IRET: flags");
    let iret = || IRET.to_vec();
    const ALL: u64 = IF | IOPL | NT | AC | ID | VIF | VIP | DF | ARITHMETIC;
    let at0 = (CODE0, 0x1234, DATA0, KERNEL_STACK);
    s.goes(
        "ring 0 loads all",
        ring0,
        iret(),
        at0,
        |m| frame(m, 4, &[0x1234, 8, ALL]),
        |m| {
            assert_eq!(m.cpu.rflags(), ALL | 2);
        },
    );
    let at3 = (CODE3, 0x1234, DATA3, USER_STACK);
    s.goes(
        "ring 3 neither IF, IOPL, VIF, VIP nor VM",
        ring3,
        iret(),
        at3,
        |m| {
            frame(m, 4, &[0x1234, 0x1b, ALL | VM]);
        },
        |m| assert_eq!(m.cpu.rflags(), 2 | NT | AC | ID | DF | ARITHMETIC),
    );
    s.goes(
        "with IOPL 3, IF",
        ring3,
        iret(),
        at3,
        |m| {
            m.cpu.set_rflags(IOPL, IOPL);
            frame(m, 4, &[0x1234, 0x1b, IF]);
        },
        |m| assert_eq!(m.cpu.rflags(), 2 | IF | IOPL),
    );
    s.goes(
        "16 bits leave the upper half",
        ring0,
        vec![0x66, 0xcf],
        at0,
        |m| {
            m.cpu.set_rflags(AC | ID, AC | ID);
            frame(m, 2, &[0x1234, 8, IF | CF]);
        },
        |m| assert_eq!(m.cpu.rflags(), 2 | AC | ID | IF | CF),
    );
    s
}

fn to_vm86() -> Section {
    let mut s = Section::new("volume 3, 20.2.5; volume 2, IRET");
    s.goes(
        "from ring 0",
        ring0,
        IRET.to_vec(),
        (0x100, 0x8000, 0x200, 0x6000),
        |m| {
            let flags = VM | IOPL | IF;
            frame(
                m,
                4,
                &[
                    0x8000, 0x100, flags, 0x6000, 0x200, 0x300, 0x400, 0x500, 0x600,
                ],
            );
        },
        |m| {
            assert_eq!(m.cpu.cpl(), 3);
            assert_eq!(m.cpu.rflags(), 2 | VM | IOPL | IF);
            assert_eq!(
                m.cpu.segments.map(|it| it.base),
                [0x3000, 0x1000, 0x2000, 0x4000, 0x5000, 0x6000]
            );
        },
    );
    s.faults("a frame that ends", ring0, IRET.to_vec(), SS(0), |m| {
        frame(m, 4, &[0x8000, 0x100, VM]);
        m.cpu.segment_mut(SegmentIndex::Ss).limit = KERNEL_STACK as u32 + 22;
    });
    s
}

fn long_returns() -> Section {
    let mut s = Section::new("volume 2, IRET; volume 3, 6.14.3");
    let iretq = || IRETQ.to_vec();
    const CS0: u64 = LONG_CODE0 as u64;
    const SS0: u64 = LONG_DATA0 as u64;
    s.faults("NT", long0, iretq(), GP(0), |m| {
        m.cpu.set_rflags(NT, NT);
        frame(m, 8, &[0x1234, CS0, 2, KERNEL_STACK, SS0]);
    });
    s.faults("RIP is not canonical", long0, iretq(), GP(0), |m| {
        frame(m, 8, &[0x8000_0000_0000, CS0, 2, KERNEL_STACK, SS0]);
    });
    s.faults("a null SS for ring 3", long0, iretq(), GP(0), |m| {
        frame(m, 8, &[0x1234, 0x73, 2, USER_STACK, 3]);
    });
    s.faults(
        "a null SS for compatibility mode",
        long0,
        iretq(),
        GP(0),
        |m| {
            frame(m, 8, &[0x1234, 8, 2, KERNEL_STACK, 0]);
        },
    );
    s.faults("the stack is not canonical", long0, iretq(), SS(0), |m| {
        m.cpu.gpr[4] = 0x7fff_ffff_fff8;
        m.write(PAGES, 8, (PAGES + 0x1000) | 7);
        // The first value is read from the last page of the lower half.
        m.write(PAGES + 0x7f8, 8, (PAGES + 0x1000) | 7);
        m.write(PAGES + 0x1ff8, 8, 0x87);
    });
    s.goes(
        "a null SS for ring 0",
        long0,
        iretq(),
        (LONG_CODE0, 0x1234, 0, 0x1_2345_6788),
        |m| frame(m, 8, &[0x1234, CS0, 2, 0x1_2345_6788, 0]),
        plain,
    );
    s.goes(
        "to compatibility mode of ring 3",
        long0,
        iretq(),
        (CODE3, 0x1234, DATA3, 0x2345_6788),
        |m| frame(m, 8, &[0x1234, 0x1b, 2, 0x1_2345_6788, 0x23]),
        |m| assert!(!m.cpu.code64()),
    );
    s.goes(
        "IRETD pops SS as well",
        long0,
        IRET.to_vec(),
        (LONG_CODE0, 0x1234, LONG_DATA0, 0x6000),
        |m| frame(m, 4, &[0x1234, CS0, 2, 0x6000, SS0]),
        plain,
    );
    s.goes(
        "RETFQ stays on its stack",
        long0,
        vec![0x48, 0xcb],
        (LONG_CODE0, 0x1234, LONG_DATA0, KERNEL_STACK),
        |m| frame(m, 8, &[0x1234, CS0]),
        plain,
    );
    s
}

pub fn sections() -> Vec<Section> {
    vec![
        returns!("volume 2, RET, far", RETF,),
        returns!("volume 2, IRET, protected mode", IRET, 2),
        flags_of_iret(),
        to_vm86(),
        long_returns(),
    ]
}
