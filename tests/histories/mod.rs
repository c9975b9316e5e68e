//! Random histories of a few yrs documents: the updates they made, and what came of them.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test touches the world")]

use bytes::Bytes;
use yrs::{
    Any, Array, ArrayPrelim, ClientID, Doc, GetString, Map, MapPrelim, OffsetKind, Options, ReadTxn,
    StateVector, Text, TextPrelim, Transact, Update, WriteTxn, XmlElementPrelim, XmlFragment, XmlTextPrelim,
    types::{ToJson, text::YChange},
    updates::decoder::Decode,
    updates::encoder::Encode,
};

/// The ids of the writers, in varuints of every length.
pub(crate) const WRITERS: [u64; 4] = [5, 300, 70_000, (1 << 32) - 3];

/// One thing that happens: writer (of four), what (of twenty), and where.
pub(crate) type Step = (u8, u8, u16, u16);

/// Updates in the order they were made, and a document that has seen all.
pub(crate) struct History {
    pub(crate) updates: Vec<Bytes>,
    pub(crate) end: Doc,
    /// Earlier states: a state vector, and an update of everything up to it.
    pub(crate) earlier: Vec<(StateVector, Vec<u8>)>,
}

/// Lets four writers, two of which keep what they delete, edit and exchange what they have.
pub(crate) fn history(steps: &[Step]) -> History {
    let writers = WRITERS.iter().enumerate().map(|(i, &id)| document(id, i >= 2)).collect::<Vec<_>>();
    let mut updates = Vec::<Bytes>::new();
    let mut earlier = Vec::new();
    for &(writer, what, x, y) in steps {
        let doc = &writers[usize::from(writer) % writers.len()];
        let other = &writers[usize::from(x) % writers.len()];
        match what {
            // Offline for long: few exchanges.
            0..=2 => {
                let known = doc.transact().state_vector();
                apply(doc, &state_beyond(other, &known));
            }
            3 if !updates.is_empty() => {
                let some = [x, y, x.wrapping_add(y)].map(|i| updates[usize::from(i) % updates.len()].clone());
                updates.extend(yrs::merge_updates_v1(some).ok().map(Bytes::from));
            }
            4 => {
                let known = other.transact().state_vector();
                updates.push(state_beyond(doc, &known).into());
            }
            5 => {
                let known = doc.transact().state_vector();
                earlier.push((known, state_beyond(doc, &StateVector::default())));
            }
            _ => {
                let update = edit(doc, what, x.into(), y.into());
                if update != [0, 0] {
                    updates.push(update.into());
                }
            }
        }
    }
    let end = document(1, false);
    for doc in &writers {
        apply(&end, &state_beyond(doc, &StateVector::default()));
    }
    History { updates, end, earlier }
}

/// A document that counts in UTF-16 units, as JavaScript does.
pub(crate) fn document(client: u64, keeps_deleted: bool) -> Doc {
    let mut options = Options::with_client_id(ClientID::new(client));
    options.offset_kind = OffsetKind::Utf16;
    options.skip_gc = keeps_deleted;
    Doc::with_options(options)
}

pub(crate) fn apply(doc: &Doc, update: &[u8]) {
    doc.transact_mut().apply_update(Update::decode_v1(update).unwrap()).unwrap();
}

pub(crate) fn state_beyond(doc: &Doc, known: &StateVector) -> Vec<u8> {
    doc.transact().encode_state_as_update_v1(known)
}

/// What a reader sees.
pub(crate) fn content(doc: &Doc) -> String {
    let mut txn = doc.transact_mut();
    let text = txn.get_or_insert_text("t");
    let map = txn.get_or_insert_map("m");
    let array = txn.get_or_insert_array("a");
    let xml = txn.get_or_insert_xml_fragment("x");
    let mut chunks = Vec::<(String, String)>::new();
    for chunk in text.diff(&txn, YChange::identity) {
        let attributes = chunk
            .attributes
            .map(|attributes| attributes.into_iter().collect::<std::collections::BTreeMap<_, _>>());
        let (insert, attributes) = (chunk.insert.to_string(&txn), format!("{attributes:?}"));
        match chunks.last_mut() {
            Some((last, others)) if *others == attributes => last.push_str(&insert),
            _ => chunks.push((insert, attributes)),
        }
    }
    let mut json = String::new();
    for any in [map.to_json(&txn), array.to_json(&txn)] {
        canonical(&any, &mut json);
    }
    format!("{chunks:?} {json} {}", xml.get_string(&txn))
}

/// Writes a value with its names in order.
pub(crate) fn canonical(any: &Any, out: &mut String) {
    match any {
        Any::Map(map) => {
            let sorted = map.iter().collect::<std::collections::BTreeMap<_, _>>();
            out.push('{');
            for (name, value) in sorted {
                out.push_str(name);
                out.push(':');
                canonical(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Any::Array(values) => {
            out.push('[');
            for value in values.iter() {
                canonical(value, out);
                out.push(',');
            }
            out.push(']');
        }
        value => out.push_str(&format!("{value:?}")),
    }
}

pub(crate) fn edit(doc: &Doc, what: u8, x: u32, y: u32) -> Vec<u8> {
    let mut txn = doc.transact_mut();
    let text = txn.get_or_insert_text("t");
    let map = txn.get_or_insert_map("m");
    let array = txn.get_or_insert_array("a");
    let xml = txn.get_or_insert_xml_fragment("x");
    let string = text.get_string(&txn);
    // A position between characters, in UTF-16 units.
    let place = |x: u32| {
        let chars = string.chars().count() as u32;
        string.chars().take((x % (chars + 1)) as usize).map(char::len_utf16).sum::<usize>() as u32
    };
    let (from, to) = (place(x.min(y)).min(place(x.max(y))), place(x.min(y)).max(place(x.max(y))));
    let to = to.min(from + 8);
    let to = if string.encode_utf16().nth(to as usize).is_some_and(|unit| (0xdc00..0xe000).contains(&unit)) {
        to + 1
    } else {
        to
    };
    match what {
        6..=9 => {
            text.insert(&mut txn, place(x), ["a", "bcd", "😀", "é", "long text here", "z"][(y % 6) as usize])
        }
        10 if to > from => text.remove_range(&mut txn, from, to - from),
        11 if to > from => {
            let bold = if y.is_multiple_of(2) { Any::Bool(true) } else { Any::Null };
            text.format(&mut txn, from, to - from, yrs::types::Attrs::from([("b".into(), bold)]));
        }
        12 => _ = map.insert(&mut txn, format!("k{}", x % 3), value(y)),
        13 => _ = map.remove(&mut txn, &format!("k{}", x % 3)),
        14 => {
            let at = x % (array.len(&txn) + 1);
            array.insert_range(&mut txn, at, [value(y), value(y + 1)]);
        }
        15 if array.len(&txn) > 0 => {
            let at = x % array.len(&txn);
            let len = (1 + y % 3).min(array.len(&txn) - at);
            array.remove_range(&mut txn, at, len);
        }
        16 => _ = map.insert(&mut txn, format!("k{}", x % 3), MapPrelim::from([("n", value(y))])),
        17 => {
            if let Some(yrs::Out::YMap(nested)) = map.get(&txn, &format!("k{}", x % 3)) {
                nested.insert(&mut txn, "t", TextPrelim::new("nested"));
                nested.insert(&mut txn, "v", value(y));
            } else {
                array.push_back(&mut txn, ArrayPrelim::from([value(x), value(y)]));
            }
        }
        18 => {
            let at = x % (xml.len(&txn) + 1);
            if y.is_multiple_of(2) {
                xml.insert(&mut txn, at, XmlElementPrelim::empty("p"));
            } else {
                xml.insert(&mut txn, at, XmlTextPrelim::new("xt"));
            }
        }
        19 if xml.len(&txn) > 1 => {
            let at = x % xml.len(&txn);
            xml.remove_range(&mut txn, at, 1);
        }
        _ => text.push(&mut txn, "p"),
    }
    txn.encode_update_v1()
}

fn value(x: u32) -> Any {
    match x % 6 {
        0 => Any::from(f64::from(x) / 2.0),
        1 => Any::String(format!("s{x}").into()),
        2 => Any::Null,
        3 => Any::Buffer([x as u8; 3].into()),
        4 => Any::Array([Any::Bool(true), Any::from(1.5)].into()),
        _ => Any::Undefined,
    }
}

#[allow(dead_code, reason = "each test binary uses its part of this module")]
pub(crate) fn encoded(state: &StateVector) -> Vec<u8> {
    state.encode_v1()
}
