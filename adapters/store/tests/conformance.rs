//! What every store does, shown of each of ours.

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};
use yrs_websocket::RoomName;
use yrs_websocket_store::{
    FileStore, Fsync, MemoryStore, SqliteStore, Store, StoreError, TempFileStore, Write, conformance_tests,
    testing::{Call, FlakyStore, SimulatedDisk},
};

conformance_tests!(memory, forgets, |_| MemoryStore::new());
conformance_tests!(sqlite_in_memory, forgets, |_| SqliteStore::in_memory().unwrap());
conformance_tests!(sqlite, |folder| SqliteStore::open(folder.join("store.db")).unwrap());
conformance_tests!(files, |folder| FileStore::open(folder).unwrap());
conformance_tests!(temporary_files, forgets, |_| {
    TempFileStore::new().unwrap().try_map(|store| store.with_fsync(Fsync::Never)).unwrap()
});
conformance_tests!(flaky_while_nothing_fails, forgets, |_| FlakyStore::new(MemoryStore::new()).0);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Memory, SQLite and files answer alike, whatever is done.
    #[test]
    fn stores_agree(steps in vec((0..3u8, 0..4usize, 0..6u8), 1..60)) {
        let mut memory = MemoryStore::new();
        let mut sqlite = SqliteStore::in_memory().unwrap();
        let mut files = FileStore::on(SimulatedDisk::new());
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
                    files.unload(&room);
                    *seq = 0;
                    let expected = memory.load(&room);
                    prop_assert_eq!(&expected, &sqlite.load(&room));
                    prop_assert_eq!(&expected, &files.load(&room));
                    continue;
                }
            };
            prop_assert_eq!(memory.commit(&writes), Ok(()));
            prop_assert_eq!(sqlite.commit(&writes), Ok(()));
            prop_assert_eq!(files.commit(&writes), Ok(()));
        }
        for room in ["room-0", "room-1", "room-2"] {
            let expected = memory.load(&name(room));
            prop_assert_eq!(&expected, &sqlite.load(&name(room)));
            prop_assert_eq!(&expected, &files.load(&name(room)));
        }
    }
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
        Call::Load(_) => Ok(()),
        Call::Commit(_) => Err(StoreError::Full),
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
