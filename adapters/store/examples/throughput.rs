//! Measures what group commit gains: `cargo run --release -p yrs-websocket-store --example throughput [FOLDER]`.
//!
//! Updates of 50 bytes into a SQLite database and into files in `FOLDER` (the system's temporary folder by
//! default, which may be no disk at all), each durable before it counts; one outstanding write per room, as the
//! core does. Then how long it takes to load a document of 200,000 keystrokes: to read it, and to prove and file it
//! as a room does; and the same once it is compacted.

use std::{
    env, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use yrs_websocket::{
    RoomName,
    journal::{Journal, JournalLimits},
    update::{ScanRules, SquashOptions, Update},
};
use yrs_websocket_store::{
    Completion, Disk, FileStore, Folder, Fsync, History, Request, SqliteStore, Store, StoreThread, Write,
    testing::{Faults, FlakyStore},
};

#[path = "../../../tests/traces/trace.rs"]
#[allow(dead_code, reason = "others need the end of the text, too")]
mod trace;

fn main() {
    let base = env::args_os().nth(1).map_or_else(env::temp_dir, Into::into);
    println!(
        "{:<8} {:>6} {:<13} {:>10} {:>10} {:>10} {:>14}",
        "store", "rooms", "commits", "updates/s", "commits/s", "fsyncs/s", "updates/commit"
    );
    for rooms in [1, 50, 1000] {
        for grouped in [false, true] {
            let folder = tempfile::tempdir_in(&base).expect("the folder can be written");
            let store = SqliteStore::open(folder.path().join("store.db")).expect("a new database");
            // A transaction syncs the log. Now and then it is written back to the database, which takes two more.
            let run = measure(store, rooms, grouped, &AtomicUsize::new(0));
            print("SQLite", rooms, grouped, &run, run.commits);

            let folder = tempfile::tempdir_in(&base).expect("the folder can be written");
            let syncs = Arc::<AtomicUsize>::default();
            let disk = Counting(Folder::open(folder.path()).expect("a new folder"), Arc::clone(&syncs));
            let run = measure(FileStore::on(disk), rooms, grouped, &syncs);
            print("files", rooms, grouped, &run, syncs.load(Ordering::Relaxed));
        }
    }
    println!(
        "\n{:<8} {:<14} {:>9} {:>9} {:>10} {:>10}",
        "store", "keystrokes", "records", "bytes", "read", "as a room"
    );
    let folder = tempfile::tempdir_in(&base).expect("the folder can be written");
    loads("SQLite", SqliteStore::open(folder.path().join("store.db")).expect("a new database"));
    let files = FileStore::open(folder.path().join("files")).expect("a new folder");
    loads("files", files.with_fsync(Fsync::Never).expect("no thread"));
}

/// What was done in how long a time.
struct Run {
    updates: usize,
    commits: usize,
    elapsed: Duration,
}

fn print(store: &str, rooms: usize, grouped: bool, run: &Run, syncs: usize) {
    let per_second = |count: usize| count as f64 / run.elapsed.as_secs_f64();
    println!(
        "{store:<8} {rooms:>6} {:<13} {:>10.0} {:>10.0} {:>10.0} {:>14.1}",
        if grouped { "grouped" } else { "one by one" },
        per_second(run.updates),
        per_second(run.commits),
        per_second(syncs),
        run.updates as f64 / run.commits as f64
    );
}

fn measure(mut store: impl Store, rooms: usize, grouped: bool, syncs: &AtomicUsize) -> Run {
    // Every room exists, so that no file has to be made.
    let writes: Vec<_> =
        (0..rooms).map(|n| Write::Append { room: room(n), seq: 0, update: update() }).collect();
    store.commit(&writes).expect("a disk");
    syncs.store(0, Ordering::Relaxed);
    if !grouped {
        let started = now();
        let mut count = 0;
        while started.elapsed() < RUN {
            count += 1;
            let write = Write::Append { room: room(count % rooms), seq: count as u64, update: update() };
            store.commit(&[write]).expect("a disk");
        }
        return Run { updates: count, commits: count, elapsed: started.elapsed() };
    }

    let (store, faults): (_, Faults) = FlakyStore::new(store);
    let (done, completions) = mpsc::channel();
    let thread = StoreThread::<usize>::spawn(store, Duration::ZERO, move |round| {
        // The receiver is gone once the run is over.
        let _ = done.send(round);
    })
    .expect("a thread");
    let submit = |index, seq| {
        thread.submit(index, Request::Append { room: room(index), seq, update: update() });
    };
    let started = now();
    (0..rooms).for_each(|room| submit(room, 1));
    let mut updates = 0;
    while started.elapsed() < RUN {
        for (room, completion) in completions.recv().expect("the thread runs") {
            let Completion::Stored { seq, .. } = completion else { panic!("{completion:?}") };
            updates += 1;
            submit(room, seq + 1);
        }
    }
    let run = Run { updates, commits: faults.commits(), elapsed: started.elapsed() };
    thread.shutdown();
    run
}

fn loads(name: &str, mut store: impl History) {
    let room = room(0);
    store.load(&room).expect("an empty room");
    let keystrokes = &trace::automerge_paper().updates[..200_000];
    for (thousand, updates) in (0..).zip(keystrokes.chunks(1000)) {
        let append = |(seq, update): (u64, &Bytes)| Write::Append {
            room: room.clone(),
            seq: thousand * 1000 + seq,
            update: update.clone(),
        };
        store.commit(&(1..).zip(updates).map(append).collect::<Vec<_>>()).expect("a disk");
    }
    load(name, "one by one", &mut store);
    store.compact(&room, SquashOptions { collect: true }).expect("a squash");
    load(name, "compacted", &mut store);
}

fn load(name: &str, how: &str, store: &mut impl Store) {
    let (mut reading, mut all) = (Vec::new(), Vec::new());
    let (mut records, mut bytes) = (0, 0);
    for _ in 0..5 {
        let started = now();
        let updates = store.load(&room(0)).expect("what was written");
        reading.push(started.elapsed());
        (records, bytes) = (updates.len(), updates.iter().map(Bytes::len).sum::<usize>());
        let mut journal = Journal::new(JournalLimits::default());
        for update in updates {
            journal.restore(&Update::scan(update, &ScanRules::default()).expect("it was written so"));
        }
        all.push(started.elapsed());
    }
    reading.sort_unstable();
    all.sort_unstable();
    println!("{name:<8} {how:<14} {records:>9} {bytes:>9} {:>10.2?} {:>10.2?}", reading[2], all[2]);
}

/// Counts how often something is made durable.
struct Counting(Folder, Arc<AtomicUsize>);

impl Disk for Counting {
    type File = <Folder as Disk>::File;

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        self.0.read(path)
    }

    fn open(&self, path: &Path) -> io::Result<Option<Self::File>> {
        self.0.open(path)
    }

    fn create(&self, path: &Path) -> io::Result<Self::File> {
        self.0.create(path)
    }

    fn len(&self, file: &Self::File) -> io::Result<u64> {
        self.0.len(file)
    }

    fn write(&self, file: &mut Self::File, at: u64, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(file, at, bytes)
    }

    fn truncate(&self, file: &Self::File, len: u64) -> io::Result<()> {
        self.0.truncate(file, len)
    }

    fn sync(&self, file: &Self::File) -> io::Result<()> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.sync(file)
    }

    fn sync_all(&self, files: &[Self::File]) -> Vec<io::Result<()>> {
        self.1.fetch_add(files.len(), Ordering::Relaxed);
        self.0.sync_all(files)
    }

    fn sync_names(&self, path: &Path) -> io::Result<()> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.sync_names(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn keep(&self, path: &Path, second: &Path) -> io::Result<()> {
        self.0.keep(path, second)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }

    fn paths(&self) -> io::Result<Vec<PathBuf>> {
        self.0.paths()
    }
}

#[allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn now() -> Instant {
    Instant::now()
}

fn room(n: usize) -> RoomName {
    RoomName::new(&format!("room-{n}")).expect("a valid name")
}

fn update() -> Bytes {
    Bytes::from_static(&[7; 50])
}

const RUN: Duration = Duration::from_secs(3);
