use std::{
    collections::BTreeMap,
    fmt,
    io::{self, IoSlice},
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use yrs::{Doc, Origin};
use yrs_websocket::{
    Outputs,
    provider::{self, CloseReason, EditCounter, End, Event, Input, Output, PresenceState, Provider},
    update::ClientId,
};
use yrs_websocket_rfc6455::{
    self as rfc6455, ClientHandshake, ClientHandshakeError, ClientRequest, CloseCode, Deflate,
    HandshakeLimits, InvalidClientRequest, Role,
};

use crate::{bell::Bell, outbox::Outbox};

/// Everything that can be set about a client.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct ClientOptions {
    /// What is asked for at each attempt, unless `on_dial` changes it.
    pub request: ClientRequest,
    /// Limits and delays of the protocol.
    pub provider: provider::Config,
    /// Limits and delays of the WebSocket connection. Text frames are refused in any case.
    pub websocket: rfc6455::Config,
    /// Limits of the response's head.
    pub handshake: HandshakeLimits,
    /// How messages are compressed where the server agrees (permessage-deflate); `None`, the default, does not
    /// offer it.
    pub deflate: Option<Deflate>,
    /// Bytes that wait for the socket from which on nothing more is sent before three quarters have
    /// left; 0 stands for 1 MiB.
    pub outbox_bytes_max: usize,
    /// Is given the request of each attempt, to put a fresh token into its query or headers.
    pub on_dial: Option<Arc<OnDial>>,
    /// Hears of everything that happens, on the task or thread that runs the client.
    pub on_event: Option<Arc<OnEvent>>,
    /// Hears why an attempt failed. It is made again by itself.
    pub on_dial_error: Option<Arc<OnDialError>>,
}

type OnDial = dyn Fn(&mut ClientRequest) + Send + Sync;
type OnEvent = dyn Fn(&Event) + Send + Sync;
type OnDialError = dyn Fn(&DialError) + Send + Sync;

impl ClientOptions {
    /// For a room on a server. `host` is what the header `Host` says: with `:port`, unless that is the
    /// scheme's default.
    pub fn new(host: impl Into<String>, room: &str) -> Self {
        let request =
            ClientRequest { host: host.into(), target: target(room, &[]), ..ClientRequest::default() };
        Self { request, ..Self::default() }
    }
}

impl fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientOptions").field("request", &self.request).finish_non_exhaustive()
    }
}

/// The target of a request for a room, percent-encoded, with parameters as `y-websocket` writes them.
pub fn target(room: &str, parameters: &[(&str, &str)]) -> String {
    let mut target = String::from("/");
    encode(&mut target, room, b"/!*'()");
    for (index, (name, value)) in parameters.iter().enumerate() {
        target.push(if index == 0 { '?' } else { '&' });
        encode(&mut target, name, b"!*'()");
        target.push('=');
        encode(&mut target, value, b"!*'()");
    }
    target
}

fn encode(out: &mut String, text: &str, kept: &[u8]) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || kept.contains(&byte) {
            out.push(byte.into());
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// Why an attempt to connect failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum DialError {
    /// The stream could not be opened, or ended during the upgrade.
    Io(io::Error),
    /// The upgrade failed.
    Handshake(ClientHandshakeError),
    /// What `on_dial` made is no request.
    Request(InvalidClientRequest),
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Handshake(error) => error.fmt(f),
            Self::Request(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for DialError {}

/// What the runtime does next for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientNext {
    /// Open a stream: then [`Client::dialled`] or [`Client::dial_failed`]. If it says something else
    /// before that, give up.
    Dial,
    /// Wait for bytes to read; also until the stream can be written, if `write`.
    Run {
        /// Whether the outbox waits for the stream: call [`Client::write_by`] when it can be written.
        write: bool,
    },
    /// Drop the stream, and call [`Client::dropped`]. After a closing handshake nothing that matters is on
    /// its way.
    Drop,
    /// Nothing but the time and the bell can change anything.
    Wait,
    /// It is over until [`ClientHandle::start`].
    Stopped {
        /// Whether there are changes that the server has not acknowledged.
        unacknowledged: bool,
    },
}

/// A provider, its WebSocket connection and its outbox: the other end of a [`Host`](crate::Host)'s
/// connection, and as free of IO.
///
/// ```text
///   runtime                        Client
///   -------                        ------
///   bell, deadline       -->  Client::wake ------> Provider::handle -.
///   stream is open       -->  Client::dialled                        |
///   bytes that arrived   -->  Client::received                       v
///   stream is writable   -->  Client::write_by  <-- outbox       Connect, Send, Close, Event
///   ClientHandle (any thread) ---> commands, bell
/// ```
#[derive(Debug)]
pub struct Client {
    provider: Provider,
    options: ClientOptions,
    websocket: Arc<rfc6455::Config>,
    layer: Layer,
    outbox: Outbox,
    /// The provider wants a connection.
    dials: bool,
    congested: bool,
    /// When to give up the rest of the outbox and the closing handshake.
    linger_until: Option<Instant>,
    seed: u64,
    shared: Arc<Shared>,
}

#[derive(Debug)]
enum Layer {
    /// There is no stream.
    Down,
    Handshake(Box<ClientHandshake>),
    Open(Box<rfc6455::Connection>),
    /// There is a stream, which is to be dropped.
    Abandoned,
}

/// What a client and its handles share. No lock of it is held while anything else is called.
#[derive(Debug)]
struct Shared {
    bell: Arc<Bell>,
    commands: Mutex<Vec<Input>>,
    status: Mutex<Status>,
    edits: EditCounter,
}

#[derive(Debug)]
struct Status {
    is_connected: bool,
    is_synced: bool,
    /// Of the edits that were taken.
    has_unacknowledged: bool,
    edits_taken: u64,
    presence: BTreeMap<ClientId, Bytes>,
}

impl Client {
    /// Makes a client of a document that waits for [`Client::start`]. `seed`, drawn from the
    /// system, makes jitter, nonces and masks.
    pub fn new(doc: Doc, options: ClientOptions, seed: u64) -> Self {
        let mut websocket = options.websocket.clone();
        websocket.text_refused = true;
        // The provider notices who is silent, and asks before that.
        websocket.ping_interval = None;
        let bell = Arc::new(Bell::default());
        let provider = Provider::new(options.provider.clone(), doc, Arc::clone(&bell).into(), seed);
        let status = Status {
            is_connected: false,
            is_synced: false,
            has_unacknowledged: provider.has_unacknowledged(),
            edits_taken: 0,
            presence: BTreeMap::new(),
        };
        let shared = Arc::new(Shared {
            bell,
            commands: Mutex::default(),
            status: Mutex::new(status),
            edits: provider.edit_counter(),
        });
        Self {
            provider,
            options,
            websocket: Arc::new(websocket),
            layer: Layer::Down,
            outbox: Outbox::default(),
            dials: false,
            congested: false,
            linger_until: None,
            seed,
            shared,
        }
    }

    /// A handle for the application.
    pub fn handle(&self) -> ClientHandle {
        let (doc, origin) = (self.provider.doc().clone(), self.provider.origin().clone());
        ClientHandle { shared: Arc::clone(&self.shared), doc, origin }
    }

    /// What rings when [`Client::wake`] should be called.
    pub fn bell(&self) -> &Arc<Bell> {
        &self.shared.bell
    }

    /// Waits for the bell.
    pub fn poll_bell(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.shared.bell.poll(cx)
    }

    /// Connects, before anything else that the application wants.
    pub fn start(&mut self) {
        lock(&self.shared.commands).insert(0, Input::Start);
    }

    /// Does what the application wants and what is due. Calling early, or twice, is harmless.
    pub fn wake(&mut self, now: Instant) {
        let commands = mem::take(&mut *lock(&self.shared.commands));
        for command in commands {
            self.tell(now, command);
        }
        if let Layer::Open(websocket) = &mut self.layer
            && websocket.handle_timeout(now).is_some()
        {
            self.lose(now, End::Lost);
        }
        if self.linger_until.is_some_and(|until| until <= now) {
            self.abandon();
        }
        self.tell(now, Input::Timeout);
    }

    /// There is a stream: asks for the upgrade.
    pub fn dialled(&mut self, now: Instant) {
        self.dials = false;
        let mut request = self.options.request.clone();
        if let Some(on_dial) = &self.options.on_dial {
            let _ = catch_unwind(AssertUnwindSafe(|| on_dial(&mut request)));
        }
        match ClientHandshake::new(request, self.options.handshake, self.draw()) {
            Ok(handshake) => {
                let handshake = handshake.with_deflate(self.options.deflate);
                self.outbox.push(handshake.request().clone());
                self.layer = Layer::Handshake(Box::new(handshake));
            }
            Err(error) => {
                self.layer = Layer::Abandoned;
                self.hear(&DialError::Request(error));
                self.tell(now, Input::Disconnected { end: End::Lost });
            }
        }
    }

    /// There is no stream.
    pub fn dial_failed(&mut self, now: Instant, error: io::Error) {
        self.dials = false;
        self.hear(&DialError::Io(error));
        self.tell(now, Input::Disconnected { end: End::Lost });
    }

    /// Takes bytes that arrived, and uses their place.
    pub fn received(&mut self, now: Instant, input: &mut [u8]) {
        let mut rest;
        let mut input = &mut *input;
        if let Layer::Handshake(handshake) = &mut self.layer {
            match handshake.receive(input) {
                Ok(None) => return,
                Ok(Some(upgraded)) => {
                    let deflate = upgraded.deflate;
                    rest = upgraded.into_rest();
                    input = &mut rest;
                    let role = Role::Client { mask_seed: self.draw() };
                    let websocket = rfc6455::Connection::new(role, Arc::clone(&self.websocket), now);
                    let websocket = websocket.with_deflate(deflate);
                    self.layer = Layer::Open(Box::new(websocket));
                    self.tell(now, Input::Connected);
                }
                Err(error) => {
                    let end = match &error {
                        ClientHandshakeError::Refused { status, retry_after } => {
                            End::Refused { status: *status, retry_after: *retry_after }
                        }
                        _ => End::Lost,
                    };
                    self.hear(&DialError::Handshake(error));
                    return self.lose(now, end);
                }
            }
        }
        while let Layer::Open(websocket) = &mut self.layer {
            let event = websocket.receive(now, &mut input);
            self.take_output();
            match event {
                Some(rfc6455::Event::Binary(frame)) => self.tell(now, Input::Received { frame }),
                Some(rfc6455::Event::Closed(closed)) => self.closed(now, closed),
                Some(_) => {}
                None => break,
            }
        }
    }

    /// Writes the outbox by `write`, as much as it takes without waiting.
    ///
    /// # Errors
    ///
    /// Those of `write`; the connection has then ended.
    pub fn write_by(
        &mut self,
        now: Instant,
        write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<()> {
        let result = self.outbox.flush(write);
        match &result {
            Ok(()) => self.weigh_outbox(now),
            Err(_) => self.ended(now),
        }
        result
    }

    /// The stream has ended or failed; it is to be dropped.
    pub fn ended(&mut self, now: Instant) {
        if matches!(self.layer, Layer::Handshake(_)) {
            self.hear(&DialError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        self.lose(now, End::Lost);
    }

    /// The stream is dropped.
    pub fn dropped(&mut self, now: Instant) {
        self.lose(now, End::Lost);
        self.layer = Layer::Down;
    }

    /// What to do next.
    pub fn next(&self) -> ClientNext {
        match &self.layer {
            Layer::Down if self.dials => ClientNext::Dial,
            Layer::Down if self.provider.is_stopped() && lock(&self.shared.commands).is_empty() => {
                ClientNext::Stopped { unacknowledged: self.provider.has_unacknowledged() }
            }
            Layer::Down => ClientNext::Wait,
            Layer::Abandoned => ClientNext::Drop,
            Layer::Handshake(_) => ClientNext::Run { write: !self.outbox.is_empty() },
            Layer::Open(_) if !self.outbox.is_empty() => ClientNext::Run { write: true },
            Layer::Open(websocket) if websocket.is_closed() => ClientNext::Drop,
            Layer::Open(_) => ClientNext::Run { write: false },
        }
    }

    /// When [`Client::wake`] has something to do.
    pub fn next_timeout(&self) -> Option<Instant> {
        let websocket = match &self.layer {
            Layer::Open(websocket) => websocket.next_timeout(),
            Layer::Down | Layer::Handshake(_) | Layer::Abandoned => None,
        };
        [self.provider.next_timeout(), websocket, self.linger_until].into_iter().flatten().min()
    }

    /// The core.
    pub fn provider(&self) -> &Provider {
        &self.provider
    }

    fn tell(&mut self, now: Instant, input: Input) {
        let outputs = self.provider.handle(now, input);
        {
            // Before the events, so that who hears one finds it so.
            let mut status = lock(&self.shared.status);
            status.is_connected = self.provider.is_connected();
            status.is_synced = self.provider.is_synced();
            status.has_unacknowledged = self.provider.has_unacknowledged();
            status.edits_taken = self.provider.edits_taken();
        }
        self.perform(now, outputs);
        self.weigh_outbox(now);
    }

    fn perform(&mut self, now: Instant, outputs: Outputs<Output>) {
        for output in outputs {
            match output {
                Output::Connect => self.dials = true,
                Output::Send { frame } => {
                    if let Layer::Open(websocket) = &mut self.layer {
                        websocket.send_binary(&frame);
                    }
                }
                Output::Close { reason } => self.close(now, &reason),
                Output::Event(event) => self.event(&event),
            }
        }
        self.take_output();
    }

    fn close(&mut self, now: Instant, reason: &CloseReason) {
        self.dials = false;
        match &mut self.layer {
            Layer::Down | Layer::Abandoned => {}
            Layer::Handshake(_) => self.abandon(),
            Layer::Open(websocket) => {
                let code = CloseCode::new(reason.code()).unwrap_or(CloseCode::NORMAL);
                websocket.close(now, code, &reason.to_string());
                self.linger_until = Some(now + LINGER);
            }
        }
    }

    fn closed(&mut self, now: Instant, closed: rfc6455::Closed) {
        let end = match closed {
            rfc6455::Closed::ByPeer(frame) => {
                End::Closed { code: frame.map_or(NO_STATUS, |frame| frame.code.into()) }
            }
            _ => End::Lost,
        };
        // Our own close frame is still to be written.
        if self.linger_until.replace(now + LINGER).is_none() {
            self.tell(now, Input::Disconnected { end });
        }
    }

    /// The stream is of no more use; the provider hears of it, unless it has forgotten it already.
    fn lose(&mut self, now: Instant, end: End) {
        let is_known = match &self.layer {
            Layer::Handshake(_) => true,
            Layer::Open(_) => self.linger_until.is_none(),
            Layer::Down | Layer::Abandoned => false,
        };
        self.abandon();
        if is_known {
            self.tell(now, Input::Disconnected { end });
        }
    }

    fn abandon(&mut self) {
        self.layer = Layer::Abandoned;
        self.outbox = Outbox::default();
        self.congested = false;
        self.linger_until = None;
    }

    fn take_output(&mut self) {
        if let Layer::Open(websocket) = &mut self.layer {
            while let Some(output) = websocket.next_output() {
                self.outbox.push(output);
            }
        }
    }

    fn weigh_outbox(&mut self, now: Instant) {
        let max = match self.options.outbox_bytes_max {
            0 => OUTBOX_BYTES_MAX,
            max => max,
        };
        let bytes = self.outbox.bytes();
        if !self.congested && bytes > max {
            self.congested = true;
            self.tell(now, Input::Congested);
        } else if self.congested && bytes <= max / 4 {
            self.congested = false;
            self.tell(now, Input::Writable);
        }
    }

    fn event(&self, event: &Event) {
        if let Event::Presence { client, state } = event {
            let presence = &mut lock(&self.shared.status).presence;
            match state {
                Some(state) => drop(presence.insert(*client, state.clone())),
                None => drop(presence.remove(client)),
            }
        }
        if let Some(on_event) = &self.options.on_event {
            let _ = catch_unwind(AssertUnwindSafe(|| on_event(event)));
        }
    }

    fn hear(&self, error: &DialError) {
        if let Some(on_dial_error) = &self.options.on_dial_error {
            let _ = catch_unwind(AssertUnwindSafe(|| on_dial_error(error)));
        }
    }

    /// Another number for each connection.
    fn draw(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.seed ^ (self.seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 31)
    }
}

/// What the application has of a client that runs. Its methods never wait, and may be called from
/// anywhere: from observers of the document and from hooks as well.
#[derive(Clone, Debug)]
pub struct ClientHandle {
    shared: Arc<Shared>,
    doc: Doc,
    origin: Origin,
}

impl ClientHandle {
    /// Connects, or tries at once what would be tried later.
    pub fn start(&self) {
        self.command(Input::Start);
    }

    /// Is present with this state from now on; `None` is absent.
    pub fn set_presence(&self, state: Option<PresenceState>) {
        self.command(Input::SetPresence(state));
    }

    /// Leaves once every change is acknowledged, at the latest at the deadline.
    pub fn leave(&self, deadline: Instant) {
        self.command(Input::Leave { deadline });
    }

    /// The document.
    pub fn doc(&self) -> &Doc {
        &self.doc
    }

    /// The origin of the transactions in which changes of others are applied: what an undo manager tracks,
    /// or an observer looks for.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        lock(&self.shared.status).is_connected
    }

    /// Whether the document has what the server had when this connection was made.
    pub fn is_synced(&self) -> bool {
        lock(&self.shared.status).is_synced
    }

    /// Whether there are changes that the server has not acknowledged: see [`provider`]. It is so from the
    /// end of the transaction on that makes one.
    pub fn has_unacknowledged(&self) -> bool {
        let status = lock(&self.shared.status);
        status.has_unacknowledged || status.edits_taken != self.shared.edits.made()
    }

    /// Others who are present, and their states as JSON text.
    pub fn presence(&self) -> BTreeMap<ClientId, Bytes> {
        lock(&self.shared.status).presence.clone()
    }

    fn command(&self, command: Input) {
        lock(&self.shared.commands).push(command);
        self.shared.bell.ring();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const OUTBOX_BYTES_MAX: usize = 1 << 20;

/// What a close frame without a code stands for (RFC 6455 section 7.1.5).
const NO_STATUS: u16 = 1005;

/// How long the rest of an outbox and the closing handshake may take after a close frame.
const LINGER: Duration = Duration::from_secs(2);
