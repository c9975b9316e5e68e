//! What holds for every server with every client, and in the simulated world, each as a test of its own for
//! each pair.
//!
//! In the simulated world `SIM_SEEDS=1000 cargo test -p yrs-websocket-matrix a_world` tries more seeds than
//! usual, and `SIM_SEED=7 cargo test ... -- --exact a_world_of_the_simulator::BODY` shows one.
//!
//! The upstream tests of rooms, servers and providers are among them, under their names in the comments:
//! those of ypy-websocket 0.12, pycrdt-websocket 0.16 and pycrdt 0.14.

use std::{
    env,
    io::ErrorKind,
    rc::Rc,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use yrs::{
    Any, Array, ArrayPrelim, Doc, Map, MapPrelim, Observable, ReadTxn, StateVector, Text, TextPrelim,
    Transact, UndoManager, WriteTxn,
};
use yrs_websocket::{
    Access, Event,
    message::Message,
    provider::{End, Event as ClientEvent, PresenceState},
};
use yrs_websocket_host::{Admission, ClientHandle, Options, rfc6455::Refusal, target};
use yrs_websocket_matrix::{
    Adapter, AsyncStd, Bench, Heard, Machine, ROOM, Simulated, Smol, Std, Tokio, World,
};
use yrs_websocket_store::StoreError;

/// Makes a test of each body for each pair, and for worlds of the simulator.
macro_rules! on_every_pair {
    ($($body:ident)*) => {
        on_every_pair! { @server a_server_on_tokio Tokio [$($body)*] }
        on_every_pair! { @server a_server_on_std Std [$($body)*] }
        on_every_pair! { @server a_server_on_smol Smol [$($body)*] }
        on_every_pair! { @server a_server_on_async_std AsyncStd [$($body)*] }
        mod a_world_of_the_simulator {
            $(
                #[test]
                fn $body() {
                    crate::in_simulated_worlds(crate::$body);
                }
            )*
        }
    };
    (@server $module:ident $server:ident $bodies:tt) => {
        mod $module {
            on_every_pair! { @client with_clients_on_tokio $server Tokio $bodies }
            on_every_pair! { @client with_clients_on_std $server Std $bodies }
            on_every_pair! { @client with_clients_on_smol $server Smol $bodies }
            on_every_pair! { @client with_clients_on_async_std $server AsyncStd $bodies }
        }
    };
    (@client $module:ident $server:ident $client:ident [$($body:ident)*]) => {
        mod $module {
            $(
                #[test]
                fn $body() {
                    crate::$body(crate::Pair::on_this_machine(&crate::$server, &crate::$client));
                }
            )*
        }
    };
}

on_every_pair! {
    a_room_survives_its_clients
    a_room_that_was_unloaded_is_found_in_the_store
    clients_answer_each_other
    the_server_answers_a_client
    nested_types_go_both_ways
    what_an_undo_manager_of_the_origin_undoes_vanishes_for_all
    observers_know_changes_of_others_by_their_origin
    two_clients_that_write_at_once_converge
    everything_written_before_the_first_connection_arrives
    a_hook_that_panics_ends_nothing
    servers_are_kept_in_sync_by_a_document_with_two_clients
    those_present_are_seen_at_once_and_those_who_leave_are_gone
    presence_that_is_cut_is_removed_and_comes_back
    many_that_open_a_room_at_once_share_one_load
    many_that_leave_at_once_lose_nothing
    joins_that_race_the_unloading_lose_nothing
    who_reads_nothing_holds_up_nobody_and_converges
    malformed_frames_end_their_sender_only
    an_update_and_at_once_the_end_of_the_stream_is_stored
    a_change_that_says_nothing_is_neither_stored_nor_sent
    an_update_out_of_order_survives_a_restart
    several_messages_in_one_frame_are_all_heard
    a_restart_is_survived_and_what_was_written_meanwhile_merged
    a_cut_line_is_made_again
    a_drain_stores_everything_and_sends_all_away
    a_drain_does_not_wait_for_ever_for_a_store_that_never_answers
    who_leaves_waits_for_the_acknowledgement
    who_cannot_be_acknowledged_leaves_at_the_deadline
    nothing_is_acknowledged_before_it_is_stored
    a_document_that_cannot_be_loaded_is_asked_for_again
    readers_are_told_and_do_not_write
    access_that_is_given_later_counts_at_once
    who_is_refused_asks_again_with_a_fresh_token_until_told_to_stay_away
    rooms_do_not_mix
    observers_and_hooks_may_use_the_handle_and_the_document
    what_is_no_upgrade_is_answered_and_half_a_request_dropped
}

/// Lets a body happen in some worlds of the simulator, each twice: it is the same again. `SIM_SEEDS` says how
/// many; `SIM_SEED` says which one alone, and lets it write a log.
fn in_simulated_worlds(body: fn(Pair)) {
    let number = |name| {
        let text = env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text} is no number")))
    };
    let run = |seed, is_logged| {
        let world = Simulated::new(seed, is_logged);
        body(Pair(Rc::new(world.clone())));
        world.trace_hash()
    };
    if let Some(seed) = number("SIM_SEED") {
        assert_eq!(run(seed, true), run(seed, false), "seed {seed}: another run");
        return;
    }
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
    assert!(seeds > 0, "no seed shows nothing");
    for seed in 0..seeds {
        let trace_hash = run(seed, false);
        println!("seed {seed}: trace {trace_hash:016x}");
        assert_eq!(trace_hash, run(seed, false), "seed {seed}: another run");
    }
}

/// The servers and clients that a body is about, in their world.
struct Pair(Rc<dyn World>);

impl Pair {
    fn on_this_machine(server: &'static dyn Adapter, client: &'static dyn Adapter) -> Self {
        Self(Rc::new(Machine::new(server, client)))
    }

    fn start(&self) -> Bench {
        Bench::new(Rc::clone(&self.0))
    }

    fn start_with(&self, change: impl FnOnce(&mut Options)) -> Bench {
        Bench::with_options(Rc::clone(&self.0), change)
    }

    fn now(&self) -> Instant {
        self.0.now()
    }
}

/// `test_asgi`, and `test_yroom`.
fn a_room_survives_its_clients(pair: Pair) {
    let bench = pair.start();
    let alice = bench.join(1);
    alice.set("key", "value");
    assert!(alice.leave());
    bench.until(|| bench.present() == 0);
    let bob = bench.join(2);
    bench.until(|| bob.syncs() == 1);
    assert_eq!(bob.json("map"), json(r#"{"key": "value"}"#));
}

fn a_room_that_was_unloaded_is_found_in_the_store(pair: Pair) {
    let bench = pair.start_with(|options| options.config.idle_delay = Duration::ZERO);
    let alice = bench.join(1);
    alice.write("x");
    assert!(alice.leave());
    bench.until(|| bench.heard(|event| matches!(event, Event::RoomClosed { unstored_bytes: 0, .. })) == 1);
    let bob = bench.join(2);
    bench.until(|| bob.syncs() == 1);
    assert_eq!((bob.text().as_str(), bench.faults.loads()), ("x", 2));
}

/// `test_ypy_yjs_0`, and `test_pycrdt_yjs_0`.
fn clients_answer_each_other(pair: Pair) {
    let bench = pair.start();
    let (alice, bob) = (bench.join(1), bench.join(2));
    for value in 0..10 {
        alice.set("in", value);
        bench.until(|| bob.get("in") == Some(value.into()));
        bob.set("out", value + 1);
        bench.until(|| alice.get("out") == Some((value + 1).into()));
    }
}

/// The same with a server that answers.
fn the_server_answers_a_client(pair: Pair) {
    let bench = pair.start();
    let alice = bench.join(1);
    for value in 0..10i64 {
        alice.set("in", value);
        bench.until(|| matches!(bench.json("map"), Any::Map(map) if map.get("in") == Some(&value.into())));
        bench
            .edit(|transaction| {
                transaction.get_or_insert_map("map").insert(transaction, "out", value + 1);
            })
            .unwrap();
        bench.until(|| alice.get("out") == Some((value + 1).into()));
    }
    bench.settle(&[&alice]);
}

/// `test_ypy_yjs_1`, and `test_pycrdt_yjs_1`.
fn nested_types_go_both_ways(pair: Pair) {
    let bench = pair.start();
    let (alice, bob) = (bench.join(1), bench.join(2));
    bench.settle(&[&alice, &bob]);
    bench
        .edit(|transaction| {
            let root = transaction.get_or_insert_map("root");
            let cells = root.insert(transaction, "cells", ArrayPrelim::default());
            let cell = cells.push_back(transaction, MapPrelim::default());
            cell.insert(transaction, "metadata", json(r#"{"foo": "bar"}"#));
            cell.insert(transaction, "source", TextPrelim::new("1 + "));
            root.insert(transaction, "state", json(r#"{"state": {"dirty": false}}"#));
        })
        .unwrap();
    let made = json(
        r#"{ "cells": [{"metadata": {"foo": "bar"}, "source": "1 + "}], "state": {"state": {"dirty": false}} }"#,
    );
    bench.until(|| alice.json("root") == made);
    {
        let mut transaction = alice.doc().transact_mut();
        let root = transaction.get_map("root").unwrap();
        let cells: yrs::ArrayRef = root.get(&transaction, "cells").unwrap().cast().unwrap();
        let cell: yrs::MapRef = cells.get(&transaction, 0).unwrap().cast().unwrap();
        let source: yrs::TextRef = cell.get(&transaction, "source").unwrap().cast().unwrap();
        source.push(&mut transaction, "2");
    }
    let edited = json(
        r#"{ "cells": [{"metadata": {"foo": "bar"}, "source": "1 + 2"}], "state": {"state": {"dirty": false}} }"#,
    );
    bench.until(|| bob.json("root") == edited && bench.json("root") == edited);
}

/// `test_pycrdt_yjs_2`.
fn what_an_undo_manager_of_the_origin_undoes_vanishes_for_all(pair: Pair) {
    let bench = pair.start();
    let doc = Doc::with_client_id(1);
    let map = doc.get_or_insert_map("map");
    map.insert(&mut doc.transact_mut(), "key0", "val0");
    let mut undo = UndoManager::with_options(yrs::undo::Options::default());
    undo.expand_scope(&doc, &map);
    let (alice, bob) = (bench.join_at(bench.address(), doc, |_| {}), bench.join(2));
    bench.until(|| bob.get("key0").is_some());
    {
        let _no_other_transaction = alice.doc().transact();
        undo.include_origin(alice.handle.origin().clone());
    }
    bob.set("key1", "val1");
    bench.until(|| alice.get("key1").is_some());
    assert!(undo.undo_blocking());
    bench.until(|| bob.get("key1").is_none());
    assert_eq!(bob.json("map"), json(r#"{"key0": "val0"}"#));
    assert_eq!(alice.json("map"), json(r#"{"key0": "val0"}"#));
    // An undo manager must not be dropped while her client is in a transaction.
    assert!(alice.leave());
}

fn observers_know_changes_of_others_by_their_origin(pair: Pair) {
    let bench = pair.start();
    let (alice, bob) = (bench.join(1), bench.join(2));
    let seen: Arc<Mutex<Vec<bool>>> = Arc::default();
    let text = alice.doc().get_or_insert_text("text");
    text.observe("origins", {
        let (seen, origin) = (Arc::clone(&seen), alice.handle.origin().clone());
        move |transaction, _| seen.lock().unwrap().push(transaction.origin() == Some(&origin))
    });
    alice.write("mine ");
    bench.until_text(&[&bob], "mine ");
    bob.write("his");
    bench.until_text(&[&alice], "mine his");
    assert_eq!(*seen.lock().unwrap(), [false, true]);
}

/// `test_provider`, and `test_sync`.
fn two_clients_that_write_at_once_converge(pair: Pair) {
    let bench = pair.start();
    let (alice, bob) = (bench.join(1), bench.join(2));
    for _ in 0..20 {
        alice.write("a");
        bob.write("b");
    }
    bench.until_len(&[&alice, &bob], 40);
    bench.settle(&[&alice, &bob]);
    assert_eq!(bench.stored(), alice.text());
    let late = bench.join(3);
    bench.until(|| late.syncs() == 1);
    assert_eq!(late.text(), alice.text(), "what is there comes before `Synced`");
}

fn everything_written_before_the_first_connection_arrives(pair: Pair) {
    let bench = pair.start();
    let doc = Doc::with_client_id(1);
    for letter in ["a", "b", "c"] {
        doc.get_or_insert_text("text").push(&mut doc.transact_mut(), letter);
    }
    let alice = bench.join_at(bench.address(), doc, |_| {});
    let bob = bench.join(2);
    bench.until_text(&[&bob], "abc");
    bench.settle(&[&alice]);
    assert_eq!(bench.stored(), "abc");
}

/// `test_server_restart`, and `test_yroom_restart`.
fn a_hook_that_panics_ends_nothing(pair: Pair) {
    let bench = pair.start_with(|options| {
        let hear = options.hooks.on_event.take().unwrap();
        options.hooks.on_event = Some(Arc::new(move |event| {
            hear(event);
            panic!("this is a panic of the test");
        }));
        options.hooks.on_request = Some(Arc::new(|request| {
            assert_ne!(request.path, "/panic", "this is a panic of the test");
            Admission::by_path(request)
        }));
        options.hooks.on_frame = Some(Arc::new(|_, _, frame| {
            assert_ne!(frame[..], [7], "this is a panic of the test");
            false
        }));
    });
    let (alice, bob) = (bench.join(1), bench.join(2));
    bench.settle(&[&alice, &bob]);
    let refused = bench.join_with(3, |options| options.request.target = "/panic".into());
    let is_500 = |event: &ClientEvent| {
        matches!(event, ClientEvent::Disconnected { end: End::Refused { status: 500, .. }, .. })
    };
    bench.until(|| refused.heard(is_500) > 0);
    let mut mallory = bench.raw();
    mallory.send(&[7]);
    assert_eq!(mallory.end(), Heard::Closed(1011));
    alice.write("x");
    bench.until_text(&[&bob], "x");
    assert_eq!((alice.syncs(), bob.syncs()), (1, 1));
}

/// `test_server_provider`: a hub, and two servers that are kept in sync with it.
fn servers_are_kept_in_sync_by_a_document_with_two_clients(pair: Pair) {
    let hub = pair.start();
    let spokes = [hub.another(), hub.another()];
    let links = [11, 12].map(Doc::with_client_id);
    let mut clients = Vec::new();
    for (spoke, doc) in spokes.iter().zip(&links) {
        clients.push(hub.join_at(hub.address(), doc.clone(), |_| {}));
        clients.push(hub.join_at(spoke.address(), doc.clone(), |_| {}));
    }
    let (alice, bob) = (spokes[0].join(1), spokes[1].join(2));
    alice.write("Hello");
    hub.until_text(&[&bob], "Hello");
    bob.write(", World!");
    hub.until_text(&[&alice], "Hello, World!");
    let all: Vec<_> = clients.iter().chain([&alice, &bob]).collect();
    hub.settle(&all);
    assert_eq!([&hub, &spokes[0], &spokes[1]].map(Bench::stored), ["Hello, World!"; 3]);
}

/// Of `test_awareness` what concerns clients and rooms.
fn those_present_are_seen_at_once_and_those_who_leave_are_gone(pair: Pair) {
    let bench = pair.start();
    let (alice, bob) = (bench.join(1), bench.join(2));
    alice.appear("{\"name\":\"alice\"}");
    bench.until(|| bob.sees(&alice).as_deref() == Some("{\"name\":\"alice\"}"));
    let late = bench.join(3);
    bench.until(|| late.sees(&alice).is_some());
    alice.appear("{\"name\":\"Alice\"}");
    bench.until(|| {
        [&bob, &late].map(|peer| peer.sees(&alice)).iter().flatten().all(|state| state.contains("Alice"))
    });
    bob.appear("1");
    bench.until(|| alice.sees(&bob).as_deref() == Some("1"));
    assert_eq!(alice.handle.presence().len(), 1, "neither herself, nor who never appeared, nor the server");
    bob.handle.set_presence(None);
    bench.until(|| alice.sees(&bob).is_none());
    bob.appear("2");
    bench.until(|| alice.sees(&bob).as_deref() == Some("2"));
    let id = alice.id();
    assert!(alice.leave());
    let is_gone =
        |event: &ClientEvent| matches!(event, ClientEvent::Presence { client, state: None } if *client == id);
    bench.until(|| bob.heard(is_gone) == 1 && late.heard(is_gone) == 1);
    assert!(bob.handle.presence().is_empty());
}

fn presence_that_is_cut_is_removed_and_comes_back(pair: Pair) {
    let mut bench = pair.start();
    let valve = bench.valve();
    let alice = bench.join_at(valve.address(), Doc::with_client_id(1), |_| {});
    let bob = bench.join(2);
    alice.appear("1");
    bob.appear("2");
    bench.settle(&[&alice, &bob]);
    bench.until(|| bob.sees(&alice).is_some() && alice.sees(&bob).is_some());
    valve.cut();
    bench.until(|| alice.syncs() == 2 && alice.sees(&bob).is_some() && bob.sees(&alice).is_some());
    let is_gone = |event: &ClientEvent| matches!(event, ClientEvent::Presence { state: None, .. });
    // Bob may not have noticed: the new connection may come before the end of the old one.
    assert_eq!(alice.heard(is_gone), 1);
    // A server that knows nothing hears it anew.
    bench.kill();
    bench.until(|| !bob.handle.is_connected() && bob.handle.presence().is_empty());
    bench.start();
    bench.until(|| alice.sees(&bob).is_some() && bob.sees(&alice).is_some());
}

fn many_that_open_a_room_at_once_share_one_load(pair: Pair) {
    let bench = pair.start();
    bench.faults.hold();
    let peers: Vec<_> = (1..=6).map(|id| bench.join(id)).collect();
    for peer in &peers {
        peer.write("x");
    }
    bench.until(|| peers.iter().all(|peer| peer.handle.is_connected()));
    bench.faults.release();
    let peers: Vec<_> = peers.iter().collect();
    bench.until_len(&peers, 6);
    bench.settle(&peers);
    assert_eq!((bench.faults.loads(), bench.stored().len()), (1, 6));
}

fn many_that_leave_at_once_lose_nothing(pair: Pair) {
    let bench = pair.start_with(|options| options.config.idle_delay = Duration::ZERO);
    let peers: Vec<_> = (1..=6).map(|id| bench.join(id)).collect();
    bench.settle(&peers.iter().collect::<Vec<_>>());
    for peer in &peers {
        peer.write("x");
        peer.handle.leave(bench.now() + Duration::from_secs(60));
    }
    for peer in peers {
        assert!(peer.leave());
    }
    assert_eq!(bench.stored().len(), 6);
    bench.until(|| bench.heard(|event| matches!(event, Event::RoomClosed { .. })) == 1);
    let late = bench.join(7);
    bench.until(|| late.text().len() == 6);
}

fn joins_that_race_the_unloading_lose_nothing(pair: Pair) {
    let bench = pair.start_with(|options| options.config.idle_delay = Duration::ZERO);
    for id in 1..=10 {
        let peer = bench.join(id);
        // Perhaps before it is connected.
        peer.write("x");
        assert!(peer.leave());
        assert_eq!(bench.stored().len(), id as usize);
    }
}

fn who_reads_nothing_holds_up_nobody_and_converges(pair: Pair) {
    let bench = pair.start_with(|options| {
        options.config.flush_interval = Duration::ZERO;
        options.limits.outbox_bytes_max = 100_000;
    });
    let valve = bench.valve();
    let slow = bench.join_at(valve.address(), Doc::with_client_id(3), |_| {});
    let (alice, bob) = (bench.join(1), bench.join(2));
    bench.settle(&[&slow, &alice, &bob]);
    valve.shut();
    let mut len = 0;
    // More than the buffers of the system on the way take.
    while bench.counters().congestions == 0 {
        alice.write(&"x".repeat(500_000));
        len += 500_000;
        bench.until(|| bob.text().len() == len);
        assert!(len < 100_000_000, "all of that has gone somewhere");
    }
    alice.write("last");
    bench.until(|| bob.text().len() == len + 4);
    assert!(slow.text().len() < len);
    valve.open();
    bench.until_len(&[&slow, &bob], len + 4);
    assert_eq!(slow.syncs(), 1, "without another connection");
}

fn malformed_frames_end_their_sender_only(pair: Pair) {
    let bench = pair.start_with(|options| options.config.frame_len_max = 1_000);
    let (alice, bob) = (bench.join(1), bench.join(2));
    bench.settle(&[&alice, &bob]);
    let too_long = [7; 1_001];
    // Nested beyond measure, as a state of presence.
    let deep =
        Message::Awareness([&[1, 1, 1, 144, 3][..], &[b'['; 200], &[b']'; 200]].concat().into()).encode();
    let corpus: [(&[u8], u16); 11] = [
        (&[], 1007),
        (&[0], 1007),
        (&[0, 9, 0], 1007),
        (&[0, 2, 5, 0x61, 0x62, 0x63], 1007),
        (&[0, 2, 2, 0xff, 0xff], 1007),
        (&[1], 1007),
        // A state vector, presence and an update of 2^31 entries, in a few bytes.
        (&[0, 0, 5, 255, 255, 255, 255, 7], 1007),
        (&[1, 5, 255, 255, 255, 255, 7], 1007),
        (&[0, 2, 5, 255, 255, 255, 255, 7], 1007),
        (&deep, 1007),
        (&too_long, 1009),
    ];
    for (frame, code) in corpus {
        let mut mallory = bench.raw();
        mallory.send(frame);
        assert_eq!(mallory.end(), Heard::Closed(code), "{frame:?}");
    }
    // What is unknown, denied, asked or empty is no violation.
    let mut odd = bench.raw();
    for frame in [&[3][..], &[2, 0, 0], &[7, 1, 2, 3], &[0, 2, 2, 0, 0]] {
        odd.send(frame);
    }
    odd.send(&step1(&StateVector::default()));
    odd.until(|frame| frame.starts_with(&[0, 1]));
    alice.write("x");
    bench.until_text(&[&bob], "x");
    assert_eq!((alice.syncs(), bob.syncs()), (1, 1));
}

fn an_update_and_at_once_the_end_of_the_stream_is_stored(pair: Pair) {
    let bench = pair.start_with(|options| options.config.idle_delay = Duration::ZERO);
    let mut raw = bench.raw();
    // It takes what is sent while the document is loaded.
    raw.send(&update_of(&written(1, "x")));
    raw.cut();
    bench.until(|| bench.stored() == "x");
    let alice = bench.join(2);
    bench.until_text(&[&alice], "x");
}

fn a_change_that_says_nothing_is_neither_stored_nor_sent(pair: Pair) {
    let bench = pair.start();
    let alice = bench.join(1);
    alice.write("x");
    bench.settle(&[&alice]);
    let known = Message::Update(alice.doc().transact().encode_diff_v1(&StateVector::default()).into());
    let mut raw = bench.raw();
    let mut witness = bench.raw();
    raw.until(|frame| frame.starts_with(&[0, 0]));
    witness.until(|frame| frame.starts_with(&[0, 0]));
    let commits = bench.faults.commits();
    raw.send(&known.encode());
    raw.send(&[0, 2, 2, 0, 0]);
    // The answer to what comes behind says that these were handled.
    raw.send(&step1(&alice.doc().transact().state_vector()));
    raw.until(|frame| frame.starts_with(&[0, 1]));
    assert_eq!(bench.faults.commits(), commits);
    alice.write("y");
    let Heard::Frame(first) = witness.hear() else { panic!("it is there") };
    assert_eq!(first, update_since(alice.doc(), 1));
}

fn an_update_out_of_order_survives_a_restart(pair: Pair) {
    let mut bench = pair.start();
    let doc = written(1, "a");
    let first = update_of(&doc);
    doc.get_or_insert_text("text").push(&mut doc.transact_mut(), "b");
    let second = update_since(&doc, 1);
    let mut raw = bench.raw();
    raw.send(&second);
    // Its echo says that it is stored.
    raw.until(|frame| frame == second);
    let bob = bench.join(2);
    bench.settle(&[&bob]);
    bench.kill();
    bench.start();
    let mut raw = bench.raw();
    raw.send(&first);
    let carol = bench.join(3);
    bench.until_text(&[&bob, &carol], "ab");
}

fn several_messages_in_one_frame_are_all_heard(pair: Pair) {
    let bench = pair.start();
    let bob = bench.join(2);
    bench.settle(&[&bob]);
    let mut raw = bench.raw();
    let presence = Message::Awareness(Bytes::from_static(&[1, 1, 1, 2, b'{', b'}'])).encode();
    let frame = [&step1(&StateVector::default())[..], &update_of(&written(1, "x")), &presence].concat();
    raw.send(&frame);
    raw.until(|frame| frame.starts_with(&[0, 1]));
    bench.until(|| bob.text() == "x" && bob.handle.presence().len() == 1);
}

fn a_restart_is_survived_and_what_was_written_meanwhile_merged(pair: Pair) {
    let mut bench = pair.start();
    let (alice, bob) = (bench.join(1), bench.join(2));
    let mut len = 0;
    for round in 0..4 {
        alice.write("a");
        bob.write("b");
        len += 2;
        bench.until_len(&[&alice, &bob], len);
        bench.settle(&[&alice, &bob]);
        if round % 2 == 0 {
            bench.kill();
        } else {
            assert!(bench.drain());
        }
        assert_eq!(bench.stored(), alice.text(), "acknowledged, and not stored");
        bench.until(|| !alice.handle.is_connected() && !bob.handle.is_connected());
        alice.write("offline");
        bob.write("too");
        assert!(alice.handle.has_unacknowledged() && bob.handle.has_unacknowledged());
        len += 10;
        bench.start();
        bench.until_len(&[&alice, &bob], len);
    }
    assert!(alice.leave());
    let text = bob.text();
    assert!(bob.leave());
    assert_eq!(bench.stored(), text);
}

fn a_cut_line_is_made_again(pair: Pair) {
    let bench = pair.start();
    let valve = bench.valve();
    let alice = bench.join_at(valve.address(), Doc::with_client_id(1), |_| {});
    let bob = bench.join(2);
    bench.settle(&[&alice, &bob]);
    for round in 1..=5 {
        // In the middle of what it writes.
        alice.write("a");
        valve.cut();
        bob.write("b");
        bench.until(|| alice.syncs() > round);
        bench.until_len(&[&alice, &bob], 2 * round);
    }
    bench.settle(&[&alice, &bob]);
}

fn a_drain_stores_everything_and_sends_all_away(pair: Pair) {
    let mut bench = pair.start();
    let (alice, bob) = (bench.join(1), bench.join(2));
    bench.settle(&[&alice, &bob]);
    alice.write("x");
    bench.until_text(&[&bob], "x");
    assert!(bench.drain());
    assert_eq!(bench.stored(), "x");
    let is_sent_away = |event: &ClientEvent| {
        matches!(event, ClientEvent::Disconnected { end: End::Closed { code: 1012 }, retry_in: Some(_) })
    };
    bench.until(|| alice.heard(is_sent_away) == 1 && bob.heard(is_sent_away) == 1);
    assert!(!alice.handle.has_unacknowledged());
}

fn a_drain_does_not_wait_for_ever_for_a_store_that_never_answers(pair: Pair) {
    let mut bench = pair.start();
    let (alice, bob) = (bench.join(1), bench.join(2));
    bench.settle(&[&alice, &bob]);
    bench.faults.hold();
    alice.write("x");
    bench.until_text(&[&bob], "x");
    let now = bench.now();
    assert!(!bench.drain_by(now));
    bench.until(|| !alice.handle.is_connected() && !bob.handle.is_connected());
    assert!(alice.handle.has_unacknowledged());
    // Or its thread would wait for ever.
    bench.faults.release();
}

fn who_leaves_waits_for_the_acknowledgement(pair: Pair) {
    let bench = pair.start();
    let (alice, bob) = (bench.join(1), bench.join(2));
    bench.settle(&[&alice, &bob]);
    bench.faults.hold();
    alice.write("x");
    alice.handle.leave(bench.now() + Duration::from_secs(60));
    bench.until_text(&[&bob], "x");
    assert!(alice.handle.is_connected() && bench.present() == 2);
    bench.faults.release();
    assert!(alice.leave());
    assert_eq!(bench.stored(), "x");
}

fn who_cannot_be_acknowledged_leaves_at_the_deadline(pair: Pair) {
    let mut bench = pair.start();
    let alice = bench.join(1);
    bench.settle(&[&alice]);
    bench.kill();
    alice.write("x");
    let is_lost = ClientEvent::Stopped { unacknowledged: true };
    alice.handle.leave(bench.now());
    bench.until(|| alice.heard(|event| *event == is_lost) == 1);
    assert!(!alice.leave());
}

fn nothing_is_acknowledged_before_it_is_stored(pair: Pair) {
    let bench = pair.start();
    let (alice, bob) = (bench.join(1), bench.join(2));
    bench.settle(&[&alice, &bob]);
    bench.faults.fail(StoreError::Full);
    alice.write("x");
    let failures = || bench.heard(|event| matches!(event, Event::StoreFailed { .. }));
    bench.until(|| bob.text() == "x" && failures() >= 3);
    assert!(alice.handle.has_unacknowledged() && bench.stored().is_empty());
    bench.faults.heal();
    bench.until(|| !alice.handle.has_unacknowledged());
    assert_eq!(bench.stored(), "x");
}

fn a_document_that_cannot_be_loaded_is_asked_for_again(pair: Pair) {
    let mut bench = pair.start();
    let alice = bench.join(1);
    alice.write("precious");
    assert!(alice.leave());
    assert!(bench.drain());
    bench.start();
    bench.faults.fail_next(1, StoreError::Io { message: "the cable".into() });
    let bob = bench.join(2);
    bench.until(|| bob.syncs() == 1);
    assert_eq!(bob.text(), "precious", "never an empty document over a full one");
    let is_told = |event: &ClientEvent| {
        matches!(event, ClientEvent::Disconnected { end: End::Closed { code: 1013 }, .. })
    };
    assert_eq!(bob.heard(is_told), 1);
}

fn readers_are_told_and_do_not_write(pair: Pair) {
    let bench = pair.start_with(|options| {
        options.hooks.on_request = Some(Arc::new(|request| {
            let mut admission = Admission::by_path(request)?;
            if request.query.as_deref() == Some("read") {
                admission.access = Access::ReadOnly;
            }
            Ok(admission)
        }));
    });
    let alice = bench.join(1);
    let reader = bench.join_with(2, |options| options.request.target = format!("/{ROOM}?read"));
    bench.settle(&[&alice, &reader]);
    alice.write("x");
    bench.until_text(&[&reader], "x");
    reader.write("y");
    bench.until(|| reader.heard(|event| matches!(event, ClientEvent::PermissionDenied { .. })) == 1);
    reader.appear("1");
    bench.until(|| alice.sees(&reader).is_some());
    alice.write("z");
    bench.until(|| reader.text().len() == 3);
    assert_eq!(alice.text(), "xz");
    assert!(!reader.leave(), "it knows that this was in vain, and does not wait for it");
}

fn access_that_is_given_later_counts_at_once(pair: Pair) {
    let bench = pair.start_with(|options| {
        options.hooks.on_request = Some(Arc::new(|request| {
            let mut admission = Admission::by_path(request)?;
            admission.access = Access::ReadOnly;
            Ok(admission)
        }));
    });
    let alice = bench.join(1);
    let bob = bench.join(2);
    bench.settle(&[&alice, &bob]);
    for connection in bench.joined() {
        bench.rooms().set_access(connection, Access::Write);
    }
    alice.write("x");
    bench.until_text(&[&bob], "x");
    bench.settle(&[&alice]);
}

fn who_is_refused_asks_again_with_a_fresh_token_until_told_to_stay_away(pair: Pair) {
    let asked: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let (asking, at_once) = (Arc::clone(&asked), pair.now());
    let bench = pair.start_with(|options| {
        options.hooks.on_request = Some(Arc::new(move |request| {
            let mut asked = asking.lock().unwrap();
            asked.push((request.query.clone().unwrap(), request.header("x-try").unwrap().to_owned()));
            if asked.len() < 3 {
                return Err(Refusal::new(401));
            }
            let mut admission = Admission::by_path(request)?;
            assert_eq!(admission.subprotocol.as_deref(), Some("notes.v1"));
            admission.expires_at = Some(at_once);
            Ok(admission)
        }));
    });
    let count = AtomicUsize::new(0);
    let alice = bench.join_with(1, move |options| {
        options.request.subprotocols = vec!["notes.v1".into()];
        options.on_dial = Some(Arc::new(move |request| {
            let count = count.fetch_add(1, Ordering::Relaxed);
            request.target = target(ROOM, &[("token", &format!("{count}&{count}"))]);
            request.headers.push(("X-Try".into(), count.to_string()));
        }));
    });
    let is_stopped = ClientEvent::Stopped { unacknowledged: false };
    bench.until(|| alice.heard(|event| *event == is_stopped) == 1);
    let is_expired = ClientEvent::Disconnected { end: End::Closed { code: 4401 }, retry_in: None };
    assert_eq!(alice.heard(|event| *event == is_expired), 1);
    let expected = [0, 1, 2].map(|count| (format!("token={count}%26{count}"), count.to_string()));
    assert_eq!(*asked.lock().unwrap(), expected);
}

fn rooms_do_not_mix(pair: Pair) {
    let bench = pair.start();
    let rooms = ["notes", "notes/", "Notes", "nötes", "notes 2", "notes?"];
    let of = |room: &str, id| bench.join_with(id, |options| options.request.target = target(room, &[]));
    let pairs: Vec<_> = rooms.iter().map(|room| (room, of(room, 1), of(room, 2))).collect();
    for (room, alice, _) in &pairs {
        alice.write(room);
        alice.appear(&format!("{room:?}"));
    }
    for (room, alice, bob) in &pairs {
        bench.until(|| bob.text() == **room && bob.sees(alice) == Some(format!("{room:?}")));
        bench.settle(&[alice, bob]);
        assert_eq!(bob.handle.presence().len(), 1);
    }
    assert_eq!(bench.counters().rooms, rooms.len() as u64);
}

fn observers_and_hooks_may_use_the_handle_and_the_document(pair: Pair) {
    let bench = pair.start();
    let bob = bench.join(2);
    let handle: Arc<OnceLock<ClientHandle>> = Arc::default();
    let of_hook = Arc::clone(&handle);
    let alice = bench.join_with(1, move |options| {
        let hear = options.on_event.take().unwrap();
        options.on_event = Some(Arc::new(move |event| {
            // A hook is called in no transaction: it may edit.
            if *event == ClientEvent::Synced {
                let handle = of_hook.wait();
                assert!(handle.is_synced());
                handle.doc().get_or_insert_text("text").push(&mut handle.doc().transact_mut(), "hook");
            }
            hear(event);
        }));
    });
    handle.set(alice.handle.clone()).unwrap();
    let of_observer = alice.handle.clone();
    let observe = move |_: &yrs::TransactionMut<'_>, _: &yrs::UpdateEvent| {
        of_observer.set_presence(Some(PresenceState::new("1").unwrap()));
        assert!(of_observer.presence().is_empty());
    };
    alice.doc().observe_update_v1("observe", observe).unwrap();
    bench.until(|| bob.text() == "hook" && bob.sees(&alice).as_deref() == Some("1"));
    bench.settle(&[&alice]);
}

fn what_is_no_upgrade_is_answered_and_half_a_request_dropped(pair: Pair) {
    let answer_to = |bench: &Bench, request: &[u8]| {
        let mut stream = bench.connect();
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        if let Err(error) = stream.read_to_end(&mut answer) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "it does not end");
        }
        String::from_utf8(answer).unwrap()
    };
    let answer = answer_to(&pair.start(), b"GET /notes HTTP/1.1\r\nHost: example\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 426 Upgrade Required\r\n"), "{answer}");
    let impatient = pair.start_with(|options| options.limits.handshake_timeout = Duration::from_millis(50));
    assert_eq!(answer_to(&impatient, b"GET /notes HT"), "");
}

fn json(text: &str) -> Any {
    Any::from_json(text).unwrap()
}

/// A document of somebody else.
fn written(id: u64, text: &str) -> Doc {
    let doc = Doc::with_client_id(id);
    doc.get_or_insert_text("text").push(&mut doc.transact_mut(), text);
    doc
}

fn update_of(doc: &Doc) -> Bytes {
    Message::Update(doc.transact().encode_diff_v1(&StateVector::default()).into()).encode()
}

/// What the client with id 1 has written since a clock.
fn update_since(doc: &Doc, clock: u32) -> Bytes {
    let known = [(yrs::block::ClientID::new(1), clock)].into_iter().collect();
    Message::Update(doc.transact().encode_diff_v1(&StateVector::new(known)).into()).encode()
}

fn step1(known: &StateVector) -> Bytes {
    use yrs::updates::encoder::Encode;
    Message::SyncStep1(known.encode_v1().into()).encode()
}

/// A few seconds, for all bodies.
const SEEDS: u64 = 8;
