//! Applications that embed the client of the host, with the core's provider in it.

use std::{
    collections::BTreeMap,
    fmt, io, mem,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use yrs::{Doc, ReadTxn, Transact, updates::decoder::Decode};
use yrs_websocket::{
    Echo,
    provider::{CloseReason, End as Ending, Event as Said, PresenceState},
    update::{ClientId, IdSet},
};
use yrs_websocket_host::{Client, ClientHandle, ClientNext, ClientOptions};

use super::{Event, World};
use crate::{
    Fault, Violation, checks,
    client::new_id,
    disk::{Content, missing, scan},
    document::{document, edit},
    network::LinkId,
    random::Random,
};

/// Somebody honest who writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Author {
    Client(usize),
    Application(usize),
}

/// An application: it edits its document, and leaves the rest to the client.
pub(crate) struct Application {
    pub(crate) room: usize,
    pub(crate) id: ClientId,
    pub(crate) doc: Doc,
    pub(crate) client: Client,
    pub(crate) handle: ClientHandle,
    /// What it changed, under this and under earlier ids.
    pub(crate) made: Content,
    /// Its own presence.
    presence: Option<Bytes>,
    said: Arc<Mutex<Vec<Said>>>,
    pub(super) link: Option<LinkId>,
    /// Cannot dial before.
    pub(super) away_until: Duration,
    /// Reads nothing until then.
    pub(super) asleep_until: Duration,
    /// When it is woken next.
    wakes_at: Option<Duration>,
}

impl Application {
    pub(super) fn new(room: usize, name: &str, doc: Doc, made: Content, random: &mut Random) -> Self {
        Self::with_options(room, doc, made, ClientOptions::new("sim", name), random)
    }

    pub(super) fn with_options(
        room: usize,
        doc: Doc,
        made: Content,
        mut options: ClientOptions,
        random: &mut Random,
    ) -> Self {
        let said = Arc::<Mutex<Vec<Said>>>::default();
        let (saying, hear) = (Arc::clone(&said), options.on_event.take());
        options.on_event = Some(Arc::new(move |event: &Said| {
            saying.lock().unwrap_or_else(PoisonError::into_inner).push(event.clone());
            if let Some(hear) = &hear {
                hear(event);
            }
        }));
        let mut client = Client::new(doc.clone(), options, random.next());
        client.start();
        let id = ClientId::new(doc.client_id().get()).expect("it was drawn here");
        Self {
            room,
            id,
            doc,
            handle: client.handle(),
            client,
            made,
            presence: None,
            said,
            link: None,
            away_until: Duration::ZERO,
            asleep_until: Duration::ZERO,
            wakes_at: None,
        }
    }

    pub(super) fn new_document(random: &mut Random) -> Doc {
        document(new_id(random))
    }

    /// Whom it shows, itself included.
    pub(crate) fn present(&self) -> BTreeMap<ClientId, Bytes> {
        let mut present = self.handle.presence();
        present.extend(self.presence.clone().map(|state| (self.id, state)));
        present
    }

    pub(crate) fn own_presence(&self) -> Option<(ClientId, Bytes)> {
        self.presence.clone().map(|state| (self.id, state))
    }

    /// What the document has deleted, by whatever edit of whomever.
    pub(super) fn deleted(&self) -> IdSet {
        let mut deleted = IdSet::default();
        for (client, ranges) in self.doc.transact().snapshot().delete_set.iter() {
            let client = ClientId::new(client.get()).expect("it was scanned, or drawn here");
            for range in ranges.iter() {
                deleted.insert(client, range.start.into()..range.end.into());
            }
        }
        deleted
    }
}

impl fmt::Debug for Application {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Application").field("id", &self.id).finish_non_exhaustive()
    }
}

impl World<'_> {
    /// Lets an application edit, and be present.
    pub(super) fn application_edits(&mut self, index: usize) -> Result<(), Violation> {
        if self.calm {
            return Ok(());
        }
        let application = &mut self.applications[index];
        let burst = if self.edits.permille(100) { self.edits.between(2, 20) } else { 1 };
        for _ in 0..burst {
            let Some(update) = edit(&application.doc, &mut self.edits) else { continue };
            application.made.add(&scan(update.clone()).expect("yrs writes updates that scan"));
            self.trace.bytes(self.now, format_args!("application {index} edits"), &update);
        }
        if self.edits.permille(300) {
            let state = format!("{{\"cursor\":{}}}", self.edits.below(1000));
            let state = PresenceState::new(&state).expect("it is JSON");
            application.presence = Some(state.as_bytes().clone());
            application.handle.set_presence(Some(state));
        }
        let next = self.plan.beat * self.edits.between(1, 30).pow(2) as u32 / 315;
        self.at(next, Event::ApplicationEdits(index));
        self.application_wakes(index)
    }

    /// Its bell has rung, or its time has come.
    pub(super) fn application_wakes(&mut self, index: usize) -> Result<(), Violation> {
        let now = self.instant();
        self.applications[index].client.wake(now);
        self.application_goes_on(index)
    }

    pub(super) fn application_writes(&mut self, index: usize, link: LinkId) -> Result<(), Violation> {
        if self.applications[index].link == Some(link) { self.application_goes_on(index) } else { Ok(()) }
    }

    pub(super) fn application_reads(&mut self, index: usize, link: LinkId) -> Result<(), Violation> {
        let now = self.instant();
        if self.applications[index].link != Some(link) {
            return Ok(());
        }
        if self.applications[index].asleep_until > self.now {
            // Who sleeps for ever is woken by others.
            let until = self.applications[index].asleep_until;
            if until < Duration::MAX {
                self.schedule(until, Event::ClientReads(link));
            }
            return Ok(());
        }
        let Some((mut bytes, at_end)) = self.arrived(link) else { return Ok(()) };
        let client = &mut self.applications[index].client;
        if !bytes.is_empty() {
            client.received(now, &mut bytes);
        }
        if at_end {
            client.ended(now);
        }
        self.application_goes_on(index)
    }

    /// Does what the client wants to be done until it waits; then looks at what it says of its edits.
    fn application_goes_on(&mut self, index: usize) -> Result<(), Violation> {
        let now = self.instant();
        loop {
            let application = &mut self.applications[index];
            match application.client.next() {
                ClientNext::Dial => {
                    if self.host.is_none() || application.away_until > self.now {
                        application.client.dial_failed(now, io::ErrorKind::ConnectionRefused.into());
                        continue;
                    }
                    let link = self.accept();
                    let application = &mut self.applications[index];
                    application.link = Some(link);
                    application.client.dialled(now);
                    self.trace.line(self.now, format_args!("application {index} connects by link {link}"));
                    self.application_links.insert(link, index);
                }
                ClientNext::Run { write: true } => {
                    let Some(link) = application.link else { break };
                    let network = Rc::clone(&self.network);
                    let mut arrivals = Vec::new();
                    // It hears of its own errors.
                    let _ = application.client.write_by(now, |buffers| {
                        let mut network = network.borrow_mut();
                        let front = buffers.first().map_or(&[][..], |buffer| buffer);
                        let len = network.torn(front.len());
                        let (taken, arrives) = network.send_to_server(link, &front[..len]);
                        arrivals.extend(arrives);
                        if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
                    });
                    let is_full = application.client.next() == ClientNext::Run { write: true };
                    arrivals.into_iter().for_each(|at| self.schedule(at, Event::ServerReads(link)));
                    if is_full {
                        break;
                    }
                }
                ClientNext::Drop => {
                    application.client.dropped(now);
                    if let Some(link) = application.link.take() {
                        self.trace.line(self.now, format_args!("application {index} drops link {link}"));
                        self.application_links.remove(&link);
                        self.hang_up(link);
                    }
                }
                ClientNext::Run { write: false } | ClientNext::Wait | ClientNext::Stopped { .. } => break,
            }
        }
        let application = &mut self.applications[index];
        let next = application.client.next_timeout().map(|at| at.saturating_duration_since(self.epoch));
        if next.is_some() && next != application.wakes_at {
            application.wakes_at = next;
            let at = next.unwrap_or_default().max(self.now);
            self.schedule(at, Event::ApplicationWakes(index));
        }
        self.application_says(index)?;
        self.check_acknowledged(index)
    }

    fn application_says(&mut self, index: usize) -> Result<(), Violation> {
        let said =
            mem::take(&mut *self.applications[index].said.lock().unwrap_or_else(PoisonError::into_inner));
        for event in said {
            self.trace.line(self.now, format_args!("application {index}: {event:?}"));
            if let Said::Disconnected { end, .. } = &event {
                let is_at_fault = match end {
                    Ending::Closed { code } => (1002..=1009).contains(code),
                    Ending::ByUs(reason) => !matches!(
                        reason,
                        CloseReason::Left | CloseReason::ConnectTimeout | CloseReason::Silent
                    ),
                    _ => false,
                };
                if is_at_fault {
                    let detail = format!("application {index}: {end:?}");
                    return Err(Violation::new("honest clients are not at fault", detail));
                }
                if self.settled && !self.leaving {
                    let detail = format!("application {index}: {end:?}");
                    return Err(Violation::new("connections last", detail));
                }
            }
        }
        Ok(())
    }

    /// What an application is told is acknowledged is on the disk.
    fn check_acknowledged(&mut self, index: usize) -> Result<(), Violation> {
        let application = &self.applications[index];
        if application.made.is_empty() || application.handle.has_unacknowledged() {
            return Ok(());
        }
        let (room, own) = (application.room, application.made.clone());
        self.acknowledge(room, Author::Application(index), &own)
    }

    /// Checks that what somebody takes for acknowledged is on the disk, and remembers it.
    pub(super) fn acknowledge(&mut self, room: usize, who: Author, own: &Content) -> Result<(), Violation> {
        if self.options.config.echo != Echo::Durable || self.is_parked(&self.rooms[room]) {
            return Ok(());
        }
        let book = self.disk.rooms.entry(self.rooms[room].clone()).or_default();
        let early = book.content.missing_of(own);
        self.acknowledged[room].union(&early.missing_of(own));
        if early.is_empty() {
            return Ok(());
        }
        checks::acknowledged_is_durable(who, &self.without_deletes_of_others(room, who, early))
    }

    /// Who else has deleted the same may be the author of what somebody hears.
    fn without_deletes_of_others(&self, room: usize, who: Author, mut own: Content) -> Content {
        for (index, other) in self.clients.iter().enumerate() {
            if who != Author::Client(index) && other.room == room {
                own.deletes = missing(&other.made.deletes, &own.deletes);
            }
        }
        for (index, other) in self.applications.iter().enumerate() {
            if who != Author::Application(index) && other.room == room {
                own.deletes = missing(&other.deleted(), &own.deletes);
            }
        }
        own.deletes = missing(&self.strangers[room].deletes, &own.deletes);
        own
    }

    /// A fault hits an application: it is offline for a time, or starts anew, perhaps with what it had.
    pub(super) fn application_suffers(&mut self, fault: Fault) -> Result<(), Violation> {
        if self.applications.is_empty() || !self.random.permille(300) {
            return Ok(());
        }
        let index = self.random.index(self.applications.len());
        match fault {
            Fault::Offline => {
                let length = self.up_to(Duration::from_secs(20), 30);
                self.trace.line(self.now, format_args!("application {index} goes offline for {length:?}"));
                self.applications[index].away_until = self.now + length;
                self.application_is_cut_off(index)
            }
            Fault::Reload => {
                self.application_is_cut_off(index)?;
                let keeps = self.random.permille(500);
                self.trace.line(self.now, format_args!("application {index} starts anew, keeps {keeps}"));
                if let Some(link) = self.applications[index].link.take() {
                    self.application_links.remove(&link);
                    self.hang_up(link);
                }
                let old = &self.applications[index];
                let room = old.room;
                let doc = Application::new_document(&mut self.random);
                let mut made = Content::default();
                if keeps {
                    made = old.made.clone();
                    let state = old.doc.transact().encode_diff_v1(&yrs::StateVector::default());
                    let state = yrs::Update::decode_v1(&state).expect("yrs has written it");
                    doc.transact_mut().apply_update(state).expect("yrs has written it");
                } else {
                    self.strangers[room].union(&old.made);
                    let deleted = old.deleted();
                    self.strangers[room].deletes.union(&deleted);
                }
                let name = self.rooms[room].to_string();
                self.applications[index] = Application::new(room, &name, doc, made, &mut self.random);
                self.application_wakes(index)
            }
            _ => Ok(()),
        }
    }

    fn application_is_cut_off(&mut self, index: usize) -> Result<(), Violation> {
        let now = self.instant();
        if let Some(link) = self.applications[index].link {
            if self.random.permille(200) {
                self.network.borrow_mut().half_open(link);
            }
            self.applications[index].client.ended(now);
        }
        self.application_goes_on(index)
    }

    pub(super) fn applications_heal(&mut self) -> Result<(), Violation> {
        for index in 0..self.applications.len() {
            self.applications[index].away_until = self.now;
            self.applications[index].asleep_until = self.now;
            if let Some(link) = self.applications[index].link {
                self.at(Duration::ZERO, Event::ClientReads(link));
            }
            self.application_wakes(index)?;
        }
        Ok(())
    }

    pub(super) fn applications_leave(&mut self) -> Result<(), Violation> {
        for index in 0..self.applications.len() {
            self.applications[index].handle.leave(self.instant() + LEAVE_WITHIN);
            self.application_wakes(index)?;
        }
        Ok(())
    }

    /// All have left, and nothing of theirs was not acknowledged.
    pub(super) fn check_applications_left(&self) -> Result<(), Violation> {
        for (index, application) in self.applications.iter().enumerate() {
            let next = application.client.next();
            if next != (ClientNext::Stopped { unacknowledged: false }) {
                let detail = format!("application {index}: {next:?}");
                return Err(Violation::new("who leaves is acknowledged", detail));
            }
        }
        Ok(())
    }
}

/// More than enough to hear of the last edits in a calm world.
const LEAVE_WITHIN: Duration = Duration::from_secs(60);
