//! INT n, INT3, INTO and INT1 through gates, in protected, virtual-8086 and 64-bit mode.

use dbt::guest::flags::*;

use super::*;

const V: u64 = 0x30;
const NAMED: u32 = 0x30 * 8 + 2;

fn int() -> Vec<u8> {
    vec![0xcd, V as u8]
}

/// The gate of the vector.
fn own(m: &mut Machine, raw: u64) {
    m.write(IDT + 8 * V, 8, raw);
}

fn to(m: &mut Machine, selector: u16) {
    own(m, gate(selector, HANDLER, 14, 3, 0));
}

fn gates() -> Section {
    let mut s = Section::new("volume 2, INT n; volume 3, 6.12.1 and 6.13");
    s.faults("outside the IDT", ring0, int(), GP(NAMED), |m| {
        m.cpu.control.idtr.limit = 0x186
    });
    s.faults("DPL below CPL", ring3, int(), GP(NAMED), plain);
    s.faults("no gate", ring0, int(), GP(NAMED), |m| {
        own(m, gate(CODE0, HANDLER, 12, 3, 0))
    });
    s.faults("an absent gate", ring0, int(), NP(NAMED), |m| {
        own(m, absent(gate(CODE0, HANDLER, 14, 3, 0)));
    });
    s.faults("privilege before presence", ring3, int(), GP(NAMED), |m| {
        own(m, absent(gate(CODE0, HANDLER, 14, 0, 0)));
    });
    s.faults("to a null selector", ring0, int(), GP(0), |m| to(m, 3));
    s.faults("to data", ring0, int(), GP(0x10), |m| to(m, DATA0));
    s.faults("to outside the GDT", ring0, int(), GP(0x1000), |m| {
        to(m, 0x1000)
    });
    s.faults("to an outer level", ring0, int(), GP(0x18), |m| {
        to(m, CODE3)
    });
    s.faults("to absent code", ring0, int(), NP(0xe0), |m| {
        to(m, OWN);
        entry(m, OWN, absent(descriptor(0, 0xf_ffff, 0xc09a)));
    });
    s.faults("beyond the limit", ring0, int(), GP(0), |m| {
        to(m, SMALL_CODE)
    });
    s.faults("a short TSS", ring3, int(), TS(0x28), |m| {
        to(m, CODE0);
        m.cpu.control.tr.limit = 8;
    });
    s.faults("null SS", ring3, int(), TS(0), |m| {
        to(m, CODE0);
        m.write(TSS_A + 8, 2, 0);
    });
    s.faults("absent SS", ring3, int(), SS(0x48), |m| {
        to(m, CODE0);
        m.write(TSS_A + 8, 2, 0x48);
    });
    s.faults("no room inside", ring3, int(), SS(0xe0), |m| {
        to(m, CODE0);
        m.write(TSS_A + 8, 2, 0xe0);
        entry(m, OWN, descriptor(0, 0xff, 0x4092));
    });
    s.faults("SS before the limit", ring3, int(), TS(0x20), |m| {
        to(m, SMALL_CODE);
        m.write(TSS_A + 8, 2, 0x20);
    });
    s.faults("a task gate to a busy TSS", ring0, int(), GP(0x28), |m| {
        own(m, gate(TSS_A_SELECTOR, 0, 5, 3, 0));
    });
    s.faults("a task gate to an LDT", ring0, int(), GP(0x34), |m| {
        own(m, gate(0x34, 0, 5, 3, 0));
    });
    s.faults(
        "INT1 counts as external",
        ring3,
        vec![0xf1],
        NP(8 + 3),
        |m| {
            m.write(IDT + 8, 8, absent(gate(CODE0, HANDLER, 14, 0, 0)));
        },
    );
    s.faults(
        "INT3's gate is checked",
        ring3,
        vec![0xcc],
        GP(3 * 8 + 2),
        plain,
    );
    s.faults("INTO's as well", ring3, vec![0xce], GP(4 * 8 + 2), |m| {
        m.cpu.set_rflags(OF, OF)
    });
    s.goes(
        "INTO without overflow",
        ring3,
        vec![0xce],
        (CODE3, CODE + 1, DATA3, USER_STACK),
        plain,
        plain,
    );
    s.goes(
        "INT1's is not",
        ring3,
        vec![0xf1],
        (CODE0, HANDLER + 16, DATA0, KERNEL_STACK - 20),
        plain,
        |m| {
            assert_eq!(m.stack(4, 5), [CODE + 1, 0x1b, 2, USER_STACK, 0x23]);
        },
    );
    s.goes(
        "a conforming handler keeps the level",
        ring3,
        int(),
        (CONFORMING | 3, HANDLER, DATA3, USER_STACK - 12),
        |m| to(m, CONFORMING),
        plain,
    );
    s.goes(
        "a trap gate of 16 bits",
        ring0,
        int(),
        (CODE0, 0x8000, DATA0, KERNEL_STACK - 6),
        |m| {
            own(m, gate(CODE0, 0xffff_8000, 7, 3, 0));
            m.cpu.set_rflags(IF, IF);
        },
        |m| assert_eq!(m.cpu.rflags(), IF | 2),
    );
    s.goes(
        "a task gate",
        ring3,
        vec![0xcd, 0x35],
        (CODE0, 0x1_8100, DATA0, 0x2_8000),
        |m| {
            for (offset, value) in [(32, 0x1_8100), (36, 2), (56, 0x2_8000), (76, 8), (80, 0x10)] {
                m.write(TSS_B + offset, 4, value);
            }
        },
        |m| {
            assert_eq!(m.cpu.rflags(), 2 | NT);
            assert_eq!(m.read(TSS_A + 32, 4), CODE + 2);
        },
    );
    s
}

fn long() -> Section {
    fn own(m: &mut Machine, low: u64, high: u64) {
        m.write(IDT + 16 * V, 8, low);
        m.write(IDT + 16 * V + 8, 8, high);
    }
    let mut s = Section::new("volume 3, 6.14; volume 2, INT n");
    s.faults("a 32-bit kind", long0, int(), GP(NAMED), |m| {
        own(m, gate(LONG_CODE0, HANDLER, 6, 3, 0), 0)
    });
    s.faults("a task gate", long0, int(), GP(NAMED), |m| {
        own(m, gate(TSS_B_SELECTOR, 0, 5, 3, 0), 0)
    });
    s.faults("half outside the IDT", long0, int(), GP(NAMED), |m| {
        m.cpu.control.idtr.limit = 0x307
    });
    s.faults("to compatibility code", long0, int(), GP(8), |m| {
        own(m, gate(CODE0, HANDLER, 14, 3, 0), 0)
    });
    s.faults("not canonical", long0, int(), GP(0), |m| {
        own(m, gate(LONG_CODE0, HANDLER, 14, 3, 0), 0x8000)
    });
    s.faults("a stack that is not", long3, int(), SS(0), |m| {
        own(m, gate(LONG_CODE0, HANDLER, 14, 3, 0), 0);
        m.write(TSS_A + 4, 8, 0x8000_0000_1000);
    });
    s.faults(
        "an interrupt stack outside the TSS",
        long3,
        int(),
        TS(0x78),
        |m| {
            own(m, gate(LONG_CODE0, HANDLER, 14, 3, 7), 0);
            m.cpu.control.tr.limit = 0x5a;
        },
    );
    s.goes(
        "from ring 3",
        long3,
        int(),
        (LONG_CODE0, HANDLER, 0, KERNEL_STACK - 40),
        |m| {
            own(m, gate(LONG_CODE0, HANDLER, 14, 3, 0), 0);
        },
        |m| assert_eq!(m.stack(8, 5), [CODE + 2, 0x73, 2, USER_STACK, 0x6b]),
    );
    s.goes(
        "within ring 0 the stack is aligned",
        long0,
        int(),
        (LONG_CODE0, HANDLER, LONG_DATA0, KERNEL_STACK - 56),
        |m| {
            own(m, gate(LONG_CODE0, HANDLER, 15, 3, 0), 0);
            m.cpu.gpr[4] -= 7;
        },
        |m| assert_eq!(m.stack(8, 5)[3], KERNEL_STACK - 7),
    );
    s
}

fn vm86() -> Machine {
    vm86_with(IOPL)
}

fn vm86_virtual() -> Machine {
    let mut m = vm86_with(0);
    m.cpu.control.cr4 |= CR4_VME;
    m.cpu.control.tr.limit = 0xff;
    m.write(TSS_A + 102, 2, 0x88);
    m.write(4 * V, 4, 0x0111_2222);
    m
}

fn vm86_with(flags: u64) -> Machine {
    let mut m = Machine::protected(0);
    let flags = VM | IF | flags;
    frame(
        &mut m,
        4,
        &[
            0x8000, 0x100, flags, 0x6000, 0x200, 0x300, 0x400, 0x500, 0x600,
        ],
    );
    m.run(&[0xcf]);
    for vector in [3, V] {
        m.write(IDT + 8 * vector, 8, gate(CODE0, HANDLER, 14, 3, 0));
    }
    m
}

/// Into ring 0, with the segments on the stack.
const IN: (u16, u64, u16, u64) = (CODE0, HANDLER, DATA0, KERNEL_STACK - 36);

fn virtual_8086() -> Section {
    let mut s = Section::new("volume 3, 20.3 and 20.4");
    let low = || vm86_with(0);
    s.faults("INT n with IOPL below 3", low, int(), GP(0), plain);
    s.faults("IRET", low, vec![0xcf], GP(0), plain);
    s.faults("PUSHF", low, vec![0x9c], GP(0), plain);
    s.faults("POPF", low, vec![0x9d], GP(0), plain);
    s.faults("CLI", low, vec![0xfa], GP(0), plain);
    s.faults("STI", low, vec![0xfb], GP(0), plain);
    s.faults("HLT", vm86, vec![0xf4], GP(0), plain);
    s.faults("a handler of ring 3", vm86, int(), GP(0x18), |m| {
        to(m, CODE3)
    });
    s.faults("a conforming handler", vm86, int(), GP(0x40), |m| {
        to(m, CONFORMING)
    });
    s.goes("INT n", vm86, int(), IN, plain, |m| {
        let flags = VM | IF | IOPL | 2;
        assert_eq!(
            m.stack(4, 9),
            [
                0x8002, 0x100, flags, 0x6000, 0x200, 0x300, 0x400, 0x500, 0x600
            ]
        );
        assert_eq!(m.cpu.rflags(), 2 | IOPL);
        assert_eq!(m.cpu.segments.map(|it| it.selector)[3..], [0, 0, 0]);
    });
    s.goes("INT3, whatever IOPL", low, vec![0xcc], IN, plain, plain);
    s.faults(
        "VME: a TSS without the bitmap",
        vm86_virtual,
        int(),
        GP(0),
        |m| {
            m.write(TSS_A + 102, 2, 0x1f);
        },
    );
    s.faults(
        "VME: a bitmap beyond the limit",
        vm86_virtual,
        int(),
        GP(0),
        |m| {
            m.write(TSS_A + 102, 2, 0x200);
        },
    );
    s.faults("VME: not redirected", vm86_virtual, int(), GP(0), |m| {
        m.write(TSS_A + 0x68 + V / 8, 1, 1 << (V % 8));
    });
    s.goes(
        "VME: not redirected, IOPL 3",
        vm86_virtual,
        int(),
        IN,
        |m| {
            m.cpu.set_rflags(IOPL, IOPL);
            m.write(TSS_A + 0x68 + V / 8, 1, 1 << (V % 8));
        },
        plain,
    );
    s.goes(
        "VME: redirected, VIF for IF",
        vm86_virtual,
        int(),
        (0x111, 0x2222, 0x200, 0x5ffa),
        |m| {
            m.cpu.set_rflags(VIF, VIF);
        },
        |m| {
            assert_eq!(m.stack(2, 3), [0x8002, 0x100, 0x3202]);
            assert_eq!(m.cpu.rflags(), 2 | VM | IF);
        },
    );
    s.goes(
        "VME: redirected with IOPL 3, IF itself",
        vm86_virtual,
        int(),
        (0x111, 0x2222, 0x200, 0x5ffa),
        |m| {
            m.cpu.set_rflags(IOPL | VIF, IOPL | VIF);
        },
        |m| assert_eq!(m.cpu.rflags(), 2 | VM | IOPL | VIF),
    );
    let next = (0x100, 0x8001, 0x200, 0x6000);
    s.goes(
        "VME: STI sets VIF",
        vm86_virtual,
        vec![0xfb],
        next,
        plain,
        |m| {
            assert_eq!(m.cpu.rflags(), 2 | VM | IF | VIF);
        },
    );
    s.goes(
        "VME: CLI clears VIF",
        vm86_virtual,
        vec![0xfa],
        next,
        |m| m.cpu.set_rflags(VIF, VIF),
        |m| {
            assert_eq!(m.cpu.rflags(), 2 | VM | IF);
        },
    );
    s.faults("VME: STI with VIP", vm86_virtual, vec![0xfb], GP(0), |m| {
        m.cpu.set_rflags(VIP, VIP)
    });
    s.goes(
        "VME: PUSHF shows VIF as IF, and IOPL 3",
        vm86_virtual,
        vec![0x9c],
        (0x100, 0x8001, 0x200, 0x5ffe),
        plain,
        |m| {
            assert_eq!(m.stack(2, 1), [0x3002]);
        },
    );
    s.faults("VME: PUSHFD", vm86_virtual, vec![0x66, 0x9c], GP(0), plain);
    s.goes(
        "VME: POPF",
        vm86_virtual,
        vec![0x9d],
        next,
        |m| frame(m, 2, &[IF | CF | IOPL]),
        |m| {
            assert_eq!(m.cpu.rflags(), 2 | VM | IF | VIF | CF);
        },
    );
    s.faults("VME: POPF of TF", vm86_virtual, vec![0x9d], GP(0), |m| {
        frame(m, 2, &[TF])
    });
    s.faults(
        "VME: POPF of IF with VIP",
        vm86_virtual,
        vec![0x9d],
        GP(0),
        |m| {
            m.cpu.set_rflags(VIP, VIP);
            frame(m, 2, &[IF]);
        },
    );
    s.goes(
        "VME: IRET",
        vm86_virtual,
        vec![0xcf],
        (0x300, 0x12, 0x200, 0x6000),
        |m| {
            frame(m, 2, &[0x12, 0x300, IF | NT | IOPL]);
        },
        |m| assert_eq!(m.cpu.rflags(), 2 | VM | IF | VIF | NT),
    );
    s.faults("VME: IRET of TF", vm86_virtual, vec![0xcf], GP(0), |m| {
        frame(m, 2, &[0x12, 0x300, TF])
    });
    s.faults("VME: IRETD", vm86_virtual, vec![0x66, 0xcf], GP(0), plain);
    let pvi = || {
        let mut m = Machine::protected(3);
        m.cpu.control.cr4 |= CR4_PVI;
        m.cpu.set_rflags(IF, IF);
        m
    };
    let next = (CODE3, CODE + 1, DATA3, USER_STACK);
    s.goes("PVI: STI", pvi, vec![0xfb], next, plain, |m| {
        assert_eq!(m.cpu.rflags(), 2 | IF | VIF)
    });
    s.goes(
        "PVI: CLI",
        pvi,
        vec![0xfa],
        next,
        |m| m.cpu.set_rflags(VIF, VIF),
        |m| {
            assert_eq!(m.cpu.rflags(), 2 | IF);
        },
    );
    s.faults("PVI: STI with VIP", pvi, vec![0xfb], GP(0), |m| {
        m.cpu.set_rflags(VIP, VIP)
    });
    s.faults("CLI in ring 3 without", ring3, vec![0xfa], GP(0), plain);
    s
}

pub fn sections() -> Vec<Section> {
    vec![gates(), long(), virtual_8086()]
}
