//! A client of bytes.

use std::{fmt, net::SocketAddr, rc::Rc};

use bytes::Bytes;
use yrs_websocket_host::{
    rfc6455::{ClientHandshake, ClientRequest, Closed, Config, Connection, Event, HandshakeLimits, Role},
    target,
};

use crate::{Stream, World};

/// A WebSocket whose frames are written and read by hand.
pub struct Raw {
    world: Rc<dyn World>,
    stream: Box<dyn Stream>,
    websocket: Connection,
    /// What was read behind the last frame.
    rest: Vec<u8>,
}

/// What a raw client hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A frame.
    Frame(Bytes),
    /// The code of a close frame; 1005 for one without.
    Closed(u16),
    /// The end of the stream without one.
    Cut,
}

impl Raw {
    /// Opens one.
    ///
    /// # Panics
    ///
    /// If that is not possible.
    pub fn connect(world: &Rc<dyn World>, address: SocketAddr, room: &str) -> Self {
        let mut stream = world.connect(address);
        let request = ClientRequest {
            host: address.to_string(),
            target: target(room, &[]),
            ..ClientRequest::default()
        };
        let mut handshake = ClientHandshake::new(request, HandshakeLimits::default(), 1).unwrap();
        stream.write_all(handshake.request()).unwrap();
        let mut buffer = [0; 1024];
        let upgraded = loop {
            let len = stream.read(&mut buffer).unwrap();
            assert_ne!(len, 0, "the server has ended the upgrade");
            if let Some(upgraded) = handshake.receive(&buffer[..len]).unwrap() {
                break upgraded;
            }
        };
        let websocket = Connection::new(Role::Client { mask_seed: 1 }, Config::default(), world.now());
        Self { world: Rc::clone(world), stream, websocket, rest: upgraded.into_rest() }
    }

    /// Sends a frame.
    pub fn send(&mut self, frame: &[u8]) {
        self.websocket.send_binary(frame);
        self.write();
    }

    /// Waits for what comes next.
    pub fn hear(&mut self) -> Heard {
        loop {
            let mut input = &mut self.rest[..];
            let event = self.websocket.receive(self.world.now(), &mut input);
            let left = input.len();
            self.rest.drain(..self.rest.len() - left);
            self.write();
            match event {
                Some(Event::Binary(frame)) => return Heard::Frame(frame),
                Some(Event::Closed(Closed::ByPeer(frame))) => {
                    return Heard::Closed(frame.map_or(1005, |frame| frame.code.into()));
                }
                Some(Event::Closed(_)) => return Heard::Cut,
                Some(_) => continue,
                None => {}
            }
            let mut buffer = vec![0; 16 << 10];
            match self.stream.read(&mut buffer) {
                Ok(len) if len > 0 => self.rest.extend_from_slice(&buffer[..len]),
                Ok(_) | Err(_) => return Heard::Cut,
            }
        }
    }

    /// Hears until something like this comes.
    ///
    /// # Panics
    ///
    /// If the connection ends before that.
    pub fn until(&mut self, is_it: impl Fn(&[u8]) -> bool) -> Bytes {
        loop {
            match self.hear() {
                Heard::Frame(frame) if is_it(&frame) => return frame,
                Heard::Frame(_) => {}
                end => panic!("ended: {end:?}"),
            }
        }
    }

    /// Hears the rest; says how the connection ends.
    pub fn end(&mut self) -> Heard {
        loop {
            match self.hear() {
                Heard::Frame(_) => {}
                end => return end,
            }
        }
    }

    /// Ends the stream, without a close frame.
    pub fn cut(mut self) {
        self.stream.cut();
    }

    fn write(&mut self) {
        while let Some(output) = self.websocket.next_output() {
            // Who has gone says so when it is read.
            let _ = self.stream.write_all(&output);
        }
    }
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raw").field("world", &self.world).finish_non_exhaustive()
    }
}
