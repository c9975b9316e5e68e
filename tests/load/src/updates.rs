//! Real updates, made before a run, and what to compare with after it.

use std::ops::Range;

use bytes::Bytes;
use yrs::{
    ClientID, Doc, GetString, OffsetKind, Options, ReadTxn, StateVector, Text, Transact, Update,
    updates::decoder::Decode,
};
use yrs_websocket::{
    awareness,
    update::{self, ClientId, ScanRules},
};

#[path = "../../traces/trace.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod trace;

/// Clocks of a client.
#[derive(Debug, Clone)]
pub(crate) struct Clocks {
    pub(crate) client: u64,
    pub(crate) clocks: Range<u64>,
}

/// One update for each keystroke of a writer who types at the end of what it has written.
pub(crate) fn keystrokes(client: u64, count: usize) -> Vec<Bytes> {
    let doc = document(client);
    let text = doc.get_or_insert_text(TEXT);
    let letter = |n: usize| char::from(b'a' + (n % 26) as u8).to_string();
    let update = |n| {
        let mut transaction = doc.transact_mut();
        text.insert(&mut transaction, n as u32, &letter(n));
        transaction.encode_update_v1().into()
    };
    (0..count).map(update).collect()
}

/// A text of so many characters that somebody has written at once.
pub(crate) fn text(client: u64, len: usize) -> Bytes {
    let doc = document(client);
    let text = doc.get_or_insert_text(TEXT);
    let mut transaction = doc.transact_mut();
    text.insert(&mut transaction, 0, &"0123456789".repeat(len.div_ceil(10))[..len]);
    transaction.encode_update_v1().into()
}

/// The paper that 259,778 keystrokes wrote, as a document of yrs encodes it, by each of these writers.
pub(crate) fn papers(copies: usize) -> Vec<Bytes> {
    let copy = |client| {
        let doc = document(client + 1_000);
        apply(&doc, trace::automerge_paper_by(client as u8).updates);
        doc.transact().encode_state_as_update_v1(&StateVector::default()).into()
    };
    (1..=copies as u64).map(copy).collect()
}

/// The presence that a user's editor sends for each move of its cursor.
pub(crate) fn presence(client: u64, clock: u32) -> Bytes {
    let state = format!(
        r##"{{"user":{{"name":"User {client}","color":"#30bced"}},"cursor":{{"anchor":{clock},"head":{clock}}}}}"##
    );
    let client = ClientId::new(client).expect("ids are small");
    awareness::encode([(client, clock, Some(&Bytes::from(state)))].into_iter())
}

/// Which clocks an update brings.
pub(crate) fn clocks(update: Bytes) -> Result<Vec<Clocks>, String> {
    let update = update::Update::scan(update, &ScanRules::default()).map_err(|error| error.to_string())?;
    Ok(update.inserts().map(|(client, clocks)| Clocks { client: client.get(), clocks }).collect())
}

/// Which updates of presence an update brings or takes the place of. Clocks begin at 1.
pub(crate) fn presence_clocks(update: &Bytes) -> Result<Vec<Clocks>, String> {
    let entries = awareness::decode(update, 100).map_err(|error| error.to_string())?;
    Ok(entries
        .into_iter()
        .map(|entry| Clocks { client: entry.client.get(), clocks: 0..u64::from(entry.clock) })
        .collect())
}

/// The content of a document that is given these updates; an error if they leave it waiting for more.
pub(crate) fn content(updates: impl IntoIterator<Item = Bytes>) -> Result<(String, StateVector), String> {
    let doc = document(u64::from(u32::MAX));
    apply(&doc, updates);
    let transaction = doc.transact();
    if transaction.has_missing_updates() {
        return Err("updates are missing".into());
    }
    let texts = [TEXT, "t"].iter().filter_map(|name| transaction.get_text(*name));
    let content = texts.map(|text| text.get_string(&transaction)).collect();
    Ok((content, transaction.state_vector()))
}

fn apply(doc: &Doc, updates: impl IntoIterator<Item = Bytes>) {
    let mut updates = updates.into_iter().peekable();
    while updates.peek().is_some() {
        // The end of a transaction joins what it has brought, and costs something itself.
        let mut transaction = doc.transact_mut();
        for update in updates.by_ref().take(TRANSACTION_UPDATES) {
            let update = Update::decode_v1(&update).expect("what was scanned decodes");
            transaction.apply_update(update).expect("what was scanned applies");
        }
    }
}

fn document(client: u64) -> Doc {
    let mut options = Options::with_guid_and_client_id("load".into(), ClientID::new(client));
    options.offset_kind = OffsetKind::Utf16;
    Doc::with_options(options)
}

const TEXT: &str = "text";

const TRANSACTION_UPDATES: usize = 256;
