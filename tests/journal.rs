//! The journal against yrs, and its rules one by one.

mod histories;
#[path = "traces/trace.rs"]
mod trace;

use bytes::Bytes;
use proptest::prelude::*;
use yrs::{GetString, ReadTxn, Transact, WriteTxn};
use yrs_websocket::{
    journal::{Journal, JournalLimits, Mark, Received, Squash, Squashed},
    update::{ClientId, ScanRules, SquashOptions, StateVector, Update, UpdateError, diff, join, squash},
};

use histories::{History, Step, apply, content, document, history};

// ---- against yrs

proptest! {
    #[test]
    fn the_state_vector_is_that_of_a_document_and_redelivery_is_nothing(
        steps in steps(80), order in prop::collection::vec(any::<u16>(), 0..40),
    ) {
        let History { mut updates, end, .. } = history(&without_formats(steps));
        let end = state_of(&end);
        // Some arrive late, some twice.
        for pair in order.chunks_exact(2) {
            let Some(from) = usize::from(pair[0]).checked_rem(updates.len()) else { continue };
            let to = usize::from(pair[1]) % updates.len();
            if pair[0] % 3 == 0 {
                updates.push(updates[from].clone());
            } else {
                updates.swap(from, to);
            }
        }
        let mut journal = Journal::new(JournalLimits::default());
        let doc = document(1, false);
        let mut relayed = Vec::new();
        for (i, bytes) in updates.iter().enumerate() {
            let received = journal.receive(&scan(bytes));
            apply(&doc, bytes);
            let theirs = state_of(&doc);
            if journal.parked_bytes() == 0 {
                // Like Yjs, yrs does not always notice at once that what was pending has become possible.
                let noticed = document_of(&[scan(&histories::state_beyond(&doc, &Default::default()).into())]);
                prop_assert!([theirs, state_of(&noticed)].contains(journal.state_vector()));
            } else {
                // How far one gets where something is missing is for Yjs to judge: yrs fills gaps later.
                prop_assert!(journal.state_vector().iter().all(|(client, clock)| clock <= end.clock(client)));
            }
            if let Received::New(new) = received {
                prop_assert_eq!(&scan(new.bytes()), &new);
                relayed.push(new);
            }
            let version = journal.version();
            for seen in &updates[..=i] {
                prop_assert_eq!(journal.receive(&scan(seen)), Received::Nothing);
            }
            prop_assert_eq!(journal.version(), version);
        }
        prop_assert_eq!(journal.parked_bytes(), 0);
        updates.iter().for_each(|bytes| apply(&doc, bytes));
        for updates in [relayed, vec![journal.diff(&StateVector::default()).main], read(journal.updates())] {
            prop_assert_eq!(content(&document_of(&updates)), content(&doc));
        }
    }

    #[test]
    fn joined_cut_and_squashed_updates_read_like_the_originals(steps in steps(80)) {
        let History { updates, end, earlier } = history(&without_formats(steps));
        // What everybody has, so that nothing is missing.
        let everything = histories::state_beyond(&end, &yrs::StateVector::default()).into();
        let updates = read(updates.iter().chain([&everything]));
        let (collect, keep) = (SquashOptions { collect: true }, SquashOptions { collect: false });
        let (first, second) = updates.split_at(updates.len() / 2);
        let bit_by_bit = [&[squash(first, collect)], second].concat();
        let small = squash(&updates, collect);
        let wholes = [
            join(&updates),
            squash(&[join(&updates)], collect),
            squash(&updates, keep),
            squash(&bit_by_bit, collect),
            squash(std::slice::from_ref(&small), collect),
            small,
        ];
        for whole in &wholes {
            prop_assert_eq!(&scan(whole.bytes()), whole);
            let reader = document_of(std::slice::from_ref(whole));
            prop_assert_eq!(content(&reader), content(&end));
            prop_assert_eq!(state_of(&reader), state_of(&end));
            for (known, state) in &earlier {
                let known = StateVector::decode(&histories::encoded(known)).unwrap();
                let missing = diff(whole, &known);
                prop_assert_eq!(&scan(missing.bytes()), &missing);
                let reader = document_of(&[scan(&state.clone().into()), missing]);
                prop_assert_eq!(content(&reader), content(&end));
                prop_assert_eq!(state_of(&reader), state_of(&end));
            }
        }
    }

    #[test]
    fn what_yrs_writes_passes_and_what_became_of_it_in_transit_does_no_harm(
        steps in steps(30), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let updates = history(&steps).updates;
        prop_assume!(!updates.is_empty());
        let mut journal = Journal::new(JournalLimits { parked_bytes_max: 2000 });
        for bytes in &updates {
            let mut broken = bytes.to_vec();
            for (at, byte) in &changes {
                *at.get_mut(&mut broken) = *byte;
            }
            scan(bytes);
            for bytes in [Bytes::from(broken), bytes.slice(..bytes.len() / 2), bytes.clone()] {
                if let Ok(update) = Update::scan(bytes, &ScanRules::default()) {
                    match journal.receive(&update) {
                        Received::New(new) => prop_assert_eq!(&scan(new.bytes()), &new),
                        Received::Nothing | Received::Overflow => {}
                    }
                    prop_assert_ne!(matches!(journal.receive(&update), Received::New(_)), true);
                }
            }
            prop_assert!(journal.parked_bytes() <= 2000);
        }
        let everything = journal.diff(&StateVector::default());
        prop_assert_eq!(&scan(everything.main.bytes()), &everything.main);
        // Who is told all of it, what contradicts itself first, has all that the journal has.
        let mut other = Journal::new(JournalLimits::default());
        for update in everything.conflicting.iter().chain([&everything.main]) {
            let _ = other.receive(update);
        }
        prop_assert!(
            journal.state_vector().iter().all(|(client, clock)| clock <= other.state_vector().clock(client)),
            "{everything:?} {journal:?}",
        );
        // And so has who loads what a squash made of it.
        let squashed = journal.squash(SquashOptions::default()).run();
        let mut loaded = Journal::new(JournalLimits::default());
        for bytes in [&squashed.state].into_iter().chain(&squashed.conflicting) {
            let _ = loaded.receive(&scan(bytes));
        }
        prop_assert_eq!(loaded.state_vector(), journal.state_vector());
        prop_assert_eq!(loaded.parked_bytes() > 0, journal.parked_bytes() > 0);
    }
}

#[test]
fn a_quarter_of_a_million_keystrokes_squash_to_what_the_text_is_worth() {
    let trace = trace::automerge_paper();
    let mut journal = Journal::new(JournalLimits::default());
    for bytes in &trace.updates {
        let update = scan(bytes);
        assert_eq!(journal.receive(&update), Received::New(update));
    }
    assert_eq!(journal.tail_count(), 259_778);
    let squashed = journal.squash(SquashOptions { collect: true }).run();
    let kept = journal.squash(SquashOptions { collect: false }).run();
    eprintln!(
        "{} bytes squash to {}, {} with what was deleted",
        journal.tail_bytes(),
        squashed.state.len(),
        kept.state.len(),
    );
    assert!(squashed.state.len() <= 210_000, "{}", squashed.state.len());
    for state in [squashed.state, kept.state] {
        let reader = document_of(&[scan(&state)]);
        let mut txn = reader.transact_mut();
        let text = txn.get_or_insert_text("t");
        assert!(text.get_string(&txn) == trace.end, "the text is another");
    }
}

// ---- what is next, what is parked

#[test]
fn an_update_that_is_all_new_goes_on_with_its_own_bytes() {
    let mut journal = Journal::default();
    let bytes = Bytes::from(vec![1, 1, 1, 0, 4, 1, 1, b't', 1, b'a', 1, 1, 1, 0, 1]);
    let Received::New(new) = journal.receive(&scan(&bytes)) else { panic!() };
    assert_eq!(new.bytes().as_ptr(), bytes.as_ptr());
    assert_eq!(journal.receive(&scan(&bytes)), Received::Nothing);
    assert_eq!(journal.receive(&Update::default()), Received::Nothing);
    assert_eq!((journal.version(), journal.tail_count(), journal.len_bytes()), (1, 1, bytes.len()));
}

#[test]
fn of_what_overlaps_the_new_part_goes_on() {
    let mut journal = Journal::default();
    let _ = journal.receive(&text(1, 0, "abc"));
    assert_eq!(journal.receive(&text(1, 1, "XYZ")), new(&[1, 1, 1, 3, 0x84, 1, 2, 1, b'Z', 0]));
    assert_eq!(clock(&journal, 1), 4);
}

#[test]
fn behind_a_gap_parks_goes_on_and_is_integrated_when_the_gap_closes() {
    let mut journal = Journal::default();
    let (late, early) = (after(1, 1, "b"), text(1, 0, "a"));
    assert_eq!(journal.receive(&late), Received::New(late.clone()));
    assert_eq!(journal.receive(&late), Received::Nothing);
    assert_eq!((clock(&journal, 1), journal.tail_count(), journal.parked_bytes() > 0), (0, 0, true));
    assert_eq!(journal.diff(&StateVector::default()).main, late);
    assert_eq!(journal.receive(&early), Received::New(early));
    assert_eq!((clock(&journal, 1), journal.tail_count(), journal.parked_bytes()), (2, 2, 0));
}

#[test]
fn the_same_struct_without_the_hint_of_its_key_is_known() {
    let mut journal = Journal::default();
    let _ = journal.receive(&update(&[1, 1, 1, 5, 0xa8, 1, 4, 1, 126, 0]));
    assert_eq!(journal.receive(&update(&[1, 1, 1, 5, 0x88, 1, 4, 1, 126, 0])), Received::Nothing);
}

#[test]
fn what_hangs_on_others_waits_for_origin_right_origin_and_parent() {
    for waiting in [
        vec![0x84, 9, 1, 1, b'x'],       // origin
        vec![0x44, 9, 1, 1, b'x'],       // right origin
        vec![4, 0, 9, 1, 1, b'x'],       // parent
        vec![0xc4, 9, 0, 9, 1, 1, b'x'], // both
    ] {
        let mut journal = Journal::default();
        let waiting = update(&[&[1, 1, 1, 0][..], &waiting, &[0]].concat());
        assert_eq!(journal.receive(&waiting), Received::New(waiting.clone()));
        let _ = journal.receive(&text(9, 0, "a"));
        assert_eq!((clock(&journal, 9), clock(&journal, 1)), (1, 0));
        let _ = journal.receive(&after(9, 1, "b"));
        assert_eq!((clock(&journal, 9), clock(&journal, 1), journal.parked_bytes()), (2, 1, 0));
    }
}

#[test]
fn sections_that_hang_on_each_other_are_integrated_together() {
    // 1 begins, 2 follows it, 1 follows 2: in either order of sections.
    let one = [&[2, 1, 0, 4, 1, 1, b't', 1, b'a'][..], &[0xc4, 2, 0, 2, 0, 1, b'c']].concat();
    let two = [1, 2, 0, 0x84, 1, 0, 1, b'b'];
    for sections in [[&one[..], &two], [&two, &one]] {
        let mut journal = Journal::default();
        let both = update(&[&[2], sections[0], sections[1], &[0]].concat());
        assert_eq!(journal.receive(&both), Received::New(both));
        assert_eq!((clock(&journal, 1), clock(&journal, 2), journal.parked_bytes()), (2, 1, 0));
    }
    // Two that hang on the same.
    let mut journal = Journal::default();
    let three = update(&[
        3, 1, 7, 0, 0x84, 1, 0, 1, b'c', 1, 2, 0, 0x84, 1, 0, 1, b'b', 1, 1, 0, 4, 1, 1, b't', 1, b'a', 0,
    ]);
    assert_eq!(journal.receive(&three), Received::New(three));
    assert_eq!([1, 2, 7].map(|client| clock(&journal, client)), [1; 3]);
    // Two that wait for each other never are.
    let mut journal = Journal::default();
    let circle = update(&[2, 1, 2, 0, 0x84, 1, 0, 1, b'b', 1, 1, 0, 0x84, 2, 0, 1, b'a', 0]);
    assert_eq!(journal.receive(&circle), Received::New(circle));
    assert!(journal.state_vector().is_empty());
}

#[test]
fn of_an_update_in_part_next_and_in_part_parked_all_goes_on() {
    let mut journal = Journal::default();
    let mixed = update(&[1, 3, 1, 0, 0, 1, 10, 1, 0, 1, 1, 1, 1, 7, 1]);
    assert_eq!(journal.receive(&mixed), Received::New(mixed));
    assert_eq!((clock(&journal, 1), journal.tail_count(), journal.parked_bytes() > 0), (1, 1, true));
    assert_eq!(journal.receive(&update(&[1, 3, 1, 0, 0, 1, 10, 1, 0, 2, 0])), new(&[1, 1, 1, 2, 0, 2, 0]));
}

#[test]
fn past_the_bound_an_update_leaves_no_trace() {
    let mut journal = Journal::new(JournalLimits { parked_bytes_max: Journal::PARKED_OVERHEAD + 20 });
    let _ = journal.receive(&text(1, 5, "parked"));
    let version = journal.version();
    // Client 2 would be integrated, client 1 parked.
    let too_much = update(&[2, 1, 2, 0, 0, 1, 1, 1, 9, 0, 1, 1, 2, 1, 0, 1]);
    assert_eq!(journal.receive(&too_much), Received::Overflow);
    assert_eq!(
        (journal.version(), journal.state_vector().is_empty(), journal.tail_count()),
        (version, true, 0)
    );
    // What needs no parking still gets through.
    assert!(matches!(journal.receive(&text(1, 0, "hello")), Received::New(_)));
    assert_eq!((clock(&journal, 1), journal.parked_bytes()), (11, 0));
    assert!(matches!(journal.receive(&too_much), Received::New(_)));
}

#[test]
fn clocks_forged_in_anothers_name_do_not_keep_the_honest_out() {
    let mut journal = Journal::default();
    let honest = [text(1, 0, "a"), after(1, 1, "bc"), after(1, 3, "d")];
    let _ = journal.receive(&honest[0]);
    // In the name of 1, on its next clocks, behind something that nobody has.
    let forged = update(&[1, 1, 1, 1, 0x84, 99, 7, 4, b'e', b'v', b'i', b'l', 0]);
    assert_eq!(journal.receive(&forged), Received::New(forged.clone()));
    for honest in &honest[1..] {
        assert_eq!(journal.receive(honest), Received::New(honest.clone()));
    }
    assert_eq!(clock(&journal, 1), 4);
    // Its last clock still waits for what the whole hangs on, and tells so to who joins.
    assert_eq!(journal.diff(&StateVector::default()).conflicting, std::slice::from_ref(&forged));
    let squashed = journal.squash(SquashOptions::default()).run();
    assert_eq!(
        (&squashed.state, &squashed.conflicting[..]),
        (text(1, 0, "abcd").bytes(), &[forged.bytes().clone()][..])
    );
    let _ = journal.receive(&text(99, 0, "12345678"));
    assert_eq!((clock(&journal, 1), journal.parked_bytes()), (5, 0));
}

#[test]
fn versions_of_the_same_parked_clocks_all_go_on_and_joiners_get_them() {
    let mut journal = Journal::default();
    let versions = [b'x', b'y', b'z'].map(|byte| update(&[1, 1, 1, 0, 0x84, 99, 7, 1, byte, 0]));
    for version in &versions {
        assert_eq!(journal.receive(version), Received::New(version.clone()));
        assert_eq!(journal.receive(version), Received::Nothing);
    }
    let everything = journal.diff(&StateVector::default());
    assert_eq!((&everything.main, &everything.conflicting[..]), (&versions[0], &versions[1..]));
    let squashed = journal.squash(SquashOptions::default()).run();
    assert_eq!(&squashed.state, versions[0].bytes());
    assert_eq!(squashed.conflicting, [versions[1].bytes().clone(), versions[2].bytes().clone()]);
    // The first that becomes possible is it.
    let _ = journal.receive(&text(99, 0, "12345678"));
    assert_eq!((clock(&journal, 1), journal.parked_bytes()), (1, 0));
    assert!(journal.diff(&StateVector::default()).main.bytes().contains(&b'x'));
}

#[test]
fn what_makes_yrs_panic_does_not_pass_the_scan_and_what_is_like_it_parks() {
    let clock_of_43_bits = [1, 1, 1, 253, 255, 255, 255, 255, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];
    let scanned = Update::scan(Bytes::copy_from_slice(&clock_of_43_bits), &ScanRules::default());
    assert_eq!(scanned, Err(UpdateError::ClockTooLarge));

    let mut journal = Journal::default();
    let clock_of_28_bits = [1, 1, 1, 253, 255, 255, 127, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];
    let _ = journal.receive(&update(&clock_of_28_bits));
    assert!(journal.state_vector().is_empty());
    assert_eq!(read(journal.updates()).iter().flat_map(Update::inserts).count(), 0);
}

// ---- deletes

#[test]
fn deletes_that_are_known_are_cut() {
    let mut journal = Journal::default();
    let _ = journal.receive(&update(&[0, 1, 1, 1, 2, 3]));
    assert_eq!(journal.receive(&update(&[0, 1, 1, 1, 3, 2])), Received::Nothing);
    assert_eq!(journal.receive(&update(&[0, 1, 1, 1, 0, 9])), new(&[0, 1, 1, 2, 0, 2, 5, 4]));
    assert_eq!(journal.diff(&StateVector::default()).main, update(&[0, 1, 1, 1, 0, 9]));
}

#[test]
fn what_deleted_structs_cover_is_known_to_be_deleted() {
    let mut journal = Journal::default();
    // A GC of 0..2 and a Deleted of 2..5, from a bridge that sends no deletes.
    let _ = journal.receive(&update(&[1, 2, 1, 0, 0, 2, 0x81, 1, 1, 3, 0]));
    assert_eq!(journal.receive(&update(&[0, 1, 1, 1, 0, 5])), Received::Nothing);
    assert_eq!(journal.diff(&known(1, 5)).main, update(&[0, 1, 1, 1, 0, 5]));
}

#[test]
fn a_deleted_struct_on_living_clocks_is_a_delete() {
    let mut journal = Journal::default();
    let _ = journal.receive(&text(1, 0, "abcd"));
    let gone = update(&[1, 1, 1, 1, 0, 2, 0]);
    assert_eq!(journal.receive(&gone), new(&[0, 1, 1, 1, 1, 2]));
    assert_eq!(journal.receive(&gone), Received::Nothing);
}

#[test]
fn a_parked_deleted_struct_that_loses_its_clocks_is_a_delete() {
    let mut journal = Journal::default();
    let gone = update(&[1, 1, 1, 2, 0, 1, 0]);
    assert_eq!(journal.receive(&gone), Received::New(gone.clone()));
    let Received::New(with_delete) = journal.receive(&text(1, 0, "abcd")) else { panic!() };
    assert_eq!(with_delete, join(&[text(1, 0, "abcd"), update(&[0, 1, 1, 1, 2, 1])]));
    assert_eq!(journal.receive(&gone), Received::Nothing);
}

// ---- answers, squashes, views

#[test]
fn an_answer_holds_what_the_asker_lacks() {
    let mut journal = Journal::default();
    let _ = journal.receive(&text(1, 0, "abc"));
    let _ = journal.receive(&after(1, 3, "d"));
    assert_eq!(
        journal.diff(&known(1, 1)).main,
        update(&[1, 2, 1, 1, 0x84, 1, 0, 2, b'b', b'c', 0x84, 1, 2, 1, b'd', 0])
    );
    assert_eq!(journal.diff(&known(1, 9)).main, Update::default());
}

#[test]
fn a_squash_replaces_what_it_covered_and_leaves_what_came_meanwhile() {
    let mut journal = Journal::default();
    let _ = journal.receive(&text(1, 0, "a"));
    let _ = journal.receive(&after(1, 1, "b"));
    let read_one = journal.mark();
    let job = journal.squash(SquashOptions::default());
    let older = job.clone().run();
    let _ = journal.receive(&after(1, 2, "c"));
    let read_two = journal.mark();
    assert!(journal.squashed(&job.run()));
    assert_eq!(read(journal.updates()), [text(1, 0, "ab"), after(1, 2, "c")]);
    assert_eq!((journal.tail_count(), journal.snapshot_bytes()), (1, text(1, 0, "ab").bytes().len()));
    assert_eq!(journal.len_bytes(), journal.snapshot_bytes() + journal.tail_bytes());

    // A view that had read that far goes on, one that had not starts anew.
    let since = |mark| journal.updates_since(mark).map(read);
    assert_eq!(since(read_one), Some(vec![after(1, 2, "c")]));
    assert_eq!(since(read_two), Some(vec![]));
    assert_eq!(since(Mark::default()), None);

    assert!(journal.squashed(&journal.squash(SquashOptions::default()).run()));
    assert!(!journal.squashed(&older), "a later squash is in place");
    assert_eq!(read(journal.updates()), [text(1, 0, "abc")]);
}

#[test]
fn a_squash_stores_what_is_parked_and_keeps_it_parked() {
    let mut journal = Journal::default();
    let _ = journal.receive(&text(1, 0, "a"));
    let _ = journal.receive(&after(1, 2, "c"));
    let squashed = journal.squash(SquashOptions::default()).run();
    assert_eq!(squashed.state, join(&[text(1, 0, "a"), after(1, 2, "c")]).bytes());
    assert!(journal.squashed(&squashed));
    let _ = journal.receive(&after(1, 1, "b"));
    assert_eq!((clock(&journal, 1), journal.parked_bytes()), (3, 0));
    assert_eq!(journal.squash(SquashOptions::default()).run().state, text(1, 0, "abc").bytes());
}

#[test]
fn a_squash_leaves_parked_structs_as_they_came() {
    // Two texts in a type that nobody has, one behind the other; the first character is deleted.
    let parks = [1, 2, 2, 0, 4, 0, 3, 0, 3, b'a', b'b', b'c', 0x84, 2, 2, 2, b'd', b'e', 1, 2, 1, 0, 1];
    let mut journal = Journal::default();
    assert_eq!(journal.receive(&update(&parks)), new(&parks));
    let squashed = journal.squash(SquashOptions { collect: true }).run();
    assert_eq!(squashed.state, &parks[..]);
    let mut loaded = Journal::default();
    loaded.restore(&update(&squashed.state));
    assert_eq!(loaded.receive(&update(&parks)), Received::Nothing);
}

#[test]
fn a_squash_can_be_done_on_another_thread() {
    fn can_be_sent<T: Send + 'static>() {}
    can_be_sent::<(Squash, Squashed, Journal)>();
}

// ---- helpers

fn steps(count: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((0..4u8, 0..20u8, any::<u16>(), any::<u16>()), 1..count)
}

/// What a format in a text covers depends on the order of arrival, in yrs as in Yjs, where `yjs.rs` allows
/// for it.
fn without_formats(steps: Vec<Step>) -> Vec<Step> {
    steps.into_iter().filter(|(_, what, ..)| *what != 11).collect()
}

fn scan(bytes: &Bytes) -> Update {
    Update::scan(bytes.clone(), &ScanRules::default()).unwrap()
}

fn update(bytes: &[u8]) -> Update {
    scan(&Bytes::copy_from_slice(bytes))
}

fn new(bytes: &[u8]) -> Received {
    Received::New(update(bytes))
}

/// A text in the root `t`.
fn text(client: u8, clock: u8, text: &str) -> Update {
    update(&[&[1, 1, client, clock, 4, 1, 1, b't', text.len() as u8], text.as_bytes(), &[0]].concat())
}

/// A text behind the clock before it.
fn after(client: u8, clock: u8, text: &str) -> Update {
    update(
        &[&[1, 1, client, clock, 0x84, client, clock - 1, text.len() as u8], text.as_bytes(), &[0]].concat(),
    )
}

fn read<'a>(updates: impl IntoIterator<Item = &'a Bytes>) -> Vec<Update> {
    updates.into_iter().map(scan).collect()
}

fn known(client: u64, clock: u64) -> StateVector {
    [(ClientId::new(client).unwrap(), clock)].into_iter().collect()
}

fn clock(journal: &Journal, client: u64) -> u64 {
    journal.state_vector().clock(ClientId::new(client).unwrap())
}

/// Like Yjs, yrs does not always notice that what was pending has become possible: hence twice.
fn document_of(updates: &[Update]) -> yrs::Doc {
    let doc = document(2, false);
    updates.iter().chain(updates).for_each(|update| apply(&doc, update.bytes()));
    doc
}

fn state_of(doc: &yrs::Doc) -> StateVector {
    StateVector::decode(&histories::encoded(&doc.transact().state_vector())).unwrap()
}
