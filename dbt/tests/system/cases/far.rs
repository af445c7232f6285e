//! Far CALL and JMP: code segments, call gates of 16, 32 and 64 bits.

use super::*;

const FLAT: u64 = 0xf_ffff;

/// 64-bit code has no direct far transfers: through a pointer in memory, with a 32-bit offset.
fn indirect(is_call: bool) -> Vec<u8> {
    let operation = if is_call { 0x1c } else { 0x2c };
    vec![0xff, operation, 0x25, 0, 1, 1, 0]
}

fn pointer(machine: &mut Machine, selector: u16, offset: u64) {
    machine.write(CODE + 0x100, 4, offset);
    machine.write(CODE + 0x104, 2, u64::from(selector));
}

/// SS limited so that nothing fits.
fn no_room(machine: &mut Machine) {
    let ss = machine.cpu.segment_mut(dbt::guest::SegmentIndex::Ss);
    ss.limit = 0xff;
}

fn to_code() -> Section {
    let mut s = Section::new("volume 2, JMP and CALL, far");
    let room = |_: &mut Machine| {};
    s.faults("null selector", ring0, jump(3, 0), GP(0), room);
    s.faults("outside the GDT", ring0, jump(0xfff8, 0), GP(0xfff8), room);
    s.faults("without an LDT", ring0, jump(0x0c, 0), GP(0x0c), room);
    s.faults("a data segment", ring0, jump(DATA0, 0), GP(0x10), room);
    s.faults("inner level", ring3, jump(CODE0, 0), GP(8), room);
    s.faults("outer level", ring0, jump(CODE3, 0), GP(0x18), room);
    s.faults("RPL above CPL", ring0, jump(CODE0 | 3, 0), GP(8), room);
    s.faults(
        "beyond the limit",
        ring0,
        jump(SMALL_CODE, 0x1000),
        GP(0),
        room,
    );
    s.faults(
        "conforming, of an outer level",
        ring0,
        jump(OWN, 0),
        GP(0xe0),
        |m| {
            entry(m, OWN, descriptor(0, FLAT, 0xc0fe));
        },
    );
    s.faults("an absent segment", ring0, call(OWN, 0), NP(0xe0), |m| {
        entry(m, OWN, absent(descriptor(0, FLAT, 0xc09a)));
    });
    s.faults(
        "privilege before presence",
        ring3,
        jump(OWN, 0),
        GP(0xe0),
        |m| {
            entry(m, OWN, absent(descriptor(0, FLAT, 0xc09a)));
        },
    );
    s.faults("an interrupt gate", ring0, jump(OWN, 0), GP(0xe0), |m| {
        entry(m, OWN, gate(CODE0, HANDLER, 14, 3, 0));
    });
    s.faults("an LDT's descriptor", ring0, jump(LDT, 0), GP(0xb0), room);
    s.faults("CALL without room", ring0, call(CODE0, 0), SS(0), no_room);
    s.faults(
        "room before the limit",
        ring0,
        call(SMALL_CODE, 0x1000),
        SS(0),
        no_room,
    );
    s.faults("presence before room", ring0, call(OWN, 0), NP(0xe0), |m| {
        no_room(m);
        entry(m, OWN, absent(descriptor(0, FLAT, 0xc09a)));
    });
    s.faults(
        "L and D in long mode",
        long0,
        indirect(false),
        GP(0xe0),
        |m| {
            entry(m, OWN, descriptor(0, FLAT, 0xe09a));
            pointer(m, OWN, 0);
        },
    );
    let here = (CODE0, 0x1234, DATA0, KERNEL_STACK);
    s.goes("JMP", ring0, jump(CODE0, 0x1234), here, plain, plain);
    let below = (CODE0, 0x1234, DATA0, KERNEL_STACK - 8);
    s.goes("CALL", ring0, call(CODE0, 0x1234), below, plain, |m| {
        assert_eq!(m.stack(4, 2), [CODE + 7, 8]);
    });
    s.goes(
        "CALL of 16 bits",
        ring0,
        vec![0x66, 0x9a, 0x34, 0x12, 8, 0],
        (CODE0, 0x1234, DATA0, KERNEL_STACK - 4),
        plain,
        |m| assert_eq!(m.stack(2, 2), [6, 8]),
    );
    s.goes(
        "to compatibility mode",
        long0,
        indirect(true),
        (CODE0, 0x1234, LONG_DATA0, KERNEL_STACK - 8),
        |m| pointer(m, CODE0, 0x1234),
        |m| {
            assert!(m.cpu.long_mode() && !m.cpu.code64());
            assert_eq!(m.stack(4, 2), [CODE + 7, u64::from(LONG_CODE0)]);
        },
    );
    s.goes(
        "the accessed bit",
        ring0,
        jump(OWN, 0x10),
        (OWN, 0x10, DATA0, KERNEL_STACK),
        |m| entry(m, OWN, descriptor(0, FLAT, 0xc09a)),
        |m| assert_eq!(m.read(GDT + 0xe5, 1), 0x9b),
    );
    s
}

fn own_gate(m: &mut Machine, selector: u16) {
    entry(m, OWN, gate(selector, HANDLER, 12, 3, 0));
}

/// SS0 in the TSS.
fn inner_stack(m: &mut Machine, selector: u16) {
    own_gate(m, CODE0);
    m.write(TSS_A + 8, 2, u64::from(selector));
}

fn call_gates() -> Section {
    let mut s = Section::new("volume 3, 5.8.4 and 5.8.5; volume 2, CALL");
    s.faults("gate's DPL below CPL", ring3, call(OWN, 0), GP(0xe0), |m| {
        entry(m, OWN, gate(CODE0, HANDLER, 12, 0, 0));
    });
    s.faults(
        "gate's DPL below RPL",
        ring0,
        call(OWN | 3, 0),
        GP(0xe0),
        |m| {
            entry(m, OWN, gate(CODE0, HANDLER, 12, 0, 0));
        },
    );
    s.faults("absent", ring3, call(OWN, 0), NP(0xe0), |m| {
        entry(m, OWN, absent(gate(CODE0, HANDLER, 12, 3, 0)));
    });
    s.faults(
        "privilege before presence",
        ring3,
        call(OWN, 0),
        GP(0xe0),
        |m| {
            entry(m, OWN, absent(gate(CODE0, HANDLER, 12, 0, 0)));
        },
    );
    s.faults("to a null selector", ring3, call(OWN, 0), GP(0), |m| {
        own_gate(m, 2)
    });
    s.faults("to data", ring3, call(OWN, 0), GP(0x10), |m| {
        own_gate(m, DATA0)
    });
    s.faults("to outside the GDT", ring3, call(OWN, 0), GP(0x1008), |m| {
        own_gate(m, 0x1008)
    });
    s.faults("to an outer level", ring0, call(OWN, 0), GP(0x18), |m| {
        own_gate(m, CODE3)
    });
    s.faults("to absent code", ring3, call(OWN, 0), NP(0xe8), |m| {
        own_gate(m, OWN_HIGH);
        entry(m, OWN_HIGH, absent(descriptor(0, FLAT, 0xc09a)));
    });
    s.faults("JMP inwards", ring3, jump(OWN, 0), GP(8), |m| {
        own_gate(m, CODE0)
    });
    s.faults("a short TSS", ring3, call(OWN, 0), TS(0x28), |m| {
        own_gate(m, CODE0);
        m.cpu.control.tr.limit = 8;
    });
    s.faults("a null SS", ring3, call(OWN, 0), TS(0), |m| {
        inner_stack(m, 0)
    });
    s.faults("SS of another RPL", ring3, call(OWN, 0), TS(0x10), |m| {
        inner_stack(m, DATA0 | 3)
    });
    s.faults("SS of another DPL", ring3, call(OWN, 0), TS(0x20), |m| {
        inner_stack(m, 0x20)
    });
    s.faults("a read-only SS", ring3, call(OWN, 0), TS(0xa0), |m| {
        inner_stack(m, READ_ONLY)
    });
    s.faults("code as SS", ring3, call(OWN, 0), TS(8), |m| {
        inner_stack(m, CODE0)
    });
    s.faults("SS outside the GDT", ring3, call(OWN, 0), TS(0x1000), |m| {
        inner_stack(m, 0x1000)
    });
    s.faults("an absent SS", ring3, call(OWN, 0), SS(0x48), |m| {
        inner_stack(m, ABSENT)
    });
    s.faults("no room inside", ring3, call(OWN, 0), SS(0xe8), |m| {
        inner_stack(m, OWN_HIGH);
        entry(m, OWN_HIGH, descriptor(0, 0xff, 0x4092));
    });
    s.faults("beyond the limit", ring3, call(OWN, 0), GP(0), |m| {
        own_gate(m, SMALL_CODE)
    });
    s.faults(
        "the stack before the limit",
        ring3,
        call(OWN, 0),
        TS(0),
        |m| {
            inner_stack(m, 0);
            own_gate(m, SMALL_CODE);
        },
    );
    s.faults("room before the limit", ring0, call(OWN, 0), SS(0), |m| {
        own_gate(m, SMALL_CODE);
        no_room(m);
    });
    let same = (CODE0, HANDLER, DATA0, KERNEL_STACK);
    s.goes(
        "JMP",
        ring0,
        jump(OWN, 7),
        same,
        |m| own_gate(m, CODE0),
        plain,
    );
    let pushed = (CODE0, HANDLER, DATA0, KERNEL_STACK - 8);
    s.goes(
        "CALL",
        ring0,
        call(OWN, 7),
        pushed,
        |m| own_gate(m, CODE0),
        |m| {
            assert_eq!(m.stack(4, 2), [CODE + 7, 8]);
        },
    );
    s.goes(
        "inwards",
        ring3,
        call(OWN, 0),
        (CODE0, HANDLER, DATA0, KERNEL_STACK - 16),
        |m| own_gate(m, CODE0),
        |m| assert_eq!(m.stack(4, 4), [CODE + 7, 0x1b, USER_STACK, 0x23]),
    );
    s.goes(
        "to conforming code: the level stays",
        ring3,
        call(OWN, 0),
        (CONFORMING | 3, HANDLER, DATA3, USER_STACK - 8),
        |m| own_gate(m, CONFORMING),
        plain,
    );
    s
}

fn long_gates() -> Section {
    fn own(m: &mut Machine, code: u16, high: u64) {
        entry(m, OWN, gate(code, HANDLER, 12, 3, 0));
        entry(m, OWN_HIGH, high);
        pointer(m, OWN, 0);
    }
    let mut s = Section::new("volume 3, 5.8.3.1");
    let call = || indirect(true);
    s.faults("to compatibility code", long3, call(), GP(8), |m| {
        own(m, CODE0, 0)
    });
    s.faults("a type in the upper half", long3, call(), GP(0xe0), |m| {
        own(m, LONG_CODE0, 1 << 40);
    });
    s.faults("not canonical", long3, call(), GP(0), |m| {
        own(m, LONG_CODE0, 0x8000)
    });
    s.faults(
        "the upper half outside the GDT",
        long3,
        call(),
        GP(0xe0),
        |m| {
            own(m, LONG_CODE0, 0);
            m.cpu.control.gdtr.limit = 0xe7;
        },
    );
    s.faults("a short TSS", long3, call(), TS(0x78), |m| {
        own(m, LONG_CODE0, 0);
        m.cpu.control.tr.limit = 10;
    });
    s.faults("no canonical stack", long3, call(), SS(0), |m| {
        own(m, LONG_CODE0, 0);
        m.write(TSS_A + 4, 8, 0x8000_0000_1000);
    });
    s.faults("a 16-bit gate", long3, call(), GP(0xe0), |m| {
        own(m, LONG_CODE0, 0);
        entry(m, OWN, gate(LONG_CODE0, HANDLER, 4, 3, 0));
    });
    s.faults("a task gate", long0, call(), GP(0x90), |m| {
        pointer(m, 0x90, 0)
    });
    s.faults("a TSS", long0, call(), GP(0x30), |m| {
        pointer(m, TSS_B_SELECTOR, 0)
    });
    s.goes(
        "JMP",
        long0,
        indirect(false),
        (LONG_CODE0, HANDLER, LONG_DATA0, KERNEL_STACK),
        |m| own(m, LONG_CODE0, 0),
        plain,
    );
    s.goes(
        "inwards",
        long3,
        call(),
        (LONG_CODE0, HANDLER, 0, KERNEL_STACK - 32),
        |m| own(m, LONG_CODE0, 0),
        |m| assert_eq!(m.stack(8, 4), [CODE + 7, 0x73, USER_STACK, 0x6b]),
    );
    s
}

pub fn sections() -> Vec<Section> {
    vec![to_code(), call_gates(), long_gates()]
}
