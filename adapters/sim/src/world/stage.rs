//! A world that a test directs.

use std::{
    fmt,
    io::Write,
    task::{Context, Waker},
    time::{Duration, Instant},
};

use yrs::{Doc, Transaction, TransactionMut};
use yrs_websocket::{Input, RoomName, view::ViewError};
use yrs_websocket_host::{Client, ClientOptions, Counters, Host, Options};
use yrs_websocket_store::{MemoryStore, Store};

use super::{Application, Event, World, watched};
use crate::{
    Plan, Violation,
    disk::{Content, Mood},
    network::{LinkId, SimSocket, Weather},
    random::Random,
    trace::Trace,
};

/// A simulated world in which nothing happens but what its owner wants: servers are started and stopped,
/// clients join, lines are cut when it says so.
///
/// Where [`run`](crate::run) tries what may happen, this is for tests that know what is to happen, of hooks and
/// stores say. Its seed decides how long bytes and the disk take, within milliseconds, and how reads and
/// writes are torn; the same seed and the same calls give the same run. Nothing of it sleeps, or reads a
/// clock: time passes in [`Stage::step`] only. Checks of [`run`](crate::run) that concern single steps run
/// here, too, save that nothing shows here what clients have made, so what is acknowledged is for the test to
/// look for. A violation it is as well if an honest client is closed for what it said (1002 to 1009), or if a site
/// has taken two million steps. `commit_interval` counts for nothing: the disk's own time gathers writes.
///
/// ```
/// use std::time::Duration;
///
/// use yrs::{Doc, GetString, Text, Transact};
/// use yrs_websocket_host::{ClientOptions, Options};
/// use yrs_websocket_sim::{Stage, Violation};
/// use yrs_websocket_store::MemoryStore;
///
/// let mut stage = Stage::new(7);
/// let site = stage.site();
/// stage.start(site, Options::default(), Box::new(MemoryStore::new()));
/// let docs = [1, 2].map(Doc::with_client_id);
/// let [alice, bob] = docs.clone().map(|doc| stage.join(site, doc, ClientOptions::new("example", "notes")));
///
/// docs[0].get_or_insert_text("text").push(&mut docs[0].transact_mut(), "x");
/// let text = docs[1].get_or_insert_text("text");
/// let has_arrived = stage.until(Duration::from_secs(1), |stage| {
///     text.get_string(&docs[1].transact()) == "x" && !stage.client(alice).handle().has_unacknowledged()
/// })?;
/// assert!(has_arrived && stage.client(bob).handle().is_synced());
/// # Ok::<(), Violation>(())
/// ```
pub struct Stage {
    seed: u64,
    epoch: Instant,
    now: Duration,
    sites: Vec<World<'static>>,
    violation: Option<Violation>,
}

/// A place of a [`Stage`] where a server can run: it keeps its clients and its disk when the server ends.
/// On another stage it means another place, or none: then what is given it panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site(usize);

/// A client on a [`Stage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Actor {
    site: Site,
    index: usize,
}

/// A connection to a server of a [`Stage`] at whose other end bytes are written and read by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wire {
    site: Site,
    link: LinkId,
}

impl Stage {
    /// Makes an empty one.
    pub fn new(seed: u64) -> Self {
        #[allow(clippy::disallowed_methods, reason = "an arbitrary start: only distances from it matter")]
        let epoch = Instant::now();
        Self { seed, epoch, now: Duration::ZERO, sites: Vec::new(), violation: None }
    }

    /// Makes a place for a server; none runs there yet.
    pub fn site(&mut self) -> Site {
        let number = self.sites.len();
        let mut random = Random::fork(self.seed, number as u64);
        let plan = Plan::empty(random.next());
        let store = Box::new(MemoryStore::new());
        let mut world = World::new(plan, store, Default::default(), Trace::new(None));
        world.epoch = self.epoch;
        world.pass_until(self.now);
        world.network.borrow_mut().weather = Weather {
            latency_max: Duration::from_millis(random.pick(&[1, 5, 20])),
            torn: random.pick(&[0, 100, 500]),
            capacity: random.pick(&[2000, 8000, 64 << 10]),
        };
        let latency_max = Duration::from_millis(random.pick(&[1, 10, 50]));
        world.disk.mood = Mood { latency_max, ..Mood::default() };
        self.sites.push(world);
        Site(number)
    }

    /// Writes a readable log of what happens at a site, from now on.
    pub fn log_to(&mut self, site: Site, log: Box<dyn Write>) {
        self.world(site).trace.log_to(log);
    }

    /// Starts a server, unless one runs there. The store is asked on this thread, and must have whatever the
    /// stores of earlier servers of this site have committed.
    pub fn start(&mut self, site: Site, mut options: Options, store: Box<dyn Store>) {
        let world = self.world(site);
        if world.host.is_some() {
            return;
        }
        options.hooks = watched(options.hooks, &world.found);
        world.handshake_timeout = Some(options.limits.handshake_timeout);
        world.options = options;
        world.disk.replace_store(store);
        world.start();
    }

    /// Lets a server refuse connections from now on, store everything, and send everybody away by the
    /// deadline. It runs until [`Stage::stop`].
    pub fn drain(&mut self, site: Site, deadline: Instant) {
        self.with_host(site, |host, now| host.drain(now, deadline));
    }

    /// Ends a server as a crash does: its connections are cut, and what the disk has not done is not done.
    pub fn stop(&mut self, site: Site) {
        self.world(site).stop();
    }

    /// Changes a document from the server's side; the room must be open.
    ///
    /// # Errors
    ///
    /// Those of [`yrs_websocket::Server::edit`].
    pub fn edit<R>(
        &mut self,
        site: Site,
        room: &RoomName,
        f: impl FnOnce(&mut TransactionMut<'_>) -> R,
    ) -> Result<R, ViewError> {
        self.with_host(site, |host, now| host.edit(now, room, f)).unwrap_or(Err(ViewError::RoomNotOpen))
    }

    /// Reads a document on the server; the room must be open.
    ///
    /// # Errors
    ///
    /// Those of [`yrs_websocket::Server::read`].
    pub fn read<R>(
        &mut self,
        site: Site,
        room: &RoomName,
        f: impl FnOnce(&Transaction<'_>) -> R,
    ) -> Result<R, ViewError> {
        self.with_host(site, |host, now| host.read(now, room, f)).unwrap_or(Err(ViewError::RoomNotOpen))
    }

    /// Gives the core of a server an input of the application's own, such as [`Input::AccessChanged`].
    pub fn input(&mut self, site: Site, input: Input) {
        self.with_host(site, |host, now| host.input(now, input));
    }

    /// Lets the disk of a site do nothing from now on, or work again.
    pub fn hold_disk(&mut self, site: Site, is_held: bool) {
        let world = self.world(site);
        for (time, due) in world.disk.hold(world.now, is_held) {
            world.schedule(time, Event::Disk(due));
        }
    }

    /// Lets a client of a document join a server, and try again and again while none runs there. It does
    /// nothing before the next step.
    pub fn join(&mut self, site: Site, doc: Doc, options: ClientOptions) -> Actor {
        let world = self.world(site);
        let index = world.applications.len();
        // Rooms are the affair of the request; what the client makes is not followed.
        let made = Content::default();
        world.applications.push(Application::with_options(0, doc, made, options, &mut world.random));
        world.at(Duration::ZERO, Event::ApplicationWakes(index));
        Actor { site, index }
    }

    /// Lets a client read nothing from now on, or read again.
    pub fn hold(&mut self, actor: Actor, is_held: bool) {
        let world = self.world(actor.site);
        let application = &mut world.applications[actor.index];
        application.asleep_until = if is_held { Duration::MAX } else { Duration::ZERO };
        if let Some(link) = application.link.filter(|_| !is_held) {
            world.at(Duration::ZERO, Event::ClientReads(link));
        }
    }

    /// Cuts the connection of a client, if it has one, within the next milliseconds: in the midst of
    /// whatever is on its way, which may be lost.
    pub fn cut(&mut self, actor: Actor) {
        let world = self.world(actor.site);
        if let Some(link) = world.applications[actor.index].link {
            let soon = world.millis(0, 5);
            world.at(soon, Event::Cut(link));
        }
    }

    /// Opens a connection. It has ended at once where no server runs.
    pub fn connect(&mut self, site: Site) -> Wire {
        let world = self.world(site);
        if world.host.is_none() {
            world.next_link += 1;
            return Wire { site, link: world.next_link };
        }
        let link = world.accept();
        world.wires.insert(link);
        Wire { site, link }
    }

    /// Writes to a connection; says how many bytes it has taken. Those that are too many may be written
    /// again after a step.
    pub fn write(&mut self, wire: Wire, bytes: &[u8]) -> usize {
        let world = self.world(wire.site);
        let mut network = world.network.borrow_mut();
        let len = network.torn(bytes.len());
        let (taken, arrives) = network.send_to_server(wire.link, &bytes[..len]);
        drop(network);
        let what = format_args!("link {} is written to:", wire.link);
        world.trace.bytes(world.now, what, &bytes[..taken]);
        if let Some(arrives) = arrives {
            world.schedule(arrives, Event::ServerReads(wire.link));
        }
        taken
    }

    /// Takes what has arrived at the near end of a connection, which may be nothing; `None` is the end, of it or
    /// by [`Stage::end`].
    pub fn receive(&mut self, wire: Wire) -> Option<Vec<u8>> {
        let world = self.world(wire.site);
        if !world.wires.contains(&wire.link) {
            return None;
        }
        let (bytes, is_at_end) = world.arrived(wire.link)?;
        if !bytes.is_empty() {
            world.trace.bytes(world.now, format_args!("link {} is read:", wire.link), &bytes);
        }
        (!is_at_end || !bytes.is_empty()).then_some(bytes)
    }

    /// Ends a connection behind what was written; what still comes is not received.
    pub fn end(&mut self, wire: Wire) {
        let world = self.world(wire.site);
        if world.wires.remove(&wire.link) {
            world.trace.line(world.now, format_args!("link {} is ended", wire.link));
            let mut network = world.network.borrow_mut();
            let arrives = network.now + network.latency();
            let ends = network.links.get_mut(&wire.link).map(|pipes| pipes.to_server.end(arrives));
            drop(network);
            if let Some(ends) = ends {
                world.schedule(ends, Event::ServerReads(wire.link));
            }
            world.forget_link(wire.link);
        }
    }

    /// Does what comes next, if that is due by a time. False where nothing is: then it is that time.
    ///
    /// # Errors
    ///
    /// What does not hold; and so from then on.
    pub fn step(&mut self, by: Instant) -> Result<bool, Violation> {
        if let Some(violation) = &self.violation {
            return Err(violation.clone());
        }
        for world in &mut self.sites {
            world.hear_bells();
        }
        let next = self.sites.iter().enumerate().filter_map(|(site, world)| Some((world.next()?, site)));
        let by = by.saturating_duration_since(self.epoch);
        let next = next.min().filter(|(at, _)| *at <= by);
        let result = match next {
            Some((_, site)) => {
                let world = &mut self.sites[site];
                let result = world.step();
                self.now = self.now.max(world.now);
                result
            }
            None => {
                self.now = self.now.max(by);
                Ok(())
            }
        };
        self.sites.iter_mut().for_each(|world| world.pass_until(self.now));
        self.note(result);
        match &self.violation {
            Some(violation) => Err(violation.clone()),
            None => Ok(next.is_some()),
        }
    }

    /// Does one step after another until something is so; false if it is not, as long as `limit` in the
    /// world.
    ///
    /// # Errors
    ///
    /// Those of [`Stage::step`].
    pub fn until(
        &mut self,
        limit: Duration,
        mut is_so: impl FnMut(&Self) -> bool,
    ) -> Result<bool, Violation> {
        let by = self.now() + limit;
        while !is_so(self) {
            if !self.step(by)? {
                return Ok(is_so(self));
            }
        }
        Ok(true)
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.epoch + self.now
    }

    /// Whether a server runs.
    pub fn is_running(&self, site: Site) -> bool {
        self.sites[site.0].host.is_some()
    }

    /// Whether a drain is over; or no server runs.
    pub fn is_drained(&self, site: Site) -> bool {
        self.sites[site.0].host.as_ref().is_none_or(Host::is_drained)
    }

    /// Whether every edit that the server has received is durable; or no server runs.
    pub fn is_durable(&self, site: Site) -> bool {
        self.sites[site.0].host.as_ref().is_none_or(|host| host.unstored_bytes() == 0)
    }

    /// What the server that runs has counted.
    pub fn counters(&self, site: Site) -> Counters {
        self.sites[site.0].host.as_ref().map(Host::counters).unwrap_or_default()
    }

    /// A client, for its handle and what it waits for.
    pub fn client(&self, actor: Actor) -> &Client {
        &self.sites[actor.site.0].applications[actor.index].client
    }

    /// Stands for everything that has happened: equal runs have equal hashes.
    pub fn trace_hash(&self) -> u64 {
        self.sites.iter().fold(0, |hash, world| hash.rotate_left(1) ^ world.trace.hash())
    }

    fn world(&mut self, site: Site) -> &mut World<'static> {
        &mut self.sites[site.0]
    }

    fn with_host<R>(&mut self, site: Site, f: impl FnOnce(&mut Host<SimSocket>, Instant) -> R) -> Option<R> {
        let world = self.world(site);
        let now = world.instant();
        let result = f(world.host.as_mut()?, now);
        let settled = world.settle();
        self.note(settled);
        Some(result)
    }

    fn note(&mut self, result: Result<(), Violation>) {
        if let Err(violation) = result {
            self.violation.get_or_insert(violation);
        }
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage")
            .field("seed", &self.seed)
            .field("now", &self.now)
            .field("sites", &self.sites.len())
            .field("violation", &self.violation)
            .finish()
    }
}

impl World<'_> {
    /// Wakes those whose bell has rung, within a moment.
    fn hear_bells(&mut self) {
        for index in 0..self.applications.len() {
            let mut context = Context::from_waker(Waker::noop());
            if self.applications[index].client.poll_bell(&mut context).is_ready() {
                let soon = self.millis(0, 1);
                self.at(soon, Event::ApplicationWakes(index));
            }
        }
    }
}
