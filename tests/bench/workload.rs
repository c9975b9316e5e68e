//! Fixed work for the core, whose instructions `tests/bench/instructions` counts. What is counted happens
//! in `measured`; the rest prepares it.

#![allow(clippy::disallowed_methods, reason = "the clock starts somewhere")]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use bytes::Bytes;
use yrs::{ClientID, Doc, Options, Text, Transact};
use yrs_websocket::{
    Access, Config, ConnectionId, Input, Join, Output, Outputs, RoomName, Server, awareness,
    journal::{Journal, JournalLimits},
    message::Message,
    update::{ClientId, ScanRules, SquashOptions, StateVector, Update, join, squash},
};
use yrs_websocket_rfc6455::{self as rfc6455, Connection, Event, Opcode, Role, encode_frame};

/// Work that is ready to be done.
type Work = Box<dyn FnOnce() -> u64>;

/// Prepares it.
type Prepare = fn() -> Work;

const WORKLOADS: &[(&str, Prepare)] = &[
    ("scan", scan),
    ("receive", receive),
    ("join-updates", join_updates),
    ("squash", squash_log),
    ("diff", diff),
    ("fan-out", || fan_out(1)),
    ("ten-writers", || fan_out(10)),
    ("burst", burst),
    ("presence", presence),
    ("joins", joins),
    ("rooms", rooms),
    ("websocket", websocket),
];

fn main() {
    let name = std::env::args().nth(1).unwrap_or_default();
    match WORKLOADS.iter().find(|(known, _)| *known == name) {
        Some((_, prepare)) => println!("{}", measured(prepare())),
        None => WORKLOADS.iter().for_each(|(name, _)| println!("{name}")),
    }
}

#[inline(never)]
fn measured(work: Work) -> u64 {
    black_box(work())
}

fn scan() -> Work {
    let updates = keystrokes(1_000_000, 5_000);
    Box::new(move || updates.into_iter().map(|update| scanned(&update).bytes().len() as u64).sum())
}

fn receive() -> Work {
    let updates = proven(&keystrokes(1_000_000, 5_000));
    Box::new(move || journal(&updates).version())
}

fn join_updates() -> Work {
    let updates = proven(&keystrokes(1_000_000, 5_000));
    Box::new(move || updates.chunks(50).map(|updates| join(updates).bytes().len() as u64).sum())
}

fn squash_log() -> Work {
    let updates = proven(&keystrokes(1_000_000, 5_000));
    Box::new(move || squash(&updates, SquashOptions::default()).bytes().len() as u64)
}

fn diff() -> Work {
    let journal = journal(&proven(&keystrokes(1_000_000, 5_000)));
    let known = [(ClientId::new(1_000_000).expect("small"), 2_500)].into_iter().collect::<StateVector>();
    Box::new(move || journal.diff(&known).main.bytes().len() as u64)
}

/// 1,000 updates to 50 clients, 50 a second of each writer.
fn fan_out(writers: u64) -> Work {
    let mut world = World::new();
    world.join(0, 50);
    let updates = (0..writers).map(|n| frames(1_000_000 + n, (1_000 / writers) as usize)).collect::<Vec<_>>();
    Box::new(move || {
        let pause = Duration::from_millis(20) / writers as u32;
        for n in 0..updates[0].len() {
            for (writer, updates) in updates.iter().enumerate() {
                world.pass(pause);
                world.receive(writer as u64, updates[n].clone());
            }
        }
        world.pass(Duration::from_secs(1));
        world.deliveries
    })
}

/// 5,000 updates to 10 clients, 500 of them in each read.
fn burst() -> Work {
    let mut world = World::new();
    world.join(0, 11);
    let updates = frames(1_000_000, 5_000);
    Box::new(move || {
        for updates in updates.chunks(500) {
            world.pass(Duration::from_micros(200));
            updates.iter().for_each(|update| world.receive(0, update.clone()));
            world.pass(Duration::ZERO);
        }
        world.deliveries
    })
}

/// 100 clients move their cursors five times, within 200 ms each time.
fn presence() -> Work {
    let mut world = World::new();
    world.join(0, 100);
    let frame = |client: u64, clock: u32| {
        let state = Bytes::from(format!(r#"{{"user":{{"name":"User {client}"}},"cursor":{clock}}}"#));
        let client = ClientId::new(1_000_000 + client).expect("small");
        Message::Awareness(awareness::encode([(client, clock, Some(&state))].into_iter())).encode()
    };
    let moves = (1..=5).flat_map(|clock| (0..100).map(move |n| (n, frame(n, clock)))).collect::<Vec<_>>();
    Box::new(move || {
        for (client, frame) in moves {
            world.pass(Duration::from_millis(2));
            world.receive(client, frame);
        }
        world.deliveries
    })
}

/// 100 clients join a document that has been squashed, and leave.
fn joins() -> Work {
    let mut world = World::new();
    world.join(0, 1);
    let updates = frames(1_000_000, 5_000);
    updates.iter().for_each(|update| world.receive(0, update.clone()));
    world.pass(Duration::from_secs(1));
    Box::new(move || {
        world.join(1, 101);
        (1..101).for_each(|n| world.handle(Input::Disconnected { connection: ConnectionId(n) }));
        world.bytes
    })
}

/// An update in each of 500 rooms of two, twice.
fn rooms() -> Work {
    let mut world = World::new();
    for n in 0..1_000 {
        world.join_room(n, &format!("room-{}", n / 2));
    }
    let updates = frames(1_000_000, 2);
    Box::new(move || {
        for update in updates {
            for room in 0..500 {
                world.pass(Duration::from_millis(2));
                world.receive(2 * room, update.clone());
            }
        }
        world.deliveries
    })
}

/// 5,000 masked frames in reads of 1,000 bytes, each answered by one of its own.
fn websocket() -> Work {
    let now = Instant::now();
    let mut client = Connection::new(Role::Client { mask_seed: 1 }, rfc6455::Config::default(), now);
    let mut server = Connection::new(Role::Server, rfc6455::Config::default(), now);
    frames(1_000_000, 5_000).iter().for_each(|frame| client.send_binary(frame));
    let mut sent = Vec::new();
    while let Some(output) = client.next_output() {
        sent.extend_from_slice(&output);
    }
    Box::new(move || {
        let mut len = 0;
        for read in sent.chunks_mut(1_000) {
            let mut input = read;
            while let Some(event) = server.receive(now, &mut input) {
                if let Event::Binary(payload) = event {
                    len += encode_frame(Opcode::Binary, &payload).len() as u64;
                }
            }
        }
        len
    })
}

/// A server whose store answers at once.
struct World {
    server: Server,
    now: Instant,
    deliveries: u64,
    bytes: u64,
}

impl World {
    fn new() -> Self {
        Self { server: Server::new(Config::default(), 1), now: Instant::now(), deliveries: 0, bytes: 0 }
    }

    /// Lets clients join as y-websocket does.
    fn join(&mut self, from: u64, to: u64) {
        (from..to).for_each(|n| self.join_room(n, "room"));
    }

    fn join_room(&mut self, n: u64, room: &str) {
        let room = RoomName::new(room).expect("short");
        self.handle(Input::Connected(Join::new(ConnectionId(n), room, Access::Write)));
        self.receive(n, Message::SyncStep1(StateVector::default().encode()).encode());
        self.receive(n, Message::SyncStep2(Update::default().bytes().clone()).encode());
    }

    fn receive(&mut self, from: u64, frame: Bytes) {
        self.handle(Input::Received { connection: ConnectionId(from), frame });
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        while self.server.next_timeout().is_some_and(|timeout| timeout <= self.now) {
            self.handle(Input::Timeout);
        }
    }

    fn handle(&mut self, input: Input) {
        let outputs = self.server.handle(self.now, input);
        self.perform(outputs);
    }

    fn perform(&mut self, outputs: Outputs) {
        for output in outputs {
            match output {
                Output::Send { to, frame } => {
                    self.deliveries += to.iter().count() as u64;
                    self.bytes += frame.len() as u64;
                }
                Output::Load { room } => self.handle(Input::Loaded { room, updates: Vec::new() }),
                Output::Append { room, seq, update: _ } => self.handle(Input::Stored { room, seq }),
                Output::Compact { room, seq, squash } => {
                    let squashed = squash.run();
                    self.handle(Input::Compacted { room, seq, squashed });
                }
                Output::Close { .. } | Output::Event(_) => {}
            }
        }
    }
}

/// An update for each keystroke of somebody who types at the end.
fn keystrokes(client: u64, count: u32) -> Vec<Bytes> {
    let options = Options::with_guid_and_client_id("workload".into(), ClientID::new(client));
    let doc = Doc::with_options(options);
    let text = doc.get_or_insert_text("text");
    let update = |at| {
        let mut transaction = doc.transact_mut();
        text.insert(&mut transaction, at, "x");
        transaction.encode_update_v1().into()
    };
    (0..count).map(update).collect()
}

fn frames(client: u64, count: usize) -> Vec<Bytes> {
    keystrokes(client, count as u32).into_iter().map(|update| Message::Update(update).encode()).collect()
}

fn proven(updates: &[Bytes]) -> Vec<Update> {
    updates.iter().map(scanned).collect()
}

fn scanned(update: &Bytes) -> Update {
    Update::scan(update.clone(), &ScanRules::default()).expect("yrs has made it")
}

fn journal(updates: &[Update]) -> Journal {
    let mut journal = Journal::new(JournalLimits::default());
    updates.iter().for_each(|update| _ = journal.receive(update));
    journal
}
