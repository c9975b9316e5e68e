//! What befalls the world: faults, attacks, the calm after them, and the end.

use std::time::Duration;

use yrs_websocket::{message::Message, update::ClientId};

use super::{Event, Who, World};
use crate::{
    Fault, Violation,
    client::{Attack, oversized_header},
    disk::{Mood, scan},
    network::LinkId,
};

impl World<'_> {
    pub(super) fn chaos(&mut self) -> Result<(), Violation> {
        if self.calm {
            return Ok(());
        }
        let next = self.plan.beat * self.random.between(100, 1900) as u32 / 1000;
        self.at(next, Event::Chaos);
        for fault in Fault::ALL {
            // Occasions are far more frequent than these should be.
            let rate = match fault {
                Fault::Crash | Fault::Drain | Fault::Pause | Fault::Outage => self.plan.rate(fault) / 6,
                _ => self.plan.rate(fault) / 3,
            };
            if rate > 0 && self.random.permille(rate.max(1)) {
                self.strike(fault)?;
            }
        }
        Ok(())
    }

    fn strike(&mut self, fault: Fault) -> Result<(), Violation> {
        let links: Vec<_> = self.links.keys().chain(self.application_links.keys()).copied().collect();
        let link = (!links.is_empty()).then(|| links[self.random.index(links.len())]);
        let index = self.random.index(self.clients.len());
        match (fault, link) {
            (Fault::Cut, Some(link)) => {
                self.trace.line(self.now, format_args!("link {link} is cut"));
                self.cut(link);
            }
            (Fault::HalfOpen, Some(link)) => {
                self.trace.line(self.now, format_args!("link {link} falls silent"));
                self.network.borrow_mut().half_open(link);
            }
            (Fault::Sleepy, Some(link)) => {
                let until = self.now + self.up_to(Duration::from_secs(70), 100);
                match self.application_links.get(&link) {
                    Some(&index) => self.applications[index].asleep_until = until,
                    None => {
                        let who = self.links[&link];
                        if let Some(session) = self.session(who) {
                            session.asleep_until = until;
                        }
                    }
                }
                self.trace.line(self.now, format_args!("link {link} is not read until {until:?}"));
            }
            (Fault::Offline, _) => {
                let length = self.up_to(Duration::from_secs(20), 30);
                for index in self.process_of(index) {
                    self.clients[index].away_until = self.now + length;
                    self.trace.line(self.now, format_args!("client {index} goes offline for {length:?}"));
                    self.abandon(index)?;
                }
                self.application_suffers(fault)?;
            }
            (Fault::Reload, _) => {
                self.process_of(index).into_iter().try_for_each(|index| self.reload(index))?;
                self.application_suffers(fault)?;
            }
            (Fault::Outage, _) => {
                let length = self.up_to(Duration::from_secs(15), 20);
                self.disk.mood.outage_until = self.now + length;
                self.trace.line(self.now, format_args!("disk fails for {length:?}"));
            }
            (Fault::Crash, _) => self.crash(),
            (Fault::Drain, _) => self.drain()?,
            (Fault::Pause, _) => {
                let length = self.millis(1, 90_000);
                self.trace.line(self.now, format_args!("time jumps by {length:?}"));
                self.now += length;
                self.paused_at = Some(self.now);
                self.network.borrow_mut().now = self.now;
            }
            _ => {}
        }
        Ok(())
    }

    /// All clients of a client's process.
    fn process_of(&self, index: usize) -> Vec<usize> {
        let process = self.clients[index].process;
        (0..self.clients.len()).filter(|other| self.clients[*other].process == process).collect()
    }

    /// The page of a client is loaded anew, perhaps to show another document.
    fn reload(&mut self, index: usize) -> Result<(), Violation> {
        // A tab that is closed in order says goodbye; a killed one does not.
        if self.random.permille(300)
            && let Some(goodbye) = self.clients[index].presence.leave()
            && let Some(session) = &mut self.clients[index].session
        {
            session.send(&goodbye);
            let now = self.epoch + self.now;
            session.close(now);
            let link = session.link;
            self.pump(link);
        }
        self.abandon(index)?;
        let moves = self.random.permille(300);
        let room = if moves { self.random.index(self.rooms.len()) } else { self.clients[index].room };
        self.trace.line(self.now, format_args!("client {index} loads its page anew, for room {room}"));
        self.load_anew(index, room);
        Ok(())
    }

    pub(super) fn load_anew(&mut self, index: usize, room: usize) {
        let client = &mut self.clients[index];
        self.strangers[client.room].union(&client.made);
        client.reload(room, &mut self.random, self.now);
    }

    /// The connection of a client ends without a goodbye; the server hears of it, or does not.
    fn abandon(&mut self, index: usize) -> Result<(), Violation> {
        let Some(session) = &self.clients[index].session else { return Ok(()) };
        let link = session.link;
        if self.random.permille(200) {
            self.network.borrow_mut().half_open(link);
        }
        self.session_ends(Who::Client(index), link, "abandoned")
    }

    pub(super) fn heal(&mut self) -> Result<(), Violation> {
        self.trace.line(self.now, format_args!("calm"));
        self.calm = true;
        self.disk.mood = Mood { latency_max: Duration::from_millis(2), ..Mood::default() };
        self.plan.faults.remove(&Fault::Expiry);
        {
            let mut network = self.network.borrow_mut();
            network.weather.latency_max = Duration::from_millis(2);
            network.weather.torn = 0;
        }
        let all: Vec<LinkId> = self.network.borrow().links.keys().copied().collect();
        // Those that fell silent stay so: to find them out is the server's affair.
        for link in all {
            if matches!(self.links.get(&link), Some(Who::Hostile(_))) {
                self.cut(link);
            }
        }
        for index in 0..self.clients.len() {
            self.clients[index].away_until = self.now;
            if let Some(session) = &mut self.clients[index].session {
                session.asleep_until = self.now;
                let link = session.link;
                self.at(Duration::ZERO, Event::ClientReads(link));
            } else {
                self.at(Duration::ZERO, Event::Connect(Who::Client(index)));
            }
        }
        self.applications_heal()
    }

    pub(super) fn leave(&mut self) -> Result<(), Violation> {
        self.trace.line(self.now, format_args!("everybody leaves"));
        self.leaving = true;
        let now = self.instant();
        for index in 0..self.clients.len() {
            let client = &mut self.clients[index];
            let goodbye = client.presence.leave();
            if let Some(session) = &mut client.session {
                if let Some(goodbye) = goodbye {
                    session.send(&goodbye);
                }
                session.close(now);
                let link = session.link;
                self.pump(link);
            }
        }
        self.applications_leave()
    }

    pub(super) fn attack(&mut self, index: usize) {
        if self.calm {
            return;
        }
        let attacks = [
            (Fault::Garbage, Attack::Garbage),
            (Fault::Truncated, Attack::Truncated),
            (Fault::Replay, Attack::Replay),
            (Fault::Shuffle, Attack::Shuffle),
            (Fault::Forge, Attack::Forge),
            (Fault::Questions, Attack::Questions),
            (Fault::Oversized, Attack::Oversized),
        ];
        let room = self.hostiles[index].room;
        for (fault, attack) in attacks {
            let rate = self.plan.rate(fault);
            if rate == 0 || !self.random.permille(100 + rate) {
                continue;
            }
            let victims: Vec<(ClientId, u32)> = self
                .clients
                .iter()
                .filter(|client| client.room == room)
                .map(|client| (client.id, client.presence.entries[&client.id].clock))
                .collect();
            let hostile = &mut self.hostiles[index];
            let Some(session) = hostile.session.as_mut().filter(|session| session.is_open()) else {
                continue;
            };
            let link = session.link;
            let frames = hostile.act(attack, &victims, &mut self.random);
            for frame in &frames {
                self.trace.bytes(self.now, format_args!("hostile {index} sends"), frame);
                if let Some(Ok(Message::Update(update))) = Message::decode(frame).next()
                    && let Ok(update) = scan(update)
                {
                    self.strangers[room].add(&update);
                }
            }
            let raw = (attack == Attack::Oversized && self.random.permille(500))
                .then(|| oversized_header(self.options.config.frame_len_max, &mut self.random));
            if let Some(session) = &mut self.hostiles[index].session {
                match &raw {
                    Some(raw) => session.send_raw(raw),
                    None => frames.iter().for_each(|frame| session.send(frame)),
                }
            }
            self.pump(link);
        }
        let next = self.plan.beat * self.random.between(100, 4000) as u32 / 1000;
        self.at(next, Event::Attack(index));
    }
}
