//! Many rooms by name: inputs in, outputs out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use yrs::TransactionMut;

use crate::{
    Access, CloseReason, Config, ConnectionId, Event, Join, Output, Outputs, RoomName, journal::Squashed,
    random::Random, room::Room, view::ViewError,
};

/// What happened in the world: the one way to tell a [`Server`].
///
/// Inputs about connections and rooms that are unknown, or closed already, are ignored.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Input {
    /// A connection wants to take part in a room. Its id must not be in use.
    Connected(Join),
    /// A connection sent a frame: the payload of one binary WebSocket message.
    Received {
        /// Who sent it.
        connection: ConnectionId,
        /// The payload.
        frame: Bytes,
    },
    /// A connection's outbox is full: nothing more is emitted for it until it is writable. Said again
    /// before that, it means that some of the outbox has left since, which extends
    /// [`Config::congestion_timeout`].
    Congested {
        /// Whose outbox it is.
        connection: ConnectionId,
    },
    /// A congested connection's outbox has drained.
    Writable {
        /// Whose outbox it is.
        connection: ConnectionId,
    },
    /// A connection has ended, whoever ended it. Not needed after [`Output::Close`].
    Disconnected {
        /// Which one.
        connection: ConnectionId,
    },
    /// What a connection may do has changed.
    AccessChanged {
        /// Which one.
        connection: ConnectionId,
        /// What it may do from now on.
        access: Access,
        /// Until when.
        expires_at: Option<Instant>,
    },
    /// Answers [`Output::Load`]: everything that is stored of a room, oldest first; nothing for a room
    /// that was never written.
    Loaded {
        /// Which room.
        room: RoomName,
        /// Its records.
        updates: Vec<Bytes>,
    },
    /// Answers [`Output::Load`] where the store cannot.
    LoadFailed {
        /// Which room.
        room: RoomName,
    },
    /// Answers [`Output::Append`]: everything up to `seq` is durable.
    Stored {
        /// Which room.
        room: RoomName,
        /// The number of the append.
        seq: u64,
    },
    /// Answers [`Output::Compact`]: the squashed state is durable and what it covers is replaced.
    Compacted {
        /// Which room.
        room: RoomName,
        /// The number given in the output.
        seq: u64,
        /// The result of running the squash.
        squashed: Squashed,
    },
    /// Answers [`Output::Append`] or [`Output::Compact`] where the store cannot; nothing of the write
    /// may have been performed. With the `seq` of an append that was reported as stored before, it
    /// says that the store has lost it.
    StoreFailed {
        /// Which room.
        room: RoomName,
        /// The number given in the output.
        seq: u64,
    },
    /// The process is to end: joins are refused, everything is flushed, peers are closed one after
    /// another. [`Event::Drained`] follows, at the latest at the deadline.
    Drain {
        /// When it must be over.
        deadline: Instant,
    },
    /// [`Server::next_timeout`] has come. Early or twice is harmless.
    Timeout,
}

/// Says why a connection is not let in: see [`Server::admits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The server is draining.
    #[error("the server is shutting down")]
    Draining,
    /// There are [`Config::rooms_max`] rooms.
    #[error("too many rooms are open")]
    RoomsFull,
    /// There are [`Config::peers_per_room_max`] connections in the room.
    #[error("the room is full")]
    RoomFull,
}

/// Rooms by name, and who is connected to them.
///
/// See the [crate docs](crate) for the loop that drives it. A server has one owner; to use several
/// cores, give each core a server and each room to one of them.
#[derive(Debug)]
pub struct Server {
    config: Arc<Config>,
    random: Random,
    /// The latest time seen: time does not go backwards here.
    now: Option<Instant>,
    rooms: Rooms,
    connections: BTreeMap<ConnectionId, RoomNumber>,
    /// Those of one instant by name.
    timeouts: BTreeSet<(Instant, RoomName, RoomNumber)>,
    drain: Option<Drain>,
}

/// Rooms by name, and by the number that each has as long as it is there. To find a name among thousands looks at a
/// dozen other names, each in cold memory of its own; a message finds its room by the number.
#[derive(Debug, Default)]
struct Rooms {
    numbers: BTreeMap<RoomName, RoomNumber>,
    entries: Vec<Option<Box<Entry>>>,
    free: Vec<RoomNumber>,
    /// The room that was last used: what the store answers at once is about it.
    latest: RoomNumber,
}

type RoomNumber = usize;

/// A room, and its place in the timeouts: beside those lines of the room that a message comes by.
#[derive(Debug)]
#[repr(C)]
struct Entry {
    /// When the room is listed in `timeouts`.
    timeout: Option<Instant>,
    room: Room,
}

impl Rooms {
    fn number(&self, name: &RoomName) -> Option<RoomNumber> {
        match self.entry(self.latest) {
            Some(latest) if latest.room.name() == name => Some(self.latest),
            _ => self.numbers.get(name).copied(),
        }
    }

    fn entry(&self, number: RoomNumber) -> Option<&Entry> {
        self.entries.get(number)?.as_deref()
    }

    fn entry_mut(&mut self, number: RoomNumber) -> Option<&mut Entry> {
        self.latest = number;
        self.entries.get_mut(number)?.as_deref_mut()
    }

    fn by_name(&self, name: &RoomName) -> Option<&Entry> {
        self.entry(self.number(name)?)
    }

    fn insert(&mut self, room: Room) -> RoomNumber {
        let number = self.free.pop().unwrap_or(self.entries.len());
        if number == self.entries.len() {
            self.entries.push(None);
        }
        self.numbers.insert(room.name().clone(), number);
        self.entries[number] = Some(Box::new(Entry { timeout: None, room }));
        number
    }

    fn remove(&mut self, number: RoomNumber) {
        if let Some(entry) = self.entries.get_mut(number).and_then(Option::take) {
            self.numbers.remove(entry.room.name());
            self.free.push(number);
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Drain {
    deadline: Instant,
    reported: bool,
}

impl Server {
    /// Makes a server without rooms. `seed` makes client ids and jitter: take it from the system in
    /// production, fix it in tests.
    pub fn new(config: Config, seed: u64) -> Self {
        Self {
            config: Arc::new(config),
            random: Random::new(seed),
            now: None,
            rooms: Rooms::default(),
            connections: BTreeMap::new(),
            timeouts: BTreeSet::new(),
            drain: None,
        }
    }

    /// Takes an input, answers with what is to be done, in this order.
    ///
    /// A `now` that lies before an earlier one is taken as that one.
    pub fn handle(&mut self, now: Instant, input: Input) -> Outputs {
        let now = self.advance(now);
        let mut out = Outputs::default();
        match input {
            Input::Connected(join) => self.connect(now, join, &mut out),
            Input::Received { connection, frame } => {
                self.with_peer(connection, &mut out, |room, out| room.receive(now, connection, frame, out));
            }
            Input::Congested { connection } => {
                self.with_peer(connection, &mut out, |room, _| room.congested(now, connection));
            }
            Input::Writable { connection } => {
                self.with_peer(connection, &mut out, |room, out| room.writable(now, connection, out));
            }
            Input::Disconnected { connection } => {
                self.with_peer(connection, &mut out, |room, out| room.disconnected(now, connection, out));
            }
            Input::AccessChanged { connection, access, expires_at } => {
                self.with_peer(connection, &mut out, |room, _| {
                    room.set_access(connection, access, expires_at);
                });
            }
            Input::Loaded { room, updates } => {
                self.with_named(&room, &mut out, |room, out| room.loaded(now, updates, out));
            }
            Input::LoadFailed { room } => {
                self.with_named(&room, &mut out, |room, out| room.load_failed(now, out));
            }
            Input::Stored { room, seq } => {
                self.with_named(&room, &mut out, |room, out| room.stored(now, seq, out));
            }
            Input::Compacted { room, seq, squashed } => {
                self.with_named(&room, &mut out, |room, out| room.compacted(now, seq, squashed, out));
            }
            Input::StoreFailed { room, seq } => {
                self.with_named(&room, &mut out, |room, out| room.store_failed(now, seq, out));
            }
            Input::Drain { deadline } => self.start_drain(now, deadline, &mut out),
            Input::Timeout => self.timeout(now, &mut out),
        }
        if self.drain.is_some_and(|drain| !drain.reported && now >= drain.deadline) {
            // Whatever came first, and however late the timer: all rooms end before it is reported.
            self.timeout(now, &mut out);
        }
        if let Some(drain) = &mut self.drain
            && !drain.reported
            && (self.rooms.numbers.is_empty() || now >= drain.deadline)
        {
            drain.reported = true;
            out.event(Event::Drained);
        }
        out
    }

    /// Changes a document from the server's side; broadcast and stored like any other change.
    ///
    /// The room must be open: somebody is connected to it, or was a moment ago. The first edit after a
    /// while builds a document from the journal, which is kept while it is used.
    ///
    /// # Errors
    ///
    /// After an error the document is as it was, whatever `f` did to it; [`ViewError`] says why.
    pub fn edit<R>(
        &mut self,
        now: Instant,
        room: &RoomName,
        f: impl FnOnce(&mut TransactionMut<'_>) -> R,
    ) -> Result<(R, Outputs), ViewError> {
        let now = self.advance(now);
        let mut out = Outputs::default();
        let result = self
            .with_named(room, &mut out, |room, out| room.edit(now, f, out))
            .unwrap_or(Err(ViewError::RoomNotOpen))?;
        Ok((result, out))
    }

    /// Reads a document. The room must be open.
    pub fn read<R>(
        &mut self,
        now: Instant,
        room: &RoomName,
        f: impl FnOnce(&yrs::Transaction<'_>) -> R,
    ) -> Result<R, ViewError> {
        let now = self.advance(now);
        let mut out = Outputs::default();
        self.with_named(room, &mut out, |room, _| room.read(now, f)).unwrap_or(Err(ViewError::RoomNotOpen))
    }

    /// Whether a connection would be let into a room now. Ask before the WebSocket upgrade: a refusal
    /// is best answered there, with status 503, because old clients that are let in and then closed
    /// come back ten times a second.
    pub fn admits(&self, room: &RoomName) -> Result<(), Refusal> {
        if self.drain.is_some() {
            return Err(Refusal::Draining);
        }
        match self.rooms.by_name(room) {
            Some(entry) if entry.room.connections().len() >= self.config.peers_per_room_max => {
                Err(Refusal::RoomFull)
            }
            None if self.rooms.numbers.len() >= self.config.rooms_max => Err(Refusal::RoomsFull),
            Some(_) | None => Ok(()),
        }
    }

    /// When [`Input::Timeout`] is due next. It changes with every input.
    pub fn next_timeout(&self) -> Option<Instant> {
        let drain = self.drain.filter(|drain| !drain.reported).map(|drain| drain.deadline);
        let room = self.timeouts.first().map(|(timeout, ..)| *timeout);
        room.into_iter().chain(drain).min()
    }

    /// A room that is open or being loaded.
    pub fn room(&self, name: &RoomName) -> Option<&Room> {
        Some(&self.rooms.by_name(name)?.room)
    }

    /// All rooms that are open or being loaded, by name.
    pub fn rooms(&self) -> impl ExactSizeIterator<Item = &Room> + '_ {
        self.rooms.numbers.values().map(|number| &self.rooms.entry(*number).expect("it is there").room)
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    fn advance(&mut self, now: Instant) -> Instant {
        let now = self.now.map_or(now, |latest| latest.max(now));
        self.now = Some(now);
        now
    }

    fn connect(&mut self, now: Instant, join: Join, out: &mut Outputs) {
        let (connection, name) = (join.connection, join.room.clone());
        if self.connections.contains_key(&connection) {
            return;
        }
        if let Err(refusal) = self.admits(&name) {
            return out.close(
                connection,
                match refusal {
                    Refusal::Draining => CloseReason::Draining,
                    Refusal::RoomsFull => CloseReason::RoomsFull,
                    Refusal::RoomFull => CloseReason::RoomFull,
                },
            );
        }
        let number = self.rooms.number(&name).unwrap_or_else(|| {
            out.push(Output::Load { room: name.clone() });
            self.rooms.insert(Room::new(Arc::clone(&self.config), name, self.random.next()))
        });
        self.connections.insert(connection, number);
        self.with_room(number, out, |room, out| room.join(now, join, out));
    }

    fn start_drain(&mut self, now: Instant, deadline: Instant, out: &mut Outputs) {
        if self.drain.is_some() {
            return;
        }
        self.drain = Some(Drain { deadline, reported: false });
        // Clients come back without jitter, so they are sent away one after another.
        let connections = u32::try_from(self.connections.len()).unwrap_or(u32::MAX).max(1);
        let span = (deadline.saturating_duration_since(now) / 2).min(DRAIN_STEP * connections);
        let step = span / connections;
        let mut first_close = now;
        for number in self.rooms.numbers.values().copied().collect::<Vec<_>>() {
            let peers = self.rooms.entry(number).map_or(0, |entry| entry.room.connections().len());
            self.with_room(number, out, |room, out| room.drain(now, first_close, step, deadline, out));
            first_close += step * u32::try_from(peers).unwrap_or(u32::MAX);
        }
    }

    fn timeout(&mut self, now: Instant, out: &mut Outputs) {
        while let Some(&(timeout, _, number)) = self.timeouts.first()
            && timeout <= now
        {
            self.with_room(number, out, |room, out| room.timeout(now, out));
            // A room that asks for a time that has passed would be asked for ever.
            if let Some(entry) = self.rooms.entry(number)
                && entry.timeout.is_some_and(|next| next <= now)
            {
                debug_assert!(false, "room {} has not done what was due", entry.room.name());
                break;
            }
        }
    }

    fn with_peer(
        &mut self,
        connection: ConnectionId,
        out: &mut Outputs,
        f: impl FnOnce(&mut Room, &mut Outputs),
    ) {
        if let Some(&number) = self.connections.get(&connection) {
            self.with_room(number, out, f);
        }
    }

    /// Lets a room do something, and keeps the books on it.
    fn with_room<R>(
        &mut self,
        number: RoomNumber,
        out: &mut Outputs,
        f: impl FnOnce(&mut Room, &mut Outputs) -> R,
    ) -> Option<R> {
        let entry = self.rooms.entry_mut(number)?;
        let before = out.len();
        let result = f(&mut entry.room, out);
        for output in &out[before..] {
            match output {
                Output::Event(Event::Left { connection, .. }) | Output::Close { connection, .. } => {
                    self.connections.remove(connection);
                }
                _ => {}
            }
        }
        let is_closed = entry.room.is_closed();
        let next = if is_closed { None } else { entry.room.next_timeout() };
        if next != entry.timeout {
            let name = entry.room.name();
            if let Some(timeout) = entry.timeout {
                self.timeouts.remove(&(timeout, name.clone(), number));
            }
            if let Some(next) = next {
                self.timeouts.insert((next, name.clone(), number));
            }
            entry.timeout = next;
        }
        if is_closed {
            self.rooms.remove(number);
        }
        Some(result)
    }

    /// The same for a room that is known by its name.
    fn with_named<R>(
        &mut self,
        name: &RoomName,
        out: &mut Outputs,
        f: impl FnOnce(&mut Room, &mut Outputs) -> R,
    ) -> Option<R> {
        let number = self.rooms.number(name)?;
        self.with_room(number, out, f)
    }
}

/// Time between two closes while draining, if the deadline allows.
const DRAIN_STEP: Duration = Duration::from_millis(10);
