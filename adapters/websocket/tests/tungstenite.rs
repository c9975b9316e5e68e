//! An independent implementation as the peer, in memory, and as the judge of what was said.

mod common;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::rc::Rc;

use bytes::Bytes;
use common::*;
use proptest::prelude::*;
use tungstenite::Message;
use tungstenite::handshake::HandshakeError;
use tungstenite::protocol::{Role as PeerRole, WebSocket};
use yrs_websocket_rfc6455::{
    Acceptor, ClientHandshake, ClientRequest, CloseCode, CloseFrame, Closed, Config, Connection, Event,
    HandshakeLimits, Opcode, Role, encode_frame,
};

#[test]
fn its_client_is_accepted_and_closes() {
    let pipe = Pipe::default();
    let Err(HandshakeError::Interrupted(pending)) = tungstenite::client("ws://host/room?a=b", pipe.clone())
    else {
        panic!("nobody has answered yet");
    };
    let mut acceptor = Acceptor::new(HandshakeLimits::default());
    let request = acceptor.receive(&pipe.written()).unwrap().unwrap();
    assert_eq!((request.path.as_str(), request.query.as_deref()), ("/room", Some("a=b")));
    pipe.put(&request.accept(None, &[]).unwrap());
    let (mut peer, response) = pending.handshake().unwrap();
    assert_eq!(response.status(), 101);

    let mut server = Connection::new(Role::Server, Config::default(), start());
    converse(&mut server, &mut peer, &pipe);
    pipe.put(&encode_frame(Opcode::Binary, b"for many"));
    assert_eq!(peer.read().unwrap(), Message::binary(Bytes::from("for many")));

    peer.close(None).unwrap();
    let (events, output) = receive(&mut server, start(), [&pipe.written()[..]]);
    assert_eq!(events, [Event::Closed(Closed::ByPeer(None))]);
    pipe.put(&output);
    assert_eq!(peer.read().unwrap(), Message::Close(None));
}

#[test]
fn its_server_accepts_us_and_is_closed() {
    let pipe = Pipe::default();
    let request = ClientRequest { host: "host".into(), target: "/room".into(), ..ClientRequest::default() };
    let mut handshake = ClientHandshake::new(request, HandshakeLimits::default(), 1).unwrap();
    pipe.put(handshake.request());
    let mut peer = tungstenite::accept(pipe.clone()).unwrap();
    let upgraded = handshake.receive(&pipe.written()).unwrap().unwrap();
    assert_eq!(upgraded.into_rest(), b"");

    let mut client = Connection::new(Role::Client { mask_seed: 2 }, Config::default(), start());
    converse(&mut client, &mut peer, &pipe);

    client.close(start(), CloseCode::NORMAL, "done");
    pipe.put(&written(&mut client));
    assert!(matches!(peer.read().unwrap(), Message::Close(Some(close)) if close.reason.as_str() == "done"));
    peer.flush().unwrap_or_default();
    let (events, output) = receive(&mut client, start(), [&pipe.written()[..]]);
    let close = CloseFrame { code: CloseCode::NORMAL, reason: "done".into() };
    assert_eq!(events, [Event::Closed(Closed::ByUs(Some(close)))]);
    assert_eq!(output, b"");
}

proptest! {
    /// Whatever a client may say, both servers hear the same.
    #[test]
    fn it_hears_what_we_hear(frames in conversation(), cut in 1..400_usize) {
        let bytes = frames.concat();
        let mut server = Connection::new(Role::Server, Config::default(), start());
        let (events, output) = receive(&mut server, start(), bytes.chunks(cut));

        let pipe = Pipe::default();
        pipe.put(&bytes);
        let mut peer = WebSocket::from_raw_socket(pipe.clone(), PeerRole::Server, None);
        let heard: Vec<Event> = std::iter::from_fn(|| peer.read().ok()).map(event).collect();
        prop_assert_eq!(&events, &heard);
        peer.flush().unwrap_or_default();
        prop_assert_eq!(output.is_empty(), pipe.written().is_empty());
    }

    /// Its rules are laxer than ours: up to the frame that we refuse, if any, it hears the same.
    #[test]
    fn what_we_let_pass_it_hears(
        mut frames in conversation(),
        changed: prop::sample::Index,
        at in 0..2_usize,
        with: u8,
    ) {
        let changed = changed.index(frames.len());
        frames[changed][at] = with;
        let bytes = frames.concat();
        let mut server = Connection::new(Role::Server, Config::default(), start());
        let (mut events, _) = receive(&mut server, start(), [&bytes[..]]);

        let pipe = Pipe::default();
        pipe.put(&bytes);
        let mut peer = WebSocket::from_raw_socket(pipe, PeerRole::Server, None);
        let mut heard: Vec<Event> = std::iter::from_fn(|| peer.read().ok()).map(event).collect();
        if let Some(Event::Closed(Closed::Violation(_))) = events.last() {
            events.pop();
            heard.truncate(events.len());
        }
        prop_assert_eq!(events, heard);
    }

    /// What we send, as either end, it understands.
    #[test]
    fn it_hears_what_we_send(payloads in prop::collection::vec((any::<bool>(), payload()), 0..10), mask_seed: u64) {
        for (role, peer_role) in [(Role::Server, PeerRole::Client), (Role::Client { mask_seed }, PeerRole::Server)] {
            let mut connection = Connection::new(role, Config::default(), start());
            let mut expected = Vec::new();
            for (is_text, payload) in &payloads {
                match str::from_utf8(payload) {
                    Ok(text) if *is_text => {
                        connection.send_text(text);
                        expected.push(Message::text(text));
                    }
                    _ => {
                        connection.send_binary(payload);
                        expected.push(Message::binary(payload.clone()));
                    }
                }
            }
            let pipe = Pipe::default();
            pipe.put(&written(&mut connection));
            let mut peer = WebSocket::from_raw_socket(pipe, peer_role, None);
            let heard: Vec<Message> = std::iter::from_fn(|| peer.read().ok()).collect();
            prop_assert_eq!(heard, expected);
        }
    }
}

/// Both sides say something, and hear what the other said.
fn converse(ours: &mut Connection, peer: &mut WebSocket<Pipe>, pipe: &Pipe) {
    ours.send_text("hello");
    ours.send_binary(&[0; 70_000]);
    ours.ping(b"there?");
    pipe.put(&written(ours));
    assert_eq!(peer.read().unwrap(), Message::text("hello"));
    assert_eq!(peer.read().unwrap(), Message::binary(vec![0; 70_000]));
    assert_eq!(peer.read().unwrap(), Message::Ping("there?".into()));

    peer.flush().unwrap();
    peer.write(Message::text("höllo")).unwrap();
    peer.write(Message::binary(vec![1; 300])).unwrap();
    peer.write(Message::Ping("you?".into())).unwrap();
    peer.flush().unwrap();
    let (events, output) = receive(ours, start(), pipe.written().chunks(11));
    assert_eq!(
        events,
        [
            Event::Pong("there?".into()),
            Event::Text("höllo".into()),
            Event::Binary(vec![1; 300].into()),
            Event::Ping("you?".into()),
        ]
    );
    pipe.put(&output);
    assert_eq!(peer.read().unwrap(), Message::Pong("you?".into()));
}

/// Messages of a client, cut into fragments with control frames between them, and perhaps its close frame.
fn conversation() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let control = (prop::sample::select(vec![PING, PONG]), prop::collection::vec(any::<u8>(), 0..126));
    let fragment_end = (0..300_usize, prop::option::weighted(0.2, control));
    let message = (any::<bool>(), payload(), prop::collection::vec(fragment_end, 0..4));
    let message = message.prop_map(|(is_text, payload, cuts)| {
        let is_text = is_text && str::from_utf8(&payload).is_ok();
        let mut first = if is_text { TEXT_BEGINS } else { BINARY_BEGINS };
        let mut rest = &payload[..];
        let mut frames = Vec::new();
        for (len, control) in cuts {
            let (fragment, after) = rest.split_at(len.min(rest.len()));
            frames.push(masked(first, fragment));
            frames.extend(control.map(|(kind, payload)| masked(kind, &payload)));
            (first, rest) = (CONTINUES, after);
        }
        frames.push(masked(0x80 | first, rest));
        frames
    });
    let close = prop_oneof![
        3 => Just(None),
        1 => Just(Some(masked(CLOSE, b""))),
        1 => Just(Some(masked(CLOSE, &close_payload(1001, "leaving")))),
    ];
    (prop::collection::vec(message, 1..6), close)
        .prop_map(|(messages, close)| messages.into_iter().flatten().chain(close).collect())
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        "[a-zé€😀]{0,60}".prop_map(String::into_bytes),
        (65_500..65_600_usize).prop_map(|len| vec![b'x'; len]),
    ]
}

fn event(message: Message) -> Event {
    match message {
        Message::Text(text) => Event::Text(text.as_str().into()),
        Message::Binary(payload) => Event::Binary(payload),
        Message::Ping(payload) => Event::Ping(payload),
        Message::Pong(payload) => Event::Pong(payload),
        Message::Close(close) => Event::Closed(Closed::ByPeer(close.map(|close| CloseFrame {
            code: CloseCode::new(close.code.into()).unwrap(),
            reason: close.reason.as_str().into(),
        }))),
        Message::Frame(_) => unreachable!("only written, never read"),
    }
}

/// The socket of the peer: what it reads was put here, what it writes is taken from here.
#[derive(Clone, Debug, Default)]
struct Pipe {
    to_peer: Rc<RefCell<VecDeque<u8>>>,
    from_peer: Rc<RefCell<Vec<u8>>>,
}

impl Pipe {
    fn put(&self, bytes: &[u8]) {
        self.to_peer.borrow_mut().extend(bytes);
    }

    fn written(&self) -> Vec<u8> {
        self.from_peer.take()
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.to_peer.borrow_mut().read(buffer)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            len => Ok(len),
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.from_peer.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
