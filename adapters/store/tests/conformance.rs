//! What every store does, shown of each of ours.

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};
use yrs_websocket::RoomName;
use yrs_websocket_store::{
    FileStore, MemoryStore, SqliteStore, Store, StoreError, TempFileStore, Write, testing::FlakyStore,
};

#[test]
fn memory() {
    conformance(MemoryStore::new);
}

#[test]
fn sqlite_in_memory() {
    conformance(|| SqliteStore::in_memory().unwrap());
}

#[test]
fn sqlite_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut count = 0;
    conformance(|| {
        count += 1;
        SqliteStore::open(folder.path().join(format!("{count}.db"))).unwrap()
    });
}

#[test]
fn files() {
    let folder = tempfile::tempdir().unwrap();
    let mut count = 0;
    conformance(|| {
        count += 1;
        FileStore::open(folder.path().join(count.to_string())).unwrap()
    });
}

#[test]
fn temporary_files() {
    conformance(|| TempFileStore::new().unwrap());
}

#[test]
fn flaky_while_nothing_fails() {
    conformance(|| FlakyStore::new(MemoryStore::new()).0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Memory and SQLite answer alike, whatever is done.
    #[test]
    fn stores_agree(steps in vec((0..3u8, 0..4usize, 0..6u8), 1..60)) {
        let mut memory = MemoryStore::new();
        let mut sqlite = SqliteStore::in_memory().unwrap();
        let mut seqs = [0; 3];
        for (n, (room, what, size)) in steps.into_iter().enumerate() {
            let (room, seq) = (name(&format!("room-{room}")), &mut seqs[usize::from(room)]);
            let bytes = Bytes::from(vec![n as u8 + 1; usize::from(size) + 3]);
            let writes = match what {
                0 | 1 => {
                    *seq += 1;
                    vec![append(&room, *seq, bytes)]
                }
                2 => vec![compact(&room, *seq, &[bytes])],
                _ => {
                    memory.unload(&room);
                    sqlite.unload(&room);
                    *seq = 0;
                    prop_assert_eq!(memory.load(&room), sqlite.load(&room));
                    continue;
                }
            };
            prop_assert_eq!(memory.commit(&writes), Ok(()));
            prop_assert_eq!(sqlite.commit(&writes), Ok(()));
        }
        for room in ["room-0", "room-1", "room-2"] {
            prop_assert_eq!(memory.load(&name(room)), sqlite.load(&name(room)));
        }
    }
}

fn conformance<S: Store>(mut make: impl FnMut() -> S) {
    a_room_never_written_is_empty(make());
    updates_come_back_whole_and_in_order(make());
    rooms_do_not_mix(make());
    compaction_replaces_what_it_covers(make());
    compaction_leaves_what_came_after_its_seq(make());
    compaction_covers_what_was_loaded(make());
    compaction_and_appends_share_a_transaction(make());
    a_state_may_be_several_updates(make());
    a_load_begins_a_new_numbering(make());
    large_values_and_many_rooms(make());
    nothing_to_write_is_no_error(make());
}

fn a_room_never_written_is_empty(mut store: impl Store) {
    assert_eq!(store.load(&name("new")), Ok(vec![]));
    store.unload(&name("new"));
    assert_eq!(store.load(&name("new")), Ok(vec![]));
}

fn updates_come_back_whole_and_in_order(mut store: impl Store) {
    let room = name("order");
    store.load(&room).unwrap();
    let updates: Vec<_> = (0..300u32).map(|n| Bytes::from(format!("update {n}"))).collect();
    for (seq, updates) in (1..).zip(updates.chunks(7)) {
        let writes: Vec<_> = updates.iter().map(|update| append(&room, seq, update.clone())).collect();
        store.commit(&writes).unwrap();
    }
    assert_eq!(store.load(&room), Ok(updates.clone()));
    store.unload(&room);
    assert_eq!(store.load(&room), Ok(updates));
}

fn rooms_do_not_mix(mut store: impl Store) {
    let rooms =
        [name("a"), name("A"), name("a "), name("a/b"), name("café"), name("cafe\u{301}"), name("%_'\"")];
    let writes: Vec<_> =
        rooms.iter().map(|room| append(room, 1, Bytes::from(room.to_string() + "!"))).collect();
    store.commit(&writes).unwrap();
    store.commit(&[compact(&rooms[0], 1, &[Bytes::from("state")])]).unwrap();
    assert_eq!(store.load(&rooms[0]), Ok(vec![Bytes::from("state")]));
    for room in &rooms[1..] {
        assert_eq!(store.load(room), Ok(vec![Bytes::from(room.to_string() + "!")]));
    }
}

fn compaction_replaces_what_it_covers(mut store: impl Store) {
    let room = name("compact");
    store.load(&room).unwrap();
    store.commit(&[append(&room, 1, "one"), append(&room, 2, "two")]).unwrap();
    store.commit(&[compact(&room, 2, &["one two".into()])]).unwrap();
    store.commit(&[append(&room, 3, "three")]).unwrap();
    assert_eq!(store.load(&room), Ok(vec!["one two".into(), "three".into()]));
    // Squash of a squash.
    store.commit(&[compact(&room, 0, &["one two three".into()])]).unwrap();
    assert_eq!(store.load(&room), Ok(vec!["one two three".into()]));
}

fn compaction_leaves_what_came_after_its_seq(mut store: impl Store) {
    let room = name("tail");
    store.load(&room).unwrap();
    store.commit(&[append(&room, 1, "one"), append(&room, 2, "two"), append(&room, 3, "three")]).unwrap();
    store.commit(&[compact(&room, 2, &["one two".into()])]).unwrap();
    let mut updates = store.load(&room).unwrap();
    updates.sort();
    assert_eq!(updates, ["one two", "three"]);
}

fn compaction_covers_what_was_loaded(mut store: impl Store) {
    let room = name("loaded");
    store.commit(&[append(&room, 7, "one"), append(&room, 9, "two")]).unwrap();
    store.load(&room).unwrap();
    store.commit(&[append(&room, 1, "three")]).unwrap();
    store.commit(&[compact(&room, 0, &["one two".into()])]).unwrap();
    let mut updates = store.load(&room).unwrap();
    updates.sort();
    assert_eq!(updates, ["one two", "three"]);
}

fn compaction_and_appends_share_a_transaction(mut store: impl Store) {
    let room = name("both");
    store.load(&room).unwrap();
    let writes = [
        append(&room, 1, "one"),
        append(&room, 2, "two"),
        compact(&room, 1, &["one!".into()]),
        append(&room, 3, "three"),
        compact(&room, 3, &["all".into()]),
        append(&room, 4, "four"),
    ];
    store.commit(&writes).unwrap();
    assert_eq!(store.load(&room), Ok(vec!["all".into(), "four".into()]));
}

fn a_state_may_be_several_updates(mut store: impl Store) {
    let room = name("several");
    store.load(&room).unwrap();
    store.commit(&[append(&room, 1, "one")]).unwrap();
    store.commit(&[compact(&room, 1, &["state".into(), "conflicting".into()])]).unwrap();
    assert_eq!(store.load(&room), Ok(vec!["state".into(), "conflicting".into()]));
    store.commit(&[compact(&room, 0, &[])]).unwrap();
    assert_eq!(store.load(&room), Ok(vec![]));
}

fn a_load_begins_a_new_numbering(mut store: impl Store) {
    let room = name("numbering");
    store.load(&room).unwrap();
    store.commit(&[append(&room, 1000, "one")]).unwrap();
    store.unload(&room);
    assert_eq!(store.load(&room), Ok(vec!["one".into()]));
    store.commit(&[append(&room, 1, "two")]).unwrap();
    store.commit(&[compact(&room, 1, &["one two".into()])]).unwrap();
    assert_eq!(store.load(&room), Ok(vec!["one two".into()]));
}

fn large_values_and_many_rooms(mut store: impl Store) {
    let large = Bytes::from(vec![7; 20 << 20]);
    store.commit(&[append(&name("large"), 1, large.clone())]).unwrap();
    let rooms: Vec<_> = (0..1000).map(|n| name(&format!("many-{n}"))).collect();
    let writes: Vec<_> = rooms.iter().map(|room| append(room, 1, room.to_string())).collect();
    store.commit(&writes).unwrap();
    assert_eq!(store.load(&name("large")), Ok(vec![large]));
    for room in &rooms {
        assert_eq!(store.load(room), Ok(vec![Bytes::from(room.to_string())]));
    }
}

fn nothing_to_write_is_no_error(mut store: impl Store) {
    assert_eq!(store.commit(&[]), Ok(()));
}

#[test]
fn a_flaky_store_fails_once_until_healed_or_as_scripted() {
    let room = name("room");
    let (mut store, faults) = FlakyStore::new(MemoryStore::new());
    faults.fail_next(1, StoreError::Full);
    assert_eq!(store.commit(&[append(&room, 1, "lost")]), Err(StoreError::Full));
    assert_eq!(store.load(&room), Ok(vec![]), "what fails leaves nothing");
    faults.fail(StoreError::Busy);
    assert_eq!(store.load(&room), Err(StoreError::Busy));
    assert_eq!(store.load(&room), Err(StoreError::Busy));
    faults.heal();
    assert_eq!(store.load(&room), Ok(vec![]));
    faults.script(|call| match call {
        yrs_websocket_store::testing::Call::Load(_) => Ok(()),
        yrs_websocket_store::testing::Call::Commit(_) => Err(StoreError::Full),
    });
    assert_eq!(store.load(&room), Ok(vec![]));
    assert_eq!(store.commit(&[]), Err(StoreError::Full));
    assert_eq!((faults.loads(), faults.commits()), (5, 2));
}

fn name(name: &str) -> RoomName {
    RoomName::new(name).unwrap()
}

fn append(room: &RoomName, seq: u64, update: impl Into<Bytes>) -> Write {
    Write::Append { room: room.clone(), seq, update: update.into() }
}

fn compact(room: &RoomName, seq: u64, state: &[Bytes]) -> Write {
    Write::Compact { room: room.clone(), seq, state: state.to_vec() }
}
