//! Honest clients and a server.

use std::collections::VecDeque;

use bytes::Bytes;
use yrs::{ReadTxn, Transact, updates::decoder::Decode, updates::encoder::Encode};
use yrs_websocket::{
    Config, ConnectionId, Input, Server,
    journal::{Journal, JournalLimits, Mark},
    message::Message,
    update::{ClientId, IdSet},
};

use crate::{
    Script,
    histories::{self, WRITERS},
    server::{Stored, scan},
    support::{self, World},
};

/// Documents of yrs that sync as those of stock clients do, a server, and a store that may fail: the bytes decide
/// who does what when. Whatever happens on the way, once all are back they show the same, which is what is
/// stored; and nobody gets back what it wrote before that is stored.
///
/// Input: a byte of options, then operations.
pub fn session(data: &[u8]) {
    let mut script = Script(data);
    let mut session = Session::new(script.byte());
    let mut steps = 0;
    while !script.is_over() && steps < STEPS_MAX {
        session.step(&mut script);
        session.deliver();
        steps += 1;
    }
    session.heal();
}

struct Session {
    options: u8,
    server: Stored,
    tabs: Vec<Tab>,
    next_connection: u64,
}

/// One tab of an editor: its document outlives its connections.
struct Tab {
    doc: yrs::Doc,
    client: ClientId,
    /// What the document has, and what waits for what it hangs on.
    journal: Journal,
    /// The end of what of its log is in the document.
    applied: Mark,
    connection: Option<u64>,
    to_server: VecDeque<Bytes>,
    to_client: VecDeque<Bytes>,
}

impl Session {
    fn new(options: u8) -> Self {
        let tabs = WRITERS[..3].iter().enumerate().map(|(index, &client)| Tab {
            doc: histories::document(client, index == 2),
            client: ClientId::new(client).expect("below 2^53"),
            journal: Journal::new(JournalLimits::default()),
            applied: Mark::default(),
            connection: None,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
        });
        Self { options, server: Stored::new(config(options)), tabs: tabs.collect(), next_connection: 1 }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let op = script.byte();
        let index = usize::from(op >> 4) % self.tabs.len();
        let tab = &mut self.tabs[index];
        let connection = tab.connection.map(ConnectionId);
        match (op & 15, connection) {
            (0..=3, _) => {
                let what = 6 + script.byte() % 14;
                // Not the formats: what they cover depends on the order of arrival.
                let what = if what == 11 { 10 } else { what };
                let (x, y) = (script.byte().into(), script.byte().into());
                let update = histories::edit(&tab.doc, what, x, y);
                let _ = tab.journal.receive(&scan(update.clone().into()).expect("yrs wrote it"));
                if connection.is_some() && update != [0, 0] {
                    tab.to_server.push_back(Message::Update(update.into()).encode());
                }
            }
            (4..=6, Some(connection)) => {
                for _ in 0..=script.byte() % 4 {
                    let Some(frame) = self.tabs[index].to_server.pop_front() else { break };
                    self.server.input(Input::Received { connection, frame });
                }
            }
            (7 | 8, Some(_)) => {
                for _ in 0..=script.byte() % 4 {
                    tab.hear();
                }
            }
            (9 | 10, _) => self.server.answer_one(script),
            (11, _) => self.server.pass(script.pick(&[1, 5, 10, 50, 200, 2000, 10_000])),
            (12, Some(connection)) => {
                self.server.input(Input::Disconnected { connection });
                tab.forget_connection();
            }
            (12 | 4..=8, None) => self.connect(index),
            (13, Some(connection)) if op & 128 == 0 => self.server.input(Input::Congested { connection }),
            (13, Some(connection)) => self.server.input(Input::Writable { connection }),
            (14, _) => self.server.edit(&support::room()),
            _ if script.below(4) == 0 => self.crash(script),
            _ => {}
        }
    }

    fn connect(&mut self, index: usize) {
        let connection = self.next_connection;
        self.next_connection += 1;
        let tab = &mut self.tabs[index];
        tab.connection = Some(connection);
        let state = tab.doc.transact().state_vector().encode_v1();
        tab.to_server.push_back(Message::SyncStep1(state.into()).encode());
        self.server.input(Input::Connected(support::join(connection)));
    }

    /// The server dies, and comes back with what is on the disk.
    fn crash(&mut self, script: &mut Script<'_>) {
        self.next_connection += 1;
        let pending = std::mem::take(&mut self.server.pending);
        let performed = script.below(pending.len() + 1);
        for pending in &pending[..performed] {
            self.server.disk.perform(pending);
        }
        self.server.world = World::new(config(self.options));
        // As from the system: what it writes is under other ids than before.
        self.server.world.server = Server::new(config(self.options), 42 + self.next_connection);
        self.server.rooms.clear();
        self.server.sent.clear();
        // What the server itself wrote may be gone with it, and with those who were told of it.
        self.server.relayed.clear();
        self.tabs.iter_mut().for_each(Tab::forget_connection);
    }

    /// Hands to the tabs what the server has sent them, and holds it against what is stored.
    fn deliver(&mut self) {
        let sent = std::mem::take(&mut self.server.sent);
        for (to, frame) in sent {
            for tab in self.tabs.iter_mut().filter(|tab| tab.connection.is_some_and(|c| to.contains(&c))) {
                if let Some(Ok(Message::SyncStep2(update) | Message::Update(update))) =
                    Message::decode(&frame).next()
                {
                    let update = scan(update).expect("what is sent was scanned");
                    let mut own = update.inserts().filter(|(client, _)| *client == tab.client).peekable();
                    if own.peek().is_some() {
                        let stored = stored(&self.server);
                        assert!(
                            own.all(|(client, clocks)| stored.contains_range(client, clocks)),
                            "acknowledged before it is stored: {update:?}"
                        );
                    }
                }
                tab.to_client.push_back(frame.clone());
            }
        }
        for tab in &mut self.tabs {
            if tab.connection.is_some_and(|connection| !self.server.rooms.contains_key(&connection)) {
                tab.forget_connection();
            }
        }
    }

    /// Everything works again and everybody comes back: all must agree.
    ///
    /// They come back twice: a tab does not say what waits in it, and after a crash of the server it may be the only
    /// one that has that.
    fn heal(&mut self) {
        self.come_back();
        for tab in &mut self.tabs {
            if let Some(connection) = tab.connection.map(ConnectionId) {
                self.server.input(Input::Disconnected { connection });
            }
            tab.forget_connection();
        }
        self.come_back();
        let shown: Vec<_> = self.tabs.iter().map(|tab| histories::content(&tab.doc)).collect();
        let on_disk = histories::document(2, false);
        let mut journal = Journal::new(JournalLimits::default());
        for update in self.server.disk.load(&support::room()) {
            journal.restore(&scan(update).expect("what is stored was scanned"));
        }
        integrate(&on_disk, &journal, Mark::default());
        assert_eq!(histories::content(&on_disk), shown[0]);
        assert!(shown.iter().all(|other| *other == shown[0]), "{shown:?}");
        self.server.heal();
    }

    fn come_back(&mut self) {
        self.deliver();
        for round in 0..ROUNDS_MAX {
            for index in 0..self.tabs.len() {
                match self.tabs[index].connection.map(ConnectionId) {
                    None => self.connect(index),
                    Some(connection) => self.server.input(Input::Writable { connection }),
                }
                self.deliver();
                while let (Some(connection), Some(frame)) =
                    (self.tabs[index].connection.map(ConnectionId), self.tabs[index].to_server.pop_front())
                {
                    self.server.input(Input::Received { connection, frame });
                    self.deliver();
                }
            }
            self.server.answer(true);
            self.deliver();
            self.server.pass(if round < 3 { 6000 } else { 100 });
            self.deliver();
            for tab in &mut self.tabs {
                while tab.hear() {}
            }
            if round > 3
                && self.server.pending.is_empty()
                && self.tabs.iter().all(|tab| tab.to_server.is_empty())
            {
                break;
            }
            assert!(round + 1 < ROUNDS_MAX, "it does not come to rest");
        }
    }
}

impl Tab {
    /// Reads one frame; false if there is none.
    fn hear(&mut self) -> bool {
        let Some(frame) = self.to_client.pop_front() else { return false };
        match Message::decode(&frame).next() {
            Some(Ok(Message::SyncStep1(state))) => {
                let known = yrs::StateVector::decode_v1(&state).expect("it reads");
                let update = histories::state_beyond(&self.doc, &known);
                self.to_server.push_back(Message::SyncStep2(update.into()).encode());
            }
            Some(Ok(Message::SyncStep2(update) | Message::Update(update))) => {
                let _ = self.journal.receive(&scan(update).expect("what is sent was scanned"));
                integrate(&self.doc, &self.journal, self.applied);
                self.applied = self.journal.mark();
            }
            Some(Ok(Message::Awareness(_))) => {}
            other => panic!("no client expects {other:?}"),
        }
        true
    }

    fn forget_connection(&mut self) {
        self.connection = None;
        self.to_server.clear();
        self.to_client.clear();
    }
}

/// Applies what the journal has integrated since then. Of what it has not, yrs 0.28 shows what lies beyond a gap, from
/// then on says the wrong clocks of it, and panics where what fills the gap overlaps it.
fn integrate(doc: &yrs::Doc, journal: &Journal, since: Mark) {
    let updates = journal.updates_since(since).expect("nothing was squashed");
    updates.for_each(|update| histories::apply(doc, update));
}

/// The clocks that are on the disk.
fn stored(server: &Stored) -> IdSet {
    let mut stored = IdSet::default();
    for (_, update) in server.disk.0.get(&support::room()).into_iter().flatten() {
        let update = scan(update.clone()).expect("what is stored was scanned");
        update.inserts().for_each(|(client, clocks)| _ = stored.insert(client, clocks));
    }
    stored
}

fn config(options: u8) -> Config {
    let mut config = Config::default();
    config.squash_count = if options & 1 == 0 { 2 } else { 500 };
    config.squash_bytes = if options & 2 == 0 { 64 } else { 256 << 10 };
    config.collect = options & 4 == 0;
    if options & 8 != 0 {
        config.flush_interval = std::time::Duration::ZERO;
    }
    if options & 16 != 0 {
        config.idle_delay = std::time::Duration::ZERO;
    }
    if options & 32 != 0 {
        config.unstored_bytes_max = 300;
        config.flush_bytes = 50;
    }
    config
}

const STEPS_MAX: usize = 200;
const ROUNDS_MAX: usize = 50;
