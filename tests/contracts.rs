//! The contracts of the crate docs as exact exchanges: these inputs, exactly these outputs.
//!
//! Connections are numbers, the room is `r`, its text is the root `t`; `text_insert(1, 0, "a")` is the
//! update with which client 1 types its first letter. After every step the world checks what every host
//! relies on: nothing for who is closed or congested, one write at a time, no gaps, no spinning.

mod support;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use bytes::Bytes;
use support::*;
use yrs::{GetString, ReadTxn, Text, Transact, WriteTxn, updates::decoder::Decode};
use yrs_websocket::{
    Access, Config, ConnectionId, Echo, Event, Input, Join, Output, Refusal, RoomName, view::ViewError,
};

mod order {
    use super::*;

    #[test]
    fn the_greeting_is_sync_step_1_and_then_presence_a_frame_each() {
        let mut w = World::new(Config::default());
        assert_eq!(w.join(1), [load()]);
        assert_eq!(w.loaded(&[&text_insert(1, 0, "a")]), [send([1], [0, 0, 3, 1, 1, 1])]);
        assert_eq!(w.frame(1, presence(&[(7, 1, "{}")])), [send([1], [1, 6, 1, 7, 1, 2, b'{', b'}'])]);
        assert_eq!(w.join(2), [send([2], [0, 0, 3, 1, 1, 1]), send([2], [1, 6, 1, 7, 1, 2, b'{', b'}'])]);
        assert_eq!(
            w.events(),
            [
                Event::Joined { room: room(), connection: ConnectionId(1) },
                Event::RoomOpened { room: room() },
                Event::Joined { room: room(), connection: ConnectionId(2) },
            ]
        );
    }

    #[test]
    fn sync_step_1_is_answered_with_what_is_missing() {
        let mut w = World::open(Config::default(), [1]);
        assert_eq!(w.frame(1, [0, 0, 1, 0]), [send([1], [0, 1, 2, 0, 0])]);
        let ab = [1, 1, 1, 0, 4, 1, 1, b't', 2, b'a', b'b', 0];
        w.frame(1, update(ab));
        w.stored(1);
        assert_eq!(w.frame(1, step1(&[])), [send([1], step2(ab))]);
        // Client 1 has the first of the two letters: the other one, behind it.
        assert_eq!(w.frame(1, step1(&[(1, 1)])), [send([1], step2([1, 1, 1, 1, 0x84, 1, 0, 1, b'b', 0]))]);
        assert_eq!(w.frame(1, step1(&[(1, 2)])), [send([1], step2(NOTHING))]);
        // It has more than the server.
        assert_eq!(w.frame(1, step1(&[(1, 9), (2, 2)])), [send([1], step2(NOTHING))]);
    }

    #[test]
    fn who_ask_the_same_share_one_answer() {
        let mut w = World::open(Config::default(), [1, 2, 3]);
        w.frame(1, update(text_insert(1, 0, "a")));
        let [one, other] = [2, 3].map(|id| {
            let frame = Bytes::from(step1(&[]));
            let out = w.server.handle(w.now, Input::Received { connection: ConnectionId(id), frame });
            let [Output::Send { frame, .. }] = &out[..] else { panic!("{out:?}") };
            frame.clone()
        });
        assert_eq!(one, step2(text_insert(1, 0, "a")));
        assert_eq!(one.as_ptr(), other.as_ptr());
    }

    #[test]
    fn several_messages_in_one_frame_are_answered_one_by_one() {
        let mut w = World::open(Config::default(), [1, 2]);
        let a = text_insert(1, 0, "a");
        let frame = [step1(&[]), presence(&[(7, 1, "{}")]), update(&a), vec![3]].concat();
        assert_eq!(
            w.frame(1, frame),
            [
                send([1], step2(NOTHING)),
                send([1, 2], presence(&[(7, 1, "{}")])),
                send([2], update(&a)),
                append(1, a),
                send([1], presence(&[(7, 1, "{}")])),
            ]
        );
    }

    #[test]
    fn who_asks_for_presence_gets_all_of_it() {
        let mut w = World::open(Config::default(), [1, 2]);
        assert_eq!(w.frame(2, [3]), []);
        w.frame(1, presence(&[(7, 1, "{}"), (8, 3, "[1]")]));
        assert_eq!(w.frame(2, [3]), [send([2], presence(&[(7, 1, "{}"), (8, 3, "[1]")]))]);
        // The client of y-sweet sends its own along: it is ignored.
        assert_eq!(w.frame(2, [3, 6, 1, 9, 1, 2, b'{', b'}']).len(), 1);
        assert_eq!(w.server.room(&room()).unwrap().awareness().present(), 2);
    }

    #[test]
    fn what_nobody_knows_is_an_event_and_else_ignored() {
        let mut w = World::open(Config::default(), [1, 2]);
        for (frame, tag, payload) in [(&[102, 1, 7][..], 102, &[1, 7][..]), (&[2, 1], 2, &[1])] {
            assert_eq!(w.frame(1, frame), []);
            let payload = Bytes::copy_from_slice(payload);
            let connection = ConnectionId(1);
            assert_eq!(w.events(), [Event::UnknownMessage { room: room(), connection, tag, payload }]);
        }
        assert_eq!(w.frame(1, DENIED), []);
    }
}

mod storing {
    use super::*;

    #[test]
    fn one_write_is_outstanding_and_what_is_flushed_meanwhile_becomes_the_next() {
        let mut w = World::open(Config::default(), [1, 2]);
        let [a, b, c] = [(0, "a"), (1, "b"), (2, "c")].map(|(clock, text)| text_insert(1, clock, text));
        assert_eq!(w.frame(1, update(&a)), [send([2], update(&a)), append(1, &a[..])]);
        w.pass(10);
        assert_eq!(w.frame(1, update(&b)), [send([2], update(&b))]);
        w.pass(10);
        assert_eq!(w.frame(1, update(&c)), [send([2], update(&c))]);
        let bc = structs(&[(1, 1, &[after(1, 0, "b"), after(1, 1, "c")])], &[]);
        assert_eq!(w.stored(1), [send([1], update(&a)), append(2, &bc[..])]);
        assert_eq!(w.stored(2), [send([1], update(&bc))]);
        w.pass(10);
        let d = text_insert(1, 3, "d");
        assert_eq!(w.frame(1, update(&d)), [send([2], update(&d)), append(3, &d[..])]);
    }

    #[test]
    fn answers_that_nobody_waits_for_are_ignored() {
        let mut w = World::open(Config::default(), [1]);
        assert_eq!(w.stored(0), []);
        assert_eq!(w.stored(1), []);
        let a = text_insert(1, 0, "a");
        assert_eq!(w.frame(1, update(&a)), [append(1, &a[..])]);
        assert_eq!(w.stored(2), []);
        assert_eq!(w.stored(1), [send([1], update(&a))]);
        assert_eq!(w.stored(1), []);
    }

    #[test]
    fn a_long_tail_is_squashed_and_edits_meanwhile_wait() {
        let mut w = World::open(config(|config| config.squash_count = 2), [1]);
        let [a, b, c] = [(0, "a"), (1, "b"), (2, "c")].map(|(clock, text)| text_insert(1, clock, text));
        w.frame(1, update(&a));
        w.stored(1);
        w.pass(10);
        assert_eq!(w.frame(1, update(&b)), [append(2, &b[..])]);
        assert_eq!(w.stored(2), [send([1], update(&b)), Out::Compact(2)]);
        w.pass(10);
        assert_eq!(w.frame(1, update(&c)), []);
        let (_, seq, squash) = w.squashes.pop().unwrap();
        let squashed = squash.run();
        assert_eq!(squashed.updates().collect::<Vec<_>>(), [&text_insert(1, 0, "ab")[..]]);
        assert_eq!(w.compacted(seq, squashed), [append(3, &c[..])]);
        assert_eq!(w.stored(3), [send([1], update(&c))]);
    }
}

mod echo {
    use super::*;

    #[test]
    fn an_author_to_whom_another_brings_its_edit_after_a_crash_gets_it_once_it_is_stored() {
        // 1 wrote "a" and 2 got it, and the server crashed before it was stored. Both come back.
        let mut w = World::open(Config::default(), [1, 2, 3]);
        let a = text_insert(1, 0, "a");
        assert_eq!(w.frame(1, step1(&[(1, 1)])), [send([1], step2(NOTHING))]);
        assert_eq!(w.frame(2, step2(&a)), [send([3], update(&a)), append(1, &a[..])]);
        assert_eq!(w.stored(1), [send([1, 2], update(&a))]);
    }

    #[test]
    fn who_has_not_said_what_it_has_gets_what_is_durable() {
        // It is anybody's: 2 may have made it before a crash, and be on its way to say so.
        let mut w = World::open(Config::default(), [1, 3]);
        w.join(2);
        let (a, b) = (text_insert(1, 0, "a"), text_insert(1, 1, "b"));
        assert_eq!(w.frame(1, update(&a)), [send([3], update(&a)), append(1, &a[..])]);
        assert_eq!(w.stored(1), [send([1, 2], update(&a))]);
        // It asks before the next change, which is then not its own.
        assert_eq!(w.frame(2, step1(&[(1, 1)])), [send([2], step2(NOTHING))]);
        w.pass(10);
        assert_eq!(w.frame(1, update(&b)), [send([2, 3], update(&b)), append(2, &b[..])]);
    }

    #[test]
    fn an_author_of_deletes_to_whom_another_brings_them_after_a_crash_gets_them_once_they_are_stored() {
        let mut w = World::open(Config::default(), [3]);
        let abc = text_insert(1, 0, "abc");
        w.frame(3, update(&abc));
        w.stored(1);
        w.pass(10);
        let [of_1, of_2] = [text_delete(1, 0, 1), text_delete(1, 2, 1)];
        w.join(1);
        w.join(2);
        for connection in [1, 2] {
            w.frame(connection, step1(&[(1, 3)]));
        }
        assert_eq!(w.frame(2, step2(&of_1)), [send([3], update(&of_1)), append(2, &of_1[..])]);
        assert_eq!(w.stored(2), [send([1, 2], update(&of_1))]);
        // 1 has answered too: what comes now is not its own.
        assert_eq!(w.frame(1, step2(&of_1)), []);
        w.pass(10);
        assert_eq!(w.frame(2, update(&of_2)), [send([1, 3], update(&of_2)), append(3, &of_2[..])]);
    }

    #[test]
    fn who_waits_for_an_answer_gets_all_of_it_at_once() {
        let mut w = World::open(Config::default(), [1, 2]);
        let [a, b] = [(0, "a"), (1, "b")].map(|(clock, text)| text_insert(1, clock, text));
        w.frame(1, update(&a));
        // 2 has what is not yet stored, from an earlier connection.
        assert_eq!(w.frame(2, step1(&[(1, 1)])), []);
        w.pass(10);
        assert_eq!(w.frame(1, update(&b)), []);
        assert_eq!(w.stored(1), [send([1], update(&a)), append(2, &b[..]), send([2], step2(&b))]);
    }

    #[test]
    fn peers_get_an_edit_at_once_and_its_author_when_it_is_durable() {
        let mut w = World::open(Config::default(), [1, 2, 3]);
        let a = text_insert(1, 0, "a");
        assert_eq!(w.frame(2, update(&a)), [send([1, 3], update(&a)), append(1, &a[..])]);
        w.pass(1000);
        assert_eq!(w.stored(1), [send([2], update(&a))]);
    }

    #[test]
    fn at_once_or_never_if_so_configured() {
        let a = text_insert(1, 0, "a");
        let mut w = World::open(config(|config| config.echo = Echo::Immediate), [1, 2]);
        assert_eq!(w.frame(1, update(&a)), [send([1, 2], update(&a)), append(1, &a[..])]);
        assert_eq!(w.frame(1, step1(&[])), [send([1], step2(&a))]);
        assert_eq!(w.stored(1), []);
        let mut w = World::open(config(|config| config.echo = Echo::Off), [1, 2]);
        assert_eq!(w.frame(1, update(&a)), [send([2], update(&a)), append(1, &a[..])]);
        assert_eq!(w.frame(1, step1(&[])), [send([1], step2(&a))]);
        assert_eq!(w.stored(1), []);
    }

    #[test]
    fn an_answer_that_would_carry_ones_own_edit_waits_and_a_stranger_does_not() {
        let mut w = World::open(Config::default(), [1, 2]);
        let a = text_insert(1, 0, "a");
        w.frame(1, update(&a));
        assert_eq!(w.frame(1, step1(&[(1, 1)])), []);
        assert_eq!(w.frame(2, step1(&[])), [send([2], step2(&a))]);
        assert_eq!(w.frame(2, step1(&[(5, 3)])), [send([2], step2(&a))]);
        assert_eq!(w.stored(1), [send([1], update(&a)), send([1], step2(NOTHING))]);
    }

    #[test]
    fn an_edit_that_is_not_yet_flushed_counts_as_well() {
        let mut w = World::open(Config::default(), [1, 2]);
        let (a, b) = (text_insert(1, 0, "a"), text_insert(2, 0, "b"));
        w.frame(1, update(&a));
        assert_eq!(w.frame(2, update(&b)), []);
        assert_eq!(w.frame(2, step1(&[])), []);
        assert_eq!(w.stored(1), [send([1], update(&a))]);
        assert_eq!(w.pass(10), [send([1], update(&b)), append(2, &b[..])]);
        let both = structs(&[(2, 0, &[first("b")]), (1, 0, &[first("a")])], &[]);
        assert_eq!(w.stored(2), [send([2], update(&b)), send([2], step2(both))]);
    }

    #[test]
    fn an_author_that_came_back_is_known_by_its_state_vector() {
        let mut w = World::open(Config::default(), [1]);
        let a = text_insert(1, 0, "a");
        w.frame(1, update(&a));
        w.leave(1);
        assert_eq!(w.join(2), [send([2], step1(&[(1, 1)]))]);
        assert_eq!(w.frame(2, step1(&[(1, 1)])), []);
        assert_eq!(w.stored(1), [send([2], step2(NOTHING))]);
    }

    #[test]
    fn an_author_of_deletes_that_came_back_waits_too() {
        let mut w = World::open(Config::default(), [1, 2]);
        w.frame(2, update(text_insert(1, 0, "abc")));
        w.stored(1);
        w.pass(10);
        w.frame(1, update(text_delete(1, 1, 1)));
        w.leave(1);
        w.join(3);
        assert_eq!(w.frame(3, step1(&[(1, 3)])), []);
        assert_eq!(w.stored(2), [send([3], step2(text_delete(1, 1, 1)))]);
    }

    #[test]
    fn an_author_that_came_back_before_its_edit_was_flushed_waits_too() {
        let mut w = World::open(Config::default(), [1, 2]);
        let (a, x) = (text_insert(1, 0, "a"), text_insert(2, 0, "x"));
        w.frame(2, update(&x));
        w.frame(1, update(&a));
        w.leave(1);
        w.join(3);
        assert_eq!(w.frame(3, step1(&[(1, 1)])), []);
        assert_eq!(w.pass(10), [send([2], update(&a))]);
        assert_eq!(w.stored(1), [send([2], update(&x)), append(2, &a[..])]);
        assert_eq!(w.stored(2), [send([3], step2(&x))]);
    }

    #[test]
    fn what_an_author_sent_before_it_came_back_holds_up_its_question_even_while_not_flushed() {
        let mut w = World::open(Config::default(), [1, 2]);
        w.frame(1, update(text_insert(1, 0, "abc")));
        w.stored(1);
        w.pass(10);
        w.frame(2, update(text_delete(1, 0, 1)));
        w.join(3);
        assert_eq!(w.frame(3, step1(&[(1, 3)])), []);
        // It came over the connection that is lost, after the question and before the answer.
        assert_eq!(w.frame(1, update(text_delete(1, 1, 1))), []);
        assert_eq!(w.frame(3, step2(text_delete(1, 1, 1))), []);
        assert_eq!(w.stored(2), [send([2], update(text_delete(1, 0, 1)))]);
        assert_eq!(w.pass(10), [send([2], update(text_delete(1, 1, 1))), append(3, text_delete(1, 1, 1))]);
        assert_eq!(
            w.stored(3),
            [send([1], update(text_delete(1, 1, 1))), send([3], step2(text_delete(1, 0, 2)))]
        );
    }

    #[test]
    fn others_who_write_all_the_time_do_not_keep_one_from_its_answer() {
        let mut w = World::open(Config::default(), [1, 2]);
        w.frame(1, update(text_insert(1, 0, "abcdef")));
        w.stored(1);
        w.pass(10);
        w.frame(1, update(text_delete(1, 0, 1)));
        w.pass(10);
        // Connection 2 may be the one who deleted, under another number.
        assert_eq!(w.frame(2, step1(&[(1, 6)])), []);
        assert_eq!(w.frame(2, step2(NOTHING)), []);
        w.frame(1, update(text_delete(1, 1, 1)));
        // The first is durable, the second was there when connection 2 asked; the third was not.
        let out = w.stored(2);
        assert!(out.contains(&send([2], step2(text_delete(1, 0, 2)))), "{out:?}");
    }

    #[test]
    fn two_authors_in_one_batch_each_get_the_others_part_at_once() {
        let mut w = World::open(Config::default(), [1, 2, 3]);
        let a = text_insert(1, 0, "a");
        w.frame(3, update(text_insert(3, 0, "x")));
        w.stored(1);
        w.frame(1, update(&a));
        assert_eq!(w.frame(2, update(text_insert(2, 0, "b"))), []);
        let both = structs(&[(2, 0, &[first("b")]), (1, 0, &[first("a")])], &[]);
        assert_eq!(
            w.pass(10),
            [
                send([3], update(&both)),
                send([1], update(text_insert(2, 0, "b"))),
                send([2], update(&a)),
                append(2, &both[..]),
            ]
        );
        assert_eq!(w.stored(2), [send([1, 2], update(&both))]);
    }
}

mod congestion {
    use super::*;

    #[test]
    fn nothing_while_congested_and_one_diff_of_what_was_missed_afterwards() {
        let mut w = World::open(Config::default(), [1, 2]);
        for (clock, text) in [(0, "a"), (1, "b"), (2, "c")] {
            if clock == 1 {
                w.congested(2);
            }
            let letter = text_insert(1, clock, text);
            let out = w.frame(1, update(&letter));
            let seq = u64::from(clock) + 1;
            if clock == 0 {
                assert_eq!(out, [send([2], update(&letter)), append(seq, letter)]);
            } else {
                assert_eq!(out, [append(seq, letter)]);
            }
            w.stored(seq);
            w.pass(10);
        }
        let bc = structs(&[(1, 1, &[after(1, 0, "b"), after(1, 1, "c")])], &[]);
        assert_eq!(w.writable(2), [send([2], update(bc))]);
        let d = text_insert(1, 3, "d");
        assert_eq!(w.frame(1, update(&d)), [send([2], update(&d)), append(4, &d[..])]);
    }

    #[test]
    fn who_missed_nothing_is_sent_nothing() {
        let mut w = World::open(Config::default(), [1, 2]);
        w.frame(1, update(text_insert(1, 0, "a")));
        w.congested(2);
        assert_eq!(w.writable(2), []);
        // Writable without having been congested.
        assert_eq!(w.writable(2), []);
    }

    #[test]
    fn what_waited_in_the_batch_was_missed() {
        let mut w = World::open(Config::default(), [1, 2]);
        w.frame(1, update(text_insert(1, 0, "a")));
        w.stored(1);
        w.frame(1, update(text_insert(1, 1, "b")));
        w.congested(2);
        assert_eq!(w.pass(10), [append(2, text_insert(1, 1, "b"))]);
        assert_eq!(w.writable(2), [send([2], update(text_insert(1, 1, "b")))]);
    }

    #[test]
    fn deletes_are_missed_like_anything_else() {
        let mut w = World::open(Config::default(), [1, 2]);
        w.frame(1, update(text_insert(1, 0, "abc")));
        w.stored(1);
        w.pass(10);
        w.congested(2);
        assert_eq!(w.frame(1, update(text_delete(1, 1, 1))), [append(2, text_delete(1, 1, 1))]);
        w.stored(2);
        assert_eq!(w.writable(2), [send([2], update(text_delete(1, 1, 1)))]);
    }

    #[test]
    fn an_echo_that_was_missed_is_in_the_diff() {
        let mut w = World::open(Config::default(), [1, 2]);
        let a = text_insert(1, 0, "a");
        w.frame(1, update(&a));
        w.congested(1);
        assert_eq!(w.stored(1), []);
        assert_eq!(w.writable(1), [send([1], update(&a))]);
    }

    #[test]
    fn a_diff_that_would_carry_ones_own_edit_waits_for_the_store() {
        let mut w = World::open(Config::default(), [1, 2]);
        let (a, b) = (text_insert(1, 0, "a"), text_insert(2, 0, "b"));
        w.frame(1, update(&a));
        w.congested(1);
        w.pass(10);
        assert_eq!(w.frame(2, update(&b)), []);
        assert_eq!(w.writable(1), []);
        let both = structs(&[(2, 0, &[first("b")]), (1, 0, &[first("a")])], &[]);
        assert_eq!(w.stored(1), [send([1], update(&a)), append(2, &b[..]), send([1], update(both))]);
    }

    #[test]
    fn a_catch_up_that_waits_survives_another_congestion() {
        let mut w = World::open(Config::default(), [1, 2]);
        let (a, b) = (text_insert(1, 0, "a"), text_insert(2, 0, "b"));
        w.frame(1, update(&a));
        w.congested(1);
        w.pass(10);
        w.frame(2, update(&b));
        // The catch-up with "b" waits for the store, because of "a".
        assert_eq!(w.writable(1), []);
        w.congested(1);
        assert_eq!(w.stored(1), [append(2, &b[..])]);
        let both = structs(&[(2, 0, &[first("b")]), (1, 0, &[first("a")])], &[]);
        assert_eq!(w.writable(1), [send([1], update(both))]);
    }

    #[test]
    fn presence_that_changed_is_sent_and_no_diff_of_a_document_that_did_not() {
        let mut w = World::open(Config::default(), [1, 2]);
        w.frame(1, presence(&[(7, 1, "{}"), (8, 1, "{}")]));
        w.pass(40);
        w.congested(2);
        assert_eq!(w.frame(1, presence(&[(8, 2, "[]")])), [send([1], presence(&[(8, 2, "[]")]))]);
        assert_eq!(w.writable(2), [send([2], presence(&[(8, 2, "[]")]))]);
    }

    #[test]
    fn a_question_of_a_congested_peer_is_answered_when_it_is_writable() {
        let mut w = World::open(Config::default(), [1, 2]);
        let a = text_insert(1, 0, "a");
        w.frame(1, update(&a));
        w.stored(1);
        w.congested(2);
        assert_eq!(w.frame(2, step1(&[(1, 1)])), []);
        assert_eq!(w.frame(2, step1(&[])), []);
        assert_eq!(w.writable(2), [send([2], step2(&a))]);
    }

    #[test]
    fn presence_asked_for_while_congested_is_answered_when_it_is_writable() {
        let mut w = World::open(Config::default(), [1, 2]);
        w.frame(1, presence(&[(7, 1, "{}")]));
        w.congested(2);
        assert_eq!(w.frame(2, [3]), []);
        assert_eq!(w.writable(2), [send([2], presence(&[(7, 1, "{}")]))]);
    }

    #[test]
    fn who_was_congested_while_the_room_was_loaded_is_greeted_when_it_is_writable() {
        let mut w = World::new(Config::default());
        w.join(1);
        w.congested(1);
        assert_eq!(w.loaded(&[]), []);
        assert_eq!(w.writable(1), [send([1], step1(&[]))]);
    }

    #[test]
    fn a_read_only_writer_is_told_when_it_is_writable() {
        let mut w = World::open(Config::default(), [1]);
        w.read_only(2);
        w.congested(2);
        assert_eq!(w.frame(2, update(text_insert(2, 0, "a"))), []);
        assert_eq!(w.writable(2), [send([2], DENIED)]);
    }

    #[test]
    fn who_reads_too_slowly_is_closed() {
        let mut w = World::open(Config::default(), [1, 2]);
        w.congested(2);
        assert_eq!(w.pass(59_999), [send([1], KEEPALIVE), send([1], KEEPALIVE)]);
        assert_eq!(w.pass(1), [close(2, 1013)]);
        // Said again, it means that some of the outbox has left: a slow line is no reason to give up.
        w.congested(1);
        w.pass(30_000);
        w.congested(1);
        assert_eq!(w.pass(59_999), []);
        assert_eq!(w.pass(1), [close(1, 1013)]);
    }

    #[test]
    fn an_edit_of_a_congested_peer_is_taken() {
        let mut w = World::open(Config::default(), [1, 2]);
        w.congested(1);
        let a = text_insert(1, 0, "a");
        assert_eq!(w.frame(1, update(&a)), [send([2], update(&a)), append(1, &a[..])]);
        assert_eq!(w.writable(1), []);
        assert_eq!(w.stored(1), [send([1], update(&a))]);
    }
}

mod loading {
    use super::*;

    #[test]
    fn frames_wait_in_their_order_and_one_load_serves_all() {
        let mut w = World::new(Config::default());
        let (a, b) = (text_insert(1, 0, "a"), text_insert(1, 1, "b"));
        assert_eq!(w.join(1), [load()]);
        assert_eq!(w.join(2), []);
        assert_eq!(w.frame(2, update(&b)), []);
        assert_eq!(w.frame(1, step1(&[(9, 1)])), []);
        assert_eq!(w.frame(2, step1(&[])), []);
        assert_eq!(
            w.loaded(&[&a]),
            [
                send([1], step1(&[(1, 1)])),
                send([2], step1(&[(1, 1)])),
                // 1 has not yet said what it has when 2 brings this: it may be its own.
                append(1, &b[..]),
            ]
        );
        assert_eq!(
            w.stored(1),
            [
                send([1, 2], update(&b)),
                send([1], step2(structs(&[(1, 0, &[first("a"), after(1, 0, "b")])], &[]))),
                send([2], step2(structs(&[(1, 0, &[first("a"), after(1, 0, "b")])], &[])))
            ]
        );
    }

    #[test]
    fn too_much_that_waits_closes_its_sender_only() {
        // A frame costs 64 bytes besides its own.
        let mut w = World::new(config(|config| config.loading_bytes_max = 2 * (64 + 4)));
        w.join(1);
        w.join(2);
        assert_eq!(w.frame(1, step1(&[])), []);
        assert_eq!(w.frame(2, step1(&[])), []);
        assert_eq!(w.frame(1, step1(&[])), [close(1, 1013)]);
        // What it had sent waits no longer.
        assert_eq!(w.frame(2, step1(&[])), []);
        assert_eq!(w.loaded(&[]), [send([2], step1(&[])), send([2], step2(NOTHING))]);
    }

    #[test]
    fn a_failed_load_closes_all_and_the_room_can_be_loaded_again() {
        let mut w = World::new(Config::default());
        w.join(1);
        w.join(2);
        w.frame(1, update(text_insert(1, 0, "a")));
        w.events();
        assert_eq!(w.load_failed(), [close(1, 1013), close(2, 1013)]);
        assert!(w.events().contains(&Event::LoadFailed { room: room() }));
        assert!(w.server.room(&room()).is_none());
        assert_eq!(w.join(3), [load()]);
        assert_eq!(w.loaded(&[]), [send([3], step1(&[]))]);
    }

    #[test]
    fn what_does_not_read_is_never_an_empty_document() {
        let mut w = World::new(Config::default());
        w.join(1);
        assert_eq!(w.loaded(&[&text_insert(1, 0, "a"), &[1, 2, 3]]), [close(1, 1013)]);
        assert!(matches!(w.events()[1], Event::StoredUpdateMalformed { index: 1, .. }));
        assert!(w.server.room(&room()).is_none());
        assert_eq!(w.join(2), [load()]);
    }

    #[test]
    fn who_asks_many_times_while_it_loads_is_answered_once() {
        let mut w = World::new(Config::default());
        let a = text_insert(1, 0, "a");
        w.join(1);
        for _ in 0..3 {
            w.frame(1, step1(&[]));
            w.frame(1, [3, 3]);
        }
        w.frame(1, presence(&[(7, 1, "{}")]));
        w.frame(1, [3, 3]);
        assert_eq!(
            w.loaded(&[&a]),
            [send([1], step1(&[(1, 1)])), send([1], step2(&a)), send([1], presence(&[(7, 1, "{}")]))]
        );
        assert_eq!(w.frame(1, [3, 3]), [send([1], presence(&[(7, 1, "{}")]))]);
    }

    #[test]
    fn the_edits_of_who_left_meanwhile_are_taken_and_nothing_else_of_it() {
        let mut w = World::new(Config::default());
        let (a, b) = (text_insert(1, 0, "a"), text_insert(2, 0, "b"));
        w.join(1);
        w.read_only(2);
        w.frame(1, step1(&[]));
        w.frame(1, presence(&[(1, 1, "{}")]));
        w.frame(1, update(&a));
        w.frame(1, [0, 2, 1, 9]);
        w.frame(2, update(&b));
        w.leave(1);
        w.leave(2);
        w.join(3);
        assert_eq!(w.loaded(&[]), [send([3], step1(&[])), append(1, &a[..])]);
        assert_eq!(w.stored(1), [send([3], update(&a))]);
    }

    #[test]
    fn a_room_that_everybody_left_meanwhile_is_unloaded_in_its_time() {
        let mut w = World::new(Config::default());
        w.join(1);
        w.leave(1);
        assert_eq!(w.pass(100_000), []);
        assert_eq!(w.loaded(&[]), []);
        assert_eq!(w.join(2), [send([2], step1(&[]))]);
        w.leave(2);
        w.pass(30_000);
        assert!(w.server.room(&room()).is_none());
    }

    #[test]
    fn answers_for_a_room_that_is_open_are_ignored() {
        let mut w = World::open(Config::default(), [1]);
        assert_eq!(w.loaded(&[&text_insert(1, 0, "a")]), []);
        assert_eq!(w.load_failed(), []);
        assert_eq!(w.frame(1, step1(&[])), [send([1], step2(NOTHING))]);
    }
}

mod scanned {
    use super::*;

    #[test]
    fn a_forged_struct_never_hides_the_honest_one_that_comes_at_once() {
        let mut w = World::open(Config::default(), [1, 2, 3]);
        let a = text_insert(1, 0, "a");
        w.frame(1, update(&a));
        // 2 forges the next clock of 1, hanging on what nobody has; 1 goes on in the same moment.
        let forged = structs(&[(1, 1, &[after(9, 9, "x")])], &[]);
        let honest = text_insert(1, 1, "b");
        assert_eq!(w.frame(2, update(&forged)), [send([1, 3], update(&forged))]);
        assert_eq!(w.frame(1, update(&honest)), []);
        // 2 seems to have that clock of 1: it may be its own.
        assert_eq!(w.pass(10), [send([3], update(&honest))]);
        // Each is stored by itself: joined, the first would have taken the clock from the second.
        assert_eq!(w.stored(1), [send([1], update(&a)), append(2, &forged[..])]);
        assert_eq!(w.stored(2), [send([2], update(&forged)), append(3, &honest[..])]);
        assert_eq!(w.stored(3), [send([1, 2], update(&honest))]);
        assert_eq!(text(&mut w), Ok("ab".into()));
    }

    #[test]
    fn a_malformed_update_closes_its_sender_and_leaves_no_trace() {
        for malformed in [
            vec![],
            vec![1],
            text_insert(1, 0, "a")[..8].to_vec(),
            [text_insert(1, 0, "a"), vec![0]].concat(),
            // A struct that hangs on itself.
            structs(&[(1, 0, &[after(1, 0, "a")])], &[]),
            structs(&[(1, 0, &[first("")])], &[]),
        ] {
            let mut w = World::open(Config::default(), [1, 2]);
            for frame in [update(&malformed), step2(&malformed)] {
                w.join(3);
                assert_eq!(w.frame(3, frame), [close(3, 1007)], "{malformed:?}");
            }
            assert_eq!(w.pass(100), []);
            assert_eq!(w.frame(2, step1(&[])), [send([2], step2(NOTHING))]);
        }
    }

    #[test]
    fn a_malformed_frame_closes_its_sender_after_what_came_before() {
        let a = text_insert(1, 0, "a");
        for malformed in
            [&[][..], &[0], &[0, 7, 0], &[0, 2, 9, 1], &[0, 0, 2, 1, 1], &[1, 1, 9], &[1, 2, 0, 0]]
        {
            let mut w = World::open(Config::default(), [1, 2]);
            if !malformed.is_empty() {
                let out = w.frame(1, [&update(&a)[..], malformed].concat());
                assert_eq!(out, [send([2], update(&a)), append(1, &a[..]), close(1, 1007)], "{malformed:?}");
            }
            assert_eq!(w.frame(2, malformed), [close(2, 1007)], "{malformed:?}");
        }
    }

    #[test]
    fn bytes_travel_as_their_author_made_them() {
        let mut w = World::open(Config::default(), [1, 2]);
        // -0, a big integer and a float that needs no eight bytes, as somebody else would not write them.
        let any = [
            &[8, 1, 1, b't', 3][..],
            &[125, 0x40],
            &[122, 16, 0, 0, 0, 0, 0, 0, 0],
            &[123, 0, 0, 0, 0, 0, 0, 0, 0],
        ];
        let odd = structs(&[(1, 0, &[any.concat()])], &[]);
        assert_eq!(w.frame(1, update(&odd)), [send([2], update(&odd)), append(1, &odd[..])]);
        assert_eq!(w.frame(2, step1(&[])), [send([2], step2(&odd))]);
    }

    #[test]
    fn of_a_sync_step_2_only_what_is_new_travels() {
        let mut w = World::open(Config::default(), [1, 2]);
        w.frame(1, update(structs(&[(1, 0, &[first("ab")])], &[(1, 0, 1)])));
        w.stored(1);
        w.pass(10);
        let all = structs(&[(2, 0, &[first("x")]), (1, 0, &[first("abc")])], &[(1, 0, 2)]);
        let new = structs(&[(2, 0, &[first("x")]), (1, 2, &[after(1, 1, "c")])], &[(1, 1, 1)]);
        assert_eq!(w.frame(2, step2(all)), [send([1], update(&new)), append(2, &new[..])]);
        assert_eq!(w.stored(2), [send([2], update(&new))]);
    }

    #[test]
    fn what_is_known_goes_nowhere() {
        let mut w = World::open(Config::default(), [1, 2]);
        let abc = structs(&[(1, 0, &[first("abc")])], &[(1, 1, 1)]);
        w.frame(1, update(&abc));
        w.stored(1);
        w.pass(10);
        for known in [abc, text_insert(1, 0, "a"), text_delete(1, 1, 1), NOTHING.to_vec()] {
            assert_eq!(w.frame(2, update(&known)), []);
            assert_eq!(w.frame(2, step2(&known)), []);
        }
        assert_eq!(w.pass(1000), []);
    }

    #[test]
    fn what_misses_something_is_stored_and_relayed_and_later_integrated() {
        let mut w = World::open(Config::default(), [1, 2]);
        let (a, b) = (text_insert(1, 0, "a"), text_insert(1, 1, "b"));
        assert_eq!(w.frame(1, update(&b)), [send([2], update(&b)), append(1, &b[..])]);
        w.stored(1);
        w.pass(10);
        assert_eq!(w.join(3), [send([3], step1(&[]))]);
        // With a hole for what is missing.
        assert_eq!(w.frame(3, step1(&[])), [send([3], step2(&b))]);
        // 1 has what follows, and may have this as well.
        assert_eq!(w.frame(2, update(&a)), [send([3], update(&a)), append(2, &a[..])]);
        assert_eq!(w.stored(2), [send([1, 2], update(&a))]);
        assert_eq!(w.join(4), [send([4], step1(&[(1, 2)]))]);
    }

    #[test]
    fn two_that_hang_on_a_third_in_the_same_update_are_both_integrated() {
        let mut w = World::open(Config::default(), [1]);
        let before_a = |text: &str| [vec![0x44, 1, 0], framed(&[], text.as_bytes())].concat();
        let all = structs(&[(3, 0, &[before_a("c")]), (2, 0, &[before_a("b")]), (1, 0, &[first("a")])], &[]);
        assert_eq!(w.frame(1, update(&all)), [append(1, &all[..])]);
        assert_eq!(w.join(2), [send([2], step1(&[(3, 1), (2, 1), (1, 1)]))]);
    }

    #[test]
    fn too_much_that_misses_something_makes_the_server_ask_again() {
        let mut w = World::open(config(|config| config.parked_bytes_max = 100), [1, 2]);
        w.frame(1, update(text_insert(1, 0, "a")));
        w.stored(1);
        w.pass(10);
        assert_eq!(w.frame(1, update(text_insert(1, 2, "c"))), [send([1], step1(&[(1, 1)]))]);
        let bc = structs(&[(1, 1, &[after(1, 0, "b"), after(1, 1, "c")])], &[]);
        assert_eq!(w.frame(1, step2(&bc)), [send([2], update(&bc)), append(2, &bc[..])]);
    }

    #[test]
    fn who_has_nothing_better_is_not_asked_again_and_again() {
        let mut w = World::open(config(|config| config.parked_bytes_max = 100), [1]);
        // It lacks the same, and answers with what it has.
        assert_eq!(w.frame(1, update(text_insert(1, 2, "c"))), [send([1], step1(&[]))]);
        assert_eq!(w.frame(1, step2(text_insert(1, 2, "c"))), []);
    }

    #[test]
    fn a_congested_peer_is_asked_again_when_it_is_writable() {
        let mut w = World::open(config(|config| config.parked_bytes_max = 100), [1]);
        w.congested(1);
        assert_eq!(w.frame(1, update(text_insert(1, 2, "c"))), []);
        assert_eq!(w.writable(1), [send([1], step1(&[]))]);
    }
}

mod healing {
    use super::*;

    #[test]
    fn where_nothing_can_be_lost_nothing_is_written_again() {
        let mut w = World::open(Config::default(), [1]);
        assert_eq!(w.handle(Input::StoreFailed { room: room(), seq: 0 }), [send([1], step1(&[]))]);
    }

    #[test]
    fn a_failed_write_is_tried_again_with_what_came_meanwhile() {
        let mut w = World::open(Config::default(), [1, 2]);
        let (a, b) = (text_insert(1, 0, "a"), text_insert(1, 1, "b"));
        w.frame(1, update(&a));
        w.pass(10);
        assert_eq!(w.store_failed(1), []);
        assert!(matches!(w.events()[..], [Event::StoreFailed { seq: 1, .. }]));
        assert_eq!(w.frame(1, update(&b)), [send([2], update(&b))]);
        // Nothing is acknowledged, nobody leaves without it.
        assert_eq!(w.frame(1, step1(&[(1, 2)])), []);
        assert_eq!(w.pass(99), []);
        let ab = structs(&[(1, 0, &[first("a"), after(1, 0, "b")])], &[]);
        assert_eq!(w.pass(26), [append(1, &ab[..])]);
        assert_eq!(w.stored(1), [send([1], update(&ab)), send([1], step2(NOTHING))]);
    }

    #[test]
    fn failures_in_a_row_are_retried_ever_later_and_block_unloading() {
        let mut w = World::open(Config::default(), [1]);
        let a = text_insert(1, 0, "a");
        w.frame(1, update(&a));
        w.leave(1);
        for delay in [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000, 5000, 5000] {
            assert_eq!(w.store_failed(1), []);
            assert_eq!(w.pass(delay - 1), [], "{delay}");
            assert_eq!(w.pass(delay / 4 + 2), [append(1, &a[..])], "{delay}");
        }
        assert!(w.elapsed() > 30_000 && w.server.room(&room()).is_some());
        assert_eq!(w.stored(1), []);
        w.pass(60_000);
        assert!(w.server.room(&room()).is_none());
    }

    #[test]
    fn a_failed_compaction_does_no_harm() {
        let mut w = World::open(config(|config| config.squash_count = 1), [1, 2]);
        let (a, b, c) = (text_insert(1, 0, "a"), text_insert(1, 1, "b"), text_insert(1, 2, "c"));
        w.frame(1, update(&a));
        assert_eq!(w.stored(1), [send([1], update(&a)), Out::Compact(1)]);
        w.pass(10);
        assert_eq!(w.frame(1, update(&b)), [send([2], update(&b))]);
        // What waited for its end is written, and it is not tried again at once.
        assert_eq!(w.store_failed(1), [append(2, &b[..])]);
        assert_eq!(w.stored(2), [send([1], update(&b))]);
        w.pass(5000);
        assert_eq!(w.frame(1, update(&c)), [send([2], update(&c)), append(3, &c[..])]);
        assert_eq!(w.stored(3), [send([1], update(&c)), Out::Compact(3)]);
    }

    #[test]
    fn a_store_that_lost_what_it_had_confirmed_gets_everything_and_all_are_asked() {
        let mut w = World::open(Config::default(), [1, 2]);
        let (a, b) = (text_insert(1, 0, "a"), text_insert(1, 1, "b"));
        w.frame(1, update(&a));
        w.stored(1);
        w.pass(10);
        w.frame(1, update(&b));
        w.stored(2);
        w.events();
        let ab = structs(&[(1, 0, &[first("a"), after(1, 0, "b")])], &[]);
        assert_eq!(w.store_failed(1), [append(3, &ab[..]), send([1, 2], step1(&[(1, 2)]))]);
        assert_eq!(w.events(), [Event::StoreLost { room: room() }]);
        assert_eq!(w.stored(3), []);
    }

    #[test]
    fn what_is_written_again_comes_before_what_waits_and_forges_a_part_of_it() {
        for failed in [[2, 1], [1, 2]] {
            let mut w = World::open(Config::default(), [1]);
            // It waits for the clock before, and is forged by who brings that.
            let genuine = structs(&[(1, 1, &[first("b")])], &[]);
            let forged = structs(&[(1, 0, &[first("a"), after(9, 9, "x")])], &[]);
            w.frame(1, update(&genuine));
            w.stored(1);
            w.pass(10);
            assert_eq!(w.frame(1, update(&forged)), [append(2, &forged[..])]);
            for seq in failed {
                w.store_failed(seq);
            }
            let both = structs(&[(1, 0, &[first("a"), first("b")])], &[]);
            assert_eq!(w.pass(2000), [append(2, both)]);
        }
    }

    #[test]
    fn a_loss_reported_while_a_compaction_runs_counts() {
        let mut w = World::open(config(|config| config.squash_count = 2), [1]);
        let (a, b) = (text_insert(1, 0, "a"), text_insert(1, 1, "b"));
        w.frame(1, update(&a));
        w.stored(1);
        w.pass(10);
        w.frame(1, update(&b));
        assert_eq!(w.stored(2), [send([1], update(&b)), Out::Compact(2)]);
        assert_eq!(w.store_failed(1), [send([1], step1(&[(1, 2)]))]);
        let ab = structs(&[(1, 0, &[first("a"), after(1, 0, "b")])], &[]);
        assert_eq!(w.store_failed(2), [append(3, &ab[..])]);
    }

    #[test]
    fn a_congested_peer_is_asked_after_a_loss_when_it_is_writable() {
        let mut w = World::open(Config::default(), [1, 2]);
        w.frame(1, update(text_insert(1, 0, "a")));
        w.stored(1);
        w.congested(2);
        assert_eq!(w.store_failed(1), [append(2, text_insert(1, 0, "a")), send([1], step1(&[(1, 1)]))]);
        assert_eq!(w.writable(2), [send([2], step1(&[(1, 1)]))]);
    }

    #[test]
    fn what_yrs_cannot_read_is_a_typed_error_and_the_room_goes_on() {
        let mut w = World::open(Config::default(), [1, 2]);
        // The JSON kind of early versions.
        let json = structs(&[(1, 0, &[vec![2, 1, 1, b't', 1, 1, b'1']])], &[]);
        assert_eq!(w.frame(1, update(&json)), [send([2], update(&json)), append(1, &json[..])]);
        assert_eq!(text(&mut w), Err(ViewError::NotDecodable));
        assert_eq!(w.edit(|_| ()).map(drop), Err(ViewError::NotDecodable));
        w.pass(10);
        let b = text_insert(2, 0, "b");
        assert_eq!(w.frame(2, update(&b)), [send([1], update(&b))]);
    }

    #[test]
    fn what_makes_yrs_panic_is_refused_before_it_reaches_anybody() {
        for crafted in [
            // A struct at a clock of 43 bits; deletes beyond clock 2^32.
            &[1, 1, 1, 253, 255, 255, 255, 255, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1][..],
            &[0, 1, 1, 1, 255, 255, 255, 255, 15, 2],
        ] {
            let applied = catch_unwind(|| {
                let doc = yrs::Doc::with_client_id(9);
                doc.transact_mut().apply_update(yrs::Update::decode_v1(crafted).unwrap())
            });
            if cfg!(debug_assertions) {
                assert!(applied.is_err(), "yrs has learned to live with it: look for another one");
            }
            let mut w = World::open(Config::default(), [1, 2]);
            assert_eq!(w.frame(1, update(crafted)), [close(1, 1007)]);
            w.frame(2, update(text_insert(2, 0, "b")));
            assert_eq!(text(&mut w), Ok("b".into()));
        }
    }
}

mod views {
    use super::*;

    #[test]
    fn an_edit_goes_to_all_and_to_the_store() {
        let mut w = World::open(Config::default(), [1, 2]);
        let ((), out) = w.edit(|txn| txn.get_or_insert_text("t").insert(txn, 0, "hi")).unwrap();
        let [Out::Send(to, frame), Out::Append(1, update_bytes)] = &out[..] else { panic!("{out:?}") };
        assert_eq!((&to[..], &frame[..]), (&[1, 2][..], &update(update_bytes)[..]));
        assert_eq!(w.stored(1), []);
        assert_eq!(text(&mut w), Ok("hi".into()));
        // Nothing changed, nothing to say.
        assert_eq!(w.edit(|_| 5).unwrap(), (5, vec![]));
    }

    #[test]
    fn a_read_sees_what_peers_wrote_and_an_edit_goes_where_it_says() {
        let mut w = World::open(Config::default(), [1, 2]);
        w.frame(1, update(text_insert(1, 0, "\u{1f600}b")));
        assert_eq!(text(&mut w), Ok("\u{1f600}b".into()));
        w.pass(10);
        // The face counts two in UTF-16.
        w.edit(|txn| txn.get_or_insert_text("t").insert(txn, 2, "a")).unwrap();
        assert_eq!(text(&mut w), Ok("\u{1f600}ab".into()));
        w.pass(10);
        w.frame(2, update(text_delete(1, 0, 2)));
        assert_eq!(text(&mut w), Ok("ab".into()));
    }

    #[test]
    fn every_incarnation_writes_under_an_id_of_its_own() {
        let mut w = World::open(Config::default(), [1]);
        let mut ids = Vec::new();
        for n in 0..3 {
            for _ in 0..2 {
                w.edit(|txn| txn.get_or_insert_text("t").insert(txn, 0, "x")).unwrap();
                w.pass(20);
            }
            w.pass(10_000);
            let journal = w.server.room(&room()).unwrap().journal();
            ids = journal.state_vector().iter().map(|(client, clock)| (client.get(), clock)).collect();
            assert_eq!(ids.len(), n + 1);
        }
        assert!(ids.iter().all(|(_, clock)| *clock == 2), "{ids:?}");
    }

    #[test]
    fn a_panic_in_an_edit_undoes_it() {
        let mut w = World::open(Config::default(), [1, 2]);
        w.frame(1, update(text_insert(1, 0, "a")));
        w.stored(1);
        w.pass(10);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            w.edit(|txn| {
                txn.get_or_insert_text("t").insert(txn, 0, "half");
                panic!("a bug of the caller's");
            })
        }));
        assert!(panicked.is_err());
        assert_eq!(text(&mut w), Ok("a".into()));
        let b = text_insert(1, 1, "b");
        assert_eq!(w.frame(1, update(&b)), [send([2], update(&b)), append(2, &b[..])]);
        assert_eq!(text(&mut w), Ok("ab".into()));
    }

    #[test]
    fn what_a_squash_has_dropped_goes_from_the_document_too() {
        let mut w = World::open(config(|config| config.squash_count = 2), [1]);
        let holds_it = |w: &mut World| {
            let all =
                |txn: &yrs::Transaction<'_>| txn.encode_state_as_update_v1(&yrs::StateVector::default());
            w.server.read(w.now, &room(), all).unwrap().windows(4).any(|bytes| bytes == b"long")
        };
        w.edit(|txn| txn.get_or_insert_text("t").insert(txn, 0, "long forgotten")).unwrap();
        w.stored(1);
        w.pass(10);
        w.edit(|txn| txn.get_or_insert_text("t").remove_range(txn, 0, 14)).unwrap();
        assert!(holds_it(&mut w));
        assert_eq!(w.stored(2), [Out::Compact(2)]);
        let (_, seq, squash) = w.squashes.pop().unwrap();
        w.compacted(seq, squash.run());
        assert!(!holds_it(&mut w));
        w.edit(|txn| txn.get_or_insert_text("t").insert(txn, 0, "x")).unwrap();
        assert_eq!(text(&mut w), Ok("x".into()));
    }

    #[test]
    fn an_edit_that_would_be_too_much_for_the_store_is_not_taken() {
        let a = text_insert(1, 0, "a");
        let mut w = World::open(config(|config| config.unstored_bytes_max = a.len()), [1]);
        w.frame(1, update(&a));
        w.pass(10);
        let b = |txn: &mut yrs::TransactionMut<'_>| txn.get_or_insert_text("t").insert(txn, 1, "b");
        assert_eq!(w.edit(b), Err(ViewError::StoreOverloaded));
        assert_eq!(text(&mut w), Ok("a".into()));
        assert_eq!(w.pass(10), []);
        // Of no length, or when nothing waits, it may always.
        assert_eq!(w.edit(|_| 5), Ok((5, vec![])));
        w.stored(1);
        assert_eq!(w.edit(b).unwrap().1.len(), 2);
        assert_eq!(text(&mut w), Ok("ab".into()));
    }

    #[test]
    fn a_room_that_is_not_open_cannot_be_read() {
        let mut w = World::new(Config::default());
        assert_eq!(text(&mut w), Err(ViewError::RoomNotOpen));
        w.join(1);
        assert_eq!(text(&mut w), Err(ViewError::RoomNotOpen));
        assert_eq!(w.edit(|_| ()).map(drop), Err(ViewError::RoomNotOpen));
        w.loaded(&[&text_insert(1, 0, "a")]);
        assert_eq!(text(&mut w), Ok("a".into()));
    }
}

mod unloading {
    use super::*;

    #[test]
    fn after_the_idle_delay_and_not_before() {
        let mut w = World::open(Config::default(), [1]);
        w.leave(1);
        w.pass(29_999);
        assert!(w.server.room(&room()).is_some());
        w.events();
        assert_eq!(w.pass(1), []);
        assert_eq!(w.events(), [Event::RoomClosed { room: room(), unstored_bytes: 0 }]);
        assert!(w.server.room(&room()).is_none());
        assert_eq!(w.server.next_timeout(), None);
        assert_eq!(w.join(2), [load()]);
    }

    #[test]
    fn not_with_anything_in_flight() {
        let mut w = World::open(Config::default(), [1]);
        w.frame(1, update(text_insert(1, 0, "a")));
        w.leave(1);
        w.pass(100_000);
        assert!(w.server.room(&room()).is_some());
        w.stored(1);
        w.pass(30_000);
        assert!(w.server.room(&room()).is_none());
    }

    #[test]
    fn a_join_cancels_it() {
        let mut w = World::open(Config::default(), [1]);
        w.leave(1);
        w.pass(29_999);
        assert_eq!(w.join(2), [send([2], step1(&[]))]);
        w.pass(29_999);
        w.leave(2);
        w.pass(29_999);
        assert!(w.server.room(&room()).is_some());
        w.pass(1);
        assert!(w.server.room(&room()).is_none());
    }

    #[test]
    fn at_once_where_the_idle_delay_is_nothing() {
        let mut w = World::open(config(|config| config.idle_delay = Duration::ZERO), [1]);
        w.frame(1, update(text_insert(1, 0, "a")));
        w.leave(1);
        assert_eq!(w.pass(1000), []);
        assert!(w.server.room(&room()).is_some());
        w.stored(1);
        assert_eq!(w.pass(0), []);
        assert!(w.server.room(&room()).is_none());
    }

    #[test]
    fn a_long_tail_is_squashed_first() {
        let mut w = World::open(Config::default(), [1]);
        for clock in 0..16 {
            w.frame(1, update(text_insert(1, clock, "x")));
            w.stored(u64::from(clock) + 1);
            w.pass(10);
        }
        w.leave(1);
        assert_eq!(w.pass(30_000), [Out::Compact(16)]);
        let (_, seq, squash) = w.squashes.pop().unwrap();
        let squashed = squash.run();
        assert_eq!(squashed.updates().collect::<Vec<_>>(), [&text_insert(1, 0, &"x".repeat(16))[..]]);
        assert_eq!(w.compacted(seq, squashed), []);
        assert_eq!(w.pass(30_000), []);
        assert!(w.server.room(&room()).is_none());
    }
}

mod draining {
    use super::*;

    #[test]
    fn joins_are_refused_and_peers_sent_away_one_after_another() {
        let mut w = World::open(Config::default(), [1, 2, 3]);
        assert_eq!(w.drain(w.in_millis(10_000)), [close(1, 1012)]);
        assert_eq!(w.join(4), [close(4, 1012)]);
        assert_eq!(w.server.admits(&RoomName::new("other").unwrap()), Err(Refusal::Draining));
        assert_eq!(w.pass(9), []);
        assert_eq!(w.pass(1), [close(2, 1012)]);
        w.events();
        assert_eq!(w.pass(10), [close(3, 1012)]);
        assert_eq!(
            w.events(),
            [
                Event::Left { room: room(), connection: ConnectionId(3) },
                Event::RoomClosed { room: room(), unstored_bytes: 0 },
                Event::Drained,
            ]
        );
        assert_eq!(w.server.next_timeout(), None);
        assert_eq!(w.pass(20_000), []);
        assert_eq!(w.events(), []);
    }

    #[test]
    fn a_server_without_rooms_is_drained_at_once() {
        let mut w = World::new(Config::default());
        assert_eq!(w.drain(w.in_millis(10)), []);
        assert_eq!(w.events(), [Event::Drained]);
        assert_eq!(w.drain(w.in_millis(10)), []);
        assert_eq!(w.events(), []);
    }

    #[test]
    fn everything_is_flushed_and_who_waits_for_an_echo_gets_it_before_it_goes() {
        let mut w = World::open(Config::default(), [1, 2]);
        let (a, b) = (text_insert(1, 0, "a"), text_insert(1, 1, "b"));
        w.frame(1, update(&a));
        assert_eq!(w.frame(1, update(&b)), []);
        assert_eq!(w.drain(w.in_millis(10_000)), [send([2], update(&b))]);
        assert_eq!(w.pass(10), [close(2, 1012)]);
        // What it writes now it will bring along when it comes back.
        assert_eq!(w.frame(1, update(text_insert(1, 2, "c"))), []);
        assert_eq!(w.stored(1), [send([1], update(&a)), append(2, &b[..])]);
        assert_eq!(w.stored(2), [send([1], update(&b)), close(1, 1012)]);
        assert!(
            w.events().ends_with(&[Event::RoomClosed { room: room(), unstored_bytes: 0 }, Event::Drained])
        );
    }

    #[test]
    fn who_writes_all_the_time_gets_its_turn_all_the_same() {
        let mut w = World::open(Config::default(), [1, 2]);
        w.frame(2, update(text_insert(2, 0, "x")));
        assert_eq!(w.drain(w.in_millis(10_000)), [close(1, 1012)]);
        for n in 1..20 {
            assert_eq!(w.frame(2, update(text_insert(2, n, "x"))).len(), 0);
            if n == 10 {
                // What came before its turn is stored; what came after was not taken.
                let out = [w.stored(1), w.stored(2)].concat();
                assert_eq!(out.last(), Some(&close(2, 1012)), "{out:?}");
                return;
            }
            w.pass(2);
        }
    }

    #[test]
    fn the_deadline_closes_all_and_says_what_was_lost() {
        let mut w = World::open(Config::default(), [1, 2]);
        let (a, b) = (text_insert(1, 0, "a"), text_insert(2, 0, "b"));
        w.frame(1, update(&a));
        w.frame(2, update(&b));
        w.drain(w.in_millis(1000));
        assert_eq!(w.pass(999), []);
        assert_eq!(w.pass(1), [close(1, 1012), close(2, 1012)]);
        assert!(w.events().ends_with(&[
            Event::RoomClosed { room: room(), unstored_bytes: a.len() + b.len() },
            Event::Drained
        ]));
        assert_eq!(w.server.next_timeout(), None);
        assert_eq!(w.stored(1), []);
    }

    #[test]
    fn a_late_timer_does_not_report_before_it_is_over() {
        let mut w = World::open(Config::default(), [1]);
        w.frame(1, update(text_insert(1, 0, "a")));
        w.drain(w.in_millis(1000));
        w.sleep(1000);
        w.events();
        // Not the timeout, but something else comes first.
        let out = w.frame(1, [3]);
        assert_eq!(out, [close(1, 1012)]);
        assert_eq!(w.events().last(), Some(&Event::Drained));
        assert!(w.server.room(&room()).is_none());
    }

    #[test]
    fn where_everything_is_due_at_once_nothing_is_written_after_the_end() {
        let mut w = World::open(Config::default(), [1, 2]);
        w.access(2, Access::Write, Some(w.in_millis(500)));
        w.frame(1, update(text_insert(1, 0, "a")));
        w.store_failed(1);
        w.drain(w.in_millis(1000));
        w.sleep(1000);
        // That access ends is seen first, which is the occasion for the drain to end; the retry was due, too.
        assert_eq!(w.pass(0), [close(2, 4401), close(1, 1012)]);
        assert_eq!(w.server.next_timeout(), None);
    }

    #[test]
    fn a_room_that_was_about_to_be_unloaded_does_not_spin() {
        let mut w = World::open(Config::default(), [1]);
        w.frame(1, update(text_insert(1, 0, "a")));
        w.leave(1);
        assert_eq!(w.drain(w.in_millis(60_000)), []);
        assert_eq!(w.pass(59_999), []);
        assert_eq!(w.stored(1), []);
        assert_eq!(w.events().last(), Some(&Event::Drained));
    }

    #[test]
    fn a_compaction_that_fails_does_not_hold_it_up() {
        let mut w = World::open(config(|config| config.squash_count = 1), [1]);
        w.frame(1, update(text_insert(1, 0, "a")));
        w.stored(1);
        w.drain(w.in_millis(60_000));
        w.events();
        assert_eq!(w.store_failed(1), []);
        assert_eq!(w.events().last(), Some(&Event::Drained));
    }

    #[test]
    fn a_room_that_is_being_loaded_is_given_up() {
        let mut w = World::new(Config::default());
        w.join(1);
        w.frame(1, update(text_insert(1, 0, "a")));
        w.events();
        assert_eq!(w.drain(w.in_millis(1000)), [close(1, 1012)]);
        assert_eq!(w.events()[1..], [Event::RoomClosed { room: room(), unstored_bytes: 0 }, Event::Drained]);
        assert_eq!(w.loaded(&[]), []);
    }
}

mod access {
    use super::*;

    #[test]
    fn a_read_only_writer_is_told_once_and_its_changes_go_nowhere() {
        let mut w = World::open(Config::default(), [1]);
        assert_eq!(w.read_only(2), [send([2], step1(&[]))]);
        assert_eq!(w.frame(2, step2(NOTHING)), []);
        assert_eq!(w.frame(2, presence(&[(7, 1, "{}")])), [send([1, 2], presence(&[(7, 1, "{}")]))]);
        w.events();
        assert_eq!(w.frame(2, update(text_insert(2, 0, "x"))), [send([2], DENIED)]);
        assert_eq!(w.frame(2, step2(text_insert(2, 0, "x"))), []);
        let refused = Event::WriteRefused { room: room(), connection: ConnectionId(2) };
        assert_eq!(w.events(), [refused.clone(), refused]);
        assert_eq!(w.frame(1, step1(&[])), [send([1], step2(NOTHING))]);
    }

    #[test]
    fn a_reader_that_has_nothing_new_is_not_told_off() {
        let mut w = World::open(Config::default(), [1]);
        w.frame(1, update(structs(&[(1, 0, &[first("abc")])], &[(1, 1, 1)])));
        w.read_only(2);
        w.events();
        // Yjs sends all deletes along, whatever the other side has.
        assert_eq!(w.frame(2, step2(text_delete(1, 1, 1))), []);
        assert_eq!(w.events(), []);
        assert_eq!(w.frame(2, step2(text_delete(1, 1, 2))), [send([2], DENIED)]);
    }

    #[test]
    fn access_ends_at_its_instant_however_late_the_timer() {
        let mut w = World::open(Config::default(), [1]);
        let expires_at = Some(w.in_millis(1000));
        let mut join = join(2);
        join.expires_at = expires_at;
        w.handle(Input::Connected(join.clone()));
        join.connection = ConnectionId(3);
        w.handle(Input::Connected(join));
        assert_eq!(w.server.next_timeout(), expires_at);
        w.sleep(999);
        let a = text_insert(2, 0, "a");
        assert_eq!(w.frame(2, update(&a)), [send([1], update(&a)), append(1, &a[..])]);
        w.sleep(1);
        assert_eq!(w.frame(2, update(text_insert(2, 1, "b"))), [close(2, 4401)]);
        assert_eq!(w.handle(Input::Timeout), [close(3, 4401)]);
    }

    #[test]
    fn it_ends_while_the_room_is_loaded_too() {
        let mut w = World::new(Config::default());
        let mut join = join(1);
        join.expires_at = Some(w.in_millis(1000));
        w.handle(Input::Connected(join.clone()));
        w.frame(1, update(text_insert(1, 0, "a")));
        w.sleep(1000);
        assert_eq!(w.loaded(&[]), [close(1, 4401)]);
        assert_eq!(w.join(2), [send([2], step1(&[]))]);
        // Too late from the start: not even a greeting.
        join.connection = ConnectionId(3);
        assert_eq!(w.handle(Input::Connected(join)), [close(3, 4401)]);
    }

    #[test]
    fn it_can_be_changed() {
        let mut w = World::open(Config::default(), [1, 2]);
        assert_eq!(w.access(1, Access::ReadOnly, None), []);
        assert_eq!(w.frame(1, update(text_insert(1, 0, "a"))), [send([1], DENIED)]);
        assert_eq!(w.access(1, Access::Write, Some(w.in_millis(1000))), []);
        let a = text_insert(1, 0, "a");
        assert_eq!(w.frame(1, update(&a)), [send([2], update(&a)), append(1, &a[..])]);
        assert_eq!(w.access(1, Access::Write, Some(w.in_millis(2000))), []);
        assert_eq!(w.pass(1999), []);
        assert_eq!(w.pass(1), [close(1, 4401)]);
        assert_eq!(w.access(1, Access::Write, None), []);
    }
}

mod presence_of_peers {
    use super::*;

    #[test]
    fn all_ids_of_a_connection_leave_with_it() {
        for closes in [false, true] {
            let mut w = World::open(Config::default(), [1, 2]);
            w.frame(1, presence(&[(7, 1, "{}"), (8, 5, "{}")]));
            w.pass(40);
            w.frame(2, presence(&[(9, 1, "{}")]));
            w.pass(40);
            let gone = send([2], presence(&[(7, 1, "null"), (8, 5, "null")]));
            if closes {
                assert_eq!(w.frame(1, [0]), [gone, close(1, 1007)]);
            } else {
                assert_eq!(w.leave(1), [gone]);
            }
            assert_eq!(w.join(3), [send([3], step1(&[])), send([3], presence(&[(9, 1, "{}")]))]);
        }
    }

    #[test]
    fn an_id_belongs_to_who_sent_its_newest_entry() {
        let mut w = World::open(Config::default(), [1, 2]);
        // Another tab of the same browser relayed it first.
        w.frame(2, presence(&[(7, 1, "{}")]));
        w.pass(40);
        w.frame(1, presence(&[(7, 2, "{}")]));
        w.pass(40);
        assert_eq!(w.leave(2), []);
        assert_eq!(w.pass(40), []);
        w.join(3);
        assert_eq!(w.leave(1), [send([3], presence(&[(7, 2, "null")]))]);
    }

    #[test]
    fn changes_within_an_interval_go_out_as_one() {
        let mut w = World::open(Config::default(), [1, 2]);
        assert_eq!(w.frame(1, presence(&[(7, 1, "1")])), [send([1, 2], presence(&[(7, 1, "1")]))]);
        w.pass(1);
        assert_eq!(w.frame(1, presence(&[(7, 2, "2")])), []);
        assert_eq!(w.frame(2, presence(&[(9, 1, "3")])), []);
        assert_eq!(w.frame(1, presence(&[(7, 3, "4")])), []);
        assert_eq!(w.pass(38), []);
        assert_eq!(w.pass(1), [send([1, 2], presence(&[(7, 3, "4"), (9, 1, "3")]))]);
    }

    #[test]
    fn what_is_not_renewed_is_removed_for_all() {
        let mut w = World::open(config(|config| config.keepalive = Duration::from_secs(600)), [1, 2]);
        w.frame(1, presence(&[(7, 1, "{}")]));
        w.pass(15_000);
        w.frame(1, presence(&[(7, 2, "{}")]));
        assert_eq!(w.pass(29_999), []);
        assert_eq!(w.pass(1), [send([1, 2], presence(&[(7, 2, "null")]))]);
        assert_eq!(w.frame(1, [3]), []);
    }

    #[test]
    fn who_comes_back_with_its_old_clock_is_told_and_announces_itself_anew() {
        let mut w = World::open(Config::default(), [1, 2]);
        w.frame(1, presence(&[(7, 1, "{}")]));
        w.pass(40);
        w.leave(1);
        w.pass(40);
        w.join(3);
        assert_eq!(w.frame(3, presence(&[(7, 1, "{}")])), [send([3], presence(&[(7, 1, "null")]))]);
        assert_eq!(w.frame(3, presence(&[(7, 2, "{}")])), [send([2, 3], presence(&[(7, 2, "{}")]))]);
    }

    #[test]
    fn too_many_ids_or_bytes_close_their_sender() {
        let limits = || {
            config(|config| {
                config.awareness_ids_max = 2;
                config.awareness_bytes_max = 6;
            })
        };
        let mut w = World::open(limits(), [1, 2]);
        assert_eq!(
            w.frame(1, presence(&[(7, 1, "{}"), (8, 1, "{}"), (9, 1, "{}")])),
            [send([1, 2], presence(&[(7, 1, "{}"), (8, 1, "{}")])), close(1, 1008)]
        );
        assert_eq!(w.pass(40), [send([2], presence(&[(7, 1, "null"), (8, 1, "null")]))]);
        assert_eq!(w.frame(2, presence(&[(7, 2, "1234567")])), [close(2, 1008)]);
    }

    #[test]
    fn two_hundred_stock_clients_that_send_back_all_they_hear_do_not_multiply_it() {
        let ids: [u64; 100] = std::array::from_fn(|n| n as u64 + 1);
        let mut w = World::open(Config::default(), ids);
        for id in 101..=200 {
            w.join(id);
        }
        let mut delivered = 0;
        for clock in 1..=3 {
            // Everybody renews; then hears, and sends back, as long as there is anything to hear.
            let mut inbox: Vec<_> = (1..=200).flat_map(|id| w.frame(id, announcement(id, clock))).collect();
            inbox.extend(w.pass(40));
            let mut rounds = 0;
            while !inbox.is_empty() {
                rounds += 1;
                assert!(rounds < 4, "it never ends");
                let mut next = Vec::new();
                for out in inbox {
                    let Out::Send(to, frame) = out else { panic!("{out:?}") };
                    delivered += to.len();
                    for to in to {
                        next.extend(w.frame(to, frame.clone()));
                    }
                }
                next.extend(w.pass(40));
                inbox = next;
            }
            w.pass(1000);
        }
        // One frame for the leading edge and one for the rest, three times.
        assert_eq!(delivered, 3 * 2 * 200);

        fn announcement(id: u64, clock: u8) -> Vec<u8> {
            let id = [(id & 127) as u8 | 128, (id >> 7) as u8];
            framed(&[1], &[&[1][..], &id, &[clock, 2], b"{}"].concat())
        }
    }
}

mod keepalive {
    use super::*;

    #[test]
    fn a_silent_connection_is_sent_an_empty_awareness_update() {
        let mut w = World::open(Config::default(), [1, 2]);
        w.pass(10_000);
        w.frame(1, [0, 0, 1, 0]);
        assert_eq!(w.pass(14_999), []);
        assert_eq!(w.pass(1), [send([2], [1, 1, 0])]);
        assert_eq!(w.pass(9_999), []);
        assert_eq!(w.pass(1), [send([1], [1, 1, 0])]);
    }

    #[test]
    fn not_a_congested_one_which_has_missed_nothing_by_it() {
        let mut w = World::open(Config::default(), [1]);
        w.congested(1);
        assert_eq!(w.pass(26_000), []);
        assert_eq!(w.writable(1), []);
        // It is alone, so nothing else would have set the timer.
        assert_eq!(w.pass(0), [send([1], KEEPALIVE)]);
        assert_eq!(w.pass(25_000), [send([1], KEEPALIVE)]);
    }

    #[test]
    fn while_a_room_is_loaded_too() {
        let mut w = World::new(Config::default());
        w.join(1);
        assert_eq!(w.pass(25_000), [send([1], KEEPALIVE)]);
    }
}

mod coalescing {
    use super::*;

    #[test]
    fn many_writers_and_readers_cost_a_frame_per_reader_and_interval() {
        let mut w = World::open(Config::default(), [1, 2, 3, 4, 5, 6, 7, 8]);
        w.frame(8, update(text_insert(8, 0, "z")));
        w.stored(1);
        for clock in 0..3 {
            for id in 1..=4u8 {
                assert_eq!(w.frame(id.into(), update(text_insert(id, clock, "x"))), []);
            }
        }
        let typed = |id: u8| (id, 0, [first("x"), after(id, 0, "x"), after(id, 1, "x")]);
        let all: Vec<_> = (1..=4).rev().map(typed).collect();
        let joined = |ids: &[u8]| {
            let sections: Vec<_> = all
                .iter()
                .filter(|(id, ..)| ids.contains(id))
                .map(|(id, clock, structs)| (*id, *clock, &structs[..]))
                .collect();
            structs(&sections, &[])
        };
        assert_eq!(
            w.pass(10),
            [
                send([5, 6, 7, 8], update(joined(&[1, 2, 3, 4]))),
                send([1], update(joined(&[2, 3, 4]))),
                send([2], update(joined(&[1, 3, 4]))),
                send([3], update(joined(&[1, 2, 4]))),
                send([4], update(joined(&[1, 2, 3]))),
                append(2, joined(&[1, 2, 3, 4])),
            ]
        );
        assert_eq!(w.stored(2), [send([1, 2, 3, 4], update(joined(&[1, 2, 3, 4])))]);
        assert_eq!(w.pass(100), []);
    }

    #[test]
    fn a_burst_of_one_author_does_not_wait_for_the_interval() {
        let mut w = World::open(Config::default(), [1, 2, 3]);
        w.frame(1, update(text_insert(1, 0, "a")));
        w.stored(1);
        w.pass(1);
        for clock in 1..4 {
            assert_eq!(w.frame(1, update(text_insert(1, clock, "b"))), []);
        }
        assert_eq!(w.pass(0), []);
        assert_eq!(w.frame(1, update(text_insert(1, 4, "b"))), []);
        assert_eq!(w.frame(2, update(text_insert(2, 0, "c"))), []);
        let burst: Vec<_> = (0..4).map(|clock| after(1, clock, "b")).collect();
        let by_1 = structs(&[(1, 1, &burst)], &[]);
        let by_2 = text_insert(2, 0, "c");
        let all = structs(&[(2, 0, &[first("c")]), (1, 1, &burst)], &[]);
        assert_eq!(
            w.pass(0),
            [
                send([3], update(&all)),
                send([1], update(&by_2)),
                send([2], update(&by_1)),
                append(2, &all[..])
            ]
        );
    }

    #[test]
    fn many_bytes_end_the_interval_early() {
        let mut w = World::open(config(|config| config.flush_bytes = 20), [1, 2]);
        w.frame(1, update(text_insert(1, 0, "a")));
        w.stored(1);
        assert_eq!(w.frame(1, update(text_insert(1, 1, "b"))), []);
        let bc = structs(&[(1, 1, &[after(1, 0, "b"), after(1, 1, "c")])], &[]);
        assert_eq!(w.frame(1, update(text_insert(1, 2, "c"))), [send([2], update(&bc)), append(2, &bc[..])]);
        assert_eq!(w.pass(100), []);
    }
}

mod limits {
    use super::*;

    #[test]
    fn the_length_of_a_state_vector() {
        let mut w = World::open(config(|config| config.state_vector_len_max = 3), [1, 2]);
        assert_eq!(w.frame(1, step1(&[(1, 1)])), [send([1], step2(NOTHING))]);
        assert_eq!(w.frame(1, step1(&[(1, 1), (2, 1)])), [close(1, 1009)]);
    }

    #[test]
    fn a_frame_full_of_questions_is_answered_once() {
        let mut w = World::open(Config::default(), [1, 2]);
        let a = text_insert(1, 0, "a");
        w.frame(1, update(&a));
        w.stored(1);
        let questions = [step1(&[]), step1(&[(2, 1)]), step1(&[(3, 1)])].concat().repeat(1_000);
        assert_eq!(w.frame(2, questions), [send([2], step2(&a))]);
    }

    #[test]
    fn the_log_keeps_an_update_and_not_the_frame_it_came_in() {
        let mut w = World::open(Config::default(), [1, 2]);
        let a = text_insert(1, 0, "a");
        let frame = Bytes::from([&[2, 0, 0x80, 0x80, 4][..], &[b'x'; 1 << 16], &update(&a)].concat());
        let memory = frame.as_ptr_range();
        let _ = w
            .server
            .handle(w.in_millis(0), Input::Received { connection: ConnectionId(1), frame: frame.clone() });
        let journal = w.server.room(&room()).unwrap().journal();
        for kept in journal.updates() {
            assert_eq!(kept, &a);
            assert!(!memory.contains(&kept.as_ptr()));
        }
        assert_eq!(journal.tail_count(), 1);
    }

    #[test]
    fn rooms() {
        let mut w = World::new(config(|config| config.rooms_max = 2));
        w.join_room(1, "a");
        w.join_room(2, "b");
        assert_eq!(w.server.admits(&room()), Err(Refusal::RoomsFull));
        assert_eq!(w.join(3), [close(3, 1013)]);
        assert_eq!(w.server.admits(&RoomName::new("b").unwrap()), Ok(()));
        assert_eq!(w.join_room(4, "b"), []);
        assert_eq!(w.server.rooms().len(), 2);
    }

    #[test]
    fn peers_of_a_room() {
        let mut w = World::open(config(|config| config.peers_per_room_max = 2), [1, 2]);
        assert_eq!(w.server.admits(&room()), Err(Refusal::RoomFull));
        assert_eq!(w.join(3), [close(3, 1013)]);
        w.leave(1);
        assert_eq!(w.server.admits(&room()), Ok(()));
        assert_eq!(w.join(3), [send([3], step1(&[]))]);
    }

    #[test]
    fn the_length_of_a_frame() {
        let mut w = World::open(config(|config| config.frame_len_max = 14), [1, 2]);
        assert_eq!(update(text_insert(1, 0, "a")).len(), 14);
        assert_eq!(w.frame(1, update(text_insert(1, 0, "a"))).len(), 2);
        assert_eq!(w.frame(1, update(text_insert(1, 1, "bcdef"))), [close(1, 1009)]);
    }

    #[test]
    fn a_single_update_is_never_too_much_for_the_store() {
        let mut w = World::open(config(|config| config.unstored_bytes_max = 1), [1, 2]);
        let (a, b) = (text_insert(1, 0, "a"), text_insert(2, 0, "b"));
        assert_eq!(w.frame(1, update(&a)), [send([2], update(&a)), append(1, &a[..])]);
        assert_eq!(w.frame(2, update(&b)), [close(2, 1013)]);
    }

    #[test]
    fn delays_without_end_are_a_year_and_those_of_nothing_do_not_spin() {
        for delay in [Duration::MAX, Duration::ZERO] {
            let mut w = World::open(
                config(|config| {
                    (config.keepalive, config.idle_delay, config.congestion_timeout) = (delay, delay, delay);
                    (config.awareness_timeout, config.flush_interval, config.view_delay) =
                        (delay, delay, delay);
                }),
                [1, 2],
            );
            w.frame(1, update(text_insert(1, 0, "a")));
            w.frame(1, presence(&[(1, 1, "{}")]));
            w.congested(1);
            w.pass(10);
            w.leave(1);
            w.leave(2);
            w.pass(10);
        }
    }

    #[test]
    fn what_waits_for_the_store() {
        let (a, b, c) = (text_insert(1, 0, "a"), text_insert(1, 1, "b"), text_insert(1, 2, "c"));
        let max = a.len() + b.len();
        let mut w = World::open(config(|config| config.unstored_bytes_max = max), [1, 2]);
        w.frame(1, update(&a));
        w.pass(10);
        w.frame(1, update(&b));
        assert_eq!(w.server.room(&room()).unwrap().unstored_bytes(), max);
        assert_eq!(w.frame(1, update(&c)), [close(1, 1013)]);
        // Its author still has it, and comes back.
        assert_eq!(w.stored(1), [append(2, &b[..])]);
        w.stored(2);
        w.pass(10);
        w.join(3);
        assert_eq!(w.frame(3, step2(&c)), [send([2], update(&c)), append(3, &c[..])]);
    }
}

mod totality {
    use super::*;

    #[test]
    fn time_that_goes_backwards_stands_still() {
        let mut w = World::open(Config::default(), [1, 2]);
        let (a, b) = (text_insert(1, 0, "a"), text_insert(1, 1, "b"));
        w.pass(1000);
        let later = w.now;
        w.frame(1, update(&a));
        w.stored(1);
        w.now = later - Duration::from_millis(900);
        assert_eq!(w.frame(1, update(&b)), []);
        assert_eq!(w.server.next_timeout(), Some(later + Duration::from_millis(10)));
        w.now = later;
        assert_eq!(w.pass(10), [send([2], update(&b)), append(2, &b[..])]);
    }

    #[test]
    fn inputs_about_what_is_not_there_are_ignored() {
        let mut w = World::open(Config::default(), [1]);
        w.leave(1);
        for id in [1, 9] {
            assert_eq!(w.frame(id, step1(&[])), []);
            assert_eq!(w.frame(id, [9, 9]), []);
            w.congested(id);
            assert_eq!(w.writable(id), []);
            assert_eq!(w.leave(id), []);
            assert_eq!(w.access(id, Access::Write, Some(w.now)), []);
        }
        let other = RoomName::new("other").unwrap();
        for input in [
            Input::Loaded { room: other.clone(), updates: vec![] },
            Input::LoadFailed { room: other.clone() },
            Input::Stored { room: other.clone(), seq: 1 },
            Input::StoreFailed { room: other, seq: 1 },
        ] {
            assert_eq!(w.handle(input), []);
        }
    }

    #[test]
    fn a_connection_takes_part_in_one_room() {
        let mut w = World::open(Config::default(), [1]);
        assert_eq!(w.join(1), []);
        assert_eq!(w.join_room(1, "other"), []);
        assert_eq!(w.server.rooms().len(), 1);
    }

    #[test]
    fn rooms_do_not_mix() {
        let mut w = World::open(Config::default(), [1]);
        w.join_room(2, "other");
        let other = RoomName::new("other").unwrap();
        w.handle(Input::Loaded { room: other, updates: vec![] });
        let a = text_insert(1, 0, "a");
        assert_eq!(w.frame(1, update(&a)), [append(1, &a[..])]);
        assert_eq!(w.frame(2, step1(&[])), [send([2], step2(NOTHING))]);
    }

    #[test]
    fn early_timeouts_do_nothing() {
        let mut w = World::open(Config::default(), [1, 2]);
        w.frame(1, update(text_insert(1, 0, "a")));
        w.frame(1, update(text_insert(1, 1, "b")));
        w.frame(1, presence(&[(7, 1, "{}")]));
        w.frame(1, presence(&[(7, 2, "{}")]));
        for _ in 0..9 {
            w.sleep(1);
            assert_eq!(w.handle(Input::Timeout), []);
        }
    }
}

mod convergence {
    use std::collections::{BTreeMap, VecDeque};

    use proptest::prelude::*;
    use yrs::{Doc, StateVector, updates::encoder::Encode};
    use yrs_websocket::{
        journal::{Journal, JournalLimits},
        message::Message,
        update::{ScanRules, Update},
    };

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever happens, the rules of the world hold; and once the world has healed, everybody and
        /// the store have the same document.
        #[test]
        fn whatever_happens_all_end_in_the_same_document(ops in proptest::collection::vec(ops(), 1..200)) {
            let mut sim = Sim::new();
            ops.iter().for_each(|op| sim.perform(op));
            sim.heal();
            sim.judge();
        }

        /// Whatever happened, and whether the store answers or not, a drain ends, all are sent away, and
        /// what is reported as durable is.
        #[test]
        fn whatever_happens_a_drain_ends(
            before in proptest::collection::vec(ops(), 1..60),
            after in proptest::collection::vec(ops(), 0..30),
            millis in 0u64..2000,
        ) {
            let mut sim = Sim::new();
            before.iter().for_each(|op| sim.perform(op));
            sim.is_draining = true;
            sim.w.events();
            let deadline = sim.w.in_millis(millis);
            let out = sim.w.drain(deadline);
            sim.take(out);
            after.iter().for_each(|op| sim.perform(op));
            sim.perform(&Op::Pass(millis));
            prop_assert_eq!(sim.w.server.rooms().len(), 0);
            prop_assert!(sim.clients.iter().all(|client| client.connection.is_none()));
            prop_assert_eq!(sim.w.server.next_timeout(), None);
            let events = sim.w.events();
            prop_assert_eq!(events.iter().filter(|event| **event == Event::Drained).count(), 1);
            prop_assert!(sim.w.now < deadline || !events.is_empty());
        }
    }

    #[derive(Debug, Clone)]
    enum Op {
        Join(usize),
        Leave(usize),
        Type(usize, u32, String),
        Delete(usize, u32),
        /// An edit that is sent only when the world heals, so that what follows misses something.
        TypeHeld(usize, u32),
        Deliver(usize, usize),
        Congest(usize),
        Writable(usize),
        Ask(usize),
        Presence(usize),
        Garbage(usize, Vec<u8>),
        /// An honest frame, cut.
        Cut(usize, usize),
        ReadOnly(usize, bool),
        Edit(usize, String),
        Store(usize, Outcome),
        Pass(u64),
        Sleep(u64),
        Backwards(u64),
    }

    #[derive(Debug, Clone, Copy)]
    enum Outcome {
        Done,
        Failed,
        DoneButReportedAsFailed,
        Lost,
    }

    fn ops() -> impl Strategy<Value = Op> {
        let who = || 0usize..CLIENTS;
        prop_oneof![
            4 => who().prop_map(Op::Join),
            1 => who().prop_map(Op::Leave),
            8 => (who(), any::<u32>(), "[a-z]{1,3}").prop_map(|(who, at, text)| Op::Type(who, at, text)),
            3 => (who(), any::<u32>()).prop_map(|(who, at)| Op::Delete(who, at)),
            1 => (who(), any::<u32>()).prop_map(|(who, at)| Op::TypeHeld(who, at)),
            6 => (who(), 1usize..5).prop_map(|(who, n)| Op::Deliver(who, n)),
            2 => who().prop_map(Op::Congest),
            2 => who().prop_map(Op::Writable),
            1 => who().prop_map(Op::Ask),
            1 => who().prop_map(Op::Presence),
            1 => (who(), proptest::collection::vec(0u8..8, 0..12)).prop_map(|(who, bytes)| Op::Garbage(who, bytes)),
            1 => (who(), 0usize..20).prop_map(|(who, len)| Op::Cut(who, len)),
            1 => (who(), any::<bool>()).prop_map(|(who, may_not)| Op::ReadOnly(who, may_not)),
            1 => (0usize..ROOMS.len(), "[A-Z]").prop_map(|(room, text)| Op::Edit(room, text)),
            8 => (0usize..ROOMS.len(), outcomes()).prop_map(|(room, outcome)| Op::Store(room, outcome)),
            4 => prop_oneof![0u64..15, 0u64..500, 0u64..70_000].prop_map(Op::Pass),
            1 => prop_oneof![0u64..15, 0u64..70_000].prop_map(Op::Sleep),
            1 => (0u64..1000).prop_map(Op::Backwards),
        ]
    }

    fn outcomes() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            12 => Just(Outcome::Done),
            2 => Just(Outcome::Failed),
            1 => Just(Outcome::DoneButReportedAsFailed),
            1 => Just(Outcome::Lost),
        ]
    }

    const CLIENTS: usize = 5;
    const ROOMS: [&str; 2] = ["r", "s"];

    struct Sim {
        w: World,
        clients: Vec<Client>,
        store: BTreeMap<String, Stored>,
        connections: u64,
        is_draining: bool,
    }

    struct Client {
        doc: Doc,
        id: u64,
        room: &'static str,
        connection: Option<u64>,
        /// Its own clock when it joined: what it wrote since must not be acknowledged early.
        joined_at: u32,
        inbox: VecDeque<Vec<u8>>,
        held: Vec<Vec<u8>>,
        presence: u8,
        is_read_only: bool,
        /// It edited all the same, and so has what nobody else gets.
        is_on_its_own: bool,
    }

    #[derive(Default)]
    struct Stored {
        records: Vec<Vec<u8>>,
        /// What the server waits for.
        question: Option<Question>,
        last: Option<u64>,
        has_lost: bool,
    }

    enum Question {
        Load,
        Append(u64, Vec<u8>),
        Compact(u64, yrs_websocket::journal::Squash),
    }

    impl Sim {
        fn new() -> Self {
            let clients = (0..CLIENTS).map(|n| Client {
                doc: Doc::with_client_id(n as u64 + 1),
                id: n as u64 + 1,
                room: ROOMS[n / 3],
                connection: None,
                joined_at: 0,
                inbox: VecDeque::new(),
                held: Vec::new(),
                presence: 0,
                is_read_only: false,
                is_on_its_own: false,
            });
            let config = config(|config| config.squash_count = 4);
            Self {
                w: World::new(config),
                clients: clients.collect(),
                store: BTreeMap::new(),
                connections: 0,
                is_draining: false,
            }
        }

        fn perform(&mut self, op: &Op) {
            match op {
                Op::Join(who) => self.join(*who),
                Op::Leave(who) => {
                    if let Some(connection) = self.clients[*who].connection.take() {
                        self.clients[*who].inbox.clear();
                        let out = self.w.leave(connection);
                        self.take(out);
                    }
                }
                Op::Type(who, at, text) => {
                    let update = self.clients[*who].insert(*at, text);
                    self.send(*who, framed(&[0, 2], &update));
                }
                Op::TypeHeld(who, at) => {
                    let update = self.clients[*who].insert(*at, "h");
                    if !self.clients[*who].is_read_only {
                        self.clients[*who].held.push(update);
                    }
                }
                Op::Delete(who, at) => {
                    if let Some(update) = self.clients[*who].delete(*at) {
                        self.send(*who, framed(&[0, 2], &update));
                    }
                }
                Op::Deliver(who, n) => {
                    for _ in 0..*n {
                        self.deliver(*who);
                    }
                }
                Op::Congest(who) => {
                    if let Some(connection) = self.clients[*who].connection {
                        let connection = ConnectionId(connection);
                        let out = self.w.handle(Input::Congested { connection });
                        self.take(out);
                    }
                }
                Op::Writable(who) => {
                    if let Some(connection) = self.clients[*who].connection {
                        let out = self.w.writable(connection);
                        self.take(out);
                    }
                }
                Op::Ask(who) => {
                    let state = self.clients[*who].doc.transact().state_vector().encode_v1();
                    self.send(*who, framed(&[0, 0], &state));
                    self.send(*who, vec![3]);
                }
                Op::Presence(who) => {
                    self.clients[*who].presence = (self.clients[*who].presence + 1) & 127;
                    let entry = (self.clients[*who].id as u8, self.clients[*who].presence, "{}");
                    self.send(*who, presence(&[entry]));
                }
                Op::Garbage(who, bytes) => {
                    // Updates that read are no garbage: they would be edits under a foreign id.
                    let frame = Bytes::from(bytes.clone());
                    let is_edit = Message::decode(&frame).any(|message| match message {
                        Ok(Message::Update(update) | Message::SyncStep2(update)) => {
                            Update::scan(update, &rules()).is_ok_and(|update| !update.is_empty())
                        }
                        _ => false,
                    });
                    if !is_edit {
                        self.send(*who, bytes.clone());
                    }
                }
                Op::Cut(who, len) => {
                    let state = StateVector::default();
                    let all = self.clients[*who].doc.transact().encode_diff_v1(&state);
                    let frame = framed(&[0, 2], &all);
                    self.send(*who, frame[..(*len).min(frame.len() - 1)].to_vec());
                }
                Op::ReadOnly(who, may_not) => {
                    let client = &mut self.clients[*who];
                    // What it wrote under the other right must be settled, or it has what nobody gets.
                    if client.connection.is_none() && client.state().is_empty() {
                        client.is_read_only = *may_not;
                    }
                }
                Op::Edit(room, text) => {
                    let room = RoomName::new(ROOMS[*room]).unwrap();
                    let edited = self.w.server.edit(self.w.now, &room, |txn| {
                        txn.get_or_insert_text("t").insert(txn, 0, text);
                    });
                    if let Ok(((), outputs)) = edited {
                        let out = self.w.check(outputs);
                        self.take(out);
                    }
                }
                Op::Store(room, outcome) => self.answer(ROOMS[*room], *outcome),
                Op::Pass(millis) => {
                    let out = self.w.pass(*millis);
                    self.take(out);
                }
                Op::Sleep(millis) => self.w.sleep(*millis),
                Op::Backwards(millis) => {
                    let now = self.w.now;
                    self.w.now = now.checked_sub(Duration::from_millis(*millis)).unwrap_or(now);
                    let out = self.w.handle(Input::Timeout);
                    self.take(out);
                    self.w.now = now;
                }
            }
        }

        fn join(&mut self, who: usize) {
            if self.clients[who].connection.is_some() {
                return;
            }
            self.connections += 1;
            let client = &mut self.clients[who];
            client.connection = Some(self.connections);
            client.joined_at = client.state().get(&yrs::ClientID::new(client.id));
            let room = RoomName::new(client.room).unwrap();
            let access = if client.is_read_only { Access::ReadOnly } else { Access::Write };
            let state = client.state().encode_v1();
            let join = Join::new(ConnectionId(self.connections), room, access);
            let out = self.w.handle(Input::Connected(join));
            self.take(out);
            self.send(who, framed(&[0, 0], &state));
        }

        fn send(&mut self, who: usize, frame: Vec<u8>) {
            if let Some(connection) = self.clients[who].connection {
                let out = self.w.frame(connection, frame);
                self.take(out);
            }
        }

        /// One frame to a client, as a stock client takes it.
        fn deliver(&mut self, who: usize) {
            let Some(frame) = self.clients[who].inbox.pop_front() else { return };
            let client = &mut self.clients[who];
            match Message::decode(&Bytes::from(frame.clone())).next() {
                Some(Ok(Message::SyncStep1(state))) => {
                    let known = StateVector::decode_v1(&state).unwrap();
                    let update = client.doc.transact().encode_diff_v1(&known);
                    self.send(who, framed(&[0, 1], &update));
                }
                Some(Ok(Message::SyncStep2(update) | Message::Update(update))) => client.apply(&update),
                Some(Ok(Message::Awareness(_))) => self.send(who, frame),
                _ => {}
            }
        }

        fn take(&mut self, out: Vec<Out>) {
            // Writes go to the store of their room; a room has one question at a time.
            let appends = self
                .w
                .appends
                .drain(..)
                .map(|(room, seq, update)| (room, Question::Append(seq, update.into())));
            let compacts =
                self.w.squashes.drain(..).map(|(room, seq, squash)| (room, Question::Compact(seq, squash)));
            for (room, question) in appends.chain(compacts) {
                let stored = self.store.get_mut(room.as_str()).expect("it was loaded");
                assert!(stored.question.replace(question).is_none(), "two writes at a time");
            }
            for out in out {
                match out {
                    Out::Send(to, frame) => {
                        for to in to {
                            let Some(who) = self.clients.iter().position(|c| c.connection == Some(to)) else {
                                panic!("nobody is {to}")
                            };
                            self.check_echo(who, &frame);
                            self.clients[who].inbox.push_back(frame.clone());
                        }
                    }
                    Out::Close(connection, code) => {
                        assert!([1007, 1013].contains(&code) || (code == 1012 && self.is_draining), "{code}");
                        for client in &mut self.clients {
                            if client.connection == Some(connection) {
                                client.connection = None;
                                client.inbox.clear();
                            }
                        }
                    }
                    Out::Load(room) => {
                        let stored = self.store.entry(room).or_default();
                        stored.last = None;
                        assert!(stored.question.replace(Question::Load).is_none());
                    }
                    Out::Append(..) | Out::Compact(_) => {}
                }
            }
        }

        /// Nothing tells an author that its edit is durable before it is.
        fn check_echo(&self, who: usize, frame: &[u8]) {
            let client = &self.clients[who];
            let (Some(Ok(Message::SyncStep2(update) | Message::Update(update))), Some(stored)) =
                (Message::decode(&Bytes::copy_from_slice(frame)).next(), self.store.get(client.room))
            else {
                return;
            };
            if stored.has_lost {
                return;
            }
            let durable: Vec<_> = stored.records.iter().map(|record| scan(record)).collect();
            for (id, clocks) in scan(&update).inserts() {
                if id.get() != client.id {
                    continue;
                }
                for clock in clocks.start.max(client.joined_at.into())..clocks.end {
                    let is_durable = durable
                        .iter()
                        .flat_map(Update::inserts)
                        .any(|(other, clocks)| other == id && clocks.contains(&clock));
                    assert!(is_durable, "client {} was told of its own clock {clock} early", client.id);
                }
            }
        }

        fn answer(&mut self, name: &'static str, outcome: Outcome) {
            let stored = self.store.entry(name.to_owned()).or_default();
            let room = RoomName::new(name).unwrap();
            let is_done = !matches!(outcome, Outcome::Failed);
            let fails = !matches!(outcome, Outcome::Done);
            let input = match (stored.question.take(), outcome) {
                (question, Outcome::Lost) => {
                    let is_ambiguous = matches!(question, Some(Question::Compact(..) | Question::Load));
                    stored.question = question;
                    let Some(seq) = stored.last.filter(|_| !is_ambiguous) else { return };
                    stored.last = None;
                    stored.records.pop();
                    stored.has_lost = true;
                    Input::StoreFailed { room, seq }
                }
                (None, _) => return,
                (Some(Question::Load), _) if fails => Input::LoadFailed { room },
                (Some(Question::Load), _) => {
                    Input::Loaded { room, updates: stored.records.iter().cloned().map(Bytes::from).collect() }
                }
                (Some(Question::Append(seq, update)), _) => {
                    if is_done {
                        stored.records.push(update);
                        stored.last = Some(seq).filter(|_| !fails);
                    }
                    if fails { Input::StoreFailed { room, seq } } else { Input::Stored { room, seq } }
                }
                (Some(Question::Compact(seq, squash)), _) => {
                    let squashed = squash.run();
                    if is_done {
                        stored.records = squashed.updates().map(|update| update.to_vec()).collect();
                        stored.last = None;
                    }
                    if fails {
                        Input::StoreFailed { room, seq }
                    } else {
                        Input::Compacted { room, seq, squashed }
                    }
                }
            };
            let out = self.w.handle(input);
            self.take(out);
        }

        fn heal(&mut self) {
            for who in 0..CLIENTS {
                for update in std::mem::take(&mut self.clients[who].held) {
                    self.send(who, framed(&[0, 2], &update));
                }
            }
            for _ in 0..12 {
                for who in 0..CLIENTS {
                    self.perform(&Op::Writable(who));
                    self.join(who);
                }
                for _ in 0..6 {
                    for room in ROOMS {
                        self.answer(room, Outcome::Done);
                    }
                    for who in 0..CLIENTS {
                        while !self.clients[who].inbox.is_empty() {
                            self.deliver(who);
                        }
                    }
                    self.perform(&Op::Pass(20));
                }
                self.perform(&Op::Pass(6000));
            }
        }

        fn judge(&self) {
            for room in ROOMS {
                let Some(stored) = self.store.get(room) else { continue };
                assert!(stored.question.is_none(), "room {room} is not quiet");
                let (doc, mut journal) = (Doc::with_client_id(99), Journal::new(JournalLimits::default()));
                for record in &stored.records {
                    doc.transact_mut().apply_update(yrs::Update::decode_v1(record).unwrap()).unwrap();
                    journal.restore(&scan(record));
                }
                let expected = text_of(&doc);
                let state = doc.transact().state_vector();
                let records = &stored.records;
                assert_eq!(
                    clocks(&state),
                    journal_clocks(&journal),
                    "what is stored, to yrs and to a journal: {records:?}"
                );
                let live = self.w.server.room(&RoomName::new(room).unwrap()).expect("clients are in it");
                assert_eq!(
                    journal_clocks(&journal),
                    journal_clocks(live.journal()),
                    "the store and the room"
                );
                for client in self.clients.iter().filter(|client| client.room == room) {
                    assert!(client.connection.is_some(), "client {} is not let in", client.id);
                    if client.is_on_its_own {
                        continue;
                    }
                    assert_eq!(text_of(&client.doc), expected, "client {}", client.id);
                    assert_eq!(clocks(&client.state()), clocks(&state), "client {}", client.id);
                }
            }
        }
    }

    impl Client {
        fn insert(&mut self, at: u32, text: &str) -> Vec<u8> {
            self.is_on_its_own |= self.is_read_only;
            let root = self.doc.get_or_insert_text("t");
            let mut txn = self.doc.transact_mut();
            let at = at % (root.len(&txn) + 1);
            root.insert(&mut txn, at, text);
            txn.encode_update_v1()
        }

        fn delete(&mut self, at: u32) -> Option<Vec<u8>> {
            self.is_on_its_own |= self.is_read_only;
            let root = self.doc.get_or_insert_text("t");
            let mut txn = self.doc.transact_mut();
            let len = root.len(&txn);
            if len == 0 {
                return None;
            }
            root.remove_range(&mut txn, at % len, 1);
            Some(txn.encode_update_v1())
        }

        fn apply(&mut self, update: &[u8]) {
            self.doc.transact_mut().apply_update(yrs::Update::decode_v1(update).unwrap()).unwrap();
        }

        fn state(&self) -> StateVector {
            self.doc.transact().state_vector()
        }
    }

    fn scan(bytes: &[u8]) -> Update {
        Update::scan(Bytes::copy_from_slice(bytes), &rules()).unwrap()
    }

    fn rules() -> ScanRules {
        ScanRules::default()
    }

    fn text_of(doc: &Doc) -> String {
        let root = doc.get_or_insert_text("t");
        let txn = doc.transact();
        root.get_string(&txn)
    }

    fn clocks(state: &StateVector) -> BTreeMap<u64, u64> {
        state.iter().map(|(client, clock)| (client.get(), (*clock).into())).collect()
    }

    fn journal_clocks(journal: &Journal) -> BTreeMap<u64, u64> {
        journal.state_vector().iter().map(|(client, clock)| (client.get(), clock)).collect()
    }
}

fn text(w: &mut World) -> Result<String, ViewError> {
    w.server
        .read(w.now, &room(), |txn| txn.get_text("t").map_or_else(String::new, |text| text.get_string(txn)))
}
