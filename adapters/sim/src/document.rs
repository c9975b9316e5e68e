//! Documents of clients: how they are made, changed and read.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use yrs::{
    Any, Array, ArrayPrelim, Doc, GetString, Map, MapPrelim, OffsetKind, Options, Out, ReadTxn, Text,
    TextPrelim, TextRef, Transact, TransactionMut, UndoManager, WriteTxn, Xml, XmlElementPrelim, XmlFragment,
    XmlOut, XmlTextPrelim, types::ToJson,
};
use yrs_websocket::update::ClientId;

use crate::{disk::scan, random::Random};

pub(crate) fn document(id: ClientId) -> Doc {
    let mut options = Options::with_guid_and_client_id("sim".into(), yrs::ClientID::new(id.get()));
    options.offset_kind = OffsetKind::Utf16;
    Doc::with_options(options)
}

/// Changes a document in one transaction; says what its `update` event says.
pub(crate) fn edit(doc: &Doc, random: &mut Random) -> Option<Bytes> {
    let many = if random.permille(200) { random.between(2, 4) } else { 1 };
    let mut transaction = doc.transact_mut();
    (0..many).for_each(|_| edit_once(&mut transaction, random));
    // The event comes after what is deleted was collected.
    transaction.commit();
    let update = transaction.encode_update_v1();
    (update.as_slice() != [0, 0]).then(|| update.into())
}

/// What the `update` event of a document says while `f` changes it, unless that is nothing.
fn update_event(doc: &Doc, f: impl FnOnce()) -> Option<Bytes> {
    let update = Arc::new(Mutex::new(None));
    let heard = Arc::clone(&update);
    doc.observe_update_v1("sim", move |_, event| {
        *heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Bytes::from(event.update.clone()));
    })
    .expect("nobody else uses the document");
    f();
    doc.unobserve_update_v1("sim").expect("nobody else uses the document");
    update.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// The undo of an editor. What it takes back are edits that delete one item each: yrs restores several in an
/// order that is another one in each run.
#[derive(Debug)]
pub(crate) struct Undo(UndoManager);

impl Undo {
    pub(crate) fn new(doc: &Doc) -> Self {
        let mut manager = UndoManager::with_options(yrs::undo::Options {
            capture_timeout_millis: 0,
            tracked_origins: [UNDOABLE.into()].into(),
            capture_transaction: None,
            timestamp: Arc::new(|| 0),
            init_undo_stack: Vec::new(),
            init_redo_stack: Vec::new(),
        });
        manager.expand_scope(doc, &doc.get_or_insert_text("text"));
        manager.expand_scope(doc, &doc.get_or_insert_map("map"));
        Self(manager)
    }

    /// Makes an edit that can be undone, undoes one, or does it again.
    pub(crate) fn edit(&mut self, doc: &Doc, random: &mut Random) -> Option<Bytes> {
        let mut item_len = None;
        let update = update_event(doc, || match random.below(5) {
            0 | 1 => {
                let mut transaction = doc.transact_mut_with(UNDOABLE);
                let text = transaction.get_or_insert_text("text");
                let map = transaction.get_or_insert_map("map");
                let places = char_places(&text.get_string(&transaction));
                let mut deletes = 1;
                match random.below(3) {
                    0 => text.insert(&mut transaction, random.pick(&places), "u"),
                    1 if places.len() > 1 => {
                        let from = random.index(places.len() - 1);
                        // Of a pair, both halves are one item.
                        deletes = places[from + 1] - places[from];
                        text.remove_range(&mut transaction, places[from], deletes);
                    }
                    _ => drop(map.insert(&mut transaction, format!("k{}", random.below(5)), "undoable")),
                }
                item_len = Some(u64::from(deletes));
            }
            2 | 3 => drop(self.0.undo_blocking()),
            _ => drop(self.0.redo_blocking()),
        });
        let deleted = |update: &Bytes| {
            let update = scan(update.clone()).expect("yrs writes nothing else");
            update.deletes().map(|(_, clocks)| clocks.end - clocks.start).sum::<u64>()
        };
        // Formats go with the text between them.
        if item_len.is_some_and(|item_len| update.as_ref().is_some_and(|update| deleted(update) > item_len)) {
            self.0.clear_all();
        }
        update
    }
}

pub(crate) fn edit_once(transaction: &mut TransactionMut<'_>, random: &mut Random) {
    let text = transaction.get_or_insert_text("text");
    let map = transaction.get_or_insert_map("map");
    let array = transaction.get_or_insert_array("array");
    match random.below(11) {
        0..=3 => insert_text(transaction, &text, random),
        4 => {
            let places = char_places(&text.get_string(transaction));
            if places.len() > 1 {
                let from = random.index(places.len() - 1);
                let to = (from + 1 + random.index(8)).min(places.len() - 1);
                text.remove_range(transaction, places[from], places[to] - places[from]);
            }
        }
        5 => {
            let key = format!("k{}", random.below(5));
            if random.permille(300) {
                map.remove(transaction, &key);
            } else {
                map.insert(transaction, key, random.below(1000) as f64);
            }
        }
        6 => {
            let len = array.len(transaction);
            if len > 0 && random.permille(400) {
                let from = random.index(len as usize) as u32;
                array.remove_range(transaction, from, 1.max((len - from).min(random.below(3) as u32)));
            } else {
                let at = random.below(u64::from(len) + 1) as u32;
                array.insert_range(transaction, at, [Any::from(random.below(100) as f64), Any::Null]);
            }
        }
        7 => {
            let key = format!("n{}", random.below(3));
            match map.get(transaction, &key) {
                Some(Out::YText(nested)) => insert_text(transaction, &nested, random),
                Some(Out::YMap(nested)) => {
                    nested.insert(transaction, format!("{}", random.below(3)), "v");
                }
                Some(Out::YArray(nested)) => {
                    nested.push_back(transaction, true);
                }
                _ => match random.below(3) {
                    0 => drop(map.insert(transaction, key, TextPrelim::new("nested"))),
                    1 => drop(map.insert(transaction, key, MapPrelim::default())),
                    _ => drop(map.insert(transaction, key, ArrayPrelim::default())),
                },
            }
        }
        8 => {
            let places = char_places(&text.get_string(transaction));
            if places.len() > 1 {
                let from = random.index(places.len() - 1);
                let to = (from + 1 + random.index(5)).min(places.len() - 1);
                let on = if random.permille(600) { Any::Bool(true) } else { Any::Null };
                let attributes = [(Arc::from("bold"), on)].into();
                text.format(transaction, places[from], places[to] - places[from], attributes);
            }
        }
        9 => {
            let xml = transaction.get_or_insert_xml_fragment("xml");
            let len = xml.len(transaction);
            let at = random.below(u64::from(len) + 1) as u32;
            match xml.get(transaction, at) {
                Some(XmlOut::Element(element)) => match random.below(4) {
                    0 => xml.remove_range(transaction, at, 1),
                    // One name: yrs shows several in an order that is another one in each process.
                    1 => drop(element.insert_attribute(transaction, "a", random.below(10).to_string())),
                    2 => drop(element.push_back(transaction, XmlElementPrelim::empty("nested"))),
                    _ => drop(element.push_back(transaction, XmlTextPrelim::new("text"))),
                },
                Some(XmlOut::Text(words)) => words.push(transaction, "more"),
                _ if random.permille(300) => drop(xml.insert(transaction, at, XmlTextPrelim::new("words"))),
                _ => drop(xml.insert(transaction, at, XmlElementPrelim::empty("p"))),
            }
        }
        _ => {
            let len = array.len(transaction);
            let at = random.below(u64::from(len) + 1) as u32;
            array.insert(transaction, at, TextPrelim::new("in an array"));
        }
    }
}

fn insert_text(transaction: &mut TransactionMut<'_>, text: &TextRef, random: &mut Random) {
    // Mostly at the end, as people type.
    let place = if random.permille(500) {
        text.len(transaction)
    } else {
        random.pick(&char_places(&text.get_string(transaction)))
    };
    if random.permille(5) {
        // Somebody pastes.
        return text.insert(transaction, place, &"pasted ".repeat(random.between(10, 200) as usize));
    }
    let chunk = match random.below(4) {
        0 => "\u{1f600}é",
        1 => "hello ",
        _ => ["a", "b", "c", "d"][random.index(4)],
    };
    text.insert(transaction, place, chunk);
}

/// The places in a text, as Yjs counts, at which no character is cut.
fn char_places(text: &str) -> Vec<u32> {
    let mut places = vec![0];
    let mut at = 0;
    for char in text.chars() {
        at += char.len_utf16() as u32;
        places.push(at);
    }
    places
}

/// What a document says, with sorted keys.
pub(crate) fn value(doc: &Doc) -> String {
    let text = doc.get_or_insert_text("text");
    let map = doc.get_or_insert_map("map");
    let array = doc.get_or_insert_array("array");
    let xml = doc.get_or_insert_xml_fragment("xml");
    let transaction = doc.transact();
    let mut out = String::new();
    for chunk in text.diff(&transaction, yrs::types::text::YChange::identity) {
        let attributes: BTreeMap<_, _> = chunk
            .attributes
            .map(|attributes| {
                attributes.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
            })
            .unwrap_or_default();
        out.push_str(&format!("{}{attributes:?}", chunk.insert.to_string(&transaction)));
    }
    write_any(&mut out, &map.to_json(&transaction));
    write_any(&mut out, &array.to_json(&transaction));
    out.push_str(&xml.get_string(&transaction));
    let state: BTreeMap<_, _> =
        transaction.state_vector().iter().map(|(client, clock)| (client.get(), *clock)).collect();
    out.push_str(&format!("\n{state:?}"));
    out
}

fn write_any(out: &mut String, any: &Any) {
    match any {
        Any::Array(items) => {
            out.push('[');
            items.iter().for_each(|item| {
                write_any(out, item);
                out.push(',');
            });
            out.push(']');
        }
        Any::Map(entries) => {
            let entries: BTreeMap<_, _> = entries.iter().collect();
            out.push('{');
            for (key, value) in entries {
                out.push_str(&format!("{key}:"));
                write_any(out, value);
                out.push(',');
            }
            out.push('}');
        }
        _ => out.push_str(&any.to_string()),
    }
}

/// The origin of edits that can be undone.
const UNDOABLE: &str = "undoable";
