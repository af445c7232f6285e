//! The table of guest code.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// A piece of guest code, and for which host it is emitted.
pub struct Case {
    pub name: &'static str,
    pub code: fn(&mut CodeAssembler) -> Result<(), IcedError>,
    /// The code is repeated so often, as in a trace.
    pub rounds: usize,
    pub copies: usize,
    pub returns: bool,
    pub grouping: bool,
    pub counted: bool,
    pub bmi2: bool,
    /// The code runs at CPL 0, with SMAP.
    pub kernel: bool,
    /// It is 32-bit code of a kernel without SMAP.
    pub narrow: bool,
    /// The checks predict their TLB entries.
    pub predicting: bool,
    /// Registers may change places.
    pub allotting: bool,
    /// Some x87 exceptions are not masked.
    pub unmasked: bool,
    /// The entries are listed, too.
    pub entries: bool,
}

impl Case {
    pub const fn new(
        name: &'static str,
        code: fn(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Case {
        Case {
            name,
            code,
            rounds: 1,
            copies: 2,
            returns: true,
            grouping: true,
            counted: false,
            bmi2: true,
            kernel: false,
            narrow: false,
            predicting: false,
            allotting: false,
            unmasked: false,
            entries: false,
        }
    }

    pub const fn copies(self, copies: usize) -> Case {
        Case { copies, ..self }
    }

    const fn narrow(self) -> Case {
        Case {
            narrow: true,
            ..self
        }
    }

    pub const fn unmasked(self) -> Case {
        Case {
            unmasked: true,
            ..self
        }
    }

    const fn kernel(self) -> Case {
        Case {
            kernel: true,
            ..self
        }
    }

    const fn without_returns(self) -> Case {
        Case {
            returns: false,
            ..self
        }
    }

    const fn rounds(self, rounds: usize) -> Case {
        Case { rounds, ..self }
    }

    pub const fn without_groups(self) -> Case {
        Case {
            grouping: false,
            ..self
        }
    }

    const fn counted(self) -> Case {
        Case {
            counted: true,
            ..self
        }
    }

    const fn without_bmi2(self) -> Case {
        Case {
            bmi2: false,
            ..self
        }
    }

    const fn predicting(self) -> Case {
        Case {
            predicting: true,
            ..self
        }
    }

    const fn allotting(self) -> Case {
        Case {
            allotting: true,
            ..self
        }
    }

    const fn entries(self) -> Case {
        Case {
            entries: true,
            ..self
        }
    }
}

fn copy_loop(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.mov(rax, qword_ptr(rsi))?;
    a.mov(qword_ptr(rdi), rax)?;
    a.add(rsi, 8)?;
    a.add(rdi, 8)?;
    a.dec(rcx)?;
    a.jne(again)
}

/// A total in a frame, and a place far from the elements that it is of.
fn running_total(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.mov(rax, qword_ptr(rsi))?;
    a.add(rax, qword_ptr(rsp + 8))?;
    a.mov(qword_ptr(rsp + 8), rax)?;
    a.xor(qword_ptr(rsi + 0x800), rax)?;
    a.add(rsi, 8)?;
    a.cmp(rsi, qword_ptr(rsp + 16))?;
    a.jb(again)
}

/// All registers that are in memory, and a branch out of the middle.
fn sum_of_products(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.mov(r8, qword_ptr(r9 + r10 * 8))?;
    a.imul_2(r8, rbx)?;
    a.add(r11, r8)?;
    a.jo(super::RIP + 0x100)?;
    a.inc(r10)?;
    a.cmp(r10, rdx)?;
    a.jb(again)
}

/// Twenty-four instructions that do not lead back to the first.
fn rotations(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for amount in 1..7 {
        a.mov(r9d, r8d)?;
        a.rol(r9d, amount)?;
        a.add(r8d, r9d)?;
        a.add(r8d, eax)?;
    }
    Ok(())
}

fn prologue(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(rbp)?;
    a.mov(rbp, rsp)?;
    a.push(r12)?;
    a.push(rbx)?;
    a.sub(rsp, 0x20)?;
    a.mov(qword_ptr(rbp - 0x20), rdi)?;
    a.xor(eax, eax)?;
    a.mov(dword_ptr(rbp - 0x28), eax)
}

fn epilogue(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.pop(rbx)?;
    a.pop(r12)?;
    a.pop(rbp)?;
    a.ret()
}

fn structure(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, qword_ptr(rbx))?;
    a.mov(ecx, dword_ptr(rbx + 8))?;
    a.mov(dword_ptr(rbx + 12), ecx)?;
    a.mov(qword_ptr(rbx + 16), rax)?;
    a.xor(eax, eax)
}

fn neighbours(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(eax, dword_ptr(rbx + rcx * 4))?;
    a.lea(rdx, ptr(rax + rax * 2))?;
    a.add(rcx, 1)?;
    a.mov(dword_ptr(rsi), edx)?;
    a.mov(dword_ptr(rbx + rcx * 4), eax)?;
    a.mov(edx, dword_ptr(rbx + rcx * 4 + 4))?;
    a.xor(eax, eax)
}

/// The files and what is in them. Flags that matter at a block's end would be saved around each
/// check; an operation that overwrites them stands behind the instruction in question.
pub const GROUPS: &[(&str, &[Case])] = &[
    (
        "memory",
        &[
            Case::new("load, base and displacement", |a| {
                a.mov(rax, qword_ptr(rbx + 8))?;
                a.xor(ecx, ecx)
            }),
            Case::new("load, base and displacement", |a| {
                a.mov(rax, qword_ptr(rbx + 8))?;
                a.xor(ecx, ecx)
            })
            .without_bmi2(),
            Case::new("load, base and displacement", |a| {
                a.mov(rax, qword_ptr(rbx + 8))?;
                a.xor(ecx, ecx)
            })
            .predicting(),
            Case::new("load, base and index", |a| {
                a.mov(eax, dword_ptr(rbx + rcx * 4 + 8))?;
                a.xor(ecx, ecx)
            }),
            Case::new("load, base and index", |a| {
                a.mov(eax, dword_ptr(rbx + rcx * 4 + 8))?;
                a.xor(ecx, ecx)
            })
            .predicting(),
            Case::new("load, index known first", |a| {
                a.lea(rbx, ptr(rbx + 1))?;
                a.mov(al, byte_ptr(rbx + rcx))?;
                a.xor(ecx, ecx)
            })
            .predicting(),
            Case::new("exchange, base and index", |a| {
                a.xchg(qword_ptr(rbx + rcx), rcx)?;
                a.xor(ecx, ecx)
            })
            .predicting(),
            Case::new("prefetches", |a| {
                a.prefetcht0(byte_ptr(rbx + 64))?;
                a.prefetchw(byte_ptr(rbx + rcx * 8))?;
                a.xor(ecx, ecx)
            }),
            Case::new("load, absolute", |a| {
                a.mov(rax, qword_ptr(0x40_3000))?;
                a.xor(ecx, ecx)
            }),
            Case::new("load, FS segment", |a| {
                a.mov(rax, qword_ptr(0x28).fs())?;
                a.xor(ecx, ecx)
            }),
            Case::new("load, a register that is in memory", |a| {
                a.mov(r8, qword_ptr(r9))?;
                a.xor(ecx, ecx)
            }),
            Case::new("load, flags needed behind it", |a| {
                a.mov(rax, qword_ptr(rbx))
            }),
            Case::new("load of a byte, extended", |a| {
                a.movzx(eax, byte_ptr(rbx))?;
                a.xor(ecx, ecx)
            }),
            Case::new("store", |a| {
                a.mov(qword_ptr(rbx + 8), rax)?;
                a.xor(ecx, ecx)
            })
            .copies(1),
            Case::new("store", |a| {
                a.mov(qword_ptr(rbx + 8), rax)?;
                a.xor(ecx, ecx)
            }),
            Case::new("store", |a| {
                a.mov(qword_ptr(rbx + 8), rax)?;
                a.xor(ecx, ecx)
            })
            .copies(3),
            Case::new("store of a high byte", |a| a.mov(byte_ptr(rdi + 1), dh)),
            Case::new("store of a high byte", |a| a.mov(byte_ptr(rdx + 1), dh)),
            Case::new("a high byte and memory", |a| {
                a.mov(ah, byte_ptr(rsi + rdi * 2))?;
                a.add(byte_ptr(rsi + 8), ch)
            }),
            Case::new("store of a constant", |a| {
                a.mov(dword_ptr(rbx), 7)?;
                a.xor(ecx, ecx)
            }),
            Case::new("read-modify-write", |a| a.add(qword_ptr(rbx + 8), rax)).copies(1),
            Case::new("read-modify-write", |a| a.add(qword_ptr(rbx + 8), rax)),
            Case::new("locked read-modify-write", |a| {
                a.lock().xadd(qword_ptr(rbx), rax)
            }),
            Case::new("operation on memory", |a| a.add(rax, qword_ptr(rbx))),
        ],
    ),
    (
        "stack",
        &[
            Case::new("push", |a| {
                a.push(rbx)?;
                a.xor(ecx, ecx)
            })
            .copies(1),
            Case::new("push", |a| {
                a.push(rbx)?;
                a.xor(ecx, ecx)
            }),
            Case::new("pop", |a| {
                a.pop(rbx)?;
                a.xor(ecx, ecx)
            }),
            Case::new("enter", |a| {
                a.enter(24, 0)?;
                a.xor(eax, eax)
            }),
            Case::new("leave", |a| {
                a.leave()?;
                a.xor(ecx, ecx)
            }),
            Case::new("prologue", prologue),
            Case::new("epilogue", epilogue),
        ],
    ),
    (
        "control",
        &[
            Case::new("compare and branch", |a| {
                a.cmp(rax, rbx)?;
                a.jl(super::RIP + 0x100)
            })
            .entries(),
            Case::new("compare and branch", |a| {
                a.cmp(rax, rbx)?;
                a.jl(super::RIP + 0x100)
            })
            .counted(),
            Case::new("a loop that counts", |a| {
                let mut head = a.create_label();
                a.set_label(&mut head)?;
                a.add(rax, rdx)?;
                a.loop_(head)
            }),
            Case::new("compare with memory and branch", |a| {
                a.cmp(dword_ptr(rbx + 4), 0)?;
                a.jne(super::RIP + 0x100)
            }),
            Case::new("entries, flags needed", |a| {
                a.lea(rax, qword_ptr(rax + 1))?;
                a.jne(super::RIP + 0x100)
            })
            .entries(),
            Case::new("jump", |a| a.jmp(super::RIP + 0x100)),
            Case::new("call", |a| {
                a.xor(eax, eax)?;
                a.call(super::RIP + 0x100)
            }),
            Case::new("call", |a| {
                a.xor(eax, eax)?;
                a.call(super::RIP + 0x100)
            })
            .without_returns(),
            Case::new("return", |a| {
                a.xor(eax, eax)?;
                a.ret()
            }),
            Case::new("return", |a| {
                a.xor(eax, eax)?;
                a.ret()
            })
            .without_returns(),
            Case::new("indirect jump, register", |a| {
                a.xor(ecx, ecx)?;
                a.jmp(rax)
            }),
            Case::new("indirect jump, register", |a| {
                a.xor(ecx, ecx)?;
                a.jmp(rax)
            })
            .without_bmi2(),
            Case::new("indirect jump, memory", |a| {
                a.xor(ecx, ecx)?;
                a.jmp(qword_ptr(rax + rcx * 8))
            }),
            Case::new("indirect call, register", |a| {
                a.xor(ecx, ecx)?;
                a.call(rax)
            }),
            // The first round of each goes on in line with the second.
            Case::new("followed indirect jump, register", |a| {
                a.xor(ecx, ecx)?;
                a.jmp(rax)
            })
            .rounds(2),
            Case::new("followed indirect jump, register in memory", |a| {
                a.sub(ecx, edx)?;
                a.jmp(r9)
            })
            .rounds(2),
            Case::new("followed indirect jump, memory", |a| {
                a.xor(ecx, ecx)?;
                a.jmp(qword_ptr(rax + rcx * 8))
            })
            .rounds(2),
            Case::new("followed indirect call, register", |a| {
                a.xor(ecx, ecx)?;
                a.call(rax)
            })
            .rounds(2),
            Case::new("followed indirect call, memory", |a| {
                a.xor(ecx, ecx)?;
                a.call(qword_ptr(rax + 8))
            })
            .rounds(2),
            Case::new("an instruction for the interpreter", |a| a.cpuid()),
        ],
    ),
    (
        "blocks",
        &[
            Case::new("a structure's fields", structure),
            Case::new("a structure's fields", structure).without_groups(),
            Case::new("elements that are near each other", neighbours),
            Case::new("a copying loop", copy_loop),
            Case::new("a copying loop as a trace of two rounds", copy_loop).rounds(2),
            Case::new("a copying loop as a trace of two rounds", copy_loop)
                .rounds(2)
                .without_groups(),
            Case::new("a copying loop as a trace of two rounds", copy_loop)
                .rounds(2)
                .counted(),
            Case::new("registers that stay in memory", sum_of_products),
            Case::new("operations on registers that stay in memory", |a| {
                a.mov(r8, rax)?;
                a.add(r9, 5)?;
                a.xor(rbx, r10)?;
                a.imul_2(rcx, r11)?;
                a.shl(r10, 3)?;
                a.mov(r8d, 7)?;
                a.add(r9d, ebx)?;
                a.xor(r11d, r11d)?;
                a.cmp(r8, r9)
            }),
            Case::new("registers that change places", sum_of_products)
                .allotting()
                .entries(),
            Case::new("registers that change places", sum_of_products)
                .allotting()
                .counted(),
            Case::new("registers that change places in straight code", rotations).allotting(),
            Case::new("a running total", running_total),
            Case::new("a running total", running_total).allotting(),
            Case::new("a running total", running_total)
                .allotting()
                .predicting(),
        ],
    ),
    (
        "vector",
        &[
            Case::new("scalar arithmetic", |a| {
                a.mulsd(xmm0, xmm1)?;
                a.xor(ecx, ecx)
            }),
            Case::new("load and add", |a| {
                a.addpd(xmm0, xmmword_ptr(rbx))?;
                a.xor(ecx, ecx)
            }),
            Case::new("256 bits stored", |a| {
                a.vmovupd(ymmword_ptr(rbx), ymm3)?;
                a.xor(ecx, ecx)
            }),
            Case::new("x87 load and add", |a| {
                a.fld(qword_ptr(rbx))?;
                a.faddp(st1, st0)?;
                a.xor(ecx, ecx)
            }),
            Case::new("x87 store", |a| {
                a.fstp(qword_ptr(rbx))?;
                a.xor(ecx, ecx)
            }),
            Case::new("x87 load, add and store", |a| {
                a.fld(qword_ptr(rbx))?;
                a.faddp(st1, st0)?;
                a.fstp(qword_ptr(rbx))?;
                a.xor(ecx, ecx)
            })
            .unmasked(),
        ],
    ),
    (
        "system",
        &[
            Case::new("the time", |a| {
                a.rdtsc()?;
                a.xor(ecx, ecx)
            }),
            Case::new("a system call", |a| a.syscall()),
            Case::new("a software interrupt", |a| a.int(0x80)),
            Case::new("the return from one", |a| a.sysretq()).kernel(),
            Case::new("the return from an interrupt", |a| a.iretq()).kernel(),
            Case::new("the rights by protection key", |a| {
                a.rdpkru()?;
                a.xor(ebx, ebx)
            }),
            Case::new("the extensions that are on", |a| {
                a.xgetbv()?;
                a.xor(ebx, ebx)
            }),
            Case::new("the processor's number", |a| a.rdpid(r9)),
            Case::new("user pages opened", |a| a.stac()).kernel(),
            Case::new("the flags from the stack", |a| {
                a.popfq()?;
                a.xor(eax, eax)
            })
            .kernel(),
            Case::new("a program's flags from the stack", |a| {
                a.popfq()?;
                a.xor(eax, eax)
            }),
            Case::new("a control register", |a| a.mov(r12, cr2)).kernel(),
            Case::new("selectors of a program", |a| {
                a.push(gs)?;
                a.mov(es, edx)?;
                a.pop(fs)?;
                a.xor(eax, eax)
            }),
            Case::new("a lock to be elided", |a| {
                a.xacquire().lock().add(dword_ptr(rbx), 1)
            }),
            Case::new("a cache line", |a| {
                a.clflush(byte_ptr(rbx + 4))?;
                a.xor(eax, eax)
            }),
            Case::new("rounding and exceptions of vectors", |a| {
                a.ldmxcsr(dword_ptr(rbx + 4))?;
                a.xor(eax, eax)
            }),
        ],
    ),
    ("unusual", super::unusual::CASES),
    (
        "narrow",
        &[
            Case::new("a variable of this processor", |a| {
                a.mov(eax, dword_ptr(0x1234).fs())?;
                a.add(dword_ptr(ebx + ecx * 4).fs(), eax)
            })
            .narrow(),
            Case::new("an address of 16 bits", |a| {
                a.mov(eax, dword_ptr(bx + si + 8))
            })
            .narrow(),
            Case::new("all registers", |a| {
                a.pushad()?;
                a.popad()
            })
            .narrow(),
            Case::new("selectors", |a| {
                a.push(fs)?;
                a.mov(ds, edx)?;
                a.pop(fs)
            })
            .narrow(),
            Case::new("to memory from the stack", |a| a.pop(dword_ptr(edi + 4))).narrow(),
            Case::new("eight bytes compared", |a| a.cmpxchg8b(qword_ptr(edi))).narrow(),
            Case::new("many elements", |a| a.rep().movsd()).narrow(),
            Case::new("digits", |a| {
                a.das()?;
                a.aaa()?;
                a.aam(10)?;
                a.aad(10)
            })
            .narrow(),
            Case::new("bounds", |a| {
                a.bound(ecx, dword_ptr(ebx + 8))?;
                a.xor(ecx, ecx)
            })
            .narrow(),
        ],
    ),
];
