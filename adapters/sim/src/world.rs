//! The world: one queue of events, one clock, and what everybody does when something comes.

mod applications;
mod clients;
mod fate;
mod presence;
mod server;
mod stage;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use bytes::Bytes;
use yrs_websocket::{Access, Config, ConnectionId, RoomName, journal::Squashed, update::SquashOptions};
use yrs_websocket_host::{Admission, Hooks, Host, Options, Upgrade, rfc6455};
use yrs_websocket_store::{MemoryStore, Request, Store};

use self::applications::Application;
pub use self::stage::{Actor, Site, Stage, Wire};
use crate::{
    Fault, Plan, Violation,
    checks::{self, Member},
    client::{Client, Hostile},
    disk::{Content, Disk, Due, Mood},
    network::{LinkId, Network, SimSocket, Weather},
    random::Random,
    replay::panic_message,
    steps::{Found, Watch},
    trace::Trace,
};

/// What came of a world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The plan.
    pub plan: Plan,
    /// What did not hold, if anything.
    pub violation: Option<Violation>,
    /// How many events there were.
    pub steps: u64,
    /// How much time passed in the world.
    pub passed: Duration,
    /// Stands for the whole trace: equal traces have equal hashes.
    pub trace_hash: u64,
}

/// What of a world is the caller's own.
#[non_exhaustive]
pub struct Setup<'a> {
    /// Where documents are kept: an empty store. It is asked on this thread, survives crashes of the
    /// simulated server, and what it has committed must be there whenever a room is loaded.
    pub store: Box<dyn Store>,
    /// The hooks of the server. Those that keep honest clients out, or their frames from the core, make
    /// worlds that do not hold.
    pub hooks: Hooks,
    /// Where a readable log goes.
    pub log: Option<&'a mut dyn Write>,
}

impl Default for Setup<'_> {
    /// A store in memory, no hooks, no log.
    fn default() -> Self {
        Self { store: Box::new(MemoryStore::new()), hooks: Hooks::default(), log: None }
    }
}

impl fmt::Debug for Setup<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup").field("hooks", &self.hooks).finish_non_exhaustive()
    }
}

/// Runs a world with a store in memory; writes a readable log, if there is a place for it.
pub fn run(plan: &Plan, log: Option<&mut dyn Write>) -> Outcome {
    run_with(plan, Setup { log, ..Setup::default() })
}

/// Runs a world with a store or hooks of the caller's own.
pub fn run_with(plan: &Plan, setup: Setup<'_>) -> Outcome {
    let Setup { store, hooks, log } = setup;
    let log = log.map(|log| Box::new(log) as Box<dyn Write + '_>);
    let mut world = World::new(plan.clone(), store, hooks, Trace::new(log));
    // A panic is a finding like any other; nothing of the world is used after it.
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    let violation = match result {
        Ok(result) => result.err(),
        Err(panic) => Some(Violation::new("nothing panics", panic_message(&*panic))),
    };
    if let Some(violation) = &violation {
        world.trace.line(world.now, format_args!("VIOLATION {violation}"));
    }
    Outcome {
        plan: plan.clone(),
        violation,
        steps: world.steps,
        passed: world.now,
        trace_hash: world.trace.hash(),
    }
}

/// Who is at the client's end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Client(usize),
    Hostile(usize),
}

#[derive(Debug, Clone, Copy)]
enum Event {
    ServerReads(LinkId),
    ServerWrites(LinkId),
    ClientReads(LinkId),
    ClientWrites(LinkId),
    ApplicationEdits(usize),
    ApplicationWakes(usize),
    Connect(Who),
    Edit(usize),
    Gesture(usize),
    Check(usize),
    Attack(usize),
    Chaos,
    Disk(Due),
    /// Only the step: what the world did without an event is picked up.
    Settle,
    Restart,
    Drained {
        incarnation: u64,
    },
    Cut(LinkId),
    /// The server has waited long enough for the rest of a request, or the end of a refused one.
    GivesUp(LinkId),
}

/// The server's end of a link.
enum End {
    Upgrading(Box<Upgrade>),
    Open {
        id: ConnectionId,
        shut: bool,
    },
    /// Refused: only its end is waited for.
    Refused,
}

struct World<'a> {
    plan: Plan,
    epoch: Instant,
    now: Duration,
    steps: u64,
    queue: BTreeMap<(Duration, u64), Event>,
    next_event: u64,
    random: Random,
    edits: Random,
    clock_steps: Random,
    options: Options,
    found: Found,
    network: Rc<RefCell<Network>>,
    host: Option<Host<SimSocket>>,
    incarnation: u64,
    requests: mpsc::Receiver<Request<Squashed>>,
    ends: BTreeMap<LinkId, End>,
    next_link: LinkId,
    links: BTreeMap<LinkId, Who>,
    disk: Disk,
    rooms: Vec<RoomName>,
    clients: Vec<Client>,
    hostiles: Vec<Hostile>,
    applications: Vec<Application>,
    /// Whose links these are.
    application_links: BTreeMap<LinkId, usize>,
    /// Links whose client's end is the affair of a [`Stage`].
    wires: BTreeSet<LinkId>,
    /// How long the server waits for the head of a request; without it for ever.
    handshake_timeout: Option<Duration>,
    /// Per room: what was made by those who are gone, or by the server, or by somebody hostile.
    strangers: Vec<Content>,
    /// Per room: everything that was acknowledged to anybody.
    acknowledged: Vec<Content>,
    /// Bytes of the largest document so far.
    largest: usize,
    calm: bool,
    /// Nothing of the storm can be felt any more: connections must not end.
    settled: bool,
    leaving: bool,
    paused_at: Option<Duration>,
    trace: Trace<'a>,
}

impl<'a> World<'a> {
    fn new(plan: Plan, store: Box<dyn Store>, hooks: Hooks, trace: Trace<'a>) -> Self {
        let seed = plan.seed;
        let mut random = Random::fork(seed, 2);
        #[allow(clippy::disallowed_methods, reason = "an arbitrary start: only distances from it matter")]
        let epoch = Instant::now() + CLOCK_BACK_MAX;
        let found = Found::default();
        let mut options = options(&plan, &mut Random::fork(seed, 3));
        options.hooks = own_hooks(hooks, epoch, &found);
        let latency = plan.rate(Fault::Latency);
        let weather = Weather {
            latency_max: Duration::from_millis(if latency > 0 { 10 + 5 * u64::from(latency) } else { 2 }),
            torn: plan.rate(Fault::Torn),
            capacity: if plan.rate(Fault::NarrowPipes) > 0 {
                random.pick(&[100, 300, 1000, 4000])
            } else {
                64 << 10
            },
        };
        let rooms: Vec<_> = (0..plan.rooms.max(1))
            .map(|room| RoomName::new(&format!("room-{room}")).expect("the name is plain"))
            .collect();
        let mut makes = Random::fork(seed, 4);
        let clients: Vec<_> = (0..plan.clients)
            .map(|index| {
                let viewer = index > 0 && makes.permille(100);
                let shy = makes.permille(100);
                let room = makes.index(rooms.len());
                // Some processes show several documents.
                let process = if makes.permille(300) { index / 2 } else { index };
                Client::new(room, viewer, shy, process, &mut makes, Duration::ZERO)
            })
            .collect();
        let hostiles =
            (0..plan.hostile).map(|_| Hostile::new(makes.index(rooms.len()), &mut makes)).collect();
        let mut makes = Random::fork(seed, 11);
        let applications = (0..plan.applications)
            .map(|_| {
                let room = makes.index(rooms.len());
                let doc = Application::new_document(&mut makes);
                Application::new(room, rooms[room].as_str(), doc, Content::default(), &mut makes)
            })
            .collect();
        let mut disk = Disk::new(store, rooms.clone(), Random::fork(seed, 5));
        let slow = u64::from(plan.rate(Fault::SlowDisk));
        disk.mood = Mood {
            latency_max: Duration::from_millis(2 + 10 * slow),
            write_errors: plan.rate(Fault::WriteErrors),
            false_errors: plan.rate(Fault::FalseErrors),
            load_errors: plan.rate(Fault::LoadErrors),
            outage_until: Duration::ZERO,
        };
        Self {
            epoch,
            now: Duration::ZERO,
            steps: 0,
            queue: BTreeMap::new(),
            next_event: 0,
            edits: Random::fork(seed, 6),
            clock_steps: Random::fork(seed, 9),
            network: Rc::new(RefCell::new(Network::new(weather, Random::fork(seed, 7)))),
            host: None,
            incarnation: 0,
            requests: mpsc::channel().1,
            ends: BTreeMap::new(),
            next_link: 0,
            links: BTreeMap::new(),
            disk,
            strangers: vec![Content::default(); rooms.len()],
            acknowledged: vec![Content::default(); rooms.len()],
            rooms,
            clients,
            hostiles,
            applications,
            application_links: BTreeMap::new(),
            wires: BTreeSet::new(),
            handshake_timeout: None,
            calm: false,
            settled: false,
            largest: 0,
            leaving: false,
            paused_at: None,
            random,
            options,
            found,
            plan,
            trace,
        }
    }

    fn run(&mut self) -> Result<(), Violation> {
        self.trace.line(self.now, format_args!("plan {}", self.plan));
        self.trace.line(self.now, format_args!("faults {:?}", self.plan.faults));
        self.start();
        for index in 0..self.clients.len() {
            let first = self.up_to(Duration::from_secs(2), 4);
            self.at(first, Event::Connect(Who::Client(index)));
            self.at(first, Event::Edit(index));
            self.at(first, Event::Gesture(index));
            self.at(first, Event::Check(index));
        }
        for index in 0..self.hostiles.len() {
            let first = self.up_to(Duration::from_secs(3), 4);
            self.at(first, Event::Connect(Who::Hostile(index)));
            self.at(first, Event::Attack(index));
        }
        for index in 0..self.applications.len() {
            let first = self.up_to(Duration::from_secs(2), 4);
            self.at(first, Event::ApplicationEdits(index));
        }
        self.at(self.plan.beat, Event::Chaos);
        self.run_until(self.plan.storm)?;
        self.heal()?;
        self.run_until(self.now + SETTLE)?;
        self.settled = true;
        self.run_until(self.now + CONVERGE)?;
        self.check_agreement()?;
        self.come_and_go()?;
        self.leave()?;
        let idle = self.options.config.idle_delay;
        self.run_until(self.now + idle * 2 + LEAVE)?;
        self.check_end()
    }

    // ---- time

    fn instant(&self) -> Instant {
        self.epoch + self.now
    }

    /// What the server's clock says, which may step back.
    fn clock(&mut self) -> Instant {
        let rate = self.plan.rate(Fault::ClockBack);
        if self.calm || !self.clock_steps.permille(rate) {
            return self.instant();
        }
        let max = self.clock_steps.pick(&[1000, 1_000_000, CLOCK_BACK_MAX.as_micros() as u64]);
        self.instant() - Duration::from_micros(self.clock_steps.below(max))
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.schedule(self.now + after, event);
    }

    fn schedule(&mut self, time: Duration, event: Event) {
        self.next_event += 1;
        self.queue.insert((time, self.next_event), event);
    }

    fn millis(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_micros(self.random.between(low * 1000, high * 1000))
    }

    /// A time up to `max`, and up to so many beats: what is over before the storm is leaves time for more.
    fn up_to(&mut self, max: Duration, beats: u32) -> Duration {
        let max = max.min(self.plan.beat * beats);
        Duration::from_micros(self.random.between(1000, max.as_micros() as u64))
    }

    fn run_until(&mut self, end: Duration) -> Result<(), Violation> {
        while self.next().is_some_and(|next| next <= end) {
            self.step()?;
        }
        self.pass_until(end);
        Ok(())
    }

    /// When something happens next.
    fn next(&self) -> Option<Duration> {
        let event = self.queue.first_key_value().map(|((time, _), _)| *time);
        self.timeout().into_iter().chain(event).min()
    }

    /// When the time of the host comes.
    fn timeout(&self) -> Option<Duration> {
        let timeout = self.host.as_ref().and_then(Host::next_timeout);
        timeout.map(|timeout| timeout.saturating_duration_since(self.epoch))
    }

    /// Lets time pass in which nothing happens.
    fn pass_until(&mut self, time: Duration) {
        // After a pause what is due lies in the past.
        self.now = self.now.max(time);
        self.network.borrow_mut().now = self.now;
    }

    /// Does what comes next, if anything does.
    fn step(&mut self) -> Result<(), Violation> {
        let timeout = self.timeout();
        let event = self.queue.first_key_value().map(|((time, _), _)| *time);
        let Some(next) = timeout.into_iter().chain(event).min() else { return Ok(()) };
        self.pass_until(next);
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return Err(Violation::new("the world comes to rest", format!("{} steps", self.steps)));
        }
        if timeout.is_some_and(|timeout| timeout <= self.now && event.is_none_or(|event| timeout <= event)) {
            let now = self.clock();
            if let Some(host) = &mut self.host {
                host.timeout(now);
                checks::nothing_is_overdue(now, host.next_timeout())?;
            }
            self.settle()?;
        } else if let Some((_, event)) = self.queue.pop_first() {
            self.handle(event)?;
        }
        self.check_step()
    }

    fn handle(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::ServerReads(link) => self.server_reads(link),
            Event::ServerWrites(link) => self.server_writes(link),
            Event::ClientReads(link) => match self.application_links.get(&link) {
                Some(&index) => self.application_reads(index, link),
                None => self.client_reads(link),
            },
            Event::ClientWrites(link) => {
                if let Some(&index) = self.application_links.get(&link) {
                    return self.application_writes(index, link);
                }
                self.pump(link);
                Ok(())
            }
            Event::ApplicationEdits(index) => self.application_edits(index),
            Event::ApplicationWakes(index) => self.application_wakes(index),
            Event::Connect(who) => {
                self.connect(who);
                Ok(())
            }
            Event::Edit(index) => {
                self.edit(index);
                Ok(())
            }
            Event::Gesture(index) => {
                self.gesture(index);
                Ok(())
            }
            Event::Check(index) => self.check_client(index),
            Event::Attack(index) => {
                self.attack(index);
                Ok(())
            }
            Event::Chaos => self.chaos(),
            Event::Disk(due) => self.disk_works(due),
            Event::Restart => {
                self.start();
                Ok(())
            }
            Event::Settle => self.settle(),
            Event::Drained { incarnation } => self.drained(incarnation),
            Event::Cut(link) => {
                self.trace.line(self.now, format_args!("link {link} is cut"));
                self.cut(link);
                Ok(())
            }
            Event::GivesUp(link) => {
                if matches!(self.ends.get(&link), Some(End::Upgrading(_) | End::Refused)) {
                    self.drop_end(link);
                }
                Ok(())
            }
        }
    }

    fn check_step(&mut self) -> Result<(), Violation> {
        self.settle()?;
        if let Some(violation) = self.found.take() {
            return Err(violation);
        }
        let Some(host) = &self.host else { return Ok(()) };
        let server = host.server();
        let open = self.ends.values().filter(|end| matches!(end, End::Open { .. })).count();
        checks::counts_agree(server, host.counters().connections, open)?;
        checks::rooms_are_bounded(server, &self.options.config)?;
        let max = self.options.limits.outbox_bytes_max;
        // A document that is unloaded may still be on its way.
        let largest = server.rooms().map(|room| room.journal().len_bytes()).max().unwrap_or(0);
        self.largest = self.largest.max(largest);
        for (link, end) in &self.ends {
            if let End::Open { id, .. } = end {
                let bytes = host.outbox_bytes(*id);
                if bytes > max {
                    let ids = match self.plan.rate(Fault::Oversized) {
                        0 => self.clients.len() + self.applications.len() + self.hostiles.len(),
                        _ => {
                            self.clients.len()
                                + self.applications.len()
                                + self.hostiles.len() * self.options.config.awareness_ids_max
                        }
                    };
                    let presence = 100 * ids;
                    checks::outbox_is_bounded(*link, bytes, max, 3 * self.largest + presence + 4096)?;
                }
            }
        }
        if let Some(index) = self.clients.iter().position(|client| {
            self.settled
                && !self.leaving
                && !client.session.as_ref().is_some_and(|session| session.synced && session.is_open())
        }) {
            return Err(Violation::new("connections last", format!("client {index} is not connected")));
        }
        if let Some(index) = self
            .applications
            .iter()
            .position(|application| self.settled && !self.leaving && !application.handle.is_synced())
        {
            let detail = format!("application {index} is not connected");
            return Err(Violation::new("connections last", detail));
        }
        Ok(())
    }

    fn check_agreement(&mut self) -> Result<(), Violation> {
        for room in 0..self.rooms.len() {
            let name = self.rooms[room].clone();
            let unstored =
                self.host.as_ref().and_then(|host| host.server().room(&name)).map(|r| r.unstored_bytes());
            if unstored.unwrap_or(0) > 0 {
                return Err(Violation::new("everything is stored in the end", format!("{unstored:?} bytes")));
            }
            let Some(room_now) = self.host.as_ref().and_then(|host| host.server().room(&name)) else {
                continue;
            };
            // As a newcomer would get it, what is parked included.
            let squashed = room_now.journal().squash(SquashOptions { collect: false }).run();
            let stored: Vec<Bytes> = squashed.updates().cloned().collect();
            checks::replicas_agree(&name, &self.members(room), &stored, &self.acknowledged[room])?;
            checks::presence_is_exact(&name, &self.members(room))?;
        }
        Ok(())
    }

    fn check_end(&mut self) -> Result<(), Violation> {
        let Some(host) = &self.host else { return Ok(()) };
        let next = host.next_timeout().map(|next| next.saturating_duration_since(self.epoch));
        checks::nothing_is_left(host.server(), host.counters().connections, next)?;
        for room in 0..self.rooms.len() {
            let name = self.rooms[room].clone();
            let stored = self.disk.read(&name)?;
            checks::replicas_agree(&name, &self.members(room), &stored, &self.acknowledged[room])?;
        }
        self.check_applications_left()
    }

    /// Who works on the document of a room.
    fn members(&self, room: usize) -> Vec<Member<'_>> {
        let clients = self.clients.iter().enumerate().filter(|(_, client)| client.room == room);
        let clients = clients.map(|(index, client)| Member {
            name: format!("client {index}"),
            doc: &client.doc,
            made: &client.made,
            present: client.presence.present().remove_entry(&client.id),
            shows: Some(client.presence.present()),
        });
        let applications = self.applications.iter().enumerate();
        let applications = applications.filter(|(_, application)| application.room == room);
        let applications = applications.map(|(index, application)| Member {
            name: format!("application {index}"),
            doc: &application.doc,
            made: &application.made,
            present: application.own_presence(),
            shows: Some(application.present()),
        });
        clients.chain(applications).collect()
    }
}

/// Puts what the world needs around the hooks of the caller.
fn own_hooks(mut hooks: Hooks, epoch: Instant, found: &Found) -> Hooks {
    let on_request = hooks.on_request.take();
    hooks.on_request = Some(Arc::new(move |request: &rfc6455::Request| {
        let mut admission = match &on_request {
            Some(on_request) => on_request(request)?,
            None => Admission::by_path(request)?,
        };
        let query = request.path.split_once('?').map_or("", |(_, query)| query);
        for part in query.split('&') {
            if part == "viewer" {
                admission.access = Access::ReadOnly;
            }
            if let Some(expires) = part.strip_prefix("expires=").and_then(|text| text.parse().ok()) {
                admission.expires_at = Some(epoch + Duration::from_micros(expires));
            }
        }
        Ok(admission)
    }));
    watched(hooks, found)
}

/// Lets the checks see each step of the core, besides the observer that is there.
fn watched(mut hooks: Hooks, found: &Found) -> Hooks {
    let (observer, found) = (hooks.observer.take(), found.clone());
    hooks.observer = Some(Arc::new(move |shard, config, seed| {
        let next = observer.as_ref().and_then(|observer| observer(shard, config, seed));
        Some(Box::new(Watch::new(found.clone(), config.clone(), next)))
    }));
    hooks
}

/// Draws the limits and delays of the server.
fn options(plan: &Plan, random: &mut Random) -> Options {
    let small = plan.rate(Fault::SmallLimits) > 0;
    let mut config = Config::default();
    config.flush_interval = Duration::from_millis(random.pick(&[0, 10, 10, 100]));
    config.awareness_interval = Duration::from_millis(random.pick(&[0, 40, 40, 200]));
    config.idle_delay = Duration::from_millis(random.pick(&[0, 100, 2000, 30_000]));
    config.squash_count = random.pick(&[2, 10, 50, 500]);
    config.squash_bytes = random.pick(&[64, 1024, 256 << 10]);
    config.collect = random.permille(700);
    config.view_delay = Duration::from_millis(random.pick(&[0, 1000, 10_000]));
    if random.permille(100) {
        config.echo = random.pick(&[yrs_websocket::Echo::Immediate, yrs_websocket::Echo::Off]);
    }
    let mut options = Options::default();
    if small {
        config.flush_bytes = random.pick(&[1, 100, 1000]);
        config.unstored_bytes_max = random.pick(&[64 << 10, 256 << 10]);
        config.loading_bytes_max = random.pick(&[2 << 10, 16 << 10]);
        options.limits.outbox_bytes_max = random.pick(&[100, 1000, 4 << 10]);
        config.state_vector_len_max = 16 << 10;
        config.awareness_ids_max = 64;
        config.frame_len_max = 1 << 20;
        config.congestion_timeout = Duration::from_secs(random.pick(&[5, 60]));
    }
    options.config = config;
    options
}

/// Time for the last effects of a storm: the silence rule, pings, the presence of those cut off.
const SETTLE: Duration = Duration::from_secs(75);

/// Within this time after that everybody agrees.
const CONVERGE: Duration = Duration::from_secs(45);

/// Time for goodbyes and closes.
const LEAVE: Duration = Duration::from_secs(75);

/// How far the server's clock steps back at most.
const CLOCK_BACK_MAX: Duration = Duration::from_secs(100);

/// More than the maddest world needs.
const STEPS_MAX: u64 = 2_000_000;
