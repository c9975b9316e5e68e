use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    io, mem,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    runtime,
    sync::{Notify, oneshot, watch},
    time,
};
use yrs_websocket::{Access, ConnectionId, Input, RoomName};
use yrs_websocket_host::{
    Admitted, Completion, Counters, Host, Options, Storage, shard_of, shard_of_connection,
};
use yrs_websocket_store::{MemoryStore, Store, StoreThread};

use crate::connection::{self, Socket};

/// Serves Yjs rooms on a listener, kept in memory, for as long as the future lives.
///
/// # Errors
///
/// If the threads cannot be started.
pub async fn serve(listener: TcpListener, options: Options) -> io::Result<()> {
    let shards = thread::available_parallelism().map_or(1, Into::into);
    Service::in_memory(options, shards)?.serve(listener).await;
    Ok(())
}

/// A running server: rooms on shards, and their store.
///
/// Dropping the last handle ends it as a crash would, with all its connections: what is not durable is
/// lost, and was not acknowledged. [`Service::drain`] ends it well.
#[derive(Clone, Debug)]
pub struct Service {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    shards: Arc<[Arc<Shard>]>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    store: Option<Arc<StoreThread<usize, yrs_websocket::journal::Squashed>>>,
    accepting: watch::Sender<bool>,
    accept_failures: AtomicU64,
    /// Ends the threads of the shards; so does its drop.
    stop: watch::Sender<bool>,
}

/// What came of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Whether every edit that was received is durable. If not, those that are not were not
    /// acknowledged either, and their authors still have them.
    pub durable: bool,
}

/// One host, and the thread that owns most of its connections.
#[derive(Debug)]
pub(crate) struct Shard {
    locked: Mutex<Locked>,
    /// The next deadline has become earlier than the timer knows.
    timer: Notify,
    drained: watch::Sender<bool>,
    runtime: runtime::Handle,
}

#[derive(Debug)]
struct Locked {
    host: Host<Socket>,
    armed: Option<Instant>,
}

impl Service {
    /// Starts a server that keeps its documents in memory.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started.
    pub fn in_memory(options: Options, shards: usize) -> io::Result<Self> {
        Self::start(options, shards, None, |shard| Storage::Inline(Box::new(MemoryStore::new()), shard))
    }

    /// Starts a server over a store, which gets a thread of its own.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started.
    pub fn with_store(options: Options, shards: usize, store: impl Store) -> io::Result<Self> {
        // Weak: the hosts hold the store, whose thread would otherwise keep them, and itself, for ever.
        let started = Arc::new(OnceLock::<Vec<Weak<Shard>>>::new());
        let shards_of_store = Arc::clone(&started);
        let thread = StoreThread::spawn(store, move |mut completions: Vec<(usize, Completion)>| {
            let Some(shards) = shards_of_store.get() else { return };
            completions.sort_by_key(|(shard, _)| *shard);
            let mut completions = completions.into_iter().peekable();
            while let Some((shard, first)) = completions.next() {
                let mut of_shard = vec![first];
                while let Some((_, completion)) = completions.next_if(|(next, _)| *next == shard) {
                    of_shard.push(completion);
                }
                if let Some(shard) = shards[shard].upgrade() {
                    shard.with(|host, now| host.completed(now, of_shard));
                }
            }
        })?;
        let thread = Arc::new(thread);
        let storage = |shard| Storage::Thread(Arc::clone(&thread), shard);
        let service = Self::start(options, shards, Some(Arc::clone(&thread)), storage)?;
        let _ = started.set(service.shared.shards.iter().map(Arc::downgrade).collect());
        Ok(service)
    }

    fn start(
        options: Options,
        shards: usize,
        store: Option<Arc<StoreThread<usize, yrs_websocket::journal::Squashed>>>,
        storage: impl Fn(usize) -> Storage,
    ) -> io::Result<Self> {
        // Where a later thread cannot be started, its drop ends the earlier ones.
        let stop = watch::Sender::new(false);
        let mut threads = Vec::new();
        let shards = (0..shards.max(1)).map(|index| {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let shard = Arc::new(Shard {
                locked: Mutex::new(Locked { host: Host::new(&options, storage(index), seed()), armed: None }),
                timer: Notify::new(),
                drained: watch::Sender::new(false),
                runtime: runtime.handle().clone(),
            });
            let running = Arc::clone(&shard).run(stop.subscribe());
            let thread = thread::Builder::new().name(format!("yrs-shard-{index}"));
            threads.push(thread.spawn(move || runtime.block_on(running))?);
            Ok(shard)
        });
        let shards = shards.collect::<io::Result<Arc<[_]>>>()?;
        let shared = Shared {
            options,
            shards,
            threads: Mutex::new(threads),
            store,
            accepting: watch::Sender::new(true),
            accept_failures: AtomicU64::new(0),
            stop,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Accepts connections until [`Service::drain`] is called. A listener that fails to accept, for want
    /// of file descriptors say, is asked again a moment later; [`Counters::accept_failures`] counts that.
    pub async fn serve(&self, listener: TcpListener) {
        let mut accepting = self.shared.accepting.subscribe();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = accepting.wait_for(|accepting| !accepting) => return,
            };
            match accepted {
                Ok((stream, _)) => drop(tokio::spawn(self.clone().serve_tcp(stream))),
                Err(_) => {
                    self.shared.accept_failures.fetch_add(1, Ordering::Relaxed);
                    time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
    }

    /// Serves a connection that may be anything; reads its request first.
    ///
    /// # Errors
    ///
    /// Those of the stream before the upgrade; afterwards the end of the stream is the end.
    pub async fn accept_stream(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        match connection::read_request(&mut stream, &self.shared.options).await? {
            Some(admitted) => self.serve_stream(stream, admitted).await,
            None => Ok(()),
        }
    }

    /// Serves a connection whose upgrade has been made, or only read:
    /// [`Admitted::after_upgrade`], or a [`yrs_websocket_host::Upgrade`]. Returns when it ends.
    ///
    /// # Errors
    ///
    /// Those of the stream.
    pub async fn serve_stream(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        admitted: Admitted,
    ) -> io::Result<()> {
        connection::serve_stream(self.shard(admitted.room()), stream, admitted).await
    }

    /// Refuses connections from now on, makes everything durable, sends everybody away one after
    /// another, and ends the threads; about a second after the deadline if it comes to that.
    pub async fn drain(&self, deadline: Instant) -> Drained {
        self.shared.accepting.send_replace(false);
        for shard in &*self.shared.shards {
            shard.with(|host, now| host.drain(now, deadline));
        }
        let all = async {
            for shard in &*self.shared.shards {
                shard.drained().await;
            }
        };
        let _ = time::timeout_at((deadline + DRAIN_GRACE).into(), all).await;
        let durable = self.shared.shards.iter().all(|shard| shard.with(|host, _| host.unstored_bytes() == 0));
        self.shared.stop.send_replace(true);
        let threads = mem::take(&mut *self.shared.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let store = self.shared.store.clone();
        let (ended, all_ended) = oneshot::channel();
        // Not one of the runtime's blocking threads: a store that never answers would hold up the end of
        // the runtime as well.
        let _ = thread::Builder::new().name("yrs-drain".into()).spawn(move || {
            for thread in threads {
                let _ = thread.join();
            }
            if let Some(store) = store {
                store.shutdown();
            }
            let _ = ended.send(());
        });
        let _ = time::timeout_at((deadline + 2 * DRAIN_GRACE).into(), all_ended).await;
        Drained { durable }
    }

    /// What has been counted, over all shards.
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        counters.accept_failures = self.shared.accept_failures.load(Ordering::Relaxed);
        for shard in &*self.shared.shards {
            counters.add(&shard.with(|host, _| host.counters()));
        }
        counters
    }

    /// Changes a document from the server's side; the room must be open. Its shard waits for `f`, which
    /// must not call the service.
    ///
    /// # Errors
    ///
    /// Those of [`yrs_websocket::Server::edit`].
    pub fn edit<R>(
        &self,
        room: &RoomName,
        f: impl FnOnce(&mut yrs_websocket_host::TransactionMut<'_>) -> R,
    ) -> Result<R, yrs_websocket::view::ViewError> {
        self.shard(room).with(|host, now| host.edit(now, room, f))
    }

    /// Reads a document; the room must be open. Its shard waits for `f`, which must not call the service.
    ///
    /// # Errors
    ///
    /// Those of [`yrs_websocket::Server::read`].
    pub fn read<R>(
        &self,
        room: &RoomName,
        f: impl FnOnce(&yrs_websocket_host::Transaction<'_>) -> R,
    ) -> Result<R, yrs_websocket::view::ViewError> {
        self.shard(room).with(|host, now| host.read(now, room, f))
    }

    /// Changes what a connection may do from now on; [`yrs_websocket::Event::Joined`] says which ones
    /// there are.
    pub fn set_access(&self, connection: ConnectionId, access: Access, expires_at: Option<Instant>) {
        if let Some(shard) = self.shared.shards.get(shard_of_connection(connection)) {
            shard.with(|host, now| host.input(now, Input::AccessChanged { connection, access, expires_at }));
        }
    }

    async fn serve_tcp(self, mut stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let Ok(Some(admitted)) = connection::read_request(&mut stream, &self.shared.options).await else {
            return;
        };
        // It moves to the runtime of its room's shard.
        let Ok(stream) = stream.into_std() else { return };
        let shard = self.shard(admitted.room());
        let runtime = shard.runtime.clone();
        runtime.spawn(connection::serve_tcp(shard, stream, admitted));
    }

    fn shard(&self, room: &RoomName) -> Arc<Shard> {
        let shards = &self.shared.shards;
        Arc::clone(&shards[shard_of(room, shards.len())])
    }
}

impl Shard {
    /// Lets the host do something, and the timer know if something is due earlier now.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Host<Socket>, Instant) -> R) -> R {
        let mut locked = self.lock();
        #[allow(clippy::disallowed_methods, reason = "an adapter reads the clock")]
        let result = f(&mut locked.host, Instant::now());
        let next = locked.host.next_timeout();
        if next.is_some_and(|next| locked.armed.is_none_or(|armed| next < armed)) {
            locked.armed = next;
            self.timer.notify_one();
        }
        if locked.host.is_drained() {
            self.drained.send_replace(true);
        }
        result
    }

    /// Keeps the time, until it is to stop; then drops all connections, whoever serves them.
    async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        loop {
            let next = {
                let mut locked = self.lock();
                locked.armed = locked.host.next_timeout();
                locked.armed
            };
            let due = async {
                match next {
                    Some(next) => time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => self.with(|host, now| host.timeout(now)),
                () = self.timer.notified() => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        self.with(|host, now| host.all_ended(now));
    }

    async fn drained(&self) {
        let _ = self.drained.subscribe().wait_for(|drained| *drained).await;
    }

    fn lock(&self) -> MutexGuard<'_, Locked> {
        // What an application gives to `Service::edit` may panic; the host is whole all the same.
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number from the system: the standard library seeds its hash maps from it.
pub(crate) fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Time to look for a file descriptor again.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// What close frames, and then the end of the store, may take beyond the deadline of a drain.
const DRAIN_GRACE: Duration = Duration::from_millis(500);
