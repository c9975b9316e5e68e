//! What a connection makes of given bytes, and at given times.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::*;
use proptest::prelude::*;
use yrs_websocket_rfc6455::{
    CloseCode, CloseFrame, Closed, Config, Connection, Event, Opcode, Role, Text, Violation, encode_frame,
    frame_header,
};

// The examples of RFC 6455 section 5.7.

#[test]
fn unmasked_text() {
    client_receives(&[0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f], &[text("Hello")], &[]);
}

#[test]
fn masked_text() {
    server_receives(
        &[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58],
        &[text("Hello")],
        &[],
    );
}

#[test]
fn fragmented_text() {
    client_receives(&[0x01, 0x03, 0x48, 0x65, 0x6c, 0x80, 0x02, 0x6c, 0x6f], &[text("Hello")], &[]);
}

#[test]
fn ping_is_answered() {
    server_receives(
        &[0x89, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58],
        &[Event::Ping("Hello".into())],
        &[0x8a, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f],
    );
}

#[test]
fn binary_of_256_bytes() {
    let payload = [7; 256];
    client_receives(&[&[0x82, 0x7e, 0x01, 0x00], &payload[..]].concat(), &[binary(&payload)], &[]);
    assert_eq!(frame_header(Opcode::Binary, 256).as_ref(), [0x82, 0x7e, 0x01, 0x00]);
}

#[test]
fn binary_of_64_kib() {
    let payload = vec![7; 65536];
    client_receives(
        &[&[0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0], &payload[..]].concat(),
        &[binary(&payload)],
        &[],
    );
    assert_eq!(frame_header(Opcode::Binary, 65536).as_ref(), [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
}

// Sending.

#[test]
fn a_frame_encoded_once_is_header_and_payload() {
    assert_eq!(encode_frame(Opcode::Text, b"Hello"), &[0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f][..]);
    for len in [0, 125, 126, 65535, 65536] {
        let payload = vec![1; len];
        let frame = encode_frame(Opcode::Binary, &payload);
        assert_eq!(frame, unmasked(BINARY, &payload));
        assert_eq!(frame, [frame_header(Opcode::Binary, len).as_ref(), &payload].concat());
    }
}

#[test]
fn a_server_sends_unmasked() {
    let mut server = server();
    server.send_text("a");
    server.send_binary(&[1, 2]);
    server.ping(b"p");
    assert_eq!(
        server.next_output().unwrap(),
        [unmasked(TEXT, b"a"), unmasked(BINARY, &[1, 2]), unmasked(PING, b"p")].concat()
    );
    assert_eq!(server.next_output(), None);
}

#[test]
fn a_client_masks_each_frame_anew_and_the_seed_decides() {
    let frames = |mask_seed| {
        let mut client = Connection::new(Role::Client { mask_seed }, Config::default(), start());
        client.send_binary(b"same");
        let first = client.next_output().unwrap();
        client.send_binary(b"same");
        (first, client.next_output().unwrap())
    };
    let (first, second) = frames(1);
    // The first output of SplitMix64(1) is 0x910a2dec89025cc1.
    assert_eq!(first[..6], [0x82, 0x84, 0x91, 0x0a, 0x2d, 0xec]);
    assert_ne!(first, second);
    assert_eq!(frames(1), (first.clone(), second));
    assert_ne!(frames(2).0, first);

    let (events, _) = receive(&mut server(), start(), [&first[..]]);
    assert_eq!(events, [binary(b"same")]);
}

#[test]
fn a_ping_has_at_most_125_bytes() {
    let mut server = server();
    server.ping(&[0; 200]);
    assert_eq!(written(&mut server), unmasked(PING, &[0; 125]));
}

// Messages and fragments.

#[test]
fn empty_messages() {
    server_receives(&masked(TEXT, b""), &[text("")], &[]);
    server_receives(&masked(BINARY, b""), &[binary(b"")], &[]);
    let fragments = [masked(BINARY_BEGINS, b""), masked(CONTINUES, b""), masked(ENDS, b"")];
    server_receives(&fragments.concat(), &[binary(b"")], &[]);
}

#[test]
fn control_frames_come_between_fragments() {
    server_receives(
        &[
            masked(TEXT_BEGINS, b"one "),
            masked(PING, b"p"),
            masked(CONTINUES, b"two "),
            masked(PONG, b"q"),
            masked(ENDS, b"three"),
        ]
        .concat(),
        &[Event::Ping("p".into()), Event::Pong("q".into()), text("one two three")],
        &unmasked(PONG, b"p"),
    );
}

#[test]
fn the_answer_to_a_message_leaves_before_the_close_that_a_later_frame_provokes() {
    let mut server = server();
    let mut bytes = [masked(TEXT, b"good"), vec![0xff]].concat();
    let mut input = bytes.as_mut_slice();
    assert_eq!(server.receive(start(), &mut input), Some(text("good")));
    assert_eq!(input, [0xff]);
    server.send_text("answer");
    assert_eq!(written(&mut server), unmasked(TEXT, b"answer"));
    assert_eq!(
        server.receive(start(), &mut input),
        Some(Event::Closed(Closed::Violation(Violation::ReservedBits)))
    );
}

#[test]
fn there_is_output_until_it_is_taken() {
    let mut server = server();
    assert!(!server.has_output());
    let mut bytes = masked(PING, &[7]);
    assert_eq!(
        server.receive(start(), &mut bytes.as_mut_slice()),
        Some(Event::Ping(Bytes::from_static(&[7])))
    );
    assert!(server.has_output());
    assert!(server.next_output().is_some());
    assert!(!server.has_output());
    server.send_binary(b"x");
    server.send_binary(b"y");
    assert!(server.has_output());
    assert!(server.next_output().is_some());
    assert!(!server.has_output());
    assert_eq!(server.next_output(), None);
}

#[test]
fn of_many_pings_the_newest_is_answered() {
    let mut server = server();
    let mut bytes: Vec<u8> = (0..100).flat_map(|n| masked(PING, &[n])).collect();
    let mut input = bytes.as_mut_slice();
    let mut pings = 0;
    while let Some(event) = server.receive(start(), &mut input) {
        assert_eq!(event, Event::Ping(Bytes::from(vec![pings])));
        pings += 1;
    }
    assert_eq!(pings, 100);
    assert_eq!(written(&mut server), unmasked(PONG, &[99]));
}

#[test]
fn a_pong_goes_before_the_close_frame() {
    let mut server = server();
    let mut bytes = masked(PING, b"p");
    let _ = server.receive(start(), &mut bytes.as_mut_slice());
    server.close(start(), CloseCode::NORMAL, "");
    assert_eq!(written(&mut server), [unmasked(PONG, b"p"), close(1000, "")].concat());
}

// Violations: RFC 6455 section 5 by section 7.4.1.

#[test]
fn reserved_bits_close_with_1002() {
    for bit in [0x40, 0x20, 0x10] {
        server_refuses(&masked(BINARY | bit, b""), Violation::ReservedBits, 1002);
        server_refuses(&masked(PING | bit, b""), Violation::ReservedBits, 1002);
    }
}

#[test]
fn reserved_opcodes_close_with_1002() {
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        server_refuses(&masked(0x80 | opcode, b""), Violation::ReservedOpcode(opcode), 1002);
    }
}

#[test]
fn an_unmasked_client_closes_with_1002() {
    server_refuses(&unmasked(BINARY, b"x"), Violation::Unmasked, 1002);
}

#[test]
fn a_masking_server_closes_with_1002() {
    let mut client = client();
    let (events, output) = receive(&mut client, start(), [&masked(BINARY, b"x")[..]]);
    assert_eq!(events, [Event::Closed(Closed::Violation(Violation::Masked))]);
    let (events, _) = receive(&mut server(), start(), [&output[..]]);
    assert_eq!(events, [closed_by_peer(1002, "a server's frame is masked")]);
}

#[test]
fn a_fragmented_control_frame_closes_with_1002() {
    for kind in [CLOSE, PING, PONG] {
        server_refuses(&masked(kind & 0x7f, b""), Violation::ControlFragmented, 1002);
    }
}

#[test]
fn a_control_frame_over_125_bytes_closes_with_1002() {
    for kind in [CLOSE, PING, PONG] {
        server_refuses(&masked(kind, &[0; 126]), Violation::ControlTooLong, 1002);
    }
    server_receives(&masked(PONG, &[0; 125]), &[Event::Pong(vec![0; 125].into())], &[]);
}

#[test]
fn a_length_in_more_bytes_than_needed_closes_with_1002() {
    server_refuses(&[0x82, 0xfe, 0, 125], Violation::LengthNotMinimal, 1002);
    server_refuses(&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff], Violation::LengthNotMinimal, 1002);
}

#[test]
fn a_length_with_the_highest_bit_closes_with_1002() {
    server_refuses(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], Violation::LengthOverflow, 1002);
}

#[test]
fn a_continuation_of_nothing_closes_with_1002() {
    server_refuses(&masked(ENDS, b"x"), Violation::UnexpectedContinuation, 1002);
    server_refuses(&masked(CONTINUES, b"x"), Violation::UnexpectedContinuation, 1002);
}

#[test]
fn a_message_within_a_message_closes_with_1002() {
    server_refuses(
        &[masked(TEXT_BEGINS, b"x"), masked(BINARY, b"y")].concat(),
        Violation::ExpectedContinuation,
        1002,
    );
}

#[test]
fn text_that_is_not_utf8_closes_with_1007() {
    for bytes in [&b"\xff"[..], b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"cut \xe2\x82"] {
        server_refuses(&masked(TEXT, bytes), Violation::InvalidUtf8, 1007);
    }
}

#[test]
fn a_character_may_be_cut_between_fragments() {
    server_receives(
        &[masked(TEXT_BEGINS, b"\xe2"), masked(CONTINUES, b"\x82"), masked(ENDS, b"\xac")].concat(),
        &[text("€")],
        &[],
    );
}

#[test]
fn bad_text_is_noticed_at_the_first_bad_byte() {
    // Autobahn 6.4: F4 90 begins no character, whatever follows; the frame announces much more.
    let frame = masked(TEXT, b"\xf4\x90 and so on");
    let (before, at) = (&frame[..7], &frame[7..8]);
    let mut server = server();
    assert_eq!(receive(&mut server, start(), [before]), (vec![], vec![]));
    let (events, _) = receive(&mut server, start(), [at]);
    assert_eq!(events, [Event::Closed(Closed::Violation(Violation::InvalidUtf8))]);
}

#[test]
fn text_closes_with_1003_where_it_is_refused() {
    let config = Config { text_refused: true, ..Config::default() };
    refuses(&config, &masked(TEXT, b"x"), Violation::TextRefused, 1003);
    refuses(&config, &masked(TEXT_BEGINS, b"x"), Violation::TextRefused, 1003);
}

// Limits.

#[test]
fn a_frame_over_the_limit_closes_with_1009_at_its_header() {
    let config = Config { frame_len_max: 1000, ..Config::default() };
    let header_only = |len| masked(BINARY, &vec![0; len])[..8].to_vec();
    refuses(&config, &header_only(1001), Violation::FrameTooLong, 1009);
    let mut server = Connection::new(Role::Server, config, start());
    assert_eq!(receive(&mut server, start(), [&header_only(1000)[..]]), (vec![], vec![]));

    let largest = [&[0x82, 0xff, 0x7f], &[0xff; 7][..], &MASK].concat();
    server_refuses(&largest, Violation::FrameTooLong, 1009);
}

#[test]
fn a_message_over_the_limit_closes_with_1009_at_the_header_that_exceeds_it() {
    let config = Config { message_len_max: 4, ..Config::default() };
    refuses(&config, &masked(BINARY, &[0; 5])[..6], Violation::MessageTooLong, 1009);
    let last_header = &masked(ENDS, b"45")[..6];
    refuses(
        &config,
        &[&masked(BINARY_BEGINS, b"123"), last_header].concat(),
        Violation::MessageTooLong,
        1009,
    );
    let fits = [masked(BINARY_BEGINS, b"123"), masked(ENDS, b"4")].concat();
    let mut server = Connection::new(Role::Server, config, start());
    assert_eq!(receive(&mut server, start(), [&fits[..]]).0, [binary(b"1234")]);
}

#[test]
fn too_many_fragments_close_with_1009() {
    let config = Config { fragments_max: 3, ..Config::default() };
    let three = [masked(BINARY_BEGINS, b""), masked(CONTINUES, b""), masked(CONTINUES, b"")].concat();
    refuses(&config, &[three, masked(ENDS, b"")].concat(), Violation::TooManyFragments, 1009);
}

#[test]
fn an_idle_connection_is_small() {
    assert!(size_of::<Connection>() <= 208, "{}", size_of::<Connection>());
}

// The closing handshake.

#[test]
fn the_status_code_of_the_peer_is_echoed() {
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4400, 4999] {
        server_receives(
            &masked(CLOSE, &close_payload(code, "bye")),
            &[closed_by_peer(code, "bye")],
            &close(code, ""),
        );
    }
}

#[test]
fn a_close_without_a_status_code_is_answered_without_one() {
    server_receives(&masked(CLOSE, b""), &[Event::Closed(Closed::ByPeer(None))], &[0x88, 0x00]);
}

#[test]
fn half_a_status_code_closes_with_1002() {
    server_refuses(&masked(CLOSE, &[3]), Violation::ClosePayload, 1002);
}

#[test]
fn a_status_code_that_must_not_be_sent_closes_with_1002() {
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
        server_refuses(&masked(CLOSE, &close_payload(code, "")), Violation::CloseCode(code), 1002);
        assert_eq!(CloseCode::new(code), None);
    }
}

#[test]
fn a_reason_that_is_not_utf8_closes_with_1007() {
    server_refuses(&masked(CLOSE, b"\x03\xe8\xff"), Violation::InvalidUtf8, 1007);
}

#[test]
fn after_our_close_everything_but_the_peers_close_is_dropped() {
    let mut server = server();
    receive(&mut server, start(), [&masked(TEXT_BEGINS, b"half of")[..]]);
    server.close(start(), CloseCode::SERVICE_RESTART, "back soon");
    assert_eq!(written(&mut server), close(1012, "back soon"));
    assert!(server.is_closing() && !server.is_open());

    let late = [masked(PING, b"p"), masked(ENDS, b"\xff"), masked(BINARY, b"x"), masked(PONG, b"")].concat();
    assert_eq!(receive(&mut server, start(), [&late[..]]), (vec![], vec![]));
    server.send_text("too late");
    server.ping(b"");
    server.close(start(), CloseCode::NORMAL, "again");
    assert_eq!(written(&mut server), b"");

    let answer = masked(CLOSE, &close_payload(1012, ""));
    let by_us = Closed::ByUs(Some(CloseFrame { code: CloseCode::SERVICE_RESTART, reason: "".into() }));
    assert_eq!(receive(&mut server, start(), [&answer[..]]), (vec![Event::Closed(by_us)], vec![]));
    assert!(server.is_closed());
    assert_eq!(server.next_timeout(), None);
}

#[test]
fn both_may_close_at_once() {
    let (mut server, mut client) = (server(), client());
    server.close(start(), CloseCode::GOING_AWAY, "");
    client.close(start(), CloseCode::NORMAL, "");
    let (from_server, from_client) = (written(&mut server), written(&mut client));
    let by_us = |code| vec![Event::Closed(Closed::ByUs(Some(CloseFrame { code, reason: Text::default() })))];
    assert_eq!(receive(&mut server, start(), [&from_client[..]]), (by_us(CloseCode::NORMAL), vec![]));
    assert_eq!(receive(&mut client, start(), [&from_server[..]]), (by_us(CloseCode::GOING_AWAY), vec![]));
}

#[test]
fn a_violation_after_our_close_is_not_answered_with_another() {
    let mut server = server();
    server.close(start(), CloseCode::NORMAL, "");
    written(&mut server);
    let (events, output) = receive(&mut server, start(), [&[0xff][..]]);
    assert_eq!(events, [Event::Closed(Closed::Violation(Violation::ReservedBits))]);
    assert_eq!(output, b"");
}

#[test]
fn what_comes_after_the_end_is_dropped() {
    let bytes = [masked(CLOSE, b""), masked(TEXT, b"late"), vec![0xff; 100]].concat();
    server_receives(&bytes, &[Event::Closed(Closed::ByPeer(None))], &[0x88, 0x00]);
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let mut server = server();
    server.close(start(), CloseCode::NORMAL, &"€".repeat(100));
    assert_eq!(written(&mut server), close(1000, &"€".repeat(41)));
}

// Time. By default a ping after 30 s, 30 s more for any answer, 5 s for the answer to a close frame.

#[test]
fn a_silent_peer_is_pinged_and_given_up() {
    let start = start();
    let mut server = Connection::new(Role::Server, Config::default(), start);
    assert_eq!(server.next_timeout(), Some(start + seconds(30)));
    assert_eq!(server.handle_timeout(start + seconds(29)), None);
    assert_eq!(written(&mut server), b"");

    assert_eq!(server.handle_timeout(start + seconds(30)), None);
    assert_eq!(server.handle_timeout(start + seconds(30)), None);
    assert_eq!(written(&mut server), [0x89, 0x00]);
    assert_eq!(server.next_timeout(), Some(start + seconds(60)));

    assert_eq!(server.handle_timeout(start + seconds(60)), Some(Event::Closed(Closed::PongTimeout)));
    assert!(server.is_closed());
    assert_eq!(written(&mut server), b"");
    assert_eq!(server.next_timeout(), None);
}

#[test]
fn any_byte_is_a_sign_of_life() {
    let start = start();
    let mut server = Connection::new(Role::Server, Config::default(), start);
    receive(&mut server, start + seconds(10), [&[0x82][..]]);
    assert_eq!(server.next_timeout(), Some(start + seconds(40)));
    assert_eq!(server.handle_timeout(start + seconds(40)), None);
    receive(&mut server, start + seconds(50), [&[0x80][..]]);
    assert_eq!(server.next_timeout(), Some(start + seconds(80)));
    receive(&mut server, start + seconds(60), [&[][..]]);
    assert_eq!(server.next_timeout(), Some(start + seconds(80)));
}

#[test]
fn an_unanswered_close_is_given_up_whatever_else_comes() {
    let start = start();
    let mut server = Connection::new(Role::Server, Config::default(), start);
    server.close(start + seconds(1), CloseCode::NORMAL, "");
    receive(&mut server, start + seconds(5), [&masked(BINARY, b"x")[..]]);
    assert_eq!(server.next_timeout(), Some(start + seconds(6)));
    assert_eq!(server.handle_timeout(start + seconds(6)), Some(Event::Closed(Closed::CloseTimeout)));
}

#[test]
fn without_an_interval_there_are_no_pings() {
    let config = Config { ping_interval: None, ..Config::default() };
    let mut server = Connection::new(Role::Server, config, start());
    receive(&mut server, start(), [&masked(BINARY, b"x")[..]]);
    assert_eq!(server.next_timeout(), None);
}

#[test]
fn endless_delays_are_never_due() {
    let config = Config {
        ping_interval: Some(Duration::MAX),
        pong_timeout: Duration::MAX,
        close_timeout: Duration::MAX,
        ..Config::default()
    };
    let mut server = Connection::new(Role::Server, config, start());
    assert_eq!(server.next_timeout(), None);
    server.close(start(), CloseCode::NORMAL, "");
    assert_eq!(server.next_timeout(), None);
}

// However the bytes are cut, the events and the output are the same.

proptest! {
    #[test]
    fn pieces_do_not_matter(frames in frames(), cuts in prop::collection::vec(1..40_usize, 1..20)) {
        let bytes = frames.concat();
        let start = start();
        let config = Config { message_len_max: 1000, fragments_max: 4, ..Config::default() };
        let connection = || Connection::new(Role::Server, config.clone(), start);
        let whole = receive(&mut connection(), start, [&bytes[..]]);

        prop_assert_eq!(&receive(&mut connection(), start, bytes.chunks(1)), &whole);

        let mut rest = &bytes[..];
        let pieces = cuts.iter().cycle().map_while(|cut| {
            let (piece, after) = rest.split_at(rest.len().min(*cut));
            rest = after;
            (!piece.is_empty()).then_some(piece)
        });
        prop_assert_eq!(&receive(&mut connection(), start, pieces), &whole);
    }

    #[test]
    fn what_a_client_sends_a_server_receives(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..10),
        mask_seed: u64,
        cut in 1..500_usize,
    ) {
        let mut client = Connection::new(Role::Client { mask_seed }, Config::default(), start());
        for message in &messages {
            client.send_binary(message);
        }
        let bytes = written(&mut client);
        let (events, _) = receive(&mut server(), start(), bytes.chunks(cut));
        let expected: Vec<Event> = messages.iter().map(|message| binary(message)).collect();
        prop_assert_eq!(events, expected);
    }
}

/// Frames of a client, most of them good.
fn frames() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let first = prop::sample::select(vec![
        TEXT,
        BINARY,
        PING,
        PONG,
        TEXT_BEGINS,
        BINARY_BEGINS,
        CONTINUES,
        CONTINUES,
        ENDS,
        ENDS,
    ]);
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        "[a-zé€😀]{0,40}".prop_map(String::into_bytes),
        (120..140_usize).prop_map(|len| vec![b'x'; len]),
    ];
    let good = (first, payload).prop_map(|(first, payload)| masked(first, &payload));
    let close = (990..1020_u16).prop_map(|code| masked(CLOSE, &close_payload(code, "bye")));
    let bad = prop::collection::vec(any::<u8>(), 0..20);
    prop::collection::vec(prop_oneof![20 => good, 1 => close, 1 => bad], 0..12)
}

fn server() -> Connection {
    Connection::new(Role::Server, Config::default(), start())
}

fn client() -> Connection {
    Connection::new(Role::Client { mask_seed: 0 }, Config::default(), start())
}

/// Checks events and output, for the bytes in one piece and one by one.
fn server_receives(bytes: &[u8], events: &[Event], output: &[u8]) {
    receives(server, bytes, events, output);
}

fn client_receives(bytes: &[u8], events: &[Event], output: &[u8]) {
    receives(client, bytes, events, output);
}

fn receives(connection: impl Fn() -> Connection, bytes: &[u8], events: &[Event], output: &[u8]) {
    let expected = (events.to_vec(), output.to_vec());
    assert_eq!(receive(&mut connection(), start(), [bytes]), expected);
    assert_eq!(receive(&mut connection(), start(), bytes.chunks(1)), expected);
}

fn server_refuses(bytes: &[u8], violation: Violation, code: u16) {
    refuses(&Config::default(), bytes, violation, code);
}

/// Checks that the bytes end the connection, and with which close frame.
fn refuses(config: &Config, bytes: &[u8], violation: Violation, code: u16) {
    // A header is refused at the byte that shows it; some of these stop there and leave out the mask.
    let bytes = [bytes, &[0; 4]].concat();
    receives(
        || Connection::new(Role::Server, config.clone(), start()),
        &bytes,
        &[Event::Closed(Closed::Violation(violation))],
        &close(code, &violation.to_string()),
    );
}

/// The close frame of a server.
fn close(code: u16, reason: &str) -> Vec<u8> {
    unmasked(CLOSE, &close_payload(code, reason))
}

fn closed_by_peer(code: u16, reason: &str) -> Event {
    let code = CloseCode::new(code).unwrap();
    Event::Closed(Closed::ByPeer(Some(CloseFrame { code, reason: reason.into() })))
}

fn text(text: &str) -> Event {
    Event::Text(text.into())
}

fn binary(payload: &[u8]) -> Event {
    Event::Binary(Bytes::copy_from_slice(payload))
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
