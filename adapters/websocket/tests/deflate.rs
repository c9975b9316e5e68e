//! permessage-deflate (RFC 7692): what is agreed on, and what becomes of given bytes.

mod common;

use bytes::Bytes;
use common::*;
use flate2::{Compress, Compression, FlushCompress};
use proptest::prelude::*;
use yrs_websocket_rfc6455::{
    Acceptor, AgreedDeflate, ClientHandshake, ClientHandshakeError, ClientRequest, CloseCode, Closed, Config,
    Connection, Deflate, Deflater, Event, HandshakeLimits, Opcode, Refusal, Role, Violation,
};

/// First bytes of frames of compressed messages: RSV1 beside FIN and the opcode.
const DEFLATED_TEXT: u8 = 0xc1;
const DEFLATED_BINARY: u8 = 0xc2;
const DEFLATED_TEXT_BEGINS: u8 = 0x41;
const DEFLATED_BINARY_BEGINS: u8 = 0x42;

/// `Hello`, as in RFC 7692 section 7.2.3.1.
const HELLO: &[u8] = &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];

// The examples of RFC 7692 section 7.2.3.

#[test]
fn a_message_in_one_block() {
    receives(&masked(DEFLATED_TEXT, HELLO), &[text("Hello")]);
    let fragments = [masked(DEFLATED_TEXT_BEGINS, &HELLO[..3]), masked(ENDS, &HELLO[3..])];
    receives(&fragments.concat(), &[text("Hello")]);
}

#[test]
fn nobody_refers_back_to_an_earlier_message() {
    // The second message of the example says: what you had at a distance of five bytes.
    let again = [masked(DEFLATED_TEXT, HELLO), masked(DEFLATED_TEXT, &[0xf2, 0x00, 0x11, 0x00, 0x00])];
    let (events, _) = receive(&mut server(), start(), [&again.concat()[..]]);
    assert_eq!(events, [text("Hello"), Event::Closed(Closed::Violation(Violation::InvalidDeflate))]);

    let mut server = server();
    server.send_text("Hello");
    server.send_text("Hello");
    assert_eq!(written(&mut server), unmasked(DEFLATED_TEXT, HELLO).repeat(2));
}

#[test]
fn a_block_without_compression() {
    let block = [0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00];
    receives(&masked(DEFLATED_TEXT, &block), &[text("Hello")]);
}

#[test]
fn a_final_block() {
    let block = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00];
    receives(&masked(DEFLATED_TEXT, &block), &[text("Hello")]);
}

#[test]
fn two_blocks() {
    let blocks = [0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00];
    receives(&masked(DEFLATED_TEXT, &blocks), &[text("Hello")]);
}

#[test]
fn an_empty_message_and_an_empty_fragment() {
    receives(&masked(DEFLATED_TEXT, &[0x00]), &[text("")]);
    let fragments =
        [masked(DEFLATED_TEXT_BEGINS, &HELLO[..6]), masked(CONTINUES, b""), masked(ENDS, &[0x00])];
    receives(&fragments.concat(), &[text("Hello")]);
    let begins_empty = [masked(DEFLATED_TEXT_BEGINS, b""), masked(ENDS, HELLO)];
    receives(&begins_empty.concat(), &[text("Hello")]);
}

// Receiving.

#[test]
fn what_follows_a_final_block_may_refer_back_to_it() {
    let first = noise(3000);
    let mut payload = deflated(&first, FlushCompress::Finish, &[]);
    payload.extend(deflated(&first[1000..2000], FlushCompress::Finish, &first));
    let both = [&first[..], &first[1000..2000]].concat();
    payload.extend(deflated(&both[500..], FlushCompress::Sync, &both));
    payload.truncate(payload.len() - 4);
    assert!(payload.len() < 3100);
    receives(&masked(DEFLATED_BINARY, &payload), &[binary(&[&both[..], &both[500..]].concat())]);
}

#[test]
fn plain_messages_come_between_and_so_do_control_frames() {
    receives(
        &[
            masked(BINARY, b"plain"),
            masked(DEFLATED_TEXT_BEGINS, &HELLO[..2]),
            masked(PONG, b"q"),
            masked(CONTINUES, &HELLO[2..4]),
            masked(PONG, b""),
            masked(ENDS, &HELLO[4..]),
            masked(TEXT, b"plain"),
        ]
        .concat(),
        &[binary(b"plain"), Event::Pong("q".into()), Event::Pong("".into()), text("Hello"), text("plain")],
    );
}

#[test]
fn a_character_may_be_cut_between_fragments() {
    let payload = deflate_message("€".as_bytes());
    for cut in 0..payload.len() {
        let (before, after) = payload.split_at(cut);
        receives(&[masked(DEFLATED_TEXT_BEGINS, before), masked(ENDS, after)].concat(), &[text("€")]);
    }
}

#[test]
fn bad_text_is_noticed_before_the_rest_of_the_message_has_come() {
    let mut payload = deflated(b"\xf4\x90", FlushCompress::Sync, &[]);
    payload.extend(deflate_message(b" and so on"));
    let frame = masked(DEFLATED_TEXT, &payload);
    refuses(&frame[..frame.len() - 10], Violation::InvalidUtf8, 1007);
}

#[test]
fn text_that_is_not_utf8_closes_with_1007() {
    for bytes in [&b"\xff"[..], b"\xc0\xaf", b"\xed\xa0\x80", b"cut \xe2\x82"] {
        refuses(&masked(DEFLATED_TEXT, &deflate_message(bytes)), Violation::InvalidUtf8, 1007);
    }
}

#[test]
fn what_does_not_decompress_closes_with_1007() {
    let final_block = deflated(b"Hello", FlushCompress::Finish, &[]);
    for (payload, what) in [
        (&b""[..], "not even the bits of an empty block"),
        (&[0x07], "a block of a kind that there is not"),
        (&[0x00, 0x05, 0x00, 0xfa, 0xfe], "a length and another one"),
        (&[0x02, 0x11, 0x00], "a distance further than there is something"),
        (&HELLO[..6], "cut by a byte"),
        (&HELLO[..3], "cut within a block"),
        (&final_block, "nothing behind the final block"),
        (&[0x01, 0x06, 0x00, 0xf9, 0xff], "a block that what is not sent would fill"),
        (&[0x00, 0x05, 0x00, 0xfa, 0xff, b'H'], "a block that is not full"),
    ] {
        let frame = masked(DEFLATED_BINARY, payload);
        let (events, output) = receive(&mut server(), start(), [&frame[..]]);
        assert_eq!(events, [Event::Closed(Closed::Violation(Violation::InvalidDeflate))], "{what}");
        assert_eq!(output, close(Violation::InvalidDeflate, 1007), "{what}");
        refuses(&frame, Violation::InvalidDeflate, 1007);
    }
}

#[test]
fn rsv1_is_for_the_first_frame_of_a_message_only() {
    for kind in [CLOSE, PING, PONG] {
        refuses(&masked(0x40 | kind, b""), Violation::ReservedBits, 1002);
    }
    let begins = masked(DEFLATED_TEXT_BEGINS, HELLO);
    for continues in [CONTINUES, ENDS] {
        let continues = masked(0x40 | continues, HELLO);
        refuses(&[begins.clone(), continues].concat(), Violation::ReservedBits, 1002);
    }
    for reserved in [0x20, 0x10, 0x60, 0x50] {
        refuses(&masked(BINARY | reserved, b""), Violation::ReservedBits, 1002);
    }
}

#[test]
fn a_message_as_long_as_the_limit_is_received_and_one_byte_more_closes_with_1009() {
    let config = Config { message_len_max: 100_000, ..Config::default() };
    for byte in [0, 1] {
        let exact = masked(DEFLATED_BINARY, &deflate_message(&vec![byte; 100_000]));
        let more = masked(DEFLATED_BINARY, &deflate_message(&vec![byte; 100_001]));
        assert!(more.len() < 200);
        receives_with(&config, &exact, &[binary(&vec![byte; 100_000])], b"");
        refuses_with(&config, &more, Violation::MessageTooLong, 1009);
    }
    // Behind the limit nothing is looked at.
    let endless = [deflated(&[0; 200_000], FlushCompress::Sync, &[]), vec![0xff; 10]].concat();
    refuses_with(&config, &masked(DEFLATED_BINARY, &endless), Violation::MessageTooLong, 1009);
}

#[test]
fn a_frame_over_the_limit_closes_with_1009_at_its_header() {
    let config = Config { frame_len_max: 1000, ..Config::default() };
    let frame = masked(DEFLATED_BINARY, &[0; 1001]);
    refuses_with(&config, &frame[..8], Violation::FrameTooLong, 1009);
    let long = masked(DEFLATED_BINARY, &deflate_message(&[7; 100_000]));
    receives_with(&config, &long, &[binary(&[7; 100_000])], b"");
}

#[test]
fn many_final_blocks_are_as_many_fragments() {
    let config = Config { fragments_max: 3, ..Config::default() };
    let blocks = |count| {
        let mut payload = [0x03, 0x00].repeat(count);
        payload.push(0);
        masked(DEFLATED_BINARY, &payload)
    };
    receives_with(&config, &blocks(2), &[binary(b"")], b"");
    refuses_with(&config, &blocks(3), Violation::TooManyFragments, 1009);
    let fragment = masked(DEFLATED_BINARY_BEGINS, b"");
    let end = masked(ENDS, &[0x03, 0x00, 0x03, 0x00, 0x00]);
    refuses_with(&config, &[fragment, end].concat(), Violation::TooManyFragments, 1009);
}

#[test]
fn after_our_close_nothing_is_decompressed() {
    let mut server = server();
    receive(&mut server, start(), [&masked(DEFLATED_TEXT_BEGINS, &HELLO[..3])[..]]);
    server.close(start(), CloseCode::NORMAL, "");
    written(&mut server);
    let late = [masked(ENDS, b"\xff"), masked(DEFLATED_BINARY, b"\xff"), masked(CLOSE, b"")].concat();
    assert_eq!(receive(&mut server, start(), [&late[..]]).0, [Event::Closed(Closed::ByUs(None))]);
}

#[test]
fn where_nothing_was_agreed_rsv1_closes_with_1002() {
    let mut server = Connection::new(Role::Server, Config::default(), start());
    assert_eq!(server.deflate(), None);
    let (events, _) = receive(&mut server, start(), [&masked(DEFLATED_TEXT, HELLO)[..]]);
    assert_eq!(events, [Event::Closed(Closed::Violation(Violation::ReservedBits))]);
}

// Sending.

#[test]
fn short_messages_and_control_frames_are_sent_as_they_are() {
    let deflate = Deflate { len_min: 6, ..ALL };
    let mut server = connection(Role::Server, agreed(deflate, "permessage-deflate"));
    server.send_text("short");
    server.send_binary(&[7; 100]);
    server.ping(&[7; 100]);
    server.close(start(), CloseCode::NORMAL, "because of something or other");
    let deflated = unmasked(DEFLATED_BINARY, &deflate_message(&[7; 100]));
    let close = unmasked(CLOSE, &close_payload(1000, "because of something or other"));
    let expected = [unmasked(TEXT, b"short"), deflated, unmasked(PING, &[7; 100]), close];
    assert_eq!(written(&mut server), expected.concat());
}

#[test]
fn a_frame_encoded_once_is_what_each_connection_would_send() {
    let agreed = agreed(ALL, "permessage-deflate");
    let mut deflater = Deflater::new();
    for len in [0, 1, 200, 70_000, 300_000] {
        let payload = noise(len);
        let frame = deflater.encode_frame(agreed, Opcode::Binary, &payload);
        let mut server = connection(Role::Server, agreed);
        server.send_binary(&payload);
        assert_eq!(frame, written(&mut server));
        let mut client = connection(Role::Client { mask_seed: 1 }, agreed);
        assert_eq!(receive(&mut client, start(), [&frame[..]]).0, [binary(&payload)]);
    }
}

#[test]
fn a_frame_encoded_once_is_compressed_from_the_length_on_that_was_set() {
    let mut deflater = Deflater::new();
    let agreed = agreed(Deflate { len_min: 6, ..ALL }, "permessage-deflate");
    assert!(!agreed.applies_to(5) && agreed.applies_to(6));
    assert_eq!(deflater.encode_frame(agreed, Opcode::Text, b"short"), unmasked(TEXT, b"short"));
    let longer = unmasked(DEFLATED_TEXT, &deflate_message(b"longer"));
    assert_eq!(deflater.encode_frame(agreed, Opcode::Text, b"longer"), longer);
}

#[test]
fn a_window_of_256_bytes_is_agreed_to_and_nothing_is_compressed() {
    let agreed =
        answered("permessage-deflate; server_no_context_takeover; client_max_window_bits=8").unwrap();
    let agreed = agreed.expect("something was agreed");
    let mut client = connection(Role::Client { mask_seed: 1 }, agreed);
    client.send_binary(&[7; 100]);
    let (events, _) = receive(&mut server(), start(), [&written(&mut client)[..]]);
    assert_eq!(events, [binary(&[7; 100])]);
    let frame = Deflater::new().encode_frame(agreed, Opcode::Binary, &[7; 100]);
    assert_eq!(frame, unmasked(BINARY, &[7; 100]));
}

#[test]
fn nobody_refers_further_back_than_was_agreed() {
    for bits in 9..15 {
        // All that repeats is the whole, from just beyond the window.
        let payload = noise((1 << bits) + 1).repeat(2);
        for level in 1..=9 {
            let frame_len = |offer: &str| {
                let agreed = agreed(Deflate { level, ..ALL }, offer);
                Deflater::new().encode_frame(agreed, Opcode::Binary, &payload).len()
            };
            let narrow = frame_len(&format!("permessage-deflate; server_max_window_bits={bits}"));
            assert!(narrow > payload.len(), "level {level}, {bits} bits: {narrow} of {}", payload.len());
            let wide = frame_len("permessage-deflate");
            assert!(wide < payload.len() * 2 / 3, "level {level}: {wide} of {}", payload.len());
        }
    }
}

// The server's side of the handshake: RFC 7692 sections 5.1 and 7.1.
#[test]
fn offers_and_what_is_answered() {
    const PLAIN: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    let with_bits = |bits| Some(format!("{PLAIN}; server_max_window_bits={bits}"));
    let plain = || Some(PLAIN.to_owned());
    for (offer, answer) in [
        ("permessage-deflate", plain()),
        ("permessage-deflate; client_max_window_bits", plain()),
        ("permessage-deflate;client_max_window_bits=8", plain()),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", plain()),
        ("permessage-deflate; server_max_window_bits=15", with_bits(15)),
        ("permessage-deflate; client_max_window_bits; server_max_window_bits=9", with_bits(9)),
        ("permessage-deflate \t;\tserver_max_window_bits = \"10\" ", with_bits(10)),
        ("permessage-deflate; server_max_window_bits=\"1\\0\"", with_bits(10)),
        // No compressor of ours has a window of 256 bytes.
        ("permessage-deflate; server_max_window_bits=8", None),
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate", plain()),
        // The first that can be met.
        ("permessage-deflate; server_max_window_bits=12, permessage-deflate", with_bits(12)),
        ("permessage-deflate; x, permessage-deflate; server_max_window_bits=11", with_bits(11)),
        ("x-webkit-deflate-frame, permessage-deflate", plain()),
        (", ,permessage-deflate,,", plain()),
        ("permessage-bzip2; compression_level=9", None),
        ("", None),
        ("Permessage-Deflate", None),
        // Unknown, repeated or wrong parameters.
        ("permessage-deflate; unknown", None),
        ("permessage-deflate; server_no_context_takeover=1", None),
        ("permessage-deflate; client_no_context_takeover=true", None),
        ("permessage-deflate; server_no_context_takeover; server_no_context_takeover", None),
        ("permessage-deflate; client_no_context_takeover; client_no_context_takeover", None),
        ("permessage-deflate; server_max_window_bits=10; server_max_window_bits=10", None),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits=10", None),
        ("permessage-deflate; client_max_window_bits=10; client_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=7", None),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; server_max_window_bits=010", None),
        ("permessage-deflate; server_max_window_bits=+9", None),
        ("permessage-deflate; client_max_window_bits=16", None),
        ("permessage-deflate; client_max_window_bits=256", None),
        ("permessage-deflate; client_max_window_bits=09", None),
    ] {
        assert_eq!(server_answer(&[offer]), Ok(answer), "{offer}");
    }
    let two_headers = ["permessage-deflate; server_max_window_bits=8", "permessage-deflate"];
    assert_eq!(server_answer(&two_headers), Ok(plain()));
}

#[test]
fn a_malformed_header_is_refused() {
    for header in [
        "permessage-deflate;",
        "permessage-deflate; ;",
        "permessage-deflate; server_max_window_bits=",
        "permessage-deflate; server_max_window_bits=\"10",
        "permessage-deflate; server_max_window_bits=\"\"",
        "permessage-deflate; a=\"b, permessage-deflate, c\"",
        "permessage-deflate client_max_window_bits",
        "permessage-deflate; a=b=c",
        "=",
        "; a",
        "permessage/deflate",
        "permessage-d\u{e9}flate",
    ] {
        assert_eq!(server_answer(&[header]).map_err(|refusal| refusal.status()), Err(400), "{header}");
        assert_eq!(
            server_answer(&["permessage-deflate", header]).map_err(|refusal| refusal.status()),
            Err(400)
        );
    }
}

#[test]
fn without_the_option_no_offer_is_answered() {
    let mut acceptor = Acceptor::new(HandshakeLimits::default());
    let request = acceptor.receive(&request_with(&["permessage-deflate"])).unwrap().unwrap();
    assert_eq!(request.deflate(), None);
    assert!(!request.accept(None, &[]).unwrap().windows(10).any(|window| window == b"Extensions"));
}

// The client's side.

#[test]
fn a_client_offers_and_the_answer_of_our_server_is_good() {
    let handshake = client_handshake();
    let request = String::from_utf8(handshake.request().to_vec()).unwrap();
    assert!(request.ends_with(
        "\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; \
         client_no_context_takeover; client_max_window_bits\r\n\r\n"
    ));
    let mut acceptor = Acceptor::new(HandshakeLimits::default()).with_deflate(Some(ALL));
    let request = acceptor.receive(handshake.request()).unwrap().unwrap();
    let response = request.accept(None, &[]).unwrap();
    let mut handshake = handshake;
    let upgraded = handshake.receive(&response).unwrap().unwrap();
    assert!(upgraded.deflate.is_some());
    assert_eq!(upgraded.deflate, request.deflate());
}

#[test]
fn a_client_takes_an_answer_that_meets_its_offer_and_no_other() {
    assert_eq!(answered(""), Ok(None), "declined");
    for answer in [
        "permessage-deflate; server_no_context_takeover",
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        // Section 7.1.2.1: a server may say so unasked.
        "permessage-deflate; server_no_context_takeover; server_max_window_bits=8",
        "permessage-deflate; server_no_context_takeover; client_max_window_bits=9",
    ] {
        assert!(answered(answer).unwrap().is_some(), "{answer}");
    }
    for answer in [
        "permessage-deflate",
        "permessage-deflate; client_no_context_takeover",
        "permessage-deflate; server_no_context_takeover; client_max_window_bits",
        "permessage-deflate; server_no_context_takeover; server_max_window_bits",
        "permessage-deflate; server_no_context_takeover; server_max_window_bits=7",
        "permessage-deflate; server_no_context_takeover; client_max_window_bits=16",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; server_no_context_takeover; unknown",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; server_no_context_takeover, permessage-deflate; server_no_context_takeover",
        "permessage-deflate; server_no_context_takeover, other",
        "other",
        "permessage-deflate; server_no_context_takeover;",
    ] {
        assert_eq!(answered(answer), Err(ClientHandshakeError::Extension), "{answer}");
    }
}

// However the bytes are cut, the events and the output are the same.

proptest! {
    #[test]
    fn pieces_do_not_matter(
        frames in frames(),
        changed in prop::option::weighted(0.5, (any::<prop::sample::Index>(), any::<u8>())),
        cut in 1..60_usize,
    ) {
        let mut bytes = frames.concat();
        if let Some((at, with)) = changed && !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = with;
        }
        let config = Config { message_len_max: 1000, fragments_max: 6, ..Config::default() };
        let connection = || {
            Connection::new(Role::Server, config.clone(), start()).with_deflate(Some(default_agreed()))
        };
        let start = start();
        let whole = receive(&mut connection(), start, [&bytes[..]]);
        prop_assert_eq!(&receive(&mut connection(), start, bytes.chunks(1)), &whole);
        prop_assert_eq!(&receive(&mut connection(), start, bytes.chunks(cut)), &whole);
    }

    #[test]
    fn what_one_end_sends_the_other_receives(
        messages in prop::collection::vec(payload(), 0..6),
        level in 0..12_u8,
        len_min in 0..200_u32,
        bits in 9..16_u8,
        mask_seed: u64,
        cut in 1..5000_usize,
    ) {
        let offer = format!("permessage-deflate; server_max_window_bits={bits}");
        let agreed = agreed(Deflate { level, len_min }, &offer);
        for role in [Role::Server, Role::Client { mask_seed }] {
            let other = if role == Role::Server { Role::Client { mask_seed } } else { Role::Server };
            let mut sender = connection(role, agreed);
            let mut expected = Vec::new();
            for message in &messages {
                match str::from_utf8(message) {
                    Ok(message) => {
                        sender.send_text(message);
                        expected.push(text(message));
                    }
                    Err(_) => {
                        sender.send_binary(message);
                        expected.push(binary(message));
                    }
                }
            }
            let bytes = written(&mut sender);
            let (events, _) = receive(&mut connection(other, agreed), start(), bytes.chunks(cut));
            prop_assert_eq!(events, expected);
        }
    }

    #[test]
    fn no_header_is_too_strange(value in "[ \\t;,=\"\\\\a-c]{0,20}") {
        // Each element that is read is one that was there.
        let header = format!("{value}, permessage-deflate");
        if let Ok(answer) = server_answer(&[&header]) {
            prop_assert!(answer.is_some());
        }
    }
}

/// Frames of a client, most of them good.
fn frames() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let message = (any::<bool>(), payload(), prop::collection::vec(0..60_usize, 0..4));
    let message = message.prop_map(|(is_text, payload, cuts)| {
        let payload = deflate_message(&payload);
        let mut first = if is_text { DEFLATED_TEXT_BEGINS } else { DEFLATED_BINARY_BEGINS };
        let (mut rest, mut frames) = (&payload[..], Vec::new());
        for cut in cuts {
            let (part, after) = rest.split_at(cut.min(rest.len()));
            frames.extend(masked(first, part));
            frames.extend(masked(PING, b"p"));
            (first, rest) = (CONTINUES, after);
        }
        frames.extend(masked(0x80 | first, rest));
        frames
    });
    let plain = "[a-zé€😀]{0,40}".prop_map(|text| masked(TEXT, text.as_bytes()));
    prop::collection::vec(prop_oneof![4 => message, 1 => plain], 0..6)
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-zé€😀]{0,60}".prop_map(String::into_bytes),
        2 => prop::collection::vec(any::<u8>(), 0..200),
        2 => (any::<u8>(), 0..3000_usize).prop_map(|(byte, len)| vec![byte; len]),
        1 => (0..70_000_usize).prop_map(noise),
    ]
}

/// Everything is compressed.
const ALL: Deflate = Deflate { level: 6, len_min: 0 };

fn default_agreed() -> AgreedDeflate {
    agreed(ALL, "permessage-deflate")
}

/// What a server agrees on with a client that offers this.
fn agreed(deflate: Deflate, offer: &str) -> AgreedDeflate {
    let mut acceptor = Acceptor::new(HandshakeLimits::default()).with_deflate(Some(deflate));
    acceptor.receive(&request_with(&[offer])).unwrap().unwrap().deflate().unwrap()
}

/// The extension that a server answers these headers with.
fn server_answer(headers: &[&str]) -> Result<Option<String>, Refusal> {
    let mut acceptor = Acceptor::new(HandshakeLimits::default()).with_deflate(Some(ALL));
    let request = acceptor.receive(&request_with(headers))?.unwrap();
    request.upgrade()?;
    let response = String::from_utf8(request.accept(None, &[]).unwrap().to_vec()).unwrap();
    let line = response.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: "));
    assert_eq!(line.is_some(), request.deflate().is_some());
    Ok(line.map(str::to_owned))
}

fn request_with(headers: &[&str]) -> Vec<u8> {
    let headers: String =
        headers.iter().map(|value| format!("Sec-WebSocket-Extensions: {value}\r\n")).collect();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
    );
    request.into_bytes()
}

fn client_handshake() -> ClientHandshake {
    let request = ClientRequest { host: "h".into(), target: "/".into(), ..ClientRequest::default() };
    ClientHandshake::new(request, HandshakeLimits::default(), 7).unwrap().with_deflate(Some(ALL))
}

/// What a client makes of a response with this extension.
fn answered(extension: &str) -> Result<Option<AgreedDeflate>, ClientHandshakeError> {
    let mut handshake = client_handshake();
    let request = Acceptor::new(HandshakeLimits::default()).receive(handshake.request()).unwrap().unwrap();
    let response = request.accept(None, &[("Sec-WebSocket-Extensions", extension)]).unwrap();
    handshake.receive(&response).map(|upgraded| upgraded.unwrap().deflate)
}

fn connection(role: Role, agreed: AgreedDeflate) -> Connection {
    Connection::new(role, Config::default(), start()).with_deflate(Some(agreed))
}

fn server() -> Connection {
    connection(Role::Server, default_agreed())
}

/// Checks the events, for the bytes in one piece and one by one.
fn receives(bytes: &[u8], events: &[Event]) {
    receives_with(&Config::default(), bytes, events, b"");
}

fn receives_with(config: &Config, bytes: &[u8], events: &[Event], output: &[u8]) {
    let server =
        || Connection::new(Role::Server, config.clone(), start()).with_deflate(Some(default_agreed()));
    let expected = (events.to_vec(), output.to_vec());
    assert_eq!(receive(&mut server(), start(), [bytes]), expected);
    assert_eq!(receive(&mut server(), start(), bytes.chunks(1)), expected);
}

fn refuses(bytes: &[u8], violation: Violation, code: u16) {
    refuses_with(&Config::default(), bytes, violation, code);
}

/// Checks that the bytes end the connection, and with which close frame.
fn refuses_with(config: &Config, bytes: &[u8], violation: Violation, code: u16) {
    let closed = Event::Closed(Closed::Violation(violation));
    receives_with(config, bytes, &[closed], &close(violation, code));
}

fn close(violation: Violation, code: u16) -> Vec<u8> {
    unmasked(CLOSE, &close_payload(code, &violation.to_string()))
}

/// The payload of a compressed message.
fn deflate_message(message: &[u8]) -> Vec<u8> {
    let mut payload = deflated(message, FlushCompress::Sync, &[]);
    payload.truncate(payload.len() - 4);
    payload
}

/// What a stream compresses to, that has seen `before`.
fn deflated(bytes: &[u8], flush: FlushCompress, before: &[u8]) -> Vec<u8> {
    let mut compress = Compress::new(Compression::new(6), false);
    if !before.is_empty() {
        compress.set_dictionary(before).unwrap();
    }
    let mut output = Vec::with_capacity(2 * bytes.len() + 100);
    compress.compress_vec(bytes, &mut output, flush).unwrap();
    assert!(output.len() < output.capacity() && compress.total_in() == bytes.len() as u64);
    output
}

/// Bytes that do not compress, and are always the same.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let step = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*state >> 24) as u8
    };
    (0..len).map(|_| step(&mut state)).collect()
}

fn text(text: &str) -> Event {
    Event::Text(text.into())
}

fn binary(payload: &[u8]) -> Event {
    Event::Binary(Bytes::copy_from_slice(payload))
}
