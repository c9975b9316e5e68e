//! A world for exact exchanges: a server, simulated time, and rules that hold after every step.
#![allow(dead_code, unreachable_pub)] // each test crate uses its part of it

pub mod epoch;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bytes::Bytes;
use yrs_websocket::{
    Access, Config, ConnectionId, Event, Input, Join, Output, RoomName, Server,
    journal::{Squash, Squashed},
    message::Message,
};

/// An output as a value that compares and prints.
#[derive(Clone, PartialEq, Eq)]
pub enum Out {
    /// Recipients and frame.
    Send(Vec<u64>, Vec<u8>),
    /// Connection and close code.
    Close(u64, u16),
    Load(String),
    Append(u64, Vec<u8>),
    Compact(u64),
}

impl std::fmt::Debug for Out {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Send(to, frame) => write!(f, "send({to:?}, {frame:02x?})"),
            Self::Close(connection, code) => write!(f, "close({connection}, {code})"),
            Self::Load(room) => write!(f, "load({room})"),
            Self::Append(seq, update) => write!(f, "append({seq}, {update:02x?})"),
            Self::Compact(seq) => write!(f, "compact({seq})"),
        }
    }
}

pub fn send<const N: usize>(to: [u64; N], frame: impl Into<Vec<u8>>) -> Out {
    Out::Send(to.to_vec(), frame.into())
}

pub fn close(connection: u64, code: u16) -> Out {
    Out::Close(connection, code)
}

pub fn load() -> Out {
    Out::Load("r".into())
}

pub fn append(seq: u64, update: impl Into<Vec<u8>>) -> Out {
    Out::Append(seq, update.into())
}

/// A server, the time, and what its host knows.
pub struct World {
    pub server: Server,
    pub now: Instant,
    pub events: Vec<Event>,
    /// The squashes that were handed out and not yet run.
    pub squashes: Vec<(RoomName, u64, Squash)>,
    /// All appends, by room.
    pub appends: Vec<(RoomName, u64, Bytes)>,
    start: Instant,
    open: BTreeSet<u64>,
    congested: BTreeSet<u64>,
    /// The write of each room that has no answer yet, and its last durable append.
    writes: BTreeMap<RoomName, (Option<u64>, u64)>,
}

impl World {
    pub fn new(config: Config) -> Self {
        let start = epoch::epoch();
        Self {
            server: Server::new(config, 42),
            now: start,
            events: Vec::new(),
            squashes: Vec::new(),
            appends: Vec::new(),
            start,
            open: BTreeSet::new(),
            congested: BTreeSet::new(),
            writes: BTreeMap::new(),
        }
    }

    /// A world whose room `r` is open and empty, with these connections in it, who have said that they
    /// have nothing.
    pub fn open<const N: usize>(config: Config, connections: [u64; N]) -> Self {
        let mut world = Self::new(config);
        for connection in connections {
            world.join(connection);
        }
        world.loaded(&[]);
        for connection in connections {
            world.frame(connection, Message::SyncStep1(Bytes::from_static(&[0])).encode());
        }
        world.events.clear();
        world
    }

    pub fn handle(&mut self, input: Input) -> Vec<Out> {
        match &input {
            Input::Connected(join) => _ = self.open.insert(join.connection.0),
            Input::Disconnected { connection } => {
                self.open.remove(&connection.0);
                self.congested.remove(&connection.0);
            }
            Input::Congested { connection } if self.open.contains(&connection.0) => {
                self.congested.insert(connection.0);
            }
            Input::Writable { connection } => _ = self.congested.remove(&connection.0),
            Input::Loaded { room, .. } => _ = self.writes.entry(room.clone()).or_default(),
            Input::Stored { room, seq } => {
                let write = self.writes.entry(room.clone()).or_default();
                if write.0 == Some(*seq) {
                    *write = (None, *seq);
                }
            }
            Input::Compacted { room, .. } | Input::StoreFailed { room, .. } => {
                // Of a write that is outstanding; a report of lost writes changes nothing here.
                let write = self.writes.entry(room.clone()).or_default();
                if !matches!(&input, Input::StoreFailed { seq, .. } if Some(*seq) != write.0) {
                    write.0 = None;
                }
            }
            _ => {}
        }
        let is_timeout = matches!(input, Input::Timeout);
        let outputs = self.server.handle(self.now, input);
        let out = self.check(outputs);
        if is_timeout {
            let next = self.server.next_timeout();
            assert!(next.is_none_or(|next| next > self.now), "it spins");
            let again = self.server.handle(self.now, Input::Timeout);
            assert!(again.is_empty(), "a second timeout did {again:?}");
        }
        out
    }

    /// Writes outputs down as values; holds them against the rules that every host relies on.
    pub fn check(&mut self, outputs: yrs_websocket::Outputs) -> Vec<Out> {
        let mut out = Vec::new();
        for output in outputs {
            match output {
                Output::Send { to, frame } => {
                    let to: Vec<_> = to.iter().map(|to| to.0).collect();
                    assert!(!to.is_empty() && to.is_sorted_by(|a, b| a < b), "recipients {to:?}");
                    for to in &to {
                        assert!(self.open.contains(to), "sent to {to}, which is closed");
                        assert!(!self.congested.contains(to), "sent to {to}, which is congested");
                    }
                    let messages: Result<Vec<_>, _> = Message::decode(&frame).collect();
                    assert_eq!(messages.map(|messages| messages.len()), Ok(1), "{frame:02x?}");
                    out.push(Out::Send(to, frame.into()));
                }
                Output::Close { connection, reason } => {
                    assert!(self.open.remove(&connection.0), "closed {connection:?} twice");
                    self.congested.remove(&connection.0);
                    out.push(Out::Close(connection.0, reason.code()));
                }
                Output::Load { room } => {
                    // What a former incarnation wrote has been answered, or given up at a deadline.
                    self.writes.insert(room.clone(), (None, 0));
                    out.push(Out::Load(room.as_str().into()));
                }
                Output::Append { room, seq, update } => {
                    let write = self.writes.get_mut(&room).expect("it was loaded");
                    assert_eq!(write.0, None, "two writes at a time");
                    assert_eq!(seq, write.1 + 1, "appends have gaps");
                    write.0 = Some(seq);
                    self.appends.push((room, seq, update.clone()));
                    out.push(Out::Append(seq, update.into()));
                }
                Output::Compact { room, seq, squash } => {
                    let write = self.writes.get_mut(&room).expect("it was loaded");
                    assert_eq!(*write, (None, seq), "a write before the compaction is not durable");
                    write.0 = Some(seq);
                    self.squashes.push((room, seq, squash));
                    out.push(Out::Compact(seq));
                }
                Output::Event(event) => self.events.push(event),
            }
        }
        assert_eq!(self.server.connections(), self.open.len());
        out
    }

    /// Lets time pass, and gives every timeout on the way; what all of them did.
    pub fn pass(&mut self, millis: u64) -> Vec<Out> {
        let until = self.now + Duration::from_millis(millis);
        let mut out = Vec::new();
        while let Some(next) = self.server.next_timeout().filter(|next| *next <= until) {
            self.now = self.now.max(next);
            out.extend(self.handle(Input::Timeout));
        }
        self.now = until;
        out
    }

    /// Lets time pass with nobody looking at the timers.
    pub fn sleep(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
    }

    pub fn elapsed(&self) -> u64 {
        self.now.duration_since(self.start).as_millis() as u64
    }

    pub fn in_millis(&self, millis: u64) -> Instant {
        self.now + Duration::from_millis(millis)
    }

    pub fn join(&mut self, connection: u64) -> Vec<Out> {
        self.handle(Input::Connected(join(connection)))
    }

    pub fn join_room(&mut self, connection: u64, room: &str) -> Vec<Out> {
        let room = RoomName::new(room).unwrap();
        self.handle(Input::Connected(Join::new(ConnectionId(connection), room, Access::Write)))
    }

    pub fn read_only(&mut self, connection: u64) -> Vec<Out> {
        self.handle(Input::Connected(Join::new(ConnectionId(connection), room(), Access::ReadOnly)))
    }

    pub fn frame(&mut self, connection: u64, frame: impl Into<Vec<u8>>) -> Vec<Out> {
        let frame = Bytes::from(frame.into());
        self.handle(Input::Received { connection: ConnectionId(connection), frame })
    }

    pub fn congested(&mut self, connection: u64) {
        assert_eq!(self.handle(Input::Congested { connection: ConnectionId(connection) }), []);
    }

    pub fn writable(&mut self, connection: u64) -> Vec<Out> {
        self.handle(Input::Writable { connection: ConnectionId(connection) })
    }

    pub fn leave(&mut self, connection: u64) -> Vec<Out> {
        self.handle(Input::Disconnected { connection: ConnectionId(connection) })
    }

    pub fn access(&mut self, connection: u64, access: Access, expires_at: Option<Instant>) -> Vec<Out> {
        self.handle(Input::AccessChanged { connection: ConnectionId(connection), access, expires_at })
    }

    pub fn loaded(&mut self, updates: &[&[u8]]) -> Vec<Out> {
        let updates = updates.iter().map(|update| Bytes::copy_from_slice(update)).collect();
        self.handle(Input::Loaded { room: room(), updates })
    }

    pub fn load_failed(&mut self) -> Vec<Out> {
        self.handle(Input::LoadFailed { room: room() })
    }

    pub fn stored(&mut self, seq: u64) -> Vec<Out> {
        self.handle(Input::Stored { room: room(), seq })
    }

    pub fn store_failed(&mut self, seq: u64) -> Vec<Out> {
        self.handle(Input::StoreFailed { room: room(), seq })
    }

    pub fn compacted(&mut self, seq: u64, squashed: Squashed) -> Vec<Out> {
        self.handle(Input::Compacted { room: room(), seq, squashed })
    }

    pub fn drain(&mut self, deadline: Instant) -> Vec<Out> {
        self.handle(Input::Drain { deadline })
    }

    /// What happened since it was last asked for.
    pub fn events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Edits the document `t` on the server's side.
    pub fn edit<R>(
        &mut self,
        f: impl FnOnce(&mut yrs::TransactionMut<'_>) -> R,
    ) -> Result<(R, Vec<Out>), yrs_websocket::view::ViewError> {
        let (result, outputs) = self.server.edit(self.now, &room(), f)?;
        Ok((result, self.check(outputs)))
    }
}

pub fn room() -> RoomName {
    RoomName::new("r").unwrap()
}

pub fn join(connection: u64) -> Join {
    Join::new(ConnectionId(connection), room(), Access::Write)
}

pub fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    change(&mut config);
    config
}

// Frames. Numbers below 128 are one byte each, which all of these are.

pub fn framed(head: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut frame = head.to_vec();
    let mut len = payload.len();
    while len > 127 {
        frame.push(len as u8 | 0x80);
        len >>= 7;
    }
    frame.push(len as u8);
    frame.extend_from_slice(payload);
    frame
}

/// `00 00`: SyncStep1, of a state vector given as (client, clock).
pub fn step1(state: &[(u8, u8)]) -> Vec<u8> {
    let mut vector = vec![state.len() as u8];
    vector.extend(state.iter().flat_map(|(client, clock)| [*client, *clock]));
    framed(&[0, 0], &vector)
}

/// `00 01`: SyncStep2.
pub fn step2(update: impl AsRef<[u8]>) -> Vec<u8> {
    framed(&[0, 1], update.as_ref())
}

/// `00 02`: Update.
pub fn update(update: impl AsRef<[u8]>) -> Vec<u8> {
    framed(&[0, 2], update.as_ref())
}

/// `01`: presence, as (client, clock, JSON).
pub fn presence(entries: &[(u8, u8, &str)]) -> Vec<u8> {
    let mut payload = vec![entries.len() as u8];
    for (client, clock, state) in entries {
        payload.extend_from_slice(&framed(&[*client, *clock], state.as_bytes()));
    }
    framed(&[1], &payload)
}

/// `02 00`: permission denied.
pub const DENIED: &[u8] = b"\x02\x00\x37this connection is read-only: your changes are not kept";

/// What is sent to keep `y-websocket` from closing.
pub const KEEPALIVE: [u8; 3] = [1, 1, 0];

/// The update that says nothing.
pub const NOTHING: [u8; 2] = [0, 0];

// Updates.

/// An update: sections of (client, first clock, structs), and deletes of (client, clock, length).
pub fn structs(sections: &[(u8, u8, &[Vec<u8>])], deletes: &[(u8, u8, u8)]) -> Vec<u8> {
    let mut bytes = vec![sections.len() as u8];
    for (client, clock, structs) in sections {
        bytes.extend([structs.len() as u8, *client, *clock]);
        bytes.extend(structs.concat());
    }
    bytes.push(deletes.len() as u8);
    for (client, clock, len) in deletes {
        bytes.extend([*client, 1, *clock, *len]);
    }
    bytes
}

/// A struct: text at the start of the root `t`.
pub fn first(text: &str) -> Vec<u8> {
    framed(&[4, 1, 1, b't'], text.as_bytes())
}

/// A struct: text behind the character (client, clock).
pub fn after(client: u8, clock: u8, text: &str) -> Vec<u8> {
    framed(&[0x84, client, clock], text.as_bytes())
}

/// An update: one who types alone. Text at `clock`, behind what the client typed before.
pub fn text_insert(client: u8, clock: u8, text: &str) -> Vec<u8> {
    let s = if clock == 0 { first(text) } else { after(client, clock - 1, text) };
    structs(&[(client, clock, &[s])], &[])
}

/// An update that deletes.
pub fn text_delete(client: u8, clock: u8, len: u8) -> Vec<u8> {
    structs(&[], &[(client, clock, len)])
}
