//! What one run has added to a file. Little-endian: a [`Header`]; the index, a [`Place`] for each record;
//! for each record the run in which it was last of use, which is the only thing that is written again; the records, each
//! behind its checksum. The header comes into being last: up to then there is no segment.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::{LONGEST, Rank, broken};

/// No record goes on beyond a multiple of this in the file, so that it is read at one time.
pub const PIECE: u32 = 256 << 10;
/// In front of a record: its checksum.
pub const PREFIX: usize = 4;
/// What a segment begins with.
const MAGIC: u64 = u64::from_le_bytes(*b"kmvcode2");
/// Bytes of a header.
pub const HEADER: u32 = 32;
/// Bytes of a place in the index.
const ENTRY: u32 = 12;
/// Bytes of a generation.
const GENERATION: u32 = 2;

/// The lowest bit of a rank in a place.
const RANK: u32 = LONGEST.trailing_zeros() + 1;

/// Where a record is in the file, and the word that it is found by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub word: u32,
    /// The record's offset, and its rank from bit [`RANK`] on.
    at: u32,
    /// Its bytes, with [`PREFIX`].
    pub len: u32,
}

impl Place {
    /// One of which it is not known yet where it is.
    pub fn new(word: u32, rank: Rank) -> Place {
        let at = (rank as u32) << RANK;
        Place { word, at, len: 0 }
    }

    pub fn offset(&self) -> u32 {
        self.at & ((1 << RANK) - 1)
    }

    pub fn rank(&self) -> u32 {
        self.at >> RANK
    }

    /// The piece that it is in, and where in that.
    pub fn within(&self) -> (u32, Range<usize>) {
        let start = (self.offset() % PIECE) as usize;
        (self.offset() / PIECE, start..start + self.len as usize)
    }
}

/// A record's bytes without their checksum, if that is right.
pub fn whole(record: &[u8]) -> Option<&[u8]> {
    let (checksum, bytes) = record.split_first_chunk::<PREFIX>()?;
    (crc32fast::hash(bytes) == u32::from_le_bytes(*checksum)).then_some(bytes)
}

/// Bytes that a segment takes, at the most, without what its records leave free in front of the end of a piece.
pub fn room(records: usize, bytes: usize) -> usize {
    records * (ENTRY + GENERATION) as usize + HEADER as usize + bytes
}

/// What a segment says of itself.
struct Header {
    fingerprint: u64,
    /// Its bytes.
    len: u32,
    records: u32,
    /// The index's checksum.
    checksum: u32,
}

impl Header {
    fn to_bytes(&self) -> [u8; HEADER as usize] {
        let mut bytes = [0; HEADER as usize];
        bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.fingerprint.to_le_bytes());
        let words = [self.len, self.records, self.checksum];
        for (at, word) in (16..).step_by(4).zip(words) {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        let own = crc32fast::hash(&bytes[..HEADER as usize - 4]);
        bytes[HEADER as usize - 4..].copy_from_slice(&own.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; HEADER as usize]) -> Option<Header> {
        let header = Header {
            fingerprint: u64::from(word_at(bytes, 8)) | u64::from(word_at(bytes, 12)) << 32,
            len: word_at(bytes, 16),
            records: word_at(bytes, 20),
            checksum: word_at(bytes, 24),
        };
        let fits = room(header.records as usize, 0) <= header.len as usize;
        (fits && header.to_bytes() == *bytes).then_some(header)
    }
}

fn word_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

/// A segment, without its records.
pub struct Segment {
    pub places: Vec<Place>,
    /// In which run each was last of use.
    pub generations: Vec<u16>,
    /// Where in the file that is.
    pub generations_at: u32,
    /// Where the next segment begins.
    pub end: u32,
}

impl Segment {
    /// The segment that begins at an offset of a file of so many bytes. `None`: nobody has completed one there. One
    /// whose index is damaged has no records.
    pub fn read(file: &File, at: u32, len: u32, fingerprint: u64) -> io::Result<Option<Segment>> {
        let mut header = [0; HEADER as usize];
        if len - at < HEADER {
            return Ok(None);
        }
        file.read_exact_at(&mut header, at.into())?;
        if header == [0; HEADER as usize] {
            return Ok(None);
        }
        let header = Header::from_bytes(&header).ok_or_else(|| broken("a header is damaged"))?;
        if header.fingerprint != fingerprint {
            return Err(broken("it is another machine's"));
        }
        if header.len > len - at {
            return Err(broken("it has been cut"));
        }
        let (index_at, index_len) = (at + HEADER, header.records * ENTRY);
        let mut bytes = vec![0; (header.records * (ENTRY + GENERATION)) as usize];
        file.read_exact_at(&mut bytes, index_at.into())?;
        let (mut index, mut generations) = bytes.split_at(index_len as usize);
        if crc32fast::hash(index) != header.checksum {
            tracing::warn!("an index of kept translations is damaged");
            (index, generations) = (&[], &[]);
        }
        let places = index.chunks_exact(ENTRY as usize).map(|entry| {
            let [word, at, len] = [0, 4, 8].map(|at| word_at(entry, at));
            Place { word, at, len }
        });
        let generations = generations.chunks_exact(GENERATION as usize);
        Ok(Some(Segment {
            places: places.collect(),
            generations: generations
                .map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
                .collect(),
            generations_at: index_at + index_len,
            end: at + header.len,
        }))
    }
}

/// Writes generations where they are.
pub fn write_generations(file: &File, at: u32, generations: &[u16]) -> io::Result<()> {
    let bytes: Vec<u8> = generations
        .iter()
        .flat_map(|run| run.to_le_bytes())
        .collect();
    file.write_all_at(&bytes, at.into())
}

/// A segment that is being written.
pub struct Writer<'a> {
    file: &'a File,
    out: BufWriter<&'a File>,
    start: u32,
    end: u32,
    places: Vec<Place>,
    generations: Vec<u16>,
    /// Bytes of the file at the most.
    longest: u32,
}

impl<'a> Writer<'a> {
    /// One that begins at an offset, for so many records at the most.
    pub fn new(mut file: &'a File, start: u32, records: usize, longest: u32) -> io::Result<Self> {
        let end = start + room(records, 0) as u32;
        file.seek(SeekFrom::Start(end.into()))?;
        Ok(Writer {
            file,
            out: BufWriter::with_capacity(PIECE as usize, file),
            start,
            end,
            places: Vec::with_capacity(records),
            generations: Vec::with_capacity(records),
            longest,
        })
    }

    /// A record, if there is room. `place`: its word and its rank.
    pub fn add(&mut self, place: Place, generation: u16, record: &[u8]) -> io::Result<()> {
        let len = PREFIX + record.len();
        if len > PIECE as usize || self.end as usize + len + PIECE as usize > self.longest as usize
        {
            return Ok(());
        }
        let len = len as u32;
        let next = self.end.next_multiple_of(PIECE);
        if self.end + len > next {
            let free = io::repeat(0).take((next - self.end).into());
            self.end += io::copy(&mut { free }, &mut self.out)? as u32;
        }
        let at = place.rank() << RANK | self.end;
        self.places.push(Place { at, len, ..place });
        self.generations.push(generation);
        self.out.write_all(&crc32fast::hash(record).to_le_bytes())?;
        self.out.write_all(record)?;
        self.end += len;
        Ok(())
    }

    /// Completes it.
    pub fn finish(mut self, fingerprint: u64) -> io::Result<Segment> {
        self.out.flush()?;
        let words = self.places.iter();
        let words = words.flat_map(|place| [place.word, place.at, place.len]);
        let index: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        let index_at = self.start + HEADER;
        let generations_at = index_at + index.len() as u32;
        self.file.write_all_at(&index, index_at.into())?;
        write_generations(self.file, generations_at, &self.generations)?;
        let header = Header {
            fingerprint,
            len: self.end - self.start,
            records: self.places.len() as u32,
            checksum: crc32fast::hash(&index),
        };
        self.file
            .write_all_at(&header.to_bytes(), self.start.into())?;
        Ok(Segment {
            places: self.places,
            generations: self.generations,
            generations_at,
            end: self.end,
        })
    }
}
