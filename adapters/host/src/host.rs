use std::{
    collections::BTreeSet,
    fmt,
    io::{self, IoSlice},
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use smallvec::SmallVec;
use yrs_websocket::{
    CloseReason, ConnectionId, Event, Input, Join, Output, Outputs, Recipients, RoomName, Server,
    journal::Squashed,
};
use yrs_websocket_rfc6455::{
    self as rfc6455, CloseCode, Deflater, Opcode, Refusal, Role, encode_frame, frame_header,
};
use yrs_websocket_store as store;

use crate::{Admitted, Hooks, Options, Storage, outbox::Outbox, storage, upgrade::HookPanicked};

/// What the store answers.
pub type Completion = store::Completion<Squashed>;

/// A runtime's end of a connection.
pub trait Socket {
    /// Writes without waiting, as much as is taken at once; [`io::ErrorKind::WouldBlock`] where that is
    /// nothing.
    fn try_write(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Tells whoever reads this connection what is next, as [`Host::next`] says: the outbox waits for the
    /// socket, or the connection has ended. May be called often.
    fn wake(&mut self, next: Next);
}

/// What the runtime does next about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait for bytes to read; also until the socket can be written, if `write`.
    Run {
        /// Whether the outbox waits for the socket: call [`Host::writable`] when it can be written.
        write: bool,
    },
    /// Everything is written: shut down the write side, then read, and drop what comes, to the end of
    /// the stream. Dropped earlier, TCP might take the close frame back (RFC 6455 section 7.1.1).
    ShutDown,
    /// The connection is forgotten: drop it.
    Drop,
}

/// Sees everything that the core of a [`Host`] is told, and everything that it answers: to record it,
/// or to check it.
///
/// Unlike hooks it is trusted: its panics are not contained.
pub trait Observer: fmt::Debug + Send {
    /// Something is about to be handled.
    fn before(&mut self, now: Instant, server: &Server, step: Step<'_>);

    /// It was handled, and this came of it.
    fn after(&mut self, server: &Server, outputs: &Outputs);
}

/// What the core is told.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// An input.
    Input(&'a Input),
    /// The application edits a document. This step is seen when it has been handled already.
    Edit {
        /// Which room.
        room: &'a RoomName,
        /// What the edit changes; that of no change where the room cannot be edited.
        update: &'a [u8],
    },
    /// The application reads a document.
    Read {
        /// Which room.
        room: &'a RoomName,
    },
}

/// Numbers since the host was made; those marked so, now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Connections, now.
    pub connections: u64,
    /// Rooms that are open or being loaded, now.
    pub rooms: u64,
    /// How often a connection could not even be accepted, for want of file descriptors say.
    pub accept_failures: u64,
    /// Connections that were let in.
    pub accepted: u64,
    /// Connections that were refused because of a limit or a drain.
    pub refused: u64,
    /// Frames received.
    pub frames_in: u64,
    /// Bytes of payload received, decompressed.
    pub bytes_in: u64,
    /// Frames made; each is encoded once.
    pub frames_out: u64,
    /// How often one of them was compressed: once for all who have agreed on the same.
    pub frames_deflated: u64,
    /// Frames put into an outbox, one per recipient.
    pub deliveries: u64,
    /// Bytes put into outboxes.
    pub bytes_out: u64,
    /// Appends handed to the store.
    pub appends: u64,
    /// Squashes handed to the store.
    pub compactions: u64,
    /// Writes and loads that failed.
    pub store_failures: u64,
    /// How often an outbox became full.
    pub congestions: u64,
    /// Connections that were closed because of what they sent.
    pub violations: u64,
    /// Writes of read-only connections that were dropped.
    pub writes_refused: u64,
}

impl Counters {
    /// Adds those of another host.
    pub fn add(&mut self, other: &Self) {
        self.connections += other.connections;
        self.rooms += other.rooms;
        self.accept_failures += other.accept_failures;
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.frames_in += other.frames_in;
        self.bytes_in += other.bytes_in;
        self.frames_out += other.frames_out;
        self.frames_deflated += other.frames_deflated;
        self.deliveries += other.deliveries;
        self.bytes_out += other.bytes_out;
        self.appends += other.appends;
        self.compactions += other.compactions;
        self.store_failures += other.store_failures;
        self.congestions += other.congestions;
        self.violations += other.violations;
        self.writes_refused += other.writes_refused;
    }
}

/// One shard of a server: see the [crate docs](crate).
#[derive(Debug)]
pub struct Host<S> {
    server: Server,
    observer: Option<Box<dyn Observer>>,
    storage: Storage,
    hooks: Hooks,
    websocket: Arc<rfc6455::Config>,
    outbox_bytes_max: usize,
    deflater: Deflater,
    slots: Vec<Slot<S>>,
    free: Vec<u32>,
    /// Who has something to write since the last flush.
    dirty: Vec<ConnectionId>,
    /// When to look at the time of a connection; may be earlier than needed.
    deadlines: BTreeSet<(Instant, ConnectionId)>,
    drained: bool,
    /// Bytes of edits in rooms that a drain closed before the store had confirmed them.
    unstored_at_close: usize,
    counters: Counters,
}

#[derive(Debug)]
struct Slot<S> {
    /// Makes the ids of those who had the slot earlier unknown.
    generation: u16,
    connection: Option<Box<Connection<S>>>,
}

/// What a delivery touches comes first: of many connections that are silent for a while all else is cold.
#[derive(Debug)]
#[repr(C)]
struct Connection<S> {
    dirty: bool,
    congested: bool,
    /// Whether the core knows it.
    joined: bool,
    outbox: Outbox,
    socket: S,
    websocket: rfc6455::Connection,
    room: RoomName,
    /// Bytes in the outbox when the core was last told that it is full.
    told_bytes: usize,
    /// Its entry in `deadlines`.
    deadline: Option<Instant>,
    /// When to give up the rest of the outbox and the end of the stream, once the closing handshake is
    /// over: a peer that neither reads nor closes must not stay.
    linger_until: Option<Instant>,
}

impl<S: Socket> Host<S> {
    /// Makes a host without connections. `seed`, drawn from the system, makes client ids and jitter.
    pub fn new(options: &Options, storage: Storage, seed: u64) -> Self {
        let mut websocket = options.websocket.clone();
        websocket.text_refused = true;
        websocket.frame_len_max = options.config.frame_len_max;
        websocket.message_len_max = options.config.frame_len_max;
        Self {
            server: Server::new(options.config.clone(), seed),
            observer: options.hooks.observe(storage.shard(), &options.config, seed),
            storage,
            hooks: options.hooks.clone(),
            websocket: Arc::new(websocket),
            outbox_bytes_max: options.limits.outbox_bytes_max,
            deflater: Deflater::new(),
            slots: Vec::new(),
            free: Vec::new(),
            dirty: Vec::new(),
            deadlines: BTreeSet::new(),
            drained: false,
            unstored_at_close: 0,
            counters: Counters::default(),
        }
    }

    /// Lets a connection in: answers its request, greets it, reads what came behind the request.
    ///
    /// # Errors
    ///
    /// The response to write instead, where a limit or a drain keeps it out; the connection ends with
    /// it. The socket is given back.
    pub fn connect(
        &mut self,
        now: Instant,
        socket: S,
        admitted: Admitted,
    ) -> Result<ConnectionId, (S, Refusal)> {
        let Admitted { admission, response, deflate, mut rest } = admitted;
        if let Err(refusal) = self.server.admits(&admission.room) {
            self.counters.refused += 1;
            let response = Refusal::new(503).with_header("Retry-After", RETRY_AFTER_SECONDS);
            let response =
                response.and_then(|response| response.with_body("text/plain", format!("{refusal}\n")));
            return Err((socket, response.unwrap_or_else(|_| Refusal::new(503))));
        }
        let websocket = rfc6455::Connection::new(Role::Server, Arc::clone(&self.websocket), now);
        let websocket = websocket.with_deflate(deflate);
        let mut outbox = Outbox::default();
        outbox.push(response);
        let connection = Box::new(Connection {
            room: admission.room.clone(),
            socket,
            websocket,
            outbox,
            joined: true,
            congested: false,
            told_bytes: 0,
            dirty: false,
            deadline: None,
            linger_until: None,
        });
        let id = self.insert(connection);
        self.counters.accepted += 1;
        self.mark_dirty(id);
        self.watch(id);
        let mut join = Join::new(id, admission.room, admission.access);
        join.expires_at = admission.expires_at;
        self.handle(now, Input::Connected(join));
        self.received(now, id, &mut rest);
        Ok(id)
    }

    /// Takes bytes that arrived; they are unmasked in place.
    pub fn received(&mut self, now: Instant, id: ConnectionId, mut input: &mut [u8]) {
        while let Some(connection) = self.get_mut(id) {
            let event = connection.websocket.receive(now, &mut input);
            let joined = connection.joined;
            if connection.websocket.has_output() {
                self.take_output(id);
            }
            match event {
                Some(rfc6455::Event::Binary(frame)) if joined => self.received_frame(now, id, frame),
                Some(rfc6455::Event::Closed(closed)) => self.websocket_closed(now, id, &closed),
                Some(_) => {}
                None => break,
            }
        }
        // What the core has held back for the rest of these bytes.
        if self.server.next_timeout().is_some_and(|timeout| timeout <= now) {
            self.handle(now, Input::Timeout);
        }
        self.flush(now);
    }

    /// Writes more of an outbox to a socket that can be written again.
    pub fn writable(&mut self, now: Instant, id: ConnectionId) {
        self.mark_dirty(id);
        self.flush(now);
    }

    /// Writes an outbox by `write`, for runtimes whose sockets are written only by their own task:
    /// their [`Socket::try_write`] always would block. Does not [`wake`](Socket::wake) for what `write`
    /// leaves: look at [`Host::next`] afterwards.
    ///
    /// # Errors
    ///
    /// Those of `write`; the connection is then forgotten.
    pub fn write_by(
        &mut self,
        now: Instant,
        id: ConnectionId,
        write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<()> {
        let Some(connection) = self.get_mut(id) else { return Ok(()) };
        let result = connection.outbox.flush(write);
        match &result {
            Ok(()) => self.weigh_outbox(now, id),
            Err(_) => self.forget(now, id),
        }
        self.flush(now);
        result
    }

    /// Forgets a connection whose stream has ended or failed.
    pub fn ended(&mut self, now: Instant, id: ConnectionId) {
        self.forget(now, id);
        self.flush(now);
    }

    /// Forgets all connections at once, as a crash would: for a runtime that ends.
    pub fn all_ended(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            let id = self.connection_id(index as u32);
            self.forget(now, id);
        }
        self.flush(now);
    }

    /// Takes what the store has finished.
    pub fn completed(&mut self, now: Instant, completions: impl IntoIterator<Item = Completion>) {
        for completion in completions {
            self.complete(now, completion);
        }
        self.flush(now);
    }

    /// Does what is due. Calling early, or twice, is harmless.
    pub fn timeout(&mut self, now: Instant) {
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            let Some(connection) = self.get_mut(id) else { continue };
            connection.deadline = None;
            if connection.linger_until.is_some_and(|until| until <= now) {
                self.forget(now, id);
                continue;
            }
            match connection.websocket.handle_timeout(now) {
                // Nobody is there to read what is left to write.
                Some(_) => self.forget(now, id),
                None => {
                    self.take_output(id);
                    self.watch(id);
                }
            }
        }
        // Twice, because to write may end connections, and that a room without delay.
        for _ in 0..2 {
            if self.server.next_timeout().is_some_and(|timeout| timeout <= now) {
                self.handle(now, Input::Timeout);
            }
            self.flush(now);
        }
    }

    /// Refuses connections from now on, flushes the documents, and sends everybody away by `deadline`.
    pub fn drain(&mut self, now: Instant, deadline: Instant) {
        self.handle(now, Input::Drain { deadline });
        self.flush(now);
    }

    /// Gives the core an input of the application's own, such as
    /// [`Input::AccessChanged`].
    pub fn input(&mut self, now: Instant, input: Input) {
        self.handle(now, input);
        self.flush(now);
    }

    /// Changes a document from the server's side: see [`Server::edit`].
    ///
    /// # Errors
    ///
    /// Those of [`Server::edit`].
    pub fn edit<R>(
        &mut self,
        now: Instant,
        room: &RoomName,
        f: impl FnOnce(&mut yrs::TransactionMut<'_>) -> R,
    ) -> Result<R, yrs_websocket::view::ViewError> {
        let Some(observer) = &mut self.observer else {
            let (result, outputs) = self.server.edit(now, room, f)?;
            self.perform(now, outputs);
            self.flush(now);
            return Ok(result);
        };
        let mut update = vec![0, 0];
        let result = self.server.edit(now, room, |transaction| {
            let result = f(transaction);
            update = transaction.encode_update_v1();
            result
        });
        observer.before(now, &self.server, Step::Edit { room, update: &update });
        let (result, outputs) = match result {
            Ok((result, outputs)) => (Ok(result), outputs),
            Err(error) => (Err(error), Outputs::default()),
        };
        observer.after(&self.server, &outputs);
        let result = result?;
        self.perform(now, outputs);
        self.flush(now);
        Ok(result)
    }

    /// Reads a document: see [`Server::read`].
    ///
    /// # Errors
    ///
    /// Those of [`Server::read`].
    pub fn read<R>(
        &mut self,
        now: Instant,
        room: &RoomName,
        f: impl FnOnce(&yrs::Transaction<'_>) -> R,
    ) -> Result<R, yrs_websocket::view::ViewError> {
        if let Some(observer) = &mut self.observer {
            observer.before(now, &self.server, Step::Read { room });
        }
        let result = self.server.read(now, room, f);
        if let Some(observer) = &mut self.observer {
            observer.after(&self.server, &Outputs::default());
        }
        result
    }

    /// What to do next about a connection.
    pub fn next(&self, id: ConnectionId) -> Next {
        get(&self.slots, id).map_or(Next::Drop, Connection::next)
    }

    /// The end of a connection that it was [made with](Self::connect).
    pub fn socket_mut(&mut self, id: ConnectionId) -> Option<&mut S> {
        Some(&mut self.get_mut(id)?.socket)
    }

    /// The connection in a slot: see [`slot_of_connection`].
    pub fn connection_in(&self, slot: usize) -> Option<ConnectionId> {
        self.slots.get(slot)?.connection.as_ref()?;
        Some(self.connection_id(slot as u32))
    }

    /// When [`Host::timeout`] has something to do.
    pub fn next_timeout(&self) -> Option<Instant> {
        let connection = self.deadlines.first().map(|(deadline, _)| *deadline);
        self.server.next_timeout().into_iter().chain(connection).min()
    }

    /// The core.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Whether a drain is over and everything about it is written.
    pub fn is_drained(&self) -> bool {
        self.drained && self.slots.len() == self.free.len()
    }

    /// Bytes of edits that the store has not confirmed, over all rooms.
    pub fn unstored_bytes(&self) -> usize {
        self.unstored_at_close + self.server.rooms().map(yrs_websocket::Room::unstored_bytes).sum::<usize>()
    }

    /// Bytes that wait for a connection's socket; 0 for one that is forgotten.
    pub fn outbox_bytes(&self, id: ConnectionId) -> usize {
        get(&self.slots, id).map_or(0, |connection| connection.outbox.bytes())
    }

    /// What has been counted.
    pub fn counters(&self) -> Counters {
        Counters {
            connections: (self.slots.len() - self.free.len()) as u64,
            rooms: self.server.rooms().len() as u64,
            ..self.counters
        }
    }

    fn received_frame(&mut self, now: Instant, id: ConnectionId, frame: Bytes) {
        self.counters.frames_in += 1;
        self.counters.bytes_in += frame.len() as u64;
        let Some(connection) = get(&self.slots, id) else { return };
        match self.hooks.takes_frame(&connection.room, id, &frame) {
            Ok(true) => {}
            Ok(false) => self.handle(now, Input::Received { connection: id, frame }),
            // It must neither be lost in silence nor go where the hook might have kept it from.
            Err(HookPanicked) => {
                self.leave(now, id);
                self.start_close(now, id, CloseCode::INTERNAL_ERROR, "the application failed on a frame");
            }
        }
        // One read may hold thousands of questions with long answers.
        let is_full = |connection: &Connection<S>| connection.outbox.bytes() > self.outbox_bytes_max;
        if get(&self.slots, id).is_some_and(|connection| !connection.congested && is_full(connection)) {
            self.flush(now);
        }
    }

    fn handle(&mut self, now: Instant, input: Input) {
        let outputs = self.step(now, input);
        self.perform(now, outputs);
    }

    fn step(&mut self, now: Instant, input: Input) -> Outputs {
        let Some(observer) = &mut self.observer else { return self.server.handle(now, input) };
        observer.before(now, &self.server, Step::Input(&input));
        let outputs = self.server.handle(now, input);
        observer.after(&self.server, &outputs);
        outputs
    }

    fn perform(&mut self, now: Instant, outputs: Outputs) {
        let mut completed = SmallVec::new();
        self.perform_but_answers(now, outputs, &mut completed);
        // In a loop: thousands of writes may follow from each other.
        while !completed.is_empty() {
            for completion in mem::take(&mut completed) {
                self.count(&completion);
                let outputs = self.step(now, storage::input(completion));
                self.perform_but_answers(now, outputs, &mut completed);
            }
        }
    }

    /// Performs outputs, and says what a store that answers at once has answered: that is for the core when all of
    /// them are performed.
    fn perform_but_answers(
        &mut self,
        now: Instant,
        outputs: Outputs,
        completed: &mut SmallVec<[Completion; 1]>,
    ) {
        for output in outputs {
            match output {
                Output::Send { to, frame } => self.send(&to, &frame),
                Output::Close { connection, reason } => self.close(now, connection, &reason),
                Output::Event(event) => self.event(event),
                Output::Load { .. } | Output::Append { .. } | Output::Compact { .. } => {
                    match &output {
                        Output::Append { room, .. } => {
                            self.counters.appends += 1;
                            self.hooks.hear_change(room);
                        }
                        Output::Compact { .. } => self.counters.compactions += 1,
                        _ => {}
                    }
                    completed.extend(self.storage.perform(output));
                }
            }
        }
    }

    fn complete(&mut self, now: Instant, completion: Completion) {
        self.count(&completion);
        self.handle(now, storage::input(completion));
    }

    fn count(&mut self, completion: &Completion) {
        if let Completion::LoadFailed { room, error } | Completion::Failed { room, error, .. } = completion {
            self.counters.store_failures += 1;
            self.hooks.hear_store_error(room, error);
        }
    }

    /// Frames once, for everybody; compresses once, for all who have agreed on the same.
    fn send(&mut self, to: &Recipients, frame: &Bytes) {
        let mut plain = None;
        let mut deflated = Vec::<(_, Bytes)>::new();
        self.counters.frames_out += 1;
        let mut recipients = to.iter();
        while let Some(id) = recipients.next() {
            let Some(connection) = get_mut(&mut self.slots, id) else { continue };
            // After its close frame a connection is sent nothing (RFC 6455 section 5.5.1).
            if !connection.websocket.is_open() {
                continue;
            }
            let agreed = connection.websocket.deflate().filter(|agreed| agreed.applies_to(frame.len()));
            let (head, tail) = match agreed {
                // The last takes it: to share it with nobody would cost an allocation.
                None if recipients.len() == 0 => plain.take().unwrap_or_else(|| framed(frame)),
                None => plain.get_or_insert_with(|| framed(frame)).clone(),
                Some(agreed) => match deflated.iter().find(|(made_for, _)| *made_for == agreed) {
                    Some((_, made)) => (made.clone(), Bytes::new()),
                    None => {
                        let made = self.deflater.encode_frame(agreed, Opcode::Binary, frame);
                        self.counters.frames_deflated += 1;
                        deflated.push((agreed, made.clone()));
                        (made, Bytes::new())
                    }
                },
            };
            self.counters.deliveries += 1;
            self.counters.bytes_out += (head.len() + tail.len()) as u64;
            connection.outbox.push(head);
            if !tail.is_empty() {
                connection.outbox.push(tail);
            }
            if !mem::replace(&mut connection.dirty, true) {
                self.dirty.push(id);
            }
        }
    }

    fn close(&mut self, now: Instant, id: ConnectionId, reason: &CloseReason) {
        if matches!(reason.code(), 1007..=1009) {
            self.counters.violations += 1;
        }
        let Some(connection) = self.get_mut(id) else { return };
        connection.joined = false;
        let code = CloseCode::new(reason.code()).unwrap_or(CloseCode::INTERNAL_ERROR);
        self.start_close(now, id, code, &reason.to_string());
    }

    fn start_close(&mut self, now: Instant, id: ConnectionId, code: CloseCode, reason: &str) {
        let Some(connection) = self.get_mut(id) else { return };
        connection.websocket.close(now, code, reason);
        self.take_output(id);
        // Its deadline has moved nearer.
        self.watch(id);
    }

    fn event(&mut self, event: Event) {
        match &event {
            Event::WriteRefused { .. } => self.counters.writes_refused += 1,
            Event::RoomClosed { room, unstored_bytes } => {
                self.unstored_at_close += unstored_bytes;
                self.storage.unload(room.clone());
            }
            Event::Drained => self.drained = true,
            _ => {}
        }
        self.hooks.hear(&event);
    }

    fn websocket_closed(&mut self, now: Instant, id: ConnectionId, closed: &rfc6455::Closed) {
        if matches!(closed, rfc6455::Closed::Violation(_)) {
            self.counters.violations += 1;
        }
        self.leave(now, id);
        let Some(connection) = self.get_mut(id) else { return };
        connection.linger_until = Some(now + LINGER);
        connection.socket.wake(connection.next());
        self.watch(id);
    }

    /// Tells the core that a connection has ended.
    fn leave(&mut self, now: Instant, id: ConnectionId) {
        let Some(connection) = self.get_mut(id) else { return };
        if mem::replace(&mut connection.joined, false) {
            self.handle(now, Input::Disconnected { connection: id });
        }
    }

    fn forget(&mut self, now: Instant, id: ConnectionId) {
        self.leave(now, id);
        let index = index(id);
        let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.generation == generation(id)) else {
            return;
        };
        let Some(mut connection) = slot.connection.take() else { return };
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index as u32);
        if let Some(deadline) = connection.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        connection.socket.wake(Next::Drop);
    }

    /// Moves what the WebSocket layer has to say behind what is in the outbox.
    fn take_output(&mut self, id: ConnectionId) {
        let Some(connection) = self.get_mut(id) else { return };
        // Pongs to a peer that pings and does not read: the newest waits there, and answers for all of
        // them (RFC 6455 section 5.5.3).
        if connection.congested && connection.websocket.is_open() {
            return;
        }
        let mut any = false;
        while let Some(output) = connection.websocket.next_output() {
            connection.outbox.push(output);
            any = true;
        }
        if any {
            self.mark_dirty(id);
        }
    }

    fn mark_dirty(&mut self, id: ConnectionId) {
        let Some(connection) = get_mut(&mut self.slots, id) else { return };
        if !mem::replace(&mut connection.dirty, true) {
            self.dirty.push(id);
        }
    }

    /// Writes what has been put into outboxes, straight to the sockets.
    fn flush(&mut self, now: Instant) {
        // To flush one outbox may put something into others: somebody broken leaves, somebody slow
        // catches up.
        while !self.dirty.is_empty() {
            let mut dirty = mem::take(&mut self.dirty);
            for id in dirty.drain(..) {
                let Some(connection) = self.get_mut(id) else { continue };
                connection.dirty = false;
                let Connection { socket, outbox, websocket, congested, .. } = connection;
                match outbox.flush(|slices| socket.try_write(slices)) {
                    Ok(()) if outbox.is_empty() && !*congested && !websocket.is_closed() => {}
                    Ok(()) => self.after_write(now, id),
                    Err(_) => self.forget(now, id),
                }
            }
            if self.dirty.is_empty() {
                self.dirty = dirty;
                return;
            }
        }
    }

    fn after_write(&mut self, now: Instant, id: ConnectionId) {
        let Some(connection) = self.get_mut(id) else { return };
        if !connection.outbox.is_empty() || connection.websocket.is_closed() {
            connection.socket.wake(connection.next());
        }
        self.weigh_outbox(now, id);
    }

    /// Tells the core how full an outbox is, where that has changed.
    fn weigh_outbox(&mut self, now: Instant, id: ConnectionId) {
        let max = self.outbox_bytes_max;
        let Some(connection) = self.get_mut(id) else { return };
        if !connection.joined {
            return;
        }
        let bytes = connection.outbox.bytes();
        if !connection.congested && bytes > max {
            connection.congested = true;
            connection.told_bytes = bytes;
            self.counters.congestions += 1;
            self.handle(now, Input::Congested { connection: id });
        } else if connection.congested && bytes <= max / 4 {
            connection.congested = false;
            self.take_output(id);
            self.handle(now, Input::Writable { connection: id });
        } else if connection.congested && bytes + PROGRESS_BYTES <= connection.told_bytes {
            // A long document over a slow line is no reason to give up.
            connection.told_bytes = bytes;
            self.handle(now, Input::Congested { connection: id });
        }
    }

    /// Lists a connection under its next deadline, if that is earlier than where it is listed.
    fn watch(&mut self, id: ConnectionId) {
        let Some(connection) = get_mut(&mut self.slots, id) else { return };
        let next = connection.websocket.next_timeout().into_iter().chain(connection.linger_until).min();
        let Some(next) = next else { return };
        if connection.deadline.is_some_and(|deadline| deadline <= next) {
            return;
        }
        if let Some(deadline) = connection.deadline.replace(next) {
            self.deadlines.remove(&(deadline, id));
        }
        self.deadlines.insert((next, id));
    }

    fn insert(&mut self, connection: Box<Connection<S>>) -> ConnectionId {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot { generation: 0, connection: None });
                self.slots.len() as u32 - 1
            }
        };
        let slot = &mut self.slots[index as usize];
        slot.connection = Some(connection);
        self.connection_id(index)
    }

    /// The shard, the generation of the slot, and the slot: no two connections of a server share it.
    fn connection_id(&self, index: u32) -> ConnectionId {
        let generation = self.slots[index as usize].generation;
        let shard = self.storage.shard() as u64;
        ConnectionId(shard << SHARD_SHIFT | u64::from(generation) << 32 | u64::from(index))
    }

    fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection<S>> {
        get_mut(&mut self.slots, id)
    }
}

impl<S> Connection<S> {
    fn next(&self) -> Next {
        let write = !self.outbox.is_empty();
        if self.websocket.is_closed() && !write { Next::ShutDown } else { Next::Run { write } }
    }
}

/// A frame in one piece, or where it is long as a header and the bytes that somebody sent.
fn framed(frame: &Bytes) -> (Bytes, Bytes) {
    if frame.len() <= COPIED_FRAME_MAX {
        return (encode_frame(Opcode::Binary, frame), Bytes::new());
    }
    let header = frame_header(Opcode::Binary, frame.len());
    (Bytes::copy_from_slice(header.as_ref()), frame.clone())
}

fn get<S>(slots: &[Slot<S>], id: ConnectionId) -> Option<&Connection<S>> {
    let slot = slots.get(index(id)).filter(|slot| slot.generation == generation(id))?;
    slot.connection.as_deref()
}

fn get_mut<S>(slots: &mut [Slot<S>], id: ConnectionId) -> Option<&mut Connection<S>> {
    let slot = slots.get_mut(index(id)).filter(|slot| slot.generation == generation(id))?;
    slot.connection.as_deref_mut()
}

/// Which host has made the id of a connection.
pub fn shard_of_connection(id: ConnectionId) -> usize {
    (id.0 >> SHARD_SHIFT) as usize
}

/// Which slot of its host a connection has: a small number, which later ones have again.
pub fn slot_of_connection(id: ConnectionId) -> usize {
    index(id)
}

fn index(id: ConnectionId) -> usize {
    (id.0 & u64::from(u32::MAX)) as usize
}

fn generation(id: ConnectionId) -> u16 {
    (id.0 >> 32) as u16
}

/// Where the number of the shard stands in the id of a connection.
const SHARD_SHIFT: u32 = 48;

/// Frames up to here are copied behind their header, to be one piece; longer ones are two.
const COPIED_FRAME_MAX: usize = 16 << 10;

/// How long the rest of an outbox and the end of the stream may take after the closing handshake.
const LINGER: Duration = Duration::from_secs(5);

/// Bytes that have to leave a full outbox for its owner to count as reading.
const PROGRESS_BYTES: usize = 64 << 10;

/// When to try again where a limit or a drain keeps somebody out.
const RETRY_AFTER_SECONDS: &str = "5";
