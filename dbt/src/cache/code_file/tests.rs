use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use super::segment::{HEADER, write_generations};
use super::writing::FILES;
use super::*;

const FINGERPRINT: u64 = 0x1234_5678_9abc_def0;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory for a test")
}

fn open(directory: &tempfile::TempDir) -> CodeFile {
    CodeFile::open(directory.path(), FINGERPRINT)
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
    let place = file.known(word)?.place;
    file.bytes(place).map(<[u8]>::to_vec)
}

fn assert_has<'a>(file: &mut CodeFile, records: impl IntoIterator<Item = &'a Kept>) {
    for Kept { word, record, .. } in records {
        assert!(read(file, *word).as_ref() == Some(record), "{word}");
    }
}

/// Which of these words it has.
fn words(file: &CodeFile, words: std::ops::Range<u32>) -> Vec<u32> {
    words.filter(|&word| file.has(word, Rank::First)).collect()
}

fn size(file: &CodeFile) -> u64 {
    fs::metadata(&file.path).unwrap().len()
}

#[test]
fn records_come_back_and_more_can_be_added() {
    let directory = directory();
    let mut file = open(&directory);
    assert!(file.is_empty() && !file.has(1, Rank::First));
    let first = records(0..40);
    assert_eq!(file.write(&first).unwrap(), 40);
    let mut reader = open(&directory);
    assert_eq!(reader.len(), first.len());
    assert_has(&mut reader, &first[..20]);
    assert_eq!(read(&mut reader, 40), None);
    let before = fs::read(&file.path).unwrap();
    let second = records(35..60);
    // What is there already is not added again.
    assert_eq!(file.write(&second).unwrap(), 20);
    assert_has(&mut file, &second);
    // What was there is there still, where it was, also for who has read the index before.
    assert!(fs::read(&file.path).unwrap().starts_with(&before));
    assert_has(&mut reader, &first);
    let mut file = open(&directory);
    assert_eq!(file.len(), 60);
    assert_has(&mut file, &first);
    assert_has(&mut file, &second);
    // Another machine's.
    assert!(CodeFile::open(directory.path(), FINGERPRINT + 1).is_empty());
}

#[test]
fn better_blocks_take_the_place_of_others() {
    let directory = directory();
    let kept = |rank, byte, len| Kept {
        word: 7,
        rank,
        record: vec![byte; len],
    };
    let mut file = open(&directory);
    file.write(&records(0..10)).unwrap();
    for (rank, byte) in [(Rank::Counting, 1), (Rank::Hot, 2)] {
        assert!(file.has(7, Rank::First) && !file.has(7, rank));
        file.write(&[kept(rank, byte, 100)]).unwrap();
        file = open(&directory);
        assert!(file.has(7, rank));
        assert_eq!(read(&mut file, 7), Some(vec![byte; 100]));
        assert_eq!(file.len(), 10);
    }
    assert_eq!(file.rows.len(), 3);
    // Where more has been replaced than is left the file becomes shorter. Others read the old one.
    let long = |rank, byte| [kept(rank, byte, 250_000)];
    let other = tempfile::tempdir().unwrap();
    let mut file = open(&other);
    file.write(&long(Rank::First, 1)).unwrap();
    file.write(&long(Rank::Counting, 2)).unwrap();
    let mut reader = open(&other);
    assert_eq!(file.rows.len(), 2);
    let more = records(20..22);
    let hot = kept(Rank::Hot, 3, 1000);
    file.write(&[hot].into_iter().chain(more).collect::<Vec<_>>())
        .unwrap();
    assert!(size(&file) < 100_000);
    assert_eq!(read(&mut reader, 7), Some(vec![2; 250_000]));
    for file in [&mut file, &mut open(&other)] {
        assert_eq!((file.rows.len(), file.len()), (1, 3));
        assert_eq!(read(file, 7), Some(vec![3; 1000]));
        assert_has(file, &records(20..22));
    }
}

#[test]
fn what_was_not_used_for_longest_goes_first() {
    let directory = directory();
    let all = records(0..120);
    for part in all.chunks(40) {
        open(&directory).write(part).unwrap();
    }
    // The first forty are used, and some of the second.
    let mut file = open(&directory);
    (0..45).for_each(|word| file.note_use(word));
    assert_eq!(file.write(&[]).unwrap(), 0);
    let mut file = open(&directory);
    let had = size(&file);
    file.longest = had as u32 + PIECE;
    let more = records(200..240);
    assert_eq!(file.write(&more).unwrap(), 40);
    for file in [&mut file, &mut open(&directory)] {
        assert_has(file, &more);
        assert_has(file, &all[..45]);
        let left = words(file, 0..120).len() as u32;
        assert!((47..75).contains(&left), "{left}");
        // Of the same run, what was added first stays.
        assert_eq!(words(file, 45..80), [], "{left}");
        assert_eq!(
            words(file, 80..120),
            (80..80 + left - 45).collect::<Vec<_>>()
        );
    }
    let limit = had + u64::from(PIECE);
    let len = size(&file);
    assert!(len < limit && len > limit / 2, "{len} of {limit}");
    // When they were used is known still.
    assert_eq!(file.generations[..45], [4; 45]);
    let known = file.known(80).unwrap();
    assert_eq!(file.generations[known.number as usize], 3);

    // What is new and has no room is left out.
    file.longest = 3 * PIECE;
    file.note_use(5);
    file.write(&records(300..400)).unwrap();
    let file = open(&directory);
    assert!(words(&file, 300..400).len() > 5 && size(&file) < u64::from(4 * PIECE));
    // It leaves out nothing that was used.
    assert_eq!(words(&file, 0..300), [5]);
}

#[test]
fn generations_do_not_overflow() {
    let directory = directory();
    let mut file = open(&directory);
    file.write(&records(0..100)).unwrap();
    file.note_use(3);
    file.write(&records(0..1)).unwrap();
    let about = OpenOptions::new().write(true).open(&file.path).unwrap();
    let at = file.rows[0].generations + 2 * 3;
    write_generations(&about, at, &[u16::MAX]).unwrap();
    let mut file = open(&directory);
    file.note_use(4);
    file.longest = size(&file) as u32;
    file.write(&records(200..201)).unwrap();
    let file = open(&directory);
    let generation = |word| file.generations[file.known(word).unwrap().number as usize];
    assert!(generation(4) > 0 && generation(200) >= generation(4));
    assert!(generation(200) < u16::MAX / 2 && generation(4) >= generation(3));
    assert!(words(&file, 0..10).starts_with(&[0]) && generation(0) < generation(3));
}

#[test]
fn nothing_is_written_if_nothing_is_new() {
    let directory = directory();
    let mut file = open(&directory);
    file.write(&[]).unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    file.write(&records(0..40)).unwrap();
    let before = fs::read(&file.path).unwrap();
    let now = |file: &CodeFile| {
        let differs = |(one, other): (&u8, &u8)| usize::from(one != other);
        let after = fs::read(&file.path).unwrap();
        assert_eq!(after.len(), before.len());
        before.iter().zip(&after).map(differs).sum::<usize>()
    };
    let mut file = open(&directory);
    file.write(&records(0..40)).unwrap();
    (0..40).for_each(|word| file.note_use(word));
    file.write(&[]).unwrap();
    assert_eq!(now(&file), 0);
    // The second run since then, which uses less: three generations.
    open(&directory).write(&records(100..101)).unwrap();
    let before = fs::read(&file.path).unwrap();
    let mut file = open(&directory);
    [3, 5, 8].iter().for_each(|&word| file.note_use(word));
    file.write(&[]).unwrap();
    let after = fs::read(&file.path).unwrap();
    let differ = before
        .iter()
        .zip(&after)
        .filter(|(one, other)| one != other);
    assert_eq!((differ.count(), after.len()), (3, before.len()));
}

#[test]
fn what_is_damaged_is_not_there() {
    let directory = directory();
    let all = records(0..40);
    let mut file = open(&directory);
    file.write(&all).unwrap();
    let path = file.path.clone();
    let whole = fs::read(&path).unwrap();
    let with = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&path, bytes).unwrap();
        open(&directory)
    };
    // The header, and the index.
    let index = HEADER as usize..file.rows[0].generations as usize;
    for at in [0, 9, 17, 21, 25, 29, index.start, index.end - 1] {
        assert!(with(at).is_empty(), "{at}");
    }
    // A record: its checksum, its bytes.
    let at = file.known(7).unwrap().place.offset() as usize;
    for at in [at + 1, at + 5, at + 900] {
        let mut file = with(at);
        assert_eq!(file.len(), all.len());
        assert_eq!(read(&mut file, 7), None);
        assert_has(&mut file, &all[8..]);
        // It is forgotten, so that another takes its place.
        assert!(file.find(7).is_none() && !file.has(7, Rank::First));
    }
    for len in [0, 10, HEADER as usize, PIECE as usize, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        assert!(open(&directory).is_empty(), "{len}");
    }
    // What cannot be read is replaced.
    open(&directory).write(&all[..5]).unwrap();
    assert_has(&mut open(&directory), &all[..5]);
}

/// Files of which the end, or anything behind the first segment, is missing or damaged.
#[test]
fn a_segment_that_was_not_completed_is_not_there() {
    let directory = directory();
    let (first, second) = (records(0..40), records(40..60));
    let mut file = open(&directory);
    file.write(&first).unwrap();
    let end = file.end as usize;
    file.write(&second).unwrap();
    let whole = fs::read(&file.path).unwrap();
    let mut torn: Vec<Vec<u8>> = [0, 1, HEADER as usize, 2000, whole.len() - end - 1]
        .map(|len| whole[..end + len].to_vec())
        .into();
    for damaged in [0..HEADER as usize, 3..4, 20..21] {
        let mut bytes = whole.clone();
        bytes[end..][damaged].fill(0);
        torn.push(bytes);
    }
    for (case, bytes) in torn.iter().enumerate() {
        fs::write(&file.path, bytes).unwrap();
        let mut file = open(&directory);
        assert_eq!(file.len(), 40, "{case}");
        assert_has(&mut file, &first);
        let third = records(50..55);
        assert_eq!(file.write(&third).unwrap(), 5, "{case}");
        let mut file = open(&directory);
        assert_eq!((file.len(), file.rows.len()), (45, 2), "{case}");
        assert_has(&mut file, &first);
        assert_has(&mut file, &third);
        assert_eq!(size(&file), u64::from(file.end), "{case}");
    }
    // Where only an index is damaged those behind it are there.
    let mut bytes = whole;
    bytes[HEADER as usize + 5] ^= 1;
    fs::write(&file.path, bytes).unwrap();
    let mut file = open(&directory);
    assert_eq!(file.len(), 20);
    assert_has(&mut file, &second);
}

#[test]
fn machines_that_end_together_keep_what_both_have() {
    let directory = directory();
    let machines: Vec<_> = (0..4)
        .map(|machine| {
            let mut file = open(&directory);
            std::thread::spawn(move || {
                let rounds = (0..6).map(|round| {
                    let start = 100 * round + 5 * machine;
                    file.write(&records(start..start + 10)).unwrap()
                });
                rounds.sum::<usize>()
            })
        })
        .collect();
    let added = machines.into_iter().map(|machine| machine.join().unwrap());
    let added: usize = added.sum();
    let mut file = open(&directory);
    // Each machine has half of what the next one has, which is not added twice.
    assert_eq!((added, file.len()), (6 * 25, 6 * 25));
    assert_eq!(size(&file), u64::from(file.end));
    for round in 0..6 {
        assert_has(&mut file, &records(100 * round..100 * round + 25));
    }
}

#[test]
fn many_small_segments_become_one() {
    let directory = directory();
    let machines = [0, 1000].map(|first| {
        let mut file = open(&directory);
        std::thread::spawn(move || {
            for word in first..first + 160 {
                let rank = Rank::First;
                let record = vec![word as u8; 200];
                let kept = Kept { word, rank, record };
                assert_eq!(file.write(&[kept]).unwrap(), 1);
            }
        })
    });
    for machine in machines {
        machine.join().unwrap();
    }
    let mut file = open(&directory);
    assert_eq!((file.len(), words(&file, 0..2000).len()), (320, 320));
    assert!(file.rows.len() < 100, "{}", file.rows.len());
    for word in (0..160).chain(1000..1160) {
        assert_eq!(read(&mut file, word), Some(vec![word as u8; 200]));
    }
}

#[test]
fn a_machine_that_goes_on_writing_is_not_waited_for() {
    let directory = directory();
    let mut file = open(&directory);
    file.write(&records(0..5)).unwrap();
    let other = File::open(&file.path).unwrap();
    other.lock().unwrap();
    let error = file.write(&records(5..10)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    other.unlock().unwrap();
    file.write(&records(5..10)).unwrap();
    assert_has(&mut open(&directory), &records(0..10));
}

/// Where a directory is named, the rest of [`a_full_disk_leaves_what_there_was`] is done, in a process that may not
/// write more than 500 KiB to a file.
const DIRECTORY: &str = "KMEMVISOR_TEST_FULL_DISK";

#[test]
fn a_full_disk_leaves_what_there_was() {
    let first = records(0..10);
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        let mut file = CodeFile::open(Path::new(&directory), FINGERPRINT);
        assert_has(&mut file, &first);
        let error = file.write(&records(10..60)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert_has(&mut file, &first);
        return;
    }
    let directory = directory();
    let mut file = open(&directory);
    file.write(&first).unwrap();
    let before = fs::read(&file.path).unwrap();
    assert!(before.len() < 500 << 10);
    let status = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 1000; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "cache::code_file::tests::a_full_disk_leaves_what_there_was",
        ])
        .env(DIRECTORY, directory.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&status.stdout);
    assert!(
        status.status.success() && said.contains("1 passed"),
        "{said}"
    );
    assert!(fs::read(&file.path).unwrap() == before);
    open(&directory).write(&records(10..60)).unwrap();
    assert_has(&mut open(&directory), &records(0..60));
}

#[test]
fn what_others_may_write_is_not_executed() {
    let directory = directory();
    let mut file = open(&directory);
    file.write(&records(0..5)).unwrap();
    let path = file.path.clone();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    for (mode, readable) in [(0o602, false), (0o620, false), (0o644, true)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let file = open(&directory);
        assert_eq!(!file.is_empty(), readable, "{mode:o}");
    }
    let other = directory.path().join("other");
    fs::rename(&path, &other).unwrap();
    symlink(&other, &path).unwrap();
    assert!(open(&directory).is_empty());
    // It is not written to either.
    let there = fs::read(&other).unwrap();
    open(&directory).write(&records(7..9)).unwrap();
    assert!(fs::read(&other).unwrap() == there);
    assert_eq!(words(&open(&directory), 0..10), [7, 8]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
    open(&directory).write(&records(3..4)).unwrap();
    assert_eq!(words(&open(&directory), 0..10), [3]);
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
