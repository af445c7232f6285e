//! The instructions of a translation: decoded when it was made or, if it comes from a file, when somebody asks for them.

use std::sync::OnceLock;

use iced_x86::Instruction;

use crate::decode::{self, Manner};

/// Instructions in a row: RIP of the first, and their bytes.
pub type Run = (u64, Box<[u8]>);

/// Instructions, or what they can be decoded from.
#[derive(Default)]
pub struct Insns {
    decoded: OnceLock<Box<[Instruction]>>,
    encoded: Option<(Manner, Box<[Run]>)>,
}

impl From<&[Instruction]> for Insns {
    fn from(insns: &[Instruction]) -> Insns {
        Insns {
            decoded: OnceLock::from(Box::from(insns)),
            encoded: None,
        }
    }
}

impl Insns {
    /// Instructions that were decoded before, in the same manner.
    pub fn encoded(manner: Manner, runs: Box<[Run]>) -> Insns {
        Insns {
            decoded: OnceLock::new(),
            encoded: Some((manner, runs)),
        }
    }

    /// All of them, in order.
    pub fn all(&self) -> &[Instruction] {
        self.decoded.get_or_init(|| {
            let mut insns = Vec::new();
            if let Some((manner, runs)) = &self.encoded {
                for (rip, bytes) in runs {
                    decode::again(*manner, bytes, *rip, &mut insns);
                }
            }
            insns.into()
        })
    }
}
