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
//!   Socket::wake         <--  Host::next: read, write, shut down, drop
//! ```
//!
//! Frames are written where they arise: a broadcast goes straight to each socket that takes it, and
//! only a socket that does not is left to its own task, which [`Socket::wake`] calls.
//!
//! [`Shards`] are several hosts behind locks, for runtimes with threads. A [`Client`] is the same as a
//! host for the other end: a [`Provider`](yrs_websocket::Provider), its connection
//! and its outbox. [`stream`] drives both, for runtimes with tasks.

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
pub use host::{Completion, Counters, Host, Next, Observer, Socket, Step, shard_of_connection};
pub use shards::Shards;
pub use storage::Storage;
pub use upgrade::{Admission, Admitted, Hooks, Limits, Options, Upgrade, shard_of};

/// What an edit on the server's side is made with.
pub use yrs::{Transaction, TransactionMut};
/// Names a connection to the host.
pub use yrs_websocket::ConnectionId;
/// The WebSocket layer, for requests and refusals.
pub use yrs_websocket_rfc6455 as rfc6455;
