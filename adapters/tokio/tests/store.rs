//! Trouble with the store, as clients notice it: nothing acknowledged is lost, nothing is acknowledged
//! early, and no document is ever empty that was not.

mod common;

use std::{sync::mpsc, time::Duration};

use common::{Client, Disk, Heard, deadline, is_presence, on_both_runtimes, options, serve};
use yrs_websocket::{Event, message::Message};
use yrs_websocket_store::{
    StoreError,
    testing::{Call, FlakyStore},
};
use yrs_websocket_tokio::Service;

const LONG: Duration = Duration::from_secs(600);

#[test]
fn peers_get_an_edit_at_once_and_its_author_only_when_it_is_stored() {
    on_both_runtimes(|| async {
        let (store, faults) = FlakyStore::new(Disk::default());
        let service = Service::with_store(options().0, 2, store).unwrap();
        let (address, _) = serve(&service).await;
        let mut alice = Client::connect(address, "notes", 1).await;
        let mut bob = Client::connect(address, "notes", 2).await;
        alice.sync().await;
        bob.sync().await;

        faults.hold();
        alice.edit("x").await;
        bob.until_text("x").await;
        // What happens later comes first, and a question that would acknowledge the edit waits too.
        alice.send(Message::SyncStep1(vec![1, 1, 1].into())).await;
        alice.announce(1).await;
        assert!(is_presence(&alice.hear().await));
        // Edits during a write are the next one.
        alice.edit("y").await;
        bob.until_text("xy").await;
        alice.announce(2).await;
        assert!(is_presence(&alice.hear().await));

        faults.release();
        alice.until_echo().await;
        alice.until_heard(|heard| matches!(heard, Heard::Message(Message::SyncStep2(_)))).await;
    });
}

#[test]
fn an_edit_during_a_write_is_stored_by_the_next_one() {
    on_both_runtimes(|| async {
        let disk = Disk::default();
        let (store, faults) = FlakyStore::new(disk.clone());
        let service = Service::with_store(options().0, 1, store).unwrap();
        let (address, _) = serve(&service).await;
        let mut alice = Client::connect(address, "notes", 1).await;
        alice.sync().await;
        faults.hold();
        alice.edit("x").await;
        faults.wait_until_held();
        alice.edit("y").await;
        faults.release();
        alice.until_echo().await;
        alice.until_echo().await;
        assert_eq!(disk.text("notes"), "xy");
    });
}

#[test]
fn a_drain_waits_for_no_pause_between_two_transactions() {
    on_both_runtimes(|| async {
        let disk = Disk::default();
        let (mut options, _) = options();
        options.limits.commit_interval = LONG;
        let service = Service::with_store(options, 1, FlakyStore::new(disk.clone()).0).unwrap();
        let (address, _) = serve(&service).await;
        let mut alice = Client::connect(address, "notes", 1).await;
        let mut bob = Client::connect(address, "notes", 2).await;
        alice.sync().await;
        bob.sync().await;
        alice.edit("x").await;
        alice.until_echo().await;
        alice.edit("y").await;
        bob.until_text("xy").await;
        drop(bob);
        let draining = tokio::spawn(async move { service.drain(deadline(LONG)).await });
        alice.until_echo().await;
        alice.until_heard(|heard| *heard == Heard::Closed(1012)).await;
        drop(alice);
        assert!(draining.await.unwrap().durable);
        assert_eq!(disk.text("notes"), "xy");
    });
}

#[test]
fn a_write_that_fails_is_tried_again_until_it_works_and_acknowledged_then() {
    on_both_runtimes(|| async {
        let disk = Disk::default();
        let (store, faults) = FlakyStore::new(disk.clone());
        let (options, mut events) = options();
        let service = Service::with_store(options, 1, store).unwrap();
        let (address, _) = serve(&service).await;
        let mut alice = Client::connect(address, "notes", 1).await;
        let mut bob = Client::connect(address, "notes", 2).await;
        alice.sync().await;
        bob.sync().await;

        faults.fail_next(1, StoreError::Full);
        alice.edit("once ").await;
        bob.until_text("once ").await;
        alice.until_echo().await;
        assert_eq!(disk.text("notes"), "once ");
        events.until(|event| matches!(event, Event::StoreFailed { .. })).await;

        faults.fail(StoreError::Busy);
        alice.edit("long").await;
        bob.until_text("once long").await;
        for _ in 0..10 {
            events.until(|event| matches!(event, Event::StoreFailed { .. })).await;
        }
        alice.announce(1).await;
        let heard = alice.hear().await;
        assert!(is_presence(&heard), "{heard:?} acknowledges");
        // The room goes on: late joiners too.
        let mut carol = Client::connect(address, "notes", 3).await;
        carol.sync().await;
        assert_eq!(carol.text(), "once long");
        assert_eq!(disk.text("notes"), "once ");

        faults.heal();
        alice.until_echo().await;
        assert_eq!(disk.text("notes"), "once long");
        assert!(service.counters().store_failures >= 11);
    });
}

#[test]
fn a_failed_load_closes_with_1013_and_the_next_finds_the_whole_document() {
    on_both_runtimes(|| async {
        let disk = Disk::default();
        let (store, faults) = FlakyStore::new(disk.clone());
        let (mut options, mut events) = options();
        options.config.idle_delay = Duration::ZERO;
        let service = Service::with_store(options, 1, store).unwrap();
        let (address, _) = serve(&service).await;
        let mut alice = Client::connect(address, "notes", 1).await;
        alice.sync().await;
        alice.edit("precious").await;
        alice.until_echo().await;
        alice.leave().await;
        events.until(|event| matches!(event, Event::RoomClosed { .. })).await;

        let io = StoreError::Io { message: "the cable".into() };
        faults.fail_next(1, io);
        let mut bob = Client::connect(address, "notes", 2).await;
        // The very first thing he hears: no greeting of an empty room.
        assert_eq!(bob.hear().await, Heard::Closed(1013));

        let mut bob = Client::connect(address, "notes", 2).await;
        bob.sync().await;
        assert_eq!(bob.text(), "precious");
    });
}

#[test]
fn a_room_whose_last_edit_is_not_stored_stays_after_everybody_has_left() {
    on_both_runtimes(|| async {
        let disk = Disk::default();
        let (store, faults) = FlakyStore::new(disk.clone());
        let (mut options, mut events) = options();
        options.config.idle_delay = Duration::from_millis(1);
        let service = Service::with_store(options, 1, store).unwrap();
        let (address, _) = serve(&service).await;
        let mut alice = Client::connect(address, "notes", 1).await;
        alice.sync().await;

        faults.fail(StoreError::Full);
        alice.edit("last words").await;
        alice.leave().await;
        let mut heard = events.until(|event| matches!(event, Event::Left { .. })).await;
        for _ in 0..5 {
            heard.extend(events.until(|event| matches!(event, Event::StoreFailed { .. })).await);
        }
        assert!(!heard.iter().any(|event| matches!(event, Event::RoomClosed { .. })));
        assert_eq!((disk.text("notes"), service.counters().rooms), (String::new(), 1));

        faults.heal();
        events.until(|event| matches!(event, Event::RoomClosed { unstored_bytes: 0, .. })).await;
        assert_eq!(disk.text("notes"), "last words");
        let mut bob = Client::connect(address, "notes", 2).await;
        bob.sync().await;
        assert_eq!(bob.text(), "last words");
    });
}

#[test]
fn first_connections_that_overlap_share_one_load_and_one_document() {
    on_both_runtimes(|| async {
        let (store, faults) = FlakyStore::new(Disk::default());
        let service = Service::with_store(options().0, 2, store).unwrap();
        let (address, _) = serve(&service).await;
        faults.hold();
        let mut alice = Client::connect(address, "notes", 1).await;
        let mut bob = Client::connect(address, "notes", 2).await;
        alice.edit("a").await;
        bob.edit("b").await;
        faults.release();
        while alice.text().len() < 2 {
            alice.hear().await;
        }
        let text = alice.text();
        bob.until_text(&text).await;
        assert_eq!(faults.loads(), 1);
    });
}

#[test]
fn a_drain_makes_what_was_just_written_durable() {
    on_both_runtimes(|| async {
        let disk = Disk::default();
        let (store, faults) = FlakyStore::new(disk.clone());
        let service = Service::with_store(options().0, 2, store).unwrap();
        let (address, serving) = serve(&service).await;
        let mut alice = Client::connect(address, "notes", 1).await;
        let mut bob = Client::connect(address, "notes", 2).await;
        let mut carol = Client::connect(address, "plans", 3).await;
        alice.sync().await;
        bob.sync().await;
        carol.sync().await;
        faults.hold();
        alice.edit("x").await;
        bob.until_text("x").await;
        let draining = tokio::spawn({
            let service = service.clone();
            async move { service.drain(deadline(LONG)).await }
        });
        // Carol owes the store nothing. Alice stays until it has answered.
        assert_eq!(carol.end().await, Heard::Closed(1012));
        faults.release();
        alice.until_echo().await;
        assert_eq!(alice.end().await, Heard::Closed(1012));
        assert_eq!(bob.end().await, Heard::Closed(1012));
        assert!(draining.await.unwrap().durable);
        assert_eq!(disk.text("notes"), "x");
        serving.await.unwrap();
        // A second drain finds nothing to do.
        assert!(service.drain(deadline(LONG)).await.durable);
    });
}

#[test]
fn a_drain_does_not_wait_for_ever_for_a_store_that_never_answers() {
    on_both_runtimes(|| async {
        let (store, faults) = FlakyStore::new(Disk::default());
        let service = Service::with_store(options().0, 1, store).unwrap();
        let (address, _) = serve(&service).await;
        let mut alice = Client::connect(address, "notes", 1).await;
        let mut bob = Client::connect(address, "notes", 2).await;
        alice.sync().await;
        bob.sync().await;
        faults.hold();
        alice.edit("x").await;
        bob.until_text("x").await;
        // Bob's closing handshake is his own affair; alice gets no echo, but her close.
        let (drained, alices, _) = tokio::join!(
            service.drain(deadline(Duration::from_millis(100))),
            async {
                alice.announce(1).await;
                alice.until_heard(|heard| matches!(heard, Heard::Closed(_))).await
            },
            bob.end()
        );
        assert!(!drained.durable);
        assert_eq!(alices, Heard::Closed(1012));
    });
}

#[test]
fn a_service_that_is_dropped_ends_its_connections_its_threads_and_its_store() {
    on_both_runtimes(|| async {
        struct Dropped(mpsc::Sender<()>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                let _ = self.0.send(());
            }
        }
        let (dropped, is_dropped) = mpsc::channel();
        let (store, faults) = FlakyStore::new(Disk::default());
        let guard = Dropped(dropped);
        // The script, and so the guard, lives as long as the store and `faults` do.
        faults.script(move |_: &Call<'_>| {
            let _ = &guard;
            Ok(())
        });
        drop(faults);
        let service = Service::with_store(options().0, 2, store).unwrap();
        let (address, serving) = serve(&service).await;
        let mut alice = Client::connect(address, "notes", 1).await;
        alice.sync().await;
        let (near, far) = tokio::io::duplex(1 << 10);
        let of_stream = tokio::spawn({
            let service = service.clone();
            async move { service.accept_stream(far).await }
        });
        let mut bob = Client::over(near, "plans", 2).await.unwrap();
        bob.sync().await;
        // That task has a handle of its own: it ends where its stream is cut.
        drop(bob);
        of_stream.await.unwrap().unwrap();

        serving.abort();
        let _ = serving.await;
        drop(service);
        assert_eq!(alice.end().await, Heard::Cut);
        is_dropped.recv().expect("the store is dropped on its thread");
    });
}
