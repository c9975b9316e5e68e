//! The y-protocols messages, and presence.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use yrs::{
    sync::{Message as YrsMessage, SyncMessage, awareness::AwarenessUpdate},
    updates::decoder::Decode,
};
use yrs_websocket::{
    ConnectionId,
    awareness::{self, Awareness, AwarenessEntry, AwarenessLimits},
    message::{Message, MessageError},
    update::{ClientId, StateVector},
};

use crate::{Script, epoch, memory};

/// A frame is read as messages that are written back as they were, that yrs reads alike, and that end
/// early only with an error.
pub fn messages(data: &[u8]) {
    let frame = Bytes::copy_from_slice(data);
    let (messages, peak) = memory::peak(|| Message::decode(&frame).collect::<Vec<_>>());
    // A message of two bytes becomes a value of some dozens; a reason to deny is copied.
    assert!(peak <= 64 * frame.len() + 1024, "{peak} bytes for {}", frame.len());
    let good: Vec<_> = messages.iter().flatten().cloned().collect();
    assert!(good.len() + 1 >= messages.len(), "nothing follows an error");

    for message in &good {
        let encoded = message.encode();
        assert_eq!(Message::decode(&encoded).collect::<Vec<_>>(), [Ok(message.clone())]);
        read_by_yrs(message, &encoded);
    }
    let written: Vec<u8> = good.iter().flat_map(|message| message.encode().to_vec()).collect();
    assert_eq!(Message::decode(&written.into()).flatten().collect::<Vec<_>>(), good);

    // Cut anywhere, it is the same messages up to there and then an error, or nothing more at a border.
    for end in 0..frame.len().min(CUTS_MAX) {
        let cut = frame.slice(..end);
        let mut rest = good.iter();
        for message in Message::decode(&cut) {
            match (message, rest.next()) {
                (Ok(message), Some(whole)) if message == *whole => {}
                // These take what is left of the frame.
                (Ok(Message::Unknown { tag, .. }), Some(Message::Unknown { tag: whole, .. })) => {
                    assert_eq!(tag, *whole);
                }
                // "Permission denied" that ends early may be a message of somebody else's own.
                (Ok(Message::Unknown { tag: 2, .. }), Some(Message::PermissionDenied(_))) => {}
                (Ok(message), whole) => panic!("{message:?} of {whole:?}, cut at {end}"),
                (Err(error), whole) => {
                    assert!(whole.is_some() || messages.last().is_some_and(Result::is_err));
                    assert!(error == MessageError::Truncated || messages.last() == Some(&Err(error)));
                }
            }
        }
    }
}

/// yrs reads what we write, where what is in it was proven. It reads a tag in one byte and wants a length
/// behind any that it does not know, so of those it is no judge.
fn read_by_yrs(message: &Message, encoded: &Bytes) {
    let read = || YrsMessage::decode_v1(encoded);
    match message {
        Message::SyncStep1(state) => {
            // Unproven, it would make yrs allocate what the count says.
            let Ok(ours) = StateVector::decode(state) else { return };
            if ours.iter().any(|(_, clock)| clock > u64::from(u32::MAX)) {
                return;
            }
            let Ok(YrsMessage::Sync(SyncMessage::SyncStep1(theirs))) = read() else {
                panic!("yrs refuses {ours:?}")
            };
            let theirs = theirs.iter().map(|(client, clock)| (client.get(), u64::from(*clock)));
            let ours = ours.iter().map(|(client, clock)| (client.get(), clock));
            assert_eq!(ours.collect::<BTreeMap<_, _>>(), theirs.collect());
        }
        Message::SyncStep2(update) => assert_eq!(
            read().expect("it is well-formed"),
            YrsMessage::Sync(SyncMessage::SyncStep2(update.to_vec()))
        ),
        Message::Update(update) => assert_eq!(
            read().expect("it is well-formed"),
            YrsMessage::Sync(SyncMessage::Update(update.to_vec()))
        ),
        Message::Awareness(update) => {
            if awareness::decode(update, DEPTH_MAX).is_ok() {
                let theirs = AwarenessUpdate::decode_v1(update).expect("yrs reads what we accept");
                assert_eq!(read().expect("it is well-formed"), YrsMessage::Awareness(theirs));
            }
        }
        Message::PermissionDenied(reason) => {
            assert_eq!(read().expect("it is well-formed"), YrsMessage::Auth(Some(reason.clone())));
        }
        Message::QueryAwareness => {
            assert_eq!(read().expect("it is well-formed"), YrsMessage::AwarenessQuery);
        }
        Message::Unknown { .. } => {}
    }
}

/// Presence: encoded updates are read as yrs reads them; whatever is announced by whomever, replicas that
/// hear what changed show the same, repeating changes nothing, and limits hold.
///
/// Input: a byte of options, then operations.
pub fn awareness(data: &[u8]) {
    let mut script = Script(data);
    let options = script.byte();
    let limits = AwarenessLimits {
        timeout: Duration::from_secs(30),
        ids_max: if options & 1 == 0 { 3 } else { 100 },
        bytes_max: if options & 2 == 0 { 40 } else { 10_000 },
        own_ids_only: options & 4 != 0,
    };
    let unlimited =
        AwarenessLimits { ids_max: usize::MAX, bytes_max: usize::MAX, own_ids_only: false, ..limits };
    let mut now = epoch();
    let mut room = Awareness::new(limits);
    let mut replica = Awareness::new(unlimited);
    // Who announced an id last, while it is present.
    let mut owners = BTreeMap::<ClientId, ConnectionId>::new();
    let mut seen = BTreeSet::<ClientId>::new();
    while !script.is_over() {
        let version = room.version();
        let op = script.byte();
        let connection = ConnectionId(u64::from(op >> 4 & 3));
        let changed = match op & 7 {
            0 | 1 => {
                let raw = script.bytes();
                let Some(entries) = decoded(&Bytes::copy_from_slice(raw)) else { continue };
                announce(&mut room, now, connection, entries, limits, &mut owners)
            }
            2..=5 => {
                let entries = (0..=script.below(3)).map(|_| entry(&mut script)).collect();
                announce(&mut room, now, connection, entries, limits, &mut owners)
            }
            6 => {
                let left = room.leave(now, connection);
                let owned = owners.iter().filter(|(_, owner)| **owner == connection);
                assert_eq!(left, owned.map(|(client, _)| *client).collect());
                left
            }
            _ => {
                now += Duration::from_secs(script.pick(&[0, 1, 14, 15, 29, 30, 31, 100]));
                let expired = room.expire(now);
                assert!(room.next_expiry().is_none_or(|next| next > now), "it is not over");
                assert_eq!(replica.expire(now), expired);
                expired
            }
        };
        seen.extend(&changed);
        owners.retain(|client, _| room.state(*client).is_some());

        // What changed, told to a replica, makes it the same; told again, it changes nothing.
        if let Some(update) = room.encode(&changed) {
            let news = decoded(&update).expect("what we write reads");
            let other = ConnectionId(99);
            assert!(replica.apply(now, other, news.clone()).1.is_ok());
            assert_eq!(replica.apply(now, other, news).0.changed, BTreeSet::new());
        }
        for client in &seen {
            assert_eq!(room.state(*client), replica.state(*client), "{client:?}");
        }
        let since = room.encode_since(version).and_then(|update| decoded(&update)).unwrap_or_default();
        let since: BTreeSet<_> = since.iter().map(|entry| entry.client).collect();
        assert!(since.is_subset(&changed), "{since:?} of {changed:?}");
        let present = seen.iter().filter(|client| room.state(**client).is_some()).count();
        assert_eq!(room.present(), present);
        let shown = room.encode_present().and_then(|update| decoded(&update)).unwrap_or_default();
        assert_eq!(shown.len(), present);
        assert!(shown.is_sorted_by(|a, b| a.client < b.client));
        assert!(shown.iter().all(|entry| entry.state.as_ref() == room.state(entry.client)));
    }
}

/// Applies an announcement and holds what it did against the rules.
fn announce(
    room: &mut Awareness,
    now: std::time::Instant,
    connection: ConnectionId,
    entries: Vec<AwarenessEntry>,
    limits: AwarenessLimits,
    owners: &mut BTreeMap<ClientId, ConnectionId>,
) -> BTreeSet<ClientId> {
    let before: BTreeMap<_, _> =
        entries.iter().map(|entry| (entry.client, room.state(entry.client).cloned())).collect();
    let (announced, result) = room.apply(now, connection, entries.clone());
    let named: BTreeSet<_> = entries.iter().map(|entry| entry.client).collect();
    assert!(announced.changed.is_subset(&named) && announced.outdated.is_subset(&named));
    for client in &named {
        let state = room.state(*client);
        if !announced.changed.contains(client) {
            assert_eq!(state, before[client].as_ref(), "{client:?} changed in silence");
        } else if state.is_some() {
            if limits.own_ids_only {
                assert!(owners.get(client).is_none_or(|owner| *owner == connection));
            }
            assert!(entries.iter().any(|entry| entry.client == *client && entry.state.as_ref() == state));
            owners.insert(*client, connection);
        }
    }
    owners.retain(|client, _| room.state(*client).is_some());
    let own: Vec<_> = owners.iter().filter(|(_, owner)| **owner == connection).collect();
    assert!(own.len() <= limits.ids_max);
    let bytes: usize = own.iter().filter_map(|(client, _)| room.state(**client)).map(Bytes::len).sum();
    assert!(bytes <= limits.bytes_max);

    // Nobody remembers that an unknown id is gone, so an entry behind that in the same update may show it.
    if named.len() < entries.len() {
        return announced.changed;
    }
    let version = room.version();
    let (again, second) = room.apply(now, connection, entries);
    assert_eq!((again.changed, second), (BTreeSet::new(), result), "saying it twice does something");
    assert_eq!(room.version(), version);
    announced.changed
}

/// Reads an update, which yrs must read alike, and writes it back.
fn decoded(update: &Bytes) -> Option<Vec<AwarenessEntry>> {
    let (entries, peak) = memory::peak(|| awareness::decode(update, DEPTH_MAX));
    assert!(peak <= 64 * update.len() + 1024, "{peak} bytes for {}", update.len());
    let entries = entries.ok()?;
    let parts: Vec<_> = entries.iter().map(|e| (e.client, e.clock, e.state.as_ref())).collect();
    assert_eq!(awareness::decode(&awareness::encode(parts.into_iter()), DEPTH_MAX).as_ref(), Ok(&entries));

    // It keeps the last of two entries for one id.
    let ours: BTreeMap<_, _> =
        entries.iter().map(|entry| (entry.client.get(), (entry.clock, entry.state.as_deref()))).collect();
    let theirs = AwarenessUpdate::decode_v1(update).expect("yrs reads what we accept");
    assert_eq!(ours.len(), theirs.clients.len());
    for (client, entry) in &theirs.clients {
        let state = Some(entry.json.as_bytes()).filter(|json| json.trim_ascii() != b"null");
        assert_eq!(ours.get(&client.get()), Some(&(entry.clock, state)));
    }
    Some(entries)
}

fn entry(script: &mut Script<'_>) -> AwarenessEntry {
    let client = ClientId::new(script.pick(&[1, 2, 3, 4, 5, 300, (1 << 53) - 1])).expect("below 2^53");
    let clock = script.pick(&[0, 1, 2, 3, 4, 1000, u32::MAX]);
    let state = script.pick(&[None, Some("{}"), Some("{\"a\":1}"), Some("[\"longer than the others\"]")]);
    AwarenessEntry { client, clock, state: state.map(|state| Bytes::from_static(state.as_bytes())) }
}

/// The default of `Config::depth_max`.
const DEPTH_MAX: usize = 100;

/// Longer frames are cut only in their first part.
const CUTS_MAX: usize = 300;
