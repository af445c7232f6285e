use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

const FINGERPRINT: u64 = 0x1234_5678_9abc_def0;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory for a test")
}

/// Records that are told apart by their words; some do not fit behind the others of their piece.
fn records(words: std::ops::Range<u32>) -> Vec<Kept> {
    let record = |word: u32| Kept {
        word,
        rank: Rank::First,
        record: vec![word as u8; 1000 + word as usize * 7919 % 50_000],
    };
    words.map(record).collect()
}

fn read(file: &mut CodeFile, word: u32) -> Option<Vec<u8>> {
    let place = file.place(word)?;
    file.bytes(place).map(<[u8]>::to_vec)
}

fn assert_has<'a>(file: &mut CodeFile, records: impl IntoIterator<Item = &'a Kept>) {
    for Kept { word, record, .. } in records {
        assert!(read(file, *word).as_ref() == Some(record), "{word}");
    }
}

#[test]
fn records_come_back_and_more_can_be_added() {
    let directory = directory();
    let mut file = CodeFile::open(directory.path(), FINGERPRINT);
    assert!(file.is_empty() && !file.has(1, Rank::First));
    let first = records(0..40);
    file.write(&first).unwrap();
    let mut file = CodeFile::open(directory.path(), FINGERPRINT);
    assert_eq!(file.len(), first.len());
    assert_has(&mut file, &first);
    assert_eq!(read(&mut file, 40), None);
    let second = records(40..60);
    file.write(&second).unwrap();
    let mut file = CodeFile::open(directory.path(), FINGERPRINT);
    assert_eq!(file.len(), 60);
    assert_has(&mut file, &first);
    assert_has(&mut file, &second);
    // Another machine's.
    assert!(CodeFile::open(directory.path(), FINGERPRINT + 1).is_empty());
}

#[test]
fn better_blocks_take_the_place_of_others() {
    let directory = directory();
    let kept = |rank, byte| Kept {
        word: 7,
        rank,
        record: vec![byte; 100],
    };
    let mut file = CodeFile::open(directory.path(), FINGERPRINT);
    file.write(&records(0..10)).unwrap();
    for (rank, byte) in [(Rank::Counting, 1), (Rank::Hot, 2)] {
        assert!(file.has(7, Rank::First) && !file.has(7, rank));
        file.write(&[kept(rank, byte)]).unwrap();
        assert!(file.has(7, rank));
        assert_eq!(read(&mut file, 7), Some(vec![byte; 100]));
        assert_eq!(file.len(), 10);
    }
    // Also where the file begins anew.
    file.note_use(7);
    file.longest = 3 * PIECE;
    file.write(&records(20..50)).unwrap();
    assert!(file.has(7, Rank::Hot) && !file.has(8, Rank::First));
}

#[test]
fn what_was_used_stays_when_there_is_too_much() {
    let directory = directory();
    let first = records(0..40);
    CodeFile::open(directory.path(), FINGERPRINT)
        .write(&first)
        .unwrap();
    let mut file = CodeFile::open(directory.path(), FINGERPRINT);
    file.longest = 6 * PIECE;
    for word in [3, 5, 8] {
        file.note_use(word);
    }
    let second = records(100..110);
    file.write(&second).unwrap();
    let mut file = CodeFile::open(directory.path(), FINGERPRINT);
    assert_has(&mut file, &second);
    assert_has(&mut file, [3, 5, 8].map(|word| &first[word]));
    assert_eq!(file.len(), 13);
    // What there is no room for is left out.
    file.longest = 3 * PIECE;
    file.write(&records(200..300)).unwrap();
    let file = CodeFile::open(directory.path(), FINGERPRINT);
    let size = fs::metadata(&file.path).unwrap().len();
    assert!(file.len() > 5 && size < u64::from(4 * PIECE), "{size}");
}

#[test]
fn what_is_damaged_is_not_there() {
    let directory = directory();
    let all = records(0..40);
    let mut file = CodeFile::open(directory.path(), FINGERPRINT);
    file.write(&all).unwrap();
    let path = file.path.clone();
    let whole = fs::read(&path).unwrap();
    let with = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&path, bytes).unwrap();
        CodeFile::open(directory.path(), FINGERPRINT)
    };
    // The header, and the index.
    for at in [0, 9, 17, 21, 25, 29, whole.len() - 1] {
        assert!(with(at).is_empty(), "{at}");
    }
    // A record: its length, its checksum, its bytes.
    let at = CodeFile::place(&with(HEADER + 1), 7).unwrap().offset() as usize;
    for at in [at + 2, at + 5, at + 900] {
        let mut file = with(at);
        assert_eq!(file.len(), all.len());
        assert_eq!(read(&mut file, 7), None);
        assert_has(&mut file, &all[8..]);
    }
    for len in [0, 10, HEADER, PIECE as usize, whole.len() - 8] {
        fs::write(&path, &whole[..len]).unwrap();
        assert!(
            CodeFile::open(directory.path(), FINGERPRINT).is_empty(),
            "{len}"
        );
    }
    // What cannot be read is replaced.
    let mut file = CodeFile::open(directory.path(), FINGERPRINT);
    file.write(&all[..5]).unwrap();
    let mut file = CodeFile::open(directory.path(), FINGERPRINT);
    assert_has(&mut file, &all[..5]);
}

#[test]
fn what_others_may_write_is_not_executed() {
    let directory = directory();
    let mut file = CodeFile::open(directory.path(), FINGERPRINT);
    file.write(&records(0..5)).unwrap();
    let path = file.path.clone();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    for (mode, readable) in [(0o602, false), (0o620, false), (0o644, true)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let file = CodeFile::open(directory.path(), FINGERPRINT);
        assert_eq!(!file.is_empty(), readable, "{mode:o}");
    }
    let other = directory.path().join("other");
    fs::rename(&path, &other).unwrap();
    symlink(&other, &path).unwrap();
    assert!(CodeFile::open(directory.path(), FINGERPRINT).is_empty());
}

#[test]
fn old_files_go() {
    let directory = directory();
    let names = |directory: &Path| {
        let entries = fs::read_dir(directory).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    };
    fs::write(directory.path().join("notes"), "not ours").unwrap();
    for fingerprint in 0..FILES as u64 + 2 {
        let mut file = CodeFile::open(directory.path(), fingerprint);
        file.write(&records(0..2)).unwrap();
        let since = std::time::SystemTime::UNIX_EPOCH;
        let written = since + std::time::Duration::from_secs(1_000_000 + fingerprint);
        File::open(&file.path)
            .unwrap()
            .set_modified(written)
            .unwrap();
    }
    let mut expected: Vec<String> = (2..FILES as u64 + 2)
        .map(|fingerprint| format!("{fingerprint:016x}.code"))
        .collect();
    expected.push("notes".to_string());
    assert_eq!(names(directory.path()), expected);
}

#[test]
fn words_depend_on_what_a_translation_depends_on() {
    let key = Key {
        physical: mmu::GuestPhys(0x5123),
        rip: 0x40_0123,
        mode: crate::guest::Mode(3),
        grouped: true,
        code: CodeSegment::FLAT,
    };
    let code = [0x90; START];
    let usual = word(&key, &code);
    let mut other = code;
    other[START - 1] = 0x91;
    let elsewhere = Key {
        rip: 0x7f00_0000_0123,
        physical: mmu::GuestPhys(0x9123),
        ..key
    };
    assert_eq!(word(&elsewhere, &code), usual);
    let others = [
        word(&key, &other),
        word(&key, &code[1..]),
        word(
            &Key {
                rip: key.rip + 1,
                ..key
            },
            &code,
        ),
        word(
            &Key {
                grouped: false,
                ..key
            },
            &code,
        ),
        word(
            &Key {
                mode: crate::guest::Mode(11),
                ..key
            },
            &code,
        ),
    ];
    assert!(!others.contains(&usual));
}
