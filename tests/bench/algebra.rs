//! What the algebra costs, beside what yrs takes for the same, in one run:
//! `cargo bench -p yrs-websocket --bench algebra`.
//!
//! Medians over several rounds. Ratios hold from machine to machine, digits do not.
#![allow(clippy::disallowed_methods, reason = "a benchmark measures time")]

#[path = "../histories/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the tests")]
mod histories;
#[path = "../traces/trace.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod trace;

use std::{hint::black_box, time::Instant};

use bytes::Bytes;
use yrs::{ReadTxn, Transact, updates::decoder::Decode};
use yrs_websocket::{
    journal::{Journal, JournalLimits},
    update::{ClientId, ScanRules, SquashOptions, StateVector, Update, diff, join, squash},
};

fn main() {
    let keystroke = Bytes::from_static(&[
        1, 1, 0xd2, 0x85, 0xd8, 0xcc, 0x04, 0xe8, 0x07, 0xc4, 0xd2, 0x85, 0xd8, 0xcc, 0x04, 0xe7, 0x07, 0xd2,
        0x85, 0xd8, 0xcc, 0x04, 0x0a, 1, b'x', 0,
    ]);
    let trace = trace::automerge_paper();
    let bytes = trace.updates;
    let updates = bytes.iter().map(scan).collect::<Vec<_>>();
    let (few, some) = (&bytes[..1_000], &updates[..1_000]);

    println!("{:<44} {:>12} {:>12} {:>8}", "", "here", "yrs", "ratio");
    compare(
        "scan | decode a keystroke",
        1_000,
        || each(1_000, || scan(&keystroke)),
        || each(1_000, || decode(&keystroke)),
    );
    compare(
        "scan | decode automerge-paper, each",
        bytes.len(),
        || bytes.iter().map(scan).count(),
        || bytes.iter().map(decode).count(),
    );
    let state = squash(&updates, SquashOptions::default());
    compare("scan | decode the whole text", 1, || scan(state.bytes()), || decode(state.bytes()));
    compare(
        "receive | apply 20,000 keystrokes, each",
        20_000,
        || journal(&updates[..20_000]),
        || document(&bytes[..20_000]),
    );
    compare("join | merge 1,000 keystrokes", 1, || join(some), || yrs::merge_updates_v1(few).ok());
    compare(
        "squash | merge 1,000 keystrokes",
        1,
        || squash(some, SquashOptions::default()),
        || yrs::merge_updates_v1(few).ok(),
    );

    let known = [(ClientId::new(1).expect("small"), 100_000)].into_iter().collect::<StateVector>();
    let their_known = known.encode();
    compare(
        "diff | diff_updates of the whole text",
        1,
        || diff(&state, &known),
        || yrs::diff_updates_v1(state.bytes(), &their_known).ok(),
    );

    let mut small = Journal::new(JournalLimits::default());
    let _ = small.receive(&state);
    let doc = document(std::slice::from_ref(state.bytes()));
    let their = yrs::StateVector::decode_v1(&their_known).expect("just encoded");
    compare(
        "journal.diff | encode_diff of the whole text",
        1,
        || small.diff(&known),
        || doc.transact().encode_diff_v1(&their),
    );

    let all = median(3, || journal(&updates));
    println!("{:<44} {:>9.0} ns each", "receive automerge-paper", all / updates.len() as f64);
    println!(
        "{:<44} {:>9.1} ms",
        "squash automerge-paper",
        median(3, || squash(&updates, SquashOptions::default())) / 1e6
    );
    println!("{:<44} {:>9.1} ms", "join automerge-paper", median(3, || join(&updates)) / 1e6);
    println!("{:<44} {:>9} bytes", "squashed", state.bytes().len());
}

/// Prints the median time of one thing and of the same by yrs.
fn compare<A, B>(what: &str, count: usize, here: impl FnMut() -> A, yrs: impl FnMut() -> B) {
    let (here, yrs) = (median(15, here) / count as f64, median(5, yrs) / count as f64);
    println!("{what:<44} {here:>9.0} ns {yrs:>9.0} ns {:>8.1}", yrs / here);
}

fn median<T>(rounds: usize, mut work: impl FnMut() -> T) -> f64 {
    let mut times = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        black_box(work());
        times.push(start.elapsed().as_nanos());
    }
    times.sort_unstable();
    times[rounds / 2] as f64
}

fn each<T>(times: usize, mut work: impl FnMut() -> T) {
    for _ in 0..times {
        black_box(work());
    }
}

fn scan(bytes: &Bytes) -> Update {
    Update::scan(bytes.clone(), &ScanRules::default()).expect("sound")
}

fn decode(bytes: &Bytes) -> yrs::Update {
    yrs::Update::decode_v1(bytes).expect("sound")
}

fn journal(updates: &[Update]) -> Journal {
    let mut journal = Journal::new(JournalLimits::default());
    for update in updates {
        let _ = journal.receive(update);
    }
    journal
}

fn document(updates: &[Bytes]) -> yrs::Doc {
    let doc = histories::document(2, false);
    updates.iter().for_each(|bytes| histories::apply(&doc, bytes));
    doc
}
