//! The file store: what Python wrote, what Python will read, torn and damaged files, full disks, other processes.

mod child;

use std::{
    env,
    fs::{self, File},
    io::{ErrorKind, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use bytes::Bytes;
use child::child;
use flate2::read::GzDecoder;
use yrs::{
    ClientID, Doc, GetString as _, Options, ReadTxn as _, Text as _, Transact as _, Update,
    updates::decoder::Decode as _,
};
use yrs_websocket::{RoomName, update::ScanRules};
use yrs_websocket_store::{
    FileStore, Folder, FolderError, Fsync, Report, Store, StoreError, TempFileStore, Write,
    testing::{Fate, Operation, SimulatedDisk},
};

#[test]
fn what_python_wrote_loads_to_the_documented_text() {
    for (library, expected, records) in
        [("ypy-0.12.4", "Hello, World", 3), ("pycrdt-store-0.1.5", "Hello, World!", 4)]
    {
        let disk = disk_with("doc.y", &fixture(library));
        let mut store = FileStore::on(disk.clone());
        let updates = store.load(&name("doc")).unwrap();
        assert_eq!((text(&updates).as_str(), updates.len()), (expected, records), "{library}");
        assert_eq!(store.rooms(), Ok(vec![name("doc")]));
        assert_eq!(disk.bytes("doc.y"), Some(fixture(library)));
    }
}

#[test]
fn what_is_appended_to_pythons_file_joins_what_was_there() {
    for (library, expected) in [("ypy-0.12.4", "Hello, World"), ("pycrdt-store-0.1.5", "Hello, World!")] {
        let disk = disk_with("doc.y", &fixture(library));
        let mut store = FileStore::on(disk.clone());
        let updates = store.load(&name("doc")).unwrap();
        store.commit(&[append("doc", 1, push(&updates, " and more"))]).unwrap();
        let updates = FileStore::on(disk.clone()).load(&name("doc")).unwrap();
        assert_eq!(text(&updates), format!("{expected} and more"));
        assert!(disk.bytes("doc.y").unwrap().starts_with(&fixture(library)));
        store.commit(&[compact("doc", 1, yrs::merge_updates_v1(&updates).unwrap())]).unwrap();
        let compacted = FileStore::on(disk).load(&name("doc")).unwrap();
        assert_eq!((compacted.len(), text(&compacted)), (1, format!("{expected} and more")));
    }
}

#[test]
fn the_bytes_are_those_that_python_writes() {
    let disk = SimulatedDisk::new();
    let mut store = FileStore::on(disk.clone()).with_clock(|| 1_700_000_000.5);
    store.commit(&[append("doc", 1, &b"\x01\x01\x01\x00\x04\x01\x04text\x05Hello\x00"[..])]).unwrap();
    store.commit(&[append("doc", 2, vec![7; 300])]).unwrap();
    let mut expected = b"VERSION:2\n".to_vec();
    expected
        .extend(b"\x12\x01\x01\x01\x00\x04\x01\x04text\x05Hello\x00\x00\x08\x00\x00\x20\x40\xfc\x54\xd9\x41");
    expected.extend(b"\xac\x02");
    expected.extend([7; 300]);
    expected.extend(b"\x00\x08\x00\x00\x20\x40\xfc\x54\xd9\x41");
    assert_eq!(disk.bytes("doc.y"), Some(expected));
}

#[test]
fn earlier_versions_are_read_and_left_as_they_are() {
    for old in old_files() {
        let disk = disk_with("doc.y", &old);
        let steps = steps_of(&disk);
        assert_eq!(FileStore::on(disk.clone()).load(&name("doc")), Ok(vec![update(1), update(2)]), "{old:?}");
        let operations: Vec<_> = steps.lock().unwrap().iter().map(|(_, operation)| *operation).collect();
        assert_eq!(operations, [Operation::Sync, Operation::SyncNames], "nothing was changed");
        assert_eq!(disk.bytes("doc.y"), Some(old));
    }
}

#[test]
fn earlier_versions_are_rewritten_when_first_written_to_and_kept_as_a_backup() {
    for old in old_files() {
        for load_first in [true, false] {
            let disk = disk_with("doc.y", &old);
            let (reports, heard) = reports();
            let mut store = FileStore::on(disk.clone()).with_reports(heard);
            if load_first {
                store.load(&name("doc")).unwrap();
            }
            store.commit(&[append("doc", 1, update(3))]).unwrap();
            store.commit(&[append("doc", 2, update(4))]).unwrap();
            let expected: Vec<_> = (1..=4).map(update).collect();
            assert_eq!(FileStore::on(disk.clone()).load(&name("doc")), Ok(expected));
            assert!(disk.bytes("doc.y").unwrap().starts_with(b"VERSION:2\n"));
            assert_eq!(disk.bytes("doc(1).y"), Some(old.clone()));
            let report = Report::Upgraded { path: "doc.y".into(), backup: "doc(1).y".into() };
            assert_eq!(*reports.lock().unwrap(), [report]);
        }
    }
}

/// ypy-websocket overwrote its first backup with the second one.
#[test]
fn a_backup_never_overwrites_an_earlier_one() {
    let [old, ..] = old_files();
    let disk = disk_with("doc.y", &old);
    disk.put("doc(1).y", "first");
    disk.put("doc(2).y", "second");
    let mut store = FileStore::on(disk.clone());
    store.commit(&[append("doc", 1, update(3))]).unwrap();
    assert_eq!(disk.bytes("doc(1).y"), Some(b"first".to_vec()));
    assert_eq!(disk.bytes("doc(2).y"), Some(b"second".to_vec()));
    assert_eq!(disk.bytes("doc(3).y"), Some(old));
    assert_eq!(store.rooms(), Ok(vec![name("doc")]), "a backup is no room");
}

#[test]
fn an_upgrade_keeps_metadata_and_what_was_loaded_can_be_compacted_after_it() {
    let mut old = b"VERSION:1\n".to_vec();
    for n in 1..=2 {
        record_1(&mut old, &update(n), b"meta");
    }
    let disk = disk_with("doc.y", &old);
    let mut store = FileStore::on(disk.clone()).with_clock(|| 1_700_000_000.5);
    store.load(&name("doc")).unwrap();
    store.commit(&[append("doc", 1, update(3))]).unwrap();
    let metadata = b"\x04meta\x08\x00\x00\x20\x40\xfc\x54\xd9\x41";
    let upgraded = disk.bytes("doc.y").unwrap();
    assert_eq!(upgraded.windows(metadata.len()).filter(|bytes| bytes == metadata).count(), 2);
    store.commit(&[compact("doc", 0, update(12))]).unwrap();
    assert_eq!(store.load(&name("doc")), Ok(vec![update(12), update(3)]));
}

/// FileYStore gives a file whose version it does not know another name, and begins an empty one, even to read.
#[test]
fn a_file_that_is_not_understood_is_an_error_and_left_as_it_is() {
    for (bytes, newer) in [
        (&b"VERSION:3\n"[..], true),
        (b"VERSION:18446744073709551616\n", false),
        (b"VERSION:x\n", false),
        (b"VERSION:\n", false),
        (b"VERSION:2\r\n", false),
        (b"VERSION:0\n", false),
        (b"This is a letter, and by no means a document.", false),
        (b"\x02\x00", false),
    ] {
        let disk = disk_with("doc.y", bytes);
        let mut store = FileStore::on(disk.clone());
        for failed in
            [store.load(&name("doc")).map(drop), store.commit(&[append("doc", 1, update(1))]).map(drop)]
        {
            match failed {
                Err(StoreError::Other { message }) if newer => {
                    assert!(message.contains("update"), "{message}")
                }
                Err(StoreError::Corrupt { .. }) if !newer => {}
                other => panic!("{bytes:?}: {other:?}"),
            }
        }
        assert_eq!(store.commit(&[append("other", 1, update(1))]), Ok(()));
        assert_eq!(disk.bytes("doc.y"), Some(bytes.to_vec()));
        assert_eq!(disk.bytes("doc(1).y"), None);
    }
}

/// FileYStore counts an empty file as one of another version.
#[test]
fn a_file_without_records_is_an_empty_room_and_can_be_written_to() {
    let headers = (0..=10).map(|len| b"VERSION:2\n"[..len].to_vec());
    for bytes in headers.chain([vec![0], vec![0; 5000], b"VERS\0\0\0\0\0\0\0\0".to_vec()]) {
        let disk = disk_with("doc.y", &bytes);
        let mut store = FileStore::on(disk.clone());
        assert_eq!(store.load(&name("doc")), Ok(vec![]), "{bytes:?}");
        store.commit(&[append("doc", 1, update(1))]).unwrap();
        assert_eq!(FileStore::on(disk.clone()).load(&name("doc")), Ok(vec![update(1)]), "{bytes:?}");
        assert!(disk.bytes("doc.y").unwrap().starts_with(b"VERSION:2\n\x0e"));
    }
}

#[test]
fn updates_in_which_nothing_happened_are_skipped_and_compacted_away() {
    let disk = SimulatedDisk::new();
    let mut store = FileStore::on(disk.clone());
    let nothing = &b"\x00\x00"[..];
    store
        .commit(&[append("doc", 1, nothing), append("doc", 2, update(1)), append("doc", 3, nothing)])
        .unwrap();
    assert_eq!(store.load(&name("doc")), Ok(vec![update(1)]));
    store.commit(&[compact("doc", 0, update(1))]).unwrap();
    assert_eq!(disk.bytes("doc.y").unwrap().len(), 10 + 1 + 14 + 1 + 9);
}

/// FileYStore never compacts.
#[test]
fn a_file_shrinks_when_its_room_is_compacted() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = FileStore::open(folder.path()).unwrap().with_fsync(Fsync::Never).unwrap();
    for seq in 1..=1000 {
        store.commit(&[append("doc", seq, update(seq))]).unwrap();
    }
    let len = || fs::metadata(folder.path().join("doc.y")).unwrap().len();
    assert_eq!(len(), 10 + 1000 * 25);
    store.commit(&[compact("doc", 1000, update(1))]).unwrap();
    assert_eq!(len(), 10 + 25);
}

/// SQLiteYStore skips what is older than its checkpoint.
#[test]
fn a_clock_that_steps_back_or_was_never_set_loses_nothing() {
    let mut times = [2e9, 1e9, 0.0, -1.0, f64::NAN, f64::INFINITY, 1e300].into_iter().cycle();
    let disk = SimulatedDisk::new();
    let mut store = FileStore::on(disk.clone()).with_clock(move || times.next().unwrap());
    for seq in 1..=20 {
        store.commit(&[append("doc", seq, update(seq))]).unwrap();
    }
    let expected: Vec<_> = (1..=20).map(update).collect();
    assert_eq!(FileStore::on(disk.clone()).load(&name("doc")), Ok(expected));
    // Nor is damage in the middle taken for a torn tail.
    let mut bytes = disk.bytes("doc.y").unwrap();
    bytes[10 + 17 * 25] = 0;
    let loaded = FileStore::on(disk_with("doc.y", &bytes)).load(&name("doc"));
    assert!(matches!(loaded, Err(StoreError::Corrupt { .. })), "{loaded:?}");
}

/// FileYStore answers the whole records and then an error, and what it appends next cannot be read by anybody.
#[test]
fn a_file_of_a_thousand_keystrokes_truncated_anywhere_reads_up_to_its_last_whole_record_and_goes_on() {
    let keystrokes = keystrokes(1000);
    // In memory where there is such a folder: it is about bytes, not about disks.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let path = folder.path().join("doc.y");
    let mut store = FileStore::open(folder.path()).unwrap().with_fsync(Fsync::Never).unwrap();
    let mut ends = Vec::new();
    for (seq, keystroke) in (1..).zip(&keystrokes) {
        store.commit(&[append("doc", seq, keystroke.clone())]).unwrap();
        ends.push(fs::metadata(&path).unwrap().len() as usize);
    }
    drop(store);
    let whole = fs::read(&path).unwrap();
    let expected = text(&keystrokes);
    assert_eq!(text(&FileStore::open(folder.path()).unwrap().load(&name("doc")).unwrap()), expected);

    // One more that says something by itself.
    let more = update(1);
    let (reports, heard) = reports();
    let mut store =
        FileStore::open(folder.path()).unwrap().with_reports(heard).with_fsync(Fsync::Never).unwrap();
    let mut tails = 0;
    let mut file = File::options().write(true).open(&path).unwrap();
    for offset in (0..=whole.len()).rev() {
        let records = ends.partition_point(|&end| end <= offset);
        let at = records.checked_sub(1).map_or(if offset < 10 { 0 } else { 10 }, |last| ends[last]);
        // All before it is as it was.
        file.seek(SeekFrom::Start(at as u64)).unwrap();
        file.write_all(&whole[at..offset]).unwrap();
        file.set_len(offset as u64).unwrap();
        assert_eq!(store.load(&name("doc")).unwrap(), keystrokes[..records], "{offset}");
        store.commit(&[append("doc", 1, more.clone())]).unwrap();
        let loaded = store.load(&name("doc")).unwrap();
        assert_eq!((&loaded[..records], &loaded[records..]), (&keystrokes[..records], &[more.clone()][..]));
        store.unload(&name("doc"));
        let expected = (offset > at).then(|| Report::TornTail {
            path: "doc.y".into(),
            end: at as u64,
            cut: (offset - at) as u64,
            kept: "doc(1).y.torn".into(),
        });
        if expected.is_some() {
            tails += 1;
            let torn = folder.path().join("doc(1).y.torn");
            assert_eq!(fs::read(&torn).unwrap(), whole[at..offset]);
            fs::remove_file(torn).unwrap();
        }
        assert_eq!(reports.lock().unwrap().drain(..).next(), expected, "{offset}");
    }
    assert_eq!(tails, whole.len() - 1001);
}

#[test]
fn zeros_in_place_of_the_last_write_are_a_torn_tail() {
    let disk = SimulatedDisk::new();
    let mut store = FileStore::on(disk.clone());
    store.commit(&[append("doc", 1, update(1))]).unwrap();
    let mut bytes = disk.bytes("doc.y").unwrap();
    let len = bytes.len();
    bytes.extend([0; 5000]);
    disk.put("doc.y", bytes);
    assert_eq!(store.load(&name("doc")), Ok(vec![update(1)]));
    store.commit(&[append("doc", 1, update(2))]).unwrap();
    assert_eq!(store.load(&name("doc")), Ok(vec![update(1), update(2)]));
    assert_eq!(disk.bytes("doc.y").unwrap().len(), len + 25);
}

/// The disk may have damaged what was whole: what is cut off can be put back.
#[test]
fn what_is_cut_off_is_kept_and_nothing_kept_before_is_overwritten() {
    let disk = SimulatedDisk::new();
    disk.put("doc(1).y.torn", "earlier");
    let mut store = FileStore::on(disk.clone());
    store.commit(&[append("doc", 1, update(1))]).unwrap();
    let whole = disk.bytes("doc.y").unwrap();
    disk.put("doc.y", &whole[..whole.len() - 3]);
    store.commit(&[append("doc", 2, update(2))]).unwrap();
    assert_eq!(disk.bytes("doc(1).y.torn"), Some(b"earlier".to_vec()));
    assert_eq!(disk.bytes("doc(2).y.torn"), Some(whole[10..whole.len() - 3].to_vec()));
    assert_eq!(store.rooms(), Ok(vec![name("doc")]));
}

#[test]
fn a_broken_byte_in_the_middle_cuts_nothing() {
    let folder = SimulatedDisk::new();
    let mut store = FileStore::on(folder.clone());
    for seq in 1..=20 {
        store.commit(&[append("doc", seq, update(seq))]).unwrap();
    }
    let whole = folder.bytes("doc.y").unwrap();
    let last = whole.len() - 25;
    let mut refused = 0;
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            let disk = disk_with("doc.y", &bytes);
            let mut store = FileStore::on(disk.clone());
            match store.load(&name("doc")) {
                Err(StoreError::Corrupt { .. } | StoreError::Other { .. }) => {
                    refused += 1;
                    assert!(store.commit(&[append("doc", 1, update(1))]).is_err());
                    assert_eq!(disk.bytes("doc.y"), Some(bytes), "{at}, {bit}");
                }
                // Lengths may happen to fit all the same, around what is no update: then the room refuses it.
                Ok(updates) => assert!(
                    updates.len() == 20
                        || updates.len() == 19 && at >= last
                        || updates.iter().any(is_malformed),
                    "{at}, {bit}: {}",
                    updates.len()
                ),
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(refused > 500, "{refused}");
}

#[test]
fn the_search_for_whole_records_is_bounded_and_what_was_not_searched_is_not_cut() {
    let disk = SimulatedDisk::new();
    let mut store = FileStore::on(disk.clone()).with_clock(|| 1_700_000_000.5);
    store.commit(&[append("doc", 1, update(1))]).unwrap();
    let whole = disk.bytes("doc.y").unwrap();
    // What looks like lengths and timestamps, as far as the eye reaches.
    let mut hostile = whole.clone();
    let pattern = b"\xff\x7f\x00\x08\x00\x00\x20\x40\xfc\x54\xd9\x41";
    hostile.extend(b"\xff\xff\xff\x7f");
    hostile.extend(pattern.iter().copied().cycle().take(400_000));
    disk.put("doc.y", hostile.clone());
    assert!(matches!(store.load(&name("doc")), Err(StoreError::Corrupt { .. })));
    assert!(store.commit(&[append("doc", 2, update(2))]).is_err());
    assert_eq!(disk.bytes("doc.y"), Some(hostile));
}

/// FileYStore writes a record as three pieces, and leaves it to the system when they reach the disk.
#[test]
fn a_commit_writes_and_syncs_each_file_once() {
    let disk = SimulatedDisk::new();
    let mut store = FileStore::on(disk.clone());
    store.commit(&[append("a", 1, update(1)), append("b", 1, update(1))]).unwrap();
    let steps = steps_of(&disk);
    let writes: Vec<_> =
        (0..100).flat_map(|n| [append("a", n + 2, update(1)), append("b", n + 2, update(2))]).collect();
    store.commit(&writes).unwrap();
    let sum = |records: usize| Operation::Write(records * 25);
    let expected = [
        ("a.y".into(), sum(100)),
        ("b.y".into(), sum(100)),
        ("a.y".into(), Operation::Sync),
        ("b.y".into(), Operation::Sync),
    ];
    assert_eq!(*steps.lock().unwrap(), expected);
}

#[test]
fn a_commit_to_many_rooms_does_not_have_all_their_files_open() {
    let folder = tempfile::tempdir().unwrap();
    let open = |folder: &Path| {
        let files =
            fs::read_dir("/proc/self/fd").ok()?.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        Some(files.filter(|file| file.starts_with(folder)).count())
    };
    let path = folder.path().to_owned();
    let most = Arc::<Mutex<Option<usize>>>::default();
    let seen = Arc::clone(&most);
    let clock = move || {
        let mut most = seen.lock().unwrap();
        *most = (*most).max(open(&path));
        1e9
    };
    let mut store =
        FileStore::open(folder.path()).unwrap().with_clock(clock).with_fsync(Fsync::Never).unwrap();
    let writes: Vec<_> = (0..200).map(|n| append(&n.to_string(), 1, update(n))).collect();
    store.commit(&writes).unwrap();
    // 64 and the lock; other systems do not tell.
    assert!(most.lock().unwrap().is_none_or(|most| (2..=65).contains(&most)), "{most:?}");
    assert_eq!(store.rooms().unwrap().len(), 200);
}

#[test]
fn a_new_file_is_durable_with_its_name() {
    let disk = SimulatedDisk::new();
    let steps = steps_of(&disk);
    FileStore::on(disk.clone()).commit(&[append("a", 1, update(1))]).unwrap();
    let operations: Vec<_> = steps.lock().unwrap().iter().map(|(_, operation)| *operation).collect();
    assert_eq!(operations, [Operation::Create, Operation::Write(35), Operation::Sync, Operation::SyncNames]);
}

#[test]
fn with_never_nothing_is_synced_but_what_replaces_a_file() {
    let disk = SimulatedDisk::new();
    let steps = steps_of(&disk);
    let mut store = FileStore::on(disk.clone()).with_fsync(Fsync::Never).unwrap();
    store.commit(&[append("a", 1, update(1))]).unwrap();
    assert!(steps.lock().unwrap().iter().all(|(_, operation)| *operation != Operation::Sync));
    store.commit(&[compact("a", 1, update(1))]).unwrap();
    let operations: Vec<_> = steps.lock().unwrap().iter().map(|(_, operation)| *operation).collect();
    let synced = operations.iter().position(|operation| *operation == Operation::Sync).unwrap();
    assert_eq!(operations[synced..], [Operation::Sync, Operation::Rename, Operation::SyncNames]);
}

#[test]
fn with_an_interval_many_commits_are_synced_once_and_at_the_latest_at_the_end() {
    let disk = SimulatedDisk::new();
    let steps = steps_of(&disk);
    let hour = Fsync::Interval(Duration::from_secs(3600));
    let mut store = FileStore::on(disk.clone()).with_fsync(hour).unwrap();
    for seq in 1..=100 {
        store.commit(&[append("a", seq, update(seq))]).unwrap();
    }
    let is_sync = |(_, operation): &(PathBuf, Operation)| *operation == Operation::Sync;
    assert_eq!(steps.lock().unwrap().iter().filter(|step| is_sync(step)).count(), 0);
    drop(store);
    assert_eq!(steps.lock().unwrap().iter().filter(|step| is_sync(step)).count(), 1);
    let after = disk.restart(yrs_websocket_store::testing::Unsynced::Lost, 0);
    assert_eq!(FileStore::on(after).load(&name("a")).unwrap().len(), 100);
}

#[test]
fn with_an_interval_a_disk_that_does_not_sync_is_reported() {
    let disk = SimulatedDisk::new();
    let (synced, wait) = mpsc::channel();
    disk.script(move |step| {
        if step.operation != Operation::Sync {
            return Fate::Work;
        }
        Fate::Fail { kind: ErrorKind::Other, bytes: 0 }
    });
    let mut store = FileStore::on(disk.clone())
        .with_reports(move |report| synced.send(report.clone()).unwrap())
        .with_fsync(Fsync::Interval(Duration::from_millis(1)))
        .unwrap();
    store.commit(&[append("a", 1, update(1))]).unwrap();
    let report = wait.recv().unwrap();
    assert!(matches!(&report, Report::SyncFailed { path, .. } if path == Path::new("a.y")), "{report:?}");
}

#[test]
fn a_disk_that_fails_at_any_step_leaves_what_was_there_and_the_next_commit_works() {
    for compaction in [false, true] {
        for cannot_undo in [false, true] {
            let mut at = 0;
            loop {
                let mut failed_at_all = false;
                for bytes in [0, 1, 20, 24] {
                    let disk = SimulatedDisk::new();
                    let mut store = FileStore::on(disk.clone());
                    store.commit(&[append("a", 1, update(1))]).unwrap();
                    let first = disk.steps();
                    disk.script(move |step| {
                        let undo = cannot_undo
                            && step.number > first + at
                            && matches!(step.operation, Operation::Truncate | Operation::Remove);
                        if step.number == first + at || undo {
                            Fate::Fail { kind: ErrorKind::StorageFull, bytes }
                        } else {
                            Fate::Work
                        }
                    });
                    let mut writes = vec![append("a", 2, update(2)), append("b", 1, update(3))];
                    if compaction {
                        writes.push(compact("a", 2, update(12)));
                    }
                    let result = store.commit(&writes);
                    disk.heal();
                    let a = store.load(&name("a")).unwrap();
                    if result.is_ok() {
                        continue;
                    }
                    failed_at_all = true;
                    assert_eq!(result, Err(StoreError::Full));
                    assert!(a.contains(&update(1)) || a.contains(&update(12)), "{at} {bytes}: {a:?}");
                    // Again, as the caller does.
                    store.commit(&writes).unwrap();
                    let a = FileStore::on(disk.clone()).load(&name("a")).unwrap();
                    let b = FileStore::on(disk).load(&name("b")).unwrap();
                    if compaction {
                        assert!(a.contains(&update(12)), "{at} {bytes}: {a:?}");
                    } else {
                        assert_eq!(a, [update(1), update(2)], "{at} {bytes}");
                    }
                    assert_eq!(b.first(), Some(&update(3)));
                    assert!(b.len() == 1 || cannot_undo || compaction, "{at} {bytes}: {b:?}");
                }
                if !failed_at_all {
                    break;
                }
                at += 1;
            }
            assert!(at >= 6, "{at}");
        }
    }
}

#[test]
fn what_could_not_be_taken_back_is_not_loaded_and_is_cut_off_before_the_next_write() {
    let disk = SimulatedDisk::new();
    let mut store = FileStore::on(disk.clone());
    store.commit(&[append("doc", 1, update(1))]).unwrap();
    disk.script(|step| match step.operation {
        Operation::Sync | Operation::Truncate => Fate::Fail { kind: ErrorKind::Other, bytes: 0 },
        _ => Fate::Work,
    });
    assert!(store.commit(&[append("doc", 2, update(2)), append("doc", 3, update(3))]).is_err());
    disk.heal();
    for _ in 0..2 {
        assert_eq!(store.load(&name("doc")), Ok(vec![update(1)]));
        store.unload(&name("doc"));
    }
    store.commit(&[append("doc", 4, update(4))]).unwrap();
    assert_eq!(FileStore::on(disk).load(&name("doc")), Ok(vec![update(1), update(4)]));
}

#[test]
fn what_another_process_appends_meanwhile_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = FileStore::open(folder.path()).unwrap();
    store.commit(&[append("doc", 1, update(1))]).unwrap();
    store.load(&name("doc")).unwrap();
    // The Python libraries take no lock.
    let mut theirs = Vec::new();
    record_2(&mut theirs, &update(2));
    let mut file = File::options().append(true).open(folder.path().join("doc.y")).unwrap();
    file.write_all(&theirs).unwrap();
    store.commit(&[append("doc", 1, update(3))]).unwrap();
    file.write_all(&theirs[..10]).unwrap();
    store.commit(&[compact("doc", 1, update(13))]).unwrap();
    assert_eq!(store.load(&name("doc")), Ok(vec![update(13), update(2)]));
}

#[test]
fn a_file_that_is_gone_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = FileStore::open(folder.path()).unwrap();
    store.commit(&[append("doc", 1, update(1))]).unwrap();
    fs::remove_file(folder.path().join("doc.y")).unwrap();
    store.commit(&[append("doc", 2, update(2))]).unwrap();
    assert_eq!(store.load(&name("doc")), Ok(vec![update(2)]));
}

#[test]
fn a_folder_is_locked_for_one_process_until_that_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut holder = child("hold_the_folder", folder.path());
    let locked = FileStore::open(folder.path()).err();
    let process = Some(holder.process.id());
    assert_eq!(locked, Some(FolderError::Locked { folder: folder.path().into(), process }));
    let message = locked.unwrap().to_string();
    assert!(message.contains(&format!("another process ({})", holder.process.id())), "{message}");
    holder.kill();
    let store = FileStore::open(folder.path()).unwrap();
    assert!(matches!(Folder::open(folder.path()), Err(FolderError::Locked { .. })), "nor twice in this one");
    drop(store);
    assert!(Folder::open(folder.path()).is_ok());
}

#[test]
fn what_is_committed_survives_the_kill_of_its_process() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = child("write_files_until_killed", folder.path());
    let mut acknowledged = 0;
    while acknowledged < 50 {
        acknowledged = writer.line().expect("it writes until it is killed").parse().unwrap();
    }
    writer.kill();
    // What it said before it died counts, too.
    while let Some(Ok(seq)) = writer.line().map(|line| line.parse()) {
        acknowledged = seq;
    }
    let updates = FileStore::open(folder.path()).unwrap().load(&name("doc")).unwrap();
    let expected: Vec<_> = (1..=updates.len() as u64).map(update).collect();
    assert_eq!(updates, expected, "in order and without a gap");
    assert!(
        (acknowledged..=acknowledged + 1).contains(&updates.len()),
        "{} of {acknowledged}",
        updates.len()
    );
}

#[test]
fn folders_are_made_and_what_is_no_folder_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("not/there/yet");
    let mut store = FileStore::open(&deep).unwrap();
    let long = "long ".repeat(200);
    store.commit(&[append(&long, 1, update(1)), append("../../escape", 1, update(2))]).unwrap();
    assert_eq!(store.rooms(), Ok(vec![name("../../escape"), name(&long)]));
    drop(store);
    assert_eq!(FileStore::open(&deep).unwrap().load(&name(&long)), Ok(vec![update(1)]));
    fs::write(folder.path().join("file"), "").unwrap();
    let refused = FileStore::open(folder.path().join("file"));
    assert!(matches!(refused, Err(FolderError::Store(StoreError::Io { .. }))), "{refused:?}");
}

#[test]
fn the_file_of_a_room_can_be_mapped_but_not_out_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("docs")).unwrap();
    fs::write(folder.path().join("docs/one"), fixture("ypy-0.12.4")).unwrap();
    // The Python libraries take the name of the room for a relative path.
    let mut store = FileStore::open(folder.path())
        .unwrap()
        .with_paths(|room| room.as_str().into(), |path| RoomName::new(path.to_str()?).ok());
    assert_eq!(text(&store.load(&name("docs/one")).unwrap()), "Hello, World");
    store.commit(&[append("docs/two/three", 1, update(1))]).unwrap();
    assert!(folder.path().join("docs/two/three").exists());
    for bad in ["../one", "/etc/passwd", "docs/../../one", "..", ".yrs-websocket.lock", ".yrs-websocket.new"]
    {
        let failed = store.commit(&[append(bad, 1, update(1))]);
        assert!(matches!(failed, Err(StoreError::Other { .. })), "{bad}: {failed:?}");
        assert!(matches!(store.load(&name(bad)), Err(StoreError::Other { .. })));
    }
    assert!(store.rooms().unwrap().contains(&name("docs/two/three")));
}

/// TempFileYStore shared one folder between all stores of a class, and never removed it.
#[test]
fn a_temporary_store_has_a_folder_of_its_own_and_takes_it_along() {
    let mut one = TempFileStore::new().unwrap();
    let other = TempFileStore::new().unwrap().try_map(|store| store.with_fsync(Fsync::Never)).unwrap();
    assert_ne!(one.path(), other.path());
    one.commit(&[append("doc", 1, update(1))]).unwrap();
    let (path, kept) = (one.path().to_owned(), other.into_path());
    assert!(path.join("doc.y").exists());
    drop(one);
    assert!(!path.exists());
    assert!(FileStore::open(&kept).is_ok(), "and it is not locked any more");
    fs::remove_dir_all(kept).unwrap();
}

/// Is not a test: a process of its own for the tests above, which start it with a path.
#[test]
fn hold_the_folder() {
    let Some(path) = env::var_os("STORE_TEST_PATH") else { return };
    let _store = FileStore::open(path).unwrap();
    println!("\nready");
    loop {
        std::thread::park();
    }
}

/// Is not a test either.
#[test]
fn write_files_until_killed() {
    let Some(path) = env::var_os("STORE_TEST_PATH") else { return };
    let mut store = FileStore::open(path).unwrap();
    println!("\nready");
    for seq in 1.. {
        store.commit(&[append("doc", seq, update(seq))]).unwrap();
        println!("{seq}");
    }
}

fn fixture(library: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(library).join("doc.y"))
        .unwrap()
}

/// Two updates in version 1, in version 0, and as it was before there was metadata.
fn old_files() -> [Vec<u8>; 3] {
    let mut version_1 = b"VERSION:1\n".to_vec();
    let mut version_0 = Vec::new();
    let mut updates_only = Vec::new();
    for (n, metadata) in [(1, &b""[..]), (2, b"meta")] {
        record_1(&mut version_1, &update(n), metadata);
        record_1(&mut version_0, &update(n), metadata);
        updates_only.push(14);
        updates_only.extend_from_slice(&update(n));
    }
    [version_1, version_0, updates_only]
}

fn record_1(out: &mut Vec<u8>, update: &[u8], metadata: &[u8]) {
    for buffer in [update, metadata] {
        out.push(u8::try_from(buffer.len()).unwrap());
        out.extend_from_slice(buffer);
    }
}

fn record_2(out: &mut Vec<u8>, update: &[u8]) {
    record_1(out, update, b"");
    out.push(8);
    out.extend_from_slice(&1_700_000_000.5_f64.to_le_bytes());
}

fn disk_with(path: &str, bytes: &[u8]) -> SimulatedDisk {
    let disk = SimulatedDisk::new();
    disk.put(path, bytes);
    disk
}

fn steps_of(disk: &SimulatedDisk) -> Arc<Mutex<Vec<(PathBuf, Operation)>>> {
    let steps = Arc::<Mutex<Vec<_>>>::default();
    let log = Arc::clone(&steps);
    disk.script(move |step| {
        log.lock().unwrap().push((step.path.to_owned(), step.operation));
        Fate::Work
    });
    steps
}

fn reports() -> (Arc<Mutex<Vec<Report>>>, impl Fn(&Report) + Send + Sync + 'static) {
    let reports = Arc::<Mutex<Vec<_>>>::default();
    let log = Arc::clone(&reports);
    (reports, move |report: &Report| log.lock().unwrap().push(report.clone()))
}

/// What client `n` types first: one letter.
fn update(n: u64) -> Bytes {
    let n = u8::try_from(n % 126 + 1).unwrap();
    Bytes::copy_from_slice(&[1, 1, n, 0, 4, 1, 4, b't', b'e', b'x', b't', 1, b'a' + n % 26, 0])
}

fn is_malformed(update: &Bytes) -> bool {
    yrs_websocket::update::Update::scan(update.clone(), &ScanRules::default()).is_err()
}

/// The first updates of somebody who writes a program.
fn keystrokes(count: usize) -> Vec<Bytes> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/traces/sveltecomponent.json.gz");
    let json: serde_json::Value = serde_json::from_reader(GzDecoder::new(File::open(path).unwrap())).unwrap();
    let doc = document(&[], 1);
    let text = doc.get_or_insert_text("text");
    let patches = json["txns"].as_array().unwrap().iter().flat_map(|txn| txn["patches"].as_array().unwrap());
    let updates = patches.take(count).map(|patch| {
        let number = |n: usize| u32::try_from(patch[n].as_u64().unwrap()).unwrap();
        let mut transaction = doc.transact_mut();
        if number(1) > 0 {
            text.remove_range(&mut transaction, number(0), number(1));
        }
        text.insert(&mut transaction, number(0), patch[2].as_str().unwrap());
        Bytes::from(transaction.encode_update_v1())
    });
    let updates: Vec<_> = updates.collect();
    assert_eq!(updates.len(), count);
    updates
}

fn document(updates: &[Bytes], client: u64) -> Doc {
    let doc = Doc::with_options(Options::with_client_id(ClientID::new(client)));
    for update in updates {
        doc.transact_mut().apply_update(Update::decode_v1(update).unwrap()).unwrap();
    }
    doc
}

fn text(updates: &[Bytes]) -> String {
    let doc = document(updates, 1);
    let text = doc.get_or_insert_text("text");
    assert!(!doc.transact().has_missing_updates());
    text.get_string(&doc.transact())
}

/// The update that adds to the end of the text.
fn push(updates: &[Bytes], addition: &str) -> Bytes {
    let doc = document(updates, 1_000_000);
    let text = doc.get_or_insert_text("text");
    let before = doc.transact().state_vector();
    text.push(&mut doc.transact_mut(), addition);
    doc.transact().encode_diff_v1(&before).into()
}

fn name(name: &str) -> RoomName {
    RoomName::new(name).unwrap()
}

fn append(room: &str, seq: u64, update: impl Into<Bytes>) -> Write {
    Write::Append { room: name(room), seq, update: update.into() }
}

fn compact(room: &str, seq: u64, state: impl Into<Bytes>) -> Write {
    Write::Compact { room: name(room), seq, state: vec![state.into()] }
}
