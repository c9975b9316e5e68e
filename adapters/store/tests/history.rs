//! History: what every store that has one shows of it, and that nothing is lost by looking, carrying or squashing.

mod common;

use std::ops::ControlFlow;

use bytes::Bytes;
use common::*;
use yrs_websocket::update::SquashOptions;
use yrs_websocket_store::{
    Compaction, Damage, Entry, FileStore, History, HistoryError, MemoryStore, Moment, Record, RoomSummary,
    SqliteStore, testing::SimulatedDisk,
};

#[test]
fn memory() {
    history(|| MemoryStore::new().with_clock(clock([10.0, 20.0, 30.0, 40.0, 50.0, 60.0])));
}

#[test]
fn sqlite() {
    history(|| SqliteStore::in_memory().unwrap().with_clock(clock([10.0, 20.0, 30.0, 40.0, 50.0, 60.0])));
}

#[test]
fn files() {
    history(|| FileStore::on(SimulatedDisk::new()).with_clock(clock([10.0, 20.0, 30.0, 40.0, 50.0, 60.0])));
}

fn history<S: History>(mut make: impl FnMut() -> S) {
    nothing_written_has_no_history(make());
    rooms_are_listed_by_name(make());
    a_document_is_what_it_was_at_every_record_and_time(make());
    visiting_ends_when_it_breaks(make());
    what_is_exported_imports_to_the_same_records(make(), make());
    a_truncated_export_gives_all_that_is_whole(make(), make());
    what_is_no_update_is_reported_and_not_imported(make());
    a_damaged_record_is_found_and_nothing_is_squashed(make());
    compacting_keeps_the_document_and_what_misses_something(make());
}

fn nothing_written_has_no_history(mut store: impl History) {
    assert_eq!(store.rooms(), Ok(vec![]));
    assert_eq!(records(&mut store, "room"), []);
    assert_eq!(store.verify(&name("room"), &mut |_, _| unreachable!()), Ok(0));
    assert_eq!(store.compact(&name("room"), SquashOptions::default()), Ok(Compaction::default()));
    assert_eq!(text(&store.document(&name("room"), Moment::Now).unwrap()), "");
}

fn rooms_are_listed_by_name(mut store: impl History) {
    for write in [append("b", 1, "bytes"), append("a", 1, "more bytes"), append("b", 2, "byte")] {
        store.commit(&[write]).unwrap();
    }
    let room = |room, records, bytes, newest| RoomSummary { room: name(room), records, bytes, newest };
    assert_eq!(store.rooms(), Ok(vec![room("a", 1, 10, 20.0), room("b", 2, 9, 30.0)]));
}

fn a_document_is_what_it_was_at_every_record_and_time(mut store: impl History) {
    let room = name("room");
    for (seq, update) in (1..).zip(typed(&["Hello", ", ", "World"])) {
        store.commit(&[append("room", seq, update)]).unwrap();
    }
    let mut at = |moment| text(&store.document(&room, moment).unwrap());
    assert_eq!(at(Moment::Now), "Hello, World");
    assert_eq!(
        [0, 1, 2, 3, 4].map(|n| at(Moment::Record(n))),
        ["", "Hello", "Hello, ", "Hello, World", "Hello, World"]
    );
    assert_eq!(
        [9.9, 10.0, 29.9, 30.0].map(|t| at(Moment::Time(t))),
        ["", "Hello", "Hello, ", "Hello, World"]
    );
}

fn visiting_ends_when_it_breaks(mut store: impl History) {
    store.commit(&[append("room", 1, "one"), append("room", 2, "two")]).unwrap();
    let mut numbers = Vec::new();
    store
        .records(&name("room"), &mut |record| {
            numbers.push((record.number, record.timestamp));
            ControlFlow::Break(())
        })
        .unwrap();
    assert_eq!(numbers, [(1, 10.0)]);
}

fn what_is_exported_imports_to_the_same_records(mut store: impl History, mut other: impl History) {
    let room = name("room");
    let entries: Vec<_> = (1..)
        .zip(typed(&["Hello", ", ", "World", "!"]))
        .map(|(n, update)| Entry { update, metadata: format!("m{n}").into(), timestamp: f64::from(n) * 1.5 })
        .collect();
    store.restore(&room, &entries).unwrap();
    let mut file = Vec::new();
    assert_eq!(store.export(&room, &mut file, &mut |_, _| unreachable!()), Ok(4));
    assert_eq!(file[..11], *b"VERSION:2\n\x12");
    assert_eq!(other.import(&room, &mut &file[..], &mut |_, _| unreachable!()), Ok(4));
    assert_eq!(records(&mut store, "room"), records(&mut other, "room"));
    assert_eq!(
        records(&mut other, "room").into_iter().map(|record| record.metadata).collect::<Vec<_>>(),
        ["m1", "m2", "m3", "m4"]
    );
    assert_eq!(other.load(&room), Ok(entries.iter().map(|entry| entry.update.clone()).collect()));
}

fn a_truncated_export_gives_all_that_is_whole(mut store: impl History, mut other: impl History) {
    let updates = typed(&["Hello", "World"]);
    store.commit(&[append("room", 1, updates[0].clone()), append("room", 2, updates[1].clone())]).unwrap();
    let mut file = Vec::new();
    store.export(&name("room"), &mut file, &mut |_, _| unreachable!()).unwrap();
    let first = 10 + 1 + updates[0].len() + 1 + 9;
    for len in 0..file.len() {
        let room = name(&format!("cut at {len}"));
        let expected = match len {
            0..10 => Err(HistoryError::NoExport),
            10 => Ok(0),
            _ if len == first => Ok(1),
            _ => Err(HistoryError::Truncated { record: if len < first { 1 } else { 2 } }),
        };
        assert_eq!(other.import(&room, &mut &file[..len], &mut |_, _| unreachable!()), expected);
        assert_eq!(other.load(&room).unwrap().len(), usize::from(len >= first), "{len}");
    }
    for (file, error) in [
        (&b"VERSION:3\n"[..], HistoryError::NoExport),
        // Terabytes are announced, and there is nothing.
        (b"VERSION:2\n\xff\xff\xff\xff\xff\x01", HistoryError::Truncated { record: 1 }),
        (b"VERSION:2\n\xff\xff\xff\xff\xff\xff\xff\xff", HistoryError::NoRecord { record: 1 }),
        (b"VERSION:2\n\x02\0\0\0\x07\0\0\0\0\0\0\0", HistoryError::NoRecord { record: 1 }),
    ] {
        assert_eq!(other.import(&name("new"), &mut &file[..], &mut |_, _| unreachable!()), Err(error));
    }
    // Version 1 has no times.
    let file = [b"VERSION:1\n", &file[10..first - 9]].concat();
    assert_eq!(other.import(&name("one"), &mut &file[..], &mut |_, _| unreachable!()), Ok(1));
    assert_eq!(text(&other.load(&name("one")).unwrap()), "Hello");
}

fn what_is_no_update_is_reported_and_not_imported(mut store: impl History) {
    let file = b"VERSION:2\n\x05abcde\0\x08\0\0\0\0\0\0\xf0\x3f\x02\0\0\0\x08\0\0\0\0\0\0\xf0\x3f";
    let mut damaged = Vec::new();
    let imported =
        store.import(&name("room"), &mut &file[..], &mut |record, damage| damaged.push((record, damage)));
    assert_eq!(imported, Ok(1));
    assert!(matches!(&damaged[..], [(1, Damage::Malformed(_))]), "{damaged:?}");
    assert_eq!(records(&mut store, "room").len(), 1);
}

fn a_damaged_record_is_found_and_nothing_is_squashed(mut store: impl History) {
    let room = name("room");
    let updates = typed(&["Hello", "World"]);
    let writes = [
        append("room", 1, updates[0].clone()),
        append("room", 2, "letters"),
        append("room", 3, updates[1].clone()),
    ];
    store.commit(&writes).unwrap();
    let mut damaged = Vec::new();
    assert_eq!(store.verify(&room, &mut |record, damage| damaged.push((record, damage))), Ok(3));
    assert!(matches!(&damaged[..], [(2, Damage::Malformed(_))]), "{damaged:?}");
    let failed = store.compact(&room, SquashOptions::default());
    assert!(matches!(failed, Err(HistoryError::Damaged { record: 2, .. })), "{failed:?}");
    assert!(matches!(store.document(&room, Moment::Now), Err(HistoryError::Damaged { record: 2, .. })));
    assert_eq!(text(&store.document(&room, Moment::Record(1)).unwrap()), "Hello");
    assert_eq!(store.load(&room).unwrap().len(), 3);
}

fn compacting_keeps_the_document_and_what_misses_something(mut store: impl History) {
    let room = name("room");
    let updates = typed(&["a", "b", "c", "d"]);
    for (seq, n) in [(1, 0), (2, 1), (3, 3)] {
        store.commit(&[append("room", seq, updates[n].clone())]).unwrap();
    }
    let done = store.compact(&room, SquashOptions { collect: false }).unwrap();
    assert_eq!((done.records_before, done.records_after), (3, 1));
    assert!(done.bytes_after < done.bytes_before, "{done:?}");
    assert_eq!(records(&mut store, "room").len(), 1);
    // What was missing comes, and what missed it is there.
    store.load(&room).unwrap();
    store.commit(&[append("room", 1, updates[2].clone())]).unwrap();
    assert_eq!(text(&store.load(&room).unwrap()), "abcd");
    let again = store.compact(&room, SquashOptions::default()).unwrap();
    assert_eq!((again.records_before, again.records_after), (2, 1));
    assert_eq!(text(&store.load(&room).unwrap()), "abcd");
}

#[test]
fn restored_records_are_newer_than_what_was_there_where_time_is_the_order() {
    restored_records_are_newer(MemoryStore::new().with_clock(clock([10.0])));
    restored_records_are_newer(SqliteStore::in_memory().unwrap().with_clock(clock([10.0])));
}

fn restored_records_are_newer(mut store: impl History) {
    store.commit(&[append("room", 1, "one")]).unwrap();
    let entry = |timestamp| Entry { update: "two".into(), metadata: Bytes::new(), timestamp };
    store.restore(&name("room"), &[entry(5.0), entry(11.0), entry(f64::NAN)]).unwrap();
    let times: Vec<_> = records(&mut store, "room").iter().map(|record| record.timestamp).collect();
    assert_eq!(times, [10.0, 10f64.next_up(), 11.0, 11f64.next_up()]);
}

fn records(store: &mut impl History, room: &str) -> Vec<Record> {
    let mut records = Vec::new();
    store
        .records(&name(room), &mut |record| {
            records.push(record);
            ControlFlow::Continue(())
        })
        .unwrap();
    records
}
