//! The ceiling: broadcasts the frames of a room as they are, and knows nothing of documents.
//!
//! One thread, epoll, one read for what has arrived, one gathered write per peer for all that arrived in
//! one round: the least system calls that a server which holds nothing back can make. A SyncStep1 is
//! answered with one ready frame, `--answer`, whoever asks.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a server in the world")]

use std::{
    collections::{HashMap, VecDeque},
    hint::black_box,
    io::{self, IoSlice, Read, Write},
    mem,
    net::SocketAddr,
    path::PathBuf,
};

use bytes::{Buf, Bytes};
use clap::Parser;
use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};
use socket2::{Domain, Socket, Type};
use yrs_websocket_rfc6455::{Acceptor, HandshakeLimits, Opcode, encode_frame, frame_header};

#[derive(Debug, Parser)]
struct Arguments {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
    /// A file with the message that answers a SyncStep1; otherwise a SyncStep2 of an empty document.
    #[arg(long, value_name = "FILE")]
    answer: Option<PathBuf>,
    /// Lines of memory to look at for each message, always the same ones: what a server touches that does more.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    touch: usize,
}

struct Connection {
    stream: TcpStream,
    /// Until its request has been read.
    acceptor: Option<Acceptor>,
    room: usize,
    /// The start of a frame that has not all arrived.
    partial: Vec<u8>,
    /// What the socket did not take.
    unsent: VecDeque<Bytes>,
}

#[derive(Default)]
struct Room {
    members: Vec<usize>,
    /// Frames of this round.
    gathered: Vec<u8>,
}

struct Ceiling {
    connections: Vec<Option<Connection>>,
    rooms: Vec<Room>,
    names: HashMap<String, usize>,
    /// Rooms with frames of this round.
    dirty: Vec<usize>,
    answer: Bytes,
    /// Each names the next.
    touched: Vec<[usize; TOUCHED_APART / 8]>,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    let answer = match arguments.answer {
        Some(path) => std::fs::read(path)?,
        None => EMPTY_SYNC_STEP_2.to_vec(),
    };
    let mut ceiling = Ceiling {
        connections: Vec::new(),
        rooms: Vec::new(),
        names: HashMap::new(),
        dirty: Vec::new(),
        answer: encode_frame(Opcode::Binary, &answer),
        touched: (0..arguments.touch)
            .map(|at| [(at + TOUCHED_STEP) % arguments.touch; TOUCHED_APART / 8])
            .collect(),
    };
    let mut poll = Poll::new()?;
    let socket = Socket::new(Domain::for_address(arguments.listen), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&arguments.listen.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let mut listener = TcpListener::from_std(socket.into());
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut scratch = vec![0; SCRATCH_LEN];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        for event in &events {
            if event.token() == LISTENER {
                ceiling.accept(&poll, &listener)?;
                continue;
            }
            let index = event.token().0;
            if event.is_writable() {
                ceiling.write(index, &[]);
            }
            if event.is_readable() && ceiling.read(index, &mut scratch).is_err() {
                ceiling.forget(index);
            }
        }
        ceiling.broadcast();
    }
}

impl Ceiling {
    fn accept(&mut self, poll: &Poll, listener: &TcpListener) -> io::Result<()> {
        loop {
            let mut stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            stream.set_nodelay(true)?;
            let index = self.connections.len();
            poll.registry().register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
            self.connections.push(Some(Connection {
                stream,
                acceptor: Some(Acceptor::new(HandshakeLimits::default())),
                room: usize::MAX,
                partial: Vec::new(),
                unsent: VecDeque::new(),
            }));
        }
    }

    /// Reads what has arrived; an error is the end of the connection.
    fn read(&mut self, index: usize, scratch: &mut [u8]) -> io::Result<()> {
        loop {
            let Some(connection) = &mut self.connections[index] else { return Ok(()) };
            let held = connection.partial.len();
            if held > scratch.len() / 2 {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            scratch[..held].copy_from_slice(&connection.partial);
            connection.partial.clear();
            let len = match connection.stream.read(&mut scratch[held..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    connection.partial.extend_from_slice(&scratch[..held]);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            // The next edge of epoll comes with the next byte where a read was short.
            let is_all = held + len < scratch.len();
            self.received(index, &mut scratch[..held + len])?;
            if is_all {
                return Ok(());
            }
        }
    }

    fn received(&mut self, index: usize, input: &mut [u8]) -> io::Result<()> {
        let Some(connection) = &mut self.connections[index] else { return Ok(()) };
        let Some(acceptor) = &mut connection.acceptor else { return self.frames(index, input) };
        let Ok(request) = acceptor.receive(input) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let Some(request) = request else { return Ok(()) };
        connection.acceptor = None;
        let response = request.accept(None, &[]).map_err(io::Error::other)?;
        let next = self.rooms.len();
        let room = *self.names.entry(request.path.clone()).or_insert(next);
        if room == next {
            self.rooms.push(Room::default());
        }
        self.rooms[room].members.push(index);
        connection.room = room;
        // Greeted like everybody else: with a SyncStep1 of an empty document.
        let greeting = encode_frame(Opcode::Binary, &EMPTY_SYNC_STEP_1);
        self.write(index, &[response, greeting]);
        self.frames(index, &mut request.into_rest())
    }

    fn frames(&mut self, index: usize, mut input: &mut [u8]) -> io::Result<()> {
        while let Some((start, end)) = unmask_frame(input)? {
            let frame = &input[start..end];
            let Some(connection) = &mut self.connections[index] else { return Ok(()) };
            match frame {
                [0, 0, ..] => {
                    let answer = self.answer.clone();
                    self.write(index, &[answer]);
                }
                [0, 2, ..] | [1, ..] => {
                    let room = &mut self.rooms[connection.room];
                    if room.gathered.is_empty() {
                        self.dirty.push(connection.room);
                    }
                    room.gathered.extend_from_slice(frame_header(Opcode::Binary, frame.len()).as_ref());
                    room.gathered.extend_from_slice(frame);
                }
                _ => {}
            }
            input = &mut input[end..];
        }
        if let Some(connection) = &mut self.connections[index] {
            connection.partial.extend_from_slice(input);
        }
        Ok(())
    }

    fn broadcast(&mut self) {
        for room in mem::take(&mut self.dirty) {
            black_box((0..self.touched.len()).fold(0, |at, _| self.touched[at][0]));
            let gathered = [Bytes::from(mem::take(&mut self.rooms[room].gathered))];
            let members = mem::take(&mut self.rooms[room].members);
            for &member in &members {
                self.write(member, &gathered);
            }
            self.rooms[room].members = members;
        }
    }

    /// Writes what is unsent, and then these pieces.
    fn write(&mut self, index: usize, pieces: &[Bytes]) {
        let Some(connection) = &mut self.connections[index] else { return };
        let Connection { stream, unsent, .. } = connection;
        let mut written = 0;
        if unsent.is_empty()
            && let [piece] = pieces
        {
            written = stream.write(piece).unwrap_or(0);
            if written == piece.len() {
                return;
            }
        }
        unsent.extend(pieces.iter().cloned());
        loop {
            while let Some(piece) = unsent.front_mut()
                && piece.len() <= written
            {
                written -= piece.len();
                unsent.pop_front();
            }
            let Some(piece) = unsent.front_mut() else { return };
            piece.advance(written);
            let mut slices = [IoSlice::new(&[]); 16];
            slices.iter_mut().zip(&*unsent).for_each(|(slice, piece)| *slice = IoSlice::new(piece));
            let count = unsent.len().min(slices.len());
            // What has gone wrong is found when the connection is read.
            let Ok(len) = stream.write_vectored(&slices[..count]) else { return };
            written = len;
        }
    }

    fn forget(&mut self, index: usize) {
        if let Some(connection) = self.connections[index].take()
            && let Some(room) = self.rooms.get_mut(connection.room)
        {
            room.members.retain(|member| *member != index);
        }
    }
}

/// Unmasks the payload of the frame at the start of `input` and says where it is; `None` if it is not all
/// there.
fn unmask_frame(input: &mut [u8]) -> io::Result<Option<(usize, usize)>> {
    let (len, head) = match *input {
        [_, short, ..] if short & 0x7f < 126 => (usize::from(short & 0x7f), 2),
        [_, 0xfe, a, b, ..] => (usize::from(u16::from_be_bytes([a, b])), 4),
        [_, 0xff, _, _, _, _, a, b, c, d, ..] => (u32::from_be_bytes([a, b, c, d]) as usize, 10),
        _ => return Ok(None),
    };
    if input[0] & 0x0f == 8 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (start, end) = (head + 4, head + 4 + len);
    if input.len() < end {
        return Ok(None);
    }
    let mask = [input[head], input[head + 1], input[head + 2], input[head + 3]];
    if mask != [0; 4] {
        input[start..end].iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    }
    Ok(Some((start, end)))
}

const LISTENER: Token = Token(usize::MAX);
const BACKLOG: i32 = 4096;
/// Bytes between lines that are touched.
const TOUCHED_APART: usize = 320;
/// How far apart those are that follow each other; a prime, so that all are found.
const TOUCHED_STEP: usize = 389;
const SCRATCH_LEN: usize = 8 << 20;
const EMPTY_SYNC_STEP_1: [u8; 4] = [0, 0, 1, 0];
const EMPTY_SYNC_STEP_2: [u8; 5] = [0, 1, 2, 0, 0];
