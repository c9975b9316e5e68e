//! The server: any inputs in any order, rooms with a view, and what may lie in a store.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use rusqlite::params;
use yrs::{GetString, ReadTxn, Text, WriteTxn};
use yrs_websocket::{
    Access, CloseReason, Config, ConnectionId, Echo, Event, Input, Join, Room, RoomName,
    journal::{Journal, JournalLimits, Received, Squashed},
    message::Message,
    update::{ScanRules, StateVector, Update},
    view::ViewError,
};
use yrs_websocket_store::{SqliteStore, Store, Write};

use crate::{
    Script,
    histories::{self, history},
    memory,
    support::{self, Out, World},
    update::built,
};

/// Any inputs in any order. The rules of [`World`] hold after each; nothing allocates without measure; a
/// compaction keeps what it replaces; and once the world is healed and everybody has left, no room is
/// left, and everything that was relayed is stored.
///
/// Input: two bytes of options, then operations.
pub fn server(data: &[u8]) {
    let mut script = Script(data);
    let options = script.number();
    let mut world = Stored::new(small_config(options));
    while !script.is_over() {
        let before = memory::peak(|| world.step(&mut script)).1;
        assert!(before <= 2 << 20, "{before} bytes for one input");
    }
    world.heal();
}

/// Updates into a live room, and the document over it: whatever peers send, the server's side reads and
/// edits or is told why not; what it edits all get; who joins gets everything.
///
/// Input: a byte of options, then what peers send.
pub fn room(data: &[u8]) {
    let mut script = Script(data);
    let options = script.byte();
    let mut config = Config::default();
    config.squash_count = script.pick(&[2, 10, 500]);
    config.squash_bytes = script.pick(&[64, 256 << 10]);
    config.collect = options & 1 == 0;
    config.parked_bytes_max = 4000;
    config.view_delay = Duration::from_secs(u64::from(options >> 1 & 1) * 10);
    if options & 4 == 0 {
        room_of_anybody(&mut script, config);
    } else {
        room_of_the_honest(&mut script, config);
    }
}

/// A SQLite database in which a room has rows of any kind is opened as the program opens it: a room
/// has all of it, or is not opened and nothing is written; never less than is stored.
///
/// Input: operations that insert rows.
pub fn store(data: &[u8]) {
    DATABASE.with_borrow_mut(|database| {
        let database = database.get_or_insert_with(Database::new);
        database.fill(&mut Script(data));
        database.check();
    });
}

fn room_of_anybody(script: &mut Script<'_>, config: Config) {
    let mut world = Stored::new(config);
    for connection in 1..=3 {
        world.input(Input::Connected(support::join(connection)));
    }
    world.answer(true);
    while !script.is_over() {
        let op = script.byte();
        let connection = ConnectionId(u64::from(op & 1) + 1);
        match op >> 1 & 7 {
            0..=3 => {
                let update = if op & 128 == 0 { built(script, true) } else { script.bytes().to_vec() };
                let frame = Message::Update(update.into()).encode();
                world.input(Input::Received { connection, frame });
            }
            4 => world.edit(&support::room()),
            5 => world.read(&support::room()),
            6 => world.pass(50 * u64::from(op >> 4)),
            _ => world.answer(op & 16 == 0),
        }
        if !world.world.server.room(&support::room()).is_some_and(|room| room.is_live()) {
            break;
        }
        // Back, if it was sent away.
        world.input(Input::Connected(support::join(connection.0)));
    }
    world.heal();
}

fn room_of_the_honest(script: &mut Script<'_>, config: Config) {
    let mut steps = Vec::new();
    while !script.is_over() && steps.len() < 40 {
        let (who, what) = (script.byte(), script.byte());
        // Not the formats: what they cover depends on the order of arrival.
        let what = if what % 20 == 11 { 10 } else { what % 20 };
        steps.push((who % 4, what, script.number(), script.number()));
    }
    let history = history(&steps);
    let mut world = Stored::new(config);
    for connection in 1..=5 {
        world.input(Input::Connected(support::join(connection)));
    }
    world.answer(true);
    let mut expected = histories::document(9, false);
    histories::apply(&expected, &histories::state_beyond(&history.end, &yrs::StateVector::default()));
    let everything = histories::state_beyond(&history.end, &yrs::StateVector::default());
    for (index, update) in history.updates.iter().chain([&everything.into()]).enumerate() {
        let connection = ConnectionId(index as u64 % 4 + 1);
        world.input(Input::Received { connection, frame: Message::Update(update.clone()).encode() });
        match index % 7 {
            2 => world.read(&support::room()),
            3 => world.answer(true),
            4 => world.pass(20),
            _ => {}
        }
    }
    world.pass(100);
    world.answer(true);

    let room = support::room();
    let now = world.world.now;
    let edit = world.world.server.edit(now, &room, |txn| {
        txn.get_or_insert_text("t").insert(txn, 0, "edited");
        txn.encode_update_v1()
    });
    let (edit, outputs) = edit.expect("yrs reads what yrs wrote");
    world.perform(outputs);
    histories::apply(&expected, &edit);
    let view = world.world.server.read(now, &room, |txn| txn.encode_diff_v1(&yrs::StateVector::default()));
    let view = view.expect("it was read a moment ago");
    world.pass(100);

    world.answer(true);
    world.pass(100);

    // One that has heard all from the start, and one that asks for it now.
    let heard = histories::document(8, false);
    world.updates_for(5).iter().for_each(|update| histories::apply(&heard, update));
    let joiner = histories::document(7, false);
    world.input(Input::Received { connection: ConnectionId(5), frame: Bytes::from_static(&[0, 0, 1, 0]) });
    world.answer(true);
    world.pass(100);
    world.updates_for(5).iter().for_each(|update| histories::apply(&joiner, update));
    let of_view = histories::document(6, false);
    histories::apply(&of_view, &view);
    let shown = histories::content(&expected);
    assert_eq!(histories::content(&of_view), shown);
    assert_eq!(histories::content(&joiner), shown);
    assert_eq!(histories::content(&heard), shown);
    expected = histories::document(5, false);
    world.heal();
    for update in world.disk.load(&room) {
        histories::apply(&expected, &update);
    }
    assert_eq!(histories::content(&expected), shown);
}

/// A [`World`] with a store, which checks what it is given.
pub(crate) struct Stored {
    pub(crate) world: World,
    pub(crate) disk: Disk,
    /// What waits for an answer of the store.
    pub(crate) pending: Vec<Pending>,
    /// In which room a connection is.
    pub(crate) rooms: BTreeMap<u64, RoomName>,
    /// Every update that peers were sent as such.
    pub(crate) relayed: BTreeMap<RoomName, BTreeSet<Bytes>>,
    /// Every frame with its recipients; the caller takes them away.
    pub(crate) sent: Vec<(Vec<u64>, Bytes)>,
    drained: bool,
}

#[derive(Debug)]
pub(crate) enum Pending {
    Load(RoomName),
    Append(RoomName, u64, Bytes),
    Compact(RoomName, u64, Squashed),
}

impl Stored {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            world: World::new(config),
            disk: Disk::default(),
            pending: Vec::new(),
            rooms: BTreeMap::new(),
            relayed: BTreeMap::new(),
            sent: Vec::new(),
            drained: false,
        }
    }

    /// Does what the script says next.
    fn step(&mut self, script: &mut Script<'_>) {
        let op = script.byte();
        let connection = ConnectionId(u64::from(op >> 4 & 7));
        match op & 15 {
            0 | 1 => {
                let detail = script.byte();
                let access = if detail & 8 == 0 { Access::Write } else { Access::ReadOnly };
                let mut join = Join::new(connection, a_room(detail), access);
                if detail & 16 != 0 {
                    join.expires_at = Some(self.world.in_millis(u64::from(detail >> 5) * 1000));
                }
                self.input(Input::Connected(join));
            }
            2..=5 => {
                let frame = frame(script);
                self.input(Input::Received { connection, frame });
            }
            6 => self.input(Input::Congested { connection }),
            7 => self.input(Input::Writable { connection }),
            8 => self.input(Input::Disconnected { connection }),
            9 => {
                let detail = script.byte();
                let access = if detail & 8 == 0 { Access::Write } else { Access::ReadOnly };
                let expires_at =
                    (detail & 16 != 0).then(|| self.world.in_millis(u64::from(detail >> 5) * 1000));
                self.input(Input::AccessChanged { connection, access, expires_at });
            }
            10 | 11 => self.answer_one(script),
            12 => {
                let millis = script.pick(&[0, 1, 10, 40, 100, 1000, 5000, 10_000, 25_000, 31_000, 61_000]);
                if op & 16 == 0 {
                    self.pass(millis);
                } else {
                    // Nobody looks at the clock, and everything that is due comes at once.
                    self.world.sleep(millis);
                    self.input(Input::Timeout);
                }
            }
            13 => {
                let detail = script.byte();
                if detail & 64 == 0 { self.edit(&a_room(detail)) } else { self.read(&a_room(detail)) }
            }
            14 => self.strange(script),
            _ => {
                if op == 0xff {
                    self.drained = true;
                    let deadline = self.world.in_millis(u64::from(script.byte()) * 100);
                    self.input(Input::Drain { deadline });
                } else {
                    self.input(Input::Timeout);
                }
            }
        }
    }

    /// Answers that nobody asked for, which change nothing, and the report that something was lost.
    fn strange(&mut self, script: &mut Script<'_>) {
        let room = a_room(script.byte());
        let seq = u64::from(script.byte());
        let is_pending = self.pending.iter().any(|pending| pending.room() == &room);
        match script.below(4) {
            0 if !self.is_loading(&room) => {
                self.input(Input::Loaded { room, updates: vec![Bytes::from_static(&[9])] });
            }
            1 if !self.is_loading(&room) => self.input(Input::LoadFailed { room }),
            2 => self.input(Input::Stored { room, seq: seq + 1000 }),
            _ if !is_pending => {
                // It has lost what it said it had. Of a room that is closed nobody could write it again.
                if self.world.server.room(&room).is_some_and(Room::is_live) {
                    self.disk.lose(&room, seq);
                }
                self.input(Input::StoreFailed { room, seq });
            }
            _ => {}
        }
    }

    fn is_loading(&self, room: &RoomName) -> bool {
        self.pending.iter().any(|pending| matches!(pending, Pending::Load(of) if of == room))
    }

    pub(crate) fn input(&mut self, input: Input) {
        if let Input::Connected(join) = &input
            && self
                .world
                .server
                .room(&join.room)
                .is_none_or(|room| room.connections().all(|connection| connection != join.connection))
        {
            self.rooms.entry(join.connection.0).or_insert_with(|| join.room.clone());
        }
        if let Input::Disconnected { connection } = &input {
            self.rooms.remove(&connection.0);
        }
        let out = self.world.handle(input);
        self.note(out);
    }

    pub(crate) fn pass(&mut self, millis: u64) {
        let out = self.world.pass(millis);
        self.note(out);
    }

    fn perform(&mut self, outputs: yrs_websocket::Outputs) {
        let out = self.world.check(outputs);
        self.note(out);
    }

    /// Takes down what was put out. The rules for it the world has checked already.
    fn note(&mut self, out: Vec<Out>) {
        let mut appends = self.world.appends.drain(..);
        let mut squashes = self.world.squashes.drain(..);
        for out in out {
            match out {
                Out::Send(to, frame) => {
                    let frame = Bytes::from(frame);
                    let message = Message::decode(&frame).next();
                    let Some(Ok(message)) = message else { panic!("the world has read it") };
                    self.sent.push((to.clone(), frame.clone()));
                    let (Message::SyncStep2(update) | Message::Update(update)) = &message else { continue };
                    let scanned = scan(update.clone()).expect("what is sent was scanned");
                    if matches!(message, Message::Update(_)) && !scanned.is_empty() {
                        let room = &self.rooms[&to[0]];
                        assert!(to.iter().all(|to| &self.rooms[to] == room), "it went to another room");
                        self.relayed.entry(room.clone()).or_default().insert(update.clone());
                    }
                }
                Out::Close(connection, _) => _ = self.rooms.remove(&connection),
                Out::Load(room) => {
                    self.pending.push(Pending::Load(RoomName::new(&room).expect("it was one")));
                }
                Out::Append(..) => {
                    let (room, seq, update) = appends.next().expect("the world keeps them");
                    let scanned = scan(update.clone()).expect("what is stored was scanned");
                    assert!(!scanned.is_empty(), "nothing is stored for nothing");
                    self.pending.push(Pending::Append(room, seq, update));
                }
                Out::Compact(_) => {
                    let (room, seq, squash) = squashes.next().expect("the world keeps them");
                    self.pending.push(Pending::Compact(room, seq, squash.run()));
                }
            }
        }
    }

    /// The store answers all that it was asked, in order.
    pub(crate) fn answer(&mut self, succeeds: bool) {
        let mut answers = 0;
        while !self.pending.is_empty() {
            let pending = self.pending.remove(0);
            self.complete(pending, if succeeds { Fate::Done } else { Fate::Failed });
            answers += 1;
            // What fails is tried again, but later.
            assert!(answers < 10_000, "the store is never left in peace");
        }
    }

    pub(crate) fn answer_one(&mut self, script: &mut Script<'_>) {
        let detail = script.byte();
        if self.pending.is_empty() {
            return;
        }
        // First in, first out for each room, not over rooms.
        let room = self.pending[usize::from(detail >> 4) % self.pending.len()].room().clone();
        let first = self.pending.iter().position(|pending| pending.room() == &room);
        let pending = self.pending.remove(first.expect("it is one of them"));
        let fate = match detail & 7 {
            0..=4 => Fate::Done,
            5 => Fate::DoneButFailed,
            _ => Fate::Failed,
        };
        self.complete(pending, fate);
    }

    fn complete(&mut self, pending: Pending, fate: Fate) {
        let performed = matches!(fate, Fate::Done | Fate::DoneButFailed);
        if performed {
            self.disk.perform(&pending);
        }
        let done = matches!(fate, Fate::Done);
        let input = match pending {
            Pending::Load(room) if done => Input::Loaded { updates: self.disk.load(&room), room },
            Pending::Load(room) => Input::LoadFailed { room },
            Pending::Append(room, seq, _) if done => Input::Stored { room, seq },
            Pending::Compact(room, seq, squashed) if done => Input::Compacted { room, seq, squashed },
            Pending::Append(room, seq, _) | Pending::Compact(room, seq, _) => {
                Input::StoreFailed { room, seq }
            }
        };
        self.input(input);
    }

    /// The updates that a connection was sent since they were last taken.
    fn updates_for(&mut self, connection: u64) -> Vec<Bytes> {
        let sent = self.sent.drain(..).filter(|(to, _)| to.contains(&connection));
        sent.filter_map(|(_, frame)| match Message::decode(&frame).next() {
            Some(Ok(Message::SyncStep2(update) | Message::Update(update))) => Some(update),
            _ => None,
        })
        .collect()
    }

    pub(crate) fn edit(&mut self, room: &RoomName) {
        let now = self.world.now;
        let known = self.world.server.room(room).map(|room| room.journal().state_vector().clone());
        let edited = self.world.server.edit(now, room, |txn| {
            let text = txn.get_or_insert_text("t");
            text.insert(txn, 0, "e");
        });
        match edited {
            Ok(((), outputs)) => {
                self.perform(outputs);
                let now = self.world.server.room(room).map(|room| room.journal().state_vector().clone());
                assert_ne!(now, known, "an edit changes something");
            }
            Err(ViewError::RoomNotOpen) => {
                assert!(self.world.server.room(room).is_none_or(|room| !room.is_live()));
            }
            // Of content that yrs cannot read, or that was made to break it.
            Err(_) => {}
        }
    }

    fn read(&mut self, room: &RoomName) {
        let now = self.world.now;
        let _ = self
            .world
            .server
            .read(now, room, |txn| txn.get_text("t").map_or(0, |text| text.get_string(txn).len()));
    }

    /// The store works, everybody leaves, time passes: no room is left, and what peers were sent is stored.
    pub(crate) fn heal(&mut self) {
        for _ in 0..4 {
            self.answer(true);
            self.pass(6000);
        }
        for connection in self.rooms.keys().copied().collect::<Vec<_>>() {
            self.input(Input::Disconnected { connection: ConnectionId(connection) });
        }
        for _ in 0..8 {
            self.answer(true);
            self.pass(31_000);
        }
        assert_eq!(self.world.server.rooms().len(), 0, "a room is left");
        assert_eq!(self.world.server.connections(), 0);
        assert_eq!(self.world.server.next_timeout(), None, "a timer is left");
        if self.drained {
            // At the deadline what was not stored is given up, and reported.
            return;
        }
        for (room, relayed) in &self.relayed {
            let mut journal = journal_of(&self.disk.load(room));
            for update in relayed {
                let update = scan(update.clone()).expect("it was scanned before");
                assert!(!lacks(&mut journal, &update), "{room} has lost {update:?}");
            }
        }
    }
}

enum Fate {
    Done,
    /// It is done, but the store says that it is not.
    DoneButFailed,
    Failed,
}

impl Pending {
    fn room(&self) -> &RoomName {
        match self {
            Self::Load(room) | Self::Append(room, ..) | Self::Compact(room, ..) => room,
        }
    }
}

/// What is stored, each update with the number of its write since the last load.
#[derive(Default)]
pub(crate) struct Disk(pub(crate) BTreeMap<RoomName, Vec<(u64, Bytes)>>);

impl Disk {
    pub(crate) fn load(&mut self, room: &RoomName) -> Vec<Bytes> {
        let records = self.0.entry(room.clone()).or_default();
        records.iter_mut().for_each(|(seq, _)| *seq = 0);
        records.iter().map(|(_, update)| update.clone()).collect()
    }

    pub(crate) fn perform(&mut self, pending: &Pending) {
        match pending {
            Pending::Load(_) => {}
            Pending::Append(room, seq, update) => {
                self.0.entry(room.clone()).or_default().push((*seq, update.clone()));
            }
            Pending::Compact(room, seq, squashed) => {
                let records = self.0.entry(room.clone()).or_default();
                let state: Vec<_> = squashed.updates().cloned().collect();
                let mut journal = journal_of(&state);
                for (_, update) in records.iter().filter(|(of, _)| of <= seq) {
                    let update = scan(update.clone()).expect("it was scanned before");
                    assert!(!lacks(&mut journal, &update), "{state:?} is without {update:?}");
                }
                records.retain(|(of, _)| of > seq);
                records.splice(0..0, state.into_iter().map(|update| (*seq, update)));
            }
        }
    }

    /// Loses one append that it had confirmed.
    fn lose(&mut self, room: &RoomName, seq: u64) {
        if let Some(records) = self.0.get_mut(room)
            && seq > 0
            && records.last().is_some_and(|(of, _)| *of == seq)
        {
            records.pop();
        }
    }
}

fn journal_of(updates: &[Bytes]) -> Journal {
    let mut journal = Journal::new(JournalLimits::default());
    for update in updates {
        journal.restore(&scan(update.clone()).expect("what is stored was scanned"));
    }
    journal
}

/// Whether an update says something that a journal does not have.
fn lacks(journal: &mut Journal, update: &Update) -> bool {
    journal.receive(update) != Received::Nothing
}

pub(crate) fn scan(update: Bytes) -> Option<Update> {
    Update::scan(update, &ScanRules { weak_links: true, ..ScanRules::default() }).ok()
}

/// A frame as anybody might send it.
fn frame(script: &mut Script<'_>) -> Bytes {
    let payload = |script: &mut Script<'_>| Bytes::copy_from_slice(script.bytes());
    match script.below(10) {
        0 => payload(script),
        1 => Message::SyncStep1(payload(script)).encode(),
        2 => Message::SyncStep2(payload(script)).encode(),
        3 => Message::Update(payload(script)).encode(),
        4 => Message::Awareness(payload(script)).encode(),
        5 => Bytes::from_static(&[0, 0, 1, 0]),
        6 => Message::SyncStep2(built(script, true).into()).encode(),
        7 | 8 => Message::Update(built(script, true).into()).encode(),
        _ => {
            let (client, clock) = (script.byte() % 4 + 1, script.byte() % 4);
            support::presence(&[(client, clock, script.pick(&["{}", "null", "{\"a\":[1]}", "no"]))]).into()
        }
    }
}

fn a_room(detail: u8) -> RoomName {
    RoomName::new(["a", "b", "c", "r"][usize::from(detail & 3)]).expect("a name")
}

fn small_config(options: u16) -> Config {
    let mut config = Config::default();
    config.echo = [Echo::Durable, Echo::Durable, Echo::Immediate, Echo::Off][usize::from(options & 3)];
    config.collect = options & 4 == 0;
    config.awareness_own_ids_only = options & 8 != 0;
    config.weak_links = options & 16 != 0;
    config.squash_count = if options & 32 == 0 { 2 } else { 500 };
    config.squash_bytes = if options & 64 == 0 { 64 } else { 256 << 10 };
    if options & 128 != 0 {
        config.flush_interval = Duration::ZERO;
        config.awareness_interval = Duration::ZERO;
    }
    if options & 256 != 0 {
        config.idle_delay = Duration::ZERO;
        config.view_delay = Duration::ZERO;
    }
    config.depth_max = 5;
    if options & 512 == 0 {
        config.rooms_max = 3;
        config.peers_per_room_max = 4;
        config.frame_len_max = 200;
        config.state_vector_len_max = 20;
        config.loading_bytes_max = 600;
        config.parked_bytes_max = 1000;
        config.unstored_bytes_max = 300;
        config.flush_bytes = 50;
        config.awareness_ids_max = 2;
        config.awareness_bytes_max = 10;
    }
    config
}

thread_local! {
    static DATABASE: RefCell<Option<Database>> = const { RefCell::new(None) };
}

/// A database of which one room is filled anew for every input.
struct Database {
    connection: rusqlite::Connection,
    store: SqliteStore,
    path: PathBuf,
}

impl Database {
    fn new() -> Self {
        // In memory if possible: a store waits for the disk at every write.
        let folder = match std::env::var_os("TMPDIR") {
            Some(folder) => PathBuf::from(folder),
            None if Path::new("/dev/shm").is_dir() => PathBuf::from("/dev/shm"),
            None => std::env::temp_dir(),
        };
        let thread = format!("{:?}", std::thread::current().id());
        let name = format!("yrs-websocket-fuzz-{}-{thread}.sqlite3", std::process::id());
        let path = folder.join(name);
        let store = SqliteStore::open(&path).expect("the folder can be written");
        let connection = rusqlite::Connection::open(&path).expect("it was just made");
        Self { connection, store, path }
    }

    /// Puts rows of any kind in place of what is there.
    fn fill(&mut self, script: &mut Script<'_>) {
        let run = |sql: &str| _ = self.connection.execute(sql, []).expect(sql);
        run("BEGIN");
        run("DELETE FROM yupdates");
        run("DELETE FROM ycheckpoints");
        for index in 0..20 {
            if script.is_over() {
                break;
            }
            let op = script.byte();
            let blob = if op & 8 == 0 { script.bytes().to_vec() } else { built(script, true) };
            let sql = match op & 7 {
                0 => "INSERT INTO yupdates VALUES ('r', CAST(?1 AS TEXT), x'', ?2)",
                1 => "INSERT INTO yupdates VALUES ('r', CASE WHEN ?1 IS NULL THEN 0 END, x'', ?2)",
                2 => "INSERT INTO yupdates VALUES ('r', length(?1), x'', ?2)",
                3 => "INSERT OR REPLACE INTO ycheckpoints VALUES ('r', ?1, ?2)",
                4 => "INSERT INTO yupdates VALUES ('r', ?1, NULL, 9e999 + ?2)",
                _ => "INSERT INTO yupdates VALUES ('r', ?1, x'00', ?2)",
            };
            // Times that stand still, and steps back.
            let time = f64::from(index) * f64::from(i32::from(op >> 4) - 3);
            self.connection.execute(sql, params![blob, time]).expect(sql);
        }
        run("COMMIT");
    }

    fn check(&mut self) {
        let room = support::room();
        let before = self.content();
        let loaded = self.store.load(&room);
        let expected = before.iter().filter(|(record, _)| record.as_deref() != Some(&[0, 0]));
        let expected: Option<Vec<_>> =
            expected.map(|(record, _)| record.as_deref().map(Bytes::copy_from_slice)).collect();
        assert_eq!(loaded.as_ref().ok(), expected.as_ref(), "all of it, in its order, or an error");

        let mut world = World::new(Config::default());
        world.join(1);
        let Ok(records) = loaded else {
            assert_eq!(world.handle(Input::LoadFailed { room }), [support::close(1, 1013)]);
            return assert_eq!(self.content(), before);
        };
        let proven: Option<Vec<_>> =
            records.iter().map(|record| Update::scan(record.clone(), &ScanRules::default()).ok()).collect();
        let out = world.handle(Input::Loaded { room: room.clone(), updates: records });
        let Some(proven) = proven else {
            assert_eq!(out, [support::close(1, CloseReason::LoadFailed.code())]);
            let reported = |event: &Event| matches!(event, Event::StoredUpdateMalformed { .. });
            assert!(world.events().iter().any(reported));
            assert!(world.server.room(&room).is_none());
            return assert_eq!(self.content(), before);
        };

        // Who asks for everything gets it, parked or not.
        let all = |journal: &mut Journal| {
            for update in &proven {
                assert!(!lacks(journal, update), "{update:?} is missing");
            }
        };
        let mut reader = Journal::new(JournalLimits { parked_bytes_max: usize::MAX });
        for out in world.frame(1, support::step1(&[])) {
            let Out::Send(_, frame) = out else { panic!("it is only answered: {out:?}") };
            if let Some(Ok(Message::SyncStep2(update) | Message::Update(update))) =
                Message::decode(&frame.into()).next()
            {
                let _ = reader.receive(&scan(update).expect("what is sent was scanned"));
            }
        }
        all(&mut reader);

        // An edit joins it, here and in the database, also once that is compacted.
        let edit = support::text_insert(77, 0, "edit");
        world.frame(1, support::update(&edit));
        let mut seq = 0;
        for (room, number, update) in world.appends.drain(..) {
            seq = number;
            self.store.commit(&[Write::Append { room, seq, update }]).expect("it can be written");
        }
        assert_eq!(seq, 1);
        let squash = world.server.room(&room).expect("it is open").journal().squash(Default::default());
        let state = squash.run().updates().cloned().collect();
        self.store.commit(&[Write::Compact { room: room.clone(), seq, state }]).expect("it can be written");
        let mut journal = journal_of(&self.store.load(&room).expect("it can be read"));
        all(&mut journal);
        assert!(!lacks(&mut journal, &scan(edit.into()).expect("an update")));
        let known = journal.state_vector();
        let had: StateVector = reader.state_vector().iter().collect();
        assert!(had.iter().all(|(client, clock)| known.clock(client) >= clock));
    }

    /// What is stored and its row, `None` for what is no blob, as it is to be loaded: the checkpoint, and the updates as they come in time.
    fn content(&self) -> Vec<(Option<Vec<u8>>, i64)> {
        let mut content = Vec::new();
        for sql in [
            "SELECT checkpoint, rowid FROM ycheckpoints",
            "SELECT yupdate, rowid FROM yupdates ORDER BY timestamp, rowid",
        ] {
            let mut select = self.connection.prepare_cached(sql).expect(sql);
            let rows = select
                .query_map([], |row| Ok((row.get_ref(0)?.as_blob().ok().map(<[u8]>::to_vec), row.get(1)?)))
                .expect(sql);
            content.extend(rows.map(|row| row.expect(sql)));
        }
        content
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{end}", self.path.display()));
        }
    }
}
