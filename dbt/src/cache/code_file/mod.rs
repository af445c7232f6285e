//! Translations that outlive the process: what was made of code in one run is read back where a later one comes to
//! the same bytes in the same mode (as in "Persistent Code Caching", Reddi et al., CGO 2007). Blocks are kept with
//! the guest's bytes, which are compared whenever one is read back: a guest can neither be given another
//! program's code nor leave any for it.
//!
//! A file belongs to one build of this program, one kind of host processor, and one set of options; its name says which.
//! It is a row of segments: each run that has something new adds one ([`segment`]), and what is in the file already
//! is never written again, except for the generation in which each record was last of use. So others may read while one
//! adds. Where too much has been replaced, or there would be too much, what was of use last is written to another file,
//! which takes the place of the first ([`writing`]). Each record, each index and each header has a checksum
//! (CRC-32): what is damaged is translated anew.

mod record;
mod segment;
#[cfg(test)]
mod tests;
mod writing;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::num::NonZeroUsize;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hashbrown::HashTable;
use lru::LruCache;
use mmu::PAGE_SIZE;

pub use record::{Bytes, JumpCaches, Record, Span, spans_of};
use segment::{PIECE, PREFIX, Place, Segment};

use super::block::{Key, Translation};
use crate::guest::CodeSegment;

/// Bytes of a file at the most.
const LONGEST: u32 = 256 << 20;
/// Pieces in memory at the most: 16 MiB.
const PIECES: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// The code at an entry that a record is found by, in bytes.
pub const START: usize = 16;
/// What such files are called.
const EXTENSION: &str = "code";
/// Fibonacci hashing.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Whether blocks of a key can be kept: code in segments of its own is that of one run.
pub fn keeps(key: &Key) -> bool {
    key.code == CodeSegment::FLAT && !key.mode.segmented()
}

/// The word by which a block is found, wherever its page is. `start`: the code at its entry, as much as is on its
/// page up to [`START`].
pub fn word(key: &Key, start: &[u8]) -> u32 {
    let place = key.rip % PAGE_SIZE;
    let kind = u64::from(key.mode.0) << 1 | u64::from(key.grouped);
    let words = start.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    let all = [place, kind].into_iter().chain(words);
    let hash = all.fold(0, |hash: u64, word| {
        (hash ^ word).wrapping_mul(FACTOR).rotate_left(29)
    });
    hash as u32
}

/// How much went into a translation: one that more went into takes the place of another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u32)]
pub enum Rank {
    /// Nothing was known of the code.
    First,
    /// It counts its entries: it was found running.
    Counting,
    /// It is a trace, or the best that can be made of a loop.
    Hot,
}

/// What is to be written of a block.
pub struct Kept {
    /// What it is found by.
    pub word: u32,
    /// How much went into it.
    pub rank: Rank,
    /// Its record.
    pub record: Vec<u8>,
}

/// A record that is there.
#[derive(Clone, Copy)]
struct Known {
    place: Place,
    /// Which of all records in the file it is.
    number: u32,
}

/// A row of records that were added at one time.
struct Row {
    /// The number of the first.
    first: usize,
    /// Where in the file their generations are.
    generations: u32,
}

/// The file of a machine's translations.
pub struct CodeFile {
    path: PathBuf,
    fingerprint: u64,
    file: Option<File>,
    /// Where its segments end.
    end: u32,
    /// Pieces that were read last.
    pieces: LruCache<u32, Box<[u8]>>,
    index: HashTable<Known>,
    rows: Vec<Row>,
    /// In which run each record was last of use; the last run has the highest number.
    generations: Vec<u16>,
    /// Words of what was read back in this one.
    used: Vec<u32>,
    /// [`LONGEST`].
    longest: u32,
}

impl CodeFile {
    /// The file in a directory that has this fingerprint. What cannot be read is as good as empty, and a warning
    /// says why.
    pub fn open(directory: &Path, fingerprint: u64) -> CodeFile {
        let mut kept = CodeFile {
            path: directory.join(format!("{fingerprint:016x}.{EXTENSION}")),
            fingerprint,
            file: None,
            end: 0,
            pieces: LruCache::new(PIECES),
            index: HashTable::new(),
            rows: Vec::new(),
            generations: Vec::new(),
            used: Vec::new(),
            longest: LONGEST,
        };
        let read = open_own(OpenOptions::new().read(true), &kept.path);
        match read.and_then(|file| kept.read_from(file)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %kept.path.display(), %error, "kept translations are not used");
            }
        }
        kept
    }

    /// Takes in what a file has, up to what is damaged or has been cut.
    fn read_from(&mut self, file: File) -> io::Result<()> {
        self.forget_all();
        let len = file.metadata()?.len().min(LONGEST.into()) as u32;
        let mut read = Ok(());
        while self.end < len {
            match Segment::read(&file, self.end, len, self.fingerprint) {
                Ok(Some(segment)) => self.take_in(segment),
                Ok(None) => break,
                Err(error) => {
                    read = Err(error);
                    break;
                }
            }
        }
        self.file = Some(file);
        read
    }

    fn forget_all(&mut self) {
        self.file = None;
        self.end = 0;
        self.pieces.clear();
        self.index.clear();
        self.rows.clear();
        self.generations.clear();
    }

    /// Takes in the segment behind those that are known.
    fn take_in(&mut self, segment: Segment) {
        let first = self.generations.len();
        self.index.reserve(segment.places.len(), Known::hash);
        for (number, place) in (first as u32..).zip(segment.places) {
            let known = Known { place, number };
            // The later one is better.
            let same = |other: &Known| other.place.word == place.word;
            self.index
                .entry(known.hash(), same, Known::hash)
                .insert(known);
        }
        self.rows.push(Row {
            first,
            generations: segment.generations_at,
        });
        self.generations.extend(segment.generations);
        self.end = segment.end;
    }

    /// Blocks that it has.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Whether it has a block of a word into which as much went.
    pub fn has(&self, word: u32, rank: Rank) -> bool {
        let known = self.known(word);
        known.is_some_and(|known| known.place.rank() >= rank as u32)
    }

    /// The block of a word, as it was kept. One that is damaged is forgotten, so that another may take its place.
    pub fn find(&mut self, word: u32) -> Option<Record<'_, Translation>> {
        let Known { place, .. } = self.known(word)?;
        if self.bytes(place).is_none() {
            self.forget(word);
            return None;
        }
        let (piece, range) = place.within();
        let bytes = self.pieces.peek(&piece)?.get(range)?;
        postcard::from_bytes(&bytes[PREFIX..]).ok()
    }

    /// Notes that the block of a word was of use.
    pub fn note_use(&mut self, word: u32) {
        self.used.push(word);
    }

    fn known(&self, word: u32) -> Option<Known> {
        let found = self
            .index
            .find(hash(word), |known| known.place.word == word);
        found.copied()
    }

    fn forget(&mut self, word: u32) {
        let same = |known: &Known| known.place.word == word;
        if let Ok(entry) = self.index.find_entry(hash(word), same) {
            entry.remove();
        }
    }

    /// A record's bytes, if they are what was written.
    fn bytes(&mut self, place: Place) -> Option<&[u8]> {
        let (piece, range) = place.within();
        let record = self.piece(piece)?.get(range)?;
        segment::whole(record)
    }

    fn piece(&mut self, number: u32) -> Option<&[u8]> {
        let mut file = self.file.as_ref()?;
        let read = || {
            file.seek(SeekFrom::Start(u64::from(number) * u64::from(PIECE)))?;
            let mut bytes = Vec::with_capacity(PIECE as usize);
            file.take(PIECE.into()).read_to_end(&mut bytes)?;
            io::Result::Ok(bytes.into_boxed_slice())
        };
        let piece = self.pieces.try_get_or_insert(number, read);
        piece.ok().map(|piece| &**piece)
    }
}

fn hash(word: u32) -> u64 {
    u64::from(word).wrapping_mul(FACTOR)
}

impl Known {
    fn hash(&self) -> u64 {
        hash(self.place.word)
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Opens a file whose contents are executed: nobody else may have written it.
fn open_own(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.custom_flags(libc::O_NOFOLLOW).open(path)?;
    let about = file.metadata()?;
    // SAFETY: a system call without arguments, which cannot fail.
    let own = unsafe { libc::geteuid() };
    if !about.is_file() || about.uid() != own || about.mode() & 0o022 != 0 {
        return Err(broken("it is not a file that its owner alone may write"));
    }
    Ok(file)
}
