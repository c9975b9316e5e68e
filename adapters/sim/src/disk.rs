//! The disk: the real group commit over a [`Store`] with latency, errors and outages, and a book of what
//! was promised.

use std::{
    collections::BTreeMap,
    fmt, mem,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use yrs_websocket::{
    RoomName,
    journal::Squashed,
    update::{ClientId, IdSet, ScanRules, Update},
};
use yrs_websocket_host::Completion;
use yrs_websocket_store::{GroupCommit, Request, Store, StoreError, Write};

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
        for (client, clocks) in update.deletes().chain(update.gone()) {
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
        for (client, clocks) in update.deletes().chain(update.gone()) {
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
    /// Per mille of commits that fail without a trace.
    pub(crate) write_errors: u32,
    /// Per mille of commits that are performed and reported as failed.
    pub(crate) false_errors: u32,
    pub(crate) load_errors: u32,
    pub(crate) outage_until: Duration,
}

pub(crate) struct Disk {
    pub(crate) mood: Mood,
    pub(crate) rooms: BTreeMap<RoomName, Book>,
    store: Arc<Mutex<Faulty>>,
    /// One for all rooms, as the store thread is; or one for each, as other stores may be.
    writers: Vec<Writer>,
    grouped: bool,
    /// Nothing is done for now.
    is_held: bool,
    names: Vec<RoomName>,
    /// What was finished together and is not answered yet.
    answers: BTreeMap<u64, Vec<Completion>>,
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
    /// Something has waited in the room since it was loaded for what was missing. Of what waits there may be two
    /// versions, cut differently, and both are new when they come: the second holds no clock that the first
    /// has not.
    pub(crate) parked: bool,
    /// The last append that was confirmed.
    pub(crate) durable: u64,
    /// What the writer knows to be durable.
    pub(crate) confirmed: Content,
    /// What the outstanding append holds.
    asked: Content,
}

/// Somebody who works for the disk, one thing after another.
struct Writer {
    work: GroupCommit<Shared, (), Squashed>,
    /// Names the round that is to come.
    round: Option<u64>,
    busy_until: Duration,
}

/// When to come back: to do a round of work, or to answer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Due {
    Round(u64),
    Answer(u64),
}

impl Disk {
    pub(crate) fn new(store: Box<dyn Store>, names: Vec<RoomName>, mut random: Random) -> Self {
        let faulty = Faulty {
            store,
            mood: Mood::default(),
            is_out: false,
            done: Vec::new(),
            random: Random::fork(random.next(), 0),
        };
        Self {
            mood: Mood::default(),
            rooms: BTreeMap::new(),
            store: Arc::new(Mutex::new(faulty)),
            writers: Vec::new(),
            grouped: random.permille(700),
            is_held: false,
            names,
            answers: BTreeMap::new(),
            next: 0,
            random,
        }
    }

    /// Takes a request of the host, which must be one that it may make now.
    pub(crate) fn submit(
        &mut self,
        now: Duration,
        request: Request<Squashed>,
    ) -> Result<Option<(Duration, Due)>, Violation> {
        let room = match &request {
            Request::Load(room) | Request::Unload(room) => room,
            Request::Append { room, .. } | Request::Compact { room, .. } => room,
        };
        let writer =
            if self.grouped { 0 } else { self.names.iter().position(|name| name == room).unwrap_or(0) };
        let book = self.rooms.entry(room.clone()).or_default();
        checks::store_vocabulary(book, &request)?;
        match &request {
            Request::Load(_) => {
                book.outstanding = true;
                book.is_open = true;
                book.durable = 0;
                book.confirmed = Content::default();
                book.parked = false;
            }
            Request::Append { update, .. } => {
                book.outstanding = true;
                book.asked = content_of(room, [update.clone()])?;
            }
            Request::Compact { .. } => book.outstanding = true,
            Request::Unload(_) => book.is_open = false,
        }
        while self.writers.len() <= writer {
            let work = GroupCommit::new(Shared(Arc::clone(&self.store)));
            self.writers.push(Writer { work, round: None, busy_until: Duration::ZERO });
        }
        self.writers[writer].work.submit((), request);
        Ok(self.schedule_round(now, writer))
    }

    /// Lets the writer do what waits, once it has time.
    fn schedule_round(&mut self, now: Duration, writer: usize) -> Option<(Duration, Due)> {
        let latency = self.latency();
        let writer = &mut self.writers[writer];
        if self.is_held || writer.round.is_some() || writer.work.is_idle() {
            return None;
        }
        self.next += 1;
        writer.round = Some(self.next);
        Some((now.max(writer.busy_until) + latency, Due::Round(self.next)))
    }

    fn latency(&mut self) -> Duration {
        let max = self.mood.latency_max.as_micros() as u64;
        Duration::from_micros(20 + max * self.random.below(1000).pow(2) / 1_000_000)
    }

    /// Performs what waits, for good: a crash from here on leaves it done and unanswered.
    pub(crate) fn round(
        &mut self,
        now: Duration,
        round: u64,
        mut log: impl FnMut(&Done),
    ) -> Result<Vec<(Duration, Due)>, Violation> {
        let Some(index) = self.writers.iter().position(|writer| writer.round == Some(round)) else {
            // Its writer is dead.
            return Ok(Vec::new());
        };
        let writer = &mut self.writers[index];
        writer.round = None;
        if self.is_held {
            return Ok(Vec::new());
        }
        {
            let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
            store.mood.clone_from(&self.mood);
            store.is_out = now < self.mood.outage_until;
        }
        let mut batches = Vec::new();
        writer.work.round(|batch| batches.push(batch));
        let done = {
            let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
            mem::take(&mut store.done)
        };
        for done in done {
            log(&done);
            self.check(done)?;
        }
        let mut due = Vec::new();
        let mut answered = now;
        for batch in batches {
            self.next += 1;
            // Each takes its time, and they come in order.
            answered +=
                Duration::from_micros(self.random.below(self.mood.latency_max.as_micros() as u64 / 2 + 1));
            self.answers.insert(self.next, batch.into_iter().map(|(_, completion)| completion).collect());
            due.push((answered, Due::Answer(self.next)));
        }
        self.writers[index].busy_until = answered;
        due.extend(self.schedule_round(answered, index));
        Ok(due)
    }

    fn check(&mut self, done: Done) -> Result<(), Violation> {
        match done {
            Done::Loaded(room, updates) => {
                let book = self.rooms.entry(room.clone()).or_default();
                checks::store_keeps_everything(&room, &book.content, &updates)
            }
            Done::Committed(writes) => writes.into_iter().try_for_each(|write| {
                let room = write.room().clone();
                let book = self.rooms.entry(room.clone()).or_default();
                match write {
                    Write::Append { update, .. } => book.content.union(&content_of(&room, [update])?),
                    Write::Compact { state, .. } => {
                        let state = content_of(&room, state)?;
                        checks::squash_loses_nothing(&room, &book.content, &state)?;
                        book.content.union(&state);
                    }
                }
                Ok(())
            }),
            Done::Failed(_) => Ok(()),
        }
    }

    /// Answers what was finished together; nothing if whoever asked is dead.
    pub(crate) fn answer(&mut self, answer: u64) -> Vec<Completion> {
        let completions = self.answers.remove(&answer).unwrap_or_default();
        for completion in &completions {
            let room = match completion {
                Completion::Loaded { room, .. } | Completion::LoadFailed { room, .. } => room,
                Completion::Stored { room, .. } => room,
                Completion::Compacted { room, .. } | Completion::Failed { room, .. } => room,
            };
            let book = self.rooms.entry(room.clone()).or_default();
            book.outstanding = false;
            match completion {
                Completion::Stored { seq, .. } => {
                    book.durable = *seq;
                    let asked = mem::take(&mut book.asked);
                    book.confirmed.union(&asked);
                }
                Completion::Loaded { .. } => book.confirmed = book.content.clone(),
                Completion::LoadFailed { .. } => book.is_open = false,
                Completion::Compacted { .. } | Completion::Failed { .. } => {}
            }
        }
        completions
    }

    /// The writers are gone: what was not performed never is.
    pub(crate) fn crash(&mut self) {
        self.writers.clear();
        self.answers.clear();
        for book in self.rooms.values_mut() {
            book.is_open = false;
            book.outstanding = false;
        }
    }

    /// Does nothing from now on, or what has waited.
    pub(crate) fn hold(&mut self, now: Duration, is_held: bool) -> Vec<(Duration, Due)> {
        if mem::replace(&mut self.is_held, is_held) == is_held || is_held {
            return Vec::new();
        }
        (0..self.writers.len()).filter_map(|writer| self.schedule_round(now, writer)).collect()
    }

    /// Keeps everything in another store from now on, which must have what this one has.
    pub(crate) fn replace_store(&mut self, store: Box<dyn Store>) {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).store = store;
    }

    /// Reads a room while nobody writes to it.
    pub(crate) fn read(&mut self, room: &RoomName) -> Result<Vec<Bytes>, Violation> {
        let updates = self.store.lock().unwrap_or_else(PoisonError::into_inner).store.load(room);
        let book = self.rooms.entry(room.clone()).or_default();
        checks::store_keeps_everything(room, &book.content, &updates)?;
        updates.map_err(|error| Violation::new("the store reads", error))
    }
}

fn content_of(room: &RoomName, updates: impl IntoIterator<Item = Bytes>) -> Result<Content, Violation> {
    Content::of(updates).map_err(|error| Violation::new("stored updates scan", format!("{room}: {error}")))
}

/// The store, as its writers find it: at times it fails.
struct Faulty {
    store: Box<dyn Store>,
    mood: Mood,
    is_out: bool,
    done: Vec<Done>,
    random: Random,
}

/// What the store did in a round.
#[derive(Debug)]
pub(crate) enum Done {
    Loaded(RoomName, Result<Vec<Bytes>, StoreError>),
    /// One transaction.
    Committed(Vec<Write>),
    Failed(&'static str),
}

struct Shared(Arc<Mutex<Faulty>>);

impl Store for Shared {
    fn load(&mut self, room: &RoomName) -> Result<Vec<Bytes>, StoreError> {
        let mut faulty = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = faulty.mood.load_errors;
        if faulty.is_out || faulty.random.permille(rate) {
            faulty.done.push(Done::Failed("load"));
            return Err(faulty.error());
        }
        let updates = faulty.store.load(room);
        faulty.done.push(Done::Loaded(room.clone(), updates.clone()));
        updates
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        let mut faulty = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Mood { write_errors, false_errors, .. } = faulty.mood;
        if faulty.is_out || faulty.random.permille(write_errors) {
            faulty.done.push(Done::Failed("commit"));
            return Err(faulty.error());
        }
        faulty.store.commit(writes)?;
        faulty.done.push(Done::Committed(writes.to_vec()));
        if faulty.random.permille(false_errors) {
            faulty.done.push(Done::Failed("falsely that commit"));
            return Err(faulty.error());
        }
        Ok(())
    }

    fn unload(&mut self, room: &RoomName) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).store.unload(room);
    }
}

impl Faulty {
    /// All rooms of a transaction share some errors, and others are looked for room by room.
    fn error(&mut self) -> StoreError {
        match self.random.below(3) {
            0 => StoreError::Busy,
            1 => StoreError::Full,
            _ => StoreError::Io { message: "simulated".into() },
        }
    }
}
