//! yrs-websocket on blocking `std::net`: threads, and nothing else.
//!
//! ```no_run
//! use std::net::TcpListener;
//! use yrs_websocket_std::{Options, Service};
//!
//! let service = Service::in_memory(Options::default(), 2)?;
//! service.serve(&TcpListener::bind("127.0.0.1:1234")?);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! What it costs: a connection has a thread that reads, so some tens of kilobytes even if it is idle, and
//! some thousands of connections are enough. A broadcast writes to each socket directly, from the thread
//! that caused it. Without `poll`, a socket that takes nothing is noticed only by waiting for it: the
//! first time a reader is too slow it holds its shard up for one tick of the system, some milliseconds;
//! from then on a thread of its own writes to it, until it has caught up.
//!
//! A [`Client`] has two threads: the one that runs it, and one that reads.

mod client;
mod connection;
mod service;

pub use client::Client;
pub use connection::Socket;
pub use service::Service;
pub use yrs_websocket_host::{
    Admission, ClientHandle, ClientOptions, Counters, DialError, Drained, Hooks, Limits, Options,
    PresenceState, Shards, provider, rfc6455, target,
};
