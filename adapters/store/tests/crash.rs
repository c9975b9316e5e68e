//! The power fails at every step, and in the middle of it: what was acknowledged is there afterwards.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::ErrorKind,
    path::Path,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use tempfile::TempDir;
use yrs_websocket::{
    RoomName,
    update::{ScanRules, Update, join},
};
use yrs_websocket_store::{
    FileStore, Fsync, SqliteStore, Store, Write,
    testing::{Fate, Operation, SimulatedDisk, Unsynced},
};

#[test]
fn a_file_store_keeps_what_it_acknowledged_whenever_the_power_fails() {
    let cuts = every_cut(Fsync::Always);
    assert!(cuts.len() > 600, "{}", cuts.len());
    let mut restarts = 0;
    for (step, bytes) in cuts {
        let (disk, book) = run(Fsync::Always, Ends::PowerCut(step, bytes));
        for after in every_restart(&disk) {
            restarts += 1;
            let found = book.check(&after, true, &format!("step {step}, {bytes} bytes"));
            // It goes on from there; and the power may fail again while it does.
            for again in 0..10 {
                let disk = after().restart(Unsynced::Kept, usize::MAX);
                disk.script(move |step| match step.number {
                    number if number == again => Fate::PowerCut { bytes: 7 },
                    _ => Fate::Work,
                });
                let mut store = FileStore::on(disk.clone());
                let next = |room: &'static str| append(room, 1, found[room] + 1);
                let done = store.commit(&[next("a"), next("b"), next("old")]);
                for unsynced in [Unsynced::Lost, Unsynced::Kept] {
                    let mut store = FileStore::on(disk.restart(unsynced, 0));
                    for (room, found) in &found {
                        let count = count(&store.load(&name(room)).unwrap());
                        assert!(
                            (*found..=found + 1).contains(&count),
                            "{room}, step {step}, {bytes}, {again}"
                        );
                        assert!(done.is_err() || count == found + 1 || *room == "c");
                    }
                }
            }
        }
    }
    assert!(restarts > 3000, "{restarts}");
}

/// What is loaded counts as stored: clients are told so.
#[test]
fn what_a_store_finds_when_its_process_has_died_stays_when_the_power_fails_later() {
    for (step, bytes) in every_cut(Fsync::Always) {
        let (disk, book) = run(Fsync::Always, Ends::Killed(step, bytes));
        disk.heal();
        let context = format!("step {step}, {bytes} bytes");
        let found = book.check(&|| disk.clone(), true, &context);
        let later = book.check(&|| disk.restart(Unsynced::Lost, 0), true, &context);
        assert_eq!(later, found, "{context}");
    }
}

#[test]
fn a_file_store_that_does_not_sync_keeps_a_beginning() {
    for (step, bytes) in every_cut(Fsync::Never) {
        let (disk, book) = run(Fsync::Never, Ends::PowerCut(step, bytes));
        for after in every_restart(&disk) {
            book.check(&after, false, &format!("step {step}, {bytes} bytes"));
        }
    }
}

/// What was asked for and what was acknowledged, as the highest number in each room: numbers begin at 1.
#[derive(Default)]
struct Book {
    asked: BTreeMap<&'static str, u64>,
    acknowledged: BTreeMap<&'static str, u64>,
}

impl Book {
    /// Checks what a disk holds, and answers it.
    fn check(
        &self,
        after: &impl Fn() -> SimulatedDisk,
        durable: bool,
        context: &str,
    ) -> BTreeMap<&'static str, u64> {
        let mut store = FileStore::on(after());
        let mut found = BTreeMap::new();
        for room in ROOMS {
            let updates =
                store.load(&name(room)).unwrap_or_else(|error| panic!("{context}, {room}: {error}"));
            let count = count(&updates);
            let least = if durable { self.acknowledged.get(room).copied().unwrap_or(0) } else { 0 };
            let most = self.asked.get(room).copied().unwrap_or(0);
            assert!((least..=most).contains(&count), "{context}, {room}: {count} of {least} to {most}");
            found.insert(room, count);
        }
        found
    }
}

/// How a run ends: at this step, and if it is a write, after so many bytes of it.
#[derive(Clone, Copy)]
enum Ends {
    PowerCut(usize, usize),
    /// The disk does nothing for the process any more, as if that were gone.
    Killed(usize, usize),
}

/// Runs the same commits on a new disk, until it ends.
fn run(fsync: Fsync, ends: Ends) -> (SimulatedDisk, Book) {
    let disk = SimulatedDisk::new();
    disk.put("old.y", &b"VERSION:1\n\x0e\x01\x01\x01\x00\x04\x01\x04text\x01a\x00\x00"[..]);
    disk.script(move |step| match ends {
        Ends::PowerCut(last, bytes) if step.number == last => Fate::PowerCut { bytes },
        Ends::Killed(last, bytes) if step.number == last => Fate::Fail { kind: ErrorKind::Other, bytes },
        Ends::Killed(last, _) if step.number > last => Fate::Fail { kind: ErrorKind::Other, bytes: 0 },
        Ends::PowerCut(..) | Ends::Killed(..) => Fate::Work,
    });
    let mut store = FileStore::on(disk.clone()).with_fsync(fsync).unwrap();
    let mut book = Book::default();
    book.asked.insert("old", 1);
    book.acknowledged.insert("old", 1);
    if store.load(&name("old")).is_err() {
        return (disk, book);
    }
    for Commit { writes, holds } in commits() {
        book.asked.extend(holds.iter().copied());
        if store.commit(&writes).is_err() {
            return (disk, book);
        }
        book.acknowledged.extend(holds);
    }
    panic!("it does not end");
}

/// What is written, and the highest number in each room that it leads to.
struct Commit {
    writes: Vec<Write>,
    holds: Vec<(&'static str, u64)>,
}

fn commits() -> Vec<Commit> {
    let commit = |writes: &[Write], holds: &[(&'static str, u64)]| Commit {
        writes: writes.to_vec(),
        holds: holds.to_vec(),
    };
    vec![
        commit(&[append("a", 1, 1)], &[("a", 1)]),
        commit(&[append("a", 2, 2), append("b", 1, 1), append("a", 3, 3)], &[("a", 3), ("b", 1)]),
        commit(&[append("old", 1, 2)], &[("old", 2)]),
        commit(&[compact("a", 2, 2), append("a", 4, 4)], &[("a", 4)]),
        commit(&[append("b", 2, 2), append("c", 1, 1)], &[("b", 2), ("c", 1)]),
        commit(&[compact("old", 1, 2), append("a", 5, 5)], &[("a", 5)]),
        commit(&[append("a", 6, 6), append("old", 2, 3)], &[("a", 6), ("old", 3)]),
        commit(&[append("b", 3, 3), compact("b", 3, 3), append("b", 4, 4)], &[("b", 4)]),
        commit(&[append("b", 5, 5)], &[("b", 5)]),
    ]
}

/// Every step of the run, and every byte of its writes.
fn every_cut(fsync: Fsync) -> Vec<(usize, usize)> {
    let cuts = Arc::<Mutex<Vec<_>>>::default();
    let log = Arc::clone(&cuts);
    let disk = SimulatedDisk::new();
    disk.put("old.y", &b"VERSION:1\n\x0e\x01\x01\x01\x00\x04\x01\x04text\x01a\x00\x00"[..]);
    disk.script(move |step| {
        let bytes = if let Operation::Write(len) = step.operation { len } else { 0 };
        log.lock().unwrap().extend((0..=bytes).map(|bytes| (step.number, bytes)));
        Fate::Work
    });
    let mut store = FileStore::on(disk).with_fsync(fsync).unwrap();
    store.load(&name("old")).unwrap();
    for commit in commits() {
        store.commit(&commit.writes).unwrap();
    }
    drop(store);
    Arc::into_inner(cuts).unwrap().into_inner().unwrap()
}

/// What may be on the disk when the power is back.
fn every_restart(disk: &SimulatedDisk) -> Vec<impl Fn() -> SimulatedDisk> {
    let unsynced = [Unsynced::Lost, Unsynced::Kept, Unsynced::Zeroed];
    let restarts = unsynced
        .into_iter()
        .flat_map(|unsynced| (0..=disk.unsynced_names()).map(move |names| (unsynced, names)));
    restarts
        .map(|(unsynced, names)| {
            let disk = disk.clone();
            move || disk.restart(unsynced, names)
        })
        .collect()
}

#[test]
fn sqlite_keeps_what_it_acknowledged_wherever_its_log_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let mut store = SqliteStore::open(&path).unwrap();
    store.load(&name("a")).unwrap();
    // How long the log was when it was acknowledged that there is this much.
    let mut acknowledged = vec![(fs::read(wal(&path)).unwrap().len(), 0)];
    for number in 1..=6 {
        let mut writes = vec![append("a", number, number)];
        if number == 4 {
            writes.push(compact("a", number, number));
        }
        store.commit(&writes).unwrap();
        acknowledged.push((fs::read(wal(&path)).unwrap().len(), number));
    }
    let (database, log) = (fs::read(&path).unwrap(), fs::read(wal(&path)).unwrap());
    assert!(
        acknowledged.is_sorted_by(|before, after| before.0 < after.0),
        "nothing was written back meanwhile"
    );

    let frames = (WAL_HEADER_LEN..=log.len()).step_by(WAL_FRAME_LEN);
    let cuts = frames.flat_map(|border| [0, 1, 12, 24, 2000, WAL_FRAME_LEN - 1].map(|more| border + more));
    let mut checked = 0;
    for cut in cuts.filter(|&cut| cut <= log.len()) {
        let reached = acknowledged.partition_point(|&(len, _)| len <= cut);
        let least = reached.checked_sub(1).map_or(0, |last| acknowledged[last].1);
        let most = acknowledged.get(reached).map_or(least, |&(_, number)| number);
        for tail in [Vec::new(), vec![0; log.len() - cut], vec![0xa5; log.len() - cut]] {
            let copy = memory();
            let path = copy.path().join("store.db");
            fs::write(&path, &database).unwrap();
            fs::write(wal(&path), [&log[..cut], &tail].concat()).unwrap();
            let found = reopened(&path);
            assert!((least..=most).contains(&found), "cut at {cut}: {found} of {least} to {most}");
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked}");
}

#[test]
fn sqlite_keeps_what_it_acknowledged_when_the_power_fails_while_its_log_is_written_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let mut store = SqliteStore::open(&path).unwrap();
    store.load(&name("a")).unwrap();
    for number in 1..=20 {
        store.commit(&[append("a", number, number)]).unwrap();
    }
    let (before, log) = (fs::read(&path).unwrap(), fs::read(wal(&path)).unwrap());
    // Closing the last connection writes everything back.
    drop(store);
    let mut after = fs::read(&path).unwrap();
    assert!(!wal(&path).exists() && before != after);
    after.resize(after.len().max(before.len()), 0);
    for cut in (0..=after.len()).step_by(1024) {
        let copy = memory();
        let path = copy.path().join("store.db");
        let rest = before.get(cut..).unwrap_or_default();
        fs::write(&path, [&after[..cut], rest].concat()).unwrap();
        fs::write(wal(&path), &log).unwrap();
        assert_eq!(reopened(&path), 20, "written back up to {cut}");
    }
}

/// Opens what a power failure has left, and answers how much is there. More can be added to it.
fn reopened(path: &Path) -> u64 {
    let mut store = SqliteStore::open(path).unwrap();
    let found = count(&store.load(&name("a")).unwrap());
    store.commit(&[append("a", 1, found + 1)]).unwrap();
    assert_eq!(count(&store.load(&name("a")).unwrap()), found + 1);
    found
}

/// A folder that is no disk, where there is such a thing: for copies.
fn memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn wal(path: &Path) -> std::path::PathBuf {
    path.with_extension("db-wal")
}

/// How many numbers the updates hold, which must be all from 1 on.
fn count(updates: &[Bytes]) -> u64 {
    let numbers: BTreeSet<_> = updates
        .iter()
        .flat_map(|update| {
            let update = Update::scan(update.clone(), &ScanRules::default()).expect("only whole updates");
            update.inserts().map(|(client, _)| client.get()).collect::<Vec<_>>()
        })
        .collect();
    assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "{numbers:?}");
    numbers.len() as u64
}

/// What client `number` types first: one letter.
fn update(number: u64) -> Bytes {
    let client = u8::try_from(number).unwrap();
    assert!(client < 0x80);
    Bytes::copy_from_slice(&[1, 1, client, 0, 4, 1, 4, b't', b'e', b'x', b't', 1, b'a', 0])
}

fn append(room: &str, seq: u64, number: u64) -> Write {
    Write::Append { room: name(room), seq, update: update(number) }
}

/// Makes one of all numbers up to this.
fn compact(room: &str, seq: u64, number: u64) -> Write {
    let updates: Vec<_> =
        (1..=number).map(|number| Update::scan(update(number), &ScanRules::default()).unwrap()).collect();
    Write::Compact { room: name(room), seq, state: vec![join(&updates).bytes().clone()] }
}

fn name(name: &str) -> RoomName {
    RoomName::new(name).unwrap()
}

const ROOMS: [&str; 4] = ["a", "b", "c", "old"];

const WAL_HEADER_LEN: usize = 32;
const WAL_FRAME_LEN: usize = 24 + 4096;
