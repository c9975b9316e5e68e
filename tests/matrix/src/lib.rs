//! One body of tests on every server adapter against every client adapter, and in the simulated world.
//!
//! A [`Bench`] has a store that outlives its servers, a server that can be drained, killed and started
//! again at the same address, and clients. The bodies are in `tests/pairs.rs`. A body waits by
//! [`Bench::until`], and by what ends by itself, only: on a [`Machine`] it looks again whenever anything was
//! heard of a server, a client or a document; in a [`Simulated`] world it makes one thing happen after the
//! other. What it waits for in vain becomes a panic that says what everybody had.

mod adapters;
mod machine;
mod raw;
mod simulated;

use std::{
    fmt,
    io::{self, Read},
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use yrs::{
    Any, Doc, GetString, Map, ReadTxn, Text, Transact, TransactionMut, Update, types::ToJson,
    updates::decoder::Decode,
};
use yrs_websocket::{
    Event, RoomName,
    provider::{Event as ClientEvent, PresenceState},
    view::ViewError,
};
use yrs_websocket_host::{ClientHandle, ClientOptions, Counters, Options};
use yrs_websocket_store::{
    MemoryStore, Store, StoreError, Write,
    testing::{Faults, FlakyStore},
};

pub use adapters::{Adapter, AsyncStd, Rooms, Run, Server, Smol, Std, Tokio};
pub use machine::Machine;
pub use raw::{Heard, Raw};
pub use simulated::Simulated;

/// The room in which everybody meets who does not say otherwise.
pub const ROOM: &str = "notes";

/// Where servers and clients run: on a machine, or in a simulation.
pub trait World: fmt::Debug {
    /// Is beaten whenever something happens.
    fn pulse(&self) -> &Arc<Pulse>;

    /// The time there.
    fn now(&self) -> Instant;

    /// What takes longer hangs.
    fn patience(&self) -> Duration;

    /// Waits until something has happened since there were so many beats, which it updates; false if nothing
    /// does by the deadline.
    fn wait(&self, beats: &mut u64, deadline: Instant) -> bool;

    /// Makes a place for a server.
    fn place(&self) -> Box<dyn Place>;

    /// Lets a client of the server at an address run until it stops.
    fn join(&self, doc: Doc, options: ClientOptions, address: SocketAddr) -> (ClientHandle, Stopped);

    /// Opens a connection to the server at an address.
    fn connect(&self, address: SocketAddr) -> Box<dyn Stream>;

    /// Puts a valve before the server at an address.
    fn valve(&self, server: SocketAddr) -> Box<dyn Valve>;
}

/// Waits until a client has stopped; says whether there are changes that are not acknowledged.
pub type Stopped = Box<dyn FnOnce() -> bool>;

/// Where one server after another runs.
pub trait Place {
    /// Where it listens.
    fn address(&self) -> SocketAddr;

    /// Starts a server over a store with such faults, where none runs.
    fn start(&mut self, options: Options, store: TestStore, faults: &Faults);

    /// Ends the server well, by a deadline; says whether everything is durable.
    fn drain(&mut self, deadline: Instant) -> bool;

    /// Ends the server as it is.
    fn stop(&mut self);

    /// The rooms of the server, if one runs.
    fn rooms(&self) -> Option<&dyn Rooms>;
}

/// A connection to a server. To read from it and to write to it waits.
pub trait Stream: Read + io::Write {
    /// Ends it behind what was written.
    fn cut(&mut self);
}

/// A line between clients and a server that can be shut, and cut. While it is shut, nothing that the server
/// sends is read.
pub trait Valve {
    /// Where clients connect.
    fn address(&self) -> SocketAddr;

    /// Reads nothing more of what the server sends.
    fn shut(&self);

    /// Reads again.
    fn open(&self);

    /// Cuts all connections, and opens; new ones can be made.
    fn cut(&self);
}

/// A store, a server and its clients.
pub struct Bench {
    world: Rc<dyn World>,
    place: Box<dyn Place>,
    options: Options,
    disk: Disk,
    /// Makes the calls to the store of the server that runs fail or wait.
    pub faults: Faults,
    heard: Arc<Mutex<Vec<Event>>>,
    peers: Mutex<Vec<Arc<Shared>>>,
}

impl Bench {
    /// Starts a server in a world.
    pub fn new(world: Rc<dyn World>) -> Self {
        Self::with_options(world, |_| {})
    }

    /// The same, with options.
    pub fn with_options(world: Rc<dyn World>, change: impl FnOnce(&mut Options)) -> Self {
        let heard: Arc<Mutex<Vec<Event>>> = Arc::default();
        let mut options = Options::default();
        options.config.retry_delay_min = Duration::from_millis(1);
        options.config.retry_delay_max = Duration::from_millis(2);
        options.hooks.on_event = Some(Arc::new({
            let (heard, pulse) = (Arc::clone(&heard), Arc::clone(world.pulse()));
            move |event| {
                lock(&heard).push(event.clone());
                pulse.beat();
            }
        }));
        options.hooks.on_change = Some(Arc::new({
            let pulse = Arc::clone(world.pulse());
            move |_| pulse.beat()
        }));
        change(&mut options);
        let mut bench = Self {
            place: world.place(),
            world,
            options,
            disk: Disk::default(),
            faults: FlakyStore::new(MemoryStore::new()).1,
            heard,
            peers: Mutex::default(),
        };
        bench.start();
        bench
    }

    /// A second server in the same world, with a store of its own.
    pub fn another(&self) -> Self {
        Self::new(Rc::clone(&self.world))
    }

    /// Starts a server, at the address and over the store of the last one.
    pub fn start(&mut self) {
        assert!(self.place.rooms().is_none(), "one at a time");
        let (store, faults) = FlakyStore::new(self.disk.open(self.world.pulse()));
        self.faults = faults;
        self.place.start(self.options.clone(), store, &self.faults);
    }

    /// Ends the server well; says whether everything is durable.
    pub fn drain(&mut self) -> bool {
        self.drain_by(self.now() + self.world.patience())
    }

    /// The same, by a deadline.
    pub fn drain_by(&mut self, deadline: Instant) -> bool {
        self.place.drain(deadline)
    }

    /// Ends the server as SIGKILL does: from now on nothing of it reaches the store.
    pub fn kill(&mut self) {
        self.disk.lock().generation += 1;
        self.place.stop();
    }

    /// The time of its world.
    pub fn now(&self) -> Instant {
        self.world.now()
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.place.address()
    }

    /// The rooms of the server.
    pub fn rooms(&self) -> &dyn Rooms {
        self.place.rooms().expect("it runs")
    }

    /// What the server has counted.
    pub fn counters(&self) -> Counters {
        self.rooms().counters()
    }

    /// How often the server said something like this.
    pub fn heard(&self, is_it: impl Fn(&Event) -> bool) -> usize {
        lock(&self.heard).iter().filter(|event| is_it(event)).count()
    }

    /// How many connections are in the room, as the server told.
    pub fn present(&self) -> usize {
        self.heard(|event| matches!(event, Event::Joined { .. }))
            - self.heard(|event| matches!(event, Event::Left { .. }))
    }

    /// The connections that joined, in order.
    pub fn joined(&self) -> Vec<yrs_websocket::ConnectionId> {
        let heard = lock(&self.heard);
        let joined = heard.iter().filter_map(|event| match event {
            Event::Joined { connection, .. } => Some(*connection),
            _ => None,
        });
        joined.collect()
    }

    /// Lets a client join the room. `id` is that of its document.
    pub fn join(&self, id: u64) -> Peer {
        self.join_with(id, |_| {})
    }

    /// The same, with options.
    pub fn join_with(&self, id: u64, change: impl FnOnce(&mut ClientOptions)) -> Peer {
        self.join_at(self.address(), Doc::with_client_id(id), change)
    }

    /// Lets a client of a document join over an address.
    pub fn join_at(&self, address: SocketAddr, doc: Doc, change: impl FnOnce(&mut ClientOptions)) -> Peer {
        let shared = Arc::new(Shared { doc: doc.clone(), heard: Mutex::default() });
        let mut options = ClientOptions::new(address.to_string(), ROOM);
        options.provider.retry_delay_min = Duration::from_millis(1);
        options.provider.retry_delay_max = Duration::from_millis(20);
        options.on_event = Some(Arc::new({
            let (shared, pulse) = (Arc::clone(&shared), Arc::clone(self.world.pulse()));
            move |event| {
                lock(&shared.heard).push(event.clone());
                pulse.beat();
            }
        }));
        change(&mut options);
        let pulse = Arc::clone(self.world.pulse());
        let observed = doc.observe_update_v1(Arc::as_ptr(&shared) as usize, move |_, _| pulse.beat());
        observed.unwrap();
        let (handle, stopped) = self.world.join(doc, options, address);
        lock(&self.peers).push(Arc::clone(&shared));
        Peer { shared, handle, world: Rc::clone(&self.world), stopped: Some(stopped) }
    }

    /// A client of bytes, for what ours would not send.
    pub fn raw(&self) -> Raw {
        Raw::connect(&self.world, self.address(), ROOM)
    }

    /// A connection without a WebSocket.
    pub fn connect(&self) -> Box<dyn Stream> {
        self.world.connect(self.address())
    }

    /// A line to the server that can be shut, and cut; it is open.
    pub fn valve(&self) -> Box<dyn Valve> {
        self.world.valve(self.address())
    }

    /// Waits until something is so.
    ///
    /// # Panics
    ///
    /// If it is not so after the [patience](World::patience) of the world: then something hangs. Says what
    /// everybody had.
    #[track_caller]
    pub fn until(&self, mut is_so: impl FnMut() -> bool) {
        let patience = self.world.patience();
        let deadline = self.now() + patience;
        let mut beats = 0;
        while !is_so() {
            if !self.world.wait(&mut beats, deadline) {
                panic!("nothing has changed that for {patience:?}:\n{self:?}");
            }
        }
    }

    /// Waits until all of these have synced, and everything is acknowledged.
    #[track_caller]
    pub fn settle(&self, peers: &[&Peer]) {
        self.until(|| peers.iter().all(|peer| peer.handle.is_synced() && !peer.handle.has_unacknowledged()));
    }

    /// Waits until all of these have this text.
    #[track_caller]
    pub fn until_text(&self, peers: &[&Peer], text: &str) {
        self.until(|| peers.iter().all(|peer| peer.text() == text));
    }

    /// Waits until all of these have the same text of such a length, in bytes.
    #[track_caller]
    pub fn until_len(&self, peers: &[&Peer], len: usize) {
        self.until(|| peers.iter().all(|peer| peer.text().len() == len));
        assert!(peers.iter().all(|peer| peer.text() == peers[0].text()), "{self:?}");
    }

    /// Edits the room's document on the server.
    pub fn edit(&self, mut f: impl FnMut(&mut TransactionMut<'_>)) -> Result<(), ViewError> {
        self.rooms().edit(&room(), &mut f)
    }

    /// A root of the room's document on the server, as JSON; undefined where the room is not open.
    pub fn json(&self, root: &str) -> Any {
        let mut json = Any::Undefined;
        let read = &mut |transaction: &yrs::Transaction<'_>| {
            json = transaction.get_map(root).map_or(Any::Undefined, |map| map.to_json(transaction));
        };
        let _ = self.rooms().read(&room(), read);
        json
    }

    /// The text that the next server would find.
    pub fn stored(&self) -> String {
        text_of(&self.disk.document())
    }
}

impl fmt::Debug for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stored = short(&self.stored());
        let counters = self.place.rooms().map(Rooms::counters);
        writeln!(
            f,
            "{:?}\nserver: {counters:?}\nstored: {stored}\nheard: {:?}",
            self.world,
            lock(&self.heard)
        )?;
        lock(&self.peers).iter().try_for_each(|peer| writeln!(f, "{peer:?}"))
    }
}

/// A client, and what happens to it. Its drop lets it leave.
pub struct Peer {
    shared: Arc<Shared>,
    /// Its handle.
    pub handle: ClientHandle,
    world: Rc<dyn World>,
    stopped: Option<Stopped>,
}

struct Shared {
    doc: Doc,
    heard: Mutex<Vec<ClientEvent>>,
}

impl Peer {
    /// Its document.
    pub fn doc(&self) -> &Doc {
        &self.shared.doc
    }

    /// Its id.
    pub fn id(&self) -> yrs_websocket::update::ClientId {
        yrs_websocket::update::ClientId::new(self.doc().client_id().get()).unwrap()
    }

    /// Writes behind the text.
    pub fn write(&self, text: &str) {
        let root = self.doc().get_or_insert_text("text");
        root.push(&mut self.doc().transact_mut(), text);
    }

    /// The text.
    pub fn text(&self) -> String {
        text_of(self.doc())
    }

    /// Sets a key of the map.
    pub fn set(&self, key: &str, value: impl Into<Any>) {
        let root = self.doc().get_or_insert_map("map");
        root.insert(&mut self.doc().transact_mut(), key, value.into());
    }

    /// A key of the map.
    pub fn get(&self, key: &str) -> Option<Any> {
        let root = self.doc().get_or_insert_map("map");
        let transaction = self.doc().transact();
        root.get(&transaction, key).map(|value| value.to_json(&transaction))
    }

    /// A root that is a map, as JSON.
    pub fn json(&self, root: &str) -> Any {
        let root = self.doc().get_or_insert_map(root);
        root.to_json(&self.doc().transact())
    }

    /// Is present with a state.
    pub fn appear(&self, json: &str) {
        self.handle.set_presence(Some(PresenceState::new(json).unwrap()));
    }

    /// What it sees of somebody's presence.
    pub fn sees(&self, other: &Self) -> Option<String> {
        let state = self.handle.presence().remove(&other.id())?;
        Some(String::from_utf8(state.to_vec()).unwrap())
    }

    /// How often it heard something like this.
    pub fn heard(&self, is_it: impl Fn(&ClientEvent) -> bool) -> usize {
        lock(&self.shared.heard).iter().filter(|event| is_it(event)).count()
    }

    /// How often it has synced.
    pub fn syncs(&self) -> usize {
        self.heard(|event| *event == ClientEvent::Synced)
    }

    /// Leaves, and waits for that; says whether everything was acknowledged.
    pub fn leave(mut self) -> bool {
        self.handle.leave(self.world.now() + self.world.patience());
        !self.stopped.take().expect("nobody else has taken it")()
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever hangs may do so within a transaction.
        let text = self
            .doc
            .try_transact()
            .ok()
            .and_then(|transaction| Some(short(&transaction.get_text("text")?.get_string(&transaction))));
        write!(f, "client {}: {text:?} {:?}", self.doc.client_id(), lock(&self.heard))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.handle.leave(self.world.now());
    }
}

/// A store that outlives its servers, as a disk does.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<Content>>);

#[derive(Default)]
struct Content {
    store: MemoryStore,
    /// Which server may write: the one before may still have something to say when it is killed.
    generation: usize,
}

impl Disk {
    fn open(&self, pulse: &Arc<Pulse>) -> OpenDisk {
        OpenDisk { disk: self.clone(), generation: self.lock().generation, pulse: Arc::clone(pulse) }
    }

    fn document(&self) -> Doc {
        let doc = Doc::with_client_id(999);
        for update in self.lock().store.load(&room()).unwrap() {
            doc.transact_mut().apply_update(Update::decode_v1(&update).unwrap()).unwrap();
        }
        doc
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        lock(&self.0)
    }
}

/// What a server has of a [`Bench`]'s store.
pub type TestStore = FlakyStore<OpenDisk>;

/// A disk, as one server has it.
pub struct OpenDisk {
    disk: Disk,
    generation: usize,
    pulse: Arc<Pulse>,
}

impl Store for OpenDisk {
    fn load(&mut self, room: &RoomName) -> Result<Vec<Bytes>, StoreError> {
        self.disk.lock().store.load(room)
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        let mut content = self.disk.lock();
        if content.generation != self.generation {
            return Err(StoreError::Io { message: "this server was killed".into() });
        }
        content.store.commit(writes)?;
        drop(content);
        self.pulse.beat();
        Ok(())
    }
}

impl fmt::Debug for OpenDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenDisk").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// Counts whatever happens, for who waits for something to happen.
#[derive(Debug, Default)]
pub struct Pulse {
    beats: Mutex<u64>,
    changed: Condvar,
}

impl Pulse {
    fn beat(&self) {
        *lock(&self.beats) += 1;
        self.changed.notify_all();
    }

    /// Waits for more beats than these; `None` if there are none by the deadline.
    fn wait(&self, beats: u64, deadline: Instant) -> Option<u64> {
        let mut count = lock(&self.beats);
        while *count == beats {
            let left = deadline.checked_duration_since(now()).filter(|left| !left.is_zero())?;
            count = self.changed.wait_timeout(count, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(*count)
    }
}

fn room() -> RoomName {
    RoomName::new(ROOM).unwrap()
}

fn text_of(doc: &Doc) -> String {
    let root = doc.get_or_insert_text("text");
    root.get_string(&doc.transact())
}

fn short(text: &str) -> String {
    let start: String = text.chars().take(100).collect();
    format!("{} bytes, {start:?}", text.len())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time of this machine.
#[allow(clippy::disallowed_methods, reason = "these are the real adapters")]
fn now() -> Instant {
    Instant::now()
}
