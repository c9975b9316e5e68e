//! A simulated world for `yrs-websocket`: a server, its clients, a network and a disk, from one seed.
//!
//! It is to a simulated world what `yrs-websocket-tokio` is to tokio: it runs the real [`Host`] with its
//! [`Server`], its WebSocket layer and its outboxes, over simulated pipes, clock and disk. The clients
//! are real yrs documents that speak as stock `y-websocket` does.
//!
//! ```text
//!   clients  <--- pipes: latency, torn, cut, half-open --->  Host  <--- requests, completions --->  disk
//!      '------------------------- one queue of events, one clock, one seed --------------------------'
//! ```
//!
//! One seed decides everything, so the same seed gives the same trace in every process:
//!
//! 1. [`Plan::new`] draws which [`Fault`]s exist in this world at all, then how often each comes.
//! 2. Storm: clients edit, come and go; everything of the plan may fail.
//! 3. Calm: network and disk work, nobody hostile is left, everybody is online. Within a bounded time
//!    all replicas must agree, with each other and with the disk, and show exactly those present.
//! 4. Everybody leaves: no room, connection or timer may be left behind.
//!
//! After every step, and at each frame that a client hears, the checks run: see [`Violation::invariant`].
//!
//! ```
//! use yrs_websocket_sim::{Plan, run};
//!
//! let outcome = run(&Plan::new(7), None);
//! assert_eq!(outcome.violation, None);
//! assert_eq!(outcome.trace_hash, run(&Plan::new(7), None).trace_hash);
//! ```
//!
//! To test a store or hooks of your own, give them to [`run_with`].
//!
//! [`replay`] is for what really happened: it replays what a live server has recorded.
//!
//! [`Host`]: yrs_websocket_host::Host
//! [`Server`]: yrs_websocket::Server

#![forbid(unsafe_code)]

mod checks;
mod client;
mod disk;
mod document;
mod network;
mod plan;
mod random;
mod replay;
mod steps;
mod trace;
mod world;

pub use checks::Violation;
pub use plan::{Fault, Plan, UnknownFault, shrink};
pub use replay::{ReplayEnd, Replayed, replay};
pub use world::{Outcome, Setup, run, run_with};
