//! The WebSocket layer: frames, and the HTTP upgrade before them.

use std::{
    io::{self, Read, Write},
    str,
};

use bytes::Bytes;
use tungstenite::{
    Error, Message,
    protocol::{Role as PeerRole, WebSocket, WebSocketConfig},
};
use yrs_websocket_rfc6455::{
    AcceptError, Acceptor, AgreedDeflate, ClientHandshake, ClientHandshakeError, ClientRequest, CloseCode,
    CloseFrame, Closed, Config, Connection, Deflate, Event, HandshakeLimits, Role, Violation,
};

use crate::{Script, epoch, memory};

/// The same bytes whole and chopped give the same events and replies, in memory that is a small multiple
/// of theirs; and [tungstenite](its_events) hears what we hear. Where compression is agreed on, which it does
/// not know, what is not compressed is heard as without.
///
/// Input: a byte of options, a byte that says after which event we close, a byte for the length of the
/// pieces, then what the peer sends.
pub fn websocket(data: &[u8]) {
    let mut script = Script(data);
    let options = script.byte();
    let closes_after = usize::from(script.byte());
    let piece = usize::from(script.byte()).max(1);
    let bytes = script.0;

    let role = if options & 1 == 0 { Role::Server } else { Role::Client { mask_seed: 7 } };
    let mut config = Config {
        // tungstenite makes room for a whole frame once it has seen the header.
        frame_len_max: 1 << 20,
        message_len_max: 1 << 20,
        text_refused: options & 2 != 0,
        ..Config::default()
    };
    if options & 4 != 0 {
        config = Config { frame_len_max: 200, message_len_max: 300, fragments_max: 5, ..config };
    }
    let closes_after = (options & 8 != 0).then_some(closes_after);
    let deflate = (options & 16 != 0).then(agreed_deflate);
    let run = |deflate, piece| our_events(role, &config, deflate, closes_after, bytes, piece);

    let (whole, peak) = memory::peak(|| run(deflate, bytes.len().max(1)));
    // Every frame of six bytes is an event, and some are an answer.
    let mut peak_max = 40 * bytes.len() + 16_384;
    if deflate.is_some() {
        // What decompresses, or compresses, and what a message may grow to before it is refused.
        let state = if closes_after.is_some() { 400 << 10 } else { 50 << 10 };
        let messages: usize = whole.0.iter().map(message_len).sum();
        peak_max += state + 3 * messages + 3 * config.message_len_max.min(1_100 * bytes.len());
    }
    assert!(peak <= peak_max, "{peak} bytes for {}", bytes.len());
    assert_eq!(whole, run(deflate, 1));
    assert_eq!(whole, run(deflate, piece));
    if closes_after.is_some() {
        return;
    }
    let mut plain = whole;
    if deflate.is_some() {
        let with_deflate = plain.0;
        plain = run(None, bytes.len().max(1));
        if plain.0.last() == Some(&Event::Closed(Closed::Violation(Violation::ReservedBits))) {
            let before = &plain.0[..plain.0.len() - 1];
            assert!(with_deflate.starts_with(before), "{before:?}, and {with_deflate:?} with compression");
        } else {
            assert_eq!(plain.0, with_deflate);
        }
    }
    compare(plain.0, its_events(role, &config, bytes));
}

fn message_len(event: &Event) -> usize {
    match event {
        Event::Binary(payload) => payload.len(),
        Event::Text(text) => text.as_ref().len(),
        Event::Ping(_) | Event::Pong(_) | Event::Closed(_) => 0,
    }
}

/// Everything is compressed.
const DEFLATE: Deflate = Deflate { level: 1, len_min: 0 };

/// What is agreed on with a client that offers no more than it has to.
fn agreed_deflate() -> AgreedDeflate {
    let mut acceptor = Acceptor::new(HandshakeLimits::default()).with_deflate(Some(DEFLATE));
    let request = acceptor.receive(b"GET / HTTP/1.1\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n");
    request.expect("it reads").expect("it is complete").deflate().expect("the offer can be met")
}

/// The upgrade: whole and chopped are read alike; what both ends of ours agree on; and whether a key is
/// answered as tungstenite would.
///
/// Input: a byte of options, a byte for the length of the pieces, then a request, a response, or what
/// a caller wants to ask for.
pub fn handshake(data: &[u8]) {
    let mut script = Script(data);
    let options = script.byte();
    let piece = usize::from(script.byte()).max(1);
    let limits = match options & 4 {
        0 => HandshakeLimits::default(),
        _ => HandshakeLimits { head_bytes_max: 250, headers_max: 6 },
    };
    let deflate = (options & 8 != 0).then_some(DEFLATE);
    match options % 4 {
        0 | 1 => request(script.0, piece, limits, deflate),
        2 => response(script.0, piece, limits, deflate),
        _ => both_ends(&mut script, piece, deflate),
    }
}

fn request(bytes: &[u8], piece: usize, limits: HandshakeLimits, deflate: Option<Deflate>) {
    let run = |piece: usize| {
        let mut acceptor = Acceptor::new(limits).with_deflate(deflate);
        for (index, part) in bytes.chunks(piece).enumerate() {
            let request = match acceptor.receive(part) {
                Ok(None) => continue,
                Ok(Some(request)) => request,
                Err(refusal) => return Some(Err(refusal)),
            };
            let head = (request.method.clone(), request.path.clone(), request.query.clone());
            let headers = (request.headers.clone(), request.deflate());
            let answer = request.accept(None, &[]);
            let mut rest = request.into_rest();
            rest.extend_from_slice(bytes.get(piece * (index + 1)..).unwrap_or(&[]));
            return Some(Ok((head, headers, answer, rest)));
        }
        None
    };
    let (whole, peak) = memory::peak(|| run(bytes.len().max(1)));
    assert!(peak <= 8 * bytes.len() + 16_384, "{peak} bytes for {}", bytes.len());
    assert_eq!(whole, run(1));
    assert_eq!(whole, run(piece));

    let Some(Ok(((_, path, _), _, answer, rest))) = whole else { return };
    assert!(path.starts_with('/') || answer.is_err() || path == "*" || !path.is_empty());
    let head = &bytes[..bytes.len() - rest.len()];
    assert!(head.len() <= limits.head_bytes_max && bytes.ends_with(&rest));
    match answer {
        Ok(answer) => {
            // It refuses some requests that we accept: targets that are no URI, for example.
            if let Some(its) = its_answer(head) {
                assert_eq!(accept_key(&answer), accept_key(&its));
            }
        }
        Err(AcceptError::Refused(refusal)) => assert!((400..600).contains(&refusal.status())),
        Err(error) => panic!("{error}"),
    }
}

fn response(bytes: &[u8], piece: usize, limits: HandshakeLimits, deflate: Option<Deflate>) {
    let request = ClientRequest {
        host: "host".into(),
        target: "/".into(),
        subprotocols: vec!["yjs".into(), "other".into()],
        headers: Vec::new(),
    };
    let run = |piece: usize| {
        let client = ClientHandshake::new(request.clone(), limits, 1).expect("a plain request");
        let mut client = client.with_deflate(deflate);
        for (index, part) in bytes.chunks(piece).enumerate() {
            match client.receive(part) {
                Ok(None) => {}
                Ok(Some(upgraded)) => {
                    let subprotocol = upgraded.subprotocol.clone();
                    let headers = (upgraded.headers.clone(), upgraded.deflate);
                    let mut rest = upgraded.into_rest();
                    rest.extend_from_slice(bytes.get(piece * (index + 1)..).unwrap_or(&[]));
                    return Some(Ok((subprotocol, headers, rest)));
                }
                Err(error) => return Some(Err(error)),
            }
        }
        None
    };
    let (whole, peak) = memory::peak(|| run(bytes.len().max(1)));
    assert!(peak <= 8 * bytes.len() + 16_384, "{peak} bytes for {}", bytes.len());
    assert_eq!(whole, run(1));
    assert_eq!(whole, run(piece));
    match whole {
        Some(Ok((subprotocol, (headers, agreed), _))) => {
            assert!(agreed.is_none() || deflate.is_some(), "nobody has offered it");
            assert!(subprotocol.is_none_or(|chosen| request.subprotocols.contains(&chosen)));
            // Of the key that seed 1 makes.
            assert!(headers.get("sec-websocket-accept").is_some());
        }
        Some(Err(ClientHandshakeError::Refused { status, .. })) => assert_ne!(status, 101),
        Some(Err(_)) | None => {}
    }
}

/// Whatever a caller may ask for is refused, or arrives as it was meant and nothing else with it.
fn both_ends(script: &mut Script<'_>, piece: usize, deflate: Option<Deflate>) {
    let mut text = || String::from_utf8_lossy(script.bytes()).into_owned();
    let (host, target) = (text(), text());
    let subprotocols: Vec<_> = (0..2).map(|_| text()).filter(|name| !name.is_empty()).collect();
    let (name, value) = (text(), text());
    let (answer_name, answer_value) = (text(), text());
    let is_ours = |name: &str| {
        ["host", "upgrade", "connection"].contains(&&*name.to_ascii_lowercase())
            || name.to_ascii_lowercase().starts_with("sec-websocket-")
    };
    if is_ours(&name) || is_ours(&answer_name) {
        return;
    }
    let request = ClientRequest {
        host: host.clone(),
        target: target.clone(),
        subprotocols: subprotocols.clone(),
        headers: vec![(name.clone(), value.clone())],
    };
    let Ok(client) = ClientHandshake::new(request, HandshakeLimits::default(), 9) else { return };
    let mut client = client.with_deflate(deflate);

    let mut acceptor = Acceptor::new(HandshakeLimits::default()).with_deflate(deflate);
    let asked = client.request().clone();
    let asked = asked.chunks(piece).find_map(|part| acceptor.receive(part).expect("what we wrote reads"));
    let asked = asked.expect("all of it was there");
    asked.upgrade().expect("it asks for the upgrade");
    let whole = asked.query.as_ref().map_or(asked.path.clone(), |query| format!("{}?{query}", asked.path));
    assert_eq!(whole, target);
    assert_eq!(asked.header("host"), Some(trimmed(&host)));
    assert_eq!(asked.subprotocols().collect::<Vec<_>>(), subprotocols);
    assert_eq!(asked.header(&name), Some(trimmed(&value)));
    assert_eq!(asked.deflate().is_some(), deflate.is_some());
    let handshake_headers = 5 + usize::from(!subprotocols.is_empty()) + usize::from(deflate.is_some());
    assert_eq!(asked.headers.iter().count(), handshake_headers + 1, "a header slipped in");

    let chosen = subprotocols.last().map(String::as_str);
    let Ok(answer) = asked.accept(chosen, &[(&answer_name, &answer_value)]) else { return };
    let upgraded = answer.chunks(piece).find_map(|part| client.receive(part).expect("what we wrote reads"));
    let upgraded = upgraded.expect("all of it was there");
    assert_eq!(upgraded.subprotocol.as_deref(), chosen);
    assert_eq!(upgraded.headers.get(&answer_name), Some(trimmed(&answer_value)));
    assert_eq!(upgraded.deflate, asked.deflate());
    let handshake_headers = 3 + usize::from(chosen.is_some()) + usize::from(deflate.is_some());
    assert_eq!(upgraded.headers.iter().count(), handshake_headers + 1, "a header slipped in");
    assert_eq!(upgraded.into_rest(), b"");
}

/// HTTP knows no space around a value.
fn trimmed(value: &str) -> &str {
    value.trim_matches([' ', '\t'])
}

fn our_events(
    role: Role,
    config: &Config,
    deflate: Option<AgreedDeflate>,
    closes_after: Option<usize>,
    bytes: &[u8],
    piece: usize,
) -> (Vec<Event>, Vec<u8>) {
    let now = epoch();
    let mut connection = Connection::new(role, config.clone(), now).with_deflate(deflate);
    let (mut events, mut output) = (Vec::new(), Vec::new());
    let mut close_if_due = |connection: &mut Connection, events: &[Event]| {
        if closes_after == Some(events.len()) {
            connection.send_text("going");
            connection.close(now, CloseCode::GOING_AWAY, "closed by us");
            connection.send_text("gone");
        }
        while let Some(bytes) = connection.next_output() {
            output.extend_from_slice(&bytes);
        }
    };
    close_if_due(&mut connection, &events);
    for part in bytes.chunks(piece) {
        let mut part = part.to_vec();
        let mut input = &mut part[..];
        while let Some(event) = connection.receive(now, &mut input) {
            events.push(event);
            close_if_due(&mut connection, &events);
        }
        assert!(input.is_empty(), "input was left");
    }
    let closed = events.iter().position(|event| matches!(event, Event::Closed(_)));
    assert!(closed.is_none_or(|at| at + 1 == events.len()), "an event after the end");
    assert_eq!(closed.is_some(), connection.is_closed());
    if connection.is_closed() {
        assert_eq!(connection.next_timeout(), None);
        assert!(connection.handle_timeout(now + config.close_timeout * 100).is_none());
    }
    if role == Role::Server {
        // Nobody sends what no client would read.
        let client = Connection::new(Role::Client { mask_seed: 1 }, Config::default(), now);
        let client = client.with_deflate(deflate);
        let (heard, rest) = hear(client, output.clone());
        assert!(!heard.iter().any(|event| matches!(event, Event::Closed(Closed::Violation(_)))), "{heard:?}");
        assert_eq!(rest, 0, "something follows the close frame");
    }
    (events, output)
}

/// What a connection hears of some bytes, and how many of them came after its end.
fn hear(mut connection: Connection, mut bytes: Vec<u8>) -> (Vec<Event>, usize) {
    let mut input = &mut bytes[..];
    let mut events = Vec::new();
    let mut rest = input.len();
    while let Some(event) = connection.receive(epoch(), &mut input) {
        events.push(event);
        rest = input.len();
    }
    (events, if connection.is_closed() { rest } else { 0 })
}

/// What tungstenite hears, and why it hears no more.
fn its_events(role: Role, config: &Config, bytes: &[u8]) -> (Vec<Event>, Error) {
    let role = if role == Role::Server { PeerRole::Server } else { PeerRole::Client };
    let limits = WebSocketConfig::default()
        .read_buffer_size(4096)
        .max_frame_size(Some(config.frame_len_max))
        .max_message_size(Some(config.message_len_max));
    let mut peer = WebSocket::from_raw_socket(Wire(bytes), role, Some(limits));
    let mut events = Vec::new();
    loop {
        match peer.read() {
            Ok(Message::Text(text)) => events.push(Event::Text(text.as_str().into())),
            Ok(Message::Binary(payload)) => events.push(Event::Binary(payload)),
            Ok(Message::Ping(payload)) => events.push(Event::Ping(payload)),
            Ok(Message::Pong(payload)) => events.push(Event::Pong(payload)),
            Ok(Message::Close(close)) => {
                let close = close.map(|close| CloseFrame {
                    code: CloseCode::new(close.code.into()).expect("it replaces what may not be sent"),
                    reason: close.reason.as_str().into(),
                });
                events.push(Event::Closed(Closed::ByPeer(close)));
            }
            Ok(Message::Frame(_)) => unreachable!("only written, never read"),
            Err(error) => return (events, error),
        }
    }
}

/// Holds what we heard against what tungstenite heard. We rightly differ in this:
///
/// * Close code 1014 is in the registry of RFC 6455; it does not know it and puts 1002 in its place.
/// * A length that is not minimal (of a control frame it counts as too long whatever it says), a close code that must not be sent, more fragments than the limit and
///   text where none is wanted end the connection here; it goes on (and answers such a close code with
///   1002 of its own).
/// * We refuse a frame as soon as its header or its first bad byte of text is here; it waits for all of
///   the frame, and so in an input that ends before that it has no opinion.
///
/// In everything else it must hear what we hear, and stop where we stop.
fn compare(mut ours: Vec<Event>, (theirs, end): (Vec<Event>, Error)) {
    if let Some(Event::Closed(Closed::ByPeer(Some(close)))) = ours.last_mut()
        && u16::from(close.code) == 1014
    {
        *close = CloseFrame { code: CloseCode::PROTOCOL_ERROR, reason: "Protocol violation".into() };
    }
    let waits = matches!(&end, Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock);
    let Some(&Event::Closed(Closed::Violation(violation))) = ours.last() else {
        assert_eq!(ours, theirs, "{end}");
        let is_closed = matches!(ours.last(), Some(Event::Closed(_)));
        assert!(waits || is_closed, "it refuses what we accept: {end}");
        return;
    };
    ours.pop();
    assert!(theirs.starts_with(&ours), "{ours:?} before {violation:?}, and {theirs:?}");
    let goes_on = theirs.len() > ours.len();
    match violation {
        Violation::LengthNotMinimal
        | Violation::ControlTooLong
        | Violation::CloseCode(_)
        | Violation::TooManyFragments
        | Violation::TextRefused => {}
        _ => assert!(!goes_on, "it accepts what we refuse with {violation:?}: {theirs:?}"),
    }
}

/// What tungstenite answers to a request, if it accepts it.
fn its_answer(head: &[u8]) -> Option<Bytes> {
    let mut written = Vec::new();
    tungstenite::accept(Both { reads: head, writes: &mut written }).ok()?;
    Some(written.into())
}

fn accept_key(answer: &[u8]) -> Option<&str> {
    let answer = str::from_utf8(answer).expect("an answer is text");
    answer.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-accept").then(|| value.trim())
    })
}

/// A socket from which these bytes come and no others; what is written to it is lost.
struct Wire<'a>(&'a [u8]);

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            len => Ok(len),
        }
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket that keeps what is written to it.
struct Both<'a> {
    reads: &'a [u8],
    writes: &'a mut Vec<u8>,
}

impl Read for Both<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reads.read(buffer)
    }
}

impl Write for Both<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
