//! The rules of the update format and of the algebra on it, one by one, as bytes.

use bytes::Bytes;
use proptest::prelude::*;
use yrs_websocket::update::{
    ClientId, IdSet, ScanRules, SquashOptions, StateVector, Update, UpdateError, diff, join, squash,
};

/// Client 1, clock 0, one struct: everything before the info byte.
const ONE: &[u8] = &[1, 1, 1, 0];
/// No deletes.
const NONE: &[u8] = &[0];
/// The parent of a first struct: the root `t`.
const ROOT: &[u8] = &[1, 1, b't'];

// ---- what the scan refuses

#[test]
fn the_scan_refuses_by_name() {
    use UpdateError::*;
    let two_pow_53: &[u8] = &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    let last_number: &[u8] = &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f];
    let two_pow_32: &[u8] = &[0x80, 0x80, 0x80, 0x80, 0x10];
    let last_of_32_bits: &[u8] = &[0xff, 0xff, 0xff, 0xff, 0x0f];
    for (what, error, bytes) in [
        ("nothing at all", Truncated, vec![]),
        ("no deletes", Truncated, vec![0]),
        ("a text cut short", Truncated, cat(&[ONE, &[4], ROOT, &[3, b'a']])),
        ("more sections than bytes", Truncated, vec![0xff, 0xff, 0xff, 0xff, 0x0f, 1, 1, 0, 0, 1, 0]),
        ("more structs than bytes", Truncated, vec![1, 0xff, 0xff, 0xff, 0x0f, 1, 0, 0, 1, 0]),
        ("more values than bytes", Truncated, cat(&[ONE, &[8], ROOT, &[0xff, 0xff, 0xff, 0x0f, 126], NONE])),
        ("more deletes than bytes", Truncated, vec![0, 1, 1, 0xff, 0xff, 0xff, 0x0f, 0, 1]),
        ("a byte too many", LeftOver, cat(&[ONE, &[0, 1], NONE, &[0]])),
        ("a client in two sections", ClientTwice, vec![2, 1, 1, 0, 0, 1, 1, 1, 1, 0, 1, 0]),
        ("two clients in turn", ClientTwice, vec![3, 1, 1, 0, 0, 1, 1, 2, 0, 0, 1, 1, 1, 1, 0, 1, 0]),
        ("deletes of a client twice", ClientTwice, vec![0, 2, 1, 1, 0, 1, 1, 1, 2, 1]),
        ("an empty section", EmptySection, vec![1, 0, 1, 0, 0, 0]),
        ("a skip last", SkipLast, vec![1, 2, 1, 0, 0, 1, 10, 1, 0]),
        ("an empty gc", EmptyStruct, cat(&[ONE, &[0, 0], NONE])),
        ("an empty text", EmptyStruct, cat(&[ONE, &[4], ROOT, &[0], NONE])),
        ("an empty array of values", EmptyStruct, cat(&[ONE, &[8], ROOT, &[0], NONE])),
        ("an empty deleted run", EmptyStruct, cat(&[ONE, &[1], ROOT, &[0], NONE])),
        ("an empty delete", EmptyDelete, vec![0, 1, 1, 1, 5, 0]),
        ("flags on a gc", StrayFlags, cat(&[ONE, &[0x20, 1], NONE])),
        ("flags on a skip", StrayFlags, vec![1, 3, 1, 0, 0, 1, 0x8a, 1, 0, 1, 0]),
        ("content 11", UnknownContent, cat(&[ONE, &[11], ROOT, &[1], NONE])),
        ("content 31", UnknownContent, cat(&[ONE, &[31], ROOT, &[1], NONE])),
        ("type 8", UnknownType, cat(&[ONE, &[7], ROOT, &[8], NONE])),
        ("a weak link", UnknownType, cat(&[ONE, &[7], ROOT, &[7, 0, 2, 0], NONE])),
        ("any 115", UnknownValue, cat(&[ONE, &[8], ROOT, &[1, 115], NONE])),
        ("any 128", UnknownValue, cat(&[ONE, &[8], ROOT, &[1, 128], NONE])),
        ("parent info 2", UnknownParent, cat(&[ONE, &[4, 2, 1, b't', 1, b'a'], NONE])),
        ("its own id as parent", OwnFuture, cat(&[ONE, &[4, 0, 1, 0, 1, b'a'], NONE])),
        ("its own id as origin", OwnFuture, cat(&[ONE, &[0x84, 1, 0, 1, b'a'], NONE])),
        ("its future as right origin", OwnFuture, cat(&[ONE, &[0x44, 1, 9, 1, b'a'], NONE])),
        ("a broken text", NotUtf8, cat(&[ONE, &[4], ROOT, &[2, 0xc3, 0x28], NONE])),
        ("a lone surrogate", NotUtf8, cat(&[ONE, &[4], ROOT, &[3, 0xed, 0xa0, 0xbd], NONE])),
        ("a broken root name", NotUtf8, cat(&[ONE, &[4, 1, 1, 0xff, 1, b'a'], NONE])),
        ("a broken key", NotUtf8, cat(&[ONE, &[0x24], ROOT, &[1, 0xff, 1, b'a'], NONE])),
        ("a broken any text", NotUtf8, cat(&[ONE, &[8], ROOT, &[1, 119, 1, 0xff], NONE])),
        ("an embed that is undefined", NotJson, embed("undefined")),
        ("an embed with a byte-order mark", NotJson, embed("\u{feff}{}")),
        ("a format that is no json", NotJson, cat(&[ONE, &[6], ROOT, &[1, b'b', 2, b't', b'r'], NONE])),
        ("old json that is no json", NotJson, cat(&[ONE, &[2], ROOT, &[1, 1, b'x'], NONE])),
        ("options that are no object", DocOptions, cat(&[ONE, &[9], ROOT, &[1, b'g', 126], NONE])),
        ("a client at 2^53", NumberTooLarge, cat(&[&[1, 1], two_pow_53, &[0, 0, 1], NONE])),
        ("a number of nine bytes", NumberTooLarge, cat(&[&[1, 1, 1], &[0x80; 8], &[0, 0, 1], NONE])),
        ("a clock that reaches 2^32", ClockTooLarge, cat(&[&[1, 1, 1], last_of_32_bits, &[0, 1], NONE])),
        ("an origin beyond 2^32", ClockTooLarge, cat(&[ONE, &[0x84, 2], two_pow_32, &[1, b'a'], NONE])),
        ("a delete that reaches 2^32", ClockTooLarge, cat(&[&[0, 1, 1, 1], last_of_32_bits, &[1]])),
        ("a clock that reaches 2^53", ClockTooLarge, cat(&[&[1, 1, 1], last_number, &[0, 1], NONE])),
        ("clocks that sum to 2^53", ClockTooLarge, cat(&[&[1, 2, 1, 0, 0], last_number, &[0, 1], NONE])),
        ("a delete that reaches 2^53", ClockTooLarge, cat(&[&[0, 1, 1, 1], last_number, &[1]])),
        (
            "an integer beyond 2^53",
            NumberTooLarge,
            cat(&[ONE, &[8], ROOT, &[1, 125], &[0xff; 8], &[0], NONE]),
        ),
    ] {
        assert_eq!(scan_raw(&bytes), Err(error), "{what}: {bytes:?}");
    }
}

#[test]
fn the_scan_refuses_what_nests_too_deeply() {
    for depth in [100, 101, 50_000] {
        let expected = if depth > 100 { Err(UpdateError::TooDeep) } else { Ok(()) };
        let any = [[117, 1].repeat(depth), vec![126]].concat();
        assert_eq!(scan_raw(&cat(&[ONE, &[8], ROOT, &[1], &any, NONE])).map(drop), expected);
        let empty = [[117, 1].repeat(depth - 1), vec![117, 0]].concat();
        assert_eq!(scan_raw(&cat(&[ONE, &[8], ROOT, &[1], &empty, NONE])).map(drop), expected);
        let object = [[118, 1, 0].repeat(depth), vec![126]].concat();
        assert_eq!(scan_raw(&cat(&[ONE, &[9], ROOT, &[1, b'g'], &object, NONE])).map(drop), expected);
        for (open, close) in [("[", "]"), ("{\"[\":", "}")] {
            let json = [open.repeat(depth).as_str(), "1", &close.repeat(depth)].concat();
            assert_eq!(scan_raw(&embed(&json)).map(drop), expected);
        }
    }
    // Neither brackets in a string nor neighbours nest.
    assert!(scan_raw(&embed(&format!("\"{}\"", "[".repeat(200)))).is_ok());
    assert!(scan_raw(&embed(&format!("[{}[]]", "[],".repeat(200)))).is_ok());
}

#[test]
fn no_start_of_an_update_and_no_update_with_more_behind_it_passes() {
    for bytes in odd_but_real() {
        for end in 0..bytes.len() {
            assert!(scan_raw(&bytes[..end]).is_err(), "{bytes:?} to {end}");
        }
        assert_eq!(scan_raw(&cat(&[&bytes, &[0]])), Err(UpdateError::LeftOver));
    }
}

// ---- what the scan accepts

#[test]
fn the_scan_accepts_odd_but_real_data_and_keeps_its_bytes() {
    for bytes in odd_but_real() {
        let update = scan(&bytes);
        assert_eq!(update.bytes(), &bytes);
        // Nor does the algebra touch them.
        let twice = [update.clone(), update.clone()];
        assert_eq!(join(&twice), update);
        assert_eq!(squash(&twice, SquashOptions::default()), update);
    }
}

#[test]
fn a_hole_first_passes_because_yrs_writes_it_for_what_lies_beyond_a_gap() {
    let update = scan(&[1, 2, 1, 0, 10, 3, 0, 1, 0]);
    assert_eq!(update.inserts().collect::<Vec<_>>(), [(ClientId::new(1).unwrap(), 3..4)]);
    assert_eq!(squash(&[update], SquashOptions::default()), scan(&[1, 1, 1, 3, 0, 1, 0]));
}

#[test]
fn weak_links_pass_where_they_are_allowed() {
    let rules = ScanRules { weak_links: true, ..ScanRules::default() };
    for link in [
        &[0, 2, 0][..],                 // one element
        &[1, 2, 0, 2, 5],               // from id to id
        &[0b11_1001, 1, b't', 1, b't'], // all of a root
        &[0b01_1001, 2, 0, 2, 0],       // all of a nested type
        &[0b11_0001, 2, 0, 1, b't'],    // from an id to the end of a root
    ] {
        let bytes = cat(&[ONE, &[7], ROOT, &[7], link, NONE]);
        assert_eq!(Update::scan(bytes.clone().into(), &rules).map(drop), Ok(()), "{link:?}");
        assert!(Update::scan(bytes[..bytes.len() - 2].to_vec().into(), &rules).is_err());
    }
}

#[test]
fn an_update_tells_what_it_inserts_and_deletes() {
    // Client 2: clocks 3..5, a hole, 7..8; client 1: 0..1; deletes of 1 and 9.
    let update = scan(&[2, 3, 2, 3, 0, 2, 10, 2, 0, 1, 1, 1, 0, 0, 1, 2, 1, 2, 0, 1, 4, 2, 9, 0]);
    let inserts = update.inserts().map(|(client, clocks)| (client.get(), clocks)).collect::<Vec<_>>();
    assert_eq!(inserts, [(2, 3..5), (2, 7..8), (1, 0..1)]);
    let deletes = update.deletes().map(|(client, clocks)| (client.get(), clocks)).collect::<Vec<_>>();
    assert_eq!(deletes, [(1, 0..1), (1, 4..6)]);
    assert!(!update.is_empty());
    assert!(Update::default().is_empty() && scan(&[0, 0]).is_empty() && scan(&[0, 1, 9, 0]).is_empty());
}

proptest! {
    #[test]
    fn the_grammar_of_json_is_that_of_serde_json(text in "[\\[\\]{}\",:\\\\ a0-9.eE+\\-tfnu\u{7f}é\n]{0,12}") {
        check_json(&text)?;
    }

    #[test]
    fn json_with_something_changed_is_judged_as_serde_json_does(
        at in any::<prop::sample::Index>(), with in any::<prop::sample::Index>(),
    ) {
        let text = r#" { "a" : [ 1, -0.5e+7, true, false, null, "\u00e9\n\"" ], "" : {} } "#;
        let mut bytes = text.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = bytes[with.index(bytes.len())];
        check_json(std::str::from_utf8(&bytes).unwrap())?;
    }

    #[test]
    fn the_scan_is_total(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = scan_raw(&bytes);
        let _ = StateVector::decode(&bytes);
    }

    #[test]
    fn whatever_passes_can_be_joined_cut_and_squashed(
        which in any::<prop::sample::Index>(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let originals = odd_but_real();
        let original = which.get(&originals);
        let mut bytes = original.clone();
        for (at, byte) in changes {
            *at.get_mut(&mut bytes) = byte;
        }
        let Ok(update) = scan_raw(&bytes) else { return Ok(()) };
        let both = [scan(original), update];
        for known in 0..4 {
            let known = [1, 2].map(|client| (id(client), known)).into_iter().collect();
            scan(diff(&both[1], &known).bytes());
        }
        for made in [join(&both), squash(&both, SquashOptions { collect: true }), squash(&both, SquashOptions { collect: false })] {
            prop_assert_eq!(&scan(made.bytes()), &made);
        }
    }
}

// ---- state vectors and sets

#[test]
fn state_vectors_are_read_strictly_and_written_highest_client_first() {
    let state = StateVector::decode(&[3, 1, 5, 200, 1, 7, 9, 0]).unwrap();
    assert_eq!(
        state.iter().map(|(client, clock)| (client.get(), clock)).collect::<Vec<_>>(),
        [(1, 5), (9, 0), (200, 7)]
    );
    assert_eq!(&state.encode()[..], [3, 200, 1, 7, 9, 0, 1, 5]);
    assert_eq!((state.clock(id(200)), state.clock(id(3))), (7, 0));
    for (bytes, error) in [
        (&[][..], UpdateError::Truncated),
        (&[1, 1], UpdateError::Truncated),
        (&[1, 1, 5, 0], UpdateError::LeftOver),
        (&[2, 1, 5, 1, 6], UpdateError::ClientTwice),
        // Eight bytes for which yrs allocates half a gigabyte.
        (&[0xff, 0xff, 0xff, 0x0f, 1, 1, 1, 1], UpdateError::Truncated),
        (&[1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10, 1], UpdateError::NumberTooLarge),
    ] {
        assert_eq!(StateVector::decode(bytes), Err(error), "{bytes:?}");
    }
}

proptest! {
    #[test]
    fn a_set_is_the_clocks_that_were_put_in(ranges in prop::collection::vec((0..40u64, 0..9u64), 0..20)) {
        let mut set = IdSet::default();
        let mut plain = [false; 64];
        for (from, len) in ranges {
            let clocks = from as usize..(from + len) as usize;
            let is_new = plain[clocks.clone()].iter().any(|there| !there);
            plain[clocks].fill(true);
            prop_assert_eq!(set.insert(id(1), from..from + len), is_new);
            let in_set = (0..64).map(|clock| set.contains_range(id(1), clock..clock + 1)).collect::<Vec<_>>();
            prop_assert_eq!(&in_set[..], &plain[..]);
            // Sorted, and neither overlapping nor touching.
            let ranges = set.iter().map(|(_, range)| range).collect::<Vec<_>>();
            prop_assert!(ranges.is_sorted_by(|a, b| a.end < b.start));
        }
        for from in 0..40 {
            let gaps = set.gaps(id(1), from..from + 9).flatten().collect::<Vec<_>>();
            let expected = (from..from + 9).filter(|&clock| !plain[clock as usize]).collect::<Vec<_>>();
            prop_assert_eq!(gaps, expected);
        }
    }
}

// ---- join

#[test]
fn join_sorts_sections_and_fills_holes_with_skips() {
    let (first, later, other) = (text(1, 0, "ab"), text(1, 5, "x"), text(7, 0, "q"));
    let joined = join(&[later, other, first]);
    let expected = cat(&[
        &[2, 1, 7, 0, 4],
        ROOT,
        &[1, b'q'],
        &[3, 1, 0, 4],
        ROOT,
        &[2, b'a', b'b', 10, 3, 4],
        ROOT,
        &[1, b'x'],
        NONE,
    ]);
    assert_eq!(joined.bytes(), &expected);
}

#[test]
fn join_unites_deletes() {
    let joined = join(&[scan(&[0, 1, 1, 2, 4, 1, 0, 2]), scan(&[0, 2, 1, 1, 1, 3, 9, 1, 0, 1])]);
    assert_eq!(joined.bytes()[..], [0, 2, 9, 1, 0, 1, 1, 1, 0, 5]);
}

#[test]
fn where_updates_overlap_the_first_received_wins() {
    let (early, long, late) = (text(1, 2, "CD"), text(1, 0, "abcdef"), text(1, 3, "XYZ!"));
    let cut_at = |clock: u8| [&[0x84, 1, clock - 1][..]].concat();
    let joined = join(&[early, long, late]);
    let expected = cat(&[
        &[1, 4, 1, 0, 4],
        ROOT,
        &[2, b'a', b'b', 4],
        ROOT,
        &[2, b'C', b'D'],
        &cut_at(4),
        &[2, b'e', b'f'],
        &cut_at(6),
        &[1, b'!'],
        NONE,
    ]);
    assert_eq!(joined.bytes(), &expected);
}

#[test]
fn a_deleted_struct_that_loses_its_clocks_to_content_leaves_a_delete() {
    let gone = scan(&[1, 1, 1, 2, 0, 1, 0]);
    assert_eq!(join(&[gone.clone(), gone.clone()]), gone);
    let joined = join(&[text(1, 0, "abcd"), gone]);
    assert_eq!(joined.deletes().collect::<Vec<_>>(), [(id(1), 2..3)]);
    assert_eq!(joined.inserts().collect::<Vec<_>>(), [(id(1), 0..4)]);
}

// ---- cut, by way of diff

#[test]
fn diff_drops_what_is_known_and_keeps_all_deletes() {
    let update = scan(&cat(&[&[2, 1, 7, 0, 0, 2, 1, 1, 0, 4], ROOT, &[1, b'a', 1, 7, 1, 0, 1]]));
    assert_eq!(diff(&update, &StateVector::default()), update);
    assert_eq!(diff(&update, &known(7, 2)).bytes()[..], cat(&[ONE, &[4], ROOT, &[1, b'a', 1, 7, 1, 0, 1]]));
    assert_eq!(
        diff(&update, &[(id(7), 9), (id(1), 1)].into_iter().collect()).bytes()[..],
        [0, 1, 7, 1, 0, 1]
    );
    assert_eq!(diff(&update, &known(3, 5)), update);
}

#[test]
fn cut_structs_hang_on_the_clock_before_and_lose_what_stood_in_front() {
    for (what, whole, cut) in [
        ("gc", vec![0, 5], vec![0, 3]),
        ("deleted", cat(&[&[1], ROOT, &[5]]), vec![0x81, 1, 1, 3]),
        ("deleted, with origin", vec![0x81, 9, 4, 5], vec![0x81, 1, 1, 3]),
        ("text", cat(&[&[4], ROOT, &[3, b'a', b'b', b'c']]), vec![0x84, 1, 1, 1, b'c']),
        ("text, key", cat(&[&[0x24], ROOT, &[1, b'k', 3, b'a', b'b', b'c']]), vec![0xa4, 1, 1, 1, b'c']),
        ("text, parent id", vec![4, 0, 9, 4, 3, b'a', b'b', b'c'], vec![0x84, 1, 1, 1, b'c']),
        ("text, right origin", vec![0x44, 9, 4, 3, b'a', b'b', b'c'], vec![0xc4, 1, 1, 9, 4, 1, b'c']),
        ("text, both, hint", vec![0xe4, 9, 1, 9, 4, 3, b'a', b'b', b'c'], vec![0xe4, 1, 1, 9, 4, 1, b'c']),
        ("text, two bytes each", cat(&[&[4], ROOT, &[6], "éèê".as_bytes()]), vec![0x84, 1, 1, 2, 0xc3, 0xaa]),
        (
            "text, between pairs",
            cat(&[&[4], ROOT, &[8], "😀😀".as_bytes()]),
            cat(&[&[0x84, 1, 1, 4], "😀".as_bytes()]),
        ),
        (
            "text, in a pair",
            cat(&[&[4], ROOT, &[6], "a😀b".as_bytes()]),
            cat(&[&[0x84, 1, 1, 4], "\u{fffd}b".as_bytes()]),
        ),
        (
            "json",
            cat(&[&[2], ROOT, &[3, 1, b'1', 9], b"undefined", &[2, b'[', b']']]),
            vec![0x82, 1, 1, 1, 2, b'[', b']'],
        ),
        (
            "any",
            cat(&[&[8], ROOT, &[3, 125, 1, 117, 1, 126, 118, 1, 0, 120]]),
            vec![0x88, 1, 1, 1, 118, 1, 0, 120],
        ),
    ] {
        let update = scan(&cat(&[ONE, &whole, NONE]));
        let expected = cat(&[&[1, 1, 1, 2], &cut, NONE]);
        assert_eq!(diff(&update, &known(1, 2)).bytes(), &expected, "{what}");
    }
}

#[test]
fn a_text_cut_behind_the_first_half_of_a_pair_ends_in_its_replacement() {
    // What came first takes clock 2, the second half; 1 remains of the pair in front, `b` behind.
    let joined = join(&[text(1, 2, "X"), text(1, 0, "a😀b")]);
    let front = cat(&[&[1, 3, 1, 0, 4], ROOT, &[4], "a\u{fffd}".as_bytes(), &[4], ROOT, &[1, b'X']]);
    assert_eq!(joined.bytes(), &cat(&[&front, &[0x84, 1, 2, 1, b'b'], NONE]));
}

// ---- squash

#[test]
fn squash_joins_what_yjs_would_join() {
    for (what, structs, expected) in [
        (
            "texts",
            vec![cat(&[&[4], ROOT, &[1, b'a']]), vec![0x84, 1, 0, 2, b'b', b'c']],
            Some(cat(&[&[4], ROOT, &[3, b'a', b'b', b'c']])),
        ),
        (
            "values",
            vec![cat(&[&[8], ROOT, &[1, 126]]), vec![0x88, 1, 0, 1, 120]],
            Some(cat(&[&[8], ROOT, &[2, 126, 120]])),
        ),
        (
            "old json",
            vec![cat(&[&[2], ROOT, &[1, 1, b'1']]), vec![0x82, 1, 0, 1, 1, b'2']],
            Some(cat(&[&[2], ROOT, &[2, 1, b'1', 1, b'2']])),
        ),
        ("deleted", vec![cat(&[&[1], ROOT, &[2]]), vec![0x81, 1, 1, 3]], Some(cat(&[&[1], ROOT, &[5]]))),
        ("gc", vec![vec![0, 1], vec![0, 2]], Some(vec![0, 3])),
        (
            "equal right origins",
            vec![vec![0xc4, 9, 0, 9, 1, 1, b'a'], vec![0xc4, 1, 0, 9, 1, 1, b'b']],
            Some(vec![0xc4, 9, 0, 9, 1, 2, b'a', b'b']),
        ),
        (
            "unequal right origins",
            vec![vec![0xc4, 9, 0, 9, 1, 1, b'a'], vec![0xc4, 1, 0, 9, 2, 1, b'b']],
            None,
        ),
        ("a right origin and none", vec![vec![0xc4, 9, 0, 9, 1, 1, b'a'], vec![0x84, 1, 0, 1, b'b']], None),
        ("another origin", vec![cat(&[&[4], ROOT, &[1, b'a']]), vec![0x84, 9, 0, 1, b'b']], None),
        ("no origin", vec![cat(&[&[4], ROOT, &[1, b'a']]), cat(&[&[4], ROOT, &[1, b'b']])], None),
        ("not the last", vec![cat(&[&[4], ROOT, &[2, b'a', b'b']]), vec![0x84, 1, 0, 1, b'b']], None),
        ("keys", vec![cat(&[&[0x28], ROOT, &[1, b'k', 1, 126]]), vec![0xa8, 1, 0, 1, 126]], None),
        ("two kinds", vec![cat(&[&[4], ROOT, &[1, b'a']]), vec![0x88, 1, 0, 1, 126]], None),
        ("binaries", vec![cat(&[&[3], ROOT, &[1, 0]]), vec![0x83, 1, 0, 1, 0]], None),
        ("gc and deleted", vec![vec![0, 1], vec![0x81, 1, 0, 1]], None),
    ] {
        let whole = scan(&cat(&[&[1, structs.len() as u8, 1, 0], &structs.concat(), NONE]));
        let small = squash(std::slice::from_ref(&whole), SquashOptions { collect: false });
        let expected =
            expected.map_or_else(|| whole.bytes().to_vec(), |expected| cat(&[ONE, &expected, NONE]));
        assert_eq!(small.bytes(), &expected, "{what}");
    }
}

#[test]
fn squash_does_not_join_over_a_hole() {
    let whole = scan(&[1, 3, 1, 0, 0, 1, 10, 1, 0, 1, 0]);
    assert_eq!(squash(std::slice::from_ref(&whole), SquashOptions::default()), whole);
}

#[test]
fn squash_drops_deleted_content_if_asked_to() {
    let deleted = |clock: u8, len: u8| scan(&[0, 1, 1, 1, clock, len]);
    for (what, content, clock, len, expected) in [
        ("all of a text", cat(&[&[4], ROOT, &[2, b'a', b'b']]), 0, 2, vec![cat(&[&[1], ROOT, &[2]])]),
        (
            "the middle of a text",
            cat(&[&[4], ROOT, &[3, b'a', b'b', b'c']]),
            1,
            1,
            vec![cat(&[&[4], ROOT, &[1, b'a']]), vec![0x81, 1, 0, 1], vec![0x84, 1, 1, 1, b'c']],
        ),
        (
            "a value",
            cat(&[&[8], ROOT, &[2, 126, 120]]),
            0,
            1,
            vec![cat(&[&[1], ROOT, &[1]]), vec![0x88, 1, 0, 1, 120]],
        ),
        ("a binary", cat(&[&[3], ROOT, &[1, 0]]), 0, 1, vec![cat(&[&[1], ROOT, &[1]])]),
        ("a format", cat(&[&[6], ROOT, &[1, b'b', 1, b'1']]), 0, 1, vec![cat(&[&[1], ROOT, &[1]])]),
        ("an embed", cat(&[&[5], ROOT, &[1, b'1']]), 0, 1, vec![cat(&[&[1], ROOT, &[1]])]),
        (
            "a keyed value",
            cat(&[&[0x28], ROOT, &[1, b'k', 1, 126]]),
            0,
            1,
            vec![cat(&[&[0x21], ROOT, &[1, b'k', 1]])],
        ),
        ("a type stays", cat(&[&[7], ROOT, &[2]]), 0, 1, vec![cat(&[&[7], ROOT, &[2]])]),
        (
            "a document stays",
            cat(&[&[9], ROOT, &[1, b'g', 118, 0]]),
            0,
            1,
            vec![cat(&[&[9], ROOT, &[1, b'g', 118, 0]])],
        ),
        (
            "a pair that would be split stays, and its text",
            cat(&[&[4], ROOT, &[6], "a😀b".as_bytes()]),
            0,
            2,
            vec![cat(&[&[4], ROOT, &[6], "a😀b".as_bytes()])],
        ),
    ] {
        let updates = [scan(&cat(&[ONE, &content, NONE])), deleted(clock, len)];
        let expected = cat(&[&[1, expected.len() as u8, 1, 0], &expected.concat(), &[1, 1, 1, clock, len]]);
        assert_eq!(squash(&updates, SquashOptions { collect: true }).bytes(), &expected, "{what}");
        let kept = cat(&[ONE, &content, &[1, 1, 1, clock, len]]);
        assert_eq!(squash(&updates, SquashOptions { collect: false }).bytes(), &kept, "{what}");
    }
}

// ---- helpers

/// Updates that real documents hold and that decoders stumble over.
fn odd_but_real() -> Vec<Vec<u8>> {
    let mut updates = vec![
        vec![0, 0],
        embed(r#""\ud83d""#),
        embed("1e999"),
        embed(r#"{"a":1,"a":2}"#),
        embed("-0"),
        embed(" [ ] "),
        // Old JSON content, with `undefined`.
        cat(&[ONE, &[2], ROOT, &[2, 9], b"undefined", &[4], b"null", NONE]),
        // An XmlHook and an XmlElement.
        cat(&[ONE, &[7], ROOT, &[5, 1, b'h'], NONE]),
        cat(&[ONE, &[7], ROOT, &[3, 1, b'p'], NONE]),
        // BigInt 2^60, and minus zero as float and as integer.
        cat(&[ONE, &[8], ROOT, &[1, 122, 0x10, 0, 0, 0, 0, 0, 0, 0], NONE]),
        cat(&[ONE, &[8], ROOT, &[1, 123, 0x80, 0, 0, 0, 0, 0, 0, 0], NONE]),
        cat(&[ONE, &[8], ROOT, &[1, 125, 0x40], NONE]),
        cat(&[ONE, &[8], ROOT, &[1, 124, 0x80, 0, 0, 0], NONE]),
        // Every kind of value.
        cat(&[
            ONE,
            &[8],
            ROOT,
            &[5, 127, 121, 116, 1, 9, 119, 2, 0xc3, 0xa9, 117, 2, 118, 1, 1, b'k', 126, 117, 0],
            NONE,
        ]),
        cat(&[ONE, &[9], ROOT, &[1, b'g', 118, 1, 2, b'g', b'c', 121], NONE]),
        cat(&[ONE, &[6], ROOT, &[1, b'b', 4], b"true", NONE]),
        cat(&[ONE, &[0x23], ROOT, &[1, b'k', 2, 1, 2], NONE]),
        // Right origin without origin, a nested parent, a hole in the middle, a late start, deletes.
        cat(&[
            &[1, 3, 1, 9, 0x44, 2, 1, 1, b'a', 10, 4, 0xc4, 1, 2, 2, 7, 4],
            "😀".as_bytes(),
            &[1, 2, 2, 0, 1, 5, 3],
        ]),
        cat(&[&[1, 1, 2, 5, 0x27, 0, 1, 3, 1, b'k', 1], NONE]),
        vec![2, 1, 2, 3, 0, 2, 1, 1, 7, 0x81, 2, 1, 4, 2, 2, 1, 0, 1, 1, 1, 7, 4],
    ];
    // What holds 2^53 - 1 clocks.
    updates.push(cat(&[&[1, 1, 1, 0, 0], &[0xff, 0xff, 0xff, 0xff, 0x0f], NONE]));
    updates
}

fn check_json(text: &str) -> Result<(), TestCaseError> {
    let serde = serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
    prop_assert_eq!(scan_raw(&embed(text)).is_ok(), serde, "{:?}", text);
    Ok(())
}

fn scan_raw(bytes: &[u8]) -> Result<Update, UpdateError> {
    Update::scan(Bytes::copy_from_slice(bytes), &ScanRules::default())
}

fn scan(bytes: &[u8]) -> Update {
    scan_raw(bytes).unwrap_or_else(|error| panic!("{error}: {bytes:?}"))
}

/// A text of a client at a clock, in the root `t`.
fn text(client: u8, clock: u8, text: &str) -> Update {
    scan(&cat(&[&[1, 1, client, clock, 4], ROOT, &[text.len() as u8], text.as_bytes(), NONE]))
}

fn embed(json: &str) -> Vec<u8> {
    let mut len = Vec::new();
    let mut rest = json.len();
    while rest > 0x7f {
        len.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    len.push(rest as u8);
    cat(&[ONE, &[5], ROOT, &len, json.as_bytes(), NONE])
}

fn known(client: u64, clock: u64) -> StateVector {
    [(id(client), clock)].into_iter().collect()
}

fn id(client: u64) -> ClientId {
    ClientId::new(client).unwrap()
}

fn cat(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}
