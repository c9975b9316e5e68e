//! The SQLite store: what Python wrote, what Python will read, and what other processes do meanwhile.

mod child;
mod common;

use std::{env, fs, thread, time::Duration};

use bytes::Bytes;
use child::child;
use common::*;
use rusqlite::{Connection, params};
use yrs::{ReadTxn as _, StateVector, Text as _, Transact as _, merge_updates_v1};
use yrs_websocket_store::{History as _, OpenError, SqliteStore, Store, StoreError, backup};

const CREATE_UPDATES: &str =
    "CREATE TABLE yupdates (path TEXT NOT NULL, yupdate BLOB, metadata BLOB, timestamp REAL NOT NULL)";
const CREATE_INDEX: &str = "CREATE INDEX idx_yupdates_path_timestamp ON yupdates (path, timestamp)";
const CREATE_CHECKPOINTS: &str = "CREATE TABLE ycheckpoints (path TEXT NOT NULL, checkpoint BLOB NOT NULL, timestamp REAL NOT NULL, PRIMARY KEY(path))";

#[test]
fn what_python_wrote_loads_to_the_documented_text() {
    for (library, room, expected) in [
        ("ypy-0.12.4", "room-1", "Hello, World"),
        ("ypy-0.12.4", "room-2", "Hello"),
        ("pycrdt-store-0.1.5", "room-1", "Hello, World!"),
    ] {
        let (_folder, path) = fixture(library);
        let mut store = SqliteStore::open(&path).unwrap();
        let updates = store.load(&name(room)).unwrap();
        assert_eq!(text(&updates), expected, "{library} {room}");
    }
}

#[test]
fn what_is_appended_to_pythons_database_joins_what_was_there() {
    for (library, expected) in
        [("ypy-0.12.4", "Hello, World and more"), ("pycrdt-store-0.1.5", "Hello, World! and more")]
    {
        let (_folder, path) = fixture(library);
        let mut store = SqliteStore::open(&path).unwrap();
        let updates = store.load(&name("room-1")).unwrap();
        let (base, _) = expected.split_at(expected.len() - " and more".len());
        assert_eq!(text(&updates), base);
        store.commit(&[append("room-1", 1, push(&updates, " and more"))]).unwrap();
        drop(store);
        let mut store = SqliteStore::open(&path).unwrap();
        assert_eq!(text(&store.load(&name("room-1")).unwrap()), expected);
        // And after compaction, with and without a checkpoint in the database.
        let updates = store.load(&name("room-1")).unwrap();
        store.commit(&[compact("room-1", 0, squash(&updates))]).unwrap();
        let compacted = store.load(&name("room-1")).unwrap();
        assert_eq!((compacted.len(), text(&compacted).as_str()), (1, expected));
        let connection = Connection::open(&path).unwrap();
        assert_eq!(count(&connection, "SELECT count(*) FROM yupdates WHERE path = 'room-1'"), 1);
        assert_eq!(count(&connection, "SELECT count(*) FROM ycheckpoints"), 0);
    }
}

#[test]
fn the_schema_is_pythons_to_the_letter() {
    let (_folder, fresh) = empty();
    let (_ypy, ypy) = fixture("ypy-0.12.4");
    let (_pycrdt, pycrdt) = fixture("pycrdt-store-0.1.5");
    for (path, auto_vacuum, rows) in [(&fresh, 1, 0), (&ypy, 0, 4), (&pycrdt, 1, 4)] {
        let mut store = SqliteStore::open(path).unwrap();
        store.load(&name("new")).unwrap();
        store.commit(&[append("new", 1, "one"), append("new", 2, "two")]).unwrap();
        let connection = Connection::open(path).unwrap();
        let mut select = connection
            .prepare("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name DESC")
            .unwrap();
        let schema: Vec<String> =
            select.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(schema, [CREATE_UPDATES, CREATE_CHECKPOINTS, CREATE_INDEX]);
        assert_eq!(count(&connection, "SELECT user_version FROM pragma_user_version"), 2);
        assert_eq!(count(&connection, "SELECT auto_vacuum FROM pragma_auto_vacuum"), auto_vacuum);
        assert_eq!(count(&connection, "SELECT application_id FROM pragma_application_id"), 0);
        assert_eq!(count(&connection, "SELECT count(*) FROM yupdates"), rows + 2);
        let ours = "SELECT count(*) FROM yupdates WHERE path = 'new' AND typeof(yupdate) = 'blob' \
                    AND typeof(metadata) = 'blob' AND length(metadata) = 0 AND typeof(timestamp) = 'real'";
        assert_eq!(count(&connection, ours), 2);
    }
}

#[test]
fn an_old_database_gains_ycheckpoints_and_keeps_its_rows() {
    let (_folder, path) = fixture("ypy-0.12.4");
    let before = rows(&Connection::open(&path).unwrap());
    drop(SqliteStore::open(&path).unwrap());
    let connection = Connection::open(&path).unwrap();
    assert_eq!(rows(&connection), before);
    assert_eq!(count(&connection, "SELECT count(*) FROM sqlite_master WHERE name = 'ycheckpoints'"), 1);
}

#[test]
fn versions_0_and_1_with_the_columns_of_version_2_are_read_as_version_2() {
    for (version, index) in [(0, false), (1, true), (2, true)] {
        let (_folder, path) = empty();
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch(CREATE_UPDATES).unwrap();
        if index {
            connection.execute_batch(CREATE_INDEX).unwrap();
        }
        connection.pragma_update(None, "user_version", version).unwrap();
        insert(&connection, "room", b"one", 5.0);
        drop(connection);
        let mut store = SqliteStore::open(&path).unwrap();
        assert_eq!(store.load(&name("room")), Ok(vec!["one".into()]));
        let connection = Connection::open(&path).unwrap();
        assert_eq!(count(&connection, "SELECT user_version FROM pragma_user_version"), 2);
        assert_eq!(count(&connection, "SELECT count(*) FROM sqlite_master WHERE sql IS NOT NULL"), 3);
    }
}

#[test]
fn what_is_no_store_is_refused_and_left_as_it_is() {
    let layout = |table, columns: &str| OpenError::Layout { table, columns: columns.into() };
    for (sql, error) in [
        ("CREATE TABLE users (name TEXT)", OpenError::Foreign),
        ("PRAGMA user_version = 2", OpenError::Foreign),
        ("PRAGMA application_id = 7", OpenError::Foreign),
        ("CREATE TABLE yupdates (path TEXT, yupdate BLOB)", layout("yupdates", "path TEXT, yupdate BLOB")),
        (
            "CREATE TABLE yupdates (path TEXT NOT NULL, yupdate BLOB, metadata BLOB, timestamp TEXT NOT NULL)",
            layout("yupdates", "path TEXT, yupdate BLOB, metadata BLOB, timestamp TEXT"),
        ),
        (
            "CREATE TABLE yupdates (path TEXT NOT NULL, yupdate BLOB, metadata BLOB, timestamp REAL NOT NULL);
             CREATE TABLE ycheckpoints (path TEXT)",
            layout("ycheckpoints", "path TEXT"),
        ),
        (
            "CREATE TABLE yupdates (path TEXT NOT NULL, yupdate BLOB, metadata BLOB, timestamp REAL NOT NULL);
             PRAGMA user_version = 3",
            OpenError::Version { found: 3 },
        ),
    ] {
        let (folder, path) = empty();
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let before = fs::read(&path).unwrap();
        assert_eq!(SqliteStore::open(&path).err(), Some(error), "{sql}");
        assert_eq!(fs::read(&path).unwrap(), before, "{sql}");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1, "no other file is made");
    }
    let (_folder, path) = empty();
    fs::write(&path, "This is a letter, and by no means a database. ".repeat(100)).unwrap();
    assert_eq!(SqliteStore::open(&path).err(), Some(OpenError::NotADatabase));
    let missing = SqliteStore::open(path.parent().unwrap().join("no/such/folder/store.db"));
    assert!(matches!(missing, Err(OpenError::Store(StoreError::Io { .. }))), "{missing:?}");
}

#[test]
fn who_only_looks_into_a_database_changes_nothing() {
    for library in ["ypy-0.12.4", "pycrdt-store-0.1.5"] {
        let (folder, path) = fixture(library);
        let before = fs::read(&path).unwrap();
        let mut store = SqliteStore::open_read_only(&path).unwrap();
        assert_eq!(store.rooms().unwrap()[0].room, name("room-1"));
        assert!(text(&store.load(&name("room-1")).unwrap()).starts_with("Hello, World"));
        let failed = store.commit(&[append("room-1", 1, "x")]);
        assert!(matches!(failed, Err(StoreError::ReadOnly { .. })), "{failed:?}");
        assert_eq!(fs::read(&path).unwrap(), before, "{library}");
        drop(store);
        assert_eq!(folder.path().read_dir().unwrap().count(), 1, "no other file is made");
    }
    let (_folder, path) = empty();
    let missing = SqliteStore::open_read_only(&path);
    assert!(matches!(missing, Err(OpenError::Store(StoreError::Io { .. }))), "{missing:?}");
    fs::write(&path, "").unwrap();
    assert_eq!(SqliteStore::open_read_only(&path).err(), Some(OpenError::Foreign));
}

#[test]
fn who_only_looks_sees_what_a_server_is_writing() {
    let (_folder, path) = empty();
    let mut server = SqliteStore::open(&path).unwrap();
    server.load(&name("room")).unwrap();
    server.commit(&[append("room", 1, "one")]).unwrap();
    let mut reader = SqliteStore::open_read_only(&path).unwrap();
    assert_eq!(reader.load(&name("room")), Ok(vec!["one".into()]));
    server.commit(&[append("room", 2, "two")]).unwrap();
    assert_eq!(reader.load(&name("room")), Ok(vec!["one".into(), "two".into()]));
}

#[test]
fn an_empty_file_becomes_a_store() {
    let (_folder, path) = empty();
    fs::write(&path, "").unwrap();
    let mut store = SqliteStore::open(&path).unwrap();
    store.commit(&[append("room", 1, "one")]).unwrap();
    assert_eq!(store.load(&name("room")), Ok(vec!["one".into()]));
}

#[test]
fn a_file_name_is_no_uri() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file:a?mode=memory.db");
    drop(SqliteStore::open(&path).unwrap());
    assert!(path.exists());
}

#[test]
fn many_can_open_a_new_database_at_once() {
    for _ in 0..10 {
        let (_folder, path) = empty();
        thread::scope(|scope| {
            for n in 0..6 {
                let path = &path;
                scope.spawn(move || {
                    let mut store = SqliteStore::open(path).unwrap();
                    store.commit(&[append("room", 1, format!("{n}"))]).unwrap();
                });
            }
        });
        assert_eq!(SqliteStore::open(&path).unwrap().load(&name("room")).unwrap().len(), 6);
    }
}

#[test]
fn the_checkpoint_is_first_and_no_row_is_left_out() {
    let (_folder, path) = fixture("pycrdt-store-0.1.5");
    let connection = Connection::open(&path).unwrap();
    // A clock that stepped back: the row is older than the checkpoint, and not in it.
    insert(&connection, "room-1", &[9, 9, 9], 1.0);
    let updates = SqliteStore::open(&path).unwrap().load(&name("room-1")).unwrap();
    let checkpoint: Vec<u8> =
        connection.query_row("SELECT checkpoint FROM ycheckpoints", [], |row| row.get(0)).unwrap();
    assert_eq!(updates.len(), 6);
    assert_eq!((&updates[0], &updates[1][..]), (&Bytes::from(checkpoint), &[9, 9, 9][..]));
}

#[test]
fn updates_in_which_nothing_happened_are_skipped_and_compacted_away() {
    let (_folder, path) = empty();
    let mut store = SqliteStore::open(&path).unwrap();
    let connection = Connection::open(&path).unwrap();
    for (timestamp, update) in [b"\0\0", b"ab", b"\0\0"].into_iter().enumerate() {
        insert(&connection, "room", update, timestamp as f64);
    }
    assert_eq!(store.load(&name("room")), Ok(vec!["ab".into()]));
    store.commit(&[compact("room", 0, "ab")]).unwrap();
    assert_eq!(count(&connection, "SELECT count(*) FROM yupdates"), 1);
}

#[test]
fn missing_metadata_is_tolerated() {
    let (_folder, path) = empty();
    let mut store = SqliteStore::open(&path).unwrap();
    let connection = Connection::open(&path).unwrap();
    for metadata in [None, Some(&b""[..]), Some(b"m1")] {
        let row = params!["room", b"one", metadata, 1.0];
        connection.execute("INSERT INTO yupdates VALUES (?1, ?2, ?3, ?4)", row).unwrap();
    }
    assert_eq!(store.load(&name("room")).unwrap().len(), 3);
}

#[test]
fn a_row_that_is_no_blob_is_an_error_and_not_a_shorter_document() {
    for damage in ["NULL", "'text'", "7"] {
        let (_folder, path) = empty();
        let mut store = SqliteStore::open(&path).unwrap();
        store.commit(&[append("room", 1, "one"), append("other", 1, "one")]).unwrap();
        let connection = Connection::open(&path).unwrap();
        let sql = format!("INSERT INTO yupdates VALUES ('room', {damage}, x'', 1.0)");
        connection.execute_batch(&sql).unwrap();
        let loaded = store.load(&name("room"));
        assert!(matches!(loaded, Err(StoreError::Corrupt { .. })), "{damage}: {loaded:?}");
        assert_eq!(store.load(&name("other")), Ok(vec!["one".into()]));
        let sql = format!("INSERT OR IGNORE INTO ycheckpoints VALUES ('other', {damage}, 1.0)");
        connection.execute_batch(&sql).unwrap();
        if damage != "NULL" {
            assert!(matches!(store.load(&name("other")), Err(StoreError::Corrupt { .. })));
        }
    }
}

#[test]
fn a_damaged_file_is_an_error() {
    let (_folder, path) = empty();
    let mut store = SqliteStore::open(&path).unwrap();
    store.load(&name("room")).unwrap();
    let writes: Vec<_> = (0..2000).map(|seq| append("room", seq, vec![7; 500])).collect();
    store.commit(&writes).unwrap();
    drop(store);
    let mut file = fs::read(&path).unwrap();
    let middle = file.len() / 2;
    file[middle..middle + 100_000].fill(0xa5);
    fs::write(&path, file).unwrap();
    let loaded = SqliteStore::open(&path).unwrap().load(&name("room"));
    assert!(matches!(loaded, Err(StoreError::Corrupt { .. })), "{:?}", loaded.map(|updates| updates.len()));
}

#[test]
fn rows_are_ever_newer_whatever_the_clock_says() {
    let (_folder, path) = fixture("pycrdt-store-0.1.5");
    let mut times = [2e9, 1e9, 1e9, f64::NAN, -5.0, 3e9, f64::INFINITY, 2.5e9].into_iter().cycle();
    let mut store = SqliteStore::open(&path).unwrap().with_clock(move || times.next().unwrap());
    let mut expected = store.load(&name("room-1")).unwrap();
    for seq in 1..=16 {
        let update = Bytes::from(format!("update {seq}"));
        store.commit(&[append("room-1", seq, update.clone())]).unwrap();
        expected.push(update);
    }
    assert_eq!(store.load(&name("room-1")), Ok(expected));
    let connection = Connection::open(&path).unwrap();
    let times: Vec<_> = rows(&connection).into_iter().map(|(_, _, timestamp)| timestamp).collect();
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
    assert_eq!(times[4], 2e9, "the clock is right until it is not");
}

#[test]
fn rows_are_newer_than_the_checkpoint_that_would_hide_them_from_python() {
    let (_folder, path) = fixture("pycrdt-store-0.1.5");
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("UPDATE ycheckpoints SET timestamp = 5e9").unwrap();
    let mut store = SqliteStore::open(&path).unwrap();
    store.load(&name("room-1")).unwrap();
    store.commit(&[append("room-1", 1, "one")]).unwrap();
    assert_eq!(count(&connection, "SELECT count(*) FROM yupdates WHERE timestamp > 5e9"), 1);
    assert_eq!(store.load(&name("room-1")).unwrap().last(), Some(&"one".into()));
}

#[test]
fn compaction_leaves_what_another_process_wrote() {
    let (_folder, path) = fixture("pycrdt-store-0.1.5");
    let room = name("room-1");
    let mut store = SqliteStore::open(&path).unwrap();
    let mut other = SqliteStore::open(&path).unwrap();
    let loaded = store.load(&room).unwrap();
    other.load(&room).unwrap();
    other.commit(&[append("room-1", 1, push(&loaded, " theirs"))]).unwrap();
    // Written after the other's row: its row id lies between ours.
    store.commit(&[append("room-1", 1, push(&loaded, " ours"))]).unwrap();
    store.commit(&[compact("room-1", 0, squash(&loaded))]).unwrap();
    let after = store.load(&room).unwrap();
    assert_eq!(after.len(), 3);
    let text = text(&after);
    assert!(
        text.starts_with("Hello, World!") && text.contains(" ours") && text.contains(" theirs"),
        "{text}"
    );
}

#[test]
fn compaction_leaves_what_another_process_squashed_even_under_the_same_row_ids() {
    let (_folder, path) = empty();
    let mut store = SqliteStore::open(&path).unwrap();
    store.load(&name("room")).unwrap();
    store.commit(&[append("room", 1, "one"), append("room", 2, "two")]).unwrap();
    let connection = Connection::open(&path).unwrap();
    // What pycrdt-store does on size cleanup, with an update that this store has never seen.
    let newest: f64 =
        connection.query_row("SELECT max(timestamp) FROM yupdates", [], |row| row.get(0)).unwrap();
    connection.execute_batch("DELETE FROM yupdates").unwrap();
    insert(&connection, "room", b"one two three", newest);
    store.commit(&[compact("room", 2, "one two")]).unwrap();
    assert_eq!(store.load(&name("room")), Ok(vec!["one two three".into(), "one two".into()]));
}

#[test]
fn compaction_leaves_a_checkpoint_it_has_not_loaded() {
    let (_folder, path) = empty();
    let mut store = SqliteStore::open(&path).unwrap();
    store.load(&name("room")).unwrap();
    store.commit(&[append("room", 1, "one")]).unwrap();
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("INSERT INTO ycheckpoints VALUES ('room', x'090909', 9e9)").unwrap();
    store.commit(&[compact("room", 1, "state")]).unwrap();
    assert_eq!(store.load(&name("room")), Ok(vec![Bytes::from_static(&[9, 9, 9]), "state".into()]));
    // Nor one that took the place of the one it has loaded.
    connection.execute_batch("UPDATE ycheckpoints SET checkpoint = x'080808', timestamp = 91e8").unwrap();
    store.commit(&[compact("room", 1, "all")]).unwrap();
    assert_eq!(store.load(&name("room")), Ok(vec![Bytes::from_static(&[8, 8, 8]), "all".into()]));
    store.commit(&[compact("room", 1, "all of it")]).unwrap();
    assert_eq!(store.load(&name("room")), Ok(vec!["all of it".into()]));
}

#[test]
fn a_transaction_that_fails_leaves_nothing_and_forgets_nothing() {
    let (_folder, path) = empty();
    let mut store = SqliteStore::open(&path).unwrap();
    store.load(&name("room")).unwrap();
    store.commit(&[append("room", 1, "one")]).unwrap();
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "CREATE TRIGGER refuse BEFORE INSERT ON yupdates WHEN NEW.path = 'bad' \
             BEGIN SELECT RAISE(ABORT, 'refused'); END",
        )
        .unwrap();
    let writes = [compact("room", 1, "state"), append("room", 2, "two"), append("bad", 1, "three")];
    let failed = store.commit(&writes);
    assert!(
        matches!(&failed, Err(StoreError::Other { message }) if message.contains("refused")),
        "{failed:?}"
    );
    assert_eq!(rows(&connection).len(), 1);
    // What is known of the room is as before: the compaction can be done again.
    store.commit(&writes[..2]).unwrap();
    assert_eq!(store.load(&name("room")), Ok(vec!["state".into(), "two".into()]));
}

#[test]
fn a_lock_held_by_another_process_is_busy_and_nothing_is_lost() {
    let (_folder, path) = empty();
    let mut store = SqliteStore::open(&path).unwrap().with_busy_timeout(Duration::from_millis(50)).unwrap();
    store.load(&name("room")).unwrap();
    store.commit(&[append("room", 1, "one")]).unwrap();
    let mut holder = child("hold_the_lock", &path);
    let write = [append("room", 2, "two")];
    assert_eq!(store.commit(&write), Err(StoreError::Busy));
    assert_eq!(store.load(&name("room")), Ok(vec!["one".into()]), "readers do not wait for writers");
    holder.kill();
    assert_eq!(store.commit(&write), Ok(()));
    assert_eq!(store.load(&name("room")), Ok(vec!["one".into(), "two".into()]));
}

#[test]
fn a_lock_that_is_let_go_in_time_is_waited_for() {
    let (_folder, path) = empty();
    let mut store = SqliteStore::open(&path).unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    thread::scope(|scope| {
        let write = scope.spawn(|| store.commit(&[append("room", 1, "one")]));
        other.execute_batch("COMMIT").unwrap();
        assert_eq!(write.join().unwrap(), Ok(()));
    });
}

#[test]
fn a_transaction_that_sqlite_rolled_back_does_not_block_the_next() {
    let (_folder, path) = empty();
    let mut store = SqliteStore::open(&path).unwrap();
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "CREATE TRIGGER refuse BEFORE INSERT ON yupdates BEGIN SELECT RAISE(ROLLBACK, 'refused'); END",
        )
        .unwrap();
    // The transaction is over before the store ends it: the next one must be able to begin all the same.
    assert!(store.commit(&[append("room", 1, "one")]).is_err());
    connection.execute_batch("DROP TRIGGER refuse").unwrap();
    assert_eq!(store.commit(&[append("room", 1, "one")]), Ok(()));
}

#[test]
fn what_a_crash_of_python_left_half_written_is_rolled_back_by_who_looks() {
    let (folder, path) = fixture("pycrdt-store-0.1.5");
    let python = Connection::open(&path).unwrap();
    assert_eq!(python.query_row("PRAGMA journal_mode", [], |row| row.get(0)), Ok("delete".to_owned()));
    python
        .execute_batch("PRAGMA cache_size = 1; BEGIN; UPDATE yupdates SET yupdate = zeroblob(100000)")
        .unwrap();
    let crashed = folder.path().join("crashed.db");
    for suffix in ["", "-journal"] {
        let [from, to] = [&path, &crashed].map(|path| format!("{}{suffix}", path.display()));
        fs::copy(from, to).unwrap();
    }
    let again = folder.path().join("again.db");
    for suffix in ["", "-journal"] {
        fs::copy(format!("{}{suffix}", crashed.display()), format!("{}{suffix}", again.display())).unwrap();
    }
    let mut store = SqliteStore::open_read_only(&crashed).unwrap();
    assert_eq!(text(&store.load(&name("room-1")).unwrap()), "Hello, World!");
    let mut copy = SqliteStore::open(backup(&again).unwrap()).unwrap();
    assert_eq!(text(&copy.load(&name("room-1")).unwrap()), "Hello, World!");
}

#[test]
fn what_is_committed_survives_the_kill_of_its_process() {
    let (_folder, path) = empty();
    let mut writer = child("write_until_killed", &path);
    let mut acknowledged = 0;
    while acknowledged < 50 {
        acknowledged = writer.line().expect("it writes until it is killed").parse().unwrap();
    }
    writer.kill();
    // What it said before it died counts, too.
    while let Some(Ok(seq)) = writer.line().map(|line| line.parse()) {
        acknowledged = seq;
    }
    let mut store = SqliteStore::open(&path).unwrap();
    let updates = store.load(&name("room")).unwrap();
    let expected: Vec<_> = (1..=updates.len()).map(|seq| Bytes::from(seq.to_string())).collect();
    assert_eq!(updates, expected, "in order and without a gap");
    assert!(updates.len() >= acknowledged, "{} of {acknowledged}", updates.len());
    assert!(updates.len() <= acknowledged + 1, "one more may have been committed and not told");
}

#[test]
fn what_is_committed_is_seen_by_others_while_the_store_is_open() {
    let (_folder, path) = empty();
    let mut store = SqliteStore::open(&path).unwrap();
    store.commit(&[append("room", 1, "one")]).unwrap();
    let mut other = SqliteStore::open(&path).unwrap();
    assert_eq!(other.load(&name("room")), Ok(vec!["one".into()]));
    store.commit(&[append("room", 2, "two")]).unwrap();
    assert_eq!(other.load(&name("room")), Ok(vec!["one".into(), "two".into()]));
}

#[test]
fn the_key_of_a_room_can_be_mapped() {
    let (_folder, path) = empty();
    let mut store =
        SqliteStore::open(&path).unwrap().with_paths(|room| format!(".notebook:{}.y", room.as_str()));
    let connection = Connection::open(&path).unwrap();
    insert(&connection, ".notebook:1234.y", b"one", 1.0);
    assert_eq!(store.load(&name("1234")), Ok(vec!["one".into()]));
    store.commit(&[append("1234", 1, "two")]).unwrap();
    assert_eq!(count(&connection, "SELECT count(*) FROM yupdates WHERE path = '.notebook:1234.y'"), 2);
}

#[test]
fn a_database_made_here_shrinks_as_rooms_are_compacted() {
    let (_folder, path) = empty();
    let mut store = SqliteStore::open(&path).unwrap();
    store.load(&name("room")).unwrap();
    let writes: Vec<_> = (0..1000).map(|seq| append("room", seq, vec![7; 5000])).collect();
    store.commit(&writes).unwrap();
    store.commit(&[compact("room", 1000, "state")]).unwrap();
    drop(store);
    let size = fs::metadata(&path).unwrap().len();
    assert!(size < 100_000, "{size}");
}

#[test]
fn compaction_keeps_the_content_of_real_documents() {
    let (_folder, path) = empty();
    let mut store = SqliteStore::open(&path).unwrap();
    let room = name("room");
    let mut updates = store.load(&room).unwrap();
    let mut expected = String::new();
    for seq in 1..200 {
        let word = format!("word {seq} ");
        let update = push(&updates, &word);
        expected += &word;
        updates.push(update.clone());
        store.commit(&[append("room", seq, update)]).unwrap();
        if seq % 23 == 0 {
            store.commit(&[compact("room", seq, squash(&updates))]).unwrap();
        }
    }
    let loaded = store.load(&room).unwrap();
    assert_eq!(text(&loaded), expected);
    assert_eq!(loaded.len(), 1 + 199 % 23);
}

/// Is not a test: a process of its own for the tests above, which start it with a path.
#[test]
fn hold_the_lock() {
    let Some(path) = env::var_os("STORE_TEST_PATH") else { return };
    let connection = Connection::open(path).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    println!("\nready");
    loop {
        thread::park();
    }
}

/// Is not a test either.
#[test]
fn write_until_killed() {
    let Some(path) = env::var_os("STORE_TEST_PATH") else { return };
    let mut store = SqliteStore::open(path).unwrap();
    println!("\nready");
    for seq in 1.. {
        store.commit(&[append("room", seq, seq.to_string())]).unwrap();
        println!("{seq}");
    }
}

fn rows(connection: &Connection) -> Vec<(String, Vec<u8>, f64)> {
    let mut select =
        connection.prepare("SELECT path, yupdate, timestamp FROM yupdates ORDER BY rowid").unwrap();
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

/// The update that adds to the end of the text.
fn push(updates: &[Bytes], addition: &str) -> Bytes {
    // Another id for another text: two clients, not one that means two things by one clock.
    let client = 1000 + addition.bytes().map(u64::from).sum::<u64>() * 1000 + updates.len() as u64;
    let doc = document(updates, client);
    let text = doc.get_or_insert_text("text");
    let before = doc.transact().state_vector();
    text.push(&mut doc.transact_mut(), addition);
    doc.transact().encode_diff_v1(&before).into()
}

fn squash(updates: &[Bytes]) -> Bytes {
    let merged = merge_updates_v1(updates).unwrap();
    let doc = document(&[merged.into()], 1);
    doc.transact().encode_state_as_update_v1(&StateVector::default()).into()
}
