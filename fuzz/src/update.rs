//! The algebra of encoded updates.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    slice::from_ref as one,
};

use bytes::Bytes;
use yrs::{Doc, OffsetKind, ReadTxn, Transact, updates::decoder::Decode, updates::encoder::Encode};
use yrs_websocket::{
    journal::{Journal, JournalLimits, Received},
    update::{ScanRules, SquashOptions, StateVector, Update, diff, join, squash},
};

/// What the scan accepts, the algebra and the journal handle; what yrs can read of it, squashing does
/// not change.
pub fn update(data: &[u8]) {
    let _ =
        StateVector::decode(data).map(|state| assert_eq!(StateVector::decode(&state.encode()), Ok(state)));
    let Ok(update) = Update::scan(Bytes::copy_from_slice(data), &ScanRules::default()) else { return };
    let proven = |update: &Update| {
        let again = Update::scan(update.bytes().clone(), &ScanRules::default());
        assert_eq!(again.as_ref(), Ok(update), "the algebra made what the scan refuses");
    };
    assert_eq!(join(one(&update)), update);
    assert_eq!(diff(&update, &StateVector::default()), update);
    let whole = squash(one(&update), SquashOptions { collect: false });
    let collected = squash(one(&update), SquashOptions { collect: true });
    for squashed in [&whole, &collected] {
        proven(squashed);
        assert_eq!(clocks(squashed), clocks(&update));
    }
    assert_eq!(squash(one(&whole), SquashOptions { collect: false }), whole);
    assert_eq!(squash(one(&collected), SquashOptions { collect: true }), collected);

    let mut journal = Journal::new(JournalLimits { parked_bytes_max: 1 << 20 });
    match journal.receive(&update) {
        Received::New(new) => proven(&new),
        Received::Nothing => assert!(update.is_empty()),
        Received::Overflow => return,
    }
    assert_eq!(journal.receive(&update), Received::Nothing, "what is known is nothing new");
    let answer = journal.diff(&StateVector::default());
    proven(&answer.main);
    let mut reader = Journal::new(JournalLimits { parked_bytes_max: 1 << 20 });
    for part in answer.conflicting.iter().chain([&answer.main]) {
        let _ = reader.receive(part);
    }
    assert_eq!(reader.state_vector(), journal.state_vector());

    // yrs is no judge where it panics, or cannot read what Yjs writes.
    let read = |update: &Update| {
        catch_unwind(AssertUnwindSafe(|| {
            let mut options = yrs::Options::with_guid_and_client_id("fuzz".into(), yrs::ClientID::new(1));
            options.offset_kind = OffsetKind::Utf16;
            let doc = Doc::with_options(options);
            let update = yrs::Update::decode_v1(update.bytes()).ok()?;
            doc.transact_mut().apply_update(update).ok()?;
            let state = doc.transact().state_vector().encode_v1();
            StateVector::decode(&state).ok()
        }))
        .unwrap_or(None)
    };
    if let (Some(of_original), Some(of_squashed)) = (read(&update), read(&whole)) {
        assert_eq!(of_original, of_squashed);
    }
}

fn clocks(update: &Update) -> BTreeSet<(u64, u64, u64)> {
    let mut clocks = BTreeSet::<(u64, u64, u64)>::new();
    let mut open: Option<(u64, u64, u64)> = None;
    for (client, range) in update.inserts() {
        match &mut open {
            Some((of, _, end)) if *of == client.get() && *end == range.start => *end = range.end,
            _ => clocks.extend(open.replace((client.get(), range.start, range.end))),
        }
    }
    clocks.extend(open);
    clocks
}
