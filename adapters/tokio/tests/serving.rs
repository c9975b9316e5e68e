//! Clients and a service, over TCP and over streams of other kinds.

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use common::{Client, Disk, Heard, is_presence, on_both_runtimes, options, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_tungstenite::tungstenite::Error;
use yrs_websocket::{Event, Input, Outputs, Server, message::Message};
use yrs_websocket_tokio::{Observer, Options, Service, Step};

fn in_memory(options: Options) -> Service {
    Service::in_memory(options, 2).unwrap()
}

/// Lets a service serve one end of a pipe; gives the other.
fn pipe(service: &Service, buffer: usize) -> (DuplexStream, tokio::task::JoinHandle<()>) {
    let (near, far) = duplex(buffer);
    let service = service.clone();
    (near, tokio::spawn(async move { service.accept_stream(far).await.unwrap() }))
}

#[test]
fn a_pipe_of_a_few_bytes_does_what_tcp_does() {
    on_both_runtimes(|| async {
        let service = in_memory(Options::default());
        let (address, _) = serve(&service).await;
        let (stream, serving) = pipe(&service, 16);
        let mut alice = Client::over(stream, "notes", 1).await.unwrap();
        let mut bob = Client::connect(address, "notes", 2).await;
        alice.sync().await;
        bob.sync().await;
        let long = "x".repeat(50_000);
        bob.edit(&long).await;
        alice.until_text(&long).await;
        alice.edit("y").await;
        bob.until_text(&format!("{long}y")).await;
        alice.leave().await;
        serving.await.unwrap();
        assert_eq!(service.counters().connections, 1);
    });
}

#[test]
fn a_stream_that_is_no_longer_served_leaves_no_ghost() {
    on_both_runtimes(|| async {
        let service = in_memory(Options::default());
        let (address, _) = serve(&service).await;
        let (stream, serving) = pipe(&service, 1 << 10);
        let mut alice = Client::over(stream, "notes", 1).await.unwrap();
        let mut bob = Client::connect(address, "notes", 2).await;
        alice.sync().await;
        bob.sync().await;
        alice.announce(1).await;
        bob.until_heard(is_presence).await;
        serving.abort();
        let gone = bob.until_heard(is_presence).await;
        let null = Bytes::from_static(&[1, 1, 1, 4, b'n', b'u', b'l', b'l']);
        assert_eq!(gone, Heard::Message(Message::Awareness(null)));
        assert_eq!(service.counters().connections, 1);
        assert_eq!(alice.end().await, Heard::Cut);
    });
}

#[test]
fn a_pipe_that_is_not_read_costs_one_catch_up() {
    on_both_runtimes(|| async {
        let (mut options, _) = options();
        options.config.flush_interval = Duration::ZERO;
        options.limits.outbox_bytes_max = 10_000;
        let service = in_memory(options);
        let (address, _) = serve(&service).await;
        let (stream, _) = pipe(&service, 100);
        let mut reader = Client::over(stream, "notes", 1).await.unwrap();
        let mut alice = Client::connect(address, "notes", 2).await;
        let mut bob = Client::connect(address, "notes", 3).await;
        alice.sync().await;
        bob.sync().await;
        let mut text = String::new();
        for _ in 0..300 {
            alice.edit(&"x".repeat(100)).await;
            text.push_str(&"x".repeat(100));
            bob.until_text(&text).await;
        }
        assert!(service.counters().congestions > 0);
        reader.until_text(&text).await;
        assert!(reader.frames < 150, "{} frames", reader.frames);
    });
}

#[test]
fn a_client_that_stops_reading_is_bounded_disturbs_nobody_and_converges_in_the_end() {
    on_both_runtimes(|| async {
        let (mut options, _) = options();
        options.config.flush_interval = Duration::ZERO;
        options.limits.outbox_bytes_max = 64 << 10;
        let service = in_memory(options);
        let (address, _) = serve(&service).await;
        let mut reader = Client::connect(address, "notes", 1).await;
        reader.sync().await;
        let mut alice = Client::connect(address, "notes", 2).await;
        let mut bob = Client::connect(address, "notes", 3).await;
        alice.sync().await;
        bob.sync().await;

        // More than all buffers of the system on the way hold.
        let piece = "x".repeat(8 << 10);
        let mut len = 0;
        for _ in 0..1_500 {
            alice.edit(&piece).await;
            len += piece.len();
            alice.until_echo().await;
            bob.until_echo().await;
        }
        while bob.text().len() < len {
            bob.hear().await;
        }
        assert!(service.counters().congestions > 0);
        while reader.text().len() < len {
            assert!(matches!(reader.hear().await, Heard::Message(_)));
        }
        assert!(reader.frames < bob.frames, "{} of {}", reader.frames, bob.frames);
    });
}

#[test]
fn two_hundred_clients_that_do_not_read_hold_nobody_up() {
    on_both_runtimes(|| async {
        let (mut options, _) = options();
        options.config.flush_interval = Duration::ZERO;
        options.limits.outbox_bytes_max = 10_000;
        let service = in_memory(options);
        let (address, _) = serve(&service).await;
        let mut silent = Vec::new();
        for id in 0..200 {
            silent.push(Client::connect_narrow(address, "notes", 1_000 + id).await);
        }
        let mut alice = Client::connect(address, "notes", 1).await;
        let mut bob = Client::connect(address, "notes", 2).await;
        alice.sync().await;
        bob.sync().await;
        let mut text = String::new();
        for _ in 0..50 {
            alice.edit(&"x".repeat(4 << 10)).await;
            text.push_str(&"x".repeat(4 << 10));
            bob.until_text(&text).await;
        }
        assert_eq!(service.counters().connections, 202);
        silent[77].until_text(&text).await;
    });
}

#[test]
fn beyond_the_limit_a_client_is_told_by_http_to_come_back() {
    on_both_runtimes(|| async {
        let mut options = Options::default();
        options.config.peers_per_room_max = 2;
        let service = in_memory(options);
        let (address, _) = serve(&service).await;
        let _alice = Client::connect(address, "notes", 1).await;
        let _bob = Client::connect(address, "notes", 2).await;
        // Over TCP it is refused on the thread of the shard, over a pipe by the caller.
        let over_tcp = Client::try_connect(address, "notes", 3).await.err();
        let over_pipe = Client::over(pipe(&service, 1 << 10).0, "notes", 3).await.err();
        for refused in [over_tcp, over_pipe] {
            let Some(Error::Http(response)) = refused else { panic!("{refused:?}") };
            assert_eq!(response.status(), 503);
            assert_eq!(response.headers()["retry-after"], "5");
        }
        assert_eq!(service.counters().refused, 2);
        Client::connect(address, "plans", 3).await.sync().await;
    });
}

#[test]
fn rooms_on_several_shards_do_not_mix() {
    on_both_runtimes(|| async {
        let (store, shards) = (Disk::default(), 3);
        let service = Service::with_store(options().0, shards, store).unwrap();
        let (address, _) = serve(&service).await;
        let mut pairs = Vec::new();
        for number in 0..30 {
            let room = format!("room{number}");
            let mut alice = Client::connect(address, &room, 1).await;
            let mut bob = Client::connect(address, &room, 2).await;
            alice.sync().await;
            bob.sync().await;
            pairs.push((room, alice, bob));
        }
        assert_eq!(service.counters().rooms, 30);
        for (room, alice, _) in &mut pairs {
            alice.edit(room).await;
        }
        for (room, alice, bob) in &mut pairs {
            bob.until_text(room).await;
            alice.until_echo().await;
        }
    });
}

#[test]
fn an_update_that_makes_yrs_panic_does_the_server_no_harm() {
    const CRAFTED: &[u8] = &[0, 2, 19, 1, 1, 1, 253, 255, 255, 255, 255, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];
    on_both_runtimes(|| async {
        let service = in_memory(Options::default());
        let (address, _) = serve(&service).await;
        let mut alice = Client::connect(address, "notes", 1).await;
        alice.sync().await;
        let mut mallory = Client::connect(address, "crafted", 66).await;
        mallory.send_raw(Bytes::from_static(CRAFTED)).await;
        mallory.announce(1).await;
        let _ = mallory.hear().await;
        // Through a view: done, or refused with a typed error.
        let room = yrs_websocket::RoomName::new("crafted").unwrap();
        let _ = service.edit(&room, |_| ());
        alice.edit("x").await;
        alice.until_echo().await;
    });
}

#[test]
fn a_client_that_half_closes_has_left() {
    on_both_runtimes(|| async {
        let (options, mut events) = options();
        let service = in_memory(options);
        let (address, _) = serve(&service).await;
        let mut alice = Client::connect(address, "notes", 1).await;
        alice.sync().await;
        let mut stream = alice.into_stream();
        stream.shutdown().await.unwrap();
        events.until(|event| matches!(event, Event::Left { .. })).await;
        // And the server's side of the stream ends, too.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    });
}

#[test]
fn a_hook_that_panics_stops_neither_the_store_nor_the_timer() {
    on_both_runtimes(|| async {
        let (mut options, _) = options();
        options.hooks.on_event = Some(Arc::new(|_| panic!("this is the panic of the test")));
        options.config.idle_delay = Duration::ZERO;
        let service = Service::with_store(options, 1, Disk::default()).unwrap();
        let (address, _) = serve(&service).await;
        // Opened by the store thread, closed by the timer, each with an event; then once more.
        for round in 1..=2 {
            let mut alice = Client::connect(address, "notes", round).await;
            alice.sync().await;
            alice.edit("x").await;
            alice.until_echo().await;
            assert_eq!(alice.text(), "x".repeat(round as usize));
            alice.leave().await;
        }
    });
}

#[test]
fn an_edit_of_the_server_that_panics_harms_nobody() {
    on_both_runtimes(|| async {
        let service = in_memory(Options::default());
        let (address, _) = serve(&service).await;
        let mut alice = Client::connect(address, "notes", 1).await;
        alice.sync().await;
        alice.edit("x").await;
        alice.until_echo().await;
        let room = yrs_websocket::RoomName::new("notes").unwrap();
        let editor = service.clone();
        let edit = std::panic::AssertUnwindSafe(move || {
            let _ = editor.edit(&room, |_| panic!("this is the panic of the test"));
        });
        assert!(std::panic::catch_unwind(edit).is_err());
        alice.edit("y").await;
        alice.until_echo().await;
        let mut bob = Client::connect(address, "notes", 2).await;
        bob.sync().await;
        assert_eq!(bob.text(), "xy");
    });
}

#[test]
fn what_is_sent_just_before_the_end_of_the_stream_is_taken_and_the_end_seen() {
    on_both_runtimes(|| async {
        let (options, mut events) = options();
        let service = in_memory(options);
        let (address, _) = serve(&service).await;
        let mut bob = Client::connect(address, "notes", 2).await;
        bob.sync().await;
        // Once in one piece with the end, and once more than what is read at once.
        let mut text = String::new();
        for (id, len) in [(3, 1), (4, 1 << 20)] {
            let mut alice = Client::connect(address, "notes", id).await;
            alice.sync().await;
            let piece = "x".repeat(len);
            alice.edit(&piece).await;
            let mut stream = alice.into_stream();
            stream.shutdown().await.unwrap();
            text.push_str(&piece);
            bob.until_text(&text).await;
            events.until(|event| matches!(event, Event::Left { .. })).await;
        }
    });
}

/// Panics at what it is told to.
#[derive(Debug)]
struct Panicking(fn(&Input) -> bool);

impl Observer for Panicking {
    fn before(&mut self, _: Instant, _: &Server, step: Step<'_>) {
        assert!(!matches!(step, Step::Input(input) if (self.0)(input)), "this is the panic of the test");
    }

    fn after(&mut self, _: &Server, _: &Outputs) {}
}

fn panicking(mut options: Options, at: fn(&Input) -> bool) -> Options {
    options.hooks.observer = Some(Arc::new(move |_, _, _| Some(Box::new(Panicking(at)))));
    options
}

#[test]
fn a_panic_while_a_connection_is_served_ends_that_connection() {
    on_both_runtimes(|| async {
        let is_question = |input: &Input| matches!(input, Input::Received { frame, .. } if frame[..] == [3]);
        let service = in_memory(panicking(Options::default(), is_question));
        let (address, _) = serve(&service).await;
        let mut alice = Client::connect(address, "notes", 1).await;
        let mut bob = Client::connect(address, "notes", 2).await;
        alice.sync().await;
        bob.sync().await;
        alice.send(Message::QueryAwareness).await;
        assert_eq!(alice.end().await, Heard::Cut);
        bob.edit("x").await;
        bob.until_echo().await;
        assert_eq!(service.counters().connections, 1);
    });
}

#[test]
fn a_thread_that_fails_ends_the_server_instead_of_half_of_it() {
    on_both_runtimes(|| async {
        let mut options = Options::default();
        options.config.keepalive = Duration::from_millis(1);
        let service = in_memory(panicking(options, |input| matches!(input, Input::Timeout)));
        let (address, serving) = serve(&service).await;
        if let Ok(mut alice) = Client::try_connect(address, "notes", 1).await {
            assert_eq!(alice.end().await, Heard::Cut);
        }
        serving.await.unwrap();
        assert!(service.is_stopped());
    });
}
