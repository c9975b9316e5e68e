//! What every server runtime of yrs-websocket shares.
//!
//! A [`Host`] is one shard of a server: a [`Server`](yrs_websocket::Server), the WebSocket connections
//! of its peers, their outboxes, and its side of the store. A runtime reads, writes, spawns and
//! sleeps; everything in between is here, and as deterministic as the core: time is an argument, and
//! what arises is written to a [`Socket`] or handed to the [`Storage`].
//!
//! ```text
//!   runtime                        Host                                   store
//!   -------                        ----                                   -----
//!   head of the request  -->  Upgrade::receive
//!                             Host::connect
//!   bytes that arrived   -->  Host::received ---> Server::handle -.---> Storage (a thread)
//!   socket is writable   -->  Host::writable                      |          |
//!   deadline             -->  Host::timeout                       v          v
//!   Socket::try_write    <--  outboxes: framed once, gathered   Send    Host::completed
//!   Socket::wake         <--  what is next: read, write, shut down, drop
//! ```
//!
//! Frames are written where they arise: a broadcast goes straight to each socket that takes it, and
//! only a socket that does not is left to who reads it, whom [`Socket::wake`] tells.
//!
//! [`Shards`] are several hosts behind locks, for runtimes with threads. A [`Client`] is the same as a
//! host for the other end: a [`Provider`](yrs_websocket::Provider), its connection
//! and its outbox. [`stream`] drives both, for runtimes with tasks; an event loop that keeps the time of a shard itself
//! serves it by [`Shards::turn`].
//!
//! # Who decides what
//!
//! | decision | core | host | adapter |
//! |---|---|---|---|
//! | what a message means; what is answered, to whom, in which order | all of it | offers each frame to `on_frame` first | |
//! | what is malformed or too much, and its close code | messages, updates, presence, state vectors | RFC 6455, text frames, a hook that panics | |
//! | who is let in | [limits, drains](yrs_websocket::Server::admits), access and its end | reads the request, asks `on_request`, refuses | |
//! | when to load, write, squash, try again, unload; when an edit is acknowledged | all of it | carries it to the store and back | |
//! | which writes are one transaction | | the store thread | |
//! | whose presence there is, and for how long | all of it | | |
//! | that a peer reads too slowly | what it gets instead, when it is given up | when its outbox counts as full | |
//! | when the silent are sent something | the message that clients wait for | pings | |
//! | how a drain goes | order, pace, deadline | whether everything is durable, when it is over | |
//! | how long the upgrade and the closing handshake may take | a client's attempt as a whole | the rest | |
//! | which shard has a room | | all of it | |
//! | when a frame is written | | at once, if the socket takes it | when it can be written again |
//! | when something is due | its next timeout | that of a shard as a whole | sleeps |
//! | when a client connects, waits, asks, sends again, stops | all of it | the upgrade, the outbox | opens a stream |
//! | when to accept: again after a failure, no more after a drain | | all of it | accepts |
//! | threads and tasks, buffers, options of sockets | | | all of it |

mod bell;
mod client;
mod host;
mod outbox;
pub mod record;
mod shards;
mod storage;
pub mod stream;
mod upgrade;

pub use bell::Bell;
pub use client::{Client, ClientHandle, ClientNext, ClientOptions, DialError, target};
pub use host::{
    Completion, Counters, Host, Next, Observer, Socket, Step, shard_of_connection, slot_of_connection,
};
pub use shards::{ACCEPT_RETRY_DELAY, Drained, Shards, seed};
pub use storage::Storage;
pub use upgrade::{Admission, Admitted, Hooks, Limits, Options, Upgrade, shard_of};

/// What an edit on the server's side is made with.
pub use yrs::{Transaction, TransactionMut};
/// Names a connection to the host.
pub use yrs_websocket::ConnectionId;
/// What a client hears, and how it is present.
pub use yrs_websocket::provider::{self, PresenceState};
/// The WebSocket layer, for requests and refusals.
pub use yrs_websocket_rfc6455 as rfc6455;
