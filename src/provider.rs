//! The client: keeps a document of the application's own in sync with a room on a server.
//!
//! ```text
//!            Start                       Connected              SyncStep2
//!  Stopped --------> Waiting, Dialling -----------> Connected -----------> Synced
//!     ^                 ^         |                     |                     |
//!     |                 '---------+---------------------'---------------------'
//!     |                    Disconnected, silence: again after a delay
//!     |
//!     '--- closed with 4400 to 4499; or Leave, once everything is acknowledged, or its deadline
//! ```
//!
//! A [`Provider`] speaks what `y-websocket` speaks, so its server may be ours, `@y/websocket-server` or
//! pycrdt-websocket. Like a [`Server`](crate::Server) it does nothing by itself: [`Input`]s tell it what
//! happened, [`Output`]s what is to be done. One connection at a time: after [`Output::Close`], and after
//! [`Input::Disconnected`], nothing more is said of that connection.
//!
//! # The document
//!
//! It is a [`yrs::Doc`] that the application edits as it likes, on any thread. An observer puts every
//! change into a queue and wakes whoever drives the provider, and does nothing else. The provider never
//! waits for the document: where a transaction of the application is open, what needs the document is
//! done a moment later. What arrives is applied in transactions with the [origin](Provider::origin) of
//! the provider; observers of the application then run on the thread that drives it. They may do what
//! observers may do, edit in `observe_after_transaction` for example; a panic in one ends the
//! connection, not the provider.
//!
//! `Doc::observe_*` of yrs fails while anybody's transaction is open, and `UndoManager::expand_scope` and the
//! drop of an undo manager panic: make one before the provider has the document, and drop it when it has it
//! no more. What it tracks may be changed meanwhile, while a transaction of one's own keeps others out.
//!
//! What hangs on something that has not come waits in a [`Journal`], whose log is the document. A Yjs
//! document does that itself; one of yrs 0.28 shows what lies beyond a gap, and from then on says the wrong
//! clocks of it.
//!
//! Where anybody may write, set `skip_gc` in the options of the document: an update that is crafted for it makes
//! the garbage collection of yrs 0.28 free structs that others still point at.
//!
//! # What is acknowledged
//!
//! A change counts as acknowledged when the server has shown that it has it. That is so once it came
//! back, which on our servers happens when it is durable (but where somebody else has deleted the same, it
//! may be their delete that comes, before it is); or once the first question of a connection is
//! answered, and the change lies below the state vector with which the server began. What stays
//! unacknowledged for [`Config::acknowledgement_delay`] is asked for, by a SyncStep1 as of somebody who
//! lacks it; so servers that do not send changes back to their author acknowledge as well. What the answer does
//! not hold is sent once more.
//!
//! ```
//! use std::{task::Waker, time::Instant};
//! use yrs::Doc;
//! use yrs_websocket::provider::{Config, Input, Output, Provider};
//!
//! let doc = Doc::with_client_id(1);
//! let mut provider = Provider::new(Config::default(), doc, Waker::noop().clone(), 42);
//! let mut inputs = vec![Input::Start];
//! let mut sent = Vec::new(); // a socket
//! while !inputs.is_empty() {
//!     for output in provider.handle(Instant::now(), inputs.remove(0)) {
//!         match output {
//!             Output::Connect => inputs.push(Input::Connected), // once the WebSocket is open
//!             Output::Send { frame } => sent.push(frame),
//!             Output::Close { reason } => println!("close with {}: {reason}", reason.code()),
//!             Output::Event(event) => println!("{event:?}"),
//!         }
//!     }
//!     // ... and wait for the socket and the waker until `provider.next_timeout()`, then Input::Timeout.
//! }
//! assert_eq!(sent, [&[0, 0, 1, 0][..]]); // SyncStep1 of an empty document
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak},
    task::Waker,
    time::{Duration, Instant},
};

use bytes::Bytes;
use yrs::{Doc, Origin, ReadTxn, Transact, updates::decoder::Decode};

use crate::{
    ConnectionId, Outputs, after,
    awareness::{self, Awareness, AwarenessError, AwarenessLimits},
    is_due,
    journal::{Journal, JournalLimits, Mark, Received},
    message::{Message, MessageError},
    random::Random,
    soonest,
    update::{self, ClientId, IdSet, ScanRules, StateVector, Update, UpdateError, prove_json},
};

/// Limits and delays of a [`Provider`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Delay before the first attempt to come back; it doubles with each attempt up to
    /// `retry_delay_max`, and starts again only after a sync. Of each delay a half is drawn. 200 ms.
    pub retry_delay_min: Duration,
    /// Longest delay between two attempts. 10 s.
    pub retry_delay_max: Duration,
    /// How long an attempt to connect may take, the upgrade included. 10 s.
    pub connect_timeout: Duration,
    /// A connection on which no message came for so long is given up; after two thirds of it the
    /// server is asked something. 45 s: our server says something after 25 s.
    pub silence_timeout: Duration,
    /// Asks for what is missing again and again, for servers that lose messages. Off by default.
    pub resync_interval: Option<Duration>,
    /// How long changes may stay unacknowledged before the server is asked for them; doubles while
    /// nothing is acknowledged, up to a minute. 5 s.
    pub acknowledgement_delay: Duration,
    /// How often the own presence is renewed. 15 s, because others forget it after 30 s.
    pub presence_interval: Duration,
    /// Presence of others that is not renewed for so long is removed. 30 s.
    pub presence_timeout: Duration,
    /// Others whose presence is kept; what is beyond is ignored. 10,000.
    pub presence_ids_max: usize,
    /// Bytes of JSON over all presence that is kept; what is beyond is ignored. 16 MiB.
    pub presence_bytes_max: usize,
    /// Bytes of messages that wait for the document while a transaction of the application is open;
    /// more ends the connection. 64 MiB.
    pub inbox_bytes_max: usize,
    /// Bytes of structs whose dependencies are missing, as [`JournalLimits::parked_bytes_max`] counts; an
    /// update beyond is dropped, and the server asked again. 16 MiB.
    pub parked_bytes_max: usize,
    /// Nesting of JSON and `any` values in what the server sends. 100: yrs overflows its stack far
    /// beyond.
    pub depth_max: usize,
    /// Accepts weak links. Off by default, as in a server.
    pub weak_links: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            retry_delay_min: Duration::from_millis(200),
            retry_delay_max: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            silence_timeout: Duration::from_secs(45),
            resync_interval: None,
            acknowledgement_delay: Duration::from_secs(5),
            presence_interval: Duration::from_secs(15),
            presence_timeout: Duration::from_secs(30),
            presence_ids_max: 10_000,
            presence_bytes_max: 16 << 20,
            inbox_bytes_max: 64 << 20,
            parked_bytes_max: 16 << 20,
            depth_max: 100,
            weak_links: false,
        }
    }
}

/// What happened in the world, and what the application wants: the one way to tell a [`Provider`].
///
/// Inputs that do not fit, such as a frame without a connection, are ignored.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Input {
    /// Connect, now and whenever the connection is lost. Also takes [`Input::Leave`] back.
    Start,
    /// The waker was called: the document has changed.
    Edited,
    /// Be present with this state from now on; `None` is absent.
    SetPresence(Option<PresenceState>),
    /// Leave: presence goes at once, the connection when every change is acknowledged, or at the
    /// deadline. [`Event::Stopped`] follows. Meanwhile a lost connection is made again.
    Leave {
        /// When to go in any case.
        deadline: Instant,
    },
    /// Answers [`Output::Connect`]: the WebSocket is open.
    Connected,
    /// The server sent a frame: the payload of one binary WebSocket message.
    Received {
        /// The payload.
        frame: Bytes,
    },
    /// What was sent piles up: send nothing more until it is writable.
    Congested,
    /// What had piled up is written.
    Writable,
    /// The connection could not be made, or has ended. Not needed after [`Output::Close`].
    Disconnected {
        /// How it ended.
        end: End,
    },
    /// [`Provider::next_timeout`] has come. Early or twice is harmless.
    Timeout,
}

/// What is to be done in the world.
///
/// Exhaustive on purpose: an output that is ignored is data lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Open a WebSocket to the room; answered by [`Input::Connected`] or [`Input::Disconnected`].
    Connect,
    /// Send a frame, as one binary WebSocket message.
    Send {
        /// The payload.
        frame: Bytes,
    },
    /// Close the connection, or give up the attempt to make it. The provider has forgotten it already.
    Close {
        /// Why: gives the code and text of the close frame.
        reason: CloseReason,
    },
    /// Something that the application may want to know.
    Event(Event),
}

/// Something that happened to a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The connection is made.
    Connected,
    /// The document has everything that the server had when it was asked, for the first time on this
    /// connection.
    Synced,
    /// The connection has ended, or could not be made.
    Disconnected {
        /// How.
        end: End,
        /// After which time it is tried again; `None` if it is not.
        retry_in: Option<Duration>,
    },
    /// There are changes that the server has not acknowledged. See the [module](self).
    Unacknowledged,
    /// The server has acknowledged every change that was [taken](Provider::edits_taken). Follows each time
    /// that [`Provider::has_unacknowledged`] turns false, or might have been seen to, save when an empty document
    /// is looked at for the first time: before that nobody knows.
    Acknowledged,
    /// Somebody else's presence has changed.
    Presence {
        /// Whose.
        client: ClientId,
        /// As JSON text; `None` for who left.
        state: Option<Bytes>,
    },
    /// The server does not take changes from here.
    PermissionDenied {
        /// Its own words.
        reason: String,
    },
    /// A message of a type that y-protocols does not know.
    UnknownMessage {
        /// The type.
        tag: u64,
        /// What followed it in the frame.
        payload: Bytes,
    },
    /// Presence that does not read, which some servers pass on unread; ignored but for this event.
    PresenceMalformed,
    /// A change of the application's own is one that our servers refuse: see [`Update::scan`]. It is
    /// sent all the same.
    EditMalformed {
        /// What is wrong with it.
        error: UpdateError,
    },
    /// It is over until [`Input::Start`].
    Stopped {
        /// Whether there are changes that the server has not acknowledged.
        unacknowledged: bool,
    },
}

/// How a connection, or an attempt to make one, ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// It could not be made, or ended without a close frame.
    Lost,
    /// The server answered the upgrade with another HTTP status.
    Refused {
        /// The status.
        status: u16,
        /// When to come back, if the server said so.
        retry_after: Option<Duration>,
    },
    /// The server closed it. After 4400 to 4499 a client does not come back.
    Closed {
        /// The code of its close frame; 1005 for one without.
        code: u16,
    },
    /// By [`Output::Close`].
    ByUs(CloseReason),
}

/// Says why a provider closes a connection, or gives up an attempt to make one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// 1000: after [`Input::Leave`].
    #[error("left")]
    Left,
    /// 1001: the attempt took longer than [`Config::connect_timeout`].
    #[error("connecting took too long")]
    ConnectTimeout,
    /// 1001: nothing came for [`Config::silence_timeout`].
    #[error("nothing was heard for too long")]
    Silent,
    /// 1001: what observes the document was dropped, or not called, by a panic in an observer of the application or
    /// by destroying the document. Changes may have been missed; to connect anew brings them.
    #[error("changes of the document may have been missed")]
    Unobserved,
    /// 1001: more than [`Config::inbox_bytes_max`] waits for the document.
    #[error("the document is occupied for too long")]
    InboxFull,
    /// 1007: a frame is no sequence of messages.
    #[error("malformed message: {0}")]
    Message(MessageError),
    /// 1007: an update or state vector is malformed, or would harm yrs.
    #[error("malformed update: {0}")]
    Update(UpdateError),
    /// 1007: yrs cannot read an update: it holds content that only Yjs knows, such as the JSON kind of
    /// early versions.
    #[error("an update cannot be applied")]
    NotDecodable,
    /// 1011: yrs, or an observer of the application, panicked while an update was applied.
    #[error("applying an update failed")]
    Panicked,
}

impl CloseReason {
    /// The close code (RFC 6455 section 7.4).
    pub fn code(&self) -> u16 {
        match self {
            Self::Left => 1000,
            Self::ConnectTimeout | Self::Silent | Self::Unobserved | Self::InboxFull => 1001,
            Self::Message(_) | Self::Update(_) | Self::NotDecodable => 1007,
            Self::Panicked => 1011,
        }
    }
}

/// A state of presence: JSON text, by convention an object with a `user`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresenceState(Bytes);

impl PresenceState {
    /// Takes JSON. `null` is the state of who is absent.
    pub fn new(json: &str) -> Result<Self, AwarenessError> {
        prove_json(json.as_bytes(), DEPTH_MAX).map_err(|_| AwarenessError::NotJson)?;
        Ok(Self(Bytes::copy_from_slice(json.trim().as_bytes())))
    }

    /// The state as JSON text.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

/// A document's connection to a room: see the [module](self).
#[derive(Debug)]
pub struct Provider {
    config: Config,
    random: Random,
    /// The latest time seen: time does not go backwards here.
    now: Option<Instant>,
    document: Document,
    phase: Phase,
    /// Attempts since the last sync.
    attempts: u32,
    leave_by: Option<Instant>,
    /// Messages that wait for the document.
    inbox: VecDeque<Message>,
    inbox_bytes: usize,
    /// Whether there is a SyncStep1 among them.
    inbox_asks: bool,
    /// When to try the document again, after which delay.
    occupied: Option<(Instant, Duration)>,
    unacknowledged: Changes,
    /// Whether the application was told that there are such.
    unacknowledged_told: bool,
    /// How many changes were taken when it was told last that there are none.
    acknowledged_told: u64,
    presence: Presence,
}

#[derive(Debug)]
enum Phase {
    Stopped,
    Waiting { until: Instant },
    Dialling { until: Instant },
    Connected(Box<Connection>),
}

#[derive(Debug)]
struct Connection {
    /// When the last message came.
    heard: Instant,
    /// Whether the server was asked something because of its silence.
    is_prodded: bool,
    /// Whether SyncStep1 and presence were sent.
    is_greeted: bool,
    is_synced: bool,
    /// Whether the server has asked what we have.
    is_asked: bool,
    is_denied: bool,
    /// With what the server began, until the first answer makes it an acknowledgement.
    server_state: Option<StateVector>,
    /// What came before that. It may come from others who had it after a crash of the server, before
    /// that was stored again.
    early: Changes,
    /// A SyncStep1 is due.
    asks: bool,
    /// The SyncStep1 that waits for its answer: what that should hold. One at a time, because servers
    /// may answer two at once.
    question: Option<Changes>,
    /// When to ask for what is not acknowledged.
    probe: Option<Instant>,
    probe_delay: Duration,
    resync: Option<Instant>,
    renewal: Option<Instant>,
    congestion: Option<Missed>,
    /// What is to be sent, or sent once more, as one update.
    unsent: Changes,
}

/// What is not sent to a congested server.
#[derive(Debug, Default)]
struct Missed {
    presence: bool,
    /// Its last question.
    question: Option<StateVector>,
}

/// The own state and that of others.
#[derive(Debug)]
struct Presence {
    id: ClientId,
    clock: u32,
    state: Option<Bytes>,
    others: Awareness,
    expiry: Option<Instant>,
}

/// What became of a message.
enum Progress {
    Done,
    /// The document is not free.
    Occupied,
    /// None is there.
    Idle,
}

impl Provider {
    /// Makes a provider that waits for [`Input::Start`].
    ///
    /// `waker` is called, from whichever thread edits the document, when the provider should be given
    /// [`Input::Edited`]: it must not wait for anything. `seed` makes jitter: take it from the system in
    /// production, fix it in tests.
    pub fn new(config: Config, doc: Doc, waker: Waker, seed: u64) -> Self {
        let others = AwarenessLimits {
            timeout: config.presence_timeout,
            ids_max: config.presence_ids_max,
            bytes_max: config.presence_bytes_max,
            own_ids_only: false,
        };
        let presence = Presence {
            id: ClientId::new(doc.client_id().get() % CLIENT_ID_END).expect("it was just made to fit"),
            clock: 0,
            state: None,
            others: Awareness::new(others),
            expiry: None,
        };
        Self {
            random: Random::new(seed),
            now: None,
            document: Document::new(doc, waker, JournalLimits { parked_bytes_max: config.parked_bytes_max }),
            phase: Phase::Stopped,
            attempts: 0,
            leave_by: None,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            inbox_asks: false,
            occupied: None,
            unacknowledged: Changes::default(),
            unacknowledged_told: false,
            acknowledged_told: 0,
            presence,
            config,
        }
    }

    /// Takes an input, answers with what is to be done, in this order.
    ///
    /// A `now` that lies before an earlier one is taken as that one. Applies what came to the document,
    /// so observers of the application run in here.
    pub fn handle(&mut self, now: Instant, input: Input) -> Outputs<Output> {
        let now = self.now.map_or(now, |latest| latest.max(now));
        self.now = Some(now);
        let mut out = Outputs::default();
        match input {
            Input::Start => self.start(now),
            Input::SetPresence(state) => self.set_presence(now, state, &mut out),
            Input::Leave { deadline } => self.start_leaving(now, deadline, &mut out),
            Input::Connected => self.connected(now, &mut out),
            Input::Received { frame } => self.receive(now, &frame, &mut out),
            Input::Congested => {
                if let Phase::Connected(connection) = &mut self.phase {
                    connection.congestion.get_or_insert_default();
                }
            }
            Input::Writable => self.writable(now, &mut out),
            Input::Disconnected { end } => {
                if matches!(self.phase, Phase::Dialling { .. } | Phase::Connected(_)) {
                    self.disconnected(now, end, &mut out);
                }
            }
            Input::Edited | Input::Timeout => {}
        }
        self.keep_time(now, &mut out);
        if self.tend_document(now, &mut out) {
            self.occupied = None;
        } else if self.occupied.is_none_or(|(at, _)| at <= now) {
            let delay = self.occupied.map_or(OCCUPIED_DELAY_MIN, |(_, delay)| delay * 2);
            let delay = delay.min(OCCUPIED_DELAY_MAX);
            self.occupied = Some((after(now, delay), delay));
        }
        self.note_acknowledgement(now, &mut out);
        self.leave_when_done(now, &mut out);
        out
    }

    /// When [`Input::Timeout`] is due next. It changes with every input.
    pub fn next_timeout(&self) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Stopped => None,
            Phase::Waiting { until } | Phase::Dialling { until } => Some(*until),
            Phase::Connected(connection) => [
                Some(connection.silence_due(&self.config)),
                connection.probe,
                connection.resync,
                connection.renewal,
            ]
            .into_iter()
            .flatten()
            .min(),
        };
        [phase, self.leave_by, self.occupied.map(|(at, _)| at), self.presence.expiry]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        matches!(self.phase, Phase::Connected(_))
    }

    /// Whether the document has what the server had when this connection was made.
    pub fn is_synced(&self) -> bool {
        matches!(&self.phase, Phase::Connected(connection) if connection.is_synced)
    }

    /// Whether nothing is done before [`Input::Start`].
    pub fn is_stopped(&self) -> bool {
        matches!(self.phase, Phase::Stopped)
    }

    /// Whether there are changes that the server has not acknowledged, of those that were
    /// [taken](Self::edits_taken), or there may be some: nobody knows as long as the document could not be
    /// observed, because a transaction of the application is open. See the [module](self).
    pub fn has_unacknowledged(&self) -> bool {
        !self.document.is_observed() || !self.unacknowledged.is_empty()
    }

    /// Counts changes as they are made, for who asks without the provider at hand.
    pub fn edit_counter(&self) -> EditCounter {
        EditCounter(Arc::clone(&self.document.edits))
    }

    /// How many of the changes that the [counter](Self::edit_counter) has counted were taken so far. If
    /// that is fewer, there are some of which nothing is known yet.
    pub fn edits_taken(&self) -> u64 {
        self.document.taken
    }

    /// Others who are present, and their states as JSON text.
    pub fn presence(&self) -> impl Iterator<Item = (ClientId, &Bytes)> {
        self.presence.others.states()
    }

    /// The origin of the transactions in which changes of others are applied.
    pub fn origin(&self) -> &Origin {
        &self.document.origin
    }

    /// The document.
    pub fn doc(&self) -> &Doc {
        &self.document.doc
    }

    fn start(&mut self, now: Instant) {
        self.leave_by = None;
        if matches!(self.phase, Phase::Stopped | Phase::Waiting { .. }) {
            self.phase = Phase::Waiting { until: now };
        }
    }

    fn start_leaving(&mut self, now: Instant, deadline: Instant, out: &mut Outputs<Output>) {
        if self.is_stopped() {
            return;
        }
        self.leave_by = Some(deadline);
        self.set_presence(now, None, out);
        self.send_edits(out);
        // Servers that send nothing back to the author have to be asked.
        if let Phase::Connected(connection) = &mut self.phase
            && !self.unacknowledged.is_empty()
        {
            connection.asks |= connection.is_synced && connection.question.is_none();
        }
    }

    fn set_presence(&mut self, now: Instant, state: Option<PresenceState>, out: &mut Outputs<Output>) {
        let state = state.map(|state| state.0).filter(|state| &state[..] != b"null");
        if state.is_none() && self.presence.state.is_none() {
            return;
        }
        self.presence.state = state;
        self.announce(now, out);
    }

    fn connected(&mut self, now: Instant, out: &mut Outputs<Output>) {
        if !matches!(self.phase, Phase::Dialling { .. }) {
            return;
        }
        self.phase = Phase::Connected(Box::new(Connection {
            heard: now,
            is_prodded: false,
            is_greeted: false,
            is_synced: false,
            is_asked: false,
            is_denied: false,
            server_state: None,
            early: Changes::default(),
            asks: true,
            question: None,
            probe: None,
            probe_delay: self.config.acknowledgement_delay,
            resync: None,
            renewal: None,
            congestion: None,
            unsent: Changes::default(),
        }));
        out.event(Event::Connected);
    }

    fn disconnected(&mut self, now: Instant, end: End, out: &mut Outputs<Output>) {
        self.forget_connection(now, out);
        if matches!(end, End::Closed { code: 4400..=4499 }) {
            self.phase = Phase::Stopped;
            self.leave_by = None;
            out.event(Event::Disconnected { end, retry_in: None });
            return out.event(Event::Stopped { unacknowledged: self.has_unacknowledged() });
        }
        let doubled = self.config.retry_delay_min.saturating_mul(1 << self.attempts.min(20));
        let longest = doubled.min(self.config.retry_delay_max);
        self.attempts += 1;
        let mut delay = longest.mul_f64(0.5 + self.random.fraction() / 2.0);
        if let End::Refused { retry_after: Some(retry_after), .. } = end {
            delay += retry_after.min(RETRY_AFTER_MAX);
        }
        self.phase = Phase::Waiting { until: after(now, delay) };
        out.event(Event::Disconnected { end, retry_in: Some(delay) });
    }

    fn close(&mut self, now: Instant, reason: CloseReason, out: &mut Outputs<Output>) {
        out.push(Output::Close { reason: reason.clone() });
        self.disconnected(now, End::ByUs(reason), out);
    }

    fn forget_connection(&mut self, now: Instant, out: &mut Outputs<Output>) {
        self.inbox.clear();
        self.inbox_bytes = 0;
        self.inbox_asks = false;
        for client in self.presence.others.leave(now, SERVER) {
            out.event(Event::Presence { client, state: None });
        }
        // The server says anew who is there, with clocks that must not count as known.
        let limits = AwarenessLimits {
            timeout: self.config.presence_timeout,
            ids_max: self.config.presence_ids_max,
            bytes_max: self.config.presence_bytes_max,
            own_ids_only: false,
        };
        self.presence.others = Awareness::new(limits);
        self.presence.expiry = None;
    }

    fn receive(&mut self, now: Instant, frame: &Bytes, out: &mut Outputs<Output>) {
        let Phase::Connected(connection) = &mut self.phase else { return };
        connection.heard = now;
        connection.is_prodded = false;
        for message in Message::decode(frame) {
            match message {
                // An answer may be as long as the document, and a question takes four bytes: what answers
                // the first holds what later ones of the same moment lack.
                Ok(Message::SyncStep1(_)) if self.inbox_asks => {}
                Ok(message) => {
                    self.inbox_asks |= matches!(message, Message::SyncStep1(_));
                    self.inbox.push_back(message);
                }
                // pycrdt-websocket passes presence on unread.
                Err(_) if frame.first() == Some(&PRESENCE_TAG) => out.event(Event::PresenceMalformed),
                Err(error) => return self.close(now, CloseReason::Message(error), out),
            }
        }
        self.inbox_bytes += frame.len();
        if self.occupied.is_some() && self.inbox_bytes > self.config.inbox_bytes_max {
            self.close(now, CloseReason::InboxFull, out);
        }
    }

    fn writable(&mut self, now: Instant, out: &mut Outputs<Output>) {
        let Phase::Connected(connection) = &mut self.phase else { return };
        let Some(missed) = connection.congestion.take() else { return };
        if let Some(known) = missed.question {
            self.inbox_asks = true;
            self.inbox.push_front(Message::SyncStep1(known.encode()));
        }
        if missed.presence {
            self.announce(now, out);
        }
    }

    /// Does what is due.
    fn keep_time(&mut self, now: Instant, out: &mut Outputs<Output>) {
        if is_due(self.presence.expiry, now) {
            let expired = self.presence.others.expire(now);
            self.presence.expiry = self.presence.others.next_expiry();
            for client in expired {
                out.event(Event::Presence { client, state: None });
            }
        }
        match &mut self.phase {
            Phase::Stopped => {}
            Phase::Waiting { until } => {
                if *until <= now {
                    self.phase = Phase::Dialling { until: after(now, self.config.connect_timeout) };
                    out.push(Output::Connect);
                }
            }
            Phase::Dialling { until } => {
                if *until <= now {
                    self.close(now, CloseReason::ConnectTimeout, out);
                }
            }
            Phase::Connected(connection) => {
                if connection.silence_due(&self.config) <= now {
                    if connection.is_prodded {
                        return self.close(now, CloseReason::Silent, out);
                    }
                    connection.is_prodded = true;
                    connection.asks |= connection.question.is_none();
                }
                if is_due(connection.probe, now) {
                    connection.probe_delay = connection.probe_delay.saturating_mul(2).min(PROBE_DELAY_MAX);
                    connection.probe = None;
                    connection.asks |= connection.question.is_none();
                }
                if is_due(connection.resync, now) {
                    connection.resync = self.config.resync_interval.map(|interval| after(now, interval));
                    connection.asks |= connection.question.is_none();
                }
                if is_due(connection.renewal, now) {
                    self.announce(now, out);
                }
            }
        }
    }

    /// Does everything that needs the document; false where it has to wait for it.
    fn tend_document(&mut self, now: Instant, out: &mut Outputs<Output>) -> bool {
        loop {
            if !self.document.is_observed() {
                let is_first = !self.document.was_observed;
                let Some(all) = self.document.observe() else { return false };
                self.unacknowledged = all;
                if !is_first && matches!(self.phase, Phase::Connected(_)) {
                    self.close(now, CloseReason::Unobserved, out);
                }
            }
            self.send_edits(out);
            if self.document.has_unapplied() {
                match self.document.apply(None) {
                    Ok(_) => {}
                    Err(Failure::Occupied) => return false,
                    Err(Failure::Close(reason)) => self.close(now, reason, out),
                }
            }
            if !self.ask(now, out) {
                return false;
            }
            match self.take_message(now, out) {
                Progress::Done => {}
                Progress::Occupied => return false,
                Progress::Idle => return self.send_unsent(now, out),
            }
        }
    }

    /// Takes the changes of the application out of the queue, and sends them on.
    fn send_edits(&mut self, out: &mut Outputs<Output>) {
        let edits = self.document.take_edits();
        if edits.is_empty() {
            return;
        }
        let mut updates = Vec::new();
        let mut frames = Vec::new();
        for edit in edits {
            match Update::scan(edit.clone(), &own_rules()) {
                Ok(update) => {
                    self.unacknowledged.add(&update);
                    self.document.edited(&update);
                    updates.push(update);
                }
                Err(error) => {
                    self.document.journal = None;
                    out.event(Event::EditMalformed { error });
                    frames.push(Message::Update(edit).encode());
                }
            }
        }
        let Phase::Connected(connection) = &mut self.phase else { return };
        // Before the server has asked, these would hang on what it does not have yet; the answer carries
        // them all.
        if !connection.is_asked && !connection.is_synced {
            return;
        }
        match &connection.congestion {
            Some(_) => updates.iter().for_each(|update| connection.unsent.add(update)),
            None if updates.is_empty() => {}
            None => out.send(Message::Update(update::join(&updates).bytes().clone()).encode()),
        }
        for frame in frames {
            out.send(frame);
        }
    }

    /// Sends SyncStep1, and with the first one presence, where that is due; false where it has to wait
    /// for the document.
    fn ask(&mut self, now: Instant, out: &mut Outputs<Output>) -> bool {
        let Phase::Connected(connection) = &mut self.phase else { return true };
        if !connection.asks || connection.question.is_some() || connection.congestion.is_some() {
            return true;
        }
        let Some(mut known) = self.document.state_vector() else { return false };
        connection.asks = false;
        // The first question has to say what we really have: our servers answer it when that is durable.
        let question = if connection.is_synced { self.unacknowledged.clone() } else { Changes::default() };
        question.lower(&mut known);
        connection.question = Some(question);
        out.send(Message::SyncStep1(known.encode()).encode());
        if !mem::replace(&mut connection.is_greeted, true) && self.presence.state.is_some() {
            self.announce(now, out);
        }
        true
    }

    /// Sends what a congested server missed, or seems not to have; false where that has to wait for the
    /// document.
    fn send_unsent(&mut self, now: Instant, out: &mut Outputs<Output>) -> bool {
        let Phase::Connected(connection) = &mut self.phase else { return true };
        if connection.unsent.is_empty() || connection.congestion.is_some() {
            return true;
        }
        let Some(mut known) = self.document.state_vector() else { return false };
        connection.unsent.lower(&mut known);
        match self.document.diff(&known) {
            Ok(update) => {
                connection.unsent = Changes::default();
                out.send(Message::Update(update).encode());
            }
            Err(Failure::Occupied) => return false,
            Err(Failure::Close(reason)) => self.close(now, reason, out),
        }
        true
    }

    fn take_message(&mut self, now: Instant, out: &mut Outputs<Output>) -> Progress {
        let Phase::Connected(connection) = &mut self.phase else { return Progress::Idle };
        let Some(message) = self.inbox.front() else {
            self.inbox_bytes = 0;
            return Progress::Idle;
        };
        let result = match message {
            Message::SyncStep1(state_vector) => match StateVector::decode(state_vector) {
                Ok(known) => {
                    let answered = match &mut connection.congestion {
                        Some(missed) => {
                            missed.question = Some(known.clone());
                            Ok(())
                        }
                        None => self.document.diff(&known).map(|update| {
                            connection.unsent = Changes::default();
                            out.send(Message::SyncStep2(update).encode());
                            for waiting in self.document.waiting() {
                                out.send(Message::Update(waiting.bytes().clone()).encode());
                            }
                        }),
                    };
                    answered.map(|()| {
                        connection.is_asked = true;
                        if !connection.is_synced && connection.server_state.is_none() {
                            connection.server_state = Some(known);
                        }
                    })
                }
                Err(error) => Err(Failure::Close(CloseReason::Update(error))),
            },
            Message::SyncStep2(bytes) => {
                let bytes = bytes.clone();
                self.apply(bytes).map(|update| self.answered(now, &update, out))
            }
            Message::Update(bytes) => {
                let bytes = bytes.clone();
                self.apply(bytes).map(|update| self.heard(now, &update))
            }
            Message::Awareness(update) => {
                match awareness::decode(update, self.config.depth_max) {
                    Ok(entries) => self.hear_presence(now, entries, out),
                    Err(_) => out.event(Event::PresenceMalformed),
                }
                Ok(())
            }
            Message::QueryAwareness => {
                if self.presence.state.is_some() {
                    self.announce(now, out);
                }
                Ok(())
            }
            Message::PermissionDenied(reason) => {
                connection.is_denied = true;
                out.event(Event::PermissionDenied { reason: reason.clone() });
                Ok(())
            }
            Message::Unknown { tag, payload } => {
                out.event(Event::UnknownMessage { tag: *tag, payload: payload.clone() });
                Ok(())
            }
        };
        match result {
            Err(Failure::Occupied) => return Progress::Occupied,
            Err(Failure::Close(reason)) => self.close(now, reason, out),
            Ok(()) => {
                if let Some(Message::SyncStep1(_)) = self.inbox.pop_front() {
                    self.inbox_asks = false;
                }
            }
        }
        Progress::Done
    }

    fn apply(&mut self, bytes: Bytes) -> Result<Update, Failure> {
        let rules = ScanRules {
            depth_max: self.config.depth_max,
            weak_links: self.config.weak_links,
            ..ScanRules::default()
        };
        // yrs overflows its stack on some bytes, and asks for half a gigabyte on others.
        let update =
            Update::scan(bytes, &rules).map_err(|error| Failure::Close(CloseReason::Update(error)))?;
        let is_kept = update.is_empty() || self.document.apply(Some(&update))?;
        if !is_kept && let Phase::Connected(connection) = &mut self.phase {
            connection.asks |= connection.question.is_none();
        }
        Ok(update)
    }

    /// An update came that is in the document now.
    fn heard(&mut self, now: Instant, update: &Update) {
        let Phase::Connected(connection) = &mut self.phase else { return };
        if self.unacknowledged.is_empty() {
            return;
        }
        if !connection.is_synced {
            connection.early.add(update);
        } else if self.unacknowledged.remove(update.inserts(), update.deletes()) {
            connection.probe_delay = self.config.acknowledgement_delay;
            connection.probe = Some(after(now, connection.probe_delay));
        }
    }

    /// The answer to SyncStep1 came.
    fn answered(&mut self, now: Instant, update: &Update, out: &mut Outputs<Output>) {
        let Phase::Connected(connection) = &mut self.phase else { return };
        let question = connection.question.take();
        if !mem::replace(&mut connection.is_synced, true) {
            self.attempts = 0;
            connection.resync = self.config.resync_interval.map(|interval| after(now, interval));
            let early = mem::take(&mut connection.early);
            self.unacknowledged.remove(early.inserts.iter(), early.deletes.iter());
            if let Some(server) = connection.server_state.take() {
                self.unacknowledged.remove(server.iter().map(|(client, clock)| (client, 0..clock)), []);
            }
            self.unacknowledged.remove(update.inserts(), update.deletes());
            // Whoever leaves has not much time.
            connection.asks |= self.leave_by.is_some() && !self.unacknowledged.is_empty();
            return out.event(Event::Synced);
        }
        self.heard(now, update);
        let Phase::Connected(connection) = &mut self.phase else { return };
        if !connection.is_denied && question.is_some_and(|question| question.overlaps(&self.unacknowledged)) {
            connection.unsent = self.unacknowledged.clone();
        }
    }

    fn hear_presence(
        &mut self,
        now: Instant,
        mut entries: Vec<awareness::AwarenessEntry>,
        out: &mut Outputs<Output>,
    ) {
        let own = self.presence.id;
        let mut is_removed = false;
        entries.retain(|entry| {
            if entry.client == own && entry.clock >= self.presence.clock {
                self.presence.clock = entry.clock;
                is_removed |= entry.state.is_none() && entry.clock < u32::MAX;
            }
            entry.client != own
        });
        if is_removed && self.presence.state.is_some() {
            // Somebody removed us, or the server did when an earlier connection ended.
            self.announce(now, out);
        }
        let others = &mut self.presence.others;
        let before: BTreeMap<_, _> =
            entries.iter().map(|entry| (entry.client, others.state(entry.client).cloned())).collect();
        let (announced, _) = others.apply(now, SERVER, entries);
        soonest(&mut self.presence.expiry, Some(after(now, self.config.presence_timeout)));
        for client in announced.changed {
            let state = self.presence.others.state(client).cloned();
            // A renewal changes nothing.
            if before.get(&client) != Some(&state) {
                out.event(Event::Presence { client, state });
            }
        }
    }

    /// Tells the own presence, under its next clock.
    fn announce(&mut self, now: Instant, out: &mut Outputs<Output>) {
        let Presence { id, clock, state, .. } = &mut self.presence;
        let Phase::Connected(connection) = &mut self.phase else { return };
        if !connection.is_greeted {
            return;
        }
        connection.renewal =
            state.is_some().then(|| after(now, self.config.presence_interval.max(DELAY_MIN)));
        if let Some(missed) = &mut connection.congestion {
            missed.presence = true;
            return;
        }
        // Others ignore what is not newer, and a first clock of 0.
        *clock = clock.saturating_add(1);
        let update = awareness::encode([(*id, *clock, state.as_ref())].into_iter());
        out.send(Message::Awareness(update).encode());
    }

    fn note_acknowledgement(&mut self, now: Instant, out: &mut Outputs<Output>) {
        let unacknowledged = self.has_unacknowledged();
        let was_told = mem::replace(&mut self.unacknowledged_told, unacknowledged) == unacknowledged;
        if unacknowledged && !was_told {
            out.event(Event::Unacknowledged);
        }
        // Who asks the counter has seen a change even if it was taken and acknowledged in one step.
        let taken = self.document.taken;
        if !unacknowledged && (mem::replace(&mut self.acknowledged_told, taken) != taken || !was_told) {
            out.event(Event::Acknowledged);
        }
        let Phase::Connected(connection) = &mut self.phase else { return };
        if !unacknowledged || !connection.is_synced {
            connection.probe = None;
            connection.probe_delay = self.config.acknowledgement_delay.max(DELAY_MIN);
        } else if connection.probe.is_none() {
            connection.probe = Some(after(now, connection.probe_delay));
        }
    }

    fn leave_when_done(&mut self, now: Instant, out: &mut Outputs<Output>) {
        let Some(deadline) = self.leave_by else { return };
        let is_denied = matches!(&self.phase, Phase::Connected(connection) if connection.is_denied);
        let is_done = !self.has_unacknowledged() || is_denied && self.document.is_observed();
        if !is_done && now < deadline {
            return;
        }
        self.leave_by = None;
        if matches!(self.phase, Phase::Dialling { .. } | Phase::Connected(_)) {
            out.push(Output::Close { reason: CloseReason::Left });
        }
        self.forget_connection(now, out);
        self.phase = Phase::Stopped;
        out.event(Event::Stopped { unacknowledged: self.has_unacknowledged() });
    }
}

impl Connection {
    /// When the server is asked something because of its silence, or given up.
    fn silence_due(&self, config: &Config) -> Instant {
        let timeout = config.silence_timeout.max(DELAY_MIN);
        after(self.heard, if self.is_prodded { timeout } else { timeout / 3 * 2 })
    }
}

/// The application's document, and what observes it.
struct Document {
    doc: Doc,
    origin: Origin,
    waker: Waker,
    edits: Arc<Edits>,
    was_observed: bool,
    limits: JournalLimits,
    /// What the document has, and what waits until that can be integrated. Yjs documents do so themselves;
    /// yrs shows what lies beyond a gap in the clocks of one client, and writes it down under wrong clocks.
    /// `None` where it has to be made anew from the document.
    journal: Option<Journal>,
    /// The end of what of the journal's log is in the document.
    applied: Mark,
    /// How many were taken out of the queue.
    taken: u64,
}

/// Changes of the application that are on their way from the observer, which runs on whichever thread
/// edits the document, to the provider. The lock is held to push and to take, never while anything else is
/// called.
#[derive(Debug, Default)]
#[allow(clippy::disallowed_types, reason = "the one state with two owners: see above")]
struct Edits(std::sync::Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Bytes>,
    /// How many there ever were.
    made: u64,
    /// What the provider has done in its transaction that is about to end: no change of the application.
    applied: Option<Vec<u8>>,
    /// A transaction is about to end. It stays so where an observer of a type panics in it: yrs then tells nobody
    /// what has changed.
    is_ending: bool,
    /// Another one has ended since.
    has_missed: bool,
}

/// Why something was not done to the document.
enum Failure {
    /// A transaction of the application is open.
    Occupied,
    Close(CloseReason),
}

impl Edits {
    /// A transaction has changed something. Says whether that is for the provider to take.
    fn changed(&self, update: &[u8], is_own: bool) -> bool {
        let mut queue = self.lock();
        // Observers of the application may have made changes of their own in it.
        if is_own && queue.applied.take().is_some_and(|applied| is_part_of(update, &applied)) {
            return false;
        }
        queue.waiting.push(Bytes::copy_from_slice(update));
        queue.made += 1;
        true
    }

    fn take(&self) -> Vec<Bytes> {
        mem::take(&mut self.lock().waiting)
    }

    #[allow(clippy::disallowed_types, reason = "see the type")]
    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Counts the changes of a document as they are made, from whichever thread: see
/// [`Provider::edits_taken`].
#[derive(Debug, Clone)]
pub struct EditCounter(Arc<Edits>);

impl EditCounter {
    /// In how many transactions the application has changed the document since it is observed. What the
    /// provider applies does not count, or who waits for an [acknowledgement](Event::Acknowledged) would
    /// wait for one that never comes.
    pub fn made(&self) -> u64 {
        self.0.lock().made
    }
}

impl Document {
    fn new(doc: Doc, waker: Waker, limits: JournalLimits) -> Self {
        let edits = Arc::new(Edits::default());
        // Two providers may share a document: each takes the changes that come from the other.
        let origin = Origin::from(Arc::as_ptr(&edits) as usize);
        Self {
            doc,
            origin,
            waker,
            edits,
            was_observed: false,
            limits,
            journal: None,
            applied: Mark::default(),
            taken: 0,
        }
    }

    /// Whether the observers are there, and have missed nothing: yrs drops those of a document when one of them
    /// panics, and calls none of them after one of a type has.
    fn is_observed(&self) -> bool {
        if Arc::weak_count(&self.edits) == 0 || self.edits.lock().has_missed {
            return false;
        }
        let is_ending = || self.edits.lock().is_ending;
        // While there is a transaction to read in, none is about to end.
        !is_ending() || self.doc.try_transact().map_or(true, |_| !is_ending())
    }

    /// Puts the observers in place; says what the document has at that very moment.
    fn observe(&mut self) -> Option<Changes> {
        let mut transaction = self.doc.try_transact_mut_with(self.origin.clone()).ok()?;
        {
            let mut queue = self.edits.lock();
            (queue.is_ending, queue.has_missed) = (false, false);
        }
        let edits: Weak<Edits> = Arc::downgrade(&self.edits);
        let origin = self.origin.clone();
        transaction.observe_before_observer_calls(self.origin.clone(), move |transaction| {
            if let Some(edits) = edits.upgrade()
                && transaction.origin() != Some(&origin)
            {
                let mut queue = edits.lock();
                queue.has_missed |= mem::replace(&mut queue.is_ending, true);
            }
        });
        let edits: Weak<Edits> = Arc::downgrade(&self.edits);
        // From here on only observers of the document are called, which are gone if one of them panics.
        transaction.observe_transaction_cleanup(self.origin.clone(), move |_, _| {
            if let Some(edits) = edits.upgrade() {
                edits.lock().is_ending = false;
            }
        });
        let edits: Weak<Edits> = Arc::downgrade(&self.edits);
        let (origin, waker) = (self.origin.clone(), self.waker.clone());
        transaction.observe_update_v1(self.origin.clone(), move |transaction, event| {
            let Some(edits) = edits.upgrade() else { return };
            let is_own = transaction.origin() == Some(&origin);
            if edits.changed(&event.update, is_own) && !is_own {
                waker.wake_by_ref();
            }
        });
        self.was_observed = true;
        self.journal = None;
        let mut all = Changes { inserts: IdSet::default(), deletes: deleted_in(&transaction) };
        for (client, clock) in from_yrs(&transaction.state_vector()).iter() {
            all.inserts.insert(client, 0..clock);
        }
        // Its end runs observers of the application.
        catch_unwind(AssertUnwindSafe(move || drop(transaction))).ok()?;
        Some(all)
    }

    /// The application's changes, in order.
    fn take_edits(&mut self) -> Vec<Bytes> {
        let edits = self.edits.take();
        self.taken += edits.len() as u64;
        edits
    }

    /// The document has a change of the application.
    fn edited(&mut self, update: &Update) {
        let Some(journal) = &mut self.journal else { return };
        let is_applied = journal.mark() == self.applied;
        journal.restore(update);
        // Perhaps something waited for it. The document has the change itself, but not that.
        if is_applied && journal.updates_since(self.applied).is_some_and(|updates| updates.count() <= 1) {
            self.applied = journal.mark();
            journal.forget_log();
        }
    }

    /// Whether something can be integrated that waited.
    fn has_unapplied(&self) -> bool {
        self.journal.as_ref().is_some_and(|journal| journal.mark() != self.applied)
    }

    /// What the document does not have yet because something is missing.
    fn waiting(&self) -> Vec<Update> {
        self.journal.as_ref().map(Journal::waiting).unwrap_or_default()
    }

    fn state_vector(&self) -> Option<StateVector> {
        Some(from_yrs(&self.doc.try_transact().ok()?.state_vector()))
    }

    /// What the document has beyond a state vector, and all its deletes.
    fn diff(&self, known: &StateVector) -> Result<Bytes, Failure> {
        let known =
            known.iter().map(|(client, clock)| (client, clock.min(u32::MAX.into()))).collect::<StateVector>();
        let transaction = self.doc.try_transact().map_err(|_| Failure::Occupied)?;
        let diff = catch_unwind(AssertUnwindSafe(|| {
            let known = yrs::StateVector::decode_v1(&known.encode()).ok()?;
            Some(transaction.encode_diff_v1(&known))
        }));
        match diff {
            Ok(Some(diff)) => Ok(diff.into()),
            Ok(None) => Err(Failure::Close(CloseReason::NotDecodable)),
            Err(_) => Err(Failure::Close(CloseReason::Panicked)),
        }
    }

    /// Applies what can be integrated: of a proven update, and of what waited. Observers of the application
    /// run in here, and may make changes of their own in the same transaction. False where the update would
    /// have to wait, and too much waits.
    fn apply(&mut self, update: Option<&Update>) -> Result<bool, Failure> {
        let mut transaction =
            self.doc.try_transact_mut_with(self.origin.clone()).map_err(|_| Failure::Occupied)?;
        let mut journal = self.journal.take().unwrap_or_else(|| {
            self.applied = Mark::default();
            let state = from_yrs(&transaction.state_vector());
            Journal::of_document(self.limits.clone(), state, deleted_in(&transaction))
        });
        let is_kept = update.is_none_or(|update| journal.receive(update) != Received::Overflow);
        let log: Vec<_> = journal.updates_since(self.applied).into_iter().flatten().cloned().collect();
        let edits = &self.edits;
        let applied = catch_unwind(AssertUnwindSafe(move || {
            for update in &log {
                transaction.apply_update(yrs::Update::decode_v1(update).ok()?).ok()?;
            }
            // Before the end of the transaction runs observers.
            let integrated = transaction.encode_update_v1();
            edits.lock().applied = Some(integrated);
            drop(transaction);
            Some(())
        }));
        // Where nothing was changed, nothing was observed.
        self.edits.lock().applied = None;
        match applied {
            Ok(Some(())) => {
                self.applied = journal.mark();
                journal.forget_log();
                self.journal = Some(journal);
                Ok(is_kept)
            }
            Ok(None) => Err(Failure::Close(CloseReason::NotDecodable)),
            Err(_) => Err(Failure::Close(CloseReason::Panicked)),
        }
    }
}

impl Drop for Document {
    fn drop(&mut self) {
        // If that is not possible now, what stays behind does nothing.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            let _ = self.doc.unobserve_update_v1(self.origin.clone());
            let _ = self.doc.unobserve_transaction_cleanup(self.origin.clone());
            self.doc.unobserve_before_observer_calls(self.origin.clone())
        }));
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document").field("client_id", &self.doc.client_id()).finish_non_exhaustive()
    }
}

/// What was inserted and what deleted, by whomever.
#[derive(Debug, Clone, Default)]
struct Changes {
    inserts: IdSet,
    deletes: IdSet,
}

impl Changes {
    fn add(&mut self, update: &Update) {
        for (client, clocks) in update.inserts() {
            self.inserts.insert(client, clocks);
        }
        for (client, clocks) in update.deletes() {
            self.deletes.insert(client, clocks);
        }
    }

    /// Whether anything of it was there.
    fn remove(
        &mut self,
        inserts: impl IntoIterator<Item = (ClientId, std::ops::Range<u64>)>,
        deletes: impl IntoIterator<Item = (ClientId, std::ops::Range<u64>)>,
    ) -> bool {
        let inserted = self.inserts.remove_all(inserts);
        self.deletes.remove_all(deletes) || inserted
    }

    fn overlaps(&self, other: &Self) -> bool {
        let overlaps = |a: &IdSet, b: &IdSet| {
            a.iter().any(|(client, clocks)| {
                let len = clocks.end - clocks.start;
                b.gaps(client, clocks).map(|gap| gap.end - gap.start).sum::<u64>() < len
            })
        };
        overlaps(&self.inserts, &other.inserts) || overlaps(&self.deletes, &other.deletes)
    }

    /// Makes a state vector that of somebody who has not these.
    fn lower(&self, known: &mut StateVector) {
        for (client, clocks) in self.inserts.iter() {
            if known.clock(client) > clocks.start {
                known.set(client, clocks.start);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.inserts.is_empty() && self.deletes.is_empty()
    }
}

/// Whether an update says nothing beyond another, both written by yrs.
fn is_part_of(update: &[u8], whole: &[u8]) -> bool {
    if update == whole {
        return true;
    }
    // The end of a transaction merges structs and collects garbage, so the same may look different.
    let scan = |bytes: &[u8]| Update::scan(Bytes::copy_from_slice(bytes), &own_rules());
    let (Ok(update), Ok(whole)) = (scan(update), scan(whole)) else {
        return false;
    };
    let mut changes = Changes::default();
    changes.add(&update);
    changes.remove(whole.inserts(), whole.deletes());
    changes.is_empty()
}

fn deleted_in(transaction: &yrs::TransactionMut<'_>) -> IdSet {
    let mut deleted = IdSet::default();
    for (client, ranges) in transaction.snapshot().delete_set.iter() {
        let Some(client) = ClientId::new(client.get()) else { continue };
        for range in ranges.iter() {
            deleted.insert(client, range.start.into()..range.end.into());
        }
    }
    deleted
}

fn from_yrs(state_vector: &yrs::StateVector) -> StateVector {
    let clocks = state_vector.iter().map(|(client, clock)| (ClientId::new(client.get()), u64::from(*clock)));
    clocks.filter_map(|(client, clock)| Some((client?, clock))).collect()
}

/// For what the application's own yrs has written: only so much that it can be read.
fn own_rules() -> ScanRules {
    ScanRules { weak_links: true, ..ScanRules::default() }
}

impl Outputs<Output> {
    fn send(&mut self, frame: Bytes) {
        self.push(Output::Send { frame });
    }

    fn event(&mut self, event: Event) {
        self.push(Output::Event(event));
    }
}

/// Whoever announces presence to a client is its server.
const SERVER: ConnectionId = ConnectionId(0);

/// The first byte of a frame with presence.
const PRESENCE_TAG: u8 = 1;

const CLIENT_ID_END: u64 = 1 << 53;

const DEPTH_MAX: usize = 100;

/// Timers with shorter ones would do nothing else.
const DELAY_MIN: Duration = Duration::from_millis(1);

/// After how long a document is tried again that was occupied by a transaction; doubles.
const OCCUPIED_DELAY_MIN: Duration = Duration::from_millis(1);

const OCCUPIED_DELAY_MAX: Duration = Duration::from_millis(50);

/// Longest delay between two questions for what is not acknowledged.
const PROBE_DELAY_MAX: Duration = Duration::from_secs(60);

/// A server may ask for that much patience.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
