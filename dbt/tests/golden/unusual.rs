//! Strings, vectors of which some elements count, and other accesses with an address or a width of their own.

use iced_x86::code_asm::*;

use super::RIP;
use super::cases::Case;

pub const CASES: &[Case] = &[
    Case::new("a page filled", |a| {
        a.rep().stosq()?;
        a.xor(eax, eax)
    }),
    Case::new("bytes copied", |a| {
        a.rep().movsb()?;
        a.xor(eax, eax)
    }),
    Case::new("a byte loaded and tested", |a| {
        a.lodsb()?;
        a.test(al, al)?;
        a.jne(RIP + 0x100)
    }),
    Case::new("words stored", |a| {
        a.stosq()?;
        a.stosq()?;
        a.xor(eax, eax)
    }),
    Case::new("a word loaded, up or down", |a| {
        a.lodsq()?;
        a.xor(eax, eax)
    })
    .without_groups(),
    Case::new("a byte moved", |a| {
        a.movsb()?;
        a.xor(eax, eax)
    }),
    Case::new("a byte looked for", |a| {
        a.scasb()?;
        a.jne(RIP + 0x100)
    }),
    Case::new("bytes compared", |a| {
        a.cmpsb()?;
        a.jne(RIP + 0x100)
    }),
    Case::new("the end of a string", |a| {
        a.repne().scasb()?;
        a.jne(RIP + 0x100)
    }),
    Case::new("strings compared", |a| {
        a.repe().cmpsb()?;
        a.jne(RIP + 0x100)
    }),
    Case::new("a byte translated", |a| {
        a.xlatb()?;
        a.xor(eax, eax)
    }),
    Case::new("elements loaded under a mask", |a| {
        a.vmaskmovps(ymm1, ymm2, ymmword_ptr(rbx + 32))?;
        a.xor(eax, eax)
    }),
    Case::new("elements stored under a mask", |a| {
        a.vpmaskmovd(xmmword_ptr(rbx), xmm2, xmm3)?;
        a.xor(eax, eax)
    }),
    Case::new("bytes stored under a mask", |a| {
        a.maskmovdqu(xmm1, xmm2)?;
        a.xor(eax, eax)
    }),
    Case::new("two elements gathered", |a| {
        a.db(&[0xc4, 0xe2, 0xe9, 0x91, 0x5c, 0xcb, 0x10])?;
        a.xor(eax, eax)
    }),
    Case::new("a bit of a string", |a| {
        a.bts(qword_ptr(rbx), rsi)?;
        a.xor(eax, eax)
    }),
    Case::new("PUSH and POP of 16 bits", |a| {
        a.push(dx)?;
        a.pop(bx)?;
        a.xor(ecx, ecx)
    }),
    Case::new("VERW, the flags needed", |a| {
        a.add(eax, ecx)?;
        a.verw(word_ptr(rbx))
    }),
    Case::new("LSL", |a| {
        a.lsl(edx, ecx)?;
        a.setne(al)?;
        a.xor(ecx, ecx)
    }),
    Case::new("a control word", |a| {
        a.fldcw(word_ptr(rbx + 4))?;
        a.xor(eax, eax)
    }),
    Case::new("FNSTENV and FLDENV", |a| {
        a.fnstenv(ptr(rbx))?;
        a.fldenv(ptr(rbx))?;
        a.xor(ecx, ecx)
    }),
    Case::new("FNSAVE and FRSTOR", |a| {
        a.fnsave(ptr(rbx))?;
        a.frstor(ptr(rbx))?;
        a.xor(ecx, ecx)
    }),
    Case::new("FLDCW, unmasked", |a| {
        a.fldcw(word_ptr(rbx))?;
        a.xor(ecx, ecx)
    })
    .unmasked(),
    Case::new("sixteen bytes", |a| {
        a.cmpxchg16b(xmmword_ptr(rdi))?;
        a.xor(eax, eax)
    }),
];
