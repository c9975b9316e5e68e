//! Thousands of clients on one thread, and what each of them has received.

use std::{
    io::{self, Read, Write},
    mem,
    net::SocketAddr,
    ops::Range,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mio::{Events, Interest, Poll, Token, net::TcpStream};
use yrs_websocket_rfc6455::{ClientHandshake, ClientRequest, HandshakeLimits};

use crate::{
    measure::Histogram,
    servers::{ROOMS, RoomNames},
    updates::{self, Clocks},
};

/// How messages are wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// y-websocket: the room is in the path, and a frame is a message.
    YWebsocket,
    /// hocuspocus: each message follows the name of its room, and a token goes first.
    Hocuspocus,
}

/// All clients of a run.
pub(crate) struct Fleet {
    poll: Poll,
    scratch: Vec<u8>,
    address: SocketAddr,
    dialect: Dialect,
    room_names: RoomNames,
    started: Instant,
    clients: Vec<Client>,
    pub(crate) rooms: Vec<Room>,
    pub(crate) tally: Tally,
    /// Frames that many receive are read once.
    read: Vec<(Bytes, Vec<Clocks>)>,
    /// What made the run worthless.
    pub(crate) failure: Option<String>,
    /// Closed loops have come further in these rooms.
    pub(crate) advanced: Vec<usize>,
}

/// What all clients together have received.
pub(crate) struct Tally {
    /// Of each update, one for each client but its author.
    pub(crate) deliveries: u64,
    /// Frames of any kind.
    pub(crate) frames: u64,
    /// Updates on their way, one for each client but its author.
    pub(crate) outstanding: u64,
    /// From the writer's socket to a reader.
    pub(crate) latency: Histogram,
    /// From the writer's socket back to it.
    pub(crate) echo: Histogram,
    /// From the call to connect to the answer of the SyncStep1.
    pub(crate) join: Histogram,
    /// What was sent before is not in the histograms.
    pub(crate) since: u64,
    pub(crate) synced: usize,
}

#[derive(Default)]
pub(crate) struct Room {
    name: String,
    pub(crate) authors: Vec<Author>,
    /// How many clients it has.
    pub(crate) readers: usize,
}

/// A client that writes.
pub(crate) struct Author {
    client: usize,
    updates: Vec<Bytes>,
    is_presence: bool,
    pub(crate) sent: usize,
    sent_at: Vec<u64>,
    /// How many clients have each update.
    received: Vec<u32>,
    /// How many updates everybody has.
    pub(crate) done: usize,
}

struct Client {
    stream: Option<TcpStream>,
    handshake: Option<ClientHandshake>,
    /// Whether the request for the upgrade is sent.
    has_asked: bool,
    connected_at: u64,
    room: usize,
    /// What it says it has: an encoded state vector.
    knows: Bytes,
    is_synced: bool,
    /// The next clock of each author.
    next: Vec<u32>,
    /// Everything it has received, to be compared in the end.
    kept: Option<Vec<Bytes>>,
    partial: Vec<u8>,
    unsent: Vec<u8>,
}

impl Author {
    pub(crate) fn new(client: usize, updates: Vec<Bytes>, is_presence: bool) -> Self {
        let received = vec![0; updates.len()];
        Self { client, is_presence, sent: 0, sent_at: Vec::new(), received, done: 0, updates }
    }

    /// Whether everything that was made is sent.
    pub(crate) fn is_spent(&self) -> bool {
        self.sent == self.updates.len()
    }

    /// Everything that was sent.
    pub(crate) fn sent_updates(&self) -> &[Bytes] {
        &self.updates[..self.sent]
    }
}

impl Fleet {
    /// Rooms have these names, or those that they always have where they are in messages.
    pub(crate) fn new(address: SocketAddr, dialect: Dialect, room_names: RoomNames) -> io::Result<Self> {
        let histogram = Histogram::new();
        Ok(Self {
            poll: Poll::new()?,
            scratch: vec![0; SCRATCH_LEN],
            address,
            dialect,
            room_names,
            started: Instant::now(),
            clients: Vec::new(),
            rooms: Vec::new(),
            tally: Tally {
                deliveries: 0,
                frames: 0,
                outstanding: 0,
                latency: histogram.clone(),
                echo: histogram.clone(),
                join: histogram,
                since: 0,
                synced: 0,
            },
            read: Vec::new(),
            failure: None,
            advanced: Vec::new(),
        })
    }

    /// Nanoseconds since the fleet was made.
    pub(crate) fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// Adds a client that is not connected yet; says its number.
    pub(crate) fn add(&mut self, room: usize, knows: Bytes) -> usize {
        while self.rooms.len() <= room {
            self.rooms.push(Room { name: self.room_names.next(), ..Room::default() });
        }
        self.rooms[room].readers += 1;
        self.clients.push(Client {
            stream: None,
            handshake: None,
            has_asked: false,
            connected_at: 0,
            room,
            knows,
            is_synced: false,
            next: Vec::new(),
            kept: None,
            partial: Vec::new(),
            unsent: Vec::new(),
        });
        self.clients.len() - 1
    }

    /// Lets a client keep what it receives.
    pub(crate) fn keep(&mut self, client: usize) {
        self.clients[client].kept = Some(Vec::new());
    }

    /// What a client has received.
    pub(crate) fn kept(&self, client: usize) -> Option<&[Bytes]> {
        self.clients[client].kept.as_deref()
    }

    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    /// Connects clients, so many at a time, and waits until they are synced.
    pub(crate) fn connect(&mut self, clients: Range<usize>, at_once: usize, limit: Duration) {
        let first = self.tally.synced;
        let end = Instant::now() + limit;
        let mut next = clients.start;
        loop {
            while next < clients.end && next - clients.start < self.tally.synced - first + at_once {
                if let Err(error) = self.dial(next) {
                    return self.fail(format!("cannot connect: {error}"));
                }
                next += 1;
            }
            if self.tally.synced - first == clients.len() || self.failure.is_some() {
                return;
            }
            if Instant::now() > end {
                let synced = self.tally.synced - first;
                return self.fail(format!("{synced} of {} are synced in time", clients.len()));
            }
            self.round(Duration::from_millis(100));
        }
    }

    /// Closes the connection of a client as a crash would.
    pub(crate) fn cut(&mut self, client: usize) {
        self.clients[client].stream = None;
        self.rooms[self.clients[client].room].readers -= 1;
    }

    /// Sends the next update of an author.
    pub(crate) fn send_next(&mut self, room: usize, author: usize) {
        self.send_many(room, author, 1);
    }

    /// Sends so many updates of an author, as one write.
    pub(crate) fn send_many(&mut self, room: usize, author: usize, count: usize) {
        let now = self.now();
        let mut bytes = Vec::new();
        let Room { authors, readers, .. } = &mut self.rooms[room];
        let author = &mut authors[author];
        let next = author.sent..(author.sent + count).min(author.updates.len());
        for update in &author.updates[next.clone()] {
            let head: &[u8] = if author.is_presence { &[1] } else { &[0, 2] };
            append_message(&mut bytes, self.dialect, room, head, update);
            author.sent_at.push(now);
        }
        author.sent = next.end;
        self.tally.outstanding += next.len() as u64 * (*readers as u64 - 1);
        let client = author.client;
        self.write(client, &bytes);
    }

    /// Sends something beside what authors send.
    pub(crate) fn send_update(&mut self, client: usize, update: &Bytes) {
        let mut bytes = Vec::new();
        append_message(&mut bytes, self.dialect, self.clients[client].room, &[0, 2], update);
        self.write(client, &bytes);
    }

    /// Waits for something to arrive, and takes all that has.
    pub(crate) fn round(&mut self, timeout: Duration) {
        let mut events = Events::with_capacity(1024);
        match self.poll.poll(&mut events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => return self.fail(format!("cannot wait: {error}")),
            Ok(()) => {}
        }
        for event in &events {
            let client = event.token().0;
            if event.is_writable() {
                self.writable(client);
            }
            if event.is_readable() {
                self.readable(client);
            }
        }
    }

    /// Whether everybody has everything that was sent.
    pub(crate) fn missing(&self) -> Option<String> {
        for (index, client) in self.clients.iter().enumerate().filter(|(_, client)| client.stream.is_some()) {
            for (number, author) in self.rooms[client.room].authors.iter().enumerate() {
                let next = client.next.get(number).map_or(0, |next| *next as usize);
                if author.client != index && next != author.sent {
                    let room = client.room;
                    return Some(format!(
                        "client {index} has {next} of {} updates by author {number} of room {room}",
                        author.sent
                    ));
                }
            }
        }
        None
    }

    pub(crate) fn fail(&mut self, failure: String) {
        self.failure.get_or_insert(failure);
    }

    fn dial(&mut self, index: usize) -> io::Result<()> {
        let now = self.now();
        let mut stream = TcpStream::connect(self.address)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(index), interest)?;
        let client = &mut self.clients[index];
        let target = match self.dialect {
            Dialect::YWebsocket => format!("/{}", self.rooms[client.room].name),
            Dialect::Hocuspocus => "/".into(),
        };
        let request = ClientRequest { host: self.address.to_string(), target, ..ClientRequest::default() };
        let handshake = ClientHandshake::new(request, HandshakeLimits::default(), index as u64);
        client.handshake = Some(handshake.map_err(io::Error::other)?);
        client.stream = Some(stream);
        client.connected_at = now;
        Ok(())
    }

    fn writable(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let Some(stream) = &mut client.stream else { return };
        if let Some(handshake) = &client.handshake
            && !client.has_asked
        {
            // Not yet connected.
            if stream.peer_addr().is_err() {
                return;
            }
            client.has_asked = true;
            let _ = stream.set_nodelay(true);
            client.unsent.extend_from_slice(handshake.request());
        }
        let unsent = mem::take(&mut client.unsent);
        self.write(index, &unsent);
    }

    fn write(&mut self, index: usize, bytes: &[u8]) {
        let client = &mut self.clients[index];
        let Some(stream) = &mut client.stream else { return };
        let mut written = 0;
        while client.unsent.is_empty() && written < bytes.len() {
            match stream.write(&bytes[written..]) {
                Ok(len) => written += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return self.fail(format!("client {index} cannot write: {error}")),
            }
        }
        client.unsent.extend_from_slice(&bytes[written..]);
    }

    fn readable(&mut self, index: usize) {
        let mut scratch = mem::take(&mut self.scratch);
        loop {
            let client = &mut self.clients[index];
            let Some(stream) = &mut client.stream else { break };
            let held = client.partial.len();
            if held + READ_LEN > scratch.len() {
                scratch.resize(2 * (held + READ_LEN), 0);
            }
            scratch[..held].copy_from_slice(&client.partial);
            let len = match stream.read(&mut scratch[held..]) {
                Ok(0) => break self.fail(format!("the server has closed client {index}")),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => break self.fail(format!("client {index} cannot read: {error}")),
            };
            let is_all = held + len < scratch.len();
            client.partial.clear();
            let mut rest = &scratch[..held + len];
            if let Some(handshake) = &mut self.clients[index].handshake {
                match handshake.receive(rest) {
                    Ok(None) => continue,
                    Ok(Some(upgraded)) => {
                        self.clients[index].handshake = None;
                        self.greet(index);
                        let behind = upgraded.into_rest();
                        let consumed = self.frames(index, &behind);
                        self.clients[index].partial.extend_from_slice(&behind[consumed..]);
                    }
                    Err(error) => break self.fail(format!("client {index} is refused: {error}")),
                }
                rest = &[];
            }
            let consumed = self.frames(index, rest);
            self.clients[index].partial.extend_from_slice(&rest[consumed..]);
            if is_all {
                break;
            }
        }
        self.scratch = scratch;
    }

    fn greet(&mut self, index: usize) {
        let (room, knows) = (self.clients[index].room, self.clients[index].knows.clone());
        let mut bytes = Vec::new();
        if self.dialect == Dialect::Hocuspocus {
            // A token, and the version of the provider.
            let mut token = vec![2, 0];
            append_bytes(&mut token, b"token");
            append_bytes(&mut token, b"4.7.0");
            append_raw(&mut bytes, self.dialect, room, &token);
        }
        append_message(&mut bytes, self.dialect, room, &[0, 0], &knows);
        self.write(index, &bytes);
    }

    /// Takes whole frames; says how many bytes those were.
    fn frames(&mut self, index: usize, input: &[u8]) -> usize {
        let now = self.now();
        let mut consumed = 0;
        loop {
            let rest = &input[consumed..];
            let (len, head) = match *rest {
                [_, short, ..] if short < 126 => (usize::from(short), 2),
                [_, 126, a, b, ..] => (usize::from(u16::from_be_bytes([a, b])), 4),
                [_, 127, a, b, c, d, e, f, g, h, ..] => {
                    (u64::from_be_bytes([a, b, c, d, e, f, g, h]) as usize, 10)
                }
                _ => return consumed,
            };
            if rest.len() - head < len {
                return consumed;
            }
            let payload = &rest[head..head + len];
            match rest[0] {
                0x82 => self.message(now, index, payload),
                0x88 => self.fail(format!("the server closes client {index}: {payload:?}")),
                // A ping: the pong says the same, masked by nothing.
                0x89 => {
                    let pong = [&[0x8a, 0x80 | len as u8, 0, 0, 0, 0], payload].concat();
                    self.write(index, &pong);
                }
                0x81 | 0x8a => {}
                other => self.fail(format!("client {index} cannot read a frame of kind {other:#x}")),
            }
            consumed += head + len;
        }
    }

    fn message(&mut self, now: u64, index: usize, mut payload: &[u8]) {
        self.tally.frames += 1;
        if self.dialect == Dialect::Hocuspocus && split_bytes(&mut payload).is_none() {
            return self.fail("a message without the name of a room".into());
        }
        let room = self.clients[index].room;
        match *payload {
            [0, 0, ..] => {
                let mut bytes = Vec::new();
                append_message(&mut bytes, self.dialect, room, &[0, 1], &[0, 0]);
                self.write(index, &bytes);
            }
            [0, kind, ref rest @ ..] => {
                let mut rest = rest;
                let Some(update) = split_bytes(&mut rest) else {
                    return self.fail("a message that was cut".into());
                };
                if kind == 1 && !mem::replace(&mut self.clients[index].is_synced, true) {
                    self.tally.synced += 1;
                    self.tally.join.record(now - self.clients[index].connected_at);
                }
                self.update(now, index, update, updates::clocks);
            }
            [1, ref rest @ ..] => {
                let mut rest = rest;
                let Some(update) = split_bytes(&mut rest) else {
                    return self.fail("a message that was cut".into());
                };
                self.update(now, index, update, |update| updates::presence_clocks(&update));
            }
            _ => {}
        }
    }

    fn update(
        &mut self,
        now: u64,
        index: usize,
        update: &[u8],
        read: impl Fn(Bytes) -> Result<Vec<Clocks>, String>,
    ) {
        let known = self.read.iter().position(|(bytes, _)| bytes == update);
        let (update, clocks) = match known {
            Some(known) => self.read[known].clone(),
            None => {
                let bytes = Bytes::copy_from_slice(update);
                let clocks = match read(bytes.clone()) {
                    Ok(clocks) => clocks,
                    Err(error) => return self.fail(format!("an update does not read: {error}")),
                };
                if self.read.len() == READ_MAX {
                    self.read.remove(0);
                }
                self.read.push((bytes.clone(), clocks.clone()));
                (bytes, clocks)
            }
        };
        if let Some(kept) = &mut self.clients[index].kept {
            kept.push(update);
        }
        for Clocks { client: id, clocks } in clocks {
            let number = id.wrapping_sub(FIRST_ID) as usize;
            let client = &mut self.clients[index];
            let Room { authors, readers, .. } = &mut self.rooms[client.room];
            let everybody = *readers as u32 - 1;
            let Some(author) = authors.get_mut(number) else { continue };
            if client.next.len() <= number {
                client.next.resize(number + 1, 0);
            }
            let from = client.next[number] as usize;
            let end = (clocks.end as usize).min(author.sent);
            if clocks.start as usize > from {
                return self.fail(format!("client {index} misses what comes before {clocks:?} of {number}"));
            }
            if end <= from {
                continue;
            }
            client.next[number] = end as u32;
            let is_author = author.client == index;
            let histogram = if is_author { &mut self.tally.echo } else { &mut self.tally.latency };
            for sent_at in author.sent_at[from..end].iter().filter(|sent_at| **sent_at >= self.tally.since) {
                histogram.record(now - sent_at);
            }
            if is_author {
                continue;
            }
            self.tally.deliveries += (end - from) as u64;
            self.tally.outstanding = self.tally.outstanding.saturating_sub((end - from) as u64);
            author.received[from..end].iter_mut().for_each(|received| *received += 1);
            let done = author.done;
            while author.done < author.sent && author.received[author.done] == everybody {
                author.done += 1;
            }
            if author.done > done {
                self.advanced.push(client.room);
            }
        }
    }
}

/// The name of a room, as far as messages say it.
fn room_name(room: usize) -> String {
    format!("{ROOMS}-{room}")
}

fn append_message(out: &mut Vec<u8>, dialect: Dialect, room: usize, head: &[u8], body: &[u8]) {
    let mut message = head.to_vec();
    append_bytes(&mut message, body);
    append_raw(out, dialect, room, &message);
}

/// Appends a masked frame; the mask is 0, which leaves the payload as it is.
fn append_raw(out: &mut Vec<u8>, dialect: Dialect, room: usize, message: &[u8]) {
    let mut name = Vec::new();
    if dialect == Dialect::Hocuspocus {
        append_bytes(&mut name, room_name(room).as_bytes());
    }
    let len = name.len() + message.len();
    out.push(0x82);
    match len {
        0..126 => out.push(0x80 | len as u8),
        126..=0xffff => {
            out.push(0xfe);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            out.push(0xff);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&name);
    out.extend_from_slice(message);
}

pub(crate) fn append_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(bytes);
}

fn split_bytes<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (mut len, mut shift) = (0, 0);
    loop {
        let (&byte, rest) = input.split_first()?;
        *input = rest;
        len |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
        shift += 7;
        if shift > 28 {
            return None;
        }
    }
    let (bytes, rest) = input.split_at_checked(len)?;
    *input = rest;
    Some(bytes)
}

/// The id of the first author of a room; the others follow.
pub(crate) const FIRST_ID: u64 = 1_000_000_000;

/// Read at once, beside what is held of a frame.
const READ_LEN: usize = 256 << 10;
const SCRATCH_LEN: usize = 1 << 20;

/// Frames that are remembered as read.
const READ_MAX: usize = 4;
