//! What the SQLite store does besides keeping what it is given: the tests of pycrdt-store, with the content
//! compared where that only counts rows, and its defects.
//!
//! The defects were seen in pycrdt-store 0.1.5 (1 to 6) and ypy-websocket 0.12.4 (7, 8). Each test fails on a
//! store that has the defect.
//!
//! | | defect | test |
//! |---|---|---|
//! | 1 | Squashing without compression stores an empty document | `squashing_keeps_the_document` |
//! | 2 | What was written without `ycheckpoints` is found empty, and from the 100th write on lost | `a_database_without_checkpoints_loads_and_takes_hundreds_of_writes` |
//! | 3 | What follows a checkpoint is not decompressed | `compressed_records_load_with_and_without_a_checkpoint` |
//! | 4 | The clock steps back: records are not loaded, nor in the next checkpoint | `records_older_than_the_checkpoint_are_loaded_and_in_the_next_one` |
//! | 5 | A write that meets a lock is dropped in silence | `a_lock_held_by_another_process_is_busy_and_nothing_is_lost` in `sqlite.rs`, `a_lock_during_upkeep_is_busy_and_nothing_is_lost` |
//! | 6 | Squashes and checkpoints drop what misses something, and deleted content | `squashes_and_checkpoints_keep_what_misses_something`, `deleted_content_stays_unless_it_may_go` |
//! | 7 | The second backup overwrites the first | `backups_take_names_that_are_free` |
//! | 8 | What cannot be opened hangs every read and write | `what_cannot_be_opened_is_an_error_at_once` |

mod common;

use std::{fs, sync::Arc, time::Duration};

use bytes::Bytes;
use common::*;
use proptest::{collection::vec, prelude::*};
use rusqlite::Connection;
use yrs::{ReadTxn as _, StateVector, Text as _, Transact as _};
use yrs_websocket_store::{
    Compression, History, Moment, OpenError, SqliteOptions, SqliteStore, Store, StoreError, Zlib, backup,
};

#[test]
fn squashing_keeps_the_document() {
    let (_folder, path) = fixture("pycrdt-store-0.1.5");
    let mut store = open(&path, |options| options.squash_after_inactivity_of = Some(Duration::from_secs(60)));
    store.load(&name("room-1")).unwrap();
    store.commit(&[append("room-1", 1, Bytes::from_static(NOTHING))]).unwrap();
    let connection = Connection::open(&path).unwrap();
    assert_eq!(count(&connection, "SELECT count(*) FROM yupdates"), 2);
    assert_eq!(count(&connection, "SELECT count(*) FROM ycheckpoints"), 0);
    let updates = store.load(&name("room-1")).unwrap();
    assert_eq!((updates.len(), text(&updates).as_str()), (1, "Hello, World!"));
}

/// pycrdt-store's `test_squash_after_inactivity_of_sqlite_ystore`.
#[test]
fn a_room_is_squashed_when_it_is_written_to_after_long_inactivity() {
    let (_folder, path) = empty();
    let now = 1.7e9;
    let mut store =
        open(&path, |options| options.squash_after_inactivity_of = Some(Duration::from_secs(1000)))
            .with_clock(clock([now, now, now, now + 1001.0]));
    let connection = Connection::open(&path).unwrap();
    for (n, update) in (1..).zip(typed(&["a", "b", "c", "d"])) {
        store.commit(&[append("room", n, update)]).unwrap();
        let expected = if n == 4 { 2 } else { n as i64 };
        assert_eq!(count(&connection, "SELECT count(*) FROM yupdates"), expected);
    }
    assert_eq!(text(&store.load(&name("room")).unwrap()), "abcd");
    let newest = "SELECT count(*) FROM yupdates WHERE timestamp BETWEEN 1.7e9 AND 1.7e9 + 1";
    assert_eq!(count(&connection, newest), 1, "the squashed record is as old as what is in it");
}

/// pycrdt-store's `..._reduces_file_size`.
#[test]
fn the_file_shrinks_when_a_room_is_squashed() {
    let (_folder, path) = empty();
    let mut store =
        open(&path, |options| options.squash_after_inactivity_of = Some(Duration::from_secs(1000)))
            .with_clock(clock((0..1000).map(f64::from).chain([5000.0])));
    let words = vec!["word"; 1001];
    let writes: Vec<_> = (1..).zip(typed(&words)).map(|(seq, update)| append("room", seq, update)).collect();
    store.commit(&writes[..1000]).unwrap();
    checkpointed(&path);
    assert!(fs::metadata(&path).unwrap().len() > 40_000);
    store.commit(&writes[1000..]).unwrap();
    checkpointed(&path);
    let size = fs::metadata(&path).unwrap().len();
    assert!(size < 40_000, "{size}");
    assert_eq!(text(&store.load(&name("room")).unwrap()), words.concat());
}

/// pycrdt-store's `test_history_pruning_with_cleanup_interval`.
#[test]
fn old_history_is_squashed_and_no_more_often_than_allowed() {
    let (_folder, path) = empty();
    let mut store = open(&path, |options| {
        options.squash_history_older_than = Some(Duration::from_secs(3));
        options.squash_no_more_often_than = Duration::from_secs(5);
    })
    .with_clock(clock([0.0, 1.0, 2.0, 6.0, 7.0, 10.5, 12.0]));
    let connection = Connection::open(&path).unwrap();
    // At 6 all older than 3 become one. At 10.5 there is one older than 7.5, but it is too soon. At 12 what
    // is older than 9 is squashed.
    for (n, (update, rows)) in
        (1..).zip(typed(&["a", "b", "c", "d", "e", "f", "g"]).into_iter().zip([1, 2, 3, 2, 3, 4, 3]))
    {
        store.commit(&[append("room", n, update)]).unwrap();
        assert_eq!(count(&connection, "SELECT count(*) FROM yupdates"), rows, "write {n}");
    }
    let mut times = Vec::new();
    store
        .records(&name("room"), &mut |record| {
            times.push(record.timestamp);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(times, [7.0, 10.5, 12.0]);
    assert_eq!(text(&store.load(&name("room")).unwrap()), "abcdefg");
    assert_eq!(text(&store.document(&name("room"), Moment::Time(11.0)).unwrap()), "abcdef");
}

/// pycrdt-store's `test_version`: it moves the database away and begins an empty one, even to read it.
#[test]
fn a_newer_version_is_an_error_that_says_what_to_do_and_changes_nothing() {
    let (folder, path) = fixture("pycrdt-store-0.1.5");
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 3).unwrap();
    let before = fs::read(&path).unwrap();
    let error = SqliteStore::open(&path).err().unwrap();
    assert_eq!(error, OpenError::Version { found: 3 });
    assert!(error.to_string().contains("update this program"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(folder.path().read_dir().unwrap().count(), 1, "and no backup is made");
    // Back at its version it is as it was.
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 2).unwrap();
    let mut store = SqliteStore::open(&path).unwrap();
    assert_eq!(text(&store.load(&name("room-1")).unwrap()), "Hello, World!");
}

/// pycrdt-store's `test_in_memory_sqlite_ystore_persistence`.
#[test]
fn a_database_in_memory_keeps_what_is_written() {
    let mut store = SqliteStore::in_memory().unwrap();
    let updates = typed(&["foo", "bar", "baz"]);
    for (seq, update) in (1..).zip(&updates) {
        store.commit(&[append("room", seq, update.clone())]).unwrap();
        store.unload(&name("room"));
    }
    assert_eq!(store.load(&name("room")), Ok(updates));
}

/// pycrdt-store's `test_ystore`, as far as it is about metadata.
#[test]
fn each_record_has_the_metadata_that_the_application_gives() {
    let (_folder, path) = empty();
    let mut n = 0;
    let mut store = open(&path, |options| {
        options.metadata = Some(Box::new(move |room| {
            n += 1;
            format!("{room} {n}").into()
        }));
    });
    store.commit(&[append("a", 1, "foo"), append("b", 1, "bar"), append("a", 2, "baz")]).unwrap();
    let mut seen = Vec::new();
    for room in ["a", "b"] {
        store
            .records(&name(room), &mut |record| {
                seen.push((record.update.unwrap(), record.metadata));
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
    }
    let expected = [("foo", "a 1"), ("baz", "a 3"), ("bar", "b 2")];
    assert_eq!(seen, expected.map(|(update, metadata)| (Bytes::from(update), Bytes::from(metadata))));
}

/// pycrdt-store's `test_compression_callbacks_zlib`.
#[test]
fn what_is_stored_is_what_pythons_zlib_reads() {
    let (_folder, path) = empty();
    let mut store = open(&path, |options| options.compression = Some(Arc::new(Zlib)));
    let updates = typed(&["foo", &"bar ".repeat(1000)]);
    store.commit(&[append("room", 1, updates[0].clone()), append("room", 2, updates[1].clone())]).unwrap();
    let connection = Connection::open(&path).unwrap();
    let mut select = connection.prepare("SELECT yupdate FROM yupdates ORDER BY timestamp").unwrap();
    let stored: Vec<Vec<u8>> =
        select.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
    for (stored, update) in stored.iter().zip(&updates) {
        assert_eq!(Zlib.decompress(stored, 10_000).as_deref(), Some(&update[..]));
    }
    assert!(stored[1].len() < 200);
    assert_eq!(store.load(&name("room")), Ok(updates));
}

#[test]
fn compressed_records_load_with_and_without_a_checkpoint() {
    let (_folder, path) = empty();
    let mut store = open(&path, |options| {
        options.compression = Some(Arc::new(Zlib));
        options.checkpoint_every = Some(2);
    });
    for (seq, update) in (1..).zip(typed(&["a", "b", "c"])) {
        store.commit(&[append("room", seq, update)]).unwrap();
        assert_eq!(text(&store.load(&name("room")).unwrap()), "abc"[..seq as usize]);
    }
    // A store that compresses nothing reads it all the same.
    let mut plain = SqliteStore::open(&path).unwrap();
    let updates = plain.load(&name("room")).unwrap();
    assert_eq!((updates.len(), text(&updates).as_str()), (4, "abc"));
    // And so it does if the marks are lost, or Python has compressed it.
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("DELETE FROM ycompressed").unwrap();
    assert_eq!(plain.load(&name("room")), Ok(updates));
}

#[test]
fn what_was_written_is_never_taken_for_something_else() {
    /// Makes of everything an update that says something else.
    struct Treacherous;
    impl Compression for Treacherous {
        fn name(&self) -> &str {
            "treacherous"
        }
        fn compress(&self, record: &[u8]) -> Vec<u8> {
            [typed(&["lie"])[0].to_vec(), record.to_vec()].concat()[..typed(&["lie"])[0].len()].to_vec()
        }
        fn decompress(&self, _: &[u8], _: usize) -> Option<Vec<u8>> {
            Some(typed(&["truth"])[0].to_vec())
        }
    }
    let (_folder, path) = empty();
    // Compressed it is an update, too: only the mark says that it is not what was meant.
    let mut store = open(&path, |options| options.compression = Some(Arc::new(Treacherous)));
    store.commit(&[append("room", 1, typed(&["truth"])[0].clone())]).unwrap();
    assert_eq!(text(&store.load(&name("room")).unwrap()), "truth");
    // And what is written plain is plain, though it could be decompressed.
    let mut plain = open(&path, |options| options.decompression = vec![Arc::new(Treacherous)]);
    plain.commit(&[append("plain", 1, typed(&["lie"])[0].clone())]).unwrap();
    assert_eq!(text(&plain.load(&name("plain")).unwrap()), "lie");
    // Who does not know the compression is told so, and does not guess.
    let mut stranger = SqliteStore::open(&path).unwrap();
    let failed = Err(StoreError::Compressed { codec: "treacherous".into(), key: "room".into() });
    assert_eq!(stranger.load(&name("room")), failed);
    // When another program puts something else in its place, the mark goes.
    let connection = Connection::open(&path).unwrap();
    let timestamp =
        connection.query_row("SELECT timestamp FROM yupdates WHERE path = 'room'", [], |row| row.get(0));
    connection.execute_batch("DELETE FROM yupdates WHERE path = 'room'").unwrap();
    insert(&connection, "room", &typed(&["theirs"])[0], timestamp.unwrap());
    assert_eq!(text(&stranger.load(&name("room")).unwrap()), "theirs");
}

#[test]
fn a_database_without_checkpoints_loads_and_takes_hundreds_of_writes() {
    let (_folder, path) = fixture("ypy-0.12.4");
    let mut store = open(&path, |options| options.checkpoint_every = Some(100));
    let mut expected = text(&store.load(&name("room-1")).unwrap());
    assert_eq!(expected, "Hello, World");
    // Of a client of their own.
    let words = vec!["."; 250];
    for (seq, update) in (1..).zip(typed(&words)) {
        store.commit(&[append("room-1", seq, update)]).unwrap();
    }
    let after = text(&store.load(&name("room-1")).unwrap());
    expected += &words.concat();
    assert_eq!(sorted(&after), sorted(&expected));
    let connection = Connection::open(&path).unwrap();
    assert_eq!(count(&connection, "SELECT count(*) FROM yupdates WHERE path = 'room-1'"), 3 + 250);
    assert_eq!(count(&connection, "SELECT count(*) FROM ycheckpoints"), 1);
}

/// pycrdt-store's `test_sqlite_ystore_checkpoint_loading`, as far as it is about content.
#[test]
fn what_python_reads_with_checkpoints_is_what_it_reads_without() {
    let words: Vec<_> = (0..100).map(|n| format!("{n} ")).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let updates = typed(&words);
    for every in [None, Some(1), Some(10), Some(33), Some(100), Some(101)] {
        let (_folder, path) = empty();
        let mut store = open(&path, |options| options.checkpoint_every = every);
        for (seq, update) in (1..).zip(&updates) {
            store.commit(&[append("room", seq, update.clone())]).unwrap();
        }
        // Python's own query.
        let connection = Connection::open(&path).unwrap();
        let checkpoint = connection
            .query_row("SELECT checkpoint, timestamp FROM ycheckpoints WHERE path = 'room'", [], |row| {
                Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, f64>(1)?))
            })
            .ok();
        let since = checkpoint.as_ref().map_or(0.0, |(_, timestamp)| *timestamp);
        let mut select = connection
            .prepare(
                "SELECT yupdate FROM yupdates WHERE path = 'room' AND timestamp >= ? ORDER BY timestamp ASC",
            )
            .unwrap();
        let tail = select.query_map([since], |row| row.get::<_, Vec<u8>>(0)).unwrap();
        let tail: Vec<_> = tail.map(|update| Bytes::from(update.unwrap())).collect();
        let read = tail.len();
        let all: Vec<_> = checkpoint.map(|(update, _)| update.into()).into_iter().chain(tail).collect();
        assert_eq!(text(&all), words.concat(), "{every:?}");
        assert_eq!(read, every.map_or(100, |every| 100 % every) as usize, "{every:?}");
    }
}

#[test]
fn records_older_than_the_checkpoint_are_loaded_and_in_the_next_one() {
    let (_folder, path) = fixture("pycrdt-store-0.1.5");
    let connection = Connection::open(&path).unwrap();
    // Python's clock stepped back: its rows are older than its checkpoint, and not in it.
    connection.execute_batch("UPDATE ycheckpoints SET timestamp = 5e9").unwrap();
    let mut store = open(&path, |options| options.checkpoint_every = Some(1)).with_clock(|| 1.0);
    let before = store.load(&name("room-1")).unwrap();
    assert_eq!(text(&before), "Hello, World!");
    store.commit(&[append("room-1", 1, Bytes::from_static(NOTHING))]).unwrap();
    let checkpoint: Vec<u8> =
        connection.query_row("SELECT checkpoint FROM ycheckpoints", [], |row| row.get(0)).unwrap();
    assert_eq!(text(&[checkpoint.into()]), "Hello, World!");
}

#[test]
fn a_lock_during_upkeep_is_busy_and_nothing_is_lost() {
    let (_folder, path) = empty();
    let mut store = open(&path, |options| options.squash_above_records = Some(2))
        .with_busy_timeout(Duration::from_millis(20))
        .unwrap();
    let updates = typed(&["a", "b", "c", "d"]);
    for (seq, update) in (1..).zip(&updates[..3]) {
        store.commit(&[append("room", seq, update.clone())]).unwrap();
    }
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(store.commit(&[append("room", 4, updates[3].clone())]), Err(StoreError::Busy));
    other.execute_batch("COMMIT").unwrap();
    assert_eq!(text(&store.load(&name("room")).unwrap()), "abc");
    assert_eq!(store.commit(&[append("room", 4, updates[3].clone())]), Ok(()));
    assert_eq!(text(&store.load(&name("room")).unwrap()), "abcd");
}

#[test]
fn squashes_and_checkpoints_keep_what_misses_something() {
    let (_folder, path) = empty();
    let mut store = open(&path, |options| {
        options.squash_above_records = Some(1);
        options.checkpoint_every = Some(2);
    });
    let updates = typed(&["a", "b", "c", "d"]);
    // The first comes last.
    for (seq, n) in [(1, 3), (2, 1), (3, 2)] {
        store.commit(&[append("room", seq, updates[n].clone())]).unwrap();
    }
    let connection = Connection::open(&path).unwrap();
    assert_eq!(count(&connection, "SELECT count(*) FROM yupdates"), 2);
    store.commit(&[append("room", 4, updates[0].clone())]).unwrap();
    assert_eq!(count(&connection, "SELECT count(*) FROM yupdates"), 1);
    assert_eq!(text(&store.load(&name("room")).unwrap()), "abcd");
}

#[test]
fn deleted_content_stays_unless_it_may_go() {
    for drop_deleted in [false, true] {
        let (_folder, path) = empty();
        let mut store = open(&path, |options| {
            options.squash_above_records = Some(1);
            options.drop_deleted = drop_deleted;
        });
        let written = typed(&["secret", "secret"]);
        let doc = document(&written, 1);
        let text = doc.get_or_insert_text("text");
        let before = doc.transact().state_vector();
        text.remove_range(&mut doc.transact_mut(), 0, 12);
        let deletes = Bytes::from(doc.transact().encode_diff_v1(&before));
        for (seq, update) in (1..).zip(written.iter().chain([&deletes, &Bytes::from_static(NOTHING)])) {
            store.commit(&[append("room", seq, update.clone())]).unwrap();
        }
        let updates = store.load(&name("room")).unwrap();
        let there = updates.iter().any(|update| update.windows(6).any(|part| part == b"secret"));
        assert_eq!(there, !drop_deleted);
        assert_eq!(common::text(&updates), "");
    }
}

/// pycrdt-store's `test_cleanup_triggers_when_db_size_exceeds_limit`.
#[test]
fn a_database_that_is_too_large_is_squashed_the_least_recently_written_rooms_first() {
    for in_memory in [false, true] {
        let (_folder, path) = empty();
        let store = if in_memory { SqliteStore::in_memory() } else { SqliteStore::open(&path) };
        let mut options = SqliteOptions::default();
        let limit = 60_000;
        options.size_max = Some(limit);
        let mut time = 0.0;
        let mut store = store.unwrap().with_options(options).unwrap().with_clock(move || {
            time += 1.0;
            time
        });
        let words = vec!["four"; 300];
        let updates = typed(&words);
        for room in ["a", "b", "c"] {
            store.load(&name(room)).unwrap();
            for (seq, update) in (1..).zip(&updates) {
                store.commit(&[append(room, seq, update.clone())]).unwrap();
            }
        }
        let rooms = store.rooms().unwrap();
        let records: Vec<_> = rooms.iter().map(|room| room.records).collect();
        assert!(records[0] <= 2 && records[2] > 50, "{records:?}");
        assert!(records.iter().sum::<u64>() < 3 * 300);
        for room in ["a", "b", "c"] {
            assert_eq!(text(&store.load(&name(room)).unwrap()), words.concat());
        }
        drop(store);
        assert!(in_memory || fs::metadata(&path).unwrap().len() <= limit);
    }
}

#[test]
fn a_database_that_cannot_be_made_smaller_keeps_everything_and_is_not_squashed_at_every_write() {
    let (_folder, path) = empty();
    let mut store = open(&path, |options| options.size_max = Some(1));
    let words = vec!["word"; 300];
    for (seq, update) in (1..).zip(typed(&words)) {
        store.commit(&[append("room", seq, update)]).unwrap();
    }
    let updates = store.load(&name("room")).unwrap();
    assert!(updates.len() > 50, "{}", updates.len());
    assert_eq!(text(&updates), words.concat());
}

#[test]
fn rooms_are_squashed_by_count_and_by_bytes() {
    let words = vec!["word"; 100];
    for (records, bytes) in [(Some(10), None), (None, Some(500)), (Some(10), Some(500))] {
        let (_folder, path) = empty();
        let mut store = open(&path, |options| {
            options.squash_above_records = records;
            options.squash_above_bytes = bytes;
        });
        let mut most = 0;
        for (seq, update) in (1..).zip(typed(&words)) {
            store.commit(&[append("room", seq, update)]).unwrap();
            most = most.max(store.rooms().unwrap()[0].records);
        }
        assert!((9..40).contains(&most), "{most}");
        assert_eq!(text(&store.load(&name("room")).unwrap()), words.concat());
    }
}

#[test]
fn a_damaged_room_is_not_squashed_and_can_be_written() {
    let (_folder, path) = empty();
    let mut store = open(&path, |options| {
        options.squash_above_records = Some(1);
        options.checkpoint_every = Some(1);
        options.size_max = Some(1);
    });
    for seq in 1..=5 {
        store.commit(&[append("room", seq, "letters")]).unwrap();
    }
    assert_eq!(store.load(&name("room")), Ok(vec!["letters".into(); 5]));
    assert_eq!(count(&Connection::open(&path).unwrap(), "SELECT count(*) FROM ycheckpoints"), 0);
}

#[test]
fn what_the_core_compacts_after_upkeep_loses_nothing_that_came_meanwhile() {
    let (_folder, path) = empty();
    let mut store = open(&path, |options| options.squash_above_records = Some(3));
    let updates = typed(&["a", "b", "c", "d", "e", "f"]);
    store.load(&name("room")).unwrap();
    for (seq, update) in (1..).zip(&updates) {
        store.commit(&[append("room", seq, update.clone())]).unwrap();
    }
    // The squash is made of 1 to 4. What covers 1 to 2 does not cover that.
    let two = squash(&updates[..2]);
    store.commit(&[compact("room", 2, two)]).unwrap();
    assert_eq!(text(&store.load(&name("room")).unwrap()), "abcdef");
    let all = squash(&updates);
    store.commit(&[compact("room", 0, all)]).unwrap();
    let left = store.load(&name("room")).unwrap();
    assert_eq!((left.len(), text(&left).as_str()), (1, "abcdef"));
}

#[test]
fn what_another_process_wrote_survives_upkeep_and_the_compaction_after_it() {
    let (_folder, path) = empty();
    let mut store = open(&path, |options| options.squash_above_records = Some(2));
    let mut other = SqliteStore::open(&path).unwrap();
    let updates = typed(&["a", "b", "c", "d"]);
    store.load(&name("room")).unwrap();
    store.commit(&[append("room", 1, updates[0].clone())]).unwrap();
    other.commit(&[append("room", 1, updates[1].clone())]).unwrap();
    // The squash takes in what this store has not seen; the core, which has not seen it either, compacts.
    store.commit(&[append("room", 2, updates[2].clone()), append("room", 3, updates[3].clone())]).unwrap();
    let seen = [updates[0].clone(), updates[2].clone(), updates[3].clone()];
    store.commit(&[compact("room", 3, squash(&seen))]).unwrap();
    assert_eq!(text(&store.load(&name("room")).unwrap()), "abcd");
}

#[test]
fn a_tool_may_compact_a_room_under_a_server_that_serves_it() {
    let (_folder, path) = empty();
    let mut server = SqliteStore::open(&path).unwrap();
    let mut tool = SqliteStore::open(&path).unwrap();
    let updates = typed(&["a", "b", "c", "d"]);
    server.load(&name("room")).unwrap();
    server.commit(&[append("room", 1, updates[0].clone()), append("room", 2, updates[1].clone())]).unwrap();
    assert_eq!(tool.compact(&name("room"), Default::default()).unwrap().records_after, 1);
    tool.vacuum().unwrap();
    server.commit(&[append("room", 3, updates[2].clone())]).unwrap();
    server.commit(&[compact("room", 3, squash(&updates[..3]))]).unwrap();
    server.commit(&[append("room", 4, updates[3].clone())]).unwrap();
    // What the tool made stays beside what the server made until the room is loaded again; twice is no harm.
    let stored = server.load(&name("room")).unwrap();
    assert_eq!((stored.len(), text(&stored).as_str()), (3, "abcd"));
    server.commit(&[compact("room", 0, squash(&updates))]).unwrap();
    assert_eq!(server.load(&name("room")).unwrap().len(), 1);
}

#[test]
fn backups_take_names_that_are_free() {
    let (folder, path) = fixture("pycrdt-store-0.1.5");
    fs::write(folder.path().join("store(2).db"), "somebody's").unwrap();
    // What is still in the write-ahead log is in the copy.
    let mut store = SqliteStore::open(&path).unwrap();
    store.load(&name("room-1")).unwrap();
    store.commit(&[append("room-2", 1, typed(&["new"])[0].clone())]).unwrap();
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 9).unwrap();
    let first = backup(&path).unwrap();
    let bytes = fs::read(&first).unwrap();
    let second = backup(&path).unwrap();
    assert_eq!([&first, &second], [&folder.path().join("store(1).db"), &folder.path().join("store(3).db")]);
    assert_eq!(fs::read(folder.path().join("store(2).db")).unwrap(), b"somebody's");
    assert_eq!(fs::read(&first).unwrap(), bytes);
    let copy = Connection::open(&first).unwrap();
    assert_eq!(count(&copy, "SELECT user_version FROM pragma_user_version"), 9);
    copy.pragma_update(None, "user_version", 2).unwrap();
    let mut copy = SqliteStore::open(&first).unwrap();
    assert_eq!(text(&copy.load(&name("room-1")).unwrap()), "Hello, World!");
    assert_eq!(text(&copy.load(&name("room-2")).unwrap()), "new");
    // Of what is no database nothing is left.
    let count = folder.path().read_dir().unwrap().count();
    assert!(backup(folder.path().join("store(2).db")).is_err());
    assert_eq!(folder.path().read_dir().unwrap().count(), count);
}

#[test]
fn what_cannot_be_opened_is_an_error_at_once() {
    let (folder, path) = empty();
    fs::create_dir(&path).unwrap();
    assert!(matches!(SqliteStore::open(&path), Err(OpenError::Store(_))));
    let damaged = folder.path().join("damaged.db");
    fs::write(&damaged, [b"SQLite format 3\0".to_vec(), vec![0xff; 5000]].concat()).unwrap();
    assert!(SqliteStore::open(&damaged).is_err());
    assert!(backup(&damaged).is_err());
}

#[test]
fn a_database_of_ypy_websocket_can_be_made_to_shrink() {
    let (_folder, path) = fixture("ypy-0.12.4");
    let mut store = open(&path, |options| options.auto_vacuum = true);
    assert_eq!(text(&store.load(&name("room-1")).unwrap()), "Hello, World");
    let connection = Connection::open(&path).unwrap();
    assert_eq!(count(&connection, "SELECT auto_vacuum FROM pragma_auto_vacuum"), 1);
    assert_eq!(store.check(), Ok(vec![]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is squashed, checkpointed, compressed and compacted, and in whatever order updates come: the
    /// document is that of all updates, for this store and for Python's query.
    #[test]
    fn upkeep_never_changes_the_document(
        order in Just((0..24usize).collect::<Vec<_>>()).prop_shuffle(),
        steps in vec(0..6u8, 24),
        records in proptest::option::of(1..6u64),
        checkpoints in proptest::option::of(1..6u64),
        age in proptest::option::of(1..6u64),
        inactivity in proptest::option::of(1..3u64),
        compress in any::<bool>(),
    ) {
        let mut options = SqliteOptions::default();
        options.squash_above_records = records;
        options.checkpoint_every = checkpoints;
        options.squash_history_older_than = age.map(Duration::from_secs);
        options.squash_after_inactivity_of = inactivity.map(Duration::from_secs);
        options.squash_no_more_often_than = Duration::ZERO;
        if compress {
            options.compression = Some(Arc::new(Zlib));
        }
        let mut time = 0.0;
        let pauses = steps.clone();
        let mut pause = 0;
        let mut store = SqliteStore::in_memory().unwrap().with_options(options).unwrap().with_clock(move || {
            pause = (pause + 1) % pauses.len();
            time += f64::from(pauses[pause]) - 1.0;
            time
        });
        let words: Vec<_> = (0..24).map(|n| n.to_string()).collect();
        let updates = typed(&words.iter().map(String::as_str).collect::<Vec<_>>());
        store.load(&name("room")).unwrap();
        let mut known = Vec::new();
        for ((seq, n), step) in (1..).zip(order).zip(steps) {
            known.push(updates[n].clone());
            store.commit(&[append("room", seq, updates[n].clone())]).unwrap();
            if step == 5 {
                store.compact(&name("room"), Default::default()).unwrap();
                store.load(&name("room")).unwrap();
            }
        }
        prop_assert_eq!(text(&store.load(&name("room")).unwrap()), words.concat());
        prop_assert_eq!(text(&store.document(&name("room"), Moment::Now).unwrap()), words.concat());
    }
}

fn open(path: &std::path::Path, change: impl FnOnce(&mut SqliteOptions)) -> SqliteStore {
    let mut options = SqliteOptions::default();
    change(&mut options);
    SqliteStore::open(path).unwrap().with_options(options).unwrap()
}

/// Puts what is in the write-ahead log into the file.
fn checkpointed(path: &std::path::Path) {
    let connection = Connection::open(path).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
}

fn squash(updates: &[Bytes]) -> Bytes {
    let doc = document(updates, 1);
    let missing = doc.transact().has_missing_updates();
    if missing {
        yrs::merge_updates_v1(updates).unwrap().into()
    } else {
        doc.transact().encode_state_as_update_v1(&StateVector::default()).into()
    }
}

fn sorted(text: &str) -> Vec<char> {
    let mut letters: Vec<_> = text.chars().collect();
    letters.sort_unstable();
    letters
}

/// The update in which nothing happened.
const NOTHING: &[u8] = &[0, 0];
