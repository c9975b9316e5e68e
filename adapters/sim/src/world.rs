//! The world: one queue of events, one clock, and what everybody does when something comes.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::mpsc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use yrs_websocket::{
    Access, Config, ConnectionId, RoomName,
    journal::Squashed,
    update::{ClientId, SquashOptions},
};
use yrs_websocket_host::{Admission, Admitted, Host, Next, Options, Storage, Upgrade, rfc6455};
use yrs_websocket_store::{MemoryStore, Request, Store};

use crate::{
    Fault, Plan, Violation, checks,
    client::{Attack, Client, Heard, Hostile, Layer, Session, edit_once, take_front},
    disk::{Content, Disk, Mood, missing, scan},
    network::{LinkId, Network, SimSocket, Weather},
    random::Random,
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

/// Runs a world with a store in memory; writes a readable log, if there is a place for it.
pub fn run(plan: &Plan, log: Option<&mut dyn Write>) -> Outcome {
    run_with_store(plan, Box::new(MemoryStore::new()), log)
}

/// Runs a world with a store of the caller's own, which must be empty.
///
/// The store is asked on this thread. It survives crashes of the simulated server, and what it has
/// committed must be there whenever a room is loaded.
pub fn run_with_store(plan: &Plan, store: Box<dyn Store>, log: Option<&mut dyn Write>) -> Outcome {
    let mut world = World::new(plan.clone(), store, Trace { hash: 0, text: String::new(), log });
    // A panic is a finding like any other; nothing of the world is used after it.
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    let violation = match result {
        Ok(result) => result.err(),
        Err(panic) => {
            let message = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Some(Violation::new("nothing panics", message.unwrap_or_default()))
        }
    };
    if let Some(violation) = &violation {
        world.trace.line(world.now, format_args!("VIOLATION {violation}"));
    }
    Outcome {
        plan: plan.clone(),
        violation,
        steps: world.steps,
        passed: world.now,
        trace_hash: world.trace.hash,
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
    Connect(Who),
    Edit(usize),
    Gesture(usize),
    Check(usize),
    Attack(usize),
    Chaos,
    Perform(u64),
    Answer(u64),
    Restart,
    Drained { incarnation: u64 },
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
    options: Options,
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
    /// Per room: what was made by those who are gone, or by the server, or by somebody hostile.
    strangers: Vec<Content>,
    /// Per room: everything that was acknowledged to anybody.
    acknowledged: Vec<Content>,
    calm: bool,
    /// Nothing of the storm can be felt any more: connections must not end.
    settled: bool,
    leaving: bool,
    paused_at: Option<Duration>,
    trace: Trace<'a>,
}

impl<'a> World<'a> {
    fn new(plan: Plan, store: Box<dyn Store>, trace: Trace<'a>) -> Self {
        let seed = plan.seed;
        let mut random = Random::fork(seed, 2);
        let options = options(&plan, &mut Random::fork(seed, 3));
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
                Client::new(room, viewer, shy, &mut makes, Duration::ZERO)
            })
            .collect();
        let hostiles =
            (0..plan.hostile).map(|_| Hostile::new(makes.index(rooms.len()), &mut makes)).collect();
        let mut disk = Disk::new(store, Random::fork(seed, 5));
        let slow = u64::from(plan.rate(Fault::SlowDisk));
        disk.mood = Mood {
            latency_max: Duration::from_millis(2 + 10 * slow),
            write_errors: plan.rate(Fault::WriteErrors),
            false_errors: plan.rate(Fault::FalseErrors),
            load_errors: plan.rate(Fault::LoadErrors),
            outage_until: Duration::ZERO,
        };
        #[allow(clippy::disallowed_methods, reason = "an arbitrary start: only distances from it matter")]
        let epoch = Instant::now();
        Self {
            epoch,
            now: Duration::ZERO,
            steps: 0,
            queue: BTreeMap::new(),
            next_event: 0,
            edits: Random::fork(seed, 6),
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
            calm: false,
            settled: false,
            leaving: false,
            paused_at: None,
            random,
            options,
            plan,
            trace,
        }
    }

    fn run(&mut self) -> Result<(), Violation> {
        self.trace.line(self.now, format_args!("plan {}", self.plan));
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
        self.at(self.plan.beat, Event::Chaos);
        self.run_until(self.plan.storm)?;
        self.heal()?;
        self.run_until(self.now + SETTLE)?;
        self.settled = true;
        self.run_until(self.now + CONVERGE)?;
        self.check_agreement()?;
        self.leave();
        let idle = self.options.config.idle_delay;
        self.run_until(self.now + idle * 2 + LEAVE)?;
        self.check_end()
    }

    // ---- time

    fn instant(&self) -> Instant {
        self.epoch + self.now
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
        loop {
            let timeout = self.host.as_ref().and_then(Host::next_timeout);
            let timeout = timeout.map(|timeout| timeout.saturating_duration_since(self.epoch));
            let event = self.queue.first_key_value().map(|((time, _), _)| *time);
            let Some(next) = timeout.into_iter().chain(event).min() else { break };
            if next > end {
                break;
            }
            // After a pause what is due lies in the past.
            self.now = self.now.max(next);
            self.network.borrow_mut().now = self.now;
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return Err(Violation::new("the world comes to rest", format!("{} steps", self.steps)));
            }
            if timeout
                .is_some_and(|timeout| timeout <= self.now && event.is_none_or(|event| timeout <= event))
            {
                let now = self.instant();
                if let Some(host) = &mut self.host {
                    host.timeout(now);
                    checks::nothing_is_overdue(now, host.next_timeout())?;
                }
                self.settle()?;
            } else if let Some((_, event)) = self.queue.pop_first() {
                self.handle(event)?;
            }
            self.check_step()?;
        }
        self.now = self.now.max(end);
        self.network.borrow_mut().now = self.now;
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::ServerReads(link) => self.server_reads(link),
            Event::ServerWrites(link) => self.server_writes(link),
            Event::ClientReads(link) => self.client_reads(link),
            Event::ClientWrites(link) => {
                self.pump(link);
                Ok(())
            }
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
            Event::Perform(id) => {
                if let Some(text) = self.disk.perform(self.now, id)? {
                    self.trace.line(self.now, format_args!("disk {text}"));
                }
                Ok(())
            }
            Event::Answer(id) => {
                let now = self.instant();
                if let Some(completion) = self.disk.answer(id)
                    && let Some(host) = &mut self.host
                {
                    host.completed(now, [completion]);
                }
                self.settle()
            }
            Event::Restart => {
                self.start();
                Ok(())
            }
            Event::Drained { incarnation } => self.drained(incarnation),
        }
    }

    // ---- the server

    fn start(&mut self) {
        if self.host.is_some() {
            return;
        }
        self.incarnation += 1;
        let (submit, requests) = mpsc::channel();
        self.requests = requests;
        let storage = Storage::Outside(
            Box::new(move |request| {
                // Without a world there is nobody to ask.
                let _ = submit.send(request);
            }),
            0,
        );
        self.trace.line(self.now, format_args!("server starts"));
        let seed = self.random.next();
        self.host = Some(Host::new(&self.options, storage, seed));
    }

    fn crash(&mut self) {
        if self.host.take().is_none() {
            return;
        }
        self.trace.line(self.now, format_args!("server crashes"));
        self.disk.crash();
        let links: Vec<_> = self.ends.keys().copied().collect();
        self.ends.clear();
        for link in links {
            self.cut(link);
        }
        let back = self.up_to(Duration::from_secs(4), 8);
        self.at(back, Event::Restart);
    }

    fn drain(&mut self) -> Result<(), Violation> {
        let now = self.instant();
        let length = self.up_to(Duration::from_secs(5), 10);
        let Some(host) = &mut self.host else { return Ok(()) };
        self.trace.line(self.now, format_args!("server drains within {length:?}"));
        host.drain(now, now + length);
        let incarnation = self.incarnation;
        // Those sent away may take their time to close.
        self.at(length + DRAINED, Event::Drained { incarnation });
        self.settle()
    }

    fn drained(&mut self, incarnation: u64) -> Result<(), Violation> {
        let Some(host) = &self.host else { return Ok(()) };
        if self.incarnation != incarnation {
            return Ok(());
        }
        if self.paused_at.is_some_and(|paused_at| self.now < paused_at + DRAINED) {
            // What was due during a pause has only just been done.
            self.at(DRAINED, Event::Drained { incarnation });
            return Ok(());
        }
        if !host.is_drained() {
            let detail = format!("{:?}", host.counters());
            return Err(Violation::new("a drain ends", detail));
        }
        self.crash();
        Ok(())
    }

    fn server_reads(&mut self, link: LinkId) -> Result<(), Violation> {
        let now = self.instant();
        let (mut bytes, at_end) = {
            let mut network = self.network.borrow_mut();
            let time = network.now;
            let Some(pipe) = network.links.get_mut(&link) else { return Ok(()) };
            let mut bytes = pipe.to_server.read(time);
            let len = network.torn(bytes.len());
            let rest = bytes.split_off(len);
            let Some(pipe) = network.links.get_mut(&link) else { return Ok(()) };
            let again = !rest.is_empty();
            pipe.to_server.unread(time, rest);
            let at_end = pipe.to_server.is_at_end(time);
            drop(network);
            if again {
                self.at(Duration::from_micros(10), Event::ServerReads(link));
            }
            (bytes, at_end)
        };
        if !bytes.is_empty() {
            self.at(Duration::ZERO, Event::ClientWrites(link));
        }
        let Some(host) = &mut self.host else { return Ok(()) };
        match self.ends.get_mut(&link) {
            Some(End::Upgrading(upgrade)) if !bytes.is_empty() => match upgrade.receive(&bytes) {
                Ok(None) => {}
                Ok(Some(admitted)) => {
                    let socket = SimSocket { network: Rc::clone(&self.network), link };
                    match host.connect(now, socket, admitted) {
                        Ok(id) => {
                            self.trace.line(self.now, format_args!("link {link} is connection {}", id.0));
                            self.ends.insert(link, End::Open { id, shut: false });
                            self.network.borrow_mut().woken.insert(link);
                        }
                        Err((_, refusal)) => self.refuse(link, &refusal),
                    }
                }
                Err(refusal) => self.refuse(link, &refusal),
            },
            Some(End::Open { id, .. }) => {
                let id = *id;
                if !bytes.is_empty() {
                    host.received(now, id, &mut bytes);
                }
                if at_end {
                    host.ended(now, id);
                }
                self.network.borrow_mut().woken.insert(link);
            }
            Some(End::Upgrading(_) | End::Refused) | None => {}
        }
        if at_end && matches!(self.ends.get(&link), Some(End::Upgrading(_) | End::Refused)) {
            self.drop_end(link);
        }
        self.settle()
    }

    fn refuse(&mut self, link: LinkId, refusal: &rfc6455::Refusal) {
        self.trace.line(self.now, format_args!("link {link} is refused with {}", refusal.status()));
        let mut network = self.network.borrow_mut();
        let arrives = network.now + network.latency();
        if let Some(pipes) = network.links.get_mut(&link)
            && !pipes.half_open
        {
            pipes.to_client.push(arrives, refusal.to_bytes().to_vec());
            let arrives = pipes.to_client.end(arrives);
            drop(network);
            self.schedule(arrives, Event::ClientReads(link));
        }
        self.ends.insert(link, End::Refused);
    }

    fn server_writes(&mut self, link: LinkId) -> Result<(), Violation> {
        let now = self.instant();
        if let Some(End::Open { id, .. }) = self.ends.get(&link)
            && let Some(host) = &mut self.host
        {
            host.writable(now, *id);
            self.network.borrow_mut().woken.insert(link);
        }
        self.settle()
    }

    /// Does what a runtime does after each call of the host: asks about those woken, hands on what was
    /// written and what the store is asked.
    fn settle(&mut self) -> Result<(), Violation> {
        while let Ok(request) = self.requests.try_recv() {
            match &request {
                Request::Load(room) => self.trace.line(self.now, format_args!("host asks load {room}")),
                Request::Append { room, seq, update } => {
                    self.trace.bytes(self.now, format_args!("host asks append {seq} to {room}:"), update);
                }
                Request::Compact { room, seq, .. } => {
                    self.trace.line(self.now, format_args!("host asks compact {room} up to {seq}"));
                }
                Request::Unload(room) => self.trace.line(self.now, format_args!("host asks unload {room}")),
            }
            if let Request::Append { room, .. } = &request
                && let Some(book) = self.disk.rooms.get(room)
                && !self.is_parked(room)
            {
                checks::nothing_known_is_stored(book, &request)?;
            }
            let schedule = self.disk.submit(self.now, request)?;
            self.schedule(schedule.performed, Event::Perform(schedule.id));
            self.schedule(schedule.answered, Event::Answer(schedule.id));
        }
        loop {
            let Some(link) = self.network.borrow_mut().woken.pop_first() else { break };
            let Some(End::Open { id, shut }) = self.ends.get_mut(&link) else { continue };
            let Some(host) = &mut self.host else { continue };
            match host.next(*id) {
                Next::Run { write } => {
                    let mut network = self.network.borrow_mut();
                    let Some(pipes) = network.links.get_mut(&link) else { continue };
                    pipes.wants_space = write;
                    let ready = write && (pipes.cut || pipes.to_client.space() > 0);
                    drop(network);
                    if ready {
                        let soon = self.millis(0, 3);
                        self.at(soon, Event::ServerWrites(link));
                    }
                }
                Next::ShutDown => {
                    if !std::mem::replace(shut, true) {
                        self.end_of_stream(link);
                    }
                }
                Next::Drop => self.drop_end(link),
            }
        }
        loop {
            let mut network = self.network.borrow_mut();
            let Some(link) = network.written.pop_first() else { break };
            let arrives = network.now;
            drop(network);
            // The pipe knows when its bytes arrive: looking too early finds nothing.
            self.schedule_client_read(link, arrives);
        }
        Ok(())
    }

    /// Whether the server waits for something that only somebody hostile leaves out. Documents of yrs,
    /// which show what lies beyond a gap, may then send it again in other words: it counts as new.
    fn is_parked(&self, room: &RoomName) -> bool {
        let room = self.host.as_ref().and_then(|host| host.server().room(room));
        room.is_some_and(|room| room.journal().parked_bytes() > 0)
    }

    fn schedule_client_read(&mut self, link: LinkId, from: Duration) {
        let network = self.network.borrow();
        let arrives = network.links.get(&link).map(|pipes| pipes.to_client.last_arrival());
        drop(network);
        if let Some(arrives) = arrives {
            self.schedule(arrives.max(from), Event::ClientReads(link));
        }
    }

    fn end_of_stream(&mut self, link: LinkId) {
        let mut network = self.network.borrow_mut();
        let arrives = network.now + network.latency();
        let Some(pipes) = network.links.get_mut(&link).filter(|pipes| !pipes.half_open) else { return };
        let arrives = pipes.to_client.end(arrives);
        drop(network);
        self.schedule(arrives, Event::ClientReads(link));
    }

    /// The server's end is gone.
    fn drop_end(&mut self, link: LinkId) {
        self.trace.line(self.now, format_args!("link {link} is dropped by the server"));
        self.ends.remove(&link);
        self.end_of_stream(link);
        self.forget_link(link);
    }

    /// Forgets a link that has nobody at either end.
    fn forget_link(&mut self, link: LinkId) {
        if !self.ends.contains_key(&link) && !self.links.contains_key(&link) {
            self.network.borrow_mut().links.remove(&link);
        }
    }

    fn cut(&mut self, link: LinkId) {
        let times = self.network.borrow_mut().cut(link);
        if let Some((server, client)) = times {
            self.schedule(server, Event::ServerReads(link));
            self.schedule(client, Event::ClientReads(link));
        }
    }

    // ---- clients

    fn session(&mut self, who: Who) -> &mut Option<Session> {
        match who {
            Who::Client(index) => &mut self.clients[index].session,
            Who::Hostile(index) => &mut self.hostiles[index].session,
        }
    }

    fn connect(&mut self, who: Who) {
        let (room, viewer, away_until) = match who {
            Who::Client(index) => {
                let client = &self.clients[index];
                (client.room, client.viewer, client.away_until)
            }
            Who::Hostile(index) => (self.hostiles[index].room, false, self.hostiles[index].away_until),
        };
        if self.leaving || self.session(who).is_some() || (self.calm && matches!(who, Who::Hostile(_))) {
            return;
        }
        if away_until > self.now {
            return self.schedule(away_until, Event::Connect(who));
        }
        if self.host.is_none() {
            let retry = self.millis(100, 2500);
            return self.at(retry, Event::Connect(who));
        }
        let mut target = format!("/{}?", self.rooms[room]);
        if viewer {
            target.push_str("&viewer");
        }
        if !self.calm && self.random.permille(self.plan.rate(Fault::Expiry)) {
            let expires = self.now + self.up_to(Duration::from_secs(20), 30);
            let _ = write!(target, "&expires={}", expires.as_micros());
        }
        self.next_link += 1;
        let link = self.next_link;
        self.trace.line(self.now, format_args!("{who:?} connects by link {link} to {target}"));
        self.network.borrow_mut().open(link);
        self.links.insert(link, who);
        let now = self.now;
        let upgraded_by_others = self.random.permille(100);
        let mut session = Session::new(link, target, &mut self.random, now);
        if upgraded_by_others && !viewer {
            self.upgrade_outside(link, room, &mut session);
        } else {
            let options = self.options_at_epoch();
            self.ends.insert(link, End::Upgrading(Box::new(Upgrade::new(&options))));
        }
        *self.session(who) = Some(session);
        if self.session(who).as_ref().is_some_and(Session::is_open) {
            self.opened(who);
            // What the socket was told while it had no end.
            self.network.borrow_mut().woken.insert(link);
            self.pump(link);
            self.at(Duration::ZERO, Event::ServerWrites(link));
        }
        self.pump(link);
    }

    /// A web framework has made the upgrade.
    fn upgrade_outside(&mut self, link: LinkId, room: usize, session: &mut Session) {
        let now = self.instant();
        let mask_seed = self.random.next();
        let Some(host) = &mut self.host else { return };
        let socket = SimSocket { network: Rc::clone(&self.network), link };
        let admission = Admission::new(self.rooms[room].clone(), Access::Write);
        match host.connect(now, socket, Admitted::after_upgrade(admission, Vec::new())) {
            Ok(id) => {
                self.ends.insert(link, End::Open { id, shut: false });
                let config = rfc6455::Config { ping_interval: None, ..rfc6455::Config::default() };
                let role = rfc6455::Role::Client { mask_seed };
                session.out.clear();
                session.layer = Layer::Open(Box::new(rfc6455::Connection::new(role, config, now)));
            }
            Err((_, refusal)) => self.refuse(link, &refusal),
        }
    }

    fn options_at_epoch(&self) -> Options {
        let mut options = self.options.clone();
        let epoch = self.epoch;
        options.hooks.on_request = Some(std::sync::Arc::new(move |request: &rfc6455::Request| {
            let mut admission = Admission::by_path(request)?;
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
        options
    }

    /// Writes what a client has to say, as far as the pipe takes it.
    fn pump(&mut self, link: LinkId) {
        let Some(&who) = self.links.get(&link) else { return };
        let Some(mut session) = self.session(who).take_if(|session| session.link == link) else { return };
        while !session.out.is_empty() {
            let (front, _) = session.out.as_slices();
            let mut network = self.network.borrow_mut();
            let len = network.torn(front.len());
            let (taken, arrives) = network.send_to_server(link, &front[..len]);
            drop(network);
            if taken == 0 {
                break;
            }
            take_front(&mut session.out, taken);
            if let Some(arrives) = arrives {
                self.schedule(arrives, Event::ServerReads(link));
            }
        }
        *self.session(who) = Some(session);
    }

    fn client_reads(&mut self, link: LinkId) -> Result<(), Violation> {
        let Some(&who) = self.links.get(&link) else { return Ok(()) };
        let now = self.now;
        let Some(session) = self.session(who).as_mut().filter(|session| session.link == link) else {
            return Ok(());
        };
        if session.asleep_until > now {
            let until = session.asleep_until;
            self.schedule(until, Event::ClientReads(link));
            return Ok(());
        }
        let (bytes, again, at_end, wants_space) = {
            let mut network = self.network.borrow_mut();
            let Some(pipes) = network.links.get_mut(&link) else { return Ok(()) };
            let mut bytes = pipes.to_client.read(now);
            let len = network.torn(bytes.len());
            let rest = bytes.split_off(len);
            let Some(pipes) = network.links.get_mut(&link) else { return Ok(()) };
            let again = !rest.is_empty();
            pipes.to_client.unread(now, rest);
            (bytes, again, pipes.to_client.is_at_end(now), pipes.wants_space)
        };
        if again {
            self.at(Duration::from_micros(10), Event::ClientReads(link));
        }
        if wants_space && !bytes.is_empty() {
            let latency = self.network.borrow_mut().latency();
            self.at(latency, Event::ServerWrites(link));
        }
        self.client_hears(who, link, bytes)?;
        if at_end {
            self.session_ends(who, link, "end of stream")?;
        }
        Ok(())
    }

    fn client_hears(&mut self, who: Who, link: LinkId, bytes: Vec<u8>) -> Result<(), Violation> {
        let (now, instant) = (self.now, self.instant());
        let mask_seed = self.random.next();
        let Some(session) = self.session(who).as_mut() else { return Ok(()) };
        let all_heard = session.read(instant, mask_seed, bytes)?;
        for heard in all_heard {
            match heard {
                Heard::Open => self.opened(who),
                Heard::Frame(frame) => {
                    if let Some(session) = self.session(who) {
                        session.last_message = now;
                    }
                    self.frame_heard(who, frame)?;
                }
                Heard::Refused(status) => {
                    self.trace.line(now, format_args!("{who:?} is refused with {status}"));
                    if self.settled && !self.leaving {
                        return Err(Violation::new("connections last", format!("{who:?}: {status}")));
                    }
                    self.session_ends(who, link, "refused")?;
                }
                Heard::Closed(reason) => {
                    self.trace.line(now, format_args!("{who:?} is closed with {reason:?}"));
                    if let Who::Client(index) = who
                        && matches!(reason, Some((1002..=1009, _)))
                    {
                        let detail = format!("client {index} is closed with {reason:?}");
                        return Err(Violation::new("honest clients are not at fault", detail));
                    }
                    // The stream ends behind it; a client that closes waits no longer.
                    self.pump(link);
                    self.session_ends(who, link, "closed")?;
                }
            }
        }
        self.pump(link);
        Ok(())
    }

    fn opened(&mut self, who: Who) {
        self.trace.line(self.now, format_args!("{who:?} is connected"));
        if let Who::Client(index) = who {
            let client = &mut self.clients[index];
            client.failures = 0;
            let greeting = client.greeting();
            if let Some(session) = &mut client.session {
                greeting.iter().for_each(|frame| session.send(frame));
            }
        } else if let Some(session) = self.session(who) {
            session.send(&[0, 0, 1, 0]);
        }
    }

    fn frame_heard(&mut self, who: Who, frame: Bytes) -> Result<(), Violation> {
        self.trace.bytes(self.now, format_args!("{who:?} hears"), &frame);
        let index = match who {
            Who::Client(index) => index,
            Who::Hostile(index) => {
                self.hostiles[index].hear(frame);
                return Ok(());
            }
        };
        let mut answers = Vec::new();
        let update = self.clients[index].receive(self.now, &frame, &mut answers)?;
        if let Some(update) = update {
            let room = self.clients[index].room;
            let mut own = self.clients[index].made.common_with(&update);
            // Who else has deleted the same may be the author of what is heard.
            let others = self.clients.iter().enumerate();
            let others = others.filter(|(other, client)| *other != index && client.room == room);
            for others in others.map(|(_, client)| &client.made).chain([&self.strangers[room]]) {
                own.deletes = missing(&others.deletes, &own.deletes);
            }
            if !own.is_empty() {
                let parked = self.is_parked(&self.rooms[room]);
                let book = self.disk.rooms.entry(self.rooms[room].clone()).or_default();
                if self.options.config.echo == yrs_websocket::Echo::Durable && !parked {
                    checks::acknowledged_is_durable(index, &own, book)?;
                    self.acknowledged[room].union(&own);
                }
            }
        }
        if let Some(session) = &mut self.clients[index].session {
            answers.iter().for_each(|answer| session.send(answer));
        }
        Ok(())
    }

    fn session_ends(&mut self, who: Who, link: LinkId, why: &str) -> Result<(), Violation> {
        if self.session(who).take_if(|session| session.link == link).is_none() {
            return Ok(());
        }
        self.trace.line(self.now, format_args!("{who:?} loses link {link}: {why}"));
        self.links.remove(&link);
        // Its socket is gone: the server reads to the end, and what it writes fails.
        let mut network = self.network.borrow_mut();
        let arrives = network.now + network.latency();
        let half_open = network.links.get(&link).is_some_and(|pipes| pipes.half_open);
        let end = network.links.get_mut(&link).map(|pipes| pipes.to_server.end(arrives));
        drop(network);
        if let Some(end) = end.filter(|_| !half_open) {
            self.schedule(end, Event::ServerReads(link));
            self.at(Duration::ZERO, Event::ServerWrites(link));
            if let Some(pipes) = self.network.borrow_mut().links.get_mut(&link) {
                pipes.cut = true;
            }
        }
        self.forget_link(link);
        let wait = match who {
            Who::Client(index) => {
                let client = &mut self.clients[index];
                client.presence.disconnected();
                client.failures += 1;
                Duration::from_millis((100 << client.failures.min(5)).min(2500))
            }
            Who::Hostile(_) => Duration::from_millis(500),
        };
        if self.settled && !self.leaving && matches!(who, Who::Client(_)) {
            return Err(Violation::new("connections last", format!("{who:?}: {why}")));
        }
        self.at(wait, Event::Connect(who));
        Ok(())
    }

    fn edit(&mut self, index: usize) {
        if self.calm {
            return;
        }
        let client = &mut self.clients[index];
        let burst = if self.edits.permille(100) { self.edits.between(2, 20) } else { 1 };
        let room = client.room;
        if !client.viewer {
            for _ in 0..burst {
                let Some(update) = client.edit(&mut self.edits) else { continue };
                self.trace.bytes(self.now, format_args!("client {index} edits"), &update);
                if let Some(session) = client.session.as_mut().filter(|session| session.is_open()) {
                    session.send(&yrs_websocket::message::Message::Update(update).encode());
                }
            }
        }
        if let Some(link) = client.session.as_ref().map(|session| session.link) {
            self.pump(link);
        }
        if self.random.permille(self.plan.rate(Fault::ServerEdits)) {
            self.server_edit(room);
        }
        let next = self.plan.beat * self.edits.between(1, 30).pow(2) as u32 / 315;
        self.at(next, Event::Edit(index));
    }

    fn server_edit(&mut self, room: usize) {
        let now = self.instant();
        let name = self.rooms[room].clone();
        let Some(host) = &mut self.host else { return };
        let edits = &mut self.edits;
        let result = host.edit(now, &name, |transaction| {
            use yrs::WriteTxn as _;
            let text = transaction.get_or_insert_text("text");
            let map = transaction.get_or_insert_map("map");
            let array = transaction.get_or_insert_array("array");
            edit_once(transaction, &text, &map, &array, edits);
            transaction.encode_update_v1()
        });
        if let Ok(update) = result
            && let Ok(update) = scan(update.into())
        {
            self.trace.bytes(self.now, format_args!("server edits"), update.bytes());
            self.strangers[room].add(&update);
        }
        // Whatever it asks is picked up by the step.
        self.at(Duration::ZERO, Event::Perform(0));
    }

    fn gesture(&mut self, index: usize) {
        if self.calm {
            return;
        }
        let state = format!("{{\"cursor\":{}}}", self.edits.below(1000));
        let now = self.now;
        let client = &mut self.clients[index];
        if !client.shy {
            client.presence.set(now, state.into());
            let frame = client.presence.encode(&BTreeSet::from([client.id]), false);
            if let (Some(frame), Some(session)) = (frame, &mut client.session) {
                session.send(&frame);
                let link = session.link;
                self.pump(link);
            }
        }
        let next = self.plan.beat * self.edits.between(1, 40).pow(2) as u32 / 80;
        self.at(next, Event::Gesture(index));
    }

    fn check_client(&mut self, index: usize) -> Result<(), Violation> {
        if self.leaving {
            return Ok(());
        }
        let now = self.now;
        let client = &mut self.clients[index];
        let changed = client.presence.check(now);
        let frame = client.presence.encode(&changed, false);
        let mut silent = None;
        if let Some(session) = &mut client.session {
            if let Some(frame) = frame {
                session.send(&frame);
            }
            let asleep = session.asleep_until > now;
            if !asleep && now > session.last_message + Duration::from_secs(30) {
                silent = Some(session.link);
            }
            let link = session.link;
            self.pump(link);
        }
        if let Some(link) = silent {
            self.session_ends(Who::Client(index), link, "silence")?;
        }
        self.at(Duration::from_secs(3), Event::Check(index));
        Ok(())
    }

    fn attack(&mut self, index: usize) {
        if self.calm {
            return;
        }
        let attacks = [
            (Fault::Garbage, Attack::Garbage),
            (Fault::Truncated, Attack::Truncated),
            (Fault::Replay, Attack::Replay),
            (Fault::Shuffle, Attack::Shuffle),
            (Fault::Forge, Attack::Forge),
            (Fault::Questions, Attack::Questions),
        ];
        let room = self.hostiles[index].room;
        for (fault, attack) in attacks {
            let rate = self.plan.rate(fault);
            if rate == 0 || !self.random.permille(100 + rate) {
                continue;
            }
            let victims: Vec<(ClientId, u32)> = self
                .clients
                .iter()
                .filter(|client| client.room == room)
                .map(|client| (client.id, client.presence.entries[&client.id].clock))
                .collect();
            let hostile = &mut self.hostiles[index];
            let Some(session) = hostile.session.as_mut().filter(|session| session.is_open()) else {
                continue;
            };
            let link = session.link;
            let frames = hostile.act(attack, &victims, &mut self.random);
            for frame in &frames {
                self.trace.bytes(self.now, format_args!("hostile {index} sends"), frame);
                if let Some(Ok(yrs_websocket::message::Message::Update(update))) =
                    yrs_websocket::message::Message::decode(frame).next()
                    && let Ok(update) = scan(update)
                {
                    self.strangers[room].add(&update);
                }
            }
            if let Some(session) = &mut self.hostiles[index].session {
                frames.iter().for_each(|frame| session.send(frame));
            }
            self.pump(link);
        }
        let next = self.plan.beat * self.random.between(100, 4000) as u32 / 1000;
        self.at(next, Event::Attack(index));
    }

    // ---- fate

    fn chaos(&mut self) -> Result<(), Violation> {
        if self.calm {
            return Ok(());
        }
        let next = self.plan.beat * self.random.between(100, 1900) as u32 / 1000;
        self.at(next, Event::Chaos);
        for fault in Fault::ALL {
            // Occasions are far more frequent than these should be.
            let rate = match fault {
                Fault::Crash | Fault::Drain | Fault::Pause | Fault::Outage => self.plan.rate(fault) / 6,
                _ => self.plan.rate(fault) / 3,
            };
            if rate > 0 && self.random.permille(rate.max(1)) {
                self.strike(fault)?;
            }
        }
        Ok(())
    }

    fn strike(&mut self, fault: Fault) -> Result<(), Violation> {
        let links: Vec<_> = self.links.keys().copied().collect();
        let link = (!links.is_empty()).then(|| links[self.random.index(links.len())]);
        let index = self.random.index(self.clients.len());
        match (fault, link) {
            (Fault::Cut, Some(link)) => {
                self.trace.line(self.now, format_args!("link {link} is cut"));
                self.cut(link);
            }
            (Fault::HalfOpen, Some(link)) => {
                self.trace.line(self.now, format_args!("link {link} falls silent"));
                self.network.borrow_mut().half_open(link);
            }
            (Fault::Sleepy, Some(link)) => {
                let until = self.now + self.up_to(Duration::from_secs(70), 100);
                let who = self.links[&link];
                if let Some(session) = self.session(who) {
                    session.asleep_until = until;
                }
                self.trace.line(self.now, format_args!("{who:?} reads nothing until {until:?}"));
            }
            (Fault::Offline, _) => {
                let length = self.up_to(Duration::from_secs(20), 30);
                self.clients[index].away_until = self.now + length;
                self.trace.line(self.now, format_args!("client {index} goes offline for {length:?}"));
                self.abandon(index)?;
            }
            (Fault::Reload, _) => {
                self.trace.line(self.now, format_args!("client {index} loads its page anew"));
                // A tab that is closed in order says goodbye; a killed one does not.
                if self.random.permille(300)
                    && let Some(goodbye) = self.clients[index].presence.leave()
                    && let Some(session) = &mut self.clients[index].session
                {
                    session.send(&goodbye);
                    let now = self.epoch + self.now;
                    session.close(now);
                    let link = session.link;
                    self.pump(link);
                }
                self.abandon(index)?;
                let client = &mut self.clients[index];
                self.strangers[client.room].union(&client.made);
                client.forget(&mut self.random, self.now);
            }
            (Fault::Outage, _) => {
                let length = self.up_to(Duration::from_secs(15), 20);
                self.disk.mood.outage_until = self.now + length;
                self.trace.line(self.now, format_args!("disk fails for {length:?}"));
            }
            (Fault::Crash, _) => self.crash(),
            (Fault::Drain, _) => self.drain()?,
            (Fault::Pause, _) => {
                let length = self.millis(1, 90_000);
                self.trace.line(self.now, format_args!("time jumps by {length:?}"));
                self.now += length;
                self.paused_at = Some(self.now);
                self.network.borrow_mut().now = self.now;
            }
            _ => {}
        }
        Ok(())
    }

    /// The connection of a client ends without a goodbye; the server hears of it, or does not.
    fn abandon(&mut self, index: usize) -> Result<(), Violation> {
        let Some(session) = &self.clients[index].session else { return Ok(()) };
        let link = session.link;
        if self.random.permille(200) {
            self.network.borrow_mut().half_open(link);
        }
        self.session_ends(Who::Client(index), link, "abandoned")
    }

    fn heal(&mut self) -> Result<(), Violation> {
        self.trace.line(self.now, format_args!("calm"));
        self.calm = true;
        self.disk.mood = Mood { latency_max: Duration::from_millis(2), ..Mood::default() };
        self.plan.faults.remove(&Fault::Expiry);
        {
            let mut network = self.network.borrow_mut();
            network.weather.latency_max = Duration::from_millis(2);
            network.weather.torn = 0;
        }
        let all: Vec<LinkId> = self.network.borrow().links.keys().copied().collect();
        for link in all {
            let hostile = matches!(self.links.get(&link), Some(Who::Hostile(_)));
            let half_open = self.network.borrow().links.get(&link).is_some_and(|pipes| pipes.half_open);
            if hostile || half_open {
                self.cut(link);
            }
        }
        for index in 0..self.clients.len() {
            self.clients[index].away_until = self.now;
            if let Some(session) = &mut self.clients[index].session {
                session.asleep_until = self.now;
                let link = session.link;
                self.at(Duration::ZERO, Event::ClientReads(link));
            } else {
                self.at(Duration::ZERO, Event::Connect(Who::Client(index)));
            }
        }
        Ok(())
    }

    fn leave(&mut self) {
        self.trace.line(self.now, format_args!("everybody leaves"));
        self.leaving = true;
        let now = self.instant();
        for index in 0..self.clients.len() {
            let client = &mut self.clients[index];
            let goodbye = client.presence.leave();
            if let Some(session) = &mut client.session {
                if let Some(goodbye) = goodbye {
                    session.send(&goodbye);
                }
                session.close(now);
                let link = session.link;
                self.pump(link);
            }
        }
    }

    // ---- checks

    fn check_step(&mut self) -> Result<(), Violation> {
        self.settle()?;
        let Some(host) = &self.host else { return Ok(()) };
        let server = host.server();
        let open = self.ends.values().filter(|end| matches!(end, End::Open { .. })).count();
        checks::counts_agree(server, host.counters().connections, open)?;
        checks::rooms_are_bounded(server, &self.options.config)?;
        let max = self.options.limits.outbox_bytes_max;
        for (link, end) in &self.ends {
            if let End::Open { id, .. } = end {
                let bytes = host.outbox_bytes(*id);
                if bytes > max {
                    let rooms = server.rooms();
                    let largest = rooms.map(|room| room.journal().len_bytes()).max().unwrap_or(0);
                    let presence = 100 * (self.clients.len() + self.hostiles.len());
                    checks::outbox_is_bounded(*link, bytes, max, 3 * largest + presence + 4096)?;
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
            let clients: Vec<_> =
                self.clients.iter().enumerate().filter(|(_, client)| client.room == room).collect();
            let Some(room_now) = self.host.as_ref().and_then(|host| host.server().room(&name)) else {
                continue;
            };
            // As a newcomer would get it, what is parked included.
            let squashed = room_now.journal().squash(SquashOptions { collect: false }).run();
            let stored: Vec<Bytes> = squashed.updates().cloned().collect();
            checks::replicas_agree(&name, &clients, &stored, &self.acknowledged[room])?;
            checks::presence_is_exact(&name, &clients)?;
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
            let clients: Vec<_> =
                self.clients.iter().enumerate().filter(|(_, client)| client.room == room).collect();
            checks::replicas_agree(&name, &clients, &stored, &self.acknowledged[room])?;
        }
        Ok(())
    }
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
        config.congestion_timeout = Duration::from_secs(random.pick(&[5, 60]));
    }
    options.config = config;
    options
}

/// What happened, as text and as a number.
struct Trace<'a> {
    hash: u64,
    text: String,
    log: Option<&'a mut dyn Write>,
}

impl Trace<'_> {
    fn line(&mut self, now: Duration, line: fmt::Arguments<'_>) {
        self.bytes(now, line, &[]);
    }

    /// A line that ends with bytes. They are spelled out only where somebody reads them.
    fn bytes(&mut self, now: Duration, line: fmt::Arguments<'_>, bytes: &[u8]) {
        self.text.clear();
        let _ = self.text.write_fmt(line);
        for part in [&now.as_nanos().to_le_bytes(), self.text.as_bytes(), bytes] {
            self.hash = mix_bytes(self.hash, part);
        }
        let Some(log) = &mut self.log else { return };
        let separator = if bytes.is_empty() { "" } else { " " };
        let time = now.as_secs_f64();
        // A log that cannot be written is not worth losing the outcome for.
        let _ = writeln!(log, "{time:>12.6} {}{separator}{}", self.text, Hex(bytes));
    }
}

/// Goes on with a hash: eight bytes at a time, because every frame of every world passes here.
fn mix_bytes(hash: u64, bytes: &[u8]) -> u64 {
    let mix = |hash: u64, word: u64| {
        let mixed = (hash ^ word).wrapping_mul(HASH_FACTOR);
        mixed ^ (mixed >> 29)
    };
    let mut words = bytes.chunks_exact(8);
    let hash = words.by_ref().fold(mix(hash, bytes.len() as u64), |hash, word| {
        mix(hash, u64::from_le_bytes(word.try_into().expect("they are eight")))
    });
    words.remainder().iter().fold(hash, |hash, byte| mix(hash, u64::from(*byte)))
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Time for the last effects of a storm: the silence rule, pings, the presence of those cut off.
const SETTLE: Duration = Duration::from_secs(75);

/// Within this time after that everybody agrees.
const CONVERGE: Duration = Duration::from_secs(45);

/// Time for goodbyes and closes.
const LEAVE: Duration = Duration::from_secs(75);

/// Time for those sent away by a drain to close.
const DRAINED: Duration = Duration::from_secs(11);

/// More than the maddest world needs.
const STEPS_MAX: u64 = 2_000_000;

/// Odd, and its bits are no pattern.
const HASH_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
