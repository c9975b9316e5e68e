//! What every store must do, as properties to run against a store of your own.
//!
//! ```
//! # fn main() {}
//! use yrs_websocket_store::{FileStore, MemoryStore, conformance_tests};
//!
//! // A module with a test for each property. The folder is a new one for each test, and the
//! // same one when the test opens the store again.
//! conformance_tests!(files, |folder| FileStore::open(folder).unwrap());
//!
//! // A store that begins empty each time it is made.
//! conformance_tests!(memory, forgets, |_| MemoryStore::new());
//! ```
//!
//! A property is a function that takes what opens the store, and panics where the store does not have it.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::mpsc,
    time::Duration,
};

use bytes::Bytes;
use tempfile::TempDir;
use yrs_websocket::RoomName;

use super::FlakyStore;
use crate::{Completion, MemoryStore, Request, Store, StoreError, StoreThread, Write};

/// Makes a module of tests, one for each property in [`conformance`](crate::testing::conformance).
///
/// Takes the name of the module, `forgets` if what the store holds is gone once it is dropped, and a closure that
/// opens the store, given the `&Path` of a folder that it may use.
#[macro_export]
macro_rules! conformance_tests {
    ($name:ident, forgets, $open:expr) => {
        $crate::conformance_tests!(@also $name, $open;);
    };
    ($name:ident, $open:expr) => {
        $crate::conformance_tests!(@also $name, $open;
            what_was_committed_is_there_when_it_is_opened_again
            what_was_compacted_is_there_when_it_is_opened_again
            opening_again_begins_a_new_numbering
            what_failed_is_not_there_when_it_is_opened_again
        );
    };
    (@also $name:ident, $open:expr; $($property:ident)*) => {
        $crate::conformance_tests!(@all $name, $open;
            a_room_never_written_is_empty
            updates_come_back_whole_and_in_order
            rooms_do_not_mix
            unusual_names_are_names_like_others
            compaction_replaces_what_it_covers
            compaction_leaves_what_came_after_its_seq
            compaction_covers_what_was_loaded
            compaction_leaves_what_was_not_loaded
            compaction_and_appends_share_a_commit
            compaction_of_nothing_is_no_error
            a_state_may_be_several_updates
            a_load_begins_a_new_numbering
            large_updates_are_kept
            many_rooms_are_kept
            nothing_to_write_is_no_error
            of_updates_that_say_nothing_no_other_is_lost
            what_is_written_again_is_kept
            whatever_is_done_what_is_kept_is_what_was_written
            what_fails_and_is_tried_again_is_kept_in_order
            rooms_written_at_the_same_time_keep_their_order
            $($property)*
        );
    };
    (@all $name:ident, $open:expr; $($property:ident)*) => {
        mod $name {
            #[allow(unused_imports, reason = "the closure may need none of them")]
            use super::*;
            $(
                #[test]
                fn $property() {
                    $crate::testing::conformance::check($open, $crate::testing::conformance::$property);
                }
            )*
        }
    };
}

/// Runs a property in a folder of its own.
pub fn check<S: Store>(open: impl Fn(&Path) -> S, property: fn(&mut dyn FnMut() -> S)) {
    let folder = TempDir::new().expect("the system has a temporary folder");
    property(&mut || open(folder.path()));
}

/// A room that was never written loads as no updates, and that is no error.
pub fn a_room_never_written_is_empty<S: Store>(open: &mut dyn FnMut() -> S) {
    let mut store = open();
    assert_eq!(store.load(&name("new")), Ok(vec![]));
    store.unload(&name("new"));
    assert_eq!(store.load(&name("new")), Ok(vec![]));
}

/// A load answers every update as it was written, in the order of the writes, loaded and unloaded alike.
pub fn updates_come_back_whole_and_in_order<S: Store>(open: &mut dyn FnMut() -> S) {
    let mut store = open();
    let room = name("order");
    store.load(&room).unwrap();
    let updates: Vec<_> = (0..300).map(|n| Bytes::from(format!("update {n}"))).collect();
    for (seq, updates) in (1..).zip(updates.chunks(7)) {
        let writes: Vec<_> = updates.iter().map(|update| append(&room, seq, update.clone())).collect();
        store.commit(&writes).unwrap();
    }
    assert_eq!(store.load(&room), Ok(updates.clone()));
    store.unload(&room);
    assert_eq!(store.load(&room), Ok(updates));
}

/// What is written to one room, or compacted in it, leaves others as they are, however alike their names.
pub fn rooms_do_not_mix<S: Store>(open: &mut dyn FnMut() -> S) {
    let mut store = open();
    let rooms = ["a", "A", "a ", "a/b", "café", "cafe\u{301}", "%_'\"", "a.y", "%61"].map(name);
    let writes: Vec<_> = rooms.iter().map(|room| append(room, 1, room.to_string() + "!")).collect();
    store.commit(&writes).unwrap();
    store.commit(&[compact(&rooms[0], 1, &["state"])]).unwrap();
    assert_eq!(store.load(&rooms[0]), Ok(vec!["state".into()]));
    for room in &rooms[1..] {
        assert_eq!(store.load(room), Ok(vec![Bytes::from(room.to_string() + "!")]));
    }
}

/// Every room name is one: the longest, those that lead out of a folder, those that some system keeps for
/// itself.
pub fn unusual_names_are_names_like_others<S: Store>(open: &mut dyn FnMut() -> S) {
    let mut store = open();
    let longest = "é".repeat(RoomName::LEN_MAX / 2);
    let almost = "é".repeat(RoomName::LEN_MAX / 2 - 1);
    let rooms = [
        &*longest,
        &almost,
        ".",
        "..",
        "../a",
        "/",
        "//",
        "/a",
        "a/",
        "a//b",
        "./a",
        ".hidden",
        "con",
        "NUL",
        "nul",
        "com1.txt",
        "a\\b",
        "c:",
        "a?",
        "*",
        "|",
        "<>",
        " ",
        "a.",
        "a..",
        "~",
        "-",
        "--help",
        "$HOME",
        "`a`",
        ";",
        "'",
        "\"",
        "%",
        "%00",
        "%2e%2e",
        "+",
        "a+",
        "a(1)",
        "🦀",
        "\u{202e}a",
        "İ",
        "ı",
        "ß",
        "ss",
        "SS",
        "ﬀ",
        "ff",
        "main",
        "store.db",
        "sqlite:a",
        "lock",
    ]
    .map(name);
    let writes: Vec<_> = rooms.iter().map(|room| append(room, 1, room.to_string())).collect();
    store.commit(&writes).unwrap();
    for room in &rooms {
        assert_eq!(store.load(room), Ok(vec![Bytes::from(room.to_string())]), "{room:?}");
    }
}

/// A compaction takes the place of what it covers, and of a compaction before it.
pub fn compaction_replaces_what_it_covers<S: Store>(open: &mut dyn FnMut() -> S) {
    let mut store = open();
    let room = name("compact");
    store.load(&room).unwrap();
    store.commit(&[append(&room, 1, "one"), append(&room, 2, "two")]).unwrap();
    store.commit(&[compact(&room, 2, &["one two"])]).unwrap();
    store.commit(&[append(&room, 3, "three")]).unwrap();
    assert_eq!(store.load(&room), Ok(vec!["one two".into(), "three".into()]));
    store.commit(&[compact(&room, 0, &["one two three"])]).unwrap();
    assert_eq!(store.load(&room), Ok(vec!["one two three".into()]));
}

/// A compaction leaves what was written while it was made, though that came to the store before it.
pub fn compaction_leaves_what_came_after_its_seq<S: Store>(open: &mut dyn FnMut() -> S) {
    let mut store = open();
    let room = name("tail");
    store.load(&room).unwrap();
    store.commit(&[append(&room, 1, "one"), append(&room, 2, "two"), append(&room, 3, "three")]).unwrap();
    store.commit(&[compact(&room, 2, &["one two"])]).unwrap();
    assert_eq!(sorted(&mut store, &room), ["one two", "three"]);
    store.commit(&[append(&room, 1, "four")]).unwrap();
    assert_eq!(sorted(&mut store, &room), ["four", "one two", "three"]);
}

/// A compaction up to 0 covers what was loaded, and nothing that was written since.
pub fn compaction_covers_what_was_loaded<S: Store>(open: &mut dyn FnMut() -> S) {
    let mut store = open();
    let room = name("loaded");
    store.commit(&[append(&room, 7, "one"), append(&room, 9, "two")]).unwrap();
    store.load(&room).unwrap();
    store.commit(&[append(&room, 1, "three")]).unwrap();
    store.commit(&[compact(&room, 0, &["one two"])]).unwrap();
    assert_eq!(sorted(&mut store, &room), ["one two", "three"]);
}

/// A compaction covers what was written up to its number, also in a room that was not loaded before.
pub fn compaction_leaves_what_was_not_loaded<S: Store>(open: &mut dyn FnMut() -> S) {
    let mut store = open();
    let room = name("unloaded");
    store.commit(&[append(&room, 1, "one"), append(&room, 2, "two")]).unwrap();
    store.commit(&[compact(&room, 1, &["one!"])]).unwrap();
    assert_eq!(sorted(&mut store, &room), ["one!", "two"]);
}

/// Appends and compactions of one commit are done in their order.
pub fn compaction_and_appends_share_a_commit<S: Store>(open: &mut dyn FnMut() -> S) {
    let mut store = open();
    let room = name("both");
    store.load(&room).unwrap();
    let writes = [
        append(&room, 1, "one"),
        append(&room, 2, "two"),
        compact(&room, 1, &["one!"]),
        append(&room, 3, "three"),
        compact(&room, 3, &["all"]),
        append(&room, 4, "four"),
    ];
    store.commit(&writes).unwrap();
    assert_eq!(store.load(&room), Ok(vec!["all".into(), "four".into()]));
}

/// A compaction of a room that has nothing writes its state, if it has one.
pub fn compaction_of_nothing_is_no_error<S: Store>(open: &mut dyn FnMut() -> S) {
    let mut store = open();
    let (loaded, unknown) = (name("loaded"), name("unknown"));
    store.load(&loaded).unwrap();
    for room in [&loaded, &unknown] {
        store.commit(&[compact(room, 0, &[])]).unwrap();
        assert_eq!(store.load(room), Ok(vec![]));
        store.commit(&[compact(room, 0, &["state"])]).unwrap();
        assert_eq!(store.load(room), Ok(vec!["state".into()]));
    }
}

/// A state of several updates is kept as they are, and one of none leaves nothing.
pub fn a_state_may_be_several_updates<S: Store>(open: &mut dyn FnMut() -> S) {
    let mut store = open();
    let room = name("several");
    store.load(&room).unwrap();
    store.commit(&[append(&room, 1, "one")]).unwrap();
    store.commit(&[compact(&room, 1, &["state", "conflicting"])]).unwrap();
    assert_eq!(store.load(&room), Ok(vec!["state".into(), "conflicting".into()]));
    store.commit(&[compact(&room, 0, &[])]).unwrap();
    assert_eq!(store.load(&room), Ok(vec![]));
}

/// What was written under a high number is not newer than what is written after the next load.
pub fn a_load_begins_a_new_numbering<S: Store>(open: &mut dyn FnMut() -> S) {
    let mut store = open();
    let room = name("numbering");
    store.load(&room).unwrap();
    store.commit(&[append(&room, 1000, "one")]).unwrap();
    store.unload(&room);
    assert_eq!(store.load(&room), Ok(vec!["one".into()]));
    store.commit(&[append(&room, 1, "two")]).unwrap();
    store.commit(&[compact(&room, 1, &["one two"])]).unwrap();
    assert_eq!(store.load(&room), Ok(vec!["one two".into()]));
}

/// An update of 20 MiB is kept, beside small ones.
pub fn large_updates_are_kept<S: Store>(open: &mut dyn FnMut() -> S) {
    let mut store = open();
    let (room, large) = (name("large"), Bytes::from(vec![7; 20 << 20]));
    store.commit(&[append(&room, 1, "small"), append(&room, 2, large.clone())]).unwrap();
    store.commit(&[append(&room, 3, "small")]).unwrap();
    assert_eq!(store.load(&room), Ok(vec!["small".into(), large, "small".into()]));
}

/// A thousand rooms are written in one commit.
pub fn many_rooms_are_kept<S: Store>(open: &mut dyn FnMut() -> S) {
    let mut store = open();
    let rooms: Vec<_> = (0..1000).map(|n| name(&format!("many-{n}"))).collect();
    let writes: Vec<_> = rooms.iter().map(|room| append(room, 1, room.to_string())).collect();
    store.commit(&writes).unwrap();
    for room in &rooms {
        assert_eq!(store.load(room), Ok(vec![Bytes::from(room.to_string())]));
    }
}

/// A commit of nothing works.
pub fn nothing_to_write_is_no_error<S: Store>(open: &mut dyn FnMut() -> S) {
    assert_eq!(open().commit(&[]), Ok(()));
}

/// An update that says nothing (`00 00`) may be left out of a load; nothing else goes with it.
pub fn of_updates_that_say_nothing_no_other_is_lost<S: Store>(open: &mut dyn FnMut() -> S) {
    let mut store = open();
    let room = name("nothing");
    let nothing = Bytes::from_static(&[0, 0]);
    store.load(&room).unwrap();
    for (seq, update) in
        [&nothing, &"one".into(), &nothing, &nothing, &"two".into(), &nothing].into_iter().enumerate()
    {
        store.commit(&[append(&room, seq as u64 + 1, update.clone())]).unwrap();
    }
    let mut loaded = store.load(&room).unwrap();
    loaded.retain(|update| *update != nothing);
    assert_eq!(loaded, ["one", "two"]);
    store.commit(&[compact(&room, 0, &["one two"])]).unwrap();
    assert_eq!(store.load(&room), Ok(vec!["one two".into()]));
}

/// A caller that was told of a failure writes again: whatever was kept of the first time, nothing is lost, and the
/// next compaction covers it.
pub fn what_is_written_again_is_kept<S: Store>(open: &mut dyn FnMut() -> S) {
    let mut store = open();
    let room = name("again");
    store.load(&room).unwrap();
    for _ in 0..3 {
        store.commit(&[append(&room, 1, "one")]).unwrap();
    }
    let mut loaded = store.load(&room).unwrap();
    loaded.dedup();
    assert_eq!(loaded, ["one"]);
    store.commit(&[append(&room, 1, "two")]).unwrap();
    for _ in 0..3 {
        store.commit(&[compact(&room, 1, &["one two"]), append(&room, 2, "three")]).unwrap();
    }
    let mut loaded = sorted(&mut store, &room);
    loaded.dedup();
    assert_eq!(loaded, ["one two", "three"]);
    store.commit(&[compact(&room, 0, &["all"])]).unwrap();
    assert_eq!(store.load(&room), Ok(vec!["all".into()]));
}

/// Whatever is appended, compacted, loaded and unloaded, of rooms in any order: what is there is what
/// [`MemoryStore`] would have, though where a compaction stands among what it leaves is not said.
pub fn whatever_is_done_what_is_kept_is_what_was_written<S: Store>(open: &mut dyn FnMut() -> S) {
    let mut store = open();
    let mut expected = MemoryStore::new();
    let mut random = Random(7);
    let mut seqs = [0; 4];
    for step in 0..200 {
        let index = random.below(4);
        let (room, seq) = (name(&format!("room-{index}")), &mut seqs[index]);
        let update = |what: &str| Bytes::from(format!("{what} {step} {}", "x".repeat(step % 50)));
        let writes = match random.below(10) {
            0..=5 => {
                *seq += 1;
                vec![append(&room, *seq, update("append"))]
            }
            6 | 7 => {
                // As if some appends had come while it was made.
                let covered = *seq - random.below(*seq as usize + 1) as u64;
                *seq += 1;
                let compact =
                    Write::Compact { room: room.clone(), seq: covered, state: vec![update("state")] };
                vec![append(&room, *seq, update("meanwhile")), compact]
            }
            _ => {
                store.unload(&room);
                *seq = 0;
                assert_eq!(sorted(&mut store, &room), sorted(&mut expected, &room), "step {step}");
                continue;
            }
        };
        store.commit(&writes).unwrap();
        expected.commit(&writes).unwrap();
    }
    for index in 0..4 {
        let room = name(&format!("room-{index}"));
        assert_eq!(sorted(&mut store, &room), sorted(&mut expected, &room));
    }
}

/// A store that fails now and then, behind a [`StoreThread`] whose caller tries again as the core does, has every
/// update in the end, in order.
pub fn what_fails_and_is_tried_again_is_kept_in_order<S: Store>(open: &mut dyn FnMut() -> S) {
    let (store, faults) = FlakyStore::new(open());
    let mut random = Random(11);
    faults.script(move |_| if random.below(3) == 0 { Err(StoreError::Full) } else { Ok(()) });
    let failures = drive(store, 6, 30);
    assert!(failures > 10, "{failures}");
}

/// Rooms that are written through a [`StoreThread`] at the same time each have their updates in order and without
/// a gap.
pub fn rooms_written_at_the_same_time_keep_their_order<S: Store>(open: &mut dyn FnMut() -> S) {
    assert_eq!(drive(open(), 20, 25), 0);
}

/// What was committed is there when the store is opened again, whether or not rooms were unloaded.
pub fn what_was_committed_is_there_when_it_is_opened_again<S: Store>(open: &mut dyn FnMut() -> S) {
    let rooms = ["one", "Two/3", ".."].map(name);
    for opened in 0..4 {
        let mut store = open();
        for room in &rooms {
            let expected: Vec<_> = (0..opened).map(|n| Bytes::from(format!("{room} {n}"))).collect();
            assert_eq!(store.load(room), Ok(expected));
        }
        let writes: Vec<_> = rooms.iter().map(|room| append(room, 1, format!("{room} {opened}"))).collect();
        store.commit(&writes).unwrap();
        store.unload(&rooms[opened % 2]);
    }
}

/// A compaction, and what was written after it, are there when the store is opened again.
pub fn what_was_compacted_is_there_when_it_is_opened_again<S: Store>(open: &mut dyn FnMut() -> S) {
    let room = name("compacted");
    let mut store = open();
    store.load(&room).unwrap();
    store.commit(&[append(&room, 1, "one"), append(&room, 2, "two"), append(&room, 3, "three")]).unwrap();
    store.commit(&[compact(&room, 2, &["one two"])]).unwrap();
    store.commit(&[append(&room, 4, "four")]).unwrap();
    drop(store);
    assert_eq!(sorted(&mut open(), &room), ["four", "one two", "three"]);
}

/// What was written before the store was opened is covered by a compaction of what was loaded since.
pub fn opening_again_begins_a_new_numbering<S: Store>(open: &mut dyn FnMut() -> S) {
    let room = name("numbering");
    let mut store = open();
    store.commit(&[append(&room, 1000, "one")]).unwrap();
    drop(store);
    let mut store = open();
    store.load(&room).unwrap();
    store.commit(&[append(&room, 1, "two")]).unwrap();
    store.commit(&[compact(&room, 1, &["one two"])]).unwrap();
    assert_eq!(store.load(&room), Ok(vec!["one two".into()]));
    drop(store);
    assert_eq!(open().load(&room), Ok(vec!["one two".into()]));
}

/// A call that fails before it reaches the store leaves what is there, and nothing of its own.
pub fn what_failed_is_not_there_when_it_is_opened_again<S: Store>(open: &mut dyn FnMut() -> S) {
    let room = name("failed");
    let (mut store, faults) = FlakyStore::new(open());
    store.load(&room).unwrap();
    store.commit(&[append(&room, 1, "one")]).unwrap();
    faults.fail_next(2, StoreError::Full);
    assert_eq!(store.commit(&[append(&room, 2, "two")]), Err(StoreError::Full));
    assert_eq!(store.commit(&[compact(&room, 2, &["one two"])]), Err(StoreError::Full));
    drop(store);
    assert_eq!(open().load(&room), Ok(vec!["one".into()]));
}

/// Appends to rooms as the core does: one write of a room at a time, again until it works. Answers how often it
/// did not, once everything is there.
fn drive(store: impl Store, rooms: usize, updates: u64) -> usize {
    let names: Vec<_> = (0..rooms).map(|room| name(&format!("room-{room}"))).collect();
    let (done, completions) = mpsc::channel();
    // The receiver outlives the thread.
    let thread = StoreThread::<usize>::spawn(store, Duration::ZERO, move |round| {
        done.send(round).expect("somebody waits")
    });
    let thread = thread.expect("a thread");
    let append = |index: usize, seq: u64| {
        let request = Request::Append { room: names[index].clone(), seq, update: seq.to_string().into() };
        thread.submit(index, request);
    };
    let load = |index: usize| thread.submit(index, Request::Load(names[index].clone()));
    (0..rooms).for_each(load);
    let mut failures = 0;
    let mut loaded = BTreeMap::new();
    let mut round = VecDeque::new();
    while loaded.len() < rooms {
        let Some((index, completion)) = round.pop_front() else {
            round.extend(completions.recv().expect("the thread answers"));
            continue;
        };
        match completion {
            Completion::Loaded { updates, .. } if updates.is_empty() => append(index, 1),
            Completion::Loaded { updates, .. } => drop(loaded.insert(index, updates)),
            Completion::Stored { seq, .. } if seq < updates => append(index, seq + 1),
            Completion::Stored { .. } => load(index),
            Completion::Failed { seq, .. } => {
                failures += 1;
                append(index, seq);
            }
            Completion::LoadFailed { .. } => {
                failures += 1;
                load(index);
            }
            Completion::Compacted { .. } => panic!("nothing was compacted"),
        }
    }
    thread.shutdown();
    for (index, mut found) in loaded {
        // Twice is harmless.
        found.dedup();
        let expected: Vec<_> = (1..=updates).map(|seq| Bytes::from(seq.to_string())).collect();
        assert_eq!(found, expected, "{}", names[index]);
    }
    failures
}

/// Draws numbers, the same ones each time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

fn sorted(store: &mut impl Store, room: &RoomName) -> Vec<Bytes> {
    let mut updates = store.load(room).unwrap();
    updates.sort();
    updates
}

fn name(name: &str) -> RoomName {
    RoomName::new(name).expect("a room name")
}

fn append(room: &RoomName, seq: u64, update: impl Into<Bytes>) -> Write {
    Write::Append { room: room.clone(), seq, update: update.into() }
}

fn compact(room: &RoomName, seq: u64, state: &[&'static str]) -> Write {
    Write::Compact { room: room.clone(), seq, state: state.iter().map(|&update| update.into()).collect() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_property_is_a_test() {
        let source = include_str!("conformance.rs");
        let properties = source
            .lines()
            .filter_map(|line| line.strip_prefix("pub fn ")?.split_once("<S: Store>(open: &mut"));
        let mut count = 0;
        for (property, _) in properties {
            count += 1;
            assert!(source.lines().any(|line| line.trim() == property), "{property} is not in the macro");
        }
        assert_eq!(count, 24);
    }
}
