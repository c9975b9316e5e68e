//! The disk: a real [`Store`] behind latency, errors and outages, and a book of what it has promised.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    ops::Range,
    time::Duration,
};

use bytes::Bytes;
use yrs_websocket::{
    RoomName,
    journal::Squashed,
    update::{ClientId, IdSet, ScanRules, Update},
};
use yrs_websocket_host::Completion;
use yrs_websocket_store::{Request, Store, StoreError, Write};

use crate::{Violation, checks, random::Random};

/// What some updates say, without the content: which clocks they insert and delete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Content {
    /// Clocks of structs.
    pub(crate) inserts: IdSet,
    /// Clocks that are deleted.
    pub(crate) deletes: IdSet,
}

impl Content {
    /// Adds what an update says.
    pub(crate) fn add(&mut self, update: &Update) {
        for (client, clocks) in update.inserts() {
            self.inserts.insert(client, clocks);
        }
        for (client, clocks) in update.deletes() {
            self.deletes.insert(client, clocks);
        }
    }

    /// Adds encoded updates; those malformed are an error.
    ///
    /// # Errors
    ///
    /// If the scan refuses one of them.
    pub(crate) fn of(
        updates: impl IntoIterator<Item = Bytes>,
    ) -> Result<Self, yrs_websocket::update::UpdateError> {
        let mut content = Self::default();
        for update in updates {
            content.add(&scan(update)?);
        }
        Ok(content)
    }

    /// Adds all of `other`.
    pub(crate) fn union(&mut self, other: &Self) {
        self.inserts.union(&other.inserts);
        self.deletes.union(&other.deletes);
    }

    /// What `other` has and this has not.
    pub(crate) fn missing_of(&self, other: &Self) -> Self {
        Self {
            inserts: missing(&self.inserts, &other.inserts),
            deletes: missing(&self.deletes, &other.deletes),
        }
    }

    /// What an update says that is in here.
    pub(crate) fn common_with(&self, update: &Update) -> Self {
        let mut common = Self::default();
        for (client, clocks) in update.inserts() {
            insert_common(&mut common.inserts, &self.inserts, client, clocks);
        }
        for (client, clocks) in update.deletes() {
            insert_common(&mut common.deletes, &self.deletes, client, clocks);
        }
        common
    }

    /// Whether it says nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.inserts.is_empty() && self.deletes.is_empty()
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, set) in [("+", &self.inserts), ("-", &self.deletes)] {
            for (client, clocks) in set.iter() {
                write!(f, "{name}{}:{}..{} ", client.get(), clocks.start, clocks.end)?;
            }
        }
        Ok(())
    }
}

/// What `want` has and `have` has not.
pub(crate) fn missing(have: &IdSet, want: &IdSet) -> IdSet {
    let mut missing = IdSet::default();
    for (client, clocks) in want.iter() {
        for gap in have.gaps(client, clocks) {
            missing.insert(client, gap);
        }
    }
    missing
}

fn insert_common(common: &mut IdSet, have: &IdSet, client: ClientId, clocks: Range<u64>) {
    let mut from = clocks.start;
    for gap in have.gaps(client, clocks.clone()) {
        common.insert(client, from..gap.start);
        from = gap.end;
    }
    common.insert(client, from..clocks.end);
}

/// Scans with the rules of the server.
pub(crate) fn scan(update: Bytes) -> Result<Update, yrs_websocket::update::UpdateError> {
    Update::scan(update, &ScanRules::default())
}

/// How the disk behaves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mood {
    pub(crate) latency_max: Duration,
    /// Per mille of writes that fail without a trace.
    pub(crate) write_errors: u32,
    /// Per mille of writes that are performed and reported as failed.
    pub(crate) false_errors: u32,
    pub(crate) load_errors: u32,
    pub(crate) outage_until: Duration,
}

pub(crate) struct Disk {
    store: Box<dyn Store>,
    pub(crate) mood: Mood,
    pub(crate) rooms: BTreeMap<RoomName, Book>,
    pending: VecDeque<Pending>,
    next: u64,
    random: Random,
}

/// What is known about a room's file, and where its writer is.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// What was committed.
    pub(crate) content: Content,
    /// The writer has loaded, and has not unloaded since.
    pub(crate) is_open: bool,
    /// A load, or a write, that was not answered.
    pub(crate) outstanding: bool,
    /// The last append that was confirmed.
    pub(crate) durable: u64,
    /// What the writer knows to be durable.
    pub(crate) confirmed: Content,
    last_done: Duration,
}

struct Pending {
    id: u64,
    room: RoomName,
    request: Option<Request<Squashed>>,
    completion: Option<Completion>,
    /// What an append added.
    appended: Content,
}

/// When to come back to a request: to perform it, and to answer it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    pub(crate) id: u64,
    pub(crate) performed: Duration,
    pub(crate) answered: Duration,
}

impl Disk {
    pub(crate) fn new(store: Box<dyn Store>, random: Random) -> Self {
        Self {
            store,
            mood: Mood::default(),
            rooms: BTreeMap::new(),
            pending: VecDeque::new(),
            next: 0,
            random,
        }
    }

    /// Takes a request of the host, which must be one that it may make now.
    pub(crate) fn submit(
        &mut self,
        now: Duration,
        request: Request<Squashed>,
    ) -> Result<Schedule, Violation> {
        let room = match &request {
            Request::Load(room) | Request::Unload(room) => room,
            Request::Append { room, .. } | Request::Compact { room, .. } => room,
        };
        let book = self.rooms.entry(room.clone()).or_default();
        checks::store_vocabulary(book, &request)?;
        match request {
            Request::Load(_) => {
                book.outstanding = true;
                book.is_open = true;
                book.durable = 0;
                book.confirmed = Content::default();
            }
            Request::Append { .. } | Request::Compact { .. } => book.outstanding = true,
            Request::Unload(_) => book.is_open = false,
        }
        let max = self.mood.latency_max.as_micros() as u64;
        let latency = Duration::from_micros(20 + max * self.random.below(1000).pow(2) / 1_000_000);
        let performed = (now + latency).max(book.last_done);
        let answered = performed + Duration::from_micros(self.random.below(max / 2 + 1));
        book.last_done = answered;
        self.next += 1;
        let room = room.clone();
        self.pending.push_back(Pending {
            id: self.next,
            room,
            request: Some(request),
            completion: None,
            appended: Content::default(),
        });
        Ok(Schedule { id: self.next, performed, answered })
    }

    /// Performs a request, for good.
    pub(crate) fn perform(&mut self, now: Duration, id: u64) -> Result<Option<String>, Violation> {
        let Some(index) = self.pending.iter().position(|pending| pending.id == id) else { return Ok(None) };
        let Some(request) = self.pending[index].request.take() else { return Ok(None) };
        let room = self.pending[index].room.clone();
        let outage = now < self.mood.outage_until;
        let error = || StoreError::Io { message: "simulated".into() };
        let book = self.rooms.entry(room.clone()).or_default();
        let completion = match request {
            Request::Unload(room) => {
                self.store.unload(&room);
                None
            }
            Request::Load(room) if outage || self.random.permille(self.mood.load_errors) => {
                Some(Completion::LoadFailed { room, error: error() })
            }
            Request::Load(room) => {
                let updates = self.store.load(&room);
                checks::store_keeps_everything(&room, &book.content, &updates)?;
                Some(match updates {
                    Ok(updates) => {
                        book.confirmed = book.content.clone();
                        Completion::Loaded { room, updates }
                    }
                    Err(error) => Completion::LoadFailed { room, error },
                })
            }
            Request::Append { room, seq, .. } | Request::Compact { room, seq, .. }
                if outage || self.random.permille(self.mood.write_errors) =>
            {
                Some(Completion::Failed { room, seq, error: error() })
            }
            Request::Append { room, seq, update } => {
                let write = Write::Append { room: room.clone(), seq, update: update.clone() };
                match self.store.commit(&[write]) {
                    Ok(()) => {
                        let update =
                            scan(update).map_err(|error| Violation::new("stored updates scan", error))?;
                        book.content.add(&update);
                        self.pending[index].appended.add(&update);
                        if self.random.permille(self.mood.false_errors) {
                            Some(Completion::Failed { room, seq, error: error() })
                        } else {
                            Some(Completion::Stored { room, seq })
                        }
                    }
                    Err(error) => Some(Completion::Failed { room, seq, error }),
                }
            }
            Request::Compact { room, seq, job } => {
                let (state, done) = job.run();
                let content = Content::of(state.iter().cloned())
                    .map_err(|error| Violation::new("stored updates scan", error))?;
                match self.store.commit(&[Write::Compact { room: room.clone(), seq, state }]) {
                    Ok(()) => {
                        checks::squash_loses_nothing(&room, &book.content, &content)?;
                        book.content.union(&content);
                        if self.random.permille(self.mood.false_errors) {
                            Some(Completion::Failed { room, seq, error: error() })
                        } else {
                            Some(Completion::Compacted { room, seq, done })
                        }
                    }
                    Err(error) => Some(Completion::Failed { room, seq, error }),
                }
            }
        };
        let text = completion.as_ref().map(|completion| match completion {
            Completion::Loaded { room, updates } => format!("{room}: loads {} records", updates.len()),
            Completion::LoadFailed { room, .. } => format!("{room}: fails to load"),
            Completion::Stored { room, seq } => format!("{room}: commits append {seq}"),
            Completion::Compacted { room, seq, .. } => format!("{room}: commits compaction {seq}"),
            Completion::Failed { room, seq, .. } => format!("{room}: fails write {seq}"),
        });
        self.pending[index].completion = completion;
        Ok(text)
    }

    /// Answers a request.
    pub(crate) fn answer(&mut self, id: u64) -> Option<Completion> {
        let index = self.pending.iter().position(|pending| pending.id == id)?;
        let Pending { completion, appended, .. } = self.pending.remove(index)?;
        let completion = completion?;
        let room = match &completion {
            Completion::Loaded { room, .. } | Completion::LoadFailed { room, .. } => room,
            Completion::Stored { room, .. } => room,
            Completion::Compacted { room, .. } | Completion::Failed { room, .. } => room,
        };
        let book = self.rooms.entry(room.clone()).or_default();
        book.outstanding = false;
        match &completion {
            Completion::Stored { seq, .. } => {
                book.durable = *seq;
                book.confirmed.union(&appended);
            }
            Completion::LoadFailed { .. } => book.is_open = false,
            Completion::Loaded { .. } | Completion::Compacted { .. } | Completion::Failed { .. } => {}
        }
        Some(completion)
    }

    /// The writer is gone: what was not performed never is.
    pub(crate) fn crash(&mut self) {
        self.pending.clear();
        for book in self.rooms.values_mut() {
            book.is_open = false;
            book.outstanding = false;
            book.last_done = Duration::ZERO;
        }
    }

    /// Reads a room while nobody writes to it.
    pub(crate) fn read(&mut self, room: &RoomName) -> Result<Vec<Bytes>, Violation> {
        let updates = self.store.load(room);
        let book = self.rooms.entry(room.clone()).or_default();
        checks::store_keeps_everything(room, &book.content, &updates)?;
        updates.map_err(|error| Violation::new("the store reads", error))
    }
}
