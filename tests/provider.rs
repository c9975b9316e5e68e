//! The client as exact exchanges: these inputs, exactly these outputs; and with a server over bad lines.
//!
//! The document is that of client 1, its text the root `t`; `text_insert(1, 0, "a")` is the update with
//! which client 1 types its first letter.
#![allow(clippy::disallowed_types, reason = "an observer of the application records what was written")]

mod support;

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Wake, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use proptest::prelude::*;
use support::{
    KEEPALIVE, NOTHING, after, epoch::epoch, first, presence, room, step1, step2, structs, text_delete,
    text_insert, update,
};
use yrs::{Doc, GetString, Map, ReadTxn, Text, Transact, WriteTxn, updates::decoder::Decode};
use yrs_websocket::{
    Access, ConnectionId, Join, Server,
    journal::{Journal, JournalLimits},
    message::Message,
    provider::{CloseReason, Config, End, Event, Input, Output, PresenceState, Provider},
    update::{ClientId, IdSet, Update},
};

mod connecting {
    use super::*;

    #[test]
    fn it_dials_when_it_is_started_and_asks_when_it_is_connected() {
        let mut c = Client::new();
        assert_eq!(c.pass(100_000), []);
        assert_eq!(c.handle(Input::Start), [Out::Connect]);
        assert_eq!(c.handle(Input::Connected), [event(Event::Connected), send(step1(&[]))]);
        assert_eq!(c.frame(step1(&[])), [send(step2(NOTHING))]);
        assert!(c.provider.is_connected() && !c.provider.is_synced());
        assert_eq!(c.frame(step2(NOTHING)), [event(Event::Synced)]);
        assert!(c.provider.is_synced());
    }

    #[test]
    fn presence_follows_the_question_and_edits_made_before_wait_for_that_of_the_server() {
        let mut c = Client::new();
        c.set_presence("{}");
        c.edit("a");
        assert_eq!(c.edited(), [event(Event::Unacknowledged)]);
        assert_eq!(c.handle(Input::Start), [Out::Connect]);
        assert_eq!(
            c.handle(Input::Connected),
            [event(Event::Connected), send(step1(&[(1, 1)])), send(presence(&[(1, 1, "{}")]))]
        );
        c.edit("b");
        assert_eq!(c.edited(), []);
        let ab = structs(&[(1, 0, &[first("ab")])], &[]);
        assert_eq!(c.frame(step1(&[])), [send(step2(ab))]);
        c.edit("c");
        assert_eq!(c.edited(), [send(update(text_insert(1, 2, "c")))]);
    }

    #[test]
    fn delays_double_with_jitter_and_start_anew_only_after_a_sync() {
        let mut c = Client::new();
        c.handle(Input::Start);
        let delays = (0..9).map(|_| c.retried()).collect::<Vec<_>>();
        assert_eq!(delays, [174, 231, 511, 1075, 1660, 5978, 6092, 9003, 6699]);
        // A server that lets in and closes is as far away.
        c.handle(Input::Connected);
        c.frame(step1(&[]));
        assert_eq!(c.retried(), 8092);
        c.handle(Input::Connected);
        c.frame(step2(NOTHING));
        assert_eq!(c.retried(), 120);
        assert_eq!(c.retried(), 298);
    }

    #[test]
    fn who_is_told_to_stay_away_does() {
        for (code, stays) in
            [(4399, false), (4400, true), (4401, true), (4499, true), (4500, false), (1013, false)]
        {
            let mut c = Client::synced();
            let end = End::Closed { code };
            let out = c.handle(Input::Disconnected { end: end.clone() });
            if stays {
                let stopped = Event::Stopped { unacknowledged: false };
                assert_eq!(out, [event(Event::Disconnected { end, retry_in: None }), event(stopped)]);
                assert_eq!(c.pass(1_000_000), []);
                assert!(c.provider.is_stopped());
                assert_eq!(c.handle(Input::Start), [Out::Connect]);
            } else {
                assert!(matches!(&out[..], [Out::Retry(End::Closed { .. }, _)]), "{out:?}");
                assert_eq!(c.pass(200), [Out::Connect]);
            }
        }
    }

    #[test]
    fn a_refusal_may_name_the_time() {
        let mut c = Client::new();
        c.handle(Input::Start);
        let end = End::Refused { status: 503, retry_after: Some(Duration::from_secs(5)) };
        assert_eq!(c.handle(Input::Disconnected { end: end.clone() }), [Out::Retry(end, 5174)]);
        assert_eq!(c.pass(5173), []);
        assert_eq!(c.pass(2), [Out::Connect]);
    }

    #[test]
    fn an_attempt_that_takes_too_long_is_given_up() {
        let mut c = Client::new();
        c.handle(Input::Start);
        assert_eq!(c.pass(9_999), []);
        let end = End::ByUs(CloseReason::ConnectTimeout);
        assert_eq!(c.pass(1), [Out::Close(1001), Out::Retry(end, 174)]);
    }

    #[test]
    fn who_knows_that_the_network_is_back_need_not_wait() {
        let mut c = Client::new();
        c.handle(Input::Start);
        c.handle(Input::Disconnected { end: End::Lost });
        assert_eq!(c.handle(Input::Start), [Out::Connect]);
        assert_eq!(c.handle(Input::Start), []);
    }

    #[test]
    fn a_silent_server_is_asked_once_and_then_given_up() {
        let mut c = Client::synced();
        assert_eq!(c.pass(29_999), []);
        assert_eq!(c.pass(1), [send(step1(&[]))]);
        assert_eq!(c.frame(step2(NOTHING)), []);
        assert_eq!(c.pass(30_000), [send(step1(&[]))]);
        assert_eq!(c.pass(14_999), []);
        let end = End::ByUs(CloseReason::Silent);
        let out = c.pass(1);
        assert!(matches!(&out[..], [Out::Close(1001), Out::Retry(found, _)] if *found == end), "{out:?}");
    }

    #[test]
    fn the_keepalive_of_a_server_is_not_silence() {
        let mut c = Client::synced();
        for _ in 0..5 {
            assert_eq!(c.pass(25_000), []);
            assert_eq!(c.frame(KEEPALIVE), []);
        }
    }

    #[test]
    fn a_resync_asks_again_and_again() {
        let mut config = Config::default();
        config.resync_interval = Some(Duration::from_secs(10));
        let mut c = Client::with(config, 1);
        c.sync();
        assert_eq!(c.pass(10_000), [send(step1(&[]))]);
        assert_eq!(c.pass(10_000), []);
        c.frame(step2(text_insert(2, 0, "x")));
        assert_eq!(c.text(), "x");
        assert_eq!(c.pass(10_000), [send(step1(&[(2, 1)]))]);
    }

    #[test]
    fn what_does_not_fit_is_ignored() {
        let mut c = Client::new();
        let lost = || Input::Disconnected { end: End::Lost };
        for input in
            [Input::Connected, lost(), Input::Congested, Input::Writable, Input::Timeout, Input::Edited]
        {
            assert_eq!(c.handle(input), []);
        }
        assert_eq!(c.frame(update(text_insert(2, 0, "x"))), []);
        assert_eq!(c.handle(Input::Leave { deadline: c.now }), []);
        c.handle(Input::Start);
        assert_eq!(c.frame(update(text_insert(2, 0, "x"))), []);
        c.handle(Input::Connected);
        assert_eq!(c.handle(Input::Connected), []);
        assert_eq!(c.text(), "");
    }
}

mod editing {
    use super::*;

    #[test]
    fn what_the_application_writes_goes_out_and_what_others_write_comes_in() {
        let mut c = Client::synced();
        c.edit("a");
        assert_eq!(c.edited(), [send(update(text_insert(1, 0, "a"))), event(Event::Unacknowledged)]);
        assert_eq!(c.frame(update(text_insert(2, 0, "x"))), []);
        assert_eq!(c.text().len(), 2);
        // It does not go back.
        assert_eq!(c.edited(), []);
    }

    #[test]
    fn edits_of_one_moment_go_out_as_one() {
        let mut c = Client::synced();
        c.edit("a");
        c.edit("b");
        let ab = structs(&[(1, 0, &[first("a"), after(1, 0, "b")])], &[]);
        assert_eq!(c.edited()[..1], [send(update(ab))]);
    }

    #[test]
    fn only_edits_wake() {
        let wakes = Arc::new(Count::default());
        let doc = Doc::with_client_id(1);
        let mut c = Client::over(Config::default(), doc, Waker::from(Arc::clone(&wakes)));
        c.edit("a");
        // Before the first input nothing is observed, and nothing missed.
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
        c.sync();
        assert!(c.provider.has_unacknowledged());
        c.edit("b");
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        c.frame(update(text_insert(2, 0, "x")));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        drop(c.provider);
        let text = c.doc.get_or_insert_text("t");
        text.insert(&mut c.doc.transact_mut(), 0, "c");
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn several_messages_in_a_frame_are_taken_and_one_question_answered() {
        let mut c = Client::synced();
        let frame = [step1(&[]), step1(&[]), update(text_insert(2, 0, "x")), step1(&[])].concat();
        assert_eq!(c.frame(frame), [send(step2(NOTHING))]);
        assert_eq!(c.text(), "x");
    }

    #[test]
    fn what_is_malformed_ends_the_connection_and_leaves_no_trace() {
        // A text of 100 bytes of which one is there; 50,000 nested arrays in an embed would be as bad.
        let cut_update = update([1, 1, 2, 0, 4, 1, 1, b't', 100, b'x', 0]);
        for frame in
            [vec![0], vec![0, 9, 0], vec![0x80], step1(&[(1, 1), (1, 2)]), cut_update, update([0, 0, 0])]
        {
            let mut c = Client::synced();
            let out = c.frame(frame.clone());
            assert!(
                matches!(&out[..], [Out::Close(1007), Out::Retry(End::ByUs(_), _)]),
                "{frame:?}: {out:?}"
            );
            assert_eq!(c.text(), "");
        }
        let mut c = Client::synced();
        assert_eq!(c.frame([1]), [event(Event::PresenceMalformed)]);
        assert_eq!(c.frame([1, 2, 1, 0]), [event(Event::PresenceMalformed)]);
        assert_eq!(
            c.frame([102, 7]),
            [event(Event::UnknownMessage { tag: 102, payload: Bytes::from_static(&[7]) })]
        );
    }

    #[test]
    fn an_open_transaction_of_the_application_holds_up_nothing_but_itself() {
        let mut c = Client::synced();
        let doc = c.doc.clone();
        let text = doc.get_or_insert_text("t");
        let mut transaction = doc.transact_mut();
        text.insert(&mut transaction, 0, "a");
        assert_eq!(c.frame([update(text_insert(2, 0, "x")), presence(&[(7, 1, "{}")])].concat()), []);
        assert_eq!(c.frame(step1(&[])), []);
        assert_eq!(c.pass(1000), []);
        drop(transaction);
        let out = c.pass(50);
        let a = text_insert(1, 0, "a");
        let both = structs(&[(2, 0, &[first("x")]), (1, 0, &[first("a")])], &[]);
        let present = Event::Presence { client: client(7), state: Some(Bytes::from_static(b"{}")) };
        assert_eq!(out, [send(update(&a)), event(present), send(step2(both)), event(Event::Unacknowledged)]);
    }

    #[test]
    fn a_connection_made_meanwhile_is_greeted_afterwards() {
        let mut c = Client::new();
        c.set_presence("{}");
        c.handle(Input::Start);
        let doc = c.doc.clone();
        let transaction = doc.transact_mut();
        assert_eq!(c.handle(Input::Connected), [event(Event::Connected)]);
        assert_eq!(c.frame(step1(&[])), []);
        drop(transaction);
        assert_eq!(c.pass(50), [send(step1(&[])), send(presence(&[(1, 1, "{}")])), send(step2(NOTHING))]);
    }

    #[test]
    fn a_document_that_is_occupied_for_too_long_ends_the_connection() {
        let mut config = Config::default();
        config.inbox_bytes_max = 20;
        let mut c = Client::with(config, 1);
        c.sync();
        let doc = c.doc.clone();
        let _transaction = doc.transact_mut();
        assert_eq!(c.frame(update(text_insert(2, 0, "x"))), []);
        let out = c.frame(update(text_insert(2, 1, "x")));
        assert!(
            matches!(&out[..], [Out::Close(1001), Out::Retry(End::ByUs(CloseReason::InboxFull), _)]),
            "{out:?}"
        );
    }

    #[test]
    fn what_an_observer_adds_to_what_came_goes_out() {
        let mut c = Client::synced();
        let is_done = AtomicUsize::new(0);
        c.doc
            .observe_after_transaction("answer", move |transaction| {
                if transaction.origin().is_some() && is_done.fetch_add(1, Ordering::Relaxed) == 0 {
                    let text = transaction.get_or_insert_text("t");
                    text.insert(transaction, 0, "a");
                }
            })
            .unwrap();
        let out = c.frame(update(text_insert(2, 0, "x")));
        // What came goes along, which does no harm.
        assert!(matches!(&out[..], [Out::Send(_), Out::Event(Event::Unacknowledged)]), "{out:?}");
        assert_eq!(c.text(), "ax");
        let Out::Send(frame) = &out[0] else { unreachable!() };
        assert_eq!(inserts(frame), [(1, 0..1), (2, 0..1)]);
        assert_eq!(c.provider.edit_counter().made(), 1);
    }

    #[test]
    fn what_came_is_no_change_of_the_application_for_not_even_a_moment() {
        let mut c = Client::synced();
        let counter = c.provider.edit_counter();
        assert_eq!(c.frame(update(text_insert(2, 0, "x"))), []);
        assert_eq!(c.text(), "x");
        // No event says that it was taken: whoever saw it counted would wait for one for ever.
        assert_eq!(counter.made(), 0);
    }

    #[test]
    fn what_integrating_deletes_does_not_go_out() {
        let mut c = Client::synced();
        let map = c.doc.get_or_insert_map("m");
        map.insert(&mut c.doc.transact_mut(), "k", 1.0);
        c.edited();
        // Somebody else overwrites it, which deletes what it was.
        let other = Doc::with_client_id(2);
        let theirs = other.get_or_insert_map("m");
        other.transact_mut().apply_update(state_of(&c.doc)).unwrap();
        theirs.insert(&mut other.transact_mut(), "k", 2.0);
        let known = c.doc.transact().state_vector();
        let news = other.transact().encode_diff_v1(&known);
        let news = [&news[..news.len() - 5], &[0]].concat();
        assert_eq!(c.frame(update(news)), []);
        assert_eq!(map.get(&c.doc.transact(), "k"), Some(2.0.into()));
    }

    #[test]
    fn a_panic_in_an_observer_ends_the_connection_and_nothing_else() {
        let mut c = Client::synced();
        c.doc.observe_update_v1("broken", |_, _| panic!("on purpose")).unwrap();
        let out = c.frame(update(text_insert(2, 0, "x")));
        assert!(
            matches!(
                &out[..],
                [
                    Out::Close(1011),
                    Out::Retry(End::ByUs(CloseReason::Panicked), _),
                    Out::Event(Event::Unacknowledged),
                ]
            ),
            "{out:?}"
        );
        assert_eq!(c.pass(200), [Out::Connect]);
        c.handle(Input::Connected);
        c.frame(step1(&[(2, 1)]));
        assert_eq!(c.frame(step2(NOTHING)), [event(Event::Synced), event(Event::Acknowledged)]);
        c.edit("a");
        assert!(matches!(&c.edited()[..], [Out::Send(_), Out::Event(Event::Unacknowledged)]));
    }

    #[test]
    fn a_panic_in_an_observer_of_the_application_s_own_edit_loses_nothing() {
        let mut c = Client::synced();
        c.doc.observe_update_v1("broken", |_, _| panic!("on purpose")).unwrap();
        assert!(catch_unwind(AssertUnwindSafe(|| c.edit("a"))).is_err());
        assert!(c.provider.has_unacknowledged());
        c.edit("b");
        // At the next occasion, here because nothing was heard, it is noticed.
        let out = c.pass(30_000);
        c.all_is_sent_again(out);
    }

    #[test]
    fn what_an_observer_of_a_type_keeps_from_being_told_is_sent_all_the_same() {
        use yrs::Observable as _;

        let mut c = Client::synced();
        let text = c.doc.get_or_insert_text("t");
        text.observe("broken", |_, _| panic!("on purpose"));
        assert!(catch_unwind(AssertUnwindSafe(|| c.edit("a"))).is_err());
        assert!(c.provider.has_unacknowledged());
        text.unobserve("broken");
        c.edit("b");
        assert!(c.provider.has_unacknowledged());
        let out = c.edited();
        c.all_is_sent_again(out);
    }

    #[test]
    fn a_transaction_that_changes_nothing_is_no_change() {
        let mut c = Client::synced();
        drop(c.doc.transact_mut());
        assert!(!c.provider.has_unacknowledged());
        assert_eq!(c.edited(), []);
    }

    #[test]
    fn two_providers_join_two_rooms_through_one_document() {
        let mut left = Client::synced();
        let mut right = Client::over(Config::default(), left.doc.clone(), Waker::noop().clone());
        right.sync();
        left.frame(update(text_insert(2, 0, "x")));
        assert_eq!(right.edited(), [send(update(text_insert(2, 0, "x"))), event(Event::Unacknowledged)]);
        assert_eq!(left.edited(), []);
    }

    #[test]
    fn it_may_be_sent_to_another_thread() {
        fn is_send<T: Send>(_: &T) {}
        is_send(&Client::new().provider);
    }
}

mod waiting {
    use super::*;

    #[test]
    fn what_lies_beyond_a_gap_is_shown_once_the_gap_is_filled() {
        let mut c = Client::synced();
        assert_eq!(c.frame(update(text_insert(2, 0, "x"))), []);
        assert_eq!(c.frame(update(text_insert(2, 2, "z"))), []);
        assert_eq!(c.text(), "x");
        assert_eq!(c.frame(update(text_insert(2, 1, "y"))), []);
        assert_eq!(c.text(), "xyz");
    }

    #[test]
    fn what_waits_is_said_to_who_asks_structs_and_deletes() {
        let mut c = Client::synced();
        c.frame(update(text_insert(2, 0, "x")));
        c.frame(update(text_insert(2, 2, "z")));
        c.frame(update(text_delete(2, 1, 1)));
        let waiting = structs(&[(2, 2, &[after(2, 1, "z")])], &[(2, 1, 1)]);
        let answer = [send(step2(text_insert(2, 0, "x"))), send(update(waiting))];
        assert_eq!(c.frame(step1(&[])), answer);
        c.frame(update(text_insert(2, 1, "y")));
        assert_eq!(c.text(), "xz");
    }

    #[test]
    fn what_the_application_brings_from_elsewhere_fills_gaps_too() {
        let mut c = Client::synced();
        c.frame(update(text_insert(2, 1, "y")));
        let saved = yrs::Update::decode_v1(&text_insert(2, 0, "x")).unwrap();
        c.doc.transact_mut().apply_update(saved).unwrap();
        let out = c.edited();
        assert_eq!(out, [send(update(text_insert(2, 0, "x"))), event(Event::Unacknowledged)]);
        assert_eq!(c.text(), "xy");
    }

    #[test]
    fn too_much_of_it_is_dropped_and_asked_for_again() {
        let mut config = Config::default();
        config.parked_bytes_max = 300;
        let mut c = Client::with(config, 1);
        c.sync();
        assert_eq!(c.frame(update(text_insert(2, 1, "y"))), []);
        assert_eq!(c.frame(update(text_insert(3, 1, "y"))), [send(step1(&[]))]);
        let all = structs(&[(3, 0, &[first("xy")]), (2, 0, &[first("x")])], &[]);
        assert_eq!(c.frame(step2(all)), []);
        assert_eq!(c.provider.doc().transact().state_vector().len(), 2);
        assert_eq!(c.text().len(), 4);
    }
}

mod acknowledging {
    use super::*;

    #[test]
    fn an_edit_is_acknowledged_when_it_comes_back() {
        let mut c = Client::synced();
        c.edit("a");
        c.edited();
        c.edit("b");
        assert_eq!(c.edited(), [send(update(text_insert(1, 1, "b")))]);
        assert_eq!(c.frame(update(text_insert(1, 0, "a"))), []);
        assert!(c.provider.has_unacknowledged());
        assert_eq!(c.frame(update(text_insert(1, 1, "b"))), [event(Event::Acknowledged)]);
        // A part of a run, and a delete.
        c.edit("cde");
        c.remove(0, 1);
        c.edited();
        assert_eq!(c.frame(update(text_insert(1, 2, "cd"))), []);
        assert_eq!(c.frame(update(text_insert(1, 4, "e"))), []);
        assert_eq!(c.frame(update(text_delete(1, 0, 1))), [event(Event::Acknowledged)]);
    }

    #[test]
    fn who_saw_a_change_hears_of_its_acknowledgement_even_if_both_are_one_step() {
        let mut c = Client::synced();
        let a = text_insert(2, 0, "a");
        // Another provider of the document brings it, and before this one has looked the server does.
        c.doc.transact_mut().apply_update(yrs::Update::decode_v1(&a).unwrap()).unwrap();
        assert_eq!((c.provider.edit_counter().made(), c.provider.edits_taken()), (1, 0));
        assert_eq!(c.frame(update(&a)), [send(update(&a)), event(Event::Acknowledged)]);
        assert_eq!(c.edited(), []);
    }

    #[test]
    fn nothing_is_as_long_as_an_open_transaction_keeps_the_document_from_being_observed() {
        let mut c = Client::new();
        let doc = c.doc.clone();
        let text = doc.get_or_insert_text("t");
        let mut transaction = doc.transact_mut();
        assert_eq!(c.handle(Input::Start), [Out::Connect, event(Event::Unacknowledged)]);
        text.insert(&mut transaction, 0, "a");
        drop(transaction);
        assert!(c.provider.has_unacknowledged());
        assert_eq!(c.edited(), []);
        assert!(c.provider.has_unacknowledged());
        c.handle(Input::Connected);
        c.frame(step1(&[]));
        let out = c.frame(step2(NOTHING));
        assert!(c.provider.has_unacknowledged() && !out.contains(&event(Event::Acknowledged)), "{out:?}");
    }

    #[test]
    fn what_the_server_began_with_is_acknowledged_once_the_question_is_answered() {
        let mut c = Client::restored("ab");
        c.handle(Input::Start);
        assert_eq!(c.handle(Input::Connected), [event(Event::Connected), send(step1(&[(1, 2)]))]);
        // The server has it, but perhaps not on its disk.
        assert_eq!(c.frame(step1(&[(1, 2)])), [send(step2(NOTHING))]);
        assert!(c.provider.has_unacknowledged());
        assert_eq!(c.frame(step2(NOTHING)), [event(Event::Synced), event(Event::Acknowledged)]);
    }

    #[test]
    fn what_others_bring_before_that_counts_only_then() {
        let mut c = Client::restored("ab");
        c.handle(Input::Start);
        c.handle(Input::Connected);
        c.frame(step1(&[]));
        // Somebody brings it who had it before the server crashed: it is not yet stored again.
        assert_eq!(c.frame(update(text_insert(1, 0, "ab"))), []);
        assert!(c.provider.has_unacknowledged());
        assert_eq!(c.frame(step2(NOTHING)), [event(Event::Synced), event(Event::Acknowledged)]);
    }

    #[test]
    fn deletes_are_acknowledged_by_those_of_the_answer() {
        let mut c = Client::restored("ab");
        c.remove(0, 1);
        c.handle(Input::Start);
        c.handle(Input::Connected);
        c.frame(step1(&[(1, 2)]));
        assert_eq!(c.frame(step2(NOTHING)), [event(Event::Synced)]);
        assert!(c.provider.has_unacknowledged());
        assert_eq!(c.frame(update(text_delete(1, 0, 1))), [event(Event::Acknowledged)]);
        let mut c = Client::restored("ab");
        c.remove(0, 1);
        c.handle(Input::Start);
        c.handle(Input::Connected);
        c.frame(step1(&[(1, 2)]));
        assert_eq!(c.frame(step2(text_delete(1, 0, 1))), [event(Event::Synced), event(Event::Acknowledged)]);
    }

    #[test]
    fn a_server_that_sends_nothing_back_is_asked_for_it() {
        let mut c = Client::synced();
        c.edit("a");
        c.edited();
        c.frame(update(text_insert(2, 0, "x")));
        assert_eq!(c.pass(4_999), []);
        // As somebody who has not what is not acknowledged.
        assert_eq!(c.pass(1), [send(step1(&[(2, 1)]))]);
        assert_eq!(c.pass(9_999), []);
        assert_eq!(c.frame(step2(text_insert(1, 0, "a"))), [event(Event::Acknowledged)]);
        assert_eq!(c.pass(20_000), []);
    }

    #[test]
    fn what_its_answer_lacks_is_sent_once_more_with_growing_delays() {
        let mut c = Client::synced();
        c.edit("a");
        c.edited();
        let a = || send(update(text_insert(1, 0, "a")));
        for delay in [5, 10, 20, 40, 60, 60] {
            assert_eq!(c.pass_alive(delay * 1000 - 1), []);
            assert_eq!(c.pass_alive(1), [send(step1(&[]))]);
            // Made after the question: its answer says nothing of it.
            assert_eq!(c.frame(step2(NOTHING)), [a()]);
        }
        assert_eq!(c.frame(update(text_insert(1, 0, "a"))), [event(Event::Acknowledged)]);
        c.edit("b");
        c.edited();
        assert_eq!(c.pass_alive(5000), [send(step1(&[(1, 1)]))]);
        c.edit("c");
        assert_eq!(c.edited(), [send(update(text_insert(1, 2, "c")))]);
        assert_eq!(c.frame(step2(text_insert(1, 1, "b"))), []);
        assert!(c.provider.has_unacknowledged());
    }

    #[test]
    fn who_may_not_write_is_told() {
        let mut c = Client::synced();
        c.edit("a");
        c.edited();
        assert_eq!(c.frame([2, 0, 2, b'n', b'o']), [event(Event::PermissionDenied { reason: "no".into() })]);
        c.pass(5000);
        assert_eq!(c.frame(step2(NOTHING)), []);
        let stopped = Event::Stopped { unacknowledged: true };
        assert_eq!(c.leave(60_000), [send(step1(&[])), Out::Close(1000), event(stopped)]);
    }

    #[test]
    fn what_comes_from_a_file_through_the_application_is_its_own() {
        let mut c = Client::synced();
        let file = Doc::with_client_id(9);
        file.get_or_insert_text("t").insert(&mut file.transact_mut(), 0, "old");
        c.doc.transact_mut().apply_update(state_of(&file)).unwrap();
        assert_eq!(c.edited(), [send(update(text_insert(9, 0, "old"))), event(Event::Unacknowledged)]);
    }
}

mod presence_of {
    use super::*;

    #[test]
    fn oneself_is_announced_and_renewed() {
        let mut c = Client::synced();
        assert_eq!(c.set_presence("{\"n\":1}"), [send(presence(&[(1, 1, "{\"n\":1}")]))]);
        assert_eq!(c.pass(14_999), []);
        assert_eq!(c.pass(1), [send(presence(&[(1, 2, "{\"n\":1}")]))]);
        // It comes back.
        assert_eq!(c.frame(presence(&[(1, 2, "{\"n\":1}")])), []);
        c.pass(10_000);
        assert_eq!(c.set_presence("2"), [send(presence(&[(1, 3, "2")]))]);
        assert_eq!(c.pass(14_999), []);
        assert_eq!(c.pass(1), [send(presence(&[(1, 4, "2")]))]);
        assert_eq!(c.handle(Input::SetPresence(None)), [send(presence(&[(1, 5, "null")]))]);
        assert_eq!(c.handle(Input::SetPresence(None)), []);
        assert_eq!(c.pass_alive(29_000), []);
        assert!(PresenceState::new("{").is_err());
    }

    #[test]
    fn oneself_cannot_be_removed_by_others() {
        let mut c = Client::synced();
        c.set_presence("1");
        assert_eq!(c.frame(presence(&[(1, 1, "null")])), [send(presence(&[(1, 2, "1")]))]);
        assert_eq!(c.frame(presence(&[(1, 9, "null")])), [send(presence(&[(1, 10, "1")]))]);
        assert_eq!(c.frame(presence(&[(1, 9, "null")])), []);
        // Somebody else under the same id: no quarrel, but the next renewal is newer.
        assert_eq!(c.frame(presence(&[(1, 20, "2")])), []);
        assert_eq!(c.pass(15_000), [send(presence(&[(1, 21, "1")]))]);
        // Nothing is newer than that, so it would go on for ever.
        assert_eq!(c.frame([1, 12, 1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f, 4, b'n', b'u', b'l', b'l']), []);
    }

    #[test]
    fn others_is_told_as_it_changes() {
        let mut c = Client::synced();
        let here = |client_id: u64, state: &'static str| {
            event(Event::Presence {
                client: client(client_id),
                state: Some(Bytes::from_static(state.as_bytes())),
            })
        };
        let gone = |client_id: u64| event(Event::Presence { client: client(client_id), state: None });
        assert_eq!(c.frame(presence(&[(7, 1, "1"), (8, 5, "2")])), [here(7, "1"), here(8, "2")]);
        assert_eq!(c.frame(presence(&[(7, 1, "3"), (8, 4, "3")])), []);
        assert_eq!(c.frame(presence(&[(7, 2, "3")])), [here(7, "3")]);
        // A renewal.
        assert_eq!(c.frame(presence(&[(7, 3, "3")])), []);
        assert_eq!(c.provider.presence().map(|(id, _)| id.get()).collect::<Vec<_>>(), [7, 8]);
        assert_eq!(c.frame(presence(&[(8, 5, "null")])), [gone(8)]);
        c.pass(10_000);
        assert_eq!(c.frame(presence(&[(8, 6, "2")])), [here(8, "2")]);
        c.pass(19_999);
        assert_eq!(c.pass(1), [gone(7)]);
        let out = c.handle(Input::Disconnected { end: End::Lost });
        assert_eq!(out[0], gone(8));
        assert_eq!(c.provider.presence().count(), 0);
        // The server says so again, with the clocks of then.
        c.pass(200);
        c.handle(Input::Connected);
        assert_eq!(c.frame(presence(&[(8, 6, "2")])), [here(8, "2")]);
    }

    #[test]
    fn oneself_is_newer_on_the_next_connection() {
        let mut c = Client::synced();
        c.set_presence("1");
        c.handle(Input::Disconnected { end: End::Lost });
        assert_eq!(c.pass(200), [Out::Connect]);
        assert_eq!(c.handle(Input::Connected)[2], send(presence(&[(1, 2, "1")])));
        assert_eq!(c.frame([3]), [send(presence(&[(1, 3, "1")]))]);
    }
}

mod leaving {
    use super::*;

    #[test]
    fn who_has_nothing_to_say_goes() {
        let mut c = Client::synced();
        c.set_presence("1");
        let stopped = event(Event::Stopped { unacknowledged: false });
        assert_eq!(c.leave(5000), [send(presence(&[(1, 2, "null")])), Out::Close(1000), stopped.clone()]);
        assert_eq!(c.pass(100_000), []);
        let mut c = Client::new();
        c.handle(Input::Start);
        assert_eq!(c.leave(5000), [Out::Close(1000), stopped.clone()]);
        c.handle(Input::Start);
        c.handle(Input::Disconnected { end: End::Lost });
        assert_eq!(c.leave(5000), [stopped]);
    }

    #[test]
    fn everything_is_sent_and_acknowledged_first() {
        let mut c = Client::synced();
        c.edit("a");
        // A server that sends back says so by itself; others answer the question.
        assert_eq!(
            c.leave(5000),
            [send(update(text_insert(1, 0, "a"))), send(step1(&[])), event(Event::Unacknowledged)]
        );
        c.edit("b");
        assert_eq!(c.edited(), [send(update(text_insert(1, 1, "b")))]);
        assert_eq!(c.frame(update(text_insert(1, 0, "a"))), []);
        let stopped = event(Event::Stopped { unacknowledged: false });
        assert_eq!(
            c.frame(update(text_insert(1, 1, "b"))),
            [event(Event::Acknowledged), Out::Close(1000), stopped]
        );
    }

    #[test]
    fn a_lost_connection_is_made_again_for_that() {
        let mut c = Client::restored("ab");
        c.handle(Input::Start);
        c.handle(Input::Disconnected { end: End::Lost });
        assert_eq!(c.leave(5000), []);
        assert_eq!(c.pass(1000), [Out::Connect]);
        c.handle(Input::Connected);
        assert_eq!(c.frame(step1(&[])), [send(step2(text_insert(1, 0, "ab")))]);
        assert_eq!(c.frame(step2(NOTHING)), [event(Event::Synced), send(step1(&[]))]);
        let stopped = event(Event::Stopped { unacknowledged: false });
        assert_eq!(
            c.frame(step2(text_insert(1, 0, "ab"))),
            [event(Event::Acknowledged), Out::Close(1000), stopped]
        );
    }

    #[test]
    fn the_deadline_comes_first() {
        let mut c = Client::synced();
        c.edit("a");
        c.leave(3000);
        assert_eq!(c.pass(2999), []);
        let stopped = event(Event::Stopped { unacknowledged: true });
        assert_eq!(c.pass(1), [Out::Close(1000), stopped]);
        assert_eq!(c.pass(100_000), []);
        // Nothing is lost: it is still in the document.
        c.handle(Input::Start);
        c.handle(Input::Connected);
        assert_eq!(c.frame(step1(&[])), [send(step2(text_insert(1, 0, "a")))]);
    }
}

mod congestion {
    use super::*;

    #[test]
    fn what_a_slow_server_missed_comes_as_one() {
        let mut c = Client::synced();
        c.set_presence("1");
        c.edit("a");
        c.edited();
        assert_eq!(c.frame(update(text_insert(1, 0, "a"))), [event(Event::Acknowledged)]);
        assert_eq!(c.handle(Input::Congested), []);
        for text in ["b", "c"] {
            c.edit(text);
            c.edited();
        }
        assert_eq!(c.set_presence("2"), []);
        assert_eq!(
            c.handle(Input::Writable),
            [send(presence(&[(1, 2, "2")])), send(update(text_insert(1, 1, "bc")))]
        );
        c.edit("d");
        assert_eq!(c.edited(), [send(update(text_insert(1, 3, "d")))]);
    }

    #[test]
    fn only_what_was_not_sent_is_and_an_open_transaction_may_hold_that_up() {
        let mut c = Client::synced();
        c.edit("a");
        c.edited();
        c.handle(Input::Congested);
        c.edit("b");
        c.edited();
        let doc = c.doc.clone();
        let transaction = doc.transact_mut();
        assert_eq!(c.handle(Input::Writable), []);
        drop(transaction);
        assert_eq!(c.pass(50), [send(update(text_insert(1, 1, "b")))]);
        assert_eq!(c.pass(50), []);
    }

    #[test]
    fn its_questions_are_answered_once_and_then() {
        let mut c = Client::synced();
        c.handle(Input::Congested);
        c.edit("a");
        c.edited();
        for _ in 0..10 {
            assert_eq!(c.frame(step1(&[])), []);
        }
        assert_eq!(c.handle(Input::Writable), [send(step2(text_insert(1, 0, "a")))]);
        assert_eq!(c.handle(Input::Writable), []);
    }
}

/// One thing that happens to the world: which, and to whom.
type Step = (u8, u8);

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn over_lines_that_are_cut_and_a_server_that_crashes_all_converge_and_what_is_acknowledged_is_stored(
        steps in prop::collection::vec((0..17u8, 0..3u8), 0..200),
        seed: u64,
    ) {
        World::new(seed).run(&steps);
    }
}

/// Two who delete the same at once: what one hears may be the other's delete, not yet stored, and nothing on
/// the wire tells it from its own.
#[test]
fn a_delete_that_somebody_else_made_too_may_be_acknowledged_by_theirs() {
    let steps = [(0, 1), (13, 1), (4, 1), (0, 1), (13, 2), (10, 0), (7, 2), (4, 1), (4, 2), (0, 1), (0, 1)];
    let more =
        [(7, 1), (0, 2), (4, 1), (4, 2), (7, 2), (7, 2), (4, 2), (0, 2), (0, 2), (7, 2), (4, 2), (7, 1)];
    let last = [(4, 2), (4, 2), (3, 2), (10, 0), (12, 0), (7, 1), (16, 1), (0, 0), (4, 0), (7, 1), (0, 2)];
    let ends = [(7, 1), (4, 0), (4, 2), (3, 1), (4, 0), (7, 1), (7, 1)];
    World::new(0).run(&[&steps[..], &more, &last, &ends].concat());
}

/// Messages that may be anything.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..12);
    prop_oneof![
        bytes(),
        bytes().prop_map(|bytes| support::framed(&[0, 0], &bytes)),
        bytes().prop_map(|bytes| update(&bytes)),
        bytes().prop_map(|bytes| support::framed(&[1], &bytes)),
        (0..4u8, 0..9u8).prop_map(|(client, clock)| update(text_insert(client, clock, "x"))),
        (0..4u8, 0..9u8).prop_map(|(client, clock)| step2(text_delete(client, clock, 1))),
        (0..4u8, 0..9u8).prop_map(|(client, clock)| step1(&[(client, clock)])),
        (0..4u8, 0..9u8).prop_map(|(client, clock)| presence(&[(client, clock, "null")])),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Nothing panics, spins, or is sent without a connection; and what was acknowledged stays so.
    #[test]
    fn whatever_comes_in_whatever_order_is_dealt_with(
        steps in prop::collection::vec((0..14u8, frames(), 0..40_000u64), 0..60),
    ) {
        let mut c = Client::new();
        let mut is_connected = false;
        for (what, frame, millis) in steps {
            let out = match what {
                0 => c.handle(Input::Start),
                1 | 2 => c.handle(Input::Connected),
                3..=6 => c.frame(frame),
                7 => {
                    c.edit("e");
                    c.edited()
                }
                8 => c.handle(Input::Disconnected { end: End::Lost }),
                9 => c.handle(Input::Congested),
                10 => c.handle(Input::Writable),
                11 => c.set_presence("1"),
                12 => c.leave(millis),
                _ => c.pass(millis),
            };
            if what == 8 {
                is_connected = false;
            }
            for out in out {
                match out {
                    Out::Event(Event::Connected) => is_connected = true,
                    Out::Connect | Out::Close(_) => is_connected = false,
                    Out::Send(_) => prop_assert!(is_connected),
                    Out::Retry(..) | Out::Event(_) => {}
                }
            }
            prop_assert_eq!(c.provider.is_connected(), is_connected);
        }
    }
}

/// A server, its disk, and clients on lines that keep the order and lose everything when they are cut.
struct World {
    server: Server,
    now: Instant,
    seed: u64,
    disk: Vec<Bytes>,
    /// Writes on their way to the disk.
    writes: VecDeque<yrs_websocket::Output>,
    clients: Vec<Line>,
    connections: u64,
}

struct Line {
    provider: Provider,
    doc: Doc,
    /// What the client wrote.
    made: Arc<Mutex<Vec<Bytes>>>,
    state: LineState,
    up: VecDeque<Bytes>,
    down: VecDeque<Bytes>,
}

#[derive(Clone, Copy, PartialEq)]
enum LineState {
    Down,
    Dialling,
    Open(ConnectionId),
}

impl World {
    fn new(seed: u64) -> Self {
        let clients = (1..=3).map(|id| {
            let doc = Doc::with_client_id(id);
            let made = Arc::new(Mutex::new(Vec::new()));
            let making = Arc::clone(&made);
            let record = move |transaction: &yrs::TransactionMut<'_>, event: &yrs::UpdateEvent| {
                if transaction.origin().is_none() {
                    making.lock().unwrap().push(Bytes::copy_from_slice(&event.update));
                }
            };
            doc.observe_update_v1("record", record).unwrap();
            let provider = Provider::new(Config::default(), doc.clone(), Waker::noop().clone(), seed ^ id);
            Line { provider, doc, made, state: LineState::Down, up: VecDeque::new(), down: VecDeque::new() }
        });
        Self {
            server: Server::new(yrs_websocket::Config::default(), seed),
            now: epoch(),
            seed,
            disk: Vec::new(),
            writes: VecDeque::new(),
            clients: clients.collect(),
            connections: 0,
        }
    }

    fn run(&mut self, steps: &[Step]) {
        for index in 0..self.clients.len() {
            // Some applications write while their provider starts.
            if self.seed >> index & 1 == 1 {
                self.start_occupied(index);
            } else {
                self.tell(index, Input::Start);
            }
            self.check();
            self.tell(index, Input::SetPresence(Some(PresenceState::new("{}").unwrap())));
        }
        for &(what, who) in steps {
            self.step(what, who as usize);
            self.check();
        }
        for _ in 0..3 {
            self.settle();
            self.pass(11_000);
        }
        self.settle();
        self.check();
        let texts: Vec<_> = self.clients.iter().map(|line| text_of(&line.doc)).collect();
        assert!(texts.windows(2).all(|pair| pair[0] == pair[1]), "{texts:?}");
        for line in &self.clients {
            assert!(line.provider.is_synced() && !line.provider.has_unacknowledged());
            assert_eq!(line.provider.presence().count(), 2);
        }
    }

    fn step(&mut self, what: u8, who: usize) {
        match what {
            0..=2 => self.edit(who, false),
            3 => self.edit(who, true),
            4..=6 => self.deliver_up(who),
            7..=9 => self.deliver_down(who),
            10 => self.write(),
            11 => self.cut(who),
            12 => self.pass(150),
            13..=15 => self.dialled(who),
            _ if who == 0 => self.crash(),
            _ => self.write(),
        }
    }

    /// What is acknowledged is on the disk. Where somebody else has deleted the same, their delete may be what
    /// was heard: it is theirs to keep until it is stored.
    fn check(&self) {
        let mut journal = Journal::new(JournalLimits::default());
        for update in &self.disk {
            journal.restore(&scan(update));
        }
        for (index, line) in self.clients.iter().enumerate() {
            if line.provider.has_unacknowledged() {
                continue;
            }
            let others = self.clients.iter().enumerate().filter(|(other, _)| *other != index);
            let mut deleted_by_others = IdSet::default();
            for update in others.flat_map(|(_, other)| other.made.lock().unwrap().clone()) {
                for (client, clocks) in scan(&update).deletes() {
                    deleted_by_others.insert(client, clocks);
                }
            }
            for update in &*line.made.lock().unwrap() {
                let update = scan(update);
                let only_deletes = update.inserts().next().is_none();
                let is_theirs = only_deletes
                    && update
                        .deletes()
                        .all(|(client, clocks)| deleted_by_others.contains_range(client, clocks));
                assert!(is_theirs || journal.knows(&update), "acknowledged, and not stored");
            }
        }
    }

    fn start_occupied(&mut self, who: usize) {
        let doc = self.clients[who].doc.clone();
        let text = doc.get_or_insert_text("t");
        let mut transaction = doc.transact_mut();
        self.tell(who, Input::Start);
        text.insert(&mut transaction, 0, "o");
    }

    fn edit(&mut self, who: usize, deletes: bool) {
        let doc = &self.clients[who].doc;
        let text = doc.get_or_insert_text("t");
        let mut transaction = doc.transact_mut();
        let len = text.len(&transaction);
        if !deletes {
            text.insert(&mut transaction, len / 2, "x");
        } else if len > 0 {
            text.remove_range(&mut transaction, len / 2, 1);
        }
        drop(transaction);
        self.tell(who, Input::Edited);
    }

    fn tell(&mut self, who: usize, input: Input) {
        for output in self.clients[who].provider.handle(self.now, input) {
            let line = &mut self.clients[who];
            match output {
                Output::Connect => line.state = LineState::Dialling,
                Output::Send { frame } => {
                    assert!(matches!(line.state, LineState::Open(_)), "sent without a connection");
                    line.up.push_back(frame);
                }
                Output::Close { reason } => panic!("nothing is wrong here: {reason}"),
                Output::Event(_) => {}
            }
        }
    }

    fn dialled(&mut self, who: usize) {
        if self.clients[who].state == LineState::Dialling {
            self.connections += 1;
            let connection = ConnectionId(self.connections);
            self.clients[who].state = LineState::Open(connection);
            let join = Join::new(connection, room(), Access::Write);
            self.tell_server(yrs_websocket::Input::Connected(join));
            self.tell(who, Input::Connected);
        }
    }

    fn deliver_up(&mut self, who: usize) {
        if let LineState::Open(connection) = self.clients[who].state
            && let Some(frame) = self.clients[who].up.pop_front()
        {
            self.tell_server(yrs_websocket::Input::Received { connection, frame });
        }
    }

    fn deliver_down(&mut self, who: usize) {
        if let Some(frame) = self.clients[who].down.pop_front() {
            self.tell(who, Input::Received { frame });
        }
    }

    fn cut(&mut self, who: usize) {
        let line = &mut self.clients[who];
        line.up.clear();
        line.down.clear();
        let state = std::mem::replace(&mut line.state, LineState::Down);
        if state != LineState::Down {
            self.tell(who, Input::Disconnected { end: End::Lost });
        }
        if let LineState::Open(connection) = state {
            self.tell_server(yrs_websocket::Input::Disconnected { connection });
        }
    }

    fn crash(&mut self) {
        self.writes.clear();
        self.seed += 1;
        self.server = Server::new(yrs_websocket::Config::default(), self.seed);
        for who in 0..self.clients.len() {
            self.cut(who);
        }
    }

    fn pass(&mut self, millis: u64) {
        let until = self.now + Duration::from_millis(millis);
        loop {
            let clients = self.clients.iter().filter_map(|line| line.provider.next_timeout());
            let next = clients.chain(self.server.next_timeout()).min();
            let Some(next) = next.filter(|next| *next <= until) else { break };
            self.now = self.now.max(next);
            for who in 0..self.clients.len() {
                self.tell(who, Input::Timeout);
            }
            self.tell_server(yrs_websocket::Input::Timeout);
        }
        self.now = until;
    }

    fn tell_server(&mut self, input: yrs_websocket::Input) {
        for output in self.server.handle(self.now, input) {
            match output {
                yrs_websocket::Output::Send { to, frame } => {
                    for to in to.iter() {
                        let line = self.clients.iter_mut().find(|line| line.state == LineState::Open(to));
                        line.unwrap().down.push_back(frame.clone());
                    }
                }
                yrs_websocket::Output::Event(_) => {}
                yrs_websocket::Output::Close { reason, .. } => panic!("nothing is wrong here: {reason}"),
                write => self.writes.push_back(write),
            }
        }
    }

    fn write(&mut self) {
        let input = match self.writes.pop_front() {
            None => return,
            Some(yrs_websocket::Output::Load { room }) => {
                yrs_websocket::Input::Loaded { room, updates: self.disk.clone() }
            }
            Some(yrs_websocket::Output::Append { room, seq, update }) => {
                self.disk.push(update);
                yrs_websocket::Input::Stored { room, seq }
            }
            Some(yrs_websocket::Output::Compact { room, seq, squash }) => {
                let squashed = squash.run();
                self.disk = squashed.updates().cloned().collect();
                yrs_websocket::Input::Compacted { room, seq, squashed }
            }
            Some(other) => panic!("no write: {other:?}"),
        };
        self.tell_server(input);
    }

    /// Everything on its way arrives.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            for who in 0..self.clients.len() {
                self.dialled(who);
                self.deliver_up(who);
                self.deliver_down(who);
            }
            self.write();
            let is_quiet = |line: &Line| {
                line.up.is_empty() && line.down.is_empty() && matches!(line.state, LineState::Open(_))
            };
            if self.clients.iter().all(is_quiet) && self.writes.is_empty() {
                self.pass(50);
                if self.clients.iter().all(is_quiet) && self.writes.is_empty() {
                    return;
                }
            }
            if self.clients.iter().any(|line| line.state == LineState::Down) {
                self.pass(100);
            }
        }
        panic!("it does not come to rest");
    }
}

/// An output as a value that compares and prints.
#[derive(Clone, PartialEq)]
enum Out {
    Connect,
    Send(Vec<u8>),
    Close(u16),
    /// The connection ended; it is tried again after so many milliseconds.
    Retry(End, u64),
    Event(Event),
}

impl std::fmt::Debug for Out {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect => write!(f, "connect"),
            Self::Send(frame) => write!(f, "send({frame:02x?})"),
            Self::Close(code) => write!(f, "close({code})"),
            Self::Retry(end, millis) => write!(f, "retry({end:?}, {millis})"),
            Self::Event(event) => write!(f, "{event:?}"),
        }
    }
}

fn send(frame: impl Into<Vec<u8>>) -> Out {
    Out::Send(frame.into())
}

fn event(event: Event) -> Out {
    Out::Event(event)
}

/// A provider, its document, and the time.
struct Client {
    provider: Provider,
    doc: Doc,
    now: Instant,
}

impl Client {
    fn new() -> Self {
        Self::with(Config::default(), 1)
    }

    fn with(config: Config, id: u64) -> Self {
        Self::over(config, Doc::with_client_id(id), Waker::noop().clone())
    }

    fn over(config: Config, doc: Doc, waker: Waker) -> Self {
        Self { provider: Provider::new(config, doc.clone(), waker, 42), doc, now: epoch() }
    }

    /// Connected to an empty room, and synced.
    fn synced() -> Self {
        let mut client = Self::new();
        client.sync();
        client
    }

    /// With a document that comes from somewhere.
    fn restored(text: &str) -> Self {
        let doc = Doc::with_client_id(1);
        doc.get_or_insert_text("t").insert(&mut doc.transact_mut(), 0, text);
        let mut client = Self::over(Config::default(), doc, Waker::noop().clone());
        assert_eq!(client.edited(), [event(Event::Unacknowledged)]);
        client
    }

    fn sync(&mut self) {
        self.handle(Input::Start);
        self.handle(Input::Connected);
        self.frame(step1(&[]));
        assert!(self.frame(step2(NOTHING)).contains(&event(Event::Synced)));
    }

    /// It is noticed that two letters were not observed: what came of that is `out`, and they are sent.
    fn all_is_sent_again(&mut self, out: Vec<Out>) {
        let end = End::ByUs(CloseReason::Unobserved);
        assert_eq!(out, [Out::Close(1001), Out::Retry(end, 174), event(Event::Unacknowledged)]);
        assert_eq!(self.pass(200), [Out::Connect]);
        self.handle(Input::Connected);
        let out = self.frame(step1(&[]));
        assert!(matches!(&out[..], [Out::Send(frame)] if inserts(frame) == [(1, 0..2)]), "{out:?}");
    }

    fn handle(&mut self, input: Input) -> Vec<Out> {
        let is_timeout = matches!(input, Input::Timeout);
        let outputs = self.provider.handle(self.now, input);
        if is_timeout {
            let next = self.provider.next_timeout();
            assert!(next.is_none_or(|next| next > self.now), "it spins");
        }
        let out = outputs.into_iter().map(|output| match output {
            Output::Connect => Out::Connect,
            Output::Send { frame } => {
                let messages: Result<Vec<_>, _> = Message::decode(&frame).collect();
                assert_eq!(messages.map(|messages| messages.len()), Ok(1), "{frame:02x?}");
                Out::Send(frame.into())
            }
            Output::Close { reason } => Out::Close(reason.code()),
            Output::Event(Event::Disconnected { end, retry_in: Some(delay) }) => {
                Out::Retry(end, delay.as_millis() as u64)
            }
            Output::Event(event) => Out::Event(event),
        });
        out.collect()
    }

    fn frame(&mut self, frame: impl Into<Vec<u8>>) -> Vec<Out> {
        self.handle(Input::Received { frame: Bytes::from(frame.into()) })
    }

    fn edited(&mut self) -> Vec<Out> {
        self.handle(Input::Edited)
    }

    fn set_presence(&mut self, json: &str) -> Vec<Out> {
        self.handle(Input::SetPresence(Some(PresenceState::new(json).unwrap())))
    }

    fn leave(&mut self, millis: u64) -> Vec<Out> {
        self.handle(Input::Leave { deadline: self.now + Duration::from_millis(millis) })
    }

    /// Lets time pass, and gives every timeout on the way; what all of them did.
    fn pass(&mut self, millis: u64) -> Vec<Out> {
        let until = self.now + Duration::from_millis(millis);
        let mut out = Vec::new();
        while let Some(next) = self.provider.next_timeout().filter(|next| *next <= until) {
            self.now = self.now.max(next);
            out.extend(self.handle(Input::Timeout));
        }
        self.now = until;
        out
    }

    /// The same on a connection that the server keeps alive.
    fn pass_alive(&mut self, millis: u64) -> Vec<Out> {
        let mut out = Vec::new();
        let mut left = millis;
        while left > 0 {
            let step = left.min(10_000);
            out.extend(self.frame(KEEPALIVE));
            out.extend(self.pass(step));
            left -= step;
        }
        out
    }

    /// The connection is lost, and tried again; after which delay.
    fn retried(&mut self) -> u64 {
        let out = self.handle(Input::Disconnected { end: End::Lost });
        let [Out::Retry(End::Lost, delay)] = out[..] else { panic!("{out:?}") };
        assert_eq!(self.pass(delay - 1), []);
        assert_eq!(self.pass(2), [Out::Connect]);
        delay
    }

    fn edit(&mut self, text: &str) {
        let root = self.doc.get_or_insert_text("t");
        let mut transaction = self.doc.transact_mut();
        let len = root.len(&transaction);
        root.insert(&mut transaction, len, text);
    }

    fn remove(&mut self, from: u32, len: u32) {
        let root = self.doc.get_or_insert_text("t");
        root.remove_range(&mut self.doc.transact_mut(), from, len);
    }

    fn text(&self) -> String {
        text_of(&self.doc)
    }
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn text_of(doc: &Doc) -> String {
    let root = doc.get_or_insert_text("t");
    root.get_string(&doc.transact())
}

fn state_of(doc: &Doc) -> yrs::Update {
    let state = doc.transact().encode_state_as_update_v1(&yrs::StateVector::default());
    yrs::Update::decode_v1(&state).unwrap()
}

fn client(id: u64) -> ClientId {
    ClientId::new(id).unwrap()
}

fn scan(update: &Bytes) -> Update {
    Update::scan(update.clone(), &Default::default()).unwrap()
}

/// What the update in a frame inserts.
fn inserts(frame: &[u8]) -> Vec<(u64, std::ops::Range<u64>)> {
    let frame = Bytes::copy_from_slice(frame);
    let (Some(Ok(Message::Update(update) | Message::SyncStep2(update))), ..) =
        (Message::decode(&frame).next(),)
    else {
        panic!("no update: {frame:02x?}");
    };
    let mut inserts: Vec<_> =
        scan(&update).inserts().map(|(client, clocks)| (client.get(), clocks)).collect();
    inserts.sort_by_key(|(client, _)| *client);
    inserts
}
