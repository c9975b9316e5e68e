//! The scenarios, and how each is run.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs, io,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::Serialize;

use crate::{
    fleet::{Author, FIRST_ID, Fleet, append_bytes},
    measure::{Latency, Process, Usage},
    servers::{Running, Server, scratch},
    updates,
};

/// Who is there, and what they do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    rooms: usize,
    /// Clients of each room.
    clients: usize,
    /// So many of them write.
    writers: usize,
    load: Load,
}

#[derive(Debug, Clone, Copy)]
enum Load {
    /// Each writer so often a second.
    Paced(f64),
    /// Each writer's presence so often a second.
    Presence(f64),
    /// In each room so many updates that not everybody has.
    Closed(usize),
    /// So many updates as fast as the server reads them.
    Bulk(usize),
    /// A document of so many papers, and everybody joins at once.
    Join(usize),
    /// Everybody comes back at once, and has nearly everything.
    Reconnect,
    /// Nothing, in rooms with a text.
    Idle,
}

/// What came of a run.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Outcome {
    /// Why the numbers are worth nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<String>,
    pub(crate) seconds: f64,
    pub(crate) deliveries: u64,
    pub(crate) frames: u64,
    pub(crate) deliveries_per_second: f64,
    /// User and system time of the server for 1,000 deliveries, in milliseconds: microseconds for one.
    pub(crate) cpu_per_1000: f64,
    /// System time in that.
    pub(crate) system_share: f64,
    /// Of one core.
    pub(crate) server_cpu: f64,
    /// Of one core.
    pub(crate) generator_cpu: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) latency: Option<Latency>,
    /// Until the author has it back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) echo: Option<Latency>,
    /// Memory of the server, in bytes: empty, at the end, and the most it had.
    pub(crate) memory_empty: u64,
    pub(crate) memory: u64,
    pub(crate) memory_peak: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) joins: Option<Joins>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle: Option<Idle>,
}

/// What it costs to join.
#[derive(Debug, Serialize)]
pub(crate) struct Joins {
    pub(crate) count: usize,
    /// Milliseconds of CPU for one.
    pub(crate) cpu: f64,
    pub(crate) latency: Option<Latency>,
    /// Bytes of the answer.
    pub(crate) encoded: usize,
    /// The most memory the server had above what it has empty, in bytes.
    pub(crate) peak_above_empty: u64,
}

/// What it costs to be there, in bytes.
#[derive(Debug, Serialize)]
pub(crate) struct Idle {
    pub(crate) connections: usize,
    pub(crate) per_connection: f64,
    pub(crate) per_room: f64,
}

const fn paced(name: &'static str, about: &'static str, clients: usize, writers: usize) -> Scenario {
    Scenario { name, about, rooms: 1, clients, writers, load: Load::Paced(50.0) }
}

/// All of them, by name.
pub(crate) const SCENARIOS: &[Scenario] = &[
    paced("paced", "50 clients, one writes 50 times a second", 50, 1),
    paced("paced-10-writers", "50 clients, ten write 50 times a second", 50, 10),
    Scenario {
        load: Load::Closed(16),
        ..paced("closed-50", "50 clients, 16 updates of one writer in flight", 50, 1)
    },
    Scenario {
        load: Load::Closed(4),
        ..paced("closed-500", "500 clients, 4 updates of one writer in flight", 500, 1)
    },
    Scenario {
        rooms: 1_000,
        load: Load::Paced(1.0),
        ..paced("rooms-1000", "1,000 rooms of two, one writes once a second", 2, 1)
    },
    Scenario { load: Load::Bulk(20_000), ..paced("bulk-10", "20,000 updates at once to 10 readers", 11, 1) },
    Scenario { load: Load::Bulk(20_000), ..paced("bulk-1", "20,000 updates at once to one reader", 2, 1) },
    Scenario {
        load: Load::Presence(5.0),
        ..paced("presence-100", "100 clients move their cursors 5 times a second", 100, 100)
    },
    Scenario {
        load: Load::Presence(5.0),
        ..paced("presence-1000", "1,000 clients move their cursors 5 times a second", 1_000, 1_000)
    },
    Scenario { load: Load::Join(1), ..paced("big-document", "50 join a long text at once", 50, 0) },
    Scenario { load: Load::Join(10), ..paced("big-document-10", "50 join ten long texts at once", 50, 0) },
    Scenario {
        rooms: 1_000,
        load: Load::Idle,
        ..paced("idle-2000", "2,000 idle clients in 1,000 rooms", 2, 0)
    },
    Scenario {
        rooms: 5_000,
        load: Load::Idle,
        ..paced("idle-10000", "10,000 idle clients in 5,000 rooms", 2, 0)
    },
    Scenario { load: Load::Reconnect, ..paced("reconnect-500", "500 come back at once", 500, 0) },
    Scenario { load: Load::Reconnect, ..paced("reconnect-2000", "2,000 come back at once", 2_000, 0) },
    Scenario {
        rooms: 16,
        load: Load::Closed(4),
        ..paced("independent", "16 rooms of 20, 4 updates in flight in each, one core", 20, 1)
    },
    paced("peers-1", "a room of 2, one writes 50 times a second", 2, 1),
    paced("peers-10", "a room of 11, one writes 50 times a second", 11, 1),
    paced("peers-100", "a room of 101, one writes 50 times a second", 101, 1),
    Scenario {
        load: Load::Paced(20.0),
        ..paced("peers-1000", "a room of 1,001, one writes 20 times a second", 1_001, 1)
    },
    Scenario {
        load: Load::Paced(4.0),
        ..paced("peers-5000", "a room of 5,001, one writes 4 times a second", 5_001, 1)
    },
    Scenario {
        rooms: 30,
        load: Load::Paced(1.0),
        ..paced("rooms-30", "30 rooms of two, one writes once a second: for `profile --lines`", 2, 1)
    },
    Scenario {
        rooms: 10,
        load: Load::Paced(50.0),
        ..paced("rooms-10-scale", "10 rooms of two, one writes 50 times a second", 2, 1)
    },
    Scenario {
        rooms: 100,
        load: Load::Paced(10.0),
        ..paced("rooms-100-scale", "100 rooms of two, one writes 10 times a second", 2, 1)
    },
    Scenario {
        rooms: 1_000,
        load: Load::Paced(1.0),
        ..paced("rooms-1000-scale", "1,000 rooms of two, one writes once a second", 2, 1)
    },
    Scenario {
        rooms: 9_000,
        load: Load::Paced(0.25),
        ..paced("rooms-9000-scale", "9,000 rooms of two, one writes every 4 seconds", 2, 1)
    },
    Scenario { load: Load::Bulk(200), ..paced("smoke", "200 updates at once to 9 readers", 10, 1) },
];

/// Runs a scenario once against a server that has nobody.
pub(crate) fn run(scenario: &Scenario, server: Server, seconds: f64) -> io::Result<Outcome> {
    let answer = match scenario.load {
        Load::Join(copies) if server == Server::Ceiling => Some(papers_message(copies)?),
        _ => None,
    };
    let running = Running::start(server, answer.as_deref())?;
    run_against(scenario, server, &running, seconds)
}

/// Runs a scenario once against a server that runs.
pub(crate) fn run_against(
    scenario: &Scenario,
    server: Server,
    running: &Running,
    seconds: f64,
) -> io::Result<Outcome> {
    let mut run = Run {
        scenario: *scenario,
        server,
        process: running.process.clone(),
        generator: Process::new(std::process::id()),
        fleet: Fleet::new(running.address, server.dialect(), running.rooms.clone())?,
        empty: running.process.usage()?,
        window: Duration::from_secs_f64(seconds),
        outcome: Outcome::default(),
    };
    match scenario.load {
        Load::Paced(rate) | Load::Presence(rate) => run.paced(rate)?,
        Load::Closed(in_flight) => run.closed(in_flight)?,
        Load::Bulk(count) => run.bulk(count)?,
        Load::Join(copies) => run.join(copies)?,
        Load::Reconnect => run.reconnect()?,
        Load::Idle => run.idle()?,
    }
    let end = run.process.usage()?;
    let mut outcome = run.outcome;
    outcome.failure = run.fleet.failure;
    outcome.memory_empty = run.empty.memory;
    outcome.memory = end.memory;
    outcome.memory_peak = end.peak;
    Ok(outcome)
}

struct Run {
    scenario: Scenario,
    server: Server,
    process: Process,
    generator: Process,
    fleet: Fleet,
    empty: Usage,
    window: Duration,
    outcome: Outcome,
}

/// The start of what is measured.
struct Mark {
    at: Instant,
    server: Usage,
    generator: Usage,
    deliveries: u64,
    frames: u64,
}

impl Run {
    fn paced(&mut self, rate: f64) -> io::Result<()> {
        let count = ((self.window + WARM_UP).as_secs_f64() * rate) as usize + 2;
        self.populate(count);
        self.connect_all();
        // One after another, evenly over the time between two updates of one of them.
        let period = Duration::from_secs_f64(1.0 / rate);
        let (rooms, writers) = (self.scenario.rooms, self.scenario.writers);
        let authors = rooms * writers;
        let start = Instant::now();
        let mut queue = (0..authors)
            .map(|n| (start + period.mul_f64(n as f64 / authors as f64), n % rooms, n / rooms))
            .collect::<VecDeque<_>>();
        self.drive_until(start + WARM_UP, &mut queue, period);
        let mark = self.mark()?;
        self.drive_until(mark.at + self.window, &mut queue, period);
        self.measure(&mark)?;
        self.finish()
    }

    fn drive_until(&mut self, end: Instant, queue: &mut VecDeque<(Instant, usize, usize)>, period: Duration) {
        while self.fleet.failure.is_none() {
            let now = Instant::now();
            if now >= end {
                return;
            }
            while let Some(&(due, room, author)) = queue.front()
                && due <= now
            {
                queue.pop_front();
                if !self.fleet.rooms[room].authors[author].is_spent() {
                    self.fleet.send_next(room, author);
                    queue.push_back((due + period, room, author));
                }
            }
            let due = queue.front().map_or(end, |(due, ..)| (*due).min(end));
            self.fleet.round(due.saturating_duration_since(Instant::now()));
        }
    }

    fn closed(&mut self, in_flight: usize) -> io::Result<()> {
        let (rooms, clients) = (self.scenario.rooms, self.scenario.clients);
        let per_second = CLOSED_DELIVERIES_MAX / (rooms * clients);
        let count = ((self.window + WARM_UP).as_secs_f64() * per_second as f64) as usize;
        self.populate(count);
        self.connect_all();
        let end = Instant::now() + WARM_UP;
        self.fleet.advanced = (0..rooms).collect();
        self.drive_closed(in_flight, end);
        let mark = self.mark()?;
        self.drive_closed(in_flight, mark.at + self.window);
        self.measure(&mark)?;
        if self.fleet.rooms.iter().any(|room| room.authors[0].is_spent()) {
            self.fleet.fail("the updates that were made did not last".into());
        }
        self.finish()
    }

    fn drive_closed(&mut self, in_flight: usize, end: Instant) {
        while self.fleet.failure.is_none() && Instant::now() < end {
            for room in std::mem::take(&mut self.fleet.advanced) {
                let author = &self.fleet.rooms[room].authors[0];
                let flying = author.sent - author.done;
                if flying < in_flight {
                    self.fleet.send_many(room, 0, in_flight - flying);
                }
            }
            self.fleet.round(Duration::from_millis(1));
        }
    }

    fn bulk(&mut self, count: usize) -> io::Result<()> {
        self.populate(count);
        self.connect_all();
        let mark = self.mark()?;
        self.fleet.send_many(0, 0, count);
        self.settle();
        self.measure(&mark)?;
        self.finish()
    }

    fn join(&mut self, copies: usize) -> io::Result<()> {
        let papers = updates::papers(copies);
        let expected = updates::content(papers.iter().cloned());
        let has_document = self.server != Server::Ceiling;
        // As many have come and gone, so that what connections and code need is there before the document.
        let passers_by = self.fleet.len()..self.fleet.len() + self.scenario.clients;
        for _ in passers_by.clone() {
            self.fleet.add(1, empty_state());
        }
        self.fleet.connect(passers_by.clone(), self.connecting_max(), SETTLE_TIME);
        passers_by.for_each(|client| self.fleet.cut(client));
        self.rest(IDLE_TIME);
        self.empty = self.process.usage()?;
        if has_document {
            let writer = self.fleet.add(0, empty_state());
            self.fleet.connect(writer..writer + 1, 1, SETTLE_TIME);
            papers.iter().for_each(|paper| self.fleet.send_update(writer, paper));
            self.await_content(&expected)?;
        }
        let first = self.fleet.len();
        for _ in 0..self.scenario.clients {
            self.fleet.add(0, empty_state());
        }
        let sample = [first, self.fleet.len() - 1];
        sample.iter().for_each(|client| self.fleet.keep(*client));
        self.fleet.tally.join = crate::measure::Histogram::new();
        let mark = self.mark()?;
        self.fleet.connect(first..self.fleet.len(), usize::MAX, SETTLE_TIME);
        let used = self.joined(&mark, self.scenario.clients)?;
        let encoded = self.fleet.kept(first).into_iter().flatten().map(Bytes::len).max().unwrap_or(0);
        self.outcome.joins = Some(Joins { encoded, ..used });
        for client in sample {
            let content = updates::content(self.fleet.kept(client).unwrap_or_default().iter().cloned());
            self.compare(&content, &expected, "a joiner");
        }
        Ok(())
    }

    fn reconnect(&mut self) -> io::Result<()> {
        let keystrokes = updates::keystrokes(FIRST_ID, RECONNECT_CLOCKS);
        let expected = updates::content(keystrokes.iter().cloned());
        let has_document = self.server != Server::Ceiling;
        if has_document {
            let writer = self.fleet.add(0, empty_state());
            self.fleet.connect(writer..writer + 1, 1, SETTLE_TIME);
            keystrokes.iter().for_each(|update| self.fleet.send_update(writer, update));
            self.await_content(&expected)?;
        }
        let first = self.fleet.len();
        for n in 0..self.scenario.clients {
            let clock = RECONNECT_CLOCKS - 1 - n % RECONNECT_BEHIND;
            self.fleet.add(0, state(FIRST_ID, clock));
        }
        let sample = [first, self.fleet.len() - 1];
        sample.iter().for_each(|client| self.fleet.keep(*client));
        self.fleet.tally.join = crate::measure::Histogram::new();
        let mark = self.mark()?;
        self.fleet.connect(first..self.fleet.len(), usize::MAX, SETTLE_TIME);
        let used = self.joined(&mark, self.scenario.clients)?;
        self.outcome.joins = Some(used);
        if has_document {
            for client in sample {
                let clock = RECONNECT_CLOCKS - 1 - (client - first) % RECONNECT_BEHIND;
                let had = keystrokes[..clock].iter().cloned();
                let kept = self.fleet.kept(client).unwrap_or_default().to_vec();
                let content = updates::content(had.chain(kept));
                self.compare(&content, &expected, "one who came back");
            }
        }
        Ok(())
    }

    fn idle(&mut self) -> io::Result<()> {
        let rooms = self.scenario.rooms;
        let ids = (0..rooms).map(|room| self.fleet.add(room, empty_state())).collect::<Vec<_>>();
        self.fleet.connect(0..rooms, self.connecting_max(), SETTLE_TIME);
        for &client in &ids {
            self.fleet.send_update(client, &updates::text(client as u64 + 1, 100));
            if client % 100 == 0 {
                self.fleet.round(Duration::from_millis(1));
            }
        }
        self.rest(IDLE_TIME);
        let with_rooms = self.process.usage()?;
        for room in 0..rooms {
            self.fleet.add(room, empty_state());
        }
        self.fleet.connect(rooms..2 * rooms, self.connecting_max(), SETTLE_TIME);
        self.rest(IDLE_TIME);
        let mark = self.mark()?;
        let per_connection = (mark.server.memory as f64 - with_rooms.memory as f64) / rooms as f64;
        let both = (with_rooms.memory as f64 - self.empty.memory as f64) / rooms as f64;
        self.rest(self.window);
        self.measure(&mark)?;
        self.outcome.idle =
            Some(Idle { connections: 2 * rooms, per_connection, per_room: both - per_connection });
        Ok(())
    }

    /// Makes the clients, their updates, and a sample that keeps what it receives.
    fn populate(&mut self, updates: usize) {
        let Scenario { rooms, clients, writers, load, .. } = self.scenario;
        for room in 0..rooms {
            let first = self.fleet.len();
            for _ in 0..clients {
                self.fleet.add(room, empty_state());
            }
            for writer in 0..writers {
                let id = FIRST_ID + writer as u64;
                let is_presence = matches!(load, Load::Presence(_));
                let made = if is_presence {
                    (1..=updates as u32).map(|clock| updates::presence(id, clock)).collect()
                } else {
                    updates::keystrokes(id, updates)
                };
                self.fleet.rooms[room].authors.push(Author::new(first + writer, made, is_presence));
            }
            if (room == 0 || room == rooms - 1) && !matches!(load, Load::Presence(_)) {
                self.fleet.keep(first + writers);
                self.fleet.keep(first + clients - 1);
            }
        }
    }

    fn connect_all(&mut self) {
        self.fleet.connect(0..self.fleet.len(), self.connecting_max(), SETTLE_TIME);
        // Greetings are over.
        self.rest(Duration::from_millis(100));
    }

    /// Connections that are made at the same time, where the storm is not what is measured.
    fn connecting_max(&self) -> usize {
        // Two who open a room of pycrdt-websocket at the same time start it twice, and hang.
        if self.server == Server::PycrdtWebsocket { 1 } else { CONNECTING_MAX }
    }

    fn rest(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end && self.fleet.failure.is_none() {
            self.fleet.round(end.saturating_duration_since(Instant::now()));
        }
    }

    fn mark(&mut self) -> io::Result<Mark> {
        self.fleet.tally.since = self.fleet.now();
        Ok(Mark {
            server: self.process.usage()?,
            generator: self.generator.usage()?,
            at: Instant::now(),
            deliveries: self.fleet.tally.deliveries,
            frames: self.fleet.tally.frames,
        })
    }

    fn measure(&mut self, mark: &Mark) -> io::Result<()> {
        let seconds = mark.at.elapsed().as_secs_f64();
        let (server, generator) = (self.process.usage()?, self.generator.usage()?);
        let deliveries = self.fleet.tally.deliveries - mark.deliveries;
        let cpu = (server.cpu - mark.server.cpu).as_secs_f64();
        let outcome = &mut self.outcome;
        outcome.seconds = seconds;
        outcome.deliveries = deliveries;
        outcome.frames = self.fleet.tally.frames - mark.frames;
        outcome.deliveries_per_second = deliveries as f64 / seconds;
        outcome.cpu_per_1000 = cpu * 1e6 / deliveries.max(1) as f64;
        outcome.system_share = (server.system - mark.server.system).as_secs_f64() / cpu.max(1e-9);
        outcome.server_cpu = cpu / seconds;
        outcome.generator_cpu = (generator.cpu - mark.generator.cpu).as_secs_f64() / seconds;
        Ok(())
    }

    fn joined(&mut self, mark: &Mark, count: usize) -> io::Result<Joins> {
        // What is still to be said to those who have joined.
        self.rest(Duration::from_millis(200));
        self.measure(mark)?;
        let used = self.process.usage()?;
        Ok(Joins {
            count,
            cpu: (used.cpu - mark.server.cpu).as_secs_f64() * 1e3 / count as f64,
            latency: self.fleet.tally.join.latency(),
            encoded: 0,
            peak_above_empty: used.peak.saturating_sub(self.empty.peak),
        })
    }

    /// Waits until everything that was sent is delivered.
    fn settle(&mut self) {
        let end = Instant::now() + SETTLE_TIME;
        while self.fleet.tally.outstanding > 0 && self.fleet.failure.is_none() {
            if Instant::now() > end {
                break;
            }
            self.fleet.round(Duration::from_millis(10));
        }
    }

    /// Sees that everybody has everything, that samples of them have the right document, and that the
    /// server has it.
    fn finish(&mut self) -> io::Result<()> {
        self.settle();
        self.outcome.latency = self.fleet.tally.latency.latency();
        self.outcome.echo = self.fleet.tally.echo.latency();
        if let Some(missing) = self.fleet.missing() {
            self.fleet.fail(missing);
        }
        if self.fleet.failure.is_some() || matches!(self.scenario.load, Load::Presence(_)) {
            return Ok(());
        }
        let Scenario { rooms, clients, writers, .. } = self.scenario;
        let rooms = BTreeSet::from([0, rooms - 1]);
        let mut joiners = BTreeMap::new();
        for &room in rooms.iter().filter(|_| self.server != Server::Ceiling) {
            let joiner = self.fleet.add(room, empty_state());
            self.fleet.keep(joiner);
            self.fleet.connect(joiner..joiner + 1, 1, SETTLE_TIME);
            joiners.insert(room, joiner);
        }
        // From here on nobody answers the server any more: to compare takes longer than it waits for that.
        for room in rooms {
            let sent = self.fleet.rooms[room].authors.iter().flat_map(Author::sent_updates);
            let expected = updates::content(sent.cloned().collect::<Vec<_>>());
            let readers =
                [room * clients + writers, (room + 1) * clients - 1].map(|client| (client, "a reader"));
            let joiner = joiners.get(&room).map(|joiner| (*joiner, "who joins afterwards"));
            for (client, who) in readers.into_iter().chain(joiner) {
                let kept = self.fleet.kept(client).unwrap_or_default().to_vec();
                self.compare(&updates::content(kept), &expected, who);
            }
        }
        Ok(())
    }

    fn compare<T: PartialEq>(&mut self, has: &Result<T, String>, expected: &Result<T, String>, who: &str) {
        match (has, expected) {
            (Err(error), _) | (_, Err(error)) => self.fleet.fail(format!("{who} cannot read: {error}")),
            (Ok(has), Ok(expected)) if has == expected => {}
            _ => self.fleet.fail(format!("{who} has another document")),
        }
    }

    /// Joins again and again until the server has this.
    fn await_content(&mut self, expected: &Result<(String, yrs::StateVector), String>) -> io::Result<()> {
        let end = Instant::now() + SETTLE_TIME;
        loop {
            let probe = self.fleet.add(0, empty_state());
            self.fleet.keep(probe);
            self.fleet.connect(probe..probe + 1, 1, SETTLE_TIME);
            let content = updates::content(self.fleet.kept(probe).unwrap_or_default().iter().cloned());
            let is_there = content.is_ok() && content == *expected;
            self.fleet.cut(probe);
            if is_there || self.fleet.failure.is_some() {
                break;
            }
            if Instant::now() > end {
                self.fleet.fail("the server never has the document".into());
                break;
            }
            self.rest(Duration::from_millis(100));
        }
        // Whatever the server makes of it, a snapshot say, is made.
        self.rest(IDLE_TIME);
        Ok(())
    }
}

/// Writes what the ceiling answers with, and says where.
fn papers_message(copies: usize) -> io::Result<std::path::PathBuf> {
    let papers = updates::papers(copies);
    let together = yrs::merge_updates_v1(&papers).map_err(io::Error::other)?;
    let mut message = vec![0, 1];
    append_bytes(&mut message, &together);
    let path = scratch()?.join(format!("papers-{copies}"));
    fs::write(&path, message)?;
    Ok(path)
}

fn empty_state() -> Bytes {
    Bytes::from_static(&[0])
}

fn state(client: u64, clock: usize) -> Bytes {
    let client = yrs_websocket::update::ClientId::new(client).expect("ids are small");
    [(client, clock as u64)].into_iter().collect::<yrs_websocket::update::StateVector>().encode()
}

/// Until the server has warmed up.
const WARM_UP: Duration = Duration::from_millis(700);

/// How long everybody may take to get everything.
const SETTLE_TIME: Duration = Duration::from_secs(20);

/// How long a server is given to tidy up.
const IDLE_TIME: Duration = Duration::from_millis(1_500);

/// Less than the listen backlog of any server.
const CONNECTING_MAX: usize = 64;

/// More are not made for a closed loop, a second.
const CLOSED_DELIVERIES_MAX: usize = 6_000_000;

/// What those who come back may have, and how far behind they are.
const RECONNECT_CLOCKS: usize = 1_000;
const RECONNECT_BEHIND: usize = 50;
