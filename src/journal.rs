//! What a room has: the log of its updates, and those whose time has not come.
//!
//! A [`Journal`] does with clocks what every Yjs reader does with documents. A struct is *integrated*
//! when it is the next of its client and everything it hangs on is there. Until then it, and what
//! follows it of that client, is *parked*. So the journal's state vector is that of a Yjs document which
//! was given the same updates, and no room needs a document to answer who asks. (Where the same clocks
//! are parked in two versions, Yjs keeps one of them; the journal keeps both and may get ahead of it.)
//!
//! ```text
//!                       .-- nothing new ------------------------------> Nothing
//!  update -> receive ---|-- next in line ------> log (snapshot, tail) -> New
//!                       '-- something is missing -> parked ------------> New   (or Overflow)
//!                                                     '--> log, once what was missing has come
//! ```
//!
//! Nothing in the log overlaps: of an update that was in part known, the new part is taken, and that
//! part is what peers and store should get. Parked structs may contradict each other. Someone may use
//! another client's id, and its next clocks, for a struct that hangs on something nobody has: it parks,
//! the honest update on the same clocks goes ahead of it, and the room goes on.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    iter, mem,
    ops::Range,
};

use bytes::Bytes;
use smallvec::SmallVec;

use crate::{
    message::Carrier,
    update::{
        ClientId, Id, IdSet, Run, SquashOptions, StateVector, Struct, Structs, Update, is_same_struct, join,
        squash,
    },
};

/// Bounds what a journal keeps beyond the document itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalLimits {
    /// The most that parked structs may take, in bytes: their encoding and [`Journal::PARKED_OVERHEAD`]
    /// for each. 4 MiB by default.
    pub parked_bytes_max: usize,
}

impl Default for JournalLimits {
    fn default() -> Self {
        Self { parked_bytes_max: 4 << 20 }
    }
}

/// What a room has: a snapshot, the updates since, and what is parked.
#[derive(Debug, Default)]
// As they are declared: an update comes by the first hundred bytes.
#[repr(C)]
pub struct Journal {
    state: StateVector,
    tail: Vec<Update>,
    tail_bytes: usize,
    version: u64,
    parked: Parked,
    /// Every clock that delete sets, and Deleted and GC structs in the log, say is deleted.
    deleted: IdSet,
    snapshot: Option<Update>,
    /// The mark before the first update of the tail.
    tail_mark: Mark,
    limits: JournalLimits,
}

impl Journal {
    /// What a parked struct counts for on top of its bytes: about what it takes to keep track of it.
    pub const PARKED_OVERHEAD: usize = 192;

    /// Makes an empty journal.
    pub fn new(limits: JournalLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Makes the journal of a document that is kept elsewhere: what it has is held, and not in the log.
    pub fn of_document(limits: JournalLimits, state: StateVector, deleted: IdSet) -> Self {
        Self { limits, state, deleted, ..Self::default() }
    }

    /// Takes what is new of an update, and says what that was.
    ///
    /// [`Received::New`] is what should be relayed and stored: the update itself, with the author's own
    /// bytes, where all of it is new. Parked structs are part of it when they arrive, and not again when
    /// they are integrated.
    pub fn receive(&mut self, update: &Update) -> Received {
        let arrival = self.advance(update);
        if !arrival.needs_care && update.has_no_deletes() {
            if arrival.clocks.is_empty() {
                return Received::Nothing;
            }
            self.append(update.clone());
            return self.settle(&arrival, VecDeque::new(), update.clone());
        }

        let (parts, is_all_new) = self.divide(update, &arrival);
        let cost = parts.waiting.iter().map(Waiting::cost).sum::<usize>();
        if self.parked.cost + cost > self.limits.parked_bytes_max && cost > 0 {
            for &(client, before) in &arrival.clocks {
                self.state.set(client, before);
            }
            return Received::Overflow;
        }
        if parts.integrated.is_empty() && parts.waiting.is_empty() && parts.deletes.is_empty() {
            return Received::Nothing;
        }

        let new = if is_all_new { update.clone() } else { parts.encode_all() };
        if parts.waiting.is_empty() {
            self.append(new.clone());
        } else if !parts.integrated.is_empty() || !parts.deletes.is_empty() {
            self.append(Update::encode(&parts.integrated, &parts.deletes));
        }
        self.deleted.union(&parts.deletes);
        self.deleted.union(&parts.gone);
        let mut todo = VecDeque::new();
        for s in parts.waiting {
            todo.extend(self.parked.insert(&s, &self.state));
        }
        self.settle(&arrival, todo, new)
    }

    /// As [`receive`](Self::receive), where a struct was [read](Update::scan_lone) that is all of the update. Mostly it
    /// is the next of its client, and nothing waits: then it is simply appended.
    pub(crate) fn receive_lone(&mut self, update: &Update, lone: Option<&Struct>) -> Received {
        if let Some(s) = lone
            && self.parked.structs.is_empty()
            && !s.is_skip()
            && !s.is_gone()
            && self.unmet(s).is_none()
            && self.state.advance(s.id.client, s.id.clock, s.end())
        {
            self.append(update.clone());
            self.version += 1;
            return Received::New(update.clone());
        }
        self.receive(update)
    }

    /// Takes what the store has: all of it, whatever has to be parked, because it was let in before.
    pub fn restore(&mut self, update: &Update) {
        let bound = mem::replace(&mut self.limits.parked_bytes_max, usize::MAX);
        let _ = self.receive(update);
        self.limits.parked_bytes_max = bound;
    }

    /// Replaces the updates that a [`Squash`] covered by its result. What was appended meanwhile stays.
    ///
    /// False if a later squash was put in place before: then nothing changes.
    pub fn squashed(&mut self, squashed: &Squashed) -> bool {
        if squashed.mark < self.tail_mark || squashed.mark > self.mark() {
            return false;
        }
        let covered = (squashed.mark.0 - self.tail_mark.0) as usize;
        self.tail_bytes -= self.tail.drain(..covered).map(|update| update.bytes().len()).sum::<usize>();
        self.tail_mark = squashed.mark;
        self.snapshot = Some(squashed.log.clone()).filter(|log| !log.is_empty());
        true
    }

    /// Forgets the log, which somebody else keeps, as a document perhaps. What was in it stays held.
    pub fn forget_log(&mut self) {
        self.tail_mark = self.mark();
        self.tail = Vec::new();
        self.tail_bytes = 0;
        self.snapshot = None;
    }

    /// What a document that was given the log does not say: parked structs, and deletes of what is missing
    /// itself. Whoever is sent what the document has gets these behind it, in this order; mostly none.
    pub fn waiting(&self) -> Vec<Update> {
        let (first, others) = self.parked.runs();
        let mut deletes = IdSet::default();
        for (client, clocks) in self.deleted.iter() {
            deletes.insert(client, clocks.start.max(self.state.clock(client))..clocks.end);
        }
        let conflicting = others.into_iter().map(|run| Update::encode(&[run], &IdSet::default()));
        let main = Update::encode(&first, &deletes);
        conflicting.chain(Some(main).filter(|main| !main.is_empty())).collect()
    }

    /// What someone with this state vector lacks. Walks all of the log: an answer that many ask for is worth
    /// keeping, as a room does.
    pub fn diff(&self, known: &StateVector) -> Diff {
        let (main, conflicting) = self.diff_by(known, Update::clone, Update::encode);
        Diff { main, conflicting }
    }

    /// As [`diff`](Self::diff), the main part as a frame.
    pub(crate) fn diff_in(&self, carrier: Carrier, known: &StateVector) -> (Bytes, Vec<Update>) {
        let part = |runs: &[Run<'_>], deletes: &IdSet| Update::encode_in(carrier, runs, deletes).0;
        self.diff_by(known, |all| carrier.frame(all.bytes()), part)
    }

    fn diff_by<T>(
        &self,
        known: &StateVector,
        all: impl FnOnce(&Update) -> T,
        part: impl FnOnce(&[Run<'_>], &IdSet) -> T,
    ) -> (T, Vec<Update>) {
        // Whoever has nothing lacks the whole log, which says itself what is deleted.
        let mut log = self.log();
        if known.is_empty()
            && self.parked.structs.is_empty()
            && let (Some(update), None) = (log.next(), log.next())
        {
            return (all(update), Vec::new());
        }
        let mut main =
            self.log().flat_map(Update::runs).filter_map(|run| run.beyond(known)).collect::<Vec<_>>();
        let (first, others) = self.parked.runs();
        main.extend(first.into_iter().filter(|run| run.is_beyond(known)));
        main.sort_by_key(Run::place);
        let conflicting = others.into_iter().filter(|run| run.is_beyond(known));
        let conflicting = conflicting.map(|run| Update::encode(&[run], &IdSet::default())).collect();
        (part(&main, &self.deleted), conflicting)
    }

    /// Whether all of an update is integrated, and all that it deletes known to be deleted.
    pub fn knows(&self, update: &Update) -> bool {
        update.inserts().all(|(client, clocks)| clocks.end <= self.state.clock(client))
            && update.deletes().all(|(client, clocks)| self.deleted.contains_range(client, clocks))
    }

    /// Up to which clock the structs of every client are integrated.
    pub fn state_vector(&self) -> &StateVector {
        &self.state
    }

    /// Grows with every change of what the journal holds, be it parked.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The log: the snapshot, if there is one, and the updates since. Parked structs are not in it, nor
    /// would a document show them.
    pub fn updates(&self) -> impl Iterator<Item = &Bytes> {
        self.log().map(Update::bytes)
    }

    /// What was appended to the log since a [mark](Self::mark), in order.
    ///
    /// `None` if a squash has swallowed that: then read [all of the log](Self::updates) instead.
    pub fn updates_since(&self, mark: Mark) -> Option<impl Iterator<Item = &Bytes>> {
        let read = usize::try_from(mark.0.checked_sub(self.tail_mark.0)?).ok()?;
        Some(self.tail.get(read..)?.iter().map(Update::bytes))
    }

    /// Names the end of the log as it is now.
    pub fn mark(&self) -> Mark {
        Mark(self.tail_mark.0 + self.tail.len() as u64)
    }

    /// How many updates follow the snapshot.
    pub fn tail_count(&self) -> usize {
        self.tail.len()
    }

    /// How many bytes follow the snapshot.
    pub fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }

    /// How many bytes the snapshot has.
    pub fn snapshot_bytes(&self) -> usize {
        self.snapshot.as_ref().map_or(0, |update| update.bytes().len())
    }

    /// What the parked structs take, as [`JournalLimits::parked_bytes_max`] counts.
    pub fn parked_bytes(&self) -> usize {
        self.parked.cost
    }

    /// What all of the journal takes: snapshot, tail and parked structs.
    pub fn len_bytes(&self) -> usize {
        self.snapshot_bytes() + self.tail_bytes + self.parked.cost
    }

    /// Makes the job that squashes all there is. It may run on another thread.
    ///
    /// It is linear in what the journal holds. Whoever calls it decides when that pays: when the tail
    /// has outgrown the snapshot, for example, every byte is squashed a bounded number of times.
    pub fn squash(&self, options: SquashOptions) -> Squash {
        let (first, others) = self.parked.runs();
        Squash(Box::new(Covered {
            log: self.log().cloned().collect(),
            parked: Update::encode(&first, &IdSet::default()),
            conflicting: others
                .into_iter()
                .map(|run| Update::encode(&[run], &IdSet::default()).bytes().clone())
                .collect(),
            mark: self.mark(),
            options,
        }))
    }

    fn log(&self) -> impl Iterator<Item = &Update> {
        self.snapshot.iter().chain(&self.tail)
    }

    /// Moves the state vector past what of `update` can be integrated by itself.
    ///
    /// Goes through the sections in their order. One that hangs on a later one waits for it and is then
    /// resumed where it stopped.
    fn advance(&mut self, update: &Update) -> Arrival {
        let mut arrival = Arrival::default();
        // Mostly not there: even the drop of an empty map takes its time.
        let mut blocked = None::<BTreeMap<Id, Sections<'_>>>;
        let mut ready = Sections::new();
        let mut structs = update.structs();
        let mut next = structs.next();
        while let Some(first) = next {
            let client = first.id.client;
            arrival.clocks.push((client, self.state.clock(client)));
            next = match self.advance_section(first, &mut structs, &mut arrival) {
                Stop::End(next) => next,
                Stop::Gap => structs.find(|s| s.id.client != client),
                Stop::Unmet(s, id) => {
                    let blocked = blocked.get_or_insert_default();
                    blocked.entry(id).or_default().push((s, structs.clone()));
                    structs.find(|s| s.id.client != client)
                }
            };
            let Some(blocked) = blocked.as_mut() else { continue };
            let mut moved = client;
            loop {
                let clock = self.state.clock(moved);
                let waited_for = Id { client: moved, clock: 0 }..Id { client: moved, clock };
                while let Some((&id, _)) = blocked.range(waited_for.clone()).next() {
                    ready.extend(blocked.remove(&id).into_iter().flatten());
                }
                let Some((s, mut rest)) = ready.pop() else {
                    break;
                };
                moved = s.id.client;
                if let Stop::Unmet(s, id) = self.advance_section(s, &mut rest, &mut arrival) {
                    blocked.entry(id).or_default().push((s, rest));
                }
            }
        }
        arrival.needs_care |= blocked.is_some_and(|blocked| !blocked.is_empty());
        arrival
    }

    /// Moves the clock of one client past the structs of its section, from `s` on.
    fn advance_section(&mut self, mut s: Struct, rest: &mut Structs<'_>, arrival: &mut Arrival) -> Stop {
        let client = s.id.client;
        let before = self.state.clock(client);
        let mut clock = before;
        let stop = loop {
            if !s.is_skip() {
                if s.id.clock > clock {
                    arrival.needs_care = true;
                    break Stop::Gap;
                }
                arrival.needs_care |= s.id.clock < clock || s.is_gone();
                if s.end() > clock {
                    if let Some(id) = self.unmet(&s) {
                        break Stop::Unmet(s, id);
                    }
                    clock = s.end();
                }
            }
            match rest.next() {
                Some(next) if next.id.client == client => s = next,
                next => break Stop::End(next),
            }
        };
        if clock > before {
            self.state.set(client, clock);
        }
        stop
    }

    /// What is missing first for a struct that is the next of its client, which is all it needs of that one.
    fn unmet(&self, s: &Struct) -> Option<Id> {
        s.dependencies().find(|id| id.client != s.id.client && id.clock >= self.state.clock(id.client))
    }

    /// Divides an update that was [advanced](Self::advance) past, and says whether all of it is new.
    fn divide<'a>(&self, update: &'a Update, arrival: &Arrival) -> (Parts<'a>, bool) {
        let mut parts = Parts::default();
        let mut is_all_new = true;
        for (client, clocks) in update.deletes() {
            let mut gaps = self.deleted.gaps(client, clocks.clone()).peekable();
            is_all_new &= gaps.peek() == Some(&clocks);
            gaps.for_each(|gap| _ = parts.deletes.insert(client, gap));
        }
        let mut clocks = arrival.clocks.iter().peekable();
        for run in update.runs() {
            let client = run.client();
            while clocks.next_if(|(other, _)| *other != client).is_some() {}
            let before = clocks.peek().map_or(0, |&&(_, before)| before);
            let now = self.state.clock(client);
            parts.integrated.extend(run.clone().starting_at(before).and_then(|run| run.ending_at(now)));
            for (s, part) in run.parts() {
                is_all_new &= before <= part.start;
                if s.is_gone() {
                    for gap in self.deleted.gaps(client, part.start..part.end.min(before)) {
                        parts.deletes.insert(client, gap);
                    }
                    parts.gone.insert(client, part.start.max(before)..part.end.min(now));
                }
                if part.end > now {
                    let bytes = &update.bytes()[s.at()];
                    let waiting = Waiting { from: part.start.max(now), bytes, id: s.id, end: part.end };
                    if self.parked.holds(&waiting) {
                        is_all_new = false;
                    } else {
                        parts.waiting.push(waiting);
                    }
                }
            }
        }
        parts.integrated.sort_by_key(Run::place);
        (parts, is_all_new)
    }

    /// Integrates what was parked and has become possible, which may make more possible, and so on.
    ///
    /// `new` is what will be relayed and stored. The parked structs were relayed and stored before; what
    /// is added to it are deletes that are known only because a parked struct lost its clocks to another.
    fn settle(&mut self, arrival: &Arrival, mut todo: VecDeque<Task>, new: Update) -> Received {
        self.version += 1;
        if self.parked.structs.is_empty() {
            return Received::New(new);
        }
        let mut integrated = Vec::new();
        let mut deletes = IdSet::default();
        todo.extend(arrival.clocks.iter().map(|&(client, _)| Task::Moved(client)));
        while let Some(task) = todo.pop_front() {
            match task {
                Task::Moved(client) => {
                    let clock = self.state.clock(client);
                    for clocks in self.parked.catch_up(client, clock, &mut todo) {
                        for gap in self.deleted.gaps(client, clocks.clone()) {
                            deletes.insert(client, gap);
                        }
                        self.deleted.insert(client, clocks);
                    }
                }
                Task::Check(place) => {
                    // A client that has moved on is caught up with later, and checked again.
                    let is_next = place.from == self.state.clock(place.client);
                    let Some(parked) = self.parked.structs.get(&place).filter(|_| is_next) else {
                        continue;
                    };
                    if let Some(id) = self.unmet(&parked.read(place.client)) {
                        self.parked.wait(place, id);
                        continue;
                    }
                    let Some(parked) = self.parked.remove(place) else {
                        continue;
                    };
                    self.state.set(place.client, parked.end);
                    if parked.read(place.client).is_gone() {
                        self.deleted.insert(place.client, place.from..parked.end);
                    }
                    integrated.push((place, parked));
                    todo.push_back(Task::Moved(place.client));
                }
            }
        }
        if integrated.is_empty() && deletes.is_empty() {
            return Received::New(new);
        }
        let mut runs =
            integrated.iter().filter_map(|(place, parked)| parked.rest(*place)).collect::<Vec<_>>();
        runs.sort_by_key(Run::place);
        self.append(Update::encode(&runs, &deletes));
        if deletes.is_empty() {
            return Received::New(new);
        }
        Received::New(join(&[new, Update::encode(&[], &deletes)]))
    }

    fn append(&mut self, update: Update) {
        self.tail_bytes += update.bytes().len();
        self.tail.push(update);
    }
}

/// What an update turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Received {
    /// Everything in it was known: it goes nowhere.
    Nothing,
    /// This is what was new: relay and store it.
    New(Update),
    /// It would park more than [`JournalLimits::parked_bytes_max`]: it left no trace. Ask its sender for
    /// what is missing, with the state vector.
    Overflow,
}

/// What someone lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diff {
    /// What they lack of the log, parked structs that do not contradict each other, and all deletes.
    pub main: Update,
    /// Parked structs that contradict what is in `main` or known, mostly none. Whoever joins must be sent
    /// these too, and before `main`, which may be what it waits for.
    pub conflicting: Vec<Update>,
}

/// Names a place in the log of a [`Journal`]. The default is before everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(u64);

/// A squash of all that a [`Journal`] held: work to be done, on another thread if need be.
#[derive(Debug, Clone)]
#[must_use]
// Boxed, because every output takes as much room as the largest.
pub struct Squash(Box<Covered>);

/// What a squash covers.
#[derive(Debug, Clone)]
struct Covered {
    log: Vec<Update>,
    parked: Update,
    conflicting: Vec<Bytes>,
    mark: Mark,
    options: SquashOptions,
}

impl Squash {
    /// Does the work.
    pub fn run(self) -> Squashed {
        let Covered { log, parked, conflicting, mark, options } = *self.0;
        let log = squash(&log, options);
        let state = if parked.is_empty() {
            log.bytes().clone()
        } else {
            // Cut where a part is deleted, or merged with its neighbour, a parked struct would hang on
            // something else than before.
            join(&[log.clone(), parked]).bytes().clone()
        };
        Squashed { state, conflicting, mark, log }
    }
}

/// What a [`Squash`] made. Store its [`updates`](Self::updates) in place of what was stored when it began,
/// and give the whole back to [`Journal::squashed`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Squashed {
    /// One update that says all that was covered, parked structs included.
    pub state: Bytes,
    /// Updates of parked structs that contradict those in `state`, mostly none.
    pub conflicting: Vec<Bytes>,
    mark: Mark,
    log: Update,
}

impl Squashed {
    /// What to store, in this order.
    pub fn updates(&self) -> impl Iterator<Item = &Bytes> {
        iter::once(&self.state).chain(&self.conflicting)
    }
}

/// Sections of an update, each from some struct on.
type Sections<'a> = SmallVec<[(Struct, Structs<'a>); 0]>;

/// Where going through a section stopped.
enum Stop {
    /// At its end; this is the first struct of the next one.
    End(Option<Struct>),
    /// Before a struct that is not the next of its client.
    Gap,
    /// Before a struct that hangs on something that is missing.
    Unmet(Struct, Id),
}

/// How far an update has come.
#[derive(Debug, Default)]
struct Arrival {
    /// The clients of its sections, in their order, and the clock of each before it came.
    clocks: SmallVec<[(ClientId, u64); 1]>,
    /// Whether some of it was known, cannot be integrated, or says what is deleted.
    needs_care: bool,
}

/// What is new in an update.
#[derive(Default)]
struct Parts<'a> {
    integrated: Vec<Run<'a>>,
    waiting: Vec<Waiting<'a>>,
    deletes: IdSet,
    /// What integrated structs say is deleted.
    gone: IdSet,
}

impl Parts<'_> {
    fn encode_all(&self) -> Update {
        let mut runs = self.integrated.clone();
        runs.extend(self.waiting.iter().map(Waiting::run));
        runs.sort_by_key(Run::place);
        Update::encode(&runs, &self.deletes)
    }
}

/// Something that may have become possible.
#[derive(Debug)]
enum Task {
    /// The clock of this client has moved.
    Moved(ClientId),
    /// This parked struct may be the next of its client, and have what it hangs on.
    Check(Place),
}

/// Structs whose time has not come.
///
/// None counts below the clock of its client: where the client has moved past a part of one, its place is
/// that of the rest. Of the structs that would be next, each waits for one thing that it lacks; those
/// beyond a gap wait for their client alone.
#[derive(Debug, Default)]
// As they are declared: every update asks for the first two.
#[repr(C)]
struct Parked {
    structs: BTreeMap<Place, ParkedStruct>,
    cost: usize,
    /// What is waited for, and by whom.
    waiting: BTreeSet<(Id, Place)>,
    serial: u64,
}

impl Parked {
    /// Parks a struct; if it is the next of its client, it has to be checked for what it lacks.
    fn insert(&mut self, s: &Waiting<'_>, state: &StateVector) -> Option<Task> {
        self.serial += 1;
        self.cost += s.cost();
        let place = Place { client: s.id.client, from: s.from, serial: self.serial };
        let parked = ParkedStruct { clock: s.id.clock, end: s.end, bytes: s.bytes.into(), waits_for: None };
        self.structs.insert(place, parked);
        (s.from == state.clock(s.id.client)).then_some(Task::Check(place))
    }

    fn remove(&mut self, place: Place) -> Option<ParkedStruct> {
        let parked = self.structs.remove(&place)?;
        self.cost -= parked.bytes.len() + Journal::PARKED_OVERHEAD;
        if let Some(id) = parked.waits_for {
            self.waiting.remove(&(id, place));
        }
        Some(parked)
    }

    fn wait(&mut self, place: Place, id: Id) {
        let Some(parked) = self.structs.get_mut(&place) else {
            return;
        };
        if let Some(other) = parked.waits_for.replace(id) {
            self.waiting.remove(&(other, place));
        }
        self.waiting.insert((id, place));
    }

    /// Follows a client to its new clock: drops what it has passed, and says whom to check.
    ///
    /// Returns the clocks that structs which lost them had said are deleted.
    fn catch_up(&mut self, client: ClientId, clock: u64, todo: &mut VecDeque<Task>) -> Vec<Range<u64>> {
        let first = Place { client: ClientId::MIN, from: 0, serial: 0 };
        let waited_for = (Id { client, clock: 0 }, first)..(Id { client, clock }, first);
        while let Some(&(id, place)) = self.waiting.range(waited_for.clone()).next() {
            self.waiting.remove(&(id, place));
            if let Some(parked) = self.structs.get_mut(&place) {
                parked.waits_for = None;
            }
            todo.push_back(Task::Check(place));
        }

        let mut gone = Vec::new();
        let place_at = |from| Place { client, from, serial: 0 };
        while let Some((&place, _)) = self.structs.range(place_at(0)..place_at(clock)).next() {
            let Some(parked) = self.remove(place) else {
                break;
            };
            if parked.read(client).is_gone() {
                gone.push(place.from..parked.end.min(clock));
            }
            if parked.end > clock {
                self.cost += parked.bytes.len() + Journal::PARKED_OVERHEAD;
                self.structs
                    .insert(Place { from: clock, ..place }, ParkedStruct { waits_for: None, ..parked });
            }
        }
        let next = self.structs.range(place_at(clock)..place_at(clock + 1));
        todo.extend(next.filter(|(_, s)| s.waits_for.is_none()).map(|(&place, _)| Task::Check(place)));
        gone
    }

    /// Whether the very same struct is parked.
    fn holds(&self, s: &Waiting<'_>) -> bool {
        let place = Place { client: s.id.client, from: s.from, serial: 0 };
        let versions = self.structs.range(place..=Place { serial: u64::MAX, ..place });
        versions
            .into_iter()
            .any(|(_, other)| other.clock == s.id.clock && is_same_struct(&other.bytes, s.bytes))
    }

    /// The parked structs as runs: first those that contradict neither each other nor the log, then the
    /// others.
    ///
    /// All are whole, even where some of their clocks are taken: cut, they would not say any more what
    /// they hang on, and readers would integrate what waits here.
    fn runs(&self) -> (Vec<Run<'_>>, Vec<Run<'_>>) {
        let (mut first, mut others) = (Vec::new(), Vec::new());
        let mut free = None;
        for (place, parked) in &self.structs {
            let run = Run::new(&parked.bytes, &parked.read(place.client));
            let is_taken = free.is_some_and(|(client, clock)| client == place.client && place.from < clock);
            if is_taken || parked.clock < place.from {
                others.push(run);
            } else {
                free = Some((place.client, parked.end));
                first.push(run);
            }
        }
        (first, others)
    }
}

/// Where a parked struct stands: in the order of its client's clocks, then in that of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    client: ClientId,
    /// Its first clock that is free; that of its bytes, unless others took those before.
    from: u64,
    serial: u64,
}

#[derive(Debug)]
struct ParkedStruct {
    clock: u64,
    end: u64,
    /// A copy, so that it does not hold on to all of the update it came with.
    bytes: Box<[u8]>,
    /// What it lacks, once it is the next of its client.
    waits_for: Option<Id>,
}

impl ParkedStruct {
    fn read(&self, client: ClientId) -> Struct {
        Struct::proven(&self.bytes, Id { client, clock: self.clock })
    }

    /// What of it is free.
    fn rest(&self, place: Place) -> Option<Run<'_>> {
        Run::new(&self.bytes, &self.read(place.client)).starting_at(place.from)
    }
}

/// A struct of an update that has to be parked.
struct Waiting<'a> {
    id: Id,
    from: u64,
    end: u64,
    bytes: &'a [u8],
}

impl Waiting<'_> {
    fn cost(&self) -> usize {
        self.bytes.len() + Journal::PARKED_OVERHEAD
    }

    /// All of it: cut, it would not say any more what it hangs on.
    fn run(&self) -> Run<'_> {
        Run::new(self.bytes, &Struct::proven(self.bytes, self.id))
    }
}
