//! The host processor as the oracle of state saving, masked moves and gathers.

use std::arch::asm;

/// An XSAVE area in the standard format, which is how both sides exchange their state.
#[derive(Clone, PartialEq)]
#[repr(C, align(64))]
pub struct Area(pub [u8; 832]);

impl Area {
    pub fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }

    pub fn set_word(&mut self, at: usize, value: u64) {
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
}

/// What surrounds the instruction under test.
pub struct Experiment {
    pub before: Area,
    pub memory: Area,
    /// RAX, which with RDX = 0 also selects components.
    pub components: u64,
}

/// The state and the memory afterwards.
pub struct Outcome {
    pub after: Area,
    pub memory: Area,
}

macro_rules! instructions {
    ($($name:ident $text:literal,)*) => {
        /// Name, encoding as the assembler took it, and how to run it.
        pub const ALL: &[(&str, fn() -> &'static [u8], fn(Experiment) -> Outcome)] = &[
            $((stringify!($name), $name::bytes, $name::run),)*
        ];
        $(mod $name {
            use super::*;

            pub fn bytes() -> &'static [u8] {
                let (start, end): (usize, usize);
                // SAFETY: takes the addresses of two labels; the code between them is skipped.
                unsafe {
                    asm!(
                        "lea {0}, [rip + 2f]",
                        "lea {1}, [rip + 3f]",
                        "jmp 3f",
                        "2:",
                        $text,
                        "3:",
                        out(reg) start,
                        out(reg) end,
                    );
                    std::slice::from_raw_parts(start as *const u8, end - start)
                }
            }

            pub fn run(experiment: Experiment) -> Outcome {
                let Experiment { before, mut memory, components } = experiment;
                let mut after = Area([0; 832]);
                let mut mxcsr = 0u32;
                // SAFETY: the areas are aligned and long enough; every register that is
                // loaded is declared as clobbered, and MXCSR and the x87 are put back.
                unsafe {
                    asm!(
                        "stmxcsr [{mxcsr}]",
                        "xor edx, edx",
                        "push rax",
                        "mov eax, 7",
                        "xrstor64 [r8]",
                        "mov rax, [rsp]",
                        $text,
                        "mov eax, 7",
                        "xor edx, edx",
                        "xsave64 [r9]",
                        "pop rax",
                        "fninit",
                        "ldmxcsr [{mxcsr}]",
                        mxcsr = in(reg) &raw mut mxcsr,
                        inout("rax") components => _,
                        out("rdx") _,
                        in("r8") before.0.as_ptr(),
                        in("r9") after.0.as_mut_ptr(),
                        in("rdi") memory.0.as_mut_ptr(),
                        clobber_abi("C"),
                    );
                }
                Outcome { after, memory }
            }
        })*
    };
}

instructions! {
    fxsave "fxsave [rdi]",
    fxsave64 "fxsave64 [rdi]",
    fxrstor64 "fxrstor64 [rdi]",
    xsave64 "xsave64 [rdi]",
    xsaveopt64 "xsaveopt64 [rdi]",
    xsavec64 "xsavec64 [rdi]",
    xrstor "xrstor [rdi]",
    xrstor64 "xrstor64 [rdi]",
    fnstenv "fnstenv [rdi]",
    fnstenv16 ".byte 0x66, 0xd9, 0x37",
    fnsave "fnsave [rdi]",
    fnsave16 ".byte 0x66, 0xdd, 0x37",
    fldenv "fldenv [rdi]",
    fldenv16 ".byte 0x66, 0xd9, 0x27",
    frstor "frstor [rdi]",
    frstor16 ".byte 0x66, 0xdd, 0x27",
    maskmovq "maskmovq mm1, mm2",
    maskmovdqu "maskmovdqu xmm1, xmm2",
    vmaskmovdqu "vmaskmovdqu xmm11, xmm12",
    load_ps "vmaskmovps ymm1, ymm2, [rdi + 3]",
    load_pd "vmaskmovpd xmm9, xmm12, [rdi]",
    load_d "vpmaskmovd xmm1, xmm2, [rdi]",
    load_q "vpmaskmovq ymm11, ymm2, [rdi + 8]",
    store_ps "vmaskmovps [rdi], ymm2, ymm3",
    store_pd "vmaskmovpd [rdi + 1], ymm12, ymm13",
    store_d "vpmaskmovd [rdi], ymm2, ymm13",
    store_q "vpmaskmovq [rdi], xmm2, xmm3",
    gather_dps "vgatherdps ymm1, [rdi + ymm4*4 + 256], ymm2",
    gather_dpd "vgatherdpd ymm1, [rdi + xmm4*8 + 256], ymm2",
    gather_qps "vgatherqps xmm1, [rdi + ymm14*2 + 256], xmm2",
    gather_qps_narrow "vgatherqps xmm1, [rdi + xmm14*2 + 256], xmm2",
    gather_qpd "vgatherqpd xmm1, [rdi + xmm14 + 256], xmm2",
    gather_dd "vpgatherdd xmm1, [rdi + xmm4 + 256], xmm12",
    gather_dq "vpgatherdq xmm1, [rdi + xmm4 + 256], xmm2",
    gather_qd "vpgatherqd xmm11, [rdi + ymm14*4 + 256], xmm2",
    gather_qq "vpgatherqq ymm11, [rdi + ymm14*4 + 256], ymm2",
    move_scalar "movsd xmm1, xmm2",
    load_scalar "movsd xmm1, [rdi]",
    store_scalar "movsd [rdi], xmm1",
    compare_scalar "cmpsd xmm1, [rdi], 2",
    load_mxcsr "stmxcsr [rdi]",
    store_mxcsr "vstmxcsr [rdi + 4]",
}
