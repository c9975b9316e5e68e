//! The HTTP/1.1 upgrade, both ends: RFC 6455 section 4.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::mem;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use sha1::{Digest, Sha1};
use thiserror::Error;

use crate::deflate::{self, AgreedDeflate, Deflate};
use crate::frame::SplitMix64;

/// Limits on the head of an HTTP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeLimits {
    /// The longest head, in bytes, from the first line to the empty one. 16 KiB by default.
    ///
    /// A head that comes byte by byte is parsed anew for each byte, so this also bounds the work: at 16 KiB it
    /// is about what the system calls cost that bring the bytes.
    pub head_bytes_max: usize,
    /// How many headers there may be. 64 by default.
    pub headers_max: usize,
}

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self { head_bytes_max: 16 << 10, headers_max: 64 }
    }
}

/// Reads the request that opens a connection: the server's side of RFC 6455 section 4.2.1.
///
/// ```text
///    receive(bytes) --> None: give it more
///                  '--> Some(Request) --> upgrade() --> accept() --> 101, then Connection::new
///                  |                 |             '--> a Refusal of the application's own
///                  |                 '--> Err(Refusal): 400, 405, 426, 505
///                  '--> Err(Refusal): 400, 431, 505
/// ```
///
/// Whoever sends half a request and then nothing is for the caller to notice: give the handshake a deadline.
#[derive(Debug)]
pub struct Acceptor {
    limits: HandshakeLimits,
    deflate: Option<Deflate>,
    received: Vec<u8>,
}

impl Acceptor {
    /// Waits for a request; memory is taken only as bytes arrive.
    #[must_use]
    pub fn new(limits: HandshakeLimits) -> Self {
        Self { limits, deflate: None, received: Vec::new() }
    }

    /// Lets messages be compressed where the client offers it (RFC 7692); without this they are not.
    #[must_use]
    pub fn with_deflate(mut self, deflate: Option<Deflate>) -> Self {
        self.deflate = deflate;
        self
    }

    /// Takes bytes, in any pieces, and returns the request once its head is complete.
    ///
    /// What came behind the head is in [`Request::into_rest`].
    ///
    /// # Errors
    ///
    /// The answer to what is no HTTP/1 request (400, 505) or exceeds the limits (431).
    pub fn receive(&mut self, input: &[u8]) -> Result<Option<Request>, Refusal> {
        self.received.extend_from_slice(input);
        let mut headers = vec![httparse::EMPTY_HEADER; self.limits.headers_max];
        let mut parsed = httparse::Request::new(&mut headers);
        // Nothing beyond the limit is looked at, so it does not matter in which pieces the bytes come.
        let head = &self.received[..self.received.len().min(self.limits.head_bytes_max)];
        let head_len = match parsed.parse(head) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) if head.len() < self.limits.head_bytes_max => return Ok(None),
            Ok(httparse::Status::Partial) => {
                return Err(Refusal::because(431, "the head of the request is too long"));
            }
            Err(httparse::Error::TooManyHeaders) => {
                return Err(Refusal::because(431, "the request has too many headers"));
            }
            Err(httparse::Error::Version) => {
                return Err(Refusal::because(505, "this is not a version of HTTP/1"));
            }
            Err(_) => return Err(Refusal::because(400, "this is not an HTTP request")),
        };
        let (path, query) = split_target(parsed.path.unwrap_or_default());
        let headers = Headers::new(parsed.headers);
        let deflate = self.deflate.and_then(|deflate| deflate.accept(&headers.extensions()?));
        Ok(Some(Request {
            method: parsed.method.unwrap_or_default().to_owned(),
            path: path.to_owned(),
            query: query.map(str::to_owned),
            headers,
            version: parsed.version.unwrap_or_default(),
            deflate,
            rest: mem::take(&mut self.received).split_off(head_len),
        }))
    }
}

/// The head of a request, upgrade or not.
///
/// Browsers let any page open a WebSocket to any server, with the user's cookies: where those matter, the
/// application compares the header `Origin` (RFC 6455 section 10.2).
#[derive(Clone, Debug)]
pub struct Request {
    /// The method, as sent: `GET` if it is an upgrade.
    pub method: String,
    /// The path, as sent: still percent-encoded, without the query; of an absolute URI only the path.
    pub path: String,
    /// What follows the first `?` of the target, still percent-encoded.
    pub query: Option<String>,
    /// The headers, as sent.
    pub headers: Headers,
    /// The minor version of HTTP/1.
    version: u8,
    /// The extension that the response names, and what that means.
    deflate: Option<(String, AgreedDeflate)>,
    rest: Vec<u8>,
}

impl Request {
    /// Returns the value of the first header of this name, unless it is not UTF-8.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    /// Returns the subprotocols that the client offers, those it prefers first.
    pub fn subprotocols(&self) -> impl Iterator<Item = &str> {
        self.headers.list("sec-websocket-protocol")
    }

    /// Returns what is agreed on compression once the request is [accepted](Self::accept): `None` unless the
    /// [acceptor](Acceptor::with_deflate) allows for it and the client offers something that can be met.
    #[must_use]
    pub fn deflate(&self) -> Option<AgreedDeflate> {
        self.deflate.as_ref().map(|(_, agreed)| *agreed)
    }

    /// Checks that this is a request to speak WebSocket, version 13 (RFC 6455 section 4.2.1).
    ///
    /// # Errors
    ///
    /// The answer that the client deserves. An application that serves other requests too looks at them
    /// when this fails, and answers with a [`Refusal`] of its own.
    pub fn upgrade(&self) -> Result<(), Refusal> {
        self.key().map(drop)
    }

    /// Returns the response that accepts the upgrade (RFC 6455 section 4.2.2); after it, the connection is a
    /// [`Connection`](crate::Connection), [with](crate::Connection::with_deflate) what [`deflate`](Self::deflate) says.
    ///
    /// `headers` are additions such as `Set-Cookie`, not the ones that make the handshake.
    ///
    /// # Errors
    ///
    /// If this is no upgrade, or the caller's subprotocol or headers do not fit; nothing is lost, and the caller
    /// may try again.
    pub fn accept(&self, subprotocol: Option<&str>, headers: &[(&str, &str)]) -> Result<Bytes, AcceptError> {
        let accept = accept_for(self.key()?);
        let mut response = format!(
            "HTTP/1.1 101 Switching Protocols\r\n\
             Upgrade: websocket\r\n\
             Connection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n"
        );
        if let Some((extension, _)) = &self.deflate {
            append_header(&mut response, "Sec-WebSocket-Extensions", extension)?;
        }
        if let Some(subprotocol) = subprotocol {
            // Also keeps out what may not stand in a header: it came in one.
            if !self.subprotocols().any(|offered| offered == subprotocol) {
                return Err(AcceptError::SubprotocolNotOffered);
            }
            append_header(&mut response, "Sec-WebSocket-Protocol", subprotocol)?;
        }
        for (name, value) in headers {
            append_header(&mut response, name, value)?;
        }
        response.push_str("\r\n");
        Ok(Bytes::from(response))
    }

    /// Returns the bytes that came behind the head: the first input of the connection.
    #[must_use]
    pub fn into_rest(self) -> Vec<u8> {
        self.rest
    }

    /// The key, if all that RFC 6455 section 4.2.1 demands is there.
    fn key(&self) -> Result<&str, Refusal> {
        if self.method != "GET" {
            return Err(Refusal::because(405, "only GET is possible").and("Allow", "GET"));
        }
        if self.version == 0 {
            return Err(Refusal::because(505, "HTTP/1.0 has no upgrade"));
        }
        if !self.headers.has_token("upgrade", "websocket") || !self.headers.has_token("connection", "upgrade")
        {
            return Err(Refusal::upgrade_required("this is a WebSocket endpoint"));
        }
        if self.headers.only("host").is_none() {
            return Err(Refusal::because(400, "one header Host is required"));
        }
        if self.headers.only("sec-websocket-version") != Some("13") {
            return Err(Refusal::upgrade_required("only version 13 of WebSocket is spoken here")
                .and("Sec-WebSocket-Version", "13"));
        }
        // RFC 6455 section 9.1 wants no offer of such a client to be looked at.
        if self.headers.extensions().is_none() {
            return Err(Refusal::because(400, "the header Sec-WebSocket-Extensions is malformed"));
        }
        self.headers
            .only("sec-websocket-key")
            .filter(|key| is_nonce(key))
            .ok_or_else(|| Refusal::because(400, "one header Sec-WebSocket-Key of 16 bytes is required"))
    }
}

/// Why a request could not be accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// The request is no proper upgrade; this is the answer it deserves.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The client did not offer the subprotocol, so it would fail the connection (RFC 6455 section 4.1).
    #[error("the client did not offer this subprotocol")]
    SubprotocolNotOffered,
    /// A header of the caller cannot be sent.
    #[error(transparent)]
    InvalidHeader(#[from] InvalidHeader),
}

/// An HTTP response other than the upgrade; the connection ends with it.
///
/// The application makes its own: 401, 403, 404 and 503 for clients to stay away, 200 for a health check.
///
/// ```
/// use yrs_websocket_rfc6455::Refusal;
///
/// let refusal = Refusal::new(503).with_header("Retry-After", "5")?.with_body("text/plain", "full\n")?;
/// assert_eq!(
///     refusal.to_bytes(),
///     "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 5\r\n\
///      Content-Type: text/plain\r\nContent-Length: 5\r\n\r\nfull\n"
/// );
/// # Ok::<(), yrs_websocket_rfc6455::InvalidHeader>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the upgrade is refused with HTTP status {status}")]
pub struct Refusal {
    status: u16,
    /// Header lines, each with its line end.
    headers: String,
    body: Bytes,
}

impl Refusal {
    /// Makes a response without a body.
    ///
    /// `status` is one that ends a request: 200 to 599. Any other becomes 500.
    #[must_use]
    pub fn new(status: u16) -> Self {
        let status = if (200..600).contains(&status) { status } else { 500 };
        Self { status, headers: String::new(), body: Bytes::new() }
    }

    /// Adds a header; `Connection` and `Content-Length` are there already.
    ///
    /// # Errors
    ///
    /// If the name is no token, or the value has control characters.
    pub fn with_header(mut self, name: &str, value: &str) -> Result<Self, InvalidHeader> {
        append_header(&mut self.headers, name, value)?;
        Ok(self)
    }

    /// Sets the body and adds the header `Content-Type`.
    ///
    /// # Errors
    ///
    /// If the content type cannot stand in a header.
    pub fn with_body(self, content_type: &str, body: impl Into<Bytes>) -> Result<Self, InvalidHeader> {
        let mut refusal = self.with_header("Content-Type", content_type)?;
        refusal.body = body.into();
        Ok(refusal)
    }

    /// Returns the whole response. Close the connection after it as after a close frame: write, shut down the
    /// write side, read to the end.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let Self { status, headers, body } = self;
        let phrase = reason_phrase(*status);
        let body_len = body.len();
        let head = format!(
            "HTTP/1.1 {status} {phrase}\r\nConnection: close\r\n{headers}Content-Length: {body_len}\r\n\r\n"
        );
        Bytes::from([head.as_bytes(), body].concat())
    }

    /// Returns the HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Returns the body.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    fn because(status: u16, sentence: &'static str) -> Self {
        let refusal = Self::new(status).and("Content-Type", "text/plain; charset=utf-8");
        Self { body: Bytes::from(format!("{sentence}\n")), ..refusal }
    }

    /// RFC 9110 sections 7.8 and 15.5.22: a 426 names the protocol, and the connection option that goes with it.
    fn upgrade_required(sentence: &'static str) -> Self {
        Self::because(426, sentence).and("Connection", "Upgrade").and("Upgrade", "websocket")
    }

    /// Adds a header that is known to be valid.
    fn and(mut self, name: &'static str, value: &'static str) -> Self {
        append_header(&mut self.headers, name, value).expect("the literals in this file are valid headers");
        self
    }
}

/// A header that cannot be sent: its name is no token, or its value has control characters.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("header {name:?} has an invalid name or value")]
pub struct InvalidHeader {
    /// The name of the header.
    pub name: String,
}

/// What a client asks for: the parts of the request of RFC 6455 section 4.1 that the caller chooses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientRequest {
    /// The host and, unless it is the scheme's default, `:port`.
    pub host: String,
    /// The path and perhaps `?query`, percent-encoded; begins with `/`.
    pub target: String,
    /// The subprotocols to offer, the preferred one first, without repetition.
    pub subprotocols: Vec<String>,
    /// More headers, such as `Authorization`; not the ones that make the handshake.
    pub headers: Vec<(String, String)>,
}

/// Asks for the upgrade and verifies the answer: the client's side of RFC 6455 section 4.1.
///
/// ```text
///    new --> request() is written --> receive(bytes) --> None: give it more
///                                                   '--> Some(Upgraded), then Connection::new
///                                                   '--> Err: drop the socket
/// ```
///
/// As in [`Acceptor`], a deadline for all of it is the caller's.
#[derive(Debug)]
pub struct ClientHandshake {
    limits: HandshakeLimits,
    /// What was offered.
    deflate: Option<Deflate>,
    request: Bytes,
    /// The only right answer to the key in `request`.
    accept: String,
    subprotocols: Vec<String>,
    received: Vec<u8>,
}

impl ClientHandshake {
    /// Makes the request; `key_seed` determines its nonce, so it is a new one for each connection.
    ///
    /// # Errors
    ///
    /// If a part of `request` cannot stand in an HTTP request.
    pub fn new(
        request: ClientRequest,
        limits: HandshakeLimits,
        key_seed: u64,
    ) -> Result<Self, InvalidClientRequest> {
        let ClientRequest { host, target, subprotocols, headers } = request;
        if !target.starts_with('/') || !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
            return Err(InvalidClientRequest::Target);
        }
        let mut nonces = SplitMix64(key_seed);
        let nonce = [nonces.next().to_be_bytes(), nonces.next().to_be_bytes()].concat();
        let key = BASE64.encode(&nonce);

        let mut head = format!("GET {target} HTTP/1.1\r\n");
        append_header(&mut head, "Host", &host)?;
        head.push_str("Upgrade: websocket\r\nConnection: Upgrade\r\n");
        append_header(&mut head, "Sec-WebSocket-Key", &key)?;
        head.push_str("Sec-WebSocket-Version: 13\r\n");
        for (index, subprotocol) in subprotocols.iter().enumerate() {
            if !is_token(subprotocol) || subprotocols[..index].contains(subprotocol) {
                return Err(InvalidClientRequest::Subprotocol(subprotocol.clone()));
            }
        }
        if !subprotocols.is_empty() {
            append_header(&mut head, "Sec-WebSocket-Protocol", &subprotocols.join(", "))?;
        }
        for (name, value) in &headers {
            append_header(&mut head, name, value)?;
        }
        head.push_str("\r\n");
        Ok(Self {
            limits,
            deflate: None,
            request: Bytes::from(head),
            accept: accept_for(&key),
            subprotocols,
            received: Vec::new(),
        })
    }

    /// Offers to compress messages (RFC 7692); without this it is not offered. To be called before the request is
    /// written.
    #[must_use]
    pub fn with_deflate(mut self, deflate: Option<Deflate>) -> Self {
        if deflate.is_some() && self.deflate.is_none() {
            // In front of the empty line.
            let head = &self.request[..self.request.len() - 2];
            let offer = format!("Sec-WebSocket-Extensions: {}\r\n\r\n", deflate::OFFER);
            self.request = Bytes::from([head, offer.as_bytes()].concat());
            self.deflate = deflate;
        }
        self
    }

    /// Takes bytes, in any pieces, and returns what was agreed once the response is complete and verified.
    ///
    /// # Errors
    ///
    /// If the server refuses, or answers something that RFC 6455 section 4.1 tells to fail the connection for.
    pub fn receive(&mut self, input: &[u8]) -> Result<Option<Upgraded>, ClientHandshakeError> {
        self.received.extend_from_slice(input);
        let mut headers = vec![httparse::EMPTY_HEADER; self.limits.headers_max];
        let mut parsed = httparse::Response::new(&mut headers);
        // As in `Acceptor::receive`.
        let head = &self.received[..self.received.len().min(self.limits.head_bytes_max)];
        let head_len = match parsed.parse(head) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) if head.len() < self.limits.head_bytes_max => return Ok(None),
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                return Err(ClientHandshakeError::HeadTooLarge);
            }
            Err(_) => return Err(ClientHandshakeError::NotHttp),
        };
        let status = parsed.code.unwrap_or_default();
        let headers = Headers::new(parsed.headers);
        if status != 101 {
            let seconds = headers.get("retry-after").and_then(|value| value.parse().ok());
            return Err(ClientHandshakeError::Refused {
                status,
                retry_after: seconds.map(Duration::from_secs),
            });
        }
        if !headers.only("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")) {
            return Err(ClientHandshakeError::Upgrade);
        }
        if !headers.has_token("connection", "upgrade") {
            return Err(ClientHandshakeError::Connection);
        }
        if headers.only("sec-websocket-accept") != Some(&*self.accept) {
            return Err(ClientHandshakeError::Accept);
        }
        let extensions = headers.extensions().ok_or(ClientHandshakeError::Extension)?;
        let deflate = match (&extensions[..], self.deflate) {
            ([], _) => None,
            (answer, Some(deflate)) => Some(deflate.agree(answer).ok_or(ClientHandshakeError::Extension)?),
            (_, None) => return Err(ClientHandshakeError::Extension),
        };
        let subprotocol = match headers.all("sec-websocket-protocol").count() {
            0 => None,
            _ => match headers.only("sec-websocket-protocol") {
                Some(chosen) if self.subprotocols.iter().any(|offered| offered == chosen) => {
                    Some(chosen.to_owned())
                }
                _ => return Err(ClientHandshakeError::Subprotocol),
            },
        };
        let rest = mem::take(&mut self.received).split_off(head_len);
        Ok(Some(Upgraded { subprotocol, deflate, headers, rest }))
    }

    /// Returns the request, to be written before anything else.
    #[must_use]
    pub fn request(&self) -> &Bytes {
        &self.request
    }
}

/// What client and server have agreed on; the connection is now a [`Connection`](crate::Connection),
/// [with](crate::Connection::with_deflate) what `deflate` says.
#[derive(Clone, Debug)]
pub struct Upgraded {
    /// The subprotocol that the server chose of those offered.
    pub subprotocol: Option<String>,
    /// How messages are compressed, where that was offered and accepted.
    pub deflate: Option<AgreedDeflate>,
    /// The headers of the response.
    pub headers: Headers,
    rest: Vec<u8>,
}

impl Upgraded {
    /// Returns the bytes that came behind the head: the first input of the connection.
    #[must_use]
    pub fn into_rest(self) -> Vec<u8> {
        self.rest
    }
}

/// A [`ClientRequest`] that is no HTTP request.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidClientRequest {
    /// The target does not begin with `/`, or has characters that have to be percent-encoded.
    #[error("the target is not a percent-encoded path")]
    Target,
    /// A subprotocol is no token, or is there twice.
    #[error("subprotocol {0:?} is not a token or is repeated")]
    Subprotocol(String),
    /// The host or a header cannot be sent.
    #[error(transparent)]
    Header(#[from] InvalidHeader),
}

/// Why a client's handshake failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ClientHandshakeError {
    /// The server answered with another HTTP status than 101.
    #[error("the server refused the upgrade with HTTP status {status}")]
    Refused {
        /// The HTTP status: 401, 403 and 404 hardly change by trying again, 503 may.
        status: u16,
        /// When to try again, if the server said so in seconds (RFC 9110 section 10.2.3).
        retry_after: Option<Duration>,
    },
    /// The answer is no HTTP/1 response.
    #[error("the server does not speak HTTP/1")]
    NotHttp,
    /// The head of the response exceeds [`HandshakeLimits`].
    #[error("the head of the response is too large")]
    HeadTooLarge,
    /// The header `Upgrade` is not `websocket`.
    #[error("the response does not upgrade to websocket")]
    Upgrade,
    /// The header `Connection` does not contain `Upgrade`.
    #[error("the response does not upgrade the connection")]
    Connection,
    /// The header `Sec-WebSocket-Accept` is not the answer to our key: a cache, or no WebSocket server.
    #[error("the response does not answer our key")]
    Accept,
    /// The server chose an extension that was not offered, or in a way that does not answer the offer.
    #[error("the server chose an extension, or parameters of one, that were not offered")]
    Extension,
    /// The server chose a subprotocol that was not offered.
    #[error("the server chose a subprotocol that was not offered")]
    Subprotocol,
}

/// The headers of an HTTP message, in the order they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, Vec<u8>)>);

impl Headers {
    fn new(parsed: &[httparse::Header<'_>]) -> Self {
        let header =
            |header: &httparse::Header<'_>| (header.name.to_ascii_lowercase(), header.value.to_owned());
        Self(parsed.iter().map(header).collect())
    }

    /// Returns the value of the first header of this name, unless it is not UTF-8.
    ///
    /// Names are compared without regard to case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next().and_then(|value| str::from_utf8(value).ok())
    }

    /// Returns all headers, names in lower case.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.iter().filter(move |(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The value of a header that must be there once.
    fn only(&self, name: &str) -> Option<&str> {
        let mut values = self.all(name);
        let value = values.next().filter(|_| values.next().is_none())?;
        str::from_utf8(value).ok()
    }

    /// The elements of a list, which may be spread over several headers (RFC 9110 section 5.6.1).
    fn list(&self, name: &str) -> impl Iterator<Item = &str> {
        self.all(name)
            .filter_map(|value| str::from_utf8(value).ok())
            .flat_map(|value| value.split(','))
            .map(|element| element.trim_matches([' ', '\t']))
            .filter(|element| !element.is_empty())
    }

    /// The elements of `Sec-WebSocket-Extensions` (RFC 6455 section 9.1), `None` if it is malformed.
    fn extensions(&self) -> Option<Vec<Extension<'_>>> {
        let mut extensions = Vec::new();
        for value in self.all("sec-websocket-extensions") {
            Cursor(str::from_utf8(value).ok()?).extensions(&mut extensions)?;
        }
        Some(extensions)
    }

    fn has_token(&self, name: &str, token: &str) -> bool {
        self.list(name).any(|element| element.eq_ignore_ascii_case(token))
    }
}

/// One element of the header `Sec-WebSocket-Extensions`.
#[derive(Debug)]
pub(crate) struct Extension<'a> {
    pub(crate) name: &'a str,
    pub(crate) parameters: Vec<(&'a str, Option<Cow<'a, str>>)>,
}

/// What is left to be read of the value of a header.
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    /// RFC 6455 section 9.1; elements may be empty (RFC 9110 section 5.6.1.2).
    fn extensions(&mut self, extensions: &mut Vec<Extension<'a>>) -> Option<()> {
        loop {
            while self.take(',') {}
            if self.0.is_empty() {
                return Some(());
            }
            let mut extension = Extension { name: self.token()?, parameters: Vec::new() };
            while self.take(';') {
                let name = self.token()?;
                let value = if self.take('=') { Some(self.value()?) } else { None };
                extension.parameters.push((name, value));
            }
            extensions.push(extension);
            if !self.0.is_empty() && !self.0.starts_with(',') {
                return None;
            }
        }
    }

    /// Takes one character, with the space on both sides of it.
    fn take(&mut self, char: char) -> bool {
        self.skip_space();
        let Some(rest) = self.0.strip_prefix(char) else { return false };
        self.0 = rest;
        self.skip_space();
        true
    }

    fn token(&mut self) -> Option<&'a str> {
        let (token, rest) = self.0.split_at(self.0.find(|char| !is_token_char(char)).unwrap_or(self.0.len()));
        self.0 = rest;
        (!token.is_empty()).then_some(token)
    }

    /// A token, or one in quotation marks.
    fn value(&mut self) -> Option<Cow<'a, str>> {
        let Some(quoted) = self.0.strip_prefix('"') else { return self.token().map(Cow::Borrowed) };
        let mut value = String::new();
        let mut chars = quoted.chars();
        loop {
            match chars.next()? {
                '"' => break,
                '\\' => value.push(chars.next()?),
                char => value.push(char),
            }
        }
        self.0 = chars.as_str();
        is_token(&value).then_some(Cow::Owned(value))
    }

    fn skip_space(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\t']);
    }
}

/// RFC 9112 section 3.2: a target is a path with query, or an absolute URI, of which the path counts.
fn split_target(target: &str) -> (&str, Option<&str>) {
    let absolute = target.split_once("://").filter(|(scheme, _)| !scheme.contains(['/', '?']));
    let target = match absolute {
        Some((_, authority)) => authority.find(['/', '?']).map_or("", |start| &authority[start..]),
        None => target,
    };
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    (if path.is_empty() { "/" } else { path }, query)
}

/// RFC 6455 section 4.2.2, item 5.4.
fn accept_for(key: &str) -> String {
    BASE64.encode(&Sha1::new().chain_update(key).chain_update(ACCEPT_GUID).finalize())
}

/// Whether this is base64 of 16 bytes. The four bits that the last digit has too many may have any value: nobody
/// needs to decode a key (RFC 6455 section 4.2.1, item 5), and clients make them up.
fn is_nonce(key: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    key.strip_suffix("==").is_some_and(|digits| digits.len() == 22 && digits.bytes().all(is_digit))
}

/// Appends a header line; a line end within it would let its author write headers of their own.
fn append_header(head: &mut String, name: &str, value: &str) -> Result<(), InvalidHeader> {
    if !is_token(name) || value.chars().any(|char| char.is_control() && char != '\t') {
        return Err(InvalidHeader { name: name.to_owned() });
    }
    write!(head, "{name}: {value}\r\n").expect("writing to a string does not fail");
    Ok(())
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.chars().all(is_token_char)
}

fn is_token_char(char: char) -> bool {
    char.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(char)
}

/// The phrase may be empty (RFC 9112 section 4): clients go by the number.
fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        301 => "Moved Permanently",
        302 => "Found",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        410 => "Gone",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

/// RFC 6455 section 1.3.
const ACCEPT_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
