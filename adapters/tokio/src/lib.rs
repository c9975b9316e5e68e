//! yrs-websocket on tokio.
//!
//! A [`Service`] has a number of shards, each with a part of the rooms and a thread. A TCP connection is accepted and
//! its request read on the caller's runtime; it then lives on the thread of its room's shard, so that a broadcast
//! touches no other core. That thread runs an event loop, and no tasks: what a runtime does between one message and the
//! next is a tenth of all that a message costs.
//!
//! ```no_run
//! use tokio::net::TcpListener;
//! use yrs_websocket_tokio::{Options, Service};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! let service = Service::in_memory(Options::default(), 2)?;
//! service.serve(TcpListener::bind("127.0.0.1:1234").await?).await;
//! # Ok(())
//! # }
//! ```
//!
//! A connection that somebody else has accepted, TLS or a web framework's upgrade, is served by
//! [`Service::serve_stream`] and stays on the caller's runtime.
//!
//! A [`Client`] keeps a document of the application's own in sync with a room on a server.

mod client;
mod event_loop;
mod service;
mod stream;

pub use client::Client;
pub use event_loop::Socket;
pub use service::{Service, serve};
pub use yrs_websocket_host::{
    Admission, Admitted, ClientHandle, ClientOptions, Counters, DialError, Drained, Hooks, Limits, Observer,
    Options, PresenceState, Shards, Step, Upgrade, provider, record, rfc6455, target,
};
