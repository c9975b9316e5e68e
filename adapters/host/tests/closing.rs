//! How connections end: by either side, by a violation, by silence; and what a runtime does about it.

mod common;

use std::{sync::Arc, time::Duration};

use common::{EMPTY_STEP2, Frame, STEP1, World, edit, masked, presence};
use yrs_websocket::{Access, ConnectionId, Input};
use yrs_websocket_host::{Next, Options};

const RUN: Next = Next::Run { write: false };
const MALFORMED: &[u8] = &[0, 2, 2, 0xff, 0xff];

/// Lets a connection's access end now.
fn expire(world: &mut World, connection: ConnectionId) {
    let expires_at = Some(world.now);
    world.host.input(world.now, Input::AccessChanged { connection, access: Access::Write, expires_at });
    world.pass(Duration::ZERO);
}

#[test]
fn a_close_of_ours_is_the_last_frame_and_the_stream_ends_after_the_answer() {
    let mut world = World::new(Options::default());
    let (alice, _) = world.join("notes");
    let (bob, pipe) = world.join("notes");
    pipe.block();
    world.send(alice, &edit(1, "x"));
    expire(&mut world, bob);
    // Nothing goes behind the close frame.
    world.send(alice, &edit(2, "y"));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.next(bob), Next::Run { write: true });
    world.unblock(bob, &pipe);
    assert_eq!(pipe.frames(), [Frame::binary(&edit(1, "x")), Frame::close(4401, "access has expired")]);
    assert_eq!(world.next(bob), RUN, "the answer is waited for");

    let wakes = pipe.state().wakes;
    world.receive(bob, masked(0x88, &4401u16.to_be_bytes()));
    assert!(pipe.state().wakes > wakes);
    assert_eq!(world.next(bob), Next::ShutDown);
    assert_eq!(pipe.state().told, Some(Next::ShutDown));
    assert!(pipe.take().is_empty());
    world.host.ended(world.now, bob);
    assert_eq!(world.next(bob), Next::Drop);
    assert_eq!(pipe.state().told, Some(Next::Drop));
    assert_eq!(world.host.counters().connections, 1);
}

#[test]
fn a_close_of_the_peer_is_echoed_and_the_stream_then_shut_down() {
    let mut world = World::new(Options::default());
    let (alice, pipe) = world.join("notes");
    world.receive(alice, masked(0x88, &1000u16.to_be_bytes()));
    assert_eq!(pipe.frames(), [Frame::close(1000, "")]);
    assert_eq!(world.next(alice), Next::ShutDown);
    assert_eq!(pipe.state().told, Some(Next::ShutDown));
    assert_eq!(world.host.server().connections(), 0, "the room knows at once");
    // What comes behind it is dropped.
    world.send(alice, STEP1);
    assert!(pipe.take().is_empty());
    assert_eq!(world.next(alice), Next::ShutDown);
}

#[test]
fn a_peer_that_does_not_end_its_stream_is_dropped_after_a_while() {
    let mut world = World::new(Options::default());
    let (alice, pipe) = world.join("notes");
    world.receive(alice, masked(0x88, &[]));
    world.pass(Duration::from_millis(4_999));
    assert_eq!(world.next(alice), Next::ShutDown);
    let wakes = pipe.state().wakes;
    world.pass(Duration::from_millis(1));
    assert_eq!(world.next(alice), Next::Drop);
    assert!(pipe.state().wakes > wakes);
}

#[test]
fn a_peer_that_closes_and_never_reads_is_dropped_after_a_while() {
    let mut world = World::new(Options::default());
    let (alice, pipe) = world.join("notes");
    pipe.block();
    world.send(alice, STEP1);
    world.receive(alice, masked(0x88, &[]));
    world.pass(Duration::from_millis(4_999));
    assert_eq!(world.next(alice), Next::Run { write: true });
    world.pass(Duration::from_millis(1));
    assert_eq!(world.next(alice), Next::Drop);
    assert_eq!(world.host.counters().connections, 0);
}

#[test]
fn a_peer_that_does_not_answer_our_close_is_dropped_after_a_while() {
    let mut world = World::new(Options::default());
    let (alice, _) = world.join("notes");
    expire(&mut world, alice);
    world.pass(Duration::from_millis(4_999));
    assert_eq!(world.next(alice), RUN);
    world.pass(Duration::from_millis(1));
    assert_eq!(world.next(alice), Next::Drop);
}

#[test]
fn a_dead_peer_is_pinged_and_dropped_with_its_presence() {
    let mut options = Options::default();
    // Not to be mistaken for what is tested here.
    options.config.awareness_timeout = Duration::from_secs(1_000);
    options.config.keepalive = Duration::from_secs(1_000);
    let mut world = World::new(options);
    let (alice, alices) = world.join("notes");
    world.send(alice, &presence(7, 1, "{}"));
    world.pass(Duration::from_secs(29));
    let (bob, bobs) = world.join("notes");
    alices.take();

    world.pass(Duration::from_secs(1));
    assert_eq!(alices.frames(), [Frame(0x89, vec![])]);
    // Bob answers his ping, alice does not.
    world.pass(Duration::from_secs(29));
    assert_eq!(bobs.frames(), [Frame(0x89, vec![])]);
    world.receive(bob, masked(0x8a, &[]));
    assert_eq!(world.next(alice), RUN);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.next(alice), Next::Drop);
    world.pass(Duration::from_secs(1));
    assert_eq!(bobs.frames(), [Frame::binary(&presence(7, 1, "null"))]);
    world.pass(Duration::from_secs(28));
    assert_eq!(world.next(bob), RUN);
}

#[test]
fn a_clock_that_steps_back_delays_the_ping_and_spins_nowhere() {
    let mut options = Options::default();
    options.config.keepalive = Duration::from_secs(1_000);
    let mut world = World::new(options);
    let (alice, pipe) = world.join("notes");
    world.pass(Duration::from_secs(25));
    // Back to the 5th second: her ping is due 30 s after what she says now, and not before.
    world.now -= Duration::from_secs(20);
    world.send(alice, STEP1);
    assert_eq!(pipe.frames(), [Frame::binary(EMPTY_STEP2)]);
    world.host.timeout(world.now);
    world.pass(Duration::from_millis(29_999));
    assert_eq!(pipe.frames(), []);
    world.pass(Duration::from_millis(1));
    assert_eq!(pipe.frames(), [Frame(0x89, vec![])]);
    // Back behind her connecting: she is given up all the same, once it is as late as that again.
    world.now -= Duration::from_secs(60);
    world.host.timeout(world.now);
    world.pass(Duration::from_millis(89_999));
    assert_eq!(world.next(alice), RUN);
    world.pass(Duration::from_millis(1));
    assert_eq!(world.next(alice), Next::Drop);
    assert_eq!((world.host.counters().connections, world.host.server().connections()), (0, 0));
}

#[test]
fn a_text_message_is_refused_with_1003() {
    let mut world = World::new(Options::default());
    let (alice, pipe) = world.join("notes");
    world.receive(alice, masked(0x81, b"hello"));
    assert_eq!(pipe.frames(), [Frame::close(1003, "text messages are not accepted")]);
    assert_eq!(world.next(alice), Next::ShutDown);
    assert_eq!(world.host.counters().violations, 1);
}

#[test]
fn a_frame_that_is_too_long_is_refused_by_its_header() {
    let mut options = Options::default();
    options.config.frame_len_max = 1_000;
    let mut world = World::new(options);
    let (alice, pipe) = world.join("notes");
    let header = masked(0x82, &[0; 1_001])[..8].to_vec();
    world.receive(alice, header);
    assert_eq!(pipe.frames(), [Frame::close(1009, "a frame is too long")]);
    assert_eq!(world.next(alice), Next::ShutDown);
}

#[test]
fn a_violation_closes_after_the_answers_to_what_came_before_it() {
    let mut world = World::new(Options::default());
    let (alice, pipe) = world.join("notes");
    // A reserved opcode, of WebSocket's.
    world.receive(alice, [masked(0x82, STEP1), masked(0x83, &[]), masked(0x82, STEP1)].concat());
    let close = Frame::close(1002, "opcode 0x3 is reserved");
    assert_eq!(pipe.frames(), [Frame::binary(EMPTY_STEP2), close]);
    assert_eq!(world.next(alice), Next::ShutDown);

    // A malformed update, of Yjs'.
    let (bob, pipe) = world.join("notes");
    world.receive(bob, [masked(0x82, STEP1), masked(0x82, MALFORMED), masked(0x82, STEP1)].concat());
    let frames = pipe.frames();
    assert_eq!(frames.len(), 2);
    assert_eq!(frames[0], Frame::binary(EMPTY_STEP2));
    assert_eq!((frames[1].0, &frames[1].1[..2]), (0x88, &1007u16.to_be_bytes()[..]));
    assert_eq!(world.next(bob), RUN, "its answer is waited for");
    assert_eq!(world.host.counters().violations, 2);
}

#[test]
fn a_hook_that_panics_on_a_frame_costs_its_sender_the_connection_and_nobody_else_anything() {
    let mut options = Options::default();
    options.hooks.on_frame = Some(Arc::new(|_, _, frame| {
        assert_ne!(frame[0], 66, "this is the panic of the test");
        false
    }));
    options.hooks.on_event = Some(Arc::new(|_| panic!("this too")));
    let mut world = World::new(options);
    let (alice, alices) = world.join("notes");
    let (bob, bobs) = world.join("notes");
    world.send(alice, &[66]);
    assert_eq!(alices.frames(), [Frame::close(1011, "the application failed on a frame")]);
    assert_eq!(world.host.server().connections(), 1);
    world.send(bob, STEP1);
    assert_eq!(bobs.frames(), [Frame::binary(EMPTY_STEP2)]);
}

#[test]
fn all_connections_end_at_once_where_the_runtime_does() {
    let mut world = World::new(Options::default());
    let ids: Vec<_> = (0..10).map(|room| world.join(&format!("room{}", room % 3)).0).collect();
    world.host.ended(world.now, ids[4]);
    world.host.all_ended(world.now);
    assert!(ids.into_iter().all(|id| world.next(id) == Next::Drop));
    assert_eq!(world.host.counters().connections, 0);
    assert_eq!(world.host.server().connections(), 0);
}
