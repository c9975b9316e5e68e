//! Who is let in, under which conditions, and what the others are told.

mod common;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{EMPTY_STEP2, Frame, Pipe, STEP1, World, edit, masked, request, upgrade};
use yrs_websocket::{Access, Event, RoomName};
use yrs_websocket_host::{
    Admission, Admitted, Next, Options, Upgrade, rfc6455::Refusal, shard_of, shard_of_connection,
};

const ACCEPTED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

fn refused(options: &Options, head: &str) -> String {
    let refusal = upgrade(options, head).expect_err("it is refused");
    String::from_utf8(refusal.to_bytes().into()).unwrap()
}

#[test]
fn a_request_may_arrive_byte_by_byte_with_frames_behind_it() {
    let mut world = World::new(Options::default());
    let mut upgrade = Upgrade::new(&world.options);
    let head = request("/caf%C3%A9?token=1");
    for byte in &head.as_bytes()[..head.len() - 1] {
        assert!(upgrade.receive(&[*byte]).unwrap().is_none());
    }
    let last = [b"\n".to_vec(), masked(0x82, STEP1)].concat();
    let admitted = upgrade.receive(&last).unwrap().expect("the head is complete");
    assert_eq!(admitted.room().as_str(), "café");

    let pipe = Pipe::default();
    world.host.connect(world.now, pipe.clone(), admitted).unwrap();
    let written = pipe.take();
    assert!(written.starts_with(format!("{ACCEPTED}\r\n").as_bytes()));
    // SyncStep1, as every client wants it first, and the answer to its own.
    assert_eq!(common::frames(&written), [Frame::binary(&[0, 0, 1, 0]), Frame::binary(EMPTY_STEP2)]);
}

#[test]
fn somebody_else_may_make_the_upgrade_and_hand_over_what_it_read_behind_it() {
    let mut world = World::new(Options::default());
    let admission = Admission::new(RoomName::new("notes").unwrap(), Access::Write);
    let admitted = Admitted::after_upgrade(admission, masked(0x82, STEP1));
    let pipe = Pipe::default();
    let id = world.host.connect(world.now, pipe.clone(), admitted).unwrap();
    assert_eq!(shard_of_connection(id), 0);
    assert_eq!(common::frames(&pipe.take()), [Frame::binary(&[0, 0, 1, 0]), Frame::binary(EMPTY_STEP2)]);
}

#[test]
fn what_is_no_upgrade_gets_its_answer_byte_for_byte() {
    let options = Options::default();
    assert_eq!(
        refused(&options, "GET / HTTP/1.1\r\nHost: example\r\n\r\n"),
        "HTTP/1.1 426 Upgrade Required\r\nConnection: close\r\n\
         Content-Type: text/plain; charset=utf-8\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Content-Length: 29\r\n\r\nthis is a WebSocket endpoint\n"
    );
    assert_eq!(
        refused(&options, &request("/notes").replace("Version: 13", "Version: 12")),
        "HTTP/1.1 426 Upgrade Required\r\nConnection: close\r\n\
         Content-Type: text/plain; charset=utf-8\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nContent-Length: 43\r\n\r\n\
         only version 13 of WebSocket is spoken here\n"
            .replace("43", &"only version 13 of WebSocket is spoken here\n".len().to_string())
    );
    assert_eq!(
        refused(&options, "\x16\x03\x01 this is TLS\r\n\r\n"),
        "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\
         Content-Type: text/plain; charset=utf-8\r\nContent-Length: 28\r\n\r\n\
         this is not an HTTP request\n"
    );
}

#[test]
fn a_path_that_names_no_room_is_refused_with_the_reason() {
    let options = Options::default();
    for (target, reason) in [
        ("/", "the room name is empty: connect to /NAME"),
        ("/%zz", ""),
        ("/%ff", ""),
        ("/a%00b", ""),
        (&*format!("/{}", "x".repeat(1025)), ""),
    ] {
        let refusal = upgrade(&options, &request(target)).expect_err("it is refused");
        assert_eq!(refusal.status(), 400, "{target}");
        let body = String::from_utf8(refusal.body().to_vec()).unwrap();
        assert!(body.ends_with('\n') && body.len() > 10 && body.starts_with(reason), "{body}");
    }
}

#[test]
fn beyond_a_limit_the_answer_is_503_and_when_to_come_back() {
    let mut options = Options::default();
    options.config.peers_per_room_max = 2;
    options.config.rooms_max = 2;
    let mut world = World::new(options);
    world.join("notes");
    let (last, _) = world.join("notes");
    assert_eq!(
        world.try_join("notes").unwrap_err().to_bytes(),
        "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 5\r\n\
         Content-Type: text/plain\r\nContent-Length: 17\r\n\r\nthe room is full\n"
    );
    world.join("plans");
    let refusal = world.try_join("third").unwrap_err();
    assert_eq!((refusal.status(), &refusal.body()[..]), (503, &b"too many rooms are open\n"[..]));
    assert_eq!(world.host.counters().refused, 2);
    assert_eq!(world.host.counters().accepted, 3);
    assert_eq!((world.host.counters().connections, world.host.counters().rooms), (3, 2));

    // Who leaves makes room.
    world.host.ended(world.now, last);
    world.join("notes");
}

#[test]
fn a_drain_refuses_closes_with_1012_and_is_over_when_everybody_has_gone() {
    let mut world = World::new(Options::default());
    let (alice, pipe) = world.join("notes");
    world.send(alice, &edit(1, "x"));
    pipe.take();
    world.host.drain(world.now, world.now + Duration::from_secs(10));
    world.pass(Duration::from_secs(1));
    assert_eq!(pipe.frames(), [Frame::close(1012, "server is restarting")]);
    let refusal = world.try_join("notes").unwrap_err();
    assert_eq!((refusal.status(), &refusal.body()[..]), (503, &b"the server is shutting down\n"[..]));

    assert!(!world.host.is_drained(), "its answer is waited for");
    world.receive(alice, masked(0x88, &1012u16.to_be_bytes()));
    assert_eq!(world.next(alice), Next::ShutDown);
    world.host.ended(world.now, alice);
    assert!(world.host.is_drained());
    assert_eq!(world.host.unstored_bytes(), 0);
    assert_eq!(world.host.next_timeout(), None);
}

#[test]
fn a_hook_decides_about_access_until_when_and_the_subprotocol() {
    let mut options = Options::default();
    let world_began = World::new(Options::default()).now;
    options.hooks.on_request = Some(Arc::new(move |request| {
        if request.path == "/health" {
            let refusal = Refusal::new(200);
            return Err(refusal.clone().with_body("text/plain", "ok\n").unwrap_or(refusal));
        }
        let mut admission = Admission::by_path(request)?;
        match request.query.as_deref() {
            Some("reader") => admission.access = Access::ReadOnly,
            Some("guest") => admission.expires_at = Some(world_began + Duration::from_secs(20)),
            Some("other") => admission.subprotocol = Some("not offered".into()),
            Some("panic") => panic!("this is the panic of the test"),
            _ => return Err(Refusal::new(401)),
        }
        Ok(admission)
    }));
    assert_eq!(
        refused(&options, "GET /health HTTP/1.1\r\nHost: example\r\n\r\n"),
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n"
    );
    assert!(refused(&options, &request("/notes")).starts_with("HTTP/1.1 401 "));
    assert!(refused(&options, &request("/notes?other")).starts_with("HTTP/1.1 500 "));
    assert!(refused(&options, &request("/notes?panic")).starts_with("HTTP/1.1 500 "));

    let mut world = World::new(options);
    world.now = world_began;
    let (reader, readers) = world.join("notes?reader");
    let (guest, guests) = world.join("notes?guest");
    world.send(reader, &edit(1, "x"));
    let told = readers.frames();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].1[..2], [2, 0]);
    assert!(guests.take().is_empty());
    assert_eq!(world.host.counters().writes_refused, 1);
    world.send(guest, &edit(1, "x"));
    assert_eq!(readers.frames(), [Frame::binary(&edit(1, "x"))]);

    guests.take();
    world.pass(Duration::from_secs(20));
    assert_eq!(guests.frames().last(), Some(&Frame::close(4401, "access has expired")));
}

#[test]
fn the_first_subprotocol_that_is_offered_is_spoken() {
    let mut world = World::new(Options::default());
    let head = request("/notes").replace("Host:", "Sec-WebSocket-Protocol: yjs, other\r\nHost:");
    let pipe = Pipe::default();
    world.host.connect(world.now, pipe.clone(), upgrade(&world.options, &head).unwrap()).unwrap();
    let accepted = format!("{ACCEPTED}Sec-WebSocket-Protocol: yjs\r\n\r\n");
    assert!(pipe.take().starts_with(accepted.as_bytes()));
}

#[test]
fn a_hook_may_take_frames_before_they_are_decoded_and_hears_of_events() {
    let taken = Arc::new(Mutex::new(Vec::new()));
    let events = Arc::new(Mutex::new(Vec::new()));
    let mut options = Options::default();
    let (takes, hears) = (Arc::clone(&taken), Arc::clone(&events));
    options.hooks.on_frame = Some(Arc::new(move |_, from, frame| {
        let is_mine = frame.first() == Some(&2);
        if is_mine {
            takes.lock().unwrap().push((from, frame.clone()));
        }
        is_mine
    }));
    options.hooks.on_event = Some(Arc::new(move |event| hears.lock().unwrap().push(event.clone())));
    let mut world = World::new(options);
    let (alice, pipe) = world.join("notes");
    world.send(alice, &[2, 77]);
    assert!(pipe.take().is_empty());
    assert_eq!(*taken.lock().unwrap(), [(alice, bytes::Bytes::from_static(&[2, 77]))]);
    world.send(alice, STEP1);
    assert_eq!(pipe.frames(), [Frame::binary(EMPTY_STEP2)]);
    let heard = events.lock().unwrap();
    assert!(matches!(heard[..], [Event::Joined { .. }, Event::RoomOpened { .. }]), "{heard:?}");
}

#[test]
fn the_id_of_who_has_left_names_nobody_although_the_slot_is_used_again() {
    let mut world = World::new(Options::default());
    let (old, _) = world.join("notes");
    world.host.ended(world.now, old);
    let (new, pipe) = world.join("notes");
    assert_eq!(old.0 as u32, new.0 as u32, "the slot");
    assert_ne!(old, new);
    world.send(old, STEP1);
    world.host.ended(world.now, old);
    world.host.writable(world.now, old);
    world.host.write_by(world.now, old, |_| unreachable!("there is nothing to write")).unwrap();
    assert_eq!(world.next(old), Next::Drop);
    assert!(pipe.take().is_empty());
    world.send(new, STEP1);
    assert_eq!(pipe.frames(), [Frame::binary(EMPTY_STEP2)]);
}

#[test]
fn rooms_are_spread_over_shards_and_each_has_its_own() {
    let room = |name: usize| yrs_websocket::RoomName::new(&format!("room {name}")).unwrap();
    let mut counts = [0; 4];
    for name in 0..1_000 {
        counts[shard_of(&room(name), 4)] += 1;
        assert_eq!(shard_of(&room(name), 1), 0);
        assert_eq!(shard_of(&room(name), 0), 0);
    }
    assert!(counts.iter().all(|count| (200..300).contains(count)), "{counts:?}");
}
