//! A host over sockets that do what a test says, in simulated time.

// Each test program uses a part of this.
#![allow(dead_code)]

use std::{
    io::{self, IoSlice},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use yrs_websocket::ConnectionId;
use yrs_websocket_host::{
    Admitted, Host, Next, Options, Socket, Storage, Upgrade,
    rfc6455::{Acceptor, Config, Connection, Deflate, Event, HandshakeLimits, Refusal, Role},
};
use yrs_websocket_store::MemoryStore;

/// A host and its clock, which stands still unless a test moves it.
pub(crate) struct World {
    pub(crate) host: Host<Pipe>,
    pub(crate) options: Options,
    pub(crate) now: Instant,
}

impl World {
    pub(crate) fn new(options: Options) -> Self {
        let host = Host::new(&options, Storage::Inline(Box::new(MemoryStore::new()), 0), 1);
        Self { host, options, now: start() }
    }

    /// Connects to a room and takes the greeting off the pipe.
    pub(crate) fn join(&mut self, room: &str) -> (ConnectionId, Pipe) {
        let (id, pipe) = self.try_join(room).expect("nothing keeps it out");
        pipe.take();
        (id, pipe)
    }

    /// The same for a client that offers an extension.
    pub(crate) fn join_with(&mut self, room: &str, offer: &str) -> (ConnectionId, Pipe) {
        let head = request(&format!("/{room}"));
        let head = head.replace("\r\n\r\n", &format!("\r\nSec-WebSocket-Extensions: {offer}\r\n\r\n"));
        let admitted = upgrade(&self.options, &head).expect("it is a good request");
        let pipe = Pipe::default();
        let id = self.host.connect(self.now, pipe.clone(), admitted).expect("nothing keeps it out");
        pipe.take();
        (id, pipe)
    }

    pub(crate) fn try_join(&mut self, room: &str) -> Result<(ConnectionId, Pipe), Refusal> {
        let admitted = upgrade(&self.options, &request(&format!("/{room}")))?;
        let pipe = Pipe::default();
        let connected = self.host.connect(self.now, pipe.clone(), admitted);
        connected.map(|id| (id, pipe)).map_err(|(_, refusal)| refusal)
    }

    /// Lets a client send one binary message.
    pub(crate) fn send(&mut self, id: ConnectionId, payload: &[u8]) {
        self.receive(id, masked(0x82, payload));
    }

    /// Lets bytes of a client arrive.
    pub(crate) fn receive(&mut self, id: ConnectionId, mut bytes: Vec<u8>) {
        self.host.received(self.now, id, &mut bytes);
    }

    /// Lets time pass, from deadline to deadline: each must be over once it was looked at.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.host.next_timeout().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.host.timeout(self.now);
            let next = self.host.next_timeout();
            assert!(next.is_none_or(|next| next > self.now), "what is due is done, or the timer spins");
        }
        self.now = end;
    }

    /// Lets a blocked socket take everything, and says so.
    pub(crate) fn unblock(&mut self, id: ConnectionId, pipe: &Pipe) {
        pipe.state().takes = usize::MAX;
        self.host.writable(self.now, id);
    }

    pub(crate) fn next(&self, id: ConnectionId) -> Next {
        self.host.next(id)
    }
}

/// The one look at the real clock: an `Instant` comes from nowhere else.
#[allow(clippy::disallowed_methods)]
fn start() -> Instant {
    Instant::now()
}

/// The two ends of a socket: what was written, and how much more it takes.
#[derive(Clone, Debug)]
pub(crate) struct Pipe(Arc<Mutex<PipeState>>);

#[derive(Debug)]
pub(crate) struct PipeState {
    pub(crate) written: Vec<u8>,
    /// The address and length of each piece of each call that took something.
    pub(crate) calls: Vec<Vec<(usize, usize)>>,
    /// Bytes it still takes before it blocks.
    pub(crate) takes: usize,
    /// Bytes it takes at once.
    pub(crate) takes_at_once: usize,
    pub(crate) is_broken: bool,
    pub(crate) wakes: usize,
    /// What it was told is next.
    pub(crate) told: Option<Next>,
}

impl Default for Pipe {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(PipeState {
            written: Vec::new(),
            calls: Vec::new(),
            takes: usize::MAX,
            takes_at_once: usize::MAX,
            is_broken: false,
            wakes: 0,
            told: None,
        })))
    }
}

impl Pipe {
    pub(crate) fn state(&self) -> MutexGuard<'_, PipeState> {
        self.0.lock().expect("no test panics with it")
    }

    pub(crate) fn block(&self) {
        self.state().takes = 0;
    }

    /// What was written since the last call.
    pub(crate) fn take(&self) -> Vec<u8> {
        let mut state = self.state();
        state.calls.clear();
        std::mem::take(&mut state.written)
    }

    /// The frames among it.
    pub(crate) fn frames(&self) -> Vec<Frame> {
        frames(&self.take())
    }
}

impl Socket for Pipe {
    fn try_write(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.state();
        if state.is_broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let all = concat(buffers);
        let taken = all.len().min(state.takes).min(state.takes_at_once);
        if taken == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if state.takes != usize::MAX {
            state.takes -= taken;
        }
        state.written.extend_from_slice(&all[..taken]);
        state.calls.push(buffers.iter().map(|piece| (piece.as_ptr() as usize, piece.len())).collect());
        Ok(taken)
    }

    fn wake(&mut self, next: Next) {
        let mut state = self.state();
        state.wakes += 1;
        state.told = Some(next);
    }
}

/// What a gathered write holds.
pub(crate) fn concat(buffers: &[IoSlice<'_>]) -> Vec<u8> {
    buffers.iter().flat_map(|piece| piece.iter().copied()).collect()
}

/// A frame of the server: first byte and payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame(pub(crate) u8, pub(crate) Vec<u8>);

impl Frame {
    pub(crate) fn binary(payload: &[u8]) -> Self {
        Self(0x82, payload.to_vec())
    }

    pub(crate) fn close(code: u16, reason: &str) -> Self {
        Self(0x88, [&code.to_be_bytes()[..], reason.as_bytes()].concat())
    }
}

/// Splits what a server wrote behind its 101; it must be whole frames.
pub(crate) fn frames(bytes: &[u8]) -> Vec<Frame> {
    let mut rest = match bytes.windows(4).position(|window| window == b"\r\n\r\n") {
        Some(end) if bytes.starts_with(b"HTTP/1.1 101 ") => &bytes[end + 4..],
        _ => bytes,
    };
    let mut frames = Vec::new();
    while let [first, len, behind @ ..] = rest {
        let (len, behind) = match *len {
            126 => (usize::from(u16::from_be_bytes([behind[0], behind[1]])), &behind[2..]),
            127 => (u64::from_be_bytes(behind[..8].try_into().unwrap()) as usize, &behind[8..]),
            len => (usize::from(len), behind),
        };
        frames.push(Frame(*first, behind[..len].to_vec()));
        rest = &behind[len..];
    }
    frames
}

/// What a client reads that has agreed on compression.
pub(crate) fn messages(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    let mut input = &mut bytes[..];
    let mut client = deflating(Role::Client { mask_seed: 0 });
    std::iter::from_fn(|| client.receive(start(), &mut input))
        .map(|event| match event {
            Event::Binary(message) => message.to_vec(),
            other => panic!("{other:?}"),
        })
        .collect()
}

/// A client's message, compressed.
pub(crate) fn deflated(payload: &[u8]) -> Vec<u8> {
    let mut client = deflating(Role::Client { mask_seed: 0 });
    client.send_binary(payload);
    client.next_output().expect("it was sent").to_vec()
}

fn deflating(role: Role) -> Connection {
    let mut acceptor =
        Acceptor::new(HandshakeLimits::default()).with_deflate(Some(Deflate { level: 6, len_min: 0 }));
    let head = request("/").replace("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n");
    let request = acceptor.receive(head.as_bytes()).expect("it is a good request");
    let agreed = request.expect("the head is complete").deflate();
    Connection::new(role, Config::default(), start()).with_deflate(agreed)
}

/// A client's frame, masked with zeros.
pub(crate) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..=125 => frame.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            frame.push(0xfe);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(0xff);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// The head of a good request, with the key of RFC 6455 section 1.3.
pub(crate) fn request(target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// Gives a whole head to an [`Upgrade`].
pub(crate) fn upgrade(options: &Options, head: &str) -> Result<Admitted, Refusal> {
    let admitted = Upgrade::new(options).receive(head.as_bytes())?;
    Ok(admitted.expect("the head is complete"))
}

/// `00 02 ..`: client `client` (1 to 127) inserts its first text into `text`.
pub(crate) fn edit(client: u8, text: &str) -> Vec<u8> {
    let mut update = vec![1, 1, client, 0, 4, 1, 4, b't', b'e', b'x', b't'];
    write_len(&mut update, text.len());
    update.extend(text.as_bytes());
    update.push(0);
    let mut frame = vec![0, 2];
    write_len(&mut frame, update.len());
    frame.extend(update);
    frame
}

/// `01 ..`: client `client` (1 to 127) is present with `state`.
pub(crate) fn presence(client: u8, clock: u8, state: &str) -> Vec<u8> {
    let mut update = vec![1, client, clock, state.len() as u8];
    update.extend(state.as_bytes());
    let mut frame = vec![1, update.len() as u8];
    frame.extend(update);
    frame
}

/// SyncStep1 of an empty document, and its answer by an empty room.
pub(crate) const STEP1: &[u8] = &[0, 0, 1, 0];
pub(crate) const EMPTY_STEP2: &[u8] = &[0, 1, 2, 0, 0];

fn write_len(to: &mut Vec<u8>, mut len: usize) {
    while len > 127 {
        to.push(len as u8 | 0x80);
        len >>= 7;
    }
    to.push(len as u8);
}
