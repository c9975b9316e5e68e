//! Outboxes: frames are made once, written where they arise, in order, and bounded.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{EMPTY_STEP2, Frame, STEP1, World, edit, masked, presence};
use yrs::{Doc, GetString, ReadTxn, Transact, Update, updates::decoder::Decode};
use yrs_websocket::message::Message;
use yrs_websocket_host::{Next, Options, rfc6455::Deflate};

#[test]
fn a_broadcast_is_framed_once_and_shared() {
    let mut world = World::new(Options::default());
    let (alice, _) = world.join("notes");
    let [bob, carol] = [(); 2].map(|()| {
        let (id, pipe) = world.join("notes");
        world.send(id, STEP1);
        pipe.take();
        pipe
    });
    let before = world.host.counters();

    let long = edit(1, &"x".repeat(20_000));
    world.send(alice, &long);

    // A long frame is a header and the very bytes that alice sent.
    let piece = |pipe: &common::Pipe| pipe.state().calls[0][1];
    assert_eq!(piece(&bob).1, long.len());
    assert_eq!(piece(&bob), piece(&carol));
    assert_eq!(bob.frames(), [Frame::binary(&long)]);
    assert_eq!(carol.frames(), [Frame::binary(&long)]);

    let after = world.host.counters();
    assert_eq!(after.frames_in - before.frames_in, 1);
    assert_eq!(after.bytes_in - before.bytes_in, long.len() as u64);
    assert_eq!(after.frames_out - before.frames_out, 2, "one for the peers, one as alice's echo");
    assert_eq!(after.deliveries - before.deliveries, 3);
    assert_eq!(after.bytes_out - before.bytes_out, 3 * (long.len() as u64 + 4));
    assert_eq!(after.appends - before.appends, 1);
}

#[test]
fn a_broadcast_is_compressed_once_for_all_who_have_agreed_on_the_same() {
    let mut options = Options::default();
    options.deflate = Some(Deflate::default());
    let mut world = World::new(options);
    let (alice, _) = world.join("notes");
    let plain = [(); 2].map(|()| world.join("notes").1);
    let wide = [(); 3].map(|()| world.join_with("notes", "permessage-deflate").1);
    let narrow = [(); 2].map(|()| world.join_with("notes", "permessage-deflate; server_max_window_bits=9").1);
    let before = world.host.counters();

    let long = edit(1, &"always the same ".repeat(2_000));
    world.send(alice, &long);

    let piece = |pipe: &common::Pipe| pipe.state().calls[0][0];
    let (of_wide, of_narrow) = (piece(&wide[0]), piece(&narrow[0]));
    assert!(of_wide.1 < 3_000 && of_narrow.1 < 3_000, "{} and {} bytes", of_wide.1, of_narrow.1);
    assert_eq!(wide.each_ref().map(piece), [of_wide; 3], "the same bytes in the same place");
    assert_eq!(narrow.each_ref().map(piece), [of_narrow; 2]);
    assert_ne!(of_wide.0, of_narrow.0);
    let after = world.host.counters();
    assert_eq!(after.frames_deflated - before.frames_deflated, 2);
    assert_eq!(after.deliveries - before.deliveries, 8);
    let plain_len = 3 * (long.len() as u64 + 4);
    let deflated_len = (3 * of_wide.1 + 2 * of_narrow.1) as u64;
    assert_eq!(after.bytes_out - before.bytes_out, plain_len + deflated_len);

    for pipe in &plain {
        assert_eq!(pipe.frames(), [Frame::binary(&long)]);
    }
    for pipe in wide.iter().chain(&narrow) {
        assert_eq!(common::messages(&pipe.take()), std::slice::from_ref(&long));
    }

    world.pass(Duration::from_secs(1));
    world.send(alice, &edit(2, "short"));
    for pipe in plain.iter().chain(&wide).chain(&narrow) {
        assert_eq!(pipe.frames(), [Frame::binary(&edit(2, "short"))]);
    }
    assert_eq!(world.host.counters().frames_deflated - before.frames_deflated, 2);
}

#[test]
fn what_a_client_compressed_counts_as_what_it_is_and_is_bounded() {
    let mut options = Options::default();
    options.deflate = Some(Deflate::default());
    options.config.frame_len_max = 50_000;
    let mut world = World::new(options);
    let long = edit(1, &"x".repeat(49_000));
    let (alice, _) = world.join_with("notes", "permessage-deflate");
    let (_, bobs) = world.join("notes");
    world.receive(alice, common::deflated(&long));
    assert_eq!(world.host.counters().bytes_in, long.len() as u64);
    assert_eq!(bobs.frames(), [Frame::binary(&long)]);

    let (mallory, mallorys) = world.join_with("notes", "permessage-deflate");
    world.receive(mallory, common::deflated(&vec![0; 50_001]));
    assert_eq!(mallorys.frames(), [Frame::close(1009, "a message is too long")]);
    assert_eq!(world.host.counters().violations, 1);
}

#[test]
fn what_is_not_turned_on_is_not_agreed_to() {
    let mut world = World::new(Options::default());
    let (alice, pipe) = world.join_with("notes", "permessage-deflate");
    let frame = common::deflated(STEP1);
    world.receive(alice, frame);
    assert_eq!(pipe.frames(), [Frame::close(1002, "a reserved bit is set")]);
}

#[test]
fn what_waits_for_a_socket_is_written_in_one_call() {
    let mut world = World::new(Options::default());
    let (alice, _) = world.join("notes");
    let (bob, pipe) = world.join("notes");
    pipe.block();
    for client in 1..=10 {
        world.send(alice, &edit(client, "x"));
        world.pass(Duration::from_millis(20));
    }
    assert!(pipe.take().is_empty());
    assert_eq!(world.next(bob), Next::Run { write: true });

    world.unblock(bob, &pipe);
    assert_eq!(pipe.state().calls.len(), 1);
    assert_eq!(pipe.frames(), (1..=10).map(|client| Frame::binary(&edit(client, "x"))).collect::<Vec<_>>());
    assert_eq!(world.next(bob), Next::Run { write: false });
}

#[test]
fn a_socket_that_takes_a_few_bytes_at_a_time_gets_everything_in_order() {
    for at_once in 1..40 {
        let mut world = World::new(Options::default());
        let (alice, _) = world.join("notes");
        let (_, whole) = world.join("notes");
        let (torn, pipe) = world.join("notes");
        pipe.state().takes_at_once = at_once;
        for client in 1..=20 {
            // Every other time it blocks in the middle of a frame.
            pipe.state().takes = if client % 2 == 0 { usize::MAX } else { at_once };
            world.send(alice, &edit(client, &"x".repeat(usize::from(client))));
            world.host.writable(world.now, torn);
            world.pass(Duration::from_millis(20));
        }
        world.unblock(torn, &pipe);
        assert_eq!(pipe.take(), whole.take());
    }
}

#[test]
fn a_full_outbox_costs_one_catch_up_instead_of_everything_missed() {
    let mut options = Options::default();
    options.limits.outbox_bytes_max = 1_000;
    let mut world = World::new(options);
    let (alice, _) = world.join("notes");
    let (bob, pipe) = world.join("notes");
    pipe.block();

    let mut edits = (1..=100).map(|client| edit(client, &"x".repeat(84)));
    // 102 bytes each with its header: the tenth one is too much.
    let mut edit_next = |world: &mut World| {
        let frame = edits.next().unwrap();
        assert_eq!(frame.len(), 100);
        world.send(alice, &frame);
        world.pass(Duration::from_millis(20));
    };
    for _ in 0..9 {
        edit_next(&mut world);
    }
    assert_eq!(world.host.counters().congestions, 0, "918 bytes wait");
    edit_next(&mut world);
    assert_eq!(world.host.counters().congestions, 1, "1,020 bytes wait");
    let deliveries = world.host.counters().deliveries;
    for _ in 10..100 {
        edit_next(&mut world);
    }
    assert_eq!(world.host.counters().deliveries - deliveries, 90, "alice's echoes, and nothing for bob");

    // 251 bytes left are still too many, 250 are not.
    pipe.state().takes = 1_020 - 251;
    world.host.writable(world.now, bob);
    assert_eq!(pipe.state().written.len(), 1_020 - 251);
    pipe.state().takes = 1;
    world.host.writable(world.now, bob);
    world.unblock(bob, &pipe);
    let frames = pipe.frames();
    assert_eq!(frames.len(), 10 + 1, "what was in the outbox, and one diff");

    let doc = Doc::with_client_id(1_000);
    for Frame(_, payload) in frames {
        let Some(Ok(Message::Update(update))) = Message::decode(&Bytes::from(payload)).next() else {
            panic!("an update");
        };
        doc.transact_mut().apply_update(Update::decode_v1(&update).unwrap()).unwrap();
    }
    let transaction = doc.transact();
    assert_eq!(transaction.get_text("text").unwrap().get_string(&transaction), "x".repeat(8_400));
    assert_eq!(world.host.counters().congestions, 2, "the diff alone is more than the bound");
}

#[test]
fn a_socket_that_breaks_in_the_middle_of_a_broadcast_leaves_and_the_others_are_served() {
    let mut world = World::new(Options::default());
    let (alice, alices) = world.join("notes");
    let (bob, bobs) = world.join("notes");
    let (_, carols) = world.join("notes");
    world.send(bob, &presence(7, 1, "{}"));
    alices.take();
    carols.take();
    world.pass(Duration::from_secs(1));

    bobs.state().is_broken = true;
    world.send(alice, &edit(1, "x"));
    world.pass(Duration::from_secs(1));

    assert_eq!(world.next(bob), Next::Drop);
    assert_eq!(world.host.counters().connections, 2);
    let gone = presence(7, 1, "null");
    assert_eq!(carols.frames(), [Frame::binary(&edit(1, "x")), Frame::binary(&gone)]);
    let alices = alices.frames();
    assert!(alices.contains(&Frame::binary(&gone)) && alices.contains(&Frame::binary(&edit(1, "x"))));
}

#[test]
fn a_peer_that_pings_and_never_reads_gets_one_pong_in_the_end() {
    let mut options = Options::default();
    options.limits.outbox_bytes_max = 1_000;
    let mut world = World::new(options);
    let (mallory, pipe) = world.join("notes");
    pipe.block();
    for count in 0..1_000u32 {
        world.receive(mallory, masked(0x89, &count.to_be_bytes()));
    }
    world.unblock(mallory, &pipe);
    let pongs = pipe.frames();
    assert!(pongs.len() <= 1_000 / 6 + 2, "{} pongs", pongs.len());
    assert_eq!(pongs.last(), Some(&Frame(0x8a, 999u32.to_be_bytes().to_vec())), "the newest counts");
}

#[test]
fn a_read_full_of_questions_is_not_answered_beyond_the_bound() {
    let mut options = Options::default();
    options.limits.outbox_bytes_max = 100_000;
    let mut world = World::new(options);
    let (alice, _) = world.join("notes");
    world.send(alice, &edit(1, &"x".repeat(10_000)));
    let (mallory, pipe) = world.join("notes");
    pipe.block();
    let before = world.host.counters();
    world.receive(mallory, masked(0x82, STEP1).repeat(6_000));
    let after = world.host.counters();
    assert_eq!(after.frames_in - before.frames_in, 6_000);
    assert!(after.bytes_out - before.bytes_out < 120_000);

    world.unblock(mallory, &pipe);
    assert!(pipe.frames().len() <= 12, "and the last question once more");
}

#[test]
fn a_socket_that_only_its_task_writes_is_woken_once_per_change_and_written_by_the_task() {
    let mut world = World::new(Options::default());
    let (alice, pipe) = world.join("notes");
    pipe.block();
    pipe.state().wakes = 0;
    world.send(alice, STEP1);
    assert_eq!(pipe.state().wakes, 1);
    assert_eq!(world.next(alice), Next::Run { write: true });

    // The task finds its stream blocked: it must not be told so by a wake-up, or it would never rest.
    let blocked = || Err(std::io::ErrorKind::WouldBlock.into());
    world.host.write_by(world.now, alice, |_| blocked()).unwrap();
    assert_eq!(pipe.state().wakes, 1);

    let mut written = Vec::new();
    let mut write = |buffers: &[std::io::IoSlice<'_>]| {
        let taken = common::concat(buffers);
        written.extend_from_slice(&taken);
        Ok(taken.len())
    };
    world.host.write_by(world.now, alice, &mut write).unwrap();
    assert_eq!(common::frames(&written), [Frame::binary(EMPTY_STEP2)]);
    assert_eq!(world.next(alice), Next::Run { write: false });

    world.send(alice, STEP1);
    let broken = world.host.write_by(world.now, alice, |_| Err(std::io::ErrorKind::BrokenPipe.into()));
    assert_eq!(broken.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    assert_eq!(world.next(alice), Next::Drop);
}
