//! The algebra of encoded updates, and the journal that uses it, against yrs.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    slice::from_ref as one,
};

use bytes::Bytes;
use yrs::{
    GetString, ReadTxn, Transact, WriteTxn, types::ToJson, updates::decoder::Decode, updates::encoder::Encode,
};
use yrs_websocket::{
    journal::{Journal, JournalLimits, Received},
    update::{IdSet, ScanRules, SquashOptions, StateVector, Update, diff, join, squash},
};

use crate::{
    Script,
    histories::{self, canonical, history},
    memory,
};

/// What the scan accepts, the algebra and the journal handle; what yrs makes of the results is what it
/// makes of the originals.
///
/// Input: a byte of options, then one update as it is, or several each behind its length, or several
/// built of well-formed structs that refer to anything, or an honest history of four writers.
///
/// As an oracle yrs has gaps. It rightly differs, and is not asked or not believed, where:
///
/// * it panics, or [cannot decode](decodes) content that only Yjs knows, or finds
///   [a parent that is no type](reads_like);
/// * clocks are said twice with different content: the first received wins here, and what the other
///   says about deletion is kept, while yrs drops all of it;
/// * something is missing: yrs fills gaps, integrates beyond them, and does not always notice that what
///   was pending has become possible;
/// * formats: what one covers depends on the order of arrival, in yrs as in Yjs;
/// * origins are forged: where a struct stands whose right origin is not right of its origin depends on the
///   order of arrival and on where structs are cut, so what such updates show is not compared, only what
///   they hold;
/// * several values of one map key in one struct, or in several without the hint that they have a key: of
///   one struct the last value counts and the others are not deleted, and a squash may join or cut such, so
///   what yrs finds deleted is not compared, but what the updates themselves say is.
pub fn update(data: &[u8]) {
    let mut script = Script(data);
    let options = script.byte();
    match options % 4 {
        0 => {
            let state = memory::peak(|| StateVector::decode(script.0));
            assert!(state.1 <= 64 * script.0.len() + 1024, "{} bytes for {}", state.1, script.0.len());
            if let Ok(state) = state.0 {
                assert_eq!(StateVector::decode(&state.encode()), Ok(state));
            }
            algebra(&scanned(script.0).into_iter().collect::<Vec<_>>(), false);
        }
        1 => {
            let mut updates = Vec::new();
            while !script.is_over() && updates.len() < UPDATES_MAX {
                updates.extend(scanned(script.bytes()));
            }
            algebra(&updates, false);
        }
        2 => {
            let forges = options & 4 == 0;
            let mut updates = Vec::new();
            while !script.is_over() && updates.len() < UPDATES_MAX {
                updates.extend(scanned(&built(&mut script, forges)));
            }
            algebra(&updates, !forges && updates.len() == 1);
        }
        _ => honest(&mut script),
    }
}

/// Proves an update, in memory that is a small multiple of it.
fn scanned(bytes: &[u8]) -> Option<Update> {
    let bytes = Bytes::copy_from_slice(bytes);
    let (update, peak) = memory::peak(|| Update::scan(bytes.clone(), &ScanRules::default()));
    assert!(peak <= 64 * bytes.len() + 1024, "{peak} bytes for {}", bytes.len());
    let update = update.ok()?;
    assert_eq!(update.bytes(), &bytes);
    Some(update)
}

/// What must hold for updates from anybody; what they show is compared only if that is sure.
fn algebra(updates: &[Update], is_sure: bool) {
    for update in updates {
        assert_eq!(join(one(update)), *update);
        assert_eq!(diff(update, &StateVector::default()), *update);
        decodes(update);
    }
    let joined = join(updates);
    let whole = squash(updates, SquashOptions { collect: false });
    let collected = squash(updates, SquashOptions { collect: true });
    for made in [&joined, &whole, &collected] {
        proven(made);
        assert_eq!(clocks(made), clocks_of(updates));
        let deleted = deletes(one(made));
        assert!(deletes(updates).iter().all(|(client, clocks)| deleted.contains_range(client, clocks)));
    }
    assert_eq!(squash(one(&joined), SquashOptions { collect: false }), whole);
    assert_eq!(squash(one(&whole), SquashOptions { collect: false }), whole);
    assert_eq!(squash(one(&collected), SquashOptions { collect: true }), collected);

    let is_simple = journals(updates, is_sure);
    if !is_simple {
        return;
    }
    let Some(theirs) = read_by_yrs(updates, has_pairs(updates)) else { return };
    for made in [&joined, &whole, &collected] {
        reads_like(&theirs, one(made), updates, is_sure);
    }
    for (index, _) in updates.iter().enumerate() {
        let (before, _) = updates.split_at(index);
        let Some(known) = read_by_yrs(before, true).map(|read| read.state) else { continue };
        let missing = diff(&joined, &known);
        proven(&missing);
        reads_like(&theirs, &[before, &[missing]].concat(), updates, is_sure);
    }
}

/// Whether yrs makes the same of what the algebra made.
///
/// Of structs whose parent is no type it refuses all of the update, if that parent is not yet collected,
/// which depends on what else comes in the same transaction.
fn reads_like(theirs: &Read, made: &[Update], updates: &[Update], is_sure: bool) {
    let Some(mut read) = read_by_yrs(made, has_pairs(updates)) else { return };
    if !is_sure {
        read.roots.clone_from(&theirs.roots);
    }
    assert_eq!(read, *theirs, "{made:?} of {updates:?}");
}

/// Gives updates to journals. Says whether each could be integrated when it came and no clock came twice.
fn journals(updates: &[Update], is_sure: bool) -> bool {
    let limits = JournalLimits { parked_bytes_max: 1 << 20 };
    let mut journal = Journal::new(limits.clone());
    let mut seen = IdSet::default();
    let mut relayed = Vec::new();
    let mut is_simple = true;
    for update in updates {
        for (client, clocks) in update.inserts() {
            is_simple &= seen.gaps(client, clocks.clone()).eq([clocks.clone()]);
            seen.insert(client, clocks);
        }
        match journal.receive(update) {
            Received::New(new) => {
                proven(&new);
                relayed.push(new);
            }
            Received::Nothing => {}
            Received::Overflow => return false,
        }
        is_simple &= journal.parked_bytes() == 0;
        let version = journal.version();
        for known in updates.iter().take_while(|other| !std::ptr::eq(*other, update)).chain([update]) {
            assert_eq!(journal.receive(known), Received::Nothing, "what is known is nothing new");
        }
        assert_eq!(journal.version(), version);
    }

    // Who is told what was relayed, who asks for everything, and who loads what a squash made of it, all
    // get as far.
    let answer = journal.diff(&StateVector::default());
    proven(&answer.main);
    let answered = [&answer.conflicting[..], one(&answer.main)].concat();
    let squashed = journal.squash(SquashOptions { collect: true }).run();
    let loaded: Vec<_> = squashed.updates().map(|bytes| scanned(bytes).expect("a squash reads")).collect();
    for updates in [&relayed, &answered, &loaded] {
        let mut other = Journal::new(limits.clone());
        for update in updates {
            let _ = other.receive(update);
        }
        assert_eq!(other.state_vector(), journal.state_vector());
        assert_eq!(other.parked_bytes() == 0, journal.parked_bytes() == 0);
    }
    assert!(journal.squashed(&squashed));
    for update in updates {
        assert_eq!(journal.receive(update), Received::Nothing, "a squash forgets nothing");
    }

    if is_simple && let Some(theirs) = read_by_yrs(updates, has_pairs(updates)) {
        assert_eq!(theirs.state, *journal.state_vector());
        for made in [relayed, answered, loaded] {
            reads_like(&theirs, &made, updates, is_sure);
        }
    }
    is_simple
}

/// What yrs writes passes, in any order and more than once; at the end all read the same.
fn honest(script: &mut Script<'_>) {
    let order = script.bytes();
    let mut steps = Vec::new();
    while !script.is_over() && steps.len() < STEPS_MAX {
        let (who, what) = (script.byte(), script.byte());
        // Not the formats.
        let what = if what % 20 == 11 { 10 } else { what % 20 };
        steps.push((who % 4, what, script.number(), script.number()));
    }
    let history = history(&steps);
    let mut updates = history.updates;
    for pair in order.chunks_exact(2) {
        let Some(from) = usize::from(pair[0]).checked_rem(updates.len()) else { continue };
        let to = usize::from(pair[1]) % updates.len();
        if pair[0] % 3 == 0 {
            updates.push(updates[from].clone());
        } else {
            updates.swap(from, to);
        }
    }
    // What everybody has, so that nothing is missing.
    updates.push(histories::state_beyond(&history.end, &yrs::StateVector::default()).into());
    let updates: Vec<_> =
        updates.iter().map(|update| scanned(update).expect("what yrs writes passes")).collect();
    let limits = JournalLimits::default();
    let mut journal = Journal::new(limits);
    let mut relayed = Vec::new();
    for update in &updates {
        match journal.receive(update) {
            Received::New(new) => relayed.push(new),
            Received::Nothing => {}
            Received::Overflow => panic!("the default limit is large"),
        }
    }
    assert_eq!(journal.parked_bytes(), 0);
    let answer = journal.diff(&StateVector::default());
    assert_eq!(answer.conflicting, []);

    let shown = |updates: &[Update]| {
        let doc = histories::document(2, false);
        // Like Yjs, yrs does not always notice that what was pending has become possible: hence twice.
        updates.iter().chain(updates).for_each(|update| histories::apply(&doc, update.bytes()));
        let state = StateVector::decode(&histories::encoded(&doc.transact().state_vector()));
        (state, histories::content(&doc))
    };
    let state = StateVector::decode(&histories::encoded(&history.end.transact().state_vector()));
    let everything = (state, histories::content(&history.end));
    let (collect, keep) = (SquashOptions { collect: true }, SquashOptions { collect: false });
    let (first, second) = updates.split_at(updates.len() / 2);
    let bit_by_bit = [&[squash(first, collect)], second].concat();
    let joined = join(&updates);
    let wholes = [squash(&updates, keep), squash(&updates, collect), squash(&bit_by_bit, collect)];
    for whole in wholes.iter().chain([&joined, &answer.main]) {
        proven(whole);
        assert_eq!(shown(one(whole)), everything);
    }
    assert_eq!(shown(&relayed), everything);
    for (known, state) in &history.earlier {
        let known = StateVector::decode(&histories::encoded(known)).expect("yrs writes state vectors");
        let state = scanned(state).expect("what yrs writes passes");
        for whole in wholes.iter().chain([&joined]) {
            assert_eq!(shown(&[state.clone(), diff(whole, &known)]), everything);
        }
    }
}

/// What a document of yrs shows.
#[derive(Debug, PartialEq)]
struct Read {
    state: StateVector,
    /// What it writes, squashed: where it cuts structs is no matter of ours.
    structs: BTreeSet<(u64, u64, u64)>,
    roots: BTreeMap<String, String>,
}

/// What yrs makes of updates from anybody, one after another; `None` where it refuses or panics.
///
/// Whatever a root may be meant to be, it is read as any. Only a text as an array not where there are
/// surrogate pairs: over those yrs walks for ever.
fn read_by_yrs(updates: &[Update], has_pairs: bool) -> Option<Read> {
    catch_unwind(AssertUnwindSafe(|| {
        let doc = histories::document(1, false);
        for update in updates {
            let update = yrs::Update::decode_v1(update.bytes()).ok()?;
            doc.transact_mut().apply_update(update).ok()?;
        }
        let mut txn = doc.transact_mut();
        let state = StateVector::decode(&txn.state_vector().encode_v1()).ok()?;
        let written = scanned(&txn.encode_diff_v1(&yrs::StateVector::default()))?;
        let names: Vec<_> = txn.root_refs().map(|(name, _)| name.to_owned()).collect();
        let mut roots = BTreeMap::new();
        for name in names {
            let text = txn.get_or_insert_text(&*name).get_string(&txn);
            let mut json = String::new();
            if !has_pairs {
                canonical(&txn.get_or_insert_array(&*name).to_json(&txn), &mut json);
                canonical(&txn.get_or_insert_map(&*name).to_json(&txn), &mut json);
            }
            if !text.is_empty() || !["", "[]{}"].contains(&&*json) {
                roots.insert(name, format!("{text:?} {json}"));
            }
        }
        Some(Read { state, structs: clocks(&written), roots })
    }))
    .unwrap_or(None)
}

fn has_pairs(updates: &[Update]) -> bool {
    updates.iter().any(|update| update.bytes().iter().any(|byte| *byte >= 0xf0))
}

/// What the scan accepts yrs decodes, but for content that only Yjs knows: JSON of its early versions, of
/// which yrs reads one text too many, the name of a hook, and JSON that does not fit into its values.
///
/// So what it refuses, it must accept once all content is said to be deleted; types and subdocuments
/// stay, and where an update has those, yrs is not believed.
fn decodes(update: &Update) {
    let is_decoded =
        |update: &Update| catch_unwind(|| yrs::Update::decode_v1(update.bytes()).is_ok()).unwrap_or(false);
    if is_decoded(update) {
        return;
    }
    let mut all = vec![0];
    let clocks = clocks(update);
    let clients: BTreeSet<_> = clocks.iter().map(|(client, ..)| *client).collect();
    var_uint(&mut all, clients.len() as u64);
    for client in clients {
        let ranges: Vec<_> = clocks.iter().filter(|(of, ..)| *of == client).collect();
        var_uint(&mut all, client);
        var_uint(&mut all, ranges.len() as u64);
        for (_, from, to) in ranges {
            var_uint(&mut all, *from);
            var_uint(&mut all, to - from);
        }
    }
    let all = scanned(&all).expect("it is well-formed");
    let bare = squash(&[update.clone(), all], SquashOptions { collect: true });
    let has_types = bare.bytes().iter().any(|byte| matches!(byte & 31, 7 | 9));
    assert!(has_types || is_decoded(&bare), "yrs refuses {bare:?}, which is {update:?} without its content");
}

/// An update of well-formed structs that refer to anything; to a right origin only if told to forge.
pub(crate) fn built(script: &mut Script<'_>, forges: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut clients = vec![1, 2, 300];
    let sections = script.below(4);
    var_uint(&mut out, sections as u64);
    for _ in 0..sections {
        let client = clients.remove(script.below(clients.len()));
        let mut clock = script.below(6) as u64;
        let structs = 1 + script.below(4);
        var_uint(&mut out, structs as u64);
        var_uint(&mut out, client);
        var_uint(&mut out, clock);
        for _ in 0..structs {
            clock += build_struct(script, client, clock, forges, &mut out);
        }
    }
    let deletes = script.below(3).min(2);
    let mut clients = vec![1, 2, 300];
    var_uint(&mut out, deletes as u64);
    for _ in 0..deletes {
        var_uint(&mut out, clients.remove(script.below(clients.len())));
        out.extend([1, script.below(10) as u8, 1 + script.below(4) as u8]);
    }
    out
}

/// Appends a struct and says how many clocks it has.
fn build_struct(script: &mut Script<'_>, client: u64, clock: u64, forges: bool, out: &mut Vec<u8>) -> u64 {
    let kinds: [(u8, &[u8], u64); 16] = [
        (4, b"\x01a", 1),
        (4, b"\x03bcd", 3),
        (4, "\x04\u{1f600}".as_bytes(), 2),
        (8, &[1, 126], 1),
        (8, &[3, 125, 1, 119, 1, b'x', 117, 0], 3),
        (1, &[1], 1),
        (1, &[4], 4),
        (7, &[0], 1),
        (7, &[1], 1),
        (7, &[2], 1),
        (3, &[2, 0, 255], 1),
        (5, b"\x02{}", 1),
        (9, b"\x01g\x76\x00", 1),
        (7, b"\x03\x01p", 1),
        (0, &[2], 2),
        (10, &[1], 1),
    ];
    let (kind, content, len) = script.pick(&kinds);
    let flags = if forges { script.byte() } else { script.byte() & !64 };
    if kind == 0 || kind == 10 {
        out.push(kind);
        out.extend_from_slice(content);
        return len;
    }
    let mut id = |out: &mut Vec<u8>| {
        let choice = script.byte();
        // Mostly what the client wrote before.
        if choice & 1 == 0 && clock > 0 {
            var_uint(out, client);
            out.push((clock - 1) as u8);
        } else {
            var_uint(out, [1, 2, 300][usize::from(choice >> 1) % 3]);
            out.push(choice >> 3 & 7);
        }
    };
    let has_key = flags & 32;
    out.push(flags & 0b1110_0000 | kind);
    if flags & 128 != 0 {
        id(out);
    }
    if flags & 64 != 0 {
        id(out);
    }
    if flags & 192 == 0 {
        if flags & 16 == 0 {
            out.extend([1, 1, if flags & 8 == 0 { b't' } else { b'm' }]);
        } else {
            out.push(0);
            id(out);
        }
        if has_key != 0 {
            out.extend([1, b'k']);
        }
    }
    out.extend_from_slice(content);
    len
}

fn proven(update: &Update) {
    let again = Update::scan(update.bytes().clone(), &ScanRules::default());
    assert_eq!(again.as_ref(), Ok(update), "the algebra made what the scan refuses");
}

fn clocks(update: &Update) -> BTreeSet<(u64, u64, u64)> {
    clocks_of(one(update))
}

/// The ranges of clocks that updates hold, merged.
fn clocks_of(updates: &[Update]) -> BTreeSet<(u64, u64, u64)> {
    let mut set = IdSet::default();
    for (client, clocks) in updates.iter().flat_map(Update::inserts) {
        set.insert(client, clocks);
    }
    set.iter().map(|(client, clocks)| (client.get(), clocks.start, clocks.end)).collect()
}

fn deletes(updates: &[Update]) -> IdSet {
    let mut set = IdSet::default();
    updates.iter().flat_map(Update::deletes).for_each(|(client, clocks)| _ = set.insert(client, clocks));
    set
}

fn var_uint(out: &mut Vec<u8>, mut number: u64) {
    while number > 127 {
        out.push(number as u8 | 128);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Checks against yrs take time.
const UPDATES_MAX: usize = 6;
const STEPS_MAX: usize = 60;
