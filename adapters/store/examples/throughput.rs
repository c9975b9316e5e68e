//! Measures what group commit gains: `cargo run --release -p yrs-websocket-store --example throughput [FOLDER]`.
//!
//! Updates of 50 bytes into a SQLite database in `FOLDER` (the system's temporary folder by default, which
//! may be no disk at all), each durable before it counts; one outstanding write per room, as the core does.

use std::{
    env,
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use yrs_websocket::RoomName;
use yrs_websocket_store::{
    Completion, Request, SqliteStore, Store, StoreThread, Write,
    testing::{Faults, FlakyStore},
};

fn main() {
    let base = env::args_os().nth(1).map_or_else(env::temp_dir, Into::into);
    println!("{:>6} {:>12} {:>14} {:>20}", "rooms", "appends/s", "transactions/s", "appends/transaction");
    let folder = tempfile::tempdir_in(&base).expect("the folder can be written");
    let alone = one_by_one(&folder.path().join("alone.db"));
    println!("{:>6} {alone:>12.0} {alone:>14.0} {:>20.1}  without group commit", "-", 1.0);
    for rooms in [1, 50, 1000] {
        let (appends, transactions) = grouped(&folder.path().join(format!("{rooms}.db")), rooms);
        println!("{rooms:>6} {appends:>12.0} {transactions:>14.0} {:>20.1}", appends / transactions);
    }
    let (count, with, without) = loads(&folder.path().join("load.db"));
    println!("loading {count} updates: {with:.1?}; once compacted: {without:.1?}");
}

fn one_by_one(path: &Path) -> f64 {
    let mut store = SqliteStore::open(path).expect("a new database");
    let started = now();
    let mut count = 0;
    while started.elapsed() < RUN {
        count += 1;
        store.commit(&[Write::Append { room: room(count % 50), seq: 1, update: update() }]).expect("a disk");
    }
    count as f64 / started.elapsed().as_secs_f64()
}

fn grouped(path: &Path, rooms: usize) -> (f64, f64) {
    let (store, faults): (_, Faults) = FlakyStore::new(SqliteStore::open(path).expect("a new database"));
    let (done, completions) = mpsc::channel();
    let thread = StoreThread::<usize>::spawn(store, move |round| {
        // The receiver is gone once the run is over.
        let _ = done.send(round);
    })
    .expect("a thread");
    let submit = |room_index, seq| {
        thread.submit(room_index, Request::Append { room: room(room_index), seq, update: update() })
    };
    let started = now();
    (0..rooms).for_each(|room| submit(room, 1));
    let mut count = 0;
    while started.elapsed() < RUN {
        for (room, completion) in completions.recv().expect("the thread runs") {
            let Completion::Stored { seq, .. } = completion else { panic!("{completion:?}") };
            count += 1;
            submit(room, seq + 1);
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    (count as f64 / seconds, faults.commits() as f64 / seconds)
}

fn loads(path: &Path) -> (u64, Duration, Duration) {
    let count = 200_000;
    let mut store = SqliteStore::open(path).expect("a new database");
    let room = room(0);
    store.load(&room).expect("an empty room");
    for seq in (0..count).step_by(1000) {
        let writes: Vec<_> = (seq..seq + 1000)
            .map(|seq| Write::Append { room: room.clone(), seq, update: update() })
            .collect();
        store.commit(&writes).expect("a disk");
    }
    let mut timed_load = || {
        let started = now();
        store.load(&room).expect("what was written");
        started.elapsed()
    };
    let with = timed_load();
    let state = vec![Bytes::from(vec![7; 200_000])];
    store.commit(&[Write::Compact { room: room.clone(), seq: 0, state }]).expect("a disk");
    let started = now();
    store.load(&room).expect("what was written");
    (count, with, started.elapsed())
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
