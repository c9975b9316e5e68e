//! The clients' side of the world: connecting, hearing, editing.

use std::{collections::BTreeSet, fmt::Write as _, rc::Rc, time::Duration};

use bytes::Bytes;
use yrs_websocket::{Access, message::Message};
use yrs_websocket_host::{Admission, Admitted, Upgrade, rfc6455};

use super::{End, Event, Who, World, applications::Author};
use crate::{
    Fault, Violation,
    client::{Heard, Layer, Session, take_front},
    disk::scan,
    document::edit_once,
    network::{LinkId, SimSocket},
};

impl World<'_> {
    pub(super) fn session(&mut self, who: Who) -> &mut Option<Session> {
        match who {
            Who::Client(index) => &mut self.clients[index].session,
            Who::Hostile(index) => &mut self.hostiles[index].session,
        }
    }

    pub(super) fn connect(&mut self, who: Who) {
        let (room, viewer, away_until) = match who {
            Who::Client(index) => {
                let client = &self.clients[index];
                (client.room, client.viewer, client.away_until)
            }
            Who::Hostile(index) => (self.hostiles[index].room, false, self.hostiles[index].away_until),
        };
        if self.leaving || self.session(who).is_some() || (self.calm && matches!(who, Who::Hostile(_))) {
            return;
        }
        if away_until > self.now {
            return self.schedule(away_until, Event::Connect(who));
        }
        if self.host.is_none() {
            let retry = self.millis(100, 2500);
            return self.at(retry, Event::Connect(who));
        }
        let mut target = format!("/{}?", self.rooms[room]);
        if viewer {
            target.push_str("&viewer");
        }
        if !self.calm && self.random.permille(self.plan.rate(Fault::Expiry)) {
            let expires = self.now + self.up_to(Duration::from_secs(20), 30);
            let _ = write!(target, "&expires={}", expires.as_micros());
        }
        self.next_link += 1;
        let link = self.next_link;
        self.trace.line(self.now, format_args!("{who:?} connects by link {link} to {target}"));
        self.network.borrow_mut().open(link);
        self.links.insert(link, who);
        let now = self.now;
        let upgraded_by_others = self.random.permille(100);
        let mut session = Session::new(link, target, &mut self.random, now);
        if upgraded_by_others && !viewer {
            self.upgrade_outside(link, room, &mut session);
        } else {
            self.ends.insert(link, End::Upgrading(Box::new(Upgrade::new(&self.options))));
        }
        *self.session(who) = Some(session);
        if self.session(who).as_ref().is_some_and(Session::is_open) {
            self.opened(who);
            // What the socket was told while it had no end.
            self.network.borrow_mut().woken.insert(link);
            self.pump(link);
            self.at(Duration::ZERO, Event::ServerWrites(link));
        }
        self.pump(link);
    }

    /// A web framework has made the upgrade.
    fn upgrade_outside(&mut self, link: LinkId, room: usize, session: &mut Session) {
        let now = self.clock();
        let mask_seed = self.random.next();
        let Some(host) = &mut self.host else { return };
        let socket = SimSocket { network: Rc::clone(&self.network), link };
        let admission = Admission::new(self.rooms[room].clone(), Access::Write);
        match host.connect(now, socket, Admitted::after_upgrade(admission, Vec::new())) {
            Ok(id) => {
                self.ends.insert(link, End::Open { id, shut: false });
                let config = rfc6455::Config { ping_interval: None, ..rfc6455::Config::default() };
                let role = rfc6455::Role::Client { mask_seed };
                session.out.clear();
                session.layer = Layer::Open(Box::new(rfc6455::Connection::new(role, config, now)));
            }
            Err((_, refusal)) => self.refuse(link, &refusal),
        }
    }

    /// Writes what a client has to say, as far as the pipe takes it.
    pub(super) fn pump(&mut self, link: LinkId) {
        let Some(&who) = self.links.get(&link) else { return };
        let Some(mut session) = self.session(who).take_if(|session| session.link == link) else { return };
        while !session.out.is_empty() {
            let (front, _) = session.out.as_slices();
            let mut network = self.network.borrow_mut();
            let len = network.torn(front.len());
            let (taken, arrives) = network.send_to_server(link, &front[..len]);
            drop(network);
            if taken == 0 {
                break;
            }
            take_front(&mut session.out, taken);
            if let Some(arrives) = arrives {
                self.schedule(arrives, Event::ServerReads(link));
            }
        }
        *self.session(who) = Some(session);
    }

    pub(super) fn client_reads(&mut self, link: LinkId) -> Result<(), Violation> {
        let Some(&who) = self.links.get(&link) else { return Ok(()) };
        let now = self.now;
        let Some(session) = self.session(who).as_mut().filter(|session| session.link == link) else {
            return Ok(());
        };
        if session.asleep_until > now {
            let until = session.asleep_until;
            self.schedule(until, Event::ClientReads(link));
            return Ok(());
        }
        let Some((bytes, at_end)) = self.arrived(link) else { return Ok(()) };
        self.client_hears(who, link, bytes)?;
        if at_end {
            self.session_ends(who, link, "end of stream")?;
        }
        Ok(())
    }

    /// Takes what has arrived at the client's end of a link; says whether the stream has ended behind it.
    pub(super) fn arrived(&mut self, link: LinkId) -> Option<(Vec<u8>, bool)> {
        let now = self.now;
        let mut network = self.network.borrow_mut();
        let mut bytes = network.links.get_mut(&link)?.to_client.read(now);
        let len = network.torn(bytes.len());
        let rest = bytes.split_off(len);
        let pipes = network.links.get_mut(&link)?;
        let again = !rest.is_empty();
        pipes.to_client.unread(now, rest);
        let (at_end, wants_space) = (pipes.to_client.is_at_end(now), pipes.wants_space);
        drop(network);
        if again {
            self.at(Duration::from_micros(10), Event::ClientReads(link));
        }
        if wants_space && !bytes.is_empty() {
            let latency = self.network.borrow_mut().latency();
            self.at(latency, Event::ServerWrites(link));
        }
        Some((bytes, at_end))
    }

    fn client_hears(&mut self, who: Who, link: LinkId, bytes: Vec<u8>) -> Result<(), Violation> {
        let (now, instant) = (self.now, self.instant());
        let mask_seed = self.random.next();
        let Some(session) = self.session(who).as_mut() else { return Ok(()) };
        let all_heard = session.read(instant, mask_seed, bytes)?;
        for heard in all_heard {
            match heard {
                Heard::Open => self.opened(who),
                Heard::Frame(frame) => {
                    if let Some(session) = self.session(who) {
                        session.last_message = now;
                    }
                    self.frame_heard(who, frame)?;
                }
                Heard::Refused(status) => {
                    self.trace.line(now, format_args!("{who:?} is refused with {status}"));
                    if self.settled && !self.leaving {
                        return Err(Violation::new("connections last", format!("{who:?}: {status}")));
                    }
                    self.session_ends(who, link, "refused")?;
                }
                Heard::Closed(reason) => {
                    self.trace.line(now, format_args!("{who:?} is closed with {reason:?}"));
                    // What somebody hostile announces for hundreds, stock clients send back as theirs.
                    let is_flooded = self.plan.rate(Fault::Oversized) > 0
                        && reason.as_ref().is_some_and(|(_, why)| why.contains("awareness"));
                    if let Who::Client(index) = who
                        && matches!(reason, Some((1002..=1009, _)))
                        && !is_flooded
                    {
                        let detail = format!("client {index} is closed with {reason:?}");
                        return Err(Violation::new("honest clients are not at fault", detail));
                    }
                    // The stream ends behind it; a client that closes waits no longer.
                    self.pump(link);
                    self.session_ends(who, link, "closed")?;
                }
            }
        }
        self.pump(link);
        Ok(())
    }

    fn opened(&mut self, who: Who) {
        self.trace.line(self.now, format_args!("{who:?} is connected"));
        if let Who::Client(index) = who {
            let client = &mut self.clients[index];
            client.failures = 0;
            let greeting = client.greeting();
            if let Some(session) = &mut client.session {
                greeting.iter().for_each(|frame| session.send(frame));
            }
        } else if let Some(session) = self.session(who) {
            session.send(&[0, 0, 1, 0]);
        }
    }

    fn frame_heard(&mut self, who: Who, frame: Bytes) -> Result<(), Violation> {
        self.trace.bytes(self.now, format_args!("{who:?} hears"), &frame);
        let index = match who {
            Who::Client(index) => index,
            Who::Hostile(index) => {
                self.hostiles[index].hear(frame);
                return Ok(());
            }
        };
        let mut answers = Vec::new();
        let update = self.clients[index].receive(self.now, &frame, &mut answers)?;
        for answer in &answers {
            self.trace.bytes(self.now, format_args!("{who:?} answers"), answer);
        }
        if let Some(update) = update {
            let room = self.clients[index].room;
            let own = self.clients[index].made.common_with(&update);
            self.acknowledge(room, Author::Client(index), &own)?;
        }
        if let Some(session) = &mut self.clients[index].session {
            answers.iter().for_each(|answer| session.send(answer));
        }
        Ok(())
    }

    pub(super) fn session_ends(&mut self, who: Who, link: LinkId, why: &str) -> Result<(), Violation> {
        if self.session(who).take_if(|session| session.link == link).is_none() {
            return Ok(());
        }
        self.trace.line(self.now, format_args!("{who:?} loses link {link}: {why}"));
        self.links.remove(&link);
        self.hang_up(link);
        let wait = match who {
            Who::Client(index) => {
                let client = &mut self.clients[index];
                client.presence.disconnected();
                client.failures += 1;
                Duration::from_millis((100 << client.failures.min(5)).min(2500))
            }
            Who::Hostile(_) => Duration::from_millis(500),
        };
        if self.settled && !self.leaving && matches!(who, Who::Client(_)) {
            return Err(Violation::new("connections last", format!("{who:?}: {why}")));
        }
        self.at(wait, Event::Connect(who));
        Ok(())
    }

    /// The client's socket is gone: the server reads to the end, and what it writes fails.
    pub(super) fn hang_up(&mut self, link: LinkId) {
        let mut network = self.network.borrow_mut();
        let arrives = network.now + network.latency();
        let half_open = network.links.get(&link).is_some_and(|pipes| pipes.half_open);
        let end = network.links.get_mut(&link).map(|pipes| pipes.to_server.end(arrives));
        drop(network);
        if let Some(end) = end.filter(|_| !half_open) {
            self.schedule(end, Event::ServerReads(link));
            self.at(Duration::ZERO, Event::ServerWrites(link));
            if let Some(pipes) = self.network.borrow_mut().links.get_mut(&link) {
                pipes.cut = true;
            }
        }
        self.forget_link(link);
    }

    pub(super) fn edit(&mut self, index: usize) {
        if self.calm {
            return;
        }
        let client = &mut self.clients[index];
        let burst = if self.edits.permille(100) { self.edits.between(2, 20) } else { 1 };
        let room = client.room;
        if !client.viewer {
            for _ in 0..burst {
                let Some(update) = client.edit(&mut self.edits) else { continue };
                self.trace.bytes(self.now, format_args!("client {index} edits"), &update);
                if let Some(session) = client.session.as_mut().filter(|session| session.is_open()) {
                    session.send(&Message::Update(update).encode());
                }
            }
        }
        if let Some(link) = client.session.as_ref().map(|session| session.link) {
            self.pump(link);
        }
        if self.random.permille(self.plan.rate(Fault::ServerEdits)) {
            self.server_edit(room);
        }
        let next = self.plan.beat * self.edits.between(1, 30).pow(2) as u32 / 315;
        self.at(next, Event::Edit(index));
    }

    fn server_edit(&mut self, room: usize) {
        let now = self.clock();
        let name = self.rooms[room].clone();
        let Some(host) = &mut self.host else { return };
        let edits = &mut self.edits;
        let result = host.edit(now, &name, |transaction| {
            edit_once(transaction, edits);
            transaction.encode_update_v1()
        });
        if let Ok(update) = result
            && let Ok(update) = scan(update.into())
        {
            self.trace.bytes(self.now, format_args!("server edits"), update.bytes());
            self.strangers[room].add(&update);
        }
        // Whatever it asks is picked up by the step.
        self.at(Duration::ZERO, Event::Settle);
    }

    pub(super) fn gesture(&mut self, index: usize) {
        if self.calm {
            return;
        }
        let state = format!("{{\"cursor\":{}}}", self.edits.below(1000));
        let now = self.now;
        let client = &mut self.clients[index];
        if !client.shy {
            client.presence.set(now, state.into());
            let frame = client.presence.encode(&BTreeSet::from([client.id]), false);
            if let (Some(frame), Some(session)) = (frame, &mut client.session) {
                session.send(&frame);
                let link = session.link;
                self.pump(link);
            }
        }
        let next = self.plan.beat * self.edits.between(1, 40).pow(2) as u32 / 80;
        self.at(next, Event::Gesture(index));
    }

    pub(super) fn check_client(&mut self, index: usize) -> Result<(), Violation> {
        if self.leaving {
            return Ok(());
        }
        let now = self.now;
        let client = &mut self.clients[index];
        let changed = client.presence.check(now);
        let frame = client.presence.encode(&changed, false);
        let mut silent = None;
        if let Some(session) = &mut client.session {
            if let Some(frame) = frame {
                session.send(&frame);
            }
            let asleep = session.asleep_until > now;
            if !asleep && now > session.last_message + Duration::from_secs(30) {
                silent = Some(session.link);
            }
            let link = session.link;
            self.pump(link);
        }
        if let Some(link) = silent {
            self.session_ends(Who::Client(index), link, "silence")?;
        }
        self.at(Duration::from_secs(3), Event::Check(index));
        Ok(())
    }
}
