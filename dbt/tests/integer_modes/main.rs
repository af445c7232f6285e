//! What the host processor cannot be asked in user mode: other modes, segmentation,
//! privileges, faults and their traces, ports, and the decoder's view of LOCK.

#[path = "../common/mod.rs"]
mod common;
mod machine;
mod strings;

use dbt::guest::{Exception, Register as R, Segment, SegmentIndex, flags};
use dbt::interpret::operand::check_lock;
use iced_x86::{Decoder, DecoderOptions};
use machine::{CODE, Machine, data_rights};

const GP: Exception = Exception::general_protection(0);
const SS: Exception = Exception::stack_fault(0);

#[test]
fn sixteen_bit_addresses_wrap() {
    let mut m = Machine::real();
    m.store(0x1234, 2, 0xbeef);
    m.cpu.gpr[R::RBX] = 0xffff_f000;
    m.cpu.gpr[R::RSI] = 0x2224;
    // mov ax, [bx+si+10h]
    m.ok(&[0x8b, 0x40, 0x10]);
    assert_eq!(m.cpu.gpr[R::RAX], 0xbeef);
    // lea eax, [bx+si+10h] has a 16-bit address in a 32-bit register.
    m.cpu.gpr[R::RAX] = u64::MAX;
    m.ok(&[0x66, 0x8d, 0x40, 0x10]);
    assert_eq!(m.cpu.gpr[R::RAX], 0x1234);
    assert_eq!(m.cpu.rip, CODE + 4);
}

#[test]
fn a_word_at_the_end_of_a_real_segment_faults() {
    let mut m = Machine::real();
    m.cpu.gpr[R::RBX] = 0xffff;
    assert_eq!(m.run(&[0x8b, 0x07]), Err(GP));
    m.ok(&[0x8a, 0x07]);
    // push ax with SP = 1, then 0: only the second wraps between words.
    m.cpu.gpr[R::RSP] = 0xabcd_0001;
    assert_eq!(m.run(&[0x50]), Err(SS));
    m.cpu.gpr[R::RSP] = 0xabcd_0000;
    m.ok(&[0x50]);
    assert_eq!(m.cpu.gpr[R::RSP], 0xabcd_fffe);
}

#[test]
fn pusha_wraps_between_words_and_popa_skips_sp() {
    let mut m = Machine::real();
    m.cpu.gpr = std::array::from_fn(|number| 0x1000 + number as u64);
    m.cpu.gpr[R::RSP] = 8;
    let pushed = m.cpu.gpr;
    m.ok(&[0x60]);
    assert_eq!(m.cpu.gpr[R::RSP], 0xfff8);
    assert_eq!(m.load(6, 2), pushed[R::RAX]);
    assert_eq!(m.load(0xfffe, 2), 8);
    assert_eq!(m.load(0xfff8, 2), pushed[R::RDI]);
    m.store(0xfffe, 2, 0x5555);
    m.cpu.gpr[R::RAX] = 0;
    m.ok(&[0x61]);
    assert_eq!(m.cpu.gpr, pushed);
}

#[test]
fn a_pushed_selector_is_a_word() {
    let mut m = Machine::protected(0);
    m.cpu.gpr[R::RSP] = 0x6008;
    m.store(0x6000, 8, 0x5555_5555_5555_5555);
    let selector = u64::from(m.cpu.segment(SegmentIndex::Es).selector);
    m.ok(&[0x06]); // push es
    assert_eq!(m.cpu.gpr[R::RSP], 0x6004);
    assert_eq!(m.load(0x6000, 8), 0x5555_0000_5555_5555 | selector << 32);
    // 64-bit code has operands of 64 bits, and writes all of them.
    let mut m = Machine::long(3);
    m.cpu.gpr[R::RSP] = 0x6008;
    m.store(0x6000, 8, 0x5555_5555_5555_5555);
    let selector = u64::from(m.cpu.segment(SegmentIndex::Fs).selector);
    m.ok(&[0x0f, 0xa0]); // push fs
    assert_eq!(m.load(0x6000, 8), selector);
}

#[test]
fn protected_segments_check_presence_type_and_limit() {
    let mut m = Machine::protected(0);
    let flat = *m.cpu.segment(SegmentIndex::Ds);
    let load = [0x8b, 0x00]; // mov eax, [eax]
    let store = [0x89, 0x00]; // mov [eax], eax
    let with = |m: &mut Machine, limit: u32, attributes: u16, at: u64, code: &[u8]| {
        *m.cpu.segment_mut(SegmentIndex::Ds) = Segment {
            base: 0x1000,
            limit,
            attributes,
            ..flat
        };
        m.cpu.refresh_mode();
        m.cpu.gpr[R::RAX] = at;
        m.run(code)
    };
    let data = data_rights(0);
    assert_eq!(with(&mut m, 0xfff, data, 0xffc, &store), Ok(()));
    assert_eq!(m.load(0x1ffc, 4), 0xffc);
    assert_eq!(with(&mut m, 0xfff, data, 0xffd, &load), Err(GP));
    assert_eq!(with(&mut m, 0xfff, 0, 0, &load), Err(GP));
    let read_only = data & !Segment::WRITABLE;
    assert_eq!(with(&mut m, 0xfff, read_only, 0, &load), Ok(()));
    assert_eq!(with(&mut m, 0xfff, read_only, 0, &store), Err(GP));
    let execute_only = read_only | Segment::CODE;
    assert_eq!(with(&mut m, 0xfff, execute_only, 0, &load), Err(GP));
    assert_eq!(
        with(&mut m, 0xfff, execute_only | Segment::WRITABLE, 0, &load),
        Ok(())
    );
    let down = data | Segment::CONFORMING;
    assert_eq!(with(&mut m, 0xfff, down, 0xfff, &load), Err(GP));
    assert_eq!(with(&mut m, 0xfff, down, 0x1000, &load), Ok(()));
    let down16 = down & !Segment::BIG;
    assert_eq!(with(&mut m, 0xfff, down16, 0xfffd, &load), Err(GP));
    // mov [cs:eax], eax, although CS is flat
    m.cpu.gpr[R::RAX] = 0x2000;
    assert_eq!(m.run(&[0x2e, 0x89, 0x00]), Err(GP));
    // mov eax, [ebp] beyond SS
    m.cpu.segment_mut(SegmentIndex::Ss).limit = 0xfff;
    m.cpu.refresh_mode();
    m.cpu.gpr[R::RBP] = 0x1000;
    assert_eq!(m.run(&[0x8b, 0x45, 0x00]), Err(SS));
}

#[test]
fn long_mode_wants_canonical_addresses() {
    let mut m = Machine::long(0);
    m.cpu.gpr[R::RBP] = 0x8000_0000_0000;
    m.cpu.gpr[R::RAX] = 0x8000_0000_0000;
    assert_eq!(m.run(&[0x48, 0x8b, 0x45, 0x00]), Err(SS));
    assert_eq!(m.run(&[0x48, 0x8b, 0x00]), Err(GP));
    // The last byte counts too.
    m.cpu.gpr[R::RAX] = 0x7fff_ffff_fffc;
    assert_eq!(m.run(&[0x48, 0x8b, 0x00]), Err(GP));
    // jmp rax, call rax, ret
    m.cpu.gpr[R::RAX] = 0x8000_0000_0000;
    m.cpu.gpr[R::RSP] = 0x5000;
    m.store(0x5000, 8, 0x8000_0000_0000);
    assert_eq!(m.run(&[0xff, 0xe0]), Err(GP));
    assert_eq!(m.run(&[0xff, 0xd0]), Err(GP));
    assert_eq!(m.run(&[0xc3]), Err(GP));
    assert_eq!(m.load(0x4ff8, 8), 0);
    // mov rax, [fs:10h]; DS has no base in 64-bit mode
    m.cpu.segment_mut(SegmentIndex::Fs).base = 0x3000;
    m.cpu.segment_mut(SegmentIndex::Ds).base = 0x9000;
    m.store(0x3010, 8, 77);
    m.ok(&[0x64, 0x48, 0x8b, 0x04, 0x25, 0x10, 0, 0, 0]);
    assert_eq!(m.cpu.gpr[R::RAX], 77);
}

#[test]
fn near_targets_stay_within_the_code_segment() {
    let mut m = Machine::protected(0);
    m.cpu.segment_mut(SegmentIndex::Cs).limit = 0xffff;
    m.cpu.refresh_mode();
    m.cpu.gpr[R::RAX] = 0x1_0000;
    m.cpu.gpr[R::RSP] = 0x5000;
    assert_eq!(m.run(&[0xff, 0xe0]), Err(GP));
    assert_eq!(m.run(&[0xff, 0xd0]), Err(GP));
    // With a 16-bit operand size the target is cut: jmp ax
    m.ok(&[0x66, 0xff, 0xe0]);
    assert_eq!(m.cpu.rip, 0);
    // call far enough back to wrap, 16 bits
    m.ok(&[0x66, 0xe8, 0x00, 0x80]);
    assert_eq!(m.cpu.rip, 4);
    assert_eq!(m.load(0x4ffe, 2), CODE + 4);
    assert_eq!(m.cpu.gpr[R::RSP], 0x4ffe);
    // loop beyond the limit leaves ECX alone
    m.cpu.segment_mut(SegmentIndex::Cs).limit = 0x8001;
    m.cpu.gpr[R::RCX] = 5;
    assert_eq!(m.run(&[0xe2, 0x7f]), Err(GP));
}

#[test]
fn faulting_pops_and_enters_leave_no_trace() {
    let mut m = Machine::long(3);
    m.map(0x6000, 0);
    m.cpu.gpr[R::RSP] = 0x5000;
    m.store(0x5000, 8, 0x6000);
    // pop qword [rsp-8+1000h]: the address uses the incremented RSP
    let fault = m.run(&[0x8f, 0x84, 0x24, 0xf8, 0x0f, 0, 0]);
    assert_eq!(fault.map_err(|e| e.address), Err(0x6000));
    // enter 0, 3 whose old frame is not there
    m.cpu.gpr[R::RBP] = 0x7000;
    let fault = m.run(&[0xc8, 0, 0, 3]).expect_err("a page fault");
    assert_eq!((fault.vector, fault.address), (Exception::PF, 0x6ff8));
    assert_eq!(m.load(0x4ff8, 8), 0);
    // xadd [rax], rcx on a page that is not writable
    m.map(0x6000, 5);
    m.cpu.gpr[R::RAX] = 0x6000;
    m.cpu.arithmetic_flags = flags::CF;
    let fault = m.run(&[0x48, 0x0f, 0xc1, 0x08]).expect_err("a page fault");
    assert_eq!(fault.error_code, Some(7));
    assert_eq!(m.cpu.arithmetic_flags, flags::CF);
    // cmpxchg needs the right to write even if it does not compare equal
    m.cpu.gpr[R::RCX] = 1;
    assert!(m.run(&[0x48, 0x0f, 0xb1, 0x08]).is_err());
    // a plain load and a compare do not
    m.ok(&[0x48, 0x3b, 0x08]).ok(&[0x48, 0x0f, 0xa3, 0x08]);
}

#[test]
fn alignment_is_checked_when_armed() {
    let mut m = Machine::long(3);
    m.cpu.control.cr0 |= flags::CR0_AM;
    m.cpu.set_rflags(flags::AC, flags::AC);
    m.cpu.gpr[R::RAX] = 0x6001;
    let ac = Exception::alignment_check();
    assert_eq!(m.run(&[0x8b, 0x00]), Err(ac));
    assert_eq!(m.run(&[0x8a, 0x00]), Ok(()));
    m.cpu.gpr[R::RSP] = 0x6004;
    assert_eq!(m.run(&[0x50]), Err(ac));
    m.cpu.set_rflags(0, flags::AC);
    m.ok(&[0x50]);
}

#[test]
fn popf_changes_what_the_privilege_allows() {
    let everything = 0xffff_ffff;
    let pop = |mut m: Machine, iopl: u64, code: &[u8]| {
        m.cpu.set_rflags(iopl << 12, flags::IOPL);
        m.cpu.gpr[R::RSP] = 0x5000;
        m.store(0x5000, 4, everything);
        m.run(code).map(|()| m.cpu.rflags())
    };
    use flags::*;
    let plain = ARITHMETIC | RESERVED_1 | TF | DF | NT;
    let popfd = [0x9d];
    let popfw = [0x66, 0x9d];
    let all = plain | AC | ID;
    assert_eq!(pop(Machine::protected(0), 0, &popfd), Ok(all | IF | IOPL));
    assert_eq!(pop(Machine::protected(0), 0, &popfw), Ok(plain | IF | IOPL));
    assert_eq!(pop(Machine::protected(3), 0, &popfd), Ok(all));
    assert_eq!(pop(Machine::protected(3), 3, &popfd), Ok(all | IF | IOPL));
    assert_eq!(
        pop(Machine::protected(2), 2, &popfd),
        Ok(all | IF | 2 << 12)
    );
    // In the 16-bit modes the prefix means the opposite.
    assert_eq!(pop(Machine::real(), 0, &popfw), Ok(all | IF | IOPL));
    assert_eq!(pop(Machine::vm86(), 3, &popfd), Ok(plain | IF | IOPL | VM));
    assert_eq!(pop(Machine::vm86(), 0, &popfd), Err(GP));
    let mut extended = Machine::vm86();
    extended.cpu.control.cr4 |= CR4_VME;
    assert_eq!(pop(extended, 0, &popfd), Err(GP), "TF is set");
}

#[test]
fn virtual_interrupt_flag_replaces_if() {
    use flags::*;
    let mut m = Machine::vm86();
    m.cpu.control.cr4 |= CR4_VME;
    m.cpu.gpr[R::RSP] = 0x5000;
    m.store(0x5000, 2, IF);
    m.ok(&[0x9d]);
    assert_eq!(m.cpu.rflags(), VM | VIF | RESERVED_1);
    m.ok(&[0x9c]);
    assert_eq!(m.load(0x5000, 2), IF | IOPL | RESERVED_1);
    m.cpu.set_rflags(VIP, VIP);
    assert_eq!(m.run(&[0x9d]), Err(GP), "an interrupt is pending");
    assert_eq!(m.run(&[0x66, 0x9c]), Err(GP), "32 bits are not virtualised");
}

#[test]
fn vex_forms_need_protected_mode() {
    // andn eax, ecx, edx
    let andn = [0xc4, 0xe2, 0x70, 0xf2, 0xc2];
    let undefined = Err(Exception::invalid_opcode());
    assert_eq!(Machine::real().run(&andn), undefined);
    assert_eq!(Machine::vm86().run(&andn), undefined);
    Machine::protected(3).ok(&andn);
}

#[test]
fn random_numbers_report_success() {
    let mut m = Machine::long(3);
    m.cpu.arithmetic_flags = flags::ARITHMETIC;
    m.ok(&[0x0f, 0xc7, 0xf1]); // rdrand ecx
    assert_eq!(m.cpu.gpr[R::RCX], 0x5566_7788);
    assert_eq!(m.cpu.arithmetic_flags, flags::CF);
}

#[test]
fn bound_raises_br() {
    let mut m = Machine::protected(3);
    m.store(0x6000, 8, 0x0000_0010_ffff_fff0);
    m.cpu.gpr[R::RBX] = 0x6000;
    for (index, inside) in [(-16, true), (-17, false), (16, true), (17, false)] {
        m.cpu.gpr[R::RAX] = u64::from(index as u32);
        let expected = if inside {
            Ok(())
        } else {
            Err(Exception::plain(Exception::BR))
        };
        assert_eq!(m.run(&[0x62, 0x03]), expected, "{index}");
    }
}

#[test]
fn the_decoder_refuses_what_check_lock_refuses() {
    let mut state = 1u64;
    let mut refused = 0;
    let mut allowed = 0;
    for _ in 0..400_000 {
        let mut bytes = [0xf0u8; 12];
        for byte in &mut bytes[1..] {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
        if state >> 40 & 1 != 0 {
            bytes[1] = 0x0f;
        }
        let decode = |options| Decoder::with_ip(64, &bytes, CODE, options).decode();
        let lenient = decode(DecoderOptions::NO_INVALID_CHECK);
        let strict = decode(DecoderOptions::NONE);
        // Other reasons to refuse are not of interest.
        let known = dbt::record::row(lenient.mnemonic()).is_some();
        if lenient.is_invalid() || !lenient.has_lock_prefix() || !known {
            continue;
        }
        if check_lock(&lenient).is_err() {
            assert!(strict.is_invalid(), "{lenient}");
            refused += 1;
        } else {
            assert!(!strict.is_invalid(), "{lenient}");
            allowed += 1;
        }
    }
    assert!(refused > 10_000 && allowed > 3_000, "{refused} {allowed}");
}
