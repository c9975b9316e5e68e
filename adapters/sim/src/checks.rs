//! What must hold: one function each.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use bytes::Bytes;
use yrs::{Doc, ReadTxn, Transact, updates::decoder::Decode};
use yrs_websocket::{
    RoomName, Server,
    journal::{Journal, JournalLimits, Squashed},
    update::ClientId,
};
use yrs_websocket_store::{Request, StoreError};

use crate::{
    disk::{Book, Content, scan},
    document::{document, value},
};

/// Something that must hold and does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// What must hold, in a few words: the same for every seed that finds it.
    pub invariant: &'static str,
    /// What was found instead.
    pub detail: String,
}

impl Violation {
    /// Makes a violation.
    pub fn new(invariant: &'static str, detail: impl fmt::Display) -> Self {
        Self { invariant, detail: detail.to_string() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.detail)
    }
}

impl std::error::Error for Violation {}

/// Somebody who works on the document of a room.
pub(crate) struct Member<'a> {
    pub(crate) name: String,
    pub(crate) doc: &'a Doc,
    /// What it changed.
    pub(crate) made: &'a Content,
    /// What it says of itself, if it is there.
    pub(crate) present: Option<(ClientId, Bytes)>,
    /// Whom it shows, if it looks.
    pub(crate) shows: Option<BTreeMap<ClientId, Bytes>>,
}

/// The store is asked in the order that its vocabulary demands: one request per room outstanding, loads
/// before writes, appends numbered without gaps, compactions of what is durable.
pub(crate) fn store_vocabulary(book: &Book, request: &Request<Squashed>) -> Result<(), Violation> {
    let fail = |detail: String| Err(Violation::new("the store's vocabulary", detail));
    match request {
        Request::Load(room) if book.is_open => fail(format!("{room} is loaded twice")),
        Request::Load(_) => Ok(()),
        Request::Unload(room) if !book.is_open => fail(format!("{room} is unloaded, and is not loaded")),
        // A drain whose deadline comes first does not wait; requests are first in, first out.
        Request::Unload(_) => Ok(()),
        _ if book.outstanding => fail(format!("{request:?} while another is outstanding")),
        Request::Append { room, .. } | Request::Compact { room, .. } if !book.is_open => {
            fail(format!("{room} is written to, and is not loaded"))
        }
        Request::Append { room, seq, .. } if *seq != book.durable + 1 => {
            fail(format!("{room}: append {seq} after {}", book.durable))
        }
        Request::Compact { room, seq, .. } if *seq != book.durable => {
            fail(format!("{room}: compaction {seq} at {}", book.durable))
        }
        Request::Append { .. } | Request::Compact { .. } => Ok(()),
    }
}

/// An append holds something that was not stored before.
pub(crate) fn nothing_known_is_stored(book: &Book, request: &Request<Squashed>) -> Result<(), Violation> {
    let Request::Append { room, seq, update } = request else { return Ok(()) };
    let content = Content::of([update.clone()])
        .map_err(|error| Violation::new("stored updates scan", format!("{room}: append {seq}: {error}")))?;
    if book.confirmed.missing_of(&content).is_empty() {
        let detail = format!("{room}: append {seq} holds only what is stored: {content}");
        return Err(Violation::new("no-ops are not stored", detail));
    }
    Ok(())
}

/// What a store gives back is all that it has taken.
pub(crate) fn store_keeps_everything(
    room: &RoomName,
    committed: &Content,
    loaded: &Result<Vec<Bytes>, StoreError>,
) -> Result<(), Violation> {
    let Ok(updates) = loaded else { return Ok(()) };
    let loaded = Content::of(updates.iter().cloned())
        .map_err(|error| Violation::new("stored updates scan", format!("{room}: {error}")))?;
    let lost = loaded.missing_of(committed);
    if lost.is_empty() {
        return Ok(());
    }
    Err(Violation::new("the store keeps everything", format!("{room} has lost {lost}")))
}

/// A compaction replaces what was committed by something that says as much.
pub(crate) fn squash_loses_nothing(
    room: &RoomName,
    committed: &Content,
    state: &Content,
) -> Result<(), Violation> {
    let lost = state.missing_of(committed);
    if lost.is_empty() {
        return Ok(());
    }
    Err(Violation::new("a squash loses nothing", format!("{room} has lost {lost}")))
}

/// Of what is not on the disk nothing was shown to its author.
pub(crate) fn acknowledged_is_durable(who: impl fmt::Debug, early: &Content) -> Result<(), Violation> {
    if early.is_empty() {
        return Ok(());
    }
    let detail = format!("{who:?} was shown its own {early}, which is not on the disk");
    Err(Violation::new("what is acknowledged is durable", detail))
}

/// After `timeout` nothing is overdue.
pub(crate) fn nothing_is_overdue(now: Instant, next: Option<Instant>) -> Result<(), Violation> {
    match next {
        Some(next) if next <= now => {
            Err(Violation::new("nothing is overdue after a timeout", format!("{:?}", now - next)))
        }
        _ => Ok(()),
    }
}

/// An outbox holds what its limit allows, and what a few inputs make beyond.
pub(crate) fn outbox_is_bounded(name: u64, bytes: usize, max: usize, once: usize) -> Result<(), Violation> {
    if bytes <= max + once {
        return Ok(());
    }
    let detail = format!("link {name}: {bytes} bytes, limit {max}, one input makes up to {once}");
    Err(Violation::new("outboxes are bounded", detail))
}

/// The core knows exactly the connections of its rooms, and not more than the host.
pub(crate) fn counts_agree(server: &Server, host: u64, links: usize) -> Result<(), Violation> {
    let in_rooms: usize = server.rooms().map(|room| room.connections().len()).sum();
    let known = server.connections();
    if in_rooms == known && known as u64 <= host && host == links as u64 {
        return Ok(());
    }
    let detail = format!("rooms {in_rooms}, server {known}, host {host}, links {links}");
    Err(Violation::new("connections are counted alike", detail))
}

/// The bounds of a room hold.
pub(crate) fn rooms_are_bounded(server: &Server, config: &yrs_websocket::Config) -> Result<(), Violation> {
    for room in server.rooms() {
        let unstored = room.unstored_bytes();
        if unstored > config.unstored_bytes_max {
            let detail = format!("{}: {unstored} bytes are not stored", room.name());
            return Err(Violation::new("rooms are bounded", detail));
        }
    }
    Ok(())
}

/// All who are connected to a room have the same document, the store too, and nothing is missing in it
/// that was acknowledged.
pub(crate) fn replicas_agree(
    room: &RoomName,
    members: &[Member<'_>],
    stored: &[Bytes],
    acknowledged: &Content,
) -> Result<(), Violation> {
    let doc = document(ClientId::MIN);
    let mut journal = Journal::new(JournalLimits::default());
    let mut content = Content::default();
    for bytes in stored {
        let update = scan(bytes.clone()).map_err(|error| Violation::new("stored updates scan", error))?;
        content.add(&update);
        journal.restore(&update);
    }
    for bytes in journal.updates() {
        let decoded =
            yrs::Update::decode_v1(bytes).map_err(|error| Violation::new("updates decode in yrs", error))?;
        let applied = doc.transact_mut().apply_update(decoded);
        applied.map_err(|error| Violation::new("updates apply in yrs", error))?;
    }
    let lost = content.missing_of(acknowledged);
    if !lost.is_empty() {
        return Err(Violation::new("nothing acknowledged is lost", format!("{room}: {lost}")));
    }
    let expected = value(&doc);
    for Member { name, made, .. } in members {
        let lost = content.missing_of(made);
        if !lost.is_empty() {
            let detail = format!("{room}: {name}: {lost}");
            return Err(Violation::new("what an honest client has is stored", detail));
        }
    }
    for Member { name, doc, .. } in members {
        let found = value(doc);
        if found != expected {
            let detail = format!("{room}: {name} has\n{found}\nthe store has\n{expected}");
            return Err(Violation::new("replicas agree", detail));
        }
    }
    let clocks: BTreeMap<_, _> =
        journal.state_vector().iter().map(|(client, clock)| (client.get(), clock)).collect();
    let of_yrs: BTreeMap<_, _> = doc
        .transact()
        .state_vector()
        .iter()
        .map(|(client, clock)| (client.get(), u64::from(*clock)))
        .collect();
    if clocks != of_yrs {
        let detail = format!("{room}: journal {clocks:?}, yrs {of_yrs:?}");
        return Err(Violation::new("the journal integrates what yrs does", detail));
    }
    Ok(())
}

/// Who looks is shown exactly those present, with what they say of themselves.
pub(crate) fn presence_is_exact(room: &RoomName, members: &[Member<'_>]) -> Result<(), Violation> {
    let expected: BTreeMap<_, _> = members.iter().filter_map(|member| member.present.clone()).collect();
    for Member { name, shows, .. } in members {
        if let Some(found) = shows.as_ref().filter(|found| **found != expected) {
            let ids = |map: &BTreeMap<ClientId, Bytes>| {
                map.iter().map(|(id, state)| format!("{}={state:?}", id.get())).collect::<BTreeSet<_>>()
            };
            let detail = format!("{room}: {name} shows {:?}, present are {:?}", ids(found), ids(&expected));
            return Err(Violation::new("presence is exact", detail));
        }
    }
    Ok(())
}

/// When everybody has left and the delays are over, nothing is left behind.
pub(crate) fn nothing_is_left(server: &Server, host: u64, next: Option<Duration>) -> Result<(), Violation> {
    let rooms: Vec<_> = server.rooms().map(|room| room.name().to_string()).collect();
    if rooms.is_empty() && server.connections() == 0 && host == 0 && next.is_none() {
        return Ok(());
    }
    let detail =
        format!("rooms {rooms:?}, connections {} and {host}, next timeout {next:?}", server.connections());
    Err(Violation::new("nothing is left behind", detail))
}
