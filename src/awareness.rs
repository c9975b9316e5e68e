//! Presence: who is here, with which state, announced by whom.
//!
//! An entry is one client's state, a JSON text that is never built, with a clock that its owner
//! counts up. The rules are those of y-protocols (`awareness.js`): a newer clock wins, and `null` at
//! an equal clock removes. Stock clients send back every entry that they hear, so what is not newer
//! changes nothing.
//!
//! ```text
//!               newer clock                       newer clock
//!              .-----------.                     .-----------.
//!              v           |                     v           |
//!  unknown --> present ----'      null at an     gone -------' (back to present)
//!              |        <---------------------   ^ |
//!              '--- null, owner left, 30 s ------' '--- 30 s: forgotten
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    ConnectionId,
    lib0::{Reader, share, write_var_bytes, write_var_uint},
    update::{ClientId, prove_json},
};

/// One client's entry in an awareness update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwarenessEntry {
    /// The client; the `clientID` of a Yjs document.
    pub client: ClientId,
    /// How often the client has changed its state. yrs readers hold 32 bits.
    pub clock: u32,
    /// The state as JSON text, or `None` where the client is gone (`null` on the wire).
    pub state: Option<Bytes>,
}

/// Reads an awareness update: `varuint count, count x (varuint client, varuint clock, str JSON)`.
///
/// Accepts JSON by its grammar, nested up to `depth_max`, because one malformed entry makes stock
/// clients throw away the whole frame.
pub fn decode(update: &Bytes, depth_max: usize) -> Result<Vec<AwarenessEntry>, AwarenessError> {
    let mut reader = Reader::new(update);
    let count = reader.var_uint().ok_or(AwarenessError::Truncated)?;
    if count > (reader.remaining() / ENTRY_LEN_MIN) as u64 {
        return Err(AwarenessError::Truncated);
    }
    let mut entries = Vec::new();
    for _ in 0..count {
        let client = reader.var_uint().ok_or(AwarenessError::Truncated)?;
        let client = ClientId::new(client).ok_or(AwarenessError::ClientOutOfRange)?;
        let clock = reader.var_uint().ok_or(AwarenessError::Truncated)?;
        let clock = u32::try_from(clock).map_err(|_| AwarenessError::ClockOutOfRange)?;
        let state = reader.var_bytes().ok_or(AwarenessError::Truncated)?;
        prove_json(state, depth_max).map_err(|_| AwarenessError::NotJson)?;
        let is_null = state.trim_ascii() == b"null";
        entries.push(AwarenessEntry { client, clock, state: (!is_null).then(|| share(update, state)) });
    }
    if reader.is_at_end() { Ok(entries) } else { Err(AwarenessError::LeftOver) }
}

/// Writes an awareness update.
pub fn encode<'a>(entries: impl ExactSizeIterator<Item = (ClientId, u32, Option<&'a Bytes>)>) -> Bytes {
    let mut out = Vec::new();
    write_var_uint(&mut out, entries.len() as u64);
    for (client, clock, state) in entries {
        write_var_uint(&mut out, client.get());
        write_var_uint(&mut out, u64::from(clock));
        write_var_bytes(&mut out, state.map_or(b"null", |state| &state[..]));
    }
    out.into()
}

/// Says why bytes are no awareness update. The fault is their sender's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AwarenessError {
    /// The update ends inside an entry, or announces more entries than bytes are left for.
    #[error("the awareness update ends inside an entry")]
    Truncated,
    /// A client id is 2^53 or more, which JavaScript cannot hold.
    #[error("an awareness client id is beyond 2^53")]
    ClientOutOfRange,
    /// A clock is 2^32 or more, which yrs cannot hold.
    #[error("an awareness clock is beyond 2^32")]
    ClockOutOfRange,
    /// A state is no JSON text, or nested too deeply.
    #[error("an awareness state is no JSON, or nested too deeply")]
    NotJson,
    /// Bytes follow the last entry.
    #[error("bytes follow the last awareness entry")]
    LeftOver,
}

/// What an announcement exceeded: see [`Awareness::apply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AwarenessLimit {
    /// A connection announces more ids than
    /// [`Config::awareness_ids_max`](crate::Config::awareness_ids_max).
    #[error("more awareness ids than one connection may announce")]
    Ids,
    /// Its states have more bytes than
    /// [`Config::awareness_bytes_max`](crate::Config::awareness_bytes_max).
    #[error("more bytes of awareness states than one connection may announce")]
    Bytes,
}

/// The presence of one room.
#[derive(Debug)]
pub struct Awareness {
    entries: BTreeMap<ClientId, Entry>,
    /// Ids and bytes that each connection has announced and that are still present.
    owners: BTreeMap<ConnectionId, Owned>,
    /// Those gone, oldest first; an id that came back since is skipped when its turn comes.
    gone: VecDeque<(Instant, ClientId)>,
    version: u64,
    limits: AwarenessLimits,
}

/// Bounds for [`Awareness`]; see the fields of the same names in [`Config`](crate::Config).
#[derive(Debug, Clone, Copy)]
pub struct AwarenessLimits {
    /// Unrenewed entries are removed after this time, and forgotten after as long again.
    pub timeout: Duration,
    /// Ids per connection.
    pub ids_max: usize,
    /// Bytes of states per connection.
    pub bytes_max: usize,
    /// Whether ids that another connection announced are ignored.
    pub own_ids_only: bool,
}

/// What an announcement did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// Ids whose entry changed, for everybody.
    pub changed: BTreeSet<ClientId>,
    /// Ids that were announced as present at the very clock at which they are known to be gone. That
    /// is how a client comes back after a cut connection, with its old clock, and nobody would listen
    /// until its next renewal: its sender should be told `null`, upon which a live client announces
    /// itself with its next clock at once.
    pub outdated: BTreeSet<ClientId>,
}

#[derive(Debug)]
struct Entry {
    clock: u32,
    state: Option<Bytes>,
    owner: Option<ConnectionId>,
    renewed: Instant,
    version: u64,
}

#[derive(Debug, Default)]
struct Owned {
    clients: BTreeSet<ClientId>,
    bytes: usize,
}

impl Awareness {
    /// Makes the presence of a room in which nobody is.
    pub fn new(limits: AwarenessLimits) -> Self {
        Self { entries: BTreeMap::new(), owners: BTreeMap::new(), gone: VecDeque::new(), version: 0, limits }
    }

    /// Takes what `connection` announces; all of it, or at a limit what came before it.
    pub fn apply(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        entries: Vec<AwarenessEntry>,
    ) -> (Announced, Result<(), AwarenessLimit>) {
        let mut announced = Announced::default();
        for AwarenessEntry { client, clock, state } in entries {
            if let Some(known) = self.entries.get(&client) {
                let removes = state.is_none() && known.state.is_some();
                if clock < known.clock || (clock == known.clock && !removes) {
                    if clock == known.clock && known.state.is_none() && state.is_some() {
                        announced.outdated.insert(client);
                    }
                    continue;
                }
                let foreign = known.owner.is_some_and(|owner| owner != connection);
                if foreign && self.limits.own_ids_only {
                    continue;
                }
            } else if state.is_none() {
                // Nobody knows it, so nobody needs to hear that it left.
                continue;
            }
            if let Some(state) = &state
                && let Err(limit) = self.check(connection, client, state.len())
            {
                return (announced, Err(limit));
            }
            // Shared memory would keep the whole frame alive for as long as the entry.
            let state = state.map(|state| Bytes::copy_from_slice(&state));
            self.set(now, client, clock, state, Some(connection));
            announced.changed.insert(client);
        }
        (announced, Ok(()))
    }

    /// Removes what `connection` announced; says which ids that were.
    pub fn leave(&mut self, now: Instant, connection: ConnectionId) -> BTreeSet<ClientId> {
        let Some(owned) = self.owners.remove(&connection) else {
            return BTreeSet::new();
        };
        for &client in &owned.clients {
            self.remove(now, client);
        }
        owned.clients
    }

    /// Removes what was not renewed in time, forgets who is gone for long; says which ids were removed.
    pub fn expire(&mut self, now: Instant) -> BTreeSet<ClientId> {
        let timeout = self.limits.timeout;
        let late =
            |entry: &Entry| entry.state.is_some() && now.saturating_duration_since(entry.renewed) >= timeout;
        let expired: BTreeSet<_> =
            self.entries.iter().filter(|(_, entry)| late(entry)).map(|(client, _)| *client).collect();
        for &client in &expired {
            self.remove(now, client);
        }
        self.forget(now);
        expired
    }

    /// When [`Awareness::expire`] has something to do next; linear in the number of entries.
    pub fn next_expiry(&self) -> Option<Instant> {
        let oldest = self.entries.values().map(|entry| entry.renewed).min()?;
        oldest.checked_add(self.limits.timeout)
    }

    /// Writes an awareness update of the given ids, sorted; those unknown are left out.
    pub fn encode(&self, clients: &BTreeSet<ClientId>) -> Option<Bytes> {
        let known: Vec<_> =
            clients.iter().filter_map(|client| Some((*client, self.entries.get(client)?))).collect();
        Self::encode_entries(&known)
    }

    /// Writes an awareness update of everybody present; `None` where nobody is.
    pub fn encode_present(&self) -> Option<Bytes> {
        self.encode_where(|entry| entry.state.is_some())
    }

    /// Writes an awareness update of what changed after `version`; `None` where nothing did.
    pub fn encode_since(&self, version: u64) -> Option<Bytes> {
        self.encode_where(|entry| entry.version > version)
    }

    /// A number that grows with every change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many ids are present.
    pub fn present(&self) -> usize {
        self.owners.values().map(|owned| owned.clients.len()).sum()
    }

    /// The state of a client, as JSON text.
    pub fn state(&self, client: ClientId) -> Option<&Bytes> {
        self.entries.get(&client)?.state.as_ref()
    }

    /// Those present and their states, as JSON text.
    pub fn states(&self) -> impl Iterator<Item = (ClientId, &Bytes)> {
        self.entries.iter().filter_map(|(client, entry)| Some((*client, entry.state.as_ref()?)))
    }

    fn check(&self, connection: ConnectionId, client: ClientId, len: usize) -> Result<(), AwarenessLimit> {
        let Some(owned) = self.owners.get(&connection) else {
            return if len > self.limits.bytes_max { Err(AwarenessLimit::Bytes) } else { Ok(()) };
        };
        let replaced = owned.clients.contains(&client);
        if !replaced && owned.clients.len() >= self.limits.ids_max {
            return Err(AwarenessLimit::Ids);
        }
        let freed = if replaced { self.state(client).map_or(0, Bytes::len) } else { 0 };
        if owned.bytes - freed + len > self.limits.bytes_max {
            return Err(AwarenessLimit::Bytes);
        }
        Ok(())
    }

    fn remove(&mut self, now: Instant, client: ClientId) {
        if let Some(entry) = self.entries.get(&client) {
            // For others than oneself y-protocols removes at an equal clock.
            self.set(now, client, entry.clock, None, None);
        }
    }

    fn set(
        &mut self,
        now: Instant,
        client: ClientId,
        clock: u32,
        state: Option<Bytes>,
        owner: Option<ConnectionId>,
    ) {
        self.version += 1;
        let owner = owner.filter(|_| state.is_some());
        let len = state.as_ref().map_or(0, Bytes::len);
        if state.is_none() {
            self.gone.push_back((now, client));
        }
        let entry = Entry { clock, state, owner, renewed: now, version: self.version };
        if let Some(old) = self.entries.insert(client, entry)
            && let Some(old_owner) = old.owner
            && let Some(owned) = self.owners.get_mut(&old_owner)
        {
            owned.clients.remove(&client);
            owned.bytes -= old.state.as_ref().map_or(0, Bytes::len);
            if owned.clients.is_empty() {
                self.owners.remove(&old_owner);
            }
        }
        if let Some(owner) = owner {
            let owned = self.owners.entry(owner).or_default();
            owned.clients.insert(client);
            owned.bytes += len;
        }
        self.forget(now);
    }

    fn forget(&mut self, now: Instant) {
        while let Some(&(since, client)) = self.gone.front() {
            let kept = now.saturating_duration_since(since) < self.limits.timeout;
            if kept && self.gone.len() <= GONE_MAX {
                break;
            }
            self.gone.pop_front();
            if self.entries.get(&client).is_some_and(|entry| entry.state.is_none() && entry.renewed == since)
            {
                self.entries.remove(&client);
            }
        }
    }

    fn encode_where(&self, wanted: impl Fn(&Entry) -> bool) -> Option<Bytes> {
        let entries: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| wanted(entry))
            .map(|(client, entry)| (*client, entry))
            .collect();
        Self::encode_entries(&entries)
    }

    fn encode_entries(entries: &[(ClientId, &Entry)]) -> Option<Bytes> {
        if entries.is_empty() {
            return None;
        }
        Some(encode(entries.iter().map(|(client, entry)| (*client, entry.clock, entry.state.as_ref()))))
    }
}

/// A client, a clock and the length of a state, one byte each.
const ENTRY_LEN_MIN: usize = 3;

/// How many that left are remembered, so that an old echo does not bring them back; more pushes out
/// the oldest.
const GONE_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoch::epoch;
    use proptest::prelude::*;

    const A: ConnectionId = ConnectionId(1);
    const B: ConnectionId = ConnectionId(2);

    #[test]
    fn samples_of_the_wire() {
        let gone = entry(1, 2, None);
        let empty = entry(300, 0, Some("{}"));
        for (entry, bytes) in
            [(gone, &[1, 1, 2, 4, b'n', b'u', b'l', b'l'][..]), (empty, &[1, 0xac, 2, 0, 2, b'{', b'}'])]
        {
            let update = Bytes::copy_from_slice(bytes);
            assert_eq!(decode(&update, 100), Ok(vec![entry.clone()]));
            assert_eq!(encode([(entry.client, entry.clock, entry.state.as_ref())].into_iter()), update);
        }
    }

    #[test]
    fn what_would_harm_a_reader_is_refused() {
        let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f];
        for (bytes, error) in [
            (vec![], AwarenessError::Truncated),
            (vec![0xff, 0xff, 0xff, 0xff, 0x7f, 0, 0], AwarenessError::Truncated),
            (vec![1, 1, 0, 5, b'{', b'}'], AwarenessError::Truncated),
            (vec![1, 1, 0, 1, b'{'], AwarenessError::NotJson),
            (vec![1, 1, 0, 0], AwarenessError::NotJson),
            (vec![1, 1, 0, 2, 0xff, 0xff], AwarenessError::NotJson),
            (vec![1, 1, 0, 2, b'{', b'}', 0], AwarenessError::LeftOver),
            ([&[1][..], &huge, &[0, 2, b'{', b'}']].concat(), AwarenessError::ClientOutOfRange),
            ([&[1, 1][..], &huge, &[2, b'{', b'}']].concat(), AwarenessError::ClockOutOfRange),
        ] {
            assert_eq!(decode(&Bytes::from(bytes.clone()), 100), Err(error), "{bytes:?}");
        }
        let nested = |depth: usize| {
            let text = "[".repeat(depth) + &"]".repeat(depth);
            encode([(client(1), 0, Some(&Bytes::from(text)))].into_iter())
        };
        assert!(decode(&nested(100), 100).is_ok());
        assert_eq!(decode(&nested(101), 100), Err(AwarenessError::NotJson));
    }

    #[test]
    fn a_newer_clock_wins_and_an_echo_changes_nothing() {
        let (mut awareness, now) = (awareness(), epoch());
        assert_eq!(apply(&mut awareness, now, A, entry(7, 1, Some("1"))), [7]);
        assert_eq!(apply(&mut awareness, now, B, entry(7, 1, Some("1"))), [0u64; 0]);
        assert_eq!(apply(&mut awareness, now, B, entry(7, 0, Some("0"))), [0u64; 0]);
        assert_eq!(apply(&mut awareness, now, A, entry(7, 2, Some("2"))), [7]);
        assert_eq!(awareness.state(client(7)), Some(&Bytes::from("2")));
        // The echo did not make B the owner.
        assert!(awareness.leave(now, B).is_empty());
        assert_eq!(awareness.leave(now, A), BTreeSet::from([client(7)]));
        assert_eq!(awareness.present(), 0);
    }

    #[test]
    fn null_at_an_equal_clock_removes_and_an_old_echo_does_not_bring_back() {
        let (mut awareness, now) = (awareness(), epoch());
        apply(&mut awareness, now, A, entry(7, 1, Some("1")));
        assert_eq!(apply(&mut awareness, now, A, entry(7, 1, None)), [7]);
        assert_eq!(apply(&mut awareness, now, B, entry(7, 1, Some("1"))), [0u64; 0]);
        assert_eq!(awareness.present(), 0);
        assert_eq!(apply(&mut awareness, now, A, entry(7, 2, Some("2"))), [7]);
    }

    #[test]
    fn who_comes_back_with_its_old_clock_is_reported() {
        let (mut awareness, now) = (awareness(), epoch());
        apply(&mut awareness, now, A, entry(7, 1, Some("1")));
        awareness.leave(now, A);
        let (announced, _) = awareness.apply(now, B, vec![entry(7, 1, Some("1"))]);
        assert_eq!(announced, Announced { changed: BTreeSet::new(), outdated: BTreeSet::from([client(7)]) });
    }

    #[test]
    fn what_is_not_renewed_expires_and_is_forgotten() {
        let (mut awareness, start) = (awareness(), epoch());
        let at = |seconds| start + Duration::from_secs(seconds);
        apply(&mut awareness, at(0), A, entry(1, 1, Some("{}")));
        apply(&mut awareness, at(20), A, entry(2, 1, Some("{}")));
        assert_eq!(awareness.next_expiry(), Some(at(30)));
        assert_eq!(awareness.expire(at(29)), BTreeSet::new());
        assert_eq!(awareness.expire(at(30)), BTreeSet::from([client(1)]));
        assert_eq!(awareness.expire(at(60)), BTreeSet::from([client(2)]));
        awareness.expire(at(90));
        assert_eq!(awareness.next_expiry(), None);
        assert!(awareness.entries.is_empty() && awareness.gone.is_empty() && awareness.owners.is_empty());
    }

    #[test]
    fn limits_are_per_connection() {
        let (mut awareness, now) = (awareness(), epoch());
        for id in 0..4 {
            assert_eq!(awareness.apply(now, A, vec![entry(id, 1, Some("{}"))]).1, Ok(()));
        }
        assert_eq!(awareness.apply(now, A, vec![entry(4, 1, Some("{}"))]).1, Err(AwarenessLimit::Ids));
        assert_eq!(awareness.apply(now, B, vec![entry(4, 1, Some("{}"))]).1, Ok(()));
        let long = "9".repeat(101);
        assert_eq!(awareness.apply(now, A, vec![entry(0, 2, Some(&long))]).1, Err(AwarenessLimit::Bytes));
        assert_eq!(awareness.apply(now, A, vec![entry(0, 3, Some(&long[..90]))]).1, Ok(()));
    }

    #[test]
    fn foreign_ids_can_be_refused() {
        let now = epoch();
        let mut awareness = Awareness::new(AwarenessLimits { own_ids_only: true, ..limits() });
        apply(&mut awareness, now, A, entry(7, 1, Some("1")));
        assert_eq!(apply(&mut awareness, now, B, entry(7, 2, Some("forged"))), [0u64; 0]);
        assert_eq!(apply(&mut awareness, now, A, entry(7, 2, Some("2"))), [7]);
    }

    #[test]
    fn those_gone_are_bounded() {
        let (mut awareness, now) = (awareness(), epoch());
        for id in 0..2 * GONE_MAX as u64 {
            apply(&mut awareness, now, A, entry(id, 1, Some("{}")));
            apply(&mut awareness, now, A, entry(id, 2, None));
        }
        assert_eq!(awareness.entries.len(), GONE_MAX);
    }

    proptest! {
        /// Whoever hears the same entries ends in the same presence, in whatever order and however often.
        #[test]
        fn merging_is_commutative_and_idempotent(
            entries in proptest::collection::vec((0u64..4, 0u32..6, any::<bool>()), 1..20),
            order in any::<u64>(),
        ) {
            let now = epoch();
            // One client never gives two states to one clock, except null after a state.
            let entries: Vec<_> = entries.into_iter()
                .map(|(id, clock, gone)| entry(id, clock, (!gone).then_some("{}")))
                .collect();
            let mut shuffled = entries.clone();
            let mut seed = order;
            for i in (1..shuffled.len()).rev() {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                shuffled.swap(i, (seed >> 33) as usize % (i + 1));
            }
            // An id that was first heard of as gone is unknown, so everybody is made known first.
            let known: Vec<_> = (0..4).map(|id| entry(id, 0, Some("{}"))).collect();
            let merged = |orders: &[&[AwarenessEntry]]| {
                let mut awareness = Awareness::new(AwarenessLimits { ids_max: 100, ..limits() });
                for entries in orders {
                    awareness.apply(now, A, entries.to_vec()).1.unwrap();
                }
                awareness.encode_where(|_| true)
            };
            let once = merged(&[&known, &entries]);
            prop_assert_eq!(&once, &merged(&[&known, &shuffled]));
            prop_assert_eq!(&once, &merged(&[&known, &entries, &shuffled, &entries]));
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(entries) = decode(&Bytes::from(bytes), 100) {
                let update = encode(entries.iter().map(|e| (e.client, e.clock, e.state.as_ref())).collect::<Vec<_>>().into_iter());
                prop_assert_eq!(decode(&update, 100), Ok(entries));
            }
        }
    }

    fn limits() -> AwarenessLimits {
        AwarenessLimits { timeout: Duration::from_secs(30), ids_max: 4, bytes_max: 100, own_ids_only: false }
    }

    fn awareness() -> Awareness {
        Awareness::new(limits())
    }

    fn client(id: u64) -> ClientId {
        ClientId::new(id).unwrap()
    }

    fn entry(id: u64, clock: u32, state: Option<&str>) -> AwarenessEntry {
        AwarenessEntry {
            client: client(id),
            clock,
            state: state.map(|s| Bytes::copy_from_slice(s.as_bytes())),
        }
    }

    fn apply(awareness: &mut Awareness, now: Instant, by: ConnectionId, entry: AwarenessEntry) -> Vec<u64> {
        let (announced, result) = awareness.apply(now, by, vec![entry]);
        result.unwrap();
        announced.changed.iter().map(|client| client.get()).collect()
    }
}
