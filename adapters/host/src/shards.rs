use std::{
    collections::hash_map::RandomState,
    fmt,
    hash::{BuildHasher, Hasher},
    io, mem,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Waker,
    thread,
    time::{Duration, Instant},
};

use yrs_websocket::{Access, ConnectionId, Input, RoomName, journal::Squashed, view::ViewError};
use yrs_websocket_store::{MemoryStore, Store, StoreThread};

use yrs_websocket_rfc6455::Refusal;

use crate::{
    Admitted, Bell, Completion, Counters, Host, Next, Options, Socket, Storage, Transaction, TransactionMut,
    shard_of, shard_of_connection,
};

/// A server: rooms on several [`Host`]s, each behind a lock, over one store.
///
/// A runtime serves connections by [`Shards::with`], and keeps the time of each host on a task or thread
/// of its own: sleep until [`Shards::arm`] says or its [bell](Shards::bell) rings, then
/// [`Shards::keep_time`]. An event loop does both by [`Shards::turn`].
pub struct Shards<S> {
    options: Options,
    clock: fn() -> Instant,
    shards: Box<[Shard<S>]>,
    store: Option<Arc<StoreThread<usize, Squashed>>>,
    /// Who accepts connections; `None` once nobody is to.
    acceptors: Mutex<Option<Vec<Waker>>>,
    accept_failures: AtomicU64,
    is_stopped: AtomicBool,
    is_store_ended: AtomicBool,
    drained: Bell,
}

/// What came of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Whether every edit that was received is durable. If not, those that are not were not
    /// acknowledged either, and their authors still have them.
    pub durable: bool,
}

/// A number from the system: the standard library seeds its hash maps from it.
pub fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// What close frames, and then the end of the store, may take beyond the deadline of a drain.
pub(crate) const DRAIN_GRACE: Duration = Duration::from_millis(500);

/// How long to wait after a connection could not be accepted, for want of file descriptors say.
pub const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

struct Shard<S> {
    locked: Mutex<Locked<S>>,
    bell: Bell,
    is_drained: AtomicBool,
}

struct Locked<S> {
    host: Host<S>,
    /// The deadline that who keeps the time knows.
    armed: Option<Instant>,
}

impl<S: Socket + Send + 'static> Shards<S> {
    /// Makes a server that keeps its documents in memory. `seed` is drawn from the system.
    pub fn in_memory(options: Options, count: usize, clock: fn() -> Instant, seed: u64) -> Arc<Self> {
        let storage = |shard| Storage::Inline(Box::new(MemoryStore::new()), shard);
        Arc::new(Self::new(options, count, clock, seed, None, storage))
    }

    /// Makes a server over a store, which gets a thread of its own.
    ///
    /// # Errors
    ///
    /// If the thread cannot be started.
    pub fn with_store(
        options: Options,
        count: usize,
        clock: fn() -> Instant,
        seed: u64,
        store: impl Store,
    ) -> io::Result<Arc<Self>> {
        // Weak: the hosts hold the store, whose thread would otherwise keep them, and itself, for ever.
        let made = Arc::new(OnceLock::<Weak<Self>>::new());
        let shards = Arc::clone(&made);
        let commit_interval = options.limits.commit_interval;
        let thread =
            StoreThread::spawn(store, commit_interval, move |mut completions: Vec<(usize, Completion)>| {
                let Some(shards) = shards.get().and_then(Weak::upgrade) else { return };
                completions.sort_by_key(|(shard, _)| *shard);
                let mut completions = completions.into_iter().peekable();
                while let Some((shard, first)) = completions.next() {
                    let mut of_shard = vec![first];
                    while let Some((_, completion)) = completions.next_if(|(next, _)| *next == shard) {
                        of_shard.push(completion);
                    }
                    shards.with(shard, |host, now| host.completed(now, of_shard));
                }
            })?;
        let thread = Arc::new(thread);
        let storage = |shard| Storage::Thread(Arc::clone(&thread), shard);
        let shards = Arc::new(Self::new(options, count, clock, seed, Some(Arc::clone(&thread)), storage));
        let _ = made.set(Arc::downgrade(&shards));
        Ok(shards)
    }

    fn new(
        options: Options,
        count: usize,
        clock: fn() -> Instant,
        seed: u64,
        store: Option<Arc<StoreThread<usize, Squashed>>>,
        storage: impl Fn(usize) -> Storage,
    ) -> Self {
        let shards = (0..count.max(1)).map(|index| Shard {
            locked: Mutex::new(Locked {
                host: Host::new(&options, storage(index), seed.wrapping_add(index as u64)),
                armed: None,
            }),
            bell: Bell::default(),
            is_drained: AtomicBool::new(false),
        });
        Self {
            shards: shards.collect(),
            options,
            clock,
            store,
            acceptors: Mutex::new(Some(Vec::new())),
            accept_failures: AtomicU64::new(0),
            is_stopped: AtomicBool::new(false),
            is_store_ended: AtomicBool::new(false),
            drained: Bell::default(),
        }
    }

    /// As [`with`](Self::with), for who keeps the time of the host as well: does what is due, and says for how
    /// long from the beginning of `f` on nothing will be, if not for ever. What changes that rings the
    /// [bell](Self::bell).
    pub fn turn(&self, shard: usize, f: impl FnOnce(&mut Host<S>, Instant)) -> Option<Duration> {
        let shard = &self.shards[shard];
        let mut locked = shard.lock();
        let now = (self.clock)();
        f(&mut locked.host, now);
        let mut next = locked.host.next_timeout();
        if next.is_some_and(|next| next <= now) {
            locked.host.timeout(now);
            next = locked.host.next_timeout();
        }
        locked.armed = next;
        self.look_whether_drained(shard, locked);
        next.map(|next| next.saturating_duration_since(now))
    }

    /// Lets a host do something, and who keeps its time know if something is due earlier now.
    pub fn with<R>(&self, shard: usize, f: impl FnOnce(&mut Host<S>, Instant) -> R) -> R {
        let shard = &self.shards[shard];
        let mut locked = shard.lock();
        let result = f(&mut locked.host, (self.clock)());
        let next = locked.host.next_timeout();
        if next.is_some_and(|next| locked.armed.is_none_or(|armed| next < armed)) {
            locked.armed = next;
            shard.bell.ring();
        }
        self.look_whether_drained(shard, locked);
        result
    }

    fn look_whether_drained(&self, shard: &Shard<S>, locked: MutexGuard<'_, Locked<S>>) {
        if locked.host.is_drained() && !shard.is_drained.swap(true, Ordering::Relaxed) {
            drop(locked);
            self.drained.ring();
        }
    }

    /// Lets a connection in: see [`Host::connect`].
    ///
    /// # Errors
    ///
    /// Those of [`Host::connect`]; and 503 where the server is stopped.
    pub fn connect(&self, socket: S, admitted: Admitted) -> Result<ConnectionId, (S, Refusal)> {
        self.with(self.of(admitted.room()), |host, now| {
            // Nobody keeps its time any more.
            if self.is_stopped() {
                Err((socket, Refusal::new(503)))
            } else {
                host.connect(now, socket, admitted)
            }
        })
    }

    /// What to do next about a connection: see [`Host::next`].
    pub fn next(&self, shard: usize, id: ConnectionId) -> Next {
        self.shards[shard].lock().host.next(id)
    }

    /// When [`Shards::keep_time`] has something to do for a host; it is taken to be known from now on.
    pub fn arm(&self, shard: usize) -> Option<Instant> {
        let mut locked = self.shards[shard].lock();
        locked.armed = locked.host.next_timeout();
        locked.armed
    }

    /// Rings when what [`Shards::arm`] said is no longer so, and when the server is stopped.
    pub fn bell(&self, shard: usize) -> &Bell {
        &self.shards[shard].bell
    }

    /// Does what is due in a host. False where the server is stopped: its connections are forgotten then,
    /// and nothing is left to be done.
    pub fn keep_time(&self, shard: usize) -> bool {
        let is_stopped = self.is_stopped();
        self.with(shard, |host, now| if is_stopped { host.all_ended(now) } else { host.timeout(now) });
        !is_stopped
    }

    /// Refuses connections from now on, makes everything durable, and sends everybody away one after
    /// another, by the deadline.
    pub fn drain(&self, deadline: Instant) {
        self.stop_accepting();
        if let Some(store) = &self.store {
            store.hurry();
        }
        for shard in 0..self.len() {
            self.with(shard, |host, now| host.drain(now, deadline));
        }
    }

    /// Drains, holds the thread up until that is over, and stops; about a second after the deadline if it
    /// comes to that.
    pub fn drain_and_wait(self: &Arc<Self>, deadline: Instant) -> Drained {
        let wait = |until: Instant, is_over: fn(&Self) -> bool| {
            while !is_over(self) && self.now() < until {
                self.drained.wait(Some(until.saturating_duration_since(self.now())));
            }
        };
        self.drain(deadline);
        wait(deadline + DRAIN_GRACE, Self::is_drained);
        let durable = self.is_durable();
        self.stop();
        self.end_store();
        wait(deadline + 2 * DRAIN_GRACE, Self::is_store_ended);
        Drained { durable }
    }

    /// Whether a drain is over.
    pub fn is_drained(&self) -> bool {
        self.shards.iter().all(|shard| shard.is_drained.load(Ordering::Relaxed))
    }

    /// Rings when a host's drain is over, and when the store has ended.
    pub fn drained(&self) -> &Bell {
        &self.drained
    }

    /// Ends everything, as a crash would: what is not durable is lost, and was not acknowledged.
    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.stop_accepting();
        for shard in &self.shards {
            shard.bell.ring();
        }
        self.drained.ring();
    }

    /// Lets the store finish what it was given, and ends its thread, on a thread of its own: a store that
    /// never answers must not hold up who ends a server, nor the runtime of who does.
    pub(crate) fn end_store(self: &Arc<Self>) {
        let shards = Arc::clone(self);
        let _ = thread::Builder::new().name("yrs-drain".into()).spawn(move || {
            if let Some(store) = &shards.store {
                store.shutdown();
            }
            shards.is_store_ended.store(true, Ordering::Relaxed);
            shards.drained.ring();
        });
    }

    pub(crate) fn is_store_ended(&self) -> bool {
        self.is_store_ended.load(Ordering::Relaxed)
    }

    /// Whether it was stopped.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    /// Whether every edit that was received is durable.
    pub fn is_durable(&self) -> bool {
        (0..self.len()).all(|shard| self.with(shard, |host, _| host.unstored_bytes() == 0))
    }

    /// Says that somebody accepts connections, to be woken when that is to end, by a drain or a stop. False
    /// where it has ended already.
    pub fn start_accepting(&self, waker: Waker) -> bool {
        let mut acceptors = self.acceptors();
        if let Some(acceptors) = &mut *acceptors {
            acceptors.push(waker);
        }
        acceptors.is_some()
    }

    /// Whether connections are to be accepted.
    pub fn is_accepting(&self) -> bool {
        self.acceptors().is_some()
    }

    /// A connection could not be accepted.
    pub fn accept_failed(&self) {
        self.accept_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// What has been counted, over all hosts.
    pub fn counters(&self) -> Counters {
        let accept_failures = self.accept_failures.load(Ordering::Relaxed);
        let mut counters = Counters { accept_failures, ..Counters::default() };
        for shard in 0..self.len() {
            counters.add(&self.with(shard, |host, _| host.counters()));
        }
        counters
    }

    /// Changes a document from the server's side; the room must be open. Its host waits for `f`, which
    /// must not call the server.
    ///
    /// # Errors
    ///
    /// Those of [`yrs_websocket::Server::edit`].
    pub fn edit<R>(
        &self,
        room: &RoomName,
        f: impl FnOnce(&mut TransactionMut<'_>) -> R,
    ) -> Result<R, ViewError> {
        self.with(self.of(room), |host, now| host.edit(now, room, f))
    }

    /// Reads a document; the room must be open. Its host waits for `f`, which must not call the server.
    ///
    /// # Errors
    ///
    /// Those of [`yrs_websocket::Server::read`].
    pub fn read<R>(&self, room: &RoomName, f: impl FnOnce(&Transaction<'_>) -> R) -> Result<R, ViewError> {
        self.with(self.of(room), |host, now| host.read(now, room, f))
    }

    /// Changes what a connection may do from now on; [`yrs_websocket::Event::Joined`] says which ones
    /// there are.
    pub fn set_access(&self, connection: ConnectionId, access: Access, expires_at: Option<Instant>) {
        let shard = shard_of_connection(connection);
        if shard < self.len() {
            self.with(shard, |host, now| {
                host.input(now, Input::AccessChanged { connection, access, expires_at });
            });
        }
    }

    /// Which host has a room.
    pub fn of(&self, room: &RoomName) -> usize {
        shard_of(room, self.len())
    }

    /// How many hosts there are.
    #[allow(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        self.shards.len()
    }

    /// Everything that was set.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The time.
    pub fn now(&self) -> Instant {
        (self.clock)()
    }

    fn stop_accepting(&self) {
        let acceptors = mem::take(&mut *self.acceptors());
        acceptors.into_iter().flatten().for_each(Waker::wake);
    }

    fn acceptors(&self) -> MutexGuard<'_, Option<Vec<Waker>>> {
        self.acceptors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Shard<S> {
    fn lock(&self) -> MutexGuard<'_, Locked<S>> {
        // What an application gives to `Shards::edit` may panic; the host is whole all the same.
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> fmt::Debug for Shards<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shards").field("len", &self.shards.len()).finish_non_exhaustive()
    }
}
