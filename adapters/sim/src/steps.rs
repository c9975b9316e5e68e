//! What must hold of each step of the core: of what goes in, and what comes out.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use yrs_websocket::{Config, ConnectionId, Input, Output, Outputs, RoomName, Server, message::Message};
use yrs_websocket_host::{Observer, Step};

use crate::{Violation, disk::scan};

/// Watches the core of one host.
#[derive(Debug)]
pub(crate) struct Watch {
    found: Found,
    config: Config,
    /// Whom the core may send something.
    open: BTreeMap<ConnectionId, RoomName>,
    /// Whom it may not, for now.
    congested: BTreeSet<ConnectionId>,
    /// What is being handled changes no document.
    is_noop: bool,
    /// Another one that watches, of the caller's own.
    next: Option<Box<dyn Observer>>,
}

/// The first thing that was found, for the world to take.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found(Arc<Mutex<Option<Violation>>>);

impl Found {
    pub(crate) fn take(&self) -> Option<Violation> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn report(&self, invariant: &'static str, detail: String) {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        found.get_or_insert_with(|| Violation::new(invariant, detail));
    }
}

impl Watch {
    pub(crate) fn new(found: Found, config: Config, next: Option<Box<dyn Observer>>) -> Self {
        Self { found, config, open: BTreeMap::new(), congested: BTreeSet::new(), is_noop: false, next }
    }

    fn check_bounds(&self, server: &Server) {
        let Config { peers_per_room_max, awareness_ids_max, parked_bytes_max, .. } = self.config;
        for room in server.rooms() {
            let connections = room.connections().len();
            let bounds = [
                ("connections", connections, peers_per_room_max),
                ("presence", room.awareness().present(), awareness_ids_max * connections),
                // What comes from the store was let in before, in other pieces perhaps.
                ("parked bytes", room.journal().parked_bytes(), 2 * parked_bytes_max),
            ];
            for (what, is, max) in bounds {
                if is > max {
                    self.found.report("rooms are bounded", format!("{}: {what} {is} of {max}", room.name()));
                }
            }
        }
    }

    /// Whether a frame holds updates only, and the room has all of them.
    fn is_known(&self, server: &Server, connection: ConnectionId, frame: &bytes::Bytes) -> bool {
        let room = self.open.get(&connection).and_then(|room| server.room(room));
        let Some(room) = room.filter(|room| room.is_live()) else { return false };
        Message::decode(frame).all(|message| match message {
            Ok(Message::Update(update) | Message::SyncStep2(update)) => {
                scan(update).is_ok_and(|update| room.journal().knows(&update))
            }
            _ => false,
        })
    }
}

impl Observer for Watch {
    fn before(&mut self, now: Instant, server: &Server, step: Step<'_>) {
        self.is_noop = false;
        if let Step::Input(input) = step {
            match input {
                Input::Connected(join) => drop(self.open.insert(join.connection, join.room.clone())),
                Input::Disconnected { connection } => drop(self.open.remove(connection)),
                Input::Congested { connection } => drop(self.congested.insert(*connection)),
                Input::Writable { connection } => drop(self.congested.remove(connection)),
                Input::Received { connection, frame } => {
                    self.is_noop = self.is_known(server, *connection, frame);
                }
                _ => {}
            }
        }
        if let Some(next) = &mut self.next {
            next.before(now, server, step);
        }
    }

    fn after(&mut self, server: &Server, outputs: &Outputs) {
        // First, as it went last before: what it measures is the core, and not this.
        if let Some(next) = &mut self.next {
            next.after(server, outputs);
        }
        self.check_bounds(server);
        let is_noop = mem::take(&mut self.is_noop);
        for output in outputs.iter() {
            match output {
                Output::Send { to, frame } => {
                    let mut told = BTreeSet::new();
                    for to in to.iter() {
                        if !self.open.contains_key(&to) {
                            self.found.report("nothing is sent to a closed connection", format!("{to:?}"));
                        } else if self.congested.contains(&to) {
                            self.found.report("nothing is sent to a congested connection", format!("{to:?}"));
                        } else if !told.insert(to) {
                            self.found.report("a frame is sent once", format!("{to:?}"));
                        }
                    }
                    if told.is_empty() {
                        self.found.report("a frame has recipients", format!("{frame:?}"));
                    }
                    if is_noop {
                        self.found.report("no-ops are not sent", format!("{frame:?}"));
                    }
                }
                Output::Append { room, seq, .. } => {
                    if is_noop {
                        self.found.report("no-ops are not stored", format!("{room}: append {seq}"));
                    }
                }
                Output::Close { connection, reason } => {
                    self.congested.remove(connection);
                    if self.open.remove(connection).is_none() {
                        self.found.report("connections are closed once", format!("{connection:?}: {reason}"));
                    }
                }
                Output::Load { .. } | Output::Compact { .. } | Output::Event(_) => {}
            }
        }
    }
}
