//! A simulated world for `yrs-websocket`: a server, its clients, a network and a disk, from one seed.
//!
//! It is to a simulated world what `yrs-websocket-tokio` is to tokio: it runs the real [`Host`] with its
//! [`Server`], its WebSocket layer and its outboxes, and the real [`GroupCommit`] over a [`Store`], with
//! simulated pipes, clock and disk. Clients are real yrs documents that speak as stock `y-websocket` does,
//! and applications that run the real [`Client`] with the core's [`Provider`] in it.
//!
//! ```text
//!   clients  <--- pipes: latency, torn, cut, half-open --->  Host  <--- requests, completions --->  disk
//!      '------------------------- one queue of events, one clock, one seed --------------------------'
//! ```
//!
//! One seed decides everything, so the same seed gives the same trace in every process, until this crate
//! or the code under test changes:
//!
//! 1. [`Plan::new`] draws which [`Fault`]s exist in this world at all, then how often each comes.
//! 2. Storm: clients edit, undo, come and go; everything of the plan may fail.
//! 3. Calm: network and disk work, nobody hostile is left, everybody is online. Within a bounded time
//!    all replicas must agree, with each other and with the disk, and show exactly those present.
//! 4. Everybody leaves: no room, connection or timer may be left behind.
//!
//! After every step, at each frame that a client hears, and around each step of the core, the checks run:
//! see [`Violation::invariant`].
//!
//! ```
//! use yrs_websocket_sim::{Plan, run};
//!
//! let outcome = run(&Plan::new(7), None);
//! assert_eq!(outcome.violation, None);
//! assert_eq!(outcome.trace_hash, run(&Plan::new(7), None).trace_hash);
//! ```
//!
//! # On the command line
//!
//! ```text
//! cargo run --release -p yrs-websocket-sim -- --seeds 0..10000    many worlds, on all cores
//! cargo run --release -p yrs-websocket-sim -- --seed 7            one, with a readable log
//! cargo run --release -p yrs-websocket-sim -- --replay FILE       what a live server has recorded
//! ```
//!
//! Where an invariant does not hold, the first of these prints the seed, the invariant, and the shortest
//! command line that [`shrink`] finds for it.
//!
//! # Your own store and hooks
//!
//! Give them to [`run_with`]. The store is asked as the store thread would ask it; around it there are
//! latency, errors, outages and crashes, before a transaction and between a transaction and its answer.
//! What it has confirmed must be there whenever a room is loaded. Hooks are called as a server calls them;
//! an observer among them sees each step of the core.
//!
//! ```
//! use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
//! use yrs_websocket::Event;
//! use yrs_websocket_sim::{Plan, Setup, run_with, shrink};
//! use yrs_websocket_store::SqliteStore;
//!
//! let joins = Arc::new(AtomicU64::new(0));
//! let run = |plan: &Plan| {
//!     let mut setup = Setup::default();
//!     // An empty store for each world.
//!     setup.store = Box::new(SqliteStore::in_memory().unwrap());
//!     let joins = Arc::clone(&joins);
//!     setup.hooks.on_event = Some(Arc::new(move |event| {
//!         joins.fetch_add(u64::from(matches!(event, Event::Joined { .. })), Ordering::Relaxed);
//!     }));
//!     run_with(plan, setup)
//! };
//! for seed in 0..3 {
//!     let outcome = run(&Plan::new(seed));
//!     if let Some(violation) = outcome.violation {
//!         panic!("{violation}\n{}", shrink(&outcome.plan, violation.invariant, run));
//!     }
//! }
//! assert!(joins.load(Ordering::Relaxed) > 0);
//! ```
//!
//! # Tests of your own
//!
//! A [`Stage`] is a world that a test directs: it starts and stops servers, lets clients join and leave, edits
//! their documents, and lets time pass until something is so. What is written once for it needs no
//! sockets, threads or sleep, and a seed replays it; `tests/matrix` runs its tests on one.
//!
//! # What is not here
//!
//! Subdocuments (yrs writes their options in an order that is another one in each process), and files
//! that are torn by a crash: a store is a [`Store`] here, and what it does on its medium is its own.
//!
//! [`Client`]: yrs_websocket_host::Client
//! [`GroupCommit`]: yrs_websocket_store::GroupCommit
//! [`Host`]: yrs_websocket_host::Host
//! [`Provider`]: yrs_websocket::Provider
//! [`Server`]: yrs_websocket::Server
//! [`Store`]: yrs_websocket_store::Store

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
pub use world::{Actor, Outcome, Setup, Site, Stage, Wire, run, run_with};
