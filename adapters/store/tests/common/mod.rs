//! What tests of several stores share.

#![allow(dead_code, reason = "each test binary uses what it needs")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rusqlite::{Connection, params};
use tempfile::TempDir;
use yrs::{
    ClientID, Doc, GetString as _, Options, ReadTxn as _, Text as _, Transact as _, Update,
    updates::decoder::Decode as _,
};
use yrs_websocket::RoomName;
use yrs_websocket_store::Write;

/// A database that Python wrote, as a copy.
pub(crate) fn fixture(library: &str) -> (TempDir, PathBuf) {
    let (folder, path) = empty();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(library).join("ystore.db");
    // Bytes, not the file: the copy is writable even where the original is not.
    fs::write(&path, fs::read(source).unwrap()).unwrap();
    (folder, path)
}

pub(crate) fn empty() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    (folder, path)
}

pub(crate) fn name(name: &str) -> RoomName {
    RoomName::new(name).unwrap()
}

pub(crate) fn append(room: &str, seq: u64, update: impl Into<Bytes>) -> Write {
    Write::Append { room: name(room), seq, update: update.into() }
}

pub(crate) fn compact(room: &str, seq: u64, state: impl Into<Bytes>) -> Write {
    Write::Compact { room: name(room), seq, state: vec![state.into()] }
}

/// Adds a row as Python does.
pub(crate) fn insert(connection: &Connection, path: &str, update: &[u8], timestamp: f64) {
    let row = params![path, update, timestamp];
    connection.execute("INSERT INTO yupdates VALUES (?1, ?2, x'', ?3)", row).unwrap();
}

pub(crate) fn count(connection: &Connection, sql: &str) -> i64 {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// The updates of one client that types these words one after another.
pub(crate) fn typed(words: &[&str]) -> Vec<Bytes> {
    let doc = Doc::with_options(Options::with_client_id(ClientID::new(7)));
    let text = doc.get_or_insert_text("text");
    let words = words.iter().map(|word| {
        let before = doc.transact().state_vector();
        text.push(&mut doc.transact_mut(), word);
        doc.transact().encode_diff_v1(&before).into()
    });
    words.collect()
}

pub(crate) fn document(updates: &[Bytes], client: u64) -> Doc {
    let doc = Doc::with_options(Options::with_client_id(ClientID::new(client)));
    for update in updates {
        doc.transact_mut().apply_update(Update::decode_v1(update).unwrap()).unwrap();
    }
    doc
}

/// The text of a document that misses nothing.
pub(crate) fn text(updates: &[Bytes]) -> String {
    let doc = document(updates, 1);
    let text = doc.get_or_insert_text("text");
    assert!(!doc.transact().has_missing_updates());
    text.get_string(&doc.transact())
}

/// A clock that shows these times, and then the last one for ever.
pub(crate) fn clock(times: impl IntoIterator<Item = f64>) -> impl FnMut() -> f64 {
    let mut times = times.into_iter();
    let mut now = 0.0;
    move || {
        now = times.next().unwrap_or(now);
        now
    }
}
