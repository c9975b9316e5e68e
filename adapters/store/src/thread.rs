use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt, io, mem,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::Bytes;
use yrs_websocket::RoomName;

use crate::{Store, StoreError, Write};

/// Runs a [`Store`] on a thread of its own, with group commit.
///
/// `T` says who asked (the shard) and comes back with the answer; `D` is what a [`Job`] gives back besides
/// the bytes to store.
///
/// The thread works in rounds. A round takes everything that waits:
///
/// ```text
///   submit --> queue --> loads and unloads of rooms        --> on_done
///                        without a write in this round
///                   '--> all writes, as one transaction    --> on_done
///                   '--> one job, if nothing else waits
/// ```
///
/// * **One transaction** holds all writes of a round, whatever their number: while one is being made
///   durable the next ones gather. Should it fail, the writes of each room are tried alone, so that a write
///   that cannot be stored fails its own room only. ([`StoreError::Busy`] concerns all of them and has
///   cost a timeout already: it is the answer to all.)
/// * **A pause**, if there is to be one, lies between transactions: what is appended meanwhile gathers, and at most
///   the first of it wakes the thread. A load or a compaction cuts it short, and whoever is about to end
///   [hurries](Self::hurry).
/// * **First in, first out per room**: a load sees what was appended before it, and an append after a
///   compaction is stored after it.
/// * **Loads do not wait for the disk to be written**: they are answered before the round's transaction, save
///   those of rooms that have a write in it.
/// * **Jobs give way.** They run one at a time, when nothing else waits, and their results join the next
///   transaction; so an append waits for at most one of them.
/// * **Panics are contained**: of the store, and of jobs. They are answered as [`StoreError::Panicked`].
///
/// The queue has no bound of its own: the core has one write per room outstanding, and loads a room once.
/// Dropping this lets the thread finish what was submitted, in the background; [`shutdown`](Self::shutdown)
/// waits for it.
pub struct StoreThread<T, D = ()> {
    queue: Arc<Queue<T, D>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl<T: Copy + Send + 'static, D: Send + 'static> StoreThread<T, D> {
    /// Starts the thread. Between the beginnings of two transactions lies `interval`, which may be nothing.
    ///
    /// `on_done` is called on it with what was finished together, in order. Meanwhile the store
    /// does nothing, so it should only hand the completions on. It must not panic: that ends the thread, and
    /// [`shutdown`](Self::shutdown) passes the panic on.
    pub fn spawn(
        store: impl Store,
        interval: Duration,
        on_done: impl FnMut(Vec<(T, Completion<D>)>) + Send + 'static,
    ) -> io::Result<Self> {
        let queue = Arc::new(Queue::new());
        let (work, submitted) = (GroupCommit::new(store), Arc::clone(&queue));
        let worker = Worker { work, on_done, submitted, interval, pause_end: None, is_urgent: false };
        let thread = thread::Builder::new().name("yrs-store".into()).spawn(move || worker.run())?;
        Ok(Self { queue, thread: Mutex::new(Some(thread)) })
    }

    /// Hands a request to the thread, which answers each but [`Request::Unload`] with one [`Completion`].
    ///
    /// Never blocks. After [`shutdown`](Self::shutdown) requests are dropped unanswered.
    pub fn submit(&self, tag: T, request: Request<D>) {
        self.queue.submit(tag, request);
    }

    /// Pauses no more, from now on: for who waits until everything is durable.
    pub fn hurry(&self) {
        self.queue.hurry();
    }

    /// Finishes everything that was submitted, closes the store by dropping it, and waits for both.
    ///
    /// Calling it twice is harmless. Must not be called from `on_done`, which would wait for itself.
    pub fn shutdown(&self) {
        self.queue.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(panic)) = thread.map(JoinHandle::join) {
            resume_unwind(panic);
        }
    }
}

impl<T, D> Drop for StoreThread<T, D> {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl<T, D> fmt::Debug for StoreThread<T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreThread").finish_non_exhaustive()
    }
}

/// Asks the store thread for something.
#[derive(Debug)]
pub enum Request<D = ()> {
    /// Asks for all updates of a room.
    Load(RoomName),
    /// Adds an update to a room.
    Append {
        /// The room.
        room: RoomName,
        /// The number of this write.
        seq: u64,
        /// The update.
        update: Bytes,
    },
    /// Replaces what was loaded for a room and written to it up to `seq` with what a job makes of it.
    Compact {
        /// The room.
        room: RoomName,
        /// The last write that the job covers.
        seq: u64,
        /// Makes the bytes to store; run on the store thread.
        job: Job<D>,
    },
    /// Tells the store that a room was unloaded. Not answered.
    Unload(RoomName),
}

/// Makes the state that a compaction stores: the CPU-heavy part, done on the store thread.
pub struct Job<D>(Box<dyn FnOnce() -> (Vec<Bytes>, D) + Send>);

impl<D> Job<D> {
    /// Wraps a function that returns the bytes to store, and what is handed back with
    /// [`Completion::Compacted`].
    pub fn new(run: impl FnOnce() -> (Vec<Bytes>, D) + Send + 'static) -> Self {
        Self(Box::new(run))
    }

    /// Does the work: for who has no thread for it.
    pub fn run(self) -> (Vec<Bytes>, D) {
        (self.0)()
    }
}

impl<D> fmt::Debug for Job<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Job")
    }
}

/// Answers a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion<D = ()> {
    /// Answers [`Request::Load`]: all that is stored.
    Loaded {
        /// The room.
        room: RoomName,
        /// Its updates, oldest first; none for a new room.
        updates: Vec<Bytes>,
    },
    /// Answers [`Request::Load`]: the room may have data, but it cannot be read now.
    LoadFailed {
        /// The room.
        room: RoomName,
        /// Why.
        error: StoreError,
    },
    /// Answers [`Request::Append`]: the update is durable.
    Stored {
        /// The room.
        room: RoomName,
        /// The number of the write.
        seq: u64,
    },
    /// Answers [`Request::Compact`]: the state is durable and what it covers is replaced.
    Compacted {
        /// The room.
        room: RoomName,
        /// The number of the write.
        seq: u64,
        /// What the job gave back.
        done: D,
    },
    /// Answers [`Request::Append`] and [`Request::Compact`]: nothing of the write is kept, and what was
    /// there before still is.
    Failed {
        /// The room.
        room: RoomName,
        /// The number of the write.
        seq: u64,
        /// Why.
        error: StoreError,
    },
}

/// Is what travels to the thread. A channel would wake it for each append, which at 1,000 a second and a pause was
/// half of its work.
struct Queue<T, D> {
    state: Mutex<Submitted<T, D>>,
    changed: Condvar,
}

/// Is what the thread has not seen yet.
struct Submitted<T, D> {
    requests: Vec<(T, Request<D>)>,
    /// Whether a load or a compaction is among them.
    is_urgent: bool,
    /// Whether there are no pauses any more.
    is_hurried: bool,
    /// Whether nothing more is taken: after a shutdown or a drop, or a panic of `on_done`, which nobody could be told
    /// of.
    is_closed: bool,
    waits_for: WaitsFor,
}

/// Says what the thread is to be woken for.
#[derive(PartialEq, Eq)]
enum WaitsFor {
    /// It works, and looks for more by itself.
    Nothing,
    /// It has something to do after its pause.
    Urgent,
    /// It has nothing to do, in a pause or not.
    Anything,
}

impl<T, D> Queue<T, D> {
    fn new() -> Self {
        let submitted = Submitted {
            requests: Vec::new(),
            is_urgent: false,
            is_hurried: false,
            is_closed: false,
            waits_for: WaitsFor::Nothing,
        };
        Self { state: Mutex::new(submitted), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Submitted<T, D>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(&self, tag: T, request: Request<D>) {
        let is_urgent = matches!(request, Request::Load(_) | Request::Compact { .. });
        let mut state = self.lock();
        if !state.is_closed {
            state.requests.push((tag, request));
            state.is_urgent |= is_urgent;
            self.wake(state, is_urgent);
        }
    }

    fn hurry(&self) {
        let mut state = self.lock();
        state.is_hurried = true;
        self.wake(state, true);
    }

    fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        self.wake(state, true);
    }

    /// Wakes the thread, if that is what it waits for.
    fn wake(&self, mut state: MutexGuard<'_, Submitted<T, D>>, is_urgent: bool) {
        let wakes = match state.waits_for {
            WaitsFor::Nothing => false,
            WaitsFor::Urgent => is_urgent,
            WaitsFor::Anything => true,
        };
        if wakes {
            state.waits_for = WaitsFor::Nothing;
            drop(state);
            self.changed.notify_one();
        }
    }
}

/// Is what waits on the thread.
enum Step<D> {
    Load(RoomName),
    Unload(RoomName),
    Run { room: RoomName, seq: u64, job: Job<D> },
    Write { write: Write, done: Option<D> },
}

impl<D> Step<D> {
    fn room(&self) -> &RoomName {
        match self {
            Self::Load(room) | Self::Unload(room) | Self::Run { room, .. } => room,
            Self::Write { write, .. } => write.room(),
        }
    }
}

/// Is the state of the thread.
struct Worker<S, F, T, D> {
    work: GroupCommit<S, T, D>,
    on_done: F,
    submitted: Arc<Queue<T, D>>,
    interval: Duration,
    /// Before that no transaction begins, unless it is urgent.
    pause_end: Option<Instant>,
    /// Whether a load or a compaction waits, or what the last round has left.
    is_urgent: bool,
}

impl<S: Store, F: FnMut(Vec<(T, Completion<D>)>), T: Copy, D> Worker<S, F, T, D> {
    fn run(mut self) {
        while self.receive() {
            let pause_end = (!self.interval.is_zero()).then(|| now().checked_add(self.interval)).flatten();
            if self.work.round(&mut self.on_done) {
                self.pause_end = pause_end;
            }
            self.is_urgent = !self.work.is_idle();
        }
    }

    /// Takes all that was submitted; waits for it if there is nothing else to do, or a pause. Says whether there
    /// is something to do: there always is, until the end.
    fn receive(&mut self) -> bool {
        let queue = Arc::clone(&self.submitted);
        let mut submitted = queue.lock();
        loop {
            while !submitted.requests.is_empty() {
                // Not under the lock, for which shards would wait, and without its memory, which a burst makes large.
                let requests = mem::take(&mut submitted.requests);
                self.is_urgent |= mem::take(&mut submitted.is_urgent);
                drop(submitted);
                for (tag, request) in requests {
                    self.work.submit(tag, request);
                }
                submitted = queue.lock();
            }
            if submitted.is_hurried {
                self.interval = Duration::ZERO;
                self.pause_end = None;
            }
            if submitted.is_closed {
                return !self.work.is_idle();
            }
            if self.work.is_idle() {
                submitted.waits_for = WaitsFor::Anything;
                submitted = queue.changed.wait(submitted).unwrap_or_else(PoisonError::into_inner);
            } else if let Some(pause_end) = self.pause_end.filter(|_| !self.is_urgent) {
                let left = pause_end.saturating_duration_since(now());
                if left.is_zero() {
                    self.pause_end = None;
                    return true;
                }
                submitted.waits_for = WaitsFor::Urgent;
                submitted =
                    queue.changed.wait_timeout(submitted, left).unwrap_or_else(PoisonError::into_inner).0;
            } else {
                return true;
            }
            submitted.waits_for = WaitsFor::Nothing;
        }
    }
}

impl<S, F, T, D> Drop for Worker<S, F, T, D> {
    fn drop(&mut self) {
        self.submitted.close();
        // After a panic nobody else would: a job may own what must not live on.
        let unanswered = mem::take(&mut self.submitted.lock().requests);
        drop(unanswered);
    }
}

#[allow(clippy::disallowed_methods, reason = "a thread of its own reads the clock")]
fn now() -> Instant {
    Instant::now()
}

/// Is what a [`StoreThread`] does, without the thread: for runtimes that have a place of their own for what
/// blocks, and for simulated disks.
pub struct GroupCommit<S, T, D = ()> {
    store: S,
    /// What is not done yet, in the order of its arrival.
    waiting: VecDeque<(T, Step<D>)>,
}

impl<S: Store, T: Copy, D> GroupCommit<S, T, D> {
    /// Makes one with nothing to do.
    pub fn new(store: S) -> Self {
        Self { store, waiting: VecDeque::new() }
    }

    /// Lets a request wait for the next round.
    pub fn submit(&mut self, tag: T, request: Request<D>) {
        let step = match request {
            Request::Load(room) => Step::Load(room),
            Request::Unload(room) => Step::Unload(room),
            Request::Append { room, seq, update } => {
                Step::Write { write: Write::Append { room, seq, update }, done: None }
            }
            Request::Compact { room, seq, job } => Step::Run { room, seq, job },
        };
        self.waiting.push_back((tag, step));
    }

    /// Whether nothing waits.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Does what waits and can be done now; what must come after another step of its room stays, in order.
    /// `on_done` gets what was finished together. Says whether there was a transaction.
    pub fn round(&mut self, mut on_done: impl FnMut(Vec<(T, Completion<D>)>)) -> bool {
        let mut loaded = Vec::new();
        let mut writes = Vec::new();
        // Rooms with a write in this round: more writes may join it, loads may not go before it.
        let mut written = BTreeSet::new();
        // Rooms with a step that stays: whatever follows stays too.
        let mut blocked = BTreeSet::new();
        // The first job that may run.
        let mut runnable = None;
        // Whether somebody waits for the writes: for an append, or behind a prepared state.
        let mut urgent = false;
        let mut prepared_bytes = 0;

        for (tag, step) in mem::take(&mut self.waiting) {
            let stays = blocked.contains(step.room())
                || written.contains(step.room()) && !matches!(step, Step::Write { .. });
            if stays {
                urgent |= written.contains(step.room());
                blocked.insert(step.room().clone());
                self.waiting.push_back((tag, step));
                continue;
            }
            match step {
                Step::Load(room) => loaded.push((tag, self.load(room))),
                Step::Unload(room) => self.unload(&room),
                Step::Run { ref room, .. } => {
                    blocked.insert(room.clone());
                    runnable.get_or_insert(self.waiting.len());
                    self.waiting.push_back((tag, step));
                }
                Step::Write { write, done } => {
                    match &write {
                        Write::Append { .. } => urgent = true,
                        Write::Compact { state, .. } => {
                            prepared_bytes += state.iter().map(Bytes::len).sum::<usize>();
                        }
                    }
                    written.insert(write.room().clone());
                    writes.push((tag, write, done));
                }
            }
        }
        if !loaded.is_empty() {
            on_done(loaded);
        }
        // Prepared states that nobody waits for are written together, once all jobs have run.
        match runnable {
            Some(index) if !urgent && prepared_bytes < PREPARED_BYTES_MAX => {
                let (tag, step) = self.waiting.remove(index).expect("it was pushed at this index");
                let Step::Run { room, seq, job } = step else {
                    unreachable!("only jobs are runnable");
                };
                for (offset, (tag, write, done)) in writes.into_iter().enumerate() {
                    self.waiting.insert(offset, (tag, Step::Write { write, done }));
                }
                match contained(|| Ok((job.0)())) {
                    Ok((state, done)) => {
                        let write = Write::Compact { room, seq, state };
                        // To the front: before whatever its room asked for since.
                        self.waiting.push_front((tag, Step::Write { write, done: Some(done) }));
                    }
                    Err(error) => on_done(vec![(tag, Completion::Failed { room, seq, error })]),
                }
                false
            }
            Some(_) | None if writes.is_empty() => false,
            Some(_) | None => {
                let completions = self.commit(writes);
                on_done(completions);
                true
            }
        }
    }

    fn load(&mut self, room: RoomName) -> Completion<D> {
        match contained(|| self.store.load(&room)) {
            Ok(updates) => Completion::Loaded { room, updates },
            Err(error) => Completion::LoadFailed { room, error },
        }
    }

    fn unload(&mut self, room: &RoomName) {
        // Nothing depends on it and nobody waits for it.
        let _ = contained(|| {
            self.store.unload(room);
            Ok(())
        });
    }

    fn commit(&mut self, steps: Vec<(T, Write, Option<D>)>) -> Vec<(T, Completion<D>)> {
        let mut writes = Vec::with_capacity(steps.len());
        let mut asked = Vec::with_capacity(steps.len());
        for (tag, write, done) in steps {
            asked.push((tag, done));
            writes.push(write);
        }
        let failed = self.commit_together_or_by_room(&writes);
        writes
            .into_iter()
            .zip(asked)
            .map(|(write, (tag, done))| {
                let seq = write.seq();
                let error = failed.get(write.room()).cloned();
                let (Write::Append { room, .. } | Write::Compact { room, .. }) = write;
                let completion = match (error, done) {
                    (Some(error), _) => Completion::Failed { room, seq, error },
                    (None, Some(done)) => Completion::Compacted { room, seq, done },
                    (None, None) => Completion::Stored { room, seq },
                };
                (tag, completion)
            })
            .collect()
    }

    /// Returns the rooms of which nothing was written.
    fn commit_together_or_by_room(&mut self, writes: &[Write]) -> BTreeMap<RoomName, StoreError> {
        let Err(error) = contained(|| self.store.commit(writes)) else {
            return BTreeMap::new();
        };
        let mut by_room = BTreeMap::<_, Vec<_>>::new();
        for write in writes {
            by_room.entry(write.room()).or_default().push(write.clone());
        }
        if by_room.len() == 1 || error == StoreError::Busy {
            return by_room.into_keys().map(|room| (room.clone(), error.clone())).collect();
        }
        by_room
            .into_iter()
            .filter_map(|(room, writes)| {
                let error = contained(|| self.store.commit(&writes)).err()?;
                Some((room.clone(), error))
            })
            .collect()
    }
}

impl<S, T, D> fmt::Debug for GroupCommit<S, T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupCommit").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

/// Makes a panic an error.
///
/// What `f` borrows may be left half changed by a panic. For a job that is nothing, as it is consumed; a
/// store says with its next answer whether it can go on.
fn contained<R>(f: impl FnOnce() -> Result<R, StoreError>) -> Result<R, StoreError> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let message = panic_message(&*panic).to_owned();
        Err(StoreError::Panicked { message })
    })
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Results of jobs of this size are written before another job is run.
const PREPARED_BYTES_MAX: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_is_woken_only_for_what_it_waits_for() {
        let room = || RoomName::new("room").unwrap();
        let append = || Request::Append { room: room(), seq: 1, update: Bytes::from_static(b"update") };
        let compact = || Request::Compact { room: room(), seq: 1, job: Job::new(|| (Vec::new(), ())) };
        let wakes = |waits_for, tell: &dyn Fn(&Queue<usize, ()>)| {
            let queue = Queue::new();
            queue.lock().waits_for = waits_for;
            tell(&queue);
            queue.lock().waits_for == WaitsFor::Nothing
        };
        assert!(!wakes(WaitsFor::Urgent, &|queue| queue.submit(0, append())));
        assert!(!wakes(WaitsFor::Urgent, &|queue| queue.submit(0, Request::Unload(room()))));
        assert!(wakes(WaitsFor::Urgent, &|queue| queue.submit(0, Request::Load(room()))));
        assert!(wakes(WaitsFor::Urgent, &|queue| queue.submit(0, compact())));
        assert!(wakes(WaitsFor::Urgent, &Queue::hurry));
        assert!(wakes(WaitsFor::Urgent, &Queue::close));
        assert!(wakes(WaitsFor::Anything, &|queue| queue.submit(0, append())));
    }
}
