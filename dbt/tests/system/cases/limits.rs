//! Segment types and limits, canonical addresses, questions about selectors.

use dbt::guest::flags::ZF;
use dbt::guest::{Segment, SegmentIndex};

use super::*;

/// mov eax, [ebx] and mov [ebx], eax, of 32 bits and of 8.
const LOAD: &[u8] = &[0x8b, 0x03];
const STORE: &[u8] = &[0x89, 0x03];
const STORE_BYTE: &[u8] = &[0x88, 0x03];

fn ds(m: &mut Machine, limit: u32, attributes: u16, at: u64) {
    *m.cpu.segment_mut(SegmentIndex::Ds) = Segment {
        base: 0x1_0000,
        limit,
        selector: 0xe0,
        attributes,
    };
    m.cpu.gpr[3] = at;
    m.cpu.refresh_mode();
}

/// Where an instruction of two bytes leaves ring 0.
const NEXT: (u16, u64, u16, u64) = (CODE0, CODE + 2, DATA0, KERNEL_STACK);
const SMALL: u16 = 0x4093;
const DOWN: u16 = 0x4097;

fn data() -> Section {
    let mut s = Section::new("volume 3, 5.3 and 5.5");
    s.goes(
        "the last doubleword",
        ring0,
        LOAD.to_vec(),
        NEXT,
        |m| ds(m, 0x5fff, SMALL, 0x5ffc),
        plain,
    );
    s.faults("a byte beyond", ring0, LOAD.to_vec(), GP(0), |m| {
        ds(m, 0x5fff, SMALL, 0x5ffd)
    });
    s.faults(
        "around the end of 4 GiB",
        ring0,
        LOAD.to_vec(),
        GP(0),
        |m| ds(m, 0x5fff, SMALL, 0xffff_fffe),
    );
    s.goes(
        "the last byte",
        ring0,
        STORE_BYTE.to_vec(),
        NEXT,
        |m| ds(m, 0x5fff, SMALL, 0x5fff),
        plain,
    );
    s.faults(
        "the byte behind it",
        ring0,
        STORE_BYTE.to_vec(),
        GP(0),
        |m| ds(m, 0x5fff, SMALL, 0x6000),
    );
    s.faults(
        "expand-down: the limit itself",
        ring0,
        STORE_BYTE.to_vec(),
        GP(0),
        |m| ds(m, 0x5fff, DOWN, 0x5fff),
    );
    s.goes(
        "expand-down: above it",
        ring0,
        STORE.to_vec(),
        NEXT,
        |m| ds(m, 0x5fff, DOWN, 0x6000),
        plain,
    );
    s.faults(
        "expand-down of 16 bits: above 64 KiB",
        ring0,
        STORE.to_vec(),
        GP(0),
        |m| ds(m, 0x5fff, 0x97, 0xfffd),
    );
    s.faults(
        "a store to a read-only segment",
        ring0,
        STORE.to_vec(),
        GP(0),
        |m| ds(m, 0x5fff, 0x4091, 0x100),
    );
    s.goes(
        "a load from it",
        ring0,
        LOAD.to_vec(),
        NEXT,
        |m| ds(m, 0x5fff, 0x4091, 0x100),
        plain,
    );
    s.faults(
        "a load from a null segment",
        ring0,
        LOAD.to_vec(),
        GP(0),
        |m| ds(m, 0, 0, 0),
    );
    s.faults(
        "a load through execute-only CS",
        ring0,
        vec![0x2e, 0x8b, 0x03],
        GP(0),
        |m| {
            m.cpu.segment_mut(SegmentIndex::Cs).attributes &= !2;
            m.cpu.refresh_mode();
        },
    );
    s.faults(
        "a store through CS",
        ring0,
        vec![0x2e, 0x89, 0x03],
        GP(0),
        plain,
    );
    s.faults("the stack's limit", ring0, vec![0x50], SS(0), |m| {
        m.cpu.segment_mut(SegmentIndex::Ss).limit = KERNEL_STACK as u32 - 2;
        m.cpu.refresh_mode();
    });
    s.faults(
        "the stack's limit through EBP",
        ring0,
        vec![0x8b, 0x45, 0],
        SS(0),
        |m| {
            m.cpu.segment_mut(SegmentIndex::Ss).limit = 0xffff;
            m.cpu.gpr[5] = 0xfffd;
            m.cpu.refresh_mode();
        },
    );
    s
}

fn canonical() -> Section {
    let mut s = Section::new("volume 1, 3.3.7.1");
    const BAD: u64 = 0x8000_0000_0000;
    s.faults("a load", long0, LOAD.to_vec(), GP(0), |m| {
        m.cpu.gpr[3] = BAD
    });
    s.faults(
        "the last byte of a load",
        long0,
        LOAD.to_vec(),
        GP(0),
        |m| m.cpu.gpr[3] = BAD - 3,
    );
    s.faults("through RBP", long0, vec![0x8b, 0x45, 0], SS(0), |m| {
        m.cpu.gpr[5] = BAD
    });
    s.faults("PUSH", long0, vec![0x50], SS(0), |m| m.cpu.gpr[4] = BAD + 8);
    s.faults("JMP", long0, vec![0xff, 0xe0], GP(0), |m| {
        m.cpu.gpr[0] = BAD
    });
    s.faults("CALL", long0, vec![0xff, 0xd0], GP(0), |m| {
        m.cpu.gpr[0] = BAD
    });
    s.faults("RET", long0, vec![0xc3], GP(0), |m| frame(m, 8, &[BAD]));
    s
}

/// LAR, LSL, VERR and VERW of AX into ECX, and whether ZF comes of it.
fn questions() -> Section {
    let mut s = Section::new("volume 2, LAR, LSL, VERR and VERW");
    const LAR: &[u8] = &[0x0f, 0x02, 0xc8];
    const LSL: &[u8] = &[0x0f, 0x03, 0xc8];
    const VERR: &[u8] = &[0x0f, 0x00, 0xe0];
    const VERW: &[u8] = &[0x0f, 0x00, 0xe8];
    const NEXT0: (u16, u64, u16, u64) = (CODE0, CODE + 3, DATA0, KERNEL_STACK);
    const NEXT3: (u16, u64, u16, u64) = (CODE3, CODE + 3, DATA3, USER_STACK);
    const LONG: (u16, u64, u16, u64) = (LONG_CODE0, CODE + 3, LONG_DATA0, KERNEL_STACK);
    fn yes(m: &mut Machine) {
        assert_ne!(m.cpu.rflags() & ZF, 0);
    }
    fn no(m: &mut Machine) {
        assert_eq!(m.cpu.rflags() & ZF, 0);
        assert_eq!(m.cpu.gpr[1], 0x5555);
    }
    macro_rules! ask {
        ($what:expr, $start:expr, $code:expr, $next:expr, $selector:expr, $check:expr) => {
            s.goes(
                $what,
                $start,
                $code.to_vec(),
                $next,
                |m| {
                    m.cpu.gpr[0] = $selector as u64;
                    m.cpu.gpr[1] = 0x5555;
                },
                $check,
            )
        };
    }
    ask!("LAR: code", ring0, LAR, NEXT0, CODE0, |m| {
        yes(m);
        assert_eq!(m.cpu.gpr[1], 0x00c0_9a00);
    });
    ask!("LAR: RPL above DPL", ring0, LAR, NEXT0, CODE0 | 3, no);
    ask!("LAR: CPL above DPL", ring3, LAR, NEXT3, DATA0, no);
    ask!("LAR: conforming", ring3, LAR, NEXT3, CONFORMING, yes);
    ask!("LAR: absent all the same", ring0, LAR, NEXT0, ABSENT, yes);
    ask!("LAR: null", ring0, LAR, NEXT0, 3, no);
    ask!("LAR: outside the GDT", ring0, LAR, NEXT0, 0xfff8, no);
    ask!("LAR: a task gate", ring3, LAR, NEXT3, TASK_GATE, yes);
    ask!(
        "LAR: a call gate of 16 bits",
        ring3,
        LAR,
        NEXT3,
        CALL_GATE_16,
        yes
    );
    ask!(
        "LAR: a task gate in long mode",
        long0,
        LAR,
        LONG,
        TASK_GATE,
        no
    );
    ask!(
        "LAR: a 32-bit TSS in long mode",
        long0,
        LAR,
        LONG,
        LONG_TSS,
        yes
    );
    ask!("LSL: a call gate", ring3, LSL, NEXT3, CALL_GATE, no);
    ask!("LSL: pages", ring0, LSL, NEXT0, DATA0, |m| {
        yes(m);
        assert_eq!(m.cpu.gpr[1], 0xffff_ffff);
    });
    ask!("LSL: a TSS", ring0, LSL, NEXT0, TSS_B_SELECTOR, |m| {
        yes(m);
        assert_eq!(m.cpu.gpr[1], 0x67);
    });
    ask!("LSL: an LDT", ring0, LSL, NEXT0, LDT, |m| {
        yes(m);
        assert_eq!(m.cpu.gpr[1], 0xff);
    });
    ask!("VERR: readable code", ring0, VERR, NEXT0, CODE0, yes);
    ask!("VERR: execute-only", ring0, VERR, NEXT0, EXECUTE_ONLY, no);
    ask!("VERR: system", ring0, VERR, NEXT0, LDT, no);
    ask!("VERR: inner data", ring3, VERR, NEXT3, DATA0, no);
    ask!("VERW: data", ring3, VERW, NEXT3, DATA3, yes);
    ask!("VERW: read-only", ring0, VERW, NEXT0, READ_ONLY, no);
    ask!("VERW: code", ring0, VERW, NEXT0, CODE0, no);
    let ud = Exception::invalid_opcode();
    s.faults("LAR in real mode", Machine::real, LAR.to_vec(), ud, plain);
    s.faults("VERW in real mode", Machine::real, VERW.to_vec(), ud, plain);
    s
}

pub fn sections() -> Vec<Section> {
    vec![data(), canonical(), questions()]
}
