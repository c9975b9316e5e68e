//! Databases of every version that ypy-websocket has written, imported into a new one.

mod common;

use std::{fs, ops::ControlFlow};

use bytes::Bytes;
use common::*;
use rusqlite::{Connection, params};
use yrs_websocket_store::{Damage, History, OldRecord, OpenError, SqliteStore, Store};

const BARE: &str = "CREATE TABLE yupdates (path TEXT NOT NULL, yupdate BLOB)";

#[test]
fn updates_alone_as_0_1_10_wrote_them() {
    let updates = typed(&["Hello", ", ", "World"]);
    let rows: Vec<_> = updates.iter().map(|update| ("room", &update[..])).collect();
    let (store, problems) = imported(|old| bare(old, &rows));
    assert_eq!(problems, []);
    assert_eq!(shown(store), [("room", "Hello, World", vec![""; 3])]);
}

#[test]
fn updates_and_metadata_by_turns_as_0_2_0_wrote_them() {
    let updates = typed(&["Hello", ", ", "World"]);
    let rows = [
        ("room", &updates[0][..]),
        ("room", b"m1"),
        ("room", &updates[1]),
        ("room", b""),
        ("room", &updates[2]),
        ("room", b"m3"),
    ];
    let (store, problems) = imported(|old| bare(old, &rows));
    assert_eq!(problems, []);
    assert_eq!(shown(store), [("room", "Hello, World", vec!["m1", "", "m3"])]);
}

/// ypy-websocket#40: two rows per write, and nothing that kept the writes apart.
#[test]
fn updates_and_metadata_of_writes_that_were_mixed() {
    let updates = typed(&["Hello", ", ", "World"]);
    let rows = [
        ("room", &updates[0][..]),
        ("room", &updates[1]),
        ("other", &typed(&["else"])[0]),
        ("room", b"m1"),
        ("room", &updates[2]),
        ("other", b"o1"),
        ("room", b"m2"),
        ("room", b"m3"),
    ];
    let (store, problems) = imported(|old| bare(old, &rows));
    assert_eq!(problems, []);
    assert_eq!(
        shown(store),
        [("other", "else", vec!["o1"]), ("room", "Hello, World", vec!["m1", "m2", "m3"])]
    );
}

#[test]
fn a_damaged_update_among_metadata_is_reported() {
    let updates = typed(&["Hello", ", "]);
    let rows = [("room", &updates[0][..]), ("room", &updates[1][..10]), ("room", &updates[1])];
    let (store, problems) = imported(|old| bare(old, &rows));
    let damage = Damage::Unpaired { updates: 2, others: 1 };
    assert_eq!(problems, [OldRecord { key: "room".into(), row: 0, damage }]);
    assert_eq!(shown(store)[0].1, "Hello, ");
    let (_, problems) = imported(|old| bare(old, &[("room", b"letters")]));
    assert!(matches!(&problems[0], OldRecord { row: 1, damage: Damage::Malformed(_), .. }), "{problems:?}");
}

#[test]
fn metadata_in_its_column_as_0_5_0_wrote_it() {
    let (store, problems) = imported(|old| {
        old.execute_batch("CREATE TABLE yupdates (path TEXT NOT NULL, yupdate BLOB, metadata BLOB)").unwrap();
        for (n, update) in typed(&["Hello", ", ", "World"]).iter().enumerate() {
            let row = params!["room", &update[..], format!("m{n}").into_bytes()];
            old.execute("INSERT INTO yupdates VALUES (?1, ?2, ?3)", row).unwrap();
        }
    });
    assert_eq!(problems, []);
    assert_eq!(shown(store), [("room", "Hello, World", vec!["m0", "m1", "m2"])]);
}

#[test]
fn times_as_text_as_0_6_0_wrote_them() {
    let (mut store, problems) = imported(|old| {
        old.execute_batch("CREATE TABLE yupdates (path TEXT NOT NULL, yupdate BLOB, metadata BLOB, timestamp TEXT NOT NULL)")
            .unwrap();
        let times = ["2022-11-05 10:00:00.500000", "2022-11-05 10:00:01", "no time at all"];
        for (update, time) in typed(&["Hello", ", ", "World"]).iter().zip(times) {
            let row = params!["room", &update[..], time];
            old.execute("INSERT INTO yupdates VALUES (?1, ?2, x'', ?3)", row).unwrap();
        }
    });
    assert_eq!(problems, []);
    let mut times = Vec::new();
    store
        .records(&name("room"), &mut |record| {
            times.push(record.timestamp);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(
        (times[0] - 1_667_642_400.5).abs() < 0.001 && (times[1] - 1_667_642_401.0).abs() < 0.001,
        "{times:?}"
    );
    assert_eq!(times[2], 2e9, "that of the import");
    assert_eq!(text(&store.load(&name("room")).unwrap()), "Hello, World");
}

#[test]
fn newer_databases_with_all_they_have() {
    for (library, expected) in [
        (
            "ypy-0.12.4",
            vec![("room-1", "Hello, World", vec!["m1", "m2", "m3"]), ("room-2", "Hello", vec![""])],
        ),
        ("pycrdt-store-0.1.5", vec![("room-1", "Hello, World!", vec!["m1", "m2", "", "m3", "m4"])]),
    ] {
        let (_folder, old) = fixture(library);
        let before = fs::read(&old).unwrap();
        let mut store = SqliteStore::in_memory().unwrap();
        store.import_database(&old, &mut |row| row.unwrap()).unwrap();
        assert_eq!(shown(store), expected);
        assert_eq!(fs::read(&old).unwrap(), before);
        let folder = old.parent().unwrap();
        assert_eq!(folder.read_dir().unwrap().count(), 1, "no other file is made beside it");
    }
}

#[test]
fn more_than_fits_into_one_transaction() {
    let words = vec!["word"; 2500];
    let updates = typed(&words);
    let rows: Vec<_> = updates.iter().map(|update| ("room", &update[..])).collect();
    let (mut store, problems) = imported(|old| bare(old, &rows));
    assert_eq!(problems, []);
    assert_eq!(store.load(&name("room")), Ok(updates));
}

#[test]
fn keys_that_are_no_room_names_are_kept_and_named() {
    let update = &typed(&["Hello"])[0];
    let (mut store, problems) =
        imported(|old| bare(old, &[("", update), ("a\nb", update), ("room", update)]));
    assert_eq!(problems, []);
    assert_eq!(store.unnamed_keys(), Ok(vec![String::new(), "a\nb".into()]));
    assert_eq!(shown(store), [("room", "Hello", vec![""])]);
}

#[test]
fn what_is_no_store_is_refused() {
    for (sql, expected) in [
        ("CREATE TABLE users (name TEXT)", OpenError::Foreign),
        ("CREATE TABLE yupdates (path TEXT, what TEXT)", OpenError::Layout { table: "yupdates", columns: "path TEXT, what TEXT".into() }),
        (
            "CREATE TABLE yupdates (path TEXT NOT NULL, yupdate BLOB, metadata BLOB, timestamp REAL NOT NULL);
             PRAGMA user_version = 3",
            OpenError::Version { found: 3 },
        ),
    ] {
        let (_folder, path) = empty();
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let mut store = SqliteStore::in_memory().unwrap();
        assert_eq!(store.import_database(&path, &mut |_| unreachable!()), Err(expected));
    }
    let (_folder, path) = empty();
    let mut store = SqliteStore::in_memory().unwrap();
    assert!(store.import_database(&path, &mut |_| unreachable!()).is_err());
    assert!(!path.exists());
}

/// Makes an old database and imports it; it must be the same afterwards.
fn imported(make: impl FnOnce(&Connection)) -> (SqliteStore, Vec<OldRecord>) {
    let (folder, path) = empty();
    make(&Connection::open(&path).unwrap());
    assert!(SqliteStore::open(&path).is_err(), "it cannot be opened as it is");
    let before = fs::read(&path).unwrap();
    let mut problems = Vec::new();
    let mut store = SqliteStore::in_memory().unwrap().with_clock(|| 2e9);
    store.import_database(&path, &mut |row| problems.extend(row.err())).unwrap();
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    (store, problems)
}

fn bare(old: &Connection, rows: &[(&str, &[u8])]) {
    old.execute_batch(BARE).unwrap();
    old.execute_batch("BEGIN").unwrap();
    for row in rows {
        old.execute("INSERT INTO yupdates VALUES (?1, ?2)", *row).unwrap();
    }
    old.execute_batch("COMMIT").unwrap();
}

/// Every room with its text and the metadata of its records.
fn shown(mut store: SqliteStore) -> Vec<(&'static str, &'static str, Vec<&'static str>)> {
    let leak = |text: String| -> &'static str { text.leak() };
    let rooms = store.rooms().unwrap();
    let shown = rooms.into_iter().map(|summary| {
        let mut metadata = Vec::new();
        store
            .records(&summary.room, &mut |record| {
                metadata.push(leak(String::from_utf8_lossy(&record.metadata).into_owned()));
                ControlFlow::Continue(())
            })
            .unwrap();
        let updates: Vec<Bytes> = store.load(&summary.room).unwrap();
        (leak(summary.room.to_string()), leak(text(&updates)), metadata)
    });
    shown.collect()
}
