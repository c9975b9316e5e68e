//! RFC 6455, its HTTP upgrade and permessage-deflate (RFC 7692) without IO: bytes in, events and bytes out.
//!
//! Both roles, strictly, and nothing else: no socket, no clock, no random numbers. Time is an argument, randomness
//! a seed, so the same code runs on any runtime and in a simulation, and the same input gives the same output.
//!
//! ```text
//!                     bytes                                  bytes
//!                       |                                      ^
//!    before       Acceptor::receive                    Request::accept     (server)
//!    the upgrade  ClientHandshake::receive             ClientHandshake::request
//!                       |                                      |
//!    after it     Connection::receive --> one Event    Connection::next_output
//!                       '-- pongs, close frames ------------>--'
//! ```
//!
//! A server that echoes, on any stream that blocks; see [`Connection`] for how to end one:
//!
//! ```
//! use std::io::{self, Read, Write};
//! use std::time::Instant;
//! use yrs_websocket_rfc6455::{Acceptor, Config, Connection, Event, HandshakeLimits, Role};
//!
//! fn serve(mut socket: impl Read + Write) -> io::Result<()> {
//!     let mut buffer = vec![0; 64 << 10];
//!     let mut acceptor = Acceptor::new(HandshakeLimits::default());
//!     let request = loop {
//!         let len = socket.read(&mut buffer)?;
//!         match acceptor.receive(&buffer[..len]) {
//!             Ok(Some(request)) => break request,
//!             Ok(None) if len == 0 => return Ok(()),
//!             Ok(None) => {}
//!             Err(refusal) => return socket.write_all(&refusal.to_bytes()),
//!         }
//!     };
//!     match request.accept(None, &[]) {
//!         Ok(response) => socket.write_all(&response)?,
//!         Err(error) => return Err(io::Error::other(error)),
//!     }
//!
//!     let mut connection = Connection::new(Role::Server, Config::default(), Instant::now());
//!     // Bytes that came with the request are the first input.
//!     let mut rest = request.into_rest();
//!     let mut input = rest.as_mut_slice();
//!     loop {
//!         while let Some(event) = connection.receive(Instant::now(), &mut input) {
//!             match event {
//!                 Event::Binary(payload) => connection.send_binary(&payload),
//!                 Event::Text(text) => connection.send_text(text.as_str()),
//!                 Event::Ping(_) | Event::Pong(_) | Event::Closed(_) => {}
//!             }
//!             // After each event, so that answers leave before what a later frame provokes.
//!             while let Some(output) = connection.next_output() {
//!                 socket.write_all(&output)?;
//!             }
//!         }
//!         let len = socket.read(&mut buffer)?;
//!         if len == 0 {
//!             return Ok(());
//!         }
//!         input = &mut buffer[..len];
//!         // A loop that can wait for time as well as for bytes also calls `handle_timeout` at `next_timeout`.
//!     }
//! }
//! ```
//!
//! Messages are compressed where both ends are told to: [`Deflate`] goes into [`Acceptor::with_deflate`] or
//! [`ClientHandshake::with_deflate`], and what comes out of the handshake into [`Connection::with_deflate`].
//!
//! What a peer does wrong ends its connection and is a value, a [`Refusal`] before the upgrade and
//! [`Closed::Violation`] after it; no input makes this crate panic, or grow beyond [`HandshakeLimits`] and [`Config`].

mod connection;
mod deflate;
mod frame;
mod handshake;

pub use connection::{CloseCode, CloseFrame, Closed, Config, Connection, Event, Role, Text, Violation};
pub use deflate::{AgreedDeflate, Deflate, Deflater};
pub use frame::{FrameHeader, Opcode, encode_frame, frame_header};
pub use handshake::{
    AcceptError, Acceptor, ClientHandshake, ClientHandshakeError, ClientRequest, HandshakeLimits, Headers,
    InvalidClientRequest, InvalidHeader, Refusal, Request, Upgraded,
};
