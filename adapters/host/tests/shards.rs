//! Hosts behind locks, driven by an event loop that keeps the time itself.

mod common;

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Waker},
    time::{Duration, Instant},
};

use common::{Pipe, request, upgrade};
use yrs_websocket_host::{Options, Shards};

static MILLISECONDS: AtomicU64 = AtomicU64::new(0);

/// A clock that stands still unless the test moves it.
#[allow(clippy::disallowed_methods, reason = "an `Instant` comes from nowhere else")]
fn clock() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now) + Duration::from_millis(MILLISECONDS.load(Ordering::Relaxed))
}

#[test]
fn a_turn_does_what_is_due_and_says_for_how_long_nothing_is() {
    let mut options = Options::default();
    options.websocket.ping_interval = Some(Duration::from_secs(10));
    options.config.keepalive = Duration::from_secs(3600);
    let shards = Shards::in_memory(options.clone(), 1, clock, 1);
    let mut context = Context::from_waker(Waker::noop());
    assert_eq!(shards.turn(0, |_, _| {}), None, "nothing will ever be");

    let pipe = Pipe::default();
    let admitted = upgrade(&options, &request("/notes")).unwrap();
    assert!(shards.connect(pipe.clone(), admitted).is_ok());
    pipe.take();
    assert!(shards.bell(0).poll(&mut context).is_ready(), "that is no longer so");
    assert_eq!(shards.turn(0, |_, _| {}), Some(Duration::from_secs(10)));
    assert!(shards.bell(0).poll(&mut context).is_pending(), "it has been told");

    MILLISECONDS.store(9_000, Ordering::Relaxed);
    assert_eq!(shards.turn(0, |_, _| {}), Some(Duration::from_secs(1)));
    assert!(pipe.take().is_empty());
    MILLISECONDS.store(10_000, Ordering::Relaxed);
    let rest = shards.turn(0, |_, _| {});
    assert_eq!(pipe.take(), [0x89, 0], "a ping");
    assert_eq!(rest, Some(options.websocket.pong_timeout));
}
