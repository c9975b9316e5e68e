//! Yjs rooms and the y-websocket protocol as a sans-IO state machine.
//!
//! A [`Server`] keeps rooms in sync: it takes what happened ([`Input`]), and answers with what is to
//! be done ([`Output`]). It opens no socket, starts no thread, reads no clock and draws no random
//! number, so the same code runs under tokio, under blocking sockets, and in a simulated world where
//! a seed replays every race. A [`Provider`] is the same for the other end of the line: it keeps a
//! document of an application in sync with a room, through cuts and restarts.
//!
//! If you just want a server, start the program `yrs-websocket-server`; if you have a runtime, take
//! the adapter for it (`yrs-websocket-tokio`). This crate is for event loops of your own.
//!
//! # The loop
//!
//! ```
//! use std::time::Instant;
//! use bytes::Bytes;
//! use yrs_websocket::{Access, Config, ConnectionId, Input, Join, Output, RoomName, Server};
//!
//! let mut server = Server::new(Config::default(), 42);
//! let mut stored: Vec<Bytes> = Vec::new(); // a store: see yrs-websocket-store for real ones
//!
//! let room = RoomName::from_path("/notes?token=1").unwrap();
//! let alice = ConnectionId(1);
//! let mut inputs = vec![
//!     Input::Connected(Join::new(alice, room.clone(), Access::Write)),
//!     // SyncStep1 of an empty document, as `y-websocket` sends it on open.
//!     Input::Received { connection: alice, frame: Bytes::from_static(&[0, 0, 1, 0]) },
//! ];
//! let mut sent = Vec::new(); // sockets
//! while !inputs.is_empty() {
//!     for output in server.handle(Instant::now(), inputs.remove(0)) {
//!         match output {
//!             Output::Send { to, frame } => sent.extend(to.iter().map(|to| (to, frame.clone()))),
//!             Output::Close { connection, reason } => println!("close {connection:?}: {reason}"),
//!             Output::Load { room } => inputs.push(Input::Loaded { room, updates: stored.clone() }),
//!             Output::Append { room, seq, update } => {
//!                 stored.push(update);
//!                 inputs.push(Input::Stored { room, seq });
//!             }
//!             Output::Compact { room, seq, squash } => {
//!                 let squashed = squash.run(); // CPU-heavy: do it where it stops nobody
//!                 stored = squashed.updates().cloned().collect();
//!                 inputs.push(Input::Compacted { room, seq, squashed });
//!             }
//!             Output::Event(event) => println!("{event:?}"),
//!         }
//!     }
//!     // ... and wait for sockets and the store until `server.next_timeout()`, then Input::Timeout.
//! }
//! // The server asked for what alice has, and answered with what she lacks: nothing.
//! let frames: Vec<_> = sent.iter().map(|(_, frame)| &frame[..]).collect();
//! assert_eq!(frames, [&[0, 0, 1, 0][..], &[0, 1, 2, 0, 0]]);
//! ```
//!
//! # Architecture
//!
//! ```text
//!         socket bytes                                                    socket bytes
//!              |                                                               ^
//!  runtime     | read                                                          | write, gathered
//!              v                                                               |
//!  websocket   receive -> next event                     encode once -> outbox per peer  (host)
//!              | frame: Bytes                                                  ^
//!  ------------|---------------------------------------------------------------|------- core --
//!              v                                                               |
//!    Input::Received -> Server -> Room -> Message -> scan -> Journal -> Output::Send { to, frame }
//!                         ^                                    '-> Output::Append / Compact / Load
//!                         |                                         v
//!     Loaded, Stored, Compacted, StoreFailed <----------- store thread (group commit)
//! ```
//!
//! **A room is a log of updates, and a document is only a view of it.** A Yjs update describes itself
//! and updates commute, so a server needs to know only what it has, and reads that off the bytes:
//! [`update`] proves, joins, diffs and squashes encoded updates, [`journal`] knows what a room has,
//! [`room`] who is connected to it, [`server`] which rooms there are. A yrs document is built only
//! when somebody reads or edits on the server's side ([`view`]), and by the application on the client's
//! ([`provider`]). Dependencies point one way:
//! [`message`], [`update`] and [`awareness`] know nothing of rooms, `room` nothing of `server`, and
//! the core nothing of adapters.
//!
//! What counts as held is what every Yjs reader would have integrated: a struct whose clock follows
//! on its client's last one and whose origins and parent are held. Everything else is *parked*, kept,
//! stored and relayed all the same, so the state vector of a room is always that of a document to
//! which its updates were applied, whatever arrives in whatever order and from whomever.
//!
//! # Contracts
//!
//! 1. **Order.** Outputs are performed in the order in which they are returned, per connection and
//!    per room.
//! 2. **The store is first-in first-out per room**, so a load behind an unload sees everything. At
//!    most one write per room is outstanding.
//! 3. **Durable echo.** Peers get an edit at once, its author gets it back only after
//!    [`Input::Stored`]: no frame says earlier that it is stored. After a crash of the server somebody else may
//!    bring an edit back to its author: until a peer has said and sent what it has, what may be its own
//!    waits for the store. Who waits for an answer gets nothing before it, so nobody gets an edit without
//!    those it hangs on. See [`Echo`].
//! 4. **A slow reader costs one state vector.** After [`Input::Congested`] nothing is emitted for it;
//!    [`Input::Writable`] is answered with one diff and the presence that changed.
//! 5. **Loading.** Frames for a room that is being loaded wait, up to a bound; a failed load closes
//!    those who wait with 1013 and forgets the room: never an empty document over existing data.
//! 6. **Only what was scanned travels**, as the author's own bytes. A malformed update closes its
//!    sender with 1007 and leaves no trace.
//! 7. **A room heals.** A view that panics is dropped; a failed write is tried again; after lost
//!    writes everything is written once more and all peers are asked.
//! 8. **Fresh client ids.** Server-side edits are made under an id that has written nothing.
//! 9. **Unload** only with nothing in flight and after the idle delay. **Drain** refuses joins,
//!    flushes, closes peers one after another with 1012, and reports what is not durable.
//! 10. **Access** is decided here: write, read-only (presence allowed, told once), expiry.
//!
//! # Bounds
//!
//! Every queue, length, count and delay that a peer can influence has a limit in [`Config`] and a
//! defined behaviour at it, most of them a [`CloseReason`]. No input makes the core allocate more than
//! a small multiple of its own length. The same inputs give the same outputs, byte for byte.

pub mod awareness;
pub mod config;
#[cfg(test)]
#[path = "../tests/support/epoch.rs"]
mod epoch;
pub mod journal;
mod lib0;
pub mod message;
pub mod provider;
mod random;
pub mod room;
mod room_name;
pub mod server;
pub mod update;
pub mod view;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

use std::{
    ops::Deref,
    time::{Duration, Instant},
};

use bytes::Bytes;
use smallvec::SmallVec;

pub use config::{Config, Echo};
pub use provider::Provider;
pub use room::Room;
pub use room_name::{RoomName, RoomNameError};
pub use server::{Input, Refusal, Server};

use awareness::{AwarenessError, AwarenessLimit};
use journal::Squash;
use message::MessageError;
use update::UpdateError;

/// Identifies a connection; the caller names connections, and never uses an id twice at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// A connection that wants to take part in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Join {
    /// The connection.
    pub connection: ConnectionId,
    /// The room.
    pub room: RoomName,
    /// What the connection may do.
    pub access: Access,
    /// When its access ends: it is then closed with 4401.
    pub expires_at: Option<Instant>,
}

impl Join {
    /// Makes a join whose access does not expire.
    pub fn new(connection: ConnectionId, room: RoomName, access: Access) -> Self {
        Self { connection, room, access, expires_at: None }
    }
}

/// What a connection may do in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read, write, be present.
    Write,
    /// Read and be present. Its updates are dropped, and it is told so once, by the y-protocols auth
    /// message.
    ReadOnly,
}

/// What is to be done in the world.
///
/// Exhaustive on purpose: an output that is ignored is data lost.
#[derive(Debug, Clone)]
pub enum Output {
    /// Send a frame, as one binary WebSocket message, to each recipient.
    Send {
        /// Who gets it; never empty.
        to: Recipients,
        /// The payload.
        frame: Bytes,
    },
    /// Close a connection. The core has forgotten it already.
    Close {
        /// Which one.
        connection: ConnectionId,
        /// Why: gives the code and text of the close frame.
        reason: CloseReason,
    },
    /// Read everything stored of a room; answered by [`Input::Loaded`] or [`Input::LoadFailed`].
    Load {
        /// Which room.
        room: RoomName,
    },
    /// Store an update behind what is stored of the room; answered by [`Input::Stored`] once it is
    /// durable, or by [`Input::StoreFailed`].
    Append {
        /// Which room.
        room: RoomName,
        /// Counts the appends of a room from 1 since it was loaded, without gaps. An append that
        /// failed comes again under its number, perhaps with more in it.
        seq: u64,
        /// The update.
        update: Bytes,
    },
    /// Run the squash, off the latency path where that is possible, and replace exactly what was
    /// loaded and appended up to `seq` by its result, at once; answered by [`Input::Compacted`] or
    /// [`Input::StoreFailed`].
    Compact {
        /// Which room.
        room: RoomName,
        /// The last append that is replaced.
        seq: u64,
        /// Makes the state; may hold edits whose append comes later, which does no harm.
        squash: Squash,
    },
    /// Something that hooks, logs and metrics may want to know.
    Event(Event),
}

/// Something that happened in the core, for hooks, logs and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A room has been loaded.
    RoomOpened {
        /// Which room.
        room: RoomName,
    },
    /// A room has ended, idle or drained.
    RoomClosed {
        /// Which room.
        room: RoomName,
        /// Bytes of edits that are not durable: 0 but for a drain whose deadline came first. None of
        /// them was acknowledged.
        unstored_bytes: usize,
    },
    /// A room could not be loaded; those who waited were closed.
    LoadFailed {
        /// Which room.
        room: RoomName,
    },
    /// What is stored of a room does not read, so the room cannot be loaded.
    StoredUpdateMalformed {
        /// Which room.
        room: RoomName,
        /// Which of the loaded records, from 0.
        index: usize,
        /// What is wrong with it.
        error: UpdateError,
    },
    /// A connection takes part in a room.
    Joined {
        /// Which room.
        room: RoomName,
        /// Who.
        connection: ConnectionId,
    },
    /// A connection no longer takes part in a room.
    Left {
        /// Which room.
        room: RoomName,
        /// Who.
        connection: ConnectionId,
    },
    /// A read-only connection has sent a change, which was dropped.
    WriteRefused {
        /// Which room.
        room: RoomName,
        /// Who.
        connection: ConnectionId,
    },
    /// A message of a type that y-protocols does not know; ignored but for this event.
    UnknownMessage {
        /// Which room.
        room: RoomName,
        /// Who sent it.
        connection: ConnectionId,
        /// The type.
        tag: u64,
        /// What followed it in the frame.
        payload: Bytes,
    },
    /// A write failed and will be tried again.
    StoreFailed {
        /// Which room.
        room: RoomName,
        /// The number of the write.
        seq: u64,
        /// After which time.
        retry_in: Duration,
    },
    /// The store has lost what it had confirmed; everything is written once more.
    StoreLost {
        /// Which room.
        room: RoomName,
    },
    /// A drain is over.
    Drained,
}

/// Says why a connection is closed, with the code that makes its client do the right thing:
/// `y-websocket` 3.1 stays away after 4400 to 4499 and comes back after everything else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// 1007: a frame is no sequence of messages.
    #[error("malformed message: {0}")]
    Message(MessageError),
    /// 1007: an update or state vector is malformed, or would harm its readers.
    #[error("malformed update: {0}")]
    Update(UpdateError),
    /// 1007: an awareness update is malformed.
    #[error("malformed awareness: {0}")]
    Awareness(AwarenessError),
    /// 1008: more presence than one connection may announce.
    #[error("{0}")]
    AwarenessLimit(AwarenessLimit),
    /// 1009: a frame is longer than [`Config::frame_len_max`].
    #[error("frame too long")]
    FrameTooLong,
    /// 1009: a state vector is longer than [`Config::state_vector_len_max`].
    #[error("state vector too long")]
    StateVectorTooLong,
    /// 1012: the server is draining; come back.
    #[error("server is restarting")]
    Draining,
    /// 1013: the room cannot be loaded; come back later.
    #[error("the document cannot be loaded now")]
    LoadFailed,
    /// 1013: more than [`Config::loading_bytes_max`] waits for the room to be loaded.
    #[error("too much waits for the document to be loaded")]
    LoadingQueueFull,
    /// 1013: more than [`Config::unstored_bytes_max`] waits for the store; the edit was not taken, its
    /// author still has it.
    #[error("the store is too far behind")]
    StoreOverloaded,
    /// 1013: the connection was congested for [`Config::congestion_timeout`], and read nothing.
    #[error("the connection reads too slowly")]
    Congested,
    /// 1013: there are [`Config::rooms_max`] rooms.
    #[error("too many rooms are open")]
    RoomsFull,
    /// 1013: there are [`Config::peers_per_room_max`] connections in the room.
    #[error("the room is full")]
    RoomFull,
    /// 4401: access has expired.
    #[error("access has expired")]
    AccessExpired,
}

impl CloseReason {
    /// The close code (RFC 6455 section 7.4).
    pub fn code(&self) -> u16 {
        match self {
            Self::Message(_) | Self::Update(_) | Self::Awareness(_) => 1007,
            Self::AwarenessLimit(_) => 1008,
            Self::FrameTooLong | Self::StateVectorTooLong => 1009,
            Self::Draining => 1012,
            Self::LoadFailed
            | Self::LoadingQueueFull
            | Self::StoreOverloaded
            | Self::Congested
            | Self::RoomsFull
            | Self::RoomFull => 1013,
            Self::AccessExpired => 4401,
        }
    }
}

/// What is to be done, in this order: by a [`Server`], or with its own outputs by a [`Provider`].
#[derive(Debug)]
#[must_use = "an output that is ignored is data lost"]
pub struct Outputs<O = Output>(SmallVec<[O; 2]>);

impl<O> Outputs<O> {
    fn push(&mut self, output: O) {
        self.0.push(output);
    }
}

impl<O> Default for Outputs<O> {
    fn default() -> Self {
        Self(SmallVec::new())
    }
}

impl Outputs {
    fn send(&mut self, to: Recipients, frame: Bytes) {
        self.0.push(Output::Send { to, frame });
    }

    fn close(&mut self, connection: ConnectionId, reason: CloseReason) {
        self.0.push(Output::Close { connection, reason });
    }

    fn event(&mut self, event: Event) {
        self.0.push(Output::Event(event));
    }
}

impl<O> Deref for Outputs<O> {
    type Target = [O];

    fn deref(&self) -> &[O] {
        &self.0
    }
}

impl<O> IntoIterator for Outputs<O> {
    type Item = O;
    type IntoIter = OutputsIntoIter<O>;

    fn into_iter(self) -> OutputsIntoIter<O> {
        OutputsIntoIter(self.0.into_iter())
    }
}

/// Hands out [`Outputs`] one by one.
#[derive(Debug)]
#[must_use = "an output that is ignored is data lost"]
pub struct OutputsIntoIter<O = Output>(smallvec::IntoIter<[O; 2]>);

impl<O> Iterator for OutputsIntoIter<O> {
    type Item = O;

    fn next(&mut self) -> Option<O> {
        self.0.next()
    }
}

/// The connections that a frame goes to, in order of their ids.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recipients(SmallVec<[ConnectionId; 4]>);

impl Recipients {
    /// The connections one by one.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = ConnectionId> + '_ {
        self.0.iter().copied()
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn with_capacity(count: usize) -> Self {
        Self(SmallVec::with_capacity(count))
    }

    fn push(&mut self, connection: ConnectionId) {
        self.0.push(connection);
    }
}

impl From<ConnectionId> for Recipients {
    fn from(connection: ConnectionId) -> Self {
        Self(SmallVec::from_elem(connection, 1))
    }
}

impl FromIterator<ConnectionId> for Recipients {
    fn from_iter<I: IntoIterator<Item = ConnectionId>>(connections: I) -> Self {
        Self(connections.into_iter().collect())
    }
}

fn is_due(deadline: Option<Instant>, now: Instant) -> bool {
    deadline.is_some_and(|deadline| deadline <= now)
}

/// An instant so much later; delays beyond a year are a year.
fn after(now: Instant, delay: Duration) -> Instant {
    now + delay.min(YEAR)
}

fn soonest(timer: &mut Option<Instant>, deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        *timer = Some(timer.map_or(deadline, |timer| timer.min(deadline)));
    }
}

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
