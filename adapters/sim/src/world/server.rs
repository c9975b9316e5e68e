//! The server's side of the world: what a runtime does around a host, and the host's disk.

use std::{mem, rc::Rc, sync::mpsc, time::Duration};

use yrs_websocket::RoomName;
use yrs_websocket_host::{Host, Next, Storage, Upgrade, rfc6455, stream::REFUSAL_LINGER};
use yrs_websocket_store::{Request, Write};

use super::{End, Event, World};
use crate::{
    Violation, checks,
    disk::{Done, Due},
    network::{LinkId, SimSocket},
};

impl World<'_> {
    pub(super) fn start(&mut self) {
        if self.host.is_some() {
            return;
        }
        self.incarnation += 1;
        let (submit, requests) = mpsc::channel();
        self.requests = requests;
        let storage = Storage::Outside(
            Box::new(move |request| {
                // Without a world there is nobody to ask.
                let _ = submit.send(request);
            }),
            0,
        );
        self.trace.line(self.now, format_args!("server starts"));
        let seed = self.random.next();
        self.host = Some(Host::new(&self.options, storage, seed));
    }

    pub(super) fn crash(&mut self) {
        if self.host.is_none() {
            return;
        }
        self.stop();
        let back = self.up_to(Duration::from_secs(4), 8);
        self.at(back, Event::Restart);
    }

    /// Ends the server as it is, if it runs; what it has asked of the disk and was not done never is.
    pub(super) fn stop(&mut self) {
        if self.host.take().is_none() {
            return;
        }
        self.trace.line(self.now, format_args!("server crashes"));
        self.disk.crash();
        let links: Vec<_> = self.ends.keys().copied().collect();
        self.ends.clear();
        for link in links {
            self.cut(link);
        }
    }

    pub(super) fn drain(&mut self) -> Result<(), Violation> {
        let now = self.clock();
        let length = self.up_to(Duration::from_secs(5), 10);
        let Some(host) = &mut self.host else { return Ok(()) };
        self.trace.line(self.now, format_args!("server drains within {length:?}"));
        host.drain(now, now + length);
        let incarnation = self.incarnation;
        // Those sent away may take their time to close.
        self.at(length + DRAINED, Event::Drained { incarnation });
        self.settle()
    }

    pub(super) fn drained(&mut self, incarnation: u64) -> Result<(), Violation> {
        let Some(host) = &self.host else { return Ok(()) };
        if self.incarnation != incarnation {
            return Ok(());
        }
        if self.paused_at.is_some_and(|paused_at| self.now < paused_at + DRAINED) {
            // What was due during a pause has only just been done.
            self.at(DRAINED, Event::Drained { incarnation });
            return Ok(());
        }
        if !host.is_drained() {
            let detail = format!("{:?}", host.counters());
            return Err(Violation::new("a drain ends", detail));
        }
        self.crash();
        Ok(())
    }

    /// Opens a link to the server, which waits for a request on it.
    pub(super) fn accept(&mut self) -> LinkId {
        self.next_link += 1;
        let link = self.next_link;
        self.network.borrow_mut().open(link);
        self.ends.insert(link, End::Upgrading(Box::new(Upgrade::new(&self.options))));
        if let Some(timeout) = self.handshake_timeout {
            self.at(timeout, Event::GivesUp(link));
        }
        link
    }

    pub(super) fn server_reads(&mut self, link: LinkId) -> Result<(), Violation> {
        let now = self.clock();
        let (mut bytes, at_end) = {
            let mut network = self.network.borrow_mut();
            let time = network.now;
            let Some(pipe) = network.links.get_mut(&link) else { return Ok(()) };
            let mut bytes = pipe.to_server.read(time);
            let len = network.torn(bytes.len());
            let rest = bytes.split_off(len);
            let Some(pipe) = network.links.get_mut(&link) else { return Ok(()) };
            let again = !rest.is_empty();
            pipe.to_server.unread(time, rest);
            let at_end = pipe.to_server.is_at_end(time);
            drop(network);
            if again {
                self.at(Duration::from_micros(10), Event::ServerReads(link));
            }
            (bytes, at_end)
        };
        if !bytes.is_empty() {
            self.at(Duration::ZERO, Event::ClientWrites(link));
        }
        let Some(host) = &mut self.host else { return Ok(()) };
        match self.ends.get_mut(&link) {
            Some(End::Upgrading(upgrade)) if !bytes.is_empty() => match upgrade.receive(&bytes) {
                Ok(None) => {}
                Ok(Some(admitted)) => {
                    let socket = SimSocket { network: Rc::clone(&self.network), link };
                    match host.connect(now, socket, admitted) {
                        Ok(id) => {
                            self.trace.line(self.now, format_args!("link {link} is connection {}", id.0));
                            self.ends.insert(link, End::Open { id, shut: false });
                            self.network.borrow_mut().woken.insert(link);
                        }
                        Err((_, refusal)) => self.refuse(link, &refusal),
                    }
                }
                Err(refusal) => self.refuse(link, &refusal),
            },
            Some(End::Open { id, .. }) => {
                let id = *id;
                if !bytes.is_empty() {
                    host.received(now, id, &mut bytes);
                }
                if at_end {
                    host.ended(now, id);
                }
                self.network.borrow_mut().woken.insert(link);
            }
            Some(End::Upgrading(_) | End::Refused) | None => {}
        }
        if at_end && matches!(self.ends.get(&link), Some(End::Upgrading(_) | End::Refused)) {
            self.drop_end(link);
        }
        self.settle()
    }

    pub(super) fn refuse(&mut self, link: LinkId, refusal: &rfc6455::Refusal) {
        self.trace.line(self.now, format_args!("link {link} is refused with {}", refusal.status()));
        self.ends.insert(link, End::Refused);
        if self.handshake_timeout.is_some() {
            self.at(REFUSAL_LINGER, Event::GivesUp(link));
        }
        let mut network = self.network.borrow_mut();
        let arrives = network.now + network.latency();
        if let Some(pipes) = network.links.get_mut(&link)
            && !pipes.half_open
        {
            pipes.to_client.push(arrives, refusal.to_bytes().to_vec());
            let arrives = pipes.to_client.end(arrives);
            drop(network);
            self.schedule(arrives, Event::ClientReads(link));
        }
    }

    pub(super) fn server_writes(&mut self, link: LinkId) -> Result<(), Violation> {
        let now = self.clock();
        if let Some(End::Open { id, .. }) = self.ends.get(&link)
            && let Some(host) = &mut self.host
        {
            host.writable(now, *id);
            self.network.borrow_mut().woken.insert(link);
        }
        self.settle()
    }

    /// Does what a runtime does after each call of the host: asks about those woken, hands on what was
    /// written and what the store is asked.
    pub(super) fn settle(&mut self) -> Result<(), Violation> {
        if let Some(host) = &self.host {
            for (room, book) in &mut self.disk.rooms {
                book.parked |= host.server().room(room).is_some_and(|room| room.journal().parked_bytes() > 0);
            }
        }
        while let Ok(request) = self.requests.try_recv() {
            match &request {
                Request::Load(room) => self.trace.line(self.now, format_args!("host asks load {room}")),
                Request::Append { room, seq, update } => {
                    self.trace.bytes(self.now, format_args!("host asks append {seq} to {room}:"), update);
                }
                Request::Compact { room, seq, .. } => {
                    self.trace.line(self.now, format_args!("host asks compact {room} up to {seq}"));
                }
                Request::Unload(room) => self.trace.line(self.now, format_args!("host asks unload {room}")),
            }
            if let Request::Append { room, .. } = &request
                && let Some(book) = self.disk.rooms.get(room)
                && !book.parked
            {
                checks::nothing_known_is_stored(book, &request)?;
            }
            if let Some((time, due)) = self.disk.submit(self.now, request)? {
                self.schedule(time, Event::Disk(due));
            }
        }
        loop {
            let Some(link) = self.network.borrow_mut().woken.pop_first() else { break };
            let Some(End::Open { id, shut }) = self.ends.get_mut(&link) else { continue };
            let Some(host) = &mut self.host else { continue };
            match host.next(*id) {
                Next::Run { write } => {
                    let mut network = self.network.borrow_mut();
                    let Some(pipes) = network.links.get_mut(&link) else { continue };
                    pipes.wants_space = write;
                    let ready = write && (pipes.cut || pipes.to_client.space() > 0);
                    drop(network);
                    if ready {
                        let soon = self.millis(0, 3);
                        self.at(soon, Event::ServerWrites(link));
                    }
                }
                Next::ShutDown => {
                    if !mem::replace(shut, true) {
                        self.end_of_stream(link);
                    }
                }
                Next::Drop => self.drop_end(link),
            }
        }
        loop {
            let mut network = self.network.borrow_mut();
            let Some(link) = network.written.pop_first() else { break };
            let arrives = network.now;
            drop(network);
            // The pipe knows when its bytes arrive: looking too early finds nothing.
            self.schedule_client_read(link, arrives);
        }
        Ok(())
    }

    pub(super) fn disk_works(&mut self, due: Due) -> Result<(), Violation> {
        match due {
            Due::Round(round) => {
                let (now, trace) = (self.now, &mut self.trace);
                let due = self.disk.round(now, round, |done| match done {
                    Done::Loaded(room, Ok(updates)) => {
                        trace.line(now, format_args!("disk loads {} records of {room}", updates.len()));
                    }
                    Done::Loaded(room, Err(error)) => {
                        trace.line(now, format_args!("disk cannot load {room}: {error}"));
                    }
                    Done::Committed(writes) => {
                        trace.line(now, format_args!("disk commits"));
                        for write in writes {
                            let what =
                                if matches!(write, Write::Append { .. }) { "append" } else { "compaction" };
                            trace.line(now, format_args!("    {what} {} of {}", write.seq(), write.room()));
                        }
                    }
                    Done::Failed(what) => trace.line(now, format_args!("disk says {what} failed")),
                })?;
                due.into_iter().for_each(|(time, due)| self.schedule(time, Event::Disk(due)));
                Ok(())
            }
            Due::Answer(answer) => {
                let now = self.clock();
                let completions = self.disk.answer(answer);
                if let Some(host) = &mut self.host {
                    host.completed(now, completions);
                }
                self.settle()
            }
        }
    }

    /// Whether the server waits for something that is missing. What waits may be said again in other pieces:
    /// it counts as new.
    pub(super) fn is_parked(&self, room: &RoomName) -> bool {
        let room = self.host.as_ref().and_then(|host| host.server().room(room));
        room.is_some_and(|room| room.journal().parked_bytes() > 0)
    }

    fn schedule_client_read(&mut self, link: LinkId, from: Duration) {
        let network = self.network.borrow();
        let arrives = network.links.get(&link).map(|pipes| pipes.to_client.last_arrival());
        drop(network);
        if let Some(arrives) = arrives {
            self.schedule(arrives.max(from), Event::ClientReads(link));
        }
    }

    fn end_of_stream(&mut self, link: LinkId) {
        let mut network = self.network.borrow_mut();
        let arrives = network.now + network.latency();
        let Some(pipes) = network.links.get_mut(&link).filter(|pipes| !pipes.half_open) else { return };
        let arrives = pipes.to_client.end(arrives);
        drop(network);
        self.schedule(arrives, Event::ClientReads(link));
    }

    /// The server's end is gone.
    pub(super) fn drop_end(&mut self, link: LinkId) {
        self.trace.line(self.now, format_args!("link {link} is dropped by the server"));
        self.ends.remove(&link);
        self.end_of_stream(link);
        self.forget_link(link);
    }

    /// Forgets a link that has nobody at either end.
    pub(super) fn forget_link(&mut self, link: LinkId) {
        let has_client = self.links.contains_key(&link)
            || self.application_links.contains_key(&link)
            || self.wires.contains(&link);
        if !self.ends.contains_key(&link) && !has_client {
            self.network.borrow_mut().links.remove(&link);
        }
    }

    pub(super) fn cut(&mut self, link: LinkId) {
        let times = self.network.borrow_mut().cut(link);
        if let Some((server, client)) = times {
            self.schedule(server, Event::ServerReads(link));
            self.schedule(client, Event::ClientReads(link));
        }
    }
}

/// Time for those sent away by a drain to close.
const DRAINED: Duration = Duration::from_secs(11);
