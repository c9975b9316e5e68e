//! The other end of a host's connection: the upgrade, the end, slow lines, all in simulated time.

mod common;

use std::{
    io::{self, ErrorKind},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use common::{World, concat, upgrade};
use yrs::{Doc, GetString, Text, Transact};
use yrs_websocket::{
    Access, ConnectionId, Input,
    provider::{CloseReason, End, Event},
};
use yrs_websocket_host::{
    Client, ClientNext, ClientOptions, DialError, Next, Options,
    rfc6455::{Deflate, InvalidClientRequest, Refusal},
    target,
};

const RUN: ClientNext = ClientNext::Run { write: false };
const STOPPED: ClientNext = ClientNext::Stopped { unacknowledged: false };

#[test]
fn it_converges_with_a_host_however_the_bytes_are_split() {
    for step in [1, 7, 100_000] {
        let mut world = World::new(Options::default());
        let mut alice = Peer::new(world.now, 1);
        let mut bob = Peer::new(world.now, 2);
        alice.edit("before");
        alice.join(&mut world, step);
        bob.join(&mut world, step);
        bob.edit(&"long".repeat(5000));
        for _ in 0..5 {
            alice.exchange(&mut world, step);
            bob.exchange(&mut world, step);
            world.pass(Duration::from_millis(20));
        }
        assert_eq!(alice.text().len(), 20_006);
        assert_eq!(alice.text(), bob.text());
        assert!(!alice.client.provider().has_unacknowledged());
        assert_eq!(alice.client.next(), RUN);
    }
}

#[test]
fn what_is_long_is_compressed_on_its_way_where_both_ends_want_it() {
    for (server_wants, client_wants) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut options = Options::default();
        options.deflate = server_wants.then(Deflate::default);
        let mut world = World::new(options);
        let peer = |world: &World, id| {
            Peer::with(world.now, id, |options| options.deflate = client_wants.then(Deflate::default))
        };
        let (mut alice, mut bob) = (peer(&world, 1), peer(&world, 2));
        alice.join(&mut world, 1000);
        bob.join(&mut world, 1000);

        alice.edit(&"long".repeat(5000));
        alice.client.wake(world.now);
        let up = alice.written(usize::MAX);
        let up_len = up.len();
        world.receive(alice.id.unwrap(), up);
        let mut down = bob.pipe.take();
        let lens = [up_len, down.len()];
        if server_wants && client_wants {
            assert!(lens.iter().all(|len| *len < 1000), "{lens:?}");
        } else {
            assert!(lens.iter().all(|len| *len > 20_000), "{lens:?}");
        }
        bob.client.received(world.now, &mut down);
        assert_eq!(bob.text(), alice.text());
    }
}

#[test]
fn who_leaves_says_so_and_drops_the_stream_after_the_answer() {
    let mut world = World::new(Options::default());
    let mut alice = Peer::new(world.now, 1);
    alice.join(&mut world, 1000);
    alice.client.handle().leave(world.now);
    alice.client.wake(world.now);
    assert_eq!(alice.client.next(), ClientNext::Run { write: true });
    alice.exchange(&mut world, 1000);
    assert_eq!(alice.heard().last(), Some(&Event::Stopped { unacknowledged: false }));
    assert_eq!(world.next(alice.id.unwrap()), Next::ShutDown);
    assert_eq!(alice.client.next(), ClientNext::Drop);
    alice.client.dropped(world.now);
    assert_eq!(alice.client.next(), STOPPED);
    assert_eq!(alice.client.next_timeout(), None);
}

#[test]
fn a_server_that_does_not_answer_the_close_is_waited_for_two_seconds() {
    let mut world = World::new(Options::default());
    let mut alice = Peer::new(world.now, 1);
    alice.join(&mut world, 1000);
    alice.client.handle().leave(world.now);
    alice.client.wake(world.now);
    let written = alice.written(usize::MAX);
    assert_eq!(written[0], 0x88);
    assert_eq!(alice.client.next(), RUN);
    assert_eq!(alice.client.next_timeout(), Some(world.now + Duration::from_secs(2)));
    alice.client.wake(world.now + Duration::from_secs(2));
    assert_eq!(alice.client.next(), ClientNext::Drop);
}

#[test]
fn a_close_of_the_server_is_answered_and_told() {
    let mut world = World::new(Options::default());
    let mut alice = Peer::new(world.now, 1);
    alice.join(&mut world, 1000);
    world.host.drain(world.now, world.now);
    alice.exchange(&mut world, 1000);
    assert_eq!(world.next(alice.id.unwrap()), Next::ShutDown);
    assert_eq!(alice.client.next(), ClientNext::Drop);
    let Some(Event::Disconnected { end, retry_in: Some(_) }) = alice.heard().pop() else { panic!() };
    assert_eq!(end, End::Closed { code: 1012 });
}

#[test]
fn who_is_told_to_stay_away_stops() {
    let mut world = World::new(Options::default());
    let mut alice = Peer::new(world.now, 1);
    alice.join(&mut world, 1000);
    let connection = alice.id.unwrap();
    let expires_at = Some(world.now);
    world.host.input(world.now, Input::AccessChanged { connection, access: Access::Write, expires_at });
    world.pass(Duration::ZERO);
    alice.exchange(&mut world, 1000);
    assert_eq!(world.next(connection), Next::ShutDown);
    let end = End::Closed { code: 4401 };
    let stopped = Event::Stopped { unacknowledged: false };
    assert_eq!(alice.heard()[2..], [Event::Disconnected { end, retry_in: None }, stopped]);
    alice.client.dropped(world.now);
    assert_eq!(alice.client.next(), STOPPED);
}

#[test]
fn a_refusal_is_heard_and_its_time_kept() {
    let now = World::new(Options::default()).now;
    let mut alice = Peer::new(now, 1);
    alice.client.dialled(now);
    let refusal = Refusal::new(503).with_header("Retry-After", "5").unwrap();
    alice.client.received(now, &mut refusal.to_bytes().to_vec());
    assert_eq!(alice.client.next(), ClientNext::Drop);
    alice.client.dropped(now);
    assert_eq!(alice.client.next(), ClientNext::Wait);
    let end = End::Refused { status: 503, retry_after: Some(Duration::from_secs(5)) };
    assert!(matches!(&alice.heard()[..], [Event::Disconnected { end: found, .. }] if *found == end));
    assert_eq!(alice.errors(), ["the server refused the upgrade with HTTP status 503"]);
    let next = alice.client.next_timeout().unwrap();
    assert!(next > now + Duration::from_secs(5));
    alice.client.wake(next);
    assert_eq!(alice.client.next(), ClientNext::Dial);
}

#[test]
fn an_attempt_that_hangs_is_given_up_and_one_that_fails_told() {
    let now = World::new(Options::default()).now;
    let mut alice = Peer::new(now, 1);
    alice.client.wake(now + Duration::from_secs(10));
    assert_eq!(alice.client.next(), ClientNext::Wait);
    let end = End::ByUs(CloseReason::ConnectTimeout);
    assert!(matches!(&alice.heard()[..], [Event::Disconnected { end: found, .. }] if *found == end));
    alice.client.wake(alice.client.next_timeout().unwrap());
    assert_eq!(alice.client.next(), ClientNext::Dial);
    alice.client.dial_failed(now, ErrorKind::ConnectionRefused.into());
    assert_eq!(alice.client.next(), ClientNext::Wait);
    assert_eq!(alice.errors(), ["connection refused"]);
    // The same where the upgrade hangs.
    let mut alice = Peer::new(now, 1);
    alice.client.dialled(now);
    assert_eq!(alice.client.next(), ClientNext::Run { write: true });
    alice.client.wake(now + Duration::from_secs(10));
    assert_eq!(alice.client.next(), ClientNext::Drop);
    // And where the stream ends in it.
    let mut alice = Peer::new(now, 1);
    alice.client.dialled(now);
    alice.client.ended(now);
    assert_eq!(alice.client.next(), ClientNext::Drop);
    assert_eq!(alice.errors(), ["unexpected end of file"]);
}

#[test]
fn what_is_no_request_is_not_sent() {
    let now = World::new(Options::default()).now;
    let mut alice = Peer::with(now, 1, |options| {
        options.on_dial = Some(Arc::new(|request| request.target = "no path".into()));
    });
    alice.client.dialled(now);
    assert_eq!(alice.client.next(), ClientNext::Drop);
    assert_eq!(alice.errors(), [InvalidClientRequest::Target.to_string()]);
    alice.client.dropped(now);
    assert_eq!(alice.client.next(), ClientNext::Wait);
}

#[test]
fn what_a_slow_line_missed_comes_as_one() {
    let mut world = World::new(Options::default());
    let mut alice = Peer::with(world.now, 1, |options| options.outbox_bytes_max = 1000);
    alice.join(&mut world, 1000);
    assert!(!alice.client.handle().has_unacknowledged());
    alice.edit(&"x".repeat(2000));
    assert!(alice.client.handle().has_unacknowledged());
    alice.client.wake(world.now);
    for _ in 0..10 {
        alice.edit(&"y".repeat(1000));
        alice.client.wake(world.now);
    }
    // The first edit, and once that has left, the rest as one.
    assert_eq!(alice.written(usize::MAX).len(), 2000 + 26);
    assert_eq!(alice.written(usize::MAX).len(), 10_000 + 24);
    assert_eq!(alice.client.next(), RUN);
}

#[test]
fn whoever_breaks_the_protocol_is_left() {
    let mut world = World::new(Options::default());
    let mut alice = Peer::new(world.now, 1);
    alice.join(&mut world, 1000);
    // A frame of a server is not masked.
    alice.client.received(world.now, &mut [0x82, 0x80, 0, 0, 0, 0]);
    assert_eq!(alice.written(usize::MAX)[0], 0x88);
    assert_eq!(alice.client.next(), ClientNext::Drop);
    assert!(matches!(alice.heard().last(), Some(Event::Disconnected { end: End::Lost, .. })));
}

#[test]
fn targets_are_encoded_as_clients_do() {
    assert_eq!(target("notes", &[]), "/notes");
    assert_eq!(
        target("a b/ü?#", &[("token", "a b&c"), ("é", "(~)")]),
        "/a%20b/%C3%BC%3F%23?token=a%20b%26c&%C3%A9=(~)"
    );
}

/// A client, its document, and what it has told.
struct Peer {
    client: Client,
    doc: Doc,
    now: Instant,
    /// At the host.
    id: Option<ConnectionId>,
    pipe: common::Pipe,
    events: Arc<Mutex<Vec<Event>>>,
    errors: Arc<Mutex<Vec<String>>>,
}

impl Peer {
    fn new(now: Instant, id: u64) -> Self {
        Self::with(now, id, |_| {})
    }

    /// Started, and told to dial.
    fn with(now: Instant, id: u64, change: impl FnOnce(&mut ClientOptions)) -> Self {
        let doc = Doc::with_client_id(id);
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let errors: Arc<Mutex<Vec<String>>> = Arc::default();
        let mut options = ClientOptions::new("example", "notes");
        let heard = Arc::clone(&events);
        options.on_event = Some(Arc::new(move |event| heard.lock().unwrap().push(event.clone())));
        let failed = Arc::clone(&errors);
        options.on_dial_error = Some(Arc::new(move |error: &DialError| {
            failed.lock().unwrap().push(error.to_string());
        }));
        change(&mut options);
        let mut client = Client::new(doc.clone(), options, id);
        // Nobody has looked at the document yet.
        assert_eq!(client.next(), ClientNext::Stopped { unacknowledged: true });
        client.start();
        client.wake(now);
        assert_eq!(client.next(), ClientNext::Dial);
        Self { client, doc, now, id: None, pipe: common::Pipe::default(), events, errors }
    }

    fn join(&mut self, world: &mut World, step: usize) {
        self.client.dialled(world.now);
        let request = String::from_utf8(self.written(usize::MAX)).unwrap();
        let admitted = upgrade(&world.options, &request).unwrap();
        self.id = world.host.connect(world.now, self.pipe.clone(), admitted).ok();
        self.exchange(world, step);
        assert!(self.client.provider().is_synced());
    }

    /// Carries bytes, so many at once, until nobody has any.
    fn exchange(&mut self, world: &mut World, step: usize) {
        loop {
            self.client.wake(world.now);
            let up = self.written(step);
            let down = self.pipe.take();
            if up.is_empty() && down.is_empty() {
                return;
            }
            if !up.is_empty() {
                world.receive(self.id.unwrap(), up);
            }
            for bytes in down.chunks(step) {
                self.client.received(world.now, &mut bytes.to_vec());
            }
        }
    }

    /// Takes some bytes off the outbox.
    fn written(&mut self, mut step: usize) -> Vec<u8> {
        let mut written = Vec::new();
        let result = self.client.write_by(self.now, |slices| {
            let all = concat(slices);
            let taken = all.len().min(step);
            if taken == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            step -= taken;
            written.extend_from_slice(&all[..taken]);
            Ok(taken)
        });
        result.unwrap();
        written
    }

    fn edit(&self, text: &str) {
        let root = self.doc.get_or_insert_text("text");
        root.push(&mut self.doc.transact_mut(), text);
    }

    fn text(&self) -> String {
        let root = self.doc.get_or_insert_text("text");
        root.get_string(&self.doc.transact())
    }

    fn heard(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    fn errors(&self) -> Vec<String> {
        self.errors.lock().unwrap().clone()
    }
}
