//! Pipes between clients and the server: latency, torn reads and writes, bounds, cuts, half-open ends.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::{self, IoSlice},
    rc::Rc,
    time::Duration,
};

use yrs_websocket_host::{Next, Socket};

use crate::random::Random;

/// Names a link; never used twice.
pub(crate) type LinkId = u64;

/// All links, shared with the sockets that the host holds.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) now: Duration,
    pub(crate) links: BTreeMap<LinkId, Link>,
    pub(crate) weather: Weather,
    /// Links whose socket was woken since the world looked last.
    pub(crate) woken: BTreeSet<LinkId>,
    /// Links on which the server wrote since the world looked last.
    pub(crate) written: BTreeSet<LinkId>,
    random: Random,
}

/// How the network behaves.
#[derive(Debug, Clone)]
pub(crate) struct Weather {
    pub(crate) latency_max: Duration,
    /// Per mille of reads and writes that take only a part.
    pub(crate) torn: u32,
    pub(crate) capacity: usize,
}

/// Two pipes.
#[derive(Debug, Default)]
pub(crate) struct Link {
    pub(crate) to_server: Pipe,
    pub(crate) to_client: Pipe,
    /// Writes fail, reads end.
    pub(crate) cut: bool,
    /// What is written goes nowhere, and nobody is told.
    pub(crate) half_open: bool,
    /// The server's end waits for space.
    pub(crate) wants_space: bool,
}

/// Bytes on their way in one direction, in order.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    segments: VecDeque<(Duration, Vec<u8>)>,
    /// Bytes on their way or not read yet.
    bytes: usize,
    capacity: usize,
    /// When the end of the stream arrives.
    end: Option<Duration>,
    last_arrival: Duration,
}

impl Network {
    pub(crate) fn new(weather: Weather, random: Random) -> Self {
        Self {
            now: Duration::ZERO,
            links: BTreeMap::new(),
            weather,
            woken: BTreeSet::new(),
            written: BTreeSet::new(),
            random,
        }
    }

    pub(crate) fn open(&mut self, link: LinkId) {
        let capacity = self.weather.capacity;
        let pipe = || Pipe { capacity, ..Pipe::default() };
        self.links.insert(link, Link { to_server: pipe(), to_client: pipe(), ..Link::default() });
    }

    /// When something sent now arrives.
    pub(crate) fn latency(&mut self) -> Duration {
        let max = self.weather.latency_max.as_micros() as u64;
        // Mostly near, sometimes far.
        let part = self.random.below(1000).pow(2) / 1000;
        Duration::from_micros(50 + max * part / 1000)
    }

    /// How much of `len` bytes one read or write takes.
    pub(crate) fn torn(&mut self, len: usize) -> usize {
        if len > 1 && self.random.permille(self.weather.torn) {
            return if self.random.permille(500) { 1 } else { 1 + self.random.index(len - 1) };
        }
        len
    }

    /// Writes towards the server; says how much was taken, and when it arrives.
    pub(crate) fn send_to_server(&mut self, id: LinkId, bytes: &[u8]) -> (usize, Option<Duration>) {
        let arrives = self.now + self.latency();
        let Some(link) = self.links.get_mut(&id) else { return (bytes.len(), None) };
        if link.cut {
            return (bytes.len(), None);
        }
        let taken = bytes.len().min(link.to_server.space());
        if taken == 0 {
            return (0, None);
        }
        if link.half_open {
            return (taken, None);
        }
        (taken, Some(link.to_server.push(arrives, bytes[..taken].to_vec())))
    }

    /// Ends a link for both; says when the server and when the client hears of it.
    pub(crate) fn cut(&mut self, id: LinkId) -> Option<(Duration, Duration)> {
        let now = self.now;
        let (drop_to_server, drop_to_client) = (self.random.permille(500), self.random.permille(500));
        let (server, client) = (now + self.latency(), now + self.latency());
        let link = self.links.get_mut(&id)?;
        link.cut = true;
        link.half_open = false;
        let end = |pipe: &mut Pipe, drop: bool, at: Duration| {
            if drop {
                pipe.lose(now);
            }
            pipe.end(at)
        };
        Some((
            end(&mut link.to_server, drop_to_server, server),
            end(&mut link.to_client, drop_to_client, client),
        ))
    }

    /// Silences a link without telling anybody.
    pub(crate) fn half_open(&mut self, id: LinkId) {
        let now = self.now;
        if let Some(link) = self.links.get_mut(&id).filter(|link| !link.cut) {
            link.half_open = true;
            link.to_server.lose(now);
            link.to_client.lose(now);
        }
    }
}

impl Pipe {
    pub(crate) fn space(&self) -> usize {
        if self.end.is_some() { 0 } else { self.capacity.saturating_sub(self.bytes) }
    }

    /// Sends bytes; says when they arrive: not before those sent earlier.
    pub(crate) fn push(&mut self, arrives: Duration, bytes: Vec<u8>) -> Duration {
        self.last_arrival = self.last_arrival.max(arrives);
        self.bytes += bytes.len();
        self.segments.push_back((self.last_arrival, bytes));
        self.last_arrival
    }

    /// Ends the stream behind what was sent; says when that arrives.
    pub(crate) fn end(&mut self, arrives: Duration) -> Duration {
        self.last_arrival = self.last_arrival.max(arrives);
        *self.end.get_or_insert(self.last_arrival)
    }

    /// When all that was sent has arrived.
    pub(crate) fn last_arrival(&self) -> Duration {
        self.last_arrival
    }

    /// Takes what has arrived, all of it.
    pub(crate) fn read(&mut self, now: Duration) -> Vec<u8> {
        let mut read = Vec::new();
        while self.segments.front().is_some_and(|(arrives, _)| *arrives <= now) {
            read.extend(self.segments.pop_front().map(|(_, bytes)| bytes).unwrap_or_default());
        }
        self.bytes -= read.len();
        read
    }

    /// Puts back what was not taken of a read.
    pub(crate) fn unread(&mut self, now: Duration, rest: Vec<u8>) {
        if !rest.is_empty() {
            self.bytes += rest.len();
            self.segments.push_front((now, rest));
        }
    }

    pub(crate) fn is_at_end(&self, now: Duration) -> bool {
        self.segments.is_empty() && self.end.is_some_and(|end| end <= now)
    }

    /// Loses what has not arrived.
    fn lose(&mut self, now: Duration) {
        self.segments.retain(|(arrives, _)| *arrives <= now);
        self.bytes = self.segments.iter().map(|(_, bytes)| bytes.len()).sum();
    }
}

/// The host's end of a link.
#[derive(Debug)]
pub(crate) struct SimSocket {
    pub(crate) network: Rc<RefCell<Network>>,
    pub(crate) link: LinkId,
}

impl Socket for SimSocket {
    fn try_write(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut network = self.network.borrow_mut();
        let all: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let arrives = network.now + network.latency();
        let wanted = network.torn(all);
        // Now and then a socket is full for no reason that can be seen.
        let rate = network.weather.torn / 4;
        let full = network.random.permille(rate);
        let link = network.links.get_mut(&self.link).ok_or(io::ErrorKind::BrokenPipe)?;
        if link.cut {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let taken = wanted.min(link.to_client.space());
        if taken == 0 || full {
            link.wants_space = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut bytes = Vec::with_capacity(taken);
        for buffer in buffers {
            let part = buffer.len().min(taken - bytes.len());
            bytes.extend_from_slice(&buffer[..part]);
        }
        if link.half_open {
            // It fills the buffers of the kernel, and stays there.
            link.to_client.bytes += taken;
        } else {
            link.to_client.push(arrives, bytes);
        }
        network.written.insert(self.link);
        Ok(taken)
    }

    fn wake(&mut self, _: Next) {
        self.network.borrow_mut().woken.insert(self.link);
    }
}
