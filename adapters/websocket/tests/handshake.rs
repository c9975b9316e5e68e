//! What the two ends of the upgrade make of given bytes.

mod common;

use std::time::Duration;

use common::*;
use proptest::prelude::*;
use yrs_websocket_rfc6455::{
    AcceptError, Acceptor, ClientHandshake, ClientHandshakeError, ClientRequest, Config, Connection, Event,
    HandshakeLimits, InvalidClientRequest, InvalidHeader, Refusal, Request, Role,
};

/// The request of RFC 6455 section 1.3.
const REQUEST: &str = "GET /chat HTTP/1.1\r\n\
    Host: server.example.com\r\n\
    Upgrade: websocket\r\n\
    Connection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Origin: http://example.com\r\n\
    Sec-WebSocket-Protocol: chat, superchat\r\n\
    Sec-WebSocket-Version: 13\r\n\
    \r\n";

// The server's side.

#[test]
fn the_example_of_the_rfc_is_accepted() {
    assert_eq!(
        request(REQUEST).accept(Some("chat"), &[]).unwrap(),
        "HTTP/1.1 101 Switching Protocols\r\n\
         Upgrade: websocket\r\n\
         Connection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
         Sec-WebSocket-Protocol: chat\r\n\
         \r\n"
    );
}

#[test]
fn a_request_says_what_the_application_needs() {
    let request = request(
        "GET /a%20room/x?token=a%20b&c=d?e HTTP/1.1\r\nhOsT: h\r\nX-Twice: 1\r\nX-Twice: 2\r\n\
         X-Bytes: \u{e9}\r\nSec-WebSocket-Protocol: a,\t b ,\r\nSec-WebSocket-Protocol: c\r\n\r\n",
    );
    assert_eq!(request.method, "GET");
    assert_eq!(request.path, "/a%20room/x");
    assert_eq!(request.query.as_deref(), Some("token=a%20b&c=d?e"));
    assert_eq!(request.header("HOST"), Some("h"));
    assert_eq!(request.header("x-twice"), Some("1"));
    assert_eq!(request.header("x-absent"), None);
    assert_eq!(request.subprotocols().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(
        request.headers.iter().take(4).collect::<Vec<_>>(),
        [("host", &b"h"[..]), ("x-twice", b"1"), ("x-twice", b"2"), ("x-bytes", "\u{e9}".as_bytes())]
    );
}

#[test]
fn the_target_may_be_an_absolute_uri() {
    for (target, path, query) in [
        ("http://host:1/room?x", "/room", Some("x")),
        ("ws://host", "/", None),
        ("http://host?x=/y", "/", Some("x=/y")),
        ("/room?next=http://elsewhere/", "/room", Some("next=http://elsewhere/")),
        ("/?", "/", Some("")),
    ] {
        let request = request(&REQUEST.replace("/chat", target));
        assert_eq!((request.path.as_str(), request.query.as_deref()), (path, query), "{target}");
    }
}

#[test]
fn header_values_are_compared_as_the_rfcs_say() {
    let request = request(
        &REQUEST
            .replace("Upgrade: websocket", "upgrade: h2c, WebSocket")
            .replace("Connection: Upgrade", "Connection: keep-alive, UPGRADE"),
    );
    assert_eq!(request.upgrade(), Ok(()));
}

#[test]
fn a_frame_that_came_with_the_request_is_the_first_input_of_the_connection() {
    let bytes = [REQUEST.as_bytes(), &masked(BINARY, b"early")].concat();
    let request = Acceptor::new(HandshakeLimits::default()).receive(&bytes).unwrap().unwrap();
    let mut connection = Connection::new(Role::Server, Config::default(), start());
    let (events, _) = receive(&mut connection, start(), [&request.into_rest()[..]]);
    assert_eq!(events, [Event::Binary("early".into())]);
}

#[test]
fn only_an_offered_subprotocol_is_accepted() {
    let request = request(REQUEST);
    assert_eq!(request.accept(Some("soap"), &[]), Err(AcceptError::SubprotocolNotOffered));
    assert_eq!(request.accept(Some("chat, superchat"), &[]), Err(AcceptError::SubprotocolNotOffered));
}

#[test]
fn headers_of_the_application_are_sent_but_not_injected() {
    let request = request(REQUEST);
    let response = request.accept(None, &[("Set-Cookie", "a=b"), ("X-Empty", "")]).unwrap();
    assert!(response.ends_with(b"xOo=\r\nSet-Cookie: a=b\r\nX-Empty: \r\n\r\n"));
    for header in [("X", "a\r\nY: b"), ("X", "a\nb"), ("X", "\0"), ("X: a\r\nY", "b"), ("", "a"), ("é", "a")]
    {
        let error = InvalidHeader { name: header.0.to_owned() };
        assert_eq!(request.accept(None, &[header]), Err(AcceptError::InvalidHeader(error.clone())));
        assert_eq!(Refusal::new(403).with_header(header.0, header.1), Err(error));
    }
}

#[test]
fn a_plain_get_is_told_to_upgrade() {
    assert_eq!(
        refusal("GET / HTTP/1.1\r\nHost: h\r\n\r\n"),
        "HTTP/1.1 426 Upgrade Required\r\n\
         Connection: close\r\n\
         Content-Type: text/plain; charset=utf-8\r\n\
         Connection: Upgrade\r\n\
         Upgrade: websocket\r\n\
         Content-Length: 29\r\n\
         \r\n\
         this is a WebSocket endpoint\n"
    );
    assert_eq!(status(&REQUEST.replace("Connection: Upgrade", "Connection: keep-alive")), 426);
    assert_eq!(status(&REQUEST.replace("Upgrade: websocket", "Upgrade: h2c")), 426);
}

#[test]
fn another_version_is_told_which_one_is_spoken() {
    let answer = "HTTP/1.1 426 Upgrade Required\r\n\
         Connection: close\r\n\
         Content-Type: text/plain; charset=utf-8\r\n\
         Connection: Upgrade\r\n\
         Upgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\n\
         Content-Length: 44\r\n\
         \r\n\
         only version 13 of WebSocket is spoken here\n";
    let version = "Sec-WebSocket-Version: 13\r\n";
    for instead in ["Sec-WebSocket-Version: 8\r\n", "", &version.repeat(2)] {
        assert_eq!(refusal(&REQUEST.replace(version, instead)), answer);
    }
}

#[test]
fn another_method_is_not_allowed() {
    assert_eq!(
        refusal(&REQUEST.replace("GET", "POST")),
        "HTTP/1.1 405 Method Not Allowed\r\n\
         Connection: close\r\n\
         Content-Type: text/plain; charset=utf-8\r\n\
         Allow: GET\r\n\
         Content-Length: 21\r\n\
         \r\n\
         only GET is possible\n"
    );
}

#[test]
fn the_key_is_16_bytes_in_base64_once() {
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    assert_eq!(
        refusal(&REQUEST.replace(key, "")),
        "HTTP/1.1 400 Bad Request\r\n\
         Connection: close\r\n\
         Content-Type: text/plain; charset=utf-8\r\n\
         Content-Length: 53\r\n\
         \r\n\
         one header Sec-WebSocket-Key of 16 bytes is required\n"
    );
    for instead in ["Sec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n", "Sec-WebSocket-Key: ?\r\n", &key.repeat(2)] {
        assert_eq!(status(&REQUEST.replace(key, instead)), 400);
    }
    assert_eq!(request(&REQUEST.replace("ZQ==", "ZR==")).upgrade(), Ok(()), "nobody decodes it");
}

#[test]
fn one_host_is_required() {
    let host = "Host: server.example.com\r\n";
    assert_eq!(status(&REQUEST.replace(host, "")), 400);
    assert_eq!(status(&REQUEST.replace(host, &host.repeat(2))), 400);
}

#[test]
fn http_1_0_cannot_upgrade_but_its_requests_reach_the_application() {
    assert_eq!(request("GET /health HTTP/1.0\r\n\r\n").path, "/health");
    assert_eq!(status(&REQUEST.replace("HTTP/1.1", "HTTP/1.0")), 505);
}

#[test]
fn garbage_is_refused_at_once() {
    let refuse = |bytes: &[u8]| {
        Acceptor::new(HandshakeLimits::default()).receive(bytes).map(drop).unwrap_err().status()
    };
    assert_eq!(refuse(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), 400, "TLS");
    assert_eq!(refuse(b"SSH-2.0-OpenSSH_9.9\r\n"), 400);
    assert_eq!(refuse(b"GET /\r\n\r\n"), 400, "HTTP/0.9");
    assert_eq!(refuse(b"GET / HTTP/1.1\r\nno header\r\n\r\n"), 400);
    assert_eq!(refuse(b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n"), 400);
    assert_eq!(refuse(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505);
}

#[test]
fn a_head_over_the_limits_is_refused() {
    let limits = HandshakeLimits { head_bytes_max: REQUEST.len(), headers_max: 7 };
    let refuse = |text: &str| {
        let whole = Acceptor::new(limits).receive(text.as_bytes()).map(drop).unwrap_err();
        let mut acceptor = Acceptor::new(limits);
        let chopped = text.bytes().find_map(|byte| acceptor.receive(&[byte]).err()).unwrap();
        assert_eq!(whole, chopped);
        whole.status()
    };
    assert_eq!(refuse(&REQUEST.replace("/chat", "/chats")), 431);
    assert_eq!(refuse(&format!("GET /{}", "x".repeat(1000))), 431);
    // What is wrong behind the limit is not looked at.
    assert_eq!(refuse(&format!("GET /{} HTTP/1.1\r\n\0", "x".repeat(1000))), 431);
    assert_eq!(refuse(&format!("GET / HTTP/1.1\r\n{}\r\n", "a:b\r\n".repeat(8))), 431);
    assert!(Acceptor::new(limits).receive(REQUEST.as_bytes()).unwrap().is_some());
}

#[test]
fn the_application_answers_what_it_likes() {
    assert_eq!(
        Refusal::new(200).with_body("application/json", "{}").unwrap().to_bytes(),
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    );
    assert_eq!(
        Refusal::new(444).to_bytes(),
        "HTTP/1.1 444 \r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    );
    for no_answer in [0, 99, 100, 101, 199, 600, 65535] {
        assert_eq!(Refusal::new(no_answer).status(), 500);
    }
}

// The client's side.

#[test]
fn a_client_asks() {
    let handshake = ClientHandshake::new(
        ClientRequest {
            host: "localhost:1234".to_owned(),
            target: "/room?token=a%20b".to_owned(),
            subprotocols: vec!["a".to_owned(), "b".to_owned()],
            headers: vec![("Authorization".to_owned(), "Bearer x".to_owned())],
        },
        HandshakeLimits::default(),
        0,
    )
    .unwrap();
    // The first outputs of SplitMix64(0) are 0xe220a8397b1dcdaf and 0x6e789e6aa1b965f4.
    assert_eq!(
        handshake.request(),
        "GET /room?token=a%20b HTTP/1.1\r\n\
         Host: localhost:1234\r\n\
         Upgrade: websocket\r\n\
         Connection: Upgrade\r\n\
         Sec-WebSocket-Key: 4iCoOXsdza9ueJ5qobll9A==\r\n\
         Sec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: a, b\r\n\
         Authorization: Bearer x\r\n\
         \r\n"
    );
    let request = Acceptor::new(HandshakeLimits::default()).receive(handshake.request()).unwrap().unwrap();
    assert_eq!(request.upgrade(), Ok(()));
}

#[test]
fn what_cannot_be_asked_is_refused_to_the_caller() {
    let error = |change: fn(&mut ClientRequest)| {
        let mut request = client_request();
        change(&mut request);
        ClientHandshake::new(request, HandshakeLimits::default(), 0).map(drop).unwrap_err()
    };
    for target in ["", "room", "/a b", "/é", "/a\r\nb", "/a#b"] {
        let request = ClientRequest { target: target.to_owned(), ..client_request() };
        let error = ClientHandshake::new(request, HandshakeLimits::default(), 0).map(drop);
        assert_eq!(error, Err(InvalidClientRequest::Target), "{target:?}");
    }
    assert!(matches!(error(|r| r.host = "a\r\nb".into()), InvalidClientRequest::Header(_)));
    assert!(matches!(
        error(|r| r.headers = vec![("a b".into(), "".into())]),
        InvalidClientRequest::Header(_)
    ));
    assert!(matches!(error(|r| r.subprotocols = vec!["a,b".into()]), InvalidClientRequest::Subprotocol(_)));
    assert!(matches!(
        error(|r| r.subprotocols = vec!["a".into(), "a".into()]),
        InvalidClientRequest::Subprotocol(_)
    ));
}

#[test]
fn a_proper_response_is_accepted_in_any_pieces() {
    let mut handshake = client();
    let response = [response(&handshake).as_bytes(), b"\x82\x00"].concat();
    let (head, rest) = response.split_at(response.len() - 2);
    for byte in &head[..head.len() - 1] {
        assert!(handshake.receive(&[*byte]).unwrap().is_none());
    }
    let last = [&head[head.len() - 1..], rest].concat();
    let upgraded = handshake.receive(&last).unwrap().unwrap();
    assert_eq!(upgraded.subprotocol.as_deref(), Some("chat"));
    assert_eq!(upgraded.headers.get("upgrade"), Some("websocket"));
    assert_eq!(upgraded.into_rest(), b"\x82\x00");
}

#[test]
fn a_client_verifies_the_response() {
    let check = |from: &str, to: &str| {
        let mut handshake = client();
        let response = response(&handshake);
        assert!(response.contains(from));
        handshake.receive(response.replace(from, to).as_bytes()).map(|upgraded| upgraded.unwrap().subprotocol)
    };
    assert_eq!(check("Upgrade: websocket\r\n", ""), Err(ClientHandshakeError::Upgrade));
    assert_eq!(check("Upgrade: websocket", "Upgrade: h2c"), Err(ClientHandshakeError::Upgrade));
    assert_eq!(check("Connection: Upgrade", "Connection: close"), Err(ClientHandshakeError::Connection));
    assert_eq!(check("Accept: ", "Accept: x"), Err(ClientHandshakeError::Accept));
    assert_eq!(check("Sec-WebSocket-Accept", "X"), Err(ClientHandshakeError::Accept));
    let extension = "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
    assert_eq!(check("\r\n\r\n", &format!("\r\n{extension}")), Err(ClientHandshakeError::Extension));
    assert_eq!(check("chat", "soap"), Err(ClientHandshakeError::Subprotocol));
    assert_eq!(check("chat", "chat, superchat"), Err(ClientHandshakeError::Subprotocol));
    assert_eq!(check("Sec-WebSocket-Protocol", "X"), Ok(None));
    assert_eq!(check("HTTP/1.1", "ICY"), Err(ClientHandshakeError::NotHttp));
}

#[test]
fn a_client_learns_why_and_for_how_long_it_is_refused() {
    let refused = |response: &str| client().receive(response.as_bytes()).map(drop);
    let error = |status, seconds: Option<u64>| {
        let retry_after = seconds.map(Duration::from_secs);
        Err(ClientHandshakeError::Refused { status, retry_after })
    };
    assert_eq!(refused("HTTP/1.1 403 Forbidden\r\n\r\n"), error(403, None));
    assert_eq!(refused("HTTP/1.1 503 \r\nRetry-After: 120\r\n\r\n"), error(503, Some(120)));
    let date = "HTTP/1.1 503 \r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n\r\n";
    assert_eq!(refused(date), error(503, None));
}

#[test]
fn a_response_over_the_limits_fails() {
    let limits = HandshakeLimits { head_bytes_max: 100, headers_max: 2 };
    let handshake = || ClientHandshake::new(client_request(), limits, 0).unwrap();
    let too_long = format!("HTTP/1.1 101 \r\nX: {}", "x".repeat(100));
    let too_many = format!("HTTP/1.1 101 \r\n{}\r\n", "a: b\r\n".repeat(3));
    let wrong_behind_the_limit = format!("{too_long}\r\n\0");
    for response in [too_long, too_many, wrong_behind_the_limit] {
        let result = handshake().receive(response.as_bytes()).map(drop);
        assert_eq!(result, Err(ClientHandshakeError::HeadTooLarge));
    }
}

proptest! {
    #[test]
    fn pieces_do_not_matter(
        from in 0..REQUEST.len(),
        with in prop::collection::vec(any::<u8>(), 0..4),
        cut in 1..40_usize,
    ) {
        let mut bytes = REQUEST.as_bytes().to_vec();
        let to = (from + with.len()).min(bytes.len());
        bytes.splice(from..to, with);
        let whole = first_result(&[&bytes]);
        prop_assert_eq!(&first_result(&bytes.chunks(1).collect::<Vec<_>>()), &whole);
        prop_assert_eq!(&first_result(&bytes.chunks(cut).collect::<Vec<_>>()), &whole);
    }

    #[test]
    fn no_response_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = client().receive(&bytes);
        let _ = client().receive(&[b"HTTP/1.1 101 \r\n", &bytes[..], b"\r\n\r\n"].concat());
    }
}

/// The response to these pieces, in one string.
fn first_result(pieces: &[&[u8]]) -> Option<String> {
    let mut acceptor = Acceptor::new(HandshakeLimits::default());
    for piece in pieces {
        match acceptor.receive(piece) {
            Ok(None) => {}
            Ok(Some(request)) => return Some(format!("{:?}", request.accept(None, &[]))),
            Err(refusal) => return Some(format!("{refusal:?}")),
        }
    }
    None
}

/// Reads a request, byte by byte.
fn request(text: &str) -> Request {
    let mut acceptor = Acceptor::new(HandshakeLimits::default());
    let (last, before) = text.as_bytes().split_last().unwrap();
    for byte in before {
        assert!(acceptor.receive(&[*byte]).unwrap().is_none());
    }
    acceptor.receive(&[*last]).unwrap().unwrap()
}

/// What a request that is no proper upgrade is answered.
fn refusal(text: &str) -> String {
    let refusal = request(text).upgrade().unwrap_err();
    assert_eq!(request(text).accept(None, &[]), Err(AcceptError::Refused(refusal.clone())));
    String::from_utf8(refusal.to_bytes().to_vec()).unwrap()
}

fn status(text: &str) -> u16 {
    request(text).upgrade().unwrap_err().status()
}

fn client_request() -> ClientRequest {
    ClientRequest {
        host: "localhost".to_owned(),
        target: "/".to_owned(),
        subprotocols: vec!["chat".to_owned(), "superchat".to_owned()],
        headers: vec![],
    }
}

fn client() -> ClientHandshake {
    ClientHandshake::new(client_request(), HandshakeLimits::default(), 7).unwrap()
}

/// What our own server answers.
fn response(handshake: &ClientHandshake) -> String {
    let mut acceptor = Acceptor::new(HandshakeLimits::default());
    let request = acceptor.receive(handshake.request()).unwrap().unwrap();
    String::from_utf8(request.accept(Some("chat"), &[]).unwrap().to_vec()).unwrap()
}
