//! Frames written by hand, and connections fed with them.

#![allow(dead_code, reason = "each test file uses a part")]

use std::time::Instant;

use yrs_websocket_rfc6455::{Connection, Event};

/// The mask of the examples in RFC 6455 section 5.7.
pub(crate) const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// First bytes of frames: FIN and the opcode.
pub(crate) const TEXT: u8 = 0x81;
pub(crate) const BINARY: u8 = 0x82;
pub(crate) const CLOSE: u8 = 0x88;
pub(crate) const PING: u8 = 0x89;
pub(crate) const PONG: u8 = 0x8a;
/// The same without FIN.
pub(crate) const TEXT_BEGINS: u8 = 0x01;
pub(crate) const BINARY_BEGINS: u8 = 0x02;
pub(crate) const CONTINUES: u8 = 0x00;
pub(crate) const ENDS: u8 = 0x80;

/// A frame of a client.
pub(crate) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(first, 0x80, payload.len());
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A frame of a server.
pub(crate) fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(first, 0, payload.len());
    frame.extend(payload);
    frame
}

fn header(first: u8, mask_bit: u8, len: usize) -> Vec<u8> {
    match len {
        0..=125 => vec![first, mask_bit | len as u8],
        126..=0xffff => [vec![first, mask_bit | 126], (len as u16).to_be_bytes().to_vec()].concat(),
        _ => [vec![first, mask_bit | 127], (len as u64).to_be_bytes().to_vec()].concat(),
    }
}

/// The payload of a close frame.
pub(crate) fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes(), reason.as_bytes()].concat()
}

/// Receives pieces, writing all output after each event, as the documentation asks for.
pub(crate) fn receive<'a>(
    connection: &mut Connection,
    now: Instant,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Event>, Vec<u8>) {
    let (mut events, mut output) = (Vec::new(), Vec::new());
    for piece in pieces {
        let mut piece = piece.to_vec();
        let mut input = piece.as_mut_slice();
        while let Some(event) = connection.receive(now, &mut input) {
            events.push(event);
            output.extend(written(connection));
        }
        assert!(input.is_empty(), "None means that all input is consumed");
    }
    (events, output)
}

/// Everything the connection has to write.
pub(crate) fn written(connection: &mut Connection) -> Vec<u8> {
    std::iter::from_fn(|| connection.next_output()).flatten().collect()
}

#[expect(clippy::disallowed_methods, reason = "an Instant has no other origin; tests only count from it")]
pub(crate) fn start() -> Instant {
    Instant::now()
}
