//! How a file becomes longer, and shorter again.
//!
//! Who writes has the file locked. A segment is added behind the others; it is there when its header is, so
//! that one that was begun in vain is written over by the next. Readers need no lock. Where the file is to become
//! shorter another one is renamed to it, and those who have the old one open go on reading that.

use std::cmp::Reverse;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rustc_hash::FxHashSet;

use super::segment::{PREFIX, Place, Writer, room, write_generations};
use super::{CodeFile, EXTENSION, Kept, Known, open_own};

/// Files in a directory: those of other builds, hosts and options go, the oldest first.
pub(super) const FILES: usize = 4;
/// Segments of a file at the most.
const SEGMENTS: usize = 256;
/// How often, and after what time, a file is asked for again that another machine writes: that takes less.
const PATIENCE: (u32, Duration) = (100, Duration::from_millis(20));
/// Generations that stay apart when a file is written anew.
const APART: u16 = 1 << 14;

impl CodeFile {
    /// Adds blocks, and notes what was of use. Returns how many there were that another machine has not added by now.
    /// Writes nothing if there are none, and nothing was used that had not been used by the last run.
    ///
    /// # Errors
    ///
    /// The host's, if the directory cannot be made or written. What was there before is there still.
    pub fn write(&mut self, blocks: &[Kept]) -> io::Result<usize> {
        let directory = self.path.parent().unwrap_or(Path::new(".")).to_path_buf();
        if blocks.is_empty() && self.used.is_empty() {
            return Ok(0);
        }
        std::fs::create_dir_all(&directory)?;
        let locked = match self.lock() {
            // Some may not be its own: it is not written to.
            Err(error) if is_not_ours(&error) => {
                self.forget_all();
                None
            }
            locked => Some(locked?),
        };
        let written = self.write_locked(&directory, locked.as_ref(), blocks);
        if let Some(file) = locked {
            file.unlock()?;
        }
        written
    }

    fn write_locked(
        &mut self,
        directory: &Path,
        locked: Option<&File>,
        blocks: &[Kept],
    ) -> io::Result<usize> {
        if let Some(file) = locked {
            // Others may have added some. What is damaged is written over.
            let _ = self.read_from(file.try_clone()?);
        }
        let new = blocks.iter().filter(|kept| !self.has(kept.word, kept.rank));
        let new: Vec<&Kept> = new.collect();
        let run = self.note_generation(new.is_empty())?;
        if new.is_empty() {
            return Ok(0);
        }
        let bytes = new.iter().map(|kept| kept.record.len() + PREFIX).sum();
        let bytes: usize = room(new.len(), bytes);
        // Pieces are not filled to the end.
        let bytes = bytes + bytes / 8;
        match locked {
            Some(file) if self.has_room(bytes) => self.append(file, &new, run)?,
            _ => self.replace(directory, &new, bytes, run)?,
        }
        self.forget_others(directory)?;
        Ok(new.len())
    }

    /// Opens the file to write it, or an empty one if there is none, when no other machine does.
    fn lock(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600);
        let (times, pause) = PATIENCE;
        for _ in 0..times {
            let file = open_own(&mut options, &self.path)?;
            match file.try_lock() {
                Ok(()) => {
                    // Another may have taken its place in the meantime.
                    let there = std::fs::symlink_metadata(&self.path);
                    if there.is_ok_and(|there| {
                        Some(there.ino()) == file.metadata().ok().map(|own| own.ino())
                    }) {
                        return Ok(file);
                    }
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(pause),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Err(io::Error::new(
            io::ErrorKind::WouldBlock,
            "another machine is writing it",
        ))
    }

    /// Notes in which run records were last of use. Returns the number of this one.
    fn note_generation(&mut self, alone: bool) -> io::Result<u16> {
        let last = self.generations.iter().copied().max().unwrap_or(0);
        let run = last.saturating_add(1);
        let used = std::mem::take(&mut self.used);
        let known = used.iter().filter_map(|&word| self.known(word));
        let numbers: Vec<usize> = known.map(|known| known.number as usize).collect();
        if alone
            && numbers
                .iter()
                .all(|&number| self.generations[number] == last)
        {
            return Ok(last);
        }
        for number in numbers {
            self.generations[number] = run;
        }
        let ends = self.rows.iter().skip(1).map(|row| row.first);
        let ends = ends.chain([self.generations.len()]);
        if let Some(file) = &self.file {
            for (row, end) in self.rows.iter().zip(ends) {
                let generations = &self.generations[row.first..end];
                if generations.contains(&run) {
                    write_generations(file, row.generations, generations)?;
                }
            }
        }
        Ok(run)
    }

    /// Whether so many bytes may be added.
    fn has_room(&self, bytes: usize) -> bool {
        let alive: u64 = self
            .index
            .iter()
            .map(|known| u64::from(known.place.len))
            .sum();
        self.end as usize + bytes <= self.longest as usize
            && u64::from(self.end) <= 2 * alive
            && self.rows.len() < SEGMENTS
    }

    fn append(&mut self, file: &File, blocks: &[&Kept], run: u16) -> io::Result<()> {
        // What was begun here and not completed.
        file.set_len(self.end.into())?;
        let write = || {
            let mut writer = Writer::new(file, self.end, blocks.len(), self.longest)?;
            for kept in blocks {
                writer.add(Place::new(kept.word, kept.rank), run, &kept.record)?;
            }
            writer.finish(self.fingerprint)
        };
        let segment = write().inspect_err(|_| {
            let _ = file.set_len(self.end.into());
        })?;
        self.pieces.clear();
        self.take_in(segment);
        Ok(())
    }

    /// Writes another file in its place: with what it has, or if that is too much, with as much of it as
    /// leaves a quarter free, what was of use last; and with these blocks, of so many bytes.
    fn replace(
        &mut self,
        directory: &Path,
        blocks: &[&Kept],
        bytes: usize,
        run: u16,
    ) -> io::Result<()> {
        // Should this process end in between the file goes as those of other builds do.
        let mut new = tempfile::Builder::new();
        let new = new
            .suffix(&format!(".{EXTENSION}"))
            .tempfile_in(directory)?;
        let replaced: FxHashSet<u32> = blocks.iter().map(|kept| kept.word).collect();
        let old = self.index.iter().copied();
        let mut old: Vec<Known> = old
            .filter(|known| !replaced.contains(&known.place.word))
            .collect();
        self.keep_last_used(&mut old, bytes, run);
        let older = run.saturating_sub(APART);
        let records = old.len() + blocks.len();
        let mut writer = Writer::new(new.as_file(), 0, records, self.longest)?;
        for Known { place, number } in old {
            let last = self.generations[number as usize].saturating_sub(older);
            if let Some(record) = self.bytes(place) {
                writer.add(place, last, record)?;
            }
        }
        for kept in blocks {
            let place = Place::new(kept.word, kept.rank);
            writer.add(place, run - older, &kept.record)?;
        }
        let segment = writer.finish(self.fingerprint)?;
        let file = new.persist(&self.path).map_err(|failed| failed.error)?;
        self.forget_all();
        self.file = Some(file);
        self.take_in(segment);
        Ok(())
    }

    /// Leaves out what has not been of use for longest, so that so many bytes have room; what is new leaves out nothing
    /// that this run has used. What is left is in the order in which it was added, and so in that in which it will be
    /// wanted.
    fn keep_last_used(&self, known: &mut Vec<Known>, bytes: usize, run: u16) {
        let len = |known: &Known| room(1, known.place.len as usize);
        let last_use = |known: &Known| self.generations[known.number as usize];
        let order = |known: &Known| known.number;
        let all: usize = known.iter().map(len).sum();
        if all + all / 8 + bytes > self.longest as usize {
            known.sort_unstable_by_key(|known| (Reverse(last_use(known)), order(known)));
            let most = self.longest as usize / 4 * 3;
            let mut taken = 0;
            let fits = |known: &Known| {
                taken += len(known) + len(known) / 8;
                let others = if last_use(known) == run { 0 } else { bytes };
                taken + others <= most
            };
            *known = known.iter().copied().take_while(fits).collect();
        }
        known.sort_unstable_by_key(order);
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

/// Whether a file is a link, or another's, or others may write it.
fn is_not_ours(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData || error.raw_os_error() == Some(libc::ELOOP)
}
