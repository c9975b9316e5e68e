//! What goes wrong in other Yjs servers, as exact exchanges: given the same inputs, exactly these outputs.
//!
//! The table in the README says who fails where, and names for each failure the test that shows it holds
//! here: one of these, or one of `contracts.rs` or of an adapter that says it already. See `contracts.rs`
//! for how to read them.

mod support;

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use support::*;
use yrs_websocket::{Config, Event, Input, RoomName};

// ---- the store fails

#[test]
fn the_store_fails_once_and_the_author_has_left() {
    let mut w = World::open(Config::default(), [1]);
    let a = text_insert(1, 0, "a");
    assert_eq!(w.frame(1, update(&a)), [append(1, &a[..])]);
    assert_eq!(w.leave(1), []);
    assert_eq!(w.store_failed(1), []);
    assert_eq!(w.pass(99), []);
    assert_eq!(w.pass(26), [append(1, &a[..])]);
    assert_eq!(w.stored(1), []);
    assert_eq!(w.pass(30_000), []);
    assert!(w.server.room(&room()).is_none());
    assert_eq!(w.join(2), [load()]);
    assert_eq!(w.loaded(&[&a]), [send([2], step1(&[(1, 1)]))]);
}

#[test]
fn the_store_fails_on_the_last_leave_and_shutting_down_ends_all_the_same() {
    for store_heals in [true, false] {
        let mut w = World::open(Config::default(), [1]);
        let a = text_insert(1, 0, "a");
        w.frame(1, update(&a));
        w.leave(1);
        assert_eq!(w.store_failed(1), []);
        assert_eq!(w.drain(w.in_millis(1000)), []);
        assert_eq!(w.pass(125), [append(1, &a[..])]);
        w.events();
        if store_heals {
            assert_eq!(w.stored(1), []);
            assert_eq!(w.events(), [Event::RoomClosed { room: room(), unstored_bytes: 0 }, Event::Drained]);
        } else {
            // It hangs. What is not durable was acknowledged to nobody, and is reported.
            assert_eq!(w.pass(874), []);
            assert_eq!(w.events(), []);
            assert_eq!(w.pass(1), []);
            let unstored_bytes = a.len();
            assert_eq!(w.events(), [Event::RoomClosed { room: room(), unstored_bytes }, Event::Drained]);
        }
        assert_eq!(w.server.next_timeout(), None);
    }
}

#[test]
fn an_edit_during_an_in_flight_write_whose_author_then_leaves() {
    let mut w = World::open(Config::default(), [1]);
    let (a, b) = (text_insert(1, 0, "a"), text_insert(1, 1, "b"));
    assert_eq!(w.frame(1, update(&a)), [append(1, &a[..])]);
    w.pass(10);
    assert_eq!(w.frame(1, update(&b)), []);
    assert_eq!(w.leave(1), []);
    // The room is not clean because the first write is: it stays for the second.
    assert_eq!(w.pass(60_000), []);
    assert_eq!(w.stored(1), [append(2, &b[..])]);
    assert_eq!(w.pass(60_000), []);
    assert_eq!(w.stored(2), []);
    assert_eq!(w.pass(30_000), []);
    assert_eq!(w.join(2), [load()]);
    assert_eq!(w.loaded(&[&a, &b]), [send([2], step1(&[(1, 2)]))]);
}

#[test]
fn an_edit_followed_at_once_by_the_end_of_its_connection_is_stored() {
    let mut w = World::open(Config::default(), [1]);
    let (a, b) = (text_insert(1, 0, "a"), text_insert(1, 1, "b"));
    assert_eq!(w.frame(1, update(&a)), [append(1, &a[..])]);
    w.stored(1);
    // Within the flush interval: it waits for nobody.
    assert_eq!(w.frame(1, update(&b)), []);
    assert_eq!(w.leave(1), []);
    assert_eq!(w.pass(10), [append(2, &b[..])]);
}

// ---- loading

#[test]
fn a_failed_load_and_then_a_save() {
    let mut w = World::new(Config::default());
    let (precious, mine) = (text_insert(1, 0, "precious"), text_insert(2, 0, "mine"));
    w.join(1);
    w.frame(1, step1(&[(2, 1)]));
    w.frame(1, update(&mine));
    // Of what came meanwhile nothing is stored: it would be all there is.
    assert_eq!(w.load_failed(), [close(1, 1013)]);
    assert_eq!(w.pass(60_000), []);
    assert_eq!(w.join(2), [load()]);
    assert_eq!(w.loaded(&[&precious]), [send([2], step1(&[(1, 8)]))]);
    assert_eq!(w.frame(2, step1(&[(2, 1)])), [send([2], step2(&precious))]);
    assert_eq!(w.frame(2, step2(&mine)), [append(1, &mine[..])]);
}

#[test]
fn a_room_that_cannot_be_loaded_stops_no_other() {
    let mut w = World::open(Config::default(), [1, 2]);
    let a = text_insert(1, 0, "a");
    assert_eq!(w.join_room(3, "bad"), [Out::Load("bad".into())]);
    let bad = RoomName::new("bad").unwrap();
    assert_eq!(w.handle(Input::Loaded { room: bad, updates: vec!["nonsense".into()] }), [close(3, 1013)]);
    assert_eq!(w.frame(1, update(&a)), [send([2], update(&a)), append(1, &a[..])]);
    // Nor does an answer of the store that nobody has asked for.
    for seq in [0, 2, u64::MAX] {
        assert_eq!(w.stored(seq), []);
    }
    assert_eq!(w.stored(1), [send([1], update(&a))]);
    assert_eq!(w.join_room(3, "bad"), [Out::Load("bad".into())]);
}

#[test]
fn loads_that_are_rejected_leave_nothing_behind() {
    let mut w = World::new(Config::default());
    for connection in 1..=1000 {
        assert_eq!(w.join(connection), [load()]);
        assert_eq!(w.frame(connection, step1(&[])), []);
        assert_eq!(w.load_failed(), [close(connection, 1013)]);
        assert_eq!(w.server.rooms().len() + w.server.connections(), 0);
        assert_eq!(w.server.next_timeout(), None);
    }
}

// ---- what comes back after a restart

#[test]
fn a_restart_doubles_nothing() {
    let (a, b) = (text_insert(1, 0, "a"), structs(&[(2, 0, &[after(1, 0, "b")])], &[(1, 0, 1)]));
    let both = structs(&[(2, 0, &[after(1, 0, "b")]), (1, 0, &[first("a")])], &[(1, 0, 1)]);
    let mut w = restarted(&[&a, &b], [1, 2]);
    // Everybody brings everything, in its own words.
    for brought in [step2(&both), step2(&a), update(&b), update(&both)] {
        assert_eq!(w.frame(1, &brought[..]), []);
        assert_eq!(w.frame(2, &brought[..]), []);
    }
    assert_eq!(w.pass(20_000), []);
    assert_eq!(w.frame(1, step1(&[])), [send([1], step2(&both))]);
}

#[test]
fn from_an_older_backup_clients_bring_back_the_rest_and_nothing_twice() {
    let (a, ab) = (text_insert(1, 0, "a"), text_insert(1, 0, "ab"));
    let mut w = restarted(&[&a], [1, 2]);
    let b = text_insert(1, 1, "b");
    assert_eq!(w.frame(1, step1(&[(1, 2)])), [send([1], step2(NOTHING))]);
    // What it has beyond the backup it is told of once that is stored; so is the other, who asked first.
    assert_eq!(w.frame(2, step1(&[(1, 2)])), [send([2], step2(NOTHING))]);
    assert_eq!(w.frame(1, step2(&ab)), [append(1, &b[..])]);
    assert_eq!(w.frame(2, step2(&ab)), []);
    assert_eq!(w.stored(1), [send([1, 2], update(&b))]);
}

#[test]
fn an_update_out_of_order_survives_a_restart() {
    let mut w = World::open(Config::default(), [1]);
    let (a, b) = (text_insert(1, 0, "a"), text_insert(1, 1, "b"));
    assert_eq!(w.frame(1, update(&b)), [append(1, &b[..])]);
    w.stored(1);
    let mut w = restarted(&[&b], [2, 3]);
    assert_eq!(w.frame(2, step1(&[])), [send([2], step2(&b))]);
    assert_eq!(w.frame(3, update(&a)), [send([2], update(&a)), append(1, &a[..])]);
    assert_eq!(w.join(4), [send([4], step1(&[(1, 2)]))]);
}

// ---- compaction

#[test]
fn a_snapshot_races_appends_and_the_server_dies_at_any_step() {
    let [a, b, c] = [(0, "a"), (1, "b"), (2, "c")].map(|(clock, text)| text_insert(1, clock, text));
    let mut w = World::open(config(|config| config.squash_count = 2), [1]);
    w.frame(1, update(&a));
    w.stored(1);
    w.pass(10);
    w.frame(1, update(&b));
    assert_eq!(w.stored(2), [send([1], update(&b)), Out::Compact(2)]);
    w.pass(10);
    assert_eq!(w.frame(1, update(&c)), []);
    let (_, seq, squash) = w.squashes.pop().unwrap();
    let squashed = squash.run();
    // The snapshot says what it replaces, and not the edit that came meanwhile, which nothing replaces.
    let ab = text_insert(1, 0, "ab");
    assert_eq!(squashed.updates().collect::<Vec<_>>(), [&ab]);
    assert_eq!(w.compacted(seq, squashed), [append(3, &c[..])]);
    for (on_the_disk, clock) in [(&[&a[..], &b][..], 2), (&[&ab], 2), (&[&ab, &c], 3)] {
        let mut w = restarted(on_the_disk, [1]);
        assert_eq!(w.join(2), [send([2], step1(&[(1, clock)]))]);
    }
}

#[test]
fn a_snapshot_that_replaces_the_only_snapshot_says_everything() {
    let mut w = World::new(config(|config| config.squash_count = 1));
    w.join(1);
    // All there is is the snapshot of a former time.
    assert_eq!(w.loaded(&[&text_insert(1, 0, "ab")]), [send([1], step1(&[(1, 2)])), Out::Compact(0)]);
    for (seq, text) in [(0, "ab"), (1, "abc"), (2, "abcd")] {
        let (_, covered, squash) = w.squashes.pop().unwrap();
        assert_eq!(covered, seq);
        let squashed = squash.run();
        assert_eq!(squashed.updates().collect::<Vec<_>>(), [&text_insert(1, 0, text)]);
        assert_eq!(w.compacted(seq, squashed), []);
        // Nothing new, nothing to compact: no chain of them starts.
        assert_eq!(w.pass(1000), []);
        let next = text_insert(1, seq as u8 + 2, ["c", "d", "e"][seq as usize]);
        assert_eq!(w.frame(1, update(&next)), [append(seq + 1, &next[..])]);
        assert_eq!(w.stored(seq + 1), [send([1], update(&next)), Out::Compact(seq + 1)]);
    }
}

// ---- coming and going

#[test]
fn a_join_races_the_unloading_of_its_room() {
    // Before the timer of the same instant, however late that is: the room is still there, and stays.
    let mut w = World::open(Config::default(), [1]);
    w.leave(1);
    w.sleep(30_000);
    assert_eq!(w.join(2), [send([2], step1(&[]))]);
    assert_eq!(w.pass(24_999), []);
    assert!(w.server.room(&room()).is_some());
    // After it: it is loaded anew, behind all that was written to it.
    w.leave(2);
    w.pass(30_000);
    assert_eq!(w.join(3), [load()]);
}

#[test]
fn a_join_races_the_last_snapshot_before_an_unloading() {
    let mut w = World::open(Config::default(), [1]);
    for clock in 0..16 {
        w.frame(1, update(text_insert(1, clock, "x")));
        w.stored(u64::from(clock) + 1);
        w.pass(10);
    }
    w.leave(1);
    assert_eq!(w.pass(30_000), [Out::Compact(16)]);
    assert_eq!(w.join(2), [send([2], step1(&[(1, 16)]))]);
    let y = text_insert(1, 16, "y");
    assert_eq!(w.frame(2, update(&y)), []);
    let (_, seq, squash) = w.squashes.pop().unwrap();
    assert_eq!(w.compacted(seq, squash.run()), [append(17, &y[..])]);
    assert_eq!(w.stored(17), [send([2], update(&y))]);
    assert_eq!(w.frame(2, step1(&[(1, 16)])), [send([2], step2(&y))]);
}

#[test]
fn the_last_two_close_at_the_same_time() {
    let mut w = World::open(Config::default(), [1, 2]);
    w.frame(1, presence(&[(7, 1, "{}")]));
    w.frame(2, presence(&[(8, 1, "{}")]));
    w.pass(80);
    assert_eq!(w.leave(1), [send([2], presence(&[(7, 1, "null")]))]);
    assert_eq!(w.leave(2), []);
    // Said twice, as a read and a write may both fail.
    assert_eq!(w.leave(1), []);
    assert_eq!(w.leave(2), []);
    w.events();
    assert_eq!(w.pass(60_000), []);
    assert_eq!(w.events(), [Event::RoomClosed { room: room(), unstored_bytes: 0 }]);
    assert_eq!((w.server.rooms().len(), w.server.connections(), w.server.next_timeout()), (0, 0, None));
}

#[test]
fn ten_thousand_rooms_that_come_and_go_leave_nothing_behind() {
    let mut w = World::new(Config::default());
    for n in 0..10_000 {
        let name = RoomName::new(&format!("room-{n}")).unwrap();
        w.join_room(n, name.as_str());
        w.handle(Input::Loaded { room: name.clone(), updates: vec![] });
        w.frame(n, presence(&[(7, 1, "{}")]));
        w.frame(n, update(text_insert(1, 0, "a")));
        w.handle(Input::Stored { room: name, seq: 1 });
        w.leave(n);
        w.pass(10);
    }
    // Those of the last 30 s are kept for who comes back.
    assert_eq!(w.server.rooms().len(), 2_999);
    assert_eq!(w.pass(30_000), []);
    assert_eq!((w.server.rooms().len(), w.server.connections(), w.server.next_timeout()), (0, 0, None));
}

#[test]
fn rooms_that_look_alike_do_not_share_answers() {
    let mut w = World::open(Config::default(), [1]);
    w.join_room(2, "other");
    let other = RoomName::new("other").unwrap();
    w.handle(Input::Loaded { room: other.clone(), updates: vec![] });
    // As many changes, the same clients, the same clocks.
    let (a, z) = (text_insert(1, 0, "a"), text_insert(1, 0, "z"));
    assert_eq!(w.frame(1, update(&a)), [append(1, &a[..])]);
    assert_eq!(w.frame(2, update(&z)), [append(1, &z[..])]);
    assert_eq!(w.stored(1), [send([1], update(&a))]);
    assert_eq!(w.handle(Input::Stored { room: other, seq: 1 }), [send([2], update(&z))]);
    assert_eq!(w.frame(1, step1(&[])), [send([1], step2(&a))]);
    assert_eq!(w.frame(2, step1(&[])), [send([2], step2(&z))]);
}

// ---- presence

#[test]
fn the_presence_of_a_connection_that_was_replaced_is_no_ghost_and_not_lost() {
    let mut w = World::open(Config::default(), [1, 2]);
    w.frame(1, presence(&[(7, 1, "{}")]));
    w.pass(40);
    // The network of 1 is gone without a word. It comes back, and says again what it said.
    assert_eq!(w.join(3), [send([3], step1(&[])), send([3], presence(&[(7, 1, "{}")]))]);
    assert_eq!(w.frame(3, presence(&[(7, 1, "{}")])), []);
    // The old connection is noticed to be dead: everybody hears it, the client itself answers to that.
    assert_eq!(w.leave(1), [send([2, 3], presence(&[(7, 1, "null")]))]);
    w.pass(40);
    assert_eq!(w.frame(3, presence(&[(7, 2, "{}")])), [send([2, 3], presence(&[(7, 2, "{}")]))]);
    w.pass(40);
    assert_eq!(w.leave(3), [send([2], presence(&[(7, 2, "null")]))]);
}

#[test]
fn a_server_is_not_present_itself() {
    let mut w = World::open(Config::default(), [1, 2]);
    w.edit(|txn| {
        use yrs::{Text, WriteTxn};
        txn.get_or_insert_text("t").insert(txn, 0, "a");
    })
    .unwrap();
    assert_eq!(w.frame(1, [3]), []);
    assert_eq!(w.stored(1), []);
    // For a minute nothing but what keeps the line open.
    assert_eq!(w.pass(60_000), [send([1, 2], KEEPALIVE), send([1, 2], KEEPALIVE)]);
}

// ---- what is malformed

#[test]
fn the_corpus_of_malformed_frames() {
    let refused = |frame: &[u8]| (frame.to_vec(), vec![close(1, 1007)]);
    let ignored = |frame: &[u8]| (frame.to_vec(), vec![]);
    for (frame, expected) in [
        refused(b""),
        refused(&[0]),
        refused(&[0, 9, 0]),
        refused(&[0, 2, 5, b'a', b'b', b'c']),
        refused(&[0, 2, 2, 0xff, 0xff]),
        refused(&[1]),
        // Nobody is denied anything; nobody is present; nobody knows that type.
        ignored(&[2, 0, 0]),
        ignored(&[3]),
        ignored(&[7, 1, 2, 3]),
        // Well-formed, and cut by one byte: never a shorter document.
        refused(&update(text_insert(1, 0, "hello"))[..16]),
        // It has more structs than the rest of the world has bytes.
        refused(&update([
            1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 0, 4, 1, 1, b't', 1, b'a', 0,
        ])),
    ] {
        let mut w = World::open(Config::default(), [1, 2]);
        assert_eq!(w.frame(1, &frame[..]), expected, "{frame:02x?}");
        assert_eq!(w.pass(20_000), [], "{frame:02x?}");
        let b = text_insert(2, 0, "b");
        let expected = match expected[..] {
            [] => vec![send([1], update(&b)), append(1, &b[..])],
            _ => vec![append(1, &b[..])],
        };
        assert_eq!(w.frame(2, update(&b)), expected, "{frame:02x?}");
    }
}

// ---- time

#[test]
fn the_clock_steps_back_and_what_was_due_comes_once_at_its_time() {
    let mut w = World::open(Config::default(), [1, 2]);
    let (a, b) = (text_insert(1, 0, "a"), text_insert(1, 1, "b"));
    w.pass(10_000);
    assert_eq!(w.frame(1, presence(&[(7, 1, "{}")])), [send([1, 2], presence(&[(7, 1, "{}")]))]);
    assert_eq!(w.frame(1, update(&a)), [send([2], update(&a)), append(1, &a[..])]);
    assert_eq!(w.store_failed(1), []);
    w.congested(2);

    // Back to 5 s. To the server it is 10 s until it is later than that.
    w.now -= Duration::from_millis(5_000);
    assert_eq!(w.frame(1, update(&b)), []);
    assert_eq!(w.frame(1, presence(&[(7, 2, "[]")])), []);
    assert_eq!(w.handle(Input::Timeout), []);
    assert_eq!(w.pass(5_009), []);
    // The batch is flushed, for nobody but the store, whose turn has not come.
    assert_eq!(w.pass(1), []);
    assert_eq!(w.pass(30), [send([1], presence(&[(7, 2, "[]")]))]);
    assert_eq!(w.pass(59), []);
    let ab = structs(&[(1, 0, &[first("a"), after(1, 0, "b")])], &[]);
    assert_eq!(w.pass(26), [append(1, &ab[..])]);
    assert_eq!(w.stored(1), [send([1], update(&ab))]);
    assert_eq!(w.writable(2), [send([2], update(&b)), send([2], presence(&[(7, 2, "[]")]))]);

    // Back again, beyond the birth of everything: who leaves and who comes is dealt with all the same.
    w.now -= Duration::from_secs(10);
    assert_eq!(w.leave(1), [send([2], presence(&[(7, 2, "null")]))]);
    assert_eq!(w.join(3), [send([3], step1(&[(1, 2)]))]);
    assert_eq!(w.leave(2), []);
    assert_eq!(w.leave(3), []);
    assert_eq!(w.pass(60_000), []);
    assert_eq!((w.server.rooms().len(), w.server.next_timeout()), (0, None));
}

#[test]
fn a_long_sleep_of_the_machine_makes_everything_due_at_once_and_once() {
    let mut w = World::open(Config::default(), [1, 2, 3]);
    let (a, b) = (text_insert(1, 0, "a"), text_insert(1, 1, "b"));
    w.frame(1, presence(&[(7, 1, "{}")]));
    w.frame(1, update(&a));
    w.store_failed(1);
    w.frame(1, update(&b));
    w.congested(3);
    let mut expiring = join(4);
    expiring.expires_at = Some(w.in_millis(1000));
    w.handle(Input::Connected(expiring));
    w.sleep(600_000);
    let ab = structs(&[(1, 0, &[first("a"), after(1, 0, "b")])], &[]);
    assert_eq!(
        w.handle(Input::Timeout),
        [
            close(4, 4401),
            send([2], update(&b)),
            send([1, 2], presence(&[(7, 1, "null")])),
            close(3, 1013),
            append(1, &ab[..]),
        ]
    );
    assert_eq!(w.stored(1), [send([1], update(&ab))]);
    assert_eq!(w.pass(24_999), []);
    assert_eq!(w.pass(1), [send([1, 2], KEEPALIVE)]);
}

// ---- the table

/// "Fails elsewhere, holds here" cannot rot: each row names a test, each test that it names is there, and
/// each scenario is in it.
#[test]
fn the_table_in_the_readme_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if !root.join("adapters").exists() {
        return; // the published package is the core alone
    }
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    let readme = read("README.md");
    let (_, table) = readme.split_once("## Fails elsewhere, holds here\n").expect("the README has the table");
    let table = table.split("\n## ").next().unwrap();
    let mut named = BTreeSet::new();
    for row in table.lines().filter(|line| line.starts_with('|')).skip(2) {
        let mut links = row.split('[').skip(1).peekable();
        assert!(links.peek().is_some(), "no test in {row}");
        for link in links {
            let (name, path) = link.split_once("](").expect(row);
            let path = path.split(')').next().unwrap();
            let name = name.trim_matches('`');
            let file = read(path);
            let is_there = match path.ends_with(".rs") {
                true => {
                    file.contains(&format!("#[test]\nfn {name}("))
                        || file.contains(&format!("    fn {name}("))
                }
                false => file.contains(&format!("test('{name}'")),
            };
            assert!(is_there, "{path} has no test {name}");
            named.insert((path.to_owned(), name.to_owned()));
        }
    }
    let scenarios = include_str!("scenarios.rs");
    for test in scenarios.split("#[test]\nfn ").skip(1).filter_map(|test| test.split('(').next()) {
        let is_named = named.contains(&("tests/scenarios.rs".into(), test.into()));
        assert!(is_named || test == "the_table_in_the_readme_names_tests_that_exist", "{test} is in no row");
    }
}

/// A new server over what is stored, with these connections in the room.
fn restarted<const N: usize>(records: &[&[u8]], connections: [u64; N]) -> World {
    let mut w = World::new(Config::default());
    for connection in connections {
        w.join(connection);
    }
    w.loaded(records);
    w.events();
    w
}
