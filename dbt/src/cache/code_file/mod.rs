//! Translations that outlive the process: what was made of code in one run is read back where a later one comes to
//! the same bytes in the same mode (as in "Persistent Code Caching", Reddi et al., CGO 2007). Blocks are kept with
//! the guest's bytes, which are compared whenever one is read back: a guest can neither be given another
//! program's code nor leave any for it.
//!
//! A file belongs to one build of this program, one kind of host processor, and one set of options; its name says which.
//! It is written as a whole beside its place and then renamed, so that several machines can use it. Each
//! record, and the index, has a checksum (CRC-32): what is damaged is translated anew.
//!
//! Layout, little-endian: [`Header`]; pieces of [`PIECE`] bytes, in which records follow each other as length, checksum
//! and bytes, none beyond the end of its piece; the index, a [`Place`] for each record.

mod record;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hashbrown::HashTable;
use lru::LruCache;
use mmu::PAGE_SIZE;

pub use record::{Bytes, JumpCaches, Record, Span, spans_of};

use super::block::{Key, Translation};
use crate::guest::CodeSegment;

/// Records do not go beyond the end of such a piece, and are read with it.
const PIECE: u32 = 256 << 10;
/// Bytes of a file's records at the most. One that would have more begins anew, with what the last run has used.
const LONGEST: u32 = 256 << 20;
/// Pieces in memory at the most: 16 MiB.
const PIECES: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// Files in a directory: those of other builds, hosts and options go, the oldest first.
const FILES: usize = 4;
/// The code at an entry that a record is found by, in bytes.
pub const START: usize = 16;
/// In front of a record: its length and its checksum.
const PREFIX: u32 = 8;
/// What a file begins with.
const MAGIC: u64 = u64::from_le_bytes(*b"kmvcode1");
/// Bytes of the header, which has the first piece to itself otherwise.
const HEADER: usize = 32;
/// Bytes of a place in the index.
const ENTRY: usize = 8;
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

/// Where a record is in the file, and the word that it is found by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    word: u32,
    /// The record's offset, and its rank from bit [`RANK`] on.
    at: u32,
}

/// The lowest bit of a rank in a place.
const RANK: u32 = LONGEST.trailing_zeros() + 1;

impl Place {
    fn new(word: u32, offset: u32, rank: Rank) -> Place {
        let at = offset | (rank as u32) << RANK;
        Place { word, at }
    }

    fn hash(&self) -> u64 {
        u64::from(self.word).wrapping_mul(FACTOR)
    }

    fn offset(&self) -> u32 {
        self.at & ((1 << RANK) - 1)
    }

    fn rank(&self) -> u32 {
        self.at >> RANK
    }
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

/// The file of a machine's translations.
pub struct CodeFile {
    path: PathBuf,
    fingerprint: u64,
    /// What was there at the beginning.
    file: Option<File>,
    /// Bytes of its records, with those that lie in front of them.
    end: u32,
    /// Pieces that were read last.
    pieces: LruCache<u32, Box<[u8]>>,
    index: HashTable<Place>,
    /// What was read back.
    used: Vec<Place>,
    /// [`LONGEST`].
    longest: u32,
}

/// What a file says of itself.
struct Header {
    fingerprint: u64,
    /// Where the index begins; records are in front of it.
    index: u32,
    records: u32,
    /// The index's checksum.
    checksum: u32,
}

impl Header {
    fn to_bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.fingerprint.to_le_bytes());
        let words = [self.index, self.records, self.checksum];
        for (at, word) in (16..).step_by(4).zip(words) {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        let own = crc32fast::hash(&bytes[..HEADER - 4]);
        bytes[HEADER - 4..].copy_from_slice(&own.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; HEADER]) -> Option<Header> {
        let header = Header {
            fingerprint: u64::from(word_at(bytes, 8)) | u64::from(word_at(bytes, 12)) << 32,
            index: word_at(bytes, 16),
            records: word_at(bytes, 20),
            checksum: word_at(bytes, 24),
        };
        let fits = header.index <= LONGEST && header.index.is_multiple_of(PIECE);
        (fits && header.to_bytes() == *bytes).then_some(header)
    }
}

fn word_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl CodeFile {
    /// The file in a directory that has this fingerprint. What cannot be read is as good as empty, and a warning
    /// says why.
    pub fn open(directory: &Path, fingerprint: u64) -> CodeFile {
        let path = directory.join(format!("{fingerprint:016x}.{EXTENSION}"));
        let mut kept = CodeFile {
            path,
            fingerprint,
            file: None,
            end: 0,
            pieces: LruCache::new(PIECES),
            index: HashTable::new(),
            used: Vec::new(),
            longest: LONGEST,
        };
        match kept.read_index() {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %kept.path.display(), %error, "kept translations are not used");
            }
        }
        kept
    }

    fn read_index(&mut self) -> io::Result<()> {
        self.index.clear();
        self.pieces.clear();
        self.used.clear();
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&self.path)?;
        let about = file.metadata()?;
        // SAFETY: a system call without arguments, which cannot fail.
        let own = unsafe { libc::geteuid() };
        // What it has is executed: nobody else may have written it.
        if !about.is_file() || about.uid() != own || about.mode() & 0o022 != 0 {
            return Err(broken("it is not a file that its owner alone may write"));
        }
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0)?;
        let header = Header::from_bytes(&header).ok_or_else(|| broken("its header is damaged"))?;
        if header.fingerprint != self.fingerprint {
            return Err(broken("it is another machine's"));
        }
        let len = u64::from(header.records) * ENTRY as u64;
        if about.len() != u64::from(header.index) + len {
            return Err(broken("it has been cut"));
        }
        let mut index = vec![0; len as usize];
        file.read_exact_at(&mut index, header.index.into())?;
        if crc32fast::hash(&index) != header.checksum {
            return Err(broken("its index is damaged"));
        }
        self.index.reserve(header.records as usize, Place::hash);
        for entry in index.chunks_exact(ENTRY) {
            let [word, at] = [0, 4].map(|at| word_at(entry, at));
            let place = Place { word, at };
            // The later one is better.
            let same = |known: &Place| known.word == word;
            self.index
                .entry(place.hash(), same, Place::hash)
                .insert(place);
        }
        self.end = header.index;
        self.file = Some(file);
        Ok(())
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
        let known = self.place(word);
        known.is_some_and(|known| known.rank() >= rank as u32)
    }

    /// The block of a word, as it was kept.
    pub fn find(&mut self, word: u32) -> Option<Record<'_, Translation>> {
        let place = self.place(word)?;
        let bytes = self.bytes(place)?;
        postcard::from_bytes(bytes).ok()
    }

    /// Notes that the block of a word was of use.
    pub fn note_use(&mut self, word: u32) {
        self.used.extend(self.place(word));
    }

    fn place(&self, word: u32) -> Option<Place> {
        let wanted = Place { word, at: 0 };
        let found = self.index.find(wanted.hash(), |known| known.word == word);
        found.copied()
    }

    /// A record's bytes, if they are what was written.
    fn bytes(&mut self, place: Place) -> Option<&[u8]> {
        let offset = place.offset();
        let piece = self.piece(offset / PIECE)?;
        let record = piece.get((offset % PIECE) as usize..)?;
        let (prefix, rest) = record.split_at_checked(PREFIX as usize)?;
        let bytes = rest.get(..word_at(prefix, 0) as usize)?;
        (crc32fast::hash(bytes) == word_at(prefix, 4)).then_some(bytes)
    }

    fn piece(&mut self, number: u32) -> Option<&[u8]> {
        let file = &self.file;
        let read = || {
            let mut file = file.as_ref().ok_or_else(|| broken("there is none"))?;
            file.seek(SeekFrom::Start(u64::from(number) * u64::from(PIECE)))?;
            let mut bytes = Vec::with_capacity(PIECE as usize);
            file.take(PIECE.into()).read_to_end(&mut bytes)?;
            io::Result::Ok(bytes.into_boxed_slice())
        };
        let piece = self.pieces.try_get_or_insert(number, read);
        piece.ok().map(|piece| &**piece)
    }

    /// Writes the file anew: with what it had, or as much of that as was used if all is too much by now, and with these
    /// blocks.
    ///
    /// # Errors
    ///
    /// The host's, if the directory cannot be made or written. What was there before is there still.
    pub fn write(&mut self, blocks: &[Kept]) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new(".")).to_path_buf();
        std::fs::create_dir_all(&directory)?;
        let mut new = tempfile::NamedTempFile::new_in(&directory)?;
        let mut writer = Writer {
            out: BufWriter::with_capacity(PIECE as usize, new.as_file_mut()),
            end: 0,
            index: Vec::new(),
            longest: self.longest,
        };
        writer.fill(PIECE)?;
        let more: usize = blocks.iter().map(|kept| kept.record.len()).sum();
        let had = self.end as usize;
        if had + more + more / 8 <= self.longest as usize {
            writer.take_over(self, had as u32)?;
        } else {
            for place in std::mem::take(&mut self.used) {
                if let Some(record) = self.bytes(place) {
                    writer.add(place, record)?;
                }
            }
        }
        for kept in blocks {
            writer.add(Place::new(kept.word, 0, kept.rank), &kept.record)?;
        }
        let header = writer.finish(self.fingerprint)?;
        new.as_file().write_all_at(&header.to_bytes(), 0)?;
        new.persist(&self.path).map_err(|failed| failed.error)?;
        self.forget_others(&directory)?;
        self.read_index()
    }

    /// Removes files of this kind that have not been written for longest, if there are many.
    fn forget_others(&self, directory: &Path) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|known| known == EXTENSION) && path != self.path {
                let written = std::fs::metadata(&path).and_then(|about| about.modified());
                // Another machine may have removed it just now.
                files.extend(written.ok().map(|written| (written, path)));
            }
        }
        files.sort();
        let many = files.len().saturating_sub(FILES - 1);
        for (_, path) in files.drain(..many) {
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    }
}

/// A file that is being written.
struct Writer<'a> {
    out: BufWriter<&'a mut File>,
    end: u32,
    index: Vec<Place>,
    longest: u32,
}

impl Writer<'_> {
    /// Zeros up to a place.
    fn fill(&mut self, to: u32) -> io::Result<()> {
        io::copy(
            &mut io::repeat(0).take((to - self.end).into()),
            &mut self.out,
        )?;
        self.end = to;
        Ok(())
    }

    /// All records of a file of so many bytes.
    fn take_over(&mut self, old: &mut CodeFile, len: u32) -> io::Result<()> {
        let Some(file) = &mut old.file else {
            return Ok(());
        };
        file.seek(SeekFrom::Start(self.end.into()))?;
        let rest = len - self.end;
        if io::copy(&mut Read::take(file, rest.into()), &mut self.out)? != rest.into() {
            return Err(broken("the old file has been cut"));
        }
        self.index.extend(old.index.iter());
        self.end = len;
        Ok(())
    }

    /// A record, if there is room. `place`: its word and its rank.
    fn add(&mut self, place: Place, record: &[u8]) -> io::Result<()> {
        let len = PREFIX as usize + record.len();
        if len > PIECE as usize || self.end as usize + len + PIECE as usize > self.longest as usize
        {
            return Ok(());
        }
        let len = len as u32;
        let next = self.end.next_multiple_of(PIECE);
        if self.end + len > next && self.end != next {
            self.fill(next)?;
        }
        let at = place.at & !((1 << RANK) - 1) | self.end;
        self.index.push(Place { at, ..place });
        self.out.write_all(&(record.len() as u32).to_le_bytes())?;
        self.out.write_all(&crc32fast::hash(record).to_le_bytes())?;
        self.out.write_all(record)?;
        self.end += len;
        Ok(())
    }

    /// The index; returns what the file's header is to say.
    fn finish(mut self, fingerprint: u64) -> io::Result<Header> {
        self.fill(self.end.next_multiple_of(PIECE))?;
        let words = self.index.iter().flat_map(|place| [place.word, place.at]);
        let index: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        self.out.write_all(&index)?;
        self.out.flush()?;
        Ok(Header {
            fingerprint,
            index: self.end,
            records: self.index.len() as u32,
            checksum: crc32fast::hash(&index),
        })
    }
}
