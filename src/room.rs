//! A room: a journal and those connected to it. Sync, fan-out, echo, flow.
//!
//! ```text
//!             Loaded                     nobody here, nothing in flight,
//!  Loading -----------> Live ------------------------------------------------> Closed
//!     |                  ^ |             idle for `idle_delay`, or drained        ^
//!     |                  '-' join, receive, stored, ...                           |
//!     '-- LoadFailed, or what is stored does not read: peers are closed ----------'
//! ```
//!
//! One connection in it:
//!
//! ```text
//!            .---- Congested ----.   nothing is sent; what it was handed out is remembered
//!            |                   v
//!  Joined: Flowing           Congested --- `congestion_timeout` ---> closed with 1013
//!            ^                   |
//!            '---- Writable -----'   one diff of what it missed, presence that changed
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use smallvec::SmallVec;
use yrs::TransactionMut;

use crate::{
    Access, CloseReason, Config, ConnectionId, Echo, Event, Join, Output, Outputs, Recipients, RoomName,
    after,
    awareness::{self, Awareness, AwarenessLimits},
    is_due,
    journal::{Journal, JournalLimits, Received, Squashed},
    message::{Carrier, Message},
    random::Random,
    soonest,
    update::{self, ClientId, ScanRules, SquashOptions, StateVector, Struct, Update},
    view::{View, ViewError},
};

/// One room: see the [module](self) for its states.
///
/// [`Server`](crate::Server) routes its inputs to the rooms; a process with a single document may hold
/// a `Room` by itself. The verbs are those of [`Input`](crate::Input), the outputs are pushed.
#[derive(Debug)]
// As they are declared: an update comes by the first ten lines of memory, which are cold in a server of many rooms.
#[repr(C)]
pub struct Room {
    name: RoomName,
    config: Arc<Config>,
    /// How many changes the room has taken: the number of the last one.
    changes: u64,
    peers: BTreeMap<ConnectionId, Peer>,
    drain: Option<Box<Drain>>,
    phase: Phase,
    flush: Pace,
    storage: Storage,
    /// Changes that wait for the end of the flush interval.
    batch: Vec<Change>,
    batch_bytes: usize,
    /// Who made the last change, when, and how many at that instant.
    burst: (Option<ConnectionId>, Option<Instant>, usize),
    /// Who has a question that waits for the store.
    askers: BTreeSet<ConnectionId>,
    presence_flush: Pace,
    timers: Timers,
    journal: Journal,
    awareness: Awareness,
    /// Ids whose presence changed since the last broadcast of presence.
    presence: BTreeSet<ClientId>,
    view: Option<View>,
    answers: Vec<Answer>,
    random: Random,
}

#[derive(Debug)]
enum Phase {
    Loading { waiting: Vec<Waiting>, bytes: usize },
    Live,
    Closed,
}

/// A frame that waits for the room to be loaded.
#[derive(Debug)]
struct Waiting {
    /// `None` if that peer has left: then only what it has written counts.
    from: Option<ConnectionId>,
    frame: Bytes,
}

#[derive(Debug)]
struct Peer {
    access: Access,
    expires_at: Option<Instant>,
    refusal_told: bool,
    /// Its turn to be drained has come; it only waits for the echo of what it wrote until then.
    leaving: bool,
    /// The number of the last change it made; 0 before the first.
    last_change: u64,
    last_sent: Instant,
    congestion: Option<Box<Congestion>>,
    question: Option<Box<Question>>,
    past: Past,
}

/// What a peer may have made under an earlier connection, or before a crash of the server: somebody else
/// may bring it first, and its author must not take that for the store's confirmation.
#[derive(Debug)]
enum Past {
    /// It has not said what it has: it may have made anything.
    Unknown,
    /// It has said what it has, and may have made that; a state vector says nothing of deletes.
    Has(StateVector),
    /// It has sent what the room lacked: what comes after this change it has not made. But of what it has
    /// beyond a gap in the room's clocks somebody else may bring another version.
    Told { last_change: u64, beyond: StateVector },
}

/// What is remembered about a peer whose outbox is full, instead of what it misses.
#[derive(Debug)]
struct Congestion {
    since: Instant,
    handed_out: StateVector,
    /// Whether an update was due meanwhile.
    missed: bool,
    /// Whether it is to be asked what it has.
    unasked: bool,
    /// Whether it is to be told that it may not write.
    untold: bool,
    presence_version: u64,
}

/// What is due to a peer, and so what a congested one misses.
#[derive(Debug, Clone, Copy)]
enum Due {
    Update,
    SyncStep1,
    Refusal,
    /// Presence that changed just now, or nothing that matters later.
    Change,
    /// Presence that changed at some time.
    Presence,
}

/// The questions of a peer that have been answered just now.
#[derive(Debug, Default)]
struct Answered {
    state: bool,
    presence: bool,
}

/// A SyncStep1, or a catch-up, that cannot be answered yet.
#[derive(Debug)]
struct Question {
    known: StateVector,
    is_step1: bool,
    /// The change that has to be durable first, because the asker may be its author under an earlier
    /// connection; 0 for none.
    after: u64,
}

/// An answer that others with the same state vector share.
#[derive(Debug)]
struct Answer {
    version: u64,
    known: StateVector,
    is_step1: bool,
    frames: SmallVec<[Bytes; 1]>,
}

/// A change as it arrived.
#[derive(Debug)]
struct Change {
    number: u64,
    author: Option<ConnectionId>,
    update: Update,
    /// The frame it came in, where that can go out as it is.
    frame: Option<Bytes>,
    /// Holds parked structs, which may say something else about the same clocks than what is integrated:
    /// joined with that, one of the two would be lost.
    stands_alone: bool,
}

/// When something that is sent at most once per interval may go out: the leading edge at once, what
/// follows at the end of the interval.
#[derive(Debug, Default)]
struct Pace {
    last: Option<Instant>,
    due: Option<Instant>,
}

/// Deadlines that are looked at together; each may be earlier than needed, never later.
#[derive(Debug, Default)]
struct Timers {
    keepalive: Option<Instant>,
    presence: Option<Instant>,
    congestion: Option<Instant>,
    expiry: Option<Instant>,
    view: Option<Instant>,
    unload: Option<Instant>,
}

#[derive(Debug)]
struct Drain {
    deadline: Instant,
    next_close: Instant,
    step: Duration,
}

impl Room {
    /// Makes a room that waits for [`Room::loaded`]; the caller loads it from the store.
    pub fn new(config: Arc<Config>, name: RoomName, seed: u64) -> Self {
        let awareness = Awareness::new(AwarenessLimits {
            timeout: config.awareness_timeout,
            ids_max: config.awareness_ids_max,
            bytes_max: config.awareness_bytes_max,
            own_ids_only: config.awareness_own_ids_only,
        });
        Self {
            journal: Journal::new(JournalLimits { parked_bytes_max: config.parked_bytes_max }),
            name,
            config,
            changes: 0,
            peers: BTreeMap::new(),
            drain: None,
            phase: Phase::Loading { waiting: Vec::new(), bytes: 0 },
            flush: Pace::default(),
            storage: Storage::default(),
            batch: Vec::new(),
            batch_bytes: 0,
            burst: (None, None, 0),
            askers: BTreeSet::new(),
            presence_flush: Pace::default(),
            timers: Timers::default(),
            awareness,
            presence: BTreeSet::new(),
            view: None,
            answers: Vec::new(),
            random: Random::new(seed),
        }
    }

    /// Takes a connection in. It is greeted with SyncStep1 and the presence of the others, at once or
    /// when the room is loaded.
    pub fn join(&mut self, now: Instant, join: Join, out: &mut Outputs) {
        let Join { connection, access, expires_at, room: _ } = join;
        if self.peers.contains_key(&connection) {
            return;
        }
        if self.drain.is_some() || self.is_closed() {
            return out.close(connection, CloseReason::Draining);
        }
        if self.peers.len() >= self.config.peers_per_room_max {
            return out.close(connection, CloseReason::RoomFull);
        }
        if is_due(expires_at, now) {
            return out.close(connection, CloseReason::AccessExpired);
        }
        let peer = Peer {
            access,
            expires_at,
            refusal_told: false,
            leaving: false,
            last_change: 0,
            last_sent: now,
            congestion: None,
            question: None,
            past: Past::Unknown,
        };
        self.peers.insert(connection, peer);
        self.timers.unload = None;
        soonest(&mut self.timers.expiry, expires_at);
        soonest(&mut self.timers.keepalive, Some(after(now, self.config.keepalive)));
        out.event(Event::Joined { room: self.name.clone(), connection });
        if matches!(self.phase, Phase::Live) {
            self.greet(now, connection, out);
        }
    }

    /// Takes a frame from a peer. What is malformed, or beyond a limit, closes that peer.
    pub fn receive(&mut self, now: Instant, connection: ConnectionId, frame: Bytes, out: &mut Outputs) {
        let Some(peer) = self.peers.get(&connection) else { return };
        if peer.leaving {
            // It comes back with this: nothing of it is acknowledged.
            return;
        }
        if is_due(peer.expires_at, now) {
            return self.close(now, connection, CloseReason::AccessExpired, out);
        }
        if frame.len() > self.config.frame_len_max {
            return self.close(now, connection, CloseReason::FrameTooLong, out);
        }
        match &mut self.phase {
            Phase::Loading { waiting, bytes } => {
                if *bytes + frame.len() + LOADING_FRAME_COST > self.config.loading_bytes_max {
                    return self.close(now, connection, CloseReason::LoadingQueueFull, out);
                }
                *bytes += frame.len() + LOADING_FRAME_COST;
                waiting.push(Waiting { from: Some(connection), frame });
            }
            Phase::Live => self.receive_live(now, connection, &frame, &mut Answered::default(), out),
            Phase::Closed => {}
        }
    }

    /// Stops sending to a peer whose outbox is full; remembers what it was handed out. Said again of a
    /// congested peer, it means that the peer has read some of it, and gives it as much time once more.
    pub fn congested(&mut self, now: Instant, connection: ConnectionId) {
        let handed_out = self.handed_out_to(connection);
        let presence_version = self.awareness.version();
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        if let Some(congestion) = &mut peer.congestion {
            congestion.since = now;
            return;
        }
        // Presence that waits for its flush counts as missed: its version is not yet handed out.
        let presence_version = if self.presence.is_empty() { presence_version } else { 0 };
        peer.congestion = Some(Box::new(Congestion {
            since: now,
            handed_out,
            missed: false,
            unasked: false,
            untold: false,
            presence_version,
        }));
        soonest(&mut self.timers.congestion, Some(after(now, self.config.congestion_timeout)));
    }

    /// Sends a peer whose outbox drained what it missed: one diff, and the presence that changed.
    pub fn writable(&mut self, now: Instant, connection: ConnectionId, out: &mut Outputs) {
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        let Some(congestion) = peer.congestion.take().map(|congestion| *congestion) else { return };
        // A question that still waits is older than the congestion, or a SyncStep1 that came meanwhile,
        // which says what the peer really has: its answer carries all that was missed.
        let question = peer.question.take().map(|question| *question).or_else(|| {
            congestion.missed.then_some(Question { known: congestion.handed_out, is_step1: false, after: 0 })
        });
        soonest(&mut self.timers.keepalive, Some(after(peer.last_sent, self.config.keepalive)));
        if congestion.unasked {
            self.ask(now, connection, out);
        }
        if congestion.untold {
            self.send(now, connection, Due::Refusal, refusal(), out);
        }
        if let Some(question) = question {
            self.answer_or_wait(now, connection, question, out);
        }
        if let Some(update) = self.awareness.encode_since(congestion.presence_version) {
            self.send(now, connection, Due::Change, Message::Awareness(update).encode(), out);
        }
    }

    /// Forgets a connection that is gone, and removes its presence.
    pub fn disconnected(&mut self, now: Instant, connection: ConnectionId, out: &mut Outputs) {
        self.keep_changes(now, connection);
        if self.remove_peer(now, connection, out) {
            self.after_change(now, out);
        }
    }

    /// Changes what a connection may do from now on.
    pub fn set_access(&mut self, connection: ConnectionId, access: Access, expires_at: Option<Instant>) {
        if let Some(peer) = self.peers.get_mut(&connection) {
            peer.access = access;
            peer.expires_at = expires_at;
            soonest(&mut self.timers.expiry, expires_at);
        }
    }

    /// Takes what the store has of the room, and answers those who wait.
    ///
    /// Where a record does not read, the room closes as after [`Room::load_failed`]: serving the rest
    /// would let peers overwrite what cannot be seen.
    pub fn loaded(&mut self, now: Instant, updates: Vec<Bytes>, out: &mut Outputs) {
        if !matches!(self.phase, Phase::Loading { .. }) {
            return;
        }
        // Of those whose access has ended nothing that waits is taken, even if the timer is late.
        self.close_expired(now, out);
        for (index, bytes) in updates.into_iter().enumerate() {
            match Update::scan(bytes, &self.scan_rules()) {
                Ok(update) => self.journal.restore(&update),
                Err(error) => {
                    out.event(Event::StoredUpdateMalformed { room: self.name.clone(), index, error });
                    self.close_all(now, CloseReason::LoadFailed, out);
                    // The store has loaded it, and may forget that.
                    return out.event(Event::RoomClosed { room: self.name.clone(), unstored_bytes: 0 });
                }
            }
        }
        let Phase::Loading { waiting, .. } = mem::replace(&mut self.phase, Phase::Live) else { return };
        out.event(Event::RoomOpened { room: self.name.clone() });
        for connection in self.peers.keys().copied().collect::<Vec<_>>() {
            self.greet(now, connection, out);
        }
        let mut answered: BTreeMap<_, Answered> = BTreeMap::new();
        for Waiting { from, frame } in waiting {
            match from {
                Some(from) => self.receive_live(now, from, &frame, answered.entry(from).or_default(), out),
                None => self.receive_late(now, &frame, out),
            }
        }
        self.after_change(now, out);
    }

    /// Closes those who wait for a room that cannot be loaded; the room is then closed.
    pub fn load_failed(&mut self, now: Instant, out: &mut Outputs) {
        if matches!(self.phase, Phase::Loading { .. }) {
            out.event(Event::LoadFailed { room: self.name.clone() });
            self.close_all(now, CloseReason::LoadFailed, out);
        }
    }

    /// Everything up to `seq` is durable: echoes what that acknowledges, writes what waited.
    pub fn stored(&mut self, now: Instant, seq: u64, out: &mut Outputs) {
        let Some(record) = self.storage.stored(seq) else { return };
        let authors: Recipients = record
            .authors
            .iter()
            .copied()
            .filter(|author| offer(&mut self.peers, *author, now, Due::Update))
            .collect();
        if !authors.is_empty() {
            out.send(authors, record.frame);
        }
        self.storage_advanced(now, out);
    }

    /// A squash is durable: its result takes the place of what it covered.
    pub fn compacted(&mut self, now: Instant, seq: u64, squashed: Squashed, out: &mut Outputs) {
        if self.storage.compacted(seq) {
            if self.journal.squashed(&squashed)
                && let Some(view) = &mut self.view
            {
                view.squashed();
            }
            self.storage_advanced(now, out);
        }
    }

    /// A write failed. It is tried again, in order, with growing delays, and nothing in it is
    /// acknowledged before it succeeds.
    ///
    /// A `seq` that was reported as stored before says that the store has lost it: the room writes
    /// everything it has once more, and asks all peers for what they have.
    pub fn store_failed(&mut self, now: Instant, seq: u64, out: &mut Outputs) {
        let lost =
            seq < self.storage.durable || (seq == self.storage.durable && !self.storage.is_compacting());
        if lost {
            if matches!(self.phase, Phase::Live) {
                self.rewrite(now, out);
            }
            return;
        }
        if let Some(delay) = self.storage.failed(now, seq, &self.config, &mut self.random) {
            out.event(Event::StoreFailed { room: self.name.clone(), seq, retry_in: delay });
            // What waited behind a compaction, or for its end, need not wait for it to be tried again.
            self.storage_advanced(now, out);
        }
    }

    /// Refuses joins from now on, flushes, and closes the peers one after another from `first_close`
    /// on, `step` apart, each after its edits are durable; all of them at `deadline`.
    pub fn drain(
        &mut self,
        now: Instant,
        first_close: Instant,
        step: Duration,
        deadline: Instant,
        out: &mut Outputs,
    ) {
        if self.drain.is_some() {
            return;
        }
        self.drain = Some(Box::new(Drain { deadline, next_close: first_close, step }));
        self.timers.unload = None;
        if self.is_live() {
            self.flush(now, out);
            self.after_change(now, out);
        } else if !self.is_closed() {
            self.close_all(now, CloseReason::Draining, out);
            out.event(Event::RoomClosed { room: self.name.clone(), unstored_bytes: 0 });
        }
    }

    /// Does what is due. Calling early, or twice, is harmless.
    pub fn timeout(&mut self, now: Instant, out: &mut Outputs) {
        if is_due(self.timers.expiry, now) {
            self.close_expired(now, out);
        }
        if is_due(self.flush.due, now) {
            self.flush(now, out);
        }
        if is_due(self.timers.presence, now) {
            let expired = self.awareness.expire(now);
            self.timers.presence = self.awareness.next_expiry();
            self.presence_changed(now, expired, out);
        }
        if is_due(self.presence_flush.due, now) {
            self.flush_presence(now, out);
        }
        if is_due(self.timers.congestion, now) {
            self.close_congested(now, out);
        }
        if is_due(self.timers.keepalive, now) {
            self.keep_alive(now, out);
        }
        if is_due(self.timers.view, now) {
            let kept_until = self.view.as_ref().map(|view| after(view.used(), self.config.view_delay));
            self.timers.view = kept_until.filter(|kept_until| *kept_until > now);
            if self.timers.view.is_none() {
                self.view = None;
            }
        }
        // Whoever was closed above may have been the last that a drain waited for.
        if is_due(self.storage.retry_at, now) && !self.is_closed() {
            self.storage.retry_at = None;
            self.storage.write(&self.name, out);
        }
        self.after_change(now, out);
    }

    /// When [`Room::timeout`] has something to do.
    pub fn next_timeout(&self) -> Option<Instant> {
        let timers = &self.timers;
        [
            self.flush.due,
            self.presence_flush.due,
            self.storage.retry_at,
            timers.keepalive,
            timers.presence,
            timers.congestion,
            timers.expiry,
            timers.view,
            timers.unload,
            self.drain.as_ref().map(|drain| drain.next_close.min(drain.deadline)),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Changes the document from the server's side; broadcast and stored like any other change.
    pub fn edit<R>(
        &mut self,
        now: Instant,
        f: impl FnOnce(&mut TransactionMut<'_>) -> R,
        out: &mut Outputs,
    ) -> Result<R, ViewError> {
        self.catch_up_view(now)?;
        // Taken out while `f` runs: if that panics, a half-edited document is gone with it.
        let mut view = self.view.take().expect("it has just caught up");
        let (result, update) = view.edit(f);
        let update = Update::scan(update, &self.scan_rules()).map_err(|_| ViewError::NotEncodable)?;
        if !update.is_empty() {
            // The document holds the refused edit, and goes with it.
            if self.overloads_store(&update) {
                return Err(ViewError::StoreOverloaded);
            }
            let _ = self.change(now, None, &update, None, None, out);
            self.after_change(now, out);
        }
        self.view = Some(view);
        Ok(result)
    }

    /// Reads the document.
    pub fn read<R>(
        &mut self,
        now: Instant,
        f: impl FnOnce(&yrs::Transaction<'_>) -> R,
    ) -> Result<R, ViewError> {
        self.catch_up_view(now)?;
        Ok(self.view.as_ref().expect("it has just caught up").read(f))
    }

    /// The name of the room.
    pub fn name(&self) -> &RoomName {
        &self.name
    }

    /// What the room has.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Who is present.
    pub fn awareness(&self) -> &Awareness {
        &self.awareness
    }

    /// Who is connected, in order of their ids.
    pub fn connections(&self) -> impl ExactSizeIterator<Item = ConnectionId> + '_ {
        self.peers.keys().copied()
    }

    /// Whether the store has been read.
    pub fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live)
    }

    /// Whether the room has ended: everybody left, nothing is in flight.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// Bytes of edits that the store has not confirmed.
    pub fn unstored_bytes(&self) -> usize {
        self.batch_bytes + self.storage.bytes
    }

    /// Takes the messages of a frame. Of a frame, and of all that waited for a room to load, each question
    /// of a peer is answered once: an answer may be as long as the document, and a question takes four bytes.
    fn receive_live(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        frame: &Bytes,
        answered: &mut Answered,
        out: &mut Outputs,
    ) {
        let mut asks_back = false;
        let mut outdated = None::<BTreeSet<ClientId>>;
        for message in Message::decode(frame) {
            // An earlier message of the frame may have closed it.
            if !self.peers.contains_key(&connection) {
                return;
            }
            let message = match message {
                Ok(message) => message,
                Err(error) => return self.close(now, connection, CloseReason::Message(error), out),
            };
            match message {
                Message::SyncStep1(state_vector) if state_vector.len() > self.config.state_vector_len_max => {
                    return self.close(now, connection, CloseReason::StateVectorTooLong, out);
                }
                Message::SyncStep1(state_vector) => match StateVector::decode(&state_vector) {
                    // What answers the first holds what later ones of the same moment lack.
                    Ok(_) if mem::replace(&mut answered.state, true) => {}
                    Ok(known) => {
                        if let Some(peer) = self.peers.get_mut(&connection)
                            && !matches!(peer.past, Past::Told { .. })
                        {
                            peer.past = Past::Has(known.clone());
                        }
                        let after = self.last_change_known_to(&known);
                        let question = Question { known, is_step1: true, after };
                        self.answer_or_wait(now, connection, question, out);
                    }
                    Err(error) => return self.close(now, connection, CloseReason::Update(error), out),
                },
                Message::Update(update) => {
                    let reusable = frame.len() == UPDATE_HEAD_LEN + var_uint_len(update.len()) + update.len();
                    let whole = reusable.then(|| frame.clone());
                    let is_taken = self.write(now, connection, update, frame.len(), whole, out);
                    // It has what is missing, or can name who has: ask once more.
                    asks_back |= !is_taken;
                }
                Message::SyncStep2(update) => {
                    let is_known = |peer: &Peer| !matches!(peer.past, Past::Unknown);
                    if let Some(peer) = self.peers.get_mut(&connection).filter(|peer| !is_known(peer)) {
                        peer.past = Past::Has(StateVector::default());
                    }
                    // If this is not taken, it has no better answer: asking again would go on for ever.
                    if self.write(now, connection, update, frame.len(), None, out)
                        && let Some(peer) = self.peers.get_mut(&connection)
                    {
                        peer.past.told(self.changes, self.journal.state_vector());
                    }
                }
                Message::Awareness(update) => match awareness::decode(&update, self.config.depth_max) {
                    Ok(entries) => {
                        let mut announced = self.announce(now, connection, entries, out);
                        outdated.get_or_insert_default().append(&mut announced);
                    }
                    Err(error) => return self.close(now, connection, CloseReason::Awareness(error), out),
                },
                Message::QueryAwareness if mem::replace(&mut answered.presence, true) => {}
                Message::QueryAwareness => {
                    if let Some(update) = self.awareness.encode_present() {
                        self.send(now, connection, Due::Presence, Message::Awareness(update).encode(), out);
                    }
                }
                // A client has nobody to deny anything to.
                Message::PermissionDenied(_) => {}
                Message::Unknown { tag, payload } => {
                    out.event(Event::UnknownMessage { room: self.name.clone(), connection, tag, payload });
                }
            }
        }
        if asks_back {
            self.ask(now, connection, out);
        }
        if let Some(outdated) = outdated.filter(|outdated| !outdated.is_empty())
            && let Some(update) = self.awareness.encode(&outdated)
        {
            self.send(now, connection, Due::Presence, Message::Awareness(update).encode(), out);
        }
        self.after_change(now, out);
    }

    /// Takes the changes of somebody who left before the room was loaded.
    fn receive_late(&mut self, now: Instant, frame: &Bytes, out: &mut Outputs) {
        for message in Message::decode(frame) {
            let Ok(message) = message else { return };
            let (Message::Update(update) | Message::SyncStep2(update)) = message else { continue };
            let update = Bytes::copy_from_slice(&update);
            let Ok(update) = Update::scan(update, &self.scan_rules()) else { return };
            self.change(now, None, &update, None, None, out);
        }
    }

    /// While the room is loaded, keeps what somebody who leaves has written: it may have nobody to write it
    /// again.
    fn keep_changes(&mut self, now: Instant, connection: ConnectionId) {
        let (Some(peer), Phase::Loading { waiting, .. }) = (self.peers.get(&connection), &mut self.phase)
        else {
            return;
        };
        if peer.access == Access::ReadOnly || is_due(peer.expires_at, now) {
            return;
        }
        let is_change = |message| matches!(message, Ok(Message::Update(_) | Message::SyncStep2(_)));
        for waiting in waiting.iter_mut().filter(|waiting| waiting.from == Some(connection)) {
            if Message::decode(&waiting.frame).any(is_change) {
                waiting.from = None;
            }
        }
    }

    /// Takes an update from a peer; false where it misses too much to be kept.
    fn write(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        update: Bytes,
        frame_len: usize,
        frame: Option<Bytes>,
        out: &mut Outputs,
    ) -> bool {
        // The log keeps what it is given; a slice would keep everything else that came in the frame.
        let update =
            if frame_len > update.len() + HEAD_LEN_MAX { Bytes::copy_from_slice(&update) } else { update };
        let (update, lone) = match Update::scan_lone(update, &self.scan_rules()) {
            Ok(scanned) => scanned,
            Err(error) => {
                self.close(now, connection, CloseReason::Update(error), out);
                return true;
            }
        };
        if lone.is_none() && update.is_empty() {
            return true;
        }
        let peer = self.peers.get_mut(&connection).expect("the caller has just looked it up");
        if peer.access == Access::ReadOnly {
            // Yjs answers SyncStep1 with all deletes that it knows, so a reader's answer is seldom empty.
            if self.journal.knows(&update) {
                return true;
            }
            out.event(Event::WriteRefused { room: self.name.clone(), connection });
            if !mem::replace(&mut peer.refusal_told, true) {
                self.send(now, connection, Due::Refusal, refusal(), out);
            }
            return true;
        }
        if self.overloads_store(&update) {
            self.close(now, connection, CloseReason::StoreOverloaded, out);
            return true;
        }
        let is_taken = self.change(now, Some(connection), &update, lone.as_ref(), frame, out);
        if let Some(peer) = self.peers.get_mut(&connection) {
            if !is_taken {
                peer.past = Past::Unknown;
            } else if self.journal.parked_bytes() > 0 {
                peer.past.has(&update, self.journal.state_vector());
            }
        }
        is_taken
    }

    /// Whether with this update more would wait for the store than may. Where nothing waits, one of any
    /// length is let in: it could never come otherwise.
    fn overloads_store(&self, update: &Update) -> bool {
        let unstored = self.unstored_bytes();
        unstored > 0 && unstored + update.bytes().len() > self.config.unstored_bytes_max
    }

    /// Takes what is new of an update into the journal and the batch; false where it misses too much to
    /// be kept.
    fn change(
        &mut self,
        now: Instant,
        author: Option<ConnectionId>,
        update: &Update,
        lone: Option<&Struct>,
        frame: Option<Bytes>,
        out: &mut Outputs,
    ) -> bool {
        let new = match self.journal.receive_lone(update, lone) {
            Received::Nothing => return true,
            Received::New(new) => new,
            Received::Overflow => return false,
        };
        let frame = frame.filter(|_| std::ptr::eq(&new.bytes()[..], &update.bytes()[..]));
        self.changes += 1;
        if let Some(peer) = author.and_then(|author| self.peers.get_mut(&author)) {
            peer.last_change = self.changes;
        }
        let state = self.journal.state_vector();
        let stands_alone = self.journal.parked_bytes() > 0
            && new.inserts().any(|(client, clocks)| clocks.end > state.clock(client));
        if stands_alone {
            self.flush(now, out);
        }
        self.batch_bytes += new.bytes().len();
        let change = Change { number: self.changes, author, update: new, frame, stands_alone };
        let is_full = stands_alone || self.batch_bytes >= self.config.flush_bytes;
        self.burst = match self.burst {
            (who, when, count) if (who, when) == (author, Some(now)) => (who, when, count + 1),
            _ => (author, Some(now), 1),
        };
        if is_full || self.flush.is_ready(now, self.config.flush_interval) {
            self.flush_with(now, Some(change), out);
            return true;
        }
        self.batch.push(change);
        if self.burst.2 >= BURST_COUNT {
            // Not before the rest of the burst has come.
            self.flush.due = Some(now);
        }
        true
    }

    /// Sends the batch to everybody but its authors, hands it to the store.
    fn flush(&mut self, now: Instant, out: &mut Outputs) {
        self.flush_with(now, None, out);
    }

    /// The same with one more change behind the batch: one that goes out at once never waits in it.
    fn flush_with(&mut self, now: Instant, last: Option<Change>, out: &mut Outputs) {
        self.flush.due = None;
        let mut batch: SmallVec<[Change; 1]> = mem::take(&mut self.batch).into();
        batch.extend(last);
        if batch.is_empty() {
            return;
        }
        self.flush.last = Some(now);
        self.batch_bytes = 0;
        let Change { number: first_change, stands_alone, .. } = batch[0];
        let last_change = first_change + batch.len() as u64 - 1;
        // Who is shown nothing of it before it is durable, or only the part that others made.
        let mut authors: SmallVec<[ConnectionId; 2]> =
            batch.iter().filter_map(|change| change.author).collect();
        if batch.len() > 1 {
            authors.sort_unstable();
            authors.dedup();
        }
        let writers = authors.len();
        let immediate = self.config.echo == Echo::Immediate;
        let durable = self.config.echo == Echo::Durable;
        let mut recipients = Recipients::with_capacity(self.peers.len());
        for (&connection, peer) in &mut self.peers {
            let may_have_made =
                |change: &Change| change.author != Some(connection) && peer.may_have_made(change);
            let mut is_author = authors[..writers].binary_search(&connection).is_ok();
            if durable && batch.iter().any(may_have_made) {
                peer.last_change = peer.last_change.max(last_change);
                if !is_author && peer.question.is_none() {
                    authors.push(connection);
                    is_author = true;
                }
            }
            // An answer that waits for the store will carry all.
            let waits = peer.question.is_some() && peer.congestion.is_none();
            if (immediate || !is_author) && !waits && peer.offer(now, Due::Update) {
                recipients.push(connection);
            }
        }
        authors.sort_unstable();
        let (frame, update) = if batch.len() == 1 {
            let Change { update, frame, .. } = batch.pop().expect("it has one");
            let frame = frame.unwrap_or_else(|| Carrier::Update.frame(update.bytes()));
            (frame, update)
        } else {
            let updates: Vec<_> = batch.iter().map(|change| change.update.clone()).collect();
            update::join_in(Carrier::Update, &updates)
        };
        if !recipients.is_empty() {
            out.send(recipients, frame.clone());
        }
        if !immediate && !batch.is_empty() {
            for &author in &authors {
                self.send_others(now, author, &batch, out);
            }
        }
        if self.config.echo != Echo::Durable {
            authors.clear();
        }
        let record = Record { last_change, update, frame, authors, stands_alone, is_rewrite: false };
        self.storage.push(record, &self.name, out);
    }

    /// Sends the author of a part of the batch the rest of it: its own edits wait for the store.
    fn send_others(&mut self, now: Instant, author: ConnectionId, batch: &[Change], out: &mut Outputs) {
        let Some(peer) = self.peers.get(&author).filter(|peer| peer.question.is_none()) else { return };
        let is_durable = self.config.echo == Echo::Durable;
        let is_others =
            |change: &&Change| change.author != Some(author) && !(is_durable && peer.may_have_made(change));
        let others: Vec<_> = batch.iter().filter(is_others).collect();
        let frame = match &others[..] {
            [] => return,
            [Change { frame: Some(frame), .. }] => frame.clone(),
            [Change { update, .. }] => Carrier::Update.frame(update.bytes()),
            _ => {
                let updates: Vec<_> = others.iter().map(|change| change.update.clone()).collect();
                update::join_in(Carrier::Update, &updates).0
            }
        };
        self.send(now, author, Due::Update, frame, out);
    }

    /// Takes presence; says which ids it named as present that are known to be gone.
    fn announce(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        entries: Vec<awareness::AwarenessEntry>,
        out: &mut Outputs,
    ) -> BTreeSet<ClientId> {
        let (announced, result) = self.awareness.apply(now, connection, entries);
        soonest(&mut self.timers.presence, Some(after(now, self.config.awareness_timeout)));
        self.presence_changed(now, announced.changed, out);
        if let Err(limit) = result {
            self.close(now, connection, CloseReason::AwarenessLimit(limit), out);
        }
        announced.outdated
    }

    fn presence_changed(&mut self, now: Instant, changed: BTreeSet<ClientId>, out: &mut Outputs) {
        if changed.is_empty() {
            return;
        }
        self.presence.extend(changed);
        if self.presence_flush.is_ready(now, self.config.awareness_interval) {
            self.flush_presence(now, out);
        }
    }

    /// Sends the presence that changed to everybody, those it is about included: the echo keeps
    /// `y-websocket` from closing an idle connection.
    fn flush_presence(&mut self, now: Instant, out: &mut Outputs) {
        self.presence_flush.due = None;
        let Some(update) = self.awareness.encode(&mem::take(&mut self.presence)) else { return };
        self.presence_flush.last = Some(now);
        self.broadcast(now, Due::Change, &Message::Awareness(update), out);
    }

    fn greet(&mut self, now: Instant, connection: ConnectionId, out: &mut Outputs) {
        self.ask(now, connection, out);
        if let Some(update) = self.awareness.encode_present() {
            self.send(now, connection, Due::Presence, Message::Awareness(update).encode(), out);
        }
    }

    fn ask(&mut self, now: Instant, connection: ConnectionId, out: &mut Outputs) {
        let state_vector = self.journal.state_vector().encode();
        self.send(now, connection, Due::SyncStep1, Message::SyncStep1(state_vector).encode(), out);
    }

    /// Answers with what the asker lacks, unless that might acknowledge its own edit before the store
    /// has it, or it is congested; then the question is remembered.
    fn answer_or_wait(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        question: Question,
        out: &mut Outputs,
    ) {
        let waits = question.after > self.storage.durable_change || self.owes_echo(connection);
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        if peer.congestion.is_some() {
            peer.question = Some(Box::new(question));
            return;
        }
        if waits {
            let is_step1 =
                question.is_step1 || peer.question.as_ref().is_some_and(|earlier| earlier.is_step1);
            peer.question = Some(Box::new(Question { is_step1, ..question }));
            self.askers.insert(connection);
            return;
        }
        let version = self.journal.version();
        let cached = self.answers.iter().find(|answer| {
            answer.version == version
                && answer.is_step1 == question.is_step1
                && answer.known == question.known
        });
        let frames = cached.map(|answer| answer.frames.clone());
        let frames = frames.unwrap_or_else(|| self.answer(question));
        for frame in frames {
            self.send(now, connection, Due::Update, frame, out);
        }
    }

    fn answer(&mut self, question: Question) -> SmallVec<[Bytes; 1]> {
        let carrier = if question.is_step1 { Carrier::SyncStep2 } else { Carrier::Update };
        let (main, conflicting) = self.journal.diff_in(carrier, &question.known);
        let mut frames: SmallVec<[Bytes; 1]> =
            conflicting.iter().map(|update| Carrier::Update.frame(update.bytes())).collect();
        frames.push(main);
        let version = self.journal.version();
        self.answers.retain(|answer| answer.version == version);
        let len = |answer: &Answer| answer.frames.iter().map(Bytes::len).sum::<usize>();
        if self.answers.len() == ANSWERS_MAX
            || self.answers.iter().map(len).sum::<usize>() > ANSWERS_BYTES_MAX
        {
            self.answers.clear();
        }
        let Question { known, is_step1, after: _ } = question;
        self.answers.push(Answer { version, known, is_step1, frames: frames.clone() });
        frames
    }

    /// The last change that is not durable and that somebody with this state vector may have made, under
    /// an earlier connection perhaps: an answer must not tell it that it is stored. 0 if there is none.
    fn last_change_known_to(&self, known: &StateVector) -> u64 {
        if self.config.echo != Echo::Durable {
            return 0;
        }
        let batch = self.batch.iter().map(|change| (change.number, &change.update));
        let records = self.storage.records().map(|record| (record.last_change, &record.update));
        batch
            .chain(records)
            .filter(|(_, update)| knows_part_of(known, update))
            .map(|(number, _)| number)
            .max()
            .unwrap_or(0)
    }

    /// Whether the store has yet to confirm an edit by `connection`, or one that it may have made.
    fn owes_echo(&self, connection: ConnectionId) -> bool {
        let Some(peer) = self.peers.get(&connection) else { return false };
        self.config.echo == Echo::Durable
            && (peer.last_change > self.storage.durable_change
                || self.batch.iter().any(|change| peer.may_have_made(change)))
    }

    /// The state vector of what a peer was sent, or knows because it wrote it and was told so.
    fn handed_out_to(&self, connection: ConnectionId) -> StateVector {
        let mut handed_out = self.journal.state_vector().clone();
        let unsent = self.batch.iter().map(|change| &change.update);
        for update in unsent.chain(self.storage.unechoed(connection)) {
            for (client, range) in update.inserts() {
                if handed_out.clock(client) > range.start {
                    handed_out.set(client, range.start);
                }
            }
        }
        handed_out
    }

    fn storage_advanced(&mut self, now: Instant, out: &mut Outputs) {
        self.storage.write(&self.name, out);
        if !self.askers.is_empty() {
            for connection in mem::take(&mut self.askers) {
                if let Some(peer) = self.peers.get_mut(&connection)
                    && peer.congestion.is_none()
                    && let Some(question) = peer.question.take()
                {
                    self.answer_or_wait(now, connection, *question, out);
                }
            }
        }
        self.after_change(now, out);
    }

    /// Writes everything once more after the store has lost what it had confirmed, and asks everybody.
    fn rewrite(&mut self, now: Instant, out: &mut Outputs) {
        out.event(Event::StoreLost { room: self.name.clone() });
        let diff = self.journal.diff(&StateVector::default());
        let (last_change, stands_alone) = (self.changes, self.journal.parked_bytes() > 0);
        let updates = [diff.main].into_iter().chain(diff.conflicting);
        let records = updates.filter(|update| !update.is_empty()).map(|update| {
            let frame = Carrier::Update.frame(update.bytes());
            Record { last_change, update, frame, authors: SmallVec::new(), stands_alone, is_rewrite: true }
        });
        self.storage.push_first(records.collect());
        self.storage.write(&self.name, out);
        let state_vector = self.journal.state_vector().encode();
        self.broadcast(now, Due::SyncStep1, &Message::SyncStep1(state_vector), out);
    }

    /// Squashes, drains and unloads where the last input has made that possible.
    fn after_change(&mut self, now: Instant, out: &mut Outputs) {
        if !self.is_live() {
            return;
        }
        if self.drain.is_some() {
            return self.drain_further(now, out);
        }
        let unload_due = is_due(self.timers.unload, now);
        if self.storage.is_quiet() && self.storage.may_compact(now) {
            let (count, bytes) = (self.journal.tail_count(), self.journal.tail_bytes());
            let snapshot = || self.journal.snapshot_bytes();
            let config = &self.config;
            let long = count >= config.squash_count.max(1) && count >= snapshot() / SQUASH_BYTES_PER_UPDATE
                || bytes >= config.squash_bytes && bytes >= snapshot();
            if long || (unload_due && count >= UNLOAD_SQUASH_COUNT) {
                let squash = self.journal.squash(SquashOptions { collect: config.collect });
                let seq = self.storage.compact();
                out.push(Output::Compact { room: self.name.clone(), seq, squash });
            }
        }
        if !self.peers.is_empty() {
            return;
        }
        if !self.storage.is_quiet() || !self.batch.is_empty() {
            // What is in flight comes by here when it ends, and starts the delay.
            self.timers.unload = None;
        } else if unload_due {
            self.phase = Phase::Closed;
            self.timers = Timers::default();
            out.event(Event::RoomClosed { room: self.name.clone(), unstored_bytes: 0 });
        } else if self.timers.unload.is_none() {
            self.timers.unload = Some(after(now, self.config.idle_delay));
        }
    }

    fn drain_further(&mut self, now: Instant, out: &mut Outputs) {
        let Some(&Drain { deadline, mut next_close, step }) = self.drain.as_deref() else { return };
        let is_late = now >= deadline;
        if is_late {
            self.flush(now, out);
        }
        for connection in self.peers.keys().copied().collect::<Vec<_>>() {
            let Some(peer) = self.peers.get_mut(&connection) else { continue };
            if !peer.leaving {
                if now < next_close && !is_late {
                    break;
                }
                peer.leaving = true;
                next_close += step;
            }
            if is_late || !self.owes_echo(connection) {
                self.remove_peer(now, connection, out);
                out.close(connection, CloseReason::Draining);
            }
        }
        if let Some(drain) = &mut self.drain {
            // Those that are left wait for their turn, or for the store, whose answer comes by here.
            drain.next_close = if next_close > now { next_close } else { deadline };
        }
        let unstored_bytes = self.unstored_bytes();
        if self.peers.is_empty() && (is_late || (self.storage.is_quiet() && self.batch.is_empty())) {
            self.phase = Phase::Closed;
            self.timers = Timers::default();
            self.drain = None;
            out.event(Event::RoomClosed { room: self.name.clone(), unstored_bytes });
        }
    }

    fn close_expired(&mut self, now: Instant, out: &mut Outputs) {
        let expired: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, peer)| is_due(peer.expires_at, now))
            .map(|(connection, _)| *connection)
            .collect();
        for connection in expired {
            self.close(now, connection, CloseReason::AccessExpired, out);
        }
        self.timers.expiry = self.peers.values().filter_map(|peer| peer.expires_at).min();
    }

    fn close_congested(&mut self, now: Instant, out: &mut Outputs) {
        let timeout = self.config.congestion_timeout;
        let since = |peer: &Peer| peer.congestion.as_ref().map(|congestion| after(congestion.since, timeout));
        let late: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, peer)| is_due(since(peer), now))
            .map(|(connection, _)| *connection)
            .collect();
        for connection in late {
            self.close(now, connection, CloseReason::Congested, out);
        }
        self.timers.congestion = self.peers.values().filter_map(since).min();
    }

    fn keep_alive(&mut self, now: Instant, out: &mut Outputs) {
        let keepalive = self.config.keepalive.max(KEEPALIVE_MIN);
        let mut silent = Recipients::default();
        for (&connection, peer) in &mut self.peers {
            if now.saturating_duration_since(peer.last_sent) >= keepalive && peer.offer(now, Due::Change) {
                silent.push(connection);
            }
        }
        if !silent.is_empty() {
            out.send(silent, Bytes::from_static(&EMPTY_AWARENESS));
        }
        // Those who join together ask within moments; a quiet room keeps no encoded answer.
        self.answers.clear();
        let flowing = self.peers.values().filter(|peer| peer.congestion.is_none());
        self.timers.keepalive = flowing.map(|peer| after(peer.last_sent, keepalive)).min();
    }

    fn close(&mut self, now: Instant, connection: ConnectionId, reason: CloseReason, out: &mut Outputs) {
        if self.remove_peer(now, connection, out) {
            out.close(connection, reason);
            self.after_change(now, out);
        }
    }

    fn close_all(&mut self, now: Instant, reason: CloseReason, out: &mut Outputs) {
        self.phase = Phase::Closed;
        for connection in self.peers.keys().copied().collect::<Vec<_>>() {
            self.remove_peer(now, connection, out);
            out.close(connection, reason.clone());
        }
        self.timers = Timers::default();
    }

    fn remove_peer(&mut self, now: Instant, connection: ConnectionId, out: &mut Outputs) -> bool {
        if self.peers.remove(&connection).is_none() {
            return false;
        }
        self.askers.remove(&connection);
        if let Phase::Loading { waiting, bytes } = &mut self.phase {
            waiting.retain(|waiting| waiting.from != Some(connection));
            *bytes = waiting.iter().map(|waiting| waiting.frame.len() + LOADING_FRAME_COST).sum();
        }
        out.event(Event::Left { room: self.name.clone(), connection });
        let gone = self.awareness.leave(now, connection);
        self.presence_changed(now, gone, out);
        true
    }

    fn send(&mut self, now: Instant, to: ConnectionId, due: Due, frame: Bytes, out: &mut Outputs) {
        if offer(&mut self.peers, to, now, due) {
            out.send(Recipients::from(to), frame);
        }
    }

    fn broadcast(&mut self, now: Instant, due: Due, message: &Message, out: &mut Outputs) {
        let mut everybody = Recipients::with_capacity(self.peers.len());
        for (&connection, peer) in &mut self.peers {
            if peer.offer(now, due) {
                everybody.push(connection);
            }
        }
        if !everybody.is_empty() {
            out.send(everybody, message.encode());
        }
    }

    fn catch_up_view(&mut self, now: Instant) -> Result<(), ViewError> {
        if !self.is_live() {
            return Err(ViewError::RoomNotOpen);
        }
        let mut view = match self.view.take() {
            Some(view) => view,
            None => View::new(now, self.random.client_id(self.journal.state_vector())),
        };
        view.catch_up(now, &self.journal)?;
        soonest(&mut self.timers.view, Some(after(now, self.config.view_delay)));
        self.view = Some(view);
        Ok(())
    }

    fn scan_rules(&self) -> ScanRules {
        ScanRules {
            depth_max: self.config.depth_max,
            weak_links: self.config.weak_links,
            ..ScanRules::default()
        }
    }
}

impl Peer {
    /// Whether a change that somebody else brings may have been made here, under an earlier connection.
    fn may_have_made(&self, change: &Change) -> bool {
        match &self.past {
            Past::Unknown => true,
            Past::Has(known) => knows_part_of(known, &change.update),
            Past::Told { last_change, beyond } => {
                change.number <= *last_change
                    || (!beyond.is_empty() && knows_part_of_inserts(beyond, &change.update))
            }
        }
    }

    /// Marks that a frame is sent now; a congested peer is marked as having missed it instead.
    fn offer(&mut self, now: Instant, due: Due) -> bool {
        match &mut self.congestion {
            Some(congestion) => {
                match due {
                    Due::Update => congestion.missed = true,
                    Due::SyncStep1 => congestion.unasked = true,
                    Due::Refusal => congestion.untold = true,
                    Due::Presence => congestion.presence_version = 0,
                    Due::Change => {}
                }
                false
            }
            None => {
                self.last_sent = now;
                true
            }
        }
    }
}

impl Pace {
    /// Whether it may go out now; if not, it is due at the end of the interval.
    fn is_ready(&mut self, now: Instant, interval: Duration) -> bool {
        let ready_at = self.last.map_or(now, |last| after(last, interval));
        if ready_at > now {
            soonest(&mut self.due, Some(ready_at));
        }
        ready_at <= now
    }
}

/// What the store has, and what is on its way there.
///
/// At most one write per room is outstanding; what is flushed meanwhile becomes the next one. The
/// store's queue is thus bounded, and its batches grow by themselves when it is slow.
///
/// ```text
///           write                    Stored
///  Quiet ----------> Appending ----------------> Quiet, or the next write
///    |  ^               |
///    |  |               '--- StoreFailed ---> Failed --- retry_at ---> Appending, same seq
///    |  '--- Compacted, StoreFailed ---.
///    '------ compact ---> Compacting --'
/// ```
#[derive(Debug, Default)]
struct Storage {
    /// Everything up to here is durable.
    durable: u64,
    /// The number of the last change that is durable.
    durable_change: u64,
    outstanding: Option<Outstanding>,
    /// Flushed records that wait for what is outstanding, or to be tried again.
    waiting: VecDeque<Record>,
    /// Bytes of updates outstanding and waiting.
    bytes: usize,
    retry_at: Option<Instant>,
    retry_delay: Option<Duration>,
    compact_after: Option<Instant>,
}

#[derive(Debug)]
enum Outstanding {
    Append(Box<Record>),
    Compact,
}

/// One append, or a part of one.
#[derive(Debug)]
struct Record {
    /// The number of the last change in it.
    last_change: u64,
    update: Update,
    /// What its authors get back.
    frame: Bytes,
    authors: SmallVec<[ConnectionId; 2]>,
    /// See [`Change::stands_alone`].
    stands_alone: bool,
    /// Whether it holds what the room had when the store had lost something.
    is_rewrite: bool,
}

impl Storage {
    /// Appends a record, or lets it wait where something is outstanding or failed a moment ago.
    fn push(&mut self, record: Record, room: &RoomName, out: &mut Outputs) {
        self.bytes += record.update.bytes().len();
        if self.is_quiet() && self.retry_at.is_none() {
            self.append(record, room, out);
        } else {
            self.waiting.push_back(record);
        }
    }

    /// Where what waits forges structs that are in these, they must not come behind it; nor behind what is
    /// outstanding, should that fail.
    fn push_first(&mut self, records: Vec<Record>) {
        self.bytes += records.iter().map(|record| record.update.bytes().len()).sum::<usize>();
        records.into_iter().rev().for_each(|record| self.waiting.push_front(record));
    }

    /// Appends what waits, unless something is outstanding or failed a moment ago.
    fn write(&mut self, room: &RoomName, out: &mut Outputs) {
        if self.outstanding.is_some() || self.retry_at.is_some() || self.waiting.is_empty() {
            return;
        }
        let alone = self.waiting.iter().position(|record| record.stands_alone);
        let joined = alone.map_or(self.waiting.len(), |alone| alone.max(1));
        let bytes = self.waiting.iter().take(joined).map(|record| record.update.bytes().len()).sum::<usize>();
        self.bytes -= bytes;
        let first = if joined == 1 { self.waiting.pop_front() } else { None };
        let record = first.unwrap_or_else(|| Record::join(self.waiting.drain(..joined).collect()));
        if self.waiting.is_empty() && self.waiting.capacity() > WAITING_KEPT {
            self.waiting = VecDeque::new();
        }
        self.bytes += record.update.bytes().len();
        self.append(record, room, out);
    }

    fn append(&mut self, record: Record, room: &RoomName, out: &mut Outputs) {
        let update = record.update.bytes().clone();
        self.outstanding = Some(Outstanding::Append(Box::new(record)));
        out.push(Output::Append { room: room.clone(), seq: self.durable + 1, update });
    }

    fn compact(&mut self) -> u64 {
        self.outstanding = Some(Outstanding::Compact);
        self.durable
    }

    fn stored(&mut self, seq: u64) -> Option<Box<Record>> {
        if seq != self.durable + 1 || !matches!(self.outstanding, Some(Outstanding::Append(_))) {
            return None;
        }
        let Some(Outstanding::Append(record)) = self.outstanding.take() else { return None };
        self.durable = seq;
        self.durable_change = self.durable_change.max(record.last_change);
        self.retry_delay = None;
        self.bytes -= record.update.bytes().len();
        Some(record)
    }

    fn compacted(&mut self, seq: u64) -> bool {
        let expected = seq == self.durable && self.is_compacting();
        if expected {
            self.outstanding = None;
            self.retry_delay = None;
        }
        expected
    }

    /// Schedules the write once more; says when.
    fn failed(&mut self, now: Instant, seq: u64, config: &Config, random: &mut Random) -> Option<Duration> {
        let expected = match &self.outstanding {
            Some(Outstanding::Append(_)) => seq == self.durable + 1,
            Some(Outstanding::Compact) => seq == self.durable,
            None => false,
        };
        if !expected {
            return None;
        }
        let delay =
            self.retry_delay.map_or(config.retry_delay_min, |last| (last * 2).min(config.retry_delay_max));
        self.retry_delay = Some(delay);
        let delay = delay.mul_f64(1.0 + random.fraction() / 4.0).min(config.retry_delay_max);
        match self.outstanding.take() {
            Some(Outstanding::Append(record)) => {
                let rewrites = self.waiting.iter().take_while(|waiting| waiting.is_rewrite).count();
                let at = if record.is_rewrite { 0 } else { rewrites };
                self.waiting.insert(at, *record);
                self.retry_at = Some(after(now, delay));
            }
            Some(Outstanding::Compact) => self.compact_after = Some(after(now, delay)),
            None => {}
        }
        Some(delay)
    }

    fn is_compacting(&self) -> bool {
        matches!(self.outstanding, Some(Outstanding::Compact))
    }

    /// Whether nothing is in flight or waits.
    fn is_quiet(&self) -> bool {
        self.outstanding.is_none() && self.waiting.is_empty()
    }

    fn may_compact(&self, now: Instant) -> bool {
        self.compact_after.is_none_or(|after| now >= after)
    }

    fn records(&self) -> impl Iterator<Item = &Record> {
        let outstanding = match &self.outstanding {
            Some(Outstanding::Append(record)) => Some(&**record),
            Some(Outstanding::Compact) | None => None,
        };
        outstanding.into_iter().chain(&self.waiting)
    }

    fn unechoed(&self, author: ConnectionId) -> impl Iterator<Item = &Update> {
        self.records().filter(move |record| record.authors.contains(&author)).map(|record| &record.update)
    }
}

impl Record {
    fn join(records: Vec<Self>) -> Self {
        let last_change = records.iter().map(|record| record.last_change).max().unwrap_or(0);
        let is_rewrite = records.iter().any(|record| record.is_rewrite);
        let updates: Vec<_> = records.iter().map(|record| record.update.clone()).collect();
        let mut authors: SmallVec<[ConnectionId; 2]> =
            records.into_iter().flat_map(|record| record.authors).collect();
        authors.sort_unstable();
        authors.dedup();
        let (frame, update) = update::join_in(Carrier::Update, &updates);
        Self { last_change, update, frame, authors, stands_alone: false, is_rewrite }
    }
}

fn offer(peers: &mut BTreeMap<ConnectionId, Peer>, connection: ConnectionId, now: Instant, due: Due) -> bool {
    peers.get_mut(&connection).is_some_and(|peer| peer.offer(now, due))
}

fn refusal() -> Bytes {
    Message::PermissionDenied(READ_ONLY.to_owned()).encode()
}

impl Past {
    /// The peer has made or passed on what the room, which is at `state` now, has beyond a gap.
    fn has(&mut self, update: &Update, state: &StateVector) {
        if let Self::Has(known) | Self::Told { beyond: known, .. } = self {
            for (client, clocks) in update.inserts() {
                if clocks.end > state.clock(client).max(known.clock(client)) {
                    known.set(client, clocks.end);
                }
            }
        }
    }

    /// The peer has answered: the room is at `state` now, and all that the peer had is in it.
    fn told(&mut self, last_change: u64, state: &StateVector) {
        let mut beyond = StateVector::default();
        if let Self::Has(known) | Self::Told { beyond: known, .. } = self {
            for (client, clock) in known.iter().filter(|(client, clock)| *clock > state.clock(*client)) {
                beyond.set(client, clock);
            }
        }
        *self = Self::Told { last_change, beyond };
    }
}

/// Whether somebody with this state vector may have something of an update: a state vector says nothing
/// of deletes.
fn knows_part_of(known: &StateVector, update: &Update) -> bool {
    let has_deletes = update.deletes().next().is_some();
    (has_deletes && !known.is_empty()) || knows_part_of_inserts(known, update)
}

fn knows_part_of_inserts(known: &StateVector, update: &Update) -> bool {
    update.inserts().any(|(client, clocks)| known.clock(client) > clocks.start)
}

fn var_uint_len(value: usize) -> usize {
    (usize::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

/// The message types and the length in front of an update, with room to spare.
const HEAD_LEN_MAX: usize = 16;

/// So many changes of one author at one instant are no typing: a program writes, or a lot arrives at once,
/// and holding them back would only slow it down. They go out as one.
const BURST_COUNT: usize = 4;

/// With a shorter one the timer would do nothing else.
const KEEPALIVE_MIN: Duration = Duration::from_millis(1);

/// `00 02`.
const UPDATE_HEAD_LEN: usize = 2;

/// An awareness update about nobody: no client does anything on it but wait another 30 s.
const EMPTY_AWARENESS: [u8; 3] = [1, 1, 0];

const READ_ONLY: &str = "this connection is read-only: your changes are not kept";

/// What a waiting frame costs besides its bytes.
const LOADING_FRAME_COST: usize = 64;

/// Encoded answers that are kept for others who ask the same.
const ANSWERS_MAX: usize = 4;

/// Where kept answers are longer than this together, the next one takes their place: the longest that is
/// kept beyond it is one answer, which is at most the document.
const ANSWERS_BYTES_MAX: usize = 1 << 20;

/// Records that a room keeps room for once some have waited: where the store is slow, some will again.
const WAITING_KEPT: usize = 4;

/// A snapshot of so many bytes is worth one more update in the tail before it is squashed again.
const SQUASH_BYTES_PER_UPDATE: usize = 128;

/// Updates that are worth a squash when the room is unloaded.
const UNLOAD_SQUASH_COUNT: usize = 16;
