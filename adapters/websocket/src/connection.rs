//! A connection after its handshake: RFC 6455 sections 5 to 8.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use thiserror::Error;

use crate::Opcode;
use crate::deflate::{self, AgreedDeflate, Deflater, Inflater};
use crate::frame::{self, CONTROL_LEN_MAX, FrameKind, HEADER_LEN_MAX, Header, SplitMix64};

/// One WebSocket connection, from the end of its handshake to the end of its closing handshake.
///
/// ```text
///                   .--------.   peer's close: echoed         .--------.
///    Connection --> |  open  |------------------------------> |        |
///    ::new          |        |   violation: close sent        | closed |
///                   |        |   ping unanswered              |        |
///                   '--------'                                |        |
///                        | close()                            |        |
///                        v                                    |        |
///                   .---------.  peer's close, or violation   |        |
///                   | closing |------------------------------>|        |
///                   '---------'  close unanswered             '--------'
/// ```
///
/// Each arrow into *closed* returns [`Event::Closed`], exactly once. While *closing*, messages of the peer are
/// dropped (RFC 6455 section 1.4); once *closed*, all input is. What is sent in either state is dropped too.
///
/// After [`Event::Closed`], write what [`next_output`](Self::next_output) still has, shut down the write side,
/// read until the end of the stream (for a bounded time) and only then drop the socket: dropped with unread
/// input, TCP resets the connection, and the peer may lose the close frame (RFC 6455 section 7.1.1). A stream that
/// ends before this event was cut (section 7.1.5 calls it 1006); there is nothing left to do with it.
///
/// The memory of an idle connection is this value and nothing else. A payload that has arrived in part is
/// buffered as it comes, to at most twice its length: what a header announces allocates nothing. A compressed message
/// takes 48 KB more from its first byte to its last.
#[derive(Debug)]
#[repr(C)]
pub struct Connection {
    // What is asked for each frame that is sent comes first: whoever keeps many connections has the rest cold.
    deflate: Option<AgreedDeflate>,
    state: State,
    /// Whether nothing is held of a frame or of a message.
    is_between: bool,
    /// Whether there is something in `pong` or `output`.
    has_output: bool,
    /// Bytes in `header`; they are no complete header.
    header_len: u8,
    header: [u8; HEADER_LEN_MAX],
    config: Arc<Config>,
    /// Clients have a source of masks, servers, which have many connections, have none.
    masks: Option<Box<SplitMix64>>,
    /// When to ping, or to stop waiting for what `state` waits for.
    deadline: Option<Instant>,
    /// The frame whose payload has not all arrived.
    frame: Option<Frame>,
    /// The message whose last frame has not all arrived.
    message: Option<Message>,
    /// The payload, so far, of a control frame that has not all arrived.
    control: Vec<u8>,
    /// The newest ping that has no pong yet; RFC 6455 section 5.5.3 allows to leave the earlier ones.
    pong: Option<Bytes>,
    /// Frames to be written.
    output: Vec<u8>,
}

impl Connection {
    /// Starts a connection whose handshake is done, be it with this crate or by somebody else.
    ///
    /// Bytes that came behind the handshake are the first input of [`receive`](Self::receive).
    pub fn new(role: Role, config: impl Into<Arc<Config>>, now: Instant) -> Self {
        let config = config.into();
        let masks = match role {
            Role::Server => None,
            Role::Client { mask_seed } => Some(Box::new(SplitMix64(mask_seed))),
        };
        Self {
            deadline: config.ping_deadline(now),
            config,
            masks,
            deflate: None,
            state: State::Open,
            is_between: true,
            has_output: false,
            header: [0; HEADER_LEN_MAX],
            header_len: 0,
            frame: None,
            message: None,
            control: Vec::new(),
            pong: None,
            output: Vec::new(),
        }
    }

    /// Compresses messages from now on, and takes compressed ones, as the handshake has agreed.
    #[must_use]
    pub fn with_deflate(mut self, agreed: Option<AgreedDeflate>) -> Self {
        self.deflate = agreed;
        self
    }

    /// Reads from the front of `input` up to one event, and takes what it has read off `input`.
    ///
    /// `None` means that all of `input` is consumed. Payloads are unmasked in place, so `input` is scratch space
    /// afterwards. Nothing behind an event is looked at before the next call: when a later frame turns out to be
    /// bad, the answer to this one has left already, if the caller writes
    /// [`next_output`](Self::next_output) and its own answers after each event.
    #[must_use]
    pub fn receive(&mut self, now: Instant, input: &mut &mut [u8]) -> Option<Event> {
        if self.state == State::Closed || input.is_empty() {
            *input = &mut [];
            return None;
        }
        // Any byte is a sign of life. The time to answer our close, however, is not extended by other traffic.
        if self.is_open() {
            self.state = State::Open;
            self.deadline = self.config.ping_deadline(now);
            if self.is_between
                && let Some(message) = self.receive_whole(input)
            {
                return Some(Event::Binary(message));
            }
        }
        let received = self.receive_frames(input);
        self.is_between = self.header_len == 0 && self.frame.is_none() && self.message.is_none();
        match received {
            Ok(event) => event,
            Err(violation) => {
                if self.is_open() {
                    self.append_close(violation.code(), &violation.to_string());
                }
                Some(self.end(Closed::Violation(violation)))
            }
        }
    }

    /// Sends a text message, framed and queued for [`next_output`](Self::next_output).
    pub fn send_text(&mut self, text: &str) {
        self.send(Opcode::Text, text.as_bytes());
    }

    /// Sends a binary message, framed and queued for [`next_output`](Self::next_output).
    ///
    /// A server that sends one message to many peers calls [`encode_frame`](crate::encode_frame) instead, and
    /// [`Deflater::encode_frame`]: here the memory to compress is taken and returned for each message.
    pub fn send_binary(&mut self, payload: &[u8]) {
        self.send(Opcode::Binary, payload);
    }

    /// Sends a ping with a payload of up to 125 bytes; the rest is cut off (RFC 6455 section 5.5.2).
    ///
    /// To keep a connection alive, [`Config::ping_interval`] does this by itself.
    pub fn ping(&mut self, payload: &[u8]) {
        if self.is_open() {
            self.append(FrameKind::Ping, &payload[..payload.len().min(CONTROL_LEN_MAX)]);
        }
    }

    /// Starts the closing handshake (RFC 6455 section 7.1.2); does nothing if it has started already.
    ///
    /// The reason is cut at a character boundary to the 123 bytes for which a close frame has room. The peer's
    /// answer, or its absence for [`Config::close_timeout`], is an [`Event::Closed`].
    pub fn close(&mut self, now: Instant, code: CloseCode, reason: &str) {
        if !self.is_open() {
            return;
        }
        self.append_close(code, reason);
        self.state = State::Closing;
        self.deadline = now.checked_add(self.config.close_timeout);
        if let Some(message) = &mut self.message {
            message.discard();
        }
    }

    /// Returns bytes to write, in order, until there are none.
    ///
    /// A pong comes first, then everything that was sent since the last call, as one piece. Behind frames of the
    /// caller's own ([`encode_frame`](crate::encode_frame)) it has to keep its place: a close frame is the last.
    pub fn next_output(&mut self) -> Option<Bytes> {
        if !self.has_output {
            return None;
        }
        if let Some(payload) = self.pong.take() {
            let mut pong = Vec::new();
            frame::append_frame(&mut pong, FrameKind::Pong, &payload, self.masks.as_deref_mut());
            self.has_output = !self.output.is_empty();
            return Some(Bytes::from(pong));
        }
        self.has_output = false;
        Some(Bytes::from(mem::take(&mut self.output)))
    }

    /// Whether [`next_output`](Self::next_output) has something.
    #[must_use]
    pub fn has_output(&self) -> bool {
        self.has_output
    }

    /// Does what is due at [`next_timeout`](Self::next_timeout): sends a ping, or gives up waiting.
    ///
    /// Calling it early or twice is harmless.
    #[must_use]
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Event> {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return None;
        }
        match self.state {
            State::Open => {
                self.append(FrameKind::Ping, &[]);
                self.state = State::Pinged;
                self.deadline = now.checked_add(self.config.pong_timeout);
                None
            }
            State::Pinged => Some(self.end(Closed::PongTimeout)),
            State::Closing => Some(self.end(Closed::CloseTimeout)),
            State::Closed => None,
        }
    }

    /// Returns when to call [`handle_timeout`](Self::handle_timeout), if ever.
    ///
    /// While bytes arrive, this only moves later; a timer that was set to an earlier answer may be left to fire.
    /// It moves earlier after [`close`](Self::close).
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether messages may be sent: no close frame was sent or received, and the peer is not given up.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open | State::Pinged)
    }

    /// Whether our close frame waits for the peer's.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.state == State::Closing
    }

    /// Whether the connection has ended, and [`Event::Closed`] was returned.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// What the handshake has agreed on compression, if anything.
    #[must_use]
    pub fn deflate(&self) -> Option<AgreedDeflate> {
        self.deflate
    }

    /// Reads a binary message that is there as a whole, in one frame and not compressed: most are. Whatever else it is,
    /// or wrong with it, is for [`receive_frames`](Self::receive_frames).
    fn receive_whole(&mut self, input: &mut &mut [u8]) -> Option<Bytes> {
        let (header, header_len) = Header::parse(input, self.masks.is_none(), false).ok()??;
        let payload_len = usize::try_from(header.payload_len).ok()?;
        if header.kind != FrameKind::message(Opcode::Binary)
            || !header.fin
            || payload_len > self.config.frame_len_max.min(self.config.message_len_max)
            || payload_len > input.len() - header_len
        {
            return None;
        }
        let payload = &mut take_front(input, header_len + payload_len)[header_len..];
        if let Some(mask) = header.mask {
            frame::apply_mask(mask, payload);
        }
        Some(Bytes::copy_from_slice(payload))
    }

    fn receive_frames(&mut self, input: &mut &mut [u8]) -> Result<Option<Event>, Violation> {
        loop {
            let frame = match self.frame.take() {
                Some(frame) => frame,
                None => match self.receive_header(input)? {
                    Some(frame) => frame,
                    None => return Ok(None),
                },
            };
            let event = self.receive_payload(frame, input)?;
            if event.is_some() || self.frame.is_some() {
                return Ok(event);
            }
        }
    }

    /// Reads a header, or as much of it as there is, and checks that it may stand here.
    fn receive_header(&mut self, input: &mut &mut [u8]) -> Result<Option<Frame>, Violation> {
        let held = usize::from(self.header_len);
        let copied = input.len().min(HEADER_LEN_MAX - held);
        self.header[held..held + copied].copy_from_slice(&input[..copied]);
        let masked = self.masks.is_none();
        let Some((header, len)) =
            Header::parse(&self.header[..held + copied], masked, self.deflate.is_some())?
        else {
            // A header is complete within its maximal length, so all of `input` went into it.
            self.header_len += copied as u8;
            *input = &mut [];
            return Ok(None);
        };
        self.header_len = 0;
        take_front(input, len - held);

        match (header.kind, &mut self.message) {
            (FrameKind::Close | FrameKind::Ping | FrameKind::Pong, _) => {}
            (FrameKind::Continuation, None) => return Err(Violation::UnexpectedContinuation),
            (FrameKind::Message { .. }, Some(_)) => return Err(Violation::ExpectedContinuation),
            (FrameKind::Continuation, Some(message)) => {
                message.fragments += 1;
                if message.fragments > self.config.fragments_max {
                    return Err(Violation::TooManyFragments);
                }
            }
            (FrameKind::Message { opcode: Opcode::Text, .. }, None) if self.config.text_refused => {
                return Err(Violation::TextRefused);
            }
            (FrameKind::Message { opcode, is_deflated }, None) => {
                self.message = Some(Message::new(opcode, is_deflated));
            }
        }
        let missing = usize::try_from(header.payload_len).map_err(|_| Violation::FrameTooLong)?;
        if !header.kind.is_control() {
            if missing > self.config.frame_len_max {
                return Err(Violation::FrameTooLong);
            }
            // How long a compressed message becomes is seen as it comes.
            let plain = self.message.as_ref().filter(|message| !message.is_deflated);
            let held = plain.map_or(0, |message| message.payload.len());
            if plain.is_some() && missing > self.config.message_len_max.saturating_sub(held) {
                return Err(Violation::MessageTooLong);
            }
        }
        Ok(Some(Frame { kind: header.kind, fin: header.fin, mask: header.mask, missing }))
    }

    /// Reads the payload of `frame`, or as much of it as there is.
    fn receive_payload(
        &mut self,
        mut frame: Frame,
        input: &mut &mut [u8],
    ) -> Result<Option<Event>, Violation> {
        let part = take_front(input, frame.missing.min(input.len()));
        frame.missing -= part.len();
        if let Some(mask) = &mut frame.mask {
            frame::apply_mask(*mask, part);
            mask.rotate_left(part.len() % 4);
        }

        if frame.kind.is_control() {
            self.control.extend_from_slice(part);
        } else if let Some(message) = &mut self.message
            && self.state != State::Closing
        {
            match message.is_deflated {
                true => message.inflate(part, &self.config)?,
                false => message.push(part, &frame)?,
            }
        }

        if frame.missing > 0 {
            self.frame = Some(frame);
            return Ok(None);
        }
        match frame.kind {
            FrameKind::Continuation | FrameKind::Message { .. } => {
                match self.message.take_if(|_| frame.fin) {
                    Some(message) if self.is_open() => message.finish(&self.config).map(Some),
                    _ => Ok(None),
                }
            }
            FrameKind::Close => {
                let payload = Bytes::from(mem::take(&mut self.control));
                self.receive_close(&payload).map(Some)
            }
            FrameKind::Ping => {
                let payload = Bytes::from(mem::take(&mut self.control));
                if !self.is_open() {
                    return Ok(None);
                }
                self.pong = Some(payload.clone());
                self.has_output = true;
                Ok(Some(Event::Ping(payload)))
            }
            FrameKind::Pong => {
                let payload = Bytes::from(mem::take(&mut self.control));
                Ok(self.is_open().then_some(Event::Pong(payload)))
            }
        }
    }

    fn receive_close(&mut self, payload: &Bytes) -> Result<Event, Violation> {
        let close = CloseFrame::parse(payload)?;
        if !self.is_open() {
            return Ok(self.end(Closed::ByUs(close)));
        }
        // RFC 6455 section 5.5.1: the answer typically echoes the status code.
        match &close {
            Some(close) => self.append_close(close.code, ""),
            None => self.append(FrameKind::Close, &[]),
        }
        Ok(self.end(Closed::ByPeer(close)))
    }

    fn send(&mut self, opcode: Opcode, payload: &[u8]) {
        if !self.is_open() {
            return;
        }
        match self.deflate.filter(|agreed| agreed.applies_to(payload.len())) {
            None => self.append(FrameKind::message(opcode), payload),
            Some(agreed) => {
                let mut deflated = Vec::new();
                Deflater::new().append(agreed, payload, &mut deflated);
                self.append(FrameKind::Message { opcode, is_deflated: true }, &deflated);
            }
        }
    }

    fn append_close(&mut self, code: CloseCode, reason: &str) {
        let mut reason_len = reason.len().min(CONTROL_LEN_MAX - 2);
        while !reason.is_char_boundary(reason_len) {
            reason_len -= 1;
        }
        let mut payload = u16::from(code).to_be_bytes().to_vec();
        payload.extend_from_slice(&reason.as_bytes()[..reason_len]);
        self.append(FrameKind::Close, &payload);
    }

    fn append(&mut self, kind: FrameKind, payload: &[u8]) {
        self.has_output = true;
        frame::append_frame(&mut self.output, kind, payload, self.masks.as_deref_mut());
    }

    /// Enters the closed state, in which nothing is buffered and nothing is due.
    fn end(&mut self, closed: Closed) -> Event {
        self.state = State::Closed;
        self.deadline = None;
        self.frame = None;
        self.message = None;
        self.control = Vec::new();
        Event::Closed(closed)
    }
}

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Receives masked frames and sends unmasked ones.
    Server,
    /// Sends masked frames and receives unmasked ones.
    Client {
        /// Determines the masks. Draw it from a source that cannot be guessed, a new one per connection: masks
        /// exist so that a page's script cannot choose the bytes on the wire (RFC 6455 section 10.3). They are not
        /// cryptographic: who sees some of them can compute the next, which does not matter to a client that runs
        /// only its own code.
        mask_seed: u64,
    },
}

/// Limits and delays of a connection; share one [`Arc`] among all connections of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The longest payload of a received data frame, in bytes on the wire; a longer one closes with 1009. 64 MiB by
    /// default.
    pub frame_len_max: usize,
    /// The longest received message, in bytes, decompressed if need be; a longer one closes with 1009. 64 MiB by
    /// default.
    pub message_len_max: usize,
    /// In how many frames one received message may come; more of them close with 1009. 65,536 by default. What
    /// follows the end of a compressed stream within a message counts as one more.
    pub fragments_max: u32,
    /// Whether a text message closes with 1003, because the application speaks only binary. `false` by default.
    pub text_refused: bool,
    /// After how long without a received byte a ping is sent; `None`: never, and so a dead peer is never noticed.
    /// 30 s by default.
    pub ping_interval: Option<Duration>,
    /// How long after that ping the peer may take to send any byte. 30 s by default.
    pub pong_timeout: Duration,
    /// How long the peer may take to answer our close frame. 5 s by default.
    pub close_timeout: Duration,
}

impl Config {
    fn ping_deadline(&self, now: Instant) -> Option<Instant> {
        now.checked_add(self.ping_interval?)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            frame_len_max: 64 << 20,
            message_len_max: 64 << 20,
            fragments_max: 1 << 16,
            text_refused: false,
            ping_interval: Some(Duration::from_secs(30)),
            pong_timeout: Duration::from_secs(30),
            close_timeout: Duration::from_secs(5),
        }
    }
}

/// What the peer sent, or what became of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Event {
    /// A binary message, however many frames it came in.
    Binary(Bytes),
    /// A text message, however many frames it came in.
    Text(Text),
    /// A ping; its pong is in the output already. At most 125 bytes.
    Ping(Bytes),
    /// A pong, asked for or not (RFC 6455 section 5.5.3); nothing needs to be done. At most 125 bytes.
    Pong(Bytes),
    /// The end; no event follows. What remains to be done is written at [`Connection`].
    Closed(Closed),
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The peer sent this close frame, `None` if without a status code (1005); its echo is in the output.
    ByPeer(Option<CloseFrame>),
    /// We closed, and this is the peer's close frame: its answer, or its own if both closed at once.
    ByUs(Option<CloseFrame>),
    /// The peer broke the protocol or a limit. Unless we had closed before, a close frame with
    /// [`Violation::code`] is in the output.
    Violation(Violation),
    /// Our close frame was not answered within [`Config::close_timeout`].
    CloseTimeout,
    /// Nothing at all came within [`Config::pong_timeout`] after a ping: the peer is dead or unreachable.
    PongTimeout,
}

/// The content of a close frame that has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseFrame {
    /// Why the peer closes.
    pub code: CloseCode,
    /// The same for people, at most 123 bytes; often empty.
    pub reason: Text,
}

impl CloseFrame {
    fn parse(payload: &Bytes) -> Result<Option<Self>, Violation> {
        let Some((code, _)) = payload.split_first_chunk() else {
            return if payload.is_empty() { Ok(None) } else { Err(Violation::ClosePayload) };
        };
        let code = u16::from_be_bytes(*code);
        let code = CloseCode::new(code).ok_or(Violation::CloseCode(code))?;
        let reason = Text::try_from(payload.slice(2..)).map_err(|_| Violation::InvalidUtf8)?;
        Ok(Some(Self { code, reason }))
    }
}

/// A status code that may stand in a close frame (RFC 6455 section 7.4 and its registry).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CloseCode(u16);

impl CloseCode {
    /// 1000: the purpose of the connection is fulfilled.
    pub const NORMAL: Self = Self(1000);
    /// 1001: the server goes down, or the browser leaves the page.
    pub const GOING_AWAY: Self = Self(1001);
    /// 1002: the peer broke the WebSocket protocol.
    pub const PROTOCOL_ERROR: Self = Self(1002);
    /// 1003: this kind of data is not accepted.
    pub const UNSUPPORTED_DATA: Self = Self(1003);
    /// 1007: the data is not what its type says, for instance text that is not UTF-8.
    pub const INVALID_PAYLOAD: Self = Self(1007);
    /// 1008: against the rules of the application, when no other code fits.
    pub const POLICY_VIOLATION: Self = Self(1008);
    /// 1009: the message is too big to be processed.
    pub const MESSAGE_TOO_BIG: Self = Self(1009);
    /// 1011: the server met a condition that it did not expect.
    pub const INTERNAL_ERROR: Self = Self(1011);
    /// 1012: the server restarts; come back after a while.
    pub const SERVICE_RESTART: Self = Self(1012);
    /// 1013: the server is overloaded; come back later.
    pub const TRY_AGAIN_LATER: Self = Self(1013);

    /// Returns the code if it may be sent: 1000 to 1014 without 1004, 1005 and 1006, and 3000 to 4999.
    #[must_use]
    pub const fn new(code: u16) -> Option<Self> {
        match code {
            1000..=1003 | 1007..=1014 | 3000..=4999 => Some(Self(code)),
            _ => None,
        }
    }
}

impl From<CloseCode> for u16 {
    fn from(code: CloseCode) -> Self {
        code.0
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a peer did that fails its connection (RFC 6455 section 7.1.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Violation {
    /// A reserved bit is set that means nothing there (section 5.2, and section 6 of RFC 7692).
    #[error("a reserved bit is set")]
    ReservedBits,
    /// The opcode has no meaning (section 5.2).
    #[error("opcode {0:#x} is reserved")]
    ReservedOpcode(u8),
    /// A client sent an unmasked frame (section 5.1).
    #[error("a client's frame is not masked")]
    Unmasked,
    /// A server sent a masked frame (section 5.1).
    #[error("a server's frame is masked")]
    Masked,
    /// A control frame is not final (section 5.5).
    #[error("a control frame is fragmented")]
    ControlFragmented,
    /// A control frame has more than 125 bytes (section 5.5).
    #[error("a control frame is longer than 125 bytes")]
    ControlTooLong,
    /// A length is encoded in more bytes than it needs (section 5.2).
    #[error("a length is not minimally encoded")]
    LengthNotMinimal,
    /// A length is 2^63 or more (section 5.2).
    #[error("a length has its highest bit set")]
    LengthOverflow,
    /// A continuation with nothing to continue (section 5.4).
    #[error("a continuation frame continues nothing")]
    UnexpectedContinuation,
    /// A message began within another (section 5.4).
    #[error("a message begins within another")]
    ExpectedContinuation,
    /// A close frame has a payload of one byte (section 5.5.1).
    #[error("a close frame has half a status code")]
    ClosePayload,
    /// A close frame has a status code that must not be sent (section 7.4).
    #[error("status code {0} must not be sent")]
    CloseCode(u16),
    /// A text message, or the reason of a close frame, is not UTF-8 (section 8.1).
    #[error("text is not UTF-8")]
    InvalidUtf8,
    /// A compressed message does not decompress (RFC 7692 section 7.2.2).
    #[error("a compressed message does not decompress")]
    InvalidDeflate,
    /// A text message, where [`Config::text_refused`].
    #[error("text messages are not accepted")]
    TextRefused,
    /// A frame is longer than [`Config::frame_len_max`].
    #[error("a frame is too long")]
    FrameTooLong,
    /// A message is longer than [`Config::message_len_max`].
    #[error("a message is too long")]
    MessageTooLong,
    /// A message comes in more frames than [`Config::fragments_max`].
    #[error("a message has too many fragments")]
    TooManyFragments,
}

impl Violation {
    /// The status code of the close frame that answers it (RFC 6455 section 7.4.1).
    #[must_use]
    pub fn code(self) -> CloseCode {
        match self {
            Self::ReservedBits
            | Self::ReservedOpcode(_)
            | Self::Unmasked
            | Self::Masked
            | Self::ControlFragmented
            | Self::ControlTooLong
            | Self::LengthNotMinimal
            | Self::LengthOverflow
            | Self::UnexpectedContinuation
            | Self::ExpectedContinuation
            | Self::ClosePayload
            | Self::CloseCode(_) => CloseCode::PROTOCOL_ERROR,
            // RFC 7692 says only that the connection fails. The frames are in order, and the data is not what it
            // is said to be.
            Self::InvalidUtf8 | Self::InvalidDeflate => CloseCode::INVALID_PAYLOAD,
            Self::TextRefused => CloseCode::UNSUPPORTED_DATA,
            Self::FrameTooLong | Self::MessageTooLong | Self::TooManyFragments => CloseCode::MESSAGE_TOO_BIG,
        }
    }
}

/// Bytes that are known to be UTF-8.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(Bytes);

impl Text {
    /// Returns the text as a string slice, in time linear in its length.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Without unsafe code, the proof that was made at construction has to be repeated.
        str::from_utf8(&self.0).expect("a Text is only made of bytes that were checked")
    }

    /// Returns the bytes, without a copy.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl TryFrom<Bytes> for Text {
    type Error = std::str::Utf8Error;

    fn try_from(bytes: Bytes) -> Result<Self, Self::Error> {
        str::from_utf8(&bytes)?;
        Ok(Self(bytes))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(Bytes::from(text))
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Open, and nothing came since a ping was sent.
    Pinged,
    Closing,
    Closed,
}

/// A frame whose header was read.
#[derive(Debug)]
struct Frame {
    kind: FrameKind,
    fin: bool,
    /// The mask, turned to the next byte of the payload.
    mask: Option<[u8; 4]>,
    /// Bytes of the payload that have not arrived.
    missing: usize,
}

/// A message on its way.
#[derive(Debug)]
struct Message {
    opcode: Opcode,
    is_deflated: bool,
    fragments: u32,
    /// Of a compressed message, from its first byte on.
    inflater: Option<Box<Inflater>>,
    /// Decompressed, if need be.
    payload: Vec<u8>,
    /// How much of a text's payload is UTF-8; what is behind it is the beginning of one character.
    utf8_len: usize,
}

impl Message {
    fn new(opcode: Opcode, is_deflated: bool) -> Self {
        Self { opcode, is_deflated, fragments: 1, inflater: None, payload: Vec::new(), utf8_len: 0 }
    }

    /// Adds bytes, and checks them at once if they are text (RFC 6455 section 8.1).
    fn push(&mut self, part: &[u8], frame: &Frame) -> Result<(), Violation> {
        // Of the last frame the end is known: grow to it and not beyond, but at most to twice what has arrived.
        // A message that arrives in one piece is one allocation of its length.
        if frame.fin && part.len() > self.payload.capacity() - self.payload.len() {
            let arrived = self.payload.len() + part.len();
            self.payload.reserve_exact(part.len() + frame.missing.min(arrived));
        }
        self.payload.extend_from_slice(part);
        self.check_text()
    }

    /// Adds what `part` decompresses to, piece by piece: a bad byte and a length beyond the limit are found in the
    /// order in which they come, however the bytes arrive.
    fn inflate(&mut self, mut part: &[u8], config: &Config) -> Result<(), Violation> {
        loop {
            let inflater = self.inflater.get_or_insert_with(|| Box::new(Inflater::new()));
            if inflater.is_at_end() {
                if part.is_empty() {
                    return Ok(());
                }
                // It costs the copy of a window: too much for two bytes of a peer.
                self.fragments += 1;
                if self.fragments > config.fragments_max {
                    return Err(Violation::TooManyFragments);
                }
                inflater.resume(&self.payload)?;
            }
            let len_max = config.message_len_max.saturating_add(1);
            let goes_on = inflater.inflate(&mut part, &mut self.payload, len_max);
            self.check_text()?;
            if self.payload.len() > config.message_len_max {
                return Err(Violation::MessageTooLong);
            }
            if !goes_on? {
                return Ok(());
            }
        }
    }

    /// Checks what was added, if it is text.
    fn check_text(&mut self) -> Result<(), Violation> {
        if self.opcode == Opcode::Text {
            match str::from_utf8(&self.payload[self.utf8_len..]) {
                Ok(_) => self.utf8_len = self.payload.len(),
                Err(error) if error.error_len().is_none() => self.utf8_len += error.valid_up_to(),
                Err(_) => return Err(Violation::InvalidUtf8),
            }
        }
        Ok(())
    }

    fn finish(mut self, config: &Config) -> Result<Event, Violation> {
        if self.is_deflated {
            let len = self.payload.len();
            self.inflate(&deflate::END, config)?;
            let is_at_end = self.inflater.take().is_some_and(|inflater| inflater.is_at_end());
            if !is_at_end || self.payload.len() > len {
                return Err(Violation::InvalidDeflate);
            }
        }
        // The application may keep it for long: without spare capacity, which only fragments leave.
        let payload = Bytes::from(self.payload.into_boxed_slice());
        match self.opcode {
            Opcode::Binary => Ok(Event::Binary(payload)),
            Opcode::Text if self.utf8_len == payload.len() => Ok(Event::Text(Text(payload))),
            Opcode::Text => Err(Violation::InvalidUtf8),
        }
    }

    /// Forgets the payload; the frames that are still to come are read and dropped.
    fn discard(&mut self) {
        self.inflater = None;
        self.payload = Vec::new();
        self.utf8_len = 0;
    }
}

fn take_front<'a>(input: &mut &'a mut [u8], len: usize) -> &'a mut [u8] {
    let (front, rest) = mem::take(input).split_at_mut(len);
    *input = rest;
    front
}
