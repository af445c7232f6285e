//! The files of captured executions: chunks of a tag, a length and a payload, all little-endian,
//! in gzip.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;

/// The names of the registers, in the order of [`State::registers`].
pub const NAMES: [&str; 14] = [
    "ax", "bx", "cx", "dx", "cs", "ss", "ds", "es", "sp", "bp", "si", "di", "ip", "flags",
];

/// Registers and bytes of memory.
#[derive(Clone, Default)]
pub struct State {
    /// In the order of [`NAMES`].
    pub registers: [u16; 14],
    /// Bytes by physical address.
    pub memory: BTreeMap<u32, u8>,
}

/// One execution of one instruction and of the HLT behind it.
pub struct Case {
    /// Assembly text, as the set has it.
    pub name: String,
    /// The instruction, and the HLT that follows where it does not jump.
    pub bytes: Vec<u8>,
    /// Before.
    pub before: State,
    /// After: everything in `before`, with what has changed.
    pub after: State,
    /// The number of the exception or interrupt, and where the bus was when the flags were pushed.
    pub exception: Option<(u8, u32)>,
}

struct Chunks<'a>(&'a [u8]);

impl<'a> Iterator for Chunks<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (tag, rest) = self.0.split_at_checked(4)?;
        let (len, rest) = rest.split_at_checked(4)?;
        let (payload, rest) = rest.split_at_checked(word(len, 4) as usize)?;
        self.0 = rest;
        Some((tag, payload))
    }
}

fn word(bytes: &[u8], size: usize) -> u32 {
    bytes[..size]
        .iter()
        .rev()
        .fold(0, |word, &byte| word << 8 | u32::from(byte))
}

fn state(payload: &[u8], mut state: State) -> State {
    for (tag, data) in Chunks(payload) {
        match tag {
            b"REGS" => {
                let mut values = data[2..].chunks_exact(2);
                for (index, register) in state.registers.iter_mut().enumerate() {
                    if word(data, 2) >> index & 1 != 0 {
                        *register = word(values.next().expect("a register"), 2) as u16;
                    }
                }
            }
            b"RAM " => {
                for entry in data[4..].chunks_exact(5) {
                    state.memory.insert(word(entry, 4), entry[4]);
                }
            }
            _ => {}
        }
    }
    state
}

fn case(payload: &[u8]) -> Case {
    let part = |wanted: &[u8]| {
        Chunks(&payload[4..])
            .find(|(tag, _)| *tag == wanted)
            .map(|(_, data)| data)
    };
    let counted = |wanted| {
        let data = part(wanted).expect("a chunk that each case has");
        &data[4..4 + word(data, 4) as usize]
    };
    let before = state(part(b"INIT").expect("INIT"), State::default());
    let after = state(part(b"FINA").expect("FINA"), before.clone());
    Case {
        name: String::from_utf8_lossy(counted(b"NAME")).into_owned(),
        bytes: counted(b"BYTS").to_vec(),
        before,
        after,
        exception: part(b"EXCP").map(|data| (data[0], word(&data[1..], 4))),
    }
}

/// All cases of a file.
pub fn read(path: &Path) -> Vec<Case> {
    let file = std::fs::File::open(path).expect("a file of cases");
    let mut bytes = Vec::new();
    GzDecoder::new(file)
        .read_to_end(&mut bytes)
        .expect("a gzip file");
    assert_eq!(&bytes[..4], b"MOO ", "{}", path.display());
    let cases: Vec<Case> = Chunks(&bytes)
        .filter(|(tag, _)| *tag == b"TEST")
        .map(|(_, payload)| case(payload))
        .collect();
    let announced = word(&bytes[8 + 4..], 4) as usize;
    assert_eq!(cases.len(), announced, "{}", path.display());
    cases
}
