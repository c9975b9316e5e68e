//! Clients: a real yrs document each, speaking as stock `y-websocket` does; and hostile ones.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    time::{Duration, Instant},
};

use bytes::Bytes;
use yrs::{Doc, ReadTxn, Transact, updates::decoder::Decode, updates::encoder::Encode};
use yrs_websocket::{
    awareness::{self, AwarenessEntry},
    journal::{Journal, JournalLimits},
    message::Message,
    update::{ClientId, Update},
};
use yrs_websocket_rfc6455::{self as rfc6455, ClientHandshake, ClientRequest, HandshakeLimits, Role};

use crate::{
    Violation,
    disk::{Content, missing, scan},
    document::{Undo, document, edit},
    network::LinkId,
    random::Random,
};

/// The client's end of a connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) link: LinkId,
    pub(crate) layer: Layer,
    /// What does not fit into the pipe yet.
    pub(crate) out: VecDeque<u8>,
    pub(crate) last_message: Duration,
    pub(crate) synced: bool,
    /// Reads nothing until then.
    pub(crate) asleep_until: Duration,
}

#[derive(Debug)]
pub(crate) enum Layer {
    Handshake(Box<ClientHandshake>),
    Open(Box<rfc6455::Connection>),
    /// The close frame was read; nothing may follow.
    Closed,
}

/// What came of bytes that were read.
pub(crate) enum Heard {
    Open,
    Frame(Bytes),
    Refused(u16),
    /// The code and the reason of the close frame.
    Closed(Option<(u16, String)>),
}

impl Session {
    pub(crate) fn new(link: LinkId, target: String, random: &mut Random, now: Duration) -> Self {
        let request =
            ClientRequest { host: "sim".into(), target, subprotocols: Vec::new(), headers: Vec::new() };
        let handshake = ClientHandshake::new(request, HandshakeLimits::default(), random.next())
            .expect("the names of rooms are plain");
        let mut out = VecDeque::new();
        out.extend(handshake.request().iter());
        let layer = Layer::Handshake(Box::new(handshake));
        Self { link, layer, out, last_message: now, synced: false, asleep_until: Duration::ZERO }
    }

    /// Reads bytes of the server.
    pub(crate) fn read(
        &mut self,
        now: Instant,
        mask_seed: u64,
        mut bytes: Vec<u8>,
    ) -> Result<Vec<Heard>, Violation> {
        let mut heard = Vec::new();
        if let Layer::Handshake(handshake) = &mut self.layer {
            match handshake.receive(&bytes) {
                Ok(None) => return Ok(heard),
                Ok(Some(upgraded)) => {
                    let config = rfc6455::Config { ping_interval: None, ..rfc6455::Config::default() };
                    let connection = rfc6455::Connection::new(Role::Client { mask_seed }, config, now);
                    self.layer = Layer::Open(Box::new(connection));
                    bytes = upgraded.into_rest();
                    heard.push(Heard::Open);
                }
                Err(rfc6455::ClientHandshakeError::Refused { status, .. }) => {
                    heard.push(Heard::Refused(status));
                    return Ok(heard);
                }
                Err(error) => return Err(Violation::new("the upgrade is right", error)),
            }
        }
        let mut input = &mut bytes[..];
        while let Layer::Open(connection) = &mut self.layer {
            match connection.receive(now, &mut input) {
                Some(rfc6455::Event::Binary(frame)) => heard.push(Heard::Frame(frame)),
                Some(rfc6455::Event::Ping(_) | rfc6455::Event::Pong(_)) => {}
                Some(rfc6455::Event::Text(_)) => {
                    return Err(Violation::new("frames are binary", "a text frame"));
                }
                Some(rfc6455::Event::Closed(closed)) => {
                    self.flush();
                    self.layer = Layer::Closed;
                    heard.push(Heard::Closed(match closed {
                        rfc6455::Closed::ByPeer(frame) | rfc6455::Closed::ByUs(frame) => {
                            frame.map(|frame| (frame.code.into(), frame.reason.as_str().to_owned()))
                        }
                        rfc6455::Closed::Violation(violation) => {
                            return Err(Violation::new("the server keeps RFC 6455", violation));
                        }
                        rfc6455::Closed::CloseTimeout | rfc6455::Closed::PongTimeout => None,
                    }));
                    break;
                }
                None => break,
            }
        }
        if matches!(self.layer, Layer::Closed) && !input.is_empty() {
            return Err(Violation::new("no frame after the close", format!("{} bytes", input.len())));
        }
        self.flush();
        Ok(heard)
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(&self.layer, Layer::Open(connection) if connection.is_open())
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        if let Layer::Open(connection) = &mut self.layer {
            connection.send_binary(frame);
        }
        self.flush();
    }

    /// Sends bytes that are no frame.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        self.out.extend(bytes);
    }

    pub(crate) fn close(&mut self, now: Instant) {
        if let Layer::Open(connection) = &mut self.layer {
            connection.close(now, rfc6455::CloseCode::NORMAL, "");
        }
        self.flush();
    }

    fn flush(&mut self) {
        if let Layer::Open(connection) = &mut self.layer {
            while let Some(output) = connection.next_output() {
                self.out.extend(output.iter());
            }
        }
    }
}

/// One tab of an editor.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) room: usize,
    /// Changes nothing, and the server would not let it.
    pub(crate) viewer: bool,
    /// Shows no presence.
    pub(crate) shy: bool,
    /// Clients of one process go offline together, and are loaded anew together.
    pub(crate) process: usize,
    /// Before the document, which it lets go of.
    undo: Option<Undo>,
    pub(crate) doc: Doc,
    /// What the document has, and what waits for something that is missing.
    journal: Journal,
    pub(crate) id: ClientId,
    pub(crate) presence: Presence,
    pub(crate) session: Option<Session>,
    /// Does not come back before.
    pub(crate) away_until: Duration,
    pub(crate) failures: u32,
    /// What it wrote under this id, and what it deleted without an edit: of two values of one key a document
    /// deletes one.
    pub(crate) made: Content,
}

impl Client {
    pub(crate) fn new(
        room: usize,
        viewer: bool,
        shy: bool,
        process: usize,
        random: &mut Random,
        now: Duration,
    ) -> Self {
        let id = new_id(random);
        let doc = document(id);
        Self {
            room,
            viewer,
            shy,
            process,
            undo: random.permille(400).then(|| Undo::new(&doc)),
            doc,
            journal: Journal::new(JournalLimits::default()),
            id,
            presence: Presence::new(id, shy, now),
            session: None,
            away_until: Duration::ZERO,
            failures: 0,
            made: Content::default(),
        }
    }

    /// The page is loaded anew, perhaps with another document: what was not sent is gone.
    pub(crate) fn reload(&mut self, room: usize, random: &mut Random, now: Duration) {
        *self = Self::new(room, self.viewer, self.shy, self.process, random, now);
    }

    /// What a stock client says when its connection opens.
    pub(crate) fn greeting(&self) -> Vec<Bytes> {
        let state_vector = self.doc.transact().state_vector().encode_v1();
        let mut frames = vec![Message::SyncStep1(state_vector.into()).encode()];
        frames.extend(self.presence.encode(&BTreeSet::from([self.id]), true));
        frames
    }

    /// Takes a frame; gives back the answers, and the update in it.
    pub(crate) fn receive(
        &mut self,
        now: Duration,
        frame: &Bytes,
        answers: &mut Vec<Bytes>,
    ) -> Result<Option<Update>, Violation> {
        // Up to 3.1 only the first message of a frame is read.
        let mut messages = Message::decode(frame);
        let message = messages.next().unwrap_or(Err(yrs_websocket::message::MessageError::Truncated));
        let message = message.map_err(|error| Violation::new("frames are well-formed", error))?;
        if messages.next().is_some() {
            return Err(Violation::new("one message per frame", "there are two"));
        }
        match message {
            Message::SyncStep1(state_vector) => {
                let known = yrs::StateVector::decode_v1(&state_vector)
                    .map_err(|error| Violation::new("state vectors decode", error))?;
                // Without what is pending: where pending updates overlap, yrs 0.28 merges them under wrong clocks.
                let update = Bytes::from(self.doc.transact().encode_diff_v1(&known));
                self.add_deletes_of_its_own(&update);
                answers.push(Message::SyncStep2(update).encode());
                // Yjs puts what waits into the same message, structs and deletes.
                let waiting = self.journal.waiting().into_iter();
                answers.extend(waiting.map(|update| Message::Update(update.bytes().clone()).encode()));
            }
            Message::SyncStep2(update) => {
                if let Some(session) = &mut self.session {
                    session.synced = true;
                }
                return self.apply(update).map(Some);
            }
            Message::Update(update) => return self.apply(update).map(Some),
            Message::Awareness(update) => {
                let entries = awareness::decode(&update, 100)
                    .map_err(|error| Violation::new("awareness is well-formed", error))?;
                let changed = self.presence.apply(now, entries);
                answers.extend(self.presence.encode(&changed, false));
            }
            Message::QueryAwareness => {
                let all = self.presence.entries.keys().copied().collect();
                answers.extend(self.presence.encode(&all, true));
            }
            Message::PermissionDenied(_) => {
                if !self.viewer {
                    return Err(Violation::new("writers are not denied", "permission denied"));
                }
            }
            Message::Unknown { tag, .. } => {
                return Err(Violation::new("only messages that clients know", tag));
            }
        }
        Ok(None)
    }

    /// Gives the document what it can integrate. Yjs keeps the rest until its time has come; yrs shows what
    /// lies beyond a gap in the clocks of one client, and then writes it down under wrong clocks.
    fn apply(&mut self, bytes: Bytes) -> Result<Update, Violation> {
        let update = scan(bytes).map_err(|error| Violation::new("updates scan", error))?;
        let mark = self.journal.mark();
        self.journal.restore(&update);
        for integrated in self.journal.updates_since(mark).into_iter().flatten() {
            let decoded = yrs::Update::decode_v1(integrated)
                .map_err(|error| Violation::new("updates decode in yrs", error))?;
            let applied = self.doc.transact_mut().apply_update(decoded);
            applied.map_err(|error| Violation::new("updates apply in yrs", error))?;
        }
        Ok(update)
    }

    /// Nobody else has said these: they are shown to the server for the first time.
    fn add_deletes_of_its_own(&mut self, update: &Bytes) {
        let (mut said, mut has) = (Content::default(), Content::default());
        said.add(&self.journal.diff(self.journal.state_vector()).main);
        has.add(&scan(update.clone()).expect("yrs writes updates that scan"));
        self.made.deletes.union(&missing(&said.deletes, &has.deletes));
    }

    /// Changes the document in some way.
    pub(crate) fn edit(&mut self, random: &mut Random) -> Option<Bytes> {
        let bytes = match &mut self.undo {
            Some(undo) if random.permille(300) => undo.edit(&self.doc, random)?,
            _ => edit(&self.doc, random)?,
        };
        let update = scan(bytes.clone()).expect("yrs writes updates that scan");
        self.made.add(&update);
        self.journal.restore(&update);
        Some(bytes)
    }
}

/// Presence as `y-protocols/awareness.js` keeps it.
#[derive(Debug)]
pub(crate) struct Presence {
    id: ClientId,
    pub(crate) entries: BTreeMap<ClientId, Entry>,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) clock: u32,
    pub(crate) state: Option<Bytes>,
    updated: Duration,
}

impl Presence {
    fn new(id: ClientId, shy: bool, now: Duration) -> Self {
        let mut presence = Self { id, entries: BTreeMap::new() };
        presence.entries.insert(id, Entry { clock: 0, state: None, updated: now });
        if !shy {
            presence.set(now, Bytes::from(format!("{{\"user\":{}}}", id.get())));
        }
        presence
    }

    pub(crate) fn set(&mut self, now: Duration, state: Bytes) {
        let own = self.entries.get_mut(&self.id).expect("it is put in at the start");
        *own = Entry { clock: own.clock.saturating_add(1), state: Some(state), updated: now };
    }

    /// `applyAwarenessUpdate`; says whose entries an `update` event would name.
    fn apply(&mut self, now: Duration, entries: Vec<AwarenessEntry>) -> BTreeSet<ClientId> {
        let mut changed = BTreeSet::new();
        for AwarenessEntry { client, mut clock, state } in entries {
            let known = self.entries.get(&client);
            let was_known = known.is_some();
            let current = known.map_or(0, |known| known.clock);
            let is_present = known.is_some_and(|known| known.state.is_some());
            if current < clock || (current == clock && state.is_none() && is_present) {
                let mut new = state.clone();
                if state.is_none() && client == self.id && is_present {
                    // Never let a remote client remove the local state: say that it is still there.
                    clock = clock.saturating_add(1);
                    new = known.and_then(|known| known.state.clone());
                }
                self.entries.insert(client, Entry { clock, state: new, updated: now });
                if state.is_some() || was_known {
                    changed.insert(client);
                }
            }
        }
        changed
    }

    /// The check of every 3 s: renews the own entry, drops those of others that are not renewed.
    pub(crate) fn check(&mut self, now: Duration) -> BTreeSet<ClientId> {
        let mut changed = BTreeSet::new();
        let own = self.entries[&self.id].clone();
        if let Some(state) = own.state
            && now >= own.updated + Duration::from_secs(15)
        {
            self.set(now, state);
            changed.insert(self.id);
        }
        for (client, entry) in &mut self.entries {
            if *client != self.id && entry.state.is_some() && now >= entry.updated + Duration::from_secs(30) {
                entry.state = None;
                changed.insert(*client);
            }
        }
        changed
    }

    /// The connection is gone, and with it everybody else.
    pub(crate) fn disconnected(&mut self) {
        for (client, entry) in &mut self.entries {
            if *client != self.id {
                entry.state = None;
            }
        }
    }

    pub(crate) fn encode(&self, clients: &BTreeSet<ClientId>, present_only: bool) -> Option<Bytes> {
        let entries: Vec<_> = clients
            .iter()
            .filter_map(|client| Some((*client, self.entries.get(client)?)))
            .filter(|(_, entry)| !present_only || entry.state.is_some())
            .map(|(client, entry)| (client, entry.clock, entry.state.as_ref()))
            .collect();
        let any = !entries.is_empty();
        any.then(|| Message::Awareness(awareness::encode(entries.into_iter())).encode())
    }

    /// Who is here, and with what.
    pub(crate) fn present(&self) -> BTreeMap<ClientId, Bytes> {
        let present = self.entries.iter().filter_map(|(id, entry)| Some((*id, entry.state.clone()?)));
        present.collect()
    }

    pub(crate) fn leave(&mut self) -> Option<Bytes> {
        let own = self.entries.get_mut(&self.id)?;
        own.state.take()?;
        own.clock += 1;
        self.encode(&BTreeSet::from([self.id]), false)
    }
}

/// Somebody who means harm, or does not know better.
#[derive(Debug)]
pub(crate) struct Hostile {
    pub(crate) room: usize,
    doc: Doc,
    pub(crate) session: Option<Session>,
    pub(crate) away_until: Duration,
    /// Own updates that were not sent when they were made.
    held: Vec<Bytes>,
    /// Frames of others, to be sent once more.
    pub(crate) heard: VecDeque<Bytes>,
}

impl Hostile {
    pub(crate) fn new(room: usize, random: &mut Random) -> Self {
        Self {
            room,
            doc: document(new_id(random)),
            session: None,
            away_until: Duration::ZERO,
            held: Vec::new(),
            heard: VecDeque::new(),
        }
    }

    pub(crate) fn hear(&mut self, frame: Bytes) {
        self.heard.push_back(frame);
        if self.heard.len() > 20 {
            self.heard.pop_front();
        }
    }

    /// Frames that are not as they should be.
    pub(crate) fn act(
        &mut self,
        attack: Attack,
        victims: &[(ClientId, u32)],
        random: &mut Random,
    ) -> Vec<Bytes> {
        match attack {
            Attack::Garbage => {
                let bytes: Vec<u8> = (0..random.between(0, 40)).map(|_| random.next() as u8).collect();
                // By chance it might mean something, and mean two things under one id.
                let harmless = Message::decode(&Bytes::from(bytes.clone())).all(|message| match message {
                    Ok(Message::Update(update) | Message::SyncStep2(update)) => {
                        scan(update).is_ok_and(|update| update.is_empty())
                    }
                    _ => true,
                });
                harmless.then(|| Bytes::from(bytes)).into_iter().collect()
            }
            Attack::Truncated => {
                let frame = match self.heard.len() {
                    0 => edit(&self.doc, random).map(|update| Message::Update(update).encode()),
                    len => self.heard.get(random.index(len)).cloned(),
                };
                frame.into_iter().map(|frame| frame.slice(..random.index(frame.len()))).collect()
            }
            Attack::Replay => {
                let count = random.between(1, 8) as usize;
                let len = self.heard.len();
                if len == 0 {
                    return Vec::new();
                }
                let mut frames: Vec<_> = (0..count).map(|_| self.heard[random.index(len)].clone()).collect();
                // Several messages in one frame are allowed.
                if random.permille(300) && !frames.is_empty() {
                    frames = vec![frames.concat().into()];
                }
                frames
            }
            Attack::Shuffle => {
                for _ in 0..random.between(1, 5) {
                    self.held.extend(edit(&self.doc, random));
                }
                let mut frames = Vec::new();
                // Some stay behind, for a time or for ever.
                for _ in 0..random.index(self.held.len() + 1) {
                    let update = self.held.swap_remove(random.index(self.held.len()));
                    let times = if random.permille(200) { 2 } else { 1 };
                    frames.extend((0..times).map(|_| Message::Update(update.clone()).encode()));
                }
                frames
            }
            Attack::Forge => {
                let mut entries = Vec::new();
                for &(client, clock) in victims {
                    if random.permille(500) {
                        let state = random.permille(500).then(|| Bytes::from_static(b"{\"forged\":true}"));
                        entries.push((client, clock, state));
                    }
                }
                let shift = random.between(0, 6) as u32;
                let entries =
                    entries.iter().map(|(client, clock, state)| (*client, clock + shift, state.as_ref()));
                let entries: Vec<_> = entries.collect();
                vec![Message::Awareness(awareness::encode(entries.into_iter())).encode()]
            }
            Attack::Oversized => {
                // More than small limits allow, and as much as others have to bear.
                let count = random.between(1, 1500);
                if random.permille(500) {
                    let state = Bytes::from_static(b"{}");
                    let ids: Vec<_> = (0..count / 4).map(|_| (new_id(random), 1, Some(&state))).collect();
                    return vec![Message::Awareness(awareness::encode(ids.into_iter())).encode()];
                }
                let clocks = (0..count).map(|_| (yrs::ClientID::new(new_id(random).get()), 1));
                let known = clocks.collect::<yrs::StateVector>();
                vec![Message::SyncStep1(known.encode_v1().into()).encode()]
            }
            Attack::Questions => {
                let count = random.between(10, 400) as usize;
                let empty = Message::SyncStep1(Bytes::from_static(&[0])).encode();
                let frames = [empty, Message::QueryAwareness.encode()];
                (0..count).map(|_| frames[random.index(2)].clone()).collect()
            }
        }
    }
}

/// What a hostile client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attack {
    Garbage,
    Truncated,
    Replay,
    Shuffle,
    Forge,
    Questions,
    Oversized,
}

/// The header of a frame that claims to be very long, and a little of what it claims.
pub(crate) fn oversized_header(len_max: usize, random: &mut Random) -> Vec<u8> {
    let len = random.pick(&[len_max as u64 + 1, 1 << 40, (1 << 63) - 1, u64::MAX]);
    let mut bytes = vec![0x82, 0xff];
    bytes.extend(len.to_be_bytes());
    bytes.extend(&[7; 20][..random.index(20)]);
    bytes
}

pub(crate) fn new_id(random: &mut Random) -> ClientId {
    ClientId::new(random.next() >> 32).expect("32 bits are less than 53")
}

/// Takes up to so many bytes off the front of a queue.
pub(crate) fn take_front(queue: &mut VecDeque<u8>, len: usize) -> Vec<u8> {
    let rest = queue.split_off(len.min(queue.len()));
    mem::replace(queue, rest).into()
}
