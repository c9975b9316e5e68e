//! The store thread: order, group commit, and failures that stay where they arise.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    time::Duration,
};

use bytes::Bytes;
use yrs_websocket::RoomName;
use yrs_websocket_store::{
    Completion, Job, MemoryStore, Request, SqliteStore, Store, StoreError, StoreThread, Write,
    testing::{Call, Faults, FlakyStore},
};

#[test]
fn all_that_waits_is_one_transaction() {
    let (thread, faults, done) = spawn(MemoryStore::new());
    block_with_a_commit(&thread, &faults);
    for n in 0..500 {
        thread.submit(n, append(&room(n), 1, "update"));
    }
    faults.release();
    assert_eq!(take(&done, 1), [(BLOCKER, stored(&name("blocker"), 1))]);
    let expected: Vec<_> = (0..500).map(|n| (n, stored(&room(n), 1))).collect();
    assert_eq!(take(&done, 500), expected);
    assert_eq!(faults.commits(), 2);
    thread.shutdown();
}

#[test]
fn between_two_transactions_appends_gather_until_a_load_or_somebody_hurries() {
    let (thread, faults, done) = spawn_with_interval(MemoryStore::new(), LONG);
    let [a, b, c] = ["a", "b", "c"].map(name);
    thread.submit(0, append(&a, 1, "one"));
    assert_eq!(take(&done, 1), [(0, stored(&a, 1))]);
    thread.submit(1, append(&a, 2, "two"));
    thread.submit(2, append(&b, 1, "three"));
    thread.submit(3, Request::Load(c.clone()));
    assert_eq!(take(&done, 3), [(3, loaded(&c, &[])), (1, stored(&a, 2)), (2, stored(&b, 1))]);
    assert_eq!(faults.commits(), 2);
    // Nobody waits for an unloading: it begins no transaction.
    faults.hold();
    thread.submit(0, Request::Load(c.clone()));
    faults.wait_until_held();
    thread.submit(0, Request::Unload(c));
    thread.submit(4, append(&a, 3, "four"));
    faults.release();
    take(&done, 1);
    thread.submit(5, append(&b, 2, "five"));
    thread.hurry();
    assert_eq!(take(&done, 2), [(4, stored(&a, 3)), (5, stored(&b, 2))]);
    assert_eq!(faults.commits(), 3);
    thread.submit(6, append(&a, 4, "six"));
    assert_eq!(take(&done, 1), [(6, stored(&a, 4))]);
}

#[test]
fn what_gathers_is_written_after_the_interval_and_at_the_end() {
    let (thread, _, done) = spawn_with_interval(MemoryStore::new(), Duration::from_millis(1));
    let a = name("a");
    for seq in 1..=3 {
        thread.submit(0, append(&a, seq, "update"));
        assert_eq!(take(&done, 1), [(0, stored(&a, seq))]);
    }
    let (thread, _, done) = spawn_with_interval(MemoryStore::new(), LONG);
    for seq in 1..=2 {
        thread.submit(0, append(&a, seq, "update"));
    }
    thread.shutdown();
    assert_eq!(take(&done, 2), [(0, stored(&a, 1)), (0, stored(&a, 2))]);
}

#[test]
fn a_room_is_first_in_first_out() {
    let (thread, faults, done) = spawn(MemoryStore::new());
    block_with_a_commit(&thread, &faults);
    let room = name("room");
    thread.submit(0, Request::Load(room.clone()));
    thread.submit(1, append(&room, 1, "one"));
    thread.submit(2, Request::Load(room.clone()));
    thread.submit(3, append(&room, 1, "two"));
    thread.submit(4, append(&room, 2, "three"));
    thread.submit(5, compact(&room, 2, &["one two three"], 42));
    thread.submit(6, append(&room, 3, "four"));
    thread.submit(7, Request::Unload(room.clone()));
    thread.submit(8, Request::Load(room.clone()));
    thread.submit(9, append(&room, 1, "five"));
    thread.submit(10, Request::Load(room.clone()));
    faults.release();
    take(&done, 1);
    assert_eq!(
        take(&done, 10),
        [
            (0, loaded(&room, &[])),
            (1, stored(&room, 1)),
            (2, loaded(&room, &["one"])),
            (3, stored(&room, 1)),
            (4, stored(&room, 2)),
            (5, Completion::Compacted { room: room.clone(), seq: 2, done: 42 }),
            (6, stored(&room, 3)),
            (8, loaded(&room, &["one two three", "four"])),
            (9, stored(&room, 1)),
            (10, loaded(&room, &["one two three", "four", "five"])),
        ]
    );
    thread.shutdown();
}

#[test]
fn a_load_does_not_wait_for_the_writes_of_others() {
    let (thread, faults, done) = spawn(MemoryStore::new());
    block_with_a_commit(&thread, &faults);
    thread.submit(0, append(&name("written"), 1, "one"));
    thread.submit(1, Request::Load(name("other")));
    thread.submit(2, Request::Load(name("written")));
    faults.release();
    take(&done, 1);
    assert_eq!(
        take(&done, 3),
        [
            (1, loaded(&name("other"), &[])),
            (0, stored(&name("written"), 1)),
            (2, loaded(&name("written"), &["one"])),
        ]
    );
    thread.shutdown();
}

#[test]
fn one_rooms_failure_is_its_own() {
    let (thread, faults, done) = spawn(MemoryStore::new());
    block_with_a_commit(&thread, &faults);
    faults.script(|call| match call {
        Call::Commit(writes) if writes.iter().any(|write| write.room().as_str() == "bad") => Err(broken()),
        Call::Commit(_) | Call::Load(_) => Ok(()),
    });
    for (tag, room) in ["good", "bad", "fine", "good", "bad"].into_iter().enumerate() {
        thread.submit(tag, append(&name(room), tag as u64, room));
    }
    faults.release();
    take(&done, 1);
    let failed = |seq| Completion::Failed { room: name("bad"), seq, error: broken() };
    assert_eq!(
        take(&done, 5),
        [
            (0, stored(&name("good"), 0)),
            (1, failed(1)),
            (2, stored(&name("fine"), 2)),
            (3, stored(&name("good"), 3)),
            (4, failed(4)),
        ]
    );
    faults.heal();
    for room in ["good", "bad"] {
        thread.submit(9, Request::Load(name(room)));
    }
    assert_eq!(take(&done, 1), [(9, loaded(&name("good"), &["good", "good"]))]);
    assert_eq!(take(&done, 1), [(9, loaded(&name("bad"), &[]))]);
    thread.shutdown();
}

#[test]
fn a_locked_store_is_tried_once_for_all() {
    let (thread, faults, done) = spawn(MemoryStore::new());
    block_with_a_commit(&thread, &faults);
    faults.script(|_| Err(StoreError::Busy));
    for n in 0..20 {
        thread.submit(n, append(&room(n), 1, "update"));
    }
    faults.release();
    // The blocker has passed the gate, but not the script.
    for (_, completion) in take(&done, 21) {
        assert!(matches!(completion, Completion::Failed { error: StoreError::Busy, .. }));
    }
    assert_eq!(faults.commits(), 2);
    thread.shutdown();
}

#[test]
fn a_failed_load_is_an_error_and_not_an_empty_room() {
    let (thread, faults, done) = spawn(MemoryStore::new());
    faults.fail_next(1, broken());
    thread.submit(0, Request::Load(name("room")));
    thread.submit(1, Request::Load(name("room")));
    assert_eq!(
        take(&done, 2),
        [
            (0, Completion::LoadFailed { room: name("room"), error: broken() }),
            (1, loaded(&name("room"), &[])),
        ]
    );
    thread.shutdown();
}

#[test]
fn a_write_that_failed_can_be_written_again() {
    let (thread, faults, done) = spawn(SqliteStore::in_memory().unwrap());
    let room = name("room");
    thread.submit(0, Request::Load(room.clone()));
    take(&done, 1);
    faults.fail(broken());
    for seq in [1, 1, 1] {
        thread.submit(0, append(&room, seq, "one"));
        assert_eq!(take(&done, 1), [(0, Completion::Failed { room: room.clone(), seq, error: broken() })]);
    }
    faults.heal();
    thread.submit(0, append(&room, 1, "one"));
    thread.submit(0, Request::Load(room.clone()));
    assert_eq!(take(&done, 2), [(0, stored(&room, 1)), (0, loaded(&room, &["one"]))]);
    thread.shutdown();
}

#[test]
fn a_store_that_panics_is_contained() {
    let (thread, faults, done) = spawn(SqliteStore::in_memory().unwrap());
    let room = name("room");
    faults.script(|_| panic!("on purpose"));
    let error = StoreError::Panicked { message: "on purpose".into() };
    thread.submit(0, Request::Load(room.clone()));
    assert_eq!(take(&done, 1), [(0, Completion::LoadFailed { room: room.clone(), error: error.clone() })]);
    thread.submit(0, append(&room, 1, "one"));
    assert_eq!(take(&done, 1), [(0, Completion::Failed { room: room.clone(), seq: 1, error })]);
    faults.heal();
    thread.submit(0, append(&room, 1, "one"));
    assert_eq!(take(&done, 1), [(0, stored(&room, 1))]);
    thread.shutdown();
}

#[test]
fn a_job_that_panics_is_contained_and_loses_nothing() {
    let (thread, _, done) = spawn(MemoryStore::new());
    let room = name("room");
    thread.submit(0, append(&room, 1, "one"));
    thread.submit(1, Request::Compact { room: room.clone(), seq: 1, job: Job::new(|| panic!("on purpose")) });
    thread.submit(2, Request::Load(room.clone()));
    assert_eq!(
        take(&done, 3),
        [
            (0, stored(&room, 1)),
            (
                1,
                Completion::Failed {
                    room: room.clone(),
                    seq: 1,
                    error: StoreError::Panicked { message: "on purpose".into() },
                }
            ),
            (2, loaded(&room, &["one"])),
        ]
    );
    thread.shutdown();
}

#[test]
fn a_failed_compaction_keeps_what_it_would_have_replaced() {
    let (thread, faults, done) = spawn(SqliteStore::in_memory().unwrap());
    let room = name("room");
    thread.submit(0, append(&room, 1, "one"));
    take(&done, 1);
    faults.fail_next(1, broken());
    thread.submit(0, compact(&room, 1, &["state"], 0));
    assert_eq!(take(&done, 1), [(0, Completion::Failed { room: room.clone(), seq: 1, error: broken() })]);
    thread.submit(0, Request::Load(room.clone()));
    assert_eq!(take(&done, 1), [(0, loaded(&room, &["one"]))]);
    thread.submit(0, compact(&room, 0, &["state"], 0));
    thread.submit(0, Request::Load(room.clone()));
    assert_eq!(take(&done, 2)[1], (0, loaded(&room, &["state"])));
    thread.shutdown();
}

#[test]
fn an_append_waits_for_one_job_at_most_and_states_share_a_transaction() {
    let (thread, faults, done) = spawn(MemoryStore::new());
    block_with_a_commit(&thread, &faults);
    let (started, has_started) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let first = Job::new(move || {
        started.send(()).unwrap();
        may_go_on.recv().unwrap();
        (vec![Bytes::from("state")], 0)
    });
    thread.submit(0, Request::Compact { room: room(0), seq: 0, job: first });
    for n in 1..10 {
        thread.submit(n, compact(&room(n), 0, &["state"], n));
    }
    faults.release();
    take(&done, 1);
    has_started.recv().unwrap();
    thread.submit(10, append(&room(10), 1, "urgent"));
    go_on.send(()).unwrap();
    let compacted = |n| (n, Completion::Compacted { room: room(n), seq: 0, done: n });
    // The append, and the one state that was ready, are written before the other jobs run.
    assert_eq!(take(&done, 2), [compacted(0), (10, stored(&room(10), 1))]);
    let mut rest = take(&done, 9);
    rest.sort_by_key(|(tag, _)| *tag);
    assert_eq!(rest, (1..10).map(compacted).collect::<Vec<_>>());
    assert_eq!(faults.commits(), 3);
    thread.shutdown();
}

#[test]
fn shutdown_finishes_what_was_submitted_and_closes_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let (thread, faults, done) = spawn(SqliteStore::open(&path).unwrap());
    faults.hold();
    for n in 0..100 {
        thread.submit(n, append(&room(n % 7), n as u64, "update"));
    }
    thread.submit(100, compact(&room(0), 1000, &["state"], 0));
    faults.release();
    thread.shutdown();
    thread.shutdown();
    assert_eq!(take(&done, 101).len(), 101);
    assert!(done.recv().is_err(), "the thread and its callback are gone");
    let files: Vec<_> = folder.path().read_dir().unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["store.db"], "the write-ahead log was written back and removed");
    let mut store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.load(&room(0)), Ok(vec![Bytes::from("state")]));
    assert_eq!(store.load(&room(1)).unwrap().len(), 15);
}

#[test]
fn dropping_the_thread_finishes_what_was_submitted_too() {
    let (thread, _, done) = spawn(MemoryStore::new());
    for n in 0..100 {
        thread.submit(n, append(&room(n), 1, "update"));
    }
    drop(thread);
    assert_eq!(take(&done, 100).len(), 100);
    assert!(done.recv().is_err());
}

#[test]
fn a_write_says_whose_it_is() {
    for write in [
        Write::Append { room: name("room"), seq: 3, update: Bytes::new() },
        Write::Compact { room: name("room"), seq: 3, state: vec![] },
    ] {
        assert_eq!((write.room(), write.seq()), (&name("room"), 3));
    }
}

#[test]
fn after_a_panic_of_on_done_nothing_that_was_submitted_lives_on() {
    let (begun, has_begun) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let thread = StoreThread::<usize, usize>::spawn(MemoryStore::new(), Duration::ZERO, move |_| {
        begun.send(()).unwrap();
        may_go.recv().unwrap();
        panic!("on_done");
    })
    .unwrap();
    thread.submit(0, append(&name("room"), 1, "update"));
    has_begun.recv_timeout(PATIENCE).unwrap();
    let owned = Arc::new(());
    let job = Arc::clone(&owned);
    let job = Job::new(move || (Vec::new(), Arc::strong_count(&job)));
    thread.submit(1, Request::Compact { room: name("room"), seq: 2, job });
    go.send(()).unwrap();
    catch_unwind(AssertUnwindSafe(|| thread.shutdown())).unwrap_err();
    assert_eq!(Arc::strong_count(&owned), 1);
}

const BLOCKER: usize = usize::MAX;

/// Longer than anybody waits for a test.
const LONG: Duration = Duration::from_secs(3600);

/// What takes longer never comes.
const PATIENCE: Duration = Duration::from_secs(60);

type Done = Receiver<(usize, Completion<usize>)>;

fn spawn(store: impl Store) -> (StoreThread<usize, usize>, Faults, Done) {
    spawn_with_interval(store, Duration::ZERO)
}

fn spawn_with_interval(store: impl Store, interval: Duration) -> (StoreThread<usize, usize>, Faults, Done) {
    let (store, faults) = FlakyStore::new(store);
    let (done, receiver) = mpsc::channel();
    let thread = StoreThread::spawn(store, interval, move |completions| {
        for completion in completions {
            // A test that ended early is told so by itself.
            let _ = done.send(completion);
        }
    });
    (thread.unwrap(), faults, receiver)
}

/// Keeps the thread busy with a commit, so that what is submitted next gathers.
fn block_with_a_commit(thread: &StoreThread<usize, usize>, faults: &Faults) {
    faults.hold();
    thread.submit(BLOCKER, append(&name("blocker"), 1, "update"));
    faults.wait_until_held();
}

fn take(done: &Done, count: usize) -> Vec<(usize, Completion<usize>)> {
    (0..count).map(|_| done.recv_timeout(PATIENCE).expect("nothing comes")).collect()
}

fn name(name: &str) -> RoomName {
    RoomName::new(name).unwrap()
}

fn room(n: usize) -> RoomName {
    name(&format!("room-{n}"))
}

fn append(room: &RoomName, seq: u64, update: &'static str) -> Request<usize> {
    Request::Append { room: room.clone(), seq, update: update.into() }
}

fn compact(room: &RoomName, seq: u64, state: &[&'static str], done: usize) -> Request<usize> {
    let state: Vec<_> = state.iter().map(|state| Bytes::from(*state)).collect();
    Request::Compact { room: room.clone(), seq, job: Job::new(move || (state, done)) }
}

fn stored(room: &RoomName, seq: u64) -> Completion<usize> {
    Completion::Stored { room: room.clone(), seq }
}

fn loaded(room: &RoomName, updates: &[&'static str]) -> Completion<usize> {
    let updates = updates.iter().map(|update| Bytes::from(*update)).collect();
    Completion::Loaded { room: room.clone(), updates }
}

fn broken() -> StoreError {
    StoreError::Io { message: "a broken disk".into() }
}
